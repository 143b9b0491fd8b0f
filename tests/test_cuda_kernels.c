/* Every op's generated CUDA text against the interpreter, on the emulated GPU: the table of ops as the passes lay it
 * out, and again with channels last and an epilogue. Buffers are watched at both ends, barriers and copies checked;
 * results are the same bits whichever way the threads of a warp run. */
#include <math.h>

#include "base/checked.h"
#include "cuda/cuda.h"
#include "description.h"
#include "hand_plan.h"
#include "op_cases.h"
#include "run_cuda.h"
#include "support.h"

static const char *const arch = "sm_90";

/* Products are cuda-gemm's: their own test has them in all arithmetics and shapes. */
static bool is_product(OpCode op) {
  return op == OP_CONV2D || op == OP_CONV_TRANSPOSE2D || op == OP_CONV2D_GRAD_WEIGHT || op == OP_LINEAR ||
         op == OP_LINEAR_GRAD_WEIGHT || op == OP_MATMUL;
}

/* Their result is the state of the next step. */
static bool is_step(OpCode op) { return op == OP_SGD_STEP || op == OP_ADAM_STEP; }

static bool same_number(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

static void compare(const char *label, const Tensor *actual, const EvalTensor *expected, bool exact) {
  double squares = 0, errors = 0;
  for (int64_t i = 0; i < tensor_elements(actual); i++) {
    double value = tensor_get(actual, i), wanted = expected->data[i];
    if (!same_number(value, wanted) && (exact || !isfinite(value) || !isfinite(wanted)))
      fail_msg("%s: element %d is %.9g, expected %.9g", label, (int)i, value, wanted);
    if (!isfinite(wanted)) continue;
    squares += wanted * wanted;
    errors += (value - wanted) * (value - wanted);
  }
  if (sqrt(errors) > 1e-6 * sqrt(squares) + 1e-30) fail_msg("%s: relative error %g", label, sqrt(errors / squares));
}

/* The same elements with channels last, as the memory of a hand-made plan's port holds them. */
static TensorList move_channels_last(const TensorList *list, Arena *arena) {
  TensorList moved = {arena_copy(arena, list->items, list->count * sizeof *list->items), list->count};
  for (size_t i = 0; i < moved.count; i++) {
    Tensor *tensor = &moved.items[i];
    const int64_t *dims = tensor->shape.dims;
    if (tensor->shape.rank != 4) continue;
    *tensor = tensor_create(arena, tensor->name, tensor->dtype, tensor->shape);
    for (int64_t at = 0; at < tensor_elements(tensor); at++) {
      int64_t place = at % (dims[2] * dims[3]), c = at / (dims[2] * dims[3]) % dims[1];
      int64_t n = at / (dims[1] * dims[2] * dims[3]);
      tensor_set(tensor, (n * dims[2] * dims[3] + place) * dims[1] + c, tensor_get(&list->items[i], at));
    }
  }
  return moved;
}

/* The result of a run: a port, or what a hand-made plan's only step has left, seen through its view. */
static Tensor run_result(TestProgram *program, const char *label, int64_t batch, bool channels_last) {
  TestRun run;
  const TensorList inputs = program->inputs, parameters = program->parameters;
  if (channels_last) {
    /* all operands of a hand-made plan are inputs */
    TensorList all = {arena_array(program->arena, inputs.count + parameters.count, Tensor), 0};
    for (size_t i = 0; i < inputs.count; i++) all.items[all.count++] = inputs.items[i];
    for (size_t i = 0; i < parameters.count; i++) all.items[all.count++] = parameters.items[i];
    program->inputs = move_channels_last(&all, program->arena);
  }
  if (!test_program_run(program, batch, 1, false, &run)) fail_msg("%s: does not run", label);
  program->inputs = inputs;
  return channels_last ? run.values.items[0] : run.outputs.items[0];
}

/* Runs the compiled program for one, two and three images, and once with the threads in reverse. */
static void check_program(TestProgram *program, const char *label, bool exact, bool channels_last) {
  for (int64_t batch = 1; batch <= 3; batch++) {
    EvalResult expected;
    op_case_fill(program->source, batch, batch == 2 ? OP_CASE_FLOATS : OP_CASE_INTEGERS, 7, program->arena,
                 &program->inputs, &program->parameters);
    Tensor result = run_result(program, label, batch, channels_last);
    assert_true(test_program_eval(program, program->source, &expected));
    compare(arena_format(program->arena, "%s, batch %d", label, (int)batch), &result,
            &expected.values[program->source->outputs[0].node->id], exact && batch != 2);
    if (batch != 3) continue;
    setenv("KILN_EMULATOR_ORDER", "reverse", 1);
    Tensor reversed = run_result(program, label, batch, channels_last);
    unsetenv("KILN_EMULATOR_ORDER");
    if (memcmp(result.data, reversed.data, (size_t)tensor_bytes(&result)) != 0)
      fail_msg("%s: another result with the threads in reverse", label);
  }
}

static Graph *case_graph(const OpCase *line, Arena *arena) {
  Diag *diag = diag_create(arena);
  Graph *graph = op_case_graph(line, 4, arena, diag);
  if (graph == NULL) fail_msg("%s: %s", op_case_label(line, arena), diag_text(diag, arena));
  return graph;
}

/* As the passes lay it out. */
static void check_planned(const OpCase *line, bool exact) {
  Arena *arena = arena_create(NULL);
  TestProgram program = {0};
  const char *label = op_case_label(line, arena);
  Graph *graph = case_graph(line, arena);
  if (!is_product(graph->outputs[0].node->op)) {
    assert_true(test_program_init(&program, arena, graph));
    if (!test_cuda_compile(&program, arch, MATH_FP32, NULL, PRECISION_STRICT)) fail_msg("%s: not compiled", label);
    check_program(&program, label, exact, false);
  }
  arena_destroy(arena);
}

/* --- channels last ------------------------------------------------------------------------------------ */

static PlanTensor make_tensor(const Node *value, Space space, int32_t index) {
  PlanTensor tensor = hand_tensor(value->name, value->shape, space, index);
  if (value->shape.rank == 4) hand_layout(&tensor, (Layout){LAYOUT_CHANNEL_LAST, 0}, NULL, 0);
  tensor.dtype = value->dtype;
  tensor.storage.bytes *= data_type_bytes(value->dtype) / 4;
  return tensor;
}

/* y = relu(y + e) with an operand of the output's shape, in the graph too. */
static void add_epilogue(Graph *graph, Node *node) {
  const Attrs attrs = attrs_default();
  Node *operand = graph_add_input(graph, "e", DTYPE_F32, node->shape);
  graph->nodes[graph->node_count - 2] = operand; /* topological order: before its reader, which stood last */
  graph->nodes[graph->node_count - 1] = node;
  node_add_epilogue(graph, node, OP_ADD, &attrs, operand, false);
  node_add_epilogue(graph, node, OP_RELU, &attrs, NULL, false);
}

static void check_hand_made(const OpCase *line, bool exact, int64_t max_batch) {
  Arena *arena = arena_create(NULL);
  TestProgram program = {0};
  Graph *graph = case_graph(line, arena);
  Node *node = graph->outputs[0].node;
  bool image = false;
  for (int32_t i = 0; i < node->input_count; i++) image = image || node->inputs[i]->shape.rank == 4;
  if (node->dtype == DTYPE_F32 && !is_product(node->op) && !is_step(node->op) && (image || node->shape.rank < 4)) {
    const char *label = arena_format(arena, "%s, channels last with an epilogue", op_case_label(line, arena));
    add_epilogue(graph, node);
    assert_true(test_program_init(&program, arena, graph));
    assert_true(cuda_target(arch, NULL, MATH_FP32, arena, program.diag, &program.target));
    program.graph = graph;
    PlanTensor *inputs = arena_array(arena, (size_t)node->input_count, PlanTensor);
    for (int32_t i = 0; i < node->input_count; i++) inputs[i] = make_tensor(node->inputs[i], SPACE_INPUT, i);
    PlanTensor output = make_tensor(node, SPACE_OUTPUT, 0);
    PlanKernel *kernel = hand_kernel(arena, node->op, output, inputs, node->input_count);
    kernel->op_input_count = node->op_input_count;
    kernel->attrs = node->attrs;
    kernel->epilogue = node->epilogue;
    kernel->epilogue_count = node->epilogue_count;
    if (!test_cuda_load(&program, hand_plan(arena, "net", &program.target, kernel, max_batch)))
      fail_msg("%s: not compiled", label);
    check_program(&program, label, exact, true);
  }
  arena_destroy(arena);
}

static void check_channels_last(const OpCase *line, bool exact) { check_hand_made(line, exact, 4); }

/* --- what only matters to these kernels ---------------------------------------------------------------- */

/* Reductions in parts, lines longer than a block, windows that pass the padding, vectors across borders. */
static const OpCase more_lines[] = {
    {"sum", "x:f32[N,3,70,61]", "", true},
    {"sum", "x:f32[N,3,70,61]", "dims=[0,2,3]", true},
    {"sum", "x:f32[N,40,140]", "dims=[0,1]", true},
    {"mean", "x:f32[5,40,41]", "dims=[0,1,2]", false},
    {"max", "x:f32[N,3,70,61]", "", true},
    {"max", "x:f32[N,40,140]", "dims=[0,1]", true},
    {"batch_stats", "x:f32[N,8,40,40]", "", false},
    {"batch_norm_grad_input", "x:f32[N,8,40,20] weight:f32[8] mean:f32[8] variance:f32[8] dy:f32[N,8,40,20]", "",
     false},
    {"adaptive_avg_pool2d", "x:f32[N,5,71,73]", "", false},
    {"adaptive_max_pool2d", "x:f32[N,8,71,9]", "", true},
    {"softmax", "x:f32[N,1000]", "", false},
    {"log_softmax", "x:f32[300]", "dim=0", false},
    {"argmax", "x:f32[N,777]", "", true},
    {"cross_entropy", "x:f32[300,10] target:i64[300]", "", false},
    {"mse", "x:f32[N,3,50,40] target:f32[N,3,50,40]", "", false},
    {"permute", "x:f32[N,20,37]", "dims=[0,2,1]", true},
    {"permute", "x:f32[N,33,6,17]", "dims=[0,2,3,1]", true},
    {"permute", "x:f32[64,35]", "dims=[1,0]", true},
    {"concat", "x:f32[N,4,5,7] y0:f32[N,8,5,7]", "", true},
    {"concat", "x:f32[N,4,5,7] y0:f32[N,6,5,7]", "", true},
    {"avg_pool2d", "x:f32[N,18,11,24]", "kernel=[10,9], stride=[1,5], padding=[5,4,3,2]", false},
    {"max_pool2d_grad", "x:f32[N,8,9,9] dy:f32[N,8,5,5]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]", true},
};

static void test_more(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof more_lines / sizeof *more_lines; i++) {
    check_planned(&more_lines[i], more_lines[i].exact);
    check_channels_last(&more_lines[i], more_lines[i].exact);
  }
}

