/* Gradients of filters and matrices from batch-blocked values: dw[k][c][r][s] = Σ over images and places of x·dy.
 *
 * A register tile holds vectors of sums, one lane per image of a block, for some filters × channels × adjacent taps of
 * a row of taps. It goes over a strip of the places, a few rows of one block of images or a few blocks, that stays in
 * the first-level cache while all rows of taps pass over it. A strip's sums begin at 0 and are added to those of the
 * strips before, in the thread's scratch: fewer numbers are added up one after the other, and less is lost to rounding.
 * After the last strip the lanes of every sum are added up, b sums at once. A unit of work is a tile of filters with
 * some channels. It sees all images, in order: the result does not depend on the number of threads. Places whose tap
 * falls outside the image are left out: rows by the bounds of a loop, columns by code of their own. */
#include "batch.h"

#include "base/checked.h"

enum {
  MIN_UNITS = 8, /* for balance between threads */
  MAX_TAPS = 8,  /* adjacent ones in a tile */
  MAX_SUMS = 32
};

/* Tap t of place q reads x at q·stride + t·dilation − padding, when that is from 0 to size − 1. */
typedef struct GradAxis {
  int64_t size, stride, dilation, padding;
  int64_t step; /* elements of x from one position to the next */
} GradAxis;

typedef struct WeightGrad {
  Emit *emit;
  const PlanKernel *kernel;
  const PlanTensor *x, *gradient;
  int32_t lanes;
  int64_t groups, filters, channels; /* of a group */
  int64_t tap_rows, tap_columns;
  int64_t out_height, out_width;
  GradAxis rows, columns;
  int64_t filter_stride, channel_stride, weight_row; /* of the result */
  Split filter_tiles, channel_units, channel_tiles, tap_tiles;
  int64_t strip_blocks, strip_rows;
} WeightGrad;

/* Sums of one register tile, and where it stands. */
typedef struct GradTile {
  int64_t filters, channels, taps;
  int64_t first_tap;
  Value *sums; /* [filter][channel][tap] */
} GradTile;

static int64_t channel_strides(const PlanTensor *tensor, int32_t dim) {
  return tensor->shape.rank > dim ? tensor->storage.stride[dim] : 0;
}

/* --- sizes ------------------------------------------------------------------------------------------- */

static void choose_sizes(WeightGrad *grad) {
  int64_t registers = batch_registers(grad->emit) - 2;
  grad->tap_tiles = split_even(grad->tap_columns, MAX_TAPS < registers / 2 ? MAX_TAPS : registers / 2);
  int64_t taps = grad->tap_tiles.narrow + (grad->tap_tiles.wide > 0);
  /* as square as possible: f·e sums need f + e loads, where e = channels · taps elements of x */
  int64_t best_filters = 1, best_channels = 1;
  double best = 1e30;
  for (int64_t channels = 1; channels <= grad->channels && channels * taps * 2 <= registers; channels++) {
    int64_t filters = (registers - channels * taps) / (channels * taps);
    if (filters < 1) break;
    Split f = split_even(grad->filters, filters), c = split_even(grad->channels, channels);
    double sums = (double)((f.narrow + (f.wide > 0)) * (c.narrow + (c.wide > 0)) * taps);
    double loads = (double)(f.narrow + (f.wide > 0) + (c.narrow + (c.wide > 0)) * taps);
    double cycles = sums / 2 > loads / 2 ? sums / 2 : loads / 2;
    if (cycles < 4) cycles = 4;
    cycles *= (double)(f.tiles * c.tiles);
    if (cycles < best) best = cycles, best_filters = filters, best_channels = channels;
  }
  grad->filter_tiles = split_even(grad->filters, best_filters);
  int64_t units = ceil_div(MIN_UNITS, grad->groups * grad->filter_tiles.tiles);
  int64_t unit_channels = round_up(ceil_div(grad->channels, units), best_channels);
  grad->channel_units = split_even(grad->channels, unit_channels);
  grad->channel_tiles = (Split){.narrow = best_channels};

  int64_t filters = grad->filter_tiles.narrow + (grad->filter_tiles.wide > 0);
  int64_t row = (filters * grad->out_width * grad->lanes + best_channels * grad->rows.stride * grad->rows.step) * 4;
  int64_t rows = grad->emit->target->l1_bytes / 8 * 7 / (row > 0 ? row : 1);
  grad->strip_rows = rows < 1 ? 1 : rows < grad->out_height ? rows : grad->out_height;
  grad->strip_blocks = rows > grad->out_height ? rows / grad->out_height : 1;
  if (grad->kernel->choice.algorithm == ALGORITHM_REFERENCE) grad->strip_rows = grad->strip_blocks = 1;
}

