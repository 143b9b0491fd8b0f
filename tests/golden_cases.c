#include "golden_cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "safetensors.h"

/* --- the index ------------------------------------------------------------------------------------- */

enum { INDEX_LIMIT = 1 << 24 };

bool golden_open(Arena *arena, Diag *diag, GoldenSet *out_set) {
  const char *shared = getenv("KILN_SHARED");
  out_set->folder = arena_format(arena, "%s/golden", shared ? shared : KILN_SOURCE_DIR "/../shared");
  const char *path = arena_format(arena, "%s/index.json", out_set->folder);
  void *text = NULL;
  size_t size = 0;
  if (access(path, R_OK) != 0) return false;
  if (!file_read(path, INDEX_LIMIT, arena, diag, &text, &size)) return false;
  if (!json_parse(path, text, size, arena, diag, &out_set->index)) return false;
  out_set->cases = json_member(out_set->index.root, "cases");
  return cJSON_IsArray(out_set->cases);
}

size_t golden_count(const GoldenSet *set) { return (size_t)cJSON_GetArraySize(set->cases); }

static const cJSON *entry_at(const GoldenSet *set, size_t index) { return cJSON_GetArrayItem(set->cases, (int)index); }

const char *golden_name(const GoldenSet *set, size_t index) {
  return json_member(entry_at(set, index), "case")->valuestring;
}

bool golden_tensors(const GoldenSet *set, size_t index, Arena *arena, Diag *diag, TensorList *out_tensors) {
  const char *path = arena_format(arena, "%s/%s.safetensors", set->folder, golden_name(set, index));
  return safetensors_read(path, arena, diag, out_tensors);
}

/* --- building a graph ------------------------------------------------------------------------------ */

typedef struct Builder {
  GoldenCase *result;
  const TensorList *tensors;
  const char *prefix; /* of parameters' names in the file */
  Arena *arena;
} Builder;

static void append(Arena *arena, TensorList *list, const Tensor *tensor, const char *name) {
  Tensor *items = arena_array(arena, list->count + 1, Tensor);
  if (list->count) memcpy(items, list->items, list->count * sizeof *items);
  items[list->count] = *tensor;
  items[list->count++].name = name;
  list->items = items;
}

static Node *add_input(Builder *builder, const char *name) {
  const Tensor *tensor = tensor_find(builder->tensors, name);
  Shape shape = tensor->shape;
  Graph *graph = builder->result->graph;
  graph->max_batch = shape.dims[0];
  shape.dims[0] = DIM_BATCH;
  append(builder->arena, &builder->result->inputs, tensor, name);
  return graph_add_input(graph, name, tensor->dtype, shape);
}

static Node *add_parameter(Builder *builder, const char *name) {
  const Tensor *tensor = tensor_find(builder->tensors, arena_format(builder->arena, "%s%s", builder->prefix, name));
  if (!tensor) return NULL;
  append(builder->arena, &builder->result->parameters, tensor, name);
  const Parameter parameter = {.name = name,
                               .dtype = tensor->dtype,
                               .shape = tensor->shape,
                               .layer = LAYER_NONE,
                               .trainable = true,
                               .value = &builder->result->parameters.items[builder->result->parameters.count - 1]};
  return graph_add_parameter(builder->result->graph, &parameter);
}

/* An op on `first` and the parameters of a layer, those that the file has. */
static Node *add_layer(Builder *builder, OpCode op, const char *name, Node *first, const char *const *suffixes) {
  Node *inputs[8] = {first};
  int32_t count = 1;
  for (; *suffixes; suffixes++) {
    inputs[count] = add_parameter(builder, arena_format(builder->arena, "%s%s", name, *suffixes));
    if (inputs[count]) count++;
  }
  return graph_add(builder->result->graph, op, NULL, inputs, count);
}

static void add_output(Builder *builder, const char *name, Node *node) {
  append(builder->arena, &builder->result->expected, tensor_find(builder->tensors, name), name);
  graph_add_output(builder->result->graph, name, node);
}

/* --- cases of one op ------------------------------------------------------------------------------- */

