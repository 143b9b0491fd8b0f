/* Batch normalisation of batch-blocked values in training: statistics, the normalisation, and its gradients.
 *
 * Sums run over vectors of images in f32, several at a time so that additions overlap, in a fixed order; every few
 * hundred vectors they are added to totals in double. Variances come from one sweep: with distances from a number near
 * the mean the squares do not cancel (Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983). A
 * unit of work is a channel, or, where channels do not depend on each other, blocks of a channel. */
#include "batch.h"

#include "base/checked.h"
#include "wide.h"

enum { SUMS_AT_ONCE = 4, MAX_QUANTITIES = 2 };

/* --- planes ------------------------------------------------------------------------------------------ */

static bool plane_is_dense(const PlanTensor *tensor, const Shape *shape) {
  if (tensor->shape.rank != 4 || shape->rank != 4) return true;
  const int64_t *dims = tensor->shape.dims, *stride = tensor->storage.stride;
  if (dims[2] == 1 && dims[3] == 1) return true; /* the same everywhere */
  return dims[2] == shape->dims[2] && dims[3] == shape->dims[3] && stride[2] == dims[3] * stride[3];
}

/* Columns and rows of a plane that all operands walk through alike: one long row when none has gaps. */
typedef struct Plane {
  int64_t rows, columns;
  int32_t along; /* the dimension whose index counts columns: operands drop that of a dimension of 1 */
} Plane;

static Plane plane_of(const PlanKernel *kernel, const Shape *shape) {
  Plane plane = {1, 1, 3};
  if (shape->rank != 4) return plane;
  bool dense = plane_is_dense(&kernel->output, shape);
  for (int32_t i = 0; i < kernel->input_count; i++) dense = dense && plane_is_dense(&kernel->inputs[i], shape);
  plane.rows = dense ? 1 : shape->dims[2];
  plane.columns = dense ? shape->dims[2] * shape->dims[3] : shape->dims[3];
  if (dense && shape->dims[3] == 1) plane.along = 2;
  return plane;
}

/* Does something with the elements at index[]; `slot` counts those that stand side by side in the code. */
typedef void (*PlaceBody)(Emit *emit, void *context, Value *index, int slot);

/* All places of the plane of block index[0] and channel index[1]. */
static void walk_plane(Emit *emit, const Plane *plane, Value *index, PlaceBody body, void *context) {
  EmitLoop row = emit_loop_count(emit, plane->rows, 1, "row");
  index[2] = plane->along == 2 ? NULL : row.index;
  index[3] = NULL;
  int64_t whole = plane->columns / SUMS_AT_ONCE * SUMS_AT_ONCE;
  if (whole > 0) {
    EmitLoop column = emit_loop_count(emit, whole, SUMS_AT_ONCE, "column");
    for (int slot = 0; slot < SUMS_AT_ONCE; slot++) {
      index[plane->along] = emit_add_int(emit, column.index, slot);
      body(emit, context, index, slot);
    }
    emit_loop_end(emit, &column);
  }
  for (int64_t at = whole; at < plane->columns; at++) {
    index[plane->along] = emit_int(emit, at);
    body(emit, context, index, (int)(at - whole));
  }
  emit_loop_end(emit, &row);
}

static Value load_at(Emit *emit, const PlanKernel *kernel, int32_t input, const Value *index) {
  const PlanTensor *tensor = &kernel->inputs[input];
  return emit_load(emit, emit->inputs[input], emit_offset(emit, tensor, index), tensor->layout.block);
}

static Value channel_value(Emit *emit, const PlanKernel *kernel, int32_t input, Value channel) {
  return emit_load(emit, emit->inputs[input], emit_offset_element(emit, &kernel->inputs[input], &channel), 1);
}

/* sqrt(variance + eps), a double */
static Value deviation_of(Emit *emit, const PlanKernel *kernel, int32_t input, Value channel) {
  Value variance = wide_from_float(emit, channel_value(emit, kernel, input, channel), 1);
  return emit_math(emit, EXPR_SQRT, emit_fadd(emit, variance, wide_constant(emit, 1, kernel->attrs.eps)), 1);
}

