/* Gradients of pooling, upsampling and padding. Each thread collects what belongs to one element of the input of the op
 * in question, so that nothing is added up in an order that depends on timing. */
#include "base/checked.h"
#include "cuda_emit.h"
#include "cuda_reduce.h"
#include "cuda_resample.h"

static int32_t channel_vectors(const PlanKernel *kernel, int32_t inputs) {
  return cuda_adjacent_dim(&kernel->output) == 1 ? inputs : -1;
}

static void clear_value(CudaEmit *emit, const CudaMap *map) {
  int depth = cuda_lanes_begin(emit, map, 1);
  cuda_line(emit, depth, "%s = 0.0f;", cuda_lane(emit, map, "value"));
  cuda_lanes_end(emit, map, 1);
}

static const char *image_offset(CudaEmit *emit, const CudaMap *map, int32_t input, const char *row,
                                const char *column) {
  const char *const index[] = {map->index[0], map->index[1], row, column};
  return cuda_offset(emit, &map->kernel->inputs[input], index);
}

/* value += the gradient at (y, x), times `factor`. */
static void add_gradient(CudaEmit *emit, const CudaMap *map, int depth, int32_t input, const char *factor) {
  cuda_map_load(emit, map, depth, input, "dy", image_offset(emit, map, input, "y_at", "x_at"));
  int inner = cuda_lanes_begin(emit, map, depth);
  cuda_line(emit, inner, "%s += %s%s;", cuda_lane(emit, map, "value"), cuda_lane(emit, map, "dy"), factor);
  cuda_lanes_end(emit, map, depth);
}

/* --- windows -------------------------------------------------------------------------------------------- */

/* Loops over the windows (y_at, x_at) of which this element is tap (r, s); the body stands at depth 3 and ends with
 * end_window_loops. */
static void begin_window_loops(CudaEmit *emit, const CudaMap *map, const Shape *pooled) {
  const Attrs *attrs = &map->kernel->attrs;
  static const char *const names[2][3] = {{"r", "down", "y_at"}, {"s", "across", "x_at"}};
  for (int d = 0; d < 2; d++) {
    long long stride = attrs->stride.values[d];
    cuda_line(emit, 1 + d, "for (int %s = 0; %s < %lld; %s++) {", names[d][0], names[d][0],
              (long long)attrs->kernel.values[d], names[d][0]);
    cuda_line(emit, 2 + d, "const int %s = %s + %lld - %s * %lld, %s = %s / %lld;", names[d][1],
              cuda_int(emit, map->index[2 + d]), (long long)attrs->padding.values[d], names[d][0],
              (long long)attrs->dilation.values[d], names[d][2], names[d][1], stride);
    cuda_line(emit, 2 + d, "if (%s < 0 || %s %% %lld != 0 || %s >= %lld) continue;", names[d][1], names[d][1], stride,
              names[d][2], (long long)pooled->dims[2 + d]);
  }
}

static void end_window_loops(CudaEmit *emit) {
  cuda_line(emit, 2, "}");
  cuda_line(emit, 1, "}");
}

/* Sets first[lane] to whether this element, x, is the first maximum of the box: nothing before it is as large, and
 * nothing after it larger. The box is that of `rows` and `columns`, loops that set row and column. */
