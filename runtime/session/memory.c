#include "memory.h"

#include <stdbool.h>
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
  bool mapped; /* by the system; else the allocator's */
} Blob;

static void blob_release(void *argument) {
  const Blob *blob = argument;
  if (blob->mapped)
    munmap(blob->memory, blob->size);
  else
    memory_release(&blob->allocator, blob->memory, blob->size);
}

/* Large blocks come from the system, zeroed as they are first touched: by the threads that fill them, and not before. */
static bool map_blob(Blob *blob) {
  if (blob->allocator.allocate != NULL || blob->size < HUGE_FROM || blob->size > SIZE_MAX - HUGE_PAGE) return false;
  const size_t rounded = (blob->size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  char *memory = mmap(NULL, rounded + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  const size_t before = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
  if (before > 0) munmap(memory, before);
  munmap(memory + before + rounded, HUGE_PAGE - before);
  blob->memory = memory + before;
  blob->size = rounded;
#ifdef MADV_HUGEPAGE
  madvise(blob->memory, blob->size, MADV_HUGEPAGE); /* only a hint */
#endif
  return true;
}

void *memory_blob(const Allocator *allocator, Arena *owner, size_t size) {
  Blob *blob = arena_new(owner, Blob);
  *blob = (Blob){*allocator, NULL, size > 0 ? size : 1, false};
  arena_defer(owner, blob_release, blob);
  blob->mapped = map_blob(blob);
  if (blob->mapped) return blob->memory;
  blob->memory = memory_allocate(allocator, blob->size);
  if (blob->memory == NULL) arena_fail(owner);
  return memset(blob->memory, 0, blob->size);
}
