/* Batches, filled ahead of their use.
 *
 * Batches are numbered in the order of use; batch n lies in slot n mod slot_count. Pictures are handed out in chunks,
 * in that order, to workers and to a caller that waits for its batch: without workers the caller does everything. The
 * content of a batch is determined when it is begun (its pictures) and by pure functions of that (its samples), so it
 * does not matter who fills which chunk, or when.
 *
 * One mutex guards everything but the samples themselves; a chunk belongs to whoever has taken it, until its count in
 * `finished` tells that it is done.
 *
 * A loader without workers may be lent the threads of a pool, which then fill the caller's batch together. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "data_internal.h"

enum {
  WORKER_LIMIT = 256,
  DEFAULT_AHEAD = 3,
  AHEAD_LIMIT = 1024,
  CHUNK_SAMPLES = 1 << 16, /* so that taking a chunk costs little against filling it */
  MESSAGE_SIZE = 512
};

typedef struct Slot {
  int64_t epoch, number, count;
  int64_t taken, finished; /* pictures */
  int64_t failed;          /* the first picture that could not be read, or −1 */
  char message[MESSAGE_SIZE];
  float *images;
  int64_t *targets;
  uint32_t *indices;
} Slot;

/* Pictures from `begin` to before `end` of a slot. */
typedef struct Chunk {
  Slot *slot;
  int64_t begin, end;
} Chunk;

struct DataLoader {
  Arena *arena, *scratch; /* scratch: of the caller */
  const DataSet *set;
  DataLoaderOptions options;
  Augment augment;
  double logits[256]; /* for augment_light */
  bool augmented;
  int64_t batches, chunk, image_size; /* per epoch; pictures; samples */

  pthread_mutex_t mutex;
  pthread_cond_t work, done;       /* something to take; something finished */
  bool stop, paused, held;         /* held: the caller uses the first batch */
  uint64_t first, begun;           /* batches: the oldest in use; how many have been begun */
  int64_t next_epoch, next_number; /* position of the batch to begin next */
  uint32_t *order;                 /* of the training pictures in order_epoch */
  int64_t order_epoch;             /* −1: none */
  uint64_t slot_count;
  Slot *slots;
  size_t active; /* workers with a chunk */

  size_t worker_count;
  pthread_t workers[WORKER_LIMIT];

  Pool *pool;           /* fills batches when there are no workers; or NULL */
  Arena **pool_scratch; /* of its threads */
};

/* --- one picture ----------------------------------------------------------------------------------- */

static void copy_samples(const uint8_t *from, size_t count, size_t step, const float *table, float *out) {
  if (step == 1) { /* apart, because the compiler makes this loop faster */
    for (size_t i = 0; i < count; i++) out[i] = table[from[i]];
  } else {
    for (size_t i = 0; i < count; i++) out[i] = table[from[i * step]];
  }
}

/* The crop without resampling. */
static void copy_crop(const DataLoader *loader, const Picture *picture, float *out) {
  const DataSet *set = loader->set;
  const size_t left = (size_t)picture_crop_start(picture->width, set->width);
  const size_t top = (size_t)picture_crop_start(picture->height, set->height);
  const size_t step = (size_t)picture->channels, line = (size_t)picture->width * step;
  /* rows that follow each other in the picture too are one */
  const bool whole = picture->width == set->width;
  const size_t rows = whole ? 1 : (size_t)set->height;
  const size_t count = (size_t)set->width * (whole ? (size_t)set->height : 1);
  for (int32_t channel = 0; channel < set->channels; channel++) {
    const uint8_t *from = picture->pixels + top * line + left * step + (step == 1 ? 0 : channel);
    for (size_t row = 0; row < rows; row++, from += line, out += count)
      copy_samples(from, count, step, set->table[channel], out);
  }
}

/* A sample after its change of light, normalised. */
static void light_table(const DataLoader *loader, const AugmentDraw *draw, float (*out_table)[256]) {
  const DataSet *set = loader->set;
  double values[256];
  augment_light(draw, loader->logits, values);
  for (int32_t channel = 0; channel < set->channels; channel++)
    for (int sample = 0; sample < 256; sample++)
      out_table[channel][sample] = ((float)values[sample] - (float)set->mean[channel]) / (float)set->deviation[channel];
}

