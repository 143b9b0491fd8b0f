/* What the files of the pass `layout` share: layout.c walks over the graph and lays out inference, layout_training.c
 * training steps. */
#ifndef KILN_PASSES_LAYOUT_H
#define KILN_PASSES_LAYOUT_H

#include "layout_choice.h"
#include "rewrite.h"

/* A form of a value that was made for a consumer. */
typedef struct Form {
  Layout layout;
  int32_t rank;
  Node *node;
  struct Form *next;
} Form;

typedef struct LayoutState {
  Rewrite rewrite;
  Graph *graph;
  const Target *target; /* NULL: none in particular */
  int32_t lanes;
  LayoutChoice choice;    /* of inference on processors */
  DataType image_element; /* of images that `packs` ops make and read; DTYPE_F32: images are kept as they are */
  const bool *packs;      /* by OpCode, or NULL */
  const bool *prepared, *updated;
  Form **forms; /* by id of the original value */
} LayoutState;

/* `value` reshaped to `shape` (same elements) in `layout`, through a new node even when the layout is the same. NULL
 * after a report. */
Node *form_make(LayoutState *state, Node *value, const Shape *shape, Layout layout, const Node *consumer);
/* Input `i` of the node becomes what the value is in `layout`. */
bool need_layout(LayoutState *state, Node *node, int32_t i, Layout layout);
/* All inputs become plain. */
bool need_plain(LayoutState *state, Node *node);

/* Whether the graph is a training step for a CPU, whose values are batch-blocked. */
bool is_batch_blocked_step(const Graph *graph, const PassOptions *options);
/* Whether values are batch-blocked: those of such steps, and of inference where that was chosen. */
bool is_batch_blocked(const Graph *graph, const PassOptions *options);
/* Whether a `sum` is over everything but the channels. */
bool sums_channels(const Node *node);
/* Lays out a node of such a graph. */
bool layout_training_node(LayoutState *state, Node *node);
/* Lays out a node for a target whose images are LAYOUT_CHANNEL_LAST. */
bool layout_channel_last_node(LayoutState *state, Node *node);

#endif
