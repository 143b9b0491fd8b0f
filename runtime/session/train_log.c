#include "train_log.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool report(const TrainLog *log, Diag *diag, const char *action) {
  diag_error(diag, (Location){log->path, 0, 0}, "cannot %s: %s", action, strerror(errno));
  return false;
}

static void close_log(void *log) { close(((TrainLog *)log)->file); }

bool train_log_open(const char *path, int64_t keep, Arena *arena, Diag *diag, TrainLog **out_log) {
  TrainLog *log = *out_log = arena_new(arena, TrainLog);
  if (path == NULL) return true;
  log->path = arena_string(arena, path);
  log->file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND, 0666);
  if (log->file < 0) return report(log, diag, "open the file");
  arena_defer(arena, close_log, log);
  struct stat status;
  if (fstat(log->file, &status) != 0) return report(log, diag, "read the file's status");
  if (!S_ISREG(status.st_mode)) return true; /* a pipe or terminal takes what comes */
  if (status.st_size < keep)
    diag_warning(diag, (Location){path, 0, 0}, "holds %lld bytes of the %lld before the checkpoint: lines are missing",
                 (long long)status.st_size, (long long)keep);
  log->size = status.st_size < keep ? status.st_size : keep;
  return ftruncate(log->file, log->size) == 0 || report(log, diag, "shorten the file");
}

bool train_log_add(TrainLog *log, const char *line, size_t size, Diag *diag) {
  while (log->path != NULL && size > 0) {
    const ssize_t written = write(log->file, line, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return report(log, diag, "write the file");
    line += written;
    size -= (size_t)written;
    log->size += written;
  }
  return true;
}

bool train_log_flush(TrainLog *log, Diag *diag) {
  if (log->path == NULL || fsync(log->file) == 0) return true;
  return errno == EINVAL || errno == EROFS || report(log, diag, "flush the file to disk"); /* EINVAL: a pipe */
}

void json_number(Text *text, double value) {
  if (isfinite(value))
    text_add_double(text, value);
  else
    text_add(text, "null");
}
