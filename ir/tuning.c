#include "tuning.h"

#include <math.h>
#include <string.h>

const TuningKernel *tuning_find(const Tuning *tuning, const char *signature) {
  for (size_t k = 0; k < tuning->kernel_count; k++)
    if (strcmp(tuning->kernels[k].signature, signature) == 0) return &tuning->kernels[k];
  return NULL;
}

double tuning_time(const TuningKernel *kernel, const char *candidate) {
  for (size_t t = 0; t < kernel->time_count; t++)
    if (strcmp(kernel->times[t].candidate, candidate) == 0) return kernel->times[t].microseconds;
  return (double)NAN;
}