static void copy_augmented(const DataLoader *loader, const Picture *picture, int64_t epoch, int64_t index, float *out) {
  const DataSet *set = loader->set;
  const AugmentDraw draw = augment_draw(&loader->augment, loader->options.seed, epoch, index);
  const bool lit = draw.brightness != 0 || draw.contrast != 1;
  float own_table[AUGMENT_CHANNELS][256];
  double matrix[9];
  if (lit) light_table(loader, &draw, own_table);
  augment_matrix(&draw, picture->width, picture->height, set->width, set->height, matrix);
  augment_apply(picture, matrix, loader->augment.padding, lit ? (const float(*)[256])own_table : set->table,
                set->channels, set->width, set->height, out);
}

/* NULL, or why the picture cannot be used, in `scratch`. */
static const char *load_picture(const DataLoader *loader, const Slot *slot, int64_t place, Arena *scratch) {
  const DataSet *set = loader->set;
  const uint32_t index = slot->indices[place];
  const DataItem *item = &set->items[set->split[loader->options.split][index]];
  Picture picture = item->ready;
  if (!picture.pixels) {
    Diag *diag = diag_create(scratch);
    if (!data_prepare(set, item, scratch, diag, &picture)) {
      size_t last = diag_message_count(diag) - 1;
      while (last > 0 && diag_message(diag, last)->severity != SEVERITY_ERROR) last--;
      return diag_message(diag, last)->text;
    }
  }
  float *out = slot->images + place * loader->image_size;
  if (loader->augmented) {
    copy_augmented(loader, &picture, slot->epoch, index, out);
  } else {
    copy_crop(loader, &picture, out);
  }
  return NULL;
}

/* As load_picture, but also catches the end of memory; the message goes to a buffer. True when all is well. */
static bool load_caught(const DataLoader *loader, const Slot *slot, int64_t place, Arena *scratch,
                        char message[MESSAGE_SIZE]) {
  const char *failure = "out of memory";
  jmp_buf point;
  if (setjmp(point) == 0) {
    arena_on_failure(scratch, &point);
    failure = load_picture(loader, slot, place, scratch);
  } else {
    failure = "out of memory";
  }
  arena_on_failure(scratch, NULL);
  if (failure) {
    strncpy(message, failure, MESSAGE_SIZE - 1);
    message[MESSAGE_SIZE - 1] = '\0';
  }
  if (arena_used(scratch) > 0) arena_reset(scratch);
  return !failure;
}

/* --- chunks ---------------------------------------------------------------------------------------- */

/* Begins the next batch in its slot. */
static void begin_batch(DataLoader *loader) {
  const DataLoaderOptions *options = &loader->options;
  const int64_t count = data_set_count(loader->set, options->split);
  Slot *slot = &loader->slots[loader->begun++ % loader->slot_count];
  if (options->shuffle && loader->order_epoch != loader->next_epoch) {
    for (int64_t i = 0; i < count; i++) loader->order[i] = (uint32_t)i;
    data_shuffle(loader->order, count, options->seed, RANDOM_SHUFFLE, loader->next_epoch);
    loader->order_epoch = loader->next_epoch;
  }
  const int64_t begin = loader->next_number * options->batch;
  slot->epoch = loader->next_epoch;
  slot->number = loader->next_number;
  slot->count = count - begin < options->batch ? count - begin : options->batch;
  slot->taken = slot->finished = 0;
  slot->failed = -1;
  for (int64_t i = 0; i < slot->count; i++) {
    slot->indices[i] = options->shuffle ? loader->order[begin + i] : (uint32_t)(begin + i);
    slot->targets[i] = data_set_target(loader->set, options->split, slot->indices[i]);
  }
  if (++loader->next_number == loader->batches) {
    loader->next_number = 0;
    loader->next_epoch++;
  }
}

/* The next chunk of the batches before `limit`, if one is left. All batches but the last begun are fully taken. */
static bool take_chunk(DataLoader *loader, uint64_t limit, Chunk *out_chunk) {
  Slot *slot = loader->begun > loader->first ? &loader->slots[(loader->begun - 1) % loader->slot_count] : NULL;
  if (!slot || slot->taken == slot->count) {
    if (loader->begun >= limit) return false;
    slot = &loader->slots[loader->begun % loader->slot_count];
    begin_batch(loader);
  } else if (loader->begun > limit) {
    return false;
  }
  const int64_t left = slot->count - slot->taken;
  *out_chunk = (Chunk){slot, slot->taken, slot->taken + (left < loader->chunk ? left : loader->chunk)};
  slot->taken = out_chunk->end;
  return true;
}

