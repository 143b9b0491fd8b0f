/* Pictures: PNG and JPEG files, resampling, and conversion from and to tensors. All samples have 8 bits. */
#ifndef KILN_RUNTIME_SESSION_PICTURE_H
#define KILN_RUNTIME_SESSION_PICTURE_H

#include "base/diag.h"
#include "tensor.h"

enum { PICTURE_MAX_SIDE = 65535, PICTURE_MAX_PIXELS = 64 << 20 };

/* Rows from the top, pixels interleaved without padding: pixels[(y * width + x) * channels + channel].
 * Channels: 1 gray, 3 RGB, 4 RGBA (alpha not multiplied in). Width and height are at least 1. */
typedef struct Picture {
  int32_t width, height, channels;
  uint8_t *pixels;
} Picture;

/* --- files ----------------------------------------------------------------------------------------- */

/* Reads a PNG or a JPEG file; its content decides which. Sizes are checked against the limits above before
 * memory is taken. PNG: all kinds, 16 bits rounded to 8, palettes resolved, gray with alpha becomes RGBA. JPEG: gray
 * and colour; CMYK is refused. Gamma, colour profiles and the EXIF orientation are ignored, as PIL's Image.open does:
 * rotate such pictures before use. A truncated file is an error; other faults in JPEG data that the decoder repairs
 * are warnings. */
bool picture_read(const char *path, Arena *arena, Diag *diag, Picture *out_picture);
/* The same from memory; `name` stands for the file in messages. */
bool picture_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag, Picture *out_picture);
/* Writes a PNG file atomically (base/file.h): no times, no text, fixed compression; the same pixels give the same
 * bytes with the same libpng and zlib. */
bool picture_write_png(const char *path, const Picture *picture, Arena *scratch, Diag *diag);

/* --- geometry -------------------------------------------------------------------------------------- */

/* Bilinear with antialiasing, bit-equal to PIL's Image.resize(size, BILINEAR) for gray and RGB; PIL multiplies alpha
 * in first, this does not. `width` and `height` are from 1 to PICTURE_MAX_SIDE. */
Picture picture_resize(const Picture *picture, int32_t width, int32_t height, Arena *arena);
/* Resizes for a crop of width × height: the shorter side becomes `resize`, or what the crop needs if that is more (or
 * `resize` is 0); proportions are kept. A picture that has the size already is not copied. Reports pictures that would
 * become too large. */
bool picture_fit(const Picture *picture, const char *name, int64_t resize, int32_t width, int32_t height, Arena *arena,
                 Diag *diag, Picture *out_picture);
/* The middle of the picture, or the picture in the middle of zeros where it is smaller; as torchvision's
 * center_crop, odd margins included. */
Picture picture_crop_centre(const Picture *picture, int32_t width, int32_t height, Arena *arena);
/* Where that crop of `crop` from `size` begins. Negative: so many zeros come first. */
int32_t picture_crop_start(int32_t size, int32_t crop);

/* To 1, 3 or 4 channels, as picture_to_tensor says. */
Picture picture_convert(const Picture *picture, int32_t channels, Arena *arena);

/* --- tensors --------------------------------------------------------------------------------------- */

/* F32 [1,C,H,W] with values sample/255. `channels` is 1, 3 or 4, or 0 for the picture's own. RGB to gray weighs as PIL
 * does (ITU-R 601, rounded to 8 bits), gray to RGB repeats, alpha is dropped or added as 1. `name` is the tensor's
 * and stands in messages. */
bool picture_to_tensor(const Picture *picture, const char *name, int64_t channels, Arena *arena, Diag *diag,
                       Tensor *out_tensor);
/* A tensor [C,H,W], [1,C,H,W] or [H,W] with 1 or 3 channels as a picture. range[0] becomes 0 and range[1] 255, values
 * outside are clipped; NULL takes the smallest and the largest finite value. NaN becomes 0. */
bool picture_from_tensor(const Tensor *tensor, const double *range, Arena *arena, Diag *diag, Picture *out_picture);

/* --- decoders, called by picture_parse -------------------------------------------------------------- */

bool picture_parse_png(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag,
                       Picture *out_picture);
bool picture_parse_jpeg(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag,
                        Picture *out_picture);
/* Checks a header's size against the limits; false after reporting. */
bool picture_check_size(const char *name, uint64_t width, uint64_t height, Diag *diag);

#endif
