/* NAME.h, the C header of a compiled library. It holds the text of kiln_abi.h, so that a host needs nothing else. */
#include <string.h>

#include "codegen.h"
#include "kiln_abi.h"
#include "texts.h"

typedef struct Header {
  Text *text;
  const Plan *plan;
  const char *symbol, *macro; /* net, NET */
  WeightsMode mode;
  uint32_t max_threads;
  int64_t scratch_bytes;
  const char **members; /* of the io struct: inputs, then outputs */
  const char **parameters;
} Header;

/* --- names -------------------------------------------------------------------------------------------- */

static const char *upper_case(const char *name, Arena *arena) {
  char *upper = arena_string(arena, name);
  for (char *at = upper; *at != '\0'; at++) {
    if (*at >= 'a' && *at <= 'z') *at = (char)(*at - 'a' + 'A');
  }
  return upper;
}

static bool is_keyword(const char *name) {
  static const char *const words[] = {
      "auto",    "bool",      "break",   "case",     "catch",    "char",         "class",     "const",    "continue",
      "default", "delete",    "do",      "double",   "else",     "enum",         "explicit",  "export",   "extern",
      "false",   "float",     "for",     "friend",   "goto",     "if",           "inline",    "int",      "long",
      "mutable", "namespace", "new",     "operator", "private",  "public",       "protected", "register", "restrict",
      "return",  "short",     "signed",  "sizeof",   "static",   "struct",       "switch",    "template", "this",
      "throw",   "true",      "try",     "typedef",  "typename", "union",        "unsigned",  "using",    "virtual",
      "void",    "volatile",  "while",   "and",      "or",       "not",          "xor",       "alignas",  "alignof",
      "asm",     "nullptr",   "concept", "requires", "typeof",   "thread_local",
  };
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    if (strcmp(words[i], name) == 0) return true;
  }
  return false;
}

static bool is_taken(const char *const *names, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++) {
    if (strcmp(names[i], name) == 0) return true;
  }
  return false;
}

/* Identifiers are unique after `count` earlier ones; "a.b" after "a_b" becomes a_b_2. */
static void add_member(const char **names, size_t count, const char *port, Arena *arena) {
  const char *base = symbol_from_name(port, arena), *name = base;
  bool reserved = is_keyword(base) || strcmp(base, "head") == 0;
  for (int number = 2; reserved || is_taken(names, count, name); number++, reserved = false)
    name = arena_format(arena, "%s_%d", base, number);
  names[count] = name;
}

/* Any name inside a comment: it cannot end the comment or the line. */
static const char *comment_name(const char *name, Arena *arena) {
  char *text = arena_string(arena, name);
  for (char *at = text; *at != '\0'; at++) {
    unsigned char byte = (unsigned char)*at;
    if (byte < ' ' || byte == 0x7F || (byte == '/' && at > text && at[-1] == '*') || (byte == '*' && at[1] == '/') ||
        (byte == '/' && at[1] == '*') || byte == '\\')
      *at = '?';
  }
  return text;
}

/* --- pieces ------------------------------------------------------------------------------------------- */

static const char *element_type(DataType type) { return type == DTYPE_I64 ? "int64_t" : "float"; }

static void print_port(const Header *header, const PlanPort *port, const char *member, bool writable) {
  text_format(header->text, "  %s%s *%s; /* %s [", writable ? "" : "const ", element_type(port->dtype), member,
              comment_name(port->name, header->text->arena));
  shape_print(header->text, &port->shape);
  text_add(header->text, "] */\n");
}

static void print_elements(const Header *header, const PlanPort *port, const char *member) {
  text_format(header->text, "#define %s_%s_ELEMENTS %lld%s\n", header->macro, upper_case(member, header->text->arena),
              (long long)shape_elements_per_image(&port->shape),
              shape_batched(&port->shape) ? " /* of one image */" : "");
}

