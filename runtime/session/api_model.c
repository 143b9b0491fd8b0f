/* Models: the public functions that load and describe them. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "safetensors.h"
#include "session.h"

const char *kiln_version(void) { return KILN_VERSION; }

const char *kiln_status_text(kiln_status status) {
  switch (status) {
    case KILN_OK:
      return "success";
    case KILN_ERROR_ARGUMENT:
      return "invalid argument";
    case KILN_ERROR_MEMORY:
      return "out of memory";
    case KILN_ERROR_IO:
      return "a file could not be read or written";
    case KILN_ERROR_INPUT:
      return "an input is wrong";
    case KILN_ERROR_CPU:
      return "this processor lacks instructions that the program needs";
    case KILN_ERROR_VERSION:
      return "made by an incompatible version of Kiln";
    case KILN_ERROR_WEIGHTS:
      return "weights are missing or belong to another program";
    case KILN_ERROR_BATCH:
      return "the batch is outside of what the program accepts";
    case KILN_ERROR_CALLBACK:
      return "a function of the host failed";
    case KILN_ERROR_UNSUPPORTED:
      return "not available in this build or on this machine";
    case KILN_ERROR_INTERNAL:
      return "internal error";
  }
  return "unknown status";
}

typedef struct LoadRequest {
  const char *path, *name, *text;
  size_t size;
  const kiln_model_options *options;
  kiln_model *model;
} LoadRequest;

static bool load_body(Operation *operation, void *context) {
  LoadRequest *request = context;
  Arena *arena = request->model->arena;
  size_t count = request->options != NULL ? request->options->shape_count : 0;
  ShapeOverride *shapes = arena_array(operation->scratch, count + 1, ShapeOverride);
  for (size_t i = 0; i < count; i++) {
    const kiln_shape *shape = &request->options->shapes[i];
    if (shape->input == NULL || shape->rank > KILN_MAX_RANK) {
      operation->status = KILN_ERROR_ARGUMENT;
      diag_error(operation->diag, (Location){NULL, 0, 0}, "shapes[%zu]: expected a name and at most %d dimensions", i,
                 KILN_MAX_RANK);
      return false;
    }
    shapes[i].input = arena_string(arena, shape->input);
    shapes[i].shape = shape_of((int32_t)shape->rank, shape->dims);
  }
  ImportOptions options = {shapes, count};
  if (request->path != NULL)
    return description_read(request->path, &options, arena, operation->diag, &request->model->graph);
  char *text = arena_string_n(arena, request->text, request->size);
  return description_parse(arena_string(arena, request->name), text, request->size, &options, arena, operation->diag,
                           &request->model->graph);
}

static kiln_status model_create(const kiln_host *host, LoadRequest *request, kiln_model **out_model,
                                kiln_error *error) {
  Allocator allocator = host_allocator(host);
  Arena *arena = arena_create(&allocator);
  if (arena == NULL) return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  jmp_buf failure;
  if (setjmp(failure) != 0) {
    arena_destroy(arena);
    return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  }
  arena_on_failure(arena, &failure);
  kiln_model *model = arena_new(arena, kiln_model);
  model->arena = arena;
  model->allocator = allocator;
  if (host != NULL) model->host = *host;
  request->model = model;
  kiln_status status = operation_run(host, arena, load_body, request, error);
  arena_on_failure(arena, NULL);
  if (status != KILN_OK) {
    arena_destroy(arena);
    return status;
  }
  *out_model = model;
  return KILN_OK;
}

kiln_status kiln_model_load(const kiln_host *host, const char *path, const kiln_model_options *options,
                            kiln_model **out_model, kiln_error *error) {
  if (path == NULL || out_model == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "path and out_model must not be NULL");
  LoadRequest request = {.path = path, .options = options};
  return model_create(host, &request, out_model, error);
}

kiln_status kiln_model_parse(const kiln_host *host, const char *name, const char *text, size_t size,
                             const kiln_model_options *options, kiln_model **out_model, kiln_error *error) {
  if (text == NULL || out_model == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "text and out_model must not be NULL");
  LoadRequest request = {.name = name != NULL ? name : "<text>", .text = text, .size = size, .options = options};
  return model_create(host, &request, out_model, error);
}

void kiln_model_destroy(kiln_model *model) {
  if (model != NULL) arena_destroy(model->arena);
}

/* --- weights ------------------------------------------------------------------------------------------- */

