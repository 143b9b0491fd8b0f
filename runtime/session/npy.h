/* NumPy's .npy arrays, format versions 1 to 3.
 * Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
 *
 * Little-endian f2, f4, f8, i1, i2, i4, i8, u1 and b1 are read, in C order or Fortran order (converted to C order);
 * bfloat16 has no .npy form and cannot be written. */
#ifndef KILN_RUNTIME_SESSION_NPY_H
#define KILN_RUNTIME_SESSION_NPY_H

#include "base/diag.h"
#include "tensor.h"

/* Reads one array, which must fill the file exactly. The tensor is named after the path. */
bool npy_read(const char *path, Arena *arena, Diag *diag, Tensor *out_tensor);
/* The same from memory, which is copied; `name` stands for the file in messages. */
bool npy_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag, Tensor *out_tensor);
/* Writes version 1, C order, atomically (base/file.h). */
bool npy_write(const char *path, const Tensor *tensor, Arena *scratch, Diag *diag);

#endif
