#include <math.h>
#include <string.h>

#include "session.h"
#include "trainer_internal.h"

static void destroy_executable(void *executable) { kiln_executable_destroy(executable); }
static void destroy_context(void *context) { kiln_context_destroy(context); }
static void destroy_state(void *state) { kiln_state_destroy(state); }
static void destroy_loader(void *loader) { data_loader_destroy(loader); }

bool trainer_failed(const Trainer *trainer, const kiln_error *error, Diag *diag) {
  error_report(error, trainer->arena, diag);
  return false;
}

/* --- checks --------------------------------------------------------------------------------------------- */

static bool model_error(const Trainer *trainer, Diag *diag, const char *text) {
  diag_error(diag, (Location){trainer->model->graph->file, 0, 0}, "%s", text);
  return false;
}

static kiln_loss loss_number(OpCode loss) {
  return loss == OP_MSE               ? KILN_LOSS_MSE
         : loss == OP_BCE_WITH_LOGITS ? KILN_LOSS_BCE_WITH_LOGITS
                                      : KILN_LOSS_CROSS_ENTROPY;
}

static OpCode loss_op(const Graph *graph, kiln_loss loss) {
  static const OpCode ops[] = {[KILN_LOSS_CROSS_ENTROPY] = OP_CROSS_ENTROPY,
                               [KILN_LOSS_MSE] = OP_MSE,
                               [KILN_LOSS_BCE_WITH_LOGITS] = OP_BCE_WITH_LOGITS};
  if (loss != KILN_LOSS_DESCRIBED) return ops[loss];
  return graph->objective.loss != OP_INPUT ? graph->objective.loss : OP_CROSS_ENTROPY;
}

/* Which output is trained, and by which loss. */
static bool choose_output(Trainer *trainer, Diag *diag) {
  const Graph *graph = trainer->model->graph;
  Arena *arena = trainer->arena;
  const char *wanted = trainer->options.step.output;
  if (graph->input_count != 1 || graph->inputs[0].dtype != DTYPE_F32)
    return model_error(
        trainer, diag,
        arena_format(arena, "training needs a model with one f32 input, found %zu inputs", graph->input_count));
  size_t index = 0;
  while (index < graph->output_count && wanted != NULL && strcmp(graph->outputs[index].name, wanted) != 0) index++;
  if (index >= graph->output_count)
    return model_error(trainer, diag,
                       arena_format(arena, "the model has no output '%s' to train", wanted ? wanted : ""));
  const GraphOutput *output = &graph->outputs[index];
  const Shape *shape = &output->node->shape;
  trainer->output = index;
  trainer->options.step.output = output->name;
  trainer->loss_op = loss_op(graph, trainer->options.step.loss);
  trainer->options.step.loss = loss_number(trainer->loss_op);
  trainer->classes = shape->rank == 2 ? shape->dims[1] : 1;
  if (shape->rank >= 1 && shape->rank <= 2 && shape->dims[0] == DIM_BATCH) return true;
  return model_error(trainer, diag,
                     arena_format(arena, "output '%s': expected a shape [N, classes] to train", output->name));
}

/* Whether data and model go together. */
static bool check_data(Trainer *trainer, Diag *diag) {
  const Graph *graph = trainer->model->graph;
  Arena *arena = trainer->arena;
  const int64_t found = data_set_class_count(trainer->data);
  const bool single = trainer->classes == 1 && trainer->loss_op != OP_CROSS_ENTROPY;
  if (single ? found != 2 : found != trainer->classes)
    return model_error(trainer, diag,
                       arena_format(arena, "output '%s' has %lld scores, but the data has %lld classes",
                                    trainer->options.step.output, (long long)trainer->classes, (long long)found));
  int64_t dims[3];
  data_set_dims(trainer->data, dims);
  const int64_t expected = shape_elements_per_image(&graph->inputs[0].shape);
  if (dims[0] * dims[1] * dims[2] != expected)
    return model_error(
        trainer, diag,
        arena_format(arena, "input '%s' takes %lld numbers for an image, but the pictures have %lldx%lldx%lld",
                     graph->inputs[0].name, (long long)expected, (long long)dims[0], (long long)dims[1],
                     (long long)dims[2]));
  return true;
}

/* --- programs ------------------------------------------------------------------------------------------- */

