/* What the statements of the text form are made of. */
#include "parser.h"

#include <string.h>

/* --- basics ---------------------------------------------------------------------------------------- */

bool parser_error(Parser *parser, Location location, const char *format, ...) {
  if (!parser->statement_failed) {
    Text text;
    text_init(&text, parser->arena);
    va_list arguments;
    va_start(arguments, format);
    text_format_v(&text, format, arguments);
    va_end(arguments);
    diag_error(parser->diag, location, "%s", text.data);
  }
  parser->statement_failed = parser->failed = true;
  return false;
}

const Token *parser_token(const Parser *parser) { return &parser->lexer.token; }

bool parser_expected(Parser *parser, const char *what) {
  const Token *token = parser_token(parser);
  if (token->kind == TOKEN_BAD) return parser_error(parser, token->location, "%s", token->text);
  return parser_error(parser, token->location, "expected %s, found %s", what, token_describe(&parser->lexer, token));
}

bool parser_at_sign(const Parser *parser, char sign) {
  return parser_token(parser)->kind == TOKEN_SIGN && parser_token(parser)->sign == sign;
}

bool parser_accept_sign(Parser *parser, char sign) {
  if (!parser_at_sign(parser, sign)) return false;
  lexer_next(&parser->lexer);
  return true;
}

bool parser_expect_sign(Parser *parser, char sign) {
  if (parser_accept_sign(parser, sign)) return true;
  const char what[] = {'\'', sign, '\'', '\0'};
  return parser_expected(parser, what);
}

bool parser_at_word(const Parser *parser, const char *word) {
  return parser_token(parser)->kind == TOKEN_WORD && strcmp(parser_token(parser)->text, word) == 0;
}

bool parser_accept_word(Parser *parser, const char *word) {
  if (parser_token(parser)->line_start || !parser_at_word(parser, word)) return false;
  lexer_next(&parser->lexer);
  return true;
}

bool parser_expect_word(Parser *parser, const char *what, const char **out_word) {
  if (parser_token(parser)->kind != TOKEN_WORD) return parser_expected(parser, what);
  *out_word = parser_token(parser)->text;
  lexer_next(&parser->lexer);
  return true;
}

bool parser_expect_name(Parser *parser, const char *what, const char **out_name) {
  if (parser_token(parser)->kind == TOKEN_STRING) {
    *out_name = parser_token(parser)->text;
    lexer_next(&parser->lexer);
    return true;
  }
  return parser_expect_word(parser, what, out_name);
}

bool parser_expect_string(Parser *parser, const char **out_string) {
  if (parser_token(parser)->kind != TOKEN_STRING) return parser_expected(parser, "a string");
  *out_string = parser_token(parser)->text;
  lexer_next(&parser->lexer);
  return true;
}

bool parser_expect_integer(Parser *parser, int64_t minimum, int64_t maximum, int64_t *out_value) {
  const Token token = *parser_token(parser);
  int64_t value = 0;
  if (token.kind != TOKEN_NUMBER) return parser_expected(parser, "an integer");
  if (!parse_int(token.text, &value) || value < minimum || value > maximum) {
    return parser_error(parser, token.location, "expected an integer from %lld to %lld, found '%.80s'",
                        (long long)minimum, (long long)maximum, token.text);
  }
  *out_value = value;
  lexer_next(&parser->lexer);
  return true;
}

bool parser_expect_int32(Parser *parser, int32_t *out_value) {
  int64_t value = 0;
  if (!parser_expect_integer(parser, INT32_MIN, INT32_MAX, &value)) return false;
  *out_value = (int32_t)value;
  return true;
}

/* Infinities and NaN without a sign are words. */
bool parser_expect_double(Parser *parser, double *out_value) {
  const Token *token = parser_token(parser);
  if ((token->kind != TOKEN_NUMBER && token->kind != TOKEN_WORD) || !parse_double(token->text, out_value)) {
    return parser_expected(parser, "a number");
  }
  lexer_next(&parser->lexer);
  return true;
}

bool parser_expect_boolean(Parser *parser, bool *out_value) {
  if (!parser_at_word(parser, "true") && !parser_at_word(parser, "false"))
    return parser_expected(parser, "true or false");
  *out_value = parser_at_word(parser, "true");
  lexer_next(&parser->lexer);
  return true;
}

void *parser_grow(Parser *parser, void *items, size_t count, size_t size) {
  if (count & (count - 1)) return items;
  char *larger = arena_alloc(parser->arena, count ? count * 2 : 1, size);
  if (count) memcpy(larger, items, count * size);
  return larger;
}

bool parser_next_item(Parser *parser, bool *first, char close) {
  if (parser->statement_failed || (*first && parser_accept_sign(parser, close))) return false;
  if (!*first) {
    if (parser_accept_sign(parser, close)) return false;
    if (!parser_at_sign(parser, ',')) {
      const char what[] = {'\'', ',', '\'', ' ', 'o', 'r', ' ', '\'', close, '\'', '\0'};
      return parser_expected(parser, what);
    }
    lexer_next(&parser->lexer);
  }
  *first = false;
  return true;
}

bool parser_expect_integers(Parser *parser, int32_t limit, bool batch, int64_t *out_values, int32_t *out_count) {
  if (!parser_expect_sign(parser, '[')) return false;
  int32_t count = 0;
  for (bool first = true; parser_next_item(parser, &first, ']');) {
    if (count == limit)
      return parser_error(parser, parser_token(parser)->location, "expected at most %d numbers", limit);
    if (batch && parser_at_word(parser, "N")) {
      out_values[count++] = DIM_BATCH;
      lexer_next(&parser->lexer);
    } else if (!parser_expect_integer(parser, INT64_MIN, INT64_MAX, &out_values[count++])) {
      return false;
    }
  }
  *out_count = count;
  return !parser->statement_failed;
}

