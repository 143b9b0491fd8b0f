/* Resampling and padding of images. Work items are output rows: of a block or channel, or of an image (grid_sample,
 * where all channels share the coordinates). Coordinates are computed in double, so that the choice of pixels and
 * their weights agree with exact arithmetic; weights are then rounded to f32. */
#include "conv.h"
#include "wide.h"

static int64_t unit_count(const PlanTensor *tensor) {
  int32_t block = emit_lane_block(tensor);
  return (tensor->shape.dims[1] + block - 1) / block;
}

/* What all rows of blocks or channels have in common. */
typedef struct Rows {
  EmitLoop item;
  Value index[SHAPE_MAX_RANK]; /* of the output; [3] is for the caller */
  Value plane;                 /* offset of the input's plane */
  int32_t lanes;
} Rows;

static Rows rows_begin(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *out = &kernel->output;
  int64_t extents[] = {1, unit_count(out), out->shape.dims[2]};
  Rows rows = {.item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item"), .lanes = emit_lane_block(out)};
  emit_split(emit, rows.item.index, 3, extents, rows.index);
  Value plane[SHAPE_MAX_RANK] = {rows.index[0], rows.index[1]};
  rows.plane = emit_offset(emit, &kernel->inputs[0], plane);
  emit_halo(emit, rows.index[0], rows.index[1], rows.index[2]);
  *out_work = work_per_image(out->shape.dims[0], extents[1] * extents[2]);
  return rows;
}

static void store_pixel(Emit *emit, Rows *rows, Value x, Value value) {
  rows->index[3] = x;
  value = emit_epilogue(emit, value, rows->index, rows->lanes);
  emit_store(emit, emit->output, emit_offset(emit, &emit->kernel->output, rows->index), value);
}

/* --- upsample ---------------------------------------------------------------------------------------- */

/* The two neighbours of a place between elements. */
typedef struct Between {
  Value low, high;  /* element offsets */
  Value part, rest; /* weights of high and low, in all lanes */
} Between;

/* As PyTorch: with aligned corners at · (in − 1) / (out − 1), else (at + ½) · in / out − ½, not below 0. */
static Between source_place(Emit *emit, Value at, int64_t in, int64_t out, bool align_corners, int64_t stride,
                            int32_t lanes) {
  Value place = wide_from_int(emit, at);
  if (align_corners) {
    double span = out > 1 ? (double)(out - 1) : 1;
    place = emit_fmul(emit, place, wide_constant(emit, 1, (double)(in - 1)));
    place = emit_fdiv(emit, place, wide_constant(emit, 1, span));
  } else {
    place = emit_fadd(emit, place, wide_constant(emit, 1, 0.5));
    place = emit_fmul(emit, place, wide_constant(emit, 1, (double)in));
    place = emit_fdiv(emit, place, wide_constant(emit, 1, (double)out));
    place = emit_fmax(emit, emit_fsub(emit, place, wide_constant(emit, 1, 0.5)), wide_constant(emit, 1, 0));
  }
  Value last = emit_int(emit, in - 1), low = emit_min(emit, wide_to_int(emit, place), last);
  Value high = emit_min(emit, emit_add_int(emit, low, 1), last);
  Value part = emit_fsub(emit, place, wide_from_int(emit, low));
  Value rest = emit_fsub(emit, wide_constant(emit, 1, 1), part);
  return (Between){emit_mul_int(emit, low, stride), emit_mul_int(emit, high, stride),
                   emit_splat(emit, wide_to_float(emit, part, 1), lanes),
                   emit_splat(emit, wide_to_float(emit, rest, 1), lanes)};
}

static Value mix(Emit *emit, const Between *between, Value low, Value high) {
  return emit_fma(emit, between->part, high, emit_fmul(emit, between->rest, low));
}

bool cpu_upsample(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *from = in->shape.dims, *to = out->shape.dims, *stride = in->storage.stride;
  bool align = kernel->attrs.align_corners, nearest = kernel->attrs.mode == MODE_NEAREST;
  Rows rows = rows_begin(emit, kernel, out_work);
  Value source = emit->inputs[0], y = rows.index[2], row = NULL;
  Between down = {.low = NULL};
  if (nearest)
    row = emit_mul_int(emit, emit_div_int(emit, emit_mul_int(emit, y, from[2]), to[2]), stride[2]);
  else
    down = source_place(emit, y, from[2], to[2], align, stride[2], rows.lanes);
  EmitLoop x = emit_loop_count(emit, to[3], 1, "x");
  Value value;
  if (nearest) {
    Value column = emit_mul_int(emit, emit_div_int(emit, emit_mul_int(emit, x.index, from[3]), to[3]), stride[3]);
    value = emit_load(emit, source, emit_add(emit, rows.plane, emit_add(emit, row, column)), rows.lanes);
  } else {
    Between across = source_place(emit, x.index, from[3], to[3], align, stride[3], rows.lanes);
    Value lines[2];
    for (int i = 0; i < 2; i++) {
      Value line = emit_add(emit, rows.plane, i == 0 ? down.low : down.high);
      lines[i] = mix(emit, &across, emit_load(emit, source, emit_add(emit, line, across.low), rows.lanes),
                     emit_load(emit, source, emit_add(emit, line, across.high), rows.lanes));
    }
    value = mix(emit, &down, lines[0], lines[1]);
  }
  store_pixel(emit, &rows, x.index, value);
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &rows.item);
  return true;
}

