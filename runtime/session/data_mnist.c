/* A folder with MNIST's four IDX files. */
#include <string.h>
#include <sys/stat.h>

#include "data_idx.h"
#include "data_internal.h"

/* Images and labels of one part; read by threads of their own. */
typedef struct IdxFile {
  const char *path; /* NULL: the file is not there */
  Arena *arena;
  Diag *diag;
  IdxArray array;
  bool good, out_of_memory;
} IdxFile;

enum { FILE_TRAIN_IMAGES, FILE_TRAIN_LABELS, FILE_VALID_IMAGES, FILE_VALID_LABELS, FILE_COUNT };

static const char *const file_names[FILE_COUNT] = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                                   "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};

/* Some copies have a dot before "idx". A file that has been unpacked is preferred: it is read faster. */
static const char *find_file(const char *folder, int which, Arena *arena) {
  static const char *const endings[] = {"", ".gz"};
  for (size_t ending = 0; ending < 2; ending++) {
    for (int dotted = 0; dotted < 2; dotted++) {
      char *path = arena_format(arena, "%s/%s%s", folder, file_names[which], endings[ending]);
      if (dotted) *strstr(path + strlen(folder), "-idx") = '.';
      struct stat status;
      if (stat(path, &status) == 0) return path;
    }
  }
  return NULL;
}

bool data_has_mnist(const char *folder, Arena *scratch) {
  return find_file(folder, FILE_TRAIN_IMAGES, scratch) != NULL;
}

static void read_file(void *context, size_t index, size_t thread) {
  IdxFile *file = (IdxFile *)context + index;
  (void)thread;
  if (!file->path) return;
  jmp_buf point;
  if (setjmp(point) == 0) {
    arena_on_failure(file->arena, &point);
    file->diag = diag_create(file->arena);
    file->good = idx_read(file->path, file->arena, file->diag, &file->array);
  } else {
    file->out_of_memory = true;
  }
  arena_on_failure(file->arena, NULL);
}

/* --- checks ---------------------------------------------------------------------------------------- */

static bool check_images(const IdxFile *file, Diag *diag) {
  const IdxArray *array = &file->array;
  const Location location = {file->path, 0, 0};
  if (array->rank != 3) {
    diag_error(diag, location, "IDX: expected images of three dimensions, found %d", array->rank);
    return false;
  }
  return picture_check_size(file->path, (uint64_t)array->dims[2], (uint64_t)array->dims[1], diag);
}

static bool check_labels(const IdxFile *images, const IdxFile *labels, Diag *diag) {
  const Location location = {labels->path, 0, 0};
  if (labels->array.rank != 1) {
    diag_error(diag, location, "IDX: expected labels of one dimension, found %d", labels->array.rank);
    return false;
  }
  if (labels->array.count != images->array.dims[0]) {
    diag_error(diag, location, "expected %lld labels, as many as images in %s, found %lld",
               (long long)images->array.dims[0], images->path, (long long)labels->array.count);
    return false;
  }
  return true;
}

static bool check_files(const DataSet *set, const IdxFile *files, Diag *diag) {
  bool good = true;
  for (int part = 0; part < FILE_COUNT; part += 2) {
    const IdxFile *images = &files[part], *labels = &files[part + 1];
    if (!images->path != !labels->path) {
      diag_error(diag, (Location){set->options.folder, 0, 0}, "has %s but no %s",
                 file_names[images->path ? part : part + 1], file_names[images->path ? part + 1 : part]);
      good = false;
    } else if (images->good && labels->good) {
      good = check_images(images, diag) && check_labels(images, labels, diag) && good;
    } else if (images->path) {
      good = false;
    }
  }
  const IdxArray *train = &files[FILE_TRAIN_IMAGES].array, *valid = &files[FILE_VALID_IMAGES].array;
  if (good && files[FILE_VALID_IMAGES].path && (train->dims[1] != valid->dims[1] || train->dims[2] != valid->dims[2])) {
    diag_error(diag, (Location){files[FILE_VALID_IMAGES].path, 0, 0},
               "expected images of %lld by %lld pixels, as for training, found %lld by %lld", (long long)train->dims[2],
               (long long)train->dims[1], (long long)valid->dims[2], (long long)valid->dims[1]);
    return false;
  }
  return good;
}

/* --- items ----------------------------------------------------------------------------------------- */

static const char **label_names(Arena *arena) {
  const char **names = arena_array(arena, 256, const char *);
  for (int i = 0; i < 256; i++) names[i] = arena_format(arena, "%d", i);
  return names;
}

static void add_items(DataSet *set, const IdxFile *images, const IdxFile *labels, DataPart part,
                      const char *const *names) {
  const IdxArray *array = &images->array;
  const uint8_t *classes = labels->array.values;
  const size_t size = (size_t)(array->dims[1] * array->dims[2]);
  for (int64_t i = 0; i < array->dims[0]; i++) {
    DataItem *item = &set->items[set->item_count++];
    item->path = images->path;
    item->number = i;
    item->class_number = classes[i];
    item->label = names[classes[i]];
    if (classes[i] >= set->class_count) set->class_count = (size_t)classes[i] + 1;
    item->part = part;
    /* only ever read */
    item->source = (Picture){(int32_t)array->dims[2], (int32_t)array->dims[1], 1, NULL};
    item->source.pixels = (uint8_t *)(uintptr_t)(array->values + (size_t)i * size);
  }
}

static bool create_items(DataSet *set, const IdxFile *files, Diag *diag) {
  const bool has_valid = files[FILE_VALID_IMAGES].path != NULL;
  const int64_t train = files[FILE_TRAIN_IMAGES].array.dims[0],
                valid = has_valid ? files[FILE_VALID_IMAGES].array.dims[0] : 0;
  if (train == 0 || train + valid > (int64_t)DATA_MAX_ITEMS) {
    diag_error(diag, (Location){files[FILE_TRAIN_IMAGES].path, 0, 0}, "expected from 1 to %u images, found %lld",
               DATA_MAX_ITEMS, (long long)(train + valid));
    return false;
  }
  const char **names = label_names(set->arena);
  set->class_names = names;
  set->items = arena_array(set->arena, (size_t)(train + valid), DataItem);
  add_items(set, &files[FILE_TRAIN_IMAGES], &files[FILE_TRAIN_LABELS], has_valid ? PART_TRAIN : PART_ANY, names);
  if (has_valid) add_items(set, &files[FILE_VALID_IMAGES], &files[FILE_VALID_LABELS], PART_VALID, names);
  return true;
}

static void destroy_arena(void *arena) { arena_destroy(arena); }

bool data_find_mnist(DataSet *set, Diag *diag) {
  IdxFile files[FILE_COUNT] = {0};
  for (int i = 0; i < FILE_COUNT; i++) {
    files[i].path = find_file(set->options.folder, i, set->arena);
    files[i].arena = arena_create(NULL);
    if (!files[i].arena) arena_fail(set->arena);
    arena_defer(set->arena, destroy_arena, files[i].arena);
  }
  data_parallel(set->options.threads, FILE_COUNT, read_file, files);
  for (int i = 0; i < FILE_COUNT; i++) {
    if (files[i].out_of_memory) arena_fail(set->arena);
    if (files[i].path) data_copy_messages(files[i].diag, diag);
  }
  return check_files(set, files, diag) && create_items(set, files, diag);
}
