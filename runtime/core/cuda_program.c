/* Programs on a device: loading code, preparing weights, launching a step's kernels. */
#include "cuda_program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- memory of the host ------------------------------------------------------------------------------ */

void *cuda_host_allocate(const Allocator *allocator, size_t size) {
  size = (size + KILN_ALIGNMENT) / KILN_ALIGNMENT * KILN_ALIGNMENT;
  void *memory = allocator->allocate != NULL ? allocator->allocate(allocator->context, size, KILN_ALIGNMENT)
                                             : aligned_alloc(KILN_ALIGNMENT, size);
  return memory != NULL ? memset(memory, 0, size) : NULL;
}

void cuda_host_release(const Allocator *allocator, void *memory, size_t size) {
  if (memory == NULL) return;
  size = (size + KILN_ALIGNMENT) / KILN_ALIGNMENT * KILN_ALIGNMENT;
  if (allocator->allocate == NULL)
    free(memory);
  else if (allocator->release != NULL)
    allocator->release(allocator->context, memory, size);
}

kiln_status cuda_fail(CudaMessage *out_message, kiln_status status, const char *text) {
  if (out_message == NULL) return status;
  out_message->status = status;
  snprintf(out_message->text, sizeof out_message->text, "%s", text);
  return status;
}

kiln_status cuda_out_of_memory(CudaMessage *out_message) {
  return cuda_fail(out_message, KILN_ERROR_MEMORY, "out of memory");
}

/* --- devices ----------------------------------------------------------------------------------------- */

int32_t cuda_device_count(CudaMessage *out_message) {
  const CudaDriver *driver = cuda_driver(out_message);
  int count = 0;
  if (driver == NULL) return -1;
  CuResult result = driver->device_count(&count);
  if (result == CU_SUCCESS) return count;
  cuda_message(driver, result, out_message, "the CUDA driver does not count its devices");
  return -1;
}

static CuResult read_attributes(const CudaDriver *driver, CuDevice device, CudaDeviceInfo *out_info) {
  int major = 0, minor = 0, processors = 0, shared = 0, l2 = 0;
  size_t memory = 0;
  CuResult result = driver->device_name(out_info->name, sizeof out_info->name, device);
  if (result == CU_SUCCESS) result = driver->device_attribute(&major, CU_ATTRIBUTE_MAJOR, device);
  if (result == CU_SUCCESS) result = driver->device_attribute(&minor, CU_ATTRIBUTE_MINOR, device);
  if (result == CU_SUCCESS) result = driver->device_attribute(&processors, CU_ATTRIBUTE_MULTIPROCESSORS, device);
  if (result == CU_SUCCESS) result = driver->device_attribute(&shared, CU_ATTRIBUTE_SHARED_BYTES_OPTIN, device);
  if (result == CU_SUCCESS) result = driver->device_attribute(&l2, CU_ATTRIBUTE_L2_BYTES, device);
  if (result == CU_SUCCESS) result = driver->device_memory(&memory, device);
  out_info->name[sizeof out_info->name - 1] = '\0';
  out_info->arch = 10 * major + minor;
  out_info->multiprocessors = processors;
  out_info->shared_bytes = shared;
  out_info->l2_bytes = l2;
  out_info->memory_bytes = (int64_t)memory;
  return result;
}

/* The device of that number, or a message that says which there are. */
static kiln_status find_device(const CudaDriver *driver, int32_t number, CuDevice *out_device,
                               CudaMessage *out_message) {
  int count = 0;
  CuResult result = driver->device_count(&count);
  if (result == CU_SUCCESS && (number < 0 || number >= count)) {
    if (out_message != NULL) {
      out_message->status = KILN_ERROR_UNSUPPORTED;
      snprintf(out_message->text, sizeof out_message->text, "there is no GPU %d: the driver finds %d, counted from 0",
               (int)number, count);
    }
    return KILN_ERROR_UNSUPPORTED;
  }
  if (result == CU_SUCCESS) result = driver->device_get(out_device, number);
  return result == CU_SUCCESS ? KILN_OK : cuda_message(driver, result, out_message, "GPU %d", (int)number);
}

