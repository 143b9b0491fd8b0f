/* Direct convolution into a channel-blocked output.
 *
 * Operands: the output [N][K/b][H][W][b]; the filters as panels [K/f][C][R][S][f] with f = b·T; the input blocked by
 * the same b, or plain (the stem, with few channels). The input's halo holds the padding, so that no tap is checked.
 *
 * A register tile holds P pixels × T blocks of output channels, as P·T accumulators. One step of the innermost loop
 * takes one input channel of one tap: T vectors of filters, then for each pixel one scalar of the input, broadcast,
 * and T multiply-adds. P and T are such that accumulators, filters and broadcast fit the registers exactly. Pixels of a
 * tile are a rectangle: usually part of one row; of short rows several.
 *
 * Loops, outermost first: items (image and panel in either order, chunk of rows), chunks of channels, rows, tiles of a
 * row, blocks of channels, taps, channels of the block. The rows of an item follow each other so that a panel stays in
 * the cache. Unrolling goes over channels, never over taps of a row: those reload the same scalars, which LLVM would
 * keep in registers that the accumulators need.
 *
 * In images of few rows a notable part of the taps falls into the padding: 18 % of those of a 3×3 filter on 7×7 pixels.
 * There every tile has code of its own, which leaves these out; so does oneDNN's direct convolution.
 *
 * Every accumulator adds its products in the same order (channel block, tap row, tap column, channel), whatever the
 * tile, so that results do not depend on how items are divided. */
#include "base/checked.h"
#include "conv.h"
#include "ride.h"
#include "work.h"

enum { CHANNEL_UNROLL = 4, PLAIN_CHANNEL_BLOCK = 16, MAX_SKIP_TILES = 4 };

typedef struct Direct {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  const PlanTensor *input, *filter, *bias, *output;
  int32_t lanes;          /* b */
  int64_t blocks;         /* of output channels */
  int64_t panel_blocks;   /* T: blocks in a panel of filters */
  int64_t unit_blocks;    /* blocks of an item: T, or 1 where groups are narrower */
  int64_t group_channels; /* input channels that a filter sees */
  int64_t channel_block;  /* channels that lie together in the input */
  int64_t block_stride;   /* elements from one such block to the next */
  int64_t lane_stride;    /* elements from one channel of a block to the next */
  int64_t chunk_blocks;   /* channel blocks between stores of partial sums */
  int64_t chunks;
  int64_t tile_pixels, tile_rows;
  bool skips; /* taps in the padding are left out: tiles are whole rows, and their code is not shared */
  DirectWork work;
  /* The filters that follow those of this chunk in memory are needed next. Every tile fetches its share of them into
   * the second-level cache, a step of so many elements per unrolled group of channels; 0: none. */
  int64_t prefetch_step;
  Value prefetch; /* variable: the address to fetch next */
  /* of the current item */
  Value image, block, input_base, filter_base;
} Direct;

/* A tile: rows × columns of output pixels, `blocks` blocks of output channels, at (y, x). */
typedef struct Tile {
  int64_t rows, columns, blocks;
  Value y, x;
  int64_t top; /* y, when `skips` */
  Value *sums; /* variables, [pixel][block] */
} Tile;

/* The pixels of a tile for which a tap is not in the padding. */
typedef struct Reach {
  int64_t first_row, end_row, first_column, end_column;
} Reach;

/* Outputs among [first, first + count) whose tap at `offset` (from the position that an output without padding would
 * start at) lies within an input of `size`; relative to `first`. */
static void reach_along(int64_t first, int64_t count, int64_t stride, int64_t offset, int64_t size, int64_t *out_begin,
                        int64_t *out_end) {
  int64_t begin = offset < 0 ? ceil_div(-offset, stride) : 0;
  int64_t end = offset < size ? (size - 1 - offset) / stride + 1 : 0;
  begin = begin > first ? begin - first : 0;
  end = end < first + count ? end - first : count;
  *out_begin = begin;
  *out_end = end > begin ? end : begin;
}

static Reach tap_reach(const Direct *direct, const Tile *tile, int64_t r, int64_t s) {
  const ConvShape *shape = &direct->shape;
  Reach reach;
  reach_along(tile->top, tile->rows, shape->stride_height, r * shape->dilation_height - shape->pad_top, shape->height,
              &reach.first_row, &reach.end_row);
  reach_along(0, tile->columns, shape->stride_width, s * shape->dilation_width - shape->pad_left, shape->width,
              &reach.first_column, &reach.end_column);
  return reach;
}

