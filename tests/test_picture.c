/* runtime/session/picture: decoding, refusals, resampling, tensors. All files are made here. */
#include <math.h>
#include <stdio.h>
/* after stdio.h */
#include <jpeglib.h>
#include <png.h>

#include "base/file.h"
#include "session/picture.h"
#include "support.h"

typedef struct Bytes {
  unsigned char *data;
  size_t size;
} Bytes;

/* --- drawing and encoding -------------------------------------------------------------------------- */

static Picture draw(Arena *arena, int32_t width, int32_t height, int32_t channels) {
  Picture picture = {width, height, channels, arena_alloc(arena, (size_t)(width * height * channels), 1)};
  for (int32_t y = 0; y < height; y++) {
    for (int32_t x = 0; x < width; x++) {
      for (int32_t c = 0; c < channels; c++) {
        picture.pixels[(y * width + x) * channels + c] = (uint8_t)(x * x * 7 + y * 13 * (c + 1) + x * y * 5 + c * 50);
      }
    }
  }
  return picture;
}

static uint32_t hash_pixels(const Picture *picture) { /* FNV-1a */
  uint32_t hash = 2166136261U;
  for (int32_t i = 0; i < picture->width * picture->height * picture->channels; i++) {
    hash = (hash ^ picture->pixels[i]) * 16777619U;
  }
  return hash;
}

/* A 4 by 3 PNG of the given kind, all of whose sample bytes are `fill`; every palette entry is (10, 20, 30). */
static Bytes encode_png(Arena *arena, int kind, int depth, int interlace, bool transparent, int fill) {
  char *data;
  size_t size;
  FILE *file = open_memstream(&data, &size);
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png_create_info_struct(png);
  png_init_io(png, file);
  png_set_IHDR(png, info, 4, 3, depth, kind, interlace, 0, 0);
  png_color colours[16];
  for (int i = 0; i < 16; i++) colours[i] = (png_color){10, 20, 30};
  if (kind == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, colours, 1 << depth);
  png_byte alphas[] = {77};
  png_color_16 key = {0, 0xFF, 0xFF, 0xFF, 1};
  if (transparent) png_set_tRNS(png, info, alphas, 1, kind == PNG_COLOR_TYPE_PALETTE ? NULL : &key);
  png_text text = {.compression = PNG_TEXT_COMPRESSION_zTXt, .key = (char[]){"note"}, .text = (char[]){"text"}};
  png_set_text(png, info, &text, 1);
  png_write_info(png, info);
  unsigned char row[64];
  memset(row, fill, sizeof row);
  png_bytep rows[] = {row, row, row};
  png_write_image(png, rows);
  png_write_end(png, NULL);
  png_destroy_write_struct(&png, &info);
  fclose(file);
  const Bytes bytes = {arena_copy(arena, data, size), size};
  free(data);
  return bytes;
}

/* A 24 by 17 JPEG, all of whose samples are `fill`. */
static Bytes encode_jpeg(Arena *arena, int channels, J_COLOR_SPACE space, bool progressive, int fill) {
  struct jpeg_compress_struct jpeg;
  struct jpeg_error_mgr errors;
  unsigned char *data = NULL;
  unsigned long size = 0;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  jpeg_mem_dest(&jpeg, &data, &size);
  jpeg.image_width = 24;
  jpeg.image_height = 17;
  jpeg.input_components = channels;
  jpeg.in_color_space = space;
  jpeg_set_defaults(&jpeg);
  if (progressive) jpeg_simple_progression(&jpeg);
  jpeg_start_compress(&jpeg, TRUE);
  unsigned char row[24 * 4];
  memset(row, fill, sizeof row);
  JSAMPROW rows[] = {row};
  while (jpeg.next_scanline < jpeg.image_height) jpeg_write_scanlines(&jpeg, rows, 1);
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  const Bytes bytes = {arena_copy(arena, data, size), size};
  free(data);
  return bytes;
}

static bool parse(Fixture *fixture, Bytes bytes, size_t size, Picture *picture) {
  clear_messages(fixture);
  return picture_parse("p", arena_copy(fixture->arena, bytes.data, size), size, fixture->arena, fixture->diag, picture);
}

/* --- decoding -------------------------------------------------------------------------------------- */

