#include "plot.h"

#include <cairo-svg.h>
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "plot_draw.h"

/* What an SVG's pictures have per unit: sharp on screens of twice the usual density. */
static const double svg_detail = 2, png_scale = 2;
/* cairo's image surfaces end here. */
enum { SIDE_LIMIT = 32767 };

/* --- layout ---------------------------------------------------------------------------------------- */

typedef struct Grid {
  size_t columns, rows;
  double cell_width, cell_height, top; /* of the first row: the title's height */
  double width, height;
} Grid;

static bool check_panel(const PlotPanel *panel, size_t index, Diag *diag) {
  const Location nowhere = {0};
  const Picture *picture = &panel->picture;
  const bool channels = picture->channels == 1 || picture->channels == 3 || picture->channels == 4;
  if (panel->kind == PANEL_PICTURE && (picture->width < 1 || picture->height < 1 || !picture->pixels || !channels)) {
    diag_error(diag, nowhere, "plot: panel %zu is a picture of %d by %d pixels with %d channels", index, picture->width,
               picture->height, picture->channels);
    return false;
  }
  if (panel->kind == PANEL_MATRIX && (panel->matrix.rows < 1 || panel->matrix.columns < 1)) {
    diag_error(diag, nowhere, "plot: panel %zu is a matrix of %zu rows and %zu columns", index, panel->matrix.rows,
               panel->matrix.columns);
    return false;
  }
  return true;
}

static bool grid_plan(const Figure *figure, double scale, Grid *grid, Diag *diag) {
  const Location nowhere = {0};
  if (figure->panel_count == 0) {
    diag_error(diag, nowhere, "plot: a figure without panels");
    return false;
  }
  for (size_t i = 0; i < figure->panel_count; i++) {
    if (!check_panel(&figure->panels[i], i, diag)) return false;
  }
  grid->columns = figure->columns > 0 && figure->columns < figure->panel_count ? figure->columns : figure->panel_count;
  grid->rows = (figure->panel_count - 1) / grid->columns + 1;
  grid->cell_width = figure->panel_width == 0 ? 440 : figure->panel_width;
  grid->cell_height = figure->panel_height == 0 ? 300 : figure->panel_height;
  grid->top = figure->title && *figure->title ? TEXT_HEADING + 16 : 0;
  grid->width = ceil((double)grid->columns * grid->cell_width);
  grid->height = ceil((double)grid->rows * grid->cell_height + grid->top);
  const double wide = ceil(grid->width * scale), tall = ceil(grid->height * scale);
  /* also refuses NaN */
  if (!(grid->cell_width >= 16 && grid->cell_height >= 16 && scale > 0 && wide <= SIDE_LIMIT && tall <= SIDE_LIMIT &&
        wide * tall <= PICTURE_MAX_PIXELS)) {
    diag_error(
        diag, nowhere,
        "plot: %zu panels of %g by %g units at %g pixels per unit give %.0f by %.0f pixels; a panel has at least "
        "16 units a side, a figure at most %d pixels a side and %d in all",
        figure->panel_count, grid->cell_width, grid->cell_height, scale, wide, tall, SIDE_LIMIT, PICTURE_MAX_PIXELS);
    return false;
  }
  return true;
}

static void draw_picture_panel(Canvas *canvas, const PlotPanel *panel, const Box *cell) {
  enum { EDGE = 4 };
  const double caption = panel->title && *panel->title ? TEXT_LABEL + 8 : 0;
  Box box = {cell->x + EDGE, cell->y + EDGE + caption, cell->width - 2 * EDGE, cell->height - caption - 2 * EDGE};
  /* what is left of a cell smaller than its caption */
  box.height = fmax(box.height, 1);
  picture_draw(canvas, &panel->picture, &box);
  canvas_color(canvas, COLOR_INK, 1);
  text_draw(canvas, text_fit(canvas, panel->title, TEXT_LABEL, box.width), TEXT_LABEL, cell->x + cell->width / 2,
            cell->y + EDGE + TEXT_LABEL, 0.5);
}

