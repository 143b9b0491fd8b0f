/* Statistics of values; ir/stats.h says what a block is and what is known of it.
 *
 * A block is read once. Sums are taken of the distances from the block's first value, so that their squares lose
 * nothing where the spread is small against the mean; in double, but for the first few terms. The same sweep turns
 * every value into a byte, the number of its bin counted from 1, or 0 for none, and leaves the bytes in scratch memory.
 * A second sweep compares vectors of these bytes with eight bin numbers at a time and counts in bytes: unlike
 * increments in memory that takes the same time whether or not many values fall into one bin, as the zeros after a relu
 * do. Bins above the largest one that occurs in a few kilobytes are skipped.
 *
 * A block is summed in a fixed order, whichever thread computes it. */
#include "stats.h"

#include <assert.h>
#include <math.h>

#include "conv.h"
#include "runs.h"
#include "wide.h"

enum {
  UNROLLED = 4, /* vectors of values */
  BINS_AT_ONCE = 8,
  SLICE_VECTORS = 128, /* bytes that count: at most 255 steps between two emptyings */
  HISTOGRAM_BYTES = 4 * (STATS_BINS_MAX + BINS_AT_ONCE + 2)
};

typedef struct Stats {
  Emit *emit;
  const PlanTensor *in;
  const Attrs *attrs;
  StatsBlocks blocks;
  StatsRange range;
  bool narrow;   /* bins are exact in f32 */
  int32_t lanes; /* of float vectors */
  int32_t bytes; /* of byte vectors */
  Value pivot;   /* the first value */
  Reduction sum, squares;
  Value near_vector, near_scalar; /* variables: counts of i32 */
  Value histogram, codes;         /* in scratch memory */
  Value position;                 /* variable: how many codes there are */
  Value mask;                     /* which lanes hold values; NULL: all */
  Value index[SHAPE_MAX_RANK];    /* of the block's results */
} Stats;

/* --- integers ---------------------------------------------------------------------------------------- */

static LLVMTypeRef vector_of(LLVMTypeRef type, int32_t lanes) {
  return lanes == 1 ? type : LLVMVectorType(type, (unsigned)lanes);
}

static Value repeat_int(LLVMTypeRef type, int32_t lanes, int64_t value) {
  enum { MAX_LANES = 64 };
  assert(lanes <= MAX_LANES);
  Value one = LLVMConstInt(type, (unsigned long long)value, 1), values[MAX_LANES];
  for (int32_t i = 0; i < lanes; i++) values[i] = one;
  return lanes == 1 ? one : LLVMConstVector(values, (unsigned)lanes);
}

static LLVMTypeRef byte_type(Emit *emit) { return LLVMInt8TypeInContext(emit->context); }

static Value splat_int(Emit *emit, Value scalar, LLVMTypeRef type, int32_t lanes) {
  LLVMTypeRef vector = vector_of(type, lanes);
  Value one = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(vector), scalar, emit_int(emit, 0), "");
  return LLVMBuildShuffleVector(emit->builder, one, LLVMGetPoison(vector), LLVMConstNull(vector_of(emit->i32, lanes)),
                                "");
}

/* llvm.vector.reduce.add, .umax */
static Value reduce_int(Emit *emit, const char *name, size_t length, Value vector) {
  LLVMTypeRef type = LLVMTypeOf(vector);
  unsigned id = LLVMLookupIntrinsicID(name, length);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &type, 1);
  return LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, &type, 1), function, &vector, 1, "");
}
#define REDUCE_INT(emit, name, vector) reduce_int(emit, name, sizeof name - 1, vector)

static Value larger_unsigned(Emit *emit, Value a, Value b) {
  return LLVMBuildSelect(emit->builder, LLVMBuildICmp(emit->builder, LLVMIntUGT, a, b, ""), a, b, "");
}

static Value byte_address(Emit *emit, Value base, Value offset) {
  return LLVMBuildGEP2(emit->builder, byte_type(emit), base, &offset, 1, "");
}

static Value load_bytes(Emit *emit, Value base, Value offset, int32_t lanes) {
  Value load = LLVMBuildLoad2(emit->builder, vector_of(byte_type(emit), lanes), byte_address(emit, base, offset), "");
  LLVMSetAlignment(load, 1);
  return load;
}

static void store_bytes(Emit *emit, Value base, Value offset, Value bytes) {
  LLVMSetAlignment(LLVMBuildStore(emit->builder, bytes, byte_address(emit, base, offset)), 1);
}

