/* Products of three parts of a number, of filters that lie in memory whole, for images of few outputs; see conv_tiles.c.
 *
 * Up to four tiles of outputs and one of a panel's blocks are computed together, and their sums stay in registers for all
 * input channels. So filters are used once, or few times, and reading them is what takes the time: 4 bytes of f32 rather
 * than 6 of its parts. They are split a tap ahead into scratch memory, by vector instructions, which run beside the tile
 * products. Of up to four tiles that memory holds two taps, in the first-level cache; of more, which are computed one
 * after the other, all of a block, so that the first ones split for all.
 *
 * Filters [K/16][C/32][R][S] are read from begin to end, and split a tap ahead also where a block, a panel or an item
 * ends: after the last one of all, the first ones are split, which is of use when the next item is of another image. */
#include "base/checked.h"
#include "conv_tiles.h"

enum {
  PARTS = 3,
  WIDTH = 4,                /* tiles that are computed together, at most */
  TAP = 2 * TILE_FLOATS,    /* elements of a tap's filters in f32 */
  SPLIT = PARTS * TILE_FLOATS, /* … and split */
  LINES = TAP / TILE,
  AHEAD = 16 * TAP /* elements that filters are fetched before they are split */
};

/* Two channels of 16 filters to a row of each part, cut off rather than rounded: that takes fewer instructions, and the
 * third part is exact. */
static void split_row(const TileConv *conv, Value source, Value parts, int64_t row) {
  Emit *emit = conv->emit;
  const LLVMTypeRef integers = LLVMVectorType(emit->i32, TILE), floats = emit_float_type(emit, TILE);
  Value shifts[TILE], masks[TILE], numbers[2], upper[2];
  for (int i = 0; i < TILE; i++) {
    shifts[i] = LLVMConstInt(emit->i32, 16, 0);
    masks[i] = LLVMConstInt(emit->i32, 0xffff0000, 0);
  }
  const Value shift = LLVMConstVector(shifts, TILE), mask = LLVMConstVector(masks, TILE);
  for (int i = 0; i < 2; i++) numbers[i] = emit_load(emit, source, emit_int(emit, (2 * row + i) * TILE), TILE);
  for (int part = 0; part < PARTS; part++) {
    Value bits[2];
    for (int i = 0; i < 2; i++) {
      bits[i] = LLVMBuildBitCast(emit->builder, numbers[i], integers, "");
      upper[i] = LLVMBuildAnd(emit->builder, bits[i], mask, "");
    }
    Value words = LLVMBuildOr(emit->builder, LLVMBuildLShr(emit->builder, bits[0], shift, ""), upper[1], "");
    store_words(emit, parts, emit_int(emit, part * TILE_FLOATS + row * TILE), words);
    for (int i = 0; part + 1 < PARTS && i < 2; i++)
      numbers[i] = emit_fsub(emit, numbers[i], LLVMBuildBitCast(emit->builder, upper[i], floats, ""));
  }
}

/* A tap's filters in memory; taps are numbered through all blocks. */
static Value tap_filters(const TileConv *conv, Value number) {
  Emit *emit = conv->emit;
  Value offset = emit_add_int(emit, emit_mul_int(emit, number, TAP), conv->filter->storage.origin);
  return emit_address(emit, emit->inputs[1], offset);
}

/* Tiles of outputs are computed in so many passes. */
static int64_t pass_count(const TileConv *conv) { return ceil_div(conv->tiles, WIDTH); }

/* Taps whose split filters are kept: a block's and the next one's first, or the one that is used and the next one. */
static int64_t kept_taps(const TileConv *conv) { return pass_count(conv) > 1 ? conv->steps * conv->taps + 1 : 2; }

int64_t whole_scratch(const TileConv *conv) { return kept_taps(conv) * SPLIT; }

/* Where the filters of a tap are when they are split; `count`: taps split before. */
static Value split_filters(const TileConv *conv, Value count) {
  Emit *emit = conv->emit;
  return emit_address(emit, conv->filters, emit_mul_int(emit, emit_mod_int(emit, count, kept_taps(conv)), SPLIT));
}

void begin_whole(const TileConv *conv) {
  Emit *emit = conv->emit;
  Value panel = emit_mod_int(emit, emit->begin, conv->panels);
  Value source = tap_filters(conv, emit_mul_int(emit, panel, 2 * conv->steps * conv->taps));
  EmitLoop row = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, TILE), 1, "filter_row");
  split_row(conv, emit_address(emit, source, emit_mul_int(emit, row.index, 2 * TILE)),
            emit_address(emit, conv->filters, emit_mul_int(emit, row.index, TILE)), 0);
  emit_loop_end(emit, &row);
  emit_set(emit, conv->taps_done, emit_int(emit, 0));
}

