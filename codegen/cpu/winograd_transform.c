/* The transforms of Winograd's algorithm, and the kernels that do nothing else: those that transform filters when
 * weights are prepared, and those that transform images for convolutions with several readers of the same tiles.
 *
 * F(4×4,3×3) interpolates at 0, 1, −1, ½, −2 and infinity, and so does F(3×3,4×4), which thus has the same Bᵀ. Against
 * the usual 0, ±1, ±2 the largest error is a third, for four more additions per vector: Barabasz, Anderson, Soodhalter,
 * Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", ACM TOMS 46(4),
 * 2020. */
#include "winograd_transform.h"

#include "base/checked.h"
#include "move.h"
#include "wide.h"

enum { MAX_LANES = 16, MAX_TAPS = 4, FILTER3 = 3, CHUNK_CHANNELS = 64 /* of a block of filters in one work item */ };

/* --- filters ----------------------------------------------------------------------------------------- */

/* Row i holds 1, a, a² of a point, the last row infinity's. The division by the product of a's distances to the other
 * points is left to the output's transform, where it costs next to nothing: so all constants are small integers, and a
 * kernel can transform filters in f32. */
static const double filter_matrix2[4 * 3] = {1, 0, 0, 1, 1, 1, 1, -1, 1, 0, 0, 1};
static const double filter_matrix4[6 * 3] = {1, 0, 0, 1, 1, 1, 1, -1, 1, 4, 2, 1, 1, -2, 4, 0, 0, 1};
static const double filter_matrix3[6 * 4] = {1, 0, 0, 0, 1, 1,  1, 1,  1, -1, 1, -1,
                                             8, 4, 2, 1, 1, -2, 4, -8, 0, 0,  0, 1};

/* One row of G times vectors of doubles. */
static Value filter_sum(Emit *emit, const double *row, const Value *values, int32_t taps, int32_t lanes) {
  Value sum = NULL;
  for (int32_t i = 0; i < taps; i++) {
    if (row[i] == 0) continue;
    Value factor = wide_constant(emit, lanes, row[i]);
    if (sum != NULL)
      sum = emit_fma(emit, factor, values[i], sum);
    else
      sum = row[i] == 1 ? values[i] : emit_fmul(emit, factor, values[i]);
  }
  return sum;
}

/* GgGᵀ of the same channel of `lanes` filters: vectors of taps, row by row, to A × A vectors. */
static void filter_tile(Emit *emit, WinogradForm form, int32_t lanes, const Value *taps, Value output, int64_t plane) {
  const double *matrix = form.outputs == 2 ? filter_matrix2 : form.outputs == 3 ? filter_matrix3 : filter_matrix4;
  const int32_t size = winograd_size(form), count = form.taps;
  Value wide[MAX_TAPS][MAX_TAPS]; /* [column][row] */
  for (int32_t i = 0; i < count * count; i++) wide[i % count][i / count] = wide_from_float(emit, taps[i], lanes);
  for (int32_t i = 0; i < size; i++) {
    Value row[MAX_TAPS];
    for (int32_t s = 0; s < count; s++) row[s] = filter_sum(emit, &matrix[i * count], wide[s], count, lanes);
    for (int32_t j = 0; j < size; j++) {
      Value value = wide_to_float(emit, filter_sum(emit, &matrix[j * count], row, count, lanes), lanes);
      emit_store(emit, output, emit_int(emit, (i * size + j) * plane), value);
    }
  }
}

static Value scaled(Emit *emit, int32_t lanes, double factor, Value a, Value b) {
  return emit_fma(emit, emit_float(emit, lanes, factor), a, b);
}

/* Row `row` of G times three numbers. */
static Value filter_point(Emit *emit, int32_t outputs, int32_t lanes, int32_t row, const Value g[3]) {
  if (row == 0) return g[0];
  if (row == outputs + 1) return g[2];
  if (row == 1) return emit_fadd(emit, emit_fadd(emit, g[0], g[2]), g[1]);
  if (row == 2) return emit_fsub(emit, emit_fadd(emit, g[0], g[2]), g[1]);
  const Value *first = row == 3 ? &g[0] : &g[2], *last = row == 3 ? &g[2] : &g[0];
  return scaled(emit, lanes, 4, *first, scaled(emit, lanes, row == 3 ? 2 : -2, g[1], *last));
}

