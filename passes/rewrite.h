/* What the passes share: rebuilding the node array in one sweep, and facts about phases.
 *
 * A pass visits the old nodes in order; for each it appends new nodes and, unless dropped, the node itself. Uses of
 * replaced nodes are redirected when a node is visited, so a pass always sees up-to-date inputs. */
#ifndef KILN_PASSES_REWRITE_H
#define KILN_PASSES_REWRITE_H

#include "graph.h"

typedef struct Rewrite {
  Graph *graph;
  Arena *scratch;
  Diag *diag;
  Node **nodes; /* the new order */
  size_t count, capacity;
  Node **replacement; /* by id; NULL: itself */
  size_t replacement_count;
} Rewrite;

void rewrite_init(Rewrite *rewrite, Graph *graph, Arena *scratch, Diag *diag);
void rewrite_append(Rewrite *rewrite, Node *node);
/* What stands for `node` now. */
Node *rewrite_resolve(const Rewrite *rewrite, Node *node);
/* Redirects the inputs of a node to what stands for them now. */
void rewrite_inputs(const Rewrite *rewrite, Node *node);
/* Later uses of `from` become `to`. `from` must not be appended. */
void rewrite_replace(Rewrite *rewrite, Node *from, Node *to);
/* Creates, infers and appends a node at the location of `origin`; `attrs` NULL: the defaults. NULL after a report. */
Node *rewrite_make(Rewrite *rewrite, OpCode op, const Attrs *attrs, Node *const *inputs, int32_t input_count,
                   const Node *origin);
/* reshape to `shape`, or the input itself when it has that shape already. */
Node *rewrite_reshape(Rewrite *rewrite, Node *input, const Shape *shape, const Node *origin);
/* Installs the new order in the graph. */
void rewrite_finish(Rewrite *rewrite);

/* Turns a node into another op in place, keeping id, name, layer and place: no epilogue, `inputs` copied. */
void node_become(Graph *graph, Node *node, OpCode op, const Attrs *attrs, Node *const *inputs, int32_t input_count);
/* The decisions about `from`, which `node` takes the place of, come before the node's own. */
void node_inherit_decisions(Node *node, const Node *from);
/* Which nodes the prepare phase computes, by id: those that depend on parameters only, except copies made for the
 * graph's outputs, which have to be written by every run. Sources are false. */
bool *mark_prepare_phase(const Graph *graph, Arena *arena);
/* Whether node is an output of the graph, by id. */
bool *mark_outputs(const Graph *graph, Arena *arena);
/* The same, also for values that statistics are taken of. */
bool *mark_hooked(const Graph *graph, Arena *arena);

#endif
