/* A file is a head, the key and the object. Nothing is synchronised to the disk: a file that a crash has cut short has
 * the wrong checksum. */
#include "object_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/sort.h"

enum {
  ENTRY_LIMIT = 64 << 20, /* larger objects are not kept */
  NAME_DIGITS = 16,
  STALE_SECONDS = 3600 /* age of a temporary file whose process is gone */
};

static const char entry_ending[] = ".o", temporary_ending[] = ".tmp";

typedef struct EntryHead {
  char magic[8];
  uint64_t checksum; /* of all that follows */
  uint64_t key_size, object_size;
} EntryHead;

static const char entry_magic[8] = {'K', 'I', 'L', 'N', 'O', 'B', 'J', '1'};

struct ObjectCache {
  const char *folder;
  atomic_bool stored;
  atomic_int error; /* errno of the first failure to store; nothing is stored after it */
};

/* FNV-1a, 64 bits. Every step is one-to-one in the state, so that a change of one byte always shows. */
static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size) {
  const unsigned char *bytes = data;
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static const uint64_t hash_start = UINT64_C(0xcbf29ce484222325);

static uint64_t entry_checksum(const EntryHead *head, const void *key, const void *object) {
  uint64_t hash = hash_bytes(hash_start, &head->key_size, sizeof head->key_size + sizeof head->object_size);
  hash = hash_bytes(hash, key, (size_t)head->key_size);
  return hash_bytes(hash, object, (size_t)head->object_size);
}

ObjectCache *object_cache_create(const char *folder, Arena *arena) {
  ObjectCache *cache = arena_new(arena, ObjectCache);
  cache->folder = arena_string(arena, folder);
  return cache;
}

static const char *entry_path(const ObjectCache *cache, const Code *key, Arena *arena) {
  uint64_t hash = hash_bytes(hash_start, key->data, key->size);
  return arena_format(arena, "%s/%0*llx%s", cache->folder, NAME_DIGITS, (unsigned long long)hash, entry_ending);
}

bool object_cache_load(ObjectCache *cache, const Code *key, Arena *scratch, Arena *arena, Code *out_object) {
  void *data;
  size_t size;
  /* that a file is not there is no message for anyone */
  Diag *ignored = diag_create(scratch);
  if (!file_read(entry_path(cache, key, scratch), ENTRY_LIMIT, scratch, ignored, &data, &size)) return false;
  const EntryHead *head = data;
  if (size < sizeof *head || memcmp(head->magic, entry_magic, sizeof entry_magic) != 0) return false;
  size_t rest = size - sizeof *head;
  if (head->key_size != key->size || key->size > rest || head->object_size != rest - key->size) return false;
  const char *stored_key = (const char *)data + sizeof *head, *object = stored_key + key->size;
  if (memcmp(stored_key, key->data, key->size) != 0) return false;
  if (entry_checksum(head, stored_key, object) != head->checksum) return false;
  *out_object = (Code){arena_copy(arena, object, (size_t)head->object_size), (size_t)head->object_size};
  return true;
}

/* --- storing ----------------------------------------------------------------------------------------- */

static void note_failure(ObjectCache *cache, int error) {
  int none = 0;
  atomic_compare_exchange_strong(&cache->error, &none, error);
}

/* The folder and those above it. */
static bool make_folder(const char *folder, Arena *scratch) {
  char *path = arena_string(scratch, folder);
  for (char *at = path + 1;; at++) {
    if (*at != '/' && *at != '\0') continue;
    char end = *at;
    *at = '\0';
    if (mkdir(path, 0700) != 0 && errno != EEXIST) return false;
    *at = end;
    if (end == '\0') return true;
  }
}

static bool write_all(int file, const void *data, size_t size) {
  for (const char *bytes = data; size > 0;) {
    ssize_t step = write(file, bytes, size);
    if (step < 0 && errno == EINTR) continue;
    if (step < 0) return false;
    bytes += step;
    size -= (size_t)step;
  }
  return true;
}

void object_cache_store(ObjectCache *cache, const Code *key, const Code *object, Arena *scratch) {
  static atomic_uint number;
  if (atomic_load(&cache->error) != 0 || key->size + object->size > ENTRY_LIMIT - sizeof(EntryHead)) return;
  EntryHead head = {.key_size = key->size, .object_size = object->size};
  memcpy(head.magic, entry_magic, sizeof entry_magic);
  head.checksum = entry_checksum(&head, key->data, object->data);
  const char *path = entry_path(cache, key, scratch);
  const char *temporary =
      arena_format(scratch, "%s.%ld.%u%s", path, (long)getpid(), atomic_fetch_add(&number, 1), temporary_ending);
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  int file = open(temporary, flags, 0600);
  if (file < 0 && errno == ENOENT && make_folder(cache->folder, scratch)) file = open(temporary, flags, 0600);
  if (file < 0) {
    note_failure(cache, errno);
    return;
  }
  bool written = write_all(file, &head, sizeof head) && write_all(file, key->data, key->size) &&
                 write_all(file, object->data, object->size);
  int error = errno;
  if (close(file) != 0 && written) written = false, error = errno;
  if (written && rename(temporary, path) != 0) written = false, error = errno;
  if (written) {
    atomic_store(&cache->stored, true);
    return;
  }
  unlink(temporary);
  note_failure(cache, error);
}

/* --- keeping it small -------------------------------------------------------------------------------- */

typedef struct Entry {
  const char *name;
  int64_t bytes;
  struct timespec changed;
} Entry;

typedef struct EntryList {
  Entry *items;
  size_t count, capacity;
  int64_t bytes;
} EntryList;

static int compare_age(const void *a, const void *b) {
  const Entry *x = a, *y = b;
  if (x->changed.tv_sec != y->changed.tv_sec) return x->changed.tv_sec < y->changed.tv_sec ? -1 : 1;
  if (x->changed.tv_nsec != y->changed.tv_nsec) return x->changed.tv_nsec < y->changed.tv_nsec ? -1 : 1;
  return strcmp(x->name, y->name);
}

static bool name_ends(const char *name, const char *ending) {
  size_t length = strlen(name), tail = strlen(ending);
  return length > tail && strcmp(name + length - tail, ending) == 0;
}

/* "0123456789abcdef.o": files that others have put into the folder are left alone. */
static bool is_entry(const char *name) {
  return strspn(name, "0123456789abcdef") == NAME_DIGITS && strcmp(name + NAME_DIGITS, entry_ending) == 0;
}

static bool is_temporary(const char *name) {
  size_t stem = NAME_DIGITS + strlen(entry_ending);
  return strspn(name, "0123456789abcdef") == NAME_DIGITS &&
         strncmp(name + NAME_DIGITS, entry_ending, strlen(entry_ending)) == 0 && name[stem] == '.' &&
         name_ends(name, temporary_ending);
}

static void close_folder(void *folder) { closedir(folder); }

static void list_entries(DIR *folder, EntryList *list, Arena *scratch) {
  const time_t now = time(NULL);
  for (const struct dirent *item; (item = readdir(folder)) != NULL;) {
    struct stat status;
    bool temporary = is_temporary(item->d_name);
    if (!temporary && !is_entry(item->d_name)) continue;
    if (fstatat(dirfd(folder), item->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode)) continue;
    if (temporary) {
      if (now - status.st_mtime > STALE_SECONDS) unlinkat(dirfd(folder), item->d_name, 0);
      continue;
    }
    if (list->count == list->capacity) {
      size_t capacity = list->capacity > 0 ? 2 * list->capacity : 256;
      Entry *items = arena_array(scratch, capacity, Entry);
      if (list->count > 0) memcpy(items, list->items, list->count * sizeof *items);
      list->items = items;
      list->capacity = capacity;
    }
    list->items[list->count++] = (Entry){arena_string(scratch, item->d_name), status.st_size, status.st_mtim};
    list->bytes += status.st_size;
  }
}

/* A command may compile several programs. */
static void warn_once(Diag *diag, const char *text) {
  for (size_t i = 0; i < diag_message_count(diag); i++) {
    if (strcmp(diag_message(diag, i)->text, text) == 0) return;
  }
  diag_warning(diag, (Location){0}, "%s", text);
}

void object_cache_finish(ObjectCache *cache, int64_t limit, Arena *scratch, Diag *diag) {
  int error = atomic_load(&cache->error);
  if (error != 0)
    warn_once(diag, arena_format(scratch, "compiled kernels cannot be kept in %s: %s", cache->folder, strerror(error)));
  if (!atomic_load(&cache->stored)) return;
  DIR *folder = opendir(cache->folder);
  if (folder == NULL) return;
  arena_defer(scratch, close_folder, folder);
  EntryList list = {NULL, 0, 0, 0};
  list_entries(folder, &list, scratch);
  if (list.bytes <= limit) return;
  const void **oldest = arena_array(scratch, 2 * list.count, const void *);
  for (size_t i = 0; i < list.count; i++) oldest[i] = &list.items[i];
  sort_pointers(oldest, oldest + list.count, list.count, compare_age);
  for (size_t i = 0; i < list.count && list.bytes > limit; i++) {
    const Entry *entry = oldest[i];
    if (unlinkat(dirfd(folder), entry->name, 0) == 0 || errno == ENOENT) list.bytes -= entry->bytes;
  }
}
