/* Statistics of a batch whose sums the convolution before takes: against the interpreter, with blocks of images that
 * are not full, parts of planes that are not alike, and means that are large against the spread. */
#include <math.h>
#include <string.h>

#include "run_program.h"
#include "support.h"

/* A value that stays in the second-level cache is swept: here there is none to speak of. */
enum { FILTERS = 33, NO_CACHE = 64 };

#define STEP(image, filter, attributes)         \
  "graph \"g\" {\n"                             \
  "  max_batch 48\n"                            \
  "  input %x : " image                         \
  "\n"                                          \
  "  parameter %w : " filter                    \
  "\n"                                          \
  "  parameter %bias : f32[33]\n"               \
  "  parameter %running : f32[33]\n"            \
  "  %y = conv2d %x, %w, %bias {" attributes    \
  "}\n"                                         \
  "  %s = batch_stats %y\n"                     \
  "  %u = bn_update %running, %s, %y {dim=0}\n" \
  "  output s = %s\n"                           \
  "  update running = %u\n"                     \
  "}\n"

static const char *const steps[] = {
    STEP("f32[N,3,9,17]", "f32[33,3,3,3]", "padding=[1,1,1,1]"),
    STEP("f32[N,2,29,21]", "f32[33,2,5,5]", "stride=[2,2], padding=[2,2,2,2]"),
    STEP("f32[N,5,6,6]", "f32[33,5,1,1]", ""),
    STEP("f32[N,3,31,40]", "f32[33,1,3,2]", "groups=3"),
};

static const Node *find_op(const Graph *graph, OpCode op) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == op) return graph->nodes[i];
  return NULL;
}

/* Of the means against the deviations, and of the variances. */
static void check_statistics(const Tensor *found, const double *expected, double deviation, int64_t batch) {
  for (int64_t c = 0; c < FILTERS; c++) {
    const double mean = expected[c], variance = expected[FILTERS + c];
    const double of_mean = fabs(tensor_get(found, c) - mean),
                 of_variance = fabs(tensor_get(found, FILTERS + c) - variance);
    if (!(of_mean <= 1e-6 * (sqrt(variance) + fabs(mean))) || !(of_variance <= deviation * variance))
      fail_msg("batch %d, channel %d: mean %g is off by %g, variance %g by %g", (int)batch, (int)c, mean, of_mean,
               variance, of_variance);
  }
}

static void check_batch(TestProgram *program, int64_t batch, float bias) {
  test_fill(program, FILL_FLOATS, batch, (uint64_t)batch);
  float *biases = program->parameters.items[1].data;
  for (int c = 0; c < FILTERS; c++) biases[c] = bias * (float)(c - 7);
  EvalResult expected;
  TestRun runs[2];
  assert_true(test_program_eval(program, program->source, &expected));
  for (int i = 0; i < 2; i++) assert_true(test_program_run(program, batch, 1 + 4 * i, i > 0, &runs[i]));
  const Tensor *found = &runs[0].outputs.items[0];
  assert_memory_equal(found->data, runs[1].outputs.items[0].data, (size_t)tensor_bytes(found));
  /* a channel's elements are rounded to 2^-24 of their size, thousands of deviations with a bias */
  check_statistics(found, expected.values[program->source->outputs[0].node->id].data, bias > 1 ? 1e-4 : 1e-6, batch);
}

static void test_statistics(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    TestProgram program;
    assert_true(test_program_parse(&program, fixture->arena, steps[i]));
    program.l2_bytes = NO_CACHE;
    assert_true(test_program_compile(&program, "native", NULL, PRECISION_DEFAULT));
    const Node *moments = find_op(program.graph, OP_PLANE_MOMENTS);
    assert_true(moments && moments->hosted);
    static const int64_t batches[] = {1, 15, 16, 35};
    for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
      check_batch(&program, batches[k], 0);
      check_batch(&program, batches[k], 100);
    }
  }
}

/* Where the pass is left out, precision is strict, or the value stays in the cache, a sweep measures them. */
static void test_sweeps(void **state) {
  Fixture *fixture = *state;
  TestProgram program;
  assert_true(test_program_parse(&program, fixture->arena, steps[0]));
  program.l2_bytes = NO_CACHE;
  assert_true(test_program_compile(&program, "native", "reductions", PRECISION_DEFAULT));
  assert_null(find_op(program.graph, OP_PLANE_MOMENTS));
  assert_true(test_program_compile(&program, "native", NULL, PRECISION_STRICT));
  assert_null(find_op(program.graph, OP_PLANE_MOMENTS));
  program.l2_bytes = INT64_C(1) << 40;
  assert_true(test_program_compile(&program, "native", NULL, PRECISION_DEFAULT));
  assert_null(find_op(program.graph, OP_PLANE_MOMENTS));
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_statistics), fixture_test(test_sweeps)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
