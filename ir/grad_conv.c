/* Gradients of convolutions, matrix products and normalisation. */
#include "grad.h"

/* --- convolution ----------------------------------------------------------------------------------- */

static Attrs window_attrs(const Node *node) {
  Attrs attrs = attrs_default();
  attrs.stride = node->attrs.stride;
  attrs.padding = node->attrs.padding;
  attrs.dilation = node->attrs.dilation;
  attrs.groups = node->attrs.groups;
  return attrs;
}

static Node *weight_gradient(GradContext *context, const Attrs *window, Node *x, Node *gradient, const Node *weight) {
  Attrs attrs = *window;
  for (int i = 0; i < 2; i++) attrs.kernel.values[i] = weight->shape.dims[2 + i];
  return gradient_make(context, OP_CONV2D_GRAD_WEIGHT, &attrs, (Node *const[]){x, gradient}, 2);
}

/* The transposed convolution by the same filters. Its output padding is what is left of the image of height and width
 * `size` behind the last window: less than the stride. */
static Node *input_gradient(GradContext *context, const Attrs *window, Node *gradient, Node *weight,
                            const int64_t *size) {
  Attrs attrs = *window;
  for (int i = 0; i < 2; i++) {
    const int64_t extent = (weight->shape.dims[2 + i] - 1) * attrs.dilation.values[i] + 1;
    const int64_t padded = size[i] + attrs.padding.values[i] + attrs.padding.values[2 + i];
    attrs.output_padding.values[i] = (padded - extent) % attrs.stride.values[i];
  }
  return gradient_make(context, OP_CONV_TRANSPOSE2D, &attrs, (Node *const[]){gradient, weight}, 2);
}

/* With a padding mode: the convolution, which then pads nothing, and the padding before it each on their own. */
bool grad_conv2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *x = node->inputs[0], *weight = node->inputs[1], *padded = x;
  Attrs window = window_attrs(node), pad = attrs_default();
  const bool mode = node->attrs.padding_mode != PADDING_ZEROS;
  if (mode) {
    pad.padding = node->attrs.padding;
    pad.padding_mode = node->attrs.padding_mode;
    window.padding = attrs_default().padding;
    if (gradient_needed(context, node, 1)) padded = gradient_make(context, OP_PAD, &pad, &x, 1);
  }
  if (gradient_needed(context, node, 0)) {
    int64_t size[2];
    for (int i = 0; i < 2; i++) {
      size[i] = x->shape.dims[2 + i];
      if (mode) size[i] += pad.padding.values[i] + pad.padding.values[2 + i];
    }
    out_gradients[0] = input_gradient(context, &window, gradient, weight, size);
    if (mode) out_gradients[0] = gradient_make(context, OP_PAD_GRAD, &pad, &out_gradients[0], 1);
  }
  if (gradient_needed(context, node, 1)) out_gradients[1] = weight_gradient(context, &window, padded, gradient, weight);
  if (gradient_needed(context, node, 2)) out_gradients[2] = gradient_sum_channels(context, gradient);
  return !context->failed;
}

/* A transposed convolution is the gradient of a convolution, and the other way round. */
bool grad_conv_transpose2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *x = node->inputs[0], *weight = node->inputs[1];
  const Attrs window = window_attrs(node);
  if (gradient_needed(context, node, 0)) {
    Node *result = gradient_make(context, OP_CONV2D, &window, (Node *const[]){gradient, weight}, 2);
    /* an output padding of a stride or more, which a dilation allows, gives windows that the input does not have */
    for (int32_t d = 2; d < 4; d++) result = gradient_slice(context, result, d, 0, x->shape.dims[d]);
    out_gradients[0] = result;
  }
  if (gradient_needed(context, node, 1)) out_gradients[1] = weight_gradient(context, &window, gradient, x, weight);
  if (gradient_needed(context, node, 2)) out_gradients[2] = gradient_sum_channels(context, gradient);
  return !context->failed;
}

/* --- matrix products ------------------------------------------------------------------------------- */

bool grad_linear(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  if (gradient_needed(context, node, 0))
    out_gradients[0] = gradient_binary(context, OP_MATMUL, gradient, node->inputs[1]);
  if (gradient_needed(context, node, 1))
    out_gradients[1] = gradient_binary(context, OP_LINEAR_GRAD_WEIGHT, node->inputs[0], gradient);
  if (gradient_needed(context, node, 2)) {
    bool rows[SHAPE_MAX_RANK] = {false};
    for (int32_t d = 0; d + 1 < gradient->shape.rank; d++) rows[d] = true;
    out_gradients[2] = gradient_sum(context, gradient, rows);
  }
  return !context->failed;
}