static void emit_is_first(CudaEmit *emit, const CudaMap *map, int depth, const char *rows, const char *row_check,
                          const char *columns, const char *column_check) {
  if (map->lanes > 1)
    cuda_line(emit, depth, "int first[%d] = {1, 1, 1, 1};", (int)map->lanes);
  else
    cuda_line(emit, depth, "int first = 1;");
  cuda_line(emit, depth, "%s {", rows);
  if (row_check) cuda_line(emit, depth + 1, "%s", row_check);
  cuda_line(emit, depth + 1, "%s {", columns);
  if (column_check) cuda_line(emit, depth + 2, "%s", column_check);
  const char *h = cuda_int(emit, map->index[2]), *w = cuda_int(emit, map->index[3]);
  cuda_line(emit, depth + 2, "const int before = row < %s || (row == %s && column < %s);", h, h, w);
  cuda_map_load(emit, map, depth + 2, 0, "other", image_offset(emit, map, 0, "row", "column"));
  int inner = cuda_lanes_begin(emit, map, depth + 2);
  const char *x = cuda_lane(emit, map, "x"), *other = cuda_lane(emit, map, "other");
  cuda_line(emit, inner, "if (before ? !exceeds_f32(%s, %s) : exceeds_f32(%s, %s)) %s = 0;", x, other, other, x,
            cuda_lane(emit, map, "first"));
  cuda_lanes_end(emit, map, depth + 2);
  cuda_line(emit, depth + 1, "}");
  cuda_line(emit, depth, "}");
}

static void add_if_first(CudaEmit *emit, const CudaMap *map, int depth) {
  cuda_map_load(emit, map, depth, 1, "dy", image_offset(emit, map, 1, "y_at", "x_at"));
  int inner = cuda_lanes_begin(emit, map, depth);
  cuda_line(emit, inner, "if (%s) %s += %s;", cuda_lane(emit, map, "first"), cuda_lane(emit, map, "value"),
            cuda_lane(emit, map, "dy"));
  cuda_lanes_end(emit, map, depth);
}

bool cuda_max_pool2d_grad(CudaEmit *emit, const PlanKernel *kernel) {
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = kernel->inputs[0].shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel, 2));
  clear_value(emit, &map);
  cuda_map_load(emit, &map, 1, 0, "x", image_offset(emit, &map, 0, map.index[2], map.index[3]));
  begin_window_loops(emit, &map, &kernel->inputs[1].shape);
  const char *loops[2], *checks[2];
  static const char *const names[2][3] = {{"p", "row", "y_at"}, {"q", "column", "x_at"}};
  for (int d = 0; d < 2; d++) {
    loops[d] = arena_format(emit->arena, "for (int %s = 0; %s < %lld; %s++)", names[d][0], names[d][0],
                            (long long)attrs->kernel.values[d], names[d][0]);
    checks[d] = arena_format(
        emit->arena, "const int %s = %s * %lld - %lld + %s * %lld; if (%s < 0 || %s >= %lld) continue;", names[d][1],
        names[d][2], (long long)attrs->stride.values[d], (long long)attrs->padding.values[d], names[d][0],
        (long long)attrs->dilation.values[d], names[d][1], names[d][1], (long long)dims[2 + d]);
  }
  emit_is_first(emit, &map, 3, loops[0], checks[0], loops[1], checks[1]);
  add_if_first(emit, &map, 3);
  end_window_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}

/* The divisor of avg_pool2d. */
bool cuda_avg_pool2d_grad(CudaEmit *emit, const PlanKernel *kernel) {
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = kernel->output.shape.dims;
  static const char *const names[2][3] = {{"y_at", "height", "inside_height"}, {"x_at", "width", "inside_width"}};
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel, 1));
  clear_value(emit, &map);
  begin_window_loops(emit, &map, &kernel->inputs[0].shape);
  for (int d = 0; d < 2; d++) {
    cuda_line(emit, 3, "const int %s_begin = %s * %lld - %lld, %s_end = min_int(%s_begin + %lld, %lld);", names[d][1],
              names[d][0], (long long)attrs->stride.values[d], (long long)attrs->padding.values[d], names[d][1],
              names[d][1], (long long)attrs->kernel.values[d], (long long)(dims[2 + d] + attrs->padding.values[2 + d]));
    if (attrs->count_include_pad)
      cuda_line(emit, 3, "const int %s = %s_end - %s_begin;", names[d][1], names[d][1], names[d][1]);
    else
      cuda_line(emit, 3, "const int %s = min_int(%s_end, %lld) - max_int(%s_begin, 0);", names[d][1], names[d][1],
                (long long)dims[2 + d], names[d][1]);
  }
  add_gradient(emit, &map, 3, 0, " / (float)(height * width)");
  end_window_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}

