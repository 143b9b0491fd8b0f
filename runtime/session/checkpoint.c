#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

/* The file: this head, then per part its own head and its bytes, padded with zeros to a multiple of eight.
 * Little-endian. `checksum` covers all of it, and counts as 0 there. */
typedef struct FileHead {
  char magic[8];
  uint64_t bytes, checksum;
  int64_t step;
  uint32_t parts, reserved;
} FileHead;

typedef struct PartHead {
  char name[CHECKPOINT_NAME_SIZE];
  uint64_t bytes;
} PartHead;

static const char magic[] = "KILNCKP1";
static const char prefix[] = "checkpoint-", ending[] = ".kiln";

/* --- checksum ------------------------------------------------------------------------------------------- */

/* Every step maps the 64-bit state one to one, so that a change within one word always changes the result; the shift
 * carries high bits down, where the multiplication spreads them again. `size` is a multiple of eight. */
static uint64_t checksum_add(uint64_t hash, const void *data, size_t size) {
  const unsigned char *bytes = data;
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    uint64_t word;
    memcpy(&word, bytes + i, sizeof word);
    hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    hash ^= hash >> 32;
  }
  return hash;
}

/* --- folder --------------------------------------------------------------------------------------------- */

static bool report(Diag *diag, const char *path, const char *action) {
  diag_error(diag, (Location){path, 0, 0}, "cannot %s: %s", action, strerror(errno));
  return false;
}

static void close_lock(void *descriptor) { close(*(int *)descriptor); }

/* The step in a checkpoint's file name; -1: it is something else. */
static int64_t step_of_name(const char *name) {
  if (strncmp(name, prefix, sizeof prefix - 1) != 0) return -1;
  char *end;
  errno = 0;
  const long long step = strtoll(name + sizeof prefix - 1, &end, 10);
  return errno == 0 && step >= 0 && strcmp(end, ending) == 0 ? step : -1;
}

static const char *path_of_step(const CheckpointFolder *folder, int64_t step, Arena *arena) {
  return arena_format(arena, "%s/%s%012lld%s", folder->path, prefix, (long long)step, ending);
}

/* What file_write leaves behind when the process dies under it. */
static bool is_temporary(const char *name) {
  const size_t length = strlen(name);
  return strncmp(name, ".kiln-", 6) == 0 && length > 4 && strcmp(name + length - 4, ".tmp") == 0;
}

