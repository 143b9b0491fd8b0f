/* The interpreter against PyTorch's results, and against facts worked out by hand. */
#include <math.h>

#include "eval.h"
#include "golden_cases.h"
#include "op_cases.h"
#include "support.h"

/* --- golden cases ---------------------------------------------------------------------------------- */

/* The stored results are rounded to float: 2^-24 each. */
static const double golden_tolerance = 1e-6;

static void check_golden(Fixture *fixture, const GoldenCase *golden) {
  EvalResult result;
  if (!graph_eval(golden->graph, &golden->inputs, NULL, fixture->arena, fixture->diag, &result)) {
    fail_msg("%s: %s", golden->name, diag_text(fixture->diag, fixture->arena));
  }
  for (size_t i = 0; i < golden->expected.count; i++) {
    const Tensor *expected = &golden->expected.items[i];
    const EvalTensor *found = &result.values[golden->graph->outputs[i].node->id];
    if (!shape_equal(&found->shape, &expected->shape)) fail_msg("%s: shape of '%s'", golden->name, expected->name);
    const double error = relative_error(found->data, expected);
    if (error > golden_tolerance) fail_msg("%s: '%s' differs by %g", golden->name, expected->name, error);
  }
}

static void test_golden(void **state) {
  Fixture *fixture = *state;
  GoldenSet set;
  if (!golden_open(fixture->arena, fixture->diag, &set)) {
    check_messages(fixture, "");
    print_message("no golden cases here: skipped\n");
    skip();
  }
  size_t checked = 0;
  for (size_t i = 0; i < golden_count(&set); i++) {
    GoldenCase golden;
    const GoldenStatus status = golden_load(&set, i, fixture->arena, fixture->diag, &golden);
    if (status == GOLDEN_BROKEN) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
    if (status == GOLDEN_OTHER) continue;
    check_golden(fixture, &golden);
    checked++;
  }
  print_message("%zu golden cases\n", checked);
  assert_true(checked >= 41);
}

/* --- the table of op cases ------------------------------------------------------------------------- */

/* Every op has a case; every case runs for several batches, and what is called exact fits a float. */
static void test_op_cases(void **state) {
  Fixture *fixture = *state;
  bool seen[OP_COUNT] = {[OP_INPUT] = true, [OP_PARAMETER] = true};
  for (size_t i = 0; i < op_case_count(); i++) {
    const OpCase *line = op_case(i);
    const char *label = op_case_label(line, fixture->arena);
    Graph *graph = op_case_graph(line, 3, fixture->arena, fixture->diag);
    if (!graph) fail_msg("%s: %s", label, diag_text(fixture->diag, fixture->arena));
    const Node *node = graph->outputs[0].node;
    seen[node->op] = true;
    for (int64_t batch = 0; batch <= 3; batch++) {
      TensorList inputs, parameters;
      EvalResult result;
      op_case_fill(graph, batch, OP_CASE_INTEGERS, i, fixture->arena, &inputs, &parameters);
      if (!graph_eval(graph, &inputs, &parameters, fixture->arena, fixture->diag, &result)) {
        fail_msg("%s: %s", label, diag_text(fixture->diag, fixture->arena));
      }
      int64_t count = 0;
      assert_true(shape_elements(&node->shape, batch, &count));
      const double *values = result.values[node->id].data;
      for (int64_t k = 0; k < count && batch > 0; k++) {
        if (!isfinite(values[k])) fail_msg("%s: batch %d, element %d is %g", label, (int)batch, (int)k, values[k]);
        if (line->exact && (double)(float)values[k] != values[k]) fail_msg("%s: %.17g is not exact", label, values[k]);
      }
    }
  }
  for (OpCode op = 0; op < OP_COUNT; op++) {
    if (!seen[op]) fail_msg("no case for %s", op_info(op)->name);
  }
}

/* --- by hand --------------------------------------------------------------------------------------- */

/* A graph of one op on inputs called "0", "1", …, run in double. */
typedef struct Trial {
  Fixture *fixture;
  Graph *graph;
  TensorList inputs;
  Node *operands[8];
} Trial;

