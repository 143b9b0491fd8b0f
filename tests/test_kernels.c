/* Kernels other than convolutions, products and element-wise ones, against the interpreter: every case of the table of
 * ops in every layout that its kernel takes, with and without an epilogue, between guard pages, in several chunks. */
#include <math.h>

#include "base/checked.h"
#include "codegen.h"
#include "guarded.h"
#include "hand_plan.h"
#include "kernel_trial.h"

/* Which operands have gaps between rows: none, the first, third, … input, or the other inputs and the output. */
typedef enum Gaps { GAPS_NONE, GAPS_EVEN, GAPS_ODD } Gaps;

/* --- building ----------------------------------------------------------------------------------------- */

static PlanTensor make_tensor(const char *name, const Node *value, Layout layout, const int32_t *halo, int64_t gap,
                              Space space, int32_t index) {
  PlanTensor tensor = hand_tensor(name, value->shape, space, index);
  hand_layout(&tensor, layout, halo, gap);
  tensor.dtype = value->dtype;
  tensor.storage.bytes *= data_type_bytes(value->dtype) / 4;
  return tensor;
}

/* The kernel of the trial's node with all rank-4 operands in `layout`, inputs and output with different halos. Rows of
 * plain rank-4 tensors follow each other closely, but where there are gaps. */
static void build_trial(Trial *trial, Layout layout, const int32_t *input_halo, const int32_t *output_halo, Gaps gaps) {
  static const Layout plain = {LAYOUT_PLAIN, 0};
  const Node *node = trial->node;
  PlanTensor inputs[TRIAL_MAX_OPERANDS];
  for (int32_t i = 0; i < node->input_count; i++) {
    const Node *value = node->inputs[i];
    bool image = value->shape.rank == 4 && layout.kind != LAYOUT_PLAIN;
    inputs[i] = make_tensor(value->name, value, image ? layout : plain, image ? input_halo : NULL,
                            gaps == (i % 2 == 0 ? GAPS_EVEN : GAPS_ODD) ? 2 : 0, SPACE_INPUT, i);
  }
  bool image = node->shape.rank == 4 && layout.kind != LAYOUT_PLAIN;
  PlanTensor output = make_tensor("y", node, image ? layout : plain, image ? output_halo : NULL,
                                  gaps == GAPS_ODD ? 1 : 0, SPACE_OUTPUT, 0);
  trial_compile(trial, inputs, output);
}

/* y = relu(y + e) with an operand of the output's shape. */
static void add_epilogue(Trial *trial) {
  const Attrs attrs = attrs_default();
  Graph *graph = trial->graph;
  Node *operand = graph_add_input(graph, "e", DTYPE_F32, trial->node->shape);
  /* topological order: before its reader, which stood last */
  graph->nodes[graph->node_count - 2] = operand;
  graph->nodes[graph->node_count - 1] = trial->node;
  node_add_epilogue(graph, trial->node, OP_ADD, &attrs, operand, false);
  node_add_epilogue(graph, trial->node, OP_RELU, &attrs, NULL, false);
}

/* --- data --------------------------------------------------------------------------------------------- */

/* Moves a tensor between its dense form and its place in memory. */
static void transfer(const PlanTensor *tensor, int64_t batch, char *memory, char *dense, bool to_memory) {
  Shape shape = trial_shape(tensor->shape, batch);
  size_t size = (size_t)data_type_bytes(tensor->dtype);
  int64_t index[SHAPE_MAX_RANK] = {0}, count;
  assert_true(shape_elements(&shape, 1, &count));
  for (int64_t i = 0; i < count; i++, hand_next(&shape, index)) {
    char *place = memory + size * (size_t)hand_offset(tensor, index), *element = dense + size * (size_t)i;
    memcpy(to_memory ? place : element, to_memory ? element : place, size);
  }
}

/* Blocked memory beyond what is logical holds zeros, as kernels leave it. */
static void *make_buffer(const PlanTensor *tensor, int64_t batch, bool at_end) {
  size_t bytes = (size_t)(tensor->storage.bytes * (shape_batched(&tensor->shape) ? batch : 1));
  return guarded_alloc(bytes, at_end);
}

