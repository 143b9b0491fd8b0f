/* Gradients of ops that rearrange, repeat or pass on elements. */
#include "grad.h"

static bool pass_on(GradContext *context, Node *gradient, Node **out_gradients) {
  out_gradients[0] = gradient;
  return !context->failed;
}

bool grad_identity(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  (void)node;
  return pass_on(context, gradient, out_gradients);
}

bool grad_convert(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  (void)node;
  return pass_on(context, gradient, out_gradients);
}

/* In inference nothing is dropped; in training the same elements are. */
bool grad_dropout(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  if (node->op_input_count > 1)
    gradient = gradient_make(context, OP_DROPOUT, &node->attrs, (Node *const[]){gradient, node->inputs[1]}, 2);
  return pass_on(context, gradient, out_gradients);
}

bool grad_reshape(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  out_gradients[0] = gradient_reshape(context, gradient, &node->inputs[0]->shape);
  return !context->failed;
}

bool grad_flatten(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  return grad_reshape(context, node, gradient, out_gradients);
}

bool grad_permute(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  const IntList *dims = &node->attrs.dims;
  Attrs attrs = attrs_default();
  attrs.dims.count = dims->count;
  for (int32_t d = 0; d < dims->count; d++) {
    attrs.dims.values[dims->values[d] < 0 ? dims->values[d] + dims->count : dims->values[d]] = d;
  }
  out_gradients[0] = gradient_make(context, OP_PERMUTE, &attrs, &gradient, 1);
  return !context->failed;
}

bool grad_concat(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  const int32_t dim = (int32_t)(node->attrs.dim < 0 ? node->attrs.dim + node->shape.rank : node->attrs.dim);
  int64_t start = 0;
  for (int32_t i = 0; i < node->op_input_count; i++) {
    const int64_t length = node->inputs[i]->shape.dims[dim];
    if (gradient_needed(context, node, i)) out_gradients[i] = gradient_slice(context, gradient, dim, start, length);
    start += length;
  }
  return !context->failed;
}

bool grad_expand(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  out_gradients[0] = gradient_unbroadcast(context, gradient, &node->inputs[0]->shape);
  return !context->failed;
}

#define REFUSED(name, reason)                                                                \
  bool grad_##name(GradContext *context, Node *node, Node *gradient, Node **out_gradients) { \
    (void)gradient;                                                                          \
    (void)out_gradients;                                                                     \
    return gradient_refuse(context, node, reason);                                           \
  }

REFUSED(full, "it has no inputs")
REFUSED(one_hot, "its input is an integer")
REFUSED(slice, "second derivatives of this kind are not supported")
