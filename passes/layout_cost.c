/* The model counts what the kernels of codegen/cpu do: multiply-adds of whole vectors, lanes behind the last channel
 * included, the vectors that pooling and element-wise kernels load, and the bytes that pass from kernel to kernel, from
 * the second-level cache where a batch of the value stays there. Constants were measured on a Xeon with AVX-512; what
 * matters is how layouts compare, not the time. */
#include "layout_cost.h"

#include <math.h>

#include "base/checked.h"
#include "select_winograd.h"
#include "winograd.h"
#include "work.h"

static const double kernel_start = 400;       /* cycles to begin a kernel and to end it */
static const double near_bytes = 32;          /* a cycle, of the second-level cache */
static const double far_bytes = 8;            /* a cycle, of what lies behind it */
static const double multiply_adds = 2 * 0.83; /* a cycle, of vectors of any length */
static const double item_cycles = 25;         /* of an item with hardly any work */
static const double last_penalty = 1.02; /* pixels are far apart, and their distance often divides a cache's sets */

enum { DEFAULT_CACHE = 1 << 20, LEAST_BLOCK = 4 };

CostModel cost_model(const Graph *graph, const PassOptions *options, int32_t lanes) {
  const Target *target = options->target;
  return (CostModel){.lanes = lanes,
                     .cache = target && target->l2_bytes > 0 ? (double)target->l2_bytes : DEFAULT_CACHE,
                     .batch = graph->max_batch > 1 ? (double)graph->max_batch : 1,
                     .winograd = options->precision != PRECISION_STRICT};
}

/* --- forms ------------------------------------------------------------------------------------------- */

static int32_t form_block(ImageForm form, int32_t lanes) {
  return form == FORM_BLOCK ? lanes : form == FORM_HALF ? lanes / 2 : form == FORM_QUARTER ? lanes / 4 : 0;
}

static bool is_block(ImageForm form) { return form == FORM_BLOCK || form == FORM_HALF || form == FORM_QUARTER; }

Layout form_layout(ImageForm form, int32_t lanes) {
  if (form == FORM_LAST) return (Layout){.kind = LAYOUT_CHANNEL_LAST};
  if (form == FORM_PLAIN) return (Layout){.kind = LAYOUT_PLAIN};
  return (Layout){.kind = LAYOUT_CHANNEL_BLOCK, .block = form_block(form, lanes)};
}

ImageForm form_of(Layout layout, int32_t lanes) {
  for (ImageForm form = 0; form < FORM_COUNT; form++)
    if (layout_equal(layout, form_layout(form, lanes))) return form;
  return FORM_COUNT;
}

const char *form_name(ImageForm form, int32_t lanes) {
  static const char *const blocks[] = {
      [1] = "nchw1c", [2] = "nchw2c", [4] = "nchw4c", [8] = "nchw8c", [16] = "nchw16c"};
  if (!is_block(form)) return form == FORM_PLAIN ? "plain" : "nhwc";
  return form_block(form, lanes) <= 16 ? blocks[form_block(form, lanes)] : "channel-blocked";
}

bool is_image_value(const Node *node) { return node->shape.rank == 4 && node->dtype == DTYPE_F32; }

int32_t last_lanes(int64_t channels, int64_t groups, int32_t lanes) {
  while (lanes >= LEAST_BLOCK &&
         (channels < 1 || channels % lanes != 0 || (groups > 1 && channels / groups % lanes != 0)))
    lanes /= 2;
  return lanes >= LEAST_BLOCK ? lanes : 0;
}

static bool is_depthwise_conv(const Node *node) {
  return node->attrs.groups > 1 && node->attrs.groups == node->inputs[0]->shape.dims[1] &&
         node->attrs.groups == node->shape.dims[1];
}

static int32_t conv_last_lanes(const Node *node, int32_t lanes) {
  return last_lanes(node->shape.dims[1], is_depthwise_conv(node) ? 1 : node->attrs.groups, lanes);
}