/* Panels of a column share left and right edges, panels of a row upper and lower ones. */
static void align_axes(const Figure *figure, const Grid *grid, Axes *axes, Arena *arena) {
  Margins *columns = arena_array(arena, grid->columns, Margins), *rows = arena_array(arena, grid->rows, Margins);
  for (size_t i = 0; i < figure->panel_count; i++) {
    if (figure->panels[i].kind == PANEL_PICTURE) continue;
    Margins *column = &columns[i % grid->columns], *row = &rows[i / grid->columns];
    column->left = fmax(column->left, axes[i].margins.left);
    column->right = fmax(column->right, axes[i].margins.right);
    row->top = fmax(row->top, axes[i].margins.top);
    row->bottom = fmax(row->bottom, axes[i].margins.bottom);
  }
  for (size_t i = 0; i < figure->panel_count; i++) {
    const Margins *column = &columns[i % grid->columns], *row = &rows[i / grid->columns];
    axes[i].margins = (Margins){column->left, column->right, row->top, row->bottom};
  }
}

static void draw_axes_panel(Canvas *canvas, const PlotPanel *panel, const Axes *axes, const Box *cell) {
  const Margins *margins = &axes->margins;
  Box box = {cell->x + margins->left, cell->y + margins->top, cell->width - margins->left - margins->right,
             cell->height - margins->top - margins->bottom};
  if (box.width < 8 || box.height < 8) return; /* a cell with no room for its labels */
  if (panel->kind == PANEL_MATRIX) {
    matrix_draw(canvas, panel, axes, &box);
  } else {
    axes_draw_grid(canvas, axes, &box);
    chart_draw(canvas, panel, axes, &box);
  }
  axes_draw_frame(canvas, axes, panel, &box);
}

static void draw_figure(Canvas *canvas, const Figure *figure, const Grid *grid) {
  canvas_color(canvas, 0xFFFFFF, 1);
  cairo_paint(canvas->cairo);
  Axes *axes = arena_array(canvas->arena, figure->panel_count, Axes);
  for (size_t i = 0; i < figure->panel_count; i++) {
    if (figure->panels[i].kind == PANEL_PICTURE) continue;
    axes[i] = axes_plan(canvas, &figure->panels[i], grid->cell_width, grid->cell_height);
  }
  align_axes(figure, grid, axes, canvas->arena);
  canvas_color(canvas, COLOR_INK, 1);
  text_draw(canvas, text_fit(canvas, figure->title, TEXT_HEADING, grid->width - 16), TEXT_HEADING, grid->width / 2,
            TEXT_HEADING + 8, 0.5);
  for (size_t i = 0; i < figure->panel_count; i++) {
    const PlotPanel *panel = &figure->panels[i];
    const Box cell = {(double)(i % grid->columns) * grid->cell_width,
                      grid->top + (double)(i / grid->columns) * grid->cell_height, grid->cell_width, grid->cell_height};
    if (panel->kind == PANEL_PICTURE) {
      draw_picture_panel(canvas, panel, &cell);
    } else {
      draw_axes_panel(canvas, panel, &axes[i], &cell);
    }
  }
}

/* --- surfaces -------------------------------------------------------------------------------------- */

static void canvas_release(void *object) {
  Canvas *canvas = object;
  canvas->closed = true;
  if (canvas->cairo) cairo_destroy(canvas->cairo);
  if (canvas->surface) cairo_surface_destroy(canvas->surface);
  canvas->cairo = NULL;
  canvas->surface = NULL;
}