static void *make_input(const PlanTensor *tensor, int64_t batch, const Tensor *value, bool at_end) {
  size_t bytes = (size_t)(tensor->storage.bytes * (shape_batched(&tensor->shape) ? batch : 1));
  char *buffer = make_buffer(tensor, batch, at_end);
  memset(buffer, 0, bytes);
  transfer(tensor, batch, buffer, value->data, true);
  return buffer;
}

static void check_zero(const Trial *trial, const char *buffer, const int64_t *index) {
  float value;
  memcpy(&value, buffer + 4 * hand_offset(&trial->kernel->output, index), sizeof value);
  if (value != 0)
    fail_msg("%s on %s: padding at %d,%d,… is %g", trial->label, trial->target->isa, (int)index[0], (int)index[1],
             (double)value);
}

/* The lanes behind the last filter, row or element of blocked weights. */
static void check_weight_padding(const Trial *trial, const char *buffer) {
  Shape shape = trial->kernel->output.shape;
  int64_t filters = shape.dims[0], index[SHAPE_MAX_RANK] = {filters};
  shape.dims[0] = round_up(filters, trial->kernel->output.layout.block);
  for (bool more = index[0] < shape.dims[0]; more; more = hand_next(&shape, index)) check_zero(trial, buffer, index);
}

/* All of the halo and of the lanes behind the last channel is zero, whatever stood there. */
static void check_padding(const Trial *trial, const char *buffer) {
  const PlanTensor *output = &trial->kernel->output;
  const int32_t *halo = output->storage.halo;
  LayoutKind kind = output->layout.kind;
  if (kind == LAYOUT_FILTER_BLOCK || kind == LAYOUT_MATRIX_BLOCK || kind == LAYOUT_VECTOR_BLOCK)
    check_weight_padding(trial, buffer);
  if (output->shape.rank != 4 || kind == LAYOUT_FILTER_BLOCK) return;
  Shape shape = trial_shape(output->shape, trial->batch);
  int64_t block = output->layout.block > 1 ? output->layout.block : 1;
  for (int64_t n = 0; n < shape.dims[0]; n++) {
    for (int64_t c = 0; c < round_up(shape.dims[1], block); c++) {
      for (int64_t y = -halo[0]; y < shape.dims[2] + halo[2]; y++) {
        for (int64_t x = -halo[1]; x < shape.dims[3] + halo[3]; x++) {
          bool inside = y >= 0 && y < shape.dims[2] && x >= 0 && x < shape.dims[3];
          if (inside && (c < shape.dims[1] || trial->kernel->op != OP_CONVERT)) continue;
          check_zero(trial, buffer, (const int64_t[]){n, c, y, x});
        }
      }
    }
  }
}

static Tensor read_output(const Trial *trial, void *buffer) {
  const PlanTensor *output = &trial->kernel->output;
  Tensor result = tensor_create(trial->fixture->arena, "y", output->dtype, trial_shape(output->shape, trial->batch));
  transfer(output, trial->batch, buffer, result.data, false);
  check_padding(trial, buffer);
  return result;
}

static const int64_t chunks[] = {3, 5, 0};
static const TrialMemory memory = {make_buffer, make_input, read_output, 4, chunks};

/* --- the table of ops --------------------------------------------------------------------------------- */

static bool is_covered_elsewhere(OpCode op) {
  return op_is_elementwise(op) || op == OP_CONV2D || op == OP_CONV_TRANSPOSE2D || op == OP_LINEAR || op == OP_MATMUL;
}

static bool takes_blocks(const Node *node, int32_t block) {
  if (node->shape.rank != 4 || node->op == OP_BATCH_NORM || node->op == OP_CONVERT) return false;
  if (node->op == OP_DROPOUT && node->op_input_count > 1) return false;
  if (node->op != OP_CONCAT) return op_info(node->op)->layouts == LAYOUTS_IMAGE;
  if (node->attrs.dim != 1) return false;
  for (int32_t i = 0; i < node->op_input_count; i++)
    if (node->inputs[i]->shape.dims[1] % block != 0) return false;
  return true;
}

static Trial start_trial(Fixture *fixture, const Target *target, const OpCase *line) {
  Trial trial = trial_start(fixture, target, &memory, line);
  trial.tolerance = 1e-6;
  return trial;
}

