/* A table of names, for looking things up in constant time. Lives in an arena, grows by doubling. */
#ifndef KILN_IR_NAME_MAP_H
#define KILN_IR_NAME_MAP_H

#include "base/arena.h"

typedef struct NameEntry {
  const char *name; /* NULL: free */
  const void *value;
} NameEntry;

typedef struct NameMap {
  Arena *arena;
  NameEntry *entries;
  size_t count, capacity; /* capacity is a power of two, or 0 */
} NameMap;

void name_map_init(NameMap *map, Arena *arena);
/* Notes a value, not NULL, under a name, which must live as long as the map. When the name is taken nothing changes
 * and the value that has it is returned, else NULL. */
const void *name_map_add(NameMap *map, const char *name, const void *value);
/* NULL when there is none. */
const void *name_map_find(const NameMap *map, const char *name);

#endif
