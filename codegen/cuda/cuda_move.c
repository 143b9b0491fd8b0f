/* Ops that move elements: copies, layouts, parts, repeats, constants. Most read their input as if it were a tensor of
 * the output's shape with other strides. */
#include <string.h>

#include "base/checked.h"
#include "cuda_emit.h"

/* --- copies ------------------------------------------------------------------------------------------- */

/* Neighbours in the input are apart in the output: squares of TILE × TILE elements go through shared memory, so that
 * both are read and written in order. A row of the square is longer by one element, against bank conflicts. */
enum { TILE = 32, TILE_ROWS = 8, TILE_LEAST = 16 };

typedef struct Transpose {
  const PlanKernel *kernel;
  int32_t from, to; /* the dimensions whose neighbours are adjacent in the input and in the output */
} Transpose;

static bool find_transpose(const PlanKernel *kernel, Transpose *out) {
  const Shape *shape = &kernel->output.shape;
  *out = (Transpose){kernel, cuda_adjacent_dim(&kernel->inputs[0]), cuda_adjacent_dim(&kernel->output)};
  if (out->from < 0 || out->to < 0 || out->from == out->to || kernel->inputs[0].shape.rank != shape->rank) return false;
  return shape->dims[out->from] >= TILE_LEAST && shape->dims[out->to] >= TILE_LEAST &&
         kernel->inputs[0].shape.dims[out->to] == shape->dims[out->to] && kernel->output.dtype == DTYPE_F32;
}

/* One half of the copy: `across` runs along the threads of a warp, `down` along the warps. */
static void begin_tile_loop(CudaEmit *emit, const Transpose *transpose, int32_t across, int32_t down) {
  const int64_t *dims = transpose->kernel->output.shape.dims;
  cuda_line(emit, 1, "for (int k = row; k < %d; k += %d) {", TILE, TILE_ROWS);
  cuda_line(emit, 2, "const %s d%d = begin%d + column, d%d = begin%d + k;", emit->index, (int)across, (int)across,
            (int)down, (int)down);
  cuda_line(emit, 2, "if (d%d >= %lld || d%d >= %lld) continue;", (int)across, (long long)dims[across], (int)down,
            (long long)dims[down]);
}

static void emit_transpose(CudaEmit *emit, const Transpose *transpose) {
  const PlanKernel *kernel = transpose->kernel;
  const Shape *shape = &kernel->output.shape;
  const int32_t from = transpose->from, to = transpose->to;
  const char *function = arena_format(emit->arena, "k_%s", op_info(kernel->op)->name), *index[SHAPE_MAX_RANK];
  int64_t blocks = 1;
  cuda_function(emit, kernel, function, TILE * TILE_ROWS);
  cuda_line(emit, 1, "SHARED(4) float tile[%d][%d];", TILE, TILE + 1);
  cuda_line(emit, 1, "const int column = thread_index() %% %d, row = thread_index() / %d;", TILE, TILE);
  for (int32_t d = shape->rank - 1; d >= 0; d--) {
    const bool tiled = d == from || d == to;
    const int64_t extent = shape->dims[d], count = tiled ? ceil_div(extent, TILE) : extent;
    index[d] = arena_format(emit->arena, "d%d", (int)d);
    const char *number = blocks == 1 ? "block_x()" : arena_format(emit->arena, "block_x() / %lld", (long long)blocks);
    if (d > 0) number = arena_format(emit->arena, "%s %% %lld", number, (long long)count);
    if (tiled)
      cuda_line(emit, 1, "const %s begin%d = %s * %d;", emit->index, (int)d, number, TILE);
    else
      cuda_line(emit, 1, "const %s d%d = %s;", emit->index, (int)d, number);
    blocks *= extent == DIM_BATCH ? 1 : count;
  }
  begin_tile_loop(emit, transpose, from, to);
  const PlanTensor *input = &kernel->inputs[0];
  cuda_line(emit, 2, "tile[k][column] = %s;",
            cuda_read(emit, input, arena_format(emit->arena, "in0[%s]", cuda_offset(emit, input, index))));
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "BLOCK_SYNC();");
  begin_tile_loop(emit, transpose, to, from);
  const char *value = cuda_epilogue(emit, 2, kernel, "tile[column][k]", index);
  cuda_line(emit, 2, "y[%s] = %s;", cuda_offset(emit, &kernel->output, index),
            cuda_written(emit, &kernel->output, value));
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  const bool batched = shape_batched(shape);
  cuda_launch(emit, function, TILE * TILE_ROWS, batched ? 0 : blocks, batched ? blocks : 0, 1);
}