static void check_fills(Trial *trial) {
  bool exact = trial->exact;
  for (int64_t batch = 0; batch <= 3; batch++) {
    trial_fill(trial, batch == 2 ? OP_CASE_FLOATS : OP_CASE_INTEGERS, batch);
    trial->exact = exact && batch != 2;
    /* what a reduction over no images gives is of no interest */
    if (batch > 0 || shape_batched(&trial->node->shape)) trial_check(trial);
  }
  trial->exact = exact;
}

/* What changes a state in place ends in no other value. */
static bool ends_step(OpCode op) { return op == OP_SGD_STEP || op == OP_ADAM_STEP || op == OP_PACK; }

/* How the operands of a line lie: plain with rows close together or with gaps, in blocks of channels, or with channels
 * last. */
typedef enum Way { WAY_DENSE, WAY_GAPS_EVEN, WAY_GAPS_ODD, WAY_BLOCKS, WAY_SMALL_BLOCKS, WAY_LAST, WAY_COUNT } Way;

/* Half the vector, or a quarter of the widest. */
static int32_t small_block(const Target *target) { return target->vector_lanes > 4 ? target->vector_lanes / 2 : 4; }

static bool has_way(const Trial *trial, Way way) {
  const Node *node = trial->node;
  if (way == WAY_DENSE) return true;
  if (way == WAY_BLOCKS) return takes_blocks(node, trial->target->vector_lanes);
  if (way == WAY_SMALL_BLOCKS) return takes_blocks(node, small_block(trial->target));
  if (way == WAY_LAST)
    return takes_blocks(node, 1) && node->op != OP_UPSAMPLE && node->op != OP_PAD && node->op != OP_BATCH_NORM;
  return node->input_count > 0 && node->inputs[0]->shape.rank == 4;
}

static void check_way(Trial *trial, Way way) {
  static const int32_t input_halo[4] = {1, 2, 0, 1}, output_halo[4] = {2, 1, 1, 3};
  static const Gaps gaps[] = {GAPS_NONE, GAPS_EVEN, GAPS_ODD};
  static const char *const names[] = {"",           " with gaps",       " with gaps",
                                      " in blocks", " in small blocks", " with channels last"};
  const char *const label = trial->label;
  trial->label = arena_format(trial->fixture->arena, "%s%s", label, names[way]);
  if (way == WAY_BLOCKS) {
    const Layout blocks = {LAYOUT_CHANNEL_BLOCK, trial->target->vector_lanes};
    build_trial(trial, blocks, input_halo, output_halo, GAPS_NONE);
  } else if (way == WAY_SMALL_BLOCKS) {
    const Layout blocks = {LAYOUT_CHANNEL_BLOCK, small_block(trial->target)};
    build_trial(trial, blocks, input_halo, output_halo, GAPS_NONE);
  } else if (way == WAY_LAST) {
    build_trial(trial, (Layout){LAYOUT_CHANNEL_LAST, 0}, input_halo, output_halo, GAPS_NONE);
  } else {
    build_trial(trial, (Layout){LAYOUT_PLAIN, 0}, NULL, NULL, gaps[way]);
  }
  check_fills(trial);
  trial->label = label;
}

/* In all ways, or in the one whose turn it is. */
enum { ALL_WAYS = -1 };

static void check_line(Fixture *fixture, const Target *target, const OpCase *line, bool epilogue, int turn) {
  Trial trial = start_trial(fixture, target, line);
  if (is_covered_elsewhere(trial.node->op)) return;
  if (epilogue) {
    if (trial.node->dtype != DTYPE_F32 || trial.node->op == OP_CONVERT) return;
    if (trial.node->op == OP_STATS_PARTIAL) return; /* its rows are no values to which anything is added */
    if (ends_step(trial.node->op)) return;
    add_epilogue(&trial);
    trial.label = arena_format(fixture->arena, "%s with an epilogue", trial.label);
  }
  int ways = 0;
  for (Way way = 0; way < WAY_COUNT; way++) ways += has_way(&trial, way);
  for (Way way = 0, number = 0; way < WAY_COUNT; way++) {
    if (!has_way(&trial, way)) continue;
    if (turn == ALL_WAYS || turn % ways == (int)number) check_way(&trial, way);
    number++;
  }
}

