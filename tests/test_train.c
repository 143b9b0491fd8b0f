/* Training steps: gradients against differences, compiled steps against the interpreter in all their variants, and what
 * a step must not do. */
#include <math.h>
#include <string.h>

#include "description.h"
#include "eval.h"
#include "kiln.h"
#include "passes.h"
#include "support.h"

enum { CLASSES = 4, MAX_BATCH = 6, PIXELS = 3 * 9 * 9 };

#define NETWORK(groups)                                                                                  \
  "{ \"kiln\": 1, \"name\": \"small\", \"inputs\": { \"x\": { \"shape\": [\"N\", 3, 9, 9] } },"          \
  "  \"layers\": ["                                                                                      \
  "    { \"op\": \"conv2d\", \"name\": \"conv1\", \"out_channels\": 5, \"kernel\": 3, \"padding\": 1 }," \
  "    { \"op\": \"batch_norm\", \"name\": \"bn\", \"momentum\": 0.2 },"                                 \
  "    { \"op\": \"silu\", \"name\": \"act\" },"                                                         \
  "    { \"op\": \"conv2d\", \"name\": \"conv2\", \"out_channels\": 18, \"kernel\": 3, \"stride\": 2 }," \
  "    { \"op\": \"tanh\", \"name\": \"act2\" },"                                                        \
  "    { \"op\": \"adaptive_avg_pool2d\", \"name\": \"pool\" },"                                         \
  "    { \"op\": \"flatten\", \"name\": \"flat\" },"                                                     \
  "    { \"op\": \"dropout\", \"name\": \"drop\", \"p\": 0.3 },"                                         \
  "    { \"op\": \"linear\", \"name\": \"logits\", \"out_features\": 4 } ]," groups                      \
  "  \"outputs\": [\"logits\"], \"max_batch\": 6 }"

#define GROUPS(frozen)                                                           \
  "  \"groups\": [ { \"name\": \"body\", \"layers\": [\"conv*\", \"bn\"]" frozen \
  " },"                                                                          \
  "                { \"name\": \"head\", \"layers\": [\"logits\"] } ],"

static const char plain_network[] = NETWORK("");
static const char grouped_network[] = NETWORK(GROUPS(""));
static const char frozen_network[] = NETWORK(GROUPS(", \"frozen\": true, \"freeze_batch_norm\": true"));
static const char norms_only_network[] = NETWORK(GROUPS(", \"frozen\": true"));

/* --- data -------------------------------------------------------------------------------------------- */

static double noise(uint64_t index) {
  uint64_t z = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return (double)((z ^ z >> 31) >> 11) * 0x1p-52 - 1;
}

typedef struct Batch {
  int64_t images;
  float x[MAX_BATCH * PIXELS], values[MAX_BATCH * CLASSES];
  int64_t classes[MAX_BATCH], rng[2];
  float hyper[2][HYPER_COUNT];
} Batch;

static void fill_batch(Batch *batch, int64_t images, int step, bool adam) {
  *batch = (Batch){.images = images, .rng = {12345678901, step}};
  for (int i = 0; i < MAX_BATCH * PIXELS; i++) batch->x[i] = (float)noise((uint64_t)(i + 100000 * step));
  for (int i = 0; i < MAX_BATCH * CLASSES; i++)
    batch->values[i] = (float)(0.5 + 0.5 * noise((uint64_t)(i + 77 * step)));
  for (int i = 0; i < MAX_BATCH; i++) batch->classes[i] = (i + step) % CLASSES;
  for (int g = 0; g < 2; g++) {
    float *hyper = batch->hyper[g];
    hyper[HYPER_LEARNING_RATE] = g == 0 ? 0.02f : 0.05f;
    hyper[HYPER_MOMENTUM] = g == 0 ? 0.9f : 0.8f;
    hyper[HYPER_BETA2] = 0.99f;
    hyper[HYPER_EPS] = 1e-3f;
    hyper[HYPER_WEIGHT_DECAY] = g == 0 ? 0.1f : 0.03f;
    hyper[HYPER_CORRECTION1] = 1 - powf(hyper[HYPER_MOMENTUM], (float)step + 1);
    hyper[HYPER_CORRECTION2] = 1 - powf(hyper[HYPER_BETA2], (float)step + 1);
    hyper[HYPER_GRADIENT_SCALE] = adam ? 0.5f : 1;
    hyper[HYPER_APPLY] = 1;
    hyper[HYPER_CLIP_NORM] = 0.05f;
  }
}

