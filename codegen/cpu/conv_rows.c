/* Convolution of plain images with vectors along the rows of the output: for few filters, which would leave lanes of a
 * block of channels empty.
 *
 * A register tile holds Y rows × V vectors of pixels × F filters. Input rows are taken one by one: a vector that is
 * loaded at a tap's column is multiplied for all filters and for each of the tile's rows that the tap of some row of
 * the filter joins to this input row, so that with a 3×3 filter most loads serve three rows. Taps are unrolled; a loop
 * goes over channels. The input's halo holds the padding, so that no tap is checked.
 *
 * The vectors at the end of a row move back over the ones before them where the row is no multiple; what they share is
 * computed twice, to the same numbers. Not so where the output may lie over an operand of the epilogue: there the rest
 * of a row is computed in ever smaller vectors.
 *
 * Every output adds its products in the order channel, row and column of the tap, or row and column of the input, which
 * is the same, whatever the tile. */
#include "base/checked.h"
#include "conv.h"
#include "work.h"

enum { LINE_ELEMENTS = 16, MAX_VECTORS = 4, MAX_ROWS = 4, MAX_FILTERS = 8, ITEMS = 16 };

typedef struct Rows {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  int64_t group_channels;
  int32_t lanes;
  int64_t filters, vectors, rows; /* of a tile */
  bool overlaps;
  /* of the current item */
  Value image, filter, input, weights; /* filter: the first one; addresses of its group's first channel and of it */
} Rows;

typedef struct Tile {
  int64_t rows, vectors;
  int32_t lanes;
  Value y, x;
  Value *sums; /* variables, [row][vector][filter] */
} Tile;

static Value *tile_sum(const Rows *state, const Tile *tile, int64_t row, int64_t vector, int64_t filter) {
  return &tile->sums[(row * tile->vectors + vector) * state->filters + filter];
}

static void start_sums(const Rows *state, Tile *tile) {
  Emit *emit = state->emit;
  const PlanKernel *kernel = state->kernel;
  for (int64_t f = 0; f < state->filters; f++) {
    Value start = emit_float(emit, tile->lanes, 0), filter = emit_add_int(emit, state->filter, f);
    if (kernel->op_input_count > 2) {
      Value bias = emit_load(emit, emit->inputs[2], emit_offset_element(emit, &kernel->inputs[2], &filter), 1);
      start = emit_splat(emit, bias, tile->lanes);
    }
    for (int64_t row = 0; row < tile->rows; row++)
      for (int64_t v = 0; v < tile->vectors; v++) emit_set(emit, *tile_sum(state, tile, row, v, f), start);
  }
}

/* What a vector of the input, at row `row` of the tile's and under column `s` of the filters, adds to the sums. */
static void add_vector(const Rows *state, const Tile *tile, const Value *pixels, Value weights, int64_t row,
                       int64_t s) {
  Emit *emit = state->emit;
  const ConvShape *shape = &state->shape;
  const int64_t *stride = state->kernel->inputs[1].storage.stride;
  LLVMTypeRef type = emit_float_type(emit, tile->lanes);
  for (int64_t y = 0; y < tile->rows; y++) {
    const int64_t distance = row - y * shape->stride_height, r = distance / shape->dilation_height;
    if (distance < 0 || distance % shape->dilation_height != 0 || r >= shape->kernel_height) continue;
    for (int64_t f = 0; f < state->filters; f++) {
      Value weight = emit_load(emit, weights, emit_int(emit, f * stride[0] + r * stride[2] + s * stride[3]), 1);
      weight = emit_splat(emit, weight, tile->lanes);
      for (int64_t v = 0; v < tile->vectors; v++) {
        Value sum = *tile_sum(state, tile, y, v, f);
        emit_set(emit, sum, emit_fma(emit, pixels[v], weight, emit_get(emit, type, sum)));
      }
    }
  }
}

/* The rows that the tiles below will read first, of an image that does not stay in the second-level cache. Measured:
 * where images come from memory, two fifths of the time. */
static void fetch_rows(const Rows *state, const Tile *tile, Value input, int64_t first) {
  const int64_t elements = state->shape.channels * state->shape.height * state->shape.width;
  if (elements * (int64_t)sizeof(float) <= state->emit->target->l2_bytes / 4) return;
  const int64_t stride = state->kernel->inputs[0].storage.stride[2];
  for (int64_t row = 0; row < tile->rows * state->shape.stride_height; row++)
    for (int64_t x = 0; x < tile->vectors * tile->lanes; x += LINE_ELEMENTS)
      emit_prefetch_line(state->emit, input, emit_int(state->emit, (first + row) * stride + x), true);
}

