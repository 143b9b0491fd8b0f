#include "picture.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"

static const size_t file_limit = (size_t)1 << 30;

/* Samples of a picture within the limits: always fits. */
static size_t sample_count(const Picture *picture) {
  return (size_t)picture->width * (size_t)picture->height * (size_t)picture->channels;
}

static Picture picture_create(int32_t width, int32_t height, int32_t channels, Arena *arena) {
  Picture picture = {width, height, channels, NULL};
  picture.pixels = arena_alloc(arena, sample_count(&picture), 1);
  return picture;
}

/* --- files ----------------------------------------------------------------------------------------- */

bool picture_check_size(const char *name, uint64_t width, uint64_t height, Diag *diag) {
  const Location location = {name, 0, 0};
  if (width < 1 || height < 1 || width > PICTURE_MAX_SIDE || height > PICTURE_MAX_SIDE) {
    diag_error(diag, location, "a picture of %llu by %llu pixels: a side has from 1 to %d", (unsigned long long)width,
               (unsigned long long)height, PICTURE_MAX_SIDE);
    return false;
  }
  if (width * height > PICTURE_MAX_PIXELS) {
    diag_error(diag, location, "a picture of %llu by %llu pixels is larger than the limit of %d pixels",
               (unsigned long long)width, (unsigned long long)height, PICTURE_MAX_PIXELS);
    return false;
  }
  return true;
}

bool picture_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag, Picture *out_picture) {
  const unsigned char *start = bytes;
  if (size >= 8 && memcmp(start, "\x89PNG\r\n\x1a\n", 8) == 0) {
    return picture_parse_png(name, bytes, size, arena, diag, out_picture);
  }
  if (size >= 3 && memcmp(start, "\xFF\xD8\xFF", 3) == 0) {
    return picture_parse_jpeg(name, bytes, size, arena, diag, out_picture);
  }
  Text found;
  text_init(&found, arena);
  for (size_t i = 0; i < size && i < 8; i++) text_format(&found, " %02x", start[i]);
  diag_error(diag, (Location){name, 0, 0}, "not a PNG or JPEG picture: %s%s", size ? "it starts with" : "it is empty",
             found.data);
  return false;
}

bool picture_read(const char *path, Arena *arena, Diag *diag, Picture *out_picture) {
  void *bytes;
  size_t size;
  return file_read(path, file_limit, arena, diag, &bytes, &size) &&
         picture_parse(path, bytes, size, arena, diag, out_picture);
}

/* --- resampling ------------------------------------------------------------------------------------ */

/* Separable resampling with a triangle filter as wide as the reduction, in fixed point with a rounding to 8 bits
 * between the two passes: Pillow's src/libImaging/Resample.c, which torchvision's antialiased resize follows. */
enum { WEIGHT_BITS = 32 - 8 - 2 };

/* For every output position: the first input position and the weights from there. */
typedef struct Filter {
  int32_t taps; /* row length of `weights` */
  int32_t *starts, *counts;
  int32_t *weights;
} Filter;

static Filter filter_create(int32_t from, int32_t to, Arena *arena) {
  const double scale = (double)from / to;
  const double support = scale < 1 ? 1 : scale;
  Filter filter = {.taps = (int32_t)ceil(support) * 2 + 1};
  filter.starts = arena_array(arena, (size_t)to, int32_t);
  filter.counts = arena_array(arena, (size_t)to, int32_t);
  filter.weights = arena_alloc(arena, (size_t)to * (size_t)filter.taps, sizeof(int32_t));
  double *exact = arena_array(arena, (size_t)filter.taps, double);
  for (int32_t i = 0; i < to; i++) {
    const double centre = (i + 0.5) * scale;
    int32_t start = (int32_t)(centre - support + 0.5);
    if (centre - support + 0.5 < 0) start = 0;
    int32_t end = (int32_t)(centre + support + 0.5);
    if (end > from) end = from;
    double sum = 0;
    for (int32_t tap = 0; tap < end - start; tap++) {
      const double distance = fabs((tap + start - centre + 0.5) * (1.0 / support));
      exact[tap] = distance < 1 ? 1 - distance : 0;
      sum += exact[tap];
    }
    filter.starts[i] = start;
    filter.counts[i] = end - start;
    for (int32_t tap = 0; tap < end - start; tap++) {
      const double weight = sum != 0 ? exact[tap] / sum : exact[tap];
      filter.weights[(size_t)i * (size_t)filter.taps + (size_t)tap] = (int32_t)(0.5 + weight * (1 << WEIGHT_BITS));
    }
  }
  return filter;
}

