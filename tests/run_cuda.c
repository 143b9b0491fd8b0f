#include "run_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda.h"
#include "session/cuda_build.h"

typedef struct LoadedProgram {
  TestDevice device;
  CudaTables *tables;
  const CudaDriver *driver;
  CuContext context;
  CuStream stream;
  CuModule *modules;
  Plan *plan;
} LoadedProgram;

void test_cuda_open(void) {
  setenv("KILN_NVRTC", KILN_FAKE_NVRTC, 0);
  setenv("KILN_CUDA_DRIVER", KILN_FAKE_CUDA, 0);
}

static bool fail(TestProgram *program, const char *what) {
  const char *text = diag_text(program->diag, program->arena);
  fprintf(stderr, "%s\n%s%s", what, text, *text ? "\n" : "");
  return false;
}

static bool complain(const LoadedProgram *loaded, CuResult result, const char *what) {
  CudaMessage message;
  if (result == CU_SUCCESS) return true;
  cuda_message(loaded->driver, result, &message, "%s", what);
  fprintf(stderr, "%s\n", message.text);
  return false;
}

static char *allocate(void *context, size_t size) {
  const LoadedProgram *loaded = context;
  CuPointer pointer = 0;
  if (!complain(loaded, loaded->driver->memory_allocate(&pointer, size), "device memory")) abort();
  return (char *)(uintptr_t)pointer;
}

static void write_memory(void *context, char *to, const char *from, size_t size) {
  const LoadedProgram *loaded = context;
  CuResult result = loaded->driver->copy_to_device((CuPointer)(uintptr_t)to, from, size, loaded->stream);
  if (!complain(loaded, result, "copying to the device")) abort();
}

static void read_memory(void *context, char *to, const char *from, size_t size) {
  const LoadedProgram *loaded = context;
  loaded->driver->copy_to_host(to, (CuPointer)(uintptr_t)from, size, loaded->stream);
  loaded->driver->stream_synchronize(loaded->stream); /* what failed has been said */
}

static void release(void *context, char *memory) {
  const LoadedProgram *loaded = context;
  loaded->driver->memory_free((CuPointer)(uintptr_t)memory);
}

static int64_t blocks_of(const CudaRunLaunch *launch, int64_t batch) {
  return (launch->work + batch * launch->work_per_image + launch->work_per_block - 1) / launch->work_per_block;
}

static bool launch_kernels(const LoadedProgram *loaded, size_t kernel, const kiln_call *call, char *scratch) {
  const CudaStepLaunches *launches = &loaded->tables->launches[kernel];
  const PlanKernel *about = &loaded->plan->kernels[kernel];
  void *pointers[KILN_MAX_OPERANDS + 1], *arguments[KILN_MAX_OPERANDS + 2];
  int images = (int)call->batch;
  const int32_t count = 1 + about->input_count + about->reduction_count;
  for (int32_t i = 0; i < count; i++) pointers[i] = call->operands[i], arguments[i] = &pointers[i];
  arguments[count] = &scratch;
  arguments[count + 1] = &images;
  for (size_t l = 0; l < launches->count; l++) {
    const CudaRunLaunch *launch = &launches->items[l];
    const int64_t blocks = blocks_of(launch, call->batch);
    CuFunction function;
    CuResult result = loaded->driver->module_function(&function, loaded->modules[launch->image], launch->function);
    if (result == CU_SUCCESS && launch->shared_bytes > 0)
      result = loaded->driver->function_set(function, CU_FUNCTION_MAX_DYNAMIC_SHARED_BYTES, launch->shared_bytes);
    if (result == CU_SUCCESS && blocks > 0)
      result = loaded->driver->launch(function, (unsigned)blocks, (unsigned)launch->grid_y, (unsigned)launch->grid_z,
                                      (unsigned)launch->threads, 1, 1, (unsigned)launch->shared_bytes, loaded->stream,
                                      arguments, NULL);
    if (!complain(loaded, result, launch->function)) return false;
  }
  return complain(loaded, loaded->driver->stream_synchronize(loaded->stream), about->name);
}

/* The scratch is as large as this kernel asked for, and its counters are 0 again afterwards. */
static bool launch_step(void *context, size_t kernel, const kiln_call *call) {
  const LoadedProgram *loaded = context;
  const int64_t bytes = loaded->tables->scratch_bytes;
  static char counters[CUDA_COUNTER_BYTES];
  char *scratch = bytes > 0 ? allocate(context, (size_t)bytes) : NULL;
  memset(counters, 0, sizeof counters);
  if (scratch != NULL) write_memory(context, scratch, counters, sizeof counters);
  bool done = launch_kernels(loaded, kernel, call, scratch);
  if (done && scratch != NULL) read_memory(context, counters, scratch, sizeof counters);
  for (int64_t i = 0; done && i < CUDA_COUNTER_BYTES; i++)
    if (counters[i] != 0) {
      fprintf(stderr, "'%s' leaves counter %lld at another value than 0\n", loaded->plan->kernels[kernel].name,
              (long long)i / 4);
      done = false;
    }
  if (scratch != NULL) release(context, scratch);
  return done;
}

