/* Finding pictures in folders, and the names of their classes. */
#include <dirent.h>
#include <errno.h>
#include <locale.h>
#include <regex.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/sort.h"
#include "base/text.h"
#include "data_internal.h"

enum { DEPTH_LIMIT = 32, PATTERN_LIMIT = 1000 };

/* A folder on the way down from the set's own; `parent` is NULL there. */
typedef struct Folder {
  const char *path;
  const struct Folder *parent;
  dev_t device;
  ino_t inode;
  int depth;
  DataPart part;
  struct Folder *next; /* on the list of those still to be read */
} Folder;

typedef struct Walk {
  DataSet *set;
  Diag *diag;
  Folder *pending;
  size_t capacity; /* of set->items */
} Walk;

static bool is_picture_name(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot && (strcasecmp(dot, ".png") == 0 || strcasecmp(dot, ".jpg") == 0 || strcasecmp(dot, ".jpeg") == 0);
}

static void report_system(Diag *diag, const char *path, const char *action, int error) {
  const locale_t neutral = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  diag_error(diag, (Location){path, 0, 0}, "cannot %s: %s", action,
             neutral ? strerror_l(error, neutral) : "system error");
  if (neutral) freelocale(neutral);
}

/* --- walking --------------------------------------------------------------------------------------- */

static bool add_item(Walk *walk, const char *path, DataPart part, const char *damage) {
  DataSet *set = walk->set;
  if (set->item_count >= DATA_MAX_ITEMS) {
    diag_error(walk->diag, (Location){set->options.folder, 0, 0}, "holds more than %u pictures", DATA_MAX_ITEMS);
    return false;
  }
  if (set->item_count == walk->capacity) {
    walk->capacity = walk->capacity ? 2 * walk->capacity : 256;
    DataItem *items = arena_array(set->arena, walk->capacity, DataItem);
    if (set->item_count) memcpy(items, set->items, set->item_count * sizeof *items);
    set->items = items;
  }
  set->items[set->item_count++] = (DataItem){.path = path, .number = -1, .part = part, .damage = damage};
  return true;
}

/* A folder that contains itself by way of a link would never end. */
static bool add_folder(Walk *walk, const char *path, const struct stat *status, const Folder *parent, DataPart part) {
  for (const Folder *above = parent; above; above = above->parent) {
    if (above->device != status->st_dev || above->inode != status->st_ino) continue;
    diag_warning(walk->diag, (Location){path, 0, 0}, "a link to a folder that it lies in: not followed");
    return true;
  }
  if (parent && parent->depth >= DEPTH_LIMIT) {
    diag_error(walk->diag, (Location){path, 0, 0}, "lies more than %d folders deep", DEPTH_LIMIT);
    return false;
  }
  Folder *folder = arena_new(walk->set->arena, Folder);
  *folder = (Folder){path, parent, status->st_dev, status->st_ino, parent ? parent->depth + 1 : 0, part, walk->pending};
  walk->pending = folder;
  return true;
}

/* Links are followed. Names that begin with a dot are not looked at: systems keep things of their own there. */
static bool add_entry(Walk *walk, const Folder *folder, const struct dirent *entry) {
  if (entry->d_name[0] == '.') return true;
  const bool picture = is_picture_name(entry->d_name);
  if (!picture && entry->d_type != DT_DIR && entry->d_type != DT_LNK && entry->d_type != DT_UNKNOWN) return true;
  const char *path = arena_format(walk->set->arena, "%s/%s", folder->path, entry->d_name);
  if (picture && entry->d_type == DT_REG) return add_item(walk, path, folder->part, NULL);
  struct stat status;
  if (stat(path, &status) != 0) {
    return !picture || add_item(walk, path, folder->part,
                                errno == ENOENT ? "a link that leads nowhere" : "the file's status cannot be read");
  }
  if (S_ISDIR(status.st_mode)) return add_folder(walk, path, &status, folder, folder->part);
  return !picture || add_item(walk, path, folder->part, S_ISREG(status.st_mode) ? NULL : "is not a regular file");
}

static bool read_entries(Walk *walk, const Folder *folder, DIR *stream) {
  for (;;) {
    errno = 0;
    const struct dirent *entry = readdir(stream);
    const int error = entry ? 0 : errno;
    if (error != 0) report_system(walk->diag, folder->path, "read the folder", error);
    if (!entry) return error == 0;
    if (!add_entry(walk, folder, entry)) return false;
  }
}

