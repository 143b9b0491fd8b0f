/* Large blocks: workspaces and prepared weights. */
#ifndef KILN_RUNTIME_SESSION_MEMORY_H
#define KILN_RUNTIME_SESSION_MEMORY_H

#include "base/arena.h"

/* Page-aligned memory from the allocator (malloc's when it has no functions), in huge pages where the system grants
 * them: a network streams through more memory than small pages can map at once. Contents are undefined. NULL when out
 * of memory. */
void *memory_allocate(const Allocator *allocator, size_t size);
void memory_release(const Allocator *allocator, void *pointer, size_t size);

/* The same, zeroed, released with `owner`. Never NULL: fails as the arena does. */
void *memory_blob(const Allocator *allocator, Arena *owner, size_t size);

#endif
