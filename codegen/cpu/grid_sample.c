/* grid_sample and its gradients: bilinear samples at places that an affine map of the output's pixels gives. Places are
 * computed in double, so that the choice of pixels and their weights agree with exact arithmetic; weights are then
 * rounded to f32. All channels of an image share them. Work items: output rows of an image; of gradients, images, whose
 * pixels are taken in row-major order. */
#include "conv.h"
#include "wide.h"

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

/* Mirrors a place at `low` and `low + span` as often as it takes, and so its `slope`. */
static Value reflect_place(Emit *emit, Value place, double low, double span, Value *slope) {
  enum { FAR = 1 << 30 };
  if (span == 0) {
    *slope = wide_constant(emit, 1, 0);
    return *slope;
  }
  Value zero = wide_constant(emit, 1, 0), edge = wide_constant(emit, 1, low), period = wide_constant(emit, 1, span);
  Value distance = emit_fsub(emit, place, edge);
  *slope = emit_fselect_less(emit, distance, zero, emit_fsub(emit, zero, *slope), *slope);
  distance = emit_fselect_less(emit, distance, zero, emit_fsub(emit, zero, distance), distance);
  /* so far out that the pixel is arbitrary: keeps the count of reflections an integer; NaN becomes 0 */
  distance = emit_fmin(emit, emit_fmax(emit, distance, zero), wide_constant(emit, 1, span * FAR));
  Value flips = wide_to_int(emit, emit_fdiv(emit, distance, period));
  Value rest = emit_fsub(emit, distance, emit_fmul(emit, wide_from_int(emit, flips), period));
  Value odd = emit_equal(emit, emit_mod_int(emit, flips, 2), emit_int(emit, 1));
  *slope = emit_select(emit, odd, emit_fsub(emit, zero, *slope), *slope);
  return emit_fadd(emit, edge, emit_select(emit, odd, emit_fsub(emit, period, rest), rest));
}

/* Two neighbouring elements and whether they are in the image. */
typedef struct Neighbours {
  Value offset[2], inside[2];
  Value weight[2]; /* double */
  Value slope;     /* double: how far the place moves, in elements, with that in [-1, 1] */
} Neighbours;

static Neighbours sample_place(Emit *emit, Value place, int64_t size, const Attrs *attrs, int64_t stride) {
  bool align = attrs->align_corners;
  Value zero = wide_constant(emit, 1, 0), one = wide_constant(emit, 1, 1), half = wide_constant(emit, 1, 0.5);
  Value slope = wide_constant(emit, 1, (double)(align ? size - 1 : size) / 2);
  place = emit_fmul(emit, emit_fadd(emit, place, one), wide_constant(emit, 1, (double)(align ? size - 1 : size)));
  place = emit_fmul(emit, align ? place : emit_fsub(emit, place, one), half);
  if (attrs->padding_mode == PADDING_REFLECT)
    place = align ? reflect_place(emit, place, 0, (double)(size - 1), &slope)
                  : reflect_place(emit, place, -0.5, (double)size, &slope);
  if (attrs->padding_mode == PADDING_ZEROS) {
    place = keep_between(emit, place, -2, (double)size + 1);
  } else { /* NaN becomes 0; at the edge nothing moves */
    Value last = wide_constant(emit, 1, (double)(size - 1));
    Value within = emit_fselect_less(emit, place, last, slope, zero);
    slope = emit_fselect_less(emit, zero, place, within, zero);
    place = emit_fmin(emit, emit_fmax(emit, place, zero), last);
  }

  /* floor, for places of at least -2; NaN becomes -2 */
  Value shifted = emit_fmax(emit, emit_fadd(emit, place, wide_constant(emit, 1, 2)), wide_constant(emit, 1, 0));
  Value low = emit_add_int(emit, wide_to_int(emit, shifted), -2);
  Neighbours result = {.slope = slope};
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

/* Where an output pixel comes from. */
typedef struct Pixel {
  Value grid[2]; /* double: x and y, what theta is multiplied by */
  Neighbours across, down;
} Pixel;

/* `image`: the tensor that is sampled; `out`: the samples' shape. */
static Pixel find_pixel(Emit *emit, const Attrs *attrs, const Value *theta, const PlanTensor *image, const Shape *out,
                        Value y, Value x) {
  Pixel pixel = {.grid = {grid_place(emit, x, out->dims[3], attrs->align_corners),
                          grid_place(emit, y, out->dims[2], attrs->align_corners)}};
  Value place[2];
  for (int i = 0; i < 2; i++) {
    place[i] =
        emit_fadd(emit, emit_fmul(emit, theta[3 * i], pixel.grid[0]), emit_fmul(emit, theta[3 * i + 1], pixel.grid[1]));
    place[i] = emit_fadd(emit, place[i], theta[3 * i + 2]);
  }
  pixel.across = sample_place(emit, place[0], image->shape.dims[3], attrs, image->storage.stride[3]);
  pixel.down = sample_place(emit, place[1], image->shape.dims[2], attrs, image->storage.stride[2]);
  return pixel;
}

typedef struct Corner {
  Value offset, inside, weight;
} Corner;

static void find_corners(Emit *emit, const Pixel *pixel, Corner corners[4]) {
  for (int i = 0; i < 4; i++) {
    int row = i >> 1, column = i & 1;
    corners[i].offset = emit_add(emit, pixel->down.offset[row], pixel->across.offset[column]);
    corners[i].inside = emit_and(emit, pixel->down.inside[row], pixel->across.inside[column]);
    corners[i].weight = wide_to_float(emit, emit_fmul(emit, pixel->down.weight[row], pixel->across.weight[column]), 1);
  }
}

static void load_theta(Emit *emit, int32_t input, Value image, Value theta[6]) {
  for (int64_t i = 0; i < 6; i++) {
    Value at[SHAPE_MAX_RANK] = {image, emit_int(emit, i / 3), emit_int(emit, i % 3)};
    Value offset = emit_offset(emit, &emit->kernel->inputs[input], at);
    theta[i] = wide_from_float(emit, emit_load(emit, emit->inputs[input], offset, 1), 1);
  }
}

/* --- the op ------------------------------------------------------------------------------------------ */

bool cpu_grid_sample(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], theta[6], index[SHAPE_MAX_RANK] = {NULL}, plane[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (int64_t[]){1, dims[2]}, digit);
  load_theta(emit, 1, digit[0], theta);
  index[0] = plane[0] = digit[0], index[2] = digit[1];
  EmitLoop x = emit_loop_count(emit, dims[3], 1, "x");
  index[3] = x.index;
  Pixel pixel = find_pixel(emit, &kernel->attrs, theta, in, &out->shape, digit[1], x.index);
  Corner corners[4];
  find_corners(emit, &pixel, corners);
  EmitLoop channel = emit_loop_count(emit, dims[1], 1, "channel");
  index[1] = plane[1] = channel.index;
  Value start = emit_offset(emit, in, plane), sum = emit_float(emit, 1, 0);
  for (int i = 0; i < 4; i++) {
    Value value = emit_load(emit, emit->inputs[0], emit_add(emit, start, corners[i].offset), 1);
    value = emit_select(emit, corners[i].inside, value, emit_float(emit, 1, 0));
    sum = emit_fma(emit, corners[i].weight, value, sum);
  }
  emit_store(emit, emit->output, emit_offset(emit, out, index), emit_epilogue(emit, sum, index, 1));
  emit_loop_end(emit, &channel);
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], dims[2]);
  return true;
}

