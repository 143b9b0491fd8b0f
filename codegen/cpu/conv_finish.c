/* The epilogue of convolutions whose sums wait in memory. */
#include "conv.h"
#include "ride.h"

/* A row on its way through the epilogue. */
typedef struct Row {
  const Value *start;    /* index of its first pixel in the output */
  const Value *operands; /* addresses of the first pixel, by input; NULL: does not lie like the output */
  Value x;
  int32_t lanes;
} Row;

static Value load_operand(Emit *emit, void *context, int32_t input) {
  const Row *row = context;
  const PlanTensor *operand = &emit->kernel->inputs[input], *output = &emit->kernel->output;
  if (row->operands[input] != NULL)
    return emit_load(emit, row->operands[input], emit_mul_int(emit, row->x, operand->storage.stride[3]), row->lanes);
  const Value index[4] = {row->start[0], row->start[1], row->start[2], row->x};
  return emit_load_broadcast(emit, operand, emit->inputs[input], output, index, row->lanes);
}

/* Column `row->x` of a row, of sums at `sums` that are vectors one after the other, to `output`; `bias` may be NULL. */
static void finish_column(Emit *emit, Row *row, Value sums, Value bias, Value output) {
  Value sum = emit_load(emit, sums, emit_mul_int(emit, row->x, row->lanes), row->lanes);
  if (bias != NULL) sum = emit_fadd(emit, sum, bias);
  emit_store(emit, output, emit_mul_int(emit, row->x, emit->kernel->output.storage.stride[3]),
             emit_epilogue_with(emit, sum, row->lanes, load_operand, row));
}

static bool lies_like_output(const PlanKernel *kernel, int32_t input) {
  const PlanTensor *operand = &kernel->inputs[input], *output = &kernel->output;
  return shape_equal(&operand->shape, &output->shape) && layout_equal(operand->layout, output->layout);
}

static Value place_address(Emit *emit, const PlanTensor *tensor, Value base, const Value *start) {
  return emit_address(emit, base, emit_offset(emit, tensor, start));
}

/* Row by row, in the kernel: any operands, and reductions. */
static void finish_here(Emit *emit, const ConvSums *sums, int32_t lanes) {
  const PlanKernel *kernel = emit->kernel;
  Value bias = sums->bias != NULL ? emit_load(emit, sums->bias, emit_int(emit, 0), lanes) : NULL;
  EmitLoop y = emit_loop_outer(emit, emit_int(emit, 0), sums->rows, 1, "output_row");
  const Value start[4] = {sums->start[0], sums->start[1], emit_add(emit, sums->start[2], y.index), NULL};
  Value output = emit_opaque(emit, place_address(emit, &kernel->output, emit->output, start));
  Value from = emit_opaque(emit, emit_address(emit, sums->address, emit_mul_int(emit, y.index, sums->pitch)));
  Value *operands = arena_array(emit->arena, (size_t)kernel->input_count, Value);
  for (int32_t i = 0; i < kernel->input_count; i++) {
    operands[i] = i >= kernel->op_input_count && lies_like_output(kernel, i)
                      ? emit_opaque(emit, place_address(emit, &kernel->inputs[i], emit->inputs[i], start))
                      : NULL;
  }
  EmitLoop x = emit_loop_count(emit, kernel->output.shape.dims[3], 1, "output_column");
  Row row = {start, operands, x.index, lanes};
  finish_column(emit, &row, from, bias, output);
  ride_take(emit, sums->start[1]);
  emit_loop_end(emit, &x);
  ride_row(emit);
  emit_loop_end(emit, &y);
}

/* --- in a routine ------------------------------------------------------------------------------------ */

/* Its arguments: addresses of the first row in the output, of its sums, of the bias and of the row in operands; then
 * numbers of rows and columns, and elements from a row to the next in the output, the sums and operands. */
enum { OUTPUT, SUMS, BIAS, OPERANDS, MOST_OPERANDS = 2, ROWS = 0, COLUMNS, OUTPUT_ROW, SUMS_ROW, OPERAND_ROWS };

