/* Training steps: the public functions that compile them, and the state that they change. */
#include <string.h>

#include "core/cuda_run.h"
#include "core/runner.h"
#include "cuda_session.h"
#include "memory.h"
#include "safetensors.h"
#include "session.h"

/* --- compiling --------------------------------------------------------------------------------------- */

static OpCode loss_of(const Graph *graph, kiln_loss loss) {
  switch (loss) {
    case KILN_LOSS_MSE:
      return OP_MSE;
    case KILN_LOSS_BCE_WITH_LOGITS:
      return OP_BCE_WITH_LOGITS;
    case KILN_LOSS_CROSS_ENTROPY:
      return OP_CROSS_ENTROPY;
    default:
      return graph->objective.loss != OP_INPUT ? graph->objective.loss : OP_CROSS_ENTROPY;
  }
}

bool train_request(const Graph *graph, const kiln_train_options *options, Diag *diag, TrainRequest *out_request) {
  static const kiln_train_options defaults;
  if (options == NULL) options = &defaults;
  if ((unsigned)options->loss > KILN_LOSS_BCE_WITH_LOGITS || (unsigned)options->optimizer > KILN_OPTIMIZER_ADAM) {
    diag_error(diag, (Location){graph->file, 0, 0}, "training: there is no loss %d or no optimizer %d",
               (int)options->loss, (int)options->optimizer);
    return false;
  }
  *out_request = (TrainRequest){.loss = loss_of(graph, options->loss),
                                .of = options->output,
                                .optimizer = options->optimizer == KILN_OPTIMIZER_ADAM ? OPTIMIZER_ADAM : OPTIMIZER_SGD,
                                .nesterov = options->nesterov != 0,
                                .clip = options->clip != 0,
                                .accumulate = options->accumulate != 0,
                                .memory_limit = options->memory_limit};
  return true;
}

/* --- values of the model ----------------------------------------------------------------------------- */

static Parameter *find_parameter(const kiln_model *model, const char *name) {
  for (size_t i = 0; i < model->graph->parameter_count; i++)
    if (strcmp(model->graph->parameters[i].name, name) == 0) return &model->graph->parameters[i];
  return NULL;
}

static bool port_fits(const Parameter *parameter, const kiln_port *port) {
  const Shape shape = shape_of((int32_t)port->rank, port->dims);
  return parameter->dtype == DTYPE_F32 && port->dtype == KILN_F32 && shape_equal(&shape, &parameter->shape);
}

/* The model's parameter of a port, or NULL after a report. */
static Parameter *require_parameter(const kiln_model *model, const kiln_port *port, Diag *diag) {
  Parameter *parameter = find_parameter(model, port->name);
  if (parameter != NULL && port_fits(parameter, port)) return parameter;
  diag_error(diag, (Location){model->graph->file, 0, 0},
             parameter == NULL ? "the model has no parameter '%s', which the program needs"
                               : "the model's parameter '%s' has another type or shape than the program's",
             port->name);
  return NULL;
}

static const void *require_value(const kiln_model *model, const kiln_port *port, Diag *diag) {
  const Parameter *parameter = require_parameter(model, port, diag);
  if (parameter == NULL) return NULL;
  if (parameter->value != NULL) return parameter->value->data;
  diag_error(diag, (Location){model->graph->file, 0, 0},
             "parameter '%s' has no value; give a weights file or initialise the model", port->name);
  return NULL;
}

kiln_status kiln_model_get_parameter(const kiln_model *model, const char *name, float *out_data, kiln_error *error) {
  if (model == NULL || name == NULL || out_data == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "model, name and out_data must not be NULL");
  const Parameter *parameter = find_parameter(model, name);
  if (parameter == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "the model has no parameter '%s'", name);
  if (parameter->value == NULL) return error_set(error, KILN_ERROR_WEIGHTS, "parameter '%s' has no value", name);
  memcpy(out_data, parameter->value->data, (size_t)tensor_bytes(parameter->value));
  return KILN_OK;
}