/* --- adaptive windows ----------------------------------------------------------------------------------- */

/* Loops over the windows that hold this element, with top, bottom, left and right of each; the body stands at depth 3.
 */
static void begin_adaptive_loops(CudaEmit *emit, const CudaMap *map, const Shape *pooled) {
  const int64_t *in = map->kernel->output.shape.dims, *out = pooled->dims;
  static const char *const names[2][3] = {{"y_at", "top", "bottom"}, {"x_at", "left", "right"}};
  for (int d = 0; d < 2; d++) {
    const char *at = names[d][0], *begin = names[d][1], *end = names[d][2];
    const char *place = cuda_int(emit, map->index[2 + d]);
    long long size = in[2 + d], windows = out[2 + d];
    /* a window too many on either side: what it holds is checked */
    cuda_line(emit, 1 + d, "for (int %s = max_int((int)((i64)%s * %lld / %lld) - 1, 0);", at, place, windows, size);
    cuda_line(emit, 1 + d, "     %s < %lld && %s <= (int)(((i64)%s + 1) * %lld / %lld); %s++) {", at, windows, at,
              place, windows, size, at);
    cuda_line(emit, 2 + d, "const int %s = (int)((i64)%s * %lld / %lld), %s = (int)(((i64)%s * %lld + %lld) / %lld);",
              begin, at, size, windows, end, at, size, size + windows - 1, windows);
    cuda_line(emit, 2 + d, "if (%s < %s || %s >= %s) continue;", place, begin, place, end);
  }
}

bool cuda_adaptive_avg_pool2d_grad(CudaEmit *emit, const PlanKernel *kernel) {
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel, 1));
  clear_value(emit, &map);
  begin_adaptive_loops(emit, &map, &kernel->inputs[0].shape);
  add_gradient(emit, &map, 3, 0, " / (float)((bottom - top) * (right - left))");
  end_window_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_adaptive_max_pool2d_grad(CudaEmit *emit, const PlanKernel *kernel) {
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel, 2));
  clear_value(emit, &map);
  cuda_map_load(emit, &map, 1, 0, "x", image_offset(emit, &map, 0, map.index[2], map.index[3]));
  begin_adaptive_loops(emit, &map, &kernel->inputs[1].shape);
  emit_is_first(emit, &map, 3, "for (int row = top; row < bottom; row++)", NULL,
                "for (int column = left; column < right; column++)", NULL);
  add_if_first(emit, &map, 3);
  end_window_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}

/* --- max ------------------------------------------------------------------------------------------------ */

/* Declares the indices of the dimensions that are `reduced` or not from `number`, in row-major order; returns how many
 * there are per image. */
static int64_t split_dims(CudaEmit *emit, int depth, const Shape *shape, const bool *reduced, bool wanted,
                          const char *number, const char **index) {
  int64_t inner = 1;
  int32_t first = 0;
  while (first < shape->rank && reduced[first] != wanted) first++;
  for (int32_t d = shape->rank - 1; d >= first; d--) {
    if (reduced[d] != wanted) continue;
    int64_t extent = shape->dims[d];
    const char *quotient = inner == 1 ? number : arena_format(emit->arena, "%s / %lld", number, (long long)inner);
    if (d != first) quotient = arena_format(emit->arena, "%s %% %lld", quotient, (long long)extent);
    index[d] = arena_format(emit->arena, "d%d", (int)d);
    cuda_line(emit, depth, "const %s d%d = %s;", emit->index, (int)d, quotient);
    inner *= extent < 0 ? 1 : extent;
  }
  return inner;
}

