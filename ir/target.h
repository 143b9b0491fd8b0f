/* What passes may know of the machine that a program is compiled for. Filled by code generators. */
#ifndef KILN_IR_TARGET_H
#define KILN_IR_TARGET_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Target {
  const char *triple; /* "x86_64-pc-linux-gnu" */
  const char *isa;    /* "x86-64-v4", "aarch64": the instructions that the code may use */
  const char *tune;   /* scheduling model, e.g. "znver5"; "generic" for reproducible output */
  int32_t vector_lanes;     /* f32 lanes of the widest vector: 16, 8 or 4 */
  int32_t vector_registers; /* how many of them: 32 or 16 */
  bool fma;                 /* has fused multiply-add */
  bool broadcast_operand;   /* a multiply-add can broadcast a scalar from memory (AVX-512) */
  int64_t l1_bytes, l2_bytes; /* per core */
} Target;

#endif
