/* Plots and sheets of pictures, drawn with cairo: one description, a PNG or an SVG file from it.
 *
 * A figure is a grid of panels, filled row by row; a panel is a chart (series over two axes), a matrix (cells in
 * colours, with a colour bar) or a picture with its caption. Everything is only read, and only while drawing. The same
 * figure gives the same bytes with the same cairo and fonts: no dates, no random names.
 *
 * Numbers that are not finite, beyond ±PLOT_LIMIT, or not positive on a logarithmic axis are left out: a line breaks
 * there. Text is UTF-8; bytes that are not are shown as U+FFFD, and text too long for its place ends in "…". */
#ifndef KILN_RUNTIME_SESSION_PLOT_H
#define KILN_RUNTIME_SESSION_PLOT_H

#include "base/diag.h"
#include "base/text.h"
#include "colormap.h"
#include "picture.h"

#define PLOT_LIMIT 1e300

typedef enum PlotStyle { PLOT_LINE, PLOT_LINE_POINTS, PLOT_POINTS, PLOT_STEPS, PLOT_BARS } PlotStyle;

/* `count` values of y. x: as many, or for steps and bars the count + 1 edges between them; NULL means 0, 1, 2, …
 * A series without a label is not in the legend. */
typedef struct PlotSeries {
  const char *label;
  PlotStyle style;
  const double *x, *y;
  size_t count;
} PlotSeries;

/* A range with low < high is taken as it is, any other is found from the data. */
typedef struct PlotAxis {
  const char *label;
  bool logarithmic;
  double low, high;
} PlotAxis;

/* A point worth naming, such as the suggestion of the learning-rate finder. */
typedef struct PlotMark {
  double x, y;
  const char *label;
} PlotMark;

/* values[row * columns + column]; row 0 lies at the bottom. The axes' ranges are the outer edges of the cells (by
 * default 0 … columns, 0 … rows). Colours go from the smallest to the largest finite value; other cells are gray.
 * `log1p`: the colour shows log(1 + value). */
typedef struct PlotMatrix {
  const double *values;
  size_t rows, columns;
  bool log1p;
  Colormap map;
  const char *label; /* of the colour bar */
} PlotMatrix;

typedef enum PanelKind { PANEL_CHART, PANEL_MATRIX, PANEL_PICTURE } PanelKind;

typedef struct PlotPanel {
  PanelKind kind;
  const char *title; /* a picture's caption */
  PlotAxis x, y;     /* charts and matrices */
  const PlotSeries *series;
  size_t series_count;
  const PlotMark *marks;
  size_t mark_count;
  PlotMatrix matrix;
  Picture picture;
} PlotPanel;

/* Sizes in units of a CSS pixel, axes and captions included. 0 means: one row of panels; 440 by 300 units. */
typedef struct Figure {
  const char *title;
  const PlotPanel *panels;
  size_t panel_count, columns;
  double panel_width, panel_height;
} Figure;

/* Draws `scale` pixels per unit on white, as an RGB picture. Out of memory inside cairo fails like the arena's own. */
bool figure_draw(const Figure *figure, double scale, Arena *arena, Diag *diag, Picture *out_picture);
/* A whole SVG document. Text is drawn as outlines, so that it looks the same without the font. */
bool figure_svg(const Figure *figure, Arena *arena, Diag *diag, Text *out_svg);
/* Writes PNG (two pixels per unit) or SVG, as the name's ending says; atomically. */
bool figure_write(const Figure *figure, const char *path, Arena *scratch, Diag *diag);

#endif
