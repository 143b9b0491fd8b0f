/* The graph: what a model computes.
 *
 * A node makes one value. Nodes stand in an array in topological order; ids are unique in a graph and stay with a
 * node through all passes, so that a value of the optimised graph can be traced to the description. Everything
 * lives in the graph's arena; nodes that a pass drops are simply no longer in the array.
 *
 * Passes change a graph by building new nodes and redirecting uses, then compacting: see the functions below.
 * Dimensions: only dims[0] of a value may be DIM_BATCH. */
#ifndef KILN_IR_GRAPH_H
#define KILN_IR_GRAPH_H

#include "base/arena.h"
#include "base/diag.h"
#include "ops.h"
#include "tensor.h"
#include "train.h"
#include "tuning.h"
#include "winograd.h"

typedef struct Node Node;

/* One step of an epilogue: v = op(v) or op(v, inputs[operand]), or op(inputs[operand], v) when reversed. Steps
 * apply in order to the value of the node's own op, element by element, before it is stored. Operands broadcast
 * to the node's shape. */
typedef struct EpilogueStep {
  OpCode op;       /* an element-wise op */
  Attrs attrs;
  int32_t operand; /* index into the node's inputs; -1 for unary ops */
  bool reversed;
} EpilogueStep;

/* A decision that a pass took about a node, for `kiln explain`. Text fields are complete sentences or short
 * terms; costs are in the pass's own unit (named in `unit`) and NaN when not estimated. */
typedef struct Decision {
  const char *pass;     /* "fuse" */
  const char *chosen;   /* "batch norm folded into the filter" */
  const char *rejected; /* alternatives, or NULL */
  const char *reason;
  double cost, rejected_cost;
  const char *unit;
  struct Decision *next;
} Decision;

/* How a kernel is to be computed; chosen by `select`, obeyed by the code generators. */
typedef enum Algorithm {
  ALGORITHM_DEFAULT, /* the op has only one */
  ALGORITHM_DIRECT,  /* convolution: blocked direct */
  ALGORITHM_DEPTHWISE,
  ALGORITHM_REFERENCE, /* convolution: plain loops for shapes that the others do not take; products of batch-blocked
                          values: sums in double, or, over the batch, in the shortest runs */
  ALGORITHM_PACKED,    /* linear: filters blocked by output features */
  ALGORITHM_WINOGRAD23, /* convolution: F(2×2,3×3); tile_pixels counts Winograd tiles of a register tile, row_chunk
                           those that one pass over the filters takes; 0: all of an image, and items are panels of
                           filters */
  ALGORITHM_WINOGRAD43, /* convolution: F(4×4,3×3), likewise */
  ALGORITHM_WINOGRAD34, /* convolution with stride 2: F(3×3,4×4) on phases, likewise */
  ALGORITHM_TILES       /* convolution: products of bf16 parts in tile registers; row_chunk: rows of an item */
} Algorithm;

typedef struct KernelChoice {
  Algorithm algorithm;
  int32_t tile_pixels;   /* output pixels of a register tile */
  int32_t tile_blocks;   /* blocks of output channels of a register tile */
  int32_t channel_chunk; /* input channels accumulated between stores of partial sums; on GPUs stages of a product */
  int32_t row_chunk;     /* output rows of one work item */
  MathMode math;         /* of a convolution or matrix product */
} KernelChoice;

/* "direct", "packed"; NULL when there is no such algorithm. */
const char *algorithm_name(Algorithm algorithm);
/* F(m×m,r×r) of Winograd's algorithms; m is 0 of others. */
WinogradForm algorithm_winograd_form(Algorithm algorithm);
Algorithm winograd_algorithm(WinogradForm form);

struct Node {
  uint32_t id;
  OpCode op;
  const char *name;  /* the value's name: "layer1.0.conv1"; NULL: made by a pass, shown as its id */
  const char *path;  /* for messages: "layers[4] 'conv2'"; NULL when made by a pass */
  Location location; /* in the description or the IR text */
  Node **inputs;     /* the op's own inputs first, then epilogue operands */
  int32_t input_count;
  int32_t op_input_count; /* how many belong to the op itself */
  Attrs attrs;
  int32_t port; /* OP_INPUT: index into graph->inputs; OP_PARAMETER: into graph->parameters */
  EpilogueStep *epilogue;
  int32_t epilogue_count;

  DataType dtype; /* set by infer */
  Shape shape;
  Layout layout;   /* set by `layout`; plain before */
  Storage storage; /* set by `strides` and `memory` */
  Node *alias;     /* shares this node's storage, offset included; NULL: has its own (set by `strides`) */
  bool placed;     /* with an alias: computed straight into that memory; else an alias has no kernel */
  bool filled;     /* its inputs, all placed in it, write all of it: no kernel */
  uint32_t stretch; /* not 0: kernels of this number, which follow each other, may compute some images at a time (set by
                       `stretches`) */
  bool hosted;     /* computed by the kernel of inputs[0], as that makes its value (set by `reductions` and `pools`) */
  KernelChoice choice;
  const KernelOffers *offers; /* what `select` chose among; NULL: there was one way only */
  Decision *decisions;