kiln_status cuda_device_info(int32_t device, CudaDeviceInfo *out_info, CudaMessage *out_message) {
  CuDevice handle;
  const CudaDriver *driver = cuda_driver(out_message);
  *out_info = (CudaDeviceInfo){.arch = 0};
  if (driver == NULL) return KILN_ERROR_UNSUPPORTED;
  kiln_status status = find_device(driver, device, &handle, out_message);
  if (status != KILN_OK) return status;
  CuResult result = read_attributes(driver, handle, out_info);
  return result == CU_SUCCESS ? KILN_OK : cuda_message(driver, result, out_message, "GPU %d", (int)device);
}

/* --- entering ---------------------------------------------------------------------------------------- */

kiln_status cuda_enter(const CudaProgram *program, CudaMessage *out_message) {
  CuResult result = program->driver->context_push(program->context);
  if (result == CU_SUCCESS) return KILN_OK;
  return cuda_message(program->driver, result, out_message, "the GPU's context cannot be used");
}

void cuda_leave(const CudaProgram *program) {
  CuContext ignored;
  program->driver->context_pop(&ignored);
}

kiln_status cuda_device_allocate(const CudaProgram *program, CuPointer *out_pointer, int64_t size, const char *what,
                                 CudaMessage *out_message) {
  CuResult result = program->driver->memory_allocate(out_pointer, size > 0 ? (size_t)size : 1);
  if (result == CU_SUCCESS) return KILN_OK;
  *out_pointer = 0;
  size_t available = 0, total = 0;
  program->driver->memory_info(&available, &total);
  return cuda_message(program->driver, result, out_message, "%lld bytes of device memory for %s, of which %zu are free",
                      (long long)size, what, available);
}

void cuda_device_release(const CudaProgram *program, CuPointer *pointer) {
  if (*pointer != 0) program->driver->memory_free(*pointer);
  *pointer = 0;
}

/* --- loading ----------------------------------------------------------------------------------------- */

size_t cuda_step_total(const kiln_program *program) {
  return (size_t)program->prepare_step_count + program->run_step_count;
}

const kiln_step *cuda_step_at(const kiln_program *program, size_t index) {
  return index < program->prepare_step_count ? &program->prepare_steps[index]
                                             : &program->run_steps[index - program->prepare_step_count];
}

static kiln_status load_module(CudaProgram *program, uint32_t image, CudaMessage *out_message) {
  char log[512] = "";
  int options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_BYTES};
  void *values[] = {log, (void *)(uintptr_t)(sizeof log - 1)};
  const void *data = program->tables->images[image].data;
  if (data == NULL) return KILN_OK; /* a kernel of empty values */
  const void *ptx = program->tables->images[image].ptx;
  CuResult result = program->driver->module_load(&program->modules[image], data, 2, options, values);
  if ((result == CU_NO_BINARY_FOR_GPU || result == CU_INVALID_IMAGE) && ptx != NULL)
    result = program->driver->module_load(&program->modules[image], ptx, 2, options, values);
  if (result == CU_SUCCESS) return KILN_OK;
  const int version = program->driver->version;
  return cuda_message(program->driver, result, out_message,
                      "the driver, for CUDA %d.%d, cannot load code for sm_%d%s%s", version / 1000, version % 1000 / 10,
                      (int)program->tables->arch, log[0] != '\0' ? ": " : "", log);
}

static kiln_status find_function(CudaProgram *program, const CudaRunLaunch *launch, CuFunction *out_function,
                                 CudaMessage *out_message) {
  const CudaDriver *driver = program->driver;
  CuResult result = driver->module_function(out_function, program->modules[launch->image], launch->function);
  if (result == CU_SUCCESS && launch->shared_bytes > 0)
    result = driver->function_set(*out_function, CU_FUNCTION_MAX_DYNAMIC_SHARED_BYTES, launch->shared_bytes);
  if (result == CU_SUCCESS) return KILN_OK;
  return cuda_message(driver, result, out_message, "kernel '%s' with %d bytes of dynamic shared memory",
                      launch->function, (int)launch->shared_bytes);
}

static kiln_status load_code(CudaProgram *program, CudaMessage *out_message) {
  const CudaTables *tables = program->tables;
  kiln_status status = KILN_OK;
  for (uint32_t i = 0; i < tables->image_count && status == KILN_OK; i++) status = load_module(program, i, out_message);
  for (size_t s = 0; s < cuda_step_total(tables->program) && status == KILN_OK; s++)
    for (size_t l = 0; l < tables->launches[s].count && status == KILN_OK; l++)
      status = find_function(program, &tables->launches[s].items[l], &program->functions[program->first[s] + l],
                             out_message);
  return status;
}

