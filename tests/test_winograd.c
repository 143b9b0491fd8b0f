/* Winograd convolutions of the CPU code generator against the interpreter: all forms, both divisions of the work, all
 * kinds of tile tails, every instruction set that this machine has, guard pages around every operand. */
#include <math.h>

#include "codegen.h"
#include "run_program.h"
#include "select_winograd.h"
#include "support.h"

static const char *const isas[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"};
enum { ISA_COUNT = sizeof isas / sizeof *isas };
static const WinogradSplit forms[] = {WINOGRAD_SPLIT_NEVER, WINOGRAD_SPLIT_ALWAYS, WINOGRAD_PANELS,
                                      WINOGRAD_TRANSFORMING, WINOGRAD_TRANSFORMING_PANELS};
static const char *const form_names[] = {"fused", "split", "panels", "filters transformed in the kernel",
                                         "filters transformed, panels"};
enum { FORM_COUNT = 2 * sizeof forms / sizeof *forms }; /* each with F(2) and F(4) */

/* Bounds of |error| / (u · Σ|a||b|) and of the relative L2 error, see the README's section on precision. */
static double element_gate(int32_t outputs) { return (outputs == 2 ? 8 : 48) * 0x1p-24; }
static double norm_gate(int32_t outputs) { return outputs == 2 ? 2e-6 : 1e-5; }

typedef struct WinogradCase {
  int64_t channels, filters, height, width, padding[4], batch;
  bool bias, relu, residual, fixed;
  int64_t then; /* filters of a following convolution, 3×3, which reads the halo; 0: none */
  bool phases;  /* 7×7 with stride 2; else 3×3 */
} WinogradCase;

#define SAME \
  { 1, 1, 1, 1 }

static const WinogradCase cases[] = {
    {16, 16, 1, 1, SAME, 1},
    {16, 32, 2, 3, SAME, 3, .bias = true},
    {17, 100, 5, 5, SAME, 2, .bias = true, .relu = true},
    {32, 17, 7, 7, SAME, 3, .bias = true, .residual = true, .relu = true},
    {64, 64, 7, 7, SAME, 1, .bias = true, .relu = true, .then = 48},
    {48, 64, 13, 14, SAME, 2, .bias = true, .residual = true},
    {100, 48, 5, 5, {0, 0, 0, 0}, 3, .bias = true},
    {16, 48, 29, 31, SAME, 1, .bias = true, .relu = true, .then = 16},
    {33, 32, 29, 31, {2, 2, 2, 2}, 2, .bias = true},
    {32, 32, 9, 12, {0, 1, 2, 0}, 2, .relu = true, .then = 33},
    {16, 100, 13, 14, {2, 0, 0, 1}, 1, .bias = true, .residual = true, .relu = true, .then = 16},
    {48, 17, 3, 3, {0, 0, 0, 0}, 3},
    {20, 40, 8, 30, SAME, 2, .fixed = true, .bias = true, .then = 20},
    {16, 16, 4, 4, SAME, 4, .bias = true, .then = 16},
};
enum { CASE_COUNT = sizeof cases / sizeof *cases };

static const WinogradCase phases_cases[] = {
    {3, 16, 1, 1, {3, 3, 3, 3}, 1, .phases = true},
    {3, 64, 32, 36, {3, 3, 3, 3}, 1, .bias = true, .relu = true, .phases = true},
    {3, 64, 33, 35, {3, 3, 3, 3}, 2, .bias = true, .residual = true, .relu = true, .phases = true},
    {4, 17, 20, 50, {2, 0, 5, 1}, 3, .bias = true, .phases = true},
    {1, 40, 8, 7, {0, 0, 0, 0}, 3, .relu = true, .phases = true},
    {2, 100, 7, 41, {3, 3, 3, 3}, 2, .fixed = true, .bias = true, .relu = true, .phases = true},
    {3, 32, 41, 17, {4, 9, 0, 2}, 1, .bias = true, .then = 16, .phases = true},
};
enum { PHASES_COUNT = sizeof phases_cases / sizeof *phases_cases };

static Node *add_weight(Graph *graph, const char *name, int32_t rank, const int64_t *dims) {
  const Parameter parameter = {.name = name,
                               .dtype = DTYPE_F32,
                               .shape = shape_of(rank, dims),
                               .fan_in = 1,
                               .trainable = true,
                               .layer = LAYER_NONE};
  return graph_add_parameter(graph, &parameter);
}

static Node *add_conv(Graph *graph, Node *input, const char *name, int64_t channels, int64_t filters,
                      const int64_t padding[4], bool bias, bool phases) {
  const int64_t taps = phases ? 7 : 3, dims[4] = {filters, channels, taps, taps};
  Node *inputs[3] = {input, add_weight(graph, arena_format(graph->arena, "%s.weight", name), 4, dims), NULL};
  if (bias) inputs[2] = add_weight(graph, arena_format(graph->arena, "%s.bias", name), 1, &filters);
  Node *conv = graph_add(graph, OP_CONV2D, name, inputs, bias ? 3 : 2);
  for (int side = 0; side < 4; side++) conv->attrs.padding.values[side] = padding[side];
  if (phases) conv->attrs.stride = (AttrInt2){{2, 2}};
  return conv;
}

static Graph *build(Arena *arena, const WinogradCase *test) {
  Graph *graph = graph_create(arena, "winograd");
  const int64_t dims[4] = {test->fixed ? test->batch : DIM_BATCH, test->channels, test->height, test->width};
  Node *value = graph_add_input(graph, "x", DTYPE_F32, shape_of(4, dims));
  value = add_conv(graph, value, "conv", test->channels, test->filters, test->padding, test->bias, test->phases);
  if (test->residual) {
    assert_true(graph_infer(graph, diag_create(arena)));
    Node *other = graph_add_input(graph, "residual", DTYPE_F32, value->shape);
    value = graph_add(graph, OP_ADD, "sum", (Node *[]){value, other}, 2);
  }
  if (test->relu) value = graph_add(graph, OP_RELU, "act", &value, 1);
  if (test->then > 0) {
    const int64_t same[4] = SAME;
    value = add_conv(graph, value, "next", test->filters, test->then, same, true, false);
  }
  graph_add_output(graph, "y", value);
  return graph;
}

static Algorithm algorithm_of(int32_t outputs) {
  return outputs == 2 ? ALGORITHM_WINOGRAD23 : outputs == 3 ? ALGORITHM_WINOGRAD34 : ALGORITHM_WINOGRAD43;
}

/* As test_program_compile, with Winograd's algorithm wherever it is possible. */
static bool compile(TestProgram *program, const char *isa, int32_t outputs, WinogradSplit split) {
  static const char before[] = "infer,hooks,lower,simplify,fold_bn,expand_bn,fuse,layout,select";
  Arena *arena = program->arena, *scratch = arena_create(NULL);
  Diag *diag = program->diag = diag_create(arena);
  Graph *graph = program->graph = graph_clone(program->source, arena);
  bool done = cpu_target(isa, NULL, arena, diag, &program->target);
  const Layout blocks = {LAYOUT_CHANNEL_BLOCK, program->target.vector_lanes};
  const PassOptions options = {
      .target = &program->target, .precision = PRECISION_STRICT, .scratch = scratch, .image_layout = &blocks};
  done = done && pipeline_run_list(graph, before, &options, diag) &&
         select_winograd_always(graph, &options, algorithm_of(outputs), split, diag) &&
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

static bool uses_winograd(const Plan *plan) {
  for (size_t k = 0; k < plan->kernel_count; k++)
    if (algorithm_winograd_form(plan->kernels[k].choice.algorithm).outputs > 0) return true;
  return false;
}

/* What the interpreter gives for a case: all programs of it have the same inputs. */
typedef struct Reference {
  EvalResult integers, floats;
  EvalResult magnitude; /* of the floats' absolute values */
} Reference;

enum { INTEGER_SEED = 7, FLOAT_SEED = 11 };

static void evaluate(Arena *arena, const WinogradCase *test, Reference *out_reference) {
  TestProgram program;
  assert_true(test_program_init(&program, arena, build(arena, test)));
  test_fill(&program, FILL_INTEGERS, test->batch, INTEGER_SEED);
  assert_true(test_program_eval(&program, program.source, &out_reference->integers));
  test_fill(&program, FILL_FLOATS, test->batch, FLOAT_SEED);
  assert_true(test_program_eval(&program, program.source, &out_reference->floats));
  test_make_absolute(&program);
  assert_true(test_program_eval(&program, program.source, &out_reference->magnitude));
}

/* Bounds hold for one convolution; a second one passes on the error of the first. */
static void check(TestProgram *program, const WinogradCase *test, const Reference *reference, const char *label,
                  int32_t outputs) {
  size_t output = program->source->outputs[0].node->id;
  TestRun run;
  double factor = test->then > 0 ? 2 : 1;
  if (outputs == 2) { /* all its constants are halves: small integers are exact */
    test_fill(program, FILL_INTEGERS, test->batch, INTEGER_SEED);
    assert_true(test_program_run(program, test->batch, 1, false, &run));
    double excess = test_excess(&run.outputs.items[0], &reference->integers.values[output], NULL, 0);
    if (excess > 0) fail_msg("%s: integers differ by up to %g", label, excess);
  }
  test_fill(program, FILL_FLOATS, test->batch, FLOAT_SEED);
  const EvalTensor *expected = &reference->floats.values[output], *magnitude = &reference->magnitude.values[output];
  for (int at_end = 0; at_end < 2; at_end++) {
    if (!test_program_run(program, test->batch, 1 + at_end, at_end, &run)) fail_msg("%s: does not run", label);
    double norm = test_relative_error(&run.outputs.items[0], expected);
    if (!(norm <= factor * norm_gate(outputs))) fail_msg("%s: relative L2 error %g", label, norm);
    double excess = test_excess(&run.outputs.items[0], expected, magnitude, factor * element_gate(outputs));
    if (excess > 0) fail_msg("%s: passes the gate by %g", label, excess);
  }
}

static void check_program(Fixture *fixture, size_t number, const Reference *reference, const char *isa, int form) {
  int32_t outputs = form & 1 ? 4 : 2;
  const char *label =
      arena_format(fixture->arena, "case %zu, %s, F(%d), %s", number, isa, (int)outputs, form_names[form / 2]);
  TestProgram program;
  assert_true(test_program_init(&program, fixture->arena, build(fixture->arena, &cases[number])));
  if (!compile(&program, isa, outputs, forms[form / 2])) fail_msg("%s: does not compile", label);
  assert_true(uses_winograd(program.plan));
  check(&program, &cases[number], reference, label, outputs);
}

/* The widest instruction set that runs here takes all forms of a case; the narrower ones, whose code differs in the
 * width of vectors only, take every third, so that three cases in a row see all of them. */
static void test_against_interpreter(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < CASE_COUNT; i++) {
    Arena *arena = arena_create(NULL);
    Reference reference;
    evaluate(arena, &cases[i], &reference);
    bool widest = true;
    for (int isa = 0; isa < ISA_COUNT; isa++) {
      if (!test_isa_runnable(isas[isa])) continue;
      for (int form = widest ? 0 : (int)((i + (size_t)isa) % 3); form < FORM_COUNT; form += widest ? 1 : 3) {
        check_program(fixture, i, &reference, isas[isa], form);
        arena_reset(fixture->arena);
      }
      widest = false;
    }
    arena_destroy(arena);
  }
}

/* The phases of images with few channels, and what a filter of 7×7 has of them. */
static void test_phases(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < PHASES_COUNT; i++) {
    Arena *arena = arena_create(NULL);
    Reference reference;
    evaluate(arena, &phases_cases[i], &reference);
    for (int isa = 0; isa < ISA_COUNT; isa++) {
      if (!test_isa_runnable(isas[isa])) continue;
      const char *label = arena_format(fixture->arena, "phases %zu, %s", i, isas[isa]);
      TestProgram program;
      assert_true(test_program_init(&program, fixture->arena, build(fixture->arena, &phases_cases[i])));
      if (!compile(&program, isas[isa], 3, WINOGRAD_SPLIT_AS_PLANNED)) fail_msg("%s: does not compile", label);
      /* a vector's channels are a block, which direct convolution reads */
      const bool plain = phases_cases[i].channels < program.target.vector_lanes;
      if (uses_winograd(program.plan) != plain) fail_msg("%s: %s", label, plain ? "not computed so" : "computed so");
      if (plain) check(&program, &phases_cases[i], &reference, label, 3);
      arena_reset(fixture->arena);
    }
    arena_destroy(arena);
  }
}