typedef struct SaveRequest {
  const kiln_model *model;
  const char *path;
} SaveRequest;

static bool save_body(Operation *operation, void *context) {
  const SaveRequest *request = context;
  const Graph *graph = request->model->graph;
  TensorList list = {arena_array(operation->scratch, graph->parameter_count, Tensor), 0};
  for (size_t i = 0; i < graph->parameter_count; i++) {
    if (graph->parameters[i].value == NULL) continue;
    list.items[list.count] = *graph->parameters[i].value;
    list.items[list.count++].name = graph->parameters[i].name;
  }
  operation->status = KILN_ERROR_IO;
  return safetensors_write(request->path, &list, operation->scratch, operation->diag);
}

kiln_status kiln_model_save_weights(const kiln_model *model, const char *path, kiln_error *error) {
  if (model == NULL || path == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "model and path must not be NULL");
  SaveRequest request = {model, path};
  return operation_run(&model->host, NULL, save_body, &request, error);
}

typedef struct FreezeRequest {
  kiln_model *model;
  const char *group;
  bool frozen, batch_norm;
} FreezeRequest;

static bool freeze_body(Operation *operation, void *context) {
  const FreezeRequest *request = context;
  return graph_set_frozen(request->model->graph, request->group, request->frozen, request->batch_norm, operation->diag);
}

kiln_status kiln_model_set_frozen(kiln_model *model, const char *group, uint32_t frozen, uint32_t batch_norm,
                                  kiln_error *error) {
  if (model == NULL || group == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "model and group must not be NULL");
  FreezeRequest request = {model, group, frozen != 0, batch_norm != 0};
  return operation_run(&model->host, model->arena, freeze_body, &request, error);
}

/* --- states ------------------------------------------------------------------------------------------ */

typedef struct StateTensor {
  kiln_port port;
  float *data;
} StateTensor;

struct kiln_state {
  Arena *arena;
  kiln_host host;
  const kiln_executable *executable;
  const void **parameters;          /* as the program wants them: the executable's, but for those of role state */
  StateTensor *tensors;             /* trained parameters, running statistics, then rows of moments */
  size_t tensor_count, value_count; /* the first value_count have the model's names */
  /* On GPUs. The values are copied only when they are needed where they are not. */
  kiln_context *context; /* that has them on its GPU, or NULL */
  bool gpu_newer;        /* steps have changed them there */
  bool host_newer;       /* they may have been changed here */
  void **places;         /* of the parameters of role state, by parameter */
};

/* --- states on GPUs ------------------------------------------------------------------------------------ */

/* Makes the values here the present ones. */
static kiln_status state_fetch(kiln_state *state, kiln_error *error) {
  if (!state->gpu_newer) return KILN_OK;
  state->gpu_newer = false;
  return cuda_session_fetch_state(state->context, error);
}

/* Callers of read-only functions may see values that only a GPU had. */
static kiln_status state_refresh(const kiln_state *state, kiln_error *error) {
  return state_fetch((kiln_state *)(uintptr_t)state, error);
}

void state_leave(kiln_context *context) {
  kiln_state *state = context->resident;
  if (state == NULL) return;
  state_fetch(state, NULL);
  state->context = NULL;
  context->resident = NULL;
  state->host_newer = true;
}

/* Makes the values on the context's GPU the present ones. */
static kiln_status state_send(kiln_state *state, kiln_context *context, kiln_error *error) {
  if (state->context != context) {
    if (state->context != NULL) state_leave(state->context);
    state_leave(context);
    state->context = context;
    context->resident = state;
    state->host_newer = true;
  }
  if (!state->host_newer) return KILN_OK;
  kiln_status status = cuda_session_set_state(context, state->places, error);
  state->host_newer = status != KILN_OK;
  return status;
}

typedef struct StateRequest {
  kiln_state *state;
  const kiln_state *source; /* to store */
  const kiln_model *model;
  kiln_model *target;
} StateRequest;