static Trial trial_start(void **state) {
  Trial trial = {.fixture = *state};
  trial.graph = graph_create(trial.fixture->arena, "trial");
  trial.inputs.items = arena_array(trial.fixture->arena, 8, Tensor);
  return trial;
}

static void trial_operand(Trial *trial, DataType dtype, Shape shape, const double *values) {
  const size_t index = trial->inputs.count++;
  const char *name = arena_format(trial->fixture->arena, "%zu", index);
  Tensor *tensor = &trial->inputs.items[index];
  *tensor = tensor_create(trial->fixture->arena, name, dtype, shape);
  for (int64_t i = 0; i < tensor_elements(tensor); i++) tensor_set(tensor, i, values[i]);
  trial->operands[index] = graph_add_input(trial->graph, name, dtype, shape);
}

static Node *trial_op(Trial *trial, OpCode op) {
  return graph_add(trial->graph, op, "y", trial->operands, (int32_t)trial->inputs.count);
}

static void trial_check(Trial *trial, const Node *node, Shape shape, const double *expected) {
  Fixture *fixture = trial->fixture;
  EvalResult result;
  if (!graph_infer(trial->graph, fixture->diag) ||
      !graph_eval(trial->graph, &trial->inputs, NULL, fixture->arena, fixture->diag, &result)) {
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  }
  const EvalTensor *found = &result.values[node->id];
  assert_true(shape_equal(&found->shape, &shape));
  const int64_t count = shape_elements_per_image(&shape);
  for (int64_t i = 0; i < count; i++) {
    const bool both_nan = isnan(found->data[i]) && isnan(expected[i]);
    if (!both_nan && !(fabs(found->data[i] - expected[i]) <= 1e-12)) {
      fail_msg("element %d: expected %g, found %g", (int)i, expected[i], found->data[i]);
    }
  }
}

#define SHAPE(...) \
  shape_of((int32_t)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})
#define VALUES(...) ((const double[]){__VA_ARGS__})
#define SCALAR      ((Shape){0})

/* Facts about the `edges_digit` example: its third kernel finds top edges. */
static void test_edges_digit(void **state) {
  const double weight[] = {-1, 1,  0,  -1, 1, 0, -1, 1, 0, 0, 1,  -1, 0, 1, -1, 0,  1,  -1,
                           -1, -1, -1, 0,  0, 0, 1,  1, 1, 0, 0,  0,  1, 1, 1,  -1, -1, -1,
                           0,  -1, 1,  -1, 1, 0, 1,  0, 0, 1, -1, 0,  0, 1, -1, 0,  0,  1};
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 1, 3, 3),
                VALUES(0, 0, 0, 142, 155, 246, 254, 254, 254, 254, 75, 0, 254, 153, 0, 247, 53, 0));
  trial_operand(&trial, DTYPE_F32, SHAPE(6, 1, 3, 3), weight);
  const Node *conv = trial_op(&trial, OP_CONV2D);
  Fixture *fixture = *state;
  EvalResult result;
  assert_true(graph_infer(trial.graph, fixture->diag));
  assert_true(graph_eval(trial.graph, &trial.inputs, NULL, fixture->arena, fixture->diag, &result));
  const double *found = result.values[conv->id].data;
  assert_true(found[2] == 762);
  assert_true(found[6 + 2] == -29);
}

static void test_conv_transpose_groups(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 2, 1, 2), VALUES(1, 2, 3, 4));
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 1, 1, 2), VALUES(10, 1, 100, 1000));
  Node *node = trial_op(&trial, OP_CONV_TRANSPOSE2D);
  node->attrs.groups = 2;
  trial_check(&trial, node, SHAPE(1, 2, 1, 3), VALUES(10, 21, 2, 300, 3400, 4000));
}

/* A last window that would start in the padding behind is dropped; the divisor counts padding, not what lies past it.
 */
