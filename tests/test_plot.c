/* runtime/session/plot, colormap, heatmap and report. */
#include <math.h>

#include "safetensors.h"
#include "session/heatmap.h"
#include "session/plot_draw.h"
#include "session/report.h"
#include "support.h"

/* --- helpers --------------------------------------------------------------------------------------- */

/* XML as far as it concerns us: every start has its end, in order, and quotes close. */
static void check_balanced(const char *text) {
  const char *open[64];
  size_t depth = 0, elements = 0;
  for (const char *at = strchr(text, '<'); at; at = strchr(at, '<')) {
    const char *end = ++at;
    bool quoted = false;
    while (*end && (quoted || *end != '>')) quoted ^= *end++ == '"';
    assert_int_equal(*end, '>');
    if (*at == '/') {
      assert_true(depth > 0);
      const size_t length = (size_t)(end - at) - 1;
      assert_memory_equal(open[--depth], at + 1, length);
    } else if (*at != '?' && *at != '!' && end[-1] != '/') {
      assert_true(depth < 64);
      open[depth++] = at;
    }
    elements++;
    at = end;
  }
  assert_int_equal(depth, 0);
  assert_true(elements > 2);
}

/* No coordinate of a document is NaN, infinite or far outside. */
static void check_numbers(const char *svg) {
  assert_null(strstr(svg, "nan"));
  assert_null(strstr(svg, "inf"));
  for (const char *at = strstr(svg, " d=\""); at; at = strstr(at + 1, " d=\"")) {
    for (const char *next = at + 4; *next != '"';) {
      char *after;
      const double value = strtod(next, &after);
      if (after == next) {
        next++;
        continue;
      }
      assert_true(fabs(value) < 1e5);
      next = after;
    }
  }
}

static Text make_svg(Fixture *fixture, const Figure *figure) {
  Text svg;
  const bool good = figure_svg(figure, fixture->arena, fixture->diag, &svg);
  check_messages(fixture, "");
  assert_true(good);
  check_balanced(svg.data);
  check_numbers(svg.data);
  return svg;
}

static Picture make_picture(Fixture *fixture, const Figure *figure, double scale) {
  Picture picture = {0};
  const bool good = figure_draw(figure, scale, fixture->arena, fixture->diag, &picture);
  check_messages(fixture, "");
  assert_true(good);
  return picture;
}

static Picture plain_picture(Fixture *fixture, int32_t width, int32_t height, int32_t channels, uint8_t value) {
  Picture picture = {width, height, channels, NULL};
  picture.pixels = arena_alloc(fixture->arena, (size_t)(width * height * channels), 1);
  memset(picture.pixels, value, (size_t)(width * height * channels));
  return picture;
}

static uint32_t pixel_at(const Picture *picture, int32_t x, int32_t y) {
  const uint8_t *pixel = picture->pixels + ((size_t)y * (size_t)picture->width + (size_t)x) * (size_t)picture->channels;
  return (uint32_t)pixel[0] << 16 | (uint32_t)pixel[1] << 8 | pixel[2];
}

static size_t count_color(const Picture *picture, uint32_t rgb) {
  size_t count = 0;
  for (int32_t y = 0; y < picture->height; y++) {
    for (int32_t x = 0; x < picture->width; x++) count += pixel_at(picture, x, y) == rgb;
  }
  return count;
}

static Tensor tensor_of(Fixture *fixture, int32_t rank, const int64_t *dims, const float *values) {
  Tensor tensor = tensor_create(fixture->arena, "map", DTYPE_F32, shape_of(rank, dims));
  memcpy(tensor.data, values, (size_t)tensor_bytes(&tensor));
  return tensor;
}

