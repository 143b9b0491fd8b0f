/* The text form of a graph: ir/IR.md. What parse.c reads back is equal in every respect but source locations,
 * message paths, decisions, and weights that do not stand in the description. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "graph.h"
#include "name_map.h"
#include "stats.h"

typedef struct Printer {
  Text *text;
  const Graph *graph;
  NameMap names; /* of nodes: the first node of each name */
  NameMap taken_twice;
  uint32_t next_id; /* that a definition without an id gets */
  int32_t next_input, next_parameter;
} Printer;

/* --- names ----------------------------------------------------------------------------------------- */

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool all_name_characters(const char *name) {
  for (; *name; name++) {
    if (!is_letter(*name) && !is_digit(*name) && *name != '.' && *name != '-' && *name != '/') return false;
  }
  return true;
}

static void print_name(Text *text, const char *name) {
  if (is_letter(name[0]) && all_name_characters(name)) {
    text_add(text, name);
  } else {
    text_add_json(text, name);
  }
}

/* After a percent sign digits are an id, so a name of digits only is quoted. */
static void print_value_name(Text *text, const char *name) {
  text_add(text, "%");
  const bool bare = all_name_characters(name) && name[strspn(name, "0123456789")] != '\0' && name[0] != '-';
  if (bare) {
    text_add(text, name);
  } else {
    text_add_json(text, name);
  }
}

static bool shown_by_name(const Printer *printer, const Node *node) {
  return node->name && !name_map_find(&printer->taken_twice, node->name);
}

static void print_value(Printer *printer, const Node *node) {
  if (!node) {
    text_add(printer->text, "%?");
  } else if (shown_by_name(printer, node)) {
    print_value_name(printer->text, node->name);
  } else {
    text_format(printer->text, "%%%u", node->id);
  }
}

static void print_definition(Printer *printer, const Node *node) {
  print_value(printer, node);
  if (shown_by_name(printer, node) && node->id != printer->next_id) text_format(printer->text, "@%u", node->id);
  printer->next_id = node->id + 1;
}

/* Layers and value names keep their node only while it is in the array. */
static bool in_array(const Printer *printer, const Node *node, const bool *present) {
  return node && node->id < printer->graph->next_id && present[node->id];
}

/* --- lists in braces ------------------------------------------------------------------------------- */

/* Opens the list before the first item and separates the others. Storage and choice stand in parentheses, so that
 * a port's own braces may follow them. */
typedef struct Braces {
  Text *text;
  bool open;
  bool round;
} Braces;

static void next_item(Braces *braces, const char *name) {
  text_add(braces->text, braces->open ? ", " : braces->round ? "(" : " {");
  text_add(braces->text, name);
  braces->open = true;
}

static void close_braces(Braces *braces) {
  if (braces->open) text_add(braces->text, braces->round ? ")" : "}");
}

static void add_integer(Braces *braces, const char *name, int64_t value) {
  if (value == 0) return;
  next_item(braces, name);
  text_format(braces->text, "=%lld", (long long)value);
}

static void add_floats(Braces *braces, const char *name, const FloatList *list) {
  if (list->count == 0) return;
  next_item(braces, name);
  for (int32_t i = 0; i < list->count; i++) {
    text_add(braces->text, i ? "," : "=[");
    text_add_double(braces->text, list->values[i]);
  }
  text_add(braces->text, "]");
}

static void add_attributes(Braces *braces, const Attrs *attrs, AttrMask mask) {
  Text list;
  text_init(&list, braces->text->arena);
  attrs_print(&list, attrs, mask);
  if (list.size) next_item(braces, list.data);
}

/* --- parts of a node ------------------------------------------------------------------------------- */

static void print_type(Text *text, DataType dtype, const Shape *shape) {
  text_format(text, " : %s[", data_type_name(dtype));
  shape_print(text, shape);
  text_add(text, "]");
}