static bool is_state(const kiln_port *port) { return port->role == KILN_ROLE_STATE; }
static bool is_packed(const kiln_port *port) { return is_state(port) && strcmp(port->name, "state") == 0; }

/* What the rows after the parameters are called. */
static const char *row_name(const kiln_program *program, int64_t row, int64_t rows) {
  bool adam = false;
  for (uint32_t s = 0; s < program->run_step_count; s++)
    adam = adam || strncmp(program->run_steps[s].kind, "adam_step", 9) == 0;
  const int64_t moments = adam ? 2 : 1;
  if (row > moments || row >= rows) return "accumulated";
  return !adam ? "momentum" : row == 1 ? "moment1" : "moment2";
}

static void add_slots(kiln_state *state, float *data, const char *prefix) {
  const kiln_program *program = state->executable->program;
  for (uint32_t s = 0; s < program->slot_count; s++) {
    const kiln_slot *slot = &program->slots[s];
    StateTensor *tensor = &state->tensors[state->tensor_count++];
    const char *name = prefix != NULL ? arena_format(state->arena, "%s.%s", prefix, slot->name) : slot->name;
    *tensor = (StateTensor){{.name = name, .dtype = KILN_F32, .rank = slot->rank, .bytes = 4}, data + slot->offset};
    for (uint32_t d = 0; d < slot->rank; d++) {
      tensor->port.dims[d] = slot->dims[d];
      tensor->port.bytes *= slot->dims[d];
    }
  }
}

static bool state_body(Operation *operation, void *context) {
  StateRequest *request = context;
  kiln_state *state = request->state;
  const kiln_program *program = state->executable->program;
  const kiln_port *packed = NULL;
  float *rows = NULL;
  state->parameters = arena_array(state->arena, (size_t)program->parameter_count + 1, const void *);
  state->places = arena_array(state->arena, (size_t)program->parameter_count + 1, void *);
  state->host_newer = true;
  float **own = arena_array(operation->scratch, (size_t)program->parameter_count + 1, float *);
  for (uint32_t i = 0; i < program->parameter_count; i++) {
    const kiln_port *port = &program->parameters[i];
    state->parameters[i] = state->executable->parameters[i];
    if (!is_state(port)) continue;
    state->parameters[i] = state->places[i] = own[i] = memory_blob(&state->executable->allocator, state->arena, (size_t)port->bytes);
    if (is_packed(port)) packed = port, rows = own[i];
  }
  if (packed == NULL) {
    operation->status = KILN_ERROR_ARGUMENT;
    diag_error(operation->diag, (Location){program->name, 0, 0}, "is no training step: it has no state");
    return false;
  }
  const size_t row_count = (size_t)packed->dims[0];
  state->tensors = arena_array(state->arena, row_count * program->slot_count + program->parameter_count, StateTensor);
  add_slots(state, rows, NULL);
  for (uint32_t i = 0; i < program->parameter_count; i++)
    if (own[i] != NULL && own[i] != rows)
      state->tensors[state->tensor_count++] = (StateTensor){program->parameters[i], own[i]};
  state->value_count = state->tensor_count;
  for (int64_t row = 1; row < packed->dims[0]; row++)
    add_slots(state, rows + row * packed->dims[1], row_name(program, row, packed->dims[0]));
  return true;
}

static bool load_body(Operation *operation, void *context) {
  const StateRequest *request = context;
  const kiln_state *state = request->state;
  const size_t errors = diag_error_count(operation->diag);
  operation->status = KILN_ERROR_WEIGHTS;
  for (size_t i = 0; i < state->value_count; i++) {
    const StateTensor *tensor = &state->tensors[i];
    const void *value = require_value(request->model, &tensor->port, operation->diag);
    if (value != NULL) memcpy(tensor->data, value, (size_t)tensor->port.bytes);
  }
  return diag_error_count(operation->diag) == errors;
}

