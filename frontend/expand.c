/* The second step of the import: instances of layers and blocks, with all values known. */
#include <string.h>

#include "base/checked.h"
#include "importer.h"

/* A list of layers on the way: the model's own or that of a block instance. */
typedef struct Frame {
  const LayerList *list;
  const char *prefix;                /* of the names inside: "layer1.0." */
  const char *name;                  /* of the block instance; NULL: unnamed or the model */
  Node *inputs[IMPORT_MAX_OPERANDS]; /* @in */
  int32_t input_count;
  Node *last;     /* the value of the layer before */
  int64_t number; /* automatic name of the next instance */
  ExpressionVariable variables[IMPORT_MAX_PARAMS + 1];
  size_t variable_count;

  size_t at; /* the current entry of the list */
  bool entered;
  int64_t instance, instances;         /* of its repetition */
  Node *operands[IMPORT_MAX_OPERANDS]; /* of the next instance; after one, operands[0] is its value */
  int32_t operand_count;
} Frame;

typedef struct Expansion {
  Importer *importer;
  Frame *frames;
  size_t depth;
  size_t steps;
  bool stopped;
} Expansion;

/* --- names ------------------------------------------------------------------------------------------- */

bool import_register(Importer *importer, const cJSON *item, const char *label, const char *name, const char *kind,
                     Node *node) {
  const NameSlot *entry = names_find(&importer->values, name);
  if (!entry) {
    NamedValue *value = arena_new(importer->arena, NamedValue);
    *value = (NamedValue){node, kind, json_location(&importer->json, item)};
    names_add(&importer->values, name, value);
    return true;
  }
  const NamedValue *first = entry->value;
  const size_t errors = diag_error_count(importer->diag);
  import_error(importer, item, "%s: the name '%s' is taken", label, name);
  if (diag_error_count(importer->diag) > errors) {
    import_note(importer, first->location, "the first is this %s", first->kind);
  }
  return false;
}

void import_add_value_name(Importer *importer, const char *name, Node *node) {
  Graph *graph = importer->graph;
  if (graph->value_name_count == importer->value_name_capacity) {
    const size_t capacity = importer->value_name_capacity ? importer->value_name_capacity * 2 : 64;
    ValueName *names = arena_array(importer->arena, capacity, ValueName);
    if (graph->value_name_count) memcpy(names, graph->value_names, graph->value_name_count * sizeof(ValueName));
    graph->value_names = names;
    importer->value_name_capacity = capacity;
  }
  graph->value_names[graph->value_name_count++] = (ValueName){name, node};
}

Node *import_find_broken(const Importer *importer, const char *prefix, const char *name) {
  if (!importer->names_complete) return importer->broken;
  for (size_t length = 0; name[length] != '\0'; length++) {
    if (name[length] != '.') continue;
    const NameSlot *slot = names_find_n(&importer->values, prefix, name, length);
    if (slot && ((const NamedValue *)slot->value)->node == importer->broken) return importer->broken;
  }
  return NULL;
}

/* The layer of a list that has the name, or whose instances' names begin so. */
static const LayerDef *find_written(const LayerList *list, const char *name) {
  for (size_t length = strlen(name); length > 0; length--) {
    if (name[length] != '\0' && name[length] != '.') continue;
    const NameSlot *entry = names_find_n(&list->names, "", name, length);
    if (entry) return entry->value;
  }
  return NULL;
}

static const char *def_name(const LayerDef *def) { return def->name ? def->name : def->path; }

/* The layers of the list that `def` takes its inputs from, one per call: `which` counts from 0. */
static const LayerDef *dependency(const LayerList *list, const LayerDef *def, size_t which) {
  if (!def->in) return which == 0 && def > list->items ? def - 1 : NULL;
  const cJSON *name = cJSON_IsString(def->in) ? def->in : def->in->child;
  if (cJSON_IsString(def->in) && which > 0) return NULL;
  while (name && which-- > 0) name = name->next;
  return name && cJSON_IsString(name) ? find_written(list, name->valuestring) : NULL;
}