static void test_avg_pool_ceil(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 5), VALUES(1, 2, 3, 4, 5));
  Node *node = trial_op(&trial, OP_AVG_POOL2D);
  node->attrs.kernel = (AttrInt2){{1, 3}};
  node->attrs.stride = (AttrInt2){{1, 2}};
  node->attrs.ceil_mode = true;
  trial_check(&trial, node, SHAPE(1, 1, 1, 2), VALUES(2, 4));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 6), VALUES(1, 2, 3, 4, 5, 6));
  node = trial_op(&trial, OP_AVG_POOL2D);
  node->attrs.kernel = (AttrInt2){{1, 3}};
  node->attrs.stride = (AttrInt2){{1, 3}};
  node->attrs.padding = (AttrInt4){{0, 1, 0, 1}};
  node->attrs.ceil_mode = true;
  trial_check(&trial, node, SHAPE(1, 1, 1, 3), VALUES(1, 4, 3));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 4), VALUES(1, 2, 3, 4));
  node = trial_op(&trial, OP_AVG_POOL2D);
  node->attrs.kernel = (AttrInt2){{1, 2}};
  node->attrs.stride = (AttrInt2){{1, 5}};
  node->attrs.padding = (AttrInt4){{0, 1, 0, 1}};
  node->attrs.ceil_mode = true;
  trial_check(&trial, node, SHAPE(1, 1, 1, 1), VALUES(0.5));
}

static void test_max_pool_dilated(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 6), VALUES(1, 9, 3, NAN, 5, 6));
  Node *node = trial_op(&trial, OP_MAX_POOL2D);
  node->attrs.kernel = (AttrInt2){{1, 2}};
  node->attrs.dilation = (AttrInt2){{1, 2}};
  trial_check(&trial, node, SHAPE(1, 1, 1, 4), VALUES(3, NAN, 5, NAN));
}

static void test_adaptive_windows(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 5), VALUES(1, 2, 3, 4, 6));
  Node *node = trial_op(&trial, OP_ADAPTIVE_CONCAT_POOL2D);
  node->attrs.output = (AttrInt2){{1, 3}};
  trial_check(&trial, node, SHAPE(1, 2, 1, 3), VALUES(2, 4, 6, 1.5, 3, 5));
}

/* torch.nn.functional.interpolate of [[1, 2, 4]] to width 5, in its three ways. */
static void test_upsample(void **state) {
  const struct {
    AttrWord mode;
    bool align_corners;
    double expected[5];
  } ways[] = {{MODE_NEAREST, false, {1, 1, 2, 2, 4}},
              {MODE_BILINEAR, false, {1, 1.4, 2, 3.2, 4}},
              {MODE_BILINEAR, true, {1, 1.5, 2, 3, 4}}};
  for (size_t i = 0; i < 3; i++) {
    Trial trial = trial_start(state);
    trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 3), VALUES(1, 2, 4));
    Node *node = trial_op(&trial, OP_UPSAMPLE);
    node->attrs.size = (AttrInt2){{1, 5}};
    node->attrs.mode = ways[i].mode;
    node->attrs.align_corners = ways[i].align_corners;
    trial_check(&trial, node, SHAPE(1, 1, 1, 5), ways[i].expected);
  }
}

/* The identity map gives the picture back, for either meaning of the corners; a shift by one pixel moves it. */
static void test_grid_sample(void **state) {
  for (int align = 0; align < 2; align++) {
    Trial trial = trial_start(state);
    trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 2, 3), VALUES(1, 2, 3, 4, 5, 6));
    trial_operand(&trial, DTYPE_F32, SHAPE(1, 2, 3), VALUES(1, 0, 0, 0, 1, 0));
    Node *node = trial_op(&trial, OP_GRID_SAMPLE);
    node->attrs.align_corners = align != 0;
    trial_check(&trial, node, SHAPE(1, 1, 2, 3), VALUES(1, 2, 3, 4, 5, 6));
  }
  const struct {
    AttrWord mode;
    double expected[3];
  } ways[] = {{PADDING_ZEROS, {3, 4, 0}}, {PADDING_REPLICATE, {3, 4, 4}}, {PADDING_REFLECT, {3, 4, 3}}};
  for (size_t i = 0; i < 3; i++) {
    Trial trial = trial_start(state);
    trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 3), VALUES(2, 3, 4));
    trial_operand(&trial, DTYPE_F32, SHAPE(1, 2, 3), VALUES(1, 0, 1, 0, 1, 0));
    Node *node = trial_op(&trial, OP_GRID_SAMPLE);
    node->attrs.align_corners = true;
    node->attrs.padding_mode = ways[i].mode;
    trial_check(&trial, node, SHAPE(1, 1, 1, 3), ways[i].expected);
  }
}

