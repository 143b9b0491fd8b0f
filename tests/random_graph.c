#include "random_graph.h"

#include <assert.h>
#include <stdlib.h>

enum { BATCH = 2, POOL_MAX = 64 };

/* Values made so far, from which the next op takes its operands. */
typedef struct Builder {
  Graph *graph;
  Diag *diag;
  uint64_t state;
  Node *values[POOL_MAX];
  int count;
  int parameters;
} Builder;

static uint64_t random_next(Builder *builder) {
  /* splitmix64 */
  uint64_t value = builder->state += UINT64_C(0x9e3779b97f4a7c15);
  value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
  return value ^ (value >> 31);
}

static int64_t below(Builder *builder, int64_t limit) { return (int64_t)(random_next(builder) % (uint64_t)limit); }

static Tensor random_tensor(Builder *builder, const char *name, Shape shape, double low, double high) {
  Tensor tensor = tensor_create(builder->graph->arena, name, DTYPE_F32, shape);
  for (int64_t i = 0; i < tensor_elements(&tensor); i++)
    tensor_set(&tensor, i, low + (high - low) * (double)below(builder, 1 << 20) / (1 << 20));
  return tensor;
}

static Node *parameter(Builder *builder, Shape shape, double low, double high) {
  Graph *graph = builder->graph;
  const char *name = arena_format(graph->arena, "p%d", builder->parameters++);
  Tensor tensor = random_tensor(builder, name, shape, low, high);
  Parameter parameter = {.name = name,
                         .dtype = DTYPE_F32,
                         .shape = shape,
                         .trainable = true,
                         .layer = LAYER_NONE,
                         .value = arena_copy(graph->arena, &tensor, sizeof tensor)};
  return graph_add_parameter(graph, &parameter);
}

static Node *vector(Builder *builder, int64_t count, double low, double high) {
  return parameter(builder, shape_of(1, &count), low, high);
}

/* Infers the node and adds it to the values; a node that does not fit its operands is a defect of this file. */
static Node *keep(Builder *builder, Node *node) {
  if (!node_infer(node, builder->diag)) {
    assert(!"random graphs are valid");
    abort();
  }
  if (builder->count < POOL_MAX) builder->values[builder->count++] = node;
  return node;
}

static Node *pick(Builder *builder, int32_t rank) {
  for (int tries = 0; tries < 8; tries++) {
    /* recent values more often, so that graphs are deep */
    int64_t reach = below(builder, 2) ? 3 : builder->count;
    if (reach > builder->count) reach = builder->count;
    Node *node = builder->values[builder->count - 1 - below(builder, reach)];
    if (node->shape.rank == rank && node->dtype == DTYPE_F32) return node;
  }
  return NULL;
}

static Node *add(Builder *builder, OpCode op, Node *const *inputs, int32_t count) {
  return graph_add(builder->graph, op, NULL, inputs, count);
}

/* --- ops --------------------------------------------------------------------------------------------- */

static const int64_t channel_choices[] = {1, 3, 4, 6, 8, 16, 20, 32};

static void add_conv(Builder *builder, Node *x) {
  int64_t in = x->shape.dims[1], out = channel_choices[below(builder, 8)], groups = 1;
  if (below(builder, 4) == 0) {
    groups = in, out = in; /* depthwise */
  } else if (in % 2 == 0 && below(builder, 5) == 0) {
    groups = 2, out += out % 2;
  }
  int64_t kernel = 1 + below(builder, 3);
  if (kernel > x->shape.dims[2] || kernel > x->shape.dims[3]) kernel = 1;
  Node *inputs[3] = {x, parameter(builder, shape_of(4, (int64_t[]){out, in / groups, kernel, kernel}), -0.5, 0.5)};
  int32_t count = 2;
  if (below(builder, 2)) inputs[count++] = vector(builder, out, -0.5, 0.5);
  Node *node = add(builder, OP_CONV2D, inputs, count);
  node->attrs.groups = groups;
  node->attrs.stride = (AttrInt2){{1 + below(builder, 2), 1 + below(builder, 2)}};
  for (int side = 0; side < 4; side++) node->attrs.padding.values[side] = below(builder, kernel);
  if (below(builder, 6) == 0) node->attrs.padding_mode = below(builder, 2) ? PADDING_REPLICATE : PADDING_REFLECT;
  if (kernel == 3 && x->shape.dims[2] > 4 && x->shape.dims[3] > 4 && below(builder, 4) == 0)
    node->attrs.dilation = (AttrInt2){{2, 2}};
  keep(builder, node);
}

static void add_transpose(Builder *builder, Node *x) {
  int64_t out = channel_choices[below(builder, 5)];
  if (x->shape.dims[2] > 8) return;
  Node *weight = parameter(builder, shape_of(4, (int64_t[]){x->shape.dims[1], out, 2, 2}), -0.5, 0.5);
  Node *node = add(builder, OP_CONV_TRANSPOSE2D, (Node *[]){x, weight}, 2);
  node->attrs.stride = (AttrInt2){{2, 2}};
  keep(builder, node);
}

