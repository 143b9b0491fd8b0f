#include "work.h"

#include "base/checked.h"
#include "winograd.h"

enum {
  TILES_PANEL = 32,        /* output channels of an item in tile registers */
  PART_ELEMENTS = 512,     /* fewer cost more to begin and to end than to reduce */
  ROW_ELEMENTS = 4096,     /* of an item of rows */
  FREE_ELEMENTS = 1 << 18, /* of a part that is no item */
  MOMENT_ELEMENTS = 128,   /* of a part of a plane: f32 sums of so many, of neighbours first, lose little */
  MOMENT_PLANE = 32        /* smaller planes are read again sooner than their moments are written and read */
};

int32_t work_lanes(Layout output, int32_t filter_block, const KernelChoice *choice) {
  if (output.kind == LAYOUT_CHANNEL_BLOCK) return output.block;
  return choice->tile_blocks > 0 ? filter_block / choice->tile_blocks : filter_block;
}

bool work_along_rows(const Attrs *attrs, const Shape *filter, const Shape *output) {
  enum { MOST_TAPS = 25, LEAST_WIDTH = 4 };
  const int64_t *out = output->dims, *taps = &filter->dims[2];
  return attrs->stride.values[1] == 1 && taps[0] <= MOST_TAPS && taps[1] <= MOST_TAPS &&
         taps[0] * taps[1] <= MOST_TAPS && out[1] > 0 && out[2] > 0 && out[3] >= LEAST_WIDTH;
}

DirectWork work_direct(const Shape *output, int32_t lanes, int32_t filter_block, int64_t groups,
                       const KernelChoice *choice) {
  const int64_t filters = output->dims[1], height = output->dims[2], width = output->dims[3];
  const int64_t blocks = ceil_div(filters, lanes), panel_blocks = filter_block / lanes;
  const bool narrow_groups = groups > 1 && filters / groups / lanes % panel_blocks != 0;
  DirectWork work = {.unit_blocks = narrow_groups ? 1 : panel_blocks};
  const int64_t rows = (choice->tile_pixels > 0 ? choice->tile_pixels : 4) / width;
  work.units = ceil_div(blocks, work.unit_blocks);
  work.tile_rows = rows < 1 ? 1 : rows > height ? height : rows;
  work.row_chunk = round_up(choice->row_chunk > 0 ? choice->row_chunk : height, work.tile_rows);
  work.row_chunks = ceil_div(height, work.row_chunk);
  return work;
}

RowWork work_rows(const Shape *shape, Layout layout) {
  const bool blocked = layout.kind == LAYOUT_CHANNEL_BLOCK;
  const int32_t rank = shape->rank, first = 1; /* dimension 0 counts images */
  RowWork work = {.planes = 1, .height = 1};
  for (int32_t d = first; d < rank - 2; d++)
    work.planes *= blocked && d == 1 ? ceil_div(shape->dims[d], layout.block) : shape->dims[d];
  if (rank - 2 >= first) work.height = shape->dims[rank - 2];
  const int64_t row = rank > first ? shape->dims[rank - 1] * (blocked ? layout.block : 1) : 1;
  const int64_t most = row < ROW_ELEMENTS ? ROW_ELEMENTS / row : 1;
  work.chunks = ceil_div(work.height, most);
  work.rows = ceil_div(work.height, work.chunks);
  work.chunks = ceil_div(work.height, work.rows); /* rounding the rows up may have made the last one empty */
  return work;
}

static int64_t winograd_parts(const Node *node) {
  const Shape *shape = &node->shape;
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  if (layout_is_winograd_tiles(input->layout.kind) || node->choice.row_chunk == 0)
    return ceil_div(shape->dims[1], filter->layout.block);
  const WinogradGrid grid = winograd_grid(algorithm_winograd_form(node->choice.algorithm), input->shape.dims[2],
                                          input->shape.dims[3], node->attrs.padding.values);
  return ceil_div(grid.rows * grid.columns, node->choice.tile_pixels > 0 ? node->choice.tile_pixels : 4);
}

/* Where the code generator chooses the items, and adds up those of a part. */
static bool has_free_parts(const Node *node) {
  const int64_t *stride = node->attrs.stride.values;
  const bool last = node->layout.kind == LAYOUT_CHANNEL_LAST;
  if (node->op == OP_CONV2D || node->op == OP_LINEAR)
    return node->choice.algorithm == ALGORITHM_DEFAULT && (last || node->layout.kind == LAYOUT_PLAIN);
  if (node->op == OP_CONV_TRANSPOSE2D) return last && stride[0] == 1 && stride[1] == 1;
  return last && op_is_elementwise(node->op);
}

static int64_t free_parts(const Node *node) {
  const int64_t images = shape_batched(&node->shape) ? 1 : node->shape.dims[0];
  return images > 0 ? ceil_div(shape_elements_per_image(&node->shape) / images, FREE_ELEMENTS) : 0;
}

