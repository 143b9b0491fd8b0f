/* A warp's threads run one after the other, each as far as it gets: to its end, or to a collective of the warp or the
 * block. Threads that never come to a collective share one fibre, which runs them in a plain loop. */
#include "blocks.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "collectives.h"
#include "fibre.h"

enum { STACK_BYTES = 128 << 10, COPY_MAX = 256, MESSAGE_MAX = 1000, POISON = 0xff };

typedef enum ThreadState { THREAD_NEW, THREAD_READY, THREAD_AT_WARP, THREAD_AT_BLOCK, THREAD_DONE } ThreadState;

typedef struct Copy {
  void *to;
  const void *from; /* NULL: zeros */
  int bytes;
} Copy;

typedef struct Thread {
  ThreadState state;
  Fibre *fibre;
  const char *file; /* where it waits, or was last seen */
  int line;
  KilnCollective operation;
  CollectiveLane lane;
  Copy copies[COPY_MAX];                         /* under way, oldest first */
  int copy_count, group_count, groups[COPY_MAX]; /* copies in each closed group */
} Thread;

static struct {
  KilnEmulator table;
  const BlockLaunch *launch;
  bool reverse;
  Thread threads[EMULATOR_MAX_THREADS], *current;
  int cursor, cursor_left; /* threads that a fibre is to start: the next one, and how many */
  Fibre scheduler, fibres[EMULATOR_MAX_THREADS], *running;
  Fibre *free_fibres[EMULATOR_MAX_THREADS];
  int free_count;
  char *stacks;
  bool yielded[EMULATOR_MAX_THREADS]; /* by fibre: its thread has waited */
  char dynamic_shared[SHARED_LIMIT + 128];
  bool failed, guarding;
  char message[MESSAGE_MAX];
  sigjmp_buf fault;
} em;

static int thread_number(const Thread *thread) { return (int)(thread - em.threads); }

/* --- failures ---------------------------------------------------------------------------------------- */

static void describe_failure(const Thread *thread, const char *file, int line, const char *what) {
  if (em.failed) return;
  em.failed = true;
  snprintf(em.message, sizeof em.message, "%s, block (%d,%d,%d), thread %d, %s:%d: %s", em.launch->kernel->name,
           em.table.block[0], em.table.block[1], em.table.block[2], thread_number(thread),
           file != NULL ? file : "before its first barrier", line, what);
}

/* In a thread: its block is given up. */
static void stop_block(const char *file, int line, const char *what) {
  describe_failure(em.current, file, line, what);
  Fibre *here = em.running;
  fibre_switch(here, &em.scheduler);
}

static void handle_fault(int signal_number) {
  (void)signal_number;
  if (em.guarding) siglongjmp(em.fault, 1);
  signal(SIGSEGV, SIG_DFL);
  signal(SIGBUS, SIG_DFL);
}

/* --- what kernels call ------------------------------------------------------------------------------- */

static void wait_as(ThreadState state, const char *file, int line) {
  Thread *thread = em.current;
  Fibre *fibre = thread->fibre;
  thread->state = state;
  thread->file = file;
  thread->line = line;
  em.yielded[fibre - em.fibres] = true;
  fibre_switch(fibre, &em.scheduler);
}

static void block_sync(const char *file, int line) { wait_as(THREAD_AT_BLOCK, file, line); }

static void collective(KilnCollective operation, void *out, const void *in, const void *other, const char *file,
                       int line) {
  em.current->operation = operation;
  em.current->lane = (CollectiveLane){out, in, other};
  wait_as(THREAD_AT_WARP, file, line);
}

static void copy_async(void *to, const void *from, int bytes, int valid, const char *file, int line) {
  Thread *thread = em.current;
  thread->file = file, thread->line = line;
  if (((uintptr_t)to | (uintptr_t)from) % (unsigned)bytes != 0) {
    stop_block(file, line, "cp.async: an address is not aligned to the copy's size");
  } else if (thread->copy_count == COPY_MAX) {
    stop_block(file, line, "cp.async: too many copies under way; is there a cp_wait?");
  } else {
    memset(to, POISON, (size_t)bytes);
    thread->copies[thread->copy_count++] = (Copy){to, valid ? from : NULL, bytes};
  }
}

static int grouped_copies(const Thread *thread) {
  int count = 0;
  for (int g = 0; g < thread->group_count; g++) count += thread->groups[g];
  return count;
}

static void copy_wait(int groups) {
  Thread *thread = em.current;
  int finished = thread->group_count > groups ? thread->group_count - groups : 0, count = 0;
  for (int g = 0; g < finished; g++) count += thread->groups[g];
  for (int i = 0; i < count; i++) {
    const Copy *copy = &thread->copies[i];
    if (copy->from != NULL)
      memcpy(copy->to, copy->from, (size_t)copy->bytes);
    else
      memset(copy->to, 0, (size_t)copy->bytes);
  }
  thread->copy_count -= count;
  thread->group_count -= finished;
  memmove(thread->copies, thread->copies + count, (size_t)thread->copy_count * sizeof *thread->copies);
  memmove(thread->groups, thread->groups + finished, (size_t)thread->group_count * sizeof *thread->groups);
}

