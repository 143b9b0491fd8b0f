/* Places blocks of memory with known lifetimes into one arena.
 *
 * Greedy by size: the largest block first, each into the smallest gap between the blocks that are alive with it
 * (Pisarchyk and Lee, arXiv 2001.03288; XNNPACK and TensorFlow Lite plan alike). Knows nothing of graphs. */
#ifndef KILN_PASSES_ARENA_PLANNER_H
#define KILN_PASSES_ARENA_PLANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"

/* Alive from step `first` to step `last`, both included; blocks alive at the same step do not overlap. */
typedef struct ArenaBlock {
  int64_t size; /* bytes, a multiple of the alignment that the caller wants; 0 is allowed */
  int32_t first, last;
  int64_t offset; /* set by arena_plan */
} ArenaBlock;

/* Sets all offsets; *out_size is the arena's size. The same blocks give the same offsets. False when a size
 * overflows. */
bool arena_plan(ArenaBlock *blocks, size_t count, Arena *scratch, int64_t *out_size);
/* No plan can be smaller: the most bytes alive at one step. */
int64_t arena_plan_lower_bound(const ArenaBlock *blocks, size_t count, Arena *scratch);

#endif