/* One figure with everything that the module can draw. */
static const Figure *sample_figure(Fixture *fixture) {
  enum { POINTS = 120, ROWS = 8, COLUMNS = 30 };
  Arena *arena = fixture->arena;
  double *x = arena_array(arena, POINTS, double), *y = arena_array(arena, POINTS, double);
  double *cells = arena_array(arena, ROWS * COLUMNS, double);
  for (size_t i = 0; i < POINTS; i++) {
    x[i] = pow(10, -7 + (double)i / 15);
    y[i] = 2.3 - 1.5 / (1 + exp(-((double)i - 60) / 6)) + (i > 100 ? pow((double)i - 100, 2) / 50 : 0);
  }
  for (size_t i = 0; i < ROWS * COLUMNS; i++) cells[i] = (double)((i * 37) % 101);
  cells[5] = NAN;
  PlotSeries *series = arena_array(arena, 4, PlotSeries);
  series[0] = (PlotSeries){"loss", PLOT_LINE, x, y, POINTS};
  series[1] = (PlotSeries){"points", PLOT_LINE_POINTS, NULL, y, 20};
  series[2] = (PlotSeries){"steps", PLOT_STEPS, NULL, y + 80, 20};
  series[3] = (PlotSeries){"bars", PLOT_BARS, NULL, y, 20};
  PlotMark *mark = arena_new(arena, PlotMark);
  *mark = (PlotMark){x[70], y[70], "1.4e-3"};
  PlotPanel *panels = arena_array(arena, 4, PlotPanel);
  panels[0] = (PlotPanel){.title = "Finder <&>",
                          .x = {"rate", true, 0, 0},
                          .y = {.label = "loss"},
                          .series = series,
                          .series_count = 1,
                          .marks = mark,
                          .mark_count = 1};
  panels[1] = (PlotPanel){.title = "Others", .series = series + 1, .series_count = 3};
  panels[2] = (PlotPanel){.kind = PANEL_MATRIX,
                          .title = "Bins",
                          .x = {.label = "batch"},
                          .y = {"value", false, 0, 10},
                          .matrix = {cells, ROWS, COLUMNS, true, COLORMAP_VIRIDIS, "log(1 + count)"}};
  panels[3] = (PlotPanel){.kind = PANEL_PICTURE, .title = "picture", .picture = plain_picture(fixture, 7, 5, 3, 90)};
  Figure *figure = arena_new(arena, Figure);
  *figure = (Figure){"Everything", panels, 4, 2, 320, 220};
  return figure;
}

/* --- plots ----------------------------------------------------------------------------------------- */

static void test_deterministic(void **state) {
  Fixture *fixture = *state;
  const Figure *figure = sample_figure(fixture);
  const Text first = make_svg(fixture, figure), second = make_svg(fixture, figure);
  assert_int_equal(first.size, second.size);
  assert_memory_equal(first.data, second.data, first.size);
  assert_null(strstr(first.data, "Finder"));

  const char *paths[] = {fixture_path(fixture, "a.png"), fixture_path(fixture, "b.png")};
  Picture pictures[2];
  for (size_t i = 0; i < 2; i++) {
    assert_true(figure_write(figure, paths[i], fixture->arena, fixture->diag));
    assert_true(picture_read(paths[i], fixture->arena, fixture->diag, &pictures[i]));
    assert_int_equal(pictures[i].width, 2 * 640);
    assert_int_equal(pictures[i].height, 2 * (440 + 31));
    assert_int_equal(pictures[i].channels, 3);
  }
  assert_memory_equal(pictures[0].pixels, pictures[1].pixels,
                      (size_t)pictures[0].width * (size_t)pictures[0].height * 3);
  const char *path = fixture_path(fixture, "a.svg");
  assert_true(figure_write(figure, path, fixture->arena, fixture->diag));
  check_messages(fixture, "");
}

/* A line lies where its numbers say. */
static void test_geometry(void **state) {
  Fixture *fixture = *state;
  const double low[] = {0, 0, 0, 0}, high[] = {1, 1, 1, 1};
  const PlotSeries series[] = {{NULL, PLOT_LINE, NULL, low, 4}, {NULL, PLOT_LINE, NULL, high, 4}};
  const PlotPanel panel = {.series = series, .series_count = 2, .y = {.low = -1, .high = 3}};
  const Picture picture = make_picture(fixture, &(Figure){.panels = &panel, .panel_count = 1}, 1);
  int32_t rows[2] = {-1, -1}, frame[2] = {-1, -1};
  const int32_t middle = picture.width / 2 + 3;
  for (int32_t y = 0; y < picture.height; y++) {
    const uint32_t rgb = pixel_at(&picture, middle, y);
    if (rgb == 0x0072B2) rows[0] = y;
    if (rgb == 0xD55E00) rows[1] = y;
    const bool dark = (rgb >> 16) < 0xD0 && (rgb >> 16) == (rgb & 255) && (rgb >> 8 & 255) == (rgb & 255);
    if (dark && frame[0] < 0) frame[0] = y;
    if (dark && y < picture.height - 20) frame[1] = y;
  }
  assert_true(rows[0] > 0 && rows[1] > 0 && frame[0] >= 0);
  const double height = frame[1] - frame[0];
  assert_true(fabs((frame[1] - rows[0]) / height - 0.25) < 0.02);
  assert_true(fabs((frame[1] - rows[1]) / height - 0.5) < 0.02);
}

