/* The safetensors container: eight bytes of little-endian header length, a JSON header, raw tensors.
 * Source: https://github.com/huggingface/safetensors (format section of its README). */
#ifndef KILN_FRONTEND_SAFETENSORS_H
#define KILN_FRONTEND_SAFETENSORS_H

#include "base/diag.h"
#include "tensor.h"

/* Reads every tensor of a file. Data points into one buffer in `arena` (copied to 64-byte alignment where the
 * file's own offset is not aligned to the element size). Everything the format forbids is refused with the
 * tensor's name and both numbers. Order of the list: by offset in the file. */
bool safetensors_read(const char *path, Arena *arena, Diag *diag, TensorList *out_tensors);
/* The same from memory; `name` stands for the file in messages. `bytes` must stay valid. */
bool safetensors_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag,
                       TensorList *out_tensors);
/* Writes in list order, atomically (base/file.h): same tensors, same bytes. Header padded with spaces so that
 * data starts at a multiple of 64. */
bool safetensors_write(const char *path, const TensorList *tensors, Arena *scratch, Diag *diag);

#endif
