/* Opens compiled libraries. */
#ifndef KILN_RUNTIME_CORE_LOADER_H
#define KILN_RUNTIME_CORE_LOADER_H

#include "base/arena.h"
#include "base/diag.h"
#include "kiln_abi.h"

/* Loads a library and finds its program: the one exported symbol that ends in "_describe". The library is closed with
 * the arena. Checks the ABI version and the processor; a report gives the reason and *out_status the code. Nothing of
 * the library has run before these checks but code for the baseline processor. */
const kiln_program *library_open(const char *path, Arena *arena, Diag *diag, kiln_status *out_status);

#endif
