/* Matrix products: linear with packed weights, and matmul of two plain values. */
#include "base/checked.h"
#include "conv.h"

/* --- linear ------------------------------------------------------------------------------------------ */

/* Vectors of output features that an item computes together: enough chains of multiply-adds to hide their latency
 * when there is a single row. */
enum { UNIT_VECTORS = 4, VECTORS_MAX = 16, FEATURE_UNROLL = 4 };

/* y[row][k] = Σ_c x[row][c] · w[k][c] + bias[k]. Weights are panels [K/f][C][f]: the vectors of an item run over output
 * features, and a register tile holds some rows × the item's vectors. An element's products are added in the order of
 * c, whatever the tile. */
typedef struct Linear {
  Emit *emit;
  const PlanKernel *kernel;
  int32_t lanes, panel_vectors;
  int64_t features, channels;
  int64_t rows_per_image;
  Value panel;   /* of the item's first vector */
  Value feature; /* of lane 0 of the item's first vector */
} Linear;

/* Offset of element (row, feature) in a plain tensor whose last dimension is features. */
static Value row_offset(Linear *state, const PlanTensor *tensor, Value row, Value feature, Value *out_index) {
  int32_t outer = tensor->shape.rank - 1;
  emit_split(state->emit, row, outer, tensor->shape.dims, out_index);
  out_index[outer] = feature;
  return emit_offset(state->emit, tensor, out_index);
}

static Value load_weights(Linear *state, Value channel, int64_t vector) {
  const Storage *weights = &state->kernel->inputs[1].storage;
  int64_t offset = vector / state->panel_vectors * weights->stride[0] + vector % state->panel_vectors * state->lanes;
  return emit_load(state->emit, channel, emit_int(state->emit, offset), state->lanes);
}

/* Adds the bias, applies the epilogue and stores the first `count` lanes of one vector. */
static void store_features(Linear *state, Value row, Value feature, Value sum, int64_t count) {
  Emit *emit = state->emit;
  const PlanKernel *kernel = state->kernel;
  int32_t lanes = count == state->lanes ? state->lanes : 1;
  for (int64_t lane = 0; lane < count; lane += lanes) {
    Value index[SHAPE_MAX_RANK] = {NULL};
    Value at = emit_add_int(emit, feature, lane);
    Value offset = row_offset(state, &kernel->output, row, at, index);
    Value value = lanes == 1 && state->lanes > 1
                      ? LLVMBuildExtractElement(emit->builder, sum, LLVMConstInt(emit->i32, (uint64_t)lane, 0), "")
                      : sum;
    if (kernel->op_input_count > 2) {
      Value bias = emit_load(emit, emit->inputs[2], emit_add_int(emit, at, kernel->inputs[2].storage.origin), lanes);
      value = emit_fadd(emit, value, bias);
    }
    emit_store(emit, emit->output, offset, emit_epilogue(emit, value, index, lanes));
  }
}

/* `rows` rows from `row` on, `vectors` vectors of features, the last one with `last_count` features. */
static void emit_tile(Linear *state, Value row, int64_t rows, int64_t vectors, int64_t last_count) {
  Emit *emit = state->emit;
  LLVMTypeRef type = emit_float_type(emit, state->lanes);
  Value *sums = arena_array(emit->arena, (size_t)(rows * vectors), Value),
        *input = arena_array(emit->arena, (size_t)rows, Value);
  for (int64_t i = 0; i < rows * vectors; i++) {
    sums[i] = emit_variable(emit, type, "sum");
    emit_set(emit, sums[i], emit_float(emit, state->lanes, 0));
  }
  for (int64_t i = 0; i < rows; i++) {
    Value index[SHAPE_MAX_RANK];
    Value offset = row_offset(state, &state->kernel->inputs[0], emit_add_int(emit, row, i), emit_int(emit, 0), index);
    input[i] = emit_address(emit, emit->inputs[0], offset);
  }
  int64_t input_step = state->kernel->inputs[0].storage.stride[state->kernel->inputs[0].shape.rank - 1];
  int64_t whole = state->channels / FEATURE_UNROLL * FEATURE_UNROLL;
  const int64_t bounds[3] = {0, whole, state->channels}, steps[2] = {FEATURE_UNROLL, 1};
  for (int part = 0; part < 2; part++) {
    if (bounds[part] == bounds[part + 1]) continue;
    EmitLoop c =
        emit_loop_begin(emit, emit_int(emit, bounds[part]), emit_int(emit, bounds[part + 1]), steps[part], "feature");
    for (int64_t unrolled = 0; unrolled < steps[part]; unrolled++) {
      Value at = emit_add_int(emit, c.index, unrolled), weights[VECTORS_MAX];
      Value channel =
          emit_address(emit, state->panel, emit_mul_int(emit, at, state->kernel->inputs[1].storage.stride[1]));
      for (int64_t v = 0; v < vectors; v++) weights[v] = load_weights(state, channel, v);
      for (int64_t i = 0; i < rows; i++) {
        Value x = emit_splat(emit, emit_load(emit, input[i], emit_mul_int(emit, at, input_step), 1), state->lanes);
        for (int64_t v = 0; v < vectors; v++) {
          Value sum = sums[i * vectors + v];
          emit_set(emit, sum, emit_fma(emit, x, weights[v], emit_get(emit, type, sum)));
        }
      }
    }
    emit_loop_end(emit, &c);
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t v = 0; v < vectors; v++)
      store_features(state, emit_add_int(emit, row, i), emit_add_int(emit, state->feature, v * state->lanes),
                     emit_get(emit, type, sums[i * vectors + v]), v == vectors - 1 ? last_count : state->lanes);
}

