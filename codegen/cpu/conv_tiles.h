/* Convolution in tile registers: what its parts share. See conv_tiles.c. */
#ifndef KILN_CODEGEN_CPU_CONV_TILES_H
#define KILN_CODEGEN_CPU_CONV_TILES_H

#include "conv.h"

enum {
  TILE = 16,           /* rows of a tile, and numbers of a row of sums */
  CHANNELS = 2 * TILE, /* input channels of a step, output channels of a panel */
  ROW_BYTES = 64,
  TILE_BYTES = TILE * ROW_BYTES,
  TILE_FLOATS = TILE * TILE, /* elements of f32 that take as much memory as a tile */
  PARTS_MAX = 3,
  TILE_REGISTERS = 8
};

typedef struct TileConv {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  const PlanTensor *input, *filter, *output, *bias;
  int64_t rows, chunks;  /* output rows of an item; chunks of an image */
  int64_t panels, steps; /* blocks of 32 output and input channels */
  int64_t taps;
  int64_t phases[2];      /* of rows and of columns of the input */
  int64_t columns, plane; /* of a phase of the split input, in pixels */
  int64_t pitch, tiles;   /* outputs of a row, and tiles of an item */
  bool flows;             /* tiles go on in the next row */
  int32_t parts;          /* of a number */
  bool whole;             /* filters lie in memory as f32 */
  int64_t block, part;    /* elements of a block of 32 channels of the split input, and of a part of all of them */
  Value split, sums;      /* addresses: of the split input, of the sums, [block of 16 filters][tile][16][16] */
  Value filters;          /* whole: memory for the split filters of some taps in turns */
  Value turns_done;       /* whole: variable, of the turns since the kernel's begin, see conv_tiles_whole.c */
  EmitRoutine split_row;  /* of the input */
  ConvFinish finish;
} TileConv;

/* Rows of 64 bytes, one behind the other. */
void tile_load(Emit *emit, int number, Value address);
void tile_zero(Emit *emit, int number);
void tile_store(Emit *emit, int number, Value address);
void tile_multiply_add(Emit *emit, int sum, int left, int right);
/* 16 pairs of words to 64 bytes. */
void store_words(Emit *emit, Value base, Value offset, Value words);

/* Two vectors of f32 to 32 words of each of their parts, a word of `first` and one of `second` in turns. Parts are
 * rounded, halves up, or cut off, which takes fewer instructions; the third one is exact. `mask`: what upper_mask gave,
 * outside of loops. */
Value upper_mask(Emit *emit);
void split_pairs(Emit *emit, Value mask, int32_t parts, bool cut, Value first, Value second, Value *out_words);

/* Offset in a block of the split input of a tile's first pixel, for the first tap. */
Value tile_place(const TileConv *conv, Value tile);
/* … and from there to the first pixel of a tap. */
Value tap_distance(const TileConv *conv, Value tap_row, Value tap_column);
Value tile_sums(const TileConv *conv, Value block, Value tile);

/* Up to four tiles of outputs are computed together with a block of 16 filters. */
enum { WIDTH = 4 };
/* Passes over the filters that this takes, tiles of a pass, and passes of so many: the last one may have fewer. */
typedef struct TilePasses {
  int64_t count, width, alike, rest;
} TilePasses;
TilePasses tile_passes(const TileConv *conv);
/* Where the pixels of a pass's tiles are for the first tap of a step, and their sums. */
void tile_pass_places(const TileConv *conv, Value channels, Value block, Value pass, int width, Value *out_pixels,
                      Value *out_sums);

/* The taps of some steps, one after the other: a loop around what computes one. */
typedef struct TapLoop {
  EmitLoop step, row, column;
  Value tap;           /* its number among those of all the steps */
  Value pixels[WIDTH]; /* of every tile */
} TapLoop;
/* `places`: as tile_pass_places gives them. */
TapLoop tap_loop_begin(const TileConv *conv, int64_t steps, const Value *places, int width);
void tap_loop_end(const TileConv *conv, TapLoop *loop);

/* What is done beside the products of a tap, some after every product: called with the products so far. */
typedef void (*TileBeside)(const TileConv *conv, const void *context, int64_t done, int64_t products);
/* Adds the products of a tap of 32 channels to the sums in registers 0, 1, …; the parts of its filters are `part`
 * elements apart. */
void multiply_tap(const TileConv *conv, const Value *pixels, int width, Value filters, int64_t part, TileBeside beside,
                  const void *context);

/* The products of a panel for all tiles of an item, into the sums. */
void multiply_split(const TileConv *conv, Value panel);
void multiply_whole(const TileConv *conv, Value panel);
/* Most tiles of an item with whole filters. */
enum { WHOLE_TILES = 12 };
/* Elements of scratch memory for split filters. */
int64_t whole_scratch(void);
/* Turns of a panel. */
int64_t whole_turns(const TileConv *conv);
/* Before the first item: splits its filters' first tap. */
void begin_whole(const TileConv *conv);

#endif
