#include "wide.h"

#include <assert.h>

enum { MAX_LANES = 64 };

LLVMTypeRef wide_type(Emit *emit, int32_t lanes) {
  LLVMTypeRef type = LLVMDoubleTypeInContext(emit->context);
  return lanes == 1 ? type : LLVMVectorType(type, (unsigned)lanes);
}

Value wide_constant(Emit *emit, int32_t lanes, double value) {
  return wide_splat(emit, LLVMConstReal(wide_type(emit, 1), value), lanes);
}

Value wide_splat(Emit *emit, Value scalar, int32_t lanes) {
  if (lanes == 1) return scalar;
  LLVMTypeRef type = wide_type(emit, lanes);
  Value one = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(type), scalar, emit_int(emit, 0), "");
  Value first_lane = LLVMConstNull(LLVMVectorType(emit->i32, (unsigned)lanes));
  return LLVMBuildShuffleVector(emit->builder, one, LLVMGetPoison(type), first_lane, "");
}

Value wide_from_float(Emit *emit, Value value, int32_t lanes) {
  return LLVMBuildFPExt(emit->builder, value, wide_type(emit, lanes), "");
}

Value wide_to_float(Emit *emit, Value value, int32_t lanes) {
  return LLVMBuildFPTrunc(emit->builder, value, emit_float_type(emit, lanes), "");
}

Value wide_from_int(Emit *emit, Value value) { return LLVMBuildSIToFP(emit->builder, value, wide_type(emit, 1), ""); }

Value wide_to_int(Emit *emit, Value value) { return LLVMBuildFPToSI(emit->builder, value, emit->i64, ""); }

/* emit_fmax gives its second operand when either is NaN, so that only a NaN in the first one needs care. */
Value emit_maximum(Emit *emit, Value a, Value b) {
  Value is_nan = LLVMBuildFCmp(emit->builder, LLVMRealUNO, a, a, "");
  return LLVMBuildSelect(emit->builder, is_nan, a, emit_fmax(emit, a, b), "");
}

Value emit_reduce_maximum(Emit *emit, Value vector, int32_t lanes) {
  assert(lanes <= MAX_LANES && (lanes & (lanes - 1)) == 0);
  for (; lanes > 2; lanes /= 2) {
    Value half[2];
    for (int32_t side = 0; side < 2; side++) {
      Value mask[MAX_LANES];
      for (int32_t i = 0; i < lanes / 2; i++) mask[i] = LLVMConstInt(emit->i32, (unsigned)(side * lanes / 2 + i), 0);
      half[side] = LLVMBuildShuffleVector(emit->builder, vector, LLVMGetPoison(LLVMTypeOf(vector)),
                                          LLVMConstVector(mask, (unsigned)(lanes / 2)), "");
    }
    vector = emit_maximum(emit, half[0], half[1]);
  }
  if (lanes == 1) return vector;
  return emit_maximum(emit, LLVMBuildExtractElement(emit->builder, vector, emit_int(emit, 0), ""),
                      LLVMBuildExtractElement(emit->builder, vector, emit_int(emit, 1), ""));
}

/* --- reductions -------------------------------------------------------------------------------------- */

static LLVMTypeRef reduction_type(Emit *emit, const Reduction *reduction, int32_t lanes) {
  return reduction->maximum ? emit_float_type(emit, lanes) : wide_type(emit, lanes);
}

static Value reduction_start(Emit *emit, const Reduction *reduction, int32_t lanes) {
  return reduction->maximum ? emit_float(emit, lanes, -INFINITY) : wide_constant(emit, lanes, 0);
}

Reduction reduction_begin(Emit *emit, bool maximum, int32_t lanes) {
  Reduction reduction = {.maximum = maximum, .lanes = lanes};
  reduction.scalar = emit_variable(emit, reduction_type(emit, &reduction, 1), "total");
  emit_set(emit, reduction.scalar, reduction_start(emit, &reduction, 1));
  if (lanes == 1) return reduction;
  reduction.vector = emit_variable(emit, reduction_type(emit, &reduction, lanes), "partial");
  emit_set(emit, reduction.vector, reduction_start(emit, &reduction, lanes));
  return reduction;
}

void reduction_add(Emit *emit, const Reduction *reduction, Value value, int32_t lanes) {
  assert(lanes == 1 || lanes == reduction->lanes);
  LLVMTypeRef type = reduction_type(emit, reduction, lanes);
  Value variable = lanes == 1 ? reduction->scalar : reduction->vector, before = emit_get(emit, type, variable);
  if (reduction->maximum) {
    emit_set(emit, variable, emit_maximum(emit, value, before));
  } else {
    if (LLVMTypeOf(value) != type) value = wide_from_float(emit, value, lanes);
    emit_set(emit, variable, emit_fadd(emit, before, value));
  }
}

Value reduction_vector(Emit *emit, const Reduction *reduction) {
  Value variable = reduction->lanes == 1 ? reduction->scalar : reduction->vector;
  return emit_get(emit, reduction_type(emit, reduction, reduction->lanes), variable);
}

Value reduction_end(Emit *emit, const Reduction *reduction) {
  Value scalar = emit_get(emit, reduction_type(emit, reduction, 1), reduction->scalar);
  if (reduction->lanes == 1) return scalar;
  Value vector = reduction_vector(emit, reduction);
  if (reduction->maximum) return emit_maximum(emit, emit_reduce_maximum(emit, vector, reduction->lanes), scalar);
  return emit_fadd(emit, emit_reduce_add(emit, vector, reduction->lanes), scalar);
}

typedef struct Run {
  const Reduction *reduction;
  Value base, offset;
} Run;

static void add_lanes(Emit *emit, void *context, int32_t lanes, Value index) {
  const Run *run = context;
  reduction_add(emit, run->reduction, emit_load(emit, run->base, emit_add(emit, run->offset, index), lanes), lanes);
}

void reduction_add_run(Emit *emit, const Reduction *reduction, Value base, Value offset, int64_t count) {
  Run run = {reduction, base, offset};
  emit_vector_loop(emit, count, reduction->lanes, add_lanes, &run);
}
