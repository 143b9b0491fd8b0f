/* Shared by the shape rules ir/infer_*.c. Every rule calls infer_begin() first, makes its own checks, and ends
 * with infer_finish(). Checks report with node_error() and return false; dimensions that reached a rule through
 * infer_finish() are positive (or DIM_BATCH in front), so that sums of a few of them cannot wrap. */
#ifndef KILN_IR_INFER_H
#define KILN_IR_INFER_H

#include "graph.h"

enum { ATTRIBUTE_LIMIT = 65535 }; /* largest kernel, stride, padding, dilation, output size */

/* No value may have more elements per image. */
#define ELEMENTS_LIMIT (INT64_C(1) << 40)

/* A shape for a message, with brackets: "[N,64,56,56]". Use .text within one expression. */
typedef struct ShapeText {
  char text[SHAPE_MAX_RANK * 24];
} ShapeText;
ShapeText shape_text(const Shape *shape);
/* One dimension: "64" or "N". */
ShapeText dim_text(int64_t dim);

/* Number of inputs, range of every attribute the op has, size of every input. */
bool infer_begin(const Node *node, Diag *diag);
/* Sets the node's dtype and shape after checking that the value is not empty, not too large, and has the batch
 * in front. */
bool infer_finish(Node *node, DataType dtype, Shape shape, Diag *diag);

/* The op's input `index` holds values of that type; `what` names it: "weight". */
bool infer_expect_type(const Node *node, int32_t index, const char *what, DataType dtype, Diag *diag);
bool infer_expect_rank(const Node *node, int32_t index, const char *what, int32_t rank, Diag *diag);
/* Input `index` is a vector with an element per channel: "bias expects 64 values, found [32]". */
bool infer_expect_vector(const Node *node, int32_t index, const char *what, int64_t count, Diag *diag);
/* An attribute that numbers one of `rank` dimensions, from the end when negative. */
bool infer_dim(const Node *node, const char *what, int64_t dim, int32_t rank, Diag *diag, int32_t *out_dim);
/* Broadcast as in NumPy, from the last dimension; N goes with N and 1 only. False when they do not fit. */
bool infer_broadcast(const Shape *a, const Shape *b, Shape *out_shape);

/* One axis of a sliding window. */
typedef struct Window {
  const char *axis; /* "height" */
  int64_t size;     /* of the input */
  int64_t kernel, stride, dilation, padding_before, padding_after;
} Window;
/* How many places the window has: PyTorch's rule, by which with `ceil_mode` the last window must start inside the
 * input or its padding before. */
bool infer_window(const Node *node, const Window *window, bool ceil_mode, Diag *diag, int64_t *out_size);
/* Reflection needs more elements than it repeats. `size` is that of the input along `axis`. */
bool infer_reflection(const Node *node, const char *axis, int64_t size, int64_t before, int64_t after, Diag *diag);

#endif