/* The way from `later` back to `def` along inputs, as "a -> c -> b -> a"; NULL when there is none. */
static const char *find_cycle(Importer *importer, const LayerList *list, const LayerDef *def, const LayerDef *later) {
  size_t *needed_by = arena_array(importer->arena, list->count, size_t); /* index + 1; 0: not visited */
  size_t *queue = arena_array(importer->arena, list->count, size_t);
  const size_t target = (size_t)(def - list->items), start = (size_t)(later - list->items);
  size_t head = 0, tail = 0;
  needed_by[start] = start + 1;
  queue[tail++] = start;
  while (head < tail && !needed_by[target]) {
    const size_t at = queue[head++];
    for (size_t which = 0; which < IMPORT_MAX_OPERANDS; which++) {
      const LayerDef *next = dependency(list, &list->items[at], which);
      if (!next || needed_by[next - list->items]) continue;
      needed_by[next - list->items] = at + 1;
      queue[tail++] = (size_t)(next - list->items);
    }
  }
  if (!needed_by[target]) return NULL;
  size_t length = 0; /* the queue is reused for the way back */
  for (size_t at = target; at != start; at = needed_by[at] - 1) queue[length++] = at;
  Text text;
  text_init(&text, importer->arena);
  text_format(&text, "%s -> %s", def_name(def), def_name(later));
  for (size_t i = length; i-- > 0;) {
    const bool hidden = length > 12 && i > 5 && i < length - 5;
    if (!hidden) text_format(&text, " -> %s", def_name(&list->items[queue[i]]));
    if (hidden && i == 6) text_add(&text, " -> …");
  }
  return text.data;
}

static const char *suggest_value(Expansion *expansion, const char *word) {
  enum { LIMIT = 200 };
  const char *names[LIMIT];
  size_t count = 0;
  Importer *importer = expansion->importer;
  for (size_t depth = expansion->depth; depth-- > 0;) {
    const Frame *frame = &expansion->frames[depth];
    for (size_t i = frame->at; i-- > 0 && count < LIMIT;) {
      if (frame->list->items[i].name) names[count++] = frame->list->items[i].name;
    }
  }
  for (size_t i = 0; i < importer->graph->input_count && count < LIMIT; i++) {
    names[count++] = importer->graph->inputs[i].name;
  }
  return import_suggestion(importer, word, names, count);
}

/* A tensor of the `weights` section used as an operand. */
static Node *add_constant(Importer *importer, const NameSlot *entry) {
  InlineWeight *weight = entry->value;
  weight->used = true;
  if (weight->broken) return importer->broken;
  const Parameter parameter = {.name = weight->tensor.name,
                               .dtype = weight->tensor.dtype,
                               .shape = weight->tensor.shape,
                               .buffer = true,
                               .layer = LAYER_NONE,
                               .value = &weight->tensor,
                               .inline_value = true,
                               .location = json_location(&importer->json, weight->item)};
  Node *node = graph_add_parameter(importer->graph, &parameter);
  node->location = parameter.location;
  node->path = arena_format(importer->arena, "weights.%s", weight->tensor.name);
  import_register(importer, weight->item, node->path, weight->tensor.name, "constant", node);
  return node;
}

static Node *resolve_block_input(Expansion *expansion, const LayerDef *def, const cJSON *item) {
  Importer *importer = expansion->importer;
  const Frame *frame = &expansion->frames[expansion->depth - 1];
  const char *name = item->valuestring;
  int64_t number = 0;
  if (expansion->depth == 1) {
    import_error(importer, item, "%s: in: '@in' is a block's own input and stands only in blocks", def->label);
  } else if (strcmp(name, "@in") == 0 && frame->input_count == 1) {
    return frame->inputs[0];
  } else if (strcmp(name, "@in") == 0) {
    import_error(importer, item, "%s: in: the block has %d inputs: write '@in.0' to '@in.%d'", def->label,
                 frame->input_count, frame->input_count - 1);
  } else if (strncmp(name, "@in.", 4) != 0 || name[4] < '0' || name[4] > '9' || !parse_int(name + 4, &number)) {
    import_error(importer, item, "%s: in: '%s' is not a value; did you mean '@in'?", def->label, name);
  } else if (number < frame->input_count) {
    return frame->inputs[number];
  } else {
    import_error(importer, item, "%s: in: there is no '%s': the block has %d input%s", def->label, name,
                 frame->input_count, frame->input_count == 1 ? "" : "s");
  }
  return importer->broken;
}

