/* Upsampling, and sampling by an affine map. */
#include "cuda_resample.h"
#include "cuda_emit.h"

void cuda_blend_place(CudaEmit *emit, int depth, const Attrs *attrs, const char *axis, const char *place, int64_t in,
                      int64_t out) {
  if (attrs->mode == MODE_NEAREST) {
    cuda_line(emit, depth, "const int %s0 = (int)((i64)%s * %lld / %lld);", axis, place, (long long)in, (long long)out);
    return;
  }
  const char *at =
      arena_format(emit->arena, "((float)%s + 0.5f) * %s - 0.5f", place, cuda_float(emit, (double)in / (double)out));
  if (attrs->align_corners)
    at = out > 1 ? arena_format(emit->arena, "(float)%s * %s", place,
                                cuda_float(emit, (double)(in - 1) / (double)(out - 1)))
                 : "0.0f";
  cuda_line(emit, depth, "const float %s_at = max_f32(%s, 0.0f);", axis, at);
  cuda_line(emit, depth, "const int %s0 = min_int((int)%s_at, %lld), %s1 = min_int(%s0 + 1, %lld);", axis, axis,
            (long long)in - 1, axis, axis, (long long)in - 1);
  cuda_line(emit, depth, "const float %s_weight = %s_at - (float)%s0;", axis, axis, axis);
}

static const char *corner_offset(CudaEmit *emit, const CudaMap *map, const char *row, const char *column) {
  const char *const index[] = {map->index[0], map->index[1], row, column};
  return cuda_offset(emit, &map->kernel->inputs[0], index);
}

bool cuda_upsample(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t *in = kernel->inputs[0].shape.dims, *out = kernel->output.shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, cuda_adjacent_dim(&kernel->output) == 1 ? 1 : -1);
  cuda_blend_place(emit, 1, &kernel->attrs, "row", map.index[2], in[2], out[2]);
  cuda_blend_place(emit, 1, &kernel->attrs, "column", map.index[3], in[3], out[3]);
  if (kernel->attrs.mode == MODE_NEAREST) {
    cuda_map_load(emit, &map, 1, 0, "x", corner_offset(emit, &map, "row0", "column0"));
    int depth = cuda_lanes_begin(emit, &map, 1);
    cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), cuda_lane(emit, &map, "x"));
    cuda_lanes_end(emit, &map, 1);
  } else {
    cuda_map_load(emit, &map, 1, 0, "x00", corner_offset(emit, &map, "row0", "column0"));
    cuda_map_load(emit, &map, 1, 0, "x01", corner_offset(emit, &map, "row0", "column1"));
    cuda_map_load(emit, &map, 1, 0, "x10", corner_offset(emit, &map, "row1", "column0"));
    cuda_map_load(emit, &map, 1, 0, "x11", corner_offset(emit, &map, "row1", "column1"));
    int depth = cuda_lanes_begin(emit, &map, 1);
    cuda_line(emit, depth, "const float upper = (1.0f - column_weight) * %s + column_weight * %s;",
              cuda_lane(emit, &map, "x00"), cuda_lane(emit, &map, "x01"));
    cuda_line(emit, depth, "const float lower = (1.0f - column_weight) * %s + column_weight * %s;",
              cuda_lane(emit, &map, "x10"), cuda_lane(emit, &map, "x11"));
    cuda_line(emit, depth, "%s = (1.0f - row_weight) * upper + row_weight * lower;", cuda_lane(emit, &map, "value"));
    cuda_lanes_end(emit, &map, 1);
  }
  cuda_map_end(emit, &map);
  return true;
}

/* --- grid_sample: PyTorch's affine_grid and grid_sample ------------------------------------------------- */

static const char *grid_coordinate(CudaEmit *emit, const char *place, int64_t size, bool align_corners) {
  if (align_corners && size <= 1) return "0.0f";
  if (align_corners) return arena_format(emit->arena, "2.0f * (float)%s / %lld.0f - 1.0f", place, (long long)size - 1);
  return arena_format(emit->arena, "(2.0f * (float)%s + 1.0f) / %lld.0f - 1.0f", place, (long long)size);
}

