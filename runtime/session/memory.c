#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, HUGE_FROM = 4 << 20 };

void *memory_allocate(const Allocator *allocator, size_t size) {
  if (size > SIZE_MAX - HUGE_PAGE) return NULL;
  size_t alignment = size >= HUGE_FROM ? HUGE_PAGE : PAGE;
  void *memory;
  if (allocator->allocate != NULL)
    memory = allocator->allocate(allocator->context, size, alignment);
  else
    memory = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
#ifdef MADV_HUGEPAGE
  if (memory != NULL && size >= HUGE_FROM) madvise(memory, size, MADV_HUGEPAGE); /* only a hint */
#endif
  return memory;
}

void memory_release(const Allocator *allocator, void *pointer, size_t size) {
  if (pointer == NULL) return;
  if (allocator->allocate == NULL)
    free(pointer);
  else
    allocator->release(allocator->context, pointer, size);
}

typedef struct Blob {
  Allocator allocator;
  void *memory;
  size_t size;
} Blob;

static void blob_release(void *argument) {
  const Blob *blob = argument;
  memory_release(&blob->allocator, blob->memory, blob->size);
}

void *memory_blob(const Allocator *allocator, Arena *owner, size_t size) {
  Blob *blob = arena_new(owner, Blob);
  *blob = (Blob){*allocator, NULL, size > 0 ? size : 1};
  arena_defer(owner, blob_release, blob);
  blob->memory = memory_allocate(allocator, blob->size);
  if (blob->memory == NULL) arena_fail(owner);
  return memset(blob->memory, 0, blob->size);
}
