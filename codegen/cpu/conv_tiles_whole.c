/* Products of three parts of a number, of filters that lie in memory whole, for images of few outputs; see conv_tiles.c.
 *
 * Up to four tiles of outputs and one of a panel's blocks are computed together, and their sums stay in registers for all
 * input channels. So filters are used once, or few times, and reading them is what takes the time: 4 bytes of f32 rather
 * than 6 of its parts. They are split two taps ahead into a ring in the first-level cache, by vector instructions, which
 * run beside the tile products. More tiles take several passes, and each splits the filters again: what is kept for the
 * next pass goes to the second-level cache, where stores of all parts take longer than splitting does.
 *
 * Filters [K/16][C/32][R][S] are split ahead also where a pass, a block, a panel or an item ends: after the last turn of
 * all comes the first one, which is of use when the next item is of another image. */
#include "base/checked.h"
#include "conv_tiles.h"

enum {
  PARTS = 3,
  TURNS_AHEAD = 2,             /* that filters are split before they are used */
  KEPT = 4,                    /* turns whose split filters are kept */
  TAP = 2 * TILE_FLOATS,       /* elements of a tap's filters in f32 */
  SPLIT = PARTS * TILE_FLOATS, /* … and split */
  AHEAD = 16 * TAP             /* elements that filters are fetched before they are split */
};

/* Two channels of 16 filters to a row of each part. */
static void split_row(const TileConv *conv, Value mask, Value source, Value parts, int64_t row) {
  Emit *emit = conv->emit;
  Value words[PARTS];
  split_pairs(emit, mask, PARTS, true, emit_load(emit, source, emit_int(emit, 2 * row * TILE), TILE),
              emit_load(emit, source, emit_int(emit, (2 * row + 1) * TILE), TILE), words);
  for (int part = 0; part < PARTS; part++)
    store_words(emit, parts, emit_int(emit, part * TILE_FLOATS + row * TILE), words[part]);
}

/* A tap's filters in memory; taps are numbered through all blocks. */
static Value tap_filters(const TileConv *conv, Value number) {
  Emit *emit = conv->emit;
  Value offset = emit_add_int(emit, emit_mul_int(emit, number, TAP), conv->filter->storage.origin);
  return emit_address(emit, emit->inputs[1], offset);
}

/* Taps of a block. */
static int64_t block_taps(const TileConv *conv) { return conv->steps * conv->taps; }

/* Turns are the taps of all passes of all blocks, in the order in which they are computed. */
static int64_t block_turns(const TileConv *conv) { return tile_passes(conv).count * block_taps(conv); }

/* Filters of a turn; after the last one comes the first one again. */
static Value turn_filters(const TileConv *conv, Value turn) {
  Emit *emit = conv->emit;
  turn = emit_mod_int(emit, turn, 2 * conv->panels * block_turns(conv));
  Value block = emit_div_int(emit, turn, block_turns(conv)), tap = emit_mod_int(emit, turn, block_taps(conv));
  return tap_filters(conv, emit_add(emit, emit_mul_int(emit, block, block_taps(conv)), tap));
}

int64_t whole_turns(const TileConv *conv) { return 2 * block_turns(conv); }

int64_t whole_scratch(void) { return KEPT * SPLIT; }

/* Where the filters of a turn are when they are split; `count`: turns before it. */
static Value split_filters(const TileConv *conv, Value count) {
  Emit *emit = conv->emit;
  return emit_address(emit, conv->filters, emit_mul_int(emit, emit_mod_int(emit, count, KEPT), SPLIT));
}

