/* IDX arrays of bytes, the format of MNIST's files, plain or compressed with gzip (found by content).
 * Source: http://yann.lecun.com/exdb/mnist/ (section "File formats"): two zero bytes, the element type, the rank, the
 * dimensions as big-endian 32-bit integers, then the elements in row-major order. Only type 0x08, unsigned bytes, is
 * read. */
#ifndef KILN_RUNTIME_SESSION_DATA_IDX_H
#define KILN_RUNTIME_SESSION_DATA_IDX_H

#include "base/diag.h"

enum { IDX_MAX_RANK = 4 };

typedef struct IdxArray {
  int32_t rank; /* from 1 to IDX_MAX_RANK */
  int64_t dims[IDX_MAX_RANK];
  int64_t count; /* their product */
  const uint8_t *values;
} IdxArray;

/* Reads an array that must fill the file exactly. Memory is taken only after the header has been found to agree with
 * the file's size. */
bool idx_read(const char *path, Arena *arena, Diag *diag, IdxArray *out_array);
/* The same from memory; `name` stands for the file in messages. Values of a plain file are not copied. */
bool idx_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag, IdxArray *out_array);

#endif
