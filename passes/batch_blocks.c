/* batch_blocks: whether an inference program computes on values with b images side by side.
 *
 *   %image : f32[N,1,28,28], min_batch 64      →      batch_blocked
 *
 * A vector of channels is mostly empty in a network of few channels; a vector of the same element of b images is full
 * whatever the channels, when the batch is. Training steps work so always (layout_training.c); inference does where the
 * cost model promises a tenth less time at the smallest batch that the program is made for and at the largest one: at
 * batch 1 b images are computed for one. Networks of many channels lose by it: b images of a wide layer do not stay in
 * the caches, and Winograd's algorithm and tile registers need channels.
 *
 * Costs are of the graph as `layout` would leave it, laid out once each way. What only hooks read does not count, nor
 * do element-wise ops, which a hook may keep from being fused: a hook does not change how the rest is computed.
 *
 * Requires: fuse. Guarantees: `batch_blocked` of the graph, which a graph that has it keeps. */
#include <math.h>

#include "base/checked.h"
#include "passes.h"
#include "rewrite.h"
#include "train.h"
#include "work.h"

/* A layout that the model weighs: cycles of a core, for some images. */
typedef struct Costing {
  const Target *target;
  const bool *prepared;
  int64_t images;
} Costing;

static const double margin = 0.9;

static double vectors_of(const Costing *costing, const Node *node) {
  const int64_t lanes = costing->target->vector_lanes, elements = shape_elements_per_image(&node->shape);
  const int64_t images = shape_batched(&node->shape) ? costing->images : 1;
  if (node->layout.kind == LAYOUT_BATCH_BLOCK) return (double)elements * (double)ceil_div(images, lanes);
  if (node->layout.kind != LAYOUT_CHANNEL_BLOCK) return (double)images * (double)elements / (double)lanes;
  return (double)images * (double)(elements / node->shape.dims[1]) * (double)ceil_div(node->shape.dims[1], lanes);
}

/* Pairs of output and tap along axis `i` whose tap is inside the image. */
static double inside_taps(const Node *conv, int i) {
  const int64_t size = conv->inputs[0]->shape.dims[2 + i], taps = conv->inputs[1]->shape.dims[2 + i];
  double count = 0;
  for (int64_t tap = 0; tap < taps; tap++) {
    const int64_t first = tap * conv->attrs.dilation.values[i] - conv->attrs.padding.values[i];
    const int64_t stride = conv->attrs.stride.values[i], outputs = conv->shape.dims[2 + i];
    const int64_t begin = first < 0 ? ceil_div(-first, stride) : 0;
    const int64_t end = first < size ? ceil_div(size - first, stride) : 0;
    if (begin < (end < outputs ? end : outputs)) count += (double)((end < outputs ? end : outputs) - begin);
  }
  return count;
}

/* Multiply-adds of an image. */
static double products_of(const Node *node) {
  const Shape *weight = &node->inputs[1]->shape;
  const double outputs = (double)shape_elements_per_image(&node->shape);
  switch (node->op) {
    case OP_CONV2D:
      return outputs * (double)weight->dims[1] * (double)(weight->dims[2] * weight->dims[3]);
    case OP_CONV_TRANSPOSE2D:
      return (double)shape_elements_per_image(&node->inputs[0]->shape) * (double)weight->dims[1] *
             (double)(weight->dims[2] * weight->dims[3]);
    default: /* linear, matmul */
      return outputs * (double)node->inputs[0]->shape.dims[node->inputs[0]->shape.rank - 1];
  }
}

/* Winograd's algorithm and tile registers halve the time at least, where there are channels enough for them. */
static bool has_fast_algorithm(const Node *conv, const PassOptions *options) {
  enum { TILE_CHANNELS = 32 };
  const Attrs *attrs = &conv->attrs;
  const int64_t *weight = conv->inputs[1]->shape.dims, lanes = options->target->vector_lanes;
  if (options->precision == PRECISION_STRICT || attrs->groups != 1) return false;
  if (options->target->tiles && weight[0] % TILE_CHANNELS == 0 && weight[1] % TILE_CHANNELS == 0) return true;
  for (int i = 0; i < 2; i++)
    if (weight[2 + i] != 3 || attrs->stride.values[i] != 1 || attrs->dilation.values[i] != 1) return false;
  return weight[0] >= lanes && weight[1] >= lanes;
}

/* Shares of the peak, two multiply-adds a cycle, that kernels were measured to reach on a Xeon with AVX-512: direct
 * convolution, depthwise, and batch-blocked kernels, where the second-level cache holds a block of images and not. */
static const double direct_share = 0.68, depthwise_share = 0.5, block_share = 0.85, far_block_share = 0.5;
static const double rows_share = 1.4; /* multiply-adds a cycle of plain convolutions along rows */

static double block_cost(const Costing *costing, const Node *node) {
  const int64_t lanes = costing->target->vector_lanes;
  double products = products_of(node);
  if (node->op == OP_CONV2D)
    products =
        (double)(node->shape.dims[1] * node->inputs[1]->shape.dims[1]) * inside_taps(node, 0) * inside_taps(node, 1);
  const double bytes =
      (double)sizeof(float) * (double)lanes *
      ((double)shape_elements_per_image(&node->shape) + (double)shape_elements_per_image(&node->inputs[0]->shape));
  const bool near = bytes <= 0.75 * (double)costing->target->l2_bytes;
  return products * (double)ceil_div(costing->images, lanes) / 2 / (near ? block_share : far_block_share);
}