static void print_storage(Text *text, const Node *node) {
  const Storage *storage = &node->storage;
  bool strided = false, halo = false;
  for (int32_t i = 0; i < node->shape.rank; i++) strided = strided || storage->stride[i] != 0;
  for (int i = 0; i < 4; i++) halo = halo || storage->halo[i] != 0;
  if (storage->space == SPACE_NONE && !strided && !halo && !storage->index && !storage->offset && !storage->origin &&
      !storage->bytes) {
    return;
  }
  text_format(text, " @%s", space_name(storage->space));
  Braces braces = {.text = text, .round = true};
  add_integer(&braces, "index", storage->index);
  add_integer(&braces, "offset", storage->offset);
  if (strided) {
    next_item(&braces, "stride");
    for (int32_t i = 0; i < node->shape.rank; i++) {
      text_format(text, "%s%lld", i ? "," : "=[", (long long)storage->stride[i]);
    }
    text_add(text, "]");
  }
  add_integer(&braces, "origin", storage->origin);
  if (halo) {
    next_item(&braces, "halo");
    text_format(text, "=[%d,%d,%d,%d]", storage->halo[0], storage->halo[1], storage->halo[2], storage->halo[3]);
  }
  add_integer(&braces, "bytes", storage->bytes);
  add_integer(&braces, "delta", storage->delta);
  close_braces(&braces);
}

static void print_choice(Text *text, const KernelChoice *choice) {
  if (choice->algorithm == ALGORITHM_DEFAULT && !choice->tile_pixels && !choice->tile_blocks &&
      !choice->channel_chunk && !choice->row_chunk && choice->math == MATH_FP32) {
    return;
  }
  const char *name = algorithm_name(choice->algorithm);
  text_format(text, " choice %s", name ? name : "?");
  Braces braces = {.text = text, .round = true};
  add_integer(&braces, "tile_pixels", choice->tile_pixels);
  add_integer(&braces, "tile_blocks", choice->tile_blocks);
  add_integer(&braces, "channel_chunk", choice->channel_chunk);
  add_integer(&braces, "row_chunk", choice->row_chunk);
  if (choice->math != MATH_FP32) {
    next_item(&braces, "math=");
    text_add_json(text, math_mode_name(choice->math));
  }
  close_braces(&braces);
}

/* What follows the type, the same for every kind of node. */
static void print_suffix(Printer *printer, const Node *node) {
  Text *text = printer->text;
  if (node->layout.kind != LAYOUT_PLAIN) {
    text_add(text, " ");
    layout_print(text, node->layout);
  }
  print_storage(text, node);
  if (node->alias) {
    text_add(text, node->placed ? " placed " : " alias ");
    print_value(printer, node->alias);
  }
  if (node->filled) text_add(text, " filled");
  if (node->hosted) text_add(text, " hosted");
  if (node->stretch) text_format(text, " stretch %u", node->stretch);
  print_choice(text, &node->choice);
  if (node->layer != LAYER_NONE && node->op != OP_PARAMETER) text_format(text, " layer %u", node->layer);
}

static void print_epilogue(Printer *printer, const Node *node) {
  Text *text = printer->text;
  if (!node->epilogue_count) return;
  text_add(text, " epilogue [");
  for (int32_t i = 0; i < node->epilogue_count; i++) {
    const EpilogueStep *step = &node->epilogue[i];
    if (i) text_add(text, ", ");
    if (step->reversed) text_add(text, "reversed ");
    text_add(text, op_info(step->op)->name);
    if (step->operand >= 0 && step->operand < node->input_count) {
      text_add(text, " ");
      print_value(printer, node->inputs[step->operand]);
    }
    Braces braces = {.text = text};
    add_attributes(&braces, &step->attrs, op_info(step->op)->attrs);
    close_braces(&braces);
  }
  text_add(text, "]");
}

static void print_operation(Printer *printer, const Node *node) {
  Text *text = printer->text;
  text_add(text, "  ");
  print_definition(printer, node);
  text_format(text, " = %s", op_info(node->op)->name);
  for (int32_t i = 0; i < node->op_input_count; i++) {
    text_add(text, i ? ", " : " ");
    print_value(printer, node->inputs[i]);
  }
  Braces braces = {.text = text};
  add_attributes(&braces, &node->attrs, op_info(node->op)->attrs);
  close_braces(&braces);
  print_epilogue(printer, node);
  print_type(text, node->dtype, &node->shape);
  print_suffix(printer, node);
  text_add(text, "\n");
}