static void all_kinds_of_png_are_read(void **state) {
  Fixture *fixture = *state;
  static const struct {
    int kind, depth;
    bool transparent;
    int fill;
    int32_t channels;
    uint8_t pixel[4];
  } cases[] = {
      {PNG_COLOR_TYPE_GRAY, 8, false, 200, 1, {200}},
      {PNG_COLOR_TYPE_GRAY, 1, false, 0xFF, 1, {255}},
      {PNG_COLOR_TYPE_GRAY, 2, false, 0x55, 1, {85}},
      {PNG_COLOR_TYPE_GRAY, 4, false, 0x33, 1, {51}},
      {PNG_COLOR_TYPE_GRAY, 16, false, 0x80, 1, {0x80}},
      {PNG_COLOR_TYPE_GRAY, 8, true, 1, 4, {1, 1, 1, 0}},
      {PNG_COLOR_TYPE_GRAY, 8, true, 2, 4, {2, 2, 2, 255}},
      {PNG_COLOR_TYPE_GRAY_ALPHA, 8, false, 9, 4, {9, 9, 9, 9}},
      {PNG_COLOR_TYPE_GRAY_ALPHA, 16, false, 9, 4, {9, 9, 9, 9}},
      {PNG_COLOR_TYPE_RGB, 8, false, 7, 3, {7, 7, 7}},
      {PNG_COLOR_TYPE_RGB, 8, true, 255, 4, {255, 255, 255, 0}},
      {PNG_COLOR_TYPE_RGB, 16, false, 7, 3, {7, 7, 7}},
      {PNG_COLOR_TYPE_RGB_ALPHA, 8, false, 5, 4, {5, 5, 5, 5}},
      {PNG_COLOR_TYPE_RGB_ALPHA, 16, false, 5, 4, {5, 5, 5, 5}},
      {PNG_COLOR_TYPE_PALETTE, 1, false, 0, 3, {10, 20, 30}},
      {PNG_COLOR_TYPE_PALETTE, 4, false, 0x11, 3, {10, 20, 30}},
      {PNG_COLOR_TYPE_PALETTE, 2, true, 0, 4, {10, 20, 30, 77}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    for (int interlace = PNG_INTERLACE_NONE; interlace <= PNG_INTERLACE_ADAM7; interlace++) {
      const Bytes bytes =
          encode_png(fixture->arena, cases[i].kind, cases[i].depth, interlace, cases[i].transparent, cases[i].fill);
      Picture picture;
      assert_true(parse(fixture, bytes, bytes.size, &picture));
      check_messages(fixture, "");
      assert_int_equal(picture.width, 4);
      assert_int_equal(picture.height, 3);
      assert_int_equal(picture.channels, cases[i].channels);
      const size_t channels = (size_t)cases[i].channels;
      for (size_t at = 0; at < 12; at++) {
        assert_memory_equal(picture.pixels + at * channels, cases[i].pixel, channels);
      }
    }
  }
}

static void jpegs_are_read(void **state) {
  Fixture *fixture = *state;
  for (int progressive = 0; progressive < 2; progressive++) {
    Picture picture;
    Bytes bytes = encode_jpeg(fixture->arena, 3, JCS_RGB, progressive, 90);
    assert_true(parse(fixture, bytes, bytes.size, &picture));
    assert_int_equal(picture.channels, 3);
    assert_int_equal(picture.width, 24);
    assert_int_equal(picture.height, 17);
    for (int i = 0; i < 24 * 17 * 3; i++) assert_in_range(picture.pixels[i], 88, 92);
    bytes = encode_jpeg(fixture->arena, 1, JCS_GRAYSCALE, progressive, 90);
    assert_true(parse(fixture, bytes, bytes.size, &picture));
    assert_int_equal(picture.channels, 1);
    for (int i = 0; i < 24 * 17; i++) assert_in_range(picture.pixels[i], 88, 92);
    check_messages(fixture, "");
  }
}

static void cmyk_is_refused(void **state) {
  Fixture *fixture = *state;
  Picture picture;
  const Bytes bytes = encode_jpeg(fixture->arena, 4, JCS_CMYK, false, 90);
  assert_false(parse(fixture, bytes, bytes.size, &picture));
  check_messages(fixture, "p: error: JPEG: CMYK pictures are not supported: convert it to RGB\n");
}

static void every_truncation_is_an_error(void **state) {
  Fixture *fixture = *state;
  const Bytes files[] = {encode_png(fixture->arena, PNG_COLOR_TYPE_RGB, 8, PNG_INTERLACE_ADAM7, false, 7),
                         encode_jpeg(fixture->arena, 3, JCS_RGB, false, 90),
                         encode_jpeg(fixture->arena, 1, JCS_GRAYSCALE, true, 90)};
  for (size_t i = 0; i < 3; i++) {
    for (size_t size = 0; size < files[i].size; size++) {
      Picture picture;
      if (parse(fixture, files[i], size, &picture)) fail_msg("accepted %zu of %zu bytes", size, files[i].size);
      assert_int_equal(diag_error_count(fixture->diag), 1);
      check_message_part(fixture, "p: error: ");
    }
    Picture picture;
    assert_false(parse(fixture, files[i], files[i].size - 3, &picture));
    check_messages(fixture,
                   i == 0 ? "p: error: PNG: the file ends too early\n" : "p: error: JPEG: the file ends too early\n");
  }
}

static void put_u32(unsigned char *at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (unsigned char)(value >> (24 - 8 * i));
}

static void check_png_size(Fixture *fixture, uint32_t width, uint32_t height, const char *message) {
  Bytes bytes = encode_png(fixture->arena, PNG_COLOR_TYPE_RGB, 8, 0, false, 7);
  put_u32(bytes.data + 16, width);
  put_u32(bytes.data + 20, height);
  const size_t used = arena_used(fixture->arena);
  Picture picture;
  assert_false(parse(fixture, bytes, bytes.size, &picture));
  check_messages(fixture, message);
  assert_true(arena_used(fixture->arena) - used < 100000);
}

static void sizes_are_checked_first(void **state) {
  Fixture *fixture = *state;
  check_png_size(fixture, 65536, 1, "p: error: a picture of 65536 by 1 pixels: a side has from 1 to 65535\n");
  check_png_size(fixture, 0, 1, "p: error: a picture of 0 by 1 pixels: a side has from 1 to 65535\n");
  check_png_size(fixture, 1, 0xFFFFFFFF, "p: error: a picture of 1 by 4294967295 pixels: a side has from 1 to 65535\n");
  check_png_size(fixture, 60000, 60000,
                 "p: error: a picture of 60000 by 60000 pixels is larger than the limit of 67108864 pixels\n");
  Bytes bytes = encode_jpeg(fixture->arena, 3, JCS_RGB, false, 90);
  size_t at = 2;
  while (bytes.data[at + 1] != 0xC0) at += 2 + (size_t)(bytes.data[at + 2] << 8 | bytes.data[at + 3]);
  memset(bytes.data + at + 5, 0xF0, 4);
  const size_t used = arena_used(fixture->arena);
  Picture picture;
  assert_false(parse(fixture, bytes, bytes.size, &picture));
  check_messages(fixture, "p: error: a picture of 61680 by 61680 pixels is larger than the limit of 67108864 pixels\n");
  assert_true(arena_used(fixture->arena) - used < 100000);
}

static void other_files_are_refused(void **state) {
  Fixture *fixture = *state;
  Picture picture;
  const Bytes gif = {(unsigned char *)arena_string(fixture->arena, "GIF89a.........."), 16};
  assert_false(parse(fixture, gif, 16, &picture));
  check_messages(fixture, "p: error: not a PNG or JPEG picture: it starts with 47 49 46 38 39 61 2e 2e\n");
  assert_false(parse(fixture, gif, 0, &picture));
  check_messages(fixture, "p: error: not a PNG or JPEG picture: it is empty\n");
  Bytes png = encode_png(fixture->arena, PNG_COLOR_TYPE_RGB, 8, 0, false, 7);
  png.data[30] ^= 1; /* the header's checksum */
  assert_false(parse(fixture, png, png.size, &picture));
  check_messages(fixture, "p: error: PNG: IHDR: CRC error\n");
}

static void damage_never_crashes(void **state) {
  Fixture *fixture = *state;
  const Bytes files[] = {encode_png(fixture->arena, PNG_COLOR_TYPE_PALETTE, 4, PNG_INTERLACE_ADAM7, true, 0x11),
                         encode_jpeg(fixture->arena, 3, JCS_RGB, true, 90)};
  for (size_t i = 0; i < 2; i++) {
    for (size_t at = 0; at < files[i].size; at++) {
      const unsigned char kept = files[i].data[at];
      for (int bit = 0; bit < 8; bit += 3) {
        files[i].data[at] = kept ^ (unsigned char)(1 << bit);
        Picture picture;
        const bool good = parse(fixture, files[i], files[i].size, &picture);
        assert_int_equal(diag_error_count(fixture->diag), good ? 0 : 1);
      }
      files[i].data[at] = kept;
    }
  }
}

static void *allocate_some(void *context, size_t size, size_t alignment) {
  (void)alignment;
  return --*(int *)context >= 0 ? malloc(size) : NULL;
}

static void release_it(void *context, void *memory, size_t size) {
  (void)context;
  (void)size;
  free(memory);
}

/* Leaks of the decoders are seen by the leak sanitizer. */
static void running_out_of_memory_leaks_nothing(void **state) {
  Fixture *fixture = *state;
  Picture large = draw(fixture->arena, 400, 300, 3);
  const char *path = fixture_path(fixture, "large.png");
  assert_true(picture_write_png(path, &large, fixture->arena, fixture->diag));
  void *png;
  size_t png_size;
  assert_true(file_read(path, SIZE_MAX, fixture->arena, fixture->diag, &png, &png_size));
  const Bytes jpeg = encode_jpeg(fixture->arena, 3, JCS_RGB, false, 90);
  for (volatile int calls = 2; calls < 5; calls++) {
    for (volatile int kind = 0; kind < 3; kind++) {
      static int left;
      left = calls;
      const Allocator allocator = {allocate_some, release_it, &left};
      Arena *volatile arena = arena_create(&allocator);
      jmp_buf point;
      arena_on_failure(arena, &point);
      if (setjmp(point) == 0) {
        for (;;) {
          Picture picture;
          if (kind == 0) picture_parse("p", png, png_size, arena, fixture->diag, &picture);
          if (kind == 1) picture_parse("p", jpeg.data, jpeg.size, arena, fixture->diag, &picture);
          if (kind == 2) picture_write_png(path, &large, arena, fixture->diag);
        }
      }
      assert_true(left < 0);
      arena_destroy(arena);
    }
  }
  check_messages(fixture, "");
}

static void written_pictures_read_back(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "a.png");
  for (int32_t channels = 1; channels <= 4; channels += channels == 1 ? 2 : 1) {
    const Picture picture = draw(fixture->arena, 37, 23, channels);
    void *first, *second;
    size_t size, size2;
    assert_true(picture_write_png(path, &picture, fixture->arena, fixture->diag));
    assert_true(file_read(path, SIZE_MAX, fixture->arena, fixture->diag, &first, &size));
    assert_true(picture_write_png(path, &picture, fixture->arena, fixture->diag));
    assert_true(file_read(path, SIZE_MAX, fixture->arena, fixture->diag, &second, &size2));
    assert_int_equal(size, size2);
    assert_memory_equal(first, second, size);
    Picture back;
    assert_true(picture_read(path, fixture->arena, fixture->diag, &back));
    assert_int_equal(back.channels, channels);
    assert_int_equal(hash_pixels(&back), hash_pixels(&picture));
  }
}