/* y = in0, seen as `view`, times `factor`. */
static bool emit_copy(CudaEmit *emit, const PlanKernel *kernel, const PlanTensor *view, double factor) {
  PlanKernel viewed = *kernel;
  viewed.inputs = arena_copy(emit->arena, kernel->inputs, (size_t)kernel->input_count * sizeof *kernel->inputs);
  viewed.inputs[0] = *view;
  PlanKernel merged = cuda_merge_dims(emit, &viewed);
  Transpose transpose;
  if (factor == 1 && find_transpose(&merged, &transpose)) {
    emit_transpose(emit, &transpose);
    return true;
  }
  CudaMap map;
  cuda_map_begin(emit, &map, &merged, 0);
  const char *value = cuda_map_operand(emit, &map, 1, 0);
  int depth = cuda_lanes_begin(emit, &map, 1);
  if (factor == 1)
    cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), value);
  else
    cuda_line(emit, depth, "%s = %s * %s;", cuda_lane(emit, &map, "value"), value, cuda_float(emit, factor));
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_identity(CudaEmit *emit, const PlanKernel *kernel) { return emit_copy(emit, kernel, &kernel->inputs[0], 1); }
bool cuda_expand(CudaEmit *emit, const PlanKernel *kernel) { return emit_copy(emit, kernel, &kernel->inputs[0], 1); }