/* --- the interpreter --------------------------------------------------------------------------------- */

typedef struct Reference {
  Fixture *fixture;
  Graph *graph; /* after infer, hooks, train */
  TensorList state;
} Reference;

static Arena *scratch_of(Fixture *fixture) {
  Arena *scratch = arena_create(NULL);
  arena_defer(fixture->arena, (void (*)(void *))arena_destroy, scratch);
  return scratch;
}

static Graph *parse_network(Fixture *fixture, const char *text) {
  Graph *graph = NULL;
  if (!description_parse("small.json", text, strlen(text), NULL, fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return graph;
}

static void make_step(Fixture *fixture, Graph *graph, const TrainRequest *request) {
  const PassOptions options = {.scratch = scratch_of(fixture)};
  if (!graph_request_training(graph, request, fixture->diag) ||
      !pipeline_run_list(graph, "infer,hooks,train", &options, fixture->diag) ||
      !graph_verify(graph, "train", fixture->diag))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

/* Values in f64 for every parameter of the step, from `weights` where they are named there. */
static void set_reference_state(Reference *reference, const TensorList *weights) {
  const Graph *graph = reference->graph;
  Arena *arena = reference->fixture->arena;
  reference->state = (TensorList){arena_array(arena, graph->parameter_count, Tensor), graph->parameter_count};
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    Tensor *tensor = &reference->state.items[i];
    *tensor = tensor_create(arena, parameter->name, DTYPE_F64, parameter->shape);
    const Tensor *value = tensor_find(weights, parameter->name);
    for (int64_t k = 0; value && k < tensor_elements(value); k++) tensor_set(tensor, k, tensor_get(value, k));
    for (size_t s = 0; s < graph->slot_count && !value; s++) {
      const Tensor *slot = tensor_find(weights, graph->slots[s].name);
      for (int64_t k = 0; k < tensor_elements(slot); k++)
        tensor_set(tensor, graph->slots[s].offset + k, tensor_get(slot, k));
    }
  }
}

static TensorList initial_weights(Fixture *fixture, const char *text) {
  TensorList weights;
  weights_initialise_as(parse_network(fixture, text), 5, INIT_MODE_PYTORCH, fixture->arena, &weights);
  return weights;
}

static Reference make_reference(Fixture *fixture, const char *text, const TrainRequest *request) {
  Reference reference = {.fixture = fixture, .graph = parse_network(fixture, text)};
  const TensorList weights = initial_weights(fixture, text);
  make_step(fixture, reference.graph, request);
  set_reference_state(&reference, &weights);
  return reference;
}

/* Where a batch has the data of an input. */
static void *input_data(Batch *batch, const char *name, bool classes) {
  if (strcmp(name, "x") == 0) return batch->x;
  if (strcmp(name, "hyper") == 0) return batch->hyper;
  if (strcmp(name, "rng") == 0) return batch->rng;
  assert_string_equal(name, "target");
  return classes ? (void *)batch->classes : (void *)batch->values;
}

static void run_reference(Reference *reference, Batch *batch, EvalResult *out_result) {
  const Graph *graph = reference->graph;
  Tensor inputs[4];
  assert_true(graph->input_count <= 4);
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    inputs[i] =
        (Tensor){input->name, input->dtype, input->shape, input_data(batch, input->name, input->dtype == DTYPE_I64)};
    if (shape_batched(&input->shape)) inputs[i].shape.dims[0] = batch->images;
  }
  if (!graph_eval(graph, &(TensorList){inputs, graph->input_count}, &reference->state, reference->fixture->arena,
                  reference->fixture->diag, out_result))
    fail_msg("%s", diag_text(reference->fixture->diag, reference->fixture->arena));
}

static void step_reference(Reference *reference, Batch *batch, EvalResult *out_result) {
  const Graph *graph = reference->graph;
  run_reference(reference, batch, out_result);
  for (size_t i = 0; i < graph->update_count; i++) {
    Tensor *tensor = &reference->state.items[graph->updates[i].parameter];
    memcpy(tensor->data, out_result->values[graph->updates[i].node->id].data, (size_t)tensor_bytes(tensor));
  }
}

static double output_value(const Reference *reference, const EvalResult *result, size_t output) {
  return result->values[reference->graph->outputs[output].node->id].data[0];
}

static const Node *state_update(const Graph *graph) {
  for (size_t i = 0; i < graph->update_count; i++)
    if (graph->updates[i].parameter == 0) return graph->updates[i].node;
  fail_msg("the state is not updated");
  return NULL;
}

/* Gradients of the whole step, through statistics of the batch and dropout, against central differences. */
static void test_differences(void **state) {
  Reference reference = make_reference(*state, plain_network, &(TrainRequest){.loss = OP_CROSS_ENTROPY});
  Batch batch;
  EvalResult result;
  fill_batch(&batch, 5, 3, false);
  run_reference(&reference, &batch, &result);
  const double *gradients = result.values[state_update(reference.graph)->inputs[1]->id].data, step = 1e-5;
  double *row = reference.state.items[0].data, losses[2];
  for (size_t s = 0; s < reference.graph->slot_count; s++) {
    const StateSlot *slot = &reference.graph->slots[s];
    const int64_t count = shape_elements_per_image(&slot->shape);
    for (int64_t k = 0; k < count; k += 1 + count / 5) {
      const int64_t at = slot->offset + k;
      const double kept = row[at];
      for (int side = 0; side < 2; side++) {
        row[at] = kept + (side == 0 ? step : -step);
        run_reference(&reference, &batch, &result);
        losses[side] = output_value(&reference, &result, 0);
      }
      row[at] = kept;
      const double difference = (losses[0] - losses[1]) / (2 * step);
      if (!(fabs(difference - gradients[at]) <= 1e-8 + 1e-6 * fabs(difference)))
        fail_msg("%s[%d]: gradient %g, difference %g", slot->name, (int)k, gradients[at], difference);
    }
  }
}

/* --- compiled steps ---------------------------------------------------------------------------------- */

typedef struct Step {
  kiln_model *model;
  kiln_executable *executable;
  kiln_context *context;
  kiln_state *state;
} Step;

#define CHECK(call) check_status((call), &error, #call)

static void check_status(kiln_status status, const kiln_error *error, const char *call) {
  if (status != KILN_OK) fail_msg("%s: %s", call, error->message);
}

static Step open_step(Fixture *fixture, const char *text, const kiln_train_options *train, const kiln_hook *hook) {
  Step step;
  kiln_error error;
  const TensorList weights = initial_weights(fixture, text);
  CHECK(kiln_model_parse(NULL, "small.json", text, strlen(text), NULL, &step.model, &error));
  for (size_t i = 0; i < weights.count; i++) {
    const Tensor *tensor = &weights.items[i];
    CHECK(kiln_model_set_parameter(step.model, tensor->name, tensor->data, (uint32_t)tensor->shape.rank,
                                   tensor->shape.dims, &error));
  }
  if (hook) CHECK(kiln_model_add_hook_with(step.model, hook, &error));
  CHECK(kiln_compile_training(step.model, train, NULL, &step.executable, &error));
  CHECK(kiln_context_create(step.executable, &(kiln_context_options){.threads = 2}, &step.context, &error));
  CHECK(kiln_state_create(step.executable, step.model, &step.state, &error));
  return step;
}

static void close_step(Step *step) {
  kiln_state_destroy(step->state);
  kiln_context_destroy(step->context);
  kiln_executable_destroy(step->executable);
  kiln_model_destroy(step->model);
}

/* outputs[0] is the loss. */
static void run_step(Step *step, Batch *batch, void *const *outputs) {
  const kiln_program *program = kiln_executable_program(step->executable);
  const void *inputs[4] = {NULL};
  kiln_error error;
  assert_true(program->input_count <= 4);
  for (uint32_t i = 0; i < program->input_count; i++)
    inputs[i] = input_data(batch, program->inputs[i].name, program->inputs[i].dtype == KILN_I64);
  CHECK(kiln_train_step(step->context, step->state, batch->images, inputs, outputs, &error));
}

/* A copy of everything that the step changes. */
static float *copy_state(Fixture *fixture, const Step *step, size_t *out_count) {
  size_t count = 0;
  kiln_port port;
  float *data;
  for (size_t i = 0; kiln_state_tensor(step->state, i, &port, &data) == KILN_OK; i++)
    count += (size_t)port.bytes / sizeof(float);
  float *copy = arena_array(fixture->arena, count, float);
  *out_count = count;
  for (size_t i = 0; kiln_state_tensor(step->state, i, &port, &data) == KILN_OK; i++) {
    memcpy(copy, data, (size_t)port.bytes);
    copy += (size_t)port.bytes / sizeof(float);
  }
  return copy - count;
}

/* The interpreter's values of a tensor of the state. */
static const double *expected_tensor(const Reference *reference, const char *name) {
  const Tensor *own = tensor_find(&reference->state, name), *rows = &reference->state.items[0];
  if (own) return own->data;
  for (size_t s = 0; s < reference->graph->slot_count; s++) {
    const StateSlot *slot = &reference->graph->slots[s];
    const size_t length = strlen(name), tail = strlen(slot->name);
    if (length < tail || strcmp(name + length - tail, slot->name) != 0) continue;
    int64_t row = length > tail;
    if (strncmp(name, "moment2.", 8) == 0) row = 2;
    if (strncmp(name, "accumulated.", 12) == 0) row = rows->shape.dims[0] - 1;
    return (const double *)rows->data + row * rows->shape.dims[1] + slot->offset;
  }
  fail_msg("the interpreter has no '%s'", name);
  return NULL;
}

static void compare_states(const Reference *reference, const Step *step, double tolerance) {
  kiln_port port;
  float *data;
  for (size_t i = 0; kiln_state_tensor(step->state, i, &port, &data) == KILN_OK; i++) {
    const double *expected = expected_tensor(reference, port.name);
    double difference = 0, size = 0;
    for (int64_t k = 0; k < port.bytes / 4; k++) {
      difference += ((double)data[k] - expected[k]) * ((double)data[k] - expected[k]);
      size += expected[k] * expected[k];
    }
    if (!(sqrt(difference) <= tolerance * sqrt(size) + 1e-12))
      fail_msg("'%s' differs by %g of %g", port.name, sqrt(difference), sqrt(size));
  }
}

typedef struct Variant {
  const char *text;
  kiln_train_options train;
  TrainRequest request;
} Variant;

static void check_near(const char *what, float found, double expected) {
  if (!(fabs((double)found - expected) <= 1e-5 * fabs(expected)))
    fail_msg("the %s is %g, expected %g", what, (double)found, expected);
}

/* Four steps, some of them of smaller batches. */
static void check_variant(Fixture *fixture, const Variant *variant) {
  const bool adam = variant->request.optimizer == OPTIMIZER_ADAM;
  Reference reference = make_reference(fixture, variant->text, &variant->request);
  Step step = open_step(fixture, variant->text, &variant->train, NULL);
  static const int64_t images[] = {6, 3, 5, 6};
  for (int s = 0; s < 4; s++) {
    Batch batch;
    EvalResult result;
    float loss = NAN, norm = NAN;
    fill_batch(&batch, images[s], s, adam);
    if (variant->train.accumulate && s % 2 == 0) batch.hyper[0][HYPER_APPLY] = 0;
    run_step(&step, &batch, (void *[]){&loss, &norm});
    step_reference(&reference, &batch, &result);
    check_near("loss", loss, output_value(&reference, &result, 0));
    if (variant->train.clip) {
      check_near("norm", norm, output_value(&reference, &result, 1));
      assert_true(norm > 0.05f); /* it was clipped */
    }
    compare_states(&reference, &step, 2e-5);
  }
  close_step(&step);
}

static void test_variants(void **state) {
  static const Variant variants[] = {
      {plain_network, {.nesterov = 1}, {.loss = OP_CROSS_ENTROPY, .nesterov = true}},
      {grouped_network, {.clip = 1}, {.loss = OP_CROSS_ENTROPY, .clip = true}},
      {grouped_network,
       {.optimizer = KILN_OPTIMIZER_ADAM, .accumulate = 1, .clip = 1, .loss = KILN_LOSS_MSE},
       {.loss = OP_MSE, .optimizer = OPTIMIZER_ADAM, .accumulate = true, .clip = true}},
      {grouped_network,
       {.accumulate = 1, .loss = KILN_LOSS_BCE_WITH_LOGITS},
       {.loss = OP_BCE_WITH_LOGITS, .accumulate = true}},
      {norms_only_network, {.optimizer = KILN_OPTIMIZER_ADAM}, {.loss = OP_CROSS_ENTROPY, .optimizer = OPTIMIZER_ADAM}},
      {frozen_network, {.optimizer = KILN_OPTIMIZER_ADAM}, {.loss = OP_CROSS_ENTROPY, .optimizer = OPTIMIZER_ADAM}},
  };
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) check_variant(*state, &variants[i]);
}

