/* The interpreter's normalisation. */
#include <math.h>

#include "eval.h"
#include "work.h"

/* A value [N, C, …] as N × C runs of `inner` elements. */
static int64_t run_length(const Shape *shape) {
  int64_t count = 1;
  for (int32_t i = 2; i < shape->rank; i++) count *= shape->dims[i];
  return count;
}

/* Mean and biased variance of one channel over batch and space, in two passes. */
static void channel_statistics(const EvalTensor *x, int64_t channel, double *out_mean, double *out_variance) {
  const int64_t images = x->shape.dims[0], channels = x->shape.dims[1], inner = run_length(&x->shape);
  double sum = 0, squares = 0;
  for (int64_t n = 0; n < images; n++) {
    const double *run = x->data + (n * channels + channel) * inner;
    for (int64_t i = 0; i < inner; i++) sum += run[i];
  }
  const double count = (double)(images * inner), mean = sum / count;
  for (int64_t n = 0; n < images; n++) {
    const double *run = x->data + (n * channels + channel) * inner;
    for (int64_t i = 0; i < inner; i++) squares += (run[i] - mean) * (run[i] - mean);
  }
  *out_mean = mean;
  *out_variance = squares / count;
}

/* One channel: (x − mean) · scale + bias. */
static void normalize_channel(const EvalTensor *x, int64_t channel, double mean, double scale, double bias,
                              EvalTensor *output) {
  const int64_t channels = x->shape.dims[1], inner = run_length(&x->shape);
  for (int64_t n = 0; n < x->shape.dims[0]; n++) {
    const int64_t start = (n * channels + channel) * inner;
    for (int64_t i = start; i < start + inner; i++) output->data[i] = (x->data[i] - mean) * scale + bias;
  }
}

void eval_batch_norm(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  for (int64_t c = 0; c < output->shape.dims[1]; c++) {
    double mean = inputs[3]->data[c], variance = inputs[4]->data[c];
    if (node->attrs.training) channel_statistics(inputs[0], c, &mean, &variance);
    const double scale = inputs[1]->data[c] / sqrt(variance + node->attrs.eps);
    normalize_channel(inputs[0], c, mean, scale, inputs[2]->data[c], output);
  }
}

void eval_normalize(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  for (int64_t c = 0; c < output->shape.dims[1]; c++) {
    normalize_channel(inputs[0], c, node->attrs.mean.values[c], 1 / node->attrs.std.values[c], 0, output);
  }
}

void eval_plane_moments(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Shape *shape = &inputs[0]->shape;
  const int64_t parts = output->shape.dims[2], height = shape->dims[2], width = shape->dims[3];
  const int64_t rows = moment_rows(height, parts);
  (void)node;
  for (int64_t i = 0; i < shape->dims[0] * shape->dims[1] * parts; i++) {
    const int64_t first = i % parts * rows, last = first + rows < height ? first + rows : height;
    const double *begin = inputs[0]->data + (i / parts * height + first) * width, *end = begin + (last - first) * width;
    double sum = 0, squares = 0;
    for (const double *x = begin; x < end; x++) sum += *x;
    const double mean = sum / (double)(end - begin);
    for (const double *x = begin; x < end; x++) squares += (*x - mean) * (*x - mean);
    output->data[2 * i] = mean;
    output->data[2 * i + 1] = squares;
  }
}

/* [2, C]: means, then biased variances. */
void eval_batch_stats(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const int64_t channels = output->shape.dims[1];
  for (int64_t c = 0; c < channels; c++) {
    channel_statistics(inputs[0], c, &output->data[c], &output->data[channels + c]);
  }
}

/* Running statistics as PyTorch keeps them: the mean, or the unbiased variance. A single value per channel has no
 * unbiased variance; it counts as its biased one, 0. */
void eval_bn_update(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t channels = output->shape.dims[0];
  const int64_t count = inputs[2]->shape.dims[0] * run_length(&inputs[2]->shape);
  const bool kept = node->op_input_count > 3 && !isfinite(inputs[3]->data[0]);
  const double momentum = kept ? 0 : node->attrs.momentum;
  const double correction = node->attrs.dim == 1 && count > 1 ? (double)count / (double)(count - 1) : 1;
  for (int64_t c = 0; c < channels; c++) {
    const double measured = inputs[1]->data[node->attrs.dim * channels + c] * correction;
    output->data[c] = kept ? inputs[0]->data[c] : inputs[0]->data[c] * (1 - momentum) + momentum * measured;
  }
}
