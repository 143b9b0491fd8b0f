/* strides: how far apart elements are, for every value.
 *
 *   %c = conv2d … : f32[N,64,56,56] nchw16c, read by a 3x3 convolution with padding 1
 *     → 58 rows of 58 pixels: a halo of zeros, so that the reader needs no bounds checks
 *   %f = flatten %p : f32[N,512], %p : f32[N,512,1,1] nchw16c      → the same memory as %p: no kernel
 *
 * Rows of blocked values start at multiples of a vector, images at multiples of 64 bytes. Plain values are dense,
 * except copies made for a halo. Every kernel that writes a value writes its halo too. A value that is only another
 * view of one (reshape, flatten, identity, dropout in inference, convert between equal orders) becomes its alias.
 *
 * Slices that lie together are views with a distance, and what a `pack` joins is computed inside it: views.c.
 *
 * Requires: layout. Guarantees: stride, origin, halo, bytes and delta of every storage; node->alias is the value that
 * owns the memory, never itself an alias; at most one output per owner, and that owner is no source and not prepared. */
#include "base/checked.h"
#include "kiln_abi.h"
#include "passes.h"
#include "rewrite.h"
#include "views.h"
#include "winograd.h"
#include "work.h"

enum { TOP, LEFT, BOTTOM, RIGHT };

typedef struct Halo {
  int32_t side[4];
} Halo;

static bool halo_none(const Halo *halo) { return !halo->side[0] && !halo->side[1] && !halo->side[2] && !halo->side[3]; }

static void halo_cover(Halo *halo, const int64_t sides[4]) {
  for (int side = 0; side < 4; side++)
    if (sides[side] > halo->side[side]) halo->side[side] = (int32_t)sides[side];
}

/* --- strides of one value ---------------------------------------------------------------------------- */

/* stride[d] = extent[d+1] * stride[d+1] and so on from the innermost; false on overflow. */
static bool fill_strides(int32_t rank, const int64_t *extents, int64_t inner, int64_t *out_strides,
                         int64_t *out_total) {
  int64_t step = inner;
  for (int32_t d = rank - 1; d >= 0; d--) {
    out_strides[d] = step;
    if (!checked_mul(step, extents[d] > 0 ? extents[d] : 1, &step)) return false;
  }
  *out_total = step;
  return true;
}

