#include "ports.h"

#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "json.h"
#include "safetensors.h"
#include "session/data_idx.h"
#include "session/npy.h"

/* --- metadata ------------------------------------------------------------------------------------------- */

static void floats_read(const cJSON *array, FloatList *list) {
  const cJSON *item;
  cJSON_ArrayForEach(item, array) if (list->count < ATTR_LIST_MAX) list->values[list->count++] = item->valuedouble;
}

bool metadata_read(Tool *tool, const kiln_program *program, Metadata *out_metadata) {
  Preprocess *all = arena_array(tool->arena, program->input_count + 1, Preprocess);
  *out_metadata = (Metadata){all, NULL, 0, -1};
  if (program->metadata == NULL || program->metadata[0] == '\0') return true;
  Json json;
  if (!json_parse("metadata", program->metadata, strlen(program->metadata), tool->arena, tool->diag, &json))
    return false;
  const cJSON *inputs = json_member(json.root, "inputs");
  for (uint32_t i = 0; i < program->input_count; i++) {
    const cJSON *input = inputs != NULL ? json_member(inputs, program->inputs[i].name) : NULL;
    if (input == NULL) continue;
    floats_read(json_member(input, "mean"), &all[i].mean);
    floats_read(json_member(input, "std"), &all[i].std);
    const cJSON *resize = json_member(input, "resize");
    if (resize != NULL) all[i].resize = (int64_t)resize->valuedouble;
  }
  const cJSON *labels = json_member(json.root, "labels");
  size_t count = labels != NULL ? (size_t)cJSON_GetArraySize(labels) : 0;
  if (count == 0) return true;
  out_metadata->labels = arena_array(tool->arena, count, const char *);
  const cJSON *label;
  cJSON_ArrayForEach(label, labels) if (cJSON_IsString(label)) out_metadata->labels[out_metadata->label_count++] =
      arena_string(tool->arena, label->valuestring);
  return true;
}

bool labels_read(Tool *tool, const char *path, Metadata *metadata) {
  void *data;
  size_t size;
  if (!file_read(path, 64 << 20, tool->arena, tool->diag, &data, &size)) return false;
  const char *text = data;
  if (!utf8_valid(text, size) || memchr(text, '\0', size) != NULL || size == 0) {
    diag_error(tool->diag, (Location){path, 0, 0}, "expected labels: UTF-8 text, a name per line%s",
               size == 0 ? "; found an empty file" : "");
    return false;
  }
  size_t lines = 1;
  for (size_t i = 0; i < size; i++) lines += text[i] == '\n';
  metadata->labels = arena_array(tool->arena, lines, const char *);
  metadata->label_count = 0;
  for (const char *at = text, *end = text + size; at < end;) {
    const char *line_end = memchr(at, '\n', (size_t)(end - at));
    size_t length = (size_t)((line_end != NULL ? line_end : end) - at);
    bool carriage = length > 0 && at[length - 1] == '\r';
    metadata->labels[metadata->label_count++] = arena_string_n(tool->arena, at, length - carriage);
    at += length + 1;
  }
  return true;
}

/* --- inputs --------------------------------------------------------------------------------------------- */

static const char *dims_text(Tool *tool, const Shape *shape) {
  Text text;
  text_init(&text, tool->arena);
  shape_print(&text, shape);
  return text.data;
}

static Shape port_shape(const kiln_port *port) { return shape_of((int32_t)port->rank, port->dims); }
static DataType port_dtype(const kiln_port *port) { return port->dtype == KILN_I64 ? DTYPE_I64 : DTYPE_F32; }