/* A loss that is not finite changes nothing at all. */
static void test_guard(void **state) {
  Fixture *fixture = *state;
  for (uint32_t accumulate = 0; accumulate < 2; accumulate++) {
    Step step = open_step(fixture, plain_network, &(kiln_train_options){.accumulate = accumulate}, NULL);
    Batch batch;
    float loss = 0;
    size_t count;
    fill_batch(&batch, 4, 0, false);
    run_step(&step, &batch, (void *[]){&loss});
    assert_true(isfinite(loss));
    const float *before = copy_state(fixture, &step, &count);
    batch.classes[2] = CLASSES; /* no class */
    run_step(&step, &batch, (void *[]){&loss});
    assert_false(isfinite(loss));
    assert_memory_equal(before, copy_state(fixture, &step, &count), count * sizeof *before);
    batch.classes[2] = 0;
    run_step(&step, &batch, (void *[]){&loss});
    assert_memory_not_equal(before, copy_state(fixture, &step, &count), count * sizeof *before);
    close_step(&step);
  }
}

/* Statistics of one value per channel: variance 0, and a gradient of the bias only. */
static void test_single_values(void **state) {
  static const char text[] =
      "{ \"kiln\": 1, \"name\": \"small\", \"inputs\": { \"x\": { \"shape\": [\"N\", 3, 9, 9] } }, \"layers\": ["
      " { \"op\": \"flatten\", \"name\": \"flat\" }, { \"op\": \"linear\", \"name\": \"a\", \"out_features\": 5 },"
      " { \"op\": \"batch_norm\", \"name\": \"bn\" }, { \"op\": \"linear\", \"name\": \"b\", \"out_features\": 4 } ],"
      " \"max_batch\": 6 }";
  Reference reference = make_reference(*state, text, &(TrainRequest){.loss = OP_CROSS_ENTROPY});
  Step step = open_step(*state, text, NULL, NULL);
  for (int s = 0; s < 3; s++) {
    Batch batch;
    EvalResult result;
    float loss;
    fill_batch(&batch, s < 2 ? 1 : 2, s, false);
    for (int g = 0; g < 2; g++) batch.hyper[g][HYPER_WEIGHT_DECAY] = 0;
    run_step(&step, &batch, (void *[]){&loss});
    step_reference(&reference, &batch, &result);
    check_near("loss", loss, output_value(&reference, &result, 0));
    /* before the norm: nothing but rounding, which the norm scales by 1/sqrt(eps) */
    kiln_port port;
    float *data;
    for (size_t t = 0; kiln_state_tensor(step.state, t, &port, &data) == KILN_OK; t++) {
      const bool before = strcmp(port.name, "momentum.a.weight") == 0 && s < 2;
      for (int64_t k = 0; k < port.bytes / 4; k++) assert_true(before ? fabsf(data[k]) < 1e-4f : isfinite(data[k]));
    }
  }
  close_step(&step);
}