/* --- geometry -------------------------------------------------------------------------------------- */

/* Hashes of Pillow 13.0.0: Image.fromarray(picture).resize((width, height), Image.BILINEAR) */
static void resizing_equals_pillow(void **state) {
  Fixture *fixture = *state;
  static const struct {
    int32_t channels, width, height;
    uint32_t hash;
  } cases[] = {
      {1, 16, 10, 0x18c4fdb7U}, {1, 50, 40, 0x380f07afU}, {1, 7, 23, 0x0273ceb2U},  {1, 37, 5, 0xabea3cd7U},
      {1, 1, 1, 0x870b96c5U},   {1, 37, 23, 0x84a861b0U}, {3, 16, 10, 0x37110ffeU}, {3, 50, 40, 0x152e29b5U},
      {3, 7, 23, 0x9191452eU},  {3, 37, 5, 0x7baf00f3U},  {3, 1, 1, 0x95094710U},   {3, 37, 23, 0xabc82c4dU},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const Picture picture = draw(fixture->arena, 37, 23, cases[i].channels);
    const Picture resized = picture_resize(&picture, cases[i].width, cases[i].height, fixture->arena);
    assert_int_equal(resized.width, cases[i].width);
    assert_int_equal(resized.height, cases[i].height);
    assert_int_equal(hash_pixels(&resized), cases[i].hash);
    assert_ptr_not_equal(resized.pixels, picture.pixels);
  }
}

