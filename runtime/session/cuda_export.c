/* Libraries for GPUs: the tables of a program in memory become data of an object, pointers and all, beside entry points
 * that hand them to the launcher (runtime/core/cuda_library.h), whose object Kiln carries along. */
#include "cuda_export.h"

#include <stddef.h>
#include <string.h>

#include "base/checked.h"
#include "core/cuda_library.h"
#include "cuda/nvrtc.h"

/* Made by the build: launcher_blob.c. */
extern const unsigned char cuda_launcher_begin[], cuda_launcher_end[];

/* --- data with pointers ------------------------------------------------------------------------------ */

/* A pointer in the data: to the data itself, or to a symbol. */
typedef struct Link {
  const char *symbol; /* NULL: the data */
  int64_t offset;
  bool set;
} Link;

/* 8 bytes are a number or a pointer. */
typedef struct Image {
  Arena *arena;
  uint64_t *words;
  Link *links; /* by word */
  size_t count, capacity;
} Image;

enum { WORD = sizeof(uint64_t) };

static void image_reserve(Image *image, size_t words) {
  if (image->count + words <= image->capacity) return;
  const size_t capacity = 2 * (image->count + words) + 1024;
  uint64_t *grown = arena_array(image->arena, capacity, uint64_t);
  Link *links = arena_array(image->arena, capacity, Link);
  if (image->count > 0) {
    memcpy(grown, image->words, image->count * sizeof *grown);
    memcpy(links, image->links, image->count * sizeof *links);
  }
  image->words = grown;
  image->links = links;
  image->capacity = capacity;
}

/* Appends a copy; returns its offset in bytes. Pointers in it are garbage until they are linked. */
static size_t image_add(Image *image, const void *data, size_t size) {
  const size_t words = (size + WORD - 1) / WORD, at = image->count * WORD;
  image_reserve(image, words + 1);
  if (size > 0) memcpy(&image->words[image->count], data, size);
  image->count += words;
  return at;
}

static void image_link_symbol(Image *image, size_t at, const char *symbol, int64_t offset) {
  image->links[at / WORD] = (Link){symbol, offset, true};
}

static void image_link(Image *image, size_t at, size_t target) { image_link_symbol(image, at, NULL, (int64_t)target); }

static void image_clear(Image *image, size_t at) { image->words[at / WORD] = 0; }

static void image_link_string(Image *image, size_t at, const char *string) {
  image_link(image, at, image_add(image, string, strlen(string) + 1));
}

static void image_print(Text *text, const Image *image, const char *name) {
  text_format(text, "@%s = internal constant {", name);
  for (size_t i = 0; i < image->count; i++)
    text_add(text, image->links[i].set ? (i ? ",ptr" : "ptr") : (i ? ",i64" : "i64"));
  text_add(text, "} {");
  for (size_t i = 0; i < image->count; i++) {
    const Link *link = &image->links[i];
    text_add(text, i % 4 == 0 ? "\n  " : " ");
    if (!link->set)
      text_format(text, "i64 %lld", (long long)image->words[i]);
    else
      text_format(text, "ptr getelementptr (i8, ptr @%s, i64 %lld)", link->symbol != NULL ? link->symbol : name,
                  (long long)link->offset);
    if (i + 1 < image->count) text_add(text, ",");
  }
  text_add(text, "\n}, align 64\n");
}

/* --- the tables -------------------------------------------------------------------------------------- */

static size_t add_ports(Image *image, const kiln_port *ports, size_t count) {
  const size_t at = image_add(image, ports, count * sizeof *ports);
  for (size_t i = 0; i < count; i++)
    image_link_string(image, at + i * sizeof *ports + offsetof(kiln_port, name), ports[i].name);
  return at;
}

static size_t add_steps(Image *image, const kiln_step *steps, size_t count) {
  const size_t at = image_add(image, steps, count * sizeof *steps);
  for (size_t i = 0; i < count; i++) {
    const size_t step = at + i * sizeof *steps;
    image_clear(image, step + offsetof(kiln_step, kernel));
    image_link_string(image, step + offsetof(kiln_step, name), steps[i].name);
    image_link_string(image, step + offsetof(kiln_step, kind), steps[i].kind);
    const size_t operands = image_add(image, steps[i].operands, steps[i].operand_count * sizeof(kiln_operand));
    image_link(image, step + offsetof(kiln_step, operands), operands);
  }
  return at;
}