static const char no_norm_network[] =
    "{ \"kiln\": 1, \"name\": \"small\", \"inputs\": { \"x\": { \"shape\": [\"N\", 3, 9, 9] } }, \"layers\": ["
    " { \"op\": \"conv2d\", \"name\": \"conv\", \"out_channels\": 8, \"kernel\": 3, \"stride\": 3 },"
    " { \"op\": \"relu\", \"name\": \"act\" }, { \"op\": \"flatten\", \"name\": \"flat\" },"
    " { \"op\": \"linear\", \"name\": \"logits\", \"out_features\": 4 } ], \"max_batch\": 6 }";

/* Three batches of two and one of six are the same update but for rounding. */
static void test_accumulation(void **state) {
  Step whole = open_step(*state, no_norm_network, &(kiln_train_options){0}, NULL);
  Step parts = open_step(*state, no_norm_network, &(kiln_train_options){.accumulate = 1}, NULL);
  Batch batch, part;
  float loss, *a, *b;
  fill_batch(&batch, 6, 1, false);
  run_step(&whole, &batch, (void *[]){&loss});
  for (int i = 0; i < 3; i++) {
    part = batch;
    part.images = 2;
    memcpy(part.x, batch.x + 2 * i * PIXELS, 2 * PIXELS * sizeof(float));
    memcpy(part.classes, batch.classes + 2 * i, 2 * sizeof(int64_t));
    part.hyper[0][HYPER_GRADIENT_SCALE] = 1.f / 3;
    part.hyper[0][HYPER_APPLY] = i == 2;
    run_step(&parts, &part, (void *[]){&loss});
  }
  kiln_port port;
  for (size_t i = 0; kiln_state_tensor(whole.state, i, &port, &a) == KILN_OK; i++) {
    double difference = 0, size = 0;
    assert_int_equal(kiln_state_tensor(parts.state, i, &port, &b), KILN_OK);
    for (int64_t k = 0; k < port.bytes / 4; k++) {
      difference += ((double)a[k] - (double)b[k]) * ((double)a[k] - (double)b[k]);
      size += (double)a[k] * (double)a[k];
    }
    if (!(sqrt(difference) <= 1e-6 * sqrt(size))) fail_msg("'%s' differs by %g", port.name, sqrt(difference / size));
  }
  close_step(&whole);
  close_step(&parts);
}