static void test_ticks(void **state) {
  Fixture *fixture = *state;
  static const struct {
    double low, high;
    bool logarithmic;
    int32_t limit;
    const char *labels;
  } cases[] = {
      {0, 1, false, 5, "0.0 0.2 0.4 0.6 0.8 1.0"},
      {-0.05, 1.05, false, 6, "0.0 0.2 0.4 0.6 0.8 1.0"},
      {0, 100, false, 4, "0 50 100"},
      {-3, 3, false, 6, "-3 -2 -1 0 1 2 3"},
      {0, 25000, false, 5, "0 5000 10000 15000 20000 25000"},
      {0, 4e6, false, 4, "0 1e6 2e6 3e6 4e6"},
      {0, 5e-5, false, 5, "0 1e-5 2e-5 3e-5 4e-5 5e-5"},
      {0.1, 0.3, false, 4, "0.10 0.15 0.20 0.25 0.30"},
      {1000.001, 1000.003, false, 2, "1000.001 1000.002 1000.003"},
      {1e-3, 1, true, 5, "10⁻³ 10⁻² 10⁻¹ 10⁰"},
      {1e-7, 10, true, 4, "10⁻⁶ 10⁻³ 10⁰"},
      {1, 20, true, 5, "1 2 5 10 20"},
      {0.02, 0.5, true, 5, "0.02 0.05 0.1 0.2 0.5"},
      {4, 6, true, 4, "4.0 4.5 5.0 5.5 6.0"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const Scale scale = {cases[i].low, cases[i].high, cases[i].logarithmic};
    const Ticks ticks = scale_ticks(&scale, cases[i].limit, fixture->arena);
    Text text;
    text_init(&text, fixture->arena);
    for (size_t k = 0; k < ticks.count; k++) {
      text_format(&text, "%s%s", k ? " " : "", ticks.labels[k]);
      assert_true(ticks.values[k] >= cases[i].low * (1 - 1e-9) - 1e-12 || cases[i].low < 0);
    }
    const char *expected = cases[i].labels;
    /* zero has no decimals */
    if (strncmp(expected, "0.0 ", 4) == 0) expected = arena_format(fixture->arena, "0 %s", expected + 4);
    assert_string_equal(text.data, expected);
  }
  const Scale decade = {1e-2, 1e2, true};
  assert_int_equal(scale_ticks(&decade, 8, fixture->arena).minor_count, 4 * 8);
  assert_true(scale_ticks(&(Scale){0, 1, false}, 10, fixture->arena).values[3] == 0.3);
}

/* Ranges that arithmetic could trip over. */
static void test_scales(void **state) {
  (void)state;
  static const double values[] = {0,     -1,    1,    5e-324, 1e-310, 1e-300,   1e300,     -1e300,
                                  1e308, 1e-12, 1e12, 1e100,  NAN,    INFINITY, -INFINITY, 123456789.0};
  enum { COUNT = sizeof values / sizeof *values };
  Fixture *fixture = *state;
  for (size_t i = 0; i < COUNT * COUNT * 2; i++) {
    const bool logarithmic = i & 1;
    const double low = values[i / 2 / COUNT], high = values[i / 2 % COUNT];
    const Scale scale = scale_around(low, high, logarithmic, 0.05);
    assert_true(isfinite(scale.low) && isfinite(scale.high) && scale.low < scale.high);
    assert_true(isfinite(scale.high - scale.low));
    const Ticks ticks = scale_ticks(&scale, 6, fixture->arena);
    assert_true(ticks.count <= 12);
    for (size_t k = 0; k < ticks.count; k++) {
      const double position = scale_position(&scale, ticks.values[k]);
      assert_true(position >= -1e-6 && position <= 1 + 1e-6);
      assert_true(k == 0 || ticks.values[k] > ticks.values[k - 1]);
    }
  }
}

static void test_difficult_data(void **state) {
  Fixture *fixture = *state;
  static const double none[] = {NAN, INFINITY, -INFINITY, 1e301, NAN};
  static const double mixed[] = {1, NAN, 2, INFINITY, 1.5, -1e308, 3, 4};
  static const double huge[] = {1e300, -1e300, 1e299, 0, 1e-300};
  static const double tiny[] = {5e-324, 0, 1e-310, 2e-308};
  static const double flat[] = {1e9 + 1, 1e9 + 1, 1e9 + 1};
  static const double single[] = {7};
  static const double down[] = {5, 4, 3, 2, 1, 0, -1, -2, -3};
  static const PlotSeries series[] = {
      {"none", PLOT_LINE, NULL, none, 5},       {"mixed", PLOT_LINE, NULL, mixed, 8},
      {"huge", PLOT_LINE, NULL, huge, 5},       {"tiny", PLOT_LINE, NULL, tiny, 4},
      {"flat", PLOT_LINE, NULL, flat, 3},       {"single", PLOT_LINE, NULL, single, 1},
      {"empty", PLOT_LINE, NULL, NULL, 0},      {"huge", PLOT_BARS, NULL, huge, 5},
      {"mixed", PLOT_STEPS, NULL, mixed, 8},    {"edges", PLOT_BARS, mixed, flat, 3},
      {"backwards", PLOT_LINE, down, mixed, 8}, {"backwards", PLOT_BARS, down, mixed, 8},
  };
  enum { COUNT = sizeof series / sizeof *series };
  static const PlotMark marks[] = {{NAN, 1, "x"}, {1, INFINITY, "y"}, {1e300, 1e300, "z"}, {1, 1, NULL}};
  PlotPanel panels[COUNT * 4 + 2];
  for (size_t i = 0; i < COUNT * 4; i++) {
    panels[i] = (PlotPanel){.title = series[i / 4].label,
                            .series = &series[i / 4],
                            .series_count = 1,
                            .x.logarithmic = i & 1,
                            .y.logarithmic = i & 2};
  }
  panels[COUNT * 4] = (PlotPanel){.series = series, .series_count = COUNT, .marks = marks, .mark_count = 4};
  panels[COUNT * 4 + 1] = (PlotPanel){.x = {"x", true, -5, 3}, .y = {"y", false, NAN, INFINITY}};
  const Figure figure = {NULL, panels, COUNT * 4 + 2, 8, 200, 150};
  make_svg(fixture, &figure);
  make_picture(fixture, &figure, 1);

  /* one point is seen although it makes no line */
  const PlotPanel lonely = {.series = &series[5], .series_count = 1};
  const Picture picture = make_picture(fixture, &(Figure){.panels = &lonely, .panel_count = 1}, 2);
  assert_true(count_color(&picture, 0x0072B2) > 20);
}

static void test_long_series(void **state) {
  Fixture *fixture = *state;
  enum { COUNT = 200000 };
  double *y = arena_array(fixture->arena, COUNT, double);
  for (size_t i = 0; i < COUNT; i++) y[i] = sin((double)i);
  y[77777] = 40; /* a peak that thinning must keep */
  const PlotSeries series = {"long", PLOT_LINE, NULL, y, COUNT};
  const PlotPanel panel = {.series = &series, .series_count = 1};
  const Figure figure = {.panels = &panel, .panel_count = 1};
  const Text svg = make_svg(fixture, &figure);
  assert_true(svg.size < 300000);
  const Picture picture = make_picture(fixture, &figure, 2);
  size_t above = 0;
  for (int32_t y0 = 0; y0 < picture.height / 2; y0++) {
    for (int32_t x = picture.width / 5; x < picture.width / 2; x++) {
      const uint32_t rgb = pixel_at(&picture, x, y0);
      above += (rgb & 255) > (rgb >> 16) + 40;
    }
  }
  assert_true(above > 100);
}

static void test_many_series(void **state) {
  Fixture *fixture = *state;
  enum { COUNT = 53, POINTS = 40 };
  double *y = arena_array(fixture->arena, COUNT * POINTS, double);
  PlotSeries series[COUNT];
  for (size_t s = 0; s < COUNT; s++) {
    for (size_t i = 0; i < POINTS; i++) y[s * POINTS + i] = (double)s + (double)i / POINTS;
    series[s] = (PlotSeries){arena_format(fixture->arena, "layer%zu.a_name_that_is_far_too_long_for_a_legend_here", s),
                             PLOT_LINE, NULL, y + s * POINTS, POINTS};
  }
  const PlotPanel panel = {.series = series, .series_count = COUNT};
  make_svg(fixture, &(Figure){.panels = &panel, .panel_count = 1});
}

static void test_bad_text(void **state) {
  Fixture *fixture = *state;
  char *endless = arena_alloc(fixture->arena, 100001, 1);
  memset(endless, 'w', 100000);
  const PlotPanel panels[] = {
      {.title = "broken \xFF\xC3 utf-8 \xE2\x82", .x.label = "tab\tand\nline", .y.label = "\x01\x7F"},
      {.title = endless, .x.label = endless, .y.label = endless},
      {.title = "", .x.label = "ünïcödé → 日本"},
  };
  const Figure figure = {endless, panels, 3, 0, 0, 0};
  make_svg(fixture, &figure);
  const PlotPanel small[] = {panels[0], panels[1]};
  make_svg(fixture, &(Figure){endless, small, 2, 1, 16, 16});
}

static void test_refused(void **state) {
  Fixture *fixture = *state;
  Text svg;
  Picture picture;
  const PlotPanel panel = {0}, matrix = {.kind = PANEL_MATRIX}, empty = {.kind = PANEL_PICTURE};
  assert_false(figure_svg(&(Figure){0}, fixture->arena, fixture->diag, &svg));
  check_messages(fixture, "error: plot: a figure without panels\n");
  clear_messages(fixture);
  assert_false(figure_svg(&(Figure){.panels = &matrix, .panel_count = 1}, fixture->arena, fixture->diag, &svg));
  check_messages(fixture, "error: plot: panel 0 is a matrix of 0 rows and 0 columns\n");
  clear_messages(fixture);
  assert_false(figure_svg(&(Figure){.panels = &empty, .panel_count = 1}, fixture->arena, fixture->diag, &svg));
  check_messages(fixture, "error: plot: panel 0 is a picture of 0 by 0 pixels with 0 channels\n");
  clear_messages(fixture);
  static const double sides[] = {-1, 15, 1e5, 1e300, INFINITY, NAN};
  for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
    const Figure figure = {.panels = &panel, .panel_count = 1, .panel_width = sides[i]};
    assert_false(figure_draw(&figure, 1, fixture->arena, fixture->diag, &picture));
    check_message_part(fixture, "a panel has at least 16 units a side");
    clear_messages(fixture);
    const double scale = i == 1 ? 0 : sides[i];
    assert_false(
        figure_draw(&(Figure){.panels = &panel, .panel_count = 1}, scale, fixture->arena, fixture->diag, &picture));
    clear_messages(fixture);
  }
  assert_false(figure_write(&(Figure){.panels = &panel, .panel_count = 1}, "plot.jpg", fixture->arena, fixture->diag));
  check_messages(fixture, "plot.jpg: error: a plot is written as .png or .svg\n");
  clear_messages(fixture);
  assert_false(figure_write(&(Figure){.panels = &panel, .panel_count = 1}, fixture_path(fixture, "no/plot.svg"),
                            fixture->arena, fixture->diag));
  assert_int_equal(diag_error_count(fixture->diag), 1);
}

