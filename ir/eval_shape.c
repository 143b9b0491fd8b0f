/* The interpreter's ops that only rearrange elements. */
#include <string.h>

#include "eval.h"

static int64_t count_from(const Shape *shape, int32_t first) {
  int64_t count = 1;
  for (int32_t i = first; i < shape->rank; i++) count *= shape->dims[i];
  return count;
}

static void copy(const EvalTensor *input, EvalTensor *output) {
  memcpy(output->data, input->data, (size_t)count_from(&output->shape, 0) * sizeof(double));
}

/* Same elements in the same row-major order. */
#define SAME_ORDER(name)                                                                    \
  void eval_##name(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) { \
    (void)node;                                                                             \
    copy(inputs[0], output);                                                                \
  }

SAME_ORDER(flatten)
SAME_ORDER(reshape)
SAME_ORDER(identity)
SAME_ORDER(convert)

void eval_permute(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Shape *shape = &output->shape;
  int64_t strides[SHAPE_MAX_RANK], from[SHAPE_MAX_RANK], index[SHAPE_MAX_RANK] = {0};
  eval_strides(&inputs[0]->shape, strides);
  for (int32_t i = 0; i < shape->rank; i++) {
    const int64_t dim = node->attrs.dims.values[i];
    from[i] = strides[dim < 0 ? dim + shape->rank : dim];
  }
  const int64_t count = count_from(shape, 0);
  for (int64_t i = 0; i < count; i++) {
    int64_t at = 0;
    for (int32_t k = 0; k < shape->rank; k++) at += index[k] * from[k];
    output->data[i] = inputs[0]->data[at];
    for (int32_t k = shape->rank - 1; k >= 0 && ++index[k] == shape->dims[k]; k--) index[k] = 0;
  }
}

void eval_concat(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int32_t dim = (int32_t)(node->attrs.dim < 0 ? node->attrs.dim + output->shape.rank : node->attrs.dim);
  int64_t outer = 1;
  for (int32_t i = 0; i < dim; i++) outer *= output->shape.dims[i];
  double *to = output->data;
  for (int64_t o = 0; o < outer; o++) {
    for (int32_t i = 0; i < node->op_input_count; i++) {
      const int64_t run = count_from(&inputs[i]->shape, dim);
      memcpy(to, inputs[i]->data + o * run, (size_t)run * sizeof(double));
      to += run;
    }
  }
}
