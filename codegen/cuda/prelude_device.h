/* kiln_prelude.h of generated CUDA code: the names that kernels use beyond the common subset of C11 and C++17; on a GPU.
 * The only place with inline PTX; no header of the toolkit is included. tests/cuda_emulator/prelude_host.h has the same
 * names for a CPU.
 *
 * Rules that kernels keep, so that both compile and mean the same: collectives (shuffles, mma_*, ldsm_*, WARP_SYNC) are
 * reached by all 32 lanes of a warp at the same line; BLOCK_SYNC by all threads of the block at the same line; shared
 * memory is declared at the top of a kernel and starts undefined. */
typedef unsigned char u8;
typedef unsigned short u16; /* also the bits of a bf16 or an f16 */
typedef unsigned int u32;   /* also the bits of a tf32, or two 16-bit floats, the first in the low half */
typedef unsigned long long u64;
typedef long long i64;

/* --- functions, memory, threads ----------------------------------------------------------------------- */
/* A kernel for blocks of exactly `threads` threads; KERNEL_BLOCKS also asks for registers so few that `blocks` of them
 * fit a multiprocessor. */
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define KERNEL_BLOCKS(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DEV static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#define SHARED(alignment) __shared__ __align__(alignment)
/* Declares `name` as the unsigned char array of the launch's dynamic shared memory, aligned to 128. */
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define BLOCK_SYNC() __syncthreads()
#define WARP_SYNC() __syncwarp()
/* Writes before it are seen by the device before writes and atomics after it. */
#define DEVICE_FENCE() __threadfence()

DEV int thread_index(void) { return (int)threadIdx.x; }
DEV int block_x(void) { return (int)blockIdx.x; }
DEV int block_y(void) { return (int)blockIdx.y; }
DEV int block_z(void) { return (int)blockIdx.z; }
DEV int grid_x(void) { return (int)gridDim.x; }

/* --- values ------------------------------------------------------------------------------------------- */
#define F32_INFINITY __int_as_float(0x7f800000)
#define F32_NAN __int_as_float(0x7fffffff)
DEV u32 f32_bits(float value) { return __float_as_uint(value); }
DEV float bits_f32(u32 bits) { return __uint_as_float(bits); }
/* Round to nearest even: bf16 and f16. to_tf32: to nearest, ties away from 0; the result is also the f32's bits. */
DEV u32 to_tf32(float value) {
#if __CUDA_ARCH__ >= 800
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return f32_bits(value);
#endif
}
DEV u16 f2bf(float value) {
#if __CUDA_ARCH__ >= 800
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  u32 bits = f32_bits(value);
  if (value != value) return 0x7fff;
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}
DEV float bf2f(u16 bits) { return bits_f32((u32)bits << 16); }
DEV u16 f2h(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
DEV float h2f(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
DEV u32 pack_bf16(float low, float high) { return (u32)f2bf(low) | (u32)f2bf(high) << 16; }
DEV u32 pack_f16(float low, float high) { return (u32)f2h(low) | (u32)f2h(high) << 16; }

/* --- memory ------------------------------------------------------------------------------------------- */
/* Four neighbours at an address that is a multiple of 16. */
DEV void load4(float *values, const float *from) {
  const float4 vector = *(const float4 *)from;
  values[0] = vector.x, values[1] = vector.y, values[2] = vector.z, values[3] = vector.w;
}
DEV void store4(float *to, const float *values) {
  *(float4 *)to = make_float4(values[0], values[1], values[2], values[3]);
}
/* The same of values kept in 16 bits, at an address that is a multiple of 8. */
DEV void load4_bf16(float *values, const u16 *from) {
  const uint2 vector = *(const uint2 *)from;
  values[0] = bits_f32(vector.x << 16), values[1] = bits_f32(vector.x & 0xffff0000u);
  values[2] = bits_f32(vector.y << 16), values[3] = bits_f32(vector.y & 0xffff0000u);
}
DEV void store4_bf16(u16 *to, const float *values) {
  *(uint2 *)to = make_uint2(pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]));
}
DEV void load4_f16(float *values, const u16 *from) {
  const uint2 vector = *(const uint2 *)from;
  values[0] = h2f((u16)vector.x), values[1] = h2f((u16)(vector.x >> 16));
  values[2] = h2f((u16)vector.y), values[3] = h2f((u16)(vector.y >> 16));
}
DEV void store4_f16(u16 *to, const float *values) {
  *(uint2 *)to = make_uint2(pack_f16(values[0], values[1]), pack_f16(values[2], values[3]));
}
/* The old value. Integers only: the order of additions of floats would show. */
DEV u32 atomic_add_u32(u32 *counter, u32 value) { return atomicAdd(counter, value); }

/* Copies to shared memory that go on in the background. With !valid zeros are written and nothing is read, though
 * `from` must still be an aligned address. A thread's copies since its last cp_commit form a group; cp_wait(n) waits for
 * all but the last n groups of this thread; others see the data after a BLOCK_SYNC. Below sm_80 they are plain copies. */
#if __CUDA_ARCH__ >= 800
DEV u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }
DEV void cp_async16(void *to, const void *from, int valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
DEV void cp_async8(void *to, const void *from, int valid) {
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
DEV void cp_async4(void *to, const void *from, int valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
DEV void cp_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define cp_wait(groups) asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory")
#else
DEV void cp_async16(void *to, const void *from, int valid) {
  *(float4 *)to = valid ? *(const float4 *)from : make_float4(0, 0, 0, 0);
}
DEV void cp_async8(void *to, const void *from, int valid) { *(u64 *)to = valid ? *(const u64 *)from : 0; }
DEV void cp_async4(void *to, const void *from, int valid) { *(u32 *)to = valid ? *(const u32 *)from : 0; }
DEV void cp_commit(void) {}
#define cp_wait(groups) ((void)(groups))
#endif

/* --- warps -------------------------------------------------------------------------------------------- */
/* The value of lane (lane ^ mask), or of `lane`. */
DEV float shfl_xor_f32(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEV double shfl_xor_f64(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEV u32 shfl_xor_u32(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEV i64 shfl_xor_i64(i64 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEV float shfl_f32(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

/* Matrix products of a warp, d += a * b with f32 sums (PTX ISA, "mma.sync": fragments of m16n8k16 for bf16 and f16 and
 * of m16n8k8 for tf32), and the loads of their 16-bit fragments from shared memory ("ldmatrix": lane i gives the address
 * of row i % 8 of matrix i / 8, a multiple of 16). Not below sm_80. */
#if __CUDA_ARCH__ >= 800
DEV void ldsm_x4(u32 *fragment, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
DEV void ldsm_x4_trans(u32 *fragment, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
#define KILN_MMA(name, shape)                                                                             \
  DEV void name(float *d, const u32 *a, const u32 *b) {                                                   \
    asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"       \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                     \
  }
KILN_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
KILN_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
KILN_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#endif
