#include "guarded.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct Block {
  struct Block *next;
  void *pointer, *mapping;
  size_t mapped;
} Block;

static Block *blocks;

static void fail(const char *what) {
  fprintf(stderr, "guarded memory: %s\n", what);
  abort();
}

void *guarded_alloc(size_t bytes, bool at_end) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t inside = (bytes + page - 1) / page * page;
  size_t mapped = inside + 2 * page;
  char *mapping = mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) fail("mmap failed");
  if (inside > 0 && mprotect(mapping + page, inside, PROT_READ | PROT_WRITE) != 0) fail("mprotect failed");
  memset(mapping + page, 0xFF, inside);
  Block *block = malloc(sizeof *block);
  if (block == NULL) fail("out of memory");
  *block = (Block){blocks, mapping + page + (at_end ? inside - bytes : 0), mapping, mapped};
  blocks = block;
  return block->pointer;
}

void guarded_free(void *pointer) {
  if (pointer == NULL) return;
  Block **link = &blocks;
  while (*link != NULL && (*link)->pointer != pointer) link = &(*link)->next;
  Block *block = *link;
  if (block == NULL) fail("freed a pointer that was not allocated");
  *link = block->next;
  munmap(block->mapping, block->mapped);
  free(block);
}
