/* Kernels of batch-blocked values against the interpreter: the lines of the table of ops that they take, and more, with
 * batches around multiples of a block, between guard pages, in several chunks. Images behind the last one repeat it. */
#include "base/checked.h"
#include "codegen.h"
#include "guarded.h"
#include "hand_plan.h"
#include "kernel_trial.h"

static const int64_t batches[] = {1, 3, 16, 17, 33};
static const int32_t input_halo[4] = {5, 6, 5, 7}, output_halo[4] = {2, 1, 0, 3};

enum { MAX_BATCH = 33 };

/* --- memory ------------------------------------------------------------------------------------------- */

static bool is_blocked(const PlanTensor *tensor) { return tensor->layout.kind == LAYOUT_BATCH_BLOCK; }

/* Images that there is memory for. */
static int64_t rounded(const PlanTensor *tensor, int64_t batch) {
  if (!shape_batched(&tensor->shape)) return 1;
  return is_blocked(tensor) ? round_up(batch, tensor->layout.block) : batch;
}

static void *make_buffer(const PlanTensor *tensor, int64_t batch, bool at_end) {
  return guarded_alloc((size_t)(tensor->storage.bytes * rounded(tensor, batch)), at_end);
}

/* Fills memory from dense values, the last image repeated, zeros around. */
static void *make_input(const PlanTensor *tensor, int64_t batch, const Tensor *value, bool at_end) {
  float *buffer = make_buffer(tensor, batch, at_end);
  memset(buffer, 0, (size_t)(tensor->storage.bytes * rounded(tensor, batch)));
  Shape shape = trial_shape(tensor->shape, rounded(tensor, batch)), real = trial_shape(tensor->shape, batch);
  int64_t index[SHAPE_MAX_RANK] = {0}, count, image = 1;
  assert_true(shape_elements(&shape, 1, &count));
  for (int32_t d = 1; d < shape.rank; d++) image *= shape.dims[d];
  for (int64_t i = 0; i < count; i++, hand_next(&shape, index)) {
    int64_t from = i;
    if (shape_batched(&tensor->shape) && index[0] >= real.dims[0]) from = (real.dims[0] - 1) * image + i % image;
    buffer[hand_offset(tensor, index)] = (float)tensor_get(value, from);
  }
  return buffer;
}

/* The output as dense values; its halo is zero, and images behind the last one repeat it. */
static Tensor read_output(const Trial *trial, void *memory) {
  const float *buffer = memory;
  const PlanTensor *out = &trial->kernel->output;
  const int32_t *halo = out->storage.halo;
  Tensor result = tensor_create(trial->fixture->arena, "y", DTYPE_F32, trial_shape(out->shape, trial->batch));
  Shape shape = trial_shape(out->shape, rounded(out, trial->batch));
  int64_t index[SHAPE_MAX_RANK] = {0}, count, real = tensor_elements(&result);
  assert_true(shape_elements(&shape, 1, &count));
  for (int64_t i = 0; i < count; i++, hand_next(&shape, index)) {
    float value = buffer[hand_offset(out, index)];
    if (i < real) {
      tensor_set(&result, i, value);
      continue;
    }
    int64_t last[SHAPE_MAX_RANK];
    memcpy(last, index, sizeof last);
    last[0] = trial->batch - 1;
    if (memcmp(&value, &buffer[hand_offset(out, last)], sizeof value) != 0)
      fail_msg("%s on %s: lane %d does not repeat the last image", trial->label, trial->target->isa, (int)index[0]);
  }
  if (!is_blocked(out) || out->shape.rank != 4) return result;
  for (int64_t n = 0; n < shape.dims[0]; n++)
    for (int64_t c = 0; c < shape.dims[1]; c++)
      for (int64_t y = -halo[0]; y < shape.dims[2] + halo[2]; y++)
        for (int64_t x = -halo[1]; x < shape.dims[3] + halo[3]; x++) {
          if (y >= 0 && y < shape.dims[2] && x >= 0 && x < shape.dims[3]) continue;
          if (buffer[hand_offset(out, (const int64_t[]){n, c, y, x})] != 0)
            fail_msg("%s on %s: the halo is not zero", trial->label, trial->target->isa);
        }
  return result;
}

static const int64_t chunks[] = {2, 3, 16, 0};
static const TrialMemory batch_memory = {make_buffer, make_input, read_output, MAX_BATCH, chunks};

/* --- the table of ops --------------------------------------------------------------------------------- */

/* Sums over everything but the channels. */
static bool sums_channels(const Node *node) {
  const IntList *dims = &node->attrs.dims;
  if (dims->count == 0 || dims->count != node->inputs[0]->shape.rank - 1) return false;
  for (int32_t i = 0; i < dims->count; i++)
    if (dims->values[i] != (i == 0 ? 0 : i + 1)) return false;
  return true;
}

