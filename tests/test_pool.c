/* The thread pool: every item once, thread numbers distinct, many jobs in a row, sleeping workers wake up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "core/pool.h"

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
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_item_runs_once), cmocka_unit_test(sleeping_workers_wake),
                                     cmocka_unit_test(no_memory_gives_null)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
