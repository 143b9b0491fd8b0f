/* Direct convolution into an output whose channels are blocked or last.
 *
 * Operands: the output [N][K/b][H][W][b], or [N][H][W][K] with K a multiple of b, the vector's lanes; the filters as
 * panels [K/f][C][R][S][f] with f = b·T; the input in blocks of any size, plain (the stem, with few channels) or with
 * channels last: only strides differ. The input's halo holds the padding, so that no tap is checked.
 *
 * A register tile holds P pixels × T blocks of output channels, as P·T accumulators. One step of the innermost loop
 * takes one input channel of one tap: T vectors of filters, then for each pixel one scalar of the input, broadcast,
 * and T multiply-adds. P and T are such that accumulators, filters and broadcast fit the registers exactly. Pixels of a
 * tile are a rectangle: usually part of one row; of short rows several. Where such tiles would leave much of the
 * registers unused (rows of 14 pixels in tiles of 6) the pixels of a tile follow each other across the ends of rows.
 *
 * Loops, outermost first: items (image, panel and chunk of rows, see decode_item), chunks of channels, rows, tiles of a
 * row, blocks of channels, taps, channels of the block. The rows of an item follow each other so that a panel stays in
 * the cache. Unrolling goes over channels, never over taps of a row: those reload the same scalars, which LLVM would
 * keep in registers that the accumulators need. What happens within a block of channels is in conv_direct_taps.c.
 *
 * In images of few rows a notable part of the taps falls into the padding: 18 % of those of a 3×3 filter on 7×7 pixels.
 * There tiles are whole rows, and every column of taps has code of its own, which leaves these out; so have rows of
 * taps that some rows of a tile have in the padding. oneDNN's direct convolution leaves them out too.
 *
 * Every accumulator adds its products in the same order (channel block, tap row, tap column, channel), whatever the
 * tile, so that results do not depend on how items are divided. */
#include "conv_direct.h"
#include "base/checked.h"
#include "ride.h"

enum { PLAIN_CHANNEL_BLOCK = 16, MAX_SKIP_TILES = 4, MAX_ADDRESSES = 8 };

/* Where a pixel's first block lies in a tensor of the output's shape and layout: `offset` elements from `base`. */
typedef struct Place {
  Value base;
  int64_t offset;
} Place;

/* Row and column of a pixel; where rows are packed and tiles go across them, those of one long row. */
static void pixel_position(const Direct *direct, const Tile *tile, int64_t pixel, Value *out_y, Value *out_x) {
  const Pixel *at = &tile->pixels[pixel];
  *out_y = at->y != NULL ? at->y : emit_add_int(direct->emit, tile->y, pixel / tile->columns);
  *out_x = at->x != NULL ? at->x : emit_add_int(direct->emit, tile->x, pixel % tile->columns);
}

static bool lies_like_output(const Direct *direct, const PlanTensor *operand) {
  const PlanTensor *output = direct->output;
  return shape_equal(&operand->shape, &output->shape) && layout_equal(operand->layout, output->layout);
}

/* What stands for a block of output channels in an index of the output. */
static Value channel_index(const Direct *direct, Value block) {
  return conv_channel_index(direct->emit, direct->output, block, direct->lanes);
}

/* The places of a tile's pixels in the output, or in an operand that lies like it. They are as far apart in all tiles,
 * unless these go across rows that have gaps between them. */
static const Place *emit_places(const Direct *direct, const Tile *tile, const PlanTensor *tensor, Value buffer) {
  Emit *emit = direct->emit;
  const int64_t *stride = tensor->storage.stride, count = tile->rows * tile->columns;
  Place *places = arena_array(emit->arena, (size_t)count, Place);
  const Value channel = channel_index(direct, direct->block);
  Value first[4] = {direct->image, channel, tile->y, tile->x};
  const bool apart = direct->across && !direct->packed_output;
  if (apart) first[2] = tile->row, first[3] = tile->column;
  Value base = emit_opaque(emit, emit_address(emit, buffer, emit_offset(emit, tensor, first)));
  for (int64_t pixel = 0; pixel < count; pixel++) {
    places[pixel] = (Place){base, pixel / tile->columns * stride[2] + pixel % tile->columns * stride[3]};
    if (!apart) continue;
    Value gaps = emit_mul_int(emit, tile->pixels[pixel].rows, stride[2] - direct->shape.out_width * stride[3]);
    Value address = emit_address(emit, base, emit_add_int(emit, gaps, pixel * stride[3]));
    places[pixel] = (Place){emit_opaque(emit, address), 0};
  }
  return places;
}

