/* Passes change how a model is computed, never what: every pass on random models against the interpreter, and the
 * invariants of the plan that comes out. */
#include "plan_checks.h"
#include "random_graph.h"

static const Target narrow = {.triple = "test",
                              .isa = "test",
                              .tune = "generic",
                              .vector_lanes = 4,
                              .hosts_reductions = true,
                              .vector_registers = 16,
                              .l1_bytes = 32768,
                              .l2_bytes = 262144};
static const Target wide = {.triple = "test",
                            .isa = "test",
                            .tune = "generic",
                            .vector_lanes = 16,
                            .hosts_reductions = true,
                            .vector_registers = 32,
                            .fma = true,
                            .l1_bytes = 32768,
                            .l2_bytes = 1048576};

enum { GRAPHS = 60 };

static void evaluate(Fixture *fixture, const Graph *graph, const TensorList *inputs, EvalResult *out_result) {
  if (!graph_eval(graph, inputs, NULL, fixture->arena, fixture->diag, out_result))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

/* --- every pass keeps every value -------------------------------------------------------------------- */

static void run_one(Fixture *fixture, Graph *graph, const char *pass, const PassOptions *options) {
  if (!pipeline_run_list(graph, pass, options, fixture->diag)) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

static void every_pass_keeps_every_value(void **state) {
  Fixture *fixture = *state;
  size_t pass_count;
  const char *const *passes = pass_names(&pass_count);
  for (uint64_t seed = 1; seed <= GRAPHS; seed++) {
    Arena *scratch = arena_create(NULL);
    PassOptions options = {.target = seed % 2 ? &narrow : &wide, .scratch = scratch};
    TensorList inputs;
    Graph *graph = random_graph(seed, fixture->arena, &inputs);
    run_one(fixture, graph, "infer", &options);
    Graph *original = graph_clone(graph, fixture->arena);
    EvalResult expected, found;
    evaluate(fixture, graph, &inputs, &expected);
    for (size_t p = 0; p < pass_count; p++) {
      run_one(fixture, graph, passes[p], &options);
      evaluate(fixture, graph, &inputs, &found);
      check_result(graph, original, &expected, &found, passes[p], seed);
    }
    arena_destroy(scratch);
  }
}

/* --- the plan ---------------------------------------------------------------------------------------- */

static Plan *compile(Fixture *fixture, Graph *graph, const Target *target, const char *disabled) {
  Arena *scratch = arena_create(NULL);
  PassOptions options = {.target = target, .scratch = scratch, .disabled = disabled};
  PipelineOptions pipeline = {.verify = true};
  Plan *plan = NULL;
  if (!pipeline_run(graph, &options, &pipeline, fixture->diag, &plan))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  arena_destroy(scratch);
  return plan;
}

static void plans_are_sound_and_repeatable(void **state) {
  Fixture *fixture = *state;
  for (uint64_t seed = 1; seed <= GRAPHS; seed++) {
    uint64_t identity = 0;
    char *text = NULL;
    for (int round = 0; round < 2; round++) {
      TensorList inputs;
      Graph *graph = random_graph(seed, fixture->arena, &inputs);
      Plan *plan = compile(fixture, graph, seed % 2 ? &narrow : &wide, NULL);
      check_plan(graph, plan, fixture->arena);
      Text printed;
      text_init(&printed, fixture->arena);
      plan_print(&printed, plan);
      if (round) {
        assert_string_equal(printed.data, text);
        assert_true(plan->identity == identity);
      }
      text = printed.data;
      identity = plan->identity;
    }
  }
}

static void disabled_passes_change_no_output(void **state) {
  static const char *const choices[] = {"simplify", "fold_bn", "fuse", "simplify,fold_bn,fuse"};
  Fixture *fixture = *state;
  for (uint64_t seed = 1; seed <= GRAPHS / 2; seed++) {
    for (size_t c = 0; c < sizeof choices / sizeof *choices; c++) {
      TensorList inputs;
      Graph *graph = random_graph(seed, fixture->arena, &inputs);
      EvalResult expected, found;
      assert_true(graph_infer(graph, fixture->diag));
      Graph *original = graph_clone(graph, fixture->arena);
      evaluate(fixture, graph, &inputs, &expected);
      Plan *plan = compile(fixture, graph, seed % 2 ? &wide : &narrow, choices[c]);
      evaluate(fixture, graph, &inputs, &found);
      check_result(graph, original, &expected, &found, choices[c], seed);
      check_plan(graph, plan, fixture->arena);
    }
  }
}

static void equal_kernels_share_code(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "stack");
  Node *x = graph_add_input(graph, "image", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, 16, 8, 8}));
  x = random_conv(graph, x, 16, 3, 1, "first");
  for (int i = 0; i < 4; i++) {
    Node *conv = random_conv(graph, x, 16, 3, 1, arena_format(fixture->arena, "conv%d", i));
    x = graph_add(graph, OP_RELU, NULL, &conv, 1);
    assert_true(node_infer(x, fixture->diag));
  }
  graph_add_output(graph, "y", x);
  Plan *plan = compile(fixture, graph, &wide, NULL);
  size_t convolutions = 0, distinct = 0;
  for (size_t k = 0; k < plan->kernel_count; k++) {
    if (plan->kernels[k].op != OP_CONV2D) continue;
    convolutions++;
    distinct += plan->kernels[k].code == k;
  }
  assert_int_equal(convolutions, 5);
  /* the first without relu, three alike, the last without a halo around its value */
  assert_int_equal(distinct, 3);
}

