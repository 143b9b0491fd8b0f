/* Max pools in the kernels of convolutions: the same bits as with a kernel of their own, for every instruction set, batch
 * and division of the work, with guard pages around every operand; and where they stay kernels of their own. */
#include <string.h>

#include "codegen.h"
#include "run_program.h"
#include "support.h"

static const char *const isas[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"};
enum { ISA_COUNT = sizeof isas / sizeof *isas, SMALL_CACHE = 400 << 10, SEED = 5 };

/* Between the brackets of "layers"; what reads "image" of shape [N, `channels`, `height`, `width`]. */
typedef struct PoolCase {
  const char *layers;
  int64_t channels, height, width, batch;
} PoolCase;

#define CONV3(name, filters) \
  "{ \"op\": \"conv2d\", \"name\": \"" name "\", \"out_channels\": " #filters ", \"kernel\": 3, \"padding\": 1 }"
#define CONV7(name, filters)                                                  \
  "{ \"op\": \"conv2d\", \"name\": \"" name "\", \"out_channels\": " #filters \
  ", \"kernel\": 7, \"stride\": 2, "                                          \
  "\"padding\": 3 }"
#define RELU             ", { \"op\": \"relu\", \"name\": \"r\" }"
#define POOL(attributes) ", { \"op\": \"max_pool2d\", \"name\": \"p\", " attributes " }"
#define POOL2            POOL("\"kernel\": 2, \"stride\": 2")
#define POOL3            POOL("\"kernel\": 3, \"stride\": 2, \"padding\": 1")

static const PoolCase hosted_cases[] = {
    {CONV7("c", 64) RELU POOL3, 3, 94, 110, 1},
    {CONV7("c", 32) RELU POOL3 ", " CONV3("d", 16), 3, 131, 125, 2},
    {CONV7("c", 64) POOL2, 2, 97, 90, 3},
    {CONV3("c", 64) RELU POOL2, 16, 41, 40, 2},
    {CONV3("c", 64) RELU POOL3 ", " CONV3("d", 32), 16, 43, 38, 2},
    {CONV3("c", 48) POOL("\"kernel\": 3, \"stride\": 2, \"padding\": 1, \"ceil_mode\": true"), 16, 46, 47, 1},
    {CONV3("c", 40) POOL("\"kernel\": 2, \"stride\": 1, \"padding\": 1"), 16, 39, 40, 3},
    {CONV3("c", 48) POOL("\"kernel\": 3, \"stride\": 3"), 16, 46, 40, 1},
};

static const PoolCase other_cases[] = {
    {CONV3("c", 64) POOL("\"kernel\": 3, \"stride\": 2"), 16, 40, 40, 1}, /* windows begin before a strip's rows end */
    {CONV3("c", 64) RELU ", { \"op\": \"avg_pool2d\", \"name\": \"p\", \"kernel\": 2, \"stride\": 2 }", 16, 40, 40, 1},
    {"{ \"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 64, \"kernel\": 1 }" POOL2, 16, 40, 40, 1},
    {CONV3("c", 64) POOL2, 16, 20, 20, 1}, /* stays in the cache */
};

static void open_case(TestProgram *program, Fixture *fixture, const PoolCase *test, const char *outputs) {
  const char *text =
      arena_format(fixture->arena,
                   "{\"kiln\": 1, \"name\": \"pools\", \"inputs\": {\"image\": {\"shape\": [\"N\", %d, %d, %d]}},"
                   "\"layers\": [%s], \"outputs\": [%s]}",
                   (int)test->channels, (int)test->height, (int)test->width, test->layers, outputs);
  assert_true(test_program_parse(program, fixture->arena, text));
  program->l2_bytes = SMALL_CACHE;
}

static const char *last_output(const PoolCase *test) { return strstr(test->layers, "\"d\"") ? "\"d\"" : "\"p\""; }

static const PlanKernel *pooling_kernel(const Plan *plan) {
  for (size_t k = 0; k < plan->kernel_count; k++)
    if (plan->kernels[k].pool) return &plan->kernels[k];
  return NULL;
}

static void expect_same(const TestRun *a, const TestRun *b, const char *label, int chunks) {
  const Tensor *x = &a->outputs.items[0], *y = &b->outputs.items[0];
  assert_int_equal(tensor_bytes(x), tensor_bytes(y));
  if (memcmp(x->data, y->data, (size_t)tensor_bytes(x)) != 0) fail_msg("%s: other bits in %d pieces", label, chunks);
}

static void check_case(Fixture *fixture, const PoolCase *test, const char *isa, const char *label) {
  static const int32_t chunks[] = {1, 2, 3, 7, 16};
  TestProgram program;
  TestRun apart, together;
  EvalResult expected;
  open_case(&program, fixture, test, last_output(test));
  assert_true(test_program_compile(&program, isa, "pools", PRECISION_DEFAULT));
  assert_null(pooling_kernel(program.plan));
  test_fill(&program, FILL_FLOATS, test->batch, SEED);
  assert_true(test_program_run(&program, test->batch, 1, false, &apart));
  assert_true(test_program_compile(&program, isa, NULL, PRECISION_DEFAULT));
  const PlanKernel *kernel = pooling_kernel(program.plan);
  if (kernel == NULL) fail_msg("%s: the pool has a kernel of its own", label);
  assert_string_equal(kernel->name, "p");
  assert_int_equal(kernel->pool->made.storage.space, SPACE_NONE);
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    if (!test_program_run(&program, test->batch, chunks[i], i & 1, &together)) fail_msg("%s: does not run", label);
    expect_same(&apart, &together, label, (int)chunks[i]);
  }
  assert_true(test_program_eval(&program, program.source, &expected));
  const size_t output = program.source->outputs[0].node->id;
  const double error = test_relative_error(&together.outputs.items[0], &expected.values[output]);
  if (!(error <= 1e-5)) fail_msg("%s: relative L2 error %g", label, error);
}