/* Elements from the base to the pixel in block `block` of the tile. */
static int64_t place_offset(const Direct *direct, const PlanTensor *tensor, const Place *place, int64_t block) {
  const int64_t channels = tensor->layout.kind == LAYOUT_CHANNEL_LAST ? direct->lanes : 1;
  return place->offset + block * channels * tensor->storage.stride[1];
}

bool direct_is_far(const Direct *direct, int64_t elements) {
  return elements > direct->emit->target->l2_bytes / 4 / data_type_bytes(DTYPE_F32);
}

/* What the epilogue will add to a tile comes from far away as well: see fetch_pixels in conv_direct_taps.c. */
static void emit_fetch_operands(Direct *direct, const Tile *tile) {
  Emit *emit = direct->emit;
  const PlanTensor *output = direct->output;
  if (!direct_is_far(direct, shape_elements_per_image(&output->shape))) return;
  for (int32_t i = direct->kernel->op_input_count; i < direct->kernel->input_count; i++) {
    const PlanTensor *operand = &direct->kernel->inputs[i];
    if (!lies_like_output(direct, operand)) continue;
    const Place *places = emit_places(direct, tile, operand, emit->inputs[i]);
    for (int64_t pixel = 0; pixel < tile->rows * tile->columns; pixel++)
      for (int64_t k = 0; k < tile->blocks; k++)
        emit_prefetch_line(emit, places[pixel].base, emit_int(emit, place_offset(direct, operand, &places[pixel], k)),
                           true);
  }
}

/* number / divisor, of a number that is less than twice the divisor or the vectors of a tile. By multiplication, as
 * LLVM takes long for a division of any number: ⌊n (⌊2³²/d⌋ + 1) / 2³²⌋ is ⌊n/d⌋ while n d < 2³². */
static Value divide_small(Emit *emit, Value number, int64_t divisor) {
  enum { BITS = 32, LARGEST = 1 << 15 };
  if (divisor > LARGEST) return emit_div_int(emit, number, divisor);
  Value product = emit_mul_int(emit, number, ((int64_t)1 << BITS) / divisor + 1);
  return LLVMBuildLShr(emit->builder, product, emit_int(emit, BITS), "");
}

/* Where the tile's pixels are. */
static void emit_pixels(Direct *direct, Tile *tile) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  const int64_t *in = direct->input->storage.stride;
  const int64_t row_step = shape->stride_height * in[2], column_step = shape->stride_width * in[3];
  const int64_t width = shape->out_width;
  const bool positions = direct->across && !(direct->packed_input && direct->packed_output);
  tile->pixels = arena_array(emit->arena, (size_t)(tile->rows * tile->columns), Pixel);
  if (positions) {
    tile->row = emit_div_int(emit, tile->x, width);
    tile->column = emit_mod_int(emit, tile->x, width);
  }
  for (int64_t row = 0; row < tile->rows; row++)
    for (int64_t column = 0; column < tile->columns; column++) {
      Pixel *pixel = &tile->pixels[row * tile->columns + column];
      *pixel = (Pixel){.input = emit_int(emit, row * row_step + column * column_step)};
      if (!positions) continue;
      Value number = emit_add_int(emit, tile->column, column);
      pixel->rows = divide_small(emit, number, width);
      pixel->y = emit_add(emit, tile->row, pixel->rows);
      pixel->x = emit_sub(emit, number, emit_mul_int(emit, pixel->rows, width));
      if (direct->packed_input) continue;
      Value gaps = emit_mul_int(emit, pixel->rows, row_step - width * column_step);
      Value start =
          emit_add(emit, emit_mul_int(emit, tile->row, row_step), emit_mul_int(emit, tile->column, column_step));
      pixel->input = emit_add_int(emit, emit_add(emit, start, gaps), column * column_step);
    }
}

