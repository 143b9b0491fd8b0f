/* What this machine's processor can do at most, measured: the roofs of a roofline plot (Williams, Waterman, Patterson,
 * "Roofline: An Insightful Visual Performance Model for Multicore Architectures", 2009). */
#ifndef KILN_RUNTIME_SESSION_PEAKS_H
#define KILN_RUNTIME_SESSION_PEAKS_H

#include "base/arena.h"
#include "base/diag.h"

/* Of all threads together. Rates of reading; 0 where the size of the cache is not known. */
typedef struct Peaks {
  uint32_t threads;
  double flops;               /* f32 operations a second: fused multiply-adds of the widest vectors, each two */
  double l2, l3, memory;      /* bytes a second */
  int64_t l2_bytes, l3_bytes; /* of one core; of all */
} Peaks;

/* Takes about half a second for each new number of threads; what was measured is remembered by the process. Any number
 * of threads may call it. False after a report. */
bool peaks_measure(uint32_t threads, Diag *diag, Peaks *out_peaks);
/* The rate that data of `bytes` can be read at: that of the smallest level that holds them. */
double peaks_rate(const Peaks *peaks, double bytes);

#endif
