#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "plot_draw.h"

/* Cells beyond this are averaged in groups: more than this many are not visible, and pixels are limited. */
enum { CELLS_LIMIT = 2048 };

/* --- matrices -------------------------------------------------------------------------------------- */

static double cell_value(const PlotMatrix *matrix, double value) { return matrix->log1p ? log1p(value) : value; }

void matrix_ranges(const PlotPanel *panel, Scale *out_x, Scale *out_y, Scale *out_color, bool *out_empty) {
  const PlotMatrix *matrix = &panel->matrix;
  const bool own_x = panel->x.low < panel->x.high, own_y = panel->y.low < panel->y.high;
  *out_x = scale_around(own_x ? panel->x.low : 0, own_x ? panel->x.high : (double)matrix->columns, false, 0);
  *out_y = scale_around(own_y ? panel->y.low : 0, own_y ? panel->y.high : (double)matrix->rows, false, 0);
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (size_t i = 0; i < matrix->rows * matrix->columns; i++) {
    const double value = cell_value(matrix, matrix->values[i]);
    if (!value_shown(value, false)) continue;
    low = fmin(low, value);
    high = fmax(high, value);
  }
  *out_empty = low > high;
  *out_color = scale_around(low, high, false, 0);
}

/* Mean of the shown values in a group of cells; NaN when there are none. */
static double group_mean(const PlotMatrix *matrix, size_t row, size_t rows, size_t column, size_t columns) {
  double sum = 0;
  size_t count = 0;
  for (size_t r = row; r < row + rows && r < matrix->rows; r++) {
    for (size_t c = column; c < column + columns && c < matrix->columns; c++) {
      const double value = matrix->values[r * matrix->columns + c];
      if (!value_shown(value, false)) continue;
      count++;
      sum += (value - sum) / (double)count;
    }
  }
  return count ? sum : NAN;
}

static void draw_cells(Canvas *canvas, const PlotMatrix *matrix, const Scale *color, const Box *box) {
  const size_t row_group = (size_t)ceil_div((int64_t)matrix->rows, CELLS_LIMIT);
  const size_t column_group = (size_t)ceil_div((int64_t)matrix->columns, CELLS_LIMIT);
  const size_t rows = (size_t)ceil_div((int64_t)matrix->rows, (int64_t)row_group);
  const size_t columns = (size_t)ceil_div((int64_t)matrix->columns, (int64_t)column_group);
  /* Viewers of SVG smooth enlarged pictures: cells are enlarged here, so that their edges stay sharp. */
  const size_t wide = (size_t)fmax(1, ceil(box->width * canvas->detail / (double)columns));
  const size_t tall = (size_t)fmax(1, ceil(box->height * canvas->detail / (double)rows));
  const size_t width = columns * wide, height = rows * tall;
  uint32_t *pixels = arena_alloc(canvas->arena, width * height, sizeof(uint32_t));
  for (size_t r = 0; r < rows; r++) {
    uint32_t *line = pixels + (rows - 1 - r) * tall * width;
    for (size_t c = 0; c < columns; c++) {
      const double value =
          cell_value(matrix, group_mean(matrix, r * row_group, row_group, c * column_group, column_group));
      const uint32_t rgb =
          value_shown(value, false) ? colormap_at(matrix->map, scale_position(color, value)) : COLOR_EMPTY;
      for (size_t i = 0; i < wide; i++) line[c * wide + i] = rgb;
    }
    for (size_t i = 1; i < tall; i++) memcpy(line + i * width, line, width * sizeof *line);
  }
  /* the last group of a side may reach past the matrix */
  cairo_save(canvas->cairo);
  cairo_rectangle(canvas->cairo, box->x, box->y, box->width, box->height);
  cairo_clip(canvas->cairo);
  Box cells = *box;
  cells.width *= (double)(columns * column_group) / (double)matrix->columns;
  cells.height *= (double)(rows * row_group) / (double)matrix->rows;
  cells.y = box->y + box->height - cells.height;
  canvas_pixels(canvas, &cells, pixels, (int32_t)width, (int32_t)height);
  cairo_restore(canvas->cairo);
}

