/* Direct convolution: the products of a register tile, tap by tap. See conv_direct.c. */
#include "base/checked.h"
#include "conv_direct.h"

enum { LARGE_TILE = 20 /* vectors of sums */ };

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

/* Of tap (r, s), for a tile of `rows` whole rows at row `top`. */
static Reach tap_reach(const Direct *direct, int64_t top, int64_t rows, int64_t r, int64_t s) {
  const ConvShape *shape = &direct->shape;
  Reach reach;
  reach_along(top, rows, shape->stride_height, r * shape->dilation_height - shape->pad_top, shape->height,
              &reach.first_row, &reach.end_row);
  reach_along(0, shape->out_width, shape->stride_width, s * shape->dilation_width - shape->pad_left, shape->width,
              &reach.first_column, &reach.end_column);
  return reach;
}

static bool reach_is_empty(Reach reach) {
  return reach.first_row == reach.end_row || reach.first_column == reach.end_column;
}

int64_t direct_taps(const Direct *direct, int64_t top, int64_t rows) {
  int64_t taps = 0;
  for (int64_t r = 0; r < direct->shape.kernel_height; r++)
    for (int64_t s = 0; s < direct->shape.kernel_width; s++)
      taps += !reach_is_empty(tap_reach(direct, top, rows, r, s));
  return taps;
}

/* So many channels that the multiply-adds which wait when a loop ends last until the next ones can start. Where they
 * are not fused, products need registers besides the sums': then no code of several channels without a loop. */
int64_t direct_unroll(const Direct *direct) {
  if (!direct->emit->target->fma) return direct->group_channels % 2 == 0 ? 2 : 1;
  return direct->tile_pixels * direct->unit_blocks < LARGE_TILE ? 4 : 2;
}

/* Multiply-adds of `count` channels at input address `input` and filter address `filter`, both of the first, for the
 * pixels in reach. */
static void emit_channels(Direct *direct, const Tile *tile, const Reach *reach, Value input, Value filter,
                          int64_t count) {
  Emit *emit = direct->emit;
  LLVMTypeRef vector = emit_float_type(emit, direct->lanes);
  for (int64_t c = 0; c < count; c++) {
    Value weights[16];
    if (c > 0 && tile->blocks > 1)
      emit_step(emit, direct->lanes, tile->sums, (size_t)(tile->rows * tile->columns * tile->blocks));
    for (int64_t k = 0; k < tile->blocks; k++)
      weights[k] = emit_load(emit, filter, emit_int(emit, c * direct->filter->storage.stride[1] + k * direct->lanes),
                             direct->lanes);
    for (int64_t row = reach->first_row; row < reach->end_row; row++)
      for (int64_t column = reach->first_column; column < reach->end_column; column++) {
        Value offset = emit_add_int(emit, tile->pixels[row * tile->columns + column].input, c * direct->lane_stride);
        Value pixel = emit_splat(emit, emit_load(emit, input, offset, 1), direct->lanes);
        for (int64_t k = 0; k < tile->blocks; k++) {
          Value sum = *direct_sum(tile, row * tile->columns + column, k);
          emit_set(emit, sum, emit_fma(emit, pixel, weights[k], emit_get(emit, vector, sum)));
        }
        if (tile->blocks == 1) emit_keep(emit, direct->lanes, pixel);
      }
  }
}

static void emit_prefetch(Direct *direct, int64_t lines) {
  Emit *emit = direct->emit;
  if (lines == 0) return;
  Value address = emit_get(emit, emit->pointer, direct->prefetch);
  for (int64_t line = 0; line < lines; line++)
    emit_prefetch_line(emit, address, emit_int(emit, line * LINE_ELEMENTS), false);
  emit_set(emit, direct->prefetch, emit_address(emit, address, emit_int(emit, lines * LINE_ELEMENTS)));
}

/* Pixels that only one tile reads come from far away: those of the next tile are fetched into the first-level cache. */
static void fetch_pixels(Direct *direct, const Tile *tile, Value input) {
  const ConvShape *shape = &direct->shape;
  if (shape->kernel_height * shape->kernel_width > 1 || direct->input->layout.kind != LAYOUT_CHANNEL_BLOCK ||
      !direct_is_far(direct, shape->channels * shape->height * shape->width))
    return;
  int64_t next = tile->columns * shape->stride_width * direct->input->storage.stride[3];
  for (int64_t i = 0; i < tile->rows * tile->columns; i++)
    emit_prefetch_line(direct->emit, input, emit_add_int(direct->emit, tile->pixels[i].input, next), true);
}

static void go_to(Direct *direct, Value input, Value filter) {
  emit_set(direct->emit, direct->next_input, input);
  emit_set(direct->emit, direct->next_filter, filter);
}

static Value next_input(Direct *direct) { return emit_get(direct->emit, direct->emit->pointer, direct->next_input); }
static Value next_filter(Direct *direct) { return emit_get(direct->emit, direct->emit->pointer, direct->next_filter); }