static double product_cost(const Costing *costing, const Node *node, const PassOptions *options) {
  const double lanes = costing->target->vector_lanes, products = products_of(node);
  if (node->layout.kind == LAYOUT_BATCH_BLOCK) return block_cost(costing, node);
  const double images = shape_batched(&node->shape) ? (double)costing->images : 1;
  if (node->op == OP_LINEAR) {
    const int64_t features = node->inputs[1]->shape.dims[0];
    const double filled = (double)features / (double)round_up(features, costing->target->vector_lanes);
    return images * products / lanes / filled / 2 / direct_share;
  }
  const Node *filter = node->inputs[1];
  if (node->layout.kind == LAYOUT_PLAIN && node->op == OP_CONV2D &&
      work_along_rows(&node->attrs, &filter->shape, &node->shape))
    return images * products / rows_share / (double)node->shape.dims[3] *
           (double)ceil_div(node->shape.dims[3], costing->target->vector_lanes);
  if (node->layout.kind != LAYOUT_CHANNEL_BLOCK && node->layout.kind != LAYOUT_CHANNEL_LAST)
    return images * products; /* number by number */
  const int64_t vector = work_lanes(node->layout, filter->layout.block, &node->choice);
  const double filled = (double)node->shape.dims[1] / (double)round_up(node->shape.dims[1], vector);
  const double cycles = images * products / (double)vector / filled / 2;
  if (node->attrs.groups > 1 && node->inputs[1]->shape.dims[1] == 1) return cycles / depthwise_share;
  return cycles / direct_share / (has_fast_algorithm(node, options) ? 2 : 1);
}

static double node_cost(const Costing *costing, const Node *node, const PassOptions *options) {
  const double cycles_of_move = 5; /* a vector that is rearranged, both ways of the cache included */
  if (node->input_count == 0 || costing->prepared[node->id] || op_is_elementwise(node->op)) return 0;
  switch (node->op) {
    case OP_CONV2D:
    case OP_CONV_TRANSPOSE2D:
    case OP_LINEAR:
    case OP_MATMUL:
      return product_cost(costing, node, options);
    case OP_CONVERT:
      return cycles_of_move * fmax(vectors_of(costing, node), vectors_of(costing, node->inputs[0]));
    case OP_FLATTEN:
    case OP_RESHAPE:
    case OP_IDENTITY:
    case OP_DROPOUT:
      return 0; /* mostly views */
    default:
      return vectors_of(costing, node) + vectors_of(costing, node->inputs[0]);
  }
}

/* What runs of `images` images cost, laid out so. */
static double graph_cost(const Graph *graph, const PassOptions *options, int64_t images) {
  const Costing costing = {options->target, mark_prepare_phase(graph, options->scratch), images};
  double cost = 0;
  for (size_t i = 0; i < graph->node_count; i++) cost += node_cost(&costing, graph->nodes[i], options);
  return cost;
}

/* A copy as `layout` leaves it, without hooks; NULL after a report. */
static const Graph *lay_out(const Graph *graph, bool batch_blocked, const PassOptions *options, Diag *diag) {
  Graph *copy = graph_clone(graph, options->scratch);
  copy->batch_blocked = batch_blocked;
  copy->output_count -= copy->hook_output_count;
  copy->hook_output_count = 0;
  graph_remove_dead(copy);
  return pass_layout(copy, options, diag) ? copy : NULL;
}

bool pass_batch_blocks(Graph *graph, const PassOptions *options, Diag *diag) {
  const Target *target = options->target;
  const int64_t batches[2] = {graph->min_batch, graph->max_batch};
  if (!target || target->image_layout == LAYOUT_CHANNEL_LAST || graph_fixes_batch(graph) || graph->batch_blocked ||
      graph->output_count == graph->hook_output_count)
    return true;
  Node *output = graph->outputs[0].node;
  if (2 * batches[0] <= target->vector_lanes) { /* half of the lanes would be empty at best */
    if (batches[1] > 1)
      node_decide(
          graph, output, "batch_blocks", "channels side by side", "images side by side",
          arena_format(graph->arena, "The program is made for batches of %lld too, and would compute %d images.",
                       (long long)batches[0], (int)target->vector_lanes));
    return true;
  }
  const Graph *by_channels = lay_out(graph, false, options, diag),
              *by_images = by_channels ? lay_out(graph, true, options, diag) : NULL;
  if (!by_images) return false;
  double channels[2], images[2];
  bool better = true;
  for (int i = 0; i < 2; i++) {
    channels[i] = graph_cost(by_channels, options, batches[i]);
    images[i] = graph_cost(by_images, options, batches[i]);
    better = better && images[i] < margin * channels[i];
  }
  graph->batch_blocked = better;
  const char *reason =
      arena_format(graph->arena, "By the model %.3g cycles with images and %.3g with channels at batch %lld", images[0],
                   channels[0], (long long)batches[0]);
  if (batches[1] > batches[0])
    reason = arena_format(graph->arena, "%s, %.3g and %.3g at batch %lld", reason, images[1], channels[1],
                          (long long)batches[1]);
  node_decide(graph, output, "batch_blocks", better ? "images side by side" : "channels side by side",
              better ? "channels side by side" : "images side by side", arena_format(graph->arena, "%s.", reason));
  return true;
}
