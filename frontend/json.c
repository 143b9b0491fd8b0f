#include "json.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/sort.h"
#include "base/text.h"

/* cJSON copies a number into a buffer of 64 bytes and misreads longer ones. */
enum { NUMBER_LIMIT = 63 };

typedef struct Scanner {
  const char *file, *text, *at, *end, *line_start;
  uint32_t line;
  Diag *diag;
  Location *values, *keys;
  size_t count;          /* values so far */
  size_t largest_object; /* members */
} Scanner;

static Location location_of(const Scanner *scanner, const char *at) {
  return (Location){scanner->file, scanner->line, (uint32_t)(at - scanner->line_start) + 1};
}

/* What stands at `at`, for messages. */
static const char *found_text(const Scanner *scanner, const char *at, char *buffer) {
  if (at >= scanner->end) return "the end of the text";
  const unsigned char byte = (unsigned char)*at;
  static const char digits[] = "0123456789abcdef";
  if (byte < 0x20 || byte == 0x7F) {
    const char shown[] = {'b', 'y', 't', 'e', ' ', '0', 'x', digits[byte >> 4], digits[byte & 15], 0};
    return memcpy(buffer, shown, sizeof shown);
  }
  size_t length = 1; /* the text is valid UTF-8 */
  while (at + length < scanner->end && ((unsigned char)at[length] & 0xC0) == 0x80) length++;
  buffer[0] = buffer[length + 1] = '\'';
  memcpy(buffer + 1, at, length);
  buffer[length + 2] = '\0';
  return buffer;
}

static bool expected(const Scanner *scanner, const char *what) {
  char buffer[16];
  diag_error(scanner->diag, location_of(scanner, scanner->at), "expected %s, found %s", what,
             found_text(scanner, scanner->at, buffer));
  return false;
}

static char peek(const Scanner *scanner) { return scanner->at < scanner->end ? *scanner->at : '\0'; }

static void skip_space(Scanner *scanner) {
  for (; scanner->at < scanner->end; scanner->at++) {
    const char c = *scanner->at;
    if (c == '\n') {
      scanner->line++;
      scanner->line_start = scanner->at + 1;
    } else if (c != ' ' && c != '\t' && c != '\r') {
      return;
    }
  }
}

/* --- scalars --------------------------------------------------------------------------------------- */

/* Four hexadecimal digits after \u; -1 when they are not. */
static int32_t scan_code(const Scanner *scanner, const char *at) {
  int32_t code = 0;
  for (int i = 0; i < 4; i++, at++) {
    const char c = at < scanner->end ? *at : '\0';
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return -1;
    code = code * 16 + digit;
  }
  return code;
}

static bool escape_error(const Scanner *scanner, const char *message) {
  diag_error(scanner->diag, location_of(scanner, scanner->at), "%s", message);
  return false;
}

/* An escape at its backslash. */
static bool scan_escape(Scanner *scanner) {
  const char kind = scanner->at + 1 < scanner->end ? scanner->at[1] : '\0';
  if (kind != '\0' && strchr("\"\\/bfnrt", kind)) {
    scanner->at += 2;
    return true;
  }
  if (kind != 'u') return escape_error(scanner, "invalid escape in a string");
  const int32_t code = scan_code(scanner, scanner->at + 2);
  if (code < 0) return escape_error(scanner, "\\u needs four hexadecimal digits");
  if (code == 0) return escape_error(scanner, "\\u0000 is not allowed in a string");
  if (code >= 0xDC00 && code <= 0xDFFF) return escape_error(scanner, "a lone low surrogate in a string");
  if (code >= 0xD800 && code <= 0xDBFF) {
    const char *pair = scanner->at + 6;
    const int32_t low =
        pair + 1 < scanner->end && pair[0] == '\\' && pair[1] == 'u' ? scan_code(scanner, pair + 2) : -1;
    if (low < 0xDC00 || low > 0xDFFF) return escape_error(scanner, "a lone high surrogate in a string");
    scanner->at += 6;
  }
  scanner->at += 6;
  return true;
}

static bool scan_string(Scanner *scanner) {
  const char *start = scanner->at++;
  while (scanner->at < scanner->end) {
    const unsigned char byte = (unsigned char)*scanner->at;
    if (byte == '"') {
      scanner->at++;
      return true;
    }
    if (byte < 0x20) return escape_error(scanner, "a control byte in a string must be escaped");
    if (byte != '\\') {
      scanner->at++;
    } else if (!scan_escape(scanner)) {
      return false;
    }
  }
  diag_error(scanner->diag, location_of(scanner, start), "this string does not end");
  return false;
}

static void skip_digits(Scanner *scanner) {
  while (peek(scanner) >= '0' && peek(scanner) <= '9') scanner->at++;
}