/* A tensor whose shape fits the port: equal, or equal but for the batch, or one image without its batch dimension. */
static bool fit_tensor(Tool *tool, const kiln_port *port, const Tensor *tensor, const char *file, Tensor *out_tensor) {
  Shape want = port_shape(port), shape = tensor->shape;
  if (port->batched && shape.rank == want.rank - 1) {
    for (int32_t d = shape.rank; d > 0; d--) shape.dims[d] = shape.dims[d - 1];
    shape.dims[0] = 1;
    shape.rank++;
  }
  bool fits = shape.rank == want.rank;
  for (int32_t d = 0; fits && d < want.rank; d++) fits = want.dims[d] == DIM_BATCH || want.dims[d] == shape.dims[d];
  if (!fits) {
    diag_error(tool->diag, (Location){file, 0, 0}, "input '%s': expected [%s], found [%s]", port->name,
               dims_text(tool, &want), dims_text(tool, &tensor->shape));
    return false;
  }
  DataType dtype = port_dtype(port);
  *out_tensor = *tensor;
  out_tensor->name = port->name;
  out_tensor->shape = shape;
  if (tensor->dtype == dtype) return true;
  if (dtype == DTYPE_I64 && (tensor->dtype == DTYPE_F32 || tensor->dtype == DTYPE_F64)) {
    diag_error(tool->diag, (Location){file, 0, 0}, "input '%s': expected integers, found %s", port->name,
               data_type_name(tensor->dtype));
    return false;
  }
  Tensor converted = tensor_create(tool->arena, port->name, dtype, shape);
  int64_t count = tensor_elements(tensor);
  for (int64_t i = 0; i < count; i++) tensor_set(&converted, i, tensor_get(tensor, i));
  *out_tensor = converted;
  return true;
}

/* Resize so that the shorter side is `resize` (or so that the crop just fits), crop the centre. */
bool picture_view(Tool *tool, const kiln_port *port, const Preprocess *preprocess, const char *file,
                  const Picture *picture, Picture *out_view) {
  if (port->rank != 4 || port->dims[2] < 1 || port->dims[3] < 1 || port->dims[2] > PICTURE_MAX_SIDE ||
      port->dims[3] > PICTURE_MAX_SIDE) {
    Shape shape = port_shape(port);
    diag_error(tool->diag, (Location){file, 0, 0},
               "a picture fits inputs of shape [N,C,H,W], but input '%s' is [%s]: expected .npy or .safetensors",
               port->name, dims_text(tool, &shape));
    return false;
  }
  int32_t height = (int32_t)port->dims[2], width = (int32_t)port->dims[3];
  Picture sized;
  if (!picture_fit(picture, file, preprocess->resize, width, height, tool->arena, tool->diag, &sized)) return false;
  *out_view = picture_crop_centre(&sized, width, height, tool->arena);
  return true;
}

static bool fit_picture(Tool *tool, const kiln_port *port, const Preprocess *preprocess, const char *file,
                        const Picture *picture, Tensor *out_tensor) {
  Picture view;
  if (!picture_view(tool, port, preprocess, file, picture, &view) ||
      !picture_to_tensor(&view, port->name, port->dims[1], tool->arena, tool->diag, out_tensor))
    return false;
  float *data = out_tensor->data;
  int64_t plane = port->dims[2] * port->dims[3];
  for (int64_t c = 0; c < port->dims[1]; c++) {
    int64_t m = preprocess->mean.count > 1 ? c : 0, s = preprocess->std.count > 1 ? c : 0;
    float mean = preprocess->mean.count > 0 ? (float)preprocess->mean.values[m] : 0.0f;
    float deviation = preprocess->std.count > 0 ? (float)preprocess->std.values[s] : 1.0f;
    for (int64_t i = 0; i < plane; i++) data[c * plane + i] = (data[c * plane + i] - mean) / deviation;
  }
  return true;
}

/* Images of several tensors one after the other. */
static bool stack(Tool *tool, const kiln_port *port, const Tensor *parts, size_t count, Tensor *out_tensor) {
  *out_tensor = parts[0];
  if (count == 1) return true;
  if (!port->batched) {
    diag_error(tool->diag, (Location){NULL, 0, 0}, "input '%s' has no batch dimension, but %zu files are given",
               port->name, count);
    return false;
  }
  Shape shape = parts[0].shape;
  shape.dims[0] = 0;
  for (size_t i = 0; i < count; i++) shape.dims[0] += parts[i].shape.dims[0];
  *out_tensor = tensor_create(tool->arena, port->name, parts[0].dtype, shape);
  char *at = out_tensor->data;
  for (size_t i = 0; i < count; i++) {
    int64_t bytes = tensor_bytes(&parts[i]);
    memcpy(at, parts[i].data, (size_t)bytes);
    at += bytes;
  }
  return true;
}

