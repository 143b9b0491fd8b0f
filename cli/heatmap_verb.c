/* kiln heatmap: where in a picture a layer responds. */
#include <string.h>

#include "affinity.h"
#include "execute.h"
#include "ports.h"
#include "session/heatmap.h"
#include "session/npy.h"

typedef struct HeatmapRequest {
  ModelOptions model;
  const char *path, *layer, *method, *output, *raw;
  OptionList input;
  int64_t class_number;
  double opacity;
  bool all_layers;
} HeatmapRequest;

enum { SHEET_MAX = 64 };

/* The values of a contact sheet: blocks with a picture-shaped value, else convolutions; each value once. */
static size_t sheet_layers(Tool *tool, const Graph *graph, const char **names) {
  size_t count = 0;
  for (int pass = 0; pass < 2 && count < 2; pass++) {
    bool *seen = arena_array(tool->arena, graph->next_id, bool);
    count = 0;
    for (size_t i = 0; i < graph->value_name_count && count < SHEET_MAX; i++) {
      const ValueName *value = &graph->value_names[i];
      const Shape *shape = &value->node->shape;
      bool layer = false, convolution = false;
      for (size_t k = 0; k < graph->layer_count && !layer; k++) {
        layer = strcmp(graph->layers[k].name, value->name) == 0;
        convolution = layer && strcmp(graph->layers[k].op, "conv2d") == 0;
      }
      if (shape->rank != 4 || shape->dims[2] * shape->dims[3] < 4 || seen[value->node->id] ||
          (pass == 0 ? layer : !convolution))
        continue;
      seen[value->node->id] = true;
      names[count++] = value->name;
    }
  }
  return count;
}

static void add_hook(ModelOptions *model, Tool *tool, const char *name, const char *what) {
  if (model->hooks.count < sizeof model->hooks.items / sizeof model->hooks.items[0])
    model->hooks.items[model->hooks.count++] = arena_format(tool->arena, "%s:%s:store", name, what);
}

static const Tensor *output_named(const kiln_program *program, const Tensor *outputs, const char *name) {
  for (uint32_t i = 0; i < program->output_count; i++)
    if (strcmp(outputs[i].name, name) == 0) return &outputs[i];
  return NULL;
}

/* The class with the highest score in the first output. */
static int64_t best_class(const Tensor *scores) {
  int64_t classes = scores->shape.rank > 0 ? scores->shape.dims[scores->shape.rank - 1] : 1, best = 0;
  for (int64_t k = 1; k < classes; k++)
    if (tensor_get(scores, k) > tensor_get(scores, best)) best = k;
  return best;
}

static bool run_picture(Tool *tool, const HeatmapRequest *request, bool cam, const kiln_executable *executable,
                        Tensor **out_outputs) {
  Metadata metadata;
  Tensor *inputs;
  int64_t batch;
  TensorList none = {NULL, 0};
  kiln_context_options options;
  if (!context_options(tool, &request->model, &options)) return false;
  if (!metadata_read(tool, executable->program, &metadata)) return false;
  metadata.class_number = request->class_number >= 0 ? request->class_number : 0;
  if (!inputs_read(tool, executable->program, &metadata, &none, &request->input, &inputs, &batch) ||
      !run_batches(tool, executable, &options, inputs, batch, out_outputs))
    return false;
  int64_t chosen = request->class_number;
  if (cam && chosen < 0) {
    /* the class is known only now: a second run with it */
    metadata.class_number = chosen = best_class(&(*out_outputs)[0]);
    if (!inputs_read(tool, executable->program, &metadata, &none, &request->input, &inputs, &batch) ||
        !run_batches(tool, executable, &options, inputs, batch, out_outputs))
      return false;
  }
  if (cam) {
    int64_t classes = (*out_outputs)[0].shape.dims[(*out_outputs)[0].shape.rank - 1];
    if (chosen >= classes) {
      diag_error(tool->diag, (Location){NULL, 0, 0}, "--class: expected a class from 0 to %lld, found %lld",
                 (long long)classes - 1, (long long)chosen);
      return false;
    }
    const char *label = (size_t)chosen < metadata.label_count ? metadata.labels[chosen] : "";
    printf("class %lld %s\n", (long long)chosen, label);
  }
  return true;
}

