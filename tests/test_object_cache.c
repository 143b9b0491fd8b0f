/* The folder of compiled kernels: a hit gives the stored bytes, anything else compiles again. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"
#include "cpu/object_cache.h"
#include "small_program.h"

enum { NAME_LIMIT = 256, PATHS_LIMIT = 64 };

static Code code_of(const char *text) {
  static char bytes[4][NAME_LIMIT];
  static int next;
  char *copy = bytes[next++ % 4];
  snprintf(copy, NAME_LIMIT, "%s", text);
  return (Code){copy, strlen(copy)};
}

static void check_code(const Code *code, const char *expected) {
  assert_int_equal(code->size, strlen(expected));
  assert_memory_equal(code->data, expected, code->size);
}

/* The files of a folder; fails when there are too many. */
static size_t list_files(Fixture *fixture, const char *folder, const char **out_paths) {
  DIR *stream = opendir(folder);
  if (stream == NULL) return 0;
  size_t count = 0;
  for (const struct dirent *item; (item = readdir(stream)) != NULL;) {
    if (item->d_name[0] == '.') continue;
    assert_true(count < PATHS_LIMIT);
    out_paths[count++] = arena_format(fixture->arena, "%s/%s", folder, item->d_name);
  }
  closedir(stream);
  return count;
}

static size_t count_files(Fixture *fixture, const char *folder) {
  const char *paths[PATHS_LIMIT];
  return list_files(fixture, folder, paths);
}

static void write_bytes(const char *path, const void *data, size_t size) {
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  assert_true(file >= 0);
  assert_int_equal(write(file, data, size), size);
  assert_int_equal(close(file), 0);
}

/* Damages one byte of a file, or cuts it. */
static void flip_byte(Fixture *fixture, const char *path, size_t at) {
  void *data;
  size_t size;
  assert_true(file_read(path, 1 << 24, fixture->arena, fixture->diag, &data, &size));
  ((unsigned char *)data)[at % size] ^= 0x10;
  write_bytes(path, data, size);
}

/* --- entries ----------------------------------------------------------------------------------------- */

