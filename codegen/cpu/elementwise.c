/* Element-wise heads with their epilogues, on every layout.
 *
 * Output and operands are seen as one nest of axes: the output's dimensions, of which a blocked one gives two, its
 * blocks and, innermost, the lanes of a block. Every tensor has a stride per axis, 0 where it broadcasts. Neighbouring
 * axes that all tensors walk through without a gap become one, so that the common case, dense operands of one shape,
 * is a single long vector loop. The innermost axis is cut into chunks; a chunk is a work item.
 *
 * Operands whose layout has no such strides take a slower path that finds the place of every vector anew. */
#include <assert.h>

#include "base/checked.h"
#include "emit.h"
#include "ride.h"
#include "work.h"

enum {
  MAX_TENSORS = 32,
  MAX_AXES = SHAPE_MAX_RANK + 1,
  CHUNK_ELEMENTS = 8192 /* of the innermost axis in a work item: 32 KiB of f32, a few microseconds */
};

typedef struct Axis {
  int64_t extent;              /* the batch counts as 1 */
  int64_t stride[MAX_TENSORS]; /* elements; the output is tensor 0, input i is i + 1 */
  bool apart;                  /* never merged with the next axis */
} Axis;

typedef struct Nest {
  const PlanKernel *kernel;
  Axis axes[MAX_AXES];
  int32_t count;
  int32_t tensors;
  bool batched; /* axis 0 is the batch */
} Nest;

/* --- halo -------------------------------------------------------------------------------------------- */

static bool has_halo(const PlanTensor *output) {
  const int32_t *halo = output->storage.halo;
  return output->shape.rank == 4 && (halo[0] | halo[1] | halo[2] | halo[3]) != 0;
}

/* Once per row: where `part`, the position within the row, is 0. `index` as for emit_halo. */
static void emit_row_halo(Emit *emit, const PlanTensor *output, Value n, Value block, Value y, Value part) {
  if (!has_halo(output)) return;
  EmitIf first = emit_if(emit, emit_equal(emit, part, emit_int(emit, 0)), "halo");
  emit_halo(emit, n, block, y);
  emit_end_if(emit, &first);
}

/* --- axes -------------------------------------------------------------------------------------------- */

/* Stride of an operand along the output's dimension `dim`, and along the lanes when `dim` is blocked. False when the
 * operand's layout does not have one. */
static bool operand_strides(const PlanTensor *operand, const PlanTensor *output, int32_t dim, int64_t *out_stride,
                            int64_t *out_lane_stride) {
  int32_t own_dim = dim - (output->shape.rank - operand->shape.rank);
  *out_stride = *out_lane_stride = 0;
  if (own_dim < 0) return true;
  int32_t block = emit_lane_block(output), own_block = emit_lane_block(operand);
  bool split = block > 1 && emit_lane_dim(output) == dim;
  bool own_split = own_block > 1 && emit_lane_dim(operand) == own_dim;
  int64_t extent = operand->shape.dims[own_dim], stride = operand->storage.stride[own_dim];
  if (extent == 1 && output->shape.dims[dim] != 1) return true;
  bool dense_vector = operand->layout.kind == LAYOUT_VECTOR_BLOCK;
  if (own_split && !dense_vector) {
    *out_stride = stride;
    *out_lane_stride = 1;
    return split && block == own_block;
  }
  if (dense_vector) stride = 1;
  if (!split) {
    *out_stride = stride;
    return true;
  }
  /* lanes past the last channel may be read only where they exist */
  *out_stride = stride * block;
  *out_lane_stride = stride;
  return extent % block == 0 || (dense_vector && own_block % block == 0);
}

static bool nest_build(const PlanKernel *kernel, Nest *nest) {
  const PlanTensor *output = &kernel->output;
  int32_t block = emit_lane_block(output), lane_dim = emit_lane_dim(output), rank = output->shape.rank;
  *nest = (Nest){.kernel = kernel, .tensors = kernel->input_count + 1, .batched = shape_batched(&output->shape)};
  assert(nest->tensors <= MAX_TENSORS);
  static const int32_t last_order[4] = {0, 2, 3, 1};
  bool rows_apart = has_halo(output), last = output->layout.kind == LAYOUT_CHANNEL_LAST;
  Axis lanes = {.extent = block};
  for (int32_t i = 0; i < rank; i++) {
    int32_t dim = last ? last_order[i] : i;
    Axis *axis = &nest->axes[nest->count++];
    bool split = block > 1 && dim == lane_dim;
    int64_t extent = output->shape.dims[dim] == DIM_BATCH ? 1 : output->shape.dims[dim];
    axis->extent = split ? ceil_div(extent, block) : extent;
    axis->apart = (dim == 0 && nest->batched) || (rows_apart && dim < 3 && !(last && dim == 1));
    for (int32_t t = 0; t < nest->tensors; t++) {
      int64_t lane_stride;
      const PlanTensor *tensor = t == 0 ? output : &kernel->inputs[t - 1];
      if (!operand_strides(tensor, output, dim, &axis->stride[t], &lane_stride)) return false;
      if (split) lanes.stride[t] = lane_stride;
    }
  }
  if (block > 1) nest->axes[nest->count++] = lanes;
  /* a scalar: one axis of one element; a vector of images: the batch is no inner axis */
  if (nest->count == (nest->batched ? 1 : 0)) nest->axes[nest->count++] = (Axis){.extent = 1};
  return true;
}