/* Training has hooks for statistics only, and measuring has none: those of the description are for other uses. */
static bool compile_programs(Trainer *trainer, Diag *diag) {
  const TrainerOptions *options = &trainer->options;
  Graph *graph = trainer->model->graph;
  Hook *described = graph->hooks;
  const size_t described_count = graph->hook_count;
  kiln_error error;
  kiln_compile_options compile = options->compile;
  compile.max_batch = options->batch;
  graph->hooks = arena_array(trainer->arena, options->stats_count + 1, Hook);
  graph->hook_count = options->stats_count;
  for (size_t i = 0; i < options->stats_count; i++)
    graph->hooks[i] = (Hook){.pattern = options->stats[i], .kind = HOOK_ACTIVATION, .action = HOOK_STATS};
  kiln_status status = kiln_compile_training(trainer->model, &options->step, &compile, &trainer->step, &error);
  graph->hook_count = 0;
  if (status == KILN_OK) {
    arena_defer(trainer->arena, destroy_executable, trainer->step);
    status = kiln_compile(trainer->model, &compile, &trainer->inference, &error);
    if (status == KILN_OK) arena_defer(trainer->arena, destroy_executable, trainer->inference);
  }
  graph->hooks = described;
  graph->hook_count = described_count;
  return status == KILN_OK || trainer_failed(trainer, &error, diag);
}

static bool create_contexts(Trainer *trainer, Diag *diag) {
  kiln_error error;
  const kiln_context_options options = {.threads = trainer->options.threads,
                                        .affinity = trainer->options.affinity,
                                        .affinity_count = trainer->options.affinity_count};
  if (kiln_context_create(trainer->step, &options, &trainer->step_context, &error) != KILN_OK)
    return trainer_failed(trainer, &error, diag);
  arena_defer(trainer->arena, destroy_context, trainer->step_context);
  if (kiln_context_create(trainer->inference, &options, &trainer->inference_context, &error) != KILN_OK)
    return trainer_failed(trainer, &error, diag);
  arena_defer(trainer->arena, destroy_context, trainer->inference_context);
  if (kiln_state_create(trainer->step, trainer->model, &trainer->state, &error) != KILN_OK)
    return trainer_failed(trainer, &error, diag);
  arena_defer(trainer->arena, destroy_state, trainer->state);
  return true;
}

static bool create_loaders(Trainer *trainer, Diag *diag) {
  const TrainerOptions *options = &trainer->options;
  const DataLoaderOptions train = {.split = DATA_TRAIN,
                                   .batch = options->batch,
                                   .shuffle = true,
                                   .drop_last = !options->keep_last,
                                   .augment = options->augment,
                                   .seed = options->seed,
                                   .workers = options->workers};
  const DataLoaderOptions valid = {.split = DATA_VALID, .batch = options->batch, .workers = options->workers};
  if ((trainer->train_loader = data_loader_create(trainer->data, &train, diag)) == NULL) return false;
  arena_defer(trainer->arena, destroy_loader, trainer->train_loader);
  if (!data_loader_share(trainer->train_loader, trainer->step_context->pool, diag)) return false;
  if (data_set_count(trainer->data, DATA_VALID) == 0) return true;
  if ((trainer->valid_loader = data_loader_create(trainer->data, &valid, diag)) == NULL) return false;
  arena_defer(trainer->arena, destroy_loader, trainer->valid_loader);
  return data_loader_share(trainer->valid_loader, trainer->inference_context->pool, diag);
}

/* Pointers to every input and output of the step; what the loader gives is set before each step. */
static bool bind_ports(Trainer *trainer, Diag *diag) {
  static const char stats_prefix[] = "hook.stats.";
  const kiln_program *program = kiln_executable_program(trainer->step);
  Arena *arena = trainer->arena;
  trainer->inputs = arena_array(arena, program->input_count + 1, const void *);
  trainer->outputs = arena_array(arena, program->output_count + 1, void *);
  trainer->image_input = trainer->target_input = UINT32_MAX;
  for (uint32_t i = 0; i < program->input_count; i++) {
    const kiln_port *port = &program->inputs[i];
    if (strcmp(port->name, "target") == 0) {
      trainer->target_input = i;
    } else if (strcmp(port->name, "hyper") == 0) {
      trainer->groups = (size_t)port->dims[0];
      trainer->inputs[i] = trainer->hyper = arena_array(arena, trainer->groups * KILN_HYPER_COUNT, float);
    } else if (strcmp(port->name, "rng") == 0) {
      trainer->inputs[i] = trainer->random = arena_array(arena, 2, int64_t);
    } else {
      trainer->image_input = i;
    }
  }
  const char **names = arena_array(arena, program->output_count + 1, const char *);
  const float **values = arena_array(arena, program->output_count + 1, const float *);
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    const int64_t images = port->batched ? trainer->options.batch : 1;
    trainer->outputs[i] = arena_alloc_aligned(arena, (size_t)(port->bytes * images) + 1, KILN_ALIGNMENT);
    if (strcmp(port->name, "loss") == 0) trainer->loss = trainer->outputs[i];
    if (strncmp(port->name, stats_prefix, sizeof stats_prefix - 1) != 0) continue;
    names[trainer->stats.count] = port->name + sizeof stats_prefix - 1;
    values[trainer->stats.count++] = trainer->outputs[i];
    trainer->stats.width = (size_t)port->dims[0];
  }
  trainer->stats.names = names;
  trainer->stats.values = values;
  trainer->expanded_targets = arena_array(arena, (size_t)(trainer->options.batch * trainer->classes), float);
  if (trainer->loss != NULL && trainer->hyper != NULL && trainer->image_input != UINT32_MAX) return true;
  return model_error(trainer, diag, "internal: the training step lacks an input or output");
}

