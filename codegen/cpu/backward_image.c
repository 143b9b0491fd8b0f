/* Gradients of pooling, resampling and padding. A work item is a plane: the gradients of one channel of one image are
 * scattered into it, place by place in row-major order, so that the result does not depend on the number of threads.
 * Plain values, or batch-blocked ones: then a plane is that of a block of images, and each place of it a vector. */
#include "backward.h"
#include "conv.h"
#include "wide.h"

void emit_take_larger(Emit *emit, Value value, Value at, Value best, Value place) {
  Value before = emit_get(emit, emit->f32, best), where = emit_get(emit, emit->i64, place);
  /* not (value <= before), which a NaN makes true, unless there is a NaN already */
  Value exceeds = LLVMBuildFCmp(emit->builder, LLVMRealUGT, value, before, "");
  Value is_number = LLVMBuildFCmp(emit->builder, LLVMRealORD, before, before, "");
  Value none = emit_less(emit, where, emit_int(emit, 0));
  Value better = LLVMBuildOr(emit->builder, none, emit_and(emit, exceeds, is_number), "");
  emit_set(emit, best, emit_select(emit, better, value, before));
  emit_set(emit, place, emit_select(emit, better, at, where));
}

/* --- planes ------------------------------------------------------------------------------------------ */

typedef struct Plane {
  Emit *emit;
  const PlanKernel *kernel;
  const PlanTensor *gradient, *out;
  int32_t lanes; /* of a place: images of a block, or 1 */
  Value image, channel;
  Value start, x_start; /* offsets of the plane in the output and, where the kernel reads it, in input 0 */
  EmitLoop item, row, column;
  Value y, x, value; /* the place of the gradient that is scattered */
} Plane;

static void store_zero(Emit *emit, void *context, int32_t lanes, Value at) {
  const Value *row = context;
  emit_store(emit, emit->output, emit_add(emit, *row, at), emit_float(emit, lanes, 0));
}

/* Begins a plane with zeros and the loops over all gradients of it, which are input `gradient`. */
static Plane plane_begin(Emit *emit, const PlanKernel *kernel, int32_t gradient, KernelWork *out_work) {
  Plane plane = {.emit = emit, .kernel = kernel, .gradient = &kernel->inputs[gradient], .out = &kernel->output};
  plane.lanes = emit_lane_block(plane.out);
  const int64_t *dims = plane.out->shape.dims, *places = plane.gradient->shape.dims;
  *out_work = work_per_image(dims[0], dims[1]);
  plane.item = emit_loop_begin(emit, emit->begin, emit->end, 1, "plane");
  Value index[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, plane.item.index, 2, (const int64_t[]){1, dims[1]}, index);
  plane.image = index[0], plane.channel = index[1];
  plane.start = emit_offset(emit, plane.out, index);
  if (gradient > 0) plane.x_start = emit_offset(emit, &kernel->inputs[0], index);
  EmitLoop y = emit_loop_count(emit, dims[2], 1, "zero");
  emit_halo(emit, plane.image, plane.channel, y.index);
  Value row = emit_add(emit, plane.start, emit_mul_int(emit, y.index, plane.out->storage.stride[2]));
  emit_vector_loop(emit, dims[3] * plane.lanes, emit->target->vector_lanes, store_zero, &row);
  emit_loop_end(emit, &y);

  plane.row = emit_loop_count(emit, places[2], 1, "row");
  plane.column = emit_loop_count(emit, places[3], 1, "column");
  index[2] = plane.y = plane.row.index;
  index[3] = plane.x = plane.column.index;
  plane.value = emit_load(emit, emit->inputs[gradient], emit_offset(emit, plane.gradient, index), plane.lanes);
  return plane;
}

typedef struct PlaneRow {
  const Plane *plane;
  Value *index;
} PlaneRow;

static void apply_epilogue(Emit *emit, void *context, int32_t lanes, Value at) {
  const PlaneRow *row = context;
  row->index[3] = at;
  Value offset = emit_offset(emit, row->plane->out, row->index);
  emit_store(emit, emit->output, offset,
             emit_epilogue(emit, emit_load(emit, emit->output, offset, lanes), row->index, lanes));
}

static void plane_end(Plane *plane) {
  Emit *emit = plane->emit;
  emit_loop_end(emit, &plane->column);
  emit_loop_end(emit, &plane->row);
  if (plane->kernel->epilogue_count > 0) {
    EmitLoop y = emit_loop_count(emit, plane->out->shape.dims[2], 1, "epilogue");
    Value index[SHAPE_MAX_RANK] = {plane->image, plane->channel, y.index};
    PlaneRow row = {plane, index};
    if (plane->lanes > 1) {
      EmitLoop x = emit_loop_count(emit, plane->out->shape.dims[3], 1, "x");
      apply_epilogue(emit, &row, plane->lanes, x.index);
      emit_loop_end(emit, &x);
    } else {
      emit_vector_loop(emit, plane->out->shape.dims[3], emit->target->vector_lanes, apply_epilogue, &row);
    }
    emit_loop_end(emit, &y);
  }
  emit_loop_end(emit, &plane->item);
}

