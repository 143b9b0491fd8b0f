/* The interpreter's backward ops: gradients are scattered to where the forward op read. Outputs start as zeros. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "eval.h"

static int64_t count_from(const Shape *shape, int32_t first) {
  int64_t count = 1;
  for (int32_t d = first; d < shape->rank; d++) count *= shape->dims[d];
  return count;
}

static void next_index(const Shape *shape, int64_t index[SHAPE_MAX_RANK]) {
  for (int32_t d = shape->rank - 1; d >= 0 && ++index[d] == shape->dims[d]; d--) index[d] = 0;
}

static int64_t place(const int64_t index[SHAPE_MAX_RANK], const int64_t strides[SHAPE_MAX_RANK], int32_t rank) {
  int64_t at = 0;
  for (int32_t d = 0; d < rank; d++) at += index[d] * strides[d];
  return at;
}

/* --- constants, parts, repeats --------------------------------------------------------------------- */

void eval_full(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)inputs;
  const int64_t count = count_from(&output->shape, 0);
  for (int64_t i = 0; i < count; i++) output->data[i] = node->attrs.value;
}

void eval_slice(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int32_t dim = (int32_t)(node->attrs.dim < 0 ? node->attrs.dim + output->shape.rank : node->attrs.dim);
  const int64_t run = count_from(&output->shape, dim), whole = count_from(&inputs[0]->shape, dim);
  const int64_t inner = count_from(&output->shape, dim + 1);
  int64_t outer = 1;
  for (int32_t d = 0; d < dim; d++) outer *= output->shape.dims[d];
  for (int64_t o = 0; o < outer; o++) {
    const double *from = inputs[0]->data + o * whole + node->attrs.start * inner;
    memcpy(output->data + o * run, from, (size_t)run * sizeof(double));
  }
}

/* Every element of the input, times `factor`, where it broadcasts to. */
static void repeat(const EvalTensor *input, double factor, EvalTensor *output) {
  const Shape *shape = &output->shape;
  int64_t own[SHAPE_MAX_RANK], strides[SHAPE_MAX_RANK], index[SHAPE_MAX_RANK] = {0};
  eval_strides(&input->shape, own);
  const int32_t shift = shape->rank - input->shape.rank;
  for (int32_t d = 0; d < shape->rank; d++) {
    strides[d] = d < shift || input->shape.dims[d - shift] == 1 ? 0 : own[d - shift];
  }
  const int64_t count = count_from(shape, 0);
  for (int64_t i = 0; i < count; i++, next_index(shape, index)) {
    output->data[i] = input->data[place(index, strides, shape->rank)] * factor;
  }
}

void eval_expand(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  repeat(inputs[0], 1, output);
}

void eval_mean_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const double elements = (double)count_from(&inputs[0]->shape, 0);
  repeat(inputs[0], elements / (double)count_from(&output->shape, 0), output);
}

void eval_one_hot(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t depth = node->attrs.depth, rows = count_from(&inputs[0]->shape, 0);
  for (int64_t n = 0; n < rows; n++) {
    const double class = inputs[0]->data[n];
    const bool valid = class >= 0 && class < (double)depth;
    double *row = output->data + n * depth;
    for (int64_t k = 0; k < depth; k++) row[k] = !valid ? NAN : (double)k == class ? 1 : 0;
  }
}

static bool exceeds(double value, double maximum) { return value > maximum || (isnan(value) && !isnan(maximum)); }

/* Elements that share a result are a group. First pass: the place of the first element of a group, which all of them
 * find by leaving the reduced dimensions out, notes where the group's maximum is. Second pass: the notes give way to
 * the gradients. */
