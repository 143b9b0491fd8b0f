/* Groups, hooks and the `train` section of a description. */
#include <string.h>

#include "importer.h"

/* A pattern without wildcards is looked up, so that long lists of plain names stay cheap. */
static bool is_plain(const char *pattern) { return strpbrk(pattern, "*?") == NULL; }

static bool read_choice(Importer *importer, const cJSON *item, const char *what, const char *const *words, size_t count,
                        size_t *out_index) {
  if (!import_is_string(importer, item, what)) return false;
  Text list;
  text_init(&list, importer->arena);
  for (size_t i = 0; i < count; i++) {
    if (strcmp(words[i], item->valuestring) == 0) {
      *out_index = i;
      return true;
    }
    text_format(&list, "%s'%s'", i == 0 ? "" : i + 1 == count ? " or " : ", ", words[i]);
  }
  return import_error(importer, item, "%s: expected %s, found '%s'", what, list.data, item->valuestring);
}

/* --- groups ------------------------------------------------------------------------------------------ */

static bool read_patterns(Importer *importer, const cJSON *array, const char *label, size_t *total, Group *group) {
  const char *what = arena_format(importer->arena, "%s: layers", label);
  if (!import_is_array(importer, array, what)) return false;
  if (!array->child) return import_error(importer, array, "%s: the list is empty", what);
  group->patterns = arena_array(importer->arena, import_size(array), const char *);
  for (const cJSON *item = array->child; item; item = item->next) {
    if (!import_is_string(importer, item, what)) return false;
    if (++*total > IMPORT_MAX_PATTERNS) {
      return import_error(importer, item, "groups: more than %d patterns", IMPORT_MAX_PATTERNS);
    }
    group->patterns[group->pattern_count++] = item->valuestring;
  }
  return true;
}

static bool read_group(Importer *importer, const cJSON *item, const char *label, size_t *total, Group *group) {
  static const char *const keys[] = {"name", "layers", "frozen", "freeze_batch_norm"};
  const cJSON *name, *layers;
  if (!import_is_object(importer, item, label)) return false;
  bool good = import_check_keys(importer, item, label, keys, 4);
  group->location = json_location(&importer->json, item);
  if (!import_require(importer, item, "name", label, &name)) return false;
  const char *what = arena_format(importer->arena, "%s: name", label);
  if (!import_is_string(importer, name, what) || !import_is_name(importer, name, name->valuestring, what)) return false;
  group->name = name->valuestring;
  const Graph *graph = importer->graph;
  for (size_t i = 0; i < graph->group_count; i++) {
    if (graph->groups[i].name && strcmp(graph->groups[i].name, group->name) == 0) {
      return import_error(importer, name, "%s: the name '%s' is taken by groups[%zu]", label, group->name, i);
    }
  }
  const cJSON *frozen = json_member(item, "frozen"), *batch_norm = json_member(item, "freeze_batch_norm");
  what = arena_format(importer->arena, "%s: frozen", label);
  if (frozen) good &= import_bool(importer, frozen, what, &group->frozen);
  what = arena_format(importer->arena, "%s: freeze_batch_norm", label);
  if (batch_norm) good &= import_bool(importer, batch_norm, what, &group->freeze_batch_norm);
  if (!import_require(importer, item, "layers", label, &layers)) return false;
  return read_patterns(importer, layers, label, total, group) && good;
}

/* Gives every layer not yet in a group that the pattern matches to `group`; false when it matches none at all. */
static bool assign_layers(Graph *graph, const char *pattern, size_t group, uint32_t *group_of) {
  bool matched = false;
  for (size_t i = 0; i < graph->layer_count; i++) {
    if (!pattern_match(pattern, graph->layers[i].name)) continue;
    matched = true;
    if (group_of[i] == 0) group_of[i] = (uint32_t)group + 1;
  }
  return matched;
}

static void check_covered(Importer *importer, const cJSON *groups, const uint32_t *group_of) {
  const Graph *graph = importer->graph;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    if (parameter->layer == LAYER_NONE || group_of[parameter->layer]) continue;
    import_error(importer, groups, "groups: layer '%s' has parameters and is in no group",
                 graph->layers[parameter->layer].name);
    return;
  }
}

