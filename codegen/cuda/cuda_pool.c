/* Pooling: a thread per window, or per window of four neighbouring channels. */
#include "base/checked.h"
#include "cuda_emit.h"
#include "cuda_reduce.h"

/* Sums of more elements than this are kept in f64. */
enum { FLOAT_SUM_MAX = 256 };

/* Vectors run over channels only: the windows of neighbouring columns differ. */
static int32_t channel_vectors(const PlanKernel *kernel) {
  return cuda_adjacent_dim(&kernel->output) == 1 ? kernel->op_input_count : -1;
}

/* Where one image of the input begins that the windows of this thread lie in; `channel` an index expression. */
static const char *element_offset(CudaEmit *emit, const PlanKernel *kernel, const CudaMap *map, const char *channel) {
  const char *const index[] = {map->index[0], channel, "row", "column"};
  return cuda_offset(emit, &kernel->inputs[0], index);
}

static void set_lanes(CudaEmit *emit, const CudaMap *map, int depth, const char *name, const char *expression) {
  int inner = cuda_lanes_begin(emit, map, depth);
  cuda_line(emit, inner, "%s = %s;", cuda_lane(emit, map, name), expression);
  cuda_lanes_end(emit, map, depth);
}

/* --- max ---------------------------------------------------------------------------------------------- */

static void load_and_combine(CudaEmit *emit, const CudaMap *map, int depth, const char *channel, const char *format,
                             const char *name) {
  cuda_map_load(emit, map, depth, 0, "x", element_offset(emit, map->kernel, map, channel));
  const char *total = cuda_lane(emit, map, name), *x = cuda_lane(emit, map, "x");
  int inner = cuda_lanes_begin(emit, map, depth);
  if (format[0] == '+')
    cuda_line(emit, inner, "%s += %s;", total, x);
  else
    cuda_line(emit, inner, "%s = max_or_nan(%s, %s);", total, total, x);
  cuda_lanes_end(emit, map, depth);
}

/* "h * 2 - 1 + r": the row or column of a tap; what adds nothing is left out. */
static const char *tap_place(CudaEmit *emit, const Attrs *attrs, int d, const char *place, const char *tap) {
  Text text;
  text_init(&text, emit->arena);
  text_add(&text, cuda_int(emit, place));
  if (attrs->stride.values[d] != 1) text_format(&text, " * %lld", (long long)attrs->stride.values[d]);
  if (attrs->padding.values[d] != 0) text_format(&text, " - %lld", (long long)attrs->padding.values[d]);
  text_format(&text, " + %s", tap);
  if (attrs->dilation.values[d] != 1) text_format(&text, " * %lld", (long long)attrs->dilation.values[d]);
  return text.data;
}

bool cuda_max_pool2d(CudaEmit *emit, const PlanKernel *kernel) {
  const Attrs *attrs = &kernel->attrs;
  const int64_t *window = attrs->kernel.values, *dims = kernel->inputs[0].shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel));
  set_lanes(emit, &map, 1, "value", "-F32_INFINITY");
  for (int d = 0; d < 2; d++) {
    static const char *const taps[] = {"r", "s"}, *const places[] = {"row", "column"};
    cuda_line(emit, 1 + d, "for (int %s = 0; %s < %lld; %s++) {", taps[d], taps[d], (long long)window[d], taps[d]);
    cuda_line(emit, 2 + d, "const int %s = %s;", places[d], tap_place(emit, attrs, d, map.index[2 + d], taps[d]));
    cuda_line(emit, 2 + d, "if (%s < 0 || %s >= %lld) continue;", places[d], places[d], (long long)dims[2 + d]);
  }
  load_and_combine(emit, &map, 3, map.index[1], "max", "value");
  cuda_line(emit, 2, "}");
  cuda_line(emit, 1, "}");
  cuda_map_end(emit, &map);
  return true;
}

/* --- windows as boxes --------------------------------------------------------------------------------- */

static void emit_box_loops(CudaEmit *emit, int depth) {
  cuda_line(emit, depth, "for (int row = top; row < bottom; row++) {");
  cuda_line(emit, depth + 1, "for (int column = left; column < right; column++) {");
}

static void end_box_loops(CudaEmit *emit, int depth) {
  cuda_line(emit, depth + 1, "}");
  cuda_line(emit, depth, "}");
}

static void declare_sum(CudaEmit *emit, const CudaMap *map, int64_t elements) {
  const char *type = elements > FLOAT_SUM_MAX ? "double" : "float";
  if (map->lanes > 1)
    cuda_line(emit, 1, "%s sum[%d] = {0, 0, 0, 0};", type, (int)map->lanes);
  else
    cuda_line(emit, 1, "%s sum = 0;", type);
}