/* Elements from the tile's first input pixel to that of the address that pixels' places count from. */
static Value emit_corner(Direct *direct, const Tile *tile) {
  Emit *emit = direct->emit;
  const int64_t *in = direct->input->storage.stride;
  if (direct->across && !direct->packed_input) return emit_int(emit, 0);
  return emit_add(emit, emit_mul_int(emit, tile->y, direct->shape.stride_height * in[2]),
                  emit_mul_int(emit, tile->x, direct->shape.stride_width * in[3]));
}

static void emit_start_from_bias(Direct *direct, const Tile *tile) {
  Emit *emit = direct->emit;
  Value bias = NULL;
  if (direct->bias != NULL) {
    Value first = emit_mul_int(emit, direct->block, direct->lanes);
    bias = emit_address(emit, emit->inputs[2], emit_add_int(emit, first, direct->bias->storage.origin));
  }
  for (int64_t k = 0; k < tile->blocks; k++) {
    Value start = bias != NULL ? emit_load(emit, bias, emit_int(emit, k * direct->lanes), direct->lanes)
                               : emit_float(emit, direct->lanes, 0);
    for (int64_t pixel = 0; pixel < tile->rows * tile->columns; pixel++)
      emit_set(emit, *direct_sum(tile, pixel, k), start);
  }
}

/* Loads or stores the sums as they stand, without the epilogue, from or to places in the output. */
static void emit_partial_sums(Direct *direct, const Tile *tile, const Place *places, bool store) {
  Emit *emit = direct->emit;
  LLVMTypeRef vector = emit_float_type(emit, direct->lanes);
  for (int64_t pixel = 0; pixel < tile->rows * tile->columns; pixel++)
    for (int64_t k = 0; k < tile->blocks; k++) {
      const Place *place = &places[pixel];
      Value sum = *direct_sum(tile, pixel, k), offset = emit_int(emit, place_offset(direct, direct->output, place, k));
      if (store)
        emit_store(emit, place->base, offset, emit_get(emit, vector, sum));
      else
        emit_set(emit, sum, emit_load(emit, place->base, offset, direct->lanes));
    }
}

/* A vector of the tile on its way through the epilogue. */
typedef struct Result {
  const Direct *direct;
  const Tile *tile;
  const Place **operands; /* of the pixels, by input; NULL: does not lie like the output */
  int64_t pixel, block;
} Result;

static Value load_operand(Emit *emit, void *context, int32_t input) {
  const Result *result = context;
  const Direct *direct = result->direct;
  const PlanTensor *operand = &direct->kernel->inputs[input];
  if (result->operands[input] != NULL) {
    const Place *place = &result->operands[input][result->pixel];
    return emit_load(emit, place->base, emit_int(emit, place_offset(direct, operand, place, result->block)),
                     direct->lanes);
  }
  Value index[4] = {direct->image, channel_index(direct, emit_add_int(emit, direct->block, result->block))};
  pixel_position(direct, result->tile, result->pixel, &index[2], &index[3]);
  return emit_load_broadcast(emit, operand, emit->inputs[input], direct->output, index, direct->lanes);
}

static void emit_finish(Direct *direct, const Tile *tile, const Place *places) {
  Emit *emit = direct->emit;
  const PlanKernel *kernel = direct->kernel;
  LLVMTypeRef vector = emit_float_type(emit, direct->lanes);
  Result result = {.direct = direct, .tile = tile};
  result.operands = arena_array(emit->arena, (size_t)kernel->input_count, const Place *);
  for (int32_t i = 0; i < kernel->input_count; i++)
    result.operands[i] = i >= kernel->op_input_count && lies_like_output(direct, &kernel->inputs[i])
                             ? emit_places(direct, tile, &kernel->inputs[i], emit->inputs[i])
                             : NULL;
  for (result.block = 0; result.block < tile->blocks; result.block++) {
    for (result.pixel = 0; result.pixel < tile->rows * tile->columns; result.pixel++) {
      const Place *place = &places[result.pixel];
      Value sum = emit_get(emit, vector, *direct_sum(tile, result.pixel, result.block));
      Value value = emit_epilogue_with(emit, sum, direct->lanes, load_operand, &result);
      emit_store(emit, place->base, emit_int(emit, place_offset(direct, direct->output, place, result.block)), value);
    }
    ride_take(emit, emit_add_int(emit, direct->block, result.block));
  }
}

