/* Tensors in memory: offsets under every layout, operands with broadcasting, epilogues, halos. */
#include <assert.h>

#include "emit.h"
#include "ride.h"

/* The dimension that a blocked layout splits; -1 when it splits none. */
static int32_t split_dim(const PlanTensor *tensor) {
  switch (tensor->layout.kind) {
    case LAYOUT_CHANNEL_BLOCK:
    case LAYOUT_TILES_WINOGRAD2:
    case LAYOUT_TILES_WINOGRAD4:
    case LAYOUT_CHANNEL_PHASES:
      return 1;
    case LAYOUT_FILTER_BLOCK:
    case LAYOUT_FILTER_HALVES:
    case LAYOUT_FILTER_THIRDS:
    case LAYOUT_FILTER_TILES:
    case LAYOUT_MATRIX_BLOCK:
    case LAYOUT_VECTOR_BLOCK:
    case LAYOUT_FILTER_WINOGRAD2:
    case LAYOUT_FILTER_WINOGRAD4:
    case LAYOUT_FILTER_PHASES:
    case LAYOUT_BATCH_BLOCK:
      return 0;
    case LAYOUT_PLAIN:
    case LAYOUT_CHANNEL_LAST:
    case LAYOUT_FILTER_LAST:
      return -1;
  }
  return -1;
}

/* Elements between neighbouring blocks along the split dimension. A blocked vector is dense by definition, so its
 * stride need not be consulted. */
static int64_t block_stride(const PlanTensor *tensor, int32_t dim) {
  return tensor->layout.kind == LAYOUT_VECTOR_BLOCK ? tensor->layout.block : tensor->storage.stride[dim];
}

int32_t emit_lane_dim(const PlanTensor *tensor) {
  if (tensor->layout.kind == LAYOUT_PLAIN) return tensor->shape.rank - 1;
  return tensor->layout.kind == LAYOUT_CHANNEL_LAST ? 1 : split_dim(tensor);
}

int32_t emit_lane_block(const PlanTensor *tensor) { return split_dim(tensor) >= 0 ? tensor->layout.block : 1; }

int32_t emit_channel_lanes(Emit *emit, const PlanTensor *tensor) {
  if (tensor->layout.kind != LAYOUT_CHANNEL_LAST) return emit_lane_block(tensor);
  int32_t lanes = emit->target->vector_lanes;
  while (tensor->shape.dims[1] % lanes != 0) lanes /= 2;
  return lanes;
}

Value emit_offset(Emit *emit, const PlanTensor *tensor, const Value *index) {
  int32_t split = split_dim(tensor);
  Value offset = emit_int(emit, 0);
  for (int32_t dim = 0; dim < tensor->shape.rank; dim++) {
    if (index[dim] == NULL) continue;
    int64_t stride = dim == split ? block_stride(tensor, dim) : tensor->storage.stride[dim];
    offset = emit_add(emit, offset, emit_mul_int(emit, index[dim], stride));
  }
  return emit_add_int(emit, offset, tensor->storage.origin);
}

Value emit_offset_element(Emit *emit, const PlanTensor *tensor, const Value *index) {
  int32_t split = split_dim(tensor);
  if (split < 0 || index[split] == NULL) return emit_offset(emit, tensor, index);
  Value blocks[SHAPE_MAX_RANK];
  for (int32_t dim = 0; dim < tensor->shape.rank; dim++) blocks[dim] = index[dim];
  blocks[split] = emit_div_int(emit, index[split], tensor->layout.block);
  Value lane = emit_mod_int(emit, index[split], tensor->layout.block);
  return emit_add(emit, emit_offset(emit, tensor, blocks), lane);
}

/* Lane by lane; elements past the extent of the lane dimension (the padding of the output's last block) repeat the
 * last one, so that nothing outside the operand is read. */
static Value gather_lanes(Emit *emit, const PlanTensor *operand, Value base, Value *element, int32_t lane_dim,
                          int32_t lanes) {
  Value first = element[lane_dim], last = emit_int(emit, operand->shape.dims[lane_dim] - 1);
  Value vector = LLVMGetPoison(emit_float_type(emit, lanes));
  for (int32_t lane = 0; lane < lanes; lane++) {
    element[lane_dim] = emit_min(emit, emit_add_int(emit, first, lane), last);
    Value value = emit_load(emit, base, emit_offset_element(emit, operand, element), 1);
    if (lanes == 1) return value;
    vector = LLVMBuildInsertElement(emit->builder, vector, value, emit_int(emit, lane), "");
  }
  return vector;
}

