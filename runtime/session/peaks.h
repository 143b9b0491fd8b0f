/* What this machine's processor can do at most with the instructions of a level, measured: the roofs of a roofline plot
 * (Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
 * 2009). */
#ifndef KILN_RUNTIME_SESSION_PEAKS_H
#define KILN_RUNTIME_SESSION_PEAKS_H

#include "base/arena.h"
#include "base/diag.h"

/* Of all threads together. Rates of reading; 0 where the size of the cache is not known. */
typedef struct Peaks {
  uint32_t threads;
  double flops;               /* f32 operations a second: multiply-adds of the level's vectors, each two */
  double l2, l3, memory;      /* bytes a second */
  int64_t l2_bytes, l3_bytes; /* of one core; of all */
} Peaks;

/* Of programs for `isa` (kiln_program), which this processor can run. `affinity`, or NULL: the threads' processors, as
 * in kiln_context_options. Takes about half a second. False after a report. */
bool peaks_measure(const char *isa, uint32_t threads, const uint32_t *affinity, Diag *diag, Peaks *out_peaks);
/* The rate that data of `bytes` can be read at: that of the smallest level that holds them. */
double peaks_rate(const Peaks *peaks, double bytes);

#endif