static bool make_map(Tool *tool, const kiln_program *program, const Tensor *outputs, const char *layer, bool cam,
                     Tensor *out_map) {
  const Tensor *activation = output_named(program, outputs, arena_format(tool->arena, "hook.%s", layer));
  const Tensor *gradient = output_named(program, outputs, arena_format(tool->arena, "hook.grad.%s", layer));
  if (activation == NULL || (cam && gradient == NULL)) {
    diag_error(tool->diag, (Location){NULL, 0, 0}, "--layer: the model has no single value '%s'", layer);
    return false;
  }
  bool done = cam ? heatmap_grad_cam(activation, gradient, 0, tool->arena, tool->diag, out_map)
                  : heatmap_activation(activation, 0, tool->arena, tool->diag, out_map);
  out_map->name = layer;
  return done;
}

static int heatmap_body(Tool *tool, void *context) {
  HeatmapRequest *request = context;
  bool cam = request->method != NULL && strcmp(request->method, "gradcam") == 0;
  Graph *graph;
  const char *layers[SHEET_MAX] = {request->layer}, *name, *file;
  size_t count = 1;
  if (request->input.count != 1 || !name_value(tool, "input", request->input.items[0], &name, &file)) {
    diag_error(tool->diag, (Location){NULL, 0, 0}, "expected one picture, --input NAME=FILE, found %zu",
               request->input.count);
    return EXIT_USAGE;
  }
  if (request->all_layers) {
    if (is_library(request->path)) {
      diag_error(tool->diag, (Location){request->path, 0, 0},
                 "--all-layers needs a description, found a compiled library");
      return EXIT_USAGE;
    }
    if (!model_open(tool, request->path, &(ModelOptions){.shapes = request->model.shapes}, &graph)) return EXIT_FAILED;
    count = sheet_layers(tool, graph, layers);
    if (cam && count > 31) count = 31; /* two hooks a layer */
  }
  /* a compiled library has the hooks that it was compiled with */
  for (size_t i = 0; i < count && !is_library(request->path); i++) {
    add_hook(&request->model, tool, layers[i], "activation");
    if (cam) add_hook(&request->model, tool, layers[i], "gradient");
  }
  kiln_executable *executable;
  Plan *plan;
  Tensor *outputs, *maps = arena_array(tool->arena, count + 1, Tensor);
  if (!executable_open(tool, request->path, &request->model, NULL, 1, &executable, &graph, &plan)) return EXIT_FAILED;
  const kiln_program *program = executable->program;
  Picture picture, view, overlay;
  Metadata metadata;
  if (!metadata_read(tool, program, &metadata) || !picture_read(file, tool->arena, tool->diag, &picture) ||
      !picture_view(tool, &program->inputs[0], &metadata.preprocess[0], file, &picture, &view) ||
      !run_picture(tool, request, cam, executable, &outputs))
    return EXIT_FAILED;
  for (size_t i = 0; i < count; i++)
    if (!make_map(tool, program, outputs, layers[i], cam, &maps[i])) return EXIT_FAILED;
  if (request->raw != NULL && !npy_write(request->raw, &maps[0], tool->arena, tool->diag)) return EXIT_FAILED;
  if (request->output == NULL) return EXIT_OK;
  if (request->all_layers) {
    Figure sheet;
    const char *title = arena_format(tool->arena, "%s: %s", program->name, cam ? "Grad-CAM" : "mean activation");
    if (!heatmap_sheet(title, &view, maps, count, 0, tool->arena, tool->diag, &sheet) ||
        !figure_write(&sheet, request->output, tool->arena, tool->diag))
      return EXIT_FAILED;
  } else if (!heatmap_overlay(&view, &maps[0], request->opacity, tool->arena, tool->diag, &overlay) ||
             !picture_write_png(request->output, &overlay, tool->arena, tool->diag)) {
    return EXIT_FAILED;
  }
  printf("%s: %zu map%s of %lldx%lld%s\n", request->output, count, count == 1 ? "" : "s",
         (long long)maps[0].shape.dims[0], (long long)maps[0].shape.dims[1], count == 1 ? "" : " and others");
  return EXIT_OK;
}

