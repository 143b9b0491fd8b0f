/* Normalisation of plain values [N, C, …] and the statistics of a batch. Statistics are taken in two passes, the mean
 * first, in double. */
#include "conv.h"
#include "runs.h"
#include "wide.h"
#include "work.h"

/* --- statistics -------------------------------------------------------------------------------------- */

/* Σx, or Σ(x − mean)² when `mean` is given. */
typedef struct ChannelSum {
  const Reduction *reduction;
  Value offset, mean;
} ChannelSum;

static void add_deviation(Emit *emit, void *context, int32_t lanes, Value at) {
  const ChannelSum *sum = context;
  Value value = emit_load(emit, emit->inputs[0], emit_add(emit, sum->offset, at), lanes);
  value = wide_from_float(emit, value, lanes);
  if (sum->mean != NULL) {
    value = emit_fsub(emit, value, wide_splat(emit, sum->mean, lanes));
    value = emit_fmul(emit, value, value);
  }
  reduction_add(emit, sum->reduction, value, lanes);
}

static Value sum_channel(Emit *emit, const PlanTensor *x, Value channel, Value mean) {
  int32_t lanes = emit->target->vector_lanes;
  Reduction reduction = reduction_begin(emit, false, lanes);
  ChannelSum sum = {&reduction, NULL, mean};
  bool reduced[SHAPE_MAX_RANK] = {true, false, true, true, true, true};
  Value index[SHAPE_MAX_RANK] = {NULL, channel};
  Runs runs = runs_begin(emit, x, NULL, 0, reduced, false, index);
  sum.offset = emit_offset(emit, x, index);
  emit_vector_loop(emit, runs.count, lanes, add_deviation, &sum);
  runs_end(emit, &runs);
  return reduction_end(emit, &reduction);
}

/* Values per channel. */
static Value count_channel(Emit *emit, const Shape *shape) {
  Value count = emit_extent(emit, shape->dims[0]);
  for (int32_t d = 2; d < shape->rank; d++) count = emit_mul_int(emit, count, shape->dims[d]);
  return count;
}

/* Mean and biased variance as doubles. */
static void measure_channel(Emit *emit, const PlanTensor *x, Value channel, Value *out_mean, Value *out_variance) {
  Value count = wide_from_int(emit, count_channel(emit, &x->shape));
  *out_mean = emit_fdiv(emit, sum_channel(emit, x, channel, NULL), count);
  *out_variance = emit_fdiv(emit, sum_channel(emit, x, channel, *out_mean), count);
}

bool cpu_batch_stats(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  Value value[2];
  measure_channel(emit, &kernel->inputs[0], item.index, &value[0], &value[1]);
  for (int i = 0; i < 2; i++) {
    Value index[SHAPE_MAX_RANK] = {emit_int(emit, i), item.index};
    Value result = emit_epilogue(emit, wide_to_float(emit, value[i], 1), index, 1);
    emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), result);
  }
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = kernel->inputs[0].shape.dims[1]};
  return true;
}

/* Σx of the rows [begin, end) of an image's plane, or Σ(x − mean)². */
static Value sum_rows(Emit *emit, const PlanTensor *x, const Value *place, Value begin, Value end, Value mean) {
  Reduction reduction = reduction_begin(emit, false, 1);
  EmitLoop row = emit_loop_begin(emit, begin, end, 1, "row");
  EmitLoop column = emit_loop_count(emit, x->shape.dims[3], 1, "column");
  const Value index[SHAPE_MAX_RANK] = {place[0], place[1], row.index, column.index};
  Value value = emit_load(emit, emit->inputs[0], emit_offset_element(emit, x, index), 1);
  value = wide_from_float(emit, value, 1);
  if (mean != NULL) {
    value = emit_fsub(emit, value, mean);
    value = emit_fmul(emit, value, value);
  }
  reduction_add(emit, &reduction, value, 1);
  emit_loop_end(emit, &column);
  emit_loop_end(emit, &row);
  return reduction_end(emit, &reduction);
}