/* A quarter of the matrix is hot: it must be the quarter at the right and top, in the colour map's last colour. */
static void test_matrix(void **state) {
  Fixture *fixture = *state;
  static const double values[] = {0, 0, 0, 10};
  const PlotPanel panel = {.kind = PANEL_MATRIX, .matrix = {values, 2, 2, true, COLORMAP_VIRIDIS, NULL}};
  const Picture picture = make_picture(fixture, &(Figure){.panels = &panel, .panel_count = 1}, 1);
  const size_t hot = count_color(&picture, 0xFDE725), cold = count_color(&picture, 0x440154);
  assert_true(hot > 1000 && fabs((double)cold / (double)hot - 3) < 0.1);
  assert_int_equal(pixel_at(&picture, picture.width * 3 / 4 - 10, picture.height / 4), 0xFDE725);
  assert_int_equal(pixel_at(&picture, picture.width / 4, picture.height / 4), 0x440154);

  enum { WIDE = 5000 };
  double *many = arena_array(fixture->arena, WIDE * 3, double);
  for (size_t i = 0; i < WIDE * 3; i++) many[i] = i % WIDE == WIDE - 1 ? NAN : (double)(i % WIDE);
  const PlotPanel wide = {.kind = PANEL_MATRIX, .matrix = {many, 3, WIDE, false, COLORMAP_MAGMA, "value"}};
  make_svg(fixture, &(Figure){.panels = &wide, .panel_count = 1});
  static const double nothing[] = {NAN, INFINITY};
  const PlotPanel bare = {.kind = PANEL_MATRIX, .matrix = {nothing, 1, 2, false, COLORMAP_MAGMA, "value"}};
  make_svg(fixture, &(Figure){.panels = &bare, .panel_count = 1});
}

