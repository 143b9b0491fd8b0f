#include "data_augment.h"

#include <math.h>
#include <string.h>

#include "data_random.h"

Augment augment_default(void) {
  return (Augment){.random_crop = true,
                   .flip = true,
                   .max_rotate = 10,
                   .max_zoom = 1.1,
                   .max_warp = 0.2,
                   .max_lighting = 0.2,
                   .affine_probability = 0.75,
                   .lighting_probability = 0.75};
}

bool augment_check(const Augment *augment, Diag *diag) {
  const struct {
    const char *name;
    double value, low, high; /* high itself is too much */
  } ranges[] = {{"rotation", augment->max_rotate, 0, 360.001},
                {"zoom", augment->max_zoom, 0, 1000},
                {"warp", augment->max_warp, 0, 0.5},
                {"lighting", augment->max_lighting, 0, 1},
                {"affine probability", augment->affine_probability, 0, 1.000001},
                {"lighting probability", augment->lighting_probability, 0, 1.000001}};
  bool good = true;
  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
    if (ranges[i].value >= ranges[i].low && ranges[i].value < ranges[i].high) continue;
    char low[DOUBLE_TEXT_SIZE], high[DOUBLE_TEXT_SIZE], found[DOUBLE_TEXT_SIZE];
    diag_error(diag, (Location){NULL, 0, 0}, "augmentation: expected a %s from %s to below %s, found %s",
               ranges[i].name, double_text(ranges[i].low, low), double_text(ranges[i].high, high),
               double_text(ranges[i].value, found));
    good = false;
  }
  return good;
}

bool augment_is_none(const Augment *augment) {
  const bool geometry = augment->max_rotate > 0 || augment->max_zoom > 1 || augment->max_warp > 0;
  return !augment->random_crop && !augment->flip && !augment->dihedral &&
         !(geometry && augment->affine_probability > 0) &&
         !(augment->max_lighting > 0 && augment->lighting_probability > 0);
}

/* --- drawing --------------------------------------------------------------------------------------- */

AugmentDraw augment_draw_none(void) {
  return (AugmentDraw){.crop_x = -1, .crop_y = -1, .zoom = 1, .zoom_x = 0.5, .zoom_y = 0.5, .contrast = 1};
}

/* Every number has a place of its own in the stream, so that one option does not change what another one draws. */
enum Place {
  PLACE_CROP_X,
  PLACE_CROP_Y,
  PLACE_SYMMETRY,
  PLACE_HAS_ROTATE,
  PLACE_ROTATE,
  PLACE_HAS_ZOOM,
  PLACE_ZOOM,
  PLACE_ZOOM_X,
  PLACE_ZOOM_Y,
  PLACE_HAS_WARP,
  PLACE_WARP_X,
  PLACE_WARP_Y,
  PLACE_HAS_BRIGHTNESS,
  PLACE_BRIGHTNESS,
  PLACE_HAS_CONTRAST,
  PLACE_CONTRAST,
  PLACE_COUNT
};

/* From 0 to below 1. */
static double unit(const uint32_t *words, int place) { return words[place] * 0x1p-32; }
/* From −limit to below limit. */
static double around(const uint32_t *words, int place, double limit) { return (2 * unit(words, place) - 1) * limit; }

