#include "train_options.h"

#include <math.h>
#include <string.h>

#include "safetensors.h"

TrainCommand train_command_default(void) {
  return (TrainCommand){.data = DATA_COMMAND_DEFAULT,
                        .batch = 64,
                        .accumulate = 1,
                        .momentum = NAN,
                        .beta2 = NAN,
                        .eps = NAN,
                        .weight_decay = NAN};
}

/* --- stopping --------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_signal;

static void on_signal(int number) {
  if (stop_signal != 0) {
    signal(number, SIG_DFL);
    raise(number);
  }
  stop_signal = number;
}

const volatile sig_atomic_t *stop_flag_install(void) {
  const struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  return &stop_signal;
}

/* --- weights ---------------------------------------------------------------------------------------------- */

static bool skipped(const OptionList *patterns, const char *name) {
  for (size_t i = 0; i < patterns->count; i++)
    if (pattern_match(patterns->items[i], name)) return true;
  return false;
}

/* Every parameter is in the file, or is said not to come from it. */
static bool check_missing(Tool *tool, const Graph *graph, const TensorList *tensors, const TrainCommand *command) {
  enum { SHOWN = 10 };
  Text list;
  size_t count = 0;
  text_init(&list, tool->arena);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    if (parameter->inline_value || tensor_find(tensors, parameter->name) != NULL ||
        skipped(&command->init_skip, parameter->name))
      continue;
    if (count < SHOWN) text_format(&list, "%s'%s'", count > 0 ? ", " : "", parameter->name);
    count++;
  }
  if (count == 0) return true;
  if (count > SHOWN) text_format(&list, " and %zu more", count - SHOWN);
  diag_error(tool->diag, (Location){command->init, 0, 0},
             "lacks %zu tensor%s of the model: %s; --init-skip PATTERN begins with new values for them", count,
             count == 1 ? "" : "s", list.data);
  return false;
}

static bool initialise(Tool *tool, Graph *graph, const TrainCommand *command) {
  InitMode mode = INIT_MODE_PYTORCH;
  if (command->init_mode != NULL && strcmp(command->init_mode, "kaiming") == 0) {
    mode = INIT_MODE_KAIMING;
  } else if (command->init_mode != NULL && strcmp(command->init_mode, "pytorch") != 0) {
    tool_usage_error(tool, "--init-mode: expected pytorch or kaiming, found '%s'", command->init_mode);
    return false;
  }
  TensorList initial, file, kept;
  weights_initialise_as(graph, (uint64_t)command->seed, mode, tool->arena, &initial);
  if (command->init != NULL) {
    if (!safetensors_read(command->init, tool->arena, tool->diag, &file) || !check_missing(tool, graph, &file, command))
      return false;
    kept = (TensorList){arena_array(tool->arena, file.count + 1, Tensor), 0};
    for (size_t i = 0; i < file.count; i++)
      if (!skipped(&command->init_skip, file.items[i].name)) kept.items[kept.count++] = file.items[i];
  }
  if (!weights_bind(graph, &initial, "initial values", true, tool->diag)) return false;
  return command->init == NULL || weights_bind(graph, &kept, command->init, true, tool->diag);
}

/* --- groups ----------------------------------------------------------------------------------------------- */

static bool set_frozen(Tool *tool, TrainSession *session, const char *group, bool frozen, bool batch_norm) {
  kiln_error error;
  if (kiln_model_set_frozen(session->model, group, frozen, batch_norm, &error) == KILN_OK) return true;
  tool_library_error(tool, &error);
  return false;
}

static bool freeze_groups(Tool *tool, TrainSession *session, const TrainCommand *command) {
  const Graph *graph = session->graph;
  for (size_t i = 0; i < command->unfreeze.count; i++) {
    const char *name = command->unfreeze.items[i];
    for (size_t k = 0; strcmp(name, "all") == 0 && k < graph->group_count; k++)
      if (!set_frozen(tool, session, graph->groups[k].name, false, false)) return false;
    if (strcmp(name, "all") != 0 && !set_frozen(tool, session, name, false, false)) return false;
  }
  for (size_t i = 0; i < command->freeze.count; i++)
    if (!set_frozen(tool, session, command->freeze.items[i], true, command->freeze_batch_norm)) return false;
  return true;
}

/* --- options ---------------------------------------------------------------------------------------------- */

