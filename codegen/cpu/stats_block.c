/* Sums are taken of the distances from the block's first value, so that their squares lose nothing where the spread is
 * small against the mean; of the vectors that come together in f32, then on in double.
 *
 * Histogram: the bins of a vector's values wait in memory until there are enough of them. Then each becomes a word with
 * one bit set, 1 << bin, and words are added up bit by bit: plane p holds, for every lane and bin, bit p of the count.
 * A full adder takes three bits of one weight to a sum and a carry, sixteen words and the planes need one for each
 * word, and it works on all bins of all lanes at once. (Counting bits that way is Harley's and Seal's; Warren, Hacker's
 * Delight, 2nd edition, 5-1, and for counts by position: Klarqvist, Muła, Lemire, "Efficient Computation of Positional
 * Population Counts Using SIMD Instructions", arXiv 1911.02696.) Unlike increments in memory that takes the same time
 * whether or not many values fall into one bin, as the zeros after a relu do. At the end the lanes of each plane are
 * counted.
 *
 * The order of all sums follows from the order in which values are taken. */
#include "stats_block.h"

#include <assert.h>
#include <math.h>

#include "base/checked.h"
#include "wide.h"

enum {
  CHAIN = 8,          /* vectors that are added up in f32 */
  BATCH = 16,         /* vectors of bins that are counted at once */
  GROUP_BINS = 32,    /* bits of a word */
  PLANES = 12,        /* counts up to 4095 */
  BATCHES_MAX = 255,  /* that they hold */
  SLICE_BATCHES = 64, /* between two looks at that */
  DRAIN_VECTORS = 64, /* of bins that are worth counting */
  MAX_LANES = 64,
  NO_BIN = 255, /* more than the bins and one more for the upper limit; where no count is kept */
  HISTOGRAM_BYTES = 4 * (NO_BIN + 1)
};
_Static_assert((int)STATS_BINS_MAX < (int)NO_BIN && BATCHES_MAX * BATCH < 1 << PLANES, "bins and counts fit");

/* Places in a block's memory, in bytes. */
enum {
  PLACE_SUM,                                       /* lanes of double */
  PLACE_SQUARES = PLACE_SUM + 16 * 8,              /* lanes of double */
  PLACE_NEAR = PLACE_SQUARES + 16 * 8,             /* lanes of i32 */
  PLACE_COUNT = PLACE_NEAR + 16 * 4,               /* i64: values */
  PLACE_BINS = PLACE_COUNT + 8,                    /* i64: bytes of bins that wait */
  PLACE_BATCHES = PLACE_BINS + 8,                  /* i64: batches that the planes hold */
  PLACE_PIVOT = PLACE_BATCHES + 8,                 /* f32: the first value */
  PLACE_HISTOGRAM = PLACE_PIVOT + 40,              /* i32 per bin, and one for the upper limit */
  PLACE_PLANES = PLACE_HISTOGRAM + HISTOGRAM_BYTES /* PLANES vectors of i32 per group of bins; then the bins */
};
_Static_assert(PLACE_PLANES % 64 == 0, "vectors do not cross lines");

/* --- integers ---------------------------------------------------------------------------------------- */

static LLVMTypeRef vector_of(LLVMTypeRef type, int32_t lanes) {
  return lanes == 1 ? type : LLVMVectorType(type, (unsigned)lanes);
}

static LLVMTypeRef byte_type(Emit *emit) { return LLVMInt8TypeInContext(emit->context); }

static Value repeat_int(LLVMTypeRef type, int32_t lanes, int64_t value) {
  assert(lanes <= MAX_LANES);
  Value one = LLVMConstInt(type, (unsigned long long)value, 1), values[MAX_LANES];
  for (int32_t i = 0; i < lanes; i++) values[i] = one;
  return lanes == 1 ? one : LLVMConstVector(values, (unsigned)lanes);
}

/* AVX-512 */
static bool has_masks(const Emit *emit) { return emit->target->vector_lanes == 16; }

