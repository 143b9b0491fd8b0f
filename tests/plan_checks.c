#include "plan_checks.h"

#include <math.h>

#include "base/checked.h"
#include "kiln_abi.h"

/* --- comparing values -------------------------------------------------------------------------------- */

static void check_same(const EvalTensor *expected, const EvalTensor *found, const char *pass, uint64_t seed,
                       uint32_t id) {
  assert_true(shape_equal(&expected->shape, &found->shape));
  int64_t count = 0;
  assert_true(shape_elements(&expected->shape, 1, &count));
  double largest = 1e-30;
  for (int64_t i = 0; i < count; i++) largest = fmax(largest, fabs(expected->data[i]));
  for (int64_t i = 0; i < count; i++) {
    double error = fabs(expected->data[i] - found->data[i]);
    if (!(error <= 1e-9 * largest))
      fail_msg("after %s, seed %llu: %%%u[%lld] is %.17g, expected %.17g", pass, (unsigned long long)seed, id,
               (long long)i, found->data[i], expected->data[i]);
  }
}

/* Values keep their ids through all passes. Outputs are compared by position, since their nodes may be new copies. */
void check_result(const Graph *graph, const Graph *original, const EvalResult *expected, const EvalResult *found,
                  const char *pass, uint64_t seed) {
  for (size_t i = 0; i < graph->node_count; i++) {
    uint32_t id = graph->nodes[i]->id;
    if (id < expected->count && expected->values[id].data)
      check_same(&expected->values[id], &found->values[id], pass, seed, id);
  }
  for (size_t i = 0; i < original->output_count; i++) {
    uint32_t id = graph->outputs[i].node->id;
    check_same(&expected->values[original->outputs[i].node->id], &found->values[id], pass, seed, id);
  }
}

/* --- plans ------------------------------------------------------------------------------------------- */

/* Replays who wrote each line of 64 bytes last: a kernel's inputs must still be there, and its output must not cover
 * them. Lines of the two parts of the workspace and of the prepare phase's memory are kept apart. */
typedef struct Replay {
  uint32_t *writer[4]; /* id + 1 by line; 0: nobody */
  int64_t lines[4];
} Replay;

static int replay_area(const Node *node) {
  switch (node->storage.space) {
    case SPACE_WORKSPACE:
      return shape_batched(&node->shape) ? 0 : 1;
    case SPACE_PREPARED:
      return 2;
    case SPACE_SCRATCH:
      return 3;
    default:
      return -1;
  }
}

static void replay_node(Replay *replay, const Node *node) {
  for (int pass = 0; pass < 2; pass++) {
    /* once to check the inputs before the write, once after it */
    for (int32_t i = 0; i < node->input_count; i++) {
      const Node *owner = node->inputs[i]->alias ? node->inputs[i]->alias : node->inputs[i];
      int area = replay_area(owner);
      if (area < 0) continue;
      for (int64_t line = 0; line < ceil_div(owner->storage.bytes, 64); line++)
        assert_int_equal(replay->writer[area][owner->storage.offset / 64 + line], owner->id + 1);
    }
    int area = replay_area(node);
    if (area < 0 || pass) continue;
    assert_int_equal(node->storage.offset % 64, 0);
    for (int64_t line = 0; line < ceil_div(node->storage.bytes, 64); line++)
      replay->writer[area][node->storage.offset / 64 + line] = node->id + 1;
  }
}

static const Node *find_node(const Graph *graph, uint32_t id) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->id == id) return graph->nodes[i];
  return NULL;
}

static void check_memory(const Graph *graph, const Plan *plan, Arena *arena) {
  Replay replay = {.lines = {plan->workspace_per_batch / 64, plan->workspace_fixed / 64, plan->prepared_bytes / 64,
                             plan->prepare_scratch / 64}};
  for (int area = 0; area < 4; area++)
    replay.writer[area] = arena_array(arena, (size_t)replay.lines[area] + 1, uint32_t);
  for (size_t k = 0; k < plan->kernel_count; k++) replay_node(&replay, find_node(graph, plan->kernels[k].node_id));
}