/* A name is looked for in the block instance first, then in those around it. In each, layers written later hide
 * values of the same name further out, so that a reference never changes its meaning by accident. */
static Node *resolve(Expansion *expansion, const LayerDef *def, const cJSON *item) {
  Importer *importer = expansion->importer;
  const char *name = item->valuestring;
  if (name[0] == '@') return resolve_block_input(expansion, def, item);
  const size_t length = strlen(name);
  for (size_t depth = expansion->depth; depth-- > 0;) {
    const Frame *frame = &expansion->frames[depth];
    NameSlot *entry = names_find_n(&importer->values, frame->prefix, name, length);
    if (entry) return ((NamedValue *)entry->value)->node;
    entry = names_find_n(&importer->weights, frame->prefix, name, length);
    if (entry) return add_constant(importer, entry);
    if (import_find_broken(importer, frame->prefix, name)) return importer->broken;
    const LayerDef *written = find_written(frame->list, name);
    if (!written) continue;
    const LayerDef *current = &frame->list->items[frame->at];
    if (written < current) continue;
    const char *cycle = find_cycle(importer, frame->list, current, written);
    if (written == current) {
      import_error(importer, item, "%s: in: makes a cycle: %s -> %s", def->label, def_name(current), name);
    } else if (cycle) {
      import_error(importer, item, "%s: in: makes a cycle: %s", def->label, cycle);
    } else {
      import_error(importer, item, "%s: in: '%s' stands later (%s): a layer can only use values before it", def->label,
                   name, written->label);
    }
    return importer->broken;
  }
  import_error(importer, item, "%s: in: no value is named '%s'%s", def->label, name, suggest_value(expansion, name));
  return importer->broken;
}

/* --- layers ------------------------------------------------------------------------------------------ */

static void add_layer_record(Importer *importer, const char *name, const char *op, Node *node) {
  Graph *graph = importer->graph;
  if (graph->layer_count == importer->layer_capacity) {
    const size_t capacity = importer->layer_capacity ? importer->layer_capacity * 2 : 64;
    Layer *layers = arena_array(importer->arena, capacity, Layer);
    if (graph->layer_count) memcpy(layers, graph->layers, graph->layer_count * sizeof(Layer));
    graph->layers = layers;
    importer->layer_capacity = capacity;
  }
  node->layer = (uint32_t)graph->layer_count;
  graph->layers[graph->layer_count++] = (Layer){.name = name, .op = op, .node = node};
}

/* The tensor of the description that gives this parameter's value, if any. */
static bool bind_inline(Importer *importer, const char *label, Parameter *parameter) {
  const NameSlot *entry = names_find(&importer->weights, parameter->name);
  if (!entry) return true;
  InlineWeight *weight = entry->value;
  weight->used = true;
  if (weight->broken) return false;
  if (weight->tensor.dtype != parameter->dtype) {
    return import_error(importer, weight->item, "weights.%s: dtype: %s has %s parameters, found %s",
                        weight->tensor.name, label, data_type_name(parameter->dtype),
                        data_type_name(weight->tensor.dtype));
  }
  if (!shape_equal(&weight->tensor.shape, &parameter->shape)) {
    return import_error(importer, weight->shape_item, "weights.%s: shape: %s expects %s, found %s", weight->tensor.name,
                        label, import_shape_text(importer, &parameter->shape),
                        import_shape_text(importer, &weight->tensor.shape));
  }
  parameter->value = &weight->tensor;
  parameter->inline_value = true;
  return true;
}