/* Offset within a plane of a tensor. */
static Value plane_offset(Emit *emit, const PlanTensor *tensor, Value y, Value x) {
  return emit_add(emit, emit_mul_int(emit, y, tensor->storage.stride[2]),
                  emit_mul_int(emit, x, tensor->storage.stride[3]));
}

static void add_at(const Plane *plane, Value offset, Value value) {
  Emit *emit = plane->emit;
  Value at = emit_add(emit, plane->start, offset);
  emit_store(emit, emit->output, at, emit_fadd(emit, emit_load(emit, emit->output, at, plane->lanes), value));
}

/* --- windows ----------------------------------------------------------------------------------------- */

/* Image positions begin, begin + step, … below end. */
typedef struct Range {
  Value begin, end;
  int64_t step;
} Range;

/* Those of the window at place `at` that lie in the image. */
static Range sliding_range(Emit *emit, const Attrs *attrs, int32_t axis, int64_t size, Value at) {
  const int64_t dilation = attrs->dilation.values[axis];
  Value start = emit_add_int(emit, emit_mul_int(emit, at, attrs->stride.values[axis]), -attrs->padding.values[axis]);
  Value end = emit_add_int(emit, start, (attrs->kernel.values[axis] - 1) * dilation + 1);
  Value outside = emit_max(emit, emit_sub(emit, emit_int(emit, 0), start), emit_int(emit, 0));
  Value skipped = emit_div_int(emit, emit_add_int(emit, outside, dilation - 1), dilation);
  return (Range){emit_add(emit, start, emit_mul_int(emit, skipped, dilation)),
                 emit_min(emit, end, emit_int(emit, size)), dilation};
}

/* From floor(at · in / out) to ceil((at + 1) · in / out). */
static Range adaptive_range(Emit *emit, int64_t in, int64_t out, Value at) {
  Value next = emit_mul_int(emit, emit_add_int(emit, at, 1), in);
  return (Range){emit_div_int(emit, emit_mul_int(emit, at, in), out),
                 emit_div_int(emit, emit_add_int(emit, next, out - 1), out), 1};
}

/* A lane each: two sweeps over the window, one that finds each lane's place, one that gives each place its lanes. */
static void scatter_maxima(Plane *plane, Range rows, Range columns) {
  Emit *emit = plane->emit;
  const PlanTensor *x = &plane->kernel->inputs[0];
  LLVMTypeRef type = LLVMVectorType(emit->i32, (unsigned)plane->lanes);
  Value best = emit_variable(emit, emit_float_type(emit, plane->lanes), "best");
  Value places = emit_variable(emit, type, "places"), zero = emit_float(emit, plane->lanes, 0);
  emit_set(emit, best, zero);
  emit_set(emit, places, LLVMConstAllOnes(type));
  for (int sweep = 0; sweep < 2; sweep++) {
    EmitLoop r = emit_loop_begin(emit, rows.begin, rows.end, rows.step, "r");
    EmitLoop s = emit_loop_begin(emit, columns.begin, columns.end, columns.step, "s");
    Value number = emit_add(emit, emit_mul_int(emit, r.index, x->shape.dims[3]), s.index);
    number = LLVMBuildTrunc(emit->builder, number, emit->i32, "");
    Value at = LLVMBuildInsertElement(emit->builder, LLVMGetPoison(type), number, emit_int(emit, 0), "");
    at = LLVMBuildShuffleVector(emit->builder, at, LLVMGetPoison(type), LLVMConstNull(type), "");
    Value before = emit_get(emit, emit_float_type(emit, plane->lanes), best), where = emit_get(emit, type, places);
    if (sweep == 0) {
      Value from = emit_add(emit, plane->x_start, plane_offset(emit, x, r.index, s.index));
      Value value = emit_load(emit, emit->inputs[0], from, plane->lanes);
      /* as emit_take_larger */
      Value exceeds = LLVMBuildFCmp(emit->builder, LLVMRealUGT, value, before, "");
      Value is_number = LLVMBuildFCmp(emit->builder, LLVMRealORD, before, before, "");
      Value none = LLVMBuildICmp(emit->builder, LLVMIntSLT, where, LLVMConstNull(type), "");
      Value better = LLVMBuildOr(emit->builder, none, emit_and(emit, exceeds, is_number), "");
      emit_set(emit, best, emit_select(emit, better, value, before));
      emit_set(emit, places, emit_select(emit, better, at, where));
    } else {
      Value here = LLVMBuildICmp(emit->builder, LLVMIntEQ, where, at, "");
      add_at(plane, plane_offset(emit, plane->out, r.index, s.index), emit_select(emit, here, plane->value, zero));
    }
    emit_loop_end(emit, &s);
    emit_loop_end(emit, &r);
  }
}