/* counter += how often the condition holds, lane by lane. */
static void count_lanes(Emit *emit, Value counter, LLVMTypeRef type, Value condition) {
  Value before = emit_get(emit, type, counter);
  Value step = LLVMBuildSExt(emit->builder, condition, type, "");
  emit_set(emit, counter, LLVMBuildSub(emit->builder, before, step, ""));
}

static Value clear_variable(Emit *emit, LLVMTypeRef type, const char *name) {
  Value variable = emit_variable(emit, type, name);
  emit_set(emit, variable, LLVMConstNull(type));
  return variable;
}

/* --- values ------------------------------------------------------------------------------------------ */

/* The bin of each lane from 0, or −1. */
static Value find_bins(const Stats *stats, Value value, int32_t lanes) {
  Emit *emit = stats->emit;
  Value inside =
      emit_and(emit, LLVMBuildFCmp(emit->builder, LLVMRealOGE, value, emit_float(emit, lanes, stats->range.low), ""),
               LLVMBuildFCmp(emit->builder, LLVMRealOLE, value, emit_float(emit, lanes, stats->range.high), ""));
  if (stats->mask != NULL) inside = emit_and(emit, inside, stats->mask);
  Value place, none;
  if (stats->narrow) {
    place = emit_fmul(emit, value, emit_float(emit, lanes, stats->range.scale));
    none = emit_float(emit, lanes, -1);
  } else {
    Value wide = wide_from_float(emit, value, lanes);
    place = emit_fmul(emit, emit_fsub(emit, wide, wide_constant(emit, lanes, stats->range.low)),
                      wide_constant(emit, lanes, stats->range.scale));
    none = wide_constant(emit, lanes, -1);
  }
  place = emit_select(emit, inside, place, none); /* what is outside may not be converted */
  return LLVMBuildFPToSI(emit->builder, place, vector_of(emit->i32, lanes), "");
}

/* −1 … bins → 0 … bins. */
static Value encode_bins(const Stats *stats, Value bins, int32_t lanes) {
  Emit *emit = stats->emit;
  Value last = repeat_int(byte_type(emit), lanes, stats->attrs->bins);
  Value code = LLVMBuildTrunc(emit->builder, bins, vector_of(byte_type(emit), lanes), "");
  code = LLVMBuildAdd(emit->builder, code, repeat_int(byte_type(emit), lanes, 1), "");
  return LLVMBuildSelect(emit->builder, LLVMBuildICmp(emit->builder, LLVMIntULT, code, last, ""), code, last, "");
}

/* The values at `offset`: returns their bins, and their distances from the pivot. */
static Value take_values(const Stats *stats, Value base, Value offset, int32_t lanes, Value *out_distance) {
  Emit *emit = stats->emit;
  Value value = emit_load(emit, base, offset, lanes);
  Value distance = emit_fsub(emit, value, emit_splat(emit, stats->pivot, lanes));
  Value is_near = LLVMBuildFCmp(emit->builder, LLVMRealOLE, value, emit_float(emit, lanes, stats->range.threshold), "");
  if (stats->mask != NULL) {
    distance = emit_select(emit, stats->mask, distance, emit_float(emit, lanes, 0));
    is_near = emit_and(emit, is_near, stats->mask);
  }
  count_lanes(emit, lanes == 1 ? stats->near_scalar : stats->near_vector, vector_of(emit->i32, lanes), is_near);
  *out_distance = distance;
  return find_bins(stats, value, lanes);
}

/* Sums of a few vectors in f32, which adds some 2^-24 of each term, then on in double. */
static void add_distances(const Stats *stats, const Value *distances, int32_t count, int32_t lanes) {
  Emit *emit = stats->emit;
  Value sum = distances[0], squares = emit_fmul(emit, distances[0], distances[0]);
  for (int32_t i = 1; i < count; i++) {
    sum = emit_fadd(emit, sum, distances[i]);
    squares = emit_fma(emit, distances[i], distances[i], squares);
  }
  reduction_add(emit, &stats->sum, sum, lanes);
  reduction_add(emit, &stats->squares, squares, lanes);
}