void winograd_filter_tile(Emit *emit, int32_t outputs, int32_t lanes, Value taps, int64_t tap_stride, Value output,
                          int64_t plane) {
  int32_t size = outputs + FILTER3 - 1;
  Value half[WINOGRAD_MAX_SIZE][FILTER3];
  output = emit_opaque(emit, output);
  for (int32_t j = 0; j < FILTER3; j++) {
    Value column[FILTER3];
    for (int32_t i = 0; i < FILTER3; i++)
      column[i] = emit_load(emit, taps, emit_int(emit, (i * FILTER3 + j) * tap_stride), lanes);
    for (int32_t i = 0; i < size; i++) half[i][j] = filter_point(emit, outputs, lanes, i, column);
  }
  for (int32_t i = 0; i < size; i++)
    for (int32_t j = 0; j < size; j++)
      emit_store(emit, output, emit_int(emit, (i * size + j) * plane), filter_point(emit, outputs, lanes, j, half[i]));
}

/* Taps of a row of filters with zeros behind them, so that all phases have as many. */
static int64_t padded_taps(const PlanKernel *kernel) {
  const WinogradForm form = winograd_form(kernel->output.layout.kind);
  return (int64_t)form.taps * form.stride;
}

/* The taps of `lanes` filters at `from` → `buffer`, a vector each, in rows of padded_taps; lanes from `valid` on, and what
 * the filters do not have, stay as they are. */
static void gather_taps(Emit *emit, const PlanKernel *kernel, int32_t valid, Value from, Value buffer) {
  const Storage *in = &kernel->inputs[0].storage;
  const int64_t *dims = kernel->output.shape.dims, pitch = padded_taps(kernel);
  const int32_t lanes = emit->target->vector_lanes;
  EmitLoop lane = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, valid), 1, "lane");
  Value filter =
      emit_address(emit, emit->inputs[0], emit_add(emit, from, emit_mul_int(emit, lane.index, in->stride[0])));
  for (int64_t row = 0; row < dims[2]; row++)
    for (int64_t column = 0; column < dims[3]; column++)
      emit_store(emit, buffer, emit_add_int(emit, lane.index, (row * pitch + column) * lanes),
                 emit_load(emit, filter, emit_int(emit, row * in->stride[2] + column * in->stride[3]), 1));
  emit_loop_end(emit, &lane);
}

/* Channels [begin, end) of one vector of filters, of which the first `valid` exist and the others are zero. `from` and
 * `to`: offsets of channel 0. */
static void filter_channels(Emit *emit, const PlanKernel *kernel, int32_t valid, Value from, Value to, Value begin,
                            Value end) {
  const Storage *in = &kernel->inputs[0].storage, *out = &kernel->output.storage;
  const WinogradForm form = winograd_form(kernel->output.layout.kind);
  const int64_t pitch = padded_taps(kernel), phases = (int64_t)form.stride * form.stride;
  const int32_t lanes = emit->target->vector_lanes;
  /* taps are gathered in memory: code that puts vectors together lane by lane takes LLVM five times as long */
  Value buffer = emit_variable(emit, LLVMArrayType(emit->f32, (unsigned)(pitch * pitch * lanes)), "taps");
  if (valid < lanes || kernel->output.shape.dims[2] < pitch) {
    EmitLoop clear = emit_loop_count(emit, pitch * pitch * lanes, lanes, "clear");
    emit_store(emit, buffer, clear.index, emit_float(emit, lanes, 0));
    emit_loop_end(emit, &clear);
  }
  EmitLoop channel = emit_loop_outer(emit, begin, end, 1, "channel");
  Value filter = emit_add(emit, from, emit_mul_int(emit, channel.index, in->stride[1]));
  if (valid > 0) gather_taps(emit, kernel, valid, filter, buffer);
  EmitLoop phase = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, phases), 1, "phase");
  Value first = emit_add(emit, emit_mul_int(emit, emit_div_int(emit, phase.index, form.stride), pitch),
                         emit_mod_int(emit, phase.index, form.stride));
  Value corner = emit_address(emit, buffer, emit_mul_int(emit, first, lanes));
  Value taps[MAX_TAPS * MAX_TAPS];
  for (int32_t i = 0; i < form.taps * form.taps; i++) {
    const int64_t tap = (i / form.taps * pitch + i % form.taps) * form.stride;
    taps[i] = emit_load(emit, corner, emit_int(emit, tap * lanes), lanes);
  }
  Value number = emit_add(emit, emit_mul_int(emit, channel.index, phases), phase.index);
  Value place = emit_add(emit, to, emit_mul_int(emit, number, out->stride[1]));
  filter_tile(emit, form, lanes, taps, emit_address(emit, emit->output, place), out->stride[3]);
  emit_loop_end(emit, &phase);
  emit_loop_end(emit, &channel);
}

