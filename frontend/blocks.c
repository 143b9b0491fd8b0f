/* The first step of the import: block and layer definitions, checked as they are written. */
#include <string.h>

#include "importer.h"

enum { LAYER_KEYS = 7 };

static const char *const layer_keys[LAYER_KEYS] = {"op", "block", "name", "in", "with", "repeat", "if"};

/* --- block headers ----------------------------------------------------------------------------------- */

static bool is_identifier(const char *name) {
  for (const char *at = name; *at; at++) {
    const bool letter = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || *at == '_';
    if (!letter && !(*at >= '0' && *at <= '9' && at > name)) return false;
  }
  return *name != '\0';
}

static void read_params(Importer *importer, BlockDef *block, const cJSON *params) {
  const char *what = arena_format(importer->arena, "blocks.%s.params", block->name);
  if (!import_is_object(importer, params, what)) {
    block->broken = true;
    return;
  }
  block->params = arena_array(importer->arena, import_size(params), ParamDef);
  for (const cJSON *member = params->child; member; member = member->next) {
    if (import_comment(member)) continue;
    if (!is_identifier(member->string) || strlen(member->string) > IMPORT_MAX_NAME) {
      import_key_error(importer, member, "%s: '%s' is not a parameter's name: letters, digits and '_' only", what,
                       member->string);
      continue;
    }
    if (strcmp(member->string, "index") == 0) {
      import_key_error(importer, member, "%s: '$index' is the number of a repeated layer and cannot be a parameter",
                       what);
      continue;
    }
    if (block->param_count == IMPORT_MAX_PARAMS) {
      import_key_error(importer, member, "%s: more than %d parameters", what, IMPORT_MAX_PARAMS);
      return;
    }
    ParamDef *param = &block->params[block->param_count++];
    param->name = member->string;
    param->required = cJSON_IsNull(member);
    if (cJSON_IsBool(member)) {
      param->initial = cJSON_IsTrue(member);
    } else if (!cJSON_IsNull(member) && !cJSON_IsNumber(member)) {
      import_error(importer, member, "%s.%s: expected an integer, true, false, or null (to be given), found %s", what,
                   member->string, json_kind(member));
    } else if (cJSON_IsNumber(member)) {
      const char *name = arena_format(importer->arena, "%s.%s", what, member->string);
      json_integer(&importer->json, member, name, INT64_MIN, INT64_MAX, importer->diag, &param->initial);
    }
  }
}

static BlockDef *read_block_header(Importer *importer, const cJSON *item) {
  BlockDef *block = arena_new(importer->arena, BlockDef);
  block->name = item->string;
  block->item = item;
  const char *label = arena_format(importer->arena, "blocks.%s", item->string);
  block->list.path = arena_format(importer->arena, "%s.layers", label);
  if (!import_is_object(importer, item, label)) {
    block->broken = true;
    return block;
  }
  static const char *const keys[] = {"params", "layers"};
  import_check_keys(importer, item, label, keys, 2);
  const cJSON *params = json_member(item, "params");
  if (params) read_params(importer, block, params);
  return block;
}

/* --- layers ------------------------------------------------------------------------------------------ */

static bool read_op(Importer *importer, LayerDef *def, const cJSON *item) {
  if (!import_is_string(importer, item, arena_format(importer->arena, "%s: op", def->label))) return false;
  size_t count;
  const char *const *names = op_names(&count);
  for (size_t i = 0; i < count; i++) {
    if (strcmp(names[i], item->valuestring) != 0) continue;
    def->op = op_find(item->valuestring);
    return true;
  }
  return import_error(importer, item, "%s: unknown op '%s'%s", def->label, item->valuestring,
                      import_suggestion(importer, item->valuestring, names, count));
}

/* Names of a table's first entries, as candidates for a suggestion. */
static size_t list_names(const NameTable *table, const char **names, size_t limit) {
  size_t count = 0;
  for (size_t i = 0; i < table->capacity && count < limit; i++) {
    if (table->slots[i].name) names[count++] = table->slots[i].name;
  }
  return count;
}

static bool read_block_name(Importer *importer, LayerDef *def, const cJSON *item) {
  if (!import_is_string(importer, item, arena_format(importer->arena, "%s: block", def->label))) return false;
  NameSlot *entry = names_find(&importer->blocks, item->valuestring);
  if (entry) {
    def->block = entry->value;
    return true;
  }
  const char *names[64];
  const size_t count = list_names(&importer->blocks, names, 64);
  return import_error(importer, item, "%s: unknown block '%s'%s", def->label, item->valuestring,
                      import_suggestion(importer, item->valuestring, names, count));
}

