/* train: turns the model into a training step.
 *
 *   before: train cross_entropy of logits sgd
 *           %w : parameter f32[8,1,5,5], …, %logits = conv2d …
 *   after:  input %target : i64[N], input %hyper : f32[1,16], [input %rng : i64[2]]
 *           parameter %state : f32[2,P]
 *           %flat = reshape %state;  %w = reshape (slice %flat)         parts of the state's row 0
 *           %loss = cross_entropy %logits, %target                      the only output of the model's own
 *           … gradients, by ir/grad.h, with respect to all parameters that are trained …
 *           %g = pack %grad.w, …;  %new = sgd_step %state, %g, %hyper, %loss;  update state = %new
 *
 * A row of the state holds the parameters group by group, in each those that are decayed first, each from a multiple of
 * STATE_ALIGNMENT elements on. `strides` makes the slices views and lets the gradients' kernels write straight into
 * %g; `memory` places updates in the parameter itself.
 *
 * Batch norms that are trained use the statistics of the batch: batch_stats, whose parts batch_norm reads, and an
 * update of the running statistics. Others, and dropout of inference, stay as they are. Activation hooks stay; gradient
 * hooks become gradients of the loss.
 *
 * Requires: shapes, hooks, no epilogues. Guarantees: outputs are the loss, with `clip` grad_norm, and hooks; trained
 * parameters are slots of the state and no parameters any more; every reader of an updated parameter stands before its
 * update; the name ends in "_train", so that a step and the model can be linked into one program. Without a request
 * nothing changes. */
#include "train_step.h"

#include <string.h>

#include "base/checked.h"
#include "grad.h"

static bool train_error(const TrainState *state, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool train_error(const TrainState *state, const char *format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  if (format_v(message, sizeof message, format, arguments) < 0) message[0] = '\0';
  va_end(arguments);
  diag_error(state->diag, (Location){.file = state->graph->file}, "training: %s", message);
  return false;
}

/* --- inputs and loss --------------------------------------------------------------------------------- */

static Node *add_input(TrainState *state, const char *name, DataType dtype, Shape shape) {
  if (graph_find_result(state->graph, name)) {
    train_error(state, "the step needs an input '%s', but the model has a value of that name", name);
    return NULL;
  }
  return graph_add_input(state->graph, name, dtype, shape);
}

static bool has_dropout(const Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_DROPOUT) return true;
  return false;
}

static Shape target_shape(const TrainState *state, DataType *out_dtype) {
  Shape shape = state->of->shape;
  *out_dtype = DTYPE_F32;
  if (state->request->loss != OP_CROSS_ENTROPY) return shape;
  *out_dtype = DTYPE_I64;
  if (shape.rank > 1) shape.rank = 1;
  return shape;
}

static bool add_inputs(TrainState *state) {
  Graph *graph = state->graph;
  DataType dtype;
  Shape target = target_shape(state, &dtype);
  if (state->of->dtype != DTYPE_F32)
    return train_error(state, "'%s' holds %s values, the loss expects f32", state->request->of,
                       data_type_name(state->of->dtype));
  const int32_t groups = graph->group_count > 0 ? (int32_t)graph->group_count : 1;
  if (groups > TRAIN_MAX_GROUPS)
    return train_error(state, "at most %d groups can be trained, the model has %d", TRAIN_MAX_GROUPS, groups);
  state->target = add_input(state, "target", dtype, target);
  state->hyper = add_input(state, "hyper", DTYPE_F32, (Shape){2, {groups, HYPER_COUNT}});
  if (!state->target || !state->hyper) return false;
  graph->group_rows = groups;
  if (!has_dropout(graph)) return true;
  state->rng = add_input(state, "rng", DTYPE_I64, (Shape){1, {2}});
  return state->rng != NULL;
}

/* Dropout drops, each with a stream of its own. */
static bool activate_dropout(TrainState *state) {
  int64_t stream = 0;
  for (size_t i = 0; i < state->graph->node_count; i++) {
    Node *node = state->graph->nodes[i];
    if (node->op != OP_DROPOUT || node->op_input_count != 1) continue;
    Attrs attrs = node->attrs;
    attrs.stream = stream++;
    node_become(state->graph, node, OP_DROPOUT, &attrs, (Node *[]){node->inputs[0], state->rng}, 2);
  }
  return true;
}