/* An operand of a kernel with channels together: a single number, or one that varies over the channels. */
static bool operands_broadcast(const Node *node, int32_t first) {
  for (int32_t i = first; i < node->input_count; i++) {
    const Shape *shape = &node->inputs[i]->shape;
    bool single = true;
    for (int32_t d = 0; d < shape->rank; d++) single = single && shape->dims[d] == 1;
    if (node->inputs[i]->dtype != DTYPE_F32) return false;
    if (!single && (shape->rank < 3 || shape->rank > 4 || shape->dims[shape->rank - 3] != node->shape.dims[1]))
      return false;
  }
  return true;
}

static unsigned conv_forms(const Node *node, int32_t lanes) {
  const int64_t groups = node->attrs.groups, in = node->inputs[0]->shape.dims[1], out = node->shape.dims[1];
  unsigned forms = FORM_BIT(FORM_PLAIN);
  for (int32_t i = 0; i < node->op_input_count; i++)
    if (node->inputs[i]->dtype != DTYPE_F32) return forms;
  if (!operands_broadcast(node, node->op_input_count)) return forms;
  const bool grouped = groups > 1 && !is_depthwise_conv(node);
  for (ImageForm form = FORM_BLOCK; form <= FORM_QUARTER; form++) {
    const int32_t block = form_block(form, lanes);
    if (form != FORM_BLOCK && block < LEAST_BLOCK) continue;
    if (grouped && (in / groups % block || out / groups % block)) continue;
    forms |= FORM_BIT(form);
  }
  if (conv_last_lanes(node, lanes) > 0) forms |= FORM_BIT(FORM_LAST);
  return forms;
}

static unsigned block_forms(int32_t lanes) {
  unsigned forms = FORM_BIT(FORM_BLOCK);
  if (lanes / 2 >= LEAST_BLOCK) forms |= FORM_BIT(FORM_HALF);
  if (lanes / 4 >= LEAST_BLOCK) forms |= FORM_BIT(FORM_QUARTER);
  return forms;
}

static unsigned concat_forms(const Node *node, int32_t lanes) {
  const int64_t dim = node->attrs.dim < 0 ? node->attrs.dim + 4 : node->attrs.dim;
  unsigned forms = FORM_BIT(FORM_PLAIN);
  if (dim != 1 || !operands_broadcast(node, node->op_input_count)) return forms;
  forms |= FORM_BIT(FORM_LAST) | block_forms(lanes);
  for (int32_t i = 0; i < node->op_input_count; i++)
    for (ImageForm form = FORM_BLOCK; form <= FORM_QUARTER; form++)
      if (form_block(form, lanes) < 1 || node->inputs[i]->shape.dims[1] % form_block(form, lanes) != 0)
        forms &= ~FORM_BIT(form);
  return forms;
}

/* From [N,H,W,C] to the order of dimensions that images have, or back. */
static bool permutes(const Node *node, bool to_image) {
  static const int64_t orders[2][4] = {{0, 2, 3, 1}, {0, 3, 1, 2}};
  if (node->op != OP_PERMUTE || node->shape.rank != 4 || node->epilogue_count > 0) return false;
  for (int d = 0; d < 4; d++) {
    const int64_t dim = node->attrs.dims.values[d];
    if ((dim < 0 ? dim + 4 : dim) != orders[to_image][d]) return false;
  }
  return true;
}

static bool pools(OpCode op) {
  return op == OP_MAX_POOL2D || op == OP_AVG_POOL2D || op == OP_ADAPTIVE_AVG_POOL2D || op == OP_ADAPTIVE_MAX_POOL2D;
}

unsigned node_forms(const Node *node, int32_t lanes) {
  const unsigned plain = FORM_BIT(FORM_PLAIN);
  if (!is_image_value(node)) return plain;
  switch (node->op) {
    case OP_CONV2D:
      return conv_forms(node, lanes);
    case OP_CONCAT:
      return concat_forms(node, lanes);
    case OP_PERMUTE:
      return permutes(node, true) ? plain | FORM_BIT(FORM_LAST) : plain;
    case OP_DROPOUT:
      if (node->op_input_count > 1) return plain;
      break;
    case OP_BATCH_NORM:
      return plain;
    default:
      break;
  }
  if (op_is_elementwise(node->op))
    return operands_broadcast(node, 0) ? plain | block_forms(lanes) | FORM_BIT(FORM_LAST) : plain;
  if (op_info(node->op)->layouts != LAYOUTS_IMAGE || !operands_broadcast(node, node->op_input_count)) return plain;
  const bool last = node->op == OP_IDENTITY || node->op == OP_DROPOUT ||
                    (pools(node->op) && last_lanes(node->shape.dims[1], 1, lanes) > 0);
  return plain | block_forms(lanes) | (last ? FORM_BIT(FORM_LAST) : 0);
}

