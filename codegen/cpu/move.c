/* Kernels that move elements without changing them: copies, reshape, permute, concat. (convert.c changes layouts.) */
#include "move.h"

#include <assert.h>

#include "conv.h"

/* Elements of a run that one work item copies: 16 KB. */
enum { RUN_ELEMENTS = 4096 };

bool move_is_dense(const PlanTensor *tensor, int32_t first) {
  int64_t step = 1;
  if (tensor->layout.kind != LAYOUT_PLAIN) return false;
  for (int32_t d = tensor->shape.rank - 1; d >= first; d--) {
    if (tensor->storage.stride[d] != step && tensor->shape.dims[d] != 1) return false;
    step *= tensor->shape.dims[d];
  }
  return true;
}

void move_run(Emit *emit, Value from, Value to, Value begin, Value end) {
  int32_t lanes = emit->target->vector_lanes;
  Value count = emit_sub(emit, end, begin);
  Value whole = emit_sub(emit, end, emit_mod_int(emit, count, lanes));
  for (int pass = 0; pass < 2; pass++) {
    int32_t step = pass == 0 ? lanes : 1;
    EmitLoop at = pass == 0 ? emit_loop_begin(emit, begin, whole, step, "vector")
                            : emit_loop_begin(emit, whole, end, step, "rest");
    Value value = emit_load(emit, emit->inputs[0], emit_add(emit, from, at.index), step);
    emit_store(emit, emit->output, emit_add(emit, to, at.index), value);
    emit_loop_end(emit, &at);
  }
}

/* --- rows -------------------------------------------------------------------------------------------- */

/* One row of the output, along its last dimension, from `stride` apart elements of an input. */
typedef struct Row {
  const PlanKernel *kernel;
  Value from; /* address */
  Value offset;
  int64_t stride;
  Value *index; /* of the row's first element in the output; index[dim] moves along the row */
  Value start;  /* index[dim] of the first element; NULL: 0 */
  int32_t dim;  /* -1: the row is one element */
} Row;

static void copy_lanes(Emit *emit, void *context, int32_t lanes, Value at) {
  const Row *row = context;
  const PlanTensor *output = &row->kernel->output;
  Value from = emit_add(emit, row->offset, emit_mul_int(emit, at, row->stride));
  if (row->dim >= 0) row->index[row->dim] = row->start ? emit_add(emit, row->start, at) : at;
  Value to = emit_offset(emit, output, row->index);
  if (output->dtype == DTYPE_I64) {
    assert(lanes == 1);
    emit_store_i64(emit, emit->output, to, emit_load_i64(emit, row->from, from));
    return;
  }
  Value value = emit_load_strided(emit, row->from, from, row->stride, lanes);
  value = emit_epilogue(emit, value, row->index, lanes);
  int64_t stride = row->dim >= 0 ? output->storage.stride[row->dim] : 1;
  emit_store_strided(emit, emit->output, to, stride, value, lanes);
}

static void copy_row(Emit *emit, Row *row, int64_t count) {
  int32_t lanes = row->kernel->output.dtype == DTYPE_F32 ? emit->target->vector_lanes : 1;
  emit_vector_loop(emit, count, lanes, copy_lanes, row);
}

/* The dimension along which rows run: the last one, unless it is the batch. */
static int32_t row_dim(const Shape *shape) {
  return shape->rank == 0 || shape->dims[shape->rank - 1] == DIM_BATCH ? -1 : shape->rank - 1;
}

/* Splits a work item into indices of all dimensions before `end`; says how many items there are. */
static KernelWork split_outer(Emit *emit, const Shape *shape, int32_t end, Value item, Value *index) {
  int64_t per_image = 1;
  for (int32_t d = 1; d < end; d++) per_image *= shape->dims[d];
  if (end > 0) emit_split(emit, item, end, shape->dims, index);
  return end > 0 ? work_per_image(shape->dims[0], per_image) : (KernelWork){.items = 1};
}

