#include "cuda_session.h"

#include <string.h>
#include <time.h>

#include "core/cuda_library.h"

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- options ----------------------------------------------------------------------------------------- */

bool cuda_wanted(const kiln_compile_options *options, Diag *diag) {
  int32_t device;
  if (options == NULL || options->device == NULL || strcmp(options->device, "cpu") == 0) return false;
  if (cuda_device_parse(options->device, &device)) return true;
  diag_error(diag, (Location){0}, "device: expected cpu, cuda or cuda:N, found '%s'", options->device);
  return false;
}

/* Tensor cores add 11-bit products; three of them come near f32, see MATH_3XTF32. */
MathMode cuda_math(const kiln_compile_options *options, int32_t arch) {
  static const MathMode modes[] = {[KILN_MATH_FP32] = MATH_FP32,
                                   [KILN_MATH_3XTF32] = MATH_3XTF32,
                                   [KILN_MATH_TF32] = MATH_TF32,
                                   [KILN_MATH_BF16] = MATH_BF16,
                                   [KILN_MATH_FP16] = MATH_FP16};
  if (options->math != KILN_MATH_DEFAULT) return modes[options->math];
  if (options->precision == KILN_PRECISION_STRICT || arch < 80) return MATH_FP32;
  return options->precision == KILN_PRECISION_FAST ? MATH_TF32 : MATH_3XTF32;
}

bool cuda_session_target(const kiln_compile_options *options, Arena *arena, Diag *diag, Target *out_target) {
  int32_t device = 0;
  CudaDeviceInfo info;
  CudaMessage message;
  if (options->math > KILN_MATH_FP16) {
    diag_error(diag, (Location){0}, "math: %d is not a value of kiln_math", (int)options->math);
    return false;
  }
  if (options->cuda_arch != NULL) {
    Target known;
    if (!cuda_target(options->cuda_arch, NULL, MATH_FP32, arena, diag, &known)) return false;
    return cuda_target(options->cuda_arch, NULL, cuda_math(options, known.arch), arena, diag, out_target);
  }
  cuda_device_parse(options->device, &device);
  if (cuda_device_info(device, &info, &message) != KILN_OK) {
    diag_error(diag, (Location){0}, "%s", message.text);
    return false;
  }
  return cuda_device_target(device, cuda_math(options, info.arch), arena, diag, out_target);
}

/* --- executables ------------------------------------------------------------------------------------- */

static void destroy_program(void *program) { cuda_program_destroy(program); }

static bool report(const CudaMessage *message, kiln_status status, Diag *diag, kiln_status *out_status) {
  *out_status = status;
  diag_error(diag, (Location){0}, "%s", message->text);
  return false;
}

bool cuda_session_build(const Plan *plan, const kiln_compile_options *options, const void *const *parameters,
                        kiln_executable *executable, Arena *scratch, Diag *diag, kiln_status *out_status) {
  CudaMessage message;
  CudaTables *tables;
  int32_t device = 0;
  cuda_device_parse(options->device, &device);
  double started = seconds_now();
  *out_status = KILN_ERROR_UNSUPPORTED;
  if (cuda_device_count(&message) < 0) return report(&message, message.status, diag, out_status);
  if (!cuda_tables_compile(plan, (int32_t)options->threads, options->cache_dir, scratch, executable->arena, diag,
                           &tables))
    return false;
  kiln_status status = cuda_program_create(tables, device, &executable->allocator, &executable->cuda, &message);
  if (status != KILN_OK) return report(&message, status, diag, out_status);
  arena_defer(executable->arena, destroy_program, executable->cuda);
  double compiled = seconds_now();
  executable->compile_seconds = compiled - started;
  status = cuda_program_prepare(executable->cuda, parameters, &message);
  if (status != KILN_OK) return report(&message, status, diag, out_status);
  executable->program = tables->program;
  executable->parameters = arena_array(executable->arena, plan->parameter_count + 1, const void *);
  executable->weights = (kiln_weights){executable->program, NULL, executable->parameters};
  executable->prepare_seconds = seconds_now() - compiled;
  return true;
}

bool cuda_session_program(const kiln_program *program) {
  return strncmp(program->triple, CUDA_TRIPLE, strlen(CUDA_TRIPLE)) == 0;
}

bool cuda_session_open(const kiln_program *program, const void *const *parameters, kiln_executable *executable,
                       Diag *diag, kiln_status *out_status) {
  const CudaLibrary *library = program->embedded;
  CudaMessage message;
  const void **embedded = arena_array(executable->arena, program->parameter_count + 1, const void *);
  if (parameters == NULL && !cuda_library_parameters(library, embedded)) {
    *out_status = KILN_ERROR_WEIGHTS;
    diag_error(diag, (Location){program->name, 0, 0}, "the library holds no weights: give a safetensors file");
    return false;
  }
  kiln_status status = cuda_program_create(library->tables, 0, &executable->allocator, &executable->cuda, &message);
  if (status != KILN_OK) return report(&message, status, diag, out_status);
  arena_defer(executable->arena, destroy_program, executable->cuda);
  status = cuda_program_prepare(executable->cuda, parameters != NULL ? parameters : embedded, &message);
  if (status != KILN_OK) return report(&message, status, diag, out_status);
  executable->program = program;
  executable->weights = (kiln_weights){program, NULL, executable->parameters};
  return true;
}

/* --- contexts ---------------------------------------------------------------------------------------- */

static kiln_status set_error(const kiln_context *context, kiln_status status, const CudaMessage *message,
                             kiln_error *error) {
  return error_set(error, status, "%s: %s", context->executable->program->name, message->text);
}

kiln_status cuda_session_context(kiln_context *context, kiln_error *error) {
  CudaMessage message;
  kiln_status status = cuda_context_create(context->executable->cuda, context->max_batch, &context->cuda, &message);
  return status == KILN_OK ? KILN_OK : set_error(context, status, &message, error);
}

kiln_status cuda_session_run(kiln_context *context, int64_t batch, const void *const *inputs, void *const *outputs,
                             kiln_error *error) {
  CudaMessage message;
  kiln_status status = cuda_context_run(context->cuda, batch, inputs, outputs, &message);
  return status == KILN_OK ? KILN_OK : set_error(context, status, &message, error);
}

kiln_status cuda_session_set_state(kiln_context *context, void *const *states, kiln_error *error) {
  CudaMessage message;
  kiln_status status = cuda_context_set_state(context->cuda, states, &message);
  return status == KILN_OK ? KILN_OK : set_error(context, status, &message, error);
}

kiln_status cuda_session_fetch_state(kiln_context *context, kiln_error *error) {
  CudaMessage message;
  kiln_status status = cuda_context_fetch_state(context->cuda, &message);
  return status == KILN_OK ? KILN_OK : set_error(context, status, &message, error);
}

kiln_status cuda_session_run_steps(kiln_context *context, int64_t batch, const void *const *inputs,
                                   void *const *outputs, kiln_observer observe, void *observer_context,
                                   kiln_error *error) {
  CudaMessage message;
  kiln_status status =
      cuda_context_run_steps(context->cuda, batch, inputs, outputs, observe, observer_context, &message);
  return status == KILN_OK ? KILN_OK : set_error(context, status, &message, error);
}
