/* The interpreter's convolutions and matrix products. */
#include "base/checked.h"
#include "eval.h"

/* --- convolution ----------------------------------------------------------------------------------- */

/* Which element of an axis of `size` stands at `position`, which may lie outside; -1 for none. */
static int64_t source_index(AttrWord padding_mode, int64_t position, int64_t size) {
  if (position >= 0 && position < size) return position;
  if (padding_mode == PADDING_REPLICATE) return position < 0 ? 0 : size - 1;
  if (padding_mode == PADDING_REFLECT) return position < 0 ? -position : 2 * (size - 1) - position;
  return -1;
}

/* output[x] += factor · input[x·stride + shift] for the positions that have a source. */
static void add_row(AttrWord padding_mode, const double *input, int64_t size, double factor, int64_t stride,
                    int64_t shift, double *output, int64_t count) {
  if (padding_mode != PADDING_ZEROS) {
    for (int64_t x = 0; x < count; x++)
      output[x] += factor * input[source_index(padding_mode, x * stride + shift, size)];
    return;
  }
  const int64_t first = shift < 0 ? ceil_div(-shift, stride) : 0;
  const int64_t room = size - shift; /* x·stride < room */
  const int64_t end = room <= 0 ? 0 : ceil_div(room, stride);
  const int64_t last = end < count ? end : count;
  if (stride == 1) {
    for (int64_t x = first; x < last; x++) output[x] += factor * input[x + shift];
  } else {
    for (int64_t x = first; x < last; x++) output[x] += factor * input[x * stride + shift];
  }
}

static void fill(double *data, int64_t count, double value) {
  for (int64_t i = 0; i < count; i++) data[i] = value;
}

void eval_conv2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  const int64_t *in = inputs[0]->shape.dims, *filter = inputs[1]->shape.dims, *out = output->shape.dims;
  const int64_t per_group = out[1] / attrs->groups;
  for (int64_t n = 0; n < out[0]; n++) {
    for (int64_t k = 0; k < out[1]; k++) {
      double *plane = output->data + (n * out[1] + k) * out[2] * out[3];
      fill(plane, out[2] * out[3], node->op_input_count > 2 ? inputs[2]->data[k] : 0);
      for (int64_t c = 0; c < filter[1]; c++) {
        const int64_t channel = k / per_group * filter[1] + c;
        const double *source = inputs[0]->data + (n * in[1] + channel) * in[2] * in[3];
        const double *taps = inputs[1]->data + (k * filter[1] + c) * filter[2] * filter[3];
        for (int64_t y = 0; y < out[2]; y++) {
          for (int64_t r = 0; r < filter[2]; r++) {
            const int64_t position =
                y * attrs->stride.values[0] - attrs->padding.values[0] + r * attrs->dilation.values[0];
            const int64_t row = source_index(attrs->padding_mode, position, in[2]);
            if (row < 0) continue;
            for (int64_t s = 0; s < filter[3]; s++) {
              add_row(attrs->padding_mode, source + row * in[3], in[3], taps[r * filter[3] + s],
                      attrs->stride.values[1], s * attrs->dilation.values[1] - attrs->padding.values[1],
                      plane + y * out[3], out[3]);
            }
          }
        }
      }
    }
  }
}

void eval_conv_transpose2d(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Attrs *attrs = &node->attrs;
  const int64_t *in = inputs[0]->shape.dims, *filter = inputs[1]->shape.dims, *out = output->shape.dims;
  const int64_t in_group = in[1] / attrs->groups, out_group = filter[1];
  for (int64_t n = 0; n < out[0]; n++) {
    for (int64_t k = 0; k < out[1]; k++) {
      double *plane = output->data + (n * out[1] + k) * out[2] * out[3];
      fill(plane, out[2] * out[3], node->op_input_count > 2 ? inputs[2]->data[k] : 0);
      for (int64_t i = 0; i < in_group; i++) {
        const int64_t channel = k / out_group * in_group + i;
        const double *source = inputs[0]->data + (n * in[1] + channel) * in[2] * in[3];
        const double *taps = inputs[1]->data + (channel * out_group + k % out_group) * filter[2] * filter[3];
        for (int64_t y = 0; y < in[2]; y++) {
          for (int64_t r = 0; r < filter[2]; r++) {
            const int64_t row = y * attrs->stride.values[0] - attrs->padding.values[0] + r * attrs->dilation.values[0];
            if (row < 0 || row >= out[2]) continue;
            for (int64_t x = 0; x < in[3]; x++) {
              for (int64_t s = 0; s < filter[3]; s++) {
                const int64_t column =
                    x * attrs->stride.values[1] - attrs->padding.values[1] + s * attrs->dilation.values[1];
                if (column < 0 || column >= out[3]) continue;
                plane[row * out[3] + column] += source[y * in[3] + x] * taps[r * filter[3] + s];
              }
            }
          }
        }
      }
    }
  }
}

/* --- matrix products ------------------------------------------------------------------------------- */

void eval_linear(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t features = inputs[1]->shape.dims[1], outputs = inputs[1]->shape.dims[0];
  int64_t rows = 1;
  for (int32_t i = 0; i < output->shape.rank - 1; i++) rows *= output->shape.dims[i];
  for (int64_t row = 0; row < rows; row++) {
    const double *x = inputs[0]->data + row * features;
    for (int64_t k = 0; k < outputs; k++) {
      const double *weight = inputs[1]->data + k * features;
      double sum = node->op_input_count > 2 ? inputs[2]->data[k] : 0;
      for (int64_t i = 0; i < features; i++) sum += x[i] * weight[i];
      output->data[row * outputs + k] = sum;
    }
  }
}

/* Which matrix of an operand belongs to matrix number `index` of the output: leading dimensions broadcast. */
static int64_t matrix_number(const Shape *operand, const Shape *output, int64_t index) {
  int64_t number = 0, stride = 1;
  for (int32_t i = output->rank - 3, k = operand->rank - 3; k >= 0; i--, k--) {
    const int64_t at = index % output->dims[i];
    index /= output->dims[i];
    if (operand->dims[k] != 1) number += at * stride;
    stride *= operand->dims[k];
  }
  return number;
}

void eval_matmul(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Shape *a = &inputs[0]->shape, *b = &inputs[1]->shape, *out = &output->shape;
  const int64_t rows = out->dims[out->rank - 2], columns = out->dims[out->rank - 1], inner = a->dims[a->rank - 1];
  const int64_t step_inner = node->attrs.transpose ? 1 : columns, step_column = node->attrs.transpose ? inner : 1;
  int64_t matrices = 1;
  for (int32_t i = 0; i < out->rank - 2; i++) matrices *= out->dims[i];
  for (int64_t m = 0; m < matrices; m++) {
    const double *left = inputs[0]->data + matrix_number(a, out, m) * rows * inner;
    const double *right = inputs[1]->data + matrix_number(b, out, m) * inner * columns;
    for (int64_t row = 0; row < rows; row++) {
      double *result = output->data + (m * rows + row) * columns;
      fill(result, columns, 0);
      for (int64_t i = 0; i < inner; i++) {
        for (int64_t k = 0; k < columns; k++) {
          result[k] += left[row * inner + i] * right[i * step_inner + k * step_column];
        }
      }
    }
  }
}