/* One output sample from inputs that lie `step` bytes apart. */
static uint8_t filter_apply(const Filter *filter, int32_t position, const uint8_t *line, size_t step) {
  const int32_t *weights = filter->weights + (size_t)position * (size_t)filter->taps;
  const uint8_t *input = line + (size_t)filter->starts[position] * step;
  int32_t sum = 1 << (WEIGHT_BITS - 1);
  for (int32_t tap = 0; tap < filter->counts[position]; tap++) sum += input[(size_t)tap * step] * weights[tap];
  sum >>= WEIGHT_BITS;
  return (uint8_t)(sum > 255 ? 255 : sum);
}

static Picture resize_rows(const Picture *picture, int32_t width, Arena *arena) {
  const Filter filter = filter_create(picture->width, width, arena);
  const size_t channels = (size_t)picture->channels;
  Picture out = picture_create(width, picture->height, picture->channels, arena);
  for (int32_t y = 0; y < picture->height; y++) {
    const uint8_t *from = picture->pixels + (size_t)y * (size_t)picture->width * channels;
    uint8_t *to = out.pixels + (size_t)y * (size_t)width * channels;
    for (int32_t x = 0; x < width; x++) {
      for (size_t c = 0; c < channels; c++) *to++ = filter_apply(&filter, x, from + c, channels);
    }
  }
  return out;
}

static Picture resize_columns(const Picture *picture, int32_t height, Arena *arena) {
  const Filter filter = filter_create(picture->height, height, arena);
  const size_t row = (size_t)picture->width * (size_t)picture->channels;
  Picture out = picture_create(picture->width, height, picture->channels, arena);
  for (int32_t y = 0; y < height; y++) {
    uint8_t *to = out.pixels + (size_t)y * row;
    for (size_t i = 0; i < row; i++) to[i] = filter_apply(&filter, y, picture->pixels + i, row);
  }
  return out;
}

Picture picture_resize(const Picture *picture, int32_t width, int32_t height, Arena *arena) {
  Picture out = *picture;
  if (width != out.width) out = resize_rows(&out, width, arena);
  if (height != out.height) out = resize_columns(&out, height, arena);
  if (out.pixels == picture->pixels) out.pixels = arena_copy(arena, picture->pixels, sample_count(picture));
  return out;
}

bool picture_fit(const Picture *picture, const char *name, int64_t resize, int32_t width, int32_t height, Arena *arena,
                 Diag *diag, Picture *out_picture) {
  const int32_t shorter = picture->width < picture->height ? picture->width : picture->height;
  const double fit = fmax((double)width / picture->width, (double)height / picture->height);
  const double scale = fmax(fit, (double)resize / shorter);
  const double new_width = fmax(width, round(picture->width * scale));
  const double new_height = fmax(height, round(picture->height * scale));
  if (new_width > PICTURE_MAX_SIDE || new_height > PICTURE_MAX_SIDE || new_width * new_height > PICTURE_MAX_PIXELS) {
    diag_error(diag, (Location){name, 0, 0}, "a picture of %dx%d is too narrow for an input of %dx%d", picture->width,
               picture->height, width, height);
    return false;
  }
  *out_picture = *picture;
  if (new_width != picture->width || new_height != picture->height) {
    *out_picture = picture_resize(picture, (int32_t)new_width, (int32_t)new_height, arena);
  }
  return true;
}

/* torchvision rounds half a pixel to even when cropping (Python's round) and down when padding. */
int32_t picture_crop_start(int32_t size, int32_t crop) {
  if (crop > size) return -((crop - size) / 2);
  const int32_t half = (size - crop) / 2;
  return half + ((size - crop) % 2 != 0 && half % 2 != 0);
}

Picture picture_crop_centre(const Picture *picture, int32_t width, int32_t height, Arena *arena) {
  Picture out = picture_create(width, height, picture->channels, arena);
  const int32_t left = picture_crop_start(picture->width, width);
  const int32_t top = picture_crop_start(picture->height, height);
  const int32_t columns = width < picture->width ? width : picture->width;
  const int32_t rows = height < picture->height ? height : picture->height;
  const size_t channels = (size_t)picture->channels;
  for (int32_t y = 0; y < rows; y++) {
    const size_t from = (size_t)(y + (top > 0 ? top : 0)) * (size_t)picture->width + (size_t)(left > 0 ? left : 0);
    const size_t to = (size_t)(y - (top < 0 ? top : 0)) * (size_t)width + (size_t)(left < 0 ? -left : 0);
    memcpy(out.pixels + to * channels, picture->pixels + from * channels, (size_t)columns * channels);
  }
  return out;
}

