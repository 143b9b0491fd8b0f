/* The training half of kiln bench. */
#ifndef KILN_CLI_BENCH_TRAIN_H
#define KILN_CLI_BENCH_TRAIN_H

#include "step_options.h"

typedef struct TrainBench {
  const char *path;
  const ModelOptions *model;
  const StepOptions *step;
  const char *inputs; /* safetensors with inputs by name, e.g. image and target; others are random; or NULL */
  double learning_rate, momentum, seconds;
  int64_t run_batch, rounds;
  bool json, serve;
} TrainBench;

/* Times training steps. With `serve` every line of standard input asks for `rounds` steps and is answered by their
 * median in milliseconds and the loss of the first of them; the first line starts from the model's own weights. */
int bench_train(Tool *tool, const TrainBench *bench);

/* Linear interpolation between the closest ranks of a sorted sample. */
double quantile(const double *sorted, size_t count, double q);
int compare_double(const void *a, const void *b);

#endif
