#include <math.h>

#include "plot_draw.h"

/* --- ranges ---------------------------------------------------------------------------------------- */

static bool has_edges(const PlotSeries *series) { return series->style == PLOT_STEPS || series->style == PLOT_BARS; }

static double series_x(const PlotSeries *series, size_t index) { return series->x ? series->x[index] : (double)index; }

/* Whether value `index` has a place in the panel. */
static bool point_shown(const PlotPanel *panel, const PlotSeries *series, size_t index) {
  return value_shown(series->y[index], panel->y.logarithmic) &&
         value_shown(series_x(series, index), panel->x.logarithmic) &&
         (!has_edges(series) || value_shown(series_x(series, index + 1), panel->x.logarithmic));
}

typedef struct Range {
  double low, high;
} Range;

static void range_add(Range *range, double value) {
  range->low = fmin(range->low, value);
  range->high = fmax(range->high, value);
}

static Scale axis_scale(const PlotAxis *axis, Range found, double padding) {
  const bool own =
      axis->low < axis->high && value_shown(axis->low, axis->logarithmic) && value_shown(axis->high, axis->logarithmic);
  if (own) return scale_around(axis->low, axis->high, axis->logarithmic, 0);
  return scale_around(found.low, found.high, axis->logarithmic, padding);
}

void chart_ranges(const PlotPanel *panel, Scale *out_x, Scale *out_y, bool *out_empty) {
  Range x = {HUGE_VAL, -HUGE_VAL}, y = x;
  bool bars = false;
  for (size_t s = 0; s < panel->series_count; s++) {
    const PlotSeries *series = &panel->series[s];
    for (size_t i = 0; i < series->count; i++) {
      if (!point_shown(panel, series, i)) continue;
      range_add(&x, series_x(series, i));
      if (has_edges(series)) range_add(&x, series_x(series, i + 1));
      range_add(&y, series->y[i]);
      bars = bars || series->style == PLOT_BARS;
    }
  }
  for (size_t i = 0; i < panel->mark_count; i++) {
    const PlotMark *mark = &panel->marks[i];
    if (!value_shown(mark->x, panel->x.logarithmic) || !value_shown(mark->y, panel->y.logarithmic)) continue;
    range_add(&x, mark->x);
    range_add(&y, mark->y);
  }
  *out_empty = x.low > x.high;
  const bool stands = bars && !panel->y.logarithmic && y.low >= 0;
  if (bars && !panel->y.logarithmic) range_add(&y, 0);
  *out_x = axis_scale(&panel->x, x, bars ? 0 : 0.02);
  *out_y = axis_scale(&panel->y, y, 0.05);
  /* bars stand on the axis */
  if (stands && !(panel->y.low < panel->y.high)) out_y->low = 0;
}

/* --- series ---------------------------------------------------------------------------------------- */

/* Okabe and Ito's colours, which stay apart for colour-blind readers (https://jfly.uni-koeln.de/color/), without
 * yellow. More series than these are taken to be ordered, and run through viridis. */
static const uint32_t palette[] = {0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7, 0xE69F00, 0x56B4E9, 0x666666};
enum { PALETTE_SIZE = sizeof palette / sizeof *palette };

static uint32_t series_color(const PlotPanel *panel, size_t index) {
  if (panel->series_count <= PALETTE_SIZE) return palette[index];
  return colormap_at(COLORMAP_VIRIDIS, 0.92 * (double)index / (double)(panel->series_count - 1));
}

typedef struct Point {
  double x, y;
} Point;

static Point place(const Axes *axes, const Box *box, double x, double y) {
  return (Point){box->x + scale_position(&axes->x, x) * box->width,
                 box->y + box->height - scale_position(&axes->y, y) * box->height};
}

static void dot(Canvas *canvas, Point at, double radius) {
  cairo_new_sub_path(canvas->cairo);
  cairo_arc(canvas->cairo, at.x, at.y, radius, 0, 6.283185307179586);
}

/* A line of more points than pixels is thinned: of a run of points within half a unit only the first, the lowest, the
 * highest and the last are drawn, in their order, so that no peak is lost. */
typedef struct Run {
  Point first, low, high, last;
  size_t low_at, high_at, count;
} Run;

static void run_flush(Canvas *canvas, Run *run) {
  if (run->count > 1) {
    const bool low_first = run->low_at < run->high_at;
    const Point early = low_first ? run->low : run->high, late = low_first ? run->high : run->low;
    cairo_line_to(canvas->cairo, early.x, early.y);
    cairo_line_to(canvas->cairo, late.x, late.y);
    cairo_line_to(canvas->cairo, run->last.x, run->last.y);
  }
  run->count = 0;
}