/* --- a tile ------------------------------------------------------------------------------------------ */

static bool tap_inside(const GradAxis *axis, int64_t place, int64_t tap) {
  int64_t at = place * axis->stride + tap * axis->dilation - axis->padding;
  return at >= 0 && at < axis->size;
}

/* `mask` is NULL where all lanes are images: a masked load takes a turn of the multiply-adds' ports.
 * The place in column `column` and those of its taps that are inside (`edge`), or all of them; x is the address of row
 * and column 0 of the strip's row, shifted by the column. */
static void add_place(const WeightGrad *grad, const GradTile *tile, Value x, Value gradient, Value mask, bool edge,
                      int64_t column) {
  Emit *emit = grad->emit;
  const GradAxis *axis = &grad->columns;
  LLVMTypeRef vector = emit_float_type(emit, grad->lanes);
  int64_t x_channel = grad->x->storage.stride[1], gradient_channel = grad->gradient->storage.stride[1];
  Value elements[MAX_SUMS];
  int64_t last = -1;
  for (int64_t c = 0; c < tile->channels; c++)
    for (int64_t t = 0; t < tile->taps; t++) {
      int64_t tap = tile->first_tap + t, i = c * tile->taps + t;
      elements[i] = NULL;
      if (edge && !tap_inside(axis, column, tap)) continue;
      int64_t at = c * x_channel + (tap * axis->dilation - axis->padding) * axis->step;
      elements[i] = emit_load(emit, x, emit_int(emit, at), grad->lanes);
      last = i;
    }
  for (int64_t f = 0; f < tile->filters && last >= 0; f++) {
    Value dy = emit_load(emit, gradient, emit_int(emit, f * gradient_channel), grad->lanes);
    if (mask != NULL) dy = batch_keep(emit, mask, dy, grad->lanes);
    for (int64_t i = 0; i <= last; i++) {
      Value sum = tile->sums[f * tile->channels * tile->taps + i];
      if (elements[i] == NULL) continue;
      Value total = emit_fma(emit, elements[i], dy, emit_get(emit, vector, sum));
      emit_set(emit, sum, batch_in_order(emit, total));
    }
  }
}

static void add_columns(const WeightGrad *grad, const GradTile *tile, Value x, Value gradient, Value mask) {
  Emit *emit = grad->emit;
  const GradAxis *axis = &grad->columns;
  for (int64_t first = 0; first < grad->out_width;) {
    int64_t run = 0;
    for (bool whole = true; whole && first + run < grad->out_width; run += whole)
      for (int64_t t = 0; t < tile->taps; t++) whole = whole && tap_inside(axis, first + run, tile->first_tap + t);
    bool edge = run == 0;
    if (edge) run = 1;
    EmitLoop column = emit_loop_count(emit, run, 1, "column");
    Value at = emit_add_int(emit, column.index, first);
    add_place(grad, tile, emit_address(emit, x, emit_mul_int(emit, at, axis->stride * axis->step)),
              emit_address(emit, gradient, emit_mul_int(emit, at, grad->lanes)), mask, edge, first);
    emit_loop_end(emit, &column);
    first += run;
  }
}

