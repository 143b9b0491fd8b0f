/* Shape rules of the ops that only training steps have. */
#include "base/checked.h"
#include "infer.h"

static bool expect_scalar(const Node *node, int32_t index, const char *what, Diag *diag) {
  return infer_expect_type(node, index, what, DTYPE_F32, diag) && infer_expect_rank(node, index, what, 0, diag);
}

/* Ends of groups in a row of the state, and of the decayed part of each. */
static bool check_segments(const Node *node, int64_t groups, int64_t length, Diag *diag) {
  const IntList *ends = &node->attrs.segments, *decayed = &node->attrs.decayed;
  if (ends->count != groups || decayed->count != groups) {
    return node_error(diag, node, "segments and decayed expect a number per row of hyper, %lld, found %d and %d",
                      (long long)groups, ends->count, decayed->count);
  }
  int64_t begin = 0;
  for (int32_t g = 0; g < groups; g++) {
    if (decayed->values[g] < begin || decayed->values[g] > ends->values[g]) {
      return node_error(diag, node, "decayed[%d] expects a number from %lld to %lld, found %lld", g, (long long)begin,
                        (long long)ends->values[g], (long long)decayed->values[g]);
    }
    begin = ends->values[g];
  }
  if (begin == length) return true;
  return node_error(diag, node, "segments end at %lld, a row of the state at %lld", (long long)begin,
                    (long long)length);
}

/* state [rows, P], gradients [P], hyper [groups, HYPER_COUNT], loss, norm (optional) */
static bool infer_step(Node *node, int64_t moments, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "state", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 0, "state", 2, diag) || !infer_expect_type(node, 2, "hyper", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 2, "hyper", 2, diag))
    return false;
  const Shape *state = &node->inputs[0]->shape, *hyper = &node->inputs[2]->shape;
  const int64_t rows = 1 + moments + node->attrs.accumulate;
  if (state->dims[0] != rows) {
    return node_error(diag, node, "state expects %lld rows, found %s", (long long)rows, shape_text(state).text);
  }
  if (hyper->dims[1] != HYPER_COUNT || hyper->dims[0] < 1 || hyper->dims[0] > TRAIN_MAX_GROUPS) {
    return node_error(diag, node, "hyper expects 1 to %d rows of %d numbers, found %s", TRAIN_MAX_GROUPS, HYPER_COUNT,
                      shape_text(hyper).text);
  }
  if (!infer_expect_vector(node, 1, "gradients", state->dims[1], diag) || !expect_scalar(node, 3, "loss", diag) ||
      (node->op_input_count > 4 && !expect_scalar(node, 4, "norm", diag)))
    return false;
  return check_segments(node, hyper->dims[0], state->dims[1], diag) && infer_finish(node, DTYPE_F32, *state, diag);
}

bool infer_sgd_step(Node *node, Diag *diag) { return infer_step(node, 1, diag); }
bool infer_adam_step(Node *node, Diag *diag) { return infer_step(node, 2, diag); }

bool infer_sum_squares(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 0, "input", 1, diag))
    return false;
  const int64_t count = node->inputs[0]->shape.dims[0];
  if (count == DIM_BATCH) return node_error(diag, node, "input expects a fixed number of values, found [N]");
  return infer_finish(node, DTYPE_F32, (Shape){1, {ceil_div(count, TRAIN_CHUNK)}}, diag);
}

bool infer_pack(Node *node, Diag *diag) {
  if (!infer_begin(node, diag)) return false;
  int64_t total = 0;
  for (int32_t i = 0; i < node->op_input_count; i++) {
    const Shape *shape = &node->inputs[i]->shape;
    if (!infer_expect_type(node, i, "input", DTYPE_F32, diag)) return false;
    if (shape_batched(shape)) return node_error(diag, node, "input %d must not be batched", i);
    if (!checked_add(total, shape_elements_per_image(shape), &total)) {
      return node_error(diag, node, "the joined size overflows");
    }
  }
  return infer_finish(node, DTYPE_F32, (Shape){1, {total}}, diag);
}