/* By so many elements. */
static void go_on(Direct *direct, int64_t input, int64_t filter) {
  Emit *emit = direct->emit;
  go_to(direct, emit_address(emit, next_input(direct), emit_int(emit, input)),
        emit_address(emit, next_filter(direct), emit_int(emit, filter)));
}

/* Where a loop begins that carries the addresses along: of a tile of many pixels LLVM would keep the address of each in
 * a variable of its own. */
static void begin_steps(Direct *direct) {
  go_to(direct, emit_opaque(direct->emit, next_input(direct)), emit_opaque(direct->emit, next_filter(direct)));
}

/* One tap of `channels` channels; goes on to the next in its row. */
static void emit_tap(Direct *direct, const Tile *tile, const Reach *reach, int64_t channels) {
  Emit *emit = direct->emit;
  const int64_t *in = direct->input->storage.stride, *weights = direct->filter->storage.stride;
  const int64_t unroll = direct->unroll, groups = channels / unroll, looped = groups * unroll;
  emit_prefetch(direct, groups > 0 ? direct->prefetch_lines % groups : direct->prefetch_lines);
  if (looped > 0) {
    EmitLoop c = emit_loop_count(emit, groups, 1, "channel");
    begin_steps(direct);
    emit_prefetch(direct, direct->prefetch_lines / groups);
    emit_channels(direct, tile, reach, next_input(direct), next_filter(direct), unroll);
    go_on(direct, unroll * direct->lane_stride, unroll * weights[1]);
    emit_loop_end(emit, &c);
  }
  if (looped < channels) emit_channels(direct, tile, reach, next_input(direct), next_filter(direct), channels - looped);
  go_on(direct, direct->shape.dilation_width * in[3] - looped * direct->lane_stride, weights[3] - looped * weights[1]);
}

/* From behind a row of taps to the first of the next row. */
static void go_to_next_row(Direct *direct) {
  const ConvShape *shape = &direct->shape;
  const int64_t *in = direct->input->storage.stride, *weights = direct->filter->storage.stride;
  go_on(direct, shape->dilation_height * in[2] - shape->kernel_width * shape->dilation_width * in[3],
        weights[2] - shape->kernel_width * weights[3]);
}

/* A row of taps, of which the pixels in [first_row, end_row) of the tile's rows are within the image; goes on to the
 * next row. */
static void emit_tap_row(Direct *direct, const Tile *tile, int64_t channels, int64_t first_row, int64_t end_row) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  const int64_t *in = direct->input->storage.stride, *weights = direct->filter->storage.stride;
  const Value input = next_input(direct), filter = next_filter(direct);
  for (int64_t s = 0; s < shape->kernel_width; s++) {
    Reach reach = tap_reach(direct, 0, 0, 0, s);
    reach.first_row = first_row, reach.end_row = end_row;
    if (reach_is_empty(reach)) continue;
    go_to(direct, emit_address(emit, input, emit_int(emit, s * shape->dilation_width * in[3])),
          emit_address(emit, filter, emit_int(emit, s * weights[3])));
    emit_tap(direct, tile, &reach, channels);
  }
  go_to(direct, emit_address(emit, input, emit_int(emit, shape->dilation_height * in[2])),
        emit_address(emit, filter, emit_int(emit, weights[2])));
}

/* Addresses in a block of channels: of its first channel and the first tap. */
typedef struct Block {
  Value input, filter;
  int64_t channels;
} Block;

/* To row `r` of the block's taps. */
static void go_to_row(Direct *direct, const Block *block, Value r) {
  Emit *emit = direct->emit;
  const int64_t row_step = direct->shape.dilation_height * direct->input->storage.stride[2];
  go_to(direct, emit_address(emit, block->input, emit_mul_int(emit, r, row_step)),
        emit_address(emit, block->filter, emit_mul_int(emit, r, direct->filter->storage.stride[2])));
}

/* The rows of taps [begin, end) that no row of a tile has in the padding: they follow each other, as what a tap leaves
 * out grows with its distance from them. If there are none, both are the number of rows. */
static void whole_taps(const Direct *direct, int64_t top, int64_t rows, int64_t *out_begin, int64_t *out_end) {
  int64_t height = direct->shape.kernel_height, begin = 0;
  for (; begin < height; begin++) {
    const Reach reach = tap_reach(direct, top, rows, begin, 0);
    if (reach.first_row == 0 && reach.end_row == rows) break;
  }
  int64_t end = begin;
  for (; end < height; end++) {
    const Reach reach = tap_reach(direct, top, rows, end, 0);
    if (reach.first_row != 0 || reach.end_row != rows) break;
  }
  *out_begin = begin, *out_end = end;
}

/* Rows of taps that are partly in the padding of the tile at `top`: those before the whole ones, or those after.
 * `only`: there is no other tile. */