static void set_integers(const cJSON *value, int64_t *out_values, int count) {
  for (int i = 0; i < count; i++) {
    const cJSON *item = cJSON_IsArray(value) ? cJSON_GetArrayItem(value, i % cJSON_GetArraySize(value)) : value;
    out_values[i] = (int64_t)item->valuedouble;
  }
}

static bool set_attribute(Attrs *attrs, AttrId id, const cJSON *value) {
  void *field = (char *)attrs + attr_info(id)->offset;
  switch (attr_info(id)->type) {
    case ATTR_INT:
      set_integers(value, field, 1);
      return true;
    case ATTR_INT2:
      set_integers(value, field, 2);
      return true;
    case ATTR_INT4:
      set_integers(value, field, 4);
      return true;
    case ATTR_FLOAT:
      *(double *)field = value->valuedouble;
      return true;
    case ATTR_BOOL:
      *(bool *)field = cJSON_IsTrue(value);
      return true;
    case ATTR_ENUM:
      return attr_word_parse(id, value->valuestring, field);
    default:
      return false;
  }
}

static bool set_attributes(Node *node, const cJSON *entry, Diag *diag) {
  const AttrMask mask = op_info(node->op)->attrs;
  for (const cJSON *member = entry->child; member; member = member->next) {
    const AttrId id = attr_find(member->string);
    if (id == ATTR_ID_COUNT || !(mask >> id & 1) || attr_info(id)->import_only) continue;
    if (!set_attribute(&node->attrs, id, member)) return node_error(diag, node, "cannot use '%s'", member->string);
  }
  return true;
}

/* The running statistics after a training step. */
static void add_bn_updates(Builder *builder, const Node *batch_norm) {
  static const char *const names[] = {"new_running_mean", "new_running_var"};
  Graph *graph = builder->result->graph;
  Node *x = batch_norm->inputs[0];
  Node *stats = graph_add(graph, OP_BATCH_STATS, NULL, &x, 1);
  for (int i = 0; i < 2; i++) {
    Node *update = graph_add(graph, OP_BN_UPDATE, NULL, (Node *const[]){batch_norm->inputs[3 + i], stats, x}, 3);
    update->attrs.momentum = batch_norm->attrs.momentum;
    update->attrs.dim = i;
    add_output(builder, names[i], update);
  }
}

static bool build_op(Builder *builder, const cJSON *entry, OpCode op, Diag *diag) {
  static const char *const second[] = {"target", "theta"};
  static const char *const parameters[] = {"weight", "bias", "running_mean", "running_var"};
  Node *inputs[8] = {add_input(builder, "x")};
  int32_t count = 1;
  for (size_t i = 0; i < sizeof second / sizeof second[0]; i++) {
    if (tensor_find(builder->tensors, second[i])) inputs[count++] = add_input(builder, second[i]);
  }
  for (size_t i = 0; i < sizeof parameters / sizeof parameters[0]; i++) {
    inputs[count] = add_parameter(builder, parameters[i]);
    if (inputs[count]) count++;
  }
  Node *node = graph_add(builder->result->graph, op, builder->result->name, inputs, count);
  if (!set_attributes(node, entry, diag)) return false;
  add_output(builder, "output", node);
  if (op == OP_BATCH_NORM && node->attrs.training) add_bn_updates(builder, node);
  return true;
}

/* --- the small residual network -------------------------------------------------------------------- */

static const char *const no_suffixes[] = {NULL};
static const char *const weight_bias[] = {".weight", ".bias", NULL};
static const char *const bn_suffixes[] = {".weight", ".bias", ".running_mean", ".running_var", NULL};

static Node *add_conv_bn(Builder *builder, Node *x, const char *conv, const char *bn, int64_t stride, int64_t padding) {
  Node *node = add_layer(builder, OP_CONV2D, conv, x, weight_bias);
  node->attrs.stride = (AttrInt2){{stride, stride}};
  node->attrs.padding = (AttrInt4){{padding, padding, padding, padding}};
  return add_layer(builder, OP_BATCH_NORM, bn, node, bn_suffixes);
}

static Node *add_relu(Builder *builder, Node *x) { return add_layer(builder, OP_RELU, "", x, no_suffixes); }