static void add_norm(Builder *builder, Node *x) {
  int64_t channels = x->shape.dims[1];
  Node *inputs[] = {x, vector(builder, channels, 0.5, 1.5), vector(builder, channels, -0.5, 0.5),
                    vector(builder, channels, -0.5, 0.5), vector(builder, channels, 0.5, 2)};
  keep(builder, add(builder, OP_BATCH_NORM, inputs, 5));
}

static void add_unary(Builder *builder, Node *x) {
  static const OpCode ops[] = {OP_RELU, OP_RELU,  OP_LEAKY_RELU, OP_SIGMOID, OP_TANH,
                               OP_SILU, OP_CLAMP, OP_IDENTITY,   OP_DROPOUT};
  Node *node = add(builder, ops[below(builder, 9)], &x, 1);
  if (node->op == OP_CLAMP) node->attrs.min = -1, node->attrs.max = 1;
  keep(builder, node);
}

static void add_binary(Builder *builder, Node *x) {
  static const OpCode ops[] = {OP_ADD, OP_SUB, OP_MUL, OP_ADD};
  Node *other = NULL;
  int64_t channels = x->shape.rank > 1 ? x->shape.dims[1] : 1;
  if (x->shape.rank == 4) {
    int64_t height = x->shape.dims[2], width = x->shape.dims[3];
    switch (below(builder, 7)) {
      case 0:
        other = parameter(builder, shape_of(3, (int64_t[]){channels, 1, 1}), -1, 1);
        break;
      case 1:
        other = parameter(builder, shape_of(0, NULL), -1, 1);
        break;
      case 2:
        other = parameter(builder, shape_of(2, (int64_t[]){height, width}), -1, 1);
        break;
      case 3:
        other = parameter(builder, shape_of(3, (int64_t[]){channels, height, width}), -1, 1);
        break;
      case 4: {
        Node *pooled = keep(builder, add(builder, OP_ADAPTIVE_AVG_POOL2D, &x, 1));
        other = keep(builder, add(builder, OP_SIGMOID, &pooled, 1));
        break;
      }
      default:
        break;
    }
  }
  for (int i = builder->count; !other && i-- > 0;)
    if (shape_equal(&builder->values[i]->shape, &x->shape) && (builder->values[i] != x || below(builder, 3) == 0))
      other = builder->values[i];
  if (!other) other = parameter(builder, shape_of(1, (int64_t[]){x->shape.dims[x->shape.rank - 1]}), -1, 1);
  bool swap = below(builder, 2);
  keep(builder, add(builder, ops[below(builder, 4)], (Node *[]){swap ? other : x, swap ? x : other}, 2));
}

static void add_pool(Builder *builder, Node *x) {
  static const OpCode ops[] = {OP_MAX_POOL2D, OP_AVG_POOL2D, OP_ADAPTIVE_AVG_POOL2D, OP_ADAPTIVE_MAX_POOL2D,
                               OP_ADAPTIVE_CONCAT_POOL2D};
  Node *node = add(builder, ops[below(builder, 5)], &x, 1);
  if (node->op == OP_MAX_POOL2D || node->op == OP_AVG_POOL2D) {
    int64_t kernel = x->shape.dims[2] > 2 && x->shape.dims[3] > 2 ? 3 : 1;
    node->attrs.kernel = (AttrInt2){{kernel, kernel}};
    node->attrs.stride = (AttrInt2){{2, 2}};
    if (kernel == 3) node->attrs.padding = (AttrInt4){{1, 1, 1, 1}};
  } else if (below(builder, 2) && x->shape.dims[2] > 1 && x->shape.dims[3] > 1) {
    node->attrs.output = (AttrInt2){{2, 2}};
  }
  keep(builder, node);
}

static void add_pad(Builder *builder, Node *x) {
  Node *node = add(builder, OP_PAD, &x, 1);
  for (int side = 0; side < 4; side++) node->attrs.padding.values[side] = below(builder, 3);
  if (below(builder, 3) == 0) node->attrs.value = 0.5;
  keep(builder, node);
}

static void add_upsample(Builder *builder, Node *x) {
  if (x->shape.dims[2] > 8 || x->shape.dims[3] > 8) return;
  Node *node = add(builder, OP_UPSAMPLE, &x, 1);
  node->attrs.scale = (AttrInt2){{2, 2}};
  node->attrs.mode = below(builder, 2) ? MODE_BILINEAR : MODE_NEAREST;
  keep(builder, node);
}

static void add_concat(Builder *builder, Node *x) {
  if (x->shape.dims[1] > 64) return;
  Node *other = x;
  for (int i = builder->count; i-- > 0;) {
    const Shape *shape = &builder->values[i]->shape;
    if (shape->rank == 4 && builder->values[i] != x && shape->dims[2] == x->shape.dims[2] &&
        shape->dims[3] == x->shape.dims[3] && shape->dims[1] <= 64) {
      other = builder->values[i];
      break;
    }
  }
  Node *node = add(builder, OP_CONCAT, (Node *[]){x, other}, 2);
  node->attrs.dim = 1;
  keep(builder, node);
}

