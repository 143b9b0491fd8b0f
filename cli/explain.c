/* kiln explain: what the passes decided, and why. */
#include "codegen.h"
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

/* What the generator for GPUs chose for the matrix products of a plan. */
static bool print_products(Tool *tool, const Plan *plan) {
  enum { COLUMNS = 8 };
  CudaProductOf *products;
  size_t count;
  if (!cuda_products(plan, tool->arena, tool->diag, &products, &count)) return false;
  const char **cells = arena_array(tool->arena, (count + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value",  "product", "math",   "tile m x n x k",
                                     "stages", "splits",  "blocks", "threads"};
  for (size_t c = 0; c < COLUMNS; c++) cells[c] = head[c];
  for (size_t i = 0; i < count; i++) {
    const CudaProduct *product = &products[i].product;
    const PlanKernel *kernel = &plan->kernels[products[i].kernel];
    const char **row = &cells[(i + 1) * COLUMNS];
    const bool tiled = product->tile_m > 0;
    row[0] = kernel->name;
    row[1] = op_info(kernel->op)->name;
    row[2] = math_mode_name(product->math);
    row[3] = tiled ? arena_format(tool->arena, "%d x %d x %d", (int)product->tile_m, (int)product->tile_n,
                                  (int)product->tile_k)
                   : "no tiles";
    row[4] = tiled ? arena_format(tool->arena, "%d", (int)product->stages) : "-";
    row[5] = tiled ? arena_format(tool->arena, "%d", (int)product->splits) : "-";
    row[6] = tiled ? arena_format(tool->arena, "%lld", (long long)product->blocks) : "-";
    row[7] = tiled ? arena_format(tool->arena, "%d", (int)product->threads) : "-";
  }
  printf("\n%s, batch %lld: %zu matrix product%s\n", plan->target->isa, (long long)plan->max_batch, count,
         count == 1 ? "" : "s");
  if (count > 0) table_print(stdout, tool->arena, cells, count + 1, COLUMNS, "<<<>>>>>");
  return true;
}

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
  if (plan != NULL && plan->target->arch != 0 && !request->json && !print_products(tool, plan)) return EXIT_FAILED;
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
                            {"target", 0, OPTION_TEXT, &request.model.device, "TARGET",
                             "cpu (default) or cuda, the same as --device", 0, 0},
                            {"arch", 0, OPTION_TEXT, &request.model.arch, "ARCH",
                             "of the GPU, which need not be here: sm_80, sm_90, … (default: this machine's)", 0, 0},
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
    "reason. For a GPU a table of the matrix products follows: the mode of computing, the tile of a block, the stages of\n"
    "shared memory and the blocks that share a sum.",
    "  kiln explain examples/resnet34.json\n  kiln explain examples/simple_cnn10_bn.json --plan --cpu x86-64-v3\n"
    "  kiln explain examples/resnet34.json --memory --svg workspace.svg\n"
    "  kiln explain examples/simple_cnn10_bn.json --train --optimizer adam\n"
    "  kiln explain examples/resnet50.json --target cuda --arch sm_90 --math bf16 --batch 16\n"
    "  kiln explain model.json --stop-after fuse\n  kiln explain model.json --dump before:fuse,after:fuse",
    explain_run};