/* Walks memory in order: the axis of the output's smallest stride becomes the innermost. */
static void nest_sort(Nest *nest) {
  for (int32_t i = nest->batched ? 2 : 1; i < nest->count; i++) {
    Axis moved = nest->axes[i];
    int32_t at = i;
    for (; at > (nest->batched ? 1 : 0) && nest->axes[at - 1].stride[0] < moved.stride[0]; at--)
      nest->axes[at] = nest->axes[at - 1];
    nest->axes[at] = moved;
  }
}

static bool axes_join(const Nest *nest, const Axis *outer, const Axis *inner) {
  if (outer->apart) return false;
  for (int32_t t = 0; t < nest->tensors; t++) {
    if (outer->extent != 1 && outer->stride[t] != inner->stride[t] * inner->extent) return false;
  }
  return true;
}

static void nest_merge(Nest *nest) {
  int32_t count = 1;
  for (int32_t i = 1; i < nest->count; i++) {
    Axis *outer = &nest->axes[count - 1], inner = nest->axes[i];
    bool inner_is_one = inner.extent == 1 && !outer->apart;
    if (inner_is_one) {
      outer->apart = inner.apart;
    } else if (axes_join(nest, outer, &inner)) {
      inner.extent *= outer->extent;
      *outer = inner;
    } else {
      nest->axes[count++] = inner;
    }
  }
  nest->count = count;
}

/* --- values ------------------------------------------------------------------------------------------ */

typedef struct Element {
  const Nest *nest;
  Value *offsets; /* per tensor, of lane 0 */
  int32_t lanes;
} Element;

static Value load_by_stride(Emit *emit, void *context, int32_t input) {
  const Element *element = context;
  const Axis *inner = &element->nest->axes[element->nest->count - 1];
  return emit_load_strided(emit, emit->inputs[input], element->offsets[input + 1], inner->stride[input + 1],
                           element->lanes);
}

static Value head_value(Emit *emit, const PlanKernel *kernel, int32_t lanes, EmitOperandLoad load, void *context) {
  ExprValue a = {.handle = load(emit, context, 0)}, b = {.handle = NULL};
  if (kernel->op_input_count > 1) b.handle = load(emit, context, 1);
  return op_info(kernel->op)->expr(emit_expr_builder(emit, lanes), &kernel->attrs, a, b).handle;
}

/* --- the fast path ----------------------------------------------------------------------------------- */

typedef struct Chunk {
  const Nest *nest;
  Value start[MAX_TENSORS]; /* offsets of the chunk's first element */
} Chunk;

static void compute_vector(Emit *emit, const Chunk *chunk, int32_t lanes, Value index) {
  const Nest *nest = chunk->nest;
  const Axis *inner = &nest->axes[nest->count - 1];
  Value offsets[MAX_TENSORS];
  for (int32_t t = 0; t < nest->tensors; t++)
    offsets[t] = emit_add(emit, chunk->start[t], emit_mul_int(emit, index, inner->stride[t]));
  Element element = {nest, offsets, lanes};
  Value value = head_value(emit, nest->kernel, lanes, load_by_stride, &element);
  value = emit_epilogue_with(emit, value, lanes, load_by_stride, &element);
  emit_store_strided(emit, emit->output, offsets[0], inner->stride[0], value, lanes);
}

/* Elements [0, count) of the chunk; count is known only at run time. */
static void compute_chunk(Emit *emit, const Chunk *chunk, Value count, int64_t extent) {
  int32_t lanes = emit->target->vector_lanes;
  Value whole = emit_sub(emit, count, emit_mod_int(emit, count, lanes));
  EmitLoop vectors = emit_loop_begin(emit, emit_int(emit, 0), whole, lanes, "vector");
  compute_vector(emit, chunk, lanes, vectors.index);
  emit_loop_end(emit, &vectors);
  if (extent % lanes == 0) return;
  EmitLoop rest = emit_loop_begin(emit, whole, count, 1, "rest");
  compute_vector(emit, chunk, 1, rest.index);
  emit_loop_end(emit, &rest);
}

