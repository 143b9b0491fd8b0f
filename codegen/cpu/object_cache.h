/* Compiled kernels on disk, so that the same kernel is not compiled twice.
 *
 * A folder holds one file per object, named by a hash of its key. The key is everything that the object depends on and
 * stands in the file in full: another key with the same hash is a miss, and so is a file that is damaged in any way.
 * Files are published by renaming, so that processes may share a folder; there is no lock. Nothing here is an error
 * of the compilation: what cannot be stored is compiled again next time. */
#ifndef KILN_CODEGEN_CPU_OBJECT_CACHE_H
#define KILN_CODEGEN_CPU_OBJECT_CACHE_H

#include "codegen.h"

enum { OBJECT_CACHE_BYTES = 256 << 20 }; /* of all files; past it the oldest go */

typedef struct ObjectCache ObjectCache;

/* `folder` is made when the first object is stored. The cache lives in `arena`. */
ObjectCache *object_cache_create(const char *folder, Arena *arena);

/* Any number of threads may look up and store at once. `scratch` is for temporaries. */
bool object_cache_load(ObjectCache *cache, const Code *key, Arena *scratch, Arena *arena, Code *out_object);
void object_cache_store(ObjectCache *cache, const Code *key, const Code *object, Arena *scratch);

/* When something was stored: removes the oldest files while all take more than `limit` bytes, and what processes that
 * died have left. Warns when something could not be stored, unless `diag` says so already. */
void object_cache_finish(ObjectCache *cache, int64_t limit, Arena *scratch, Diag *diag);

#endif
