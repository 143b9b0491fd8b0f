/* Shape rules of ops that only rearrange elements. The batch dimension stays where it is, in front. */
#include "base/checked.h"
#include "infer.h"

static bool infer_same(Node *node, Diag *diag) {
  return infer_begin(node, diag) && infer_finish(node, node->inputs[0]->dtype, node->inputs[0]->shape, diag);
}

bool infer_identity(Node *node, Diag *diag) { return infer_same(node, diag); }
bool infer_convert(Node *node, Diag *diag) { return infer_same(node, diag); }

bool infer_dropout(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag)) return false;
  if (node->op_input_count > 1) {
    const Shape expected = {1, {2}}, *found = &node->inputs[1]->shape;
    if (!infer_expect_type(node, 1, "rng", DTYPE_I64, diag)) return false;
    if (!shape_equal(found, &expected))
      return node_error(diag, node, "rng expects shape [2], found %s", shape_text(found).text);
  }
  return infer_same(node, diag);
}

bool infer_flatten(Node *node, Diag *diag) {
  if (!infer_begin(node, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  const int32_t rank = input->rank == 0 ? 1 : input->rank; /* a scalar counts as one element, as in PyTorch */
  int32_t start = 0, end = 0;
  if (input->rank == 0 && node->attrs.start_dim == 1) {
    start = 0; /* the default, which a scalar does not have */
  } else if (!infer_dim(node, "start_dim", node->attrs.start_dim, rank, diag, &start)) {
    return false;
  }
  if (!infer_dim(node, "end_dim", node->attrs.end_dim, rank, diag, &end)) return false;
  if (start > end) return node_error(diag, node, "start_dim %d is behind end_dim %d", start, end);
  if (shape_batched(input) && start == 0 && end > 0) {
    return node_error(diag, node, "start_dim 0 would merge the batch dimension N of %s with others",
                      shape_text(input).text);
  }
  Shape output = {0};
  int64_t merged = 1;
  for (int32_t i = 0; i < input->rank; i++) {
    if (i < start || i > end || start == end) {
      output.dims[output.rank++] = input->dims[i];
      continue;
    }
    if (!checked_mul(merged, input->dims[i], &merged)) return node_error(diag, node, "the flattened size overflows");
    if (i == end) output.dims[output.rank++] = merged;
  }
  if (output.rank == 0) output.dims[output.rank++] = 1;
  return infer_finish(node, node->inputs[0]->dtype, output, diag);
}

/* One dimension may be -1: whatever remains. In front of a batched value it stands for N, which must stay. */
bool infer_reshape(Node *node, Diag *diag) {
  if (!infer_begin(node, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  const IntList *list = &node->attrs.shape;
  const bool batched = shape_batched(input);
  if (list->count < 0 || list->count > SHAPE_MAX_RANK) {
    return node_error(diag, node, "shape expects at most %d dimensions, found %d", SHAPE_MAX_RANK, list->count);
  }
  if (batched && (list->count == 0 || list->values[0] != DIM_BATCH)) {
    return node_error(diag, node, "shape must begin with the batch dimension N of the input %s",
                      shape_text(input).text);
  }
  Shape output = shape_of(list->count, list->values);
  int32_t open = -1;
  int64_t known = 1;
  for (int32_t i = batched ? 1 : 0; i < output.rank; i++) {
    if (output.dims[i] == -1) {
      if (open >= 0) return node_error(diag, node, "shape has more than one dimension of -1: %d and %d", open, i);
      open = i;
      continue;
    }
    if (output.dims[i] < 1) {
      return node_error(diag, node, "shape expects dimensions of at least 1 or one of -1, found %lld",
                        (long long)output.dims[i]);
    }
    if (!checked_mul(known, output.dims[i], &known)) return node_error(diag, node, "the product of shape overflows");
  }
  const int64_t elements = shape_elements_per_image(input);
  if (open >= 0) {
    if (elements % known != 0) {
      return node_error(diag, node,
                        "shape's known dimensions hold %lld elements, which does not divide the input's %lld",
                        (long long)known, (long long)elements);
    }
    output.dims[open] = elements / known;
  } else if (known != elements) {
    return node_error(diag, node, "shape holds %lld elements%s, but the input %s has %lld", (long long)known,
                      batched ? " per image" : "", shape_text(input).text, (long long)elements);
  }
  return infer_finish(node, node->inputs[0]->dtype, output, diag);
}

bool infer_permute(Node *node, Diag *diag) {
  if (!infer_begin(node, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  const IntList *dims = &node->attrs.dims;
  if (dims->count != input->rank) {
    return node_error(diag, node, "dims expects %d dimensions, found %d", input->rank, dims->count);
  }
  Shape output = {.rank = input->rank};
  bool used[SHAPE_MAX_RANK] = {false};
  for (int32_t i = 0; i < input->rank; i++) {
    int32_t from = 0;
    if (!infer_dim(node, "dims", dims->values[i], input->rank, diag, &from)) return false;
    if (used[from]) return node_error(diag, node, "dims names dimension %d twice", from);
    used[from] = true;
    output.dims[i] = input->dims[from];
  }
  return infer_finish(node, node->inputs[0]->dtype, output, diag);
}

bool infer_concat(Node *node, Diag *diag) {
  if (!infer_begin(node, diag)) return false;
  Shape output = node->inputs[0]->shape;
  const DataType dtype = node->inputs[0]->dtype;
  int32_t dim = 0;
  if (!infer_dim(node, "dim", node->attrs.dim, output.rank, diag, &dim)) return false;
  if (dim == 0 && shape_batched(&output)) {
    return node_error(diag, node, "dim 0 is the batch dimension N, along which values cannot be joined");
  }
  for (int32_t i = 1; i < node->op_input_count; i++) {
    const Shape *input = &node->inputs[i]->shape;
    if (node->inputs[i]->dtype != dtype) {
      return node_error(diag, node, "input %d expects %s values like input 0, found %s", i, data_type_name(dtype),
                        data_type_name(node->inputs[i]->dtype));
    }
    Shape expected = node->inputs[0]->shape;
    if (input->rank == expected.rank) expected.dims[dim] = input->dims[dim];
    if (!shape_equal(input, &expected) || input->dims[dim] == DIM_BATCH) {
      return node_error(diag, node, "input %d differs from input 0 in more than dimension %d: %s and %s", i, dim,
                        shape_text(input).text, shape_text(&node->inputs[0]->shape).text);
    }
    if (!checked_add(output.dims[dim], input->dims[dim], &output.dims[dim])) {
      return node_error(diag, node, "the joined size overflows");
    }
  }
  return infer_finish(node, dtype, output, diag);
}