/* --- operands ---------------------------------------------------------------------------------------- */

/* One tap sees a vector of pixels of one image. */
static bool conv_reads(const CostModel *model, const Node *node, ImageForm form, ImageForm made) {
  const int64_t groups = node->attrs.groups, channels = node->inputs[0]->shape.dims[1];
  if (form == made) return true;
  if (made == FORM_PLAIN || is_depthwise_conv(node)) return false;
  if (form == FORM_PLAIN) return groups == 1 && channels < model->lanes;
  return groups == 1 || form == FORM_LAST || channels / groups % form_block(form, model->lanes) == 0;
}

static bool is_winograd(const CostModel *model, const Node *node) {
  const Attrs *attrs = &node->attrs;
  const int64_t *taps = &node->inputs[1]->shape.dims[2], channels = node->inputs[0]->shape.dims[1];
  return model->winograd && attrs->groups == 1 && taps[0] == 3 && taps[1] == 3 &&
         attrs->stride.values[0] == 1 && attrs->stride.values[1] == 1 && attrs->dilation.values[0] == 1 &&
         attrs->dilation.values[1] == 1 && channels >= model->lanes;
}

static bool wants_last_operand(const Node *value) {
  return value->shape.rank == 4 && (value->shape.dims[2] != 1 || value->shape.dims[3] != 1);
}

ImageForm operand_form(const CostModel *model, const Node *node, int32_t i, ImageForm form, ImageForm made) {
  if (node->op == OP_CONV2D && i == 0) {
    if (is_winograd(model, node) && made == FORM_BLOCK) return FORM_BLOCK;
    return conv_reads(model, node, form, made) ? form : made;
  }
  if (node->op == OP_STATS_PARTIAL) return form == FORM_LAST ? FORM_PLAIN : form;
  if (node->op == OP_PERMUTE) return form == FORM_LAST && permutes(node, false) ? form : FORM_PLAIN;
  if (made == FORM_LAST && i >= (op_is_elementwise(node->op) ? 0 : node->op_input_count) &&
      !wants_last_operand(node->inputs[i]))
    return FORM_PLAIN;
  return made;
}

/* --- sizes ------------------------------------------------------------------------------------------- */

static double elements(const Shape *shape) {
  double count = 1;
  for (int32_t d = 1; d < shape->rank; d++) count *= (double)shape->dims[d];
  return count;
}

static double pixels(const Shape *shape) { return (double)(shape->dims[2] * shape->dims[3]); }

static double padded_elements(const CostModel *model, const Shape *shape, ImageForm form) {
  if (shape->rank != 4 || !is_block(form)) return elements(shape);
  return pixels(shape) * (double)round_up(shape->dims[1], form_block(form, model->lanes));
}

/* Writing or reading a value once. */
static double passing(const CostModel *model, double count) {
  const double bytes = 4 * count;
  return bytes / (bytes * model->batch > model->cache / 2 ? far_bytes : near_bytes);
}

/* Vectors that hold a pixel's channels, or a row's pixels. */
static double vectors(const CostModel *model, const Shape *shape, ImageForm form) {
  if (is_block(form)) return pixels(shape) * (double)ceil_div(shape->dims[1], form_block(form, model->lanes));
  if (form == FORM_PLAIN) return elements(shape) / model->lanes;
  const int32_t lanes = last_lanes(shape->dims[1], 1, model->lanes);
  return elements(shape) / (lanes > 0 ? lanes : 1);
}

/* --- conversions ------------------------------------------------------------------------------------- */

/* Channels of a column that are transposed in squares: what a column of a square costs, and each number in it. Squares
 * of 8 lanes have the least numbers for their shuffles that cross halves of a vector. */
