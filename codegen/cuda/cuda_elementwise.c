/* Element-wise kernels: the op's expression over operands that broadcast, then the epilogue. Dimensions that follow
 * each other in the memory of all operands alike become one, so that vectors run over as much as possible. */
#include <assert.h>
#include <string.h>

#include "cuda_emit.h"

/* An axis of the loop: its extent (DIM_BATCH for the batch), and every operand's stride along it, the output's first.
 */
typedef struct Axis {
  int64_t extent, strides[CUDA_MAX_OPERANDS];
} Axis;

static int64_t operand_stride(const PlanTensor *tensor, const Shape *output, int32_t dim) {
  int32_t own = dim - (output->rank - tensor->shape.rank);
  return own < 0 || tensor->shape.dims[own] == 1 ? 0 : tensor->storage.stride[own];
}

/* `inner` follows `outer` without a gap in all operands. */
static bool can_merge(const Axis *outer, const Axis *inner, int32_t operands) {
  if (outer->extent == DIM_BATCH || inner->extent == DIM_BATCH) return false;
  for (int32_t i = 0; i < operands; i++)
    if (outer->strides[i] != inner->strides[i] * inner->extent) return false;
  return true;
}

static int32_t collect_axes(const PlanKernel *kernel, Axis *axes) {
  const Shape *shape = &kernel->output.shape;
  int32_t order[SHAPE_MAX_RANK], count = 0, operands = kernel->input_count + 1;
  cuda_order_dims(&kernel->output, order);
  for (int32_t k = 0; k < shape->rank; k++) {
    if (shape->dims[order[k]] == 1) continue;
    Axis axis = {.extent = shape->dims[order[k]], .strides = {kernel->output.storage.stride[order[k]]}};
    for (int32_t i = 0; i < kernel->input_count; i++)
      axis.strides[i + 1] = operand_stride(&kernel->inputs[i], shape, order[k]);
    if (count > 0 && can_merge(&axes[count - 1], &axis, operands)) {
      axis.extent *= axes[count - 1].extent;
      count--;
    }
    axes[count++] = axis;
  }
  return count;
}

/* The tensor with one dimension per axis. */
static PlanTensor along_axes(const PlanTensor *tensor, const Axis *axes, int32_t count, int32_t operand) {
  PlanTensor result = *tensor;
  result.layout = (Layout){LAYOUT_PLAIN, 0, tensor->layout.element};
  result.shape.rank = count;
  for (int32_t a = 0; a < count; a++) {
    result.storage.stride[a] = axes[a].strides[operand];
    result.shape.dims[a] = operand > 0 && axes[a].strides[operand] == 0 ? 1 : axes[a].extent;
  }
  return result;
}

PlanKernel cuda_merge_dims(CudaEmit *emit, const PlanKernel *kernel) {
  Axis axes[SHAPE_MAX_RANK];
  int32_t count = collect_axes(kernel, axes);
  PlanKernel merged = *kernel;
  merged.inputs = arena_array(emit->arena, (size_t)kernel->input_count, PlanTensor);
  merged.output = along_axes(&kernel->output, axes, count, 0);
  for (int32_t i = 0; i < kernel->input_count; i++)
    merged.inputs[i] = along_axes(&kernel->inputs[i], axes, count, i + 1);
  return merged;
}

/* The op itself; `operands` are handles of its inputs. */
static const char *apply_op(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *const *operands) {
  ExprValue a = {.handle = arena_string(emit->arena, operands[0])}, b = {.handle = NULL};
  if (kernel->op_input_count > 1) b.handle = arena_string(emit->arena, operands[1]);
  return op_info(kernel->op)->expr(cuda_expr_builder(emit, depth), &kernel->attrs, a, b).handle;
}

bool cuda_elementwise(CudaEmit *emit, const PlanKernel *kernel) {
  PlanKernel merged = cuda_merge_dims(emit, kernel);
  CudaMap map;
  cuda_map_begin(emit, &map, &merged, 0);
  const char *operands[2] = {NULL};
  assert(kernel->op_input_count <= 2);
  for (int32_t i = 0; i < kernel->op_input_count; i++) operands[i] = cuda_map_operand(emit, &map, 1, i);
  int depth = cuda_lanes_begin(emit, &map, 1);
  cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), apply_op(emit, depth, &merged, operands));
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}