static bool read_folder(Walk *walk, const Folder *folder) {
  Arena *arena = walk->set->arena;
  DIR *stream = opendir(folder->path);
  if (!stream) {
    report_system(walk->diag, folder->path, "open the folder", errno);
    return false;
  }
  jmp_buf point;
  jmp_buf *previous = arena_on_failure(arena, &point);
  if (setjmp(point)) {
    closedir(stream);
    arena_on_failure(arena, previous);
    arena_fail(arena);
  }
  const bool good = read_entries(walk, folder, stream);
  arena_on_failure(arena, previous);
  closedir(stream);
  return good;
}

/* The first of the names that is a folder in `folder`. */
static const char *find_part(Arena *arena, const char *folder, const char *const *names, size_t count,
                             struct stat *out_status) {
  for (size_t i = 0; i < count; i++) {
    const char *path = arena_format(arena, "%s/%s", folder, names[i]);
    if (stat(path, out_status) == 0 && S_ISDIR(out_status->st_mode)) return path;
  }
  return NULL;
}

/* Begins with the parts for training and validation if the folder has both, else with the folder itself. */
static bool add_roots(Walk *walk, const char *folder) {
  static const char *const train_names[] = {"train", "training"};
  static const char *const valid_names[] = {"valid", "val", "validation", "test", "testing"};
  Arena *arena = walk->set->arena;
  struct stat train, valid, whole;
  const char *train_path = find_part(arena, folder, train_names, 2, &train);
  const char *valid_path = find_part(arena, folder, valid_names, 5, &valid);
  if (train_path && valid_path) {
    return add_folder(walk, train_path, &train, NULL, PART_TRAIN) &&
           add_folder(walk, valid_path, &valid, NULL, PART_VALID);
  }
  if (stat(folder, &whole) != 0) {
    report_system(walk->diag, folder, "open the folder", errno);
    return false;
  }
  if (!S_ISDIR(whole.st_mode)) {
    diag_error(walk->diag, (Location){folder, 0, 0}, "is a file, expected a folder of pictures or of IDX files");
    return false;
  }
  return add_folder(walk, folder, &whole, NULL, PART_ANY);
}

static int compare_paths(const void *a, const void *b) {
  return strcmp(((const DataItem *)a)->path, ((const DataItem *)b)->path);
}

/* Into an order that does not depend on how the file system lists folders. */
static void sort_items(DataSet *set) {
  const void **pointers = arena_array(set->arena, 2 * set->item_count, const void *);
  for (size_t i = 0; i < set->item_count; i++) pointers[i] = &set->items[i];
  sort_pointers(pointers, pointers + set->item_count, set->item_count, compare_paths);
  DataItem *sorted = arena_array(set->arena, set->item_count, DataItem);
  for (size_t i = 0; i < set->item_count; i++) sorted[i] = *(const DataItem *)pointers[i];
  set->items = sorted;
}

/* --- classes --------------------------------------------------------------------------------------- */

static bool label_valid(const char *label, const char *path, Diag *diag) {
  if (label[0] != '\0' && utf8_valid(label, strlen(label))) return true;
  diag_error(diag, (Location){path, 0, 0}, "the name of its class '%s' is %s", label,
             label[0] == '\0' ? "empty" : "not UTF-8");
  return false;
}

/* The last folder of the path, below one of the roots (whose length is `root`). */
static bool label_by_folder(DataItem *item, size_t root, Arena *arena, Diag *diag) {
  const char *end = strrchr(item->path, '/'), *start = end;
  if ((size_t)(end - item->path) <= root) {
    diag_error(diag, (Location){item->path, 0, 0},
               "expected pictures in sub-folders that are named after classes (or a pattern for file names)");
    return false;
  }
  while (start[-1] != '/') start--;
  item->label = arena_string_n(arena, start, (size_t)(end - start));
  return label_valid(item->label, item->path, diag);
}

static bool label_by_pattern(DataItem *item, const regex_t *pattern, const char *text, Arena *arena, Diag *diag) {
  const char *name = strrchr(item->path, '/') + 1;
  regmatch_t groups[2];
  if (regexec(pattern, name, 2, groups, 0) != 0 || groups[1].rm_so < 0) {
    diag_error(diag, (Location){item->path, 0, 0}, "the file's name does not match the pattern '%s'", text);
    return false;
  }
  item->label = arena_string_n(arena, name + groups[1].rm_so, (size_t)(groups[1].rm_eo - groups[1].rm_so));
  return label_valid(item->label, item->path, diag);
}

