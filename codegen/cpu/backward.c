/* Kernels of the ops that differentiation makes, but those of images: constants, parts, repeats, and the gradients of
 * weights and of normalisation. Plain values. Sums are taken in double, in a fixed order. */
#include "backward.h"
#include "conv.h"
#include "runs.h"
#include "wide.h"

/* --- rows of the output ------------------------------------------------------------------------------ */

typedef struct OutputRow OutputRow;

/* The value at index[] of the output, `lanes` elements along its last dimension. */
typedef Value (*RowValue)(Emit *emit, const OutputRow *row, int32_t lanes);

struct OutputRow {
  const PlanKernel *kernel;
  RowValue value;
  Value factor;                /* mean_grad */
  Value index[SHAPE_MAX_RANK]; /* of lane 0 */
  int32_t dim;                 /* along which the row runs; -1: one element */
};

static void store_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  OutputRow *row = context;
  const PlanTensor *out = &row->kernel->output;
  if (row->dim >= 0) row->index[row->dim] = at;
  Value value = emit_epilogue(emit, row->value(emit, row, lanes), row->index, lanes);
  emit_store(emit, emit->output, emit_offset(emit, out, row->index), value);
}

/* A work item is a row. */
static void emit_rows(Emit *emit, OutputRow *row, KernelWork *out_work) {
  const Shape *shape = &row->kernel->output.shape;
  const int32_t last = shape->rank - 1;
  bool skipped[SHAPE_MAX_RANK] = {false};
  row->dim = last >= 0 && shape->dims[last] != DIM_BATCH ? last : -1;
  if (row->dim >= 0) skipped[row->dim] = true;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, shape, skipped, item.index, row->index);
  emit_vector_loop(emit, row->dim >= 0 ? shape->dims[row->dim] : 1, emit->target->vector_lanes, store_lanes, row);
  emit_loop_end(emit, &item);
}

static Value full_value(Emit *emit, const OutputRow *row, int32_t lanes) {
  return emit_float(emit, lanes, row->kernel->attrs.value);
}

static Value repeated_value(Emit *emit, const OutputRow *row, int32_t lanes) {
  Value value =
      emit_load_broadcast(emit, &row->kernel->inputs[0], emit->inputs[0], &row->kernel->output, row->index, lanes);
  if (row->factor == NULL) return value;
  value = emit_fmul(emit, wide_from_float(emit, value, lanes), wide_splat(emit, row->factor, lanes));
  return wide_to_float(emit, value, lanes);
}

static Value slice_value(Emit *emit, const OutputRow *row, int32_t lanes) {
  const PlanTensor *in = &row->kernel->inputs[0];
  const int32_t dim = dim_from_front(row->kernel->attrs.dim, in->shape.rank);
  Value index[SHAPE_MAX_RANK];
  for (int32_t d = 0; d < in->shape.rank; d++) index[d] = row->index[d];
  index[dim] = emit_add_int(emit, index[dim], row->kernel->attrs.start);
  return emit_load_strided(emit, emit->inputs[0], emit_offset(emit, in, index), in->storage.stride[in->shape.rank - 1],
                           lanes);
}

bool cpu_full(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  OutputRow row = {.kernel = kernel, .value = full_value};
  emit_rows(emit, &row, out_work);
  return true;
}

bool cpu_slice(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  OutputRow row = {.kernel = kernel, .value = slice_value};
  emit_rows(emit, &row, out_work);
  return true;
}

bool cpu_expand(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  OutputRow row = {.kernel = kernel, .value = repeated_value};
  emit_rows(emit, &row, out_work);
  return true;
}

bool cpu_mean_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const Shape *in = &kernel->inputs[0].shape, *out = &kernel->output.shape;
  const int32_t shift = out->rank - in->rank;
  Value repeats = emit_int(emit, 1);
  for (int32_t d = 0; d < out->rank; d++) {
    if (d >= shift && in->dims[d - shift] == out->dims[d]) continue;
    repeats = out->dims[d] == DIM_BATCH ? LLVMBuildNSWMul(emit->builder, repeats, emit->batch, "")
                                        : emit_mul_int(emit, repeats, out->dims[d]);
  }
  OutputRow row = {.kernel = kernel, .value = repeated_value};
  row.factor = emit_fdiv(emit, wide_constant(emit, 1, 1), wide_from_int(emit, repeats));
  emit_rows(emit, &row, out_work);
  return true;
}

/* --- classes ----------------------------------------------------------------------------------------- */