/* An item is some channels of a vector of filters. */
static void convert_filter(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  int32_t lanes = emit->target->vector_lanes;
  int64_t filters = out->shape.dims[0], channels = out->shape.dims[1], panel_vectors = out->layout.block / lanes;
  int64_t vectors = ceil_div(filters, out->layout.block) * panel_vectors, whole = filters / lanes;
  int64_t chunks = ceil_div(channels, CHUNK_CHANNELS);
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[2];
  emit_split(emit, item.index, 2, (int64_t[]){vectors, chunks}, digit);
  Value vector = digit[0], begin = emit_mul_int(emit, digit[1], CHUNK_CHANNELS);
  Value end = emit_min(emit, emit_add_int(emit, begin, CHUNK_CHANNELS), emit_int(emit, channels));
  Value from = emit_add_int(emit, emit_mul_int(emit, vector, lanes * in->storage.stride[0]), in->storage.origin);
  Value panel = emit_mul_int(emit, emit_div_int(emit, vector, panel_vectors), out->storage.stride[0]);
  Value lane = emit_mul_int(emit, emit_mod_int(emit, vector, panel_vectors), lanes);
  Value to = emit_add_int(emit, emit_add(emit, panel, lane), out->storage.origin);
  if (whole == vectors) {
    filter_channels(emit, kernel, lanes, from, to, begin, end);
  } else {
    EmitIf full = emit_if(emit, emit_less(emit, vector, emit_int(emit, whole)), "full");
    filter_channels(emit, kernel, lanes, from, to, begin, end);
    emit_else(emit, &full);
    EmitIf part = emit_if(emit, emit_equal(emit, vector, emit_int(emit, whole)), "part");
    filter_channels(emit, kernel, (int32_t)(filters % lanes), from, to, begin, end);
    emit_else(emit, &part);
    filter_channels(emit, kernel, 0, from, to, begin, end);
    emit_end_if(emit, &part);
    emit_end_if(emit, &full);
  }
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = vectors * chunks};
}

/* --- images ------------------------------------------------------------------------------------------ */

/* Bᵀ times a column. Rows of Bᵀ are the coefficients of the product of all (x − point) but one. */
static void input_column2(Emit *emit, const Value d[4], Value t[4]) {
  t[0] = emit_fsub(emit, d[0], d[2]);
  t[1] = emit_fadd(emit, d[1], d[2]);
  t[2] = emit_fsub(emit, d[2], d[1]);
  t[3] = emit_fsub(emit, d[3], d[1]);
}

static void input_column4(Emit *emit, int32_t lanes, const Value d[6], Value t[6]) {
  Value odd = emit_fsub(emit, d[3], d[1]), even = emit_fsub(emit, d[4], d[2]);
  t[0] = scaled(emit, lanes, 1.5, odd, emit_fadd(emit, even, emit_fsub(emit, d[0], d[2])));
  t[1] = scaled(emit, lanes, 1.5, emit_fadd(emit, d[2], d[3]), emit_fadd(emit, even, odd));
  t[2] = scaled(emit, lanes, 1.5, emit_fsub(emit, d[3], d[2]), emit_fsub(emit, even, odd));
  t[3] = scaled(emit, lanes, 2, odd, even);
  t[4] = scaled(emit, lanes, -0.5, odd, even);
  t[5] = scaled(emit, lanes, 1.5, even, emit_fsub(emit, emit_fsub(emit, d[5], d[3]), odd));
}

/* Aᵀ times a column: row i holds the i-th powers of the points. The products of rows 1 and 2 stand for twice what they
 * would be with G as it is defined. */
static void output_column2(Emit *emit, int32_t lanes, const Value m[4], Value y[2]) {
  y[0] = scaled(emit, lanes, 0.5, emit_fadd(emit, m[1], m[2]), m[0]);
  y[1] = scaled(emit, lanes, 0.5, emit_fsub(emit, m[1], m[2]), m[3]);
}

/* The products of rows 1 to 4 stand for 3, 3, −15/4 and 15 times what they would be with G as it is defined, row 2 with
 * the other sign. */
