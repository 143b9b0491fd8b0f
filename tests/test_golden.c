/* Golden tests: every file of tests/golden that ends in .ir is a test of its own.
 *
 *   # RUN: pass,pass          passes to run, in order; "none": parse and print only. Several lines add up.
 *   graph "before" { … }
 *   # EXPECT                  and the text after, or
 *   # EXPECT-ERROR: file:line:col: text
 *                             one line per message, in order; "file" is the name of the test's file
 *
 * Passes see an x86-64-v3 target whatever the machine; with a line "# TARGET: gpu" one that has channels last, with
 * "# TARGET: gpu, bf16" one that also keeps images in 16 bits, with "# TARGET: tiles" an x86-64-v4 target with tile
 * registers, and fast precision.
 * Arguments are patterns of the names of tests to run; none means all. With KILN_UPDATE_GOLDEN=1 in the environment the
 * expectations of these are rewritten instead of compared. */
#include <dirent.h>

#include "base/file.h"
#include "base/sort.h"
#include "graph.h"
#include "passes.h"
#include "support.h"

#define GOLDEN_FOLDER KILN_SOURCE_DIR "/tests/golden"

/* Names of the tests; they live in an arena of their own until the program ends. */
static const char **golden_names;
static size_t golden_count;

static const Target golden_target = {.triple = "x86_64-unknown-linux-gnu",
                                     .isa = "x86-64-v3",
                                     .tune = "generic",
                                     .vector_lanes = 8,
                                     .hosts_reductions = true,
                                     .vector_registers = 16,
                                     .fma = true,
                                     .l1_bytes = 32 * 1024,
                                     .l2_bytes = 512 * 1024};

static const Target golden_tiles = {.triple = "x86_64-unknown-linux-gnu",
                                    .isa = "x86-64-v4",
                                    .tune = "generic",
                                    .vector_lanes = 16,
                                    .hosts_reductions = true,
                                    .vector_registers = 32,
                                    .fma = true,
                                    .broadcast_operand = true,
                                    .tiles = true,
                                    .l1_bytes = 48 * 1024,
                                    .l2_bytes = 2 * 1024 * 1024};

static const Target golden_gpu = {.triple = "nvptx64-nvidia-cuda",
                                  .isa = "sm_90",
                                  .tune = "generic",
                                  .vector_lanes = 4,
                                  .fma = true,
                                  .l2_bytes = 50 << 20,
                                  .image_layout = LAYOUT_CHANNEL_LAST,
                                  .math = MATH_3XTF32,
                                  .arch = 90,
                                  .multiprocessors = 132,
                                  .shared_bytes = 227 * 1024};

static const bool golden_packs[OP_COUNT] = {
    [OP_CONV2D] = true, [OP_MAX_POOL2D] = true, [OP_CONVERT] = true, [OP_ADAPTIVE_AVG_POOL2D] = true};

/* --- files ----------------------------------------------------------------------------------------- */

typedef struct Golden {
  const char *passes;
  const char
      *input; /* everything before the expectation: comments are blank to the parser, so lines keep their numbers */
  size_t input_size;
  const char *expected; /* the text after "# EXPECT", or the lines after "# EXPECT-ERROR: " */
  bool error, gpu, packed, tiles;
} Golden;

static const char *line_end(const char *line) {
  const char *end = strchr(line, '\n');
  return end ? end + 1 : line + strlen(line);
}

static bool starts_with(const char *line, const char *prefix) { return strncmp(line, prefix, strlen(prefix)) == 0; }

static void add_line(Text *text, const char *begin, const char *end) {
  while (end > begin && (end[-1] == '\n' || end[-1] == ' ' || end[-1] == '\r')) end--;
  text_add_n(text, begin, (size_t)(end - begin));
}