static bool scan_number(Scanner *scanner) {
  const char *start = scanner->at;
  if (peek(scanner) == '-') scanner->at++;
  const char *digits = scanner->at;
  skip_digits(scanner);
  if (scanner->at == digits) return expected(scanner, "a digit");
  if (*digits == '0' && scanner->at > digits + 1) {
    diag_error(scanner->diag, location_of(scanner, start), "a number must not start with 0");
    return false;
  }
  if (peek(scanner) == '.') {
    scanner->at++;
    digits = scanner->at;
    skip_digits(scanner);
    if (scanner->at == digits) return expected(scanner, "a digit after the decimal point");
  }
  if (peek(scanner) == 'e' || peek(scanner) == 'E') {
    scanner->at++;
    if (peek(scanner) == '-' || peek(scanner) == '+') scanner->at++;
    digits = scanner->at;
    skip_digits(scanner);
    if (scanner->at == digits) return expected(scanner, "a digit of the exponent");
  }
  const size_t length = (size_t)(scanner->at - start);
  if (length > NUMBER_LIMIT) {
    diag_error(scanner->diag, location_of(scanner, start), "a number of %zu characters: at most %d are accepted",
               length, NUMBER_LIMIT);
    return false;
  }
  char buffer[NUMBER_LIMIT + 1];
  memcpy(buffer, start, length);
  buffer[length] = '\0';
  double value;
  if (!parse_double(buffer, &value)) {
    diag_error(scanner->diag, location_of(scanner, start), "the number %s is too large", buffer);
    return false;
  }
  return true;
}

static bool scan_word(Scanner *scanner) {
  static const char *const words[] = {"true", "false", "null"};
  for (size_t i = 0; i < 3; i++) {
    const size_t length = strlen(words[i]);
    if ((size_t)(scanner->end - scanner->at) >= length && memcmp(scanner->at, words[i], length) == 0) {
      scanner->at += length;
      return true;
    }
  }
  return expected(scanner, "a value");
}

static bool scan_scalar(Scanner *scanner) {
  const char c = peek(scanner);
  if (c == '"') return scan_string(scanner);
  if (c == '-' || (c >= '0' && c <= '9')) return scan_number(scanner);
  return scan_word(scanner);
}

/* --- structure ------------------------------------------------------------------------------------- */

/* A key and its colon; leaves the key's place for the value that follows. */
static bool scan_key(Scanner *scanner, const char *what) {
  skip_space(scanner);
  if (peek(scanner) != '"') return expected(scanner, what);
  scanner->keys[scanner->count] = location_of(scanner, scanner->at);
  if (!scan_string(scanner)) return false;
  skip_space(scanner);
  if (peek(scanner) != ':') return expected(scanner, "':' after the key");
  scanner->at++;
  return true;
}

/* The whole text: one value and white space. Containers are kept on an explicit stack. */
static bool scan_text(Scanner *scanner) {
  struct {
    char close;
    size_t members;
  } stack[JSON_MAX_DEPTH];
  int depth = 0;
  for (;;) {
    skip_space(scanner);
    const Location here = location_of(scanner, scanner->at);
    scanner->values[scanner->count] = here;
    if (depth == 0 || stack[depth - 1].close == ']') scanner->keys[scanner->count] = here;
    const char open = peek(scanner);
    if (open == '{' || open == '[') {
      if (depth == JSON_MAX_DEPTH) {
        diag_error(scanner->diag, here, "nested deeper than %d levels", JSON_MAX_DEPTH);
        return false;
      }
      scanner->at++;
      scanner->count++;
      stack[depth].close = open == '{' ? '}' : ']';
      stack[depth++].members = 0;
      skip_space(scanner);
      if (peek(scanner) != stack[depth - 1].close) {
        if (open == '{' && !scan_key(scanner, "a key in quotes or '}'")) return false;
        stack[depth - 1].members = 1;
        continue;
      }
    } else {
      if (!scan_scalar(scanner)) return false;
      scanner->count++;
    }
    bool another = false;
    while (depth > 0 && !another) {
      skip_space(scanner);
      const char close = stack[depth - 1].close;
      if (peek(scanner) == ',' && stack[depth - 1].members > 0) {
        scanner->at++;
        if (close == '}' && !scan_key(scanner, "a key in quotes")) return false;
        stack[depth - 1].members++;
        another = true;
      } else if (peek(scanner) == close) {
        scanner->at++;
        depth--;
        if (close == '}' && stack[depth].members > scanner->largest_object) {
          scanner->largest_object = stack[depth].members;
        }
      } else {
        return expected(scanner, close == '}' ? "',' or '}'" : "',' or ']'");
      }
    }
    if (depth == 0 && !another) break;
  }
  skip_space(scanner);
  return scanner->at == scanner->end || expected(scanner, "nothing after the value");
}

static bool check_encoding(Scanner *scanner, size_t size) {
  const size_t valid = utf8_prefix(scanner->text, size);
  for (const char *at = scanner->text; at < scanner->text + valid; at++) {
    if (*at == '\n') {
      scanner->line++;
      scanner->line_start = at + 1;
    }
  }
  if (valid < size) {
    diag_error(scanner->diag, location_of(scanner, scanner->text + valid), "invalid UTF-8: byte 0x%02x",
               (unsigned char)scanner->text[valid]);
    return false;
  }
  scanner->line = 1;
  scanner->line_start = scanner->text;
  if (size >= 3 && memcmp(scanner->text, "\xEF\xBB\xBF", 3) == 0) {
    diag_error(scanner->diag, location_of(scanner, scanner->text), "the text starts with a byte order mark: remove it");
    return false;
  }
  return true;
}