/* However the items are divided among threads and grouped, every bit is the same. */
static void check_divisions(Fixture *fixture, const WinogradCase *test, int32_t outputs, WinogradSplit split,
                            const char *label) {
  static const int32_t chunks[] = {2, 3, 7, 16};
  TestProgram program;
  TestRun one, many;
  assert_true(test_program_init(&program, fixture->arena, build(fixture->arena, test)));
  assert_true(compile(&program, "native", outputs, split));
  test_fill(&program, FILL_FLOATS, test->batch, 3);
  assert_true(test_program_run(&program, test->batch, 1, false, &one));
  for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++) {
    assert_true(test_program_run(&program, test->batch, chunks[j], true, &many));
    const Tensor *a = &one.outputs.items[0], *b = &many.outputs.items[0];
    if (memcmp(a->data, b->data, (size_t)tensor_bytes(a)) != 0)
      fail_msg("%s: %d pieces change the result", label, (int)chunks[j]);
  }
  arena_reset(fixture->arena);
}

static void test_divisions(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < CASE_COUNT; i++)
    for (int form = 0; form < FORM_COUNT; form++)
      check_divisions(fixture, &cases[i], form & 1 ? 4 : 2, forms[form / 2],
                      arena_format(fixture->arena, "case %zu, form %d", i, form));
  for (size_t i = 0; i < PHASES_COUNT; i++)
    check_divisions(fixture, &phases_cases[i], 3, WINOGRAD_SPLIT_AS_PLANNED,
                    arena_format(fixture->arena, "phases %zu", i));
}