/* --- grid_sample ------------------------------------------------------------------------------------- */

/* affine_grid: the place of an output pixel in [-1, 1]. */
static Value grid_place(Emit *emit, Value at, int64_t size, bool align_corners) {
  if (align_corners && size == 1) return wide_constant(emit, 1, 0);
  Value doubled = emit_mul_int(emit, at, 2);
  if (!align_corners) doubled = emit_add_int(emit, doubled, 1);
  Value span = wide_constant(emit, 1, (double)(align_corners ? size - 1 : size));
  return emit_fsub(emit, emit_fdiv(emit, wide_from_int(emit, doubled), span), wide_constant(emit, 1, 1));
}

/* Within [low, high]; NaN stays. */
static Value keep_between(Emit *emit, Value value, double low, double high) {
  Value least = wide_constant(emit, 1, low), most = wide_constant(emit, 1, high);
  value = emit_fselect_less(emit, value, least, least, value);
  return emit_fselect_less(emit, most, value, most, value);
}

/* Mirrors a place at `low` and `low + span` as often as it takes. */
static Value reflect_place(Emit *emit, Value place, double low, double span) {
  enum { FAR = 1 << 30 };
  if (span == 0) return wide_constant(emit, 1, 0);
  Value zero = wide_constant(emit, 1, 0), edge = wide_constant(emit, 1, low), period = wide_constant(emit, 1, span);
  Value distance = emit_fsub(emit, place, edge);
  distance = emit_fselect_less(emit, distance, zero, emit_fsub(emit, zero, distance), distance);
  /* so far out that the pixel is arbitrary: keeps the count of reflections an integer; NaN becomes 0 */
  distance = emit_fmin(emit, emit_fmax(emit, distance, zero), wide_constant(emit, 1, span * FAR));
  Value flips = wide_to_int(emit, emit_fdiv(emit, distance, period));
  Value rest = emit_fsub(emit, distance, emit_fmul(emit, wide_from_int(emit, flips), period));
  Value odd = emit_equal(emit, emit_mod_int(emit, flips, 2), emit_int(emit, 1));
  return emit_fadd(emit, edge, emit_select(emit, odd, emit_fsub(emit, period, rest), rest));
}

/* Two neighbouring elements and whether they are in the image. */
typedef struct Neighbours {
  Value offset[2], inside[2];
  Value weight[2]; /* double */
} Neighbours;

static Neighbours sample_place(Emit *emit, Value place, int64_t size, const Attrs *attrs, int64_t stride) {
  bool align = attrs->align_corners;
  Value one = wide_constant(emit, 1, 1), half = wide_constant(emit, 1, 0.5);
  place = emit_fmul(emit, emit_fadd(emit, place, one), wide_constant(emit, 1, (double)(align ? size - 1 : size)));
  place = emit_fmul(emit, align ? place : emit_fsub(emit, place, one), half);
  if (attrs->padding_mode == PADDING_REFLECT)
    place = align ? reflect_place(emit, place, 0, (double)(size - 1)) : reflect_place(emit, place, -0.5, (double)size);
  if (attrs->padding_mode == PADDING_ZEROS)
    place = keep_between(emit, place, -2, (double)size + 1);
  else /* NaN becomes 0 */
    place =
        emit_fmin(emit, emit_fmax(emit, place, wide_constant(emit, 1, 0)), wide_constant(emit, 1, (double)(size - 1)));

  /* floor, for places of at least -2; NaN becomes -2 */
  Value shifted = emit_fmax(emit, emit_fadd(emit, place, wide_constant(emit, 1, 2)), wide_constant(emit, 1, 0));
  Value low = emit_add_int(emit, wide_to_int(emit, shifted), -2);
  Neighbours result;
  result.weight[1] = emit_fsub(emit, place, wide_from_int(emit, low));
  result.weight[0] = emit_fsub(emit, one, result.weight[1]);
  for (int i = 0; i < 2; i++) {
    Value at = emit_add_int(emit, low, i);
    Value inside = emit_max(emit, emit_min(emit, at, emit_int(emit, size - 1)), emit_int(emit, 0));
    result.inside[i] = emit_equal(emit, at, inside);
    result.offset[i] = emit_mul_int(emit, inside, stride);
  }
  return result;
}

typedef struct Corner {
  Value offset, inside, weight;
} Corner;