static void test_pad(void **state) {
  const struct {
    AttrWord mode;
    double value, expected[7];
  } ways[] = {{PADDING_ZEROS, 7, {7, 7, 1, 2, 3, 7, 7}},
              {PADDING_REFLECT, 0, {3, 2, 1, 2, 3, 2, 1}},
              {PADDING_REPLICATE, 0, {1, 1, 1, 2, 3, 3, 3}}};
  for (size_t i = 0; i < 3; i++) {
    Trial trial = trial_start(state);
    trial_operand(&trial, DTYPE_F32, SHAPE(1, 1, 1, 3), VALUES(1, 2, 3));
    Node *node = trial_op(&trial, OP_PAD);
    node->attrs.padding = (AttrInt4){{0, 2, 0, 2}};
    node->attrs.padding_mode = ways[i].mode;
    node->attrs.value = ways[i].value;
    trial_check(&trial, node, SHAPE(1, 1, 1, 7), ways[i].expected);
  }
}

static void test_matmul(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 1, 2), VALUES(1, 2, 3, 4));
  trial_operand(&trial, DTYPE_F32, SHAPE(3, 2), VALUES(1, 0, 0, 1, 1, 1));
  Node *node = trial_op(&trial, OP_MATMUL);
  node->attrs.transpose = true;
  trial_check(&trial, node, SHAPE(2, 1, 3), VALUES(1, 2, 3, 3, 4, 7));
  trial = trial_start(state); /* leading dimensions [2, 1] and [1, 3] */
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 1, 1, 1), VALUES(1, 10));
  trial_operand(&trial, DTYPE_F32, SHAPE(1, 3, 1, 1), VALUES(2, 3, 4));
  trial_check(&trial, trial_op(&trial, OP_MATMUL), SHAPE(2, 3, 1, 1), VALUES(2, 3, 4, 20, 30, 40));
}

static void test_broadcast(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 1), VALUES(1, 2));
  trial_operand(&trial, DTYPE_F32, SHAPE(3), VALUES(10, 20, 30));
  trial_check(&trial, trial_op(&trial, OP_SUB), SHAPE(2, 3), VALUES(-9, -19, -29, -8, -18, -28));
}

static void test_reductions(void **state) {
  const double x[] = {1, 5, 2, 4, 3, 9};
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 3), x);
  trial_check(&trial, trial_op(&trial, OP_MEAN), SHAPE(2), VALUES(8.0 / 3, 16.0 / 3));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 3), x);
  Node *node = trial_op(&trial, OP_SUM);
  node->attrs.dims = (IntList){2, {0, -1}};
  trial_check(&trial, node, SCALAR, VALUES(24));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 3), x);
  node = trial_op(&trial, OP_MAX);
  node->attrs.dims = (IntList){1, {0}};
  node->attrs.keep_dims = true;
  trial_check(&trial, node, SHAPE(1, 3), VALUES(4, 5, 9));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 3), VALUES(5, 5, 2, 1, NAN, 9));
  node = trial_op(&trial, OP_ARGMAX);
  trial_check(&trial, node, SHAPE(2), VALUES(0, 1));
  assert_int_equal(node->dtype, DTYPE_I64);
}

