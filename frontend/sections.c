/* Inputs, inline weights, aliases, outputs and labels of a description. */
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "importer.h"

enum { LABELS_LIMIT = 16 << 20 /* bytes of a file of class names */ };

static const char *describe(Importer *importer, const char *section, const char *name) {
  return arena_format(importer->arena, "%s.%s", section, name);
}

/* --- inputs ------------------------------------------------------------------------------------------ */

static bool read_dtype(Importer *importer, const cJSON *item, const char *label, DataType *out_dtype) {
  if (!import_is_string(importer, item, arena_format(importer->arena, "%s: dtype", label))) return false;
  if (data_type_parse(item->valuestring, out_dtype)) return true;
  const char *names[DTYPE_COUNT];
  for (int i = 0; i < DTYPE_COUNT; i++) names[i] = data_type_name((DataType)i);
  return import_error(importer, item, "%s: unknown dtype '%s'%s", label, item->valuestring,
                      import_suggestion(importer, item->valuestring, names, DTYPE_COUNT));
}

static bool read_channel_values(Importer *importer, const cJSON *preprocess, const char *label, const char *key,
                                FloatList *out) {
  const cJSON *item = json_member(preprocess, key);
  if (!item) return true;
  const char *what = arena_format(importer->arena, "%s: preprocess.%s", label, key);
  if (!import_is_array(importer, item, what)) return false;
  for (const cJSON *value = item->child; value; value = value->next) {
    if (!cJSON_IsNumber(value)) {
      return import_error(importer, value, "%s: expected a number, found %s", what, json_kind(value));
    }
    if (out->count == ATTR_LIST_MAX) {
      return import_error(importer, value, "%s: more than %d channels", what, ATTR_LIST_MAX);
    }
    if (strcmp(key, "std") == 0 && value->valuedouble <= 0) {
      return import_error(importer, value, "%s: a standard deviation must be more than 0", what);
    }
    out->values[out->count++] = value->valuedouble;
  }
  return true;
}

static void read_preprocess(Importer *importer, const cJSON *item, const char *label, GraphInput *input) {
  static const char *const keys[] = {"mean", "std", "resize"};
  Preprocess *preprocess = &input->preprocess;
  if (!import_is_object(importer, item, arena_format(importer->arena, "%s: preprocess", label))) return;
  import_check_keys(importer, item, arena_format(importer->arena, "%s: preprocess", label), keys, 3);
  if (!read_channel_values(importer, item, label, "mean", &preprocess->mean)) return;
  if (!read_channel_values(importer, item, label, "std", &preprocess->std)) return;
  const char *what = arena_format(importer->arena, "%s: preprocess.resize", label);
  const cJSON *resize = json_member(item, "resize");
  if (resize) json_integer(&importer->json, resize, what, 1, 65535, importer->diag, &preprocess->resize);
  const int64_t channels = input->shape.rank == 4 ? input->shape.dims[1] : 0;
  const FloatList *lists[] = {&preprocess->mean, &preprocess->std};
  for (int i = 0; i < 2; i++) {
    if (lists[i]->count == 0 || lists[i]->count == channels) continue;
    import_error(importer, json_member(item, keys[i]), "%s: preprocess.%s: %d values for an input of %lld channels",
                 label, keys[i], lists[i]->count, (long long)channels);
  }
}

static void read_input(Importer *importer, const cJSON *item) {
  static const char *const keys[] = {"dtype", "shape", "preprocess"};
  const char *label = describe(importer, "inputs", item->string);
  importer->names_complete = false;
  if (!import_is_name(importer, item, item->string, label) || !import_is_object(importer, item, label)) return;
  import_check_keys(importer, item, label, keys, 3);
  const cJSON *shape_item, *dtype_item = json_member(item, "dtype");
  DataType dtype = DTYPE_F32;
  Shape shape;
  if (dtype_item && !read_dtype(importer, dtype_item, label, &dtype)) return;
  if (!import_require(importer, item, "shape", label, &shape_item)) return;
  if (!import_shape(importer, shape_item, arena_format(importer->arena, "%s: shape", label), true, &shape)) return;
  Node *node = graph_add_input(importer->graph, item->string, dtype, shape);
  GraphInput *input = &importer->graph->inputs[importer->graph->input_count - 1];
  node->location = input->location = json_location(&importer->json, item);
  node->path = label;
  const cJSON *preprocess = json_member(item, "preprocess");
  if (preprocess) read_preprocess(importer, preprocess, label, input);
  import_register(importer, item, label, item->string, "input", node);
  importer->names_complete = true;
}