/* Element `index` in row-major order: elements from the start of the buffer. */
static int64_t element_offset(const Node *node, int64_t index) {
  int64_t offset = node->storage.origin;
  for (int32_t d = node->shape.rank - 1; d >= 0; d--) {
    int64_t dim = node->shape.dims[d] < 0 ? 2 : node->shape.dims[d], digit = index % dim, block = node->layout.block;
    index /= dim;
    if (node->layout.kind == LAYOUT_CHANNEL_BLOCK && d == 1) offset += digit % block, digit /= block;
    offset += digit * node->storage.stride[d];
  }
  return offset;
}

/* An alias finds each of its elements, in order, where its owner has it, and no halo that the owner lacks. */
static void check_aliases(const Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i], *owner = node->alias;
    if (!owner) continue;
    int64_t count = 0;
    assert_null(owner->alias);
    assert_true(shape_elements(&node->shape, 2, &count));
    assert_true(node->storage.bytes <= owner->storage.bytes);
    for (int side = 0; side < 4; side++) assert_int_equal(node->storage.halo[side], owner->storage.halo[side]);
    for (int64_t element = 0; element < count; element++)
      assert_int_equal(element_offset(node, element), element_offset(owner, element));
  }
}

static void check_halos(const Plan *plan) {
  for (size_t k = 0; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    if (kernel->op != OP_CONV2D || kernel->output.layout.kind != LAYOUT_CHANNEL_BLOCK) continue;
    for (int side = 0; side < 4; side++)
      assert_true(kernel->inputs[0].storage.halo[side] >= kernel->attrs.padding.values[side]);
  }
}

static void check_phases(const Plan *plan) {
  for (size_t k = 0; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    bool prepare = k < plan->prepare_count;
    Space output = kernel->output.storage.space;
    assert_true(prepare ? output == SPACE_PREPARED || output == SPACE_SCRATCH
                        : output == SPACE_WORKSPACE || output == SPACE_OUTPUT);
    for (int32_t i = 0; i < kernel->input_count; i++) {
      Space input = kernel->inputs[i].storage.space;
      if (prepare)
        assert_true(input == SPACE_PARAMETER || input == SPACE_SCRATCH || input == SPACE_PREPARED);
      else
        assert_true(input == SPACE_PREPARED || input == SPACE_WORKSPACE || input == SPACE_INPUT ||
                    input == SPACE_OUTPUT);
    }
    assert_true(kernel->code <= k && plan->kernels[kernel->code].op == kernel->op);
    assert_int_equal(plan->kernels[kernel->code].code, kernel->code);
    assert_true(kernel->input_count < KILN_MAX_OPERANDS);
    assert_true(kernel->flops + kernel->flops_fixed > 0);
  }
}

/* The caller's buffers are dense and row-major. */
static void check_outputs(const Graph *graph) {
  for (size_t i = 0; i < graph->output_count; i++) {
    const Node *node = graph->outputs[i].node;
    assert_int_equal(node->storage.space, SPACE_OUTPUT);
    assert_int_equal(node->storage.index, i);
    assert_int_equal(node->storage.offset, 0);
    assert_int_equal(node->storage.origin, 0);
    assert_int_equal(node->layout.kind, LAYOUT_PLAIN);
    int64_t step = 1;
    for (int32_t d = node->shape.rank - 1; d >= 0; d--) {
      assert_int_equal(node->storage.stride[d], step);
      step *= node->shape.dims[d] < 0 ? 1 : node->shape.dims[d];
    }
  }
}

void check_plan(const Graph *graph, const Plan *plan, Arena *arena) {
  check_memory(graph, plan, arena);
  check_aliases(graph);
  check_halos(plan);
  check_phases(plan);
  check_outputs(graph);
}