static void any_value_can_be_an_output(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "outputs");
  const int64_t count = 4;
  Node *x = graph_add_input(graph, "image", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, 4, 8, 8}));
  Parameter parameter = {.name = "scale", .shape = shape_of(1, &count), .layer = LAYER_NONE};
  Node *scale = graph_add_parameter(graph, &parameter);
  Node *positive = graph_add(graph, OP_RELU, "positive", &scale, 1);
  Node *flat = graph_add(graph, OP_FLATTEN, "flat", &x, 1);
  Node *conv = random_conv(graph, x, 16, 3, 1, "conv");
  Node *pooled = graph_add(graph, OP_ADAPTIVE_AVG_POOL2D, "pooled", &conv, 1);
  Node *features = graph_add(graph, OP_FLATTEN, "features", &pooled, 1);
  Node *const outputs[] = {x, x, scale, positive, flat, pooled, features, conv, conv};
  for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
    graph_add_output(graph, arena_format(fixture->arena, "y%zu", i), outputs[i]);
  Plan *plan = compile(fixture, graph, &wide, NULL);
  check_plan(graph, plan, fixture->arena);
}

/* A classifier's end: pooling, flattening and the linear layer's input are one buffer. */
static void flatten_of_pooled_blocks_needs_no_kernel(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "head");
  Node *x = graph_add_input(graph, "image", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, 16, 8, 8}));
  Node *conv = random_conv(graph, x, 32, 3, 1, "conv");
  Node *pooled = graph_add(graph, OP_ADAPTIVE_AVG_POOL2D, "pooled", &conv, 1);
  Node *features = graph_add(graph, OP_FLATTEN, "features", &pooled, 1);
  graph_add_output(graph, "y", graph_add(graph, OP_SOFTMAX, "softmax", &features, 1));
  Plan *plan = compile(fixture, graph, &wide, NULL);
  check_plan(graph, plan, fixture->arena);
  assert_int_equal(plan->prepare_count, 2);
  /* blocked copy of the input, convolution, pool, softmax */
  assert_int_equal(plan->kernel_count - plan->prepare_count, 4);
}

/* --- single passes ----------------------------------------------------------------------------------- */

static Node *find_op(const Graph *graph, OpCode op) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == op) return graph->nodes[i];
  return NULL;
}

static void a_hook_keeps_its_value(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "hooked");
  Node *x = graph_add_input(graph, "image", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, 4, 8, 8}));
  Node *conv = random_conv(graph, x, 8, 3, 1, "body.conv");
  Node *relu = graph_add(graph, OP_RELU, "body.relu", &conv, 1);
  graph_add_output(graph, "y", relu);
  graph->value_names = (ValueName[]){{"body.conv", conv}, {"body.relu", relu}};
  graph->value_name_count = 2;
  graph->hooks = (Hook[]){{"*.conv", HOOK_ACTIVATION, HOOK_STORE, {0}}};
  graph->hook_count = 1;
  Plan *plan = compile(fixture, graph, &wide, NULL);
  assert_int_equal(plan->hook_output_count, 1);
  assert_string_equal(plan->outputs[1].name, "hook.body.conv");
  assert_int_equal(find_op(graph, OP_CONV2D)->epilogue_count, 0);
  Text text;
  text_init(&text, fixture->arena);
  explain_print(&text, graph);
  assert_non_null(strstr(text.data, "an output or hooked"));
}

