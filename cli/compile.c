/* kiln compile: a description and weights to a shared library with a C header. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "common.h"
#include "cuda/cuda.h"
#include "cuda/nvrtc.h"
#include "step_options.h"

typedef enum EmitKind { EMIT_TEXT, EMIT_BINARY, EMIT_GPU } EmitKind;

static const struct {
  const char *name;
  EmitKind kind;
  bool named; /* does not go to standard output */
} emit_kinds[] = {{"ir", EMIT_TEXT, false},  {"plan", EMIT_TEXT, false},  {"llvm", EMIT_TEXT, false},
                  {"asm", EMIT_TEXT, false}, {"obj", EMIT_BINARY, true},  {"lib", EMIT_BINARY, true},
                  {"cuda", EMIT_GPU, false}, {"ptx", EMIT_GPU, false},    {"cubin", EMIT_GPU, true}};

typedef struct CompileRequest {
  ModelOptions model;
  StepOptions step;
  const char *path, *output, *weights_mode, *emit;
  EmitKind kind;
} CompileRequest;

static bool write_text(Tool *tool, const char *path, const Text *text) {
  if (path == NULL) {
    fwrite(text->data, 1, text->size, stdout); /* output_finish tells a failure from a reader that has gone */
    return true;
  }
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

/* One text or image per kernel: PTX one after the other, machine code as files of a folder. */
static bool emit_cuda_images(Tool *tool, const Plan *plan, const CudaProgramText *program, bool ptx,
                             const kiln_compile_options *compile, const char *output, Text *text) {
  const NvrtcOptions options = {.arch = plan->target->isa,
                                .ptx = ptx,
                                .threads = (int32_t)compile->threads,
                                .cache_dir = compile->cache_dir};
  Code *images;
  if (!nvrtc_compile(plan, program, &options, tool->arena, tool->diag, &images)) return false;
  if (!ptx && mkdir(output, 0777) != 0 && errno != EEXIST) {
    diag_error(tool->diag, (Location){output, 0, 0}, "cannot be made: %s", strerror(errno));
    return false;
  }
  for (size_t i = 0; i < program->code_count; i++) {
    const CudaCode *code = &program->codes[i];
    if (images[i].size == 0) continue;
    FilePiece piece = {images[i].data, images[i].size};
    if (ptx)
      text_format(text, "// === %s\n%s\n", code->name, (const char *)images[i].data);
    else if (!file_write(arena_format(tool->arena, "%s/%s.cubin", output, code->name), &piece, 1, tool->diag))
      return false;
  }
  return true;
}

static bool emit_cuda(Tool *tool, const CompileRequest *request, const Plan *plan,
                      const kiln_compile_options *compile) {
  CudaProgramText program;
  Text text;
  text_init(&text, tool->arena);
  const bool ptx = strcmp(request->emit, "ptx") == 0, source = strcmp(request->emit, "cuda") == 0;
  if (plan->target->arch == 0) {
    diag_error(tool->diag, (Location){NULL, 0, 0}, "--emit %s is for GPUs: give --target cuda --arch sm_NN too",
               request->emit);
    return false;
  }
  if (!cuda_generate(plan, tool->arena, tool->diag, &program)) return false;
  if (source)
    cuda_print(&text, plan, &program);
  else if (!emit_cuda_images(tool, plan, &program, ptx, compile, request->output, &text))
    return false;
  return (!source && !ptx) || write_text(tool, request->output, &text);
}

static int emit(Tool *tool, CompileRequest *request, const Graph *graph, const Graph *optimised, const Plan *plan,
                const kiln_compile_options *compile) {
  const char *what = request->emit, *output = request->output;
  Text text;
  text_init(&text, tool->arena);
  bool done = true;
  if (request->kind == EMIT_GPU)
    done = emit_cuda(tool, request, plan, compile);
  else if (what == NULL || strcmp(what, "lib") == 0)
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

/* Levels of a processor's instructions do not include tile registers. */
static bool needs_tiles(const Plan *plan) {
  for (size_t i = 0; i < plan->kernel_count; i++)
    if (plan->kernels[i].choice.algorithm == ALGORITHM_TILES) return true;
  return false;
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
  const char *what = request->emit != NULL ? request->emit : "lib";
  bool known = false, named = false;
  for (size_t i = 0; !known && i < sizeof emit_kinds / sizeof *emit_kinds; i++) {
    known = strcmp(what, emit_kinds[i].name) == 0;
    request->kind = emit_kinds[i].kind;
    named = emit_kinds[i].named;
  }
  if (!known) {
    diag_error(tool->diag, nowhere, "--emit: expected ir, plan, llvm, asm, obj, lib, cuda, ptx or cubin, found '%s'",
               what);
    return EXIT_USAGE;
  }
  if (named && request->output == NULL) {
    diag_error(tool->diag, nowhere, "-o FILE is missing");
    return EXIT_USAGE;
  }
  double started = seconds_now();
  if (!model_open(tool, request->path, &request->model, &graph) ||
      !step_request(tool, &request->step, graph, &request->model.train))
    return EXIT_FAILED;
  if (!model_plan(tool, graph, &request->model, &compile, &optimised, &plan)) return EXIT_FAILED;
  if (plan == NULL) return EXIT_OK;
  int code = emit(tool, request, graph, optimised, plan, &compile);
  if (code == EXIT_OK && request->kind == EMIT_BINARY)
    printf("%s: %s for %s%s, %zu kernels, %s bytes of weights, workspace %s bytes at batch 1, batch up to %lld, %.2f s\n",
           request->output, plan->name, plan->target->isa, needs_tiles(plan) ? " with AMX" : "",
           plan->kernel_count - plan->prepare_count,
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
      {"emit", 0, OPTION_TEXT, &request.emit, "WHAT",
       "ir, plan, llvm, asm, obj or lib (default); for GPUs cuda, ptx or cubin (-o FOLDER)", 0, 0},
      {"target", 0, OPTION_TEXT, &request.model.device, "TARGET", "cpu (default) or cuda, the same as --device", 0, 0},
      {"arch", 0, OPTION_TEXT, &request.model.arch, "ARCH", "of the GPU: sm_80, sm_90, … (default: this machine's)", 0, 0},
      {"triple", 0, OPTION_TEXT, &request.model.triple, "TRIPLE", "LLVM target triple, e.g. aarch64-linux-gnu", 0, 0},
      {"hook", 0, OPTION_LIST, &request.model.hooks, "VALUE", "store a value's activations as output hook.VALUE", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) STEP_OPTIONS(request.step)
          DUMP_OPTIONS(request.model){.name = NULL}};
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
    "  kiln compile model.json --emit llvm | less\n"
    "  kiln compile examples/simple_cnn10_bn.json --train --optimizer adam --batch 64 -o libsimple_cnn10_bn_train.so\n"
    "  kiln compile model.json --target cuda --arch sm_90 --emit cuda | less",
    compile_run};
