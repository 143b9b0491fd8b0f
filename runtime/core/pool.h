/* A small thread pool with a parallel loop: the default `parallel_for` of programs.
 *
 * The calling thread works too, as thread 0. Items are divided into one contiguous chunk per thread, so that which
 * thread computes an item depends on the count only. Workers spin for some microseconds between jobs, because the
 * steps of a network follow each other closely, and then sleep. */
#ifndef KILN_RUNTIME_CORE_POOL_H
#define KILN_RUNTIME_CORE_POOL_H

#include "base/arena.h"
#include "kiln_abi.h"

typedef struct Pool Pool;

/* `threads` ≥ 1 counts the caller. Returns NULL when memory or threads run out. `allocator` may be NULL. */
Pool *pool_create(uint32_t threads, const Allocator *allocator);
/* The same with worker i on processors[i], of `threads`; the caller's thread, number 0, is the caller's affair. NULL
 * also when the process may not use one of them; `processors` may be NULL. */
Pool *pool_create_on(uint32_t threads, const uint32_t *processors, const Allocator *allocator);
/* Waits for the workers. NULL is allowed. */
void pool_destroy(Pool *pool);
uint32_t pool_threads(const Pool *pool);
/* A kiln_parallel_for; `pool` is a Pool. One caller at a time. Always returns 0. */
int pool_parallel_for(void *pool, kiln_task task, void *context, int64_t count);

#endif