static void print_example(const Header *header) {
  const char *symbol = header->symbol, *macro = header->macro;
  Text *text = header->text;
  text_add(text, " *\n *   kiln_weights weights;\n");
  switch (header->mode) {
    case WEIGHTS_EMBED:
      text_format(text, " *   int status = %s_weights_embedded(&weights);\n", symbol);
      break;
    case WEIGHTS_FILE:
      text_format(text,
                  " *   void *file = the whole of %s.weights, read into memory aligned to %s_ALIGNMENT;\n"
                  " *   int status = %s_weights_open(&weights, file, file_size);\n",
                  symbol, macro, symbol);
      break;
    case WEIGHTS_CALLER:
      text_format(text,
                  " *   %s_parameters parameters = { … };\n"
                  " *   void *prepared = aligned_alloc(%s_ALIGNMENT, %s_PREPARED_SIZE);\n"
                  " *   void *scratch = aligned_alloc(%s_ALIGNMENT, %s_PREPARE_SIZE(1));\n"
                  " *   int status = %s_weights_prepare(&weights, &parameters, prepared, scratch, NULL);\n",
                  symbol, macro, macro, macro, macro, symbol);
      break;
  }
  const bool step = header->plan->slot_count > 0;
  if (header->plan->target->arch > 0) text_format(text, " *   if (status != KILN_OK) puts(%s_message());\n", symbol);
  text_format(text, " *   void *workspace = aligned_alloc(%s_ALIGNMENT, %s_WORKSPACE_SIZE(1, 1));\n", macro, macro);
  if (step)
    text_format(text,
                " *   float *values = parameters at %s_AT_…, then zeros: %s_STATE_ELEMENTS in all;\n *   %s_state "
                "state = {.state = values, …};\n",
                macro, macro, symbol);
  text_format(text, " *   %s_io io = {.head = {.batch = 1}", symbol);
  size_t ports = header->plan->input_count + header->plan->output_count;
  for (size_t i = 0; i < ports; i++) text_format(text, ", .%s = %s", header->members[i], header->members[i]);
  text_format(text, "};\n *   if (status == KILN_OK) status = %s_%s(&weights, %sworkspace, &io);\n *\n", symbol,
              step ? "step" : "run", step ? "&state, " : "");
}

static void print_macros(const Header *header) {
  const Plan *plan = header->plan;
  const char *macro = header->macro;
  Text *text = header->text;
  text_format(text, "#define %s_MAX_BATCH %lld\n", macro, (long long)plan->max_batch);
  text_format(text, "#define %s_MAX_THREADS %u\n", macro, header->max_threads);
  text_format(text, "#define %s_ALIGNMENT KILN_ALIGNMENT /* of workspace, prepared weights and scratch memory */\n",
              macro);
  text_format(text, "/* Bytes of workspace for a batch and a number of threads (at least 1). */\n");
  text_format(text,
              "#define %s_WORKSPACE_SIZE(batch, threads) \\\n  ((size_t)%lld + (size_t)(batch) * %lld + "
              "(size_t)(threads) * %lld)\n",
              macro, (long long)plan->workspace_fixed, (long long)plan->workspace_per_batch,
              (long long)header->scratch_bytes);
  text_format(text, "#define %s_PREPARED_SIZE ((size_t)%lld) /* of the prepared weights */\n", macro,
              (long long)plan->prepared_bytes);
  if (header->mode == WEIGHTS_CALLER)
    text_format(text,
                "/* Bytes of temporary memory while weights are prepared. */\n#define %s_PREPARE_SIZE(threads) "
                "((size_t)%lld + (size_t)(threads) * %lld)\n",
                macro, (long long)plan->prepare_scratch, (long long)header->scratch_bytes);
  text_add(text, "\n/* Elements of inputs and outputs; those of a batch lie one image after the other. */\n");
  for (size_t i = 0; i < plan->input_count; i++) print_elements(header, &plan->inputs[i], header->members[i]);
  for (size_t i = 0; i < plan->output_count; i++)
    print_elements(header, &plan->outputs[i], header->members[plan->input_count + i]);
}

static void print_structs(const Header *header) {
  const Plan *plan = header->plan;
  Text *text = header->text;
  text_add(text, "\n/* Arguments of a run: dense row-major arrays, N images each. See kiln_io for the head. */\n");
  text_format(text, "typedef struct %s_io {\n  kiln_io head;\n", header->symbol);
  for (size_t i = 0; i < plan->input_count; i++) print_port(header, &plan->inputs[i], header->members[i], false);
  for (size_t i = 0; i < plan->output_count; i++) {
    if (i + plan->hook_output_count == plan->output_count && plan->hook_output_count > 0)
      text_add(text, "  /* hooks */\n");
    print_port(header, &plan->outputs[i], header->members[plan->input_count + i], true);
  }
  text_format(text, "} %s_io;\n", header->symbol);
  if (header->mode != WEIGHTS_CALLER) return;
  text_add(text, "\n/* Dense row-major arrays. They must outlive the prepared weights. */\n");
  if (plan->slot_count > 0) text_add(text, "/* Those of a step's state are not read here and may be NULL. */\n");
  text_format(text, "typedef struct %s_parameters {\n", header->symbol);
  for (size_t i = 0; i < plan->parameter_count; i++)
    print_port(header, &plan->parameters[i], header->parameters[i], false);
  if (plan->parameter_count == 0) text_add(text, "  const float *none;\n");
  text_format(text, "} %s_parameters;\n", header->symbol);
}