static Node *add_parameter(Importer *importer, const LayerDef *def, const char *label, const char *layer,
                           const ParameterSpec *spec) {
  Parameter parameter = {.name = arena_format(importer->arena, "%s.%s", layer, spec->suffix),
                         .dtype = DTYPE_F32,
                         .shape = spec->shape,
                         .init = spec->init,
                         .fan_in = spec->fan_in,
                         .trainable = spec->trainable,
                         .buffer = spec->buffer,
                         .layer = (uint32_t)importer->graph->layer_count,
                         .location = json_location(&importer->json, def->item)};
  int64_t elements, bytes;
  if (!shape_elements(&spec->shape, 1, &elements) || !checked_mul(elements, 16, &bytes)) {
    import_error(importer, def->item, "%s: the parameter '%s' of shape %s is too large", label, parameter.name,
                 import_shape_text(importer, &spec->shape));
    return NULL;
  }
  if (!bind_inline(importer, label, &parameter)) return NULL;
  Node *node = graph_add_parameter(importer->graph, &parameter);
  node->layer = parameter.layer;
  node->location = parameter.location;
  node->path = label;
  if (!import_register(importer, def->item, label, parameter.name, "parameter", node)) return NULL;
  return node;
}

static bool check_operand_count(Importer *importer, const LayerDef *def, const char *label, int32_t found) {
  const OpInfo *info = op_info(def->op);
  const bool own = info->parameters != NULL && info->parameters != no_parameters;
  const int32_t least = own ? 1 : info->inputs_min, most = own ? 1 : info->inputs_max;
  if (found >= least && found <= most) return true;
  const cJSON *item = def->in ? def->in : def->item;
  if (least == most) {
    return import_error(importer, item, "%s: %s takes %d input%s, found %d", label, info->name, least,
                        least == 1 ? "" : "s", found);
  }
  return import_error(importer, item, "%s: %s takes %d to %d inputs, found %d", label, info->name, least, most, found);
}

static Node *add_op(Importer *importer, const Frame *frame, const LayerDef *def, const char *name, const Scope *scope) {
  const OpInfo *info = op_info(def->op);
  Attrs attrs;
  if (!import_attributes(importer, def, scope, &attrs)) return importer->broken;
  if (!check_operand_count(importer, def, scope->label, frame->operand_count)) return importer->broken;
  Node *inputs[IMPORT_MAX_OPERANDS + PARAMETER_SPEC_MAX];
  int32_t count = 0;
  for (; count < frame->operand_count; count++) {
    inputs[count] = frame->operands[count];
    if (inputs[count] == importer->broken) return importer->broken;
  }
  if (import_reported(importer, def->item)) return importer->broken;
  if (info->parameters) {
    ParameterSpec specs[PARAMETER_SPEC_MAX];
    const size_t spec_count = info->parameters(&attrs, &inputs[0]->shape, specs);
    for (size_t i = 0; i < spec_count; i++) {
      inputs[count] = add_parameter(importer, def, scope->label, name, &specs[i]);
      if (!inputs[count++]) return importer->broken;
    }
  }
  const Attrs initial = attrs_default();
  attrs.out_channels = initial.out_channels;
  attrs.out_features = initial.out_features;
  attrs.bias = initial.bias;
  Node *node = graph_add(importer->graph, def->op, name, inputs, count);
  node->attrs = attrs;
  node->path = scope->label;
  node->location = json_location(&importer->json, def->item);
  add_layer_record(importer, name, info->name, node);
  if (node_infer(node, importer->diag)) return node;
  import_set_reported(importer, def->item);
  return importer->broken;
}

/* --- the walk ---------------------------------------------------------------------------------------- */

