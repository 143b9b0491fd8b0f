#include "jobs.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct Queue {
  const Jobs *jobs;
  Diag **diags; /* of the jobs that have begun */
  atomic_size_t next;
  atomic_bool failed, out_of_memory;
} Queue;

typedef struct Worker {
  Queue *queue;
  JobTools tools;
  pthread_t thread;
  bool started;
} Worker;

static void run_job(Worker *worker, size_t number) {
  Queue *queue = worker->queue;
  JobTools *tools = &worker->tools;
  jmp_buf failure;
  arena_on_failure(tools->results, &failure);
  arena_on_failure(tools->scratch, &failure);
  if (setjmp(failure)) {
    atomic_store(&queue->out_of_memory, true);
  } else {
    tools->diag = queue->diags[number] = diag_create(tools->results);
    if (!queue->jobs->run(queue->jobs->context, number, tools)) atomic_store(&queue->failed, true);
  }
  arena_reset(tools->scratch);
}

static void *run_worker(void *argument) {
  Worker *worker = argument;
  Queue *queue = worker->queue;
  for (;;) {
    const size_t number = atomic_fetch_add(&queue->next, 1);
    if (number >= queue->jobs->count || atomic_load(&queue->out_of_memory)) return NULL;
    if (queue->jobs->stop_early && atomic_load(&queue->failed)) return NULL;
    run_job(worker, number);
  }
}

static void destroy_arena(void *arena) { arena_destroy(arena); }

/* Lives as long as `arena`. */
static Arena *create_arena(Arena *arena) {
  Arena *created = arena_create(NULL);
  if (created == NULL) arena_fail(arena);
  arena_defer(arena, destroy_arena, created);
  return created;
}

static Worker *create_worker(Queue *queue, Arena *arena) {
  Worker *worker = arena_new(arena, Worker);
  worker->queue = queue;
  if (queue->jobs->create_worker != NULL) worker->tools.worker = queue->jobs->create_worker(arena);
  worker->tools.results = create_arena(arena);
  worker->tools.scratch = create_arena(arena);
  return worker;
}

static void add_messages(const Diag *from, Diag *diag) {
  for (size_t i = 0; i < diag_message_count(from); i++) {
    const DiagMessage *message = diag_message(from, i);
    if (message->severity == SEVERITY_ERROR)
      diag_error(diag, message->location, "%s", message->text);
    else
      diag_note(diag, message->location, "%s", message->text);
  }
}

bool jobs_run(const Jobs *jobs, int32_t threads, Arena *arena, Diag *diag) {
  Queue *queue = arena_new(arena, Queue);
  queue->jobs = jobs;
  queue->diags = arena_array(arena, jobs->count + 1, Diag *);
  size_t count = threads > 1 ? (size_t)threads : 1;
  if (count > jobs->count) count = jobs->count > 0 ? jobs->count : 1;
  Worker **workers = arena_array(arena, count, Worker *);
  for (size_t i = 0; i < count; i++) workers[i] = create_worker(queue, arena);
  for (size_t i = 1; i < count; i++)
    workers[i]->started = pthread_create(&workers[i]->thread, NULL, run_worker, workers[i]) == 0;
  run_worker(workers[0]);
  for (size_t i = 1; i < count; i++)
    if (workers[i]->started) pthread_join(workers[i]->thread, NULL);
  for (size_t i = 0; i < jobs->count; i++)
    if (queue->diags[i] != NULL) add_messages(queue->diags[i], diag);
  if (atomic_load(&queue->out_of_memory)) arena_fail(arena);
  return !atomic_load(&queue->failed);
}
