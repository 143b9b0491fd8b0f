/* kiln explain: what the passes decided, and why. */
#include "common.h"
#include "explain_memory.h"
#include "step_options.h"

typedef struct ExplainRequest {
  ModelOptions model;
  StepOptions step;
  const char *path;
  const char *picture;
  bool json, plan, memory;
} ExplainRequest;

static int explain_body(Tool *tool, void *context) {
  ExplainRequest *request = context;
  Graph *graph, *optimised;
  Plan *plan;
  kiln_compile_options compile;
  if (!model_open(tool, request->path, &request->model, &graph) ||
      !step_request(tool, &request->step, graph, &request->model.train) || !compile_options(tool, &request->model, &compile) ||
      !model_plan(tool, graph, &request->model, &compile, &optimised, &plan))
    return EXIT_FAILED;
  if (request->memory || request->picture != NULL) {
    if (plan != NULL) return memory_explain(tool, plan, request->picture) ? EXIT_OK : EXIT_FAILED;
    tool_usage_error(tool, "--memory: --stop-after leaves no plan to look at");
    return EXIT_FAILED;
  }
  Text text;
  text_init(&text, tool->arena);
  if (request->json)
    explain_print_json(&text, optimised);
  else
    explain_print(&text, optimised);
  if (request->plan && plan != NULL) plan_print(&text, plan);
  fputs(text.data, stdout);
  return EXIT_OK;
}

static int explain_run(int argc, char **argv) {
  ExplainRequest request = {.path = NULL};
  const Option options[] = {{"json", 0, OPTION_FLAG, &request.json, NULL, "print JSON", 0, 0},
                            {"plan", 0, OPTION_FLAG, &request.plan, NULL, "add the list of kernels and buffers", 0, 0},
                            {"memory", 0, OPTION_FLAG, &request.memory, NULL,
                             "instead: what lies where in the workspace, from when to when", 0, 0},
                            {"svg", 0, OPTION_TEXT, &request.picture, "FILE",
                             "with --memory: draw the workspace over time, SVG or PNG", 0, 0},
                            SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) STEP_OPTIONS(request.step)
                                DUMP_OPTIONS(request.model){"hook", 0, OPTION_LIST, &request.model.hooks, "VALUE",
                                                            "keep a value, as in kiln run", 0, 0},
                            {.name = NULL}};
  int code = options_parse(&verb_explain, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(explain_body, &request);
}

const Verb verb_explain = {
    "explain",
    "what the passes decided and why",
    "MODEL [options]",
    "Compiles a model up to the plan and prints, value by value, what each pass chose, what it rejected, and the "
    "reason.",
    "  kiln explain examples/resnet34.json\n  kiln explain examples/simple_cnn10_bn.json --plan --cpu x86-64-v3\n"
    "  kiln explain examples/resnet34.json --memory --svg workspace.svg\n"
    "  kiln explain examples/simple_cnn10_bn.json --train --optimizer adam\n"
    "  kiln explain model.json --stop-after fuse\n  kiln explain model.json --dump before:fuse,after:fuse",
    explain_run};