static Golden read_golden(Fixture *fixture, const char *source) {
  static const char run[] = "# RUN:", expect[] = "# EXPECT\n", expect_error[] = "# EXPECT-ERROR:";
  Text passes, errors;
  text_init(&passes, fixture->arena);
  text_init(&errors, fixture->arena);
  Golden golden = {.input = source, .input_size = strlen(source), .expected = ""};
  for (const char *line = source; *line; line = line_end(line)) {
    if (starts_with(line, run)) {
      const char *list = line + strlen(run) + strspn(line + strlen(run), " ");
      if (passes.size) text_add(&passes, ",");
      add_line(&passes, list, line_end(list));
    } else if (starts_with(line, "# TARGET: gpu\n")) {
      golden.gpu = true;
    } else if (starts_with(line, "# TARGET: gpu, bf16\n")) {
      golden.gpu = golden.packed = true;
    } else if (starts_with(line, "# TARGET: tiles\n")) {
      golden.tiles = true;
    } else if (starts_with(line, expect)) {
      golden.input_size = (size_t)(line - source);
      golden.expected = line_end(line);
      break;
    } else if (starts_with(line, expect_error)) {
      if (!golden.error) golden.input_size = (size_t)(line - source);
      golden.error = true;
      const char *message = line + strlen(expect_error) + strspn(line + strlen(expect_error), " ");
      add_line(&errors, message, line_end(message));
      text_add(&errors, "\n");
    }
  }
  golden.passes = passes.data;
  if (golden.error) golden.expected = errors.data;
  return golden;
}

/* --- running --------------------------------------------------------------------------------------- */

static void destroy_scratch(void *arena) { arena_destroy(arena); }

/* The text after the passes; NULL when there were errors. */
static const char *run_golden(Fixture *fixture, const Golden *golden, const char *file) {
  Graph *graph = NULL;
  if (!graph_parse(file, golden->input, golden->input_size, fixture->arena, fixture->diag, &graph)) return NULL;
  Target gpu = golden_gpu;
  if (golden->packed) gpu.math = MATH_BF16, gpu.image_element = DTYPE_BF16, gpu.packs = golden_packs;
  const PassOptions options = {.target = golden->gpu     ? &gpu
                                         : golden->tiles ? &golden_tiles
                                                         : &golden_target,
                               .precision = golden->gpu     ? PRECISION_DEFAULT
                                            : golden->tiles ? PRECISION_FAST
                                                            : PRECISION_STRICT,
                               .scratch = arena_create(NULL)};
  arena_defer(fixture->arena, destroy_scratch, options.scratch);
  if (strcmp(golden->passes, "none") != 0 && !pipeline_run_list(graph, golden->passes, &options, fixture->diag)) {
    return NULL;
  }
  Text text;
  text_init(&text, fixture->arena);
  graph_print(&text, graph);
  return text.data;
}

/* One line per message, as it stands after EXPECT-ERROR. */
static const char *messages_text(const Fixture *fixture) {
  Text text;
  text_init(&text, fixture->arena);
  for (size_t i = 0; i < diag_message_count(fixture->diag); i++) {
    const DiagMessage *message = diag_message(fixture->diag, i);
    const char *name = message->location.file ? strrchr(message->location.file, '/') : NULL;
    text_add(&text, name ? name + 1 : message->location.file ? message->location.file : "?");
    text_format(&text, ":%u:%u: %s\n", message->location.line, message->location.column, message->text);
  }
  return text.data;
}

