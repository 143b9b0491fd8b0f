/* Convolutions in tile registers (AMX) against the interpreter: filters of all kinds, tiles that go on in the next row
 * and tiles that do not, divisions of the work, guard pages around every operand, libraries, hooks. */
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <sys/wait.h>

#if defined(__x86_64__) && defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include "codegen.h"
#include "kiln.h"
#include "rewrite.h"
#include "run_program.h"
#include "select_tiles.h"
#include "support.h"

typedef struct TilesCase {
  int64_t channels, filters, height, width, kernel, batch;
  int64_t stride, dilation; /* 0: 1 */
  int64_t padding[4];
  bool bias, relu, residual;
  int64_t then; /* filters of a following 3x3 convolution, which reads the halo; 0: none */
} TilesCase;

#define SAME \
  { 1, 1, 1, 1 }
#define TWO \
  { 2, 2, 2, 2 }

static const TilesCase cases[] = {
    {32, 32, 7, 7, 3, 1, .padding = SAME},
    {64, 96, 9, 13, 3, 3, .padding = SAME, .bias = true},
    {96, 64, 14, 14, 3, 1, .padding = SAME, .bias = true, .residual = true, .relu = true},
    {32, 64, 17, 31, 3, 1, .padding = SAME, .bias = true, .relu = true},
    {64, 32, 30, 30, 3, 1, .padding = SAME},
    {32, 32, 56, 5, 3, 3, .padding = SAME, .bias = true},
    {32, 64, 30, 30, 3, 1, .stride = 2, .padding = SAME, .bias = true, .relu = true},
    {64, 96, 9, 13, 3, 3, .stride = 2, .padding = SAME, .bias = true, .residual = true, .relu = true},
    {96, 64, 14, 14, 1, 3, .bias = true, .residual = true, .relu = true},
    {64, 96, 17, 31, 1, 1, .stride = 2, .bias = true},
    {64, 64, 7, 7, 1, 3, .stride = 2},
    {32, 32, 14, 14, 5, 1, .padding = TWO, .bias = true},
    {32, 64, 56, 5, 5, 1, .stride = 2, .padding = TWO},
    {32, 64, 17, 31, 3, 1, .dilation = 2, .padding = TWO, .bias = true},
    {64, 32, 7, 7, 3, 3, .dilation = 2, .padding = SAME, .relu = true},
    {32, 96, 14, 14, 3, 1, .stride = 2, .dilation = 2, .padding = TWO, .bias = true},
    {32, 32, 9, 13, 3, 3, .padding = {0, 1, 2, 0}, .bias = true, .residual = true},
    {64, 32, 30, 30, 3, 1, .stride = 2, .padding = {2, 0, 0, 1}, .relu = true},
    {32, 64, 14, 14, 3, 1, .bias = true},
    {64, 64, 1, 1, 3, 3, .padding = SAME},
    {64, 32, 7, 9, 3, 3, .padding = SAME, .bias = true},
    {32, 64, 12, 11, 3, 1, .padding = SAME, .bias = true, .relu = true},
    {32, 32, 23, 22, 3, 3, .stride = 2, .padding = SAME, .bias = true},
    {32, 32, 20, 31, 5, 1, .stride = 3, .padding = TWO},
    {32, 32, 20, 31, 3, 1, .stride = 3, .dilation = 2, .padding = TWO, .bias = true},
    {32, 64, 22, 22, 2, 1, .stride = 4, .bias = true},
    {64, 96, 9, 13, 3, 1, .padding = SAME, .bias = true, .relu = true, .then = 32},
    {32, 64, 14, 14, 1, 3, .residual = true, .relu = true, .then = 64},
};
enum { CASE_COUNT = sizeof cases / sizeof *cases };

/* Rows of an item; 0: as planned. */
static const int32_t row_chunks[] = {1, 3, INT32_MAX, 0};
enum { CHUNK_COUNT = sizeof row_chunks / sizeof *row_chunks };

static int64_t at_least_one(int64_t value) { return value > 0 ? value : 1; }

