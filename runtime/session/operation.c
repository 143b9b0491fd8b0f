#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

Allocator host_allocator(const kiln_host *host) {
  Allocator allocator = {NULL, NULL, NULL};
  if (host != NULL && host->allocate != NULL && host->release != NULL)
    allocator = (Allocator){host->allocate, host->release, host->context};
  return allocator;
}

kiln_status error_set(kiln_error *error, kiln_status status, const char *format, ...) {
  if (error == NULL) return status;
  error->status = status;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->message, sizeof error->message, format, arguments);
  va_end(arguments);
  return status;
}

static void error_from_diag(kiln_error *error, kiln_status status, const Diag *diag, Arena *arena) {
  if (error == NULL) return;
  const char *text = diag_text(diag, arena);
  size_t length = strlen(text);
  if (length > 0 && text[length - 1] == '\n') length--;
  static const char cut[] = "\n(more messages cut)";
  if (length >= sizeof error->message) {
    length = sizeof error->message - sizeof cut;
    memcpy(error->message, text, length);
    memcpy(error->message + length, cut, sizeof cut);
  } else {
    memcpy(error->message, text, length);
    error->message[length] = '\0';
  }
  error->status = status;
}

void error_report(const kiln_error *error, Arena *arena, Diag *diag) {
  static const char mark[] = ": error: ";
  for (const char *line = error->message; *line != '\0';) {
    size_t length = strcspn(line, "\n");
    char *text = arena_string_n(arena, line, length), *found = strstr(text, mark);
    if (found != NULL) *found = '\0';
    const char *file = found != NULL && strcmp(text, "kiln") != 0 ? text : NULL;
    const char *what = found != NULL ? found + strlen(mark) : strncmp(text, mark + 2, 7) == 0 ? text + 7 : text;
    diag_error(diag, (Location){file, 0, 0}, "%s", what);
    line += length + (line[length] == '\n');
  }
}

static void log_warnings(const kiln_host *host, const Diag *diag, Arena *arena) {
  if (host == NULL || host->log == NULL) return;
  for (size_t i = 0; i < diag_message_count(diag); i++) {
    const DiagMessage *message = diag_message(diag, i);
    if (message->severity == SEVERITY_ERROR) continue;
    const char *file = message->location.file != NULL ? message->location.file : "";
    const char *line = arena_format(arena, "%s%s%s", file, file[0] != '\0' ? ": " : "", message->text);
    host->log(host->context, KILN_LOG_WARNING, line);
  }
}

kiln_status operation_run(const kiln_host *host, Arena *keep, OperationBody body, void *context, kiln_error *error) {
  if (error != NULL) {
    error->status = KILN_OK;
    error->message[0] = '\0';
  }
  Allocator allocator = host_allocator(host);
  Operation operation = {arena_create(&allocator), NULL, keep, KILN_ERROR_INPUT};
  if (operation.scratch == NULL) return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  jmp_buf failure;
  jmp_buf *outer = keep != NULL ? arena_on_failure(keep, &failure) : NULL;
  if (setjmp(failure) != 0) {
    arena_destroy(operation.scratch);
    if (keep != NULL) arena_on_failure(keep, outer);
    return error_set(error, KILN_ERROR_MEMORY, "out of memory");
  }
  arena_on_failure(operation.scratch, &failure);
  operation.diag = diag_create(operation.scratch);
  kiln_status status = KILN_OK;
  if (!body(&operation, context)) {
    status = operation.status != KILN_OK ? operation.status : KILN_ERROR_INPUT;
    error_from_diag(error, status, operation.diag, operation.scratch);
  } else {
    log_warnings(host, operation.diag, operation.scratch);
  }
  arena_destroy(operation.scratch);
  if (keep != NULL) arena_on_failure(keep, outer);
  return status;
}
