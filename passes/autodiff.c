/* autodiff: builds the gradients that were asked for.
 *
 *   gradient logits class wrt ["body"], %body : f32[N,512,11,11], %logits : f32[N,37]
 *     → input %class : i64[N];  %1 = one_hot %class {depth=37};  … the rules of the ops from %logits back to %body …
 *       output grad.body : f32[N,512,11,11]
 *
 * What a request is seeded with is known when the program runs: a class per image, a cotangent of the value's shape, or
 * 1 for a scalar. Requests that name the same input share it. Only nodes between the values are differentiated. Reverse
 * accumulation over the node array (Griewank and Walther, "Evaluating Derivatives", chapter 3); the rules are those of
 * ir/grad.h.
 *
 * Batch norms of inference use their running statistics. What the gradients read of the forward pass is an ordinary use
 * of it, so that later passes keep it or compute it in the same kernels.
 *
 * Requires: shapes, no epilogues. Guarantees: no request is left; outputs of hooks stand behind the others. */
#include <string.h>

#include "grad.h"
#include "hook_stats.h"
#include "passes.h"

/* --- inputs ---------------------------------------------------------------------------------------- */

static bool request_error(const GradientRequest *request, Diag *diag, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool request_error(const GradientRequest *request, Diag *diag, const char *format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  if (format_v(message, sizeof message, format, arguments) < 0) message[0] = '\0';
  va_end(arguments);
  diag_error(diag, request->location, "gradient of '%s': %s", request->of, message);
  return false;
}

/* A new input; one of that name that an earlier request made is shared. `own_inputs` are the model's. */
static Node *seed_input(Graph *graph, const GradientRequest *request, const char *name, DataType dtype, Shape shape,
                        size_t own_inputs, Diag *diag) {
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    if (strcmp(input->name, name) != 0) continue;
    if (i >= own_inputs && input->dtype == dtype && shape_equal(&input->shape, &shape)) return input->node;
    request_error(request, diag, "there is an input '%s' already: give another name for the %s", name,
                  request->seed == GRADIENT_OF_CLASS ? "class" : "cotangent");
    return NULL;
  }
  if (graph_find_value(graph, name)) {
    request_error(request, diag, "there is a value '%s' already: give another name for the input", name);
    return NULL;
  }
  return graph_add_input(graph, name, dtype, shape);
}

static Node *infer_seed(Node *node, Diag *diag) { return node_infer(node, diag) ? node : NULL; }

static Node *seed_class(Graph *graph, const GradientRequest *request, const Node *of, size_t own_inputs, Diag *diag) {
  const Shape *scores = &of->shape;
  if (of->dtype != DTYPE_F32 || scores->rank < 1 || scores->rank > 2 || scores->dims[scores->rank - 1] == DIM_BATCH) {
    Text shape;
    text_init(&shape, graph->arena);
    shape_print(&shape, scores);
    request_error(request, diag, "expected class scores f32[N,K], found %s[%s]", data_type_name(of->dtype), shape.data);
    return NULL;
  }
  Shape classes = *scores;
  classes.rank--;
  classes.dims[classes.rank] = 0;
  Node *input =
      seed_input(graph, request, request->input ? request->input : "class", DTYPE_I64, classes, own_inputs, diag);
  if (!input) return NULL;
  Node *seed = graph_add(graph, OP_ONE_HOT, NULL, &input, 1);
  seed->attrs.depth = scores->dims[scores->rank - 1];
  return infer_seed(seed, diag);
}

