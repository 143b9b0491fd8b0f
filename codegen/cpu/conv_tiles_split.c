/* Products of two or three parts of a number, of filters that lie split in memory; see conv_tiles.c.
 *
 * Two tiles of outputs and both of the panel's blocks are computed together: of four tiles of operands come four
 * products. The sums stay in registers for a group of input channels, and wait in scratch memory meanwhile the other tiles
 * are computed with these: a round trip of sums takes as long as 60 products. A group is as many channels as have filters
 * that fit a part of the second-level cache, where there are few tiles or single taps, which read as much of the input
 * as of the filters, or where the filters of 32 channels would fill the first-level cache; else these. The filters that
 * are used next are fetched meanwhile. */
#include "base/checked.h"
#include "conv_tiles.h"

enum {
  AHEAD = 32 << 10, /* bytes of filters that are fetched before they are used, where they are used once */
  CACHE_SHARE = 4,  /* of the second-level cache for the filters of a group */
  FEW_PAIRS = 8     /* of tiles */
};

/* Elements of the filters of a tap of 32 channels. */
static int64_t tap_size(const TileConv *conv) { return conv->parts * 2 * TILE_FLOATS; }

/* Steps after which sums are put away; they divide all. */
static int64_t group_steps(const TileConv *conv, int64_t pairs) {
  if (conv->taps > 1 && pairs > FEW_PAIRS && conv->parts == 2) return 1;
  const int64_t cache = conv->emit->target->l2_bytes > 0 ? conv->emit->target->l2_bytes : 1 << 20;
  int64_t groups = ceil_div(conv->steps * conv->taps * tap_size(conv) * (int64_t)sizeof(float), cache / CACHE_SHARE);
  while (groups < conv->steps && conv->steps % groups != 0) groups++;
  return groups < conv->steps ? conv->steps / groups : 1;
}

/* Lines to fetch in a tap, some after every product: asked for at once, they would keep the loads waiting. `near`: lines
 * of the next tap, into the first-level cache. */
typedef struct Fetch {
  Value base, offset;
  int64_t lines, done;
  int64_t near, near_done;
  int64_t products;
} Fetch;

static void multiply(const TileConv *conv, Fetch *fetch, Value filters, int sum, int left, int right) {
  const int64_t products = 2 * conv->parts * (conv->parts + 1); /* of a tap */
  Emit *emit = conv->emit;
  tile_multiply_add(emit, sum, left, right);
  fetch->products++;
  for (; fetch->done < fetch->lines * fetch->products / products; fetch->done++)
    emit_prefetch_line(emit, fetch->base, emit_add_int(emit, fetch->offset, fetch->done * TILE), false);
  for (; fetch->near_done < fetch->near * fetch->products / products; fetch->near_done++)
    emit_prefetch_line(emit, filters, emit_int(emit, tap_size(conv) + fetch->near_done * TILE), true);
}

/* One tap of 32 channels for two tiles of pixels. Registers: 0 to 3 the sums, [tile][block of filters], 4 and 5 the
 * pixels, 6 and 7 the filters. */
static void multiply_tap(const TileConv *conv, const Value pixels[2], Value filters, Fetch *fetch) {
  Emit *emit = conv->emit;
  for (int left = 0; left < conv->parts; left++) {
    for (int i = 0; i < 2; i++)
      tile_load(emit, 4 + i, emit_address(emit, pixels[i], emit_int(emit, left * conv->part)), ROW_BYTES);
    for (int right = 0; left + right < conv->parts; right++) {
      for (int block = 0; block < 2; block++) {
        Value address = emit_address(emit, filters, emit_int(emit, (2 * right + block) * TILE_FLOATS));
        tile_load(emit, 6 + block, address, ROW_BYTES);
        for (int i = 0; i < 2; i++) multiply(conv, fetch, filters, 2 * i + block, 4 + i, 6 + block);
      }
    }
  }
}

/* Adds the products of a group of steps, whose filters are at `filters`, to the sums of all tiles. The last of an odd
 * number of tiles is computed twice, with the same result. */
static void multiply_group(const TileConv *conv, int64_t steps, Value group, Value channels, Value filters) {
  Emit *emit = conv->emit;
  int64_t pairs = ceil_div(conv->tiles, 2), taps = steps * conv->taps;
  int64_t ahead = pairs > 1 ? taps * tap_size(conv) : AHEAD / (int64_t)sizeof(float);
  EmitLoop pair = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, pairs), 1, "pair");
  Value number[2], place[2], sums[4];
  number[0] = emit_mul_int(emit, pair.index, 2);
  number[1] = emit_min(emit, emit_add_int(emit, number[0], 1), emit_int(emit, conv->tiles - 1));
  for (int i = 0; i < 2; i++) place[i] = emit_address(emit, channels, tile_place(conv, number[i]));
  for (int i = 0; i < 4; i++) sums[i] = tile_sums(conv, emit_int(emit, i % 2), number[i / 2]);
  EmitIf first = emit_if(emit, emit_equal(emit, group, emit_int(emit, 0)), "first_group");
  for (int i = 0; i < 4; i++) tile_zero(emit, i);
  emit_else(emit, &first);
  for (int i = 0; i < 4; i++) tile_load(emit, i, sums[i], ROW_BYTES);
  emit_end_if(emit, &first);
  EmitLoop step = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, steps), 1, "step");
  EmitLoop r = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->shape.kernel_height), 1, "tap_row");
  EmitLoop s = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->shape.kernel_width), 1, "tap_column");
  Value tap = emit_add(emit, emit_mul_int(emit, r.index, conv->shape.kernel_width), s.index);
  tap = emit_add(emit, emit_mul_int(emit, step.index, conv->taps), tap);
  Value distance = emit_add(emit, tap_distance(conv, r.index, s.index), emit_mul_int(emit, step.index, conv->block));
  Value pixels[2];
  for (int i = 0; i < 2; i++) pixels[i] = emit_address(emit, place[i], distance);
  Fetch fetch = {.base = filters, .lines = ceil_div(tap_size(conv) / TILE, pairs)};
  if (conv->taps > 1 && steps > 1) fetch.near = tap_size(conv) / TILE;
  Value turn = emit_add(emit, emit_mul_int(emit, pair.index, taps), tap);
  fetch.offset = emit_add_int(emit, emit_mul_int(emit, turn, fetch.lines * TILE), ahead);
  multiply_tap(conv, pixels, emit_address(emit, filters, emit_mul_int(emit, tap, tap_size(conv))), &fetch);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
  emit_loop_end(emit, &step);
  for (int i = 0; i < 4; i++) tile_store(emit, i, sums[i]);
  emit_loop_end(emit, &pair);
}

void multiply_split(const TileConv *conv, Value panel) {
  Emit *emit = conv->emit;
  const int64_t steps = group_steps(conv, ceil_div(conv->tiles, 2));
  EmitLoop group = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->steps / steps), 1, "group");
  Value begin = emit_mul_int(emit, group.index, steps);
  Value offset = emit_mul_int(emit, emit_add(emit, emit_mul_int(emit, panel, conv->steps), begin), conv->taps * tap_size(conv));
  multiply_group(conv, steps, group.index, emit_address(emit, conv->split, emit_mul_int(emit, begin, conv->block)),
                 emit_address(emit, emit->inputs[1], emit_add_int(emit, offset, conv->filter->storage.origin)));
  emit_loop_end(emit, &group);
}
