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

/* Where the node's bytes lie in those of its owner; in one image when batched. */
static void replay_lines(const Node *node, int64_t *out_first, int64_t *out_end) {
  const Node *owner = node->alias ? node->alias : node;
  int64_t bytes = owner->storage.bytes - node->storage.delta;
  *out_first = (owner->storage.offset + node->storage.delta) / 64;
  if (node->placed && owner->op == OP_CONCAT && node->layout.kind != LAYOUT_CHANNEL_LAST) {
    const int64_t block = node->layout.block > 1 ? node->layout.block : 1;
    bytes = node->shape.dims[1] / block * node->storage.stride[1] * 4;
  } else if ((node->placed && owner->op != OP_CONCAT) || (!node->placed && node->storage.delta > 0)) {
    bytes = node->storage.bytes;
  }
  *out_end = ceil_div(owner->storage.offset + node->storage.delta + bytes, 64);
}

static void replay_write(Replay *replay, const Node *node) {
  const Node *owner = node->alias ? node->alias : node;
  int area = replay_area(owner);
  if (area < 0) return;
  int64_t first, end;
  assert_int_equal(owner->storage.offset % 64, 0);
  replay_lines(node, &first, &end);
  for (int64_t line = first; line < end; line++) replay->writer[area][line] = owner->id + 1;
}

static void replay_check(const Replay *replay, const Node *node) {
  const Node *owner = node->alias ? node->alias : node;
  int area = replay_area(owner);
  if (area < 0) return;
  int64_t first, end;
  replay_lines(node, &first, &end);
  for (int64_t line = first; line < end; line++) assert_int_equal(replay->writer[area][line], owner->id + 1);
}

static void replay_inputs(const Replay *replay, const Node *node) {
  for (int32_t i = 0; i < node->input_count; i++) replay_check(replay, node->inputs[i]);
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
  for (size_t k = 0; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    const Node *node = find_node(graph, kernel->node_id);
    const Node *reader = kernel->pool ? find_node(graph, kernel->pool->node_id) : node;
    int32_t hosted = 0;
    replay_inputs(&replay, reader);
    replay_write(&replay, node);
    for (size_t i = 0; i < graph->node_count; i++) {
      if (!graph->nodes[i]->hosted || graph->nodes[i]->inputs[0] != node) continue;
      replay_write(&replay, graph->nodes[i]);
      hosted++;
    }
    assert_int_equal(kernel->reduction_count, hosted);
    replay_check(&replay, node); /* nothing that the kernel writes covers anything else of it */
    replay_inputs(&replay, reader);
  }
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
    if (!owner || node->placed) continue;
    int64_t count = 0;
    assert_null(owner->alias);
    assert_true(shape_elements(&node->shape, 2, &count));
    assert_true(node->storage.bytes <= owner->storage.bytes);
    for (int side = 0; side < 4; side++) assert_int_equal(node->storage.halo[side], owner->storage.halo[side]);
    for (int64_t element = 0; element < count; element++)
      assert_int_equal(element_offset(node, element), element_offset(owner, element));
  }
}

/* What is computed inside a concat has its elements where the concat has them. */
static void check_placed(const Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *concat = graph->nodes[i];
    if (concat->op != OP_CONCAT || !concat->filled) continue;
    int64_t before = 0, inner = 1;
    for (int32_t d = 2; d < concat->shape.rank; d++) inner *= concat->shape.dims[d];
    for (int32_t k = 0; k < concat->op_input_count; k++) {
      const Node *piece = concat->inputs[k];
      const int64_t channels = piece->shape.dims[1], all = concat->shape.dims[1];
      assert_true(piece->placed && piece->alias == concat);
      for (int side = 0; side < 4; side++) assert_int_equal(piece->storage.halo[side], concat->storage.halo[side]);
      for (int64_t element = 0; element < 2 * channels * inner; element++) {
        const int64_t image = element / (channels * inner), rest = element % (channels * inner);
        const int64_t joined = image * all * inner + before * inner + rest;
        assert_int_equal(piece->storage.delta / 4 + element_offset(piece, element), element_offset(concat, joined));
      }
      before += channels;
    }
    assert_int_equal(before, concat->shape.dims[1]);
  }
}

static void check_halos(const Plan *plan) {
  for (size_t k = 0; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    if (kernel->op != OP_CONV2D || kernel->output.layout.kind == LAYOUT_PLAIN) continue;
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
  check_placed(graph);
  check_halos(plan);
  check_phases(plan);
  check_outputs(graph);
}
