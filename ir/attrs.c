#include "attrs.h"

#include <assert.h>
#include <string.h>

/* --- the list as data ------------------------------------------------------------------------------ */

/* Turn the parenthesised defaults of attrs.def into initialisers of their type. */
#define INITIAL_INT(...) __VA_ARGS__
#define INITIAL_INT2(...) \
  { __VA_ARGS__ }
#define INITIAL_INT4(...) \
  { __VA_ARGS__ }
#define INITIAL_FLOAT(...)  __VA_ARGS__
#define INITIAL_BOOL(...)   __VA_ARGS__
#define INITIAL_ENUM(...)   __VA_ARGS__
#define INITIAL_INTS(...)   __VA_ARGS__
#define INITIAL_FLOATS(...) __VA_ARGS__

static const Attrs defaults = {
#define ATTR(NAME, type, field, initial) .field = INITIAL_##type initial,
#define ATTR_IMPORT                      ATTR
#include "attrs.def"
#undef ATTR
#undef ATTR_IMPORT
};

static const AttrInfo infos[ATTR_ID_COUNT] = {
#define ATTR(NAME, type, field, initial)        {#field, ATTR_##type, offsetof(Attrs, field), false},
#define ATTR_IMPORT(NAME, type, field, initial) {#field, ATTR_##type, offsetof(Attrs, field), true},
#include "attrs.def"
#undef ATTR
#undef ATTR_IMPORT
};

const AttrInfo *attr_info(AttrId id) {
  assert((unsigned)id < ATTR_ID_COUNT);
  return &infos[id];
}

AttrId attr_find(const char *name) {
  for (AttrId id = 0; id < ATTR_ID_COUNT; id++) {
    if (strcmp(infos[id].name, name) == 0) return id;
  }
  return ATTR_ID_COUNT;
}

Attrs attrs_default(void) { return defaults; }

/* --- words ----------------------------------------------------------------------------------------- */

/* The canonical word of a value stands before its aliases. */
typedef struct WordList {
  const char *const *names;
  const AttrWord *values;
  size_t count;
} WordList;

/* border and reflection are what grid sampling calls replicate and reflect. */
static const char *const padding_names[] = {"zeros", "reflect", "replicate", "border", "reflection", NULL};
static const AttrWord padding_values[] = {PADDING_ZEROS, PADDING_REFLECT, PADDING_REPLICATE, PADDING_REPLICATE,
                                          PADDING_REFLECT};
static const char *const mode_names[] = {"nearest", "bilinear", NULL};
static const AttrWord mode_values[] = {MODE_NEAREST, MODE_BILINEAR};
static const char *const approximate_names[] = {"none", "tanh", NULL};
static const AttrWord approximate_values[] = {APPROXIMATE_NONE, APPROXIMATE_TANH};
static const char *const reduction_names[] = {"mean", "sum", "none", NULL};
static const AttrWord reduction_values[] = {REDUCTION_MEAN, REDUCTION_SUM, REDUCTION_NONE};

