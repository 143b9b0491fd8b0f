#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "processors.h"

/* About 30 µs of spinning on current processors: longer than the gap between two steps, short enough not to burn a
 * core while the host does something else. */
enum { SPIN_LIMIT = 4000 };

typedef struct Worker {
  Pool *pool;
  uint32_t thread;
  pthread_t handle;
} Worker;

struct Pool {
  Allocator allocator;
  uint32_t threads;
  uint32_t started; /* workers that run */
  Worker *workers;

  /* the job; written before `generation` is raised */
  kiln_task task;
  void *context;
  int64_t count;

  _Alignas(64) atomic_uint generation;
  _Alignas(64) atomic_uint pending; /* workers that have not finished the job */
  _Alignas(64) atomic_uint sleepers;
  atomic_bool stop;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
};

static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void *memory_allocate(const Allocator *allocator, size_t size, size_t alignment) {
  if (allocator->allocate != NULL) return allocator->allocate(allocator->context, size, alignment);
  return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void memory_release(const Allocator *allocator, void *pointer, size_t size) {
  if (allocator->allocate == NULL)
    free(pointer);
  else if (allocator->release != NULL)
    allocator->release(allocator->context, pointer, size);
}

static void run_share(const Pool *pool, uint32_t thread) {
  /* quotient and remainder first: count * thread could overflow */
  int64_t quotient = pool->count / pool->threads, remainder = pool->count % pool->threads;
  int64_t begin = quotient * thread + (thread < remainder ? thread : remainder);
  int64_t end = begin + quotient + (thread < remainder ? 1 : 0);
  if (begin < end) pool->task(pool->context, thread, begin, end);
}

static void *worker_main(void *argument) {
  Worker *worker = argument;
  Pool *pool = worker->pool;
  unsigned seen = 0;
  for (;;) {
    unsigned generation = atomic_load_explicit(&pool->generation, memory_order_acquire);
    for (int spin = 0; generation == seen && spin < SPIN_LIMIT; spin++) {
      cpu_relax();
      generation = atomic_load_explicit(&pool->generation, memory_order_acquire);
    }
    if (generation == seen) {
      pthread_mutex_lock(&pool->mutex);
      atomic_fetch_add(&pool->sleepers, 1);
      while ((generation = atomic_load(&pool->generation)) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
      atomic_fetch_sub(&pool->sleepers, 1);
      pthread_mutex_unlock(&pool->mutex);
    }
    seen = generation;
    if (atomic_load(&pool->stop)) return NULL;
    run_share(pool, worker->thread);
    atomic_fetch_sub_explicit(&pool->pending, 1, memory_order_release);
  }
}

static void announce(Pool *pool) {
  atomic_fetch_add(&pool->generation, 1);
  if (atomic_load(&pool->sleepers) > 0) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
  }
}

static int start_worker(Worker *worker, const uint32_t *processors) {
  if (processors == NULL) return pthread_create(&worker->handle, NULL, worker_main, worker);
  pthread_attr_t attributes;
  cpu_set_t only;
  const uint32_t processor = processors[worker->thread];
  if (processor >= PROCESSORS_MAX) return EINVAL;
  CPU_ZERO(&only);
  CPU_SET(processor, &only);
  int code = pthread_attr_init(&attributes);
  if (code != 0) return code;
  code = pthread_attr_setaffinity_np(&attributes, sizeof only, &only);
  if (code == 0) code = pthread_create(&worker->handle, &attributes, worker_main, worker);
  pthread_attr_destroy(&attributes);
  return code;
}

Pool *pool_create(uint32_t threads, const Allocator *allocator) { return pool_create_on(threads, NULL, allocator); }

Pool *pool_create_on(uint32_t threads, const uint32_t *processors, const Allocator *allocator) {
  Allocator memory = allocator != NULL ? *allocator : (Allocator){NULL, NULL, NULL};
  if (threads == 0) threads = 1;
  Pool *pool = memory_allocate(&memory, sizeof *pool, 64);
  if (pool == NULL) return NULL;
  memset(pool, 0, sizeof *pool);
  pool->allocator = memory;
  pool->threads = threads;
  if (pthread_mutex_init(&pool->mutex, NULL) != 0) {
    memory_release(&memory, pool, sizeof *pool);
    return NULL;
  }
  if (pthread_cond_init(&pool->wake, NULL) != 0) {
    pthread_mutex_destroy(&pool->mutex);
    memory_release(&memory, pool, sizeof *pool);
    return NULL;
  }
  pool->workers = memory_allocate(&memory, threads * sizeof(Worker), 64);
  for (uint32_t i = 1; pool->workers != NULL && i < threads; i++) {
    Worker *worker = &pool->workers[i];
    worker->pool = pool;
    worker->thread = i;
    if (start_worker(worker, processors) != 0) break;
    pool->started++;
  }
  if (pool->workers == NULL || pool->started + 1 < threads) {
    pool_destroy(pool);
    return NULL;
  }
  return pool;
}

void pool_destroy(Pool *pool) {
  if (pool == NULL) return;
  atomic_store(&pool->stop, true);
  announce(pool);
  for (uint32_t i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].handle, NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->mutex);
  Allocator memory = pool->allocator;
  if (pool->workers != NULL) memory_release(&memory, pool->workers, pool->threads * sizeof(Worker));
  memory_release(&memory, pool, sizeof *pool);
}

uint32_t pool_threads(const Pool *pool) { return pool->threads; }

int pool_parallel_for(void *context, kiln_task task, void *task_context, int64_t count) {
  Pool *pool = context;
  if (pool->threads == 1 || count <= 1) {
    if (count > 0) task(task_context, 0, 0, count);
    return 0;
  }
  pool->task = task;
  pool->context = task_context;
  pool->count = count;
  atomic_store_explicit(&pool->pending, pool->threads - 1, memory_order_relaxed);
  announce(pool);
  run_share(pool, 0);
  /* with fewer cores than threads a worker may need this one's */
  for (int spin = 0; atomic_load_explicit(&pool->pending, memory_order_acquire) != 0; spin++) {
    if (spin < SPIN_LIMIT)
      cpu_relax();
    else
      sched_yield();
  }
  return 0;
}