/* A picture's first kilobyte: IDX pictures are small, and their order is random. */
static void prefetch_picture(const DataLoader *loader, const Slot *slot, int64_t place) {
  enum { LINE = 64, PREFETCHED = 1024 };
  const DataSet *set = loader->set;
  const Picture *picture = &set->items[set->split[loader->options.split][slot->indices[place]]].ready;
  const size_t bytes = (size_t)picture->width * (size_t)picture->height * (size_t)picture->channels;
  if (!picture->pixels) return;
  for (size_t at = 0; at < bytes && at < PREFETCHED; at += LINE) __builtin_prefetch(picture->pixels + at);
}

static void prefetch_item(const DataLoader *loader, const Slot *slot, int64_t place) {
  const DataSet *set = loader->set;
  __builtin_prefetch(&set->items[set->split[loader->options.split][slot->indices[place]]].ready);
}

/* Pictures from `begin` to before `end`. The first that failed, or −1; a failure ends it. */
static int64_t fill_pictures(const DataLoader *loader, const Slot *slot, int64_t begin, int64_t end, Arena *scratch,
                             char message[MESSAGE_SIZE]) {
  enum { PICTURES_AHEAD = 4, ITEMS_AHEAD = 12 };
  for (int64_t place = begin; place < end; place++) {
    if (place + ITEMS_AHEAD < end) prefetch_item(loader, slot, place + ITEMS_AHEAD);
    if (place + PICTURES_AHEAD < end) prefetch_picture(loader, slot, place + PICTURES_AHEAD);
    if (!load_caught(loader, slot, place, scratch, message)) return place;
  }
  return -1;
}

/* With the mutex locked. Of several failures the first is reported, whatever the order in which they come. */
static void note_filled(Slot *slot, int64_t count, int64_t failed, const char message[MESSAGE_SIZE]) {
  if (failed >= 0 && (slot->failed < 0 || failed < slot->failed)) {
    slot->failed = failed;
    memcpy(slot->message, message, MESSAGE_SIZE);
  }
  slot->finished += count;
}

/* Called and left with the mutex locked, which is open in between. */
static void fill_chunk(DataLoader *loader, const Chunk *chunk, Arena *scratch) {
  char message[MESSAGE_SIZE];
  pthread_mutex_unlock(&loader->mutex);
  const int64_t failed = fill_pictures(loader, chunk->slot, chunk->begin, chunk->end, scratch, message);
  pthread_mutex_lock(&loader->mutex);
  note_filled(chunk->slot, chunk->end - chunk->begin, failed, message);
  if (chunk->slot->finished == chunk->slot->count) pthread_cond_signal(&loader->done);
}

/* A kiln_task over the pictures of the first batch. */
static void fill_share(void *context, uint32_t thread, int64_t begin, int64_t end) {
  DataLoader *loader = context;
  Slot *slot = &loader->slots[loader->first % loader->slot_count];
  char message[MESSAGE_SIZE];
  const int64_t failed = fill_pictures(loader, slot, begin, end, loader->pool_scratch[thread], message);
  pthread_mutex_lock(&loader->mutex);
  note_filled(slot, end - begin, failed, message);
  pthread_mutex_unlock(&loader->mutex);
}

static void *worker_main(void *argument) {
  DataLoader *loader = argument;
  Arena *scratch = arena_create(NULL);
  Chunk chunk;
  if (!scratch) return NULL; /* the others and the caller do its share */
  pthread_mutex_lock(&loader->mutex);
  while (!loader->stop) {
    if (loader->paused || !take_chunk(loader, loader->first + loader->slot_count, &chunk)) {
      pthread_cond_wait(&loader->work, &loader->mutex);
      continue;
    }
    loader->active++;
    fill_chunk(loader, &chunk, scratch);
    if (--loader->active == 0) pthread_cond_signal(&loader->done);
  }
  pthread_mutex_unlock(&loader->mutex);
  arena_destroy(scratch);
  return NULL;
}

/* --- creation -------------------------------------------------------------------------------------- */