static void test_same_bits(void **state) {
  Fixture *fixture = *state;
  for (int isa = 0; isa < ISA_COUNT; isa++)
    for (size_t i = 0; i < sizeof hosted_cases / sizeof *hosted_cases && test_isa_runnable(isas[isa]); i++) {
      const char *label = arena_format(fixture->arena, "case %zu, %s", i, isas[isa]);
      check_case(fixture, &hosted_cases[i], isas[isa], label);
      arena_reset(fixture->arena);
    }
}

static void test_kernels_of_their_own(void **state) {
  Fixture *fixture = *state;
  TestProgram program;
  for (size_t i = 0; i < sizeof other_cases / sizeof *other_cases; i++) {
    open_case(&program, fixture, &other_cases[i], "\"p\"");
    assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_DEFAULT));
    if (pooling_kernel(program.plan)) fail_msg("case %zu: computed by the convolution", i);
  }
  open_case(&program, fixture, &hosted_cases[3], "\"p\", \"r\""); /* the value is wanted, too */
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_DEFAULT));
  assert_null(pooling_kernel(program.plan));
  open_case(&program, fixture, &hosted_cases[3], "\"p\"");
  assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_STRICT)); /* direct: no strips */
  assert_null(pooling_kernel(program.plan));
}

/* The graph after the pass, in which something is then wrong. */
static void test_verifier(void **state) {
  Fixture *fixture = *state;
  static const char *const messages[] = {"does not work in strips of rows", "is read by others, too",
                                         "has a place, which nothing writes"};
  for (int damage = 0; damage < 3; damage++) {
    TestProgram program;
    open_case(&program, fixture, &hosted_cases[3], "\"p\"");
    assert_true(test_program_compile(&program, "x86-64-v4", NULL, PRECISION_DEFAULT));
    Graph *graph = program.graph;
    Node *pool = NULL;
    for (size_t i = 0; i < graph->node_count; i++)
      if (graph->nodes[i]->op == OP_MAX_POOL2D) pool = graph->nodes[i];
    assert_true(pool && pool->hosted);
    Diag *diag = diag_create(fixture->arena);
    assert_true(graph_verify(graph, "pools", diag));
    if (damage == 0) pool->inputs[0]->choice.row_chunk = 0;
    if (damage == 1) graph_add_output(graph, "also", pool->inputs[0]);
    if (damage == 2) pool->inputs[0]->storage.space = SPACE_WORKSPACE;
    assert_false(graph_verify(graph, "pools", diag));
    const char *text = diag_text(diag, fixture->arena);
    if (!strstr(text, messages[damage])) fail_msg("expected '%s', found: %s", messages[damage], text);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_same_bits, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_kernels_of_their_own, fixture_setup, fixture_teardown),
      cmocka_unit_test_setup_teardown(test_verifier, fixture_setup, fixture_teardown),
  };
  return cmocka_run_group_tests_name("strips", tests, NULL, NULL);
}