static void scatter_maximum(Plane *plane, Range rows, Range columns) {
  Emit *emit = plane->emit;
  if (plane->lanes > 1) {
    scatter_maxima(plane, rows, columns);
    return;
  }
  const PlanTensor *x = &plane->kernel->inputs[0];
  Value best = emit_variable(emit, emit->f32, "best"), place = emit_variable(emit, emit->i64, "place");
  emit_set(emit, best, emit_float(emit, 1, 0));
  emit_set(emit, place, emit_int(emit, -1));
  EmitLoop r = emit_loop_begin(emit, rows.begin, rows.end, rows.step, "r");
  EmitLoop s = emit_loop_begin(emit, columns.begin, columns.end, columns.step, "s");
  Value from = emit_add(emit, plane->x_start, plane_offset(emit, x, r.index, s.index));
  emit_take_larger(emit, emit_load(emit, emit->inputs[0], from, 1), plane_offset(emit, plane->out, r.index, s.index),
                   best, place);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
  Value at = emit_get(emit, emit->i64, place);
  EmitIf any = emit_if(emit, emit_less(emit, emit_int(emit, -1), at), "any");
  add_at(plane, at, plane->value);
  emit_end_if(emit, &any);
}

static void scatter_share(Plane *plane, Range rows, Range columns, Value count) {
  Emit *emit = plane->emit;
  Value divisor = wide_splat(emit, wide_from_int(emit, count), plane->lanes);
  Value share = emit_fdiv(emit, wide_from_float(emit, plane->value, plane->lanes), divisor);
  share = wide_to_float(emit, share, plane->lanes);
  EmitLoop r = emit_loop_begin(emit, rows.begin, rows.end, 1, "r");
  EmitLoop s = emit_loop_begin(emit, columns.begin, columns.end, 1, "s");
  add_at(plane, plane_offset(emit, plane->out, r.index, s.index), share);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
}

static Value range_product(Emit *emit, Range rows, Range columns) {
  return LLVMBuildNSWMul(emit->builder, emit_sub(emit, rows.end, rows.begin),
                         emit_sub(emit, columns.end, columns.begin), "");
}

bool cpu_max_pool2d_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Plane plane = plane_begin(emit, kernel, 1, out_work);
  const int64_t *dims = plane.out->shape.dims;
  scatter_maximum(&plane, sliding_range(emit, &kernel->attrs, 0, dims[2], plane.y),
                  sliding_range(emit, &kernel->attrs, 1, dims[3], plane.x));
  plane_end(&plane);
  return true;
}

bool cpu_adaptive_max_pool2d_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Plane plane = plane_begin(emit, kernel, 1, out_work);
  const int64_t *dims = plane.out->shape.dims, *places = plane.gradient->shape.dims;
  scatter_maximum(&plane, adaptive_range(emit, dims[2], places[2], plane.y),
                  adaptive_range(emit, dims[3], places[3], plane.x));
  plane_end(&plane);
  return true;
}

/* The window with the padding that counts: up to the end of the padding, which a last window of ceil_mode may pass. */
static Range padded_range(Emit *emit, const Attrs *attrs, int32_t axis, int64_t size, Value at) {
  Value start = emit_add_int(emit, emit_mul_int(emit, at, attrs->stride.values[axis]), -attrs->padding.values[axis]);
  Value end = emit_add_int(emit, start, attrs->kernel.values[axis]);
  return (Range){start, emit_min(emit, end, emit_int(emit, size + attrs->padding.values[2 + axis])), 1};
}

bool cpu_avg_pool2d_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Plane plane = plane_begin(emit, kernel, 0, out_work);
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = plane.out->shape.dims;
  Range rows = sliding_range(emit, attrs, 0, dims[2], plane.y),
        columns = sliding_range(emit, attrs, 1, dims[3], plane.x);
  Value count = range_product(emit, rows, columns);
  if (attrs->count_include_pad)
    count = range_product(emit, padded_range(emit, attrs, 0, dims[2], plane.y),
                          padded_range(emit, attrs, 1, dims[3], plane.x));
  scatter_share(&plane, rows, columns, count);
  plane_end(&plane);
  return true;
}

bool cpu_adaptive_avg_pool2d_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Plane plane = plane_begin(emit, kernel, 0, out_work);
  const int64_t *dims = plane.out->shape.dims, *places = plane.gradient->shape.dims;
  Range rows = adaptive_range(emit, dims[2], places[2], plane.y);
  Range columns = adaptive_range(emit, dims[3], places[3], plane.x);
  scatter_share(&plane, rows, columns, range_product(emit, rows, columns));
  plane_end(&plane);
  return true;
}