/* One register tile over the channels of chunk number `chunk`. */
static void emit_tile(Direct *direct, Tile *tile, Value chunk) {
  Emit *emit = direct->emit;
  emit_pixels(direct, tile);
  tile->sums = arena_array(emit->arena, (size_t)(tile->rows * tile->columns * tile->blocks), Value);
  for (int64_t i = 0; i < tile->rows * tile->columns * tile->blocks; i++)
    tile->sums[i] = emit_variable(emit, emit_float_type(emit, direct->lanes), "sum");

  emit_fetch_operands(direct, tile);
  const Place *places = NULL;
  if (direct->chunks == 1) {
    emit_start_from_bias(direct, tile);
  } else {
    places = emit_places(direct, tile, direct->output, emit->output);
    EmitIf first = emit_if(emit, emit_equal(emit, chunk, emit_int(emit, 0)), "first_chunk");
    emit_start_from_bias(direct, tile);
    emit_else(emit, &first);
    emit_partial_sums(direct, tile, places, false);
    emit_end_if(emit, &first);
  }

  direct_products(direct, tile, emit_address(emit, direct->input_base, emit_corner(direct, tile)), chunk);
  if (direct->chunks == 1) {
    emit_finish(direct, tile, emit_places(direct, tile, direct->output, emit->output));
  } else {
    EmitIf branch = emit_if(emit, emit_equal(emit, chunk, emit_int(emit, direct->chunks - 1)), "last_chunk");
    emit_finish(direct, tile, places);
    emit_else(emit, &branch);
    emit_partial_sums(direct, tile, places, true);
    emit_end_if(emit, &branch);
  }
}

/* Tiles of `width` pixels from x on, at most `limit` each. Their sizes differ by at most one: 16 = 8 + 8 where 14 fit,
 * never 14 + 2. */
static void emit_span(Direct *direct, Tile tile, int64_t width, int64_t limit, Value chunk) {
  Emit *emit = direct->emit;
  int64_t tiles = ceil_div(width, limit), narrow = width / tiles, wide = width % tiles;
  Value begin = tile.x;
  for (int part = 0; part < 2; part++) {
    int64_t count = part == 0 ? wide : tiles - wide;
    tile.columns = part == 0 ? narrow + 1 : narrow;
    if (count == 0) continue;
    EmitLoop x = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, count), 1, "tile");
    tile.x =
        emit_add(emit, begin,
                 emit_add_int(emit, emit_mul_int(emit, x.index, tile.columns), part == 0 ? 0 : wide * (narrow + 1)));
    emit_tile(direct, &tile, chunk);
    if (direct->across) ride_row(emit);
    emit_loop_end(emit, &x);
  }
}

/* The tiles of `rows` rows at y. */
static void emit_rows(Direct *direct, int64_t rows, int64_t blocks, Value y, Value chunk) {
  const Tile tile = {.rows = rows, .blocks = blocks, .y = y, .x = emit_int(direct->emit, 0)};
  emit_span(direct, tile, direct->shape.out_width, direct->tile_pixels / direct->tile_rows, chunk);
}

/* The tiles of the rows from `begin` on, across their ends. */
static void emit_rows_across(Direct *direct, int64_t rows, int64_t blocks, Value begin, Value chunk) {
  const int64_t width = direct->shape.out_width;
  const Value x = emit_mul_int(direct->emit, begin, width);
  const Tile tile = {.rows = 1, .blocks = blocks, .y = emit_int(direct->emit, 0), .x = x};
  emit_span(direct, tile, rows * width, direct->tile_pixels, chunk);
}

