#include "cuda_build.h"

#include <string.h>

#include "base/checked.h"
#include "cuda/nvrtc.h"

/* --- devices ----------------------------------------------------------------------------------------- */

bool cuda_device_parse(const char *name, int32_t *out_device) {
  int64_t number = 0;
  if (name == NULL || strncmp(name, "cuda", 4) != 0) return false;
  if (name[4] != '\0' && (name[4] != ':' || !parse_int(name + 5, &number) || number < 0 || number > 1023)) return false;
  *out_device = (int32_t)number;
  return true;
}

bool cuda_device_target(int32_t device, MathMode math, Arena *arena, Diag *diag, Target *out_target) {
  CudaDeviceInfo info;
  CudaMessage message;
  if (cuda_device_info(device, &info, &message) != KILN_OK) {
    diag_error(diag, (Location){0}, "%s", message.text);
    return false;
  }
  const CudaDevice known = {.name = arena_string(arena, info.name),
                            .arch = info.arch,
                            .multiprocessors = info.multiprocessors,
                            .shared_bytes = info.shared_bytes,
                            .l2_bytes = info.l2_bytes};
  return cuda_target(NULL, &known, math, arena, diag, out_target);
}

/* --- tables ------------------------------------------------------------------------------------------ */

static uint32_t abi_dtype(DataType type) {
  switch (type) {
    case DTYPE_I64:
      return KILN_I64;
    case DTYPE_BF16:
      return KILN_BF16;
    case DTYPE_F16:
      return KILN_F16;
    default:
      return KILN_F32;
  }
}

static int64_t image_bytes(const Shape *shape, DataType type) {
  return shape_elements_per_image(shape) * data_type_bytes(type);
}

static kiln_port *ports_build(const PlanPort *list, size_t count, Arena *arena) {
  kiln_port *ports = arena_array(arena, count, kiln_port);
  for (size_t i = 0; i < count; i++) {
    const PlanPort *from = &list[i];
    ports[i] = (kiln_port){.name = arena_string(arena, from->name),
                           .dtype = abi_dtype(from->dtype),
                           .rank = (uint32_t)from->shape.rank,
                           .bytes = image_bytes(&from->shape, from->dtype),
                           .batched = shape_batched(&from->shape),
                           .role = from->state ? KILN_ROLE_STATE : KILN_ROLE_PLAIN};
    for (int32_t d = 0; d < from->shape.rank; d++) ports[i].dims[d] = from->shape.dims[d];
  }
  return ports;
}

/* A batched value of the workspace lies in the per-image part, whose offsets grow with the batch. */
static kiln_operand operand_of(const Plan *plan, const PlanTensor *tensor) {
  const Storage *storage = &tensor->storage;
  const bool per_image = storage->space == SPACE_WORKSPACE && shape_batched(&tensor->shape) && !plan->fixed_batch;
  return (kiln_operand){.space = (uint32_t)storage->space - 1,
                        .index = (uint32_t)storage->index,
                        .offset = (per_image ? plan->workspace_fixed : storage->offset) + storage->delta,
                        .offset_per_batch = per_image ? storage->offset : 0};
}

/* Layouts of GPUs do not split a dimension. */
static kiln_view view_of(const PlanTensor *tensor) {
  kiln_view view = {.dtype = abi_dtype(layout_stored_type(tensor->layout, tensor->dtype)),
                    .rank = (uint32_t)tensor->shape.rank,
                    .origin = tensor->storage.origin,
                    .block = 1};
  for (int32_t d = 0; d < tensor->shape.rank; d++) {
    view.dims[d] = tensor->shape.dims[d];
    view.stride[d] = tensor->storage.stride[d];
  }
  return view;
}

static void add_operand(const Plan *plan, const PlanTensor *tensor, kiln_step *step, kiln_operand *operands) {
  const double bytes = (double)image_bytes(&tensor->shape, layout_stored_type(tensor->layout, tensor->dtype));
  *(shape_batched(&tensor->shape) ? &step->bytes_per_batch : &step->bytes) += bytes;
  operands[step->operand_count++] = operand_of(plan, tensor);
}