  uint32_t layer; /* index into graph->layers, or LAYER_NONE for nodes made by passes */
  int32_t mark;   /* scratch of the pass that runs; undefined between passes */
};

#define LAYER_NONE UINT32_MAX

/* A layer of the description, for summaries, groups and hooks. */
typedef struct Layer {
  const char *name; /* "layer1.0.conv1" */
  const char *op;   /* as written: "conv2d" */
  bool frozen;      /* its group is frozen: its parameters are not trainable */
  Node *node;       /* the layer's value as imported */
} Layer;

/* A block instance or named value that is not a layer's own: "layer1.0" → the node that makes its value. */
typedef struct ValueName {
  const char *name;
  Node *node;
} ValueName;

typedef struct Parameter {
  const char *name; /* PyTorch's state-dict name */
  DataType dtype;
  Shape shape;
  InitKind init;
  int64_t fan_in;
  bool trainable, buffer;
  uint32_t layer;      /* owner, or LAYER_NONE */
  const Tensor *value; /* given in the description or bound from a weights file; NULL: not yet known */
  bool inline_value;   /* stands in the description */
  Node *node;
  Location location;
} Parameter;

/* How a picture becomes this input: (x/255 − mean) / std per channel after resizing the shorter side to
 * `resize` and cropping the centre to the input's height and width. Counts of 0: not given. */
typedef struct Preprocess {
  FloatList mean, std;
  int64_t resize;
} Preprocess;

typedef struct GraphInput {
  const char *name;
  DataType dtype;
  Shape shape;
  Preprocess preprocess;
  Node *node;
  Location location;
} GraphInput;

typedef struct GraphOutput {
  const char *name;
  Node *node;
  Location location;
} GraphOutput;

/* Hooks as requested; the `hooks` pass turns them into nodes and outputs. */
typedef enum HookKind { HOOK_ACTIVATION, HOOK_GRADIENT } HookKind;
typedef enum HookAction { HOOK_STORE, HOOK_STATS, HOOK_CALL } HookAction;

/* Options of the action `stats`: a histogram of `bins` bins over [low, high], and up to which value one counts as near
 * zero. All zero: the defaults of attrs.def. */
typedef struct HookStats {
  int64_t bins;
  double low, high, threshold;
} HookStats;

typedef struct Hook {
  const char *pattern; /* value name or pattern: "body", "layer*.conv2" */
  HookKind kind;
  HookAction action;
  Location location;
  HookStats stats;
} Hook;

/* Gradients as requested; the `autodiff` pass turns them into nodes, inputs and outputs. */
typedef enum GradientSeed {
  GRADIENT_OF_CLASS,      /* of the element that a new i64 input names: [N] classes for scores [N,K], one for [K] */
  GRADIENT_OF_SCALAR,     /* of a value of one element, such as a loss */
  GRADIENT_WITH_COTANGENT /* of any value, weighted by a new f32 input of its shape */
} GradientSeed;

typedef struct GradientRequest {
  const char *of; /* an output or value */
  GradientSeed seed;
  const char *input; /* name of the new input; NULL: "class" or "cotangent". Requests may share one. */
  const char **wrt;  /* inputs, parameters, layers, blocks: each gives an output "grad.NAME", or "hook.grad.NAME" */
  size_t wrt_count;
  bool hook; /* made for a gradient hook: its outputs are hook outputs */
  Location location;
} GradientRequest;

/* A group of layers with its own learning rate, which may be frozen. */
typedef struct Group {
  const char *name;
  const char **patterns; /* of layer names */
  size_t pattern_count;
  bool frozen, freeze_batch_norm;
  Location location;
} Group;

typedef struct Graph {
  Arena *arena;
  const char *name;
  const char *file; /* where it came from, for messages */
  Node **nodes;     /* topological order */
  size_t node_count, node_capacity;
  uint32_t next_id;

  GraphInput *inputs;
  size_t input_count;
  GraphOutput *outputs; /* the description's, then hook stores */
  size_t output_count;
  size_t hook_output_count; /* the last this many outputs are hook stores */
  Parameter *parameters;
  size_t parameter_count;
  Layer *layers;
  size_t layer_count;
  ValueName *value_names; /* every name a hook or a user may use for a value, layers and blocks */
  size_t value_name_count;
  Hook *hooks;
  size_t hook_count;
  Group *groups;
  size_t group_count;
  GradientRequest *gradients; /* until `autodiff` */
  size_t gradient_count;
  Objective objective;
  const TrainRequest *train; /* until `train`, or NULL */
  Update *updates;           /* what a training step changes: see train.h */
  size_t update_count;
  StateSlot *slots; /* where trained parameters lie in the state, parameter 0 of `updates` */
  size_t slot_count;
  int32_t group_rows; /* rows of `hyper`; 0: no training step */
  int64_t recompute;  /* values of the forward pass to compute again in the backward pass; see the pass */
  const char **labels; /* class names, or NULL */
  size_t label_count;
  int64_t max_batch; /* largest batch of a compiled program; 1 by default */
  int64_t min_batch; /* smallest that it is made for, 1 by default: smaller ones may take as long as this one */
  bool batch_blocked; /* inference on values with images side by side: see the pass `batch_blocks` */
  int64_t stretch_images; /* images of which kernels of a stretch take all before the next ones; 0: no stretches */
  int64_t chunk;      /* images that a thread takes through all kernels at a time, 0: all by all; see the pass `chunk` */

  /* The places of the workspace, set by `memory`. */
  int64_t workspace_fixed, workspace_per_batch, prepared_bytes, prepare_scratch;
} Graph;