static void move_blocked_rows(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *out = &kernel->output;
  int32_t lanes = emit_lane_block(out);
  int64_t extents[] = {1, (out->shape.dims[1] + lanes - 1) / lanes, out->shape.dims[2]};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value index[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 3, extents, index);
  emit_halo(emit, index[0], index[1], index[2]);
  EmitLoop x = emit_loop_count(emit, out->shape.dims[3], 1, "x");
  index[3] = x.index;
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, &kernel->inputs[0], index), lanes);
  emit_store(emit, emit->output, emit_offset(emit, out, index), emit_epilogue(emit, value, index, lanes));
  emit_loop_end(emit, &x);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(out->shape.dims[0], extents[1] * extents[2]);
}

/* Both tensors are runs of numbers, per image when batched. */
static bool move_dense(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  int32_t first = shape_batched(&out->shape) ? 1 : 0;
  if (out->dtype != DTYPE_F32 || kernel->epilogue_count > 0 || !move_is_dense(in, first) || !move_is_dense(out, first))
    return false;
  int64_t elements = shape_elements_per_image(&out->shape);
  int64_t chunks = (elements + RUN_ELEMENTS - 1) / RUN_ELEMENTS;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], from[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (int64_t[]){1, chunks}, digit);
  if (first == 1) from[0] = digit[0];
  Value begin = emit_mul_int(emit, digit[1], RUN_ELEMENTS);
  Value end = emit_min(emit, emit_add_int(emit, begin, RUN_ELEMENTS), emit_int(emit, elements));
  move_run(emit, emit_offset(emit, in, from), emit_offset(emit, out, from), begin, end);
  emit_loop_end(emit, &item);
  *out_work = work_per_image(first == 1 ? DIM_BATCH : 1, chunks);
  return true;
}

static void copy_channels(Emit *emit, void *context, int32_t lanes, Value at) {
  const Row *row = context;
  row->index[1] = row->start ? emit_add(emit, row->start, at) : at;
  Value value = emit_load(emit, row->from, emit_add(emit, row->offset, at), lanes);
  value = emit_epilogue(emit, value, row->index, lanes);
  emit_store(emit, emit->output, emit_offset(emit, &row->kernel->output, row->index), value);
}

static void join_pixel(Emit *emit, const PlanKernel *kernel, int32_t inputs, Value *index, const Value *from) {
  int64_t first = 0;
  for (int32_t i = 0; i < inputs; i++) {
    const PlanTensor *in = &kernel->inputs[i];
    Row row = {.kernel = kernel, .from = emit->inputs[i], .offset = emit_offset(emit, in, from), .index = index};
    row.start = emit_int(emit, first);
    emit_vector_loop(emit, in->shape.dims[1], 0, copy_channels, &row);
    first += in->shape.dims[1];
  }
}

/* Channels last: what `inputs` hold of a pixel, one after the other. An item is a row; where a row of the only input
 * lies as one of the output it is copied as a whole. */
static void move_pixels(Emit *emit, const PlanKernel *kernel, int32_t inputs, KernelWork *out_work) {
  const PlanTensor *out = &kernel->output;
  const int64_t *dims = out->shape.dims;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], index[SHAPE_MAX_RANK] = {NULL}, from[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (int64_t[]){1, dims[2]}, digit);
  emit_halo(emit, digit[0], NULL, digit[1]);
  index[0] = from[0] = digit[0], index[2] = from[2] = digit[1];
  const bool whole = inputs == 1 && kernel->epilogue_count == 0 && out->storage.stride[3] == dims[1] &&
                     kernel->inputs[0].storage.stride[3] == dims[1];
  if (whole) {
    move_run(emit, emit_offset(emit, &kernel->inputs[0], from), emit_offset(emit, out, index), emit_int(emit, 0),
             emit_int(emit, dims[3] * dims[1]));
  } else {
    EmitLoop x = emit_loop_count(emit, dims[3], 1, "x");
    index[3] = from[3] = x.index;
    join_pixel(emit, kernel, inputs, index, from);
    emit_loop_end(emit, &x);
  }
  emit_loop_end(emit, &item);
  *out_work = work_per_image(dims[0], dims[2]);
}

