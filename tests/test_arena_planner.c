/* The arena planner against a brute-force check of overlap, and against the lower bound. */
#include "arena_planner.h"
#include "support.h"

static uint64_t random_state;

static uint64_t random_next(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

static int64_t random_below(int64_t limit) { return (int64_t)(random_next() % (uint64_t)limit); }

static bool overlap(const ArenaBlock *a, const ArenaBlock *b) {
  bool time = a->first <= b->last && b->first <= a->last;
  bool space = a->offset < b->offset + b->size && b->offset < a->offset + a->size;
  return time && space && a->size && b->size;
}

static void check_plan(const ArenaBlock *blocks, size_t count, int64_t size, Arena *arena) {
  for (size_t i = 0; i < count; i++) {
    assert_true(blocks[i].offset >= 0 && blocks[i].offset % 64 == 0);
    assert_true(blocks[i].offset + blocks[i].size <= size);
    for (size_t j = 0; j < i; j++)
      if (overlap(&blocks[i], &blocks[j])) fail_msg("blocks %zu and %zu overlap", i, j);
  }
  assert_true(size >= arena_plan_lower_bound(blocks, count, arena));
}

static void random_blocks_do_not_overlap(void **state) {
  Fixture *fixture = *state;
  double worst = 1, sum = 0;
  int plans = 300;
  random_state = 88172645463325252u;
  for (int round = 0; round < plans; round++) {
    size_t count = (size_t)random_below(60);
    int32_t steps = 1 + (int32_t)random_below(40), life = 1 + (int32_t)random_below(12);
    ArenaBlock *blocks = arena_array(fixture->arena, count, ArenaBlock);
    for (size_t i = 0; i < count; i++) {
      blocks[i].first = (int32_t)random_below(steps);
      blocks[i].last = blocks[i].first + (int32_t)random_below(life);
      blocks[i].size = 64 * random_below(round % 3 ? 100 : 4);
      blocks[i].offset = -1;
    }
    int64_t size;
    assert_true(arena_plan(blocks, count, fixture->arena, &size));
    check_plan(blocks, count, size, fixture->arena);
    int64_t bound = arena_plan_lower_bound(blocks, count, fixture->arena);
    double ratio = bound ? (double)size / (double)bound : 1;
    sum += ratio;
    if (ratio > worst) worst = ratio;
  }
  print_message("plans are %.3f times the lower bound on average, %.3f at worst\n", sum / plans, worst);
  assert_true(sum / plans < 1.1);
}

static void a_chain_needs_its_two_largest_neighbours(void **state) {
  Fixture *fixture = *state;
  enum { COUNT = 20000 };
  ArenaBlock *blocks = arena_array(fixture->arena, COUNT, ArenaBlock);
  for (int32_t i = 0; i < COUNT; i++) blocks[i] = (ArenaBlock){.size = 256, .first = i, .last = i + 1};
  int64_t size;
  assert_true(arena_plan(blocks, COUNT, fixture->arena, &size));
  assert_int_equal(size, 512);
}

static void a_gap_is_filled_by_the_block_that_fits_best(void **state) {
  Fixture *fixture = *state;
  /* A at 0; B above it; both gaps appear at step 2, where C fits the smaller one exactly */
  ArenaBlock blocks[] = {{.size = 640, .first = 0, .last = 1},
                         {.size = 512, .first = 0, .last = 3},
                         {.size = 320, .first = 0, .last = 1},
                         {.size = 256, .first = 0, .last = 3},
                         {.size = 192, .first = 2, .last = 3}};
  int64_t size;
  assert_true(arena_plan(blocks, 5, fixture->arena, &size));
  check_plan(blocks, 5, size, fixture->arena);
  assert_int_equal(blocks[1].offset, 640);
  assert_int_equal(blocks[3].offset, 640 + 512 + 320);
  assert_int_equal(blocks[4].offset, 640 + 512);
}

static void nothing_and_overflow(void **state) {
  Fixture *fixture = *state;
  int64_t size = -1;
  assert_true(arena_plan(NULL, 0, fixture->arena, &size));
  assert_int_equal(size, 0);
  ArenaBlock blocks[] = {{.size = INT64_MAX - 63, .first = 0, .last = 1}, {.size = 64, .first = 0, .last = 1}};
  assert_false(arena_plan(blocks, 2, fixture->arena, &size));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(random_blocks_do_not_overlap),
      fixture_test(a_chain_needs_its_two_largest_neighbours),
      fixture_test(a_gap_is_filled_by_the_block_that_fits_best),
      fixture_test(nothing_and_overflow),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
