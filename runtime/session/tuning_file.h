/* Files of measured times: what `kiln tune` writes and compilation reads. JSON, a line each:
 *
 *   {"format":1,"kiln":"0.1.0","machine":"x86-64-v4, AMD EPYC 9B45, …","threads":2}
 *   {"kernel":"conv2d padding=[1,1,1,1] of …, batch 1, relu","times":{"direct, tile of 14 pixels, …":412.5, …}}
 *
 * Times are microseconds. They hold for one version of Kiln and one machine: those of others are left out of account.
 */
#ifndef KILN_RUNTIME_SESSION_TUNING_FILE_H
#define KILN_RUNTIME_SESSION_TUNING_FILE_H

#include "base/diag.h"
#include "target.h"
#include "tuning.h"

/* The target as the first line of a file names it. */
const char *tuning_machine(const Target *target, Arena *arena);
/* Reads a file. Malformed lines are errors; another version or machine is a warning, and the table is then empty. */
bool tuning_read(const char *path, const Target *target, Arena *arena, Diag *diag, Tuning *out_tuning);
/* Writes a table, in place of what is there, in one step. */
bool tuning_write(const char *path, const Target *target, uint32_t threads, const Tuning *tuning, Arena *arena,
                  Diag *diag);
/* `base` with `more`: times of the latter replace those of the same candidate. */
Tuning tuning_merge(const Tuning *base, const Tuning *more, Arena *arena);

#endif
