/* Statistics for hooks:
 *
 *   hook "body" activation stats   → %1 = stats_partial %body;  %2 = stats_final %1;  output "hook.stats.body" = %2
 *
 *   hook "body" gradient stats     → the same of the gradient, output "hook.grad.stats.body"
 *
 * The new nodes stand behind the value, where it is still in the cache. The reader keeps the value from being erased by
 * later passes. */
#include "hook_stats.h"

#include <string.h>

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

bool hook_stats_add(HookStatsState *state, size_t index, Node *value, const Hook *hook, Node **out_final) {
  const char *name = state->graph->value_names[index].name;
  const Attrs attrs = stats_attrs(&hook->stats);
  *out_final = NULL;
  if (state->partials[index]) {
    if (attrs_equal(&state->partials[index]->attrs, &attrs, op_info(OP_STATS_PARTIAL)->attrs)) return true;
    diag_error(state->diag, hook->location, "hook '%s': another hook asks for statistics of '%s' with other options",
               hook->pattern, name);
    return false;
  }
  if (value->dtype != DTYPE_F32) {
    diag_error(state->diag, hook->location, "hook '%s': statistics expect f32 values, found %s in '%s'", hook->pattern,
               data_type_name(value->dtype), name);
    return false;
  }
  Node *partial = make_node(state, OP_STATS_PARTIAL, &attrs, value, hook);
  *out_final = partial ? make_node(state, OP_STATS_FINAL, NULL, partial, hook) : NULL;
  if (!*out_final) return false;
  state->partials[index] = partial;
  append(state, value, partial, *out_final);
  node_decide(state->graph, value, "hooks", "value is kept for its statistics", NULL,
              arena_format(state->graph->arena, "hook '%s' asks for them.", hook->pattern));
  return true;
}

static void add_output(Graph *graph, const char *name, Node *final, const Hook *hook) {
  graph_add_output(graph, name, final);
  graph->outputs[graph->output_count - 1].location = hook->location;
  graph->hook_output_count++;
}

bool hook_stats_add_activation(HookStatsState *state, size_t index, const Hook *hook) {
  Graph *graph = state->graph;
  const ValueName *value = &graph->value_names[index];
  Node *final;
  if (!hook_stats_add(state, index, value->node, hook, &final)) return false;
  if (final) add_output(graph, arena_format(graph->arena, "hook.stats.%s", value->name), final, hook);
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

/* --- gradients --------------------------------------------------------------------------------------- */

static GraphOutput *find_output(const Graph *graph, const char *name) {
  for (size_t i = graph->output_count - graph->hook_output_count; i < graph->output_count; i++)
    if (strcmp(graph->outputs[i].name, name) == 0) return &graph->outputs[i];
  return NULL;
}

/* Whether a hook hands out the gradient of this value itself. */
static bool gradient_is_stored(const Graph *graph, const char *value) {
  for (size_t h = 0; h < graph->hook_count; h++) {
    const Hook *hook = &graph->hooks[h];
    if (hook->kind == HOOK_GRADIENT && hook->action != HOOK_STATS && pattern_match(hook->pattern, value)) return true;
  }
  return false;
}

/* Value names whose gradients are also stored get one more output; others' become that of the statistics. */
static bool add_gradient_stats(HookStatsState *state, size_t index, const Hook *hook) {
  Graph *graph = state->graph;
  const char *value = graph->value_names[index].name;
  GraphOutput *output = find_output(graph, arena_format(state->scratch, "hook.grad.%s", value));
  const char *name = arena_format(graph->arena, "hook.grad.stats.%s", value);
  Node *final;
  if (!output) output = find_output(graph, name); /* has statistics already: of which options? */
  if (!output) return true;
  if (!hook_stats_add(state, index, output->node, hook, &final)) return false;
  if (!final) return true;
  if (gradient_is_stored(graph, value))
    add_output(graph, name, final, hook);
  else
    *output = (GraphOutput){name, final, hook->location};
  return true;
}

bool hook_gradient_stats(Graph *graph, Arena *scratch, Diag *diag) {
  bool wanted = false, valid = true;
  for (size_t h = 0; h < graph->hook_count; h++)
    wanted = wanted || (graph->hooks[h].kind == HOOK_GRADIENT && graph->hooks[h].action == HOOK_STATS);
  if (!wanted) return true;
  HookStatsState state;
  hook_stats_init(&state, graph, scratch, diag);
  for (size_t h = 0; h < graph->hook_count; h++) {
    const Hook *hook = &graph->hooks[h];
    if (hook->kind != HOOK_GRADIENT || hook->action != HOOK_STATS) continue;
    for (size_t i = 0; i < graph->value_name_count; i++)
      if (pattern_match(hook->pattern, graph->value_names[i].name))
        valid = add_gradient_stats(&state, i, hook) && valid;
  }
  hook_stats_place(&state);
  return valid;
}
