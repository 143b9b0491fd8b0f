/* kiln stats: statistics of activations. */
#include <string.h>

#include "affinity.h"
#include "execute.h"
#include "ports.h"
#include "safetensors.h"
#include "session/plot.h"
#include "stats.h"

typedef struct StatsRequest {
  ModelOptions model;
  const char *path, *inputs, *plot;
  OptionList input;
  int64_t bins;
  double low, high;
  int64_t class_number; /* statistics of gradients of its score; −1: of activations */
  bool json;
} StatsRequest;

static const char activation_prefix[] = "hook.stats.", gradient_prefix[] = "hook.grad.stats.";

static bool has_prefix(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }
static bool is_gradient(const Tensor *output) { return has_prefix(output->name, gradient_prefix); }

static const char *value_name(const Tensor *output) {
  return output->name + (is_gradient(output) ? sizeof gradient_prefix : sizeof activation_prefix) - 1;
}

static void print_json(Tool *tool, const Tensor *outputs, size_t count) {
  Text text;
  text_init(&text, tool->arena);
  text_add(&text, "[");
  for (size_t i = 0; i < count; i++) {
    text_add(&text, i > 0 ? ",\n{\"name\":" : "\n{\"name\":");
    text_add_json(&text, value_name(&outputs[i]));
    text_format(&text, ",\"kind\":\"%s\"", is_gradient(&outputs[i]) ? "gradient" : "activation");
    static const char *const keys[] = {"mean", "std", "near_zero"};
    for (int64_t k = 0; k < STATS_RESULT_FIELDS; k++) {
      text_format(&text, ",\"%s\":", keys[k]);
      double value = tensor_get(&outputs[i], k);
      if (value - value == 0)
        text_add_double(&text, value);
      else
        text_add(&text, "null");
    }
    text_add(&text, ",\"histogram\":[");
    for (int64_t k = STATS_RESULT_FIELDS; k < outputs[i].shape.dims[0]; k++) {
      if (k > STATS_RESULT_FIELDS) text_add(&text, ",");
      text_add_double(&text, tensor_get(&outputs[i], k));
    }
    text_add(&text, "]}");
  }
  text_add(&text, "]\n");
  fputs(text.data, stdout);
}

