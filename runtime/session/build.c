#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/file.h"
#include "core/runner.h"
#include "cuda_export.h"
#include "cuda_session.h"
#include "memory.h"
#include "session.h"
#include "tuning_file.h"

static Precision precision_of(kiln_precision precision) {
  switch (precision) {
    case KILN_PRECISION_STRICT:
      return PRECISION_STRICT;
    case KILN_PRECISION_FAST:
      return PRECISION_FAST;
    default:
      return PRECISION_DEFAULT;
  }
}

static void destroy_scratch(void *scratch) { arena_destroy(scratch); }

static bool build_plan_once(const Graph *graph, const BuildOptions *options, Arena *arena, Diag *diag,
                            Graph **out_graph, Plan **out_plan) {
  static const kiln_compile_options defaults;
  static const PipelineOptions quiet;
  const kiln_compile_options *compile = options->compile != NULL ? options->compile : &defaults;
  Target *target = arena_new(arena, Target);
  const size_t errors = diag_error_count(diag);
  if (cuda_wanted(compile, diag)) {
    if (!cuda_session_target(compile, arena, diag, target)) return false;
  } else if (diag_error_count(diag) > errors || !cpu_target(compile->cpu, compile->triple, arena, diag, target)) {
    return false;
  }
  Tuning measured;
  const Tuning *tuning = options->tuning;
  if (tuning == NULL && compile->tuning != NULL) {
    if (!tuning_read(compile->tuning, target, arena, diag, &measured)) return false;
    measured.locked = compile->locked != 0;
    tuning = &measured;
  }
  Graph *work = graph_clone(graph, arena);
  if (compile->max_batch < 0) {
    diag_error(diag, (Location){graph->file, 0, 0}, "max batch must be at least 1, found %lld",
               (long long)compile->max_batch);
    return false;
  }
  if (compile->max_batch > 0) work->max_batch = compile->max_batch;
  if (work->max_batch < 1) work->max_batch = 1;
  if (compile->min_batch < 0 || compile->min_batch > work->max_batch) {
    diag_error(diag, (Location){graph->file, 0, 0}, "min batch must be at least 1 and at most the max batch %lld, found %lld",
               (long long)work->max_batch, (long long)compile->min_batch);
    return false;
  }
  work->min_batch = compile->min_batch > 0 ? compile->min_batch : 1;
  if (options->train != NULL && !graph_request_training(work, options->train, diag)) return false;
  Arena *scratch = arena_create(NULL);
  if (scratch == NULL) {
    diag_error(diag, (Location){graph->file, 0, 0}, "out of memory");
    return false;
  }
  arena_defer(arena, destroy_scratch, scratch);
  jmp_buf *point = arena_on_failure(arena, NULL);
  arena_on_failure(arena, point);
  arena_on_failure(scratch, point);
  PassOptions passes = {.target = target,
                        .precision = precision_of(compile->precision),
                        .disabled = compile->disabled_passes,
                        .scratch = scratch,
                        .tuning = tuning};
  Plan *plan = NULL;
  bool done = pipeline_run(work, &passes, options->pipeline != NULL ? options->pipeline : &quiet, diag, &plan);
  arena_reset(scratch);
  if (!done) return false;
  *out_graph = work;
  *out_plan = plan;
  return true;
}

/* --- training within a limit ------------------------------------------------------------------------- */

/* Plans with so many values computed again; all of them for INT64_MAX. */
static bool plan_recomputing(const Graph *graph, const BuildOptions *options, int64_t values, bool quiet, Arena *arena,
                             Diag *diag, Graph **out_graph, Plan **out_plan) {
  TrainRequest train = *options->train;
  train.recompute = values;
  const BuildOptions own = {
      .compile = options->compile, .pipeline = quiet ? NULL : options->pipeline, .train = &train};
  return build_plan_once(graph, &own, arena, diag, out_graph, out_plan);
}

static int64_t workspace_of(const Plan *plan) {
  return plan->workspace_fixed + plan->max_batch * plan->workspace_per_batch;
}

/* The fewest values that are computed again so that the workspace fits: bisection, since more of them hardly ever need
 * more memory. */
