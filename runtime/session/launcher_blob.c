/* The launcher's object, which is linked into libraries for GPUs; see runtime/core/cuda_library.h. */
__asm__(
    ".section .rodata\n"
    ".balign 64\n"
    ".globl cuda_launcher_begin\n.hidden cuda_launcher_begin\n"
    "cuda_launcher_begin:\n"
    ".incbin \"" KILN_LAUNCHER_OBJECT "\"\n"
    ".globl cuda_launcher_end\n.hidden cuda_launcher_end\n"
    "cuda_launcher_end:\n"
    ".byte 0\n"
    ".previous\n");

/* A file without a declaration is not C. */
typedef int launcher_blob;
