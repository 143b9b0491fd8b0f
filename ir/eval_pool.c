/* The interpreter's pooling, resampling and padding. Each works on one plane [H,W] at a time: images × channels. */
#include <math.h>

#include "base/checked.h"
#include "eval.h"

typedef struct Plane {
  const double *data;
  int64_t height, width;
} Plane;

static Plane input_plane(const EvalTensor *tensor, int64_t number) {
  const int64_t height = tensor->shape.dims[2], width = tensor->shape.dims[3];
  return (Plane){tensor->data + number * height * width, height, width};
}

static double *output_plane(EvalTensor *tensor, int64_t number) {
  return tensor->data + number * tensor->shape.dims[2] * tensor->shape.dims[3];
}

static int64_t plane_count(const EvalTensor *tensor) { return tensor->shape.dims[0] * tensor->shape.dims[1]; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

/* --- windows --------------------------------------------------------------------------------------- */

/* Rows [top, bottom) and columns [left, right). */
typedef struct Box {
  int64_t top, left, bottom, right;
} Box;

static double box_sum(Plane plane, Box box) {
  double sum = 0;
  for (int64_t y = box.top; y < box.bottom; y++) {
    for (int64_t x = box.left; x < box.right; x++) sum += plane.data[y * plane.width + x];
  }
  return sum;
}

/* NaN wins, as in PyTorch. */
static double larger(double maximum, double value) { return value > maximum || isnan(value) ? value : maximum; }

static double box_max(Plane plane, Box box) {
  double maximum = -INFINITY;
  for (int64_t y = box.top; y < box.bottom; y++) {
    for (int64_t x = box.left; x < box.right; x++) maximum = larger(maximum, plane.data[y * plane.width + x]);
  }
  return maximum;
}

void eval_max_pool2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  for (int64_t p = 0; p < plane_count(output); p++) {
    const Plane plane = input_plane(inputs[0], p);
    double *result = output_plane(output, p);
    for (int64_t y = 0; y < output->shape.dims[2]; y++) {
      for (int64_t x = 0; x < output->shape.dims[3]; x++) {
        double maximum = -INFINITY;
        for (int64_t r = 0; r < attrs->kernel.values[0]; r++) {
          for (int64_t s = 0; s < attrs->kernel.values[1]; s++) {
            const int64_t row = y * attrs->stride.values[0] - attrs->padding.values[0] + r * attrs->dilation.values[0];
            const int64_t column =
                x * attrs->stride.values[1] - attrs->padding.values[1] + s * attrs->dilation.values[1];
            if (row < 0 || row >= plane.height || column < 0 || column >= plane.width) continue;
            maximum = larger(maximum, plane.data[row * plane.width + column]);
          }
        }
        *result++ = maximum;
      }
    }
  }
}

/* PyTorch's divisor: the window's part inside the padded input, or inside the input itself. */
void eval_avg_pool2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  for (int64_t p = 0; p < plane_count(output); p++) {
    const Plane plane = input_plane(inputs[0], p);
    double *result = output_plane(output, p);
    for (int64_t y = 0; y < output->shape.dims[2]; y++) {
      for (int64_t x = 0; x < output->shape.dims[3]; x++) {
        Box box = {.top = y * attrs->stride.values[0] - attrs->padding.values[0],
                   .left = x * attrs->stride.values[1] - attrs->padding.values[1]};
        box.bottom = least(box.top + attrs->kernel.values[0], plane.height + attrs->padding.values[2]);
        box.right = least(box.left + attrs->kernel.values[1], plane.width + attrs->padding.values[3]);
        const int64_t padded = (box.bottom - box.top) * (box.right - box.left);
        box = (Box){greatest(box.top, 0), greatest(box.left, 0), least(box.bottom, plane.height),
                    least(box.right, plane.width)};
        const int64_t inside = greatest(box.bottom - box.top, 0) * greatest(box.right - box.left, 0);
        *result++ = inside == 0 ? 0 : box_sum(plane, box) / (double)(attrs->count_include_pad ? padded : inside);
      }
    }
  }
}

/* --- adaptive windows ------------------------------------------------------------------------------ */

/* Window (y, x) of an adaptive pool: from ⌊y·H/O⌋ to ⌈(y+1)·H/O⌉. */
static Box adaptive_box(Plane plane, const Shape *output, int64_t y, int64_t x) {
  const int64_t height = output->dims[2], width = output->dims[3];
  return (Box){.top = y * plane.height / height,
               .left = x * plane.width / width,
               .bottom = ceil_div((y + 1) * plane.height, height),
               .right = ceil_div((x + 1) * plane.width, width)};
}