static bool plan_within_limit(const Graph *graph, const BuildOptions *options, Arena *arena, Diag *diag,
                              Graph **out_graph, Plan **out_plan) {
  const int64_t limit = options->train->memory_limit;
  Plan *plan;
  int64_t few = 0, many;
  if (!plan_recomputing(graph, options, 0, true, arena, diag, out_graph, &plan)) return false;
  const int64_t kept = workspace_of(plan);
  if (kept <= limit) return plan_recomputing(graph, options, 0, false, arena, diag, out_graph, out_plan);
  if (!plan_recomputing(graph, options, INT64_MAX, true, arena, diag, out_graph, &plan)) return false;
  many = (*out_graph)->recompute;
  if (workspace_of(plan) > limit) {
    const int64_t least = workspace_of(plan) < kept ? workspace_of(plan) : kept;
    diag_error(diag, (Location){graph->file, 0, 0},
               "training: the workspace for batch %lld takes %lld bytes, and %lld at least when %lld values are computed "
               "again, which exceeds the limit of %lld; give a smaller batch and accumulate gradients",
               (long long)plan->max_batch, (long long)kept, (long long)least, (long long)many, (long long)limit);
    return false;
  }
  while (many - few > 1) {
    const int64_t middle = few + (many - few) / 2;
    if (!plan_recomputing(graph, options, middle, true, arena, diag, out_graph, &plan)) return false;
    *(workspace_of(plan) <= limit ? &many : &few) = middle;
  }
  return plan_recomputing(graph, options, many, false, arena, diag, out_graph, out_plan);
}

bool build_plan(const Graph *graph, const BuildOptions *options, Arena *arena, Diag *diag, Graph **out_graph,
                Plan **out_plan) {
  if (options->train != NULL && options->train->memory_limit > 0)
    return plan_within_limit(graph, options, arena, diag, out_graph, out_plan);
  return build_plan_once(graph, options, arena, diag, out_graph, out_plan);
}