/* `select` takes it where it pays and the precision allows it. */
static void test_selection(void **state) {
  Fixture *fixture = *state;
  static const WinogradCase large = {64, 64, 56, 56, SAME, 1, .bias = true};
  static const WinogradCase small = {16, 16, 1, 1, SAME, 1};
  static const WinogradCase stem = {3, 64, 224, 224, {3, 3, 3, 3}, 1, .bias = true, .phases = true};
  TestProgram program;
  assert_true(test_program_init(&program, fixture->arena, build(fixture->arena, &large)));
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_DEFAULT));
  assert_true(uses_winograd(program.plan));
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_STRICT));
  assert_false(uses_winograd(program.plan));
  assert_true(test_program_init(&program, fixture->arena, build(fixture->arena, &stem)));
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_DEFAULT));
  assert_true(uses_winograd(program.plan));
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_STRICT));
  assert_false(uses_winograd(program.plan));
  assert_true(test_program_init(&program, fixture->arena, build(fixture->arena, &small)));
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_DEFAULT));
  assert_false(uses_winograd(program.plan));
}

/* A convolution with stride, dilation, groups, another filter or few channels keeps its algorithm. */
static void test_others_stay(void **state) {
  Fixture *fixture = *state;
  static const char *const names[] = {"stride", "dilation", "groups", "1x1", "few channels"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    const int64_t filters = 64, channels = i == 4 ? 3 : 64;
    Graph *graph = graph_create(fixture->arena, "other");
    Node *x = graph_add_input(graph, "x", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, channels, 30, 30}));
    const int64_t dims[4] = {filters, i == 2 ? channels / 2 : channels, i == 3 ? 1 : 3, i == 3 ? 1 : 3};
    Node *conv = graph_add(graph, OP_CONV2D, "conv", (Node *[]){x, add_weight(graph, "weight", 4, dims)}, 2);
    if (i == 0) conv->attrs.stride = (AttrInt2){{2, 2}};
    if (i == 1) conv->attrs.dilation = (AttrInt2){{2, 2}};
    if (i == 2) conv->attrs.groups = 2;
    graph_add_output(graph, "y", conv);
    TestProgram program;
    assert_true(test_program_init(&program, fixture->arena, graph));
    assert_true(compile(&program, "x86-64-v4", 4, WINOGRAD_SPLIT_AS_PLANNED));
    if (uses_winograd(program.plan)) fail_msg("%s: computed by Winograd's algorithm", names[i]);
  }
}

