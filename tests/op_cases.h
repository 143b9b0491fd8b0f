/* The table of op cases: one line per case, every op in odd sizes. Each executor runs the whole table against the
 * interpreter. */
#ifndef KILN_TESTS_OP_CASES_H
#define KILN_TESTS_OP_CASES_H

#include "graph.h"

typedef struct OpCase {
  const char *op;
  /* "x:f32[N,3,7,9] | weight:f32[5,3,3,3]": graph inputs, then after the bar parameters. Names tell what values are
   * allowed: `positive…`, `variance`, `target` (I64: class indices below x's second dimension; F32: 0 to 1),
   * `theta` (a mild affine map). */
  const char *operands;
  const char *attributes; /* as in the IR's text: "stride=[2,1], ceil_mode=true" */
  bool exact;             /* small integers give exactly representable results: no tolerance */
} OpCase;

size_t op_case_count(void);
const OpCase *op_case(size_t index);
/* "conv2d x:… | … {stride=…}", for messages. */
const char *op_case_label(const OpCase *op_case, Arena *arena);
/* A graph in the IR's text form; its one op and output are called "y", a batch may be up to `max_batch`. */
const char *op_case_text(const OpCase *op_case, int64_t max_batch, Arena *arena);
/* The graph, inferred; NULL after reporting. */
Graph *op_case_graph(const OpCase *op_case, int64_t max_batch, Arena *arena, Diag *diag);

typedef enum OpCaseFill {
  OP_CASE_INTEGERS, /* −3 … 3 */
  OP_CASE_FLOATS    /* uniform in [−1, 1) */
} OpCaseFill;

/* Operands for such a graph: the same seed gives the same values. */
void op_case_fill(const Graph *graph, int64_t batch, OpCaseFill fill, uint64_t seed, Arena *arena,
                  TensorList *out_inputs, TensorList *out_parameters);

#endif