/* Parameter data in table order; every parameter that a prepare or run step reads must have a value. */
static bool parameter_pointers(const Graph *graph, const Plan *plan, Arena *arena, Diag *diag,
                               const void ***out_pointers) {
  const void **pointers = arena_array(arena, plan->parameter_count + 1, const void *);
  bool *needed = arena_array(arena, plan->parameter_count + 1, bool);
  for (size_t k = 0; k < plan->kernel_count; k++)
    for (int32_t i = 0; i < plan->kernels[k].input_count; i++) {
      const Storage *storage = &plan->kernels[k].inputs[i].storage;
      if (storage->space == SPACE_PARAMETER) needed[storage->index] = true;
    }
  bool complete = true;
  for (size_t i = 0; i < plan->parameter_count; i++) {
    const Parameter *parameter = NULL;
    for (size_t p = 0; p < graph->parameter_count && parameter == NULL; p++)
      /* the plan keeps the graph's order, possibly with some left out */
      if (strcmp(graph->parameters[(i + p) % graph->parameter_count].name, plan->parameters[i].name) == 0)
        parameter = &graph->parameters[(i + p) % graph->parameter_count];
    if (plan->parameters[i].state) continue; /* the caller's, at every step */
    if (parameter != NULL && parameter->value != NULL)
      pointers[i] = parameter->value->data;
    else if (needed[i]) {
      diag_error(diag, (Location){graph->file, 0, 0},
                 "parameter '%s' has no value; give a weights file or initialise the model", plan->parameters[i].name);
      complete = false;
    }
  }
  *out_pointers = pointers;
  return complete;
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static CpuOptions cpu_options(const kiln_compile_options *options) {
  if (options == NULL) return (CpuOptions){0};
  return (CpuOptions){.threads = (int32_t)options->threads, .cache_dir = options->cache_dir};
}

static const Allocator malloc_and_free = {NULL, NULL, NULL};

static bool run_prepare(const kiln_program *program, const void *const *parameters, void *blob, uint32_t threads,
                        Arena *scratch, Diag *diag, kiln_status *out_status) {
  threads = threads > 0 ? threads : 1;
  void *temporary = memory_blob(&malloc_and_free, scratch, (size_t)program_prepare_bytes(program, threads));
  Pool *pool = threads > 1 ? pool_create(threads, NULL) : NULL;
  kiln_io io = {0, pool != NULL ? pool_parallel_for : NULL, pool, pool != NULL ? threads : 1, 0};
  int status = program->prepare(parameters, blob, temporary, &io);
  pool_destroy(pool);
  if (status != KILN_OK) {
    *out_status = (kiln_status)status;
    diag_error(diag, (Location){program->name, 0, 0}, "preparing the weights failed: %s",
               kiln_status_text((kiln_status)status));
  }
  return status == KILN_OK;
}

bool build_executable(const Graph *graph, const Plan *plan, const kiln_compile_options *options,
                      kiln_executable *executable, Arena *scratch, Diag *diag, kiln_status *out_status) {
  CpuOptions cpu = cpu_options(options);
  uint32_t threads = (uint32_t)cpu_threads(cpu.threads);
  const bool on_gpu = plan->target->arch > 0;
  if (!on_gpu && !cpu_target_runnable(plan->target)) {
    diag_error(diag, (Location){graph->file, 0, 0}, "this processor cannot run %s code", plan->target->isa);
    *out_status = KILN_ERROR_CPU;
    return false;
  }
  const void **pointers;
  if (!parameter_pointers(graph, plan, scratch, diag, &pointers)) {
    *out_status = KILN_ERROR_WEIGHTS;
    return false;
  }
  if (on_gpu) return cuda_session_build(plan, options, pointers, executable, scratch, diag, out_status);
  double started = seconds_now();
  cpu.in_process = true;
  CpuObjects objects;
  if (!cpu_compile(plan, &cpu, scratch, diag, &objects)) return false;
  if (!jit_load(&objects, executable->arena, diag, &executable->program)) {
    *out_status = KILN_ERROR_INTERNAL;
    return false;
  }
  double compiled = seconds_now();
  executable->compile_seconds = compiled - started;
  void *blob = memory_blob(&executable->allocator, executable->arena, (size_t)executable->program->prepared_bytes);
  if (!run_prepare(executable->program, pointers, blob, threads, scratch, diag, out_status)) return false;
  executable->blob = blob;
  /* run steps may read small parameters as they are: keep copies, the model may go away */
  executable->parameters = arena_array(executable->arena, plan->parameter_count + 1, const void *);
  for (size_t k = plan->prepare_count; k < plan->kernel_count; k++)
    for (int32_t i = 0; i < plan->kernels[k].input_count; i++) {
      const PlanTensor *tensor = &plan->kernels[k].inputs[i];
      int32_t index = tensor->storage.index;
      if (tensor->storage.space != SPACE_PARAMETER || executable->parameters[index] != NULL) continue;
      if (plan->parameters[index].state) continue;
      size_t bytes = (size_t)(shape_elements_per_image(&tensor->shape) * data_type_bytes(tensor->dtype));
      void *copy = arena_alloc_aligned(executable->arena, bytes, KILN_ALIGNMENT);
      memcpy(copy, pointers[index], bytes);
      executable->parameters[index] = copy;
    }
  executable->weights = (kiln_weights){executable->program, blob, executable->parameters};
  executable->prepare_seconds = seconds_now() - compiled;
  return true;
}

bool build_prepared(const Graph *graph, const Plan *plan, const kiln_compile_options *options, Arena *arena, Diag *diag,
                    void **out_blob) {
  const void **pointers;
  if (!parameter_pointers(graph, plan, arena, diag, &pointers)) return false;
  CpuOptions cpu = cpu_options(options);
  uint32_t threads = (uint32_t)cpu_threads(cpu.threads);
  /* Only the prepare steps run here, on this machine, over the layouts of the plan's target. They hold no fused
   * multiply-adds, so every machine computes the same bytes. */
  Target host;
  if (!cpu_target("native", NULL, arena, diag, &host)) return false;
  host.vector_lanes = plan->target->vector_lanes;
  Plan prepare = *plan;
  prepare.target = cpu_target_runnable(plan->target) ? plan->target : &host;
  prepare.kernel_count = plan->prepare_count;
  cpu.in_process = true;
  CpuObjects objects;
  const kiln_program *program;
  if (!cpu_compile(&prepare, &cpu, arena, diag, &objects)) return false;
  if (!jit_load(&objects, arena, diag, &program)) return false;
  kiln_status status;
  *out_blob = memory_blob(&malloc_and_free, arena, (size_t)plan->prepared_bytes);
  return run_prepare(program, pointers, *out_blob, threads, arena, diag, &status);
}

const char *library_base_name(const char *path, Arena *arena) {
  const char *slash = strrchr(path, '/');
  const char *base = slash != NULL ? slash + 1 : path;
  if (strncmp(base, "lib", 3) == 0 && base[3] != '\0' && base[3] != '.') base += 3;
  const char *dot = strrchr(base, '.');
  return dot != NULL && dot != base ? arena_string_n(arena, base, (size_t)(dot - base)) : arena_string(arena, base);
}

/* "dir/libNAME.so" and ".h" → "dir/NAME.h" */
static const char *beside(const char *path, const char *ending, Arena *arena) {
  const char *slash = strrchr(path, '/');
  int folder = slash != NULL ? (int)(slash + 1 - path) : 0;
  return arena_format(arena, "%.*s%s%s", folder, path, library_base_name(path, arena), ending);
}

uint64_t weights_checksum(const void *data, size_t size) {
  const unsigned char *bytes = data;
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static bool write_weights_file(const Plan *plan, const void *blob, const char *path, Diag *diag) {
  kiln_weights_head head = {.identity = plan->identity, .prepared_bytes = plan->prepared_bytes};
  memcpy(head.magic, "KILNWTS1", sizeof head.magic);
  head.checksum = weights_checksum(blob, (size_t)plan->prepared_bytes);
  FilePiece pieces[] = {{&head, sizeof head}, {blob, (size_t)plan->prepared_bytes}};
  return file_write(path, pieces, 2, diag);
}

static bool build_gpu_library(const Graph *graph, const Plan *plan, const kiln_compile_options *options,
                              const char *path, Arena *scratch, Diag *diag) {
  const bool embed = options->weights == KILN_WEIGHTS_EMBED;
  const void **pointers = NULL;
  if (options->weights == KILN_WEIGHTS_FILE) {
    diag_error(diag, (Location){path, 0, 0}, "libraries for GPUs hold the weights or take the caller's: expected mode "
                                             "embed or caller, found file");
    return false;
  }
  if (embed && !parameter_pointers(graph, plan, scratch, diag, &pointers)) return false;
  if (!cuda_export_library(plan, options, pointers, path, scratch, diag)) return false;
  Text header;
  text_init(&header, scratch);
  cuda_export_header(&header, plan, embed);
  FilePiece piece = {header.data, header.size};
  return file_write(beside(path, ".h", scratch), &piece, 1, diag);
}

bool build_library(const Graph *graph, const Plan *plan, const kiln_compile_options *options, const char *path,
                   Arena *scratch, Diag *diag) {
  if (plan->target->arch > 0) return build_gpu_library(graph, plan, options, path, scratch, diag);
  kiln_weights_mode mode = options != NULL ? options->weights : KILN_WEIGHTS_EMBED;
  for (size_t k = plan->prepare_count; k < plan->kernel_count; k++)
    for (int32_t i = 0; i < plan->kernels[k].input_count && mode != KILN_WEIGHTS_CALLER; i++)
      if (plan->kernels[k].inputs[i].storage.space == SPACE_PARAMETER &&
          !plan->parameters[plan->kernels[k].inputs[i].storage.index].state) {
        diag_error(diag, plan->kernels[k].location, "internal: a run step of '%s' reads an unprepared parameter",
                   plan->kernels[k].name);
        return false;
      }
  CpuOptions cpu = cpu_options(options);
  cpu.embed = mode == KILN_WEIGHTS_EMBED;
  CpuObjects objects;
  if (!cpu_compile(plan, &cpu, scratch, diag, &objects)) return false;
  void *blob = NULL;
  if (mode != KILN_WEIGHTS_CALLER && !build_prepared(graph, plan, options, scratch, diag, &blob)) return false;
  Code *all = arena_array(scratch, objects.count + 1, Code);
  memcpy(all, objects.objects, objects.count * sizeof *all);
  size_t count = objects.count;
  if (mode == KILN_WEIGHTS_EMBED) {
    const char *symbol = arena_format(scratch, "%s_embedded_weights", objects.symbol);
    if (!elf_blob(plan->target, symbol, blob, (size_t)plan->prepared_bytes, scratch, diag, &all[count++])) return false;
  }
  Text header;
  text_init(&header, scratch);
  static const WeightsMode modes[] = {WEIGHTS_EMBED, WEIGHTS_FILE, WEIGHTS_CALLER};
  header_print(&header, plan, &objects, modes[mode], 0);
  FilePiece piece = {header.data, header.size};
  const char *soname = arena_format(scratch, "lib%s.so", objects.symbol);
  if (!link_objects(plan->target, all, count, soname, false, path, scratch, diag)) return false;
  if (!file_write(beside(path, ".h", scratch), &piece, 1, diag)) return false;
  return mode != KILN_WEIGHTS_FILE || write_weights_file(plan, blob, beside(path, ".weights", scratch), diag);
}
