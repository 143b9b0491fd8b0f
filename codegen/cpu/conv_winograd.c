/* Winograd convolution: F(2×2,3×3) and F(4×4,3×3) with stride 1, and F(3×3,4×4) of the phases of an image with few
 * channels with stride 2; channel-blocked; see ir/winograd.h for the terms.
 *
 * Operands: the output [N][K/b][H][W][b]; transformed filters U [K/f][A·A][C][f] with f = b·T, or the filters as they
 * are, [K/f][C][3][3][f]; and either the image, or its transformed tiles V [N][A·A][tile][C].
 *
 * Tiles of an image, in row-major order, are divided into register blocks of at most P tiles, of sizes that differ by
 * at most one. For each position ξ of the A × A ones and each panel of f filters, a register block is a matrix
 * product M[ξ] = V[ξ]·U[ξ] of P × C by C × f numbers, held in P·T accumulators: one step takes T vectors of U and P
 * broadcast scalars of V. M is then transformed back, with bias and epilogue. U thus streams once through the cache for
 * a group of register blocks, and V and M are written and read once; while one panel is worked on, the next one is
 * fetched, spread evenly over all steps.
 *
 * Two divisions of the work:
 *   image operand   an item is a register block. A call takes as many items at once as a group holds, transforms their
 *                   tiles into its scratch memory, and does all panels. M is [A·A][tile][K].
 *                   When a pass over the filters takes all tiles of an image, an item is a panel of one image: each
 *                   thread reads only its part of U, and a call transforms the images that it meets. For one image of
 *                   few tiles. M is [A·A][tile][f].
 *   tiles operand   the same with V made before: for a few such images. Items of a panel follow each other.
 *
 * U is 16/9 or four times as large as the filters, and where tiles are few, reading it is what takes the time. So with
 * panels as items U may be made here, of a part of the channels at a time that the second-level cache holds: then
 * only the filters come from memory. M is summed up over the parts.
 *
 * With a max pool behind it an item is a strip of rows, see conv_strip.c, in which register blocks are counted. What a
 * thread has not made of the strip before, it makes again.
 *
 * What takes the time is in three routines: the transform of the image, the products, and the transform back, in which
 * alone kernels with the same shapes but different epilogues differ.
 *
 * An output depends on its own tile only, and every sum runs over the channels in order, so that results do not depend
 * on how items are divided or grouped. */
#include "base/checked.h"
#include "conv_strip.h"
#include "ride.h"
#include "winograd_transform.h"

enum { CHANNEL_UNROLL = 4, MAX_BLOCK_VECTORS = 16, LINE_BYTES = 64, NEAR_SHARE = 16 };

typedef struct Winograd {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  const PlanTensor *input, *filter, *output, *bias;
  WinogradForm form;
  int32_t positions; /* A·A */
  int32_t lanes;     /* b */
  int64_t channels;  /* of the image, or of its phases */
  WinogradGrid grid;
  const ConvStrip *strip; /* NULL: there is no pool */
  int64_t strip_rows;     /* rows of tiles of a strip */
  int64_t tiles;          /* of an image, or of a strip */
  int64_t blocks;         /* register blocks of these */
  int64_t base, larger;   /* tiles of a block; the first `larger` blocks have one more */
  int64_t group_blocks;   /* register blocks that share a pass over U */
  int64_t panel_vectors;  /* T */
  int64_t filter_vectors; /* vectors of output channels */
  int64_t panels;
  int64_t row, m_row; /* elements of V and M from tile to tile */
  int64_t v_plane, m_plane;
  int64_t prefetch; /* elements of the next U that a step over CHANNEL_UNROLL channels fetches */
  bool transforms;  /* U is made here */
  int64_t part;     /* channels that it is made of at a time; without `transforms` all there are */
  int64_t u_plane;
  int64_t fetch_lines; /* cache lines of the next part's filters that a product of a register block fetches */
  /* the products of a register block: base tiles, base + 1 tiles, all tiles of `images` images */
  EmitRoutine product, larger_product, images_product;
  EmitRoutine transform, multiply, finish; /* parts of the kernel */
  int64_t images;
  bool tiles_operand, panel_items; /* see above */
  ConvStrip strip_storage;
  /* of the current group */
  Value v, m;   /* addresses of its first tile's numbers */
  Value u;      /* address of a part of U, when it is made here */
  Value origin; /* number of that tile, counted through all images or strips */
} Winograd;

/* A register block: where its tiles stand. */
typedef struct TileBlock {
  Value image, number; /* number: within the image or strip */
  Value strip, top;    /* of the image; top: the strip's first row of tiles. NULL, 0 without strips */
  Value first, count;  /* tiles of the image or strip */
  Value row;           /* of V and M: of the first tile */
} TileBlock;

/* The block's strip, and which of its tiles exist: the last strip may reach beyond the image. */
static void place_in_strip(const Winograd *winograd, TileBlock *block) {
  Emit *emit = winograd->emit;
  Value digit[2];
  emit_split(emit, block->image, 2, (int64_t[]){1, winograd->strip->work.count}, digit);
  block->image = digit[0];
  block->strip = digit[1];
  block->top = emit_mul_int(emit, block->strip, winograd->strip_rows);
  Value rows = emit_sub(emit, emit_int(emit, winograd->grid.rows), block->top);
  Value left = emit_sub(emit, emit_mul_int(emit, rows, winograd->grid.columns), block->first);
  block->count = emit_max(emit, emit_int(emit, 0), emit_min(emit, block->count, left));
}