AugmentDraw augment_draw(const Augment *augment, uint64_t seed, int64_t epoch, int64_t index) {
  uint32_t words[PLACE_COUNT];
  data_random(seed, RANDOM_AUGMENT, epoch, index, PLACE_COUNT / 4, words);
  AugmentDraw draw = augment_draw_none();
  if (augment->random_crop) {
    draw.crop_x = unit(words, PLACE_CROP_X);
    draw.crop_y = unit(words, PLACE_CROP_Y);
  }
  const uint32_t symmetry = words[PLACE_SYMMETRY] >> 29;
  draw.flip_x = (augment->flip || augment->dihedral) && (symmetry & 1) != 0;
  draw.flip_y = augment->dihedral && (symmetry & 2) != 0;
  draw.transpose = augment->dihedral && (symmetry & 4) != 0;
  if (unit(words, PLACE_HAS_ROTATE) < augment->affine_probability) {
    draw.angle = around(words, PLACE_ROTATE, augment->max_rotate);
  }
  if (augment->max_zoom > 1 && unit(words, PLACE_HAS_ZOOM) < augment->affine_probability) {
    draw.zoom = 1 + unit(words, PLACE_ZOOM) * (augment->max_zoom - 1);
    draw.zoom_x = unit(words, PLACE_ZOOM_X);
    draw.zoom_y = unit(words, PLACE_ZOOM_Y);
  }
  if (unit(words, PLACE_HAS_WARP) < augment->affine_probability) {
    draw.warp_x = around(words, PLACE_WARP_X, augment->max_warp);
    draw.warp_y = around(words, PLACE_WARP_Y, augment->max_warp);
  }
  const double light = augment->max_lighting;
  if (light > 0 && unit(words, PLACE_HAS_BRIGHTNESS) < augment->lighting_probability) {
    /* the value that medium gray gets is uniform around 1/2 */
    const double gray = 0.5 * (1 + around(words, PLACE_BRIGHTNESS, light));
    draw.brightness = log(gray / (1 - gray));
  }
  if (light > 0 && unit(words, PLACE_HAS_CONTRAST) < augment->lighting_probability) {
    draw.contrast = exp(around(words, PLACE_CONTRAST, -log(1 - light)));
  }
  return draw;
}

/* --- geometry -------------------------------------------------------------------------------------- */

/* matrix = matrix · step. Steps are appended from the picture towards the output, each taking a point after a change
 * back to the point before it. */
static void append(double matrix[9], const double step[9]) {
  double product[9];
  for (int row = 0; row < 3; row++) {
    for (int column = 0; column < 3; column++) {
      double sum = 0;
      for (int k = 0; k < 3; k++) sum += matrix[3 * row + k] * step[3 * k + column];
      product[3 * row + column] = sum;
    }
  }
  memcpy(matrix, product, sizeof product);
}

static int32_t crop_start(int32_t size, int32_t crop, double share) {
  if (share < 0 || size <= crop) return picture_crop_start(size, crop);
  const double start = floor(share * (size - crop + 1));
  return start < size - crop ? (int32_t)start : size - crop;
}

/* In coordinates from −1 to 1 over the crop: the side at 1 moves away by m. The corners (1, ±1) come from
 * (1, ±(1 + m)), the corners (−1, ±1) from (−1, ±(1 − m)); these four points determine
 * (x, y) ← ((x − m) / (1 − m·x), (1 − m²)·y / (1 − m·x)). */
static void append_warp(double matrix[9], double m, bool vertical) {
  const double across = 1 - m * m;
  if (vertical) {
    append(matrix, (const double[9]){across, 0, 0, 0, 1, -m, 0, -m, 1});
  } else {
    append(matrix, (const double[9]){1, 0, -m, 0, across, 0, -m, 0, 1});
  }
}

