/* Moments of batch-blocked planes, a lane per image: taken while a convolution's elements are in registers, so that the
 * statistics of a batch norm need not read them again.
 *
 * Within a part of a plane sums are f32, of the distances from the mean of its first elements, so that squares do not
 * cancel where the mean is large; parts are short (ir/work.h). What is kept of a part is its mean and the squared
 * distances from that; parts are combined in double, in a fixed order, by the update formula of Chan, Golub, LeVeque
 * ("Algorithms for Computing the Sample Variance", 1983). Lanes that are no images have moments too, which nobody adds.
 */
#include "base/checked.h"
#include "batch.h"
#include "kiln_abi.h"
#include "wide.h"
#include "work.h"

/* Of a channel in scratch memory: vectors of the number from which distances are taken, of their sum, and of that of
 * their squares. */
enum { SHIFT, SUM, SQUARES, FIELDS };

static Value field_at(const PlaneMoments *moments, Value channel, int field) {
  Value at = emit_mul_int(moments->emit, channel, FIELDS * moments->lanes);
  return emit_add_int(moments->emit, at, (int64_t)field * moments->lanes);
}

PlaneMoments moments_open(Emit *emit, int64_t channels, int64_t *scratch_bytes) {
  const PlanKernel *kernel = emit->kernel;
  PlaneMoments moments = {.emit = emit};
  if (kernel->reduction_count == 0 || kernel->reductions[0].op != OP_PLANE_MOMENTS) return moments;
  const int64_t start = round_up(*scratch_bytes, KILN_ALIGNMENT);
  moments.tensor = &kernel->reductions[0].output;
  moments.base = emit->reductions[0];
  moments.memory = emit_address(emit, emit->scratch, emit_int(emit, start / (int64_t)sizeof(float)));
  moments.lanes = batch_block(kernel);
  moments.parts = moments.tensor->shape.dims[2];
  moments.height = kernel->output.shape.dims[2], moments.width = kernel->output.shape.dims[3];
  moments.rows = moment_rows(moments.height, moments.parts);
  *scratch_bytes = start + channels * FIELDS * moments.lanes * (int64_t)sizeof(float);
  return moments;
}

void moments_rows(const PlaneMoments *moments, Value part, Value *out_begin, Value *out_end) {
  Emit *emit = moments->emit;
  *out_begin = emit_mul_int(emit, part, moments->rows);
  *out_end = emit_min(emit, emit_add_int(emit, *out_begin, moments->rows), emit_int(emit, moments->height));
}

/* Distances are taken from the mean of the part's first elements: whatever it rounds to, it is a number near the mean.
 */
static void start_channels(const PlaneMoments *moments, const Value *elements, int64_t channels, int64_t columns) {
  Emit *emit = moments->emit;
  Value zero = emit_float(emit, moments->lanes, 0);
  for (int64_t channel = 0; channel < channels; channel++) {
    Value sum = elements[channel * columns];
    for (int64_t column = 1; column < columns; column++)
      sum = emit_fadd(emit, sum, elements[channel * columns + column]);
    Value near = emit_fmul(emit, sum, emit_float(emit, moments->lanes, 1.0 / (double)columns));
    const Value fields[FIELDS] = {near, zero, zero};
    for (int i = 0; i < FIELDS; i++)
      emit_store(emit, moments->memory, field_at(moments, emit_int(emit, channel), i), fields[i]);
  }
}

void moments_take(const PlaneMoments *moments, const Value *elements, int64_t channels, int64_t columns, Value starts) {
  if (moments->tensor == NULL) return;
  Emit *emit = moments->emit;
  if (starts != NULL) {
    EmitIf start = emit_if(emit, starts, "first_of_part");
    start_channels(moments, elements, channels, columns);
    emit_end_if(emit, &start);
  }
  for (int64_t channel = 0; channel < channels; channel++) {
    Value places[FIELDS], shift, sum = NULL, squares = NULL;
    for (int i = 0; i < FIELDS; i++) places[i] = field_at(moments, emit_int(emit, channel), i);
    shift = emit_load(emit, moments->memory, places[SHIFT], moments->lanes);
    for (int64_t column = 0; column < columns; column++) {
      Value distance = emit_fsub(emit, elements[channel * columns + column], shift);
      squares = column == 0 ? emit_fmul(emit, distance, distance) : emit_fma(emit, distance, distance, squares);
      sum = column == 0 ? distance : emit_fadd(emit, sum, distance);
    }
    sum = emit_fadd(emit, emit_load(emit, moments->memory, places[SUM], moments->lanes), sum);
    squares = emit_fadd(emit, emit_load(emit, moments->memory, places[SQUARES], moments->lanes), squares);
    emit_store(emit, moments->memory, places[SUM], sum);
    emit_store(emit, moments->memory, places[SQUARES], squares);
  }
}

