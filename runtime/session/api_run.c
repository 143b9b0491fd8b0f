/* Executables and contexts: the public functions that compile, load and run programs. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "core/cuda_run.h"
#include "core/loader.h"
#include "core/processors.h"
#include "core/runner.h"
#include "cuda_session.h"
#include "memory.h"
#include "safetensors.h"
#include "session.h"

typedef struct CompileRequest {
  const kiln_model *model;
  const kiln_compile_options *options;
  const kiln_train_options *train; /* of a training step */
  bool training;
  const char *path, *weights_path;
  kiln_executable *executable;
} CompileRequest;

static bool make_plan(Operation *operation, const CompileRequest *request, Plan **out_plan) {
  const Graph *described = request->model->graph;
  BuildOptions options = {.compile = request->options};
  TrainRequest train;
  Graph *graph;
  if (request->training) {
    if (!train_request(described, request->train, operation->diag, &train)) return false;
    options.train = &train;
  }
  return build_plan(described, &options, operation->scratch, operation->diag, &graph, out_plan);
}

static bool compile_body(Operation *operation, void *context) {
  CompileRequest *request = context;
  Plan *plan;
  if (!make_plan(operation, request, &plan)) return false;
  return build_executable(request->model->graph, plan, request->options, request->executable, operation->scratch,
                          operation->diag, &operation->status);
}

static bool library_body(Operation *operation, void *context) {
  CompileRequest *request = context;
  Plan *plan;
  if (!make_plan(operation, request, &plan)) return false;
  return build_library(request->model->graph, plan, request->options, request->path, operation->scratch,
                       operation->diag);
}

/* Makes an executable with `body`, which fills request->executable. */
static kiln_status executable_create(const kiln_host *host, OperationBody body, CompileRequest *request,
                                     kiln_executable **out_executable, kiln_error *error) {
  Allocator allocator = host_allocator(host);
  Arena *arena = arena_create(&allocator);
  if (arena == NULL) return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  jmp_buf failure;
  if (setjmp(failure) != 0) {
    arena_destroy(arena);
    return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  }
  arena_on_failure(arena, &failure);
  kiln_executable *executable = arena_new(arena, kiln_executable);
  executable->arena = arena;
  executable->allocator = allocator;
  if (host != NULL) executable->host = *host;
  request->executable = executable;
  kiln_status status = operation_run(host, arena, body, request, error);
  arena_on_failure(arena, NULL);
  if (status != KILN_OK) {
    arena_destroy(arena);
    return status;
  }
  *out_executable = executable;
  return KILN_OK;
}

kiln_status kiln_compile(const kiln_model *model, const kiln_compile_options *options, kiln_executable **out_executable,
                         kiln_error *error) {
  if (model == NULL || out_executable == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "model and out_executable must not be NULL");
  CompileRequest request = {.model = model, .options = options};
  return executable_create(&model->host, compile_body, &request, out_executable, error);
}

kiln_status kiln_compile_library(const kiln_model *model, const kiln_compile_options *options, const char *path,
                                 kiln_error *error) {
  if (model == NULL || path == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "model and path must not be NULL");
  CompileRequest request = {.model = model, .options = options, .path = path};
  return operation_run(&model->host, NULL, library_body, &request, error);
}

kiln_status kiln_compile_training(const kiln_model *model, const kiln_train_options *train,
                                  const kiln_compile_options *options, kiln_executable **out_executable,
                                  kiln_error *error) {
  if (model == NULL || out_executable == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "model and out_executable must not be NULL");
  CompileRequest request = {.model = model, .options = options, .train = train, .training = true};
  return executable_create(&model->host, compile_body, &request, out_executable, error);
}

kiln_status kiln_compile_training_library(const kiln_model *model, const kiln_train_options *train,
                                          const kiln_compile_options *options, const char *path, kiln_error *error) {
  if (model == NULL || path == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "model and path must not be NULL");
  CompileRequest request = {.model = model, .options = options, .train = train, .training = true, .path = path};
  return operation_run(&model->host, NULL, library_body, &request, error);
}

/* --- compiled libraries -------------------------------------------------------------------------------- */

