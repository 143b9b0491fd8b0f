#include "common.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "safetensors.h"
#include "session/cuda_build.h"

bool color_enabled(FILE *stream) {
  const char *no_color = getenv("NO_COLOR");
  return isatty(fileno(stream)) && (no_color == NULL || no_color[0] == '\0');
}

static void print_messages(const Diag *diag) {
  static const char *const names[] = {"error", "warning", "note"};
  static const char *const colors[] = {"\033[1;31m", "\033[1;35m", "\033[1;36m"};
  bool color = color_enabled(stderr);
  fflush(stdout);
  for (size_t i = 0; i < diag_message_count(diag); i++) {
    const DiagMessage *message = diag_message(diag, i);
    const Location *place = &message->location;
    if (place->file != NULL && place->line > 0)
      fprintf(stderr, "%s:%u:%u: ", place->file, place->line, place->column);
    else
      fprintf(stderr, "%s: ", place->file == NULL ? "kiln" : place->file[0] != '\0' ? place->file : "''");
    fprintf(stderr, "%s%s:%s %s\n", color ? colors[message->severity] : "", names[message->severity],
            color ? "\033[0m" : "", message->text);
  }
  size_t errors = diag_error_count(diag);
  if (errors > DIAG_LIMIT) fprintf(stderr, "kiln: %zu more errors\n", errors - DIAG_LIMIT);
}

int tool_run(int (*body)(Tool *tool, void *request), void *request) {
  Tool tool = {arena_create(NULL), NULL, false};
  jmp_buf failure;
  if (tool.arena == NULL || setjmp(failure) != 0) {
    fprintf(stderr, "kiln: out of memory\n");
    arena_destroy(tool.arena);
    return EXIT_FAILED;
  }
  arena_on_failure(tool.arena, &failure);
  tool.diag = diag_create(tool.arena);
  int code = body(&tool, request);
  print_messages(tool.diag);
  if (code == EXIT_OK && diag_error_count(tool.diag) > 0) code = EXIT_FAILED;
  if (code == EXIT_FAILED && tool.wrong_usage) code = EXIT_USAGE;
  arena_destroy(tool.arena);
  return code;
}

void tool_usage_error(Tool *tool, const char *format, ...) {
  Text text;
  text_init(&text, tool->arena);
  va_list arguments;
  va_start(arguments, format);
  text_format_v(&text, format, arguments);
  va_end(arguments);
  diag_error(tool->diag, (Location){NULL, 0, 0}, "%s", text.data);
  tool->wrong_usage = true;
}

void tool_print_warnings(Tool *tool) {
  if (diag_error_count(tool->diag) > 0) return;
  print_messages(tool->diag);
  tool->diag = diag_create(tool->arena);
}

void tool_library_error(Tool *tool, const kiln_error *error) { error_report(error, tool->arena, tool->diag); }

int output_finish(int code) {
  errno = 0;
  bool failed = fflush(stdout) != 0, earlier = ferror(stdout) != 0;
  if (!failed && !earlier) return code;
  /* the write that failed may lie far back: the pipe itself tells whether its reader is gone */
  struct pollfd pipe_state = {STDOUT_FILENO, POLLOUT, 0};
  if (errno == EPIPE || (poll(&pipe_state, 1, 0) > 0 && (pipe_state.revents & POLLERR) != 0)) return code;
  fprintf(stderr, "kiln: cannot write to standard output%s%s\n", failed ? ": " : "", failed ? strerror(errno) : "");
  return code == EXIT_OK ? EXIT_FAILED : code;
}

bool ends_with(const char *text, const char *ending) {
  size_t length = strlen(text), tail = strlen(ending);
  return length >= tail && strcmp(text + length - tail, ending) == 0;
}

bool is_library(const char *path) { return ends_with(path, ".so"); }

double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const char *grouped(Arena *arena, int64_t number) {
  char digits[32];
  int length = snprintf(digits, sizeof digits, "%lld", (long long)number);
  Text text;
  text_init(&text, arena);
  for (int i = 0; i < length; i++) {
    text_add_n(&text, &digits[i], 1);
    int left = length - 1 - i;
    if (left > 0 && left % 3 == 0 && digits[i] != '-') text_add(&text, ",");
  }
  return text.data;
}

