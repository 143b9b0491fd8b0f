/* The order of passes, and everything that happens between them: scratch memory, verification, dumps. */
#include <string.h>

#include "passes.h"

typedef struct PassRow {
  const char *name;
  bool optional;
  bool (*run)(Graph *graph, const PassOptions *options, Diag *diag);
} PassRow;

static const PassRow pass_table[] = {
#define PASS(name, optional) {#name, optional, pass_##name},
    PASSES(PASS)
#undef PASS
};

static const char *const pass_name_table[] = {
#define PASS(name, optional) #name,
    PASSES(PASS)
#undef PASS
};

enum { PASS_COUNT = sizeof pass_table / sizeof *pass_table, WHEN_BEFORE = 1, WHEN_AFTER = 2 };

static const Location nowhere = {0};

const char *const *pass_names(size_t *out_count) {
  *out_count = PASS_COUNT;
  return pass_name_table;
}

static int pass_find(const char *name) {
  for (int i = 0; i < PASS_COUNT; i++)
    if (!strcmp(pass_table[i].name, name)) return i;
  return -1;
}

static void report_unknown_pass(Diag *diag, const char *option, const char *name) {
  const char *near = nearest_word(name, pass_name_table, PASS_COUNT);
  if (near)
    diag_error(diag, nowhere, "%s: there is no pass '%s'; did you mean '%s'?", option, name, near);
  else
    diag_error(diag, nowhere, "%s: there is no pass '%s'", option, name);
}

/* Takes the next item of a comma-separated list, without blanks around it; NULL at the end. */
static const char *next_item(const char **list, Arena *arena) {
  const char *begin = *list;
  if (!begin) return NULL;
  const char *end = strchr(begin, ',');
  *list = end ? end + 1 : NULL;
  size_t length = end ? (size_t)(end - begin) : strlen(begin);
  while (length && (*begin == ' ' || *begin == '\t')) begin++, length--;
  while (length && (begin[length - 1] == ' ' || begin[length - 1] == '\t')) length--;
  return arena_string_n(arena, begin, length);
}

static bool parse_disabled(const PassOptions *options, Arena *arena, Diag *diag, bool *out_skip) {
  size_t errors = diag_error_count(diag);
  const char *list = options->disabled, *name;
  while ((name = next_item(&list, arena))) {
    if (!*name) continue;
    int pass = pass_find(name);
    if (pass < 0)
      report_unknown_pass(diag, "disable", name);
    else if (!pass_table[pass].optional)
      diag_error(diag, nowhere, "disable: pass '%s' is needed for correct code and cannot be disabled", name);
    else
      out_skip[pass] = true;
  }
  return diag_error_count(diag) == errors;
}

static bool parse_dump(const char *list, Arena *arena, Diag *diag, unsigned char *out_when) {
  size_t errors = diag_error_count(diag);
  const char *item;
  while ((item = next_item(&list, arena))) {
    if (!*item) continue;
    const char *colon = strchr(item, ':');
    const char *stage = colon ? arena_string_n(arena, item, (size_t)(colon - item)) : "after";
    const char *name = colon ? colon + 1 : item;
    unsigned char when = !strcmp(stage, "before") ? WHEN_BEFORE : !strcmp(stage, "after") ? WHEN_AFTER : 0;
    if (!when) {
      diag_error(diag, nowhere, "dump: expected before:PASS or after:PASS, found '%s'", item);
      continue;
    }
    if (!strcmp(name, "all")) {
      for (int i = 0; i < PASS_COUNT; i++) out_when[i] |= when;
      continue;
    }
    int pass = pass_find(name);
    if (pass < 0)
      report_unknown_pass(diag, "dump", name);
    else
      out_when[pass] |= when;
  }
  return diag_error_count(diag) == errors;
}

static bool dump(const Graph *graph, const PipelineOptions *pipeline, const char *stage, int number, Arena *scratch,
                 Diag *diag) {
  if (!pipeline->sink) return true;
  const char *pass = pass_table[number].name;
  for (int dot = 0; dot <= (pipeline->dot ? 1 : 0); dot++) {
    Text text;
    text_init(&text, scratch);
    if (dot)
      graph_print_dot(&text, graph);
    else
      graph_print(&text, graph);
    if (!pipeline->sink(pipeline->context, stage, pass, number, dot ? "dot" : "ir", text.data)) {
      diag_error(diag, nowhere, "dump: the graph %s pass '%s' could not be written", stage, pass);
      return false;
    }
  }
  return true;
}

static void release_arena(void *arena) { arena_destroy(arena); }

/* The caller's scratch arena, or one that lives as long as the graph and fails where the graph's arena fails. */
static PassOptions options_with_scratch(Graph *graph, const PassOptions *options) {
  PassOptions result = *options;
  if (result.scratch) return result;
  result.scratch = arena_create(NULL);
  if (!result.scratch) arena_fail(graph->arena);
  jmp_buf *point = arena_on_failure(graph->arena, NULL);
  arena_on_failure(graph->arena, point);
  arena_on_failure(result.scratch, point);
  arena_defer(graph->arena, release_arena, result.scratch);
  return result;
}

static bool run_pass(Graph *graph, int pass, const PassOptions *options, bool verify, Diag *diag) {
  arena_reset(options->scratch);
  if (!pass_table[pass].run(graph, options, diag)) return false;
  return !verify || graph_verify(graph, pass_table[pass].name, diag);
}

bool pipeline_run(Graph *graph, const PassOptions *options, const PipelineOptions *pipeline, Diag *diag,
                  Plan **out_plan) {
  static const PipelineOptions no_pipeline_options = {0};
  if (!pipeline) pipeline = &no_pipeline_options;
  *out_plan = NULL;
  PassOptions run_options = options_with_scratch(graph, options);
  Arena *scratch = run_options.scratch;
  bool skip[PASS_COUNT] = {false};
  unsigned char when[PASS_COUNT] = {0};
  int last = PASS_COUNT - 1;
  arena_reset(scratch);
  bool valid = parse_disabled(options, scratch, diag, skip);
  valid = parse_dump(pipeline->dump, scratch, diag, when) && valid;
  if (pipeline->stop_after) {
    last = pass_find(pipeline->stop_after);
    if (last < 0) report_unknown_pass(diag, "stop-after", pipeline->stop_after);
    valid = valid && last >= 0;
  }
  if (!valid) return false;

  for (int i = 0; i <= last; i++) {
    if (skip[i]) continue;
    arena_reset(scratch);
    if ((when[i] & WHEN_BEFORE) && !dump(graph, pipeline, "before", i, scratch, diag)) return false;
    if (!run_pass(graph, i, &run_options, pipeline->verify, diag)) return false;
    if ((when[i] & WHEN_AFTER) && !dump(graph, pipeline, "after", i, scratch, diag)) return false;
  }
  if (pipeline->stop_after) return true;
  arena_reset(scratch);
  return plan_build(graph, &run_options, diag, out_plan);
}

bool pipeline_run_list(Graph *graph, const char *passes, const PassOptions *options, Diag *diag) {
  PassOptions run_options = options_with_scratch(graph, options);
  const char *list = passes, *name;
  while ((name = next_item(&list, graph->arena))) {
    if (!*name) continue;
    int pass = pass_find(name);
    if (pass < 0) {
      report_unknown_pass(diag, "RUN", name);
      return false;
    }
    if (!run_pass(graph, pass, &run_options, true, diag)) return false;
  }
  return true;
}
