/* What the emulated device's compiler puts into a module, beside the text, and its driver finds there.
 *
 * The emulator runs one block at a time on one host thread, so that results are the same in every run. Each thread of
 * a block is a fibre from its first collective on. Threads of a warp run in lane order, or in reverse with
 * KILN_EMULATOR_ORDER=reverse: correct kernels give the same bits either way. */
#ifndef KILN_EMULATOR_H
#define KILN_EMULATOR_H

#define KILN_EMULATOR_ITSELF
#include "prelude_host.h"

enum { EMULATOR_WARP = 32, EMULATOR_MAX_THREADS = 1024 };

/* A module exports its kernels, the last one with a NULL name. */
typedef struct EmulatorKernel {
  const char *name;
  void (*call)(void **arguments); /* pointers to the values, as for cuLaunchKernel */
  const int *argument_bytes;
  int argument_count, threads; /* threads: of a block */
} EmulatorKernel;

/* Static shared memory of a module. */
typedef void EmulatorShared(char **out_begin, char **out_end);

#define EMULATOR_POINTER_SYMBOL "kiln_emulator"
#define EMULATOR_KERNELS_SYMBOL "kiln_emulator_kernels"
#define EMULATOR_SHARED_SYMBOL  "kiln_emulator_shared"

#endif