/* --- ports ----------------------------------------------------------------------------------------- */

/* The name and index of a port where the node does not imply them. */
static void add_port(Braces *braces, const char *name, const Node *node, int32_t port, int32_t *next_port) {
  if (node && (!node->name || strcmp(node->name, name) != 0)) {
    next_item(braces, "name=");
    text_add_json(braces->text, name);
  }
  if (port != *next_port) {
    next_item(braces, "port");
    text_format(braces->text, "=%d", port);
  }
  *next_port = port + 1;
}

static void print_input(Printer *printer, const Node *node) {
  const GraphInput *input = &printer->graph->inputs[node->port];
  text_add(printer->text, "  input ");
  print_definition(printer, node);
  print_type(printer->text, input->dtype, &input->shape);
  print_suffix(printer, node);
  Braces braces = {.text = printer->text};
  add_port(&braces, input->name, node, node->port, &printer->next_input);
  add_floats(&braces, "mean", &input->preprocess.mean);
  add_floats(&braces, "std", &input->preprocess.std);
  add_integer(&braces, "resize", input->preprocess.resize);
  close_braces(&braces);
  text_add(printer->text, "\n");
}

/* The shortest decimal that gives the same element. */
static void print_element(Text *text, const Tensor *tensor, int64_t index) {
  if (tensor->dtype == DTYPE_I64) {
    text_format(text, "%lld", (long long)((const int64_t *)tensor->data)[index]);
    return;
  }
  const double value = tensor_get(tensor, index);
  if (tensor->dtype != DTYPE_F32 || !isfinite(value)) {
    text_add_double(text, value);
    return;
  }
  /* Six digits survive in every normal number, so that 10 is not shown as 1e+01. */
  const float element = (float)value;
  const size_t start = text->size;
  for (int digits = fabsf(element) < FLT_MIN && element != 0 ? 1 : FLT_DIG; digits <= FLT_DECIMAL_DIG; digits++) {
    text->size = start;
    text_format(text, "%.*g", digits, value);
    double back = 0;
    if (parse_double(text->data + start, &back) && (float)back == element) return;
  }
}

static void print_data(Braces *braces, const Tensor *tensor) {
  const int64_t count = tensor_elements(tensor);
  next_item(braces, "data=[");
  for (int64_t i = 0; i < count; i++) {
    if (i) text_add(braces->text, ",");
    print_element(braces->text, tensor, i);
  }
  text_add(braces->text, "]");
}

static void print_parameter(Printer *printer, const Parameter *parameter, const Node *node, int32_t port) {
  static const char *const inits[] = {
      [INIT_WEIGHT] = "weight", [INIT_BIAS] = "bias", [INIT_ZERO] = "zero", [INIT_ONE] = "one"};
  Text *text = printer->text;
  text_add(text, "  parameter ");
  if (node) {
    print_definition(printer, node);
  } else {
    print_name(text, parameter->name);
  }
  print_type(text, parameter->dtype, &parameter->shape);
  if (node) print_suffix(printer, node);
  if (parameter->layer != LAYER_NONE) text_format(text, " layer %u", parameter->layer);
  Braces braces = {.text = text};
  next_item(&braces, "init=");
  text_add(text, inits[parameter->init]);
  add_integer(&braces, "fan_in", parameter->fan_in);
  if (!parameter->trainable) next_item(&braces, "trainable=false");
  if (parameter->buffer) next_item(&braces, "buffer=true");
  add_port(&braces, parameter->name, node, port, &printer->next_parameter);
  if (parameter->inline_value && parameter->value) print_data(&braces, parameter->value);
  close_braces(&braces);
  text_add(text, "\n");
}

/* --- the rest -------------------------------------------------------------------------------------- */

static void print_strings(Text *text, const char *const *strings, size_t count) {
  text_add(text, " [");
  for (size_t i = 0; i < count; i++) {
    if (i) text_add(text, ", ");
    text_add_json(text, strings[i]);
  }
  text_add(text, "]");
}