/* The state of a training step: its memory, and what lies where. */
static void print_state(const Header *header) {
  const Plan *plan = header->plan;
  Text *text = header->text;
  const char *macro = header->macro;
  const Shape *state = &plan->parameters[0].shape;
  text_format(text,
              "\n/* What a step changes. Row 0 of `state` holds the trained parameters, dense and row-major, from\n"
              " * element %s_AT_NAME on; the rows behind it are the optimiser's and begin as zeros. */\n"
              "#define %s_STATE_ROWS %lld\n#define %s_STATE_ROW %lld /* elements */\n"
              "#define %s_STATE_ELEMENTS ((size_t)%s_STATE_ROWS * %s_STATE_ROW)\n"
              "#define %s_GROUPS %d /* rows of `hyper` */\n",
              macro, macro, (long long)state->dims[0], macro, (long long)state->dims[1], macro, macro, macro, macro,
              plan->group_rows);
  const char **names = arena_array(text->arena, plan->slot_count, const char *);
  for (size_t i = 0; i < plan->slot_count; i++) {
    const StateSlot *slot = &plan->slots[i];
    add_member(names, i, slot->name, text->arena);
    text_format(text, "#define %s_AT%s%s %lld /* %s [", macro, names[i][0] == '_' ? "" : "_",
                upper_case(names[i], text->arena), (long long)slot->offset, comment_name(slot->name, text->arena));
    shape_print(text, &slot->shape);
    text_format(text, "], group %d%s */\n", slot->group, slot->decayed ? ", decayed" : "");
  }
  text_format(text, "\n/* The caller's memory, dense; a float's alignment is enough. */\ntypedef struct %s_state {\n",
              header->symbol);
  for (size_t i = 0; i < plan->parameter_count && plan->parameters[i].state; i++)
    print_port(header, &plan->parameters[i], header->parameters[i], true);
  text_format(text, "} %s_state;\n", header->symbol);
  text_format(
      text,
      "\n/* One training step over io->head.batch images, 1 … %s_MAX_BATCH: the loss before the update, and an\n"
      " * update of the state in place; when the loss is not finite the state stays as it is. `hyper` has a row\n"
      " * per group, whose columns are KILN_HYPER_*.",
      macro);
  if (plan->target->arch > 0)
    text_add(
        text,
        " State in the GPU's memory (aligned to 64) is used in place;\n"
        " * state in the host's is copied there before the step and back after it. Of `workspace` only the address\n"
        " * counts: threads that call this at once have one each. */\n");
  else
    text_format(
        text,
        " `workspace` has %s_WORKSPACE_SIZE(batch, threads)\n"
        " * bytes, aligned; its contents need not be set and do not last. Allocates nothing, starts no threads. */\n",
        macro);
  text_format(text,
              "int %s_step(const kiln_weights *weights, const %s_state *state, void *workspace, const %s_io *io);\n",
              header->symbol, header->symbol, header->symbol);
}

static void print_gpu_functions(const Header *header) {
  const char *symbol = header->symbol, *macro = header->macro;
  Text *text = header->text;
  text_add(
      text,
      "\n/* The network runs on GPU 0 of the CUDA driver (libcuda.so.1, found at run time; $KILN_CUDA_DRIVER names\n"
      " * another). Every function returns a kiln_status: 0 is success, KILN_ERROR_UNSUPPORTED means that there is no\n"
      " * driver or no GPU. */\n\n");
  if (header->mode == WEIGHTS_CALLER)
    text_format(
        text,
        "/* Copies parameters to the GPU, prepares them there and fills *weights. The last three arguments are not\n"
        " * used: NULL will do. */\n"
        "int %s_weights_prepare(kiln_weights *weights, const %s_parameters *parameters, void *prepared,\n"
        "    void *scratch, const kiln_io *io);\n",
        symbol, symbol);
  else
    text_format(text,
                "/* Copies the code and the weights that the library holds to the GPU and fills *weights. */\n"
                "int %s_weights_embedded(kiln_weights *weights);\n",
                symbol);
  text_format(text,
              "/* Frees all that the weights and runs with them have taken on the GPU. No run may be going on. */\n"
              "void %s_weights_release(kiln_weights *weights);\n",
              symbol);
  if (header->plan->slot_count == 0)
    text_format(
        text,
        "\n/* Computes all outputs for io->head.batch images, 0 … %s_MAX_BATCH. Inputs and outputs lie in the host's\n"
        " * memory or in the GPU's. The first run with a workspace takes the GPU's memory for it, the first with a\n"
        " * batch size or other addresses of the GPU records a graph. Any number of threads may call it at once, each\n"
        " * with a workspace of its own, of which only the address counts. */\n"
        "int %s_run(const kiln_weights *weights, void *workspace, const %s_io *io);\n",
        macro, symbol, symbol);
  text_format(text, "\n/* Why the last call of this thread failed. */\nconst char *%s_message(void);\n", symbol);
  text_format(text,
              "/* Names, shapes and steps of the program: constant, for tools. */\n"
              "const kiln_program *%s_describe(void);\n",
              symbol);
}

