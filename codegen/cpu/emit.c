#include "emit.h"

#include <assert.h>
#include <string.h>

#include "base/text.h"

enum { FLOAT_BYTES = 4, INT64_BYTES = 8 };

/* --- integers ---------------------------------------------------------------------------------------- */

/* LLVM folds operations on constants as they are built; the identities below keep index arithmetic with constant
 * strides free of additions of 0 and multiplications by 1. */
static bool is_constant(Value value, int64_t *out_value) {
  if (LLVMIsAConstantInt(value) == NULL) return false;
  *out_value = LLVMConstIntGetSExtValue(value);
  return true;
}

Value emit_int(Emit *emit, int64_t value) { return LLVMConstInt(emit->i64, (unsigned long long)value, 1); }

Value emit_add(Emit *emit, Value a, Value b) {
  int64_t constant;
  if (is_constant(a, &constant) && constant == 0) return b;
  if (is_constant(b, &constant) && constant == 0) return a;
  return LLVMBuildNSWAdd(emit->builder, a, b, "");
}

Value emit_add_int(Emit *emit, Value a, int64_t b) { return emit_add(emit, a, emit_int(emit, b)); }

Value emit_sub(Emit *emit, Value a, Value b) {
  int64_t constant;
  if (is_constant(b, &constant) && constant == 0) return a;
  return LLVMBuildNSWSub(emit->builder, a, b, "");
}

Value emit_mul_int(Emit *emit, Value a, int64_t b) {
  if (b == 0) return emit_int(emit, 0);
  if (b == 1) return a;
  return LLVMBuildNSWMul(emit->builder, a, emit_int(emit, b), "");
}

Value emit_div_int(Emit *emit, Value a, int64_t b) {
  assert(b > 0);
  return b == 1 ? a : LLVMBuildUDiv(emit->builder, a, emit_int(emit, b), "");
}

Value emit_mod_int(Emit *emit, Value a, int64_t b) {
  assert(b > 0);
  return b == 1 ? emit_int(emit, 0) : LLVMBuildURem(emit->builder, a, emit_int(emit, b), "");
}

Value emit_less(Emit *emit, Value a, Value b) { return LLVMBuildICmp(emit->builder, LLVMIntSLT, a, b, ""); }
Value emit_equal(Emit *emit, Value a, Value b) { return LLVMBuildICmp(emit->builder, LLVMIntEQ, a, b, ""); }
Value emit_and(Emit *emit, Value a, Value b) { return LLVMBuildAnd(emit->builder, a, b, ""); }

Value emit_select(Emit *emit, Value condition, Value yes, Value no) {
  return LLVMBuildSelect(emit->builder, condition, yes, no, "");
}

Value emit_min(Emit *emit, Value a, Value b) { return emit_select(emit, emit_less(emit, a, b), a, b); }
Value emit_max(Emit *emit, Value a, Value b) { return emit_select(emit, emit_less(emit, a, b), b, a); }

void emit_split(Emit *emit, Value index, int count, const int64_t *extents, Value *out_digits) {
  for (int digit = count - 1; digit > 0; digit--) {
    out_digits[digit] = emit_mod_int(emit, index, extents[digit]);
    index = emit_div_int(emit, index, extents[digit]);
  }
  out_digits[0] = index;
}

/* --- control ----------------------------------------------------------------------------------------- */

/* The same number. LLVM replaces the call by its first argument when it selects instructions; scalar evolution, on
 * which the passes for loops rest, does not look through it. */
static Value opaque_int(Emit *emit, Value number) {
  const char name[] = "llvm.expect";
  unsigned id = LLVMLookupIntrinsicID(name, sizeof name - 1);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &emit->i64, 1);
  LLVMTypeRef type = LLVMIntrinsicGetType(emit->context, id, &emit->i64, 1);
  Value arguments[] = {number, emit_int(emit, 0)};
  return LLVMBuildCall2(emit->builder, type, function, arguments, 2, "");
}

static LLVMBasicBlockRef append_block(Emit *emit, const char *name, const char *suffix) {
  return LLVMAppendBasicBlockInContext(emit->context, emit->function, arena_format(emit->arena, "%s%s", name, suffix));
}

/* The index is a phi of the body's first block. A loop of one trip is no loop at all: body is NULL and the index the
 * constant it has. */
