/* kiln tune: measures the ways to compute a model's kernels and keeps the times for compiling. */
#include "tune.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench_kernels.h"
#include "cuda/gemm.h"
#include "progress.h"
#include "session/tuning_file.h"

typedef struct TuneRequest {
  ModelOptions model;
  const char *path, *output;
  int64_t rounds;
  bool all;
} TuneRequest;

enum { ROUNDS = 11, COLUMNS = 5 };

static void show_progress(void *context, size_t done, size_t total) {
  Progress *progress = context;
  progress_show(progress, "measuring", (int64_t)done, (int64_t)total, "");
}

bool candidates_measure(Tool *tool, const Graph *graph, const kiln_compile_options *compile, int64_t rounds,
                        TuneResult *out_result) {
  Progress progress;
  progress_begin(&progress);
  const TuneOptions options = {.compile = compile, .rounds = rounds, .progress = show_progress, .context = &progress};
  const bool done = tune_measure(graph, &options, tool->arena, tool->diag, out_result);
  progress_clear(&progress);
  return done;
}

static size_t fastest(const TunedKernel *kernel) {
  size_t best = 0;
  for (size_t c = 1; c < kernel->offers->count; c++)
    if (kernel->times[c] < kernel->times[best]) best = c;
  return best;
}

/* A GPU's tiles by their sizes too. */
static const char *candidate_text(Arena *arena, const Target *target, const char *name) {
  int64_t number;
  size_t count;
  if (target->arch == 0 || strncmp(name, "tile ", 5) != 0 || !parse_int(name + 5, &number)) return name;
  const GemmTile *tiles = gemm_tiles(target->arch < 80 ? MATH_FP32 : target->math, &count);
  if (number < 1 || number > (int64_t)count) return name;
  const GemmTile *tile = &tiles[number - 1];
  return arena_format(arena, "%s, %dx%dx%d", name, (int)tile->m, (int)tile->n, (int)tile->k);
}

