/* layout: decides how every value lies in memory, and inserts `convert` nodes where a consumer needs another form.
 *
 *   %y = conv2d %x, %w, %b : f32[N,64,56,56] plain
 *     → %1 = convert %w : oihw32o;  %2 = convert %b : c16;  %y = conv2d %x, %1, %2 : f32[N,64,56,56] nchw16c
 *
 * b is the number of f32 lanes of a vector. An image is plain, in blocks of b, b/2 or b/4 channels, or has its channels
 * last: whatever makes the sum of all kernels and conversions small (layout_choice.c, layout_cost.c). As a rule
 * convolutions produce blocks of b channels, and what flows from them through pooling, element-wise and similar ops
 * stays blocked; a few output channels of a large image are computed plain, where vectors run along rows, and what is
 * permuted from [N,H,W,C] has its channels last without a copy. Everything that is no image is plain. Filters, biases
 * and per-channel operands are converted once, when weights are prepared. An image of less than b channels that feeds a
 * convolution may stay plain: blocking would only add zeros. Graph inputs have no halo, so such a convolution with
 * padding reads a copy that has one.
 *
 * Blocked direct convolution follows Georganas et al., "Anatomy of High-Performance Deep Learning Convolutions on SIMD
 * Architectures" (arXiv 1808.05567); choosing layouts over the graph Liu et al., "Optimizing CNN Model Inference on
 * CPUs" (arXiv 1809.02697).
 *
 * Requires: lower, expand_bn (inference). Guarantees: inputs have layouts that the op's kernels take; outputs are
 * plain values of their own, not parameters, inputs or prepared; no kernel of a run reads a parameter as loaded. */
#include <string.h>

#include "layout.h"

#include "base/checked.h"
#include "passes.h"
#include "stats.h"
#include "work.h"

enum { DEFAULT_LANES = 16 };

static const Layout plain = {LAYOUT_PLAIN, 0};

static bool is_blocked(const Node *node) { return node->layout.kind == LAYOUT_CHANNEL_BLOCK; }

/* Blocks of output channels per register tile: two accumulators share each load of an input value. Only when no
 * block is left over, since a lone one would be computed against zeros. */
static int32_t choose_tile_blocks(int64_t channels_per_group, int32_t lanes) {
  return ceil_div(channels_per_group, lanes) % 2 == 0 ? 2 : 1;
}

/* Four blocks where the registers hold enough pixels beside them and an input value is used by a single tap, or by few
 * channels: what is read is mostly input then, which more blocks share. With more taps it is mostly filters, which more
 * pixels share. Also four where multiply-adds are not fused: such instructions cannot keep the units of additions busy,
 * which the broadcast of a value by a shuffle takes time from. Three rather than one where blocks are odd. */
static int32_t choose_conv_blocks(const Node *node, const Target *target, int32_t lanes) {
  enum { WIDE_BLOCKS = 4, WIDE_REGISTERS = 32 };
  const int64_t channels = node->shape.dims[1] / node->attrs.groups;
  const int64_t *taps = &node->inputs[1]->shape.dims[2];
  const int64_t vectors = ceil_div(channels, lanes);
  const bool input_bound = (taps[0] == 1 && taps[1] == 1) || node->inputs[0]->shape.dims[1] < lanes;
  const bool wide = target && ((input_bound && target->vector_registers >= WIDE_REGISTERS) || !target->fma);
  if (wide && vectors % WIDE_BLOCKS == 0) return WIDE_BLOCKS;
  return vectors % 2 != 0 && vectors % 3 == 0 ? 3 : choose_tile_blocks(channels, lanes);
}

/* --- operands that broadcast over a blocked value ---------------------------------------------------- */

typedef enum OperandClass { OPERAND_SCALAR, OPERAND_IMAGE, OPERAND_OTHER } OperandClass;

/* A blocked kernel reads an operand with one value for all lanes, or blocked like its own value (any of N, H, W may
 * be 1). An operand that varies along H or W but not over channels is neither. */
static OperandClass classify_operand(const Shape *operand, const Shape *value) {
  bool single = true;
  for (int32_t d = 0; d < operand->rank; d++) single = single && operand->dims[d] == 1;
  if (single) return OPERAND_SCALAR;
  if (operand->rank < 3 || operand->rank > 4 || operand->dims[operand->rank - 3] != value->dims[1])
    return OPERAND_OTHER;
  return OPERAND_IMAGE;
}

/* --- forms of values --------------------------------------------------------------------------------- */

static Form *form_find(const LayoutState *state, const Node *value, Layout layout, int32_t rank) {
  for (Form *form = state->forms[value->id]; form; form = form->next)
    if (layout_equal(form->layout, layout) && form->rank == rank) return form;
  return NULL;
}

