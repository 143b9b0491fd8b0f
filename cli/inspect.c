/* kiln inspect: what is in a file. */
#include <string.h>

#include "base/file.h"
#include "common.h"
#include "core/loader.h"
#include "safetensors.h"
#include "session/data_idx.h"
#include "session/npy.h"
#include "session/picture.h"

typedef struct InspectRequest {
  const char *path;
} InspectRequest;

static const char *shape_text(Tool *tool, const Shape *shape) {
  Text text;
  text_init(&text, tool->arena);
  shape_print(&text, shape);
  return text.data;
}

static void print_tensors(Tool *tool, const TensorList *tensors) {
  enum { COLUMNS = 6 };
  const char **cells = arena_array(tool->arena, (tensors->count + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"tensor", "type", "shape", "mean", "min", "max"};
  memcpy(cells, head, sizeof head);
  int64_t total = 0;
  for (size_t i = 0; i < tensors->count; i++) {
    const Tensor *tensor = &tensors->items[i];
    int64_t count = tensor_elements(tensor);
    double sum = 0, smallest = 0, largest = 0;
    for (int64_t e = 0; e < count; e++) {
      double value = tensor_get(tensor, e);
      sum += value;
      if (e == 0 || value < smallest) smallest = value;
      if (e == 0 || value > largest) largest = value;
    }
    total += count;
    const char **row = &cells[(i + 1) * COLUMNS];
    row[0] = tensor->name;
    row[1] = data_type_name(tensor->dtype);
    row[2] = arena_format(tool->arena, "[%s]", shape_text(tool, &tensor->shape));
    row[3] = count > 0 ? arena_format(tool->arena, "%.4g", sum / (double)count) : "";
    row[4] = count > 0 ? arena_format(tool->arena, "%.4g", smallest) : "";
    row[5] = count > 0 ? arena_format(tool->arena, "%.4g", largest) : "";
  }
  table_print(stdout, tool->arena, cells, tensors->count + 1, COLUMNS, "<<<>>>");
  printf("\n%zu tensors, %s elements\n", tensors->count, grouped(tool->arena, total));
}

static void print_ports(Tool *tool, const char *title, const kiln_port *ports, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    Shape shape = shape_of((int32_t)ports[i].rank, ports[i].dims);
    printf("%-10s %s  %s[%s]\n", i == 0 ? title : "", ports[i].name, ports[i].dtype == KILN_I64 ? "i64" : "f32",
           shape_text(tool, &shape));
  }
}

static bool inspect_library(Tool *tool, const char *path) {
  kiln_status status;
  const kiln_program *program = library_open(path, tool->arena, tool->diag, &status);
  if (program == NULL) return false;
  printf("program    %s (kiln %s, ABI %u, %s, %s)\n", program->name, program->kiln_version, program->abi_version,
         program->isa, program->triple);
  print_ports(tool, "inputs", program->inputs, program->input_count);
  print_ports(tool, "outputs", program->outputs, program->output_count);
  print_ports(tool, "hooks", program->hooks, program->hook_count);
  printf(
      "batch      up to %lld\nparameters %u\nweights    %s bytes, %s\nworkspace  %s + batch * %s bytes\nkernels    "
      "%u\n",
      (long long)program->max_batch, program->parameter_count, grouped(tool->arena, program->prepared_bytes),
      program->embedded != NULL ? "embedded" : "separate", grouped(tool->arena, program->workspace_fixed),
      grouped(tool->arena, program->workspace_per_batch), program->run_step_count);
  for (uint32_t i = 0; i < program->run_step_count; i++) {
    const kiln_step *step = &program->run_steps[i];
    printf("  %3u  %-28s %-22s %10.3f MFLOP\n", i, step->name, step->kind,
           1e-6 * (step->flops + step->flops_per_batch));
  }
  return true;
}

static bool is_idx(const char *path) {
  return ends_with(path, "-ubyte") || ends_with(path, "-ubyte.gz") || ends_with(path, ".idx") ||
         ends_with(path, ".idx.gz");
}

static bool inspect_idx(Tool *tool, const char *path) {
  IdxArray array;
  if (!idx_read(path, tool->arena, tool->diag, &array)) return false;
  Tensor tensor = tensor_create(tool->arena, path, DTYPE_U8, shape_of(array.rank, array.dims));
  memcpy(tensor.data, array.values, (size_t)array.count);
  print_tensors(tool, &(TensorList){&tensor, 1});
  return true;
}

static int inspect_body(Tool *tool, void *context) {
  const char *path = ((InspectRequest *)context)->path;
  TensorList tensors;
  if (is_library(path)) return inspect_library(tool, path) ? EXIT_OK : EXIT_FAILED;
  if (is_idx(path)) return inspect_idx(tool, path) ? EXIT_OK : EXIT_FAILED;
  if (ends_with(path, ".safetensors")) {
    if (!safetensors_read(path, tool->arena, tool->diag, &tensors)) return EXIT_FAILED;
    print_tensors(tool, &tensors);
    return EXIT_OK;
  }
  if (ends_with(path, ".npy")) {
    Tensor tensor;
    if (!npy_read(path, tool->arena, tool->diag, &tensor)) return EXIT_FAILED;
    tensors = (TensorList){&tensor, 1};
    print_tensors(tool, &tensors);
    return EXIT_OK;
  }
  if (ends_with(path, ".png") || ends_with(path, ".jpg") || ends_with(path, ".jpeg")) {
    Picture picture;
    if (!picture_read(path, tool->arena, tool->diag, &picture)) return EXIT_FAILED;
    printf("%s: %d x %d, %d channel%s\n", path, picture.width, picture.height, picture.channels,
           picture.channels == 1 ? "" : "s");
    return EXIT_OK;
  }
  if (!ends_with(path, ".json") && !ends_with(path, ".ir")) {
    diag_error(tool->diag, (Location){path, 0, 0},
               "expected a name ending in .json, .ir, .safetensors, .npy, .so, .png, .jpg or -ubyte.gz");
    return EXIT_FAILED;
  }
  Graph *graph;
  static const ModelOptions none;
  if (ends_with(path, ".ir")) {
    void *data;
    size_t size;
    if (!file_read(path, (size_t)1 << 30, tool->arena, tool->diag, &data, &size) ||
        !graph_parse(path, data, size, tool->arena, tool->diag, &graph))
      return EXIT_FAILED;
  } else if (!model_open(tool, path, &none, &graph)) {
    return EXIT_FAILED;
  }
  Text text;
  text_init(&text, tool->arena);
  graph_print(&text, graph);
  fputs(text.data, stdout);
  return EXIT_OK;
}

static int inspect_run(int argc, char **argv) {
  InspectRequest request = {NULL};
  const Option options[] = {{.name = NULL}};
  int code = options_parse(&verb_inspect, options, argc, argv, 1, 1, &request.path);
  return code >= 0 ? code : tool_run(inspect_body, &request);
}

const Verb verb_inspect = {
    "inspect",
    "show what is in a file",
    "FILE",
    "Shows the tensors of a safetensors, .npy or IDX file with their ranges, the ports and kernels of a compiled library, "
    "the\n"
    "size of a picture, or the IR of a description as it was read.",
    "  kiln inspect w.safetensors\n  kiln inspect libresnet34.so\n  kiln inspect examples/resnet34.json",
    inspect_run};