/* Several vectors as one. */
static Value join_vectors(Emit *emit, Value *parts, int32_t count, int32_t lanes) {
  enum { MAX_LANES = 64 };
  for (; count > 1; count /= 2, lanes *= 2) {
    Value mask[MAX_LANES];
    for (int32_t i = 0; i < 2 * lanes; i++) mask[i] = LLVMConstInt(emit->i32, (unsigned)i, 0);
    for (int32_t i = 0; i < count / 2; i++)
      parts[i] = LLVMBuildShuffleVector(emit->builder, parts[2 * i], parts[2 * i + 1],
                                        LLVMConstVector(mask, (unsigned)(2 * lanes)), "");
  }
  return parts[0];
}

/* `parts` vectors, or one element when lanes is 1, from `begin` on in steps up to `end`. */
static void take_steps(const Stats *stats, Value base, Value begin, Value end, int32_t parts, int32_t lanes) {
  enum { MAX_PARTS = UNROLLED };
  Emit *emit = stats->emit;
  Value first = emit_get(emit, emit->i64, stats->position), bins[MAX_PARTS], distances[MAX_PARTS];
  assert(parts <= MAX_PARTS);
  EmitLoop at = emit_loop_begin(emit, begin, end, parts * lanes, "values");
  for (int32_t i = 0; i < parts; i++)
    bins[i] = take_values(stats, base, emit_add_int(emit, at.index, i * lanes), lanes, &distances[i]);
  add_distances(stats, distances, parts, lanes);
  Value code = encode_bins(stats, join_vectors(emit, bins, parts, lanes), parts * lanes);
  store_bytes(emit, stats->codes, emit_add(emit, first, at.index), code);
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
  emit_set(emit, stats->position, emit_add(emit, emit_get(emit, emit->i64, stats->position), count));
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

/* The lanes of a block of channels that are channels of the value. */
static Value lanes_within(const Stats *stats, Value channel) {
  enum { MAX_LANES = 64 };
  Emit *emit = stats->emit;
  if (stats->blocks.channels % stats->lanes == 0) return NULL;
  Value lanes[MAX_LANES];
  for (int32_t i = 0; i < stats->lanes; i++) lanes[i] = emit_int(emit, i);
  Value left = emit_sub(emit, emit_int(emit, stats->blocks.channels), channel);
  return LLVMBuildICmp(emit->builder, LLVMIntSLT, LLVMConstVector(lanes, (unsigned)stats->lanes),
                       splat_int(emit, left, emit->i64, stats->lanes), "");
}

static void take_block(Stats *stats, Value image, Value first_channel, Value channels, Value y, Value rows) {
  Emit *emit = stats->emit;
  const PlanTensor *in = stats->in;
  int32_t block = emit_lane_block(in);
  Value index[SHAPE_MAX_RANK] = {stats->blocks.images == 1 && in->shape.rank < 2 ? NULL : image};
  if (in->shape.rank != 4) {
    Value start = emit_offset(emit, in, index);
    stats->pivot = emit_load(emit, emit->inputs[0], emit_add(emit, start, y), 1);
    take_rows(stats, start, y, rows, 1);
    return;
  }
  index[1] = emit_div_int(emit, first_channel, block), index[2] = y;
  stats->pivot = emit_load(emit, emit->inputs[0], emit_offset(emit, in, index), 1);
  index[2] = NULL;
  EmitLoop plane = emit_loop_begin(emit, emit_int(emit, 0), channels, block, "channel");
  Value channel = emit_add(emit, first_channel, plane.index);
  index[1] = emit_div_int(emit, channel, block);
  if (block > 1) stats->mask = lanes_within(stats, channel);
  take_rows(stats, emit_offset(emit, in, index), y, rows, block);
  emit_loop_end(emit, &plane);
}

/* --- bins -------------------------------------------------------------------------------------------- */

static Value histogram_address(const Stats *stats, Value bin) {
  return LLVMBuildGEP2(stats->emit->builder, stats->emit->i32, stats->histogram, &bin, 1, "");
}

static void clear_histogram(const Stats *stats) {
  Emit *emit = stats->emit;
  EmitLoop bin = emit_loop_count(emit, stats->attrs->bins + BINS_AT_ONCE, 1, "bin");
  LLVMBuildStore(emit->builder, LLVMConstInt(emit->i32, 0, 0), histogram_address(stats, bin.index));
  emit_loop_end(emit, &bin);
}

/* Counts codes [begin, end) for bins from `first` on. */
static void count_bins(const Stats *stats, Value first, Value begin, Value end) {
  Emit *emit = stats->emit;
  LLVMTypeRef type = vector_of(byte_type(emit), stats->bytes);
  LLVMTypeRef pairs = vector_of(LLVMInt16TypeInContext(emit->context), stats->bytes);
  Value counters[BINS_AT_ONCE];
  for (int32_t i = 0; i < BINS_AT_ONCE; i++) counters[i] = clear_variable(emit, type, "counter");
  Value base =
      splat_int(emit, LLVMBuildTrunc(emit->builder, first, byte_type(emit), ""), byte_type(emit), stats->bytes);
  EmitLoop at = emit_loop_begin(emit, begin, end, stats->bytes, "codes");
  Value code = LLVMBuildSub(emit->builder, load_bytes(emit, stats->codes, at.index, stats->bytes), base, "");
  for (int32_t i = 0; i < BINS_AT_ONCE; i++) {
    Value wanted = repeat_int(byte_type(emit), stats->bytes, i + 1);
    count_lanes(emit, counters[i], type, LLVMBuildICmp(emit->builder, LLVMIntEQ, code, wanted, ""));
  }
  emit_loop_end(emit, &at);
  for (int32_t i = 0; i < BINS_AT_ONCE; i++) {
    Value counts = LLVMBuildZExt(emit->builder, emit_get(emit, type, counters[i]), pairs, "");
    Value total = LLVMBuildZExt(emit->builder, REDUCE_INT(emit, "llvm.vector.reduce.add", counts), emit->i32, "");
    Value address = histogram_address(stats, emit_add_int(emit, first, i));
    Value before = LLVMBuildLoad2(emit->builder, emit->i32, address, "");
    LLVMBuildStore(emit->builder, LLVMBuildAdd(emit->builder, before, total, ""), address);
  }
}

static Value find_largest(const Stats *stats, Value begin, Value end) {
  Emit *emit = stats->emit;
  LLVMTypeRef type = vector_of(byte_type(emit), stats->bytes);
  Value largest = clear_variable(emit, type, "largest");
  EmitLoop at = emit_loop_begin(emit, begin, end, stats->bytes, "codes");
  Value code = load_bytes(emit, stats->codes, at.index, stats->bytes);
  emit_set(emit, largest, larger_unsigned(emit, code, emit_get(emit, type, largest)));
  emit_loop_end(emit, &at);
  Value byte = REDUCE_INT(emit, "llvm.vector.reduce.umax", emit_get(emit, type, largest));
  return LLVMBuildZExt(emit->builder, byte, emit->i64, "");
}

static void count_codes(const Stats *stats) {
  Emit *emit = stats->emit;
  Value count = emit_get(emit, emit->i64, stats->position);
  store_bytes(emit, stats->codes, count, LLVMConstNull(vector_of(byte_type(emit), stats->bytes)));
  EmitLoop slice = emit_loop_begin(emit, emit_int(emit, 0), count, (int64_t)SLICE_VECTORS * stats->bytes, "slice");
  Value end = emit_min(emit, emit_add_int(emit, slice.index, slice.step), count);
  EmitLoop bin = emit_loop_begin(emit, emit_int(emit, 0), find_largest(stats, slice.index, end), BINS_AT_ONCE, "bins");
  count_bins(stats, bin.index, slice.index, end);
  emit_loop_end(emit, &bin);
  emit_loop_end(emit, &slice);
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

/* --- partial results --------------------------------------------------------------------------------- */

static void copy_counts(Emit *emit, void *context, int32_t lanes, Value bin) {
  Stats *stats = context;
  Value counts = LLVMBuildLoad2(emit->builder, vector_of(emit->i32, lanes), histogram_address(stats, bin), "");
  LLVMSetAlignment(counts, 4);
  Value floats = LLVMBuildSIToFP(emit->builder, counts, emit_float_type(emit, lanes), "");
  store_field(emit, stats->index, emit_add_int(emit, bin, STATS_FIELDS), floats, lanes);
}

static Value count_near_zero(const Stats *stats) {
  Emit *emit = stats->emit;
  Value lanes = emit_get(emit, vector_of(emit->i32, stats->lanes), stats->near_vector);
  Value total = LLVMBuildAdd(emit->builder, REDUCE_INT(emit, "llvm.vector.reduce.add", lanes),
                             emit_get(emit, emit->i32, stats->near_scalar), "");
  return LLVMBuildSIToFP(emit->builder, total, wide_type(emit, 1), "");
}

static void store_block(Stats *stats, Value elements) {
  Emit *emit = stats->emit;
  Value count = wide_from_int(emit, elements), sum = reduction_end(emit, &stats->sum);
  Value shift = emit_fdiv(emit, sum, count), mean = emit_fadd(emit, wide_from_float(emit, stats->pivot, 1), shift);
  Value rounded = wide_from_float(emit, wide_to_float(emit, mean, 1), 1);
  Value m2 = emit_fsub(emit, reduction_end(emit, &stats->squares), emit_fmul(emit, sum, shift));
  m2 = emit_fmax(emit, wide_constant(emit, 1, 0), m2); /* rounding; a NaN stays */
  store_wide(emit, stats->index, STATS_COUNT, count);
  store_wide(emit, stats->index, STATS_MEAN, rounded);
  store_wide(emit, stats->index, STATS_MEAN_REST, emit_fsub(emit, mean, rounded));
  store_wide(emit, stats->index, STATS_M2, m2);
  store_wide(emit, stats->index, STATS_NEAR_ZERO, count_near_zero(stats));
  emit_vector_loop(emit, stats->attrs->bins, emit->target->vector_lanes, copy_counts, stats);
}

/* How many of [first, first + step) are below `count`, which groups of `step` cover. */
static Value part_size(Emit *emit, Value first, int64_t step, int64_t count) {
  if (count % step == 0) return emit_int(emit, step);
  return emit_min(emit, emit_sub(emit, emit_int(emit, count), first), emit_int(emit, step));
}

static Value multiply(Emit *emit, Value a, Value b) { return LLVMBuildNSWMul(emit->builder, a, b, ""); }

/* Powers of two change no digits: (v − 0) · scale is exact. */
static bool exact_in_float(const StatsRange *range) {
  int exponent;
  return range->low == 0 && frexp(range->scale, &exponent) == 0.5 && exponent > -64 && exponent < 64;
}

bool cpu_stats_partial(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  enum { BYTES_MAX = 32 };
  Stats stats = {.emit = emit, .in = &kernel->inputs[0], .attrs = &kernel->attrs};
  stats.blocks = stats_blocks(&stats.in->shape);
  stats.range = stats_range(&kernel->attrs);
  stats.narrow = exact_in_float(&stats.range);
  int32_t block = emit_lane_block(stats.in);
  stats.lanes = block > 1 ? block : emit->target->vector_lanes;
  stats.bytes = 4 * stats.lanes < BYTES_MAX ? 4 * stats.lanes : BYTES_MAX;
  stats.histogram = emit->scratch;
  stats.codes = byte_address(emit, emit->scratch, emit_int(emit, HISTOGRAM_BYTES));
  const StatsBlocks *blocks = &stats.blocks;
  int64_t extents[] = {1, blocks->groups, blocks->chunks};
  *out_work = work_per_image(blocks->images, extents[1] * extents[2]);
  out_work->scratch_bytes = HISTOGRAM_BYTES + STATS_CHANNELS * blocks->rows * blocks->width + stats.bytes;

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digits[3];
  emit_split(emit, item.index, 3, extents, digits);
  stats.sum = reduction_begin(emit, false, stats.lanes);
  stats.squares = reduction_begin(emit, false, stats.lanes);
  stats.near_vector = clear_variable(emit, vector_of(emit->i32, stats.lanes), "near");
  stats.near_scalar = clear_variable(emit, emit->i32, "near");
  stats.position = clear_variable(emit, emit->i64, "position");
  stats.mask = NULL;
  clear_histogram(&stats);
  Value channel = emit_mul_int(emit, digits[1], STATS_CHANNELS), y = emit_mul_int(emit, digits[2], blocks->rows);
  Value channels = part_size(emit, channel, STATS_CHANNELS, blocks->channels);
  Value rows = part_size(emit, y, blocks->rows, blocks->height);
  take_block(&stats, digits[0], channel, channels, y, rows);
  count_codes(&stats);
  Value elements = multiply(emit, multiply(emit, channels, rows), emit_int(emit, blocks->width));
  stats.index[0] = digits[0];
  stats.index[1] = emit_add(emit, emit_mul_int(emit, digits[1], blocks->chunks), digits[2]);
  store_block(&stats, elements);
  emit_loop_end(emit, &item);
  return true;
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
