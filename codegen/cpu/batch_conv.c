/* Convolutions, their gradients with respect to the image, and linear layers on batch-blocked values. Sums are f32 in
 * runs (see run_channels), or, with ALGORITHM_REFERENCE, double.
 *
 * All are the same nest: sums over channels and taps of one image element, a vector of b images, times one number of
 * the plain filter. A register tile holds sums for some filters × adjacent columns; an element is loaded once for all
 * filters, a number once for all columns. The gradient with respect to the image is taken stride by stride: image rows
 * and columns that leave the same remainder meet the same taps, so that each class is a convolution of its own without
 * wasted taps. Taps that fall outside the source are left out: rows by the bounds of a loop, columns because tiles at
 * the edges have code of their own. In small images that saves up to half of the work, and no halo is needed. */
#include "batch.h"

#include <math.h>

#include "base/checked.h"
#include "wide.h"
#include "work.h"

enum { MAX_TAP_COLUMNS = 64, MIN_UNITS = 8 /* of a block, for balance between threads */ };

/* The nest, whatever the op. Strides in elements; "source" is what is summed over, the first operand. */
typedef struct Nest {
  Emit *emit;
  const PlanKernel *kernel;
  int32_t lanes;
  const PlanTensor *source;
  int64_t groups, filters, depth;    /* outputs and summed channels of a group */
  int64_t filter_stride;             /* of the weights: from an output to the next */
  int64_t depth_stride;              /* from a summed channel to the next */
  int64_t group_stride;              /* from a group to the next */
  int64_t row_stride, column_stride; /* of the source */
  int64_t out_height, out_width;
  Split tiles; /* of a group's filters */
  int64_t columns_most;
  bool wide; /* sums are doubles */
  PlaneMoments moments;
} Nest;

/* Along one axis: tap t of output q of a class reads the source at q·scale + first + t·delta, when that is inside. */
typedef struct TapAxis {
  int64_t outputs, taps, size; /* size: of the source */
  int64_t scale, first, delta;
  int64_t weight;              /* elements of the weights from a tap to the next one */
  int64_t out_first, out_step; /* output q of the class is output out_first + q·out_step of all */
} TapAxis;

typedef struct Class {
  TapAxis rows, columns;
  int64_t weight_first; /* of the first tap */
} Class;

/* At the edges the first column is known when code is made; inside, all taps of all columns are. */
typedef struct Tile {
  int64_t filters, columns;
  bool edge;
  int64_t first; /* at an edge: number of the first column within its class */
  Value *sums;   /* [filter][column] */
  Value starts;  /* i1: it is the first one of its rows; NULL: it is not */
} Tile;

/* --- sums -------------------------------------------------------------------------------------------- */

static LLVMTypeRef sum_type(const Nest *nest) {
  return nest->wide ? wide_type(nest->emit, nest->lanes) : emit_float_type(nest->emit, nest->lanes);
}

/* A float or a vector of them as sums take it. */
static Value as_term(const Nest *nest, Value value, int32_t lanes) {
  return nest->wide ? wide_from_float(nest->emit, value, lanes) : value;
}

static Value splat_number(const Nest *nest, Value number) {
  return nest->wide ? wide_splat(nest->emit, as_term(nest, number, 1), nest->lanes)
                    : emit_splat(nest->emit, number, nest->lanes);
}

/* Registers of so many sums or terms. */
static int64_t sum_registers(const Nest *nest) { return batch_registers(nest->emit) / (nest->wide ? 2 : 1); }

/* --- tiles ------------------------------------------------------------------------------------------- */

/* Cycles for a tap of all tiles, on a machine with two multiply-adds and two loads a cycle and a latency of four. */
static double tile_cost(int64_t filters, int64_t columns, int64_t filter_limit, int64_t column_limit) {
  Split f = split_even(filters, filter_limit), c = split_even(columns, column_limit);
  double cost = 0;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) {
      double wide = (double)(f.narrow + (i == 0)), long_ = (double)(c.narrow + (j == 0));
      double times = (double)(i == 0 ? f.wide : f.tiles - f.wide) * (double)(j == 0 ? c.wide : c.tiles - c.wide);
      cost += times * fmax(fmax(wide * long_ / 2, (wide + long_) / 2), 4);
    }
  return cost;
}

