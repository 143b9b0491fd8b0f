/* Gradients of reductions and losses. */
#include "grad.h"

/* --- sums, means, maxima --------------------------------------------------------------------------- */

/* The reduced value's shape with 1 for every dimension that is gone. */
static Shape kept_shape(const Node *node) {
  const Shape *input = &node->inputs[0]->shape;
  const IntList *dims = &node->attrs.dims;
  Shape shape = *input;
  for (int32_t d = 1; d < shape.rank && dims->count == 0; d++) shape.dims[d] = 1;
  for (int32_t i = 0; i < dims->count; i++) {
    shape.dims[dims->values[i] < 0 ? dims->values[i] + shape.rank : dims->values[i]] = 1;
  }
  return shape;
}

static bool spread(GradContext *context, OpCode op, const Node *node, Node *gradient, Node **out_gradients) {
  const Shape kept = kept_shape(node);
  Node *reshaped = gradient_reshape(context, gradient, &kept);
  out_gradients[0] = gradient_expand(context, op, reshaped, &node->inputs[0]->shape);
  return !context->failed;
}

bool grad_sum(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return spread(context, OP_EXPAND, node, gradient, out_gradients);
}

bool grad_mean(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return spread(context, OP_MEAN_GRAD, node, gradient, out_gradients);
}

bool grad_max(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  out_gradients[0] = gradient_make(context, OP_MAX_GRAD, &node->attrs, (Node *const[]){node->inputs[0], gradient}, 2);
  return !context->failed;
}

/* --- softmax --------------------------------------------------------------------------------------- */

/* Σ along the node's dimension, kept as 1. */
static Node *sum_along(GradContext *context, const Node *node, Node *value) {
  Attrs attrs = attrs_default();
  attrs.dims = (IntList){1, {node->attrs.dim}};
  attrs.keep_dims = true;
  return gradient_make(context, OP_SUM, &attrs, &value, 1);
}

/* y·(dy − Σ y·dy) */
bool grad_softmax(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *mean = sum_along(context, node, gradient_binary(context, OP_MUL, node, gradient));
  out_gradients[0] = gradient_binary(context, OP_MUL, node, gradient_binary(context, OP_SUB, gradient, mean));
  return !context->failed;
}

/* dy − exp(y)·Σ dy */
bool grad_log_softmax(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *total = sum_along(context, node, gradient);
  Node *share = gradient_binary(context, OP_MUL, gradient_unary(context, OP_EXP, node), total);
  out_gradients[0] = gradient_binary(context, OP_SUB, gradient, share);
  return !context->failed;
}

/* --- losses ---------------------------------------------------------------------------------------- */

/* The gradient of the loss of each of `each` elements. */
static Node *gradient_of_each(GradContext *context, const Node *node, Node *gradient, const Shape *each) {
  if (node->attrs.reduction == REDUCTION_NONE) return gradient;
  return gradient_expand(context, node->attrs.reduction == REDUCTION_MEAN ? OP_MEAN_GRAD : OP_EXPAND, gradient, each);
}

/* softmax(x) − one_hot(target) */
bool grad_cross_entropy(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *x = node->inputs[0], *target = node->inputs[1];
  Node *each = gradient_of_each(context, node, gradient, &target->shape);
  const Shape column = {2, {x->shape.dims[0], 1}};
  Attrs attrs = attrs_default();
  attrs.depth = x->shape.dims[1];
  Node *wanted = gradient_make(context, OP_ONE_HOT, &attrs, &target, 1);
  Node *excess = gradient_binary(context, OP_SUB, gradient_unary(context, OP_SOFTMAX, x), wanted);
  out_gradients[0] = gradient_binary(context, OP_MUL, excess, gradient_reshape(context, each, &column));
  return !context->failed;
}

/* 2·(x − t), and the opposite */
bool grad_mse(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *x = node->inputs[0], *target = node->inputs[1];
  Node *each = gradient_of_each(context, node, gradient, &x->shape);
  Node *half = gradient_binary(context, OP_MUL, gradient_binary(context, OP_SUB, x, target), each);
  Node *whole = gradient_binary(context, OP_ADD, half, half);
  if (gradient_needed(context, node, 0)) out_gradients[0] = whole;
  if (gradient_needed(context, node, 1)) out_gradients[1] = gradient_unary(context, OP_NEG, whole);
  return !context->failed;
}

/* σ(x) − t, and −x */
bool grad_bce_with_logits(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *x = node->inputs[0], *target = node->inputs[1];
  Node *each = gradient_of_each(context, node, gradient, &x->shape);
  if (gradient_needed(context, node, 0)) {
    Node *excess = gradient_binary(context, OP_SUB, gradient_unary(context, OP_SIGMOID, x), target);
    out_gradients[0] = gradient_binary(context, OP_MUL, excess, each);
  }
  if (gradient_needed(context, node, 1))
    out_gradients[1] = gradient_unary(context, OP_NEG, gradient_binary(context, OP_MUL, x, each));
  return !context->failed;
}

/* --- none ------------------------------------------------------------------------------------------ */

#define REFUSED(name, reason)                                                                \
  bool grad_##name(GradContext *context, Node *node, Node *gradient, Node **out_gradients) { \
    (void)gradient;                                                                          \
    (void)out_gradients;                                                                     \
    return gradient_refuse(context, node, reason);                                           \
  }

REFUSED(argmax, "its values are integers")
REFUSED(batch_stats, "statistics of a batch are kept, not trained through")
REFUSED(plane_moments, "statistics of a batch are kept, not trained through")
REFUSED(bn_update, "running statistics are kept, not trained through")
REFUSED(stats_partial, "statistics of a hook are looked at, not trained through")
REFUSED(stats_final, "statistics of a hook are looked at, not trained through")
REFUSED(mean_grad, "second derivatives of this kind are not supported")
REFUSED(max_grad, "second derivatives of this kind are not supported")
