#include "tuning_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "json.h"

enum { FILE_LIMIT = 64 << 20, FORMAT = 1 };

/* "AMD EPYC 9B45" where the system says so, else "". */
static const char *processor_name(Arena *arena) {
  char line[256];
  const char *name = "";
  FILE *file = fopen("/proc/cpuinfo", "r");
  if (file == NULL) return name;
  while (fgets(line, sizeof line, file) != NULL) {
    const char *colon = strchr(line, ':');
    if (strncmp(line, "model name", 10) != 0 || colon == NULL || colon[1] == '\0') continue;
    const size_t length = strcspn(colon + 2, "\n");
    if (utf8_valid(colon + 2, length)) name = arena_string_n(arena, colon + 2, length);
    break;
  }
  fclose(file);
  return name;
}

const char *tuning_machine(const Target *target, Arena *arena) {
  if (target->arch > 0)
    return arena_format(arena, "%s, %s", target->isa, target->device != NULL ? target->device : "no device");
  return arena_format(arena, "%s, %s, l2 %lld bytes", target->isa, processor_name(arena), (long long)target->l2_bytes);
}

/* --- reading ----------------------------------------------------------------------------------------- */

typedef struct Reader {
  const char *path;
  Arena *arena;
  Diag *diag;
  uint32_t line;
} Reader;

static bool wrong(const Reader *reader, const char *text) {
  diag_error(reader->diag, (Location){reader->path, reader->line, 1}, "%s", text);
  return false;
}

/* The JSON of a line. Its own positions count from the line's beginning. */
static bool parse_line(const Reader *reader, const char *bytes, size_t size, Json *out_json) {
  Diag *own = diag_create(reader->arena);
  if (json_parse(reader->path, arena_string_n(reader->arena, bytes, size), size, reader->arena, own, out_json)) {
    if (cJSON_IsObject(out_json->root)) return true;
    return wrong(reader, arena_format(reader->arena, "expected an object, found %s", json_kind(out_json->root)));
  }
  const DiagMessage *message = diag_message(own, 0);
  diag_error(reader->diag, (Location){reader->path, reader->line, message->location.column}, "%s", message->text);
  return false;
}

static bool read_head(const Reader *reader, const cJSON *head, const Target *target, bool *out_fits) {
  const cJSON *format = json_member(head, "format"), *version = json_member(head, "kiln");
  const cJSON *machine = json_member(head, "machine");
  if (!cJSON_IsNumber(format) || !cJSON_IsString(version) || !cJSON_IsString(machine))
    return wrong(reader, "expected \"format\", \"kiln\" and \"machine\", as 'kiln tune' writes them");
  const char *wanted = tuning_machine(target, reader->arena), *reason = NULL;
  if (format->valuedouble != FORMAT)
    reason = arena_format(reader->arena, "its format is %g, expected %d", format->valuedouble, FORMAT);
  else if (strcmp(version->valuestring, KILN_VERSION) != 0)
    reason = arena_format(reader->arena, "it was measured by Kiln %s, this is %s", version->valuestring, KILN_VERSION);
  else if (strcmp(machine->valuestring, wanted) != 0)
    reason = arena_format(reader->arena, "it was measured on '%s', this is '%s'", machine->valuestring, wanted);
  if (reason != NULL)
    diag_warning(reader->diag, (Location){reader->path, reader->line, 1}, "its times are not used: %s", reason);
  *out_fits = reason == NULL;
  return true;
}

static bool read_kernel(const Reader *reader, const cJSON *line, TuningKernel *out_kernel) {
  const cJSON *kernel = json_member(line, "kernel"), *times = json_member(line, "times");
  if (!cJSON_IsString(kernel)) return wrong(reader, "\"kernel\": expected the signature of a kernel, a string");
  if (!cJSON_IsObject(times)) return wrong(reader, "\"times\": expected an object of microseconds by candidate");
  const size_t count = (size_t)cJSON_GetArraySize(times);
  TuningTime *list = arena_array(reader->arena, count + 1, TuningTime);
  *out_kernel = (TuningKernel){kernel->valuestring, list, 0};
  for (const cJSON *time = times->child; time != NULL; time = time->next) {
    if (!cJSON_IsNumber(time) || !isfinite(time->valuedouble) || time->valuedouble <= 0)
      return wrong(reader,
                   arena_format(reader->arena, "time of '%s': expected a positive number of microseconds, found %s",
                                time->string, cJSON_IsNumber(time) ? "another number" : json_kind(time)));
    list[out_kernel->time_count++] = (TuningTime){time->string, time->valuedouble};
  }
  return true;
}