static void add_linear(Builder *builder, Node *x) {
  int64_t in = x->shape.dims[1], out = channel_choices[below(builder, 8)];
  Node *inputs[3] = {x, parameter(builder, shape_of(2, (int64_t[]){out, in}), -0.3, 0.3)};
  int32_t count = 2;
  if (below(builder, 3)) inputs[count++] = vector(builder, out, -0.5, 0.5);
  keep(builder, add(builder, OP_LINEAR, inputs, count));
}

static void add_flatten(Builder *builder, Node *x) {
  if (x->shape.dims[1] * x->shape.dims[2] * x->shape.dims[3] > 2048) {
    x = keep(builder, add(builder, OP_ADAPTIVE_AVG_POOL2D, &x, 1));
  }
  keep(builder, add(builder, OP_FLATTEN, &x, 1));
}

static void add_image_op(Builder *builder, Node *x) {
  switch (below(builder, 16)) {
    case 0:
    case 1:
    case 2:
    case 3:
      add_conv(builder, x);
      break;
    case 4:
      add_transpose(builder, x);
      break;
    case 5:
    case 6:
      add_norm(builder, x);
      break;
    case 7:
    case 8:
      add_unary(builder, x);
      break;
    case 9:
    case 10:
      add_binary(builder, x);
      break;
    case 11:
      add_pool(builder, x);
      break;
    case 12:
      add_pad(builder, x);
      break;
    case 13:
      add_upsample(builder, x);
      break;
    case 14:
      add_concat(builder, x);
      break;
    default:
      add_flatten(builder, x);
      break;
  }
}

static void add_matrix_op(Builder *builder, Node *x) {
  switch (below(builder, 5)) {
    case 0:
      add_linear(builder, x);
      break;
    case 1:
      add_norm(builder, x);
      break;
    case 2:
      add_unary(builder, x);
      break;
    case 3:
      add_binary(builder, x);
      break;
    default: {
      Node *node = add(builder, OP_SOFTMAX, &x, 1);
      keep(builder, node);
    }
  }
}

Node *random_conv(Graph *graph, Node *input, int64_t channels, int64_t kernel, int64_t stride, const char *name) {
  Builder builder = {.graph = graph, .diag = diag_create(graph->arena), .state = (uint64_t)channels};
  const int64_t weight_dims[] = {channels, input->shape.dims[1], kernel, kernel};
  Parameter weight = {
      .name = arena_format(graph->arena, "%s.weight", name), .shape = shape_of(4, weight_dims), .layer = LAYER_NONE};
  Parameter bias = {
      .name = arena_format(graph->arena, "%s.bias", name), .shape = shape_of(1, &channels), .layer = LAYER_NONE};
  Node *inputs[] = {input, graph_add_parameter(graph, &weight), graph_add_parameter(graph, &bias)};
  Node *node = graph_add(graph, OP_CONV2D, name, inputs, 3);
  int64_t side = (kernel - 1) / 2;
  node->attrs.padding = (AttrInt4){{side, side, side, side}};
  node->attrs.stride = (AttrInt2){{stride, stride}};
  return keep(&builder, node);
}

Graph *random_graph(uint64_t seed, Arena *arena, TensorList *out_inputs) {
  Builder builder = {.graph = graph_create(arena, "random"), .diag = diag_create(arena), .state = seed};
  Graph *graph = builder.graph;
  graph->max_batch = 1 + below(&builder, 4);
  int64_t channels = channel_choices[below(&builder, 8)], height = 5 + below(&builder, 8),
          width = 5 + below(&builder, 8);
  builder.values[builder.count++] =
      graph_add_input(graph, "image", DTYPE_F32, shape_of(4, (int64_t[]){DIM_BATCH, channels, height, width}));
  out_inputs->items = arena_array(arena, 1, Tensor);
  out_inputs->count = 1;
  out_inputs->items[0] =
      random_tensor(&builder, "image", shape_of(4, (int64_t[]){BATCH, channels, height, width}), -1, 1);

  int64_t steps = 3 + below(&builder, 16);
  for (int64_t i = 0; i < steps && builder.count < POOL_MAX - 4; i++) {
    Node *x = pick(&builder, below(&builder, 4) ? 4 : 2);
    if (x && x->shape.rank == 4) add_image_op(&builder, x);
    if (x && x->shape.rank == 2) add_matrix_op(&builder, x);
  }
  graph_add_output(graph, "y", builder.values[builder.count - 1]);
  if (below(&builder, 3) == 0) graph_add_output(graph, "z", builder.values[below(&builder, builder.count)]);
  if (below(&builder, 4) == 0) graph_add_output(graph, "again", builder.values[builder.count - 1]);
  return graph;
}