static int64_t conv2d_parts(const Node *node) {
  if (node->layout.kind != LAYOUT_CHANNEL_BLOCK) return 0;
  switch (node->choice.algorithm) {
    case ALGORITHM_DIRECT: {
      const DirectWork work = work_direct(&node->shape, node->layout.block, node->inputs[1]->layout.block,
                                          node->attrs.groups, &node->choice);
      return work.units * work.row_chunks;
    }
    case ALGORITHM_DEPTHWISE:
      return ceil_div(node->shape.dims[1], node->layout.block) * node->shape.dims[2];
    case ALGORITHM_WINOGRAD23:
    case ALGORITHM_WINOGRAD43:
    case ALGORITHM_WINOGRAD34:
      return winograd_parts(node);
    case ALGORITHM_TILES:
      return node->shape.dims[1] / TILES_PANEL * ceil_div(node->shape.dims[2], node->choice.row_chunk);
    default:
      return 0;
  }
}

static int64_t parts_of(const Node *node) {
  if (node->shape.rank >= 2 && has_free_parts(node)) return free_parts(node);
  if (node->op == OP_CONV2D) return conv2d_parts(node);
  if (!op_is_elementwise(node->op) || node->shape.rank < 2) return 0;
  if (node->layout.kind != LAYOUT_PLAIN && node->layout.kind != LAYOUT_CHANNEL_BLOCK) return 0;
  const RowWork work = work_rows(&node->shape, node->layout);
  return work.planes * work.chunks;
}

int64_t work_parts(const Node *node) {
  if (node->dtype != DTYPE_F32) return 0;
  const int64_t parts = parts_of(node), elements = shape_elements_per_image(&node->shape);
  const int64_t images = shape_batched(&node->shape) || parts == 0 ? 1 : node->shape.dims[0];
  return parts > 0 && elements / images / parts >= PART_ELEMENTS ? parts : 0;
}

int64_t moment_rows(int64_t height, int64_t parts) { return ceil_div(height, parts); }

bool moment_parts_fit(int64_t height, int64_t parts) {
  return parts > 0 && parts <= height && ceil_div(height, moment_rows(height, parts)) == parts;
}

int64_t work_moment_parts(const Node *node) {
  if (node->op != OP_CONV2D || node->dtype != DTYPE_F32 || node->layout.kind != LAYOUT_BATCH_BLOCK) return 0;
  const int64_t height = node->shape.dims[2], width = node->shape.dims[3];
  if (height * width < MOMENT_PLANE || node->choice.algorithm == ALGORITHM_REFERENCE) return 0;
  const int64_t parts = ceil_div(height, ceil_div(MOMENT_ELEMENTS, width));
  return ceil_div(height, moment_rows(height, parts)); /* rounding the rows up may have made the last one empty */
}

bool work_weights_first(const Shape *weights, int64_t l2_bytes) {
  int64_t count = 1;
  for (int32_t d = 0; d < weights->rank; d++) count *= weights->dims[d];
  return count * 4 > l2_bytes / 4;
}

bool work_by_image(const Node *node, int64_t l2_bytes) {
  switch (node->op) {
    case OP_CONV2D:
    case OP_CONV_TRANSPOSE2D:
    case OP_LINEAR:
    case OP_MATMUL:
      return !work_weights_first(&node->inputs[1]->shape, l2_bytes);
    case OP_CONVERT:
    case OP_MAX_POOL2D:
    case OP_AVG_POOL2D:
    case OP_ADAPTIVE_AVG_POOL2D:
    case OP_ADAPTIVE_MAX_POOL2D:
    case OP_MAX_POOL2D_GRAD:
    case OP_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_MAX_POOL2D_GRAD:
      return true;
    default: /* batch norm's items are channels, those of others are not known */
      return op_is_elementwise(node->op);
  }
}

bool work_strips(const Shape *made, const KernelChoice *choice, const Shape *pooled, const Attrs *pool,
                 StripWork *out_work) {
  const int64_t outputs = algorithm_winograd_form(choice->algorithm).outputs, stride = pool->stride.values[0];
  const int64_t kept = pool->padding.values[0];
  if (outputs == 0 || choice->row_chunk <= 0 || pool->dilation.values[0] != 1) return false;
  if (pool->kernel.values[0] != stride + kept || made->dims[3] < 1 || pooled->dims[2] < 1) return false;
  int64_t step = outputs;
  while (step % stride != 0) step += outputs;
  /* tiles that share a pass over the filters stay together */
  int64_t rows = ceil_div(choice->row_chunk, ceil_div(made->dims[3], outputs)) * outputs;
  if (rows < kept) rows = kept;
  rows = round_up(rows, step);
  *out_work = (StripWork){rows, kept, rows / stride, ceil_div(pooled->dims[2], rows / stride)};
  return true;
}

bool work_pools(const Node *pool, StripWork *out_work) {
  const Node *made = pool->inputs[0];
  if (pool->op != OP_MAX_POOL2D || pool->epilogue_count > 0 || made->op != OP_CONV2D || !node_has_kernel(made))
    return false;
  if (made->layout.kind != LAYOUT_CHANNEL_BLOCK || !layout_equal(made->layout, pool->layout) || made->dtype != DTYPE_F32)
    return false;
  if (layout_is_winograd_tiles(made->inputs[0]->layout.kind)) return false;
  return work_strips(&made->shape, &made->choice, &pool->shape, &pool->attrs, out_work);
}
