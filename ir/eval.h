/* The interpreter: runs a graph in double precision, one plain loop nest per op, with no optimisation whatever.
 * It is the oracle of the tests and of `kiln verify`. It works on every graph, optimised or not: layouts do not
 * matter to it, `convert` is the identity, epilogues are applied after the node's own op. */
#ifndef KILN_IR_EVAL_H
#define KILN_IR_EVAL_H

#include "graph.h"

/* A value: dense, row-major, every dtype as double. */
typedef struct EvalTensor {
  Shape shape; /* concrete */
  double *data;
} EvalTensor;

typedef struct EvalResult {
  EvalTensor *values; /* indexed by node id; data is NULL for nodes not in the graph */
  size_t count;
  int64_t batch;
} EvalResult;

/* `inputs` holds a tensor per graph input by name (any dtype); the batch is read from them (1 without batched
 * inputs). Parameters come from `parameters` by name when it is not NULL and has them, else from
 * Parameter.value; running out of either is reported. */
bool graph_eval(const Graph *graph, const TensorList *inputs, const TensorList *parameters, Arena *arena, Diag *diag,
                EvalResult *out_result);

/* Row-major strides of a concrete shape. */
void eval_strides(const Shape *shape, int64_t out_strides[SHAPE_MAX_RANK]);
/* The builder that computes with doubles. */
const ExprBuilder *eval_expr_builder(void);

#endif