/* Elements of a panel that belong to a chunk of channels. */
static int64_t chunk_elements(const Direct *direct) {
  int64_t channels = direct->chunk_blocks * direct->channel_block;
  if (channels > direct->group_channels) channels = direct->group_channels;
  return channels * direct->filter->storage.stride[1];
}

/* Into how many parts the items of a panel divide what is to be fetched while they go through a chunk. */
static int64_t prefetch_parts(const Direct *direct) {
  return direct->chunks > 1 || direct->rows_outside ? 1 : direct->work.row_chunks;
}

static int64_t prefetch_share(const Direct *direct) { return ceil_div(chunk_elements(direct), prefetch_parts(direct)); }

/* The rows [begin, end), which are as many as an item has or, in the last item, fewer. */
static void emit_chunk_across(Direct *direct, int64_t blocks, Value begin, Value end, Value chunk) {
  Emit *emit = direct->emit;
  int64_t rows = direct->work.row_chunk, rest = direct->shape.out_height % rows;
  if (rest == 0 || direct->work.row_chunks == 1) {
    emit_rows_across(direct, rest == 0 ? rows : rest, blocks, begin, chunk);
    return;
  }
  EmitIf whole = emit_if(emit, emit_equal(emit, emit_sub(emit, end, begin), emit_int(emit, rows)), "whole_item");
  emit_rows_across(direct, rows, blocks, begin, chunk);
  emit_else(emit, &whole);
  emit_rows_across(direct, rest, blocks, begin, chunk);
  emit_end_if(emit, &whole);
}

/* The rows [begin, end) of `blocks` blocks of output channels. */
static void emit_item(Direct *direct, int64_t blocks, Value row_number, Value begin, Value end) {
  Emit *emit = direct->emit;
  const Storage *storage = &direct->output->storage;
  EmitLoop chunk = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, direct->chunks), 1, "channel_chunk");
  if (direct->prefetch_lines > 0) {
    Value next = emit_mul_int(emit, emit_add_int(emit, chunk.index, 1), chunk_elements(direct));
    if (prefetch_parts(direct) > 1) next = emit_add(emit, next, emit_mul_int(emit, row_number, prefetch_share(direct)));
    emit_set(emit, direct->prefetch, emit_address(emit, direct->filter_base, next));
  }
  if (direct->across) emit_chunk_across(direct, blocks, begin, end, chunk.index);
  int64_t rest = direct->shape.out_height % direct->tile_rows;
  if (!direct->across && direct->shape.out_height >= direct->tile_rows) {
    Value full_end = rest == 0 ? end : emit_add_int(emit, end, 1 - direct->tile_rows);
    EmitLoop y = emit_loop_outer(emit, begin, full_end, direct->tile_rows, "row");
    emit_rows(direct, direct->tile_rows, blocks, y.index, chunk.index);
    ride_row(emit);
    emit_loop_end(emit, &y);
  }
  if (!direct->across && rest > 0) { /* the last chunk of rows only: chunks are multiples of the tile's rows */
    Value y = emit_int(emit, direct->shape.out_height - rest);
    EmitIf last = emit_if(emit, emit_less(emit, y, end), "last_rows");
    emit_rows(direct, rest, blocks, y, chunk.index);
    emit_end_if(emit, &last);
  }
  emit_loop_end(emit, &chunk);
  if (storage->halo[0] == 0 && storage->halo[1] == 0 && storage->halo[2] == 0 && storage->halo[3] == 0) return;
  EmitLoop block = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, blocks), 1, "halo_block");
  EmitLoop y = emit_loop_outer(emit, begin, end, 1, "halo_row");
  conv_halo(emit, direct->output, direct->image, emit_add(emit, direct->block, block.index), y.index);
  emit_loop_end(emit, &y);
  emit_loop_end(emit, &block);
}

