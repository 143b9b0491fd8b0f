/* runtime/session/checkpoint: whole, damaged and missing files, how many are kept, and the lock. */
#include "session/checkpoint.h"

#include <sys/stat.h>

#include "base/file.h"
#include "support.h"

/* Two parts, one of which is no multiple of eight long; the content follows from the step. */
static Checkpoint sample(Fixture *fixture, int64_t step) {
  enum { BYTES = 203, COUNT = 7 };
  unsigned char *bytes = arena_alloc(fixture->arena, BYTES, 1);
  for (int i = 0; i < BYTES; i++) bytes[i] = (unsigned char)(i * 31 + step);
  int64_t *numbers = arena_array(fixture->arena, COUNT, int64_t);
  for (int i = 0; i < COUNT; i++) numbers[i] = step * i;
  Checkpoint checkpoint = {.step = step, .count = 3};
  checkpoint.parts[0] = (CheckpointPart){"state", bytes, BYTES};
  checkpoint.parts[1] = (CheckpointPart){"numbers", numbers, COUNT * sizeof *numbers};
  checkpoint.parts[2] = (CheckpointPart){"empty", NULL, 0};
  return checkpoint;
}

static void check_sample(Fixture *fixture, const Checkpoint *found, int64_t step) {
  const Checkpoint expected = sample(fixture, step);
  assert_int_equal(found->step, step);
  assert_int_equal(found->count, expected.count);
  for (size_t i = 0; i < expected.count; i++) {
    const CheckpointPart *part = checkpoint_part(found, expected.parts[i].name, expected.parts[i].size);
    assert_non_null(part);
    assert_memory_equal(part->data, expected.parts[i].data, part->size);
  }
  assert_null(checkpoint_part(found, "numbers", 3));
  assert_null(checkpoint_part(found, "other", SIZE_MAX));
}

static CheckpointFolder open_folder(Fixture *fixture, Arena *arena) {
  CheckpointFolder folder;
  const bool good = checkpoint_folder_open(fixture_path(fixture, "run"), arena, fixture->diag, &folder);
  check_messages(fixture, "");
  assert_true(good);
  return folder;
}

static void write_step(Fixture *fixture, CheckpointFolder *folder, int64_t step) {
  const Checkpoint checkpoint = sample(fixture, step);
  assert_true(checkpoint_write(folder, &checkpoint, fixture->arena, fixture->diag));
}

static size_t count_files(Fixture *fixture, const CheckpointFolder *folder) {
  size_t count = 0;
  assert_true(checkpoint_count(folder, fixture->arena, fixture->diag, &count));
  return count;
}

static const char *file_of(Fixture *fixture, int64_t step) {
  return arena_format(fixture->arena, "%s/run/checkpoint-%012lld.kiln", fixture->folder, (long long)step);
}

static void replace_file(Fixture *fixture, const char *path, const void *data, size_t size) {
  const FilePiece piece = {data, size};
  assert_true(file_write(path, &piece, 1, fixture->diag));
}

/* --- tests ---------------------------------------------------------------------------------------------- */

static void test_keeps_two(void **state) {
  Fixture *fixture = *state;
  CheckpointFolder folder = open_folder(fixture, fixture->arena);
  Checkpoint found;
  bool any = true;
  assert_true(checkpoint_read(&folder, fixture->arena, fixture->diag, &found, &any));
  assert_false(any);
  for (int64_t step = 5; step <= 25; step += 5) {
    write_step(fixture, &folder, step);
    assert_int_equal(count_files(fixture, &folder), step == 5 ? 1 : 2);
    assert_true(checkpoint_read(&folder, fixture->arena, fixture->diag, &found, &any));
    assert_true(any);
    check_sample(fixture, &found, step);
  }
  /* the same step again replaces the file and keeps the older one */
  write_step(fixture, &folder, 25);
  assert_int_equal(count_files(fixture, &folder), 2);
  assert_int_equal(access(file_of(fixture, 20), F_OK), 0);
  check_messages(fixture, "");
}

