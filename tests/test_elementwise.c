/* Element-wise kernels on every layout against their expressions in double precision, in guarded memory. */
#include <math.h>

#include "base/checked.h"
#include "codegen.h"
#include "eval.h"
#include "guarded.h"
#include "hand_plan.h"
#include "support.h"

enum { MAX_INPUTS = 4, MAX_STEPS = 4 };

#define N DIM_BATCH
#define LAYOUT(kind, block) .layout = {kind, block}
#define PLAIN               LAYOUT(LAYOUT_PLAIN, 0)
#define CHANNEL_LAST        LAYOUT(LAYOUT_CHANNEL_LAST, 0)
#define BLOCK(lanes)        LAYOUT(LAYOUT_CHANNEL_BLOCK, lanes)
#define VECTOR(lanes)       LAYOUT(LAYOUT_VECTOR_BLOCK, lanes)

typedef struct TensorCase {
  Shape shape;
  Layout layout;
  int32_t halo[4];
  int64_t row_padding;
} TensorCase;

typedef struct StepCase {
  OpCode op;
  int32_t operand; /* -1: none */
  bool reversed;
} StepCase;

typedef struct ElementwiseCase {
  const char *name;
  OpCode op;
  TensorCase output, inputs[MAX_INPUTS]; /* rank -1 ends the list */
  int32_t input_count, op_input_count;
  StepCase steps[MAX_STEPS];
  int32_t step_count;
  int64_t batch;
  bool in_place; /* the output is input 0 */
} ElementwiseCase;

