/* convert: the same value in another layout.
 *
 * The layouts that matter differ by a transposition: in a plain tensor neighbours are the columns of one channel (or
 * filter), in a blocked one they are the lanes of a block, that is the same column of b channels. Squares of
 * lanes × lanes numbers are transposed in registers, so that memory is read and written in whole vectors; of weights,
 * which are converted once, squares of 4 × 4 in a loop: LLVM takes long over the many shuffles of a large one. Lanes
 * behind the last channel are filled with zeros.
 *
 * The rows of an image are one long row wherever the output's follow each other without gaps, so that squares are not
 * cut short by narrow images and whole cache lines are written: gaps of the input are stepped over column by column.
 * What is written to plain memory is as a rule a result for the caller, which was last touched a run ago: it is in no
 * near cache, and a store needs its line. So the lines are asked for some squares ahead; without that the stores of one
 * square wait for those of the one before. */
#include <assert.h>

#include "base/checked.h"
#include "conv.h"
#include "move.h"
#include "winograd_transform.h"

enum {
  MAX_LANES = 16,
  COMPACT_SIDE = 4,
  CHUNK_COLUMNS = 256, /* in one work item: of an image's pixels or a filter's elements */
  LINE_COLUMNS = 16,   /* a cache line of plain memory */
  AHEAD_COLUMNS = 4 * LINE_COLUMNS
};

/* A stripe: `block` adjacent lanes on one side, rows `row_stride` apart on the other, along columns. */
typedef struct Stripe {
  int32_t block;
  int32_t valid;        /* lanes that exist; the others are zero, or of the next column where channels are last */
  int64_t step;         /* blocked: from column to column; the block, or all channels */
  Value blocked, plain; /* offsets of column 0, lane 0 */
  int64_t row_stride;   /* plain: from lane to lane */
  int64_t columns;      /* plain: adjacent; blocked: `step` apart */
  int64_t chunks;       /* of columns, for as many work items */
  int64_t width, gap;   /* blocked: behind every `width` columns are `gap` elements that belong to none */
  int64_t ahead;        /* how far in front of what is written to plain memory lines are fetched; 0: they are not */
  bool to_blocked;      /* the direction */
  bool compact;         /* short code rather than fast code */
} Stripe;

/* At the step of width w, the w × w squares off the diagonal of each 2w × 2w square change places. */
void move_transpose(Emit *emit, Value *rows, int32_t lanes) {
  for (int32_t width = 1; width < lanes; width *= 2) {
    Value upper[MAX_LANES], lower[MAX_LANES];
    for (int32_t k = 0; k < lanes; k++) {
      bool second = (k & width) != 0;
      upper[k] = LLVMConstInt(emit->i32, (unsigned)(second ? lanes + k - width : k), 0);
      lower[k] = LLVMConstInt(emit->i32, (unsigned)(second ? lanes + k : k + width), 0);
    }
    Value upper_mask = LLVMConstVector(upper, (unsigned)lanes), lower_mask = LLVMConstVector(lower, (unsigned)lanes);
    for (int32_t i = 0; i < lanes; i++) {
      if (i & width) continue;
      Value a = rows[i], b = rows[i + width];
      rows[i] = LLVMBuildShuffleVector(emit->builder, a, b, upper_mask, "");
      rows[i + width] = LLVMBuildShuffleVector(emit->builder, a, b, lower_mask, "");
    }
  }
}

/* Offset of lane 0 of a column. */
static Value blocked_column(Emit *emit, const Stripe *stripe, Value column) {
  Value offset = emit_add(emit, stripe->blocked, emit_mul_int(emit, column, stripe->step));
  if (stripe->gap == 0) return offset;
  return emit_add(emit, offset, emit_mul_int(emit, emit_div_int(emit, column, stripe->width), stripe->gap));
}