static bool weights_from_file(kiln_executable *executable, const char *path, Operation *operation) {
  const kiln_program *program = executable->program;
  Location place = {path, 0, 0};
  void *data;
  size_t size;
  operation->status = KILN_ERROR_WEIGHTS;
  if (!file_read(path, (size_t)1 << 40, executable->arena, operation->diag, &data, &size)) return false;
  kiln_weights_head head;
  if (size < sizeof head || memcmp(data, "KILNWTS1", 8) != 0) {
    diag_error(operation->diag, place, "not a weights file of a compiled library (expected it to begin with KILNWTS1)");
    return false;
  }
  memcpy(&head, data, sizeof head);
  if (head.identity != program->identity) {
    diag_error(operation->diag, place, "prepared for another program (identity %016llx, expected %016llx)",
               (unsigned long long)head.identity, (unsigned long long)program->identity);
    return false;
  }
  if (head.prepared_bytes != program->prepared_bytes || size - sizeof head != (uint64_t)program->prepared_bytes) {
    diag_error(operation->diag, place, "holds %zu bytes of weights, expected %lld", size - sizeof head,
               (long long)program->prepared_bytes);
    return false;
  }
  const unsigned char *bytes = (const unsigned char *)data + sizeof head;
  if (weights_checksum(bytes, size - sizeof head) != head.checksum) {
    diag_error(operation->diag, place, "damaged: the checksum does not agree");
    return false;
  }
  executable->weights = (kiln_weights){program, bytes, executable->parameters};
  return true;
}

static bool weights_from_caller(kiln_executable *executable, const char *path, Operation *operation) {
  const kiln_program *program = executable->program;
  TensorList tensors;
  operation->status = KILN_ERROR_WEIGHTS;
  if (!safetensors_read(path, executable->arena, operation->diag, &tensors)) return false;
  bool complete = true;
  for (uint32_t i = 0; i < program->parameter_count; i++) {
    const kiln_port *port = &program->parameters[i];
    if (port->role == KILN_ROLE_STATE) continue;
    const Tensor *tensor = tensor_find(&tensors, port->name);
    if (tensor == NULL) {
      diag_error(operation->diag, (Location){path, 0, 0}, "has no tensor '%s', which the library needs", port->name);
      complete = false;
      continue;
    }
    Shape shape = shape_of((int32_t)port->rank, port->dims);
    if (tensor->dtype != DTYPE_F32 || !shape_equal(&shape, &tensor->shape)) {
      Text expected, found;
      text_init(&expected, operation->scratch);
      text_init(&found, operation->scratch);
      shape_print(&expected, &shape);
      shape_print(&found, &tensor->shape);
      diag_error(operation->diag, (Location){path, 0, 0}, "tensor '%s': expected f32[%s], found %s[%s]", port->name,
                 expected.data, data_type_name(tensor->dtype), found.data);
      complete = false;
    }
    executable->parameters[i] = tensor->data;
  }
  if (!complete) return false;
  if (cuda_session_program(program))
    return cuda_session_open(program, executable->parameters, executable, operation->diag, &operation->status);
  void *blob = memory_blob(&executable->allocator, executable->arena, (size_t)program->prepared_bytes);
  executable->blob = blob;
  void *temporary = memory_blob(&executable->allocator, operation->scratch, (size_t)program_prepare_bytes(program, 1));
  int status = program->prepare(executable->parameters, blob, temporary, NULL);
  if (status != KILN_OK) {
    operation->status = (kiln_status)status;
    diag_error(operation->diag, (Location){path, 0, 0}, "preparing the weights failed: %s",
               kiln_status_text((kiln_status)status));
    return false;
  }
  executable->weights = (kiln_weights){program, blob, executable->parameters};
  return true;
}

static bool ends_with(const char *text, const char *ending) {
  size_t length = strlen(text), tail = strlen(ending);
  return length >= tail && strcmp(text + length - tail, ending) == 0;
}