/* NaN and infinities in the middle and at the end of windows, rows and vectors; classes that do not exist; logits far
 * from 0, of which the naive formulas overflow. */
typedef enum Change { CHANGE_SPECIALS, CHANGE_TARGETS, CHANGE_LARGE } Change;

static void change_values(Tensor *tensor, Change change) {
  static const double specials[] = {NAN, -INFINITY, INFINITY, NAN};
  static const int64_t targets[] = {0, -1, 10, INT64_MAX, INT64_MIN, 9};
  if (change == CHANGE_TARGETS) memcpy(tensor->data, targets, sizeof targets);
  for (int64_t i = 0; i < tensor_elements(tensor); i++) {
    if (change == CHANGE_SPECIALS && i % 17 == 0) tensor_set(tensor, i, specials[i / 17 % 4]);
    if (change == CHANGE_LARGE) tensor_set(tensor, i, 4096 + 32 * tensor_get(tensor, i));
  }
}

static void check_changed(const OpCase *line, Change change) {
  Arena *arena = arena_create(NULL);
  TestProgram program = {0};
  EvalResult expected;
  const char *label = arena_format(arena, "%s, changed", op_case_label(line, arena));
  assert_true(test_program_init(&program, arena, case_graph(line, arena)));
  if (!test_cuda_compile(&program, arch, MATH_FP32, NULL, PRECISION_STRICT)) fail_msg("%s: not compiled", label);
  op_case_fill(program.source, 2, change == CHANGE_SPECIALS ? OP_CASE_INTEGERS : OP_CASE_FLOATS, 7, arena,
               &program.inputs, &program.parameters);
  change_values(&program.inputs.items[change == CHANGE_TARGETS ? 1 : 0], change);
  Tensor result = run_result(&program, label, 2, false);
  assert_true(test_program_eval(&program, program.source, &expected));
  compare(label, &result, &expected.values[program.source->outputs[0].node->id], change == CHANGE_SPECIALS);
  arena_destroy(arena);
}

