#include "arena_planner.h"

#include "base/checked.h"
#include "base/sort.h"

/* Which placed blocks are alive at the same time as a given one: blocks in order of their first step, with a tree
 * of the latest last step of the placed ones below each node, so that a query visits little more than its result. */
typedef struct LifeIndex {
  const ArenaBlock **order; /* by first step */
  size_t *position;         /* of a block in `order` */
  int32_t *latest;          /* heap-shaped tree over `order`; -1: nothing placed */
  size_t leaves;
} LifeIndex;

static int compare_first(const void *a, const void *b) {
  const ArenaBlock *left = a, *right = b;
  if (left->first != right->first) return left->first < right->first ? -1 : 1;
  return left < right ? -1 : left > right;
}

static int compare_larger(const void *a, const void *b) {
  const ArenaBlock *left = a, *right = b;
  if (left->size != right->size) return left->size > right->size ? -1 : 1;
  return compare_first(a, b);
}

static int compare_offset(const void *a, const void *b) {
  const ArenaBlock *left = a, *right = b;
  if (left->offset != right->offset) return left->offset < right->offset ? -1 : 1;
  return left < right ? -1 : left > right;
}

static const ArenaBlock **sorted(const ArenaBlock *blocks, size_t count, int (*compare)(const void *, const void *),
                                 Arena *scratch) {
  const void **items = arena_array(scratch, count, const void *), **spare = arena_array(scratch, count, const void *);
  for (size_t i = 0; i < count; i++) items[i] = &blocks[i];
  sort_pointers(items, spare, count, compare);
  return (const ArenaBlock **)items;
}

static LifeIndex index_create(const ArenaBlock *blocks, size_t count, Arena *scratch) {
  LifeIndex index = {.order = sorted(blocks, count, compare_first, scratch), .leaves = 1};
  while (index.leaves < count) index.leaves *= 2;
  index.position = arena_array(scratch, count, size_t);
  for (size_t i = 0; i < count; i++) index.position[index.order[i] - blocks] = i;
  index.latest = arena_array(scratch, index.leaves * 2, int32_t);
  for (size_t i = 0; i < index.leaves * 2; i++) index.latest[i] = -1;
  return index;
}

static void index_add(LifeIndex *index, size_t position) {
  int32_t last = index->order[position]->last;
  for (size_t i = index->leaves + position; i > 0; i /= 2)
    if (index->latest[i] < last) index->latest[i] = last;
}

/* Placed blocks alive with `block`, in order of their first step; returns how many. */
static size_t index_query(const LifeIndex *index, size_t count, const ArenaBlock *block, const void **out_blocks) {
  enum { STACK = 2 * 64 };
  size_t stack[STACK], depth = 0, found = 0;
  stack[depth++] = 1;
  while (depth) {
    size_t at = stack[--depth];
    if (index->latest[at] < block->first) continue;
    if (at >= index->leaves) {
      size_t position = at - index->leaves;
      if (position < count && index->order[position]->first <= block->last)
        out_blocks[found++] = index->order[position];
      continue;
    }
    /* The leftmost leaf below the right child: beyond it all start later. */
    size_t leaf = at * 2 + 1;
    while (leaf < index->leaves) leaf *= 2;
    leaf -= index->leaves;
    if (leaf < count && index->order[leaf]->first <= block->last) stack[depth++] = at * 2 + 1;
    stack[depth++] = at * 2;
  }
  return found;
}

/* Best-fitting gap below `blocks`, which are sorted by offset; the end when none is large enough. */
static int64_t best_gap(const void *const *blocks, size_t count, int64_t size) {
  int64_t end = 0, best = -1, best_gap_size = INT64_MAX;
  for (size_t i = 0; i < count; i++) {
    const ArenaBlock *other = blocks[i];
    int64_t gap = other->offset - end;
    if (gap >= size && gap < best_gap_size) best = end, best_gap_size = gap;
    if (other->offset + other->size > end) end = other->offset + other->size;
  }
  return best >= 0 ? best : end;
}

bool arena_plan(ArenaBlock *blocks, size_t count, Arena *scratch, int64_t *out_size) {
  *out_size = 0;
  if (count == 0) return true;
  int64_t total = 0; /* no offset can pass it, so later sums do not overflow */
  for (size_t i = 0; i < count; i++)
    if (!checked_add(total, blocks[i].size, &total)) return false;
  LifeIndex index = index_create(blocks, count, scratch);
  const ArenaBlock **order = sorted(blocks, count, compare_larger, scratch);
  const void **alive = arena_array(scratch, count, const void *), **spare = arena_array(scratch, count, const void *);
  for (size_t i = 0; i < count; i++) {
    ArenaBlock *block = &blocks[order[i] - blocks];
    block->offset = 0;
    if (block->size == 0) continue;
    size_t found = index_query(&index, count, block, alive);
    sort_pointers(alive, spare, found, compare_offset);
    block->offset = best_gap(alive, found, block->size);
    if (block->offset + block->size > *out_size) *out_size = block->offset + block->size;
    index_add(&index, index.position[order[i] - blocks]);
  }
  return true;
}

int64_t arena_plan_lower_bound(const ArenaBlock *blocks, size_t count, Arena *scratch) {
  int32_t steps = 0;
  for (size_t i = 0; i < count; i++)
    if (blocks[i].last + 1 > steps) steps = blocks[i].last + 1;
  int64_t *change = arena_array(scratch, (size_t)steps + 1, int64_t), alive = 0, most = 0;
  for (size_t i = 0; i < count; i++) {
    change[blocks[i].first] += blocks[i].size;
    change[blocks[i].last + 1] -= blocks[i].size;
  }
  for (int32_t step = 0; step < steps; step++) {
    alive += change[step];
    if (alive > most) most = alive;
  }
  return most;
}
