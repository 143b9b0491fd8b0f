#include "base/text.h"

#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- growing string -------------------------------------------------------------------------------- */

void text_init(Text *text, Arena *arena) {
  enum { FIRST_CAPACITY = 64 };
  *text = (Text){arena, arena_alloc(arena, FIRST_CAPACITY, 1), 0, FIRST_CAPACITY};
}

/* Makes room for `count` more bytes and the terminator. */
static void text_reserve(Text *text, size_t count) {
  size_t needed;
  if (__builtin_add_overflow(text->size, count, &needed) || needed > SIZE_MAX / 4) arena_fail(text->arena);
  if (needed < text->capacity) return;
  size_t capacity = text->capacity * 2;
  while (capacity <= needed) capacity *= 2;
  char *data = arena_alloc(text->arena, capacity, 1);
  memcpy(data, text->data, text->size);
  text->data = data;
  text->capacity = capacity;
}

void text_add_n(Text *text, const char *bytes, size_t count) {
  if (count == 0) return;
  text_reserve(text, count);
  memcpy(text->data + text->size, bytes, count);
  text->size += count;
  text->data[text->size] = '\0';
}

void text_add(Text *text, const char *string) { text_add_n(text, string, strlen(string)); }

int format_v(char *buffer, size_t size, const char *format, va_list arguments) {
  /* glibc hands out its one built-in "C" locale here: no allocation, nothing to free, cannot fail. */
  const locale_t neutral = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  const locale_t previous = neutral ? uselocale(neutral) : (locale_t)0;
  const int length = vsnprintf(buffer, size, format, arguments);
  if (neutral) {
    uselocale(previous);
    freelocale(neutral);
  }
  return length;
}

void text_format_v(Text *text, const char *format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  const int length = format_v(text->data + text->size, text->capacity - text->size, format, arguments);
  if (length < 0) {
    va_end(again);
    arena_fail(text->arena);
  }
  if ((size_t)length >= text->capacity - text->size) {
    text->data[text->size] = '\0';
    text_reserve(text, (size_t)length);
    format_v(text->data + text->size, text->capacity - text->size, format, again);
  }
  va_end(again);
  text->size += (size_t)length;
}

void text_format(Text *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  text_format_v(text, format, arguments);
  va_end(arguments);
}

static double read_double(const char *string, char **end) {
  const locale_t neutral = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  const double value = neutral ? strtod_l(string, end, neutral) : strtod(string, end);
  if (neutral) freelocale(neutral);
  return value;
}

static void format_buffer(char *buffer, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void format_buffer(char *buffer, size_t size, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  format_v(buffer, size, format, arguments);
  va_end(arguments);
}

const char *double_text(double value, char *buffer) {
  if (isnan(value)) return strcpy(buffer, "nan");
  if (isinf(value)) return strcpy(buffer, value < 0 ? "-inf" : "inf");
  /* A decimal of up to 15 digits survives a normal double, so %.15g shows the shortest one, its zeros
   * dropped; subnormal numbers hold fewer digits. */
  for (int digits = fabs(value) < DBL_MIN && value != 0 ? 1 : DBL_DIG; digits <= DBL_DECIMAL_DIG; digits++) {
    format_buffer(buffer, DOUBLE_TEXT_SIZE, "%.*g", digits, value);
    if (read_double(buffer, NULL) == value) break;
  }
  return buffer;
}

void text_add_double(Text *text, double value) {
  char buffer[DOUBLE_TEXT_SIZE];
  text_add(text, double_text(value, buffer));
}

void text_add_json(Text *text, const char *string) {
  text_add(text, "\"");
  for (const char *at = string; *at; at++) {
    const unsigned char byte = (unsigned char)*at;
    const char *const names = "\"\"\\\\\bb\ff\nn\rr\tt"; /* byte, letter after the backslash */
    const char *name = NULL;
    for (size_t i = 0; names[i]; i += 2) {
      if (names[i] == *at) name = names + i + 1;
    }
    if (name) {
      text_format(text, "\\%c", *name);
    } else if (byte < 0x20) {
      text_format(text, "\\u%04x", byte);
    } else {
      text_add_n(text, at, 1);
    }
  }
  text_add(text, "\"");
}

/* --- numbers --------------------------------------------------------------------------------------- */

static const char *skip_digits(const char *at) {
  while (*at >= '0' && *at <= '9') at++;
  return at;
}

bool parse_double(const char *string, double *out_value) {
  const char *at = string;
  const bool negative = *at == '-';
  if (*at == '-' || *at == '+') at++;
  if (strcmp(at, "inf") == 0) {
    *out_value = negative ? -HUGE_VAL : HUGE_VAL;
    return true;
  }
  if (strcmp(at, "nan") == 0) {
    *out_value = (double)NAN;
    return true;
  }
  /* strtod also takes blanks, hexadecimal and "infinity": the form is checked first. */
  const char *digits = at;
  at = skip_digits(at);
  bool any_digit = at > digits;
  if (*at == '.') {
    const char *fraction = ++at;
    at = skip_digits(at);
    any_digit = any_digit || at > fraction;
  }
  if (!any_digit) return false;
  if (*at == 'e' || *at == 'E') {
    at++;
    if (*at == '-' || *at == '+') at++;
    const char *exponent = at;
    at = skip_digits(at);
    if (at == exponent) return false;
  }
  if (*at != '\0') return false;
  const double value = read_double(string, NULL);
  if (isinf(value)) return false;
  *out_value = value;
  return true;
}

bool parse_int(const char *string, int64_t *out_value) {
  const char *digits = *string == '-' || *string == '+' ? string + 1 : string;
  const char *end = skip_digits(digits);
  if (end == digits || *end != '\0') return false;
  int64_t value = 0;
  for (const char *at = digits; at < end; at++) {
    const int64_t digit = *string == '-' ? '0' - *at : *at - '0';
    if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, digit, &value)) return false;
  }
  *out_value = value;
  return true;
}