/* --- sums of a channel ------------------------------------------------------------------------------- */

/* value · factor; NULL: 1 */
typedef struct Term {
  Value value, factor;
} Term;

/* Gives what is to be added up at a place. */
typedef void (*Quantities)(Emit *emit, const void *context, const Value *index, Term *out_terms);

typedef struct ChannelSums {
  const PlanKernel *kernel;
  int32_t lanes;
  int count;
  Quantities quantities;
  const void *context;
  Value mask; /* NULL: all lanes are images */
  Value sums[MAX_QUANTITIES][SUMS_AT_ONCE];
  Value totals[MAX_QUANTITIES]; /* doubles */
} ChannelSums;

static void add_quantities(Emit *emit, void *context, Value *index, int slot) {
  ChannelSums *sums = context;
  LLVMTypeRef vector = emit_float_type(emit, sums->lanes);
  Term terms[MAX_QUANTITIES];
  sums->quantities(emit, sums->context, index, terms);
  for (int i = 0; i < sums->count; i++) {
    Value value = terms[i].value, sum = emit_get(emit, vector, sums->sums[i][slot]);
    if (sums->mask != NULL) value = batch_keep(emit, sums->mask, value, sums->lanes);
    sum = terms[i].factor ? emit_fma(emit, value, terms[i].factor, sum) : emit_fadd(emit, sum, value);
    emit_set(emit, sums->sums[i][slot], sum);
  }
}

static void clear_sums(Emit *emit, const ChannelSums *sums) {
  for (int i = 0; i < sums->count; i++)
    for (int slot = 0; slot < SUMS_AT_ONCE; slot++)
      emit_set(emit, sums->sums[i][slot], emit_float(emit, sums->lanes, 0));
}

/* Adds the sums up in pairs, and that to the totals. */
static void add_to_totals(Emit *emit, const ChannelSums *sums) {
  LLVMTypeRef vector = emit_float_type(emit, sums->lanes), wide = wide_type(emit, sums->lanes);
  for (int i = 0; i < sums->count; i++) {
    Value parts[SUMS_AT_ONCE];
    for (int slot = 0; slot < SUMS_AT_ONCE; slot++) parts[slot] = emit_get(emit, vector, sums->sums[i][slot]);
    for (int step = 1; step < SUMS_AT_ONCE; step *= 2)
      for (int slot = 0; slot < SUMS_AT_ONCE; slot += 2 * step)
        parts[slot] = emit_fadd(emit, parts[slot], parts[slot + step]);
    Value total = emit_get(emit, wide, sums->totals[i]);
    emit_set(emit, sums->totals[i], emit_fadd(emit, total, wide_from_float(emit, parts[0], sums->lanes)));
  }
}

/* The blocks [begin, end); only the last one of all may have lanes that are no images. */
static void sum_blocks(Emit *emit, ChannelSums *sums, const Plane *plane, Value channel, Value begin, Value end) {
  EmitLoop block = emit_loop_begin(emit, begin, end, 1, "block");
  Value images = emit_mul_int(emit, emit_add_int(emit, block.index, 1), sums->lanes);
  EmitIf partial = emit_if(emit, emit_less(emit, emit->batch, images), "partial");
  for (int full = 0; full < 2; full++) {
    Value index[SHAPE_MAX_RANK] = {block.index, channel};
    sums->mask = full ? NULL : batch_mask(emit, sums->lanes, block.index);
    walk_plane(emit, plane, index, add_quantities, sums);
    if (!full) emit_else(emit, &partial);
  }
  emit_end_if(emit, &partial);
  emit_loop_end(emit, &block);
}

