/* The transforms of Winograd's algorithm, and the kernels that do nothing else: those that transform filters when
 * weights are prepared, and those that transform images for convolutions with several readers of the same tiles.
 *
 * F(4×4,3×3) interpolates at 0, 1, −1, ½, −2 and infinity. Against the usual 0, ±1, ±2 the largest error is a third,
 * for four more additions per vector: Barabasz, Anderson, Soodhalter, Gregg, "Error Analysis and Improving the Accuracy
 * of Winograd Convolution for Deep Neural Networks", ACM TOMS 46(4), 2020. */
#include "winograd_transform.h"

#include "base/checked.h"
#include "wide.h"

enum { MAX_LANES = 16, CHUNK_CHANNELS = 64 /* of a block of filters in one work item */ };

/* --- filters ----------------------------------------------------------------------------------------- */

/* Row i holds 1, a, a² of a point, the last row infinity's. The division by the product of a's distances to the other
 * points is left to the output's transform, where it costs next to nothing: so all constants are small integers, and a
 * kernel can transform filters in f32. */
static const double filter_matrix2[4][3] = {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 1}};
static const double filter_matrix4[6][3] = {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {4, 2, 1}, {1, -2, 4}, {0, 0, 1}};

/* One row of G times three vectors of doubles. */
static Value filter_sum(Emit *emit, const double row[3], Value a, Value b, Value c, int32_t lanes) {
  const Value values[3] = {a, b, c};
  Value sum = NULL;
  for (int i = 0; i < 3; i++) {
    if (row[i] == 0) continue;
    Value factor = wide_constant(emit, lanes, row[i]);
    if (sum != NULL)
      sum = emit_fma(emit, factor, values[i], sum);
    else
      sum = row[i] == 1 ? values[i] : emit_fmul(emit, factor, values[i]);
  }
  return sum;
}