/* --- characters ------------------------------------------------------------------------------------ */

/* Bytes of the UTF-8 character that starts at `bytes`; 0 when it is not valid (Unicode 15, table 3-7: no
 * overlong forms, no surrogates, nothing past U+10FFFF). */
static size_t utf8_length(const unsigned char *bytes, size_t count) {
  const unsigned char first = bytes[0];
  if (first < 0x80) return 1;
  size_t length;
  unsigned char low = 0x80, high = 0xBF; /* allowed range of the second byte */
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  if (count < length || bytes[1] < low || bytes[1] > high) return 0;
  for (size_t i = 2; i < length; i++) {
    if (bytes[i] < 0x80 || bytes[i] > 0xBF) return 0;
  }
  return length;
}

size_t utf8_prefix(const char *bytes, size_t count) {
  size_t at = 0;
  while (at < count) {
    const size_t length = utf8_length((const unsigned char *)bytes + at, count - at);
    if (length == 0) break;
    at += length;
  }
  return at;
}

bool utf8_valid(const char *bytes, size_t count) { return utf8_prefix(bytes, count) == count; }

/* The next character of valid UTF-8; of other text, the next byte or so. */
static const char *next_character(const char *at) {
  do at++;
  while (((unsigned char)*at & 0xC0) == 0x80);
  return at;
}

bool pattern_match(const char *pattern, const char *name) {
  /* On a mismatch only the last '*' is extended: the earlier ones matched as early as possible already. */
  const char *star = NULL, *star_name = NULL;
  while (*name) {
    if (*pattern == '*') {
      star = pattern++;
      star_name = name;
    } else if (*pattern == '?') {
      pattern++;
      name = next_character(name);
    } else if (*pattern == *name) {
      pattern++;
      name++;
    } else if (star) {
      pattern = star + 1;
      name = ++star_name;
    } else {
      return false;
    }
  }
  while (*pattern == '*') pattern++;
  return *pattern == '\0';
}

enum { WORD_LIMIT = 64 };

/* Insertions, deletions, replacements and swaps of neighbours (optimal string alignment), in three rows. */
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length) {
  size_t rows[3][WORD_LIMIT + 1];
  for (size_t j = 0; j <= b_length; j++) rows[0][j] = j;
  for (size_t i = 1; i <= a_length; i++) {
    size_t *row = rows[i % 3];
    const size_t *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
    row[0] = i;
    for (size_t j = 1; j <= b_length; j++) {
      size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
      if (above[j] + 1 < best) best = above[j] + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && above2[j - 2] + 1 < best) {
        best = above2[j - 2] + 1;
      }
      row[j] = best;
    }
  }
  return rows[a_length % 3][b_length];
}

static bool extends_word(const char *longer, const char *shorter, size_t length) {
  return length >= 2 && strncmp(longer, shorter, length) == 0 && longer[length] == '_';
}

const char *nearest_word(const char *word, const char *const *candidates, size_t count) {
  const size_t length = strlen(word);
  if (length > WORD_LIMIT) return NULL;
  const char *best = NULL;
  size_t best_distance = SIZE_MAX;
  for (size_t i = 0; i < count; i++) {
    const char *candidate = candidates[i];
    const size_t candidate_length = candidate ? strlen(candidate) : 0;
    if (candidate_length == 0 || candidate_length > WORD_LIMIT) continue;
    const size_t longest = length > candidate_length ? length : candidate_length;
    const size_t distance = edit_distance(word, length, candidate, candidate_length);
    const bool near = distance < longest && distance <= (longest < 6 ? 1 : longest / 3);
    const bool extended = extends_word(word, candidate, candidate_length) || extends_word(candidate, word, length);
    if ((near || extended) && distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}
