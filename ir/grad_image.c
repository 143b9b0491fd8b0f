/* Gradients of pooling, resampling and padding. */
#include "grad.h"

/* Attributes of an op and the height and width of its input. */
static Attrs with_size(const Node *node) {
  Attrs attrs = node->attrs;
  attrs.scale = attrs_default().scale;
  for (int i = 0; i < 2; i++) attrs.size.values[i] = node->inputs[0]->shape.dims[2 + i];
  return attrs;
}

/* With the input's values, which say where the maxima are. */
static bool from_input(GradContext *context, OpCode op, Node *node, Node *gradient, Node **out_gradients) {
  out_gradients[0] = gradient_make(context, op, &node->attrs, (Node *const[]){node->inputs[0], gradient}, 2);
  return !context->failed;
}

/* With the input's height and width. */
static bool from_size(GradContext *context, OpCode op, Node *node, Node *gradient, Node **out_gradients) {
  const Attrs attrs = with_size(node);
  out_gradients[0] = gradient_make(context, op, &attrs, &gradient, 1);
  return !context->failed;
}

bool grad_max_pool2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return from_input(context, OP_MAX_POOL2D_GRAD, node, gradient, out_gradients);
}

bool grad_avg_pool2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return from_size(context, OP_AVG_POOL2D_GRAD, node, gradient, out_gradients);
}

bool grad_adaptive_avg_pool2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return from_size(context, OP_ADAPTIVE_AVG_POOL2D_GRAD, node, gradient, out_gradients);
}

bool grad_adaptive_max_pool2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return from_input(context, OP_ADAPTIVE_MAX_POOL2D_GRAD, node, gradient, out_gradients);
}

/* The maxima's channels come first. */
bool grad_adaptive_concat_pool2d(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  const int64_t channels = node->inputs[0]->shape.dims[1];
  Node *of_maxima = gradient_slice(context, gradient, 1, 0, channels);
  Node *of_means = gradient_slice(context, gradient, 1, channels, channels);
  Node *maxima = gradient_binary(context, OP_ADAPTIVE_MAX_POOL2D_GRAD, node->inputs[0], of_maxima);
  const Attrs attrs = with_size(node);
  Node *means = gradient_make(context, OP_ADAPTIVE_AVG_POOL2D_GRAD, &attrs, &of_means, 1);
  out_gradients[0] = gradient_binary(context, OP_ADD, means, maxima);
  return !context->failed;
}

bool grad_upsample(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return from_size(context, OP_UPSAMPLE_GRAD, node, gradient, out_gradients);
}

bool grad_grid_sample(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *x = node->inputs[0], *theta = node->inputs[1];
  const Attrs attrs = with_size(node);
  if (gradient_needed(context, node, 0))
    out_gradients[0] = gradient_make(context, OP_GRID_SAMPLE_GRAD_INPUT, &attrs, (Node *const[]){gradient, theta}, 2);
  if (gradient_needed(context, node, 1))
    out_gradients[1] =
        gradient_make(context, OP_GRID_SAMPLE_GRAD_THETA, &node->attrs, (Node *const[]){x, theta, gradient}, 3);
  return !context->failed;
}

bool grad_pad(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  out_gradients[0] = gradient_make(context, OP_PAD_GRAD, &node->attrs, &gradient, 1);
  return !context->failed;
}

#define REFUSED(name, reason)                                                                \
  bool grad_##name(GradContext *context, Node *node, Node *gradient, Node **out_gradients) { \
    (void)gradient;                                                                          \
    (void)out_gradients;                                                                     \
    return gradient_refuse(context, node, reason);                                           \
  }

REFUSED(max_pool2d_grad, "second derivatives of this kind are not supported")
REFUSED(avg_pool2d_grad, "second derivatives of this kind are not supported")
REFUSED(adaptive_avg_pool2d_grad, "second derivatives of this kind are not supported")
REFUSED(adaptive_max_pool2d_grad, "second derivatives of this kind are not supported")
REFUSED(upsample_grad, "second derivatives of this kind are not supported")
REFUSED(grid_sample_grad_input, "second derivatives of this kind are not supported")
REFUSED(grid_sample_grad_theta, "second derivatives of this kind are not supported")
REFUSED(pad_grad, "second derivatives of this kind are not supported")
