/* kiln check: is a description right? */
#include "common.h"

typedef struct CheckRequest {
  ModelOptions model;
  const char *path;
} CheckRequest;

static int check_body(Tool *tool, void *context) {
  CheckRequest *request = context;
  Graph *graph;
  return model_open(tool, request->path, &request->model, &graph) ? EXIT_OK : EXIT_FAILED;
}

static int check_run(int argc, char **argv) {
  CheckRequest request = {.path = NULL};
  const Option options[] = {SHAPE_OPTION(request.model) WEIGHTS_OPTION(request.model){.name = NULL}};
  int code = options_parse(&verb_check, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(check_body, &request);
}

const Verb verb_check = {
    "check",
    "report every mistake of a description",
    "MODEL [options]",
    "Reads a description, checks it and infers all shapes. Prints nothing and exits with 0 when it is right, else\n"
    "prints every mistake as file:line:col: error: … and exits with 1.",
    "  kiln check examples/resnet34.json\n  kiln check model.json --shape image=1x3x352x352 --weights "
    "model.safetensors",
    check_run};