/* False after reporting; out of memory goes to the arena's failure point. */
static bool canvas_check(Canvas *canvas, cairo_status_t status, Diag *diag) {
  if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(canvas->surface);
  if (status == CAIRO_STATUS_SUCCESS && canvas->cairo) status = cairo_status(canvas->cairo);
  if (status == CAIRO_STATUS_SUCCESS) return true;
  if (status == CAIRO_STATUS_NO_MEMORY) arena_fail(canvas->arena);
  diag_error(diag, (Location){0}, "plot: cairo: %s", cairo_status_to_string(status));
  return false;
}

/* Registered before there is anything to release. */
static Canvas *canvas_create(double detail, Arena *arena) {
  Canvas *canvas = arena_new(arena, Canvas);
  *canvas = (Canvas){.arena = arena, .detail = detail};
  text_init(&canvas->output, arena);
  arena_defer(arena, canvas_release, canvas);
  return canvas;
}

/* Takes over `surface`. Glyphs are placed and drawn without hinting or subpixels, so that PNG and SVG have one layout
 * and the machine's font settings do not matter. */
static void canvas_open(Canvas *canvas, cairo_surface_t *surface, double scale) {
  canvas->surface = surface;
  canvas->cairo = cairo_create(surface);
  cairo_scale(canvas->cairo, scale, scale);
  cairo_font_options_t *options = cairo_font_options_create();
  cairo_font_options_set_antialias(options, CAIRO_ANTIALIAS_GRAY);
  cairo_font_options_set_hint_style(options, CAIRO_HINT_STYLE_NONE);
  cairo_font_options_set_hint_metrics(options, CAIRO_HINT_METRICS_OFF);
  cairo_set_font_options(canvas->cairo, options);
  cairo_font_options_destroy(options);
  cairo_select_font_face(canvas->cairo, "DejaVu Sans", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
}

bool figure_draw(const Figure *figure, double scale, Arena *arena, Diag *diag, Picture *out_picture) {
  Grid grid;
  if (!grid_plan(figure, scale, &grid, diag)) return false;
  const int32_t width = (int32_t)ceil(grid.width * scale), height = (int32_t)ceil(grid.height * scale);
  Canvas *canvas = canvas_create(scale, arena);
  canvas_open(canvas, cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height), scale);
  draw_figure(canvas, figure, &grid);
  if (!canvas_check(canvas, CAIRO_STATUS_SUCCESS, diag)) return false;
  cairo_surface_flush(canvas->surface);
  Picture picture = {width, height, 3, arena_alloc(arena, (size_t)width * (size_t)height, 3)};
  const uint8_t *data = cairo_image_surface_get_data(canvas->surface);
  const size_t stride = (size_t)cairo_image_surface_get_stride(canvas->surface);
  uint8_t *to = picture.pixels;
  for (int32_t y = 0; y < height; y++) {
    for (int32_t x = 0; x < width; x++) {
      uint32_t rgb;
      memcpy(&rgb, data + (size_t)y * stride + (size_t)x * sizeof rgb, sizeof rgb);
      *to++ = (uint8_t)(rgb >> 16);
      *to++ = (uint8_t)(rgb >> 8);
      *to++ = (uint8_t)rgb;
    }
  }
  canvas_release(canvas);
  *out_picture = picture;
  return true;
}

/* --- SVG ------------------------------------------------------------------------------------------- */

/* cairo numbers surfaces and pictures through the whole process: in ids and references these numbers are replaced by
 * those of their first appearance. No text of the user's is in the document, and base64 has no quotes. */
static size_t id_number(const char *at, const char *end, size_t *out_prefix, unsigned long *out_number) {
  static const char *const kinds[] = {"surface", "image", "source-", "mask", "compositing-group"};
  size_t begin = 1; /* the quote, or the bracket of url(#…) */
  if (at + begin < end && at[begin] == '#') begin++;
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    const size_t length = strlen(kinds[k]);
    if ((size_t)(end - at) <= begin + length || strncmp(at + begin, kinds[k], length) != 0) continue;
    size_t digits = begin + length;
    unsigned long number = 0;
    while (at + digits < end && at[digits] >= '0' && at[digits] <= '9') {
      number = number * 10 + (unsigned long)(at[digits++] - '0');
    }
    *out_prefix = begin + length;
    *out_number = number;
    return digits > begin + length ? digits : 0;
  }
  return 0;
}

