/* Pooling. Work items are output rows of a vector of channels (blocked, or last) or of a channel (plain). Windows are
 * cut to the image, so that padding never counts as a value and no halo is needed. */
#include <assert.h>

#include "conv_strip.h"
#include "wide.h"

typedef struct Pool {
  Emit *emit;
  const PlanTensor *in, *out;
  Value source; /* address that places in `in` count from */
  int32_t lanes;
  bool maximum;
} Pool;

/* Input positions begin, begin + step, … below end. */
typedef struct Range {
  Value begin, end;
  int64_t step;
} Range;

/* Geometry along one axis. */
typedef struct Axis {
  int64_t in, out;
  int64_t kernel, stride, dilation, before, after; /* sliding windows */
} Axis;

static Pool pool_begin(Emit *emit, const PlanKernel *kernel, bool maximum) {
  const PlanTensor *out = &kernel->output;
  return (Pool){emit, &kernel->inputs[0], out, emit->inputs[0], emit_channel_lanes(emit, out), maximum};
}

/* Vectors of channels, or channels. (Of batch-blocked values the items' first digit counts blocks of images.) */
static int64_t pool_units(const Pool *pool, const PlanTensor *tensor) {
  int32_t block = tensor->layout.kind == LAYOUT_BATCH_BLOCK ? 1 : pool->lanes;
  return (tensor->shape.dims[1] + block - 1) / block;
}

static Axis sliding_axis(const Pool *pool, const Attrs *attrs, int32_t i) {
  return (Axis){pool->in->shape.dims[2 + i], pool->out->shape.dims[2 + i], attrs->kernel.values[i],
                attrs->stride.values[i],     attrs->dilation.values[i],    attrs->padding.values[i],
                attrs->padding.values[2 + i]};
}

static Axis adaptive_axis(const PlanKernel *kernel, int32_t i) {
  return (Axis){.in = kernel->inputs[0].shape.dims[2 + i], .out = kernel->output.shape.dims[2 + i]};
}

/* --- windows ----------------------------------------------------------------------------------------- */

/* The taps of output position `at` that lie in the image. */
static Range sliding_range(Emit *emit, const Axis *axis, Value at) {
  Value start = emit_add_int(emit, emit_mul_int(emit, at, axis->stride), -axis->before);
  Value end = emit_add_int(emit, start, (axis->kernel - 1) * axis->dilation + 1);
  Value outside = emit_max(emit, emit_sub(emit, emit_int(emit, 0), start), emit_int(emit, 0));
  Value skipped = emit_div_int(emit, emit_add_int(emit, outside, axis->dilation - 1), axis->dilation);
  return (Range){emit_add(emit, start, emit_mul_int(emit, skipped, axis->dilation)),
                 emit_min(emit, end, emit_int(emit, axis->in)), axis->dilation};
}

/* As PyTorch: from floor(at * in / out) to ceil((at + 1) * in / out). */
static Range adaptive_range(Emit *emit, const Axis *axis, Value at) {
  Value next = emit_mul_int(emit, emit_add_int(emit, at, 1), axis->in);
  return (Range){emit_div_int(emit, emit_mul_int(emit, at, axis->in), axis->out),
                 emit_div_int(emit, emit_add_int(emit, next, axis->out - 1), axis->out), 1};
}

/* Reduces a window of one plane. `unrolled`: the known number of columns, or 0. */
static Value reduce_window(const Pool *pool, Value plane, Range rows, Range columns, int64_t unrolled) {
  Emit *emit = pool->emit;
  int64_t row_stride = pool->in->storage.stride[2], column_stride = pool->in->storage.stride[3];
  Reduction reduction = reduction_begin(emit, pool->maximum, pool->lanes);
  EmitLoop row = emit_loop_outer(emit, rows.begin, rows.end, rows.step, "row");
  Value start = emit_add(emit, plane, emit_mul_int(emit, row.index, row_stride));
  if (unrolled > 0) {
    Value base =
        emit_address(emit, pool->source, emit_add(emit, start, emit_mul_int(emit, columns.begin, column_stride)));
    for (int64_t i = 0; i < unrolled; i++) {
      Value offset = emit_int(emit, i * columns.step * column_stride);
      reduction_add(emit, &reduction, emit_load(emit, base, offset, pool->lanes), pool->lanes);
    }
  } else {
    EmitLoop column = emit_loop_outer(emit, columns.begin, columns.end, columns.step, "column");
    Value offset = emit_add(emit, start, emit_mul_int(emit, column.index, column_stride));
    reduction_add(emit, &reduction, emit_load(emit, pool->source, offset, pool->lanes), pool->lanes);
    emit_loop_end(emit, &column);
  }
  emit_loop_end(emit, &row);
  return reduction_vector(emit, &reduction);
}

/* sum / count, rounded once. */
static Value mean_of(const Pool *pool, Value sum, Value count) {
  Emit *emit = pool->emit;
  Value share = emit_fdiv(emit, wide_constant(emit, 1, 1), wide_from_int(emit, count));
  return wide_to_float(emit, emit_fmul(emit, sum, wide_splat(emit, share, pool->lanes)), pool->lanes);
}

