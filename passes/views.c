/* Joined values without copies: the pieces of a `pack` or a `concat` are computed where they belong.
 *
 *   %g = pack %a, %b : f32[24], %a : f32[8], %b : f32[4,4]   → %a placed in %g, %b placed in %g 32 bytes on; %g filled
 *   %c = concat %a, %b {dim=1} : f32[N,128,9,9] nchw16c      → %b placed in %c 64 channels on, an image of %c apart
 *   update state = %n                                        → %n placed in the parameter `state`
 *
 * A piece can be placed when a kernel of the same phase computes it as plain, dense values of this run, for no output,
 * and nothing else has placed it already; a reshape of such a value places the value. Other pieces of a `pack` are
 * copied first; a `concat` with one is computed as a whole. */
#include "views.h"

#include "base/checked.h"
#include "rewrite.h"

typedef struct Places {
  Placement *by_id;
  const bool *prepared, *output;
  int64_t unit; /* f32 elements: joined channels begin at multiples, where kernels read and write whole vectors */
} Places;

/* The value whose kernel writes the piece, behind reshapes. */
static Node *piece_owner(Node *piece) {
  while ((piece->op == OP_RESHAPE || piece->op == OP_FLATTEN) && piece->epilogue_count == 0 &&
         piece->layout.kind == LAYOUT_PLAIN && piece->inputs[0]->layout.kind == LAYOUT_PLAIN)
    piece = piece->inputs[0];
  return piece;
}

static bool can_place(const Places *places, const Node *owner, uint32_t ids) {
  if (owner->id >= ids || owner->op == OP_INPUT || owner->op == OP_PARAMETER || owner->hosted) return false;
  /* other views, which have no kernel */
  if (owner->op == OP_SLICE || owner->op == OP_IDENTITY || owner->op == OP_CONVERT || owner->op == OP_PACK)
    return false;
  if (owner->op == OP_DROPOUT && owner->op_input_count == 1) return false;
  return owner->layout.kind == LAYOUT_PLAIN && owner->dtype == DTYPE_F32 && !shape_batched(&owner->shape) &&
         !places->prepared[owner->id] && !places->output[owner->id] && !places->by_id[owner->id].into;
}

static bool place_pieces(Places *places, Rewrite *rewrite, Node *pack, uint32_t ids) {
  int64_t delta = 0;
  for (int32_t i = 0; i < pack->op_input_count; i++) {
    Node *owner = piece_owner(pack->inputs[i]);
    if (can_place(places, owner, ids)) {
      places->by_id[owner->id] = (Placement){pack, delta, -1};
    } else {
      Node *copy = rewrite_make(rewrite, OP_CONVERT, NULL, &pack->inputs[i], 1, pack);
      if (!copy) return false;
      node_decide(rewrite->graph, copy, "strides", "a copy", "computing it where it is joined",
                  "Its value is needed elsewhere too.");
      copy->placed = true; /* noted below, when there is room for its id */
      pack->inputs[i] = copy;
    }
    delta += shape_elements_per_image(&pack->inputs[i]->shape) * data_type_bytes(DTYPE_F32);
  }
  pack->filled = true;
  return true;
}

/* Joined along the channels in the order of the pieces, an image after the other. */
static bool joins_channels(const Node *concat) {
  const int64_t dim = concat->attrs.dim < 0 ? concat->attrs.dim + concat->shape.rank : concat->attrs.dim;
  if (dim != 1 || concat->epilogue_count || !shape_batched(&concat->shape) || concat->dtype != DTYPE_F32) return false;
  if (concat->layout.kind == LAYOUT_CHANNEL_BLOCK || concat->layout.kind == LAYOUT_CHANNEL_LAST) return true;
  return concat->layout.kind == LAYOUT_PLAIN && concat->shape.rank >= 2;
}

static bool can_place_channels(const Places *places, const Node *concat, int32_t i) {
  const Node *piece = concat->inputs[i];
  if (piece->op == OP_INPUT || piece->op == OP_PARAMETER || piece->hosted) return false;
  switch (piece->op) { /* views, or what may become one */
    case OP_SLICE:
    case OP_IDENTITY:
    case OP_DROPOUT:
    case OP_CONVERT:
    case OP_PERMUTE:
    case OP_RESHAPE:
    case OP_FLATTEN:
    case OP_CONCAT:
      return false;
    default:
      break;
  }
  for (int32_t k = 0; k < i; k++)
    if (concat->inputs[k] == piece) return false;
  return layout_equal(piece->layout, concat->layout) && !places->prepared[piece->id] && !places->output[piece->id] &&
         !places->by_id[piece->id].into;
}