/* GgGᵀ of the same channel of `lanes` filters: nine vectors of taps to A × A vectors. */
static void filter_tile(Emit *emit, int32_t outputs, int32_t lanes, const Value taps[9], Value output, int64_t plane) {
  const double(*matrix)[3] = outputs == 2 ? filter_matrix2 : filter_matrix4;
  int32_t size = outputs + WINOGRAD_TAPS - 1;
  Value wide[9];
  for (int i = 0; i < 9; i++) wide[i] = wide_from_float(emit, taps[i], lanes);
  for (int32_t i = 0; i < size; i++) {
    Value row[3];
    for (int s = 0; s < 3; s++) row[s] = filter_sum(emit, matrix[i], wide[s], wide[3 + s], wide[6 + s], lanes);
    for (int32_t j = 0; j < size; j++) {
      Value value = wide_to_float(emit, filter_sum(emit, matrix[j], row[0], row[1], row[2], lanes), lanes);
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
  int32_t size = outputs + WINOGRAD_TAPS - 1;
  Value half[WINOGRAD_MAX_SIZE][WINOGRAD_TAPS];
  output = emit_opaque(emit, output);
  for (int32_t j = 0; j < WINOGRAD_TAPS; j++) {
    Value column[WINOGRAD_TAPS];
    for (int32_t i = 0; i < WINOGRAD_TAPS; i++)
      column[i] = emit_load(emit, taps, emit_int(emit, (i * WINOGRAD_TAPS + j) * tap_stride), lanes);
    for (int32_t i = 0; i < size; i++) half[i][j] = filter_point(emit, outputs, lanes, i, column);
  }
  for (int32_t i = 0; i < size; i++)
    for (int32_t j = 0; j < size; j++)
      emit_store(emit, output, emit_int(emit, (i * size + j) * plane), filter_point(emit, outputs, lanes, j, half[i]));
}

/* Channels [begin, end) of one vector of filters, of which the first `valid` exist and the others are zero. `from` and
 * `to`: offsets of channel 0. */
static void filter_channels(Emit *emit, const PlanKernel *kernel, int32_t valid, Value from, Value to, Value begin,
                            Value end) {
  const Storage *in = &kernel->inputs[0].storage, *out = &kernel->output.storage;
  int32_t lanes = emit->target->vector_lanes;
  /* taps are gathered in memory: code that puts vectors together lane by lane takes LLVM five times as long */
  Value buffer = emit_variable(emit, LLVMArrayType(emit->f32, (unsigned)(9 * lanes)), "taps");
  for (int32_t tap = 0; tap < 9 && valid < lanes; tap++)
    emit_store(emit, buffer, emit_int(emit, tap * lanes), emit_float(emit, lanes, 0));
  EmitLoop channel = emit_loop_outer(emit, begin, end, 1, "channel");
  Value filter = emit_add(emit, from, emit_mul_int(emit, channel.index, in->stride[1]));
  Value taps[9];
  if (valid > 0) {
    EmitLoop lane = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, valid), 1, "lane");
    Value from_lane =
        emit_address(emit, emit->inputs[0], emit_add(emit, filter, emit_mul_int(emit, lane.index, in->stride[0])));
    for (int32_t tap = 0; tap < 9; tap++) {
      Value element = emit_load(emit, from_lane, emit_int(emit, tap / 3 * in->stride[2] + tap % 3 * in->stride[3]), 1);
      emit_store(emit, buffer, emit_add_int(emit, lane.index, tap * lanes), element);
    }
    emit_loop_end(emit, &lane);
  }
  for (int32_t tap = 0; tap < 9; tap++) taps[tap] = emit_load(emit, buffer, emit_int(emit, tap * lanes), lanes);
  Value place = emit_add(emit, to, emit_mul_int(emit, channel.index, out->stride[1]));
  filter_tile(emit, winograd_outputs(kernel->output.layout.kind), lanes, taps, emit_address(emit, emit->output, place),
              out->stride[3]);
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

/* Aᵀ times a column: row i holds the i-th powers of the points. */
/* The products of rows 1 and 2 stand for twice what they would be with G as it is defined. */
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

void winograd_input_tile(Emit *emit, int32_t outputs, const PlanTensor *tensor, Value input, Value output,
                         int64_t plane) {
  const int64_t *stride = tensor->storage.stride;
  int32_t size = outputs + WINOGRAD_TAPS - 1, lanes = tensor->layout.block;
  Value half[WINOGRAD_MAX_SIZE][WINOGRAD_MAX_SIZE]; /* [column][row] */
  input = emit_opaque(emit, input);
  output = emit_opaque(emit, output);
  for (int32_t j = 0; j < size; j++) {
    Value column[WINOGRAD_MAX_SIZE];
    for (int32_t i = 0; i < size; i++)
      column[i] = emit_load(emit, input, emit_int(emit, i * stride[2] + j * stride[3]), lanes);
    outputs == 2 ? input_column2(emit, column, half[j]) : input_column4(emit, lanes, column, half[j]);
  }
  for (int32_t i = 0; i < size; i++) {
    Value row[WINOGRAD_MAX_SIZE], values[WINOGRAD_MAX_SIZE];
    for (int32_t j = 0; j < size; j++) row[j] = half[j][i];
    outputs == 2 ? input_column2(emit, row, values) : input_column4(emit, lanes, row, values);
    for (int32_t j = 0; j < size; j++) emit_store(emit, output, emit_int(emit, (i * size + j) * plane), values[j]);
  }
}

void winograd_output_tile(Emit *emit, int32_t outputs, int32_t lanes, Value products, int64_t plane,
                          Value *out_values) {
  int32_t size = outputs + WINOGRAD_TAPS - 1;
  Value half[WINOGRAD_MAX_SIZE][WINOGRAD_MAX_SIZE]; /* [column][row] */
  products = emit_opaque(emit, products);
  for (int32_t j = 0; j < size; j++) {
    Value column[WINOGRAD_MAX_SIZE];
    for (int32_t i = 0; i < size; i++)
      column[i] = emit_load(emit, products, emit_int(emit, (i * size + j) * plane), lanes);
    outputs == 2 ? output_column2(emit, lanes, column, half[j]) : output_column4(emit, lanes, column, half[j]);
  }
  for (int32_t i = 0; i < outputs; i++) {
    Value row[WINOGRAD_MAX_SIZE];
    for (int32_t j = 0; j < size; j++) row[j] = half[j][i];
    outputs == 2 ? output_column2(emit, lanes, row, &out_values[i * outputs])
                 : output_column4(emit, lanes, row, &out_values[i * outputs]);
  }
}

/* An item is a row of tiles of one block of channels. */
static void convert_image(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims, *stride = in->storage.stride;
  const int32_t *halo = out->storage.halo;
  int32_t outputs = winograd_outputs(out->layout.kind);
  WinogradGrid grid = winograd_grid(outputs, dims[2], dims[3], (int64_t[]){halo[0], halo[1], halo[2], halo[3]});
  int64_t block = out->layout.block, blocks = ceil_div(dims[1], block), tile_stride = blocks * block;

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[3];
  emit_split(emit, item.index, 3, (int64_t[]){1, blocks, grid.rows}, digit);
  Value corner[4] = {digit[0], digit[1], emit_add_int(emit, emit_mul_int(emit, digit[2], outputs), -halo[0]), NULL};
  Value from = emit_add_int(emit, emit_offset(emit, in, corner), -halo[1] * stride[3]);
  Value to = emit_add(
      emit, emit_mul_int(emit, digit[0], out->storage.stride[0]),
      emit_add(emit, emit_mul_int(emit, digit[1], block), emit_mul_int(emit, digit[2], grid.columns * tile_stride)));
  EmitLoop tile = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, grid.columns), 1, "tile");
  Value input = emit_add(emit, from, emit_mul_int(emit, tile.index, outputs * stride[3]));
  Value output = emit_add(emit, to, emit_mul_int(emit, tile.index, tile_stride));
  winograd_input_tile(emit, outputs, in, emit_address(emit, emit->inputs[0], input),
                      emit_address(emit, emit->output, output), out->storage.stride[3]);
  emit_loop_end(emit, &tile);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], blocks * grid.rows);
}

bool winograd_convert(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  bool tiles = layout_is_winograd_tiles(out->layout.kind);
  int32_t lanes = emit->target->vector_lanes;
  bool fits = tiles ? in->layout.kind == LAYOUT_CHANNEL_BLOCK && in->layout.block == out->layout.block
                    : in->layout.kind == LAYOUT_PLAIN && out->shape.dims[2] == WINOGRAD_TAPS &&
                          out->shape.dims[3] == WINOGRAD_TAPS && out->layout.block % lanes == 0;
  if (!fits) {
    diag_error(diag, kernel->location, "'%s': Winograd's transform does not take this layout", kernel->name);
    return false;
  }
  if (tiles)
    convert_image(emit, kernel, out_work);
  else
    convert_filter(emit, kernel, out_work);
  return true;
}