bool parser_accept_list(Parser *parser, char open) {
  return !parser_token(parser)->line_start && parser_accept_sign(parser, open);
}

bool parser_expect_exactly(Parser *parser, int32_t wanted, int64_t *out_values) {
  const Location location = parser_token(parser)->location;
  int32_t count = 0;
  if (!parser_expect_integers(parser, wanted, false, out_values, &count)) return false;
  return count == wanted || parser_error(parser, location, "expected %d numbers, found %d", wanted, count);
}

bool parser_expect_floats(Parser *parser, FloatList *out_list) {
  if (!parser_expect_sign(parser, '[')) return false;
  FloatList list = {0};
  for (bool first = true; parser_next_item(parser, &first, ']');) {
    if (list.count == ATTR_LIST_MAX) {
      return parser_error(parser, parser_token(parser)->location, "expected at most %d numbers", ATTR_LIST_MAX);
    }
    if (!parser_expect_double(parser, &list.values[list.count++])) return false;
  }
  *out_list = list;
  return !parser->statement_failed;
}

bool parser_expect_strings(Parser *parser, const char ***out_strings, size_t *out_count) {
  if (!parser_expect_sign(parser, '[')) return false;
  const char **strings = parser_grow(parser, NULL, 0, sizeof *strings);
  size_t count = 0;
  for (bool first = true; parser_next_item(parser, &first, ']');) {
    strings = parser_grow(parser, strings, count, sizeof *strings);
    if (!parser_expect_string(parser, &strings[count++])) return false;
  }
  *out_strings = strings;
  *out_count = count;
  return !parser->statement_failed;
}

bool parser_expect_key(Parser *parser, const char **out_key, Location *out_location) {
  *out_location = parser_token(parser)->location;
  return parser_expect_word(parser, "a name", out_key) && parser_expect_sign(parser, '=');
}

bool parser_unknown_key(Parser *parser, Location location, const char *key, const char *const *known, size_t count) {
  const char *near = nearest_word(key, known, count);
  return parser_error(parser, location, "unknown name '%.80s'%s%s%s", key, near ? "; did you mean '" : "",
                      near ? near : "", near ? "'?" : "");
}

/* --- attributes ------------------------------------------------------------------------------------ */

static bool unknown_attribute(Parser *parser, Location location, const char *key, OpCode op) {
  const char *known[ATTR_ID_COUNT];
  size_t count = 0;
  for (AttrId id = 0; id < ATTR_ID_COUNT; id++) {
    if ((op_info(op)->attrs >> id & 1) && !attr_info(id)->import_only) known[count++] = attr_info(id)->name;
  }
  const char *near = nearest_word(key, known, count);
  return parser_error(parser, location, "%s has no attribute '%.80s'%s%s%s", op_info(op)->name, key,
                      near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static bool expect_attribute_word(Parser *parser, AttrId id, AttrWord *out_word) {
  const Location location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_word(parser, "a word", &word)) return false;
  if (attr_word_parse(id, word, out_word)) return true;
  const char *const *names = NULL;
  const size_t count = attr_words(id, &names, NULL);
  Text list;
  text_init(&list, parser->arena);
  for (size_t i = 0; i < count; i++) text_format(&list, "%s%s", i ? ", " : "", names[i]);
  return parser_error(parser, location, "%s expects one of %s, found '%.80s'", attr_info(id)->name, list.data, word);
}

static bool expect_attribute(Parser *parser, AttrId id, Attrs *attrs) {
  void *field = (char *)attrs + attr_info(id)->offset;
  switch (attr_info(id)->type) {
    case ATTR_INT:
      return parser_expect_integer(parser, INT64_MIN, INT64_MAX, field);
    case ATTR_INT2:
      return parser_expect_exactly(parser, 2, ((AttrInt2 *)field)->values);
    case ATTR_INT4:
      return parser_expect_exactly(parser, 4, ((AttrInt4 *)field)->values);
    case ATTR_FLOAT:
      return parser_expect_double(parser, field);
    case ATTR_BOOL:
      return parser_expect_boolean(parser, field);
    case ATTR_ENUM:
      return expect_attribute_word(parser, id, field);
    case ATTR_FLOATS:
      return parser_expect_floats(parser, field);
    case ATTR_INTS: {
      IntList *list = field;
      return parser_expect_integers(parser, ATTR_LIST_MAX, id == ATTR_ID_SHAPE, list->values, &list->count);
    }
  }
  return false;
}

bool parser_attributes(Parser *parser, OpCode op, Attrs *attrs) {
  if (parser_token(parser)->line_start || !parser_accept_sign(parser, '{')) return true;
  AttrMask seen = 0;
  for (bool first = true; parser_next_item(parser, &first, '}');) {
    const char *key = NULL;
    Location location;
    if (!parser_expect_key(parser, &key, &location)) return false;
    const AttrId id = attr_find(key);
    if (id == ATTR_ID_COUNT || !(op_info(op)->attrs >> id & 1) || attr_info(id)->import_only) {
      return unknown_attribute(parser, location, key, op);
    }
    if (seen >> id & 1) return parser_error(parser, location, "attribute '%s' stands twice", key);
    seen |= UINT64_C(1) << id;
    if (!expect_attribute(parser, id, attrs)) return false;
  }
  return !parser->statement_failed;
}