void eval_max_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Shape *shape = &output->shape;
  const IntList *dims = &node->attrs.dims;
  const double *x = inputs[0]->data, *gradient = inputs[1]->data;
  bool reduced[SHAPE_MAX_RANK] = {false};
  for (int32_t d = 1; d < shape->rank && dims->count == 0; d++) reduced[d] = true;
  for (int32_t i = 0; i < dims->count; i++) {
    reduced[dims->values[i] < 0 ? dims->values[i] + shape->rank : dims->values[i]] = true;
  }
  int64_t leader[SHAPE_MAX_RANK], result[SHAPE_MAX_RANK], step = 1, result_step = 1;
  for (int32_t d = shape->rank - 1; d >= 0; d--) {
    leader[d] = reduced[d] ? 0 : step;
    result[d] = reduced[d] ? 0 : result_step;
    step *= shape->dims[d];
    if (!reduced[d]) result_step *= shape->dims[d];
  }
  const int64_t count = count_from(shape, 0);
  int64_t index[SHAPE_MAX_RANK] = {0};
  for (int64_t i = 0; i < count; i++, next_index(shape, index)) {
    const int64_t first = place(index, leader, shape->rank);
    if (i == first || exceeds(x[i], x[(int64_t)output->data[first]])) output->data[first] = (double)i;
  }
  for (int64_t i = 0; i < count; i++, next_index(shape, index)) {
    if (place(index, leader, shape->rank) != i) continue;
    const int64_t best = (int64_t)output->data[i];
    output->data[i] = 0;
    output->data[best] = gradient[place(index, result, shape->rank)];
  }
}

/* --- products and normalisation -------------------------------------------------------------------- */

void eval_conv2d_grad_weight(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  const int64_t *in = inputs[0]->shape.dims, *out = inputs[1]->shape.dims, *filter = output->shape.dims;
  const int64_t per_group = filter[0] / attrs->groups;
  for (int64_t k = 0; k < filter[0]; k++) {
    for (int64_t c = 0; c < filter[1]; c++) {
      double *taps = output->data + (k * filter[1] + c) * filter[2] * filter[3];
      for (int64_t n = 0; n < in[0]; n++) {
        const double *x = inputs[0]->data + (n * in[1] + k / per_group * filter[1] + c) * in[2] * in[3];
        const double *gradient = inputs[1]->data + (n * out[1] + k) * out[2] * out[3];
        for (int64_t r = 0; r < filter[2]; r++) {
          for (int64_t s = 0; s < filter[3]; s++) {
            double sum = 0;
            for (int64_t y = 0; y < out[2]; y++) {
              const int64_t row =
                  y * attrs->stride.values[0] - attrs->padding.values[0] + r * attrs->dilation.values[0];
              if (row < 0 || row >= in[2]) continue;
              for (int64_t z = 0; z < out[3]; z++) {
                const int64_t column =
                    z * attrs->stride.values[1] - attrs->padding.values[1] + s * attrs->dilation.values[1];
                if (column >= 0 && column < in[3]) sum += gradient[y * out[3] + z] * x[row * in[3] + column];
              }
            }
            taps[r * filter[3] + s] += sum;
          }
        }
      }
    }
  }
}

void eval_linear_grad_weight(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const int64_t outputs = output->shape.dims[0], features = output->shape.dims[1];
  int64_t rows = 1;
  for (int32_t d = 0; d + 1 < inputs[0]->shape.rank; d++) rows *= inputs[0]->shape.dims[d];
  for (int64_t row = 0; row < rows; row++) {
    const double *x = inputs[0]->data + row * features, *gradient = inputs[1]->data + row * outputs;
    for (int64_t k = 0; k < outputs; k++) {
      for (int64_t i = 0; i < features; i++) output->data[k * features + i] += gradient[k] * x[i];
    }
  }
}

/* Σ dy and Σ dy·(x − mean)/deviation of one channel. */
typedef struct ChannelSums {
  double plain, weighted;
} ChannelSums;

static ChannelSums channel_sums(const EvalTensor *x, const EvalTensor *gradient, int64_t channel, double mean,
                                double inverse) {
  const int64_t channels = x->shape.dims[1], inner = count_from(&x->shape, 2);
  ChannelSums sums = {0};
  for (int64_t n = 0; n < x->shape.dims[0]; n++) {
    const int64_t start = (n * channels + channel) * inner;
    for (int64_t i = start; i < start + inner; i++) {
      sums.plain += gradient->data[i];
      sums.weighted += gradient->data[i] * (x->data[i] - mean) * inverse;
    }
  }
  return sums;
}

/* Mean and variance depend on x too (Ioffe and Szegedy, arXiv 1502.03167): with x̂ = (x − mean)/deviation,
 * dx = weight/deviation · (dy − mean(dy) − x̂·mean(dy·x̂)). */