/* From [-1, 1] in `axis`_to to elements in `axis`_at; `axis`_slope is how far the one moves with the other. */
static void emit_sample_place(CudaEmit *emit, int depth, const Attrs *attrs, const char *axis, int64_t size) {
  long long last = size - 1;
  if (attrs->align_corners)
    cuda_line(emit, depth, "float %s_at = (%s_to + 1.0f) / 2.0f * %lld.0f;", axis, axis, last);
  else
    cuda_line(emit, depth, "float %s_at = ((%s_to + 1.0f) * %lld.0f - 1.0f) / 2.0f;", axis, axis, (long long)size);
  cuda_line(emit, depth, "float %s_slope = %s;", axis,
            cuda_float(emit, (double)(attrs->align_corners ? last : size) / 2));
  cuda_line(emit, depth, "(void)%s_slope;", axis);
  if (attrs->padding_mode == PADDING_ZEROS) return;
  if (attrs->padding_mode == PADDING_REFLECT) {
    const char *low = attrs->align_corners ? "0.0f" : "-0.5f";
    long long span = attrs->align_corners ? last : size;
    if (span == 0) {
      cuda_line(emit, depth, "%s_at = %s_slope = 0.0f;", axis, axis);
    } else {
      cuda_line(emit, depth, "const float %s_far = fabsf(%s_at - %s), %s_rest = fmodf(%s_far, %lld.0f);", axis, axis, low,
                axis, axis, span);
      cuda_line(emit, depth, "const int %s_even = fmodf(floorf(%s_far / %lld.0f), 2.0f) == 0.0f;", axis, axis, span);
      cuda_line(emit, depth, "if ((%s_at < %s) == %s_even) %s_slope = -%s_slope;", axis, low, axis, axis, axis);
      cuda_line(emit, depth, "%s_at = %s_even ? %s + %s_rest : %s + %lld.0f - %s_rest;", axis, axis, low, axis, low, span,
                axis);
    }
  }
  cuda_line(emit, depth, "if (!(%s_at > 0.0f && %s_at < %lld.0f)) %s_slope = 0.0f;", axis, axis, last, axis);
  cuda_line(emit, depth, "if (!(%s_at > 0.0f)) %s_at = 0.0f; /* also for NaN */", axis, axis);
  cuda_line(emit, depth, "if (%s_at > %lld.0f) %s_at = %lld.0f;", axis, last, axis, last);
}

/* theta0 … theta5 of image `image`, from input `input`. */
static void emit_theta(CudaEmit *emit, const PlanKernel *kernel, int32_t input, const char *image) {
  for (int i = 0; i < 6; i++) {
    static const char *const digits[] = {"0", "1", "2"};
    const char *const index[] = {image, digits[i / 3], digits[i % 3]};
    cuda_line(emit, 1, "const float theta%d = in%d[%s];", i, (int)input,
              cuda_offset(emit, &kernel->inputs[input], index));
  }
}

/* Where the output pixel (y, x) of `out` comes from in `in`, both heights and widths behind two other dimensions. */
static void emit_pixel(CudaEmit *emit, int depth, const Attrs *attrs, const int64_t *in, const int64_t *out,
                       const char *y, const char *x) {
  cuda_line(emit, depth, "const float grid_y = %s;", grid_coordinate(emit, y, out[2], attrs->align_corners));
  cuda_line(emit, depth, "const float grid_x = %s;", grid_coordinate(emit, x, out[3], attrs->align_corners));
  cuda_line(emit, depth, "const float column_to = theta0 * grid_x + theta1 * grid_y + theta2;");
  cuda_line(emit, depth, "const float row_to = theta3 * grid_x + theta4 * grid_y + theta5;");
  emit_sample_place(emit, depth, attrs, "row", in[2]);
  emit_sample_place(emit, depth, attrs, "column", in[3]);
}

bool cuda_grid_sample(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t *in = kernel->inputs[0].shape.dims, *out = kernel->output.shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, cuda_adjacent_dim(&kernel->output) == 1 ? 1 : -1);
  emit_theta(emit, kernel, 1, map.index[0]);
  emit_pixel(emit, 1, &kernel->attrs, in, out, map.index[2], map.index[3]);
  cuda_line(emit, 1, "const float top = floorf(row_at), left = floorf(column_at);");
  int depth = cuda_lanes_begin(emit, &map, 1);
  cuda_line(emit, depth, "%s = 0.0f;", cuda_lane(emit, &map, "value"));
  cuda_lanes_end(emit, &map, 1);
  cuda_line(emit, 1, "for (int corner = 0; corner < 4; corner++) {");
  cuda_line(emit, 2, "const float y_at = top + (float)(corner >> 1), x_at = left + (float)(corner & 1);");
  cuda_line(emit, 2, "const float down = corner >> 1 ? row_at - top : 1.0f - (row_at - top);");
  cuda_line(emit, 2, "const float across = corner & 1 ? column_at - left : 1.0f - (column_at - left);");
  cuda_line(emit, 2, "if (!(y_at >= 0.0f && y_at < %lld.0f && x_at >= 0.0f && x_at < %lld.0f)) continue;",
            (long long)in[2], (long long)in[3]);
  cuda_line(emit, 2, "const int row = (int)y_at, column = (int)x_at;");
  cuda_map_load(emit, &map, 2, 0, "x", corner_offset(emit, &map, "row", "column"));
  depth = cuda_lanes_begin(emit, &map, 2);
  cuda_line(emit, depth, "%s += down * across * %s;", cuda_lane(emit, &map, "value"), cuda_lane(emit, &map, "x"));
  cuda_lanes_end(emit, &map, 2);
  cuda_line(emit, 1, "}");
  cuda_map_end(emit, &map);
  return true;
}