void import_groups(Importer *importer, const cJSON *groups) {
  Graph *graph = importer->graph;
  if (!import_is_array(importer, groups, "groups")) return;
  const size_t count = import_size(groups);
  if (count > IMPORT_MAX_PATTERNS) {
    import_error(importer, groups, "groups: more than %d groups", IMPORT_MAX_PATTERNS);
    return;
  }
  graph->groups = arena_array(importer->arena, count, Group);
  uint32_t *group_of = arena_array(importer->arena, graph->layer_count, uint32_t);
  size_t total = 0;
  bool good = import_clean(importer);
  for (const cJSON *item = groups->child; item && !diag_full(importer->diag); item = item->next) {
    Group *group = &graph->groups[graph->group_count];
    const char *label = arena_format(importer->arena, "groups[%zu]", graph->group_count);
    good &= read_group(importer, item, label, &total, group);
    const cJSON *pattern = good ? json_member(item, "layers")->child : NULL;
    for (size_t i = 0; good && i < group->pattern_count; i++, pattern = pattern->next) {
      if (assign_layers(graph, group->patterns[i], graph->group_count, group_of)) continue;
      good = import_error(importer, pattern, "%s '%s': no layer matches '%s'", label, group->name, group->patterns[i]);
    }
    graph->group_count++;
  }
  if (!good) return;
  check_covered(importer, groups, group_of);
  for (size_t i = 0; i < graph->layer_count; i++) {
    const Group *group = group_of[i] ? &graph->groups[group_of[i] - 1] : NULL;
    const bool batch_norm = graph->layers[i].node && graph->layers[i].node->op == OP_BATCH_NORM;
    graph->layers[i].frozen = group && group->frozen && (!batch_norm || group->freeze_batch_norm);
  }
  for (size_t i = 0; i < graph->parameter_count; i++) {
    Parameter *parameter = &graph->parameters[i];
    if (parameter->layer != LAYER_NONE && graph->layers[parameter->layer].frozen) parameter->trainable = false;
  }
}

/* --- hooks ------------------------------------------------------------------------------------------- */

static const char *const hook_kinds[] = {"activation", "gradient"};
static const char *const hook_actions[] = {"store", "stats", "call"};

static bool matches_value(const Importer *importer, const char *pattern) {
  if (is_plain(pattern)) {
    const NameSlot *slot = names_find(&importer->values, pattern);
    static const char *const kinds[] = {"layer", "block", "alias"};
    for (int i = 0; slot && i < 3; i++) {
      if (strcmp(((const NamedValue *)slot->value)->kind, kinds[i]) == 0) return true;
    }
    return false;
  }
  for (size_t i = 0; i < importer->graph->value_name_count; i++) {
    if (pattern_match(pattern, importer->graph->value_names[i].name)) return true;
  }
  return false;
}

static bool check_hooked(Importer *importer, const cJSON *item, const char *label) {
  if (matches_value(importer, item->valuestring)) return true;
  if (is_plain(item->valuestring) ? import_find_broken(importer, "", item->valuestring) != NULL
                                  : !import_clean(importer)) {
    return false;
  }
  enum { LIMIT = 1000 };
  const char *names[LIMIT];
  const Graph *graph = importer->graph;
  size_t count = 0;
  for (size_t i = graph->value_name_count; i-- > 0 && count < LIMIT;) names[count++] = graph->value_names[i].name;
  return import_error(importer, item, "%s: no value matches '%s'%s", label, item->valuestring,
                      import_suggestion(importer, item->valuestring, names, count));
}

static bool read_number(Importer *importer, const cJSON *item, const char *what, double *out_value) {
  if (!cJSON_IsNumber(item)) return import_error(importer, item, "%s: expected a number, found %s", what, json_kind(item));
  *out_value = item->valuedouble;
  return true;
}

