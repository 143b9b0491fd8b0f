/* Building graphs, looking values up, and shape inference. */
#include "graph.h"

#include <stdio.h>
#include <string.h>

#include "infer.h"

/* --- growing arrays -------------------------------------------------------------------------------- */

/* Arrays without a stored capacity have room for `count` rounded up to a power of two: whoever fills one in
 * another way gives it as much (graph_clone does). */
static void *grow_ports(Arena *arena, void *items, size_t count, size_t size) {
  if (count & (count - 1)) return items;
  char *grown = arena_alloc(arena, count ? count * 2 : 1, size);
  if (count) memcpy(grown, items, count * size);
  return grown;
}

static void add_node(Graph *graph, Node *node) {
  if (graph->node_count == graph->node_capacity) {
    const size_t capacity = graph->node_capacity ? graph->node_capacity * 2 : 64;
    Node **nodes = arena_array(graph->arena, capacity, Node *);
    if (graph->node_count) memcpy(nodes, graph->nodes, graph->node_count * sizeof(Node *));
    graph->nodes = nodes;
    graph->node_capacity = capacity;
  }
  graph->nodes[graph->node_count++] = node;
}

/* --- building -------------------------------------------------------------------------------------- */

Graph *graph_create(Arena *arena, const char *name) {
  Graph *graph = arena_new(arena, Graph);
  graph->arena = arena;
  graph->name = name ? arena_string(arena, name) : NULL;
  graph->max_batch = graph->min_batch = 1;
  return graph;
}

Node *node_create(Graph *graph, OpCode op, const char *name, Node *const *inputs, int32_t input_count) {
  Node *node = arena_new(graph->arena, Node);
  node->id = graph->next_id++;
  node->op = op;
  node->name = name ? arena_string(graph->arena, name) : NULL;
  node->inputs = arena_array(graph->arena, (size_t)input_count, Node *);
  if (input_count) memcpy(node->inputs, inputs, (size_t)input_count * sizeof(Node *));
  node->input_count = node->op_input_count = input_count;
  node->attrs = attrs_default();
  node->layer = LAYER_NONE;
  return node;
}

Node *graph_add(Graph *graph, OpCode op, const char *name, Node *const *inputs, int32_t input_count) {
  Node *node = node_create(graph, op, name, inputs, input_count);
  add_node(graph, node);
  return node;
}

Node *node_clone(Graph *graph, const Node *node) {
  Node *clone = arena_copy(graph->arena, node, sizeof *node);
  clone->id = graph->next_id++;
  clone->inputs = arena_copy(graph->arena, node->inputs, (size_t)node->input_count * sizeof(Node *));
  clone->epilogue = arena_copy(graph->arena, node->epilogue, (size_t)node->epilogue_count * sizeof(EpilogueStep));
  return clone;
}

Node *graph_add_input(Graph *graph, const char *name, DataType dtype, Shape shape) {
  Node *node = graph_add(graph, OP_INPUT, name, NULL, 0);
  node->dtype = dtype;
  node->shape = shape;
  node->port = (int32_t)graph->input_count;
  graph->inputs = grow_ports(graph->arena, graph->inputs, graph->input_count, sizeof *graph->inputs);
  graph->inputs[graph->input_count++] = (GraphInput){.name = node->name, .dtype = dtype, .shape = shape, .node = node};
  return node;
}

Node *graph_add_parameter(Graph *graph, const Parameter *parameter) {
  Node *node = graph_add(graph, OP_PARAMETER, parameter->name, NULL, 0);
  node->dtype = parameter->dtype;
  node->shape = parameter->shape;
  node->layer = parameter->layer;
  node->location = parameter->location;
  node->port = (int32_t)graph->parameter_count;
  graph->parameters = grow_ports(graph->arena, graph->parameters, graph->parameter_count, sizeof *graph->parameters);
  Parameter *added = &graph->parameters[graph->parameter_count++];
  *added = *parameter;
  added->name = node->name;
  added->node = node;
  return node;
}

