#include "hand_plan.h"

#include <string.h>

#include "base/checked.h"

PlanTensor hand_tensor(const char *name, Shape shape, Space space, int32_t index) {
  PlanTensor tensor = {.name = name, .dtype = DTYPE_F32, .shape = shape};
  tensor.storage.space = space;
  tensor.storage.index = index;
  hand_layout(&tensor, (Layout){LAYOUT_PLAIN, 0}, NULL, 0);
  return tensor;
}

void hand_layout(PlanTensor *tensor, Layout layout, const int32_t *halo, int64_t row_padding) {
  Storage *storage = &tensor->storage;
  int32_t rank = tensor->shape.rank;
  int64_t dims[SHAPE_MAX_RANK];
  for (int32_t dim = 0; dim < rank; dim++)
    dims[dim] = tensor->shape.dims[dim] == DIM_BATCH ? 1 : tensor->shape.dims[dim];
  tensor->layout = layout;
  if (halo != NULL) memcpy(storage->halo, halo, sizeof storage->halo);
  int64_t block = layout.block > 1 ? layout.block : 1, inner = block;
  int32_t split = block == 1 ? -1 : layout.kind == LAYOUT_CHANNEL_BLOCK ? 1 : 0;
  if (split >= 0) dims[split] = ceil_div(dims[split], block);
  if (layout.kind == LAYOUT_CHANNEL_LAST) {
    static const int order[] = {1, 3, 2, 0};
    for (int i = 0; i < 4; i++) {
      const int dim = order[i];
      storage->stride[dim] = inner;
      inner *= dims[dim] + (dim >= 2 ? storage->halo[dim - 2] + storage->halo[dim] : 0);
      if (dim == 3) inner += row_padding;
    }
    storage->origin = storage->halo[0] * storage->stride[2] + storage->halo[1] * storage->stride[3];
    storage->bytes = inner * 4;
    return;
  }
  for (int32_t dim = rank - 1; dim >= 0; dim--) {
    storage->stride[dim] = inner;
    int64_t extent = dims[dim];
    if (rank == 4 && dim >= 2) extent += storage->halo[dim - 2] + storage->halo[dim];
    inner *= extent;
    if (rank == 4 && dim == 3) inner += row_padding;
  }
  if (rank == 4) storage->origin = storage->halo[0] * storage->stride[2] + storage->halo[1] * storage->stride[3];
  storage->bytes = inner * 4;
  if (layout.kind == LAYOUT_BATCH_BLOCK) storage->bytes /= block; /* an image's share */
}

int64_t hand_offset(const PlanTensor *tensor, const int64_t *index) {
  int64_t offset = tensor->storage.origin, block = tensor->layout.block;
  int32_t split = block <= 1 ? -1 : tensor->layout.kind == LAYOUT_CHANNEL_BLOCK ? 1 : 0;
  for (int32_t dim = 0; dim < tensor->shape.rank; dim++)
    offset += (dim == split ? index[dim] / block : index[dim]) * tensor->storage.stride[dim];
  return split >= 0 ? offset + index[split] % block : offset;
}

bool hand_next(const Shape *shape, int64_t *index) {
  for (int32_t dim = shape->rank - 1; dim >= 0; dim--) {
    if (++index[dim] < shape->dims[dim]) return true;
    index[dim] = 0;
  }
  return false;
}

PlanKernel *hand_kernel(Arena *arena, OpCode op, PlanTensor output, const PlanTensor *inputs, int32_t count) {
  PlanKernel *kernel = arena_new(arena, PlanKernel);
  *kernel = (PlanKernel){
      .name = output.name,
      .op = op,
      .attrs = attrs_default(),
      .output = output,
      .inputs = arena_copy(arena, inputs, (size_t)count * sizeof *inputs),
      .input_count = count,
      .op_input_count = count,
  };
  return kernel;
}

Plan *hand_plan(Arena *arena, const char *name, const Target *target, PlanKernel *kernel, int64_t max_batch) {
  Plan *plan = arena_new(arena, Plan);
  *plan = (Plan){
      .arena = arena,
      .name = name,
      .target = target,
      .max_batch = max_batch,
      .kernels = kernel,
      .kernel_count = 1,
      .inputs = arena_array(arena, (size_t)kernel->input_count, PlanPort),
      .input_count = (size_t)kernel->input_count,
      .outputs = arena_new(arena, PlanPort),
      .output_count = 1,
      .identity = 42,
  };
  for (int32_t i = 0; i < kernel->input_count; i++) {
    const PlanTensor *input = &kernel->inputs[i];
    plan->inputs[i] = (PlanPort){input->name, input->dtype, input->shape};
  }
  plan->outputs[0] = (PlanPort){kernel->output.name, kernel->output.dtype, kernel->output.shape};
  return plan;
}
