/* kiln bench --train: how fast a training step is. Everything goes through kiln.h, as a host's own loop would. */
#include "bench_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "affinity.h"
#include "ports.h"
#include "safetensors.h"

typedef struct Step {
  kiln_model *model;
  kiln_executable *executable;
  kiln_context *context;
  kiln_state *state;
  const kiln_program *program;
  int64_t batch;
  uint32_t threads;
  const void **inputs;
  void **outputs;
  double build_seconds;
} Step;

static void release_step(void *argument) {
  Step *step = argument;
  kiln_state_destroy(step->state);
  kiln_context_destroy(step->context);
  kiln_executable_destroy(step->executable);
  kiln_model_destroy(step->model);
}

/* --- building ---------------------------------------------------------------------------------------- */

static bool load_model(Tool *tool, const TrainBench *bench, Step *step) {
  const ModelOptions *model = bench->model;
  kiln_shape shapes[64];
  kiln_model_options options = {shapes, model->shapes.count};
  for (size_t i = 0; i < model->shapes.count; i++) {
    ShapeOverride shape;
    if (!shape_parse(tool, model->shapes.items[i], &shape)) return false;
    shapes[i] = (kiln_shape){.input = shape.input, .rank = (uint32_t)shape.shape.rank};
    for (int32_t d = 0; d < shape.shape.rank; d++) shapes[i].dims[d] = shape.shape.dims[d];
  }
  kiln_error error;
  if (kiln_model_load(NULL, bench->path, &options, &step->model, &error) == KILN_OK &&
      kiln_model_init_weights(step->model, 1, &error) == KILN_OK &&
      (model->weights == NULL || kiln_model_load_weights(step->model, model->weights, &error) == KILN_OK))
    return true;
  tool_library_error(tool, &error);
  return false;
}

static bool train_options(Tool *tool, const TrainBench *bench, kiln_train_options *out_options) {
  Graph *graph;
  ModelOptions model = *bench->model;
  const TrainRequest *request;
  model.weights = NULL;
  if (!model_open(tool, bench->path, &model, &graph) || !step_request(tool, bench->step, graph, &request)) return false;
  *out_options = (kiln_train_options){
      .loss = request->loss == OP_MSE               ? KILN_LOSS_MSE
              : request->loss == OP_BCE_WITH_LOGITS ? KILN_LOSS_BCE_WITH_LOGITS
                                                    : KILN_LOSS_CROSS_ENTROPY,
      .optimizer = request->optimizer == OPTIMIZER_ADAM ? KILN_OPTIMIZER_ADAM : KILN_OPTIMIZER_SGD,
      .output = bench->step->of,
      .nesterov = bench->step->nesterov,
      .clip = bench->step->clip,
      .accumulate = bench->step->accumulate,
      .memory_limit = bench->step->memory_limit,
  };
  return true;
}

static bool build_step(Tool *tool, const TrainBench *bench, Step *step) {
  kiln_train_options train;
  kiln_compile_options compile;
  kiln_error error;
  double started = seconds_now();
  kiln_context_options options;
  if (!train_options(tool, bench, &train) || !compile_options(tool, bench->model, &compile) ||
      !context_options(tool, bench->model, &options) || !load_model(tool, bench, step))
    return false;
  step->threads = options.threads;
  if (kiln_compile_training(step->model, &train, &compile, &step->executable, &error) != KILN_OK ||
      kiln_context_create(step->executable, &options, &step->context, &error) != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  step->program = kiln_executable_program(step->executable);
  step->build_seconds = seconds_now() - started;
  return true;
}

/* --- data -------------------------------------------------------------------------------------------- */

static void fill_hyper(const TrainBench *bench, Tensor *hyper) {
  for (int64_t group = 0; group < hyper->shape.dims[0]; group++) {
    float *row = (float *)hyper->data + group * KILN_HYPER_COUNT;
    memset(row, 0, KILN_HYPER_COUNT * sizeof *row);
    row[KILN_HYPER_LEARNING_RATE] = (float)bench->learning_rate;
    row[KILN_HYPER_MOMENTUM] = (float)bench->momentum;
    row[KILN_HYPER_BETA2] = 0.999f;
    row[KILN_HYPER_EPS] = 1e-8f;
    row[KILN_HYPER_CORRECTION1] = row[KILN_HYPER_CORRECTION2] = 1;
    row[KILN_HYPER_GRADIENT_SCALE] = row[KILN_HYPER_APPLY] = 1;
  }
}

static bool take_input(Tool *tool, const TrainBench *bench, const Tensor *given, Tensor *input) {
  if (given->dtype == input->dtype && shape_equal(&given->shape, &input->shape)) {
    input->data = given->data;
    return true;
  }
  Text found, expected;
  text_init(&found, tool->arena);
  text_init(&expected, tool->arena);
  shape_print(&found, &given->shape);
  shape_print(&expected, &input->shape);
  diag_error(tool->diag, (Location){bench->inputs, 0, 0}, "tensor '%s': expected %s [%s], found %s [%s]", given->name,
             data_type_name(input->dtype), expected.data, data_type_name(given->dtype), found.data);
  return false;
}

static bool make_ports(Tool *tool, const TrainBench *bench, Step *step) {
  const kiln_program *program = step->program;
  TensorList files = {NULL, 0}, random;
  step->batch = bench->run_batch > 0 ? bench->run_batch : program->max_batch;
  if (bench->inputs != NULL && !safetensors_read(bench->inputs, tool->arena, tool->diag, &files)) return false;
  if (!inputs_random(tool, program->inputs, program->input_count, step->batch, 1, &random)) return false;
  step->inputs = arena_array(tool->arena, program->input_count + 1, const void *);
  step->outputs = arena_array(tool->arena, program->output_count + 1, void *);
  for (uint32_t i = 0; i < program->input_count; i++) {
    Tensor *input = &random.items[i];
    const Tensor *given = tensor_find(&files, input->name);
    if (strcmp(input->name, "hyper") == 0) fill_hyper(bench, input);
    if (given != NULL && !take_input(tool, bench, given, input)) return false;
    step->inputs[i] = input->data;
  }
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    size_t bytes = (size_t)(port->bytes * (port->batched ? step->batch : 1));
    step->outputs[i] = arena_alloc_aligned(tool->arena, bytes + 1, 64);
  }
  return true;
}