static Value *tile_sum(const Tile *tile, int64_t pixel, int64_t block) {
  return &tile->sums[pixel * tile->blocks + block];
}

/* Multiply-adds of `count` channels at input address `input` and filter address `filter`, both of the first, for the
 * pixels in reach. */
static void emit_channels(Direct *direct, const Tile *tile, const Reach *reach, Value input, Value filter,
                          int64_t count) {
  Emit *emit = direct->emit;
  LLVMTypeRef vector = emit_float_type(emit, direct->lanes);
  const int64_t *stride = direct->input->storage.stride;
  for (int64_t c = 0; c < count; c++) {
    Value weights[16];
    for (int64_t k = 0; k < tile->blocks; k++)
      weights[k] = emit_load(emit, filter, emit_int(emit, c * direct->filter->storage.stride[1] + k * direct->lanes),
                             direct->lanes);
    for (int64_t row = reach->first_row; row < reach->end_row; row++)
      for (int64_t column = reach->first_column; column < reach->end_column; column++) {
        int64_t offset = row * direct->shape.stride_height * stride[2] +
                         column * direct->shape.stride_width * stride[3] + c * direct->lane_stride;
        Value pixel = emit_splat(emit, emit_load(emit, input, emit_int(emit, offset), 1), direct->lanes);
        for (int64_t k = 0; k < tile->blocks; k++) {
          Value sum = *tile_sum(tile, row * tile->columns + column, k);
          emit_set(emit, sum, emit_fma(emit, pixel, weights[k], emit_get(emit, vector, sum)));
        }
      }
  }
}

static void emit_prefetch(Direct *direct) {
  enum { LINE = 16, READ = 0, SECOND_LEVEL = 2, DATA = 1 }; /* a cache line in elements; arguments of llvm.prefetch */
  Emit *emit = direct->emit;
  if (direct->prefetch_step == 0) return;
  const char name[] = "llvm.prefetch";
  unsigned id = LLVMLookupIntrinsicID(name, sizeof name - 1);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &emit->pointer, 1);
  LLVMTypeRef type = LLVMIntrinsicGetType(emit->context, id, &emit->pointer, 1);
  Value address = emit_get(emit, emit->pointer, direct->prefetch);
  for (int64_t line = 0; line < direct->prefetch_step; line += LINE) {
    Value arguments[4] = {emit_address(emit, address, emit_int(emit, line)), LLVMConstInt(emit->i32, READ, 0),
                          LLVMConstInt(emit->i32, SECOND_LEVEL, 0), LLVMConstInt(emit->i32, DATA, 0)};
    LLVMBuildCall2(emit->builder, type, function, arguments, 4, "");
  }
  emit_set(emit, direct->prefetch, emit_address(emit, address, emit_int(emit, direct->prefetch_step)));
}

/* One tap of `channels` channels; addresses are of the first. */
static void emit_tap(Direct *direct, const Tile *tile, const Reach *reach, Value input, Value filter,
                     int64_t channels) {
  Emit *emit = direct->emit;
  const int64_t *weights = direct->filter->storage.stride;
  int64_t looped = channels / CHANNEL_UNROLL * CHANNEL_UNROLL;
  if (looped > 0) {
    EmitLoop c = emit_loop_count(emit, looped / CHANNEL_UNROLL, 1, "channel");
    int64_t unroll = CHANNEL_UNROLL;
    emit_prefetch(direct);
    emit_channels(direct, tile, reach,
                  emit_address(emit, input, emit_mul_int(emit, c.index, unroll * direct->lane_stride)),
                  emit_address(emit, filter, emit_mul_int(emit, c.index, unroll * weights[1])), unroll);
    emit_loop_end(emit, &c);
  }
  if (looped < channels)
    emit_channels(direct, tile, reach, emit_address(emit, input, emit_int(emit, looped * direct->lane_stride)),
                  emit_address(emit, filter, emit_int(emit, looped * weights[1])), channels - looped);
}