/* The model's own copies are made once, so that storing after every epoch takes no more memory. */
static bool store_body(Operation *operation, void *context) {
  const StateRequest *request = context;
  const kiln_state *state = request->source;
  kiln_model *model = request->target;
  const size_t errors = diag_error_count(operation->diag);
  operation->status = KILN_ERROR_WEIGHTS;
  if (model->trained == NULL) model->trained = arena_array(model->arena, model->graph->parameter_count, Tensor *);
  for (size_t i = 0; i < state->value_count; i++) {
    const kiln_port *port = &state->tensors[i].port;
    Parameter *parameter = require_parameter(model, port, operation->diag);
    if (parameter == NULL) continue;
    Tensor **kept = &model->trained[parameter - model->graph->parameters];
    if (*kept == NULL || parameter->value != *kept) {
      *kept = arena_new(model->arena, Tensor);
      **kept = (Tensor){parameter->name, DTYPE_F32, parameter->shape,
                        arena_alloc_aligned(model->arena, (size_t)port->bytes, KILN_ALIGNMENT)};
      parameter->value = *kept;
      parameter->inline_value = false;
    }
    memcpy((*kept)->data, state->tensors[i].data, (size_t)port->bytes);
  }
  return diag_error_count(operation->diag) == errors;
}

kiln_status kiln_state_create(const kiln_executable *executable, const kiln_model *model, kiln_state **out_state,
                              kiln_error *error) {
  if (executable == NULL || out_state == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "executable and out_state must not be NULL");
  Arena *arena = arena_create(&executable->allocator);
  if (arena == NULL) return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  jmp_buf failure;
  if (setjmp(failure) != 0) {
    arena_destroy(arena);
    return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  }
  arena_on_failure(arena, &failure);
  kiln_state *state = arena_new(arena, kiln_state);
  *state = (kiln_state){.arena = arena, .host = executable->host, .executable = executable};
  StateRequest request = {.state = state, .model = model};
  kiln_status status = operation_run(&executable->host, arena, state_body, &request, error);
  if (status == KILN_OK && model != NULL) status = operation_run(&executable->host, arena, load_body, &request, error);
  arena_on_failure(arena, NULL);
  if (status != KILN_OK) {
    arena_destroy(arena);
    return status;
  }
  *out_state = state;
  return KILN_OK;
}

void kiln_state_destroy(kiln_state *state) {
  if (state == NULL) return;
  if (state->context != NULL) state->context->resident = NULL;
  arena_destroy(state->arena);
}

kiln_status kiln_state_load(kiln_state *state, const kiln_model *model, kiln_error *error) {
  if (state == NULL || model == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "state and model must not be NULL");
  StateRequest request = {.state = state, .model = model};
  kiln_status fetched = state_fetch(state, error); /* the moments stay */
  if (fetched != KILN_OK) return fetched;
  state->host_newer = true;
  return operation_run(&state->host, NULL, load_body, &request, error);
}

kiln_status kiln_state_store(const kiln_state *state, kiln_model *model, kiln_error *error) {
  if (state == NULL || model == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "state and model must not be NULL");
  StateRequest request = {.source = state, .target = model};
  kiln_status fetched = state_refresh(state, error);
  if (fetched != KILN_OK) return fetched;
  return operation_run(&model->host, model->arena, store_body, &request, error);
}

size_t kiln_state_tensor_count(const kiln_state *state) { return state != NULL ? state->tensor_count : 0; }

kiln_status kiln_state_tensor(const kiln_state *state, size_t index, kiln_port *out_port, float **out_data) {
  if (state == NULL || index >= state->tensor_count) return KILN_ERROR_ARGUMENT;
  if (out_data != NULL) {
    kiln_status fetched = state_refresh(state, NULL);
    if (fetched != KILN_OK) return fetched;
    ((kiln_state *)(uintptr_t)state)->host_newer = true; /* the caller may write */
  }
  if (out_port != NULL) *out_port = state->tensors[index].port;
  if (out_data != NULL) *out_data = state->tensors[index].data;
  return KILN_OK;
}

/* --- steps ------------------------------------------------------------------------------------------- */