static EmitLoop loop_open(Emit *emit, Value begin, Value end, int64_t step, const char *name, bool at_least_once) {
  LLVMBasicBlockRef entered_from = LLVMGetInsertBlock(emit->builder);
  EmitLoop loop = {.end = end, .step = step};
  loop.body = append_block(emit, name, "");
  loop.exit = append_block(emit, name, ".end");
  if (at_least_once)
    LLVMBuildBr(emit->builder, loop.body);
  else
    LLVMBuildCondBr(emit->builder, emit_less(emit, begin, end), loop.body, loop.exit);
  LLVMPositionBuilderAtEnd(emit->builder, loop.body);
  loop.index = LLVMBuildPhi(emit->builder, emit->i64, name);
  LLVMAddIncoming(loop.index, &begin, &entered_from, 1);
  return loop;
}

EmitLoop emit_loop_begin(Emit *emit, Value begin, Value end, int64_t step, const char *name) {
  assert(step > 0);
  int64_t first, last;
  bool counted = is_constant(begin, &first) && is_constant(end, &last) && first < last;
  if (counted && last - first <= step) return (EmitLoop){.index = begin, .end = end, .step = step};
  return loop_open(emit, begin, end, step, name, counted);
}

EmitLoop emit_loop_count(Emit *emit, int64_t count, int64_t step, const char *name) {
  assert(count > 0);
  return emit_loop_begin(emit, emit_int(emit, 0), emit_int(emit, count), step, name);
}

EmitLoop emit_loop_outer(Emit *emit, Value begin, Value end, int64_t step, const char *name) {
  EmitLoop loop = emit_loop_begin(emit, begin, end, step, name);
  loop.hidden = true;
  return loop;
}

void emit_loop_end(Emit *emit, EmitLoop *loop) {
  if (loop->body == NULL) return;
  Value next = emit_add_int(emit, loop->index, loop->step);
  if (loop->hidden) next = opaque_int(emit, next);
  LLVMBasicBlockRef last = LLVMGetInsertBlock(emit->builder);
  LLVMAddIncoming(loop->index, &next, &last, 1);
  LLVMBuildCondBr(emit->builder, emit_less(emit, next, loop->end), loop->body, loop->exit);
  /* keeps blocks in the order of the source, for readers of dumps */
  LLVMMoveBasicBlockAfter(loop->exit, last);
  LLVMPositionBuilderAtEnd(emit->builder, loop->exit);
}

EmitIf emit_if(Emit *emit, Value condition, const char *name) {
  LLVMBasicBlockRef then = append_block(emit, name, "");
  EmitIf branch = {append_block(emit, name, ".else"), append_block(emit, name, ".end")};
  LLVMBuildCondBr(emit->builder, condition, then, branch.otherwise);
  LLVMPositionBuilderAtEnd(emit->builder, then);
  return branch;
}

void emit_else(Emit *emit, EmitIf *branch) {
  assert(branch->otherwise != NULL);
  LLVMBuildBr(emit->builder, branch->done);
  LLVMMoveBasicBlockAfter(branch->otherwise, LLVMGetInsertBlock(emit->builder));
  LLVMPositionBuilderAtEnd(emit->builder, branch->otherwise);
  branch->otherwise = NULL;
}

void emit_end_if(Emit *emit, EmitIf *branch) {
  if (branch->otherwise != NULL) emit_else(emit, branch);
  LLVMBuildBr(emit->builder, branch->done);
  LLVMMoveBasicBlockAfter(branch->done, LLVMGetInsertBlock(emit->builder));
  LLVMPositionBuilderAtEnd(emit->builder, branch->done);
}

void emit_vector_loop(Emit *emit, int64_t count, int32_t lanes, EmitVectorBody body, void *context) {
  if (lanes <= 0) lanes = emit->target->vector_lanes;
  int64_t whole = count - count % lanes;
  if (whole > 0) {
    EmitLoop loop = emit_loop_count(emit, whole, lanes, "vector");
    body(emit, context, lanes, loop.index);
    emit_loop_end(emit, &loop);
  }
  if (whole < count) {
    EmitLoop loop = emit_loop_begin(emit, emit_int(emit, whole), emit_int(emit, count), 1, "rest");
    body(emit, context, 1, loop.index);
    emit_loop_end(emit, &loop);
  }
}