static void add_channel(const Rows *state, const Tile *tile, Value input, Value weights) {
  Emit *emit = state->emit;
  const ConvShape *shape = &state->shape;
  const Storage *in = &state->kernel->inputs[0].storage;
  const int64_t last = (tile->rows - 1) * shape->stride_height + (shape->kernel_height - 1) * shape->dilation_height;
  fetch_rows(state, tile, input, last + 1);
  for (int64_t row = 0; row <= last; row++)
    for (int64_t s = 0; s < shape->kernel_width; s++) {
      Value pixels[MAX_VECTORS];
      for (int64_t v = 0; v < tile->vectors; v++)
        pixels[v] =
            emit_load(emit, input, emit_int(emit, row * in->stride[2] + s * shape->dilation_width + v * tile->lanes),
                      tile->lanes);
      add_vector(state, tile, pixels, weights, row, s);
    }
}

static void finish(const Rows *state, const Tile *tile) {
  Emit *emit = state->emit;
  LLVMTypeRef type = emit_float_type(emit, tile->lanes);
  for (int64_t f = 0; f < state->filters; f++)
    for (int64_t row = 0; row < tile->rows; row++)
      for (int64_t v = 0; v < tile->vectors; v++) {
        const Value index[4] = {state->image, emit_add_int(emit, state->filter, f), emit_add_int(emit, tile->y, row),
                                emit_add_int(emit, tile->x, v * tile->lanes)};
        Value sum = emit_get(emit, type, *tile_sum(state, tile, row, v, f));
        emit_store(emit, emit->output, emit_offset(emit, &state->kernel->output, index),
                   emit_epilogue(emit, sum, index, tile->lanes));
      }
}

static void emit_tile(const Rows *state, Tile tile) {
  Emit *emit = state->emit;
  const ConvShape *shape = &state->shape;
  const PlanKernel *kernel = state->kernel;
  const Storage *in = &kernel->inputs[0].storage;
  const size_t count = (size_t)(tile.rows * tile.vectors * state->filters);
  tile.sums = arena_array(emit->arena, count, Value);
  for (size_t i = 0; i < count; i++) tile.sums[i] = emit_variable(emit, emit_float_type(emit, tile.lanes), "sum");
  start_sums(state, &tile);
  Value corner = emit_add(emit, emit_mul_int(emit, tile.y, shape->stride_height * in->stride[2]), tile.x);
  Value input = emit_address(emit, state->input, corner);
  EmitLoop c = emit_loop_count(emit, state->group_channels, 1, "channel");
  add_channel(state, &tile, emit_address(emit, input, emit_mul_int(emit, c.index, in->stride[1])),
              emit_address(emit, state->weights, emit_mul_int(emit, c.index, kernel->inputs[1].storage.stride[1])));
  emit_loop_end(emit, &c);
  finish(state, &tile);
}

/* The tiles of `rows` rows at y. */
static void emit_span(const Rows *state, int64_t rows, Value y) {
  Emit *emit = state->emit;
  const int64_t width = state->shape.out_width, step = state->vectors * state->lanes;
  Tile tile = {.rows = rows, .vectors = state->vectors, .lanes = state->lanes, .y = y};
  int64_t done = width / step * step;
  if (done > 0) {
    EmitLoop x = emit_loop_count(emit, done, step, "tile");
    tile.x = x.index;
    emit_tile(state, tile);
    emit_loop_end(emit, &x);
  }
  while (done < width) {
    const int64_t left = width - done;
    while (!state->overlaps && tile.lanes > left) tile.lanes /= 2;
    tile.vectors = state->overlaps ? ceil_div(left, tile.lanes) : left / tile.lanes;
    tile.x = emit_int(emit, state->overlaps ? width - tile.vectors * tile.lanes : done);
    emit_tile(state, tile);
    done = state->overlaps ? width : done + tile.vectors * tile.lanes;
  }
}

static void emit_item(const Rows *state, Value begin, Value end) {
  Emit *emit = state->emit;
  const int64_t rest = state->shape.out_height % state->rows;
  Value full_end = rest == 0 ? end : emit_add_int(emit, end, 1 - state->rows);
  EmitLoop y = emit_loop_begin(emit, begin, full_end, state->rows, "row");
  emit_span(state, state->rows, y.index);
  emit_loop_end(emit, &y);
  if (rest > 0) { /* the last item only: items are multiples of a tile's rows */
    Value at = emit_int(emit, state->shape.out_height - rest);
    EmitIf last = emit_if(emit, emit_less(emit, at, end), "last_rows");
    emit_span(state, rest, at);
    emit_end_if(emit, &last);
  }
  const Storage *out = &state->kernel->output.storage;
  if ((out->halo[0] | out->halo[1] | out->halo[2] | out->halo[3]) == 0) return;
  EmitLoop f = emit_loop_count(emit, state->filters, 1, "halo_filter");
  EmitLoop row = emit_loop_begin(emit, begin, end, 1, "halo_row");
  emit_halo(emit, state->image, emit_add(emit, state->filter, f.index), row.index);
  emit_loop_end(emit, &row);
  emit_loop_end(emit, &f);
}

