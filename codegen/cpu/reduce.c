/* Reductions along dimensions of plain tensors, softmax and argmax. A work item is one result, or one row of results
 * when the last dimension stays: lanes then run over it and reduce independently. */
#include "runs.h"
#include "wide.h"

/* --- sum, mean, max ---------------------------------------------------------------------------------- */

typedef enum ReduceKind { REDUCE_SUM, REDUCE_MEAN, REDUCE_MAX } ReduceKind;

typedef struct Reduce {
  const PlanKernel *kernel;
  ReduceKind kind;
  bool reduced[SHAPE_MAX_RANK];
  Value index[SHAPE_MAX_RANK];  /* of the input */
  Value result[SHAPE_MAX_RANK]; /* of the output */
} Reduce;

/* Where a result stands: the input's index without its reduced dimensions, or with 0 for them. */
static void find_result(Reduce *reduce) {
  bool keep = reduce->kernel->attrs.keep_dims;
  int32_t at = 0;
  for (int32_t d = 0; d < reduce->kernel->inputs[0].shape.rank; d++) {
    if (!reduce->reduced[d])
      reduce->result[at++] = reduce->index[d];
    else if (keep)
      reduce->result[at++] = NULL;
  }
}

static Value count_reduced(Emit *emit, const Reduce *reduce) {
  const Shape *shape = &reduce->kernel->inputs[0].shape;
  Value count = emit_int(emit, 1);
  for (int32_t d = 0; d < shape->rank; d++) {
    if (!reduce->reduced[d]) continue;
    count = shape->dims[d] == DIM_BATCH ? LLVMBuildNSWMul(emit->builder, count, emit->batch, "")
                                        : emit_mul_int(emit, count, shape->dims[d]);
  }
  return count;
}

static void store_reduced(Emit *emit, Reduce *reduce, Value value, int32_t lanes) {
  const PlanTensor *out = &reduce->kernel->output;
  if (reduce->kind == REDUCE_MEAN) {
    Value share = emit_fdiv(emit, wide_constant(emit, 1, 1), wide_from_int(emit, count_reduced(emit, reduce)));
    value = emit_fmul(emit, value, wide_splat(emit, share, lanes));
  }
  if (reduce->kind != REDUCE_MAX) value = wide_to_float(emit, value, lanes);
  find_result(reduce);
  /* epilogues take lanes along the last dimension: that is where they run here too */
  emit_store(emit, emit->output, emit_offset(emit, out, reduce->result),
             emit_epilogue(emit, value, reduce->result, lanes));
}

/* Results at `at` … of the last dimension, which stays. */
static void reduce_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  Reduce *reduce = context;
  const PlanTensor *in = &reduce->kernel->inputs[0];
  int32_t last = in->shape.rank - 1;
  Reduction reduction = reduction_begin(emit, reduce->kind == REDUCE_MAX, lanes);
  Runs runs = runs_begin(emit, in, NULL, 0, reduce->reduced, true, reduce->index);
  reduce->index[last] = at;
  Value offset = emit_offset(emit, in, reduce->index);
  reduction_add(emit, &reduction, emit_load_strided(emit, emit->inputs[0], offset, in->storage.stride[last], lanes),
                lanes);
  runs_end(emit, &runs);
  store_reduced(emit, reduce, reduction_vector(emit, &reduction), lanes);
}

/* One result. */
static void reduce_runs(Emit *emit, Reduce *reduce) {
  const PlanTensor *in = &reduce->kernel->inputs[0];
  Reduction reduction = reduction_begin(emit, reduce->kind == REDUCE_MAX, emit->target->vector_lanes);
  Runs runs = runs_begin(emit, in, NULL, 0, reduce->reduced, false, reduce->index);
  reduction_add_run(emit, &reduction, emit->inputs[0], emit_offset(emit, in, reduce->index), runs.count);
  runs_end(emit, &runs);
  store_reduced(emit, reduce, reduction_end(emit, &reduction), 1);
}