void begin_whole(const TileConv *conv) {
  Emit *emit = conv->emit;
  Value panel = emit_mod_int(emit, emit->begin, conv->panels);
  Value mask = upper_mask(emit);
  EmitLoop turn = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, TURNS_AHEAD), 1, "filter_turn");
  Value first = emit_mul_int(emit, panel, 2 * block_turns(conv));
  Value source = turn_filters(conv, emit_add(emit, first, turn.index)), parts = split_filters(conv, turn.index);
  EmitLoop row = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, TILE), 1, "filter_row");
  split_row(conv, mask, emit_address(emit, source, emit_mul_int(emit, row.index, 2 * TILE)),
            emit_address(emit, parts, emit_mul_int(emit, row.index, TILE)), 0);
  emit_loop_end(emit, &row);
  emit_loop_end(emit, &turn);
}

/* Filters are split from `source` to `parts`, and lines from `fetched` on asked for. */
typedef struct Beside {
  Value mask, source, parts, fetched;
  int64_t lines;
} Beside;

static void split_beside(const TileConv *conv, const void *context, int64_t done, int64_t products) {
  const Beside *beside = context;
  Emit *emit = conv->emit;
  for (int64_t row = TILE * (done - 1) / products; row < TILE * done / products; row++)
    split_row(conv, beside->mask, beside->source, beside->parts, row);
  for (int64_t line = beside->lines * (done - 1) / products; line < beside->lines * done / products; line++)
    emit_prefetch_line(emit, beside->fetched, emit_int(emit, line * TILE), false);
}

/* All products of a block of filters with `width` tiles. Filters are fetched a block ahead in even steps where there are
 * several passes. */
static void multiply_pass(const TileConv *conv, Value mask, int width, Value panel, Value block, Value pass) {
  Emit *emit = conv->emit;
  const int64_t taps = block_taps(conv), passes = tile_passes(conv).count, lines = ceil_div(TAP / TILE, passes);
  Value number = emit_add(emit, emit_mul_int(emit, panel, 2), block);
  Value before = emit_get(emit, emit->i64, conv->turns_done), place[WIDTH], sums[WIDTH];
  tile_pass_places(conv, conv->split, block, pass, width, place, sums);
  for (int i = 0; i < width; i++) tile_zero(emit, i);
  TapLoop loop = tap_loop_begin(conv, conv->steps, place, width);
  Value count = emit_add(emit, before, loop.tap), turn = emit_add(emit, emit_mul_int(emit, pass, taps), loop.tap);
  Value next = emit_add(emit, emit_mul_int(emit, number, block_turns(conv)), emit_add_int(emit, turn, TURNS_AHEAD));
  Value fetched = emit_add_int(emit, emit_mul_int(emit, turn, lines * TILE), passes > 1 ? taps * TAP : AHEAD);
  fetched = emit_address(emit, tap_filters(conv, emit_mul_int(emit, number, taps)), fetched);
  const Beside beside = {.mask = mask,
                         .source = emit_opaque(emit, turn_filters(conv, next)),
                         .parts = emit_opaque(emit, split_filters(conv, emit_add_int(emit, count, TURNS_AHEAD))),
                         .fetched = emit_opaque(emit, fetched),
                         .lines = lines};
  Value filters = emit_opaque(emit, split_filters(conv, count));
  multiply_tap(conv, loop.pixels, width, filters, TILE_FLOATS, split_beside, &beside);
  tap_loop_end(conv, &loop);
  for (int i = 0; i < width; i++) tile_store(emit, i, sums[i]);
  emit_set(emit, conv->turns_done, emit_add_int(emit, before, taps));
}

void multiply_whole(const TileConv *conv, Value panel) {
  Emit *emit = conv->emit;
  const TilePasses passes = tile_passes(conv);
  Value mask = upper_mask(emit);
  EmitLoop block = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, 2), 1, "block");
  EmitLoop pass = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, passes.alike), 1, "pass");
  multiply_pass(conv, mask, (int)passes.width, panel, block.index, pass.index);
  emit_loop_end(emit, &pass);
  if (passes.alike < passes.count)
    multiply_pass(conv, mask, (int)passes.rest, panel, block.index, emit_int(emit, passes.alike));
  emit_loop_end(emit, &block);
}