static void copy_commit(void) {
  Thread *thread = em.current;
  /* an empty group that is the oldest is complete already */
  if (thread->group_count == COPY_MAX) copy_wait(COPY_MAX - 1);
  thread->groups[thread->group_count] = thread->copy_count - grouped_copies(thread);
  thread->group_count++;
}

KilnEmulator *blocks_emulator(void) {
  em.table.block_sync = block_sync;
  em.table.collective = collective;
  em.table.copy_async = copy_async;
  em.table.copy_commit = copy_commit;
  em.table.copy_wait = copy_wait;
  return &em.table;
}

/* --- fibres ------------------------------------------------------------------------------------------ */

static void run_threads(void) {
  for (;;) {
    Fibre *self = em.running;
    bool waited = false;
    while (em.cursor_left > 0 && !waited) {
      Thread *thread = &em.threads[em.cursor];
      em.cursor += em.reverse ? -1 : 1;
      em.cursor_left--;
      em.current = thread;
      thread->fibre = self;
      em.table.thread = thread_number(thread);
      em.yielded[self - em.fibres] = false;
      em.launch->kernel->call(em.launch->arguments);
      thread->state = THREAD_DONE;
      waited = em.yielded[self - em.fibres];
    }
    em.free_fibres[em.free_count++] = self;
    fibre_switch(self, &em.scheduler);
  }
}

static bool create_fibres(void) {
  if (em.stacks == NULL) {
    size_t size = (size_t)EMULATOR_MAX_THREADS * STACK_BYTES;
    char *stacks = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return false;
    /* the lowest page of a stack stops a kernel that uses too much of it */
    for (int i = 0; i < EMULATOR_MAX_THREADS; i++) mprotect(stacks + (size_t)i * STACK_BYTES, 4096, PROT_NONE);
    em.stacks = stacks;
  }
  em.free_count = 0;
  for (int i = EMULATOR_MAX_THREADS - 1; i >= 0; i--) {
    fibre_init(&em.fibres[i], em.stacks + (size_t)i * STACK_BYTES, STACK_BYTES, run_threads);
    em.free_fibres[em.free_count++] = &em.fibres[i];
  }
  return true;
}

static void enter(Fibre *fibre) {
  em.running = fibre;
  fibre_switch(&em.scheduler, fibre);
}

/* Starts the threads from the cursor on: all that end without waiting, and the first that waits. */
static void start_threads(void) { enter(em.free_fibres[--em.free_count]); }

static void resume(Thread *thread) {
  thread->state = THREAD_READY;
  em.current = thread;
  em.table.thread = thread_number(thread);
  enter(thread->fibre);
}

/* --- warps and blocks -------------------------------------------------------------------------------- */

/* Lane numbers in the order in which they run. */
static int lane_at(int position) { return em.reverse ? EMULATOR_WARP - 1 - position : position; }

static void combine(Thread *warp) {
  CollectiveLane lanes[EMULATOR_WARP];
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    const Thread *thread = &warp[lane];
    if (thread->operation != warp->operation || thread->line != warp->line || strcmp(thread->file, warp->file) != 0) {
      char what[256];
      snprintf(what, sizeof what, "lanes of a warp are at different collectives: lane 0 at %.100s:%d", warp->file,
               warp->line);
      describe_failure(thread, thread->file, thread->line, what);
      return;
    }
    lanes[lane] = thread->lane;
  }
  const char *wrong = collective_compute(warp->operation, lanes);
  if (wrong != NULL) describe_failure(warp, warp->file, warp->line, wrong);
}

static void start_warp(Thread *warp) {
  em.cursor = thread_number(warp) + lane_at(0);
  em.cursor_left = EMULATOR_WARP;
  while (em.cursor_left > 0 && !em.failed) start_threads();
}

/* After a barrier: threads go on. */
static void release_warp(Thread *warp) {
  for (int position = 0; position < EMULATOR_WARP && !em.failed; position++) {
    Thread *thread = &warp[lane_at(position)];
    if (thread->state == THREAD_AT_BLOCK) resume(thread);
  }
}

