#include "loader.h"

#include <dlfcn.h>
#include <elf.h>
#include <string.h>

#include "base/file.h"
#include "base/text.h"

enum { LIBRARY_LIMIT_SHIFT = 34 }; /* 16 GiB */

static const char suffix[] = "_describe";

enum { SYMBOL_MAX = 1024 };

/* The file may be anything: every offset is checked against its size. False when there is no such symbol. */
static bool find_describe(const unsigned char *data, size_t size, char out_symbol[SYMBOL_MAX]) {
  Elf64_Ehdr head;
  if (size < sizeof head) return false;
  memcpy(&head, data, sizeof head);
  if (memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64) return false;
  if (head.e_shentsize != sizeof(Elf64_Shdr) || head.e_shoff > size) return false;
  if (head.e_shnum > (size - head.e_shoff) / sizeof(Elf64_Shdr)) return false;
  for (unsigned i = 0; i < head.e_shnum; i++) {
    Elf64_Shdr section, strings;
    memcpy(&section, data + head.e_shoff + i * sizeof section, sizeof section);
    if (section.sh_type != SHT_DYNSYM || section.sh_link >= head.e_shnum) continue;
    memcpy(&strings, data + head.e_shoff + section.sh_link * sizeof strings, sizeof strings);
    if (section.sh_offset > size || section.sh_size > size - section.sh_offset) return false;
    if (strings.sh_offset > size || strings.sh_size > size - strings.sh_offset) return false;
    for (size_t s = 0; s < section.sh_size / sizeof(Elf64_Sym); s++) {
      Elf64_Sym symbol;
      memcpy(&symbol, data + section.sh_offset + s * sizeof symbol, sizeof symbol);
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_name >= strings.sh_size) continue;
      const char *name = (const char *)data + strings.sh_offset + symbol.st_name;
      size_t length = strnlen(name, strings.sh_size - symbol.st_name);
      size_t tail = sizeof suffix - 1;
      if (length > tail && length < SYMBOL_MAX && length < strings.sh_size - symbol.st_name &&
          memcmp(name + length - tail, suffix, tail) == 0) {
        memcpy(out_symbol, name, length + 1);
        return true;
      }
    }
  }
  return false;
}

static void close_library(void *handle) { dlclose(handle); }

const kiln_program *library_open(const char *path, Arena *arena, Diag *diag, kiln_status *out_status) {
  Location place = {path, 0, 0};
  void *data;
  size_t size;
  *out_status = KILN_ERROR_INPUT;
  Arena *temporary = arena_create(NULL);
  if (temporary == NULL) {
    *out_status = KILN_ERROR_MEMORY;
    diag_error(diag, place, "out of memory");
    return NULL;
  }
  jmp_buf failure;
  if (setjmp(failure)) {
    arena_destroy(temporary);
    *out_status = KILN_ERROR_MEMORY;
    diag_error(diag, place, "out of memory while reading the library");
    return NULL;
  }
  arena_on_failure(temporary, &failure);
  char symbol[SYMBOL_MAX];
  bool readable = file_read(path, (size_t)1 << LIBRARY_LIMIT_SHIFT, temporary, diag, &data, &size);
  bool found = readable && find_describe(data, size, symbol);
  arena_destroy(temporary);
  if (!readable) {
    *out_status = KILN_ERROR_IO;
    return NULL;
  }
  if (!found) {
    diag_error(diag, place, "not a library compiled by kiln: no exported symbol ends in '%s'", suffix);
    return NULL;
  }
  /* dlopen searches for names without a slash */
  const char *file = strchr(path, '/') != NULL ? path : arena_format(arena, "./%s", path);
  void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == NULL) {
    diag_error(diag, place, "cannot be loaded: %s", dlerror());
    return NULL;
  }
  arena_defer(arena, close_library, handle);
  const kiln_program *(*describe)(void);
  void *address = dlsym(handle, symbol);
  memcpy(&describe, &address, sizeof describe);
  const kiln_program *program = address != NULL ? describe() : NULL;
  if (program == NULL || program->abi_version != KILN_ABI_VERSION || program->struct_size < sizeof(kiln_program)) {
    *out_status = KILN_ERROR_VERSION;
    diag_error(diag, place, "made for ABI version %u, expected %u", program != NULL ? program->abi_version : 0,
               KILN_ABI_VERSION);
    return NULL;
  }
  int check = program->check();
  if (check != KILN_OK) {
    *out_status = (kiln_status)check;
    diag_error(diag, place,
               "needs a processor with %s instructions, which this one lacks (code %d); compile with a lower --cpu",
               program->isa, check);
    return NULL;
  }
  *out_status = KILN_OK;
  return program;
}