static Node *transpose(GradContext *context, Node *matrix) {
  Attrs attrs = attrs_default();
  const int32_t rank = attrs.dims.count = matrix->shape.rank;
  for (int32_t d = 0; d < rank; d++) attrs.dims.values[d] = d < rank - 2 ? d : 2 * rank - 3 - d;
  return gradient_make(context, OP_PERMUTE, &attrs, &matrix, 1);
}

static Node *multiply(GradContext *context, Node *a, Node *b, bool transposed) {
  Attrs attrs = attrs_default();
  attrs.transpose = transposed;
  return gradient_make(context, OP_MATMUL, &attrs, (Node *const[]){a, b}, 2);
}

/* y = a·b: da = dy·bᵀ, db = aᵀ·dy; y = a·bᵀ: da = dy·b, db = dyᵀ·a. */
bool grad_matmul(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *a = node->inputs[0], *b = node->inputs[1];
  const bool transposed = node->attrs.transpose;
  if (gradient_needed(context, node, 0)) {
    Node *product = multiply(context, gradient, b, !transposed);
    out_gradients[0] = gradient_unbroadcast(context, product, &a->shape);
  }
  if (gradient_needed(context, node, 1)) {
    Node *left = transposed ? gradient : a, *right = transposed ? a : gradient;
    if (b->shape.rank == 2) {
      /* one matrix for all rows, of which there are as many as the leading dimensions and the batch give */
      out_gradients[1] = gradient_binary(context, OP_LINEAR_GRAD_WEIGHT, right, left);
    } else {
      Node *product = multiply(context, transpose(context, left), right, false);
      out_gradients[1] = gradient_unbroadcast(context, product, &b->shape);
    }
  }
  return !context->failed;
}

/* --- normalisation --------------------------------------------------------------------------------- */

/* Mean (index 0) or variance (1) of the batch, as a vector. */
static Node *batch_statistic(GradContext *context, Node *x, int64_t index) {
  Node *stats = gradient_unary(context, OP_BATCH_STATS, x);
  const Shape vector = {1, {x->shape.dims[1]}};
  return gradient_reshape(context, gradient_slice(context, stats, 0, index, 1), &vector);
}

bool grad_batch_norm(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  if (gradient_needed(context, node, 3) || gradient_needed(context, node, 4)) {
    return gradient_refuse(context, node, "there is none with respect to running statistics");
  }
  Node *x = node->inputs[0], *weight = node->inputs[1], *mean = node->inputs[3], *variance = node->inputs[4];
  const bool training = node->attrs.training;
  if (training && (gradient_needed(context, node, 0) || gradient_needed(context, node, 1))) {
    mean = batch_statistic(context, x, 0);
    variance = batch_statistic(context, x, 1);
  }
  if (gradient_needed(context, node, 0)) {
    if (training) {
      out_gradients[0] = gradient_make(context, OP_BATCH_NORM_GRAD_INPUT, &node->attrs,
                                       (Node *const[]){x, weight, mean, variance, gradient}, 5);
    } else {
      Node *scale = gradient_make(context, OP_BN_SCALE, &node->attrs, (Node *const[]){weight, variance}, 2);
      scale = gradient_per_channel(context, scale, x->shape.rank);
      out_gradients[0] = gradient_binary(context, OP_MUL, gradient, scale);
    }
  }
  if (gradient_needed(context, node, 1)) {
    out_gradients[1] = gradient_make(context, OP_BATCH_NORM_GRAD_WEIGHT, &node->attrs,
                                     (Node *const[]){x, mean, variance, gradient}, 4);
  }
  if (gradient_needed(context, node, 2)) out_gradients[2] = gradient_sum_channels(context, gradient);
  return !context->failed;
}

/* Linear but for the mean. */
bool grad_normalize(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Attrs attrs = node->attrs;
  for (int32_t i = 0; i < attrs.mean.count; i++) attrs.mean.values[i] = 0;
  out_gradients[0] = gradient_make(context, OP_NORMALIZE, &attrs, &gradient, 1);
  return !context->failed;
}

/* --- what differentiation itself makes ------------------------------------------------------------- */

#define NO_SECOND_DERIVATIVE(name)                                                              \
  bool grad_##name(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {    \
    (void)gradient;                                                                             \
    (void)out_gradients;                                                                        \
    return gradient_refuse(context, node, "second derivatives of this kind are not supported"); \
  }

NO_SECOND_DERIVATIVE(conv2d_grad_weight)
NO_SECOND_DERIVATIVE(linear_grad_weight)
NO_SECOND_DERIVATIVE(batch_norm_grad_input)
NO_SECOND_DERIVATIVE(batch_norm_grad_weight)
