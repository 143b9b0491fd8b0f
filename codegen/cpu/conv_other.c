/* Convolutions other than the blocked direct one: depthwise (blocked), reference and transposed (plain). */
#include "base/checked.h"
#include "conv.h"
#include "kiln_abi.h"
#include "ride.h"
#include "work.h"

ConvShape conv_shape(const PlanKernel *kernel) {
  const Shape *in = &kernel->inputs[0].shape, *filter = &kernel->inputs[1].shape, *out = &plan_made(kernel)->shape;
  const Attrs *attrs = &kernel->attrs;
  return (ConvShape){
      .images = out->dims[0],
      .channels = in->dims[1],
      .height = in->dims[2],
      .width = in->dims[3],
      .filters = out->dims[1],
      .out_height = out->dims[2],
      .out_width = out->dims[3],
      .groups = attrs->groups,
      .kernel_height = filter->dims[2],
      .kernel_width = filter->dims[3],
      .stride_height = attrs->stride.values[0],
      .stride_width = attrs->stride.values[1],
      .dilation_height = attrs->dilation.values[0],
      .dilation_width = attrs->dilation.values[1],
      .pad_top = attrs->padding.values[0],
      .pad_left = attrs->padding.values[1],
  };
}

bool conv_check_halo(const PlanKernel *kernel, const ConvShape *shape, Diag *diag) {
  const int32_t *halo = kernel->inputs[0].storage.halo;
  int64_t bottom = (shape->out_height - 1) * shape->stride_height +
                   (shape->kernel_height - 1) * shape->dilation_height - shape->pad_top - (shape->height - 1);
  int64_t right = (shape->out_width - 1) * shape->stride_width + (shape->kernel_width - 1) * shape->dilation_width -
                  shape->pad_left - (shape->width - 1);
  if (halo[0] >= shape->pad_top && halo[1] >= shape->pad_left && halo[2] >= bottom && halo[3] >= right) return true;
  diag_error(diag, kernel->location, "'%s': the input's halo [%d,%d,%d,%d] does not cover the windows", kernel->name,
             (int)halo[0], (int)halo[1], (int)halo[2], (int)halo[3]);
  return false;
}

Value conv_channel_index(Emit *emit, const PlanTensor *tensor, Value block, int32_t lanes) {
  return tensor->layout.kind == LAYOUT_CHANNEL_LAST ? emit_mul_int(emit, block, lanes) : block;
}

void conv_halo(Emit *emit, const PlanTensor *output, Value n, Value block, Value y) {
  const int32_t *halo = output->storage.halo;
  if ((halo[0] | halo[1] | halo[2] | halo[3]) == 0) return;
  if (output->layout.kind != LAYOUT_CHANNEL_LAST) {
    emit_halo(emit, n, block, y);
    return;
  }
  EmitIf first = emit_if(emit, emit_equal(emit, block, emit_int(emit, 0)), "halo");
  emit_halo(emit, n, NULL, y);
  emit_end_if(emit, &first);
}

bool conv_output_is_shared(const PlanKernel *kernel) {
  const Storage *output = &kernel->output.storage;
  for (int32_t i = 0; i < kernel->input_count; i++) {
    const Storage *input = &kernel->inputs[i].storage;
    if (input->space == output->space && input->index == output->index &&
        input->offset < output->offset + output->bytes && output->offset < input->offset + input->bytes)
      return true;
  }
  return false;
}

KernelWork work_per_image(int64_t images, int64_t per_image) {
  if (images == DIM_BATCH) return (KernelWork){.items_per_batch = per_image};
  return (KernelWork){.items = images * per_image};
}

bool cpu_conv2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  switch (kernel->choice.algorithm) {
    case ALGORITHM_DIRECT:
      return cpu_conv_direct(emit, kernel, out_work, diag);
    case ALGORITHM_DEPTHWISE:
      return cpu_conv_depthwise(emit, kernel, out_work, diag);
    case ALGORITHM_WINOGRAD23:
    case ALGORITHM_WINOGRAD43:
    case ALGORITHM_WINOGRAD34:
      return cpu_conv_winograd(emit, kernel, out_work, diag);
    case ALGORITHM_TILES:
      return cpu_conv_tiles(emit, kernel, out_work, diag);
    case ALGORITHM_DEFAULT:
    case ALGORITHM_REFERENCE:
    case ALGORITHM_PACKED:
      if (conv_takes_rows(kernel)) return cpu_conv_rows(emit, kernel, out_work);
      return cpu_conv_reference(emit, kernel, out_work, diag);
  }
  return false;
}