void augment_matrix(const AugmentDraw *draw, int32_t picture_width, int32_t picture_height, int32_t width,
                    int32_t height, double out_matrix[9]) {
  const double half_width = 0.5 * width, half_height = 0.5 * height;
  const double left = crop_start(picture_width, width, draw->crop_x);
  const double top = crop_start(picture_height, height, draw->crop_y);
  /* from here on the origin is the middle of the crop */
  const double middle[9] = {1, 0, left + half_width, 0, 1, top + half_height, 0, 0, 1};
  memcpy(out_matrix, middle, sizeof middle);
  if (draw->transpose) append(out_matrix, (const double[9]){0, 1, 0, 1, 0, 0, 0, 0, 1});
  if (draw->flip_x) append(out_matrix, (const double[9]){-1, 0, 0, 0, 1, 0, 0, 0, 1});
  if (draw->flip_y) append(out_matrix, (const double[9]){1, 0, 0, 0, -1, 0, 0, 0, 1});
  if (draw->warp_x != 0 || draw->warp_y != 0) {
    append(out_matrix, (const double[9]){half_width, 0, 0, 0, half_height, 0, 0, 0, 1});
    append_warp(out_matrix, draw->warp_x, false);
    append_warp(out_matrix, draw->warp_y, true);
    append(out_matrix, (const double[9]){1 / half_width, 0, 0, 0, 1 / half_height, 0, 0, 0, 1});
  }
  if (draw->angle != 0) {
    const double radians = draw->angle * (3.14159265358979323846 / 180);
    const double cosine = cos(radians), sine = sin(radians);
    /* rows run downwards: counter-clockwise takes (1, 0) to (0, −1), and this is the way back */
    append(out_matrix, (const double[9]){cosine, -sine, 0, sine, cosine, 0, 0, 0, 1});
  }
  if (draw->zoom != 1) {
    const double x = (draw->zoom_x - 0.5) * width, y = (draw->zoom_y - 0.5) * height, scale = 1 / draw->zoom;
    append(out_matrix, (const double[9]){scale, 0, x - x * scale, 0, scale, y - y * scale, 0, 0, 1});
  }
  append(out_matrix, (const double[9]){1, 0, -half_width, 0, 1, -half_height, 0, 0, 1});
}

/* --- light ----------------------------------------------------------------------------------------- */

void augment_logits(double out_logits[256]) {
  /* half a step, which keeps black and white finite and in line with their neighbours */
  static const double margin = 0.5 / 255;
  for (int sample = 0; sample < 256; sample++) {
    const double inside = fmin(fmax(sample / 255.0, margin), 1 - margin);
    out_logits[sample] = log(inside / (1 - inside));
  }
}

void augment_light(const AugmentDraw *draw, const double logits[256], double out_values[256]) {
  for (int sample = 0; sample < 256; sample++)
    out_values[sample] = 1 / (1 + exp(-(logits[sample] + draw->brightness) * draw->contrast));
}

/* --- resampling ------------------------------------------------------------------------------------ */

/* The row or column that stands for `index`, −1 for none. */
static int32_t pad_index(int32_t index, int32_t size, AugmentPadding padding) {
  if (index >= 0 && index < size) return index;
  if (padding == AUGMENT_ZEROS) return -1;
  if (padding == AUGMENT_BORDER) return index < 0 ? 0 : size - 1;
  /* the mirror lies on the edge, so that the outermost pixel appears twice */
  int32_t folded = index % (2 * size);
  if (folded < 0) folded += 2 * size;
  return folded < size ? folded : 2 * size - 1 - folded;
}

/* Where a point lies between the middles of four pixels, from 0 to 1. */
typedef struct Between {
  float right, down;
} Between;

static float blend(float a, float b, float c, float d, Between at) {
  const float upper = a + at.right * (b - a), lower = c + at.right * (d - c);
  return upper + at.down * (lower - upper);
}

static int32_t floor_int(double value) {
  const int32_t truncated = (int32_t)value;
  return truncated - (value < truncated);
}

/* What augment_apply() was given. */
typedef struct Resampling {
  const Picture *picture;
  AugmentPadding padding;
  const float (*table)[256];
  int32_t channels;
  size_t plane; /* samples of an output plane */
} Resampling;

/* (x, y) counts pixels from the middle of the first one. */
static void sample_inside(const Resampling *job, double x, double y, float *out) {
  const Picture *picture = job->picture;
  const int32_t column = (int32_t)x, row = (int32_t)y;
  const size_t step = (size_t)picture->channels, line = (size_t)picture->width * step;
  const uint8_t *upper = picture->pixels + (size_t)row * line + (size_t)column * step, *lower = upper + line;
  const Between at = {(float)(x - column), (float)(y - row)};
  const size_t next = step == 1 ? 0 : 1;
  for (int32_t channel = 0; channel < job->channels; channel++, upper += next, lower += next) {
    const float *table = job->table[channel];
    out[(size_t)channel * job->plane] =
        blend(table[upper[0]], table[upper[step]], table[lower[0]], table[lower[step]], at);
  }
}

