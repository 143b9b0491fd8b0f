/* The importer's entry points and the order in which a description's sections are read. */
#include "description.h"

#include <string.h>

#include "base/file.h"
#include "importer.h"

enum { DESCRIPTION_LIMIT = 256 << 20, MODEL_NAME_LIMIT = 100, FORMAT = 1, MAX_BATCH_LIMIT = 1 << 20 };

static const char *const sections[] = {"kiln",    "name",   "inputs", "blocks", "layers",    "aliases", "outputs",
                                       "weights", "groups", "hooks",  "labels", "max_batch", "train"};

static bool check_format(Importer *importer, const cJSON *root) {
  const cJSON *item = json_member(root, "kiln");
  if (!item) return import_error(importer, root, "missing key 'kiln': a description starts with {\"kiln\": %d", FORMAT);
  int64_t format;
  if (!json_integer(&importer->json, item, "kiln", 1, INT32_MAX, importer->diag, &format)) return false;
  if (format == FORMAT) return true;
  return import_error(importer, item, "kiln: format %lld is not known, this version reads format %d", (long long)format,
                      FORMAT);
}

/* The model's name begins every symbol of the compiled code: it must be an identifier of C. */
static const char *read_model_name(Importer *importer, const cJSON *root) {
  const cJSON *item;
  if (!import_require(importer, root, "name", "", &item) || !import_is_string(importer, item, "name")) return "model";
  const char *name = item->valuestring;
  const size_t length = strlen(name);
  bool good = length > 0 && length <= MODEL_NAME_LIMIT && !(name[0] >= '0' && name[0] <= '9');
  for (const char *at = name; *at && good; at++) {
    good = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9') || *at == '_';
  }
  if (good) return name;
  import_error(importer, item, "name: '%s' cannot begin the names of C functions: letters, digits and '_', at most %d",
               name, MODEL_NAME_LIMIT);
  return "model";
}

/* Definitions before the layers that use them, and what names values after them, whatever the order in the file. */
static void read_sections(Importer *importer, const cJSON *root) {
  const cJSON *item;
  if (import_require(importer, root, "inputs", "", &item)) {
    import_inputs(importer, item);
  } else {
    importer->names_complete = false;
  }
  if ((item = json_member(root, "weights"))) import_weights(importer, item);
  if ((item = json_member(root, "blocks"))) import_blocks(importer, item);
  importer->layers.path = "layers";
  if (import_require(importer, root, "layers", "", &item)) {
    import_layer_list(importer, NULL, item, &importer->layers);
    import_expand(importer);
  } else {
    importer->names_complete = false;
    importer->last = importer->broken;
  }
  if ((item = json_member(root, "weights"))) import_check_weights(importer, item);
  if ((item = json_member(root, "aliases"))) import_aliases(importer, item);
  import_outputs(importer, json_member(root, "outputs"));
  if ((item = json_member(root, "groups"))) import_groups(importer, item);
  if ((item = json_member(root, "hooks"))) import_hooks(importer, item);
  if ((item = json_member(root, "labels"))) import_labels(importer, item);
  if ((item = json_member(root, "train"))) import_train(importer, item);
  if ((item = json_member(root, "max_batch"))) {
    json_integer(&importer->json, item, "max_batch", 1, MAX_BATCH_LIMIT, importer->diag, &importer->graph->max_batch);
  }
}

bool description_parse(const char *file, const char *text, size_t size, const ImportOptions *options, Arena *arena,
                       Diag *diag, Graph **out_graph) {
  Importer *importer = arena_new(arena, Importer);
  importer->arena = arena;
  importer->diag = diag;
  importer->options = options;
  importer->names_complete = true;
  importer->errors_before = diag_error_count(diag);
  char *copy = arena_alloc(arena, size < SIZE_MAX ? size + 1 : size, 1); /* terminated, as json_parse needs it */
  if (size) memcpy(copy, text, size);
  if (!json_parse(file ? arena_string(arena, file) : NULL, copy, size, arena, diag, &importer->json)) return false;
  const cJSON *root = importer->json.root;
  if (!cJSON_IsObject(root)) {
    return import_error(importer, root, "a description is an object, found %s", json_kind(root));
  }
  if (!check_format(importer, root)) return false;
  import_check_keys(importer, root, "", sections, sizeof sections / sizeof *sections);
  Graph *graph = graph_create(arena, read_model_name(importer, root));
  graph->file = importer->json.file;
  importer->graph = graph;
  importer->broken = node_create(graph, OP_INPUT, NULL, NULL, 0);
  names_init(&importer->values, arena);
  names_init(&importer->blocks, arena);
  names_init(&importer->weights, arena);
  read_sections(importer, root);
  if (!import_clean(importer) || !graph_verify(graph, "import", diag)) return false;
  *out_graph = graph;
  return true;
}

bool description_read(const char *path, const ImportOptions *options, Arena *arena, Diag *diag, Graph **out_graph) {
  void *data;
  size_t size;
  return file_read(path, DESCRIPTION_LIMIT, arena, diag, &data, &size) &&
         description_parse(path, data, size, options, arena, diag, out_graph);
}
