#include "expression.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/text.h"

enum { NAME_LIMIT = 64, NAMES_SHOWN = 64 };

typedef struct Reader {
  const char *text, *at;
  const ExpressionVariable *variables;
  size_t count;
  int depth;
  int skipped; /* > 0: only check syntax and names */
  ExpressionError *error;
} Reader;

typedef enum Operator {
  OPERATOR_NONE,
  OPERATOR_OR,
  OPERATOR_AND,
  OPERATOR_EQUAL,
  OPERATOR_NOT_EQUAL,
  OPERATOR_LESS_EQUAL,
  OPERATOR_GREATER_EQUAL,
  OPERATOR_LESS,
  OPERATOR_GREATER,
  OPERATOR_ADD,
  OPERATOR_SUBTRACT,
  OPERATOR_MULTIPLY,
  OPERATOR_DIVIDE,
  OPERATOR_REMAINDER
} Operator;

/* Longer signs stand before their beginnings. */
static const struct {
  const char *sign;
  Operator kind;
  int precedence;
} operators[] = {{"||", OPERATOR_OR, 1},        {"&&", OPERATOR_AND, 2},        {"==", OPERATOR_EQUAL, 3},
                 {"!=", OPERATOR_NOT_EQUAL, 3}, {"<=", OPERATOR_LESS_EQUAL, 4}, {">=", OPERATOR_GREATER_EQUAL, 4},
                 {"<", OPERATOR_LESS, 4},       {">", OPERATOR_GREATER, 4},     {"+", OPERATOR_ADD, 5},
                 {"-", OPERATOR_SUBTRACT, 5},   {"*", OPERATOR_MULTIPLY, 6},    {"/", OPERATOR_DIVIDE, 6},
                 {"%", OPERATOR_REMAINDER, 6}};

static bool fail(Reader *reader, const char *at, const char *format, ...) __attribute__((format(printf, 3, 4)));

static bool fail(Reader *reader, const char *at, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  format_v(reader->error->message, sizeof reader->error->message, format, arguments);
  va_end(arguments);
  reader->error->offset = (size_t)(at - reader->text);
  return false;
}