static void test_miss_store_hit(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "a/b/cache");
  ObjectCache *cache = object_cache_create(folder, fixture->arena);
  const Code key = code_of("key"), other = code_of("keys"), object = code_of("object");
  Code found;
  assert_false(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
  assert_int_equal(count_files(fixture, folder), 0); /* looking makes no folder */
  object_cache_store(cache, &key, &object, fixture->arena);
  assert_true(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
  check_code(&found, "object");
  assert_false(object_cache_load(cache, &other, fixture->arena, fixture->arena, &found));
  assert_int_equal(count_files(fixture, folder), 1);
  /* the later one wins */
  const Code changed = code_of("changed object");
  object_cache_store(cache, &key, &changed, fixture->arena);
  assert_true(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
  check_code(&found, "changed object");
  assert_int_equal(count_files(fixture, folder), 1);
  object_cache_finish(cache, OBJECT_CACHE_BYTES, fixture->arena, fixture->diag);
  check_messages(fixture, "");
}

static void test_damaged_entries(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache"), *paths[PATHS_LIMIT];
  ObjectCache *cache = object_cache_create(folder, fixture->arena);
  const Code key = code_of("a key of some length"), object = code_of("the bytes of an object file");
  Code found;
  object_cache_store(cache, &key, &object, fixture->arena);
  assert_int_equal(list_files(fixture, folder, paths), 1);
  void *data;
  size_t size;
  assert_true(file_read(paths[0], 1 << 20, fixture->arena, fixture->diag, &data, &size));
  unsigned char *bytes = data;
  for (size_t at = 0; at < size; at++) {
    for (int bit = 0; bit < 8; bit++) {
      bytes[at] ^= (unsigned char)(1 << bit);
      write_bytes(paths[0], bytes, size);
      if (object_cache_load(cache, &key, fixture->arena, fixture->arena, &found))
        fail_msg("bit %d of byte %zu is not noticed", bit, at);
      bytes[at] ^= (unsigned char)(1 << bit);
    }
  }
  for (size_t cut = 0; cut < size; cut++) {
    write_bytes(paths[0], bytes, cut);
    assert_false(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
  }
  unsigned char *longer = arena_array(fixture->arena, size + 1, unsigned char);
  memcpy(longer, bytes, size);
  write_bytes(paths[0], longer, size + 1);
  assert_false(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
  write_bytes(paths[0], bytes, size);
  assert_true(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
  check_code(&found, "the bytes of an object file");
}

/* Two keys whose hashes are equal: the stored key tells them apart. */
static void test_other_key_in_the_file(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache"), *first[PATHS_LIMIT], *both[PATHS_LIMIT];
  ObjectCache *cache = object_cache_create(folder, fixture->arena);
  const Code a = code_of("key a"), b = code_of("key b"), object = code_of("object");
  Code found;
  object_cache_store(cache, &a, &object, fixture->arena);
  list_files(fixture, folder, first);
  object_cache_store(cache, &b, &object, fixture->arena);
  assert_int_equal(list_files(fixture, folder, both), 2);
  const char *second = strcmp(both[0], first[0]) == 0 ? both[1] : both[0];
  assert_int_equal(rename(first[0], second), 0);
  assert_false(object_cache_load(cache, &b, fixture->arena, fixture->arena, &found));
}

static void test_folder_that_cannot_be_written(void **state) {
  Fixture *fixture = *state;
  const char *file = fixture_path(fixture, "file");
  write_bytes(file, "x", 1);
  ObjectCache *cache = object_cache_create(arena_format(fixture->arena, "%s/cache", file), fixture->arena);
  const Code key = code_of("key"), object = code_of("object");
  Code found;
  for (int i = 0; i < 3; i++) {
    assert_false(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found));
    object_cache_store(cache, &key, &object, fixture->arena);
  }
  for (int i = 0; i < 2; i++) object_cache_finish(cache, OBJECT_CACHE_BYTES, fixture->arena, fixture->diag);
  assert_int_equal(diag_error_count(fixture->diag), 0);
  assert_int_equal(diag_message_count(fixture->diag), 1);
  check_message_part(fixture, "warning: compiled kernels cannot be kept in ");
  check_message_part(fixture, strerror(ENOTDIR));
}

static void set_age(const char *path, int seconds) {
  struct timespec times[2] = {{time(NULL) - seconds, 0}, {time(NULL) - seconds, 0}};
  assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_oldest_go_first(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache"), *paths[PATHS_LIMIT];
  ObjectCache *cache = object_cache_create(folder, fixture->arena);
  const Code object = code_of("0123456789");
  Code found;
  struct stat status = {0};
  for (int i = 0; i < 8; i++) {
    const Code key = code_of((char[]){(char)('a' + i), '\0'});
    size_t before = list_files(fixture, folder, paths);
    object_cache_store(cache, &key, &object, fixture->arena);
    /* the one that was not there before gets its age; the others have theirs */
    size_t after = list_files(fixture, folder, paths);
    assert_int_equal(after, before + 1);
    for (size_t p = 0; p < after; p++) {
      assert_int_equal(stat(paths[p], &status), 0);
      if (time(NULL) - status.st_mtime < 60) set_age(paths[p], 1000 - 100 * i);
    }
  }
  const char *strange = fixture_path(fixture, "cache/notes.txt");
  const char *stale = fixture_path(fixture, "cache/0123456789abcdef.o.1.2.tmp");
  const char *fresh = fixture_path(fixture, "cache/0123456789abcdef.o.1.3.tmp");
  write_bytes(strange, "mine", 4);
  write_bytes(stale, "x", 1);
  write_bytes(fresh, "x", 1);
  set_age(strange, 100000);
  set_age(stale, 100000);
  object_cache_finish(cache, 3 * status.st_size, fixture->arena, fixture->diag);
  for (int i = 0; i < 8; i++) {
    const Code key = code_of((char[]){(char)('a' + i), '\0'});
    assert_int_equal(object_cache_load(cache, &key, fixture->arena, fixture->arena, &found), i >= 5);
  }
  assert_int_equal(access(strange, F_OK), 0);
  assert_int_equal(access(fresh, F_OK), 0);
  assert_int_not_equal(access(stale, F_OK), 0);
}

typedef struct Writer {
  const char *folder;
  int number;
  bool good;
  pthread_t thread;
} Writer;

/* All writers use the same keys; the object says which key it belongs to. */
static void *write_and_read(void *argument) {
  enum { ROUNDS = 50, KEYS = 5 };
  Writer *writer = argument;
  writer->good = true;
  Arena *arena = arena_create(NULL);
  jmp_buf failure;
  if (arena == NULL || setjmp(failure) != 0) {
    writer->good = false;
    return NULL;
  }
  arena_on_failure(arena, &failure);
  ObjectCache *cache = object_cache_create(writer->folder, arena);
  for (int round = 0; round < ROUNDS; round++) {
    char key_text[NAME_LIMIT], object_text[NAME_LIMIT];
    Code key = {key_text, 0}, object = {object_text, 0}, found;
    key.size = (size_t)snprintf(key_text, sizeof key_text, "key %d", (round + writer->number) % KEYS);
    object.size = (size_t)snprintf(object_text, sizeof object_text, "%s of the object, %*d", key_text, 100 + round,
                                   writer->number);
    object_cache_store(cache, &key, &object, arena);
    if (!object_cache_load(cache, &key, arena, arena, &found) || found.size < key.size ||
        memcmp(found.data, key_text, key.size) != 0)
      writer->good = false;
  }
  Diag *diag = diag_create(arena);
  object_cache_finish(cache, OBJECT_CACHE_BYTES, arena, diag);
  writer->good &= diag_message_count(diag) == 0;
  arena_destroy(arena);
  return NULL;
}

static void test_writers_at_once(void **state) {
  Fixture *fixture = *state;
  enum { WRITERS = 4 };
  Writer writers[WRITERS];
  const char *folder = fixture_path(fixture, "cache");
  for (int i = 0; i < WRITERS; i++) {
    writers[i] = (Writer){.folder = folder, .number = i};
    assert_int_equal(pthread_create(&writers[i].thread, NULL, write_and_read, &writers[i]), 0);
  }
  for (int i = 0; i < WRITERS; i++) {
    pthread_join(writers[i].thread, NULL);
    assert_true(writers[i].good);
  }
  assert_int_equal(count_files(fixture, folder), 5);
}

/* --- programs ---------------------------------------------------------------------------------------- */

static void check_same(const CpuObjects *a, const CpuObjects *b) {
  assert_int_equal(a->count, b->count);
  for (size_t i = 0; i < a->count; i++) {
    assert_int_equal(a->objects[i].size, b->objects[i].size);
    assert_memory_equal(a->objects[i].data, b->objects[i].data, a->objects[i].size);
  }
}

static void test_same_bytes_with_and_without(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache"), *paths[PATHS_LIMIT];
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  const CpuOptions without = {.threads = 1}, with = {.threads = 2, .cache_dir = folder};
  const CpuObjects expected = compiled(fixture, plan, &without);
  CpuObjects cold = compiled(fixture, plan, &with), warm = compiled(fixture, plan, &with);
  check_same(&expected, &cold);
  check_same(&expected, &warm);
  size_t count = list_files(fixture, folder, paths);
  assert_int_equal(count, expected.count);
  /* what is read is what stands in the files: an object of the right form is believed */
  for (size_t i = 0; i < count; i++) flip_byte(fixture, paths[i], 1000 * i + 99);
  CpuObjects repaired = compiled(fixture, plan, &with);
  check_same(&expected, &repaired);
  SmallRun *run = small_run(fixture);
  small_prepare(run, loaded(fixture, &repaired));
  assert_int_equal(run->weights.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  small_check(run);
  /* damaged files have been replaced, so that nothing is compiled now */
  struct stat before[PATHS_LIMIT], after;
  for (size_t i = 0; i < count; i++) assert_int_equal(stat(paths[i], &before[i]), 0);
  CpuObjects again = compiled(fixture, plan, &with);
  check_same(&expected, &again);
  for (size_t i = 0; i < count; i++) {
    assert_int_equal(stat(paths[i], &after), 0);
    assert_int_equal(after.st_ino, before[i].st_ino);
  }
  check_messages(fixture, "");
}

/* The object is taken from the folder: what stands there under the right key is what comes back. */
static void test_hits_are_used(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache"), *paths[PATHS_LIMIT];
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  const CpuOptions with = {.cache_dir = folder};
  CpuObjects expected = compiled(fixture, plan, &with);
  ObjectCache *cache = object_cache_create(folder, fixture->arena);
  size_t count = list_files(fixture, folder, paths);
  for (size_t i = 0; i < count; i++) {
    void *data;
    size_t size;
    assert_true(file_read(paths[i], 1 << 24, fixture->arena, fixture->diag, &data, &size));
    uint64_t key_size;
    memcpy(&key_size, (const char *)data + 16, sizeof key_size); /* after magic and checksum */
    const Code key = {(char *)data + 32, (size_t)key_size}, marked = code_of("marked");
    object_cache_store(cache, &key, &marked, fixture->arena);
  }
  CpuObjects found = compiled(fixture, plan, &with);
  assert_int_equal(found.count, expected.count);
  for (size_t i = 0; i < found.count; i++) check_code(&found.objects[i], "marked");
}

static void test_targets_and_names_have_their_own(void **state) {
  Fixture *fixture = *state;
  const char *folder = fixture_path(fixture, "cache");
  const CpuOptions with = {.cache_dir = folder}, without = {.threads = 1};
  static const struct {
    const char *isa, *triple, *name;
  } cases[] = {{"x86-64-v2", "x86_64-pc-linux-gnu", "net"},
               {"x86-64-v3", "x86_64-pc-linux-gnu", "net"},
               {"x86-64-v4", "x86_64-pc-linux-gnu", "net"},
               {"aarch64", "aarch64-linux-gnu", "net"},
               {"x86-64-v3", "x86_64-pc-linux-gnu", "other"}};
  size_t files = 0;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    Target target = target_of(fixture, cases[i].isa, cases[i].triple);
    Plan *plan = small_plan(fixture, cases[i].name, &target);
    CpuObjects expected = compiled(fixture, plan, &without), kept = compiled(fixture, plan, &with);
    check_same(&expected, &kept);
    files += kept.count;
    assert_int_equal(count_files(fixture, folder), files);
  }
}

static void test_compiling_without_a_folder_to_write(void **state) {
  Fixture *fixture = *state;
  const char *file = fixture_path(fixture, "file");
  write_bytes(file, "x", 1);
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  const CpuOptions with = {.threads = 3, .cache_dir = file}, without = {.threads = 1};
  CpuObjects expected = compiled(fixture, plan, &without), got;
  assert_true(cpu_compile(plan, &with, fixture->arena, fixture->diag, &got));
  check_same(&expected, &got);
  assert_int_equal(diag_message_count(fixture->diag), 1);
  check_message_part(fixture, "warning: compiled kernels cannot be kept in ");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_miss_store_hit),
      fixture_test(test_damaged_entries),
      fixture_test(test_other_key_in_the_file),
      fixture_test(test_folder_that_cannot_be_written),
      fixture_test(test_oldest_go_first),
      fixture_test(test_writers_at_once),
      fixture_test(test_same_bytes_with_and_without),
      fixture_test(test_hits_are_used),
      fixture_test(test_targets_and_names_have_their_own),
      fixture_test(test_compiling_without_a_folder_to_write),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