/* Keys that are not of every layer: attributes of its op. */
static bool read_attribute_keys(Importer *importer, LayerDef *def) {
  const AttrMask mask = op_info(def->op)->attrs;
  const char *candidates[LAYER_KEYS + ATTR_ID_COUNT];
  size_t candidate_count = 0;
  bool good = true;
  def->attrs = arena_array(importer->arena, import_size(def->item), AttrDef);
  for (const cJSON *member = def->item->child; member; member = member->next) {
    bool known = import_comment(member);
    for (size_t i = 0; i < LAYER_KEYS && !known; i++) known = strcmp(member->string, layer_keys[i]) == 0;
    if (known) continue;
    const AttrId id = attr_find(member->string);
    if (id != ATTR_ID_COUNT && (mask >> id & 1)) {
      def->attrs[def->attr_count++] = (AttrDef){id, member};
      continue;
    }
    if (candidate_count == 0) {
      for (int i = 0; i < ATTR_ID_COUNT; i++) {
        if (mask >> i & 1) candidates[candidate_count++] = attr_info((AttrId)i)->name;
      }
      for (int i = 0; i < LAYER_KEYS; i++) candidates[candidate_count++] = layer_keys[i];
    }
    good = import_key_error(importer, member, "%s: unknown key '%s' of %s%s", def->label, member->string,
                            op_info(def->op)->name,
                            import_suggestion(importer, member->string, candidates, candidate_count));
  }
  return good;
}

static bool check_with(Importer *importer, const LayerDef *def, const Scope *scope) {
  const BlockDef *block = def->block;
  bool good = true;
  if (def->with) {
    if (!import_is_object(importer, def->with, arena_format(importer->arena, "%s: with", def->label))) return false;
    const char *names[IMPORT_MAX_PARAMS];
    for (size_t i = 0; i < block->param_count; i++) names[i] = block->params[i].name;
    for (const cJSON *member = def->with->child; member; member = member->next) {
      if (import_comment(member)) continue;
      bool known = false;
      for (size_t i = 0; i < block->param_count && !known; i++) known = strcmp(names[i], member->string) == 0;
      if (!known) {
        good = import_key_error(importer, member, "%s: block '%s' has no parameter '%s'%s", def->label, block->name,
                                member->string, import_suggestion(importer, member->string, names, block->param_count));
        continue;
      }
      int64_t value;
      const char *what = arena_format(importer->arena, "with.%s", member->string);
      if (!cJSON_IsBool(member)) good &= import_integer(importer, member, scope, what, INT64_MIN, INT64_MAX, &value);
    }
  }
  for (size_t i = 0; i < block->param_count; i++) {
    if (!block->params[i].required || json_member(def->with, block->params[i].name)) continue;
    good = import_error(importer, def->with ? def->with : def->item, "%s: block '%s' needs the parameter '%s'",
                        def->label, block->name, block->params[i].name);
  }
  return good;
}

static bool check_in(Importer *importer, const LayerDef *def) {
  const cJSON *in = def->in;
  if (cJSON_IsString(in)) return true;
  const size_t count = cJSON_IsArray(in) ? import_size(in) : 0;
  if (!cJSON_IsArray(in) || count == 0) {
    return import_error(importer, in, "%s: in: expected a name or a list of names, found %s", def->label,
                        cJSON_IsArray(in) ? "an empty list" : json_kind(in));
  }
  if (count > IMPORT_MAX_OPERANDS) {
    return import_error(importer, in, "%s: in: at most %d names, found %zu", def->label, IMPORT_MAX_OPERANDS, count);
  }
  const char *what = arena_format(importer->arena, "%s: in", def->label);
  for (const cJSON *name = in->child; name; name = name->next) {
    if (!import_is_string(importer, name, what)) return false;
  }
  return true;
}

/* Expressions and attributes with the parameters' names known, but not their values. */
static bool check_values(Importer *importer, const BlockDef *block, LayerDef *def) {
  ExpressionVariable variables[IMPORT_MAX_PARAMS + 1];
  size_t count = 0;
  for (size_t i = 0; block && i < block->param_count; i++) variables[count++].name = block->params[i].name;
  Scope scope = {.variables = variables, .count = count, .known = false, .label = def->label};
  int64_t value;
  bool good = true;
  if (def->repeat) {
    good &= import_integer(importer, def->repeat, &scope, "repeat", 0, IMPORT_MAX_LAYERS, &value);
    variables[scope.count++].name = "index";
  }
  if (def->condition && !cJSON_IsBool(def->condition)) {
    good &= import_integer(importer, def->condition, &scope, "if", INT64_MIN, INT64_MAX, &value);
  }
  if (def->block) {
    good &= check_with(importer, def, &scope);
  } else {
    Attrs attrs;
    good &= import_attributes(importer, def, &scope, &attrs);
  }
  return good;
}

static bool read_name(Importer *importer, LayerList *list, LayerDef *def, const cJSON *item) {
  const char *what = arena_format(importer->arena, "%s: name", def->path);
  if (!import_is_string(importer, item, what) || !import_is_name(importer, item, item->valuestring, what)) {
    importer->names_complete = false;
    return false;
  }
  def->label = arena_format(importer->arena, "%s '%s'", def->path, item->valuestring);
  const NameSlot *taken = names_find(&list->names, item->valuestring);
  if (taken) {
    const LayerDef *first = taken->value;
    import_error(importer, item, "%s: the name is taken", def->label);
    import_note(importer, json_location(&importer->json, json_member(first->item, "name")), "the first is %s",
                first->label);
    return false;
  }
  def->name = item->valuestring;
  def->name_item = item;
  names_add(&list->names, def->name, def);
  return true;
}