static void skip_space(Reader *reader) {
  while (*reader->at == ' ') reader->at++;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

/* What stands at `at`, for messages: one character, which may have several bytes. */
static bool fail_expected(Reader *reader, const char *what) {
  if (*reader->at == '\0') return fail(reader, reader->at, "expected %s, found the end of the expression", what);
  if (is_letter(*reader->at)) {
    int word = 1;
    while (word < NAME_LIMIT && (is_letter(reader->at[word]) || is_digit(reader->at[word]))) word++;
    return fail(reader, reader->at, "expected %s, found '%.*s'", what, word, reader->at);
  }
  int length = 1;
  while (((unsigned char)reader->at[length] & 0xC0) == 0x80) length++;
  return fail(reader, reader->at, "expected %s, found '%.*s'", what, length, reader->at);
}

static bool read_number(Reader *reader, int64_t *out_value) {
  const char *start = reader->at;
  int64_t value = 0;
  for (; is_digit(*reader->at); reader->at++) {
    if (!checked_mul(value, 10, &value) || !checked_add(value, *reader->at - '0', &value)) {
      return fail(reader, start, "the number is too large");
    }
  }
  *out_value = value;
  return true;
}

static bool read_variable(Reader *reader, int64_t *out_value) {
  const char *start = reader->at++;
  size_t length = 0;
  while (is_letter(reader->at[length]) || is_digit(reader->at[length])) length++;
  if (length == 0) return fail_expected(reader, "a parameter's name after '$'");
  const char *names[NAMES_SHOWN];
  size_t shown = 0;
  for (size_t i = 0; i < reader->count; i++) {
    const char *name = reader->variables[i].name;
    if (strncmp(name, reader->at, length) == 0 && name[length] == '\0') {
      reader->at += length;
      *out_value = reader->variables[i].value;
      return true;
    }
    if (shown < NAMES_SHOWN) names[shown++] = name;
  }
  char name[NAME_LIMIT + 1];
  if (length > NAME_LIMIT) length = NAME_LIMIT;
  memcpy(name, reader->at, length);
  name[length] = '\0';
  const char *nearest = nearest_word(name, names, shown);
  if (nearest) return fail(reader, start, "no parameter is named '%s'; did you mean '$%s'?", name, nearest);
  if (reader->count == 0) return fail(reader, start, "'$%s': there are no parameters here", name);
  return fail(reader, start, "no parameter is named '%s'", name);
}

static bool read_binary(Reader *reader, int precedence, int64_t *out_value);

/* A number, a name, a parenthesis, or one of these after unary operators. */
static bool read_operand(Reader *reader, int64_t *out_value) {
  skip_space(reader);
  const char *start = reader->at;
  const char c = *start;
  if (is_digit(c)) return read_number(reader, out_value);
  if (c == '$') return read_variable(reader, out_value);
  if (c != '(' && c != '-' && c != '+' && c != '!') return fail_expected(reader, "a number, '$name' or '('");
  if (++reader->depth > EXPRESSION_MAX_DEPTH) {
    return fail(reader, start, "nested deeper than %d levels", EXPRESSION_MAX_DEPTH);
  }
  reader->at++;
  if (c == '(') {
    if (!read_binary(reader, 1, out_value)) return false;
    skip_space(reader);
    if (*reader->at != ')') return fail_expected(reader, "an operator or ')'");
    reader->at++;
  } else {
    if (!read_operand(reader, out_value)) return false;
    if (c == '!') *out_value = *out_value == 0;
    if (c == '-' && !checked_sub(0, *out_value, out_value)) {
      if (reader->skipped == 0) return fail(reader, start, "the result does not fit 64 bits");
    }
  }
  reader->depth--;
  return true;
}

static bool apply(Reader *reader, const char *at, Operator kind, int64_t a, int64_t b, int64_t *out_value) {
  bool fits = true;
  switch (kind) {
    case OPERATOR_NONE:
      break;
    case OPERATOR_OR:
      *out_value = a || b;
      break;
    case OPERATOR_AND:
      *out_value = a && b;
      break;
    case OPERATOR_EQUAL:
      *out_value = a == b;
      break;
    case OPERATOR_NOT_EQUAL:
      *out_value = a != b;
      break;
    case OPERATOR_LESS_EQUAL:
      *out_value = a <= b;
      break;
    case OPERATOR_GREATER_EQUAL:
      *out_value = a >= b;
      break;
    case OPERATOR_LESS:
      *out_value = a < b;
      break;
    case OPERATOR_GREATER:
      *out_value = a > b;
      break;
    case OPERATOR_ADD:
      fits = checked_add(a, b, out_value);
      break;
    case OPERATOR_SUBTRACT:
      fits = checked_sub(a, b, out_value);
      break;
    case OPERATOR_MULTIPLY:
      fits = checked_mul(a, b, out_value);
      break;
    case OPERATOR_DIVIDE:
    case OPERATOR_REMAINDER:
      if (b == 0) return fail(reader, at, "division by zero");
      fits = a != INT64_MIN || b != -1;
      if (fits) *out_value = kind == OPERATOR_DIVIDE ? a / b : a % b;
      break;
  }
  return fits || fail(reader, at, "the result does not fit 64 bits");
}

static size_t peek_operator(const Reader *reader) {
  const size_t count = sizeof operators / sizeof *operators;
  for (size_t i = 0; i < count; i++) {
    if (strncmp(reader->at, operators[i].sign, strlen(operators[i].sign)) == 0) return i;
  }
  return count;
}

/* Operands joined by operators of at least `precedence`: precedence climbing, as deep as there are levels. */
static bool read_binary(Reader *reader, int precedence, int64_t *out_value) {
  if (!read_operand(reader, out_value)) return false;
  for (;;) {
    skip_space(reader);
    const char *at = reader->at;
    const size_t found = peek_operator(reader);
    if (found == sizeof operators / sizeof *operators || operators[found].precedence < precedence) return true;
    const Operator kind = operators[found].kind;
    reader->at += strlen(operators[found].sign);
    const bool decided = (kind == OPERATOR_OR && *out_value != 0) || (kind == OPERATOR_AND && *out_value == 0);
    int64_t right = 0;
    reader->skipped += decided;
    if (!read_binary(reader, operators[found].precedence + 1, &right)) return false;
    reader->skipped -= decided;
    if (reader->skipped) continue;
    if (!apply(reader, at, kind, *out_value, decided ? 0 : right, out_value)) return false;
  }
}

bool expression_evaluate(const char *text, const ExpressionVariable *variables, size_t count, int64_t *out_value,
                         ExpressionError *out_error) {
  Reader reader = {.text = text, .at = text, .variables = variables, .count = count, .error = out_error};
  reader.skipped = out_value == NULL;
  int64_t value = 0;
  if (!read_binary(&reader, 1, &value)) return false;
  skip_space(&reader);
  if (*reader.at != '\0') return fail_expected(&reader, "an operator");
  if (out_value) *out_value = value;
  return true;
}
