/* hooks: turns requested hooks into outputs.
 *
 *   before: hook "layer*.conv2" activation store        after: output "hook.layer1.0.conv2"
 *
 * An output keeps its value from being erased by later passes, so a stored activation is exactly the value that the
 * description names. Patterns are matched against all value names, layers and blocks alike; a value that several
 * hooks name is stored once.
 *
 * Guarantees: the last hook_output_count outputs are the hooks', in the order of the hooks and, within one, of the
 * value names. */
#include "passes.h"

static const char *const kind_names[] = {[HOOK_ACTIVATION] = "activation", [HOOK_GRADIENT] = "gradient"};
static const char *const action_names[] = {[HOOK_STORE] = "store", [HOOK_STATS] = "stats", [HOOK_CALL] = "call"};

static bool hook_supported(const Hook *hook, Diag *diag) {
  if (hook->kind == HOOK_ACTIVATION && hook->action == HOOK_STORE) return true;
  diag_error(diag, hook->location, "hook '%s': %s '%s' is not supported by this version; supported: activation, store",
             hook->pattern, hook->kind != HOOK_ACTIVATION ? "kind" : "action",
             hook->kind != HOOK_ACTIVATION ? kind_names[hook->kind] : action_names[hook->action]);
  return false;
}

static void report_no_match(const Graph *graph, const Hook *hook, Arena *scratch, Diag *diag) {
  const char **names = arena_array(scratch, graph->value_name_count + 1, const char *);
  for (size_t i = 0; i < graph->value_name_count; i++) names[i] = graph->value_names[i].name;
  const char *near = nearest_word(hook->pattern, names, graph->value_name_count);
  if (near)
    diag_error(diag, hook->location, "hook '%s' matches no value; did you mean '%s'?", hook->pattern, near);
  else
    diag_error(diag, hook->location, "hook '%s' matches no value of the %zu in the model", hook->pattern,
               graph->value_name_count);
}

bool pass_hooks(Graph *graph, const PassOptions *options, Diag *diag) {
  size_t errors = diag_error_count(diag);
  bool *stored = arena_array(options->scratch, graph->value_name_count, bool);
  for (size_t h = 0; h < graph->hook_count; h++) {
    const Hook *hook = &graph->hooks[h];
    if (!hook_supported(hook, diag)) continue;
    bool matched = false;
    for (size_t i = 0; i < graph->value_name_count; i++) {
      const ValueName *value = &graph->value_names[i];
      if (!pattern_match(hook->pattern, value->name)) continue;
      matched = true;
      if (stored[i]) continue;
      stored[i] = true;
      graph_add_output(graph, arena_format(graph->arena, "hook.%s", value->name), value->node);
      graph->outputs[graph->output_count - 1].location = hook->location;
      graph->hook_output_count++;
      node_decide(graph, value->node, "hooks", "value is kept and stored", NULL,
                  arena_format(graph->arena, "hook '%s' asks for it.", hook->pattern));
    }
    if (!matched) report_no_match(graph, hook, options->scratch, diag);
  }
  return diag_error_count(diag) == errors;
}