static void choose_tiles(Nest *nest, int64_t columns) {
  enum { COLUMNS_LIMIT = 8 };
  int64_t registers = sum_registers(nest) - 2;
  double best = INFINITY;
  for (int64_t c = 1; c <= COLUMNS_LIMIT; c++) {
    int64_t f = registers / c - 1; /* f·c sums and c elements */
    if (f < 1) break;
    double cost = tile_cost(nest->filters, columns, f, c) * (1 + 0.002 * (double)c);
    if (cost >= best) continue;
    best = cost;
    nest->columns_most = c;
    nest->tiles = split_even(nest->filters, f);
  }
}

/* --- a tile ------------------------------------------------------------------------------------------ */

static bool tap_inside(const TapAxis *axis, int64_t output, int64_t tap) {
  int64_t at = output * axis->scale + axis->first + tap * axis->delta;
  return at >= 0 && at < axis->size;
}

static bool all_inside(const TapAxis *axis, int64_t first, int64_t count) {
  for (int64_t output = first; output < first + count; output++)
    for (int64_t tap = 0; tap < axis->taps; tap++)
      if (!tap_inside(axis, output, tap)) return false;
  return true;
}

/* The taps [begin, end) of output `at` that are inside. */
static void inside_taps(Emit *emit, const TapAxis *axis, Value at, Value *out_begin, Value *out_end) {
  *out_begin = emit_int(emit, 0);
  *out_end = emit_int(emit, axis->taps);
  if (all_inside(axis, 0, axis->outputs)) return;
  /* distances to go to the first inside place and to the last one, in the direction of the taps */
  int64_t step = axis->delta > 0 ? axis->delta : -axis->delta;
  Value zero = emit_int(emit, 0), place = emit_add_int(emit, emit_mul_int(emit, at, axis->scale), axis->first);
  Value above = emit_sub(emit, emit_int(emit, axis->size - 1), place);
  Value before = axis->delta > 0 ? emit_sub(emit, zero, place) : emit_sub(emit, zero, above);
  Value after = axis->delta > 0 ? above : place;
  *out_begin = emit_div_int(emit, emit_add_int(emit, emit_max(emit, before, zero), step - 1), step);
  Value count = emit_div_int(emit, emit_max(emit, emit_add_int(emit, after, step), zero), step);
  *out_end = emit_min(emit, count, emit_int(emit, axis->taps));
}

/* Whether there are registers for all elements that a row of taps reads beside the sums. */
static bool elements_fit(const Nest *nest, const TapAxis *axis, const Tile *tile) {
  int64_t span =
      (tile->columns - 1) * axis->scale + (axis->taps - 1) * (axis->delta > 0 ? axis->delta : -axis->delta) + 1;
  return tile->filters * tile->columns + span + 1 <= sum_registers(nest);
}

/* One row of taps of one channel, `source` being the address of the tile's first column in the source without its
 * shift. Neighbouring outputs share elements: each is loaded once, if there is room. */
