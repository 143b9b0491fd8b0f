/* pools: max pools computed by the kernel of the convolution that they read.
 *
 *   %y = conv2d … choice winograd43;  %p = max_pool2d %y      → %p = max_pool2d %y hosted
 *
 * The kernel makes a strip of %y in its scratch memory, pools it while it is in the second-level cache, and keeps the
 * last rows for the next strip (ir/work.h): %y is never stored. Only a thread that begins in the middle of an image makes
 * the rows before its first strip again. Where the convolution's value stays in the cache anyhow, nothing is gained.
 *
 * Requires: select. Guarantees: nothing but the hosted pool reads the convolution's value, which has no place. */
#include "base/checked.h"
#include "passes.h"
#include "rewrite.h"
#include "work.h"

typedef struct PoolsState {
  Graph *graph;
  const Target *target;
  const bool *prepared, *is_output;
  const uint32_t *uses;
  bool *joined; /* by id: a concat reads it, which the pool had better be computed into */
} PoolsState;

/* Whether an image of the value takes more than a part of the second-level cache. */
static bool is_far(const PoolsState *state, const Node *node) {
  if (!state->target || state->target->l2_bytes <= 0) return false;
  const int64_t *dims = node->shape.dims;
  return dims[1] * dims[2] * dims[3] > state->target->l2_bytes / 2 / data_type_bytes(node->dtype);
}

/* Whether a strip leaves the rest of that cache to what the convolution computes with. */
static bool is_near(const PoolsState *state, const Node *node, const StripWork *work) {
  const int64_t row = round_up(node->shape.dims[1], node->layout.block) * node->shape.dims[3];
  return (work->kept + work->rows) * row <= state->target->l2_bytes / 4 / data_type_bytes(node->dtype);
}

/* Why the pool has a kernel of its own; NULL when that of its input can compute it. */
static const char *obstacle(const PoolsState *state, const Node *pool) {
  const Node *made = pool->inputs[0];
  StripWork work;
  if (made->op != OP_CONV2D) return "Its input is not made by a convolution.";
  if (!work_pools(pool, &work)) return "The kernel of its input does not work in strips of rows.";
  if (state->uses[made->id] != 1 || state->is_output[made->id]) return "Its input is needed by others.";
  if (state->prepared[pool->id]) return "It is computed once, with the weights.";
  if (!is_far(state, made)) return "Its input stays in the cache.";
  if (state->joined[pool->id]) return "It is computed where it is joined.";
  if (!is_near(state, made, &work)) return "A strip of rows does not stay in the cache.";
  return work.count < 2 ? "There is one strip only." : NULL;
}

bool pass_pools(Graph *graph, const PassOptions *options, Diag *diag) {
  (void)diag;
  if (options->training) return true;
  PoolsState state = {.graph = graph, .target = options->target};
  state.prepared = mark_prepare_phase(graph, options->scratch);
  state.is_output = mark_hooked(graph, options->scratch);
  state.uses = graph_count_uses(graph, options->scratch);
  state.joined = arena_array(options->scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->node_count; i++)
    for (int32_t j = 0; j < graph->nodes[i]->input_count; j++)
      if (graph->nodes[i]->op == OP_CONCAT) state.joined[graph->nodes[i]->inputs[j]->id] = true;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op != OP_MAX_POOL2D || node->layout.kind != LAYOUT_CHANNEL_BLOCK) continue;
    const char *reason = obstacle(&state, node);
    node->hosted = reason == NULL;
    node_decide(graph, node, "pools", reason ? "a kernel of its own" : "computed by the kernel of its input, in strips",
                reason ? "computing it in the kernel of its input" : "a kernel of its own",
                reason ? reason : "The convolution's value is never stored.");
  }
  return true;
}