static void close_device(void *argument) {
  const LoadedProgram *loaded = argument;
  CuContext ignored;
  for (uint32_t i = 0; i < loaded->tables->image_count; i++)
    if (loaded->modules[i] != NULL) loaded->driver->module_unload(loaded->modules[i]);
  loaded->driver->stream_destroy(loaded->stream);
  loaded->driver->context_pop(&ignored);
  loaded->driver->context_release(0);
}

bool test_cuda_load(TestProgram *program, Plan *plan) {
  Arena *arena = program->arena;
  LoadedProgram *loaded = arena_new(arena, LoadedProgram);
  CudaMessage message = {KILN_OK, ""};
  program->plan = plan;
  loaded->plan = plan;
  loaded->driver = cuda_driver(&message);
  if (loaded->driver == NULL) return fail(program, message.text);
  const char *cache = getenv("KILN_TEST_CACHE"); /* for people who run the same test again and again */
  if (!cuda_tables_compile(plan, 0, cache, arena, arena, program->diag, &loaded->tables))
    return fail(program, "code generation failed");
  loaded->modules = arena_array(arena, loaded->tables->image_count + 1, CuModule);
  CuResult result = loaded->driver->context_retain(&loaded->context, 0);
  if (result == CU_SUCCESS) result = loaded->driver->context_push(loaded->context);
  if (result == CU_SUCCESS) result = loaded->driver->stream_create(&loaded->stream, CU_STREAM_NON_BLOCKING);
  if (result == CU_SUCCESS) arena_defer(arena, close_device, loaded);
  for (uint32_t i = 0; i < loaded->tables->image_count && result == CU_SUCCESS; i++)
    if (loaded->tables->images[i].data != NULL)
      result = loaded->driver->module_load(&loaded->modules[i], loaded->tables->images[i].data, 0, NULL, NULL);
  if (!complain(loaded, result, "loading")) return false;
  loaded->device = (TestDevice){loaded, allocate, release, write_memory, read_memory, launch_step};
  program->program = loaded->tables->program;
  program->device = &loaded->device;
  return true;
}

bool test_cuda_compile(TestProgram *program, const char *arch, MathMode math, const char *disabled,
                       Precision precision) {
  Arena *arena = program->arena;
  Plan *plan;
  program->diag = diag_create(arena);
  program->graph = graph_clone(program->source, arena);
  if (!cuda_target(arch, NULL, math, arena, program->diag, &program->target)) return fail(program, "unknown target");
  Arena *scratch = arena_create(NULL);
  const PassOptions options = {
      .target = &program->target, .precision = precision, .disabled = disabled, .scratch = scratch};
  const PipelineOptions pipeline = {.verify = true};
  bool planned = pipeline_run(program->graph, &options, &pipeline, program->diag, &plan);
  arena_destroy(scratch);
  if (!planned) return fail(program, "the passes failed");
  return test_cuda_load(program, plan);
}

const CudaTables *test_cuda_tables(const TestProgram *program) {
  const LoadedProgram *loaded = program->device->context;
  return loaded->tables;
}

bool test_cuda_run(TestProgram *test, int64_t batch, TensorList *out_outputs) {
  Arena *arena = test->arena;
  const kiln_program *program = test->program;
  CudaProgram *loaded = NULL;
  CudaContext *context = NULL;
  CudaMessage message;
  const void **parameters = arena_array(arena, program->parameter_count + 1, const void *);
  const void **inputs = arena_array(arena, program->input_count + 1, const void *);
  void **outputs = arena_array(arena, program->output_count + 1, void *);
  for (uint32_t i = 0; i < program->parameter_count; i++)
    parameters[i] = tensor_find(&test->parameters, program->parameters[i].name)->data;
  for (uint32_t i = 0; i < program->input_count; i++)
    inputs[i] = tensor_find(&test->inputs, program->inputs[i].name)->data;
  *out_outputs = test_outputs_create(program, batch, arena);
  for (uint32_t i = 0; i < program->output_count; i++) outputs[i] = out_outputs->items[i].data;
  kiln_status status = cuda_program_create(test_cuda_tables(test), 0, NULL, &loaded, &message);
  if (status == KILN_OK) status = cuda_program_prepare(loaded, parameters, &message);
  if (status == KILN_OK) status = cuda_context_create(loaded, program->max_batch, &context, &message);
  if (status == KILN_OK) status = cuda_context_run(context, batch, inputs, outputs, &message);
  cuda_context_destroy(context);
  cuda_program_destroy(loaded);
  return status == KILN_OK || fail(test, message.text);
}
