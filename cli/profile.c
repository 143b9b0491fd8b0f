/* The host's parallel loop is where a run can be watched: a step's items go through it, in one chunk per thread. With
 * one thread there is no loop, and the duration of the step is all. */
#include "profile.h"

#include <time.h>

#include "base/file.h"
#include "core/pool.h"
#include "core/processors.h"
#include "session/session.h"

typedef struct Slice {
  uint32_t step;
  int64_t begin, end; /* nanoseconds */
  int64_t items;
} Slice;

/* Slices of a thread stand in an array of its own: a pool gives every thread one chunk of a job. */
typedef struct Profile {
  const ProfileRun *run;
  Pool *pool; /* NULL: one thread */
  Slice **slices;
  size_t *counts;
  size_t capacity;
  uint32_t step; /* the next one */
  kiln_task task;
  void *task_context;
} Profile;

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void add_slice(Profile *profile, uint32_t thread, Slice slice) {
  if (profile->counts[thread] < profile->capacity) profile->slices[thread][profile->counts[thread]++] = slice;
}

static void traced_task(void *context, uint32_t thread, int64_t begin, int64_t end) {
  Profile *profile = context;
  const int64_t started = now();
  profile->task(profile->task_context, thread, begin, end);
  add_slice(profile, thread, (Slice){profile->step, started, now(), end - begin});
}

static int traced_parallel_for(void *pool, kiln_task task, void *context, int64_t count) {
  Profile *profile = pool;
  profile->task = task;
  profile->task_context = context;
  return pool_parallel_for(profile->pool, traced_task, profile, count);
}

static int observe_step(void *context, uint32_t step, const void *data, int64_t nanoseconds) {
  (void)data;
  Profile *profile = context;
  const kiln_step *made = &profile->run->executable->program->run_steps[step];
  if (profile->pool == NULL) {
    const int64_t end = now();
    add_slice(profile, 0,
              (Slice){step, end - nanoseconds, end, made->items + profile->run->batch * made->items_per_batch});
  }
  profile->step = step + 1;
  return 0;
}

static void print_trace(Text *text, const Profile *profile) {
  const kiln_program *program = profile->run->executable->program;
  int64_t first = INT64_MAX;
  for (uint32_t t = 0; t < profile->run->options->threads; t++)
    if (profile->counts[t] > 0 && profile->slices[t][0].begin < first) first = profile->slices[t][0].begin;
  text_add(text,
           "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{"
           "\"name\":");
  text_add_json(text, program->name);
  text_add(text, "}}");
  for (uint32_t t = 0; t < profile->run->options->threads; t++) {
    for (size_t i = 0; i < profile->counts[t]; i++) {
      const Slice *slice = &profile->slices[t][i];
      const kiln_step *step = &program->run_steps[slice->step];
      text_add(text, ",\n{\"name\":");
      text_add_json(text, step->name);
      text_add(text, ",\"cat\":");
      text_add_json(text, step->kind);
      text_format(text,
                  ",\"ph\":\"X\",\"pid\":1,\"tid\":%u,\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"step\":%u,\"items\":%lld}}",
                  t, 1e-3 * (double)(slice->begin - first), 1e-3 * (double)(slice->end - slice->begin), slice->step,
                  (long long)slice->items);
    }
  }
  text_add(text, "\n]}\n");
}

static bool run_traced(Tool *tool, Profile *profile, kiln_context *context) {
  kiln_error error;
  for (int round = 0; round < 2; round++) {
    for (uint32_t t = 0; t < profile->run->options->threads; t++) profile->counts[t] = 0;
    profile->step = 0;
    if (kiln_run_steps(context, profile->run->batch, profile->run->inputs, profile->run->outputs, observe_step, profile,
                       &error) == KILN_OK)
      continue;
    tool_library_error(tool, &error);
    return false;
  }
  return true;
}

bool profile_write(Tool *tool, const ProfileRun *run, const char *path) {
  if (run->executable->cuda != NULL) {
    diag_error(tool->diag, (Location){0}, "--profile: a GPU's kernels are not traced; kiln bench --kernels times them");
    return false;
  }
  Profile profile = {.run = run, .capacity = run->executable->program->run_step_count};
  const uint32_t threads = run->options->threads;
  profile.slices = arena_array(tool->arena, threads, Slice *);
  profile.counts = arena_array(tool->arena, threads, size_t);
  for (uint32_t t = 0; t < threads; t++) profile.slices[t] = arena_array(tool->arena, profile.capacity + 1, Slice);
  kiln_context_options options = {.threads = threads, .max_batch = run->batch};
  if (threads > 1) {
    profile.pool = pool_create_on(threads, run->options->affinity, NULL);
    if (profile.pool == NULL) {
      diag_error(tool->diag, (Location){0}, "--profile: %u threads cannot be started", threads);
      return false;
    }
    options.parallel_for = traced_parallel_for;
    options.pool = &profile;
  }
  kiln_context *context = NULL;
  kiln_error error;
  bool done = kiln_context_create(run->executable, &options, &context, &error) == KILN_OK;
  if (!done) tool_library_error(tool, &error);
  ProcessorStay stay = {.moved = false};
  if (run->options->affinity != NULL) processor_enter(run->options->affinity[0], &stay);
  done = done && run_traced(tool, &profile, context);
  processor_leave(&stay);
  kiln_context_destroy(context);
  pool_destroy(profile.pool);
  if (!done) return false;
  Text text;
  text_init(&text, tool->arena);
  print_trace(&text, &profile);
  return file_write(path, &(FilePiece){text.data, text.size}, 1, tool->diag);
}
