/* memory: gives every value its place.
 *
 *   batched values of a run      → workspace, per-image part: offset * batch   (images of a value stay together);
 *                                  where kernels compute b images at a time, offset * (batch + b − 1)
 *   other values of a run        → workspace, fixed part; in a training step batched ones too, for the largest batch
 *   prepared values runs read    → prepared blob, one after the other
 *   other prepared values        → scratch of the prepare phase
 *   outputs, inputs, parameters  → the caller's memory
 *
 * A value lives from the kernel that makes it to its last reader, both included, so no kernel's output overlaps its
 * inputs. A hosted reduction is made by its input's kernel. Aliases extend the life of their owner. Kernels of a stretch
 * are one: some images are through it before others begin.
 *
 * Requires: strides. Guarantees: all offsets are multiples of 64; values alive at the same time do not overlap; the
 * graph's workspace sizes are set. */
#include "arena_planner.h"
#include "base/checked.h"
#include "kiln_abi.h"
#include "passes.h"
#include "rewrite.h"

/* A value that owns memory of a planned pool. */
typedef struct Pool {
  ArenaBlock *blocks;
  Node **owners;
  size_t count;
} Pool;

/* By node: the first and the last one of its stretch, or itself. */
typedef struct Spans {
  int32_t *first, *last;
} Spans;

static Spans collect_spans(const Graph *graph, Arena *scratch) {
  Spans spans = {arena_array(scratch, graph->node_count, int32_t), arena_array(scratch, graph->node_count, int32_t)};
  for (size_t i = 0; i < graph->node_count;) {
    const uint32_t stretch = graph->nodes[i]->stretch;
    size_t end = i + 1;
    for (size_t j = end; stretch != 0 && j < graph->node_count; j++) {
      if (graph->nodes[j]->stretch == stretch) end = j + 1;
      if (graph->nodes[j]->stretch != stretch && node_has_kernel(graph->nodes[j])) break;
    }
    for (size_t j = i; j < end; j++) spans.first[j] = (int32_t)i, spans.last[j] = (int32_t)end - 1;
    i = end;
  }
  return spans;
}

typedef struct Lifetimes {
  int32_t *first, *last; /* by owner's id: positions of kernels in the graph */
  bool *read_by_run;     /* by owner's id */
  int32_t *output;       /* by owner's id: index of the output that it is, or -1 */
} Lifetimes;

static Node *owner_of(Node *node) { return node->alias ? node->alias : node; }

static Lifetimes collect_lifetimes(const Graph *graph, const bool *prepared, Arena *scratch) {
  Lifetimes lives = {arena_array(scratch, graph->next_id, int32_t), arena_array(scratch, graph->next_id, int32_t),
                     arena_array(scratch, graph->next_id, bool), arena_array(scratch, graph->next_id, int32_t)};
  int32_t *made = arena_array(scratch, graph->next_id, int32_t); /* by id: where the kernel stands */
  const Spans spans = collect_spans(graph, scratch);
  for (size_t i = 0; i < graph->next_id; i++) lives.output[i] = -1, lives.first[i] = INT32_MAX;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->alias && !node->placed) continue; /* no kernel: reads nothing */
    const uint32_t written = owner_of(node)->id;
    if (spans.first[i] < lives.first[written]) lives.first[written] = spans.first[i];
    lives.last[written] = spans.last[i];
    made[node->id] = spans.first[i];
    if (node->hosted) { /* written when its input is, and reads no memory */
      lives.first[node->id] = made[node->inputs[0]->id];
      continue;
    }
    for (int32_t j = 0; j < node->input_count; j++) {
      uint32_t owner = owner_of(node->inputs[j])->id;
      lives.last[owner] = spans.last[i];
      if (!prepared[node->id]) lives.read_by_run[owner] = true;
    }
  }
  for (size_t i = 0; i < graph->output_count; i++) lives.output[owner_of(graph->outputs[i].node)->id] = (int32_t)i;
  return lives;
}

static Pool pool_create(size_t capacity, Arena *scratch) {
  return (Pool){arena_array(scratch, capacity, ArenaBlock), arena_array(scratch, capacity, Node *), 0};
}

static void pool_add(Pool *pool, Node *node, int64_t size, const Lifetimes *lives) {
  pool->blocks[pool->count] = (ArenaBlock){size, lives->first[node->id], lives->last[node->id], 0};
  pool->owners[pool->count++] = node;
}

static bool pool_place(Pool *pool, Arena *scratch, int64_t *out_size) {
  if (!arena_plan(pool->blocks, pool->count, scratch, out_size)) return false;
  for (size_t i = 0; i < pool->count; i++) pool->owners[i]->storage.offset = pool->blocks[i].offset;
  return true;
}