static Value splat_int(Emit *emit, Value scalar, LLVMTypeRef type, int32_t lanes) {
  LLVMTypeRef vector = vector_of(type, lanes);
  Value one = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(vector), scalar, emit_int(emit, 0), "");
  return LLVMBuildShuffleVector(emit->builder, one, LLVMGetPoison(vector), LLVMConstNull(vector_of(emit->i32, lanes)),
                                "");
}

/* An intrinsic of one operand, overloaded on its type: llvm.vector.reduce.add, llvm.ctpop. */
static Value unary_int(Emit *emit, const char *name, size_t length, Value operand) {
  LLVMTypeRef type = LLVMTypeOf(operand);
  unsigned id = LLVMLookupIntrinsicID(name, length);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &type, 1);
  return LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, &type, 1), function, &operand, 1, "");
}
#define UNARY_INT(emit, name, operand) unary_int(emit, name, sizeof name - 1, operand)

/* --- memory ------------------------------------------------------------------------------------------ */

static Value byte_address(Emit *emit, Value base, Value offset) {
  return LLVMBuildGEP2(emit->builder, byte_type(emit), base, &offset, 1, "");
}

static Value place(const StatsBlock *block, int64_t offset) {
  return byte_address(block->emit, block->memory, emit_int(block->emit, offset));
}

static Value load_from(Emit *emit, LLVMTypeRef type, Value address) {
  Value load = LLVMBuildLoad2(emit->builder, type, address, "");
  LLVMSetAlignment(load, 1);
  return load;
}

static void store_to(Emit *emit, Value address, Value value) {
  LLVMSetAlignment(LLVMBuildStore(emit->builder, value, address), 1);
}

static Value get(const StatsBlock *block, LLVMTypeRef type, int64_t offset) {
  return load_from(block->emit, type, place(block, offset));
}

static void set(const StatsBlock *block, int64_t offset, Value value) {
  store_to(block->emit, place(block, offset), value);
}

/* --- bins of values ---------------------------------------------------------------------------------- */

/* The bin of each lane from 0; NO_BIN outside the range. A value at the upper limit may get `bins`. */
static Value find_bins(const StatsBlock *block, Value value, int32_t lanes, Value mask) {
  Emit *emit = block->emit;
  LLVMTypeRef type = vector_of(emit->i32, lanes);
  Value at, inside;
  if (block->narrow) {
    /* Ordered as unsigned integers, floats from +0 to the number of bins are the smallest: no bits of others are less,
     * be they negative or NaN. Adding 0 makes −0 a +0. */
    at = emit_fma(emit, value, emit_float(emit, lanes, block->range.scale), emit_float(emit, lanes, 0));
    Value last = LLVMConstBitCast(emit_float(emit, 1, (double)block->attrs->bins), emit->i32);
    last = repeat_int(emit->i32, lanes, (int64_t)LLVMConstIntGetZExtValue(last));
    inside = LLVMBuildICmp(emit->builder, LLVMIntULE, LLVMBuildBitCast(emit->builder, at, type, ""), last, "");
  } else {
    Value wide = wide_from_float(emit, value, lanes);
    at = emit_fmul(emit, emit_fsub(emit, wide, wide_constant(emit, lanes, block->range.low)),
                   wide_constant(emit, lanes, block->range.scale));
    inside =
        emit_and(emit, LLVMBuildFCmp(emit->builder, LLVMRealOGE, value, emit_float(emit, lanes, block->range.low), ""),
                 LLVMBuildFCmp(emit->builder, LLVMRealOLE, value, emit_float(emit, lanes, block->range.high), ""));
  }
  if (mask != NULL) inside = emit_and(emit, inside, mask);
  /* the conversion of what lies outside means nothing, and is not used */
  return emit_select(emit, inside, LLVMBuildFPToSI(emit->builder, at, type, ""), repeat_int(emit->i32, lanes, NO_BIN));
}