static int64_t out_extent(const TilesCase *test, int64_t in, int dim) {
  const int64_t reach = (test->kernel - 1) * at_least_one(test->dilation) + 1;
  return (in + test->padding[dim] + test->padding[dim + 2] - reach) / at_least_one(test->stride) + 1;
}

static const char *describe(Arena *arena, const TilesCase *test) {
  const int64_t height = out_extent(test, test->height, 0), width = out_extent(test, test->width, 1);
  const int64_t stride = at_least_one(test->stride), dilation = at_least_one(test->dilation), *pad = test->padding;
  const char *const shape = arena_format(arena, "f32[N,%d,%d,%d]", (int)test->filters, (int)height, (int)width);
  Text text;
  text_init(&text, arena);
  text_format(&text, "graph \"net\" {\n  input %%x : f32[N,%d,%d,%d]\n", (int)test->channels, (int)test->height,
              (int)test->width);
  if (test->residual) text_format(&text, "  input %%r : %s\n", shape);
  text_format(&text, "  parameter %%w : f32[%d,%d,%d,%d]\n", (int)test->filters, (int)test->channels, (int)test->kernel,
              (int)test->kernel);
  if (test->bias) text_format(&text, "  parameter %%b : f32[%d]\n", (int)test->filters);
  if (test->then > 0) text_format(&text, "  parameter %%w2 : f32[%d,%d,3,3]\n", (int)test->then, (int)test->filters);
  text_format(&text, "  %%conv = conv2d %%x, %%w%s {stride=[%d,%d], padding=[%d,%d,%d,%d], dilation=[%d,%d]} : %s\n",
              test->bias ? ", %b" : "", (int)stride, (int)stride, (int)pad[0], (int)pad[1], (int)pad[2], (int)pad[3],
              (int)dilation, (int)dilation, shape);
  const char *last = "conv";
  if (test->residual) text_format(&text, "  %%sum = add %%%s, %%r : %s\n", last, shape), last = "sum";
  if (test->relu) text_format(&text, "  %%act = relu %%%s : %s\n", last, shape), last = "act";
  if (test->then > 0) {
    text_format(&text, "  %%next = conv2d %%%s, %%w2 {padding=[1,1,1,1]} : f32[N,%d,%d,%d]\n", last, (int)test->then,
                (int)height, (int)width);
    last = "next";
  }
  text_format(&text, "  output y = %%%s\n}\n", last);
  return text.data;
}

static bool machine_has_tiles(Fixture *fixture) {
  Target target;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  if (!target.tiles) print_message("no tile registers for products of bf16 (AMX) here: skipped\n");
  return target.tiles;
}

static const Precision precisions[] = {PRECISION_FAST, PRECISION_DEFAULT}; /* halves, thirds */
enum { PRECISION_COUNT = sizeof precisions / sizeof *precisions };

/* Every convolution in tile registers, `rows` output rows an item. */
static bool choose_tiles(Graph *graph, const PassOptions *options, int32_t rows) {
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op != OP_CONV2D) continue;
    if (!tiles_possible(node, options, prepared)) return false;
    node->choice = tiles_choice(node, options);
    if (rows > 0) node->choice.row_chunk = rows;
    node->inputs[1]->layout = tiles_filter_layout(node, options->precision);
  }
  return true;
}

/* As test_program_compile, with tile registers wherever they are possible. */
static bool compile(TestProgram *program, Precision precision, int32_t rows) {
  static const char before[] = "infer,hooks,lower,simplify,fold_bn,expand_bn,fuse,layout,select";
  Arena *arena = program->arena, *scratch = arena_create(NULL);
  Diag *diag = program->diag = diag_create(arena);
  Graph *graph = program->graph = graph_clone(program->source, arena);
  bool done = cpu_target("native", NULL, arena, diag, &program->target);
  const PassOptions strict = {.target = &program->target, .precision = PRECISION_STRICT, .scratch = scratch};
  const PassOptions options = {.target = &program->target, .precision = precision, .scratch = scratch};
  done = done && pipeline_run_list(graph, before, &strict, diag) && choose_tiles(graph, &options, rows) &&
         graph_verify(graph, "select", diag) && pipeline_run_list(graph, "strides,memory", &options, diag) &&
         graph_verify(graph, "memory", diag) && plan_build(graph, &options, diag, &program->plan);
  arena_destroy(scratch);
  const CpuOptions cpu = {.threads = 1};
  CpuObjects objects;
  done = done && cpu_compile(program->plan, &cpu, arena, diag, &objects) &&
         jit_load(&objects, arena, diag, &program->program);
  if (!done) fprintf(stderr, "%s\n", diag_text(diag, arena));
  return done;
}

