#include "select_tiles.h"

#include <math.h>

#include "base/checked.h"
#include "rewrite.h"

enum {
  LANES = 16,
  CHANNELS = 32,
  TILE_CYCLES = 16,
  CACHE_SHARE = 8,     /* of the second-level cache for an item's input, in parts */
  FEW_TILES = 12,      /* of which filters are used three times at most */
  LEAST_PRODUCTS = 256 /* of an output, of halves */
};

/* Parts of a number. Errors of halves' products average out; of few products they do not, and networks of such layers
 * make them larger: those of MobileNet v2 ended at 6e-5. */
static int32_t parts_of(const Node *node, Precision precision) {
  const int64_t *filter = node->inputs[1]->shape.dims;
  return precision == PRECISION_FAST && filter[1] * filter[2] * filter[3] >= LEAST_PRODUCTS ? 2 : 3;
}

static double bytes_of(const Shape *filter, double per_number) {
  return (double)(filter->dims[0] * filter->dims[1] * filter->dims[2] * filter->dims[3]) * per_number;
}

/* Of an image's outputs: a tile goes on in the next row, see codegen/cpu/conv_tiles.c. */
static int64_t tiles_of(const Node *node) {
  const int64_t *out = node->shape.dims, *taps = node->inputs[1]->shape.dims + 2;
  const int64_t columns = out[3] + (taps[1] - 1) * node->attrs.dilation.values[1] / node->attrs.stride.values[1];
  const int64_t rows = out[2] * ceil_div(out[3], LANES), flowing = ceil_div(out[2] * columns, LANES);
  return flowing < rows ? flowing : rows;
}

/* Pixels of the input that are split: of a single tap no more than outputs. */
static int64_t split_pixels(const Node *node) {
  const int64_t *out = node->shape.dims, *taps = node->inputs[1]->shape.dims + 2;
  int64_t pixels = out[2] * out[3];
  for (int i = 0; i < 2; i++) pixels *= taps[i] < node->attrs.stride.values[i] ? taps[i] : node->attrs.stride.values[i];
  return pixels;
}

Layout tiles_filter_layout(const Node *node, Precision precision) {
  if (parts_of(node, precision) == 2) return (Layout){.kind = LAYOUT_FILTER_HALVES, .block = CHANNELS};
  if (tiles_of(node) <= FEW_TILES) return (Layout){.kind = LAYOUT_FILTER_TILES, .block = LANES};
  return (Layout){.kind = LAYOUT_FILTER_THIRDS, .block = CHANNELS};
}

bool tiles_possible(const Node *node, const PassOptions *options, const bool *prepared) {
  if (options->target == NULL || !options->target->tiles || options->precision == PRECISION_STRICT) return false;
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  const Layout blocked = {.kind = LAYOUT_CHANNEL_BLOCK, .block = LANES};
  return node->attrs.groups == 1 && layout_equal(node->layout, blocked) && layout_equal(input->layout, blocked) &&
         node->shape.dims[1] % CHANNELS == 0 && input->shape.dims[1] % CHANNELS == 0 && node->shape.dims[2] > 0 &&
         node->shape.dims[3] > 0 && filter->op == OP_CONVERT && prepared[filter->id] &&
         filter->inputs[0]->layout.kind == LAYOUT_PLAIN;
}

/* Rows whose input fits a part of the cache in parts; all rows of few tiles, and where the filters do not fit, which
 * every chunk reads. Of more than one chunk, chunks that are alike, and as many for each of two threads. */
KernelChoice tiles_choice(const Node *node, const PassOptions *options) {
  const int64_t height = node->shape.dims[2], *stride = node->attrs.stride.values;
  const Shape *in = &node->inputs[0]->shape;
  const int64_t cache = options->target->l2_bytes > 0 ? options->target->l2_bytes : 1 << 20;
  const int64_t row_bytes = in->dims[1] * (in->dims[3] + 2) * stride[0] * 2 * parts_of(node, options->precision);
  const double filter_bytes = bytes_of(&node->inputs[1]->shape, 2 * parts_of(node, options->precision));
  int64_t chunks = ceil_div(height * row_bytes, filter_bytes > (double)cache / 4 ? 2 * cache : cache / CACHE_SHARE);
  if (chunks > 1) chunks = round_up(chunks, 2);
  if (chunks > height) chunks = height;
  if (chunks < 1 || tiles_of(node) <= FEW_TILES) chunks = 1;
  return (KernelChoice){.algorithm = ALGORITHM_TILES, .row_chunk = (int32_t)ceil_div(height, chunks)};
}

/* What takes the time: products; the operands of a pair of tiles and a panel, of which the second-level cache gives 25
 * bytes a cycle; splitting the input and putting sums away, mostly stores. Measured on a Xeon with 2 MiB of that cache a
 * core. Every image reads the filters anew. */
double tiles_cost(const Node *node, Precision precision, double bytes_per_cycle, double (*exposed)(double, double)) {
  enum { PAIR_SUMS = 1000, SPLIT_PART = 16, OPERAND_BYTES_PER_CYCLE = 25 };
  static const double busy = 0.8; /* share of the time that tile products take, of several taps */
  const Shape *filter = &node->inputs[1]->shape;
  const int32_t parts = parts_of(node, precision);
  const bool whole = tiles_filter_layout(node, precision).kind == LAYOUT_FILTER_TILES;
  const double taps = (double)(filter->dims[2] * filter->dims[3]), steps = (double)filter->dims[1] / CHANNELS;
  const double tiles = (double)tiles_of(node), panels = (double)filter->dims[0] / CHANNELS;
  const double pairs = whole ? tiles / 2 : ceil(tiles / 2);
  const double products = 4 * TILE_CYCLES * parts * (parts + 1) / 2.0 / (whole ? 0.7 : busy);
  const double operands = parts * 64.0 * CHANNELS * (taps > 1 ? 1 : 2) / OPERAND_BYTES_PER_CYCLE;
  const double computing = pairs * steps * taps * panels * fmax(products, operands);
  const double reading = bytes_of(filter, whole ? 4 : 2 * parts) / bytes_per_cycle;
  const double split = (double)split_pixels(node) * steps * parts * SPLIT_PART;
  return computing + split + pairs * panels * PAIR_SUMS + exposed(reading, computing);
}