static void output_column4(Emit *emit, int32_t lanes, const Value m[6], Value y[4]) {
  Value third = emit_float(emit, lanes, 1.0 / 3);
  Value sum = emit_fmul(emit, third, emit_fsub(emit, m[1], m[2]));
  Value difference = emit_fmul(emit, third, emit_fadd(emit, m[1], m[2]));
  y[0] = scaled(emit, lanes, -4.0 / 15, m[3], scaled(emit, lanes, 1.0 / 15, m[4], emit_fadd(emit, m[0], sum)));
  y[1] = scaled(emit, lanes, -2.0 / 15, emit_fadd(emit, m[3], m[4]), difference);
  y[2] = scaled(emit, lanes, -1.0 / 15, m[3], scaled(emit, lanes, 4.0 / 15, m[4], sum));
  y[3] = scaled(emit, lanes, -1.0 / 30, m[3], scaled(emit, lanes, -8.0 / 15, m[4], emit_fadd(emit, difference, m[5])));
}

/* The same with row 3 twice as large, which has a cube in G. */
static void output_column3(Emit *emit, int32_t lanes, const Value m[6], Value y[3]) {
  Value third = emit_float(emit, lanes, 1.0 / 3);
  Value sum = emit_fmul(emit, third, emit_fsub(emit, m[1], m[2]));
  Value difference = emit_fmul(emit, third, emit_fadd(emit, m[1], m[2]));
  y[0] = scaled(emit, lanes, -2.0 / 15, m[3], scaled(emit, lanes, 1.0 / 15, m[4], emit_fadd(emit, m[0], sum)));
  y[1] = scaled(emit, lanes, -1.0 / 15, m[3], scaled(emit, lanes, -2.0 / 15, m[4], difference));
  y[2] = scaled(emit, lanes, -1.0 / 30, m[3], scaled(emit, lanes, 4.0 / 15, m[4], emit_fadd(emit, sum, m[5])));
}

static void input_column(Emit *emit, WinogradForm form, int32_t lanes, const Value *d, Value *t) {
  if (winograd_size(form) == 4)
    input_column2(emit, d, t);
  else
    input_column4(emit, lanes, d, t);
}

static void output_column(Emit *emit, WinogradForm form, int32_t lanes, const Value *m, Value *y) {
  if (form.outputs == 2)
    output_column2(emit, lanes, m, y);
  else if (form.outputs == 3)
    output_column3(emit, lanes, m, y);
  else
    output_column4(emit, lanes, m, y);
}

void winograd_input_tile(Emit *emit, WinogradForm form, int32_t lanes, const PlanTensor *tensor, Value input,
                         Value output, int64_t plane) {
  const int64_t *stride = tensor->storage.stride;
  const int32_t size = winograd_size(form);
  Value half[WINOGRAD_MAX_SIZE][WINOGRAD_MAX_SIZE]; /* [column][row] */
  input = emit_opaque(emit, input);
  output = emit_opaque(emit, output);
  for (int32_t j = 0; j < size; j++) {
    Value column[WINOGRAD_MAX_SIZE];
    for (int32_t i = 0; i < size; i++)
      column[i] = emit_load(emit, input, emit_int(emit, i * stride[2] + j * stride[3]), lanes);
    input_column(emit, form, lanes, column, half[j]);
  }
  for (int32_t i = 0; i < size; i++) {
    Value row[WINOGRAD_MAX_SIZE], values[WINOGRAD_MAX_SIZE];
    for (int32_t j = 0; j < size; j++) row[j] = half[j][i];
    input_column(emit, form, lanes, row, values);
    for (int32_t j = 0; j < size; j++) emit_store(emit, output, emit_int(emit, (i * size + j) * plane), values[j]);
  }
}

void winograd_output_tile(Emit *emit, WinogradForm form, int32_t lanes, Value products, int64_t plane,
                          Value *out_values) {
  const int32_t size = winograd_size(form), outputs = form.outputs;
  Value half[WINOGRAD_MAX_SIZE][WINOGRAD_MAX_SIZE]; /* [column][row] */
  products = emit_opaque(emit, products);
  for (int32_t j = 0; j < size; j++) {
    Value column[WINOGRAD_MAX_SIZE];
    for (int32_t i = 0; i < size; i++)
      column[i] = emit_load(emit, products, emit_int(emit, (i * size + j) * plane), lanes);
    output_column(emit, form, lanes, column, half[j]);
  }
  for (int32_t i = 0; i < outputs; i++) {
    Value row[WINOGRAD_MAX_SIZE];
    for (int32_t j = 0; j < size; j++) row[j] = half[j][i];
    output_column(emit, form, lanes, row, &out_values[i * outputs]);
  }
}