/* Hooks give values of every batch, and change nothing. */
static void test_hooks(void **state) {
  static const kiln_hook hooks[] = {{.pattern = "act", .action = KILN_HOOK_STATS},
                                    {.pattern = "conv1"},
                                    {.pattern = "act2", .kind = KILN_HOOK_GRADIENT}};
  Fixture *fixture = *state;
  float loss[2], *hooked = arena_array(fixture->arena, MAX_BATCH * 18 * 81, float);
  for (size_t h = 0; h < sizeof hooks / sizeof *hooks; h++) {
    Step bare = open_step(fixture, plain_network, &(kiln_train_options){0}, NULL);
    Step step = open_step(fixture, plain_network, &(kiln_train_options){0}, &hooks[h]);
    assert_int_equal(kiln_executable_program(step.executable)->hook_count, 1);
    for (int s = 0; s < 2; s++) {
      Batch batch;
      fill_batch(&batch, 4, s, false);
      run_step(&bare, &batch, (void *[]){&loss[0]});
      hooked[1] = -1;
      run_step(&step, &batch, (void *[]){&loss[1], hooked});
      assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
      assert_true(hooked[1] != -1);
      if (h == 0) assert_true(hooked[1] > 0.1f && hooked[1] < 3); /* standard deviation behind a batch norm */
    }
    size_t count;
    const float *a = copy_state(fixture, &bare, &count), *b = copy_state(fixture, &step, &count);
    assert_memory_equal(a, b, count * sizeof *a);
    close_step(&step);
    close_step(&bare);
  }
}