/* Sums over all images and places of a channel of input 0, in double. */
static void sum_channel(Emit *emit, const PlanKernel *kernel, int count, Quantities quantities, const void *context,
                        Value channel, Value *out_sums) {
  enum { VECTORS_LEAST = 512 }; /* between additions to the totals */
  ChannelSums sums = {kernel, batch_block(kernel), count, quantities, context, NULL, {{NULL}}, {NULL}};
  LLVMTypeRef wide = wide_type(emit, sums.lanes);
  for (int i = 0; i < count; i++) {
    for (int slot = 0; slot < SUMS_AT_ONCE; slot++)
      sums.sums[i][slot] = emit_variable(emit, emit_float_type(emit, sums.lanes), "sum");
    sums.totals[i] = emit_variable(emit, wide, "total");
    emit_set(emit, sums.totals[i], wide_constant(emit, sums.lanes, 0));
  }
  Plane plane = plane_of(kernel, &kernel->inputs[0].shape);
  const int64_t step = ceil_div(VECTORS_LEAST, plane.rows * plane.columns);
  Value blocks = batch_blocks(emit, sums.lanes);
  EmitLoop run = emit_loop_begin(emit, emit_int(emit, 0), blocks, step, "run");
  clear_sums(emit, &sums);
  sum_blocks(emit, &sums, &plane, channel, run.index, emit_min(emit, emit_add_int(emit, run.index, step), blocks));
  add_to_totals(emit, &sums);
  emit_loop_end(emit, &run);
  for (int i = 0; i < count; i++) out_sums[i] = emit_reduce_add(emit, emit_get(emit, wide, sums.totals[i]), sums.lanes);
}

/* Values per channel of input 0, a double. */
static Value count_values(Emit *emit, const PlanKernel *kernel) {
  const Shape *shape = &kernel->inputs[0].shape;
  Value count = emit->batch;
  for (int32_t d = 2; d < shape->rank; d++) count = emit_mul_int(emit, count, shape->dims[d]);
  return wide_from_int(emit, count);
}

/* --- statistics -------------------------------------------------------------------------------------- */

typedef struct Moments {
  const PlanKernel *kernel;
  Value shift; /* vector */
} Moments;

static void moment_quantities(Emit *emit, const void *context, const Value *index, Term *out_terms) {
  const Moments *moments = context;
  Value distance = emit_fsub(emit, load_at(emit, moments->kernel, 0, index), moments->shift);
  out_terms[0] = (Term){distance, NULL};
  out_terms[1] = (Term){distance, distance};
}

/* The mean of some elements of the first images. */
static Value near_mean(Emit *emit, const PlanKernel *kernel, Value channel) {
  enum { SAMPLE_VECTORS = 8 };
  const PlanTensor *x = &kernel->inputs[0];
  int32_t lanes = x->layout.block;
  int64_t columns = x->shape.rank == 4 ? x->shape.dims[3] : 1,
          count = columns < SAMPLE_VECTORS ? columns : SAMPLE_VECTORS;
  Value zero = emit_int(emit, 0), mask = batch_mask(emit, lanes, zero), total = emit_float(emit, lanes, 0);
  for (int64_t i = 0; i < count; i++) {
    Value row = x->shape.rank == 4 ? emit_int(emit, x->shape.dims[2] / 2) : zero;
    Value index[SHAPE_MAX_RANK] = {zero, channel, row, emit_int(emit, i * columns / count)};
    total = emit_fadd(emit, total, batch_keep(emit, mask, load_at(emit, kernel, 0, index), lanes));
  }
  Value images = emit_mul_int(emit, emit_min(emit, emit->batch, emit_int(emit, lanes)), count);
  Value sum = wide_from_float(emit, emit_reduce_add(emit, total, lanes), 1);
  return wide_to_float(emit, emit_fdiv(emit, sum, wide_from_int(emit, images)), 1);
}