#define WORDS(list) \
  { list##_names, list##_values, sizeof list##_values / sizeof list##_values[0] }

static const WordList word_lists[ATTR_ID_COUNT] = {
    [ATTR_ID_PADDING_MODE] = WORDS(padding),
    [ATTR_ID_MODE] = WORDS(mode),
    [ATTR_ID_APPROXIMATE] = WORDS(approximate),
    [ATTR_ID_REDUCTION] = WORDS(reduction),
};

size_t attr_words(AttrId id, const char *const **out_names, const AttrWord **out_values) {
  const WordList *list = &word_lists[id];
  if (out_names) *out_names = list->names;
  if (out_values) *out_values = list->values;
  return list->count;
}

bool attr_word_parse(AttrId id, const char *name, AttrWord *out_word) {
  const WordList *list = &word_lists[id];
  for (size_t i = 0; i < list->count; i++) {
    if (strcmp(list->names[i], name) == 0) {
      *out_word = list->values[i];
      return true;
    }
  }
  return false;
}

const char *attr_word_name(AttrId id, AttrWord word) {
  const WordList *list = &word_lists[id];
  for (size_t i = 0; i < list->count; i++) {
    if (list->values[i] == word) return list->names[i];
  }
  return "?";
}

/* --- comparing ------------------------------------------------------------------------------------- */

/* An attribute as 64-bit words, one form for equality and hash. Floats by their bits: 0 and -0 differ (1/x tells
 * them apart), a NaN equals itself. */
enum { FIELD_WORDS = ATTR_LIST_MAX + 1 };

static uint64_t float_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static int32_t list_count(int32_t count) {
  assert(count >= 0 && count <= ATTR_LIST_MAX);
  return count;
}

static size_t field_words(const Attrs *attrs, AttrId id, uint64_t words[FIELD_WORDS]) {
  const char *field = (const char *)attrs + infos[id].offset;
  switch (infos[id].type) {
    case ATTR_INT:
      words[0] = (uint64_t) * (const int64_t *)(const void *)field;
      return 1;
    case ATTR_FLOAT:
      words[0] = float_bits(*(const double *)(const void *)field);
      return 1;
    case ATTR_BOOL:
      words[0] = *(const bool *)field;
      return 1;
    case ATTR_ENUM:
      words[0] = *(const AttrWord *)(const void *)field;
      return 1;
    case ATTR_INT2:
      memcpy(words, field, sizeof(AttrInt2));
      return 2;
    case ATTR_INT4:
      memcpy(words, field, sizeof(AttrInt4));
      return 4;
    case ATTR_INTS: {
      const IntList *list = (const IntList *)(const void *)field;
      const int32_t count = list_count(list->count);
      words[0] = (uint64_t)count;
      for (int32_t i = 0; i < count; i++) words[i + 1] = (uint64_t)list->values[i];
      return (size_t)count + 1;
    }
    case ATTR_FLOATS: {
      const FloatList *list = (const FloatList *)(const void *)field;
      const int32_t count = list_count(list->count);
      words[0] = (uint64_t)count;
      for (int32_t i = 0; i < count; i++) words[i + 1] = float_bits(list->values[i]);
      return (size_t)count + 1;
    }
  }
  return 0;
}

static bool field_equal(const Attrs *a, const Attrs *b, AttrId id) {
  uint64_t a_words[FIELD_WORDS], b_words[FIELD_WORDS];
  const size_t a_count = field_words(a, id, a_words), b_count = field_words(b, id, b_words);
  return a_count == b_count && memcmp(a_words, b_words, a_count * sizeof a_words[0]) == 0;
}

/* Attributes of the description have done their work when the parameters' shapes are known. */
static bool field_counts(AttrId id, AttrMask mask) { return (mask >> id & 1) && !infos[id].import_only; }

bool attrs_equal(const Attrs *a, const Attrs *b, AttrMask mask) {
  for (AttrId id = 0; id < ATTR_ID_COUNT; id++) {
    if (field_counts(id, mask) && !field_equal(a, b, id)) return false;
  }
  return true;
}

uint64_t attrs_hash(const Attrs *attrs, AttrMask mask) {
  /* FNV-1a over whole words, with a final mix (splitmix64) that brings high bits down. */
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (AttrId id = 0; id < ATTR_ID_COUNT; id++) {
    if (!field_counts(id, mask)) continue;
    uint64_t words[FIELD_WORDS];
    const size_t count = field_words(attrs, id, words);
    hash = (hash ^ (uint64_t)id) * UINT64_C(0x100000001b3);
    for (size_t i = 0; i < count; i++) hash = (hash ^ words[i]) * UINT64_C(0x100000001b3);
  }
  hash = (hash ^ hash >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  hash = (hash ^ hash >> 27) * UINT64_C(0x94d049bb133111eb);
  return hash ^ hash >> 31;
}

/* --- text ------------------------------------------------------------------------------------------ */

static void print_ints(Text *text, const int64_t *values, int32_t count, bool batch) {
  text_add(text, "[");
  for (int32_t i = 0; i < count; i++) {
    if (i > 0) text_add(text, ",");
    if (batch && values[i] == -1) {
      text_add(text, "N");
    } else {
      text_format(text, "%lld", (long long)values[i]);
    }
  }
  text_add(text, "]");
}

static void print_field(Text *text, const Attrs *attrs, AttrId id) {
  const void *field = (const char *)attrs + infos[id].offset;
  switch (infos[id].type) {
    case ATTR_INT:
      text_format(text, "%lld", (long long)*(const int64_t *)field);
      break;
    case ATTR_INT2:
      print_ints(text, ((const AttrInt2 *)field)->values, 2, false);
      break;
    case ATTR_INT4:
      print_ints(text, ((const AttrInt4 *)field)->values, 4, false);
      break;
    case ATTR_FLOAT:
      text_add_double(text, *(const double *)field);
      break;
    case ATTR_BOOL:
      text_add(text, *(const bool *)field ? "true" : "false");
      break;
    case ATTR_ENUM:
      text_add(text, attr_word_name(id, *(const AttrWord *)field));
      break;
    case ATTR_INTS: {
      const IntList *list = field;
      print_ints(text, list->values, list_count(list->count), id == ATTR_ID_SHAPE);
      break;
    }
    case ATTR_FLOATS: {
      const FloatList *list = field;
      const int32_t count = list_count(list->count);
      text_add(text, "[");
      for (int32_t i = 0; i < count; i++) {
        if (i > 0) text_add(text, ",");
        text_add_double(text, list->values[i]);
      }
      text_add(text, "]");
      break;
    }
  }
}

void attrs_print(Text *text, const Attrs *attrs, AttrMask mask) {
  const char *separator = "";
  for (AttrId id = 0; id < ATTR_ID_COUNT; id++) {
    if (!field_counts(id, mask) || field_equal(attrs, &defaults, id)) continue;
    text_format(text, "%s%s=", separator, infos[id].name);
    print_field(text, attrs, id);
    separator = ", ";
  }
}