static TileBlock tile_block(const Winograd *winograd, Value item) {
  Emit *emit = winograd->emit;
  TileBlock block;
  Value digit[2];
  emit_split(emit, item, 2, (int64_t[]){1, winograd->blocks}, digit);
  block.image = digit[0];
  block.number = digit[1];
  block.first = emit_mul_int(emit, block.number, winograd->base);
  block.count = emit_int(emit, winograd->base);
  if (winograd->larger > 0) {
    Value larger = emit_int(emit, winograd->larger);
    block.first = emit_add(emit, block.first, emit_min(emit, block.number, larger));
    block.count =
        emit_select(emit, emit_less(emit, block.number, larger), emit_int(emit, winograd->base + 1), block.count);
  }
  Value first = emit_add(emit, emit_mul_int(emit, block.image, winograd->tiles), block.first);
  block.row = emit_sub(emit, first, winograd->origin);
  block.top = emit_int(emit, 0);
  block.strip = NULL;
  if (winograd->strip != NULL) place_in_strip(winograd, &block);
  return block;
}

/* Where the numbers are of a group whose first register block is number `item`. Parts of the kernel begin with this. */
static void open_group(Winograd *winograd, Value item) {
  Emit *emit = winograd->emit;
  const Storage *in = &winograd->input->storage;
  winograd->origin = emit_int(emit, 0);
  const TileBlock block = tile_block(winograd, item);
  winograd->origin = block.row;
  winograd->v = emit->scratch;
  if (winograd->tiles_operand)
    winograd->v = emit_address(emit, emit->inputs[0],
                               emit_add_int(emit, emit_mul_int(emit, block.image, in->stride[0]), in->origin));
  const int64_t v_elements = winograd->tiles_operand ? 0 : winograd->positions * winograd->v_plane;
  winograd->m = emit_address(emit, emit->scratch, emit_int(emit, v_elements));
  winograd->u = emit_address(emit, winograd->m, emit_int(emit, winograd->positions * winograd->m_plane));
}

static int64_t largest_block(const Winograd *winograd) { return winograd->base + (winograd->larger > 0); }

/* --- input ------------------------------------------------------------------------------------------- */

static void transform_block(const Winograd *winograd, const TileBlock *block) {
  Emit *emit = winograd->emit;
  const Storage *in = &winograd->input->storage;
  EmitLoop tile = emit_loop_outer(emit, emit_int(emit, 0), block->count, 1, "input_tile");
  Value digit[2];
  emit_split(emit, emit_add(emit, block->first, tile.index), 2, (int64_t[]){1, winograd->grid.columns}, digit);
  digit[0] = emit_add(emit, digit[0], block->top);
  Value corner = emit_add(emit, emit_mul_int(emit, digit[0], winograd->form.outputs * in->stride[2]),
                          emit_mul_int(emit, digit[1], winograd->form.outputs * in->stride[3]));
  corner = emit_add(emit, corner, emit_mul_int(emit, block->image, in->stride[0]));
  const bool padded = layout_is_winograd_image(winograd->input->layout.kind);
  const int64_t top = padded ? 0 : winograd->shape.pad_top, left = padded ? 0 : winograd->shape.pad_left;
  corner = emit_add_int(emit, corner, in->origin - top * in->stride[2] - left * in->stride[3]);
  Value place = emit_mul_int(emit, emit_add(emit, block->row, tile.index), winograd->row);
  EmitLoop channel =
      emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, winograd->row / winograd->lanes), 1, "input_block");
  Value input = emit_add(emit, corner, emit_mul_int(emit, channel.index, padded ? winograd->lanes : in->stride[1]));
  Value output = emit_add(emit, place, emit_mul_int(emit, channel.index, winograd->lanes));
  winograd_input_tile(emit, winograd->form, winograd->lanes, winograd->input,
                      emit_address(emit, emit->inputs[0], input), emit_address(emit, winograd->v, output),
                      winograd->v_plane);
  emit_loop_end(emit, &channel);
  emit_loop_end(emit, &tile);
}

/* A part: the tiles of as many register blocks, from a number on, as its arguments say. */
static void transform_part(Winograd *winograd) {
  Emit *emit = winograd->emit;
  Value range[2];
  winograd->transform = emit_part_begin(emit, "transform", 2, range);
  open_group(winograd, range[0]);
  EmitLoop number = emit_loop_outer(emit, emit_int(emit, 0), range[1], 1, "transform");
  const TileBlock block = tile_block(winograd, emit_add(emit, range[0], number.index));
  transform_block(winograd, &block);
  emit_loop_end(emit, &number);
  emit_routine_end(emit, &winograd->transform);
}

/* --- products ---------------------------------------------------------------------------------------- */

/* Multiply-adds of `count` channels for `rows` tiles; `sums` are variables [row][vector]. */
static void product_channels(const Winograd *winograd, int64_t rows, Value *sums, Value tiles, Value filters,
                             int64_t count) {
  Emit *emit = winograd->emit;
  int32_t lanes = winograd->lanes;
  LLVMTypeRef vector = emit_float_type(emit, lanes);
  for (int64_t c = 0; c < count; c++) {
    Value weights[MAX_BLOCK_VECTORS];
    if (winograd->panel_vectors > 1) emit_step(emit, lanes, sums, (size_t)(rows * winograd->panel_vectors));
    for (int64_t k = 0; k < winograd->panel_vectors; k++)
      weights[k] = emit_load(emit, filters, emit_int(emit, (c * winograd->panel_vectors + k) * lanes), lanes);
    for (int64_t row = 0; row < rows; row++) {
      Value number = emit_splat(emit, emit_load(emit, tiles, emit_int(emit, row * winograd->row + c), 1), lanes);
      for (int64_t k = 0; k < winograd->panel_vectors; k++) {
        Value sum = sums[row * winograd->panel_vectors + k];
        emit_set(emit, sum, emit_fma(emit, number, weights[k], emit_get(emit, vector, sum)));
      }
      if (winograd->panel_vectors == 1) emit_keep(emit, lanes, number);
    }
  }
}