/* A kernel that reads whole blocks of channels would read what follows a piece: pieces fill their blocks. */
static void place_channels(Places *places, Node *concat) {
  const int64_t block = concat->layout.kind == LAYOUT_CHANNEL_BLOCK ? concat->layout.block : 1;
  const int64_t unit =
      places->unit * data_type_bytes(concat->dtype) / layout_stored_bytes(concat->layout, concat->dtype);
  int64_t first = 0, inner = 1;
  for (int32_t d = 2; d < concat->shape.rank && concat->layout.kind != LAYOUT_CHANNEL_LAST; d++)
    inner *= concat->shape.dims[d];
  for (int32_t i = 0; i < concat->op_input_count; i++) {
    const int64_t channels = concat->inputs[i]->shape.dims[1];
    if (!can_place_channels(places, concat, i) || channels % block != 0 || first * inner % unit != 0) return;
    first += channels;
  }
  first = 0;
  for (int32_t i = 0; i < concat->op_input_count; i++) {
    places->by_id[concat->inputs[i]->id] = (Placement){concat, 0, first / block};
    first += concat->inputs[i]->shape.dims[1];
  }
  concat->filled = true;
}

/* Copies have ids that were unknown when the array was made. */
static void place_copies(Places *places, const Graph *graph, Arena *scratch, uint32_t ids) {
  Placement *grown = arena_array(scratch, graph->next_id, Placement);
  for (uint32_t id = 0; id < ids; id++) grown[id] = places->by_id[id];
  places->by_id = grown;
  for (size_t n = 0; n < graph->node_count; n++) {
    Node *pack = graph->nodes[n];
    if (pack->op != OP_PACK || !pack->filled) continue;
    int64_t delta = 0;
    for (int32_t i = 0; i < pack->op_input_count; i++) {
      Node *piece = pack->inputs[i];
      if (piece->id >= ids) grown[piece->id] = (Placement){pack, delta, -1};
      delta += shape_elements_per_image(&piece->shape) * data_type_bytes(DTYPE_F32);
    }
  }
}

Placement *views_place(Graph *graph, const PassOptions *options, Diag *diag) {
  const uint32_t ids = graph->next_id;
  Arena *scratch = options->scratch;
  Places places = {arena_array(scratch, ids, Placement), mark_prepare_phase(graph, scratch),
                   mark_outputs(graph, scratch), 1};
  const Target *target = options->target;
  if (target && target->image_layout == LAYOUT_CHANNEL_LAST) places.unit = target->vector_lanes;
  for (size_t i = 0; i < graph->update_count; i++) {
    const Update *update = &graph->updates[i];
    places.by_id[update->node->id] = (Placement){graph->parameters[update->parameter].node, 0, -1};
  }
  Rewrite rewrite;
  rewrite_init(&rewrite, graph, scratch, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    node->filled = node->placed = false;
    if (node->op == OP_CONCAT && joins_channels(node) && !places.prepared[node->id]) place_channels(&places, node);
    if (node->op == OP_PACK && !node->epilogue_count && !places.prepared[node->id] && !places.output[node->id] &&
        !place_pieces(&places, &rewrite, node, ids))
      return NULL;
    rewrite_append(&rewrite, node);
  }
  if (rewrite.count == graph->node_count) return places.by_id;
  rewrite_finish(&rewrite);
  place_copies(&places, graph, scratch, ids);
  return places.by_id;
}

int64_t views_slice_offset(const Node *node) {
  if (node->op != OP_SLICE || node->epilogue_count || node->layout.kind != LAYOUT_PLAIN) return -1;
  const Node *value = node->inputs[0];
  const Shape *shape = &value->shape;
  const int32_t dim = (int32_t)(node->attrs.dim < 0 ? node->attrs.dim + shape->rank : node->attrs.dim);
  int64_t inner = data_type_bytes(node->dtype);
  for (int32_t d = 0; d < dim; d++)
    if (shape->dims[d] != 1) return -1;
  for (int32_t d = dim + 1; d < shape->rank; d++) inner *= shape->dims[d];
  return node->attrs.start * inner;
}
