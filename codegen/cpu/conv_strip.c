/* Rows of a convolution on their way to a max pool. A strip in scratch memory is [K/b][kept + rows][W][b]. */
#include "conv_strip.h"

#include "base/checked.h"

bool strip_init(ConvStrip *strip, const PlanKernel *kernel, Diag *diag) {
  const PlanTensor *made = plan_made(kernel);
  const int64_t *dims = made->shape.dims, block = made->layout.block;
  *strip = (ConvStrip){.rows = *made};
  if (made->layout.kind != LAYOUT_CHANNEL_BLOCK || !layout_equal(made->layout, kernel->output.layout) ||
      !work_strips(&made->shape, &kernel->choice, &kernel->output.shape, &kernel->pool->attrs, &strip->work)) {
    diag_error(diag, kernel->location, "'%s': the convolution cannot be pooled as it is computed", kernel->name);
    return false;
  }
  Storage *storage = &strip->rows.storage;
  *storage = (Storage){.space = SPACE_NONE};
  storage->stride[3] = block;
  storage->stride[2] = dims[3] * block;
  storage->stride[1] = (strip->work.kept + strip->work.rows) * storage->stride[2];
  strip->elements = ceil_div(dims[1], block) * storage->stride[1];
  return true;
}

/* Row 0 of the image, as if the strip went so far. */
static Value strip_origin(Emit *emit, const ConvStrip *strip, Value number) {
  Value first = emit_add_int(emit, emit_mul_int(emit, number, strip->work.rows), -strip->work.kept);
  Value before = emit_mul_int(emit, first, strip->rows.storage.stride[2]);
  return emit_address(emit, emit->scratch, emit_sub(emit, emit_int(emit, strip->place), before));
}

Value strip_address(Emit *emit, const ConvStrip *strip, Value number, Value block, Value row, Value x) {
  const Value index[4] = {NULL, block, row, x};
  return emit_address(emit, strip_origin(emit, strip, number), emit_offset(emit, &strip->rows, index));
}

void strip_keep(Emit *emit, const ConvStrip *strip) {
  const int64_t *stride = strip->rows.storage.stride, block = strip->rows.layout.block;
  if (strip->work.kept == 0) return;
  EmitLoop unit =
      emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, strip->elements / stride[1]), 1, "kept_block");
  Value to =
      emit_address(emit, emit->scratch, emit_add_int(emit, emit_mul_int(emit, unit.index, stride[1]), strip->place));
  Value from = emit_address(emit, to, emit_int(emit, strip->work.rows * stride[2]));
  EmitLoop at = emit_loop_count(emit, strip->work.kept * stride[2], block, "kept");
  emit_store(emit, to, at.index, emit_load(emit, from, at.index, (int32_t)block));
  emit_loop_end(emit, &at);
  emit_loop_end(emit, &unit);
}

void strip_pool_part(Emit *emit, ConvStrip *strip) {
  Value arguments[2];
  strip->pool = emit_part_begin(emit, "pool", 2, arguments);
  Value begin = emit_mul_int(emit, arguments[1], strip->work.pooled);
  Value end =
      emit_min(emit, emit_add_int(emit, begin, strip->work.pooled), emit_int(emit, emit->kernel->output.shape.dims[2]));
  pool_strip(emit, &strip->rows, strip_origin(emit, strip, arguments[1]), arguments[0], begin, end);
  emit_routine_end(emit, &strip->pool);
}
