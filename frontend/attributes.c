/* Attributes of layers: JSON values, or expressions of a block's parameters, to Attrs. */
#include <math.h>
#include <string.h>

#include "importer.h"

/* Limits of integer attributes; those not listed: 0 to INT32_MAX. Windows are limited so that no size computed
 * from them can overflow 64 bits. */
static const struct {
  int64_t minimum, maximum;
} limits[ATTR_ID_COUNT] = {
    [ATTR_ID_KERNEL] = {1, 65535},
    [ATTR_ID_STRIDE] = {1, 65535},
    [ATTR_ID_PADDING] = {0, 65535},
    [ATTR_ID_DILATION] = {1, 65535},
    [ATTR_ID_OUTPUT_PADDING] = {0, 65535},
    [ATTR_ID_GROUPS] = {1, INT32_MAX},
    [ATTR_ID_OUTPUT] = {1, 65535},
    [ATTR_ID_SIZE] = {1, 65535},
    [ATTR_ID_SCALE] = {1, 65535},
    [ATTR_ID_DIM] = {-6, 5},
    [ATTR_ID_DIMS] = {-6, 5},
    [ATTR_ID_START_DIM] = {-6, 5},
    [ATTR_ID_END_DIM] = {-6, 5},
    [ATTR_ID_SHAPE] = {1, INT32_MAX},
    [ATTR_ID_OUT_CHANNELS] = {1, INT32_MAX},
    [ATTR_ID_OUT_FEATURES] = {1, INT32_MAX},
};

/* Required wherever an op has them, */
static const AttrMask required = A(KERNEL) | A(OUT_CHANNELS) | A(OUT_FEATURES) | A(SHAPE) | A(MEAN) | A(STD);
/* and of single ops. */
static const struct {
  OpCode op;
  AttrMask attrs;
} required_of[] = {{OP_PAD, A(PADDING)}, {OP_PERMUTE, A(DIMS)}};

static bool read_bounded(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, int64_t *out_value) {
  int64_t minimum = limits[id].minimum, maximum = limits[id].maximum;
  if (minimum == 0 && maximum == 0) maximum = INT32_MAX;
  return import_integer(importer, item, scope, attr_info(id)->name, minimum, maximum, out_value);
}

static bool read_window(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, AttrInt2 *out) {
  const char *name = attr_info(id)->name;
  if (!cJSON_IsArray(item)) {
    if (!read_bounded(importer, item, scope, id, &out->values[0])) return false;
    out->values[1] = out->values[0];
    return true;
  }
  const size_t count = import_size(item);
  if (count != 2) {
    return import_error(importer, item, "%s: %s: expected an integer or [height, width], found a list of %zu",
                        scope->label, name, count);
  }
  return read_bounded(importer, item->child, scope, id, &out->values[0]) &&
         read_bounded(importer, item->child->next, scope, id, &out->values[1]);
}

static bool read_sides(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, AttrInt4 *out) {
  const char *name = attr_info(id)->name;
  if (cJSON_IsString(item) && (strcmp(item->valuestring, "same") == 0 || strcmp(item->valuestring, "valid") == 0)) {
    return import_error(importer, item, "%s: %s: '%s' is for conv2d only", scope->label, name, item->valuestring);
  }
  const size_t count = cJSON_IsArray(item) ? import_size(item) : 1;
  if (count != 1 && count != 2 && count != 4) {
    return import_error(importer, item,
                        "%s: %s: expected an integer, [height, width] or [top, left, bottom, right], found a list of "
                        "%zu",
                        scope->label, name, count);
  }
  if (cJSON_IsArray(item) && count == 1) {
    return import_error(importer, item,
                        "%s: %s: expected an integer, [height, width] or [top, left, bottom, right], "
                        "found a list of 1",
                        scope->label, name);
  }
  const cJSON *value = cJSON_IsArray(item) ? item->child : item;
  for (size_t i = 0; i < count; i++, value = value->next) {
    if (!read_bounded(importer, value, scope, id, &out->values[i])) return false;
  }
  for (size_t i = count; i < 4; i++) out->values[i] = out->values[i - count];
  return true;
}