static Value histogram_address(Emit *emit, Value memory, Value bin) {
  Value histogram = byte_address(emit, memory, emit_int(emit, PLACE_HISTOGRAM));
  return LLVMBuildGEP2(emit->builder, emit->i32, histogram, &bin, 1, "");
}

static void add_to_bin(Emit *emit, Value memory, Value bin, Value count) {
  Value address = histogram_address(emit, memory, bin);
  store_to(emit, address, LLVMBuildAdd(emit->builder, load_from(emit, emit->i32, address), count, ""));
}

static void take_bins(const StatsBlock *block, const Value *values, int32_t count, int32_t lanes, Value mask) {
  Emit *emit = block->emit;
  if (lanes == 1) {
    for (int32_t i = 0; i < count; i++) {
      Value bin = LLVMBuildZExt(emit->builder, find_bins(block, values[i], 1, NULL), emit->i64, "");
      add_to_bin(emit, block->memory, bin, LLVMConstInt(emit->i32, 1, 0));
    }
    return;
  }
  Value position = get(block, emit->i64, PLACE_BINS);
  for (int32_t i = 0; i < count; i++)
    store_to(emit, byte_address(emit, block->memory, emit_add_int(emit, position, block->bins_at + 4 * i * lanes)),
             find_bins(block, values[i], lanes, mask));
  set(block, PLACE_BINS, emit_add_int(emit, position, 4 * count * lanes));
}

/* --- sums -------------------------------------------------------------------------------------------- */

static void add_wide(const StatsBlock *block, int64_t offset, Value floats, int32_t lanes) {
  Emit *emit = block->emit;
  Value before = get(block, wide_type(emit, lanes), offset);
  set(block, offset, emit_fadd(emit, before, wide_from_float(emit, floats, lanes)));
}

static void take_sums(const StatsBlock *block, const Value *values, int32_t count, int32_t lanes, Value mask,
                      Value pivot) {
  Emit *emit = block->emit;
  pivot = emit_splat(emit, pivot, lanes);
  for (int32_t i = 0; i < count; i += CHAIN) {
    Value sum = NULL, squares = NULL;
    for (int32_t k = i; k < count && k < i + CHAIN; k++) {
      Value distance = emit_fsub(emit, values[k], pivot);
      if (mask != NULL) distance = emit_select(emit, mask, distance, emit_float(emit, lanes, 0));
      sum = sum == NULL ? distance : emit_fadd(emit, sum, distance);
      squares = squares == NULL ? emit_fmul(emit, distance, distance) : emit_fma(emit, distance, distance, squares);
    }
    add_wide(block, PLACE_SUM, sum, lanes);
    add_wide(block, PLACE_SQUARES, squares, lanes);
  }
}

static void take_near(const StatsBlock *block, const Value *values, int32_t count, int32_t lanes, Value mask) {
  Emit *emit = block->emit;
  LLVMTypeRef type = vector_of(emit->i32, lanes);
  Value near = get(block, type, PLACE_NEAR), limit = emit_float(emit, lanes, block->range.threshold);
  for (int32_t i = 0; i < count; i++) {
    Value is_near = LLVMBuildFCmp(emit->builder, LLVMRealOLE, values[i], limit, "");
    if (mask != NULL) is_near = emit_and(emit, is_near, mask);
    if (has_masks(emit)) /* one masked addition */
      near = emit_select(emit, is_near, LLVMBuildAdd(emit->builder, near, repeat_int(emit->i32, lanes, 1), ""), near);
    else /* the comparison's result is −1 */
      near = LLVMBuildSub(emit->builder, near, LLVMBuildSExt(emit->builder, is_near, type, ""), "");
  }
  set(block, PLACE_NEAR, near);
}

