#include "batch.h"

#include <assert.h>
#include <string.h>

#include "base/checked.h"

enum { MAX_LANES = 64 };

static const PlanTensor *batch_operand(const PlanKernel *kernel) {
  if (kernel->output.layout.kind == LAYOUT_BATCH_BLOCK) return &kernel->output;
  for (int32_t i = 0; i < kernel->input_count; i++)
    if (kernel->inputs[i].layout.kind == LAYOUT_BATCH_BLOCK) return &kernel->inputs[i];
  return NULL;
}

int32_t batch_block(const PlanKernel *kernel) {
  const PlanTensor *operand = batch_operand(kernel);
  return operand != NULL ? operand->layout.block : 0;
}

/* --- blocks ------------------------------------------------------------------------------------------ */

Value batch_blocks(Emit *emit, int32_t block) {
  return emit_div_int(emit, emit_add_int(emit, emit->batch, block - 1), block);
}

void batch_map_items(Emit *emit, int32_t block) {
  Value blocks = batch_blocks(emit, block), *bounds[] = {&emit->begin, &emit->end};
  for (int i = 0; i < 2; i++) {
    Value scaled = LLVMBuildNSWMul(emit->builder, *bounds[i], blocks, "");
    *bounds[i] = LLVMBuildUDiv(emit->builder, scaled, emit->batch, i == 0 ? "unit.begin" : "unit.end");
  }
}

Value batch_mask(Emit *emit, int32_t block, Value at) {
  Value lanes[MAX_LANES];
  assert(block <= MAX_LANES);
  for (int32_t lane = 0; lane < block; lane++) lanes[lane] = LLVMConstInt(emit->i32, (unsigned)lane, 0);
  Value left = emit_sub(emit, emit->batch, emit_mul_int(emit, at, block));
  left = LLVMBuildTrunc(emit->builder, emit_min(emit, left, emit_int(emit, block)), emit->i32, "");
  LLVMTypeRef type = LLVMVectorType(emit->i32, (unsigned)block);
  Value one = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(type), left, emit_int(emit, 0), "");
  Value every = LLVMBuildShuffleVector(emit->builder, one, LLVMGetPoison(type), LLVMConstNull(type), "");
  return LLVMBuildICmp(emit->builder, LLVMIntSLT, LLVMConstVector(lanes, (unsigned)block), every, "images");
}

Value batch_keep(Emit *emit, Value mask, Value value, int32_t lanes) {
  return emit_select(emit, mask, value, emit_float(emit, lanes, 0));
}

Split split_even(int64_t count, int64_t limit) {
  if (limit < 1) limit = 1;
  int64_t tiles = ceil_div(count, limit);
  if (tiles < 1) tiles = 1;
  return (Split){tiles, count / tiles, count % tiles};
}

Value split_start(Emit *emit, const Split *split, Value at) {
  Value start = emit_mul_int(emit, at, split->narrow);
  return split->wide > 0 ? emit_add(emit, start, emit_min(emit, at, emit_int(emit, split->wide))) : start;
}

int64_t batch_registers(const Emit *emit) { return emit->target->vector_registers; }

Value batch_in_order(Emit *emit, Value value) {
  bool x86 = strncmp(emit->target->triple, "x86_64", 6) == 0;
  const char *constraints = !x86                               ? "=w,0,~{memory}"
                            : emit->target->vector_lanes == 16 ? "=v,0,~{memory}"
                                                               : "=x,0,~{memory}";
  LLVMTypeRef operand = LLVMTypeOf(value), type = LLVMFunctionType(operand, &operand, 1, 0);
  Value fence = LLVMGetInlineAsm(type, "", 0, constraints, strlen(constraints), 1, 0, LLVMInlineAsmDialectATT, 0);
  return LLVMBuildCall2(emit->builder, type, fence, &value, 1, "");
}