static bool read_choice(Tool *tool, const char *option, const char *text, const char *const *names, size_t count,
                        int *out_index) {
  Text list;
  text_init(&list, tool->arena);
  for (size_t i = 0; i < count; i++) {
    if (strcmp(text, names[i]) == 0) {
      *out_index = (int)i;
      return true;
    }
    text_format(&list, "%s%s", i == 0 ? "" : i + 1 == count ? " or " : ", ", names[i]);
  }
  tool_usage_error(tool, "--%s: expected %s, found '%s'", option, list.data, text);
  return false;
}

static bool on_gpu(const TrainCommand *command) {
  return command->model.device != NULL && strcmp(command->model.device, "cpu") != 0;
}

static double or_default(double value, double fallback) { return isnan(value) ? fallback : value; }

static bool check_number(Tool *tool, const char *option, double value, double low, double high) {
  if (value >= low && value <= high) return true;
  tool_usage_error(tool, "--%s: expected a number from %g to %g, found %g", option, low, high, value);
  return false;
}

static bool trainer_options(Tool *tool, const TrainCommand *command, TrainSession *session) {
  static const char *const optimizers[] = {"sgd", "adam"};
  static const char *const losses[] = {"cross_entropy", "mse", "bce_with_logits"};
  int optimizer = KILN_OPTIMIZER_ADAM, loss = -1;
  if (command->optimizer != NULL && !read_choice(tool, "optimizer", command->optimizer, optimizers, 2, &optimizer))
    return false;
  if (command->loss != NULL && !read_choice(tool, "loss", command->loss, losses, 3, &loss)) return false;
  const bool adam = optimizer == KILN_OPTIMIZER_ADAM;
  TrainerOptions *options = &session->options;
  kiln_context_options threads;
  if (!context_options(tool, &command->model, &threads)) return false;
  *options = (TrainerOptions){.batch = command->batch,
                              .keep_last = command->keep_last,
                              .beta2 = or_default(command->beta2, 0.99),
                              .eps = or_default(command->eps, 1e-5),
                              .weight_decay = or_default(command->weight_decay, adam ? 0.01 : 0),
                              .clip_norm = command->clip,
                              .accumulate = command->accumulate,
                              .seed = (uint64_t)command->seed,
                              .threads = threads.threads,
                              .affinity = threads.affinity,
                              .affinity_count = threads.affinity_count};
  options->workers = data_command_workers(&command->data, on_gpu(command) ? 0 : options->threads);
  options->step = (kiln_train_options){.loss = (kiln_loss)(loss + 1),
                                       .optimizer = (kiln_optimizer)optimizer,
                                       .output = command->output,
                                       .nesterov = command->nesterov,
                                       .clip = command->clip > 0,
                                       .accumulate = command->accumulate > 1,
                                       .memory_limit = command->memory_limit};
  if (!adam && (!isnan(command->beta2) || !isnan(command->eps))) {
    tool_usage_error(tool, "--beta2 and --eps belong to --optimizer adam");
    return false;
  }
  if (adam && command->nesterov) {
    tool_usage_error(tool, "--nesterov belongs to --optimizer sgd");
    return false;
  }
  if (!check_number(tool, "beta2", options->beta2, 0, 1 - 1e-9) || !check_number(tool, "eps", options->eps, 0, 1) ||
      !check_number(tool, "wd", options->weight_decay, 0, 1e3) || !check_number(tool, "clip", command->clip, 0, 1e30))
    return false;
  if (command->augment != NULL && !augment_read(tool, command->augment, &session->augment)) return false;
  options->augment = command->augment != NULL ? &session->augment : NULL;
  return compile_options(tool, &command->model, &options->compile);
}

/* Values of the top level that a relu makes: the outputs of blocks. Failing that, of all relus. */
static void choose_stats(Tool *tool, const Graph *graph, TrainerOptions *options) {
  enum { CURVES = 16 };
  const char **names = arena_array(tool->arena, CURVES, const char *);
  const Node *nodes[CURVES];
  size_t count = 0;
  for (int pass = 0; pass < 2 && count == 0; pass++)
    for (size_t i = 0; i < graph->value_name_count && count < CURVES; i++) {
      const ValueName *value = &graph->value_names[i];
      bool wanted =
          value->node != NULL && value->node->op == OP_RELU && (pass == 1 || strchr(value->name, '.') == NULL);
      for (size_t k = 0; k < count && wanted; k++) wanted = nodes[k] != value->node;
      if (!wanted) continue;
      nodes[count] = value->node;
      names[count++] = value->name;
    }
  options->stats = names;
  options->stats_count = count;
}