static void test_element_wise_specials(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(3), VALUES(-1, NAN, 2));
  trial_check(&trial, trial_op(&trial, OP_RELU), SHAPE(3), VALUES(0, NAN, 2));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(4), VALUES(-1, NAN, 2, 9));
  Node *node = trial_op(&trial, OP_CLAMP);
  node->attrs.min = 0;
  node->attrs.max = 6;
  trial_check(&trial, node, SHAPE(4), VALUES(0, NAN, 2, 6));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(1, -2));
  node = trial_op(&trial, OP_GELU);
  node->attrs.approximate = APPROXIMATE_TANH;
  trial_check(&trial, node, SHAPE(2), VALUES(0.841191990608276, -0.045402305912225));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(-1000, 1000));
  trial_check(&trial, trial_op(&trial, OP_SILU), SHAPE(2), VALUES(0, 1000));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(6, 1));
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(3, 0));
  node = trial_op(&trial, OP_BN_SCALE);
  node->attrs.eps = 1;
  trial_check(&trial, node, SHAPE(2), VALUES(3, 1));
}

/* conv → epilogue (v·2, then 1 − v with a broadcast operand, then relu) */
static void test_epilogue(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 2), VALUES(1, 2, 3, 4));
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 2), VALUES(1, 0, 0, -1));
  Node *node = trial_op(&trial, OP_MATMUL);
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(5, 1));
  node_add_epilogue(trial.graph, node, OP_NEG, NULL, NULL, false);
  node_add_epilogue(trial.graph, node, OP_SUB, NULL, trial.operands[2], true);
  node_add_epilogue(trial.graph, node, OP_RELU, NULL, NULL, false);
  /* the operand was added behind the node */
  Node *moved = trial.graph->nodes[3];
  trial.graph->nodes[3] = trial.graph->nodes[2];
  trial.graph->nodes[2] = moved;
  trial_check(&trial, node, SHAPE(2, 2), VALUES(6, 0, 8, 0));
}

static void test_loss_reductions(void **state) {
  Trial trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2, 2), VALUES(0, 0, 1, 1));
  trial_operand(&trial, DTYPE_I64, SHAPE(2), VALUES(0, 1));
  Node *node = trial_op(&trial, OP_CROSS_ENTROPY);
  node->attrs.reduction = REDUCTION_NONE;
  trial_check(&trial, node, SHAPE(2), VALUES(M_LN2, M_LN2));
  trial = trial_start(state);
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(3, 0));
  trial_operand(&trial, DTYPE_F32, SHAPE(2), VALUES(1, 1));
  node = trial_op(&trial, OP_MSE);
  node->attrs.reduction = REDUCTION_SUM;
  trial_check(&trial, node, SCALAR, VALUES(5));
}

/* What graph_eval refuses. */
static void test_operand_mistakes(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "g");
  graph->file = "g.ir";
  Node *x = graph_add_input(graph, "x", DTYPE_F32, SHAPE(DIM_BATCH, 3));
  Node *weight = graph_add_parameter(graph, &(Parameter){.name = "w", .shape = SHAPE(2, 3), .layer = LAYER_NONE});
  graph_add(graph, OP_LINEAR, "y", (Node *const[]){x, weight}, 2);
  assert_true(graph_infer(graph, fixture->diag));
  TensorList inputs = {0};
  EvalResult result;
  assert_false(graph_eval(graph, &inputs, NULL, fixture->arena, fixture->diag, &result));
  check_messages(fixture, "g.ir: error: input 'x' is missing\n");
  clear_messages(fixture);
  Tensor wrong = tensor_create(fixture->arena, "x", DTYPE_F32, SHAPE(5, 4));
  inputs = (TensorList){&wrong, 1};
  assert_false(graph_eval(graph, &inputs, NULL, fixture->arena, fixture->diag, &result));
  check_messages(fixture,
                 "g.ir: error: input 'x' expects shape [5,3], found [5,4]\n"
                 "g.ir: error: parameter 'w' has no value\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_golden),           fixture_test(test_op_cases),
      fixture_test(test_edges_digit),      fixture_test(test_conv_transpose_groups),
      fixture_test(test_avg_pool_ceil),    fixture_test(test_max_pool_dilated),
      fixture_test(test_adaptive_windows), fixture_test(test_upsample),
      fixture_test(test_grid_sample),      fixture_test(test_pad),
      fixture_test(test_matmul),           fixture_test(test_broadcast),
      fixture_test(test_reductions),       fixture_test(test_element_wise_specials),
      fixture_test(test_epilogue),         fixture_test(test_loss_reductions),
      fixture_test(test_operand_mistakes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
