/* What a graph knows of training: the request that the pass `train` turns into a step, and what that step changes.
 *
 * A training step changes parameters. In the graph it is still a function: an update is a pair of a parameter and a
 * node whose value the parameter has when the step ends. The node computes in the parameter's own memory, so all other
 * readers of the parameter stand before it, and its op reads an element before it writes it. */
#ifndef KILN_IR_TRAIN_H
#define KILN_IR_TRAIN_H

#include "base/arena.h"
#include "base/diag.h"
#include "ops.h"
#include "types.h"

typedef struct Node Node;
typedef struct Graph Graph;

typedef enum Optimizer { OPTIMIZER_SGD, OPTIMIZER_ADAM } Optimizer;

/* The `train` section of a description. */
typedef struct Objective {
  OpCode loss; /* OP_CROSS_ENTROPY, OP_MSE, OP_BCE_WITH_LOGITS; OP_INPUT: not given */
  bool accuracy, error_rate;
} Objective;

typedef struct TrainRequest {
  OpCode loss;
  const char *of; /* the value that the loss is taken of */
  Optimizer optimizer;
  bool nesterov;        /* SGD */
  bool clip;            /* compute the gradients' global norm, and clip by it */
  bool accumulate;      /* a row of the state holds a sum of gradients */
  int64_t memory_limit; /* bytes of workspace; 0: none */
  int64_t recompute;    /* values to compute again rather than keep; whoever plans within the limit chooses it */
} TrainRequest;

typedef struct Update {
  int32_t parameter; /* index into graph->parameters */
  Node *node;
} Update;

/* A trained parameter's place in every row of `state`. */
typedef struct StateSlot {
  const char *name;
  Shape shape;
  int64_t offset; /* elements from the row's begin */
  int32_t group;  /* row of `hyper` */
  bool decayed;
} StateSlot;

/* Columns of the input `hyper`; kiln.h documents them as KILN_HYPER_*. The last three count in row 0 only. */
enum {
  HYPER_LEARNING_RATE,
  HYPER_MOMENTUM, /* beta1 of Adam */
  HYPER_BETA2,
  HYPER_EPS,
  HYPER_WEIGHT_DECAY,
  HYPER_CORRECTION1, /* 1 - beta1^t */
  HYPER_CORRECTION2,
  HYPER_GRADIENT_SCALE,
  HYPER_APPLY,
  HYPER_CLIP_NORM,
  HYPER_COUNT = 16
};

/* Rows of `state`: the parameters, the optimiser's moments, the accumulated gradients. */
enum { STATE_PARAMETERS = 0, STATE_MOMENT1 = 1, STATE_MOMENT2 = 2 };

/* Elements of a row of the state that a kernel takes at a time. */
enum { TRAIN_CHUNK = 4096 };

/* Groups of a training step: `segments` and `decayed` of the update ops hold one number each. */
enum { TRAIN_MAX_GROUPS = 8 };

/* A training step has its batched values in the fixed part of the workspace, with room for the largest batch rounded up
 * to BATCH_UNIT: layouts may keep that many images together. */
enum { BATCH_UNIT = 16 };
bool graph_fixes_batch(const Graph *graph);
/* How many images kernels of inference compute together: 1, or where values are batch-blocked the block. Values of the
 * workspace then have room for as many more images, less one: see kiln_program.batch_unit. Requires layouts. */
int32_t graph_batch_unit(const Graph *graph);

/* Asks for a training step; the request is copied. Unknown values and losses that do not fit are reported. */
bool graph_request_training(Graph *graph, const TrainRequest *request, Diag *diag);
/* Notes that the step leaves `node`'s value in a parameter. */
void graph_add_update(Graph *graph, int32_t parameter, Node *node);
/* By id of parameters: a step changes them. */
bool *graph_mark_updated(const Graph *graph, Arena *arena);
/* The group of a layer: that of the description whose patterns name it first; 0 without groups. */
int32_t graph_layer_group(const Graph *graph, uint32_t layer);
/* Freezes a group, or trains it again; see Group. False after a report: unknown name. */
bool graph_set_frozen(Graph *graph, const char *group, bool frozen, bool batch_norm, Diag *diag);

/* Whether dropout keeps element `index` (row-major): a word of Philox4x32-10 (see base/philox.h) of the counter
 * (index, stream, high half of the seed) and the key (low half of the seed, step) is at least p · 2^32. */
bool dropout_keeps(int64_t seed, int64_t step, int64_t stream, int64_t index, double p);
/* p · 2^32; 2^32 keeps nothing. */
uint64_t dropout_threshold(double p);

const char *optimizer_name(Optimizer optimizer);
/* Whether `op` is a loss that can be trained with. */
bool op_is_loss(OpCode op);

#endif
