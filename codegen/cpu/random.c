/* Dropout. The random words are those of base/philox.c, as vectors: Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011. */
#include "move.h"
#include "runs.h"

enum { ROUNDS = 10 };

/* <lanes x type> of one number, or the number itself. */
static Value repeat(Emit *emit, LLVMTypeRef type, Value number, int32_t lanes) {
  if (lanes == 1) return number;
  LLVMTypeRef vector = LLVMVectorType(type, (unsigned)lanes);
  Value one = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(vector), number, emit_int(emit, 0), "");
  Value first_lane = LLVMConstNull(LLVMVectorType(emit->i32, (unsigned)lanes));
  return LLVMBuildShuffleVector(emit->builder, one, LLVMGetPoison(vector), first_lane, "");
}

static Value word(Emit *emit, uint32_t number, int32_t lanes) {
  return repeat(emit, emit->i32, LLVMConstInt(emit->i32, number, 0), lanes);
}

static Value narrow(Emit *emit, Value wide, bool high, int32_t lanes) {
  LLVMTypeRef type = lanes == 1 ? emit->i32 : LLVMVectorType(emit->i32, (unsigned)lanes);
  if (high) wide = LLVMBuildLShr(emit->builder, wide, repeat(emit, emit->i64, emit_int(emit, 32), lanes), "");
  return LLVMBuildTrunc(emit->builder, wide, type, "");
}

/* counter · factor as 64 bits */
static Value product(Emit *emit, Value counter, uint32_t factor, int32_t lanes) {
  LLVMTypeRef type = lanes == 1 ? emit->i64 : LLVMVectorType(emit->i64, (unsigned)lanes);
  Value wide = LLVMBuildZExt(emit->builder, counter, type, "");
  return LLVMBuildMul(emit->builder, wide, repeat(emit, emit->i64, emit_int(emit, factor), lanes), "");
}

/* Word 0 of the counters' blocks. `key` holds scalars. */
static Value philox_word(Emit *emit, Value counter[4], Value key[2], int32_t lanes) {
  Value c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < ROUNDS; round++) {
    Value a = product(emit, c0, UINT32_C(0xD2511F53), lanes), b = product(emit, c2, UINT32_C(0xCD9E8D57), lanes);
    Value high_a = narrow(emit, a, true, lanes), high_b = narrow(emit, b, true, lanes);
    c0 = LLVMBuildXor(emit->builder, LLVMBuildXor(emit->builder, high_b, c1, ""), repeat(emit, emit->i32, k0, lanes),
                      "");
    c2 = LLVMBuildXor(emit->builder, LLVMBuildXor(emit->builder, high_a, c3, ""), repeat(emit, emit->i32, k1, lanes),
                      "");
    c1 = narrow(emit, b, false, lanes);
    c3 = narrow(emit, a, false, lanes);
    k0 = LLVMBuildAdd(emit->builder, k0, word(emit, UINT32_C(0x9E3779B9), 1), "");
    k1 = LLVMBuildAdd(emit->builder, k1, word(emit, UINT32_C(0xBB67AE85), 1), "");
  }
  return c0;
}

typedef struct Dropout {
  const PlanKernel *kernel;
  Value key[2], seed_high; /* i32 */
  Value row;               /* row-major position of the row's first element */
  Value *index;
  int32_t dim; /* of the row; -1: a scalar */
} Dropout;

/* Row-major positions of the lanes. */
static Value positions(Emit *emit, Value first, int32_t lanes) {
  if (lanes == 1) return first;
  Value *steps = arena_array(emit->arena, (size_t)lanes, Value);
  for (int32_t i = 0; i < lanes; i++) steps[i] = emit_int(emit, i);
  return LLVMBuildAdd(emit->builder, repeat(emit, emit->i64, first, lanes), LLVMConstVector(steps, (unsigned)lanes),
                      "");
}

static void drop_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  const Dropout *dropout = context;
  const PlanKernel *kernel = dropout->kernel;
  const double p = kernel->attrs.p;
  if (dropout->dim >= 0) dropout->index[dropout->dim] = at;
  Value position = positions(emit, emit_add(emit, dropout->row, at), lanes);
  Value counter[4] = {narrow(emit, position, false, lanes), narrow(emit, position, true, lanes),
                      word(emit, (uint32_t)kernel->attrs.stream, lanes),
                      repeat(emit, emit->i32, dropout->seed_high, lanes)};
  Value key[2] = {dropout->key[0], dropout->key[1]}, zero = emit_float(emit, lanes, 0);
  const uint64_t threshold = dropout_threshold(p);
  Value value = zero;
  if (threshold <= UINT32_MAX) {
    Value random = philox_word(emit, counter, key, lanes);
    Value kept = LLVMBuildICmp(emit->builder, LLVMIntUGE, random, word(emit, (uint32_t)threshold, lanes), "kept");
    value = emit_load(emit, emit->inputs[0], emit_offset(emit, &kernel->inputs[0], dropout->index), lanes);
    value = emit_select(emit, kept, emit_fmul(emit, value, emit_float(emit, lanes, 1 / (1 - p))), zero);
  }
  value = emit_epilogue(emit, value, dropout->index, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, dropout->index), value);
}

static Value half_of(Emit *emit, Value value, bool high) { return narrow(emit, value, high, 1); }

/* Inference: x. Training: an item is a row along the last dimension. */
bool cpu_dropout(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  if (kernel->op_input_count == 1) return cpu_identity(emit, kernel, out_work, diag);
  const Shape *shape = &kernel->output.shape;
  const int32_t last = shape->rank - 1;
  if (kernel->output.layout.kind != LAYOUT_PLAIN || kernel->inputs[0].layout.kind != LAYOUT_PLAIN) {
    diag_error(diag, kernel->location, "'%s': dropout in training takes plain values only", kernel->name);
    return false;
  }
  bool skipped[SHAPE_MAX_RANK] = {false};
  Value index[SHAPE_MAX_RANK] = {NULL};
  Dropout dropout = {.kernel = kernel, .index = index, .dim = -1};
  if (last >= 0 && shape->dims[last] != DIM_BATCH) skipped[last] = true, dropout.dim = last;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, shape, skipped, item.index, index);
  Value seed = emit_load_i64(emit, emit->inputs[1], emit_int(emit, 0));
  Value step = emit_load_i64(emit, emit->inputs[1], emit_int(emit, 1));
  dropout.key[0] = half_of(emit, seed, false), dropout.key[1] = half_of(emit, step, false);
  dropout.seed_high = half_of(emit, seed, true);
  const int64_t length = dropout.dim >= 0 ? shape->dims[last] : 1;
  dropout.row = emit_mul_int(emit, item.index, length);
  emit_vector_loop(emit, length, emit->target->vector_lanes, drop_lanes, &dropout);
  emit_loop_end(emit, &item);
  return true;
}
