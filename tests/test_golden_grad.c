/* PyTorch's gradients against compiled code: every one that is stored, through the just-in-time path, step by step
 * between guard pages, and from a shared library. Grad-CAM from hooks, for classes that are chosen at run time. */
#include <math.h>
#include <string.h>

#include "description.h"
#include "golden_cases.h"
#include "run_program.h"
#include "session/heatmap.h"
#include "support.h"

static const double tolerance = 2e-6;

/* Gradients in the index: 71 of single ops, one of the network, 20 in each of two training runs. */
enum { OP_GRADIENTS = 71, NETWORK_GRADIENTS = 1, TRAINING_GRADIENTS = 40 };

typedef struct Tally {
  size_t count;
  double worst;
  const char *worst_name;
} Tally;

static void check_tensor(Tally *tally, const char *label, const Tensor *found, const Tensor *expected, Arena *arena) {
  const double error = tensor_error(found, expected, arena);
  if (!(error <= tolerance)) fail_msg("%s: '%s' differs by %g", label, expected->name, error);
  tally->count++;
  if (error < tally->worst) return;
  tally->worst = error;
  tally->worst_name = arena_format(arena, "%s, %s", label, expected->name);
}

/* --- programs ---------------------------------------------------------------------------------------- */

typedef enum Path { JUST_IN_TIME, LIBRARY, PATHS } Path;
static const char *const path_names[PATHS] = {"just in time", "library"};

typedef struct Compiled {
  TestProgram program;
  const kiln_program *library;
} Compiled;

static void append(TensorList *list, Tensor tensor, const char *name, Arena *arena) {
  Tensor *items = arena_array(arena, list->count + 1, Tensor);
  if (list->count) memcpy(items, list->items, list->count * sizeof *items);
  items[list->count] = tensor;
  items[list->count++].name = name;
  list->items = items;
}

static void compile(Fixture *fixture, Graph *graph, const TensorList *inputs, const TensorList *parameters,
                    Compiled *out_compiled) {
  TestProgram *program = &out_compiled->program;
  const char *path = fixture_path(fixture, arena_format(fixture->arena, "lib%s.so", graph->name));
  if (!test_program_init(program, fixture->arena, graph) ||
      !test_program_compile(program, "native", NULL, PRECISION_DEFAULT) ||
      (out_compiled->library = test_program_link(program, path)) == NULL)
    fail_msg("%s does not compile", graph->name);
  program->inputs = *inputs;
  program->parameters = *parameters;
}

static TensorList run_path(Compiled *compiled, Path path) {
  TestProgram *program = &compiled->program;
  const int64_t batch = program->inputs.items[0].shape.dims[0];
  TestRun run;
  const bool done = path == LIBRARY ? test_library_run(program, compiled->library, batch, &run.outputs)
                                    : test_program_run(program, batch, 2, true, &run);
  if (!done) fail_msg("%s does not run", program->source->name);
  return run.outputs;
}

static void request(Fixture *fixture, Graph *graph, const GradientRequest *wanted) {
  if (!graph_request_gradient(graph, wanted, fixture->diag))
    fail_msg("%s: %s", graph->name, diag_text(fixture->diag, fixture->arena));
}

/* --- single ops -------------------------------------------------------------------------------------- */

static void check_op(Fixture *fixture, GoldenCase *golden, const TensorList *tensors, Tally *tally) {
  Arena *arena = fixture->arena;
  const Tensor *cotangent = tensor_find(tensors, "grad_output");
  const char *wrt[8];
  size_t count = 0;
  for (size_t i = 0; i < tensors->count; i++) {
    const char *name = tensors->items[i].name;
    if (strncmp(name, "grad_", 5) != 0 || strcmp(name, "grad_output") == 0) continue;
    assert_true(count < sizeof wrt / sizeof wrt[0]);
    wrt[count++] = name + 5;
  }
  if (count == 0) return;
  if (!golden->graph) fail_msg("%s: gradients of an op that is not known", golden->name);
  request(fixture, golden->graph,
          &(GradientRequest){
              .of = "output", .seed = GRADIENT_WITH_COTANGENT, .input = "grad_output", .wrt = wrt, .wrt_count = count});
  Compiled compiled;
  append(&golden->inputs, *cotangent, "grad_output", arena);
  compile(fixture, golden->graph, &golden->inputs, &golden->parameters, &compiled);
  for (Path path = 0; path < PATHS; path++) {
    const TensorList outputs = run_path(&compiled, path);
    const char *label = arena_format(arena, "%s, %s", golden->name, path_names[path]);
    for (size_t i = 0; i < count; i++)
      check_tensor(tally, label, tensor_find(&outputs, arena_format(arena, "grad.%s", wrt[i])),
                   tensor_find(tensors, arena_format(arena, "grad_%s", wrt[i])), arena);
  }
}

/* --- Grad-CAM ---------------------------------------------------------------------------------------- */

static Node *find_output(const Graph *graph, const char *name) {
  for (size_t i = 0; i < graph->output_count; i++)
    if (strcmp(graph->outputs[i].name, name) == 0) return graph->outputs[i].node;
  fail_msg("no output '%s'", name);
  return NULL;
}

