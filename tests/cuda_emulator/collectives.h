/* The collectives of a warp, each computed once for all lanes. Register layouts: PTX ISA, "Warp-level matrix
 * instructions". */
#ifndef KILN_EMULATOR_COLLECTIVES_H
#define KILN_EMULATOR_COLLECTIVES_H

#include "emulator.h"

/* What a lane brings, as in KilnEmulator.collective. */
typedef struct CollectiveLane {
  void *out;
  const void *in, *other;
} CollectiveLane;

/* NULL, or what is wrong. */
const char *collective_compute(KilnCollective operation, const CollectiveLane lanes[EMULATOR_WARP]);

#endif
