#include "names.h"

#include <string.h>

/* FNV-1a (Fowler, Noll, Vo), 64 bits, with a final mix because slots are taken from the low bits. */
static uint64_t hash_add(uint64_t hash, const char *bytes, size_t length) {
  for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static uint64_t hash_name(const char *prefix, const char *name, size_t length) {
  const uint64_t basis = UINT64_C(0xcbf29ce484222325);
  const uint64_t hash = hash_add(hash_add(basis, prefix, strlen(prefix)), name, length);
  return hash ^ (hash >> 32);
}

void names_init(NameTable *table, Arena *arena) { *table = (NameTable){.arena = arena}; }

NameSlot *names_find_n(const NameTable *table, const char *prefix, const char *name, size_t length) {
  if (table->count == 0) return NULL;
  const size_t prefix_length = strlen(prefix);
  const uint64_t hash = hash_name(prefix, name, length);
  for (size_t at = (size_t)hash;; at++) {
    NameSlot *entry = &table->slots[at & (table->capacity - 1)];
    if (!entry->name) return NULL;
    if (entry->hash == hash && strncmp(entry->name, prefix, prefix_length) == 0 &&
        strncmp(entry->name + prefix_length, name, length) == 0 && entry->name[prefix_length + length] == '\0') {
      return entry;
    }
  }
}

NameSlot *names_find(const NameTable *table, const char *name) { return names_find_n(table, "", name, strlen(name)); }

static NameSlot *free_slot(const NameTable *table, uint64_t hash) {
  size_t at = (size_t)hash;
  while (table->slots[at & (table->capacity - 1)].name) at++;
  return &table->slots[at & (table->capacity - 1)];
}

NameSlot *names_add(NameTable *table, const char *name, void *value) {
  if (table->count * 2 >= table->capacity) {
    const NameTable old = *table;
    table->capacity = old.capacity ? old.capacity * 2 : 16;
    table->slots = arena_array(table->arena, table->capacity, NameSlot);
    for (size_t i = 0; i < old.capacity; i++) {
      if (old.slots[i].name) *free_slot(table, old.slots[i].hash) = old.slots[i];
    }
  }
  const uint64_t hash = hash_name("", name, strlen(name));
  NameSlot *entry = free_slot(table, hash);
  *entry = (NameSlot){name, hash, value};
  table->count++;
  return entry;
}
