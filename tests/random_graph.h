/* Random models with random weights, for tests that compare two ways of computing one. */
#ifndef KILN_TESTS_RANDOM_GRAPH_H
#define KILN_TESTS_RANDOM_GRAPH_H

#include "graph.h"

/* A valid graph of images, vectors and matrices with one to three outputs; the same seed gives the same graph. Its
 * parameters have values. *out_inputs fits its inputs, with a batch of 2. Shapes are not inferred. */
Graph *random_graph(uint64_t seed, Arena *arena, TensorList *out_inputs);
/* conv2d with parameters `name`.weight and .bias, padding (kernel - 1) / 2. The input's shape is known. */
Node *random_conv(Graph *graph, Node *input, int64_t channels, int64_t kernel, int64_t stride, const char *name);

#endif
