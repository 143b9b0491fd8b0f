/* The end of a training step: optimisers over the flat state, the gradients' norm, and joining gradients.
 *
 * An item is a chunk of one segment of a row: a group's decayed or other elements, which share all their numbers. The
 * output may be the input state itself: an element is read before it is written, and what does not change is copied
 * only when it lies elsewhere. */
#include "base/checked.h"
#include "move.h"
#include "runs.h"
#include "wide.h"

/* --- chunks ------------------------------------------------------------------------------------------ */

/* The part of a row that an item has. */
typedef struct Chunk {
  Value begin, end; /* elements */
  Value group;
  Value decayed; /* i1 */
} Chunk;

/* Sets what item `item` has; returns how many there are. Segments are few: a select for each. */
static int64_t find_chunk(Emit *emit, const Attrs *attrs, Value item, Chunk *chunk) {
  int64_t items = 0, begin = 0;
  *chunk = (Chunk){emit_int(emit, 0), emit_int(emit, 0), emit_int(emit, 0), LLVMConstInt(emit->i1, 0, 0)};
  for (int32_t segment = 0; segment < 2 * attrs->segments.count; segment++) {
    const IntList *ends = segment % 2 ? &attrs->segments : &attrs->decayed;
    const int64_t end = ends->values[segment / 2];
    if (end == begin) continue;
    Value first = emit_mul_int(emit, emit_add_int(emit, item, -items), TRAIN_CHUNK);
    first = emit_add_int(emit, first, begin);
    Value last = emit_min(emit, emit_add_int(emit, first, TRAIN_CHUNK), emit_int(emit, end));
    Value here = LLVMBuildNot(emit->builder, emit_less(emit, item, emit_int(emit, items)), "");
    chunk->begin = emit_select(emit, here, first, chunk->begin);
    chunk->end = emit_select(emit, here, last, chunk->end);
    chunk->group = emit_select(emit, here, emit_int(emit, segment / 2), chunk->group);
    chunk->decayed = emit_select(emit, here, LLVMConstInt(emit->i1, segment % 2 == 0, 0), chunk->decayed);
    items += ceil_div(end - begin, TRAIN_CHUNK);
    begin = end;
  }
  return items;
}

/* body(lanes, index) over [begin, end): whole vectors, then single elements. */
static void emit_range(Emit *emit, Value begin, Value end, EmitVectorBody body, void *context) {
  const int32_t lanes = emit->target->vector_lanes;
  Value count = emit_sub(emit, end, begin);
  Value whole = emit_sub(emit, end, emit_mod_int(emit, count, lanes));
  EmitLoop vectors = emit_loop_begin(emit, begin, whole, lanes, "vector");
  body(emit, context, lanes, vectors.index);
  emit_loop_end(emit, &vectors);
  EmitLoop rest = emit_loop_begin(emit, whole, end, 1, "rest");
  body(emit, context, 1, rest.index);
  emit_loop_end(emit, &rest);
}

/* --- optimisers -------------------------------------------------------------------------------------- */

enum { STATE, GRADIENT, HYPER, LOSS, NORM };

typedef struct Step {
  const PlanKernel *kernel;
  bool adam;
  Value scale, rate, momentum, decay;            /* scalars */
  Value beta2, eps, step_size, root_correction2; /* of Adam */
} Step;

static Value state_at(Emit *emit, const PlanTensor *tensor, int64_t row, Value at) {
  Value index[SHAPE_MAX_RANK] = {emit_int(emit, row), at};
  return emit_offset(emit, tensor, index);
}

static Value load_row(Emit *emit, const Step *step, int64_t row, Value at, int32_t lanes) {
  return emit_load(emit, emit->inputs[STATE], state_at(emit, &step->kernel->inputs[STATE], row, at), lanes);
}

static void store_row(Emit *emit, const Step *step, int64_t row, Value at, Value value) {
  emit_store(emit, emit->output, state_at(emit, &step->kernel->output, row, at), value);
}

