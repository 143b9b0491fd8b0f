/* Convolutions and gradients for which a tile of a matrix product would be mostly empty: depthwise ones, groups of few
 * channels, and transposed ones with large strides. A thread sums up one place of the output, or 4 neighbouring
 * channels of a depthwise one. */
#include "base/checked.h"
#include "gemm.h"

typedef struct Direct {
  CudaEmit *emit;
  CudaMap map;
  const PlanKernel *kernel;
  const PlanTensor *x, *filter;
  int depth;
} Direct;

static Direct direct_begin(CudaEmit *emit, const PlanKernel *kernel, int32_t vector_inputs) {
  Direct direct = {.emit = emit, .kernel = kernel, .x = &kernel->inputs[0], .filter = &kernel->inputs[1], .depth = 1};
  cuda_map_begin(emit, &direct.map, kernel, vector_inputs);
  const int depth = cuda_lanes_begin(emit, &direct.map, 1);
  const char *start = "0", *channel = direct.map.index[1];
  if (kernel->op_input_count > 2) {
    if (direct.map.lanes > 1) channel = arena_format(emit->arena, "%s + lane", channel);
    start = arena_format(emit->arena, "in2[%s]", cuda_offset(emit, &kernel->inputs[2], &channel));
  }
  cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &direct.map, "value"), start);
  cuda_lanes_end(emit, &direct.map, 1);
  return direct;
}

static void open_loop(Direct *direct, const char *index, int64_t count) {
  cuda_line(direct->emit, direct->depth++, "for (int %s = 0; %s < %lld; %s++) {", index, index, (long long)count,
            index);
}

static void close_blocks(Direct *direct) {
  while (direct->depth > 1) cuda_line(direct->emit, --direct->depth, "}");
}

static void skip_unless(Direct *direct, const char *condition) {
  cuda_line(direct->emit, direct->depth, "if (!(%s)) continue;", condition);
}

/* The element of an input at `index`. */
static const char *read_at(const Direct *direct, int32_t input, const char *const *index) {
  CudaEmit *emit = direct->emit;
  const PlanTensor *tensor = &direct->kernel->inputs[input];
  return cuda_read(emit, tensor, arena_format(emit->arena, "in%d[%s]", (int)input, cuda_offset(emit, tensor, index)));
}

/* --- forward ----------------------------------------------------------------------------------------- */

/* The row or column of the input under tap `tap`. */
static void emit_position(Direct *direct, int axis, const char *name, const char *tap) {
  CudaEmit *emit = direct->emit;
  const Attrs *attrs = &direct->kernel->attrs;
  const long long size = (long long)direct->x->shape.dims[2 + axis];
  const long long padding = (long long)attrs->padding.values[axis];
  cuda_line(emit, direct->depth, "int %s = (int)%s * %lld + %s * %lld - %lld;", name, direct->map.index[2 + axis],
            (long long)attrs->stride.values[axis], tap, (long long)attrs->dilation.values[axis], padding);
  if (attrs->padding_mode == PADDING_REPLICATE) {
    cuda_line(emit, direct->depth, "%s = max_int(0, min_int(%s, %lld));", name, name, size - 1);
  } else if (attrs->padding_mode == PADDING_REFLECT) {
    cuda_line(emit, direct->depth, "%s = %s < 0 ? -%s : %s > %lld ? %lld - %s : %s;", name, name, name, name, size - 1,
              2 * (size - 1), name, name);
  } else {
    skip_unless(direct, arena_format(emit->arena, "(u32)%s < %lldu", name, size));
  }
}

static void emit_depthwise(Direct *direct) {
  CudaEmit *emit = direct->emit;
  const CudaMap *map = &direct->map;
  const char *const place[4] = {map->index[0], map->index[1], "row", "column"};
  cuda_map_load(emit, map, direct->depth, 0, "x", cuda_offset(emit, direct->x, place));
  const int depth = cuda_lanes_begin(emit, map, direct->depth);
  const char *channel = map->lanes > 1 ? arena_format(emit->arena, "%s + lane", map->index[1]) : map->index[1];
  const char *const weight[4] = {channel, NULL, "r", "s"};
  cuda_line(emit, depth, "%s += %s * %s;", cuda_lane(emit, map, "value"), cuda_lane(emit, map, "x"),
            read_at(direct, 1, weight));
  cuda_lanes_end(emit, map, direct->depth);
}

static void emit_group(Direct *direct) {
  CudaEmit *emit = direct->emit;
  const CudaMap *map = &direct->map;
  const int64_t channels = direct->filter->shape.dims[1];
  const int64_t filters = direct->kernel->output.shape.dims[1] / direct->kernel->attrs.groups;
  const char *channel =
      arena_format(emit->arena, "%s / %lld * %lld + channel", map->index[1], (long long)filters, (long long)channels);
  const char *const place[4] = {map->index[0], channel, "row", "column"};
  const char *const weight[4] = {map->index[1], "channel", "r", "s"};
  open_loop(direct, "channel", channels);
  cuda_line(emit, direct->depth, "value += %s * %s;", read_at(direct, 0, place), read_at(direct, 1, weight));
}