static size_t count_lines(const char *data, size_t size) {
  size_t lines = 1;
  for (size_t i = 0; i < size; i++) lines += data[i] == '\n';
  return lines;
}

bool tuning_read(const char *path, const Target *target, Arena *arena, Diag *diag, Tuning *out_tuning) {
  Reader reader = {path, arena, diag, 0};
  void *data;
  size_t size;
  bool fits = true;
  *out_tuning = (Tuning){.file = path};
  if (!file_read(path, FILE_LIMIT, arena, diag, &data, &size)) return false;
  const char *at = data, *end = at + size;
  TuningKernel *kernels = arena_array(arena, count_lines(data, size), TuningKernel);
  while (at < end) {
    const char *stop = memchr(at, '\n', (size_t)(end - at));
    const size_t length = stop != NULL ? (size_t)(stop - at) : (size_t)(end - at);
    Json json;
    reader.line++;
    if (!parse_line(&reader, at, length, &json)) return false;
    if (reader.line > 1 && !read_kernel(&reader, json.root, &kernels[out_tuning->kernel_count++])) return false;
    if (reader.line == 1 && !read_head(&reader, json.root, target, &fits)) return false;
    if (!fits) return true;
    at += length + (stop != NULL);
  }
  reader.line = 1;
  if (size == 0) return wrong(&reader, "expected times that 'kiln tune' has written, found an empty file");
  out_tuning->kernels = kernels;
  return true;
}

/* --- writing ----------------------------------------------------------------------------------------- */

bool tuning_write(const char *path, const Target *target, uint32_t threads, const Tuning *tuning, Arena *arena,
                  Diag *diag) {
  Text text;
  text_init(&text, arena);
  text_format(&text, "{\"format\":%d,\"kiln\":\"%s\",\"machine\":", FORMAT, KILN_VERSION);
  text_add_json(&text, tuning_machine(target, arena));
  text_format(&text, ",\"threads\":%u}\n", threads);
  for (size_t k = 0; k < tuning->kernel_count; k++) {
    const TuningKernel *kernel = &tuning->kernels[k];
    text_add(&text, "{\"kernel\":");
    text_add_json(&text, kernel->signature);
    text_add(&text, ",\"times\":{");
    for (size_t t = 0; t < kernel->time_count; t++) {
      if (t > 0) text_add(&text, ",");
      text_add_json(&text, kernel->times[t].candidate);
      text_format(&text, ":%.3f", kernel->times[t].microseconds);
    }
    text_add(&text, "}}\n");
  }
  const FilePiece piece = {text.data, text.size};
  return file_write(path, &piece, 1, diag);
}

static TuningKernel merge_kernel(const TuningKernel *old, const TuningKernel *fresh, Arena *arena) {
  TuningTime *times = arena_array(arena, old->time_count + fresh->time_count + 1, TuningTime);
  TuningKernel merged = {fresh->signature, times, 0};
  for (size_t t = 0; t < fresh->time_count; t++) times[merged.time_count++] = fresh->times[t];
  for (size_t t = 0; t < old->time_count; t++)
    if (isnan(tuning_time(fresh, old->times[t].candidate))) times[merged.time_count++] = old->times[t];
  return merged;
}

Tuning tuning_merge(const Tuning *base, const Tuning *more, Arena *arena) {
  TuningKernel *kernels = arena_array(arena, base->kernel_count + more->kernel_count + 1, TuningKernel);
  Tuning merged = {.file = base->file, .kernels = kernels};
  for (size_t k = 0; k < base->kernel_count; k++) {
    const TuningKernel *fresh = tuning_find(more, base->kernels[k].signature);
    kernels[merged.kernel_count++] = fresh != NULL ? merge_kernel(&base->kernels[k], fresh, arena) : base->kernels[k];
  }
  for (size_t k = 0; k < more->kernel_count; k++)
    if (tuning_find(base, more->kernels[k].signature) == NULL) kernels[merged.kernel_count++] = more->kernels[k];
  return merged;
}