static void hooks_that_do_not_fit_are_reported(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "hooked");
  Node *x = graph_add_input(graph, "image", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, 4, 8, 8}));
  Node *relu = graph_add(graph, OP_RELU, "relu1", &x, 1);
  graph_add_output(graph, "y", relu);
  graph->value_names = (ValueName[]){{"relu1", relu}};
  graph->value_name_count = 1;
  graph->hooks = (Hook[]){{"relu2", HOOK_ACTIVATION, HOOK_STORE, {"m.json", 3, 5}},
                          {"relu1", HOOK_GRADIENT, HOOK_STORE, {"m.json", 4, 5}}};
  graph->hook_count = 2;
  PassOptions options = {.target = &wide};
  Plan *plan;
  assert_false(pipeline_run(graph, &options, NULL, fixture->diag, &plan));
  check_messages(fixture,
                 "m.json:3:5: error: hook 'relu2' matches no value; did you mean 'relu1'?\n");
  clear_messages(fixture);
  graph->hooks[0].pattern = "relu1";
  graph->hook_count = 2;
  assert_false(pipeline_run(graph, &options, NULL, fixture->diag, &plan));
  check_messages(fixture, "m.json:4:5: error: gradient of 'y': expected class scores f32[N,K], found f32[N,4,8,8]\n");
}

static void unknown_names_in_options_are_reported(void **state) {
  Fixture *fixture = *state;
  TensorList inputs;
  Graph *graph = random_graph(1, fixture->arena, &inputs);
  PassOptions options = {.target = &wide, .disabled = "fuze, layout"};
  PipelineOptions pipeline = {.dump = "before:fuse,during:fuse,after:memry", .stop_after = "fold-bn"};
  Plan *plan;
  assert_false(pipeline_run(graph, &options, &pipeline, fixture->diag, &plan));
  check_messages(fixture,
                 "error: disable: there is no pass 'fuze'; did you mean 'fuse'?\n"
                 "error: disable: pass 'layout' is needed for correct code and cannot be disabled\n"
                 "error: dump: expected before:PASS or after:PASS, found 'during:fuse'\n"
                 "error: dump: there is no pass 'memry'; did you mean 'memory'?\n"
                 "error: stop-after: there is no pass 'fold-bn'; did you mean 'fold_bn'?\n");
}

typedef struct DumpLog {
  Text text;
  bool fail;
} DumpLog;

static bool log_dump(void *context, const char *stage, const char *pass, int number, const char *kind,
                     const char *text) {
  DumpLog *log = context;
  text_format(&log->text, "%s %d %s %s%s\n", stage, number, pass, kind, *text ? "" : " empty");
  return !log->fail;
}

static void dumps_come_in_order(void **state) {
  Fixture *fixture = *state;
  TensorList inputs;
  Graph *graph = random_graph(2, fixture->arena, &inputs);
  PassOptions options = {.target = &wide};
  DumpLog log = {.fail = false};
  text_init(&log.text, fixture->arena);
  PipelineOptions pipeline = {.dump = "before:infer, after:lower,after:layout",
                              .stop_after = "layout",
                              .dot = true,
                              .verify = true,
                              .sink = log_dump,
                              .context = &log};
  Plan *plan = NULL;
  assert_true(pipeline_run(graph, &options, &pipeline, fixture->diag, &plan));
  assert_null(plan);
  assert_string_equal(log.text.data,
                      "before 0 infer ir\nbefore 0 infer dot\nafter 4 lower ir\nafter 4 lower dot\n"
                      "after 12 layout ir\nafter 12 layout dot\n");
  log.fail = true;
  graph = random_graph(2, fixture->arena, &inputs);
  assert_false(pipeline_run(graph, &options, &pipeline, fixture->diag, &plan));
  check_message_part(fixture, "could not be written");
}