static void run_add(Canvas *canvas, Run *run, Point at) {
  if (run->count > 0 && floor(at.x * 2) != floor(run->first.x * 2)) run_flush(canvas, run);
  if (run->count == 0) {
    *run = (Run){at, at, at, at, 0, 0, 0};
    cairo_line_to(canvas->cairo, at.x, at.y);
  }
  if (at.y > run->low.y) {
    run->low = at;
    run->low_at = run->count;
  }
  if (at.y < run->high.y) {
    run->high = at;
    run->high_at = run->count;
  }
  run->last = at;
  run->count++;
}

static void draw_line(Canvas *canvas, const PlotPanel *panel, const PlotSeries *series, const Axes *axes,
                      const Box *box) {
  const double width = series->count > 2000 ? 1.1 : 1.6;
  Run run = {0};
  for (size_t i = 0; i < series->count; i++) {
    if (point_shown(panel, series, i)) {
      run_add(canvas, &run, place(axes, box, series_x(series, i), series->y[i]));
    } else {
      run_flush(canvas, &run);
      cairo_new_sub_path(canvas->cairo);
    }
  }
  run_flush(canvas, &run);
  cairo_set_line_width(canvas->cairo, width);
  cairo_stroke(canvas->cairo);
}

/* All points, or only those that no line shows because both neighbours are missing. */
static void draw_points(Canvas *canvas, const PlotPanel *panel, const PlotSeries *series, const Axes *axes,
                        const Box *box, bool lonely) {
  for (size_t i = 0; i < series->count; i++) {
    if (!point_shown(panel, series, i)) continue;
    if (lonely && i > 0 && point_shown(panel, series, i - 1)) continue;
    if (lonely && i + 1 < series->count && point_shown(panel, series, i + 1)) continue;
    dot(canvas, place(axes, box, series_x(series, i), series->y[i]), 2.6);
  }
  cairo_fill(canvas->cairo);
}

static void draw_steps(Canvas *canvas, const PlotPanel *panel, const PlotSeries *series, const Axes *axes,
                       const Box *box) {
  for (size_t i = 0; i < series->count; i++) {
    if (!point_shown(panel, series, i)) {
      cairo_new_sub_path(canvas->cairo);
      continue;
    }
    const Point from = place(axes, box, series_x(series, i), series->y[i]);
    cairo_line_to(canvas->cairo, from.x, from.y);
    cairo_line_to(canvas->cairo, place(axes, box, series_x(series, i + 1), series->y[i]).x, from.y);
  }
  cairo_set_line_width(canvas->cairo, 1.6);
  cairo_stroke(canvas->cairo);
}

static void draw_bars(Canvas *canvas, const PlotPanel *panel, const PlotSeries *series, const Axes *axes,
                      const Box *box) {
  const double base = panel->y.logarithmic ? axes->y.low : 0;
  for (size_t i = 0; i < series->count; i++) {
    if (!point_shown(panel, series, i)) continue;
    const Point from = place(axes, box, series_x(series, i), base);
    const Point to = place(axes, box, series_x(series, i + 1), series->y[i]);
    const double gap = fmin(fabs(to.x - from.x) * 0.05, 1);
    cairo_rectangle(canvas->cairo, from.x + gap, to.y, to.x - from.x - 2 * gap, from.y - to.y);
  }
  cairo_fill(canvas->cairo);
}

static void draw_series(Canvas *canvas, const PlotPanel *panel, size_t index, const Axes *axes, const Box *box) {
  const PlotSeries *series = &panel->series[index];
  canvas_color(canvas, series_color(panel, index), series->style == PLOT_BARS && panel->series_count > 1 ? 0.6 : 1);
  switch (series->style) {
    case PLOT_LINE:
    case PLOT_LINE_POINTS:
      draw_line(canvas, panel, series, axes, box);
      draw_points(canvas, panel, series, axes, box, series->style == PLOT_LINE);
      break;
    case PLOT_POINTS:
      draw_points(canvas, panel, series, axes, box, false);
      break;
    case PLOT_STEPS:
      draw_steps(canvas, panel, series, axes, box);
      break;
    case PLOT_BARS:
      draw_bars(canvas, panel, series, axes, box);
      break;
  }
}

/* --- marks ----------------------------------------------------------------------------------------- */