/* Within a limit values are computed again: less memory, the same numbers; and what cannot be done is said. */
static void test_memory_limit(void **state) {
  Fixture *fixture = *state;
  kiln_error error;
  Step kept = open_step(fixture, plain_network, &(kiln_train_options){0}, NULL);
  const int64_t bytes = kiln_executable_program(kept.executable)->workspace_fixed;
  Step again = open_step(fixture, plain_network, &(kiln_train_options){.memory_limit = bytes - 1}, NULL);
  assert_true(kiln_executable_program(again.executable)->workspace_fixed < bytes);
  for (int s = 0; s < 3; s++) {
    Batch batch;
    float loss[2];
    fill_batch(&batch, 6 - s, s, false);
    run_step(&kept, &batch, (void *[]){&loss[0]});
    run_step(&again, &batch, (void *[]){&loss[1]});
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
  }
  size_t count;
  const float *a = copy_state(fixture, &kept, &count), *b = copy_state(fixture, &again, &count);
  assert_memory_equal(a, b, count * sizeof *a);
  kiln_executable *executable;
  const kiln_train_options small = {.memory_limit = 64};
  assert_int_equal(kiln_compile_training(kept.model, &small, NULL, &executable, &error), KILN_ERROR_INPUT);
  assert_non_null(strstr(error.message, "which exceeds the limit of 64; give a smaller batch"));
  close_step(&kept);
  close_step(&again);
}