static void emit_partial_taps(Direct *direct, const Tile *tile, const Block *block, int64_t top, bool only,
                              bool after) {
  Emit *emit = direct->emit;
  int64_t begin, end;
  whole_taps(direct, top, tile->rows, &begin, &end);
  for (int64_t r = after ? end : 0; r < (after ? direct->shape.kernel_height : begin); r++) {
    const Reach reach = tap_reach(direct, top, tile->rows, r, 0);
    if (reach.first_row == reach.end_row) continue;
    EmitIf here = {0};
    if (!only) here = emit_if(emit, emit_equal(emit, tile->y, emit_int(emit, top)), "padded_tile");
    go_to_row(direct, block, emit_int(emit, r));
    emit_tap_row(direct, tile, block->channels, reach.first_row, reach.end_row);
    if (!only) emit_end_if(emit, &here);
  }
}

/* All taps but those in the padding. Rows of taps that all rows of a tile have are a loop, whose code serves all tiles:
 * only those at the upper and lower end of the image have others besides. */
static void emit_skipping(Direct *direct, const Tile *tile, const Block *block) {
  Emit *emit = direct->emit;
  const int64_t height = direct->shape.out_height, whole = height - height % direct->tile_rows;
  const bool last = tile->rows < direct->tile_rows; /* the last one; else all the others */
  const int64_t first_top = last ? whole : 0, end_top = last ? height : whole;
  const bool only = first_top + tile->rows == end_top;
  Value begin = NULL, end = NULL;
  for (int64_t top = first_top; top < end_top; top += tile->rows) {
    int64_t first, after;
    emit_partial_taps(direct, tile, block, top, only, false);
    whole_taps(direct, top, tile->rows, &first, &after);
    Value here = emit_equal(emit, tile->y, emit_int(emit, top));
    begin = begin == NULL ? emit_int(emit, first) : emit_select(emit, here, emit_int(emit, first), begin);
    end = end == NULL ? emit_int(emit, after) : emit_select(emit, here, emit_int(emit, after), end);
  }
  go_to_row(direct, block, begin);
  EmitLoop r = emit_loop_outer(emit, begin, end, 1, "tap_row");
  begin_steps(direct);
  emit_tap_row(direct, tile, block->channels, 0, tile->rows);
  emit_loop_end(emit, &r);
  for (int64_t top = first_top; top < end_top; top += tile->rows)
    emit_partial_taps(direct, tile, block, top, only, true);
}

/* All taps of one block of channels; goes on to the next block. */
static void emit_channel_block(Direct *direct, const Tile *tile, int64_t channels) {
  Emit *emit = direct->emit;
  const ConvShape *shape = &direct->shape;
  const int64_t *in = direct->input->storage.stride, *weights = direct->filter->storage.stride;
  const int64_t filter_stride = direct->channel_block * weights[1];
  if (direct->skips) {
    const Block block = {next_input(direct), next_filter(direct), channels};
    emit_skipping(direct, tile, &block);
    go_to(direct, emit_address(emit, block.input, emit_int(emit, direct->block_stride)),
          emit_address(emit, block.filter, emit_int(emit, filter_stride)));
    return;
  }
  fetch_pixels(direct, tile, next_input(direct));
  const Reach whole = {0, tile->rows, 0, tile->columns};
  EmitLoop r = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, shape->kernel_height), 1, "tap_row");
  begin_steps(direct);
  EmitLoop s = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, shape->kernel_width), 1, "tap_column");
  begin_steps(direct);
  emit_tap(direct, tile, &whole, channels);
  emit_loop_end(emit, &s);
  go_to_next_row(direct);
  emit_loop_end(emit, &r);
  go_on(direct, direct->block_stride - shape->kernel_height * shape->dilation_height * in[2],
        filter_stride - shape->kernel_height * weights[2]);
}

void direct_products(Direct *direct, const Tile *tile, Value input, Value chunk) {
  Emit *emit = direct->emit;
  int64_t filter_stride = direct->channel_block * direct->filter->storage.stride[1];
  int64_t full = direct->group_channels / direct->channel_block, tail = direct->group_channels % direct->channel_block;
  if (full > 0) {
    Value begin = emit_mul_int(emit, chunk, direct->chunk_blocks);
    Value end = emit_min(emit, emit_add_int(emit, begin, direct->chunk_blocks), emit_int(emit, full));
    go_to(direct, emit_address(emit, input, emit_mul_int(emit, begin, direct->block_stride)),
          emit_address(emit, direct->filter_base, emit_mul_int(emit, begin, filter_stride)));
    EmitLoop loop = emit_loop_outer(emit, begin, end, 1, "channel_block");
    begin_steps(direct);
    emit_channel_block(direct, tile, direct->channel_block);
    emit_loop_end(emit, &loop);
  }
  if (tail > 0) {
    EmitIf branch = {0};
    if (direct->chunks > 1)
      branch = emit_if(emit, emit_equal(emit, chunk, emit_int(emit, direct->chunks - 1)), "last_channels");
    go_to(direct, emit_address(emit, input, emit_int(emit, full * direct->block_stride)),
          emit_address(emit, direct->filter_base, emit_int(emit, full * filter_stride)));
    emit_channel_block(direct, tile, tail);
    if (direct->chunks > 1) emit_end_if(emit, &branch);
  }
}
