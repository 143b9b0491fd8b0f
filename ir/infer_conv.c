/* Shape rules of convolutions, matrix products and normalisation. */
#include "base/checked.h"
#include "infer.h"

/* --- convolution ----------------------------------------------------------------------------------- */

static bool is_image(const Node *node, Diag *diag) {
  return infer_expect_type(node, 0, "input", DTYPE_F32, diag) && infer_expect_rank(node, 0, "input", 4, diag);
}

/* Input, filters and groups, for both directions. In a transposed convolution the filters' first dimension goes with
 * the input. */
static bool check_filters(const Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !is_image(node, diag)) return false;
  if (!infer_expect_type(node, 1, "weight", DTYPE_F32, diag) || !infer_expect_rank(node, 1, "weight", 4, diag)) {
    return false;
  }
  const Shape *weight = &node->inputs[1]->shape;
  const int64_t groups = node->attrs.groups, channels = node->inputs[0]->shape.dims[1];
  if (shape_batched(weight)) {
    return node_error(diag, node, "weight %s must not depend on the batch", shape_text(weight).text);
  }
  if (channels % groups != 0) {
    return node_error(diag, node, "groups %lld does not divide the %lld input channels", (long long)groups,
                      (long long)channels);
  }
  for (int32_t i = 0; i < 2; i++) {
    const char *axis = i == 0 ? "height" : "width";
    const int64_t kernel = weight->dims[2 + i], stated = node->attrs.kernel.values[i];
    if (kernel > ATTRIBUTE_LIMIT) {
      return node_error(diag, node, "kernel %s expects a value from 1 to %d, found weight %s", axis, ATTRIBUTE_LIMIT,
                        shape_text(weight).text);
    }
    /* A kernel of 1×1 is the default: not stated, the weight decides. */
    if ((node->attrs.kernel.values[0] != 1 || node->attrs.kernel.values[1] != 1) && stated != kernel) {
      return node_error(diag, node, "kernel is %lldx%lld, but the weight is %s",
                        (long long)node->attrs.kernel.values[0], (long long)node->attrs.kernel.values[1],
                        shape_text(weight).text);
    }
  }
  return true;
}