static KernelWork work_of(const Nest *nest, int64_t items) {
  return nest->batched ? (KernelWork){.items_per_batch = items} : (KernelWork){.items = items};
}

/* With channels last a row is one axis, or two where an operand broadcasts. */
static void emit_last_halo(Emit *emit, const Nest *nest, const Value *digits) {
  Value part = digits[2];
  for (int32_t i = 3; i < nest->count; i++) part = emit_add(emit, part, digits[i]);
  emit_row_halo(emit, &nest->kernel->output, digits[0], NULL, digits[1], part);
}

static void emit_nest(Emit *emit, const Nest *nest, KernelWork *out_work) {
  const PlanTensor *output = &nest->kernel->output;
  const Axis *inner = &nest->axes[nest->count - 1];
  int64_t extents[MAX_AXES], items = 1;
  for (int32_t i = 0; i < nest->count; i++) {
    extents[i] = i + 1 < nest->count ? nest->axes[i].extent : ceil_div(inner->extent, CHUNK_ELEMENTS);
    items *= extents[i];
  }
  *out_work = work_of(nest, items);
  if (items == 0) return;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digits[MAX_AXES];
  emit_split(emit, item.index, nest->count, extents, digits);
  Chunk chunk = {.nest = nest};
  Value first = emit_mul_int(emit, digits[nest->count - 1], CHUNK_ELEMENTS);
  for (int32_t t = 0; t < nest->tensors; t++) {
    const PlanTensor *tensor = t == 0 ? output : &nest->kernel->inputs[t - 1];
    Value start = emit_int(emit, tensor->storage.origin);
    for (int32_t i = 0; i + 1 < nest->count; i++)
      start = emit_add(emit, start, emit_mul_int(emit, digits[i], nest->axes[i].stride[t]));
    chunk.start[t] = emit_add(emit, start, emit_mul_int(emit, first, inner->stride[t]));
  }
  /* rows were kept apart, so the axes are image, channels (unless last), row, and what a row holds */
  if (has_halo(output) && output->layout.kind == LAYOUT_CHANNEL_LAST)
    emit_last_halo(emit, nest, digits);
  else
    emit_row_halo(emit, output, digits[0], digits[1], digits[2], digits[nest->count - 1]);
  bool one_chunk = extents[nest->count - 1] == 1;
  Value left = emit_sub(emit, emit_int(emit, inner->extent), one_chunk ? emit_int(emit, 0) : first);
  Value count = one_chunk ? left : emit_min(emit, left, emit_int(emit, CHUNK_ELEMENTS));
  compute_chunk(emit, &chunk, count, inner->extent);
  emit_loop_end(emit, &item);
}

/* --- the general path -------------------------------------------------------------------------------- */

typedef struct Place {
  const PlanKernel *kernel;
  Value *index; /* as emit_epilogue takes it */
  int32_t lane_dim, lanes;
} Place;

static Value load_by_index(Emit *emit, void *context, int32_t input) {
  const Place *place = context;
  return emit_load_broadcast(emit, &place->kernel->inputs[input], emit->inputs[input], &place->kernel->output,
                             place->index, place->lanes);
}

static void compute_place(Emit *emit, void *context, int32_t lanes, Value at) {
  Place *place = context;
  const PlanTensor *output = &place->kernel->output;
  bool blocked = emit_lane_block(output) > 1;
  if (!blocked && place->lane_dim >= 0) place->index[place->lane_dim] = at;
  place->lanes = lanes;
  Value value = head_value(emit, place->kernel, lanes, load_by_index, place);
  value = emit_epilogue_with(emit, value, lanes, load_by_index, place);
  int64_t stride = blocked || place->lane_dim < 0 ? 1 : output->storage.stride[place->lane_dim];
  emit_store_strided(emit, emit->output, emit_offset(emit, output, place->index), stride, value, lanes);
}

