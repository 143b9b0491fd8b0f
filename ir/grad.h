/* Reverse-mode differentiation of a graph.
 *
 * Every op has a rule grad_X, named by ir/ops.def, that builds the gradients of its inputs out of ordinary nodes. Rules
 * follow PyTorch where a derivative does not exist: relu' and abs' are 0 at 0, leaky_relu' is the slope there, clamp'
 * is 1 on both bounds, and of equal maxima the first one in row-major order takes all.
 *
 * A rule looks like this: it builds what gradient_needed() asks for, and ends with `return !context->failed`. The
 * builders below pass NULL on, so that nothing needs to be checked in between. */
#ifndef KILN_IR_GRAD_H
#define KILN_IR_GRAD_H

#include "graph.h"

typedef struct GradContext {
  Graph *graph;
  Diag *diag;
  const bool *needed; /* by id: a gradient is asked for with respect to this node or one before it */
  const Node *origin; /* the node whose rule runs */
  bool failed;        /* something was reported */
  /* Sees, and may exchange, the gradients that a rule has built, before they are used. NULL but in tests. */
  void (*inspect)(void *observer, struct GradContext *context, const Node *node, Node **gradients);
  void *observer;
} GradContext;

/* Appends nodes that compute the gradients of `of`, weighted by `seed` (of's shape), with respect to `targets`; of
 * every use of a target the gradients are added up. Requires shapes and no epilogues. Only what is needed is built. A
 * target that does not influence `of` is reported: PyTorch does so too. Integer values pass no gradient on. `inspect`:
 * as above, or NULL. */
bool graph_differentiate(Graph *graph, Node *of, Node *seed, Node *const *targets, size_t count,
                         void (*inspect)(void *observer, GradContext *context, const Node *node, Node **gradients),
                         void *observer, Arena *scratch, Diag *diag, Node **out_gradients);

/* --- for rules ------------------------------------------------------------------------------------- */
bool gradient_needed(const GradContext *context, const Node *node, int32_t input);
/* There is none: reports `reason`, a sentence. Always false. */
bool gradient_refuse(GradContext *context, const Node *node, const char *reason);

/* A node at the location of the rule's; NULL when one of the inputs is, or after a report. `attrs` NULL: the defaults.
 */
Node *gradient_make(GradContext *context, OpCode op, const Attrs *attrs, Node *const *inputs, int32_t input_count);
Node *gradient_unary(GradContext *context, OpCode op, Node *a);
Node *gradient_binary(GradContext *context, OpCode op, Node *a, Node *b);
/* The value itself when it has that shape already. */
Node *gradient_reshape(GradContext *context, Node *value, const Shape *shape);
/* Elements [start, start + length) of a dimension; the value itself when these are all. */
Node *gradient_slice(GradContext *context, Node *value, int32_t dim, int64_t start, int64_t length);
/* Adds up the dimensions that are set, which disappear. */
Node *gradient_sum(GradContext *context, Node *value, const bool *dims);
/* Adds up what a broadcast from `shape` to the value's has repeated. */
Node *gradient_unbroadcast(GradContext *context, Node *value, const Shape *shape);
/* Repeats a value up to `shape`. `op` is OP_EXPAND, or OP_MEAN_GRAD, which divides by how often. */
Node *gradient_expand(GradContext *context, OpCode op, Node *value, const Shape *shape);
/* [C] as [C,1,…], which broadcasts over dimension 1 of values of that rank. */
Node *gradient_per_channel(GradContext *context, Node *vector, int32_t rank);
/* All dimensions but the channels, 1. */
Node *gradient_sum_channels(GradContext *context, Node *value);

#endif