/* Columns [column, column + side), lanes [first, first + side) of the block, of which the first `valid` exist. */
static void convert_square(Emit *emit, const Stripe *stripe, Value column, Value first, int32_t side, int32_t valid) {
  Value rows[MAX_LANES], blocked[MAX_LANES];
  Value plain = emit_add(emit, emit_add(emit, stripe->plain, column), emit_mul_int(emit, first, stripe->row_stride));
  assert(side <= MAX_LANES);
  for (int32_t i = 0; i < side; i++) {
    blocked[i] = stripe->gap == 0 && i > 0
                     ? emit_add_int(emit, blocked[0], (int64_t)i * stripe->step)
                     : emit_add(emit, blocked_column(emit, stripe, emit_add_int(emit, column, i)), first);
    if (!stripe->to_blocked) {
      rows[i] = emit_load(emit, emit->inputs[0], blocked[i], side);
    } else if (i < valid) {
      rows[i] = emit_load(emit, emit->inputs[0], emit_add_int(emit, plain, i * stripe->row_stride), side);
    } else {
      rows[i] = emit_float(emit, side, 0);
    }
  }
  for (int32_t i = 0; i < side && i < valid && stripe->ahead > 0 && 2 * side >= LINE_COLUMNS; i++)
    emit_prefetch_line(emit, emit->output, emit_add_int(emit, plain, i * stripe->row_stride + stripe->ahead), true);
  move_transpose(emit, rows, side);
  for (int32_t i = 0; i < side; i++) {
    if (stripe->to_blocked)
      emit_store(emit, emit->output, blocked[i], rows[i]);
    else if (i < valid)
      emit_store(emit, emit->output, emit_add_int(emit, plain, i * stripe->row_stride), rows[i]);
  }
}

/* Lanes [first, end) of one column, number by number. */
static void convert_column(Emit *emit, const Stripe *stripe, Value column, int32_t first, int32_t end) {
  Value blocked = blocked_column(emit, stripe, column), plain = emit_add(emit, stripe->plain, column);
  for (int32_t i = first; i < end; i++) {
    Value lane = emit_add_int(emit, blocked, i), element = emit_add_int(emit, plain, i * stripe->row_stride);
    Value from = stripe->to_blocked ? element : lane, to = stripe->to_blocked ? lane : element;
    Value value = i < stripe->valid ? emit_load(emit, emit->inputs[0], from, 1) : emit_float(emit, 1, 0);
    emit_store(emit, emit->output, to, value);
  }
}

static int32_t largest_square(const Emit *emit, int64_t lanes, int64_t columns) {
  int32_t side = emit->target->vector_lanes;
  while (side > lanes || side > columns) side /= 2;
  return side;
}

/* The same where nothing may be written behind the last lane: squares become smaller towards it. */
static void convert_pixels(Emit *emit, const Stripe *stripe, Value begin, Value end) {
  for (int32_t first = 0, side; first < stripe->valid; first += side) {
    side = largest_square(emit, stripe->valid - first, stripe->columns);
    if (side < COMPACT_SIDE) {
      side = stripe->valid - first < COMPACT_SIDE ? stripe->valid - first : COMPACT_SIDE;
      EmitLoop column = emit_loop_begin(emit, begin, end, 1, "column");
      convert_column(emit, stripe, column.index, first, first + side);
      emit_loop_end(emit, &column);
      continue;
    }
    EmitLoop square = emit_loop_begin(emit, begin, end, side, "square");
    Value column = emit_min(emit, square.index, emit_add_int(emit, end, -side));
    convert_square(emit, stripe, column, emit_int(emit, first), side, side);
    emit_loop_end(emit, &square);
  }
}

/* Columns [begin, end) of a stripe. A last square that would leave [0, columns) moves back over the one before it;
 * the caller sees to it that both belong to the same work item: [begin, end) has at least as many columns as a
 * vector has lanes, or is all there are. Rows shorter than a vector take smaller squares. */
static void convert_stripe(Emit *emit, const Stripe *stripe, Value begin, Value end) {
  int32_t lanes = emit->target->vector_lanes;
  if (stripe->step != stripe->block) {
    convert_pixels(emit, stripe, begin, end);
    return;
  }
  int32_t side = stripe->compact && lanes > COMPACT_SIDE ? COMPACT_SIDE : lanes;
  while (side > COMPACT_SIDE && stripe->columns < side) side /= 2; /* short rows: 14 columns are two squares of 8 */
  if (stripe->columns < side || stripe->block % side != 0) {
    EmitLoop column = emit_loop_begin(emit, begin, end, 1, "column");
    convert_column(emit, stripe, column.index, 0, stripe->to_blocked ? stripe->block : stripe->valid);
    emit_loop_end(emit, &column);
    return;
  }
  EmitLoop square = emit_loop_begin(emit, begin, end, side, "square");
  Value column = emit_min(emit, square.index, emit_add_int(emit, end, -side));
  int32_t stop = stripe->to_blocked ? stripe->block : stripe->valid, first = 0;
  if (stripe->compact && stripe->valid >= side) {
    first = stripe->valid / side * side;
    EmitLoop part = emit_loop_count(emit, first, side, "part");
    convert_square(emit, stripe, column, part.index, side, side);
    emit_loop_end(emit, &part);
  }
  for (; first < stop; first += side)
    convert_square(emit, stripe, column, emit_int(emit, first), side, stripe->valid - first);
  emit_loop_end(emit, &square);
}