/* Storage but for its place. False when the size does not fit. */
static bool lay_out(const Node *node, const Halo *halo, Storage *out) {
  const Shape *shape = &node->shape;
  int32_t rank = shape->rank;
  int64_t block = node->layout.block, extents[SHAPE_MAX_RANK], total, inner = 1;
  const int64_t element = layout_stored_bytes(node->layout, node->dtype);
  bool batched = shape_batched(shape);
  if (layout_is_winograd(node->layout.kind)) {
    const int64_t padding[4] = {halo->side[TOP], halo->side[LEFT], halo->side[BOTTOM], halo->side[RIGHT]};
    return winograd_storage(node->layout, shape, element, padding, out);
  }
  *out = (Storage){.space = SPACE_NONE};
  for (int32_t d = 0; d < rank; d++) extents[d] = shape->dims[d] < 0 ? 1 : shape->dims[d];
  switch (node->layout.kind) {
    case LAYOUT_CHANNEL_BLOCK:
      extents[1] = ceil_div(extents[1], block);
      inner = block;
      break;
    case LAYOUT_FILTER_BLOCK:
    case LAYOUT_FILTER_TILES:
    case LAYOUT_MATRIX_BLOCK:
      extents[0] = ceil_div(extents[0], block);
      inner = block;
      break;
    case LAYOUT_FILTER_HALVES:
    case LAYOUT_FILTER_THIRDS: /* two or three numbers of 16 bits for one of f32 */
      extents[0] = ceil_div(extents[0], block);
      inner = block * layout_parts(node->layout) / 2;
      break;
    case LAYOUT_VECTOR_BLOCK:
      extents[0] = round_up(extents[0], block);
      break;
    case LAYOUT_BATCH_BLOCK:
      extents[0] = batched ? 1 : ceil_div(extents[0], block);
      inner = block;
      break;
    case LAYOUT_FILTER_LAST:
      extents[1] = round_up(extents[1], block);
      break;
    default:
      break;
  }
  if (!halo_none(halo)) {
    for (int side = 0; side < 4; side++) out->halo[side] = halo->side[side];
    if (!checked_add(extents[2], (int64_t)halo->side[TOP] + halo->side[BOTTOM], &extents[2])) return false;
    if (!checked_add(extents[3], (int64_t)halo->side[LEFT] + halo->side[RIGHT], &extents[3])) return false;
  }
  if (node->layout.kind == LAYOUT_CHANNEL_LAST || node->layout.kind == LAYOUT_FILTER_LAST) {
    const int64_t order[4] = {extents[0], extents[2], extents[3], extents[1]};
    int64_t strides[4];
    if (!fill_strides(4, order, 1, strides, &total)) return false;
    out->stride[0] = strides[0], out->stride[2] = strides[1], out->stride[3] = strides[2], out->stride[1] = strides[3];
  } else if (!fill_strides(rank, extents, inner, out->stride, &total)) {
    return false;
  }
  if (node->layout.kind == LAYOUT_CHANNEL_BLOCK) {
    int64_t aligned;
    if (!checked_add(out->stride[0], KILN_ALIGNMENT / element - 1, &aligned)) return false;
    out->stride[0] = aligned / (KILN_ALIGNMENT / element) * (KILN_ALIGNMENT / element);
    if (!checked_mul(out->stride[0], extents[0], &total)) return false;
  }
  if (rank == 4) out->origin = halo->side[TOP] * out->stride[2] + halo->side[LEFT] * out->stride[3];
  for (int32_t d = batched ? 1 : 0; d < rank; d++)
    if (shape->dims[d] == 0) total = 0;
  if (node->layout.kind == LAYOUT_BATCH_BLOCK && batched) total /= block; /* an image's share */
  return checked_mul(total, element, &out->bytes);
}

/* --- aliases ----------------------------------------------------------------------------------------- */

static bool is_dense(const Node *node) {
  int64_t step = 1;
  if (node->layout.kind != LAYOUT_PLAIN) return false;
  for (int32_t d = node->shape.rank - 1; d >= 0; d--) {
    if (node->storage.stride[d] != step) return false;
    step *= node->shape.dims[d] > 0 ? node->shape.dims[d] : 1;
  }
  return true;
}

/* The elements of an image of a batch-blocked value follow each other without gaps. */
static bool is_batch_dense(const Node *node) {
  int64_t step = node->layout.block;
  if (node->layout.kind != LAYOUT_BATCH_BLOCK) return false;
  for (int32_t d = node->shape.rank - 1; d >= 1; d--) {
    if (node->storage.stride[d] != step) return false;
    step *= node->shape.dims[d];
  }
  return true;
}

/* The same for values with channels last: where there is one place or one channel, strides of the others are all that
 * counts. */
static bool same_channel_last_order(const Node *value, const Node *node) {
  const Layout *other = value->layout.kind == LAYOUT_CHANNEL_LAST ? &node->layout : &value->layout;
  if (other->kind != LAYOUT_PLAIN && other->kind != LAYOUT_CHANNEL_LAST) return false;
  for (int32_t d = 0; d < 4; d++)
    if (value->shape.dims[d] != 1 && value->storage.stride[d] != node->storage.stride[d]) return false;
  return value->storage.origin == node->storage.origin;
}

/* Plain and blocked storage of [N, C, 1, 1] are the same bytes when images are C elements apart in both: then C fills
 * its blocks. */
static bool same_order(const Node *value, const Node *node) {
  if (value->layout.kind == LAYOUT_CHANNEL_LAST || node->layout.kind == LAYOUT_CHANNEL_LAST)
    return same_channel_last_order(value, node);
  const Node *blocked = value->layout.kind == LAYOUT_CHANNEL_BLOCK ? value : node,
             *other = blocked == value ? node : value;
  if (blocked->layout.kind != LAYOUT_CHANNEL_BLOCK || other->layout.kind != LAYOUT_PLAIN) return false;
  const int64_t *dims = blocked->shape.dims;
  return dims[2] == 1 && dims[3] == 1 && blocked->storage.stride[0] == dims[1] && other->storage.stride[0] == dims[1] &&
         blocked->storage.origin == 0 && other->storage.origin == 0;
}

