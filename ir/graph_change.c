/* Changing graphs: redirecting uses, installing a new order, dropping dead nodes, copying. Everything is a sweep or a
 * worklist over the array, linear in nodes plus edges. */
#include <assert.h>
#include <string.h>

#include "graph.h"

/* --- redirecting ----------------------------------------------------------------------------------- */

/* Applies target(context, node) to every use of a node. */
typedef Node *(*Redirect)(const void *context, Node *node);

static void redirect_uses(Graph *graph, Redirect target, const void *context) {
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    for (int32_t k = 0; k < node->input_count; k++) {
      Node *to = target(context, node->inputs[k]);
      /* A node that takes the place of its own input, such as a conversion, goes on reading it. */
      if (to != node) node->inputs[k] = to;
    }
    if (node->alias && target(context, node->alias) != node) node->alias = target(context, node->alias);
  }
  for (size_t i = 0; i < graph->output_count; i++) {
    graph->outputs[i].node = target(context, graph->outputs[i].node);
  }
  for (size_t i = 0; i < graph->update_count; i++) {
    graph->updates[i].node = target(context, graph->updates[i].node);
  }
  for (size_t i = 0; i < graph->value_name_count; i++) {
    graph->value_names[i].node = target(context, graph->value_names[i].node);
  }
  for (size_t i = 0; i < graph->layer_count; i++) graph->layers[i].node = target(context, graph->layers[i].node);
}

typedef struct Exchange {
  Node *from, *to;
} Exchange;

static Node *exchange_one(const void *context, Node *node) {
  const Exchange *exchange = context;
  return node == exchange->from ? exchange->to : node;
}

void graph_replace(Graph *graph, Node *from, Node *to) {
  const Exchange exchange = {from, to};
  redirect_uses(graph, exchange_one, &exchange);
}

/* The ends of all chains of replacements. Every chain is walked twice: to its end, then to note the end on all
 * its members, so that the sum over all chains is linear. */
static Node **resolve_chains(const Graph *graph, Node *const *replacement) {
  Node **ends = arena_copy(graph->arena, replacement, graph->next_id * sizeof(Node *));
  for (uint32_t id = 0; id < graph->next_id; id++) {
    if (!ends[id]) continue;
    Node *end = ends[id];
    uint32_t steps = 0;
    while (ends[end->id] && ends[end->id] != end) {
      end = ends[end->id];
      steps++;
      assert(steps < graph->next_id && "replacements form a cycle");
    }
    (void)steps;
    uint32_t at = id;
    while (ends[at] && ends[at] != end) {
      const uint32_t next = ends[at]->id;
      ends[at] = end;
      at = next;
    }
  }
  return ends;
}

static Node *exchange_many(const void *context, Node *node) {
  Node *const *ends = context;
  return node && ends[node->id] ? ends[node->id] : node;
}

void graph_install(Graph *graph, Node **nodes, size_t count, Node *const *replacement) {
  if (count > graph->node_capacity) {
    graph->node_capacity = count;
    graph->nodes = arena_array(graph->arena, count, Node *);
  }
  if (count) memmove(graph->nodes, nodes, count * sizeof(Node *));
  graph->node_count = count;
  if (replacement) redirect_uses(graph, exchange_many, resolve_chains(graph, replacement));
}

/* --- liveness -------------------------------------------------------------------------------------- */

typedef struct Worklist {
  bool *live; /* by id */
  Node **pending;
  size_t count;
} Worklist;

/* A node enters the list once, so that `pending` needs no more room than there are nodes. */
static void need(Worklist *list, Node *node) {
  if (!node || list->live[node->id]) return;
  list->live[node->id] = true;
  list->pending[list->count++] = node;
}

void graph_remove_dead(Graph *graph) {
  Worklist list = {.live = arena_array(graph->arena, graph->next_id, bool),
                   .pending = arena_array(graph->arena, graph->next_id, Node *)};
  for (size_t i = 0; i < graph->output_count; i++) need(&list, graph->outputs[i].node);
  for (size_t i = 0; i < graph->input_count; i++) need(&list, graph->inputs[i].node);
  for (size_t i = 0; i < graph->update_count; i++) need(&list, graph->updates[i].node);
  while (list.count) {
    const Node *node = list.pending[--list.count];
    for (int32_t k = 0; k < node->input_count; k++) need(&list, node->inputs[k]);
    need(&list, node->alias);
  }
  size_t count = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    if (list.live[graph->nodes[i]->id]) graph->nodes[count++] = graph->nodes[i];
  }
  graph->node_count = count;
}