bool cpu_one_hot(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *classes = &kernel->inputs[0], *out = &kernel->output;
  const int32_t last = out->shape.rank - 1;
  bool skipped[SHAPE_MAX_RANK] = {false};
  skipped[last] = true;
  Value index[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, &out->shape, skipped, item.index, index);
  Value class = emit_load_i64(emit, emit->inputs[0], emit_offset(emit, classes, index));
  Value low = emit_less(emit, emit_int(emit, -1), class);
  Value valid = emit_and(emit, low, emit_less(emit, class, emit_int(emit, kernel->attrs.depth)));
  Value other = emit_select(emit, valid, emit_float(emit, 1, 0), emit_float(emit, 1, NAN));
  EmitLoop k = emit_loop_count(emit, kernel->attrs.depth, 1, "class");
  index[last] = k.index;
  Value value = emit_select(emit, emit_equal(emit, k.index, class), emit_float(emit, 1, 1), other);
  emit_store(emit, emit->output, emit_offset(emit, out, index), emit_epilogue(emit, value, index, 1));
  emit_loop_end(emit, &k);
  emit_loop_end(emit, &item);
  return true;
}

/* --- maxima ------------------------------------------------------------------------------------------ */

typedef struct Nest {
  EmitLoop loops[SHAPE_MAX_RANK];
  int32_t count;
} Nest;

static Nest nest_begin(Emit *emit, const Shape *shape, const bool *chosen, Value *index) {
  Nest nest = {.count = 0};
  for (int32_t d = 0; d < shape->rank; d++) {
    if (!chosen[d]) continue;
    EmitLoop *loop = &nest.loops[nest.count++];
    *loop = emit_loop_begin(emit, emit_int(emit, 0), emit_extent(emit, shape->dims[d]), 1, "along");
    index[d] = loop->index;
  }
  return nest;
}

static void nest_end(Emit *emit, Nest *nest) {
  while (nest->count > 0) emit_loop_end(emit, &nest->loops[--nest->count]);
}

/* Values of an op with an epilogue are scattered first; then the epilogue runs over the finished elements. */
static void finish_elements(Emit *emit, const PlanKernel *kernel, const bool *chosen, Value *index) {
  if (kernel->epilogue_count == 0) return;
  Nest nest = nest_begin(emit, &kernel->output.shape, chosen, index);
  Value offset = emit_offset(emit, &kernel->output, index);
  emit_store(emit, emit->output, offset, emit_epilogue(emit, emit_load(emit, emit->output, offset, 1), index, 1));
  nest_end(emit, &nest);
}

/* A work item is a result of the forward reduction: the elements that it was taken from. */
bool cpu_max_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *x = &kernel->inputs[0], *gradient = &kernel->inputs[1], *out = &kernel->output;
  const IntList *dims = &kernel->attrs.dims;
  const int32_t rank = x->shape.rank;
  bool reduced[SHAPE_MAX_RANK] = {false};
  for (int32_t d = 1; d < rank && dims->count == 0; d++) reduced[d] = true;
  for (int32_t i = 0; i < dims->count; i++) reduced[dim_from_front(dims->values[i], rank)] = true;
  Value index[SHAPE_MAX_RANK] = {NULL}, result[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_kept(emit, &x->shape, reduced, item.index, index);
  int32_t at = 0;
  for (int32_t d = 0; d < rank; d++) {
    if (!reduced[d] || kernel->attrs.keep_dims) result[at++] = reduced[d] ? NULL : index[d];
  }
  Value best = emit_variable(emit, emit->f32, "best"), place = emit_variable(emit, emit->i64, "place");
  emit_set(emit, place, emit_int(emit, -1));
  emit_set(emit, best, emit_float(emit, 1, 0));
  Nest nest = nest_begin(emit, &x->shape, reduced, index);
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, x, index), 1), to = emit_offset(emit, out, index);
  emit_store(emit, emit->output, to, emit_float(emit, 1, 0));
  emit_take_larger(emit, value, to, best, place);
  nest_end(emit, &nest);
  EmitIf any = emit_if(emit, emit_less(emit, emit_int(emit, -1), emit_get(emit, emit->i64, place)), "any");
  emit_store(emit, emit->output, emit_get(emit, emit->i64, place),
             emit_load(emit, emit->inputs[1], emit_offset(emit, gradient, result), 1));
  emit_end_if(emit, &any);
  finish_elements(emit, kernel, reduced, index);
  emit_loop_end(emit, &item);
  return true;
}