static void draw_mark(Canvas *canvas, const PlotPanel *panel, const PlotMark *mark, const Axes *axes, const Box *box) {
  if (!value_shown(mark->x, panel->x.logarithmic) || !value_shown(mark->y, panel->y.logarithmic)) return;
  const Point at = place(axes, box, mark->x, mark->y);
  if (at.x < box->x || at.x > box->x + box->width || at.y < box->y || at.y > box->y + box->height) return;
  dot(canvas, at, 4.5);
  canvas_color(canvas, 0xFFFFFF, 1);
  cairo_fill_preserve(canvas->cairo);
  canvas_color(canvas, 0xC00000, 1);
  cairo_set_line_width(canvas->cairo, 2);
  cairo_stroke(canvas->cairo);

  const char *label = text_fit(canvas, mark->label, TEXT_TICK, box->width * 0.45);
  const double width = text_width(canvas, label, TEXT_TICK);
  const bool left = at.x + 10 + width > box->x + box->width;
  const bool below = at.y - 8 - TEXT_TICK < box->y;
  const double x = left ? at.x - 8 - width : at.x + 8, y = below ? at.y + 8 + TEXT_TICK : at.y - 8;
  cairo_set_font_size(canvas->cairo, TEXT_TICK);
  cairo_move_to(canvas->cairo, x, y);
  cairo_text_path(canvas->cairo, label);
  canvas_color(canvas, 0xFFFFFF, 0.9);
  cairo_set_line_width(canvas->cairo, 4);
  cairo_stroke(canvas->cairo);
  canvas_color(canvas, 0xC00000, 1);
  text_draw(canvas, label, TEXT_TICK, x, y, 0);
}

/* --- legend ---------------------------------------------------------------------------------------- */

/* Many lines leave no free corner: their legend stands right of the data. */
enum { LEGEND_ROW = 15, LEGEND_SAMPLE = 18, LEGEND_EDGE = 6, LEGEND_AWAY = 7, LEGEND_BESIDE_WIDTH = 130 };

static bool legend_beside(const PlotPanel *panel) { return panel->series_count > PALETTE_SIZE; }

typedef struct Legend {
  const char **labels;
  size_t *series;
  size_t count;
  double width, height;
} Legend;

/* When not all fit, evenly spaced ones, first and last included. */
static Legend legend_plan(Canvas *canvas, const PlotPanel *panel, double width, double height) {
  Legend legend = {arena_array(canvas->arena, panel->series_count, const char *),
                   arena_array(canvas->arena, panel->series_count, size_t), 0, 0, 0};
  size_t labelled = 0;
  for (size_t i = 0; i < panel->series_count; i++) {
    if (panel->series[i].label) legend.series[labelled++] = i;
  }
  const double share = legend_beside(panel) ? 1 : 0.75;
  const double label_width = legend_beside(panel) ? LEGEND_BESIDE_WIDTH : width * 0.4;
  const double room = floor((height * share - 2 * LEGEND_EDGE) / LEGEND_ROW);
  const size_t most = room >= 1 ? (size_t)room : 0;
  legend.count = labelled < most ? labelled : most;
  if (legend.count == 1 && labelled > 1) legend.count = 0;
  for (size_t i = 0; i < legend.count; i++) {
    if (labelled > legend.count) legend.series[i] = legend.series[i * (labelled - 1) / (legend.count - 1)];
    legend.labels[i] = text_fit(canvas, panel->series[legend.series[i]].label, TEXT_TICK, label_width);
    legend.width = fmax(legend.width, text_width(canvas, legend.labels[i], TEXT_TICK));
  }
  legend.width += LEGEND_SAMPLE + 3 * LEGEND_EDGE;
  legend.height = (double)legend.count * LEGEND_ROW + 2 * LEGEND_EDGE - 3;
  return legend;
}

double chart_legend_room(Canvas *canvas, const PlotPanel *panel, double width, double height) {
  if (!legend_beside(panel)) return 0;
  const Legend legend = legend_plan(canvas, panel, width, height);
  return legend.count > 0 ? legend.width + LEGEND_AWAY + 4 : 0;
}

static bool inside(const Box *box, double x, double y) {
  return x >= box->x && x <= box->x + box->width && y >= box->y && y <= box->y + box->height;
}

