/* kiln run: run a description or a compiled library on files. */
#include <math.h>
#include <string.h>

#include "affinity.h"
#include "execute.h"
#include "ports.h"
#include "profile.h"
#include "safetensors.h"

typedef struct RunRequest {
  ModelOptions model;
  const char *path, *inputs, *outputs, *hooks_out, *labels, *range;
  OptionList input, output;
  const char *profile;
  int64_t top, class_number;
} RunRequest;

static bool write_list(Tool *tool, const char *path, Tensor *tensors, size_t count) {
  TensorList list = {tensors, count};
  return safetensors_write(path, &list, tool->arena, tool->diag);
}

static void print_top(const Tensor *output, const Metadata *metadata, int64_t top) {
  int64_t classes = output->shape.dims[1];
  if (top > classes) top = classes;
  for (int64_t n = 0; n < output->shape.dims[0] && n < 16; n++) {
    double largest = -INFINITY, sum = 0;
    int64_t not_numbers = 0;
    for (int64_t k = 0; k < classes; k++) largest = fmax(largest, tensor_get(output, n * classes + k));
    for (int64_t k = 0; k < classes; k++) sum += exp(tensor_get(output, n * classes + k) - largest);
    for (int64_t k = 0; k < classes; k++) not_numbers += isnan(tensor_get(output, n * classes + k)) != 0;
    printf("%s[%lld]\n", output->name, (long long)n);
    if (not_numbers > 0) {
      printf("  %lld of %lld values are NaN\n", (long long)not_numbers, (long long)classes);
      continue;
    }
    double bound = INFINITY;
    int64_t last = -1;
    for (int64_t rank = 0; rank < top; rank++) {
      /* the next in order of falling value, then rising index */
      int64_t best = -1;
      for (int64_t k = 0; k < classes; k++) {
        double value = tensor_get(output, n * classes + k);
        bool later = value < bound || (value == bound && k > last);
        if (later && (best < 0 || value > tensor_get(output, n * classes + best))) best = k;
      }
      bound = tensor_get(output, n * classes + best);
      last = best;
      const char *label = (size_t)best < metadata->label_count ? metadata->labels[best] : "";
      printf("  %6.2f %%  %10.4f  %4lld  %s\n", 100 * exp(bound - largest) / sum, bound, (long long)best, label);
    }
  }
}

static void print_output(const Tensor *output, const Metadata *metadata, int64_t top) {
  if (output->shape.rank == 2 && output->shape.dims[1] >= 2 && output->dtype == DTYPE_F32 && top > 0) {
    print_top(output, metadata, top);
    return;
  }
  int64_t count = tensor_elements(output);
  double sum = 0, smallest = INFINITY, largest = -INFINITY;
  int64_t numbers = 0;
  for (int64_t i = 0; i < count; i++) {
    double value = tensor_get(output, i);
    if (isnan(value)) continue;
    numbers++;
    sum += value;
    smallest = fmin(smallest, value);
    largest = fmax(largest, value);
  }
  printf("%s  [", output->name);
  for (int32_t d = 0; d < output->shape.rank; d++) printf("%s%lld", d > 0 ? "," : "", (long long)output->shape.dims[d]);
  printf("]");
  if (numbers > 0) printf("  mean %.6g  min %.6g  max %.6g", sum / (double)numbers, smallest, largest);
  if (numbers < count) printf("  NaN %lld of %lld", (long long)(count - numbers), (long long)count);
  printf("\n");
}

/* What can be told of the outputs' files before a model is compiled and run for them. */
static bool check_files(Tool *tool, const RunRequest *request) {
  const char *const lists[] = {request->outputs, request->hooks_out};
  static const char *const options[] = {"outputs", "hooks-out"};
  const char *name, *path;
  for (size_t i = 0; i < 2; i++)
    if (lists[i] != NULL && !ends_with(lists[i], ".safetensors")) {
      tool_usage_error(tool, "--%s: expected a name ending in .safetensors, found '%s'", options[i], lists[i]);
      return false;
    }
  for (size_t i = 0; i < request->output.count; i++)
    if (!name_value(tool, "output", request->output.items[i], &name, &path) || !output_check(tool, path)) return false;
  for (size_t i = 0; i < request->input.count; i++)
    if (!name_value(tool, "input", request->input.items[i], &name, &path)) return false;
  return true;
}

