#include "grad_cases.h"

#include <math.h>
#include <string.h>

#include "eval.h"

/* --- random numbers -------------------------------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_bits(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* Uniform in [0, 1). */
static double next_uniform(uint64_t *state) { return (double)(next_bits(state) >> 11) * 0x1p-53; }

/* A shuffled grid over (−3, 3), which passes no whole number: no two are equal and none is at a bend. */
static void fill_grid(Tensor *tensor, uint64_t *state) {
  const int64_t count = tensor_elements(tensor);
  double *values = tensor->data;
  for (int64_t i = 0; i < count; i++) values[i] = 6 * ((double)i + 0.3137) / (double)count - 3;
  for (int64_t i = count - 1; i > 0; i--) {
    const int64_t other = (int64_t)(next_uniform(state) * (double)(i + 1));
    const double value = values[i];
    values[i] = values[other];
    values[other] = value;
  }
}

/* --- trials ---------------------------------------------------------------------------------------- */

static bool keeps_case_values(const Tensor *tensor) {
  return tensor->dtype == DTYPE_I64 || strncmp(tensor->name, "positive", 8) == 0 ||
         strcmp(tensor->name, "variance") == 0 || strcmp(tensor->name, "target") == 0 ||
         strcmp(tensor->name, "theta") == 0;
}

/* In double, so that a difference of 1e-5 is exact. */
static void make_double(Tensor *tensor, uint64_t *state, Arena *arena) {
  if (tensor->dtype == DTYPE_I64) return;
  Tensor wide = tensor_create(arena, tensor->name, DTYPE_F64, tensor->shape);
  if (keeps_case_values(tensor)) {
    for (int64_t i = 0; i < tensor_elements(tensor); i++) tensor_set(&wide, i, tensor_get(tensor, i));
  } else {
    fill_grid(&wide, state);
  }
  *tensor = wide;
}

/* Running statistics have no gradient. */
static bool is_target(const Node *node, int32_t input) {
  if (node->inputs[input]->dtype != DTYPE_F32) return false;
  if (node->op == OP_BATCH_NORM) return input < 3;
  return node->op != OP_BN_SCALE || input == 0;
}

bool grad_trial_of_case(const OpCase *line, int64_t batch, Arena *arena, Diag *diag, GradTrial *out_trial) {
  *out_trial = (GradTrial){.arena = arena, .diag = diag, .graph = op_case_graph(line, 4, arena, diag)};
  if (!out_trial->graph) return false;
  Node *node = out_trial->of = out_trial->graph->outputs[0].node;
  op_case_fill(out_trial->graph, batch, OP_CASE_FLOATS, 3, arena, &out_trial->inputs, &out_trial->parameters);
  uint64_t state = 17;
  for (size_t i = 0; i < out_trial->inputs.count; i++) make_double(&out_trial->inputs.items[i], &state, arena);
  for (size_t i = 0; i < out_trial->parameters.count; i++) make_double(&out_trial->parameters.items[i], &state, arena);
  out_trial->targets = arena_array(arena, (size_t)node->input_count, Node *);
  for (int32_t i = 0; i < node->input_count; i++) {
    if (is_target(node, i)) out_trial->targets[out_trial->target_count++] = node->inputs[i];
  }
  return true;
}

static void plant(void *observer, GradContext *context, const Node *node, Node **gradients) {
  PlantedError *planted = observer;
  if (planted->planted || node->op != planted->op || planted->input >= node->op_input_count) return;
  Node **gradient = &gradients[planted->input];
  if (!*gradient) return;
  Attrs attrs = attrs_default();
  attrs.value = 1.01;
  Node *factor = gradient_make(context, OP_FULL, &attrs, NULL, 0);
  *gradient = gradient_binary(context, OP_MUL, *gradient, factor);
  planted->planted = true;
}

/* The node of that id in a copy of the graph. */
static Node *find_id(const Graph *graph, uint32_t id) {
  for (size_t i = 0; i < graph->node_count; i++) {
    if (graph->nodes[i]->id == id) return graph->nodes[i];
  }
  return NULL;
}

static void append(TensorList *list, Tensor tensor, Arena *arena) {
  Tensor *items = arena_array(arena, list->count + 1, Tensor);
  if (list->count) memcpy(items, list->items, list->count * sizeof *items);
  items[list->count++] = tensor;
  list->items = items;
}

static Shape concrete(Shape shape, int64_t batch) {
  if (shape_batched(&shape)) shape.dims[0] = batch;
  return shape;
}

/* That of the first batched input. */
static int64_t trial_batch(const GradTrial *trial) {
  for (size_t i = 0; i < trial->graph->input_count; i++) {
    if (shape_batched(&trial->graph->inputs[i].shape)) return trial->inputs.items[i].shape.dims[0];
  }
  return 1;
}