static Value load_gradient(Emit *emit, const Step *step, Value at, int32_t lanes) {
  return emit_load(emit, emit->inputs[GRADIENT], emit_offset(emit, &step->kernel->inputs[GRADIENT], &at), lanes);
}

static void clear_accumulated(Emit *emit, const Step *step, int32_t lanes, Value at) {
  if (step->kernel->attrs.accumulate)
    store_row(emit, step, step->kernel->output.shape.dims[0] - 1, at, emit_float(emit, lanes, 0));
}

/* See eval_train.c for the sources. */
static void update_sgd(Emit *emit, void *context, int32_t lanes, Value at) {
  const Step *step = context;
  Value momentum = emit_splat(emit, step->momentum, lanes);
  Value parameter = load_row(emit, step, STATE_PARAMETERS, at, lanes);
  Value gradient = emit_fmul(emit, load_gradient(emit, step, at, lanes), emit_splat(emit, step->scale, lanes));
  gradient = emit_fma(emit, parameter, emit_splat(emit, step->decay, lanes), gradient);
  Value velocity = emit_fma(emit, momentum, load_row(emit, step, STATE_MOMENT1, at, lanes), gradient);
  Value direction = step->kernel->attrs.nesterov ? emit_fma(emit, momentum, velocity, gradient) : velocity;
  Value change = emit_fmul(emit, emit_splat(emit, step->rate, lanes), direction);
  store_row(emit, step, STATE_PARAMETERS, at, emit_fsub(emit, parameter, change));
  store_row(emit, step, STATE_MOMENT1, at, velocity);
  clear_accumulated(emit, step, lanes, at);
}

static void update_adam(Emit *emit, void *context, int32_t lanes, Value at) {
  const Step *step = context;
  Value one = emit_float(emit, lanes, 1);
  Value beta1 = emit_splat(emit, step->momentum, lanes), beta2 = emit_splat(emit, step->beta2, lanes);
  Value parameter = load_row(emit, step, STATE_PARAMETERS, at, lanes);
  Value gradient = emit_fmul(emit, load_gradient(emit, step, at, lanes), emit_splat(emit, step->scale, lanes));
  Value square = emit_fmul(emit, gradient, gradient);
  Value moment1 = emit_fmul(emit, beta1, load_row(emit, step, STATE_MOMENT1, at, lanes));
  moment1 = emit_fma(emit, emit_fsub(emit, one, beta1), gradient, moment1);
  Value moment2 = emit_fmul(emit, beta2, load_row(emit, step, STATE_MOMENT2, at, lanes));
  moment2 = emit_fma(emit, emit_fsub(emit, one, beta2), square, moment2);
  Value deviation =
      emit_fdiv(emit, emit_math(emit, EXPR_SQRT, moment2, lanes), emit_splat(emit, step->root_correction2, lanes));
  deviation = emit_fadd(emit, deviation, emit_splat(emit, step->eps, lanes));
  Value change = emit_fdiv(emit, emit_fmul(emit, emit_splat(emit, step->step_size, lanes), moment1), deviation);
  parameter = emit_fmul(emit, parameter, emit_splat(emit, step->decay, lanes));
  store_row(emit, step, STATE_PARAMETERS, at, emit_fsub(emit, parameter, change));
  store_row(emit, step, STATE_MOMENT1, at, moment1);
  store_row(emit, step, STATE_MOMENT2, at, moment2);
  clear_accumulated(emit, step, lanes, at);
}

static void copy_rows(Emit *emit, void *context, int32_t lanes, Value at) {
  const Step *step = context;
  for (int64_t row = 0; row < step->kernel->output.shape.dims[0]; row++)
    store_row(emit, step, row, at, load_row(emit, step, row, at, lanes));
}