static kiln_status open_device(CudaProgram *program, int32_t device, CudaMessage *out_message) {
  kiln_status status = find_device(program->driver, device, &program->device, out_message);
  if (status != KILN_OK) return status;
  CuResult result = program->driver->context_retain(&program->context, program->device);
  if (result != CU_SUCCESS)
    return cuda_message(program->driver, result, out_message, "GPU %d cannot be used", (int)device);
  program->retained = true;
  status = cuda_enter(program, out_message);
  if (status != KILN_OK) return status;
  status = load_code(program, out_message);
  cuda_leave(program);
  return status;
}

kiln_status cuda_program_create(const CudaTables *tables, int32_t device, const Allocator *allocator,
                                CudaProgram **out_program, CudaMessage *out_message) {
  const Allocator memory = allocator != NULL ? *allocator : (Allocator){NULL, NULL, NULL};
  const CudaDriver *driver = cuda_driver(out_message);
  if (driver == NULL) return KILN_ERROR_UNSUPPORTED;
  CudaProgram *program = cuda_host_allocate(&memory, sizeof *program);
  if (program == NULL) return cuda_out_of_memory(out_message);
  program->allocator = memory;
  program->tables = tables;
  program->driver = driver;
  const size_t steps = cuda_step_total(tables->program);
  for (size_t s = 0; s < steps; s++) program->launch_count += tables->launches[s].count;
  program->modules = cuda_host_allocate(&memory, tables->image_count * sizeof *program->modules);
  program->functions = cuda_host_allocate(&memory, program->launch_count * sizeof *program->functions);
  program->first = cuda_host_allocate(&memory, steps * sizeof *program->first);
  program->parameters = cuda_host_allocate(&memory, tables->program->parameter_count * sizeof *program->parameters);
  kiln_status status = KILN_OK;
  if (program->modules == NULL || program->functions == NULL || program->first == NULL || program->parameters == NULL)
    status = cuda_out_of_memory(out_message);
  for (size_t s = 0, next = 0; s < steps && status == KILN_OK; next += tables->launches[s++].count)
    program->first[s] = next;
  if (status == KILN_OK) status = open_device(program, device, out_message);
  if (status != KILN_OK) {
    cuda_program_destroy(program);
    return status;
  }
  *out_program = program;
  return KILN_OK;
}

static void unload(CudaProgram *program) {
  if (program->context == NULL || cuda_enter(program, NULL) != KILN_OK) return;
  cuda_device_release(program, &program->prepared);
  for (uint32_t i = 0; program->parameters != NULL && i < program->tables->program->parameter_count; i++)
    cuda_device_release(program, &program->parameters[i]);
  for (uint32_t i = 0; program->modules != NULL && i < program->tables->image_count; i++)
    if (program->modules[i] != NULL) program->driver->module_unload(program->modules[i]);
  cuda_leave(program);
}

void cuda_program_destroy(CudaProgram *program) {
  if (program == NULL) return;
  const CudaTables *tables = program->tables;
  const Allocator memory = program->allocator;
  unload(program);
  if (program->retained) program->driver->context_release(program->device);
  cuda_host_release(&memory, program->modules, tables->image_count * sizeof *program->modules);
  cuda_host_release(&memory, program->functions, program->launch_count * sizeof *program->functions);
  cuda_host_release(&memory, program->first, cuda_step_total(tables->program) * sizeof *program->first);
  cuda_host_release(&memory, program->parameters, tables->program->parameter_count * sizeof *program->parameters);
  cuda_host_release(&memory, program, sizeof *program);
}

/* --- launching --------------------------------------------------------------------------------------- */

CuPointer cuda_operand_address(const kiln_operand *operand, const Bases *bases, int64_t batch) {
  CuPointer base = 0;
  switch (operand->space) {
    case KILN_SPACE_WORKSPACE:
      base = bases->workspace;
      break;
    case KILN_SPACE_PREPARED:
      base = bases->prepared;
      break;
    case KILN_SPACE_SCRATCH:
      base = bases->temporary;
      break;
    case KILN_SPACE_PARAMETER:
      base = bases->states != NULL ? bases->states[operand->index] : 0;
      if (base == 0) base = bases->parameters[operand->index];
      break;
    case KILN_SPACE_INPUT:
      base = bases->inputs[operand->index];
      break;
    case KILN_SPACE_OUTPUT:
      base = bases->outputs[operand->index];
      break;
    default:
      break;
  }
  return base != 0 ? base + (CuPointer)(operand->offset + batch * operand->offset_per_batch) : 0;
}