/* PyTorch's divisor: the window's part inside the padded input, or inside the input itself. */
bool cuda_avg_pool2d(CudaEmit *emit, const PlanKernel *kernel) {
  const Attrs *attrs = &kernel->attrs;
  const int64_t *window = attrs->kernel.values, *stride = attrs->stride.values, *padding = attrs->padding.values;
  const int64_t *dims = kernel->inputs[0].shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel));
  declare_sum(emit, &map, window[0] * window[1]);
  cuda_line(emit, 1, "int top = %s * %lld - %lld, left = %s * %lld - %lld;", cuda_int(emit, map.index[2]),
            (long long)stride[0], (long long)padding[0], cuda_int(emit, map.index[3]), (long long)stride[1],
            (long long)padding[1]);
  cuda_line(emit, 1, "int bottom = min_int(top + %lld, %lld), right = min_int(left + %lld, %lld);",
            (long long)window[0], (long long)(dims[2] + padding[2]), (long long)window[1],
            (long long)(dims[3] + padding[3]));
  cuda_line(emit, 1, "const int padded = (bottom - top) * (right - left);");
  cuda_line(emit, 1, "top = max_int(top, 0), left = max_int(left, 0);");
  cuda_line(emit, 1, "bottom = min_int(bottom, %lld), right = min_int(right, %lld);", (long long)dims[2],
            (long long)dims[3]);
  cuda_line(emit, 1, "const int inside = max_int(bottom - top, 0) * max_int(right - left, 0);");
  emit_box_loops(emit, 1);
  load_and_combine(emit, &map, 3, map.index[1], "+", "sum");
  end_box_loops(emit, 1);
  cuda_line(emit, 1, "const int divisor = inside == 0 ? 1 : %s;", attrs->count_include_pad ? "padded" : "inside");
  cuda_line(emit, 1, "(void)padded;");
  set_lanes(emit, &map, 1, "value", arena_format(emit->arena, "(float)(%s / divisor)", cuda_lane(emit, &map, "sum")));
  cuda_map_end(emit, &map);
  return true;
}

/* --- adaptive windows: from floor(y H / O) to ceil((y + 1) H / O) --------------------------------------- */

static void emit_adaptive_box(CudaEmit *emit, const PlanKernel *kernel, const CudaMap *map) {
  const int64_t *in = kernel->inputs[0].shape.dims, *out = kernel->output.shape.dims;
  static const char *const names[2][2] = {{"top", "bottom"}, {"left", "right"}};
  for (int d = 0; d < 2; d++)
    cuda_line(emit, 1, "const int %s = (int)((i64)%s * %lld / %lld), %s = (int)(((i64)%s * %lld + %lld) / %lld);",
              names[d][0], map->index[2 + d], (long long)in[2 + d], (long long)out[2 + d], names[d][1],
              map->index[2 + d], (long long)in[2 + d], (long long)(in[2 + d] + out[2 + d] - 1), (long long)out[2 + d]);
}

static int64_t adaptive_elements(const PlanKernel *kernel) {
  const int64_t *in = kernel->inputs[0].shape.dims, *out = kernel->output.shape.dims;
  return (ceil_div(in[2], out[2]) + 1) * (ceil_div(in[3], out[3]) + 1);
}

static bool is_one_window(const PlanKernel *kernel) {
  return kernel->output.shape.dims[2] == 1 && kernel->output.shape.dims[3] == 1;
}

/* value = the mean of channel `channel` over the box. */
static void emit_mean(CudaEmit *emit, const PlanKernel *kernel, const CudaMap *map, const char *channel) {
  declare_sum(emit, map, adaptive_elements(kernel));
  emit_box_loops(emit, 1);
  load_and_combine(emit, map, 3, channel, "+", "sum");
  end_box_loops(emit, 1);
  cuda_line(emit, 1, "const int elements = (bottom - top) * (right - left);");
  set_lanes(emit, map, 1, "value", arena_format(emit->arena, "(float)(%s / elements)", cuda_lane(emit, map, "sum")));
}

static void emit_maximum(CudaEmit *emit, const CudaMap *map, const char *channel) {
  set_lanes(emit, map, 1, "value", "-F32_INFINITY");
  emit_box_loops(emit, 1);
  load_and_combine(emit, map, 3, channel, "max", "value");
  end_box_loops(emit, 1);
}

bool cuda_adaptive_avg_pool2d(CudaEmit *emit, const PlanKernel *kernel) {
  if (is_one_window(kernel)) return cuda_pool_all(emit, kernel, false);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel));
  emit_adaptive_box(emit, kernel, &map);
  emit_mean(emit, kernel, &map, map.index[1]);
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_adaptive_max_pool2d(CudaEmit *emit, const PlanKernel *kernel) {
  if (is_one_window(kernel)) return cuda_pool_all(emit, kernel, true);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, channel_vectors(kernel));
  emit_adaptive_box(emit, kernel, &map);
  emit_maximum(emit, &map, map.index[1]);
  cuda_map_end(emit, &map);
  return true;
}

/* Channels of maxima first, then of means: both are computed from what stands in the same box. */
bool cuda_adaptive_concat_pool2d(CudaEmit *emit, const PlanKernel *kernel) {
  long long channels = kernel->inputs[0].shape.dims[1];
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  emit_adaptive_box(emit, kernel, &map);
  cuda_line(emit, 1, "const int mean = %s >= %lld, elements = (bottom - top) * (right - left);", map.index[1],
            channels);
  cuda_line(emit, 1, "const %s channel = mean ? %s - %lld : %s;", emit->index, map.index[1], channels, map.index[1]);
  cuda_line(emit, 1, "double sum = 0;");
  cuda_line(emit, 1, "value = -F32_INFINITY;");
  emit_box_loops(emit, 1);
  cuda_map_load(emit, &map, 3, 0, "x", element_offset(emit, kernel, &map, "channel"));
  cuda_line(emit, 3, "sum += x;");
  cuda_line(emit, 3, "value = max_or_nan(value, x);");
  end_box_loops(emit, 1);
  cuda_line(emit, 1, "if (mean) value = (float)(sum / elements);");
  cuda_map_end(emit, &map);
  return true;
}