/* Few places: each row of taps and of places has code of its own. */
static bool is_small(const WeightGrad *grad) {
  enum { FEW_PLACES = 4, FEW_TAP_ROWS = 3 };
  return grad->out_height * grad->out_width <= FEW_PLACES && grad->tap_rows <= FEW_TAP_ROWS;
}

typedef struct Strip {
  Value first_block, last_block, first_row, last_row;
} Strip;

/* The rows [begin, end) of the strip at which a row of taps is inside. */
static void inside_rows(const WeightGrad *grad, const Strip *strip, Value tap, Value *out_begin, Value *out_end) {
  Emit *emit = grad->emit;
  const GradAxis *axis = &grad->rows;
  Value zero = emit_int(emit, 0), shift = emit_mul_int(emit, tap, axis->dilation);
  Value before = emit_max(emit, emit_sub(emit, emit_int(emit, axis->padding), shift), zero);
  Value room = emit_max(emit, emit_sub(emit, emit_int(emit, axis->size + axis->padding), shift), zero);
  *out_begin = emit_div_int(emit, emit_add_int(emit, before, axis->stride - 1), axis->stride);
  *out_end = emit_div_int(emit, emit_add_int(emit, room, axis->stride - 1), axis->stride);
  *out_begin = emit_max(emit, *out_begin, strip->first_row);
  *out_end = emit_min(emit, *out_end, strip->last_row);
}

/* x: address of the unit's channel; gradient: of its first filter. */
static void add_strip(const WeightGrad *grad, const GradTile *tile, const Strip *strip, Value x, Value gradient,
                      Value tap_row) {
  Emit *emit = grad->emit;
  const PlanTensor *in = grad->x, *dy = grad->gradient;
  const GradAxis *axis = &grad->rows;
  Value begin, end;
  inside_rows(grad, strip, tap_row, &begin, &end);
  Value shift = emit_add_int(emit, emit_mul_int(emit, tap_row, axis->dilation), -axis->padding);
  x = emit_address(emit, x, emit_mul_int(emit, shift, axis->step));
  EmitLoop block = emit_loop_begin(emit, strip->first_block, strip->last_block, 1, "block");
  Value mask = batch_mask(emit, grad->lanes, block.index);
  Value x_block = emit_mul_int(emit, block.index, in->storage.stride[0]);
  Value dy_block = emit_mul_int(emit, block.index, dy->storage.stride[0]);
  Value images = emit_mul_int(emit, emit_add_int(emit, block.index, 1), grad->lanes);
  EmitIf partial = emit_if(emit, emit_less(emit, emit->batch, images), "partial");
  for (int full = 0; full < 2; full++) {
    /* a few places have code of their own: loops around them would cost more than they do */
    bool apart = is_small(grad) && LLVMIsConstant(begin) && LLVMIsConstant(end);
    int64_t copies = apart ? LLVMConstIntGetSExtValue(end) - LLVMConstIntGetSExtValue(begin) : 1;
    for (int64_t copy = 0; copy < copies; copy++) {
      EmitLoop row = {.index = emit_add_int(emit, begin, copy)};
      if (!apart) row = emit_loop_begin(emit, begin, end, 1, "row");
      Value x_row =
          emit_address(emit, x, emit_add(emit, x_block, emit_mul_int(emit, row.index, axis->stride * axis->step)));
      Value dy_row =
          emit_address(emit, gradient, emit_add(emit, dy_block, emit_mul_int(emit, row.index, channel_strides(dy, 2))));
      add_columns(grad, tile, x_row, dy_row, full ? NULL : mask);
      emit_loop_end(emit, &row);
    }
    if (!full) emit_else(emit, &partial);
  }
  emit_end_if(emit, &partial);
  emit_loop_end(emit, &block);
}

/* --- a unit of work ---------------------------------------------------------------------------------- */

