#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "data_internal.h"

static const double default_share = 0.2;

DataOptions data_options_default(void) {
  return (DataOptions){.valid_share = -1, .cache_bytes = (int64_t)1 << 30, .threads = 1};
}

/* --- random order ---------------------------------------------------------------------------------- */

void data_shuffle(uint32_t *items, int64_t count, uint64_t seed, RandomPurpose purpose, int64_t epoch) {
  uint32_t words[4];
  for (int64_t i = count - 1, draw = 0; i > 0; i--, draw++) {
    if (draw % 2 == 0) data_random(seed, purpose, epoch, draw / 2, 1, words);
    const uint32_t *pair = words + 2 * (draw % 2);
    const uint64_t bits = (uint64_t)pair[1] << 32 | pair[0];
    /* the upper half of bits · (i + 1): uniform from 0 to i (Lemire, arXiv 1805.10941, without its rejection) */
    const uint64_t range = (uint64_t)i + 1;
    const int64_t other = (int64_t)(((bits >> 32) * range + ((bits & UINT32_MAX) * range >> 32)) >> 32);
    const uint32_t kept = items[i];
    items[i] = items[other];
    items[other] = kept;
  }
}

/* --- options --------------------------------------------------------------------------------------- */

static bool check_range(const char *name, int64_t value, int64_t low, int64_t high, Diag *diag) {
  if (value >= low && value <= high) return true;
  diag_error(diag, (Location){NULL, 0, 0}, "data: expected %s from %lld to %lld, found %lld", name, (long long)low,
             (long long)high, (long long)value);
  return false;
}

static bool check_given_normalisation(const DataOptions *options, Diag *diag) {
  if (options->normalize != DATA_NORMALIZE_GIVEN) return true;
  const int64_t channels = options->channels == 1 ? 1 : AUGMENT_CHANNELS;
  for (int64_t i = 0; i < channels; i++) {
    if (isfinite(options->mean[i]) && isfinite(options->deviation[i]) && options->deviation[i] > 0) continue;
    char mean[DOUBLE_TEXT_SIZE], deviation[DOUBLE_TEXT_SIZE];
    diag_error(diag, (Location){NULL, 0, 0},
               "data: expected a finite mean and a positive deviation for channel %lld, found %s and %s", (long long)i,
               double_text(options->mean[i], mean), double_text(options->deviation[i], deviation));
    return false;
  }
  return true;
}

static bool check_options(const DataOptions *options, Diag *diag) {
  const Location nowhere = {NULL, 0, 0};
  bool good = check_range("height", options->height, 0, PICTURE_MAX_SIDE, diag);
  good = check_range("width", options->width, 0, PICTURE_MAX_SIDE, diag) && good;
  good = check_range("resize", options->resize, 0, PICTURE_MAX_SIDE, diag) && good;
  good = check_range("a number of pictures for validation", options->valid_count, 0, DATA_MAX_ITEMS, diag) && good;
  good = check_range("threads", options->threads, 1, 256, diag) && good;
  good = check_range("bytes of cache", options->cache_bytes, 0, INT64_MAX, diag) && good;
  if (good && options->height * options->width > PICTURE_MAX_PIXELS) {
    diag_error(diag, nowhere, "data: an input of %lld by %lld pixels is larger than the limit of %d pixels",
               (long long)options->width, (long long)options->height, PICTURE_MAX_PIXELS);
    good = false;
  }
  if (options->channels != 0 && options->channels != 1 && options->channels != 3) {
    diag_error(diag, nowhere, "data: expected 1 or 3 channels, found %lld", (long long)options->channels);
    good = false;
  }
  if (!(options->valid_share == -1 || (options->valid_share >= 0 && options->valid_share < 1))) {
    char found[DOUBLE_TEXT_SIZE];
    diag_error(diag, nowhere, "data: expected a share for validation from 0 to below 1, found %s",
               double_text(options->valid_share, found));
    good = false;
  }
  return check_given_normalisation(options, diag) && good;
}

