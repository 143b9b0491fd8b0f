/* kiln grad: gradients of a value. */
#include <string.h>

#include "affinity.h"
#include "execute.h"
#include "ports.h"
#include "safetensors.h"

typedef struct GradRequest {
  ModelOptions model;
  const char *path, *inputs, *of, *cotangent, *wrt, *output;
  OptionList input;
  int64_t class_number;
} GradRequest;

/* "x,conv.weight" */
static size_t split_names(Tool *tool, const char *text, const char ***out_names) {
  size_t count = 1, found = 0;
  for (const char *at = text; *at != '\0'; at++) count += *at == ',';
  const char **names = arena_array(tool->arena, count, const char *);
  for (const char *at = text;; at++) {
    size_t length = strcspn(at, ",");
    if (length > 0) names[found++] = arena_string_n(tool->arena, at, length);
    at += length;
    if (*at == '\0') break;
  }
  *out_names = names;
  return found;
}

static bool scalar(const Shape *shape) {
  for (int32_t d = 0; d < shape->rank; d++)
    if (shape->dims[d] != 1) return false;
  return true;
}

static bool request_gradient(Tool *tool, Graph *graph, const GradRequest *request) {
  const Node *of = graph_find_result(graph, request->of);
  GradientRequest gradient = {.of = request->of, .location = {graph->file, 0, 0}};
  if (of == NULL) {
    diag_error(tool->diag, gradient.location, "--of: the model has no value '%s'", request->of);
    return false;
  }
  gradient.seed = GRADIENT_OF_SCALAR;
  if (request->cotangent != NULL) {
    gradient.seed = GRADIENT_WITH_COTANGENT;
    gradient.input = request->cotangent;
  } else if (request->class_number >= 0 || !scalar(&of->shape)) {
    gradient.seed = GRADIENT_OF_CLASS;
  }
  gradient.wrt_count = split_names(tool, request->wrt, &gradient.wrt);
  return graph_request_gradient(graph, &gradient, tool->diag);
}

static void print_gradient(const Tensor *tensor) {
  int64_t count = tensor_elements(tensor);
  double largest = 0;
  for (int64_t i = 0; i < count; i++) {
    double value = tensor_get(tensor, i);
    if (value > largest) largest = value;
    if (-value > largest) largest = -value;
  }
  printf("%s  [", tensor->name);
  for (int32_t d = 0; d < tensor->shape.rank; d++) printf("%s%lld", d > 0 ? "," : "", (long long)tensor->shape.dims[d]);
  printf("]  largest %.6g\n", largest);
}

static int grad_body(Tool *tool, void *context) {
  GradRequest *request = context;
  TensorList files = {NULL, 0};
  if (request->inputs != NULL && !safetensors_read(request->inputs, tool->arena, tool->diag, &files))
    return EXIT_FAILED;
  Graph *graph;
  if (!model_open(tool, request->path, &request->model, &graph) || !request_gradient(tool, graph, request))
    return EXIT_FAILED;
  kiln_executable *executable;
  Plan *plan;
  /* the batch of the first input decides what is compiled, so that gradients of parameters sum over all of it */
  int64_t batch = 1;
  const Tensor *first = graph->input_count > 0 ? tensor_find(&files, graph->inputs[0].name) : NULL;
  if (first != NULL && first->shape.rank == graph->inputs[0].shape.rank && first->shape.rank > 0)
    batch = first->shape.dims[0];
  if (batch < (int64_t)request->input.count) batch = (int64_t)request->input.count;
  if (!executable_from_graph(tool, graph, &request->model, &files, batch, &executable, &plan))
    return plan == NULL && diag_error_count(tool->diag) == 0 ? EXIT_OK : EXIT_FAILED;
  const kiln_program *program = executable->program;
  Metadata metadata;
  Tensor *inputs, *outputs;
  if (!metadata_read(tool, program, &metadata)) return EXIT_FAILED;
  metadata.class_number = request->class_number;
  if (!inputs_read(tool, program, &metadata, &files, &request->input, &inputs, &batch)) return EXIT_FAILED;
  kiln_context_options options;
  if (!context_options(tool, &request->model, &options)) return EXIT_FAILED;
  if (!run_batches(tool, executable, &options, inputs, batch, &outputs)) return EXIT_FAILED;
  TensorList gradients = {arena_array(tool->arena, program->output_count + 1, Tensor), 0};
  for (uint32_t i = 0; i < program->output_count; i++) {
    if (strncmp(outputs[i].name, "grad.", 5) != 0) continue;
    print_gradient(&outputs[i]);
    gradients.items[gradients.count++] = outputs[i];
  }
  return safetensors_write(request->output, &gradients, tool->arena, tool->diag) ? EXIT_OK : EXIT_FAILED;
}

static int grad_run(int argc, char **argv) {
  GradRequest request = {.class_number = -1};
  const Option options[] = {
      WEIGHTS_OPTION(request.model){"inputs", 0, OPTION_TEXT, &request.inputs, "FILE",
                                    "safetensors with inputs (and parameters) by name", 0, 0},
      {"input", 'i', OPTION_LIST, &request.input, "NAME=FILE", "an input, as in kiln run", 0, 0},
      {"of", 0, OPTION_TEXT, &request.of, "VALUE", "what is differentiated: an output or any value", 0, 0},
      {"class", 0, OPTION_INT, &request.class_number, "K", "… its element K of every image", 0, INT32_MAX},
      {"cotangent", 0, OPTION_TEXT, &request.cotangent, "NAME", "… weighted by this tensor of the inputs file", 0, 0},
      {"wrt", 0, OPTION_TEXT, &request.wrt, "NAMES", "inputs, parameters, layers, blocks: x,conv.weight", 0, 0},
      {"output", 'o', OPTION_TEXT, &request.output, "FILE", "safetensors file for the gradients, named grad.NAME", 0,
       0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) DUMP_OPTIONS(request.model){.name = NULL}};
  int code = options_parse(&verb_grad, options, argc, argv, 1, 1, &request.path);
  if (code >= 0) return code;
  const char *missing = request.of == NULL       ? "--of"
                        : request.wrt == NULL    ? "--wrt"
                        : request.output == NULL ? "-o"
                                                 : NULL;
  if (missing != NULL || (request.cotangent != NULL && request.class_number >= 0)) {
    if (missing != NULL)
      fprintf(stderr, "kiln grad: %s is missing\n", missing);
    else
      fprintf(stderr, "kiln grad: give --class or --cotangent, not both\n");
    return EXIT_USAGE;
  }
  return tool_run(grad_body, &request);
}

const Verb verb_grad = {
    "grad",
    "gradients of a value",
    "MODEL --weights FILE --inputs FILE --of VALUE --wrt NAMES -o FILE [options]",
    "Differentiates a value with respect to inputs, parameters or other values, and writes the gradients as tensors\n"
    "grad.NAME. The value is a scalar, or --class picks an element per image, or --cotangent weights all of it. The\n"
    "backward pass is compiled like the model itself; only what is asked for is computed.",
    "  kiln grad model.json --weights w.safetensors --inputs in.safetensors --of logits --class 3 --wrt "
    "image,conv1.weight -o g.safetensors\n"
    "  kiln grad model.json --weights w.safetensors --inputs in.safetensors --of body --cotangent dy --wrt image -o "
    "g.safetensors",
    grad_run};