static void release_pattern(void *pattern) { regfree(pattern); }

/* With one group at least; NULL after reporting. */
static const regex_t *compile_pattern(const char *text, Arena *arena, Diag *diag) {
  const Location nowhere = {NULL, 0, 0};
  if (!text || text[0] == '\0' || strlen(text) > PATTERN_LIMIT) {
    diag_error(diag, nowhere, "expected a pattern of 1 to %d characters for the classes, found %zu", PATTERN_LIMIT,
               text ? strlen(text) : 0);
    return NULL;
  }
  regex_t *pattern = arena_new(arena, regex_t);
  const int code = regcomp(pattern, text, REG_EXTENDED);
  if (code != 0) {
    char reason[128];
    regerror(code, pattern, reason, sizeof reason);
    diag_error(diag, nowhere, "the pattern '%s' is not a POSIX extended regular expression: %s", text, reason);
    return NULL;
  }
  arena_defer(arena, release_pattern, pattern);
  if (pattern->re_nsub < 1) {
    diag_error(diag, nowhere, "the pattern '%s' has no group in parentheses for the class", text);
    return NULL;
  }
  return pattern;
}

static bool label_items(DataSet *set, Diag *diag) {
  const bool by_pattern = set->options.label == DATA_LABEL_PATTERN;
  const regex_t *pattern = by_pattern ? compile_pattern(set->options.pattern, set->arena, diag) : NULL;
  if (by_pattern && !pattern) return false;
  const size_t errors = diag_error_count(diag);
  for (size_t i = 0; i < set->item_count && !diag_full(diag); i++) {
    DataItem *item = &set->items[i];
    if (by_pattern) {
      label_by_pattern(item, pattern, set->options.pattern, set->arena, diag);
    } else {
      size_t root = strlen(set->options.folder);
      if (item->part != PART_ANY) root += 1 + strcspn(item->path + root + 1, "/");
      label_by_folder(item, root, set->arena, diag);
    }
  }
  return diag_error_count(diag) == errors;
}

static int compare_labels(const void *a, const void *b) {
  return strcmp(((const DataItem *)a)->label, ((const DataItem *)b)->label);
}

/* Classes in the order of their names. */
static void number_labels(DataSet *set) {
  const void **sorted = arena_array(set->arena, 2 * set->item_count, const void *);
  for (size_t i = 0; i < set->item_count; i++) sorted[i] = &set->items[i];
  sort_pointers(sorted, sorted + set->item_count, set->item_count, compare_labels);
  set->class_names = arena_array(set->arena, set->item_count, const char *);
  for (size_t i = 0; i < set->item_count; i++) {
    DataItem *item = &set->items[(const DataItem *)sorted[i] - set->items];
    if (i == 0 || compare_labels(sorted[i - 1], sorted[i]) != 0) set->class_names[set->class_count++] = item->label;
    item->class_number = (uint32_t)(set->class_count - 1);
  }
}

/* Regular expressions and messages follow the C locale whatever the program's. */
static bool label_items_neutrally(DataSet *set, Diag *diag) {
  const locale_t neutral = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  if (!neutral) arena_fail(set->arena);
  const locale_t before = uselocale(neutral);
  jmp_buf point;
  jmp_buf *previous = arena_on_failure(set->arena, &point);
  volatile bool good = false, failed = true;
  if (setjmp(point) == 0) {
    good = label_items(set, diag);
    failed = false;
  }
  arena_on_failure(set->arena, previous);
  uselocale(before);
  freelocale(neutral);
  if (failed) arena_fail(set->arena);
  return good;
}

bool data_find_pictures(DataSet *set, Diag *diag) {
  Walk walk = {set, diag, NULL, 0};
  if (!add_roots(&walk, set->options.folder)) return false;
  while (walk.pending) {
    Folder *folder = walk.pending;
    walk.pending = folder->next;
    if (!read_folder(&walk, folder)) return false;
  }
  if (set->item_count == 0) {
    diag_error(diag, (Location){set->options.folder, 0, 0},
               "holds neither PNG or JPEG pictures nor IDX files (train-images-idx3-ubyte …)");
    return false;
  }
  sort_items(set);
  if (!label_items_neutrally(set, diag)) return false;
  number_labels(set);
  return true;
}
