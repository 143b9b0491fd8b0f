/* The interpreter's optimiser steps. */
#include <math.h>
#include <string.h>

#include "eval.h"

static int64_t count_of(const Shape *shape) {
  int64_t count = 1;
  for (int32_t i = 0; i < shape->rank; i++) count *= shape->dims[i];
  return count;
}

/* One element with the numbers of its group. `p` steps over rows: p[0] the parameter, p[1], p[2] its moments. */
typedef void (*Step)(const Node *node, const double *hyper, double decay, double gradient, double *const p[]);

/* torch.optim.SGD with dampening 0 */
static void step_sgd(const Node *node, const double *hyper, double decay, double gradient, double *const p[]) {
  gradient += decay * *p[0];
  *p[1] = hyper[HYPER_MOMENTUM] * *p[1] + gradient;
  const double direction = node->attrs.nesterov ? gradient + hyper[HYPER_MOMENTUM] * *p[1] : *p[1];
  *p[0] -= hyper[HYPER_LEARNING_RATE] * direction;
}

/* Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101), algorithm 2, as torch.optim.AdamW
 * has it: the rate scales the decay. */
static void step_adam(const Node *node, const double *hyper, double decay, double gradient, double *const p[]) {
  (void)node;
  const double rate = hyper[HYPER_LEARNING_RATE], beta1 = hyper[HYPER_MOMENTUM], beta2 = hyper[HYPER_BETA2];
  *p[0] *= 1 - rate * decay;
  *p[1] = beta1 * *p[1] + (1 - beta1) * gradient;
  *p[2] = beta2 * *p[2] + (1 - beta2) * gradient * gradient;
  const double deviation = sqrt(*p[2]) / sqrt(hyper[HYPER_CORRECTION2]) + hyper[HYPER_EPS];
  *p[0] -= rate / hyper[HYPER_CORRECTION1] * *p[1] / deviation;
}

static void eval_step(const Node *node, const EvalTensor *const *inputs, EvalTensor *output, Step step) {
  const int64_t rows = output->shape.dims[0], length = output->shape.dims[1];
  const double *gradient = inputs[1]->data, *first = inputs[2]->data;
  memcpy(output->data, inputs[0]->data, (size_t)(rows * length) * sizeof(double));
  if (!isfinite(inputs[3]->data[0])) return;
  double scale = first[HYPER_GRADIENT_SCALE];
  if (node->op_input_count > 4) {
    const double norm = inputs[4]->data[0], limit = first[HYPER_CLIP_NORM];
    if (!isfinite(norm)) return;
    if (limit > 0) scale *= fmin(1, limit / (norm + 1e-6)); /* torch.nn.utils.clip_grad_norm_ */
  }
  double *accumulated = node->attrs.accumulate ? output->data + (rows - 1) * length : NULL;
  const bool apply = !accumulated || first[HYPER_APPLY] != 0;
  int64_t i = 0;
  for (int32_t g = 0; g < node->attrs.segments.count; g++) {
    const double *hyper = first + (int64_t)g * HYPER_COUNT;
    for (; i < node->attrs.segments.values[g]; i++) {
      double *const at[] = {output->data + i, output->data + length + i, output->data + 2 * length + i};
      const double decay = i < node->attrs.decayed.values[g] ? hyper[HYPER_WEIGHT_DECAY] : 0;
      if (apply) step(node, hyper, decay, gradient[i] * scale, at);
      if (accumulated) accumulated[i] = apply ? 0 : gradient[i];
    }
  }
}

void eval_sgd_step(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  eval_step(node, inputs, output, step_sgd);
}

void eval_adam_step(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  eval_step(node, inputs, output, step_adam);
}

void eval_sum_squares(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const int64_t count = inputs[0]->shape.dims[0];
  memset(output->data, 0, (size_t)output->shape.dims[0] * sizeof(double));
  for (int64_t i = 0; i < count; i++) output->data[i / TRAIN_CHUNK] += inputs[0]->data[i] * inputs[0]->data[i];
}

void eval_pack(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  double *to = output->data;
  for (int32_t i = 0; i < node->op_input_count; i++) {
    const int64_t count = count_of(&inputs[i]->shape);
    memcpy(to, inputs[i]->data, (size_t)count * sizeof(double));
    to += count;
  }
}

/* x in inference; in training x/(1−p) or 0. */
void eval_dropout(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const int64_t count = count_of(&output->shape);
  if (node->op_input_count == 1) {
    memcpy(output->data, inputs[0]->data, (size_t)count * sizeof(double));
    return;
  }
  const double *rng = inputs[1]->data, p = node->attrs.p;
  for (int64_t i = 0; i < count; i++) {
    const bool kept = dropout_keeps((int64_t)rng[0], (int64_t)rng[1], node->attrs.stream, i, p);
    output->data[i] = kept ? inputs[0]->data[i] / (1 - p) : 0;
  }
}