/* --- depthwise --------------------------------------------------------------------------------------- */

/* Products that are not fused with their sums need registers of their own. */
enum { DEPTHWISE_PIXELS = 8, DEPTHWISE_PIXELS_UNFUSED = 6, DEPTHWISE_UNROLL = 7 };

typedef struct Depthwise {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  int32_t lanes;
  Value image, block, channel, filter; /* channel: the index of the block */
} Depthwise;

/* One tap for all pixels of a tile. */
static void emit_depthwise_tap(Depthwise *state, Value input_row, Value filter_row, Value s, Value *sums,
                               int64_t pixels) {
  Emit *emit = state->emit;
  const Storage *in = &state->kernel->inputs[0].storage, *weights = &state->kernel->inputs[1].storage;
  LLVMTypeRef vector = emit_float_type(emit, state->lanes);
  Value weight = emit_load(emit, filter_row, emit_mul_int(emit, s, weights->stride[3]), state->lanes);
  Value input = emit_address(emit, input_row, emit_mul_int(emit, s, state->shape.dilation_width * in->stride[3]));
  for (int64_t i = 0; i < pixels; i++) {
    Value pixel = emit_load(emit, input, emit_int(emit, i * state->shape.stride_width * in->stride[3]), state->lanes);
    emit_set(emit, sums[i], emit_fma(emit, pixel, weight, emit_get(emit, vector, sums[i])));
  }
}

static void emit_depthwise_tile(Depthwise *state, int64_t pixels, Value y, Value x) {
  Emit *emit = state->emit;
  const PlanKernel *kernel = state->kernel;
  const ConvShape *shape = &state->shape;
  const Storage *in = &kernel->inputs[0].storage;
  LLVMTypeRef vector = emit_float_type(emit, state->lanes);
  Value start = emit_float(emit, state->lanes, 0), sums[DEPTHWISE_PIXELS];
  if (kernel->op_input_count > 2) {
    Value channel = emit_mul_int(emit, state->block, state->lanes);
    start =
        emit_load(emit, emit->inputs[2], emit_add_int(emit, channel, kernel->inputs[2].storage.origin), state->lanes);
  }
  for (int64_t i = 0; i < pixels; i++) {
    sums[i] = emit_variable(emit, vector, "sum");
    emit_set(emit, sums[i], start);
  }
  const Value corner[4] = {state->image, state->channel, emit_mul_int(emit, y, shape->stride_height),
                           emit_mul_int(emit, x, shape->stride_width)};
  Value offset = emit_add_int(emit, emit_offset(emit, &kernel->inputs[0], corner),
                              -shape->pad_top * in->stride[2] - shape->pad_left * in->stride[3]);
  Value input = emit_address(emit, emit->inputs[0], offset);
  EmitLoop r = emit_loop_count(emit, shape->kernel_height, 1, "tap_row");
  Value input_row = emit_address(emit, input, emit_mul_int(emit, r.index, shape->dilation_height * in->stride[2]));
  Value filter_row =
      emit_address(emit, state->filter, emit_mul_int(emit, r.index, kernel->inputs[1].storage.stride[2]));
  if (shape->kernel_width <= DEPTHWISE_UNROLL) {
    for (int64_t s = 0; s < shape->kernel_width; s++)
      emit_depthwise_tap(state, input_row, filter_row, emit_int(emit, s), sums, pixels);
  } else {
    EmitLoop s = emit_loop_count(emit, shape->kernel_width, 1, "tap_column");
    emit_depthwise_tap(state, input_row, filter_row, s.index, sums, pixels);
    emit_loop_end(emit, &s);
  }
  emit_loop_end(emit, &r);
  for (int64_t i = 0; i < pixels; i++) {
    const Value index[4] = {state->image, state->channel, y, emit_add_int(emit, x, i)};
    Value sum = emit_epilogue(emit, emit_get(emit, vector, sums[i]), index, state->lanes);
    emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), sum);
  }
  ride_take(emit, state->block);
}

/* A filter sees one channel: lanes are channels, and a tap is a multiply-add of a vector of pixels by a vector of
 * weights. Items are rows of a block. */
