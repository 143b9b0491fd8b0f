/* runtime/session/data_idx: arrays read, and everything that is refused. All files are made here. */
#include <zlib.h>

#include "base/file.h"
#include "session/data_idx.h"
#include "support.h"

typedef struct Bytes {
  unsigned char *data;
  size_t size;
} Bytes;

/* 2 × 3 values 10 … 15 */
static const unsigned char small[] = {0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 13, 14, 15};

static Bytes plain(Fixture *fixture) { return (Bytes){arena_copy(fixture->arena, small, sizeof small), sizeof small}; }

static Bytes compress_bytes(Fixture *fixture, const void *data, size_t size) {
  const size_t limit = size + size / 100 + 100;
  Bytes bytes = {arena_alloc(fixture->arena, limit, 1), 0};
  z_stream stream = {0};
  assert_int_equal(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = arena_copy(fixture->arena, data, size);
  stream.avail_in = (unsigned)size;
  stream.next_out = bytes.data;
  stream.avail_out = (unsigned)limit;
  assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
  bytes.size = stream.total_out;
  deflateEnd(&stream);
  return bytes;
}

static bool parse(Fixture *fixture, Bytes bytes, IdxArray *array) {
  clear_messages(fixture);
  /* an allocation of its own, so that the address sanitizer sees reads past the end */
  void *copy = malloc(bytes.size ? bytes.size : 1);
  memcpy(copy, bytes.data, bytes.size);
  const bool good = idx_parse("f", copy, bytes.size, fixture->arena, fixture->diag, array);
  if (good) array->values = arena_copy(fixture->arena, array->values, (size_t)array->count);
  free(copy);
  assert_int_equal(diag_error_count(fixture->diag), good ? 0 : 1);
  return good;
}

static void check_small(const IdxArray *array) {
  assert_int_equal(array->rank, 2);
  assert_int_equal(array->dims[0], 2);
  assert_int_equal(array->dims[1], 3);
  assert_int_equal(array->count, 6);
  assert_memory_equal(array->values, small + 12, 6);
}

static void arrays_are_read(void **state) {
  Fixture *fixture = *state;
  IdxArray array;
  assert_true(parse(fixture, plain(fixture), &array));
  check_small(&array);
  const Bytes zipped = compress_bytes(fixture, small, sizeof small);
  assert_true(parse(fixture, zipped, &array));
  check_small(&array);

  /* gzip files may be written one after the other */
  const Bytes first = compress_bytes(fixture, small, 5), second = compress_bytes(fixture, small + 5, sizeof small - 5);
  Bytes both = {arena_alloc(fixture->arena, first.size + second.size, 1), first.size + second.size};
  memcpy(both.data, first.data, first.size);
  memcpy(both.data + first.size, second.data, second.size);
  assert_true(parse(fixture, both, &array));
  check_small(&array);

  const unsigned char empty[] = {0, 0, 8, 1, 0, 0, 0, 0};
  assert_true(parse(fixture, (Bytes){arena_copy(fixture->arena, empty, 8), 8}, &array));
  assert_int_equal(array.count, 0);
  assert_true(parse(fixture, compress_bytes(fixture, empty, 8), &array));
  assert_int_equal(array.count, 0);
}

static void files_are_read(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "a.gz");
  const Bytes zipped = compress_bytes(fixture, small, sizeof small);
  const FilePiece piece = {zipped.data, zipped.size};
  IdxArray array;
  assert_true(file_write(path, &piece, 1, fixture->diag));
  assert_true(idx_read(path, fixture->arena, fixture->diag, &array));
  check_small(&array);
  assert_false(idx_read(fixture->folder, fixture->arena, fixture->diag, &array));
  check_message_part(fixture, "is a folder, expected a file");
}

/* Both as it is and compressed, with messages that begin so. */
static void check_refused(Fixture *fixture, const unsigned char *data, size_t size, const char *message) {
  IdxArray array;
  const size_t used = arena_used(fixture->arena);
  assert_false(parse(fixture, (Bytes){arena_copy(fixture->arena, data, size), size}, &array));
  check_message_part(fixture, message);
  assert_false(parse(fixture, compress_bytes(fixture, data, size), &array));
  check_message_part(fixture, message);
  assert_true(arena_used(fixture->arena) - used < 500000);
}

