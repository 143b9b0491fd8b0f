#include <math.h>
#include <string.h>

#include "importer.h"

bool import_reported(const Importer *importer, const cJSON *item) {
  const size_t number = (size_t)item->valueint;
  return number < importer->reported_capacity && importer->reported[number];
}

void import_set_reported(Importer *importer, const cJSON *item) {
  const size_t number = (size_t)item->valueint;
  if (number >= importer->reported_capacity) {
    const size_t capacity = number * 2 + 64;
    bool *reported = arena_array(importer->arena, capacity, bool);
    if (importer->reported) memcpy(reported, importer->reported, importer->reported_capacity);
    importer->reported = reported;
    importer->reported_capacity = capacity;
  }
  importer->reported[number] = true;
}

/* Whether to go on with a message about this value. */
static bool claim_report(Importer *importer, const cJSON *item) {
  if (!importer->expanding) return true;
  if (import_reported(importer, item)) return false;
  import_set_reported(importer, item);
  return true;
}

static void report(Importer *importer, const cJSON *item, Location location, const char *format, va_list arguments)
    __attribute__((format(printf, 4, 0)));

static void report(Importer *importer, const cJSON *item, Location location, const char *format, va_list arguments) {
  if (!claim_report(importer, item)) return;
  Text text;
  text_init(&text, importer->arena);
  text_format_v(&text, format, arguments);
  diag_error(importer->diag, location, "%s", text.data);
}

bool import_error(Importer *importer, const cJSON *item, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(importer, item, json_location(&importer->json, item), format, arguments);
  va_end(arguments);
  return false;
}

bool import_key_error(Importer *importer, const cJSON *item, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(importer, item, json_key_location(&importer->json, item), format, arguments);
  va_end(arguments);
  return false;
}

bool import_clean(const Importer *importer) {
  return importer->names_complete && diag_error_count(importer->diag) == importer->errors_before;
}

void import_note(Importer *importer, Location location, const char *format, ...) {
  Text text;
  text_init(&text, importer->arena);
  va_list arguments;
  va_start(arguments, format);
  text_format_v(&text, format, arguments);
  va_end(arguments);
  diag_note(importer->diag, location, "%s", text.data);
}

bool import_comment(const cJSON *member) { return strcmp(member->string, "comment") == 0; }

const char *import_suggestion(Importer *importer, const char *word, const char *const *candidates, size_t count) {
  const char *nearest = nearest_word(word, candidates, count);
  return nearest ? arena_format(importer->arena, "; did you mean '%s'?", nearest) : "";
}

bool import_check_keys(Importer *importer, const cJSON *object, const char *label, const char *const *keys,
                       size_t count) {
  bool good = true;
  for (const cJSON *member = object->child; member && !diag_full(importer->diag); member = member->next) {
    bool known = import_comment(member);
    for (size_t i = 0; i < count && !known; i++) known = strcmp(member->string, keys[i]) == 0;
    if (known) continue;
    good = import_key_error(importer, member, "%s%sunknown key '%s'%s", label, *label ? ": " : "", member->string,
                            import_suggestion(importer, member->string, keys, count));
  }
  return good;
}

bool import_require(Importer *importer, const cJSON *object, const char *key, const char *label,
                    const cJSON **out_item) {
  *out_item = json_member(object, key);
  if (*out_item) return true;
  return import_error(importer, object, "%s%smissing key '%s'", label, *label ? ": " : "", key);
}

static bool expected(Importer *importer, const cJSON *item, const char *what, const char *kind) {
  return import_error(importer, item, "%s: expected %s, found %s", what, kind, json_kind(item));
}

bool import_is_object(Importer *importer, const cJSON *item, const char *what) {
  return cJSON_IsObject(item) || expected(importer, item, what, "an object");
}

bool import_is_array(Importer *importer, const cJSON *item, const char *what) {
  return cJSON_IsArray(item) || expected(importer, item, what, "an array");
}

bool import_is_string(Importer *importer, const cJSON *item, const char *what) {
  return cJSON_IsString(item) || expected(importer, item, what, "a string");
}

bool import_bool(Importer *importer, const cJSON *item, const char *what, bool *out_value) {
  if (!cJSON_IsBool(item)) return expected(importer, item, what, "true or false");
  *out_value = cJSON_IsTrue(item);
  return true;
}