/* --- timing ------------------------------------------------------------------------------------------ */

static bool restart(Tool *tool, Step *step) {
  kiln_error error;
  kiln_state_destroy(step->state);
  step->state = NULL;
  if (kiln_state_create(step->executable, step->model, &step->state, &error) == KILN_OK) return true;
  tool_library_error(tool, &error);
  return false;
}

static bool take_step(Tool *tool, Step *step, double *out_seconds) {
  kiln_error error;
  double started = seconds_now();
  if (kiln_train_step(step->context, step->state, step->batch, step->inputs, step->outputs, &error) != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  *out_seconds = seconds_now() - started;
  return true;
}

static float loss_of(const Step *step) {
  float loss;
  memcpy(&loss, step->outputs[0], sizeof loss);
  return loss;
}

static int serve(Tool *tool, Step *step, int64_t rounds) {
  double *samples = arena_array(tool->arena, (size_t)rounds, double);
  char line[64];
  while (fgets(line, sizeof line, stdin) != NULL) {
    float loss = 0;
    for (int64_t i = 0; i < rounds; i++) {
      if (!take_step(tool, step, &samples[i])) return EXIT_FAILED;
      if (i == 0) loss = loss_of(step);
    }
    qsort(samples, (size_t)rounds, sizeof *samples, compare_double);
    printf("%.6f %.9g\n", 1e3 * quantile(samples, (size_t)rounds, 0.5), (double)loss);
    fflush(stdout);
  }
  return EXIT_OK;
}

static int measure(Tool *tool, const TrainBench *bench, Step *step) {
  enum { SAMPLE_LIMIT = 1000000, MINIMUM = 5 };
  double *samples = arena_array(tool->arena, SAMPLE_LIMIT, double);
  size_t count = 0;
  double started = seconds_now();
  while (count < SAMPLE_LIMIT && (count < MINIMUM || seconds_now() - started < bench->seconds))
    if (!take_step(tool, step, &samples[count++])) return EXIT_FAILED;
  qsort(samples, count, sizeof *samples, compare_double);
  double median = quantile(samples, count, 0.5), p10 = quantile(samples, count, 0.1),
         p90 = quantile(samples, count, 0.9);
  const kiln_program *program = step->program;
  if (bench->json) {
    Text text;
    text_init(&text, tool->arena);
    text_add(&text, "{\"model\":");
    text_add_json(&text, program->name);
    text_format(&text,
                ",\"isa\":\"%s\",\"train\":true,\"batch\":%lld,\"threads\":%u,\"runs\":%zu,\"median_ms\":%.6f,"
                "\"p10_ms\":%.6f,\"p90_ms\":%.6f,\"min_ms\":%.6f,\"build_ms\":%.3f}\n",
                program->isa, (long long)step->batch, step->threads, count, 1e3 * median, 1e3 * p10, 1e3 * p90,
                1e3 * samples[0], 1e3 * step->build_seconds);
    fputs(text.data, stdout);
    return EXIT_OK;
  }
  printf("%s  %s  training step  batch %lld  %u thread%s  %zu steps\n", program->name, program->isa,
         (long long)step->batch, step->threads, step->threads == 1 ? "" : "s", count);
  printf("median %.3f ms   p10 %.3f   p90 %.3f   min %.3f\n", 1e3 * median, 1e3 * p10, 1e3 * p90, 1e3 * samples[0]);
  printf("%.1f images/s   import and compile %.0f ms\n", (double)step->batch / median, 1e3 * step->build_seconds);
  return EXIT_OK;
}

int bench_train(Tool *tool, const TrainBench *bench) {
  Step *step = arena_new(tool->arena, Step);
  arena_defer(tool->arena, release_step, step);
  if (!build_step(tool, bench, step) || !make_ports(tool, bench, step) || !restart(tool, step)) return EXIT_FAILED;
  double elapsed, warm_until = seconds_now() + fmin(0.5, bench->seconds / 4);
  for (int i = 0; i < 2 || seconds_now() < warm_until; i++)
    if (!take_step(tool, step, &elapsed)) return EXIT_FAILED;
  if (!restart(tool, step)) return EXIT_FAILED;
  return bench->serve ? serve(tool, step, bench->rounds) : measure(tool, bench, step);
}