/* A chain as long as this shows recursion over depth and quadratic sweeps. */
static void a_long_chain_compiles(void **state) {
  Fixture *fixture = *state;
  static const OpCode ops[] = {OP_RELU, OP_TANH, OP_SIGMOID};
  for (int round = 0; round < 2; round++) {
    Graph *graph = graph_create(fixture->arena, "chain");
    Node *x = graph_add_input(graph, "x", DTYPE_F32, shape_of(2, (int64_t[]){DIM_BATCH, 4}));
    for (int i = 0; i < 100000; i++) x = graph_add(graph, ops[i % 3], NULL, &x, 1);
    graph_add_output(graph, "y", x);
    PassOptions options = {.target = &wide, .disabled = round ? "fuse" : NULL};
    Plan *plan = NULL;
    assert_true(pipeline_run(graph, &options, NULL, fixture->diag, &plan));
    assert_true(plan->kernel_count == (round ? 100000 : 100000 / 33 + 1));
    assert_true(plan->workspace_per_batch <= 128);
  }
}

/* --- tile registers ----------------------------------------------------------------------------------- */

static Algorithm algorithm_of(Fixture *fixture, const char *filter, const char *attrs, int64_t filters, bool tiles,
                              Precision precision) {
  const char *text = arena_format(fixture->arena,
                                  "graph \"one\" {\n  input %%x : f32[N,256,14,14]\n"
                                  "  parameter %%w : f32[%s]\n"
                                  "  %%y = conv2d %%x, %%w {%s} : f32[N,%d,14,14]\n  output y = %%y\n}\n",
                                  filter, attrs, (int)filters);
  Target target = wide;
  target.tiles = tiles;
  const PassOptions options = {.target = &target, .precision = precision, .scratch = arena_create(NULL)};
  Graph *graph = NULL;
  if (!graph_parse("one.ir", text, strlen(text), fixture->arena, fixture->diag, &graph) ||
      !pipeline_run_list(graph, "infer,layout,select", &options, fixture->diag))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  arena_destroy(options.scratch);
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_CONV2D) return graph->nodes[i]->choice.algorithm;
  return ALGORITHM_DEFAULT;
}

/* Only where the error is accepted, the processor has them, and the filters fill panels of one group. */
static void tile_registers_are_chosen_when_allowed(void **state) {
  static const char same[] = "padding=[1,1,1,1]", groups[] = "padding=[1,1,1,1], groups=2", all[] = "256,256,3,3";
  Fixture *f = *state;
  assert_int_equal(algorithm_of(f, all, same, 256, true, PRECISION_FAST), ALGORITHM_TILES);
  assert_int_equal(algorithm_of(f, "256,256,1,1", "", 256, true, PRECISION_FAST), ALGORITHM_TILES);
  assert_int_equal(algorithm_of(f, "256,256,1,1", "", 256, true, PRECISION_DEFAULT), ALGORITHM_TILES);
  assert_int_equal(algorithm_of(f, "256,256,1,1", "", 256, true, PRECISION_STRICT), ALGORITHM_DIRECT);
  assert_int_equal(algorithm_of(f, all, same, 256, true, PRECISION_STRICT), ALGORITHM_DIRECT);
  assert_int_not_equal(algorithm_of(f, all, same, 256, false, PRECISION_FAST), ALGORITHM_TILES);
  assert_int_not_equal(algorithm_of(f, "256,128,3,3", groups, 256, true, PRECISION_FAST), ALGORITHM_TILES);
  assert_int_not_equal(algorithm_of(f, "24,256,3,3", same, 24, true, PRECISION_FAST), ALGORITHM_TILES);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(every_pass_keeps_every_value),
      fixture_test(plans_are_sound_and_repeatable),
      fixture_test(disabled_passes_change_no_output),
      fixture_test(equal_kernels_share_code),
      fixture_test(any_value_can_be_an_output),
      fixture_test(flatten_of_pooled_blocks_needs_no_kernel),
      fixture_test(a_hook_keeps_its_value),
      fixture_test(hooks_that_do_not_fit_are_reported),
      fixture_test(unknown_names_in_options_are_reported),
      fixture_test(dumps_come_in_order),
      fixture_test(a_long_chain_compiles),
      fixture_test(tile_registers_are_chosen_when_allowed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