static double squares_cost(int32_t side, int64_t channels) {
  const double of_column = side >= 16 ? 3 : side >= 8 ? 4.5 : 2.5, of_number = 0.15;
  return of_column * (double)ceil_div(channels, side) + of_number * (double)channels;
}

double cost_of_conversion(const CostModel *model, const Shape *shape, ImageForm from, ImageForm to) {
  static const double of_group = 1.5, of_single = 2.5; /* cycles a vector or number */
  if (from == to || shape->rank != 4) return 0;
  const double moved =
      passing(model, padded_elements(model, shape, from)) + passing(model, padded_elements(model, shape, to));
  const bool one = shape->dims[2] == 1 && shape->dims[3] == 1, whole = shape->dims[1] % model->lanes == 0;
  if (one && (whole || (!is_block(from) && !is_block(to)))) return 0; /* a view */
  if (from != FORM_PLAIN && to != FORM_PLAIN) {
    const ImageForm narrow = from == FORM_LAST ? to : to == FORM_LAST ? from : from > to ? from : to;
    return kernel_start + moved + of_group * vectors(model, shape, narrow);
  }
  const ImageForm other = from == FORM_PLAIN ? to : from;
  const int32_t side = is_block(other) ? form_block(other, model->lanes) : model->lanes;
  const int64_t rest = shape->dims[1] % 4, single = other == FORM_LAST ? rest : 0;
  return kernel_start + moved + pixels(shape) * squares_cost(side, shape->dims[1] - single) +
         pixels(shape) * (double)single * of_single;
}

/* --- kernels ----------------------------------------------------------------------------------------- */

/* Vectors run along the rows of an image, of which a padded one is copied; where they cannot, number by number. */
static double rows_cost(const CostModel *model, const Node *node) {
  static const double of_vector = 0.7, of_tile = 4, of_single = 3;
  const Shape *filter = &node->inputs[1]->shape, *in = &node->inputs[0]->shape;
  const int64_t width = node->shape.dims[3], *padding = node->attrs.padding.values;
  const double rows = (double)(node->shape.dims[1] * node->shape.dims[2]) * (double)filter->dims[1];
  const double taps = (double)(filter->dims[2] * filter->dims[3]);
  if (!work_along_rows(&node->attrs, filter, &node->shape)) return of_single * rows * taps * (double)width;
  const double copy = padding[0] || padding[1] || padding[2] || padding[3]
                          ? kernel_start + 2 * passing(model, elements(in)) + elements(in) / model->lanes
                          : 0;
  int32_t lanes = model->lanes;
  while (lanes > width) lanes /= 2;
  const double vectors_of_row = (double)ceil_div(width, lanes);
  return copy + rows * vectors_of_row * (of_vector * taps + of_tile);
}

/* The less of both variants. */
static double winograd_cost(const CostModel *model, const Node *node) {
  const Shape *in = &node->inputs[0]->shape;
  const double inputs = (double)ceil_div(in->dims[1], model->lanes),
               outputs = (double)ceil_div(node->shape.dims[1], model->lanes);
  double least = INFINITY;
  for (Algorithm algorithm = ALGORITHM_WINOGRAD23; algorithm <= ALGORITHM_WINOGRAD43; algorithm++) {
    const WinogradForm form = algorithm_winograd_form(algorithm);
    const WinogradGrid grid = winograd_grid(form, in->dims[2], in->dims[3], node->attrs.padding.values);
    const double tiles = (double)(grid.rows * grid.columns), positions = winograd_size(form) * winograd_size(form);
    least = fmin(least, tiles * positions * (double)in->dims[1] * outputs / multiply_adds +
                            winograd_transforms(form, tiles, inputs, outputs));
  }
  return least;
}

static double conv_cost(const CostModel *model, const Node *node, ImageForm made, bool winograd) {
  if (made == FORM_PLAIN) return rows_cost(model, node);
  const int64_t *taps = &node->inputs[1]->shape.dims[2];
  const int32_t lanes = made == FORM_LAST ? conv_last_lanes(node, model->lanes) : form_block(made, model->lanes);
  const double blocks = (double)ceil_div(node->shape.dims[1], lanes), of_filter = (double)(taps[0] * taps[1]);
  const double products = pixels(&node->shape) * of_filter * (double)node->inputs[1]->shape.dims[1] * blocks;
  if (is_depthwise_conv(node)) return products;
  const double reading = of_filter * (double)node->inputs[1]->shape.dims[1] * blocks * lanes * 4 / model->batch;
  const double direct = products / multiply_adds,
               computing = winograd ? fmin(direct, winograd_cost(model, node)) : direct;
  return computing + (reading > model->cache / 2 ? reading / far_bytes : 0);
}