static void test_pictures(void **state) {
  Fixture *fixture = *state;
  Picture dots = plain_picture(fixture, 2, 2, 1, 0);
  dots.pixels[1] = 200;
  Picture clear = plain_picture(fixture, 3, 1, 4, 0);
  const Picture large = plain_picture(fixture, 400, 100, 3, 77);
  const PlotPanel panels[] = {{.kind = PANEL_PICTURE, .picture = dots},
                              {.kind = PANEL_PICTURE, .picture = clear},
                              {.kind = PANEL_PICTURE, .picture = large}};
  const Figure figure = {NULL, panels, 3, 3, 100, 100};
  const Picture picture = make_picture(fixture, &figure, 1);
  /* enlarged without smoothing */
  assert_int_equal(count_color(&picture, 0xC8C8C8), 46 * 46);
  assert_int_equal(pixel_at(&picture, 93, 6), 0xC8C8C8);
  assert_int_equal(count_color(&picture, 0), 3 * 46 * 46);
  assert_int_equal(count_color(&picture, 0x4D4D4D), 92 * 23);
  assert_int_equal(pixel_at(&picture, 150, 60), 0xFFFFFF);
  make_svg(fixture, &figure);
}

/* --- colour maps ----------------------------------------------------------------------------------- */

static void test_colormap(void **state) {
  (void)state;
  assert_int_equal(colormap_entry(COLORMAP_VIRIDIS, 0), 0x440154);   /* (68, 1, 84) */
  assert_int_equal(colormap_entry(COLORMAP_VIRIDIS, 255), 0xFDE725); /* (253, 231, 37) */
  assert_int_equal(colormap_entry(COLORMAP_MAGMA, 0), 0x000004);
  assert_int_equal(colormap_entry(COLORMAP_MAGMA, 255), 0xFCFDBF); /* (252, 253, 191) */
  assert_int_equal(colormap_entry(COLORMAP_VIRIDIS, 128), 0x21918C);
  assert_int_equal(colormap_entry(COLORMAP_MAGMA, 128), 0xB73779);
  assert_int_equal(colormap_entry(COLORMAP_MAGMA, -7), 0x000004);
  assert_int_equal(colormap_entry(COLORMAP_MAGMA, 1 << 20), 0xFCFDBF);
  assert_int_equal(colormap_at(COLORMAP_MAGMA, 0.5), 0xB73779);
  assert_int_equal(colormap_at(COLORMAP_MAGMA, NAN), 0x000004);
  assert_int_equal(colormap_at(COLORMAP_MAGMA, INFINITY), 0xFCFDBF);
  assert_int_equal(colormap_at(COLORMAP_MAGMA, -1), 0x000004);
  /* both maps grow lighter all the way; entries rounded to 8 bits may repeat a lightness */
  for (int map = COLORMAP_MAGMA; map <= COLORMAP_VIRIDIS; map++) {
    double before = -1;
    for (int64_t i = 0; i < COLORMAP_SIZE; i++) {
      const uint32_t rgb = colormap_entry((Colormap)map, i);
      const double light = 0.2126 * pow((rgb >> 16) / 255.0, 2.2) + 0.7152 * pow((rgb >> 8 & 255) / 255.0, 2.2) +
                           0.0722 * pow((rgb & 255) / 255.0, 2.2);
      assert_true(light > before - 0.001);
      before = light;
    }
  }
}

