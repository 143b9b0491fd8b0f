#include "execute.h"

#include <string.h>

static void destroy_executable(void *executable) { kiln_executable_destroy(executable); }

/* Keeps the tensors that the model knows as parameters: the file may hold inputs too. */
static bool bind_parameters(Tool *tool, Graph *graph, const TensorList *inputs) {
  TensorList known = {arena_array(tool->arena, inputs->count + 1, Tensor), 0};
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Tensor *tensor = tensor_find(inputs, graph->parameters[i].name);
    if (tensor != NULL && !graph->parameters[i].inline_value && known.count < inputs->count)
      known.items[known.count++] = *tensor;
  }
  return known.count == 0 || weights_bind(graph, &known, "--inputs", true, tool->diag);
}

bool executable_from_graph(Tool *tool, Graph *graph, const ModelOptions *options, const TensorList *files,
                           int64_t batch, kiln_executable **out_executable, Plan **out_plan) {
  kiln_compile_options compile;
  Graph *optimised;
  *out_plan = NULL;
  if (!compile_options(tool, options, &compile)) return false;
  if (files != NULL && !bind_parameters(tool, graph, files)) return false;
  if (compile.max_batch == 0 && batch > graph->max_batch) compile.max_batch = batch;
  if (!model_plan(tool, graph, options, &compile, &optimised, out_plan)) return false;
  if (*out_plan == NULL) return false; /* --stop-after has printed what was asked for */
  kiln_executable *executable = arena_new(tool->arena, kiln_executable);
  executable->arena = tool->arena;
  kiln_status status = KILN_ERROR_INPUT;
  *out_executable = executable;
  return build_executable(graph, *out_plan, &compile, executable, tool->arena, tool->diag, &status);
}

static bool library_executable(Tool *tool, const char *path, const ModelOptions *options,
                               kiln_executable **out_executable) {
  kiln_error error;
  if (options->shapes.count > 0 || options->hooks.count > 0 || options->cpu != NULL || options->disable != NULL ||
      options->tuning != NULL) {
    diag_error(tool->diag, (Location){path, 0, 0},
               "is compiled already: --shape, --hook, --cpu, --disable and --tuning need a description");
    return false;
  }
  if (kiln_open_library(NULL, path, options->weights, out_executable, &error) != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  arena_defer(tool->arena, destroy_executable, *out_executable);
  return true;
}

bool executable_open(Tool *tool, const char *path, const ModelOptions *options, const TensorList *inputs, int64_t batch,
                     kiln_executable **out_executable, Graph **out_graph, Plan **out_plan) {
  kiln_compile_options compile;
  Graph *graph;
  *out_graph = NULL;
  *out_plan = NULL;
  if (!compile_options(tool, options, &compile)) return false;
  if (is_library(path)) return library_executable(tool, path, options, out_executable);
  if (!model_open(tool, path, options, &graph)) return false;
  *out_graph = graph;
  return executable_from_graph(tool, graph, options, inputs, batch, out_executable, out_plan);
}

bool run_batches(Tool *tool, const kiln_executable *executable, const kiln_context_options *options,
                 const Tensor *inputs, int64_t batch, Tensor **out_outputs) {
  const kiln_program *program = executable->program;
  const void **in = arena_array(tool->arena, program->input_count + 1, const void *);
  void **out = arena_array(tool->arena, program->output_count + 1, void *);
  Tensor *outputs = arena_array(tool->arena, program->output_count + 1, Tensor);
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    Shape shape = shape_of((int32_t)port->rank, port->dims);
    if (port->batched)
      shape.dims[0] = batch;
    else if (batch > program->max_batch) {
      diag_error(tool->diag, (Location){NULL, 0, 0},
                 "output '%s' has no batch dimension: a batch of %lld cannot be split; compile with --batch %lld",
                 port->name, (long long)batch, (long long)batch);
      return false;
    }
    outputs[i] = tensor_create(tool->arena, port->name, port->dtype == KILN_I64 ? DTYPE_I64 : DTYPE_F32, shape);
  }
  kiln_context *context;
  kiln_error error;
  kiln_status status = kiln_context_create(executable, options, &context, &error);
  if (status != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  for (int64_t first = 0; first < batch && status == KILN_OK; first += program->max_batch) {
    int64_t count = batch - first < program->max_batch ? batch - first : program->max_batch;
    for (uint32_t i = 0; i < program->input_count; i++)
      in[i] = (const char *)inputs[i].data + (program->inputs[i].batched ? first * program->inputs[i].bytes : 0);
    for (uint32_t i = 0; i < program->output_count; i++)
      out[i] = (char *)outputs[i].data + (program->outputs[i].batched ? first * program->outputs[i].bytes : 0);
    status = kiln_run(context, count, in, out, &error);
  }
  kiln_context_destroy(context);
  if (status != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  *out_outputs = outputs;
  return true;
}