bool name_value(Tool *tool, const char *option, const char *text, const char **out_name, const char **out_value) {
  const char *equals = strchr(text, '=');
  if (equals == NULL || equals == text || equals[1] == '\0') {
    tool_usage_error(tool, "--%s: expected NAME=VALUE, found '%s'", option, text);
    return false;
  }
  *out_name = arena_string_n(tool->arena, text, (size_t)(equals - text));
  *out_value = equals + 1;
  return true;
}

bool shape_parse(Tool *tool, const char *text, ShapeOverride *out_shape) {
  const char *dims;
  if (!name_value(tool, "shape", text, &out_shape->input, &dims)) return false;
  Shape shape = {0, {0}};
  for (const char *at = dims; *at != '\0';) {
    size_t length = strcspn(at, "x,");
    char *piece = arena_string_n(tool->arena, at, length);
    int64_t dim;
    bool batch = shape.rank == 0 && strcmp(piece, "N") == 0;
    if (shape.rank == SHAPE_MAX_RANK || (!batch && (!parse_int(piece, &dim) || dim < 1))) {
      tool_usage_error(tool, "--shape %s: expected at most %d positive dimensions such as 1x3x224x224, found '%s'",
                       text, SHAPE_MAX_RANK, piece);
      return false;
    }
    shape.dims[shape.rank++] = batch ? DIM_BATCH : dim;
    at += length;
    if (*at != '\0' && *++at == '\0') {
      tool_usage_error(tool, "--shape %s: a dimension is missing at the end", text);
      return false;
    }
  }
  out_shape->shape = shape;
  return true;
}

/* "bins=40,range=0..10,threshold=0.05", any of them. */
static bool stats_parse(char *options, HookStats *out_stats) {
  const Attrs attrs = attrs_default();
  *out_stats = (HookStats){attrs.bins, attrs.low, attrs.high, attrs.threshold};
  for (char *key, *rest = options; (key = strtok_r(rest, ",", &rest)) != NULL;) {
    char *value = strchr(key, '=');
    if (value == NULL) return false;
    *value++ = '\0';
    char *dots = strstr(value, "..");
    if (strcmp(key, "bins") == 0) {
      if (!parse_int(value, &out_stats->bins) || out_stats->bins < 1) return false;
    } else if (strcmp(key, "threshold") == 0) {
      if (!parse_double(value, &out_stats->threshold)) return false;
    } else if (strcmp(key, "range") == 0 && dots != NULL) {
      *dots = '\0';
      if (!parse_double(value, &out_stats->low) || !parse_double(dots + 2, &out_stats->high)) return false;
    } else {
      return false;
    }
  }
  return true;
}

/* VALUE[:KIND[:ACTION[:OPTIONS]]]; `text` is cut up. */
static bool hook_parse(char *text, Hook *out_hook) {
  enum { PARTS = 4 };
  char *parts[PARTS] = {text};
  for (int i = 1; i < PARTS && parts[i - 1] != NULL; i++) {
    parts[i] = strchr(parts[i - 1], ':');
    if (parts[i] != NULL) *parts[i]++ = '\0';
  }
  const char *kind = parts[1], *action = parts[2];
  *out_hook = (Hook){.pattern = text, .kind = HOOK_ACTIVATION, .action = HOOK_STORE};
  if (kind != NULL && strcmp(kind, "gradient") == 0)
    out_hook->kind = HOOK_GRADIENT;
  else if (kind != NULL && kind[0] != '\0' && strcmp(kind, "activation") != 0)
    return false;
  if (action != NULL && strcmp(action, "stats") == 0)
    out_hook->action = HOOK_STATS;
  else if (action != NULL && strcmp(action, "call") == 0)
    out_hook->action = HOOK_CALL;
  else if (action != NULL && strcmp(action, "store") != 0)
    return false;
  return parts[3] == NULL || (out_hook->action == HOOK_STATS && stats_parse(parts[3], &out_hook->stats));
}