static bool takes_batch_blocks(const Node *node) {
  if (node->input_count == 0) return false;
  const Shape *first = &node->inputs[0]->shape;
  for (int32_t i = 0; i < node->input_count; i++) {
    const Node *input = node->inputs[i];
    if (input->dtype != DTYPE_F32) return false;
    if (shape_batched(&input->shape) && input->shape.rank != 2 && input->shape.rank != 4) return false;
  }
  if (!shape_batched(first)) return false;
  switch (node->op) {
    case OP_CONV2D:
      return node->attrs.padding_mode == PADDING_ZEROS;
    case OP_CONV_TRANSPOSE2D:
    case OP_CONV2D_GRAD_WEIGHT:
    case OP_BATCH_STATS:
    case OP_BATCH_NORM_GRAD_INPUT:
    case OP_BATCH_NORM_GRAD_WEIGHT:
    case OP_MAX_POOL2D:
    case OP_AVG_POOL2D:
    case OP_ADAPTIVE_AVG_POOL2D:
    case OP_ADAPTIVE_MAX_POOL2D:
    case OP_MAX_POOL2D_GRAD:
    case OP_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_AVG_POOL2D_GRAD:
    case OP_ADAPTIVE_MAX_POOL2D_GRAD:
    case OP_CONVERT:
      return true;
    case OP_LINEAR:
    case OP_LINEAR_GRAD_WEIGHT:
      return first->rank == 2;
    case OP_MATMUL:
      return first->rank == 2 && !shape_batched(&node->inputs[1]->shape);
    case OP_BATCH_NORM:
      return !node->attrs.training;
    case OP_SUM:
      return sums_channels(node);
    case OP_FLATTEN:
    case OP_RESHAPE:
    case OP_IDENTITY:
      return node->shape.rank == 2 || node->shape.rank == 4;
    default:
      return op_is_elementwise(node->op) && shape_batched(&node->shape);
  }
}

static PlanTensor make_tensor(const char *name, const Node *value, bool blocked, int32_t block, const int32_t *halo,
                              Space space, int32_t index) {
  PlanTensor tensor = hand_tensor(name, value->shape, space, index);
  const Layout layout = {blocked ? LAYOUT_BATCH_BLOCK : LAYOUT_PLAIN, blocked ? block : 0};
  hand_layout(&tensor, layout, blocked && value->shape.rank == 4 ? halo : NULL, 0);
  return tensor;
}

static void build_trial(Trial *trial, const int32_t *halo_in, const int32_t *halo_out, bool plain_input,
                        bool plain_output) {
  const Node *node = trial->node;
  int32_t block = trial->target->vector_lanes;
  PlanTensor inputs[TRIAL_MAX_OPERANDS];
  for (int32_t i = 0; i < node->input_count; i++) {
    const Node *value = node->inputs[i];
    inputs[i] =
        make_tensor(value->name, value, shape_batched(&value->shape) && !plain_input, block, halo_in, SPACE_INPUT, i);
  }
  PlanTensor output =
      make_tensor("y", node, shape_batched(&node->shape) && !plain_output, block, halo_out, SPACE_OUTPUT, 0);
  trial_compile(trial, inputs, output);
}

static void check_fills(Trial *trial) {
  bool exact = trial->exact, native = trial->target->vector_lanes == 16;
  for (size_t i = native ? 0 : 1; i < sizeof batches / sizeof *batches; i += native ? 1 : 2) {
    bool floats = batches[i] == 3;
    trial_fill(trial, floats ? OP_CASE_FLOATS : OP_CASE_INTEGERS, batches[i]);
    trial->exact = exact && !floats;
    trial_check(trial);
  }
  trial->exact = exact;
}

/* y = relu(y + e) with an operand of the output's shape and one per channel. */
static void add_epilogue(Trial *trial) {
  const Attrs attrs = attrs_default();
  Graph *graph = trial->graph;
  const Shape *shape = &trial->node->shape;
  Shape channels = {.rank = shape->rank, .dims = {1, shape->dims[1], 1, 1}};
  Node *operand = graph_add_input(graph, "e", DTYPE_F32, *shape),
       *other = graph_add_input(graph, "c", DTYPE_F32, channels);
  graph->nodes[graph->node_count - 3] = operand; /* before its reader, which stood last */
  graph->nodes[graph->node_count - 2] = other;
  graph->nodes[graph->node_count - 1] = trial->node;
  node_add_epilogue(graph, trial->node, OP_ADD, &attrs, operand, false);
  node_add_epilogue(graph, trial->node, OP_SUB, &attrs, other, true);
  node_add_epilogue(graph, trial->node, OP_RELU, &attrs, NULL, false);
}