static bool same_halo(const Node *a, const Node *b) {
  for (int side = 0; side < 4; side++)
    if (a->storage.halo[side] != b->storage.halo[side]) return false;
  return true;
}

static bool same_strides(const Node *a, const Node *b) {
  for (int32_t d = 0; d < a->shape.rank; d++)
    if (a->storage.stride[d] != b->storage.stride[d]) return false;
  return a->storage.origin == b->storage.origin;
}

/* Elements are where they were: only the names of dimensions change, as from plain [N,H,W,C] to channels last. */
static bool permutes_in_place(const Node *value, const Node *node) {
  const int32_t rank = node->shape.rank;
  for (int i = 0; i < 2; i++) {
    const LayoutKind kind = (i == 0 ? value : node)->layout.kind;
    if (kind != LAYOUT_PLAIN && kind != LAYOUT_CHANNEL_LAST) return false;
  }
  for (int32_t d = 0; d < rank; d++) {
    const int64_t dim = node->attrs.dims.values[d];
    if (node->storage.stride[d] != value->storage.stride[dim < 0 ? dim + rank : dim]) return false;
  }
  return value->storage.origin == node->storage.origin && value->storage.bytes == node->storage.bytes;
}

/* The node computes nothing: its bytes are those of its input. Storages of both are laid out. */
static bool is_view(const Node *node, bool training) {
  if (node->epilogue_count || node->input_count != 1) return false;
  const Node *value = node->inputs[0];
  if (value->dtype != node->dtype || value->layout.element != node->layout.element) return false;
  switch (node->op) {
    case OP_RESHAPE:
    case OP_FLATTEN:
      if (is_batch_dense(value) && is_batch_dense(node)) return layout_equal(value->layout, node->layout);
      return is_dense(value) && is_dense(node);
    case OP_DROPOUT:
      if (training) return false;
      /* fall through */
    case OP_IDENTITY:
      return layout_equal(value->layout, node->layout) && same_halo(value, node) && same_strides(value, node);
    case OP_CONVERT:
      if (!layout_equal(value->layout, node->layout)) return same_order(value, node);
      return same_halo(value, node) && same_strides(value, node);
    case OP_SLICE:
      return is_dense(value) && is_dense(node) && views_slice_offset(node) >= 0;
    case OP_PERMUTE:
      return permutes_in_place(value, node);
    default:
      return false;
  }
}

typedef struct AliasState {
  const bool *prepared, *is_output, *read_by_run, *updated;
  bool *owner_is_output; /* by id: some alias of this value, or itself, is an output */
} AliasState;

/* Whether the value may live in the owner's memory. */
static bool may_share(const AliasState *state, const Node *node, const Node *owner) {
  bool source = owner->op == OP_INPUT || owner->op == OP_PARAMETER;
  if (state->is_output[node->id]) return !source && !state->prepared[owner->id] && !state->owner_is_output[owner->id];
  /* parameters are gone when the program runs */
  return owner->op != OP_PARAMETER || state->updated[owner->id] || !state->read_by_run[node->id];
}

/* --- the pass ---------------------------------------------------------------------------------------- */

static bool passes_storage_on(const Node *node) { return node->op == OP_IDENTITY || node->op == OP_DROPOUT; }

/* Winograd's input transform reads whole tiles, also where the last ones reach beyond the padding. Where it is a node
 * of its own, the padding is that of the convolution that reads its tiles. */
static void cover_tiles(const Node *node, Halo *halos) {
  bool tiles = node->op == OP_CONVERT && layout_is_winograd_tiles(node->layout.kind);
  const bool reads_image = node->op == OP_CONV2D && !layout_is_winograd_image(node->inputs[0]->layout.kind);
  const WinogradForm form = tiles ? winograd_form(node->layout.kind) : algorithm_winograd_form(node->choice.algorithm);
  if (form.outputs == 0 || (!tiles && !reads_image)) return;
  const Node *input = node->inputs[0];
  const int32_t *side = halos[node->id].side;
  const int64_t of_reader[4] = {side[TOP], side[LEFT], side[BOTTOM], side[RIGHT]};
  int64_t reach[4];
  winograd_reach(form, input->shape.dims[2], input->shape.dims[3], tiles ? of_reader : node->attrs.padding.values,
                 reach);
  halo_cover(&halos[input->id], reach);
}

