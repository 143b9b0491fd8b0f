/* Runs kernels of the emulated device, one block after the other. */
#ifndef KILN_EMULATOR_BLOCKS_H
#define KILN_EMULATOR_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>

#include "emulator.h"

typedef struct BlockLaunch {
  const EmulatorKernel *kernel;
  void **arguments;
  unsigned grid[3];
  int threads;
  char *shared_begin, *shared_end; /* the module's static shared memory */
  size_t dynamic_shared;
} BlockLaunch;

enum { SHARED_LIMIT = 227 * 1024, SHARED_STATIC_LIMIT = 48 * 1024 };

/* The table that modules are given. */
KilnEmulator *blocks_emulator(void);
/* One launch at a time. NULL, or what the kernel did that is forbidden, and where; valid until the next launch. */
const char *blocks_run(const BlockLaunch *launch);

#endif
