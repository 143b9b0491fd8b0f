#include "candidates.h"

#include <math.h>
#include <string.h>

static const double least_gain = 0.98; /* of the model's choice's time */

void candidates_add(CandidateList *list, const char *name, KernelChoice choice, int32_t plan) {
  if (list->count == CANDIDATES_MAX) return;
  for (size_t i = 0; i < list->count; i++)
    if (strcmp(list->items[i].name, name) == 0) return;
  list->items[list->count++] = (Candidate){name, choice, plan};
}

void candidates_prefer(CandidateList *list, size_t index) {
  const Candidate preferred = list->items[index];
  memmove(&list->items[1], &list->items[0], index * sizeof preferred);
  list->items[0] = preferred;
}

int64_t largest_batch(const Graph *graph, const Node *node) {
  return node->shape.rank > 0 && node->shape.dims[0] > 0 ? node->shape.dims[0]
         : graph->max_batch > 1                          ? graph->max_batch
                                                         : 1;
}

static void add_value(Text *text, const Node *node) {
  text_format(text, " %s[", data_type_name(node->dtype));
  shape_print(text, &node->shape);
  text_add(text, "] ");
  layout_print(text, node->layout);
}

/* "conv2d padding=[1,1,1,1] of f32[N,64,56,56] nchw16c, f32[64,64,3,3] oihw32o to f32[N,64,56,56] nchw16c, batch 1,
 * add, relu" */
static const char *signature_of(const Graph *graph, const Node *node, const PassOptions *options) {
  const OpInfo *info = op_info(node->op);
  Text text;
  text_init(&text, graph->arena);
  text_format(&text, "%s ", info->name);
  const size_t before = text.size;
  attrs_print(&text, &node->attrs, info->attrs);
  if (text.size == before) text.data[--text.size] = '\0'; /* no attributes: no second space */
  text_add(&text, " of");
  for (int32_t i = 0; i < node->op_input_count; i++) {
    if (i > 0) text_add(&text, ",");
    add_value(&text, node->inputs[i]);
  }
  text_add(&text, " to");
  add_value(&text, node);
  text_format(&text, ", batch %lld", (long long)largest_batch(graph, node));
  for (int32_t s = 0; s < node->epilogue_count; s++) {
    const EpilogueStep *step = &node->epilogue[s];
    text_format(&text, ", %s", op_info(step->op)->name);
    /* a value as large as the result is read from memory, anything smaller hardly counts */
    if (step->operand >= 0 && !shape_equal(&node->inputs[step->operand]->shape, &node->shape))
      text_add(&text, " small");
  }
  if (options->target != NULL && options->target->arch > 0)
    text_format(&text, ", %s", math_mode_name(node->choice.math));
  return text.data;
}

static size_t fastest(const CandidateList *list, const TuningKernel *times) {
  double least = tuning_time(times, list->items[0].name) * least_gain;
  size_t best = 0;
  for (size_t i = 1; i < list->count; i++) {
    const double time = tuning_time(times, list->items[i].name);
    if (isnan(time) || time >= least) continue;
    best = i;
    least = time;
  }
  return best;
}

/* Without a time of the model's choice there is nothing to compare with: the fastest of the others is taken. */
static size_t fastest_of_all(const CandidateList *list, const TuningKernel *times) {
  if (!isnan(tuning_time(times, list->items[0].name))) return fastest(list, times);
  size_t best = 0;
  for (size_t i = 1; i < list->count; i++) {
    const double time = tuning_time(times, list->items[i].name);
    if (isnan(time)) continue;
    if (best == 0 || time < tuning_time(times, list->items[best].name)) best = i;
  }
  return best;
}

static bool measured(const CandidateList *list, const TuningKernel *times) {
  for (size_t i = 0; times != NULL && i < list->count; i++)
    if (!isnan(tuning_time(times, list->items[i].name))) return true;
  return false;
}

static void decide(Graph *graph, Node *node, const CandidateList *list, const TuningKernel *times, size_t taken) {
  node_decide(graph, node, "select", arena_format(graph->arena, "measured: %s", list->items[taken].name),
              taken > 0 ? arena_format(graph->arena, "the model's choice, %s", list->items[0].name) : NULL,
              taken > 0 ? NULL : "The model's choice is the fastest.");
  Decision *decision = node->decisions;
  while (decision->next) decision = decision->next;
  decision->cost = tuning_time(times, list->items[taken].name);
  decision->rejected_cost = tuning_time(times, list->items[0].name);
  decision->unit = "us";
}

static void note_offers(Graph *graph, Node *node, const CandidateList *list, const char *signature, size_t taken) {
  KernelOffers *offers = arena_new(graph->arena, KernelOffers);
  const char **names = arena_array(graph->arena, list->count, const char *);
  for (size_t i = 0; i < list->count; i++) names[i] = list->items[i].name;
  *offers = (KernelOffers){signature, names, list->count, taken};
  node->offers = offers;
}

/* Kernels that are alike are measured together, and so are named once. */
static void report_missing(const Graph *graph, const Node *node, const char *signature, const Tuning *tuning,
                           Diag *diag) {
  for (size_t i = 0; i < graph->node_count && graph->nodes[i] != node; i++) {
    const KernelOffers *offers = graph->nodes[i]->offers;
    if (offers != NULL && strcmp(offers->signature, signature) == 0) return;
  }
  diag_error(diag, node->location,
             "'%s' (%s) was not measured: %s has no times of \"%s\"; 'kiln tune' with the same options measures it",
             node->name != NULL ? node->name : "a value of a pass", op_info(node->op)->name,
             tuning->file != NULL ? tuning->file : "the table", signature);
}

size_t candidates_take(Graph *graph, Node *node, const CandidateList *list, const PassOptions *options, Diag *diag) {
  const Tuning *tuning = options->tuning;
  size_t taken = 0;
  if (list->count < 2) return 0;
  const char *signature = signature_of(graph, node, options);
  const TuningKernel *times = tuning != NULL ? tuning_find(tuning, signature) : NULL;
  if (tuning != NULL && tuning->forced > 0) {
    if (tuning->forced < list->count) taken = tuning->forced;
  } else if (measured(list, times)) {
    taken = fastest_of_all(list, times);
    decide(graph, node, list, times, taken);
  } else if (tuning != NULL && tuning->locked) {
    report_missing(graph, node, signature, tuning, diag);
  }
  note_offers(graph, node, list, signature, taken);
  return taken;
}