/* How much of the data lies in `area`: points, and points on the lines between them. */
static size_t data_inside(const PlotPanel *panel, const Axes *axes, const Box *box, const Box *area) {
  enum { SAMPLES = 8, POINTS_LIMIT = 2000 };
  size_t hits = 0;
  for (size_t s = 0; s < panel->series_count; s++) {
    const PlotSeries *series = &panel->series[s];
    const size_t stride = 1 + series->count / POINTS_LIMIT;
    for (size_t i = 0; i < series->count; i += stride) {
      if (!point_shown(panel, series, i)) continue;
      const Point at = place(axes, box, series_x(series, i), series->y[i]);
      hits += inside(area, at.x, at.y);
      if (i + stride >= series->count || !point_shown(panel, series, i + stride)) continue;
      const Point next = place(axes, box, series_x(series, i + stride), series->y[i + stride]);
      for (int32_t k = 1; k < SAMPLES; k++) {
        const double t = (double)k / SAMPLES;
        hits += inside(area, at.x + (next.x - at.x) * t, at.y + (next.y - at.y) * t);
      }
    }
  }
  for (size_t i = 0; i < panel->mark_count; i++) {
    enum { MARK_WEIGHT = 1000 };
    if (!value_shown(panel->marks[i].x, panel->x.logarithmic)) continue;
    if (!value_shown(panel->marks[i].y, panel->y.logarithmic)) continue;
    const Point at = place(axes, box, panel->marks[i].x, panel->marks[i].y);
    if (inside(area, at.x, at.y)) hits += MARK_WEIGHT;
  }
  return hits;
}

/* The corner that hides the least. */
static Box legend_place(const PlotPanel *panel, const Axes *axes, const Box *box, const Legend *legend) {
  Box best = {0};
  size_t fewest = SIZE_MAX;
  for (int32_t corner = 0; corner < 4; corner++) {
    const bool left = corner & 1, bottom = corner & 2;
    const Box area = {left ? box->x + LEGEND_AWAY : box->x + box->width - LEGEND_AWAY - legend->width,
                      bottom ? box->y + box->height - LEGEND_AWAY - legend->height : box->y + LEGEND_AWAY,
                      legend->width, legend->height};
    const size_t hits = data_inside(panel, axes, box, &area);
    if (hits >= fewest) continue;
    fewest = hits;
    best = area;
  }
  return best;
}

static void draw_legend(Canvas *canvas, const PlotPanel *panel, const Axes *axes, const Box *box) {
  const Legend legend = legend_plan(canvas, panel, box->width, box->height);
  if (legend.count == 0) return;
  const Box beside = {box->x + box->width + LEGEND_AWAY, box->y, legend.width, legend.height};
  const Box area = legend_beside(panel) ? beside : legend_place(panel, axes, box, &legend);
  cairo_t *cairo = canvas->cairo;
  cairo_rectangle(cairo, area.x, area.y, area.width, area.height);
  canvas_color(canvas, 0xFFFFFF, 0.85);
  cairo_fill_preserve(cairo);
  canvas_color(canvas, COLOR_GRID, 1);
  cairo_set_line_width(cairo, 1);
  cairo_stroke(cairo);
  for (size_t i = 0; i < legend.count; i++) {
    const PlotSeries *series = &panel->series[legend.series[i]];
    const double x = area.x + LEGEND_EDGE, y = area.y + LEGEND_EDGE + ((double)i + 0.4) * LEGEND_ROW;
    canvas_color(canvas, series_color(panel, legend.series[i]), 1);
    if (series->style == PLOT_BARS) {
      cairo_rectangle(cairo, x, y - 4, LEGEND_SAMPLE, 8);
      cairo_fill(cairo);
    } else {
      if (series->style != PLOT_POINTS) {
        cairo_move_to(cairo, x, y);
        cairo_line_to(cairo, x + LEGEND_SAMPLE, y);
        cairo_set_line_width(cairo, 2);
        cairo_stroke(cairo);
      }
      if (series->style == PLOT_POINTS || series->style == PLOT_LINE_POINTS) {
        dot(canvas, (Point){x + LEGEND_SAMPLE / 2.0, y}, 2.6);
        cairo_fill(cairo);
      }
    }
    canvas_color(canvas, COLOR_INK, 1);
    text_draw(canvas, legend.labels[i], TEXT_TICK, x + LEGEND_SAMPLE + LEGEND_EDGE, y + TEXT_TICK * 0.36, 0);
  }
}

void chart_draw(Canvas *canvas, const PlotPanel *panel, const Axes *axes, const Box *box) {
  cairo_t *cairo = canvas->cairo;
  cairo_save(cairo);
  cairo_rectangle(cairo, box->x, box->y, box->width, box->height);
  cairo_clip(cairo);
  cairo_set_line_join(cairo, CAIRO_LINE_JOIN_ROUND);
  for (size_t i = 0; i < panel->series_count; i++) draw_series(canvas, panel, i, axes, box);
  for (size_t i = 0; i < panel->mark_count; i++) draw_mark(canvas, panel, &panel->marks[i], axes, box);
  cairo_restore(cairo);
  draw_legend(canvas, panel, axes, box);
}
