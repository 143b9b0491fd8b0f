/* Statistics of values: shape rules and the interpreter. */
#include "stats.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "eval.h"
#include "infer.h"

StatsBlocks stats_blocks(const Shape *shape) {
  StatsBlocks blocks = {.images = 1, .channels = 1, .height = 1, .width = 1};
  const bool image = shape->rank == 4, whole = !shape_batched(shape) && shape->rank < 2;
  if (!whole) blocks.images = shape->dims[0];
  if (image) {
    blocks.channels = shape->dims[1];
    blocks.height = shape->dims[2];
    blocks.width = shape->dims[3];
  } else {
    for (int32_t i = whole ? 0 : 1; i < shape->rank; i++) blocks.height *= shape->dims[i];
  }
  blocks.groups = ceil_div(blocks.channels, STATS_CHANNELS);
  const int64_t across = blocks.channels < STATS_CHANNELS ? blocks.channels : STATS_CHANNELS;
  const int64_t row = across * blocks.width;
  const int64_t most = row < STATS_ELEMENTS ? STATS_ELEMENTS / row : 1;
  blocks.chunks = ceil_div(blocks.height, most);
  blocks.rows = ceil_div(blocks.height, blocks.chunks);
  blocks.chunks = ceil_div(blocks.height, blocks.rows); /* rounding the rows up may have made the last one empty */
  return blocks;
}

StatsRange stats_range(const Attrs *attrs) {
  StatsRange range = {.low = (float)attrs->low, .high = (float)attrs->high, .threshold = (float)attrs->threshold};
  range.scale = (double)attrs->bins / (range.high - range.low);
  return range;
}

Attrs stats_attrs(const HookStats *options) {
  Attrs attrs = attrs_default();
  if (options->bins == 0) return attrs;
  attrs.bins = options->bins;
  attrs.low = options->low;
  attrs.high = options->high;
  attrs.threshold = options->threshold;
  return attrs;
}

/* --- shape rules ----------------------------------------------------------------------------------- */

bool infer_stats_partial(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "input", DTYPE_F32, diag)) return false;
  const StatsRange range = stats_range(&node->attrs);
  if (!(range.low < range.high)) {
    char low[DOUBLE_TEXT_SIZE], high[DOUBLE_TEXT_SIZE];
    return node_error(diag, node, "low expects a number below high, found %s and %s", double_text(node->attrs.low, low),
                      double_text(node->attrs.high, high));
  }
  const StatsBlocks blocks = stats_blocks(&node->inputs[0]->shape);
  const int64_t rows = node->attrs.parts > 0 ? node->attrs.parts : blocks.groups * blocks.chunks;
  const Shape shape = {3, {blocks.images, rows, STATS_FIELDS + node->attrs.bins}};
  return infer_finish(node, DTYPE_F32, shape, diag);
}

bool infer_stats_final(Node *node, Diag *diag) {
  if (!infer_begin(node, diag) || !infer_expect_type(node, 0, "partial statistics", DTYPE_F32, diag) ||
      !infer_expect_rank(node, 0, "partial statistics", 3, diag)) {
    return false;
  }
  const int64_t fields = node->inputs[0]->shape.dims[2];
  if (fields <= STATS_FIELDS) {
    return node_error(diag, node, "partial statistics expects more than %d fields, found %lld", STATS_FIELDS,
                      (long long)fields);
  }
  return infer_finish(node, DTYPE_F32, (Shape){1, {fields - STATS_FIELDS + STATS_RESULT_FIELDS}}, diag);
}

/* --- interpreter ----------------------------------------------------------------------------------- */

/* Calls `visit` with every element of a block. */
typedef void (*StatsVisit)(void *context, double value);

static void visit_block(const StatsBlocks *blocks, int64_t block, const double *image, StatsVisit visit,
                        void *context) {
  const int64_t channel = block / blocks->chunks * STATS_CHANNELS, row = block % blocks->chunks * blocks->rows;
  for (int64_t c = channel; c < channel + STATS_CHANNELS && c < blocks->channels; c++) {
    for (int64_t y = row; y < row + blocks->rows && y < blocks->height; y++) {
      const double *line = image + (c * blocks->height + y) * blocks->width;
      for (int64_t x = 0; x < blocks->width; x++) visit(context, line[x]);
    }
  }
}

