/* Shape rules of reductions and losses. Sums, means and maxima over the batch drop it; nothing else may. */
#include "infer.h"
#include "work.h"

static bool begin_float(const Node *node, Diag *diag) {
  return infer_begin(node, diag) && infer_expect_type(node, 0, "input", DTYPE_F32, diag);
}

/* --- along one dimension --------------------------------------------------------------------------- */

static bool infer_along(const Node *node, Diag *diag, int32_t *out_dim) {
  const Shape *input = &node->inputs[0]->shape;
  if (!infer_dim(node, "dim", node->attrs.dim, input->rank, diag, out_dim)) return false;
  if (*out_dim > 0 || !shape_batched(input)) return true;
  return node_error(diag, node, "dim 0 is the batch dimension N: %s works within an image", op_info(node->op)->name);
}

static bool infer_softmax_family(Node *node, Diag *diag) {
  int32_t dim = 0;
  return begin_float(node, diag) && infer_along(node, diag, &dim) &&
         infer_finish(node, DTYPE_F32, node->inputs[0]->shape, diag);
}

bool infer_softmax(Node *node, Diag *diag) { return infer_softmax_family(node, diag); }
bool infer_log_softmax(Node *node, Diag *diag) { return infer_softmax_family(node, diag); }

/* The shape without (or with 1 for) the dimensions that are marked. */
static Shape reduced_shape(const Shape *input, const bool reduced[SHAPE_MAX_RANK], bool keep_dims) {
  Shape output = {0};
  for (int32_t i = 0; i < input->rank; i++) {
    if (!reduced[i]) {
      output.dims[output.rank++] = input->dims[i];
    } else if (keep_dims) {
      output.dims[output.rank++] = 1;
    }
  }
  return output;
}

bool infer_argmax(Node *node, Diag *diag) {
  int32_t dim = 0;
  if (!begin_float(node, diag) || !infer_along(node, diag, &dim)) return false;
  bool reduced[SHAPE_MAX_RANK] = {false};
  reduced[dim] = true;
  return infer_finish(node, DTYPE_I64, reduced_shape(&node->inputs[0]->shape, reduced, node->attrs.keep_dims), diag);
}

/* --- along several --------------------------------------------------------------------------------- */

static bool infer_reduction(Node *node, Diag *diag) {
  if (!begin_float(node, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  const IntList *dims = &node->attrs.dims;
  bool reduced[SHAPE_MAX_RANK] = {false};
  if (dims->count == 0) {
    for (int32_t i = 1; i < input->rank; i++) reduced[i] = true;
  }
  for (int32_t i = 0; i < dims->count; i++) {
    int32_t dim = 0;
    if (!infer_dim(node, "dims", dims->values[i], input->rank, diag, &dim)) return false;
    if (reduced[dim]) return node_error(diag, node, "dims names dimension %d twice", dim);
    reduced[dim] = true;
  }
  return infer_finish(node, DTYPE_F32, reduced_shape(input, reduced, node->attrs.keep_dims), diag);
}

bool infer_mean(Node *node, Diag *diag) { return infer_reduction(node, diag); }
bool infer_sum(Node *node, Diag *diag) { return infer_reduction(node, diag); }
bool infer_max(Node *node, Diag *diag) { return infer_reduction(node, diag); }

/* --- batch statistics ------------------------------------------------------------------------------ */

static bool expect_channels(const Node *node, int32_t index, Diag *diag) {
  const Shape *input = &node->inputs[index]->shape;
  if (!infer_expect_type(node, index, "input", DTYPE_F32, diag)) return false;
  if (input->rank >= 2) return true;
  return node_error(diag, node, "input expects at least 2 dimensions, found %d: %s", input->rank,
                    shape_text(input).text);
}

bool infer_batch_stats(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !expect_channels(node, 0, diag)) return false;
  const Shape *x = &node->inputs[0]->shape;
  if (node->op_input_count > 1) {
    if (!infer_expect_type(node, 1, "moments", DTYPE_F32, diag) || !infer_expect_rank(node, 1, "moments", 4, diag))
      return false;
    const Shape *moments = &node->inputs[1]->shape;
    const int64_t parts = moments->dims[2];
    if (x->rank != 4 || !moment_parts_fit(x->dims[2], parts) ||
        !shape_equal(moments, &(Shape){4, {x->dims[0], x->dims[1], parts, 2}})) {
      return node_error(diag, node, "moments of %s expect shape [N,C,parts,2], found %s", shape_text(x).text,
                        shape_text(moments).text);
    }
  }
  return infer_finish(node, DTYPE_F32, (Shape){2, {2, x->dims[1]}}, diag);
}

bool infer_plane_moments(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 0, "input", 4, diag)) {
    return false;
  }
  const Shape *x = &node->inputs[0]->shape;
  const int64_t parts = node->attrs.parts > 0 ? node->attrs.parts : 1;
  if (!moment_parts_fit(x->dims[2], parts)) {
    return node_error(diag, node,
                      "parts expects a number of equal runs of rows, the last one not empty, found %lld of %lld",
                      (long long)parts, (long long)x->dims[2]);
  }
  return infer_finish(node, DTYPE_F32, (Shape){4, {x->dims[0], x->dims[1], parts, 2}}, diag);
}