bool infer_conv2d(Node *node, Diag *diag) {
  if (!check_filters(node, diag)) return false;
  const Attrs *attrs = &node->attrs;
  const Shape *input = &node->inputs[0]->shape, *weight = &node->inputs[1]->shape;
  int64_t expected = 0;
  if (!checked_mul(weight->dims[1], attrs->groups, &expected) || expected != input->dims[1]) {
    if (attrs->groups == 1) {
      return node_error(diag, node, "weight expects %lld input channels, found %lld", (long long)weight->dims[1],
                        (long long)input->dims[1]);
    }
    return node_error(diag, node, "weight expects %lld input channels in each of %lld groups, found %lld of %lld",
                      (long long)weight->dims[1], (long long)attrs->groups, (long long)(input->dims[1] / attrs->groups),
                      (long long)input->dims[1]);
  }
  if (weight->dims[0] % attrs->groups != 0) {
    return node_error(diag, node, "groups %lld does not divide the %lld output channels", (long long)attrs->groups,
                      (long long)weight->dims[0]);
  }
  if (node->op_input_count > 2 && !infer_expect_vector(node, 2, "bias", weight->dims[0], diag)) return false;
  Shape output = {4, {input->dims[0], weight->dims[0]}};
  for (int32_t i = 0; i < 2; i++) {
    const Window window = {.axis = i == 0 ? "height" : "width",
                           .size = input->dims[2 + i],
                           .kernel = weight->dims[2 + i],
                           .stride = attrs->stride.values[i],
                           .dilation = attrs->dilation.values[i],
                           .padding_before = attrs->padding.values[i],
                           .padding_after = attrs->padding.values[2 + i]};
    if (attrs->padding_mode == PADDING_REFLECT &&
        !infer_reflection(node, window.axis, window.size, window.padding_before, window.padding_after, diag)) {
      return false;
    }
    if (!infer_window(node, &window, false, diag, &output.dims[2 + i])) return false;
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_conv_transpose2d(Node *node, Diag *diag) {
  if (!check_filters(node, diag)) return false;
  const Attrs *attrs = &node->attrs;
  const Shape *input = &node->inputs[0]->shape, *weight = &node->inputs[1]->shape;
  if (weight->dims[0] != input->dims[1]) {
    return node_error(diag, node, "weight expects %lld input channels, found %lld", (long long)weight->dims[0],
                      (long long)input->dims[1]);
  }
  Shape output = {4, {input->dims[0]}};
  if (!checked_mul(weight->dims[1], attrs->groups, &output.dims[1])) {
    return node_error(diag, node, "weight %s with %lld groups gives too many output channels", shape_text(weight).text,
                      (long long)attrs->groups);
  }
  if (node->op_input_count > 2 && !infer_expect_vector(node, 2, "bias", output.dims[1], diag)) return false;
  for (int32_t i = 0; i < 2; i++) {
    const char *axis = i == 0 ? "height" : "width";
    const int64_t stride = attrs->stride.values[i], dilation = attrs->dilation.values[i];
    const int64_t extra = attrs->output_padding.values[i];
    if (extra >= stride && extra >= dilation) {
      return node_error(diag, node, "output_padding %s %lld must be less than the stride %lld or the dilation %lld",
                        axis, (long long)extra, (long long)stride, (long long)dilation);
    }
    int64_t size = 0, extent = 0;
    if (!checked_mul(input->dims[2 + i] - 1, stride, &size) ||
        !checked_mul(weight->dims[2 + i] - 1, dilation, &extent) || !checked_add(size, extent, &size) ||
        !checked_add(size, extra + 1, &size)) {
      return node_error(diag, node, "the output's %s overflows", axis);
    }
    const int64_t padding = attrs->padding.values[i] + attrs->padding.values[2 + i];
    if (size <= padding) {
      return node_error(diag, node, "the output's %s is %lld before %lld are cut off as padding: nothing is left", axis,
                        (long long)size, (long long)padding);
    }
    output.dims[2 + i] = size - padding;
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}

/* --- matrix products ------------------------------------------------------------------------------- */

bool infer_linear(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag) ||
      !infer_expect_type(node, 1, "weight", DTYPE_F32, diag) || !infer_expect_rank(node, 1, "weight", 2, diag)) {
    return false;
  }
  Shape output = node->inputs[0]->shape;
  const Shape *weight = &node->inputs[1]->shape;
  if (output.rank < 2) {
    return node_error(diag, node, "input expects at least 2 dimensions, found %d: %s", output.rank,
                      shape_text(&output).text);
  }
  if (shape_batched(weight)) {
    return node_error(diag, node, "weight %s must not depend on the batch", shape_text(weight).text);
  }
  if (output.dims[output.rank - 1] != weight->dims[1]) {
    return node_error(diag, node, "weight expects %lld input features, found %lld", (long long)weight->dims[1],
                      (long long)output.dims[output.rank - 1]);
  }
  if (node->op_input_count > 2 && !infer_expect_vector(node, 2, "bias", weight->dims[0], diag)) return false;
  output.dims[output.rank - 1] = weight->dims[0];
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_matmul(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag) ||
      !infer_expect_type(node, 1, "second input", DTYPE_F32, diag)) {
    return false;
  }
  const Shape *a = &node->inputs[0]->shape, *b = &node->inputs[1]->shape;
  if (a->rank < 2 || b->rank < 2) {
    return node_error(diag, node, "both inputs expect at least 2 dimensions, found %s and %s", shape_text(a).text,
                      shape_text(b).text);
  }
  const int64_t inner_a = a->dims[a->rank - 1];
  const int64_t inner_b = b->dims[b->rank - (node->attrs.transpose ? 1 : 2)];
  const int64_t columns = b->dims[b->rank - (node->attrs.transpose ? 2 : 1)];
  if (inner_b == DIM_BATCH) {
    return node_error(diag, node, "cannot sum over the batch dimension N of the second input %s", shape_text(b).text);
  }
  if (inner_a != inner_b) {
    return node_error(diag, node, "second input expects %lld columns of the first, found %lld: %s and %s",
                      (long long)inner_b, (long long)inner_a, shape_text(a).text, shape_text(b).text);
  }
  Shape outer_a = *a, outer_b = *b, output;
  outer_a.rank -= 2;
  outer_b.rank -= 2;
  if (!infer_broadcast(&outer_a, &outer_b, &output)) {
    return node_error(diag, node, "leading dimensions of %s and %s do not broadcast", shape_text(a).text,
                      shape_text(b).text);
  }
  output.dims[output.rank++] = a->dims[a->rank - 2];
  output.dims[output.rank++] = columns;
  return infer_finish(node, DTYPE_F32, output, diag);
}

/* --- normalisation --------------------------------------------------------------------------------- */

bool infer_batch_norm(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  if (input->rank < 2) {
    return node_error(diag, node, "input expects at least 2 dimensions, found %d: %s", input->rank,
                      shape_text(input).text);
  }
  static const char *const names[] = {"input", "weight", "bias", "running mean", "running variance"};
  for (int32_t i = 1; i < 5; i++) {
    if (!infer_expect_vector(node, i, names[i], input->dims[1], diag)) return false;
  }
  if (node->attrs.training && !shape_batched(input) && shape_elements_per_image(input) == input->dims[1]) {
    return node_error(diag, node, "training needs more than 1 value per channel, found input %s",
                      shape_text(input).text);
  }
  return infer_finish(node, DTYPE_F32, *input, diag);
}

bool infer_normalize(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !is_image(node, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  const FloatList *mean = &node->attrs.mean, *std = &node->attrs.std;
  if (mean->count != input->dims[1]) {
    return node_error(diag, node, "mean expects %lld values, one per channel, found %d", (long long)input->dims[1],
                      mean->count);
  }
  if (std->count != input->dims[1]) {
    return node_error(diag, node, "std expects %lld values, one per channel, found %d", (long long)input->dims[1],
                      std->count);
  }
  for (int32_t i = 0; i < mean->count; i++) {
    char found[DOUBLE_TEXT_SIZE];
    if (!isfinite(mean->values[i])) {
      return node_error(diag, node, "mean expects finite numbers, found %s", double_text(mean->values[i], found));
    }
    if (!(std->values[i] > 0) || !isfinite(std->values[i])) {
      return node_error(diag, node, "std expects finite numbers above 0, found %s", double_text(std->values[i], found));
    }
  }
  return infer_finish(node, DTYPE_F32, *input, diag);
}
