/* Gradients: against PyTorch, against central differences, and compiled against interpreted. */
#include <math.h>

#include "description.h"
#include "eval.h"
#include "golden_cases.h"
#include "grad_cases.h"
#include "passes.h"
#include "run_program.h"
#include "support.h"

/* The stored results are rounded to float: 2^-24 each. */
static const double golden_tolerance = 2e-6;
static const double difference_tolerance = 1e-6, planted_size = 1e-3;

/* --- PyTorch --------------------------------------------------------------------------------------- */

static void run_autodiff(Fixture *fixture, Graph *graph, const char *label) {
  const PassOptions options = {.training = true};
  if (!pipeline_run_list(graph, "infer,hooks,autodiff", &options, fixture->diag))
    fail_msg("%s: %s", label, diag_text(fixture->diag, fixture->arena));
}

static Node *output_node(const Graph *graph, const char *name) {
  for (size_t i = 0; i < graph->output_count; i++) {
    if (strcmp(graph->outputs[i].name, name) == 0) return graph->outputs[i].node;
  }
  fail_msg("no output '%s'", name);
  return NULL;
}

static TensorList with_tensor(const TensorList *list, Tensor tensor, Arena *arena) {
  TensorList longer = {arena_array(arena, list->count + 1, Tensor), list->count + 1};
  if (list->count) memcpy(longer.items, list->items, list->count * sizeof tensor);
  longer.items[list->count] = tensor;
  return longer;
}

static void check_gradient(Fixture *fixture, const Graph *graph, const EvalResult *result, const char *wrt,
                           const Tensor *expected) {
  const EvalTensor *found = &result->values[output_node(graph, arena_format(fixture->arena, "grad.%s", wrt))->id];
  assert_true(shape_equal(&found->shape, &expected->shape));
  const double error = relative_error(found->data, expected);
  if (error > golden_tolerance) fail_msg("%s: gradient of '%s' differs by %g", graph->name, wrt, error);
}

/* All gradients that a case of one op has. How many there were. */
static size_t check_golden_op(Fixture *fixture, const GoldenCase *golden, const TensorList *tensors) {
  Arena *arena = fixture->arena;
  const Tensor *seed = tensor_find(tensors, "grad_output");
  const char *wrt[8];
  size_t count = 0;
  for (size_t i = 0; i < tensors->count; i++) {
    const char *name = tensors->items[i].name;
    if (strncmp(name, "grad_", 5) == 0 && strcmp(name, "grad_output") != 0) wrt[count++] = name + 5;
  }
  if (!seed || count == 0) return 0;
  const GradientRequest request = {
      .of = "output", .seed = GRADIENT_WITH_COTANGENT, .input = "grad_output", .wrt = wrt, .wrt_count = count};
  if (!graph_request_gradient(golden->graph, &request, fixture->diag)) fail_msg("%s", diag_text(fixture->diag, arena));
  run_autodiff(fixture, golden->graph, golden->name);
  EvalResult result;
  const TensorList inputs = with_tensor(&golden->inputs, *seed, arena);
  if (!graph_eval(golden->graph, &inputs, NULL, arena, fixture->diag, &result))
    fail_msg("%s: %s", golden->name, diag_text(fixture->diag, arena));
  for (size_t i = 0; i < count; i++)
    check_gradient(fixture, golden->graph, &result, wrt[i],
                   tensor_find(tensors, arena_format(arena, "grad_%s", wrt[i])));
  return count;
}

