/* Convolutions and matrix products of the CPU code generator against the interpreter: every algorithm, tile tails,
 * every instruction set that this machine has, guard pages around every operand. */
#include <math.h>

#include "run_program.h"
#include "support.h"

static const char *const isas[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"};
enum { ISA_COUNT = sizeof isas / sizeof *isas };

/* Bound of |error| / (u · Σ|a||b|), see the README's section on precision: u is half a unit in the last place. */
static const double gate = 8 * 0x1p-24;

#define SAME \
  { 1, 1, 1, 1 }

typedef struct ConvCase {
  const char *name;
  int64_t channels, height, width, filters, kernel[2], stride[2], padding[4];
  int64_t dilation[2], groups, output_padding[2]; /* 0: 1; 1; none */
  bool transposed, bias, relu, residual;
  int64_t batch;
  bool fixed;   /* the batch is part of the shape */
  int64_t then; /* filters of a following 3×3 convolution with padding 1: the first one writes its halo; 0: none */
} ConvCase;

static Node *add_weight(Graph *graph, const char *name, int32_t rank, const int64_t *dims) {
  const Parameter parameter = {.name = name,
                               .dtype = DTYPE_F32,
                               .shape = shape_of(rank, dims),
                               .fan_in = 1,
                               .trainable = true,
                               .layer = LAYER_NONE};
  return graph_add_parameter(graph, &parameter);
}

static Node *add_conv(Graph *graph, const ConvCase *test, Node *input, const char *name, int64_t channels) {
  bool transposed = test->transposed;
  int64_t groups = test->groups > 0 ? test->groups : 1;
  int64_t group_channels = (transposed ? test->filters : channels) / groups;
  const int64_t dims[4] = {transposed ? channels : test->filters, group_channels, test->kernel[0], test->kernel[1]};
  Node *inputs[3] = {input, add_weight(graph, arena_format(graph->arena, "%s.weight", name), 4, dims), NULL};
  if (test->bias) inputs[2] = add_weight(graph, arena_format(graph->arena, "%s.bias", name), 1, &test->filters);
  Node *conv = graph_add(graph, transposed ? OP_CONV_TRANSPOSE2D : OP_CONV2D, name, inputs, test->bias ? 3 : 2);
  conv->attrs.stride = (AttrInt2){{test->stride[0], test->stride[1]}};
  conv->attrs.padding = (AttrInt4){{test->padding[0], test->padding[1], test->padding[2], test->padding[3]}};
  if (test->dilation[0] > 0) conv->attrs.dilation = (AttrInt2){{test->dilation[0], test->dilation[1]}};
  conv->attrs.groups = groups;
  if (transposed) conv->attrs.output_padding = (AttrInt2){{test->output_padding[0], test->output_padding[1]}};
  return conv;
}

static Graph *build_conv(Arena *arena, const ConvCase *test) {
  Graph *graph = graph_create(arena, "conv");
  const int64_t dims[4] = {test->fixed ? test->batch : DIM_BATCH, test->channels, test->height, test->width};
  Node *value =
      add_conv(graph, test, graph_add_input(graph, "x", DTYPE_F32, shape_of(4, dims)), "conv", test->channels);
  if (test->residual) {
    Diag *diag = diag_create(arena);
    assert_true(graph_infer(graph, diag));
    Node *other = graph_add_input(graph, "residual", DTYPE_F32, value->shape);
    value = graph_add(graph, OP_ADD, "sum", (Node *[]){value, other}, 2);
  }
  if (test->relu) value = graph_add(graph, OP_RELU, "act", &value, 1);
  if (test->then > 0) {
    ConvCase next = {.filters = test->then, .kernel = {3, 3}, .stride = {1, 1}, .padding = SAME, .bias = true};
    value = add_conv(graph, &next, value, "next", test->filters);
  }
  graph_add_output(graph, "y", value);
  return graph;
}

static const ConvCase cases[] = {
    {"3x3", 32, 9, 14, 64, {3, 3}, {1, 1}, SAME, .bias = true, .relu = true, .batch = 2},
    {"one pixel", 16, 1, 1, 16, {1, 1}, {1, 1}, .batch = 3},
    {"short rows: tiles of several rows", 32, 7, 7, 32, {3, 3}, {1, 1}, SAME, .bias = true, .batch = 1},
    {"rows of one pixel", 16, 33, 1, 32, {3, 1}, {1, 1}, {1, 0, 1, 0}, .bias = true, .batch = 2},
    {"uneven tiles", 16, 5, 29, 32, {3, 3}, {1, 1}, SAME, .bias = true, .batch = 1},
    {"channels beyond a block", 37, 6, 11, 41, {3, 3}, {1, 1}, SAME, .bias = true, .relu = true, .batch = 2},
    {"1x1", 50, 7, 9, 70, {1, 1}, {1, 1}, .batch = 2, .bias = true},
    {"1x1 stride 2", 48, 9, 8, 24, {1, 1}, {2, 2}, .batch = 1},
    {"1x1 across rows", 112, 7, 7, 64, {1, 1}, {1, 1}, .bias = true, .relu = true, .residual = true, .batch = 2},
    {"1x1 across rows into a halo", 48, 7, 7, 64, {1, 1}, {1, 1}, .bias = true, .relu = true, .batch = 2, .then = 16},
    {"1x1 stride 2 across rows", 48, 14, 13, 128, {1, 1}, {2, 2}, .bias = true, .residual = true, .batch = 2},
    {"1x1 across rows, items of several sizes", 32, 20, 15, 64, {1, 1}, {1, 1}, .batch = 1},
    {"3x3 stride 2", 24, 15, 16, 48, {3, 3}, {2, 2}, SAME, .bias = true, .batch = 2},
    {"stem", 3, 31, 34, 64, {7, 7}, {2, 2}, {3, 3, 3, 3}, .bias = true, .relu = true, .batch = 2},
    {"stem without padding", 1, 12, 13, 10, {5, 5}, {1, 1}, .bias = true, .batch = 2},
    {"dilation", 16, 14, 13, 16, {3, 3}, {1, 1}, {2, 2, 2, 2}, .dilation = {2, 2}, .batch = 1},
    {"uneven padding", 17, 8, 9, 33, {4, 2}, {2, 1}, {2, 0, 1, 1}, .bias = true, .batch = 2},
    {"residual", 32, 8, 10, 40, {3, 3}, {1, 1}, SAME, .bias = true, .relu = true, .residual = true, .batch = 2},
    {"two in a row", 20, 9, 10, 36, {3, 3}, {1, 1}, SAME, .bias = true, .relu = true, .batch = 2, .then = 20},
    {"fixed batch", 16, 6, 6, 32, {3, 3}, {1, 1}, SAME, .bias = true, .batch = 3, .fixed = true},
    {"grouped", 64, 6, 7, 96, {3, 3}, {1, 1}, SAME, .groups = 2, .bias = true, .batch = 2},
    {"grouped, narrow", 48, 6, 7, 48, {3, 3}, {1, 1}, SAME, .groups = 3, .batch = 1},
    {"groups smaller than a block",
     12,
     6,
     37,
     18,
     {3, 3},
     {1, 1},
     SAME,
     .groups = 3,
     .bias = true,
     .relu = true,
     .batch = 2},
    {"reference stride 2", 6, 9, 41, 4, {3, 4}, {2, 2}, {1, 2, 1, 2}, .groups = 2, .bias = true, .batch = 2},
    {"reference wide kernel", 4, 5, 6, 4, {3, 9}, {1, 1}, {1, 4, 1, 4}, .groups = 2, .batch = 1},
    {"depthwise", 40, 7, 19, 40, {3, 3}, {1, 1}, SAME, .groups = 40, .bias = true, .relu = true, .batch = 2},
    {"depthwise stride 2", 32, 9, 10, 32, {5, 5}, {2, 2}, {2, 2, 2, 2}, .groups = 32, .batch = 2},
    {"depthwise wide kernel", 16, 4, 11, 16, {1, 9}, {1, 1}, {0, 4, 0, 4}, .groups = 16, .bias = true, .batch = 1},
    {"depth multiplier", 8, 6, 9, 16, {3, 3}, {1, 1}, SAME, .groups = 8, .batch = 2},
    {"few filters", 3, 21, 45, 6, {3, 3}, {1, 1}, SAME, .bias = true, .relu = true, .residual = true, .batch = 2},
    {"one filter, five taps", 2, 13, 70, 1, {5, 5}, {1, 1}, {2, 2, 2, 2}, .batch = 2, .residual = true},
    {"seven filters, wide taps",
     4,
     9,
     26,
     7,
     {2, 3},
     {2, 1},
     {2, 4, 0, 2},
     .dilation = {2, 3},
     .bias = true,
     .batch = 1},
    {"channels split", 1400, 3, 3, 32, {3, 3}, {1, 1}, SAME, .bias = true, .relu = true, .batch = 1},
    {"transposed",
     6,
     5,
     21,
     4,
     {3, 3},
     {2, 2},
     SAME,
     .transposed = true,
     .output_padding = {1, 1},
     .bias = true,
     .relu = true,
     .batch = 2},
    {"transposed stride 1", 4, 4, 40, 6, {3, 5}, {1, 1}, {1, 2, 1, 2}, .transposed = true, .bias = true, .batch = 1},
    {"transposed 2x2", 8, 3, 3, 8, {2, 2}, {2, 2}, {0, 0, 0, 0}, .transposed = true, .batch = 2},
    {"transposed groups, dilation",
     6,
     4,
     23,
     8,
     {3, 3},
     {3, 2},
     {1, 2, 0, 1},
     .transposed = true,
     .dilation = {2, 3},
     .groups = 2,
     .bias = true,
     .batch = 1},
    {"transposed gaps", 2, 3, 18, 3, {1, 1}, {2, 3}, {0, 0, 0, 0}, .transposed = true, .bias = true, .batch = 1},
    {"transposed large stride",
     2,
     3,
     4,
     3,
     {4, 7},
     {5, 6},
     {1, 2, 1, 2},
     .transposed = true,
     .residual = true,
     .batch = 2},
};
enum { CASE_COUNT = sizeof cases / sizeof *cases };

/* Exact on integers, within the gate on floats, with memory flush against either guard. */
static void check_program(TestProgram *program, const char *name, const char *isa, const char *disabled,
                          int64_t batch) {
  if (!test_program_compile(program, isa, disabled, PRECISION_STRICT))
    fail_msg("%s for %s: does not compile", name, isa);
  size_t output = program->source->outputs[0].node->id;
  EvalResult expected, magnitude;
  TestRun run;
  for (int at_end = 0; at_end < 2; at_end++) {
    test_fill(program, FILL_INTEGERS, batch, 7);
    assert_true(test_program_eval(program, program->source, &expected));
    if (!test_program_run(program, batch, 1 + at_end, at_end, &run)) fail_msg("%s for %s: does not run", name, isa);
    double excess = test_excess(&run.outputs.items[0], &expected.values[output], NULL, 0);
    if (excess > 0) fail_msg("%s for %s, batch %d: integers differ by up to %g", name, isa, (int)batch, excess);
  }
  test_fill(program, FILL_FLOATS, batch, 11);
  assert_true(test_program_eval(program, program->source, &expected));
  assert_true(test_program_run(program, batch, 1, true, &run));
  test_make_absolute(program);
  assert_true(test_program_eval(program, program->source, &magnitude));
  double excess = test_excess(&run.outputs.items[0], &expected.values[output], &magnitude.values[output], gate);
  if (excess > 0) fail_msg("%s for %s: floats pass the gate by %g", name, isa, excess);
}

static void test_convolutions(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < CASE_COUNT; i++)
    for (int isa = 0; isa < ISA_COUNT; isa++) {
      if (!test_isa_runnable(isas[isa])) continue;
      TestProgram program;
      assert_true(test_program_init(&program, fixture->arena, build_conv(fixture->arena, &cases[i])));
      check_program(&program, cases[i].name, isas[isa], NULL, cases[i].batch);
      arena_reset(fixture->arena);
    }
}