static int count_parts(const char *text, const char *part) {
  int count = 0;
  for (const char *at = text; (at = strstr(at, part)) != NULL; at++) count++;
  return count;
}

/* Kernels that differ in their epilogue have one routine for the products, whichever thread comes to it first. */
static void test_shared_routines(void **state) {
  Fixture *fixture = *state;
  static const OpCode activations[] = {OP_RELU, OP_SIGMOID, OP_TANH};
  Graph *graph = graph_create(fixture->arena, "shared");
  Node *value = graph_add_input(graph, "x", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, 32, 16, 16}));
  for (int i = 0; i < 4; i++) {
    value = add_conv(graph, value, arena_format(fixture->arena, "conv%d", i), 32, 32, (int64_t[4])SAME, true, false);
    if (i < 3) value = graph_add(graph, activations[i], arena_format(fixture->arena, "act%d", i), &value, 1);
  }
  graph_add_output(graph, "y", value);
  TestProgram program;
  assert_true(test_program_init(&program, fixture->arena, graph));
  assert_true(compile(&program, "native", 4, WINOGRAD_SPLIT_NEVER));
  Text texts[2];
  for (int i = 0; i < 2; i++) {
    const CpuOptions options = {.threads = i == 0 ? 1 : 4};
    text_init(&texts[i], fixture->arena);
    assert_true(cpu_print(program.plan, &options, false, fixture->arena, fixture->diag, &texts[i]));
  }
  assert_int_equal(count_parts(texts[0].data, "define hidden void @shared_multiply_"), 1);
  assert_int_equal(count_parts(texts[0].data, "define hidden void @shared_finish_"), 4);
  assert_string_equal(texts[0].data, texts[1].data);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_against_interpreter, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_phases, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_divisions, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_selection, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_others_stay, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_shared_routines, fixture_setup, fixture_teardown),
  };
  return cmocka_run_group_tests_name("winograd", tests, NULL, NULL);
}
