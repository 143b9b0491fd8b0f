/* The interpreter's reductions along one dimension or several. */
#include <math.h>

#include "eval.h"

/* --- along one dimension --------------------------------------------------------------------------- */

/* A value seen as outer × size × inner, `size` being the dimension in question. */
typedef struct Axis {
  int64_t outer, size, inner;
} Axis;

static Axis find_axis(const Shape *shape, int64_t dim) {
  const int32_t at = (int32_t)(dim < 0 ? dim + shape->rank : dim);
  Axis axis = {1, shape->dims[at], 1};
  for (int32_t i = 0; i < at; i++) axis.outer *= shape->dims[i];
  for (int32_t i = at + 1; i < shape->rank; i++) axis.inner *= shape->dims[i];
  return axis;
}

static bool exceeds(double value, double maximum) { return value > maximum || (isnan(value) && !isnan(maximum)); }

/* Place of the first maximum of a line of `axis`; NaN counts as the largest, as in PyTorch. */
static int64_t find_maximum(const double *line, Axis axis) {
  int64_t best = 0;
  for (int64_t i = 1; i < axis.size; i++) {
    if (exceeds(line[i * axis.inner], line[best * axis.inner])) best = i;
  }
  return best;
}

/* log Σ exp(x), with the maximum taken out so that nothing overflows. */
static double log_sum_exp(const double *line, Axis axis) {
  const double maximum = line[find_maximum(line, axis) * axis.inner];
  double sum = 0;
  for (int64_t i = 0; i < axis.size; i++) sum += exp(line[i * axis.inner] - maximum);
  return maximum + log(sum);
}

static void log_probabilities(const Node *node, const EvalTensor *input, EvalTensor *output) {
  const Axis axis = find_axis(&input->shape, node->attrs.dim);
  for (int64_t o = 0; o < axis.outer; o++) {
    for (int64_t i = 0; i < axis.inner; i++) {
      const int64_t start = o * axis.size * axis.inner + i;
      const double normalizer = log_sum_exp(input->data + start, axis);
      for (int64_t k = start; k < start + axis.size * axis.inner; k += axis.inner) {
        output->data[k] = input->data[k] - normalizer;
      }
    }
  }
}

void eval_log_softmax(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  log_probabilities(node, inputs[0], output);
}

void eval_softmax(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Axis axis = find_axis(&output->shape, node->attrs.dim);
  log_probabilities(node, inputs[0], output);
  for (int64_t i = 0; i < axis.outer * axis.size * axis.inner; i++) output->data[i] = exp(output->data[i]);
}

void eval_argmax(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const Axis axis = find_axis(&inputs[0]->shape, node->attrs.dim);
  for (int64_t o = 0; o < axis.outer; o++) {
    for (int64_t i = 0; i < axis.inner; i++) {
      output->data[o * axis.inner + i] = (double)find_maximum(inputs[0]->data + o * axis.size * axis.inner + i, axis);
    }
  }
}

/* --- along several --------------------------------------------------------------------------------- */

static double combine_sum(double total, double value) { return total + value; }
static double combine_max(double maximum, double value) { return exceeds(value, maximum) ? value : maximum; }

/* Strides of the output as seen from the input: 0 along the dimensions that disappear. */
static void kept_strides(const Node *node, const Shape *input, int64_t out_strides[SHAPE_MAX_RANK]) {
  const IntList *dims = &node->attrs.dims;
  bool reduced[SHAPE_MAX_RANK] = {false};
  for (int32_t i = 1; i < input->rank && dims->count == 0; i++) reduced[i] = true;
  for (int32_t i = 0; i < dims->count; i++) {
    reduced[dims->values[i] < 0 ? dims->values[i] + input->rank : dims->values[i]] = true;
  }
  int64_t stride = 1;
  for (int32_t i = input->rank - 1; i >= 0; i--) {
    out_strides[i] = reduced[i] ? 0 : stride;
    if (!reduced[i]) stride *= input->dims[i];
  }
}

static int64_t element_count(const Shape *shape) {
  int64_t count = 1;
  for (int32_t i = 0; i < shape->rank; i++) count *= shape->dims[i];
  return count;
}

static void reduce(const Node *node, const EvalTensor *input, double initial, double (*combine)(double, double),
                   EvalTensor *output) {
  const int64_t results = element_count(&output->shape), count = element_count(&input->shape);
  int64_t strides[SHAPE_MAX_RANK], index[SHAPE_MAX_RANK] = {0};
  kept_strides(node, &input->shape, strides);
  for (int64_t i = 0; i < results; i++) output->data[i] = initial;
  for (int64_t i = 0; i < count; i++) {
    int64_t at = 0;
    for (int32_t k = 0; k < input->shape.rank; k++) at += index[k] * strides[k];
    output->data[at] = combine(output->data[at], input->data[i]);
    for (int32_t k = input->shape.rank - 1; k >= 0 && ++index[k] == input->shape.dims[k]; k--) index[k] = 0;
  }
}

void eval_sum(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  reduce(node, inputs[0], 0, combine_sum, output);
}

void eval_mean(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  reduce(node, inputs[0], 0, combine_sum, output);
  const int64_t results = element_count(&output->shape);
  if (results == 0) return;
  const double each = (double)(element_count(&inputs[0]->shape) / results);
  for (int64_t i = 0; i < results; i++) output->data[i] /= each;
}

void eval_max(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  reduce(node, inputs[0], -INFINITY, combine_max, output);
}