/* One tap of 32 channels. Registers: 0 to 3 the sums, 4 the filters, 5 to 7 the pixels. Rows of the filters that follow
 * are split, and lines of those behind them fetched, some after every product; not when `source` is NULL. */
static void multiply_tap(const TileConv *conv, const Value *pixels, int width, Value filters, Value source, Value next) {
  Emit *emit = conv->emit;
  const int64_t stride = conv->shape.stride_width * ROW_BYTES, products = PARTS * (PARTS + 1) / 2 * width;
  int64_t done = 0, split = 0, fetched = 0;
  for (int right = 0; right < PARTS; right++) {
    tile_load(emit, 4, emit_address(emit, filters, emit_int(emit, right * TILE_FLOATS)), ROW_BYTES);
    for (int left = 0; left + right < PARTS; left++) {
      for (int i = 0; i < width; i++) {
        const int pixel = 5 + (int)(done++ % 3);
        tile_load(emit, pixel, emit_address(emit, pixels[i], emit_int(emit, left * conv->part)), stride);
        tile_multiply_add(emit, i, pixel, 4);
        for (; source && split < TILE * done / products; split++) split_row(conv, source, next, split);
        for (; source && fetched < LINES * done / products; fetched++)
          emit_prefetch_line(emit, source, emit_int(emit, AHEAD + fetched * TILE), false);
      }
    }
  }
}

/* All products of a block of filters, whose first tap is number `begin`, with `width` tiles from number `first` on: the
 * last one again where there are not as many. `before`: taps split before the block's; `splits`: these are split now. */
static void multiply_pass(const TileConv *conv, bool splits, int width, Value block, Value begin, Value before,
                          Value first) {
  Emit *emit = conv->emit;
  const int64_t taps = conv->steps * conv->taps;
  Value place[WIDTH], pixels[WIDTH], sums[WIDTH];
  for (int i = 0; i < width; i++) {
    Value tile = emit_min(emit, emit_add_int(emit, first, i), emit_int(emit, conv->tiles - 1));
    place[i] = emit_address(emit, conv->split, tile_place(conv, tile));
    sums[i] = tile_sums(conv, block, tile);
    tile_zero(emit, i);
  }
  EmitLoop step = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->steps), 1, "step");
  EmitLoop r = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->shape.kernel_height), 1, "tap_row");
  EmitLoop s = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->shape.kernel_width), 1, "tap_column");
  Value tap = emit_add(emit, emit_mul_int(emit, r.index, conv->shape.kernel_width), s.index);
  tap = emit_add(emit, emit_mul_int(emit, step.index, conv->taps), tap);
  Value distance = emit_add(emit, tap_distance(conv, r.index, s.index), emit_mul_int(emit, step.index, conv->block));
  for (int i = 0; i < width; i++) pixels[i] = emit_address(emit, place[i], distance);
  Value count = emit_add(emit, before, tap), source = NULL, parts = NULL;
  if (splits) {
    Value next = emit_add_int(emit, emit_add(emit, begin, tap), 1);
    next = emit_select(emit, emit_equal(emit, next, emit_int(emit, 2 * conv->panels * taps)), emit_int(emit, 0), next);
    source = tap_filters(conv, next);
    parts = split_filters(conv, emit_add_int(emit, count, 1));
  }
  multiply_tap(conv, pixels, width, split_filters(conv, count), source, parts);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
  emit_loop_end(emit, &step);
  for (int i = 0; i < width; i++) tile_store(emit, i, sums[i]);
}

void multiply_whole(const TileConv *conv, Value panel) {
  Emit *emit = conv->emit;
  const int64_t passes = pass_count(conv), taps = conv->steps * conv->taps;
  const int width = (int)ceil_div(conv->tiles, passes);
  EmitLoop block = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, 2), 1, "block");
  Value number = emit_add(emit, emit_mul_int(emit, panel, 2), block.index), begin = emit_mul_int(emit, number, taps);
  Value before = emit_get(emit, emit->i64, conv->taps_done);
  multiply_pass(conv, true, width, block.index, begin, before, emit_int(emit, 0));
  if (passes > 1) {
    EmitLoop pass = emit_loop_outer(emit, emit_int(emit, 1), emit_int(emit, passes), 1, "pass");
    multiply_pass(conv, false, width, block.index, begin, before, emit_mul_int(emit, pass.index, width));
    emit_loop_end(emit, &pass);
  }
  emit_set(emit, conv->taps_done, emit_add_int(emit, before, taps));
  emit_loop_end(emit, &block);
}