static bool read_hook_stats(Importer *importer, const cJSON *item, const char *label, HookAction action,
                            HookStats *stats) {
  enum { BINS_MAX = 254 };
  const cJSON *bins = json_member(item, "bins"), *range = json_member(item, "range");
  const cJSON *threshold = json_member(item, "threshold"), *any = bins ? bins : range ? range : threshold;
  if (!any) return true;
  if (action != HOOK_STATS)
    return import_error(importer, any, "%s: %s is an option of the action 'stats' only", label, any->string);
  const Attrs attrs = attrs_default();
  *stats = (HookStats){attrs.bins, attrs.low, attrs.high, attrs.threshold};
  bool good = true;
  const char *what = arena_format(importer->arena, "%s: bins", label);
  if (bins) good &= json_integer(&importer->json, bins, what, 1, BINS_MAX, importer->diag, &stats->bins);
  what = arena_format(importer->arena, "%s: threshold", label);
  if (threshold) good &= read_number(importer, threshold, what, &stats->threshold);
  if (!range) return good;
  what = arena_format(importer->arena, "%s: range", label);
  if (!import_is_array(importer, range, what)) return false;
  if (import_size(range) != 2)
    return import_error(importer, range, "%s: expected [low, high], found %zu elements", what, import_size(range));
  if (!read_number(importer, range->child, what, &stats->low) ||
      !read_number(importer, range->child->next, what, &stats->high))
    return false;
  if (!((float)stats->low < (float)stats->high))
    return import_error(importer, range, "%s: the first number must be below the second", what);
  return good;
}

static bool read_hook(Importer *importer, const cJSON *item, const char *label, Hook *hook) {
  static const char *const keys[] = {"value", "kind", "action", "bins", "range", "threshold"};
  const cJSON *value;
  size_t kind = HOOK_ACTIVATION, action = HOOK_STORE;
  HookStats stats = {0};
  if (!import_is_object(importer, item, label)) return false;
  bool good = import_check_keys(importer, item, label, keys, sizeof keys / sizeof keys[0]);
  const cJSON *kind_item = json_member(item, "kind"), *action_item = json_member(item, "action");
  const char *what = arena_format(importer->arena, "%s: kind", label);
  if (kind_item) good &= read_choice(importer, kind_item, what, hook_kinds, 2, &kind);
  what = arena_format(importer->arena, "%s: action", label);
  if (action_item) good &= read_choice(importer, action_item, what, hook_actions, 3, &action);
  good &= read_hook_stats(importer, item, label, (HookAction)action, &stats);
  if (!import_require(importer, item, "value", label, &value)) return false;
  if (!import_is_string(importer, value, arena_format(importer->arena, "%s: value", label))) return false;
  *hook = (Hook){value->valuestring, (HookKind)kind, (HookAction)action, json_location(&importer->json, value), stats};
  return check_hooked(importer, value, label) && good;
}

void import_hooks(Importer *importer, const cJSON *hooks) {
  Graph *graph = importer->graph;
  if (!import_is_array(importer, hooks, "hooks")) return;
  const size_t count = import_size(hooks);
  if (count > IMPORT_MAX_PATTERNS) {
    import_error(importer, hooks, "hooks: more than %d hooks", IMPORT_MAX_PATTERNS);
    return;
  }
  graph->hooks = arena_array(importer->arena, count, Hook);
  size_t index = 0;
  for (const cJSON *item = hooks->child; item; item = item->next, index++) {
    const char *label = arena_format(importer->arena, "hooks[%zu]", index);
    if (read_hook(importer, item, label, &graph->hooks[graph->hook_count])) graph->hook_count++;
  }
}

/* --- training ---------------------------------------------------------------------------------------- */

void import_train(Importer *importer, const cJSON *train) {
  static const char *const keys[] = {"loss", "metrics"};
  static const char *const losses[] = {"cross_entropy", "mse", "bce_with_logits"};
  static const OpCode ops[] = {OP_CROSS_ENTROPY, OP_MSE, OP_BCE_WITH_LOGITS};
  static const char *const metrics[] = {"accuracy", "error_rate"};
  if (!import_is_object(importer, train, "train")) return;
  import_check_keys(importer, train, "train", keys, 2);
  size_t index;
  const cJSON *loss = json_member(train, "loss"), *list = json_member(train, "metrics");
  Objective *objective = &importer->graph->objective;
  if (loss && read_choice(importer, loss, "train: loss", losses, 3, &index)) objective->loss = ops[index];
  if (!list || !import_is_array(importer, list, "train: metrics")) return;
  for (const cJSON *item = list->child; item && !diag_full(importer->diag); item = item->next) {
    if (!read_choice(importer, item, "train: metrics", metrics, 2, &index)) continue;
    *(index == 0 ? &objective->accuracy : &objective->error_rate) = true;
  }
}