/* All taps of one block of `channels` channels; addresses are of the block's first channel and the first tap. */
static void emit_channel_block(Direct *direct, const Tile *tile, Value input, Value filter, int64_t channels) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  const int64_t *in = direct->input->storage.stride, *weights = direct->filter->storage.stride;
  int64_t row_step = shape->dilation_height * in[2], column_step = shape->dilation_width * in[3];
  if (direct->skips) {
    for (int64_t tap = 0; tap < shape->kernel_height * shape->kernel_width; tap++) {
      int64_t r = tap / shape->kernel_width, s = tap % shape->kernel_width;
      const Reach reach = tap_reach(direct, tile, r, s);
      if (reach.first_row == reach.end_row || reach.first_column == reach.end_column) continue;
      emit_tap(direct, tile, &reach, emit_address(emit, input, emit_int(emit, r * row_step + s * column_step)),
               emit_address(emit, filter, emit_int(emit, r * weights[2] + s * weights[3])), channels);
    }
    return;
  }
  const Reach whole = {0, tile->rows, 0, tile->columns};
  EmitLoop r = emit_loop_count(emit, shape->kernel_height, 1, "tap_row");
  Value input_row = emit_address(emit, input, emit_mul_int(emit, r.index, row_step));
  Value filter_row = emit_address(emit, filter, emit_mul_int(emit, r.index, weights[2]));
  EmitLoop s = emit_loop_count(emit, shape->kernel_width, 1, "tap_column");
  emit_tap(direct, tile, &whole, emit_address(emit, input_row, emit_mul_int(emit, s.index, column_step)),
           emit_address(emit, filter_row, emit_mul_int(emit, s.index, weights[3])), channels);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
}

static Value output_offset(Direct *direct, const Tile *tile) {
  const Value index[4] = {direct->image, direct->block, tile->y, tile->x};
  return emit_offset(direct->emit, direct->output, index);
}

/* Elements from the tile's first pixel of its first block to another. */
static int64_t output_step(const Direct *direct, int64_t row, int64_t column, int64_t block) {
  const int64_t *stride = direct->output->storage.stride;
  return block * stride[1] + row * stride[2] + column * stride[3];
}

static void emit_start_from_bias(Direct *direct, const Tile *tile) {
  Emit *emit = direct->emit;
  for (int64_t k = 0; k < tile->blocks; k++) {
    Value start = emit_float(emit, direct->lanes, 0);
    if (direct->bias != NULL) {
      Value channel = emit_mul_int(emit, emit_add_int(emit, direct->block, k), direct->lanes);
      start =
          emit_load(emit, emit->inputs[2], emit_add_int(emit, channel, direct->bias->storage.origin), direct->lanes);
    }
    for (int64_t pixel = 0; pixel < tile->rows * tile->columns; pixel++)
      emit_set(emit, *tile_sum(tile, pixel, k), start);
  }
}

/* Loads or stores the sums as they stand, without the epilogue. */
static void emit_partial_sums(Direct *direct, const Tile *tile, bool store) {
  Emit *emit = direct->emit;
  Value base = emit_address(emit, emit->output, output_offset(direct, tile));
  LLVMTypeRef vector = emit_float_type(emit, direct->lanes);
  for (int64_t row = 0; row < tile->rows; row++)
    for (int64_t column = 0; column < tile->columns; column++)
      for (int64_t k = 0; k < tile->blocks; k++) {
        Value sum = *tile_sum(tile, row * tile->columns + column, k);
        Value offset = emit_int(emit, output_step(direct, row, column, k));
        if (store)
          emit_store(emit, base, offset, emit_get(emit, vector, sum));
        else
          emit_set(emit, sum, emit_load(emit, base, offset, direct->lanes));
      }
}

static void emit_finish(Direct *direct, const Tile *tile) {
  Emit *emit = direct->emit;
  Value base = emit_address(emit, emit->output, output_offset(direct, tile));
  LLVMTypeRef vector = emit_float_type(emit, direct->lanes);
  for (int64_t k = 0; k < tile->blocks; k++)
    for (int64_t row = 0; row < tile->rows; row++)
      for (int64_t column = 0; column < tile->columns; column++) {
        const Value index[4] = {direct->image, emit_add_int(emit, direct->block, k), emit_add_int(emit, tile->y, row),
                                emit_add_int(emit, tile->x, column)};
        Value sum = emit_get(emit, vector, *tile_sum(tile, row * tile->columns + column, k));
        emit_store(emit, base, emit_int(emit, output_step(direct, row, column, k)),
                   emit_epilogue(emit, sum, index, direct->lanes));
        if (row + 1 == tile->rows && column + 1 == tile->columns) ride_take(emit, index[1]);
      }
}