static double adaptive_mean(Plane plane, Box box) {
  return box_sum(plane, box) / (double)((box.bottom - box.top) * (box.right - box.left));
}

/* Pools every input channel c of every image into output channel c + shift. */
static void adaptive_pool(const EvalTensor *input, int64_t shift, double (*pool)(Plane, Box), EvalTensor *output) {
  const int64_t images = input->shape.dims[0], channels = input->shape.dims[1];
  for (int64_t n = 0; n < images; n++) {
    for (int64_t c = 0; c < channels; c++) {
      const Plane plane = input_plane(input, n * channels + c);
      double *result = output_plane(output, n * output->shape.dims[1] + c + shift);
      for (int64_t y = 0; y < output->shape.dims[2]; y++) {
        for (int64_t x = 0; x < output->shape.dims[3]; x++) {
          *result++ = pool(plane, adaptive_box(plane, &output->shape, y, x));
        }
      }
    }
  }
}

void eval_adaptive_avg_pool2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  adaptive_pool(inputs[0], 0, adaptive_mean, output);
}

void eval_adaptive_max_pool2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  adaptive_pool(inputs[0], 0, box_max, output);
}

/* The maxima's channels first, then the means'. */
void eval_adaptive_concat_pool2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  adaptive_pool(inputs[0], 0, box_max, output);
  adaptive_pool(inputs[0], inputs[0]->shape.dims[1], adaptive_mean, output);
}

/* --- resampling ------------------------------------------------------------------------------------ */

/* Where output place `index` lies in the input, in elements; corners aligned or edges. */
static double source_place(int64_t index, int64_t in, int64_t out, bool align_corners) {
  if (align_corners) return out > 1 ? (double)index * (double)(in - 1) / (double)(out - 1) : 0;
  const double place = ((double)index + 0.5) * (double)in / (double)out - 0.5;
  return place < 0 ? 0 : place;
}

static double interpolate(Plane plane, double y, double x) {
  const int64_t top = least((int64_t)y, plane.height - 1), left = least((int64_t)x, plane.width - 1);
  const int64_t bottom = least(top + 1, plane.height - 1), right = least(left + 1, plane.width - 1);
  const double down = y - (double)top, across = x - (double)left;
  const double *upper = plane.data + top * plane.width, *lower = plane.data + bottom * plane.width;
  return (1 - down) * ((1 - across) * upper[left] + across * upper[right]) +
         down * ((1 - across) * lower[left] + across * lower[right]);
}

void eval_upsample(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t height = output->shape.dims[2], width = output->shape.dims[3];
  const bool align = node->attrs.align_corners;
  for (int64_t p = 0; p < plane_count(output); p++) {
    const Plane plane = input_plane(inputs[0], p);
    double *result = output_plane(output, p);
    for (int64_t y = 0; y < height; y++) {
      for (int64_t x = 0; x < width; x++) {
        if (node->attrs.mode == MODE_NEAREST) {
          *result++ = plane.data[y * plane.height / height * plane.width + x * plane.width / width];
        } else {
          *result++ = interpolate(plane, source_place(y, plane.height, height, align),
                                  source_place(x, plane.width, width, align));
        }
      }
    }
  }
}

/* --- padding --------------------------------------------------------------------------------------- */

/* Which input place shows at `position`; -1 for the constant. */
static int64_t padded_source(AttrWord mode, int64_t position, int64_t size) {
  if (position >= 0 && position < size) return position;
  if (mode == PADDING_REPLICATE) return position < 0 ? 0 : size - 1;
  if (mode == PADDING_REFLECT) return position < 0 ? -position : 2 * (size - 1) - position;
  return -1;
}

void eval_pad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  for (int64_t p = 0; p < plane_count(output); p++) {
    const Plane plane = input_plane(inputs[0], p);
    double *result = output_plane(output, p);
    for (int64_t y = 0; y < output->shape.dims[2]; y++) {
      const int64_t row = padded_source(attrs->padding_mode, y - attrs->padding.values[0], plane.height);
      for (int64_t x = 0; x < output->shape.dims[3]; x++) {
        const int64_t column = padded_source(attrs->padding_mode, x - attrs->padding.values[1], plane.width);
        *result++ = row < 0 || column < 0 ? attrs->value : plane.data[row * plane.width + column];
      }
    }
  }
}