static size_t count_tiles(const Plan *plan) {
  size_t count = 0;
  for (size_t k = 0; k < plan->kernel_count; k++) count += plan->kernels[k].choice.algorithm == ALGORITHM_TILES;
  return count;
}

static void start(Fixture *fixture, TestProgram *program, const TilesCase *test, Precision precision, int32_t rows,
                  const char *label) {
  assert_true(test_program_parse(program, fixture->arena, describe(fixture->arena, test)));
  if (!compile(program, precision, rows)) fail_msg("%s: does not compile", label);
  assert_int_equal(count_tiles(program->plan), test->then > 0 ? 2 : 1);
}

static const EvalTensor *output_of(const TestProgram *program, const EvalResult *result) {
  return &result->values[program->source->outputs[0].node->id];
}

/* --- values ------------------------------------------------------------------------------------------- */

/* Of the relative L2 error: of thirds that of direct convolution. */
static double norm_gate(Precision precision) { return precision == PRECISION_FAST ? 5e-6 : 1e-6; }

/* Bound of |error| / Σ|a||b|. Thirds: that of direct convolution. The errors of halves' products, each of at most 512 u,
 * are as if drawn by chance, so that their sum grows with the root of their number: 48 u for 256 products. A second
 * convolution averages the first one's. */
static double element_gate(const TilesCase *test, Precision precision) {
  int64_t products = test->channels * test->kernel * test->kernel;
  if (test->then > 0) products *= test->filters * 9;
  return precision == PRECISION_FAST ? fmin(512, 768 / sqrt((double)products)) * 0x1p-24 : 8 * 0x1p-24;
}

/* What the interpreter gives for a case: all programs of it have the same inputs. */
typedef struct Reference {
  EvalResult integers, inputs, filters, floats;
  EvalResult magnitude; /* of the floats' absolute values */
} Reference;

/* Whole numbers up to 2049 in magnitude, of which neither half is 0 where those of one factor are. */
typedef enum Large { LARGE_NOTHING, LARGE_INPUTS, LARGE_FILTERS } Large;
enum { INTEGER_SEED = 7, FLOAT_SEED = 11, LARGE = 683 };

static void fill_integers(TestProgram *program, int64_t batch, Large large) {
  test_fill(program, FILL_INTEGERS, batch, INTEGER_SEED);
  const Tensor *tensor = large == LARGE_NOTHING  ? NULL
                         : large == LARGE_INPUTS ? tensor_find(&program->inputs, "x")
                                                 : tensor_find(&program->parameters, "w");
  if (tensor == NULL) return;
  for (int64_t i = 0; i < tensor_elements(tensor); i++) ((float *)tensor->data)[i] *= LARGE;
}

static void evaluate(Arena *arena, const TilesCase *test, Reference *out_reference) {
  TestProgram program;
  assert_true(test_program_parse(&program, arena, describe(arena, test)));
  EvalResult *const whole[] = {&out_reference->integers, &out_reference->inputs, &out_reference->filters};
  for (int large = 0; large < 3; large++) {
    fill_integers(&program, test->batch, (Large)large);
    assert_true(test_program_eval(&program, program.source, whole[large]));
  }
  test_fill(&program, FILL_FLOATS, test->batch, FLOAT_SEED);
  assert_true(test_program_eval(&program, program.source, &out_reference->floats));
  test_make_absolute(&program);
  assert_true(test_program_eval(&program, program.source, &out_reference->magnitude));
}

/* Numbers of 16 bits are the sums of their parts, and a product of such with one of 8 bits is exact. What a second
 * convolution reads may have more. */
