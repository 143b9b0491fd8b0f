/* kiln_prelude.h of generated CUDA code, on a CPU: the names of codegen/cuda/prelude_device.h, with the same meaning.
 * Kernels become plain functions; each thread of a block is a fibre. What concerns several threads goes through a table
 * of functions that whoever loads the compiled text puts into `kiln_emulator`; positions are those of the text's #line.
 *
 * Static shared memory lies in the section kiln_shared, so that the loader can fill it between blocks. */
#ifndef KILN_PRELUDE_HOST_H
#define KILN_PRELUDE_HOST_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

/* What a fibre may ask of its emulator. Pointers of collectives stay valid until the call returns. */
typedef enum KilnCollective {
  KILN_SHFL_XOR,      /* out: 8 bytes; in: 8 bytes of the lane's value; other: const int *, the mask */
  KILN_SHFL,          /* the same with a lane number */
  KILN_LDSM_X4,       /* out: u32[4]; in: the row's address */
  KILN_LDSM_X4_TRANS, /* the same */
  KILN_MMA_BF16,      /* out: float[4], added to; in: const u32[4]; other: const u32[2] */
  KILN_MMA_F16,
  KILN_MMA_TF32,
  KILN_WARP_SYNC
} KilnCollective;

typedef struct KilnEmulator {
  int thread, block[3], grid_x; /* of the fibre that runs */
  unsigned char *dynamic_shared;
  void (*block_sync)(const char *file, int line);
  void (*collective)(KilnCollective operation, void *out, const void *in, const void *other, const char *file, int line);
  void (*copy_async)(void *to, const void *from, int bytes, int valid, const char *file, int line);
  void (*copy_commit)(void);
  void (*copy_wait)(int groups);
} KilnEmulator;

#ifndef KILN_EMULATOR_ITSELF

/* Set by the loader after it has opened the shared object. */
KilnEmulator *kiln_emulator;
/* So that the section exists in every object. */
static char kiln_shared_begin[16] __attribute__((section("kiln_shared"), aligned(128), used));

#define KERNEL(threads) void
#define KERNEL_BLOCKS(threads, blocks) void
#define DEV static inline __attribute__((unused))
#define UNROLL
#define NO_UNROLL
#define SHARED(alignment) static __attribute__((section("kiln_shared"), aligned(alignment)))
#define DYNAMIC_SHARED(name) unsigned char *const name = kiln_emulator->dynamic_shared
#define BLOCK_SYNC() kiln_emulator->block_sync(__FILE__, __LINE__)
#define WARP_SYNC() kiln_emulator->collective(KILN_WARP_SYNC, 0, 0, 0, __FILE__, __LINE__)
#define DEVICE_FENCE() ((void)0)

DEV int thread_index(void) { return kiln_emulator->thread; }
DEV int block_x(void) { return kiln_emulator->block[0]; }
DEV int block_y(void) { return kiln_emulator->block[1]; }
DEV int block_z(void) { return kiln_emulator->block[2]; }
DEV int grid_x(void) { return kiln_emulator->grid_x; }

#define F32_INFINITY INFINITY
#define F32_NAN NAN
DEV u32 f32_bits(float value) {
  u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}