/* --- variables --------------------------------------------------------------------------------------- */

Value emit_variable(Emit *emit, LLVMTypeRef type, const char *name) {
  LLVMBasicBlockRef current = LLVMGetInsertBlock(emit->builder);
  LLVMBasicBlockRef entry = LLVMGetEntryBasicBlock(emit->function);
  Value first = LLVMGetFirstInstruction(entry);
  if (first != NULL) {
    LLVMPositionBuilderBefore(emit->builder, first);
  } else {
    LLVMPositionBuilderAtEnd(emit->builder, entry);
  }
  Value variable = LLVMBuildAlloca(emit->builder, type, name);
  LLVMPositionBuilderAtEnd(emit->builder, current);
  return variable;
}

Value emit_get(Emit *emit, LLVMTypeRef type, Value variable) {
  return LLVMBuildLoad2(emit->builder, type, variable, "");
}

void emit_set(Emit *emit, Value variable, Value value) { LLVMBuildStore(emit->builder, value, variable); }

/* --- floats ------------------------------------------------------------------------------------------ */

LLVMTypeRef emit_float_type(Emit *emit, int32_t lanes) {
  return lanes == 1 ? emit->f32 : LLVMVectorType(emit->f32, (unsigned)lanes);
}

static Value repeat_constant(Value scalar, int32_t lanes) {
  enum { MAX_LANES = 64 };
  assert(lanes <= MAX_LANES);
  if (lanes == 1) return scalar;
  Value values[MAX_LANES];
  for (int32_t lane = 0; lane < lanes; lane++) values[lane] = scalar;
  return LLVMConstVector(values, (unsigned)lanes);
}

Value emit_float(Emit *emit, int32_t lanes, double value) {
  return repeat_constant(LLVMConstReal(emit->f32, (double)(float)value), lanes);
}

Value emit_splat(Emit *emit, Value scalar, int32_t lanes) {
  if (lanes == 1) return scalar;
  if (LLVMIsConstant(scalar)) return repeat_constant(scalar, lanes);
  LLVMTypeRef type = emit_float_type(emit, lanes);
  Value one = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(type), scalar, emit_int(emit, 0), "");
  Value first_lane = LLVMConstNull(LLVMVectorType(emit->i32, (unsigned)lanes));
  return LLVMBuildShuffleVector(emit->builder, one, LLVMGetPoison(type), first_lane, "");
}

Value emit_fadd(Emit *emit, Value a, Value b) { return LLVMBuildFAdd(emit->builder, a, b, ""); }
Value emit_fsub(Emit *emit, Value a, Value b) { return LLVMBuildFSub(emit->builder, a, b, ""); }
Value emit_fmul(Emit *emit, Value a, Value b) { return LLVMBuildFMul(emit->builder, a, b, ""); }
Value emit_fdiv(Emit *emit, Value a, Value b) { return LLVMBuildFDiv(emit->builder, a, b, ""); }

Value emit_fma(Emit *emit, Value a, Value b, Value c) {
  /* without the instruction llvm.fma would be a call of libm's fmaf */
  if (!emit->target->fma) return emit_fadd(emit, emit_fmul(emit, a, b), c);
  LLVMTypeRef type = LLVMTypeOf(a);
  unsigned id = LLVMLookupIntrinsicID("llvm.fma", sizeof "llvm.fma" - 1);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &type, 1);
  Value arguments[] = {a, b, c};
  return LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, &type, 1), function, arguments, 3, "");
}

/* Both match what maxps and minps do with NaN and zeros, so that each is one instruction. */
Value emit_fmax(Emit *emit, Value a, Value b) {
  return LLVMBuildSelect(emit->builder, LLVMBuildFCmp(emit->builder, LLVMRealOGT, a, b, ""), a, b, "");
}

Value emit_fmin(Emit *emit, Value a, Value b) {
  return LLVMBuildSelect(emit->builder, LLVMBuildFCmp(emit->builder, LLVMRealOLT, a, b, ""), a, b, "");
}

Value emit_fselect_less(Emit *emit, Value a, Value b, Value yes, Value no) {
  return LLVMBuildSelect(emit->builder, LLVMBuildFCmp(emit->builder, LLVMRealOLT, a, b, ""), yes, no, "");
}