static bool read_float(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, double *out) {
  char buffer[DOUBLE_TEXT_SIZE];
  const char *name = attr_info(id)->name;
  if (!cJSON_IsNumber(item)) {
    return import_error(importer, item, "%s: %s: expected a number, found %s", scope->label, name, json_kind(item));
  }
  *out = item->valuedouble;
  const bool positive = id == ATTR_ID_EPS, share = id == ATTR_ID_MOMENTUM, part = id == ATTR_ID_P;
  if (positive && *out < 0) {
    return import_error(importer, item, "%s: %s: expected a number of at least 0, found %s", scope->label, name,
                        double_text(*out, buffer));
  }
  if ((share || part) && !(*out >= 0 && (part ? *out < 1 : *out <= 1))) {
    return import_error(importer, item, "%s: %s: expected a number from 0 to 1%s, found %s", scope->label, name,
                        part ? " exclusive" : "", double_text(*out, buffer));
  }
  return true;
}

static bool read_flag(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, bool *out) {
  if (cJSON_IsBool(item)) {
    *out = cJSON_IsTrue(item);
    return true;
  }
  const char *name = attr_info(id)->name;
  if (!cJSON_IsString(item)) {
    return import_error(importer, item, "%s: %s: expected true, false or an expression, found %s", scope->label, name,
                        json_kind(item));
  }
  int64_t value;
  if (!import_integer(importer, item, scope, name, INT64_MIN, INT64_MAX, &value)) return false;
  *out = value != 0;
  return true;
}

static bool read_word(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, AttrWord *out) {
  const char *name = attr_info(id)->name;
  if (!cJSON_IsString(item)) {
    return import_error(importer, item, "%s: %s: expected a word, found %s", scope->label, name, json_kind(item));
  }
  if (attr_word_parse(id, item->valuestring, out)) return true;
  const char *const *names;
  const AttrWord *values;
  const size_t count = attr_words(id, &names, &values);
  Text words;
  text_init(&words, importer->arena);
  for (size_t i = 0; i < count; i++)
    text_format(&words, "%s%s", i == 0 ? "" : i + 1 == count ? " or " : ", ", names[i]);
  return import_error(importer, item, "%s: %s: expected %s, found '%s'", scope->label, name, words.data,
                      item->valuestring);
}

static bool check_length(Importer *importer, const cJSON *item, const Scope *scope, const char *name) {
  const size_t count = import_size(item);
  if (count >= 1 && count <= ATTR_LIST_MAX) return true;
  return import_error(importer, item, "%s: %s: expected a list of 1 to %d, found one of %zu", scope->label, name,
                      ATTR_LIST_MAX, count);
}

static bool read_integers(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, IntList *out) {
  const char *name = attr_info(id)->name;
  *out = (IntList){0};
  if (!cJSON_IsArray(item)) {
    out->count = 1;
    return read_bounded(importer, item, scope, id, &out->values[0]);
  }
  if (!check_length(importer, item, scope, name)) return false;
  for (const cJSON *value = item->child; value; value = value->next) {
    int64_t *slot = &out->values[out->count++];
    if (id == ATTR_ID_SHAPE && cJSON_IsString(value) && strcmp(value->valuestring, "N") == 0) {
      if (value != item->child) {
        return import_error(importer, value, "%s: %s: 'N' stands only in the first place", scope->label, name);
      }
      *slot = DIM_BATCH;
    } else if (!read_bounded(importer, value, scope, id, slot)) {
      return false;
    }
  }
  return true;
}

static bool read_floats(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, FloatList *out) {
  const char *name = attr_info(id)->name;
  *out = (FloatList){0};
  if (!cJSON_IsArray(item)) {
    return import_error(importer, item, "%s: %s: expected a list of numbers, found %s", scope->label, name,
                        json_kind(item));
  }
  if (!check_length(importer, item, scope, name)) return false;
  for (const cJSON *value = item->child; value; value = value->next) {
    if (!read_float(importer, value, scope, id, &out->values[out->count++])) return false;
  }
  return true;
}