static void print_settings(Printer *printer) {
  const Graph *graph = printer->graph;
  Text *text = printer->text;
  uint32_t next_id = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    if (graph->nodes[i]->id >= next_id) next_id = graph->nodes[i]->id + 1;
  }
  if (graph->max_batch != 1) text_format(text, "  max_batch %lld\n", (long long)graph->max_batch);
  if (graph->min_batch != 1) text_format(text, "  min_batch %lld\n", (long long)graph->min_batch);
  if (graph->batch_blocked) text_add(text, "  batch_blocked\n");
  if (graph->stretch_images != 0) text_format(text, "  stretch_images %lld\n", (long long)graph->stretch_images);
  if (graph->chunk != 0) text_format(text, "  chunk %lld\n", (long long)graph->chunk);
  if (graph->next_id != next_id) text_format(text, "  next_id %u\n", graph->next_id);
  if (graph->workspace_fixed || graph->workspace_per_batch || graph->prepared_bytes || graph->prepare_scratch) {
    text_add(text, "  memory");
    Braces braces = {.text = text};
    add_integer(&braces, "workspace_fixed", graph->workspace_fixed);
    add_integer(&braces, "workspace_per_batch", graph->workspace_per_batch);
    add_integer(&braces, "prepared", graph->prepared_bytes);
    add_integer(&braces, "prepare_scratch", graph->prepare_scratch);
    close_braces(&braces);
    text_add(text, "\n");
  }
}

static void print_names(Printer *printer, const bool *present) {
  const Graph *graph = printer->graph;
  Text *text = printer->text;
  for (size_t i = 0; i < graph->output_count; i++) {
    text_add(text, i + graph->hook_output_count >= graph->output_count ? "  hook_output " : "  output ");
    print_name(text, graph->outputs[i].name);
    text_add(text, " = ");
    print_value(printer, graph->outputs[i].node);
    text_add(text, "\n");
  }
  for (size_t i = 0; i < graph->update_count; i++) {
    text_add(text, "  update ");
    print_name(text, graph->parameters[graph->updates[i].parameter].name);
    text_add(text, " = ");
    print_value(printer, graph->updates[i].node);
    text_add(text, "\n");
  }
  for (size_t i = 0; i < graph->layer_count; i++) {
    const Layer *layer = &graph->layers[i];
    text_add(text, "  layer ");
    print_name(text, layer->name);
    text_add(text, " : ");
    print_name(text, layer->op);
    if (in_array(printer, layer->node, present)) {
      text_add(text, " = ");
      print_value(printer, layer->node);
    }
    text_add(text, layer->frozen ? " frozen\n" : "\n");
  }
  for (size_t i = 0; i < graph->value_name_count; i++) {
    text_add(text, "  value ");
    print_name(text, graph->value_names[i].name);
    if (in_array(printer, graph->value_names[i].node, present)) {
      text_add(text, " = ");
      print_value(printer, graph->value_names[i].node);
    }
    text_add(text, "\n");
  }
}

static void print_training(Text *text, const Graph *graph) {
  const Objective *objective = &graph->objective;
  if (objective->loss != OP_INPUT || objective->accuracy || objective->error_rate) {
    text_format(text, "  objective%s%s", objective->loss != OP_INPUT ? " " : "",
                objective->loss != OP_INPUT ? op_info(objective->loss)->name : "");
    text_format(text, "%s%s\n", objective->accuracy ? " accuracy" : "", objective->error_rate ? " error_rate" : "");
  }
  const TrainRequest *train = graph->train;
  if (train) {
    text_format(text, "  train %s of ", op_info(train->loss)->name);
    print_name(text, train->of);
    text_format(text, " %s%s%s%s", optimizer_name(train->optimizer), train->nesterov ? " nesterov" : "",
                train->clip ? " clip" : "", train->accumulate ? " accumulate" : "");
    if (train->memory_limit) text_format(text, " memory_limit %lld", (long long)train->memory_limit);
    text_add(text, "\n");
  }
  for (size_t i = 0; i < graph->slot_count; i++) {
    const StateSlot *slot = &graph->slots[i];
    text_add(text, "  slot ");
    print_name(text, slot->name);
    print_type(text, DTYPE_F32, &slot->shape);
    text_format(text, " offset %lld group %d%s\n", (long long)slot->offset, slot->group,
                slot->decayed ? " decayed" : "");
  }
  if (graph->group_rows) text_format(text, "  group_rows %d\n", graph->group_rows);
  if (graph->recompute) text_format(text, "  recompute %lld\n", (long long)graph->recompute);
}

