/* A set of names with what they stand for: open addressing, insertion only. */
#ifndef KILN_FRONTEND_NAMES_H
#define KILN_FRONTEND_NAMES_H

#include "base/arena.h"

typedef struct NameSlot {
  const char *name; /* not copied: must live as long as the table */
  uint64_t hash;
  void *value;
} NameSlot;

typedef struct NameTable {
  Arena *arena;
  NameSlot *slots; /* capacity is a power of two, at most half full */
  size_t count, capacity;
} NameTable;

void names_init(NameTable *table, Arena *arena);
/* The entry of the name `prefix` followed by `length` bytes of `name`, or NULL. Entries move when one is added. */
NameSlot *names_find_n(const NameTable *table, const char *prefix, const char *name, size_t length);
NameSlot *names_find(const NameTable *table, const char *name);
/* Adds a name that is not there yet. */
NameSlot *names_add(NameTable *table, const char *name, void *value);

#endif