static void add_tap_row(const Nest *nest, const TapAxis *axis, const Tile *tile, Value source, Value weights) {
  Emit *emit = nest->emit;
  int64_t known[MAX_TAP_COLUMNS];
  Value elements[MAX_TAP_COLUMNS];
  int count = 0;
  const bool share = elements_fit(nest, axis, tile);
  for (int64_t tap = 0; tap < axis->taps; tap++) {
    if (!share) count = 0;
    Value pixels[MAX_TAP_COLUMNS];
    int64_t last = -1;
    for (int64_t column = 0; column < tile->columns; column++) {
      if (tile->edge && !tap_inside(axis, tile->first + column, tap)) continue;
      last = column;
    }
    for (int64_t column = 0; column <= last; column++) {
      if (tile->edge && !tap_inside(axis, tile->first + column, tap)) {
        pixels[column] = NULL;
        continue;
      }
      int64_t at = column * axis->scale + tap * axis->delta + axis->first;
      int i = 0;
      while (i < count && known[i] != at) i++;
      if (i == count) {
        if (count == MAX_TAP_COLUMNS) i = count = 0;
        known[i] = at;
        Value element = emit_load(emit, source, emit_int(emit, at * nest->column_stride), nest->lanes);
        elements[i] = as_term(nest, element, nest->lanes);
        count++;
      }
      pixels[column] = elements[i];
    }
    for (int64_t filter = 0; filter < tile->filters && last >= 0; filter++) {
      Value number = emit_load(emit, weights, emit_int(emit, filter * nest->filter_stride + tap * axis->weight), 1);
      number = splat_number(nest, number);
      for (int64_t column = 0; column <= last; column++) {
        Value sum = tile->sums[filter * tile->columns + column];
        if (pixels[column] == NULL) continue;
        Value total = emit_fma(emit, pixels[column], number, emit_get(emit, sum_type(nest), sum));
        emit_set(emit, sum, nest->wide ? total : batch_in_order(emit, total));
      }
    }
  }
}

/* Whether the weights pass through the second-level cache rather than stay there: then all blocks of images use a
 * tile's before the next ones are fetched. */
static bool weights_are_large(const Nest *nest) {
  return work_weights_first(&nest->kernel->inputs[1].shape, nest->emit->target->l2_bytes);
}

/* The numbers of a tile lie together, but far from those of the next channel: too far for the processor to guess. */
static void prefetch_weights(const Nest *nest, const Tile *tile, Value numbers) {
  enum { LINE = 16, AHEAD = 4 /* channels */ };
  int64_t span = tile->filters * nest->filter_stride;
  if (!weights_are_large(nest) || nest->depth_stride < 2 * span) return;
  for (int64_t at = 0; at < span + LINE - 1; at += LINE)
    emit_prefetch_line(nest->emit, numbers, emit_int(nest->emit, AHEAD * nest->depth_stride + at), true);
}

static void start_sums(const Nest *nest, const Tile *tile, Value first_filter) {
  Emit *emit = nest->emit;
  bool biased = nest->kernel->op_input_count > 2;
  for (int64_t filter = 0; filter < tile->filters; filter++) {
    Value start = emit_float(emit, 1, 0);
    if (biased) {
      Value at = emit_add_int(emit, first_filter, filter);
      start = emit_load(emit, emit->inputs[2], emit_offset(emit, &nest->kernel->inputs[2], &at), 1);
    }
    start = splat_number(nest, start);
    for (int64_t column = 0; column < tile->columns; column++)
      emit_set(emit, tile->sums[filter * tile->columns + column], start);
  }
}

/* A sum of n numbers, one after the other, errs by about √(n/2) roundings; sums of runs of √n, and then of the runs, by
 * the fourth root of that. Runs are at least so long that adding them to the totals costs little beside: images feel
 * the rounding of all layers before them, gradients mostly that of the images. Returns how many channels a run has. */
static int64_t run_channels(const Nest *nest, const Class *class) {
  enum { TERMS_OF_IMAGES = 16, TERMS_OF_GRADIENTS = 64 };
  if (nest->wide) return nest->depth;
  const double least_terms = nest->kernel->op == OP_CONV_TRANSPOSE2D ? TERMS_OF_GRADIENTS : TERMS_OF_IMAGES;
  const int64_t taps = class->rows.taps * class->columns.taps;
  const double terms = fmax(least_terms, sqrt((double)(nest->depth * taps)));
  const int64_t least = ceil_div((int64_t)terms, taps);
  for (int64_t run = least; run < 2 * least; run++)
    if (nest->depth % run == 0) return run;
  return least < nest->depth ? least : nest->depth;
}

/* Room for a tile's totals. */
static int64_t scratch_bytes(const Nest *nest) {
  return (nest->tiles.narrow + (nest->tiles.wide > 0)) * nest->columns_most * nest->lanes * (int64_t)sizeof(float);
}

