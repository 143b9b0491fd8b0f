/* What the pass `hooks` does for hooks with the action `stats`. */
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
/* Makes nodes and an output for value name number `index`, unless it has them; false after a report. */
bool hook_stats_add(HookStatsState *state, size_t index, const Hook *hook);
/* Puts the new nodes into the graph's array. */
void hook_stats_place(HookStatsState *state);

#endif
