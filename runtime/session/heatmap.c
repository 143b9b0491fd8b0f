#include "heatmap.h"

#include <math.h>

/* --- maps ------------------------------------------------------------------------------------------ */

static const char *shape_text(const Tensor *tensor, Arena *arena) {
  Text text;
  text_init(&text, arena);
  shape_print(&text, &tensor->shape);
  return text.data;
}

static const char *tensor_label(const Tensor *tensor) { return tensor->name ? tensor->name : "tensor"; }

/* Channels, height and width of one image of a tensor, and the element where it begins. */
typedef struct Planes {
  int64_t channels, height, width, begin;
} Planes;

static bool find_planes(const Tensor *tensor, int64_t index, Arena *arena, Diag *diag, Planes *out_planes) {
  const Location location = {tensor->name, 0, 0};
  const Shape *shape = &tensor->shape;
  if (shape->rank != 3 && shape->rank != 4) {
    diag_error(diag, location, "a heat map needs a tensor [C,H,W] or [N,C,H,W], found [%s]", shape_text(tensor, arena));
    return false;
  }
  const int64_t *dims = shape->dims + (shape->rank - 3), images = shape->rank == 4 ? shape->dims[0] : 1;
  if (dims[0] < 1 || dims[1] < 1 || dims[2] < 1) {
    diag_error(diag, location, "a heat map of an empty tensor [%s]", shape_text(tensor, arena));
    return false;
  }
  if (index < 0 || index >= images) {
    diag_error(diag, location, "a heat map of image %lld, expected one of the %lld in [%s]", (long long)index,
               (long long)images, shape_text(tensor, arena));
    return false;
  }
  *out_planes = (Planes){dims[0], dims[1], dims[2], index * dims[0] * dims[1] * dims[2]};
  return true;
}

/* Sum over the channels of weights[c] · activation, in double; `weights` NULL means 1 / channels each. */
static Tensor weighted_sum(const Tensor *activation, const Planes *planes, const double *weights, Arena *arena) {
  const int64_t dims[] = {planes->height, planes->width}, plane = planes->height * planes->width;
  Tensor map = tensor_create(arena, activation->name, DTYPE_F32, shape_of(2, dims));
  for (int64_t i = 0; i < plane; i++) {
    double sum = 0;
    for (int64_t c = 0; c < planes->channels; c++) {
      sum += (weights ? weights[c] : 1) * tensor_get(activation, planes->begin + c * plane + i);
    }
    tensor_set(&map, i, weights ? sum : sum / (double)planes->channels);
  }
  return map;
}

bool heatmap_activation(const Tensor *activation, int64_t index, Arena *arena, Diag *diag, Tensor *out_map) {
  Planes planes;
  if (!find_planes(activation, index, arena, diag, &planes)) return false;
  *out_map = weighted_sum(activation, &planes, NULL, arena);
  return true;
}

bool heatmap_grad_cam(const Tensor *activation, const Tensor *gradient, int64_t index, Arena *arena, Diag *diag,
                      Tensor *out_map) {
  Planes planes;
  if (!find_planes(activation, index, arena, diag, &planes)) return false;
  bool same = gradient->shape.rank == activation->shape.rank;
  for (int32_t i = 0; same && i < activation->shape.rank; i++) {
    same = gradient->shape.dims[i] == activation->shape.dims[i];
  }
  if (!same) {
    diag_error(diag, (Location){activation->name, 0, 0},
               "Grad-CAM needs activation and gradient of one shape, found [%s] and [%s]",
               shape_text(activation, arena), shape_text(gradient, arena));
    return false;
  }
  const int64_t plane = planes.height * planes.width;
  double *weights = arena_array(arena, (size_t)planes.channels, double);
  for (int64_t c = 0; c < planes.channels; c++) {
    for (int64_t i = 0; i < plane; i++) weights[c] += tensor_get(gradient, planes.begin + c * plane + i);
    weights[c] /= (double)plane;
  }
  Tensor map = weighted_sum(activation, &planes, weights, arena);
  for (int64_t i = 0; i < plane; i++) {
    if (tensor_get(&map, i) < 0) tensor_set(&map, i, 0);
  }
  *out_map = map;
  return true;
}

/* --- overlay --------------------------------------------------------------------------------------- */

/* Position in the picture → the two nearest cells of a side and the weight of the second. */
typedef struct Tap {
  int64_t first, second;
  double weight;
} Tap;

static Tap tap_at(int32_t position, int32_t size, int64_t cells) {
  const double at = (position + 0.5) * (double)cells / size - 0.5;
  const double last = (double)(cells - 1), inside = fmin(fmax(at, 0), last);
  const double first = floor(inside);
  return (Tap){(int64_t)first, first < last ? (int64_t)first + 1 : (int64_t)first, inside - first};
}