Node *form_make(LayoutState *state, Node *value, const Shape *shape, Layout layout, const Node *consumer) {
  Form *form = form_find(state, value, layout, shape->rank);
  if (form) return form->node;
  Node *source = value;
  if (source->layout.kind != LAYOUT_PLAIN && !shape_equal(&source->shape, shape)) {
    source = form_make(state, value, &value->shape, plain, consumer);
    if (!source) return NULL;
  }
  Node *reshaped = rewrite_reshape(&state->rewrite, source, shape, consumer);
  Node *node = reshaped ? rewrite_make(&state->rewrite, OP_CONVERT, NULL, &reshaped, 1, consumer) : NULL;
  if (!node) return NULL;
  node->layout = layout;
  form = arena_new(state->rewrite.scratch, Form);
  *form = (Form){layout, shape->rank, node, state->forms[value->id]};
  state->forms[value->id] = form;
  return node;
}

bool need_layout(LayoutState *state, Node *node, int32_t i, Layout layout) {
  Node *value = node->inputs[i];
  bool direct = layout_equal(value->layout, layout);
  /* Parameters are at hand when weights are prepared, not when the program runs. */
  if (value->op == OP_PARAMETER && !state->prepared[node->id] && !state->updated[value->id]) direct = false;
  if (direct) return true;
  Node *form = form_make(state, value, &value->shape, layout, node);
  if (!form) return false;
  node->inputs[i] = form;
  return true;
}

bool need_plain(LayoutState *state, Node *node) {
  for (int32_t i = 0; i < node->input_count; i++)
    if (!need_layout(state, node, i, plain)) return false;
  return true;
}

/* Rank 4: [C,1,1] becomes [1,C,1,1]. */
static bool need_image(LayoutState *state, Node *node, int32_t i, Layout layout) {
  Node *value = node->inputs[i];
  if (value->shape.rank == 4) return need_layout(state, node, i, layout);
  Shape shape = {.rank = 4, .dims = {1, value->shape.dims[0], value->shape.dims[1], value->shape.dims[2]}};
  Node *form = form_make(state, value, &shape, layout, node);
  if (!form) return false;
  node->inputs[i] = form;
  return true;
}

/* Inputs from `first` on become operands of a kernel whose channels lie together. Where they are last, a number for
 * each channel may be plain. */
static bool need_operands(LayoutState *state, Node *node, int32_t first) {
  for (int32_t i = first; i < node->input_count; i++) {
    const Shape *shape = &node->inputs[i]->shape;
    bool small = classify_operand(shape, &node->shape) == OPERAND_SCALAR;
    if (node->layout.kind == LAYOUT_CHANNEL_LAST)
      small = small || (shape->dims[shape->rank - 1] == 1 && shape->dims[shape->rank - 2] == 1);
    if (!(small ? need_layout(state, node, i, plain) : need_image(state, node, i, node->layout))) return false;
  }
  return true;
}

/* --- convolution and linear -------------------------------------------------------------------------- */

static bool is_depthwise(const Node *node) {
  return node->attrs.groups > 1 && node->attrs.groups == node->inputs[0]->shape.dims[1] &&
         node->attrs.groups == node->shape.dims[1];
}

/* Why no kernel with channels together takes this convolution. */
static const char *conv_obstacle(const Node *node) {
  for (int32_t i = 0; i < node->op_input_count; i++)
    if (node->inputs[i]->dtype != DTYPE_F32) return "An operand is not f32.";
  for (int32_t i = node->op_input_count; i < node->input_count; i++)
    if (node->inputs[i]->dtype != DTYPE_F32 || classify_operand(&node->inputs[i]->shape, &node->shape) == OPERAND_OTHER)
      return "An epilogue operand does not broadcast over channels.";
  return "The channels of a group are no multiple of a block.";
}

/* The halo of a graph's input, or of what is another view of it, is that of a copy. */
static bool has_no_halo(const Node *input) { return input->layout.kind == LAYOUT_PLAIN || input->op == OP_PERMUTE; }

static bool conv_is_padded(const Node *node) {
  const int64_t *padding = node->attrs.padding.values;
  return padding[0] || padding[1] || padding[2] || padding[3];
}

static bool layout_conv_input(LayoutState *state, Node *node, ImageForm made) {
  Node *input = node->inputs[0];
  const ImageForm lies = form_of(input->layout, state->lanes),
                  read = lies < FORM_COUNT ? operand_form(&state->choice.model, node, 0, lies, made) : made;
  if (read != lies || !(read == FORM_PLAIN || read == FORM_LAST))
    return need_layout(state, node, 0, form_layout(read, state->lanes));
  if (read == FORM_PLAIN)
    node_decide(state->graph, node, "layout", "plain input", "channel-blocked input",
                arena_format(state->graph->arena, "Blocks of %d would be mostly zeros with %lld input channels.",
                             (int)state->lanes, (long long)input->shape.dims[1]));
  if (!(conv_is_padded(node) && has_no_halo(input)) && input->op != OP_PARAMETER) return true;
  Node *form = form_make(state, input, &input->shape, input->layout, node);
  if (!form) return false;
  node->inputs[0] = form;
  return true;
}