/* Lanes [first, first + count) of a vector. */
static Value vector_part(Emit *emit, Value vector, int32_t first, int32_t count) {
  enum { MAX_PART = 64 };
  assert(count <= MAX_PART);
  if (count == 1) return LLVMBuildExtractElement(emit->builder, vector, emit_int(emit, first), "");
  Value mask[MAX_PART];
  for (int32_t lane = 0; lane < count; lane++) mask[lane] = LLVMConstInt(emit->i32, (unsigned)(first + lane), 0);
  return LLVMBuildShuffleVector(emit->builder, vector, LLVMGetPoison(LLVMTypeOf(vector)),
                                LLVMConstVector(mask, (unsigned)count), "");
}

static Value reduce(Emit *emit, Value vector, int32_t lanes, Value (*combine)(Emit *, Value, Value)) {
  assert((lanes & (lanes - 1)) == 0);
  for (; lanes > 1; lanes /= 2)
    vector = combine(emit, vector_part(emit, vector, 0, lanes / 2), vector_part(emit, vector, lanes / 2, lanes / 2));
  return vector;
}

Value emit_reduce_add(Emit *emit, Value vector, int32_t lanes) { return reduce(emit, vector, lanes, emit_fadd); }
Value emit_reduce_max(Emit *emit, Value vector, int32_t lanes) { return reduce(emit, vector, lanes, emit_fmax); }

/* --- memory ------------------------------------------------------------------------------------------ */

Value emit_address(Emit *emit, Value base, Value offset) {
  int64_t constant;
  if (is_constant(offset, &constant) && constant == 0) return base;
  return LLVMBuildGEP2(emit->builder, emit->f32, base, &offset, 1, "");
}

Value emit_load(Emit *emit, Value base, Value offset, int32_t lanes) {
  Value load = LLVMBuildLoad2(emit->builder, emit_float_type(emit, lanes), emit_address(emit, base, offset), "");
  LLVMSetAlignment(load, FLOAT_BYTES);
  return load;
}

void emit_store(Emit *emit, Value base, Value offset, Value value) {
  LLVMSetAlignment(LLVMBuildStore(emit->builder, value, emit_address(emit, base, offset)), FLOAT_BYTES);
}

Value emit_load_strided(Emit *emit, Value base, Value offset, int64_t stride, int32_t lanes) {
  if (lanes == 1 || stride == 1) return emit_load(emit, base, offset, lanes);
  if (stride == 0) return emit_splat(emit, emit_load(emit, base, offset, 1), lanes);
  Value vector = LLVMGetPoison(emit_float_type(emit, lanes));
  for (int32_t lane = 0; lane < lanes; lane++) {
    Value element = emit_load(emit, base, emit_add_int(emit, offset, lane * stride), 1);
    vector = LLVMBuildInsertElement(emit->builder, vector, element, emit_int(emit, lane), "");
  }
  return vector;
}

void emit_store_strided(Emit *emit, Value base, Value offset, int64_t stride, Value value, int32_t lanes) {
  if (lanes == 1 || stride == 1) {
    emit_store(emit, base, offset, value);
    return;
  }
  for (int32_t lane = 0; lane < lanes; lane++) {
    Value element = LLVMBuildExtractElement(emit->builder, value, emit_int(emit, lane), "");
    emit_store(emit, base, emit_add_int(emit, offset, lane * stride), element);
  }
}

/* Register class of vectors in inline assembly; "x" would leave out the upper half of AVX-512's. */
static const char *vector_constraint(const Target *target) {
  if (strncmp(target->triple, "x86_64", 6) != 0) return "w";
  return target->vector_registers > 16 ? "v" : "x";
}

/* An empty piece of assembly, in whose result no pass of LLVM sees the argument, not even instruction selection. */
Value emit_opaque(Emit *emit, Value value) {
  LLVMTypeRef type = LLVMTypeOf(value), signature = LLVMFunctionType(type, &type, 1, 0);
  const bool vector = LLVMGetTypeKind(type) == LLVMVectorTypeKind;
  const char *constraints = arena_format(emit->arena, "=%s,0", vector ? vector_constraint(emit->target) : "r");
  Value same = LLVMGetInlineAsm(signature, "", 0, constraints, strlen(constraints), 0, 0, LLVMInlineAsmDialectATT, 0);
  return LLVMBuildCall2(emit->builder, signature, same, &value, 1, "");
}

