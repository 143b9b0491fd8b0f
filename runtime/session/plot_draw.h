/* Inside the plotting module: the surface that is drawn on, text, scales and ticks. */
#ifndef KILN_RUNTIME_SESSION_PLOT_DRAW_H
#define KILN_RUNTIME_SESSION_PLOT_DRAW_H

#include <cairo.h>

#include "plot.h"

/* Font sizes in units. */
#define TEXT_HEADING 15.0
#define TEXT_TITLE   13.0
#define TEXT_LABEL   11.0
#define TEXT_TICK    10.0

#define COLOR_INK   0x262626U
#define COLOR_FRAME 0x808080U
#define COLOR_GRID  0xE4E4E4U
#define COLOR_EMPTY 0xD8D8D8U

/* Surface and context are released with the arena. */
typedef struct Canvas {
  cairo_surface_t *surface;
  cairo_t *cairo;
  Arena *arena;
  double detail; /* pixels per unit that embedded pictures should have */
  Text output;   /* the bytes of an SVG document */
  bool closed;   /* takes no further output */
} Canvas;

typedef struct Box {
  double x, y, width, height;
} Box;

/* --- text and paint (plot_draw.c) ------------------------------------------------------------------- */

void canvas_color(Canvas *canvas, uint32_t rgb, double alpha);
double text_width(Canvas *canvas, const char *text, double size);
/* Valid UTF-8 without control characters, cut to `width` units. NULL gives "". */
const char *text_fit(Canvas *canvas, const char *text, double size, double width);
/* `x`, `y` is on the base line; `align` of the width lies left of it (0, 0.5, 1). */
void text_draw(Canvas *canvas, const char *text, double size, double x, double y, double align);
/* Reads upwards, centred around (x, y) on the base line. */
void text_draw_up(Canvas *canvas, const char *text, double size, double x, double y);
/* Fills `box` with pixels 0xRRGGBB, nearest neighbour. They stay in use until the canvas is released. */
void canvas_pixels(Canvas *canvas, const Box *box, uint32_t *pixels, int32_t width, int32_t height);

/* --- scales and ticks (plot_axes.c) ------------------------------------------------------------------ */

/* low < high; both positive when logarithmic. */
typedef struct Scale {
  double low, high;
  bool logarithmic;
} Scale;

typedef struct Ticks {
  double *values;
  const char **labels;
  double *minor; /* without labels; logarithmic only */
  size_t count, minor_count;
} Ticks;

/* Whether a value has a place on an axis. */
bool value_shown(double value, bool logarithmic);
/* A scale around low … high, whatever they are; `padding` is the share of the range that is added at both ends. */
Scale scale_around(double low, double high, bool logarithmic, double padding);
/* 0 at the low end, 1 at the high end; clamped to ±100. */
double scale_position(const Scale *scale, double value);
/* At most `limit` + 1 (and at least two, when `limit` allows) round numbers within the scale: steps of 1, 2 or 5
 * times a power of ten; whole decades, or their 1-2-5 parts, when logarithmic. */
Ticks scale_ticks(const Scale *scale, int32_t limit, Arena *arena);

/* --- panels ----------------------------------------------------------------------------------------- */

typedef struct Margins {
  double left, right, top, bottom;
} Margins;

/* Scales and ticks of a chart or a matrix, for a cell of the given size. */
typedef struct Axes {
  Scale x, y, color;
  Ticks x_ticks, y_ticks, color_ticks;
  Margins margins;
  bool empty; /* no value to show */
} Axes;

Axes axes_plan(Canvas *canvas, const PlotPanel *panel, double width, double height);
/* Grid lines below the data; frame, ticks and labels above it. `box` is the area of the data. */
void axes_draw_grid(Canvas *canvas, const Axes *axes, const Box *box);
void axes_draw_frame(Canvas *canvas, const Axes *axes, const PlotPanel *panel, const Box *box);

void chart_ranges(const PlotPanel *panel, Scale *out_x, Scale *out_y, bool *out_empty);
void chart_draw(Canvas *canvas, const PlotPanel *panel, const Axes *axes, const Box *box);
/* Units that a legend needs right of the data; 0 when it lies within. */
double chart_legend_room(Canvas *canvas, const PlotPanel *panel, double width, double height);
void matrix_ranges(const PlotPanel *panel, Scale *out_x, Scale *out_y, Scale *out_color, bool *out_empty);
void matrix_draw(Canvas *canvas, const PlotPanel *panel, const Axes *axes, const Box *box);
void picture_draw(Canvas *canvas, const Picture *picture, const Box *box);

/* Units right of a matrix: gap, bar, gap to the numbers. */
enum { BAR_GAP = 10, BAR_WIDTH = 12, TICK_LENGTH = 4, TICK_GAP = 3 };

#endif