/* The stripe of block `block`, of which the last may have less lanes: the case is known when code is made. */
static void convert_block(Emit *emit, Stripe *stripe, Value block, int64_t count, Value begin, Value end) {
  int64_t blocks = (count + stripe->block - 1) / stripe->block;
  int32_t rest = (int32_t)(count - (blocks - 1) * stripe->block);
  stripe->valid = stripe->block;
  if (rest == stripe->block) {
    convert_stripe(emit, stripe, begin, end);
    return;
  }
  EmitIf whole = {NULL, NULL};
  if (blocks > 1) {
    whole = emit_if(emit, emit_less(emit, block, emit_int(emit, blocks - 1)), "whole");
    convert_stripe(emit, stripe, begin, end);
    emit_else(emit, &whole);
  }
  stripe->valid = rest;
  convert_stripe(emit, stripe, begin, end);
  if (blocks > 1) emit_end_if(emit, &whole);
}

/* --- chunks ------------------------------------------------------------------------------------------ */

static int64_t column_chunks(int64_t columns) { return columns < CHUNK_COLUMNS ? 1 : columns / CHUNK_COLUMNS; }

/* The columns of a chunk. The last one takes the rest, so that none is shorter than a vector. */
static void chunk_columns(Emit *emit, const Stripe *stripe, Value chunk, Value *out_begin, Value *out_end) {
  *out_begin = emit_int(emit, 0);
  *out_end = emit_int(emit, stripe->columns);
  if (stripe->chunks == 1) return;
  *out_begin = emit_mul_int(emit, chunk, CHUNK_COLUMNS);
  *out_end = emit_select(emit, emit_less(emit, chunk, emit_int(emit, stripe->chunks - 1)),
                         emit_add_int(emit, *out_begin, CHUNK_COLUMNS), *out_end);
}

/* --- images ------------------------------------------------------------------------------------------ */

static bool has_halo(const PlanTensor *tensor) {
  const int32_t *halo = tensor->storage.halo;
  return halo[0] > 0 || halo[1] > 0 || halo[2] > 0 || halo[3] > 0;
}

/* Of all pixels of an image, or of one row: a halo of the output is written row by row, once. */
static Stripe image_stripe(const Emit *emit, const PlanTensor *in, const PlanTensor *out) {
  bool to_blocked = out->layout.kind != LAYOUT_PLAIN;
  const PlanTensor *blocked = to_blocked ? out : in, *plain = to_blocked ? in : out;
  const int64_t height = out->shape.dims[2], width = out->shape.dims[3];
  const bool last = blocked->layout.kind == LAYOUT_CHANNEL_LAST;
  Stripe stripe = {.block = last ? emit->target->vector_lanes : blocked->layout.block,
                   .row_stride = plain->storage.stride[1],
                   .to_blocked = to_blocked};
  stripe.step = last ? blocked->storage.stride[3] : stripe.block;
  stripe.columns = stripe.width = width;
  stripe.chunks = 1;
  if (!has_halo(out)) {
    if (plain->storage.stride[2] == width) {
      stripe.columns *= height;
      stripe.gap = height > 1 ? blocked->storage.stride[2] - width * stripe.step : 0;
    }
    stripe.chunks = column_chunks(stripe.columns);
  }
  /* an image that is one chunk is followed by those of the next block */
  if (!to_blocked) stripe.ahead = stripe.chunks > 1 ? AHEAD_COLUMNS : stripe.block * stripe.row_stride;
  return stripe;
}

static bool convert_image(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims;
  Stripe stripe = image_stripe(emit, in, out);
  const PlanTensor *blocked = stripe.to_blocked ? out : in;
  int64_t blocks = (dims[1] + stripe.block - 1) / stripe.block, chunks = stripe.chunks;
  int64_t rows = stripe.columns == dims[2] * dims[3] ? 1 : dims[2];

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[4], index[SHAPE_MAX_RANK] = {NULL}, begin, end;
  emit_split(emit, item.index, 4, (int64_t[]){1, blocks, rows, chunks}, digit);
  index[0] = digit[0], index[1] = digit[1], index[2] = digit[2];
  if (stripe.to_blocked) conv_halo(emit, out, index[0], index[1], index[2]);
  index[1] = conv_channel_index(emit, blocked, digit[1], stripe.block);
  stripe.blocked = emit_offset(emit, blocked, index);
  index[1] = emit_mul_int(emit, digit[1], stripe.block);
  stripe.plain = emit_offset(emit, stripe.to_blocked ? in : out, index);
  chunk_columns(emit, &stripe, digit[3], &begin, &end);
  convert_block(emit, &stripe, digit[1], dims[1], begin, end);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], blocks * rows * chunks);
  return true;
}