/* All rows for `vectors` vectors: tiles of as many rows as registers allow, then of fewer. */
static void emit_rows(Linear *state, int64_t vectors, int64_t last_count) {
  Emit *emit = state->emit;
  const Shape *shape = &state->kernel->output.shape;
  bool batched = shape->dims[0] == DIM_BATCH;
  int64_t limit = state->kernel->choice.tile_pixels > 0 ? state->kernel->choice.tile_pixels : 1;
  int64_t images = batched ? emit->max_batch : shape->dims[0], most;
  if (!checked_mul(images, state->rows_per_image, &most)) most = INT64_MAX;
  Value count = batched ? emit_mul_int(emit, emit->batch, state->rows_per_image) : emit_int(emit, most);
  Value begin = emit_int(emit, 0);
  for (int64_t rows = limit; rows > 0; rows = rows > 4 ? 4 : rows > 1 ? 1 : 0) {
    if (rows > most) continue;
    Value tiles = emit_div_int(emit, emit_sub(emit, count, begin), rows);
    Value end = emit_add(emit, begin, emit_mul_int(emit, tiles, rows));
    EmitLoop row = emit_loop_begin(emit, begin, end, rows, "row");
    emit_tile(state, row.index, rows, vectors, last_count);
    emit_loop_end(emit, &row);
    begin = end;
  }
}

bool cpu_linear(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *weights = &kernel->inputs[1];
  Linear state = {
      .emit = emit, .kernel = kernel, .features = weights->shape.dims[0], .channels = weights->shape.dims[1]};
  int32_t block = weights->layout.block;
  bool bias_packed = kernel->op_input_count < 3 || kernel->inputs[2].shape.dims[0] % emit->target->vector_lanes == 0 ||
                     kernel->inputs[2].layout.kind == LAYOUT_VECTOR_BLOCK;
  if (weights->layout.kind != LAYOUT_MATRIX_BLOCK || !bias_packed || kernel->output.layout.kind != LAYOUT_PLAIN ||
      kernel->inputs[0].layout.kind != LAYOUT_PLAIN) {
    diag_error(diag, kernel->location, "'%s': linear takes plain values and blocked weights", kernel->name);
    return false;
  }
  state.lanes = block % emit->target->vector_lanes == 0 ? emit->target->vector_lanes : 1;
  state.panel_vectors = block / state.lanes;
  if (state.panel_vectors > VECTORS_MAX) {
    diag_error(diag, kernel->location, "'%s': weights in blocks of %d are too wide", kernel->name, (int)block);
    return false;
  }
  state.rows_per_image = 1;
  for (int32_t d = 1; d < kernel->output.shape.rank - 1; d++) state.rows_per_image *= kernel->output.shape.dims[d];
  int64_t unit = round_up(UNIT_VECTORS < state.panel_vectors ? state.panel_vectors : UNIT_VECTORS, state.panel_vectors);
  int64_t vectors = ceil_div(state.features, state.lanes), units = ceil_div(vectors, unit);
  int64_t last_vectors = vectors - (units - 1) * unit, last_count = state.features - (vectors - 1) * state.lanes;
  *out_work = (KernelWork){.items = units};

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  state.feature = emit_mul_int(emit, item.index, unit * state.lanes);
  Value panel = emit_mul_int(emit, item.index, unit / state.panel_vectors * weights->storage.stride[0]);
  state.panel = emit_address(emit, emit->inputs[1], emit_add_int(emit, panel, weights->storage.origin));
  if (units == 1) {
    emit_rows(&state, last_vectors, last_count);
  } else if (last_vectors == unit && last_count == state.lanes) {
    emit_rows(&state, unit, state.lanes);
  } else {
    EmitIf full = emit_if(emit, emit_less(emit, item.index, emit_int(emit, units - 1)), "full_unit");
    emit_rows(&state, unit, state.lanes);
    emit_else(emit, &full);
    emit_rows(&state, last_vectors, last_count);
    emit_end_if(emit, &full);
  }
  emit_loop_end(emit, &item);
  return true;
}

/* --- matmul ------------------------------------------------------------------------------------------ */

typedef struct Matmul {
  Emit *emit;
  const PlanKernel *kernel;
  int64_t inner;             /* the dimension that is summed over */
  Value row[SHAPE_MAX_RANK]; /* of the output; the column is filled in */
  Value sum;
} Matmul;

/* Index of an operand's matrix: the output's leading dimensions, broadcast. */
static void operand_index(const Matmul *state, const PlanTensor *operand, Value *out_index) {
  int32_t shift = state->kernel->output.shape.rank - operand->shape.rank;
  for (int32_t d = 0; d < operand->shape.rank - 2; d++)
    out_index[d] = operand->shape.dims[d] == 1 ? NULL : state->row[d + shift];
}

