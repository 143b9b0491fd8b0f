/* expand_bn: batch norms of inference that fold_bn left become a multiply and an add.
 *
 *   %y = batch_norm %x, %gamma, %beta, %mean, %var {eps=1e-05}
 *     → %s = bn_scale %gamma, %var {eps=1e-05}
 *       %t = sub %beta, (mul %mean, %s)
 *       %m = mul %x, reshape %s {shape=[C,1,1]}
 *       %y = add %m, reshape %t {shape=[C,1,1]}
 *
 * Scale and shift depend on parameters only and are computed once. As element-wise ops the two join the epilogue of
 * whatever makes %x.
 *
 * Statistics of a batch stay: subtracting the mean first rounds less, and the norm is a kernel of its own anyhow.
 *
 * Requires: shapes. Guarantees: no batch norm with constant statistics is left; %y keeps its id and name. */
#include "passes.h"
#include "rewrite.h"

static bool expand(Rewrite *rewrite, Node *norm) {
  Node *x = norm->inputs[0], *gamma = norm->inputs[1], *beta = norm->inputs[2], *mean = norm->inputs[3],
       *var = norm->inputs[4];
  Attrs attrs = attrs_default();
  attrs.eps = norm->attrs.eps;
  Node *scale = rewrite_make(rewrite, OP_BN_SCALE, &attrs, (Node *[]){gamma, var}, 2, norm);
  Node *moved = scale ? rewrite_make(rewrite, OP_MUL, NULL, (Node *[]){mean, scale}, 2, norm) : NULL;
  Node *shift = moved ? rewrite_make(rewrite, OP_SUB, NULL, (Node *[]){beta, moved}, 2, norm) : NULL;
  if (!shift) return false;
  /* channels are dimension 1: as many trailing ones as there are dimensions after it */
  Shape shape = {.rank = x->shape.rank - 1, .dims = {scale->shape.dims[0]}};
  for (int32_t d = 1; d < shape.rank; d++) shape.dims[d] = 1;
  scale = rewrite_reshape(rewrite, scale, &shape, norm);
  shift = rewrite_reshape(rewrite, shift, &shape, norm);
  Node *scaled = scale && shift ? rewrite_make(rewrite, OP_MUL, NULL, (Node *[]){x, scale}, 2, norm) : NULL;
  if (!scaled) return false;
  attrs = attrs_default();
  node_become(rewrite->graph, norm, OP_ADD, &attrs, (Node *[]){scaled, shift}, 2);
  return true;
}

bool pass_expand_bn(Graph *graph, const PassOptions *options, Diag *diag) {
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, options->scratch, diag);
  const bool *constant = graph_mark_prepared(graph, options->scratch);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_BATCH_NORM && !node->attrs.training && !node->epilogue_count && constant[node->inputs[4]->id] &&
        !expand(&rewrite, node))
      return false;
    rewrite_append(&rewrite, node);
  }
  rewrite_finish(&rewrite);
  return true;
}