typedef struct GradUnit {
  int64_t filters;   /* of the tile */
  int64_t channels;  /* of the unit */
  Value x, gradient; /* addresses of the unit's first channel and filter, at place 0 */
  Value result;      /* offset of the unit's first weight */
} GradUnit;

/* Elements of scratch from a filter's sums to the next one's, for `channels` channels at a time. */
static int64_t scratch_stride(const WeightGrad *grad, int64_t channels) {
  return channels * grad->tap_rows * grad->tap_columns * grad->lanes;
}

static void begin_sums(const WeightGrad *grad, const GradTile *tile) {
  for (int64_t i = 0; i < tile->filters * tile->channels * tile->taps; i++)
    emit_set(grad->emit, tile->sums[i], emit_float(grad->emit, grad->lanes, 0));
}

/* Adds a strip's sums to those of the strips before, if there are any. */
static void keep_sums(const WeightGrad *grad, const GradTile *tile, Value scratch, bool first) {
  Emit *emit = grad->emit;
  LLVMTypeRef vector = emit_float_type(emit, grad->lanes);
  for (int64_t f = 0; f < tile->filters; f++)
    for (int64_t c = 0; c < tile->channels; c++)
      for (int64_t t = 0; t < tile->taps; t++) {
        int64_t at =
            f * scratch_stride(grad, tile->channels) + (c * grad->tap_rows * grad->tap_columns + t) * grad->lanes;
        Value sum = emit_get(emit, vector, tile->sums[(f * tile->channels + c) * tile->taps + t]);
        if (!first) sum = emit_fadd(emit, sum, emit_load(emit, scratch, emit_int(emit, at), grad->lanes));
        emit_store(emit, scratch, emit_int(emit, at), sum);
      }
}

/* `channels` channels from `channel` on, `taps` taps from `tap` on, of every row of taps. */
static void emit_tap_rows(const WeightGrad *grad, const GradUnit *unit, const Strip *strip, int64_t channels,
                          int64_t taps, Value channel, int64_t tap) {
  Emit *emit = grad->emit;
  GradTile tile = {unit->filters, channels, taps, tap, NULL};
  int64_t count = tile.filters * channels * taps;
  tile.sums = arena_array(emit->arena, (size_t)count, Value);
  for (int64_t i = 0; i < count; i++) tile.sums[i] = emit_variable(emit, emit_float_type(emit, grad->lanes), "sum");
  for (int64_t copy = 0; copy < (is_small(grad) ? grad->tap_rows : 1); copy++) {
    EmitLoop row = {.index = emit_int(emit, copy)};
    if (!is_small(grad)) row = emit_loop_count(emit, grad->tap_rows, 1, "tap_row");
    Value number = emit_add_int(emit, emit_mul_int(emit, row.index, grad->tap_columns), tap);
    Value scratch = emit_address(emit, emit->scratch, emit_mul_int(emit, number, grad->lanes));
    Value zero = emit_int(emit, 0);
    Value first = emit_and(emit, emit_equal(emit, strip->first_block, zero), emit_equal(emit, strip->first_row, zero));
    begin_sums(grad, &tile);
    Value x = emit_address(emit, unit->x, emit_mul_int(emit, channel, grad->x->storage.stride[1]));
    add_strip(grad, &tile, strip, x, unit->gradient, row.index);
    EmitIf begin = emit_if(emit, first, "first_strip");
    keep_sums(grad, &tile, scratch, true);
    emit_else(emit, &begin);
    keep_sums(grad, &tile, scratch, false);
    emit_end_if(emit, &begin);
    emit_loop_end(emit, &row);
  }
}

/* Pieces of a row of taps have code of their own: mostly there is one. */
static void emit_taps(const WeightGrad *grad, const GradUnit *unit, const Strip *strip, int64_t channels,
                      Value channel) {
  const Split *tiles = &grad->tap_tiles;
  int64_t tap = 0;
  for (int64_t i = 0; i < tiles->tiles; i++) {
    int64_t taps = tiles->narrow + (i < tiles->wide);
    emit_tap_rows(grad, unit, strip, channels, taps, channel, tap);
    tap += taps;
  }
}