static void print_table(Tool *tool, const Tensor *outputs, size_t count) {
  enum { COLUMNS = 4 };
  const char **cells = arena_array(tool->arena, (count + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value", "mean", "std", "near zero"};
  memcpy(cells, head, sizeof head);
  for (size_t i = 0; i < count; i++) {
    const char **row = &cells[(i + 1) * COLUMNS];
    row[0] = value_name(&outputs[i]);
    if (is_gradient(&outputs[i])) row[0] = arena_format(tool->arena, "gradient of %s", row[0]);
    row[1] = arena_format(tool->arena, "%.5g", tensor_get(&outputs[i], STATS_RESULT_MEAN));
    row[2] = arena_format(tool->arena, "%.5g", tensor_get(&outputs[i], STATS_RESULT_STD));
    row[3] = arena_format(tool->arena, "%.2f %%", 100 * tensor_get(&outputs[i], STATS_RESULT_NEAR_ZERO));
  }
  table_print(stdout, tool->arena, cells, count + 1, COLUMNS, "<>>>");
}

/* A histogram per value. */
static bool write_plot(Tool *tool, const StatsRequest *request, const Tensor *outputs, size_t count) {
  PlotPanel *panels = arena_array(tool->arena, count + 1, PlotPanel);
  for (size_t i = 0; i < count; i++) {
    size_t bins = (size_t)(outputs[i].shape.dims[0] - STATS_RESULT_FIELDS);
    double *edges = arena_array(tool->arena, bins + 1, double), *counts = arena_array(tool->arena, bins, double);
    for (size_t k = 0; k <= bins; k++)
      edges[k] = request->low + (request->high - request->low) * (double)k / (double)bins;
    for (size_t k = 0; k < bins; k++) counts[k] = tensor_get(&outputs[i], (int64_t)k + STATS_RESULT_FIELDS);
    PlotSeries *series = arena_new(tool->arena, PlotSeries);
    *series = (PlotSeries){NULL, PLOT_BARS, edges, counts, bins};
    const char *title =
        arena_format(tool->arena, "%s: mean %.3g, std %.3g, near zero %.0f %%", value_name(&outputs[i]),
                     tensor_get(&outputs[i], STATS_RESULT_MEAN), tensor_get(&outputs[i], STATS_RESULT_STD),
                     100 * tensor_get(&outputs[i], STATS_RESULT_NEAR_ZERO));
    panels[i] = (PlotPanel){.kind = PANEL_CHART,
                            .title = title,
                            .x = {.label = "value"},
                            .y = {.label = "count"},
                            .series = series,
                            .series_count = 1};
  }
  Figure figure = {.title = request->class_number < 0 ? "Activations" : "Gradients",
                   .panels = panels,
                   .panel_count = count,
                   .columns = count < 3 ? count : 3};
  return figure_write(&figure, request->plot, tool->arena, tool->diag);
}

static int stats_body(Tool *tool, void *context) {
  StatsRequest *request = context;
  TensorList files = {NULL, 0};
  if (request->inputs != NULL && !safetensors_read(request->inputs, tool->arena, tool->diag, &files))
    return EXIT_FAILED;
  /* a compiled library has the hooks that it was compiled with */
  if (request->model.hooks.count == 0 && !is_library(request->path))
    request->model.hooks.items[request->model.hooks.count++] = "*";
  for (size_t i = 0; i < request->model.hooks.count; i++) {
    const char *value = request->model.hooks.items[i];
    Text low, high;
    text_init(&low, tool->arena);
    text_init(&high, tool->arena);
    text_add_double(&low, request->low);
    text_add_double(&high, request->high);
    request->model.hooks.items[i] = arena_format(tool->arena, "%s:%s:stats:bins=%lld,range=%s..%s", value,
                                                 request->class_number < 0 ? "activation" : "gradient",
                                                 (long long)request->bins, low.data, high.data);
  }
  kiln_executable *executable;
  Graph *graph;
  Plan *plan;
  int64_t batch = (int64_t)request->input.count > 1 ? (int64_t)request->input.count : 1;
  for (size_t i = 0; i < files.count; i++)
    if (files.items[i].shape.rank == 4 && strchr(files.items[i].name, '.') == NULL &&
        files.items[i].shape.dims[0] > batch)
      batch = files.items[i].shape.dims[0];
  if (!executable_open(tool, request->path, &request->model, &files, batch, &executable, &graph, &plan))
    return EXIT_FAILED;
  const kiln_program *program = executable->program;
  Metadata metadata;
  Tensor *inputs, *outputs;
  if (!metadata_read(tool, program, &metadata)) return EXIT_FAILED;
  metadata.class_number = request->class_number;
  if (!inputs_read(tool, program, &metadata, &files, &request->input, &inputs, &batch)) return EXIT_FAILED;
  kiln_context_options options;
  if (!context_options(tool, &request->model, &options)) return EXIT_FAILED;
  if (!run_batches(tool, executable, &options, inputs, batch, &outputs)) return EXIT_FAILED;
  size_t count = 0;
  for (uint32_t i = 0; i < program->output_count; i++)
    if (has_prefix(outputs[i].name, activation_prefix) || is_gradient(&outputs[i])) outputs[count++] = outputs[i];
  if (count == 0) {
    diag_error(tool->diag, (Location){request->path, 0, 0},
               "was compiled without statistics hooks; compile with --hook 'VALUE:activation:stats'");
    return EXIT_FAILED;
  }
  if (request->json)
    print_json(tool, outputs, count);
  else
    print_table(tool, outputs, count);
  return request->plot == NULL || write_plot(tool, request, outputs, count) ? EXIT_OK : EXIT_FAILED;
}

static int stats_run(int argc, char **argv) {
  StatsRequest request = {.bins = 40, .low = 0, .high = 10, .class_number = -1};
  const Option options[] = {
      WEIGHTS_OPTION(request.model){"input", 'i', OPTION_LIST, &request.input, "NAME=FILE", "an input, as in kiln run",
                                    0, 0},
      {"inputs", 0, OPTION_TEXT, &request.inputs, "FILE", "safetensors with inputs (and parameters) by name", 0, 0},
      {"hook", 0, OPTION_LIST, &request.model.hooks, "VALUE", "values, also by pattern (default: all)", 0, 0},
      {"class", 0, OPTION_INT, &request.class_number, "K", "of the gradients of this class's score instead", 0,
       INT32_MAX},
      {"bins", 0, OPTION_INT, &request.bins, "N", "bins of the histogram (default 40)", 1, STATS_BINS_MAX},
      {"low", 0, OPTION_DOUBLE, &request.low, "V", "lower end of the histogram (default 0)", 0, 0},
      {"high", 0, OPTION_DOUBLE, &request.high, "V", "upper end of the histogram (default 10)", 0, 0},
      {"plot", 0, OPTION_TEXT, &request.plot, "FILE", "draw the histograms, PNG or SVG", 0, 0},
      {"json", 0, OPTION_FLAG, &request.json, NULL, "print JSON", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model){.name = NULL}};
  int code = options_parse(&verb_stats, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(stats_body, &request);
}

const Verb verb_stats = {
    "stats",
    "statistics of activations or gradients",
    "MODEL --weights FILE --inputs FILE [--hook VALUE …] [options]",
    "Prints mean, unbiased standard deviation and the share of values up to 0.05 of every layer's and block's value "
    "over\n"
    "all images of the inputs, and draws their histograms. The statistics are computed by the compiled program.",
    "  kiln stats examples/resnet34.json --weights w.safetensors --input image=cat.jpg --hook 'layer*' --plot "
    "stats.png\n"
    "  kiln stats model.json --weights w.safetensors --inputs in.safetensors --json\n"
    "  kiln stats model.json --weights w.safetensors --input image=cat.jpg --class 281 --low -0.01 --high 0.01",
    stats_run};