typedef struct WeightsRequest {
  kiln_model *model;
  const char *path, *name;
  const float *data;
  uint32_t rank;
  const int64_t *dims;
  uint64_t seed;
} WeightsRequest;

static bool weights_load_body(Operation *operation, void *context) {
  WeightsRequest *request = context;
  TensorList tensors;
  Arena *arena = request->model->arena;
  const char *path = arena_string(arena, request->path);
  if (!safetensors_read(path, arena, operation->diag, &tensors)) return false;
  return weights_bind(request->model->graph, &tensors, path, true, operation->diag);
}

static bool weights_set_body(Operation *operation, void *context) {
  WeightsRequest *request = context;
  Arena *arena = request->model->arena;
  Location place = {request->model->graph->file, 0, 0};
  operation->status = KILN_ERROR_ARGUMENT;
  Shape shape = shape_of((int32_t)request->rank, request->dims);
  int64_t count, bytes;
  if (!shape_elements(&shape, 1, &count) || !checked_mul(count, 4, &bytes) || count < 0) {
    diag_error(operation->diag, place, "parameter '%s': the shape's product is too large", request->name);
    return false;
  }
  for (size_t i = 0; i < request->model->graph->parameter_count; i++) {
    const Parameter *parameter = &request->model->graph->parameters[i];
    if (strcmp(parameter->name, request->name) != 0) continue;
    Tensor tensor = {arena_string(arena, request->name), DTYPE_F32, shape, NULL};
    if (shape_equal(&shape, &parameter->shape)) {
      tensor.data = arena_alloc_aligned(arena, (size_t)bytes, KILN_ALIGNMENT);
      memcpy(tensor.data, request->data, (size_t)bytes);
    }
    Tensor *kept = arena_new(arena, Tensor);
    *kept = tensor;
    TensorList list = {kept, 1};
    return weights_bind(request->model->graph, &list, "kiln_model_set_parameter", true, operation->diag);
  }
  diag_error(operation->diag, place, "the model has no parameter '%s'", request->name);
  return false;
}

static bool weights_init_body(Operation *operation, void *context) {
  WeightsRequest *request = context;
  TensorList tensors;
  weights_initialise(request->model->graph, request->seed, request->model->arena, &tensors);
  return weights_bind(request->model->graph, &tensors, "initial values", true, operation->diag);
}

kiln_status kiln_model_load_weights(kiln_model *model, const char *path, kiln_error *error) {
  if (model == NULL || path == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "model and path must not be NULL");
  WeightsRequest request = {.model = model, .path = path};
  return operation_run(&model->host, model->arena, weights_load_body, &request, error);
}

kiln_status kiln_model_set_parameter(kiln_model *model, const char *name, const float *data, uint32_t rank,
                                     const int64_t *dims, kiln_error *error) {
  if (model == NULL || name == NULL || data == NULL || (rank > 0 && dims == NULL) || rank > SHAPE_MAX_RANK)
    return error_set(error, KILN_ERROR_ARGUMENT, "model, name, data and dims must not be NULL; rank must be at most %d",
                     SHAPE_MAX_RANK);
  WeightsRequest request = {.model = model, .name = name, .data = data, .rank = rank, .dims = dims};
  return operation_run(&model->host, model->arena, weights_set_body, &request, error);
}

kiln_status kiln_model_init_weights(kiln_model *model, uint64_t seed, kiln_error *error) {
  if (model == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "model must not be NULL");
  WeightsRequest request = {.model = model, .seed = seed};
  return operation_run(&model->host, model->arena, weights_init_body, &request, error);
}

typedef struct HookRequest {
  kiln_model *model;
  const kiln_hook *hook;
} HookRequest;