static Value total_at(const Nest *nest, int64_t i) { return emit_int(nest->emit, i * nest->lanes); }

/* The sums become the totals, in the thread's scratch memory, and begin anew. */
static void begin_run(const Nest *nest, const Tile *tile) {
  Emit *emit = nest->emit;
  for (int64_t i = 0; i < tile->filters * tile->columns; i++) {
    Value sum = emit_get(emit, emit_float_type(emit, nest->lanes), tile->sums[i]);
    emit_store(emit, emit->scratch, total_at(nest, i), sum);
    emit_set(emit, tile->sums[i], emit_float(emit, nest->lanes, 0));
  }
}

static void add_totals(const Nest *nest, const Tile *tile) {
  Emit *emit = nest->emit;
  for (int64_t i = 0; i < tile->filters * tile->columns; i++) {
    Value total = emit_load(emit, emit->scratch, total_at(nest, i), nest->lanes);
    Value sum = emit_get(emit, emit_float_type(emit, nest->lanes), tile->sums[i]);
    emit_set(emit, tile->sums[i], emit_fadd(emit, sum, total));
  }
}

/* `source` is the address of row 0, column of the tile; `row` the number of the output row within its class. */
static void add_taps(const Nest *nest, const Class *class, const Tile *tile, Value source, Value weights, Value row) {
  Emit *emit = nest->emit;
  const TapAxis *rows = &class->rows;
  if (rows->taps == 0 || class->columns.taps == 0) return;
  Value begin, end;
  inside_taps(emit, rows, row, &begin, &end);
  Value place = emit_add_int(emit, emit_mul_int(emit, row, rows->scale), rows->first);
  source = emit_address(emit, source, emit_mul_int(emit, place, nest->row_stride));
  const int64_t length = run_channels(nest, class);
  EmitLoop run = emit_loop_count(emit, nest->depth, length, "run");
  Value later = emit_less(emit, emit_int(emit, 0), run.index);
  EmitIf begin_later = emit_if(emit, later, "later_run");
  begin_run(nest, tile);
  emit_end_if(emit, &begin_later);
  Value rest = emit_sub(emit, emit_int(emit, nest->depth), run.index), zero = emit_int(emit, 0);
  EmitLoop channel = nest->depth % length == 0
                         ? emit_loop_count(emit, length, 1, "channel")
                         : emit_loop_begin(emit, zero, emit_min(emit, rest, emit_int(emit, length)), 1, "channel");
  Value number = emit_add(emit, run.index, channel.index);
  Value plane = emit_address(emit, source, emit_mul_int(emit, number, nest->source->storage.stride[1]));
  Value numbers = emit_address(emit, weights, emit_mul_int(emit, number, nest->depth_stride));
  prefetch_weights(nest, tile, numbers);
  EmitLoop tap = emit_loop_begin(emit, begin, end, 1, "tap_row");
  add_tap_row(nest, &class->columns, tile,
              emit_address(emit, plane, emit_mul_int(emit, tap.index, rows->delta * nest->row_stride)),
              emit_address(emit, numbers, emit_mul_int(emit, tap.index, rows->weight)));
  emit_loop_end(emit, &tap);
  emit_loop_end(emit, &channel);
  EmitIf end_later = emit_if(emit, later, "later_run");
  add_totals(nest, tile);
  emit_end_if(emit, &end_later);
  emit_loop_end(emit, &run);
}

/* index: block, first filter, row, column of the tile's first output. */
static void store_tile(const Nest *nest, const Class *class, const Tile *tile, const Value *index) {
  Emit *emit = nest->emit;
  const PlanTensor *output = &nest->kernel->output;
  Value *elements = arena_array(emit->arena, (size_t)(tile->filters * tile->columns), Value);
  for (int64_t filter = 0; filter < tile->filters; filter++)
    for (int64_t column = 0; column < tile->columns; column++) {
      const Value at[SHAPE_MAX_RANK] = {index[0], emit_add_int(emit, index[1], filter), index[2],
                                        emit_add_int(emit, index[3], column * class->columns.out_step)};
      Value sum = emit_get(emit, sum_type(nest), tile->sums[filter * tile->columns + column]);
      if (nest->wide) sum = wide_to_float(emit, sum, nest->lanes);
      Value element = elements[filter * tile->columns + column] = emit_epilogue(emit, sum, at, nest->lanes);
      emit_store(emit, emit->output, emit_offset(emit, output, at), element);
    }
  moments_take(&nest->moments, elements, tile->filters, tile->columns, tile->starts);
}