static bool is_trained(const TrainState *state, const Node *node) {
  return node->op == OP_PARAMETER && state->graph->parameters[node->port].trainable;
}

/* Batch norms whose weights are trained; for their gradients they count as `training`. */
static void mark_batch_norms(TrainState *state) {
  state->batch_norm = arena_array(state->scratch, state->graph->next_id, bool);
  for (size_t i = 0; i < state->graph->node_count; i++) {
    Node *node = state->graph->nodes[i];
    if (node->op != OP_BATCH_NORM || !is_trained(state, node->inputs[1])) continue;
    state->batch_norm[node->id] = node->attrs.training = true;
  }
}

/* By id: the loss depends on the node. */
static bool *mark_influence(const Graph *graph, const Node *loss, Arena *scratch) {
  bool *influence = arena_array(scratch, graph->next_id, bool);
  influence[loss->id] = true;
  for (size_t i = graph->node_count; i-- > 0;) {
    const Node *node = graph->nodes[i];
    for (int32_t k = 0; influence[node->id] && k < node->input_count; k++) influence[node->inputs[k]->id] = true;
  }
  return influence;
}

/* A batch norm of the batch takes away what a bias before it adds, so that its gradient is a sum that cancels: exactly
 * 0, which rounding would make noise that Adam scales up. */
static void mark_cancelled(TrainState *state) {
  const Graph *graph = state->graph;
  const bool *influence = mark_influence(graph, state->loss, state->scratch);
  uint32_t *uses = arena_array(state->scratch, graph->next_id, uint32_t); /* by what the loss depends on */
  for (size_t i = 0; i < graph->node_count; i++)
    for (int32_t k = 0; influence[graph->nodes[i]->id] && k < graph->nodes[i]->input_count; k++)
      uses[graph->nodes[i]->inputs[k]->id]++;
  state->cancelled = arena_array(state->scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *norm = graph->nodes[i], *value = norm->input_count ? norm->inputs[0] : NULL;
    if (!value || norm->id >= state->norm_ids || !state->batch_norm[norm->id] || uses[value->id] != 1 ||
        value->op_input_count < 3)
      continue;
    if (value->op != OP_CONV2D && value->op != OP_CONV_TRANSPOSE2D && value->op != OP_LINEAR) continue;
    Node *bias = value->inputs[2];
    if (!is_trained(state, bias) || uses[bias->id] != 1) continue;
    state->cancelled[bias->id] = true;
    node_decide(state->graph, bias, "train", "gradient 0", "a sum over the batch",
                "The batch norm behind it takes the mean away.");
  }
}

static bool add_loss(TrainState *state) {
  Node *inputs[] = {state->of, state->target};
  const char *name = graph_find_value(state->graph, "loss") ? NULL : "loss";
  state->loss = graph_add(state->graph, state->request->loss, name, inputs, 2);
  state->loss->location = state->of->location;
  return node_infer(state->loss, state->diag);
}

/* --- gradients --------------------------------------------------------------------------------------- */

/* The trained parameters, in graph order, then the values of gradient hooks. */
static bool collect_targets(TrainState *state) {
  Graph *graph = state->graph;
  const bool *influence = mark_influence(graph, state->loss, state->scratch);
  size_t hooked = 0;
  for (size_t i = 0; i < graph->gradient_count; i++) hooked += graph->gradients[i].wrt_count;
  state->targets = arena_array(state->scratch, graph->parameter_count + hooked, Node *);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    Node *node = graph->parameters[i].node;
    if (!node || !graph->parameters[i].trainable || !influence[node->id]) continue;
    if (graph->parameters[i].dtype != DTYPE_F32)
      return train_error(state, "parameter '%s' holds %s values, only f32 can be trained", graph->parameters[i].name,
                         data_type_name(graph->parameters[i].dtype));
    state->targets[state->trained_count++] = node;
  }
  if (state->trained_count == 0)
    return train_error(state, "nothing to train: '%s' depends on no parameter that is not frozen", state->request->of);
  state->target_count = state->trained_count;
  for (size_t i = 0; i < graph->gradient_count; i++) {
    const GradientRequest *request = &graph->gradients[i];
    if (!request->hook)
      return train_error(state, "gradients of '%s' cannot be asked for in a training step; use a gradient hook",
                         request->of);
    for (size_t k = 0; k < request->wrt_count; k++) {
      Node *node = graph_find_result(graph, request->wrt[k]);
      if (!node) return train_error(state, "the model has no value '%s' to hook", request->wrt[k]);
      state->targets[state->target_count++] = node;
    }
  }
  return true;
}