bool batch_batch_stats(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *x = &kernel->inputs[0];
  *out_work = (KernelWork){.items = x->shape.dims[1]};
  EmitLoop channel = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  Value shift, sums[2];
  if (kernel->op_input_count > 1) {
    moments_add_up(emit, x, 1, channel.index, &shift, sums);
  } else {
    shift = near_mean(emit, kernel, channel.index);
    Moments moments = {kernel, emit_splat(emit, shift, x->layout.block)};
    sum_channel(emit, kernel, 2, moment_quantities, &moments, channel.index, sums);
  }
  Value count = count_values(emit, kernel), distance = emit_fdiv(emit, sums[0], count), results[2];
  results[0] = emit_fadd(emit, wide_from_float(emit, shift, 1), distance);
  results[1] = emit_fsub(emit, emit_fdiv(emit, sums[1], count), emit_fmul(emit, distance, distance));
  results[1] = emit_fmax(emit, results[1], wide_constant(emit, 1, 0));
  for (int i = 0; i < 2; i++) {
    Value index[SHAPE_MAX_RANK] = {emit_int(emit, i), channel.index};
    Value result = emit_epilogue(emit, wide_to_float(emit, results[i], 1), index, 1);
    emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), result);
  }
  emit_loop_end(emit, &channel);
  return true;
}

static void element_quantity(Emit *emit, const void *context, const Value *index, Term *out_terms) {
  out_terms[0] = (Term){load_at(emit, context, 0, index), NULL};
}

/* Over the batch and all places; the layout pass gives no other sums. */
bool batch_sum(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *x = &kernel->inputs[0], *out = &kernel->output;
  if (out->layout.kind != LAYOUT_PLAIN || shape_elements_per_image(&out->shape) != x->shape.dims[1]) {
    diag_error(diag, kernel->location, "'%s': a batch-blocked sum is one per channel", kernel->name);
    return false;
  }
  *out_work = (KernelWork){.items = x->shape.dims[1]};
  EmitLoop channel = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  Value index[SHAPE_MAX_RANK] = {NULL}, sum;
  index[out->shape.rank == x->shape.rank ? 1 : 0] = channel.index;
  sum_channel(emit, kernel, 1, element_quantity, kernel, channel.index, &sum);
  emit_store(emit, emit->output, emit_offset(emit, out, index),
             emit_epilogue(emit, wide_to_float(emit, sum, 1), index, 1));
  emit_loop_end(emit, &channel);
  return true;
}

/* --- channel by channel ------------------------------------------------------------------------------ */

typedef struct Places {
  const PlanKernel *kernel;
  Value (*value)(Emit *emit, const void *context, const Value *index);
  const void *context;
} Places;

static void store_place(Emit *emit, void *context, Value *index, int slot) {
  (void)slot;
  const Places *places = context;
  const PlanTensor *out = &places->kernel->output;
  Value value = emit_epilogue(emit, places->value(emit, places->context, index), index, out->layout.block);
  emit_store(emit, emit->output, emit_offset(emit, out, index), value);
}

/* The halo of a plane whose rows are walked through as one. */
static void clear_halo(Emit *emit, const PlanKernel *kernel, const Value *index) {
  const int32_t *halo = kernel->output.storage.halo;
  if (kernel->output.shape.rank != 4 || (halo[0] | halo[1] | halo[2] | halo[3]) == 0) return;
  EmitLoop y = emit_loop_count(emit, kernel->output.shape.dims[2], 1, "halo_row");
  emit_halo(emit, index[0], index[1], y.index);
  emit_loop_end(emit, &y);
}

static void store_blocks(Emit *emit, const Places *places, Value channel, Value first, Value last) {
  Plane plane = plane_of(places->kernel, &places->kernel->output.shape);
  EmitLoop block = emit_loop_begin(emit, first, last, 1, "block");
  Value index[SHAPE_MAX_RANK] = {block.index, channel};
  clear_halo(emit, places->kernel, index);
  Places copy = *places;
  walk_plane(emit, &plane, index, store_place, &copy);
  emit_loop_end(emit, &block);
}

/* Units number channel · blocks + block, so that what belongs to a channel is computed once for all its blocks. */
typedef struct ChannelLoop {
  EmitLoop loop;
  Value first, last; /* blocks */
} ChannelLoop;

