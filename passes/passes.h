/* The passes, each in its own file, and the pipeline that runs them in order. A pass changes the graph in place and
 * returns false after reporting to `diag`. The pipeline, not the pass, verifies and dumps. */
#ifndef KILN_PASSES_PASSES_H
#define KILN_PASSES_PASSES_H

#include "graph.h"
#include "plan.h"
#include "target.h"

/* How much numerical error an algorithm may add; see docs/precision in the README. */
typedef enum Precision { PRECISION_STRICT, PRECISION_DEFAULT, PRECISION_FAST } Precision;

typedef struct PassOptions {
  const Target *target;
  Precision precision;
  bool training;      /* keep training-mode behaviour; inference otherwise */
  const char *disabled; /* comma-separated names of optional passes to skip: "fuse,fold_bn"; or NULL */
  Arena *scratch;     /* reset before every pass */
  const Tuning *tuning; /* measured times, or NULL */
  const Layout *image_layout; /* for tests: of every image that can lie so on a processor; NULL: as costs say */
} PassOptions;

/* One line per pass, in order: PASS(name, optional). Optional ones may be disabled without changing results. */
#define PASSES(PASS)    \
  PASS(infer, false)    \
  PASS(hooks, false)    \
  PASS(train, false)    \
  PASS(autodiff, false) \
  PASS(lower, false)    \
  PASS(simplify, true)  \
  PASS(fold_bn, true)   \
  PASS(expand_bn, false) \
  PASS(recompute, false) \
  PASS(backward, true)  \
  PASS(fuse, true)      \
  PASS(batch_blocks, true) \
  PASS(layout, false)   \
  PASS(select, false)   \
  PASS(pools, true)     \
  PASS(reductions, true) \
  PASS(strides, false)  \
  PASS(stretches, true) \
  PASS(memory, false)   \
  PASS(chunk, true)

#define PASS(name, optional) bool pass_##name(Graph *graph, const PassOptions *options, Diag *diag);
PASSES(PASS)
#undef PASS

/* Builds the plan from a graph after `memory`. The plan shares the graph's arena. */
bool plan_build(Graph *graph, const PassOptions *options, Diag *diag, Plan **out_plan);

/* What the driver does around passes. */
typedef struct PipelineOptions {
  const char *dump;       /* "before:fuse,after:all" or NULL */
  const char *stop_after; /* a pass, or NULL */
  bool verify;            /* graph_verify after every pass */
  bool dot;               /* dump Graphviz besides text */
  /* Receives each dump: `stage` is "before" or "after", `kind` "ir" or "dot". False stops with an error. */
  bool (*sink)(void *context, const char *stage, const char *pass, int number, const char *kind, const char *text);
  void *context;
} PipelineOptions;

/* Runs the passes and, unless stopped early, builds the plan (else *out_plan is NULL). Unknown names in options
 * are reported. */
bool pipeline_run(Graph *graph, const PassOptions *options, const PipelineOptions *pipeline, Diag *diag,
                  Plan **out_plan);
/* Runs a comma-separated list of passes; for golden tests. */
bool pipeline_run_list(Graph *graph, const char *passes, const PassOptions *options, Diag *diag);
/* Names in order, for help texts. */
const char *const *pass_names(size_t *out_count);

/* Decisions of all nodes as text or JSON, for `kiln explain`. */
void explain_print(Text *text, const Graph *graph);
void explain_print_json(Text *text, const Graph *graph);

#endif
