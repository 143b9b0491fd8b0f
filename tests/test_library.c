/* Compiled libraries: linking, loading, weights, headers, processors that cannot run them. */
#include <dlfcn.h>
#include <elf.h>
#include <math.h>
#include <sys/wait.h>

#include "base/file.h"
#include "small_program.h"

typedef struct Library {
  void *handle;
  const kiln_program *program;
} Library;

static void *library_symbol(const Library *library, const char *symbol) { return dlsym(library->handle, symbol); }

#define LIBRARY_FUNCTION(pointer, library, symbol)    \
  do {                                                \
    void *address_ = library_symbol(library, symbol); \
    assert_non_null(address_);                        \
    memcpy(&(pointer), &address_, sizeof address_);   \
  } while (0)

static Library library_load(const char *path, const char *describe_symbol) {
  Library library = {.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)};
  if (library.handle == NULL) fail_msg("%s", dlerror());
  const kiln_program *(*describe)(void);
  LIBRARY_FUNCTION(describe, &library, describe_symbol);
  library.program = describe();
  return library;
}

static int shell(const char *command) {
  int status = system(command);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void write_file(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  assert_int_equal(fclose(file), 0);
}

/* --- libraries ---------------------------------------------------------------------------------------- */

/* The machine code is the same whether it is loaded from memory or through the system's linker. */
static void test_library_equals_jit(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const char *path = fixture_path(fixture, "libnet.so");
#ifdef __x86_64__
  uint32_t before = __builtin_ia32_stmxcsr();
#endif
  linked(fixture, &target, objects.objects, objects.count, "libnet.so", path);
  Library library = library_load(path, "net_describe");
#ifdef __x86_64__
  assert_int_equal(__builtin_ia32_stmxcsr(), before);
#endif
  SmallRun *jit = small_run(fixture), *file = small_run(fixture);
  small_prepare(jit, loaded(fixture, &objects));
  small_prepare(file, library.program);
  assert_int_equal(jit->weights.program->run(&jit->weights, jit->memory, &jit->io.head), KILN_OK);
  assert_int_equal(library.program->run(&file->weights, file->memory, &file->io.head), KILN_OK);
  small_check(file);
  assert_memory_equal(jit->y, file->y, sizeof file->y);
  assert_memory_equal(jit->hook, file->hook, sizeof file->hook);
  assert_memory_equal(jit->prepared, file->prepared, sizeof file->prepared);
  /* nothing but the entry points is visible */
  assert_null(library_symbol(&library, "net_k0"));
  assert_null(library_symbol(&library, "net_program"));
  dlclose(library.handle);
}

static void test_rebuilds_are_equal(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "x86-64-v3", "x86_64-pc-linux-gnu");
  Plan *plan = small_plan(fixture, "net", &target);
  const CpuOptions one = {.threads = 1}, three = {.threads = 3};
  CpuObjects a = compiled(fixture, plan, &one), b = compiled(fixture, plan, &three);
  assert_int_equal(a.count, b.count);
  for (size_t i = 0; i < a.count; i++) {
    assert_int_equal(a.objects[i].size, b.objects[i].size);
    assert_memory_equal(a.objects[i].data, b.objects[i].data, a.objects[i].size);
  }
  void *data[2];
  size_t size[2];
  for (int i = 0; i < 2; i++) {
    const char *path = fixture_path(fixture, i == 0 ? "first.so" : "second.so");
    linked(fixture, &target, i == 0 ? a.objects : b.objects, a.count, "libnet.so", path);
    assert_true(file_read(path, 1 << 24, fixture->arena, fixture->diag, &data[i], &size[i]));
  }
  assert_int_equal(size[0], size[1]);
  assert_memory_equal(data[0], data[1], size[0]);
}