/* The step's share of the next part's filters: steps and lines need not be as many. */
static void prefetch_filters(const Winograd *winograd, Value next, Value channel) {
  Emit *emit = winograd->emit;
  int64_t steps = winograd->part / CHANNEL_UNROLL, line = LINE_BYTES / (int64_t)sizeof(float);
  Value step = emit_div_int(emit, channel, CHANNEL_UNROLL);
  Value first = emit_div_int(emit, emit_mul_int(emit, step, winograd->fetch_lines), steps);
  for (int64_t i = 0; i < ceil_div(winograd->fetch_lines, steps); i++)
    emit_prefetch_line(emit, next, emit_mul_int(emit, emit_add_int(emit, first, i), line), false);
}

/* Fetches the lines of the step that begins at `channel`. */
static void prefetch_step(const Winograd *winograd, Value next, Value channel) {
  Emit *emit = winograd->emit;
  if (winograd->transforms) {
    prefetch_filters(winograd, next, channel);
    return;
  }
  /* whole lines a step, so that they follow each other */
  Value address =
      emit_address(emit, next, emit_mul_int(emit, emit_div_int(emit, channel, CHANNEL_UNROLL), winograd->prefetch));
  for (int64_t at = 0; at < winograd->prefetch; at += LINE_BYTES / (int64_t)sizeof(float))
    emit_prefetch_line(emit, address, emit_int(emit, at), false);
}

/* The products of `rows` tiles, added to M when U is made in parts. Arguments: addresses in a position's planes of V
 * and M, of a panel of U, and of what is to be fetched. */
static EmitRoutine product_routine(const Winograd *winograd, const char *name, int64_t rows) {
  Emit *emit = winograd->emit;
  int64_t vectors = winograd->panel_vectors, channels = winograd->part;
  int64_t width = vectors * winograd->lanes, looped = channels / CHANNEL_UNROLL * CHANNEL_UNROLL;
  LLVMTypeRef vector = emit_float_type(emit, winograd->lanes);
  Value arguments[4];
  EmitRoutine routine = emit_routine_begin(emit, name, 4, 0, arguments);
  Value tiles = arguments[0], filters = arguments[1], products = arguments[2];
  Value *sums = arena_array(emit->arena, (size_t)(rows * vectors), Value);
  for (int64_t i = 0; i < rows * vectors; i++) {
    Value place = emit_int(emit, i / vectors * winograd->m_row + i % vectors * winograd->lanes);
    bool adds = winograd->part < winograd->channels;
    sums[i] = emit_variable(emit, vector, "sum");
    emit_set(emit, sums[i],
             adds ? emit_load(emit, products, place, winograd->lanes) : emit_float(emit, winograd->lanes, 0));
  }
  if (looped > 0) {
    EmitLoop channel = emit_loop_count(emit, looped, CHANNEL_UNROLL, "channel");
    prefetch_step(winograd, arguments[3], channel.index);
    product_channels(winograd, rows, sums, emit_address(emit, tiles, channel.index),
                     emit_address(emit, filters, emit_mul_int(emit, channel.index, width)), CHANNEL_UNROLL);
    emit_loop_end(emit, &channel);
  }
  if (looped < channels)
    product_channels(winograd, rows, sums, emit_address(emit, tiles, emit_int(emit, looped)),
                     emit_address(emit, filters, emit_int(emit, looped * width)), channels - looped);
  for (int64_t i = 0; i < rows * vectors; i++)
    emit_store(emit, products, emit_int(emit, i / vectors * winograd->m_row + i % vectors * winograd->lanes),
               emit_get(emit, vector, sums[i]));
  emit_routine_end(emit, &routine);
  return routine;
}

static void product_routines(Winograd *winograd) {
  winograd->product = product_routine(winograd, "product", winograd->base);
  if (winograd->larger > 0) winograd->larger_product = product_routine(winograd, "larger_product", winograd->base + 1);
  if (winograd->images > 1)
    winograd->images_product = product_routine(winograd, "images_product", winograd->images * winograd->tiles);
}

/* Where a position's numbers of the group are. */
typedef struct ProductPlace {
  Value tiles, filters, products, next;
} ProductPlace;

static void product_call(const Winograd *winograd, const EmitRoutine *routine, const TileBlock *block, Value number,
                         const ProductPlace *place) {
  Emit *emit = winograd->emit;
  int64_t share = winograd->channels / CHANNEL_UNROLL * winograd->prefetch;
  if (winograd->transforms) share = winograd->fetch_lines * LINE_BYTES / (int64_t)sizeof(float);
  Value arguments[4] = {emit_address(emit, place->tiles, emit_mul_int(emit, block->row, winograd->row)), place->filters,
                        emit_address(emit, place->products, emit_mul_int(emit, block->row, winograd->m_row)),
                        emit_address(emit, place->next, emit_mul_int(emit, number, share))};
  emit_routine_call(emit, routine, arguments);
}