static const ElementwiseCase cases[] = {
    {"flat", OP_RELU, {{4, {N, 3, 5, 7}}, PLAIN}, {{{4, {N, 3, 5, 7}}, PLAIN}}, 1, 1, .batch = 3},
    {"long", OP_TANH, {{2, {N, 20011}}, PLAIN}, {{{2, {N, 20011}}, PLAIN}}, 1, 1, .batch = 2},
    {"scalars", OP_MUL, {{0}, PLAIN}, {{{0}, PLAIN}, {{0}, PLAIN}}, 2, 2, .batch = 1},
    {"vector of images", OP_NEG, {{1, {N}}, PLAIN}, {{{1, {N}}, PLAIN}}, 1, 1, .batch = 5},
    {"fixed batch", OP_ABS, {{2, {3, 33}}, PLAIN}, {{{2, {3, 33}}, PLAIN}}, 1, 1, .batch = 1},
    {"broadcast row",
     OP_ADD,
     {{3, {N, 4, 19}}, PLAIN},
     {{{3, {N, 4, 19}}, PLAIN}, {{1, {19}}, PLAIN}},
     2,
     2,
     .batch = 2},
    {"broadcast column",
     OP_DIV,
     {{3, {N, 4, 19}}, PLAIN},
     {{{3, {N, 4, 19}}, PLAIN}, {{2, {4, 1}}, PLAIN}},
     2,
     2,
     .batch = 2},
    {"both broadcast",
     OP_SUB,
     {{3, {N, 6, 17}}, PLAIN},
     {{{3, {N, 1, 17}}, PLAIN}, {{3, {1, 6, 1}}, PLAIN}},
     2,
     2,
     .batch = 3},
    {"broadcast image",
     OP_ADD,
     {{2, {N, 24}}, PLAIN},
     {{{2, {N, 24}}, PLAIN}, {{2, {1, 24}}, PLAIN}},
     2,
     2,
     .batch = 2},
    {"plain halo",
     OP_SIGMOID,
     {{4, {N, 2, 3, 5}}, PLAIN, {1, 2, 3, 1}, 3},
     {{{4, {N, 2, 3, 5}}, PLAIN}},
     1,
     1,
     .batch = 2},
    {"blocked", OP_GELU, {{4, {N, 20, 3, 5}}, BLOCK(16)}, {{{4, {N, 20, 3, 5}}, BLOCK(16)}}, 1, 1, .batch = 2},
    {"blocked halo",
     OP_SILU,
     {{4, {N, 20, 3, 5}}, BLOCK(16), {1, 1, 1, 1}, 16},
     {{{4, {N, 20, 3, 5}}, BLOCK(16), {2, 0, 0, 3}}},
     1,
     1,
     .batch = 2},
    {"blocked halo, one row and column",
     OP_EXP,
     {{4, {N, 8, 1, 1}}, BLOCK(8), {2, 1, 1, 3}},
     {{{4, {N, 8, 1, 1}}, BLOCK(8)}},
     1,
     1,
     .batch = 3},
    {"wide row with halo",
     OP_NEG,
     {{4, {N, 8, 2, 1500}}, BLOCK(8), {1, 1, 1, 1}},
     {{{4, {N, 8, 2, 1500}}, BLOCK(8)}},
     1,
     1,
     .batch = 1},
    {"plain to blocked operand",
     OP_ADD,
     {{4, {N, 32, 3, 5}}, BLOCK(16)},
     {{{4, {N, 32, 3, 5}}, BLOCK(16)}, {{4, {N, 32, 3, 5}}, PLAIN}},
     2,
     2,
     .batch = 2},
    {"plain operand with a partial block",
     OP_MUL,
     {{4, {N, 19, 2, 3}}, BLOCK(8), {1, 1, 1, 1}},
     {{{4, {N, 19, 2, 3}}, BLOCK(8)}, {{3, {19, 1, 1}}, PLAIN}},
     2,
     2,
     .batch = 2},
    {"scale and shift per channel",
     OP_MUL,
     {{4, {N, 19, 2, 3}}, BLOCK(16)},
     {{{4, {N, 19, 2, 3}}, BLOCK(16)}, {{3, {19, 1, 1}}, PLAIN}, {{4, {1, 19, 1, 1}}, BLOCK(16)}},
     3,
     2,
     {{OP_ADD, 2, false}, {OP_RELU, -1, false}},
     2,
     .batch = 2},
    {"gate per image and channel",
     OP_MUL,
     {{4, {N, 24, 3, 3}}, BLOCK(8)},
     {{{4, {N, 24, 3, 3}}, BLOCK(8)}, {{4, {N, 24, 1, 1}}, BLOCK(8)}},
     2,
     2,
     .batch = 3},
    {"blocked operand of a plain output",
     OP_ADD,
     {{4, {N, 19, 3, 5}}, PLAIN},
     {{{4, {N, 19, 3, 5}}, PLAIN}, {{4, {N, 19, 3, 5}}, BLOCK(16), {1, 1, 0, 0}}},
     2,
     2,
     .batch = 2},
    {"another block",
     OP_SUB,
     {{4, {N, 16, 2, 3}}, BLOCK(16), {1, 1, 1, 1}},
     {{{4, {N, 16, 2, 3}}, BLOCK(16)}, {{4, {N, 16, 2, 3}}, BLOCK(8)}},
     2,
     2,
     .batch = 2},
    {"channel last",
     OP_CLAMP,
     {{4, {N, 19, 3, 5}}, CHANNEL_LAST},
     {{{4, {N, 19, 3, 5}}, CHANNEL_LAST}},
     1,
     1,
     .batch = 2},
    {"channel last from blocked",
     OP_ADD,
     {{4, {N, 19, 3, 5}}, CHANNEL_LAST},
     {{{4, {N, 19, 3, 5}}, CHANNEL_LAST}, {{4, {N, 19, 3, 5}}, BLOCK(8)}},
     2,
     2,
     .batch = 2},
    {"chain",
     OP_LEAKY_RELU,
     {{2, {N, 37}}, PLAIN},
     {{{2, {N, 37}}, PLAIN}, {{2, {N, 37}}, PLAIN}, {{1, {37}}, PLAIN}, {{0}, PLAIN}},
     4,
     1,
     {{OP_SUB, 1, true}, {OP_DIV, 2, false}, {OP_ADD, 3, false}, {OP_SQRT, -1, false}},
     4,
     .batch = 2},
    {"in place",
     OP_RELU,
     {{4, {N, 16, 9, 9}}, BLOCK(16), {1, 1, 1, 1}},
     {{{4, {N, 16, 9, 9}}, BLOCK(16), {1, 1, 1, 1}}},
     1,
     1,
     .batch = 2,
     .in_place = true},
    {"filters",
     OP_MUL,
     {{4, {20, 3, 3, 3}}, LAYOUT(LAYOUT_FILTER_BLOCK, 16)},
     {{{4, {20, 3, 3, 3}}, LAYOUT(LAYOUT_FILTER_BLOCK, 16)}, {{4, {20, 1, 1, 1}}, PLAIN}},
     2,
     2,
     .batch = 1},
    {"matrix",
     OP_NEG,
     {{2, {20, 5}}, LAYOUT(LAYOUT_MATRIX_BLOCK, 16)},
     {{{2, {20, 5}}, LAYOUT(LAYOUT_MATRIX_BLOCK, 16)}},
     1,
     1,
     .batch = 1},
    {"blocked vector",
     OP_BN_SCALE,
     {{1, {20}}, VECTOR(16)},
     {{{1, {20}}, VECTOR(16)}, {{1, {20}}, PLAIN}},
     2,
     2,
     .batch = 1},
    {"blocked vector as operand",
     OP_ADD,
     {{2, {N, 20}}, PLAIN},
     {{{2, {N, 20}}, PLAIN}, {{1, {20}}, VECTOR(16)}},
     2,
     2,
     .batch = 2},
    {"empty", OP_RELU, {{3, {N, 0, 4}}, PLAIN}, {{{3, {N, 0, 4}}, PLAIN}}, 1, 1, .batch = 2},
    {"log of small numbers", OP_LOG, {{2, {N, 50}}, PLAIN}, {{{2, {N, 50}}, PLAIN}}, 1, 1, .batch = 1},
};