/* --- weights of convolutions ------------------------------------------------------------------------- */

typedef struct Correlation {
  const Reduction *sum;
  Value x, gradient; /* offsets of the first product */
  int64_t x_stride, gradient_stride;
} Correlation;

static void add_products(Emit *emit, const Correlation *state, int32_t lanes, Value at) {
  Value x = emit_load_strided(emit, emit->inputs[0], emit_add(emit, state->x, emit_mul_int(emit, at, state->x_stride)),
                              state->x_stride, lanes);
  Value gradient = emit_load_strided(emit, emit->inputs[1],
                                     emit_add(emit, state->gradient, emit_mul_int(emit, at, state->gradient_stride)),
                                     state->gradient_stride, lanes);
  Value product = emit_fmul(emit, wide_from_float(emit, x, lanes), wide_from_float(emit, gradient, lanes));
  reduction_add(emit, state->sum, product, lanes);
}

/* Output positions [first, last) whose tap lies in the image: 0 ≤ at·stride + shift < size. */
static void inside_range(Emit *emit, Value shift, int64_t stride, int64_t size, int64_t count, Value *out_first,
                         Value *out_last) {
  Value zero = emit_int(emit, 0);
  Value before = emit_max(emit, emit_sub(emit, zero, shift), zero);
  Value room = emit_max(emit, emit_sub(emit, emit_int(emit, size), shift), zero);
  *out_first = emit_div_int(emit, emit_add_int(emit, before, stride - 1), stride);
  *out_last = emit_min(emit, emit_div_int(emit, emit_add_int(emit, room, stride - 1), stride), emit_int(emit, count));
}

/* A work item is the kernel of one filter for one channel; a tap sums over images and positions, vectors along rows. */
bool cpu_conv2d_grad_weight(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *x = &kernel->inputs[0], *gradient = &kernel->inputs[1], *out = &kernel->output;
  const Attrs *attrs = &kernel->attrs;
  const int64_t *filter = out->shape.dims, *places = gradient->shape.dims;
  const int32_t lanes = emit->target->vector_lanes;
  Value index[SHAPE_MAX_RANK], x_at[SHAPE_MAX_RANK], gradient_at[SHAPE_MAX_RANK];
  *out_work = (KernelWork){.items = filter[0] * filter[1]};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  emit_split(emit, item.index, 2, filter, index);
  EmitLoop r = emit_loop_count(emit, filter[2], 1, "tap_row"), s = emit_loop_count(emit, filter[3], 1, "tap_column");
  index[2] = r.index, index[3] = s.index;
  Value group = emit_div_int(emit, index[0], filter[0] / attrs->groups);
  Value down = emit_add_int(emit, emit_mul_int(emit, r.index, attrs->dilation.values[0]), -attrs->padding.values[0]);
  Value across = emit_add_int(emit, emit_mul_int(emit, s.index, attrs->dilation.values[1]), -attrs->padding.values[1]);
  Value top, bottom, left, right;
  inside_range(emit, down, attrs->stride.values[0], x->shape.dims[2], places[2], &top, &bottom);
  inside_range(emit, across, attrs->stride.values[1], x->shape.dims[3], places[3], &left, &right);
  Reduction sum = reduction_begin(emit, false, lanes);
  EmitLoop n = emit_loop_begin(emit, emit_int(emit, 0), emit_extent(emit, x->shape.dims[0]), 1, "image");
  EmitLoop y = emit_loop_begin(emit, top, bottom, 1, "y");
  x_at[0] = gradient_at[0] = n.index;
  x_at[1] = emit_add(emit, emit_mul_int(emit, group, filter[1]), index[1]);
  x_at[2] = emit_add(emit, emit_mul_int(emit, y.index, attrs->stride.values[0]), down);
  x_at[3] = across;
  gradient_at[1] = index[0], gradient_at[2] = y.index, gradient_at[3] = NULL;
  Correlation state = {&sum, emit_offset(emit, x, x_at), emit_offset(emit, gradient, gradient_at),
                       attrs->stride.values[1] * x->storage.stride[3], gradient->storage.stride[3]};
  Value width = emit_max(emit, emit_sub(emit, right, left), emit_int(emit, 0));
  Value whole = emit_sub(emit, right, emit_mod_int(emit, width, lanes));
  EmitLoop vectors = emit_loop_begin(emit, left, whole, lanes, "vector");
  add_products(emit, &state, lanes, vectors.index);
  emit_loop_end(emit, &vectors);
  EmitLoop rest = emit_loop_begin(emit, emit_max(emit, whole, left), right, 1, "rest");
  add_products(emit, &state, 1, rest.index);
  emit_loop_end(emit, &rest);
  emit_loop_end(emit, &y);
  emit_loop_end(emit, &n);
  Value value = emit_epilogue(emit, wide_to_float(emit, reduction_end(emit, &sum), 1), index, 1);
  emit_store(emit, emit->output, emit_offset(emit, out, index), value);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
  emit_loop_end(emit, &item);
  return true;
}