/* --- frozen groups ----------------------------------------------------------------------------------- */

static size_t count_ops(const Graph *graph, OpCode op) {
  size_t count = 0;
  for (size_t i = 0; i < graph->node_count; i++) count += graph->nodes[i]->op == op;
  return count;
}

/* A frozen body costs its forward pass only: not one operation of its backward pass is built. */
static void test_frozen_body(void **state) {
  Fixture *fixture = *state;
  for (int batch_norm = 0; batch_norm < 2; batch_norm++) {
    Graph *graph = NULL;
    assert_true(
        description_read(KILN_SOURCE_DIR "/examples/resnet34_pets.json", NULL, fixture->arena, fixture->diag, &graph));
    for (size_t g = 0; g < graph->group_count; g++) {
      const bool body = g + 1 < graph->group_count;
      assert_true(graph_set_frozen(graph, graph->groups[g].name, body, body && batch_norm, fixture->diag));
    }
    make_step(fixture, graph, &(TrainRequest){.loss = OP_CROSS_ENTROPY});
    assert_int_equal(count_ops(graph, OP_CONV2D_GRAD_WEIGHT), 0);
    if (batch_norm) {
      assert_int_equal(count_ops(graph, OP_CONV_TRANSPOSE2D), 0);
      assert_int_equal(count_ops(graph, OP_MAX_POOL2D_GRAD), 0);
      assert_int_equal(count_ops(graph, OP_RELU_GRAD), 1); /* of the head */
      assert_int_equal(count_ops(graph, OP_LINEAR_GRAD_WEIGHT), 2);
    } else {
      assert_true(count_ops(graph, OP_CONV_TRANSPOSE2D) > 30);
      assert_int_equal(count_ops(graph, OP_BN_UPDATE), 2 * count_ops(graph, OP_BATCH_STATS));
    }
  }
}

/* What is frozen is no part of the state, and a model takes the trained values back. */
static void test_freezing(void **state) {
  kiln_error error;
  kiln_port port;
  Batch batch;
  float before[CLASSES], after[CLASSES], loss;
  Step step = open_step(*state, frozen_network, &(kiln_train_options){0}, NULL);
  for (size_t i = 0; kiln_state_tensor(step.state, i, &port, NULL) == KILN_OK; i++)
    assert_non_null(strstr(port.name, "logits"));
  CHECK(kiln_model_get_parameter(step.model, "logits.bias", before, &error));
  fill_batch(&batch, 6, 0, false);
  run_step(&step, &batch, (void *[]){&loss});
  CHECK(kiln_state_store(step.state, step.model, &error));
  CHECK(kiln_model_get_parameter(step.model, "logits.bias", after, &error));
  assert_memory_not_equal(before, after, sizeof before);
  CHECK(kiln_model_set_frozen(step.model, "body", 0, 0, &error));
  kiln_executable *thawed;
  kiln_state *thawed_state;
  CHECK(kiln_compile_training(step.model, NULL, NULL, &thawed, &error));
  CHECK(kiln_state_create(thawed, step.model, &thawed_state, &error));
  assert_true(kiln_state_tensor_count(thawed_state) > kiln_state_tensor_count(step.state));
  assert_int_equal(kiln_model_set_frozen(step.model, "bodi", 0, 0, &error), KILN_ERROR_INPUT);
  assert_non_null(strstr(error.message, "the model has no group 'bodi' of the 2 it has; did you mean 'body'?"));
  kiln_state_destroy(thawed_state);
  kiln_executable_destroy(thawed);
  close_step(&step);
}

