/* kiln compile: a description and weights to a shared library with a C header. */
#include <string.h>

#include "base/file.h"
#include "common.h"

typedef struct CompileRequest {
  ModelOptions model;
  const char *path, *output, *weights_mode, *emit;
} CompileRequest;

static bool write_text(Tool *tool, const char *path, const Text *text) {
  if (path == NULL) return fwrite(text->data, 1, text->size, stdout) == text->size;
  FilePiece piece = {text->data, text->size};
  return file_write(path, &piece, 1, tool->diag);
}

static bool emit_object(Tool *tool, const Graph *graph, const Plan *plan, const kiln_compile_options *compile,
                        const char *output) {
  bool embed = compile->weights == KILN_WEIGHTS_EMBED;
  CpuOptions cpu = {.threads = (int32_t)compile->threads, .embed = embed, .cache_dir = compile->cache_dir};
  CpuObjects objects;
  if (!cpu_compile(plan, &cpu, tool->arena, tool->diag, &objects)) return false;
  Code *all = arena_array(tool->arena, objects.count + 1, Code);
  memcpy(all, objects.objects, objects.count * sizeof *all);
  size_t count = objects.count;
  if (embed) {
    void *blob;
    const char *symbol = arena_format(tool->arena, "%s_embedded_weights", objects.symbol);
    if (!build_prepared(graph, plan, compile, tool->arena, tool->diag, &blob) ||
        !elf_blob(plan->target, symbol, blob, (size_t)plan->prepared_bytes, tool->arena, tool->diag, &all[count++]))
      return false;
  }
  return link_objects(plan->target, all, count, NULL, true, output, tool->arena, tool->diag);
}

static int emit(Tool *tool, CompileRequest *request, const Graph *graph, const Graph *optimised, const Plan *plan,
                const kiln_compile_options *compile) {
  const char *what = request->emit, *output = request->output;
  Text text;
  text_init(&text, tool->arena);
  bool done = true;
  if (what == NULL || strcmp(what, "lib") == 0)
    done = build_library(graph, plan, compile, output, tool->arena, tool->diag);
  else if (strcmp(what, "obj") == 0)
    done = emit_object(tool, graph, plan, compile, output);
  else {
    CpuOptions cpu = {.threads = 1, .embed = compile->weights == KILN_WEIGHTS_EMBED};
    if (strcmp(what, "ir") == 0)
      graph_print(&text, optimised);
    else if (strcmp(what, "plan") == 0)
      plan_print(&text, plan);
    else
      done = cpu_print(plan, &cpu, strcmp(what, "asm") == 0, tool->arena, tool->diag, &text);
    done = done && write_text(tool, output, &text);
  }
  return done ? EXIT_OK : EXIT_FAILED;
}

static int compile_body(Tool *tool, void *context) {
  CompileRequest *request = context;
  Graph *graph, *optimised;
  Plan *plan;
  kiln_compile_options compile;
  Location nowhere = {NULL, 0, 0};
  if (!compile_options(tool, &request->model, &compile)) return EXIT_FAILED;
  compile.triple = request->model.triple;
  const char *mode = request->weights_mode;
  if (mode != NULL && strcmp(mode, "file") == 0)
    compile.weights = KILN_WEIGHTS_FILE;
  else if (mode != NULL && strcmp(mode, "caller") == 0)
    compile.weights = KILN_WEIGHTS_CALLER;
  else if (mode != NULL && strcmp(mode, "embed") != 0) {
    diag_error(tool->diag, nowhere, "--weights-mode: expected embed, file or caller, found '%s'", mode);
    return EXIT_USAGE;
  }
  static const char *const kinds[] = {"ir", "plan", "llvm", "asm", "obj", "lib"};
  bool known = request->emit == NULL, binary = request->emit == NULL;
  for (size_t i = 0; !known && i < sizeof kinds / sizeof kinds[0]; i++) {
    known = strcmp(request->emit, kinds[i]) == 0;
    binary = known && i >= 4;
  }
  if (!known) {
    diag_error(tool->diag, nowhere, "--emit: expected ir, plan, llvm, asm, obj or lib, found '%s'", request->emit);
    return EXIT_USAGE;
  }
  if (binary && request->output == NULL) {
    diag_error(tool->diag, nowhere, "-o FILE is missing");
    return EXIT_USAGE;
  }
  double started = seconds_now();
  if (!model_open(tool, request->path, &request->model, &graph)) return EXIT_FAILED;
  if (!model_plan(tool, graph, &request->model, &compile, &optimised, &plan)) return EXIT_FAILED;
  if (plan == NULL) return EXIT_OK;
  int code = emit(tool, request, graph, optimised, plan, &compile);
  if (code == EXIT_OK && binary)
    printf("%s: %s for %s, %zu kernels, %s bytes of weights, workspace %s bytes at batch 1, batch up to %lld, %.2f s\n",
           request->output, plan->name, plan->target->isa, plan->kernel_count - plan->prepare_count,
           grouped(tool->arena, plan->prepared_bytes),
           grouped(tool->arena, plan->workspace_fixed + plan->workspace_per_batch), (long long)plan->max_batch,
           seconds_now() - started);
  return code;
}

static int compile_run(int argc, char **argv) {
  CompileRequest request = {.path = NULL};
  const Option options[] = {
      {"output", 'o', OPTION_TEXT, &request.output, "FILE", "library to write, libNAME.so; NAME.h is written beside it",
       0, 0},
      WEIGHTS_OPTION(request.model){"weights-mode", 0, OPTION_TEXT, &request.weights_mode, "MODE",
                                    "embed (default), file (NAME.weights) or caller", 0, 0},
      {"emit", 0, OPTION_TEXT, &request.emit, "WHAT", "ir, plan, llvm, asm, obj or lib (default)", 0, 0},
      {"triple", 0, OPTION_TEXT, &request.model.triple, "TRIPLE", "LLVM target triple, e.g. aarch64-linux-gnu", 0, 0},
      {"hook", 0, OPTION_LIST, &request.model.hooks, "VALUE", "store a value's activations as output hook.VALUE", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) DUMP_OPTIONS(request.model){.name = NULL}};
  int code = options_parse(&verb_compile, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(compile_body, &request);
}

const Verb verb_compile = {
    "compile",
    "compile to a shared library with a C header",
    "MODEL --weights FILE -o libNAME.so [options]",
    "Compiles a model to machine code. The library needs nothing at run time, allocates nothing and starts no threads; "
    "the\n"
    "header explains how to call it. The same input gives the same bytes.",
    "  kiln compile examples/resnet34.json --weights w.safetensors -o libresnet34.so\n"
    "  kiln compile model.json --weights w.safetensors --batch 1,16 --cpu x86-64-v3 --weights-mode file -o "
    "libmodel.so\n"
    "  kiln compile model.json --weights w.safetensors --triple aarch64-linux-gnu -o libmodel.so\n"
    "  kiln compile model.json --emit llvm | less",
    compile_run};