/* What only matters to generated code: tails of vectors, long loops, windows that pass the padding. */
static const OpCase more_lines[] = {
    {"avg_pool2d", "x:f32[N,5,6,6]", "kernel=[3,3], stride=[2,2], ceil_mode=true", false},
    {"avg_pool2d", "x:f32[N,18,11,24]", "kernel=[10,9], stride=[1,5], padding=[5,4,3,2]", false},
    {"max_pool2d", "x:f32[N,18,11,24]", "kernel=[2,10], stride=[3,1], padding=[1,5,0,5]", true},
    {"permute", "x:f32[N,37,5]", "dims=[0,2,1]", true},
    {"softmax", "x:f32[N,3,37]", "dim=1", false},
    {"softmax", "x:f32[6,5]", "dim=0", false},
    {"mean", "x:f32[N,5,3,37]", "dims=[1]", false},
    {"sum", "x:f32[N,3,37]", "dims=[0]", true},
    {"max", "x:f32[N]", "dims=[0]", true},
    {"mse", "x:f32[N] target:f32[N]", "reduction=none", false},
    {"identity", "x:f32[N,3,70,65]", "", true},
    {"identity", "x:i64[N,5]", "", true},
    {"concat", "x:i64[N,5] y0:i64[N,2]", "", true},
    {"permute", "x:i64[N,5,2]", "dims=[0,2,1]", true},
    {"reshape", "x:i64[N,6]", "shape=[N,3,2]", true},
};

/* A line has an arena of its own, since the whole table would take gigabytes. With a first turn, each line is checked
 * in one of its ways, and the next line in the next. */
static void check_table(const Target *target, bool epilogue, int first_turn) {
  size_t more = sizeof more_lines / sizeof *more_lines;
  for (size_t i = 0; i < op_case_count() + more; i++) {
    Fixture own = {.arena = arena_create(NULL)};
    own.diag = diag_create(own.arena);
    const int turn = first_turn == ALL_WAYS ? ALL_WAYS : first_turn + (int)i;
    check_line(&own, target, i < more ? &more_lines[i] : op_case(i - more), epilogue, turn);
    arena_destroy(own.arena);
  }
}

/* Narrower vectors make other loops and tails, but of the same code: there a part of the ways will do. */
static void check_plain_table(Fixture *fixture, const Target *target) {
  Target widest;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &widest));
  const bool narrow = target->vector_lanes < widest.vector_lanes;
  check_table(target, false, narrow ? target->vector_lanes / 4 : ALL_WAYS);
}

static void test_ops(void **state) { trial_each_target(*state, check_plain_table); }

static void test_epilogues(void **state) {
  Fixture *fixture = *state;
  Target target;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  check_table(&target, true, 0);
}

/* --- layouts ------------------------------------------------------------------------------------------ */

/* Blocks as multiples of a vector's lanes; 0: plain. */
typedef struct ConvertCase {
  Shape shape;
  LayoutKind from;
  int32_t from_lanes;
  LayoutKind to;
  int32_t to_lanes;
  int32_t from_halo[4], to_halo[4];
  int64_t from_gap, to_gap; /* between rows */
} ConvertCase;

#define N      DIM_BATCH
#define PLAIN  LAYOUT_PLAIN, 0
#define LAST   LAYOUT_CHANNEL_LAST, 0
#define BLOCK  LAYOUT_CHANNEL_BLOCK, 1
#define FILTER LAYOUT_FILTER_BLOCK
#define MATRIX LAYOUT_MATRIX_BLOCK
#define VECTOR LAYOUT_VECTOR_BLOCK

