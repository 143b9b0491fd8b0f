/* Makes this process's processor look like one of an older level to code that asks CPUID from now on: for libraries
 * that choose their instructions by it and have no option for that, such as onnxruntime. Needs Linux on x86-64 with
 * CPUID faulting ("cpuid_fault" in /proc/cpuinfo): CPUID then raises SIGSEGV, and the handler answers with the
 * processor's own bits less those of newer levels. Threads started later inherit it, programs started do not.
 *
 * Built and loaded by onnxruntime.py:  cc -O2 -shared -fPIC -o cpuid_limit.so cpuid_limit.c */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

enum { EXTENDED_FEATURES = 7, NATIVE = 4 };

typedef struct Registers {
  uint32_t a, b, c, d;
} Registers;

static int limit = NATIVE;
static atomic_long answered;

static Registers ask_processor(uint32_t leaf, uint32_t subleaf) {
  Registers found;
  __asm__ volatile("cpuid" : "=a"(found.a), "=b"(found.b), "=c"(found.c), "=d"(found.d) : "a"(leaf), "c"(subleaf));
  return found;
}

/* Bits as in Intel's Software Developer's Manual, volume 2A, CPUID. */
static void clear_wide(uint32_t leaf, uint32_t subleaf, Registers *bits) {
  if (leaf == EXTENDED_FEATURES && subleaf == 0) {
    bits->b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX512 F to VL */
    bits->c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    /* of Xeon Phi, VP2INTERSECT, AMX, AVX512_FP16 */
    bits->d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
  } else if (leaf == EXTENDED_FEATURES && subleaf == 1) {
    bits->a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI, AVX512_BF16, AMX-FP16, AVX-IFMA */
    /* AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
    bits->d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
  }
}

static void clear_avx(uint32_t leaf, uint32_t subleaf, Registers *bits) {
  if (leaf == 1) bits->c &= ~(BIT(12) | BIT(28) | BIT(29));          /* FMA, AVX, F16C */
  if (leaf == EXTENDED_FEATURES && subleaf == 0) bits->b &= ~BIT(5); /* AVX2 */
}

static void answer(int number, siginfo_t *information, void *context) {
  (void)information;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)registers[REG_RIP];
  if (code[0] != 0x0f || code[1] != 0xa2) {
    signal(number, SIG_DFL); /* not CPUID: it happens again, and then counts */
    return;
  }
  const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  Registers bits = ask_processor(leaf, subleaf);
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  if (limit <= 3) clear_wide(leaf, subleaf, &bits);
  if (limit <= 2) clear_avx(leaf, subleaf, &bits);
  registers[REG_RAX] = bits.a;
  registers[REG_RBX] = bits.b;
  registers[REG_RCX] = bits.c;
  registers[REG_RDX] = bits.d;
  registers[REG_RIP] += 2;
  atomic_fetch_add(&answered, 1);
}

/* `level`: 3 (AVX2 and FMA) or 2 (SSE4.2). Returns 0, or an errno: ENODEV where CPUID cannot be made to fault. */
int cpuid_limit(int level) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigemptyset(&action.sa_mask);
  limit = level;
  if (sigaction(SIGSEGV, &action, NULL) != 0) return errno;
  return syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0 ? 0 : errno;
}

/* How often CPUID was asked since; timings count only while this stands still. */
long cpuid_answered(void) { return atomic_load(&answered); }