/* What is computed inside a concat has its halo, and other readers of the pieces want theirs too. */
static void join_halos(const Node *concat, Halo *halos) {
  Halo *whole = &halos[concat->id];
  for (int32_t i = 0; i < concat->op_input_count; i++)
    for (int side = 0; side < 4; side++) {
      const int32_t wanted = halos[concat->inputs[i]->id].side[side];
      if (wanted > whole->side[side]) whole->side[side] = wanted;
    }
}

/* A plain image that was copied for a convolution along rows. */
static bool reads_padded_copy(const Node *node) {
  const Node *input = node->inputs[0];
  return node->layout.kind == LAYOUT_PLAIN && node->choice.algorithm == ALGORITHM_REFERENCE &&
         input->op == OP_CONVERT && input->layout.kind == LAYOUT_PLAIN && input->inputs[0]->layout.kind == LAYOUT_PLAIN &&
         shape_equal(&input->shape, &input->inputs[0]->shape) &&
         work_along_rows(&node->attrs, &node->inputs[1]->shape, &node->shape);
}

/* The halo that the readers of each value want, by id. `last_has_halo`: so do those of values with channels last. */
static Halo *collect_halos(const Graph *graph, bool last_has_halo, Arena *scratch) {
  Halo *halos = arena_array(scratch, graph->next_id, Halo);
  for (size_t i = graph->node_count; i-- > 0;) {
    const Node *node = graph->nodes[i];
    const bool has_halo =
        node->layout.kind == LAYOUT_CHANNEL_BLOCK || (last_has_halo && node->layout.kind == LAYOUT_CHANNEL_LAST);
    if (node->op == OP_CONV2D && (has_halo || reads_padded_copy(node)))
      halo_cover(&halos[node->inputs[0]->id], node->attrs.padding.values);
    cover_tiles(node, halos);
    if (passes_storage_on(node) && has_halo)
      for (int side = 0; side < 4; side++) {
        int32_t *wanted = &halos[node->inputs[0]->id].side[side];
        if (halos[node->id].side[side] > *wanted) *wanted = halos[node->id].side[side];
      }
  }
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_CONCAT && graph->nodes[i]->filled) join_halos(graph->nodes[i], halos);
  return halos;
}

static bool *mark_read_by_run(const Graph *graph, const bool *prepared, Arena *scratch) {
  bool *read = arena_array(scratch, graph->next_id, bool);
  for (size_t i = graph->node_count; i-- > 0;) {
    const Node *node = graph->nodes[i];
    if (node->op == OP_INPUT || node->op == OP_PARAMETER) continue;
    /* a view of a view is read where its owner lies */
    bool view = node->op == OP_RESHAPE || node->op == OP_FLATTEN || node->op == OP_CONVERT || node->op == OP_SLICE ||
                node->op == OP_PERMUTE || passes_storage_on(node);
    for (int32_t j = 0; j < node->input_count; j++)
      if (!prepared[node->id] || (view && read[node->id])) read[node->inputs[j]->id] = true;
  }
  return read;
}

static void decide_storage(Graph *graph, Node *node, const Halo *halo) {
  if (node->placed)
    node_decide(graph, node, "strides",
                node->alias->op == OP_PARAMETER ? "computed in the parameter's memory" : "computed where it is joined",
                "a copy", "Nothing else needs that memory until then.");
  else if (node->alias && node->name)
    node_decide(graph, node, "strides", "no kernel: shares its input's memory", "a copy",
                "The bytes would be the same.");
  else if (!halo_none(halo))
    node_decide(graph, node, "strides",
                arena_format(graph->arena, "halo %d,%d,%d,%d (top, left, bottom, right)", halo->side[TOP],
                             halo->side[LEFT], halo->side[BOTTOM], halo->side[RIGHT]),
                "bounds checks in the reading convolution", "Readers with padding load zeros from the halo.");
}