/* Register blocks [0, count) from `item` on. Images of few tiles: those of several images fill the registers. */
static void product_blocks(const Winograd *winograd, Value item, Value count, const ProductPlace *place) {
  Emit *emit = winograd->emit;
  Value done = emit_int(emit, 0);
  if (winograd->images > 1) {
    done = emit_mul_int(emit, emit_div_int(emit, count, winograd->images), winograd->images);
    EmitLoop several = emit_loop_outer(emit, emit_int(emit, 0), done, winograd->images, "images");
    TileBlock block = tile_block(winograd, emit_add(emit, item, several.index));
    product_call(winograd, &winograd->images_product, &block, several.index, place);
    emit_loop_end(emit, &several);
  }
  EmitLoop single = emit_loop_outer(emit, done, count, 1, "block");
  TileBlock block = tile_block(winograd, emit_add(emit, item, single.index));
  if (winograd->larger == 0) {
    product_call(winograd, &winograd->product, &block, single.index, place);
  } else {
    EmitIf larger = emit_if(emit, emit_less(emit, block.number, emit_int(emit, winograd->larger)), "larger");
    product_call(winograd, &winograd->larger_product, &block, single.index, place);
    emit_else(emit, &larger);
    product_call(winograd, &winograd->product, &block, single.index, place);
    emit_end_if(emit, &larger);
  }
  emit_loop_end(emit, &single);
}

/* --- output ------------------------------------------------------------------------------------------ */

/* One tile of one vector of output channels, at row y and column x. */
typedef struct OutputTile {
  const Winograd *winograd;
  Value strip;         /* its number, or NULL */
  Value index[4];      /* image, vector of channels, y, x */
  Value *operands;     /* addresses of the epilogue's operands that lie like the output, by input; NULL: others */
  int64_t row, column; /* of the tile: the number at hand */
} OutputTile;

static bool lies_like_output(const Winograd *winograd, const PlanTensor *operand) {
  const PlanTensor *output = winograd->output;
  return shape_equal(&operand->shape, &output->shape) && layout_equal(operand->layout, output->layout);
}

static Value load_operand(Emit *emit, void *context, int32_t input) {
  const OutputTile *tile = context;
  const PlanTensor *operand = &emit->kernel->inputs[input];
  const int64_t *stride = operand->storage.stride;
  if (tile->operands[input] != NULL)
    return emit_load(emit, tile->operands[input], emit_int(emit, tile->row * stride[2] + tile->column * stride[3]),
                     tile->winograd->lanes);
  const Value index[4] = {tile->index[0], tile->index[1], emit_add_int(emit, tile->index[2], tile->row),
                          emit_add_int(emit, tile->index[3], tile->column)};
  return emit_load_broadcast(emit, operand, emit->inputs[input], tile->winograd->output, index, tile->winograd->lanes);
}

/* The first `columns` numbers of a row of the tile. */
static void store_row(OutputTile *tile, Value base, const Value *values, int64_t columns) {
  Emit *emit = tile->winograd->emit;
  const Winograd *winograd = tile->winograd;
  const PlanTensor *stored = winograd->strip != NULL ? &winograd->strip->rows : winograd->output;
  const int64_t *stride = stored->storage.stride;
  for (tile->column = 0; tile->column < columns; tile->column++) {
    Value value = emit_epilogue_with(emit, values[tile->column], tile->winograd->lanes, load_operand, tile);
    emit_store(emit, base, emit_int(emit, tile->row * stride[2] + tile->column * stride[3]), value);
  }
}

/* The last tiles of rows and columns may reach beyond the output. */
static void store_tile(OutputTile *tile, Value tile_row, Value tile_column, const Value *values) {
  const Winograd *winograd = tile->winograd;
  Emit *emit = winograd->emit;
  const int32_t outputs = winograd->form.outputs;
  int64_t last_rows = winograd->shape.out_height - (winograd->grid.rows - 1) * outputs;
  int64_t last_columns = winograd->shape.out_width - (winograd->grid.columns - 1) * outputs;
  const Value *index = tile->index;
  Value base = winograd->strip != NULL ? strip_address(emit, winograd->strip, tile->strip, index[1], index[2], index[3])
                                       : emit_address(emit, emit->output, emit_offset(emit, winograd->output, index));
  base = emit_opaque(emit, base);
  tile->operands = arena_array(emit->arena, (size_t)winograd->kernel->input_count, Value);
  for (int32_t i = winograd->kernel->op_input_count; i < winograd->kernel->input_count; i++) {
    const PlanTensor *operand = &winograd->kernel->inputs[i];
    if (lies_like_output(winograd, operand))
      tile->operands[i] =
          emit_opaque(emit, emit_address(emit, emit->inputs[i], emit_offset(emit, operand, tile->index)));
  }
  bool always_whole = last_rows == outputs && last_columns == outputs;
  Value inner_row = emit_less(emit, tile_row, emit_int(emit, winograd->grid.rows - 1));
  Value inner_column = emit_less(emit, tile_column, emit_int(emit, winograd->grid.columns - 1));
  for (tile->row = 0; tile->row < outputs; tile->row++) {
    EmitIf exists = {NULL, NULL}, whole = {NULL, NULL};
    if (tile->row >= last_rows) exists = emit_if(emit, inner_row, "row_exists");
    if (last_columns < outputs) whole = emit_if(emit, inner_column, "whole_row");
    store_row(tile, base, &values[tile->row * outputs], outputs);
    if (!always_whole) ride_take(emit, tile->index[1]);
    if (last_columns < outputs) {
      emit_else(emit, &whole);
      store_row(tile, base, &values[tile->row * outputs], last_columns);
      ride_take(emit, tile->index[1]);
      emit_end_if(emit, &whole);
    }
    if (tile->row >= last_rows) emit_end_if(emit, &exists);
  }
  ride_take(emit, tile->index[1]);
}