/* Elements [first, end) of a group of channels from one place to the other. */
static void move_single(Emit *emit, Value from, Value to, int64_t first, int64_t end) {
  for (int64_t i = first; i < end; i++)
    emit_store(emit, emit->output, emit_add_int(emit, to, i),
               emit_load(emit, emit->inputs[0], emit_add_int(emit, from, i), 1));
}

/* Channels lie together in both, in blocks of any sizes or last. What moves is a group of a pixel's channels that is
 * within a block of both. Items are rows. */
static void convert_groups(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims;
  const bool last = out->layout.kind == LAYOUT_CHANNEL_LAST;
  int32_t group =
      last || (in->layout.block > 0 && in->layout.block < out->layout.block) ? in->layout.block : out->layout.block;
  const int64_t padded = last ? dims[1] : round_up(dims[1], out->layout.block);
  const int64_t full = dims[1] / group, rest = dims[1] % group;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], index[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (int64_t[]){1, dims[2]}, digit);
  EmitLoop block = emit_loop_count(emit, last ? 1 : padded / out->layout.block, 1, "halo_block");
  conv_halo(emit, out, digit[0], block.index, digit[1]);
  emit_loop_end(emit, &block);
  index[0] = digit[0], index[2] = digit[1];
  EmitLoop unit = emit_loop_begin(emit, emit_int(emit, 0), emit_int(emit, full), 1, "group");
  EmitLoop x = emit_loop_count(emit, dims[3], 1, "x");
  index[1] = emit_mul_int(emit, unit.index, group), index[3] = x.index;
  emit_store(emit, emit->output, emit_offset_element(emit, out, index),
             emit_load(emit, emit->inputs[0], emit_offset_element(emit, in, index), group));
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &unit);
  if (full * group < padded) {
    EmitLoop column = emit_loop_count(emit, dims[3], 1, "x");
    index[1] = emit_int(emit, full * group), index[3] = column.index;
    Value to = emit_offset_element(emit, out, index);
    if (rest > 0) move_single(emit, emit_offset_element(emit, in, index), to, 0, rest);
    for (int64_t i = rest; i < padded - full * group; i++)
      emit_store(emit, emit->output, emit_add_int(emit, to, i), emit_float(emit, 1, 0));
    emit_loop_end(emit, &column);
  }
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], dims[2]);
}

/* --- weights ----------------------------------------------------------------------------------------- */

/* Filters and matrices: [K] rows of elements without gaps become blocks of K. */
static bool convert_filter(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  Stripe stripe = {.block = out->layout.block,
                   .step = out->layout.block,
                   .row_stride = in->storage.stride[0],
                   .columns = 1,
                   .to_blocked = true,
                   .compact = true};
  for (int32_t d = 1; d < out->shape.rank; d++) stripe.columns *= out->shape.dims[d];
  stripe.chunks = column_chunks(stripe.columns);
  int64_t filters = out->shape.dims[0], blocks = (filters + stripe.block - 1) / stripe.block;

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], index[SHAPE_MAX_RANK] = {NULL}, begin, end;
  emit_split(emit, item.index, 2, (int64_t[]){blocks, stripe.chunks}, digit);
  index[0] = digit[0];
  stripe.blocked = emit_offset(emit, out, index);
  index[0] = emit_mul_int(emit, digit[0], stripe.block);
  stripe.plain = emit_offset(emit, in, index);
  chunk_columns(emit, &stripe, digit[1], &begin, &end);
  convert_block(emit, &stripe, digit[0], filters, begin, end);
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = blocks * stripe.chunks};
  return true;
}

static bool filter_is_dense(const PlanTensor *in, const PlanTensor *out) {
  int64_t step = out->layout.block;
  for (int32_t d = out->shape.rank - 1; d >= 1; d--) {
    if (out->storage.stride[d] != step && out->shape.dims[d] != 1) return false;
    step *= out->shape.dims[d];
  }
  return move_is_dense(in, 1);
}

static bool convert_vector(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  int64_t count = out->shape.dims[0], padded = (count + out->layout.block - 1) / out->layout.block * out->layout.block;
  Value start[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value to = emit_offset(emit, out, start);
  move_run(emit, emit_offset(emit, in, start), to, emit_int(emit, 0), emit_int(emit, count));
  for (int64_t i = count; i < padded; i++)
    emit_store(emit, emit->output, emit_add_int(emit, to, i), emit_float(emit, 1, 0));
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = 1};
  return true;
}