Value emit_load_broadcast(Emit *emit, const PlanTensor *operand, Value base, const PlanTensor *output,
                          const Value *index, int32_t lanes) {
  int32_t block = emit_lane_block(output), split = split_dim(operand);
  int32_t shift = output->shape.rank - operand->shape.rank;
  int32_t lane_dim = emit_lane_dim(output) - shift; /* in the operand's dimensions; negative: it lacks it */
  assert(shift >= 0);
  Value element[SHAPE_MAX_RANK] = {NULL};
  for (int32_t dim = 0; dim < operand->shape.rank; dim++) {
    if (operand->shape.dims[dim] != 1) element[dim] = index[dim + shift];
  }
  /* every lane is the same element */
  if (lane_dim < 0 || operand->shape.dims[lane_dim] == 1)
    return emit_splat(emit, emit_load(emit, base, emit_offset_element(emit, operand, element), 1), lanes);
  if (element[lane_dim] == NULL) element[lane_dim] = emit_int(emit, 0);
  /* blocked alike: block indices serve both, and the padding is there */
  if (block > 1 && split == lane_dim && operand->layout.block == block)
    return emit_load(emit, base, emit_offset(emit, operand, element), lanes);

  bool padded = block > 1 && operand->shape.dims[lane_dim] % block != 0;
  element[lane_dim] = emit_mul_int(emit, element[lane_dim], block);
  bool dense = split < 0 || operand->layout.kind == LAYOUT_VECTOR_BLOCK;
  if ((padded && lanes > 1) || (split == lane_dim && !dense))
    return gather_lanes(emit, operand, base, element, lane_dim, lanes);
  int64_t stride = operand->layout.kind == LAYOUT_VECTOR_BLOCK ? 1 : operand->storage.stride[lane_dim];
  return emit_load_strided(emit, base, emit_offset_element(emit, operand, element), stride, lanes);
}

/* --- expressions ------------------------------------------------------------------------------------- */

typedef struct ExprContext {
  ExprBuilder builder; /* first: its context points at this struct */
  Emit *emit;
  int32_t lanes;
} ExprContext;

static ExprValue expr_constant(void *context, double value) {
  ExprContext *expr = context;
  return (ExprValue){.handle = emit_float(expr->emit, expr->lanes, value)};
}

static ExprValue expr_unary(void *context, ExprUnary operation, ExprValue a) {
  ExprContext *expr = context;
  return (ExprValue){.handle = emit_math(expr->emit, operation, a.handle, expr->lanes)};
}

static ExprValue expr_binary(void *context, ExprBinary operation, ExprValue a, ExprValue b) {
  static Value (*const build[])(Emit *, Value, Value) = {
      [EXPR_ADD] = emit_fadd, [EXPR_SUB] = emit_fsub, [EXPR_MUL] = emit_fmul,
      [EXPR_DIV] = emit_fdiv, [EXPR_MAX] = emit_fmax, [EXPR_MIN] = emit_fmin,
  };
  ExprContext *expr = context;
  return (ExprValue){.handle = build[operation](expr->emit, a.handle, b.handle)};
}

static ExprValue expr_select_less(void *context, ExprValue a, ExprValue b, ExprValue yes, ExprValue no) {
  ExprContext *expr = context;
  return (ExprValue){.handle = emit_fselect_less(expr->emit, a.handle, b.handle, yes.handle, no.handle)};
}

const ExprBuilder *emit_expr_builder(Emit *emit, int32_t lanes) {
  ExprContext *expr = arena_new(emit->arena, ExprContext);
  expr->emit = emit;
  expr->lanes = lanes;
  expr->builder = (ExprBuilder){expr, expr_constant, expr_unary, expr_binary, expr_select_less};
  return &expr->builder;
}

Value emit_epilogue_with(Emit *emit, Value value, int32_t lanes, EmitOperandLoad load, void *context) {
  const PlanKernel *kernel = emit->kernel;
  const ExprBuilder *builder = kernel->epilogue_count > 0 ? emit_expr_builder(emit, lanes) : NULL;
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    const EpilogueStep *step = &kernel->epilogue[i];
    ExprValue a = {.handle = value}, b = {.handle = NULL};
    if (step->operand >= 0) b.handle = load(emit, context, step->operand);
    const OpInfo *info = op_info(step->op);
    value = (step->reversed ? info->expr(builder, &step->attrs, b, a) : info->expr(builder, &step->attrs, a, b)).handle;
  }
  ride_note(emit, value, lanes);
  return value;
}

typedef struct EpiloguePlace {
  const Value *index;
  int32_t lanes;
} EpiloguePlace;

static Value load_epilogue_operand(Emit *emit, void *context, int32_t input) {
  const EpiloguePlace *place = context;
  return emit_load_broadcast(emit, &emit->kernel->inputs[input], emit->inputs[input], &emit->kernel->output,
                             place->index, place->lanes);
}

Value emit_epilogue(Emit *emit, Value value, const Value *index, int32_t lanes) {
  EpiloguePlace place = {index, lanes};
  return emit_epilogue_with(emit, value, lanes, load_epilogue_operand, &place);
}

/* --- halo -------------------------------------------------------------------------------------------- */