/* The tiles of a register block, for vectors [begin, end) of channels. */
static void finish_block(const Winograd *winograd, const TileBlock *block, Value begin, Value end) {
  Emit *emit = winograd->emit;
  EmitLoop tile = emit_loop_outer(emit, emit_int(emit, 0), block->count, 1, "output_tile");
  Value digit[2];
  emit_split(emit, emit_add(emit, block->first, tile.index), 2, (int64_t[]){1, winograd->grid.columns}, digit);
  digit[0] = emit_add(emit, digit[0], block->top);
  Value row = emit_mul_int(emit, emit_add(emit, block->row, tile.index), winograd->m_row);
  EmitLoop vector = emit_loop_outer(emit, begin, end, 1, "output_vector");
  Value column = emit_mul_int(emit, emit_sub(emit, vector.index, begin), winograd->lanes);
  Value products = emit_address(emit, winograd->m, emit_add(emit, row, column));
  Value values[WINOGRAD_MAX_SIZE * WINOGRAD_MAX_SIZE];
  winograd_output_tile(emit, winograd->form, winograd->lanes, products, winograd->m_plane, values);
  OutputTile output = {.winograd = winograd, .strip = block->strip};
  output.index[0] = block->image;
  output.index[1] = vector.index;
  output.index[2] = emit_mul_int(emit, digit[0], winograd->form.outputs);
  output.index[3] = emit_mul_int(emit, digit[1], winograd->form.outputs);
  if (winograd->bias != NULL) {
    Value place =
        emit_add_int(emit, emit_mul_int(emit, output.index[1], winograd->lanes), winograd->bias->storage.origin);
    Value bias = emit_load(emit, emit->inputs[2], place, winograd->lanes);
    for (int32_t i = 0; i < winograd->form.outputs * winograd->form.outputs; i++)
      values[i] = emit_fadd(emit, values[i], bias);
  }
  store_tile(&output, digit[0], digit[1], values);
  emit_loop_end(emit, &vector);
  ride_row(emit);
  emit_loop_end(emit, &tile);
}

/* The halo around the rows that begin in this register block, for vectors [begin, end) of channels. */
static void emit_block_halo(const Winograd *winograd, const TileBlock *block, Value begin, Value end) {
  Emit *emit = winograd->emit;
  const int32_t *halo = winograd->output->storage.halo;
  if (halo[0] == 0 && halo[1] == 0 && halo[2] == 0 && halo[3] == 0) return;
  /* tile rows whose first tile is one of the block's */
  int64_t columns = winograd->grid.columns;
  Value last = emit_add(emit, block->first, block->count);
  Value first_row = emit_div_int(emit, emit_add_int(emit, block->first, columns - 1), columns);
  Value end_row = emit_div_int(emit, emit_add_int(emit, last, columns - 1), columns);
  Value end_y =
      emit_min(emit, emit_mul_int(emit, end_row, winograd->form.outputs), emit_int(emit, winograd->shape.out_height));
  EmitLoop vector = emit_loop_outer(emit, begin, end, 1, "halo_vector");
  emit_halo_rows(emit, block->image, vector.index, emit_mul_int(emit, first_row, winograd->form.outputs), end_y);
  emit_loop_end(emit, &vector);
}

/* --- items ------------------------------------------------------------------------------------------- */

/* The products of register blocks [0, count) from `item` on, for panels [begin, end) of U. */
static void multiply(const Winograd *winograd, Value item, Value count, Value begin, Value end) {
  Emit *emit = winograd->emit;
  const Storage *filter = &winograd->filter->storage;
  int64_t width = winograd->panel_vectors * winograd->lanes;
  Value filters_begin = emit_address(emit, emit->inputs[1],
                                     emit_add_int(emit, emit_mul_int(emit, begin, filter->stride[0]), filter->origin));
  EmitLoop position = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, winograd->positions), 1, "position");
  Value first_panel = emit_address(emit, filters_begin, emit_mul_int(emit, position.index, filter->stride[3]));
  Value tiles = emit_address(emit, winograd->v, emit_mul_int(emit, position.index, winograd->v_plane));
  Value products = emit_address(emit, winograd->m, emit_mul_int(emit, position.index, winograd->m_plane));
  EmitLoop panel = emit_loop_outer(emit, emit_int(emit, 0), emit_sub(emit, end, begin), 1, "panel");
  Value filters = emit_address(emit, first_panel, emit_mul_int(emit, panel.index, filter->stride[0]));
  Value last = emit_equal(emit, emit_add(emit, emit_add_int(emit, begin, 1), panel.index), end);
  Value next = emit_select(emit, last, emit_address(emit, first_panel, emit_int(emit, filter->stride[3])),
                           emit_address(emit, filters, emit_int(emit, filter->stride[0])));
  const ProductPlace place = {tiles, filters, emit_address(emit, products, emit_mul_int(emit, panel.index, width)),
                              next};
  product_blocks(winograd, item, count, &place);
  emit_loop_end(emit, &panel);
  emit_loop_end(emit, &position);
}

/* Channels [0, part) of a panel's filters at `filters` → U. */
static void transform_filters(const Winograd *winograd, Value filters) {
  Emit *emit = winograd->emit;
  int64_t lanes = winograd->lanes, width = winograd->panel_vectors * lanes;
  EmitLoop channel = emit_loop_count(emit, winograd->part, 1, "filter_channel");
  Value from = emit_address(emit, filters, emit_mul_int(emit, channel.index, winograd->filter->storage.stride[1]));
  Value to = emit_address(emit, winograd->u, emit_mul_int(emit, channel.index, width));
  for (int64_t k = 0; k < winograd->panel_vectors; k++)
    winograd_filter_tile(emit, winograd->form.outputs, winograd->lanes,
                         emit_address(emit, from, emit_int(emit, k * lanes)), width,
                         emit_address(emit, to, emit_int(emit, k * lanes)), winograd->u_plane);
  emit_loop_end(emit, &channel);
}

static void clear_products(const Winograd *winograd) {
  Emit *emit = winograd->emit;
  EmitLoop at = emit_loop_count(emit, winograd->positions * winograd->m_plane, winograd->lanes, "clear");
  emit_store(emit, winograd->m, at.index, emit_float(emit, winograd->lanes, 0));
  emit_loop_end(emit, &at);
}

