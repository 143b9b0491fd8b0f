/* kiln summary: layers, shapes and parameters of a model. */
#include <string.h>

#include "common.h"

typedef struct SummaryRequest {
  ModelOptions model;
  const char *path;
  bool json;
} SummaryRequest;

typedef struct LayerRow {
  int64_t parameters, trainable;
} LayerRow;

/* Buffers (running statistics) are not counted, as in PyTorch. */
static LayerRow *count_rows(Tool *tool, const Graph *graph, LayerRow *out_total) {
  LayerRow *rows = arena_array(tool->arena, graph->layer_count + 1, LayerRow);
  *out_total = (LayerRow){0, 0};
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    if (parameter->buffer || parameter->inline_value) continue;
    int64_t count = shape_elements_per_image(&parameter->shape);
    int64_t trainable = parameter->trainable ? count : 0;
    out_total->parameters += count;
    out_total->trainable += trainable;
    if (parameter->layer == LAYER_NONE) continue;
    rows[parameter->layer].parameters += count;
    rows[parameter->layer].trainable += trainable;
  }
  return rows;
}

static void print_json(Tool *tool, const Graph *graph, const LayerRow *rows, const LayerRow *total) {
  Text text;
  text_init(&text, tool->arena);
  text_add(&text, "{\"layers\":[");
  for (size_t i = 0; i < graph->layer_count; i++) {
    const Layer *layer = &graph->layers[i];
    text_add(&text, i > 0 ? ",\n{\"name\":" : "\n{\"name\":");
    text_add_json(&text, layer->name);
    text_add(&text, ",\"op\":");
    text_add_json(&text, layer->op);
    text_add(&text, ",\"output\":[");
    const Shape *shape = &layer->node->shape;
    for (int32_t d = 0; d < shape->rank; d++) {
      if (shape->dims[d] == DIM_BATCH)
        text_add(&text, "\"N\"");
      else
        text_format(&text, "%lld", (long long)shape->dims[d]);
      if (d + 1 < shape->rank) text_add(&text, ",");
    }
    text_format(&text, "],\"params\":%lld,\"trainable\":%s}", (long long)rows[i].parameters,
                rows[i].trainable > 0 ? "true" : "false");
  }
  text_format(&text, "],\n\"params\":%lld,\"trainable\":%lld}\n", (long long)total->parameters,
              (long long)total->trainable);
  fputs(text.data, stdout);
}

static void print_table(Tool *tool, const Graph *graph, const LayerRow *rows, const LayerRow *total) {
  enum { COLUMNS = 5 };
  const char **cells = arena_array(tool->arena, (graph->layer_count + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"layer", "op", "output", "params", "trainable"};
  memcpy(cells, head, sizeof head);
  for (size_t i = 0; i < graph->layer_count; i++) {
    const Layer *layer = &graph->layers[i];
    Text shape;
    text_init(&shape, tool->arena);
    for (int32_t d = 0; d < layer->node->shape.rank; d++) {
      int64_t dim = layer->node->shape.dims[d];
      if (dim == DIM_BATCH)
        text_add(&shape, d > 0 ? " x N" : "N");
      else
        text_format(&shape, "%s%lld", d > 0 ? " x " : "", (long long)dim);
    }
    const char **row = &cells[(i + 1) * COLUMNS];
    row[0] = layer->name;
    row[1] = layer->op;
    row[2] = shape.data;
    row[3] = grouped(tool->arena, rows[i].parameters);
    row[4] = rows[i].parameters == 0 ? "" : rows[i].trainable > 0 ? "yes" : "no";
  }
  table_print(stdout, tool->arena, cells, graph->layer_count + 1, COLUMNS, "<<<><");
  printf("\nparameters  %s\ntrainable   %s\nfrozen      %s\n", grouped(tool->arena, total->parameters),
         grouped(tool->arena, total->trainable), grouped(tool->arena, total->parameters - total->trainable));
}

static int summary_body(Tool *tool, void *context) {
  SummaryRequest *request = context;
  Graph *graph;
  if (!model_open(tool, request->path, &request->model, &graph)) return EXIT_FAILED;
  LayerRow total;
  LayerRow *rows = count_rows(tool, graph, &total);
  if (request->json)
    print_json(tool, graph, rows, &total);
  else
    print_table(tool, graph, rows, &total);
  return EXIT_OK;
}

static int summary_run(int argc, char **argv) {
  SummaryRequest request = {.path = NULL};
  const Option options[] = {
      SHAPE_OPTION(request.model){"json", 0, OPTION_FLAG, &request.json, NULL, "print JSON", 0, 0}, {.name = NULL}};
  int code = options_parse(&verb_summary, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(summary_body, &request);
}

const Verb verb_summary = {
    "summary",
    "layers, output shapes and parameters",
    "MODEL [options]",
    "Prints a row per layer: name, op, output shape, number of parameters, whether they are trainable; then totals.\n"
    "Running statistics of batch norms and constants that stand in the description are not counted. N is the batch.",
    "  kiln summary examples/resnet34_pets.json --shape image=1x3x352x352\n  kiln summary examples/simple_cnn2.json "
    "--json",
    summary_run};