/* torchvision's center_crop: of a row 0 … size-1 the part from `first`; 255 stands for padding. */
static void crops_are_centred(void **state) {
  Fixture *fixture = *state;
  static const struct {
    int32_t size, crop;
    uint8_t expected[8];
  } cases[] = {
      {5, 3, {1, 2, 3}},
      {6, 3, {2, 3, 4}},
      {4, 3, {0, 1, 2}},
      {8, 3, {2, 3, 4}},
      {3, 3, {0, 1, 2}},
      {2, 4, {255, 0, 1, 255}},
      {2, 5, {255, 0, 1, 255, 255}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    for (int upright = 0; upright < 2; upright++) {
      uint8_t samples[8];
      for (int32_t at = 0; at < cases[i].size; at++) samples[at] = (uint8_t)(at + 1);
      const Picture line = {upright ? 1 : cases[i].size, upright ? cases[i].size : 1, 1, samples};
      const Picture crop =
          picture_crop_centre(&line, upright ? 1 : cases[i].crop, upright ? cases[i].crop : 1, fixture->arena);
      for (int32_t at = 0; at < cases[i].crop; at++) {
        assert_int_equal(crop.pixels[at], (uint8_t)(cases[i].expected[at] + 1));
      }
    }
  }
  const Picture picture = draw(fixture->arena, 37, 23, 3);
  const Picture crop = picture_crop_centre(&picture, 9, 31, fixture->arena);
  assert_memory_equal(crop.pixels + 4 * 9 * 3, picture.pixels + 14 * 3, 9 * 3);
}

static void pictures_are_fitted_to_a_crop(void **state) {
  Fixture *fixture = *state;
  static const struct {
    int32_t from[2], resize, crop[2], to[2];
  } cases[] = {
      {{640, 480}, 256, {224, 224}, {341, 256}}, {{480, 640}, 0, {224, 224}, {224, 299}},
      {{640, 480}, 100, {224, 200}, {267, 200}}, {{3, 2}, 0, {7, 7}, {11, 7}},
      {{50, 40}, 40, {40, 40}, {50, 40}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const Picture picture = draw(fixture->arena, cases[i].from[0], cases[i].from[1], 1);
    Picture fitted;
    assert_true(picture_fit(&picture, "p", cases[i].resize, cases[i].crop[0], cases[i].crop[1], fixture->arena,
                            fixture->diag, &fitted));
    assert_int_equal(fitted.width, cases[i].to[0]);
    assert_int_equal(fitted.height, cases[i].to[1]);
    assert_int_equal(fitted.pixels == picture.pixels, i == 4);
  }
  const Picture narrow = draw(fixture->arena, 1, 1000, 1);
  Picture fitted;
  assert_false(picture_fit(&narrow, "p", 0, 224, 224, fixture->arena, fixture->diag, &fitted));
  check_messages(fixture, "p: error: a picture of 1x1000 is too narrow for an input of 224x224\n");
}

/* --- tensors --------------------------------------------------------------------------------------- */

static void pictures_become_tensors(void **state) {
  Fixture *fixture = *state;
  Tensor tensor;
  const Picture picture = draw(fixture->arena, 37, 23, 3);
  assert_true(picture_to_tensor(&picture, "image", 0, fixture->arena, fixture->diag, &tensor));
  const Shape expected = shape_of(4, (const int64_t[]){1, 3, 23, 37});
  assert_true(shape_equal(&tensor.shape, &expected));
  const float *values = tensor.data;
  assert_true(values[2 * 851 + 5 * 37 + 6] == (float)picture.pixels[(5 * 37 + 6) * 3 + 2] / 255.0F);
  /* Hash of Pillow's convert("L") */
  assert_true(picture_to_tensor(&picture, "image", 1, fixture->arena, fixture->diag, &tensor));
  Picture gray;
  assert_true(picture_from_tensor(&tensor, (const double[]){0, 1}, fixture->arena, fixture->diag, &gray));
  assert_int_equal(gray.channels, 1);
  assert_int_equal(hash_pixels(&gray), 0x5859f5ccU);
  assert_true(picture_to_tensor(&gray, "image", 3, fixture->arena, fixture->diag, &tensor));
  assert_true(tensor_get(&tensor, 7) == tensor_get(&tensor, 7 + 851 * 2));
  assert_true(picture_to_tensor(&gray, "image", 4, fixture->arena, fixture->diag, &tensor));
  assert_true(tensor_get(&tensor, 851 * 3) == 1);
  const Picture alpha = draw(fixture->arena, 2, 2, 4);
  assert_true(picture_to_tensor(&alpha, "image", 3, fixture->arena, fixture->diag, &tensor));
  assert_int_equal(tensor.shape.dims[1], 3);
  assert_false(picture_to_tensor(&picture, "image", 6, fixture->arena, fixture->diag, &tensor));
  check_messages(fixture, "image: error: a picture cannot be given 6 channels, expected 1, 3 or 4\n");
}

static void tensors_become_pictures(void **state) {
  Fixture *fixture = *state;
  Tensor tensor = tensor_create(fixture->arena, "map", DTYPE_F32, shape_of(2, (const int64_t[]){2, 4}));
  const double values[] = {-1, 0, 1, 3, (double)NAN, HUGE_VAL, -HUGE_VAL, 0.5};
  for (int64_t i = 0; i < 8; i++) tensor_set(&tensor, i, values[i]);
  Picture picture;
  assert_true(picture_from_tensor(&tensor, NULL, fixture->arena, fixture->diag, &picture));
  assert_memory_equal(picture.pixels, ((const uint8_t[]){0, 64, 128, 255, 0, 255, 0, 96}), 8);
  assert_true(picture_from_tensor(&tensor, (const double[]){0, 1}, fixture->arena, fixture->diag, &picture));
  assert_memory_equal(picture.pixels, ((const uint8_t[]){0, 0, 255, 255, 0, 255, 0, 128}), 8);
  Tensor colour = tensor_create(fixture->arena, "map", DTYPE_F32, shape_of(3, (const int64_t[]){3, 1, 2}));
  for (int64_t i = 0; i < 6; i++) tensor_set(&colour, i, (double)i * 51);
  assert_true(picture_from_tensor(&colour, (const double[]){0, 255}, fixture->arena, fixture->diag, &picture));
  assert_memory_equal(picture.pixels, ((const uint8_t[]){0, 102, 204, 51, 153, 255}), 6);
  Tensor flat = tensor_create(fixture->arena, "map", DTYPE_F32, shape_of(2, (const int64_t[]){2, 2}));
  assert_true(picture_from_tensor(&flat, NULL, fixture->arena, fixture->diag, &picture));
  assert_memory_equal(picture.pixels, "\0\0\0\0", 4);
  check_messages(fixture, "");
  Tensor odd = tensor_create(fixture->arena, "map", DTYPE_F32, shape_of(3, (const int64_t[]){5, 2, 2}));
  assert_false(picture_from_tensor(&odd, NULL, fixture->arena, fixture->diag, &picture));
  check_messages(fixture, "map: error: shape [5,2,2] is not a picture, expected [C,H,W] with 1 or 3 channels\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(all_kinds_of_png_are_read),
      fixture_test(jpegs_are_read),
      fixture_test(cmyk_is_refused),
      fixture_test(every_truncation_is_an_error),
      fixture_test(sizes_are_checked_first),
      fixture_test(other_files_are_refused),
      fixture_test(damage_never_crashes),
      fixture_test(running_out_of_memory_leaks_nothing),
      fixture_test(written_pictures_read_back),
      fixture_test(resizing_equals_pillow),
      fixture_test(pictures_are_fitted_to_a_crop),
      fixture_test(crops_are_centred),
      fixture_test(pictures_become_tensors),
      fixture_test(tensors_become_pictures),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