static const ConvertCase converts[] = {
    {{4, {N, 32, 5, 19}}, PLAIN, BLOCK, {0}, {0}},
    {{4, {N, 32, 5, 19}}, PLAIN, BLOCK, {0}, {1, 1, 1, 1}},
    {{4, {N, 19, 3, 33}}, PLAIN, BLOCK, {0}, {1, 2, 0, 1}},
    {{4, {N, 19, 7, 7}}, PLAIN, BLOCK, {0}, {0}},
    {{4, {N, 3, 2, 5}}, PLAIN, BLOCK, {0}, {0, 0, 2, 0}},
    {{4, {N, 64, 1, 1}}, PLAIN, BLOCK, {0}, {0}},
    {{4, {3, 17, 4, 4}}, PLAIN, BLOCK, {0}, {1, 0, 1, 0}},
    {{4, {N, 19, 3, 5}}, PLAIN, BLOCK, {1, 1, 1, 1}, {0}},
    {{4, {N, 32, 5, 19}}, BLOCK, PLAIN, {0}, {0}},
    {{4, {N, 19, 3, 33}}, BLOCK, PLAIN, {1, 1, 2, 1}, {0}},
    {{4, {N, 17, 7, 7}}, BLOCK, PLAIN, {0}, {0}},
    {{4, {N, 19, 3, 5}}, BLOCK, PLAIN, {0}, {1, 0, 2, 1}},
    {{4, {N, 5, 1, 1}}, BLOCK, PLAIN, {1, 1, 1, 1}, {0}},
    {{4, {N, 20, 24, 28}}, BLOCK, PLAIN, {1, 1, 1, 1}, {0}},
    {{4, {N, 32, 14, 14}}, BLOCK, PLAIN, {1, 1, 3, 3}, {0}},
    {{4, {N, 35, 7, 7}}, BLOCK, PLAIN, {1, 1, 1, 1}, {0}},
    {{4, {N, 16, 5, 3}}, BLOCK, PLAIN, {0, 2, 0, 0}, {0}},
    {{4, {3, 18, 2, 300}}, BLOCK, PLAIN, {0, 0, 0, 1}, {0}},
    {{4, {N, 7, 530, 1}}, BLOCK, PLAIN, {1, 1, 1, 1}, {0}},
    {{4, {N, 20, 23, 29}}, PLAIN, BLOCK, {0}, {0}},
    {{4, {N, 9, 2, 530}}, PLAIN, BLOCK, {0}, {1, 1, 1, 1}},
    {{4, {N, 20, 9, 7}}, BLOCK, PLAIN, {0}, {0}, 48, 0},
    {{4, {N, 20, 5, 21}}, BLOCK, PLAIN, {0}, {0}, 0, 3},
    {{4, {N, 20, 9, 7}}, PLAIN, BLOCK, {0}, {0}, 0, 48},
    {{4, {N, 20, 5, 21}}, PLAIN, BLOCK, {0}, {0}, 3, 0},
    {{4, {N, 3, 5, 37}}, PLAIN, PLAIN, {0}, {3, 3, 3, 3}},
    {{4, {N, 3, 5, 37}}, PLAIN, PLAIN, {1, 0, 0, 1}, {0, 1, 0, 0}},
    {{4, {2, 3, 65, 67}}, PLAIN, PLAIN, {0}, {0}},
    {{2, {N, 10}}, PLAIN, PLAIN, {0}, {0}},
    {{1, {N}}, PLAIN, PLAIN, {0}, {0}},
    {{0, {0}}, PLAIN, PLAIN, {0}, {0}},
    {{4, {N, 20, 3, 5}}, BLOCK, BLOCK, {0}, {1, 1, 1, 1}},
    {{4, {N, 32, 3, 5}}, BLOCK, LAYOUT_CHANNEL_BLOCK, 2, {1, 0, 0, 0}, {0, 1, 1, 0}},
    {{4, {N, 20, 3, 5}}, PLAIN, LAST, {0}, {0}},
    {{4, {N, 3, 9, 37}}, PLAIN, LAST, {0}, {0}},
    {{4, {N, 3, 9, 37}}, LAST, PLAIN, {0}, {0}},
    {{4, {N, 29, 9, 37}}, PLAIN, LAST, {0}, {1, 2, 0, 1}},
    {{4, {N, 64, 20, 21}}, LAST, PLAIN, {1, 0, 3, 1}, {0}},
    {{4, {2, 45, 3, 7}}, LAST, PLAIN, {0}, {0}},
    {{4, {N, 45, 3, 7}}, LAST, PLAIN, {0}, {0, 1, 1, 0}},
    {{4, {N, 7, 5, 9}}, LAST, LAST, {0}, {1, 1, 2, 1}},
    {{4, {N, 20, 3, 5}}, LAST, LAST, {0, 1, 1, 0}, {0}},
    {{4, {N, 20, 3, 5}}, LAST, BLOCK, {0}, {1, 1, 1, 1}},
    {{4, {N, 32, 3, 5}}, LAST, BLOCK, {1, 0, 0, 1}, {0}},
    {{4, {N, 37, 3, 5}}, BLOCK, LAST, {1, 1, 1, 1}, {0, 2, 1, 0}},
    {{4, {N, 37, 3, 5}}, LAYOUT_CHANNEL_BLOCK, 2, BLOCK, {1, 1, 1, 1}, {0, 2, 1, 0}},
    {{4, {64, 3, 7, 7}}, PLAIN, FILTER, 2, {0}, {0}},
    {{4, {33, 17, 3, 3}}, PLAIN, FILTER, 1, {0}, {0}},
    {{4, {32, 64, 3, 3}}, PLAIN, FILTER, 2, {0}, {0}},
    {{4, {40, 85, 3, 3}}, PLAIN, FILTER, 1, {0}, {0}},
    {{4, {5, 3, 1, 2}}, PLAIN, FILTER, 3, {0}, {0}},
    {{2, {100, 513}}, PLAIN, MATRIX, 2, {0}, {0}},
    {{2, {10, 7}}, PLAIN, MATRIX, 1, {0}, {0}},
    {{2, {48, 1}}, PLAIN, MATRIX, 3, {0}, {0}},
    {{1, {37}}, PLAIN, VECTOR, 1, {0}, {0}},
    {{1, {64}}, PLAIN, VECTOR, 2, {0}, {0}},
    {{1, {1}}, PLAIN, VECTOR, 1, {0}, {0}},
    {{4, {33, 5, 3, 3}}, FILTER, 1, PLAIN, {0}, {0}},
    {{1, {19}}, VECTOR, 1, PLAIN, {0}, {0}},
};