/* body:activation:store and body:gradient:store; the scores are the only output. */
static void add_hooks(Graph *graph) {
  graph->hooks = arena_array(graph->arena, 2, Hook);
  graph->hooks[0] = (Hook){.pattern = "body", .kind = HOOK_ACTIVATION, .action = HOOK_STORE};
  graph->hooks[1] = (Hook){.pattern = "body", .kind = HOOK_GRADIENT, .action = HOOK_STORE};
  graph->hook_count = 2;
  graph->value_names = arena_new(graph->arena, ValueName);
  graph->value_names[0] = (ValueName){"body", find_output(graph, "body")};
  graph->value_name_count = 1;
  Node *scores = find_output(graph, "logits");
  graph->output_count = 0;
  graph_add_output(graph, "logits", scores);
}

/* Image `index` of a tensor. */
static Tensor image_of(const Tensor *tensor, int64_t index) {
  Tensor image = {.name = tensor->name, .dtype = tensor->dtype, .shape = {.rank = tensor->shape.rank - 1}};
  for (int32_t d = 0; d < image.shape.rank; d++) image.shape.dims[d] = tensor->shape.dims[d + 1];
  image.data = (char *)tensor->data + index * tensor_bytes(&image);
  return image;
}

static void check_maps(Fixture *fixture, const char *label, const Tensor *activation, const Tensor *gradient,
                       const TensorList *tensors, Tally *maps) {
  Arena *arena = fixture->arena;
  for (int64_t image = 0; image < activation->shape.dims[0]; image++) {
    Tensor map;
    const Tensor cam = image_of(tensor_find(tensors, "cam"), image);
    const Tensor grad_cam = image_of(tensor_find(tensors, "gradcam"), image);
    assert_true(heatmap_activation(activation, image, arena, fixture->diag, &map));
    check_tensor(maps, label, &map, &cam, arena);
    assert_true(heatmap_grad_cam(activation, gradient, image, arena, fixture->diag, &map));
    check_tensor(maps, label, &map, &grad_cam, arena);
  }
}

/* Image 0 gets another class: its gradient changes and stays right, that of the other images keeps its bits. */
static void check_other_class(Compiled *compiled, Path path, const char *label, Tensor *classes, const Tensor *before) {
  enum { OTHER_CLASS = 0 };
  const double chosen = tensor_get(classes, 0);
  tensor_set(classes, 0, OTHER_CLASS);
  const TensorList outputs = run_path(compiled, path);
  const Tensor *after = tensor_find(&outputs, "hook.grad.body");
  for (int64_t image = 0; image < before->shape.dims[0]; image++) {
    const Tensor old = image_of(before, image), new = image_of(after, image);
    const bool same = memcmp(old.data, new.data, (size_t)tensor_bytes(&old)) == 0;
    if (same != (image != 0)) fail_msg("%s: gradient of image %d after a change of class", label, (int)image);
  }
  EvalResult result;
  TestProgram *program = &compiled->program;
  assert_true(test_program_eval(program, program->graph, &result));
  const EvalTensor *expected = &result.values[find_output(program->graph, "hook.grad.body")->id];
  const double error = relative_error(expected->data, after);
  if (!(error <= tolerance)) fail_msg("%s: gradient of class %d differs by %g", label, OTHER_CLASS, error);
  tensor_set(classes, 0, chosen);
}

static void check_network(Fixture *fixture, GoldenCase *golden, const TensorList *tensors, Tally *gradients,
                          Tally *maps) {
  enum { SCORE_CLASS = 3 };
  Arena *arena = fixture->arena;
  add_hooks(golden->graph);
  const Shape images = {1, {golden->inputs.items[0].shape.dims[0]}};
  Tensor classes = tensor_create(arena, "class", DTYPE_I64, images);
  for (int64_t i = 0; i < tensor_elements(&classes); i++) tensor_set(&classes, i, SCORE_CLASS);
  append(&golden->inputs, classes, "class", arena);
  Compiled compiled;
  compile(fixture, golden->graph, &golden->inputs, &golden->parameters, &compiled);
  for (Path path = 0; path < PATHS; path++) {
    const char *label = arena_format(arena, "%s, %s", golden->name, path_names[path]);
    const TensorList outputs = run_path(&compiled, path);
    const Tensor *activation = tensor_find(&outputs, "hook.body"), *gradient = tensor_find(&outputs, "hook.grad.body");
    check_tensor(maps, label, tensor_find(&outputs, "logits"), tensor_find(tensors, "logits"), arena);
    check_tensor(maps, label, activation, tensor_find(tensors, "body"), arena);
    check_tensor(gradients, label, gradient, tensor_find(tensors, "grad_body"), arena);
    check_maps(fixture, label, activation, gradient, tensors, maps);
    check_other_class(&compiled, path, label, &classes, gradient);
  }
}

/* --- training ---------------------------------------------------------------------------------------- */

