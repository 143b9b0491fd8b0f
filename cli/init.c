/* kiln init: initial weights. */
#include <string.h>

#include "common.h"
#include "safetensors.h"

typedef struct InitRequest {
  ModelOptions model;
  const char *path, *output, *mode;
  int64_t seed;
} InitRequest;

static int init_body(Tool *tool, void *context) {
  InitRequest *request = context;
  Graph *graph;
  TensorList tensors;
  if (!model_open(tool, request->path, &request->model, &graph)) return EXIT_FAILED;
  const bool pytorch = request->mode != NULL && strcmp(request->mode, "pytorch") == 0;
  if (request->mode != NULL && !pytorch && strcmp(request->mode, "kaiming") != 0) {
    tool_usage_error(tool, "--init-mode: expected kaiming or pytorch, found '%s'", request->mode);
    return EXIT_FAILED;
  }
  const InitMode mode = pytorch ? INIT_MODE_PYTORCH : INIT_MODE_KAIMING;
  weights_initialise_as(graph, (uint64_t)request->seed, mode, tool->arena, &tensors);
  if (!safetensors_write(request->output, &tensors, tool->arena, tool->diag)) return EXIT_FAILED;
  int64_t bytes = 0;
  for (size_t i = 0; i < tensors.count; i++) bytes += tensor_bytes(&tensors.items[i]);
  printf("%s: %zu tensors, %s bytes\n", request->output, tensors.count, grouped(tool->arena, bytes));
  return EXIT_OK;
}

static int init_run(int argc, char **argv) {
  InitRequest request = {.output = NULL};
  const Option options[] = {
      {"seed", 0, OPTION_INT, &request.seed, "S", "seed of the random numbers (default: 0)", 0, INT64_MAX},
      {"init-mode", 0, OPTION_TEXT, &request.mode, "MODE", "kaiming (default) or pytorch", 0, 0},
      {"output", 'o', OPTION_TEXT, &request.output, "FILE", "safetensors file to write", 0, 0},
      SHAPE_OPTION(request.model){.name = NULL}};
  int code = options_parse(&verb_init, options, argc, argv, 1, 1, &request.path);
  if (code >= 0) return code;
  if (request.output == NULL) {
    fprintf(stderr, "kiln init: -o FILE is missing\n");
    return EXIT_USAGE;
  }
  return tool_run(init_body, &request);
}

const Verb verb_init = {
    "init",
    "write initial weights",
    "MODEL --seed S -o FILE",
    "Writes initial values for all parameters: weights normal with standard deviation sqrt(2 / "
    "fan_in) (He et al., arXiv\n"
    "1502.01852), biases 0, batch norms 1 and 0, running statistics 0 and 1. Names are PyTorch's. "
    "The same seed gives the\n"
    "same bytes on every machine. --init-mode pytorch: weights and biases of convolutions and linear "
    "layers uniform over\n"
    "±1 / sqrt(fan_in), as PyTorch begins.",
    "  kiln init examples/resnet34.json --seed 1 -o w.safetensors",
    init_run};