static bool add_hooks(Tool *tool, Graph *graph, const OptionList *hooks) {
  if (hooks->count == 0) return true;
  Hook *all = arena_array(tool->arena, graph->hook_count + hooks->count, Hook);
  if (graph->hook_count > 0) memcpy(all, graph->hooks, graph->hook_count * sizeof *all);
  for (size_t i = 0; i < hooks->count; i++) {
    if (hook_parse(arena_string(tool->arena, hooks->items[i]), &all[graph->hook_count + i])) continue;
    tool_usage_error(tool,
                     "--hook: expected VALUE[:activation|gradient[:store|stats|call]], and after stats "
                     ":bins=N,range=LOW..HIGH,threshold=T, found '%s'",
                     hooks->items[i]);
    return false;
  }
  graph->hooks = all;
  graph->hook_count += hooks->count;
  return true;
}

bool model_open(Tool *tool, const char *path, const ModelOptions *options, Graph **out_graph) {
  ShapeOverride shapes[64];
  for (size_t i = 0; i < options->shapes.count; i++)
    if (!shape_parse(tool, options->shapes.items[i], &shapes[i])) return false;
  ImportOptions import = {shapes, options->shapes.count};
  if (!description_read(path, &import, tool->arena, tool->diag, out_graph)) return false;
  if (!add_hooks(tool, *out_graph, &options->hooks)) return false;
  if (options->weights == NULL) return true;
  TensorList tensors;
  return safetensors_read(options->weights, tool->arena, tool->diag, &tensors) &&
         weights_bind(*out_graph, &tensors, options->weights, true, tool->diag);
}

/* Where compiled kernels are kept, as cli/common.h says. Relative paths in XDG_CACHE_HOME are to be ignored. */
static const char *cache_folder(Arena *arena) {
  const char *cache = getenv("KILN_CACHE"), *folder = getenv("KILN_CACHE_DIR");
  if (cache != NULL && strcmp(cache, "off") == 0) return NULL;
  if (folder != NULL && folder[0] != '\0') return folder;
  const char *user = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  if (user != NULL && user[0] == '/') return arena_format(arena, "%s/kiln", user);
  return home != NULL && home[0] == '/' ? arena_format(arena, "%s/.cache/kiln", home) : NULL;
}

const char *tuning_default(Arena *arena) {
  const char *folder = cache_folder(arena);
  return folder != NULL ? arena_format(arena, "%s/tuning.jsonl", folder) : NULL;
}

static bool tuning_options(Tool *tool, const ModelOptions *options, kiln_compile_options *result) {
  result->tuning = options->tuning;
  result->locked = options->locked;
  if (options->tuning != NULL && strcmp(options->tuning, "default") == 0) result->tuning = tuning_default(tool->arena);
  if (options->tuning != NULL && result->tuning == NULL) {
    tool_usage_error(tool, "--tuning default: there is no cache folder");
    return false;
  }
  if (options->locked && options->tuning == NULL) {
    tool_usage_error(tool, "--locked needs --tuning FILE");
    return false;
  }
  return true;
}

static bool device_options(Tool *tool, const ModelOptions *options, kiln_compile_options *result) {
  int32_t number;
  MathMode math;
  const char *device = options->device != NULL ? options->device : "cpu";
  const bool gpu = cuda_device_parse(device, &number);
  if (!gpu && strcmp(device, "cpu") != 0) {
    tool_usage_error(tool, "--device: expected cpu, cuda or cuda:N, found '%s'", device);
    return false;
  }
  result->device = device;
  result->cuda_arch = options->arch;
  if (options->math == NULL) return true;
  if (!math_mode_parse(options->math, &math)) {
    tool_usage_error(tool, "--math: expected fp32, 3xtf32, tf32, bf16 or fp16, found '%s'", options->math);
    return false;
  }
  if (!gpu) {
    tool_usage_error(tool, "--math is for GPUs: give --device cuda too");
    return false;
  }
  static const kiln_math modes[MATH_COUNT] = {[MATH_FP32] = KILN_MATH_FP32, [MATH_3XTF32] = KILN_MATH_3XTF32,
                                              [MATH_TF32] = KILN_MATH_TF32, [MATH_BF16] = KILN_MATH_BF16,
                                              [MATH_FP16] = KILN_MATH_FP16};
  result->math = modes[math];
  return true;
}

