#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include "picture.h"
/* after stdio.h, which jpeglib.h forgets to include */
#include <jpeglib.h>

/* A progressive file may list thousands of tiny scans, each of which costs a pass over the whole picture. */
enum { SCAN_LIMIT = 100 };

/* Errors of libjpeg and of the arena jump back into this file, so that libjpeg's memory is always freed. The library
 * hands out pointers to its three structs, which therefore come first in theirs. */
typedef struct JpegErrors {
  struct jpeg_error_mgr base;
  jmp_buf failed;
  char message[JMSG_LENGTH_MAX]; /* of the error; empty: out of memory */
  char warning[JMSG_LENGTH_MAX]; /* the first one */
} JpegErrors;

typedef struct JpegState {
  struct jpeg_decompress_struct jpeg;
  JpegErrors errors;
  struct jpeg_source_mgr source;
  struct jpeg_progress_mgr progress;
} JpegState;

static _Noreturn void on_error(j_common_ptr jpeg) {
  JpegErrors *errors = (JpegErrors *)jpeg->err;
  jpeg->err->format_message(jpeg, errors->message);
  longjmp(errors->failed, 1);
}

/* Level -1 is a warning about damaged data, the others are traces. */
static void on_message(j_common_ptr jpeg, int level) {
  JpegErrors *errors = (JpegErrors *)jpeg->err;
  if (level >= 0) return;
  if (errors->base.num_warnings++ == 0) jpeg->err->format_message(jpeg, errors->warning);
}

static void on_output(j_common_ptr jpeg) { (void)jpeg; }

static _Noreturn void fail(JpegErrors *errors, const char *message) {
  strncpy(errors->message, message, sizeof errors->message - 1);
  longjmp(errors->failed, 1);
}

/* --- source: the whole file at once ---------------------------------------------------------------- */

static void source_start(j_decompress_ptr jpeg) { (void)jpeg; }

/* libjpeg's own memory source makes up an end marker here and goes on with a gray rest. */
static boolean source_fill(j_decompress_ptr jpeg) { fail((JpegErrors *)jpeg->err, "the file ends too early"); }

static void source_skip(j_decompress_ptr jpeg, long count) {
  if (count <= 0) return;
  if ((size_t)count > jpeg->src->bytes_in_buffer) source_fill(jpeg);
  jpeg->src->next_input_byte += count;
  jpeg->src->bytes_in_buffer -= (size_t)count;
}

static void source_end(j_decompress_ptr jpeg) { (void)jpeg; }

static void on_progress(j_common_ptr jpeg) {
  const j_decompress_ptr decoder = (j_decompress_ptr)jpeg;
  if (decoder->input_scan_number > SCAN_LIMIT) fail((JpegErrors *)jpeg->err, "too many scans");
}

/* --- decoding -------------------------------------------------------------------------------------- */

/* Between the creation and the destruction of libjpeg's state. Leaves by longjmp on failure; false when the size is
 * refused, which is reported. */
static bool decode(JpegState *state, const char *name, Arena *arena, Diag *diag, Picture *picture) {
  j_decompress_ptr jpeg = &state->jpeg;
  jpeg_read_header(jpeg, TRUE);
  if (!picture_check_size(name, jpeg->image_width, jpeg->image_height, diag)) return false;
  if (jpeg->jpeg_color_space == JCS_CMYK || jpeg->jpeg_color_space == JCS_YCCK) {
    fail(&state->errors, "CMYK pictures are not supported: convert it to RGB");
  }
  const bool gray = jpeg->num_components == 1;
  jpeg->out_color_space = gray ? JCS_GRAYSCALE : JCS_RGB;
  jpeg->dct_method = JDCT_ISLOW;
  jpeg_start_decompress(jpeg);
  *picture = (Picture){(int32_t)jpeg->output_width, (int32_t)jpeg->output_height, gray ? 1 : 3, NULL};
  const size_t row = (size_t)picture->width * (size_t)picture->channels;
  if (jpeg->output_components != picture->channels) fail(&state->errors, "unexpected number of channels");
  picture->pixels = arena_alloc(arena, (size_t)picture->height, row);
  while (jpeg->output_scanline < jpeg->output_height) {
    JSAMPROW line = picture->pixels + (size_t)jpeg->output_scanline * row;
    jpeg_read_scanlines(jpeg, &line, 1);
  }
  jpeg_finish_decompress(jpeg);
  return true;
}

/* Runs decode() with all failures caught; these leave a message, or none when memory ran out. */
static bool run_decode(JpegState *state, const char *name, Arena *arena, Diag *diag, Picture *picture) {
  jmp_buf *previous = arena_on_failure(arena, &state->errors.failed);
  bool good = false;
  if (setjmp(state->errors.failed) == 0) {
    jpeg_create_decompress(&state->jpeg);
    state->jpeg.src = &state->source;
    state->jpeg.progress = &state->progress;
    good = decode(state, name, arena, diag, picture);
  }
  arena_on_failure(arena, previous);
  return good;
}

bool picture_parse_jpeg(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag,
                        Picture *out_picture) {
  const Location location = {name, 0, 0};
  JpegState *state = arena_new(arena, JpegState);
  Picture *picture = arena_new(arena, Picture);
  state->jpeg.err = jpeg_std_error(&state->errors.base);
  state->errors.base.error_exit = on_error;
  state->errors.base.emit_message = on_message;
  state->errors.base.output_message = on_output;
  state->source =
      (struct jpeg_source_mgr){bytes, size, source_start, source_fill, source_skip, jpeg_resync_to_restart, source_end};
  state->progress.progress_monitor = on_progress;
  const size_t errors = diag_error_count(diag);
  const bool good = run_decode(state, name, arena, diag, picture);
  jpeg_destroy_decompress(&state->jpeg);
  if (!good) {
    if (diag_error_count(diag) > errors) return false;
    if (state->errors.message[0] == '\0') arena_fail(arena);
    diag_error(diag, location, "JPEG: %s", state->errors.message);
    return false;
  }
  if (state->errors.base.num_warnings > 0) diag_warning(diag, location, "JPEG: %s", state->errors.warning);
  *out_picture = *picture;
  return true;
}