static Node *add_basic_block(Builder *builder, const char *name, Node *x, int64_t stride) {
  const char *part[6];
  static const char *const parts[] = {"conv1", "bn1", "conv2", "bn2", "downsample.0", "downsample.1"};
  for (size_t i = 0; i < 6; i++) part[i] = arena_format(builder->arena, "%s.%s", name, parts[i]);
  Node *y = add_relu(builder, add_conv_bn(builder, x, part[0], part[1], stride, 1));
  y = add_conv_bn(builder, y, part[2], part[3], 1, 1);
  Node *shortcut = stride == 1 ? x : add_conv_bn(builder, x, part[4], part[5], stride, 0);
  return add_relu(builder, graph_add(builder->result->graph, OP_ADD, NULL, (Node *const[]){y, shortcut}, 2));
}

static void build_mini_resnet(Builder *builder) {
  builder->prefix = "param.";
  Node *x = add_relu(builder, add_conv_bn(builder, add_input(builder, "x"), "conv1", "bn1", 2, 3));
  x = add_layer(builder, OP_MAX_POOL2D, "", x, no_suffixes);
  x->attrs.kernel = (AttrInt2){{3, 3}};
  x->attrs.stride = (AttrInt2){{2, 2}};
  x->attrs.padding = (AttrInt4){{1, 1, 1, 1}};
  x = add_basic_block(builder, "layer1.0", x, 1);
  x = add_basic_block(builder, "layer1.1", x, 1);
  x = add_basic_block(builder, "layer2.0", x, 2);
  add_output(builder, "body", x);
  x = add_layer(builder, OP_ADAPTIVE_CONCAT_POOL2D, "", x, no_suffixes);
  x = add_layer(builder, OP_FLATTEN, "", x, no_suffixes);
  x = add_layer(builder, OP_BATCH_NORM, "head_bn1", x, bn_suffixes);
  x = add_relu(builder, add_layer(builder, OP_LINEAR, "head_fc1", x, weight_bias));
  x = add_layer(builder, OP_BATCH_NORM, "head_bn2", x, bn_suffixes);
  add_output(builder, "logits", add_layer(builder, OP_LINEAR, "head_fc2", x, weight_bias));
}

GoldenStatus golden_load(const GoldenSet *set, size_t index, Arena *arena, Diag *diag, GoldenCase *out_case) {
  const cJSON *entry = entry_at(set, index), *op_name = json_member(entry, "op");
  const OpCode op = op_name ? op_find(op_name->valuestring) : OP_COUNT;
  *out_case = (GoldenCase){.name = golden_name(set, index)};
  const bool resnet = strcmp(out_case->name, "mini_resnet_eval") == 0;
  if (op == OP_COUNT && !resnet) return GOLDEN_OTHER;
  TensorList tensors;
  if (!golden_tensors(set, index, arena, diag, &tensors)) return GOLDEN_BROKEN;
  out_case->graph = graph_create(arena, out_case->name);
  Builder builder = {.result = out_case, .tensors = &tensors, .prefix = "", .arena = arena};
  if (resnet) {
    build_mini_resnet(&builder);
  } else if (!build_op(&builder, entry, op, diag)) {
    return GOLDEN_BROKEN;
  }
  return graph_infer(out_case->graph, diag) ? GOLDEN_READY : GOLDEN_BROKEN;
}

/* --- comparison ------------------------------------------------------------------------------------ */

double relative_error(const double *found, const Tensor *expected) {
  double difference = 0, norm = 0;
  const int64_t count = tensor_elements(expected);
  for (int64_t i = 0; i < count; i++) {
    const double value = tensor_get(expected, i);
    difference += (found[i] - value) * (found[i] - value);
    norm += value * value;
  }
  const double error = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
  return isfinite(error) ? error : INFINITY;
}

double tensor_error(const Tensor *found, const Tensor *expected, Arena *arena) {
  if (found == NULL || !shape_equal(&found->shape, &expected->shape)) return INFINITY;
  double *values = arena_array(arena, (size_t)tensor_elements(found), double);
  for (int64_t i = 0; i < tensor_elements(found); i++) values[i] = tensor_get(found, i);
  return relative_error(values, expected);
}