/* Every byte of the newest file changed in turn, and every length cut: always noticed, and the older one is taken. */
static void test_damage(void **state) {
  Fixture *fixture = *state;
  CheckpointFolder folder = open_folder(fixture, fixture->arena);
  write_step(fixture, &folder, 1);
  write_step(fixture, &folder, 2);
  const char *path = file_of(fixture, 2);
  void *data;
  size_t size;
  assert_true(file_read(path, 1 << 20, fixture->arena, fixture->diag, &data, &size));
  unsigned char *bytes = data;
  for (size_t i = 0; i < 2 * size; i++) {
    Arena *arena = arena_create(NULL);
    Diag *diag = diag_create(arena);
    FILE *stream = fopen(path, "wb");
    assert_non_null(stream);
    if (i < size) bytes[i] ^= (unsigned char)(1 << i % 8);
    assert_int_equal(fwrite(bytes, 1, i < size ? size : i - size, stream), i < size ? size : i - size);
    assert_int_equal(fclose(stream), 0);
    if (i < size) bytes[i] ^= (unsigned char)(1 << i % 8);
    Checkpoint found;
    bool any = false;
    assert_true(checkpoint_read(&folder, arena, diag, &found, &any));
    assert_true(any);
    check_sample(fixture, &found, 1);
    assert_int_equal(diag_message_count(diag), 1);
    assert_int_equal(diag_error_count(diag), 0);
    arena_destroy(arena);
  }
  /* both damaged: an error, not a new beginning */
  replace_file(fixture, path, "KILNCKP1", 8);
  replace_file(fixture, file_of(fixture, 1), "", 0);
  Checkpoint found;
  bool any = true;
  assert_false(checkpoint_read(&folder, fixture->arena, fixture->diag, &found, &any));
  assert_false(any);
  check_message_part(fixture, "none of the 2 checkpoints can be used");
}

/* A run that went back to an older checkpoint removes the damaged newer one once it has written its own. */
static void test_going_back(void **state) {
  Fixture *fixture = *state;
  CheckpointFolder folder = open_folder(fixture, fixture->arena);
  write_step(fixture, &folder, 10);
  write_step(fixture, &folder, 20);
  replace_file(fixture, file_of(fixture, 20), "x", 1);
  Checkpoint found;
  bool any;
  assert_true(checkpoint_read(&folder, fixture->arena, fixture->diag, &found, &any));
  check_sample(fixture, &found, 10);
  check_message_part(fixture, "damaged checkpoint");
  write_step(fixture, &folder, 15);
  assert_int_equal(count_files(fixture, &folder), 2);
  assert_int_not_equal(access(file_of(fixture, 20), F_OK), 0);
  assert_int_equal(access(file_of(fixture, 10), F_OK), 0);
}

static void test_lock_and_leftovers(void **state) {
  Fixture *fixture = *state;
  Arena *arena = arena_create(NULL);
  CheckpointFolder first = open_folder(fixture, arena), second;
  write_step(fixture, &first, 3);
  assert_false(checkpoint_folder_open(first.path, fixture->arena, fixture->diag, &second));
  check_message_part(fixture, "is in use by another run");
  clear_messages(fixture);
  const char *leftover = arena_format(fixture->arena, "%s/run/.kiln-123-0.tmp", fixture->folder);
  const char *stranger = arena_format(fixture->arena, "%s/run/notes.txt", fixture->folder);
  replace_file(fixture, leftover, "half", 4);
  replace_file(fixture, stranger, "kept", 4);
  arena_destroy(arena);
  second = open_folder(fixture, fixture->arena);
  assert_int_not_equal(access(leftover, F_OK), 0);
  assert_int_equal(access(stranger, F_OK), 0);
  assert_int_equal(count_files(fixture, &second), 1);
}

static void test_bad_folders(void **state) {
  Fixture *fixture = *state;
  CheckpointFolder folder;
  assert_false(checkpoint_folder_open(fixture_path(fixture, "a/b"), fixture->arena, fixture->diag, &folder));
  check_message_part(fixture, "a/b: error: cannot make the folder: No such file or directory");
  clear_messages(fixture);
  const char *file = fixture_path(fixture, "file");
  replace_file(fixture, file, "", 0);
  assert_false(checkpoint_folder_open(file, fixture->arena, fixture->diag, &folder));
  check_message_part(fixture, "cannot open the folder: Not a directory");
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_keeps_two), fixture_test(test_damage),
                                     fixture_test(test_going_back), fixture_test(test_lock_and_leftovers),
                                     fixture_test(test_bad_folders)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