/* Along rows, where the layout pass would choose vectors of channels. */
static void test_plain(void **state) {
  static const Layout plain = {LAYOUT_PLAIN, 0};
  Fixture *fixture = *state;
  for (size_t i = 0; i < CASE_COUNT; i++)
    for (int isa = 0; isa < ISA_COUNT; isa++) {
      if (!test_isa_runnable(isas[isa]) || cases[i].transposed) continue;
      TestProgram program;
      assert_true(test_program_init(&program, fixture->arena, build_conv(fixture->arena, &cases[i])));
      program.image_layout = &plain;
      check_program(&program, cases[i].name, isas[isa], isa % 2 ? "fuse" : NULL, cases[i].batch);
      arena_reset(fixture->arena);
    }
}

/* Without fusion the same kernels run without epilogues. */
static void test_without_fusion(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < CASE_COUNT; i += 3) {
    TestProgram program;
    assert_true(test_program_init(&program, fixture->arena, build_conv(fixture->arena, &cases[i])));
    check_program(&program, cases[i].name, "native", "fuse,fold_bn,simplify", cases[i].batch);
    arena_reset(fixture->arena);
  }
}

/* However the items are divided among threads, every bit is the same. */
static void test_divisions(void **state) {
  Fixture *fixture = *state;
  static const int32_t chunks[] = {2, 3, 7, 16};
  for (size_t i = 0; i < CASE_COUNT; i += 2) {
    TestProgram program;
    TestRun one, many;
    assert_true(test_program_init(&program, fixture->arena, build_conv(fixture->arena, &cases[i])));
    assert_true(test_program_compile(&program, "native", NULL, PRECISION_STRICT));
    test_fill(&program, FILL_FLOATS, cases[i].batch, 3);
    assert_true(test_program_run(&program, cases[i].batch, 1, false, &one));
    for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++) {
      assert_true(test_program_run(&program, cases[i].batch, chunks[j], true, &many));
      const Tensor *a = &one.outputs.items[0], *b = &many.outputs.items[0];
      if (memcmp(a->data, b->data, (size_t)tensor_bytes(a)) != 0)
        fail_msg("%s: %d pieces change the result", cases[i].name, (int)chunks[j]);
    }
    arena_reset(fixture->arena);
  }
}