void import_inputs(Importer *importer, const cJSON *inputs) {
  if (!import_is_object(importer, inputs, "inputs")) {
    importer->names_complete = false;
    return;
  }
  bool complete = true;
  for (const cJSON *item = inputs->child; item && !diag_full(importer->diag); item = item->next) {
    if (import_comment(item)) continue;
    read_input(importer, item);
    complete &= importer->names_complete;
  }
  importer->names_complete = complete;
  if (complete && importer->graph->input_count == 0) {
    import_error(importer, inputs, "inputs: a model needs at least one input");
    importer->names_complete = false;
  }
  const ImportOptions *options = importer->options;
  for (size_t i = 0; options && i < options->shape_count && complete; i++) {
    const ShapeOverride *change = &options->shapes[i];
    if (!graph_set_input_shape(importer->graph, change->input, &change->shape, importer->diag)) return;
    int64_t count;
    if (!shape_elements(&change->shape, 1, &count) || count > INT64_MAX / 64) {
      diag_error(importer->diag, (Location){importer->json.file, 0, 0},
                 "the number of elements of shape %s given for input '%s' does not fit 64 bits",
                 import_shape_text(importer, &change->shape), change->input);
      return;
    }
  }
}

/* --- inline weights ---------------------------------------------------------------------------------- */

static bool read_data(Importer *importer, const cJSON *data, const char *label, Tensor *tensor) {
  if (!import_is_array(importer, data, arena_format(importer->arena, "%s: data", label))) return false;
  const size_t found = import_size(data);
  int64_t count;
  if (!shape_elements(&tensor->shape, 1, &count) || (uint64_t)count != found) {
    return import_error(importer, data, "%s: data: shape %s needs %lld numbers, found %zu", label,
                        import_shape_text(importer, &tensor->shape), (long long)count, found);
  }
  *tensor = tensor_create(importer->arena, tensor->name, tensor->dtype, tensor->shape);
  const bool integer = tensor->dtype >= DTYPE_I64;
  int64_t index = 0;
  for (const cJSON *value = data->child; value; value = value->next, index++) {
    if (!cJSON_IsNumber(value)) {
      return import_error(importer, value, "%s: data[%lld]: expected a number, found %s", label, (long long)index,
                          json_kind(value));
    }
    tensor_set(tensor, index, value->valuedouble);
    const double kept = tensor_get(tensor, index), given = value->valuedouble;
    if (integer ? kept == given && fabs(given) <= (double)JSON_INTEGER_LIMIT : kept - kept == 0) continue;
    char buffer[DOUBLE_TEXT_SIZE];
    return import_error(importer, value, "%s: data[%lld]: %s does not fit %s", label, (long long)index,
                        double_text(given, buffer), data_type_name(tensor->dtype));
  }
  return true;
}

static bool read_weight(Importer *importer, InlineWeight *weight) {
  static const char *const keys[] = {"dtype", "shape", "data"};
  const cJSON *item = weight->item, *data;
  const char *label = describe(importer, "weights", item->string);
  if (!import_is_name(importer, item, item->string, label) || !import_is_object(importer, item, label)) return false;
  bool good = import_check_keys(importer, item, label, keys, 3);
  weight->tensor.name = item->string;
  weight->tensor.dtype = DTYPE_F32;
  const cJSON *dtype = json_member(item, "dtype");
  if (dtype && !read_dtype(importer, dtype, label, &weight->tensor.dtype)) return false;
  if (!import_require(importer, item, "shape", label, &weight->shape_item)) return false;
  if (!import_require(importer, item, "data", label, &data)) return false;
  const char *what = arena_format(importer->arena, "%s: shape", label);
  if (!import_shape(importer, weight->shape_item, what, false, &weight->tensor.shape)) return false;
  return read_data(importer, data, label, &weight->tensor) && good;
}