static size_t check_golden_network(Fixture *fixture, GoldenCase *golden, const TensorList *tensors) {
  enum { SCORE_CLASS = 3 };
  Arena *arena = fixture->arena;
  Graph *graph = golden->graph;
  graph->hooks = arena_new(arena, Hook);
  graph->hooks[0] = (Hook){"body", HOOK_GRADIENT, HOOK_STORE, {NULL, 0, 0}};
  graph->hook_count = 1;
  graph->value_names = arena_new(arena, ValueName);
  graph->value_names[0] = (ValueName){"body", output_node(graph, "body")};
  graph->value_name_count = 1;
  /* the scores are the first output */
  const GraphOutput first = graph->outputs[0];
  graph->outputs[0] = graph->outputs[1];
  graph->outputs[1] = first;
  const GradientRequest request = {
      .of = "logits", .seed = GRADIENT_OF_CLASS, .wrt = (const char *[]){"body"}, .wrt_count = 1};
  assert_true(graph_request_gradient(graph, &request, fixture->diag));
  run_autodiff(fixture, graph, golden->name);
  Tensor class = tensor_create(arena, "class", DTYPE_I64, (Shape){1, {golden->inputs.items[0].shape.dims[0]}});
  for (int64_t i = 0; i < tensor_elements(&class); i++) tensor_set(&class, i, SCORE_CLASS);
  const TensorList inputs = with_tensor(&golden->inputs, class, arena);
  EvalResult result;
  if (!graph_eval(graph, &inputs, NULL, arena, fixture->diag, &result)) fail_msg("%s", diag_text(fixture->diag, arena));
  check_gradient(fixture, graph, &result, "body", tensor_find(tensors, "grad_body"));
  assert_int_equal(graph->hook_output_count, 1);
  assert_string_equal(graph->outputs[graph->output_count - 1].name, "hook.grad.body");
  assert_string_equal(graph->outputs[graph->output_count - 2].name, "grad.body");
  const EvalTensor *hooked = &result.values[output_node(graph, "hook.grad.body")->id];
  assert_true(relative_error(hooked->data, tensor_find(tensors, "grad_body")) <= golden_tolerance);
  return 1;
}

static void set_training(Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_BATCH_NORM) graph->nodes[i]->attrs.training = true;
}

/* The loss of the first output's scores, as a value "loss". */
static Node *add_loss(Graph *graph, Diag *diag) {
  Node *logits = graph->outputs[0].node;
  Node *labels = graph_add_input(graph, "labels", DTYPE_I64, (Shape){1, {DIM_BATCH}});
  Node *loss = graph_add(graph, OP_CROSS_ENTROPY, "loss", (Node *const[]){logits, labels}, 2);
  graph_add_output(graph, "loss", loss);
  return node_infer(loss, diag) ? loss : NULL;
}

/* Element `index` of a tensor's first dimension. */
static Tensor tensor_row(const Tensor *tensor, const char *name, int64_t index) {
  Tensor row = {.name = name, .dtype = tensor->dtype, .shape = {.rank = tensor->shape.rank - 1}};
  for (int32_t d = 0; d < row.shape.rank; d++) row.shape.dims[d] = tensor->shape.dims[d + 1];
  row.data = (char *)tensor->data + index * tensor_bytes(&row);
  return row;
}

static const char **trainable_names(const Graph *graph, Arena *arena, size_t *out_count) {
  const char **names = arena_array(arena, graph->parameter_count, const char *);
  *out_count = 0;
  for (size_t i = 0; i < graph->parameter_count; i++)
    if (graph->parameters[i].trainable) names[(*out_count)++] = graph->parameters[i].name;
  return names;
}

/* The first step of a training run: every parameter's gradient. */
static size_t check_golden_training(Fixture *fixture, const TensorList *tensors) {
  Arena *arena = fixture->arena;
  Graph *graph = NULL;
  if (!description_read(KILN_SOURCE_DIR "/examples/simple_cnn10_bn.json", NULL, arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, arena));
  set_training(graph);
  assert_non_null(add_loss(graph, fixture->diag));
  GradientRequest request = {.of = "loss", .seed = GRADIENT_OF_SCALAR};
  request.wrt = trainable_names(graph, arena, &request.wrt_count);
  assert_true(graph_request_gradient(graph, &request, fixture->diag));
  run_autodiff(fixture, graph, "training");
  TensorList inputs = {0}, parameters = {0};
  inputs = with_tensor(&inputs, tensor_row(tensor_find(tensors, "images"), "image", 0), arena);
  inputs = with_tensor(&inputs, tensor_row(tensor_find(tensors, "labels"), "labels", 0), arena);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    Tensor value = *tensor_find(tensors, arena_format(arena, "init.%s", graph->parameters[i].name));
    value.name = graph->parameters[i].name;
    parameters = with_tensor(&parameters, value, arena);
  }
  EvalResult result;
  if (!graph_eval(graph, &inputs, &parameters, arena, fixture->diag, &result))
    fail_msg("%s", diag_text(fixture->diag, arena));
  for (size_t i = 0; i < request.wrt_count; i++) {
    const Tensor *expected = tensor_find(tensors, arena_format(arena, "grad0.%s", request.wrt[i]));
    const EvalTensor *found = &result.values[output_node(graph, arena_format(arena, "grad.%s", request.wrt[i]))->id];
    /* a bias before a batch norm has no influence: what is stored is rounding */
    double size = 0, difference = 0;
    for (int64_t k = 0; k < tensor_elements(expected); k++) {
      size += tensor_get(expected, k) * tensor_get(expected, k);
      difference += pow(found->data[k] - tensor_get(expected, k), 2);
    }
    if (!(sqrt(difference) <= golden_tolerance * sqrt(size) + 1e-12))
      fail_msg("training: '%s' differs by %g of %g", request.wrt[i], sqrt(difference), sqrt(size));
  }
  return request.wrt_count;
}