/* --- gradients --------------------------------------------------------------------------------------- */

/* Loops over the rows of all planes of an image of the output; index[3] is for the caller. */
typedef struct ImageRows {
  EmitLoop channel, y;
  Value index[SHAPE_MAX_RANK];
} ImageRows;

static ImageRows image_rows_begin(Emit *emit, Value image) {
  const Shape *shape = &emit->kernel->output.shape;
  ImageRows rows = {.channel = emit_loop_count(emit, shape->dims[1], 1, "channel")};
  rows.y = emit_loop_count(emit, shape->dims[2], 1, "y");
  rows.index[0] = image, rows.index[1] = rows.channel.index, rows.index[2] = rows.y.index;
  return rows;
}

static void image_rows_end(Emit *emit, ImageRows *rows) {
  emit_loop_end(emit, &rows->y);
  emit_loop_end(emit, &rows->channel);
}

static void store_zeros(Emit *emit, void *context, int32_t lanes, Value at) {
  ImageRows *rows = context;
  rows->index[3] = at;
  emit_store(emit, emit->output, emit_offset(emit, &emit->kernel->output, rows->index), emit_float(emit, lanes, 0));
}

static void apply_epilogue(Emit *emit, void *context, int32_t lanes, Value at) {
  ImageRows *rows = context;
  rows->index[3] = at;
  Value offset = emit_offset(emit, &emit->kernel->output, rows->index);
  emit_store(emit, emit->output, offset,
             emit_epilogue(emit, emit_load(emit, emit->output, offset, lanes), rows->index, lanes));
}

