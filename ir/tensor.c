#include "tensor.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"

const Tensor *tensor_find(const TensorList *list, const char *name) {
  for (size_t i = 0; i < list->count; i++) {
    if (strcmp(list->items[i].name, name) == 0) return &list->items[i];
  }
  return NULL;
}

int64_t tensor_elements(const Tensor *tensor) { return shape_elements_per_image(&tensor->shape); }
int64_t tensor_bytes(const Tensor *tensor) { return tensor_elements(tensor) * data_type_bytes(tensor->dtype); }

/* --- small floats ---------------------------------------------------------------------------------- */

/* Bits of a small IEEE format: a sign, `exponent_bits`, `fraction_bits`. */
typedef struct SmallFloat {
  int exponent_bits, fraction_bits;
} SmallFloat;

static const SmallFloat half_format = {5, 10}, bfloat_format = {8, 7};

static double small_to_double(SmallFloat format, uint16_t bits) {
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int exponent = (bits >> format.fraction_bits) & ((1 << format.exponent_bits) - 1);
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  double magnitude;
  if (exponent == (1 << format.exponent_bits) - 1) {
    magnitude = fraction ? (double)NAN : HUGE_VAL;
  } else if (exponent == 0) {
    magnitude = ldexp(fraction, 1 - bias - format.fraction_bits);
  } else {
    magnitude = ldexp(fraction | 1 << format.fraction_bits, exponent - bias - format.fraction_bits);
  }
  return copysign(magnitude, bits & 0x8000 ? -1.0 : 1.0);
}

static uint16_t small_from_double(SmallFloat format, double value) {
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int infinity = ((1 << format.exponent_bits) - 1) << format.fraction_bits;
  const int sign = signbit(value) ? 0x8000 : 0;
  if (isnan(value)) return (uint16_t)(sign | infinity | 1 << (format.fraction_bits - 1));
  if (value == 0) return (uint16_t)sign;
  int exponent;
  frexp(value, &exponent);
  exponent--; /* now 2^exponent ≤ |value| < 2^(exponent+1), for infinity anything */
  if (isinf(value) || exponent > bias) return (uint16_t)(sign | infinity);
  if (exponent < 1 - bias) exponent = 1 - bias; /* subnormal: fewer bits, same quantum */
  /* Scaling is exact, so this rounds once. The leading bit adds one to the exponent field, as does a carry. */
  const int units = (int)rint(ldexp(fabs(value), format.fraction_bits - exponent));
  const int bits = ((exponent + bias - 1) << format.fraction_bits) + units;
  return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

double half_to_double(uint16_t bits) { return small_to_double(half_format, bits); }
uint16_t half_from_double(double value) { return small_from_double(half_format, value); }
double bfloat_to_double(uint16_t bits) { return small_to_double(bfloat_format, bits); }
uint16_t bfloat_from_double(double value) { return small_from_double(bfloat_format, value); }

/* --- elements -------------------------------------------------------------------------------------- */

double tensor_get(const Tensor *tensor, int64_t index) {
  const void *data = tensor->data;
  switch (tensor->dtype) {
    case DTYPE_F32:
      return (double)((const float *)data)[index];
    case DTYPE_F64:
      return ((const double *)data)[index];
    case DTYPE_F16:
      return half_to_double(((const uint16_t *)data)[index]);
    case DTYPE_BF16:
      return bfloat_to_double(((const uint16_t *)data)[index]);
    case DTYPE_I64:
      return (double)((const int64_t *)data)[index];
    case DTYPE_I32:
      return ((const int32_t *)data)[index];
    case DTYPE_I16:
      return ((const int16_t *)data)[index];
    case DTYPE_I8:
      return ((const int8_t *)data)[index];
    case DTYPE_U8:
      return ((const uint8_t *)data)[index];
    case DTYPE_BOOL:
      return ((const uint8_t *)data)[index] != 0;
    case DTYPE_COUNT:
      break;
  }
  return 0;
}

static int64_t round_to_integer(double value, int64_t minimum, int64_t maximum) {
  if (isnan(value)) return 0;
  const double rounded = rint(value);
  /* The bounds of I64 round to ±2^63 as doubles: compare so that the conversion below is defined. */
  if (rounded <= (double)minimum) return minimum;
  if (rounded >= (double)maximum) return maximum;
  return (int64_t)rounded;
}

void tensor_set(Tensor *tensor, int64_t index, double value) {
  void *data = tensor->data;
  switch (tensor->dtype) {
    case DTYPE_F32:
      ((float *)data)[index] = (float)value;
      break;
    case DTYPE_F64:
      ((double *)data)[index] = value;
      break;
    case DTYPE_F16:
      ((uint16_t *)data)[index] = half_from_double(value);
      break;
    case DTYPE_BF16:
      ((uint16_t *)data)[index] = bfloat_from_double(value);
      break;
    case DTYPE_I64:
      ((int64_t *)data)[index] = round_to_integer(value, INT64_MIN, INT64_MAX);
      break;
    case DTYPE_I32:
      ((int32_t *)data)[index] = (int32_t)round_to_integer(value, INT32_MIN, INT32_MAX);
      break;
    case DTYPE_I16:
      ((int16_t *)data)[index] = (int16_t)round_to_integer(value, INT16_MIN, INT16_MAX);
      break;
    case DTYPE_I8:
      ((int8_t *)data)[index] = (int8_t)round_to_integer(value, INT8_MIN, INT8_MAX);
      break;
    case DTYPE_U8:
      ((uint8_t *)data)[index] = (uint8_t)round_to_integer(value, 0, UINT8_MAX);
      break;
    case DTYPE_BOOL:
      ((uint8_t *)data)[index] = value != 0;
      break;
    case DTYPE_COUNT:
      break;
  }
}

Tensor tensor_create(Arena *arena, const char *name, DataType dtype, Shape shape) {
  int64_t bytes = 0;
  if (!shape_elements(&shape, 1, &bytes) || !checked_mul(bytes, data_type_bytes(dtype), &bytes)) arena_fail(arena);
  return (Tensor){arena_string(arena, name), dtype, shape, arena_alloc_aligned(arena, (size_t)bytes, 64)};
}