/* A program for evaluation that was compiled before takes trained values over. */
static void test_prepare_again(void **state) {
  kiln_error error;
  kiln_executable *programs[2];
  Batch batch;
  float loss, logits[2][MAX_BATCH * CLASSES];
  Step step = open_step(*state, plain_network, &(kiln_train_options){0}, NULL);
  CHECK(kiln_compile(step.model, NULL, &programs[0], &error));
  fill_batch(&batch, 6, 0, false);
  run_step(&step, &batch, (void *[]){&loss});
  CHECK(kiln_state_store(step.state, step.model, &error));
  CHECK(kiln_executable_prepare(programs[0], step.model, &error));
  CHECK(kiln_compile(step.model, NULL, &programs[1], &error));
  for (int i = 0; i < 2; i++) {
    kiln_context *context;
    CHECK(kiln_context_create(programs[i], NULL, &context, &error));
    CHECK(kiln_run(context, 6, (const void *[]){batch.x}, (void *[]){logits[i]}, &error));
    kiln_context_destroy(context);
    kiln_executable_destroy(programs[i]);
  }
  assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
  close_step(&step);
}

/* --- mistakes ---------------------------------------------------------------------------------------- */

static void check_refused(const char *text, const kiln_train_options *train, const char *message) {
  kiln_model *model;
  kiln_executable *executable;
  kiln_error error;
  CHECK(kiln_model_parse(NULL, "small.json", text, strlen(text), NULL, &model, &error));
  CHECK(kiln_model_init_weights(model, 1, &error));
  assert_int_not_equal(kiln_compile_training(model, train, NULL, &executable, &error), KILN_OK);
  if (!strstr(error.message, message)) fail_msg("expected '%s' in: %s", message, error.message);
  kiln_model_destroy(model);
}

static void test_mistakes(void **state) {
  (void)state;
  check_refused(plain_network, &(kiln_train_options){.output = "logit"},
                "training: the model has no value 'logit'; did you mean 'logits'?");
  check_refused(plain_network, &(kiln_train_options){.optimizer = KILN_OPTIMIZER_ADAM, .nesterov = 1},
                "Nesterov's momentum is an option of sgd, found adam");
  check_refused(plain_network, &(kiln_train_options){.output = "act"}, "input expects 2 dimensions, found 4");
  check_refused(NETWORK("\"groups\": [ { \"name\": \"all\", \"layers\": [\"*\"], \"frozen\": true, "
                        "\"freeze_batch_norm\": true } ],"),
                NULL, "training: nothing to train: 'logits' depends on no parameter that is not frozen");
  check_refused(
      "{ \"kiln\": 1, \"name\": \"t\", \"inputs\": { \"target\": { \"shape\": [\"N\", 3] } }, \"layers\": "
      "[ { \"op\": \"linear\", \"name\": \"y\", \"out_features\": 2 } ] }",
      NULL, "the step needs an input 'target', but the model has a value of that name");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_differences),   fixture_test(test_variants),      fixture_test(test_guard),
      fixture_test(test_accumulation),  fixture_test(test_single_values), fixture_test(test_hooks),
      fixture_test(test_memory_limit),  fixture_test(test_frozen_body),   fixture_test(test_freezing),
      fixture_test(test_prepare_again), fixture_test(test_mistakes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