/* Halves the number of vectors and the lanes that belong to each, until one vector holds one lane of each. */
Value batch_sum_lanes(Emit *emit, Value *vectors, int32_t count, int32_t lanes) {
  assert(count <= lanes && lanes <= MAX_LANES);
  for (int32_t i = count; i < lanes; i++) vectors[i] = emit_float(emit, lanes, 0);
  for (int32_t group = lanes / 2; group >= 1; group /= 2) {
    Value low[MAX_LANES], high[MAX_LANES];
    for (int32_t lane = 0; lane < lanes; lane++) {
      int32_t from = lane / group * 2 * group + lane % group;
      low[lane] = LLVMConstInt(emit->i32, (unsigned)from, 0);
      high[lane] = LLVMConstInt(emit->i32, (unsigned)(from + group), 0);
    }
    Value low_mask = LLVMConstVector(low, (unsigned)lanes), high_mask = LLVMConstVector(high, (unsigned)lanes);
    for (int32_t i = 0; i < group; i++) {
      Value a = vectors[2 * i], b = vectors[2 * i + 1];
      vectors[i] = emit_fadd(emit, LLVMBuildShuffleVector(emit->builder, a, b, low_mask, ""),
                             LLVMBuildShuffleVector(emit->builder, a, b, high_mask, ""));
    }
  }
  return vectors[0];
}

/* --- dispatch ---------------------------------------------------------------------------------------- */

/* Kernels of their own. Element-wise ones and pools walk over the first dimension of the output without knowing what
 * its index counts: those of images serve blocks as they are. */
static BatchKernel *find_kernel(const PlanKernel *kernel) {
  switch (kernel->op) {
    case OP_CONV2D:
      return batch_conv2d;
    case OP_CONV_TRANSPOSE2D:
      return batch_conv_transpose2d;
    case OP_CONV2D_GRAD_WEIGHT:
      return batch_conv2d_grad_weight;
    case OP_BATCH_NORM:
      return batch_batch_norm;
    case OP_BATCH_STATS:
      return batch_batch_stats;
    case OP_BATCH_NORM_GRAD_INPUT:
      return batch_batch_norm_grad_input;
    case OP_BATCH_NORM_GRAD_WEIGHT:
      return batch_batch_norm_grad_weight;
    case OP_SUM:
      return batch_sum;
    case OP_BN_UPDATE: /* reads the shape of x only */
      return cpu_bn_update;
    case OP_LINEAR:
      return batch_linear;
    case OP_MATMUL:
      return batch_matmul;
    case OP_LINEAR_GRAD_WEIGHT:
      return batch_linear_grad_weight;
    case OP_CONVERT:
      return layout_equal(kernel->inputs[0].layout, kernel->output.layout) ? batch_reshape : batch_convert;
    case OP_RESHAPE:
    case OP_FLATTEN:
    case OP_IDENTITY:
      return batch_reshape;
    case OP_MAX_POOL2D_GRAD:
      return cpu_max_pool2d_grad;
    case OP_ADAPTIVE_MAX_POOL2D_GRAD:
      return cpu_adaptive_max_pool2d_grad;
    case OP_AVG_POOL2D_GRAD:
      return cpu_avg_pool2d_grad;
    case OP_ADAPTIVE_AVG_POOL2D_GRAD:
      return cpu_adaptive_avg_pool2d_grad;
    case OP_MAX_POOL2D:
      return cpu_max_pool2d;
    case OP_AVG_POOL2D:
      return cpu_avg_pool2d;
    case OP_ADAPTIVE_AVG_POOL2D:
      return cpu_adaptive_avg_pool2d;
    case OP_ADAPTIVE_MAX_POOL2D:
      return cpu_adaptive_max_pool2d;
    default:
      return op_is_elementwise(kernel->op) ? cpu_elementwise : NULL;
  }
}

bool batch_emit(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  BatchKernel *const emitter = find_kernel(kernel);
  if (emitter == NULL) {
    diag_error(diag, kernel->location, "internal error: '%s': no kernel of %s for batch-blocked values", kernel->name,
               op_info(kernel->op)->name);
    return false;
  }
  /* nothing to do, and no division by it */
  EmitIf any = emit_if(emit, emit_less(emit, emit_int(emit, 0), emit->batch), "images");
  if (shape_batched(&kernel->output.shape) && kernel->op != OP_BATCH_NORM_GRAD_INPUT)
    batch_map_items(emit, batch_block(kernel)); /* it does so itself */
  if (!emitter(emit, kernel, out_work, diag)) return false;
  emit_end_if(emit, &any);
  return true;
}
