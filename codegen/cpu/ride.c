#include "ride.h"

#include <assert.h>

#include "base/checked.h"
#include "kiln_abi.h"
#include "stats_block.h"

/* What a reduction's op does; each gets the state that `open` made. */
typedef struct RideOps {
  /* Makes the state, which is set up at `*out_memory` when that is known; returns the bytes of memory that it needs. */
  void *(*open)(Emit *emit, const PlanReduction *reduction, int32_t lanes, int64_t vectors, int64_t *out_bytes);
  void (*place)(void *state, Value memory);
  void (*begin)(void *state);
  /* `valid` lanes of `count` vectors; NULL: all of them. `block`: of channels, or NULL. */
  void (*take)(void *state, const Value *values, int32_t count, int32_t lanes, Value valid, Value block);
  void (*row)(void *state);
  void (*end)(void *state, const PlanTensor *output, Value base, Value item);
} RideOps;

enum { NOTES_MAX = 64 };

typedef struct Rider {
  const RideOps *ops;
  const PlanReduction *reduction;
  Value base;
  void *state;
} Rider;

struct Reductions {
  Rider *riders;
  int32_t count;
  Value notes[NOTES_MAX];
  int32_t note_count, lanes; /* of the notes: all alike */
};

/* --- statistics -------------------------------------------------------------------------------------- */

static void *stats_open(Emit *emit, const PlanReduction *reduction, int32_t lanes, int64_t vectors,
                        int64_t *out_bytes) {
  StatsBlock *block = arena_new(emit->arena, StatsBlock);
  *out_bytes = stats_block_open(block, emit, &reduction->attrs, lanes, vectors);
  return block;
}

static void stats_place(void *state, Value memory) {
  StatsBlock *block = state;
  block->memory = memory;
  stats_block_routines(block);
}

static void stats_begin(void *state) { stats_block_begin(state); }

static void stats_take(void *state, const Value *values, int32_t count, int32_t lanes, Value valid, Value block) {
  (void)block;
  stats_block_take(state, values, count, lanes, valid);
}

static void stats_row(void *state) { stats_block_drain(state); }

static void stats_end(void *state, const PlanTensor *output, Value base, Value item) {
  stats_block_end(state, output, base, item);
}

static const RideOps *ride_ops(OpCode op) {
  static const RideOps stats = {stats_open, stats_place, stats_begin, stats_take, stats_row, stats_end};
  return op == OP_STATS_PARTIAL ? &stats : NULL;
}

/* --- the kernel's side ------------------------------------------------------------------------------- */

int64_t ride_begin(Emit *emit, int64_t scratch_bytes, int64_t vectors) {
  const PlanKernel *kernel = emit->kernel;
  if (kernel->reduction_count == 0) return scratch_bytes;
  int32_t block = emit_lane_block(&kernel->output), lanes = block > 1 ? block : emit->target->vector_lanes;
  struct Reductions *riding = arena_new(emit->arena, struct Reductions);
  riding->count = kernel->reduction_count;
  riding->riders = arena_array(emit->arena, (size_t)riding->count, Rider);
  for (int32_t i = 0; i < riding->count; i++) {
    Rider *rider = &riding->riders[i];
    *rider = (Rider){ride_ops(kernel->reductions[i].op), &kernel->reductions[i], emit->reductions[i], NULL};
    assert(rider->ops != NULL);
    int64_t bytes, start = round_up(scratch_bytes, KILN_ALIGNMENT);
    rider->state = rider->ops->open(emit, rider->reduction, lanes, vectors, &bytes);
    rider->ops->place(rider->state, emit_address(emit, emit->scratch, emit_int(emit, start / (int64_t)sizeof(float))));
    scratch_bytes = start + bytes;
  }
  emit->riding = riding;
  return scratch_bytes;
}

void ride_item(Emit *emit) {
  struct Reductions *riding = emit->riding;
  if (riding == NULL) return;
  for (int32_t i = 0; i < riding->count; i++) riding->riders[i].ops->begin(riding->riders[i].state);
}

void ride_note(Emit *emit, Value value, int32_t lanes) {
  struct Reductions *riding = emit->riding;
  if (riding == NULL) return;
  assert(riding->note_count < NOTES_MAX && (riding->note_count == 0 || riding->lanes == lanes));
  riding->lanes = lanes;
  riding->notes[riding->note_count++] = value;
}

/* How many lanes of the block are channels; NULL: all. */
static Value valid_lanes(Emit *emit, Value block, int32_t lanes) {
  const PlanTensor *output = &emit->kernel->output;
  if (block == NULL || output->layout.kind != LAYOUT_CHANNEL_BLOCK || output->shape.dims[1] % lanes == 0) return NULL;
  Value left = emit_sub(emit, emit_int(emit, output->shape.dims[1]), emit_mul_int(emit, block, lanes));
  return emit_min(emit, left, emit_int(emit, lanes));
}

void ride_take(Emit *emit, Value block) {
  struct Reductions *riding = emit->riding;
  if (riding == NULL || riding->note_count == 0) return;
  Value valid = riding->lanes > 1 ? valid_lanes(emit, block, riding->lanes) : NULL;
  for (int32_t i = 0; i < riding->count; i++)
    riding->riders[i].ops->take(riding->riders[i].state, riding->notes, riding->note_count, riding->lanes, valid,
                                block);
  riding->note_count = 0;
}

void ride_row(Emit *emit) {
  struct Reductions *riding = emit->riding;
  if (riding == NULL) return;
  for (int32_t i = 0; i < riding->count; i++) riding->riders[i].ops->row(riding->riders[i].state);
}

void ride_item_end(Emit *emit, Value item) {
  struct Reductions *riding = emit->riding;
  if (riding == NULL) return;
  assert(riding->note_count == 0);
  for (int32_t i = 0; i < riding->count; i++) {
    const Rider *rider = &riding->riders[i];
    rider->ops->end(rider->state, &rider->reduction->output, rider->base, item);
  }
}