/* The same for one panel, whose U is made here. What is fetched is the part that follows in memory, also of the next
 * panel. */
static void multiply_transforming(const Winograd *winograd, Value item, Value count, Value panel) {
  Emit *emit = winograd->emit;
  const Storage *filter = &winograd->filter->storage;
  int64_t fetched = winograd->blocks * winograd->fetch_lines * LINE_BYTES / (int64_t)sizeof(float);
  Value panel_filters = emit_address(emit, emit->inputs[1],
                                     emit_add_int(emit, emit_mul_int(emit, panel, filter->stride[0]), filter->origin));
  if (winograd->part < winograd->channels) clear_products(winograd);
  EmitLoop part = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, winograd->channels), winograd->part, "part");
  Value filters = emit_address(emit, panel_filters, emit_mul_int(emit, part.index, filter->stride[1]));
  transform_filters(winograd, filters);
  EmitLoop position = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, winograd->positions), 1, "position");
  Value tiles = emit_address(emit, winograd->v,
                             emit_add(emit, emit_mul_int(emit, position.index, winograd->v_plane), part.index));
  Value next =
      emit_address(emit, filters,
                   emit_add_int(emit, emit_mul_int(emit, position.index, fetched), winograd->part * filter->stride[1]));
  const ProductPlace place = {
      tiles, emit_address(emit, winograd->u, emit_mul_int(emit, position.index, winograd->u_plane)),
      emit_address(emit, winograd->m, emit_mul_int(emit, position.index, winograd->m_plane)), next};
  product_blocks(winograd, item, count, &place);
  emit_loop_end(emit, &position);
  emit_loop_end(emit, &part);
}

/* Parts have these arguments: register blocks [0, count) from `item` on, for panels [begin, end). */
enum { ITEM, COUNT, BEGIN, END, GROUP_ARGUMENTS };

static void multiply_part(Winograd *winograd) {
  Emit *emit = winograd->emit;
  Value group[GROUP_ARGUMENTS];
  winograd->multiply = emit_part_begin(emit, "multiply", GROUP_ARGUMENTS, group);
  product_routines(winograd);
  open_group(winograd, group[ITEM]);
  if (winograd->transforms)
    multiply_transforming(winograd, group[ITEM], group[COUNT], group[BEGIN]);
  else
    multiply(winograd, group[ITEM], group[COUNT], group[BEGIN], group[END]);
  emit_routine_end(emit, &winograd->multiply);
}

/* The vectors of channels of panels [begin, end). */
static void panel_vectors(const Winograd *winograd, Value begin, Value end, Value *out_first, Value *out_end) {
  Emit *emit = winograd->emit;
  *out_first = emit_mul_int(emit, begin, winograd->panel_vectors);
  *out_end = emit_min(emit, emit_int(emit, winograd->filter_vectors), emit_mul_int(emit, end, winograd->panel_vectors));
}

static void finish_group(const Winograd *winograd, const Value *group) {
  Emit *emit = winograd->emit;
  Value first, end;
  panel_vectors(winograd, group[BEGIN], group[END], &first, &end);
  EmitLoop number = emit_loop_outer(emit, emit_int(emit, 0), group[COUNT], 1, "finish");
  const Value item = emit_add(emit, group[ITEM], number.index);
  const TileBlock block = tile_block(winograd, item);
  if (!winograd->panel_items) ride_item(emit);
  finish_block(winograd, &block, first, end);
  if (!winograd->panel_items) ride_item_end(emit, item);
  emit_loop_end(emit, &number);
}

static void finish_part(Winograd *winograd) {
  Emit *emit = winograd->emit;
  Value group[GROUP_ARGUMENTS];
  winograd->finish = emit_part_begin(emit, "finish", GROUP_ARGUMENTS, group);
  open_group(winograd, group[ITEM]);
  finish_group(winograd, group);
  emit_routine_end(emit, &winograd->finish);
}

/* Reductions that ride here keep their state in the kernel. */
static void emit_group(Winograd *winograd, const Value *group) {
  Emit *emit = winograd->emit;
  emit_routine_call(emit, &winograd->multiply, group);
  open_group(winograd, group[ITEM]);
  if (emit->riding == NULL)
    emit_routine_call(emit, &winograd->finish, group);
  else
    finish_group(winograd, group);
  if (winograd->strip != NULL) return; /* the pool has the halo */
  Value first, end;
  panel_vectors(winograd, group[BEGIN], group[END], &first, &end);
  EmitLoop halo = emit_loop_outer(emit, emit_int(emit, 0), group[COUNT], 1, "halo");
  const TileBlock block = tile_block(winograd, emit_add(emit, group[ITEM], halo.index));
  emit_block_halo(winograd, &block, first, end);
  emit_loop_end(emit, &halo);
}

static void emit_block_items(Winograd *winograd) {
  Emit *emit = winograd->emit;
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, winograd->group_blocks, "group");
  Value count = emit_min(emit, emit_int(emit, winograd->group_blocks), emit_sub(emit, emit->end, item.index));
  const Value group[] = {item.index, count, emit_int(emit, 0), emit_int(emit, winograd->panels)};
  emit_routine_call(emit, &winograd->transform, group);
  emit_group(winograd, group);
  emit_loop_end(emit, &item);
}

