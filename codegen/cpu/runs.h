/* Loops over parts of plain tensors, for kernels that reduce or normalise. */
#ifndef KILN_CODEGEN_CPU_RUNS_H
#define KILN_CODEGEN_CPU_RUNS_H

#include "emit.h"

/* Splits a work item into the indices of the dimensions that are not `skipped`; returns the number of items. */
KernelWork split_kept(Emit *emit, const Shape *shape, const bool *skipped, Value item, Value *index);
/* The attribute `dim` counted from the front. */
int32_t dim_from_front(int64_t dim, int32_t rank);
/* An extent that may be the batch. */
Value emit_extent(Emit *emit, int64_t extent);

/* Loops over dimensions [first, rank), those for which `chosen` holds (NULL: all). Inside the loops stands a run of
 * `count` adjacent elements, which covers as many of the last dimensions as follow each other without gaps in `a` and
 * in `b` (may be NULL), at most one of them with `by_rows`. index[] holds the loops' indices and NULL for the
 * dimensions of the run; `dim` is the run's last dimension, or -1 for a run of one element. */
typedef struct Runs {
  EmitLoop loops[SHAPE_MAX_RANK];
  int32_t loop_count, dim;
  int64_t count;
} Runs;

Runs runs_begin(Emit *emit, const PlanTensor *a, const PlanTensor *b, int32_t first, const bool *chosen, bool by_rows,
                Value *index);
void runs_end(Emit *emit, Runs *runs);

#endif
