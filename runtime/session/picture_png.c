#include <png.h>
#include <setjmp.h>
#include <string.h>
#include <zlib.h>

#include "base/file.h"
#include "picture.h"

/* libpng reports errors through a function that must not return. Here it jumps back into this file, and so does the
 * arena when memory runs out, so that the library's own memory is always freed. */
typedef struct PngState {
  jmp_buf failed;
  char message[128]; /* empty: out of memory */
  png_structp png;
  png_infop info;
  const unsigned char *at; /* reading: what is left of the file */
  size_t left;
  Text output; /* writing */
} PngState;

static _Noreturn void on_error(png_structp png, png_const_charp message) {
  PngState *state = png_get_error_ptr(png);
  strncpy(state->message, message ? message : "unknown error", sizeof state->message - 1);
  longjmp(state->failed, 1);
}

/* Warnings concern chunks that are not used. */
static void on_warning(png_structp png, png_const_charp message) {
  (void)png;
  (void)message;
}

/* --- reading --------------------------------------------------------------------------------------- */

static void read_bytes(png_structp png, png_bytep data, size_t size) {
  PngState *state = png_get_io_ptr(png);
  if (size > state->left) png_error(png, "the file ends too early");
  memcpy(data, state->at, size);
  state->at += size;
  state->left -= size;
}

/* Asks for 8-bit gray, RGB or RGBA; returns the channels. */
static int32_t set_transforms(const PngState *state) {
  png_structp png = state->png;
  const int kind = png_get_color_type(png, state->info);
  const int depth = png_get_bit_depth(png, state->info);
  const bool transparent = png_get_valid(png, state->info, PNG_INFO_tRNS) != 0;
  if (depth == 16) png_set_scale_16(png);
  if (kind == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (kind == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
  if (transparent) png_set_tRNS_to_alpha(png);
  const bool gray = kind == PNG_COLOR_TYPE_GRAY || kind == PNG_COLOR_TYPE_GRAY_ALPHA;
  const bool alpha = transparent || (kind & PNG_COLOR_MASK_ALPHA) != 0;
  if (gray && alpha) png_set_gray_to_rgb(png);
  return alpha ? 4 : gray ? 1 : 3;
}

/* Between the creation and the destruction of libpng's state; leaves by longjmp on failure. */
static void decode(PngState *state, Arena *arena, Picture *picture) {
  png_structp png = state->png;
  state->info = png_create_info_struct(png);
  if (!state->info) png_error(png, "out of memory");
  png_set_read_fn(png, state, read_bytes);
  png_set_user_limits(png, PICTURE_MAX_SIDE, PICTURE_MAX_SIDE);
  /* Chunks that are neither the picture nor its palette are skipped unread: they could only do harm. */
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
  png_read_info(png, state->info);
  picture->width = (int32_t)png_get_image_width(png, state->info);
  picture->height = (int32_t)png_get_image_height(png, state->info);
  picture->channels = set_transforms(state);
  png_set_interlace_handling(png);
  png_read_update_info(png, state->info);
  const size_t row = (size_t)picture->width * (size_t)picture->channels;
  if (png_get_rowbytes(png, state->info) != row) png_error(png, "unexpected row size");
  picture->pixels = arena_alloc(arena, (size_t)picture->height, row);
  png_bytepp rows = arena_array(arena, (size_t)picture->height, png_bytep);
  for (int32_t y = 0; y < picture->height; y++) rows[y] = picture->pixels + (size_t)y * row;
  png_read_image(png, rows);
  png_read_end(png, NULL);
}

static uint32_t read_u32(const unsigned char *at) {
  return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Runs decode() with all failures caught. False with an empty message: out of memory. */
static bool run_decode(PngState *state, Arena *arena, Picture *picture) {
  jmp_buf *previous = arena_on_failure(arena, &state->failed);
  bool good = false;
  if (setjmp(state->failed) == 0) {
    decode(state, arena, picture);
    good = true;
  }
  arena_on_failure(arena, previous);
  return good;
}

bool picture_parse_png(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag,
                       Picture *out_picture) {
  const Location location = {name, 0, 0};
  enum { SIZE_AT = 16, HEADER_END = 33 }; /* signature, length, "IHDR", width, height, five bytes, checksum */
  const unsigned char *start = bytes;
  if (size < HEADER_END || memcmp(start + 12, "IHDR", 4) != 0) {
    diag_error(diag, location, "PNG: the header is missing or incomplete");
    return false;
  }
  if (!picture_check_size(name, read_u32(start + SIZE_AT), read_u32(start + SIZE_AT + 4), diag)) return false;

  PngState *state = arena_new(arena, PngState);
  state->at = start;
  state->left = size;
  state->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, state, on_error, on_warning);
  if (!state->png) arena_fail(arena);
  Picture *picture = arena_new(arena, Picture);
  const bool good = run_decode(state, arena, picture);
  png_destroy_read_struct(&state->png, &state->info, NULL);
  if (!good && state->message[0] == '\0') arena_fail(arena);
  if (good) {
    *out_picture = *picture;
  } else {
    diag_error(diag, location, "PNG: %s", state->message);
  }
  return good;
}

/* --- writing --------------------------------------------------------------------------------------- */

static void write_bytes(png_structp png, png_bytep data, size_t size) {
  PngState *state = png_get_io_ptr(png);
  text_add_n(&state->output, (const char *)data, size);
}

static void flush_bytes(png_structp png) { (void)png; }

static void encode(PngState *state, const Picture *picture) {
  png_structp png = state->png;
  state->info = png_create_info_struct(png);
  if (!state->info) png_error(png, "out of memory");
  const int kind = picture->channels == 1   ? PNG_COLOR_TYPE_GRAY
                   : picture->channels == 3 ? PNG_COLOR_TYPE_RGB
                                            : PNG_COLOR_TYPE_RGB_ALPHA;
  png_set_write_fn(png, state, write_bytes, flush_bytes);
  png_set_IHDR(png, state->info, (png_uint_32)picture->width, (png_uint_32)picture->height, 8, kind, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  /* Stated although they are the defaults: the output must not change with libpng's taste. */
  png_set_compression_level(png, 6);
  png_set_compression_mem_level(png, 8);
  png_set_compression_strategy(png, Z_FILTERED);
  png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_ALL_FILTERS);
  png_write_info(png, state->info);
  const size_t row = (size_t)picture->width * (size_t)picture->channels;
  for (int32_t y = 0; y < picture->height; y++) png_write_row(png, picture->pixels + (size_t)y * row);
  png_write_end(png, NULL);
}

static bool run_encode(PngState *state, Arena *arena, const Picture *picture) {
  jmp_buf *previous = arena_on_failure(arena, &state->failed);
  bool good = false;
  if (setjmp(state->failed) == 0) {
    encode(state, picture);
    good = true;
  }
  arena_on_failure(arena, previous);
  return good;
}

bool picture_write_png(const char *path, const Picture *picture, Arena *scratch, Diag *diag) {
  PngState *state = arena_new(scratch, PngState);
  text_init(&state->output, scratch);
  state->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, state, on_error, on_warning);
  if (!state->png) arena_fail(scratch);
  const bool good = run_encode(state, scratch, picture);
  png_destroy_write_struct(&state->png, &state->info);
  if (!good && state->message[0] == '\0') arena_fail(scratch);
  if (!good) {
    diag_error(diag, (Location){path, 0, 0}, "PNG: %s", state->message);
    return false;
  }
  const FilePiece piece = {state->output.data, state->output.size};
  return file_write(path, &piece, 1, diag);
}