/* An item is a row of tiles of one block of channels. */
static void convert_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims, *stride = in->storage.stride;
  const int32_t *halo = out->storage.halo;
  const WinogradForm form = winograd_form(out->layout.kind);
  WinogradGrid grid = winograd_grid(form, dims[2], dims[3], (int64_t[]){halo[0], halo[1], halo[2], halo[3]});
  int64_t block = out->layout.block, blocks = ceil_div(dims[1], block), tile_stride = blocks * block;

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[3];
  emit_split(emit, item.index, 3, (int64_t[]){1, blocks, grid.rows}, digit);
  Value corner[4] = {digit[0], digit[1], emit_add_int(emit, emit_mul_int(emit, digit[2], form.outputs), -halo[0]),
                     NULL};
  Value from = emit_add_int(emit, emit_offset(emit, in, corner), -halo[1] * stride[3]);
  Value to = emit_add(
      emit, emit_mul_int(emit, digit[0], out->storage.stride[0]),
      emit_add(emit, emit_mul_int(emit, digit[1], block), emit_mul_int(emit, digit[2], grid.columns * tile_stride)));
  EmitLoop tile = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, grid.columns), 1, "tile");
  Value input = emit_add(emit, from, emit_mul_int(emit, tile.index, form.outputs * stride[3]));
  Value output = emit_add(emit, to, emit_mul_int(emit, tile.index, tile_stride));
  winograd_input_tile(emit, form, out->layout.block, in, emit_address(emit, emit->inputs[0], input),
                      emit_address(emit, emit->output, output), out->storage.stride[3]);
  emit_loop_end(emit, &tile);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], blocks * grid.rows);
}

/* The row at `index` of the image → `width` numbers at `line`, whole vectors, from `left` on; zeros where it is in the
 * padding. */
static void pad_row(Emit *emit, const PlanTensor *in, const Value *index, Value line, int64_t left, int64_t width) {
  const int64_t *dims = in->shape.dims;
  const int32_t lanes = emit->target->vector_lanes;
  Value exists = LLVMBuildICmp(emit->builder, LLVMIntULT, index[2], emit_int(emit, dims[2]), "exists");
  EmitIf inside = emit_if(emit, exists, "row_inside");
  Value from = emit_address(emit, emit->inputs[0], emit_offset(emit, in, index));
  Value to = emit_address(emit, line, emit_int(emit, left));
  const int64_t whole = dims[3] / lanes * lanes;
  EmitLoop vector = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, whole), lanes, "vector");
  emit_store(emit, to, vector.index, emit_load(emit, from, vector.index, lanes));
  emit_loop_end(emit, &vector);
  EmitLoop rest = emit_loop_outer(emit, emit_int(emit, whole), emit_int(emit, dims[3]), 1, "rest");
  emit_store(emit, to, rest.index, emit_load(emit, from, rest.index, 1));
  emit_loop_end(emit, &rest);
  emit_else(emit, &inside);
  EmitLoop zero = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, width), lanes, "zero");
  emit_store(emit, line, zero.index, emit_float(emit, lanes, 0));
  emit_loop_end(emit, &zero);
  emit_end_if(emit, &inside);
}

/* The numbers of one place, or of as many as fit a vector: pairs of neighbours in `count` lines, `width` apart. */
static void fill_place(Emit *emit, Value from, Value place, int64_t count, int64_t width, int64_t pairs) {
  for (int64_t pair = 0; pair < pairs; pair++) {
    Value numbers = pair < count ? emit_load(emit, from, emit_int(emit, pair * width), 2) : emit_float(emit, 2, 0);
    emit_store(emit, place, emit_int(emit, pair * 2), numbers);
  }
}