DEV float bits_f32(u32 bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
/* Infinities and NaNs stay what they are. */
DEV u32 to_tf32(float value) {
  u32 bits = f32_bits(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value != value ? bits | 0x400000u : bits;
  return (bits + 0x1000u) & ~0x1fffu;
}
DEV u16 f2bf(float value) {
  u32 bits = f32_bits(value);
  if (value != value) return 0x7fff;
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
DEV float bf2f(u16 bits) { return bits_f32((u32)bits << 16); }
DEV u16 f2h(float value) {
  const _Float16 half = (_Float16)value;
  u16 bits;
  memcpy(&bits, &half, 2);
  return bits;
}
DEV float h2f(u16 bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}
DEV u32 pack_bf16(float low, float high) { return (u32)f2bf(low) | (u32)f2bf(high) << 16; }
DEV u32 pack_f16(float low, float high) { return (u32)f2h(low) | (u32)f2h(high) << 16; }

DEV void load4(float *values, const float *from) { memcpy(values, __builtin_assume_aligned(from, 16), 16); }
DEV void store4(float *to, const float *values) { memcpy(__builtin_assume_aligned(to, 16), values, 16); }
#define KILN_VECTORS(name, read, write)                                                            \
  DEV void load4_##name(float *values, const u16 *from) {                                         \
    u16 bits[4];                                                                                  \
    memcpy(bits, __builtin_assume_aligned(from, 8), 8);                                           \
    for (int i = 0; i < 4; i++) values[i] = read(bits[i]);                                        \
  }                                                                                               \
  DEV void store4_##name(u16 *to, const float *values) {                                          \
    u16 bits[4];                                                                                  \
    for (int i = 0; i < 4; i++) bits[i] = write(values[i]);                                       \
    memcpy(__builtin_assume_aligned(to, 8), bits, 8);                                             \
  }
KILN_VECTORS(bf16, bf2f, f2bf)
KILN_VECTORS(f16, h2f, f2h)
DEV u32 atomic_add_u32(u32 *counter, u32 value) {
  const u32 old = *counter;
  *counter = old + value;
  return old;
}

#define cp_async16(to, from, valid) kiln_emulator->copy_async(to, from, 16, valid, __FILE__, __LINE__)
#define cp_async8(to, from, valid) kiln_emulator->copy_async(to, from, 8, valid, __FILE__, __LINE__)
#define cp_async4(to, from, valid) kiln_emulator->copy_async(to, from, 4, valid, __FILE__, __LINE__)
#define cp_commit() kiln_emulator->copy_commit()
#define cp_wait(groups) kiln_emulator->copy_wait(groups)

/* One function per type, called with the position of the shuffle. */
#define KILN_SHUFFLE(name, type)                                                                    \
  DEV type name(KilnCollective operation, type value, int other, const char *file, int line) {     \
    u64 in = 0, out = 0;                                                                            \
    memcpy(&in, &value, sizeof value);                                                              \
    kiln_emulator->collective(operation, &out, &in, &other, file, line);                            \
    memcpy(&value, &out, sizeof value);                                                             \
    return value;                                                                                   \
  }
KILN_SHUFFLE(kiln_shuffle_f32, float)
KILN_SHUFFLE(kiln_shuffle_f64, double)
KILN_SHUFFLE(kiln_shuffle_u32, u32)
KILN_SHUFFLE(kiln_shuffle_i64, i64)
#define shfl_xor_f32(value, mask) kiln_shuffle_f32(KILN_SHFL_XOR, value, mask, __FILE__, __LINE__)
#define shfl_xor_f64(value, mask) kiln_shuffle_f64(KILN_SHFL_XOR, value, mask, __FILE__, __LINE__)
#define shfl_xor_u32(value, mask) kiln_shuffle_u32(KILN_SHFL_XOR, value, mask, __FILE__, __LINE__)
#define shfl_xor_i64(value, mask) kiln_shuffle_i64(KILN_SHFL_XOR, value, mask, __FILE__, __LINE__)
#define shfl_f32(value, lane) kiln_shuffle_f32(KILN_SHFL, value, lane, __FILE__, __LINE__)

#define ldsm_x4(fragment, row) kiln_emulator->collective(KILN_LDSM_X4, fragment, row, 0, __FILE__, __LINE__)
#define ldsm_x4_trans(fragment, row) kiln_emulator->collective(KILN_LDSM_X4_TRANS, fragment, row, 0, __FILE__, __LINE__)
#define mma_bf16(d, a, b) kiln_emulator->collective(KILN_MMA_BF16, d, a, b, __FILE__, __LINE__)
#define mma_f16(d, a, b) kiln_emulator->collective(KILN_MMA_F16, d, a, b, __FILE__, __LINE__)
#define mma_tf32(d, a, b) kiln_emulator->collective(KILN_MMA_TF32, d, a, b, __FILE__, __LINE__)

#endif
#endif