/* --- heat maps ------------------------------------------------------------------------------------- */

static uint8_t blend(uint8_t under, uint32_t over) { return (uint8_t)((2 * under + 3 * over + 2) / 5); }

static uint32_t blend_all(uint8_t under, uint32_t rgb) {
  return (uint32_t)blend(under, rgb >> 16) << 16 | (uint32_t)blend(under, rgb >> 8 & 255) << 8 |
         blend(under, rgb & 255);
}

static void test_overlay(void **state) {
  Fixture *fixture = *state;
  const Picture gray = plain_picture(fixture, 40, 20, 1, 100);
  /* the hot cell at the bottom left ends there, in full within half a cell of the corner */
  const float corner[] = {0, 0, 0, 0, 0, 0, 8, 0, 0};
  const Tensor map = tensor_of(fixture, 2, (const int64_t[]){3, 3}, corner);
  Picture out;
  assert_true(heatmap_overlay(&gray, &map, HEATMAP_OPACITY, fixture->arena, fixture->diag, &out));
  assert_int_equal(out.width, 40);
  assert_int_equal(out.height, 20);
  assert_int_equal(out.channels, 3);
  const uint32_t hot = blend_all(100, 0xFCFDBF), cold = blend_all(100, 0x000004);
  assert_int_equal(pixel_at(&out, 0, 19), hot);
  assert_int_equal(pixel_at(&out, 5, 18), hot);
  assert_int_equal(pixel_at(&out, 39, 19), cold);
  assert_int_equal(pixel_at(&out, 0, 0), cold);
  assert_int_equal(pixel_at(&out, 39, 0), cold);
  assert_int_equal(pixel_at(&out, 20, 10), cold);
  /* along the bottom edge from cell 0 to cell 1: source column (x + 0.5) · 3/40 − 0.5 */
  for (int32_t x = 7; x < 19; x++) {
    const double fraction = 1 - ((x + 0.5) * 3 / 40 - 0.5);
    assert_int_equal(pixel_at(&out, x, 19), blend_all(100, colormap_at(COLORMAP_MAGMA, fraction)));
  }

  /* every pair of bytes blends to the nearest integer */
  Picture ramp = plain_picture(fixture, 256, 1, 3, 0);
  for (int32_t i = 0; i < 256 * 3; i++) ramp.pixels[i] = (uint8_t)(i / 3);
  const float flat[] = {3};
  const Tensor one = tensor_of(fixture, 2, (const int64_t[]){1, 1}, flat);
  assert_true(heatmap_overlay(&ramp, &one, HEATMAP_OPACITY, fixture->arena, fixture->diag, &out));
  for (int32_t x = 0; x < 256; x++) assert_int_equal(pixel_at(&out, x, 0), blend_all((uint8_t)x, 0x000004));
  assert_true(heatmap_overlay(&ramp, &one, 0, fixture->arena, fixture->diag, &out));
  assert_memory_equal(out.pixels, ramp.pixels, 256 * 3);

  const float holes[] = {NAN, -3e38F, INFINITY, 3e38F};
  const Tensor wild = tensor_of(fixture, 2, (const int64_t[]){1, 4}, holes);
  assert_true(heatmap_overlay(&gray, &wild, 1, fixture->arena, fixture->diag, &out));
  assert_int_equal(pixel_at(&out, 0, 0), 0x000004);
  assert_int_equal(pixel_at(&out, 39, 0), 0xFCFDBF);
  check_messages(fixture, "");

  const float none[] = {NAN, INFINITY};
  const Tensor bad = tensor_of(fixture, 2, (const int64_t[]){1, 2}, none);
  assert_false(heatmap_overlay(&gray, &bad, 1, fixture->arena, fixture->diag, &out));
  assert_false(heatmap_overlay(&gray, &one, 1.5, fixture->arena, fixture->diag, &out));
  const Tensor flat3 = tensor_of(fixture, 3, (const int64_t[]){1, 1, 1}, flat);
  assert_false(heatmap_overlay(&gray, &flat3, 1, fixture->arena, fixture->diag, &out));
  check_messages(fixture,
                 "map: error: the heat map has no finite value\n"
                 "map: error: the opacity of a heat map is from 0 to 1, found 1.5\n"
                 "map: error: a heat map has the shape [H,W], found [1,1,1]\n");
}