void graph_add_output(Graph *graph, const char *name, Node *node) {
  graph->outputs = grow_ports(graph->arena, graph->outputs, graph->output_count, sizeof *graph->outputs);
  graph->outputs[graph->output_count++] = (GraphOutput){.name = arena_string(graph->arena, name), .node = node};
}

void node_add_epilogue(Graph *graph, Node *node, OpCode op, const Attrs *attrs, Node *operand, bool reversed) {
  EpilogueStep *steps = arena_array(graph->arena, (size_t)node->epilogue_count + 1, EpilogueStep);
  if (node->epilogue_count) memcpy(steps, node->epilogue, (size_t)node->epilogue_count * sizeof *steps);
  EpilogueStep *step = &steps[node->epilogue_count++];
  *step = (EpilogueStep){.op = op, .attrs = attrs ? *attrs : attrs_default(), .operand = -1, .reversed = reversed};
  node->epilogue = steps;
  if (!operand) return;
  Node **inputs = arena_array(graph->arena, (size_t)node->input_count + 1, Node *);
  if (node->input_count) memcpy(inputs, node->inputs, (size_t)node->input_count * sizeof *inputs);
  inputs[node->input_count] = operand;
  step->operand = node->input_count++;
  node->inputs = inputs;
}

bool node_has_kernel(const Node *node) {
  return node->op != OP_INPUT && node->op != OP_PARAMETER && !node->filled && !node->hosted &&
         (!node->alias || node->placed);
}

Node *graph_find_result(const Graph *graph, const char *name) {
  for (size_t i = 0; i < graph->output_count; i++) {
    if (strcmp(graph->outputs[i].name, name) == 0) return graph->outputs[i].node;
  }
  return graph_find_value(graph, name);
}