static bool check_options(const DataSet *set, const DataLoaderOptions *options, Diag *diag) {
  const Location nowhere = {NULL, 0, 0};
  const int64_t count = data_set_count(set, options->split);
  const char *name = options->split == DATA_TRAIN ? "training" : "validation";
  if (options->batch < 1) {
    diag_error(diag, nowhere, "data: expected a batch of at least 1 picture, found %lld", (long long)options->batch);
    return false;
  }
  if (options->workers < 0 || options->workers > WORKER_LIMIT || options->ahead < 0 || options->ahead > AHEAD_LIMIT) {
    diag_error(diag, nowhere, "data: expected from 0 to %d workers and from 0 to %d batches ahead, found %lld and %lld",
               WORKER_LIMIT, AHEAD_LIMIT, (long long)options->workers, (long long)options->ahead);
    return false;
  }
  if (count == 0 || (options->drop_last && options->batch > count)) {
    diag_error(diag, (Location){set->options.folder, 0, 0}, "%lld pictures for %s make no batch of %lld",
               (long long)count, name, (long long)options->batch);
    return false;
  }
  return !options->augment || augment_check(options->augment, diag);
}

static void create_slots(DataLoader *loader) {
  const int64_t count = data_set_count(loader->set, loader->options.split);
  const int64_t batch = loader->options.batch < count ? loader->options.batch : count;
  int64_t bytes;
  if (!checked_mul(batch, loader->image_size, &bytes) || !checked_mul(bytes, (int64_t)sizeof(float), &bytes))
    arena_fail(loader->arena);
  loader->slots = arena_array(loader->arena, loader->slot_count, Slot);
  for (uint64_t i = 0; i < loader->slot_count; i++) {
    Slot *slot = &loader->slots[i];
    slot->images = arena_alloc_aligned(loader->arena, (size_t)bytes, 64);
    slot->targets = arena_array(loader->arena, (size_t)batch, int64_t);
    slot->indices = arena_array(loader->arena, (size_t)batch, uint32_t);
  }
  if (loader->options.shuffle) loader->order = arena_array(loader->arena, (size_t)count, uint32_t);
}

static void destroy_arena(void *arena) { arena_destroy(arena); }

/* How many batches are kept ready. By default some, but not more memory than needed. */
static int64_t batches_ahead(const DataLoader *loader) {
  static const int64_t budget = (int64_t)256 << 20;
  const DataLoaderOptions *options = &loader->options;
  int64_t samples;
  if (options->workers == 0) return 0;
  if (options->ahead > 0) return options->ahead;
  if (!checked_mul(options->batch, loader->image_size, &samples)) return 1;
  const int64_t fitting = budget / (int64_t)sizeof(float) / samples;
  return fitting < 1 ? 1 : fitting < DEFAULT_AHEAD ? fitting : DEFAULT_AHEAD;
}

static void init(DataLoader *loader, const DataSet *set, const DataLoaderOptions *options) {
  const int64_t count = data_set_count(set, options->split);
  loader->set = set;
  loader->options = *options;
  loader->augmented = options->augment && !augment_is_none(options->augment);
  if (loader->augmented) loader->augment = *options->augment;
  augment_logits(loader->logits);
  loader->batches = options->drop_last ? count / options->batch : ceil_div(count, options->batch);
  loader->image_size = (int64_t)set->channels * set->height * set->width;
  loader->chunk = loader->image_size < CHUNK_SAMPLES ? CHUNK_SAMPLES / loader->image_size : 1;
  loader->slot_count = 1 + (uint64_t)batches_ahead(loader);
  loader->order_epoch = -1;
  loader->scratch = arena_create(NULL);
  if (!loader->scratch) arena_fail(loader->arena);
  arena_defer(loader->arena, destroy_arena, loader->scratch);
  create_slots(loader);
}

static void start_workers(DataLoader *loader) {
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous); /* signals are for the caller's thread */
  while (loader->worker_count < (size_t)loader->options.workers &&
         pthread_create(&loader->workers[loader->worker_count], NULL, worker_main, loader) == 0) {
    loader->worker_count++;
  }
  pthread_sigmask(SIG_SETMASK, &previous, NULL);
}

static void report_memory(const DataSet *set, const DataLoaderOptions *options, Diag *diag) {
  diag_error(diag, (Location){set->options.folder, 0, 0}, "out of memory for batches of %lld pictures",
             (long long)options->batch);
}

DataLoader *data_loader_create(const DataSet *set, const DataLoaderOptions *options, Diag *diag) {
  if (!check_options(set, options, diag)) return NULL;
  Arena *arena = arena_create(NULL);
  DataLoader *volatile loader = NULL;
  volatile bool good = false;
  jmp_buf point;
  if (arena && setjmp(point) == 0) {
    arena_on_failure(arena, &point);
    loader = arena_new(arena, DataLoader);
    loader->arena = arena;
    init(loader, set, options);
    good = true;
  }
  if (arena) arena_on_failure(arena, NULL);
  if (!good || pthread_mutex_init(&loader->mutex, NULL) != 0) {
    arena_destroy(arena);
    report_memory(set, options, diag);
    return NULL;
  }
  /* on Linux these two cannot fail */
  pthread_cond_init(&loader->work, NULL);
  pthread_cond_init(&loader->done, NULL);
  start_workers(loader);
  return loader;
}