/* Until every thread of the warp is done or at a barrier of the block. */
static void run_collectives(Thread *warp) {
  while (!em.failed) {
    int waiting = 0;
    const Thread *one = NULL, *other = NULL;
    for (int lane = 0; lane < EMULATOR_WARP; lane++) {
      if (warp[lane].state == THREAD_AT_WARP)
        waiting++, one = &warp[lane];
      else
        other = &warp[lane];
    }
    if (waiting == 0) return;
    if (other != NULL) {
      char what[256];
      if (other->state == THREAD_DONE)
        snprintf(what, sizeof what, "a collective that thread %d of the warp does not reach: it has ended",
                 thread_number(other));
      else
        snprintf(what, sizeof what,
                 "a collective that thread %d of the warp does not reach: it is at the barrier %.100s:%d",
                 thread_number(other), other->file, other->line);
      describe_failure(one, one->file, one->line, what);
      return;
    }
    combine(warp);
    for (int position = 0; position < EMULATOR_WARP && !em.failed; position++) resume(&warp[lane_at(position)]);
  }
}

static void check_barrier(int threads, int waiting) {
  const Thread *first = NULL;
  for (int i = 0; i < threads; i++) {
    const Thread *thread = &em.threads[i];
    if (thread->state != THREAD_AT_BLOCK) continue;
    char what[256];
    if (waiting < threads) {
      const Thread *ended = em.threads;
      while (ended->state == THREAD_AT_BLOCK) ended++;
      snprintf(what, sizeof what, "a barrier that thread %d does not reach: it has ended", thread_number(ended));
      describe_failure(thread, thread->file, thread->line, what);
      return;
    }
    if (first == NULL) first = thread;
    if (thread->line != first->line || strcmp(thread->file, first->file) != 0) {
      snprintf(what, sizeof what, "threads wait at different barriers: thread %d at %.100s:%d", thread_number(first),
               first->file, first->line);
      describe_failure(thread, thread->file, thread->line, what);
      return;
    }
  }
}

static void run_block(const BlockLaunch *launch) {
  const int threads = launch->threads, warps = threads / EMULATOR_WARP;
  memset(launch->shared_begin, POISON, (size_t)(launch->shared_end - launch->shared_begin));
  if (launch->dynamic_shared > 0) memset(em.table.dynamic_shared, POISON, launch->dynamic_shared);
  for (int i = 0; i < threads; i++) {
    Thread *thread = &em.threads[i];
    thread->state = THREAD_NEW;
    thread->file = NULL;
    thread->line = thread->copy_count = thread->group_count = 0;
  }
  bool begun = false;
  for (;;) {
    for (int w = 0; w < warps && !em.failed; w++) {
      Thread *warp = &em.threads[(em.reverse ? warps - 1 - w : w) * EMULATOR_WARP];
      if (begun)
        release_warp(warp);
      else
        start_warp(warp);
      run_collectives(warp);
    }
    begun = true;
    int waiting = 0;
    for (int i = 0; i < threads; i++) waiting += em.threads[i].state == THREAD_AT_BLOCK;
    if (waiting > 0) check_barrier(threads, waiting);
    if (waiting == 0 || em.failed) return;
  }
}

static void run_grid(const BlockLaunch *launch) {
  for (unsigned z = 0; z < launch->grid[2]; z++)
    for (unsigned y = 0; y < launch->grid[1]; y++)
      for (unsigned x = 0; x < launch->grid[0]; x++) {
        /* with the threads the blocks change their order too */
        em.table.block[0] = (int)(em.reverse ? launch->grid[0] - 1 - x : x);
        em.table.block[1] = (int)(em.reverse ? launch->grid[1] - 1 - y : y);
        em.table.block[2] = (int)(em.reverse ? launch->grid[2] - 1 - z : z);
        run_block(launch);
        if (em.failed) return;
      }
}

const char *blocks_run(const BlockLaunch *launch) {
  const char *order = getenv("KILN_EMULATOR_ORDER");
  static char fault_stack[64 << 10];
  blocks_emulator();
  em.launch = launch;
  em.reverse = order != NULL && strcmp(order, "reverse") == 0;
  em.failed = false;
  em.table.grid_x = (int)launch->grid[0];
  em.table.dynamic_shared = (unsigned char *)em.dynamic_shared + (128 - (uintptr_t)em.dynamic_shared % 128) % 128;
  if ((em.stacks == NULL || em.free_count < EMULATOR_MAX_THREADS) && !create_fibres()) return "no memory for fibres";
  stack_t stack = {.ss_sp = fault_stack, .ss_size = sizeof fault_stack}, old_stack;
  struct sigaction action = {.sa_handler = handle_fault, .sa_flags = SA_ONSTACK | SA_NODEFER}, old_segv, old_bus;
  sigaltstack(&stack, &old_stack);
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  if (sigsetjmp(em.fault, 1) == 0) {
    em.guarding = true;
    run_grid(launch);
  } else {
    describe_failure(em.current, em.current->file, em.current->line, "after this: an invalid address read or written");
  }
  em.guarding = false;
  sigaction(SIGSEGV, &old_segv, NULL);
  sigaction(SIGBUS, &old_bus, NULL);
  sigaltstack(&old_stack, NULL);
  if (!em.failed) return NULL;
  create_fibres();
  return em.message;
}
