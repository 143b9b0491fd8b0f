/* Whole files in and out. Files are read with read(), never mapped: a file that shrinks under a mapping is
 * a fatal signal, a short read is an error message. */
#ifndef KILN_IR_BASE_FILE_H
#define KILN_IR_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "diag.h"

/* Reads a whole regular file into memory aligned to 64, followed by one zero byte that is not counted.
 * Files larger than `limit` bytes are refused. On failure reports to `diag` at the file's name. */
bool file_read(const char *path, size_t limit, Arena *arena, Diag *diag, void **out_data, size_t *out_size);

/* One contiguous piece of a file to be written. */
typedef struct FilePiece {
  const void *data;
  size_t size;
} FilePiece;

/* Replaces `path` in one step: a temporary file beside it, fsync, rename, fsync of the folder. On failure
 * the old file is untouched and the temporary one is gone; only when the folder's fsync fails is the new file already
 * in place, as the message says. A link is followed, the file's mode kept; what is not a regular file is refused. */
bool file_write(const char *path, const FilePiece *pieces, size_t count, Diag *diag);

#endif