bool trainer_compile(kiln_model *model, const TrainerOptions *options, Arena *arena, Diag *diag,
                     Trainer **out_trainer) {
  Trainer *trainer = arena_new(arena, Trainer);
  trainer->arena = arena;
  trainer->model = model;
  trainer->options = *options;
  *out_trainer = trainer;
  return choose_output(trainer, diag) && compile_programs(trainer, diag) && create_contexts(trainer, diag) &&
         bind_ports(trainer, diag);
}

bool trainer_attach(Trainer *trainer, const DataSet *data, Diag *diag) {
  trainer->data = data;
  return check_data(trainer, diag) && create_loaders(trainer, diag);
}

int64_t trainer_batches(const Trainer *trainer) { return data_loader_batches(trainer->train_loader); }
size_t trainer_groups(const Trainer *trainer) { return trainer->groups; }
const TrainerStats *trainer_stats(const Trainer *trainer) { return &trainer->stats; }
kiln_state *trainer_state(const Trainer *trainer) { return trainer->state; }
const kiln_program *trainer_program(const Trainer *trainer) { return kiln_executable_program(trainer->step); }

/* --- steps ---------------------------------------------------------------------------------------------- */

/* 1 − β^t to the last bit of a float even where β^t is near 1. */
static float correction(double beta, int64_t update) {
  return (float)(beta > 0 ? -expm1((double)update * log(beta)) : 1);
}

static void fill_hyper(Trainer *trainer, const StepSettings *settings) {
  const TrainerOptions *options = &trainer->options;
  memset(trainer->hyper, 0, trainer->groups * KILN_HYPER_COUNT * sizeof *trainer->hyper);
  for (size_t group = 0; group < trainer->groups; group++) {
    float *row = trainer->hyper + group * KILN_HYPER_COUNT;
    row[KILN_HYPER_LEARNING_RATE] = (float)settings->rates[group];
    row[KILN_HYPER_MOMENTUM] = (float)settings->momentum;
    row[KILN_HYPER_BETA2] = (float)options->beta2;
    row[KILN_HYPER_EPS] = (float)options->eps;
    row[KILN_HYPER_WEIGHT_DECAY] = (float)options->weight_decay;
    row[KILN_HYPER_CORRECTION1] = correction(settings->momentum, settings->update);
    row[KILN_HYPER_CORRECTION2] = correction(options->beta2, settings->update);
    row[KILN_HYPER_GRADIENT_SCALE] = (float)(1.0 / (double)settings->scale);
    row[KILN_HYPER_APPLY] = settings->apply ? 1 : 0;
    row[KILN_HYPER_CLIP_NORM] = (float)options->clip_norm;
  }
}

static void bind_batch(Trainer *trainer, const DataBatch *batch) {
  trainer->inputs[trainer->image_input] = batch->images;
  if (trainer->target_input == UINT32_MAX) return;
  trainer->inputs[trainer->target_input] = batch->targets;
  if (trainer->loss_op == OP_CROSS_ENTROPY) return;
  targets_expand(batch->targets, batch->count, trainer->classes, trainer->expanded_targets);
  trainer->inputs[trainer->target_input] = trainer->expanded_targets;
}

bool trainer_step(Trainer *trainer, const StepSettings *settings, Diag *diag, double *out_loss) {
  if (!data_loader_next(trainer->train_loader, &trainer->batch, diag)) return false;
  fill_hyper(trainer, settings);
  bind_batch(trainer, &trainer->batch);
  if (trainer->random != NULL) {
    trainer->random[0] = (int64_t)trainer->options.seed;
    trainer->random[1] = settings->step;
  }
  kiln_error error;
  if (kiln_train_step(trainer->step_context, trainer->state, trainer->batch.count, trainer->inputs, trainer->outputs,
                      &error) != KILN_OK)
    return trainer_failed(trainer, &error, diag);
  *out_loss = (double)*trainer->loss;
  return true;
}

void trainer_seek(Trainer *trainer, int64_t epoch, int64_t batch) {
  data_loader_seek(trainer->train_loader, epoch, batch);
}

bool trainer_store(Trainer *trainer, Diag *diag) {
  kiln_error error;
  return kiln_state_store(trainer->state, trainer->model, &error) == KILN_OK || trainer_failed(trainer, &error, diag);
}