/* --- identity --------------------------------------------------------------------------------------------- */

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size) {
  const unsigned char *bytes = data;
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

/* What a run sees of the data: size, normalisation, classes, names and targets of the pictures. They may lie in another
 * folder the next time. */
static uint64_t data_hash(const DataSet *set, const char *folder, Arena *arena) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  const size_t skip = strlen(folder);
  int64_t dims[3];
  data_set_dims(set, dims);
  hash = hash_bytes(hash, dims, sizeof dims);
  hash = hash_bytes(hash, data_set_mean(set), (size_t)dims[0] * sizeof(double));
  hash = hash_bytes(hash, data_set_deviation(set), (size_t)dims[0] * sizeof(double));
  for (int64_t i = 0; i < data_set_class_count(set); i++) {
    const char *name = data_set_class_name(set, i);
    hash = hash_bytes(hash, name, strlen(name) + 1);
  }
  for (int split = DATA_TRAIN; split <= DATA_VALID; split++)
    for (int64_t i = 0; i < data_set_count(set, (DataSplit)split); i++) {
      const int64_t target = data_set_target(set, (DataSplit)split, i);
      const char *name = data_set_picture_name(set, (DataSplit)split, i, arena);
      name += strncmp(name, folder, skip) == 0 ? skip : 0;
      hash = hash_bytes(hash, name, strlen(name) + 1);
      hash = hash_bytes(hash, &target, sizeof target);
    }
  return hash;
}

static uint64_t weights_hash(const Graph *graph) {
  uint64_t hash = 0;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Tensor *value = graph->parameters[i].value;
    if (value != NULL) hash = hash * 31 + weights_checksum(value->data, (size_t)tensor_bytes(value));
  }
  return hash;
}

static void add_number(Text *text, const char *name, double value) {
  text_format(text, "%s ", name);
  text_add_double(text, value);
  text_add(text, "\n");
}

static void add_identity(Tool *tool, const TrainCommand *command, TrainSession *session) {
  const TrainerOptions *options = &session->options;
  Text graph, *text = &session->identity;
  text_init(&graph, tool->arena);
  graph_print(&graph, session->graph);
  text_init(text, tool->arena);
  text_format(text, "model %s-%016llx\n", session->graph->name,
              (unsigned long long)weights_checksum(graph.data, graph.size));
  text_format(text, "weights %016llx\n", (unsigned long long)weights_hash(session->graph));
  text_format(text, "data %016llx\n", (unsigned long long)data_hash(session->data, command->data.folder, tool->arena));
  bool any = false;
  text_add(text, "frozen");
  for (size_t i = 0; i < session->graph->group_count; i++) {
    const Group *group = &session->graph->groups[i];
    if (group->frozen) text_format(text, " %s%s", group->name, group->freeze_batch_norm ? "+bn" : "");
    any |= group->frozen;
  }
  text_format(text, "%s\nseed %lld\nbatch %lld\nkeep-last %d\naccumulate %lld\n", any ? "" : " none",
              (long long)command->seed, (long long)command->batch, command->keep_last, (long long)command->accumulate);
  text_format(text, "augment %s\noptimizer %s\nnesterov %d\nloss %s\noutput %s\n",
              command->augment != NULL ? command->augment : "none",
              options->step.optimizer == KILN_OPTIMIZER_ADAM ? "adam" : "sgd", command->nesterov,
              command->loss != NULL ? command->loss : "described", command->output != NULL ? command->output : "first");
  if (on_gpu(command))
    text_format(text, "gpu, math %s\n", command->model.math != NULL ? command->model.math : "default");
  add_number(text, "beta2", options->beta2);
  add_number(text, "eps", options->eps);
  add_number(text, "wd", options->weight_decay);
  add_number(text, "clip", command->clip);
}

/* --- opening ---------------------------------------------------------------------------------------------- */

static void close_data(void *data) { data_set_close(data); }

/* What the description says of the first input counts where the command line says nothing. */
static void fill_described(const TrainCommand *command, const GraphInput *input, DataOptions *options) {
  const Preprocess *described = &input->preprocess;
  if (input->shape.rank == 4) {
    options->channels = input->shape.dims[1];
    options->height = input->shape.dims[2];
    options->width = input->shape.dims[3];
  }
  if (options->resize == 0) options->resize = described->resize;
  if (command->data.normalize != NULL) return;
  options->normalize = DATA_NORMALIZE_DATASET;
  if (described->mean.count == 0 || described->mean.count > AUGMENT_CHANNELS) return;
  options->normalize = DATA_NORMALIZE_GIVEN;
  for (int32_t i = 0; i < described->mean.count; i++) {
    options->mean[i] = described->mean.values[i];
    options->deviation[i] = described->std.values[i];
  }
}

