/* Shape rules of pooling, resampling and padding. All work on images [N,C,H,W]. */
#include "base/checked.h"
#include "infer.h"

static const char *const axes[] = {"height", "width"};

static bool begin_image(const Node *node, Diag *diag) {
  return infer_begin(node, diag) && infer_expect_type(node, 0, "input", DTYPE_F32, diag) &&
         infer_expect_rank(node, 0, "input", 4, diag);
}

/* --- sliding windows ------------------------------------------------------------------------------- */

static bool infer_pool(Node *node, Diag *diag) {
  if (!begin_image(node, diag)) return false;
  const Attrs *attrs = &node->attrs;
  Shape output = node->inputs[0]->shape;
  for (int32_t i = 0; i < 2; i++) {
    const Window window = {.axis = axes[i],
                           .size = output.dims[2 + i],
                           .kernel = attrs->kernel.values[i],
                           .stride = attrs->stride.values[i],
                           .dilation = attrs->dilation.values[i],
                           .padding_before = attrs->padding.values[i],
                           .padding_after = attrs->padding.values[2 + i]};
    const int64_t half = ((window.kernel - 1) * window.dilation + 1) / 2;
    if (window.padding_before > half || window.padding_after > half) {
      const int64_t larger =
          window.padding_before > window.padding_after ? window.padding_before : window.padding_after;
      return node_error(diag, node, "padding along the %s must be at most half of the kernel %lld, found %lld",
                        window.axis, (long long)((window.kernel - 1) * window.dilation + 1), (long long)larger);
    }
    if (!infer_window(node, &window, attrs->ceil_mode, diag, &output.dims[2 + i])) return false;
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_max_pool2d(Node *node, Diag *diag) { return infer_pool(node, diag); }
bool infer_avg_pool2d(Node *node, Diag *diag) { return infer_pool(node, diag); }

/* --- adaptive windows ------------------------------------------------------------------------------ */

static bool infer_adaptive(Node *node, int64_t channel_factor, Diag *diag) {
  if (!begin_image(node, diag)) return false;
  Shape output = node->inputs[0]->shape;
  output.dims[1] *= channel_factor;
  for (int32_t i = 0; i < 2; i++) output.dims[2 + i] = node->attrs.output.values[i];
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_adaptive_avg_pool2d(Node *node, Diag *diag) { return infer_adaptive(node, 1, diag); }
bool infer_adaptive_max_pool2d(Node *node, Diag *diag) { return infer_adaptive(node, 1, diag); }
bool infer_adaptive_concat_pool2d(Node *node, Diag *diag) { return infer_adaptive(node, 2, diag); }

/* --- resampling ------------------------------------------------------------------------------------ */

/* `size` is given as a whole or not at all. */
static bool check_size(const Node *node, bool *out_given, Diag *diag) {
  const int64_t *size = node->attrs.size.values;
  *out_given = size[0] != 0;
  if ((size[0] == 0) == (size[1] == 0)) return true;
  return node_error(diag, node, "size expects height and width above 0, found %lldx%lld", (long long)size[0],
                    (long long)size[1]);
}

bool infer_upsample(Node *node, Diag *diag) {
  bool size_given = false;
  if (!begin_image(node, diag) || !check_size(node, &size_given, diag)) return false;
  const Attrs *attrs = &node->attrs;
  if (size_given && (attrs->scale.values[0] != 1 || attrs->scale.values[1] != 1)) {
    return node_error(diag, node, "size and scale exclude each other");
  }
  if (attrs->align_corners && attrs->mode == MODE_NEAREST) {
    return node_error(diag, node, "align_corners needs mode bilinear, found nearest");
  }
  Shape output = node->inputs[0]->shape;
  for (int32_t i = 0; i < 2; i++) {
    if (size_given) {
      output.dims[2 + i] = attrs->size.values[i];
    } else if (!checked_mul(output.dims[2 + i], attrs->scale.values[i], &output.dims[2 + i])) {
      return node_error(diag, node, "the output's %s overflows", axes[i]);
    }
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_grid_sample(Node *node, Diag *diag) {
  bool size_given = false;
  if (!begin_image(node, diag) || !check_size(node, &size_given, diag)) return false;
  if (!infer_expect_type(node, 1, "theta", DTYPE_F32, diag)) return false;
  Shape output = node->inputs[0]->shape;
  const Shape expected = {3, {output.dims[0], 2, 3}}, *theta = &node->inputs[1]->shape;
  if (!shape_equal(theta, &expected)) {
    return node_error(diag, node, "theta expects shape %s, found %s", shape_text(&expected).text,
                      shape_text(theta).text);
  }
  if (size_given) {
    for (int32_t i = 0; i < 2; i++) output.dims[2 + i] = node->attrs.size.values[i];
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}

bool infer_pad(Node *node, Diag *diag) {
  if (!begin_image(node, diag)) return false;
  const Attrs *attrs = &node->attrs;
  Shape output = node->inputs[0]->shape;
  if (attrs->padding_mode != PADDING_ZEROS && attrs->value != 0) {
    return node_error(diag, node, "value needs padding_mode zeros, found %s",
                      attr_word_name(ATTR_ID_PADDING_MODE, attrs->padding_mode));
  }
  for (int32_t i = 0; i < 2; i++) {
    const int64_t before = attrs->padding.values[i], after = attrs->padding.values[2 + i];
    if (attrs->padding_mode == PADDING_REFLECT &&
        !infer_reflection(node, axes[i], output.dims[2 + i], before, after, diag)) {
      return false;
    }
    output.dims[2 + i] += before + after;
  }
  return infer_finish(node, DTYPE_F32, output, diag);
}