static Value count_window(Emit *emit, Range rows, Range columns) {
  return LLVMBuildNSWMul(emit->builder, emit_sub(emit, rows.end, rows.begin),
                         emit_sub(emit, columns.end, columns.begin), "");
}

/* The epilogue of a kernel that pools besides is not the pool's. */
static void store_result(const Pool *pool, Value value, const Value *index) {
  Emit *emit = pool->emit;
  if (emit->kernel->pool == NULL) value = emit_epilogue(emit, value, index, pool->lanes);
  emit_store(emit, emit->output, emit_offset(emit, pool->out, index), value);
}

/* --- sliding windows --------------------------------------------------------------------------------- */

typedef struct Sliding {
  Pool pool;
  Axis rows, columns;
  bool count_padding, near; /* near: the input is in a near cache */
} Sliding;

/* How far a window reaches when padding counts: up to the end of the padding, which a last window of ceil_mode may
 * pass. */
static Value count_padded(Emit *emit, const Axis *axis, Value at) {
  Value start = emit_add_int(emit, emit_mul_int(emit, at, axis->stride), -axis->before);
  Value end = emit_min(emit, emit_add_int(emit, start, axis->kernel), emit_int(emit, axis->in + axis->after));
  return emit_sub(emit, end, start);
}

static void emit_sliding_column(const Sliding *sliding, Value plane, Range rows, const Value *index, bool inside) {
  enum { UNROLL_LIMIT = 8 };
  Emit *emit = sliding->pool.emit;
  const Axis *axis = &sliding->columns;
  Range columns = sliding_range(emit, axis, index[3]);
  int64_t unrolled = inside && axis->kernel <= UNROLL_LIMIT ? axis->kernel : 0;
  if (inside) columns.begin = emit_add_int(emit, emit_mul_int(emit, index[3], axis->stride), -axis->before);
  Value value = reduce_window(&sliding->pool, plane, rows, columns, unrolled);
  if (!sliding->pool.maximum) {
    Value count = sliding->count_padding ? LLVMBuildNSWMul(emit->builder, count_padded(emit, &sliding->rows, index[2]),
                                                           count_padded(emit, axis, index[3]), "")
                                         : count_window(emit, rows, columns);
    value = mean_of(&sliding->pool, value, count);
  }
  store_result(&sliding->pool, value, index);
}

/* Asks for what the windows of the next row have beyond those of this one: images that were just made by another kernel
 * are often in the third-level cache, and the rows of a window are too many streams to be fetched by themselves. */
static void fetch_next_row(const Sliding *sliding, Value plane, const Value *index) {
  Emit *emit = sliding->pool.emit;
  const Axis *rows = &sliding->rows, *columns = &sliding->columns;
  const int64_t *stride = sliding->pool.in->storage.stride;
  Value below = emit_add_int(emit, emit_mul_int(emit, index[2], rows->stride), rows->kernel - rows->before);
  Value place = emit_add(emit, plane, emit_mul_int(emit, below, stride[2]));
  place = emit_add(emit, place, emit_mul_int(emit, index[3], columns->stride * stride[3]));
  for (int64_t row = 0; row < rows->stride; row++)
    for (int64_t column = 0; column < columns->stride; column++)
      emit_prefetch_line(emit, sliding->pool.source, emit_add_int(emit, place, row * stride[2] + column * stride[3]),
                         false);
}

static void emit_sliding_columns(const Sliding *sliding, Value plane, Range rows, Value *index, int64_t begin,
                                 int64_t end, bool inside) {
  Emit *emit = sliding->pool.emit;
  if (begin >= end) return;
  EmitLoop x = emit_loop_outer(emit, emit_int(emit, begin), emit_int(emit, end), 1, "x");
  index[3] = x.index;
  if (inside && sliding->pool.lanes > 1 && !sliding->near) fetch_next_row(sliding, plane, index);
  emit_sliding_column(sliding, plane, rows, index, inside);
  emit_loop_end(emit, &x);
}

/* A row of windows of the plane at `plane`. */
static void emit_sliding_row(const Sliding *sliding, Value plane, Value *index) {
  const Axis *axis = &sliding->columns;
  /* columns whose window lies in the image as a whole */
  int64_t first = (axis->before + axis->stride - 1) / axis->stride;
  int64_t room = axis->in - 1 - (axis->kernel - 1) * axis->dilation + axis->before;
  int64_t last = room < 0 ? 0 : room / axis->stride + 1;
  if (last > axis->out) last = axis->out;
  if (first > last) first = last;
  Range rows = sliding_range(sliding->pool.emit, &sliding->rows, index[2]);
  emit_sliding_columns(sliding, plane, rows, index, 0, first, false);
  emit_sliding_columns(sliding, plane, rows, index, first, last, true);
  emit_sliding_columns(sliding, plane, rows, index, last, axis->out, false);
}