/* One register tile over the channels of chunk number `chunk`. */
static void emit_tile(Direct *direct, Tile *tile, Value chunk) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  const int64_t *in = direct->input->storage.stride;
  tile->sums = arena_array(emit->arena, (size_t)(tile->rows * tile->columns * tile->blocks), Value);
  for (int64_t i = 0; i < tile->rows * tile->columns * tile->blocks; i++)
    tile->sums[i] = emit_variable(emit, emit_float_type(emit, direct->lanes), "sum");

  if (direct->chunks == 1) {
    emit_start_from_bias(direct, tile);
  } else {
    EmitIf first = emit_if(emit, emit_equal(emit, chunk, emit_int(emit, 0)), "first_chunk");
    emit_start_from_bias(direct, tile);
    emit_else(emit, &first);
    emit_partial_sums(direct, tile, false);
    emit_end_if(emit, &first);
  }

  Value corner = emit_add(emit, emit_mul_int(emit, tile->y, shape->stride_height * in[2]),
                          emit_mul_int(emit, tile->x, shape->stride_width * in[3]));
  Value input = emit_address(emit, direct->input_base, corner);
  int64_t filter_stride = direct->channel_block * direct->filter->storage.stride[1];
  int64_t full = direct->group_channels / direct->channel_block, tail = direct->group_channels % direct->channel_block;
  Value last = emit_equal(emit, chunk, emit_int(emit, direct->chunks - 1));
  if (full > 0) {
    Value begin = emit_mul_int(emit, chunk, direct->chunk_blocks);
    Value end = emit_min(emit, emit_add_int(emit, begin, direct->chunk_blocks), emit_int(emit, full));
    EmitLoop loop = emit_loop_begin(emit, begin, end, 1, "channel_block");
    emit_channel_block(direct, tile, emit_address(emit, input, emit_mul_int(emit, loop.index, direct->block_stride)),
                       emit_address(emit, direct->filter_base, emit_mul_int(emit, loop.index, filter_stride)),
                       direct->channel_block);
    emit_loop_end(emit, &loop);
  }
  if (tail > 0) {
    EmitIf branch = {0};
    if (direct->chunks > 1) branch = emit_if(emit, last, "last_channels");
    emit_channel_block(direct, tile, emit_address(emit, input, emit_int(emit, full * direct->block_stride)),
                       emit_address(emit, direct->filter_base, emit_int(emit, full * filter_stride)), tail);
    if (direct->chunks > 1) emit_end_if(emit, &branch);
  }

  if (direct->chunks == 1) {
    emit_finish(direct, tile);
  } else {
    EmitIf branch = emit_if(emit, last, "last_chunk");
    emit_finish(direct, tile);
    emit_else(emit, &branch);
    emit_partial_sums(direct, tile, true);
    emit_end_if(emit, &branch);
  }
}

/* The tiles of `rows` rows at y, which is `top` when that is at least 0. Widths differ by at most one: 16 = 8 + 8 where
 * 14 fit, never 14 + 2. */
static void emit_rows(Direct *direct, int64_t rows, int64_t blocks, Value y, int64_t top, Value chunk) {
  Emit *emit = direct->emit;
  int64_t width = direct->shape.out_width, limit = direct->tile_pixels / direct->tile_rows;
  int64_t tiles = ceil_div(width, limit), narrow = width / tiles, wide = width % tiles;
  for (int part = 0; part < 2; part++) {
    int64_t count = part == 0 ? wide : tiles - wide, columns = part == 0 ? narrow + 1 : narrow;
    if (count == 0) continue;
    EmitLoop x = emit_loop_count(emit, count, 1, "tile");
    Tile tile = {.rows = rows, .columns = columns, .blocks = blocks, .y = y, .top = top};
    tile.x = emit_add_int(emit, emit_mul_int(emit, x.index, columns), part == 0 ? 0 : wide * (narrow + 1));
    emit_tile(direct, &tile, chunk);
    emit_loop_end(emit, &x);
  }
}