static void test_golden(void **state) {
  Fixture *fixture = *state;
  GoldenSet set;
  if (!golden_open(fixture->arena, fixture->diag, &set)) {
    check_messages(fixture, "");
    print_message("no golden cases here: skipped\n");
    skip();
  }
  size_t checked = 0;
  for (size_t i = 0; i < golden_count(&set); i++) {
    GoldenCase golden;
    TensorList tensors;
    if (!golden_tensors(&set, i, fixture->arena, fixture->diag, &tensors)) continue;
    if (strcmp(golden_name(&set, i), "train_simple_cnn10_bn_sgd") == 0)
      checked += check_golden_training(fixture, &tensors);
    if (golden_load(&set, i, fixture->arena, fixture->diag, &golden) != GOLDEN_READY) continue;
    checked += tensor_find(&tensors, "grad_body") ? check_golden_network(fixture, &golden, &tensors)
                                                  : check_golden_op(fixture, &golden, &tensors);
  }
  print_message("%zu gradients of PyTorch\n", checked);
  assert_true(checked >= 87);
}

/* --- central differences --------------------------------------------------------------------------- */

/* Ops that are made by passes, or have no derivative, and say so. */
static bool is_refused(OpCode op) {
  switch (op) {
    case OP_GRID_SAMPLE_GRAD_INPUT:
    case OP_GRID_SAMPLE_GRAD_THETA:
    case OP_BATCH_STATS:
    case OP_PLANE_MOMENTS:
    case OP_BN_UPDATE:
    case OP_SGD_STEP:
    case OP_ADAM_STEP:
    case OP_SUM_SQUARES:
    case OP_PACK:
    case OP_STATS_PARTIAL:
    case OP_STATS_FINAL:
    case OP_ARGMAX:
    case OP_FULL:
    case OP_ONE_HOT:
    case OP_SLICE:
    case OP_MEAN_GRAD:
    case OP_MAX_GRAD:
    case OP_CONV2D_GRAD_WEIGHT:
    case OP_LINEAR_GRAD_WEIGHT:
    case OP_BATCH_NORM_GRAD_INPUT:
    case OP_BATCH_NORM_GRAD_WEIGHT:
    case OP_MAX_POOL2D_GRAD:
    case OP_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_MAX_POOL2D_GRAD:
    case OP_UPSAMPLE_GRAD:
    case OP_PAD_GRAD:
      return true;
    default: {
      const char *name = op_info(op)->name, *end = strrchr(name, '_');
      return op_is_elementwise(op) && end && strcmp(end, "_grad") == 0;
    }
  }
}

static Fixture own_fixture(void) {
  Fixture own = {.arena = arena_create(NULL)};
  own.diag = diag_create(own.arena);
  return own;
}

static void check_refusal(Fixture *own, const char *label, GradTrial *trial) {
  const OpCode op = trial->of->op;
  if (trial->target_count == 0 && (op == OP_FULL || op == OP_ONE_HOT)) return;
  if (grad_trial_differentiate(trial, NULL, 1)) fail_msg("%s: a gradient was built", label);
  const char *part = op == OP_ARGMAX ? "holds i64 values, which have no gradient"
                                     : arena_format(own->arena, "%s has no gradient: ", op_info(op)->name);
  check_message_part(own, part);
}