static void print_functions(const Header *header) {
  const char *symbol = header->symbol, *macro = header->macro;
  Text *text = header->text;
  if (header->plan->target->arch > 0) {
    print_gpu_functions(header);
    return;
  }
  text_add(text, "\n/* Every function returns a kiln_status: 0 is success. */\n\n");
  switch (header->mode) {
    case WEIGHTS_EMBED:
      text_format(text,
                  "/* Fills *weights with those that the library holds. KILN_ERROR_CPU when this processor lacks\n"
                  " * instructions that the code uses. */\nint %s_weights_embedded(kiln_weights *weights);\n",
                  symbol);
      break;
    case WEIGHTS_FILE:
      text_format(
          text,
          "/* Fills *weights from the bytes of a weights file, which must be aligned to %s_ALIGNMENT and stay.\n"
          " * KILN_ERROR_WEIGHTS when they are damaged or belong to another program; KILN_ERROR_CPU when this\n"
          " * processor lacks instructions that the code uses. */\n"
          "int %s_weights_open(kiln_weights *weights, const void *file, size_t size);\n",
          macro, symbol);
      break;
    case WEIGHTS_CALLER:
      text_format(
          text,
          "/* Prepares parameters and fills *weights. `prepared` (%s_PREPARED_SIZE bytes) must stay; `scratch`\n"
          " * (%s_PREPARE_SIZE(threads) bytes) is free afterwards; `io` gives threads or is NULL. KILN_ERROR_CPU\n"
          " * when this processor lacks instructions that the code uses. */\n"
          "int %s_weights_prepare(kiln_weights *weights, const %s_parameters *parameters, void *prepared,\n"
          "    void *scratch, const kiln_io *io);\n",
          macro, macro, symbol, symbol);
      break;
  }
  if (header->plan->slot_count == 0)
    text_format(
        text,
        "\n/* Computes all outputs for io->head.batch images, 0 … %s_MAX_BATCH. `workspace` has\n"
        " * %s_WORKSPACE_SIZE(batch, threads) bytes, aligned; its contents need not be set and do not last. Allocates\n"
        " * nothing, starts no threads. Any number of threads may call it at once, each with its own workspace. */\n"
        "int %s_run(const kiln_weights *weights, void *workspace, const %s_io *io);\n",
        macro, macro, symbol, symbol);
  text_format(text,
              "\n/* KILN_OK, or KILN_ERROR_CPU when this processor cannot run the program. */\nint %s_check(void);\n",
              symbol);
  text_format(text,
              "/* Names, shapes and steps of the program: constant, for tools and generic hosts. */\n"
              "const kiln_program *%s_describe(void);\n",
              symbol);
}

void header_print(Text *text, const Plan *plan, const CpuObjects *objects, WeightsMode mode, uint32_t max_threads) {
  Arena *arena = text->arena;
  Header header = {
      .text = text,
      .plan = plan,
      .symbol = objects->symbol,
      .macro = upper_case(objects->symbol, arena),
      .mode = mode,
      .max_threads = max_threads != 0 ? max_threads : CPU_DEFAULT_MAX_THREADS,
      .scratch_bytes = objects->scratch_bytes,
      .members = arena_array(arena, plan->input_count + plan->output_count, const char *),
      .parameters = arena_array(arena, plan->parameter_count, const char *),
  };
  for (size_t i = 0; i < plan->input_count; i++) add_member(header.members, i, plan->inputs[i].name, arena);
  for (size_t i = 0; i < plan->output_count; i++)
    add_member(header.members, plan->input_count + i, plan->outputs[i].name, arena);
  for (size_t i = 0; i < plan->parameter_count; i++) add_member(header.parameters, i, plan->parameters[i].name, arena);

  text_format(text, "/* %s.h: the network %s as compiled code for %s (%s).\n", header.symbol,
              comment_name(plan->name, arena), plan->target->isa, plan->target->triple);
  text_add(text, " * Generated by Kiln " KILN_VERSION ". Stands alone: it holds what all compiled networks share.\n");
  print_example(&header);
  text_add(text, " * Link with the library and include this file from C11 or C++. */\n");
  text_format(text, "#ifndef %s_H\n#define %s_H\n\n", header.macro, header.macro);
  text_add(text, text_kiln_abi);
  text_add(text, "\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n");
  print_macros(&header);
  print_structs(&header);
  print_functions(&header);
  if (plan->slot_count > 0) print_state(&header);
  text_add(text, "\n#ifdef __cplusplus\n}\n#endif\n#endif\n");
}
