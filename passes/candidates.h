/* The ways that `select` could compute a kernel, and which one is taken: the fastest that was measured, or the cost
 * model's. */
#ifndef KILN_PASSES_CANDIDATES_H
#define KILN_PASSES_CANDIDATES_H

#include "passes.h"

enum { CANDIDATES_MAX = 24 };

typedef struct Candidate {
  const char *name; /* unique in the list, and the same in every run: tables of times use it */
  KernelChoice choice;
  int32_t plan; /* of the pass that made it */
} Candidate;

typedef struct CandidateList {
  Candidate items[CANDIDATES_MAX]; /* items[0] is the cost model's choice */
  size_t count;
} CandidateList;

/* Leaves out names that are there already, and what no longer fits. */
void candidates_add(CandidateList *list, const char *name, KernelChoice choice, int32_t plan);
/* Makes a candidate the cost model's choice. */
void candidates_prefer(CandidateList *list, size_t index);
/* Decides by the measured times that the options hold, and notes on the node what was offered. A candidate replaces the
 * model's choice only when it takes less than 98 % of its time: smaller differences are noise. A kernel without times,
 * when that is an error, is reported, and the model's choice is taken: the pass goes on and fails at its end, so that
 * one run names all of them. Call it before the node's choice, layout or inputs change. Returns an index of the list.
 */
size_t candidates_take(Graph *graph, Node *node, const CandidateList *list, const PassOptions *options, Diag *diag);
/* Adds the ways of direct convolution, the node's choice first. */
void candidates_direct(CandidateList *list, Graph *graph, const Node *node);
/* The node's largest batch. */
int64_t largest_batch(const Graph *graph, const Node *node);

#endif
