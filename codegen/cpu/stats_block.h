/* Statistics of a block of values that come in vectors: code that takes them up, and leaves the block's row of partial
 * results (ir/stats.h).
 *
 * All that is known of a block lies in memory, not in variables: kernels that take values up in the middle of other
 * work need their registers for that. */
#ifndef KILN_CODEGEN_CPU_STATS_BLOCK_H
#define KILN_CODEGEN_CPU_STATS_BLOCK_H

#include "emit.h"
#include "stats.h"

typedef struct StatsBlock {
  Emit *emit;
  const Attrs *attrs;
  StatsRange range;
  bool narrow; /* bins are exact in f32 */
  int32_t lanes;
  int32_t groups;  /* of bins */
  int64_t bins_at; /* where in memory bins wait */
  Value memory;    /* of this thread: sums, counts of the bins, bins of values that are not yet counted */
  EmitRoutine count, spread;
} StatsBlock;

/* `lanes`: of the vectors that will come. At most `vectors` of them are taken between two calls of stats_block_drain.
 * Returns how many bytes of memory the block needs; `block->memory` is set by the caller. */
int64_t stats_block_open(StatsBlock *block, Emit *emit, const Attrs *attrs, int32_t lanes, int64_t vectors);
/* What code shares; once, when `memory` is set. */
void stats_block_routines(StatsBlock *block);

void stats_block_begin(const StatsBlock *block);
/* `count` vectors of `lanes` values, or of one. `valid`: how many lanes of each count, from the first on, which always
 * does; NULL: all. */
void stats_block_take(const StatsBlock *block, const Value *values, int32_t count, int32_t lanes, Value valid);
/* Counts bins when there are many to count. */
void stats_block_drain(const StatsBlock *block);
/* Writes row number `row` of `output`, which lies at `base`. */
void stats_block_end(const StatsBlock *block, const PlanTensor *output, Value base, Value row);

#endif