bool cpu_conv_depthwise(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *input = &kernel->inputs[0], *filter = &kernel->inputs[1];
  const Layout layout = kernel->output.layout;
  Depthwise state = {.emit = emit, .kernel = kernel, .shape = conv_shape(kernel)};
  state.lanes = work_lanes(layout, filter->layout.block, &kernel->choice);
  const ConvShape *shape = &state.shape;
  const bool last = layout.kind == LAYOUT_CHANNEL_LAST && shape->channels % state.lanes == 0;
  if ((layout.kind != LAYOUT_CHANNEL_BLOCK && !last) || !layout_equal(input->layout, layout) ||
      filter->layout.kind != LAYOUT_FILTER_BLOCK || filter->layout.block % state.lanes != 0 ||
      shape->groups != shape->channels || shape->filters != shape->channels) {
    diag_error(diag, kernel->location, "'%s': depthwise convolution does not take these layouts", kernel->name);
    return false;
  }
  if (!conv_check_halo(kernel, shape, diag)) return false;
  int64_t blocks = ceil_div(shape->filters, state.lanes), panel_blocks = filter->layout.block / state.lanes;
  *out_work = work_per_image(shape->images, blocks * shape->out_height);
  int64_t tiles = ceil_div(shape->out_width, emit->target->fma ? DEPTHWISE_PIXELS : DEPTHWISE_PIXELS_UNFUSED);
  out_work->scratch_bytes = ride_begin(emit, 0, shape->out_width);

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  const int64_t extents[3] = {1, blocks, shape->out_height};
  Value digits[3];
  emit_split(emit, item.index, 3, extents, digits);
  state.image = digits[0];
  state.block = digits[1];
  state.channel = conv_channel_index(emit, input, digits[1], state.lanes);
  Value panel = emit_mul_int(emit, emit_div_int(emit, state.block, panel_blocks), filter->storage.stride[0]);
  Value lane = emit_mul_int(emit, emit_mod_int(emit, state.block, panel_blocks), state.lanes);
  state.filter =
      emit_address(emit, emit->inputs[1], emit_add_int(emit, emit_add(emit, panel, lane), filter->storage.origin));
  ride_item(emit);
  int64_t narrow = shape->out_width / tiles, wide = shape->out_width % tiles;
  for (int part = 0; part < 2; part++) {
    int64_t count = part == 0 ? wide : tiles - wide, pixels = part == 0 ? narrow + 1 : narrow;
    if (count == 0) continue;
    EmitLoop x = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, count), 1, "tile");
    int64_t begin = part == 0 ? 0 : wide * (narrow + 1);
    emit_depthwise_tile(&state, pixels, digits[2], emit_add_int(emit, emit_mul_int(emit, x.index, pixels), begin));
    emit_loop_end(emit, &x);
  }
  conv_halo(emit, &kernel->output, state.image, state.block, digits[2]);
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
  return true;
}

/* --- segments of a row ------------------------------------------------------------------------------- */

typedef struct RowBody {
  /* Computes `lanes` neighbouring pixels from x on; `checked` when some of their taps lie outside the input. */
  void (*emit_pixels)(void *state, int32_t lanes, Value x, bool checked);
  void *state;
} RowBody;

static void emit_segment(Emit *emit, const RowBody *body, int64_t begin, int64_t end, int32_t lanes, bool checked) {
  int64_t count = (end - begin) / lanes * lanes;
  if (count <= 0) return;
  EmitLoop x = emit_loop_begin(emit, emit_int(emit, begin), emit_int(emit, begin + count), lanes, "x");
  body->emit_pixels(body->state, lanes, x.index, checked);
  emit_loop_end(emit, &x);
}

/* Covers [0, width): [begin, end) in wide vectors, vectors and single pixels, the borders in checked single ones. */
static void emit_row(Emit *emit, const RowBody *body, int64_t width, int64_t begin, int64_t end, int32_t unroll) {
  if (begin >= end) begin = end = width;
  emit_segment(emit, body, 0, begin, 1, true);
  const int32_t lanes[3] = {unroll * emit->target->vector_lanes, emit->target->vector_lanes, 1};
  for (int i = unroll > 1 ? 0 : 1; i < 3; i++) {
    emit_segment(emit, body, begin, end, lanes[i], false);
    begin += (end - begin) / lanes[i] * lanes[i];
  }
  emit_segment(emit, body, end, width, 1, true);
}

/* i1: 0 ≤ value < bound */
static Value emit_within(Emit *emit, Value value, int64_t bound) {
  return emit_and(emit, emit_less(emit, emit_int(emit, -1), value), emit_less(emit, value, emit_int(emit, bound)));
}