bool cpu_plane_moments(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *x = &kernel->inputs[0];
  const int64_t height = x->shape.dims[2], parts = kernel->output.shape.dims[2], rows = moment_rows(height, parts);
  const int64_t extents[3] = {1, x->shape.dims[1], parts};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "part");
  Value place[3];
  emit_split(emit, item.index, 3, extents, place);
  Value begin = emit_mul_int(emit, place[2], rows);
  Value end = emit_min(emit, emit_add_int(emit, begin, rows), emit_int(emit, height));
  Value count = wide_from_int(emit, emit_mul_int(emit, emit_sub(emit, end, begin), x->shape.dims[3])), value[2];
  value[0] = emit_fdiv(emit, sum_rows(emit, x, place, begin, end, NULL), count);
  value[1] = sum_rows(emit, x, place, begin, end, value[0]);
  for (int i = 0; i < 2; i++) {
    Value index[SHAPE_MAX_RANK] = {place[0], place[1], place[2], emit_int(emit, i)};
    Value result = emit_epilogue(emit, wide_to_float(emit, value[i], 1), index, 1);
    emit_store(emit, emit->output, emit_offset_element(emit, &kernel->output, index), result);
  }
  emit_loop_end(emit, &item);
  *out_work = work_per_image(kernel->output.shape.dims[0], extents[1] * extents[2]);
  return true;
}

/* --- running statistics ------------------------------------------------------------------------------ */

typedef struct StatUpdate {
  const PlanKernel *kernel;
  Value correction; /* double: biased to unbiased variance */
  Value finite;     /* i1: the loss is, so that there is something to learn from; NULL: not asked for */
} StatUpdate;

static void update_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  const StatUpdate *update = context;
  const PlanKernel *kernel = update->kernel;
  double momentum = kernel->attrs.momentum;
  Value index[SHAPE_MAX_RANK] = {at}, measured_at[SHAPE_MAX_RANK] = {emit_int(emit, kernel->attrs.dim), at};
  Value running = emit_load(emit, emit->inputs[0], emit_offset(emit, &kernel->inputs[0], index), lanes);
  Value measured = emit_load(emit, emit->inputs[1], emit_offset(emit, &kernel->inputs[1], measured_at), lanes);
  measured = emit_fmul(emit, wide_from_float(emit, measured, lanes), wide_splat(emit, update->correction, lanes));
  Value kept = emit_fmul(emit, wide_from_float(emit, running, lanes), wide_constant(emit, lanes, 1 - momentum));
  Value sum = emit_fadd(emit, kept, emit_fmul(emit, measured, wide_constant(emit, lanes, momentum)));
  Value updated = wide_to_float(emit, sum, lanes);
  if (update->finite != NULL) updated = emit_select(emit, update->finite, updated, running);
  Value result = emit_epilogue(emit, updated, index, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), result);
}

bool cpu_bn_update(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  StatUpdate update = {kernel, wide_constant(emit, 1, 1), NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  if (kernel->attrs.dim == 1) {
    /* a single value has no unbiased variance: it counts as its biased one */
    Value count = count_channel(emit, &kernel->inputs[2].shape);
    Value others = emit_max(emit, emit_add_int(emit, count, -1), emit_int(emit, 1));
    update.correction = emit_fdiv(emit, wide_from_int(emit, count), wide_from_int(emit, others));
  }
  if (kernel->op_input_count > 3) {
    Value loss = emit_load(emit, emit->inputs[3], emit_offset(emit, &kernel->inputs[3], (Value[SHAPE_MAX_RANK]){NULL}), 1);
    Value zero = emit_float(emit, 1, 0); /* NaN and infinite values differ from 0 when taken from themselves */
    update.finite = LLVMBuildFCmp(emit->builder, LLVMRealOEQ, emit_fsub(emit, loss, loss), zero, "finite");
  }
  emit_vector_loop(emit, kernel->output.shape.dims[0], emit->target->vector_lanes, update_lanes, &update);
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = 1};
  return true;
}

/* --- normalisation ----------------------------------------------------------------------------------- */

/* (x − mean) · scale + bias along a run; `bias` may be NULL. */
typedef struct Affine {
  const PlanKernel *kernel;
  Value mean, scale, bias; /* scalars */
  Value *index;
  int32_t dim; /* of the run; -1: one element */
} Affine;