/* --- a unit of work ---------------------------------------------------------------------------------- */

typedef struct Unit {
  Value block, group, first_filter; /* first_filter within the group */
  Value source, weights;            /* addresses of the unit's first channel, row and column; of its first number */
} Unit;

static Value output_channel(const Nest *nest, const Unit *unit) {
  return emit_add(nest->emit, emit_mul_int(nest->emit, unit->group, nest->filters), unit->first_filter);
}

static void emit_tile(const Nest *nest, const Class *class, const Unit *unit, Tile *tile, Value row, Value column) {
  Emit *emit = nest->emit;
  tile->sums = arena_array(emit->arena, (size_t)(tile->filters * tile->columns), Value);
  for (int64_t i = 0; i < tile->filters * tile->columns; i++)
    tile->sums[i] = emit_variable(emit, sum_type(nest), "sum");
  Value channel = output_channel(nest, unit);
  start_sums(nest, tile, channel);
  Value at = emit_mul_int(emit, column, class->columns.scale * nest->column_stride);
  add_taps(nest, class, tile, emit_address(emit, unit->source, at),
           emit_address(emit, unit->weights, emit_int(emit, class->weight_first)), row);
  const TapAxis *rows = &class->rows, *columns = &class->columns;
  const Value index[4] = {unit->block, channel,
                          emit_add_int(emit, emit_mul_int(emit, row, rows->out_step), rows->out_first),
                          emit_add_int(emit, emit_mul_int(emit, column, columns->out_step), columns->out_first)};
  store_tile(nest, class, tile, index);
}

/* Rows [begin, end) of a class for `filters` filters. */
static void emit_class(const Nest *nest, const Class *class, const Unit *unit, int64_t filters, Value begin,
                       Value end) {
  Emit *emit = nest->emit;
  const TapAxis *axis = &class->columns;
  Split columns = split_even(axis->outputs, nest->columns_most);
  EmitLoop row = emit_loop_begin(emit, begin, end, 1, "row");
  int64_t first = 0;
  for (int64_t i = 0; i < columns.tiles;) {
    Tile tile = {.filters = filters, .columns = columns.narrow + (i < columns.wide), .first = first};
    tile.edge = !all_inside(axis, first, tile.columns);
    int64_t run = 1, last = i < columns.wide ? columns.wide : columns.tiles;
    while (!tile.edge && i + run < last && all_inside(axis, first + run * tile.columns, tile.columns)) run++;
    EmitLoop at = emit_loop_count(emit, run, 1, "tile");
    if (first == 0 && nest->moments.tensor != NULL) {
      Value first_row = emit_equal(emit, row.index, begin);
      tile.starts = emit_and(emit, first_row, emit_equal(emit, at.index, emit_int(emit, 0)));
    }
    emit_tile(nest, class, unit, &tile, row.index,
              emit_add_int(emit, emit_mul_int(emit, at.index, tile.columns), first));
    emit_loop_end(emit, &at);
    first += run * tile.columns;
    i += run;
  }
  emit_loop_end(emit, &row);
}

/* Piece `part` of `parts` of `count` rows. */
static Value part_start(Emit *emit, int64_t count, Value part, int64_t parts) {
  return emit_div_int(emit, emit_mul_int(emit, part, count), parts);
}

