/* A growing string in an arena, and small helpers on C strings. All output is independent of the locale:
 * numbers always use a decimal point. */
#ifndef KILN_IR_BASE_TEXT_H
#define KILN_IR_BASE_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"

typedef struct Text {
  Arena *arena;
  char *data; /* always terminated */
  size_t size, capacity;
} Text;

void text_init(Text *text, Arena *arena);
void text_add(Text *text, const char *string);
void text_add_n(Text *text, const char *bytes, size_t count);
void text_format(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_format_v(Text *text, const char *format, va_list arguments);
/* The shortest decimal that reads back as the same double: 0.1, 1e-05, -3, inf, -inf, nan. */
void text_add_double(Text *text, double value);
/* The same into a buffer of DOUBLE_TEXT_SIZE bytes, which it returns. */
enum { DOUBLE_TEXT_SIZE = 32 };
const char *double_text(double value, char *buffer);
/* A JSON string with quotes and escapes; the input is valid UTF-8. */
void text_add_json(Text *text, const char *string);

/* vsnprintf with a decimal point whatever the locale; negative when the text cannot be formatted. */
int format_v(char *buffer, size_t size, const char *format, va_list arguments) __attribute__((format(printf, 3, 0)));

/* Parses a decimal number, locale-independent; false when `string` is not exactly one number, or one too large
 * for a double. Reads all that text_add_double writes: also inf, -inf, nan. */
bool parse_double(const char *string, double *out_value);
bool parse_int(const char *string, int64_t *out_value);
/* Length of the longest valid UTF-8 beginning of `bytes`. */
size_t utf8_prefix(const char *bytes, size_t count);
bool utf8_valid(const char *bytes, size_t count);
/* Shell-style match of a value name: '*' is any run of characters except that a pattern with no '*'
 * must be equal; '?' is one character. */
bool pattern_match(const char *pattern, const char *name);
/* The candidate nearest to `word` by edit distance, or NULL when none is near. A candidate that `word` only
 * extends by further words (kernel, for kernel_size), or the other way round, counts as near. */
const char *nearest_word(const char *word, const char *const *candidates, size_t count);

#endif