static bool emit_reduce(Emit *emit, const PlanKernel *kernel, ReduceKind kind, KernelWork *out_work) {
  const Shape *shape = &kernel->inputs[0].shape;
  const IntList *dims = &kernel->attrs.dims;
  Reduce reduce = {.kernel = kernel, .kind = kind};
  for (int32_t d = 1; d < shape->rank && dims->count == 0; d++) reduce.reduced[d] = true;
  for (int32_t i = 0; i < dims->count; i++) reduce.reduced[dim_from_front(dims->values[i], shape->rank)] = true;
  int32_t last = shape->rank - 1;
  bool by_lanes = last >= 0 && !reduce.reduced[last] && shape->dims[last] != DIM_BATCH;
  bool skipped[SHAPE_MAX_RANK];
  for (int32_t d = 0; d < shape->rank; d++) skipped[d] = reduce.reduced[d] || (by_lanes && d == last);

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, shape, skipped, item.index, reduce.index);
  if (by_lanes)
    emit_vector_loop(emit, shape->dims[last], emit->target->vector_lanes, reduce_lanes, &reduce);
  else
    reduce_runs(emit, &reduce);
  emit_loop_end(emit, &item);
  return true;
}

bool cpu_sum(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_reduce(emit, kernel, REDUCE_SUM, out_work);
}

bool cpu_mean(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_reduce(emit, kernel, REDUCE_MEAN, out_work);
}

bool cpu_max(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_reduce(emit, kernel, REDUCE_MAX, out_work);
}

/* --- argmax ------------------------------------------------------------------------------------------ */

/* The first maximum; NaN counts as larger than every number, as in PyTorch. */
bool cpu_argmax(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0];
  Reduce reduce = {.kernel = kernel, .kind = REDUCE_MAX};
  int32_t dim = dim_from_front(kernel->attrs.dim, in->shape.rank);
  reduce.reduced[dim] = true;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, &in->shape, reduce.reduced, item.index, reduce.index);
  reduce.index[dim] = NULL;
  Value start = emit_offset(emit, in, reduce.index);
  Value maximum = emit_variable(emit, emit->f32, "maximum"), place = emit_variable(emit, emit->i64, "place");
  emit_set(emit, maximum, emit_load(emit, emit->inputs[0], start, 1));
  emit_set(emit, place, emit_int(emit, 0));
  EmitLoop at = emit_loop_begin(emit, emit_int(emit, 1), emit_extent(emit, in->shape.dims[dim]), 1, "at");
  Value offset = emit_add(emit, start, emit_mul_int(emit, at.index, in->storage.stride[dim]));
  Value value = emit_load(emit, emit->inputs[0], offset, 1), best = emit_get(emit, emit->f32, maximum);
  /* not (value <= best), which a NaN makes true, unless the best is a NaN already */
  Value exceeds = LLVMBuildFCmp(emit->builder, LLVMRealUGT, value, best, "");
  Value is_number = LLVMBuildFCmp(emit->builder, LLVMRealORD, best, best, "");
  Value better = emit_and(emit, exceeds, is_number);
  emit_set(emit, maximum, emit_select(emit, better, value, best));
  emit_set(emit, place, emit_select(emit, better, at.index, emit_get(emit, emit->i64, place)));
  emit_loop_end(emit, &at);
  find_result(&reduce);
  emit_store_i64(emit, emit->output, emit_offset(emit, &kernel->output, reduce.result),
                 emit_get(emit, emit->i64, place));
  emit_loop_end(emit, &item);
  return true;
}

/* --- softmax ----------------------------------------------------------------------------------------- */

typedef struct Softmax {
  const PlanKernel *kernel;
  bool logarithm;
  int32_t dim;
  Value index[SHAPE_MAX_RANK];
  Value maximum, normalizer; /* scalars along a row, vectors across rows */
  Reduction sum;
} Softmax;

static Value load_shifted(Emit *emit, const Softmax *softmax, int32_t lanes) {
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, &softmax->kernel->inputs[0], softmax->index), lanes);
  bool along = LLVMTypeOf(softmax->maximum) == emit->f32;
  return emit_fsub(emit, value, along ? emit_splat(emit, softmax->maximum, lanes) : softmax->maximum);
}

/* Second pass: adds up the powers, which softmax leaves in the output. */
static void add_power(Emit *emit, const Softmax *softmax, int32_t lanes) {
  Value power = emit_math(emit, EXPR_EXP, load_shifted(emit, softmax, lanes), lanes);
  if (!softmax->logarithm)
    emit_store(emit, emit->output, emit_offset(emit, &softmax->kernel->output, softmax->index), power);
  reduction_add(emit, &softmax->sum, power, lanes);
}

