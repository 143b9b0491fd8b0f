#include <pthread.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#include <llvm-c/Core.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>

#include "codegen.h"
#include "tables.h"

static void initialize(void) {
  LLVMInitializeX86TargetInfo();
  LLVMInitializeX86Target();
  LLVMInitializeX86TargetMC();
  LLVMInitializeX86AsmPrinter();
  LLVMInitializeX86AsmParser();
  LLVMInitializeAArch64TargetInfo();
  LLVMInitializeAArch64Target();
  LLVMInitializeAArch64TargetMC();
  LLVMInitializeAArch64AsmPrinter();
  LLVMInitializeAArch64AsmParser();
}

void llvm_initialize(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, initialize);
}

typedef struct Level {
  const char *isa;
  bool x86;
  int32_t lanes, registers;
  bool fma, broadcast;
} Level;

/* From least to most: the x86-64 levels of the psABI, and AArch64 with Advanced SIMD. */
static const Level levels[] = {
    {"aarch64", false, 4, 32, true, false},
    {"x86-64-v2", true, 4, 16, false, false},
    {"x86-64-v3", true, 8, 16, true, false},
    {"x86-64-v4", true, 16, 32, true, true},
};

enum { LEVEL_COUNT = sizeof levels / sizeof levels[0] };

#define LEVEL_NAMES "native, x86-64-v2, x86-64-v3, x86-64-v4, aarch64"

#ifdef __x86_64__
static const bool host_is_x86 = true;
#else
static const bool host_is_x86 = false;
#endif

/* Also looks at whether the operating system saves the wide registers. */
static bool host_has(const Level *level) {
  if (level->x86 != host_is_x86) return false;
#ifdef __x86_64__
  __builtin_cpu_init();
  switch (level->lanes) {
    case 16:
      return __builtin_cpu_supports("x86-64-v4");
    case 8:
      return __builtin_cpu_supports("x86-64-v3");
    default:
      return __builtin_cpu_supports("x86-64-v2");
  }
#else
  return true;
#endif
}

/* AMX with bf16 products. Linux saves the registers for programs that asked for it; those started later inherit it. */
static bool host_has_tiles(void) {
#if defined(__x86_64__) && defined(__linux__)
  enum { LEAF = 7, BF16 = 1 << 22, TILE = 1 << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  unsigned a, b, c, d;
  if (!__get_cpuid_count(LEAF, 0, &a, &b, &c, &d) || !(d & BF16) || !(d & TILE)) return false;
  if (!__get_cpuid_count(LEAF, 1, &a, &b, &c, &d) || !(a & 1 << 5)) return false; /* AVX512_BF16 */
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

static const Level *find_level(const char *isa) {
  for (size_t i = 0; i < LEVEL_COUNT; i++) {
    if (strcmp(levels[i].isa, isa) == 0) return &levels[i];
  }
  return NULL;
}

static const Level *best_host_level(void) {
  for (size_t i = LEVEL_COUNT; i-- > 0;) {
    if (host_has(&levels[i])) return &levels[i];
  }
  return NULL;
}

/* Splits off the architecture and insists on Linux: objects are ELF and the linker is called with its options. */
static bool parse_triple(const char *triple, bool *out_x86) {
  static const struct {
    const char *prefix;
    bool x86;
  } known[] = {{"x86_64-", true}, {"aarch64-", false}};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    if (strncmp(triple, known[i].prefix, strlen(known[i].prefix)) == 0 && strstr(triple, "-linux") != NULL) {
      *out_x86 = known[i].x86;
      return true;
    }
  }
  return false;
}

static int64_t cache_bytes(int name, int64_t otherwise) {
  long bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

bool cpu_target(const char *isa, const char *triple, Arena *arena, Diag *diag, Target *out_target) {
  const Location nowhere = {0};
  bool x86 = host_is_x86;
  if (triple != NULL && !parse_triple(triple, &x86)) {
    diag_error(diag, nowhere, "unknown target triple '%s': expected x86_64-linux-gnu or aarch64-linux-gnu", triple);
    return false;
  }
  bool native = isa != NULL ? strcmp(isa, "native") == 0 : triple == NULL;
  if (native && x86 != host_is_x86) {
    diag_error(diag, nowhere, "cpu 'native' does not go with triple '%s': this machine is another one", triple);
    return false;
  }
  const Level *level = native ? best_host_level() : find_level(isa != NULL ? isa : x86 ? "x86-64-v2" : "aarch64");
  if (level == NULL && native) {
    diag_error(diag, nowhere, "this processor is below x86-64-v2, the least that is supported");
    return false;
  }
  if (level == NULL) {
    diag_error(diag, nowhere, "unknown cpu '%s': expected one of " LEVEL_NAMES, isa);
    return false;
  }
  if (triple != NULL && level->x86 != x86) {
    diag_error(diag, nowhere, "cpu '%s' does not go with triple '%s'", level->isa, triple);
    return false;
  }
  const char *tune = "generic";
  if (native) {
    char *host = LLVMGetHostCPUName();
    tune = arena_string(arena, host);
    LLVMDisposeMessage(host);
  }
  /* caches of a typical machine of the level when the code is for no machine in particular */
  enum { L1_BYTES = 32 << 10, L2_BYTES = 1 << 20 };
  *out_target = (Target){
      .triple = triple != NULL ? arena_string(arena, triple)
                : level->x86   ? "x86_64-pc-linux-gnu"
                               : "aarch64-linux-gnu",
      .isa = level->isa,
      .tune = tune,
      .vector_lanes = level->lanes,
      .vector_registers = level->registers,
      .fma = level->fma,
      .broadcast_operand = level->broadcast,
      .tiles = native && level->lanes == 16 && host_has_tiles(),
      .hosts_reductions = true,
      .l1_bytes = native ? cache_bytes(_SC_LEVEL1_DCACHE_SIZE, L1_BYTES) : L1_BYTES,
      .l2_bytes = native ? cache_bytes(_SC_LEVEL2_CACHE_SIZE, L2_BYTES) : L2_BYTES,
  };
  return true;
}

bool cpu_target_runnable(const Target *target) {
  const Level *level = find_level(target->isa);
  return level != NULL && host_has(level);
}
