#include <string.h>

#include "base/checked.h"
#include "train_step.h"

/* --- layout ------------------------------------------------------------------------------------------ */

/* Decay is for weights: biases and the parameters of batch norms have one dimension. */
static bool is_decayed(const Shape *shape) { return shape->rank > 1; }

static int64_t state_rows(const TrainRequest *request) {
  return (request->optimizer == OPTIMIZER_ADAM ? 3 : 2) + request->accumulate;
}

static bool add_slots(TrainState *state, int32_t group, bool decayed) {
  Graph *graph = state->graph;
  for (size_t i = 0; i < state->trained_count; i++) {
    const Parameter *parameter = &graph->parameters[state->targets[i]->port];
    if (graph_layer_group(graph, parameter->layer) != group || is_decayed(&parameter->shape) != decayed) continue;
    int64_t end;
    if (!checked_add(state->row, shape_elements_per_image(&parameter->shape) + STATE_ALIGNMENT - 1, &end)) return false;
    state->order[graph->slot_count] = i;
    graph->slots[graph->slot_count++] = (StateSlot){parameter->name, parameter->shape, state->row, group, decayed};
    state->slot_of[parameter->node->id] = true;
    state->row = end / STATE_ALIGNMENT * STATE_ALIGNMENT;
  }
  return true;
}

bool train_lay_out_state(TrainState *state) {
  Graph *graph = state->graph;
  size_t capacity = 1; /* as arrays of a graph grow */
  while (capacity < state->trained_count) capacity *= 2;
  graph->slots = arena_array(graph->arena, capacity, StateSlot);
  state->order = arena_array(state->scratch, state->trained_count, size_t);
  state->slot_of = arena_array(state->scratch, (size_t)graph->next_id + 1, bool); /* `state` is added below */
  state->segments.count = state->decayed.count = graph->group_rows;
  bool fits = true;
  for (int32_t group = 0; group < graph->group_rows; group++) {
    fits = fits && add_slots(state, group, true);
    state->decayed.values[group] = state->row;
    fits = fits && add_slots(state, group, false);
    state->segments.values[group] = state->row;
  }
  int64_t total;
  const int64_t rows = state_rows(state->request);
  if (!fits || !checked_mul(state->row, rows * 4, &total)) {
    diag_error(state->diag, (Location){.file = graph->file}, "training: the state exceeds 2^63 - 1 bytes");
    return false;
  }
  for (size_t i = 0; i < graph->parameter_count; i++) {
    if (strcmp(graph->parameters[i].name, "state") != 0) continue;
    diag_error(state->diag, graph->parameters[i].location,
               "training: the step needs the name 'state', which a parameter has");
    return false;
  }
  const bool taken = graph_find_value(graph, "state") != NULL;
  const Parameter parameter = {
      .name = "state", .dtype = DTYPE_F32, .shape = {2, {rows, state->row}}, .layer = LAYER_NONE, .init = INIT_ZERO};
  state->state = graph_add_parameter(graph, &parameter);
  if (taken) state->state->name = NULL;
  node_decide(graph, state->state, "train",
              arena_format(graph->arena, "%zu parameters of %lld elements in one state of %lld rows", graph->slot_count,
                           (long long)state->row, (long long)rows),
              "a buffer for each", "One kernel updates them all; the forward pass reads them where they lie.");
  return true;
}

/* --- parts of the state ------------------------------------------------------------------------------ */

static Node *take(Rewrite *rewrite, Node *flat, int64_t start, int64_t length, const Shape *shape, const Node *origin) {
  Attrs attrs = attrs_default();
  attrs.dim = 0;
  attrs.start = start;
  attrs.length = length;
  Node *part = rewrite_make(rewrite, OP_SLICE, &attrs, &flat, 1, origin);
  return part ? rewrite_reshape(rewrite, part, shape, origin) : NULL;
}

bool train_slice_parameters(TrainState *state, Rewrite *rewrite) {
  Graph *graph = state->graph;
  const Shape all = {1, {state->state->shape.dims[0] * state->row}};
  state->flat = rewrite_reshape(rewrite, state->state, &all, state->state);
  if (!state->flat) return false;
  for (size_t s = 0; s < graph->slot_count; s++) {
    const StateSlot *slot = &graph->slots[s];
    Node *parameter = state->targets[state->order[s]];
    const int64_t length = shape_elements_per_image(&slot->shape);
    Node *part = take(rewrite, state->flat, slot->offset, length, &slot->shape, parameter);
    if (!part) return false;
    part->name = parameter->name;
    node_inherit_decisions(part, parameter);
    rewrite_replace(rewrite, parameter, part);
  }
  return true;
}