static void check_converts(Fixture *fixture, const Target *target) {
  Arena *arena = fixture->arena;
  for (size_t i = 0; i < sizeof converts / sizeof *converts; i++) {
    const ConvertCase *test = &converts[i];
    Trial trial = {.fixture = fixture, .target = target, .memory = &memory, .exact = true};
    trial.label = arena_format(arena, "convert %d", (int)i);
    trial.graph = graph_create(arena, "convert");
    Node *x = graph_add_input(trial.graph, "x", DTYPE_F32, test->shape);
    trial.node = graph_add(trial.graph, OP_CONVERT, "y", &x, 1);
    graph_add_output(trial.graph, "y", trial.node);
    assert_true(graph_infer(trial.graph, fixture->diag));
    const Layout from = {test->from, test->from_lanes * target->vector_lanes},
                 to = {test->to, test->to_lanes * target->vector_lanes};
    bool image = test->shape.rank == 4;
    PlanTensor input = make_tensor("x", x, from, image ? test->from_halo : NULL, test->from_gap, SPACE_INPUT, 0);
    PlanTensor output = make_tensor("y", trial.node, to, image ? test->to_halo : NULL, test->to_gap, SPACE_OUTPUT, 0);
    trial_compile(&trial, &input, output);
    for (int64_t batch = 1; batch <= 3; batch += 2) {
      trial_fill(&trial, OP_CASE_FLOATS, batch);
      trial_check(&trial);
    }
  }
}

static void test_converts(void **state) { trial_each_target(*state, check_converts); }

/* --- special values ----------------------------------------------------------------------------------- */

/* NaN and infinities in the middle and at the end of windows, rows and vectors. */
static void put_specials(Tensor *tensor) {
  static const double specials[] = {NAN, -INFINITY, INFINITY, NAN};
  for (int64_t i = 0; i < tensor_elements(tensor); i += 17) tensor_set(tensor, i, specials[i / 17 % 4]);
}