static void check_case(const OpCase *line, int64_t batch, bool *out_differentiable) {
  Fixture own = own_fixture();
  const char *label = op_case_label(line, own.arena);
  GradTrial trial;
  if (!grad_trial_of_case(line, batch, own.arena, own.diag, &trial))
    fail_msg("%s: %s", label, diag_text(own.diag, own.arena));
  *out_differentiable = !is_refused(trial.of->op);
  if (*out_differentiable) {
    const double error = grad_trial_error(&trial, NULL, 1e-5);
    if (error > difference_tolerance)
      fail_msg("%s: gradient differs by %g %s", label, error, diag_text(own.diag, own.arena));
  } else {
    check_refusal(&own, label, &trial);
  }
  arena_destroy(own.arena);
}

static void test_op_cases(void **state) {
  (void)state;
  size_t checked = 0;
  for (size_t i = 0; i < op_case_count(); i++) {
    bool differentiable = false;
    for (int64_t batch = 1; batch <= 2; batch++) check_case(op_case(i), batch, &differentiable);
    checked += differentiable;
  }
  print_message("%zu cases\n", checked);
  assert_true(checked >= 140);
}

/* An error of 1 % in any rule's gradient of any input is found. */
static void test_planted_errors(void **state) {
  (void)state;
  bool seen[OP_COUNT] = {false};
  size_t planted_count = 0;
  for (size_t i = 0; i < op_case_count(); i++) {
    const OpCode op = op_find(op_case(i)->op);
    if (seen[op] || is_refused(op)) continue;
    seen[op] = true;
    bool any = false;
    for (int32_t input = 0; input < op_info(op)->inputs_max; input++) {
      Fixture own = own_fixture();
      GradTrial trial;
      PlantedError planted = {.op = op, .input = input};
      assert_true(grad_trial_of_case(op_case(i), 2, own.arena, own.diag, &trial));
      const double error = grad_trial_error(&trial, &planted, 1e-5);
      if (planted.planted && !(error > planted_size && isfinite(error)))
        fail_msg("%s: an error in the gradient of input %d is not seen: %g", op_case(i)->op, (int)input, error);
      any = any || planted.planted;
      planted_count += planted.planted;
      arena_destroy(own.arena);
    }
    if (!any) fail_msg("%s: nothing could be planted", op_case(i)->op);
  }
  for (OpCode op = 0; op < OP_COUNT; op++)
    if (!seen[op] && !is_refused(op) && op_info(op)->kind != OP_KIND_SOURCE)
      fail_msg("no case of %s", op_info(op)->name);
  print_message("%zu planted errors\n", planted_count);
}

/* --- kinks ----------------------------------------------------------------------------------------- */

/* The gradient of Σ y with respect to x, where no difference can tell. */
static void check_kink(void **state, const char *op, const char *operands, const char *attributes, size_t count,
                       const double *x, const double *expected) {
  Fixture *fixture = *state;
  const OpCase line = {op, operands, attributes, false};
  GradTrial trial;
  assert_true(grad_trial_of_case(&line, 1, fixture->arena, fixture->diag, &trial));
  Graph *graph = grad_trial_differentiate(&trial, NULL, 1);
  assert_non_null(graph);
  Tensor *ones = &trial.inputs.items[trial.inputs.count - 1];
  for (int64_t i = 0; i < tensor_elements(ones); i++) tensor_set(ones, i, 1);
  for (size_t i = 0; i < count; i++) tensor_set(&trial.inputs.items[0], (int64_t)i, x[i]);
  EvalResult result;
  assert_true(graph_eval(graph, &trial.inputs, &trial.parameters, fixture->arena, fixture->diag, &result));
  const double *found = result.values[output_node(graph, "grad.x")->id].data;
  for (size_t i = 0; i < count; i++) {
    if (found[i] != expected[i]) fail_msg("%s: gradient at %g is %g, expected %g", op, x[i], found[i], expected[i]);
  }
}

#define VALUES(...) ((const double[]){__VA_ARGS__})