static bool open_body(Operation *operation, void *context) {
  CompileRequest *request = context;
  kiln_executable *executable = request->executable;
  executable->program = library_open(request->path, executable->arena, operation->diag, &operation->status);
  if (executable->program == NULL) return false;
  executable->parameters = arena_array(executable->arena, executable->program->parameter_count + 1, const void *);
  const bool on_gpu = cuda_session_program(executable->program);
  if (on_gpu && request->weights_path == NULL)
    return cuda_session_open(executable->program, NULL, executable, operation->diag, &operation->status);
  if (executable->program->embedded != NULL && !on_gpu) {
    executable->weights = (kiln_weights){executable->program, executable->program->embedded, executable->parameters};
    return true;
  }
  const char *weights = request->weights_path;
  if (weights == NULL) {
    const char *slash = strrchr(request->path, '/');
    weights = arena_format(executable->arena, "%.*s%s.weights", slash != NULL ? (int)(slash + 1 - request->path) : 0,
                           request->path, library_base_name(request->path, operation->scratch));
  }
  if (ends_with(weights, ".safetensors")) return weights_from_caller(executable, weights, operation);
  return weights_from_file(executable, weights, operation);
}

kiln_status kiln_open_library(const kiln_host *host, const char *path, const char *weights,
                              kiln_executable **out_executable, kiln_error *error) {
  if (path == NULL || out_executable == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "path and out_executable must not be NULL");
  CompileRequest request = {.path = path, .weights_path = weights};
  return executable_create(host, open_body, &request, out_executable, error);
}

void kiln_executable_destroy(kiln_executable *executable) {
  if (executable != NULL) arena_destroy(executable->arena);
}

const kiln_program *kiln_executable_program(const kiln_executable *executable) { return executable->program; }
const kiln_weights *kiln_executable_weights(const kiln_executable *executable) { return &executable->weights; }

/* --- contexts ------------------------------------------------------------------------------------------ */

/* The largest batch at which a program's steps are so short that waking other threads takes longer: on average less
 * than four microseconds, or 400,000 operations, of which a byte counts for two. Results do not depend on it. */
static int64_t alone_batch(const kiln_program *program) {
  const double least = 4e5, per_byte = 2;
  double work = 0, work_per_batch = 0;
  for (uint32_t s = 0; s < program->run_step_count; s++) {
    const kiln_step *step = &program->run_steps[s];
    work += step->flops + per_byte * step->bytes;
    work_per_batch += step->flops_per_batch + per_byte * step->bytes_per_batch;
  }
  const double left = least * program->run_step_count - work;
  if (left < 0 || work_per_batch <= 0) return 0;
  const double batch = left / work_per_batch;
  return batch < (double)program->max_batch ? (int64_t)batch : program->max_batch;
}

static kiln_status check_affinity(const kiln_context_options *options, uint32_t threads, kiln_error *error) {
  if (options->affinity == NULL) return KILN_OK;
  if (options->parallel_for != NULL)
    return error_set(error, KILN_ERROR_ARGUMENT,
                     "affinity is that of the context's own threads: parallel_for must be NULL");
  if (options->affinity_count < threads)
    return error_set(error, KILN_ERROR_ARGUMENT, "affinity: expected a processor for each of %u threads, found %zu",
                     threads, options->affinity_count);
  for (uint32_t i = 0; i < threads; i++) {
    if (!processor_allowed(options->affinity[i]))
      return error_set(error, KILN_ERROR_ARGUMENT, "affinity: this process may not use processor %u",
                       options->affinity[i]);
    for (uint32_t k = 0; k < i; k++)
      if (options->affinity[k] == options->affinity[i])
        return error_set(error, KILN_ERROR_ARGUMENT, "affinity: processor %u stands there twice",
                         options->affinity[i]);
  }
  return KILN_OK;
}

