/* kiln verify: compiled code against the interpreter. */
#include <math.h>
#include <string.h>

#include "affinity.h"
#include "execute.h"
#include "ports.h"
#include "safetensors.h"

typedef struct VerifyRequest {
  ModelOptions model;
  const char *path, *inputs;
  OptionList input;
  double tolerance;
  int64_t seed;
  bool all;
} VerifyRequest;

static kiln_port *graph_ports(Tool *tool, const Graph *graph) {
  kiln_port *ports = arena_array(tool->arena, graph->input_count + 1, kiln_port);
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    ports[i].name = input->name;
    ports[i].dtype = input->dtype == DTYPE_I64 ? KILN_I64 : KILN_F32;
    ports[i].rank = (uint32_t)input->shape.rank;
    memcpy(ports[i].dims, input->shape.dims, sizeof ports[i].dims);
    ports[i].batched = shape_batched(&input->shape);
  }
  return ports;
}

/* Prints a table of the values that matter and returns the exit code. */
static int report(Tool *tool, const VerifyRequest *request, const ValueCheck *checks, size_t count) {
  enum { COLUMNS = 5 };
  const char **cells = arena_array(tool->arena, (count + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value", "kernel", "relative L2", "largest error", "largest value"};
  memcpy(cells, head, sizeof head);
  size_t rows = 1, compared = 0;
  const ValueCheck *first = NULL, *worst = NULL;
  for (size_t i = 0; i < count; i++) {
    const ValueCheck *check = &checks[i];
    compared += check->compared;
    if (check->compared && (worst == NULL || !(check->relative_l2 <= worst->relative_l2))) worst = check;
    if (!check->passed && first == NULL) first = check;
    if (!request->all && check->passed) continue;
    const char **row = &cells[rows++ * COLUMNS];
    row[0] = check->name;
    row[1] = check->kind;
    row[2] = check->compared ? arena_format(tool->arena, "%.2e%s", check->relative_l2, check->passed ? "" : "  *")
                             : "not in the description";
    row[3] = check->compared ? arena_format(tool->arena, "%.2e", check->largest_error) : "";
    row[4] = check->compared ? arena_format(tool->arena, "%.3g", check->largest_value) : "";
  }
  if (rows > 1) table_print(stdout, tool->arena, cells, rows, COLUMNS, "<<>>>");
  if (first != NULL) {
    diag_error(tool->diag, (Location){request->path, 0, 0},
               "value '%s' (%s) differs from the interpreter: relative L2 %.2e, allowed %.2e", first->name, first->kind,
               first->relative_l2, request->tolerance);
    return EXIT_FAILED;
  }
  if (compared == 0) {
    diag_error(tool->diag, (Location){request->path, 0, 0}, "no value could be compared");
    return EXIT_FAILED;
  }
  printf("%zu of %zu kernels compared with the interpreter; worst relative L2 %.2e at '%s' (allowed %.2e)\n", compared,
         count, worst->relative_l2, worst->name, request->tolerance);
  return EXIT_OK;
}

static int verify_body(Tool *tool, void *context) {
  VerifyRequest *request = context;
  kiln_executable *executable;
  Graph *graph;
  Plan *plan;
  int64_t batch = 1;
  TensorList files = {NULL, 0}, random;
  if (request->tolerance < 0) {
    tool_usage_error(tool, "--tolerance: expected a number of at least 0, found %g", request->tolerance);
    return EXIT_FAILED;
  }
  if (is_library(request->path)) {
    diag_error(tool->diag, (Location){request->path, 0, 0}, "verify needs a description, found a compiled library");
    return EXIT_USAGE;
  }
  if (request->inputs != NULL) {
    if (!safetensors_read(request->inputs, tool->arena, tool->diag, &files)) return EXIT_FAILED;
    for (size_t i = 0; i < files.count; i++)
      if (files.items[i].shape.rank > 0 && files.items[i].shape.dims[0] > batch && files.items[i].shape.dims[0] <= 64)
        batch = files.items[i].shape.dims[0];
  }
  if (!executable_open(tool, request->path, &request->model, &files, batch, &executable, &graph, &plan))
    return graph != NULL && plan == NULL && diag_error_count(tool->diag) == 0 ? EXIT_OK : EXIT_FAILED;
  bool given = request->inputs != NULL || request->input.count > 0;
  TensorList inputs;
  if (given) {
    Metadata metadata;
    Tensor *read;
    if (!metadata_read(tool, executable->program, &metadata) ||
        !inputs_read(tool, executable->program, &metadata, &files, &request->input, &read, &batch))
      return EXIT_FAILED;
    if (batch == 0) {
      diag_error(tool->diag, (Location){NULL, 0, 0}, "the inputs hold a batch of 0: there is nothing to compare");
      return EXIT_FAILED;
    }
    inputs = (TensorList){read, executable->program->input_count};
  } else {
    if (!inputs_random(tool, graph_ports(tool, graph), graph->input_count, executable->program->max_batch,
                       (uint64_t)request->seed, &random))
      return EXIT_FAILED;
    inputs = random;
  }
  ValueCheck *checks;
  size_t count;
  kiln_context_options options;
  if (!context_options(tool, &request->model, &options) ||
      !verify_values(graph, plan, executable, &inputs, options.threads, request->tolerance, tool->arena, tool->diag, &checks,
                     &count))
    return EXIT_FAILED;
  return report(tool, request, checks, count);
}

static bool is_fast(const VerifyRequest *request) {
  return request->model.precision != NULL && strcmp(request->model.precision, "fast") == 0;
}

static int verify_run(int argc, char **argv) {
  VerifyRequest request = {.tolerance = NAN, .seed = 1};
  const Option options[] = {
      WEIGHTS_OPTION(request.model){"input", 'i', OPTION_LIST, &request.input, "NAME=FILE", "an input, as in kiln run",
                                    0, 0},
      {"inputs", 0, OPTION_TEXT, &request.inputs, "FILE", "safetensors with inputs by name (default: random inputs)", 0,
       0},
      {"seed", 0, OPTION_INT, &request.seed, "S", "seed of random inputs (default 1)", 0, INT64_MAX},
      {"tolerance", 0, OPTION_DOUBLE, &request.tolerance, "E",
       "largest relative L2 error of a value (default 1e-5; with --precision fast 5e-5)", 0, 0},
      {"all", 0, OPTION_FLAG, &request.all, NULL, "print every value, not only those that differ", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) DUMP_OPTIONS(request.model){
          "hook", 0, OPTION_LIST, &request.model.hooks, "VALUE", "keep a value that fusion would erase", 0, 0},
      {.name = NULL}};
  int code = options_parse(&verb_verify, options, argc, argv, 1, 1, &request.path);
  if (code >= 0) return code;
  if (isnan(request.tolerance)) request.tolerance = is_fast(&request) ? 5e-5 : 1e-5;
  return tool_run(verify_body, &request);
}

const Verb verb_verify = {
    "verify",
    "compare every value with the interpreter",
    "MODEL --weights FILE [options]",
    "Compiles a model, runs it step by step and compares the value of every kernel with the double-precision "
    "interpreter,\n"
    "which runs the description as it is, without any optimisation. Exits with 1 and names the first value that "
    "differs.",
    "  kiln verify examples/resnet18.json --weights w.safetensors --shape image=N,3,65,65 --batch 3\n"
    "  kiln verify model.json --weights w.safetensors --inputs in.safetensors --all --cpu x86-64-v3",
    verify_run};