static void check_specials(Fixture *fixture, const Target *target) {
  static const OpCase lines[] = {
      {"max_pool2d", "x:f32[N,18,9,23]", "kernel=[3,3], stride=[2,1], padding=[1,1,1,1]", true},
      {"adaptive_max_pool2d", "x:f32[N,5,6,7]", "", true},
      {"adaptive_max_pool2d", "x:f32[N,5,6,7]", "output=[2,3]", true},
      {"max", "x:f32[N,5,37]", "dims=[2]", true},
      {"max", "x:f32[N,5,37]", "dims=[0,1]", true},
      {"argmax", "x:f32[N,5,41]", "dim=2", true},
      {"argmax", "x:f32[N,7,9]", "dim=1", true},
      {"pad", "x:f32[N,17,5,7]", "padding=[1,1,1,1]", true},
      {"upsample", "x:f32[N,17,5,7]", "scale=[2,2]", true},
  };
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    Trial trial = start_trial(fixture, target, &lines[i]);
    for (int blocked = 0; blocked < 2; blocked++) {
      if (blocked && !takes_blocks(trial.node, target->vector_lanes)) continue;
      const Layout block = {LAYOUT_CHANNEL_BLOCK, target->vector_lanes}, plain = {LAYOUT_PLAIN, 0};
      build_trial(&trial, blocked ? block : plain, NULL, NULL, GAPS_NONE);
      trial_fill(&trial, OP_CASE_INTEGERS, 2);
      put_specials(&trial.inputs.items[0]);
      trial_check(&trial);
    }
  }
}

static void test_specials(void **state) { trial_each_target(*state, check_specials); }

/* A class that does not exist gives NaN, and nothing outside the logits is read. */
static void test_targets(void **state) {
  static const int64_t targets[] = {0, -1, 10, INT64_MAX, INT64_MIN, 9};
  static const OpCase line = {"cross_entropy", "x:f32[6,10] target:i64[6]", "reduction=none", false};
  Fixture *fixture = *state;
  Target target;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  Trial trial = start_trial(fixture, &target, &line);
  build_trial(&trial, (Layout){LAYOUT_PLAIN, 0}, NULL, NULL, GAPS_NONE);
  trial_fill(&trial, OP_CASE_FLOATS, 1);
  memcpy(trial.inputs.items[1].data, targets, sizeof targets);
  trial_check(&trial);
}

/* Logits far from 0, of which the naive formulas overflow or lose everything. */
static void test_large_logits(void **state) {
  static const OpCase lines[] = {
      {"softmax", "x:f32[N,37]", "", false},
      {"log_softmax", "x:f32[N,5,19]", "", false},
      {"cross_entropy", "x:f32[N,37] target:i64[N]", "", false},
      {"bce_with_logits", "x:f32[N,37] target:f32[N,37]", "reduction=none", false},
  };
  Fixture *fixture = *state;
  Target target;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    Trial trial = start_trial(fixture, &target, &lines[i]);
    build_trial(&trial, (Layout){LAYOUT_PLAIN, 0}, NULL, NULL, GAPS_NONE);
    trial_fill(&trial, OP_CASE_FLOATS, 3);
    Tensor *logits = &trial.inputs.items[0];
    for (int64_t k = 0; k < tensor_elements(logits); k++) tensor_set(logits, k, 4096 + 32 * tensor_get(logits, k));
    trial_check(&trial);
  }
}

/* Sums over many numbers of one sign and of both are right to one rounding. */
static void test_long_sums(void **state) {
  static const OpCase lines[] = {
      {"adaptive_avg_pool2d", "x:f32[N,16,301,299]", "", false},
      {"mean", "x:f32[N,3,301,299]", "", false},
      {"sum", "x:f32[N,3,301,299]", "dims=[0,2]", false},
      {"batch_stats", "x:f32[N,3,301,299]", "", false},
  };
  Fixture *fixture = *state;
  Target target;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    Trial trial = start_trial(fixture, &target, &lines[i]);
    trial.tolerance = 0x1p-24;
    const Layout block = {LAYOUT_CHANNEL_BLOCK, target.vector_lanes}, plain = {LAYOUT_PLAIN, 0};
    build_trial(&trial, takes_blocks(trial.node, target.vector_lanes) ? block : plain, NULL, NULL, GAPS_NONE);
    trial_fill(&trial, OP_CASE_FLOATS, 2);
    trial_check(&trial);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_ops),       fixture_test(test_epilogues), fixture_test(test_converts),
      fixture_test(test_specials),  fixture_test(test_targets),   fixture_test(test_large_logits),
      fixture_test(test_long_sums),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
