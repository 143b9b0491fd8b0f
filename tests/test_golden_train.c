/* PyTorch's training runs: four steps of SGD with momentum and of Adam with decoupled decay over a small network with
 * batch norms. Losses, first gradients, and parameters and running statistics after the last step. */
#include <math.h>
#include <string.h>

#include "description.h"
#include "eval.h"
#include "golden_cases.h"
#include "kiln.h"
#include "passes.h"
#include "support.h"

static const double tolerance = 1e-5;

enum { STEPS = 4, BATCH = 8 };

typedef struct Run {
  Fixture *fixture;
  TensorList golden;
  Optimizer optimizer;
  Graph *graph; /* after infer, hooks, train */
  double hyper[HYPER_COUNT];
} Run;

static const Tensor *golden_tensor(const Run *run, const char *prefix, const char *name) {
  const Tensor *tensor = tensor_find(&run->golden, arena_format(run->fixture->arena, "%s.%s", prefix, name));
  if (!tensor) fail_msg("the case has no '%s.%s'", prefix, name);
  return tensor;
}

static Arena *scratch_of(Fixture *fixture) {
  Arena *scratch = arena_create(NULL);
  arena_defer(fixture->arena, (void (*)(void *))arena_destroy, scratch);
  return scratch;
}

static Graph *read_network(Fixture *fixture) {
  Graph *graph = NULL;
  if (!description_read(KILN_SOURCE_DIR "/examples/simple_cnn10_bn.json", NULL, fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return graph;
}

/* False without the golden files. */
static bool open_run(Fixture *fixture, Optimizer optimizer, Run *run) {
  GoldenSet set;
  *run = (Run){.fixture = fixture, .optimizer = optimizer};
  if (!golden_open(fixture->arena, fixture->diag, &set)) return false;
  const char *wanted = optimizer == OPTIMIZER_ADAM ? "train_simple_cnn10_bn_adamw" : "train_simple_cnn10_bn_sgd";
  size_t at = 0;
  while (strcmp(golden_name(&set, at), wanted) != 0) at++;
  assert_true(golden_tensors(&set, at, fixture->arena, fixture->diag, &run->golden));
  run->hyper[HYPER_GRADIENT_SCALE] = 1;
  if (optimizer == OPTIMIZER_SGD) {
    run->hyper[HYPER_LEARNING_RATE] = 0.05;
    run->hyper[HYPER_MOMENTUM] = 0.9;
  } else {
    run->hyper[HYPER_LEARNING_RATE] = 0.01;
    run->hyper[HYPER_MOMENTUM] = 0.9;
    run->hyper[HYPER_BETA2] = 0.99;
    run->hyper[HYPER_EPS] = 1e-5;
    run->hyper[HYPER_WEIGHT_DECAY] = 0.01;
  }
  return true;
}

static void set_step(Run *run, int step) {
  run->hyper[HYPER_CORRECTION1] = 1 - pow(run->hyper[HYPER_MOMENTUM], step + 1);
  run->hyper[HYPER_CORRECTION2] = 1 - pow(run->hyper[HYPER_BETA2], step + 1);
}

static void prepare_graph(Run *run, const TrainRequest *request) {
  Fixture *fixture = run->fixture;
  run->graph = read_network(fixture);
  run->graph->max_batch = BATCH;
  const PassOptions options = {.scratch = scratch_of(fixture)};
  if (!graph_request_training(run->graph, request, fixture->diag) ||
      !pipeline_run_list(run->graph, "infer,hooks,train", &options, fixture->diag) ||
      !graph_verify(run->graph, "train", fixture->diag))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

/* Part of a [4, …] tensor. */
static Tensor take_step(const Tensor *all, const char *name, int step) {
  Tensor part = {.name = name, .dtype = all->dtype, .shape = {.rank = all->shape.rank - 1}};
  for (int32_t d = 0; d < part.shape.rank; d++) part.shape.dims[d] = all->shape.dims[d + 1];
  part.data = (char *)all->data + step * tensor_bytes(&part);
  return part;
}

static Tensor hyper_tensor(Run *run) {
  Tensor tensor = tensor_create(run->fixture->arena, "hyper", DTYPE_F32, (Shape){2, {1, HYPER_COUNT}});
  for (int i = 0; i < HYPER_COUNT; i++) tensor_set(&tensor, i, run->hyper[i]);
  return tensor;
}

/* The trained parameters of `prefix` in row 0, zeros elsewhere; then the running statistics. */
static TensorList first_state(const Run *run) {
  Arena *arena = run->fixture->arena;
  const Graph *graph = run->graph;
  TensorList list = {arena_array(arena, graph->parameter_count, Tensor), graph->parameter_count};
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    Tensor *tensor = &list.items[i];
    if (strcmp(parameter->name, "state") != 0) {
      *tensor = *golden_tensor(run, "init", parameter->name);
      tensor->name = parameter->name;
      continue;
    }
    *tensor = tensor_create(arena, "state", DTYPE_F32, parameter->shape);
    for (size_t s = 0; s < graph->slot_count; s++) {
      const Tensor *from = golden_tensor(run, "init", graph->slots[s].name);
      memcpy((float *)tensor->data + graph->slots[s].offset, from->data, (size_t)tensor_bytes(from));
    }
  }
  return list;
}

static void check(const char *label, const double *found, const Tensor *expected) {
  const double error = relative_error(found, expected);
  if (!(error <= tolerance)) fail_msg("%s differs by %g", label, error);
}

/* --- the interpreter --------------------------------------------------------------------------------- */

/* f64 tensors, so that the steps do not round between each other. */
static Tensor keep(Arena *arena, const char *name, const EvalTensor *value) {
  Tensor tensor = tensor_create(arena, name, DTYPE_F64, value->shape);
  memcpy(tensor.data, value->data, (size_t)tensor_bytes(&tensor));
  return tensor;
}

static void check_final(const Run *run, const TensorList *state) {
  const Graph *graph = run->graph;
  for (size_t i = 0; i < state->count; i++) {
    const double *data = state->items[i].data;
    if (strcmp(state->items[i].name, "state") != 0) {
      check(state->items[i].name, data, golden_tensor(run, "final", state->items[i].name));
      continue;
    }
    for (size_t s = 0; s < graph->slot_count; s++)
      check(graph->slots[s].name, data + graph->slots[s].offset, golden_tensor(run, "final", graph->slots[s].name));
  }
}

static const Node *update_node(const Graph *graph, const char *parameter) {
  for (size_t i = 0; i < graph->update_count; i++)
    if (strcmp(graph->parameters[graph->updates[i].parameter].name, parameter) == 0) return graph->updates[i].node;
  fail_msg("'%s' is not updated", parameter);
  return NULL;
}

static bool is_cancelled(const char *name) {
  const size_t length = strlen(name);
  return length > 7 && strcmp(name + length - 7, ".0.bias") == 0;
}

/* One step in double: `state` becomes what the step leaves. */
static EvalResult interpret_step(Run *run, int step, TensorList *state) {
  Fixture *fixture = run->fixture;
  EvalResult result;
  set_step(run, step);
  Tensor inputs[] = {take_step(tensor_find(&run->golden, "images"), "image", step),
                     take_step(tensor_find(&run->golden, "labels"), "target", step), hyper_tensor(run)};
  if (!graph_eval(run->graph, &(TensorList){inputs, 3}, state, fixture->arena, fixture->diag, &result))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  for (size_t i = 0; i < state->count; i++)
    state->items[i] =
        keep(fixture->arena, state->items[i].name, &result.values[update_node(run->graph, state->items[i].name)->id]);
  return result;
}

static void interpret(Fixture *fixture, Optimizer optimizer) {
  Run run;
  if (!open_run(fixture, optimizer, &run)) skip();
  prepare_graph(&run, &(TrainRequest){.loss = OP_CROSS_ENTROPY, .optimizer = optimizer});
  TensorList state = first_state(&run);
  const Node *step_node = update_node(run.graph, "state");
  for (int step = 0; step < STEPS; step++) {
    EvalResult result = interpret_step(&run, step, &state);
    const Tensor losses = *tensor_find(&run.golden, "losses");
    const Tensor loss = {.name = "loss", .dtype = DTYPE_F32, .data = (float *)losses.data + step};
    check("the loss", result.values[run.graph->outputs[0].node->id].data, &loss);
    /* a bias before a batch norm has no influence: what is stored of its gradient is rounding */
    const double *gradients = result.values[step_node->inputs[1]->id].data;
    for (size_t s = 0; step == 0 && s < run.graph->slot_count; s++) {
      if (is_cancelled(run.graph->slots[s].name)) continue;
      check(run.graph->slots[s].name, gradients + run.graph->slots[s].offset,
            golden_tensor(&run, "grad0", run.graph->slots[s].name));
    }
  }
  check_final(&run, &state);
}

/* --- compiled code ----------------------------------------------------------------------------------- */

/* Adam divides gradients by their size, so that rounding of those near 0 shows in the weights. In the fourth step one
 * activation of the second relu is 7.4e-7 from 0, and which side it falls on decides the gradients of a filter: 1e-4 of
 * the weights. Were nothing rounded but what a step stores in f32, three steps would move it by 3e-7 (root mean square
 * over weights perturbed by 1e-6); they move it by 6e-7 with strict precision, by 1e-6 without, and by 1.5e-6 when sums
 * are added up one number after the other. So another order of additions may fail here and be right; one that loses
 * more will fail. */
typedef enum Path {
  JUST_IN_TIME,
  LIBRARY,
  STRICT,
  LARGE /* made for batches that no cache holds: convolutions take the sums of batch norms */
} Path;

typedef struct Trainer {
  kiln_model *model;
  kiln_executable *step;
  kiln_context *context;
  kiln_state *state;
} Trainer;

#define CHECK(call) check_status((call), &error, #call)

static void check_status(kiln_status status, const kiln_error *error, const char *call) {
  if (status != KILN_OK) fail_msg("%s: %s", call, error->message);
}

static void set_first_values(const Run *run, kiln_model *model) {
  kiln_error error;
  for (size_t i = 0; i < kiln_model_parameter_count(model); i++) {
    kiln_port port;
    assert_int_equal(kiln_model_parameter(model, i, &port), KILN_OK);
    CHECK(kiln_model_set_parameter(model, port.name, golden_tensor(run, "init", port.name)->data, port.rank, port.dims,
                                   &error));
  }
}

static Trainer open_trainer(Run *run, Path path, uint32_t threads) {
  Trainer trainer;
  kiln_error error;
  const kiln_train_options train = {.optimizer =
                                        run->optimizer == OPTIMIZER_ADAM ? KILN_OPTIMIZER_ADAM : KILN_OPTIMIZER_SGD};
  const kiln_compile_options options = {.max_batch = path == LARGE ? 4096 : BATCH + 3,
                                        .precision = path == STRICT ? KILN_PRECISION_STRICT : KILN_PRECISION_DEFAULT};
  CHECK(kiln_model_load(NULL, KILN_SOURCE_DIR "/examples/simple_cnn10_bn.json", NULL, &trainer.model, &error));
  set_first_values(run, trainer.model);
  if (path == LIBRARY) {
    const char *library = fixture_path(run->fixture, "libstep.so");
    CHECK(kiln_compile_training_library(trainer.model, &train, &options, library, &error));
    CHECK(kiln_open_library(NULL, library, NULL, &trainer.step, &error));
  } else {
    CHECK(kiln_compile_training(trainer.model, &train, &options, &trainer.step, &error));
  }
  CHECK(kiln_context_create(trainer.step, &(kiln_context_options){.threads = threads}, &trainer.context, &error));
  CHECK(kiln_state_create(trainer.step, trainer.model, &trainer.state, &error));
  return trainer;
}

static void close_trainer(Trainer *trainer) {
  kiln_state_destroy(trainer->state);
  kiln_context_destroy(trainer->context);
  kiln_executable_destroy(trainer->step);
  kiln_model_destroy(trainer->model);
}

static float take_compiled_step(Run *run, Trainer *trainer, int step) {
  kiln_error error;
  float loss = NAN;
  set_step(run, step);
  const Tensor images = take_step(tensor_find(&run->golden, "images"), "image", step);
  const Tensor labels = take_step(tensor_find(&run->golden, "labels"), "target", step), hyper = hyper_tensor(run);
  const void *inputs[] = {images.data, labels.data, hyper.data};
  void *outputs[] = {&loss};
  CHECK(kiln_train_step(trainer->context, trainer->state, BATCH, inputs, outputs, &error));
  return loss;
}

/* Of a tensor of the state; `factor`: what it is divided by first. */
static void check_state(const Run *run, const Trainer *trainer, const char *state_prefix, const char *prefix,
                        double factor) {
  size_t checked = 0;
  for (size_t i = 0; i < kiln_state_tensor_count(trainer->state); i++) {
    kiln_port port;
    float *data;
    assert_int_equal(kiln_state_tensor(trainer->state, i, &port, &data), KILN_OK);
    const size_t length = strlen(state_prefix);
    if (strncmp(port.name, state_prefix, length) != 0 || (length == 0 && strncmp(port.name, "mom", 3) == 0)) continue;
    const char *name = port.name + length;
    if (length > 0 && is_cancelled(name)) continue;
    const size_t count = (size_t)port.bytes / sizeof(float);
    double *values = arena_array(run->fixture->arena, count, double);
    for (size_t k = 0; k < count; k++) values[k] = (double)data[k] / factor;
    check(name, values, golden_tensor(run, prefix, name));
    checked++;
  }
  assert_true(checked >= 15);
}

/* The parameters against those of the interpreter after the same step. */
static void check_step(const Run *run, const Trainer *trainer, const TensorList *state) {
  const double *all = tensor_find(state, "state")->data;
  for (size_t s = 0; s < run->graph->slot_count; s++) {
    const StateSlot *slot = &run->graph->slots[s];
    for (size_t i = 0; i < kiln_state_tensor_count(trainer->state); i++) {
      kiln_port port;
      float *data;
      assert_int_equal(kiln_state_tensor(trainer->state, i, &port, &data), KILN_OK);
      if (strcmp(port.name, slot->name) != 0) continue;
      double difference = 0, norm = 0;
      for (int64_t k = 0; k < port.bytes / 4; k++) {
        const double expected = all[slot->offset + k], error = (double)data[k] - expected;
        difference += error * error;
        norm += expected * expected;
      }
      if (!(sqrt(difference) <= tolerance * sqrt(norm)))
        fail_msg("%s differs by %g from the interpreter", slot->name, sqrt(difference / norm));
    }
  }
}

static void train(Fixture *fixture, Optimizer optimizer, Path path) {
  Run run;
  if (!open_run(fixture, optimizer, &run)) skip();
  prepare_graph(&run, &(TrainRequest){.loss = OP_CROSS_ENTROPY, .optimizer = optimizer});
  TensorList state = first_state(&run);
  Trainer trainer = open_trainer(&run, path, 2);
  const float *losses = tensor_find(&run.golden, "losses")->data;
  for (int step = 0; step < STEPS; step++) {
    const float loss = take_compiled_step(&run, &trainer, step);
    if (!(fabs((double)loss - (double)losses[step]) <= tolerance * fabs((double)losses[step])))
      fail_msg("step %d: loss %.9g, expected %.9g", step, (double)loss, (double)losses[step]);
    /* the first moment starts as the gradient, or a share of it */
    if (step == 0 && optimizer == OPTIMIZER_SGD) check_state(&run, &trainer, "momentum.", "grad0", 1);
    if (step == 0 && optimizer == OPTIMIZER_ADAM) check_state(&run, &trainer, "moment1.", "grad0", 1 - 0.9);
    interpret_step(&run, step, &state);
    check_step(&run, &trainer, &state);
  }
  check_state(&run, &trainer, "", "final", 1);
  close_trainer(&trainer);
}

static void test_sgd_compiled(void **state) { train(*state, OPTIMIZER_SGD, JUST_IN_TIME); }
static void test_adam_compiled(void **state) { train(*state, OPTIMIZER_ADAM, JUST_IN_TIME); }
static void test_adam_strict(void **state) { train(*state, OPTIMIZER_ADAM, STRICT); }
static void test_sgd_library(void **state) { train(*state, OPTIMIZER_SGD, LIBRARY); }
static void test_sgd_large(void **state) { train(*state, OPTIMIZER_SGD, LARGE); }
static void test_adam_library(void **state) { train(*state, OPTIMIZER_ADAM, LIBRARY); }

/* Everything that a step changes is the same bytes whatever the number of threads. */
static void check_threads(Fixture *fixture, Path path) {
  Run run;
  if (!open_run(fixture, OPTIMIZER_ADAM, &run)) skip();
  Trainer trainers[3];
  for (uint32_t t = 0; t < 3; t++) {
    trainers[t] = open_trainer(&run, path, t + 1);
    for (int step = 0; step < STEPS; step++) take_compiled_step(&run, &trainers[t], step);
  }
  for (size_t i = 0; i < kiln_state_tensor_count(trainers[0].state); i++) {
    kiln_port port;
    float *first, *other;
    kiln_state_tensor(trainers[0].state, i, &port, &first);
    for (int t = 1; t < 3; t++) {
      kiln_state_tensor(trainers[t].state, i, NULL, &other);
      if (memcmp(first, other, (size_t)port.bytes) != 0) fail_msg("'%s' differs with %d threads", port.name, t + 1);
    }
  }
  for (int t = 0; t < 3; t++) close_trainer(&trainers[t]);
}

static void test_threads(void **state) {
  check_threads(*state, JUST_IN_TIME);
  check_threads(*state, LARGE);
}

static void test_sgd_interpreted(void **state) { interpret(*state, OPTIMIZER_SGD); }
static void test_adam_interpreted(void **state) { interpret(*state, OPTIMIZER_ADAM); }

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_sgd_interpreted), fixture_test(test_adam_interpreted), fixture_test(test_sgd_compiled),
      fixture_test(test_adam_compiled),   fixture_test(test_adam_strict),      fixture_test(test_sgd_library),
      fixture_test(test_adam_library),    fixture_test(test_threads),           fixture_test(test_sgd_large),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
