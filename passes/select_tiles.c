#include "select_tiles.h"

#include "base/checked.h"
#include "rewrite.h"

enum {
  LANES = 16,
  CHANNELS = 32,
  PRODUCTS = 3, /* of halves, for a product of f32 */
  TILE_CYCLES = 16,
  CACHE_SHARE = 8 /* of the second-level cache for an item's input, in halves */
};

Layout tiles_filter_layout(void) { return (Layout){.kind = LAYOUT_FILTER_HALVES, .block = CHANNELS}; }

bool tiles_possible(const Node *node, const PassOptions *options, const bool *prepared) {
  if (options->target == NULL || !options->target->tiles || options->precision != PRECISION_FAST) return false;
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  const Layout blocked = {.kind = LAYOUT_CHANNEL_BLOCK, .block = LANES};
  return node->attrs.groups == 1 && layout_equal(node->layout, blocked) && layout_equal(input->layout, blocked) &&
         node->shape.dims[1] % CHANNELS == 0 && input->shape.dims[1] % CHANNELS == 0 && node->shape.dims[2] > 0 &&
         node->shape.dims[3] > 0 && filter->op == OP_CONVERT && prepared[filter->id] &&
         filter->inputs[0]->layout.kind == LAYOUT_PLAIN;
}

/* Rows whose input fits a part of the cache in halves; all rows where the filters do not fit, which every chunk reads.
 * Of more than one chunk, chunks that are alike, and as many for each of two threads. */
KernelChoice tiles_choice(const Node *node, const PassOptions *options) {
  const int64_t height = node->shape.dims[2], *stride = node->attrs.stride.values;
  const Shape *in = &node->inputs[0]->shape;
  const int64_t cache = options->target->l2_bytes > 0 ? options->target->l2_bytes : 1 << 20;
  const int64_t row_bytes = in->dims[1] * (in->dims[3] + 2) * stride[0] * 4;
  const Shape *filter = &node->inputs[1]->shape;
  const int64_t filter_bytes = filter->dims[0] * filter->dims[1] * filter->dims[2] * filter->dims[3] * 4;
  int64_t chunks = ceil_div(height * row_bytes, filter_bytes > cache / 4 ? 2 * cache : cache / CACHE_SHARE);
  if (chunks > 1) chunks = round_up(chunks, 2);
  if (chunks > height) chunks = height;
  if (chunks < 1) chunks = 1;
  return (KernelChoice){.algorithm = ALGORITHM_TILES, .row_chunk = (int32_t)ceil_div(height, chunks)};
}

double tiles_cost(const Node *node, int64_t batch, double bytes_per_cycle, double (*exposed)(double, double)) {
  const int64_t *out = node->shape.dims, *filter = node->inputs[1]->shape.dims;
  const double taps = (double)(filter[2] * filter[3]), steps = (double)filter[1] / CHANNELS;
  const double tiles = (double)(out[2] * ceil_div(out[3], LANES)), columns = (double)out[1] / LANES;
  const double products = tiles * columns * steps * taps * PRODUCTS * TILE_CYCLES;
  const double reading = (double)(filter[0] * filter[1]) * taps * 4 / ((double)batch * bytes_per_cycle);
  const double others = (double)(out[2] * out[3]) * columns * 8 + tiles * columns * steps * 2 * TILE_CYCLES;
  return products + others + exposed(reading, products);
}