static void test_kinks(void **state) {
  check_kink(state, "relu", "x:f32[1,3]", "", 3, VALUES(-1, 0, 2), VALUES(0, 0, 1));
  check_kink(state, "leaky_relu", "x:f32[1,3]", "negative_slope=0.25", 3, VALUES(-1, 0, 2), VALUES(0.25, 0.25, 1));
  check_kink(state, "leaky_relu", "x:f32[1,3]", "negative_slope=-0.5", 3, VALUES(-1, 0, 2), VALUES(-0.5, -0.5, 1));
  check_kink(state, "abs", "x:f32[1,3]", "", 3, VALUES(-1, 0, 2), VALUES(-1, 0, 1));
  check_kink(state, "clamp", "x:f32[1,4]", "min=-1, max=2", 4, VALUES(-1, 2, -1.5, 2.5), VALUES(1, 1, 0, 0));
  check_kink(state, "max", "x:f32[1,4]", "", 4, VALUES(1, 3, 3, 2), VALUES(0, 1, 0, 0));
  check_kink(state, "adaptive_max_pool2d", "x:f32[1,1,2,2]", "", 4, VALUES(1, 3, 3, 3), VALUES(0, 1, 0, 0));
  check_kink(state, "max_pool2d", "x:f32[1,1,2,3]", "kernel=[2,2]", 6, VALUES(1, 5, 5, 5, 5, 5),
             VALUES(0, 2, 0, 0, 0, 0));
}

/* --- requests -------------------------------------------------------------------------------------- */

static const char *const small_graph =
    "graph \"small\" {\n"
    "  max_batch 4\n"
    "  input %image : f32[N,3,13,14]\n"
    "  input %unused : f32[N,2]\n"
    "  parameter %conv.weight : f32[16,3,3,3] {init=weight, fan_in=27}\n"
    "  parameter %bn.weight : f32[16] {init=one}\n"
    "  parameter %bn.bias : f32[16] {init=zero}\n"
    "  parameter %bn.running_mean : f32[16] {init=zero, trainable=false, buffer=true}\n"
    "  parameter %bn.running_var : f32[16] {init=one, trainable=false, buffer=true}\n"
    "  parameter %conv2.weight : f32[16,16,3,3] {init=weight, fan_in=144}\n"
    "  parameter %fc.weight : f32[5,32] {init=weight, fan_in=32}\n"
    "  parameter %fc.bias : f32[5] {init=bias, fan_in=32}\n"
    "  %conv = conv2d %image, %conv.weight {stride=[2,2], padding=[1,1,1,1], padding_mode=reflect}\n"
    "  %bn = batch_norm %conv, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var\n"
    "  %relu = relu %bn\n"
    "  %conv2 = conv2d %relu, %conv2.weight {padding=[1,1,1,1]}\n"
    "  %sum = add %conv2, %relu\n"
    "  %body = silu %sum\n"
    "  %pool = adaptive_concat_pool2d %body\n"
    "  %flat = flatten %pool\n"
    "  %logits = linear %flat, %fc.weight, %fc.bias\n"
    "  %best = argmax %logits\n"
    "  output logits = %logits\n"
    "  output best = %best\n"
    "  value body = %body\n"
    "  value conv = %conv\n";

