#include "affinity.h"

#include <string.h>

#include "core/processors.h"

enum { THREADS_MOST = 64 /* of --threads */ };

typedef struct ProcessorList {
  uint32_t items[PROCESSORS_MAX];
  size_t count;
} ProcessorList;

static bool list_error(Tool *tool, const char *text) {
  tool_usage_error(tool,
                   "--affinity: expected processors such as 0,2 or 0-3 or 0-6:2, each once and below %d, found '%s'",
                   (int)PROCESSORS_MAX, text);
  return false;
}

/* "2", "0-3", "0-6:2": from the first to the last, every so manieth. */
static bool add_range(ProcessorList *list, Arena *arena, const char *piece) {
  const size_t from = strcspn(piece, "-:"), to = from + strcspn(piece + from, ":");
  int64_t first, last, step = 1;
  if (!parse_int(arena_string_n(arena, piece, from), &first)) return false;
  last = first;
  if (piece[from] == '-' && !parse_int(arena_string_n(arena, piece + from + 1, to - from - 1), &last)) return false;
  if (piece[to] == ':' && (to == from || !parse_int(piece + to + 1, &step))) return false;
  if (first < 0 || last < first || last >= PROCESSORS_MAX || step < 1) return false;
  for (int64_t at = first; at <= last; at += step < PROCESSORS_MAX ? step : PROCESSORS_MAX) {
    for (size_t i = 0; i < list->count; i++)
      if (list->items[i] == (uint32_t)at) return false;
    list->items[list->count++] = (uint32_t)at;
  }
  return true;
}

/* "0-1,4": the processors that this process may use, from the first to the last of each run. */
static const char *allowed_text(Arena *arena) {
  Text text;
  text_init(&text, arena);
  text_add(&text, "");
  for (uint32_t first = 0; first < PROCESSORS_MAX; first++) {
    uint32_t last = first;
    if (!processor_allowed(first)) continue;
    while (last + 1 < PROCESSORS_MAX && processor_allowed(last + 1)) last++;
    text_format(&text, last > first ? "%s%u-%u" : "%s%u", text.size > 0 ? "," : "", first, last);
    first = last;
  }
  return text.data;
}

static bool read_list(Tool *tool, const char *text, ProcessorList *out_list) {
  for (const char *at = text, *end = text + strlen(text); at <= end; at += strcspn(at, ",") + 1)
    if (!add_range(out_list, tool->arena, arena_string_n(tool->arena, at, strcspn(at, ","))))
      return list_error(tool, text);
  for (size_t i = 0; i < out_list->count; i++) {
    if (processor_allowed(out_list->items[i])) continue;
    diag_error(tool->diag, (Location){0}, "--affinity: this process may use the processors %s, found %u",
               allowed_text(tool->arena), out_list->items[i]);
    return false;
  }
  return true;
}

static bool read_affinity(Tool *tool, const ModelOptions *options, kiln_context_options *result) {
  ProcessorList *list = arena_new(tool->arena, ProcessorList);
  if (!read_list(tool, options->affinity, list)) return false;
  if (options->threads == 0) result->threads = (uint32_t)(list->count < THREADS_MOST ? list->count : THREADS_MOST);
  if (list->count < result->threads) {
    tool_usage_error(tool, "--affinity: expected a processor for each of %u threads, found %zu", result->threads,
                     list->count);
    return false;
  }
  result->affinity = list->items;
  result->affinity_count = list->count;
  return true;
}

bool context_options(Tool *tool, const ModelOptions *options, kiln_context_options *out_options) {
  *out_options = (kiln_context_options){.threads = options->threads > 0 ? (uint32_t)options->threads : 1};
  if (options->device != NULL && strcmp(options->device, "cpu") != 0) {
    if (options->affinity == NULL) return true;
    tool_usage_error(tool, "--affinity is for processors: a GPU's programs have no threads here");
    return false;
  }
  if (options->affinity != NULL && !read_affinity(tool, options, out_options)) return false;
  const uint32_t usable = processors_usable();
  if (out_options->threads > usable) {
    diag_warning(tool->diag, (Location){0},
                 "%u threads, but this process may use %u processor%s at a time: threads then wait for each other",
                 out_options->threads, usable, usable == 1 ? "" : "s");
    tool_print_warnings(tool);
  }
  return true;
}