static void fill_places(Emit *emit, Value from, Value place, int64_t count, int64_t width, int64_t pairs) {
  enum { MAX_SIDE = MAX_LANES / 2 };
  const int32_t lanes = emit->target->vector_lanes, side = lanes / 2;
  LLVMTypeRef of_pairs = LLVMVectorType(LLVMDoubleTypeInContext(emit->context), (unsigned)side);
  for (int64_t first = 0; first < pairs; first += side) {
    Value rows[MAX_SIDE];
    for (int32_t i = 0; i < side; i++) {
      Value numbers = first + i < count ? emit_load(emit, from, emit_int(emit, (first + i) * width), lanes)
                                        : emit_float(emit, lanes, 0);
      rows[i] = LLVMBuildBitCast(emit->builder, numbers, of_pairs, "");
    }
    move_transpose(emit, rows, side);
    for (int32_t i = 0; i < side; i++)
      emit_store(emit, place, emit_int(emit, (int64_t)i * pairs * 2 + first * 2),
                 LLVMBuildBitCast(emit->builder, rows[i], emit_float_type(emit, lanes), ""));
  }
}

/* An item is a row of places. The rows of the image that it takes are padded in a buffer; then each place takes a pair
 * of each of them. */
static void convert_phases(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims, *stride = out->storage.stride;
  const int32_t *halo = out->storage.halo;
  const WinogradForm form = winograd_form(out->layout.kind);
  const int64_t rows = stride[0] / stride[2], columns = stride[2] / stride[3];
  const int64_t lines = dims[1] * form.stride, pairs = out->layout.block / form.stride;
  const int32_t lanes = emit->target->vector_lanes;
  int64_t width = columns * form.stride;
  if (width < halo[1] + dims[3]) width = halo[1] + dims[3]; /* the last columns may be of no output */
  width = round_up(width, lanes);
  EmitLoop clear = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, lines * width), lanes, "clear");
  emit_store(emit, emit->scratch, clear.index, emit_float(emit, lanes, 0));
  emit_loop_end(emit, &clear);
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[2];
  emit_split(emit, item.index, 2, (int64_t[]){1, rows}, digit);
  EmitLoop line = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, lines), 1, "line");
  Value row = emit_add(emit, emit_mul_int(emit, digit[1], form.stride), emit_mod_int(emit, line.index, form.stride));
  const Value index[4] = {digit[0], emit_div_int(emit, line.index, form.stride), emit_add_int(emit, row, -halo[0])};
  pad_row(emit, in, index, emit_address(emit, emit->scratch, emit_mul_int(emit, line.index, width)), halo[1], width);
  emit_loop_end(emit, &line);
  Value to =
      emit_address(emit, emit->output,
                   emit_add(emit, emit_mul_int(emit, digit[0], stride[0]), emit_mul_int(emit, digit[1], stride[2])));
  const int64_t whole = columns / (lanes / 2) * (lanes / 2);
  for (int part = 0; part < 2; part++) { /* vectors of places, then the last ones */
    EmitLoop column = emit_loop_outer(emit, emit_int(emit, part == 0 ? 0 : whole),
                                      emit_int(emit, part == 0 ? whole : columns), part == 0 ? lanes / 2 : 1, "column");
    Value from = emit_address(emit, emit->scratch, emit_mul_int(emit, column.index, form.stride));
    Value place = emit_address(emit, to, emit_mul_int(emit, column.index, stride[3]));
    (part == 0 ? fill_places : fill_place)(emit, from, place, lines, width, pairs);
    emit_loop_end(emit, &column);
  }
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], rows);
  out_work->scratch_bytes = lines * width * (int64_t)sizeof(float);
}

bool winograd_convert(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const LayoutKind from = in->layout.kind, to = out->layout.kind;
  const int32_t lanes = emit->target->vector_lanes, taps = winograd_filter_taps(winograd_form(to));
  bool fits;
  if (layout_is_winograd_tiles(to))
    fits = from == LAYOUT_CHANNEL_BLOCK && in->layout.block == out->layout.block;
  else if (to == LAYOUT_CHANNEL_PHASES)
    fits = from == LAYOUT_PLAIN && in->storage.stride[3] == 1 &&
           winograd_channels(winograd_form(to), out->shape.dims[1]) <= out->layout.block;
  else
    fits = from == LAYOUT_PLAIN && out->shape.dims[2] == taps && out->shape.dims[3] == taps &&
           out->layout.block % lanes == 0;
  if (!fits) {
    diag_error(diag, kernel->location, "'%s': Winograd's transform does not take this layout", kernel->name);
    return false;
  }
  if (layout_is_winograd_tiles(to))
    convert_tiles(emit, kernel, out_work);
  else if (to == LAYOUT_CHANNEL_PHASES)
    convert_phases(emit, kernel, out_work);
  else
    convert_filter(emit, kernel, out_work);
  return true;
}
