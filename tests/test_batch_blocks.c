/* Inference on values with b images side by side, against the interpreter: the example networks and random graphs, for
 * batches around multiples of a block, every instruction set, guard pages around every operand; and when it is chosen.
 */
#include <math.h>

#include "random_graph.h"
#include "run_program.h"
#include "support.h"

static const char *const isas[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"};
enum { ISA_COUNT = sizeof isas / sizeof *isas };

static const double tolerance = 1e-5; /* relative L2 */

/* --- against the interpreter -------------------------------------------------------------------------- */

/* Every step's value, and the outputs. */
static void check_batch(TestProgram *program, const char *label, int64_t batch, int32_t chunks) {
  TestRun run;
  EvalResult expected;
  test_fill(program, FILL_FLOATS, batch, (uint64_t)batch);
  assert_true(test_program_eval(program, program->source, &expected));
  if (!test_program_run(program, batch, chunks, batch % 2 == 0, &run))
    fail_msg("%s on %s, batch %d, %d pieces", label, program->target.isa, (int)batch, (int)chunks);
  for (size_t i = 0; i < program->source->output_count; i++) {
    const GraphOutput *output = &program->source->outputs[i];
    const double error = test_relative_error(&run.outputs.items[i], &expected.values[output->node->id]);
    if (!(error <= tolerance))
      fail_msg("%s on %s, batch %d, %d pieces: '%s' differs by %g", label, program->target.isa, (int)batch, (int)chunks,
               output->name, error);
  }
}

static bool has_blocks(const TestProgram *program) {
  for (size_t k = program->plan->prepare_count; k < program->plan->kernel_count; k++)
    if (program->plan->kernels[k].output.layout.kind == LAYOUT_BATCH_BLOCK) return true;
  return false;
}

static const char *read_example(Fixture *fixture, const char *name) {
  char *text = fixture_example(fixture, name);
  for (char *large; (large = strstr(text, "352")) != NULL;) memcpy(large, " 23", 3); /* pictures of a tractable size */
  return text;
}

static void examples_agree(void **state) {
  static const char *const names[] = {"simple_net", "simple_cnn2", "simple_cnn10", "simple_cnn10_bn",
                                      "broken_cnn", "edges_digit", "edges_rgb",    "edges_rgb2"};
  static const int64_t batches[] = {1, 3, 16, 17, 64};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    for (int isa = 0; isa < ISA_COUNT; isa++) {
      if (!test_isa_runnable(isas[isa])) continue;
      void *own = NULL;
      assert_int_equal(fixture_setup(&own), 0);
      Fixture *fixture = own;
      TestProgram program;
      assert_true(test_program_parse(&program, fixture->arena, read_example(fixture, names[i])));
      program.source->max_batch = 64;
      program.source->batch_blocked = true;
      assert_true(test_program_compile(&program, isas[isa], NULL, PRECISION_DEFAULT));
      assert_true(has_blocks(&program));
      for (size_t b = 0; b < sizeof batches / sizeof *batches; b++)
        check_batch(&program, names[i], batches[b], (int32_t)(b % 3) + 1);
      assert_int_equal(fixture_teardown(&own), 0);
    }
  (void)state;
}

static void random_graphs_agree(void **state) {
  enum { GRAPHS = 45 };
  int blocked = 0;
  for (uint64_t seed = 1; seed <= GRAPHS; seed++) {
    const char *isa = isas[seed % 3];
    if (!test_isa_runnable(isa)) continue;
    void *own = NULL;
    assert_int_equal(fixture_setup(&own), 0);
    Fixture *fixture = own;
    TensorList inputs;
    TestProgram program;
    Graph *graph = random_graph(seed, fixture->arena, &inputs);
    graph->max_batch = 17;
    graph->batch_blocked = true;
    assert_true(test_program_init(&program, fixture->arena, graph));
    assert_true(test_program_compile(&program, isa, NULL, seed % 4 == 0 ? PRECISION_STRICT : PRECISION_DEFAULT));
    blocked += has_blocks(&program);
    const char *label = arena_format(fixture->arena, "random graph %d", (int)seed);
    check_batch(&program, label, 17, 3);
    check_batch(&program, label, 2, 2);
    assert_int_equal(fixture_teardown(&own), 0);
  }
  assert_true(blocked > 20);
  (void)state;
}

/* The backward pass too, with sums over the batch of which the last block is not full. */
static void gradients_agree(void **state) {
  Fixture *fixture = *state;
  static const char text[] =
      "graph \"g\" {\n  max_batch 33\n  batch_blocked\n  input %x : f32[N,2,9,9]\n"
      "  parameter %w : f32[5,2,3,3] {init=weight}\n  parameter %v : f32[4,20] {init=weight}\n"
      "  %c = conv2d %x, %w {stride=[2,2], padding=[1,1,1,1]} : f32[N,5,5,5]\n  %r = relu %c : f32[N,5,5,5]\n"
      "  %p = max_pool2d %r {kernel=[2,2], stride=[2,2]} : f32[N,5,2,2]\n  %f = flatten %p : f32[N,20]\n"
      "  %y = linear %f, %v : f32[N,4]\n  output y = %y\n  gradient y class wrt [\"x\",\"w\",\"v\"]\n}\n";
  for (int isa = 0; isa < ISA_COUNT; isa++) {
    if (!test_isa_runnable(isas[isa])) continue;
    TestProgram program;
    const PassOptions options = {.scratch = NULL};
    assert_true(test_program_parse(&program, fixture->arena, text));
    assert_true(pipeline_run_list(program.source, "autodiff", &options, program.diag));
    assert_true(test_program_compile(&program, isas[isa], NULL, PRECISION_DEFAULT));
    assert_int_equal(program.source->output_count, 4);
    check_batch(&program, "gradients", 33, 2);
    check_batch(&program, "gradients", 5, 3);
  }
}

/* --- hooks -------------------------------------------------------------------------------------------- */

/* A hook neither changes how the network is computed nor what comes out. */
static void hooks_change_nothing(void **state) {
  Fixture *fixture = *state;
  static const char *const hooks[] = {"",
                                      ", \"hooks\": [{\"value\": \"a\"}, {\"value\": \"a\", \"action\": \"stats\"}]"};
  TestRun runs[2];
  for (int i = 0; i < 2; i++) {
    TestProgram program;
    const char *text = arena_format(
        fixture->arena,
        "{\"kiln\": 1, \"name\": \"h\", \"inputs\": {\"x\": {\"shape\": [\"N\", 1, 40, 40]}}, \"layers\": ["
        "{\"op\": \"conv2d\", \"name\": \"a\", \"out_channels\": 5, \"kernel\": 3},"
        "{\"op\": \"relu\"}, {\"op\": \"conv2d\", \"out_channels\": 3, \"kernel\": 3, \"padding\": 1},"
        "{\"op\": \"flatten\", \"name\": \"y\"}], \"outputs\": [\"y\"]%s}",
        hooks[i]);
    assert_true(test_program_parse(&program, fixture->arena, text));
    program.source->max_batch = program.source->min_batch = 32;
    assert_true(test_program_compile(&program, "native", NULL, PRECISION_DEFAULT));
    assert_true(program.graph->batch_blocked);
    test_fill(&program, FILL_FLOATS, 32, 5);
    assert_true(test_program_run(&program, 32, 2, true, &runs[i]));
  }
  assert_true(runs[1].outputs.count > runs[0].outputs.count);
  assert_memory_equal(runs[0].outputs.items[0].data, runs[1].outputs.items[0].data,
                      (size_t)tensor_bytes(&runs[0].outputs.items[0]));
}

/* --- when it is chosen -------------------------------------------------------------------------------- */

static bool chosen(Fixture *fixture, const char *name, int64_t least, int64_t most, const char *disabled) {
  static const Target target = {.triple = "test",
                                .isa = "test",
                                .tune = "generic",
                                .vector_lanes = 16,
                                .vector_registers = 32,
                                .fma = true,
                                .l1_bytes = 48 << 10,
                                .l2_bytes = 2 << 20};
  TestProgram program;
  Arena *scratch = arena_create(NULL);
  Plan *plan;
  assert_true(test_program_parse(&program, fixture->arena, read_example(fixture, name)));
  program.source->min_batch = least;
  program.source->max_batch = most;
  const PassOptions options = {.target = &target, .scratch = scratch, .disabled = disabled};
  const PipelineOptions pipeline = {.verify = true};
  assert_true(pipeline_run(program.source, &options, &pipeline, program.diag, &plan));
  arena_destroy(scratch);
  assert_int_equal(plan->batch_unit, program.source->batch_blocked ? 16 : 1);
  return program.source->batch_blocked;
}

static void narrow_networks_are_blocked(void **state) {
  Fixture *fixture = *state;
  assert_true(chosen(fixture, "simple_cnn10_bn", 64, 64, NULL));
  assert_true(chosen(fixture, "simple_cnn10_bn", 16, 64, NULL));
  assert_true(chosen(fixture, "broken_cnn", 16, 16, NULL));
  assert_false(chosen(fixture, "simple_cnn10_bn", 1, 64, NULL)); /* 16 images for one */
  assert_false(chosen(fixture, "simple_cnn10_bn", 64, 64, "batch_blocks"));
  assert_false(chosen(fixture, "simple_net", 64, 64, NULL)); /* nothing is gained */
  assert_false(chosen(fixture, "resnet18", 64, 64, NULL));
  assert_false(chosen(fixture, "mobilenet_v2", 64, 64, NULL));
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(examples_agree), fixture_test(random_graphs_agree),
                                     fixture_test(gradients_agree), fixture_test(hooks_change_nothing),
                                     fixture_test(narrow_networks_are_blocked)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