static void test_changed(void **state) {
  static const struct {
    OpCase line;
    Change change;
  } lines[] = {
      {{"max_pool2d", "x:f32[N,18,9,23]", "kernel=[3,3], stride=[2,1], padding=[1,1,1,1]", true}, CHANGE_SPECIALS},
      {{"max_pool2d_grad", "x:f32[N,4,9,9] dy:f32[N,4,4,4]", "kernel=[3,3], stride=[2,2]", true}, CHANGE_SPECIALS},
      {{"adaptive_max_pool2d", "x:f32[N,5,6,7]", "", true}, CHANGE_SPECIALS},
      {{"adaptive_max_pool2d", "x:f32[N,5,6,7]", "output=[2,3]", true}, CHANGE_SPECIALS},
      {{"max", "x:f32[N,5,37]", "dims=[2]", true}, CHANGE_SPECIALS},
      {{"max", "x:f32[N,5,37]", "dims=[0,1]", true}, CHANGE_SPECIALS},
      {{"max_grad", "x:f32[N,5,37] dy:f32[N,5]", "dims=[2]", true}, CHANGE_SPECIALS},
      {{"argmax", "x:f32[N,5,41]", "dim=2", true}, CHANGE_SPECIALS},
      {{"argmax", "x:f32[N,7,9]", "dim=1", true}, CHANGE_SPECIALS},
      {{"relu", "x:f32[N,7,9]", "", true}, CHANGE_SPECIALS},
      {{"clamp", "x:f32[N,7,9]", "min=-1, max=2", true}, CHANGE_SPECIALS},
      {{"cross_entropy", "x:f32[6,10] target:i64[6]", "reduction=none", false}, CHANGE_TARGETS},
      {{"softmax", "x:f32[N,37]", "", false}, CHANGE_LARGE},
      {{"log_softmax", "x:f32[N,5,19]", "", false}, CHANGE_LARGE},
      {{"cross_entropy", "x:f32[N,37] target:i64[N]", "", false}, CHANGE_LARGE},
      {{"bce_with_logits", "x:f32[N,37] target:f32[N,37]", "reduction=none", false}, CHANGE_LARGE},
  };
  (void)state;
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) check_changed(&lines[i].line, lines[i].change);
}

