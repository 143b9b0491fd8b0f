#include <math.h>

#include "plot_draw.h"

/* Ranges narrower than this share of their values cannot be told apart by readable tick labels. */
static const double narrowest = 1e-9;
static const double smallest = 1e-300;

bool value_shown(double value, bool logarithmic) {
  return isfinite(value) && fabs(value) <= PLOT_LIMIT && (!logarithmic || value >= smallest);
}

Scale scale_around(double low, double high, bool logarithmic, double padding) {
  if (!value_shown(low, logarithmic) || !value_shown(high, logarithmic) || low > high) {
    low = logarithmic ? 0.1 : 0;
    high = 1;
    padding = 0;
  }
  if (logarithmic) {
    const double decades = log10(high) - log10(low);
    const double factor = pow(10, decades < 0.05 ? 0.5 : decades * padding);
    return (Scale){fmax(low / factor, smallest), fmin(high * factor, PLOT_LIMIT), true};
  }
  const double size = fmax(fabs(low), fabs(high));
  double extra = (high - low) * padding;
  if (high - low < size * narrowest || high - low < smallest) extra = fmax(size * 0.05, size == 0 ? 0.5 : smallest);
  return (Scale){low - extra, high + extra, false};
}

double scale_position(const Scale *scale, double value) {
  double low = scale->low, high = scale->high;
  if (scale->logarithmic) {
    low = log10(low);
    high = log10(high);
    value = log10(value);
  }
  const double position = (value - low) / (high - low);
  return fmin(fmax(position, -100), 100);
}

/* --- ticks ----------------------------------------------------------------------------------------- */

/* mantissa · 10^exponent with mantissa 1, 2 or 5. */
typedef struct Step {
  int32_t mantissa, exponent;
} Step;

static Step step_at_least(double size) {
  Step step = {1, (int32_t)floor(log10(size))};
  const double unit = pow(10, step.exponent), slack = 1 + 1e-9;
  if (size > 5 * unit * slack) {
    step.exponent++;
  } else if (size > 2 * unit * slack) {
    step.mantissa = 5;
  } else if (size > unit * slack) {
    step.mantissa = 2;
  }
  return step;
}

/* Dividing by a power of ten, where there is one, gives the double nearest to the decimal number. */
static double step_times(Step step, double count) {
  const double whole = count * step.mantissa;
  return step.exponent < 0 ? whole / pow(10, -step.exponent) : whole * pow(10, step.exponent);
}

/* All labels of an axis have the same number of decimals and, when large or small, the same power of ten. */
static const char *linear_label(double value, double largest, Step step, Arena *arena) {
  if (value == 0) return "0";
  int32_t power = 0;
  if (largest >= 1e6 || largest < 0.9999e-3) power = (int32_t)floor(log10(largest) + 1e-9);
  const int32_t decimals = power - step.exponent > 0 ? power - step.exponent : 0;
  const double shown = power < 0 ? value * pow(10, -power) : value / pow(10, power);
  return power == 0 ? arena_format(arena, "%.*f", decimals, shown)
                    : arena_format(arena, "%.*fe%d", decimals, shown, power);
}

static Ticks linear_ticks(const Scale *scale, int32_t limit, Arena *arena) {
  const Step step = step_at_least((scale->high - scale->low) / limit);
  const double size = step_times(step, 1);
  const double first = ceil(scale->low / size - 1e-6), last = floor(scale->high / size + 1e-6);
  Ticks ticks = {0};
  if (last < first) return ticks;
  ticks.count = (size_t)(last - first) + 1;
  ticks.values = arena_array(arena, ticks.count, double);
  ticks.labels = arena_array(arena, ticks.count, const char *);
  double largest = 0;
  for (size_t i = 0; i < ticks.count; i++) {
    ticks.values[i] = step_times(step, first + (double)i);
    largest = fmax(largest, fabs(ticks.values[i]));
  }
  for (size_t i = 0; i < ticks.count; i++) ticks.labels[i] = linear_label(ticks.values[i], largest, step, arena);
  return ticks;
}