static void place_corners(Emit *emit, const PlanKernel *kernel, const Value *theta, Value y, Value x,
                          Corner corners[4]) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const Attrs *attrs = &kernel->attrs;
  Value grid[2] = {grid_place(emit, x, out->shape.dims[3], attrs->align_corners),
                   grid_place(emit, y, out->shape.dims[2], attrs->align_corners)};
  Value place[2];
  for (int i = 0; i < 2; i++) {
    place[i] = emit_fadd(emit, emit_fmul(emit, theta[3 * i], grid[0]), emit_fmul(emit, theta[3 * i + 1], grid[1]));
    place[i] = emit_fadd(emit, place[i], theta[3 * i + 2]);
  }
  Neighbours across = sample_place(emit, place[0], in->shape.dims[3], attrs, in->storage.stride[3]);
  Neighbours down = sample_place(emit, place[1], in->shape.dims[2], attrs, in->storage.stride[2]);
  for (int i = 0; i < 4; i++) {
    int row = i >> 1, column = i & 1;
    corners[i].offset = emit_add(emit, down.offset[row], across.offset[column]);
    corners[i].inside = emit_and(emit, down.inside[row], across.inside[column]);
    corners[i].weight = wide_to_float(emit, emit_fmul(emit, down.weight[row], across.weight[column]), 1);
  }
}

bool cpu_grid_sample(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output, *map = &kernel->inputs[1];
  const int64_t *dims = out->shape.dims;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], theta[6], index[SHAPE_MAX_RANK] = {NULL}, plane[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (int64_t[]){1, dims[2]}, digit);
  for (int64_t i = 0; i < 6; i++) {
    Value at[SHAPE_MAX_RANK] = {digit[0], emit_int(emit, i / 3), emit_int(emit, i % 3)};
    theta[i] = wide_from_float(emit, emit_load(emit, emit->inputs[1], emit_offset(emit, map, at), 1), 1);
  }
  index[0] = plane[0] = digit[0], index[2] = digit[1];
  EmitLoop x = emit_loop_count(emit, dims[3], 1, "x");
  index[3] = x.index;
  Corner corners[4];
  place_corners(emit, kernel, theta, digit[1], x.index, corners);
  EmitLoop channel = emit_loop_count(emit, dims[1], 1, "channel");
  index[1] = plane[1] = channel.index;
  Value start = emit_offset(emit, in, plane), sum = emit_float(emit, 1, 0);
  for (int i = 0; i < 4; i++) {
    Value pixel = emit_load(emit, emit->inputs[0], emit_add(emit, start, corners[i].offset), 1);
    pixel = emit_select(emit, corners[i].inside, pixel, emit_float(emit, 1, 0));
    sum = emit_fma(emit, corners[i].weight, pixel, sum);
  }
  emit_store(emit, emit->output, emit_offset(emit, out, index), emit_epilogue(emit, sum, index, 1));
  emit_loop_end(emit, &channel);
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], dims[2]);
  return true;
}

/* --- pad --------------------------------------------------------------------------------------------- */

/* Which element shows at `at` (counted from the image's edge, may be outside); always in the image. */
static Value padded_source(Emit *emit, AttrWord mode, Value at, int64_t size) {
  if (mode == PADDING_REFLECT) {
    at = emit_max(emit, at, emit_sub(emit, emit_int(emit, 0), at));
    return emit_min(emit, at, emit_sub(emit, emit_int(emit, 2 * (size - 1)), at));
  }
  return emit_max(emit, emit_min(emit, at, emit_int(emit, size - 1)), emit_int(emit, 0));
}

bool cpu_pad(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const Attrs *attrs = &kernel->attrs;
  int64_t height = in->shape.dims[2], width = in->shape.dims[3], out_width = out->shape.dims[3];
  int64_t left = attrs->padding.values[1];
  bool constant = attrs->padding_mode == PADDING_ZEROS;
  Rows rows = rows_begin(emit, kernel, out_work);
  Value y = emit_add_int(emit, rows.index[2], -attrs->padding.values[0]);
  Value source_y = padded_source(emit, attrs->padding_mode, y, height);
  Value row = emit_add(emit, rows.plane, emit_mul_int(emit, source_y, in->storage.stride[2]));
  Value fill = emit_float(emit, rows.lanes, attrs->value), row_exists = emit_equal(emit, y, source_y);
  const int64_t ends[] = {left, left + width, out_width};
  for (int part = 0; part < 3; part++) {
    int64_t begin = part == 0 ? 0 : ends[part - 1];
    if (begin >= ends[part]) continue;
    EmitLoop x = emit_loop_begin(emit, emit_int(emit, begin), emit_int(emit, ends[part]), 1, part == 1 ? "x" : "edge");
    Value value = fill;
    if (part == 1 || !constant) {
      Value at = emit_add_int(emit, x.index, -left);
      Value column = part == 1 ? at : padded_source(emit, attrs->padding_mode, at, width);
      Value offset = emit_add(emit, row, emit_mul_int(emit, column, in->storage.stride[3]));
      value = emit_load(emit, emit->inputs[0], offset, rows.lanes);
      if (constant) value = emit_select(emit, row_exists, value, fill);
    }
    store_pixel(emit, &rows, x.index, value);
    emit_loop_end(emit, &x);
  }
  emit_loop_end(emit, &rows.item);
  return true;
}