static void draw_color_bar(Canvas *canvas, const PlotMatrix *matrix, const Axes *axes, const Box *box) {
  const Box bar = {box->x + box->width + BAR_GAP, box->y, BAR_WIDTH, box->height};
  uint32_t *pixels = arena_array(canvas->arena, COLORMAP_SIZE, uint32_t);
  for (int32_t i = 0; i < COLORMAP_SIZE; i++) pixels[i] = colormap_entry(matrix->map, COLORMAP_SIZE - 1 - i);
  canvas_pixels(canvas, &bar, pixels, 1, COLORMAP_SIZE);
  const double right = bar.x + bar.width;
  for (size_t i = 0; i < axes->color_ticks.count; i++) {
    const double y = bar.y + bar.height * (1 - scale_position(&axes->color, axes->color_ticks.values[i]));
    cairo_move_to(canvas->cairo, right, y);
    cairo_line_to(canvas->cairo, right + TICK_LENGTH, y);
  }
  cairo_rectangle(canvas->cairo, bar.x, bar.y, bar.width, bar.height);
  canvas_color(canvas, COLOR_FRAME, 1);
  cairo_set_line_width(canvas->cairo, 1);
  cairo_stroke(canvas->cairo);
  canvas_color(canvas, COLOR_INK, 1);
  double widest = 0;
  for (size_t i = 0; i < axes->color_ticks.count; i++) {
    const double y = bar.y + bar.height * (1 - scale_position(&axes->color, axes->color_ticks.values[i]));
    const char *label = axes->color_ticks.labels[i];
    widest = fmax(widest, text_width(canvas, label, TEXT_TICK));
    text_draw(canvas, label, TEXT_TICK, right + TICK_LENGTH + TICK_GAP, y + TEXT_TICK * 0.36, 0);
  }
  text_draw_up(canvas, text_fit(canvas, matrix->label, TEXT_LABEL, bar.height), TEXT_LABEL,
               right + TICK_LENGTH + TICK_GAP + widest + TEXT_LABEL + 2, bar.y + bar.height / 2);
}

void matrix_draw(Canvas *canvas, const PlotPanel *panel, const Axes *axes, const Box *box) {
  if (axes->empty) return;
  draw_cells(canvas, &panel->matrix, &axes->color, box);
  draw_color_bar(canvas, &panel->matrix, axes, box);
}

/* --- pictures -------------------------------------------------------------------------------------- */

/* Alpha is drawn over white. */
static uint32_t pixel_rgb(const uint8_t *pixel, int32_t channels) {
  if (channels == 1) return pixel[0] * 0x010101U;
  uint32_t rgb = 0;
  for (int32_t c = 0; c < 3; c++) {
    const uint32_t value = channels == 4 ? (pixel[c] * pixel[3] + 255U * (255U - pixel[3]) + 127) / 255 : pixel[c];
    rgb = rgb << 8 | value;
  }
  return rgb;
}

void picture_draw(Canvas *canvas, const Picture *picture, const Box *box) {
  const double fit = fmin(box->width / picture->width, box->height / picture->height);
  Box area = {0, 0, picture->width * fit, picture->height * fit};
  area.x = rint(box->x + (box->width - area.width) / 2);
  area.y = rint(box->y + (box->height - area.height) / 2);
  const int32_t width = (int32_t)fmax(1, rint(area.width * canvas->detail));
  const int32_t height = (int32_t)fmax(1, rint(area.height * canvas->detail));
  area.width = width / canvas->detail;
  area.height = height / canvas->detail;
  /* Small pictures show their pixels; others are resampled here, as cairo's filters differ between outputs. */
  Picture shown = *picture;
  if (fit * canvas->detail < 3) shown = picture_resize(picture, width, height, canvas->arena);
  uint32_t *pixels = arena_alloc(canvas->arena, (size_t)width * (size_t)height, sizeof(uint32_t));
  for (int32_t y = 0; y < height; y++) {
    const int32_t from_y = (int32_t)((int64_t)y * shown.height / height);
    for (int32_t x = 0; x < width; x++) {
      const int32_t from_x = (int32_t)((int64_t)x * shown.width / width);
      const size_t at = (size_t)from_y * (size_t)shown.width + (size_t)from_x;
      pixels[(size_t)y * (size_t)width + (size_t)x] =
          pixel_rgb(shown.pixels + at * (size_t)shown.channels, shown.channels);
    }
  }
  canvas_pixels(canvas, &area, pixels, width, height);
}