static void keep_gradients(Emit *emit, void *context, int32_t lanes, Value at) {
  const Step *step = context;
  store_row(emit, step, step->kernel->output.shape.dims[0] - 1, at, load_gradient(emit, step, at, lanes));
}

static Value load_hyper(Emit *emit, const PlanKernel *kernel, Value group, int64_t column) {
  Value index[SHAPE_MAX_RANK] = {group, emit_int(emit, column)};
  return emit_load(emit, emit->inputs[HYPER], emit_offset(emit, &kernel->inputs[HYPER], index), 1);
}

static Value load_scalar(Emit *emit, const PlanKernel *kernel, int32_t input) {
  Value index[SHAPE_MAX_RANK] = {NULL};
  return emit_load(emit, emit->inputs[input], emit_offset(emit, &kernel->inputs[input], index), 1);
}

/* i1: neither infinite nor NaN, whose differences with themselves are NaN */
static Value is_finite(Emit *emit, Value value) {
  return LLVMBuildFCmp(emit->builder, LLVMRealOEQ, emit_fsub(emit, value, value), emit_float(emit, 1, 0), "");
}

/* Numbers of the chunk's group; `norm` may be NULL. */
static void load_numbers(Emit *emit, const PlanKernel *kernel, const Chunk *chunk, Value norm, Step *step) {
  Value zero = emit_float(emit, 1, 0), one = emit_float(emit, 1, 1), first = emit_int(emit, 0);
  step->scale = load_hyper(emit, kernel, first, HYPER_GRADIENT_SCALE);
  if (norm != NULL) {
    Value limit = load_hyper(emit, kernel, first, HYPER_CLIP_NORM);
    Value ratio = emit_fdiv(emit, limit, emit_fadd(emit, norm, emit_float(emit, 1, 1e-6)));
    ratio = emit_fmin(emit, ratio, one);
    step->scale = emit_fmul(emit, step->scale, emit_fselect_less(emit, zero, limit, ratio, one));
  }
  step->rate = load_hyper(emit, kernel, chunk->group, HYPER_LEARNING_RATE);
  step->momentum = load_hyper(emit, kernel, chunk->group, HYPER_MOMENTUM);
  Value decay = load_hyper(emit, kernel, chunk->group, HYPER_WEIGHT_DECAY);
  step->decay = emit_select(emit, chunk->decayed, decay, zero);
  if (!step->adam) return;
  step->decay = emit_fsub(emit, one, emit_fmul(emit, step->rate, step->decay));
  step->beta2 = load_hyper(emit, kernel, chunk->group, HYPER_BETA2);
  step->eps = load_hyper(emit, kernel, chunk->group, HYPER_EPS);
  step->step_size = emit_fdiv(emit, step->rate, load_hyper(emit, kernel, chunk->group, HYPER_CORRECTION1));
  step->root_correction2 = emit_math(emit, EXPR_SQRT, load_hyper(emit, kernel, chunk->group, HYPER_CORRECTION2), 1);
}

static void emit_update(Emit *emit, const PlanKernel *kernel, bool adam, KernelWork *out_work) {
  const bool accumulate = kernel->attrs.accumulate;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Chunk chunk;
  out_work->items = find_chunk(emit, &kernel->attrs, item.index, &chunk);
  Value norm = kernel->op_input_count > NORM ? load_scalar(emit, kernel, NORM) : NULL;
  Step step = {.kernel = kernel, .adam = adam};
  load_numbers(emit, kernel, &chunk, norm, &step);
  Value finite = is_finite(emit, load_scalar(emit, kernel, LOSS)), apply;
  if (norm != NULL) finite = emit_and(emit, finite, is_finite(emit, norm));
  apply = finite;
  if (accumulate) {
    Value wanted = load_hyper(emit, kernel, emit_int(emit, 0), HYPER_APPLY);
    wanted = LLVMBuildFCmp(emit->builder, LLVMRealUNE, wanted, emit_float(emit, 1, 0), "");
    apply = emit_and(emit, apply, wanted);
  }
  EmitIf update = emit_if(emit, apply, "apply");
  emit_range(emit, chunk.begin, chunk.end, adam ? update_adam : update_sgd, &step);
  emit_else(emit, &update);
  Value elsewhere = LLVMBuildICmp(emit->builder, LLVMIntNE, emit->output, emit->inputs[STATE], "elsewhere");
  EmitIf copy = emit_if(emit, elsewhere, "copy");
  emit_range(emit, chunk.begin, chunk.end, copy_rows, &step);
  emit_end_if(emit, &copy);
  if (accumulate) {
    EmitIf keep = emit_if(emit, finite, "accumulate");
    emit_range(emit, chunk.begin, chunk.end, keep_gradients, &step);
    emit_end_if(emit, &keep);
  }
  emit_end_if(emit, &update);
  emit_loop_end(emit, &item);
}