static Node *make_zeros(TrainState *state, Rewrite *rewrite, int64_t count) {
  Attrs attrs = attrs_default();
  attrs.shape.count = 1;
  attrs.shape.values[0] = count;
  return rewrite_make(rewrite, OP_FULL, &attrs, NULL, 0, state->state);
}

/* The gradients in the state's order, zeros between them. */
static Node *pack_gradients(TrainState *state, Rewrite *rewrite) {
  const Graph *graph = state->graph;
  Node **pieces = arena_array(state->scratch, 2 * graph->slot_count, Node *);
  int32_t count = 0;
  for (size_t s = 0; s < graph->slot_count; s++) {
    const int64_t next = s + 1 < graph->slot_count ? graph->slots[s + 1].offset : state->row;
    Node *gradient = state->gradients[state->order[s]];
    const int64_t length = gradient ? shape_elements_per_image(&graph->slots[s].shape) : 0;
    if (gradient) pieces[count++] = gradient;
    if (graph->slots[s].offset + length == next) continue;
    pieces[count] = make_zeros(state, rewrite, next - graph->slots[s].offset - length);
    if (!pieces[count++]) return NULL;
  }
  return rewrite_make(rewrite, OP_PACK, NULL, pieces, count, state->state);
}

/* sqrt(Σ g²) · scale */
static Node *measure_norm(TrainState *state, Rewrite *rewrite, Node *gradients) {
  Attrs attrs = attrs_default();
  attrs.dims.count = 1;
  Node *squares = rewrite_make(rewrite, OP_SUM_SQUARES, NULL, &gradients, 1, state->state);
  Node *sum = squares ? rewrite_make(rewrite, OP_SUM, &attrs, &squares, 1, state->state) : NULL;
  Node *root = sum ? rewrite_make(rewrite, OP_SQRT, NULL, &sum, 1, state->state) : NULL;
  const Shape all = {1, {state->hyper->shape.dims[0] * HYPER_COUNT}}, scalar = {0};
  Node *hyper = root ? rewrite_reshape(rewrite, state->hyper, &all, state->state) : NULL;
  Node *scale = hyper ? take(rewrite, hyper, HYPER_GRADIENT_SCALE, 1, &scalar, state->state) : NULL;
  return scale ? rewrite_make(rewrite, OP_MUL, NULL, (Node *[]){root, scale}, 2, state->state) : NULL;
}

bool train_update_state(TrainState *state, Rewrite *rewrite) {
  const TrainRequest *request = state->request;
  Node *gradients = pack_gradients(state, rewrite);
  if (!gradients) return false;
  if (request->accumulate) {
    const Shape row = {1, {state->row}};
    Node *sum = take(rewrite, state->flat, (state_rows(request) - 1) * state->row, state->row, &row, state->state);
    gradients = sum ? rewrite_make(rewrite, OP_ADD, NULL, (Node *[]){gradients, sum}, 2, state->state) : NULL;
    if (!gradients) return false;
  }
  if (request->clip) {
    state->norm = measure_norm(state, rewrite, gradients);
    if (!state->norm) return false;
  }
  Attrs attrs = attrs_default();
  attrs.segments = state->segments;
  attrs.decayed = state->decayed;
  attrs.nesterov = request->nesterov;
  attrs.accumulate = request->accumulate;
  Node *inputs[] = {state->state, gradients, state->hyper, state->loss, state->norm};
  Node *step = rewrite_make(rewrite, request->optimizer == OPTIMIZER_ADAM ? OP_ADAM_STEP : OP_SGD_STEP, &attrs, inputs,
                            state->norm ? 5 : 4, state->state);
  if (!step) return false;
  graph_add_update(state->graph, state->state->port, step);
  return true;
}

void train_drop_parameters(TrainState *state) {
  Graph *graph = state->graph;
  bool *present = arena_array(state->scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->node_count; i++) present[graph->nodes[i]->id] = true;
  const bool *updated = graph_mark_updated(graph, state->scratch);
  int32_t *moved = arena_array(state->scratch, graph->parameter_count, int32_t);
  Parameter *kept = arena_array(state->scratch, graph->parameter_count, Parameter);
  size_t count = 0;
  for (int last = 0; last < 3; last++) {
    for (size_t i = 0; i < graph->parameter_count; i++) {
      const Node *node = graph->parameters[i].node;
      if (!node || !present[node->id]) continue;
      if (last != (node == state->state ? 0 : updated[node->id] ? 1 : 2)) continue;
      moved[i] = (int32_t)count;
      kept[count] = graph->parameters[i];
      kept[count].node->port = (int32_t)count;
      count++;
    }
  }
  memcpy(graph->parameters, kept, count * sizeof *kept);
  graph->parameter_count = count;
  for (size_t i = 0; i < graph->update_count; i++) graph->updates[i].parameter = moved[graph->updates[i].parameter];
}