/* As many accumulators as leave registers for a tile's vectors of pixels and a weight. */
static void choose_tile(Rows *state) {
  const ConvShape *shape = &state->shape;
  const int64_t sums = state->emit->target->vector_registers >= 32 ? 24 : 9;
  const int64_t group_filters = shape->filters / shape->groups, most = sums / 3 < MAX_FILTERS ? sums / 3 : MAX_FILTERS;
  state->lanes = state->emit->target->vector_lanes;
  while (state->lanes > shape->out_width) state->lanes /= 2;
  state->filters = 1;
  for (int64_t filters = 2; filters <= most; filters++)
    if (group_filters % filters == 0) state->filters = filters;
  const int64_t pixels = sums / state->filters, vectors = ceil_div(shape->out_width, state->lanes);
  state->vectors = pixels < 2 || vectors < 2 ? 1 : 2;
  state->rows = pixels / state->vectors;
  if (state->rows > MAX_ROWS) state->rows = MAX_ROWS;
  if (state->rows > shape->out_height) state->rows = shape->out_height;
  if (state->rows < 1) state->rows = 1;
  state->vectors = pixels / state->rows;
  if (state->vectors > MAX_VECTORS) state->vectors = MAX_VECTORS;
  if (state->vectors > vectors) state->vectors = vectors;
  /* a row that ends in overlapping vectors has room for them */
  if (state->vectors * state->lanes > shape->out_width && state->vectors > 1) state->vectors--;
}

bool conv_takes_rows(const PlanKernel *kernel) {
  const ConvShape shape = conv_shape(kernel);
  const int32_t *halo = kernel->inputs[0].storage.halo;
  const int64_t bottom = (shape.out_height - 1) * shape.stride_height +
                         (shape.kernel_height - 1) * shape.dilation_height - shape.pad_top - (shape.height - 1);
  const int64_t right =
      (shape.out_width - 1) + (shape.kernel_width - 1) * shape.dilation_width - shape.pad_left - (shape.width - 1);
  const bool covered = halo[0] >= shape.pad_top && halo[1] >= shape.pad_left && halo[2] >= bottom && halo[3] >= right;
  for (int i = 0; i < 2; i++)
    if (kernel->inputs[i].layout.kind != LAYOUT_PLAIN || kernel->inputs[i].storage.stride[3] != 1) return false;
  return covered && kernel->output.layout.kind == LAYOUT_PLAIN && kernel->output.storage.stride[3] == 1 &&
         work_along_rows(&kernel->attrs, &kernel->inputs[1].shape, &kernel->output.shape);
}

/* Items are chunks of an image's rows for some filters. */
bool cpu_conv_rows(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  Rows state = {.emit = emit, .kernel = kernel, .shape = conv_shape(kernel)};
  const ConvShape *shape = &state.shape;
  const Storage *in = &kernel->inputs[0].storage, *weights = &kernel->inputs[1].storage;
  state.group_channels = shape->channels / shape->groups;
  state.overlaps = !conv_output_is_shared(kernel);
  choose_tile(&state);
  const int64_t units = shape->filters / state.filters, tiles = ceil_div(shape->out_height, state.rows);
  const int64_t chunk = ceil_div(tiles, ceil_div(ITEMS, units)) * state.rows,
                chunks = ceil_div(shape->out_height, chunk);
  *out_work = work_per_image(shape->images, units * chunks);

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digits[3];
  emit_split(emit, item.index, 3, (const int64_t[]){1, units, chunks}, digits);
  state.image = digits[0];
  state.filter = emit_mul_int(emit, digits[1], state.filters);
  Value begin = emit_mul_int(emit, digits[2], chunk);
  Value end = emit_min(emit, emit_add_int(emit, begin, chunk), emit_int(emit, shape->out_height));
  Value group =
      shape->groups == 1 ? emit_int(emit, 0) : emit_div_int(emit, state.filter, shape->filters / shape->groups);
  Value offset = emit_add(emit, emit_mul_int(emit, state.image, in->stride[0]),
                          emit_mul_int(emit, group, state.group_channels * in->stride[1]));
  const int64_t corner = in->origin - shape->pad_top * in->stride[2] - shape->pad_left;
  state.input = emit_address(emit, emit->inputs[0], emit_add_int(emit, offset, corner));
  state.weights = emit_address(
      emit, emit->inputs[1], emit_add_int(emit, emit_mul_int(emit, state.filter, weights->stride[0]), weights->origin));
  emit_item(&state, begin, end);
  emit_loop_end(emit, &item);
  return true;
}
