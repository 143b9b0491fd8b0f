#include "name_map.h"

#include <string.h>

void name_map_init(NameMap *map, Arena *arena) { *map = (NameMap){.arena = arena}; }

/* FNV-1a, 64 bits. */
static size_t hash_name(const char *name) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (; *name; name++) hash = (hash ^ (unsigned char)*name) * UINT64_C(0x100000001b3);
  return (size_t)(hash ^ hash >> 32);
}

/* The entry of the name, or the free one where it belongs: linear probing. */
static NameEntry *find_entry(const NameMap *map, const char *name) {
  size_t at = hash_name(name) & (map->capacity - 1);
  while (map->entries[at].name && strcmp(map->entries[at].name, name) != 0) at = (at + 1) & (map->capacity - 1);
  return &map->entries[at];
}

static void grow(NameMap *map) {
  const NameMap old = *map;
  map->capacity = old.capacity ? old.capacity * 2 : 64;
  map->entries = arena_array(map->arena, map->capacity, NameEntry);
  for (size_t i = 0; i < old.capacity; i++) {
    if (old.entries[i].name) *find_entry(map, old.entries[i].name) = old.entries[i];
  }
}

const void *name_map_add(NameMap *map, const char *name, const void *value) {
  if (map->count * 2 >= map->capacity) grow(map);
  NameEntry *entry = find_entry(map, name);
  if (entry->name) return entry->value;
  *entry = (NameEntry){name, value};
  map->count++;
  return NULL;
}

const void *name_map_find(const NameMap *map, const char *name) {
  return map->capacity ? find_entry(map, name)->value : NULL;
}