static bool check_no_epilogue(const PlanKernel *kernel, Diag *diag) {
  if (kernel->epilogue_count == 0) return true;
  diag_error(diag, kernel->location, "'%s': %s takes no epilogue", kernel->name, op_info(kernel->op)->name);
  return false;
}

bool cpu_sgd_step(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  *out_work = (KernelWork){0};
  emit_update(emit, kernel, false, out_work);
  return check_no_epilogue(kernel, diag);
}

bool cpu_adam_step(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  *out_work = (KernelWork){0};
  emit_update(emit, kernel, true, out_work);
  return check_no_epilogue(kernel, diag);
}

/* --- norm -------------------------------------------------------------------------------------------- */

static void add_square(Emit *emit, void *context, int32_t lanes, Value at) {
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, &emit->kernel->inputs[0], &at), lanes);
  value = wide_from_float(emit, value, lanes);
  reduction_add(emit, context, emit_fmul(emit, value, value), lanes);
}

bool cpu_sum_squares(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value begin = emit_mul_int(emit, item.index, TRAIN_CHUNK);
  Value end = emit_min(emit, emit_add_int(emit, begin, TRAIN_CHUNK), emit_int(emit, kernel->inputs[0].shape.dims[0]));
  Reduction sum = reduction_begin(emit, false, emit->target->vector_lanes);
  emit_range(emit, begin, end, add_square, &sum);
  Value index[SHAPE_MAX_RANK] = {item.index};
  Value result = emit_epilogue(emit, wide_to_float(emit, reduction_end(emit, &sum), 1), index, 1);
  emit_store(emit, emit->output, emit_offset(emit, &kernel->output, index), result);
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = kernel->output.shape.dims[0]};
  return true;
}

/* --- pack -------------------------------------------------------------------------------------------- */

typedef struct Piece {
  Value base;
  int64_t from, to; /* elements from the buffers' begins */
} Piece;

static void copy_piece(Emit *emit, void *context, int32_t lanes, Value at) {
  const Piece *piece = context;
  Value value = emit_load(emit, piece->base, emit_add_int(emit, at, piece->from), lanes);
  emit_store(emit, emit->output, emit_add_int(emit, at, piece->to), value);
}

/* For inputs that do not lie in the output already; one item. */
bool cpu_pack(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  int64_t place = kernel->output.storage.origin;
  for (int32_t i = 0; i < kernel->op_input_count; i++) {
    const PlanTensor *in = &kernel->inputs[i];
    if (!move_is_dense(in, 0)) {
      diag_error(diag, kernel->location, "'%s': input %d of pack has gaps", kernel->name, (int)i);
      return false;
    }
    const int64_t count = shape_elements_per_image(&in->shape);
    Piece piece = {emit->inputs[i], in->storage.origin, place};
    emit_vector_loop(emit, count, emit->target->vector_lanes, copy_piece, &piece);
    place += count;
  }
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = 1};
  return check_no_epilogue(kernel, diag);
}