static void check_integers(TestProgram *program, const TilesCase *test, const Reference *reference, const char *label) {
  static const char *const names[] = {"integers", "large inputs", "large filters"};
  const EvalResult *const whole[] = {&reference->integers, &reference->inputs, &reference->filters};
  for (int large = 0; large < (test->then > 0 ? 1 : 3); large++) {
    TestRun run;
    fill_integers(program, test->batch, (Large)large);
    assert_true(test_program_run(program, test->batch, 1, large == 1, &run));
    double excess = test_excess(&run.outputs.items[0], output_of(program, whole[large]), NULL, 0);
    if (excess > 0) fail_msg("%s: %s differ by up to %g", label, names[large], excess);
  }
}

static void check_floats(TestProgram *program, const TilesCase *test, Precision precision, const Reference *reference,
                         const char *label, TestRun *out_run) {
  const EvalTensor *expected = output_of(program, &reference->floats);
  const EvalTensor *magnitude = output_of(program, &reference->magnitude);
  const double factor = test->then > 0 ? 2 : 1; /* of the convolutions */
  test_fill(program, FILL_FLOATS, test->batch, FLOAT_SEED);
  for (int at_end = 0; at_end < 2; at_end++) {
    if (!test_program_run(program, test->batch, 1, at_end, out_run)) fail_msg("%s: does not run", label);
    const Tensor *y = &out_run->outputs.items[0];
    double norm = test_relative_error(y, expected);
    if (!(norm <= sqrt(factor) * norm_gate(precision))) fail_msg("%s: relative L2 error %g", label, norm);
    double excess = test_excess(y, expected, magnitude, factor * element_gate(test, precision));
    if (excess > 0) fail_msg("%s: passes the gate by %g", label, excess);
  }
}

static void check_same(const Tensor *a, const Tensor *b, const char *label, const char *what, int32_t number) {
  if (memcmp(a->data, b->data, (size_t)tensor_bytes(a)) != 0)
    fail_msg("%s: %s %d changes the result", label, what, (int)number);
}

/* However the rows are divided among items and the items among threads, every bit is the same. */
static void check_divisions(Fixture *fixture, const TilesCase *test, Precision precision, const Reference *reference,
                            const char *name) {
  static const int32_t threads[] = {2, 3, 7};
  Arena *arena = arena_create(NULL);
  Tensor first = {.data = NULL};
  for (size_t c = 0; c < CHUNK_COUNT; c++) {
    const char *label = arena_format(arena, "%s, %d rows an item", name, (int)row_chunks[c]);
    TestProgram program;
    TestRun one, many;
    start(fixture, &program, test, precision, row_chunks[c], label);
    check_integers(&program, test, reference, label);
    check_floats(&program, test, precision, reference, label, &one);
    const Tensor *y = &one.outputs.items[0];
    for (size_t j = 0; j < sizeof threads / sizeof *threads; j++) {
      assert_true(test_program_run(&program, test->batch, threads[j], j & 1, &many));
      check_same(y, &many.outputs.items[0], label, "threads", threads[j]);
    }
    if (first.data != NULL) check_same(&first, y, label, "rows", row_chunks[c]);
    first = *y;
    first.data = arena_copy(arena, y->data, (size_t)tensor_bytes(y));
    arena_reset(fixture->arena);
  }
  arena_destroy(arena);
}

static void test_against_interpreter(void **state) {
  Fixture *fixture = *state;
  if (!machine_has_tiles(fixture)) skip();
  for (size_t i = 0; i < CASE_COUNT; i++) {
    Arena *arena = arena_create(NULL);
    Reference reference;
    evaluate(arena, &cases[i], &reference);
    for (int p = 0; p < PRECISION_COUNT; p++)
      check_divisions(fixture, &cases[i], precisions[p], &reference,
                      arena_format(arena, "case %zu, %s", i, p == 0 ? "halves" : "thirds"));
    arena_destroy(arena);
  }
}

/* A NaN or an infinity of the input makes NaN in the outputs that see it, and in no others: not in those beside it in
 * a tile, nor in those of another image. */