bool import_is_name(Importer *importer, const cJSON *item, const char *name, const char *what) {
  const size_t length = strlen(name);
  if (length == 0) return import_error(importer, item, "%s: the name is empty", what);
  if (length > IMPORT_MAX_NAME) {
    return import_error(importer, item, "%s: a name of %zu bytes, at most %d are allowed", what, length,
                        IMPORT_MAX_NAME);
  }
  for (size_t i = 0; i < length; i++) {
    const char c = name[i];
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                       (c == '-' && i > 0) || (c == '.' && i > 0 && i + 1 < length && name[i - 1] != '.');
    if (plain) continue;
    return import_error(importer, item,
                        "%s: '%s' is not a name: it may have letters, digits, '_', and inside also '-' and single '.'",
                        what, name);
  }
  return true;
}

bool import_integer(Importer *importer, const cJSON *item, const Scope *scope, const char *what, int64_t minimum,
                    int64_t maximum, int64_t *out_value) {
  if (cJSON_IsNumber(item)) {
    if (minimum < -JSON_INTEGER_LIMIT) minimum = -JSON_INTEGER_LIMIT;
    if (maximum > JSON_INTEGER_LIMIT) maximum = JSON_INTEGER_LIMIT;
    if (item->valuedouble >= (double)minimum && item->valuedouble <= (double)maximum &&
        rint(item->valuedouble) == item->valuedouble) {
      *out_value = (int64_t)item->valuedouble;
      return true;
    }
    char buffer[DOUBLE_TEXT_SIZE];
    return import_error(importer, item, "%s: %s: expected an integer from %lld to %lld, found %s", scope->label, what,
                        (long long)minimum, (long long)maximum, double_text(item->valuedouble, buffer));
  }
  if (!cJSON_IsString(item)) {
    return import_error(importer, item, "%s: %s: expected an integer or an expression, found %s", scope->label, what,
                        json_kind(item));
  }
  ExpressionError error;
  if (!expression_evaluate(item->valuestring, scope->variables, scope->count, scope->known ? out_value : NULL,
                           &error)) {
    if (!claim_report(importer, item)) return false;
    Location location = json_location(&importer->json, item);
    location.column += (uint32_t)error.offset + 1; /* the quote */
    diag_error(importer->diag, location, "%s: %s: %s", scope->label, what, error.message);
    return false;
  }
  if (!scope->known) *out_value = minimum;
  if (*out_value >= minimum && *out_value <= maximum) return true;
  return import_error(importer, item, "%s: %s: expected an integer from %lld to %lld, found \"%s\" = %lld",
                      scope->label, what, (long long)minimum, (long long)maximum, item->valuestring,
                      (long long)*out_value);
}

bool import_shape(Importer *importer, const cJSON *item, const char *what, bool batch, Shape *out_shape) {
  *out_shape = (Shape){0};
  if (!import_is_array(importer, item, what)) return false;
  for (const cJSON *dim = item->child; dim; dim = dim->next) {
    if (out_shape->rank == SHAPE_MAX_RANK) {
      return import_error(importer, dim, "%s: more than %d dimensions", what, SHAPE_MAX_RANK);
    }
    int64_t *value = &out_shape->dims[out_shape->rank++];
    if (cJSON_IsString(dim) && strcmp(dim->valuestring, "N") == 0 && batch) {
      if (out_shape->rank > 1) return import_error(importer, dim, "%s: 'N' stands only in the first place", what);
      *value = DIM_BATCH;
    } else if (cJSON_IsString(dim) && batch) {
      return import_error(importer, dim, "%s: expected an integer or \"N\", found \"%s\"", what, dim->valuestring);
    } else if (!json_integer(&importer->json, dim, what, 1, INT32_MAX, importer->diag, value)) {
      return false;
    }
  }
  int64_t count;
  if (shape_elements(out_shape, 1, &count) && count <= INT64_MAX / 64) return true;
  return import_error(importer, item, "%s: the number of elements does not fit 64 bits", what);
}

const char *import_shape_text(Importer *importer, const Shape *shape) {
  Text text;
  text_init(&text, importer->arena);
  text_add(&text, "[");
  shape_print(&text, shape);
  text_add(&text, "]");
  return text.data;
}

size_t import_size(const cJSON *container) {
  size_t count = 0;
  for (const cJSON *child = container->child; child; child = child->next) count++;
  return count;
}