static void emit_places(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *output = &kernel->output;
  int32_t block = emit_lane_block(output), lane_dim = emit_lane_dim(output), rank = output->shape.rank;
  int64_t extents[SHAPE_MAX_RANK], items = 1;
  for (int32_t dim = 0; dim < rank; dim++) {
    extents[dim] = output->shape.dims[dim] == DIM_BATCH ? 1 : output->shape.dims[dim];
    if (dim == lane_dim) extents[dim] = block > 1 ? ceil_div(extents[dim], block) : 1;
    items *= extents[dim];
  }
  int64_t width = block > 1 || rank == 0 ? 1 : output->shape.dims[lane_dim];
  *out_work = shape_batched(&output->shape) ? (KernelWork){.items_per_batch = items} : (KernelWork){.items = items};
  if (items == 0 || width == 0) return;
  if (width == DIM_BATCH) width = 1;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value index[SHAPE_MAX_RANK];
  emit_split(emit, item.index, rank, extents, index);
  bool runtime_lane = lane_dim == 0 && shape_batched(&output->shape);
  Place place = {kernel, index, runtime_lane ? -1 : lane_dim, 1};
  const Value channels = output->layout.kind == LAYOUT_CHANNEL_LAST ? NULL : index[1];
  emit_row_halo(emit, output, index[0], channels, index[2], lane_dim == 3 ? emit_int(emit, 0) : index[3]);
  if (block > 1) {
    compute_place(emit, &place, block, NULL);
  } else {
    emit_vector_loop(emit, width, 0, compute_place, &place);
  }
  emit_loop_end(emit, &item);
}

/* --- with reductions --------------------------------------------------------------------------------- */

enum { ROW_UNROLLED = 8 };

/* Elements [begin, end) of a row, `parts` vectors at a time; `step` is how far the place moves from one to the next. */
static void compute_part(Emit *emit, Place *place, int32_t dim, Value begin, Value end, int32_t parts, int32_t lanes,
                         int64_t step) {
  EmitLoop at = emit_loop_begin(emit, begin, end, parts * step, "part");
  for (int32_t i = 0; i < parts; i++) {
    place->index[dim] = emit_add_int(emit, at.index, i * step);
    compute_place(emit, place, lanes, place->index[dim]);
  }
  ride_take(emit, place->kernel->output.shape.rank == 4 ? place->index[1] : NULL);
  emit_loop_end(emit, &at);
}

static void compute_row(Emit *emit, Place *place, int32_t lanes) {
  const PlanTensor *output = &place->kernel->output;
  const bool blocked = emit_lane_block(output) > 1;
  const int32_t dim = output->shape.rank - 1;
  int64_t width = output->shape.dims[dim], step = blocked ? 1 : lanes;
  int64_t unrolled = width - width % (ROW_UNROLLED * step), whole = width - width % step;
  if (unrolled > 0)
    compute_part(emit, place, dim, emit_int(emit, 0), emit_int(emit, unrolled), ROW_UNROLLED, lanes, step);
  if (unrolled < whole) compute_part(emit, place, dim, emit_int(emit, unrolled), emit_int(emit, whole), 1, lanes, step);
  if (whole < width) compute_part(emit, place, dim, emit_int(emit, whole), emit_int(emit, width), 1, 1, 1);
}

/* Items are rows, as ir/work.h divides them. */
static void emit_rows(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *output = &kernel->output;
  const Shape *shape = &output->shape;
  const RowWork work = work_rows(shape, output->layout);
  int32_t block = emit_lane_block(output), lanes = block > 1 ? block : emit->target->vector_lanes, rank = shape->rank;
  int64_t extents[SHAPE_MAX_RANK + 1] = {1};
  int count = 1;
  for (int32_t d = 1; d < rank - 2; d++)
    extents[count++] = block > 1 && d == 1 ? ceil_div(shape->dims[d], block) : shape->dims[d];
  extents[count++] = work.chunks;
  int64_t items = work.planes * work.chunks;
  *out_work =
      shape_batched(shape) ? (KernelWork){.items_per_batch = items} : (KernelWork){.items = items * shape->dims[0]};
  out_work->scratch_bytes = ride_begin(emit, 0, ceil_div(shape->dims[rank - 1] * block, lanes));

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value index[SHAPE_MAX_RANK + 1] = {NULL};
  emit_split(emit, item.index, count, extents, index);
  Value begin = emit_mul_int(emit, index[count - 1], work.rows);
  Value end = emit_min(emit, emit_add_int(emit, begin, work.rows), emit_int(emit, work.height));
  Place place = {kernel, index, emit_lane_dim(output), lanes};
  ride_item(emit);
  EmitLoop y = emit_loop_begin(emit, begin, end, 1, "row");
  if (rank > 2) index[rank - 2] = y.index;
  if (has_halo(output)) emit_halo(emit, index[0], index[1], index[2]);
  compute_row(emit, &place, lanes);
  ride_row(emit);
  emit_loop_end(emit, &y);
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
}

bool cpu_elementwise(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  Nest nest;
  if (kernel->reduction_count > 0) {
    emit_rows(emit, kernel, out_work);
    return true;
  }
  if (nest_build(kernel, &nest)) {
    if (!has_halo(&kernel->output)) nest_sort(&nest);
    nest_merge(&nest);
    emit_nest(emit, &nest, out_work);
  } else {
    emit_places(emit, kernel, out_work);
  }
  return true;
}