/* Along rows the padding is read from a halo. What is prepared needs no haste. */
static bool pad_plain_input(LayoutState *state, Node *node) {
  Node *input = node->inputs[0];
  if (!conv_is_padded(node) || state->prepared[node->id] || !is_image_value(input) ||
      !work_along_rows(&node->attrs, &node->inputs[1]->shape, &node->shape))
    return true;
  const bool source = input->op != OP_CONVERT;
  Node *copy = source ? form_make(state, input, &input->shape, plain, node)
                      : rewrite_make(&state->rewrite, OP_CONVERT, NULL, &input, 1, node);
  if (!copy) return false;
  copy->layout = plain;
  node->inputs[0] = copy;
  return true;
}

static bool layout_conv2d(LayoutState *state, Node *node, ImageForm made) {
  if (made == FORM_PLAIN) {
    node->choice.algorithm = ALGORITHM_REFERENCE;
    if (node_forms(node, state->lanes) == FORM_BIT(FORM_PLAIN))
      node_decide(state->graph, node, "layout", "plain", "channel-blocked", conv_obstacle(node));
    return need_plain(state, node) && pad_plain_input(state, node);
  }
  bool depthwise = is_depthwise(node);
  node->layout = form_layout(made, state->lanes);
  const int32_t lanes = made == FORM_LAST
                            ? last_lanes(node->shape.dims[1], depthwise ? 1 : node->attrs.groups, state->lanes)
                            : node->layout.block;
  node->choice.tile_blocks = depthwise ? 1 : choose_conv_blocks(node, state->target, lanes);
  if (!layout_conv_input(state, node, made)) return false;
  if (!need_layout(state, node, 1, (Layout){LAYOUT_FILTER_BLOCK, lanes * node->choice.tile_blocks})) return false;
  if (node->op_input_count > 2 && !need_layout(state, node, 2, (Layout){LAYOUT_VECTOR_BLOCK, lanes})) return false;
  return need_operands(state, node, node->op_input_count);
}

static bool layout_linear(LayoutState *state, Node *node) {
  for (int32_t i = 0; i < node->op_input_count; i++)
    if (node->inputs[i]->dtype != DTYPE_F32) return need_plain(state, node);
  int32_t block = state->lanes * choose_tile_blocks(node->inputs[1]->shape.dims[0], state->lanes);
  node->choice.tile_blocks = block / state->lanes;
  if (!need_layout(state, node, 1, (Layout){LAYOUT_MATRIX_BLOCK, block})) return false;
  if (node->op_input_count > 2 && !need_layout(state, node, 2, (Layout){LAYOUT_VECTOR_BLOCK, block})) return false;
  for (int32_t i = 0; i < node->input_count; i++)
    if ((i < 1 || i >= node->op_input_count) && !need_layout(state, node, i, plain)) return false;
  node_decide(state->graph, node, "layout", "weights blocked by output features", "row-major weights",
              "A vector holds one input's weights of a block of features.");
  return true;
}

/* --- other ops --------------------------------------------------------------------------------------- */

static bool layout_image(LayoutState *state, Node *node, ImageForm made) {
  node->layout = form_layout(made, state->lanes);
  if (op_is_elementwise(node->op)) return need_operands(state, node, 0);
  for (int32_t i = 0; i < node->op_input_count; i++)
    if (!need_layout(state, node, i, node->layout)) return false;
  return need_operands(state, node, node->op_input_count);
}

/* Channels last are the order in memory of plain [N,H,W,C]. */
static bool layout_permute(LayoutState *state, Node *node, ImageForm made) {
  const ImageForm lies = form_of(node->inputs[0]->layout, state->lanes),
                  read = lies < FORM_COUNT ? operand_form(&state->choice.model, node, 0, lies, made) : FORM_PLAIN;
  node->layout = form_layout(made, state->lanes);
  return need_layout(state, node, 0, form_layout(read, state->lanes));
}

/* Statistics are taken of the value as it lies: nothing is moved for them. */
static bool layout_stats(LayoutState *state, Node *node) {
  Node *value = node->inputs[0];
  bool blocks_fit = is_blocked(value) && STATS_CHANNELS % value->layout.block == 0;
  return need_layout(state, node, 0, blocks_fit ? value->layout : plain);
}

