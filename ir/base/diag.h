/* Diagnostics: everything a user did wrong, with the place where it stands.
 *
 *   model.json:41:18: error: layers[4] 'conv2': weight expects 64 input channels, found 128
 *
 * Errors are collected, at most DIAG_LIMIT of them, so that one run shows all mistakes. */
#ifndef KILN_IR_BASE_DIAG_H
#define KILN_IR_BASE_DIAG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"

enum { DIAG_LIMIT = 20 };

/* Line and column count from 1; 0 means unknown. `file` may be NULL. Columns count bytes. */
typedef struct Location {
  const char *file;
  uint32_t line, column;
} Location;

typedef enum Severity { SEVERITY_ERROR, SEVERITY_WARNING, SEVERITY_NOTE } Severity;

typedef struct DiagMessage {
  Severity severity;
  Location location;
  const char *text; /* one line, no trailing newline */
} DiagMessage;

typedef struct Diag Diag;

/* Messages live in `arena`, which must outlive the collector. */
Diag *diag_create(Arena *arena);

/* Adds a message; control bytes in the text are shown as \xNN. Past DIAG_LIMIT errors are counted only. */
void diag_error(Diag *diag, Location location, const char *format, ...) __attribute__((format(printf, 3, 4)));
void diag_warning(Diag *diag, Location location, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* A note belongs to the message before it. */
void diag_note(Diag *diag, Location location, const char *format, ...) __attribute__((format(printf, 3, 4)));

size_t diag_error_count(const Diag *diag);
bool diag_full(const Diag *diag); /* the limit is reached: stop looking for more */
size_t diag_message_count(const Diag *diag);
const DiagMessage *diag_message(const Diag *diag, size_t index);
/* All messages, a line each, as `file:line:col: error: text`; "" when there are none. In `arena`. */
const char *diag_text(const Diag *diag, Arena *arena);

#endif