/* Windows of single pixels where these are no vectors. */
static double pool_cost(const CostModel *model, const Node *node, ImageForm made) {
  static const double of_load = 1.2, of_single = 2.5;
  const Shape *in = &node->inputs[0]->shape;
  const bool sliding = node->op == OP_MAX_POOL2D || node->op == OP_AVG_POOL2D;
  const double places = sliding ? pixels(&node->shape) : pixels(in);
  const double taps = sliding ? (double)(node->attrs.kernel.values[0] * node->attrs.kernel.values[1]) : 1;
  if (made == FORM_PLAIN) {
    const bool run = !sliding && pixels(&node->shape) == 1;
    return places * taps * (double)in->dims[1] * (run ? 1.0 / model->lanes : of_single);
  }
  const int32_t lanes = made == FORM_LAST ? last_lanes(in->dims[1], 1, model->lanes) : form_block(made, model->lanes);
  return places * taps * of_load * (double)ceil_div(in->dims[1], lanes);
}

/* Single pixels where an operand has one number, or one vector, for all pixels of a channel. */
static double elementwise_cost(const CostModel *model, const Node *node, ImageForm made) {
  static const double of_vector = 1;
  double cost = of_vector * vectors(model, &node->shape, made);
  for (int32_t i = 0; i < node->input_count && made != FORM_PLAIN; i++) {
    const Shape *shape = &node->inputs[i]->shape;
    if (shape_equal(shape, &node->shape) || shape->rank < 3) continue;
    const double groups = made == FORM_LAST ? 1 : (double)ceil_div(node->shape.dims[1], form_block(made, model->lanes));
    return cost + item_cycles * groups * pixels(&node->shape);
  }
  return cost;
}

static double permute_cost(const CostModel *model, const Node *node, ImageForm read, ImageForm made) {
  static const double of_single = 1.5;
  if (made == FORM_LAST || read == FORM_LAST) return 0; /* a view */
  return kernel_start + of_single * elements(&node->shape) + passing(model, elements(&node->shape));
}

double cost_of_node(const CostModel *model, const Node *node, ImageForm made) {
  if (!is_image_value(node) || node->op == OP_INPUT || node->op == OP_PARAMETER || node->op == OP_PERMUTE) return 0;
  const double written = passing(model, padded_elements(model, &node->shape, made));
  const double slower = made == FORM_LAST ? last_penalty : 1;
  if (node->op == OP_CONV2D) return written; /* the rest depends on the input */
  if (pools(node->op)) return slower * (written + pool_cost(model, node, made));
  if (op_is_elementwise(node->op)) return slower * (written + elementwise_cost(model, node, made));
  if (node->op == OP_CONCAT) return slower * written; /* pieces are often made in their place */
  return slower * (written + vectors(model, &node->shape, made));
}

double cost_of_operand(const CostModel *model, const Node *node, int32_t i, ImageForm form, ImageForm made) {
  const Node *value = node->inputs[i];
  if (!is_image_value(value)) return 0;
  const ImageForm read = operand_form(model, node, i, form, made);
  double cost = cost_of_conversion(model, &value->shape, form, read);
  if (value->op == OP_PARAMETER) return 0; /* converted when weights are prepared */
  if (node->op == OP_PERMUTE) return cost + permute_cost(model, node, read, made);
  if (!is_image_value(node)) return cost;
  cost += passing(model, padded_elements(model, &value->shape, read));
  if (node->op != OP_CONV2D || i > 0) return cost;
  const bool winograd = made == FORM_BLOCK && read == FORM_BLOCK && is_winograd(model, node);
  return cost + (made == FORM_LAST || read == FORM_LAST ? last_penalty : 1) * conv_cost(model, node, made, winograd);
}