static void test_two_programs(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  Plan *plans[2] = {small_plan(fixture, "one", &target), small_plan(fixture, "two", &target)};
  plans[1]->kernels[3].op = plans[1]->kernels[4].op = OP_ADD;
  Library libraries[2];
  for (int i = 0; i < 2; i++) {
    CpuObjects objects = compiled(fixture, plans[i], NULL);
    const char *path = fixture_path(fixture, arena_format(fixture->arena, "%d.so", i));
    linked(fixture, &target, objects.objects, objects.count, "libsame.so", path);
    libraries[i] = library_load(path, arena_format(fixture->arena, "%s_describe", objects.symbol));
  }
  SmallRun *run = small_run(fixture), *other = small_run(fixture);
  small_prepare(run, libraries[0].program);
  small_prepare(other, libraries[1].program);
  assert_int_equal(libraries[1].program->run(&other->weights, other->memory, &other->io.head), KILN_OK);
  assert_int_equal(libraries[0].program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  small_check(run);
  assert_true(other->hook[0] == fmaxf(0, other->x[0] + other->weight[0] * other->weight[0]));
  assert_int_equal(libraries[0].program->run(&other->weights, other->memory, &other->io.head), KILN_ERROR_WEIGHTS);
  for (int i = 0; i < 2; i++) dlclose(libraries[i].handle);
}

/* --- weights ------------------------------------------------------------------------------------------ */

static uint64_t checksum(const char *bytes, size_t size) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static void test_embedded_weights(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  SmallRun *run = small_run(fixture);
  CpuObjects plain = compiled(fixture, plan, NULL);
  small_prepare(run, loaded(fixture, &plain));
  const CpuOptions options = {.embed = true};
  CpuObjects objects = compiled(fixture, plan, &options);
  Code *all = arena_array(fixture->arena, objects.count + 1, Code);
  memcpy(all, objects.objects, objects.count * sizeof *all);
  assert_true(elf_blob(&target, "net_embedded_weights", run->prepared, sizeof run->prepared, fixture->arena,
                       fixture->diag, &all[objects.count]));
  const char *path = fixture_path(fixture, "libnet.so");
  linked(fixture, &target, all, objects.count + 1, "libnet.so", path);
  Library library = library_load(path, "net_describe");
  assert_non_null(library.program->embedded);
  assert_int_equal((uintptr_t)library.program->embedded % KILN_ALIGNMENT, 0);
  assert_memory_equal(library.program->embedded, run->prepared, sizeof run->prepared);
  assert_null(library_symbol(&library, "net_embedded_weights"));
  int (*weights_embedded)(kiln_weights *);
  LIBRARY_FUNCTION(weights_embedded, &library, "net_weights_embedded");
  assert_int_equal(weights_embedded(&run->weights), KILN_OK);
  assert_int_equal(library.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  small_check(run);
  dlclose(library.handle);
}

static void test_weights_file(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const char *path = fixture_path(fixture, "libnet.so");
  linked(fixture, &target, objects.objects, objects.count, "libnet.so", path);
  Library library = library_load(path, "net_describe");
  int (*weights_open)(kiln_weights *, const void *, size_t), (*weights_embedded)(kiln_weights *);
  LIBRARY_FUNCTION(weights_open, &library, "net_weights_open");
  LIBRARY_FUNCTION(weights_embedded, &library, "net_weights_embedded");
  int (*weights_prepare)(kiln_weights *, const void *const *, void *, void *, const kiln_io *);
  LIBRARY_FUNCTION(weights_prepare, &library, "net_weights_prepare");
  SmallRun *run = small_run(fixture);
  assert_int_equal(weights_embedded(&run->weights), KILN_ERROR_WEIGHTS);
  assert_int_equal(weights_prepare(&run->weights, run->parameters, run->prepared, run->memory, NULL), KILN_OK);
  assert_ptr_equal(run->weights.program, library.program);
  assert_int_equal(library.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  small_check(run);

  enum { SIZE = sizeof(kiln_weights_head) + sizeof run->prepared };
  char *file = arena_alloc_aligned(fixture->arena, SIZE, KILN_ALIGNMENT);
  kiln_weights_head head = {.identity = 42, .prepared_bytes = sizeof run->prepared};
  memcpy(head.magic, "KILNWTS1", sizeof head.magic);
  head.checksum = checksum(run->prepared, sizeof run->prepared);
  memcpy(file, &head, sizeof head);
  memcpy(file + sizeof head, run->prepared, sizeof run->prepared);
  memset(&run->weights, 0, sizeof run->weights);
  assert_int_equal(weights_open(&run->weights, file, SIZE), KILN_OK);
  assert_int_equal(library.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  small_check(run);
  assert_int_equal(weights_open(NULL, file, SIZE), KILN_ERROR_ARGUMENT);
  assert_int_equal(weights_open(&run->weights, NULL, SIZE), KILN_ERROR_ARGUMENT);
  assert_int_equal(weights_open(&run->weights, file + 1, SIZE), KILN_ERROR_ARGUMENT);
  assert_int_equal(weights_open(&run->weights, file, SIZE - 1), KILN_ERROR_WEIGHTS);
  assert_int_equal(weights_open(&run->weights, file, 3), KILN_ERROR_WEIGHTS);
  /* a flipped bit anywhere but in the reserved bytes */
  for (size_t i = 0; i < SIZE; i++) {
    if (i >= offsetof(kiln_weights_head, reserved) && i < sizeof head) continue;
    file[i] ^= 4;
    assert_int_equal(weights_open(&run->weights, file, SIZE), KILN_ERROR_WEIGHTS);
    file[i] ^= 4;
  }
  assert_int_equal(weights_open(&run->weights, file, SIZE), KILN_OK);
  dlclose(library.handle);
}

/* --- other processors ------------------------------------------------------------------------------------ */

static void test_cross_library(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "aarch64", "aarch64-linux-gnu");
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const char *path = fixture_path(fixture, "libnet.so");
  linked(fixture, &target, objects.objects, objects.count, "libnet.so", path);
  void *data;
  size_t size;
  assert_true(file_read(path, 1 << 24, fixture->arena, fixture->diag, &data, &size));
  Elf64_Ehdr head;
  memcpy(&head, data, sizeof head);
  assert_int_equal(head.e_machine, EM_AARCH64);
  assert_int_equal(head.e_type, ET_DYN);
}

/* A host program in C, run under an emulated processor without AVX-512. */
static void test_refused_by_older_processor(void **state) {
  Fixture *fixture = *state;
  if (shell("command -v qemu-x86_64 >/dev/null && command -v cc >/dev/null") != 0) {
    print_message("no qemu-x86_64 or cc: skipped\n");
    skip();
  }
  static const char *const isas[] = {"x86-64-v3", "x86-64-v4"};
  static const int expected[] = {KILN_OK, KILN_ERROR_CPU};
  const char *source = fixture_path(fixture, "host.c"), *host = fixture_path(fixture, "host");
  write_file(source,
             "#include <dlfcn.h>\n"
             "int main(int count, char **arguments) {\n"
             "  void *library = dlopen(arguments[1], RTLD_NOW);\n"
             "  if (count < 2 || !library) return 100;\n"
             "  int (*check)(void) = (int (*)(void))dlsym(library, \"net_check\");\n"
             "  int (*weights)(void *, const void *, unsigned long) =\n"
             "      (int (*)(void *, const void *, unsigned long))dlsym(library, \"net_weights_open\");\n"
             "  static _Alignas(64) char file[64];\n"
             "  char result[24];\n"
             "  int status = check();\n"
             "  if (status && weights(result, file, 64) != status) return 101;\n"
             "  return status;\n"
             "}\n");
  if (shell(arena_format(fixture->arena, "cc -o '%s' '%s' -ldl", host, source)) != 0) fail_msg("cc failed");
  for (int i = 0; i < 2; i++) {
    Target target = target_of(fixture, isas[i], "x86_64-linux-gnu");
    CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
    const char *path = fixture_path(fixture, arena_format(fixture->arena, "%s.so", isas[i]));
    linked(fixture, &target, objects.objects, objects.count, NULL, path);
    int status = shell(arena_format(fixture->arena, "qemu-x86_64 -cpu Haswell '%s' '%s' 2>/dev/null", host, path));
    assert_int_equal(status, expected[i]);
    /* the oldest processor has neither */
    status = shell(arena_format(fixture->arena, "qemu-x86_64 -cpu core2duo '%s' '%s' 2>/dev/null", host, path));
    assert_int_equal(status, KILN_ERROR_CPU);
  }
}

/* A freestanding host, because no C library for the machine is at hand. */
static void test_runs_on_emulated_aarch64(void **state) {
  Fixture *fixture = *state;
  if (shell("command -v qemu-aarch64 >/dev/null && command -v clang-19 >/dev/null") != 0) {
    print_message("no qemu-aarch64 or clang-19: skipped\n");
    skip();
  }
  Target target = target_of(fixture, NULL, "aarch64-linux-gnu");
  Plan *plan = small_plan(fixture, "net", &target);
  CpuObjects objects = compiled(fixture, plan, NULL);
  assert_true(link_objects(&target, objects.objects, objects.count, NULL, true, fixture_path(fixture, "net.o"),
                           fixture->arena, fixture->diag));
  Text header;
  text_init(&header, fixture->arena);
  header_print(&header, plan, &objects, WEIGHTS_CALLER, 0);
  write_file(fixture_path(fixture, "net.h"), header.data);
  /* y = x * w^4 + exp(w^2) with w = -1 */
  write_file(fixture_path(fixture, "host.c"),
             "#include \"net.h\"\n"
             "static _Alignas(64) char prepared[NET_PREPARED_SIZE], memory[NET_WORKSPACE_SIZE(2, 1) + 4096];\n"
             "static float w[NET_X_ELEMENTS], x[2 * NET_X_ELEMENTS], y[2 * NET_X_ELEMENTS], hook[2 * NET_X_ELEMENTS];\n"
             "static int host(void) {\n"
             "  for (int i = 0; i < NET_X_ELEMENTS; i++) w[i] = -1;\n"
             "  for (int i = 0; i < 2 * NET_X_ELEMENTS; i++) x[i] = (float)(i - 30);\n"
             "  kiln_weights weights;\n"
             "  net_parameters parameters;\n"
             "  parameters.weight = w;\n"
             "  int status = net_weights_prepare(&weights, &parameters, prepared, memory, 0);\n"
             "  static net_io io;\n"
             "  io.head.batch = 2, io.x = x, io.y = y, io.hook_a = hook;\n"
             "  if (status == KILN_OK) status = net_run(&weights, memory, &io);\n"
             "  for (int i = 0; i < 2 * NET_X_ELEMENTS; i++) {\n"
             "    float error = y[i] - (x[i] + 2.7182818f);\n"
             "    if (error > 1e-5f || error < -1e-5f) return 50;\n"
             "    if (hook[i] != (x[i] > 0 ? x[i] : 0)) return 51;\n"
             "  }\n"
             "  return status;\n"
             "}\n"
             "void _start(void) {\n"
             "  register long status __asm__(\"x0\") = host();\n"
             "  register long call __asm__(\"x8\") = 93;\n"
             "  __asm__ volatile(\"svc 0\" : : \"r\"(status), \"r\"(call));\n"
             "}\n");
  int status =
      shell(arena_format(fixture->arena,
                         "cd '%s' && clang-19 --target=aarch64-linux-gnu -ffreestanding -fno-builtin -nostdlib "
                         "-static -fuse-ld=lld -o host host.c net.o",
                         fixture->folder));
  assert_int_equal(status, 0);
  assert_int_equal(shell(arena_format(fixture->arena, "qemu-aarch64 '%s/host'", fixture->folder)), KILN_OK);
}

/* --- names and headers -------------------------------------------------------------------------------- */

static void test_hostile_names(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  static const char *const names[] = {"@x", "-o", ";id", "a\nb", "*/ #error", "", "9", "$(id)", "\"quoted\\", "%s%n"};
  static const char *const symbols[] = {"_x", "_o", "_id", "a_b", "____error", "_", "_9", "__id_", "_quoted_", "_s_n"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    CpuObjects objects = compiled(fixture, small_plan(fixture, names[i], &target), NULL);
    assert_string_equal(objects.symbol, symbols[i]);
    const char *path = fixture_path(fixture, "hostile.so");
    linked(fixture, &target, objects.objects, objects.count, names[i], path);
    Library library = library_load(path, arena_format(fixture->arena, "%s_describe", objects.symbol));
    assert_string_equal(library.program->name, names[i]);
    dlclose(library.handle);
  }
}

/* Compiles the header alone, and a host that uses all of it; runs the host. */
static void check_header(Fixture *fixture, WeightsMode mode, const char *acquire) {
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  plan->name = "*/ bad \\\n name";
  plan->parameters[0].name = "int";
  const CpuOptions options = {.embed = mode == WEIGHTS_EMBED};
  plan->name = "net";
  CpuObjects objects = compiled(fixture, plan, &options);
  SmallRun *run = small_run(fixture);
  CpuObjects plain = compiled(fixture, plan, NULL);
  small_prepare(run, loaded(fixture, &plain));
  Code *all = arena_array(fixture->arena, objects.count + 1, Code);
  memcpy(all, objects.objects, objects.count * sizeof *all);
  assert_true(elf_blob(&target, "net_embedded_weights", run->prepared, sizeof run->prepared, fixture->arena,
                       fixture->diag, &all[objects.count]));
  linked(fixture, &target, all, objects.count + 1, "libnet.so", fixture_path(fixture, "libnet.so"));
  plan->name = "*/ bad \\\n name";
  Text header;
  text_init(&header, fixture->arena);
  header_print(&header, plan, &objects, mode, 0);
  write_file(fixture_path(fixture, "net.h"), header.data);
  write_file(fixture_path(fixture, "use.cpp"),
             "#include \"net.h\"\n#include \"net.h\"\nint f() { return net_check(); }\n");
  write_file(fixture_path(fixture, "host.c"),
             arena_format(fixture->arena,
                          "#include \"net.h\"\n#include <stdlib.h>\n"
                          "int main(void) {\n"
                          "  static float x[2 * NET_X_ELEMENTS], y[2 * NET_Y_ELEMENTS], h[2 * NET_HOOK_A_ELEMENTS];\n"
                          "  x[0] = x[NET_X_ELEMENTS] = 2;\n"
                          "  kiln_weights weights;\n"
                          "  void *workspace = aligned_alloc(NET_ALIGNMENT, NET_WORKSPACE_SIZE(2, 1));\n"
                          "  int status = KILN_OK;\n"
                          "%s"
                          "  net_io io = {.head = {.batch = 2}, .x = x, .y = y, .hook_a = h};\n"
                          "  if (status == KILN_OK) status = net_run(&weights, workspace, &io);\n"
                          "  if (net_describe()->max_batch != NET_MAX_BATCH) return 50;\n"
                          "  if (NET_PREPARED_SIZE != net_describe()->prepared_bytes) return 51;\n"
                          "  if (h[0] != h[NET_X_ELEMENTS] || h[0] == 0) return 52;\n"
                          "  free(workspace);\n"
                          "  return status;\n"
                          "}\n",
                          acquire));
  const char *folder = fixture->folder;
  int status = shell(arena_format(fixture->arena,
                                  "cd '%s' && cc -std=c11 -Wall -Wextra -Wpedantic -Wno-sign-compare -Werror -o host "
                                  "host.c ./libnet.so && LD_LIBRARY_PATH=. ./host",
                                  folder));
  assert_int_equal(status, 0);
  if (shell("command -v c++ >/dev/null") != 0) return;
  status = shell(
      arena_format(fixture->arena, "cd '%s' && c++ -std=c++11 -Wall -Wextra -Werror -c -o use.o use.cpp", folder));
  assert_int_equal(status, 0);
}

static void test_headers(void **state) {
  Fixture *fixture = *state;
  if (shell("command -v cc >/dev/null") != 0) {
    print_message("no cc: skipped\n");
    skip();
  }
  check_header(fixture, WEIGHTS_EMBED, "  status = net_weights_embedded(&weights);\n");
  check_header(fixture, WEIGHTS_CALLER,
               "  static float w[37];\n"
               "  for (int i = 0; i < 37; i++) w[i] = 1;\n"
               "  net_parameters parameters = {.int_2 = w};\n"
               "  void *prepared = aligned_alloc(NET_ALIGNMENT, NET_PREPARED_SIZE);\n"
               "  void *scratch = aligned_alloc(NET_ALIGNMENT, NET_PREPARE_SIZE(1));\n"
               "  status = net_weights_prepare(&weights, &parameters, prepared, scratch, NULL);\n");
  check_header(fixture, WEIGHTS_FILE,
               "  static _Alignas(64) char file[64];\n"
               "  if (net_weights_open(&weights, file, sizeof file) != KILN_ERROR_WEIGHTS) return 53;\n"
               "  return 0;\n");
}

/* A linker that fails or is missing is reported, and leaves nothing behind. */
static void test_link_errors(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  const Code garbage = {arena_string(fixture->arena, "not an object"), 13};
  char *temporary = arena_format(fixture->arena, "%s/tmp", fixture->folder);
  assert_int_equal(shell(arena_format(fixture->arena, "mkdir '%s'", temporary)), 0);
  setenv("TMPDIR", temporary, 1);
  assert_false(
      link_objects(&target, &garbage, 1, "x", false, fixture_path(fixture, "x.so"), fixture->arena, fixture->diag));
  check_message_part(fixture, "the linker ");
  clear_messages(fixture);
  const char *path = getenv("PATH");
  char *kept = arena_string(fixture->arena, path);
  setenv("PATH", "/nowhere", 1);
  assert_false(
      link_objects(&target, &garbage, 1, "x", false, fixture_path(fixture, "x.so"), fixture->arena, fixture->diag));
  setenv("PATH", kept, 1);
  check_message_part(fixture, "no linker for ");
  unsetenv("TMPDIR");
  assert_int_equal(shell(arena_format(fixture->arena, "rmdir '%s'", temporary)), 0);
  assert_int_equal(access(fixture_path(fixture, "x.so"), F_OK), -1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_library_equals_jit),
      fixture_test(test_rebuilds_are_equal),
      fixture_test(test_two_programs),
      fixture_test(test_embedded_weights),
      fixture_test(test_weights_file),
      fixture_test(test_cross_library),
      fixture_test(test_refused_by_older_processor),
      fixture_test(test_runs_on_emulated_aarch64),
      fixture_test(test_hostile_names),
      fixture_test(test_headers),
      fixture_test(test_link_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