/* --- tree ------------------------------------------------------------------------------------------ */

static int compare_names(const void *a, const void *b) {
  return strcmp(((const cJSON *)a)->string, ((const cJSON *)b)->string);
}

static void check_duplicates(const Json *json, const cJSON *object, const void **members, const void **scratch,
                             Diag *diag) {
  size_t count = 0;
  for (const cJSON *member = object->child; member; member = member->next) members[count++] = member;
  sort_pointers(members, scratch, count, compare_names);
  for (size_t i = 1; i < count && !diag_full(diag); i++) {
    const cJSON *first = members[i - 1], *second = members[i];
    if (strcmp(first->string, second->string) != 0) continue;
    diag_error(diag, json_key_location(json, second), "the key '%s' stands here a second time", second->string);
    diag_note(diag, json_key_location(json, first), "the first is here");
  }
}

/* Numbers the values in the order of the text and looks for duplicate keys. */
static void number_tree(const Json *json, cJSON *root, const void **members, const void **scratch, Diag *diag) {
  cJSON *parents[JSON_MAX_DEPTH];
  int depth = 0, number = 0;
  cJSON *item = root;
  for (;;) {
    item->valueint = number++;
    if (item->child) {
      parents[depth++] = item;
      item = item->child;
      continue;
    }
    while (depth > 0 && !item->next) {
      item = parents[--depth];
      if (cJSON_IsObject(item)) check_duplicates(json, item, members, scratch, diag);
    }
    if (depth == 0) return;
    item = item->next;
  }
}

static void release_tree(void *tree) { cJSON_Delete(tree); }

bool json_parse(const char *file, const char *text, size_t size, Arena *arena, Diag *diag, Json *out_json) {
  Scanner scanner = {.file = file, .text = text, .at = text, .end = text + size, .line_start = text, .line = 1};
  scanner.diag = diag;
  if (size >= INT_MAX) { /* columns and value numbers are 32 bits */
    diag_error(diag, (Location){file, 0, 0}, "a JSON text of %zu bytes is too large", size);
    return false;
  }
  if (!check_encoding(&scanner, size)) return false;
  size_t limit = 2; /* values: each but the first follows one of these bytes */
  for (size_t i = 0; i < size; i++) limit += text[i] == ',' || text[i] == '[' || text[i] == '{';
  scanner.values = arena_array(arena, limit, Location);
  scanner.keys = arena_array(arena, limit, Location);
  if (!scan_text(&scanner)) return false;

  cJSON *root = cJSON_ParseWithLengthOpts(text, size + 1, NULL, 1);
  if (!root) arena_fail(arena); /* the text is valid, so only memory can be missing */
  arena_defer(arena, release_tree, root);
  *out_json = (Json){root, file, scanner.values, scanner.keys};
  const void **members = arena_array(arena, scanner.largest_object, const void *);
  const void **scratch = arena_array(arena, scanner.largest_object, const void *);
  const size_t errors = diag_error_count(diag);
  number_tree(out_json, root, members, scratch, diag);
  return diag_error_count(diag) == errors;
}

/* --- access ---------------------------------------------------------------------------------------- */

Location json_location(const Json *json, const cJSON *item) { return json->value_locations[item->valueint]; }
Location json_key_location(const Json *json, const cJSON *item) { return json->key_locations[item->valueint]; }

const cJSON *json_member(const cJSON *object, const char *name) {
  if (!cJSON_IsObject(object)) return NULL;
  for (const cJSON *member = object->child; member; member = member->next) {
    if (strcmp(member->string, name) == 0) return member;
  }
  return NULL;
}

const char *json_kind(const cJSON *item) {
  if (cJSON_IsObject(item)) return "an object";
  if (cJSON_IsArray(item)) return "an array";
  if (cJSON_IsString(item)) return "a string";
  if (cJSON_IsNumber(item)) return "a number";
  if (cJSON_IsTrue(item)) return "true";
  if (cJSON_IsFalse(item)) return "false";
  return "null";
}

bool json_integer(const Json *json, const cJSON *item, const char *what, int64_t minimum, int64_t maximum, Diag *diag,
                  int64_t *out_value) {
  if (minimum < -JSON_INTEGER_LIMIT) minimum = -JSON_INTEGER_LIMIT;
  if (maximum > JSON_INTEGER_LIMIT) maximum = JSON_INTEGER_LIMIT;
  const double value = cJSON_IsNumber(item) ? item->valuedouble : (double)NAN;
  if (value >= (double)minimum && value <= (double)maximum && rint(value) == value) {
    *out_value = (int64_t)value;
    return true;
  }
  char buffer[DOUBLE_TEXT_SIZE];
  diag_error(diag, json_location(json, item), "%s: expected an integer from %lld to %lld, found %s", what,
             (long long)minimum, (long long)maximum,
             cJSON_IsNumber(item) ? double_text(item->valuedouble, buffer) : json_kind(item));
  return false;
}