static Graph *parse_small(Fixture *fixture, const char *requests) {
  const char *text = arena_format(fixture->arena, "%s%s}\n", small_graph, requests);
  Graph *graph = NULL;
  if (!graph_parse("small.ir", text, strlen(text), fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return graph;
}

static void check_mistake(void **state, const char *requests, const char *message) {
  Fixture *fixture = *state;
  const PassOptions options = {.training = false};
  clear_messages(fixture);
  Graph *graph = parse_small(fixture, requests);
  assert_false(pipeline_run_list(graph, "infer,hooks,autodiff", &options, fixture->diag));
  check_message_part(fixture, message);
}

static void test_mistakes(void **state) {
  check_mistake(state, "gradient logits class wrt [\"unused\"]\n",
                "'logits': value 'unused' does not influence it: there is no gradient with respect to that");
  check_mistake(state, "gradient best cotangent wrt [\"image\"]\n", "'best': holds i64 values, which have no gradient");
  check_mistake(state, "gradient logits class wrt [\"best\"]\n", "with respect to f32 values only");
  check_mistake(state, "gradient body class wrt [\"image\"]\n",
                "gradient of 'body': expected class scores f32[N,K], found f32[N,16,7,7]");
  check_mistake(state, "gradient logits scalar wrt [\"image\"]\n", "expected a scalar, found [N,5]");
  check_mistake(state, "gradient logits class input image wrt [\"body\"]\n", "there is an input 'image' already");
  check_mistake(state, "gradient logits class input conv wrt [\"body\"]\n", "there is a value 'conv' already");
  check_mistake(state, "gradient logits class wrt [\"body\", \"body\"]\n", "there is an output 'grad.body' already");
  check_mistake(state, "gradient logits class wrt [\"boddy\"]\n", "the model has no value 'boddy'");
  check_mistake(state, "gradient logits class wrt [\"bn.running_var\"]\n",
                "batch_norm has no gradient: there is none with respect to running statistics");
  Fixture *fixture = *state;
  clear_messages(fixture);
  Graph *graph = parse_small(fixture, "");
  const GradientRequest request = {.of = "logit", .wrt = (const char *[]){"bodi"}, .wrt_count = 1};
  assert_false(graph_request_gradient(graph, &request, fixture->diag));
  check_messages(fixture,
                 "error: gradient of 'logit': the model has no value 'logit'\n"
                 "error: gradient of 'logit': the model has no value 'bodi'; did you mean 'body'?\n");
}

/* A graph that asks for nothing stays as it is; only what is needed is built. */
static void test_only_what_is_needed(void **state) {
  Fixture *fixture = *state;
  const PassOptions options = {.training = false};
  Graph *graph = parse_small(fixture, "");
  const size_t before = graph->node_count;
  assert_true(pipeline_run_list(graph, "autodiff", &options, fixture->diag));
  assert_int_equal(graph->node_count, before);
  graph = parse_small(fixture, "gradient logits class wrt [\"body\"]\n");
  assert_true(pipeline_run_list(graph, "infer,autodiff", &options, fixture->diag));
  for (size_t i = before; i < graph->node_count; i++) {
    const OpCode op = graph->nodes[i]->op;
    if (op == OP_CONV_TRANSPOSE2D || op == OP_CONV2D_GRAD_WEIGHT || op == OP_SILU_GRAD)
      fail_msg("%s is not needed", op_info(op)->name);
  }
}

/* Outputs of hooks stand behind all others, whatever was asked for first. */
static void test_output_order(void **state) {
  static const char *const expected[] = {"logits", "best", "grad.body", "grad.image", "hook.conv", "hook.grad.body"};
  Fixture *fixture = *state;
  Graph *graph = parse_small(fixture,
                             "hook \"body\" gradient store\nhook \"conv\" activation store\n"
                             "gradient logits class wrt [\"body\", \"image\"]\n");
  run_autodiff(fixture, graph, "small");
  assert_int_equal(graph->output_count, sizeof expected / sizeof expected[0]);
  for (size_t i = 0; i < graph->output_count; i++) assert_string_equal(graph->outputs[i].name, expected[i]);
  assert_int_equal(graph->hook_output_count, 2);
  assert_int_equal(graph->input_count, 3); /* both share the class */
}

/* A chain of 100,000 nodes is differentiated without recursion. */
static void test_long_chain(void **state) {
  enum { LENGTH = 100000 };
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "chain");
  Node *node = graph_add_input(graph, "x", DTYPE_F32, (Shape){2, {DIM_BATCH, 3}});
  for (int i = 0; i < LENGTH; i++) node = graph_add(graph, i % 2 ? OP_TANH : OP_NEG, NULL, &node, 1);
  graph_add_output(graph, "y", node);
  const GradientRequest request = {.of = "y", .seed = GRADIENT_OF_CLASS, .wrt = (const char *[]){"x"}, .wrt_count = 1};
  assert_true(graph_request_gradient(graph, &request, fixture->diag));
  run_autodiff(fixture, graph, "chain");
  assert_true(graph->node_count > 2 * LENGTH);
}

/* --- compiled -------------------------------------------------------------------------------------- */

static double list_error(const Tensor *found, const EvalTensor *expected, double magnitude) {
  double difference = 0, size = magnitude;
  for (int64_t i = 0; i < tensor_elements(found); i++) {
    difference += pow(tensor_get(found, i) - expected->data[i], 2);
    size += pow(expected->data[i], 2);
  }
  const double error = size > 0 ? sqrt(difference / size) : sqrt(difference);
  return isfinite(error) ? error : INFINITY;
}

/* The graph after all passes gives the interpreter the same values, and compiled code agrees with it. The program's
 * operands are set. */
static void check_compiled(TestProgram *program, const char *label, int64_t batch, double tolerance) {
  EvalResult source, optimised;
  TestRun run;
  if (!test_program_compile(program, "native", NULL, PRECISION_STRICT)) fail_msg("%s does not compile", label);
  if (!test_program_eval(program, program->source, &source) || !test_program_eval(program, program->graph, &optimised))
    fail_msg("%s: the interpreter fails", label);
  if (!test_program_run(program, batch, 2, true, &run)) fail_msg("%s does not run", label);
  for (size_t i = 0; i < run.outputs.count; i++) {
    const Tensor *found = &run.outputs.items[i];
    const EvalTensor *expected = &source.values[program->source->outputs[i].node->id];
    const EvalTensor *after = &optimised.values[program->graph->outputs[i].node->id];
    Tensor wide = {.dtype = DTYPE_F64, .shape = after->shape, .data = after->data};
    double error = list_error(&wide, expected, 0);
    if (error > 1e-9) fail_msg("%s: the passes change '%s' by %g", label, found->name, error);
    error = list_error(found, expected, 1e-20);
    if (error > tolerance) fail_msg("%s: compiled '%s' differs by %g", label, found->name, error);
  }
}

/* Values as f32 would hold them. */
static TensorList round_list(const TensorList *list, Arena *arena) {
  TensorList rounded = {arena_array(arena, list->count, Tensor), list->count};
  for (size_t i = 0; i < list->count; i++) {
    const Tensor *tensor = &list->items[i];
    const DataType dtype = tensor->dtype == DTYPE_I64 ? DTYPE_I64 : DTYPE_F32;
    rounded.items[i] = tensor_create(arena, tensor->name, dtype, tensor->shape);
    for (int64_t k = 0; k < tensor_elements(tensor); k++) tensor_set(&rounded.items[i], k, tensor_get(tensor, k));
  }
  return rounded;
}

static void test_compiled_cases(void **state) {
  (void)state;
  for (size_t i = 0; i < op_case_count(); i++) {
    Fixture own = own_fixture();
    const char *label = op_case_label(op_case(i), own.arena);
    GradTrial trial;
    assert_true(grad_trial_of_case(op_case(i), 3, own.arena, own.diag, &trial));
    if (!is_refused(trial.of->op)) {
      TestProgram program;
      Graph *graph = grad_trial_differentiate(&trial, NULL, 3);
      assert_non_null(graph);
      if (!test_program_init(&program, own.arena, graph)) fail_msg("%s", label);
      program.inputs = round_list(&trial.inputs, own.arena);
      program.parameters = round_list(&trial.parameters, own.arena);
      check_compiled(&program, label, 3, 5e-6);
    }
    arena_destroy(own.arena);
  }
}

static void run_requests(Fixture *fixture, Graph *graph, TestProgram *program) {
  const PassOptions options = {.training = false};
  if (!pipeline_run_list(graph, "infer,hooks,autodiff", &options, fixture->diag))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  graph->hook_count = 0;
  assert_true(test_program_init(program, fixture->arena, graph));
}

static void test_compiled_requests(void **state) {
  static const char *const requests[] = {
      "gradient logits class wrt [\"body\", \"image\"]\nhook \"conv\" gradient store\nhook \"b*\" activation store\n",
      "gradient logits cotangent wrt [\"conv.weight\", \"bn.weight\", \"bn.bias\", \"conv2.weight\", \"fc.weight\", "
      "\"fc.bias\"]\n",
  };
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
    TestProgram program;
    run_requests(fixture, parse_small(fixture, requests[i]), &program);
    for (int64_t batch = 1; batch <= 3; batch += 2) {
      test_fill(&program, FILL_FLOATS, batch, 5);
      check_compiled(&program, requests[i], batch, 1e-5);
    }
  }
}