kiln_status kiln_context_create(const kiln_executable *executable, const kiln_context_options *options,
                                kiln_context **out_context, kiln_error *error) {
  static const kiln_context_options defaults;
  if (executable == NULL || out_context == NULL)
    return error_set(error, KILN_ERROR_ARGUMENT, "executable and out_context must not be NULL");
  if (options == NULL) options = &defaults;
  const kiln_program *program = executable->program;
  uint32_t threads = options->threads > 0 ? options->threads : 1;
  int64_t max_batch = options->max_batch > 0 ? options->max_batch : program->max_batch;
  if (threads > program->max_threads)
    return error_set(error, KILN_ERROR_ARGUMENT, "at most %u threads, found %u", program->max_threads, threads);
  if (max_batch > program->max_batch)
    return error_set(error, KILN_ERROR_BATCH, "the program was compiled for batches up to %lld, found %lld",
                     (long long)program->max_batch, (long long)max_batch);
  const kiln_status placed = executable->cuda != NULL ? KILN_OK : check_affinity(options, threads, error);
  if (placed != KILN_OK) return placed;
  const Allocator *allocator = &executable->allocator;
  kiln_context *context = memory_allocate(allocator, sizeof *context);
  if (context == NULL) return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  memset(context, 0, sizeof *context);
  context->executable = executable;
  context->allocator = *allocator;
  context->max_batch = max_batch;
  context->processor = -1;
  if (executable->cuda != NULL) {
    kiln_status status = cuda_session_context(context, error);
    if (status == KILN_OK)
      *out_context = context;
    else
      kiln_context_destroy(context);
    return status;
  }
  context->workspace_bytes = (size_t)program_workspace_bytes(program, max_batch, threads) + KILN_ALIGNMENT;
  context->io_bytes = sizeof(kiln_io) + (program->input_count + program->output_count) * sizeof(void *);
  context->workspace = memory_allocate(allocator, context->workspace_bytes);
  context->io_block = memory_allocate(allocator, context->io_bytes);
  context->io = (kiln_io){0, options->parallel_for, options->pool, threads, 0};
  if (options->affinity != NULL) context->processor = options->affinity[0];
  if (options->parallel_for == NULL && threads > 1) {
    context->pool = pool_create_on(threads, options->affinity, allocator);
    context->io.parallel_for = pool_parallel_for;
    context->io.pool = context->pool;
    context->alone_batch = alone_batch(program);
  }
  if (context->workspace == NULL || context->io_block == NULL ||
      (context->io.parallel_for == pool_parallel_for && context->pool == NULL)) {
    size_t bytes = context->workspace_bytes;
    kiln_context_destroy(context);
    return error_set(error, KILN_ERROR_MEMORY, "out of memory for a workspace of %zu bytes and %u threads", bytes,
                     threads);
  }
  *out_context = context;
  return KILN_OK;
}

void kiln_context_destroy(kiln_context *context) {
  if (context == NULL) return;
  state_leave(context);
  cuda_context_destroy(context->cuda);
  pool_destroy(context->pool);
  memory_release(&context->allocator, context->workspace, context->workspace_bytes);
  memory_release(&context->allocator, context->io_block, context->io_bytes);
  Allocator allocator = context->allocator;
  memory_release(&allocator, context, sizeof *context);
}

static kiln_status check_run(const kiln_context *context, int64_t batch, const void *const *inputs,
                             void *const *outputs, kiln_error *error) {
  if (context == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "context must not be NULL");
  const kiln_program *program = context->executable->program;
  if (batch < 0 || batch > context->max_batch)
    return error_set(error, KILN_ERROR_BATCH, "batch %lld is not between 0 and %lld", (long long)batch,
                     (long long)context->max_batch);
  if ((inputs == NULL && program->input_count > 0) || (outputs == NULL && program->output_count > 0))
    return error_set(error, KILN_ERROR_ARGUMENT, "inputs and outputs must not be NULL");
  for (uint32_t i = 0; i < program->input_count; i++)
    if (inputs[i] == NULL && batch > 0)
      return error_set(error, KILN_ERROR_ARGUMENT, "input '%s' is NULL", program->inputs[i].name);
  for (uint32_t i = 0; i < program->output_count; i++)
    if (outputs[i] == NULL && batch > 0)
      return error_set(error, KILN_ERROR_ARGUMENT, "output '%s' is NULL", program->outputs[i].name);
  return KILN_OK;
}

kiln_status kiln_context_set_callback(kiln_context *context, kiln_callback callback, void *callback_context,
                                      kiln_error *error) {
  if (context == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "context must not be NULL");
  context->callback = callback;
  context->callback_context = callback_context;
  return KILN_OK;
}

typedef struct CallbackRun {
  const kiln_context *context;
  void *const *outputs;
  const char *failed; /* the value whose callback did */
} CallbackRun;

/* A hooked value is complete when the step that writes its output is. */
static int call_back(void *observer_context, uint32_t step, const void *data, int64_t nanoseconds) {
  (void)data, (void)nanoseconds;
  CallbackRun *run = observer_context;
  const kiln_program *program = run->context->executable->program;
  const kiln_operand *output = program->run_steps[step].operands;
  if (output->space != KILN_SPACE_OUTPUT || output->index < program->output_count - program->hook_count) return 0;
  const kiln_port *value = &program->outputs[output->index];
  if (run->context->callback(run->context->callback_context, value, run->context->io.batch,
                             run->outputs[output->index]) == 0)
    return 0;
  run->failed = value->name;
  return 1;
}