static bool whole_workspace_fits(const Graph *graph) {
  int64_t bytes;
  return checked_mul(graph->workspace_per_batch, graph->max_batch > 1 ? graph->max_batch : 1, &bytes) &&
         checked_add(bytes, graph->workspace_fixed, &bytes);
}

/* Kernels that compute b images together also write those behind the last one: the per-image part has room for b − 1
 * more, by which every offset in it grows. */
static bool pad_batch(Graph *graph) {
  int64_t bytes;
  return checked_mul(graph->workspace_per_batch, graph_batch_unit(graph) - 1, &bytes) &&
         checked_add(graph->workspace_fixed, bytes, &graph->workspace_fixed);
}

static void copy_place_to_aliases(Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (!node->alias) continue;
    node->storage.space = node->alias->storage.space;
    node->storage.index = node->alias->storage.index;
    node->storage.offset = node->alias->storage.offset; /* plus delta, which is the node's own */
  }
}

/* Reports how close the plan is to what is unavoidable, on the graph's first output. */
static void decide_memory(Graph *graph, const Pool *images, const Pool *fixed, Arena *scratch) {
  if (!graph->output_count) return;
  node_decide(graph, graph->outputs[0].node, "memory",
              arena_format(graph->arena, "workspace of %lld bytes per image and %lld fixed",
                           (long long)graph->workspace_per_batch, (long long)graph->workspace_fixed),
              "a buffer for every value",
              arena_format(graph->arena, "At one step %lld and %lld bytes are alive: no plan can take less.",
                           (long long)arena_plan_lower_bound(images->blocks, images->count, scratch),
                           (long long)arena_plan_lower_bound(fixed->blocks, fixed->count, scratch)));
}

bool pass_memory(Graph *graph, const PassOptions *options, Diag *diag) {
  Arena *scratch = options->scratch;
  const bool *prepared = mark_prepare_phase(graph, scratch);
  Lifetimes lives = collect_lifetimes(graph, prepared, scratch);
  Pool images = pool_create(graph->node_count, scratch), fixed = pool_create(graph->node_count, scratch),
       prepare = pool_create(graph->node_count, scratch);
  graph->prepared_bytes = 0;
  bool *unstored = arena_array(scratch, graph->next_id, bool); /* by id: what hosted pools read */
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->hosted && graph->nodes[i]->op == OP_MAX_POOL2D)
      unstored[graph->nodes[i]->inputs[0]->id] = true;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    Storage *storage = &node->storage;
    if (node->alias || unstored[node->id]) continue;
    int64_t size;
    if (!checked_add(storage->bytes, KILN_ALIGNMENT - 1, &size))
      return node_error(diag, node, "the value's size in memory exceeds 2^63 - 1 bytes");
    size = size / KILN_ALIGNMENT * KILN_ALIGNMENT;
    storage->index = 0;
    storage->offset = 0;
    if (node->op == OP_INPUT || node->op == OP_PARAMETER) {
      storage->space = node->op == OP_INPUT ? SPACE_INPUT : SPACE_PARAMETER;
      storage->index = node->port;
    } else if (lives.output[node->id] >= 0) {
      storage->space = SPACE_OUTPUT;
      storage->index = lives.output[node->id];
    } else if (prepared[node->id] && lives.read_by_run[node->id]) {
      storage->space = SPACE_PREPARED;
      storage->offset = graph->prepared_bytes;
      if (!checked_add(graph->prepared_bytes, size, &graph->prepared_bytes))
        return node_error(diag, node, "the prepared weights exceed 2^63 - 1 bytes");
    } else if (prepared[node->id]) {
      storage->space = SPACE_SCRATCH;
      pool_add(&prepare, node, size, &lives);
    } else {
      storage->space = SPACE_WORKSPACE;
      const bool batched = shape_batched(&node->shape);
      if (batched && graph_fixes_batch(graph) && !checked_mul(size, round_up(graph->max_batch, BATCH_UNIT), &size))
        return node_error(diag, node, "the value's size in memory exceeds 2^63 - 1 bytes");
      pool_add(batched && !graph_fixes_batch(graph) ? &images : &fixed, node, size, &lives);
    }
  }
  if (!pool_place(&images, scratch, &graph->workspace_per_batch) ||
      !pool_place(&fixed, scratch, &graph->workspace_fixed) ||
      !pool_place(&prepare, scratch, &graph->prepare_scratch) || !pad_batch(graph) || !whole_workspace_fits(graph)) {
    diag_error(diag, (Location){.file = graph->file}, "the workspace for batch %lld exceeds 2^63 - 1 bytes",
               (long long)graph->max_batch);
    return false;
  }
  copy_place_to_aliases(graph);
  decide_memory(graph, &images, &fixed, scratch);
  return true;
}
