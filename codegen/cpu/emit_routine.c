/* Functions beside the kernel; see emit.h. The outermost ones are modules of their own, which the driver translates
 * once for all kernels of a program: modules that do the same have the same name. */
#include <assert.h>
#include <string.h>

#include <llvm-c/BitWriter.h>

#include "emit.h"

enum { ROUTINE_MAX_ARGUMENTS = 12, ROUTINE_MAX_ATTRIBUTES = 32 };

/* --- operands ---------------------------------------------------------------------------------------- */

void emit_load_operands(Emit *emit) {
  const PlanKernel *kernel = emit->kernel;
  const int32_t inputs = kernel->input_count, count = 1 + inputs + kernel->reduction_count;
  Value *operands = arena_array(emit->arena, (size_t)count, Value);
  for (int32_t i = 0; i < count; i++) {
    const char *name = i == 0        ? "output"
                       : i <= inputs ? arena_format(emit->arena, "input%d", i - 1)
                                     : arena_format(emit->arena, "reduction%d", i - 1 - inputs);
    Value number = emit_int(emit, i);
    Value place = LLVMBuildGEP2(emit->builder, emit->pointer, emit->operands, &number, 1, "");
    operands[i] = LLVMBuildLoad2(emit->builder, emit->pointer, place, name);
  }
  emit->output = operands[0];
  emit->inputs = operands + 1;
  emit->reductions = emit->inputs + inputs;
}

/* So that a part does not depend on how many operands it does not use. */
static void remove_unused(Emit *emit) {
  const int32_t count = 1 + emit->kernel->input_count + emit->kernel->reduction_count;
  const Value *operands = emit->inputs - 1;
  for (int32_t i = 0; i < count; i++) {
    if (LLVMGetFirstUse(operands[i]) != NULL) continue;
    Value place = LLVMGetOperand(operands[i], 0);
    LLVMInstructionEraseFromParent(operands[i]);
    if (LLVMIsAInstruction(place) != NULL) LLVMInstructionEraseFromParent(place);
  }
}

/* --- routines ---------------------------------------------------------------------------------------- */

static LLVMTypeRef routine_type(Emit *emit, unsigned pointers, unsigned integers) {
  LLVMTypeRef types[ROUTINE_MAX_ARGUMENTS];
  assert(pointers + integers <= ROUTINE_MAX_ARGUMENTS);
  for (unsigned i = 0; i < pointers + integers; i++) types[i] = i < pointers ? emit->pointer : emit->i64;
  return LLVMFunctionType(emit->void_type, types, pointers + integers, 0);
}

static void dispose_module(void *module) { LLVMDisposeModule(module); }

static LLVMModuleRef create_module(Emit *emit) {
  LLVMModuleRef module = LLVMModuleCreateWithNameInContext("routine", emit->context);
  arena_defer(emit->arena, dispose_module, module);
  LLVMSetTarget(module, LLVMGetTarget(emit->kernel_module));
  LLVMSetDataLayout(module, LLVMGetDataLayoutStr(emit->kernel_module));
  return module;
}

/* The kernel's instruction set, tuning and stack rules. */
static void copy_attributes(Value from, Value to) {
  const LLVMAttributeIndex whole = (LLVMAttributeIndex)LLVMAttributeFunctionIndex;
  LLVMAttributeRef attributes[ROUTINE_MAX_ATTRIBUTES];
  unsigned count = LLVMGetAttributeCountAtIndex(from, whole);
  assert(count <= ROUTINE_MAX_ATTRIBUTES);
  LLVMGetAttributesAtIndex(from, whole, attributes);
  for (unsigned i = 0; i < count; i++) LLVMAddAttributeAtIndex(to, whole, attributes[i]);
}