static bool emit_sliding(Emit *emit, const PlanKernel *kernel, bool maximum, KernelWork *out_work) {
  const Pool pool = pool_begin(emit, kernel, maximum);
  const Sliding sliding = {pool, sliding_axis(&pool, &kernel->attrs, 0), sliding_axis(&pool, &kernel->attrs, 1),
                           kernel->attrs.count_include_pad, false};
  int64_t extents[] = {1, pool_units(&pool, &kernel->output), sliding.rows.out};
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value index[SHAPE_MAX_RANK] = {NULL}, plane_index[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 3, extents, index);
  conv_halo(emit, pool.out, index[0], index[1], index[2]);
  index[1] = conv_channel_index(emit, pool.in, index[1], pool.lanes);
  plane_index[0] = index[0], plane_index[1] = index[1];
  emit_sliding_row(&sliding, emit_offset(emit, pool.in, plane_index), index);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(kernel->output.shape.dims[0], extents[1] * extents[2]);
  return true;
}

void pool_strip(Emit *emit, const PlanTensor *rows, Value source, Value image, Value begin, Value end) {
  const PlanTensor *out = &emit->kernel->output;
  const Attrs *attrs = &emit->kernel->pool->attrs;
  const Pool pool = {emit, rows, out, source, emit_channel_lanes(emit, out), true};
  const Sliding sliding = {pool, sliding_axis(&pool, attrs, 0), sliding_axis(&pool, attrs, 1), false, true};
  EmitLoop unit = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, pool_units(&pool, out)), 1, "pool_block");
  EmitLoop y = emit_loop_outer(emit, begin, end, 1, "pool_row");
  Value index[SHAPE_MAX_RANK] = {image, unit.index, y.index};
  conv_halo(emit, out, image, unit.index, y.index);
  emit_sliding_row(&sliding, emit_mul_int(emit, unit.index, rows->storage.stride[1]), index);
  emit_loop_end(emit, &y);
  emit_loop_end(emit, &unit);
}

bool cpu_max_pool2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_sliding(emit, kernel, true, out_work);
}

bool cpu_avg_pool2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_sliding(emit, kernel, false, out_work);
}

/* --- adaptive windows -------------------------------------------------------------------------------- */

/* The window is a whole plain plane whose rows follow each other: a run of numbers. */
static bool whole_plane(const Pool *pool, const Axis *rows, const Axis *columns) {
  const int64_t *stride = pool->in->storage.stride;
  return pool->lanes == 1 && rows->out == 1 && columns->out == 1 && stride[3] == 1 && stride[2] == columns->in;
}

static Value adaptive_value(const Pool *pool, const Axis *rows, const Axis *columns, Value plane, const Value *index) {
  Emit *emit = pool->emit;
  Range row_range = adaptive_range(emit, rows, index[2]), column_range = adaptive_range(emit, columns, index[3]);
  Value value;
  if (whole_plane(pool, rows, columns)) {
    Reduction reduction = reduction_begin(emit, pool->maximum, emit->target->vector_lanes);
    reduction_add_run(emit, &reduction, emit->inputs[0], plane, rows->in * columns->in);
    value = reduction_end(emit, &reduction);
  } else {
    value = reduce_window(pool, plane, row_range, column_range, 0);
  }
  return pool->maximum ? value : mean_of(pool, value, count_window(emit, row_range, column_range));
}

/* `both`: maxima, then means behind them in the output's channels; otherwise one of them. */
static bool emit_adaptive(Emit *emit, const PlanKernel *kernel, bool maximum, bool both, KernelWork *out_work) {
  Pool pool = pool_begin(emit, kernel, maximum);
  assert(!both || pool.lanes == 1);
  Axis rows = adaptive_axis(kernel, 0), columns = adaptive_axis(kernel, 1);
  int64_t extents[] = {1, pool_units(&pool, pool.in), rows.out};
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value index[SHAPE_MAX_RANK] = {NULL}, plane_index[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 3, extents, index);
  if (!both) conv_halo(emit, pool.out, index[0], index[1], index[2]);
  index[1] = conv_channel_index(emit, pool.in, index[1], pool.lanes);
  plane_index[0] = index[0], plane_index[1] = index[1];
  Value plane = emit_offset(emit, pool.in, plane_index);
  EmitLoop x = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, columns.out), 1, "x");
  index[3] = x.index;
  store_result(&pool, adaptive_value(&pool, &rows, &columns, plane, index), index);
  if (both) {
    pool.maximum = false;
    index[1] = emit_add_int(emit, index[1], extents[1]); /* plain only */
    store_result(&pool, adaptive_value(&pool, &rows, &columns, plane, index), index);
  }
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(kernel->output.shape.dims[0], extents[1] * extents[2]);
  return true;
}

bool cpu_adaptive_avg_pool2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_adaptive(emit, kernel, false, false, out_work);
}

bool cpu_adaptive_max_pool2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_adaptive(emit, kernel, true, false, out_work);
}

bool cpu_adaptive_concat_pool2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  return emit_adaptive(emit, kernel, true, true, out_work);
}