/* Inputs: dy, theta. Every pixel adds to the four elements that it was blended from. */
bool cpu_grid_sample_grad_input(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *gradient = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = gradient->shape.dims, width = out->shape.dims[3];
  *out_work = work_per_image(dims[0], 1);
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "image");
  ImageRows rows = image_rows_begin(emit, item.index);
  emit_halo(emit, rows.index[0], rows.index[1], rows.index[2]);
  emit_vector_loop(emit, width, 0, store_zeros, &rows);
  image_rows_end(emit, &rows);
  Value theta[6];
  load_theta(emit, 1, item.index, theta);
  EmitLoop y = emit_loop_count(emit, dims[2], 1, "y"), x = emit_loop_count(emit, dims[3], 1, "x");
  Pixel pixel = find_pixel(emit, &kernel->attrs, theta, out, &gradient->shape, y.index, x.index);
  Corner corners[4];
  find_corners(emit, &pixel, corners);
  EmitLoop channel = emit_loop_count(emit, dims[1], 1, "channel");
  const Value at[4] = {item.index, channel.index, y.index, x.index}, plane[4] = {item.index, channel.index};
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, gradient, at), 1);
  for (int i = 0; i < 4; i++) {
    Value place = emit_add(emit, emit_offset(emit, out, plane), corners[i].offset);
    Value share = emit_fmul(emit, corners[i].weight, value);
    share = emit_select(emit, corners[i].inside, share, emit_float(emit, 1, 0));
    emit_store(emit, emit->output, place, emit_fadd(emit, emit_load(emit, emit->output, place, 1), share));
  }
  emit_loop_end(emit, &channel);
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &y);
  if (kernel->epilogue_count > 0) {
    rows = image_rows_begin(emit, item.index);
    emit_vector_loop(emit, width, 0, apply_epilogue, &rows);
    image_rows_end(emit, &rows);
  }
  emit_loop_end(emit, &item);
  return true;
}

/* The slopes of the loss along x and y at a pixel: with the values of the four corners, in double, Σ over channels of
 * dy · (weighted differences). */
static void add_slopes(Emit *emit, const Pixel *pixel, Value start, Value gradient, const Reduction slopes[2]) {
  Value values[4], zero = wide_constant(emit, 1, 0);
  for (int i = 0; i < 4; i++) {
    Value offset = emit_add(emit, pixel->down.offset[i >> 1], pixel->across.offset[i & 1]);
    Value inside = emit_and(emit, pixel->down.inside[i >> 1], pixel->across.inside[i & 1]);
    Value value = wide_from_float(emit, emit_load(emit, emit->inputs[0], emit_add(emit, start, offset), 1), 1);
    values[i] = emit_select(emit, inside, value, zero);
  }
  Value along_x = zero, along_y = zero;
  for (int i = 0; i < 2; i++) {
    Value across = emit_fsub(emit, values[2 * i + 1], values[2 * i]), down = emit_fsub(emit, values[2 + i], values[i]);
    along_x = emit_fadd(emit, along_x, emit_fmul(emit, pixel->down.weight[i], across));
    along_y = emit_fadd(emit, along_y, emit_fmul(emit, pixel->across.weight[i], down));
  }
  gradient = wide_from_float(emit, gradient, 1);
  reduction_add(emit, &slopes[0], emit_fmul(emit, gradient, along_x), 1);
  reduction_add(emit, &slopes[1], emit_fmul(emit, gradient, along_y), 1);
}

/* Inputs: x, theta, dy. */
bool cpu_grid_sample_grad_theta(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *gradient = &kernel->inputs[2];
  const int64_t *dims = gradient->shape.dims;
  *out_work = work_per_image(dims[0], 1);
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "image");
  Value theta[6];
  load_theta(emit, 1, item.index, theta);
  Reduction sums[6];
  for (int i = 0; i < 6; i++) sums[i] = reduction_begin(emit, false, 1);
  EmitLoop y = emit_loop_count(emit, dims[2], 1, "y"), x = emit_loop_count(emit, dims[3], 1, "x");
  Pixel pixel = find_pixel(emit, &kernel->attrs, theta, in, &gradient->shape, y.index, x.index);
  const Reduction slopes[2] = {reduction_begin(emit, false, 1), reduction_begin(emit, false, 1)};
  EmitLoop channel = emit_loop_count(emit, dims[1], 1, "channel");
  const Value at[4] = {item.index, channel.index, y.index, x.index}, plane[4] = {item.index, channel.index};
  add_slopes(emit, &pixel, emit_offset(emit, in, plane),
             emit_load(emit, emit->inputs[2], emit_offset(emit, gradient, at), 1), slopes);
  emit_loop_end(emit, &channel);
  for (int i = 0; i < 2; i++) {
    Value slope = emit_fmul(emit, reduction_end(emit, &slopes[i]), i == 0 ? pixel.across.slope : pixel.down.slope);
    for (int k = 0; k < 2; k++) reduction_add(emit, &sums[3 * i + k], emit_fmul(emit, slope, pixel.grid[k]), 1);
    reduction_add(emit, &sums[3 * i + 2], slope, 1);
  }
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &y);
  for (int64_t i = 0; i < 6; i++) {
    const Value index[3] = {item.index, emit_int(emit, i / 3), emit_int(emit, i % 3)};
    Value sum = wide_to_float(emit, reduction_end(emit, &sums[i]), 1);
    emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), emit_epilogue(emit, sum, index, 1));
  }
  emit_loop_end(emit, &item);
  return true;
}