EmitRoutine emit_routine_begin(Emit *emit, const char *name, unsigned pointers, unsigned integers,
                               Value *out_arguments) {
  const bool outermost = emit->module == emit->kernel_module;
  EmitRoutine routine = {
      .caller = emit->function,
      .type = routine_type(emit, pointers, integers),
      .caller_module = outermost ? emit->module : NULL,
      .call_site = LLVMGetInsertBlock(emit->builder),
      .operands = emit->operands,
      .output = emit->output,
      .inputs = emit->inputs,
      .reductions = emit->reductions,
      .scratch = emit->scratch,
  };
  if (outermost) emit->module = create_module(emit);
  routine.function = LLVMAddFunction(emit->module, name, routine.type);
  if (outermost)
    LLVMSetVisibility(routine.function, LLVMHiddenVisibility);
  else
    LLVMSetLinkage(routine.function, LLVMInternalLinkage);
  copy_attributes(emit->function, routine.function);
  for (unsigned i = 0; i < pointers + integers; i++) out_arguments[i] = LLVMGetParam(routine.function, i);
  emit->function = routine.function;
  LLVMPositionBuilderAtEnd(emit->builder, LLVMAppendBasicBlockInContext(emit->context, routine.function, "entry"));
  return routine;
}

EmitRoutine emit_part_begin(Emit *emit, const char *name, unsigned integers, Value *out_arguments) {
  Value arguments[ROUTINE_MAX_ARGUMENTS];
  EmitRoutine routine = emit_routine_begin(emit, name, 2, integers, arguments);
  routine.part = true;
  emit->operands = arguments[0];
  emit->scratch = arguments[1];
  emit_load_operands(emit);
  for (unsigned i = 0; i < integers; i++) out_arguments[i] = arguments[2 + i];
  return routine;
}

/* FNV-1a of the module, in which the routine has no more than its short name so far. A program has some hundred routines
 * at most, too few for two of them to meet in 64 bits. */
static uint64_t module_hash(LLVMModuleRef module) {
  LLVMMemoryBufferRef buffer = LLVMWriteBitcodeToMemoryBuffer(module);
  const unsigned char *bytes = (const unsigned char *)LLVMGetBufferStart(buffer);
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < LLVMGetBufferSize(buffer); i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  LLVMDisposeMemoryBuffer(buffer);
  return hash;
}

static void complete_module(Emit *emit, Value function) {
  RoutineModule *done = arena_new(emit->arena, RoutineModule);
  const char *name = arena_format(emit->arena, "%s_%s_%016llx", emit->symbol, LLVMGetValueName(function),
                                  (unsigned long long)module_hash(emit->module));
  LLVMSetValueName2(function, name, strlen(name));
  LLVMSetModuleIdentifier(emit->module, name, strlen(name));
  LLVMSetSourceFileName(emit->module, name, strlen(name));
  *done = (RoutineModule){emit->module, name, emit->routines};
  emit->routines = done;
}

void emit_routine_end(Emit *emit, const EmitRoutine *routine) {
  LLVMBuildRetVoid(emit->builder);
  if (routine->part) remove_unused(emit);
  if (routine->caller_module != NULL) {
    complete_module(emit, routine->function);
    emit->module = routine->caller_module;
  }
  emit->function = routine->caller;
  emit->output = routine->output;
  emit->inputs = routine->inputs;
  emit->reductions = routine->reductions;
  emit->scratch = routine->scratch;
  emit->operands = routine->operands;
  LLVMPositionBuilderAtEnd(emit->builder, routine->call_site);
}

/* The routine as the module at hand knows it. */
static Value routine_function(Emit *emit, const EmitRoutine *routine) {
  size_t length;
  const char *name = LLVMGetValueName2(routine->function, &length);
  Value function = LLVMGetNamedFunction(emit->module, name);
  if (function != NULL) return function;
  function = LLVMAddFunction(emit->module, name, routine->type);
  LLVMSetVisibility(function, LLVMHiddenVisibility);
  return function;
}

void emit_routine_call(Emit *emit, const EmitRoutine *routine, const Value *arguments) {
  Value all[ROUTINE_MAX_ARGUMENTS];
  unsigned count = 0, total = LLVMCountParamTypes(routine->type);
  if (routine->part) {
    all[count++] = emit->operands;
    all[count++] = emit->scratch;
  }
  while (count < total) all[count++] = *arguments++;
  LLVMBuildCall2(emit->builder, routine->type, routine_function(emit, routine), all, total, "");
}