static Value emit_bias(Emit *emit, const PlanKernel *kernel, Value filter, int32_t lanes) {
  if (kernel->op_input_count < 3) return emit_float(emit, lanes, 0);
  Value offset = emit_offset_element(emit, &kernel->inputs[2], &filter);
  return emit_splat(emit, emit_load(emit, emit->inputs[2], offset, 1), lanes);
}

/* --- reference --------------------------------------------------------------------------------------- */

typedef struct Reference {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  Value image, filter, y;
} Reference;

static void emit_reference_pixels(void *context, int32_t lanes, Value x, bool checked) {
  Reference *state = context;
  Emit *emit = state->emit;
  const PlanKernel *kernel = state->kernel;
  const ConvShape *shape = &state->shape;
  const PlanTensor *input = &kernel->inputs[0], *weights = &kernel->inputs[1];
  LLVMTypeRef type = emit_float_type(emit, lanes);
  Value sum = emit_variable(emit, type, "sum");
  emit_set(emit, sum, emit_bias(emit, kernel, state->filter, lanes));
  int64_t group_channels = shape->channels / shape->groups;
  Value group =
      shape->groups == 1 ? emit_int(emit, 0) : emit_div_int(emit, state->filter, shape->filters / shape->groups);

  EmitLoop r = emit_loop_count(emit, shape->kernel_height, 1, "tap_row");
  Value iy = emit_add(emit, emit_mul_int(emit, state->y, shape->stride_height),
                      emit_add_int(emit, emit_mul_int(emit, r.index, shape->dilation_height), -shape->pad_top));
  EmitIf row_inside = emit_if(emit, emit_within(emit, iy, shape->height), "row_inside");
  EmitLoop c = emit_loop_count(emit, group_channels, 1, "channel");
  EmitLoop s = emit_loop_count(emit, shape->kernel_width, 1, "tap_column");
  Value ix = emit_add(emit, emit_mul_int(emit, x, shape->stride_width),
                      emit_add_int(emit, emit_mul_int(emit, s.index, shape->dilation_width), -shape->pad_left));
  EmitIf inside = {0};
  if (checked) inside = emit_if(emit, emit_within(emit, ix, shape->width), "inside");
  const Value at[4] = {state->image, emit_add(emit, emit_mul_int(emit, group, group_channels), c.index), iy, ix};
  const Value tap[4] = {state->filter, c.index, r.index, s.index};
  Value pixels = emit_load_strided(emit, emit->inputs[0], emit_offset(emit, input, at),
                                   shape->stride_width * input->storage.stride[3], lanes);
  Value weight = emit_splat(emit, emit_load(emit, emit->inputs[1], emit_offset(emit, weights, tap), 1), lanes);
  emit_set(emit, sum, emit_fma(emit, pixels, weight, emit_get(emit, type, sum)));
  if (checked) emit_end_if(emit, &inside);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &c);
  emit_end_if(emit, &row_inside);
  emit_loop_end(emit, &r);

  const Value index[4] = {state->image, state->filter, state->y, x};
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index),
             emit_epilogue(emit, emit_get(emit, type, sum), index, lanes));
}

/* Vectors run along the output's rows. Items are rows of one filter. */
bool cpu_conv_reference(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  enum { UNROLL = 4 };
  Reference state = {.emit = emit, .kernel = kernel, .shape = conv_shape(kernel)};
  const ConvShape *shape = &state.shape;
  bool plain = kernel->output.layout.kind == LAYOUT_PLAIN;
  for (int i = 0; i < 2; i++) plain = plain && kernel->inputs[i].layout.kind == LAYOUT_PLAIN;
  if (!plain) {
    diag_error(diag, kernel->location, "'%s': reference convolution takes plain layouts only", kernel->name);
    return false;
  }
  *out_work = work_per_image(shape->images, shape->filters * shape->out_height);
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  const int64_t extents[3] = {1, shape->filters, shape->out_height};
  Value digits[3];
  emit_split(emit, item.index, 3, extents, digits);
  state.image = digits[0];
  state.filter = digits[1];
  state.y = digits[2];
  /* columns whose windows lie inside */
  int64_t reach = (shape->kernel_width - 1) * shape->dilation_width;
  int64_t begin = ceil_div(shape->pad_left, shape->stride_width);
  int64_t last = shape->width - 1 - reach + shape->pad_left;
  int64_t end = last < 0 ? 0 : last / shape->stride_width + 1;
  if (end > shape->out_width) end = shape->out_width;
  const RowBody body = {emit_reference_pixels, &state};
  emit_row(emit, &body, shape->out_width, begin, end, shape->stride_width == 1 ? UNROLL : 1);
  emit_halo(emit, state.image, state.filter, state.y);
  emit_loop_end(emit, &item);
  return true;
}