static Value lanes_below(const StatsBlock *block, Value valid, int32_t lanes) {
  Emit *emit = block->emit;
  if (valid == NULL) return NULL;
  Value numbers[MAX_LANES];
  for (int32_t i = 0; i < lanes; i++) numbers[i] = LLVMConstInt(emit->i32, (unsigned)i, 0);
  Value limit = LLVMBuildTrunc(emit->builder, valid, emit->i32, "");
  return LLVMBuildICmp(emit->builder, LLVMIntSLT, LLVMConstVector(numbers, (unsigned)lanes),
                       splat_int(emit, limit, emit->i32, lanes), "");
}

void stats_block_take(const StatsBlock *block, const Value *values, int32_t count, int32_t lanes, Value valid) {
  Emit *emit = block->emit;
  assert(lanes == 1 || lanes == block->lanes);
  if (lanes == 1) valid = NULL;
  Value mask = lanes_below(block, valid, lanes), before = get(block, emit->i64, PLACE_COUNT);
  Value first = lanes == 1 ? values[0] : LLVMBuildExtractElement(emit->builder, values[0], emit_int(emit, 0), "");
  Value pivot =
      emit_select(emit, emit_equal(emit, before, emit_int(emit, 0)), first, get(block, emit->f32, PLACE_PIVOT));
  set(block, PLACE_PIVOT, pivot);
  Value taken = valid == NULL ? emit_int(emit, (int64_t)count * lanes) : emit_mul_int(emit, valid, count);
  set(block, PLACE_COUNT, emit_add(emit, before, taken));
  take_sums(block, values, count, lanes, mask, pivot);
  take_near(block, values, count, lanes, mask);
  take_bins(block, values, count, lanes, mask);
}

/* --- counting bins ----------------------------------------------------------------------------------- */

static LLVMTypeRef words_type(const StatsBlock *block) { return vector_of(block->emit->i32, block->lanes); }

static Value plane_address(const StatsBlock *block, Value memory, int32_t group, int32_t plane) {
  int64_t offset = PLACE_PLANES + 4 * (int64_t)block->lanes * (group * PLANES + plane);
  return byte_address(block->emit, memory, emit_int(block->emit, offset));
}

static Value ternary_logic(Emit *emit, Value a, Value b, Value c, unsigned table) {
  const char name[] = "llvm.x86.avx512.pternlog.d.512";
  unsigned id = LLVMLookupIntrinsicID(name, sizeof name - 1);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, NULL, 0);
  Value arguments[] = {a, b, c, LLVMConstInt(emit->i32, table, 0)};
  return LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, NULL, 0), function, arguments, 4, "");
}

/* Three bits of one weight: returns the one that stays. */
static Value full_adder(Emit *emit, Value a, Value b, Value c, Value *out_carry) {
  enum { ODD = 0x96, MAJORITY = 0xe8 };
  if (has_masks(emit)) {
    *out_carry = ternary_logic(emit, a, b, c, MAJORITY);
    return ternary_logic(emit, a, b, c, ODD);
  }
  Value differ = LLVMBuildXor(emit->builder, a, b, "");
  *out_carry =
      LLVMBuildOr(emit->builder, LLVMBuildAnd(emit->builder, a, b, ""), LLVMBuildAnd(emit->builder, differ, c, ""), "");
  return LLVMBuildXor(emit->builder, differ, c, "");
}

/* Adds `count` words to the planes, which are variables. */
static void add_words(const StatsBlock *block, Value *words, int32_t count, Value *planes) {
  Emit *emit = block->emit;
  for (int32_t p = 0; p < PLANES && count > 0; p++) {
    Value sum = emit_get(emit, words_type(block), planes[p]);
    int32_t carries = 0, at = 0;
    for (; at + 1 < count; at += 2) {
      Value carry;
      sum = full_adder(emit, sum, words[at], words[at + 1], &carry);
      words[carries++] = carry;
    }
    if (at < count) {
      Value carry = LLVMBuildAnd(emit->builder, sum, words[at], "");
      sum = LLVMBuildXor(emit->builder, sum, words[at], "");
      words[carries++] = carry;
    }
    emit_set(emit, planes[p], sum);
    count = carries;
  }
}