/* Filters with padded channels get zeros there. */
static bool emit_padded_copy(CudaEmit *emit, const PlanKernel *kernel) {
  PlanKernel padded = *kernel;
  int64_t channels = kernel->output.shape.dims[1];
  padded.output.shape.dims[1] = kernel->output.storage.stride[3];
  CudaMap map;
  cuda_map_begin(emit, &map, &padded, -1);
  cuda_line(emit, 1, "value = %s < %lld ? in0[%s] : 0.0f;", map.index[1], (long long)channels,
            cuda_offset(emit, &kernel->inputs[0], map.index));
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_convert(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *output = &kernel->output;
  bool padded = output->layout.kind == LAYOUT_FILTER_LAST && output->storage.stride[3] != output->shape.dims[1];
  return padded ? emit_padded_copy(emit, kernel) : emit_copy(emit, kernel, &kernel->inputs[0], 1);
}

/* The divisor does not depend on the batch: either both shapes have it, or none. */
bool cuda_mean_grad(CudaEmit *emit, const PlanKernel *kernel) {
  const Shape *from = &kernel->inputs[0].shape, *to = &kernel->output.shape;
  double factor = (double)cuda_elements_per_image(from) / (double)cuda_elements_per_image(to);
  if (shape_batched(from) == shape_batched(to)) return emit_copy(emit, kernel, &kernel->inputs[0], factor);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  const char *value = cuda_map_operand(emit, &map, 1, 0);
  cuda_line(emit, 1, "const float factor = %s / (float)batch;", cuda_float(emit, factor));
  int depth = cuda_lanes_begin(emit, &map, 1);
  cuda_line(emit, depth, "%s = %s * factor;", cuda_lane(emit, &map, "value"), value);
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_permute(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *input = &kernel->inputs[0];
  PlanTensor view = *input;
  for (int32_t d = 0; d < input->shape.rank; d++) {
    int64_t from = kernel->attrs.dims.values[d];
    if (from < 0) from += input->shape.rank;
    view.shape.dims[d] = input->shape.dims[from];
    view.storage.stride[d] = input->storage.stride[from];
  }
  return emit_copy(emit, kernel, &view, 1);
}

bool cuda_slice(CudaEmit *emit, const PlanKernel *kernel) {
  PlanTensor view = kernel->inputs[0];
  int64_t dim = kernel->attrs.dim < 0 ? kernel->attrs.dim + view.shape.rank : kernel->attrs.dim;
  view.storage.origin += kernel->attrs.start * view.storage.stride[dim];
  view.shape.dims[dim] = kernel->output.shape.dims[dim];
  return emit_copy(emit, kernel, &view, 1);
}

/* --- reshape ------------------------------------------------------------------------------------------ */

static bool is_dense(const PlanTensor *tensor) {
  int64_t step = 1;
  for (int32_t d = tensor->shape.rank - 1; d >= 0; d--) {
    if (tensor->shape.dims[d] != 1 && tensor->storage.stride[d] != step) return false;
    step *= tensor->shape.dims[d] < 0 ? 1 : tensor->shape.dims[d];
  }
  return true;
}

/* The row-major number of the element at `index`. */
static const char *row_major(CudaEmit *emit, const Shape *shape, const char *const *index) {
  PlanTensor dense = {.shape = *shape};
  int64_t step = 1;
  for (int32_t d = shape->rank - 1; d >= 0; d--) {
    dense.storage.stride[d] = step;
    step *= shape->dims[d] < 0 ? 1 : shape->dims[d];
  }
  return cuda_offset(emit, &dense, index);
}

/* The same number split by another shape. */
static void split_row_major(CudaEmit *emit, const Shape *shape, const char *number, const char **out_index) {
  int64_t inner = 1;
  for (int32_t d = shape->rank - 1; d >= 0; d--) {
    int64_t extent = shape->dims[d];
    const char *quotient = inner == 1 ? number : arena_format(emit->arena, "%s / %lld", number, (long long)inner);
    if (extent == 1)
      out_index[d] = "0";
    else
      out_index[d] = d == 0 ? quotient : arena_format(emit->arena, "%s %% %lld", quotient, (long long)extent);
    inner *= extent < 0 ? 1 : extent;
  }
}

static bool emit_reshape(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *input = &kernel->inputs[0], *output = &kernel->output;
  bool batched = shape_batched(&output->shape);
  if (is_dense(input) && kernel->epilogue_count == 0 && is_dense(output) && batched == shape_batched(&input->shape)) {
    int64_t count = cuda_elements_per_image(&output->shape);
    PlanKernel flat = *kernel;
    PlanTensor from = *input;
    flat.output.shape = batched ? (Shape){2, {DIM_BATCH, count}} : (Shape){1, {count}};
    flat.output.storage.stride[0] = batched ? count : 1;
    flat.output.storage.stride[1] = 1;
    flat.output.layout = from.layout = (Layout){LAYOUT_PLAIN, 0};
    from.shape = flat.output.shape;
    memcpy(from.storage.stride, flat.output.storage.stride, sizeof from.storage.stride);
    return emit_copy(emit, &flat, &from, 1);
  }
  CudaMap map;
  const char *index[SHAPE_MAX_RANK];
  cuda_map_begin(emit, &map, kernel, -1);
  cuda_line(emit, 1, "const %s number = %s; /* in row-major order */", emit->index,
            row_major(emit, &output->shape, map.index));
  split_row_major(emit, &input->shape, "number", index);
  cuda_line(emit, 1, "value = in0[%s];", cuda_offset(emit, input, index));
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_flatten(CudaEmit *emit, const PlanKernel *kernel) { return emit_reshape(emit, kernel); }
bool cuda_reshape(CudaEmit *emit, const PlanKernel *kernel) { return emit_reshape(emit, kernel); }

/* --- concat ------------------------------------------------------------------------------------------- */

/* Vectors along the joined dimension must not cross a border. */
static int32_t concat_vectors(const PlanKernel *kernel, int32_t dim) {
  enum { VECTOR = 4 };
  if (cuda_adjacent_dim(&kernel->output) != dim) return 0;
  for (int32_t i = 0; i < kernel->op_input_count; i++)
    if (kernel->inputs[i].shape.dims[dim] % VECTOR != 0) return -1;
  return 0;
}

bool cuda_concat(CudaEmit *emit, const PlanKernel *kernel) {
  int32_t rank = kernel->output.shape.rank;
  int32_t dim = (int32_t)(kernel->attrs.dim < 0 ? kernel->attrs.dim + rank : kernel->attrs.dim);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, concat_vectors(kernel, dim));
  const char *place = map.index[dim];
  int64_t begin = 0;
  for (int32_t i = 0; i < kernel->op_input_count; i++) {
    int64_t end = begin + kernel->inputs[i].shape.dims[dim];
    bool last = i + 1 == kernel->op_input_count;
    if (last)
      cuda_line(emit, 1, i == 0 ? "{" : "} else {");
    else
      cuda_line(emit, 1, "%sif (%s < %lld) {", i == 0 ? "" : "} else ", place, (long long)end);
    const char *index[SHAPE_MAX_RANK];
    memcpy(index, map.index, sizeof index);
    if (begin > 0) index[dim] = arena_format(emit->arena, "%s - %lld", place, (long long)begin);
    const char *value = cuda_map_read(emit, &map, 2, &kernel->inputs[i], i, index, "x");
    int depth = cuda_lanes_begin(emit, &map, 2);
    cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), value);
    cuda_lanes_end(emit, &map, 2);
    begin = end;
  }
  cuda_line(emit, 1, "}");
  cuda_map_end(emit, &map);
  return true;
}

