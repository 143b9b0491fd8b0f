#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Linux moves at most 0x7ffff000 bytes in one call. */
enum { TRANSFER_LIMIT = 1 << 30 };

static void report(Diag *diag, const char *path, const char *action, int error) {
  const locale_t neutral = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  diag_error(diag, (Location){path, 0, 0}, "cannot %s: %s", action,
             neutral ? strerror_l(error, neutral) : "system error");
  if (neutral) freelocale(neutral);
}

/* --- reading --------------------------------------------------------------------------------------- */

/* As arena_alloc_aligned, but closes `file` when memory runs out. */
static void *alloc_or_close(Arena *arena, size_t size, int file) {
  jmp_buf point;
  jmp_buf *previous = arena_on_failure(arena, &point);
  if (setjmp(point)) {
    close(file);
    arena_on_failure(arena, previous);
    arena_fail(arena);
  }
  void *memory = arena_alloc_aligned(arena, size, 64);
  arena_on_failure(arena, previous);
  return memory;
}

/* Reads up to `size` bytes; fewer only at the end of the file. -1 on an error. */
static ssize_t read_fully(int file, unsigned char *data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const size_t left = size - done;
    const ssize_t count = read(file, data + done, left < TRANSFER_LIMIT ? left : TRANSFER_LIMIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return -1;
    if (count == 0) break;
    done += (size_t)count;
  }
  return (ssize_t)done;
}

bool file_read(const char *path, size_t limit, Arena *arena, Diag *diag, void **out_data, size_t *out_size) {
  const Location location = {path, 0, 0};
  /* Not blocking: opening a FIFO that nobody writes to must fail below, not hang here. */
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file < 0) {
    report(diag, path, "open the file", errno);
    return false;
  }
  struct stat status;
  if (fstat(file, &status) != 0) {
    const int error = errno;
    close(file);
    report(diag, path, "read the file's status", error);
    return false;
  }
  if (!S_ISREG(status.st_mode)) {
    close(file);
    diag_error(diag, location, S_ISDIR(status.st_mode) ? "is a folder, expected a file" : "is not a regular file");
    return false;
  }
  if (status.st_size < 0 || (uint64_t)status.st_size > limit || (uint64_t)status.st_size > SIZE_MAX - 64) {
    close(file);
    diag_error(diag, location, "the file has %lld bytes, more than the limit of %zu", (long long)status.st_size, limit);
    return false;
  }
  const size_t size = (size_t)status.st_size;
  unsigned char *data = alloc_or_close(arena, size + 1, file);
  const ssize_t count = read_fully(file, data, size + 1);
  const int error = errno;
  close(file);
  if (count < 0) {
    report(diag, path, "read the file", error);
    return false;
  }
  if ((size_t)count != size) {
    diag_error(diag, location, "the file %s while it was being read", (size_t)count < size ? "shrank" : "grew");
    return false;
  }
  *out_data = data;
  *out_size = size;
  return true;
}

/* --- writing --------------------------------------------------------------------------------------- */

typedef struct FileNames {
  char target[PATH_MAX];
  char folder[PATH_MAX];
  char temporary[PATH_MAX + 64];
} FileNames;

/* The step that failed and its errno; NULL when none did. Nothing is reported before everything is cleaned up,
 * because reporting may run out of memory and jump away. */
typedef struct Failure {
  const char *action;
  int error;
} Failure;

static Failure failure_now(const char *action) { return (Failure){action, errno}; }

static Failure find_target(const char *path, FileNames *names, mode_t *out_mode) {
  struct stat status;
  *out_mode = 0;
  if (strlen(path) >= PATH_MAX) return (Failure){"write the file", ENAMETOOLONG};
  strcpy(names->target, path);
  if (lstat(path, &status) == 0) {
    /* A link stays a link: the file it leads to is replaced. */
    if (S_ISLNK(status.st_mode) && (!realpath(path, names->target) || stat(names->target, &status) != 0)) {
      return failure_now("follow the link");
    }
    if (S_ISDIR(status.st_mode)) return (Failure){"replace it", EISDIR};
    if (!S_ISREG(status.st_mode)) return (Failure){"replace it: not a regular file", EINVAL};
    *out_mode = status.st_mode & 0777;
  } else if (errno != ENOENT) {
    return failure_now("write the file");
  }
  const char *slash = strrchr(names->target, '/');
  if (slash && slash[1] == '\0') return (Failure){"write the file", EISDIR};
  if (names->target[0] == '\0') return (Failure){"write the file", ENOENT};
  const size_t length = !slash ? 0 : slash == names->target ? 1 : (size_t)(slash - names->target);
  memcpy(names->folder, slash ? names->target : ".", length ? length : 1);
  names->folder[length ? length : 1] = '\0';
  return (Failure){NULL, 0};
}

static Failure write_pieces(int file, const FilePiece *pieces, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const unsigned char *at = pieces[i].data;
    size_t left = pieces[i].size;
    while (left) {
      const ssize_t written = write(file, at, left < TRANSFER_LIMIT ? left : TRANSFER_LIMIT);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return failure_now("write the file");
      if (written == 0) return (Failure){"write the file", EIO}; /* would loop for ever */
      at += written;
      left -= (size_t)written;
    }
  }
  return (Failure){NULL, 0};
}

/* Opens a new file in the folder. Its name is short, as the target's may have the full 255 bytes. */
static int open_temporary(FileNames *names) {
  static atomic_uint next_number;
  for (int attempt = 0; attempt < 100; attempt++) {
    const unsigned number = atomic_fetch_add(&next_number, 1);
    snprintf(names->temporary, sizeof names->temporary, "%s/.kiln-%ld-%u.tmp", names->folder, (long)getpid(), number);
    const int file = open(names->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0 || errno != EEXIST) return file;
  }
  return -1;
}

static Failure write_temporary(int file, mode_t mode, const FilePiece *pieces, size_t count) {
  Failure failure = write_pieces(file, pieces, count);
  if (!failure.action && mode && fchmod(file, mode) != 0) failure = failure_now("set the file's mode");
  if (!failure.action && fsync(file) != 0) failure = failure_now("flush the file to disk");
  if (close(file) != 0 && !failure.action) failure = failure_now("close the file");
  return failure;
}

static Failure replace_target(FileNames *names, mode_t mode, const FilePiece *pieces, size_t count) {
  const int folder = open(names->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return failure_now("open the folder");
  Failure failure = {NULL, 0};
  const int file = open_temporary(names);
  if (file < 0) {
    failure = failure_now("create a file in the folder");
  } else {
    failure = write_temporary(file, mode, pieces, count);
    if (!failure.action && rename(names->temporary, names->target) != 0) failure = failure_now("rename the file");
    if (failure.action) unlink(names->temporary);
  }
  /* Some file systems cannot flush a folder (EINVAL): then the rename is as durable as it gets. */
  if (!failure.action && fsync(folder) != 0 && errno != EINVAL) {
    failure = failure_now("flush the folder to disk (the new file is in place)");
  }
  close(folder);
  return failure;
}

bool file_write(const char *path, const FilePiece *pieces, size_t count, Diag *diag) {
  FileNames names;
  mode_t mode;
  Failure failure = find_target(path, &names, &mode);
  if (!failure.action) failure = replace_target(&names, mode, pieces, count);
  if (failure.action) report(diag, path, failure.action, failure.error);
  return !failure.action;
}