bool gemm_conv_direct(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t groups = kernel->attrs.groups, channels = kernel->inputs[1].shape.dims[1];
  const bool depthwise = channels == 1 && kernel->output.shape.dims[1] == groups;
  Direct direct = direct_begin(emit, kernel, depthwise && cuda_adjacent_dim(&kernel->output) == 1 ? 1 : -1);
  cuda_line(emit, 1, "UNROLL");
  open_loop(&direct, "r", direct.filter->shape.dims[2]);
  emit_position(&direct, 0, "row", "r");
  cuda_line(emit, direct.depth, "UNROLL");
  open_loop(&direct, "s", direct.filter->shape.dims[3]);
  emit_position(&direct, 1, "column", "s");
  if (depthwise)
    emit_depthwise(&direct);
  else
    emit_group(&direct);
  close_blocks(&direct);
  cuda_map_end(emit, &direct.map);
  return true;
}

/* --- transposed -------------------------------------------------------------------------------------- */

/* The row or column of the input that reaches this one of the output through tap `tap`, if there is one. */
static void emit_source(Direct *direct, int axis, const char *name, const char *tap) {
  CudaEmit *emit = direct->emit;
  const Attrs *attrs = &direct->kernel->attrs;
  const long long size = (long long)direct->x->shape.dims[2 + axis], stride = (long long)attrs->stride.values[axis];
  cuda_line(emit, direct->depth, "const int %s_reach = (int)%s + %lld - %s * %lld, %s = %s_reach / %lld;", name,
            direct->map.index[2 + axis], (long long)attrs->padding.values[axis], tap,
            (long long)attrs->dilation.values[axis], name, name, stride);
  skip_unless(direct, arena_format(emit->arena, "%s_reach >= 0 && %s_reach %% %lld == 0 && %s < %lld", name, name,
                                   stride, name, size));
}

bool gemm_conv_transpose_direct(CudaEmit *emit, const PlanKernel *kernel) {
  Direct direct = direct_begin(emit, kernel, -1);
  const int64_t channels = direct.x->shape.dims[1] / kernel->attrs.groups, filters = direct.filter->shape.dims[1];
  const char *c = direct.map.index[1];
  const char *channel =
      arena_format(emit->arena, "%s / %lld * %lld + channel", c, (long long)filters, (long long)channels);
  const char *const place[4] = {direct.map.index[0], channel, "row", "column"};
  const char *const weight[4] = {channel, arena_format(emit->arena, "%s %% %lld", c, (long long)filters), "r", "s"};
  open_loop(&direct, "r", direct.filter->shape.dims[2]);
  emit_source(&direct, 0, "row", "r");
  open_loop(&direct, "s", direct.filter->shape.dims[3]);
  emit_source(&direct, 1, "column", "s");
  open_loop(&direct, "channel", channels);
  cuda_line(emit, direct.depth, "value += %s * %s;", read_at(&direct, 0, place), read_at(&direct, 1, weight));
  close_blocks(&direct);
  cuda_map_end(emit, &direct.map);
  return true;
}

/* --- gradient of depthwise filters ------------------------------------------------------------------- */

enum {
  PART_LANES = 32, /* filters of a block, side by side in memory */
  PART_ROWS = 8,   /* threads that share a filter's places */
  PART_LEAST = 64, /* places of a thread, at least, where there are as many */
  PART_COUNT_MAX = 256,
  TAPS_MAX = 49 /* sums of a thread: registers */
};

bool gemm_takes_depthwise_gradient(const PlanKernel *kernel) {
  const int64_t *dims = kernel->output.shape.dims;
  return kernel->attrs.groups > 1 && dims[1] == 1 && dims[2] * dims[3] <= TAPS_MAX;
}

static int64_t part_count(const CudaEmit *emit, const PlanTensor *dy) {
  const int64_t images = shape_batched(&dy->shape) ? emit->max_batch : 1;
  const int64_t places = cuda_elements_per_image(&dy->shape) / dy->shape.dims[1] * images;
  const int64_t parts = ceil_div(places, PART_ROWS * PART_LEAST);
  return parts > PART_COUNT_MAX ? PART_COUNT_MAX : parts;
}