/* A block per maximum: it finds the first one, in row-major order, then writes all elements that it was taken of. */
bool cuda_max_grad(CudaEmit *emit, const PlanKernel *kernel) {
  enum { THREADS = 128 };
  const PlanTensor *x = &kernel->inputs[0];
  const Shape *shape = &x->shape;
  const char *index[SHAPE_MAX_RANK] = {NULL}, *result[SHAPE_MAX_RANK];
  bool reduced[SHAPE_MAX_RANK];
  cuda_reduced_dims(&kernel->attrs.dims, shape->rank, reduced);
  bool batched = shape_batched(shape), batch_reduced = batched && reduced[0];
  cuda_function(emit, kernel, "k_max_grad", THREADS);
  cuda_line(emit, 1, "SHARED(8) float values[%d];", THREADS);
  cuda_line(emit, 1, "SHARED(8) i64 places[%d];", THREADS);
  cuda_line(emit, 1, "const %s group = block_x();", emit->index);
  int64_t groups = split_dims(emit, 1, shape, reduced, false, "group", index);
  int64_t count = 1;
  for (int32_t d = 0; d < shape->rank; d++)
    if (reduced[d] && shape->dims[d] != DIM_BATCH) count *= shape->dims[d];
  if (batch_reduced)
    cuda_line(emit, 1, "const %s elements = %s;", emit->index, cuda_batch(emit, count));
  else
    cuda_line(emit, 1, "const %s elements = %lld;", emit->index, (long long)count);
  cuda_line(emit, 1, "float best = -F32_INFINITY;");
  cuda_line(emit, 1, "i64 place = -1;");
  cuda_line(emit, 1, "for (%s r = thread_index(); r < elements; r += %d) {", emit->index, THREADS);
  split_dims(emit, 2, shape, reduced, true, "r", index);
  cuda_line(emit, 2, "const float value = in0[%s];", cuda_offset(emit, x, index));
  cuda_line(emit, 2, "if (place < 0 || exceeds_f32(value, best)) best = value, place = r;");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "const i64 first = block_first_maximum(best, place, values, places, %d);", THREADS);
  int32_t rank = 0;
  for (int32_t d = 0; d < shape->rank; d++) {
    if (!reduced[d]) result[rank++] = index[d];
    if (reduced[d] && kernel->attrs.keep_dims) result[rank++] = "0";
  }
  cuda_line(emit, 1, "const float gradient = in1[%s];", cuda_offset(emit, &kernel->inputs[1], result));
  cuda_line(emit, 1, "for (%s r = thread_index(); r < elements; r += %d) {", emit->index, THREADS);
  split_dims(emit, 2, shape, reduced, true, "r", index);
  cuda_line(emit, 2, "const float value = r == first ? gradient : 0.0f;");
  cuda_store(emit, 2, kernel, "value", index);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  bool per_image = batched && !batch_reduced;
  cuda_launch(emit, "k_max_grad", THREADS, per_image ? 0 : groups, per_image ? groups : 0, 1);
  return true;
}

/* --- upsampling ----------------------------------------------------------------------------------------- */

/* The output places [begin, end) that may be blended from `place` of `in`: their middle is place · (steps of the output
 * per step of the input), and one step of the input to either side counts; rounded outwards. */
static void emit_reach(CudaEmit *emit, int depth, const Attrs *attrs, const char *axis, const char *place, int64_t in,
                       int64_t out) {
  bool corners = attrs->align_corners && attrs->mode == MODE_BILINEAR;
  long long up = corners ? out - 1 : out, down = corners ? in - 1 : in;
  if (down <= 0 || up <= 0) {
    cuda_line(emit, depth, "const int %s_begin = 0, %s_end = %lld;", axis, axis, (long long)out);
    return;
  }
  cuda_line(emit, depth, "const int %s_begin = max_int((int)(((i64)%s - 2) * %lld / %lld) - 2, 0);", axis, place, up,
            down);
  cuda_line(emit, depth, "const int %s_end = min_int((int)(((i64)%s + 2) * %lld / %lld) + 3, %lld);", axis, place, up,
            down, (long long)out);
}