static bool step_build(const Plan *plan, const PlanKernel *kernel, Arena *arena, Diag *diag, kiln_step *out_step) {
  const int32_t count = 1 + kernel->input_count + kernel->reduction_count;
  if (count > KILN_MAX_OPERANDS) {
    diag_error(diag, kernel->location, "'%s' has %d operands after fusion, at most %d are possible", kernel->name,
               (int)count, (int)KILN_MAX_OPERANDS);
    return false;
  }
  const char *op = op_info(kernel->op)->name, *algorithm = NULL;
  if (kernel->choice.algorithm != ALGORITHM_DEFAULT) algorithm = algorithm_name(kernel->choice.algorithm);
  kiln_operand *operands = arena_array(arena, (size_t)count, kiln_operand);
  *out_step = (kiln_step){.name = arena_string(arena, kernel->name),
                          .kind = algorithm != NULL ? arena_format(arena, "%s/%s", op, algorithm) : op,
                          .operands = operands,
                          .flops = kernel->flops_fixed,
                          .flops_per_batch = kernel->flops,
                          .view = view_of(&kernel->output)};
  add_operand(plan, &kernel->output, out_step, operands);
  for (int32_t i = 0; i < kernel->input_count; i++) add_operand(plan, &kernel->inputs[i], out_step, operands);
  for (int32_t i = 0; i < kernel->reduction_count; i++)
    add_operand(plan, &kernel->reductions[i].output, out_step, operands);
  return true;
}

static CudaStepLaunches launches_build(const CudaProgramText *text, uint32_t code, Arena *arena) {
  const CudaCode *from = &text->codes[code];
  CudaRunLaunch *items = arena_array(arena, from->launch_count, CudaRunLaunch);
  for (size_t i = 0; i < from->launch_count; i++) {
    const CudaLaunch *launch = &from->launches[i];
    items[i] = (CudaRunLaunch){.image = code,
                               .threads = launch->threads,
                               .shared_bytes = launch->shared_bytes,
                               .grid_y = launch->grid_y,
                               .grid_z = launch->grid_z,
                               .function = arena_string(arena, launch->function),
                               .work = launch->work,
                               .work_per_image = launch->work_per_image,
                               .work_per_block = launch->work_per_block};
  }
  return (CudaStepLaunches){items, from->launch_count};
}

/* All of the scratch for the largest batch: it begins with the counters. */
static bool scratch_size(const Plan *plan, const CudaProgramText *text, Diag *diag, CudaTables *tables) {
  for (size_t i = 0; i < text->code_count; i++) {
    const CudaCode *code = &text->codes[i];
    int64_t bytes;
    if (!checked_mul(code->scratch_per_image, plan->max_batch, &bytes) || !checked_add(bytes, code->scratch, &bytes) ||
        !checked_add(bytes, CUDA_COUNTER_BYTES, &bytes)) {
      diag_error(diag, plan->kernels[code->kernel].location, "'%s' needs more memory than can be addressed",
                 plan->kernels[code->kernel].name);
      return false;
    }
    if (!code->counters && bytes == CUDA_COUNTER_BYTES) continue;
    tables->counter_bytes = CUDA_COUNTER_BYTES;
    if (bytes > tables->scratch_bytes) tables->scratch_bytes = bytes;
  }
  return true;
}

static int not_by_itself(const kiln_weights *weights, void *workspace, const kiln_io *io) {
  (void)weights, (void)workspace, (void)io;
  return KILN_ERROR_UNSUPPORTED;
}

static int not_prepared_by_itself(const void *const *parameters, void *prepared, void *scratch, const kiln_io *io) {
  (void)parameters, (void)prepared, (void)scratch, (void)io;
  return KILN_ERROR_UNSUPPORTED;
}

static int runs_anywhere(void) { return KILN_OK; }

/* Where trained parameters lie in the state. */
static kiln_slot *slots_build(const Plan *plan, Arena *arena) {
  kiln_slot *slots = arena_array(arena, plan->slot_count, kiln_slot);
  for (size_t i = 0; i < plan->slot_count; i++) {
    const StateSlot *from = &plan->slots[i];
    slots[i] = (kiln_slot){.name = arena_string(arena, from->name),
                           .rank = (uint32_t)from->shape.rank,
                           .group = (uint32_t)from->group,
                           .offset = from->offset,
                           .decayed = from->decayed};
    for (int32_t d = 0; d < from->shape.rank; d++) slots[i].dims[d] = from->shape.dims[d];
  }
  return slots;
}

