/* The thread pool: every item once, thread numbers distinct, many jobs in a row, sleeping workers wake up, and everyone
 * stays on the processor that was named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/pool.h"
#include "core/processors.h"

enum { ITEMS = 1000, THREADS_MAX = 16 };

typedef struct Record {
  atomic_int items[ITEMS];
  atomic_int busy[THREADS_MAX];
  atomic_int clashes;
} Record;

static void record_task(void *context, uint32_t thread, int64_t begin, int64_t end) {
  Record *record = context;
  if (thread >= THREADS_MAX || atomic_fetch_add(&record->busy[thread], 1) != 0) atomic_fetch_add(&record->clashes, 1);
  for (int64_t i = begin; i < end; i++) atomic_fetch_add(&record->items[i], 1);
  if (thread < THREADS_MAX) atomic_fetch_sub(&record->busy[thread], 1);
}

static void every_item_runs_once(void **state) {
  (void)state;
  static const uint32_t threads[] = {1, 2, 3, 7, 16};
  static const int64_t counts[] = {0, 1, 2, 5, 16, 17, 999, 1000};
  for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
    Pool *pool = pool_create(threads[t], NULL);
    assert_non_null(pool);
    assert_int_equal(pool_threads(pool), threads[t]);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
      for (int repeat = 0; repeat < 20; repeat++) {
        static Record record;
        memset(&record, 0, sizeof record);
        assert_int_equal(pool_parallel_for(pool, record_task, &record, counts[c]), 0);
        assert_int_equal(atomic_load(&record.clashes), 0);
        for (int64_t i = 0; i < ITEMS; i++) assert_int_equal(atomic_load(&record.items[i]), i < counts[c] ? 1 : 0);
      }
    pool_destroy(pool);
  }
}

static void sleeping_workers_wake(void **state) {
  (void)state;
  Pool *pool = pool_create(3, NULL);
  assert_non_null(pool);
  for (int round = 0; round < 5; round++) {
    struct timespec pause = {0, 5000000}; /* long enough for the workers to fall asleep */
    nanosleep(&pause, NULL);
    static Record record;
    memset(&record, 0, sizeof record);
    pool_parallel_for(pool, record_task, &record, 10);
    for (int i = 0; i < 10; i++) assert_int_equal(atomic_load(&record.items[i]), 1);
  }
  pool_destroy(pool);
}

/* --- processors -------------------------------------------------------------------------------------- */

/* Processors that this process may use, the last first. */
static uint32_t list_processors(uint32_t *processors, uint32_t most) {
  uint32_t count = 0;
  for (uint32_t i = PROCESSORS_MAX; i-- > 0 && count < most;)
    if (processor_allowed(i)) processors[count++] = i;
  return count;
}

typedef struct Places {
  cpu_set_t allowed[THREADS_MAX];
  int processor[THREADS_MAX];
} Places;

static void place_task(void *context, uint32_t thread, int64_t begin, int64_t end) {
  (void)begin, (void)end;
  Places *places = context;
  sched_getaffinity(0, sizeof(cpu_set_t), &places->allowed[thread]);
  places->processor[thread] = sched_getcpu();
}

static void workers_stay_on_their_processors(void **state) {
  (void)state;
  uint32_t processors[THREADS_MAX];
  cpu_set_t before;
  assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
  const uint32_t threads = list_processors(processors, THREADS_MAX);
  Pool *pool = pool_create_on(threads, processors, NULL);
  assert_non_null(pool);
  for (int round = 0; round < 20; round++) {
    static Places places;
    memset(&places, 0, sizeof places);
    pool_parallel_for(pool, place_task, &places, 10 * threads);
    assert_true(CPU_EQUAL(&places.allowed[0], &before));
    for (uint32_t t = 1; t < threads; t++) {
      assert_int_equal(places.processor[t], processors[t]);
      assert_int_equal(CPU_COUNT(&places.allowed[t]), 1);
    }
  }
  pool_destroy(pool);
  const uint32_t nowhere[] = {processors[0], PROCESSORS_MAX};
  assert_null(pool_create_on(2, nowhere, NULL));
}

static void a_thread_comes_and_goes(void **state) {
  (void)state;
  uint32_t processors[2];
  cpu_set_t before, now;
  ProcessorStay stay, within;
  const uint32_t count = list_processors(processors, 2);
  sched_getaffinity(0, sizeof before, &before);
  processor_enter(processors[count - 1], &stay);
  assert_int_equal(sched_getcpu(), processors[count - 1]);
  sched_getaffinity(0, sizeof now, &now);
  assert_int_equal(CPU_COUNT(&now), 1);
  processor_enter(processors[count - 1], &within);
  assert_false(within.moved);
  processor_leave(&within);
  sched_getaffinity(0, sizeof now, &now);
  assert_int_equal(CPU_COUNT(&now), 1);
  processor_leave(&stay);
  sched_getaffinity(0, sizeof now, &now);
  assert_true(CPU_EQUAL(&now, &before));
}

static void write_quota(const char *folder, const char *group, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s%s", folder, group);
  mkdir(path, 0777);
  snprintf(path, sizeof path, "%s%s/cpu.max", folder, group);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

static void the_least_quota_counts(void **state) {
  (void)state;
  char folder[] = "/tmp/kiln_groups_XXXXXX", path[256];
  static const char *const groups[] = {"/a", "/a/b", "/a/c"};
  assert_non_null(mkdtemp(folder));
  write_quota(folder, "/a", "250000 100000\n");
  write_quota(folder, "/a/b", "max 100000\n");
  write_quota(folder, "/a/c", "150000 100000\n");
  assert_int_equal(processors_quota(folder, ""), 0);
  assert_int_equal(processors_quota(folder, "/a"), 3);
  assert_int_equal(processors_quota(folder, "/a/b"), 3);
  assert_int_equal(processors_quota(folder, "/a/c"), 2);
  assert_int_equal(processors_quota(folder, "/a/c/d"), 2);
  assert_int_equal(processors_quota(folder, "/elsewhere"), 0);
  for (size_t i = sizeof groups / sizeof *groups; i-- > 0;) {
    snprintf(path, sizeof path, "%s%s/cpu.max", folder, groups[i]);
    unlink(path);
    snprintf(path, sizeof path, "%s%s", folder, groups[i]);
    rmdir(path);
  }
  rmdir(folder);
  assert_in_range(processors_usable(), 1, PROCESSORS_MAX);
}

/* --- memory ------------------------------------------------------------------------------------------ */

static void *refuse(void *context, size_t size, size_t alignment) {
  (void)context;
  (void)size;
  (void)alignment;
  return NULL;
}

static void ignore(void *context, void *pointer, size_t size) {
  (void)context;
  (void)pointer;
  (void)size;
}

static void no_memory_gives_null(void **state) {
  (void)state;
  Allocator none = {refuse, ignore, NULL};
  assert_null(pool_create(2, &none));
  pool_destroy(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_item_runs_once),
                                     cmocka_unit_test(sleeping_workers_wake),
                                     cmocka_unit_test(workers_stay_on_their_processors),
                                     cmocka_unit_test(a_thread_comes_and_goes),
                                     cmocka_unit_test(the_least_quota_counts),
                                     cmocka_unit_test(no_memory_gives_null)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