static void test_not_numbers(void **state) {
  static const int64_t places[][4] = {{0, 0, 0, 0}, {1, 17, 3, 5}, {2, 31, 8, 12}, {2, 5, 4, 12}};
  static const TilesCase tests[] = {{32, 64, 9, 13, 3, 3, .padding = SAME, .bias = true},
                                    {32, 32, 9, 13, 3, 3, .stride = 2, .padding = SAME},
                                    {32, 32, 9, 13, 3, 3, .dilation = 2, .padding = {2, 2, 0, 1}},
                                    {32, 32, 9, 13, 1, 3, .stride = 2}};
  static const float values[] = {NAN, INFINITY, -INFINITY};
  Fixture *fixture = *state;
  if (!machine_has_tiles(fixture)) skip();
  for (size_t i = 0; i < 8 * sizeof tests / sizeof *tests; i++) {
    const TilesCase *test = &tests[i / 8];
    const int64_t *place = places[i % 4];
    const char *label = arena_format(fixture->arena, "case %zu, place %zu", i / 4, i % 4);
    TestProgram program;
    start(fixture, &program, test, precisions[i / 4 % 2], (int32_t)(i % 3), label);
    for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
      EvalResult result;
      TestRun run;
      test_fill(&program, FILL_FLOATS, test->batch, FLOAT_SEED);
      const int64_t row = (place[0] * test->channels + place[1]) * test->height + place[2];
      tensor_set(&program.inputs.items[0], row * test->width + place[3], (double)values[v]);
      assert_true(test_program_eval(&program, program.source, &result));
      assert_true(test_program_run(&program, test->batch, 2, true, &run));
      const EvalTensor *expected = output_of(&program, &result);
      const Tensor *y = &run.outputs.items[0];
      for (int64_t j = 0; j < tensor_elements(y); j++) {
        const double found = tensor_get(y, j);
        if (isfinite(expected->data[j]) ? !(fabs(found - expected->data[j]) < 1e-3) : !isnan(found))
          fail_msg("%s, value %zu: element %d is %g, expected %g", label, v, (int)j, found, expected->data[j]);
      }
    }
  }
}

/* --- libraries ---------------------------------------------------------------------------------------- */

static const TilesCase large_case = {256, 256, 14, 14, 3, 1, .padding = SAME, .bias = true, .relu = true};

#if defined(__x86_64__) && defined(__linux__)

