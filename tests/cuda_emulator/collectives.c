#include "collectives.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef const CollectiveLane *Lanes;

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static float from_bfloat(uint32_t bits) { return float_of((bits & 0xffff) << 16); }

static float from_half(uint32_t bits) {
  uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) {
    float value = ldexpf((float)mantissa, -24);
    return sign != 0 ? -value : value;
  }
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* The hardware ignores the low 13 bits. */
static float from_tf32(uint32_t bits) { return float_of(bits & ~UINT32_C(0x1fff)); }

/* --- ldmatrix ---------------------------------------------------------------------------------------- */

/* Lane 8m+r names row r of matrix m: 8 elements of 16 bits, aligned to 16 bytes. */
static const char *load_matrices(Lanes lanes, uint16_t out_elements[4][8][8]) {
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    const void *row = lanes[lane].in;
    if ((uintptr_t)row % 16 != 0) return "ldmatrix: a row is not aligned to 16 bytes";
    memcpy(out_elements[lane / 8][lane % 8], row, 16);
  }
  return NULL;
}

static const char *ldmatrix(Lanes lanes, int transposed) {
  uint16_t elements[4][8][8];
  const char *wrong = load_matrices(lanes, elements);
  if (wrong != NULL) return wrong;
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    uint32_t *result = lanes[lane].out;
    int row = lane / 4, column = lane % 4 * 2;
    for (int m = 0; m < 4; m++) {
      uint32_t low = transposed ? elements[m][column][row] : elements[m][row][column];
      uint32_t high = transposed ? elements[m][column + 1][row] : elements[m][row][column + 1];
      result[m] = low | high << 16;
    }
  }
  return NULL;
}

/* --- mma --------------------------------------------------------------------------------------------- */

/* d += a × b for 16 rows and 8 columns; sums in order of k, each product rounded once to float like a chain of fused
 * multiply-adds without the fusion. The hardware's order is not documented: comparisons need a tolerance. */
static void multiply_add(Lanes lanes, int depth, float a[16][16], float b[16][8]) {
  float sums[16][8];
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < 8; column++) sums[row][column] = 0;
    for (int k = 0; k < depth; k++)
      for (int column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
  }
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    float *d = lanes[lane].out;
    int row = lane / 4, column = lane % 4 * 2;
    d[0] += sums[row][column];
    d[1] += sums[row][column + 1];
    d[2] += sums[row + 8][column];
    d[3] += sums[row + 8][column + 1];
  }
}

static inline void mma_16(Lanes lanes, float (*convert)(uint32_t)) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    const uint32_t *from_a = lanes[lane].in, *from_b = lanes[lane].other;
    int group = lane / 4, position = lane % 4 * 2;
    for (int i = 0; i < 4; i++) {
      int row = group + i % 2 * 8, column = position + i / 2 * 8;
      a[row][column] = convert(from_a[i] & 0xffff);
      a[row][column + 1] = convert(from_a[i] >> 16);
    }
    for (int i = 0; i < 2; i++) {
      b[position + i * 8][group] = convert(from_b[i] & 0xffff);
      b[position + i * 8 + 1][group] = convert(from_b[i] >> 16);
    }
  }
  multiply_add(lanes, 16, a, b);
}

static void mma_tf32(Lanes lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    const uint32_t *from_a = lanes[lane].in, *from_b = lanes[lane].other;
    int group = lane / 4, position = lane % 4;
    for (int i = 0; i < 4; i++) a[group + i % 2 * 8][position + i / 2 * 4] = from_tf32(from_a[i]);
    for (int i = 0; i < 2; i++) b[position + i * 4][group] = from_tf32(from_b[i]);
  }
  multiply_add(lanes, 8, a, b);
}

/* --- shuffles ---------------------------------------------------------------------------------------- */

static const char *shuffle(Lanes lanes, int exclusive) {
  uint64_t values[EMULATOR_WARP];
  for (int lane = 0; lane < EMULATOR_WARP; lane++) memcpy(&values[lane], lanes[lane].in, sizeof values[lane]);
  for (int lane = 0; lane < EMULATOR_WARP; lane++) {
    const int other = *(const int *)lanes[lane].other;
    const int source = exclusive ? lane ^ other : other;
    if (source < 0 || source >= EMULATOR_WARP) return "shuffle: there is no such lane";
    memcpy(lanes[lane].out, &values[source], sizeof values[source]);
  }
  return NULL;
}

const char *collective_compute(KilnCollective operation, const CollectiveLane lanes[EMULATOR_WARP]) {
  switch (operation) {
    case KILN_SHFL_XOR:
      return shuffle(lanes, 1);
    case KILN_SHFL:
      return shuffle(lanes, 0);
    case KILN_LDSM_X4:
      return ldmatrix(lanes, 0);
    case KILN_LDSM_X4_TRANS:
      return ldmatrix(lanes, 1);
    case KILN_MMA_BF16:
      mma_16(lanes, from_bfloat);
      return NULL;
    case KILN_MMA_F16:
      mma_16(lanes, from_half);
      return NULL;
    case KILN_MMA_TF32:
      mma_tf32(lanes);
      return NULL;
    case KILN_WARP_SYNC:
      return NULL;
  }
  return "unknown collective";
}