/* --- matrix products --------------------------------------------------------------------------------- */

typedef struct MatrixCase {
  const char *name;
  Shape left, right; /* right.rank 0: linear with `features` */
  int64_t features;
  bool bias, relu, transpose;
  int64_t batch;
} MatrixCase;

static const MatrixCase matrix_cases[] = {
    {"one row", {2, {DIM_BATCH, 64}}, .features = 64, .bias = true, .relu = true, .batch = 1},
    {"few features", {2, {DIM_BATCH, 30}}, .features = 10, .bias = true, .batch = 3},
    {"one feature", {2, {DIM_BATCH, 5}}, .features = 1, .batch = 2},
    {"many rows", {3, {DIM_BATCH, 7, 19}}, .features = 100, .bias = true, .relu = true, .batch = 4},
    {"fixed rows", {2, {3, 33}}, .features = 147, .bias = true, .batch = 1},
    {"matmul", {2, {DIM_BATCH, 13}}, {2, {13, 37}}, .batch = 3, .relu = true},
    {"matmul transposed", {2, {DIM_BATCH, 37}}, {2, {9, 37}}, .transpose = true, .batch = 3},
    {"matmul of many", {4, {DIM_BATCH, 2, 3, 5}}, {4, {DIM_BATCH, 1, 5, 18}}, .batch = 2},
    {"matmul broadcast", {3, {DIM_BATCH, 4, 6}}, {3, {1, 3, 6}}, .transpose = true, .batch = 2},
    {"matmul, left matrix shared", {2, {4, 6}}, {3, {DIM_BATCH, 6, 35}}, .batch = 2},
};
enum { MATRIX_CASE_COUNT = sizeof matrix_cases / sizeof *matrix_cases };