/* 10 to the power with raised digits. */
static const char *decade_label(int32_t power, Arena *arena) {
  static const char *const raised[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  Text text;
  text_init(&text, arena);
  text_add(&text, power < 0 ? "10⁻" : "10");
  const char *digits = arena_format(arena, "%d", power < 0 ? -power : power);
  for (; *digits; digits++) text_add(&text, raised[*digits - '0']);
  return text.data;
}

static const char *part_label(double mantissa, int32_t power, Arena *arena) {
  if (power < -3 || power > 4) return arena_format(arena, "%.0fe%d", mantissa, power);
  return arena_format(arena, "%.*f", power < 0 ? -power : 0, step_times((Step){1, power}, mantissa));
}

static void tick_add(Ticks *ticks, const Scale *scale, double value, const char *label) {
  const double slack = 1 + 1e-9;
  if (value < scale->low / slack || value > scale->high * slack) return;
  if (label) {
    ticks->values[ticks->count] = value;
    ticks->labels[ticks->count++] = label;
  } else {
    ticks->minor[ticks->minor_count++] = value;
  }
}

static Ticks log_ticks(const Scale *scale, int32_t limit, Arena *arena) {
  const int32_t first = (int32_t)floor(log10(scale->low)), last = (int32_t)ceil(log10(scale->high));
  const double decades = log10(scale->high) - log10(scale->low);
  if (decades < 0.5) return linear_ticks(scale, limit, arena);
  const bool parts = decades < 1.7;
  const int32_t stride = 1 + (int32_t)(decades / limit);
  const size_t most = (size_t)(last - first + 1) * 9;
  Ticks ticks = {arena_array(arena, most, double), arena_array(arena, most, const char *),
                 arena_array(arena, most, double), 0, 0};
  for (int32_t power = first; power <= last; power++) {
    for (int32_t mantissa = 1; mantissa < 10; mantissa++) {
      const double value = step_times((Step){1, power}, mantissa);
      const char *label = NULL;
      if (parts && (mantissa == 1 || mantissa == 2 || mantissa == 5)) label = part_label(mantissa, power, arena);
      if (!parts && mantissa == 1 && power % stride == 0) label = decade_label(power, arena);
      if (label || mantissa == 1 || stride == 1) tick_add(&ticks, scale, value, label);
    }
  }
  return ticks;
}

Ticks scale_ticks(const Scale *scale, int32_t limit, Arena *arena) {
  if (limit < 1) limit = 1;
  return scale->logarithmic ? log_ticks(scale, limit, arena) : linear_ticks(scale, limit, arena);
}

/* --- planning -------------------------------------------------------------------------------------- */

static double widest_label(Canvas *canvas, const Ticks *ticks) {
  double widest = 0;
  for (size_t i = 0; i < ticks->count; i++) widest = fmax(widest, text_width(canvas, ticks->labels[i], TEXT_TICK));
  return widest;
}

/* As many ticks as have room for their labels side by side. */
static Ticks fit_ticks(Canvas *canvas, const Scale *scale, double width) {
  enum { SPACE = 14 };
  Ticks ticks = {0};
  for (int32_t limit = (int32_t)fmax(width / 45, 1); limit >= 1; limit--) {
    ticks = scale_ticks(scale, limit, canvas->arena);
    if (ticks.count < 2) break;
    const double first = scale_position(scale, ticks.values[0]);
    const double last = scale_position(scale, ticks.values[ticks.count - 1]);
    if (widest_label(canvas, &ticks) + SPACE <= (last - first) * width / (double)(ticks.count - 1)) break;
  }
  return ticks;
}

static Ticks upright_ticks(Canvas *canvas, const Scale *scale, double height) {
  return scale_ticks(scale, (int32_t)fmax(height / 36, 1), canvas->arena);
}

static bool has_text(const char *text) { return text && *text; }

Axes axes_plan(Canvas *canvas, const PlotPanel *panel, double width, double height) {
  Axes axes = {0};
  Margins *margins = &axes.margins;
  const bool matrix = panel->kind == PANEL_MATRIX;
  if (matrix) {
    matrix_ranges(panel, &axes.x, &axes.y, &axes.color, &axes.empty);
  } else {
    chart_ranges(panel, &axes.x, &axes.y, &axes.empty);
  }
  margins->top = has_text(panel->title) ? TEXT_TITLE + 14 : 10;
  margins->bottom = 4 + TICK_LENGTH + TICK_GAP + TEXT_TICK + (has_text(panel->x.label) ? TEXT_LABEL + 8 : 4);
  const double plot_height = height - margins->top - margins->bottom;
  axes.y_ticks = upright_ticks(canvas, &axes.y, plot_height);
  margins->left = 8 + widest_label(canvas, &axes.y_ticks) + TICK_GAP + TICK_LENGTH;
  if (has_text(panel->y.label)) margins->left += TEXT_LABEL + 6;
  margins->right = matrix ? 14 : fmax(14, chart_legend_room(canvas, panel, width, plot_height));
  if (matrix) {
    axes.color_ticks = upright_ticks(canvas, &axes.color, plot_height);
    margins->right = BAR_GAP + BAR_WIDTH + TICK_LENGTH + TICK_GAP + widest_label(canvas, &axes.color_ticks) + 10;
    if (has_text(panel->matrix.label)) margins->right += TEXT_LABEL + 4;
  }
  axes.x_ticks = fit_ticks(canvas, &axes.x, width - margins->left - margins->right);
  /* the half of the last label that may stand out */
  if (!matrix && axes.x_ticks.count > 0) {
    margins->right =
        fmax(margins->right, text_width(canvas, axes.x_ticks.labels[axes.x_ticks.count - 1], TEXT_TICK) / 2 + 6);
  }
  return axes;
}

/* --- drawing --------------------------------------------------------------------------------------- */

static double x_at(const Axes *axes, const Box *box, double value) {
  return box->x + scale_position(&axes->x, value) * box->width;
}

static double y_at(const Axes *axes, const Box *box, double value) {
  return box->y + box->height - scale_position(&axes->y, value) * box->height;
}

static void line(Canvas *canvas, double x0, double y0, double x1, double y1) {
  cairo_move_to(canvas->cairo, x0, y0);
  cairo_line_to(canvas->cairo, x1, y1);
}

void axes_draw_grid(Canvas *canvas, const Axes *axes, const Box *box) {
  const double right = box->x + box->width, bottom = box->y + box->height;
  for (size_t i = 0; i < axes->x_ticks.count; i++) {
    const double x = x_at(axes, box, axes->x_ticks.values[i]);
    line(canvas, x, box->y, x, bottom);
  }
  for (size_t i = 0; i < axes->y_ticks.count; i++) {
    const double y = y_at(axes, box, axes->y_ticks.values[i]);
    line(canvas, box->x, y, right, y);
  }
  canvas_color(canvas, COLOR_GRID, 1);
  cairo_set_line_width(canvas->cairo, 0.8);
  cairo_stroke(canvas->cairo);
}

static void draw_ticks(Canvas *canvas, const Axes *axes, const Box *box) {
  const double bottom = box->y + box->height;
  for (size_t i = 0; i < axes->x_ticks.count; i++) {
    const double x = x_at(axes, box, axes->x_ticks.values[i]);
    line(canvas, x, bottom, x, bottom + TICK_LENGTH);
  }
  for (size_t i = 0; i < axes->x_ticks.minor_count; i++) {
    const double x = x_at(axes, box, axes->x_ticks.minor[i]);
    line(canvas, x, bottom, x, bottom + TICK_LENGTH / 2.0);
  }
  for (size_t i = 0; i < axes->y_ticks.count; i++) {
    const double y = y_at(axes, box, axes->y_ticks.values[i]);
    line(canvas, box->x - TICK_LENGTH, y, box->x, y);
  }
  for (size_t i = 0; i < axes->y_ticks.minor_count; i++) {
    const double y = y_at(axes, box, axes->y_ticks.minor[i]);
    line(canvas, box->x - TICK_LENGTH / 2.0, y, box->x, y);
  }
  cairo_rectangle(canvas->cairo, box->x, box->y, box->width, box->height);
  canvas_color(canvas, COLOR_FRAME, 1);
  cairo_set_line_width(canvas->cairo, 1);
  cairo_stroke(canvas->cairo);
}

void axes_draw_frame(Canvas *canvas, const Axes *axes, const PlotPanel *panel, const Box *box) {
  const double bottom = box->y + box->height, half = TEXT_TICK * 0.36;
  draw_ticks(canvas, axes, box);
  canvas_color(canvas, COLOR_INK, 1);
  for (size_t i = 0; i < axes->x_ticks.count; i++) {
    text_draw(canvas, axes->x_ticks.labels[i], TEXT_TICK, x_at(axes, box, axes->x_ticks.values[i]),
              bottom + TICK_LENGTH + TICK_GAP + TEXT_TICK * 0.85, 0.5);
  }
  for (size_t i = 0; i < axes->y_ticks.count; i++) {
    text_draw(canvas, axes->y_ticks.labels[i], TEXT_TICK, box->x - TICK_LENGTH - TICK_GAP,
              y_at(axes, box, axes->y_ticks.values[i]) + half, 1);
  }
  const double middle = box->x + box->width / 2;
  text_draw(canvas, text_fit(canvas, panel->x.label, TEXT_LABEL, box->width), TEXT_LABEL, middle,
            bottom + TICK_LENGTH + TICK_GAP + TEXT_TICK + TEXT_LABEL + 4, 0.5);
  text_draw_up(canvas, text_fit(canvas, panel->y.label, TEXT_LABEL, box->height), TEXT_LABEL,
               box->x - axes->margins.left + TEXT_LABEL + 4, box->y + box->height / 2);
  text_draw(canvas, text_fit(canvas, panel->title, TEXT_TITLE, box->width + axes->margins.right), TEXT_TITLE, middle,
            box->y - 9, 0.5);
  if (axes->empty) {
    canvas_color(canvas, COLOR_FRAME, 1);
    text_draw(canvas, "no data", TEXT_LABEL, middle, box->y + box->height / 2, 0.5);
  }
}