static bool layout_node(LayoutState *state, Node *node) {
  /* says itself what it makes */
  if (node->op == OP_CONVERT) return need_layout(state, node, 0, node->inputs[0]->layout);
  node->layout = plain;
  if (node->op == OP_INPUT || node->op == OP_PARAMETER) return true;
  const ImageForm made = state->choice.forms[node->id];
  if (node->op == OP_CONV2D) return layout_conv2d(state, node, made);
  if (node->op == OP_LINEAR) return layout_linear(state, node);
  if (node->op == OP_STATS_PARTIAL) return layout_stats(state, node);
  if (node->op == OP_PERMUTE && node->epilogue_count == 0) return layout_permute(state, node, made);
  if (made != FORM_PLAIN) return layout_image(state, node, made);
  bool converted = false;
  for (int32_t i = 0; i < node->input_count; i++) converted = converted || node->inputs[i]->layout.kind != LAYOUT_PLAIN;
  if (converted && node_forms(node, state->lanes) == FORM_BIT(FORM_PLAIN))
    node_decide(state->graph, node, "layout", "plain", "channel-blocked",
                "The op's kernels read rows of plain values.");
  return need_plain(state, node);
}

/* Copies for hooks move from the end of the array to behind what they copy: there it is still in the cache, and its
 * memory is free sooner. Ids below `first_copy` are no copies. */
static void place_hook_copies(LayoutState *state, uint32_t first_copy) {
  Graph *graph = state->graph;
  Rewrite *rewrite = &state->rewrite;
  Form **copies = arena_array(rewrite->scratch, graph->next_id, Form *);
  bool *moved = arena_array(rewrite->scratch, graph->next_id, bool);
  for (size_t i = graph->output_count; i-- > graph->output_count - graph->hook_output_count;) {
    Node *copy = graph->outputs[i].node;
    if (copy->id < first_copy || moved[copy->id]) continue;
    moved[copy->id] = true;
    Form *form = arena_new(rewrite->scratch, Form);
    form->node = copy;
    form->next = copies[copy->inputs[0]->id];
    copies[copy->inputs[0]->id] = form;
  }
  Node **nodes = arena_array(rewrite->scratch, rewrite->count, Node *);
  size_t count = 0;
  for (size_t i = 0; i < rewrite->count; i++) {
    if (moved[rewrite->nodes[i]->id]) continue;
    nodes[count++] = rewrite->nodes[i];
    for (const Form *form = copies[rewrite->nodes[i]->id]; form; form = form->next) nodes[count++] = form->node;
  }
  memcpy(rewrite->nodes, nodes, count * sizeof *nodes);
}

/* Each output gets a plain node of its own, computed by every run. */
static bool layout_outputs(LayoutState *state) {
  Graph *graph = state->graph;
  const uint32_t first_copy = graph->next_id;
  bool *taken = arena_array(state->rewrite.scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->output_count; i++) {
    Node *node = graph->outputs[i].node;
    bool own = layout_equal(node->layout, plain) && node->op != OP_INPUT && node->op != OP_PARAMETER &&
               !state->prepared[node->id] && !taken[node->id];
    taken[node->id] = true;
    if (own) continue;
    if (node->op == OP_PARAMETER) node = form_make(state, node, &node->shape, plain, node);
    Node *copy = node ? rewrite_make(&state->rewrite, OP_CONVERT, NULL, &node, 1, node) : NULL;
    if (!copy) return false;
    copy->layout = plain;
    graph->outputs[i].node = copy;
  }
  if (graph->hook_output_count > 0) place_hook_copies(state, first_copy);
  return true;
}

bool pass_layout(Graph *graph, const PassOptions *options, Diag *diag) {
  LayoutState state = {.graph = graph,
                       .target = options->target,
                       .lanes = options->target ? options->target->vector_lanes : DEFAULT_LANES};
  rewrite_init(&state.rewrite, graph, options->scratch, diag);
  state.prepared = mark_prepare_phase(graph, options->scratch);
  state.updated = graph_mark_updated(graph, options->scratch);
  state.forms = arena_array(options->scratch, graph->next_id, Form *);
  const bool channel_last = options->target && options->target->image_layout == LAYOUT_CHANNEL_LAST;
  /* exact programs keep what they compute, and a training step's gradients are of what its state is: f32 */
  if (options->target && options->target->packs && options->precision != PRECISION_STRICT && graph->update_count == 0) {
    state.image_element = options->target->image_element;
    state.packs = options->target->packs;
  }
  bool (*const lay_out)(LayoutState *, Node *) = channel_last                       ? layout_channel_last_node
                                                 : is_batch_blocked(graph, options) ? layout_training_node
                                                                                    : layout_node;
  if (lay_out == layout_node) state.choice = layout_choose(graph, options, state.lanes, state.prepared);
  for (size_t i = 0; i < graph->node_count; i++) {
    if (!lay_out(&state, graph->nodes[i])) return false;
    rewrite_append(&state.rewrite, graph->nodes[i]);
  }
  if (!layout_outputs(&state)) return false;
  rewrite_finish(&state.rewrite);
  return true;
}
