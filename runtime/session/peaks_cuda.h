/* What a GPU can do at most, measured on it: roofs for its kernels, as peaks.h has them for a processor. */
#ifndef KILN_RUNTIME_SESSION_PEAKS_CUDA_H
#define KILN_RUNTIME_SESSION_PEAKS_CUDA_H

#include "base/arena.h"
#include "base/diag.h"
#include "target.h"

/* Operations and bytes a second, of the whole device. */
typedef struct CudaPeaks {
  const char *name;        /* the device's */
  double fma;              /* f32 multiply-adds, each two operations */
  double math[MATH_COUNT]; /* useful operations in that mode, as its instructions (PTX "mma.sync") allow: three tf32
                              products for one of 3xtf32, multiply-adds for fp32; 0 where the device has none */
  double l2, memory;       /* reading; l2 0: its size is not known */
  int64_t l2_bytes;
} CudaPeaks;

/* Compiles some small kernels and times them by the device's events, which takes a second or two. False after a
 * report. `cache_dir` as in NvrtcOptions. */
bool cuda_peaks_measure(int32_t device, const char *cache_dir, Arena *arena, Diag *diag, CudaPeaks *out_peaks);

#endif