static void emit_unit(const Nest *nest, const Class *classes, int count, const Unit *unit, int64_t filters, Value part,
                      int64_t parts) {
  Emit *emit = nest->emit;
  Value next = emit_add_int(emit, part, 1);
  if (nest->moments.tensor != NULL) {
    const int64_t pieces = nest->moments.parts;
    EmitLoop piece = emit_loop_begin(emit, part_start(emit, pieces, part, parts),
                                     part_start(emit, pieces, next, parts), 1, "piece");
    Value begin, end;
    moments_rows(&nest->moments, piece.index, &begin, &end);
    emit_class(nest, &classes[0], unit, filters, begin, end);
    moments_store(&nest->moments, filters, unit->block, output_channel(nest, unit), piece.index);
    emit_loop_end(emit, &piece);
  }
  for (int i = 0; i < count && nest->moments.tensor == NULL; i++)
    emit_class(nest, &classes[i], unit, filters, part_start(emit, classes[i].rows.outputs, part, parts),
               part_start(emit, classes[i].rows.outputs, next, parts));
  if (nest->kernel->output.shape.rank != 4) return;
  const int32_t *halo = nest->kernel->output.storage.halo;
  if ((halo[0] | halo[1] | halo[2] | halo[3]) == 0) return;
  EmitLoop row = emit_loop_begin(emit, part_start(emit, nest->out_height, part, parts),
                                 part_start(emit, nest->out_height, next, parts), 1, "halo_row");
  EmitLoop filter = emit_loop_count(emit, filters, 1, "halo_channel");
  emit_halo(emit, unit->block, emit_add(emit, output_channel(nest, unit), filter.index), row.index);
  emit_loop_end(emit, &filter);
  emit_loop_end(emit, &row);
}

/* Unit number → block, group, tile, part of the rows, the block counting faster than the tile. */
static void split_by_tile(const Nest *nest, Value index, const int64_t *extents, Value *out_digits) {
  Emit *emit = nest->emit;
  Value blocks = batch_blocks(emit, nest->lanes), rest = emit_div_int(emit, index, extents[3]);
  out_digits[3] = emit_mod_int(emit, index, extents[3]);
  Value tile = LLVMBuildUDiv(emit->builder, rest, blocks, "");
  out_digits[0] = emit_sub(emit, rest, LLVMBuildNSWMul(emit->builder, tile, blocks, ""));
  out_digits[1] = emit_div_int(emit, tile, extents[2]);
  out_digits[2] = emit_mod_int(emit, tile, extents[2]);
}

/* `classes` cover the output. A unit is a tile of filters, and part of the rows where those are few. */
static bool emit_nest(Nest *nest, const Class *classes, int count, KernelWork *out_work) {
  Emit *emit = nest->emit;
  int64_t least = INT64_MAX;
  for (int i = 0; i < count; i++)
    if (classes[i].rows.outputs < least) least = classes[i].rows.outputs;
  choose_tiles(nest, classes[0].columns.outputs);
  int64_t parts = ceil_div(MIN_UNITS, nest->groups * nest->tiles.tiles);
  if (parts > least) parts = least > 0 ? least : 1;
  int64_t scratch = scratch_bytes(nest);
  nest->moments = moments_open(emit, nest->tiles.narrow + (nest->tiles.wide > 0), &scratch);
  if (nest->moments.tensor != NULL && parts > nest->moments.parts) parts = nest->moments.parts;
  const int64_t extents[4] = {1, nest->groups, nest->tiles.tiles, parts};
  *out_work = work_per_image(nest->kernel->output.shape.dims[0], extents[1] * extents[2] * extents[3]);
  out_work->scratch_bytes = scratch;

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "unit");
  Value digits[4];
  if (weights_are_large(nest))
    split_by_tile(nest, item.index, extents, digits);
  else
    emit_split(emit, item.index, 4, extents, digits);
  Unit unit = {.block = digits[0], .group = digits[1], .first_filter = split_start(emit, &nest->tiles, digits[2])};
  const Storage *source = &nest->source->storage;
  Value place = emit_add(emit, emit_mul_int(emit, unit.block, source->stride[0]),
                         emit_mul_int(emit, unit.group, nest->depth * source->stride[1]));
  unit.source = emit_address(emit, emit->inputs[0], emit_add_int(emit, place, source->origin));
  Value number = emit_add(emit, emit_mul_int(emit, unit.group, nest->group_stride),
                          emit_mul_int(emit, unit.first_filter, nest->filter_stride));
  unit.weights =
      emit_address(emit, emit->inputs[1], emit_add_int(emit, number, nest->kernel->inputs[1].storage.origin));
  const Split *tiles = &nest->tiles;
  if (tiles->wide == 0) {
    emit_unit(nest, classes, count, &unit, tiles->narrow, digits[3], parts);
  } else {
    EmitIf wide = emit_if(emit, emit_less(emit, digits[2], emit_int(emit, tiles->wide)), "wide");
    emit_unit(nest, classes, count, &unit, tiles->narrow + 1, digits[3], parts);
    emit_else(emit, &wide);
    emit_unit(nest, classes, count, &unit, tiles->narrow, digits[3], parts);
    emit_end_if(emit, &wide);
  }
  emit_loop_end(emit, &item);
  return true;
}