/* Programs whose largest batch needs 64-bit offsets. */
static void test_wide_indices(void **state) {
  static const char *const lines[] = {"max_pool2d", "add", "upsample", "pad", "softmax", "max_pool2d_grad", "concat"};
  (void)state;
  for (size_t i = 0; i < op_case_count(); i++) {
    const OpCase *line = op_case(i);
    bool wanted = false;
    for (size_t k = 0; k < sizeof lines / sizeof *lines; k++) wanted = wanted || strcmp(line->op, lines[k]) == 0;
    if (wanted) check_hand_made(line, line->exact, INT64_C(1) << 29);
  }
}

/* --- networks ----------------------------------------------------------------------------------------- */

/* Values that meet with channels last: a join without a copy and one whose pieces do not begin at vectors, a residual
 * sum, a plain operand, a picture's channels, a head that reads rows; and outputs that have to be plain. */
static const char meeting[] =
    "graph \"meeting\" {\n"
    "  input %x : f32[N,3,12,10]\n"
    "  input %gate : f32[N,20,1,1]\n"
    "  parameter %w1 : f32[8,3,3,3] {init=weight, fan_in=27}\n"
    "  parameter %w2 : f32[12,8,1,1] {init=weight, fan_in=8}\n"
    "  parameter %w3 : f32[20,20,3,3] {init=weight, fan_in=180}\n"
    "  parameter %w4 : f32[5,20,3,3] {init=weight, fan_in=180}\n"
    "  parameter %w5 : f32[7,25] {init=weight, fan_in=25}\n"
    "  parameter %slope : f32[12,10]\n"
    "  %a = conv2d %x, %w1 {padding=[1,1,1,1]} : f32[N,8,12,10]\n"
    "  %b = conv2d %a, %w2 epilogue [relu] : f32[N,12,12,10]\n"
    "  %joined = concat %a, %b : f32[N,20,12,10]\n"
    "  %gated = mul %joined, %gate : f32[N,20,12,10]\n"
    "  %c = conv2d %gated, %w3 {padding=[1,1,1,1]} epilogue [add %joined, relu] : f32[N,20,12,10]\n"
    "  %d = conv2d %c, %w4 {padding=[1,1,1,1]} : f32[N,5,12,10]\n"
    "  %both = concat %d, %c : f32[N,25,12,10]\n"
    "  %tilted = add %both, %slope : f32[N,25,12,10]\n"
    "  %small = max_pool2d %tilted {kernel=[2,2], stride=[2,2]} : f32[N,25,6,5]\n"
    "  %large = upsample %small {scale=[2,2]} : f32[N,25,12,10]\n"
    "  %pooled = adaptive_avg_pool2d %small : f32[N,25,1,1]\n"
    "  %features = flatten %pooled : f32[N,25]\n"
    "  %logits = linear %features, %w5 : f32[N,7]\n"
    "  output logits = %logits\n"
    "  output large = %large\n"
    "  output joined = %joined\n"
    "}\n";