static Graph *build_matrix(Arena *arena, const MatrixCase *test) {
  Graph *graph = graph_create(arena, "matrix");
  Node *inputs[3] = {graph_add_input(graph, "x", DTYPE_F32, test->left)}, *value;
  if (test->right.rank == 0) {
    const int64_t dims[2] = {test->features, test->left.dims[test->left.rank - 1]};
    inputs[1] = add_weight(graph, "linear.weight", 2, dims);
    if (test->bias) inputs[2] = add_weight(graph, "linear.bias", 1, &test->features);
    value = graph_add(graph, OP_LINEAR, "linear", inputs, test->bias ? 3 : 2);
  } else {
    inputs[1] = graph_add_input(graph, "y", DTYPE_F32, test->right);
    value = graph_add(graph, OP_MATMUL, "matmul", inputs, 2);
    value->attrs.transpose = test->transpose;
  }
  if (test->relu) value = graph_add(graph, OP_RELU, "act", &value, 1);
  graph_add_output(graph, "z", value);
  return graph;
}

static void test_matrix_products(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < MATRIX_CASE_COUNT; i++)
    for (int isa = 0; isa < ISA_COUNT; isa++) {
      if (!test_isa_runnable(isas[isa])) continue;
      TestProgram program;
      assert_true(test_program_init(&program, fixture->arena, build_matrix(fixture->arena, &matrix_cases[i])));
      check_program(&program, matrix_cases[i].name, isas[isa], NULL, matrix_cases[i].batch);
      arena_reset(fixture->arena);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_convolutions, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_plain, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_without_fusion, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_divisions, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_matrix_products, fixture_setup, fixture_teardown),
  };
  return cmocka_run_group_tests_name("conv", tests, NULL, NULL);
}