/* Two channels of 1 × 3: weights are the means of the gradient, 2 and −1. */
static void test_grad_cam(void **state) {
  Fixture *fixture = *state;
  const int64_t dims[] = {2, 1, 3};
  const float act[] = {1, 2, 3, 4, 1, 0}, grad[] = {0, 2, 4, -3, 0, 0};
  const Tensor activation = tensor_of(fixture, 3, dims, act), gradient = tensor_of(fixture, 3, dims, grad);
  Tensor map;
  assert_true(heatmap_grad_cam(&activation, &gradient, 0, fixture->arena, fixture->diag, &map));
  assert_int_equal(map.shape.rank, 2);
  const float expected[] = {0, 3, 6}; /* relu(2 − 4), 4 − 1, 6 */
  assert_memory_equal(map.data, expected, sizeof expected);
  assert_true(heatmap_activation(&activation, 0, fixture->arena, fixture->diag, &map));
  const float mean[] = {2.5F, 1.5F, 1.5F};
  assert_memory_equal(map.data, mean, sizeof mean);
  check_messages(fixture, "");

  const Tensor other = tensor_of(fixture, 3, (const int64_t[]){1, 2, 3}, act);
  const Tensor flat = tensor_of(fixture, 2, (const int64_t[]){2, 3}, act);
  const Tensor none = tensor_of(fixture, 3, (const int64_t[]){2, 0, 3}, act);
  assert_false(heatmap_grad_cam(&activation, &other, 0, fixture->arena, fixture->diag, &map));
  assert_false(heatmap_activation(&flat, 0, fixture->arena, fixture->diag, &map));
  assert_false(heatmap_activation(&none, 0, fixture->arena, fixture->diag, &map));
  assert_false(heatmap_activation(&activation, 1, fixture->arena, fixture->diag, &map));
  check_messages(fixture,
                 "map: error: Grad-CAM needs activation and gradient of one shape, found [2,1,3] and [1,2,3]\n"
                 "map: error: a heat map needs a tensor [C,H,W] or [N,C,H,W], found [2,3]\n"
                 "map: error: a heat map of an empty tensor [2,0,3]\n"
                 "map: error: a heat map of image 1, expected one of the 1 in [2,1,3]\n");
}

static double relative_error(const Tensor *map, const Tensor *expected, int64_t begin) {
  double error = 0, size = 0;
  for (int64_t i = 0; i < tensor_elements(map); i++) {
    const double want = tensor_get(expected, begin + i), difference = tensor_get(map, i) - want;
    error += difference * difference;
    size += want * want;
  }
  return sqrt(error / size);
}

static void test_grad_cam_golden(void **state) {
  Fixture *fixture = *state;
  const char *shared = getenv("KILN_SHARED");
  const char *path = arena_format(fixture->arena, "%s/golden/mini_resnet_eval.safetensors",
                                  shared ? shared : KILN_SOURCE_DIR "/../shared");
  if (access(path, R_OK) != 0) skip();
  TensorList list;
  assert_true(safetensors_read(path, fixture->arena, fixture->diag, &list));
  const Tensor *body = tensor_find(&list, "body"), *gradient = tensor_find(&list, "grad_body");
  const Tensor *cam = tensor_find(&list, "cam"), *grad_cam = tensor_find(&list, "gradcam");
  assert_true(body && gradient && cam && grad_cam);
  for (int64_t image = 0; image < body->shape.dims[0]; image++) {
    Tensor map;
    const int64_t begin = image * cam->shape.dims[1] * cam->shape.dims[2];
    assert_true(heatmap_activation(body, image, fixture->arena, fixture->diag, &map));
    assert_true(relative_error(&map, cam, begin) < 2e-6);
    assert_true(heatmap_grad_cam(body, gradient, image, fixture->arena, fixture->diag, &map));
    assert_true(relative_error(&map, grad_cam, begin) < 2e-6);
  }
  check_messages(fixture, "");
}