/* All strips, for `channels` channels from `channel` on. */
static void emit_strips(const WeightGrad *grad, const GradUnit *unit, int64_t channels, Value channel) {
  Emit *emit = grad->emit;
  Value blocks = batch_blocks(emit, grad->lanes), height = emit_int(emit, grad->out_height);
  EmitLoop block = emit_loop_begin(emit, emit_int(emit, 0), blocks, grad->strip_blocks, "strip");
  EmitLoop row = emit_loop_count(emit, grad->out_height, grad->strip_rows, "strip_rows");
  Strip strip = {.first_block = block.index, .first_row = row.index, .last_row = height};
  strip.last_block = emit_min(emit, emit_add_int(emit, block.index, grad->strip_blocks), blocks);
  if (grad->strip_rows < grad->out_height)
    strip.last_row = emit_min(emit, emit_add_int(emit, row.index, grad->strip_rows), height);
  emit_taps(grad, unit, &strip, channels, channel);
  emit_loop_end(emit, &row);
  emit_loop_end(emit, &block);
}

/* `count` ≤ lanes weights from the sums at offset `sums` of the scratch, to `result` there; the store fills a vector.
 */
static void finish_weights(const WeightGrad *grad, Value sums, Value result, int64_t count) {
  enum { MAX_LANES = 64 };
  Emit *emit = grad->emit;
  Value vectors[MAX_LANES];
  for (int64_t i = 0; i < count; i++)
    vectors[i] = emit_load(emit, emit->scratch, emit_add_int(emit, sums, i * grad->lanes), grad->lanes);
  emit_store(emit, emit->scratch, result, batch_sum_lanes(emit, vectors, (int32_t)count, grad->lanes));
}

/* Copies `count` adjacent floats in pieces of falling powers of two. */
static void copy_weights(const WeightGrad *grad, Value from, Value to, int64_t count) {
  Emit *emit = grad->emit;
  int64_t whole = count - count % grad->lanes;
  if (whole > 0) {
    EmitLoop at = emit_loop_count(emit, whole, grad->lanes, "copy");
    Value vector = emit_load(emit, emit->scratch, emit_add(emit, from, at.index), grad->lanes);
    emit_store(emit, emit->output, emit_add(emit, to, at.index), vector);
    emit_loop_end(emit, &at);
  }
  for (int32_t piece = grad->lanes / 2; piece >= 1; piece /= 2) {
    if (((count - whole) & piece) == 0) continue;
    int64_t at = whole + ((count - whole) & ~(int64_t)(2 * piece - 1));
    Value vector = emit_load(emit, emit->scratch, emit_add_int(emit, from, at), piece);
    emit_store(emit, emit->output, emit_add_int(emit, to, at), vector);
  }
}

/* Behind the sums of `channels` channels the scratch has room for what they come to. */
static void finish_channels(const WeightGrad *grad, const GradUnit *unit, int64_t channels, Value channel) {
  Emit *emit = grad->emit;
  int64_t run = channels * grad->tap_rows * grad->tap_columns, count = unit->filters * run;
  int64_t whole = count - count % grad->lanes, results = count * grad->lanes;
  if (whole > 0) {
    EmitLoop at = emit_loop_count(emit, whole, grad->lanes, "weights");
    finish_weights(grad, emit_mul_int(emit, at.index, grad->lanes), emit_add_int(emit, at.index, results), grad->lanes);
    emit_loop_end(emit, &at);
  }
  if (whole < count)
    finish_weights(grad, emit_int(emit, whole * grad->lanes), emit_int(emit, results + whole), count - whole);
  Value result = emit_add(emit, unit->result, emit_mul_int(emit, channel, grad->channel_stride));
  EmitLoop filter = emit_loop_count(emit, unit->filters, 1, "filter");
  copy_weights(grad, emit_add_int(emit, emit_mul_int(emit, filter.index, run), results),
               emit_add(emit, result, emit_mul_int(emit, filter.index, grad->filter_stride)), run);
  emit_loop_end(emit, &filter);
}