static void test_meeting(void **state) {
  (void)state;
  Arena *arena = arena_create(NULL);
  TestProgram program = {0};
  assert_true(test_program_parse(&program, arena, meeting));
  assert_true(test_cuda_compile(&program, arch, MATH_FP32, NULL, PRECISION_STRICT));
  for (size_t k = 0; k < program.plan->kernel_count; k++) {
    const PlanKernel *kernel = &program.plan->kernels[k];
    assert_false(kernel->op == OP_CONCAT && strcmp(kernel->name, "joined") == 0); /* it is where its pieces are */
    if (kernel->op == OP_CONV2D) assert_int_equal(kernel->output.layout.kind, LAYOUT_CHANNEL_LAST);
  }
  for (int64_t batch = 1; batch <= 3; batch += 2) {
    TestRun run;
    EvalResult expected;
    test_fill(&program, FILL_FLOATS, batch, 3);
    assert_true(test_program_run(&program, batch, 1, false, &run));
    assert_true(test_program_eval(&program, program.source, &expected));
    for (size_t i = 0; i < run.outputs.count; i++)
      compare(run.outputs.items[i].name, &run.outputs.items[i], &expected.values[program.source->outputs[i].node->id],
              false);
  }
  arena_destroy(arena);
}

/* --- a training step ---------------------------------------------------------------------------------- */

static const char network[] =
    "{\"kiln\":1,\"name\":\"small\",\"inputs\":{\"x\":{\"dtype\":\"f32\",\"shape\":[\"N\",3,9,10]}},\"layers\":["
    "{\"op\":\"conv2d\",\"name\":\"c1\",\"out_channels\":8,\"kernel\":3,\"padding\":1},"
    "{\"op\":\"batch_norm\",\"name\":\"bn\"},{\"op\":\"relu\",\"name\":\"r\"},"
    "{\"op\":\"max_pool2d\",\"name\":\"p\",\"kernel\":2,\"stride\":2},"
    "{\"op\":\"dropout\",\"name\":\"d\",\"p\":0.25},"
    "{\"op\":\"conv2d\",\"name\":\"c2\",\"out_channels\":5,\"kernel\":3,\"stride\":2,\"padding\":1},"
    "{\"op\":\"adaptive_avg_pool2d\",\"name\":\"a\"},{\"op\":\"flatten\",\"name\":\"f\"},"
    "{\"op\":\"linear\",\"name\":\"l\",\"out_features\":4}],\"outputs\":[\"l\"]}";