static int newest_first(const void *a, const void *b) {
  const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* The steps of all checkpoints, newest first. Removes temporaries when asked to. */
static bool list_steps(const char *path, bool clean, Arena *arena, Diag *diag, int64_t **out_steps, size_t *out_count) {
  DIR *stream = opendir(path);
  if (stream == NULL) return report(diag, path, "open the folder");
  enum { LIMIT = 1024 };
  int64_t found[LIMIT];
  size_t count = 0;
  bool crowded = false;
  for (const struct dirent *entry; (entry = readdir(stream)) != NULL;) {
    const int64_t step = step_of_name(entry->d_name);
    if (step >= 0 && count < LIMIT)
      found[count++] = step;
    else if (step >= 0)
      crowded = true;
    else if (clean && is_temporary(entry->d_name))
      unlinkat(dirfd(stream), entry->d_name, 0);
  }
  closedir(stream);
  if (crowded) {
    diag_error(diag, (Location){path, 0, 0}, "holds more than %d checkpoints; at most three are expected", LIMIT);
    return false;
  }
  *out_steps = arena_copy(arena, found, count * sizeof *found);
  *out_count = count;
  qsort(*out_steps, count, sizeof **out_steps, newest_first);
  return true;
}

bool checkpoint_folder_open(const char *path, Arena *arena, Diag *diag, CheckpointFolder *out_folder) {
  if (mkdir(path, 0777) != 0 && errno != EEXIST) return report(diag, path, "make the folder");
  int *lock = arena_new(arena, int);
  *lock = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (*lock < 0) return report(diag, path, "open the folder");
  arena_defer(arena, close_lock, lock);
  if (flock(*lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return report(diag, path, "lock the folder");
    diag_error(diag, (Location){path, 0, 0}, "is in use by another run");
    return false;
  }
  int64_t *steps;
  size_t count;
  *out_folder = (CheckpointFolder){arena_string(arena, path), -1, -1};
  return list_steps(path, true, arena, diag, &steps, &count);
}

bool checkpoint_count(const CheckpointFolder *folder, Arena *scratch, Diag *diag, size_t *out_count) {
  int64_t *steps;
  return list_steps(folder->path, false, scratch, diag, &steps, out_count);
}

/* --- reading -------------------------------------------------------------------------------------------- */

static bool broken(Diag *diag, const char *path, const char *what) {
  diag_error(diag, (Location){path, 0, 0}, "damaged checkpoint: %s", what);
  return false;
}

static size_t padded(uint64_t bytes) { return (size_t)(bytes + 7) & ~(size_t)7; }

static bool parse_parts(const char *path, const FileHead *head, const unsigned char *at, size_t left, Arena *arena,
                        Diag *diag, Checkpoint *out) {
  if (head->parts > CHECKPOINT_PARTS) return broken(diag, path, "too many parts");
  for (uint32_t i = 0; i < head->parts; i++) {
    PartHead part;
    if (left < sizeof part) return broken(diag, path, "a part lies outside of the file");
    memcpy(&part, at, sizeof part);
    at += sizeof part;
    left -= sizeof part;
    if (part.bytes > left || padded(part.bytes) > left || memchr(part.name, 0, sizeof part.name) == NULL)
      return broken(diag, path, "a part lies outside of the file");
    out->parts[out->count++] = (CheckpointPart){arena_string(arena, part.name), at, (size_t)part.bytes};
    at += padded(part.bytes);
    left -= padded(part.bytes);
  }
  return left == 0 || broken(diag, path, "bytes follow the last part");
}

bool checkpoint_read_file(const char *path, Arena *arena, Diag *diag, Checkpoint *out_checkpoint) {
  void *data;
  size_t size;
  FileHead head;
  if (!file_read(path, (size_t)1 << 40, arena, diag, &data, &size)) return false;
  if (size < sizeof head || memcmp(data, magic, sizeof head.magic) != 0)
    return broken(diag, path, "it does not begin as one of this version does (KILNCKP1)");
  memcpy(&head, data, sizeof head);
  if (head.bytes != size || size % 8 != 0) {
    diag_error(diag, (Location){path, 0, 0}, "damaged checkpoint: expected %llu bytes, found %zu",
               (unsigned long long)head.bytes, size);
    return false;
  }
  const uint64_t expected = head.checksum;
  const unsigned char *body = (const unsigned char *)data + sizeof head;
  head.checksum = 0;
  if (checksum_add(checksum_add(0, &head, sizeof head), body, size - sizeof head) != expected)
    return broken(diag, path, "the checksum does not agree");
  *out_checkpoint = (Checkpoint){.path = arena_string(arena, path), .step = head.step};
  return parse_parts(path, &head, body, size - sizeof head, arena, diag, out_checkpoint);
}

bool checkpoint_read(CheckpointFolder *folder, Arena *arena, Diag *diag, Checkpoint *out_checkpoint, bool *out_found) {
  int64_t *steps;
  size_t count;
  *out_found = false;
  if (!list_steps(folder->path, false, arena, diag, &steps, &count)) return false;
  for (size_t i = 0; i < count; i++) {
    Diag *attempt = diag_create(arena);
    if (checkpoint_read_file(path_of_step(folder, steps[i], arena), arena, attempt, out_checkpoint)) {
      folder->newest = steps[i];
      *out_found = true;
      return true;
    }
    for (size_t k = 0; k < diag_message_count(attempt); k++) {
      const DiagMessage *message = diag_message(attempt, k);
      diag_warning(diag, message->location, "%s; it is left out", message->text);
    }
  }
  if (count == 0) return true;
  diag_error(diag, (Location){folder->path, 0, 0}, "none of the %zu checkpoints can be used", count);
  return false;
}

const CheckpointPart *checkpoint_part(const Checkpoint *checkpoint, const char *name, size_t size) {
  for (size_t i = 0; i < checkpoint->count; i++)
    if (strcmp(checkpoint->parts[i].name, name) == 0)
      return size == SIZE_MAX || checkpoint->parts[i].size == size ? &checkpoint->parts[i] : NULL;
  return NULL;
}

/* --- writing -------------------------------------------------------------------------------------------- */

/* Removes all but the newest two usable ones: what is newer is from a run that went further and was damaged. */
static void remove_others(const CheckpointFolder *folder, Arena *scratch) {
  int64_t *steps;
  size_t count;
  Diag *ignored = diag_create(scratch); /* a checkpoint too many does no harm */
  if (!list_steps(folder->path, false, scratch, ignored, &steps, &count)) return;
  for (size_t i = 0; i < count; i++)
    if (steps[i] != folder->newest && steps[i] != folder->before) unlink(path_of_step(folder, steps[i], scratch));
}

bool checkpoint_write(CheckpointFolder *folder, const Checkpoint *checkpoint, Arena *scratch, Diag *diag) {
  static const unsigned char zeros[8];
  FilePiece *pieces = arena_array(scratch, 3 * checkpoint->count + 1, FilePiece);
  PartHead *heads = arena_array(scratch, checkpoint->count + 1, PartHead);
  FileHead head = {.bytes = sizeof head, .step = checkpoint->step, .parts = (uint32_t)checkpoint->count};
  memcpy(head.magic, magic, sizeof head.magic);
  size_t count = 0;
  pieces[count++] = (FilePiece){&head, sizeof head};
  for (size_t i = 0; i < checkpoint->count; i++) {
    const CheckpointPart *part = &checkpoint->parts[i];
    const size_t whole = part->size & ~(size_t)7, rest = part->size - whole;
    unsigned char *tail = arena_copy(scratch, zeros, sizeof zeros);
    if (rest > 0) memcpy(tail, (const unsigned char *)part->data + whole, rest);
    snprintf(heads[i].name, sizeof heads[i].name, "%s", part->name);
    heads[i].bytes = part->size;
    const FilePiece all[] = {{&heads[i], sizeof heads[i]}, {part->data, whole}, {tail, rest > 0 ? sizeof zeros : 0}};
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) {
      head.bytes += all[k].size;
      if (all[k].size > 0) pieces[count++] = all[k];
    }
  }
  uint64_t checksum = 0;
  for (size_t i = 0; i < count; i++) checksum = checksum_add(checksum, pieces[i].data, pieces[i].size);
  head.checksum = checksum;
  if (!file_write(path_of_step(folder, checkpoint->step, scratch), pieces, count, diag)) return false;
  if (checkpoint->step != folder->newest) folder->before = folder->newest;
  folder->newest = checkpoint->step;
  remove_others(folder, scratch);
  return true;
}
