/* What is done for hooks with the action `stats`: of activations by the pass `hooks`, of gradients by `autodiff`. */
#ifndef KILN_PASSES_HOOK_STATS_H
#define KILN_PASSES_HOOK_STATS_H

#include "graph.h"

/* The statistics of a value, to be placed behind it. */
typedef struct HookStatsNodes {
  Node *partial, *final;
  struct HookStatsNodes *next;
} HookStatsNodes;

typedef struct HookStatsState {
  Graph *graph;
  Arena *scratch;
  Diag *diag;
  const Node **partials;          /* by value name: its statistics; NULL: none yet */
  HookStatsNodes **first, **last; /* by id of the value */
  size_t count;
} HookStatsState;

/* Before any hook adds nodes. */
void hook_stats_init(HookStatsState *state, Graph *graph, Arena *scratch, Diag *diag);
/* Makes the nodes for `value`, which is or belongs to value name number `index`. *out_final is the result, NULL when
 * the value has statistics already. False after a report. */
bool hook_stats_add(HookStatsState *state, size_t index, Node *value, const Hook *hook, Node **out_final);
/* The same for an activation, with its output. */
bool hook_stats_add_activation(HookStatsState *state, size_t index, const Hook *hook);
/* Puts the new nodes into the graph's array. */
void hook_stats_place(HookStatsState *state);

/* After differentiation: gives each gradient that a hook asked for what the hooks on it want, its statistics, itself or
 * both. */
bool hook_gradient_stats(Graph *graph, Arena *scratch, Diag *diag);

#endif