/* --- everything else --------------------------------------------------------------------------------- */

static int32_t split_of(const PlanTensor *tensor) {
  return tensor->layout.block == 0 ? -1 : tensor->layout.kind == LAYOUT_CHANNEL_BLOCK ? 1 : 0;
}

/* Any two layouts, number by number. An item is an index (or block) of the first two dimensions. */
static bool convert_any(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  int32_t rank = out->shape.rank, split = split_of(out), block = emit_lane_block(out);
  int64_t extents[SHAPE_MAX_RANK] = {1, 1};
  for (int32_t d = 0; d < rank; d++)
    extents[d] = d == split ? (out->shape.dims[d] + block - 1) / block : out->shape.dims[d];

  Value index[SHAPE_MAX_RANK] = {NULL}, element[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item"), inner[SHAPE_MAX_RANK];
  emit_split(emit, item.index, 2, extents, index);
  for (int32_t d = 2; d < rank; d++) {
    if (d == 3) emit_halo(emit, index[0], index[1], index[2]);
    inner[d] = emit_loop_count(emit, extents[d], 1, "inner");
    index[d] = inner[d].index;
  }
  EmitLoop lane = emit_loop_count(emit, block, 1, "lane");
  for (int32_t d = 0; d < rank; d++) element[d] = index[d];
  if (split >= 0) element[split] = emit_add(emit, emit_mul_int(emit, index[split], block), lane.index);
  Value to = emit_add(emit, emit_offset(emit, out, index), lane.index);
  bool padded = split >= 0 && out->shape.dims[split] % block != 0;
  EmitIf exists = {NULL, NULL};
  if (padded) exists = emit_if(emit, emit_less(emit, element[split], emit_int(emit, out->shape.dims[split])), "exists");
  emit_store(emit, emit->output, to, emit_load(emit, emit->inputs[0], emit_offset_element(emit, in, element), 1));
  if (padded) {
    emit_else(emit, &exists);
    emit_store(emit, emit->output, to, emit_float(emit, 1, 0));
    emit_end_if(emit, &exists);
  }
  emit_loop_end(emit, &lane);
  for (int32_t d = rank - 1; d >= 2; d--) emit_loop_end(emit, &inner[d]);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(extents[0], extents[1]);
  return true;
}

bool cpu_convert(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  LayoutKind from = in->layout.kind, to = out->layout.kind;
  const bool images = from == LAYOUT_PLAIN || from == LAYOUT_CHANNEL_BLOCK || from == LAYOUT_CHANNEL_LAST;
  if (from == to && in->layout.block == out->layout.block && images) {
    move_rows(emit, kernel, out_work);
    return true;
  }
  if (out->dtype != DTYPE_F32 || kernel->epilogue_count > 0) {
    diag_error(diag, kernel->location, "'%s': convert between layouts takes f32 values without an epilogue",
               kernel->name);
    return false;
  }
  if (layout_is_winograd(to)) return winograd_convert(emit, kernel, out_work, diag);
  if (layout_parts(kernel->output.layout) > 0 || to == LAYOUT_FILTER_TILES)
    return cpu_convert_tiles(emit, kernel, out_work, diag);
  const bool from_channels = from == LAYOUT_CHANNEL_BLOCK || from == LAYOUT_CHANNEL_LAST;
  const bool to_channels = to == LAYOUT_CHANNEL_BLOCK || to == LAYOUT_CHANNEL_LAST;
  if (from_channels && to_channels) {
    convert_groups(emit, kernel, out_work);
    return true;
  }
  bool blocks = from == LAYOUT_PLAIN && to_channels;
  bool unblocks = from_channels && to == LAYOUT_PLAIN && !has_halo(out);
  const Storage *plain = blocks ? &in->storage : &out->storage;
  if ((blocks || unblocks) && plain->stride[3] == 1) return convert_image(emit, kernel, out_work);
  if (from == LAYOUT_PLAIN && (to == LAYOUT_FILTER_BLOCK || to == LAYOUT_MATRIX_BLOCK) && filter_is_dense(in, out))
    return convert_filter(emit, kernel, out_work);
  if (from == LAYOUT_PLAIN && to == LAYOUT_VECTOR_BLOCK && in->storage.stride[0] == 1)
    return convert_vector(emit, kernel, out_work);
  return convert_any(emit, kernel, out_work);
}
