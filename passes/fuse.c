/* fuse: element-wise ops into the epilogue of the op that makes their input.
 *
 *   %c = conv2d %x, %w, %b;  %s = add %c, %r;  %y = relu %s
 *     → %y = conv2d %x, %w, %b, %r {epilogue=add relu}
 *
 * An epilogue is applied to a value while it is in registers, so each step saves writing and reading a tensor. The
 * fused node stands where the absorbed one stood: its other operands are available there, and nobody else waits for
 * the producer's value. It takes the id, name and layer of the absorbed node, so values can still be compared with
 * the description's. Chains of element-wise ops become one element-wise node with an epilogue.
 *
 * Requires: shapes; batch norms of inference gone. Guarantees: fused operands broadcast over the channels of an image
 * (or are scalars, or have its shape), as blocked kernels need. */
#include "kiln_abi.h"
#include "passes.h"
#include "rewrite.h"

/* Longer chains are cut: a kernel's code grows with every step. */
enum { EPILOGUE_STEPS_MAX = 32 };

static bool hosts_epilogue(const Node *node) {
  if (node->dtype != DTYPE_F32) return false;
  switch (node->op) {
    case OP_CONV2D:
    case OP_CONV_TRANSPOSE2D:
    case OP_LINEAR:
    case OP_MATMUL:
    case OP_BATCH_NORM: /* of training: given its statistics */
    case OP_MAX_POOL2D:
    case OP_AVG_POOL2D:
    case OP_ADAPTIVE_AVG_POOL2D:
    case OP_ADAPTIVE_MAX_POOL2D:
      return true;
    default:
      return op_is_elementwise(node->op);
  }
}

/* A blocked kernel reads an operand as an image of all channels, one value per channel, or one value. */
static bool operand_fits(const Shape *operand, const Shape *value) {
  if (value->rank != 4) return true;
  int64_t elements = 1;
  for (int32_t d = 0; d < operand->rank; d++) elements *= operand->dims[d] == 1 ? 1 : 2;
  if (elements == 1) return true;
  return operand->rank >= 3 && operand->dims[operand->rank - 3] == value->dims[1];
}

typedef struct FuseState {
  const uint32_t *uses;
  const bool *is_output, *prepared;
} FuseState;

/* Why `producer` cannot take `node` as the next step of its epilogue; NULL when it can. Reasons that say nothing
 * about the model (the producer is no kernel at all) are empty. */
static const char *obstacle(const FuseState *state, const Node *node, int32_t position) {
  const Node *producer = node->inputs[position];
  if (!hosts_epilogue(producer) || node->dtype != DTYPE_F32) return "";
  if (state->prepared[producer->id] != state->prepared[node->id]) return "";
  if (!shape_equal(&producer->shape, &node->shape)) return "The producer's value is broadcast to a larger shape.";
  if (state->is_output[producer->id]) return "The producer's own value is an output or hooked.";
  if (state->uses[producer->id] != 1) return "The producer's own value has several uses.";
  if (producer->epilogue_count >= EPILOGUE_STEPS_MAX) return "The epilogue has reached its largest length.";
  if (node->op_input_count == 2) {
    if (producer->input_count + 1 > KILN_MAX_OPERANDS - 1) return "A kernel cannot have more operands.";
    if (!operand_fits(&node->inputs[1 - position]->shape, &node->shape))
      return "The other operand does not broadcast over channels.";
  }
  return NULL;
}

/* Makes `node` the producer with one more step. */
static void absorb(Graph *graph, Node *node, int32_t position, bool prepared) {
  Node *producer = node->inputs[position];
  Node *operand = node->op_input_count == 2 ? node->inputs[1 - position] : NULL;
  OpCode op = node->op;
  Attrs attrs = node->attrs;
  node_become(graph, node, producer->op, &producer->attrs, producer->inputs, producer->input_count);
  node->op_input_count = producer->op_input_count;
  node->epilogue = producer->epilogue;
  node->epilogue_count = producer->epilogue_count;
  node->choice = producer->choice;
  node_add_epilogue(graph, node, op, &attrs, operand, position == 1);
  node_inherit_decisions(node, producer);
  if (prepared) return; /* nobody asks how weights are prepared */
  const char *name = producer->name ? arena_format(graph->arena, "'%s'", producer->name)
                                    : arena_format(graph->arena, "%%%u", producer->id);
  node_decide(graph, node, "fuse",
              arena_format(graph->arena, "%s joins %s %s", op_info(op)->name, op_info(node->op)->name, name),
              "a kernel of its own", "It is the only use of that value, which is never stored.");
}

bool pass_fuse(Graph *graph, const PassOptions *options, Diag *diag) {
  Arena *scratch = options->scratch;
  FuseState state = {graph_count_uses(graph, scratch), mark_hooked(graph, scratch),
                     mark_prepare_phase(graph, scratch)};
  bool *absorbed = arena_array(scratch, graph->next_id, bool);
  for (size_t i = 0; i < graph->node_count; i++) graph->nodes[i]->mark = (int32_t)i;

  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (!op_is_elementwise(node->op) || node->epilogue_count) continue;
    /* Of two producers the later one, which then hardly moves; the other's value is complete by then. */
    int32_t best = -1;
    const char *reason = "";
    for (int32_t p = 0; p < node->op_input_count; p++) {
      const char *why = obstacle(&state, node, p);
      if (why && *why) reason = why;
      if (!why && (best < 0 || node->inputs[p]->mark > node->inputs[best]->mark)) best = p;
    }
    if (best >= 0) {
      absorbed[node->inputs[best]->id] = true;
      absorb(graph, node, best, state.prepared[node->id]);
    } else if (*reason && !state.prepared[node->id]) {
      node_decide(graph, node, "fuse", "a kernel of its own", "joining the producer's epilogue", reason);
    }
  }

  Rewrite rewrite;
  rewrite_init(&rewrite, graph, scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++)
    if (!absorbed[graph->nodes[i]->id]) rewrite_append(&rewrite, graph->nodes[i]);
  rewrite_finish(&rewrite);
  return true;
}