static kiln_program *program_build(const Plan *plan, const kiln_step *steps, Arena *arena) {
  kiln_program *program = arena_new(arena, kiln_program);
  const kiln_port *outputs = ports_build(plan->outputs, plan->output_count, arena);
  *program = (kiln_program){
      .abi_version = KILN_ABI_VERSION,
      .struct_size = sizeof *program,
      .name = arena_string(arena, plan->name),
      .kiln_version = KILN_VERSION,
      .isa = arena_string(arena, plan->target->isa),
      .triple = arena_string(arena, plan->target->triple),
      .identity = plan->identity,
      .inputs = ports_build(plan->inputs, plan->input_count, arena),
      .outputs = outputs,
      .parameters = ports_build(plan->parameters, plan->parameter_count, arena),
      .hooks = plan->hook_output_count > 0 ? outputs + (plan->output_count - plan->hook_output_count) : NULL,
      .input_count = (uint32_t)plan->input_count,
      .output_count = (uint32_t)plan->output_count,
      .parameter_count = (uint32_t)plan->parameter_count,
      .hook_count = (uint32_t)plan->hook_output_count,
      .prepare_steps = steps,
      .run_steps = steps + plan->prepare_count,
      .prepare_step_count = (uint32_t)plan->prepare_count,
      .run_step_count = (uint32_t)(plan->kernel_count - plan->prepare_count),
      .max_batch = plan->max_batch,
      .max_threads = CPU_DEFAULT_MAX_THREADS,
      .workspace_fixed = plan->workspace_fixed,
      .workspace_per_batch = plan->workspace_per_batch,
      .prepared_bytes = plan->prepared_bytes,
      .prepare_scratch = plan->prepare_scratch,
      .check = runs_anywhere,
      .prepare = not_prepared_by_itself,
      .run = not_by_itself,
      .metadata = arena_string(arena, plan->metadata != NULL ? plan->metadata : ""),
      .slots = slots_build(plan, arena),
      .slot_count = (uint32_t)plan->slot_count,
      .group_count = (uint32_t)plan->group_rows,
      .batch_unit = 1,
  };
  return program;
}

bool cuda_tables_build(const Plan *plan, const CudaProgramText *text, const Code *images, Arena *arena, Diag *diag,
                       CudaTables **out_tables) {
  kiln_step *steps = arena_array(arena, plan->kernel_count + 1, kiln_step);
  CudaStepLaunches *launches = arena_array(arena, plan->kernel_count + 1, CudaStepLaunches);
  CudaImage *binaries = arena_array(arena, text->code_count + 1, CudaImage);
  CudaTables *tables = arena_new(arena, CudaTables);
  for (size_t k = 0; k < plan->kernel_count; k++) {
    if (!step_build(plan, &plan->kernels[k], arena, diag, &steps[k])) return false;
    launches[k] = launches_build(text, text->code_of[k], arena);
  }
  for (size_t i = 0; i < text->code_count; i++) {
    if (images[i].size == 0) continue;
    void *copy = arena_alloc_aligned(arena, images[i].size, KILN_ALIGNMENT);
    binaries[i] = (CudaImage){memcpy(copy, images[i].data, images[i].size), images[i].size, NULL};
  }
  tables->program = program_build(plan, steps, arena);
  tables->images = binaries;
  tables->image_count = (uint32_t)text->code_count;
  tables->launches = launches;
  tables->arch = plan->target->arch;
  if (!scratch_size(plan, text, diag, tables)) return false;
  *out_tables = tables;
  return true;
}

bool cuda_tables_compile(const Plan *plan, int32_t threads, const char *cache_dir, Arena *scratch, Arena *arena,
                         Diag *diag, CudaTables **out_tables) {
  CudaProgramText text;
  Code *images;
  const NvrtcOptions options = {.arch = plan->target->isa, .threads = threads, .cache_dir = cache_dir};
  return cuda_generate(plan, scratch, diag, &text) && nvrtc_compile(plan, &text, &options, scratch, diag, &images) &&
         cuda_tables_build(plan, &text, images, arena, diag, out_tables);
}