uint32_t *graph_count_uses(const Graph *graph, Arena *arena) {
  uint32_t *uses = arena_array(arena, graph->next_id, uint32_t);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    for (int32_t k = 0; k < node->input_count; k++) uses[node->inputs[k]->id]++;
  }
  for (size_t i = 0; i < graph->output_count; i++) uses[graph->outputs[i].node->id]++;
  for (size_t i = 0; i < graph->update_count; i++) uses[graph->updates[i].node->id]++;
  return uses;
}

bool *graph_mark_prepared(const Graph *graph, Arena *arena) {
  bool *prepared = arena_array(arena, graph->next_id, bool);
  const bool *updated = graph_mark_updated(graph, arena);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    bool constant = node->op == OP_PARAMETER ? !updated[node->id] : node->input_count > 0;
    for (int32_t k = 0; k < node->input_count && constant; k++) constant = prepared[node->inputs[k]->id];
    prepared[node->id] = constant;
  }
  return prepared;
}

/* --- copying --------------------------------------------------------------------------------------- */

typedef struct Copy {
  Arena *arena;
  Node **nodes;                 /* by id of the original */
  const char *file, *file_copy; /* the last file name, which nearly all locations share */
} Copy;

static const char *copy_string(const Copy *copy, const char *string) {
  return string ? arena_string(copy->arena, string) : NULL;
}

static void copy_location(Copy *copy, Location *location) {
  if (location->file != copy->file) {
    copy->file = location->file;
    copy->file_copy = copy_string(copy, location->file);
  }
  location->file = copy->file_copy;
}

/* Room as grow_ports in graph.c expects it: the count rounded up to a power of two. */
static void *copy_array(const Copy *copy, const void *items, size_t count, size_t size) {
  size_t capacity = 1;
  while (capacity < count) capacity *= 2;
  void *copied = arena_alloc(copy->arena, capacity, size);
  if (count) memcpy(copied, items, count * size);
  return copied;
}

static Node *copied_node(const Copy *copy, const Node *node) { return node ? copy->nodes[node->id] : NULL; }

static Decision *copy_decisions(const Copy *copy, const Decision *decision) {
  Decision *first = NULL, **last = &first;
  for (; decision; decision = decision->next) {
    Decision *copied = arena_copy(copy->arena, decision, sizeof *decision);
    copied->pass = copy_string(copy, decision->pass);
    copied->chosen = copy_string(copy, decision->chosen);
    copied->rejected = copy_string(copy, decision->rejected);
    copied->reason = copy_string(copy, decision->reason);
    copied->unit = copy_string(copy, decision->unit);
    copied->next = NULL;
    *last = copied;
    last = &copied->next;
  }
  return first;
}

static void copy_node(Copy *copy, const Node *node) {
  Node *copied = arena_copy(copy->arena, node, sizeof *node);
  copied->name = copy_string(copy, node->name);
  copied->path = copy_string(copy, node->path);
  copy_location(copy, &copied->location);
  copied->inputs = arena_copy(copy->arena, node->inputs, (size_t)node->input_count * sizeof(Node *));
  copied->epilogue = arena_copy(copy->arena, node->epilogue, (size_t)node->epilogue_count * sizeof(EpilogueStep));
  copied->decisions = copy_decisions(copy, node->decisions);
  copy->nodes[node->id] = copied;
}

static const Tensor *copy_value(const Copy *copy, const Parameter *parameter) {
  if (!parameter->value || !parameter->inline_value) return parameter->value;
  Tensor *value = arena_copy(copy->arena, parameter->value, sizeof *value);
  value->name = copy_string(copy, value->name);
  value->data = arena_copy(copy->arena, value->data, (size_t)tensor_bytes(value));
  return value;
}

static void copy_ports(Copy *copy, const Graph *graph, Graph *copied) {
  copied->inputs = copy_array(copy, graph->inputs, graph->input_count, sizeof *graph->inputs);
  for (size_t i = 0; i < graph->input_count; i++) {
    GraphInput *input = &copied->inputs[i];
    input->name = copy_string(copy, input->name);
    input->node = copied_node(copy, input->node);
    copy_location(copy, &input->location);
  }
  copied->outputs = copy_array(copy, graph->outputs, graph->output_count, sizeof *graph->outputs);
  for (size_t i = 0; i < graph->output_count; i++) {
    GraphOutput *output = &copied->outputs[i];
    output->name = copy_string(copy, output->name);
    output->node = copied_node(copy, output->node);
    copy_location(copy, &output->location);
  }
  copied->parameters = copy_array(copy, graph->parameters, graph->parameter_count, sizeof *graph->parameters);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    Parameter *parameter = &copied->parameters[i];
    parameter->name = copy_string(copy, parameter->name);
    parameter->node = copied_node(copy, parameter->node);
    parameter->value = copy_value(copy, parameter);
    copy_location(copy, &parameter->location);
  }
}