static ChannelLoop channel_loop_begin(Emit *emit, const PlanKernel *kernel) {
  Value blocks = batch_blocks(emit, batch_block(kernel));
  Value begin = LLVMBuildUDiv(emit->builder, emit->begin, blocks, "");
  Value up = emit_add_int(emit, emit_add(emit, emit->end, blocks), -1);
  ChannelLoop channels;
  channels.loop = emit_loop_begin(emit, begin, LLVMBuildUDiv(emit->builder, up, blocks, ""), 1, "channel");
  Value start = LLVMBuildNSWMul(emit->builder, channels.loop.index, blocks, "");
  channels.first = emit_max(emit, emit_sub(emit, emit->begin, start), emit_int(emit, 0));
  channels.last = emit_min(emit, emit_sub(emit, emit->end, start), blocks);
  return channels;
}

/* (x − mean)·scale + bias: where the mean is large against the spread, the difference loses nothing. */
typedef struct Affine {
  const PlanKernel *kernel;
  Value mean, scale, bias; /* vectors */
} Affine;

static Value affine_value(Emit *emit, const void *context, const Value *index) {
  const Affine *affine = context;
  Value distance = emit_fsub(emit, load_at(emit, affine->kernel, 0, index), affine->mean);
  return emit_fma(emit, distance, affine->scale, affine->bias);
}

/* x, weight, bias, mean, variance. */
bool batch_batch_norm(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  if (kernel->attrs.training || kernel->output.layout.kind != LAYOUT_BATCH_BLOCK) {
    diag_error(diag, kernel->location, "'%s': a batch-blocked batch_norm is given its statistics", kernel->name);
    return false;
  }
  int32_t lanes = batch_block(kernel);
  *out_work = work_per_image(DIM_BATCH, kernel->output.shape.dims[1]);
  ChannelLoop channels = channel_loop_begin(emit, kernel);
  Value channel = channels.loop.index;
  Value weight = wide_from_float(emit, channel_value(emit, kernel, 1, channel), 1);
  Value scale = wide_to_float(emit, emit_fdiv(emit, weight, deviation_of(emit, kernel, 4, channel)), 1);
  Affine affine = {kernel, emit_splat(emit, channel_value(emit, kernel, 3, channel), lanes),
                   emit_splat(emit, scale, lanes), emit_splat(emit, channel_value(emit, kernel, 2, channel), lanes)};
  Places places = {kernel, affine_value, &affine};
  store_blocks(emit, &places, channel, channels.first, channels.last);
  emit_loop_end(emit, &channels.loop);
  return true;
}

/* --- gradients --------------------------------------------------------------------------------------- */

/* Σ dy and Σ dy·(x − mean); dy is input `gradient`. */
typedef struct GradientSums {
  const PlanKernel *kernel;
  int32_t gradient;
  Value mean; /* vector */
} GradientSums;

static void gradient_quantities(Emit *emit, const void *context, const Value *index, Term *out_terms) {
  const GradientSums *sums = context;
  Value gradient = load_at(emit, sums->kernel, sums->gradient, index);
  out_terms[0] = (Term){gradient, NULL};
  out_terms[1] = (Term){gradient, emit_fsub(emit, load_at(emit, sums->kernel, 0, index), sums->mean)};
}

static void weighted_quantity(Emit *emit, const void *context, const Value *index, Term *out_terms) {
  Term terms[MAX_QUANTITIES];
  gradient_quantities(emit, context, index, terms);
  out_terms[0] = terms[1];
}

/* x, mean, variance, dy. */
bool batch_batch_norm_grad_weight(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  *out_work = (KernelWork){.items = kernel->inputs[0].shape.dims[1]};
  EmitLoop channel = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  GradientSums state = {kernel, 3,
                        emit_splat(emit, channel_value(emit, kernel, 1, channel.index), batch_block(kernel))};
  Value sum, deviation = deviation_of(emit, kernel, 2, channel.index);
  sum_channel(emit, kernel, 1, weighted_quantity, &state, channel.index, &sum);
  Value result = wide_to_float(emit, emit_fdiv(emit, sum, deviation), 1);
  result = emit_epilogue(emit, result, &channel.index, 1);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, &channel.index), result);
  emit_loop_end(emit, &channel);
  return true;
}