/* Missing dimensions; the crop of a set of picture files must be given. */
static bool set_dims(DataSet *set, bool idx, Diag *diag) {
  DataOptions *options = &set->options;
  if (idx) {
    if (options->channels == 0) options->channels = 1;
    if (options->height == 0) options->height = set->items[0].source.height;
    if (options->width == 0) options->width = set->items[0].source.width;
  } else if (options->channels == 0) {
    options->channels = 3;
  }
  if (options->height == 0 || options->width == 0) {
    diag_error(diag, (Location){options->folder, 0, 0}, "picture files need a height and a width to be cropped to");
    return false;
  }
  if (options->normalize == DATA_NORMALIZE_IMAGENET && options->channels != 3) {
    diag_error(diag, (Location){NULL, 0, 0},
               "data: ImageNet's mean and deviation are for 3 channels, but the model has %lld",
               (long long)options->channels);
    return false;
  }
  set->channels = (int32_t)options->channels;
  set->height = (int32_t)options->height;
  set->width = (int32_t)options->width;
  return true;
}

/* --- classes --------------------------------------------------------------------------------------- */

/* Where the class of that name stands in the list asked for, or −1. */
static int64_t wanted_class(const DataOptions *options, const char *name) {
  for (size_t i = 0; i < options->class_count; i++)
    if (strcmp(options->classes[i], name) == 0) return (int64_t)i;
  return -1;
}