static bool hook_body(Operation *operation, void *context) {
  static const HookKind kinds[] = {[KILN_HOOK_ACTIVATION] = HOOK_ACTIVATION, [KILN_HOOK_GRADIENT] = HOOK_GRADIENT};
  static const HookAction actions[] = {
      [KILN_HOOK_STORE] = HOOK_STORE, [KILN_HOOK_STATS] = HOOK_STATS, [KILN_HOOK_CALL] = HOOK_CALL};
  HookRequest *request = context;
  const kiln_hook *given = request->hook;
  Graph *graph = request->model->graph;
  Arena *arena = request->model->arena;
  bool known = false;
  for (size_t i = 0; i < graph->value_name_count && !known; i++)
    known = pattern_match(given->pattern, graph->value_names[i].name);
  for (size_t i = 0; i < graph->layer_count && !known; i++)
    known = pattern_match(given->pattern, graph->layers[i].name);
  if (!known) {
    diag_error(operation->diag, (Location){graph->file, 0, 0}, "hook '%s' matches no value of the model",
               given->pattern);
    return false;
  }
  Hook *hooks = arena_array(arena, graph->hook_count + 1, Hook);
  if (graph->hook_count > 0) memcpy(hooks, graph->hooks, graph->hook_count * sizeof *hooks);
  Hook *hook = &hooks[graph->hook_count];
  *hook = (Hook){
      .pattern = arena_string(arena, given->pattern), .kind = kinds[given->kind], .action = actions[given->action]};
  hook->stats = (HookStats){given->bins, (double)given->low, (double)given->high, (double)given->threshold};
  graph->hooks = hooks;
  graph->hook_count++;
  return true;
}

kiln_status kiln_model_add_hook_with(kiln_model *model, const kiln_hook *hook, kiln_error *error) {
  if (model == NULL || hook == NULL || hook->pattern == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "model, hook and pattern must not be NULL");
  if ((unsigned)hook->kind > KILN_HOOK_GRADIENT || (unsigned)hook->action > KILN_HOOK_CALL)
    return error_set(error, KILN_ERROR_ARGUMENT, "hook '%s': unknown kind %d or action %d", hook->pattern,
                     (int)hook->kind, (int)hook->action);
  HookRequest request = {model, hook};
  return operation_run(&model->host, model->arena, hook_body, &request, error);
}

kiln_status kiln_model_add_hook(kiln_model *model, const char *pattern, kiln_error *error) {
  const kiln_hook hook = {.pattern = pattern};
  return kiln_model_add_hook_with(model, &hook, error);
}

/* --- queries ------------------------------------------------------------------------------------------- */

const char *kiln_model_name(const kiln_model *model) { return model->graph->name; }
size_t kiln_model_input_count(const kiln_model *model) { return model->graph->input_count; }
size_t kiln_model_output_count(const kiln_model *model) { return model->graph->output_count; }
size_t kiln_model_parameter_count(const kiln_model *model) { return model->graph->parameter_count; }

static kiln_status port_fill(const char *name, DataType dtype, const Shape *shape, kiln_port *out_port) {
  memset(out_port, 0, sizeof *out_port);
  out_port->name = name;
  out_port->dtype = dtype == DTYPE_I64 ? KILN_I64 : KILN_F32;
  out_port->rank = (uint32_t)shape->rank;
  for (int32_t i = 0; i < shape->rank; i++) out_port->dims[i] = shape->dims[i];
  out_port->bytes = shape_elements_per_image(shape) * data_type_bytes(dtype);
  out_port->batched = shape_batched(shape);
  return KILN_OK;
}

kiln_status kiln_model_input(const kiln_model *model, size_t index, kiln_port *out_port) {
  if (model == NULL || out_port == NULL || index >= model->graph->input_count) return KILN_ERROR_ARGUMENT;
  const GraphInput *input = &model->graph->inputs[index];
  return port_fill(input->name, input->dtype, &input->shape, out_port);
}

kiln_status kiln_model_output(const kiln_model *model, size_t index, kiln_port *out_port) {
  if (model == NULL || out_port == NULL || index >= model->graph->output_count) return KILN_ERROR_ARGUMENT;
  const GraphOutput *output = &model->graph->outputs[index];
  return port_fill(output->name, output->node->dtype, &output->node->shape, out_port);
}

kiln_status kiln_model_parameter(const kiln_model *model, size_t index, kiln_port *out_port) {
  if (model == NULL || out_port == NULL || index >= model->graph->parameter_count) return KILN_ERROR_ARGUMENT;
  const Parameter *parameter = &model->graph->parameters[index];
  return port_fill(parameter->name, parameter->dtype, &parameter->shape, out_port);
}