static void test_sheet(void **state) {
  Fixture *fixture = *state;
  const Picture picture = plain_picture(fixture, 900, 30, 3, 10);
  const float values[] = {0, 1, 2, 3};
  Tensor maps[5];
  for (size_t i = 0; i < 5; i++) {
    maps[i] = tensor_of(fixture, 2, (const int64_t[]){2, 2}, values);
    maps[i].name = arena_format(fixture->arena, "layer%zu", i);
  }
  Figure figure;
  assert_true(heatmap_sheet("Sheet", &picture, maps, 5, 0, fixture->arena, fixture->diag, &figure));
  assert_int_equal(figure.panel_count, 6);
  assert_int_equal(figure.columns, 3);
  assert_string_equal(figure.panels[3].title, "layer2");
  make_svg(fixture, &figure);
}

/* --- reports --------------------------------------------------------------------------------------- */

static void test_report(void **state) {
  Fixture *fixture = *state;
  Report report;
  report_begin(&report, "A <b>\"title\"</b> & more \xFF", fixture->arena);
  report_heading(&report, "Epochs");
  report_paragraph(&report, "5 > 3");
  const char *const cells[] = {"epoch", "loss", "1", "0.5", NULL, "<&>"};
  report_table(&report, cells, 3, 2, "<>");
  report_svg(&report, "<svg/>", 6, "none");
  report_svg(&report, "<svg/>\n", 7, NULL);
  report_svg(&report, "<svg/> \n", 8, "\"quoted\"");
  assert_true(report_figure(&report, sample_figure(fixture), fixture->diag));
  const char *path = fixture_path(fixture, "index.html");
  assert_true(report_write(&report, path, fixture->diag));
  check_messages(fixture, "");
  const char *html = report.html.data;
  assert_non_null(strstr(html, "<h1>A &lt;b&gt;&quot;title&quot;&lt;/b&gt; &amp; more \xEF\xBF\xBD</h1>"));
  assert_non_null(strstr(html, "<td></td><td class=\"right\">&lt;&amp;&gt;</td>"));
  assert_non_null(strstr(html, "alt=\"none\" src=\"data:image/svg+xml;base64,PHN2Zy8+\""));
  assert_non_null(strstr(html, "base64,PHN2Zy8+Cg==\""));
  assert_non_null(strstr(html, "alt=\"&quot;quoted&quot;\" src=\"data:image/svg+xml;base64,PHN2Zy8+IAo=\""));
  assert_null(strstr(html, "http"));
  assert_null(strstr(html, "<script"));
}

/* --- memory ---------------------------------------------------------------------------------------- */

/* Gives `left` blocks, then none. */
typedef struct Ration {
  size_t left, held;
} Ration;

static void *ration_allocate(void *context, size_t size, size_t alignment) {
  Ration *ration = context;
  if (ration->left == 0) return NULL;
  void *pointer = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (!pointer) return NULL;
  ration->left--;
  ration->held++;
  return pointer;
}

static void ration_release(void *context, void *pointer, size_t size) {
  Ration *ration = context;
  (void)size;
  ration->held--;
  free(pointer);
}

static bool draw_within(const Figure *figure, Arena *arena, bool svg) {
  Picture picture;
  Text text;
  Diag *diag = diag_create(arena);
  return svg ? figure_svg(figure, arena, diag, &text) : figure_draw(figure, 1, arena, diag, &picture);
}

/* Whichever block is refused, drawing ends at the failure point and nothing stays behind. */
static void test_out_of_memory(void **state) {
  Fixture *fixture = *state;
  const Figure *figure = sample_figure(fixture);
  for (int svg = 0; svg < 2; svg++) {
    bool finished = false;
    size_t failures = 0;
    for (size_t blocks = 1; !finished && blocks < 200; blocks++) {
      Ration ration = {blocks, 0};
      Arena *arena = arena_create(&(Allocator){ration_allocate, ration_release, &ration});
      if (!arena) continue;
      jmp_buf failed;
      arena_on_failure(arena, &failed);
      if (setjmp(failed) == 0) {
        assert_true(draw_within(figure, arena, svg));
        finished = true;
      } else {
        failures++;
      }
      arena_on_failure(arena, NULL);
      arena_destroy(arena);
      assert_int_equal(ration.held, 0);
    }
    assert_true(finished && failures > 3);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_deterministic), fixture_test(test_geometry),       fixture_test(test_ticks),
      fixture_test(test_scales),        fixture_test(test_difficult_data), fixture_test(test_long_series),
      fixture_test(test_many_series),   fixture_test(test_bad_text),       fixture_test(test_refused),
      fixture_test(test_matrix),        fixture_test(test_pictures),       fixture_test(test_colormap),
      fixture_test(test_overlay),       fixture_test(test_grad_cam),       fixture_test(test_grad_cam_golden),
      fixture_test(test_sheet),         fixture_test(test_report),         fixture_test(test_out_of_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