void import_weights(Importer *importer, const cJSON *weights) {
  if (!import_is_object(importer, weights, "weights")) return;
  for (const cJSON *item = weights->child; item && !diag_full(importer->diag); item = item->next) {
    if (import_comment(item)) continue;
    InlineWeight *weight = arena_new(importer->arena, InlineWeight);
    weight->item = item;
    weight->broken = !read_weight(importer, weight);
    names_add(&importer->weights, item->string, weight);
  }
}

void import_check_weights(Importer *importer, const cJSON *weights) {
  if (!import_clean(importer)) return;
  enum { LIMIT = 1000 };
  const char *names[LIMIT];
  const Graph *graph = importer->graph;
  const size_t count = graph->parameter_count < LIMIT ? graph->parameter_count : LIMIT;
  for (size_t i = 0; i < count; i++) names[i] = graph->parameters[i].name;
  for (const cJSON *item = weights->child; item && !diag_full(importer->diag); item = item->next) {
    if (import_comment(item) || ((InlineWeight *)names_find(&importer->weights, item->string)->value)->used) continue;
    import_key_error(importer, item, "weights.%s: no parameter has this name and no 'in' uses it%s", item->string,
                     import_suggestion(importer, item->string, names, count));
  }
}

/* --- outputs and aliases ------------------------------------------------------------------------------- */

static const char *suggest(Importer *importer, const char *word) {
  enum { LIMIT = 1000 };
  const char *names[LIMIT];
  size_t count = 0;
  const Graph *graph = importer->graph;
  for (size_t i = graph->value_name_count; i-- > 0 && count < LIMIT;) names[count++] = graph->value_names[i].name;
  return import_suggestion(importer, word, names, count);
}

/* The value that `item`, a string, names. */
static Node *find_value(Importer *importer, const cJSON *item, const char *label) {
  const NameSlot *entry = names_find(&importer->values, item->valuestring);
  if (entry) return ((NamedValue *)entry->value)->node;
  if (!import_find_broken(importer, "", item->valuestring)) {
    import_error(importer, item, "%s: no value is named '%s'%s", label, item->valuestring,
                 suggest(importer, item->valuestring));
  }
  return importer->broken;
}

void import_aliases(Importer *importer, const cJSON *aliases) {
  if (!import_is_object(importer, aliases, "aliases")) return;
  for (const cJSON *item = aliases->child; item; item = item->next) {
    if (import_comment(item)) continue;
    const char *label = describe(importer, "aliases", item->string);
    if (!import_is_name(importer, item, item->string, label) || !import_is_string(importer, item, label)) continue;
    Node *node = find_value(importer, item, label);
    if (import_register(importer, item, label, item->string, "alias", node) && node != importer->broken) {
      import_add_value_name(importer, item->string, node);
    }
  }
}

static void add_output(Importer *importer, NameTable *taken, const cJSON *item, const char *label, const char *name) {
  if (!import_is_string(importer, item, label) || !import_is_name(importer, item, name, label)) return;
  if (names_find(taken, name)) {
    import_error(importer, item, "%s: there is already an output named '%s'", label, name);
    return;
  }
  names_add(taken, name, NULL);
  Node *node = find_value(importer, item, label);
  if (node == importer->broken) return;
  graph_add_output(importer->graph, name, node);
  importer->graph->outputs[importer->graph->output_count - 1].location = json_location(&importer->json, item);
}