static Value find_normalizer(Emit *emit, const Softmax *softmax, Value sum, int32_t lanes) {
  if (softmax->logarithm) return emit_math(emit, EXPR_LOG, wide_to_float(emit, sum, lanes), lanes);
  return wide_to_float(emit, emit_fdiv(emit, wide_constant(emit, lanes, 1), sum), lanes);
}

/* Third pass. */
static void store_probability(Emit *emit, const Softmax *softmax, int32_t lanes) {
  Value offset = emit_offset(emit, &softmax->kernel->output, softmax->index), normalizer = softmax->normalizer, value;
  if (LLVMTypeOf(normalizer) == emit->f32) normalizer = emit_splat(emit, normalizer, lanes);
  if (softmax->logarithm)
    value = emit_fsub(emit, load_shifted(emit, softmax, lanes), normalizer);
  else
    value = emit_fmul(emit, emit_load(emit, emit->output, offset, lanes), normalizer);
  emit_store(emit, emit->output, offset, emit_epilogue(emit, value, softmax->index, lanes));
}

static void add_power_at(Emit *emit, void *context, int32_t lanes, Value at) {
  Softmax *softmax = context;
  softmax->index[softmax->dim] = at;
  add_power(emit, softmax, lanes);
}

static void store_probability_at(Emit *emit, void *context, int32_t lanes, Value at) {
  Softmax *softmax = context;
  softmax->index[softmax->dim] = at;
  store_probability(emit, softmax, lanes);
}

/* Along the last dimension: lanes work together. */
static void softmax_row(Emit *emit, Softmax *softmax) {
  const PlanTensor *in = &softmax->kernel->inputs[0];
  int32_t lanes = emit->target->vector_lanes;
  int64_t count = in->shape.dims[softmax->dim];
  softmax->index[softmax->dim] = NULL;
  Reduction maximum = reduction_begin(emit, true, lanes);
  softmax->sum = reduction_begin(emit, false, lanes);
  reduction_add_run(emit, &maximum, emit->inputs[0], emit_offset(emit, in, softmax->index), count);
  softmax->maximum = reduction_end(emit, &maximum);
  emit_vector_loop(emit, count, lanes, add_power_at, softmax);
  softmax->normalizer = find_normalizer(emit, softmax, reduction_end(emit, &softmax->sum), 1);
  emit_vector_loop(emit, count, lanes, store_probability_at, softmax);
}

/* Along another dimension: each lane has a row of its own. */
static void softmax_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  Softmax *softmax = context;
  const PlanTensor *in = &softmax->kernel->inputs[0];
  softmax->index[in->shape.rank - 1] = at;
  Reduction maximum = reduction_begin(emit, true, lanes);
  softmax->sum = reduction_begin(emit, false, lanes);
  for (int pass = 0; pass < 3; pass++) {
    EmitLoop along = emit_loop_count(emit, in->shape.dims[softmax->dim], 1, "along");
    softmax->index[softmax->dim] = along.index;
    if (pass == 0)
      reduction_add(emit, &maximum, emit_load(emit, emit->inputs[0], emit_offset(emit, in, softmax->index), lanes),
                    lanes);
    if (pass == 1) add_power(emit, softmax, lanes);
    if (pass == 2) store_probability(emit, softmax, lanes);
    emit_loop_end(emit, &along);
    if (pass == 0) softmax->maximum = reduction_vector(emit, &maximum);
    if (pass == 1) softmax->normalizer = find_normalizer(emit, softmax, reduction_vector(emit, &softmax->sum), lanes);
  }
}

static bool emit_softmax(Emit *emit, const PlanKernel *kernel, bool logarithm, KernelWork *out_work) {
  const Shape *shape = &kernel->output.shape;
  int32_t last = shape->rank - 1;
  Softmax softmax = {.kernel = kernel, .logarithm = logarithm, .dim = dim_from_front(kernel->attrs.dim, shape->rank)};
  bool skipped[SHAPE_MAX_RANK] = {false};
  skipped[softmax.dim] = skipped[last] = true;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, shape, skipped, item.index, softmax.index);
  if (softmax.dim == last)
    softmax_row(emit, &softmax);
  else
    emit_vector_loop(emit, shape->dims[last], emit->target->vector_lanes, softmax_lanes, &softmax);
  emit_loop_end(emit, &item);
  return true;
}

bool cpu_softmax(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_softmax(emit, kernel, false, out_work);
}

bool cpu_log_softmax(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_softmax(emit, kernel, true, out_work);
}