typedef struct Summary {
  StatsRange range;
  int64_t bins;
  double count, sum, mean, m2, near_zero;
  double *counts;
} Summary;

static void summarise(void *context, double value) {
  Summary *summary = context;
  const StatsRange *range = &summary->range;
  summary->count++;
  summary->sum += value;
  if (value <= range->threshold) summary->near_zero++;
  if (!(value >= range->low && value <= range->high)) return;
  const int64_t bin = (int64_t)((value - range->low) * range->scale);
  summary->counts[bin < summary->bins ? bin : summary->bins - 1]++;
}

static void add_distance(void *context, double value) {
  Summary *summary = context;
  summary->m2 += (value - summary->mean) * (value - summary->mean);
}

/* Which elements a kernel's items hold is not known here, nor does it matter: runs of about equal length. */
static StatsBlocks blocks_of(const Node *node) {
  StatsBlocks blocks = stats_blocks(&node->inputs[0]->shape);
  if (node->attrs.parts == 0) return blocks;
  blocks.height *= blocks.channels * blocks.width;
  blocks.channels = blocks.width = blocks.groups = 1;
  blocks.chunks = node->attrs.parts;
  blocks.rows = ceil_div(blocks.height, blocks.chunks);
  return blocks;
}

void eval_stats_partial(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  StatsBlocks blocks = blocks_of(node);
  if (blocks.images == DIM_BATCH) blocks.images = inputs[0]->shape.dims[0];
  const int64_t per_image = blocks.groups * blocks.chunks, size = blocks.channels * blocks.height * blocks.width;
  memset(output->data, 0, (size_t)(blocks.images * per_image * (STATS_FIELDS + node->attrs.bins)) * sizeof(double));
  for (int64_t i = 0; i < blocks.images * per_image; i++) {
    double *row = output->data + i * (STATS_FIELDS + node->attrs.bins);
    const double *image = inputs[0]->data + i / per_image * size;
    Summary summary = {.range = stats_range(&node->attrs), .bins = node->attrs.bins, .counts = row + STATS_FIELDS};
    visit_block(&blocks, i % per_image, image, summarise, &summary);
    summary.mean = summary.count > 0 ? summary.sum / summary.count : 0; /* of the last parts nothing may be left */
    visit_block(&blocks, i % per_image, image, add_distance, &summary);
    row[STATS_COUNT] = summary.count;
    row[STATS_MEAN] = (float)summary.mean;
    row[STATS_MEAN_REST] = summary.mean - (float)summary.mean;
    row[STATS_M2] = summary.m2;
    row[STATS_NEAR_ZERO] = summary.near_zero;
  }
}

void eval_stats_final(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  (void)node;
  const int64_t fields = inputs[0]->shape.dims[2], rows = inputs[0]->shape.dims[0] * inputs[0]->shape.dims[1];
  const double *const begin = inputs[0]->data, *const end = begin + rows * fields;
  double count = 0, sum = 0, m2 = 0, near_zero = 0;
  for (const double *row = begin; row < end; row += fields) {
    count += row[STATS_COUNT];
    sum += row[STATS_COUNT] * (row[STATS_MEAN] + row[STATS_MEAN_REST]);
    near_zero += row[STATS_NEAR_ZERO];
  }
  const double mean = sum / count;
  for (const double *row = begin; row < end; row += fields) {
    const double distance = row[STATS_MEAN] + row[STATS_MEAN_REST] - mean;
    m2 += row[STATS_M2] + row[STATS_COUNT] * distance * distance;
  }
  output->data[STATS_RESULT_MEAN] = mean;
  output->data[STATS_RESULT_STD] = sqrt(m2 / (count - 1));
  output->data[STATS_RESULT_NEAR_ZERO] = near_zero / count;
  for (int64_t bin = 0; bin < fields - STATS_FIELDS; bin++) {
    double total = 0;
    for (const double *row = begin; row < end; row += fields) total += row[STATS_FIELDS + bin];
    output->data[STATS_RESULT_FIELDS + bin] = total;
  }
}