static void read_operands(Expansion *expansion, Frame *frame, const LayerDef *def) {
  Importer *importer = expansion->importer;
  frame->operand_count = 0;
  if (!def->in && def->broken) {
    frame->operands[frame->operand_count++] = importer->broken;
    return;
  }
  if (!def->in) {
    frame->operands[frame->operand_count++] = frame->last ? frame->last : importer->broken;
    if (!frame->last && expansion->depth == 1) {
      import_error(importer, def->item, "%s: missing key 'in': the model has %zu inputs", def->label,
                   importer->graph->input_count);
    } else if (!frame->last) {
      import_error(importer, def->item, "%s: missing key 'in': the block has %d inputs, '@in.0' to '@in.%d'",
                   def->label, frame->input_count, frame->input_count - 1);
    }
    return;
  }
  const bool list = cJSON_IsArray(def->in);
  for (const cJSON *item = list ? def->in->child : def->in; item; item = list ? item->next : NULL) {
    frame->operands[frame->operand_count++] = resolve(expansion, def, item);
  }
}

static Scope frame_scope(const Frame *frame, const LayerDef *def, const char *label) {
  return (Scope){frame->variables, frame->variable_count + (def->repeat != NULL), true, label};
}

/* The name of an instance: as written, with the number of a repetition; else its number among the list's. */
static const char *instance_name(Importer *importer, const Frame *frame, const LayerDef *def) {
  if (def->name && !def->repeat) return arena_format(importer->arena, "%s%s", frame->prefix, def->name);
  if (def->name) {
    return arena_format(importer->arena, "%s%s.%lld", frame->prefix, def->name, (long long)frame->instance);
  }
  const char *name = arena_format(importer->arena, "%s%lld", frame->prefix, (long long)frame->number);
  while (names_find(&importer->values, name)) name = arena_format(importer->arena, "%s_", name);
  return name;
}

static const cJSON *written_at(const LayerDef *def) { return def->name_item ? def->name_item : def->item; }

static void finish_instance(Importer *importer, Frame *frame, const LayerDef *def, const char *name, Node *value) {
  import_register(importer, written_at(def), def->label, name, def->block ? "block" : "layer", value);
  if (value != importer->broken) import_add_value_name(importer, name, value);
  frame->operands[0] = value;
  if (def->block) frame->operand_count = 1;
  frame->instance++;
}

/* Begins a block instance: its parameters are evaluated in the frame around it. */
static void push_block(Expansion *expansion, Frame *frame, const LayerDef *def, const char *name, const Scope *scope) {
  Importer *importer = expansion->importer;
  const BlockDef *block = def->block;
  if (expansion->depth > IMPORT_MAX_BLOCK_DEPTH) {
    import_error(importer, def->item, "%s: blocks are nested deeper than %d levels", def->label,
                 IMPORT_MAX_BLOCK_DEPTH);
    finish_instance(importer, frame, def, name, importer->broken);
    return;
  }
  Frame *inner = &expansion->frames[expansion->depth];
  *inner = (Frame){.list = &block->list, .name = name, .variable_count = block->param_count};
  for (size_t i = 0; i < block->param_count; i++) {
    ExpressionVariable *variable = &inner->variables[i];
    *variable = (ExpressionVariable){block->params[i].name, block->params[i].initial};
    const cJSON *given = json_member(def->with, variable->name);
    if (cJSON_IsBool(given)) {
      variable->value = cJSON_IsTrue(given);
    } else if (given) {
      const char *what = arena_format(importer->arena, "with.%s", variable->name);
      if (!import_integer(importer, given, scope, what, INT64_MIN, INT64_MAX, &variable->value)) {
        finish_instance(importer, frame, def, name, importer->broken);
        return;
      }
    }
  }
  inner->prefix = arena_format(importer->arena, "%s.", name);
  inner->input_count = frame->operand_count;
  memcpy(inner->inputs, frame->operands, sizeof inner->inputs);
  inner->last = inner->input_count == 1 ? inner->inputs[0] : NULL;
  expansion->depth++;
}

static bool included(Importer *importer, const LayerDef *def, const Scope *scope, bool *out_included) {
  int64_t value = 1;
  if (cJSON_IsBool(def->condition)) {
    value = cJSON_IsTrue(def->condition);
  } else if (def->condition) {
    if (!import_integer(importer, def->condition, scope, "if", INT64_MIN, INT64_MAX, &value)) return false;
  }
  *out_included = value != 0;
  return true;
}