static bool add_gradients(TrainState *state) {
  Graph *graph = state->graph;
  Node *seed = graph_add(graph, OP_FULL, NULL, NULL, 0);
  seed->attrs.value = 1;
  if (!node_infer(seed, state->diag) || !collect_targets(state)) return false;
  const size_t count = state->target_count;
  state->gradients = arena_array(state->scratch, count, Node *);
  Node **targets = arena_array(state->scratch, count, Node *), **gradients = arena_array(state->scratch, count, Node *);
  size_t wanted = 0, at = 0;
  for (size_t i = 0; i < count; i++)
    if (i >= state->trained_count || !state->cancelled[state->targets[i]->id]) targets[wanted++] = state->targets[i];
  if (!graph_differentiate(graph, state->loss, seed, targets, wanted, NULL, NULL, state->scratch, state->diag,
                           gradients))
    return false;
  for (size_t i = 0; i < count && at < wanted; i++)
    if (state->targets[i] == targets[at]) state->gradients[i] = gradients[at++];
  return true;
}

/* The loss, the norm, then activation hooks, then gradients of hooks. */
static void set_outputs(TrainState *state) {
  Graph *graph = state->graph;
  const size_t hooks = graph->hook_output_count;
  GraphOutput *old = arena_array(state->scratch, hooks, GraphOutput);
  if (hooks) memcpy(old, graph->outputs + graph->output_count - hooks, hooks * sizeof *old);
  graph->output_count = graph->hook_output_count = 0;
  graph->outputs = NULL; /* another array: the old one has another capacity */
  graph_add_output(graph, "loss", state->loss);
  if (state->norm) graph_add_output(graph, "grad_norm", state->norm);
  for (size_t i = 0; i < hooks; i++) {
    graph_add_output(graph, old[i].name, old[i].node);
    graph->outputs[graph->output_count - 1].location = old[i].location;
  }
  size_t at = state->trained_count;
  for (size_t i = 0; i < graph->gradient_count; i++) {
    for (size_t k = 0; k < graph->gradients[i].wrt_count; k++, at++)
      graph_add_output(graph, arena_format(graph->arena, "hook.grad.%s", graph->gradients[i].wrt[k]),
                       state->gradients[at]);
  }
  graph->hook_output_count = hooks + at - state->trained_count;
  graph->gradient_count = 0;
}

/* --- batch norms ------------------------------------------------------------------------------------- */

/* A row of statistics [2, C] as [C]. */
static Node *take_row(Rewrite *rewrite, Node *stats, int64_t row, const Node *origin) {
  Attrs attrs = attrs_default();
  attrs.dim = 0;
  attrs.start = row;
  attrs.length = 1;
  Node *part = rewrite_make(rewrite, OP_SLICE, &attrs, &stats, 1, origin);
  const Shape channels = {1, {stats->shape.dims[1]}};
  return part ? rewrite_reshape(rewrite, part, &channels, origin) : NULL;
}

/* The batch norm reads the statistics of its input, which its gradient has measured too. */
static bool use_batch_statistics(TrainState *state, Rewrite *rewrite, Node *norm) {
  Node *x = norm->inputs[0], *stats = x->id < state->stats_ids ? state->stats[x->id] : NULL;
  if (!stats) {
    stats = rewrite_make(rewrite, OP_BATCH_STATS, NULL, &x, 1, norm);
    if (!stats) return false;
    stats->path = norm->path;
    if (x->id < state->stats_ids) state->stats[x->id] = stats;
  }
  Node *mean = take_row(rewrite, stats, 0, norm), *variance = mean ? take_row(rewrite, stats, 1, norm) : NULL;
  if (!variance) return false;
  state->updates[state->update_count++] = (BatchNorm){norm->inputs[3], stats, x, norm, 0};
  state->updates[state->update_count++] = (BatchNorm){norm->inputs[4], stats, x, norm, 1};
  norm->inputs[3] = mean;
  norm->inputs[4] = variance;
  norm->attrs.training = false;
  node_decide(state->graph, norm, "train", "statistics of the batch", "running statistics",
              "The batch norm is trained; the running ones are updated for inference.");
  return true;
}