static void bad_headers_are_refused(void **state) {
  Fixture *fixture = *state;
  static const struct {
    size_t at;
    unsigned char value;
    const char *message;
  } cases[] = {
      {0, 1, "f: error: not an IDX file: expected two zero bytes, found 01 00\n"},
      {1, 2, "f: error: not an IDX file: expected two zero bytes, found 00 02\n"},
      {2, 0x0D, "f: error: IDX: expected elements of type 08 (unsigned bytes), found type 0d\n"},
      {3, 0, "f: error: IDX: expected from 1 to 4 dimensions, found 0\n"},
      {3, 5, "f: error: IDX: expected from 1 to 4 dimensions, found 5\n"},
      {7, 1, "f: error: IDX: expected 1 × 3 = 3 bytes after the header, found "},
      {7, 3, "f: error: IDX: expected 3 × 3 = 9 bytes after the header, found 6\n"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    unsigned char data[sizeof small];
    memcpy(data, small, sizeof small);
    data[cases[i].at] = cases[i].value;
    if (i == 5) { /* a compressed file is not read to its end only to tell how long it is */
      IdxArray array;
      assert_false(parse(fixture, (Bytes){data, sizeof data}, &array));
      check_messages(fixture, "f: error: IDX: expected 1 × 3 = 3 bytes after the header, found 6\n");
      assert_false(parse(fixture, compress_bytes(fixture, data, sizeof data), &array));
      check_messages(fixture, "f: error: IDX: expected 1 × 3 = 3 bytes after the header, found more than 3\n");
    } else {
      check_refused(fixture, data, sizeof data, cases[i].message);
    }
  }
}

static void sizes_are_checked_first(void **state) {
  Fixture *fixture = *state;
  IdxArray array;
  unsigned char data[] = {0, 0, 8, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0, 1};
  check_refused(fixture, data, sizeof data, "f: error: IDX: expected 4294967295 × 256 = 1099511627520 bytes");
  unsigned char large[20] = {0, 0, 8, 4};
  memset(large + 4, 0xFF, 16);
  check_refused(fixture, large, sizeof large, "f: error: IDX: the product of the dimensions is too large\n");
  /* an overflow that a zero dimension would hide is still one */
  memset(large + 16, 0, 4);
  check_refused(fixture, large, sizeof large, "f: error: IDX: the product of the dimensions is too large\n");

  /* more than so few bytes can hold, and what they could hold but do not */
  unsigned char zeros[12 + 1000] = {0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0x60, 0};
  assert_false(parse(fixture, compress_bytes(fixture, zeros, sizeof zeros), &array));
  check_message_part(fixture, "f: error: IDX: expected 2 × 24576 = 49152 bytes, but ");
  check_message_part(fixture, " bytes of gzip cannot hold so many\n");
  zeros[10] = 2;
  assert_false(parse(fixture, compress_bytes(fixture, zeros, sizeof zeros), &array));
  check_messages(fixture, "f: error: IDX: expected 2 × 512 = 1024 bytes after the header, found 1000\n");
}

static void every_truncation_is_refused(void **state) {
  Fixture *fixture = *state;
  const Bytes files[] = {plain(fixture), compress_bytes(fixture, small, sizeof small)};
  for (int i = 0; i < 2; i++) {
    for (size_t size = 0; size < files[i].size; size++) {
      IdxArray array;
      if (parse(fixture, (Bytes){files[i].data, size}, &array)) fail_msg("accepted %zu of %zu", size, files[i].size);
      if (i == 0 && size < 12) check_messages(fixture, "f: error: IDX: the file ends inside the header\n");
      if (i == 1 && size >= 2) check_messages(fixture, "f: error: gzip: the file ends too early\n");
    }
  }
}

static void damaged_gzip_is_refused(void **state) {
  Fixture *fixture = *state;
  Bytes zipped = compress_bytes(fixture, small, sizeof small);
  size_t accepted = 0;
  for (size_t at = 0; at < zipped.size; at++) {
    for (int bit = 0; bit < 8; bit++) {
      IdxArray array;
      zipped.data[at] ^= (unsigned char)(1 << bit);
      /* some bits have no effect, such as the time in the header; the checksum guards all others */
      if (parse(fixture, zipped, &array)) {
        check_small(&array);
        accepted++;
      }
      zipped.data[at] ^= (unsigned char)(1 << bit);
    }
  }
  assert_true(accepted < 8 * 8);
  /* something behind the end */
  Bytes longer = {arena_alloc(fixture->arena, zipped.size + 1, 1), zipped.size + 1};
  memcpy(longer.data, zipped.data, zipped.size);
  longer.data[zipped.size] = 'x';
  IdxArray array;
  assert_false(parse(fixture, longer, &array));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(arrays_are_read),
      fixture_test(files_are_read),
      fixture_test(bad_headers_are_refused),
      fixture_test(sizes_are_checked_first),
      fixture_test(every_truncation_is_refused),
      fixture_test(damaged_gzip_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