void candidates_print(Tool *tool, const TuneResult *result) {
  size_t rows = 1, most = 1;
  for (size_t k = 0; k < result->kernel_count; k++) most += result->kernels[k].offers->count;
  const char **cells = arena_array(tool->arena, most * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value", "op", "us", "", "candidate"};
  double taken = result->others, best = result->others;
  memcpy(cells, head, sizeof head);
  for (size_t k = 0; k < result->kernel_count; k++) {
    const TunedKernel *kernel = &result->kernels[k];
    taken += kernel->times[kernel->offers->taken];
    best += kernel->times[fastest(kernel)];
    for (size_t c = 0; c < kernel->offers->count; c++) {
      const char **row = &cells[rows++ * COLUMNS];
      row[0] = c == 0 ? kernel->name : "";
      row[1] = c == 0 ? op_info(kernel->op)->name : "";
      row[2] = arena_format(tool->arena, "%.1f", kernel->times[c]);
      row[3] = c == kernel->offers->taken ? "taken" : c == fastest(kernel) ? "fastest" : "";
      row[4] = candidate_text(tool->arena, result->target, kernel->offers->names[c]);
    }
  }
  table_print(stdout, tool->arena, cells, rows, COLUMNS, "<<><<");
  printf("sum of the kernels %.1f us, of the best ones %.1f us: %.1f %% above the best\n", taken, best,
         best > 0 ? 100 * (taken / best - 1) : 0);
}

void candidates_json(Text *text, const TuneResult *result) {
  double taken = result->others, best = result->others;
  text_add(text, "\"variants\":[");
  for (size_t k = 0; k < result->kernel_count; k++) {
    const TunedKernel *kernel = &result->kernels[k];
    taken += kernel->times[kernel->offers->taken];
    best += kernel->times[fastest(kernel)];
    text_add(text, k > 0 ? ",{\"value\":" : "{\"value\":");
    text_add_json(text, kernel->name ? kernel->name : "");
    text_format(text, ",\"op\":\"%s\",\"taken\":%zu,\"candidates\":[", op_info(kernel->op)->name, kernel->offers->taken);
    for (size_t c = 0; c < kernel->offers->count; c++) {
      text_add(text, c > 0 ? ",{\"name\":" : "{\"name\":");
      text_add_json(text, kernel->offers->names[c]);
      if (isfinite(kernel->times[c]))
        text_format(text, ",\"us\":%.3f}", kernel->times[c]);
      else
        text_add(text, ",\"us\":null}"); /* not measured */
    }
    text_add(text, "]}");
  }
  text_format(text, "],\"taken_us\":%.3f,\"best_us\":%.3f", taken, best);
}

void candidates_csv(const TuneResult *result) {
  fputs("value,op,us,taken,candidate\n", stdout);
  for (size_t k = 0; k < result->kernel_count; k++) {
    const TunedKernel *kernel = &result->kernels[k];
    for (size_t c = 0; c < kernel->offers->count; c++) {
      csv_field(stdout, kernel->name ? kernel->name : "");
      printf(",%s,%.3f,%d,", op_info(kernel->op)->name, kernel->times[c], c == kernel->offers->taken);
      csv_field(stdout, kernel->offers->names[c]);
      fputc('\n', stdout);
    }
  }
}

/* What stands in the file stays, when its version and machine are these. */
static bool keep_times(Tool *tool, const char *path, const TuneResult *result, uint32_t threads, size_t *out_kernels) {
  const Tuning measured = tune_table(result, tool->arena);
  Tuning before = {.kernels = NULL};
  if (access(path, F_OK) == 0 && !tuning_read(path, result->target, tool->arena, tool->diag, &before)) return false;
  const Tuning merged = tuning_merge(&before, &measured, tool->arena);
  *out_kernels = measured.kernel_count;
  return tuning_write(path, result->target, threads, &merged, tool->arena, tool->diag);
}

static const char *default_output(Tool *tool) {
  const char *path = tuning_default(tool->arena);
  if (path == NULL) {
    tool_usage_error(tool, "-o FILE is missing: there is no cache folder to write to");
    return NULL;
  }
  mkdir(arena_string_n(tool->arena, path, (size_t)(strrchr(path, '/') - path)), 0777); /* writing reports a failure */
  return path;
}

static int tune_body(Tool *tool, void *context) {
  TuneRequest *request = context;
  Graph *graph;
  TuneResult result;
  TensorList initial;
  kiln_compile_options compile;
  size_t kernels;
  const double started = seconds_now();
  if (is_library(request->path)) {
    tool_usage_error(tool, "%s is compiled already: tune needs a description", request->path);
    return EXIT_FAILED;
  }
  const char *path = request->output != NULL ? request->output : default_output(tool);
  if (path == NULL || !compile_options(tool, &request->model, &compile) ||
      !model_open(tool, request->path, &request->model, &graph))
    return EXIT_FAILED;
  if (request->model.weights == NULL) {
    /* times do not depend on the values: initial weights will do */
    weights_initialise(graph, 1, tool->arena, &initial);
    if (!weights_bind(graph, &initial, "initial values", true, tool->diag)) return EXIT_FAILED;
  }
  if (!candidates_measure(tool, graph, &compile, request->rounds, &result)) return EXIT_FAILED;
  if (request->all) candidates_print(tool, &result);
  if (!keep_times(tool, path, &result, compile.threads > 0 ? compile.threads : 1, &kernels)) return EXIT_FAILED;
  double model = result.others, best = result.others;
  for (size_t k = 0; k < result.kernel_count; k++) {
    model += result.kernels[k].times[0];
    best += result.kernels[k].times[fastest(&result.kernels[k])];
  }
  printf("%s: %zu different kernels of %s measured in %.1f s; all kernels %.1f us as modelled, %.1f us at best\n", path,
         kernels, graph->name, seconds_now() - started, model, best);
  return EXIT_OK;
}

static int tune_run(int argc, char **argv) {
  TuneRequest request = {.rounds = ROUNDS};
  const Option options[] = {
      {"output", 'o', OPTION_TEXT, &request.output, "FILE", "times to write or add to (default: in the cache folder)",
       0, 0},
      WEIGHTS_OPTION(request.model){"rounds", 0, OPTION_INT, &request.rounds, "R",
                                    "runs of every candidate, of which the median counts (default 11)", 1, 1000},
      {"all", 0, OPTION_FLAG, &request.all, NULL, "print every candidate's time", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model){.name = NULL}};
  int code = options_parse(&verb_tune, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(tune_body, &request);
}

const Verb verb_tune = {
    "tune",
    "measure the ways to compute a model's kernels",
    "MODEL [-o FILE] [options]",
    "Measures every candidate of every kernel that can be computed in several ways: direct convolution with other "
    "tiles,\n"
    "Winograd's algorithm, and on GPUs tiles, stages and splits of matrix products. Each is timed within the whole model,\n"
    "in turns with what the cost model would choose. All times are kept in a file, for --tuning of the other verbs; "
    "times\n"
    "of other kernels that stand there stay. They hold for this machine, this version, and the batch given.",
    "  kiln tune examples/resnet34.json --threads 2 -o resnet34.tuning\n"
    "  kiln run examples/resnet34.json --weights w.safetensors --tuning resnet34.tuning --input image=cat.png\n"
    "  kiln compile examples/resnet34.json --weights w.safetensors --tuning resnet34.tuning --locked -o "
    "libresnet34.so\n"
    "  kiln tune examples/resnet50.json --device cuda --math bf16 --batch 16\n"
    "  kiln bench examples/resnet50.json --device cuda --math bf16 --batch 16 --tuning default",
    tune_run};