/* Elements of a panel that belong to a chunk of channels. */
static int64_t chunk_elements(const Direct *direct) {
  int64_t channels = direct->chunk_blocks * direct->channel_block;
  if (channels > direct->group_channels) channels = direct->group_channels;
  return channels * direct->filter->storage.stride[1];
}

/* The rows [begin, end) of `blocks` blocks of output channels. */
static void emit_item(Direct *direct, int64_t blocks, Value begin, Value end) {
  Emit *emit = direct->emit;
  const Storage *storage = &direct->output->storage;
  EmitLoop chunk = emit_loop_count(emit, direct->chunks, 1, "channel_chunk");
  if (direct->prefetch_step > 0) {
    Value next = emit_mul_int(emit, emit_add_int(emit, chunk.index, 1), chunk_elements(direct));
    emit_set(emit, direct->prefetch, emit_address(emit, direct->filter_base, next));
  }
  for (int64_t top = 0; direct->skips && top < direct->shape.out_height; top += direct->tile_rows) {
    int64_t left = direct->shape.out_height - top;
    emit_rows(direct, left < direct->tile_rows ? left : direct->tile_rows, blocks, emit_int(emit, top), top,
              chunk.index);
    ride_row(emit);
  }
  int64_t rest = direct->shape.out_height % direct->tile_rows;
  if (!direct->skips && direct->shape.out_height >= direct->tile_rows) {
    Value full_end = rest == 0 ? end : emit_add_int(emit, end, 1 - direct->tile_rows);
    EmitLoop y = emit_loop_begin(emit, begin, full_end, direct->tile_rows, "row");
    emit_rows(direct, direct->tile_rows, blocks, y.index, -1, chunk.index);
    ride_row(emit);
    emit_loop_end(emit, &y);
  }
  if (!direct->skips && rest > 0) { /* the last chunk of rows only: chunks are multiples of the tile's rows */
    Value y = emit_int(emit, direct->shape.out_height - rest);
    EmitIf last = emit_if(emit, emit_less(emit, y, end), "last_rows");
    emit_rows(direct, rest, blocks, y, -1, chunk.index);
    emit_end_if(emit, &last);
  }
  emit_loop_end(emit, &chunk);
  if (storage->halo[0] == 0 && storage->halo[1] == 0 && storage->halo[2] == 0 && storage->halo[3] == 0) return;
  EmitLoop block = emit_loop_count(emit, blocks, 1, "halo_block");
  EmitLoop y = emit_loop_begin(emit, begin, end, 1, "halo_row");
  emit_halo(emit, direct->image, emit_add(emit, direct->block, block.index), y.index);
  emit_loop_end(emit, &y);
  emit_loop_end(emit, &block);
}