static const char **copy_strings(const Copy *copy, const char **strings, size_t count) {
  const char **copied = copy_array(copy, strings, count, sizeof *strings);
  for (size_t i = 0; i < count; i++) copied[i] = copy_string(copy, strings[i]);
  return copied;
}

static void copy_names(Copy *copy, const Graph *graph, Graph *copied) {
  copied->layers = copy_array(copy, graph->layers, graph->layer_count, sizeof *graph->layers);
  for (size_t i = 0; i < graph->layer_count; i++) {
    Layer *layer = &copied->layers[i];
    layer->name = copy_string(copy, layer->name);
    layer->op = copy_string(copy, layer->op);
    layer->node = copied_node(copy, layer->node);
  }
  copied->value_names = copy_array(copy, graph->value_names, graph->value_name_count, sizeof *graph->value_names);
  for (size_t i = 0; i < graph->value_name_count; i++) {
    ValueName *value = &copied->value_names[i];
    value->name = copy_string(copy, value->name);
    value->node = copied_node(copy, value->node);
  }
  copied->hooks = copy_array(copy, graph->hooks, graph->hook_count, sizeof *graph->hooks);
  for (size_t i = 0; i < graph->hook_count; i++) {
    copied->hooks[i].pattern = copy_string(copy, graph->hooks[i].pattern);
    copy_location(copy, &copied->hooks[i].location);
  }
  copied->groups = copy_array(copy, graph->groups, graph->group_count, sizeof *graph->groups);
  for (size_t i = 0; i < graph->group_count; i++) {
    Group *group = &copied->groups[i];
    group->name = copy_string(copy, group->name);
    group->patterns = copy_strings(copy, group->patterns, group->pattern_count);
    copy_location(copy, &group->location);
  }
  copied->gradients = copy_array(copy, graph->gradients, graph->gradient_count, sizeof *graph->gradients);
  for (size_t i = 0; i < graph->gradient_count; i++) {
    GradientRequest *request = &copied->gradients[i];
    request->of = copy_string(copy, request->of);
    request->input = copy_string(copy, request->input);
    request->wrt = copy_strings(copy, request->wrt, request->wrt_count);
    copy_location(copy, &request->location);
  }
  copied->labels = graph->labels ? copy_strings(copy, graph->labels, graph->label_count) : NULL;
  if (graph->train) {
    TrainRequest *train = arena_copy(copy->arena, graph->train, sizeof *train);
    train->of = copy_string(copy, train->of);
    copied->train = train;
  }
  copied->updates = copy_array(copy, graph->updates, graph->update_count, sizeof *graph->updates);
  for (size_t i = 0; i < graph->update_count; i++) {
    copied->updates[i].node = copied_node(copy, graph->updates[i].node);
  }
  copied->slots = copy_array(copy, graph->slots, graph->slot_count, sizeof *graph->slots);
  for (size_t i = 0; i < graph->slot_count; i++) copied->slots[i].name = copy_string(copy, graph->slots[i].name);
}

Graph *graph_clone(const Graph *graph, Arena *arena) {
  Copy copy = {.arena = arena, .nodes = arena_array(arena, graph->next_id, Node *)};
  Graph *copied = arena_copy(arena, graph, sizeof *graph);
  copied->arena = arena;
  copied->name = copy_string(&copy, graph->name);
  copied->file = copy_string(&copy, graph->file);
  for (size_t i = 0; i < graph->node_count; i++) copy_node(&copy, graph->nodes[i]);
  copied->nodes = arena_array(arena, graph->node_count, Node *);
  copied->node_capacity = graph->node_count;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = copied->nodes[i] = copied_node(&copy, graph->nodes[i]);
    for (int32_t k = 0; k < node->input_count; k++) node->inputs[k] = copied_node(&copy, node->inputs[k]);
    node->alias = copied_node(&copy, node->alias);
  }
  copy_ports(&copy, graph, copied);
  copy_names(&copy, graph, copied);
  return copied;
}