static size_t add_launches(Image *image, const CudaStepLaunches *launches, size_t count) {
  const size_t at = image_add(image, launches, count * sizeof *launches);
  for (size_t i = 0; i < count; i++) {
    const size_t items = image_add(image, launches[i].items, launches[i].count * sizeof(CudaRunLaunch));
    image_link(image, at + i * sizeof *launches + offsetof(CudaStepLaunches, items), items);
    for (size_t l = 0; l < launches[i].count; l++)
      image_link_string(image, items + l * sizeof(CudaRunLaunch) + offsetof(CudaRunLaunch, function),
                        launches[i].items[l].function);
  }
  return at;
}

/* Machine code and PTX of all kernels in one blob. */
typedef struct Pack {
  unsigned char *data;
  size_t size;
} Pack;

static size_t pack_add(Pack *pack, const void *data, size_t size) {
  const size_t at = pack->size;
  memcpy(pack->data + at, data, size);
  pack->size += (size_t)round_up((int64_t)size, KILN_ALIGNMENT);
  return at;
}

static size_t add_images(Image *image, const CudaTables *tables, const char *symbol, Arena *arena, Pack *out_pack) {
  size_t total = 1;
  for (uint32_t i = 0; i < tables->image_count; i++) {
    const CudaImage *from = &tables->images[i];
    total += from->size + (from->ptx != NULL ? strlen(from->ptx) + 1 : 0) + 2 * KILN_ALIGNMENT;
  }
  *out_pack = (Pack){arena_alloc_aligned(arena, total, KILN_ALIGNMENT), 0};
  const size_t at = image_add(image, tables->images, tables->image_count * sizeof(CudaImage));
  for (uint32_t i = 0; i < tables->image_count; i++) {
    const CudaImage *from = &tables->images[i];
    const size_t row = at + i * sizeof *from;
    image_clear(image, row + offsetof(CudaImage, ptx));
    if (from->data == NULL) continue;
    image_link_symbol(image, row + offsetof(CudaImage, data), symbol,
                      (int64_t)pack_add(out_pack, from->data, from->size));
    if (from->ptx != NULL)
      image_link_symbol(image, row + offsetof(CudaImage, ptx), symbol,
                        (int64_t)pack_add(out_pack, from->ptx, strlen(from->ptx) + 1));
  }
  return at;
}

/* What the entry points refer to. */
typedef struct Export {
  const CudaTables *tables;
  const char *symbol;            /* net */
  const void *const *parameters; /* to embed, in table order; NULL: none */
  Arena *arena;
  Pack images, weights;
  size_t program, library; /* places in the data */
} Export;

static const char *name_of(const Export *export, const char *suffix) {
  return arena_format(export->arena, "%s_%s", export->symbol, suffix);
}

/* Offsets of the embedded parameters; packs their values. */
static size_t add_weights(Export *export, Image *image) {
  const kiln_program *program = export->tables->program;
  int64_t *offsets = arena_array(export->arena, program->parameter_count + 1, int64_t), total = 1;
  for (uint32_t i = 0; i < program->parameter_count; i++) total += program->parameters[i].bytes + KILN_ALIGNMENT;
  export->weights = (Pack){arena_alloc_aligned(export->arena, (size_t)total, KILN_ALIGNMENT), 0};
  for (uint32_t i = 0; i < program->parameter_count; i++)
    offsets[i] = export->parameters[i] == NULL
                     ? -1
                     : (int64_t)pack_add(&export->weights, export->parameters[i], (size_t)program->parameters[i].bytes);
  return image_add(image, offsets, ((size_t)program->parameter_count + 1) * sizeof *offsets);
}

static size_t add_program(Export *export, Image *image) {
  const kiln_program *from = export->tables->program;
  const size_t at = image_add(image, from, sizeof *from);
  image_link_string(image, at + offsetof(kiln_program, name), from->name);
  image_link_string(image, at + offsetof(kiln_program, kiln_version), from->kiln_version);
  image_link_string(image, at + offsetof(kiln_program, isa), from->isa);
  image_link_string(image, at + offsetof(kiln_program, triple), from->triple);
  image_link_string(image, at + offsetof(kiln_program, metadata), from->metadata);
  const size_t outputs = add_ports(image, from->outputs, from->output_count);
  image_link(image, at + offsetof(kiln_program, inputs), add_ports(image, from->inputs, from->input_count));
  image_link(image, at + offsetof(kiln_program, outputs), outputs);
  image_link(image, at + offsetof(kiln_program, parameters), add_ports(image, from->parameters, from->parameter_count));
  image_clear(image, at + offsetof(kiln_program, hooks));
  if (from->hook_count > 0)
    image_link(image, at + offsetof(kiln_program, hooks),
               outputs + (from->output_count - from->hook_count) * sizeof(kiln_port));
  image_link(image, at + offsetof(kiln_program, prepare_steps),
             add_steps(image, from->prepare_steps, from->prepare_step_count));
  image_link(image, at + offsetof(kiln_program, run_steps), add_steps(image, from->run_steps, from->run_step_count));
  const size_t slots = image_add(image, from->slots, from->slot_count * sizeof(kiln_slot));
  for (uint32_t i = 0; i < from->slot_count; i++)
    image_link_string(image, slots + i * sizeof(kiln_slot) + offsetof(kiln_slot, name), from->slots[i].name);
  image_link(image, at + offsetof(kiln_program, slots), slots);
  image_link_symbol(image, at + offsetof(kiln_program, check), name_of(export, "check"), 0);
  image_link_symbol(image, at + offsetof(kiln_program, prepare), name_of(export, "prepare"), 0);
  image_link_symbol(image, at + offsetof(kiln_program, run), name_of(export, "run"), 0);
  return at;
}