void import_outputs(Importer *importer, const cJSON *outputs) {
  if (!outputs) { /* the last layer's value under its own name */
    if (importer->last == importer->broken) return;
    graph_add_output(importer->graph, importer->last->name, importer->last);
    importer->graph->outputs[0].location = importer->last->location;
    return;
  }
  if (!import_is_array(importer, outputs, "outputs")) return;
  if (!outputs->child) import_error(importer, outputs, "outputs: the list is empty");
  NameTable taken;
  names_init(&taken, importer->arena);
  size_t index = 0;
  for (const cJSON *item = outputs->child; item && !diag_full(importer->diag); item = item->next, index++) {
    const char *label = arena_format(importer->arena, "outputs[%zu]", index);
    if (cJSON_IsObject(item)) {
      for (const cJSON *member = item->child; member; member = member->next) {
        if (!import_comment(member)) add_output(importer, &taken, member, label, member->string);
      }
    } else if (cJSON_IsString(item)) {
      add_output(importer, &taken, item, label, item->valuestring);
    } else {
      import_error(importer, item, "%s: expected a value's name or {\"name\": \"value\"}, found %s", label,
                   json_kind(item));
    }
  }
}

/* --- labels ------------------------------------------------------------------------------------------- */

/* A relative path that stays below the description's folder. */
static bool is_beside(const char *path) {
  if (path[0] == '/' || path[0] == '\0') return false;
  for (const char *at = path; at; at = strchr(at, '/')) {
    if (*at == '/') at++;
    if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || at[2] == '\0')) return false;
  }
  return true;
}

static void read_label_file(Importer *importer, const cJSON *item) {
  const char *name = item->valuestring, *file = importer->json.file;
  if (!is_beside(name)) {
    import_error(importer, item, "labels: '%s' is not the name of a file beside the description", name);
    return;
  }
  const char *slash = file ? strrchr(file, '/') : NULL;
  const char *path = slash ? arena_format(importer->arena, "%.*s/%s", (int)(slash - file), file, name) : name;
  void *data;
  size_t size;
  const size_t errors = diag_error_count(importer->diag);
  if (!file_read(path, LABELS_LIMIT, importer->arena, importer->diag, &data, &size)) {
    if (diag_error_count(importer->diag) > errors) {
      import_note(importer, json_location(&importer->json, item), "labels are to be read from this file");
    }
    return;
  }
  char *at = data;
  const size_t valid = utf8_prefix(at, size);
  if (valid < size || memchr(at, 0, size)) {
    import_error(importer, item, "labels: '%s' is not a text in UTF-8", name);
    return;
  }
  size_t lines = 0;
  for (size_t i = 0; i < size; i++) lines += at[i] == '\n';
  Graph *graph = importer->graph;
  graph->labels = arena_array(importer->arena, lines + 1, const char *);
  while (*at) {
    char *end = strchr(at, '\n');
    char *next = end ? end + 1 : at + strlen(at);
    if (!end) end = next;
    if (end > at && end[-1] == '\r') end--;
    graph->labels[graph->label_count++] = arena_string_n(importer->arena, at, (size_t)(end - at));
    at = next;
  }
}

void import_labels(Importer *importer, const cJSON *labels) {
  Graph *graph = importer->graph;
  if (cJSON_IsString(labels)) {
    read_label_file(importer, labels);
  } else if (cJSON_IsArray(labels)) {
    graph->labels = arena_array(importer->arena, import_size(labels), const char *);
    for (const cJSON *item = labels->child; item; item = item->next) {
      const char *what = arena_format(importer->arena, "labels[%zu]", graph->label_count);
      if (!import_is_string(importer, item, what)) return;
      graph->labels[graph->label_count++] = item->valuestring;
    }
  } else {
    import_error(importer, labels, "labels: expected a list of strings or a file's name, found %s", json_kind(labels));
    return;
  }
  if (graph->output_count == 0 || graph->outputs[0].node->shape.rank != 2) return;
  const int64_t classes = graph->outputs[0].node->shape.dims[1];
  if ((uint64_t)classes == graph->label_count) return;
  diag_warning(importer->diag, json_location(&importer->json, labels), "labels: %zu names for the %lld classes of '%s'",
               graph->label_count, (long long)classes, graph->outputs[0].name);
}