static kiln_status run_with_callback(kiln_context *context, const kiln_weights *weights, int64_t batch,
                                     const void *const *inputs, void *const *outputs, kiln_error *error) {
  CallbackRun run = {.context = context, .outputs = outputs};
  context->io.batch = batch;
  kiln_status status;
  if (context->cuda != NULL)
    status = cuda_session_run_steps(context, batch, inputs, outputs, call_back, &run, error);
  else
    status = program_run_steps(weights, context->workspace, &context->io, inputs, outputs, call_back, &run);
  if (run.failed != NULL) return error_set(error, status, "the callback stopped the run at '%s'", run.failed);
  if (status != KILN_OK && context->cuda != NULL) return status;
  if (status != KILN_OK)
    return error_set(error, status, "%s: %s", context->executable->program->name, kiln_status_text(status));
  return KILN_OK;
}

static kiln_status run_checked(kiln_context *context, const kiln_weights *weights, int64_t batch,
                               const void *const *inputs, void *const *outputs, kiln_error *error) {
  if (context->callback != NULL) return run_with_callback(context, weights, batch, inputs, outputs, error);
  if (context->cuda != NULL) return cuda_session_run(context, batch, inputs, outputs, error);
  const kiln_program *program = context->executable->program;
  context->io.batch = batch;
  kiln_io io = context->io;
  if (batch <= context->alone_batch) io.threads = 1;
  memcpy(context->io_block, &io, sizeof io);
  char *ports = (char *)context->io_block + sizeof context->io;
  if (program->input_count > 0) memcpy(ports, inputs, program->input_count * sizeof(void *));
  if (program->output_count > 0)
    memcpy(ports + program->input_count * sizeof(void *), outputs, program->output_count * sizeof(void *));
  kiln_status status = (kiln_status)program->run(weights, context->workspace, context->io_block);
  if (status != KILN_OK) return error_set(error, status, "%s: %s", program->name, kiln_status_text(status));
  return KILN_OK;
}

kiln_status kiln_run(kiln_context *context, int64_t batch, const void *const *inputs, void *const *outputs,
                     kiln_error *error) {
  if (context == NULL) return error_set(error, KILN_ERROR_ARGUMENT, "context must not be NULL");
  if (context->executable->program->slot_count > 0)
    return error_set(error, KILN_ERROR_ARGUMENT, "the program is a training step: run it with kiln_train_step");
  return context_run(context, &context->executable->weights, batch, inputs, outputs, error);
}

kiln_status context_run(kiln_context *context, const kiln_weights *weights, int64_t batch, const void *const *inputs,
                        void *const *outputs, kiln_error *error) {
  kiln_status status = check_run(context, batch, inputs, outputs, error);
  if (status != KILN_OK || batch == 0) return status;
  ProcessorStay stay = {.moved = false};
  if (context->processor >= 0) processor_enter((uint32_t)context->processor, &stay);
  status = run_checked(context, weights, batch, inputs, outputs, error);
  processor_leave(&stay);
  return status;
}

kiln_status kiln_run_steps(kiln_context *context, int64_t batch, const void *const *inputs, void *const *outputs,
                           kiln_observer observe, void *observer_context, kiln_error *error) {
  kiln_status status = check_run(context, batch, inputs, outputs, error);
  if (status != KILN_OK || batch == 0) return status;
  if (context->cuda != NULL)
    return cuda_session_run_steps(context, batch, inputs, outputs, observe, observer_context, error);
  context->io.batch = batch;
  ProcessorStay stay = {.moved = false};
  if (context->processor >= 0) processor_enter((uint32_t)context->processor, &stay);
  status = program_run_steps(&context->executable->weights, context->workspace, &context->io, inputs, outputs, observe,
                             observer_context);
  processor_leave(&stay);
  if (status != KILN_OK)
    return error_set(error, status, "%s: %s", context->executable->program->name, kiln_status_text(status));
  return KILN_OK;
}