static Value load_left(Matmul *state, Value k, int32_t lanes) {
  const PlanTensor *left = &state->kernel->inputs[0];
  Value index[SHAPE_MAX_RANK];
  operand_index(state, left, index);
  index[left->shape.rank - 2] = state->row[state->kernel->output.shape.rank - 2];
  index[left->shape.rank - 1] = k;
  return emit_load_strided(state->emit, state->emit->inputs[0], emit_offset(state->emit, left, index),
                           left->storage.stride[left->shape.rank - 1], lanes);
}

/* Along the right operand's last dimension, whichever of k and column that is. */
static Value load_right(Matmul *state, Value k, Value column, int32_t lanes) {
  const PlanTensor *right = &state->kernel->inputs[1];
  Value index[SHAPE_MAX_RANK];
  bool transposed = state->kernel->attrs.transpose;
  operand_index(state, right, index);
  index[right->shape.rank - 2] = transposed ? column : k;
  index[right->shape.rank - 1] = transposed ? k : column;
  return emit_load_strided(state->emit, state->emit->inputs[1], emit_offset(state->emit, right, index),
                           right->storage.stride[right->shape.rank - 1], lanes);
}

static void store_columns(Matmul *state, Value column, Value value, int32_t lanes) {
  const PlanTensor *output = &state->kernel->output;
  Value index[SHAPE_MAX_RANK];
  for (int32_t d = 0; d < output->shape.rank - 1; d++) index[d] = state->row[d];
  index[output->shape.rank - 1] = column;
  Value offset = emit_offset(state->emit, output, index);
  emit_store(state->emit, state->emit->output, offset, emit_epilogue(state->emit, value, index, lanes));
}

static void emit_columns(Emit *emit, void *context, int32_t lanes, Value column) {
  Matmul *state = context;
  LLVMTypeRef type = emit_float_type(emit, lanes);
  Value sum = emit_variable(emit, type, "sum");
  emit_set(emit, sum, emit_float(emit, lanes, 0));
  EmitLoop k = emit_loop_count(emit, state->inner, 1, "inner");
  Value left = emit_splat(emit, load_left(state, k.index, 1), lanes);
  Value product = emit_fma(emit, left, load_right(state, k.index, column, lanes), emit_get(emit, type, sum));
  emit_set(emit, sum, product);
  emit_loop_end(emit, &k);
  store_columns(state, column, emit_get(emit, type, sum), lanes);
}

/* With the right operand transposed both rows are contiguous: a dot product, in vectors of partial sums. */
static void emit_dot_products(Emit *emit, void *context, int32_t lanes, Value column) {
  Matmul *state = context;
  int32_t vector = emit->target->vector_lanes;
  int64_t whole = state->inner / vector * vector;
  (void)lanes;
  Value total = emit_variable(emit, emit->f32, "total");
  emit_set(emit, total, emit_float(emit, 1, 0));
  if (whole > 0) {
    LLVMTypeRef type = emit_float_type(emit, vector);
    Value sum = emit_variable(emit, type, "sum");
    emit_set(emit, sum, emit_float(emit, vector, 0));
    EmitLoop k = emit_loop_count(emit, whole, vector, "inner");
    Value product = emit_fma(emit, load_left(state, k.index, vector), load_right(state, k.index, column, vector),
                             emit_get(emit, type, sum));
    emit_set(emit, sum, product);
    emit_loop_end(emit, &k);
    emit_set(emit, total, emit_reduce_add(emit, emit_get(emit, type, sum), vector));
  }
  if (whole < state->inner) {
    EmitLoop k = emit_loop_begin(emit, emit_int(emit, whole), emit_int(emit, state->inner), 1, "inner");
    emit_set(emit, total,
             emit_fma(emit, load_left(state, k.index, 1), load_right(state, k.index, column, 1),
                      emit_get(emit, emit->f32, total)));
    emit_loop_end(emit, &k);
  }
  store_columns(state, column, emit_get(emit, emit->f32, total), 1);
}

/* Items are rows of the output. */
bool cpu_matmul(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const Shape *shape = &kernel->output.shape;
  const Shape *left = &kernel->inputs[0].shape;
  Matmul state = {.emit = emit, .kernel = kernel, .inner = left->dims[left->rank - 1]};
  int64_t rows = 1, columns = shape->dims[shape->rank - 1];
  for (int32_t d = 1; d < shape->rank - 1; d++) rows *= shape->dims[d];
  *out_work = work_per_image(shape->dims[0], rows);
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  emit_split(emit, item.index, shape->rank - 1, shape->dims, state.row);
  if (kernel->attrs.transpose) {
    EmitLoop column = emit_loop_count(emit, columns, 1, "column");
    emit_dot_products(emit, &state, 1, column.index);
    emit_loop_end(emit, &column);
  } else {
    emit_vector_loop(emit, columns, emit->target->vector_lanes, emit_columns, &state);
  }
  emit_loop_end(emit, &item);
  return true;
}