/* Partial sums wait in the output, which must then not lie over an operand of the epilogue. */
static bool output_is_shared(const PlanKernel *kernel) {
  const Storage *output = &kernel->output.storage;
  for (int32_t i = 0; i < kernel->input_count; i++) {
    const Storage *input = &kernel->inputs[i].storage;
    if (input->space == output->space && input->index == output->index &&
        input->offset < output->offset + output->bytes && output->offset < input->offset + input->bytes)
      return true;
  }
  return false;
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

static bool direct_init(Direct *direct, Emit *emit, const PlanKernel *kernel, Diag *diag) {
  const ConvShape shape = conv_shape(kernel);
  const PlanTensor *input = &kernel->inputs[0], *filter = &kernel->inputs[1];
  int32_t lanes = kernel->output.layout.block;
  bool blocked = input->layout.kind == LAYOUT_CHANNEL_BLOCK && input->layout.block == lanes;
  bool plain = input->layout.kind == LAYOUT_PLAIN;
  int64_t group_filters = shape.filters / shape.groups, group_channels = shape.channels / shape.groups;
  if (kernel->output.layout.kind != LAYOUT_CHANNEL_BLOCK || filter->layout.kind != LAYOUT_FILTER_BLOCK ||
      (!blocked && !plain) || filter->layout.block % lanes != 0 || filter->layout.block > 16 * lanes ||
      (shape.groups > 1 && (group_filters % lanes != 0 || (blocked && group_channels % lanes != 0)))) {
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
  direct->channel_block = blocked ? lanes : PLAIN_CHANNEL_BLOCK;
  direct->lane_stride = blocked ? 1 : input->storage.stride[1];
  direct->block_stride = blocked ? input->storage.stride[1] : PLAIN_CHANNEL_BLOCK * input->storage.stride[1];
  int64_t chunk = kernel->choice.channel_chunk > 0 ? kernel->choice.channel_chunk : group_channels;
  direct->chunk_blocks = ceil_div(chunk, direct->channel_block);
  direct->chunks = ceil_div(ceil_div(group_channels, direct->channel_block), direct->chunk_blocks);
  if (output_is_shared(kernel)) direct->chunks = 1;
  direct->tile_pixels = kernel->choice.tile_pixels > 0 ? kernel->choice.tile_pixels : 4;
  direct->tile_rows = direct->work.tile_rows;
  return true;
}

/* Item number → image, unit and chunk of rows, which varies fastest. The outermost digit is the one whose neighbours
 * share less: with more filters than input all images go through a panel before the next one is fetched. */
static void decode_item(Direct *direct, Value item, int64_t units, int64_t row_chunks, Value *out_unit,
                        Value *out_rows) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  bool units_outside = direct->filter->storage.bytes > direct->input->storage.bytes;
  Value images = shape->images == DIM_BATCH ? emit->batch : emit_int(emit, shape->images);
  *out_rows = emit_mod_int(emit, item, row_chunks);
  Value rest = emit_div_int(emit, item, row_chunks), inner = units_outside ? images : emit_int(emit, units);
  Value outer_digit = LLVMBuildUDiv(emit->builder, rest, inner, "");
  Value inner_digit = emit_sub(emit, rest, LLVMBuildNSWMul(emit->builder, outer_digit, inner, ""));
  *out_unit = units_outside ? outer_digit : inner_digit;
  direct->image = units_outside ? inner_digit : outer_digit;
}

bool cpu_conv_direct(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  Direct state, *direct = &state;
  if (!direct_init(direct, emit, kernel, diag)) return false;
  const ConvShape *shape = &direct->shape;
  int64_t row_chunk = direct->work.row_chunk, row_chunks = direct->work.row_chunks, units = direct->work.units;
  *out_work = work_per_image(shape->images, units * row_chunks);
  out_work->scratch_bytes = ride_begin(emit, 0, direct->tile_rows * shape->out_width * direct->unit_blocks);

  /* tiles of an item times groups of channels of a tile share the elements that a chunk has */
  direct->skips = skip_padding(direct, row_chunks);
  int64_t groups = chunk_elements(direct) / direct->filter->storage.stride[1] / CHANNEL_UNROLL * shape->kernel_height *
                   shape->kernel_width;
  int64_t tiles = row_chunk / direct->tile_rows * ceil_div(shape->out_width, direct->tile_pixels / direct->tile_rows);
  if (units * direct->chunks > 1 && groups > 0) {
    direct->prefetch_step = ceil_div(chunk_elements(direct), tiles * groups);
    direct->prefetch = emit_variable(emit, emit->pointer, "prefetch");
  }

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
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
  int64_t input_channel_stride = direct->lane_stride == 1 && direct->input->layout.kind == LAYOUT_CHANNEL_BLOCK
                                     ? in->stride[1] / direct->lanes
                                     : in->stride[1];
  Value group = shape->groups == 1 ? emit_int(emit, 0) : emit_div_int(emit, direct->block, group_blocks);
  Value input_offset = emit_add(emit, emit_mul_int(emit, direct->image, in->stride[0]),
                                emit_mul_int(emit, group, direct->group_channels * input_channel_stride));
  int64_t first = in->origin - shape->pad_top * in->stride[2] - shape->pad_left * in->stride[3];
  direct->input_base = emit_address(emit, emit->inputs[0], emit_add_int(emit, input_offset, first));

  ride_item(emit);
  int64_t rest = direct->blocks % direct->unit_blocks;
  if (rest == 0) {
    emit_item(direct, direct->unit_blocks, begin, end);
  } else if (units == 1) {
    emit_item(direct, rest, begin, end);
  } else {
    EmitIf full = emit_if(emit, emit_less(emit, unit, emit_int(emit, units - 1)), "full_panel");
    emit_item(direct, direct->unit_blocks, begin, end);
    emit_else(emit, &full);
    emit_item(direct, rest, begin, end);
    emit_end_if(emit, &full);
  }
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
  return true;
}