/* Register blocks [first, blocks) of the strip that is item number `item`. */
static void emit_strip_rows(Winograd *winograd, Value item, int64_t first) {
  Emit *emit = winograd->emit;
  Value begin = emit_mul_int(emit, item, winograd->blocks), blocks = emit_int(emit, winograd->blocks);
  EmitLoop block = emit_loop_outer(emit, emit_int(emit, first), blocks, winograd->group_blocks, "group");
  Value count = emit_min(emit, emit_int(emit, winograd->group_blocks), emit_sub(emit, blocks, block.index));
  const Value group[] = {emit_add(emit, begin, block.index), count, emit_int(emit, 0),
                         emit_int(emit, winograd->panels)};
  emit_routine_call(emit, &winograd->transform, group);
  emit_group(winograd, group);
  emit_loop_end(emit, &block);
}

/* The register block that the strip's last rows of tiles begin in, as many as the kept rows are of. */
static int64_t first_kept_block(const Winograd *winograd) {
  const int64_t kept_rows = ceil_div(winograd->strip->work.kept, winograd->form.outputs);
  const int64_t tile = (winograd->strip_rows - kept_rows) * winograd->grid.columns;
  int64_t block = 0;
  while (block + 1 < winograd->blocks) {
    const int64_t next = block + 1, larger = next < winograd->larger ? next : winograd->larger;
    if (next * winograd->base + larger > tile) break;
    block = next;
  }
  return block;
}

static void emit_strip_items(Winograd *winograd) {
  Emit *emit = winograd->emit;
  const ConvStrip *strip = winograd->strip;
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[2];
  emit_split(emit, item.index, 2, (int64_t[]){1, strip->work.count}, digit);
  if (strip->work.kept > 0) {
    EmitIf inner = emit_if(emit, emit_less(emit, emit_int(emit, 0), digit[1]), "inner_strip");
    EmitIf made = emit_if(emit, emit_equal(emit, item.index, emit->begin), "not_made");
    emit_strip_rows(winograd, emit_add_int(emit, item.index, -1), first_kept_block(winograd));
    emit_end_if(emit, &made);
    strip_keep(emit, strip);
    emit_end_if(emit, &inner);
  }
  emit_strip_rows(winograd, item.index, 0);
  emit_routine_call(emit, &strip->pool, digit);
  emit_loop_end(emit, &item);
}

/* Item number → image and panel. Where V is at hand items of a panel follow each other, so that a thread reads its part
 * of U once; else those of an image, so that it is transformed once. */
static void decode_panel_item(const Winograd *winograd, Value item, Value *out_image, Value *out_panel) {
  Emit *emit = winograd->emit;
  if (winograd->tiles_operand) {
    bool batched = winograd->shape.images == DIM_BATCH;
    Value images = batched ? emit->batch : emit_int(emit, winograd->shape.images);
    *out_panel = LLVMBuildUDiv(emit->builder, item, images, "panel");
    *out_image = emit_sub(emit, item, LLVMBuildNSWMul(emit->builder, *out_panel, images, ""));
  } else {
    *out_image = emit_div_int(emit, item, winograd->panels);
    *out_panel = emit_mod_int(emit, item, winograd->panels);
  }
}

/* V of an image, whose register blocks begin with the group's. `known`: a variable, the number of the image that is in
 * the scratch memory. */
static void provide_tiles(Winograd *winograd, Value image, const Value *group, Value known) {
  Emit *emit = winograd->emit;
  EmitIf same = emit_if(emit, emit_equal(emit, image, emit_get(emit, emit->i64, known)), "same_image");
  emit_else(emit, &same);
  emit_routine_call(emit, &winograd->transform, group);
  emit_set(emit, known, image);
  emit_end_if(emit, &same);
}

static void emit_panel_items(Winograd *winograd) {
  Emit *emit = winograd->emit;
  Value known = emit_variable(emit, emit->i64, "known_image");
  emit_set(emit, known, emit_int(emit, -1));
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value image, panel;
  decode_panel_item(winograd, item.index, &image, &panel);
  const Value group[] = {emit_mul_int(emit, image, winograd->blocks), emit_int(emit, winograd->blocks), panel,
                         emit_add_int(emit, panel, 1)};
  if (!winograd->tiles_operand) provide_tiles(winograd, image, group, known);
  ride_item(emit);
  emit_group(winograd, group);
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
}