/* The map's values as fractions of its range. */
static bool normalise(const Tensor *map, Arena *arena, Diag *diag, double **out_fractions) {
  const Location location = {map->name, 0, 0};
  const int64_t count = tensor_elements(map);
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (int64_t i = 0; i < count; i++) {
    const double value = tensor_get(map, i);
    if (!isfinite(value)) continue;
    low = fmin(low, value);
    high = fmax(high, value);
  }
  if (low > high) {
    diag_error(diag, location, "the heat map has no finite value");
    return false;
  }
  double *fractions = arena_array(arena, (size_t)count, double);
  for (int64_t i = 0; i < count; i++) {
    const double value = tensor_get(map, i);
    /* halved, so that the difference of two large numbers stays finite */
    if (isfinite(value) && low < high) fractions[i] = (value / 2 - low / 2) / (high / 2 - low / 2);
  }
  *out_fractions = fractions;
  return true;
}

static double pixel_channel(const uint8_t *pixel, int32_t channels, int32_t channel) {
  if (channels == 1) return pixel[0];
  if (channels == 3) return pixel[channel];
  return rint((pixel[channel] * pixel[3] + 255.0 * (255 - pixel[3])) / 255);
}

bool heatmap_overlay(const Picture *picture, const Tensor *map, double opacity, Arena *arena, Diag *diag,
                     Picture *out_picture) {
  const Location location = {map->name, 0, 0};
  if (map->shape.rank != 2 || map->shape.dims[0] < 1 || map->shape.dims[1] < 1) {
    diag_error(diag, location, "a heat map has the shape [H,W], found [%s]", shape_text(map, arena));
    return false;
  }
  if (!(opacity >= 0 && opacity <= 1)) {
    diag_error(diag, location, "the opacity of a heat map is from 0 to 1, found %g", opacity);
    return false;
  }
  double *cells;
  if (!normalise(map, arena, diag, &cells)) return false;
  const int64_t rows = map->shape.dims[0], columns = map->shape.dims[1];
  Picture out = {picture->width, picture->height, 3, NULL};
  out.pixels = arena_alloc(arena, (size_t)out.width * (size_t)out.height, 3);
  Tap *across = arena_array(arena, (size_t)out.width, Tap);
  for (int32_t x = 0; x < out.width; x++) across[x] = tap_at(x, out.width, columns);
  const uint8_t *from = picture->pixels;
  uint8_t *to = out.pixels;
  for (int32_t y = 0; y < out.height; y++) {
    const Tap down = tap_at(y, out.height, rows);
    const double *above = cells + down.first * columns, *below = cells + down.second * columns;
    for (int32_t x = 0; x < out.width; x++, from += picture->channels) {
      const Tap tap = across[x];
      const double top = above[tap.first] + (above[tap.second] - above[tap.first]) * tap.weight;
      const double bottom = below[tap.first] + (below[tap.second] - below[tap.first]) * tap.weight;
      const uint32_t rgb = colormap_at(COLORMAP_MAGMA, top + (bottom - top) * down.weight);
      for (int32_t c = 0; c < 3; c++) {
        const double under = pixel_channel(from, picture->channels, c), over = rgb >> (16 - 8 * c) & 255;
        *to++ = (uint8_t)rint(under + (over - under) * opacity);
      }
    }
  }
  *out_picture = out;
  return true;
}

/* --- sheets ---------------------------------------------------------------------------------------- */

bool heatmap_sheet(const char *title, const Picture *picture, const Tensor *maps, size_t count, size_t columns,
                   Arena *arena, Diag *diag, Figure *out_figure) {
  enum { LONGER_SIDE = 260, CAPTION = 28 };
  PlotPanel *panels = arena_array(arena, count + 1, PlotPanel);
  const double longer = fmax(picture->width, picture->height);
  const double width = ceil(picture->width / longer * LONGER_SIDE),
               height = ceil(picture->height / longer * LONGER_SIDE);
  /* Overlays are made at the size at which sheets show them at most, not at the camera's. */
  Picture shown = *picture;
  if (longer > 2 * LONGER_SIDE) {
    shown = picture_resize(picture, (int32_t)(2 * width), (int32_t)(2 * height), arena);
  }
  panels[0] = (PlotPanel){.kind = PANEL_PICTURE, .title = "picture", .picture = shown};
  for (size_t i = 0; i < count; i++) {
    panels[i + 1] = (PlotPanel){.kind = PANEL_PICTURE, .title = tensor_label(&maps[i])};
    if (!heatmap_overlay(&shown, &maps[i], HEATMAP_OPACITY, arena, diag, &panels[i + 1].picture)) return false;
  }
  if (columns == 0) columns = (size_t)ceil(sqrt((double)(count + 1)));
  *out_figure = (Figure){title, panels, count + 1, columns, fmax(width + 8, 96), height + CAPTION};
  return true;
}