/* Adds the products of one place of dy to the thread's sums. */
static void emit_taps(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0], *dy = &kernel->inputs[1];
  const Attrs *attrs = &kernel->attrs;
  const int64_t *dims = kernel->output.shape.dims, filters = dims[0] / attrs->groups;
  const char *channel = filters == 1 ? "k" : arena_format(emit->arena, "k / %lld", (long long)filters);
  const char *const place[4] = {"n", "k", "p", "q"}, *const source[4] = {"n", channel, "h", "w"};
  cuda_line(emit, 2, "const float gradient = in1[%s];", cuda_offset(emit, dy, place));
  for (int axis = 0; axis < 2; axis++) {
    const char *tap = axis == 0 ? "r" : "s", *at = axis == 0 ? "h" : "w", *window = axis == 0 ? "p" : "q";
    const int depth = 2 + axis;
    cuda_line(emit, depth, "UNROLL");
    cuda_line(emit, depth, "for (int %s = 0; %s < %lld; %s++) {", tap, tap, (long long)dims[2 + axis], tap);
    cuda_line(emit, depth + 1, "const int %s = %s * %lld + %s * %lld - %lld;", at, window,
              (long long)attrs->stride.values[axis], tap, (long long)attrs->dilation.values[axis],
              (long long)attrs->padding.values[axis]);
  }
  cuda_line(emit, 4, "if ((u32)h < %lldu && (u32)w < %lldu) sums[r * %lld + s] += gradient * in0[%s];",
            (long long)x->shape.dims[2], (long long)x->shape.dims[3], (long long)dims[3], cuda_offset(emit, x, source));
  cuda_line(emit, 3, "}");
  cuda_line(emit, 2, "}");
}

/* Blocks sum up a part of the places for some filters. */
static void emit_parts(CudaEmit *emit, const PlanKernel *kernel, const char *scratch, int64_t parts) {
  const PlanTensor *dy = &kernel->inputs[1];
  const long long filters = (long long)kernel->output.shape.dims[0], blocks = ceil_div(filters, PART_LANES);
  const int taps = (int)(kernel->output.shape.dims[2] * kernel->output.shape.dims[3]);
  GemmAxis places = {.digit_count = 3, .batched = shape_batched(&dy->shape)};
  for (int d = 0; d < 3; d++)
    places.digits[d].extent = d > 0 ? dy->shape.dims[1 + d] : places.batched ? 1 : dy->shape.dims[0];
  cuda_function(emit, kernel, "k_conv2d_grad_weight_parts", PART_LANES * PART_ROWS);
  cuda_line(emit, 1, "SHARED(4) float shared[%d];", PART_LANES * PART_ROWS);
  cuda_line(emit, 1, "const int lane = thread_index() %% %d, row = thread_index() / %d;", PART_LANES, PART_LANES);
  cuda_line(emit, 1, "const int k = block_x() %% %lld * %d + lane, part = block_x() / %lld;", blocks, PART_LANES,
            blocks);
  cuda_line(emit, 1, "const int places = %s, run = (places + %lld) / %lld;", axis_count_text(emit, &places),
            (long long)parts - 1, (long long)parts);
  cuda_line(emit, 1, "const int end = k < %lld ? min_int(part * run + run, places) : 0;", filters);
  cuda_line(emit, 1, "float sums[%d];", taps);
  cuda_line(emit, 1, "UNROLL");
  cuda_line(emit, 1, "for (int tap = 0; tap < %d; tap++) sums[tap] = 0;", taps);
  cuda_line(emit, 1, "for (int place = part * run + row; place < end; place += %d) {", PART_ROWS);
  axis_split(emit, 2, &places, "place", "place");
  cuda_line(emit, 2, "const int n = place_0, p = place_1, q = place_2;");
  emit_taps(emit, kernel);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "UNROLL");
  cuda_line(emit, 1, "for (int tap = 0; tap < %d; tap++) {", taps);
  cuda_line(emit, 2, "BLOCK_SYNC();");
  cuda_line(emit, 2, "shared[thread_index()] = sums[tap];");
  cuda_line(emit, 2, "BLOCK_SYNC();");
  cuda_line(emit, 2, "if (row == 0 && k < %lld) {", filters);
  cuda_line(emit, 3, "float sum = 0;");
  cuda_line(emit, 3, "for (int r = 0; r < %d; r++) sum += shared[r * %d + lane];", PART_ROWS, PART_LANES);
  cuda_line(emit, 3, "((float *)%s)[(part * %d + tap) * %lld + k] = sum;", scratch, taps, filters);
  cuda_line(emit, 2, "}");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  cuda_launch(emit, "k_conv2d_grad_weight_parts", PART_LANES * PART_ROWS, blocks * parts, 0, 1);
}

/* A thread per weight then adds the parts in order. */
bool gemm_depthwise_gradient(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t *dims = kernel->output.shape.dims, taps = dims[2] * dims[3];
  const int64_t parts = part_count(emit, &kernel->inputs[1]);
  const char *scratch = cuda_scratch(emit, parts * taps * dims[0] * 4, 0);
  emit_parts(emit, kernel, scratch, parts);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  cuda_line(emit, 1, "value = 0;");
  cuda_line(emit, 1, "for (int part = 0; part < %lld; part++)", (long long)parts);
  cuda_line(emit, 2, "value += ((const float *)%s)[(part * %lld + %s * %lld + %s) * %lld + %s];", scratch,
            (long long)taps, map.index[2], (long long)dims[3], map.index[3], (long long)dims[0], map.index[0]);
  cuda_map_end(emit, &map);
  return true;
}