/* --- the expected values ------------------------------------------------------------------------------ */

typedef struct Trial {
  const ElementwiseCase *test;
  PlanKernel *kernel;
  Shape shape;                   /* of the output, concrete */
  char *buffers[MAX_INPUTS + 1]; /* the output first */
  double *expected;              /* dense */
} Trial;

static size_t buffer_bytes(const PlanTensor *tensor, int64_t batch) {
  return (size_t)(tensor->storage.bytes * (shape_batched(&tensor->shape) ? batch : 1));
}

static double operand_value(const Trial *trial, int32_t input, const int64_t *index) {
  const PlanTensor *tensor = &trial->kernel->inputs[input];
  int32_t shift = trial->shape.rank - tensor->shape.rank;
  int64_t own[SHAPE_MAX_RANK];
  for (int32_t dim = 0; dim < tensor->shape.rank; dim++)
    own[dim] = tensor->shape.dims[dim] == 1 ? 0 : index[dim + shift];
  float value;
  memcpy(&value, trial->buffers[input + 1] + 4 * hand_offset(tensor, own), sizeof value);
  return value;
}

static double expected_value(const Trial *trial, const int64_t *index) {
  const PlanKernel *kernel = trial->kernel;
  const ExprBuilder *builder = eval_expr_builder();
  ExprValue a = {.number = operand_value(trial, 0, index)}, b = {.number = 0};
  if (kernel->op_input_count > 1) b.number = operand_value(trial, 1, index);
  a = op_info(kernel->op)->expr(builder, &kernel->attrs, a, b);
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    const EpilogueStep *step = &kernel->epilogue[i];
    if (step->operand >= 0) b.number = operand_value(trial, step->operand, index);
    const OpInfo *info = op_info(step->op);
    a = step->reversed ? info->expr(builder, &step->attrs, b, a) : info->expr(builder, &step->attrs, a, b);
  }
  return a.number;
}

/* --- running ------------------------------------------------------------------------------------------ */

enum { CHUNKS = 3 };

/* Runs the last chunk first, each with its own thread number. */
static int run_backwards(void *pool, kiln_task task, void *context, int64_t count) {
  (void)pool;
  for (int64_t chunk = CHUNKS; chunk-- > 0;)
    task(context, (uint32_t)chunk, count * chunk / CHUNKS, count * (chunk + 1) / CHUNKS);
  return 0;
}

static void fill(const PlanTensor *tensor, char *buffer, int64_t batch, bool positive, uint32_t *random) {
  Shape shape = tensor->shape;
  if (shape_batched(&shape)) shape.dims[0] = batch;
  int64_t index[SHAPE_MAX_RANK] = {0}, count = 0;
  assert_true(shape_elements(&shape, batch, &count));
  for (int64_t i = 0; i < count; i++, hand_next(&shape, index)) {
    *random = *random * 1664525u + 1013904223u;
    float value = (float)(*random >> 8) * 0x1p-22f - 2;
    if (positive) value = fabsf(value) + 0.125f;
    memcpy(buffer + 4 * hand_offset(tensor, index), &value, sizeof value);
  }
}

static PlanTensor make_tensor(const char *name, const TensorCase *test, Space space, int32_t index) {
  PlanTensor tensor = hand_tensor(name, test->shape, space, index);
  hand_layout(&tensor, test->layout, test->halo, test->row_padding);
  return tensor;
}

static void make_kernel(Arena *arena, Trial *trial) {
  const ElementwiseCase *test = trial->test;
  PlanTensor inputs[MAX_INPUTS];
  for (int32_t i = 0; i < test->input_count; i++)
    inputs[i] = make_tensor(arena_format(arena, "in%d", i), &test->inputs[i], SPACE_INPUT, i);
  PlanTensor output = make_tensor("out", &test->output, SPACE_OUTPUT, 0);
  trial->kernel = hand_kernel(arena, test->op, output, inputs, test->input_count);
  trial->kernel->op_input_count = test->op_input_count;
  trial->kernel->attrs.min = -0.5;
  trial->kernel->epilogue = arena_array(arena, MAX_STEPS, EpilogueStep);
  trial->kernel->epilogue_count = test->step_count;
  for (int32_t i = 0; i < test->step_count; i++)
    trial->kernel->epilogue[i] =
        (EpilogueStep){test->steps[i].op, attrs_default(), test->steps[i].operand, test->steps[i].reversed};
  trial->shape = test->output.shape;
  if (shape_batched(&trial->shape)) trial->shape.dims[0] = test->batch;
}