static bool check_operands(const PlanKernel *kernel, int32_t rank, Diag *diag) {
  bool blocked = kernel->inputs[0].layout.kind == LAYOUT_BATCH_BLOCK &&
                 kernel->output.layout.kind == LAYOUT_BATCH_BLOCK && kernel->output.shape.rank == rank &&
                 kernel->inputs[1].layout.kind == LAYOUT_PLAIN;
  if (!blocked)
    diag_error(diag, kernel->location, "'%s': a batch-blocked %s does not take these layouts", kernel->name,
               op_info(kernel->op)->name);
  return blocked;
}

static Nest nest_begin(Emit *emit, const PlanKernel *kernel) {
  Nest nest = {.emit = emit, .kernel = kernel, .lanes = batch_block(kernel), .source = &kernel->inputs[0]};
  nest.groups = nest.out_height = nest.out_width = 1;
  nest.wide = kernel->choice.algorithm == ALGORITHM_REFERENCE;
  if (nest.source->shape.rank == 4)
    nest.row_stride = nest.source->storage.stride[2], nest.column_stride = nest.source->storage.stride[3];
  return nest;
}

/* --- convolution ------------------------------------------------------------------------------------- */

bool batch_conv2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const ConvShape shape = conv_shape(kernel);
  if (!check_operands(kernel, 4, diag)) return false;
  Nest nest = nest_begin(emit, kernel);
  const int64_t *filter = kernel->inputs[1].storage.stride;
  nest.groups = shape.groups;
  nest.filters = shape.filters / shape.groups;
  nest.depth = shape.channels / shape.groups;
  nest.filter_stride = filter[0];
  nest.depth_stride = filter[1];
  nest.group_stride = nest.filters * filter[0];
  nest.out_height = shape.out_height, nest.out_width = shape.out_width;
  Class all = {.weight_first = 0};
  all.rows = (TapAxis){.outputs = shape.out_height,
                       .taps = shape.kernel_height,
                       .size = shape.height,
                       .scale = shape.stride_height,
                       .first = -shape.pad_top,
                       .delta = shape.dilation_height,
                       .weight = filter[2],
                       .out_step = 1};
  all.columns = (TapAxis){.outputs = shape.out_width,
                          .taps = shape.kernel_width,
                          .size = shape.width,
                          .scale = shape.stride_width,
                          .first = -shape.pad_left,
                          .delta = shape.dilation_width,
                          .weight = filter[3],
                          .out_step = 1};
  return emit_nest(&nest, &all, 1, out_work);
}

