/* backward: gradients in terms of values that are stored or computed anyway.
 *
 *   %y = relu %x;  …;  %g = relu_grad %x, %dy        → %g = relu_grad %y, %dy
 *   %i = batch_norm_grad_input %x, %w, %m, %v, %dy   → %k = batch_norm_grad_weight …;  %s = sum %dy {dims=[0,2,3]}
 *   %k = batch_norm_grad_weight %x, %m, %v, %dy          %i = batch_norm_grad_input %x, %w, %m, %v, %dy, %s, %k
 *   %s = sum %dy {dims=[0,2,3]}
 *
 * A relu's result is positive where its operand is. When only the relu itself needs the operand, it joins the kernel
 * that makes it (`fuse`), and one tensor less is written and read. The gradients of a batch norm's weight and bias are
 * the sums that the gradient of its input needs: CPUs compute them once.
 *
 * Requires: shapes, no epilogues. Guarantees: the same values but for rounding. */
#include "layout.h"

typedef struct Sums {
  Node *weight, *bias;
} Sums;

/* By id of dy: gradients of the weight and bias of the batch norm that dy came to. */
static Sums *collect_sums(const Graph *graph, Arena *scratch) {
  Sums *sums = arena_array(scratch, graph->next_id, Sums);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_BATCH_NORM_GRAD_WEIGHT) sums[node->inputs[3]->id].weight = node;
    if (node->op == OP_SUM && !node->attrs.keep_dims && sums_channels(node)) sums[node->inputs[0]->id].bias = node;
  }
  return sums;
}

/* The node reads the sums, which then stand before it. */
static void use_sums(Rewrite *rewrite, Node *node, const Sums *all, bool *placed) {
  if (node->op_input_count != 5) return;
  const Sums *sums = &all[node->inputs[4]->id];
  Node *const *in = node->inputs;
  if (!sums->weight || !sums->bias || sums->weight->inputs[0] != in[0] || sums->weight->inputs[1] != in[2] ||
      sums->weight->inputs[2] != in[3] || sums->weight->attrs.eps != node->attrs.eps)
    return;
  Node *const needed[] = {sums->bias, sums->weight};
  for (int i = 0; i < 2; i++) {
    if (!placed[needed[i]->id]) rewrite_append(rewrite, needed[i]);
    placed[needed[i]->id] = true;
  }
  Attrs attrs = node->attrs;
  node_become(rewrite->graph, node, OP_BATCH_NORM_GRAD_INPUT, &attrs,
              (Node *[]){in[0], in[1], in[2], in[3], in[4], sums->bias, sums->weight}, 7);
}

bool pass_backward(Graph *graph, const PassOptions *options, Diag *diag) {
  Node **relu_of = arena_array(options->scratch, graph->next_id, Node *);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_RELU && node->epilogue_count == 0) relu_of[node->inputs[0]->id] = node;
    if (node->op != OP_RELU_GRAD || node->epilogue_count > 0) continue;
    Node *result = relu_of[node->inputs[0]->id];
    if (result) node->inputs[0] = result;
  }
  if (!is_batch_blocked_step(graph, options)) return true;
  const Sums *sums = collect_sums(graph, options->scratch);
  bool *placed = arena_array(options->scratch, graph->next_id, bool);
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, options->scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_BATCH_NORM_GRAD_INPUT) use_sums(&rewrite, node, sums, placed);
    if (!placed[node->id]) rewrite_append(&rewrite, node);
    placed[node->id] = true;
  }
  rewrite_finish(&rewrite);
  return true;
}
