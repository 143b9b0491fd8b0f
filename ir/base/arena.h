/* Region memory: everything that a graph, a plan or a pass allocates lives in an arena and dies with it.
 *
 * An allocation never returns NULL. When memory runs out the arena jumps to the failure point that the
 * owner of the operation set with arena_on_failure(); without one it would have nowhere to go, so every
 * entry into the library sets one. Things that are not memory (open files, LLVM objects) are registered
 * with arena_defer() and are released with the arena, on success and failure alike. */
#ifndef KILN_IR_BASE_ARENA_H
#define KILN_IR_BASE_ARENA_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Arena Arena;

/* Memory source. `context` is handed back unchanged. NULL functions mean malloc and free. */
typedef struct Allocator {
  void *(*allocate)(void *context, size_t size, size_t alignment);
  void (*release)(void *context, void *pointer, size_t size);
  void *context;
} Allocator;

/* Creates an empty arena; `allocator` may be NULL. Returns NULL when out of memory. Not thread-safe: one
 * thread uses an arena at a time. */
Arena *arena_create(const Allocator *allocator);
/* Runs the deferred releases in reverse order, then frees all memory. NULL is allowed. */
void arena_destroy(Arena *arena);
/* As destroy, but keeps the arena and one block for reuse. */
void arena_reset(Arena *arena);

/* Zeroed memory for `count` elements of `size` bytes, aligned to 16. A count of 0 gives a valid pointer.
 * Overflow of count*size counts as out of memory. */
void *arena_alloc(Arena *arena, size_t count, size_t size);
/* As arena_alloc for one block with a larger power-of-two alignment (up to 4096). */
void *arena_alloc_aligned(Arena *arena, size_t size, size_t alignment);
/* Copies `size` bytes. */
void *arena_copy(Arena *arena, const void *data, size_t size);
/* Copies a C string, or the first `length` bytes of one, and terminates it. */
char *arena_string(Arena *arena, const char *text);
char *arena_string_n(Arena *arena, const char *text, size_t length);
/* printf into the arena. */
char *arena_format(Arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Calls release(object) when the arena is destroyed or reset; at once when there is no memory to note it. */
void arena_defer(Arena *arena, void (*release)(void *object), void *object);

/* Where arena_alloc jumps (longjmp with value 1) when memory runs out. Returns the previous point, to be
 * restored on leaving. NULL makes a failure abort, which only tests may want. */
jmp_buf *arena_on_failure(Arena *arena, jmp_buf *point);
/* Jumps there, as running out of memory does: for memory that another allocator failed to give. */
_Noreturn void arena_fail(Arena *arena);

/* Bytes handed out so far. */
size_t arena_used(const Arena *arena);

#define arena_new(arena, Type) ((Type *)arena_alloc((arena), 1, sizeof(Type)))
#define arena_array(arena, count, Type) ((Type *)arena_alloc((arena), (count), sizeof(Type)))

#endif
