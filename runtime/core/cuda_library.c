#include "cuda_library.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Weights on a GPU, and a context per workspace. */
typedef struct Workspace {
  const void *address;
  CudaContext *context;
  struct Workspace *next;
} Workspace;

typedef struct LoadedWeights {
  CudaProgram *program;
  pthread_mutex_t mutex; /* of the list */
  Workspace *workspaces;
} LoadedWeights;

static _Thread_local CudaMessage last;

const char *kiln_cuda_message(void) { return last.status != KILN_OK ? last.text : ""; }

static int failed(kiln_status status, const char *text) {
  last.status = status;
  memcpy(last.text, text, strlen(text) + 1);
  return status;
}

bool cuda_library_parameters(const CudaLibrary *library, const void **out_parameters) {
  if (library->embedded == NULL) return false;
  for (uint32_t i = 0; i < library->tables->program->parameter_count; i++) {
    const int64_t offset = library->embedded_offsets[i];
    out_parameters[i] = offset >= 0 ? library->embedded + offset : NULL;
  }
  return true;
}

static void release(LoadedWeights *loaded) {
  while (loaded->workspaces != NULL) {
    Workspace *workspace = loaded->workspaces;
    loaded->workspaces = workspace->next;
    cuda_context_destroy(workspace->context);
    free(workspace);
  }
  cuda_program_destroy(loaded->program);
  pthread_mutex_destroy(&loaded->mutex);
  free(loaded);
}

int kiln_cuda_weights_prepare(const CudaLibrary *library, kiln_weights *out_weights, const void *const *parameters) {
  if (out_weights == NULL || parameters == NULL) return failed(KILN_ERROR_ARGUMENT, "an argument is NULL");
  LoadedWeights *loaded = calloc(1, sizeof *loaded);
  if (loaded == NULL) return failed(KILN_ERROR_MEMORY, "out of memory");
  if (pthread_mutex_init(&loaded->mutex, NULL) != 0) {
    free(loaded);
    return failed(KILN_ERROR_MEMORY, "out of memory");
  }
  kiln_status status = cuda_program_create(library->tables, 0, NULL, &loaded->program, &last);
  if (status == KILN_OK) status = cuda_program_prepare(loaded->program, parameters, &last);
  if (status != KILN_OK) {
    release(loaded);
    return status;
  }
  *out_weights = (kiln_weights){library->tables->program, loaded, NULL};
  return KILN_OK;
}

int kiln_cuda_weights_embedded(const CudaLibrary *library, kiln_weights *out_weights) {
  const void **parameters = calloc(library->tables->program->parameter_count + (size_t)1, sizeof *parameters);
  if (parameters == NULL) return failed(KILN_ERROR_MEMORY, "out of memory");
  int status = cuda_library_parameters(library, parameters)
                   ? kiln_cuda_weights_prepare(library, out_weights, parameters)
                   : failed(KILN_ERROR_WEIGHTS, "the library holds no weights");
  free(parameters);
  return status;
}

/* The pointer is read-only for hosts that only pass it on. */
static LoadedWeights *loaded_of(const kiln_weights *weights) {
  LoadedWeights *loaded;
  memcpy(&loaded, &weights->prepared, sizeof loaded);
  return loaded;
}

void kiln_cuda_weights_release(kiln_weights *weights) {
  if (weights == NULL || weights->prepared == NULL) return;
  release(loaded_of(weights));
  *weights = (kiln_weights){NULL, NULL, NULL};
}

static kiln_status find_context(LoadedWeights *loaded, const kiln_program *program, const void *address,
                                CudaContext **out_context) {
  kiln_status status = KILN_OK;
  pthread_mutex_lock(&loaded->mutex);
  Workspace *workspace = loaded->workspaces;
  while (workspace != NULL && workspace->address != address) workspace = workspace->next;
  if (workspace == NULL) {
    workspace = calloc(1, sizeof *workspace);
    status = workspace != NULL ? cuda_context_create(loaded->program, program->max_batch, &workspace->context, &last)
                               : (kiln_status)failed(KILN_ERROR_MEMORY, "out of memory");
    if (status == KILN_OK) {
      workspace->address = address;
      workspace->next = loaded->workspaces;
      loaded->workspaces = workspace;
    } else {
      free(workspace);
      workspace = NULL;
    }
  }
  pthread_mutex_unlock(&loaded->mutex);
  *out_context = workspace != NULL ? workspace->context : NULL;
  return status;
}

/* `states` by parameter, or NULL. */
static int run(const CudaLibrary *library, const kiln_weights *weights, void *const *states, void *workspace,
               const kiln_io *io) {
  const kiln_program *program = library->tables->program;
  CudaContext *context;
  if (weights == NULL || io == NULL) return failed(KILN_ERROR_ARGUMENT, "an argument is NULL");
  if (weights->program != program || weights->prepared == NULL)
    return failed(KILN_ERROR_WEIGHTS, "the weights are missing, or another library's");
  if (io->batch < 0 || io->batch > program->max_batch)
    return failed(KILN_ERROR_BATCH, "the batch is below 0, or above the largest that the library was compiled for");
  if (io->batch == 0) return KILN_OK;
  /* behind the head stand the pointers to the inputs, then the outputs */
  const void *const *inputs = (const void *const *)(const void *)(io + 1);
  void *const *outputs = (void *const *)(const void *)(inputs + program->input_count);
  for (uint32_t i = 0; i < program->input_count; i++)
    if (inputs[i] == NULL) return failed(KILN_ERROR_ARGUMENT, "an input is NULL");
  for (uint32_t i = 0; i < program->output_count; i++)
    if (outputs[i] == NULL) return failed(KILN_ERROR_ARGUMENT, "an output is NULL");
  kiln_status status = find_context(loaded_of(weights), program, workspace, &context);
  if (status == KILN_OK && states != NULL) status = cuda_context_set_state(context, states, &last);
  if (status == KILN_OK) status = cuda_context_run(context, io->batch, inputs, outputs, &last);
  if (status == KILN_OK && states != NULL) status = cuda_context_fetch_state(context, &last);
  return status;
}

int kiln_cuda_run(const CudaLibrary *library, const kiln_weights *weights, void *workspace, const kiln_io *io) {
  return run(library, weights, NULL, workspace, io);
}

int kiln_cuda_step(const CudaLibrary *library, const kiln_weights *weights, void *const *state, void *workspace,
                   const kiln_io *io) {
  const kiln_program *program = library->tables->program;
  if (state == NULL) return failed(KILN_ERROR_ARGUMENT, "an argument is NULL");
  void **states = calloc(program->parameter_count + (size_t)1, sizeof *states);
  if (states == NULL) return failed(KILN_ERROR_MEMORY, "out of memory");
  int status = KILN_OK;
  for (uint32_t i = 0; i < program->parameter_count; i++) {
    if (program->parameters[i].role != KILN_ROLE_STATE) continue;
    states[i] = state[i];
    if (state[i] == NULL) status = failed(KILN_ERROR_ARGUMENT, "a part of the state is NULL");
  }
  if (status == KILN_OK) status = run(library, weights, states, workspace, io);
  free(states);
  return status;
}
