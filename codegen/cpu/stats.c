/* Statistics of values; ir/stats.h says what a block is and what is known of it. stats_block.c does the work on a
 * block's values; here is how a kernel of its own reads them. Where it can be avoided, values are not read again: see
 * ride.c. A block is summed in a fixed order, whichever thread computes it. */
#include "stats.h"

#include "base/checked.h"
#include "conv.h"
#include "runs.h"
#include "stats_block.h"
#include "wide.h"

enum { UNROLLED = 8 /* vectors of values */ };

typedef struct Stats {
  Emit *emit;
  const PlanTensor *in;
  StatsBlocks blocks;
  StatsBlock block;
  int32_t lanes; /* of float vectors */
  Value valid;   /* lanes that hold values; NULL: all */
} Stats;

/* --- runs -------------------------------------------------------------------------------------------- */

/* `parts` vectors, or one element when lanes is 1, from `begin` on in steps up to `end`. */
static void take_steps(const Stats *stats, Value base, Value begin, Value end, int32_t parts, int32_t lanes) {
  Emit *emit = stats->emit;
  Value values[UNROLLED];
  EmitLoop at = emit_loop_begin(emit, begin, end, parts * lanes, "values");
  for (int32_t i = 0; i < parts; i++) values[i] = emit_load(emit, base, emit_add_int(emit, at.index, i * lanes), lanes);
  stats_block_take(&stats->block, values, parts, lanes, stats->valid);
  emit_loop_end(emit, &at);
}

/* `count` adjacent floats, a multiple of `multiple`. */
static void take_run(const Stats *stats, Value offset, Value count, int32_t multiple) {
  Emit *emit = stats->emit;
  Value base = emit_address(emit, emit->inputs[0], offset);
  Value whole = emit_sub(emit, count, emit_mod_int(emit, count, UNROLLED * stats->lanes));
  take_steps(stats, base, emit_int(emit, 0), whole, UNROLLED, stats->lanes);
  Value rest = multiple >= stats->lanes ? count : emit_sub(emit, count, emit_mod_int(emit, count, stats->lanes));
  if (multiple < UNROLLED * stats->lanes) take_steps(stats, base, whole, rest, 1, stats->lanes);
  if (multiple < stats->lanes) take_steps(stats, base, rest, count, 1, 1);
  stats_block_drain(&stats->block);
}

/* --- blocks ------------------------------------------------------------------------------------------ */

/* Rows [y, y + rows) of a channel, or of a block of channels. */
static void take_rows(const Stats *stats, Value plane, Value y, Value rows, int32_t block) {
  Emit *emit = stats->emit;
  const StatsBlocks *blocks = &stats->blocks;
  int64_t row = blocks->width * block;
  int64_t stride = stats->in->shape.rank == 4 ? stats->in->storage.stride[2] : 1;
  int32_t multiple = block; /* of what a run's length is known to be one */
  while (row % (2 * multiple) == 0 && multiple < UNROLLED * stats->lanes) multiple *= 2;
  Value start = emit_add(emit, plane, emit_mul_int(emit, y, stride));
  if (stride == row) {
    take_run(stats, start, emit_mul_int(emit, rows, row), multiple);
    return;
  }
  EmitLoop line = emit_loop_begin(emit, emit_int(emit, 0), rows, 1, "row");
  take_run(stats, emit_add(emit, start, emit_mul_int(emit, line.index, stride)), emit_int(emit, row), multiple);
  emit_loop_end(emit, &line);
}

/* How many lanes of a block of channels are channels of the value. */
static Value lanes_within(const Stats *stats, Value channel) {
  Emit *emit = stats->emit;
  if (stats->blocks.channels % stats->lanes == 0) return NULL;
  Value left = emit_sub(emit, emit_int(emit, stats->blocks.channels), channel);
  return emit_min(emit, left, emit_int(emit, stats->lanes));
}

static void take_block(Stats *stats, Value image, Value first_channel, Value channels, Value y, Value rows) {
  Emit *emit = stats->emit;
  const PlanTensor *in = stats->in;
  int32_t block = emit_lane_block(in);
  Value index[SHAPE_MAX_RANK] = {stats->blocks.images == 1 && in->shape.rank < 2 ? NULL : image};
  if (in->shape.rank != 4) {
    take_rows(stats, emit_offset(emit, in, index), y, rows, 1);
    return;
  }
  EmitLoop plane = emit_loop_begin(emit, emit_int(emit, 0), channels, block, "channel");
  Value channel = emit_add(emit, first_channel, plane.index);
  index[1] = emit_div_int(emit, channel, block);
  if (block > 1) stats->valid = lanes_within(stats, channel);
  take_rows(stats, emit_offset(emit, in, index), y, rows, block);
  emit_loop_end(emit, &plane);
}

/* How many of [first, first + step) are below `count`, which groups of `step` cover. */
static Value part_size(Emit *emit, Value first, int64_t step, int64_t count) {
  if (count % step == 0) return emit_int(emit, step);
  return emit_min(emit, emit_sub(emit, emit_int(emit, count), first), emit_int(emit, step));
}