static bool read_layer(Importer *importer, const BlockDef *block, LayerList *list, LayerDef *def) {
  const cJSON *item = def->item;
  if (!import_is_object(importer, item, def->path)) {
    importer->names_complete = false;
    return false;
  }
  const cJSON *name = json_member(item, "name");
  bool good = !name || read_name(importer, list, def, name);
  const cJSON *op = json_member(item, "op"), *block_name = json_member(item, "block");
  def->in = json_member(item, "in");
  if (def->in && !check_in(importer, def)) {
    def->in = NULL;
    good = false;
  }
  def->with = json_member(item, "with");
  def->repeat = json_member(item, "repeat");
  def->condition = json_member(item, "if");
  if (!op && !block_name) return import_error(importer, item, "%s: missing key 'op' (or 'block')", def->label);
  if (op && block_name) return import_key_error(importer, block_name, "%s: has both 'op' and 'block'", def->label);
  if (op) {
    if (!read_op(importer, def, op)) return false;
    if (def->with) good = import_key_error(importer, def->with, "%s: 'with' is for blocks only", def->label);
    good &= read_attribute_keys(importer, def);
  } else {
    if (!read_block_name(importer, def, block_name)) return false;
    good &= import_check_keys(importer, item, def->label, layer_keys, LAYER_KEYS);
  }
  return check_values(importer, block, def) && good;
}

void import_layer_list(Importer *importer, const BlockDef *block, const cJSON *array, LayerList *list) {
  if (!import_is_array(importer, array, list->path)) return;
  const size_t count = import_size(array);
  names_init(&list->names, importer->arena);
  if (count == 0) import_error(importer, array, "%s: the list is empty", list->path);
  list->items = arena_array(importer->arena, count, LayerDef);
  for (const cJSON *item = array->child; item; item = item->next) {
    LayerDef *def = &list->items[list->count];
    def->item = item;
    def->path = def->label = arena_format(importer->arena, "%s[%zu]", list->path, list->count);
    def->broken = diag_full(importer->diag) || !read_layer(importer, block, list, def);
    list->count++;
  }
}

/* --- recursion --------------------------------------------------------------------------------------- */

typedef struct Visit {
  BlockDef *block;
  size_t next;
} Visit;

static void report_recursion(Importer *importer, const Visit *stack, size_t depth, LayerDef *def) {
  size_t first = 0;
  while (stack[first].block != def->block) first++;
  Text path;
  text_init(&path, importer->arena);
  for (size_t i = first; i < depth; i++) text_format(&path, "%s -> ", stack[i].block->name);
  import_error(importer, def->item, "%s: block '%s' contains itself: %s%s", def->label, def->block->name, path.data,
               def->block->name);
  def->broken = true;
}

/* Depth-first over the blocks: mark 1 is on the way, 2 is done. A layer that closes a ring is broken. */
static void check_recursion(Importer *importer, BlockDef *const *blocks, size_t count) {
  Visit *stack = arena_array(importer->arena, count, Visit);
  for (size_t i = 0; i < count; i++) {
    if (blocks[i]->mark) continue;
    size_t depth = 0;
    blocks[i]->mark = 1;
    stack[depth++] = (Visit){blocks[i], 0};
    while (depth) {
      Visit *top = &stack[depth - 1];
      if (top->next == top->block->list.count) {
        top->block->mark = 2;
        depth--;
        continue;
      }
      LayerDef *def = &top->block->list.items[top->next++];
      if (!def->block || def->block->mark == 2) continue;
      if (def->block->mark == 1) {
        report_recursion(importer, stack, depth, def);
        continue;
      }
      def->block->mark = 1;
      stack[depth++] = (Visit){def->block, 0};
    }
  }
}

void import_blocks(Importer *importer, const cJSON *blocks) {
  if (!import_is_object(importer, blocks, "blocks")) return;
  BlockDef **list = arena_array(importer->arena, import_size(blocks), BlockDef *);
  size_t count = 0;
  for (const cJSON *item = blocks->child; item; item = item->next) {
    if (import_comment(item)) continue;
    list[count] = read_block_header(importer, item);
    names_add(&importer->blocks, item->string, list[count++]);
  }
  for (size_t i = 0; i < count; i++) {
    BlockDef *block = list[i];
    const cJSON *layers;
    if (!cJSON_IsObject(block->item)) continue;
    const char *label = arena_format(importer->arena, "blocks.%s", block->name);
    if (!import_require(importer, block->item, "layers", label, &layers)) {
      block->broken = true;
    } else {
      import_layer_list(importer, block, layers, &block->list);
      block->broken |= block->list.count == 0;
    }
  }
  check_recursion(importer, list, count);
}