/* Behind the loss: a batch whose loss is not finite leaves the running statistics as they are. */
static bool update_statistics(TrainState *state, Rewrite *rewrite) {
  for (size_t i = 0; i < state->update_count; i++) {
    const BatchNorm *update = &state->updates[i];
    if (update->running->op != OP_PARAMETER)
      return node_error(state->diag, update->norm, "running statistics to be updated must be parameters");
    Attrs attrs = attrs_default();
    attrs.momentum = update->norm->attrs.momentum;
    attrs.dim = update->row;
    Node *node = rewrite_make(rewrite, OP_BN_UPDATE, &attrs,
                              (Node *[]){update->running, update->stats, update->x, state->loss}, 4, update->norm);
    if (!node) return false;
    for (size_t k = 0; k < state->graph->update_count; k++)
      if (state->graph->updates[k].parameter == update->running->port)
        return node_error(state->diag, update->norm, "another batch norm updates the same running statistics");
    graph_add_update(state->graph, update->running->port, node);
  }
  return true;
}

/* --- the whole --------------------------------------------------------------------------------------- */

/* Sources first, then the parameters as parts of the state, then everything else in its order, then the update. */
static bool rebuild(TrainState *state) {
  Graph *graph = state->graph;
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, state->scratch, state->diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_INPUT || (node->op == OP_PARAMETER && !state->slot_of[node->id])) rewrite_append(&rewrite, node);
  }
  if (!train_slice_parameters(state, &rewrite)) return false;
  state->stats_ids = graph->next_id;
  state->stats = arena_array(state->scratch, graph->next_id, Node *);
  state->updates = arena_array(state->scratch, 2 * graph->node_count, BatchNorm);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_INPUT || node->op == OP_PARAMETER) continue;
    rewrite_inputs(&rewrite, node);
    if (node->id < state->norm_ids && state->batch_norm[node->id] && !use_batch_statistics(state, &rewrite, node))
      return false;
    Node *measured = NULL;
    if (node->op == OP_BATCH_STATS && node->inputs[0]->id < state->stats_ids)
      measured = state->stats[node->inputs[0]->id];
    if (measured) {
      rewrite_replace(&rewrite, node, measured);
      continue;
    }
    rewrite_append(&rewrite, node);
    if (node == state->loss && !update_statistics(state, &rewrite)) return false;
  }
  for (size_t i = 0; i < state->target_count; i++)
    if (state->gradients[i]) state->gradients[i] = rewrite_resolve(&rewrite, state->gradients[i]);
  if (!train_update_state(state, &rewrite)) return false;
  rewrite_finish(&rewrite);
  return true;
}

bool pass_train(Graph *graph, const PassOptions *options, Diag *diag) {
  if (!graph->train) return true;
  TrainState state = {.graph = graph, .request = graph->train, .diag = diag, .scratch = options->scratch};
  state.of = graph_find_result(graph, state.request->of);
  if (!state.of) return train_error(&state, "the model has no value '%s'", state.request->of);
  if (!add_inputs(&state) || !activate_dropout(&state)) return false;
  mark_batch_norms(&state);
  state.norm_ids = graph->next_id;
  if (!add_loss(&state)) return false;
  mark_cancelled(&state);
  if (!add_gradients(&state) || !train_lay_out_state(&state) || !rebuild(&state)) return false;
  set_outputs(&state);
  graph_remove_dead(graph);
  train_drop_parameters(&state);
  graph->recompute = state.request->recompute;
  graph->train = NULL;
  graph->name = arena_format(graph->arena, "%s_train", graph->name ? graph->name : "model");
  return true;
}