/* 1 << (bin − first), 0 where that is no bit. */
static Value bin_words(const StatsBlock *block, Value bins, int64_t first) {
  Emit *emit = block->emit;
  const int32_t lanes = block->lanes;
  Value bit = first == 0 ? bins : LLVMBuildSub(emit->builder, bins, repeat_int(emit->i32, lanes, first), "");
  Value inside = LLVMBuildICmp(emit->builder, LLVMIntULT, bit, repeat_int(emit->i32, lanes, GROUP_BINS), "");
  Value word = LLVMBuildShl(emit->builder, repeat_int(emit->i32, lanes, 1), bit, "");
  return emit_select(emit, inside, word, LLVMConstNull(words_type(block)));
}

/* The bins of `batches` batches from `bins` on. */
static void count_slice(const StatsBlock *block, Value memory, Value bins, Value batches) {
  Emit *emit = block->emit;
  const int64_t vector_bytes = 4 * (int64_t)block->lanes;
  for (int32_t group = 0; group < block->groups; group++) {
    Value planes[PLANES];
    for (int32_t p = 0; p < PLANES; p++) {
      planes[p] = emit_variable(emit, words_type(block), "plane");
      emit_set(emit, planes[p], load_from(emit, words_type(block), plane_address(block, memory, group, p)));
    }
    EmitLoop batch = emit_loop_begin(emit, emit_int(emit, 0), batches, 1, "batch");
    Value from = byte_address(emit, bins, emit_mul_int(emit, batch.index, BATCH * vector_bytes)), words[BATCH];
    for (int32_t i = 0; i < BATCH; i++) {
      Value at = byte_address(emit, from, emit_int(emit, i * vector_bytes));
      words[i] = bin_words(block, load_from(emit, words_type(block), at), group * GROUP_BINS);
    }
    add_words(block, words, BATCH, planes);
    emit_loop_end(emit, &batch);
    for (int32_t p = 0; p < PLANES; p++)
      store_to(emit, plane_address(block, memory, group, p), emit_get(emit, words_type(block), planes[p]));
  }
}

/* Adds what the planes hold to the histogram. */
static void build_spread(StatsBlock *block) {
  Emit *emit = block->emit;
  LLVMTypeRef lane_bits = LLVMIntTypeInContext(emit->context, (unsigned)block->lanes);
  Value memory;
  block->spread = emit_routine_begin(emit, "spread_counts", 1, 0, &memory);
  for (int32_t group = 0; group < block->groups; group++) {
    int64_t bins = block->attrs->bins + 1 - group * GROUP_BINS;
    EmitLoop bit = emit_loop_count(emit, bins < GROUP_BINS ? bins : GROUP_BINS, 1, "bit");
    Value one = LLVMBuildShl(emit->builder, LLVMConstInt(emit->i32, 1, 0),
                             LLVMBuildTrunc(emit->builder, bit.index, emit->i32, ""), "");
    Value wanted = splat_int(emit, one, emit->i32, block->lanes), total = LLVMConstInt(emit->i32, 0, 0);
    for (int32_t p = 0; p < PLANES; p++) {
      Value plane = load_from(emit, words_type(block), plane_address(block, memory, group, p));
      plane = LLVMBuildAnd(emit->builder, plane, wanted, "");
      Value set_lanes = LLVMBuildICmp(emit->builder, LLVMIntNE, plane, LLVMConstNull(words_type(block)), "");
      Value count = UNARY_INT(emit, "llvm.ctpop", LLVMBuildBitCast(emit->builder, set_lanes, lane_bits, ""));
      count = LLVMBuildZExt(emit->builder, count, emit->i32, "");
      count = LLVMBuildShl(emit->builder, count, LLVMConstInt(emit->i32, (unsigned)p, 0), "");
      total = LLVMBuildAdd(emit->builder, total, count, "");
    }
    add_to_bin(emit, memory, emit_add_int(emit, bit.index, group * GROUP_BINS), total);
    emit_loop_end(emit, &bit);
    for (int32_t p = 0; p < PLANES; p++)
      store_to(emit, plane_address(block, memory, group, p), LLVMConstNull(words_type(block)));
  }
  store_to(emit, byte_address(emit, memory, emit_int(emit, PLACE_BATCHES)), emit_int(emit, 0));
  emit_routine_end(emit, &block->spread);
}

