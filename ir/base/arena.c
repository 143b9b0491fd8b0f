#include "base/arena.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

#if defined(__SANITIZE_ADDRESS__) /* gcc */
#define ARENA_SANITIZED 1
#elif defined(__has_feature) /* clang */
#if __has_feature(address_sanitizer)
#define ARENA_SANITIZED 1
#endif
#endif

#ifdef ARENA_SANITIZED
#include <sanitizer/asan_interface.h>
/* Unused memory of a block is poisoned, and every object is followed by this many poisoned bytes, so that a
 * step past an arena object is reported like one past a malloc object. */
enum { RED_ZONE = 16 };
#else
#define ASAN_POISON_MEMORY_REGION(address, size)   ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
enum { RED_ZONE = 0 };
#endif

enum { FIRST_BLOCK = 16 << 10, LARGEST_BLOCK = 4 << 20, MINIMUM_ALIGNMENT = 16 };

/* Header of a block; the bytes follow it. Bytes from `used` on have never been handed out and are zero. */
typedef struct Block {
  struct Block *next;
  size_t capacity; /* bytes after the header */
  size_t used;
} Block;

typedef struct Deferred {
  struct Deferred *next;
  void (*release)(void *object);
  void *object;
} Deferred;

struct Arena {
  Allocator allocator;
  Block *blocks; /* the first is the one being filled; large objects have their own behind it */
  Deferred *deferred;
  jmp_buf *failure;
  size_t next_block, used;
};

static void *memory_obtain(const Allocator *allocator, size_t size) {
  if (!allocator->allocate) return calloc(1, size); /* untouched pages stay untouched */
  void *memory = allocator->allocate(allocator->context, size, MINIMUM_ALIGNMENT);
  if (memory) memset(memory, 0, size);
  return memory;
}

static void memory_release(const Allocator *allocator, void *memory, size_t size) {
  if (allocator->release) {
    allocator->release(allocator->context, memory, size);
  } else if (!allocator->allocate) {
    free(memory);
  }
}

static unsigned char *block_data(Block *block) { return (unsigned char *)(block + 1); }

static void block_release(Arena *arena, Block *block) {
  ASAN_UNPOISON_MEMORY_REGION(block_data(block), block->capacity);
  memory_release(&arena->allocator, block, sizeof(Block) + block->capacity);
}

Arena *arena_create(const Allocator *allocator) {
  const Allocator source = allocator ? *allocator : (Allocator){NULL, NULL, NULL};
  Arena *arena = memory_obtain(&source, sizeof(Arena));
  if (!arena) return NULL;
  arena->allocator = source;
  arena->next_block = FIRST_BLOCK;
  return arena;
}

static void run_deferred(Arena *arena) {
  while (arena->deferred) {
    Deferred *deferred = arena->deferred;
    arena->deferred = deferred->next;
    deferred->release(deferred->object);
  }
}

void arena_destroy(Arena *arena) {
  if (!arena) return;
  run_deferred(arena);
  for (Block *block = arena->blocks, *next; block; block = next) {
    next = block->next;
    block_release(arena, block);
  }
  const Allocator source = arena->allocator;
  memory_release(&source, arena, sizeof(Arena));
}

void arena_reset(Arena *arena) {
  run_deferred(arena);
  Block *kept = NULL;
  for (Block *block = arena->blocks, *next; block; block = next) {
    next = block->next;
    /* The block being filled is kept, unless it is a large object's own. */
    if (!kept && block->capacity <= LARGEST_BLOCK) {
      kept = block;
    } else {
      block_release(arena, block);
    }
  }
  if (kept) {
    ASAN_UNPOISON_MEMORY_REGION(block_data(kept), kept->capacity);
    memset(block_data(kept), 0, kept->used);
    ASAN_POISON_MEMORY_REGION(block_data(kept), kept->capacity);
    kept->used = 0;
    kept->next = NULL;
  }
  arena->blocks = kept;
  arena->used = 0;
}

