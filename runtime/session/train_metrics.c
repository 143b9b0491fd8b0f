#include <math.h>

#include "trainer.h"

/* log Σ exp(s) − s[target], shifted by the largest score so that nothing overflows. */
static double cross_entropy(const float *scores, int64_t classes, int64_t target) {
  double largest = (double)scores[0], sum = 0;
  for (int64_t k = 1; k < classes; k++) largest = fmax(largest, (double)scores[k]);
  for (int64_t k = 0; k < classes; k++) sum += exp((double)scores[k] - largest);
  return log(sum) + largest - (double)scores[target];
}

static double element_loss(OpCode loss, double score, double target) {
  if (loss == OP_MSE) return (score - target) * (score - target);
  /* max(s, 0) − s·t + log(1 + exp(−|s|)) */
  return fmax(score, 0) - score * target + log1p(exp(-fabs(score)));
}

static double target_of(int64_t target, int64_t classes, int64_t k) {
  return classes == 1 ? (double)target : target == k ? 1 : 0;
}

/* The largest score's class; the first of equal ones. One score says "class 1" past the middle of its two targets. */
static int64_t predicted_class(OpCode loss, const float *scores, int64_t classes) {
  if (classes == 1) return scores[0] > (loss == OP_MSE ? 0.5f : 0.0f);
  int64_t best = 0;
  for (int64_t k = 1; k < classes; k++)
    if (scores[k] > scores[best]) best = k;
  return best;
}

void metrics_add(Metrics *metrics, OpCode loss, const float *scores, const int64_t *targets, int64_t count,
                 int64_t classes) {
  for (int64_t i = 0; i < count; i++) {
    const float *row = scores + i * classes;
    double sum = 0;
    if (loss == OP_CROSS_ENTROPY) {
      sum = cross_entropy(row, classes, targets[i]);
    } else {
      for (int64_t k = 0; k < classes; k++)
        sum += element_loss(loss, (double)row[k], target_of(targets[i], classes, k));
      sum /= (double)classes;
    }
    metrics->loss += sum;
    metrics->correct += predicted_class(loss, row, classes) == targets[i];
  }
  metrics->count += count;
}

void targets_expand(const int64_t *targets, int64_t count, int64_t classes, float *out_values) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t k = 0; k < classes; k++) out_values[i * classes + k] = (float)target_of(targets[i], classes, k);
}