static int32_t operand_count(const PlanKernel *kernel) { return kernel->input_count - kernel->op_input_count; }

/* Nothing but these arguments tells kernels of one epilogue apart: they share it. */
static bool suits_routine(const PlanKernel *kernel, int32_t lanes) {
  if (kernel->reduction_count > 0 || operand_count(kernel) > MOST_OPERANDS || kernel->output.storage.stride[3] != lanes)
    return false;
  for (int32_t i = kernel->op_input_count; i < kernel->input_count; i++)
    if (!lies_like_output(kernel, i) || kernel->inputs[i].storage.stride[3] != lanes) return false;
  return true;
}

static Value row_address(Emit *emit, Value base, Value row, Value step) {
  return emit_opaque(emit, emit_address(emit, base, LLVMBuildNSWMul(emit->builder, row, step, "")));
}

ConvFinish conv_finish_begin(Emit *emit, bool biased, int32_t lanes) {
  const PlanKernel *kernel = emit->kernel;
  ConvFinish finish = {.lanes = lanes, .apart = suits_routine(kernel, lanes)};
  if (!finish.apart) return finish;
  const int32_t count = operand_count(kernel);
  const unsigned pointers = OPERANDS + (unsigned)count, integers = OPERAND_ROWS + (unsigned)count;
  Value arguments[OPERANDS + OPERAND_ROWS + 2 * MOST_OPERANDS], *numbers = arguments + pointers;
  finish.routine = emit_routine_begin(emit, "finish", pointers, integers, arguments);
  Value bias = biased ? emit_load(emit, arguments[BIAS], emit_int(emit, 0), lanes) : NULL;
  EmitLoop y = emit_loop_outer(emit, emit_int(emit, 0), numbers[ROWS], 1, "output_row");
  Value output = row_address(emit, arguments[OUTPUT], y.index, numbers[OUTPUT_ROW]);
  Value sums = row_address(emit, arguments[SUMS], y.index, numbers[SUMS_ROW]);
  Value *operands = arena_array(emit->arena, (size_t)kernel->input_count, Value);
  for (int32_t i = 0; i < count; i++)
    operands[kernel->op_input_count + i] =
        row_address(emit, arguments[OPERANDS + i], y.index, numbers[OPERAND_ROWS + i]);
  EmitLoop x = emit_loop_begin(emit, emit_int(emit, 0), numbers[COLUMNS], 1, "output_column");
  Row row = {NULL, operands, x.index, lanes};
  finish_column(emit, &row, sums, bias, output);
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &y);
  emit_routine_end(emit, &finish.routine);
  return finish;
}

void conv_finish_rows(Emit *emit, const ConvFinish *finish, const ConvSums *sums) {
  const PlanKernel *kernel = emit->kernel;
  if (!finish->apart) {
    finish_here(emit, sums, finish->lanes);
    return;
  }
  const int32_t count = operand_count(kernel);
  Value arguments[OPERANDS + OPERAND_ROWS + 2 * MOST_OPERANDS], *numbers = arguments + OPERANDS + count;
  arguments[OUTPUT] = place_address(emit, &kernel->output, emit->output, sums->start);
  arguments[SUMS] = sums->address;
  arguments[BIAS] = sums->bias != NULL ? sums->bias : sums->address;
  numbers[ROWS] = sums->rows;
  numbers[COLUMNS] = emit_int(emit, kernel->output.shape.dims[3]);
  numbers[OUTPUT_ROW] = emit_int(emit, kernel->output.storage.stride[2]);
  numbers[SUMS_ROW] = emit_int(emit, sums->pitch);
  for (int32_t i = 0; i < count; i++) {
    const int32_t input = kernel->op_input_count + i;
    const PlanTensor *operand = &kernel->inputs[input];
    arguments[OPERANDS + i] = place_address(emit, operand, emit->inputs[input], sums->start);
    numbers[OPERAND_ROWS + i] = emit_int(emit, operand->storage.stride[2]);
  }
  emit_routine_call(emit, &finish->routine, arguments);
}