/* 1 / elements of a part, doubles. */
static Value part_share(const PlaneMoments *moments, Value part) {
  Emit *emit = moments->emit;
  const int64_t last = moments->height - (moments->parts - 1) * moments->rows;
  Value most = wide_constant(emit, moments->lanes, 1.0 / (double)(moments->rows * moments->width));
  if (last == moments->rows) return most;
  Value least = wide_constant(emit, moments->lanes, 1.0 / (double)(last * moments->width));
  return emit_select(emit, emit_less(emit, part, emit_int(emit, moments->parts - 1)), most, least);
}

void moments_store(const PlaneMoments *moments, int64_t channels, Value block, Value channel, Value part) {
  Emit *emit = moments->emit;
  const int32_t lanes = moments->lanes;
  Value share = part_share(moments, part);
  EmitLoop at = emit_loop_count(emit, channels, 1, "moments_channel");
  Value fields[FIELDS];
  for (int i = 0; i < FIELDS; i++) {
    fields[i] = emit_load(emit, moments->memory, field_at(moments, at.index, i), lanes);
    fields[i] = wide_from_float(emit, fields[i], lanes);
  }
  Value distance = emit_fmul(emit, fields[SUM], share);
  const Value results[2] = {emit_fadd(emit, fields[SHIFT], distance),
                            emit_fsub(emit, fields[SQUARES], emit_fmul(emit, fields[SUM], distance))};
  for (int i = 0; i < 2; i++) {
    const Value index[SHAPE_MAX_RANK] = {block, emit_add(emit, channel, at.index), part, emit_int(emit, i)};
    emit_store(emit, moments->base, emit_offset(emit, moments->tensor, index), wide_to_float(emit, results[i], lanes));
  }
  emit_loop_end(emit, &at);
}

/* --- combination ------------------------------------------------------------------------------------- */

typedef struct Total {
  const PlanTensor *tensor;
  Value base, shift, channel, block, mask;
  int32_t lanes;
  Value sums[2]; /* variables, doubles: Σ(x − shift), Σ(x − shift)² */
} Total;

static Value load_moment(Emit *emit, const Total *total, Value part, int i) {
  const Value index[SHAPE_MAX_RANK] = {total->block, total->channel, part, emit_int(emit, i)};
  return emit_load(emit, total->base, emit_offset(emit, total->tensor, index), total->lanes);
}

static void add_part(Emit *emit, const Total *total, Value part, int64_t elements) {
  const int32_t lanes = total->lanes;
  Value mean = wide_from_float(emit, load_moment(emit, total, part, 0), lanes);
  Value rest = batch_keep(emit, total->mask, load_moment(emit, total, part, 1), lanes);
  Value distance = emit_fsub(emit, mean, wide_splat(emit, wide_from_float(emit, total->shift, 1), lanes));
  distance = emit_select(emit, total->mask, distance, wide_constant(emit, lanes, 0));
  Value sum = emit_fmul(emit, distance, wide_constant(emit, lanes, (double)elements));
  const Value terms[2] = {sum, emit_fma(emit, sum, distance, wide_from_float(emit, rest, lanes))};
  LLVMTypeRef wide = wide_type(emit, lanes);
  for (int i = 0; i < 2; i++)
    emit_set(emit, total->sums[i], emit_fadd(emit, emit_get(emit, wide, total->sums[i]), terms[i]));
}

void moments_add_up(Emit *emit, const PlanTensor *x, int32_t input, Value channel, Value *out_shift, Value *out_sums) {
  const PlanTensor *tensor = &emit->kernel->inputs[input];
  const int64_t height = x->shape.dims[2], width = x->shape.dims[3], parts = tensor->shape.dims[2];
  const int64_t rows = moment_rows(height, parts);
  Total total = {.tensor = tensor, .base = emit->inputs[input], .channel = channel, .lanes = tensor->layout.block};
  LLVMTypeRef wide = wide_type(emit, total.lanes);
  for (int i = 0; i < 2; i++) {
    total.sums[i] = emit_variable(emit, wide, "total");
    emit_set(emit, total.sums[i], wide_constant(emit, total.lanes, 0));
  }
  const Value first[SHAPE_MAX_RANK] = {emit_int(emit, 0), channel};
  total.shift = *out_shift = emit_load(emit, total.base, emit_offset(emit, tensor, first), 1);
  EmitLoop block = emit_loop_begin(emit, emit_int(emit, 0), batch_blocks(emit, total.lanes), 1, "block");
  total.block = block.index;
  total.mask = batch_mask(emit, total.lanes, block.index);
  if (parts > 1) {
    EmitLoop part = emit_loop_count(emit, parts - 1, 1, "part");
    add_part(emit, &total, part.index, rows * width);
    emit_loop_end(emit, &part);
  }
  add_part(emit, &total, emit_int(emit, parts - 1), (height - (parts - 1) * rows) * width);
  emit_loop_end(emit, &block);
  for (int i = 0; i < 2; i++) out_sums[i] = emit_reduce_add(emit, emit_get(emit, wide, total.sums[i]), total.lanes);
}