/* From now on this process is refused what it asks arch_prctl for. */
static bool refuse_requests(void) {
  struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                               BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
                               BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                               BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const struct sock_fprog filter = {sizeof code / sizeof *code, code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

#else

static bool refuse_requests(void) { return false; }

#endif

/* What the library's check says where the system does not give tile registers; −1: that cannot be had here. */
static int check_refused(const char *path) {
  fflush(NULL);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    enum { NO_LIBRARY = 100, NO_FILTER };
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *address = library ? dlsym(library, "net_check") : NULL;
    int (*check)(void);
    if (address == NULL) _exit(NO_LIBRARY);
    memcpy(&check, &address, sizeof address);
    _exit(refuse_requests() ? check() : NO_FILTER);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  assert_int_not_equal(WEXITSTATUS(status), 100);
  return WEXITSTATUS(status) == 101 ? -1 : WEXITSTATUS(status);
}

/* What the check says on a processor of qemu's; −1: there is no qemu or no compiler. */
static int check_emulated(Fixture *fixture, const char *path, const char *processor) {
  const char *source = fixture_path(fixture, "host.c"), *host = fixture_path(fixture, "host");
  FILE *file = fopen(source, "w");
  assert_non_null(file);
  fputs(
      "#include <dlfcn.h>\n"
      "int main(int count, char **arguments) {\n"
      "  void *library = dlopen(arguments[1], RTLD_NOW);\n"
      "  if (count < 2 || !library) return 100;\n"
      "  return ((int (*)(void))dlsym(library, \"net_check\"))();\n"
      "}\n",
      file);
  assert_int_equal(fclose(file), 0);
  const char *command = arena_format(fixture->arena,
                                     "command -v qemu-x86_64 >/dev/null || exit 101\n"
                                     "cc -o '%s' '%s' -ldl 2>/dev/null || exit 101\n"
                                     "qemu-x86_64 -cpu %s '%s' '%s' 2>/dev/null",
                                     host, source, processor, host, path);
  const int status = system(command);
  assert_true(WIFEXITED(status));
  return WEXITSTATUS(status) == 101 ? -1 : WEXITSTATUS(status);
}

/* The library computes what the JIT does, asks for the registers, and is refused without them. */
static void test_library(void **state) {
  static const Precision modes[] = {PRECISION_FAST, PRECISION_STRICT};
  Fixture *fixture = *state;
  if (!machine_has_tiles(fixture)) skip();
  for (int i = 0; i < 2; i++) {
    const bool fast = modes[i] == PRECISION_FAST;
    TestProgram program;
    TestRun run;
    TensorList outputs;
    assert_true(test_program_parse(&program, fixture->arena, describe(fixture->arena, &large_case)));
    assert_true(test_program_compile(&program, "native", NULL, modes[i]));
    assert_int_equal(count_tiles(program.plan), fast ? 1 : 0);
    const char *path = fixture_path(fixture, fast ? "libfast.so" : "libstrict.so");
    const kiln_program *library = test_program_link(&program, path);
    assert_non_null(library);
    test_fill(&program, FILL_FLOATS, 2, FLOAT_SEED);
    assert_true(test_program_run(&program, 2, 1, false, &run));
    assert_true(test_library_run(&program, library, 2, &outputs));
    check_same(&run.outputs.items[0], &outputs.items[0], "large", "library", i);

    const int refused = check_refused(path);
    if (refused < 0) print_message("no filters of system calls here\n");
    if (refused >= 0) assert_int_equal(refused, fast ? KILN_ERROR_CPU : KILN_OK);
    static const char *const processors[] = {"Haswell", "max"}; /* neither has AVX-512 */
    for (int p = 0; p < 2; p++) {
      const int emulated = check_emulated(fixture, path, processors[p]);
      if (emulated < 0) print_message("no qemu-x86_64 or cc here\n");
      if (emulated >= 0) assert_int_equal(emulated, KILN_ERROR_CPU);
    }
  }
}

/* --- hooks -------------------------------------------------------------------------------------------- */

#define MUST(call)                                                            \
  do {                                                                        \
    kiln_error error_ = {KILN_OK, ""}, *error = &error_;                      \
    if ((call) != KILN_OK) fail_msg("line %d: %s", __LINE__, error_.message); \
  } while (0)

/* Channels that fill no group of partial results, rows that fill no vector. */
static const char hooked[] =
    "{ \"kiln\": 1, \"name\": \"hooked\", \"max_batch\": 3,\n"
    "  \"inputs\": { \"x\": { \"shape\": [\"N\", 64, 30, 29] } },\n"
    "  \"layers\": [ { \"op\": \"conv2d\", \"name\": \"a\", \"out_channels\": 96, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"relu\", \"name\": \"r\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"b\", \"out_channels\": 160, \"kernel\": 3, \"stride\": 2, \"padding\": 1 "
    "},\n"
    "    { \"op\": \"relu\", \"name\": \"s\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 224, \"kernel\": 1 } ],\n"
    "  \"hooks\": [ %s ] }\n";

enum { HOOKED_IMAGE = 64 * 30 * 29, HOOKED_BATCH = 3, HOOKED_PORTS = 6 };

typedef struct Ports {
  float *data[HOOKED_PORTS];
  size_t count[HOOKED_PORTS]; /* numbers */
  uint32_t ports, riding;
} Ports;

static uint32_t count_steps(const kiln_program *program, const char *kind) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < program->run_step_count; i++) count += strcmp(program->run_steps[i].kind, kind) == 0;
  return count;
}

