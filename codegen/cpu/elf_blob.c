/* Bytes as a relocatable ELF object. Going through LLVM IR would cost a constant of the blob's size in memory and time
 * several times over. */
#include <elf.h>
#include <string.h>

#include "base/checked.h"
#include "codegen.h"
#include "kiln_abi.h"

enum {
  SECTION_NULL,
  SECTION_DATA,
  SECTION_SYMBOLS,
  SECTION_STRINGS,
  SECTION_NAMES,
  SECTION_NOTE, /* its absence would mean that the stack must be executable */
  SECTION_COUNT
};

static const char section_names[] = "\0.rodata\0.symtab\0.strtab\0.shstrtab\0.note.GNU-stack";

static Elf64_Word name_of(const char *name) {
  size_t at = 1;
  while (strcmp(section_names + at, name) != 0) at += strlen(section_names + at) + 1;
  return (Elf64_Word)at;
}

/* Everything is little-endian, and so are all machines that this runs on. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs below are copied as they are");

bool elf_blob(const Target *target, const char *symbol, const void *data, size_t size, Arena *arena, Diag *diag,
              Code *out_object) {
  const size_t strings_size = strlen(symbol) + 2;
  const uint64_t data_at = KILN_ALIGNMENT;
  int64_t symbols_at, total;
  if (!checked_add((int64_t)data_at, (int64_t)size, &symbols_at) || size > INT64_MAX / 2 ||
      !checked_add(symbols_at, 4096 + (int64_t)strings_size, &total)) {
    diag_error(diag, (Location){0}, "weights of %zu bytes are too large to embed", size);
    return false;
  }
  symbols_at = round_up(symbols_at, 8);
  const Elf64_Sym symbols[2] = {
      {0},
      {.st_name = 1,
       .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT),
       .st_other = STV_HIDDEN,
       .st_shndx = SECTION_DATA,
       .st_size = size},
  };
  const uint64_t strings_at = (uint64_t)symbols_at + sizeof symbols, names_at = strings_at + strings_size;
  const uint64_t headers_at = (uint64_t)round_up((int64_t)(names_at + sizeof section_names), 8);
  const Elf64_Shdr headers[SECTION_COUNT] = {
      [SECTION_DATA] = {.sh_name = name_of(".rodata"),
                        .sh_type = SHT_PROGBITS,
                        .sh_flags = SHF_ALLOC,
                        .sh_offset = data_at,
                        .sh_size = size,
                        .sh_addralign = KILN_ALIGNMENT},
      [SECTION_SYMBOLS] = {.sh_name = name_of(".symtab"),
                           .sh_type = SHT_SYMTAB,
                           .sh_offset = (uint64_t)symbols_at,
                           .sh_size = sizeof symbols,
                           .sh_link = SECTION_STRINGS,
                           .sh_info = 1, /* the first global symbol */
                           .sh_addralign = 8,
                           .sh_entsize = sizeof(Elf64_Sym)},
      [SECTION_STRINGS] = {.sh_name = name_of(".strtab"),
                           .sh_type = SHT_STRTAB,
                           .sh_offset = strings_at,
                           .sh_size = strings_size,
                           .sh_addralign = 1},
      [SECTION_NAMES] = {.sh_name = name_of(".shstrtab"),
                         .sh_type = SHT_STRTAB,
                         .sh_offset = names_at,
                         .sh_size = sizeof section_names,
                         .sh_addralign = 1},
      [SECTION_NOTE] = {.sh_name = name_of(".note.GNU-stack"),
                        .sh_type = SHT_PROGBITS,
                        .sh_offset = names_at,
                        .sh_addralign = 1},
  };
  const Elf64_Ehdr head = {
      .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ELFOSABI_NONE},
      .e_type = ET_REL,
      .e_machine = strncmp(target->triple, "x86_64", 6) == 0 ? EM_X86_64 : EM_AARCH64,
      .e_version = EV_CURRENT,
      .e_shoff = headers_at,
      .e_ehsize = sizeof(Elf64_Ehdr),
      .e_shentsize = sizeof(Elf64_Shdr),
      .e_shnum = SECTION_COUNT,
      .e_shstrndx = SECTION_NAMES,
  };
  const size_t file_size = headers_at + sizeof headers;
  char *file = arena_alloc(arena, file_size, 1);
  memcpy(file, &head, sizeof head);
  if (size > 0) memcpy(file + data_at, data, size);
  memcpy(file + symbols_at, symbols, sizeof symbols);
  memcpy(file + strings_at + 1, symbol, strings_size - 1);
  memcpy(file + names_at, section_names, sizeof section_names);
  memcpy(file + headers_at, headers, sizeof headers);
  *out_object = (Code){file, file_size};
  return true;
}