static void normalize_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  const Affine *affine = context;
  const PlanKernel *kernel = affine->kernel;
  if (affine->dim >= 0) affine->index[affine->dim] = at;
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, &kernel->inputs[0], affine->index), lanes);
  value = emit_fsub(emit, value, emit_splat(emit, affine->mean, lanes));
  Value scale = emit_splat(emit, affine->scale, lanes);
  value = affine->bias ? emit_fma(emit, value, scale, emit_splat(emit, affine->bias, lanes))
                       : emit_fmul(emit, value, scale);
  value = emit_epilogue(emit, value, affine->index, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, affine->index), value);
}

/* All elements of image index[0] and channel index[1]. */
static void normalize_channel(Emit *emit, Affine *affine, Value *index) {
  const PlanKernel *kernel = affine->kernel;
  /* an epilogue's operands may differ from row to row */
  Runs runs = runs_begin(emit, &kernel->inputs[0], &kernel->output, 2, NULL, kernel->epilogue_count > 0, index);
  affine->index = index;
  affine->dim = runs.dim;
  emit_vector_loop(emit, runs.count, emit->target->vector_lanes, normalize_lanes, affine);
  runs_end(emit, &runs);
}

static Value load_channel(Emit *emit, const PlanKernel *kernel, int32_t input, Value channel) {
  Value index[SHAPE_MAX_RANK] = {channel};
  return emit_load(emit, emit->inputs[input], emit_offset_element(emit, &kernel->inputs[input], index), 1);
}

/* x, weight, bias, mean, variance. Inference: an item is a channel of an image; training: a channel of all images,
 * with the statistics of this batch. */
bool cpu_batch_norm(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *x = &kernel->inputs[0];
  if (x->layout.kind != LAYOUT_PLAIN || kernel->output.layout.kind != LAYOUT_PLAIN) {
    diag_error(diag, kernel->location, "'%s': batch_norm takes plain values only", kernel->name);
    return false;
  }
  bool training = kernel->attrs.training, skipped[SHAPE_MAX_RANK] = {training, false, true, true, true, true};
  Value index[SHAPE_MAX_RANK] = {NULL}, mean, variance;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, &x->shape, skipped, item.index, index);
  Affine affine = {.kernel = kernel, .bias = load_channel(emit, kernel, 2, index[1])};
  if (training) {
    measure_channel(emit, x, index[1], &mean, &variance);
  } else {
    mean = wide_from_float(emit, load_channel(emit, kernel, 3, index[1]), 1);
    variance = wide_from_float(emit, load_channel(emit, kernel, 4, index[1]), 1);
  }
  Value deviation = wide_to_float(emit, emit_fadd(emit, variance, wide_constant(emit, 1, kernel->attrs.eps)), 1);
  deviation = emit_math(emit, EXPR_SQRT, deviation, 1);
  affine.mean = wide_to_float(emit, mean, 1);
  affine.scale = emit_fdiv(emit, load_channel(emit, kernel, 1, index[1]), deviation);
  if (training) {
    EmitLoop image = emit_loop_begin(emit, emit_int(emit, 0), emit_extent(emit, x->shape.dims[0]), 1, "image");
    index[0] = image.index;
    normalize_channel(emit, &affine, index);
    emit_loop_end(emit, &image);
  } else {
    normalize_channel(emit, &affine, index);
  }
  emit_loop_end(emit, &item);
  return true;
}

/* Per-channel numbers from the attributes, chosen by comparing the channel. */
static Value choose_channel(Emit *emit, const FloatList *list, bool reciprocal, Value channel) {
  Value chosen = NULL;
  for (int32_t i = 0; i < list->count; i++) {
    Value value = emit_float(emit, 1, reciprocal ? 1 / list->values[i] : list->values[i]);
    chosen = chosen ? emit_select(emit, emit_equal(emit, channel, emit_int(emit, i)), value, chosen) : value;
  }
  return chosen;
}

bool cpu_normalize(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const bool skipped[SHAPE_MAX_RANK] = {false, false, true, true, true, true};
  Value index[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, &kernel->output.shape, skipped, item.index, index);
  Affine affine = {.kernel = kernel,
                   .mean = choose_channel(emit, &kernel->attrs.mean, false, index[1]),
                   .scale = choose_channel(emit, &kernel->attrs.std, true, index[1])};
  normalize_channel(emit, &affine, index);
  emit_loop_end(emit, &item);
  return true;
}
