/* What kiln bench says about single kernels. */
#ifndef KILN_CLI_BENCH_KERNELS_H
#define KILN_CLI_BENCH_KERNELS_H

#include "common.h"
#include "session/peaks.h"
#include "session/peaks_cuda.h"

typedef struct KernelTimes {
  const kiln_program *program;
  int64_t batch;
  const double *seconds; /* of each run step */
  double run;            /* of a whole run */
  const Peaks *peaks;    /* of the processor, or: */
  const CudaPeaks *gpu;  /* of the GPU; else NULL */
  const MathMode *modes; /* of each run step, with `gpu`; MATH_COUNT: not known, so that its roof is not either */
} KernelTimes;

/* A table on standard output, or comma-separated values. */
void kernel_times_print(Tool *tool, const KernelTimes *times, bool csv);
/* Members of a JSON object: "of_peak": the run's operations by the peak of f32 multiply-adds, "peaks", "kernels". */
void kernel_times_json(Text *text, const KernelTimes *times);
/* The roofline plot, PNG or SVG; needs peaks. */
bool kernel_times_plot(Tool *tool, const KernelTimes *times, const char *path);
/* A field of comma-separated values, quoted where it has to be (RFC 4180). */
void csv_field(FILE *file, const char *text);

#endif