static bool check_result_name(const Graph *graph, const GradientRequest *request, const char *name, Diag *diag) {
  if (graph_find_result(graph, name)) return true;
  const char **names = arena_array(graph->arena, graph->value_name_count, const char *);
  for (size_t i = 0; i < graph->value_name_count; i++) names[i] = graph->value_names[i].name;
  const char *near = nearest_word(name, names, graph->value_name_count);
  diag_error(diag, request->location, "gradient of '%s': the model has no value '%s'%s%s%s", request->of, name,
             near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
  return false;
}

bool graph_request_gradient(Graph *graph, const GradientRequest *request, Diag *diag) {
  bool valid = check_result_name(graph, request, request->of, diag);
  if (request->wrt_count == 0) {
    diag_error(diag, request->location, "gradient of '%s': with respect to what is missing", request->of);
    valid = false;
  }
  GradientRequest added = *request;
  added.of = arena_string(graph->arena, request->of);
  added.input = request->input ? arena_string(graph->arena, request->input) : NULL;
  added.wrt = arena_array(graph->arena, request->wrt_count, const char *);
  for (size_t i = 0; i < request->wrt_count; i++) {
    valid = check_result_name(graph, request, request->wrt[i], diag) && valid;
    added.wrt[i] = arena_string(graph->arena, request->wrt[i]);
  }
  if (!valid) return false;
  graph->gradients = grow_ports(graph->arena, graph->gradients, graph->gradient_count, sizeof *graph->gradients);
  graph->gradients[graph->gradient_count++] = added;
  return true;
}

void node_decide(Graph *graph, Node *node, const char *pass, const char *chosen, const char *rejected,
                 const char *reason) {
  Decision *decision = arena_new(graph->arena, Decision);
  *decision = (Decision){.pass = pass,
                         .chosen = chosen,
                         .rejected = rejected,
                         .reason = reason,
                         .cost = (double)NAN,
                         .rejected_cost = (double)NAN};
  Decision **last = &node->decisions;
  while (*last) last = &(*last)->next;
  *last = decision;
}

/* The layout of its filters stands for each of the algorithms. */
static const LayoutKind winograd_layouts[] = {[ALGORITHM_WINOGRAD23] = LAYOUT_FILTER_WINOGRAD2,
                                              [ALGORITHM_WINOGRAD43] = LAYOUT_FILTER_WINOGRAD4,
                                              [ALGORITHM_WINOGRAD34] = LAYOUT_FILTER_PHASES};

WinogradForm algorithm_winograd_form(Algorithm algorithm) {
  const bool known = (unsigned)algorithm < sizeof winograd_layouts / sizeof winograd_layouts[0];
  return winograd_form(known ? winograd_layouts[algorithm] : LAYOUT_PLAIN);
}

Algorithm winograd_algorithm(WinogradForm form) {
  for (Algorithm algorithm = ALGORITHM_WINOGRAD23; algorithm < ALGORITHM_WINOGRAD34; algorithm++)
    if (algorithm_winograd_form(algorithm).outputs == form.outputs) return algorithm;
  return ALGORITHM_WINOGRAD34;
}

const char *algorithm_name(Algorithm algorithm) {
  static const char *const names[] = {
      [ALGORITHM_DEFAULT] = "default",       [ALGORITHM_DIRECT] = "direct", [ALGORITHM_DEPTHWISE] = "depthwise",
      [ALGORITHM_REFERENCE] = "reference",   [ALGORITHM_PACKED] = "packed", [ALGORITHM_WINOGRAD23] = "winograd23",
      [ALGORITHM_WINOGRAD43] = "winograd43", [ALGORITHM_WINOGRAD34] = "winograd34", [ALGORITHM_TILES] = "tiles",
  };
  return (unsigned)algorithm < sizeof names / sizeof names[0] ? names[algorithm] : NULL;
}

/* --- looking up ------------------------------------------------------------------------------------ */

Node *graph_find_value(const Graph *graph, const char *name) {
  for (size_t i = 0; i < graph->value_name_count; i++) {
    if (strcmp(graph->value_names[i].name, name) == 0 && graph->value_names[i].node) return graph->value_names[i].node;
  }
  for (size_t i = 0; i < graph->layer_count; i++) {
    if (strcmp(graph->layers[i].name, name) == 0 && graph->layers[i].node) return graph->layers[i].node;
  }
  for (size_t i = 0; i < graph->node_count; i++) {
    if (graph->nodes[i]->name && strcmp(graph->nodes[i]->name, name) == 0) return graph->nodes[i];
  }
  return NULL;
}

bool graph_set_input_shape(Graph *graph, const char *input, const Shape *shape, Diag *diag) {
  GraphInput *port = NULL;
  for (size_t i = 0; i < graph->input_count && !port; i++) {
    if (strcmp(graph->inputs[i].name, input) == 0) port = &graph->inputs[i];
  }
  if (!port) {
    const char **names = arena_array(graph->arena, graph->input_count, const char *);
    for (size_t i = 0; i < graph->input_count; i++) names[i] = graph->inputs[i].name;
    const char *near = nearest_word(input, names, graph->input_count);
    if (!near && graph->input_count == 1) near = names[0];
    diag_error(diag, (Location){.file = graph->file}, "the model has no input '%s'%s%s%s", input,
               near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    return false;
  }
  if (shape->rank != port->shape.rank) {
    diag_error(diag, port->location, "input '%s' has %d dimensions, the given shape has %d", input, port->shape.rank,
               shape->rank);
    return false;
  }
  for (int32_t i = 0; i < shape->rank; i++) {
    if (shape->dims[i] > 0 || (i == 0 && shape->dims[i] == DIM_BATCH)) continue;
    diag_error(diag, port->location, "input '%s': dimension %d of the given shape must be at least 1%s, found %lld",
               input, i, i == 0 ? " or N" : "", (long long)shape->dims[i]);
    return false;
  }
  port->shape = *shape;
  port->node->shape = *shape;
  return true;
}

/* --- checking -------------------------------------------------------------------------------------- */

bool node_error(Diag *diag, const Node *node, const char *format, ...) {
  char message[2048];
  va_list arguments;
  va_start(arguments, format);
  if (format_v(message, sizeof message, format, arguments) < 0) message[0] = '\0';
  va_end(arguments);
  if (node->path) {
    diag_error(diag, node->location, "%s: %s", node->path, message);
  } else if (node->name) {
    diag_error(diag, node->location, "'%s': %s", node->name, message);
  } else {
    diag_error(diag, node->location, "%%%u (%s): %s", node->id, op_info(node->op)->name, message);
  }
  return false;
}

/* An operand of an epilogue may repeat along dimensions of the node's value, but never enlarge it. */
static bool epilogue_operand_fits(const Shape *operand, const Shape *value) {
  Shape result;
  return infer_broadcast(value, operand, &result) && shape_equal(&result, value);
}

bool node_check_epilogue(const Node *node, Diag *diag) {
  int32_t next_operand = node->op_input_count;
  for (int32_t i = 0; i < node->epilogue_count; i++) {
    const EpilogueStep *step = &node->epilogue[i];
    if (!op_is_elementwise(step->op)) {
      return node_error(diag, node, "epilogue step %d: %s is not an element-wise operation", i,
                        op_info(step->op)->name);
    }
    const char *name = op_info(step->op)->name;
    if (op_info(step->op)->kind == OP_KIND_UNARY) {
      if (step->operand == -1 && !step->reversed) continue;
      return node_error(diag, node, "epilogue step %d: %s takes no operand, found input %d%s", i, name, step->operand,
                        step->reversed ? ", reversed" : "");
    }
    if (step->operand != next_operand || step->operand >= node->input_count) {
      return node_error(diag, node, "epilogue step %d: the operand of %s must be input %d of %d, found %d", i, name,
                        next_operand, node->input_count, step->operand);
    }
    const Node *operand = node->inputs[next_operand++];
    if (operand->dtype != node->dtype) {
      return node_error(diag, node, "epilogue step %d: %s expects %s values, found %s", i, name,
                        data_type_name(node->dtype), data_type_name(operand->dtype));
    }
    if (!epilogue_operand_fits(&operand->shape, &node->shape)) {
      return node_error(diag, node, "epilogue step %d: operand %s of %s does not broadcast to %s", i,
                        shape_text(&operand->shape).text, name, shape_text(&node->shape).text);
    }
  }
  if (node->epilogue_count && node->dtype != DTYPE_F32) {
    return node_error(diag, node, "an epilogue needs f32 values, found %s", data_type_name(node->dtype));
  }
  if (next_operand != node->input_count) {
    return node_error(diag, node, "the epilogue uses %d operands, but the node has %d inputs besides its own %d",
                      next_operand - node->op_input_count, node->input_count - node->op_input_count,
                      node->op_input_count);
  }
  return true;
}

bool node_infer(Node *node, Diag *diag) {
  for (int32_t i = 0; i < node->input_count; i++) {
    if (!node->inputs[i]) return node_error(diag, node, "input %d is missing", i);
  }
  const OpInfo *info = op_info(node->op);
  return (!info->infer || info->infer(node, diag)) && node_check_epilogue(node, diag);
}

bool graph_infer(Graph *graph, Diag *diag) {
  bool *failed = arena_array(graph->arena, graph->next_id, bool);
  bool valid = true;
  for (size_t i = 0; i < graph->node_count && !diag_full(diag); i++) {
    Node *node = graph->nodes[i];
    bool known = true;
    for (int32_t k = 0; k < node->input_count && known; k++) known = !node->inputs[k] || !failed[node->inputs[k]->id];
    failed[node->id] = !known || !node_infer(node, diag);
    valid = valid && !failed[node->id];
  }
  return valid;
}
