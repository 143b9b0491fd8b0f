/* Tensors outside a graph: named, dense, row-major arrays as they come from and go to files. */
#ifndef KILN_IR_TENSOR_H
#define KILN_IR_TENSOR_H

#include "types.h"

/* `data` is row-major, aligned to at least 8. Shapes here have no symbolic dimension; a dimension may be 0. */
typedef struct Tensor {
  const char *name;
  DataType dtype;
  Shape shape;
  void *data;
} Tensor;

/* An ordered list; names are unique. Owned by an arena. */
typedef struct TensorList {
  Tensor *items;
  size_t count;
} TensorList;

/* The tensor of that name, or NULL. */
const Tensor *tensor_find(const TensorList *list, const char *name);
int64_t tensor_elements(const Tensor *tensor);
int64_t tensor_bytes(const Tensor *tensor);
/* Element `index` in row-major order converted to double, and back: floats round to nearest even, integers too and
 * saturate (NaN gives 0), booleans become 0 or 1. A double holds I64 values exactly up to 2^53. */
double tensor_get(const Tensor *tensor, int64_t index);
void tensor_set(Tensor *tensor, int64_t index, double value);
/* IEEE binary16 and bfloat16 bit patterns; from double with one rounding to nearest even. */
double half_to_double(uint16_t bits);
uint16_t half_from_double(double value);
double bfloat_to_double(uint16_t bits);
uint16_t bfloat_from_double(double value);
/* A new zeroed tensor; NULL data never happens (see arena.h). */
Tensor tensor_create(Arena *arena, const char *name, DataType dtype, Shape shape);

#endif