/* 0 when there is nothing to do; negative when a grid cannot be as large. */
static int64_t grid_size(const CudaRunLaunch *launch, int64_t batch) {
  const int64_t work = launch->work + batch * launch->work_per_image;
  const int64_t blocks = (work + launch->work_per_block - 1) / launch->work_per_block;
  return blocks <= INT32_MAX ? blocks : -1;
}

kiln_status cuda_launch_step(const CudaProgram *program, size_t index, const Bases *bases, int64_t batch,
                             CuStream stream, CudaMessage *out_message) {
  const kiln_step *step = cuda_step_at(program->tables->program, index);
  const CudaStepLaunches *launches = &program->tables->launches[index];
  CuPointer operands[KILN_MAX_OPERANDS], scratch = bases->scratch;
  void *arguments[KILN_MAX_OPERANDS + 2];
  int images = (int)batch;
  uint32_t count = step->operand_count;
  for (uint32_t i = 0; i < count; i++) {
    operands[i] = cuda_operand_address(&step->operands[i], bases, batch);
    if (operands[i] == 0)
      return cuda_fail(out_message, KILN_ERROR_WEIGHTS, "a parameter that the program reads is missing");
    arguments[i] = &operands[i];
  }
  arguments[count] = &scratch;
  arguments[count + 1] = &images;
  for (size_t l = 0; l < launches->count; l++) {
    const CudaRunLaunch *launch = &launches->items[l];
    const int64_t blocks = grid_size(launch, batch);
    if (blocks == 0) continue;
    CuResult result = CU_INVALID_VALUE;
    if (blocks > 0)
      result = program->driver->launch(program->functions[program->first[index] + l], (unsigned)blocks,
                                       (unsigned)launch->grid_y, (unsigned)launch->grid_z, (unsigned)launch->threads, 1,
                                       1, (unsigned)launch->shared_bytes, stream, arguments, NULL);
    if (result != CU_SUCCESS)
      return cuda_message(program->driver, result, out_message, "launch of '%s' for '%s' (%lld x %d x %d blocks of %d)",
                          launch->function, step->name, (long long)blocks, (int)launch->grid_y, (int)launch->grid_z,
                          (int)launch->threads);
  }
  return KILN_OK;
}

kiln_status cuda_synchronize(const CudaProgram *program, CuStream stream, const char *what, CudaMessage *out_message) {
  CuResult result = program->driver->stream_synchronize(stream);
  return result == CU_SUCCESS ? KILN_OK : cuda_message(program->driver, result, out_message, "%s", what);
}

/* Device memory for kernels' scratch, its counters zero; *out_scratch is 0 when no kernel needs any. */
kiln_status cuda_create_scratch(const CudaProgram *program, CuStream stream, CuPointer *out_scratch,
                                CudaMessage *out_message) {
  const CudaTables *tables = program->tables;
  *out_scratch = 0;
  if (tables->scratch_bytes == 0) return KILN_OK;
  kiln_status status = cuda_device_allocate(program, out_scratch, tables->scratch_bytes, "scratch", out_message);
  if (status != KILN_OK || tables->counter_bytes == 0) return status;
  CuResult result = program->driver->memory_fill(*out_scratch, 0, (size_t)tables->counter_bytes, stream);
  return result == CU_SUCCESS ? KILN_OK : cuda_message(program->driver, result, out_message, "clearing the scratch");
}

/* --- preparing --------------------------------------------------------------------------------------- */

/* Whether a step of [first, last) reads a parameter. */
static bool parameter_read(const kiln_program *program, uint32_t parameter, size_t first, size_t last) {
  for (size_t s = first; s < last; s++) {
    const kiln_step *step = cuda_step_at(program, s);
    for (uint32_t i = 0; i < step->operand_count; i++)
      if (step->operands[i].space == KILN_SPACE_PARAMETER && step->operands[i].index == parameter) return true;
  }
  return false;
}

kiln_status cuda_upload(const CudaProgram *program, CuPointer *pointer, const kiln_port *port, const void *data,
                        CuStream stream, CudaMessage *out_message) {
  kiln_status status = KILN_OK;
  if (*pointer == 0) status = cuda_device_allocate(program, pointer, port->bytes, port->name, out_message);
  if (status != KILN_OK || port->bytes == 0) return status;
  CuResult result = program->driver->copy_to_device(*pointer, data, (size_t)port->bytes, stream);
  if (result == CU_SUCCESS) return KILN_OK;
  return cuda_message(program->driver, result, out_message, "copying '%s' to the device", port->name);
}