/* Strides, halo and extent are those of the whole; only where the value begins is its own. */
static bool place_in_concat(Node *node, const Placement *placement, const Halo *halo) {
  lay_out(placement->into, halo, &node->storage); /* it has been found to fit, or will be reported */
  node->storage.delta = placement->channel * node->storage.stride[1] * layout_stored_bytes(node->layout, node->dtype);
  return true;
}

/* By id: the place of the last node that reads the value; beyond the array when another view of it may be read. */
static size_t *collect_last_readers(const Graph *graph, Arena *scratch) {
  size_t *last = arena_array(scratch, graph->next_id, size_t);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    const bool view = node->op == OP_RESHAPE || node->op == OP_FLATTEN || node->op == OP_CONVERT ||
                      node->op == OP_SLICE || node->op == OP_PERMUTE || passes_storage_on(node);
    for (int32_t j = 0; j < node->input_count; j++) {
      size_t *reader = &last[node->inputs[j]->id];
      if (*reader < graph->node_count) *reader = view ? graph->node_count : i;
    }
  }
  return last;
}

/* The value whose memory the node may overwrite: a batch norm's gradient is computed element by element from that of
 * its result, which nothing reads afterwards. NULL: none. */
static Node *overwritten(const Node *node, const bool *is_output, const size_t *last_reader, size_t place) {
  if (node->op != OP_BATCH_NORM_GRAD_INPUT || node->op_input_count < 7 || node->epilogue_count > 0) return NULL;
  Node *gradient = node->inputs[4];
  const bool source = gradient->op == OP_INPUT || gradient->op == OP_PARAMETER;
  if (source || gradient->alias || is_output[gradient->id] || is_output[node->id] || last_reader[gradient->id] != place)
    return NULL;
  const bool alike = layout_equal(gradient->layout, node->layout) && same_halo(gradient, node);
  return alike && node->layout.kind == LAYOUT_BATCH_BLOCK ? gradient : NULL;
}

bool pass_strides(Graph *graph, const PassOptions *options, Diag *diag) {
  Arena *scratch = options->scratch;
  const Placement *placements = views_place(graph, options, diag);
  if (!placements) return false;
  const bool tests_bounds = options->target && options->target->image_layout == LAYOUT_CHANNEL_LAST;
  Halo *halos = collect_halos(graph, !tests_bounds, scratch);
  AliasState state = {.prepared = mark_prepare_phase(graph, scratch), .is_output = mark_outputs(graph, scratch)};
  state.read_by_run = mark_read_by_run(graph, state.prepared, scratch);
  state.owner_is_output = arena_array(scratch, graph->next_id, bool);
  state.updated = graph_mark_updated(graph, scratch);
  const size_t *last_reader = collect_last_readers(graph, scratch);
  bool valid = true;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    node->alias = NULL;
    if (!lay_out(node, &halos[node->id], &node->storage)) {
      valid = node_error(diag, node, "the value's size in memory exceeds 2^63 - 1 bytes");
      continue;
    }
    Node *owner = node->input_count ? node->inputs[0] : NULL,
         *under = overwritten(node, state.is_output, last_reader, i);
    const Placement *placement = &placements[node->id];
    if (placement->into) {
      node->alias = placement->into;
      node->placed = true;
      node->storage.delta = placement->delta;
      if (placement->channel >= 0 && valid) valid = place_in_concat(node, placement, &halos[placement->into->id]);
    } else if (under) {
      node->alias = under;
      node->placed = true;
    } else if (valid && owner && is_view(node, options->training) &&
               may_share(&state, node, owner->alias ? owner->alias : owner)) {
      node->alias = owner->alias ? owner->alias : owner;
      node->storage.delta = owner->storage.delta + (node->op == OP_SLICE ? views_slice_offset(node) : 0);
    }
    if (state.is_output[node->id]) state.owner_is_output[node->alias ? node->alias->id : node->id] = true;
    if (!state.prepared[node->id]) decide_storage(graph, node, &halos[node->id]);
  }
  return valid;
}
