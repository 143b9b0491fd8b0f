#include "base/diag.h"

#include <string.h>

#include "base/text.h"

struct Diag {
  Arena *arena;
  DiagMessage *messages;
  size_t count, capacity;
  size_t errors;
  bool note_dropped; /* the message before was not kept, so its notes are not either */
};

Diag *diag_create(Arena *arena) {
  Diag *diag = arena_new(arena, Diag);
  diag->arena = arena;
  return diag;
}

/* Adds text with everything that could break a line or a terminal made visible. */
static void add_visible(Text *text, const char *string) {
  size_t left = strlen(string);
  while (left) {
    const size_t valid = utf8_prefix(string, left);
    for (size_t i = 0; i < valid; i++) {
      const unsigned char byte = (unsigned char)string[i];
      if (byte < 0x20 || byte == 0x7F) {
        text_format(text, "\\x%02x", byte);
      } else if (byte == 0xC2 && (unsigned char)string[i + 1] < 0xA0) { /* U+0080 to U+009F */
        i++;
        text_format(text, "\\xc2\\x%02x", (unsigned char)string[i]);
      } else {
        text_add_n(text, string + i, 1);
      }
    }
    string += valid;
    left -= valid;
    if (left) {
      text_format(text, "\\x%02x", (unsigned char)*string);
      string++;
      left--;
    }
  }
}

/* File names are copied, once for a run of messages about one file. */
static const char *keep_file(Diag *diag, const char *file) {
  if (!file) return NULL;
  if (diag->count) {
    const char *last = diag->messages[diag->count - 1].location.file;
    if (last && strcmp(last, file) == 0) return last;
  }
  return arena_string(diag->arena, file);
}

static void diag_add(Diag *diag, Severity severity, Location location, const char *format, va_list arguments)
    __attribute__((format(printf, 4, 0)));

static void diag_add(Diag *diag, Severity severity, Location location, const char *format, va_list arguments) {
  if (severity == SEVERITY_ERROR) diag->errors++;
  const bool dropped =
      severity == SEVERITY_NOTE ? diag->note_dropped : severity == SEVERITY_ERROR && diag->errors > DIAG_LIMIT;
  diag->note_dropped = dropped;
  if (dropped) return;
  if (diag->count == diag->capacity) {
    const size_t capacity = diag->capacity ? diag->capacity * 2 : 8;
    DiagMessage *messages = arena_array(diag->arena, capacity, DiagMessage);
    if (diag->count) memcpy(messages, diag->messages, diag->count * sizeof(DiagMessage));
    diag->messages = messages;
    diag->capacity = capacity;
  }
  Text raw, shown;
  text_init(&raw, diag->arena);
  text_init(&shown, diag->arena);
  text_format_v(&raw, format, arguments);
  add_visible(&shown, raw.data);
  location.file = keep_file(diag, location.file);
  diag->messages[diag->count++] = (DiagMessage){severity, location, shown.data};
}

void diag_error(Diag *diag, Location location, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  diag_add(diag, SEVERITY_ERROR, location, format, arguments);
  va_end(arguments);
}

void diag_warning(Diag *diag, Location location, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  diag_add(diag, SEVERITY_WARNING, location, format, arguments);
  va_end(arguments);
}

void diag_note(Diag *diag, Location location, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  diag_add(diag, SEVERITY_NOTE, location, format, arguments);
  va_end(arguments);
}

size_t diag_error_count(const Diag *diag) { return diag->errors; }
bool diag_full(const Diag *diag) { return diag->errors >= DIAG_LIMIT; }
size_t diag_message_count(const Diag *diag) { return diag->count; }
const DiagMessage *diag_message(const Diag *diag, size_t index) { return &diag->messages[index]; }

const char *diag_text(const Diag *diag, Arena *arena) {
  static const char *const names[] = {"error", "warning", "note"};
  Text text;
  text_init(&text, arena);
  for (size_t i = 0; i < diag->count; i++) {
    const DiagMessage *message = &diag->messages[i];
    if (message->location.file) {
      add_visible(&text, message->location.file);
      if (message->location.line) text_format(&text, ":%u", message->location.line);
      if (message->location.line && message->location.column) text_format(&text, ":%u", message->location.column);
      text_add(&text, ": ");
    }
    text_format(&text, "%s: %s\n", names[message->severity], message->text);
  }
  if (diag->errors > DIAG_LIMIT) {
    const size_t hidden = diag->errors - DIAG_LIMIT;
    text_format(&text, "note: %zu more error%s not shown\n", hidden, hidden == 1 ? "" : "s");
  }
  return text.data;
}