bool cpu_stats_partial(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Stats stats = {.emit = emit, .in = &kernel->inputs[0], .blocks = stats_blocks(&kernel->inputs[0].shape)};
  const StatsBlocks *blocks = &stats.blocks;
  int32_t block = emit_lane_block(stats.in);
  stats.lanes = block > 1 ? block : emit->target->vector_lanes;
  int64_t extents[] = {1, blocks->groups, blocks->chunks};
  *out_work = work_per_image(blocks->images, extents[1] * extents[2]);
  int64_t run = ceil_div(blocks->rows * blocks->width * block, stats.lanes);
  out_work->scratch_bytes = stats_block_open(&stats.block, emit, &kernel->attrs, stats.lanes, run);
  stats.block.memory = emit->scratch;
  stats_block_routines(&stats.block);

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digits[3];
  emit_split(emit, item.index, 3, extents, digits);
  stats_block_begin(&stats.block);
  Value channel = emit_mul_int(emit, digits[1], STATS_CHANNELS), y = emit_mul_int(emit, digits[2], blocks->rows);
  Value channels = part_size(emit, channel, STATS_CHANNELS, blocks->channels);
  take_block(&stats, digits[0], channel, channels, y, part_size(emit, y, blocks->rows, blocks->height));
  stats_block_end(&stats.block, &kernel->output, emit->output, item.index);
  emit_loop_end(emit, &item);
  return true;
}

/* --- results ----------------------------------------------------------------------------------------- */

/* Stores `value` at field `field` of the results at `index`, which has all digits but the last. */
static void store_field(Emit *emit, Value *index, Value field, Value value, int32_t lanes) {
  const PlanTensor *output = &emit->kernel->output;
  index[output->shape.rank - 1] = field;
  emit_store(emit, emit->output, emit_offset(emit, output, index), emit_epilogue(emit, value, index, lanes));
}

static void store_wide(Emit *emit, Value *index, int64_t field, Value value) {
  store_field(emit, index, emit_int(emit, field), wide_to_float(emit, value, 1), 1);
}

/* --- final results ----------------------------------------------------------------------------------- */

typedef struct Final {
  Value rows; /* of partial results */
  int64_t fields;
} Final;

static Value load_wide(Emit *emit, Value row, int64_t field) {
  return wide_from_float(emit, emit_load(emit, row, emit_int(emit, field), 1), 1);
}

static EmitLoop partial_begin(Emit *emit, const Final *final, Value *out_row) {
  EmitLoop loop = emit_loop_begin(emit, emit_int(emit, 0), final->rows, 1, "partial");
  *out_row = emit_address(emit, emit->inputs[0], emit_mul_int(emit, loop.index, final->fields));
  return loop;
}

static void add_counts(Emit *emit, void *context, int32_t lanes, Value bin) {
  const Final *final = context;
  Reduction total = reduction_begin(emit, false, lanes);
  Value row;
  EmitLoop loop = partial_begin(emit, final, &row);
  reduction_add(emit, &total, emit_load(emit, row, emit_add_int(emit, bin, STATS_FIELDS), lanes), lanes);
  emit_loop_end(emit, &loop);
  Value index[SHAPE_MAX_RANK];
  store_field(emit, index, emit_add_int(emit, bin, STATS_RESULT_FIELDS),
              wide_to_float(emit, reduction_vector(emit, &total), lanes), lanes);
}

static Value partial_mean(Emit *emit, Value row) {
  return emit_fadd(emit, load_wide(emit, row, STATS_MEAN), load_wide(emit, row, STATS_MEAN_REST));
}

/* Chan, Golub, LeVeque: "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), for all
 * blocks at once: the mean first, then Σ M2 + count · (block's mean − mean)². */
bool cpu_stats_final(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const Shape *shape = &kernel->inputs[0].shape;
  *out_work = (KernelWork){.items = 1};
  Final final = {emit_mul_int(emit, emit_extent(emit, shape->dims[0]), shape->dims[1]), shape->dims[2]};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Reduction count = reduction_begin(emit, false, 1), sum = reduction_begin(emit, false, 1);
  Reduction near_zero = reduction_begin(emit, false, 1), m2 = reduction_begin(emit, false, 1);
  Value row;
  EmitLoop first = partial_begin(emit, &final, &row);
  Value elements = load_wide(emit, row, STATS_COUNT);
  reduction_add(emit, &count, elements, 1);
  reduction_add(emit, &sum, emit_fmul(emit, elements, partial_mean(emit, row)), 1);
  reduction_add(emit, &near_zero, load_wide(emit, row, STATS_NEAR_ZERO), 1);
  emit_loop_end(emit, &first);
  Value total = reduction_end(emit, &count), mean = emit_fdiv(emit, reduction_end(emit, &sum), total);

  EmitLoop second = partial_begin(emit, &final, &row);
  Value distance = emit_fsub(emit, partial_mean(emit, row), mean);
  Value between = emit_fmul(emit, load_wide(emit, row, STATS_COUNT), emit_fmul(emit, distance, distance));
  reduction_add(emit, &m2, emit_fadd(emit, load_wide(emit, row, STATS_M2), between), 1);
  emit_loop_end(emit, &second);
  Value freedom = emit_fsub(emit, total, wide_constant(emit, 1, 1));
  Value variance = wide_to_float(emit, emit_fdiv(emit, reduction_end(emit, &m2), freedom), 1);
  Value index[SHAPE_MAX_RANK];
  store_wide(emit, index, STATS_RESULT_MEAN, mean);
  store_field(emit, index, emit_int(emit, STATS_RESULT_STD), emit_math(emit, EXPR_SQRT, variance, 1), 1);
  store_wide(emit, index, STATS_RESULT_NEAR_ZERO, emit_fdiv(emit, reduction_end(emit, &near_zero), total));
  emit_vector_loop(emit, final.fields - STATS_FIELDS, emit->target->vector_lanes, add_counts, &final);
  emit_loop_end(emit, &item);
  return true;
}