static const kiln_port *find_output(Tool *tool, const kiln_program *program, const char *name) {
  const char **names = arena_array(tool->arena, program->output_count + 1, const char *);
  for (uint32_t i = 0; i < program->output_count; i++) {
    names[i] = program->outputs[i].name;
    if (strcmp(names[i], name) == 0) return &program->outputs[i];
  }
  const char *near = nearest_word(name, names, program->output_count);
  diag_error(tool->diag, (Location){NULL, 0, 0}, "--output: the model has no output '%s'; %s '%s'%s", name,
             near != NULL ? "did you mean" : "its first is", near != NULL ? near : names[0], near != NULL ? "?" : "");
  return NULL;
}

static bool write_outputs(Tool *tool, const RunRequest *request, const kiln_program *program, Tensor *outputs,
                          const double *range) {
  size_t own = program->output_count - program->hook_count;
  if (request->outputs != NULL && !write_list(tool, request->outputs, outputs, own)) return false;
  if (request->hooks_out != NULL && !write_list(tool, request->hooks_out, outputs + own, program->hook_count))
    return false;
  for (size_t i = 0; i < request->output.count; i++) {
    const char *name, *path;
    if (!name_value(tool, "output", request->output.items[i], &name, &path)) return false;
    const kiln_port *port = find_output(tool, program, name);
    if (port == NULL || !output_write(tool, &outputs[port - program->outputs], path, range)) return false;
  }
  return true;
}

/* The batch size of a safetensors input decides what the program is compiled for when --batch does not. */
static int64_t batch_hint(const RunRequest *request, const TensorList *files) {
  int64_t hint = 1;
  for (size_t i = 0; files != NULL && i < files->count; i++)
    if (files->items[i].shape.rank > 0 && strchr(files->items[i].name, '.') == NULL &&
        files->items[i].shape.dims[0] > hint && files->items[i].shape.dims[0] <= 64)
      hint = files->items[i].shape.dims[0];
  for (size_t i = 0; i < request->input.count; i++) {
    size_t same = 0, length = strcspn(request->input.items[i], "=");
    for (size_t k = 0; k < request->input.count; k++)
      same += strncmp(request->input.items[k], request->input.items[i], length + 1) == 0;
    if ((int64_t)same > hint) hint = (int64_t)same;
  }
  return hint;
}

static bool range_parse(Tool *tool, const char *text, double out_range[2]) {
  const char *comma = strchr(text, ',');
  if (comma != NULL && parse_double(arena_string_n(tool->arena, text, (size_t)(comma - text)), &out_range[0]) &&
      parse_double(comma + 1, &out_range[1]) && out_range[0] < out_range[1])
    return true;
  tool_usage_error(tool, "--range: expected LOW,HIGH such as 0,1, found '%s'", text);
  return false;
}

/* The images that fit one run, with outputs of its own. */
static bool profile_first_images(Tool *tool, const char *path, const kiln_executable *executable,
                                 const kiln_context_options *options, int64_t batch, const Tensor *inputs) {
  const kiln_program *program = executable->program;
  ProfileRun run = {executable, options, batch < program->max_batch ? batch : program->max_batch, NULL, NULL};
  const void **in = arena_array(tool->arena, program->input_count + 1, const void *);
  void **out = arena_array(tool->arena, program->output_count + 1, void *);
  for (uint32_t i = 0; i < program->input_count; i++) in[i] = inputs[i].data;
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    out[i] =
        arena_alloc_aligned(tool->arena, (size_t)(port->bytes * (port->batched ? run.batch : 1)) + 1, KILN_ALIGNMENT);
  }
  run.inputs = in;
  run.outputs = out;
  return profile_write(tool, &run, path);
}