/* Parameters on the device while the prepare steps run; those that run steps read stay. */
typedef struct Uploads {
  CuPointer *addresses; /* in table order */
  CuPointer temporary, scratch;
  CuStream stream;
} Uploads;

static kiln_status upload_parameters(CudaProgram *program, const void *const *parameters, Uploads *uploads,
                                     CudaMessage *out_message) {
  const kiln_program *about = program->tables->program;
  kiln_status status = KILN_OK;
  for (uint32_t i = 0; i < about->parameter_count && status == KILN_OK; i++) {
    const bool prepares = parameter_read(about, i, 0, about->prepare_step_count);
    const bool runs = parameter_read(about, i, about->prepare_step_count, cuda_step_total(about));
    if (parameters[i] == NULL || (!prepares && !runs)) continue;
    CuPointer *place = runs ? &program->parameters[i] : &uploads->addresses[i];
    status = cuda_upload(program, place, &about->parameters[i], parameters[i], uploads->stream, out_message);
    uploads->addresses[i] = *place;
  }
  return status;
}

static kiln_status run_prepare(CudaProgram *program, const Uploads *uploads, CudaMessage *out_message) {
  const kiln_program *about = program->tables->program;
  const Bases bases = {.prepared = program->prepared,
                       .temporary = uploads->temporary,
                       .parameters = uploads->addresses,
                       .scratch = uploads->scratch};
  CuResult result = program->driver->memory_fill(
      program->prepared, 0, (size_t)(about->prepared_bytes > 0 ? about->prepared_bytes : 1), uploads->stream);
  if (result != CU_SUCCESS) return cuda_message(program->driver, result, out_message, "clearing the weights' memory");
  kiln_status status = KILN_OK;
  for (size_t s = 0; s < about->prepare_step_count && status == KILN_OK; s++)
    status = cuda_launch_step(program, s, &bases, 1, uploads->stream, out_message);
  if (status != KILN_OK) return status;
  return cuda_synchronize(program, uploads->stream, "preparing the weights on the GPU", out_message);
}

static kiln_status prepare_within(CudaProgram *program, const void *const *parameters, Uploads *uploads,
                                  CudaMessage *out_message) {
  const kiln_program *about = program->tables->program;
  CuResult result = program->driver->stream_create(&uploads->stream, CU_STREAM_NON_BLOCKING);
  if (result != CU_SUCCESS) return cuda_message(program->driver, result, out_message, "a stream cannot be made");
  kiln_status status = KILN_OK;
  if (program->prepared == 0)
    status = cuda_device_allocate(program, &program->prepared, about->prepared_bytes, "the weights", out_message);
  if (status == KILN_OK && about->prepare_scratch > 0)
    status = cuda_device_allocate(program, &uploads->temporary, about->prepare_scratch, "preparing the weights",
                                  out_message);
  if (status == KILN_OK) status = cuda_create_scratch(program, uploads->stream, &uploads->scratch, out_message);
  if (status == KILN_OK) status = upload_parameters(program, parameters, uploads, out_message);
  if (status == KILN_OK) status = run_prepare(program, uploads, out_message);
  /* a failed upload may still be on its way */
  program->driver->stream_synchronize(uploads->stream);
  for (uint32_t i = 0; i < about->parameter_count; i++)
    if (uploads->addresses[i] != program->parameters[i]) cuda_device_release(program, &uploads->addresses[i]);
  cuda_device_release(program, &uploads->temporary);
  cuda_device_release(program, &uploads->scratch);
  program->driver->stream_destroy(uploads->stream);
  return status;
}

kiln_status cuda_program_prepare(CudaProgram *program, const void *const *parameters, CudaMessage *out_message) {
  const size_t bytes = program->tables->program->parameter_count * sizeof(CuPointer);
  Uploads uploads = {.addresses = cuda_host_allocate(&program->allocator, bytes)};
  if (uploads.addresses == NULL) return cuda_out_of_memory(out_message);
  kiln_status status = cuda_enter(program, out_message);
  if (status == KILN_OK) {
    status = prepare_within(program, parameters, &uploads, out_message);
    cuda_leave(program);
  }
  cuda_host_release(&program->allocator, uploads.addresses, bytes);
  program->ready = status == KILN_OK;
  return status;
}
