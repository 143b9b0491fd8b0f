/* simplify: removes what computes nothing, or computes it twice.
 *
 *   %b = identity %a; dropout (inference); flatten and reshape that keep the shape     → %a
 *   %b = relu %a, where %a = relu …                                                    → %a
 *   %b = add %x, %y, when the same op on the same inputs stands before                 → the first one
 *   %p = pad %x {padding=[1,1,1,1]}; %y = conv2d %p, %w                                → conv2d %x, %w
 * {padding=[1,1,1,1]} nodes that no output needs                                                         → gone
 *
 * Requires: shapes. Guarantees: no identity is left; every value is computed once. */
#include "infer.h"
#include "passes.h"
#include "rewrite.h"

/* Nodes seen so far, by what they compute: open addressing. */
typedef struct SeenTable {
  Node **slots;
  size_t mask;
} SeenTable;

static uint64_t hash_mix(uint64_t hash, uint64_t value) {
  hash ^= value;
  hash *= UINT64_C(0x9e3779b97f4a7c15);
  return hash ^ (hash >> 29);
}

static uint64_t node_hash(const Node *node) {
  uint64_t hash = hash_mix((uint64_t)node->op, attrs_hash(&node->attrs, op_info(node->op)->attrs));
  for (int32_t i = 0; i < node->input_count; i++) hash = hash_mix(hash, node->inputs[i]->id);
  return hash;
}

static bool node_same(const Node *a, const Node *b) {
  if (a->op != b->op || a->input_count != b->input_count || a->op_input_count != b->op_input_count) return false;
  for (int32_t i = 0; i < a->input_count; i++)
    if (a->inputs[i] != b->inputs[i]) return false;
  return attrs_equal(&a->attrs, &b->attrs, op_info(a->op)->attrs);
}

/* The node that computes the same as `node`, or NULL after noting `node`. */
static Node *seen_find(SeenTable *table, Node *node) {
  size_t slot = (size_t)node_hash(node) & table->mask;
  for (; table->slots[slot]; slot = (slot + 1) & table->mask)
    if (node_same(table->slots[slot], node)) return table->slots[slot];
  table->slots[slot] = node;
  return NULL;
}

static SeenTable seen_create(size_t count, Arena *arena) {
  size_t capacity = 16;
  while (capacity < count * 2) capacity *= 2;
  return (SeenTable){arena_array(arena, capacity, Node *), capacity - 1};
}

/* The input that the node merely passes on, or NULL. */
static Node *passed_input(const Node *node, bool training) {
  if (node->epilogue_count) return NULL;
  Node *input = node->input_count ? node->inputs[0] : NULL;
  switch (node->op) {
    case OP_IDENTITY:
      return input;
    case OP_DROPOUT:
      return training || node->op_input_count > 1 ? NULL : input;
    case OP_FLATTEN:
    case OP_RESHAPE:
      return shape_equal(&node->shape, &input->shape) ? input : NULL;
    case OP_CONCAT:
      return node->input_count == 1 ? input : NULL;
    case OP_RELU:
      return input->op == OP_RELU && !input->epilogue_count ? input : NULL;
    default:
      return NULL;
  }
}

static void merge_padding(Graph *graph, Node *node) {
  if (node->op != OP_CONV2D || node->attrs.padding_mode != PADDING_ZEROS) return;
  Node *pad = node->inputs[0];
  if (pad->op != OP_PAD || pad->epilogue_count || pad->attrs.padding_mode != PADDING_ZEROS || pad->attrs.value != 0)
    return;
  AttrInt4 padding = node->attrs.padding;
  for (int side = 0; side < 4; side++) {
    padding.values[side] += pad->attrs.padding.values[side];
    if (padding.values[side] > ATTRIBUTE_LIMIT) return;
  }
  node->attrs.padding = padding;
  node->inputs[0] = pad->inputs[0];
  node_decide(graph, node, "simplify", "pad merged into the convolution's padding", "a pad kernel",
              "Both pad with zeros.");
}

bool pass_simplify(Graph *graph, const PassOptions *options, Diag *diag) {
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, options->scratch, diag);
  SeenTable seen = seen_create(graph->node_count, options->scratch);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    rewrite_inputs(&rewrite, node);
    merge_padding(graph, node);
    Node *same = passed_input(node, options->training);
    bool comparable =
        node->op != OP_INPUT && node->op != OP_PARAMETER && node->op != OP_DROPOUT && !node->epilogue_count;
    if (!same && comparable) same = seen_find(&seen, node);
    if (same)
      rewrite_replace(&rewrite, node, same);
    else
      rewrite_append(&rewrite, node);
  }
  rewrite_finish(&rewrite);
  graph_remove_dead(graph);
  return true;
}
