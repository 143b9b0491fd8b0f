/* Errors of the generated elementary functions against libm in double precision: the bounds that math.c documents. */
#include <math.h>

#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>

#include "codegen.h"
#include "emit.h"
#include "support.h"

typedef void Function(const float *input, float *output, int64_t count);

static double reference_sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* `ulp`: bound over the sweep. */
typedef struct MathCase {
  const char *name;
  ExprUnary operation;
  double (*reference)(double x);
  double ulp;
} MathCase;

static const MathCase cases[] = {
    {"exp", EXPR_EXP, exp, 1.1},
    {"log", EXPR_LOG, log, 0.9},
    {"tanh", EXPR_TANH, tanh, 1.4},
    {"erf", EXPR_ERF, erf, 1.2},
    {"sigmoid", EXPR_SIGMOID, reference_sigmoid, 2.3},
    {"sqrt", EXPR_SQRT, sqrt, 0.5},
};

enum { CASE_COUNT = sizeof cases / sizeof *cases };

static const char *const isas[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"};

/* --- generated functions ------------------------------------------------------------------------------ */

typedef struct Apply {
  ExprUnary operation;
  Value input, output;
} Apply;

static void apply(Emit *emit, const Apply *context, int32_t lanes, Value index) {
  Value value = emit_load(emit, context->input, index, lanes);
  emit_store(emit, context->output, index, emit_math(emit, context->operation, value, lanes));
}

/* Vectors first, then single elements, as kernels do. */
static Value add_function(Emit *emit, const MathCase *test) {
  LLVMTypeRef parameters[] = {emit->pointer, emit->pointer, emit->i64};
  emit->function = LLVMAddFunction(emit->module, test->name, LLVMFunctionType(emit->void_type, parameters, 3, 0));
  LLVMSetLinkage(emit->function, LLVMInternalLinkage);
  LLVMPositionBuilderAtEnd(emit->builder, LLVMAppendBasicBlockInContext(emit->context, emit->function, "entry"));
  Apply context = {test->operation, LLVMGetParam(emit->function, 0), LLVMGetParam(emit->function, 1)};
  int32_t lanes = emit->target->vector_lanes;
  Value count = LLVMGetParam(emit->function, 2);
  Value whole = emit_sub(emit, count, emit_mod_int(emit, count, lanes));
  EmitLoop vectors = emit_loop_begin(emit, emit_int(emit, 0), whole, lanes, "vector");
  apply(emit, &context, lanes, vectors.index);
  emit_loop_end(emit, &vectors);
  EmitLoop rest = emit_loop_begin(emit, whole, count, 1, "rest");
  apply(emit, &context, 1, rest.index);
  emit_loop_end(emit, &rest);
  LLVMBuildRetVoid(emit->builder);
  return emit->function;
}

/* jit_load() hands out what NAME_describe() returns: here the table of functions. */
static void add_describe(Emit *emit, Value *functions) {
  Value table = LLVMAddGlobal(emit->module, LLVMArrayType2(emit->pointer, CASE_COUNT), "functions");
  LLVMSetInitializer(table, LLVMConstArray2(emit->pointer, functions, CASE_COUNT));
  Value describe = LLVMAddFunction(emit->module, "math_describe", LLVMFunctionType(emit->pointer, NULL, 0, 0));
  LLVMPositionBuilderAtEnd(emit->builder, LLVMAppendBasicBlockInContext(emit->context, describe, "entry"));
  LLVMBuildRet(emit->builder, table);
}

static Function *const *compile(Fixture *fixture, const Target *target) {
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();
  LLVMContextRef context = LLVMContextCreate();
  Emit emit = {
      .arena = fixture->arena,
      .target = target,
      .context = context,
      .module = LLVMModuleCreateWithNameInContext("math", context),
      .builder = LLVMCreateBuilderInContext(context),
      .f32 = LLVMFloatTypeInContext(context),
      .i64 = LLVMInt64TypeInContext(context),
      .i32 = LLVMInt32TypeInContext(context),
      .i1 = LLVMInt1TypeInContext(context),
      .pointer = LLVMPointerTypeInContext(context, 0),
      .void_type = LLVMVoidTypeInContext(context),
  };
  Value functions[CASE_COUNT];
  for (int i = 0; i < CASE_COUNT; i++) functions[i] = add_function(&emit, &cases[i]);
  add_describe(&emit, functions);

  LLVMTargetRef llvm_target;
  char *message = NULL;
  assert_false(LLVMGetTargetFromTriple(target->triple, &llvm_target, &message));
  const char *cpu = strcmp(target->isa, "aarch64") == 0 ? "generic" : target->isa;
  LLVMTargetMachineRef machine = LLVMCreateTargetMachine(llvm_target, target->triple, cpu, "", LLVMCodeGenLevelDefault,
                                                         LLVMRelocPIC, LLVMCodeModelDefault);
  LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(machine);
  LLVMSetModuleDataLayout(emit.module, layout);
  LLVMSetTarget(emit.module, target->triple);
  LLVMMemoryBufferRef buffer;
  if (LLVMTargetMachineEmitToMemoryBuffer(machine, emit.module, LLVMObjectFile, &message, &buffer))
    fail_msg("%s", message);
  size_t size = LLVMGetBufferSize(buffer);
  Code object = {arena_copy(fixture->arena, LLVMGetBufferStart(buffer), size), size};
  const CpuObjects objects = {.objects = &object, .count = 1, .symbol = "math"};
  const struct kiln_program *table = NULL;
  if (!jit_load(&objects, fixture->arena, fixture->diag, &table))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  LLVMDisposeMemoryBuffer(buffer);
  LLVMDisposeTargetData(layout);
  LLVMDisposeTargetMachine(machine);
  LLVMDisposeBuilder(emit.builder);
  LLVMDisposeModule(emit.module);
  LLVMContextDispose(context);
  return (Function *const *)(const void *)table;
}

/* --- errors ------------------------------------------------------------------------------------------- */

/* Distance in units of the last place of the exact result, which are 2^-149 at the least. */
static double error_in_ulps(float actual, double exact) {
  if (isnan(exact)) return isnan(actual) ? 0 : INFINITY;
  float rounded = (float)exact;
  if (isinf(rounded) || isinf(actual)) return actual == rounded ? 0 : fabs((double)actual - exact) == 0 ? 0 : INFINITY;
  int exponent;
  frexp(exact, &exponent);
  double unit = ldexp(1, exponent - 24 > -149 ? exponent - 24 : -149);
  return fabs(actual - exact) / unit;
}

/* Sigmoid gives 0 where it would be denormal. */
static bool below_range(const MathCase *test, double exact) {
  return test->operation == EXPR_SIGMOID && exact < 0x1p-126;
}

enum { SWEEP_STEP = 1021 /* every so manieth float; prime, so that all mantissas and exponents come up */ };

static void sweep(Fixture *fixture, const Target *target, Function *const *functions) {
  size_t count = (size_t)(UINT64_C(1) << 32) / SWEEP_STEP + 1;
  float *input = arena_array(fixture->arena, count, float), *output = arena_array(fixture->arena, count, float);
  for (size_t i = 0; i < count; i++) {
    uint32_t bits = (uint32_t)(i * SWEEP_STEP);
    memcpy(&input[i], &bits, sizeof bits);
  }
  for (int c = 0; c < CASE_COUNT; c++) {
    functions[c](input, output, (int64_t)count);
    double worst = 0;
    float where = 0;
    for (size_t i = 0; i < count; i++) {
      double exact = cases[c].reference(input[i]);
      if (below_range(&cases[c], exact) && output[i] >= 0 && output[i] <= 0x1p-126f) continue;
      double error = error_in_ulps(output[i], exact);
      if (error > worst) worst = error, where = input[i];
    }
    print_message("%s %-8s %.3f ulp at %a\n", target->isa, cases[c].name, worst, (double)where);
    if (!(worst <= cases[c].ulp)) fail_msg("%s on %s: %g ulp at %a", cases[c].name, target->isa, worst, (double)where);
  }
}

static void check_special_values(Function *const *functions) {
  const float input[] = {0, -0.0f, INFINITY, -INFINITY, NAN, 0x1p-149f, 88.8f, -103.9f, -104.1f, 0x1.fffffep127f, -3};
  enum { COUNT = sizeof input / sizeof *input };
  float output[COUNT];
  for (int c = 0; c < CASE_COUNT; c++) {
    functions[c](input, output, COUNT);
    for (int i = 0; i < COUNT; i++) {
      float expected = (float)cases[c].reference(input[i]);
      if (below_range(&cases[c], expected)) expected = 0;
      bool same = isnan(expected) ? isnan(output[i])
                                  : output[i] == expected || fabsf(output[i] - expected) <= 4e-7f * fabsf(expected);
      if (!same)
        fail_msg("%s(%a) = %a, expected %a", cases[c].name, (double)input[i], (double)output[i], (double)expected);
      /* odd functions and the root keep the sign of zero */
      if (expected == 0 && !signbit(expected) != !signbit(output[i]))
        fail_msg("%s(%a): sign of zero", cases[c].name, (double)input[i]);
    }
  }
}

static void test_functions(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    Target target;
    assert_true(cpu_target(isas[i], NULL, fixture->arena, fixture->diag, &target));
    if (!cpu_target_runnable(&target)) continue;
    Function *const *functions = compile(fixture, &target);
    check_special_values(functions);
    sweep(fixture, &target, functions);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_functions)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
