#include "rewrite.h"

#include <string.h>

void rewrite_init(Rewrite *rewrite, Graph *graph, Arena *scratch, Diag *diag) {
  *rewrite = (Rewrite){.graph = graph, .scratch = scratch, .diag = diag};
  rewrite->capacity = graph->node_count + graph->node_count / 2 + 16;
  rewrite->nodes = arena_array(scratch, rewrite->capacity, Node *);
  rewrite->replacement_count = graph->next_id;
  rewrite->replacement = arena_array(scratch, rewrite->replacement_count, Node *);
}

void rewrite_append(Rewrite *rewrite, Node *node) {
  if (rewrite->count == rewrite->capacity) {
    Node **grown = arena_array(rewrite->scratch, rewrite->capacity * 2, Node *);
    memcpy(grown, rewrite->nodes, rewrite->count * sizeof(Node *));
    rewrite->nodes = grown;
    rewrite->capacity *= 2;
  }
  rewrite->nodes[rewrite->count++] = node;
}

Node *rewrite_resolve(const Rewrite *rewrite, Node *node) {
  while (node->id < rewrite->replacement_count && rewrite->replacement[node->id]) node = rewrite->replacement[node->id];
  return node;
}

void rewrite_inputs(const Rewrite *rewrite, Node *node) {
  for (int32_t i = 0; i < node->input_count; i++) node->inputs[i] = rewrite_resolve(rewrite, node->inputs[i]);
}

static void grow_replacements(Rewrite *rewrite, size_t count) {
  if (count <= rewrite->replacement_count) return;
  if (count < rewrite->replacement_count * 2) count = rewrite->replacement_count * 2;
  Node **grown = arena_array(rewrite->scratch, count, Node *);
  memcpy(grown, rewrite->replacement, rewrite->replacement_count * sizeof(Node *));
  rewrite->replacement = grown;
  rewrite->replacement_count = count;
}

void rewrite_replace(Rewrite *rewrite, Node *from, Node *to) {
  grow_replacements(rewrite, (size_t)from->id + 1);
  rewrite->replacement[from->id] = rewrite_resolve(rewrite, to);
}

Node *rewrite_make(Rewrite *rewrite, OpCode op, const Attrs *attrs, Node *const *inputs, int32_t input_count,
                   const Node *origin) {
  Node *node = node_create(rewrite->graph, op, NULL, inputs, input_count);
  if (attrs) node->attrs = *attrs;
  node->location = origin->location;
  if (!node_infer(node, rewrite->diag)) return NULL;
  rewrite_append(rewrite, node);
  return node;
}

Node *rewrite_reshape(Rewrite *rewrite, Node *input, const Shape *shape, const Node *origin) {
  if (shape_equal(&input->shape, shape)) return input;
  Attrs attrs = attrs_default();
  attrs.shape.count = shape->rank;
  for (int32_t d = 0; d < shape->rank; d++) attrs.shape.values[d] = shape->dims[d];
  return rewrite_make(rewrite, OP_RESHAPE, &attrs, &input, 1, origin);
}

void rewrite_finish(Rewrite *rewrite) {
  grow_replacements(rewrite, rewrite->graph->next_id);
  graph_install(rewrite->graph, rewrite->nodes, rewrite->count, rewrite->replacement);
}

void node_become(Graph *graph, Node *node, OpCode op, const Attrs *attrs, Node *const *inputs, int32_t input_count) {
  Node **copy = arena_array(graph->arena, (size_t)input_count, Node *);
  if (input_count) memcpy(copy, inputs, (size_t)input_count * sizeof(Node *));
  node->op = op;
  node->attrs = *attrs;
  node->inputs = copy;
  node->input_count = node->op_input_count = input_count;
  node->epilogue = NULL;
  node->epilogue_count = 0;
}

void node_inherit_decisions(Node *node, const Node *from) {
  if (!from->decisions) return;
  Decision *last = from->decisions;
  while (last->next) last = last->next;
  last->next = node->decisions;
  node->decisions = from->decisions;
}

bool *mark_outputs(const Graph *graph, Arena *arena) {
  bool *is_output = arena_array(arena, graph->next_id, bool);
  for (size_t i = 0; i < graph->output_count; i++) is_output[graph->outputs[i].node->id] = true;
  return is_output;
}

bool *mark_hooked(const Graph *graph, Arena *arena) {
  bool *hooked = mark_outputs(graph, arena);
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_STATS_PARTIAL) hooked[graph->nodes[i]->inputs[0]->id] = true;
  return hooked;
}

bool *mark_prepare_phase(const Graph *graph, Arena *arena) {
  bool *prepared = graph_mark_prepared(graph, arena);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (node->op == OP_PARAMETER || node->op == OP_INPUT) prepared[node->id] = false;
  }
  for (size_t i = 0; i < graph->output_count; i++) {
    const Node *node = graph->outputs[i].node;
    if (node->op == OP_CONVERT) prepared[node->id] = false;
  }
  return prepared;
}