void eval_batch_norm_grad_input(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const EvalTensor *x = inputs[0], *gradient = inputs[4];
  const int64_t channels = x->shape.dims[1], inner = count_from(&x->shape, 2);
  const double count = (double)(x->shape.dims[0] * inner);
  for (int64_t c = 0; c < channels; c++) {
    const double mean = inputs[2]->data[c], inverse = 1 / sqrt(inputs[3]->data[c] + node->attrs.eps);
    const ChannelSums sums = channel_sums(x, gradient, c, mean, inverse);
    for (int64_t n = 0; n < x->shape.dims[0]; n++) {
      const int64_t start = (n * channels + c) * inner;
      for (int64_t i = start; i < start + inner; i++) {
        const double normalized = (x->data[i] - mean) * inverse;
        output->data[i] = inputs[1]->data[c] * inverse *
                          (gradient->data[i] - sums.plain / count - normalized * sums.weighted / count);
      }
    }
  }
}

void eval_batch_norm_grad_weight(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  for (int64_t c = 0; c < output->shape.dims[0]; c++) {
    const double inverse = 1 / sqrt(inputs[2]->data[c] + node->attrs.eps);
    output->data[c] = channel_sums(inputs[0], inputs[3], c, inputs[1]->data[c], inverse).weighted;
  }
}

/* --- pooling --------------------------------------------------------------------------------------- */

/* Rows [top, bottom) and columns [left, right), every `down`-th and `across`-th of them. */
typedef struct Box {
  int64_t top, left, bottom, right, down, across;
} Box;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

/* The first element of an image axis that a window from `start` on touches. */
static int64_t first_inside(int64_t start, int64_t step) {
  return start < 0 ? start + ceil_div(-start, step) * step : start;
}

static Box window_box(const Attrs *attrs, const Shape *image, int64_t y, int64_t x) {
  const int64_t *stride = attrs->stride.values, *padding = attrs->padding.values, *kernel = attrs->kernel.values;
  const int64_t *dilation = attrs->dilation.values;
  const int64_t top = y * stride[0] - padding[0], left = x * stride[1] - padding[1];
  return (Box){.top = first_inside(top, dilation[0]),
               .left = first_inside(left, dilation[1]),
               .bottom = least(top + (kernel[0] - 1) * dilation[0] + 1, image->dims[2]),
               .right = least(left + (kernel[1] - 1) * dilation[1] + 1, image->dims[3]),
               .down = dilation[0],
               .across = dilation[1]};
}

static Box adaptive_box(const Shape *image, const Shape *pooled, int64_t y, int64_t x) {
  const int64_t *in = image->dims, *out = pooled->dims;
  return (Box){.top = y * in[2] / out[2],
               .left = x * in[3] / out[3],
               .bottom = ceil_div((y + 1) * in[2], out[2]),
               .right = ceil_div((x + 1) * in[3], out[3]),
               .down = 1,
               .across = 1};
}

/* NaN wins, and the first of equal ones. */
static void add_to_maximum(const double *x, int64_t width, Box box, double gradient, double *result) {
  int64_t best = -1;
  for (int64_t row = box.top; row < box.bottom; row += box.down) {
    for (int64_t column = box.left; column < box.right; column += box.across) {
      const int64_t at = row * width + column;
      if (best < 0 || exceeds(x[at], x[best])) best = at;
    }
  }
  if (best >= 0) result[best] += gradient;
}

static void add_to_all(int64_t width, Box box, double gradient, double *result) {
  for (int64_t row = box.top; row < box.bottom; row++) {
    for (int64_t column = box.left; column < box.right; column++) result[row * width + column] += gradient;
  }
}

/* A place of a gradient [N,C,H,W]. */
typedef struct Place {
  int64_t plane, y, x;
  double gradient;
} Place;

static bool next_place(const EvalTensor *pooled, int64_t number, Place *out_place) {
  const int64_t height = pooled->shape.dims[2], width = pooled->shape.dims[3];
  if (number >= pooled->shape.dims[0] * pooled->shape.dims[1] * height * width) return false;
  *out_place = (Place){.plane = number / (height * width),
                       .y = number / width % height,
                       .x = number % width,
                       .gradient = pooled->data[number]};
  return true;
}

void eval_max_pool2d_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Shape *image = &output->shape;
  const int64_t plane = image->dims[2] * image->dims[3];
  Place at;
  for (int64_t i = 0; next_place(inputs[1], i, &at); i++) {
    add_to_maximum(inputs[0]->data + at.plane * plane, image->dims[3], window_box(&node->attrs, image, at.y, at.x),
                   at.gradient, output->data + at.plane * plane);
  }
}