static Node *seed_scalar(Graph *graph, const GradientRequest *request, const Node *of, Diag *diag) {
  bool single = true;
  for (int32_t d = 0; d < of->shape.rank; d++) single = single && of->shape.dims[d] == 1;
  if (!single) {
    Text shape;
    text_init(&shape, graph->arena);
    shape_print(&shape, &of->shape);
    request_error(request, diag, "expected a scalar, found [%s]: reduce it, or give a cotangent", shape.data);
    return NULL;
  }
  Node *seed = graph_add(graph, OP_FULL, NULL, NULL, 0);
  seed->attrs.value = 1;
  seed->attrs.shape.count = of->shape.rank;
  for (int32_t d = 0; d < of->shape.rank; d++) seed->attrs.shape.values[d] = 1;
  return infer_seed(seed, diag);
}

static Node *make_seed(Graph *graph, const GradientRequest *request, const Node *of, size_t own_inputs, Diag *diag) {
  switch (request->seed) {
    case GRADIENT_OF_CLASS:
      return seed_class(graph, request, of, own_inputs, diag);
    case GRADIENT_OF_SCALAR:
      return seed_scalar(graph, request, of, diag);
    case GRADIENT_WITH_COTANGENT:
      return seed_input(graph, request, request->input ? request->input : "cotangent", DTYPE_F32, of->shape, own_inputs,
                        diag);
  }
  return NULL;
}

/* --- outputs --------------------------------------------------------------------------------------- */

/* Hook outputs stand last: another one goes before them. */
static bool add_output(Graph *graph, const GradientRequest *request, const char *wrt, Node *node, Diag *diag) {
  const char *name = arena_format(graph->arena, "%s%s", request->hook ? "hook.grad." : "grad.", wrt);
  for (size_t i = 0; i < graph->output_count; i++) {
    if (strcmp(graph->outputs[i].name, name) == 0)
      return request_error(request, diag, "there is an output '%s' already", name);
  }
  graph_add_output(graph, name, node);
  GraphOutput added = graph->outputs[graph->output_count - 1];
  added.location = request->location;
  size_t at = graph->output_count - 1;
  if (request->hook) {
    graph->hook_output_count++;
  } else {
    for (; at > graph->output_count - 1 - graph->hook_output_count; at--) graph->outputs[at] = graph->outputs[at - 1];
  }
  graph->outputs[at] = added;
  return true;
}

/* --- the pass -------------------------------------------------------------------------------------- */

static Node *find_node(const Graph *graph, const GradientRequest *request, const char *name, Diag *diag) {
  Node *node = graph_find_result(graph, name);
  if (!node) request_error(request, diag, "the model has no value '%s'", name);
  return node;
}

static bool differentiate(Graph *graph, const GradientRequest *request, size_t own_inputs, Arena *scratch, Diag *diag) {
  Node *of = find_node(graph, request, request->of, diag);
  Node **targets = arena_array(scratch, request->wrt_count, Node *);
  bool valid = of != NULL;
  for (size_t i = 0; i < request->wrt_count; i++) {
    targets[i] = find_node(graph, request, request->wrt[i], diag);
    valid = valid && targets[i];
  }
  Node *seed = valid ? make_seed(graph, request, of, own_inputs, diag) : NULL;
  Node **gradients = arena_array(scratch, request->wrt_count, Node *);
  if (!seed || !graph_differentiate(graph, of, seed, targets, request->wrt_count, NULL, NULL, scratch, diag, gradients))
    return false;
  for (size_t i = 0; i < request->wrt_count; i++) {
    if (!add_output(graph, request, request->wrt[i], gradients[i], diag)) return false;
    node_decide(
        graph, gradients[i], "autodiff", "value is kept and stored", NULL,
        arena_format(graph->arena, "It is the gradient of '%s' with respect to '%s'.", request->of, request->wrt[i]));
  }
  return true;
}

bool pass_autodiff(Graph *graph, const PassOptions *options, Diag *diag) {
  const size_t own_inputs = graph->input_count;
  for (size_t i = 0; i < graph->gradient_count; i++) {
    if (!differentiate(graph, &graph->gradients[i], own_inputs, options->scratch, diag)) return false;
  }
  graph->gradient_count = 0;
  return hook_gradient_stats(graph, options->scratch, diag);
}
