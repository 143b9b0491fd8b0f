/* hooks: turns requested hooks into outputs.
 *
 *   before: hook "layer*.conv2" activation store        after: output "hook.layer1.0.conv2"
 *
 *   before: hook "body" activation stats                after: output "hook.stats.body", see hook_stats.c
 *
 *   before: hook "body" gradient store, output logits   after: gradient logits class wrt ["body"] hook
 *
 * A gradient hook asks `autodiff` for the gradient of the class scores, which are the graph's first output, with
 * respect to the values; it adds the outputs "hook.grad.body", or "hook.grad.stats.body" for statistics.
 *
 * An output keeps its value from being erased by later passes, so a stored activation is exactly the value that the
 * description names. Patterns are matched against all value names, layers and blocks alike; a value that several
 * hooks name is stored once. `call` is `store` here: the host is called when the output has been written.
 *
 * Guarantees: the last hook_output_count outputs are the hooks' for activations, in the order of the hooks and, within
 * one, of the value names; gradient hooks are one request. */
#include "hook_stats.h"
#include "passes.h"

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

static void store_activation(Graph *graph, const Hook *hook, const ValueName *value) {
  graph_add_output(graph, arena_format(graph->arena, "hook.%s", value->name), value->node);
  graph->outputs[graph->output_count - 1].location = hook->location;
  graph->hook_output_count++;
  node_decide(graph, value->node, "hooks", "value is kept and stored", NULL,
              arena_format(graph->arena, "hook '%s' asks for it.", hook->pattern));
}

/* The scores are the first output that the description names. */
static bool request_gradients(Graph *graph, GradientRequest *request, size_t own_outputs, Diag *diag) {
  if (request->wrt_count == 0) return true;
  if (own_outputs == 0) {
    diag_error(diag, request->location, "a gradient hook needs an output of class scores, but the model has no output");
    return false;
  }
  request->of = graph->outputs[0].name;
  return graph_request_gradient(graph, request, diag);
}

bool pass_hooks(Graph *graph, const PassOptions *options, Diag *diag) {
  size_t errors = diag_error_count(diag), own_outputs = graph->output_count - graph->hook_output_count;
  bool *stored[] = {[HOOK_ACTIVATION] = arena_array(options->scratch, graph->value_name_count, bool),
                    [HOOK_GRADIENT] = arena_array(options->scratch, graph->value_name_count, bool)};
  GradientRequest request = {.seed = GRADIENT_OF_CLASS, .hook = true};
  request.wrt = arena_array(options->scratch, graph->value_name_count, const char *);
  HookStatsState stats;
  hook_stats_init(&stats, graph, options->scratch, diag);
  for (size_t h = 0; h < graph->hook_count; h++) {
    const Hook *hook = &graph->hooks[h];
    bool matched = false;
    for (size_t i = 0; i < graph->value_name_count; i++) {
      const ValueName *value = &graph->value_names[i];
      if (!pattern_match(hook->pattern, value->name)) continue;
      matched = true;
      if (hook->kind == HOOK_ACTIVATION && hook->action == HOOK_STATS) {
        hook_stats_add_activation(&stats, i, hook);
        continue;
      }
      if (stored[hook->kind][i]) continue;
      stored[hook->kind][i] = true;
      if (hook->kind == HOOK_ACTIVATION) {
        store_activation(graph, hook, value);
      } else {
        if (request.wrt_count == 0) request.location = hook->location;
        request.wrt[request.wrt_count++] = value->name;
      }
    }
    if (!matched) report_no_match(graph, hook, options->scratch, diag);
  }
  hook_stats_place(&stats);
  return request_gradients(graph, &request, own_outputs, diag) && diag_error_count(diag) == errors;
}