static Graph *training_graph(Fixture *fixture, const char *name, int64_t batch, GradientRequest *out_request) {
  Graph *graph = NULL;
  if (!description_read(KILN_SOURCE_DIR "/examples/simple_cnn10_bn.json", NULL, fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_BATCH_NORM) graph->nodes[i]->attrs.training = true;
  graph->name = name;
  graph->max_batch = batch;
  Node *labels = graph_add_input(graph, "labels", DTYPE_I64, (Shape){1, {DIM_BATCH}});
  Node *loss = graph_add(graph, OP_CROSS_ENTROPY, "loss", (Node *const[]){graph->outputs[0].node, labels}, 2);
  graph_add_output(graph, "loss", loss);
  *out_request = (GradientRequest){.of = "loss", .seed = GRADIENT_OF_SCALAR};
  out_request->wrt = arena_array(fixture->arena, graph->parameter_count, const char *);
  for (size_t i = 0; i < graph->parameter_count; i++)
    if (graph->parameters[i].trainable) out_request->wrt[out_request->wrt_count++] = graph->parameters[i].name;
  request(fixture, graph, out_request);
  return graph;
}

static double tensor_norm(const Tensor *tensor) {
  double squares = 0;
  for (int64_t i = 0; i < tensor_elements(tensor); i++) squares += pow(tensor_get(tensor, i), 2);
  return sqrt(squares);
}

/* A bias before a batch norm has no influence: its gradient is a sum that cancels, and what is stored is rounding. It
 * has to be small beside the gradient of the layer's weight. */
static void check_cancelled(Tally *tally, const char *label, const Tensor *found, const Tensor *weight) {
  const double size = tensor_norm(found) / tensor_norm(weight);
  if (!(size <= tolerance)) fail_msg("%s: '%s' is %g of the weight's gradient", label, found->name, size);
  tally->count++;
}

static void check_training(Fixture *fixture, const char *name, const TensorList *tensors, Tally *tally) {
  Arena *arena = fixture->arena;
  const Tensor images = image_of(tensor_find(tensors, "images"), 0),
               labels = image_of(tensor_find(tensors, "labels"), 0);
  TensorList inputs = {0}, parameters = {0};
  GradientRequest wanted;
  Graph *graph = training_graph(fixture, name, images.shape.dims[0], &wanted);
  append(&inputs, images, graph->inputs[0].name, arena);
  append(&inputs, labels, "labels", arena);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const char *parameter = graph->parameters[i].name;
    append(&parameters, *tensor_find(tensors, arena_format(arena, "init.%s", parameter)), parameter, arena);
  }
  Compiled compiled;
  compile(fixture, graph, &inputs, &parameters, &compiled);
  for (Path path = 0; path < PATHS; path++) {
    const TensorList outputs = run_path(&compiled, path);
    const char *label = arena_format(arena, "%s, %s", name, path_names[path]);
    for (size_t i = 0; i < wanted.wrt_count; i++) {
      const Tensor *expected = tensor_find(tensors, arena_format(arena, "grad0.%s", wanted.wrt[i]));
      const Tensor *found = tensor_find(&outputs, arena_format(arena, "grad.%s", wanted.wrt[i]));
      const size_t length = strlen(wanted.wrt[i]);
      assert_non_null(found);
      if (length > 7 && strcmp(wanted.wrt[i] + length - 7, ".0.bias") == 0) {
        const char *weight = arena_format(arena, "grad0.%.*s.weight", (int)(length - 5), wanted.wrt[i]);
        check_cancelled(tally, label, found, tensor_find(tensors, weight));
      } else {
        check_tensor(tally, label, found, expected, arena);
      }
    }
  }
}

/* --- all of them ------------------------------------------------------------------------------------- */

static void report(const char *what, const Tally *tally, size_t expected) {
  print_message("%zu %s, each in both paths; largest error %.2g (%s)\n", tally->count / PATHS, what, tally->worst,
                tally->worst_name);
  assert_true(tally->count >= expected * PATHS);
}

static void test_golden(void **state) {
  Fixture *fixture = *state;
  GoldenSet set;
  if (!golden_open(fixture->arena, fixture->diag, &set)) {
    check_messages(fixture, "");
    print_message("no golden cases here: skipped\n");
    skip();
  }
  Tally ops = {0}, networks = {0}, maps = {0}, training = {0};
  for (size_t i = 0; i < golden_count(&set); i++) {
    GoldenCase golden;
    TensorList tensors;
    const char *name = golden_name(&set, i);
    if (!golden_tensors(&set, i, fixture->arena, fixture->diag, &tensors) ||
        golden_load(&set, i, fixture->arena, fixture->diag, &golden) == GOLDEN_BROKEN)
      fail_msg("%s: %s", name, diag_text(fixture->diag, fixture->arena));
    if (strncmp(name, "train_", 6) == 0)
      check_training(fixture, name, &tensors, &training);
    else if (tensor_find(&tensors, "grad_body"))
      check_network(fixture, &golden, &tensors, &networks, &maps);
    else
      check_op(fixture, &golden, &tensors, &ops);
  }
  report("gradients of single ops", &ops, OP_GRADIENTS);
  report("gradients of a network", &networks, NETWORK_GRADIENTS);
  report("of its values and heat maps", &maps, 6);
  report("gradients of a training step", &training, TRAINING_GRADIENTS);
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_golden)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