/* --- building -------------------------------------------------------------------------------------- */
Graph *graph_create(Arena *arena, const char *name);
/* A new node with default attributes at the end of the array. `name` and `inputs` are copied. Shapes are not
 * inferred. */
Node *graph_add(Graph *graph, OpCode op, const char *name, Node *const *inputs, int32_t input_count);
/* The same, not yet in the array: a pass places it itself. */
Node *node_create(Graph *graph, OpCode op, const char *name, Node *const *inputs, int32_t input_count);
/* A copy with a new id, not in the array. It has the same name: only one of the two may stay in the array. */
Node *node_clone(Graph *graph, const Node *node);
/* Appends an input, parameter or output; the array may move, so keep indices (or ->node), not pointers. */
Node *graph_add_input(Graph *graph, const char *name, DataType dtype, Shape shape);
Node *graph_add_parameter(Graph *graph, const Parameter *parameter);
void graph_add_output(Graph *graph, const char *name, Node *node);
/* Appends an epilogue step; `operand` (may be NULL) becomes an input of the node. */
void node_add_epilogue(Graph *graph, Node *node, OpCode op, const Attrs *attrs, Node *operand, bool reversed);
/* Asks for gradients; the request is copied. Unknown names are reported. */
bool graph_request_gradient(Graph *graph, const GradientRequest *request, Diag *diag);
/* Whether a kernel computes the node: it is neither a source nor another view of what is there already. */
bool node_has_kernel(const Node *node);
/* The node of an output or, failing that, a value; NULL. */
Node *graph_find_result(const Graph *graph, const char *name);
void node_decide(Graph *graph, Node *node, const char *pass, const char *chosen, const char *rejected, const char *reason);

/* --- changing -------------------------------------------------------------------------------------- */
/* Every use of `from` (inputs, outputs, value names, layers) becomes `to`. One sweep over the graph: a pass that
 * replaces many nodes sets node->mark and uses graph_apply_replacements instead. */
void graph_replace(Graph *graph, Node *from, Node *to);
/* For passes: collect a new order in an array of the pass, then install it. `replacement[id]` (NULL: none) is
 * followed transitively for all inputs, outputs and names. Array indexed by id, length graph->next_id. */
void graph_install(Graph *graph, Node **nodes, size_t count, Node *const *replacement);
/* Drops nodes that no output, hook or port needs. Inputs stay; parameters nobody uses are dropped from the array
 * but stay in graph->parameters. */
void graph_remove_dead(Graph *graph);
/* How many uses every node has (inputs of nodes, plus outputs); indexed by id, in `arena`. */
uint32_t *graph_count_uses(const Graph *graph, Arena *arena);
/* A node's value depends on parameters only: it is computed once, by the prepare steps. Indexed by id. */
bool *graph_mark_prepared(const Graph *graph, Arena *arena);
/* A deep copy with the same ids. Bound weights (Parameter.value that does not stand in the description) are shared.
 * Layers and value names whose node is no longer in the array get NULL. */
Graph *graph_clone(const Graph *graph, Arena *arena);

/* --- checking -------------------------------------------------------------------------------------- */
/* "layers[4] 'conv2': weight expects …" at the node's location. Always returns false. */
bool node_error(Diag *diag, const Node *node, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Infers dtype and shape of one node from its inputs, epilogue included. */
bool node_infer(Node *node, Diag *diag);
/* The epilogue alone, against the node's dtype and shape as they stand. */
bool node_check_epilogue(const Node *node, Diag *diag);
/* All nodes in order; goes on after an error with the nodes that do not depend on it. */
bool graph_infer(Graph *graph, Diag *diag);
/* The rules of ir/IR.md, section "Verifier". Each failure names pass, node and rule. */
bool graph_verify(const Graph *graph, const char *pass, Diag *diag);
Node *graph_find_value(const Graph *graph, const char *name); /* by layer, block or node name; NULL */
/* Fixes an input's shape (batch included), before infer. */
bool graph_set_input_shape(Graph *graph, const char *input, const Shape *shape, Diag *diag);

/* --- text ------------------------------------------------------------------------------------------ */
/* The text form of ir/IR.md. */
void graph_print(Text *text, const Graph *graph);
bool graph_parse(const char *file, const char *source, size_t size, Arena *arena, Diag *diag, Graph **out_graph);
/* Graphviz. */
void graph_print_dot(Text *text, const Graph *graph);

#endif
