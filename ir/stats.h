/* Statistics of a value over a whole run, in two steps that do not depend on how work is shared out: `stats_partial`
 * describes blocks of every image, `stats_final` combines them in the order in which they stand. */
#ifndef KILN_IR_STATS_H
#define KILN_IR_STATS_H

#include "graph.h"

enum {
  STATS_CHANNELS = 16,    /* of a block of an image: a multiple of every channel-blocked layout's block */
  STATS_ELEMENTS = 16384, /* of a block, unless one row of it has more */
  STATS_BINS_MAX = 254    /* bin numbers and "in no bin" fit a byte, and so does a rounded-up one */
};

/* What stands in a block's row; the counts of the bins follow. The mean is the sum of two floats, so that it keeps the
 * precision with which it was computed. M2 is the sum of the squared distances from the mean. */
enum { STATS_COUNT, STATS_MEAN, STATS_MEAN_REST, STATS_M2, STATS_NEAR_ZERO, STATS_FIELDS };

/* What stands in a result; the counts of the bins follow. */
enum { STATS_RESULT_MEAN, STATS_RESULT_STD, STATS_RESULT_NEAR_ZERO, STATS_RESULT_FIELDS };

/* A value seen as images of channels of rows. An image of rank 4 keeps its dimensions; any other is one channel with
 * rows of one element. A block holds STATS_CHANNELS channels of `rows` rows, or what is left of both. */
typedef struct StatsBlocks {
  int64_t images; /* may be DIM_BATCH */
  int64_t channels, height, width;
  int64_t groups; /* of channels */
  int64_t rows;   /* of a block */
  int64_t chunks; /* blocks that share their channels; block g * chunks + c has chunk c of group g */
} StatsBlocks;

StatsBlocks stats_blocks(const Shape *shape);

/* A value's bin: bin k of `bins` holds k ≤ (v − low) · scale < k + 1, the last one also v = high. Limits and threshold
 * are those of the attributes as floats, since values are. */
typedef struct StatsRange {
  double low, high, scale, threshold;
} StatsRange;

StatsRange stats_range(const Attrs *attrs);

/* The attributes of a hook's stats_partial. */
Attrs stats_attrs(const HookStats *options);

#endif