static void update_golden(Fixture *fixture, const char *path, const Golden *golden, const char *found, bool error) {
  Text text;
  text_init(&text, fixture->arena);
  text_add_n(&text, golden->input, golden->input_size);
  if (!error) text_format(&text, "# EXPECT\n%s", found);
  for (const char *line = error ? found : ""; *line; line = line_end(line)) {
    text_add(&text, "# EXPECT-ERROR: ");
    text_add_n(&text, line, (size_t)(line_end(line) - line));
  }
  const FilePiece piece = {text.data, text.size};
  if (!file_write(path, &piece, 1, fixture->diag)) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

/* The lines from the first to the last that differ, with what surrounds them. */
static void report_difference(Fixture *fixture, const char *name, const char *expected, const char *found) {
  Text text;
  text_init(&text, fixture->arena);
  const char *a = expected, *b = found;
  int line = 1;
  for (; *a && line_end(a) - a == line_end(b) - b && memcmp(a, b, (size_t)(line_end(a) - a)) == 0; line++) {
    a = line_end(a);
    b = line_end(b);
  }
  const char *a_end = a + strlen(a), *b_end = b + strlen(b);
  while (a_end > a && b_end > b && a_end[-1] == b_end[-1]) a_end--, b_end--;
  a_end = a_end > a ? line_end(a_end - 1) : a_end;
  b_end = b_end > b ? line_end(b_end - 1) : b_end;
  for (; a < a_end; a = line_end(a)) text_format(&text, "  - %.*s\n", (int)strcspn(a, "\n"), a);
  for (; b < b_end; b = line_end(b)) text_format(&text, "  + %.*s\n", (int)strcspn(b, "\n"), b);
  fail_msg("tests/golden/%s: line %d of the expected text (-) differs from what was found (+):\n%s", name, line,
           text.data);
}

static void test_golden(void **state) {
  const char *name = *state;
  void *fixture_state = NULL;
  assert_int_equal(fixture_setup(&fixture_state), 0);
  Fixture *fixture = fixture_state;
  const char *path = arena_format(fixture->arena, "%s/%s", GOLDEN_FOLDER, name);
  void *data = NULL;
  size_t size = 0;
  if (!file_read(path, 1 << 24, fixture->arena, fixture->diag, &data, &size)) {
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  }
  const Golden golden = read_golden(fixture, data);
  if (!*golden.passes) fail_msg("%s has no line '# RUN: passes'", path);
  const char *found = run_golden(fixture, &golden, name);
  const bool error = !found;
  if (error) found = messages_text(fixture);
  const char *update = getenv("KILN_UPDATE_GOLDEN");
  const bool equal = error == golden.error && strcmp(found, golden.expected) == 0;
  if (update && strcmp(update, "1") == 0) {
    if (!equal) update_golden(fixture, path, &golden, found, error);
  } else if (!equal) {
    report_difference(fixture, name, golden.expected, found);
  }
  fixture_teardown(&fixture_state);
}

/* --- the list of tests ----------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b) { return strcmp(a, b); }

static bool is_wanted(const char *name, char **patterns) {
  bool wanted = !*patterns;
  for (; *patterns && !wanted; patterns++) wanted = pattern_match(*patterns, name);
  return wanted;
}

static bool list_golden(Arena *arena, char **patterns) {
  DIR *folder = opendir(GOLDEN_FOLDER);
  if (!folder) return false;
  for (struct dirent *entry; (entry = readdir(folder));) {
    const size_t length = strlen(entry->d_name);
    if (length < 4 || strcmp(entry->d_name + length - 3, ".ir") != 0) continue;
    if (!is_wanted(entry->d_name, patterns)) continue;
    const char **names = arena_array(arena, golden_count + 1, const char *);
    if (golden_count) memcpy(names, golden_names, golden_count * sizeof *names);
    names[golden_count++] = arena_string(arena, entry->d_name);
    golden_names = names;
  }
  closedir(folder);
  const void **items = arena_array(arena, golden_count, const void *);
  const void **scratch = arena_array(arena, golden_count, const void *);
  for (size_t i = 0; i < golden_count; i++) items[i] = golden_names[i];
  sort_pointers(items, scratch, golden_count, compare_names);
  for (size_t i = 0; i < golden_count; i++) golden_names[i] = items[i];
  return golden_count > 0;
}

int main(int argc, char **argv) {
  (void)argc;
  Arena *arena = arena_create(NULL);
  if (!list_golden(arena, argv + 1)) {
    fprintf(stderr, "no tests in %s\n", GOLDEN_FOLDER);
    return 1;
  }
  struct CMUnitTest *tests = arena_array(arena, golden_count, struct CMUnitTest);
  for (size_t i = 0; i < golden_count; i++) {
    tests[i] = (struct CMUnitTest){
        .name = golden_names[i], .test_func = test_golden, .initial_state = arena_string(arena, golden_names[i])};
  }
  const int failed = _cmocka_run_group_tests("golden", tests, golden_count, NULL, NULL);
  arena_destroy(arena);
  return failed;
}