static void print_requests(Printer *printer) {
  static const char *const kinds[] = {[HOOK_ACTIVATION] = "activation", [HOOK_GRADIENT] = "gradient"};
  static const char *const actions[] = {[HOOK_STORE] = "store", [HOOK_STATS] = "stats", [HOOK_CALL] = "call"};
  const Graph *graph = printer->graph;
  Text *text = printer->text;
  for (size_t i = 0; i < graph->hook_count; i++) {
    const Hook *hook = &graph->hooks[i];
    text_add(text, "  hook ");
    text_add_json(text, hook->pattern);
    text_format(text, " %s %s", kinds[hook->kind], actions[hook->action]);
    const Attrs attrs = stats_attrs(&hook->stats), defaults = attrs_default();
    const AttrMask options = op_info(OP_STATS_PARTIAL)->attrs;
    if (hook->action == HOOK_STATS && !attrs_equal(&attrs, &defaults, options)) {
      text_add(text, " {");
      attrs_print(text, &attrs, options);
      text_add(text, "}");
    }
    text_add(text, "\n");
  }
  for (size_t i = 0; i < graph->gradient_count; i++) {
    static const char *const seeds[] = {[GRADIENT_OF_CLASS] = "class",
                                        [GRADIENT_OF_SCALAR] = "scalar",
                                        [GRADIENT_WITH_COTANGENT] = "cotangent"};
    const GradientRequest *request = &graph->gradients[i];
    text_add(text, "  gradient ");
    print_name(text, request->of);
    text_format(text, " %s", seeds[request->seed]);
    if (request->input) {
      text_add(text, " input ");
      print_name(text, request->input);
    }
    text_add(text, " wrt");
    print_strings(text, request->wrt, request->wrt_count);
    text_add(text, request->hook ? " hook\n" : "\n");
  }
  print_training(text, graph);
  for (size_t i = 0; i < graph->group_count; i++) {
    const Group *group = &graph->groups[i];
    text_add(text, "  group ");
    print_name(text, group->name);
    print_strings(text, group->patterns, group->pattern_count);
    text_format(text, "%s%s\n", group->frozen ? " frozen" : "", group->freeze_batch_norm ? " freeze_batch_norm" : "");
  }
  if (graph->labels) {
    text_add(text, "  labels");
    print_strings(text, graph->labels, graph->label_count);
    text_add(text, "\n");
  }
}

void graph_print(Text *text, const Graph *graph) {
  Printer printer = {.text = text, .graph = graph};
  name_map_init(&printer.names, text->arena);
  name_map_init(&printer.taken_twice, text->arena);
  bool *present = arena_array(text->arena, graph->next_id, bool);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (node->id < graph->next_id) present[node->id] = true;
    if (node->name && name_map_add(&printer.names, node->name, node)) {
      name_map_add(&printer.taken_twice, node->name, node);
    }
  }
  text_add(text, "graph ");
  text_add_json(text, graph->name ? graph->name : "");
  text_add(text, " {\n");
  print_settings(&printer);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    if (!in_array(&printer, parameter->node, present)) print_parameter(&printer, parameter, NULL, (int32_t)i);
  }
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (node->op == OP_INPUT) {
      print_input(&printer, node);
    } else if (node->op == OP_PARAMETER) {
      print_parameter(&printer, &graph->parameters[node->port], node, node->port);
    } else {
      print_operation(&printer, node);
    }
  }
  print_names(&printer, present);
  print_requests(&printer);
  text_add(text, "}\n");
}
