/* Kernels of batch-blocked values against the interpreter: the lines of the table of ops that they take, and more, with
 * batches around multiples of a block, between guard pages, in several chunks. Images behind the last one repeat it. */
#include <math.h>

#include "base/checked.h"
#include "codegen.h"
#include "eval.h"
#include "guarded.h"
#include "hand_plan.h"
#include "op_cases.h"
#include "support.h"

static const char *const isas[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"};
static const int64_t batches[] = {1, 3, 16, 17, 33};
static const int32_t input_halo[4] = {5, 6, 5, 7}, output_halo[4] = {2, 1, 0, 3};

enum { MAX_BUFFERS = 16, MAX_CHUNKS = 16, MAX_BATCH = 33 };

typedef struct Trial {
  Fixture *fixture;
  const char *label;
  const Target *target;
  Graph *graph;
  Node *node;
  TensorList inputs;
  int64_t batch;
  bool exact;
  PlanKernel *kernel;
  const kiln_program *program;
} Trial;

/* --- memory ------------------------------------------------------------------------------------------- */

static Shape concrete(Shape shape, int64_t batch) {
  if (shape_batched(&shape)) shape.dims[0] = batch;
  return shape;
}

static bool is_blocked(const PlanTensor *tensor) { return tensor->layout.kind == LAYOUT_BATCH_BLOCK; }

/* Images that there is memory for. */
static int64_t rounded(const PlanTensor *tensor, int64_t batch) {
  if (!shape_batched(&tensor->shape)) return 1;
  return is_blocked(tensor) ? round_up(batch, tensor->layout.block) : batch;
}

static float *make_buffer(const PlanTensor *tensor, int64_t batch, bool at_end) {
  return guarded_alloc((size_t)(tensor->storage.bytes * rounded(tensor, batch)), at_end);
}

/* Fills memory from dense values, the last image repeated, zeros around. */
static float *make_input(const PlanTensor *tensor, int64_t batch, const Tensor *value, bool at_end) {
  float *buffer = make_buffer(tensor, batch, at_end);
  memset(buffer, 0, (size_t)(tensor->storage.bytes * rounded(tensor, batch)));
  Shape shape = concrete(tensor->shape, rounded(tensor, batch)), real = concrete(tensor->shape, batch);
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
static Tensor read_output(const Trial *trial, const float *buffer) {
  const PlanTensor *out = &trial->kernel->output;
  const int32_t *halo = out->storage.halo;
  Tensor result = tensor_create(trial->fixture->arena, "y", DTYPE_F32, concrete(out->shape, trial->batch));
  Shape shape = concrete(out->shape, rounded(out, trial->batch));
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

/* --- running ------------------------------------------------------------------------------------------ */

static int run_backwards(void *pool, kiln_task task, void *context, int64_t count) {
  int64_t chunks = *(const int64_t *)pool;
  for (int64_t chunk = chunks; chunk-- > 0;)
    task(context, (uint32_t)chunk, count * chunk / chunks, count * (chunk + 1) / chunks);
  return 0;
}

static Tensor run_once(Trial *trial, int64_t chunks, bool at_end) {
  const PlanKernel *kernel = trial->kernel;
  float *buffers[MAX_BUFFERS];
  struct {
    kiln_io io;
    void *ports[MAX_BUFFERS];
  } call = {.io = {.batch = trial->batch, .threads = MAX_CHUNKS, .parallel_for = run_backwards, .pool = &chunks}};
  for (int32_t i = 0; i < kernel->input_count; i++) {
    const Tensor *value = tensor_find(&trial->inputs, kernel->inputs[i].name);
    assert_non_null(value);
    call.ports[i] = buffers[i] = make_input(&kernel->inputs[i], trial->batch, value, at_end);
  }
  call.ports[kernel->input_count] = buffers[kernel->input_count] = make_buffer(&kernel->output, trial->batch, at_end);
  const kiln_weights weights = {.program = trial->program};
  char *scratch = guarded_alloc((size_t)(trial->program->scratch_bytes * MAX_CHUNKS), true);
  assert_int_equal(trial->program->run(&weights, scratch, &call.io), KILN_OK);
  guarded_free(scratch);
  Tensor result = read_output(trial, buffers[kernel->input_count]);
  for (int32_t i = 0; i <= kernel->input_count; i++) guarded_free(buffers[i]);
  return result;
}

static void compare(const Trial *trial, const Tensor *actual, const EvalTensor *expected) {
  double squares = 0, errors = 0;
  for (int64_t i = 0; i < tensor_elements(actual); i++) {
    double value = tensor_get(actual, i), wanted = expected->data[i];
    bool same = value == wanted || (isnan(value) && isnan(wanted));
    if (!same && (trial->exact || !isfinite(value) || !isfinite(wanted)))
      fail_msg("%s on %s, batch %d: element %d is %.9g, expected %.9g", trial->label, trial->target->isa,
               (int)trial->batch, (int)i, value, wanted);
    if (!isfinite(wanted)) continue;
    squares += wanted * wanted;
    errors += (value - wanted) * (value - wanted);
  }
  if (sqrt(errors) > 3e-6 * sqrt(squares) + 1e-30)
    fail_msg("%s on %s, batch %d: relative error %g", trial->label, trial->target->isa, (int)trial->batch,
             sqrt(errors / squares));
}

static void check_trial(Trial *trial) {
  Fixture *fixture = trial->fixture;
  EvalResult expected;
  if (!graph_eval(trial->graph, &trial->inputs, &trial->inputs, fixture->arena, fixture->diag, &expected))
    fail_msg("%s: %s", trial->label, diag_text(fixture->diag, fixture->arena));
  Tensor whole = run_once(trial, 1, true);
  compare(trial, &whole, &expected.values[trial->node->id]);
  static const int64_t chunks[] = {2, 3, MAX_CHUNKS};
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    Tensor parts = run_once(trial, chunks[i], i == 1);
    if (memcmp(whole.data, parts.data, (size_t)tensor_bytes(&whole)) != 0)
      fail_msg("%s on %s, batch %d: %d chunks give another result", trial->label, trial->target->isa, (int)trial->batch,
               (int)chunks[i]);
  }
}

static void fill_trial(Trial *trial, OpCaseFill fill, int64_t batch) {
  TensorList inputs, parameters;
  Arena *arena = trial->fixture->arena;
  trial->batch = batch;
  op_case_fill(trial->graph, batch, fill, 7, arena, &inputs, &parameters);
  trial->inputs = (TensorList){arena_array(arena, inputs.count + parameters.count, Tensor), 0};
  for (size_t i = 0; i < inputs.count; i++) trial->inputs.items[trial->inputs.count++] = inputs.items[i];
  for (size_t i = 0; i < parameters.count; i++) trial->inputs.items[trial->inputs.count++] = parameters.items[i];
}

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
  Arena *arena = trial->fixture->arena;
  Diag *diag = trial->fixture->diag;
  const Node *node = trial->node;
  int32_t block = trial->target->vector_lanes;
  PlanTensor inputs[MAX_BUFFERS];
  for (int32_t i = 0; i < node->input_count; i++) {
    const Node *value = node->inputs[i];
    inputs[i] =
        make_tensor(value->name, value, shape_batched(&value->shape) && !plain_input, block, halo_in, SPACE_INPUT, i);
  }
  PlanTensor output =
      make_tensor("y", node, shape_batched(&node->shape) && !plain_output, block, halo_out, SPACE_OUTPUT, 0);
  trial->kernel = hand_kernel(arena, node->op, output, inputs, node->input_count);
  trial->kernel->op_input_count = node->op_input_count;
  trial->kernel->attrs = node->attrs;
  trial->kernel->epilogue = node->epilogue;
  trial->kernel->epilogue_count = node->epilogue_count;
  CpuObjects objects;
  Plan *plan = hand_plan(arena, "net", trial->target, trial->kernel, MAX_BATCH);
  if (!cpu_compile(plan, NULL, arena, diag, &objects) || !jit_load(&objects, arena, diag, &trial->program))
    fail_msg("%s on %s: %s", trial->label, trial->target->isa, diag_text(diag, arena));
}

static void check_fills(Trial *trial) {
  bool exact = trial->exact, native = trial->target->vector_lanes == 16;
  for (size_t i = native ? 0 : 1; i < sizeof batches / sizeof *batches; i += native ? 1 : 2) {
    bool floats = batches[i] == 3;
    fill_trial(trial, floats ? OP_CASE_FLOATS : OP_CASE_INTEGERS, batches[i]);
    trial->exact = exact && !floats;
    check_trial(trial);
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
  Trial trial = {.fixture = fixture, .target = target, .exact = line->exact};
  trial.label = op_case_label(line, fixture->arena);
  trial.graph = op_case_graph(line, MAX_BATCH, fixture->arena, fixture->diag);
  if (trial.graph == NULL) fail_msg("%s: %s", trial.label, diag_text(fixture->diag, fixture->arena));
  trial.node = trial.graph->outputs[0].node;
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
static void check_table(const char *isa, size_t step, bool epilogue) {
  size_t more = sizeof more_lines / sizeof *more_lines;
  for (size_t i = 0; i < op_case_count() + more; i += step) {
    Fixture own = {.arena = arena_create(NULL)};
    own.diag = diag_create(own.arena);
    Target target;
    assert_true(cpu_target(isa, NULL, own.arena, own.diag, &target));
    if (cpu_target_runnable(&target))
      check_line(&own, &target, i < more ? &more_lines[i] : op_case(i - more), epilogue);
    arena_destroy(own.arena);
  }
}

static void test_ops(void **state) {
  (void)state;
  check_table("native", 1, false);
  /* the code differs in the width of vectors only: a part of the table will do */
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) check_table(isas[i], i == 0 ? 7 : 3, false);
}

static void test_epilogues(void **state) {
  (void)state;
  check_table("native", 2, true);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_ops),
      fixture_test(test_epilogues),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
