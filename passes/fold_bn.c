/* fold_bn: batch norm of inference into the weights of the convolution or linear layer before it.
 *
 *   %c = conv2d %x, %w;  %y = batch_norm %c, %gamma, %beta, %mean, %var {eps=1e-05}
 *     → %s = bn_scale %gamma, %var {eps=1e-05}            gamma / sqrt(var + eps)
 *       %v = mul %w, reshape %s
 *       %b = sub %beta, (mul (sub %mean, %bias), %s)
 *       %y = conv2d %x, %v, %b
 *
 * The new nodes depend on parameters only, so they run once, when weights are prepared, and the parameters keep their
 * form: a model can be trained, saved and folded again. The convolution takes the batch norm's id and name.
 *
 * Requires: lower. Guarantees: no inference batch norm follows a foldable op that has no other use. */
#include "passes.h"
#include "rewrite.h"

enum { BN_INPUT, BN_WEIGHT, BN_BIAS, BN_MEAN, BN_VAR };

/* Dimension of the weights that runs over output features, or -1 when the op cannot take a batch norm. */
static int32_t output_dim(const Node *node) {
  switch (node->op) {
    case OP_CONV2D:
      return 0;
    case OP_CONV_TRANSPOSE2D:
      return node->attrs.groups == 1 ? 1 : -1;
    /* a batch norm works on dimension 1, which is the features of a matrix only */
    case OP_LINEAR:
      return node->shape.rank == 2 ? 0 : -1;
    default:
      return -1;
  }
}

/* How often hooks use every value, by id. A hooked convolution is folded all the same, into a copy, and computed once
 * more as written for the hook: a hook costs time, but never changes how a result is rounded. */
static uint32_t *count_hook_uses(const Graph *graph, Arena *arena) {
  uint32_t *uses = arena_array(arena, graph->next_id, uint32_t);
  for (size_t i = graph->output_count - graph->hook_output_count; i < graph->output_count; i++)
    uses[graph->outputs[i].node->id]++;
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_STATS_PARTIAL) uses[graph->nodes[i]->inputs[0]->id]++;
  return uses;
}

/* Why the batch norm stays, or NULL. `uses` leaves those of hooks out. */
static const char *obstacle(const Node *norm, const uint32_t *uses, const bool *is_output, const bool *prepared) {
  const Node *producer = norm->inputs[BN_INPUT];
  if (producer->epilogue_count) return "The convolution has an epilogue already.";
  if (is_output[producer->id]) return "The convolution's own value is an output.";
  if (uses[producer->id] != 1) return "The convolution's own value has several uses.";
  for (int32_t i = 1; i < producer->input_count; i++) {
    const Node *weights = producer->inputs[i];
    if (weights->op != OP_PARAMETER && !prepared[weights->id]) return "The weights are computed by the model.";
  }
  for (int32_t i = BN_WEIGHT; i <= BN_VAR; i++)
    if (norm->inputs[i]->op != OP_PARAMETER && !prepared[norm->inputs[i]->id])
      return "The batch norm's parameters are computed by the model.";
  return NULL;
}

static bool fold(Rewrite *rewrite, Node *norm, int32_t dim, bool hooked) {
  Graph *graph = rewrite->graph;
  Node *producer = norm->inputs[BN_INPUT], *weight = producer->inputs[1];
  Attrs attrs = attrs_default();
  attrs.eps = norm->attrs.eps;
  Node *scale =
      rewrite_make(rewrite, OP_BN_SCALE, &attrs, (Node *[]){norm->inputs[BN_WEIGHT], norm->inputs[BN_VAR]}, 2, norm);
  if (!scale) return false;
  Shape shape = {.rank = weight->shape.rank};
  for (int32_t d = 0; d < shape.rank; d++) shape.dims[d] = d == dim ? weight->shape.dims[d] : 1;
  Node *factor = rewrite_reshape(rewrite, scale, &shape, norm);
  Node *new_weight = factor ? rewrite_make(rewrite, OP_MUL, NULL, (Node *[]){weight, factor}, 2, norm) : NULL;
  Node *mean = norm->inputs[BN_MEAN];
  if (new_weight && producer->op_input_count > 2)
    mean = rewrite_make(rewrite, OP_SUB, NULL, (Node *[]){mean, producer->inputs[2]}, 2, norm);
  Node *shift = new_weight && mean ? rewrite_make(rewrite, OP_MUL, NULL, (Node *[]){mean, scale}, 2, norm) : NULL;
  Node *new_bias =
      shift ? rewrite_make(rewrite, OP_SUB, NULL, (Node *[]){norm->inputs[BN_BIAS], shift}, 2, norm) : NULL;
  if (!new_bias) return false;
  node_become(graph, norm, producer->op, &producer->attrs, (Node *[]){producer->inputs[0], new_weight, new_bias}, 3);
  if (hooked)
    node_decide(graph, producer, "fold_bn", "computed once more, as written, for the hook", "no folding",
                "Folding rounds differently, and a hook must not change a result.");
  else
    node_inherit_decisions(norm, producer);
  node_decide(graph, norm, "fold_bn", "batch norm folded into weights and bias", "a multiply and an add per element",
              "Its statistics are constant in inference and nothing else uses the convolution's value.");
  return true;
}

bool pass_fold_bn(Graph *graph, const PassOptions *options, Diag *diag) {
  uint32_t *uses = graph_count_uses(graph, options->scratch);
  const uint32_t *hook_uses = count_hook_uses(graph, options->scratch);
  for (uint32_t id = 0; id < graph->next_id; id++) uses[id] -= hook_uses[id];
  bool *is_output = arena_array(options->scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->output_count - graph->hook_output_count; i++) is_output[graph->outputs[i].node->id] = true;
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  /* The producer of a folded batch norm is left out of the new order; which ones is known before they are met. */
  bool *dropped = arena_array(options->scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    node->mark = -1;
    if (node->op != OP_BATCH_NORM || node->attrs.training || node->epilogue_count) continue;
    int32_t dim = output_dim(node->inputs[BN_INPUT]);
    if (dim < 0) continue;
    const char *reason = obstacle(node, uses, is_output, prepared);
    if (reason) {
      node_decide(graph, node, "fold_bn", "batch norm not folded", "folding into the weights", reason);
      continue;
    }
    node->mark = dim;
    dropped[node->inputs[BN_INPUT]->id] = hook_uses[node->inputs[BN_INPUT]->id] == 0;
  }
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, options->scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (dropped[node->id]) continue;
    if (node->mark >= 0 && !fold(&rewrite, node, node->mark, hook_uses[node->inputs[BN_INPUT]->id] > 0)) return false;
    rewrite_append(&rewrite, node);
  }
  rewrite_finish(&rewrite);
  return true;
}