static int64_t scratch_bytes(const WeightGrad *grad) {
  int64_t filters = grad->filter_tiles.narrow + (grad->filter_tiles.wide > 0);
  int64_t count = filters * grad->channel_tiles.narrow * grad->tap_rows * grad->tap_columns;
  return (count * grad->lanes + round_up(count, grad->lanes)) * 4;
}

static void emit_unit(const WeightGrad *grad, const GradUnit *unit) {
  Emit *emit = grad->emit;
  int64_t most = grad->channel_tiles.narrow, whole = unit->channels / most * most;
  if (whole > 0) {
    EmitLoop channel = emit_loop_count(emit, whole, most, "channel");
    emit_strips(grad, unit, most, channel.index);
    finish_channels(grad, unit, most, channel.index);
    emit_loop_end(emit, &channel);
  }
  if (whole == unit->channels) return;
  emit_strips(grad, unit, unit->channels - whole, emit_int(emit, whole));
  finish_channels(grad, unit, unit->channels - whole, emit_int(emit, whole));
}

/* The four sizes that a unit may have: tiles of filters and pieces of channels are wide or narrow. */
static void emit_unit_of_size(const WeightGrad *grad, GradUnit *unit, Value filter_tile, Value channel_unit) {
  Emit *emit = grad->emit;
  const Split *filters = &grad->filter_tiles, *channels = &grad->channel_units;
  for (int i = 0; i < 2; i++) {
    if ((i == 0 ? filters->wide : filters->tiles - filters->wide) == 0) continue;
    EmitIf chosen = {NULL, NULL};
    Value wide = emit_less(emit, filter_tile, emit_int(emit, filters->wide));
    if (filters->wide > 0) chosen = emit_if(emit, i == 0 ? wide : LLVMBuildNot(emit->builder, wide, ""), "filters");
    for (int j = 0; j < 2; j++) {
      if ((j == 0 ? channels->wide : channels->tiles - channels->wide) == 0) continue;
      EmitIf inner = {NULL, NULL};
      Value broad = emit_less(emit, channel_unit, emit_int(emit, channels->wide));
      if (channels->wide > 0)
        inner = emit_if(emit, j == 0 ? broad : LLVMBuildNot(emit->builder, broad, ""), "channels");
      unit->filters = filters->narrow + (i == 0);
      unit->channels = channels->narrow + (j == 0);
      emit_unit(grad, unit);
      if (channels->wide > 0) emit_end_if(emit, &inner);
    }
    if (filters->wide > 0) emit_end_if(emit, &chosen);
  }
}

