/* The sweep that differentiates a graph, and what the rules build with. */
#include "grad.h"

/* --- the sweep ------------------------------------------------------------------------------------- */

/* By id: whether a gradient has to be known. `targets` and what floats of theirs flow into. */
static bool *mark_needed(const Graph *graph, Node *const *targets, size_t count, Arena *scratch) {
  bool *needed = arena_array(scratch, graph->next_id, bool);
  for (size_t i = 0; i < count; i++) needed[targets[i]->id] = true;
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (node->dtype != DTYPE_F32) continue;
    for (int32_t k = 0; k < node->op_input_count; k++) needed[node->id] |= needed[node->inputs[k]->id];
  }
  return needed;
}

/* Runs the rule of a node and adds what it gives to the gradients of the node's inputs. */
static bool differentiate_node(GradContext *context, Node *node, Node **gradients, Arena *scratch) {
  bool any = false;
  for (int32_t k = 0; k < node->op_input_count; k++) any = any || context->needed[node->inputs[k]->id];
  if (!any) return true;
  if (node->epilogue_count) {
    return node_error(context->diag, node, "gradients have to be built before operations are fused");
  }
  Node **parts = arena_array(scratch, (size_t)node->op_input_count, Node *);
  context->origin = node;
  if (!op_info(node->op)->grad(context, node, gradients[node->id], parts) || context->failed) return false;
  if (context->inspect) context->inspect(context->observer, context, node, parts);
  for (int32_t k = 0; k < node->op_input_count; k++) {
    if (!parts[k]) continue;
    Node **sum = &gradients[node->inputs[k]->id];
    *sum = *sum ? gradient_binary(context, OP_ADD, *sum, parts[k]) : parts[k];
  }
  return !context->failed;
}

static const char *value_label(const Node *node, Arena *scratch) {
  return node->name ? arena_format(scratch, "'%s'", node->name) : arena_format(scratch, "%%%u", node->id);
}

static bool check_targets(const Node *of, Node *const *targets, size_t count, Diag *diag) {
  bool valid = true;
  for (size_t i = 0; i < count; i++) {
    if (targets[i]->dtype == DTYPE_F32) continue;
    valid = node_error(diag, targets[i], "holds %s values; there are gradients with respect to f32 values only",
                       data_type_name(targets[i]->dtype));
  }
  if (of->dtype == DTYPE_F32) return valid;
  return node_error(diag, of, "holds %s values, which have no gradient; expected f32", data_type_name(of->dtype));
}

bool graph_differentiate(Graph *graph, Node *of, Node *seed, Node *const *targets, size_t count,
                         void (*inspect)(void *observer, GradContext *context, const Node *node, Node **gradients),
                         void *observer, Arena *scratch, Diag *diag, Node **out_gradients) {
  if (!check_targets(of, targets, count, diag)) return false;
  GradContext context = {.graph = graph,
                         .diag = diag,
                         .needed = mark_needed(graph, targets, count, scratch),
                         .inspect = inspect,
                         .observer = observer};
  Node **gradients = arena_array(scratch, graph->next_id, Node *);
  if (context.needed[of->id]) gradients[of->id] = seed;
  /* nodes in reverse order: when one is met, all its uses have been; new ones come behind */
  for (size_t i = graph->node_count; i-- > 0;) {
    Node *node = graph->nodes[i];
    if (gradients[node->id] && !differentiate_node(&context, node, gradients, scratch)) return false;
  }
  bool valid = true;
  for (size_t i = 0; i < count; i++) {
    out_gradients[i] = gradients[targets[i]->id];
    if (out_gradients[i]) continue;
    valid = node_error(diag, of, "value %s does not influence it: there is no gradient with respect to that",
                       value_label(targets[i], scratch));
  }
  return valid;
}

/* --- builders -------------------------------------------------------------------------------------- */

bool gradient_needed(const GradContext *context, const Node *node, int32_t input) {
  return input < node->op_input_count && context->needed[node->inputs[input]->id];
}

bool gradient_refuse(GradContext *context, const Node *node, const char *reason) {
  context->failed = true;
  return node_error(context->diag, node, "%s has no gradient: %s", op_info(node->op)->name, reason);
}

Node *gradient_make(GradContext *context, OpCode op, const Attrs *attrs, Node *const *inputs, int32_t input_count) {
  for (int32_t i = 0; i < input_count; i++) {
    if (!inputs[i]) return NULL;
  }
  Node *node = graph_add(context->graph, op, NULL, inputs, input_count);
  if (attrs) node->attrs = *attrs;
  node->location = context->origin->location;
  node->path = context->origin->path;
  if (node_infer(node, context->diag)) return node;
  context->failed = true;
  return NULL;
}

Node *gradient_unary(GradContext *context, OpCode op, Node *a) { return gradient_make(context, op, NULL, &a, 1); }

Node *gradient_binary(GradContext *context, OpCode op, Node *a, Node *b) {
  return gradient_make(context, op, NULL, (Node *const[]){a, b}, 2);
}

static void set_shape(Attrs *attrs, const Shape *shape) {
  attrs->shape.count = shape->rank;
  for (int32_t d = 0; d < shape->rank; d++) attrs->shape.values[d] = shape->dims[d];
}

Node *gradient_reshape(GradContext *context, Node *value, const Shape *shape) {
  if (!value || shape_equal(&value->shape, shape)) return value;
  Attrs attrs = attrs_default();
  set_shape(&attrs, shape);
  return gradient_make(context, OP_RESHAPE, &attrs, &value, 1);
}

Node *gradient_slice(GradContext *context, Node *value, int32_t dim, int64_t start, int64_t length) {
  if (!value || value->shape.dims[dim] == length) return value;
  Attrs attrs = attrs_default();
  attrs.dim = dim;
  attrs.start = start;
  attrs.length = length;
  return gradient_make(context, OP_SLICE, &attrs, &value, 1);
}

Node *gradient_sum(GradContext *context, Node *value, const bool *dims) {
  if (!value) return NULL;
  Attrs attrs = attrs_default();
  for (int32_t d = 0; d < value->shape.rank; d++) {
    if (dims[d]) attrs.dims.values[attrs.dims.count++] = d;
  }
  return attrs.dims.count ? gradient_make(context, OP_SUM, &attrs, &value, 1) : value;
}

Node *gradient_unbroadcast(GradContext *context, Node *value, const Shape *shape) {
  if (!value) return NULL;
  bool repeated[SHAPE_MAX_RANK] = {false};
  const int32_t shift = value->shape.rank - shape->rank;
  for (int32_t d = 0; d < value->shape.rank; d++) {
    repeated[d] = d < shift || shape->dims[d - shift] != value->shape.dims[d];
  }
  return gradient_reshape(context, gradient_sum(context, value, repeated), shape);
}

Node *gradient_expand(GradContext *context, OpCode op, Node *value, const Shape *shape) {
  if (!value || shape_equal(&value->shape, shape)) return value;
  Attrs attrs = attrs_default();
  set_shape(&attrs, shape);
  return gradient_make(context, op, &attrs, &value, 1);
}

Node *gradient_per_channel(GradContext *context, Node *vector, int32_t rank) {
  if (!vector) return NULL;
  Shape shape = {.rank = rank - 1, .dims = {vector->shape.dims[0]}};
  for (int32_t d = 1; d < shape.rank; d++) shape.dims[d] = 1;
  return gradient_reshape(context, vector, &shape);
}

Node *gradient_sum_channels(GradContext *context, Node *value) {
  static const bool dims[SHAPE_MAX_RANK] = {true, false, true, true, true, true};
  return gradient_sum(context, value, dims);
}