/* --- weights of linear layers ------------------------------------------------------------------------ */

typedef struct Outer {
  const PlanKernel *kernel;
  Value output; /* which of the layer's outputs */
} Outer;

static void add_rows(Emit *emit, void *context, int32_t lanes, Value at) {
  const Outer *outer = context;
  const PlanTensor *x = &outer->kernel->inputs[0], *gradient = &outer->kernel->inputs[1];
  const int32_t last = x->shape.rank - 1;
  bool rows[SHAPE_MAX_RANK] = {false};
  for (int32_t d = 0; d < last; d++) rows[d] = true;
  Reduction sum = reduction_begin(emit, false, lanes);
  Value index[SHAPE_MAX_RANK];
  Nest nest = nest_begin(emit, &x->shape, rows, index);
  index[last] = outer->output;
  Value factor = emit_load(emit, emit->inputs[1], emit_offset(emit, gradient, index), 1);
  index[last] = at;
  Value value = emit_load_strided(emit, emit->inputs[0], emit_offset(emit, x, index), x->storage.stride[last], lanes);
  factor = wide_splat(emit, wide_from_float(emit, factor, 1), lanes);
  reduction_add(emit, &sum, emit_fmul(emit, wide_from_float(emit, value, lanes), factor), lanes);
  nest_end(emit, &nest);
  const Value place[SHAPE_MAX_RANK] = {outer->output, at};
  value = emit_epilogue(emit, wide_to_float(emit, reduction_vector(emit, &sum), lanes), place, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &outer->kernel->output, place), value);
}

/* A work item is the weights of one output; lanes are inputs. */
bool cpu_linear_grad_weight(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const Shape *shape = &kernel->output.shape;
  *out_work = (KernelWork){.items = shape->dims[0]};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Outer outer = {kernel, item.index};
  emit_vector_loop(emit, shape->dims[1], emit->target->vector_lanes, add_rows, &outer);
  emit_loop_end(emit, &item);
  return true;
}

/* --- batch norm -------------------------------------------------------------------------------------- */

/* One channel of x and dy, which are inputs 0 and `gradient`. In double. */
typedef struct NormChannel {
  const PlanKernel *kernel;
  int32_t gradient;
  Value *index;
  Value mean, inverse;                     /* 1 / deviation */
  Reduction plain, weighted;               /* Σ dy, Σ dy·x̂ */
  Value mean_plain, mean_weighted, factor; /* batch_norm_grad_input */
} NormChannel;

static Value channel_number(Emit *emit, const PlanKernel *kernel, int32_t input, Value channel) {
  Value offset = emit_offset_element(emit, &kernel->inputs[input], &channel);
  return wide_from_float(emit, emit_load(emit, emit->inputs[input], offset, 1), 1);
}

static NormChannel norm_begin(Emit *emit, const PlanKernel *kernel, int32_t mean, Value *index) {
  NormChannel channel = {.kernel = kernel, .gradient = mean + 2, .index = index};
  channel.mean = channel_number(emit, kernel, mean, index[1]);
  Value variance = channel_number(emit, kernel, mean + 1, index[1]);
  variance = wide_to_float(emit, emit_fadd(emit, variance, wide_constant(emit, 1, kernel->attrs.eps)), 1);
  Value deviation = wide_from_float(emit, emit_math(emit, EXPR_SQRT, variance, 1), 1);
  channel.inverse = emit_fdiv(emit, wide_constant(emit, 1, 1), deviation);
  return channel;
}

/* Runs the body over all elements of the channel: rows of the last dimension, or, without one, images. */
static void norm_elements(Emit *emit, NormChannel *channel, EmitVectorBody body) {
  const Shape *shape = &channel->kernel->inputs[0].shape;
  bool outer[SHAPE_MAX_RANK] = {true, false, true, true, true, true};
  if (shape->rank > 2) outer[shape->rank - 1] = false;
  Nest nest = nest_begin(emit, shape, outer, channel->index);
  if (shape->rank > 2)
    emit_vector_loop(emit, shape->dims[shape->rank - 1], emit->target->vector_lanes, body, channel);
  else
    body(emit, channel, 1, NULL);
  nest_end(emit, &nest);
}