static void build_count(StatsBlock *block) {
  Emit *emit = block->emit;
  const int64_t batch_bytes = (int64_t)BATCH * 4 * block->lanes;
  Value memory;
  block->count = emit_routine_begin(emit, "count_bins", 1, 0, &memory);
  Value held = byte_address(emit, memory, emit_int(emit, PLACE_BATCHES));
  Value waiting = byte_address(emit, memory, emit_int(emit, PLACE_BINS)), bytes = load_from(emit, emit->i64, waiting);
  store_to(emit, waiting, emit_int(emit, 0));
  for (int32_t i = 0; i < BATCH; i++) /* the rest of the last batch falls into no bin */
    store_to(emit, byte_address(emit, memory, emit_add_int(emit, bytes, block->bins_at + i * 4 * block->lanes)),
             repeat_int(emit->i32, block->lanes, NO_BIN));
  Value batches = emit_div_int(emit, emit_add_int(emit, bytes, batch_bytes - 1), batch_bytes);
  EmitLoop slice = emit_loop_begin(emit, emit_int(emit, 0), batches, SLICE_BATCHES, "slice");
  Value count = emit_min(emit, emit_sub(emit, batches, slice.index), emit_int(emit, SLICE_BATCHES));
  Value full = emit_less(emit, emit_int(emit, BATCHES_MAX), emit_add(emit, load_from(emit, emit->i64, held), count));
  EmitIf branch = emit_if(emit, full, "spread");
  emit_routine_call(emit, &block->spread, &memory);
  emit_end_if(emit, &branch);
  store_to(emit, held, emit_add(emit, load_from(emit, emit->i64, held), count));
  Value from = emit_add_int(emit, emit_mul_int(emit, slice.index, batch_bytes), block->bins_at);
  count_slice(block, memory, byte_address(emit, memory, from), count);
  emit_loop_end(emit, &slice);
  emit_routine_end(emit, &block->count);
}

void stats_block_routines(StatsBlock *block) {
  build_spread(block);
  build_count(block);
}

void stats_block_drain(const StatsBlock *block) {
  Emit *emit = block->emit;
  Value memory = block->memory, waiting = get(block, emit->i64, PLACE_BINS);
  Value enough = emit_less(emit, emit_int(emit, DRAIN_VECTORS * 4 * (int64_t)block->lanes - 1), waiting);
  EmitIf branch = emit_if(emit, enough, "count");
  emit_routine_call(emit, &block->count, &memory);
  emit_end_if(emit, &branch);
}

/* --- blocks ------------------------------------------------------------------------------------------ */

/* Powers of two change no digits: (v − 0) · scale is exact. */
static bool exact_in_float(const StatsRange *range) {
  int exponent;
  return range->low == 0 && frexp(range->scale, &exponent) == 0.5 && exponent > -64 && exponent < 64;
}

int64_t stats_block_open(StatsBlock *block, Emit *emit, const Attrs *attrs, int32_t lanes, int64_t vectors) {
  *block = (StatsBlock){.emit = emit, .attrs = attrs, .range = stats_range(attrs), .lanes = lanes};
  const int64_t vector_bytes = 4 * (int64_t)lanes;
  block->narrow = exact_in_float(&block->range);
  block->groups = (int32_t)ceil_div(attrs->bins + 1, GROUP_BINS);
  block->bins_at = PLACE_PLANES + block->groups * PLANES * vector_bytes;
  return block->bins_at + (DRAIN_VECTORS + vectors + BATCH) * vector_bytes;
}