static void build_image(Export *export, Image *image) {
  const CudaTables *tables = export->tables;
  const size_t steps = (size_t)tables->program->prepare_step_count + tables->program->run_step_count;
  export->program = add_program(export, image);
  const size_t table = image_add(image, tables, sizeof *tables);
  image_link(image, table + offsetof(CudaTables, program), export->program);
  image_link(image, table + offsetof(CudaTables, images),
             add_images(image, tables, name_of(export, "images"), export->arena, &export->images));
  image_link(image, table + offsetof(CudaTables, launches), add_launches(image, tables->launches, steps));
  const CudaLibrary library = {NULL, NULL, NULL};
  export->library = image_add(image, &library, sizeof library);
  image_link(image, export->library + offsetof(CudaLibrary, tables), table);
  if (export->parameters != NULL) {
    image_link_symbol(image, export->library + offsetof(CudaLibrary, embedded), name_of(export, "embedded_weights"), 0);
    image_link(image, export->library + offsetof(CudaLibrary, embedded_offsets), add_weights(export, image));
  }
  image_link(image, export->program + offsetof(kiln_program, embedded), export->library);
}

/* --- entry points ------------------------------------------------------------------------------------ */

/* $ stands for the model's symbol, ~ for the library's tables, ^ for its description. */
static const char entry_points[] =
    "declare hidden i32 @kiln_cuda_weights_embedded(ptr, ptr)\n"
    "declare hidden i32 @kiln_cuda_weights_prepare(ptr, ptr, ptr)\n"
    "declare hidden void @kiln_cuda_weights_release(ptr)\n"
    "declare hidden i32 @kiln_cuda_run(ptr, ptr, ptr, ptr)\n"
    "declare hidden ptr @kiln_cuda_message()\n"
    "define i32 @$_check() {\n  ret i32 0\n}\n"
    "define hidden i32 @$_prepare(ptr %p, ptr %b, ptr %s, ptr %io) {\n  ret i32 10\n}\n" /* KILN_ERROR_UNSUPPORTED */
    "define i32 @$_weights_prepare(ptr %weights, ptr %parameters, ptr %b, ptr %s, ptr %io) {\n"
    "  %status = tail call i32 @kiln_cuda_weights_prepare(ptr ~, ptr %weights, ptr %parameters)\n"
    "  ret i32 %status\n}\n"
    "define i32 @$_weights_embedded(ptr %weights) {\n"
    "  %status = tail call i32 @kiln_cuda_weights_embedded(ptr ~, ptr %weights)\n"
    "  ret i32 %status\n}\n"
    "define void @$_weights_release(ptr %weights) {\n"
    "  tail call void @kiln_cuda_weights_release(ptr %weights)\n  ret void\n}\n"
    "define i32 @$_run(ptr %weights, ptr %workspace, ptr %io) {\n"
    "  %status = tail call i32 @kiln_cuda_run(ptr ~, ptr %weights, ptr %workspace, ptr %io)\n"
    "  ret i32 %status\n}\n"
    "define ptr @$_message() {\n  %text = tail call ptr @kiln_cuda_message()\n  ret ptr %text\n}\n"
    "define ptr @$_describe() {\n  ret ptr ^\n}\n";

/* Of a training step, instead of a run by itself. */
static const char step_entry[] =
    "declare hidden i32 @kiln_cuda_step(ptr, ptr, ptr, ptr, ptr)\n"
    "define i32 @$_step(ptr %weights, ptr %state, ptr %workspace, ptr %io) {\n"
    "  %status = tail call i32 @kiln_cuda_step(ptr ~, ptr %weights, ptr %state, ptr %workspace, ptr %io)\n"
    "  ret i32 %status\n}\n";

