/* Statistics for hooks:
 *
 *   hook "body" activation stats   → %1 = stats_partial %body;  %2 = stats_final %1;  output "hook.stats.body" = %2
 *
 * The new nodes stand behind the value, where it is still in the cache. The reader keeps the value from being erased by
 * later passes. */
#include "hook_stats.h"

#include "stats.h"

void hook_stats_init(HookStatsState *state, Graph *graph, Arena *scratch, Diag *diag) {
  *state = (HookStatsState){.graph = graph, .scratch = scratch, .diag = diag};
  state->partials = arena_array(scratch, graph->value_name_count, const Node *);
  state->first = arena_array(scratch, graph->next_id, HookStatsNodes *);
  state->last = arena_array(scratch, graph->next_id, HookStatsNodes *);
}

/* A node that the description does not have, at the hook's place. NULL after a report. */
static Node *make_node(const HookStatsState *state, OpCode op, const Attrs *attrs, Node *input, const Hook *hook) {
  Node *node = node_create(state->graph, op, NULL, &input, 1);
  if (attrs) node->attrs = *attrs;
  node->path = arena_format(state->graph->arena, "hook '%s'", hook->pattern);
  node->location = hook->location;
  return node_infer(node, state->diag) ? node : NULL;
}

static void append(HookStatsState *state, const Node *value, Node *partial, Node *final) {
  HookStatsNodes *nodes = arena_new(state->scratch, HookStatsNodes);
  *nodes = (HookStatsNodes){partial, final, NULL};
  if (state->last[value->id])
    state->last[value->id]->next = nodes;
  else
    state->first[value->id] = nodes;
  state->last[value->id] = nodes;
  state->count++;
}

bool hook_stats_add(HookStatsState *state, size_t index, const Hook *hook) {
  Graph *graph = state->graph;
  const ValueName *value = &graph->value_names[index];
  const Attrs attrs = stats_attrs(&hook->stats);
  if (state->partials[index]) {
    if (attrs_equal(&state->partials[index]->attrs, &attrs, op_info(OP_STATS_PARTIAL)->attrs)) return true;
    diag_error(state->diag, hook->location, "hook '%s': another hook asks for statistics of '%s' with other options",
               hook->pattern, value->name);
    return false;
  }
  if (value->node->dtype != DTYPE_F32) {
    diag_error(state->diag, hook->location, "hook '%s': statistics expect f32 values, found %s in '%s'", hook->pattern,
               data_type_name(value->node->dtype), value->name);
    return false;
  }
  Node *partial = make_node(state, OP_STATS_PARTIAL, &attrs, value->node, hook);
  Node *final = partial ? make_node(state, OP_STATS_FINAL, NULL, partial, hook) : NULL;
  if (!final) return false;
  state->partials[index] = partial;
  append(state, value->node, partial, final);
  graph_add_output(graph, arena_format(graph->arena, "hook.stats.%s", value->name), final);
  graph->outputs[graph->output_count - 1].location = hook->location;
  graph->hook_output_count++;
  node_decide(graph, value->node, "hooks", "value is kept for its statistics", NULL,
              arena_format(graph->arena, "hook '%s' asks for them.", hook->pattern));
  return true;
}

void hook_stats_place(HookStatsState *state) {
  Graph *graph = state->graph;
  if (state->count == 0) return;
  Node **nodes = arena_array(state->scratch, graph->node_count + 2 * state->count, Node *);
  size_t count = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    nodes[count++] = node;
    for (const HookStatsNodes *added = state->first[node->id]; added; added = added->next) {
      nodes[count++] = added->partial;
      nodes[count++] = added->final;
    }
  }
  graph_install(graph, nodes, count, NULL);
}