static int run_body(Tool *tool, void *context) {
  RunRequest *request = context;
  TensorList files = {NULL, 0}, *given = NULL;
  kiln_context_options options;
  if (!context_options(tool, &request->model, &options)) return EXIT_FAILED;
  double range[2];
  if (request->range != NULL && !range_parse(tool, request->range, range)) return EXIT_FAILED;
  if (!check_files(tool, request)) return EXIT_FAILED;
  if (request->inputs != NULL) {
    if (!safetensors_read(request->inputs, tool->arena, tool->diag, &files)) return EXIT_FAILED;
    given = &files;
  }
  kiln_executable *executable;
  Graph *graph;
  Plan *plan;
  if (!executable_open(tool, request->path, &request->model, given, batch_hint(request, given), &executable, &graph,
                       &plan))
    return graph != NULL && plan == NULL && diag_error_count(tool->diag) == 0 ? EXIT_OK : EXIT_FAILED;
  Metadata metadata;
  Tensor *inputs, *outputs;
  int64_t batch;
  const kiln_program *program = executable->program;
  if (!metadata_read(tool, program, &metadata)) return EXIT_FAILED;
  metadata.class_number = request->class_number;
  if (request->labels != NULL && !labels_read(tool, request->labels, &metadata)) return EXIT_FAILED;
  for (size_t i = 0; i < request->output.count; i++) {
    const char *name, *path;
    if (!name_value(tool, "output", request->output.items[i], &name, &path) || find_output(tool, program, name) == NULL)
      return EXIT_FAILED;
  }
  if (!inputs_read(tool, program, &metadata, given, &request->input, &inputs, &batch)) return EXIT_FAILED;
  if (!run_batches(tool, executable, &options, inputs, batch, &outputs)) return EXIT_FAILED;
  if (request->profile != NULL && !profile_first_images(tool, request->profile, executable, &options, batch, inputs))
    return EXIT_FAILED;
  if (!write_outputs(tool, request, program, outputs, request->range != NULL ? range : NULL)) return EXIT_FAILED;
  for (uint32_t i = 0; i < program->output_count; i++) print_output(&outputs[i], &metadata, request->top);
  return EXIT_OK;
}

static int run_run(int argc, char **argv) {
  RunRequest request = {.top = 5, .class_number = -1};
  const Option options[] = {
      WEIGHTS_OPTION(request.model){"input", 'i', OPTION_LIST, &request.input, "NAME=FILE",
                                    "PNG, JPEG, IDX, .npy, safetensors; again for a batch", 0, 0},
      {"inputs", 0, OPTION_TEXT, &request.inputs, "FILE", "safetensors with inputs (and parameters) by name", 0, 0},
      {"output", 'o', OPTION_LIST, &request.output, "NAME=FILE", "write an output: .npy, .safetensors or .png", 0, 0},
      {"outputs", 0, OPTION_TEXT, &request.outputs, "FILE", "write all outputs to a safetensors file", 0, 0},
      {"range", 0, OPTION_TEXT, &request.range, "LOW,HIGH",
       "values that become black and white in a PNG (default: min, max)", 0, 0},
      {"labels", 0, OPTION_TEXT, &request.labels, "FILE", "class names, one per line", 0, 0},
      {"top", 0, OPTION_INT, &request.top, "K", "classes to print per image (default 5; 0: none)", 0, 1000},
      {"hook", 0, OPTION_LIST, &request.model.hooks, "VALUE",
       "also hand out a value: body:activation:store, or 'layer*:activation:stats:bins=40,range=0..10'", 0, 0},
      {"profile", 0, OPTION_TEXT, &request.profile, "FILE",
       "write a run as a Chrome trace, a slice per kernel and thread", 0, 0},
      {"class", 0, OPTION_INT, &request.class_number, "K", "the class whose score gradient hooks differentiate", 0,
       INT32_MAX},
      {"hooks-out", 0, OPTION_TEXT, &request.hooks_out, "FILE", "write hooked values to a safetensors file", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) AFFINITY_OPTION(request.model) DUMP_OPTIONS(request.model){.name = NULL}};
  int code = options_parse(&verb_run, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(run_body, &request);
}

const Verb verb_run = {
    "run",
    "run a model or a compiled library on files",
    "MODEL|LIBRARY.so [--weights FILE] [--input NAME=FILE …] [options]",
    "Compiles a description in memory, or loads a compiled library, and runs it. Inputs and outputs are matched by "
    "name.\n"
    "Pictures are resized (shorter side) and centre-cropped to the input's size and normalised as the description "
    "says.\n"
    "Outputs [N,K] are printed as the K most likely classes with softmax probability, value, index and label.",
    "  kiln run examples/resnet34.json --weights w.safetensors --input image=cat.jpg --labels classes.txt\n"
    "  kiln run examples/edges_rgb.json --input image=cat.jpg --output edge=edges.png\n"
    "  kiln run model.json --weights w.safetensors --inputs in.safetensors --outputs out.safetensors --affinity 0-1\n"
    "  kiln run libmodel.so --input image=cat.jpg\n"
    "  kiln run examples/fashion.json --weights w.safetensors --input image=t10k-images-idx3-ubyte.gz --batch 8\n"
    "  kiln run model.json --weights w.safetensors --input image=cat.jpg --hook body:activation:store --hook "
    "body:gradient:store\n"
    "      --class 281 --hooks-out hooks.safetensors",
    run_run};