static void expand_instance(Expansion *expansion, Frame *frame, const LayerDef *def) {
  Importer *importer = expansion->importer;
  if (++expansion->steps > IMPORT_MAX_LAYERS) {
    import_error(importer, def->item, "%s: the model has more than %d layers", def->label, IMPORT_MAX_LAYERS);
    expansion->stopped = true;
    return;
  }
  frame->variables[frame->variable_count] = (ExpressionVariable){"index", frame->instance};
  const char *name = instance_name(importer, frame, def);
  const Scope scope = frame_scope(frame, def, arena_format(importer->arena, "%s '%s'", def->path, name));
  bool present;
  if (def->broken || (def->block && def->block->broken) || !included(importer, def, &scope, &present)) {
    import_register(importer, written_at(def), def->label, name, "layer", importer->broken);
    frame->operands[0] = importer->broken;
    frame->instance++;
    frame->number++;
    return;
  }
  if (!present) { /* its name stands for what it would have worked on */
    if (def->name) import_register(importer, written_at(def), def->label, name, "left-out layer", frame->operands[0]);
    frame->instance++;
    return;
  }
  frame->number++;
  if (def->block) {
    push_block(expansion, frame, def, name, &scope);
  } else {
    finish_instance(importer, frame, def, name, add_op(importer, frame, def, name, &scope));
  }
}

static void begin_entry(Expansion *expansion, Frame *frame, const LayerDef *def) {
  Importer *importer = expansion->importer;
  frame->entered = true;
  frame->instance = 0;
  frame->instances = 1;
  read_operands(expansion, frame, def);
  if (!def->repeat || def->broken) return;
  const Scope scope = {frame->variables, frame->variable_count, true, def->label};
  if (!import_integer(importer, def->repeat, &scope, "repeat", 0, IMPORT_MAX_LAYERS, &frame->instances)) {
    frame->instances = 0;
    frame->operands[0] = importer->broken;
  }
}

static void end_entry(Importer *importer, Frame *frame, const LayerDef *def) {
  frame->last = frame->operands[0];
  if (def->repeat && def->name) {
    const char *name = arena_format(importer->arena, "%s%s", frame->prefix, def->name);
    import_register(importer, written_at(def), def->label, name, "block", frame->last);
    if (frame->instances > 0 && frame->last != importer->broken) import_add_value_name(importer, name, frame->last);
  }
  frame->entered = false;
  frame->at++;
}

void import_expand(Importer *importer) {
  Expansion expansion = {.importer = importer, .depth = 1};
  expansion.frames = arena_array(importer->arena, IMPORT_MAX_BLOCK_DEPTH + 1, Frame);
  const Graph *graph = importer->graph;
  Frame *model = &expansion.frames[0];
  *model = (Frame){.list = &importer->layers, .prefix = ""};
  if (graph->input_count == 1) model->last = graph->inputs[0].node;
  if (graph->input_count == 0 || !importer->names_complete) model->last = importer->broken;
  importer->expanding = true;
  while (!expansion.stopped && !diag_full(importer->diag)) {
    Frame *frame = &expansion.frames[expansion.depth - 1];
    if (frame->at == frame->list->count) {
      if (expansion.depth == 1) break;
      expansion.depth--;
      Frame *outer = &expansion.frames[expansion.depth - 1];
      finish_instance(importer, outer, &outer->list->items[outer->at], frame->name, frame->last);
      continue;
    }
    const LayerDef *def = &frame->list->items[frame->at];
    if (!frame->entered) {
      begin_entry(&expansion, frame, def);
    } else if (frame->instance < frame->instances) {
      expand_instance(&expansion, frame, def);
    } else {
      end_entry(importer, frame, def);
    }
  }
  if (expansion.stopped || diag_full(importer->diag)) importer->names_complete = false;
  importer->last = model->last ? model->last : importer->broken;
  importer->expanding = false;
}
