/* What NVRTC makes of generated CUDA text: registers, spills, shared memory, and the places in its messages. Needs the
 * library, but no GPU; without it the tests are skipped. */
#include <dlfcn.h>

#include "cuda/gemm.h"
#include "cuda/nvrtc.h"
#include "emulated_kernel.h"
#include "hand_plan.h"
#include "op_cases.h"
#include "resnet50_shapes.h"
#include "stats.h"
#include "support.h"

typedef void *NvrtcHandle;
#define NVRTC_FUNCTIONS(X)                                                                                          \
  X(nvrtcCreateProgram, (NvrtcHandle *, const char *, const char *, int, const char *const *, const char *const *)) \
  X(nvrtcCompileProgram, (NvrtcHandle, int, const char *const *))                                                   \
  X(nvrtcGetProgramLogSize, (NvrtcHandle, size_t *))                                                                \
  X(nvrtcGetProgramLog, (NvrtcHandle, char *))                                                                      \
  X(nvrtcDestroyProgram, (NvrtcHandle *))

typedef struct Nvrtc {
#define X(name, parameters) int(*name) parameters;
  NVRTC_FUNCTIONS(X)
#undef X
} Nvrtc;

static Nvrtc nvrtc;
static const NvrtcInfo *info;

/* The real one, whatever the environment says of an emulated one. */
static void open_nvrtc(void) {
  const char *reason = NULL;
  info = nvrtc_info(&reason);
  if (info == NULL) {
    print_message("no NVRTC here, its budgets are not tested: %s\n", reason);
    return;
  }
  void *library = dlopen(info->path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fail_msg("%s: %s", info->path, dlerror());
#define X(name, parameters)                           \
  {                                                   \
    void *address = dlsym(library, #name);            \
    memcpy(&nvrtc.name, &address, sizeof nvrtc.name); \
    assert_non_null(nvrtc.name);                      \
  }
  NVRTC_FUNCTIONS(X)
#undef X
}

/* NVRTC's log with what ptxas used; *out_compiled is false for errors. */
static const char *compile(Arena *arena, const char *text, const char *arch, bool *out_compiled) {
  const char *headers[CUDA_HEADER_COUNT], *names[CUDA_HEADER_COUNT];
  for (int i = 0; i < CUDA_HEADER_COUNT; i++) headers[i] = cuda_headers[i].text, names[i] = cuda_headers[i].name;
  const char *const options[] = {arena_format(arena, "--gpu-architecture=%s", arch), "--std=c++17", "-default-device",
                                 "--ptxas-options=-v"};
  NvrtcHandle program = NULL;
  assert_int_equal(nvrtc.nvrtcCreateProgram(&program, text, "kernel", CUDA_HEADER_COUNT, headers, names), 0);
  *out_compiled = nvrtc.nvrtcCompileProgram(program, sizeof options / sizeof *options, options) == 0;
  size_t size = 0;
  nvrtc.nvrtcGetProgramLogSize(program, &size);
  char *log = arena_alloc(arena, size + 1, 1);
  nvrtc.nvrtcGetProgramLog(program, log);
  nvrtc.nvrtcDestroyProgram(&program);
  return log;
}

/* The number that stands before `unit`. */
static long number_before(const char *text, const char *unit) {
  const char *at = strstr(text, unit);
  if (at == NULL) return 0;
  while (at > text && at[-1] == ' ') at--;
  while (at > text && at[-1] >= '0' && at[-1] <= '9') at--;
  return strtol(at, NULL, 10);
}

/* Every function of a text: no spills, and a block fits a multiprocessor. Returns the number of functions. */
static size_t check_budget(Arena *arena, const char *label, const EmulatedKernel *kernel, const char *arch) {
  bool compiled;
  const char *log = compile(arena, kernel->emit.text.data, arch, &compiled);
  if (!compiled) fail_msg("%s for %s: %s\n%s", label, arch, log, kernel->emit.text.data);
  size_t found = 0;
  for (const char *at = log; (at = strstr(at, "Compiling entry function '")) != NULL; found++) {
    const char *name = strchr(at, '\'') + 1, *next = strstr(name, "Compiling entry function");
    const char *part = arena_format(arena, "%.*s", (int)(next != NULL ? next - name : (long)strlen(name)), name);
    const CudaLaunch *launch = NULL;
    for (size_t i = 0; i < kernel->emit.launch_count; i++) {
      const char *function = kernel->emit.launches[i].function;
      if (strncmp(name, function, strlen(function)) == 0 && name[strlen(function)] == '\'')
        launch = &kernel->emit.launches[i];
    }
    if (launch == NULL) fail_msg("%s: function without a launch: %s", label, part);
    const long registers = number_before(part, " registers"), spills = number_before(part, " bytes spill stores");
    const long shared = number_before(part, " bytes smem");
    if (registers == 0) fail_msg("%s for %s: the log tells no registers: %s", label, arch, part);
    if (spills != 0) fail_msg("%s for %s: %ld bytes are spilled: %s", label, arch, spills, part);
    if (registers * launch->threads > 65536)
      fail_msg("%s for %s: %ld registers for each of %d threads", label, arch, registers, (int)launch->threads);
    if (shared > 48 * 1024 || shared + launch->shared_bytes > kernel->target.shared_bytes)
      fail_msg("%s for %s: %ld bytes of shared memory and %d more at the launch", label, arch, shared,
               (int)launch->shared_bytes);
    at = name;
  }
  return found;
}

/* --- ResNet-50 --------------------------------------------------------------------------------------- */

static const char *shape_text(Arena *arena, const ConvShapeRow *row, int batch) {
  const int out = (row->size + 2 * row->padding - row->kernel) / row->stride + 1;
  const char *residual =
      row->residual ? arena_format(arena, " input %%r : f32[N,%d,%d,%d]\n", row->filters, out, out) : "";
  return arena_format(
      arena,
      "graph \"g\" {\n max_batch %d\n input %%x : f32[N,%d,%d,%d]\n%s parameter %%w : f32[%d,%d,%d,%d] {init=weight}\n"
      " parameter %%b : f32[%d] {init=bias}\n"
      " %%y = conv2d %%x, %%w, %%b {stride=[%d,%d], padding=[%d,%d,%d,%d]} epilogue [%srelu]\n output y = %%y\n}\n",
      batch, row->channels, row->size, row->size, residual, row->filters, row->channels, row->kernel, row->kernel,
      row->filters, row->stride, row->stride, row->padding, row->padding, row->padding, row->padding,
      row->residual ? "add %r, " : "");
}

/* Kernels that differ in sizes only have the same budget: one of each kind is enough. */
typedef struct Kind {
  GemmChoice choice;
  bool bounded, residual;
} Kind;

static bool same_kind(const Kind *a, const Kind *b) {
  const GemmChoice *p = &a->choice, *q = &b->choice;
  return p->math == q->math && p->tile.m == q->tile.m && p->tile.n == q->tile.n && p->tile.k == q->tile.k &&
         p->a.vector == q->a.vector && (p->splits > 1) == (q->splits > 1) && a->bounded == b->bounded &&
         a->residual == b->residual;
}

static void check_network(Arena *scratch, MathMode math, int batch, const char *arch) {
  Kind kinds[RESNET50_SHAPE_COUNT];
  size_t kind_count = 0;
  for (size_t i = 0; i < RESNET50_SHAPE_COUNT; i++) {
    const ConvShapeRow *row = &resnet50_shapes[i];
    EmulatedKernel *kernel = emulated_kernel(scratch, shape_text(scratch, row, batch), true, 4, arch, math);
    assert_non_null(kernel);
    if (math == MATH_BF16 || math == MATH_FP16) emulated_pack(kernel, math == MATH_BF16 ? DTYPE_BF16 : DTYPE_F16);
    GemmProblem problem;
    assert_true(gemm_problem(kernel->kernel, &problem));
    const Kind kind = {gemm_choose(&problem, &kernel->target, batch), problem.a.bounded, row->residual != 0};
    bool known = false;
    for (size_t k = 0; k < kind_count; k++) known = known || same_kind(&kinds[k], &kind);
    if (!known) {
      kinds[kind_count++] = kind;
      assert_true(emulated_generate(kernel));
      const char *label = arena_format(scratch, "%s in %s, batch %d", row->name, math_mode_name(math), batch);
      assert_int_equal(check_budget(scratch, label, kernel, arch), kernel->emit.launch_count);
    }
    if (i % 8 == 7) arena_reset(scratch);
  }
}

static void test_resnet50(void **state) {
  Fixture *fixture = *state;
  if (info == NULL) skip();
  check_network(fixture->arena, MATH_3XTF32, 1, "sm_80");
  check_network(fixture->arena, MATH_3XTF32, 64, "sm_90a");
  check_network(fixture->arena, MATH_FP32, 1, "sm_90a");
  check_network(fixture->arena, MATH_FP32, 64, "sm_80");
  check_network(fixture->arena, MATH_BF16, 64, "sm_90a");
  check_network(fixture->arena, MATH_TF32, 16, "sm_80");
  check_network(fixture->arena, MATH_FP16, 16, "sm_90a");
  check_network(fixture->arena, MATH_FP32, 1, "sm_75");
}

/* --- reductions that ride ------------------------------------------------------------------------------ */

static void add_statistics(EmulatedKernel *kernel) {
  PlanReduction *reduction = arena_new(kernel->arena, PlanReduction);
  const Attrs attrs = attrs_default();
  const Shape rows = {3, {DIM_BATCH, 4, STATS_FIELDS + attrs.bins}};
  *reduction = (PlanReduction){OP_STATS_PARTIAL, attrs, hand_tensor("p", rows, SPACE_OUTPUT, 0)};
  kernel->kernel->reductions = reduction;
  kernel->kernel->reduction_count = 1;
}

static void check_riding(Arena *scratch, const char *text, MathMode math, const char *arch) {
  EmulatedKernel *kernel = emulated_kernel(scratch, text, true, 4, arch, math);
  assert_non_null(kernel);
  add_statistics(kernel);
  assert_true(emulated_generate(kernel));
  const char *label =
      arena_format(scratch, "statistics of %s in %s", op_info(kernel->kernel->op)->name, math_mode_name(math));
  assert_int_equal(check_budget(scratch, label, kernel, arch), 1);
}

/* The largest tile of every kind of arithmetic, a small one with splits, and kernels without tiles. */
static void test_riding(void **state) {
  Fixture *fixture = *state;
  if (info == NULL) skip();
  const char *wide = shape_text(fixture->arena, &resnet50_shapes[3], 64);
  check_riding(fixture->arena, wide, MATH_3XTF32, "sm_90a");
  check_riding(fixture->arena, wide, MATH_FP32, "sm_80");
  check_riding(fixture->arena, wide, MATH_BF16, "sm_90a");
  check_riding(fixture->arena, shape_text(fixture->arena, &resnet50_shapes[3], 1), MATH_FP32, "sm_75");
  check_riding(fixture->arena, shape_text(fixture->arena, &resnet50_shapes[2], 1), MATH_TF32, "sm_80");
  check_riding(
      fixture->arena,
      "graph \"g\" {\n max_batch 64\n input %x : f32[N,32,56,56]\n parameter %w : f32[32,1,3,3] {init=weight}\n"
      " %y = conv2d %x, %w {groups=32, padding=[1,1,1,1]} epilogue [relu]\n output y = %y\n}\n",
      MATH_FP32, "sm_80");
  check_riding(fixture->arena,
               "graph \"g\" {\n max_batch 64\n input %x : f32[N,32,56,56]\n %y = gelu %x\n output y = %y\n}\n",
               MATH_FP32, "sm_75");
}

/* --- the op table ------------------------------------------------------------------------------------ */

static void check_case(Arena *arena, const OpCase *test, const char *arch) {
  EmulatedKernel *kernel = emulated_kernel(arena, op_case_text(test, 3, arena), true, 4, arch, MATH_3XTF32);
  assert_non_null(kernel);
  assert_true(emulated_generate(kernel));
  if (kernel->emit.launch_count > 0) check_budget(arena, op_case_label(test, arena), kernel, arch);
  arena_reset(arena);
}

static void test_op_table(void **state) {
  Fixture *fixture = *state;
  if (info == NULL) skip();
  for (size_t i = 0; i < op_case_count(); i++) {
    check_case(fixture->arena, op_case(i), "sm_80");
    check_case(fixture->arena, op_case(i), "sm_90a");
  }
}

/* --- messages ---------------------------------------------------------------------------------------- */

static void test_messages_name_the_node(void **state) {
  Fixture *fixture = *state;
  if (info == NULL) skip();
  EmulatedKernel *kernel =
      emulated_kernel(fixture->arena, shape_text(fixture->arena, &resnet50_shapes[1], 1), true, 4, "sm_90", MATH_TF32);
  assert_non_null(kernel);
  assert_true(emulated_generate(kernel));
  const char *text = kernel->emit.text.data, *at = strstr(text, "cp_commit();");
  assert_non_null(at);
  bool compiled;
  const char *log = compile(fixture->arena, arena_format(fixture->arena, "%.*soops;%s", (int)(at - text), text, at),
                            "sm_90a", &compiled);
  assert_false(compiled);
  if (!strstr(log, "op:y(")) fail_msg("the message does not name the node: %s", log);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_resnet50),
      fixture_test(test_riding),
      fixture_test(test_op_table),
      fixture_test(test_messages_name_the_node),
  };
  open_nvrtc();
  return cmocka_run_group_tests_name("cuda_budget", tests, NULL, NULL);
}
