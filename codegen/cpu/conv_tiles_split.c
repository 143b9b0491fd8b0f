/* Products of two or three parts of a number, of filters that lie split in memory; see conv_tiles.c.
 *
 * Up to four tiles of outputs and one of the panel's blocks are computed together. The sums stay in registers for a group
 * of input channels, and wait in scratch memory meanwhile the other tiles are computed with these: a round trip of sums
 * takes as long as 60 products. A group is as many channels as have filters that fit a part of the second-level cache,
 * where there are few tiles or single taps, which read as much of the input as of the filters, or where the filters of 32
 * channels would fill the first-level cache; else these. The filters that are used next are fetched meanwhile. */
#include "base/checked.h"
#include "conv_tiles.h"

enum {
  AHEAD = 32 << 10, /* bytes of filters that are fetched before they are used, where they are used once */
  CACHE_SHARE = 4,  /* of the second-level cache for the filters of a group */
  FEW_PASSES = 4    /* over a group */
};

/* Elements of the filters of a tap of 32 channels. */
static int64_t tap_size(const TileConv *conv) { return conv->parts * 2 * TILE_FLOATS; }

/* Steps after which sums are put away; they divide all. */
static int64_t group_steps(const TileConv *conv, int64_t passes) {
  if (conv->taps > 1 && passes > FEW_PASSES && conv->parts == 2) return 1;
  const int64_t cache = conv->emit->target->l2_bytes > 0 ? conv->emit->target->l2_bytes : 1 << 20;
  int64_t groups = ceil_div(conv->steps * conv->taps * tap_size(conv) * (int64_t)sizeof(float), cache / CACHE_SHARE);
  while (groups < conv->steps && conv->steps % groups != 0) groups++;
  return groups < conv->steps ? conv->steps / groups : 1;
}

/* Lines to fetch in a tap; asked for at once, they would keep the loads waiting. */
typedef struct Fetch {
  Value base, filters;
  int64_t lines; /* from `base` on */
  int64_t near;  /* of the block's filters of the next tap, into the first-level cache */
} Fetch;

static void fetch_beside(const TileConv *conv, const void *context, int64_t done, int64_t products) {
  const Fetch *fetch = context;
  Emit *emit = conv->emit;
  for (int64_t line = fetch->lines * (done - 1) / products; line < fetch->lines * done / products; line++)
    emit_prefetch_line(emit, fetch->base, emit_int(emit, line * TILE), false);
  for (int64_t line = fetch->near * (done - 1) / products; line < fetch->near * done / products; line++) {
    const int64_t place = tap_size(conv) + line / TILE * 2 * TILE_FLOATS + line % TILE * TILE;
    emit_prefetch_line(emit, fetch->filters, emit_int(emit, place), true);
  }
}

/* Steps that are computed one after the other. */
typedef struct StepGroup {
  int64_t steps;
  Value number, channels, filters; /* which one; addresses of its first step's input and filters */
} StepGroup;

/* Adds the products of a group with a block of filters to the sums of `width` tiles. */
static void multiply_pass(const TileConv *conv, const StepGroup *group, int width, Value block, Value pass) {
  Emit *emit = conv->emit;
  const int64_t taps = group->steps * conv->taps, passes = tile_passes(conv).count;
  const int64_t ahead = passes > 1 ? taps * tap_size(conv) : AHEAD / (int64_t)sizeof(float);
  Value place[WIDTH], sums[WIDTH];
  tile_pass_places(conv, group->channels, block, pass, width, place, sums);
  EmitIf first = emit_if(emit, emit_equal(emit, group->number, emit_int(emit, 0)), "first_group");
  for (int i = 0; i < width; i++) tile_zero(emit, i);
  emit_else(emit, &first);
  for (int i = 0; i < width; i++) tile_load(emit, i, sums[i]);
  emit_end_if(emit, &first);
  TapLoop loop = tap_loop_begin(conv, group->steps, place, width);
  Value offset = emit_add(emit, emit_mul_int(emit, loop.tap, tap_size(conv)), emit_mul_int(emit, block, TILE_FLOATS));
  Fetch fetch = {.filters = emit_opaque(emit, emit_address(emit, group->filters, offset)),
                 .lines = ceil_div(tap_size(conv) / TILE, 2 * passes),
                 .near = conv->taps > 1 && group->steps > 1 ? conv->parts * TILE : 0};
  Value turn = emit_add(emit, emit_mul_int(emit, pass, 2), block);
  turn = emit_add(emit, emit_mul_int(emit, turn, taps), loop.tap);
  Value lines = emit_add_int(emit, emit_mul_int(emit, turn, fetch.lines * TILE), ahead);
  fetch.base = emit_opaque(emit, emit_address(emit, group->filters, lines));
  multiply_tap(conv, loop.pixels, width, fetch.filters, 2 * TILE_FLOATS, fetch_beside, &fetch);
  tap_loop_end(conv, &loop);
  for (int i = 0; i < width; i++) tile_store(emit, i, sums[i]);
}

/* Passes from `begin` to `end`, of `width` tiles each. */
static void multiply_passes(const TileConv *conv, const StepGroup *group, int64_t width, int64_t begin, int64_t end) {
  Emit *emit = conv->emit;
  if (begin == end) return;
  EmitLoop pass = emit_loop_outer(emit, emit_int(emit, begin), emit_int(emit, end), 1, "pass");
  EmitLoop block = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, 2), 1, "block");
  multiply_pass(conv, group, (int)width, block.index, pass.index);
  emit_loop_end(emit, &block);
  emit_loop_end(emit, &pass);
}

void multiply_split(const TileConv *conv, Value panel) {
  Emit *emit = conv->emit;
  const TilePasses passes = tile_passes(conv);
  StepGroup group = {.steps = group_steps(conv, passes.count)};
  EmitLoop number = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->steps / group.steps), 1, "group");
  group.number = number.index;
  Value begin = emit_mul_int(emit, number.index, group.steps);
  Value offset = emit_add(emit, emit_mul_int(emit, panel, conv->steps), begin);
  offset = emit_add_int(emit, emit_mul_int(emit, offset, conv->taps * tap_size(conv)), conv->filter->storage.origin);
  group.channels = emit_address(emit, conv->split, emit_mul_int(emit, begin, conv->block));
  group.filters = emit_address(emit, emit->inputs[1], offset);
  multiply_passes(conv, &group, passes.width, 0, passes.alike);
  multiply_passes(conv, &group, passes.rest, passes.alike, passes.count);
  emit_loop_end(emit, &number);
}