/* The first pictures of an IDX file, at most `limit`. */
static bool read_idx(Tool *tool, const kiln_port *port, const Preprocess *preprocess, const char *file, int64_t limit,
                     Tensor *out_tensor) {
  IdxArray array;
  if (!idx_read(file, tool->arena, tool->diag, &array)) return false;
  if (array.rank != 3 || array.dims[0] == 0) {
    diag_error(tool->diag, (Location){file, 0, 0}, "IDX: expected images of three dimensions, found %s",
               array.rank == 3   ? "none"
               : array.rank == 1 ? "labels"
                                 : "another number");
    return false;
  }
  if (!picture_check_size(file, (uint64_t)array.dims[2], (uint64_t)array.dims[1], tool->diag)) return false;
  if (!port->batched) limit = 1;
  const size_t count = (size_t)(array.dims[0] < limit ? array.dims[0] : limit);
  const size_t pixels = (size_t)(array.dims[1] * array.dims[2]);
  Tensor *parts = arena_array(tool->arena, count, Tensor);
  for (size_t i = 0; i < count; i++) {
    Picture picture = {(int32_t)array.dims[2], (int32_t)array.dims[1], 1, NULL};
    picture.pixels = (uint8_t *)(uintptr_t)(array.values + i * pixels); /* only read */
    if (!fit_picture(tool, port, preprocess, file, &picture, &parts[i])) return false;
  }
  return stack(tool, port, parts, count, out_tensor);
}

static bool read_single(Tool *tool, const kiln_port *port, const Preprocess *preprocess, const char *file,
                        int64_t max_batch, Tensor *out_tensor) {
  if (ends_with(file, ".npy")) {
    Tensor tensor;
    return npy_read(file, tool->arena, tool->diag, &tensor) && fit_tensor(tool, port, &tensor, file, out_tensor);
  }
  if (ends_with(file, ".safetensors")) {
    TensorList list;
    if (!safetensors_read(file, tool->arena, tool->diag, &list)) return false;
    const Tensor *tensor = list.count == 1 ? &list.items[0] : tensor_find(&list, port->name);
    if (tensor != NULL) return fit_tensor(tool, port, tensor, file, out_tensor);
    diag_error(tool->diag, (Location){file, 0, 0}, "has no tensor '%s'", port->name);
    return false;
  }
  if (ends_with(file, "-ubyte") || ends_with(file, "-ubyte.gz") || ends_with(file, ".idx") ||
      ends_with(file, ".idx.gz"))
    return read_idx(tool, port, preprocess, file, max_batch, out_tensor);
  Picture picture;
  return picture_read(file, tool->arena, tool->diag, &picture) &&
         fit_picture(tool, port, preprocess, file, &picture, out_tensor);
}

static bool known_input(Tool *tool, const kiln_program *program, const char *name) {
  const char *names[KILN_MAX_OPERANDS * 4];
  size_t count = 0;
  for (uint32_t i = 0; i < program->input_count; i++) {
    if (strcmp(program->inputs[i].name, name) == 0) return true;
    if (count < sizeof names / sizeof names[0]) names[count++] = program->inputs[i].name;
  }
  const char *near = nearest_word(name, names, count);
  if (near == NULL && count > 0) near = names[0];
  diag_error(tool->diag, (Location){NULL, 0, 0}, "--input: the model has no input '%s'; did you mean '%s'?", name,
             near ? near : "");
  return false;
}

/* The input that gradients of class scores add. */
static bool is_class(const kiln_port *port) { return port->dtype == KILN_I64 && strcmp(port->name, "class") == 0; }