/* Whether tiles are whole rows, of few different kinds, and have taps in the padding. */
static bool skip_padding(const Direct *direct, int64_t row_chunks) {
  const ConvShape *shape = &direct->shape;
  int64_t last_row = (shape->out_height - 1) * shape->stride_height +
                     (shape->kernel_height - 1) * shape->dilation_height - shape->pad_top;
  int64_t last_column = (shape->out_width - 1) * shape->stride_width +
                        (shape->kernel_width - 1) * shape->dilation_width - shape->pad_left;
  bool padded = shape->pad_top > 0 || shape->pad_left > 0 || last_row >= shape->height || last_column >= shape->width;
  return padded && row_chunks == 1 && shape->out_width <= direct->tile_pixels / direct->tile_rows &&
         ceil_div(shape->out_height, direct->tile_rows) <= MAX_SKIP_TILES;
}

/* Whether a value's pixels are equally far apart, rows included; an operand may also have one for all. */
static bool is_packed(const PlanTensor *tensor, int64_t height, int64_t width) {
  const int32_t rank = tensor->shape.rank;
  if (rank < 2) return true;
  const int64_t *dims = &tensor->shape.dims[rank - 2], *stride = &tensor->storage.stride[rank - 2];
  if (dims[0] == 1 && dims[1] == 1) return true;
  return dims[0] == height && dims[1] == width && stride[0] == width * stride[1];
}

/* Whether the filters stay in the second-level cache, a quarter of it, while the input of an image does not; or the
 * input of an item does, and reading all filters for each is much less than reading all input for each panel. */
static bool put_rows_outside(const Direct *direct) {
  enum { MUCH = 4 }; /* see limit_rows in passes/select.c */
  const ConvShape *shape = &direct->shape;
  const int64_t filters = shape->filters * direct->group_channels * shape->kernel_height * shape->kernel_width;
  const int64_t image = shape->channels * shape->height * shape->width, chunks = direct->work.row_chunks;
  if (!direct_is_far(direct, image) || !direct_is_far(direct, filters)) return direct_is_far(direct, image);
  return !direct_is_far(direct, image / chunks) && MUCH * chunks * filters <= direct->work.units * image;
}

/* Where tiles of parts of a row would be at least a fifth more, tiles go across rows: unless the places of their
 * pixels, an address each where the input has gaps, would not fit the registers of addresses. */
static void choose_across(Direct *direct) {
  const ConvShape *shape = &direct->shape;
  const PlanKernel *kernel = direct->kernel;
  int64_t limit = direct->tile_pixels / direct->tile_rows, height = shape->out_height, width = shape->out_width;
  int64_t in_rows = ceil_div(height, direct->tile_rows) * ceil_div(width, limit);
  direct->packed_input = shape->kernel_height == 1 && shape->kernel_width == 1 && shape->stride_height == 1 &&
                         shape->stride_width == 1 && shape->height == height && is_packed(direct->input, height, width);
  direct->across = !direct->skips && 5 * in_rows >= 6 * ceil_div(height * width, direct->tile_pixels) &&
                   (direct->packed_input || direct->tile_pixels <= MAX_ADDRESSES);
  direct->packed_output = is_packed(direct->output, height, width);
  for (int32_t i = kernel->op_input_count; i < kernel->input_count; i++)
    direct->packed_output = direct->packed_output && is_packed(&kernel->inputs[i], height, width);
}