/* Reading the data, while the model is compiled. In the tool's arena, which ends it when something fails. */
typedef struct Reading {
  DataOpening *opening;
  bool begun; /* and not finished */
} Reading;

static void end_reading(void *context) {
  Reading *reading = context;
  if (reading->begun) data_set_open_cancel(reading->opening);
}

static bool begin_data(Tool *tool, const TrainCommand *command, const TrainSession *session, Reading *reading) {
  DataOptions options;
  if (command->data.folder == NULL) {
    tool_usage_error(tool, "--data DIR is missing");
    return false;
  }
  if (!data_command_read(tool, &command->data, &options)) return false;
  if (session->graph->input_count > 0) fill_described(command, &session->graph->inputs[0], &options);
  arena_defer(tool->arena, end_reading, reading);
  reading->opening = data_set_open_begin(&options);
  reading->begun = true;
  return true;
}

static bool finish_data(Tool *tool, Reading *reading, TrainSession *session) {
  if (!reading->begun) return true;
  reading->begun = false;
  session->data = data_set_open_finish(reading->opening, tool->diag);
  if (session->data == NULL) return false;
  arena_defer(tool->arena, close_data, session->data);
  return true;
}

static void set_stats(Tool *tool, const OptionList *stats, bool default_stats, TrainSession *session) {
  if (stats->count > 0) {
    session->options.stats = stats->items;
    session->options.stats_count = stats->count;
  } else if (default_stats) {
    choose_stats(tool, session->graph, &session->options);
  }
}

bool train_session_open(Tool *tool, const TrainCommand *command, const OptionList *stats, bool default_stats,
                        TrainSession *out_session) {
  TrainSession *session = out_session;
  *session = (TrainSession){.graph = NULL};
  if (!trainer_options(tool, command, session) || !model_open(tool, command->path, &command->model, &session->graph))
    return false;
  session->model = arena_new(tool->arena, kiln_model);
  session->model->arena = tool->arena;
  session->model->graph = session->graph;
  Reading *reading = arena_new(tool->arena, Reading);
  if (!begin_data(tool, command, session, reading) || !initialise(tool, session->graph, command) ||
      !freeze_groups(tool, session, command))
    return false;
  set_stats(tool, stats, default_stats, session);
  /* a folder that is not there is told before anything is compiled */
  if (data_set_open_done(reading->opening) && !finish_data(tool, reading, session)) return false;
  if (!trainer_compile(session->model, &session->options, tool->arena, tool->diag, &session->trainer)) return false;
  if (!finish_data(tool, reading, session)) return false;
  add_identity(tool, command, session);
  tool_print_warnings(tool);
  return trainer_attach(session->trainer, session->data, tool->diag);
}

static void add_list(Text *text, const double *values, int64_t count) {
  for (int64_t i = 0; i < count; i++) text_format(text, i > 0 ? ",%.6g" : "%.6g", values[i]);
}

const char *train_session_model_text(Tool *tool, const TrainSession *session) {
  const Graph *graph = session->graph;
  int64_t all = 0, trained = 0;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    const int64_t elements = shape_elements_per_image(&parameter->shape);
    if (!parameter->buffer) all += elements;
    if (parameter->trainable && !parameter->buffer) trained += elements;
  }
  return arena_format(tool->arena, "%s: %s parameters, %s of them trained; %s", graph->name, grouped(tool->arena, all),
                      grouped(tool->arena, trained), trainer_program(session->trainer)->isa);
}

const char *train_session_data_text(Tool *tool, const TrainSession *session) {
  const DataSet *data = session->data;
  int64_t dims[3];
  data_set_dims(data, dims);
  Text normal;
  text_init(&normal, tool->arena);
  add_list(&normal, data_set_mean(data), dims[0]);
  text_add(&normal, "/");
  add_list(&normal, data_set_deviation(data), dims[0]);
  return arena_format(tool->arena, "%s pictures %lldx%lldx%lld in %lld classes, %s for validation, normalised by %s",
                      grouped(tool->arena, data_set_count(data, DATA_TRAIN)), (long long)dims[0], (long long)dims[1],
                      (long long)dims[2], (long long)data_set_class_count(data),
                      grouped(tool->arena, data_set_count(data, DATA_VALID)), normal.data);
}