static void make_buffers(Arena *arena, Trial *trial, bool at_end) {
  const ElementwiseCase *test = trial->test;
  uint32_t random = 1;
  bool positive = test->op == OP_LOG || test->op == OP_BN_SCALE || test->op == OP_DIV;
  for (int32_t i = 0; i < test->input_count; i++) {
    const PlanTensor *input = &trial->kernel->inputs[i];
    trial->buffers[i + 1] = guarded_alloc(buffer_bytes(input, test->batch), at_end);
    fill(input, trial->buffers[i + 1], test->batch, positive || i > 1, &random);
  }
  trial->buffers[0] =
      test->in_place ? trial->buffers[1] : guarded_alloc(buffer_bytes(&trial->kernel->output, test->batch), at_end);
  int64_t count, index[SHAPE_MAX_RANK] = {0};
  assert_true(shape_elements(&trial->shape, test->batch, &count));
  trial->expected = arena_array(arena, (size_t)count, double);
  for (int64_t i = 0; i < count; i++, hand_next(&trial->shape, index))
    trial->expected[i] = expected_value(trial, index);
}

static void check_output(const Trial *trial, const char *isa) {
  const PlanTensor *output = &trial->kernel->output;
  int64_t count, index[SHAPE_MAX_RANK] = {0};
  assert_true(shape_elements(&trial->shape, 1, &count));
  for (int64_t i = 0; i < count; i++, hand_next(&trial->shape, index)) {
    float actual;
    memcpy(&actual, trial->buffers[0] + 4 * hand_offset(output, index), sizeof actual);
    double expected = trial->expected[i];
    bool same = isnan(expected) ? isnan(actual) : fabs(actual - expected) <= 1e-6 * (1 + fabs(expected));
    if (!same)
      fail_msg("%s on %s: element %d is %g, expected %g", trial->test->name, isa, (int)i, (double)actual, expected);
  }
}

/* All of the halo is zero, whatever stood there. */
static void check_halo(const Trial *trial, const char *isa) {
  const PlanTensor *output = &trial->kernel->output;
  const int32_t *halo = output->storage.halo;
  if (output->shape.rank != 4) return;
  int64_t height = output->shape.dims[2], width = output->shape.dims[3];
  int64_t block = output->layout.block > 1 ? output->layout.block : 1;
  for (int64_t n = 0; n < trial->shape.dims[0]; n++) {
    for (int64_t c = 0; c < round_up(output->shape.dims[1], block); c++) {
      for (int64_t y = -halo[0]; y < height + halo[2]; y++) {
        for (int64_t x = -halo[1]; x < width + halo[3]; x++) {
          if (y >= 0 && y < height && x >= 0 && x < width) continue;
          float value;
          const int64_t index[] = {n, c, y, x};
          memcpy(&value, trial->buffers[0] + 4 * hand_offset(output, index), sizeof value);
          if (value != 0)
            fail_msg("%s on %s: halo at %d,%d,%d,%d is %g", trial->test->name, isa, (int)n, (int)c, (int)y, (int)x,
                     (double)value);
        }
      }
    }
  }
}

static void run_case(Fixture *fixture, const ElementwiseCase *test, const Target *target) {
  Arena *arena = fixture->arena;
  Trial trial = {.test = test};
  make_kernel(arena, &trial);
  Plan *plan = hand_plan(arena, "net", target, trial.kernel, test->batch);
  CpuObjects objects;
  const kiln_program *program;
  if (!cpu_compile(plan, NULL, arena, fixture->diag, &objects) || !jit_load(&objects, arena, fixture->diag, &program))
    fail_msg("%s", diag_text(fixture->diag, arena));
  for (int at_end = 0; at_end < 2; at_end++) {
    make_buffers(arena, &trial, at_end);
    struct {
      kiln_io io;
      void *ports[MAX_INPUTS + 1];
    } call = {.io = {.batch = test->batch, .threads = CHUNKS, .parallel_for = run_backwards}};
    for (int32_t i = 0; i < test->input_count; i++) call.ports[i] = trial.buffers[i + 1];
    call.ports[test->input_count] = trial.buffers[0];
    const kiln_weights weights = {.program = program};
    assert_int_equal(program->run(&weights, NULL, &call.io), KILN_OK);
    check_output(&trial, target->isa);
    check_halo(&trial, target->isa);
    for (int32_t i = test->in_place; i <= test->input_count; i++) guarded_free(trial.buffers[i]);
  }
}

static void test_layouts(void **state) {
  static const char *const isas[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"};
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    Target target;
    assert_true(cpu_target(isas[i], NULL, fixture->arena, fixture->diag, &target));
    if (!cpu_target_runnable(&target)) continue;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) run_case(fixture, &cases[c], &target);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_layouts)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
