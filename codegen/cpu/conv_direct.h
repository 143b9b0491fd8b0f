/* Direct convolution: what its parts share. See conv_direct.c. */
#ifndef KILN_CODEGEN_CPU_CONV_DIRECT_H
#define KILN_CODEGEN_CPU_CONV_DIRECT_H

#include "conv.h"
#include "work.h"

enum { LINE_ELEMENTS = 16 /* of a cache line */ };

typedef struct Direct {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  const PlanTensor *input, *filter, *bias, *output;
  int32_t lanes;          /* b: of the output's vectors */
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
  int64_t unroll;                   /* channels of one trip through the innermost loop */
  bool skips;                       /* taps in the padding are left out: tiles are whole rows */
  bool across;                      /* a tile's pixels go on in the next row */
  bool rows_outside;                /* all panels go through a chunk of rows before the next chunk */
  bool packed_input, packed_output; /* all pixels of a block are equally far apart; so are those of operands */
  DirectWork work;
  /* The filters that follow those of this chunk in memory are needed next. Every tile fetches its share of them into
   * the second-level cache, so many lines per tap and block of channels; 0: none. */
  int64_t prefetch_lines;
  Value prefetch; /* variable: the address to fetch next */
  /* Variables: the addresses of the tap that is next, of its first pixel and its filters. Loops carry them along by
   * additions: a product of an index waits, on x86 processors, behind the multiply-adds, and loads wait for it. */
  Value next_input, next_filter;
  /* of the current item */
  Value image, block, input_base, filter_base;
} Direct;

/* An output pixel of a tile. */
typedef struct Pixel {
  /* Of tiles across rows only, and there only where rows are not packed; `rows`: down from the tile's first pixel. */
  Value y, x, rows;
  Value input; /* elements from the tile's first tap to the pixel's */
} Pixel;

/* A tile: rows × columns of output pixels, `blocks` blocks of output channels, at (y, x). Across rows: one row, and x
 * counts the pixels of all rows; y is 0. */
typedef struct Tile {
  int64_t rows, columns, blocks;
  Value y, x;
  Value row, column; /* of the first pixel, where pixels have theirs */
  Pixel *pixels;
  Value *sums; /* variables, [pixel][block] */
} Tile;

static inline Value *direct_sum(const Tile *tile, int64_t pixel, int64_t block) {
  return &tile->sums[pixel * tile->blocks + block];
}

/* Whether a value of so many elements an image does not stay in the second-level cache beside other things. */
bool direct_is_far(const Direct *direct, int64_t elements);

/* Adds the products of chunk number `chunk` of the channels to the tile's sums; `input`: address of the tile's first
 * pixel, for the first tap of the first channel. */
void direct_products(Direct *direct, const Tile *tile, Value input, Value chunk);
/* Taps of a tile of `rows` whole rows at row `top` that are not all in the padding. */
int64_t direct_taps(const Direct *direct, int64_t top, int64_t rows);
/* Channels of one trip through the innermost loop. */
int64_t direct_unroll(const Direct *direct);

#endif