/* --- transposed -------------------------------------------------------------------------------------- */

typedef struct Transposed {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  int64_t group_channels, group_filters;
  Value image, filter, y, group, group_filter;
  /* of the current phase: columns ≡ phase (mod stride) take the taps first, first + step, … */
  int64_t phase, first, step, taps, column; /* input column of tap `first` for output column `phase` */
} Transposed;

/* An input row index that tap row r maps to the output row, valid when *out_inside. */
static Value emit_transposed_source(Emit *emit, Value position, Value tap, int64_t stride, int64_t dilation,
                                    int64_t pad, int64_t extent, Value *out_inside) {
  Value distance = emit_sub(emit, emit_add_int(emit, position, pad), emit_mul_int(emit, tap, dilation));
  /* division is unsigned: look at non-negative distances only */
  Value positive = emit_max(emit, distance, emit_int(emit, 0));
  Value source = emit_div_int(emit, positive, stride);
  Value exact = emit_equal(emit, emit_mul_int(emit, source, stride), distance);
  *out_inside = emit_and(emit, exact, emit_less(emit, source, emit_int(emit, extent)));
  return source;
}

static void emit_transposed_product(Transposed *state, int32_t lanes, Value sum, Value c, Value iy, Value ix, Value r,
                                    Value s) {
  Emit *emit = state->emit;
  const PlanTensor *inputs = state->kernel->inputs;
  Value channel = emit_add(emit, emit_mul_int(emit, state->group, state->group_channels), c);
  const Value at[4] = {state->image, channel, iy, ix}, tap[4] = {channel, state->group_filter, r, s};
  Value pixels =
      emit_load_strided(emit, emit->inputs[0], emit_offset(emit, &inputs[0], at), inputs[0].storage.stride[3], lanes);
  Value weight = emit_splat(emit, emit_load(emit, emit->inputs[1], emit_offset(emit, &inputs[1], tap), 1), lanes);
  emit_set(emit, sum, emit_fma(emit, pixels, weight, emit_get(emit, emit_float_type(emit, lanes), sum)));
}

/* `x` counts columns of the phase when unchecked (its taps are known), columns of the row when checked. The sums go
 * to the scratch row. */
static void emit_transposed_pixels(void *context, int32_t lanes, Value x, bool checked) {
  Transposed *state = context;
  Emit *emit = state->emit;
  const ConvShape *shape = &state->shape;
  LLVMTypeRef type = emit_float_type(emit, lanes);
  Value sum = emit_variable(emit, type, "sum"), inside;
  emit_set(emit, sum, emit_bias(emit, state->kernel, state->filter, lanes));
  EmitLoop r = emit_loop_count(emit, shape->kernel_height, 1, "tap_row");
  Value iy = emit_transposed_source(emit, state->y, r.index, shape->stride_height, shape->dilation_height,
                                    shape->pad_top, shape->height, &inside);
  EmitIf row_inside = emit_if(emit, inside, "row_inside");
  EmitLoop c = emit_loop_count(emit, state->group_channels, 1, "channel");
  if (checked) {
    EmitLoop s = emit_loop_count(emit, shape->kernel_width, 1, "tap_column");
    Value ix = emit_transposed_source(emit, x, s.index, shape->stride_width, shape->dilation_width, shape->pad_left,
                                      shape->width, &inside);
    EmitIf column_inside = emit_if(emit, inside, "inside");
    emit_transposed_product(state, lanes, sum, c.index, iy, ix, r.index, s.index);
    emit_end_if(emit, &column_inside);
    emit_loop_end(emit, &s);
  } else if (state->taps > 0) {
    EmitLoop tap = emit_loop_count(emit, state->taps, 1, "tap");
    int64_t back = state->step * shape->dilation_width / shape->stride_width;
    Value ix = emit_sub(emit, emit_add_int(emit, x, state->column), emit_mul_int(emit, tap.index, back));
    Value s = emit_add_int(emit, emit_mul_int(emit, tap.index, state->step), state->first);
    emit_transposed_product(state, lanes, sum, c.index, iy, ix, r.index, s);
    emit_loop_end(emit, &tap);
  }
  emit_loop_end(emit, &c);
  emit_end_if(emit, &row_inside);
  emit_loop_end(emit, &r);
  Value at = checked ? x : emit_add_int(emit, emit_mul_int(emit, x, shape->stride_width), state->phase);
  emit_store_strided(emit, emit->scratch, at, checked ? 1 : shape->stride_width, emit_get(emit, type, sum), lanes);
}