/* dx = dy·outer + ((x − mean)·slope + shift) */
typedef struct InputGradient {
  const PlanKernel *kernel;
  Value mean, outer, slope, shift; /* vectors */
} InputGradient;

static Value input_gradient(Emit *emit, const void *context, const Value *index) {
  const InputGradient *state = context;
  Value distance = emit_fsub(emit, load_at(emit, state->kernel, 0, index), state->mean);
  Value value = emit_fma(emit, distance, state->slope, state->shift);
  return emit_fma(emit, load_at(emit, state->kernel, 4, index), state->outer, value);
}

/* weight/deviation · (dy − mean(dy) − x̂·mean(dy·x̂)), from Σ dy and Σ dy·(x − mean) in double. */
static InputGradient input_gradient_begin(Emit *emit, const PlanKernel *kernel, Value channel, Value mean,
                                          Value deviation, Value sum, Value weighted) {
  int32_t lanes = batch_block(kernel);
  Value count = count_values(emit, kernel);
  Value outer = emit_fdiv(emit, wide_from_float(emit, channel_value(emit, kernel, 1, channel), 1), deviation);
  Value share = emit_fsub(emit, wide_constant(emit, 1, 0), emit_fdiv(emit, outer, count));
  Value slope = emit_fdiv(emit, emit_fmul(emit, share, weighted), emit_fmul(emit, deviation, deviation));
  InputGradient gradient = {.kernel = kernel, .mean = emit_splat(emit, mean, lanes)};
  gradient.outer = emit_splat(emit, wide_to_float(emit, outer, 1), lanes);
  gradient.slope = emit_splat(emit, wide_to_float(emit, slope, 1), lanes);
  gradient.shift = emit_splat(emit, wide_to_float(emit, emit_fmul(emit, share, sum), 1), lanes);
  return gradient;
}

/* x, weight, mean, variance, dy; without the sums a unit is a channel, which is swept twice. */
static void input_gradient_alone(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  int32_t lanes = batch_block(kernel);
  *out_work = (KernelWork){.items = kernel->inputs[0].shape.dims[1]};
  EmitLoop channel = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  Value mean = channel_value(emit, kernel, 2, channel.index), sums[2];
  GradientSums state = {kernel, 4, emit_splat(emit, mean, lanes)};
  sum_channel(emit, kernel, 2, gradient_quantities, &state, channel.index, sums);
  Value deviation = deviation_of(emit, kernel, 3, channel.index);
  InputGradient gradient = input_gradient_begin(emit, kernel, channel.index, mean, deviation, sums[0], sums[1]);
  Places places = {kernel, input_gradient, &gradient};
  store_blocks(emit, &places, channel.index, emit_int(emit, 0), batch_blocks(emit, lanes));
  emit_loop_end(emit, &channel);
}

/* The sums are given: dbias = Σ dy, dweight = Σ dy·(x − mean) / deviation. */
bool batch_batch_norm_grad_input(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  if (kernel->op_input_count < 7) {
    input_gradient_alone(emit, kernel, out_work);
    return true;
  }
  batch_map_items(emit, batch_block(kernel));
  *out_work = work_per_image(DIM_BATCH, kernel->output.shape.dims[1]);
  ChannelLoop channels = channel_loop_begin(emit, kernel);
  Value channel = channels.loop.index;
  Value mean = channel_value(emit, kernel, 2, channel);
  Value deviation = deviation_of(emit, kernel, 3, channel);
  Value sum = wide_from_float(emit, channel_value(emit, kernel, 5, channel), 1);
  Value weighted = emit_fmul(emit, wide_from_float(emit, channel_value(emit, kernel, 6, channel), 1), deviation);
  InputGradient gradient = input_gradient_begin(emit, kernel, channel, mean, deviation, sum, weighted);
  Places places = {kernel, input_gradient, &gradient};
  store_blocks(emit, &places, channel, channels.first, channels.last);
  emit_loop_end(emit, &channels.loop);
  return true;
}
