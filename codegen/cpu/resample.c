/* Resampling and padding of images. Work items are output rows of a block or channel. Coordinates are computed in double, so that the choice of pixels and
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