bool infer_bn_update(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !expect_channels(node, 2, diag)) return false;
  const int64_t channels = node->inputs[2]->shape.dims[1];
  if (!infer_expect_vector(node, 0, "running statistic", channels, diag)) return false;
  if (!infer_expect_type(node, 1, "batch statistics", DTYPE_F32, diag)) return false;
  const Shape expected = {2, {2, channels}}, *stats = &node->inputs[1]->shape;
  if (!shape_equal(stats, &expected)) {
    return node_error(diag, node, "batch statistics expect shape %s, found %s", shape_text(&expected).text,
                      shape_text(stats).text);
  }
  if (node->attrs.dim != 0 && node->attrs.dim != 1) {
    return node_error(diag, node, "dim expects 0 for the mean or 1 for the variance, found %lld",
                      (long long)node->attrs.dim);
  }
  if (node->op_input_count > 3 && (!infer_expect_type(node, 3, "loss", DTYPE_F32, diag) ||
                                   !infer_expect_rank(node, 3, "loss", 0, diag)))
    return false;
  return infer_finish(node, DTYPE_F32, node->inputs[0]->shape, diag);
}

/* --- losses ---------------------------------------------------------------------------------------- */

static bool finish_loss(Node *node, Shape each, Diag *diag) {
  return infer_finish(node, DTYPE_F32, node->attrs.reduction == REDUCTION_NONE ? each : (Shape){0}, diag);
}

bool infer_cross_entropy(Node *node, Diag *diag) {
  if (!begin_float(node, diag) || !infer_expect_rank(node, 0, "input", 2, diag) ||
      !infer_expect_type(node, 1, "target", DTYPE_I64, diag)) {
    return false;
  }
  const Shape expected = {1, {node->inputs[0]->shape.dims[0]}}, *target = &node->inputs[1]->shape;
  if (!shape_equal(target, &expected)) {
    return node_error(diag, node, "target expects a class index per row, shape %s, found %s",
                      shape_text(&expected).text, shape_text(target).text);
  }
  return finish_loss(node, expected, diag);
}

static bool infer_loss_alike(Node *node, Diag *diag) {
  if (!begin_float(node, diag) || !infer_expect_type(node, 1, "target", DTYPE_F32, diag)) return false;
  const Shape *input = &node->inputs[0]->shape, *target = &node->inputs[1]->shape;
  if (!shape_equal(target, input)) {
    return node_error(diag, node, "target expects the input's shape %s, found %s", shape_text(input).text,
                      shape_text(target).text);
  }
  return finish_loss(node, *input, diag);
}

bool infer_mse(Node *node, Diag *diag) { return infer_loss_alike(node, diag); }
bool infer_bce_with_logits(Node *node, Diag *diag) { return infer_loss_alike(node, diag); }
