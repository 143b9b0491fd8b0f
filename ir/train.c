/* Requests for training steps, and what graphs know of them. */
#include "train.h"

#include <string.h>

#include "base/philox.h"
#include "graph.h"

const char *optimizer_name(Optimizer optimizer) { return optimizer == OPTIMIZER_ADAM ? "adam" : "sgd"; }

uint64_t dropout_threshold(double p) { return (uint64_t)(p * 4294967296.0); }

bool dropout_keeps(int64_t seed, int64_t step, int64_t stream, int64_t index, double p) {
  const uint32_t counter[4] = {(uint32_t)index, (uint32_t)((uint64_t)index >> 32), (uint32_t)stream,
                               (uint32_t)((uint64_t)seed >> 32)};
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)step};
  uint32_t words[4];
  philox(counter, key, words);
  return words[0] >= dropout_threshold(p);
}

bool op_is_loss(OpCode op) { return op == OP_CROSS_ENTROPY || op == OP_MSE || op == OP_BCE_WITH_LOGITS; }

bool graph_request_training(Graph *graph, const TrainRequest *request, Diag *diag) {
  const Location nowhere = {.file = graph->file};
  TrainRequest *train = arena_copy(graph->arena, request, sizeof *train);
  if (!op_is_loss(train->loss)) {
    diag_error(diag, nowhere, "training: expected the loss cross_entropy, mse or bce_with_logits, found %s",
               op_info(train->loss)->name);
    return false;
  }
  if (!train->of && graph->output_count == graph->hook_output_count) {
    diag_error(diag, nowhere, "training: the model has no output to take the loss of");
    return false;
  }
  train->of = arena_string(graph->arena, train->of ? train->of : graph->outputs[0].name);
  if (!graph_find_result(graph, train->of)) {
    const char **names = arena_array(graph->arena, graph->value_name_count, const char *);
    for (size_t i = 0; i < graph->value_name_count; i++) names[i] = graph->value_names[i].name;
    const char *near = nearest_word(train->of, names, graph->value_name_count);
    diag_error(diag, nowhere, "training: the model has no value '%s'%s%s%s", train->of, near ? "; did you mean '" : "",
               near ? near : "", near ? "'?" : "");
    return false;
  }
  if (train->nesterov && train->optimizer != OPTIMIZER_SGD) {
    diag_error(diag, nowhere, "training: Nesterov's momentum is an option of sgd, found %s",
               optimizer_name(train->optimizer));
    return false;
  }
  if (train->memory_limit < 0) {
    diag_error(diag, nowhere, "training: the memory limit must not be negative, found %lld",
               (long long)train->memory_limit);
    return false;
  }
  graph->train = train;
  return true;
}

void graph_add_update(Graph *graph, int32_t parameter, Node *node) {
  const size_t count = graph->update_count;
  if (!(count & (count - 1))) { /* room for the count rounded up to a power of two, as for ports */
    Update *grown = arena_array(graph->arena, count ? count * 2 : 1, Update);
    if (count) memcpy(grown, graph->updates, count * sizeof *grown);
    graph->updates = grown;
  }
  graph->updates[graph->update_count++] = (Update){parameter, node};
}

bool graph_fixes_batch(const Graph *graph) { return graph->update_count > 0; }

int32_t graph_batch_unit(const Graph *graph) {
  int32_t unit = 1;
  if (graph_fixes_batch(graph)) return unit;
  for (size_t i = 0; i < graph->node_count; i++) {
    const Layout layout = graph->nodes[i]->layout;
    if (layout.kind == LAYOUT_BATCH_BLOCK && layout.block > unit) unit = layout.block;
  }
  return unit;
}

bool *graph_mark_updated(const Graph *graph, Arena *arena) {
  bool *updated = arena_array(arena, graph->next_id, bool);
  for (size_t i = 0; i < graph->update_count; i++) {
    const Node *parameter = graph->parameters[graph->updates[i].parameter].node;
    if (parameter) updated[parameter->id] = true;
  }
  return updated;
}

int32_t graph_layer_group(const Graph *graph, uint32_t layer) {
  for (size_t g = 0; layer != LAYER_NONE && g < graph->group_count; g++) {
    for (size_t i = 0; i < graph->groups[g].pattern_count; i++) {
      if (pattern_match(graph->groups[g].patterns[i], graph->layers[layer].name)) return (int32_t)g;
    }
  }
  return 0;
}

bool graph_set_frozen(Graph *graph, const char *name, bool frozen, bool batch_norm, Diag *diag) {
  size_t at = 0;
  while (at < graph->group_count && strcmp(graph->groups[at].name, name) != 0) at++;
  if (at == graph->group_count) {
    const char **names = arena_array(graph->arena, graph->group_count, const char *);
    for (size_t g = 0; g < graph->group_count; g++) names[g] = graph->groups[g].name;
    const char *near = nearest_word(name, names, graph->group_count);
    diag_error(diag, (Location){.file = graph->file}, "the model has no group '%s' of the %zu it has%s%s%s", name,
               graph->group_count, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    return false;
  }
  graph->groups[at].frozen = frozen;
  graph->groups[at].freeze_batch_norm = batch_norm;
  for (uint32_t i = 0; i < graph->layer_count; i++) {
    Layer *layer = &graph->layers[i];
    if (graph_layer_group(graph, i) != (int32_t)at) continue;
    const bool norm = layer->node && layer->node->op == OP_BATCH_NORM;
    layer->frozen = frozen && (!norm || batch_norm);
  }
  for (size_t i = 0; i < graph->parameter_count; i++) {
    Parameter *parameter = &graph->parameters[i];
    if (parameter->buffer || parameter->layer == LAYER_NONE) continue;
    if (graph_layer_group(graph, parameter->layer) != (int32_t)at) continue;
    parameter->trainable = !graph->layers[parameter->layer].frozen;
  }
  return true;
}