void eval_adaptive_max_pool2d_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const Shape *image = &output->shape;
  const int64_t plane = image->dims[2] * image->dims[3];
  Place at;
  for (int64_t i = 0; next_place(inputs[1], i, &at); i++) {
    add_to_maximum(inputs[0]->data + at.plane * plane, image->dims[3],
                   adaptive_box(image, &inputs[1]->shape, at.y, at.x), at.gradient, output->data + at.plane * plane);
  }
}

/* The divisor of eval_avg_pool2d. */
void eval_avg_pool2d_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  const int64_t *padding = attrs->padding.values, *kernel = attrs->kernel.values;
  const int64_t height = output->shape.dims[2], width = output->shape.dims[3];
  Place at;
  for (int64_t i = 0; next_place(inputs[0], i, &at); i++) {
    const int64_t top = at.y * attrs->stride.values[0] - padding[0], left = at.x * attrs->stride.values[1] - padding[1];
    const int64_t bottom = least(top + kernel[0], height + padding[2]),
                  right = least(left + kernel[1], width + padding[3]);
    const Box box = {greatest(top, 0), greatest(left, 0), least(bottom, height), least(right, width), 1, 1};
    const int64_t padded = (bottom - top) * (right - left);
    const int64_t inside = (box.bottom - box.top) * (box.right - box.left);
    const double share = at.gradient / (double)(attrs->count_include_pad ? padded : inside);
    add_to_all(width, box, share, output->data + at.plane * height * width);
  }
}

void eval_adaptive_avg_pool2d_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const Shape *image = &output->shape;
  Place at;
  for (int64_t i = 0; next_place(inputs[0], i, &at); i++) {
    const Box box = adaptive_box(image, &inputs[0]->shape, at.y, at.x);
    const double share = at.gradient / (double)((box.bottom - box.top) * (box.right - box.left));
    add_to_all(image->dims[3], box, share, output->data + at.plane * image->dims[2] * image->dims[3]);
  }
}

/* --- resampling and padding ------------------------------------------------------------------------ */

/* Two neighbours along an axis and the weight of the second, as in eval_upsample. */
typedef struct Blend {
  int64_t first, second;
  double weight;
} Blend;

static Blend find_blend(const Attrs *attrs, int64_t index, int64_t in, int64_t out) {
  if (attrs->mode == MODE_NEAREST) return (Blend){index * in / out, index * in / out, 0};
  double at = ((double)index + 0.5) * (double)in / (double)out - 0.5;
  if (attrs->align_corners) at = out > 1 ? (double)index * (double)(in - 1) / (double)(out - 1) : 0;
  if (at < 0) at = 0;
  const int64_t first = least((int64_t)at, in - 1);
  return (Blend){first, least(first + 1, in - 1), at - (double)first};
}

void eval_upsample_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t height = output->shape.dims[2], width = output->shape.dims[3];
  Place at;
  for (int64_t i = 0; next_place(inputs[0], i, &at); i++) {
    const Blend row = find_blend(&node->attrs, at.y, height, inputs[0]->shape.dims[2]);
    const Blend column = find_blend(&node->attrs, at.x, width, inputs[0]->shape.dims[3]);
    double *result = output->data + at.plane * height * width;
    result[row.first * width + column.first] += at.gradient * (1 - row.weight) * (1 - column.weight);
    result[row.first * width + column.second] += at.gradient * (1 - row.weight) * column.weight;
    result[row.second * width + column.first] += at.gradient * row.weight * (1 - column.weight);
    result[row.second * width + column.second] += at.gradient * row.weight * column.weight;
  }
}

/* Which place of the image shows at `position` of the padded one; -1: none. */
static int64_t padded_source(AttrWord mode, int64_t position, int64_t size) {
  if (position >= 0 && position < size) return position;
  if (mode == PADDING_REPLICATE) return position < 0 ? 0 : size - 1;
  if (mode == PADDING_REFLECT) return position < 0 ? -position : 2 * (size - 1) - position;
  return -1;
}

void eval_pad_grad(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  const int64_t height = output->shape.dims[2], width = output->shape.dims[3];
  Place at;
  for (int64_t i = 0; next_place(inputs[0], i, &at); i++) {
    const int64_t row = padded_source(attrs->padding_mode, at.y - attrs->padding.values[0], height);
    const int64_t column = padded_source(attrs->padding_mode, at.x - attrs->padding.values[1], width);
    if (row >= 0 && column >= 0) output->data[(at.plane * height + row) * width + column] += at.gradient;
  }
}
