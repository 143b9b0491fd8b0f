/* reductions: computed by the kernel that makes their input.
 *
 *   %y = conv2d …;  %s = stats_partial %y : f32[N,8,45]      → %s = stats_partial %y {parts=14} : f32[N,14,45] hosted
 *
 * A hosted reduction has no kernel: the kernel of its input takes values along while they are in registers, and leaves
 * a row of partial results for each of its work items, of which an image has `parts` (ir/work.h). So the value is not
 * read again, and what the rows hold does not depend on who computes which item. Kernels that cannot do it, or whose
 * items are too small to be worth a row, keep the reduction a kernel of its own.
 *
 * Requires: select. Guarantees: a hosted node reads one value, of a node with a kernel, as that is stored. */
#include "base/checked.h"
#include "kiln_abi.h"
#include "passes.h"
#include "rewrite.h"
#include "work.h"

static bool is_partial(const Node *node) { return node->op == OP_STATS_PARTIAL; }

/* Why `node` needs a kernel of its own; NULL when its input's kernel can compute it. */
static const char *obstacle(const Node *node, const bool *prepared, const int32_t *hosted) {
  const Node *host = node->inputs[0];
  if (prepared[host->id]) return "Its input is computed once, with the weights.";
  if (work_parts(host) == 0) return "The kernel of its input cannot compute reductions in parts of a useful size.";
  if (1 + host->input_count + hosted[host->id] + 1 > KILN_MAX_OPERANDS) return "A kernel cannot have more operands.";
  return NULL;
}

bool pass_reductions(Graph *graph, const PassOptions *options, Diag *diag) {
  if (options->target && !options->target->hosts_reductions) return true;
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  int32_t *hosted = arena_array(options->scratch, graph->next_id, int32_t);
  bool changed = false;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (!is_partial(node)) continue;
    const char *reason = obstacle(node, prepared, hosted);
    if (reason) {
      node_decide(graph, node, "reductions", "a kernel of its own", "computing it in the kernel of its input", reason);
      continue;
    }
    node->attrs.parts = work_parts(node->inputs[0]);
    node->hosted = true;
    hosted[node->inputs[0]->id]++;
    changed = true;
    node_decide(graph, node, "reductions",
                arena_format(graph->arena, "computed by the kernel of its input, in %lld parts an image",
                             (long long)node->attrs.parts),
                "a kernel of its own", "The values are at hand there and need not be read again.");
  }
  return !changed || graph_infer(graph, diag);
}