bool compile_options(Tool *tool, const ModelOptions *options, kiln_compile_options *out_options) {
  kiln_compile_options result = {.cpu = options->cpu, .triple = options->triple, .disabled_passes = options->disable};
  result.threads = (uint32_t)options->threads;
  result.cache_dir = cache_folder(tool->arena);
  if (!device_options(tool, options, &result) || !tuning_options(tool, options, &result)) return false;
  if (options->precision != NULL) {
    if (strcmp(options->precision, "strict") == 0)
      result.precision = KILN_PRECISION_STRICT;
    else if (strcmp(options->precision, "fast") == 0)
      result.precision = KILN_PRECISION_FAST;
    else if (strcmp(options->precision, "default") != 0) {
      tool_usage_error(tool, "--precision: expected strict, default or fast, found '%s'", options->precision);
      return false;
    }
  }
  for (const char *at = options->batch, *end = at != NULL ? at + strlen(at) : NULL; at != NULL && at <= end;) {
    size_t length = strcspn(at, ",");
    int64_t batch;
    if (!parse_int(arena_string_n(tool->arena, at, length), &batch) || batch < 1 || batch > 65536) {
      tool_usage_error(tool, "--batch: expected batch sizes from 1 to 65536 such as 1,16, found '%s'", options->batch);
      return false;
    }
    if (batch > result.max_batch) result.max_batch = batch;
    if (batch < result.min_batch || result.min_batch == 0) result.min_batch = batch;
    at += length + 1;
  }
  *out_options = result;
  return true;
}

typedef struct DumpSink {
  Tool *tool;
  const char *folder;
} DumpSink;

static bool dump_write(void *context, const char *stage, const char *pass, int number, const char *kind,
                       const char *text) {
  DumpSink *sink = context;
  if (sink->folder == NULL) {
    printf("# %s %s\n%s", stage, pass, text);
    return true;
  }
  const char *path = arena_format(sink->tool->arena, "%s/%02d-%s-%s.%s", sink->folder, number, stage, pass, kind);
  FilePiece piece = {text, strlen(text)};
  return file_write(path, &piece, 1, sink->tool->diag);
}

bool model_plan(Tool *tool, const Graph *graph, const ModelOptions *options, const kiln_compile_options *compile,
                Graph **out_graph, Plan **out_plan) {
  DumpSink sink = {tool, options->dump_dir};
  const char *dump = options->dump;
  if (options->dump_dir != NULL) {
    if (mkdir(options->dump_dir, 0777) != 0 && access(options->dump_dir, W_OK) != 0) {
      diag_error(tool->diag, (Location){options->dump_dir, 0, 0}, "cannot be made or written to");
      return false;
    }
    if (dump == NULL) dump = "after:all";
  }
  PipelineOptions pipeline = {.dump = dump,
                              .stop_after = options->stop_after,
                              .verify = options->verify,
                              .dot = options->dot,
                              .sink = dump_write,
                              .context = &sink};
  BuildOptions build = {.compile = compile, .pipeline = &pipeline, .train = options->train};
  if (!build_plan(graph, &build, tool->arena, tool->diag, out_graph, out_plan)) return false;
  if (*out_plan == NULL) {
    Text text;
    text_init(&text, tool->arena);
    if (options->dot)
      graph_print_dot(&text, *out_graph);
    else
      graph_print(&text, *out_graph);
    fputs(text.data, stdout);
  }
  return true;
}

void table_print(FILE *stream, Arena *arena, const char *const *cells, size_t rows, size_t columns, const char *align) {
  int *width = arena_array(arena, columns, int);
  for (size_t i = 0; i < rows * columns; i++) {
    int length = (int)strlen(cells[i]);
    if (length > width[i % columns]) width[i % columns] = length;
  }
  for (size_t row = 0; row < rows; row++) {
    for (size_t column = 0; column < columns; column++) {
      const char *cell = cells[row * columns + column];
      const char *gap = column == 0 ? "" : "  ";
      if (align[column] == '>')
        fprintf(stream, "%s%*s", gap, width[column], cell);
      else if (column + 1 == columns)
        fprintf(stream, "%s%s", gap, cell);
      else
        fprintf(stream, "%s%-*s", gap, width[column], cell);
    }
    fputc('\n', stream);
  }
}
