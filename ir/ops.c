#include "ops.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>

#include "graph.h"

/* The one op table. Element-wise ops work on any layout as long as all operands of rank 4 share it. */
static const OpInfo infos[OP_COUNT] = {
#define OP(ENUM, op_name, least, most, attributes, op_layouts, rule) \
  [OP_##ENUM] = {.name = #op_name,                                   \
                 .kind = OP_KIND_OTHER,                              \
                 .inputs_min = least,                                \
                 .inputs_max = most,                                 \
                 .attrs = attributes,                                \
                 .layouts = op_layouts,                              \
                 .infer = infer_##op_name,                           \
                 .eval = eval_##op_name,                             \
                 .grad = grad_##op_name,                             \
                 .parameters = rule},
#define ELEMENTWISE(ENUM, op_name, op_kind, operands, attributes, gradient) \
  [OP_##ENUM] = {.name = #op_name,                                          \
                 .kind = op_kind,                                           \
                 .inputs_min = operands,                                    \
                 .inputs_max = operands,                                    \
                 .attrs = attributes,                                       \
                 .layouts = LAYOUTS_IMAGE,                                  \
                 .infer = infer_elementwise,                                \
                 .eval = eval_elementwise,                                  \
                 .grad = gradient,                                          \
                 .expr = expr_##op_name,                                    \
                 .parameters = no_parameters},
#define UNARY(ENUM, op_name, attributes)                                \
  ELEMENTWISE(ENUM, op_name, OP_KIND_UNARY, 1, attributes, grad_unary) \
  ELEMENTWISE(ENUM##_GRAD, op_name##_grad, OP_KIND_BINARY, 2, attributes, grad_unary_grad)
#define BINARY(ENUM, op_name, attributes) ELEMENTWISE(ENUM, op_name, OP_KIND_BINARY, 2, attributes, grad_##op_name)
#define SOURCE(ENUM, op_name) \
  [OP_##ENUM] = {.name = #op_name, .kind = OP_KIND_SOURCE, .layouts = LAYOUTS_OWN, .parameters = no_parameters},
#include "ops.def"
#undef OP
#undef ELEMENTWISE
#undef UNARY
#undef BINARY
#undef SOURCE
};

/* Made by Kiln itself; no layer of a description may be one. */
static const bool internal[OP_COUNT] = {
    [OP_INPUT] = true,       [OP_PARAMETER] = true, [OP_CONVERT] = true,
    [OP_BATCH_STATS] = true, [OP_PLANE_MOMENTS] = true, [OP_BN_UPDATE] = true, [OP_BN_SCALE] = true,
    [OP_STATS_PARTIAL] = true, [OP_STATS_FINAL] = true,
    [OP_FULL] = true,
    [OP_SLICE] = true,
    [OP_EXPAND] = true,
    [OP_MEAN_GRAD] = true,
    [OP_MAX_GRAD] = true,
    [OP_ONE_HOT] = true,
    [OP_CONV2D_GRAD_WEIGHT] = true,
    [OP_LINEAR_GRAD_WEIGHT] = true,
    [OP_BATCH_NORM_GRAD_INPUT] = true,
    [OP_BATCH_NORM_GRAD_WEIGHT] = true,
    [OP_MAX_POOL2D_GRAD] = true,
    [OP_AVG_POOL2D_GRAD] = true,
    [OP_ADAPTIVE_AVG_POOL2D_GRAD] = true,
    [OP_ADAPTIVE_MAX_POOL2D_GRAD] = true,
    [OP_UPSAMPLE_GRAD] = true,
    [OP_PAD_GRAD] = true,
    [OP_SGD_STEP] = true,
    [OP_ADAM_STEP] = true,
    [OP_SUM_SQUARES] = true,
    [OP_PACK] = true,
    [OP_GRID_SAMPLE_GRAD_INPUT] = true,
    [OP_GRID_SAMPLE_GRAD_THETA] = true,
#define OP(ENUM, op_name, least, most, attributes, op_layouts, rule)
#define UNARY(ENUM, op_name, attributes) [OP_##ENUM##_GRAD] = true,
#define BINARY(ENUM, op_name, attributes)
#define SOURCE(ENUM, op_name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
};

static const char *public_names[OP_COUNT];
static size_t public_count;
static pthread_once_t public_once = PTHREAD_ONCE_INIT;

static void collect_names(void) {
  for (OpCode op = 0; op < OP_COUNT; op++) {
    if (!internal[op]) public_names[public_count++] = infos[op].name;
  }
}

const OpInfo *op_info(OpCode op) {
  assert((unsigned)op < OP_COUNT);
  return &infos[op];
}

bool node_joins_images(const Node *node) {
  const int32_t last = node->op_input_count - 1;
  switch (node->op) {
    case OP_BATCH_NORM:
      return node->attrs.training;
    case OP_BATCH_NORM_GRAD_INPUT:
      return true;
    case OP_DROPOUT: /* a generator's numbers belong to places in the batch */
      return last > 0;
    case OP_MAX_GRAD: /* of a maximum or mean over the batch */
    case OP_MEAN_GRAD:
      return !shape_batched(&node->inputs[last]->shape);
    default:
      return false;
  }
}

OpCode op_find(const char *name) {
  for (OpCode op = 0; op < OP_COUNT; op++) {
    if (strcmp(infos[op].name, name) == 0) return op;
  }
  return OP_COUNT;
}

const char *const *op_names(size_t *out_count) {
  pthread_once(&public_once, collect_names);
  *out_count = public_count;
  return public_names;
}
