/* Compiling CUDA texts, with the emulator's NVRTC: the cache, messages, architectures. What happens without an NVRTC is
 * checked in command_line.sh, because a process looks for it once only. */
#include <dirent.h>

#include "base/file.h"
#include "cuda/nvrtc.h"
#include "run_cuda.h"
#include "support.h"

static const char text_good[] =
    "#include \"kiln_prelude.h\"\nKERNEL(32) k(float *out, int n) {\n  if (thread_index() < n) out[thread_index()] = "
    "1;\n}\n";

static bool compile(Fixture *fixture, const char *text, const NvrtcOptions *options, Code *out_image) {
  static CudaLaunch launch = {"k", 32, 0, 1, 0, 1, 1, 1};
  CudaCode codes[] = {{.name = "k0", .text = text, .launches = &launch, .launch_count = 1}, {.name = "k1_empty"}};
  uint32_t code_of[] = {0, 1};
  const CudaProgramText program = {codes, 2, code_of};
  PlanKernel kernels[] = {{.name = "value", .location = {"model.json", 4, 7}}, {.name = "nothing"}};
  Plan plan = {.kernels = kernels, .kernel_count = 2};
  Code *images;
  if (!nvrtc_compile(&plan, &program, options, fixture->arena, fixture->diag, &images)) return false;
  assert_int_equal(images[1].size, 0);
  *out_image = images[0];
  return true;
}

static void test_information(void **state) {
  (void)state;
  const char *reason = NULL;
  const NvrtcInfo *info = nvrtc_info(&reason);
  assert_non_null(info);
  assert_string_equal(reason, "");
  assert_true(info->arch_count > 1 && info->archs[0] < info->archs[info->arch_count - 1]);
}

static void test_same_text_same_bytes(void **state) {
  Fixture *fixture = *state;
  Code first, second, ptx;
  const NvrtcOptions options = {.arch = "sm_90"}, as_ptx = {.arch = "sm_90", .ptx = true};
  assert_true(compile(fixture, text_good, &options, &first) && compile(fixture, text_good, &options, &second));
  assert_true(first.size == second.size);
  assert_true(compile(fixture, text_good, &as_ptx, &ptx));
  assert_int_equal(((const char *)ptx.data)[ptx.size - 1], '\0');
  check_messages(fixture, "");
}

static void test_error_names_node_and_line(void **state) {
  Fixture *fixture = *state;
  Code image;
  const NvrtcOptions options = {.arch = "sm_90"};
  assert_false(compile(fixture,
                       "#include \"kiln_prelude.h\"\n#line 1 \"op:value\"\nKERNEL(32) k(float *out, int n) {\n"
                       "  out[n] = missing_name;\n}\n",
                       &options, &image));
  check_message_part(fixture, "model.json:4:7: error: internal error: the CUDA code of 'value' (k0) does not compile");
  check_message_part(fixture, "op:value(2): error: ");
  check_message_part(fixture, "missing_name");
}

static void test_architectures(void **state) {
  Fixture *fixture = *state;
  Code image;
  const NvrtcOptions newer = {.arch = "sm_103"}, older = {.arch = "sm_52"}, special = {.arch = "sm_90a"};
  assert_true(compile(fixture, text_good, &special, &image));
  check_messages(fixture, "");
  assert_true(compile(fixture, text_good, &newer, &image));
  check_message_part(fixture, "does not know sm_103: the code is PTX for compute_100");
  assert_memory_equal(image.data, "// fake PTX", 11);
  clear_messages(fixture);
  assert_false(compile(fixture, text_good, &older, &image));
  check_message_part(fixture, "cannot compile for sm_52: sm_70 is the oldest that it knows");
}

/* --- cache ------------------------------------------------------------------------------------------- */

/* Without its C compiler the emulator's NVRTC compiles nothing: what comes then comes from the cache. */
static bool compile_from_cache(Fixture *fixture, const NvrtcOptions *options, Code *out_image) {
  setenv("KILN_EMULATOR_CC", "/nonexistent/cc", 1);
  Diag *before = fixture->diag;
  clear_messages(fixture);
  bool found = compile(fixture, text_good, options, out_image);
  fixture->diag = before;
  unsetenv("KILN_EMULATOR_CC");
  return found;
}

static char *only_entry(Fixture *fixture, const char *folder) {
  DIR *listing = opendir(folder);
  char *path = NULL;
  assert_non_null(listing);
  for (const struct dirent *item; (item = readdir(listing)) != NULL;)
    if (item->d_name[0] != '.') {
      assert_null(path);
      path = arena_format(fixture->arena, "%s/%s", folder, item->d_name);
    }
  closedir(listing);
  return path;
}

static void write_bytes(const char *path, const void *data, size_t size) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static void test_cache_hits(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache");
  Code made, found;
  const NvrtcOptions options = {.arch = "sm_90", .cache_dir = folder}, other = {.arch = "sm_80", .cache_dir = folder},
                     ptx = {.arch = "sm_90", .ptx = true, .cache_dir = folder};
  assert_false(compile_from_cache(fixture, &options, &found));
  assert_true(compile(fixture, text_good, &options, &made));
  assert_true(compile_from_cache(fixture, &options, &found));
  assert_int_equal(found.size, made.size);
  assert_memory_equal(found.data, made.data, made.size);
  /* another architecture or format is another entry */
  assert_false(compile_from_cache(fixture, &other, &found));
  assert_false(compile_from_cache(fixture, &ptx, &found));
}

static void test_damaged_entries_are_misses(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache");
  const NvrtcOptions options = {.arch = "sm_90", .cache_dir = folder};
  Code made, found;
  void *data;
  size_t size;
  assert_true(compile(fixture, text_good, &options, &made));
  const char *path = only_entry(fixture, folder);
  assert_true(file_read(path, (size_t)1 << 30, fixture->arena, fixture->diag, &data, &size));
  unsigned char *bytes = data;
  for (size_t i = 0; i < size; i += i < 64 ? 1 : 101) {
    bytes[i] ^= 0x10;
    write_bytes(path, bytes, size);
    if (compile_from_cache(fixture, &options, &found)) fail_msg("byte %zu of %zu: the damage went unnoticed", i, size);
    bytes[i] ^= 0x10;
  }
  for (size_t length = 0; length < size; length += size / 16 + 1) {
    write_bytes(path, bytes, length);
    assert_false(compile_from_cache(fixture, &options, &found));
  }
  /* the next compilation puts a good one in its place */
  assert_true(compile(fixture, text_good, &options, &found));
  assert_true(compile_from_cache(fixture, &options, &found));
}

static void test_unusable_folder(void **state) {
  Fixture *fixture = *state;
  const char *file = fixture_path(fixture, "file");
  write_bytes(file, "x", 1);
  const NvrtcOptions options = {.arch = "sm_90", .cache_dir = arena_format(fixture->arena, "%s/cache", file)};
  Code image;
  assert_true(compile(fixture, text_good, &options, &image));
  assert_true(compile(fixture, text_good, &options, &image));
  check_message_part(fixture, "warning: compiled kernels cannot be kept in");
  assert_int_equal(diag_message_count(fixture->diag), 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_information),
      fixture_test(test_same_text_same_bytes),
      fixture_test(test_error_names_node_and_line),
      fixture_test(test_architectures),
      fixture_test(test_cache_hits),
      fixture_test(test_damaged_entries_are_misses),
      fixture_test(test_unusable_folder),
  };
  test_cuda_open();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