static void print_entry_points(Text *text, const Export *export, const char *source) {
  const char *data = name_of(export, "data");
  for (const char *at = source; *at != '\0'; at++) {
    if (*at == '$')
      text_add(text, export->symbol);
    else if (*at == '~' || *at == '^')
      text_format(text, "getelementptr (i8, ptr @%s, i64 %zu)", data, *at == '~' ? export->library : export->program);
    else
      text_add_n(text, at, 1);
  }
}

static bool build_tables_object(Export *export, const Target *host, Diag *diag, Code *out_object) {
  Image image = {.arena = export->arena};
  Text text;
  text_init(&text, export->arena);
  build_image(export, &image);
  text_format(&text, "@%s = external hidden global i8\n@%s = external hidden global i8\n", name_of(export, "images"),
              name_of(export, "embedded_weights"));
  image_print(&text, &image, name_of(export, "data"));
  print_entry_points(&text, export, entry_points);
  if (export->tables->program->slot_count > 0) print_entry_points(&text, export, step_entry);
  return ir_object(text.data, host, export->arena, diag, out_object);
}

/* --- libraries --------------------------------------------------------------------------------------- */

bool cuda_export_objects(const CudaTables *tables, const char *symbol, const void *const *parameters,
                         const Target *host, Arena *arena, Diag *diag, Code **out_objects, size_t *out_count) {
  enum { OBJECTS = 4 };
  Export export = {.tables = tables, .symbol = symbol, .parameters = parameters, .arena = arena};
  Code *objects = arena_array(arena, OBJECTS, Code);
  size_t count = 0;
  if (!build_tables_object(&export, host, diag, &objects[count++])) return false;
  if (!elf_blob(host, name_of(&export, "images"), export.images.data, export.images.size, arena, diag,
                &objects[count++]))
    return false;
  if (parameters != NULL && !elf_blob(host, name_of(&export, "embedded_weights"), export.weights.data,
                                      export.weights.size, arena, diag, &objects[count++]))
    return false;
  const size_t size = (size_t)(cuda_launcher_end - cuda_launcher_begin);
  objects[count++] = (Code){arena_copy(arena, cuda_launcher_begin, size), size};
  *out_objects = objects;
  *out_count = count;
  return true;
}

static bool add_ptx(const Plan *plan, const CudaProgramText *text, const NvrtcOptions *options, CudaTables *tables,
                    Arena *arena, Diag *diag) {
  NvrtcOptions ptx = *options;
  Code *codes;
  ptx.ptx = true;
  if (!nvrtc_compile(plan, text, &ptx, arena, diag, &codes)) return false;
  CudaImage *images = arena_array(arena, tables->image_count + 1, CudaImage);
  memcpy(images, tables->images, tables->image_count * sizeof *images);
  for (uint32_t i = 0; i < tables->image_count; i++)
    if (images[i].data != NULL) images[i].ptx = codes[i].data;
  tables->images = images;
  return true;
}

bool cuda_export_library(const Plan *plan, const kiln_compile_options *options, const void *const *parameters,
                         const char *path, Arena *scratch, Diag *diag) {
  const NvrtcOptions nvrtc = {
      .arch = plan->target->isa, .threads = (int32_t)options->threads, .cache_dir = options->cache_dir};
  CudaProgramText text;
  CudaTables *tables;
  Code *images, *objects;
  Target host;
  size_t count;
  if (!cpu_target("x86-64-v2", options->triple, scratch, diag, &host)) return false;
  if (!cuda_generate(plan, scratch, diag, &text) || !nvrtc_compile(plan, &text, &nvrtc, scratch, diag, &images) ||
      !cuda_tables_build(plan, &text, images, scratch, diag, &tables) ||
      !add_ptx(plan, &text, &nvrtc, tables, scratch, diag))
    return false;
  const char *symbol = symbol_from_name(plan->name, scratch);
  if (!cuda_export_objects(tables, symbol, parameters, &host, scratch, diag, &objects, &count)) return false;
  return link_host_objects(&host, objects, count, arena_format(scratch, "lib%s.so", symbol), path, scratch, diag);
}

void cuda_export_header(Text *text, const Plan *plan, bool embedded) {
  /* only the address of the workspace counts */
  Plan shown = *plan;
  shown.workspace_fixed = KILN_ALIGNMENT;
  shown.workspace_per_batch = shown.prepared_bytes = shown.prepare_scratch = 0;
  const CpuObjects objects = {.symbol = symbol_from_name(plan->name, text->arena)};
  header_print(text, &shown, &objects, embedded ? WEIGHTS_EMBED : WEIGHTS_CALLER, 0);
}