static bool direct_init(Direct *direct, Emit *emit, const PlanKernel *kernel, Diag *diag) {
  const ConvShape shape = conv_shape(kernel);
  const PlanTensor *input = &kernel->inputs[0], *filter = &kernel->inputs[1];
  const Layout layout = kernel->output.layout;
  int32_t lanes = work_lanes(layout, filter->layout.block, &kernel->choice);
  bool blocked = input->layout.kind == LAYOUT_CHANNEL_BLOCK;
  bool apart = input->layout.kind == LAYOUT_PLAIN || input->layout.kind == LAYOUT_CHANNEL_LAST;
  bool last = layout.kind == LAYOUT_CHANNEL_LAST && shape.filters % lanes == 0;
  int64_t group_filters = shape.filters / shape.groups, group_channels = shape.channels / shape.groups;
  if ((layout.kind != LAYOUT_CHANNEL_BLOCK && !last) || filter->layout.kind != LAYOUT_FILTER_BLOCK ||
      (!blocked && !apart) || filter->layout.block % lanes != 0 || filter->layout.block > 16 * lanes ||
      (shape.groups > 1 && (group_filters % lanes != 0 || (blocked && group_channels % input->layout.block != 0)))) {
    diag_error(diag, kernel->location, "'%s': direct convolution does not take these layouts", kernel->name);
    return false;
  }
  if (!conv_check_halo(kernel, &shape, diag)) return false;
  *direct = (Direct){.emit = emit, .kernel = kernel, .shape = shape, .input = input, .filter = filter, .lanes = lanes};
  direct->output = &kernel->output;
  direct->bias = kernel->op_input_count > 2 ? &kernel->inputs[2] : NULL;
  direct->blocks = ceil_div(shape.filters, lanes);
  direct->panel_blocks = filter->layout.block / lanes;
  direct->work = work_direct(&direct->output->shape, lanes, filter->layout.block, shape.groups, &kernel->choice);
  direct->unit_blocks = direct->work.unit_blocks;
  direct->group_channels = group_channels;
  direct->channel_block = blocked ? input->layout.block : PLAIN_CHANNEL_BLOCK;
  direct->lane_stride = blocked ? 1 : input->storage.stride[1];
  direct->block_stride = blocked ? input->storage.stride[1] : PLAIN_CHANNEL_BLOCK * input->storage.stride[1];
  int64_t chunk = kernel->choice.channel_chunk > 0 ? kernel->choice.channel_chunk : group_channels;
  direct->chunk_blocks = ceil_div(chunk, direct->channel_block);
  direct->chunks = ceil_div(ceil_div(group_channels, direct->channel_block), direct->chunk_blocks);
  /* partial sums wait in the output, which must then not lie over an operand of the epilogue */
  if (conv_output_is_shared(kernel)) direct->chunks = 1;
  direct->tile_pixels = kernel->choice.tile_pixels > 0 ? kernel->choice.tile_pixels : 4;
  direct->tile_rows = direct->work.tile_rows;
  direct->unroll = direct_unroll(direct);
  return true;
}

/* Item number → image, unit and chunk of rows. What varies fastest is what is cheaper to read again: usually the rows,
 * so that a panel serves all of them, and with more filters than input those of all images before the next panel is
 * fetched. But panels that stay in the second-level cache, all of them, go first through the same rows of an image that
 * does not. */
static void decode_item(Direct *direct, Value item, int64_t units, int64_t row_chunks, Value *out_unit,
                        Value *out_rows) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  bool units_outside = direct->filter->storage.bytes > direct->input->storage.bytes;
  Value images = shape->images == DIM_BATCH ? emit->batch : emit_int(emit, shape->images);
  if (direct->rows_outside) {
    const int64_t extents[3] = {1, row_chunks, units};
    Value digits[3];
    emit_split(emit, item, 3, extents, digits);
    direct->image = digits[0], *out_rows = digits[1], *out_unit = digits[2];
    return;
  }
  *out_rows = emit_mod_int(emit, item, row_chunks);
  Value rest = emit_div_int(emit, item, row_chunks), inner = units_outside ? images : emit_int(emit, units);
  Value outer_digit = LLVMBuildUDiv(emit->builder, rest, inner, "");
  Value inner_digit = emit_sub(emit, rest, LLVMBuildNSWMul(emit->builder, outer_digit, inner, ""));
  *out_unit = units_outside ? outer_digit : inner_digit;
  direct->image = units_outside ? inner_digit : outer_digit;
}