static void renumber(const Text *raw, Text *out) {
  unsigned long *seen = NULL;
  size_t count = 0, capacity = 0;
  const char *at = raw->data, *end = raw->data + raw->size, *copied = at;
  for (; at < end; at++) {
    size_t prefix = 0;
    unsigned long number = 0;
    if (*at != '"' && *at != '(') continue;
    const size_t length = id_number(at, end, &prefix, &number);
    if (length == 0) continue;
    size_t index = 0;
    while (index < count && seen[index] != number) index++;
    if (index == count) {
      if (count == capacity) {
        unsigned long *larger = arena_array(out->arena, capacity * 2 + 8, unsigned long);
        if (count) memcpy(larger, seen, count * sizeof *seen);
        seen = larger;
        capacity = capacity * 2 + 8;
      }
      seen[count++] = number;
    }
    text_add_n(out, copied, (size_t)(at - copied) + prefix);
    text_format(out, "%zu", index);
    copied = at + length;
    at = copied - 1;
  }
  text_add_n(out, copied, (size_t)(end - copied));
}

/* A jump out of cairo would leave its locks taken: memory that runs out here becomes a status first. A surface that is
 * given up half drawn still writes its document, which nobody wants. */
static cairo_status_t svg_bytes(void *closure, const unsigned char *data, unsigned int length) {
  Canvas *canvas = closure;
  if (canvas->closed) return CAIRO_STATUS_WRITE_ERROR;
  jmp_buf failed;
  jmp_buf *previous = arena_on_failure(canvas->arena, &failed);
  volatile cairo_status_t status = CAIRO_STATUS_NO_MEMORY;
  if (setjmp(failed) == 0) {
    text_add_n(&canvas->output, (const char *)data, length);
    status = CAIRO_STATUS_SUCCESS;
  }
  arena_on_failure(canvas->arena, previous);
  return status;
}

bool figure_svg(const Figure *figure, Arena *arena, Diag *diag, Text *out_svg) {
  Grid grid;
  if (!grid_plan(figure, 1, &grid, diag)) return false;
  Canvas *canvas = canvas_create(svg_detail, arena);
  cairo_surface_t *surface = cairo_svg_surface_create_for_stream(svg_bytes, canvas, grid.width, grid.height);
  cairo_svg_surface_set_document_unit(surface, CAIRO_SVG_UNIT_PX);
  canvas_open(canvas, surface, 1);
  draw_figure(canvas, figure, &grid);
  const cairo_status_t status = cairo_status(canvas->cairo);
  cairo_destroy(canvas->cairo);
  canvas->cairo = NULL;
  cairo_surface_finish(canvas->surface);
  if (!canvas_check(canvas, status, diag)) return false;
  canvas_release(canvas);
  text_init(out_svg, arena);
  renumber(&canvas->output, out_svg);
  return true;
}

/* --- files ----------------------------------------------------------------------------------------- */

static bool ends_with(const char *path, const char *ending) {
  const size_t length = strlen(path), tail = strlen(ending);
  return length > tail && strcmp(path + length - tail, ending) == 0;
}

bool figure_write(const Figure *figure, const char *path, Arena *scratch, Diag *diag) {
  if (ends_with(path, ".svg")) {
    Text svg;
    if (!figure_svg(figure, scratch, diag, &svg)) return false;
    const FilePiece piece = {svg.data, svg.size};
    return file_write(path, &piece, 1, diag);
  }
  if (ends_with(path, ".png")) {
    Picture picture;
    return figure_draw(figure, png_scale, scratch, diag, &picture) && picture_write_png(path, &picture, scratch, diag);
  }
  diag_error(diag, (Location){path, 0, 0}, "a plot is written as .png or .svg");
  return false;
}