static int heatmap_run(int argc, char **argv) {
  HeatmapRequest request = {.class_number = -1, .opacity = HEATMAP_OPACITY};
  const Option options[] = {
      WEIGHTS_OPTION(request.model){"input", 'i', OPTION_LIST, &request.input, "NAME=FILE", "the picture", 0, 0},
      {"layer", 0, OPTION_TEXT, &request.layer, "VALUE", "layer or block whose value is shown, e.g. body", 0, 0},
      {"all-layers", 0, OPTION_FLAG, &request.all_layers, NULL, "a contact sheet of all blocks (or convolutions)", 0,
       0},
      {"method", 0, OPTION_TEXT, &request.method, "METHOD", "activation (default) or gradcam", 0, 0},
      {"class", 0, OPTION_INT, &request.class_number, "K", "gradcam: the class (default: the most likely one)", 0,
       INT32_MAX},
      {"opacity", 0, OPTION_DOUBLE, &request.opacity, "P", "of the colours over the picture (default 0.6)", 0, 0},
      {"output", 'o', OPTION_TEXT, &request.output, "FILE", "PNG to write (a sheet also SVG)", 0, 0},
      {"raw", 0, OPTION_TEXT, &request.raw, "FILE", "the map itself, .npy", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model){.name = NULL}};
  int code = options_parse(&verb_heatmap, options, argc, argv, 1, 1, &request.path);
  if (code >= 0) return code;
  const char *wrong = NULL;
  if ((request.layer == NULL) == !request.all_layers)
    wrong = "give --layer VALUE or --all-layers";
  else if (request.output == NULL && request.raw == NULL)
    wrong = "-o FILE is missing";
  else if (request.all_layers && request.raw != NULL)
    wrong = "--raw needs --layer";
  else if (!(request.opacity >= 0 && request.opacity <= 1))
    wrong = "--opacity: expected a number from 0 to 1";
  else if (request.method != NULL && strcmp(request.method, "activation") != 0 &&
           strcmp(request.method, "gradcam") != 0)
    wrong = "--method: expected activation or gradcam";
  if (wrong != NULL) {
    fprintf(stderr, "kiln heatmap: %s\n", wrong);
    return EXIT_USAGE;
  }
  return tool_run(heatmap_body, &request);
}

const Verb verb_heatmap = {
    "heatmap",
    "draw where a layer responds to a picture",
    "MODEL|LIBRARY.so --weights FILE --input NAME=PICTURE --layer VALUE -o FILE [options]",
    "Draws a layer's response over the picture as the network sees it (resized and cropped): the mean over its "
    "channels, or\n"
    "Grad-CAM (arXiv 1610.02391), which weighs channels by the gradient of a class score. Colours are magma, enlarged\n"
    "bilinearly, at 60 % opacity.",
    "  kiln heatmap examples/resnet34_pets.json --weights w.safetensors --input image=cat.jpg --layer body -o map.png\n"
    "  kiln heatmap model.json --weights w.safetensors --input image=cat.jpg --layer body --method gradcam --class 3 "
    "-o cam.png --raw cam.npy\n"
    "  kiln heatmap examples/resnet34.json --weights w.safetensors --input image=cat.jpg --all-layers -o sheet.png",
    heatmap_run};
