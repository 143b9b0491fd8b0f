/* Devices as passes see them. */
#include <string.h>

#include "base/text.h"
#include "cuda.h"
#include "gemm.h"

/* What generated code may rely on, and typical numbers for code that is made for no device in particular: NVIDIA,
 * "CUDA C++ Programming Guide", compute capabilities, and the whitepapers of the architectures' largest devices. */
typedef struct Architecture {
  const char *name;
  int32_t arch, multiprocessors;
  int64_t shared_kib, l2_mib;
} Architecture;

static const Architecture architectures[] = {
    {"sm_70", 70, 80, 96, 6},       {"sm_75", 75, 40, 64, 4},     {"sm_80", 80, 108, 163, 40},
    {"sm_86", 86, 84, 99, 6},       {"sm_87", 87, 16, 163, 4},    {"sm_89", 89, 128, 99, 72},
    {"sm_90", 90, 132, 227, 50},    {"sm_90a", 90, 132, 227, 50}, {"sm_100", 100, 148, 227, 126},
    {"sm_103", 103, 148, 227, 126}, {"sm_120", 120, 170, 99, 96},
};

enum { ARCHITECTURE_COUNT = sizeof architectures / sizeof *architectures, LEAST_ARCH = 70 };

/* Ops whose kernels read and write images in 16 bits. */
static const bool packs[OP_COUNT] = {
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters)
#define UNARY(ENUM, name, attributes)  [OP_##ENUM] = true,
#define BINARY(ENUM, name, attributes) [OP_##ENUM] = true,
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
    [OP_CONV2D] = true,
    [OP_CONVERT] = true,
    [OP_IDENTITY] = true,
    [OP_DROPOUT] = true, /* a view, but for training */
    [OP_SLICE] = true,
    [OP_PAD] = true,
    [OP_UPSAMPLE] = true,
    [OP_CONCAT] = true,
    [OP_MAX_POOL2D] = true,
    [OP_AVG_POOL2D] = true,
    [OP_ADAPTIVE_AVG_POOL2D] = true,
    [OP_ADAPTIVE_MAX_POOL2D] = true,
    [OP_ADAPTIVE_CONCAT_POOL2D] = true,
    [OP_MEAN] = true,
    [OP_SUM] = true,
    [OP_MAX] = true,
    [OP_STATS_PARTIAL] = true,
};

static DataType packed_element(MathMode math) {
  return math == MATH_BF16 ? DTYPE_BF16 : math == MATH_FP16 ? DTYPE_F16 : DTYPE_F32;
}

#define ARCHITECTURE_NAMES "sm_70, sm_75, sm_80, sm_86, sm_87, sm_89, sm_90, sm_90a, sm_100, sm_103, sm_120"

static const Architecture *find_by_name(const char *name) {
  for (size_t i = 0; i < ARCHITECTURE_COUNT; i++)
    if (strcmp(architectures[i].name, name) == 0) return &architectures[i];
  return NULL;
}

/* The newest that is no newer than the device. */
static const Architecture *find_by_number(int32_t arch) {
  const Architecture *best = NULL;
  for (size_t i = 0; i < ARCHITECTURE_COUNT; i++)
    if (architectures[i].arch <= arch && (best == NULL || architectures[i].arch > best->arch)) best = &architectures[i];
  return best;
}

bool cuda_target(const char *arch, const CudaDevice *device, MathMode math, Arena *arena, Diag *diag,
                 Target *out_target) {
  const Location nowhere = {0};
  const Architecture *row = arch != NULL ? find_by_name(arch) : find_by_number(device != NULL ? device->arch : 0);
  if (row == NULL && arch != NULL) {
    diag_error(diag, nowhere, "unknown GPU architecture '%s': expected one of " ARCHITECTURE_NAMES, arch);
    return false;
  }
  if (row == NULL && device != NULL && device->arch > 0) {
    diag_error(diag, nowhere, "the GPU '%s' has compute capability %d.%d: at least %d.%d is needed",
               device->name != NULL ? device->name : "0", device->arch / 10, device->arch % 10, LEAST_ARCH / 10,
               LEAST_ARCH % 10);
    return false;
  }
  if (row == NULL) {
    diag_error(diag, nowhere, "no GPU architecture is given: expected one of " ARCHITECTURE_NAMES);
    return false;
  }
  /* tensor cores take tf32 and bf16 from sm_80 on */
  if (row->arch < 80 && math != MATH_FP32) {
    diag_error(diag, nowhere, "GPU architecture %s does not compute in %s: expected fp32", row->name,
               math_mode_name(math));
    return false;
  }
  const CudaDevice known = device != NULL ? *device : (CudaDevice){0};
  *out_target = (Target){
      .triple = "nvptx64-nvidia-cuda",
      .isa = row->name,
      .tune = "generic",
      .vector_lanes = 4,
      .fma = true,
      .hosts_reductions = true,
      .l2_bytes = known.l2_bytes > 0 ? known.l2_bytes : row->l2_mib << 20,
      .image_layout = LAYOUT_CHANNEL_LAST,
      .math = math,
      .image_element = packed_element(math),
      .packs = packs,
      .device = known.name != NULL ? arena_string(arena, known.name) : NULL,
      .arch = row->arch,
      .multiprocessors = known.multiprocessors > 0 ? known.multiprocessors : row->multiprocessors,
      .shared_bytes = known.shared_bytes > 0 ? known.shared_bytes : row->shared_kib << 10,
  };
  for (int mode = 0; mode < MATH_COUNT; mode++) {
    size_t tiles;
    gemm_tiles(row->arch < 80 ? MATH_FP32 : (MathMode)mode, &tiles);
    out_target->product_tiles[mode] = (int32_t)tiles;
  }
  return true;
}
