/* reductions: computed by the kernel that makes their input.
 *
 *   %y = conv2d …;  %s = stats_partial %y : f32[N,8,45]      → %s = stats_partial %y {parts=14} : f32[N,14,45] hosted
 *
 * A hosted reduction has no kernel: the kernel of its input takes values along while they are in registers, and leaves
 * a row of partial results for each of its work items, of which an image has `parts` (ir/work.h). So the value is not
 * read again, and what the rows hold does not depend on who computes which item. Kernels that cannot do it, or whose
 * items are too small to be worth a row, keep the reduction a kernel of its own.
 *
 *   %y = conv2d …;  %s = batch_stats %y      → %m = plane_moments %y {parts=2} : f32[N,C,2,2] hosted
 *                                              %s = batch_stats %y, %m
 *
 * The statistics of a batch depend on all images: kernels of batch-blocked convolutions leave the moments of every
 * plane, and the statistics' kernel adds those up.
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

static void host_statistics(Graph *graph, Node *node, const bool *prepared, int32_t *hosted) {
  const char *reason = obstacle(node, prepared, hosted);
  if (reason) {
    node_decide(graph, node, "reductions", "a kernel of its own", "computing it in the kernel of its input", reason);
    return;
  }
  node->attrs.parts = work_parts(node->inputs[0]);
  node->hosted = true;
  hosted[node->inputs[0]->id]++;
  node_decide(graph, node, "reductions",
              arena_format(graph->arena, "computed by the kernel of its input, in %lld parts an image",
                           (long long)node->attrs.parts),
              "a kernel of its own", "The values are at hand there and need not be read again.");
}

/* Whether a value of the largest batch is still at hand in the second-level cache when its kernel is done: a sweep then
 * costs less than sums between the convolution's. */
static bool stays_in_cache(const Graph *graph, const Node *node, const Target *target) {
  if (!target || target->l2_bytes <= 0) return false;
  const int64_t images = graph->max_batch > 1 ? graph->max_batch : 1;
  return shape_elements_per_image(&node->shape) <= target->l2_bytes / 2 / data_type_bytes(node->dtype) / images;
}

/* Why the statistics of a batch are measured by a sweep; NULL when the kernel of their input leaves moments. */
static const char *moments_obstacle(const Graph *graph, const Node *node, const Target *target, const bool *prepared,
                                    const int32_t *hosted) {
  const Node *host = node->inputs[0];
  if (prepared[host->id]) return "Its input is computed once, with the weights.";
  if (host->op != OP_CONV2D || host->layout.kind != LAYOUT_BATCH_BLOCK)
    return "Its input is not made by a batch-blocked convolution.";
  if (host->choice.algorithm == ALGORITHM_REFERENCE) return "With strict precision sums are taken by themselves.";
  if (work_moment_parts(host) == 0) return "The planes of its input are too small.";
  if (stays_in_cache(graph, host, target)) return "Its input is still in the cache, where a sweep costs less.";
  if (hosted[host->id] > 0 || !node_has_kernel(host)) return "The kernel of its input cannot compute more.";
  if (1 + host->input_count + 1 > KILN_MAX_OPERANDS) return "A kernel cannot have more operands.";
  return NULL;
}

static bool host_moments(Rewrite *rewrite, Node *node, const Target *target, const bool *prepared, int32_t *hosted) {
  Graph *graph = rewrite->graph;
  const char *reason = moments_obstacle(graph, node, target, prepared, hosted);
  if (reason) {
    if (node->inputs[0]->op == OP_CONV2D)
      node_decide(graph, node, "reductions", "a sweep over its input", "sums taken by the kernel of its input", reason);
    return true;
  }
  Node *host = node->inputs[0];
  Attrs attrs = attrs_default();
  attrs.parts = work_moment_parts(host);
  Node *moments = rewrite_make(rewrite, OP_PLANE_MOMENTS, &attrs, &host, 1, node);
  if (!moments) return false;
  moments->layout = host->layout;
  moments->hosted = true;
  hosted[host->id]++;
  node_decide(graph, node, "reductions",
              arena_format(graph->arena, "sums taken by the kernel of its input, in %lld parts a plane",
                           (long long)attrs.parts),
              "a sweep over its input", "The values are at hand there and need not be read again.");
  node->inputs = arena_array(graph->arena, 2, Node *);
  node->inputs[0] = host, node->inputs[1] = moments;
  node->input_count = node->op_input_count = 2;
  return true;
}

bool pass_reductions(Graph *graph, const PassOptions *options, Diag *diag) {
  if (options->target && !options->target->hosts_reductions) return true;
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  int32_t *hosted = arena_array(options->scratch, graph->next_id, int32_t);
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, options->scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (is_partial(node)) host_statistics(graph, node, prepared, hosted);
    if (node->op == OP_BATCH_STATS && node->input_count == 1 &&
        !host_moments(&rewrite, node, options->target, prepared, hosted))
      return false;
    rewrite_append(&rewrite, node);
  }
  rewrite_finish(&rewrite);
  return graph_infer(graph, diag);
}