static bool check_wanted(const DataSet *set, Diag *diag) {
  const DataOptions *options = &set->options;
  bool good = true;
  for (size_t i = 0; i < options->class_count && !diag_full(diag); i++) {
    bool found = false;
    for (size_t k = 0; k < set->class_count && !found; k++)
      found = strcmp(set->class_names[k], options->classes[i]) == 0;
    if (!found) {
      const char *near = nearest_word(options->classes[i], set->class_names, set->class_count);
      diag_error(diag, (Location){options->folder, 0, 0}, "has no class '%s'%s%s%s", options->classes[i],
                 near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
      good = false;
    } else if (wanted_class(options, options->classes[i]) != (int64_t)i) {
      diag_error(diag, (Location){NULL, 0, 0}, "data: class '%s' is listed twice", options->classes[i]);
      good = false;
    }
  }
  return good;
}

/* Keeps the classes asked for, in that order. */
static bool choose_classes(DataSet *set, Diag *diag) {
  const DataOptions *options = &set->options;
  if (options->class_count == 0) return true;
  if (!check_wanted(set, diag)) return false;
  int64_t *numbers = arena_array(set->arena, set->class_count, int64_t);
  for (size_t i = 0; i < set->class_count; i++) numbers[i] = wanted_class(options, set->class_names[i]);
  size_t kept = 0;
  for (size_t i = 0; i < set->item_count; i++) {
    const int64_t number = numbers[set->items[i].class_number];
    if (number < 0) continue;
    set->items[kept] = set->items[i];
    set->items[kept++].class_number = (uint32_t)number;
  }
  set->item_count = kept;
  const char **names = arena_array(set->arena, options->class_count, const char *);
  for (size_t i = 0; i < options->class_count; i++) names[i] = arena_string(set->arena, options->classes[i]);
  set->class_names = names;
  set->class_count = options->class_count;
  return true;
}

/* What is validated must have been trained. */
static bool check_parts(const DataSet *set, Diag *diag) {
  bool *trained = arena_array(set->arena, set->class_count, bool);
  bool good = true;
  for (size_t i = 0; i < set->item_count; i++)
    if (set->items[i].part != PART_VALID) trained[set->items[i].class_number] = true;
  for (size_t i = 0; i < set->item_count && !diag_full(diag); i++) {
    const DataItem *item = &set->items[i];
    if (trained[item->class_number]) continue;
    trained[item->class_number] = true; /* one message for each class */
    diag_error(diag, (Location){item->path, 0, 0}, "its class '%s' is in the validation part only",
               set->class_names[item->class_number]);
    good = false;
  }
  return good;
}

/* --- damaged pictures ------------------------------------------------------------------------------ */

/* Leaves out what cannot be used, or refuses the set. */
static bool drop_damaged(DataSet *set, Diag *diag) {
  size_t kept = 0, damaged = 0;
  for (size_t i = 0; i < set->item_count; i++) {
    const DataItem *item = &set->items[i];
    if (!item->damage) {
      set->items[kept++] = *item;
      continue;
    }
    damaged++;
    if (set->options.strict) {
      diag_error(diag, (Location){item->path, 0, 0}, "%s", item->damage);
    } else if (damaged <= DIAG_LIMIT) {
      diag_warning(diag, (Location){item->path, 0, 0}, "left out: %s", item->damage);
    }
  }
  if (damaged > 0 && set->options.strict) return false;
  if (damaged > DIAG_LIMIT) {
    diag_warning(diag, (Location){set->options.folder, 0, 0}, "%zu damaged pictures are left out in all", damaged);
  }
  if (kept == 0) {
    diag_error(diag, (Location){set->options.folder, 0, 0}, "no picture is left: all %zu are damaged", damaged);
    return false;
  }
  set->item_count = kept;
  return true;
}

/* --- split ----------------------------------------------------------------------------------------- */

/* Marks the parts of a set that has none of its own. */
static bool split_randomly(DataSet *set, Diag *diag) {
  const DataOptions *options = &set->options;
  const size_t total = set->item_count;
  const double share = options->valid_share >= 0 ? options->valid_share : default_share;
  const size_t valid = options->valid_count > 0 ? (size_t)options->valid_count : (size_t)(share * (double)total);
  if (valid >= total) {
    diag_error(diag, (Location){options->folder, 0, 0}, "%zu pictures for validation leave none of %zu for training",
               valid, total);
    return false;
  }
  uint32_t *order = arena_array(set->arena, total, uint32_t);
  for (size_t i = 0; i < total; i++) order[i] = (uint32_t)i;
  data_shuffle(order, (int64_t)total, options->split_seed, RANDOM_SPLIT, 0);
  for (size_t i = 0; i < total; i++) set->items[order[i]].part = i < valid ? PART_VALID : PART_TRAIN;
  return true;
}

static bool split_items(DataSet *set, bool own_parts, Diag *diag) {
  const DataOptions *options = &set->options;
  if (own_parts && (options->valid_share >= 0 || options->valid_count > 0)) {
    diag_error(diag, (Location){options->folder, 0, 0},
               "has a part of its own for validation: a share or a number of pictures for it cannot be given");
    return false;
  }
  if (!own_parts && !split_randomly(set, diag)) return false;
  for (int split = 0; split < DATA_SPLITS; split++) {
    set->split[split] = arena_array(set->arena, set->item_count, uint32_t);
    set->split_targets[split] = arena_array(set->arena, set->item_count, uint32_t);
    set->class_pictures[split] = arena_array(set->arena, set->class_count, int64_t);
  }
  for (size_t i = 0; i < set->item_count; i++) {
    const int split = set->items[i].part == PART_VALID ? DATA_VALID : DATA_TRAIN;
    const size_t at = set->split_count[split]++;
    set->split[split][at] = (uint32_t)i;
    set->split_targets[split][at] = set->items[i].class_number;
    set->class_pictures[split][set->items[i].class_number]++;
  }
  if (set->split_count[DATA_TRAIN] > 0) return true;
  diag_error(diag, (Location){options->folder, 0, 0}, "no picture is left for training");
  return false;
}

/* --- normalisation --------------------------------------------------------------------------------- */

static void measure_training(DataSet *set, const DataSums *sums) {
  for (int32_t channel = 0; channel < set->channels; channel++) {
    uint64_t sum = 0, squares = 0, pixels = 0;
    for (size_t i = 0; i < set->split_count[DATA_TRAIN]; i++) {
      const DataSums *item = &sums[set->split[DATA_TRAIN][i]];
      sum += item->sum[channel];
      squares += item->squares[channel];
      pixels += item->pixels;
    }
    const double mean = (double)sum / (double)pixels;
    const double variance = (double)squares / (double)pixels - mean * mean;
    set->mean[channel] = mean / 255;
    set->deviation[channel] = variance > 0 ? sqrt(variance) / 255 : 1; /* pictures of one colour stay finite */
  }
}

static void set_normalisation(DataSet *set, const DataSums *sums) {
  static const double imagenet_mean[] = {0.485, 0.456, 0.406}, imagenet_deviation[] = {0.229, 0.224, 0.225};
  for (int32_t i = 0; i < AUGMENT_CHANNELS; i++) {
    const bool given = set->options.normalize == DATA_NORMALIZE_GIVEN;
    const bool imagenet = set->options.normalize == DATA_NORMALIZE_IMAGENET;
    set->mean[i] = given ? set->options.mean[i] : imagenet ? imagenet_mean[i] : 0;
    set->deviation[i] = given ? set->options.deviation[i] : imagenet ? imagenet_deviation[i] : 1;
  }
  if (set->options.normalize == DATA_NORMALIZE_DATASET) measure_training(set, sums);
  /* in single precision and in this order, as `kiln run` prepares pictures: the same bits */
  for (int32_t i = 0; i < AUGMENT_CHANNELS; i++)
    for (int sample = 0; sample < 256; sample++)
      set->table[i][sample] = ((float)sample / 255.0F - (float)set->mean[i]) / (float)set->deviation[i];
}

/* --- opening --------------------------------------------------------------------------------------- */

static bool has_parts(const DataSet *set) {
  for (size_t i = 0; i < set->item_count; i++)
    if (set->items[i].part != PART_ANY) return true;
  return false;
}

/* Sums move along with the items that stay. */
static void drop_sums(const DataSet *set, DataSums *sums) {
  for (size_t i = 0, kept = 0; i < set->item_count; i++)
    if (!set->items[i].damage) sums[kept++] = sums[i];
}

static bool fill_set(DataSet *set, Diag *diag) {
  const bool idx = data_has_mnist(set->options.folder, set->arena);
  if (!(idx ? data_find_mnist(set, diag) : data_find_pictures(set, diag))) return false;
  const bool own_parts = has_parts(set);
  if (!set_dims(set, idx, diag) || !choose_classes(set, diag) || !check_parts(set, diag)) return false;
  const bool measured = set->options.normalize == DATA_NORMALIZE_DATASET;
  const Picture *source = &set->items[0].source;
  const bool as_is = idx && source->height == set->height && source->width == set->width &&
                     (set->options.resize == 0 ||
                      set->options.resize == (source->width < source->height ? source->width : source->height));
  DataSums *sums = measured ? arena_array(set->arena, set->item_count, DataSums) : NULL;
  if (measured || !(set->options.trust || as_is)) {
    data_prepare_all(set, sums);
  } else if (as_is) {
    for (size_t i = 0; i < set->item_count; i++) set->items[i].ready = set->items[i].source;
  }
  if (sums) drop_sums(set, sums);
  if (!drop_damaged(set, diag) || !split_items(set, own_parts, diag)) return false;
  set_normalisation(set, sums);
  return true;
}

static const char *strip_slashes(const char *folder, Arena *arena) {
  size_t length = strlen(folder);
  while (length > 1 && folder[length - 1] == '/') length--;
  return arena_string_n(arena, folder, length);
}

static void report_memory(const char *folder, Diag *diag) {
  diag_error(diag, (Location){folder, 0, 0}, "out of memory while the data set was opened");
}

static DataSet *open_set(const DataOptions *options, const atomic_bool *cancelled, Diag *diag) {
  if (!options->folder || options->folder[0] == '\0') {
    diag_error(diag, (Location){NULL, 0, 0}, "data: expected the name of a folder");
    return NULL;
  }
  if (!check_options(options, diag)) return NULL;
  Arena *arena = arena_create(NULL);
  DataSet *volatile set = NULL;
  volatile bool good = false, failed = true;
  jmp_buf point;
  if (arena && setjmp(point) == 0) {
    arena_on_failure(arena, &point);
    set = arena_new(arena, DataSet);
    set->arena = arena;
    set->options = *options;
    set->cancelled = cancelled;
    set->options.folder = strip_slashes(options->folder, arena);
    good = fill_set(set, diag);
    failed = false;
  }
  if (good) {
    arena_on_failure(arena, NULL);
    set->options.pattern = NULL; /* the caller's, from now on */
    set->options.classes = NULL;
    set->cancelled = NULL;
    return set;
  }
  arena_destroy(arena);
  if (failed) report_memory(options->folder, diag);
  return NULL;
}

/* --- on a thread of its own ------------------------------------------------------------------------ */

struct DataOpening {
  Arena *arena; /* of the messages and of this */
  Diag *diag;
  DataOptions options;
  DataSet *set;
  bool out_of_memory, started;
  atomic_bool done, cancelled;
  pthread_t thread;
};

static void *opening_main(void *argument) {
  DataOpening *opening = argument;
  jmp_buf point;
  if (setjmp(point) == 0) {
    arena_on_failure(opening->arena, &point);
    opening->set = open_set(&opening->options, &opening->cancelled, opening->diag);
  } else {
    opening->out_of_memory = true;
  }
  arena_on_failure(opening->arena, NULL);
  atomic_store(&opening->done, true);
  return NULL;
}

static DataOpening *opening_create(const DataOptions *options) {
  Arena *arena = arena_create(NULL);
  jmp_buf point;
  if (!arena) return NULL;
  if (setjmp(point) != 0) {
    arena_destroy(arena);
    return NULL;
  }
  arena_on_failure(arena, &point);
  DataOpening *opening = arena_new(arena, DataOpening);
  opening->arena = arena;
  opening->diag = diag_create(arena);
  opening->options = *options;
  arena_on_failure(arena, NULL);
  return opening;
}

DataOpening *data_set_open_begin(const DataOptions *options) {
  DataOpening *opening = opening_create(options);
  if (!opening) return NULL;
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  opening->started = pthread_create(&opening->thread, NULL, opening_main, opening) == 0;
  pthread_sigmask(SIG_SETMASK, &previous, NULL);
  return opening;
}

bool data_set_open_done(const DataOpening *opening) {
  return !opening || !opening->started || atomic_load(&opening->done);
}

void data_copy_messages(const Diag *from, Diag *to) {
  static void (*const add[])(Diag *, Location, const char *, ...) = {
      [SEVERITY_ERROR] = diag_error, [SEVERITY_WARNING] = diag_warning, [SEVERITY_NOTE] = diag_note};
  for (size_t i = 0; i < diag_message_count(from); i++) {
    const DiagMessage *message = diag_message(from, i);
    add[message->severity](to, message->location, "%s", message->text);
  }
  /* beyond the limit, where errors are only counted */
  for (size_t i = DIAG_LIMIT; i < diag_error_count(from); i++) diag_error(to, (Location){NULL, 0, 0}, "another error");
}

DataSet *data_set_open_finish(DataOpening *opening, Diag *diag) {
  if (!opening) {
    report_memory(NULL, diag);
    return NULL;
  }
  if (opening->started) {
    pthread_join(opening->thread, NULL);
  } else {
    opening_main(opening);
  }
  DataSet *set = opening->set;
  data_copy_messages(opening->diag, diag);
  if (opening->out_of_memory) report_memory(opening->options.folder, diag);
  arena_destroy(opening->arena);
  return set;
}

void data_set_open_cancel(DataOpening *opening) {
  if (!opening) return;
  atomic_store(&opening->cancelled, true);
  if (opening->started) pthread_join(opening->thread, NULL);
  data_set_close(opening->set);
  arena_destroy(opening->arena);
}

DataSet *data_set_open(const DataOptions *options, Diag *diag) {
  DataOpening *opening = opening_create(options);
  return data_set_open_finish(opening, diag);
}

void data_set_close(DataSet *set) {
  if (set) arena_destroy(set->arena);
}

/* --- what is in it --------------------------------------------------------------------------------- */

static const DataItem *item_at(const DataSet *set, DataSplit split, int64_t index) {
  return &set->items[set->split[split][index]];
}

int64_t data_set_count(const DataSet *set, DataSplit split) { return (int64_t)set->split_count[split]; }
int64_t data_set_class_count(const DataSet *set) { return (int64_t)set->class_count; }
const char *data_set_class_name(const DataSet *set, int64_t number) { return set->class_names[number]; }

int64_t data_set_class_pictures(const DataSet *set, DataSplit split, int64_t number) {
  return set->class_pictures[split][number];
}

void data_set_dims(const DataSet *set, int64_t out_dims[3]) {
  out_dims[0] = set->channels;
  out_dims[1] = set->height;
  out_dims[2] = set->width;
}

const double *data_set_mean(const DataSet *set) { return set->mean; }
const double *data_set_deviation(const DataSet *set) { return set->deviation; }

const char *data_set_picture_name(const DataSet *set, DataSplit split, int64_t index, Arena *arena) {
  const DataItem *item = item_at(set, split, index);
  return item->number < 0 ? arena_string(arena, item->path)
                          : arena_format(arena, "%s[%lld]", item->path, (long long)item->number);
}

int64_t data_set_target(const DataSet *set, DataSplit split, int64_t index) { return set->split_targets[split][index]; }
