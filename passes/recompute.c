/* recompute: computes cheap values a second time for the backward pass, rather than keep them from the forward pass.
 *
 *   %y = relu %n, %n = batch_norm %x, …;  …;  %g = conv2d_grad_weight %y, %dy
 *     → %y = relu %n;  …;  %1 = batch_norm %x, …;  %2 = relu %1;  %g = conv2d_grad_weight %2, %dy
 *
 * A training step keeps most values of the forward pass for the gradients (Chen et al., "Training Deep Nets with
 * Sublinear Memory Cost", arXiv 1604.06174). What a batch norm of the batch and the element-wise ops behind it make costs
 * one pass over a value that the batch norm's own gradient needs anyhow. graph->recompute says how many values, from the
 * first on: those live longest. It is chosen by whoever knows a limit; 0: none.
 *
 * Requires: train, simplify (which would merge the copies again). Guarantees: graph->recompute is how many values were
 * found. Results are the same to the bit when the kernels are. */
#include "passes.h"
#include "rewrite.h"

typedef struct RecomputeState {
  Rewrite rewrite;
  const bool *chosen; /* by id: is computed again */
  Node **again;       /* by id: the copy, or NULL */
  Node **stack;
} RecomputeState;

static bool is_cheap(const Node *node, const bool *cheap) {
  if (!shape_batched(&node->shape) || node->epilogue_count) return false;
  if (node->op == OP_BATCH_NORM) return true;
  return op_info(node->op)->kind == OP_KIND_UNARY && cheap[node->inputs[0]->id];
}

/* The position of the loss: what stands behind it is the backward pass. */
static size_t loss_position(const Graph *graph) {
  size_t at = 0;
  while (at < graph->node_count && graph->nodes[at] != graph->outputs[0].node) at++;
  return at;
}

/* Cheap values that the backward pass reads, the first graph->recompute of them; sets that to how many there are. */
static bool *choose(Graph *graph, size_t loss, Arena *scratch) {
  bool *cheap = arena_array(scratch, graph->next_id, bool), *read = arena_array(scratch, graph->next_id, bool);
  for (size_t i = loss; i < graph->node_count; i++)
    for (int32_t k = 0; k < graph->nodes[i]->input_count; k++) read[graph->nodes[i]->inputs[k]->id] = true;
  bool *chosen = arena_array(scratch, graph->next_id, bool);
  int64_t found = 0;
  for (size_t i = 0; i < loss; i++) {
    const Node *node = graph->nodes[i];
    cheap[node->id] = is_cheap(node, cheap);
    if (!cheap[node->id]) continue;
    const bool counts = read[node->id];
    chosen[node->id] = found < graph->recompute; /* what a chosen value is made of is computed again with it */
    found += counts;
  }
  if (graph->recompute > found) graph->recompute = found;
  return chosen;
}

/* The copy of a chosen value, and of the chosen ones that it is made of, before the node that is visited. */
static Node *compute_again(RecomputeState *state, Node *node) {
  Graph *graph = state->rewrite.graph;
  size_t count = 0;
  if (!state->again[node->id]) state->stack[count++] = node;
  while (count > 0) {
    Node *top = state->stack[count - 1], *input = top->inputs[0];
    if (state->chosen[input->id] && !state->again[input->id]) {
      state->stack[count++] = input;
      continue;
    }
    Node *copy = node_clone(graph, top);
    copy->name = copy->path = NULL;
    copy->decisions = NULL;
    if (state->again[input->id]) copy->inputs[0] = state->again[input->id];
    node_decide(graph, top, "recompute", "computed again in the backward pass", "kept until then",
                "The workspace would exceed its limit.");
    rewrite_append(&state->rewrite, copy);
    state->again[top->id] = copy;
    count--;
  }
  return state->again[node->id];
}

bool pass_recompute(Graph *graph, const PassOptions *options, Diag *diag) {
  if (graph->recompute == 0 || graph->output_count == 0) return true;
  Arena *scratch = options->scratch;
  const size_t loss = loss_position(graph);
  const uint32_t ids = graph->next_id;
  RecomputeState state = {.chosen = choose(graph, loss, scratch), .again = arena_array(scratch, ids, Node *),
                          .stack = arena_array(scratch, ids, Node *)};
  rewrite_init(&state.rewrite, graph, scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    for (int32_t k = 0; i > loss && k < node->input_count; k++)
      if (node->inputs[k]->id < ids && state.chosen[node->inputs[k]->id]) node->inputs[k] = compute_again(&state, node->inputs[k]);
    rewrite_append(&state.rewrite, node);
  }
  rewrite_finish(&state.rewrite);
  return true;
}