/* --- tensors --------------------------------------------------------------------------------------- */

/* Channel `channel` of `channels` of one pixel. */
static uint8_t pixel_channel(const uint8_t *pixel, int32_t own_channels, int64_t channels, int64_t channel) {
  if (channel == 3) return own_channels == 4 ? pixel[3] : 255;
  if (own_channels == 1) return pixel[0];
  if (channels == 1) return (uint8_t)((pixel[0] * 19595U + pixel[1] * 38470U + pixel[2] * 7471U + 0x8000U) >> 16);
  return pixel[channel];
}

Picture picture_convert(const Picture *picture, int32_t channels, Arena *arena) {
  Picture out = picture_create(picture->width, picture->height, channels, arena);
  const size_t pixels = (size_t)picture->width * (size_t)picture->height;
  const uint8_t *from = picture->pixels;
  for (uint8_t *to = out.pixels, *end = to + pixels * (size_t)channels; to < end; from += picture->channels) {
    for (int32_t channel = 0; channel < channels; channel++) {
      *to++ = pixel_channel(from, picture->channels, channels, channel);
    }
  }
  return out;
}

bool picture_to_tensor(const Picture *picture, const char *name, int64_t channels, Arena *arena, Diag *diag,
                       Tensor *out_tensor) {
  if (channels == 0) channels = picture->channels;
  if (channels != 1 && channels != 3 && channels != 4) {
    diag_error(diag, (Location){name, 0, 0}, "a picture cannot be given %lld channels, expected 1, 3 or 4",
               (long long)channels);
    return false;
  }
  const int64_t dims[] = {1, channels, picture->height, picture->width};
  Tensor tensor = tensor_create(arena, name, DTYPE_F32, shape_of(4, dims));
  const int64_t plane = (int64_t)picture->width * picture->height;
  float *to = tensor.data;
  for (int64_t channel = 0; channel < channels; channel++) {
    const uint8_t *pixel = picture->pixels;
    for (int64_t i = 0; i < plane; i++, pixel += picture->channels) {
      *to++ = (float)pixel_channel(pixel, picture->channels, channels, channel) / 255.0F;
    }
  }
  *out_tensor = tensor;
  return true;
}

static void find_range(const Tensor *tensor, int64_t count, double *out_low, double *out_high) {
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (int64_t i = 0; i < count; i++) {
    const double value = tensor_get(tensor, i);
    if (!isfinite(value)) continue;
    low = fmin(low, value);
    high = fmax(high, value);
  }
  *out_low = low;
  *out_high = high;
}

static uint8_t sample_of(double value, double low, double high) {
  if (!(value > low)) return 0; /* NaN too */
  if (value >= high) return 255;
  /* Halved, so that the difference of two large numbers stays finite. */
  return (uint8_t)rint((value / 2 - low / 2) / (high / 2 - low / 2) * 255);
}

bool picture_from_tensor(const Tensor *tensor, const double *range, Arena *arena, Diag *diag, Picture *out_picture) {
  const Location location = {tensor->name, 0, 0};
  const Shape *shape = &tensor->shape;
  const int64_t *dims = shape->dims;
  int64_t sides[3] = {1, 0, 0}; /* C, H, W */
  bool fits = shape->rank >= 2 && shape->rank <= 4 && (shape->rank < 4 || dims[0] == 1);
  for (int32_t i = 0; fits && i < 3 && i < shape->rank; i++) sides[2 - i] = dims[shape->rank - 1 - i];
  fits = fits && (sides[0] == 1 || sides[0] == 3) && sides[1] > 0 && sides[2] > 0;
  if (!fits) {
    Text text;
    text_init(&text, arena);
    shape_print(&text, shape);
    diag_error(diag, location, "shape [%s] is not a picture, expected [C,H,W] with 1 or 3 channels", text.data);
    return false;
  }
  if (!picture_check_size(tensor->name, (uint64_t)sides[2], (uint64_t)sides[1], diag)) return false;
  Picture picture = picture_create((int32_t)sides[2], (int32_t)sides[1], (int32_t)sides[0], arena);
  const int64_t plane = sides[1] * sides[2];
  double low, high;
  if (range) {
    low = range[0];
    high = range[1];
  } else {
    find_range(tensor, sides[0] * plane, &low, &high);
  }
  for (int64_t i = 0; i < plane; i++) {
    for (int64_t c = 0; c < sides[0]; c++) {
      picture.pixels[i * sides[0] + c] = sample_of(tensor_get(tensor, c * plane + i), low, high);
    }
  }
  *out_picture = picture;
  return true;
}