kiln_weights state_weights(const kiln_state *state) {
  return (kiln_weights){state->executable->program, state->executable->weights.prepared, state->parameters};
}

kiln_status kiln_train_step(kiln_context *context, kiln_state *state, int64_t batch, const void *const *inputs,
                            void *const *outputs, kiln_error *error) {
  if (context == NULL || state == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "context and state must not be NULL");
  if (context->executable != state->executable)
    return error_set(error, KILN_ERROR_ARGUMENT, "the state belongs to another executable than the context");
  if (batch < 1) return error_set(error, KILN_ERROR_BATCH, "a training step needs at least one image");
  if (context->cuda != NULL) {
    kiln_status sent = state_send(state, context, error);
    if (sent != KILN_OK) return sent;
    state->gpu_newer = true;
  }
  const kiln_weights weights = state_weights(state);
  return context_run(context, &weights, batch, inputs, outputs, error);
}

/* --- preparing again --------------------------------------------------------------------------------- */

typedef struct PrepareRequest {
  kiln_executable *executable;
  const kiln_model *model;
} PrepareRequest;

static void mark_read(const kiln_step *steps, uint32_t count, bool *read) {
  for (uint32_t s = 0; s < count; s++)
    for (uint32_t i = 0; i < steps[s].operand_count; i++)
      if (steps[s].operands[i].space == KILN_SPACE_PARAMETER) read[steps[s].operands[i].index] = true;
}

static bool prepare_body(Operation *operation, void *context) {
  const PrepareRequest *request = context;
  kiln_executable *executable = request->executable;
  const kiln_program *program = executable->program;
  const size_t count = (size_t)program->parameter_count + 1, errors = diag_error_count(operation->diag);
  const void **values = arena_array(operation->scratch, count, const void *);
  bool *prepared = arena_array(operation->scratch, count, bool), *run = arena_array(operation->scratch, count, bool);
  operation->status = KILN_ERROR_WEIGHTS;
  if (executable->blob == NULL && executable->cuda == NULL) {
    diag_error(operation->diag, (Location){program->name, 0, 0},
               "the weights of this executable are embedded or from a file and cannot be prepared again");
    return false;
  }
  mark_read(program->prepare_steps, program->prepare_step_count, prepared);
  mark_read(program->run_steps, program->run_step_count, run);
  for (uint32_t i = 0; i < program->parameter_count; i++)
    if ((prepared[i] || run[i]) && !is_state(&program->parameters[i]))
      values[i] = require_value(request->model, &program->parameters[i], operation->diag);
  if (diag_error_count(operation->diag) != errors) return false;
  if (executable->cuda != NULL) {
    CudaMessage message;
    operation->status = cuda_program_prepare(executable->cuda, values, &message);
    if (operation->status != KILN_OK) diag_error(operation->diag, (Location){program->name, 0, 0}, "%s", message.text);
    return operation->status == KILN_OK;
  }
  const Allocator allocator = executable->allocator;
  void *temporary = memory_blob(&allocator, operation->scratch, (size_t)program_prepare_bytes(program, 1));
  const int status = program->prepare(values, executable->blob, temporary, NULL);
  if (status != KILN_OK) {
    operation->status = (kiln_status)status;
    diag_error(operation->diag, (Location){program->name, 0, 0}, "preparing the weights failed: %s",
               kiln_status_text((kiln_status)status));
    return false;
  }
  /* what runs read as it is was copied into the executable's own memory */
  for (uint32_t i = 0; i < program->parameter_count; i++)
    if (run[i] && values[i] != NULL && executable->parameters[i] != NULL)
      memcpy((void *)(uintptr_t)executable->parameters[i], values[i], (size_t)program->parameters[i].bytes);
  return true;
}

kiln_status kiln_executable_prepare(kiln_executable *executable, const kiln_model *model, kiln_error *error) {
  if (executable == NULL || model == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "executable and model must not be NULL");
  PrepareRequest request = {executable, model};
  return operation_run(&executable->host, NULL, prepare_body, &request, error);
}
