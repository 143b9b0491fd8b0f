/* Shape rules of the ops that differentiation makes. What a user can do wrong has been reported by the rules of the ops
 * that they belong to; these keep the IR's text honest. */
#include "base/checked.h"
#include "infer.h"

static bool expect_shape(const Node *node, int32_t index, const char *what, const Shape *expected, Diag *diag) {
  if (!infer_expect_type(node, index, what, DTYPE_F32, diag)) return false;
  const Shape *found = &node->inputs[index]->shape;
  if (shape_equal(found, expected)) return true;
  return node_error(diag, node, "%s expects shape %s, found %s", what, shape_text(expected).text,
                    shape_text(found).text);
}

static bool begin_float(const Node *node, Diag *diag) {
  return infer_begin(node, diag) && infer_expect_type(node, 0, "input", DTYPE_F32, diag);
}

/* --- constants, parts, repeats --------------------------------------------------------------------- */

static bool listed_shape(const Node *node, Diag *diag, Shape *out_shape) {
  const IntList *list = &node->attrs.shape;
  if (list->count < 0 || list->count > SHAPE_MAX_RANK) {
    return node_error(diag, node, "shape expects at most %d dimensions, found %d", SHAPE_MAX_RANK, list->count);
  }
  *out_shape = shape_of(list->count, list->values);
  return true;
}

bool infer_full(Node *node, Diag *diag) {
  Shape shape;
  return infer_begin(node, diag) && listed_shape(node, diag, &shape) && infer_finish(node, DTYPE_F32, shape, diag);
}

static bool infer_repeated(Node *node, Diag *diag) {
  Shape shape, joined;
  if (!begin_float(node, diag) || !listed_shape(node, diag, &shape)) return false;
  const Shape *input = &node->inputs[0]->shape;
  if (!infer_broadcast(&shape, input, &joined) || !shape_equal(&joined, &shape)) {
    return node_error(diag, node, "input %s does not broadcast to %s", shape_text(input).text, shape_text(&shape).text);
  }
  return infer_finish(node, DTYPE_F32, shape, diag);
}

bool infer_expand(Node *node, Diag *diag) { return infer_repeated(node, diag); }
bool infer_mean_grad(Node *node, Diag *diag) { return infer_repeated(node, diag); }

bool infer_slice(Node *node, Diag *diag) {
  int32_t dim = 0;
  if (!begin_float(node, diag)) return false;
  Shape shape = node->inputs[0]->shape;
  if (!infer_dim(node, "dim", node->attrs.dim, shape.rank, diag, &dim)) return false;
  if (shape.dims[dim] == DIM_BATCH) {
    return node_error(diag, node, "dim 0 is the batch dimension N, which cannot be cut");
  }
  int64_t end = 0;
  if (!checked_add(node->attrs.start, node->attrs.length, &end) || end > shape.dims[dim]) {
    return node_error(diag, node, "start %lld and length %lld reach beyond dimension %d of %s",
                      (long long)node->attrs.start, (long long)node->attrs.length, dim, shape_text(&shape).text);
  }
  shape.dims[dim] = node->attrs.length;
  return infer_finish(node, DTYPE_F32, shape, diag);
}

bool infer_one_hot(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "classes", DTYPE_I64, diag)) return false;
  Shape shape = node->inputs[0]->shape;
  if (shape.rank > 1) {
    return node_error(diag, node, "classes expect at most 1 dimension, found %d: %s", shape.rank,
                      shape_text(&shape).text);
  }
  shape.dims[shape.rank++] = node->attrs.depth;
  return infer_finish(node, DTYPE_F32, shape, diag);
}

/* As the reduction itself: see infer_reduce.c. */
bool infer_max_grad(Node *node, Diag *diag) {
  if (!begin_float(node, diag)) return false;
  const Shape *input = &node->inputs[0]->shape;
  const IntList *dims = &node->attrs.dims;
  bool reduced[SHAPE_MAX_RANK] = {false};
  for (int32_t d = 1; d < input->rank && dims->count == 0; d++) reduced[d] = true;
  for (int32_t i = 0; i < dims->count; i++) {
    int32_t dim = 0;
    if (!infer_dim(node, "dims", dims->values[i], input->rank, diag, &dim)) return false;
    reduced[dim] = true;
  }
  Shape result = {0};
  for (int32_t d = 0; d < input->rank; d++) {
    if (!reduced[d] || node->attrs.keep_dims) result.dims[result.rank++] = reduced[d] ? 1 : input->dims[d];
  }
  return expect_shape(node, 1, "gradient", &result, diag) && infer_finish(node, DTYPE_F32, *input, diag);
}

/* --- products and normalisation -------------------------------------------------------------------- */