static void emit_transposed_epilogue(void *context, int32_t lanes, Value x, bool checked) {
  (void)checked;
  Transposed *state = context;
  Emit *emit = state->emit;
  const Value index[4] = {state->image, state->filter, state->y, x};
  Value sum = emit_load(emit, emit->scratch, x, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &state->kernel->output, index),
             emit_epilogue(emit, sum, index, lanes));
}

static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

/* Taps of the columns ≡ phase (mod stride): those with phase + pad − s·dilation ≡ 0. */
static void transposed_phase(Transposed *state, int64_t phase) {
  const ConvShape *shape = &state->shape;
  int64_t stride = shape->stride_width;
  state->phase = phase;
  state->taps = state->first = state->step = state->column = 0;
  for (int64_t s = 0, previous = 0; s < shape->kernel_width; s++) {
    int64_t distance = phase + shape->pad_left - s * shape->dilation_width;
    if (distance - floor_div(distance, stride) * stride != 0) continue;
    if (state->taps == 0) {
      state->first = s;
      state->column = floor_div(distance, stride);
    }
    state->step = s - previous;
    previous = s;
    state->taps++;
  }
  if (state->taps < 2) state->step = 0;
}

/* Gathers: an output column takes every stride-th tap, so that the columns of one phase read neighbouring pixels and
 * vectors run along them. A row of sums is collected in scratch memory, then the epilogue runs over it. */
bool cpu_conv_transpose2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  enum { PHASES_MAX = 4 };
  (void)diag;
  Transposed state = {.emit = emit, .kernel = kernel, .shape = conv_shape(kernel)};
  const ConvShape *shape = &state.shape;
  int64_t stride = shape->stride_width, width = shape->out_width;
  state.group_channels = shape->channels / shape->groups;
  state.group_filters = shape->filters / shape->groups;
  *out_work = work_per_image(shape->images, shape->filters * shape->out_height);
  out_work->scratch_bytes = round_up(width * data_type_bytes(DTYPE_F32), KILN_ALIGNMENT);

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  const int64_t extents[3] = {1, shape->filters, shape->out_height};
  Value digits[3];
  emit_split(emit, item.index, 3, extents, digits);
  state.image = digits[0];
  state.filter = digits[1];
  state.y = digits[2];
  state.group = shape->groups == 1 ? emit_int(emit, 0) : emit_div_int(emit, state.filter, state.group_filters);
  state.group_filter = emit_mod_int(emit, state.filter, state.group_filters);

  /* columns of every phase in [begin, end) have all their taps inside */
  int64_t reach = (shape->kernel_width - 1) * shape->dilation_width;
  int64_t begin = ceil_div(reach > shape->pad_left ? reach - shape->pad_left : 0, stride);
  int64_t last = shape->width * stride - 1 - shape->pad_left; /* the last column whose tap 0 is inside */
  int64_t end = last < 0 ? 0 : (last + 1) / stride;
  if (end > width / stride) end = width / stride;
  if (begin > end || stride > PHASES_MAX) begin = end = 0;
  const RowBody sums = {emit_transposed_pixels, &state}, epilogue = {emit_transposed_epilogue, &state};
  emit_segment(emit, &sums, 0, begin * stride, 1, true);
  for (int64_t phase = 0; phase < stride && begin < end; phase++) {
    transposed_phase(&state, phase);
    int64_t vectors_end = begin + (end - begin) / emit->target->vector_lanes * emit->target->vector_lanes;
    emit_segment(emit, &sums, begin, vectors_end, emit->target->vector_lanes, false);
    emit_segment(emit, &sums, vectors_end, end, 1, false);
  }
  emit_segment(emit, &sums, end * stride, width, 1, true);
  emit_row(emit, &epilogue, width, 0, width, 1);
  emit_halo(emit, state.image, state.filter, state.y);
  emit_loop_end(emit, &item);
  return true;
}
