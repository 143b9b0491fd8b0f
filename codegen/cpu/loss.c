/* Losses of plain values. With reduction "none" a work item is an element's or row's loss; otherwise there is one
 * item, which adds all of them up in a fixed order. */
#include "conv.h"
#include "runs.h"
#include "wide.h"

/* The result of a loss that adds up: `total` is a double. */
static void store_total(Emit *emit, const PlanKernel *kernel, Value total, int64_t per_image) {
  const Shape *shape = &kernel->inputs[0].shape;
  Value index[SHAPE_MAX_RANK] = {NULL};
  if (kernel->attrs.reduction == REDUCTION_MEAN) {
    Value count =
        shape->rank > 0 ? emit_mul_int(emit, emit_extent(emit, shape->dims[0]), per_image) : emit_int(emit, 1);
    total = emit_fdiv(emit, total, wide_from_int(emit, count));
  }
  Value result = emit_epilogue(emit, wide_to_float(emit, total, 1), index, 1);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), result);
}

/* --- cross entropy ----------------------------------------------------------------------------------- */

typedef struct PowerSum {
  const Reduction *sum;
  Value offset, maximum;
} PowerSum;

static void add_power(Emit *emit, void *context, int32_t lanes, Value at) {
  const PowerSum *state = context;
  Value value = emit_load(emit, emit->inputs[0], emit_add(emit, state->offset, at), lanes);
  value = emit_fsub(emit, value, emit_splat(emit, state->maximum, lanes));
  reduction_add(emit, state->sum, emit_math(emit, EXPR_EXP, value, lanes), lanes);
}

/* log Σ exp(x) − x[target] of row n, a double. NaN when the target is no class: its logit is not read. */
static Value emit_row_loss(Emit *emit, const PlanKernel *kernel, Value n) {
  const PlanTensor *in = &kernel->inputs[0];
  int32_t lanes = emit->target->vector_lanes;
  int64_t classes = in->shape.dims[1];
  Value row[SHAPE_MAX_RANK] = {n}, offset = emit_offset(emit, in, row);
  Reduction maximum = reduction_begin(emit, true, lanes), sum = reduction_begin(emit, false, lanes);
  reduction_add_run(emit, &maximum, emit->inputs[0], offset, classes);
  PowerSum state = {&sum, offset, reduction_end(emit, &maximum)};
  emit_vector_loop(emit, classes, lanes, add_power, &state);
  Value log_sum = emit_math(emit, EXPR_LOG, wide_to_float(emit, reduction_end(emit, &sum), 1), 1);

  Value target = emit_load_i64(emit, emit->inputs[1], emit_offset(emit, &kernel->inputs[1], row));
  Value zero = emit_int(emit, 0);
  Value safe = emit_max(emit, emit_min(emit, target, emit_int(emit, classes - 1)), zero);
  Value logit = emit_load(emit, emit->inputs[0], emit_add(emit, offset, safe), 1);
  /* in double: the maximum and the logit cancel */
  Value loss = emit_fsub(emit, wide_from_float(emit, state.maximum, 1), wide_from_float(emit, logit, 1));
  loss = emit_fadd(emit, loss, wide_from_float(emit, log_sum, 1));
  return emit_select(emit, emit_equal(emit, target, safe), loss, wide_constant(emit, 1, NAN));
}

bool cpu_cross_entropy(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  int64_t rows = kernel->inputs[0].shape.dims[0];
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  if (kernel->attrs.reduction == REDUCTION_NONE) {
    Value index[SHAPE_MAX_RANK] = {item.index};
    Value loss = wide_to_float(emit, emit_row_loss(emit, kernel, item.index), 1);
    emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), emit_epilogue(emit, loss, index, 1));
    *out_work = work_per_image(rows, 1);
  } else {
    Reduction total = reduction_begin(emit, false, 1);
    EmitLoop n = emit_loop_begin(emit, emit_int(emit, 0), emit_extent(emit, rows), 1, "row");
    reduction_add(emit, &total, emit_row_loss(emit, kernel, n.index), 1);
    emit_loop_end(emit, &n);
    store_total(emit, kernel, reduction_end(emit, &total), 1);
    *out_work = (KernelWork){.items = 1};
  }
  emit_loop_end(emit, &item);
  return true;
}

