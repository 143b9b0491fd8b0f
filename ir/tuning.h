/* What was measured about kernels, for the pass `select`: a table of times, by what a kernel computes and how.
 *
 * A kernel is known by its signature, a line of text: op, attributes, shapes, layouts, largest batch, epilogue. The
 * ways to compute it are known by names that `select` gives and reads itself, so that no table can ask for what does
 * not work: names that are not offered count for nothing. */
#ifndef KILN_IR_TUNING_H
#define KILN_IR_TUNING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct TuningTime {
  const char *candidate;
  double microseconds;
} TuningTime;

typedef struct TuningKernel {
  const char *signature;
  const TuningTime *times;
  size_t time_count;
} TuningKernel;

typedef struct Tuning {
  const char *file; /* for messages */
  bool locked;      /* a kernel with several candidates and no times is an error */
  size_t forced; /* every kernel with so many takes candidate number `forced`: for measuring; 0 is the model's choice */
  const TuningKernel *kernels;
  size_t kernel_count;
} Tuning;

/* What a kernel could have been; candidate 0 is the one that the cost model prefers. */
typedef struct KernelOffers {
  const char *signature;
  const char *const *names;
  size_t count;
  size_t taken;
} KernelOffers;

/* NULL when there are no times of that kernel. */
const TuningKernel *tuning_find(const Tuning *tuning, const char *signature);
/* NaN when that candidate was not measured. */
double tuning_time(const TuningKernel *kernel, const char *candidate);

#endif