/* --- constants ---------------------------------------------------------------------------------------- */

bool cuda_full(CudaEmit *emit, const PlanKernel *kernel) {
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  int depth = cuda_lanes_begin(emit, &map, 1);
  cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), cuda_float(emit, kernel->attrs.value));
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}

/* The last dimension is that of the classes. A class that does not exist gives NaN everywhere. */
bool cuda_one_hot(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *classes = &kernel->inputs[0];
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  cuda_line(emit, 1, "const i64 class_ = in0[%s];", cuda_offset(emit, classes, map.index));
  cuda_line(emit, 1, "value = class_ == %s ? 1.0f : 0.0f;", map.index[classes->shape.rank]);
  cuda_line(emit, 1, "if (class_ < 0 || class_ >= %lld) value = F32_NAN;", (long long)kernel->attrs.depth);
  cuda_map_end(emit, &map);
  return true;
}

/* --- padding ------------------------------------------------------------------------------------------ */

/* "const int row = h - 2;" brought inside as the mode says. */
static void emit_pad_place(CudaEmit *emit, const char *name, const char *place, int64_t before, int64_t size,
                           AttrWord mode) {
  cuda_line(emit, 1, "int %s = %s - %lld;", name, cuda_int(emit, place), (long long)before);
  if (mode == PADDING_REPLICATE)
    cuda_line(emit, 1, "%s = min_int(max_int(%s, 0), %lld);", name, name, (long long)size - 1);
  if (mode == PADDING_REFLECT)
    cuda_line(emit, 1, "%s = %s < 0 ? -%s : %s >= %lld ? %lld - %s : %s;", name, name, name, name, (long long)size,
              2 * ((long long)size - 1), name, name);
}

bool cuda_pad(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *input = &kernel->inputs[0];
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = input->shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, cuda_adjacent_dim(&kernel->output) == 1 ? 0 : -1);
  emit_pad_place(emit, "row", map.index[2], attrs->padding.values[0], dims[2], attrs->padding_mode);
  emit_pad_place(emit, "column", map.index[3], attrs->padding.values[1], dims[3], attrs->padding_mode);
  PlanTensor view = *input; /* a dimension of one element would be taken for a repeated one, which is as good */
  const char *const index[] = {map.index[0], map.index[1], "row", "column"};
  cuda_line(emit, 1, "if (row >= 0 && row < %lld && column >= 0 && column < %lld) {", (long long)dims[2],
            (long long)dims[3]);
  const char *value = cuda_map_read(emit, &map, 2, &view, 0, index, "x");
  int depth = cuda_lanes_begin(emit, &map, 2);
  cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), value);
  cuda_lanes_end(emit, &map, 2);
  cuda_line(emit, 1, "} else {");
  depth = cuda_lanes_begin(emit, &map, 2);
  cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), cuda_float(emit, attrs->value));
  cuda_lanes_end(emit, &map, 2);
  cuda_line(emit, 1, "}");
  cuda_map_end(emit, &map);
  return true;
}