/* The step as a graph of its own: its request is met. */
static Graph *step_graph(const TrainRequest *request, Arena *arena) {
  Graph *graph = NULL;
  Diag *diag = diag_create(arena);
  Arena *scratch = arena_create(NULL);
  const PassOptions options = {.scratch = scratch, .training = true};
  bool done = description_parse("small.json", network, strlen(network), NULL, arena, diag, &graph) &&
              graph_request_training(graph, request, diag) &&
              pipeline_run_list(graph, "infer,hooks,train", &options, diag);
  arena_destroy(scratch);
  if (!done) fail_msg("%s", diag_text(diag, arena));
  graph->max_batch = 4;
  return graph;
}

/* Numbers of an optimiser that make every term count. */
static void set_hyper(const TensorList *inputs) {
  static const double numbers[] = {0.02, 0.9, 0.99, 1e-3, 0.1, 0.4, 0.3, 0.5, 1, 0.05};
  const Tensor *hyper = tensor_find(inputs, "hyper");
  assert_non_null(hyper);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    Tensor changed = *hyper;
    tensor_set(&changed, (int64_t)i, numbers[i]);
  }
}

/* The loss and every value of the step that the interpreter knows by the same name, the new state among them. */
static void check_step(const TrainRequest *request, const char *label) {
  Arena *arena = arena_create(NULL);
  TestProgram program = {0};
  TestRun run;
  EvalResult expected;
  assert_true(test_program_init(&program, arena, step_graph(request, arena)));
  if (!test_cuda_compile(&program, arch, MATH_FP32, NULL, PRECISION_STRICT)) fail_msg("%s: not compiled", label);
  test_fill(&program, FILL_FLOATS, 3, 1);
  set_hyper(&program.inputs);
  assert_true(test_program_eval(&program, program.source, &expected));
  if (!test_program_run(&program, 3, 1, false, &run)) fail_msg("%s: does not run", label);
  compare(arena_format(arena, "%s, loss", label), &run.outputs.items[0],
          &expected.values[program.source->outputs[0].node->id], false);
  for (size_t i = 0; i < program.source->update_count; i++) {
    const Node *node = program.source->updates[i].node;
    const PlanKernel *kernels = program.plan->kernels + program.plan->prepare_count;
    size_t at = 0;
    while (at < run.values.count && kernels[at].node_id != node->id) at++;
    if (at == run.values.count) fail_msg("%s: no kernel updates '%s'", label, node->name);
    compare(arena_format(arena, "%s, update %d", label, (int)i), &run.values.items[at], &expected.values[node->id],
            false);
  }
  arena_destroy(arena);
}

static void test_steps(void **state) {
  (void)state;
  check_step(&(TrainRequest){.loss = OP_CROSS_ENTROPY, .of = "l"}, "sgd");
  check_step(&(TrainRequest){.loss = OP_CROSS_ENTROPY, .of = "l", .nesterov = true, .clip = true}, "sgd, clipped");
  check_step(
      &(TrainRequest){
          .loss = OP_CROSS_ENTROPY, .of = "l", .optimizer = OPTIMIZER_ADAM, .clip = true, .accumulate = true},
      "adam, accumulating");
}

static void test_planned(void **state) {
  (void)state;
  for (size_t i = 0; i < op_case_count(); i++) check_planned(op_case(i), op_case(i)->exact);
}

static void test_channels_last(void **state) {
  (void)state;
  for (size_t i = 0; i < op_case_count(); i++) check_channels_last(op_case(i), op_case(i)->exact);
}

/* An argument chooses tests: a pattern of their names. */
int main(int count, char **arguments) {
  test_cuda_open();
  if (count > 1) cmocka_set_test_filter(arguments[1]);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_planned),      cmocka_unit_test(test_channels_last),
                                     cmocka_unit_test(test_more),         cmocka_unit_test(test_changed),
                                     cmocka_unit_test(test_wide_indices), cmocka_unit_test(test_meeting),
                                     cmocka_unit_test(test_steps)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