static bool emit_grad(WeightGrad *grad, KernelWork *out_work, Diag *diag) {
  Emit *emit = grad->emit;
  const PlanKernel *kernel = grad->kernel;
  const PlanTensor *in = grad->x, *dy = grad->gradient;
  if (in->layout.kind != LAYOUT_BATCH_BLOCK || dy->layout.kind != LAYOUT_BATCH_BLOCK ||
      kernel->output.layout.kind != LAYOUT_PLAIN || kernel->epilogue_count > 0) {
    diag_error(diag, kernel->location, "'%s': a batch-blocked %s does not take these layouts", kernel->name,
               op_info(kernel->op)->name);
    return false;
  }
  choose_sizes(grad);
  const int64_t extents[3] = {grad->groups, grad->filter_tiles.tiles, grad->channel_units.tiles};
  *out_work = (KernelWork){.items = extents[0] * extents[1] * extents[2], .scratch_bytes = scratch_bytes(grad)};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "unit");
  Value digits[3];
  emit_split(emit, item.index, 3, extents, digits);
  Value filter = split_start(emit, &grad->filter_tiles, digits[1]);
  Value channel = split_start(emit, &grad->channel_units, digits[2]);
  Value all_filters = emit_add(emit, emit_mul_int(emit, digits[0], grad->filters), filter);
  Value x_channel = emit_add(emit, emit_mul_int(emit, digits[0], grad->channels), channel);
  GradUnit unit = {0};
  unit.x = emit_address(emit, emit->inputs[0],
                        emit_add_int(emit, emit_mul_int(emit, x_channel, in->storage.stride[1]), in->storage.origin));
  unit.gradient =
      emit_address(emit, emit->inputs[1],
                   emit_add_int(emit, emit_mul_int(emit, all_filters, dy->storage.stride[1]), dy->storage.origin));
  unit.result = emit_add(emit, emit_mul_int(emit, all_filters, grad->filter_stride),
                         emit_mul_int(emit, channel, grad->channel_stride));
  unit.result = emit_add_int(emit, unit.result, kernel->output.storage.origin);
  emit_unit_of_size(grad, &unit, digits[1], digits[2]);
  emit_loop_end(emit, &item);
  return true;
}

/* Filters whose channels, rows and columns lie next to each other. */
static bool dense_filters(const PlanTensor *out) {
  int64_t step = 1;
  for (int32_t d = out->shape.rank - 1; d >= 1; d--) {
    if (out->storage.stride[d] != step && out->shape.dims[d] != 1) return false;
    step *= out->shape.dims[d];
  }
  return true;
}

bool batch_conv2d_grad_weight(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const Attrs *attrs = &kernel->attrs;
  const PlanTensor *in = &kernel->inputs[0], *dy = &kernel->inputs[1], *out = &kernel->output;
  const int64_t *filter = out->shape.dims, *places = dy->shape.dims, *stride = in->storage.stride;
  if (!dense_filters(out)) {
    diag_error(diag, kernel->location, "'%s': filters are not dense", kernel->name);
    return false;
  }
  WeightGrad grad = {
      .emit = emit,
      .kernel = kernel,
      .x = in,
      .gradient = dy,
      .lanes = batch_block(kernel),
      .groups = attrs->groups,
      .filters = filter[0] / attrs->groups,
      .channels = filter[1],
      .tap_rows = filter[2],
      .tap_columns = filter[3],
      .out_height = places[2],
      .out_width = places[3],
      .rows = {in->shape.dims[2], attrs->stride.values[0], attrs->dilation.values[0], attrs->padding.values[0],
               stride[2]},
      .columns = {in->shape.dims[3], attrs->stride.values[1], attrs->dilation.values[1], attrs->padding.values[1],
                  stride[3]},
      .filter_stride = out->storage.stride[0],
      .channel_stride = filter[2] * filter[3],
  };
  return emit_grad(&grad, out_work, diag);
}

/* x [N,C], dy [N,K]: one tap, one place. */
bool batch_linear_grad_weight(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *out = &kernel->output;
  WeightGrad grad = {
      .emit = emit,
      .kernel = kernel,
      .x = &kernel->inputs[0],
      .gradient = &kernel->inputs[1],
      .lanes = batch_block(kernel),
      .groups = 1,
      .filters = out->shape.dims[0],
      .channels = out->shape.dims[1],
      .tap_rows = 1,
      .tap_columns = 1,
      .out_height = 1,
      .out_width = 1,
      .rows = {.size = 1, .stride = 1, .dilation = 1},
      .columns = {.size = 1, .stride = 1, .dilation = 1},
      .filter_stride = out->storage.stride[0],
      .channel_stride = 1,
  };
  if (!dense_filters(out) || kernel->inputs[0].shape.rank != 2) {
    diag_error(diag, kernel->location, "'%s': batch-blocked linear layers take vectors of images", kernel->name);
    return false;
  }
  return emit_grad(&grad, out_work, diag);
}