/* --- gradients of grid_sample ---------------------------------------------------------------------------- */

static void begin_pixel_loops(CudaEmit *emit, const int64_t *out) {
  cuda_line(emit, 1, "for (int y = 0; y < %lld; y++) {", (long long)out[2]);
  cuda_line(emit, 2, "for (int x = 0; x < %lld; x++) {", (long long)out[3]);
}

static void end_pixel_loops(CudaEmit *emit) {
  cuda_line(emit, 2, "}");
  cuda_line(emit, 1, "}");
}

/* An element gathers from all output pixels that are less than one step away: nobody else writes it. */
bool cuda_grid_sample_grad_input(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t *in = kernel->output.shape.dims, *out = kernel->inputs[0].shape.dims;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  emit_theta(emit, kernel, 1, map.index[0]);
  cuda_line(emit, 1, "value = 0.0f;");
  begin_pixel_loops(emit, out);
  emit_pixel(emit, 3, &kernel->attrs, in, out, "y", "x");
  cuda_line(emit, 3, "const float down = fabsf(row_at - (float)(%s)), across = fabsf(column_at - (float)(%s));",
            map.index[2], map.index[3]);
  cuda_line(emit, 3, "if (!(down < 1.0f && across < 1.0f)) continue;");
  const char *const index[] = {map.index[0], map.index[1], "y", "x"};
  cuda_line(emit, 3, "value += (1.0f - down) * (1.0f - across) * in0[%s];",
            cuda_offset(emit, &kernel->inputs[0], index));
  end_pixel_loops(emit);
  cuda_map_end(emit, &map);
  return true;
}

/* "const float corner0 = …;": the element at (top, left) plus (0, 0), (0, 1), (1, 0), (1, 1); 0 outside. */
static void load_corners(CudaEmit *emit, int depth, const PlanTensor *x, const char *image) {
  const char *const index[] = {image, "c", "row", "column"};
  for (int i = 0; i < 4; i++) {
    cuda_line(emit, depth, "float corner%d = 0.0f;", i);
    cuda_line(emit, depth,
              "if (top + %d.0f >= 0.0f && top + %d.0f < %lld.0f && left + %d.0f >= 0.0f && left + %d.0f < %lld.0f) {",
              i >> 1, i >> 1, (long long)x->shape.dims[2], i & 1, i & 1, (long long)x->shape.dims[3]);
    cuda_line(emit, depth + 1, "const int row = (int)(top + %d.0f), column = (int)(left + %d.0f);", i >> 1, i & 1);
    cuda_line(emit, depth + 1, "corner%d = in0[%s];", i, cuda_offset(emit, x, index));
    cuda_line(emit, depth, "}");
  }
}

/* A thread per element of theta goes over all pixels of its image; sums in double. */
bool cuda_grid_sample_grad_theta(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0], *dy = &kernel->inputs[2];
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  emit_theta(emit, kernel, 1, map.index[0]);
  cuda_line(emit, 1, "double total = 0;");
  begin_pixel_loops(emit, dy->shape.dims);
  emit_pixel(emit, 3, &kernel->attrs, x->shape.dims, dy->shape.dims, "y", "x");
  cuda_line(emit, 3, "const float top = floorf(row_at), left = floorf(column_at);");
  cuda_line(emit, 3, "const float down = row_at - top, across = column_at - left;");
  cuda_line(emit, 3, "float slope = 0.0f;");
  cuda_line(emit, 3, "for (int c = 0; c < %lld; c++) {", (long long)x->shape.dims[1]);
  load_corners(emit, 4, x, map.index[0]);
  const char *const index[] = {map.index[0], "c", "y", "x"};
  cuda_line(emit, 4, "const float along_x = (1.0f - down) * (corner1 - corner0) + down * (corner3 - corner2);");
  cuda_line(emit, 4, "const float along_y = (1.0f - across) * (corner2 - corner0) + across * (corner3 - corner1);");
  cuda_line(emit, 4, "slope += in2[%s] * (%s == 0 ? along_x : along_y);", cuda_offset(emit, dy, index), map.index[1]);
  cuda_line(emit, 3, "}");
  cuda_line(emit, 3, "slope *= %s == 0 ? column_slope : row_slope;", map.index[1]);
  cuda_line(emit, 3, "total += slope * (%s == 0 ? grid_x : %s == 1 ? grid_y : 1.0f);", map.index[2], map.index[2]);
  end_pixel_loops(emit);
  cuda_line(emit, 1, "value = (float)total;");
  cuda_map_end(emit, &map);
  return true;
}