void stats_block_begin(const StatsBlock *block) {
  Emit *emit = block->emit;
  const int64_t vector_bytes = 4 * (int64_t)block->lanes;
  Value zeros = LLVMConstNull(vector_of(emit->i32, block->lanes));
  for (int64_t at = 0; at < PLACE_HISTOGRAM; at += vector_bytes) set(block, at, zeros);
  int64_t bins = round_up(PLACE_HISTOGRAM + 4 * (block->attrs->bins + 1), vector_bytes);
  EmitLoop bin = emit_loop_begin(emit, emit_int(emit, PLACE_HISTOGRAM), emit_int(emit, bins), vector_bytes, "clear");
  store_to(emit, byte_address(emit, block->memory, bin.index), zeros);
  emit_loop_end(emit, &bin);
  EmitLoop plane =
      emit_loop_begin(emit, emit_int(emit, PLACE_PLANES), emit_int(emit, block->bins_at), vector_bytes, "clear");
  store_to(emit, byte_address(emit, block->memory, plane.index), zeros);
  emit_loop_end(emit, &plane);
}

typedef struct Row {
  const StatsBlock *block;
  Value address;
} Row;

static void store_field(const Row *row, int64_t field, Value wide) {
  Emit *emit = row->block->emit;
  emit_store(emit, row->address, emit_int(emit, field), wide_to_float(emit, wide, 1));
}

static void copy_counts(Emit *emit, void *context, int32_t lanes, Value bin) {
  const Row *row = context;
  Value counts = load_from(emit, vector_of(emit->i32, lanes), histogram_address(emit, row->block->memory, bin));
  Value floats = LLVMBuildSIToFP(emit->builder, counts, emit_float_type(emit, lanes), "");
  emit_store(emit, row->address, emit_add_int(emit, bin, STATS_FIELDS), floats);
}

void stats_block_end(const StatsBlock *block, const PlanTensor *output, Value base, Value number) {
  Emit *emit = block->emit;
  const int32_t lanes = block->lanes;
  Value memory = block->memory;
  emit_routine_call(emit, &block->count, &memory);
  emit_routine_call(emit, &block->spread, &memory);
  /* what lies at the upper limit belongs to the last bin */
  Value limit = load_from(emit, emit->i32, histogram_address(emit, memory, emit_int(emit, block->attrs->bins)));
  add_to_bin(emit, memory, emit_int(emit, block->attrs->bins - 1), limit);
  Row row = {block, emit_address(emit, base, emit_mul_int(emit, number, output->shape.dims[2]))};
  Value count = wide_from_int(emit, get(block, emit->i64, PLACE_COUNT));
  Value sum = emit_reduce_add(emit, get(block, wide_type(emit, lanes), PLACE_SUM), lanes);
  Value squares = emit_reduce_add(emit, get(block, wide_type(emit, lanes), PLACE_SQUARES), lanes);
  Value near = UNARY_INT(emit, "llvm.vector.reduce.add", get(block, vector_of(emit->i32, lanes), PLACE_NEAR));
  Value shift = emit_fdiv(emit, sum, count);
  Value mean = emit_fadd(emit, wide_from_float(emit, get(block, emit->f32, PLACE_PIVOT), 1), shift);
  Value rounded = wide_from_float(emit, wide_to_float(emit, mean, 1), 1);
  Value m2 = emit_fsub(emit, squares, emit_fmul(emit, sum, shift));
  m2 = emit_fmax(emit, wide_constant(emit, 1, 0), m2); /* rounding; a NaN stays */
  store_field(&row, STATS_COUNT, count);
  store_field(&row, STATS_MEAN, rounded);
  store_field(&row, STATS_MEAN_REST, emit_fsub(emit, mean, rounded));
  store_field(&row, STATS_M2, m2);
  store_field(&row, STATS_NEAR_ZERO, LLVMBuildSIToFP(emit->builder, near, wide_type(emit, 1), ""));
  emit_vector_loop(emit, block->attrs->bins, lanes, copy_counts, &row);
}
