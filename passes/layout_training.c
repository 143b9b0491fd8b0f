/* layout of training steps, and of inference where `batch_blocks` has chosen it: values that have an element per image are batch-blocked wherever the kernels are.
 *
 *   %1 = convert %image : n16chw;  %c = conv2d %1, %w, %b : f32[N,8,14,14] n16chw;  … ;  %2 = convert %logits : plain
 *
 * A vector is one element of b images, so that layers of one channel run as fast as those of many, weights are used as
 * they are (they change with every step), and sums over the batch are sums of vectors. From the image to the logits and
 * back nothing is moved. Weights, sums over the batch and everything without a batch stay plain. */
#include "layout.h"

static const Layout plain = {LAYOUT_PLAIN, 0};

/* Transposed convolutions have code for each place within a stride: see codegen/cpu/batch_conv.c. */
enum { MAX_PHASES = 64 };

bool is_batch_blocked_step(const Graph *graph, const PassOptions *options) {
  bool gpu = options->target && options->target->image_layout == LAYOUT_CHANNEL_LAST;
  return graph->update_count > 0 && !gpu;
}

bool is_batch_blocked(const Graph *graph, const PassOptions *options) {
  return is_batch_blocked_step(graph, options) || graph->batch_blocked;
}

static bool is_blocked(const Node *node) { return node->layout.kind == LAYOUT_BATCH_BLOCK; }

/* Values that may be batch-blocked: vectors and images per image. */
static bool can_block(const Node *node) {
  return shape_batched(&node->shape) && node->dtype == DTYPE_F32 && (node->shape.rank == 2 || node->shape.rank == 4);
}

/* Operands are read as they are when they have no batch; batched ones must have the rank of the value, so that images
 * meet images. */
static bool operands_fit(const Node *node, int32_t first) {
  for (int32_t i = first; i < node->input_count; i++) {
    const Node *input = node->inputs[i];
    if (input->dtype != DTYPE_F32) return false;
    if (shape_batched(&input->shape) && (!can_block(input) || input->shape.rank != node->shape.rank)) return false;
  }
  return true;
}

bool sums_channels(const Node *node) {
  const IntList *dims = &node->attrs.dims;
  const int32_t rank = node->inputs[0]->shape.rank;
  if (dims->count != rank - 1) return false;
  for (int32_t i = 0; i < dims->count; i++) {
    int64_t dim = dims->values[i] < 0 ? dims->values[i] + rank : dims->values[i];
    if (dim != (i == 0 ? 0 : i + 1)) return false;
  }
  return true;
}

static bool any_blocked(const Node *node) {
  for (int32_t i = 0; i < node->input_count; i++)
    if (is_blocked(node->inputs[i]) && shape_equal(&node->inputs[i]->shape, &node->shape)) return true;
  return false;
}

/* Whether there is a kernel for it, and blocking is worth it: pools and element-wise ops follow their operands. */
static bool wants_batch_blocks(const Node *node) {
  const Node *first = node->input_count ? node->inputs[0] : NULL;
  if (!first || !can_block(first)) return false;
  bool result = can_block(node) && operands_fit(node, 0);
  switch (node->op) {
    case OP_CONV2D:
      return result && node->attrs.padding_mode == PADDING_ZEROS && !shape_batched(&node->inputs[1]->shape);
    case OP_CONV_TRANSPOSE2D:
      return result && !shape_batched(&node->inputs[1]->shape) &&
             node->attrs.stride.values[0] <= MAX_PHASES / node->attrs.stride.values[1];
    case OP_LINEAR:
    case OP_MATMUL:
      return result && node->shape.rank == 2 && !shape_batched(&node->inputs[1]->shape);
    case OP_CONV2D_GRAD_WEIGHT:
    case OP_LINEAR_GRAD_WEIGHT:
      return node->epilogue_count == 0 && can_block(node->inputs[1]) &&
             (node->op == OP_CONV2D_GRAD_WEIGHT || first->shape.rank == 2);
    case OP_BATCH_NORM:
      return result && !node->attrs.training;
    case OP_BATCH_NORM_GRAD_INPUT:
      return result;
    case OP_BATCH_NORM_GRAD_WEIGHT:
      return can_block(node->inputs[3]);
    case OP_BATCH_STATS:
      return true;
    case OP_SUM:
      return is_blocked(first) && sums_channels(node);
    case OP_MAX_POOL2D:
    case OP_AVG_POOL2D:
    case OP_ADAPTIVE_AVG_POOL2D:
    case OP_ADAPTIVE_MAX_POOL2D:
      return result && is_blocked(first);
    case OP_MAX_POOL2D_GRAD:
    case OP_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_MAX_POOL2D_GRAD:
      return result;
    case OP_FLATTEN:
    case OP_RESHAPE:
    case OP_IDENTITY:
      return can_block(node) && is_blocked(first);
    default:
      return op_is_elementwise(node->op) && result && any_blocked(node);
  }
}

static bool layout_batch_blocked(LayoutState *state, Node *node) {
  const Layout block = {LAYOUT_BATCH_BLOCK, state->lanes};
  if (can_block(node)) node->layout = block;
  if (node->op == OP_CONV2D || node->op == OP_LINEAR)
    node_decide(state->graph, node, "layout", "batch-blocked", "channel-blocked",
                arena_format(state->graph->arena, "A vector holds one element of %d images.", state->lanes));
  for (int32_t i = 0; i < node->input_count; i++)
    if (!need_layout(state, node, i, can_block(node->inputs[i]) ? block : plain)) return false;
  return true;
}

bool layout_training_node(LayoutState *state, Node *node) {
  if (node->op == OP_CONVERT) return need_layout(state, node, 0, node->inputs[0]->layout);
  node->layout = plain;
  if (node->op == OP_INPUT || node->op == OP_PARAMETER) return true;
  if (wants_batch_blocks(node)) return layout_batch_blocked(state, node);
  if (node->op == OP_BN_UPDATE) { /* looks at the shape of x only */
    for (int32_t i = 0; i < node->input_count; i++)
      if (i != 2 && !need_layout(state, node, i, plain)) return false;
    return true;
  }
  for (int32_t i = 0; i < node->input_count; i++) {
    if (!is_blocked(node->inputs[i])) continue;
    node_decide(state->graph, node, "layout", "plain", "batch-blocked", "The op's kernels read rows of plain values.");
    break;
  }
  return need_plain(state, node);
}
