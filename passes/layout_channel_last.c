/* layout of targets whose kernels read images with channels last.
 *
 *   %1 = convert %w : ohwi4;  %y = conv2d %x, %1, %b : f32[N,64,56,56] nhwc
 *
 * Kernels of such targets find every element by strides, so that almost nothing has to be converted: what a convolution
 * makes, and what is made of that, has channels last; all else is plain, and either is read as it lies. Filters are
 * converted so that channels are adjacent in them too; only what reshape sees, and the operands of matrix products,
 * have to be plain. Values of one place, [N,C,1,1], are the same bytes either way and stay plain. */
#include "layout.h"

static const Layout plain = {LAYOUT_PLAIN, 0}, channel_last = {LAYOUT_CHANNEL_LAST, 0};

/* Channels of filters are padded to this many, 16 bytes. */
enum { FILTER_BLOCK = 4 };

/* Inputs from `first` on are read as they lie, unless they are parameters as loaded. */
static bool need_any(LayoutState *state, Node *node, int32_t first) {
  for (int32_t i = first; i < node->input_count; i++)
    if (!need_layout(state, node, i, node->inputs[i]->layout)) return false;
  return true;
}

static bool is_image(const Node *node) {
  return node->shape.rank == 4 && node->dtype == DTYPE_F32 && (node->shape.dims[2] != 1 || node->shape.dims[3] != 1);
}

/* Taps that are one element, or a channel each, are in order already. */
static bool filter_in_order(const Shape *filter) {
  return filter->dims[1] == 1 || (filter->dims[2] == 1 && filter->dims[3] == 1);
}

static bool layout_filter(LayoutState *state, Node *node) {
  const Node *filter = node->inputs[1];
  if (filter->dtype != DTYPE_F32 || filter_in_order(&filter->shape)) return need_layout(state, node, 1, plain);
  return need_layout(state, node, 1, (Layout){LAYOUT_FILTER_LAST, FILTER_BLOCK});
}

/* conv2d and conv_transpose2d. An image of few channels is not worth moving: vectors would be mostly empty. */
static bool layout_convolution(LayoutState *state, Node *node) {
  Node *input = node->inputs[0];
  bool few = input->layout.kind == LAYOUT_PLAIN && input->shape.dims[1] < FILTER_BLOCK;
  if (is_image(node)) node->layout = channel_last;
  if (!need_layout(state, node, 0, few || !is_image(input) ? plain : channel_last)) return false;
  if (!layout_filter(state, node)) return false;
  node_decide(state->graph, node, "layout", few ? "channels last, plain input" : "channels last", "plain",
              "Products run along the channels of a place.");
  return need_any(state, node, 2);
}

static bool has_channel_last(const Node *node) {
  for (int32_t i = 0; i < node->input_count; i++)
    if (node->inputs[i]->layout.kind == LAYOUT_CHANNEL_LAST) return true;
  return false;
}

/* Gradients of images meet values with channels last, whatever they are computed from. */
static bool makes_image_gradient(OpCode op) {
  switch (op) {
    case OP_ADAPTIVE_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_MAX_POOL2D_GRAD:
    case OP_AVG_POOL2D_GRAD:
    case OP_EXPAND:
    case OP_MAX_POOL2D_GRAD:
    case OP_MEAN_GRAD:
    case OP_UPSAMPLE_GRAD:
      return true;
    default:
      return false;
  }
}

/* What these make is read in row-major order. */
static bool makes_plain(OpCode op) {
  switch (op) {
    case OP_CONV2D_GRAD_WEIGHT:
    case OP_MAX:
    case OP_MEAN:
    case OP_PERMUTE:
    case OP_SUM:
      return true;
    default:
      return false;
  }
}

bool layout_channel_last_node(LayoutState *state, Node *node) {
  switch (node->op) {
    case OP_CONVERT: /* says itself what it makes */
      return need_any(state, node, 0);
    case OP_INPUT:
    case OP_PARAMETER:
      node->layout = plain;
      return true;
    case OP_CONV2D:
    case OP_CONV_TRANSPOSE2D:
      node->layout = plain;
      return layout_convolution(state, node);
    case OP_FLATTEN:
    case OP_RESHAPE:
    case OP_LINEAR:
    case OP_LINEAR_GRAD_WEIGHT:
    case OP_MATMUL:
      node->layout = plain;
      return need_plain(state, node);
    default:
      break;
  }
  bool image = is_image(node) && !makes_plain(node->op) && !state->prepared[node->id] &&
               (has_channel_last(node) || makes_image_gradient(node->op));
  node->layout = image ? channel_last : plain;
  if (image) node_decide(state->graph, node, "layout", "channels last", "plain", "As the values that it is made of.");
  return need_any(state, node, 0);
}
