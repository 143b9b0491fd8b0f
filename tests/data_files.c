#include "data_files.h"

#include <errno.h>
#include <sys/stat.h>
#include <zlib.h>

void write_bytes(Fixture *fixture, const char *name, const void *data, size_t size) {
  FILE *file = fopen(fixture_path(fixture, name), "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

void make_folder(Fixture *fixture, const char *name) {
  assert_true(mkdir(fixture_path(fixture, name), 0777) == 0 || errno == EEXIST);
}

uint8_t sample(int64_t image, int64_t at) { return (uint8_t)(image * 31 + at * 7 + image * at / 3); }

void write_idx(Fixture *fixture, const char *name, int rank, int64_t count, int64_t side) {
  const int64_t size = rank == 1 ? 1 : side * side;
  const size_t header = 4 + 4 * (size_t)rank, total = header + (size_t)(count * size);
  uint8_t *data = arena_alloc(fixture->arena, total, 1);
  data[2] = 8;
  data[3] = (uint8_t)rank;
  for (int d = 0; d < rank; d++) {
    const int64_t dim = d == 0 ? count : side;
    data[6 + 4 * d] = (uint8_t)(dim >> 8);
    data[7 + 4 * d] = (uint8_t)dim;
  }
  for (int64_t i = 0; i < count; i++)
    for (int64_t k = 0; k < size; k++)
      data[header + (size_t)(i * size + k)] = (uint8_t)(rank == 1 ? i % 3 : sample(i, k));
  if (!strstr(name, ".gz")) {
    write_bytes(fixture, name, data, total);
    return;
  }
  gzFile file = gzopen(fixture_path(fixture, name), "wb");
  assert_int_equal(gzwrite(file, data, (unsigned)total), total);
  assert_int_equal(gzclose(file), Z_OK);
}

void write_mnist(Fixture *fixture) {
  write_idx(fixture, "train-images-idx3-ubyte.gz", 3, IDX_TRAIN, IDX_SIDE);
  write_idx(fixture, "train-labels-idx1-ubyte", 1, IDX_TRAIN, 0);
  write_idx(fixture, "t10k-images-idx3-ubyte", 3, IDX_VALID, IDX_SIDE);
  write_idx(fixture, "t10k-labels.idx1-ubyte.gz", 1, IDX_VALID, 0);
}

/* Appends a chunk of a PNG file. */
static uint8_t *put_chunk(uint8_t *at, const char *type, const void *data, size_t size) {
  memcpy(at + 4, type, 4);
  memcpy(at + 8, data, size);
  const uint32_t sum = (uint32_t)crc32(0, at + 4, (unsigned)size + 4);
  for (int i = 0; i < 4; i++) {
    at[i] = (uint8_t)(size >> (24 - 8 * i));
    at[8 + size + (size_t)i] = (uint8_t)(sum >> (24 - 8 * i));
  }
  return at + 12 + size;
}

void write_picture(Fixture *fixture, const char *name, int32_t width, int32_t height, int32_t number) {
  const int32_t channels = number % 4 == 0 ? 1 : number % 4 == 1 ? 4 : 3;
  const size_t row = 1 + (size_t)(width * channels), size = row * (size_t)height;
  uint8_t *samples = arena_alloc(fixture->arena, size, 1), *packed = arena_alloc(fixture->arena, size + 1000, 1);
  for (size_t i = 0; i < size; i++) samples[i] = i % row == 0 ? 0 : sample(number, (int64_t)i);
  uLongf packed_size = size + 1000;
  assert_int_equal(compress2(packed, &packed_size, samples, size, 6), Z_OK);
  const uint8_t header[13] = {
      0, 0, 0, (uint8_t)width, 0, 0, 0, (uint8_t)height, 8, channels == 1 ? 0 : channels == 3 ? 2 : 6, 0, 0, 0};
  uint8_t *data = arena_alloc(fixture->arena, packed_size + 100, 1);
  memcpy(data, "\x89PNG\r\n\x1a\n", 8);
  uint8_t *end = put_chunk(data + 8, "IHDR", header, sizeof header);
  end = put_chunk(end, "IDAT", packed, packed_size);
  end = put_chunk(end, "IEND", "", 0);
  write_bytes(fixture, name, data, (size_t)(end - data));
}

const char *name_of(Fixture *fixture, const char *prefix, int number) {
  return arena_format(fixture->arena, "%s%s_%02d.PNG", prefix, number % 2 ? "odd" : "even", number);
}

void write_pictures(Fixture *fixture, const char *root) {
  static const char *const classes[] = {"cat", "ant", "bee"};
  make_folder(fixture, root[0] ? root : "cat");
  for (int i = 23; i >= 0; i--) {
    const char *folder = arena_format(fixture->arena, "%s%s%s", root, root[0] ? "/" : "", classes[i % 3]);
    make_folder(fixture, folder);
    write_picture(fixture, name_of(fixture, arena_format(fixture->arena, "%s/", folder), i), 9 + i % 5, 8 + i % 3, i);
  }
}

DataOptions picture_options(Fixture *fixture) {
  DataOptions options = data_options_default();
  options.folder = fixture->folder;
  options.height = 6;
  options.width = 7;
  return options;
}

DataOptions idx_options(Fixture *fixture) {
  DataOptions options = data_options_default();
  options.folder = fixture->folder;
  return options;
}

DataSet *open_good(Fixture *fixture, const DataOptions *options) {
  DataSet *set = data_set_open(options, fixture->diag);
  if (!set) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return set;
}