void data_loader_destroy(DataLoader *loader) {
  if (!loader) return;
  pthread_mutex_lock(&loader->mutex);
  loader->stop = true;
  pthread_cond_broadcast(&loader->work);
  pthread_mutex_unlock(&loader->mutex);
  for (size_t i = 0; i < loader->worker_count; i++) pthread_join(loader->workers[i], NULL);
  pthread_cond_destroy(&loader->done);
  pthread_cond_destroy(&loader->work);
  pthread_mutex_destroy(&loader->mutex);
  arena_destroy(loader->arena);
}

/* --- use ------------------------------------------------------------------------------------------- */

int64_t data_loader_batches(const DataLoader *loader) { return loader->batches; }

bool data_loader_share(DataLoader *loader, Pool *pool, Diag *diag) {
  if (!pool || loader->worker_count > 0) return true;
  const size_t threads = pool_threads(pool);
  volatile bool good = false;
  jmp_buf point;
  if (setjmp(point) == 0) {
    arena_on_failure(loader->arena, &point);
    loader->pool_scratch = arena_array(loader->arena, threads, Arena *);
    for (size_t i = 0; i < threads; i++) {
      if ((loader->pool_scratch[i] = arena_create(NULL)) == NULL) arena_fail(loader->arena);
      arena_defer(loader->arena, destroy_arena, loader->pool_scratch[i]);
    }
    loader->pool = pool;
    good = true;
  }
  arena_on_failure(loader->arena, NULL);
  if (!good) report_memory(loader->set, &loader->options, diag);
  return good;
}

/* Gives back the caller's batch, whose slot is filled anew. */
static void release_held(DataLoader *loader) {
  if (!loader->held) return;
  loader->held = false;
  loader->first++;
  pthread_cond_broadcast(&loader->work);
}

/* Begins the first batch and fills it with the pool's threads. */
static void fill_together(DataLoader *loader) {
  Slot *slot = &loader->slots[loader->first % loader->slot_count];
  begin_batch(loader);
  slot->taken = slot->count;
  pthread_mutex_unlock(&loader->mutex);
  pool_parallel_for(loader->pool, fill_share, loader, slot->count);
  pthread_mutex_lock(&loader->mutex);
}

/* Waits for the first batch, or works on it. */
static Slot *wait_first(DataLoader *loader) {
  Slot *slot = &loader->slots[loader->first % loader->slot_count];
  if (loader->pool && loader->begun == loader->first) fill_together(loader);
  for (;;) {
    Chunk chunk;
    if (take_chunk(loader, loader->first + 1, &chunk)) {
      fill_chunk(loader, &chunk, loader->scratch);
    } else if (slot->finished < slot->count) {
      pthread_cond_wait(&loader->done, &loader->mutex);
    } else {
      return slot;
    }
  }
}

static void report_failure(const DataLoader *loader, const Slot *slot, Diag *diag) {
  const DataSet *set = loader->set;
  const DataItem *item = &set->items[set->split[loader->options.split][slot->indices[slot->failed]]];
  diag_error(diag, (Location){item->path, 0, 0}, "%s", slot->message);
}

bool data_loader_next(DataLoader *loader, DataBatch *out_batch, Diag *diag) {
  pthread_mutex_lock(&loader->mutex);
  release_held(loader);
  Slot *slot = wait_first(loader);
  loader->held = slot->failed < 0;
  pthread_mutex_unlock(&loader->mutex);
  if (!loader->held) {
    report_failure(loader, slot, diag);
    return false;
  }
  *out_batch = (DataBatch){slot->epoch, slot->number, slot->count, slot->images, slot->targets, slot->indices};
  return true;
}

void data_loader_seek(DataLoader *loader, int64_t epoch, int64_t batch) {
  pthread_mutex_lock(&loader->mutex);
  loader->paused = true;
  while (loader->active > 0) pthread_cond_wait(&loader->done, &loader->mutex);
  loader->paused = false;
  loader->held = false;
  loader->first = loader->begun;
  loader->next_epoch = epoch;
  loader->next_number = batch;
  pthread_cond_broadcast(&loader->work);
  pthread_mutex_unlock(&loader->mutex);
}
