/* lower: ops with no kernels of their own become simpler ones.
 *
 *   %y = conv2d %x, %w {padding=[1,1,1,1], padding_mode=reflect}
 *     → %p = pad %x {padding=[1,1,1,1], padding_mode=reflect};  %y = conv2d %p, %w
 *   %y = adaptive_concat_pool2d %x {output=[1,1]}
 *     → %m = adaptive_max_pool2d %x;  %a = adaptive_avg_pool2d %x;  %y = concat %m, %a {dim=1}
 *
 * Requires: shapes. Guarantees: every conv2d pads with zeros; no adaptive_concat_pool2d is left. Values keep their ids
 * and names. */
#include "passes.h"
#include "rewrite.h"

static bool lower_padding_mode(Rewrite *rewrite, Node *node) {
  Attrs attrs = attrs_default();
  attrs.padding = node->attrs.padding;
  attrs.padding_mode = node->attrs.padding_mode;
  const int64_t *sides = attrs.padding.values;
  node->attrs.padding_mode = PADDING_ZEROS;
  if (!sides[0] && !sides[1] && !sides[2] && !sides[3]) return true;
  Node *pad = rewrite_make(rewrite, OP_PAD, &attrs, node->inputs, 1, node);
  if (!pad) return false;
  node->inputs[0] = pad;
  node->attrs.padding = (AttrInt4){{0, 0, 0, 0}};
  return true;
}

static bool lower_concat_pool(Rewrite *rewrite, Node *node) {
  Attrs attrs = attrs_default();
  attrs.output = node->attrs.output;
  Node *maximum = rewrite_make(rewrite, OP_ADAPTIVE_MAX_POOL2D, &attrs, node->inputs, 1, node);
  Node *average = rewrite_make(rewrite, OP_ADAPTIVE_AVG_POOL2D, &attrs, node->inputs, 1, node);
  if (!maximum || !average) return false;
  attrs = attrs_default();
  attrs.dim = 1;
  node_become(rewrite->graph, node, OP_CONCAT, &attrs, (Node *[]){maximum, average}, 2);
  return true;
}

bool pass_lower(Graph *graph, const PassOptions *options, Diag *diag) {
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, options->scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_CONV2D && node->attrs.padding_mode != PADDING_ZEROS && !lower_padding_mode(&rewrite, node))
      return false;
    if (node->op == OP_ADAPTIVE_CONCAT_POOL2D && !lower_concat_pool(&rewrite, node)) return false;
    rewrite_append(&rewrite, node);
  }
  rewrite_finish(&rewrite);
  return true;
}