/* --- resampling -------------------------------------------------------------------------------------- */

/* The two neighbours along an axis that a place was mixed from, and their weights in double. */
typedef struct Between {
  Value low, high, part, rest;
} Between;

static Between source_place(Emit *emit, const Attrs *attrs, int64_t in, int64_t out, Value at) {
  Value last = emit_int(emit, in - 1), place = wide_from_int(emit, at);
  if (attrs->align_corners) {
    place = emit_fmul(emit, place, wide_constant(emit, 1, (double)(in - 1)));
    place = emit_fdiv(emit, place, wide_constant(emit, 1, out > 1 ? (double)(out - 1) : 1));
  } else {
    place = emit_fadd(emit, place, wide_constant(emit, 1, 0.5));
    place = emit_fmul(emit, place, wide_constant(emit, 1, (double)in));
    place = emit_fdiv(emit, place, wide_constant(emit, 1, (double)out));
    place = emit_fmax(emit, emit_fsub(emit, place, wide_constant(emit, 1, 0.5)), wide_constant(emit, 1, 0));
  }
  Value low = emit_min(emit, wide_to_int(emit, place), last);
  Value part = emit_fsub(emit, place, wide_from_int(emit, low));
  return (Between){low, emit_min(emit, emit_add_int(emit, low, 1), last), part,
                   emit_fsub(emit, wide_constant(emit, 1, 1), part)};
}

static void add_weighted(const Plane *plane, Value y, Value x, Value down, Value across) {
  Emit *emit = plane->emit;
  Value weight = wide_splat(emit, emit_fmul(emit, down, across), plane->lanes);
  weight = emit_fmul(emit, weight, wide_from_float(emit, plane->value, plane->lanes));
  add_at(plane, plane_offset(emit, plane->out, y, x), wide_to_float(emit, weight, plane->lanes));
}

bool cpu_upsample_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Plane plane = plane_begin(emit, kernel, 0, out_work);
  const int64_t *dims = plane.out->shape.dims, *places = plane.gradient->shape.dims;
  if (kernel->attrs.mode == MODE_NEAREST) {
    Value y = emit_div_int(emit, emit_mul_int(emit, plane.y, dims[2]), places[2]);
    Value x = emit_div_int(emit, emit_mul_int(emit, plane.x, dims[3]), places[3]);
    add_at(&plane, plane_offset(emit, plane.out, y, x), plane.value);
  } else {
    Between down = source_place(emit, &kernel->attrs, dims[2], places[2], plane.y);
    Between across = source_place(emit, &kernel->attrs, dims[3], places[3], plane.x);
    add_weighted(&plane, down.low, across.low, down.rest, across.rest);
    add_weighted(&plane, down.low, across.high, down.rest, across.part);
    add_weighted(&plane, down.high, across.low, down.part, across.rest);
    add_weighted(&plane, down.high, across.high, down.part, across.part);
  }
  plane_end(&plane);
  return true;
}

/* --- padding ----------------------------------------------------------------------------------------- */

/* Which place of the image showed at a place of the padded one; *out_inside: it is no padding with zeros. */
static Value padded_source(Emit *emit, AttrWord mode, Value at, int64_t before, int64_t size, Value *out_inside) {
  Value position = emit_add_int(emit, at, -before), zero = emit_int(emit, 0), last = emit_int(emit, size - 1);
  Value low = emit_less(emit, position, zero), high = emit_less(emit, last, position);
  *out_inside = LLVMBuildNot(emit->builder, LLVMBuildOr(emit->builder, low, high, ""), "");
  if (mode == PADDING_ZEROS) return position;
  *out_inside = LLVMConstInt(emit->i1, 1, 0);
  if (mode == PADDING_REPLICATE) return emit_max(emit, emit_min(emit, position, last), zero);
  Value mirrored = emit_select(emit, high, emit_sub(emit, emit_int(emit, 2 * (size - 1)), position), position);
  return emit_select(emit, low, emit_sub(emit, zero, position), mirrored);
}

bool cpu_pad_grad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Plane plane = plane_begin(emit, kernel, 0, out_work);
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = plane.out->shape.dims;
  Value row_inside, column_inside;
  Value y = padded_source(emit, attrs->padding_mode, plane.y, attrs->padding.values[0], dims[2], &row_inside);
  Value x = padded_source(emit, attrs->padding_mode, plane.x, attrs->padding.values[1], dims[3], &column_inside);
  EmitIf inside = emit_if(emit, emit_and(emit, row_inside, column_inside), "inside");
  add_at(&plane, plane_offset(emit, plane.out, y, x), plane.value);
  emit_end_if(emit, &inside);
  plane_end(&plane);
  return true;
}