/* Axis `i` of the class of outputs that leave remainder `rest`. `*out_first` is its first tap. */
static TapAxis class_axis(const PlanKernel *kernel, int i, int64_t rest, int64_t *out_first) {
  const int64_t stride = kernel->attrs.stride.values[i], dilation = kernel->attrs.dilation.values[i];
  const int64_t padding = kernel->attrs.padding.values[i], outputs = kernel->output.shape.dims[2 + i];
  TapAxis axis = {.outputs = outputs > rest ? ceil_div(outputs - rest, stride) : 0,
                  .size = kernel->inputs[0].shape.dims[2 + i],
                  .scale = 1,
                  .delta = -1,
                  .out_first = rest,
                  .out_step = stride};
  int64_t first = -1;
  for (int64_t tap = 0; tap < kernel->inputs[1].shape.dims[2 + i]; tap++) {
    const int64_t place = rest + padding - tap * dilation;
    if (place % stride != 0) continue;
    if (first < 0) {
      first = tap;
      axis.first = place / stride;
    } else if (axis.weight == 0) {
      axis.weight = (tap - first) * kernel->inputs[1].storage.stride[2 + i];
      axis.delta = -(tap - first) * dilation / stride;
    }
    axis.taps++;
  }
  *out_first = first < 0 ? 0 : first;
  return axis;
}

bool batch_conv_transpose2d(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  enum { MAX_CLASSES = 64 };
  if (!check_operands(kernel, 4, diag)) return false;
  const Attrs *attrs = &kernel->attrs;
  const int64_t *filter = kernel->inputs[1].storage.stride;
  const int64_t stride_height = attrs->stride.values[0], stride_width = attrs->stride.values[1];
  if (stride_height * stride_width > MAX_CLASSES) {
    diag_error(diag, kernel->location,
               "'%s': batch-blocked transposed convolution takes strides of at most %d elements", kernel->name,
               MAX_CLASSES);
    return false;
  }
  Nest nest = nest_begin(emit, kernel);
  nest.groups = attrs->groups;
  nest.filters = kernel->output.shape.dims[1] / attrs->groups;
  nest.depth = kernel->inputs[0].shape.dims[1] / attrs->groups;
  nest.filter_stride = filter[1];
  nest.depth_stride = filter[0];
  nest.group_stride = nest.depth * filter[0];
  nest.out_height = kernel->output.shape.dims[2], nest.out_width = kernel->output.shape.dims[3];
  Class classes[MAX_CLASSES];
  int count = 0;
  for (int64_t y = 0; y < stride_height; y++)
    for (int64_t x = 0; x < stride_width; x++) {
      int64_t first_row, first_column;
      Class class = {class_axis(kernel, 0, y, &first_row), class_axis(kernel, 1, x, &first_column), 0};
      if (class.rows.outputs == 0 || class.columns.outputs == 0) continue;
      class.weight_first = first_row * filter[2] + first_column * filter[3];
      classes[count++] = class;
    }
  return emit_nest(&nest, classes, count, out_work);
}

/* --- linear layers ----------------------------------------------------------------------------------- */

static const Class single = {.rows = {.outputs = 1, .taps = 1, .size = 1, .scale = 1, .delta = 1, .out_step = 1},
                             .columns = {.outputs = 1, .taps = 1, .size = 1, .scale = 1, .delta = 1, .out_step = 1}};

/* x [N,C] and weights [K,C]: a convolution of one tap over an image of one element. */
bool batch_linear(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  if (!check_operands(kernel, 2, diag)) return false;
  Nest nest = nest_begin(emit, kernel);
  nest.filters = kernel->output.shape.dims[1];
  nest.depth = kernel->inputs[0].shape.dims[1];
  nest.filter_stride = kernel->inputs[1].storage.stride[0];
  nest.depth_stride = kernel->inputs[1].storage.stride[1];
  return emit_nest(&nest, &single, 1, out_work);
}

/* a [N,K] times a matrix [K,C], or, transposed, [C,K]. */
bool batch_matmul(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  if (!check_operands(kernel, 2, diag)) return false;
  Nest nest = nest_begin(emit, kernel);
  const int64_t *matrix = kernel->inputs[1].storage.stride;
  nest.filters = kernel->output.shape.dims[1];
  nest.depth = kernel->inputs[0].shape.dims[1];
  nest.filter_stride = matrix[kernel->attrs.transpose ? 0 : 1];
  nest.depth_stride = matrix[kernel->attrs.transpose ? 1 : 0];
  return emit_nest(&nest, &single, 1, out_work);
}
