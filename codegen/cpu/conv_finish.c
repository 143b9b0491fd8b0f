/* The epilogue of convolutions whose sums wait in memory. */
#include "conv.h"
#include "ride.h"

/* A row on its way through the epilogue. */
typedef struct Row {
  const ConvRow *sums;
  const Value *operands; /* addresses of the row's first pixel, by input; NULL: does not lie like the output */
  Value x;
} Row;

static Value load_operand(Emit *emit, void *context, int32_t input) {
  const Row *row = context;
  const PlanTensor *operand = &emit->kernel->inputs[input], *output = &emit->kernel->output;
  const int32_t lanes = row->sums->lanes;
  if (row->operands[input] != NULL)
    return emit_load(emit, row->operands[input], emit_mul_int(emit, row->x, operand->storage.stride[3]), lanes);
  const Value *start = row->sums->start, index[4] = {start[0], start[1], start[2], row->x};
  return emit_load_broadcast(emit, operand, emit->inputs[input], output, index, lanes);
}

static Value row_address(Emit *emit, const PlanTensor *tensor, Value base, const Value *start) {
  return emit_opaque(emit, emit_address(emit, base, emit_offset(emit, tensor, start)));
}

static bool lies_like(const PlanTensor *operand, const PlanTensor *output) {
  return shape_equal(&operand->shape, &output->shape) && layout_equal(operand->layout, output->layout);
}

void conv_finish_row(Emit *emit, const ConvRow *sums) {
  const PlanKernel *kernel = emit->kernel;
  const PlanTensor *output = &kernel->output;
  Value base = row_address(emit, output, emit->output, sums->start);
  Value from = sums->address != NULL ? emit_opaque(emit, sums->address) : base;
  Value *operands = arena_array(emit->arena, (size_t)kernel->input_count, Value);
  for (int32_t i = kernel->op_input_count; i < kernel->input_count; i++) {
    const PlanTensor *operand = &kernel->inputs[i];
    if (lies_like(operand, output)) operands[i] = row_address(emit, operand, emit->inputs[i], sums->start);
  }
  EmitLoop x = emit_loop_count(emit, output->shape.dims[3], 1, "output_column");
  Row row = {sums, operands, x.index};
  Value sum = emit_load(emit, from, emit_mul_int(emit, x.index, sums->stride), sums->lanes);
  if (sums->bias != NULL) sum = emit_fadd(emit, sum, sums->bias);
  emit_store(emit, base, emit_mul_int(emit, x.index, output->storage.stride[3]),
             emit_epilogue_with(emit, sum, sums->lanes, load_operand, &row));
  ride_take(emit, sums->block);
  emit_loop_end(emit, &x);
}