static void *block_take(Block *block, size_t size, size_t alignment) {
  const uintptr_t base = (uintptr_t)block_data(block);
  const uintptr_t start = (base + block->used + alignment - 1) & ~(uintptr_t)(alignment - 1);
  const size_t offset = (size_t)(start - base);
  if (offset > block->capacity || block->capacity - offset < size + RED_ZONE) return NULL;
  block->used = offset + size + RED_ZONE;
  ASAN_UNPOISON_MEMORY_REGION(block_data(block) + offset, size);
  return block_data(block) + offset;
}

static void *try_alloc(Arena *arena, size_t size, size_t alignment) {
  if (size > SIZE_MAX / 4) return NULL;
  void *memory = arena->blocks ? block_take(arena->blocks, size, alignment) : NULL;
  if (!memory) {
    const size_t needed = size + alignment + RED_ZONE;
    const bool own_block = needed > arena->next_block / 4;
    const size_t capacity = own_block ? needed : arena->next_block;
    Block *block = memory_obtain(&arena->allocator, sizeof(Block) + capacity);
    if (!block) return NULL;
    block->capacity = capacity;
    ASAN_POISON_MEMORY_REGION(block_data(block), capacity);
    if (own_block && arena->blocks) {
      block->next = arena->blocks->next;
      arena->blocks->next = block;
    } else {
      block->next = arena->blocks;
      arena->blocks = block;
    }
    if (!own_block && arena->next_block < LARGEST_BLOCK) arena->next_block *= 2;
    memory = block_take(block, size, alignment);
  }
  if (memory) arena->used += size;
  return memory;
}

void arena_fail(Arena *arena) {
  if (arena->failure) longjmp(*arena->failure, 1);
  abort();
}

void *arena_alloc_aligned(Arena *arena, size_t size, size_t alignment) {
  void *memory = try_alloc(arena, size ? size : 1, alignment > MINIMUM_ALIGNMENT ? alignment : MINIMUM_ALIGNMENT);
  if (!memory) arena_fail(arena);
  return memory;
}

void *arena_alloc(Arena *arena, size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes)) arena_fail(arena);
  return arena_alloc_aligned(arena, bytes, MINIMUM_ALIGNMENT);
}

void *arena_copy(Arena *arena, const void *data, size_t size) {
  void *copy = arena_alloc(arena, size, 1);
  if (size) memcpy(copy, data, size);
  return copy;
}

char *arena_string(Arena *arena, const char *text) { return arena_copy(arena, text, strlen(text) + 1); }

char *arena_string_n(Arena *arena, const char *text, size_t length) {
  const char *end = memchr(text, 0, length);
  if (end) length = (size_t)(end - text);
  if (length == SIZE_MAX) arena_fail(arena);
  char *copy = arena_alloc(arena, length + 1, 1);
  memcpy(copy, text, length);
  return copy;
}

char *arena_format(Arena *arena, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int length = format_v(NULL, 0, format, arguments);
  va_end(arguments);
  if (length < 0) arena_fail(arena);
  char *text = arena_alloc(arena, (size_t)length + 1, 1);
  va_start(arguments, format);
  format_v(text, (size_t)length + 1, format, arguments);
  va_end(arguments);
  return text;
}

void arena_defer(Arena *arena, void (*release)(void *object), void *object) {
  Deferred *deferred = try_alloc(arena, sizeof(Deferred), MINIMUM_ALIGNMENT);
  if (!deferred) {
    release(object);
    arena_fail(arena);
  }
  *deferred = (Deferred){arena->deferred, release, object};
  arena->deferred = deferred;
}

jmp_buf *arena_on_failure(Arena *arena, jmp_buf *point) {
  jmp_buf *previous = arena->failure;
  arena->failure = point;
  return previous;
}

size_t arena_used(const Arena *arena) { return arena->used; }
