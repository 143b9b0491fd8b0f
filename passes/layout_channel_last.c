/* layout of targets whose kernels read images with channels last.
 *
 *   %1 = convert %w : ohwi4;  %y = conv2d %x, %1, %b : f32[N,64,56,56] nhwc
 *
 * Kernels of such targets find every element by strides, so that almost nothing has to be converted: what a convolution
 * makes, and what is made of that, has channels last; all else is plain, and either is read as it lies. Filters are
 * converted so that channels are adjacent in them too; only what reshape sees, and the operands of matrix products,
 * have to be plain. Values of one place, [N,C,1,1], are the same bytes either way and stay plain.
 *
 *   %y = conv2d %x, %1, %b : f32[N,64,56,56] nhwc_bf16, %1 : ohwi8_bf16
 *
 * A target may name a shorter type for images between kernels and the ops whose kernels know it: what a convolution
 * makes, and what such ops make of that, is then kept in that type. A convolution of such an image has its filters in
 * that type too. Other ops read a copy in f32, and what is made of their results is f32. What is kept how does not
 * depend on who reads it, so that a hook changes nothing, unless it keeps a value from being fused into its reader:
 * that value is then rounded like every other. */
#include "layout.h"

static const Layout plain = {LAYOUT_PLAIN, 0}, channel_last = {LAYOUT_CHANNEL_LAST, 0};

/* Channels of filters are padded to this many, 16 bytes; images of a shorter type have multiples of so many. */
enum { FILTER_BLOCK = 4, PACKED_BLOCK = 8 };

static bool packs(const LayoutState *state, OpCode op) { return state->packs != NULL && state->packs[op]; }

/* Inputs from `first` on are read as they lie, unless they are parameters as loaded, or kept in a type that the op's
 * kernels do not read. */
static bool need_any(LayoutState *state, Node *node, int32_t first) {
  for (int32_t i = first; i < node->input_count; i++) {
    Layout layout = node->inputs[i]->layout;
    if (!packs(state, node->op)) layout.element = DTYPE_F32;
    if (!need_layout(state, node, i, layout)) return false;
  }
  return true;
}

static bool is_packed(const Node *node) { return node->layout.element != DTYPE_F32; }

static bool fills_vectors(const Node *node) { return node->shape.dims[1] % PACKED_BLOCK == 0; }

/* How a value with channels last is kept. One that could have been short and is not comes from an op that does not know
 * short types, as those of the backward pass: what is made of it stays as exact. */
static Layout image_layout(const LayoutState *state, const Node *node) {
  Layout layout = channel_last;
  bool shortened = packs(state, node->op) && !state->prepared[node->id] && fills_vectors(node);
  for (int32_t i = 0; i < node->input_count; i++) {
    const Node *input = node->inputs[i];
    if (input->layout.kind == LAYOUT_CHANNEL_LAST && !is_packed(input) && fills_vectors(input)) shortened = false;
  }
  if (shortened) layout.element = state->image_element;
  return layout;
}

static void decide(const LayoutState *state, Node *node, const char *chosen, const char *reason) {
  if (is_packed(node))
    chosen = arena_format(state->graph->arena, "%s, kept in %s", chosen, data_type_name(node->layout.element));
  node_decide(state->graph, node, "layout", chosen, "plain", reason);
}

static bool is_image(const Node *node) {
  return node->shape.rank == 4 && node->dtype == DTYPE_F32 && (node->shape.dims[2] != 1 || node->shape.dims[3] != 1);
}

/* Taps that are one element, or a channel each, are in order already. */
static bool filter_in_order(const Shape *filter) {
  return filter->dims[1] == 1 || (filter->dims[2] == 1 && filter->dims[3] == 1);
}

static bool layout_filter(LayoutState *state, Node *node, DataType element) {
  const Node *filter = node->inputs[1];
  if (element != DTYPE_F32) return need_layout(state, node, 1, (Layout){LAYOUT_FILTER_LAST, PACKED_BLOCK, element});
  if (filter->dtype != DTYPE_F32 || filter_in_order(&filter->shape)) return need_layout(state, node, 1, plain);
  return need_layout(state, node, 1, (Layout){LAYOUT_FILTER_LAST, FILTER_BLOCK});
}

/* In which type a convolution multiplies: that of its image, where the channels of a group fill whole vectors. */
static DataType multiplied_element(const LayoutState *state, const Node *node) {
  const bool whole = node->op == OP_CONV2D && node->inputs[1]->shape.dims[1] % PACKED_BLOCK == 0;
  return whole && packs(state, node->op) ? node->inputs[0]->layout.element : DTYPE_F32;
}

/* Groups of few channels are computed place by place, from images in either type. */
static bool reads_places(const LayoutState *state, const Node *node) {
  return node->op == OP_CONV2D && node->attrs.groups > 1 && node->inputs[1]->shape.dims[1] < PACKED_BLOCK &&
         packs(state, node->op);
}

/* conv2d and conv_transpose2d. An image of few channels is not worth moving: vectors would be mostly empty. */
static bool layout_convolution(LayoutState *state, Node *node) {
  Node *input = node->inputs[0];
  bool few = input->layout.kind == LAYOUT_PLAIN && input->shape.dims[1] < FILTER_BLOCK;
  Layout read = few || !is_image(input) ? plain : channel_last;
  if (is_image(node)) node->layout = image_layout(state, node);
  const DataType element = multiplied_element(state, node);
  if (read.kind == LAYOUT_CHANNEL_LAST && (element != DTYPE_F32 || reads_places(state, node)))
    read.element = input->layout.element;
  if (!need_layout(state, node, 0, read) || !layout_filter(state, node, element)) return false;
  decide(state, node, few ? "channels last, plain input" : "channels last",
         "Products run along the channels of a place.");
  return need_any(state, node, 2);
}

static bool has_channel_last(const Node *node) {
  for (int32_t i = 0; i < node->input_count; i++)
    if (node->inputs[i]->layout.kind == LAYOUT_CHANNEL_LAST) return true;
  return false;
}

static bool has_packed(const Node *node) {
  for (int32_t i = 0; i < node->input_count; i++)
    if (is_packed(node->inputs[i])) return true;
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
  node->layout = plain;
  if (image) node->layout = has_packed(node) ? image_layout(state, node) : channel_last;
  if (image) decide(state, node, "channels last", "As the values that it is made of.");
  return need_any(state, node, 0);
}
