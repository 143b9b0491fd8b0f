/* The interpreter's losses. */
#include <math.h>

#include "eval.h"

/* Puts the loss of one element, or adds it to the total. */
static void put(AttrWord reduction, EvalTensor *output, int64_t index, double value) {
  if (reduction == REDUCTION_NONE) {
    output->data[index] = value;
  } else {
    output->data[0] += value;
  }
}

/* Of no elements at all the mean is NaN, as in PyTorch. */
static void finish(AttrWord reduction, int64_t count, EvalTensor *output) {
  if (reduction == REDUCTION_MEAN) output->data[0] /= (double)count;
}

/* −log softmax(x)[target] per row. A target that is no class gives NaN. */
void eval_cross_entropy(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t rows = inputs[0]->shape.dims[0], classes = inputs[0]->shape.dims[1];
  for (int64_t n = 0; n < rows; n++) {
    const double *row = inputs[0]->data + n * classes, target = inputs[1]->data[n];
    double maximum = row[0], sum = 0;
    for (int64_t k = 1; k < classes; k++) maximum = row[k] > maximum ? row[k] : maximum;
    for (int64_t k = 0; k < classes; k++) sum += exp(row[k] - maximum);
    const bool valid = target >= 0 && target < (double)classes;
    put(node->attrs.reduction, output, n, valid ? maximum + log(sum) - row[(int64_t)target] : NAN);
  }
  finish(node->attrs.reduction, rows, output);
}

static double squared_error(double x, double target) { return (x - target) * (x - target); }

/* −t·log σ(x) − (1−t)·log(1−σ(x)), without overflow. */
static double binary_cross_entropy(double x, double target) {
  return (x > 0 ? x : 0) - x * target + log1p(exp(-fabs(x)));
}

static void loss_alike(const Node *node, const EvalTensor *const *inputs, double (*loss)(double, double),
                       EvalTensor *output) {
  int64_t count = 1;
  for (int32_t i = 0; i < inputs[0]->shape.rank; i++) count *= inputs[0]->shape.dims[i];
  for (int64_t i = 0; i < count; i++) {
    put(node->attrs.reduction, output, i, loss(inputs[0]->data[i], inputs[1]->data[i]));
  }
  finish(node->attrs.reduction, count, output);
}

void eval_mse(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  loss_alike(node, inputs, squared_error, output);
}

void eval_bce_with_logits(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  loss_alike(node, inputs, binary_cross_entropy, output);
}