static bool winograd_init(Winograd *winograd, Emit *emit, const PlanKernel *kernel, Diag *diag) {
  const ConvShape shape = conv_shape(kernel);
  const PlanTensor *input = &kernel->inputs[0], *filter = &kernel->inputs[1];
  bool tiles = layout_is_winograd_tiles(input->layout.kind), transforms = filter->layout.kind == LAYOUT_FILTER_BLOCK;
  const PlanTensor *made = plan_made(kernel);
  int32_t lanes = made->layout.block;
  const WinogradForm form = algorithm_winograd_form(kernel->choice.algorithm);
  const int64_t channels = winograd_channels(form, shape.channels);
  const LayoutKind from = input->layout.kind, phases = LAYOUT_CHANNEL_PHASES;
  const bool image = tiles ? winograd_form(from).outputs == form.outputs && form.stride == 1
                           : from == (form.stride > 1 ? phases : LAYOUT_CHANNEL_BLOCK);
  const bool transformed = layout_equal(filter->layout, winograd_filter_layout(form, filter->layout.block));
  const bool fits =
      form.outputs > 0 && image && (transformed || (transforms && form.stride == 1)) &&
      (from == phases ? input->layout.block == round_up(channels, lanes) : input->layout.block == lanes) &&
      made->layout.kind == LAYOUT_CHANNEL_BLOCK && filter->layout.block % lanes == 0 &&
      filter->layout.block <= MAX_BLOCK_VECTORS * lanes && shape.groups == 1;
  if (!fits) {
    diag_error(diag, kernel->location, "'%s': Winograd convolution does not take these layouts", kernel->name);
    return false;
  }
  const int64_t *padding = kernel->attrs.padding.values;
  const bool padded = layout_is_winograd_image(from);
  int64_t reach[4];
  winograd_reach(form, shape.height, shape.width, padding, reach);
  for (int side = 0; side < 4; side++) {
    int64_t needed = padded ? padding[side] : reach[side], found = input->storage.halo[side];
    if (padded ? found == needed : found >= needed) continue;
    diag_error(diag, kernel->location, "'%s': the input's halo of %lld does not fit the tiles, which need %lld",
               kernel->name, (long long)found, (long long)needed);
    return false;
  }
  *winograd = (Winograd){.emit = emit, .kernel = kernel, .shape = shape, .input = input, .filter = filter};
  winograd->output = made;
  winograd->bias = kernel->op_input_count > 2 ? &kernel->inputs[2] : NULL;
  winograd->form = form;
  winograd->channels = channels;
  winograd->positions = winograd_size(form) * winograd_size(form);
  winograd->lanes = lanes;
  winograd->grid = winograd_grid(form, shape.height, shape.width, padding);
  winograd->tiles = winograd->grid.rows * winograd->grid.columns;
  if (kernel->pool != NULL) {
    winograd->strip = &winograd->strip_storage;
    if (!strip_init(&winograd->strip_storage, kernel, diag)) return false;
    winograd->strip_rows = winograd->strip->work.rows / form.outputs;
    winograd->tiles = winograd->strip_rows * winograd->grid.columns;
  }
  winograd->blocks = ceil_div(winograd->tiles, kernel->choice.tile_pixels > 0 ? kernel->choice.tile_pixels : 4);
  winograd->tiles_operand = tiles;
  winograd->panel_items = tiles || kernel->choice.row_chunk == 0;
  winograd->base = winograd->tiles / winograd->blocks;
  winograd->larger = winograd->tiles % winograd->blocks;
  winograd->panel_vectors = filter->layout.block / lanes;
  winograd->filter_vectors = ceil_div(shape.filters, lanes);
  winograd->panels = ceil_div(winograd->filter_vectors, winograd->panel_vectors);
  winograd->row = round_up(channels, lanes);
  int32_t part = kernel->choice.channel_chunk;
  winograd->transforms = transforms;
  winograd->part = transforms && part > 0 && channels % part == 0 ? part : channels;
  int64_t group = winograd->panel_items ? winograd->blocks : kernel->choice.row_chunk / largest_block(winograd);
  if (winograd->strip != NULL && group > winograd->blocks) group = winograd->blocks;
  winograd->group_blocks = group < 1 ? 1 : group;
  return true;
}

bool cpu_conv_winograd(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  Winograd state, *winograd = &state;
  if (!winograd_init(winograd, emit, kernel, diag)) return false;
  const int64_t line = LINE_BYTES / (int64_t)sizeof(float);
  bool tiles = winograd->tiles_operand, panels = winograd->panel_items;
  int64_t rows = panels ? winograd->tiles : winograd->group_blocks * largest_block(winograd);
  int64_t width = winograd->panel_vectors * winograd->lanes;
  winograd->m_row = panels ? width : winograd->panels * width;
  winograd->m_plane = round_up(rows * winograd->m_row, line) + line;
  winograd->v_plane = tiles ? winograd->input->storage.stride[3] : round_up(rows * winograd->row, line) + line;
  int64_t steps = winograd->channels / CHANNEL_UNROLL * winograd->group_blocks;
  winograd->prefetch = steps > 0 ? round_up(ceil_div(winograd->channels * width, steps), line) : 0;
  if (winograd->positions * winograd->channels * winograd->panels * width * (int64_t)sizeof(float) <=
      emit->target->l2_bytes / NEAR_SHARE)
    winograd->prefetch = 0; /* U is at hand all the time */
  if (winograd->transforms) {
    winograd->u_plane = round_up(winograd->part * width, line) + line;
    int64_t lines = ceil_div(winograd->part * winograd->filter->storage.stride[1], line);
    if (winograd->part >= CHANNEL_UNROLL)
      winograd->fetch_lines = ceil_div(lines, winograd->positions * winograd->blocks);
  }
  winograd->images = winograd->blocks == 1 ? kernel->choice.tile_pixels / winograd->tiles : 1;
  if (winograd->images > winograd->group_blocks) winograd->images = winograd->group_blocks;
  const int64_t blocks = winograd->strip != NULL ? winograd->strip->work.count : winograd->blocks;
  *out_work = work_per_image(winograd->shape.images, panels ? winograd->panels : blocks);
  int64_t planes = winograd->m_plane + winograd->u_plane + (tiles ? 0 : winograd->v_plane);
  out_work->scratch_bytes = winograd->positions * planes * (int64_t)sizeof(float);
  if (winograd->strip != NULL) {
    winograd->strip_storage.place = round_up(out_work->scratch_bytes, LINE_BYTES) / (int64_t)sizeof(float);
    out_work->scratch_bytes = (winograd->strip->place + winograd->strip->elements) * (int64_t)sizeof(float);
  }
  int64_t tile_vectors = winograd->filter_vectors * winograd->form.outputs * winograd->form.outputs;
  out_work->scratch_bytes = ride_begin(emit, out_work->scratch_bytes, tile_vectors);
  if (!tiles) transform_part(winograd);
  multiply_part(winograd);
  if (emit->riding == NULL) finish_part(winograd);
  if (winograd->strip != NULL) strip_pool_part(emit, &winograd->strip_storage);
  emit->quick = emit->riding == NULL;
  if (panels)
    emit_panel_items(winograd);
  else if (winograd->strip != NULL)
    emit_strip_items(winograd);
  else
    emit_block_items(winograd);
  return true;
}