bool inputs_read(Tool *tool, const kiln_program *program, const Metadata *metadata, const TensorList *files,
                 const OptionList *single, Tensor **out_inputs, int64_t *out_batch) {
  Tensor *inputs = arena_array(tool->arena, program->input_count + 1, Tensor);
  Tensor *parts = arena_array(tool->arena, single->count + 1, Tensor);
  const char *name, *file;
  for (size_t i = 0; i < single->count; i++)
    if (!name_value(tool, "input", single->items[i], &name, &file) || !known_input(tool, program, name)) return false;
  *out_batch = -1;
  const char *first = NULL;
  for (uint32_t i = 0; i < program->input_count; i++) {
    const kiln_port *port = &program->inputs[i];
    size_t count = 0;
    for (size_t s = 0; s < single->count; s++) {
      name_value(tool, "input", single->items[s], &name, &file);
      if (strcmp(name, port->name) == 0 &&
          !read_single(tool, port, &metadata->preprocess[i], file, program->max_batch, &parts[count++]))
        return false;
    }
    if (count > 0 && !stack(tool, port, parts, count, &inputs[i])) return false;
    const Tensor *tensor = count == 0 && files != NULL ? tensor_find(files, port->name) : NULL;
    if (tensor != NULL && !fit_tensor(tool, port, tensor, "--inputs", &inputs[i])) return false;
    if (count == 0 && tensor == NULL && is_class(port)) {
      if (metadata->class_number >= 0) continue;
      diag_error(tool->diag, (Location){NULL, 0, 0},
                 "gradients of which class? Use --class K, or give integers '%s' in --inputs", port->name);
      return false;
    }
    if (count == 0 && tensor == NULL) {
      Shape shape = port_shape(port);
      diag_error(tool->diag, (Location){NULL, 0, 0},
                 "input '%s' %s[%s] is not given; use --input %s=FILE or --inputs FILE.safetensors", port->name,
                 data_type_name(port_dtype(port)), dims_text(tool, &shape), port->name);
      return false;
    }
    if (!port->batched) continue;
    int64_t batch = inputs[i].shape.dims[0];
    if (*out_batch >= 0 && batch != *out_batch) {
      diag_error(tool->diag, (Location){NULL, 0, 0}, "input '%s' holds a batch of %lld, input '%s' one of %lld",
                 port->name, (long long)batch, first, (long long)*out_batch);
      return false;
    }
    *out_batch = batch;
    first = port->name;
  }
  if (*out_batch < 0) *out_batch = 1;
  for (uint32_t i = 0; i < program->input_count; i++) {
    const kiln_port *port = &program->inputs[i];
    if (inputs[i].data != NULL || !is_class(port)) continue;
    Shape shape = port_shape(port);
    if (port->batched) shape.dims[0] = *out_batch;
    inputs[i] = tensor_create(tool->arena, port->name, DTYPE_I64, shape);
    int64_t count = tensor_elements(&inputs[i]);
    for (int64_t n = 0; n < count; n++) tensor_set(&inputs[i], n, (double)metadata->class_number);
  }
  *out_inputs = inputs;
  return true;
}

bool inputs_random(Tool *tool, const kiln_port *ports, size_t count, int64_t batch, uint64_t seed,
                   TensorList *out_list) {
  Tensor *tensors = arena_array(tool->arena, count + 1, Tensor);
  uint64_t state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
  for (size_t i = 0; i < count; i++) {
    Shape shape = port_shape(&ports[i]);
    if (ports[i].batched) shape.dims[0] = batch;
    tensors[i] = tensor_create(tool->arena, ports[i].name, port_dtype(&ports[i]), shape);
    int64_t elements = tensor_elements(&tensors[i]);
    for (int64_t e = 0; e < elements; e++) {
      /* SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014) */
      uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);
      z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
      z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
      z ^= z >> 31;
      tensor_set(&tensors[i], e,
                 ports[i].dtype == KILN_I64 ? (double)(z & 1) : (double)(int64_t)(z >> 40) / 8388608.0 - 1.0);
    }
  }
  *out_list = (TensorList){tensors, count};
  return true;
}

/* --- outputs -------------------------------------------------------------------------------------------- */

bool output_check(Tool *tool, const char *path) {
  if (ends_with(path, ".npy") || ends_with(path, ".safetensors") || ends_with(path, ".png")) return true;
  tool_usage_error(tool, "--output: expected a name ending in .npy, .safetensors or .png, found '%s'", path);
  return false;
}

bool output_write(Tool *tool, const Tensor *output, const char *path, const double *range) {
  if (ends_with(path, ".npy")) return npy_write(path, output, tool->arena, tool->diag);
  if (ends_with(path, ".safetensors")) {
    Tensor copy = *output;
    TensorList list = {&copy, 1};
    return safetensors_write(path, &list, tool->arena, tool->diag);
  }
  if (!output_check(tool, path)) return false;
  Picture picture;
  return picture_from_tensor(output, range, tool->arena, tool->diag, &picture) &&
         picture_write_png(path, &picture, tool->arena, tool->diag);
}