static bool read_attribute(Importer *importer, const cJSON *item, const Scope *scope, AttrId id, Attrs *attrs) {
  const AttrInfo *info = attr_info(id);
  void *field = (char *)attrs + info->offset;
  switch (info->type) {
    case ATTR_INT:
      return read_bounded(importer, item, scope, id, field);
    case ATTR_INT2:
      return read_window(importer, item, scope, id, field);
    case ATTR_INT4:
      return read_sides(importer, item, scope, id, field);
    case ATTR_FLOAT:
      return read_float(importer, item, scope, id, field);
    case ATTR_BOOL:
      return read_flag(importer, item, scope, id, field);
    case ATTR_ENUM:
      return read_word(importer, item, scope, id, field);
    case ATTR_INTS:
      return read_integers(importer, item, scope, id, field);
    case ATTR_FLOATS:
      return read_floats(importer, item, scope, id, field);
  }
  return false;
}

/* "same": as PyTorch, the odd element of padding goes to the bottom and the right. */
static bool pad_same(Importer *importer, const cJSON *item, const Scope *scope, Attrs *attrs) {
  for (int i = 0; i < 2; i++) {
    if (attrs->stride.values[i] != 1) {
      return import_error(importer, item, "%s: padding 'same' needs stride 1, found [%lld,%lld]", scope->label,
                          (long long)attrs->stride.values[0], (long long)attrs->stride.values[1]);
    }
    const int64_t total = (attrs->kernel.values[i] - 1) * attrs->dilation.values[i];
    attrs->padding.values[i] = total / 2;
    attrs->padding.values[i + 2] = total - total / 2;
  }
  return true;
}

static bool check_required(Importer *importer, const LayerDef *def, AttrMask given) {
  const OpInfo *info = op_info(def->op);
  AttrMask missing = info->attrs & required;
  for (size_t i = 0; i < sizeof required_of / sizeof *required_of; i++) {
    if (required_of[i].op == def->op) missing |= required_of[i].attrs;
  }
  missing &= ~given;
  for (int id = 0; id < ATTR_ID_COUNT; id++) {
    if (!(missing >> id & 1)) continue;
    import_error(importer, def->item, "%s: %s needs '%s'", def->label, info->name, attr_info((AttrId)id)->name);
  }
  if (def->op == OP_UPSAMPLE && !(given & (A(SIZE) | A(SCALE)))) {
    return import_error(importer, def->item, "%s: upsample needs 'size' or 'scale'", def->label);
  }
  return missing == 0;
}

bool import_attributes(Importer *importer, const LayerDef *def, const Scope *scope, Attrs *out_attrs) {
  *out_attrs = attrs_default();
  const AttrMask all = op_info(def->op)->attrs;
  AttrMask given = 0;
  const cJSON *same = NULL;
  bool good = true;
  for (size_t i = 0; i < def->attr_count; i++) {
    const AttrId id = def->attrs[i].id;
    const cJSON *item = def->attrs[i].item;
    given |= UINT64_C(1) << id;
    if (id == ATTR_ID_PADDING && def->op == OP_CONV2D && cJSON_IsString(item)) {
      if (strcmp(item->valuestring, "valid") == 0) continue;
      if (strcmp(item->valuestring, "same") == 0) {
        same = item;
        continue;
      }
    }
    good &= read_attribute(importer, item, scope, id, out_attrs);
  }
  good &= check_required(importer, def, given);
  const bool pool = (all & A(KERNEL)) && (all & A(STRIDE)) && !(all & A(OUT_CHANNELS));
  if (pool && !(given & A(STRIDE))) out_attrs->stride = out_attrs->kernel;
  if (good && same && scope->known) good = pad_same(importer, same, scope, out_attrs);
  return good;
}