static Ports run_once(Fixture *fixture, kiln_executable *executable, const float *x, uint32_t threads) {
  const kiln_program *program = kiln_executable_program(executable);
  const kiln_context_options options = {.threads = threads};
  kiln_context *context = NULL;
  Ports ports = {.ports = program->output_count};
  assert_true(ports.ports <= HOOKED_PORTS);
  for (uint32_t i = 0; i < ports.ports; i++) {
    const size_t bytes = (size_t)(program->outputs[i].bytes * (program->outputs[i].batched ? HOOKED_BATCH : 1));
    ports.data[i] = arena_alloc_aligned(fixture->arena, bytes, KILN_ALIGNMENT);
    ports.count[i] = bytes / sizeof(float);
  }
  MUST(kiln_context_create(executable, &options, &context, error));
  MUST(kiln_run(context, HOOKED_BATCH, (const void *const[]){x}, (void *const *)ports.data, error));
  kiln_context_destroy(context);
  return ports;
}

static Ports run_hooked(Fixture *fixture, const char *hooks, const char *disabled, uint32_t separate, const float *x) {
  static const uint32_t threads[] = {2, 3, 7};
  const char *text = arena_format(fixture->arena, hooked, hooks);
  const kiln_compile_options options = {.precision = KILN_PRECISION_FAST, .threads = 1, .disabled_passes = disabled};
  kiln_executable *executable = NULL;
  kiln_model *model = NULL;
  MUST(kiln_model_parse(NULL, "hooked.json", text, strlen(text), NULL, &model, error));
  MUST(kiln_model_init_weights(model, 5, error));
  MUST(kiln_compile(model, &options, &executable, error));
  const kiln_program *program = kiln_executable_program(executable);
  assert_int_equal(count_steps(program, "conv2d/tiles"), 3);
  assert_int_equal(count_steps(program, "stats_partial"), separate);
  const Ports ports = run_once(fixture, executable, x, 1);
  for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
    const Ports other = run_once(fixture, executable, x, threads[i]);
    for (uint32_t p = 0; p < ports.ports; p++)
      if (memcmp(ports.data[p], other.data[p], ports.count[p] * sizeof(float)) != 0)
        fail_msg("%u threads change output %u", threads[i], p);
  }
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
  return ports;
}

/* Statistics that ride find what kernels of their own find, and change no value of the network. */
static void test_hooks_change_no_values(void **state) {
  static const char stats[] = "{ \"value\": \"*\", \"action\": \"stats\", \"range\": [0, 1.5] }";
  Fixture *fixture = *state;
  if (!machine_has_tiles(fixture)) skip();
  float *x = arena_array(fixture->arena, HOOKED_IMAGE * HOOKED_BATCH, float);
  for (int i = 0; i < HOOKED_IMAGE * HOOKED_BATCH; i++) x[i] = (float)((i * 7919) % 1009) / 505 - 1;
  const Ports plain = run_hooked(fixture, "", NULL, 0, x);
  const Ports riding = run_hooked(fixture, stats, NULL, 0, x);
  const Ports apart = run_hooked(fixture, stats, "reductions", 5, x);
  assert_int_equal(plain.ports, 1);
  assert_int_equal(riding.ports, 6);
  assert_int_equal(apart.ports, 6);
  assert_memory_equal(plain.data[0], riding.data[0], plain.count[0] * sizeof(float));
  assert_memory_equal(plain.data[0], apart.data[0], plain.count[0] * sizeof(float));
  for (uint32_t p = 1; p < riding.ports; p++)
    for (size_t i = 0; i < riding.count[p]; i++) {
      const float found = riding.data[p][i], expected = apart.data[p][i], deviation = apart.data[p][1];
      const float size = i == 0 ? fmaxf(fabsf(expected), deviation) : fabsf(expected);
      if (!(fabsf(found - expected) <= (i < 2 ? 1e-6f * size : 0)))
        fail_msg("hook %u, field %zu: %.9g riding, %.9g apart", p, i, (double)found, (double)expected);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_against_interpreter),
      fixture_test(test_not_numbers),
      fixture_test(test_library),
      fixture_test(test_hooks_change_no_values),
  };
  return cmocka_run_group_tests_name("tiles", tests, NULL, NULL);
}
