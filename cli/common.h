/* What the verbs share: arenas, messages, opening models, tables. */
#ifndef KILN_CLI_COMMON_H
#define KILN_CLI_COMMON_H

#include <stdio.h>

#include "options.h"
#include "session/session.h"

/* A verb's memory and messages. */
typedef struct Tool {
  Arena *arena;
  Diag *diag;
  bool wrong_usage; /* the command line is malformed: exit with EXIT_USAGE */
} Tool;

/* Runs a verb's body with an arena and diagnostics, prints all messages to standard error (coloured on a terminal
 * unless NO_COLOR is set) and frees everything. Returns the body's exit code, or EXIT_FAILED when there were errors or
 * memory ran out. */
int tool_run(int (*body)(Tool *tool, void *request), void *request);
/* Reports a malformed option; the body then returns EXIT_FAILED as for other errors. */
void tool_usage_error(Tool *tool, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints the warnings so far and forgets them, before work that takes long. Does nothing when there are errors. */
void tool_print_warnings(Tool *tool);
/* Reports what a function of kiln.h said: a message for each line, which may begin with "FILE: error: ". */
void tool_library_error(Tool *tool, const kiln_error *error);
/* Flushes standard output at the end of the program. A reader that went away early is no failure; a full disk is. */
int output_finish(int code);

/* Options that concern the model and how it is compiled. */
typedef struct ModelOptions {
  const char *weights;
  OptionList shapes; /* "image=1x3x352x352" */
  const char *batch; /* "16" or "1,16" */
  const char *precision, *device, *math, *arch, *cpu, *triple, *disable;
  int64_t threads;
  const char *affinity;
  const char *tuning;
  bool locked;
  const char *dump, *stop_after, *dump_dir;
  bool dot, verify;
  OptionList hooks;
  const TrainRequest *train; /* plan a training step; NULL: inference */
} ModelOptions;

/* Rows for the option tables; each list ends in a comma. */
#define SHAPE_OPTION(o) \
  {"shape", 0, OPTION_LIST, &(o).shapes, "NAME=DIMS", "shape of an input, e.g. image=1x3x352x352 (N: any batch)", 0, 0},
#define WEIGHTS_OPTION(o) {"weights", 'w', OPTION_TEXT, &(o).weights, "FILE", "parameters, a safetensors file", 0, 0},
#define COMPILE_OPTIONS(o)                                                                                               \
  {"batch", 'b', OPTION_TEXT, &(o).batch, "N[,N]", "batch sizes to compile for: from the smallest that matters to the maximum", 0, 0},      \
      {"precision", 0, OPTION_TEXT, &(o).precision, "MODE", "strict, default or fast: rounding error that may be added", \
       0,           0},                                                                                                  \
      {"cpu", 0, OPTION_TEXT, &(o).cpu, "LEVEL", "native, x86-64-v2, x86-64-v3, x86-64-v4 or aarch64", 0, 0},            \
      {"device", 'd', OPTION_TEXT, &(o).device, "DEVICE", "cpu (default), cuda or cuda:N, an NVIDIA GPU", 0, 0},         \
      {"math", 0, OPTION_TEXT, &(o).math, "MODE", "on GPUs: fp32, 3xtf32, tf32, bf16 or fp16", 0, 0},                    \
      {"threads", 't', OPTION_INT, &(o).threads, "T", "threads (default: 1)", 1, 64},                                    \
      {"disable", 0, OPTION_TEXT, &(o).disable, "PASSES", "optional passes to leave out, e.g. fuse,fold_bn", 0, 0}, \
      {"tuning", 0, OPTION_TEXT, &(o).tuning, "FILE",                                                                    \
       "times of kernels from kiln tune, which decide how they are computed; default: the one in the cache folder", 0,   \
       0},                                                                                                               \
      {"locked", 0, OPTION_FLAG, &(o).locked, NULL, "with --tuning: a kernel without times is an error", 0, 0},
#define DUMP_OPTIONS(o)                                                                                        \
  {"dump", 0, OPTION_TEXT, &(o).dump, "WHEN", "print the IR, e.g. before:fuse,after:all", 0, 0},               \
      {"dump-dir", 0, OPTION_TEXT, &(o).dump_dir, "DIR", "write dumps to files NN-stage-pass.ir there", 0, 0}, \
      {"dot", 0, OPTION_FLAG, &(o).dot, NULL, "also dump Graphviz (.dot)", 0, 0},                              \
      {"stop-after", 0, OPTION_TEXT, &(o).stop_after, "PASS", "stop after this pass and print the IR", 0, 0},  \
      {"verify-ir", 0, OPTION_FLAG, &(o).verify, NULL, "check the IR after every pass", 0, 0},

/* Reads the description with the shapes given, adds hooks, binds the weights file when there is one. */
bool model_open(Tool *tool, const char *path, const ModelOptions *options, Graph **out_graph);
/* Fills compile options: batch maximum, precision, threads, cache. Checks --device. Compiled kernels are kept in
 * $KILN_CACHE_DIR, else $XDG_CACHE_HOME/kiln, else $HOME/.cache/kiln, unless KILN_CACHE is "off". */
bool compile_options(Tool *tool, const ModelOptions *options, kiln_compile_options *out_options);
/* Where `kiln tune` keeps times when it is not told: in the cache folder; NULL when there is none. */
const char *tuning_default(Arena *arena);
/* Plan with the dump options; *out_plan is NULL after --stop-after (the IR has been printed). */
bool model_plan(Tool *tool, const Graph *graph, const ModelOptions *options, const kiln_compile_options *compile,
                Graph **out_graph, Plan **out_plan);
/* "image=1x3x352x352" or "image=N,3,352,352". */
bool shape_parse(Tool *tool, const char *text, ShapeOverride *out_shape);
/* Splits "NAME=REST"; reports otherwise. */
bool name_value(Tool *tool, const char *option, const char *text, const char **out_name, const char **out_value);

bool ends_with(const char *text, const char *ending);
bool is_library(const char *path);
/* 21,831,599 */
const char *grouped(Arena *arena, int64_t number);
bool color_enabled(FILE *stream);
double seconds_now(void);

/* A table with aligned columns. Cells are added row by row; the first row is the head. Columns named in `right` (a
 * string of '<' and '>' per column) are right-aligned. */
void table_print(FILE *stream, Arena *arena, const char *const *cells, size_t rows, size_t columns, const char *align);

/* Verbs. */
extern const Verb verb_augment, verb_bench, verb_check, verb_compile, verb_devices, verb_explain, verb_grad, verb_heatmap, verb_init,
    verb_inspect, verb_lr_find, verb_ops, verb_run, verb_stats, verb_summary, verb_train, verb_tune,
    verb_verify;

#endif