/* Taps of all tiles of an item of `rows` rows, for each block of channels. */
static int64_t item_taps(const Direct *direct, int64_t rows) {
  const ConvShape *shape = &direct->shape;
  int64_t window = shape->kernel_height * shape->kernel_width, taps = 0;
  if (direct->across) return ceil_div(rows * shape->out_width, direct->tile_pixels) * window;
  if (!direct->skips)
    return rows / direct->tile_rows * ceil_div(shape->out_width, direct->tile_pixels / direct->tile_rows) * window;
  for (int64_t top = 0; top < shape->out_height; top += direct->tile_rows) {
    int64_t left = shape->out_height - top, tile_rows = left < direct->tile_rows ? left : direct->tile_rows;
    taps += direct_taps(direct, top, tile_rows);
  }
  return taps;
}

bool cpu_conv_direct(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  Direct state, *direct = &state;
  if (!direct_init(direct, emit, kernel, diag)) return false;
  const ConvShape *shape = &direct->shape;
  int64_t row_chunk = direct->work.row_chunk, row_chunks = direct->work.row_chunks, units = direct->work.units;
  *out_work = work_per_image(shape->images, units * row_chunks);
  direct->skips = skip_padding(direct, row_chunks);
  direct->rows_outside = put_rows_outside(direct);
  choose_across(direct);
  int64_t most_pixels = direct->across ? direct->tile_pixels : direct->tile_rows * shape->out_width;
  out_work->scratch_bytes = ride_begin(emit, 0, most_pixels * direct->unit_blocks);
  if (units * direct->chunks > 1) {
    int64_t taps = item_taps(direct, row_chunk) * direct->chunk_blocks;
    direct->prefetch_lines = ceil_div(ceil_div(prefetch_share(direct), LINE_ELEMENTS), taps);
    direct->prefetch = emit_variable(emit, emit->pointer, "prefetch");
  }
  direct->next_input = emit_variable(emit, emit->pointer, "next_input");
  direct->next_filter = emit_variable(emit, emit->pointer, "next_filter");

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value unit, row_number;
  decode_item(direct, item.index, units, row_chunks, &unit, &row_number);
  Value begin = emit_mul_int(emit, row_number, row_chunk);
  Value end = emit_min(emit, emit_add_int(emit, begin, row_chunk), emit_int(emit, shape->out_height));
  direct->block = emit_mul_int(emit, unit, direct->unit_blocks);

  const Storage *in = &direct->input->storage, *weights = &direct->filter->storage;
  Value panel = emit_div_int(emit, direct->block, direct->panel_blocks);
  Value lane = emit_mul_int(emit, emit_mod_int(emit, direct->block, direct->panel_blocks), direct->lanes);
  Value filter_offset = emit_add(emit, emit_mul_int(emit, panel, weights->stride[0]), lane);
  direct->filter_base = emit_address(emit, emit->inputs[1], emit_add_int(emit, filter_offset, weights->origin));
  int64_t group_blocks = ceil_div(shape->filters / shape->groups, direct->lanes);
  int64_t input_channel_stride =
      direct->input->layout.kind == LAYOUT_CHANNEL_BLOCK ? in->stride[1] / direct->channel_block : in->stride[1];
  Value group = shape->groups == 1 ? emit_int(emit, 0) : emit_div_int(emit, direct->block, group_blocks);
  Value input_offset = emit_add(emit, emit_mul_int(emit, direct->image, in->stride[0]),
                                emit_mul_int(emit, group, direct->group_channels * input_channel_stride));
  int64_t first = in->origin - shape->pad_top * in->stride[2] - shape->pad_left * in->stride[3];
  direct->input_base = emit_address(emit, emit->inputs[0], emit_add_int(emit, input_offset, first));

  ride_item(emit);
  int64_t rest = direct->blocks % direct->unit_blocks;
  if (rest == 0) {
    emit_item(direct, direct->unit_blocks, row_number, begin, end);
  } else if (units == 1) {
    emit_item(direct, rest, row_number, begin, end);
  } else {
    EmitIf full = emit_if(emit, emit_less(emit, unit, emit_int(emit, units - 1)), "full_panel");
    emit_item(direct, direct->unit_blocks, row_number, begin, end);
    emit_else(emit, &full);
    emit_item(direct, rest, row_number, begin, end);
    emit_end_if(emit, &full);
  }
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
  return true;
}