Graph *grad_trial_differentiate(GradTrial *trial, PlantedError *planted, uint64_t seed) {
  Graph *graph = graph_clone(trial->graph, trial->arena);
  Node *of = find_id(graph, trial->of->id), *cotangent = graph_add_input(graph, "cotangent", DTYPE_F32, of->shape);
  Node **targets = arena_array(trial->arena, trial->target_count, Node *);
  Node **gradients = arena_array(trial->arena, trial->target_count, Node *);
  for (size_t i = 0; i < trial->target_count; i++) targets[i] = find_id(graph, trial->targets[i]->id);
  if (!graph_differentiate(graph, of, cotangent, targets, trial->target_count, planted ? plant : NULL, planted,
                           trial->arena, trial->diag, gradients)) {
    return NULL;
  }
  for (size_t i = 0; i < trial->target_count; i++) {
    graph_add_output(graph, arena_format(trial->arena, "grad.%s", targets[i]->name), gradients[i]);
  }
  Tensor values = tensor_create(trial->arena, "cotangent", DTYPE_F64, concrete(of->shape, trial_batch(trial)));
  for (int64_t i = 0; i < tensor_elements(&values); i++) ((double *)values.data)[i] = 2 * next_uniform(&seed) - 1;
  append(&trial->inputs, values, trial->arena);
  return graph;
}

/* --- differences ----------------------------------------------------------------------------------- */

/* Σ cotangent · y, and in *out_size Σ |cotangent · y|. */
static bool weigh(const GradTrial *trial, Arena *arena, double *out_total, double *out_size) {
  EvalResult result;
  if (!graph_eval(trial->graph, &trial->inputs, &trial->parameters, arena, trial->diag, &result)) return false;
  const Tensor *cotangent = &trial->inputs.items[trial->inputs.count - 1];
  const double *weights = cotangent->data, *values = result.values[trial->of->id].data;
  *out_total = *out_size = 0;
  for (int64_t i = 0; i < tensor_elements(cotangent); i++) {
    *out_total += weights[i] * values[i];
    *out_size += fabs(weights[i] * values[i]);
  }
  return true;
}

/* The tensor that gives a target its values. */
static Tensor *values_of(GradTrial *trial, const Node *target) {
  if (target->op == OP_INPUT) return &trial->inputs.items[target->port];
  return &trial->parameters.items[target->port];
}

/* Relative error of the slope along one direction. */
static double slope_error(GradTrial *trial, Tensor *tensor, const double *gradient, const double *direction,
                          double step) {
  const int64_t count = tensor_elements(tensor);
  double *values = tensor->data, *before = arena_copy(trial->arena, values, (size_t)count * sizeof(double));
  double total[2], size = 0, expected = 0, magnitude = 0;
  Arena *scratch = arena_create(NULL);
  bool valid = true;
  for (int side = 0; side < 2 && valid; side++) {
    for (int64_t i = 0; i < count; i++) values[i] = before[i] + (side ? -step : step) * direction[i];
    valid = weigh(trial, scratch, &total[side], &size);
  }
  arena_destroy(scratch);
  memcpy(values, before, (size_t)count * sizeof(double));
  for (int64_t i = 0; i < count; i++) {
    expected += gradient[i] * direction[i];
    magnitude += fabs(gradient[i] * direction[i]);
  }
  if (!valid) return INFINITY;
  /* what the rounding of the two sums may add */
  const double noise = 1e-14 * size / step;
  const double difference = fabs((total[0] - total[1]) / (2 * step) - expected);
  const double error = difference <= noise ? 0 : (difference - noise) / (magnitude + noise);
  return isfinite(error) ? error : INFINITY;
}

/* Two directions: up the gradient in uneven steps, so that its parts do not cancel, and a random one, for what is
 * wrongly zero. */
static double target_error(GradTrial *trial, Tensor *tensor, const double *gradient, double step) {
  const int64_t count = tensor_elements(tensor);
  double *direction = arena_array(trial->arena, (size_t)count, double), worst = 0;
  uint64_t state = 5;
  for (int kind = 0; kind < 2; kind++) {
    for (int64_t i = 0; i < count; i++) {
      const double uniform = next_uniform(&state);
      direction[i] = kind == 1 ? 2 * uniform - 1 : gradient[i] < 0 ? -0.5 - uniform : 0.5 + uniform;
    }
    const double error = slope_error(trial, tensor, gradient, direction, step);
    if (error > worst) worst = error;
  }
  return worst;
}

double grad_trial_error(GradTrial *trial, PlantedError *planted, double step) {
  Graph *graph = grad_trial_differentiate(trial, planted, 11);
  EvalResult result;
  if (!graph || !graph_verify(graph, "autodiff", trial->diag) ||
      !graph_eval(graph, &trial->inputs, &trial->parameters, trial->arena, trial->diag, &result)) {
    return INFINITY;
  }
  double worst = 0;
  for (size_t i = 0; i < trial->target_count; i++) {
    const Node *gradient = graph->outputs[graph->output_count - trial->target_count + i].node;
    Tensor *tensor = values_of(trial, trial->targets[i]);
    if (!shape_equal(&result.values[gradient->id].shape, &tensor->shape)) return INFINITY;
    const double error = target_error(trial, tensor, result.values[gradient->id].data, step);
    if (error > worst) worst = error;
  }
  return worst;
}