static bool hosts_epilogue(const Node *node) {
  return shape_batched(&node->shape) && node->op != OP_CONVERT && node->op != OP_CONV2D_GRAD_WEIGHT;
}

static void check_line(Fixture *fixture, const Target *target, const OpCase *line, bool epilogue) {
  static const int32_t none[4] = {0};
  Trial trial = trial_start(fixture, target, &batch_memory, line);
  trial.tolerance = 3e-6;
  if (!takes_batch_blocks(trial.node) || (epilogue && !hosts_epilogue(trial.node))) return;
  if (epilogue) {
    add_epilogue(&trial);
    trial.label = arena_format(fixture->arena, "%s with an epilogue", trial.label);
  }
  bool convert = trial.node->op == OP_CONVERT;
  build_trial(&trial, input_halo, output_halo, convert, false);
  check_fills(&trial);
  if (convert) {
    build_trial(&trial, input_halo, NULL, false, true);
    check_fills(&trial);
    build_trial(&trial, none, NULL, false, true);
    check_fills(&trial);
    build_trial(&trial, NULL, none, true, false);
    check_fills(&trial);
  }
  bool windows =
      trial.node->op == OP_CONV2D || trial.node->op == OP_CONV_TRANSPOSE2D || trial.node->op == OP_CONV2D_GRAD_WEIGHT;
  if (windows) return;
  build_trial(&trial, none, none, convert, false);
  check_fills(&trial);
}

static const OpCase more_lines[] = {
    {"convert", "x:f32[N,10]", "", true},
    {"convert", "x:f32[N,1]", "", true},
    {"convert", "x:f32[N,3,14,14]", "", true},
    {"convert", "x:f32[N,1,28,28]", "", true},
    {"convert", "x:f32[N,2,3,1]", "", true},
    {"conv2d", "x:f32[N,64,2,2] | weight:f32[10,64,3,3] bias:f32[10]", "padding=[1,1,1,1], stride=[2,2]", true},
    {"conv2d", "x:f32[N,8,14,14] | weight:f32[16,8,3,3] bias:f32[16]", "padding=[1,1,1,1], stride=[2,2]", true},
    {"conv_transpose2d", "x:f32[N,16,7,7] | weight:f32[16,8,3,3]",
     "stride=[2,2], padding=[1,1,1,1], output_padding=[1,1]", true},
    {"conv_transpose2d", "x:f32[N,8,14,14] | weight:f32[8,3,5,5]",
     "stride=[2,2], padding=[2,2,2,2], output_padding=[1,1]", true},
    {"conv_transpose2d", "x:f32[N,7,5,4] | weight:f32[7,5,1,1]", "stride=[2,2], output_padding=[1,0]", true},
    {"conv_transpose2d", "x:f32[N,5,6,6] | weight:f32[5,7,3,3]", "padding=[1,1,1,1]", true},
    {"conv_transpose2d", "x:f32[N,3,4,5] | weight:f32[3,2,7,5]", "stride=[3,2], padding=[3,1,3,1]", true},
    {"conv2d_grad_weight", "x:f32[N,8,14,14] dy:f32[N,16,7,7]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]", true},
    {"conv2d_grad_weight", "x:f32[N,64,2,2] dy:f32[N,10,1,1]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]", true},
    {"conv2d_grad_weight", "x:f32[N,19,5,5] dy:f32[N,11,5,5]", "", true},
    {"sum", "x:f32[N,10]", "dims=[0]", true},
    {"batch_stats", "x:f32[N,17]", "", false},
    {"relu_grad", "x:f32[N,5,7,7] dy:f32[N,5,7,7]", "", true},
};

/* A line has an arena of its own, since the whole table would take gigabytes. */
static void check_table(const Target *target, size_t first, size_t step, bool epilogue) {
  size_t more = sizeof more_lines / sizeof *more_lines;
  for (size_t i = first; i < op_case_count() + more; i += step) {
    Fixture own = {.arena = arena_create(NULL)};
    own.diag = diag_create(own.arena);
    check_line(&own, target, i < more ? &more_lines[i] : op_case(i - more), epilogue);
    arena_destroy(own.arena);
  }
}

static Target native_target(Fixture *fixture) {
  Target target;
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  return target;
}

/* The code differs in the width of vectors only: of narrower ones a part of the table will do, each another part. */
static void check_plain_table(Fixture *fixture, const Target *target) {
  const bool narrow = target->vector_lanes < native_target(fixture).vector_lanes;
  check_table(target, narrow ? (size_t)target->vector_lanes / 4 : 0, narrow ? 3 : 1, false);
}

static void test_ops(void **state) { trial_each_target(*state, check_plain_table); }

static void test_epilogues(void **state) {
  const Target target = native_target(*state);
  check_table(&target, 0, 2, true);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_ops),
      fixture_test(test_epilogues),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