/* Elements [begin, end) from `offset` on, in vectors of `lanes` that divide them. */
static void zero_vectors(Emit *emit, Value offset, int64_t begin, int64_t end, int32_t lanes) {
  enum { UNROLLED_STORES = 8 };
  Value zeros = emit_float(emit, lanes, 0);
  if (end - begin <= UNROLLED_STORES * lanes) {
    for (int64_t at = begin; at < end; at += lanes)
      emit_store(emit, emit->output, emit_add_int(emit, offset, at), zeros);
    return;
  }
  EmitLoop at = emit_loop_outer(emit, emit_int(emit, begin), emit_int(emit, end), lanes, "zeros");
  emit_store(emit, emit->output, emit_add(emit, offset, at.index), zeros);
  emit_loop_end(emit, &at);
}

static void emit_zeros(Emit *emit, Value offset, int64_t count) {
  int32_t lanes = emit->target->vector_lanes;
  int64_t whole = count - count % lanes;
  zero_vectors(emit, offset, 0, whole, lanes);
  zero_vectors(emit, offset, whole, count, 1);
}

/* Of a piece of a joined value with channels last, the channels of other pieces stay as they are. */
static void zero_pixels(Emit *emit, const PlanTensor *output, Value offset, int64_t pixels) {
  const int64_t column = output->storage.stride[3], channels = output->shape.dims[1];
  if (output->layout.kind != LAYOUT_CHANNEL_LAST || column == channels) {
    emit_zeros(emit, offset, pixels * column);
    return;
  }
  EmitLoop pixel = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, pixels), 1, "pixel");
  emit_zeros(emit, emit_add(emit, offset, emit_mul_int(emit, pixel.index, column)), channels);
  emit_loop_end(emit, &pixel);
}

/* `count` rows of the halo from row `y` of the image at `start` on. */
static void zero_rows(Emit *emit, Value start, int64_t y, int64_t count) {
  const PlanTensor *output = &emit->kernel->output;
  const int32_t *halo = output->storage.halo;
  const int64_t row = output->storage.stride[2];
  EmitLoop number = emit_loop_outer(emit, emit_int(emit, y), emit_int(emit, y + count), 1, "halo.row");
  zero_pixels(emit, output, emit_add(emit, start, emit_mul_int(emit, number.index, row)),
              halo[1] + output->shape.dims[3] + halo[3]);
  emit_loop_end(emit, &number);
}

static void zero_sides(Emit *emit, Value start, Value y) {
  const PlanTensor *output = &emit->kernel->output;
  const int32_t *halo = output->storage.halo;
  const int64_t column = output->storage.stride[3]; /* the block, 1 when plain, or all channels */
  Value side = emit_add(emit, start, emit_mul_int(emit, y, output->storage.stride[2]));
  if (halo[1] > 0) zero_pixels(emit, output, side, halo[1]);
  side = emit_add_int(emit, side, (halo[1] + output->shape.dims[3]) * column);
  if (halo[3] > 0) zero_pixels(emit, output, side, halo[3]);
}

/* What is above and below the image, where it is known to have been reached. */
static void zero_ends(Emit *emit, Value start, Value at_top, Value at_bottom) {
  const PlanTensor *output = &emit->kernel->output;
  const int32_t *halo = output->storage.halo;
  if (halo[0] > 0) {
    EmitIf top = emit_if(emit, at_top, "halo.top");
    zero_rows(emit, start, -halo[0], halo[0]);
    emit_end_if(emit, &top);
  }
  if (halo[2] > 0) {
    EmitIf bottom = emit_if(emit, at_bottom, "halo.bottom");
    zero_rows(emit, start, output->shape.dims[2], halo[2]);
    emit_end_if(emit, &bottom);
  }
}

/* Offset of the first row's left end in the halo; false: there is none. */
static bool halo_start(Emit *emit, Value n, Value block, Value *out_start) {
  const PlanTensor *output = &emit->kernel->output;
  const int32_t *halo = output->storage.halo;
  if (output->shape.rank != 4 || (halo[0] | halo[1] | halo[2] | halo[3]) == 0) return false;
  const Value index[SHAPE_MAX_RANK] = {n, block};
  *out_start = emit_add_int(emit, emit_offset(emit, output, index), -halo[1] * output->storage.stride[3]);
  return true;
}

void emit_halo(Emit *emit, Value n, Value block, Value y) {
  Value start;
  if (!halo_start(emit, n, block, &start)) return;
  zero_sides(emit, start, y);
  zero_ends(emit, start, emit_equal(emit, y, emit_int(emit, 0)),
            emit_equal(emit, y, emit_int(emit, emit->kernel->output.shape.dims[2] - 1)));
}

void emit_halo_rows(Emit *emit, Value n, Value block, Value begin, Value end) {
  Value start, height = emit_int(emit, emit->kernel->output.shape.dims[2]);
  if (!halo_start(emit, n, block, &start)) return;
  EmitLoop y = emit_loop_outer(emit, begin, end, 1, "halo.side");
  zero_sides(emit, start, y.index);
  emit_loop_end(emit, &y);
  zero_ends(emit, start, emit_equal(emit, begin, emit_int(emit, 0)), emit_equal(emit, end, height));
}