static bool begin_image(const Node *node, Diag *diag) {
  return begin_float(node, diag) && infer_expect_rank(node, 0, "input", 4, diag);
}

/* How many windows an image axis of `size` has. */
static bool count_windows(const Node *node, int32_t axis, int64_t size, Diag *diag, int64_t *out_count) {
  const Attrs *attrs = &node->attrs;
  const Window window = {.axis = axis == 0 ? "height" : "width",
                         .size = size,
                         .kernel = attrs->kernel.values[axis],
                         .stride = attrs->stride.values[axis],
                         .dilation = attrs->dilation.values[axis],
                         .padding_before = attrs->padding.values[axis],
                         .padding_after = attrs->padding.values[2 + axis]};
  return infer_window(node, &window, attrs->ceil_mode, diag, out_count);
}

/* x [N,C,H,W] and dy [N,K,…] → [K, C/groups, kernel]. dy may have fewer places than there are windows: what a
 * transposed convolution has with an output padding. */
bool infer_conv2d_grad_weight(Node *node, Diag *diag) {
  if (!begin_image(node, diag) || !infer_expect_type(node, 1, "gradient", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 1, "gradient", 4, diag)) {
    return false;
  }
  const Shape *x = &node->inputs[0]->shape, *gradient = &node->inputs[1]->shape;
  const int64_t groups = node->attrs.groups;
  if (gradient->dims[0] != x->dims[0]) {
    return node_error(diag, node, "input %s and gradient %s differ in the batch", shape_text(x).text,
                      shape_text(gradient).text);
  }
  if (x->dims[1] % groups != 0 || gradient->dims[1] % groups != 0) {
    return node_error(diag, node, "groups %lld does not divide the channels of %s and %s", (long long)groups,
                      shape_text(x).text, shape_text(gradient).text);
  }
  Shape output = {4, {gradient->dims[1], x->dims[1] / groups}};
  for (int32_t i = 0; i < 2; i++) {
    int64_t windows = 0;
    if (!count_windows(node, i, x->dims[2 + i], diag, &windows)) return false;
    if (gradient->dims[2 + i] > windows) {
      return node_error(diag, node, "gradient %s has more places than the %lld windows along the %s",
                        shape_text(gradient).text, (long long)windows, i == 0 ? "height" : "width");
    }
    output.dims[2 + i] = node->attrs.kernel.values[i];
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_linear_grad_weight(Node *node, Diag *diag) {
  if (!begin_float(node, diag) || !infer_expect_type(node, 1, "gradient", DTYPE_F32, diag)) return false;
  const Shape *x = &node->inputs[0]->shape, *gradient = &node->inputs[1]->shape;
  bool valid = x->rank >= 2 && x->rank == gradient->rank;
  for (int32_t d = 0; valid && d + 1 < x->rank; d++) valid = x->dims[d] == gradient->dims[d];
  if (!valid) {
    return node_error(diag, node, "input %s and gradient %s must differ in nothing but the last dimension",
                      shape_text(x).text, shape_text(gradient).text);
  }
  return infer_finish(node, DTYPE_F32, (Shape){2, {gradient->dims[x->rank - 1], x->dims[x->rank - 1]}}, diag);
}

static bool check_norm(const Node *node, int32_t vectors, Diag *diag) {
  static const char *const names[] = {"weight", "mean", "variance"};
  if (!begin_float(node, diag)) return false;
  const Shape *x = &node->inputs[0]->shape;
  if (x->rank < 2) {
    return node_error(diag, node, "input expects at least 2 dimensions, found %d: %s", x->rank, shape_text(x).text);
  }
  for (int32_t i = 0; i < vectors; i++) {
    if (!infer_expect_vector(node, 1 + i, names[3 - vectors + i], x->dims[1], diag)) return false;
  }
  return expect_shape(node, 1 + vectors, "gradient", x, diag);
}

bool infer_batch_norm_grad_input(Node *node, Diag *diag) {
  if (!check_norm(node, 3, diag)) return false;
  const int64_t channels = node->inputs[0]->shape.dims[1];
  if (node->op_input_count == 6)
    return node_error(diag, node, "the gradients of bias and weight are given both or not at all");
  if (node->op_input_count == 7 && (!infer_expect_vector(node, 5, "gradient of the bias", channels, diag) ||
                                    !infer_expect_vector(node, 6, "gradient of the weight", channels, diag)))
    return false;
  return infer_finish(node, DTYPE_F32, node->inputs[0]->shape, diag);
}

bool infer_batch_norm_grad_weight(Node *node, Diag *diag) {
  return check_norm(node, 2, diag) && infer_finish(node, DTYPE_F32, node->inputs[2]->shape, diag);
}

/* --- pooling, resampling, padding ------------------------------------------------------------------ */

/* The image that `size` describes, with the input's batch and channels. */
static bool sized_image(const Node *node, Diag *diag, Shape *out_shape) {
  if (!begin_image(node, diag)) return false;
  *out_shape = node->inputs[0]->shape;
  for (int32_t i = 0; i < 2; i++) {
    out_shape->dims[2 + i] = node->attrs.size.values[i];
    if (node->attrs.size.values[i] < 1) {
      return node_error(diag, node, "size expects the input's height and width, found %lldx%lld",
                        (long long)node->attrs.size.values[0], (long long)node->attrs.size.values[1]);
    }
  }
  return true;
}

static bool pooled_shape(const Node *node, const Shape *image, Diag *diag, Shape *out_shape) {
  *out_shape = *image;
  return count_windows(node, 0, image->dims[2], diag, &out_shape->dims[2]) &&
         count_windows(node, 1, image->dims[3], diag, &out_shape->dims[3]);
}

bool infer_max_pool2d_grad(Node *node, Diag *diag) {
  Shape pooled;
  return begin_image(node, diag) && pooled_shape(node, &node->inputs[0]->shape, diag, &pooled) &&
         expect_shape(node, 1, "gradient", &pooled, diag) &&
         infer_finish(node, DTYPE_F32, node->inputs[0]->shape, diag);
}

bool infer_avg_pool2d_grad(Node *node, Diag *diag) {
  Shape image, pooled;
  return sized_image(node, diag, &image) && pooled_shape(node, &image, diag, &pooled) &&
         expect_shape(node, 0, "gradient", &pooled, diag) && infer_finish(node, DTYPE_F32, image, diag);
}

bool infer_adaptive_avg_pool2d_grad(Node *node, Diag *diag) {
  Shape image;
  return sized_image(node, diag, &image) && infer_finish(node, DTYPE_F32, image, diag);
}

bool infer_adaptive_max_pool2d_grad(Node *node, Diag *diag) {
  if (!begin_image(node, diag) || !infer_expect_rank(node, 1, "gradient", 4, diag)) return false;
  Shape pooled = node->inputs[0]->shape;
  for (int32_t d = 2; d < 4; d++) pooled.dims[d] = node->inputs[1]->shape.dims[d];
  return expect_shape(node, 1, "gradient", &pooled, diag) &&
         infer_finish(node, DTYPE_F32, node->inputs[0]->shape, diag);
}

bool infer_upsample_grad(Node *node, Diag *diag) {
  Shape image;
  return sized_image(node, diag, &image) && infer_finish(node, DTYPE_F32, image, diag);
}

static bool expect_theta(const Node *node, const Shape *image, Diag *diag) {
  return expect_shape(node, 1, "theta", &(Shape){3, {image->dims[0], 2, 3}}, diag);
}

bool infer_grid_sample_grad_input(Node *node, Diag *diag) {
  Shape image;
  return sized_image(node, diag, &image) && expect_theta(node, &image, diag) &&
         infer_finish(node, DTYPE_F32, image, diag);
}

bool infer_grid_sample_grad_theta(Node *node, Diag *diag) {
  if (!begin_image(node, diag)) return false;
  const Shape *image = &node->inputs[0]->shape, *gradient = &node->inputs[2]->shape;
  if (!expect_theta(node, image, diag) || !infer_expect_type(node, 2, "gradient", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 2, "gradient", 4, diag)) {
    return false;
  }
  const Shape expected = {4, {image->dims[0], image->dims[1], gradient->dims[2], gradient->dims[3]}};
  return expect_shape(node, 2, "gradient", &expected, diag) &&
         infer_finish(node, DTYPE_F32, node->inputs[1]->shape, diag);
}

bool infer_pad_grad(Node *node, Diag *diag) {
  if (!begin_image(node, diag)) return false;
  Shape image = node->inputs[0]->shape;
  for (int32_t i = 0; i < 2; i++) {
    const int64_t before = node->attrs.padding.values[i], after = node->attrs.padding.values[2 + i];
    const char *axis = i == 0 ? "height" : "width";
    if (image.dims[2 + i] <= before + after) {
      return node_error(diag, node, "the %s of %s has no room for %lld elements of padding", axis,
                        shape_text(&image).text, (long long)(before + after));
    }
    image.dims[2 + i] -= before + after;
    if (node->attrs.padding_mode == PADDING_REFLECT &&
        !infer_reflection(node, axis, image.dims[2 + i], before, after, diag)) {
      return false;
    }
  }
  return infer_finish(node, DTYPE_F32, image, diag);
}