bool cuda_upsample_grad(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t *in = kernel->output.shape.dims, *out = kernel->inputs[0].shape.dims;
  const Attrs *attrs = &kernel->attrs;
  static const char *const names[2][3] = {{"row", "y_at", "row_share"}, {"column", "x_at", "column_share"}};
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel, 1));
  clear_value(emit, &map);
  for (int d = 0; d < 2; d++) {
    const char *axis = names[d][0], *at = names[d][1], *share = names[d][2];
    const char *place = cuda_int(emit, map.index[2 + d]);
    emit_reach(emit, 1 + d, attrs, axis, place, in[2 + d], out[2 + d]);
    cuda_line(emit, 1 + d, "NO_UNROLL"); /* or ptxas keeps places on the stack */
    cuda_line(emit, 1 + d, "for (int %s = %s_begin; %s < %s_end; %s++) {", at, axis, at, axis, at);
    cuda_blend_place(emit, 2 + d, attrs, axis, at, in[2 + d], out[2 + d]);
    if (attrs->mode == MODE_NEAREST) {
      cuda_line(emit, 2 + d, "if (%s0 != %s) continue;", axis, place);
    } else {
      cuda_line(emit, 2 + d, "if (%s0 != %s && %s1 != %s) continue;", axis, place, axis, place);
      cuda_line(emit, 2 + d, "const float %s = (%s0 == %s ? 1.0f - %s_weight : 0.0f) + (%s1 == %s ? %s_weight : 0.0f);",
                share, axis, place, axis, axis, place, axis);
    }
  }
  add_gradient(emit, &map, 3, 0, attrs->mode == MODE_NEAREST ? "" : " * row_share * column_share");
  end_window_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}

/* --- padding -------------------------------------------------------------------------------------------- */

/* The padded places that show `place`: its own, and mirrored or repeated ones. A loop over candidates that declares
 * `at`; -1 leaves one out. */
static void begin_pad_loop(CudaEmit *emit, int depth, AttrWord mode, const char *at, const char *place, int64_t before,
                           int64_t after, int64_t size) {
  if (mode == PADDING_REPLICATE) {
    cuda_line(emit, depth, "for (int %s = %s == 0 ? 0 : %s + %lld;", at, place, place, (long long)before);
    cuda_line(emit, depth, "     %s <= (%s == %lld ? %lld : %s + %lld); %s++) {", at, place, (long long)size - 1,
              (long long)(before + size - 1 + after), place, (long long)before, at);
    return;
  }
  int copies = mode == PADDING_REFLECT ? 3 : 1;
  cuda_line(emit, depth, "for (int %s_copy = 0; %s_copy < %d; %s_copy++) {", at, at, copies, at);
  if (copies == 1) {
    cuda_line(emit, depth + 1, "const int %s = %s + %lld;", at, place, (long long)before);
    return;
  }
  cuda_line(emit, depth + 1, "const int %s_shift = %s_copy == 0 ? %s : %s_copy == 1 ? -%s : %lld - %s;", at, at, place,
            at, place, 2 * ((long long)size - 1), place);
  cuda_line(emit, depth + 1, "const int %s = %s_shift + %lld;", at, at, (long long)before);
  cuda_line(emit, depth + 1, "if (%s < 0 || %s >= %lld) continue;", at, at, (long long)(before + size + after));
  cuda_line(emit, depth + 1, "if (%s_copy == 1 && %s_shift >= 0) continue;", at, at);
  cuda_line(emit, depth + 1, "if (%s_copy == 2 && %s_shift < %lld) continue;", at, at, (long long)size);
}

bool cuda_pad_grad(CudaEmit *emit, const PlanKernel *kernel) {
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = kernel->output.shape.dims, *padding = attrs->padding.values;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel, 1));
  clear_value(emit, &map);
  begin_pad_loop(emit, 1, attrs->padding_mode, "y_at", cuda_int(emit, map.index[2]), padding[0], padding[2], dims[2]);
  begin_pad_loop(emit, 2, attrs->padding_mode, "x_at", cuda_int(emit, map.index[3]), padding[1], padding[3], dims[3]);
  add_gradient(emit, &map, 3, 0, "");
  end_window_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}