/* --- element by element ------------------------------------------------------------------------------ */

typedef Value (*ElementLoss)(Emit *emit, Value x, Value target, int32_t lanes);

static Value squared_error(Emit *emit, Value x, Value target, int32_t lanes) {
  (void)lanes;
  Value difference = emit_fsub(emit, x, target);
  return emit_fmul(emit, difference, difference);
}

/* max(x, 0) − x·t + log(1 + exp(−|x|)). The logarithm of a number close to 1 is corrected for the rounding of the sum
 * 1 + e: log1p(e) = log(s) · e / (s − 1), e itself where s is 1 (Goldberg, "What Every Computer Scientist Should Know
 * About Floating-Point Arithmetic", theorem 4). */
static Value binary_cross_entropy(Emit *emit, Value x, Value target, int32_t lanes) {
  Value one = emit_float(emit, lanes, 1);
  Value power = emit_math(emit, EXPR_EXP, emit_math(emit, EXPR_NEG, emit_math(emit, EXPR_ABS, x, lanes), lanes), lanes);
  Value sum = emit_fadd(emit, one, power);
  Value exact = emit_fdiv(emit, power, emit_fsub(emit, sum, one));
  Value logarithm = emit_fmul(emit, emit_math(emit, EXPR_LOG, sum, lanes), exact);
  logarithm = emit_fselect_less(emit, one, sum, logarithm, power);
  Value linear = emit_fsub(emit, emit_maximum(emit, x, emit_float(emit, lanes, 0)), emit_fmul(emit, x, target));
  return emit_fadd(emit, linear, logarithm);
}

typedef struct Elements {
  const PlanKernel *kernel;
  ElementLoss loss;
  const Reduction *total; /* NULL: every element's loss is stored */
  Value *index;
  int32_t dim; /* of the run; -1: one element */
} Elements;

static void put_loss(Emit *emit, void *context, int32_t lanes, Value at) {
  const Elements *elements = context;
  const PlanKernel *kernel = elements->kernel;
  if (elements->dim >= 0) elements->index[elements->dim] = at;
  Value operand[2];
  for (int i = 0; i < 2; i++)
    operand[i] = emit_load(emit, emit->inputs[i], emit_offset(emit, &kernel->inputs[i], elements->index), lanes);
  Value loss = elements->loss(emit, operand[0], operand[1], lanes);
  if (elements->total != NULL) {
    reduction_add(emit, elements->total, loss, lanes);
    return;
  }
  loss = emit_epilogue(emit, loss, elements->index, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, elements->index), loss);
}

/* Items of reduction "none": rows along the last dimension; otherwise all runs in order. */
static bool emit_element_loss(Emit *emit, const PlanKernel *kernel, ElementLoss loss, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0];
  int32_t lanes = emit->target->vector_lanes, last = in->shape.rank - 1;
  bool each = kernel->attrs.reduction == REDUCTION_NONE;
  Value index[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Reduction total = {.maximum = false};
  if (!each) total = reduction_begin(emit, false, lanes);
  Elements elements = {kernel, loss, each ? NULL : &total, index, -1};
  if (each) {
    bool skipped[SHAPE_MAX_RANK] = {false};
    if (last >= 0 && in->shape.dims[last] != DIM_BATCH) skipped[last] = true, elements.dim = last;
    *out_work = split_kept(emit, &in->shape, skipped, item.index, index);
    emit_vector_loop(emit, elements.dim >= 0 ? in->shape.dims[last] : 1, lanes, put_loss, &elements);
  } else {
    Runs runs = runs_begin(emit, in, &kernel->inputs[1], 0, NULL, false, index);
    elements.dim = runs.dim;
    emit_vector_loop(emit, runs.count, lanes, put_loss, &elements);
    runs_end(emit, &runs);
    int64_t per_image = 1;
    for (int32_t d = 1; d < in->shape.rank; d++) per_image *= in->shape.dims[d];
    store_total(emit, kernel, reduction_end(emit, &total), per_image);
    *out_work = (KernelWork){.items = 1};
  }
  emit_loop_end(emit, &item);
  return true;
}

bool cpu_mse(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_element_loss(emit, kernel, squared_error, out_work);
}

bool cpu_bce_with_logits(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_element_loss(emit, kernel, binary_cross_entropy, out_work);
}