/* Values of a size that keeps activations near 1. */
static void scale_weights(TestProgram *program) {
  for (size_t i = 0; i < program->parameters.count; i++) {
    const Parameter *parameter = &program->source->parameters[i];
    const double factor = parameter->fan_in > 0 ? sqrt(6.0 / (double)parameter->fan_in) : 1;
    for (int64_t k = 0; k < tensor_elements(&program->parameters.items[i]); k++)
      tensor_set(&program->parameters.items[i], k, factor * tensor_get(&program->parameters.items[i], k));
  }
}

static Graph *read_resnet(Fixture *fixture) {
  const ShapeOverride shape = {"image", {4, {DIM_BATCH, 3, 32, 32}}};
  const ImportOptions options = {&shape, 1};
  Graph *graph = NULL;
  if (!description_read(KILN_SOURCE_DIR "/examples/resnet18.json", &options, fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return graph;
}

static TensorList doubled(const TensorList *list, Arena *arena) {
  TensorList wide = {arena_array(arena, list->count, Tensor), list->count};
  for (size_t i = 0; i < list->count; i++) {
    const Tensor *tensor = &list->items[i];
    wide.items[i] = *tensor;
    if (tensor->dtype != DTYPE_F32) continue;
    wide.items[i] = tensor_create(arena, tensor->name, DTYPE_F64, tensor->shape);
    for (int64_t k = 0; k < tensor_elements(tensor); k++) tensor_set(&wide.items[i], k, tensor_get(tensor, k));
  }
  return wide;
}

/* Differences of a whole network: its input and some of its parameters. */
static void test_resnet_differences(void **state) {
  Fixture *fixture = *state;
  TestProgram program;
  assert_true(test_program_init(&program, fixture->arena, read_resnet(fixture)));
  Graph *graph = program.source;
  test_fill(&program, FILL_FLOATS, 1, 3);
  scale_weights(&program);
  Node *targets[] = {graph->inputs[0].node, graph_find_value(graph, "conv1.weight"),
                     graph_find_value(graph, "layer2.0.bn1.weight"), graph_find_value(graph, "layer4.1.conv2.weight"),
                     graph_find_value(graph, "fc.bias")};
  GradTrial trial = {.arena = fixture->arena,
                     .diag = fixture->diag,
                     .graph = graph,
                     .of = graph->outputs[0].node,
                     .inputs = doubled(&program.inputs, fixture->arena),
                     .parameters = doubled(&program.parameters, fixture->arena),
                     .targets = targets,
                     .target_count = sizeof targets / sizeof targets[0]};
  const double error = grad_trial_error(&trial, NULL, 1e-7);
  if (error > 1e-4) fail_msg("differs by %g %s", error, diag_text(fixture->diag, fixture->arena));
}

static void test_resnet_compiled(void **state) {
  Fixture *fixture = *state;
  Graph *graph = read_resnet(fixture);
  graph->hooks = arena_new(fixture->arena, Hook);
  graph->hooks[0] = (Hook){"layer4", HOOK_GRADIENT, HOOK_STORE, {NULL, 0, 0}};
  graph->hook_count = 1;
  const GradientRequest request = {.of = graph->outputs[0].name,
                                   .seed = GRADIENT_OF_CLASS,
                                   .wrt = (const char *[]){"image", "conv1.weight", "layer3.0.bn2.weight"},
                                   .wrt_count = 3};
  assert_true(graph_request_gradient(graph, &request, fixture->diag));
  TestProgram program;
  run_requests(fixture, graph, &program);
  test_fill(&program, FILL_FLOATS, 2, 3);
  scale_weights(&program);
  check_compiled(&program, "resnet18", 2, 1e-5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_golden),
      fixture_test(test_op_cases),
      fixture_test(test_planted_errors),
      fixture_test(test_kinks),
      fixture_test(test_mistakes),
      fixture_test(test_only_what_is_needed),
      fixture_test(test_output_order),
      fixture_test(test_long_chain),
      fixture_test(test_compiled_cases),
      fixture_test(test_compiled_requests),
      fixture_test(test_resnet_differences),
      fixture_test(test_resnet_compiled),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