/* An empty piece of assembly that takes all values, gives them back and may change memory. Sums that do not fit the
 * registers are spilled anyway, and assembly cannot take them. Without fused multiply-adds nothing was won by it.
 *
 * Assembly of many operands takes LLVM long. Where some registers are left, the last sums are enough: loads stay in
 * their step, and multiply-adds that LLVM puts off find a place. */
void emit_step(Emit *emit, int32_t lanes, const Value *variables, size_t count) {
  enum { LAST = 2, LEFT = 6 };
  const Target *target = emit->target;
  const size_t registers = (size_t)target->vector_registers;
  if (count == 0 || count >= registers || lanes > target->vector_lanes || !target->fma) return;
  if (target->broadcast_operand && count > LAST && count + LEFT <= registers) variables += count - LAST, count = LAST;
  LLVMTypeRef type = emit_float_type(emit, lanes);
  Value *values = arena_array(emit->arena, count, Value);
  LLVMTypeRef *types = arena_array(emit->arena, count, LLVMTypeRef);
  Text constraints;
  text_init(&constraints, emit->arena);
  for (size_t i = 0; i < count; i++) {
    types[i] = type;
    values[i] = emit_get(emit, type, variables[i]);
    text_format(&constraints, "=%s,", vector_constraint(target));
  }
  for (size_t i = 0; i < count; i++) text_format(&constraints, "%zu,", i);
  text_add(&constraints, "~{memory}");
  LLVMTypeRef result = count == 1 ? type : LLVMStructTypeInContext(emit->context, types, (unsigned)count, 0);
  LLVMTypeRef signature = LLVMFunctionType(result, types, (unsigned)count, 0);
  Value nothing =
      LLVMGetInlineAsm(signature, "", 0, constraints.data, constraints.size, 1, 0, LLVMInlineAsmDialectATT, 0);
  Value same = LLVMBuildCall2(emit->builder, signature, nothing, values, (unsigned)count, "");
  for (size_t i = 0; i < count; i++)
    emit_set(emit, variables[i], count == 1 ? same : LLVMBuildExtractValue(emit->builder, same, (unsigned)i, ""));
}

void emit_keep(Emit *emit, int32_t lanes, Value broadcast) {
  const Target *target = emit->target;
  if (lanes > target->vector_lanes || !target->fma || target->broadcast_operand) return;
  const char *constraint = vector_constraint(target);
  LLVMTypeRef type = LLVMTypeOf(broadcast), signature = LLVMFunctionType(emit->void_type, &type, 1, 0);
  Value nothing = LLVMGetInlineAsm(signature, "", 0, constraint, strlen(constraint), 1, 0, LLVMInlineAsmDialectATT, 0);
  LLVMBuildCall2(emit->builder, signature, nothing, &broadcast, 1, "");
}

void emit_prefetch_line(Emit *emit, Value base, Value offset, bool first_level) {
  enum { READ = 0, FIRST_LEVEL = 3, SECOND_LEVEL = 2, DATA = 1 }; /* arguments of llvm.prefetch */
  unsigned id = LLVMLookupIntrinsicID("llvm.prefetch", sizeof "llvm.prefetch" - 1);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &emit->pointer, 1);
  Value arguments[] = {emit_address(emit, base, offset), LLVMConstInt(emit->i32, READ, 0),
                       LLVMConstInt(emit->i32, first_level ? FIRST_LEVEL : SECOND_LEVEL, 0),
                       LLVMConstInt(emit->i32, DATA, 0)};
  LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, &emit->pointer, 1), function, arguments, 4, "");
}

static Value address_i64(Emit *emit, Value base, Value offset) {
  return LLVMBuildGEP2(emit->builder, emit->i64, base, &offset, 1, "");
}

Value emit_load_i64(Emit *emit, Value base, Value offset) {
  Value load = LLVMBuildLoad2(emit->builder, emit->i64, address_i64(emit, base, offset), "");
  LLVMSetAlignment(load, INT64_BYTES);
  return load;
}

void emit_store_i64(Emit *emit, Value base, Value offset, Value value) {
  LLVMSetAlignment(LLVMBuildStore(emit->builder, value, address_i64(emit, base, offset)), INT64_BYTES);
}
