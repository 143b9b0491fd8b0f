#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "data_internal.h"

/* --- one picture ----------------------------------------------------------------------------------- */

bool data_prepare(const DataSet *set, const DataItem *item, Arena *scratch, Diag *diag, Picture *out_picture) {
  Picture picture = item->source;
  if (item->ready.pixels) {
    *out_picture = item->ready;
    return true;
  }
  if (!picture.pixels && !picture_read(item->path, scratch, diag, &picture)) return false;
  if (!picture_fit(&picture, item->path, set->options.resize, set->width, set->height, scratch, diag, &picture)) {
    return false;
  }
  /* gray is repeated when it is put into a batch */
  if (picture.channels != 1 && picture.channels != set->channels) {
    picture = picture_convert(&picture, set->channels, scratch);
  }
  *out_picture = picture;
  return true;
}

/* --- all pictures ---------------------------------------------------------------------------------- */

typedef struct Preparation {
  DataSet *set;
  DataSums *sums;
  Arena **scratch, **kept;   /* of every thread */
  _Atomic int64_t allowance; /* bytes that may still be kept */
  atomic_bool out_of_memory;
} Preparation;

/* By the thread that opens the set only. */
static void show_progress(const DataSet *set, size_t done) {
  const DataOptions *options = &set->options;
  if (options->progress) options->progress(options->progress_context, (int64_t)done, (int64_t)set->item_count);
}

/* One row: at most 65535 samples, whose squares just fit into 32 bits. */
static void add_row(const uint8_t *row, int32_t width, int32_t step, uint64_t *sum, uint64_t *squares) {
  uint32_t row_sum = 0, row_squares = 0;
  if (step == 1) { /* apart, because this loop becomes vector code */
    for (int32_t x = 0; x < width; x++) row_sum += row[x];
    for (int32_t x = 0; x < width; x++) row_squares += (uint32_t)row[x] * row[x];
  } else {
    for (int32_t x = 0; x < width; x++) {
      const uint32_t sample = row[(size_t)x * (size_t)step];
      row_sum += sample;
      row_squares += sample * sample;
    }
  }
  *sum += row_sum;
  *squares += row_squares;
}

static void add_sums(const Picture *picture, int32_t channels, DataSums *sums) {
  const size_t row = (size_t)picture->width * (size_t)picture->channels;
  sums->pixels = (uint64_t)picture->width * (uint64_t)picture->height;
  for (int32_t channel = 0; channel < channels; channel++) {
    const uint8_t *first = picture->pixels + (picture->channels == 1 ? 0 : channel);
    for (int32_t y = 0; y < picture->height; y++) {
      add_row(first + (size_t)y * row, picture->width, picture->channels, &sums->sum[channel], &sums->squares[channel]);
    }
  }
}

/* Which pictures are kept may depend on timing and memory, what a batch holds does not. */
static void keep(Preparation *preparation, DataItem *item, const Picture *picture, Arena *arena) {
  const int64_t bytes = (int64_t)picture->width * picture->height * picture->channels;
  if (atomic_fetch_sub(&preparation->allowance, bytes) < bytes) {
    atomic_fetch_add(&preparation->allowance, bytes);
    return;
  }
  jmp_buf point;
  jmp_buf *previous = arena_on_failure(arena, &point);
  if (setjmp(point) == 0) {
    Picture copy = *picture;
    copy.pixels = arena_copy(arena, picture->pixels, (size_t)bytes);
    item->ready = copy;
  } else {
    atomic_store(&preparation->allowance, 0); /* memory is full: the rest is for decoding */
  }
  arena_on_failure(arena, previous);
}

static void prepare_item(Preparation *preparation, size_t index, Arena *scratch, Arena *kept) {
  DataItem *item = &preparation->set->items[index];
  Diag *diag = diag_create(scratch);
  Picture picture;
  if (item->damage) return;
  if (!data_prepare(preparation->set, item, scratch, diag, &picture)) {
    const char *text = "cannot be read";
    for (size_t i = diag_message_count(diag); i > 0; i--)
      if (diag_message(diag, i - 1)->severity == SEVERITY_ERROR) text = diag_message(diag, i - 1)->text;
    item->damage = arena_string(kept, text);
    return;
  }
  if (preparation->sums) add_sums(&picture, preparation->set->channels, &preparation->sums[index]);
  if (picture.pixels == item->source.pixels) {
    item->ready = picture;
  } else {
    keep(preparation, item, &picture, kept);
  }
}

static void prepare_work(void *context, size_t index, size_t thread) {
  Preparation *preparation = context;
  if (atomic_load(&preparation->out_of_memory) || atomic_load(preparation->set->cancelled)) return;
  Arena *scratch = preparation->scratch[thread], *kept = preparation->kept[thread];
  jmp_buf point;
  if (setjmp(point) == 0) {
    arena_on_failure(scratch, &point);
    arena_on_failure(kept, &point);
    prepare_item(preparation, index, scratch, kept);
  } else {
    atomic_store(&preparation->out_of_memory, true);
  }
  arena_on_failure(scratch, NULL);
  arena_on_failure(kept, NULL);
  arena_reset(scratch);
  if (thread == 0) show_progress(preparation->set, index);
}

static void destroy_arena(void *arena) { arena_destroy(arena); }

void data_prepare_all(DataSet *set, DataSums *out_sums) {
  const size_t threads = (size_t)set->options.threads;
  Preparation preparation = {.set = set, .sums = out_sums};
  atomic_init(&preparation.allowance, set->options.cache_bytes);
  preparation.scratch = arena_array(set->arena, threads, Arena *);
  preparation.kept = arena_array(set->arena, threads, Arena *);
  for (size_t i = 0; i < threads; i++) {
    Arena **arenas[] = {&preparation.scratch[i], &preparation.kept[i]};
    for (int k = 0; k < 2; k++) {
      *arenas[k] = arena_create(NULL);
      if (!*arenas[k]) arena_fail(set->arena);
      arena_defer(set->arena, destroy_arena, *arenas[k]);
    }
  }
  data_parallel(set->options.threads, set->item_count, prepare_work, &preparation);
  show_progress(set, set->item_count);
  if (atomic_load(&preparation.out_of_memory)) arena_fail(set->arena);
}

/* --- threads --------------------------------------------------------------------------------------- */

enum { THREAD_LIMIT = 256 };

typedef struct Parallel {
  void (*work)(void *context, size_t index, size_t thread);
  void *context;
  size_t count;
  atomic_size_t next, threads; /* the next index; threads that have a number */
} Parallel;

static void work_on(Parallel *parallel, size_t thread) {
  for (;;) {
    const size_t index = atomic_fetch_add(&parallel->next, 1);
    if (index >= parallel->count) return;
    parallel->work(parallel->context, index, thread);
  }
}

static void *parallel_main(void *argument) {
  Parallel *parallel = argument;
  work_on(parallel, atomic_fetch_add(&parallel->threads, 1));
  return NULL;
}

void data_parallel(int64_t threads, size_t count, void (*work)(void *context, size_t index, size_t thread),
                   void *context) {
  Parallel parallel = {.work = work, .context = context, .count = count, .threads = 1};
  pthread_t handles[THREAD_LIMIT];
  size_t started = 0;
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  while (started + 1 < (size_t)threads && started + 1 < count && started < THREAD_LIMIT &&
         pthread_create(&handles[started], NULL, parallel_main, &parallel) == 0) {
    started++;
  }
  pthread_sigmask(SIG_SETMASK, &previous, NULL);
  work_on(&parallel, 0);
  for (size_t i = 0; i < started; i++) pthread_join(handles[i], NULL);
}