void move_rows(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  if (out->layout.kind == LAYOUT_CHANNEL_BLOCK) {
    move_blocked_rows(emit, kernel, out_work);
    return;
  }
  if (out->layout.kind == LAYOUT_CHANNEL_LAST && in->layout.kind == LAYOUT_CHANNEL_LAST) {
    move_pixels(emit, kernel, 1, out_work);
    return;
  }
  if (move_dense(emit, kernel, out_work)) return;
  int32_t rank = out->shape.rank, dim = row_dim(&out->shape);
  Value index[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_outer(emit, &out->shape, dim >= 0 ? dim : rank, item.index, index);
  if (rank == 4) emit_halo(emit, index[0], index[1], index[2]);
  Row row = {
      .kernel = kernel, .from = emit->inputs[0], .offset = emit_offset(emit, in, index), .index = index, .dim = dim};
  row.stride = dim >= 0 ? in->storage.stride[dim] : 1;
  copy_row(emit, &row, dim >= 0 ? out->shape.dims[dim] : 1);
  emit_loop_end(emit, &item);
}

bool cpu_identity(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  move_rows(emit, kernel, out_work);
  return true;
}

/* --- reshape ----------------------------------------------------------------------------------------- */

/* Row-major position of an element within its image, or in the whole when there is no batch. */
static Value linear_index(Emit *emit, const Shape *shape, const Value *index) {
  Value linear = emit_int(emit, 0);
  for (int32_t d = shape_batched(shape) ? 1 : 0; d < shape->rank; d++) {
    linear = emit_mul_int(emit, linear, shape->dims[d]);
    if (index[d] != NULL) linear = emit_add(emit, linear, index[d]);
  }
  return linear;
}

bool cpu_reshape(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  if (move_dense(emit, kernel, out_work)) return true;
  int32_t first = shape_batched(&out->shape) ? 1 : 0, dim = row_dim(&out->shape);
  Value index[SHAPE_MAX_RANK] = {NULL}, from[SHAPE_MAX_RANK] = {NULL};
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_outer(emit, &out->shape, dim >= 0 ? dim : out->shape.rank, item.index, index);
  EmitLoop at = emit_loop_count(emit, dim >= 0 ? out->shape.dims[dim] : 1, 1, "at");
  if (dim >= 0) index[dim] = at.index;
  if (first == 1) from[0] = index[0];
  int32_t count = in->shape.rank - first;
  if (count > 0) emit_split(emit, linear_index(emit, &out->shape, index), count, &in->shape.dims[first], &from[first]);
  Row row = {
      .kernel = kernel, .from = emit->inputs[0], .offset = emit_offset(emit, in, from), .index = index, .dim = -1};
  copy_lanes(emit, &row, 1, emit_int(emit, 0));
  emit_loop_end(emit, &at);
  emit_loop_end(emit, &item);
  return true;
}

bool cpu_flatten(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  return cpu_reshape(emit, kernel, out_work, diag);
}

/* --- permute ----------------------------------------------------------------------------------------- */

bool cpu_permute(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  int32_t rank = out->shape.rank, dim = row_dim(&out->shape);
  Value index[SHAPE_MAX_RANK] = {NULL}, from[SHAPE_MAX_RANK] = {NULL};
  int64_t stride = 1;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  *out_work = split_outer(emit, &out->shape, dim >= 0 ? dim : rank, item.index, index);
  for (int32_t d = 0; d < rank; d++) {
    int64_t source = kernel->attrs.dims.values[d];
    if (source < 0) source += rank;
    from[source] = index[d];
    if (d == dim) stride = in->storage.stride[source];
  }
  if (rank == 4) conv_halo(emit, out, index[0], index[1], index[2]);
  Row row = {
      .kernel = kernel, .from = emit->inputs[0], .offset = emit_offset(emit, in, from), .index = index, .dim = dim};
  row.stride = stride;
  copy_row(emit, &row, dim >= 0 ? out->shape.dims[dim] : 1);
  emit_loop_end(emit, &item);
  return true;
}

/* --- concat ------------------------------------------------------------------------------------------ */

/* Channel-blocked: an item is row y of image n of all inputs. */
static bool emit_concat_blocked(Emit *emit, const PlanKernel *kernel, KernelWork *out_work) {
  const PlanTensor *out = &kernel->output;
  int32_t lanes = emit_lane_block(out);
  int64_t height = out->shape.dims[2], first = 0;
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[2], from[SHAPE_MAX_RANK] = {NULL}, to[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (int64_t[]){1, height}, digit);
  from[0] = to[0] = digit[0], from[2] = to[2] = digit[1];
  for (int32_t i = 0; i < kernel->op_input_count; i++) {
    const PlanTensor *in = &kernel->inputs[i];
    int64_t blocks = in->shape.dims[1] / lanes;
    EmitLoop block = emit_loop_count(emit, blocks, 1, "block");
    from[1] = block.index, to[1] = emit_add_int(emit, block.index, first);
    emit_halo(emit, to[0], to[1], to[2]);
    EmitLoop x = emit_loop_count(emit, out->shape.dims[3], 1, "x");
    from[3] = to[3] = x.index;
    Value value = emit_load(emit, emit->inputs[i], emit_offset(emit, in, from), lanes);
    emit_store(emit, emit->output, emit_offset(emit, out, to), emit_epilogue(emit, value, to, lanes));
    emit_loop_end(emit, &x);
    emit_loop_end(emit, &block);
    first += blocks;
  }
  emit_loop_end(emit, &item);
  *out_work = work_per_image(out->shape.dims[0], height);
  return true;
}

/* Plain: an item is one index of all dimensions but the joined one and the row. */
static bool emit_concat_plain(Emit *emit, const PlanKernel *kernel, int32_t dim, KernelWork *out_work) {
  const PlanTensor *out = &kernel->output;
  int32_t rank = out->shape.rank, last = rank - 1, outer_count = 0, outer[SHAPE_MAX_RANK];
  int64_t extents[SHAPE_MAX_RANK], per_image = 1;
  for (int32_t d = 0; d < last; d++) {
    if (d == dim) continue;
    outer[outer_count] = d, extents[outer_count] = out->shape.dims[d];
    if (outer_count++ > 0) per_image *= out->shape.dims[d];
  }
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digits[SHAPE_MAX_RANK], from[SHAPE_MAX_RANK] = {NULL}, to[SHAPE_MAX_RANK] = {NULL};
  if (outer_count > 0) emit_split(emit, item.index, outer_count, extents, digits);
  for (int32_t i = 0; i < outer_count; i++) from[outer[i]] = to[outer[i]] = digits[i];
  int64_t first = 0;
  for (int32_t i = 0; i < kernel->op_input_count; i++) {
    const PlanTensor *in = &kernel->inputs[i];
    EmitLoop along = emit_loop_count(emit, dim == last ? 1 : in->shape.dims[dim], 1, "along");
    if (dim != last) from[dim] = along.index, to[dim] = emit_add_int(emit, along.index, first);
    Row row = {.kernel = kernel, .from = emit->inputs[i], .index = to, .dim = last};
    row.offset = emit_offset(emit, in, from), row.stride = in->storage.stride[last];
    if (dim == last) row.start = emit_int(emit, first);
    copy_row(emit, &row, in->shape.dims[last]);
    to[last] = NULL;
    emit_loop_end(emit, &along);
    first += in->shape.dims[dim];
  }
  emit_loop_end(emit, &item);
  *out_work = outer_count > 0 ? work_per_image(extents[0], per_image) : (KernelWork){.items = 1};
  return true;
}

bool cpu_concat(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *out = &kernel->output;
  int64_t dim = kernel->attrs.dim < 0 ? kernel->attrs.dim + out->shape.rank : kernel->attrs.dim;
  if (out->layout.kind == LAYOUT_PLAIN) return emit_concat_plain(emit, kernel, (int32_t)dim, out_work);
  if (out->layout.kind == LAYOUT_CHANNEL_LAST && dim == 1) {
    move_pixels(emit, kernel, kernel->op_input_count, out_work);
    return true;
  }
  for (int32_t i = 0; i < kernel->op_input_count; i++) {
    if (dim == 1 && kernel->inputs[i].shape.dims[1] % emit_lane_block(out) == 0) continue;
    diag_error(diag, kernel->location,
               "'%s': input %d of a blocked concat has %lld channels, expected a multiple of %d", kernel->name, (int)i,
               (long long)kernel->inputs[i].shape.dims[1], (int)emit_lane_block(out));
    return false;
  }
  return emit_concat_blocked(emit, kernel, out_work);
}