/* The same near the edge and beyond it. */
static void sample_anywhere(const Resampling *job, double x, double y, float *out) {
  static const uint8_t black[AUGMENT_CHANNELS];
  const Picture *picture = job->picture;
  const uint8_t *pixels[4] = {black, black, black, black};
  Between at = {0, 0};
  /* far outside of any picture and far inside of int32_t; false for NaN */
  if (fabs(x) < 1e8 && fabs(y) < 1e8) {
    const int32_t column = floor_int(x), row = floor_int(y);
    at = (Between){(float)(x - column), (float)(y - row)};
    for (int32_t i = 0; i < 4; i++) {
      const int32_t source_row = pad_index(row + i / 2, picture->height, job->padding);
      const int32_t source_column = pad_index(column + i % 2, picture->width, job->padding);
      if (source_row < 0 || source_column < 0) continue;
      const size_t pixel = (size_t)source_row * (size_t)picture->width + (size_t)source_column;
      pixels[i] = picture->pixels + pixel * (size_t)picture->channels;
    }
  }
  for (int32_t channel = 0; channel < job->channels; channel++) {
    const float *table = job->table[channel];
    const size_t sample = picture->channels == 1 ? 0 : (size_t)channel;
    out[(size_t)channel * job->plane] = blend(table[pixels[0][sample]], table[pixels[1][sample]],
                                              table[pixels[2][sample]], table[pixels[3][sample]], at);
  }
}

void augment_apply(const Picture *picture, const double matrix[9], AugmentPadding padding, const float (*table)[256],
                   int32_t channels, int32_t width, int32_t height, float *out) {
  const Resampling job = {picture, padding, table, channels, (size_t)width * (size_t)height};
  const bool affine = matrix[6] == 0 && matrix[7] == 0 && matrix[8] == 1;
  const double last_x = picture->width - 1, last_y = picture->height - 1;
  for (int32_t row = 0; row < height; row++) {
    const double y = row + 0.5;
    for (int32_t column = 0; column < width; column++) {
      const double x = column + 0.5;
      double source_x = matrix[0] * x + matrix[1] * y + matrix[2];
      double source_y = matrix[3] * x + matrix[4] * y + matrix[5];
      if (!affine) {
        const double w = matrix[6] * x + matrix[7] * y + matrix[8];
        source_x = w > 0 ? source_x / w : HUGE_VAL;
        source_y /= w;
      }
      source_x -= 0.5;
      source_y -= 0.5;
      if (source_x >= 0 && source_x < last_x && source_y >= 0 && source_y < last_y) {
        sample_inside(&job, source_x, source_y, out++);
      } else {
        sample_anywhere(&job, source_x, source_y, out++);
      }
    }
  }
}

Picture augment_picture(const Picture *picture, const Augment *augment, uint64_t seed, int64_t epoch, int64_t index,
                        int32_t width, int32_t height, Arena *arena) {
  const AugmentDraw draw = augment_draw(augment, seed, epoch, index);
  double matrix[9], logits[256], light[256];
  float table[AUGMENT_CHANNELS][256];
  const size_t plane = (size_t)width * (size_t)height, channels = (size_t)picture->channels;
  augment_logits(logits);
  augment_light(&draw, logits, light);
  const bool lit = draw.brightness != 0 || draw.contrast != 1;
  for (size_t channel = 0; channel < channels; channel++)
    for (int sample = 0; sample < 256; sample++)
      table[channel][sample] = lit ? (float)(255 * light[sample]) : (float)sample;
  augment_matrix(&draw, picture->width, picture->height, width, height, matrix);
  float *planes = arena_array(arena, plane * channels, float);
  augment_apply(picture, matrix, augment->padding, (const float(*)[256])table, picture->channels, width, height,
                planes);
  Picture out = {width, height, picture->channels, arena_alloc(arena, plane, channels)};
  for (size_t i = 0; i < plane * channels; i++)
    out.pixels[i % plane * channels + i / plane] = (uint8_t)(planes[i] + 0.5F);
  return out;
}