/* dy, and (x − mean) / deviation, in double. */
static void load_element(Emit *emit, const NormChannel *channel, int32_t lanes, Value at, Value *out_gradient,
                         Value *out_normalized) {
  const PlanTensor *x = &channel->kernel->inputs[0], *gradient = &channel->kernel->inputs[channel->gradient];
  const int32_t last = x->shape.rank - 1;
  if (at != NULL) channel->index[last] = at;
  Value dy = emit_load_strided(emit, emit->inputs[channel->gradient], emit_offset(emit, gradient, channel->index),
                               gradient->storage.stride[last], lanes);
  Value value =
      emit_load_strided(emit, emit->inputs[0], emit_offset(emit, x, channel->index), x->storage.stride[last], lanes);
  value = emit_fsub(emit, wide_from_float(emit, value, lanes), wide_splat(emit, channel->mean, lanes));
  *out_gradient = wide_from_float(emit, dy, lanes);
  *out_normalized = emit_fmul(emit, value, wide_splat(emit, channel->inverse, lanes));
}

static void add_element(Emit *emit, void *context, int32_t lanes, Value at) {
  NormChannel *channel = context;
  Value gradient, normalized;
  load_element(emit, channel, lanes, at, &gradient, &normalized);
  reduction_add(emit, &channel->plain, gradient, lanes);
  reduction_add(emit, &channel->weighted, emit_fmul(emit, gradient, normalized), lanes);
}

static void norm_sums(Emit *emit, NormChannel *channel) {
  channel->plain = reduction_begin(emit, false, emit->target->vector_lanes);
  channel->weighted = reduction_begin(emit, false, emit->target->vector_lanes);
  norm_elements(emit, channel, add_element);
}

static void store_element(Emit *emit, void *context, int32_t lanes, Value at) {
  NormChannel *channel = context;
  const PlanTensor *out = &channel->kernel->output;
  Value gradient, normalized;
  load_element(emit, channel, lanes, at, &gradient, &normalized);
  Value value = emit_fsub(emit, gradient, wide_splat(emit, channel->mean_plain, lanes));
  value = emit_fsub(emit, value, emit_fmul(emit, normalized, wide_splat(emit, channel->mean_weighted, lanes)));
  value = wide_to_float(emit, emit_fmul(emit, value, wide_splat(emit, channel->factor, lanes)), lanes);
  value = emit_epilogue(emit, value, channel->index, lanes);
  emit_store_strided(emit, emit->output, emit_offset(emit, out, channel->index),
                     out->storage.stride[out->shape.rank - 1], value, lanes);
}

/* x, weight, mean, variance, dy. A work item is a channel: see eval_batch_norm_grad_input. */
bool cpu_batch_norm_grad_input(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const Shape *shape = &kernel->output.shape;
  Value index[SHAPE_MAX_RANK] = {NULL};
  *out_work = (KernelWork){.items = shape->dims[1]};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  index[1] = item.index;
  NormChannel channel = norm_begin(emit, kernel, 2, index);
  norm_sums(emit, &channel);
  Value count = emit_extent(emit, shape->dims[0]);
  for (int32_t d = 2; d < shape->rank; d++) count = emit_mul_int(emit, count, shape->dims[d]);
  count = wide_from_int(emit, count);
  channel.mean_plain = emit_fdiv(emit, reduction_end(emit, &channel.plain), count);
  channel.mean_weighted = emit_fdiv(emit, reduction_end(emit, &channel.weighted), count);
  channel.factor = emit_fmul(emit, channel_number(emit, kernel, 1, item.index), channel.inverse);
  norm_elements(emit, &channel, store_element);
  emit_loop_end(emit, &item);
  return true;
}

/* x, mean, variance, dy. */
bool cpu_batch_norm_grad_weight(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Value index[SHAPE_MAX_RANK] = {NULL};
  *out_work = (KernelWork){.items = kernel->output.shape.dims[0]};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "channel");
  index[1] = item.index;
  NormChannel channel = norm_begin(emit, kernel, 1, index);
  norm_sums(emit, &channel);
  Value value = wide_to_float(emit, reduction_end(emit, &channel.weighted), 1);
  value = emit_epilogue(emit, value, &item.index, 1);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, &item.index), value);
  emit_loop_end(emit, &item);
  return true;
}
