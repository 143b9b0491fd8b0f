#include "train_report.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "report.h"
#include "stats.h"

enum { PANEL_COLUMNS = 3, SHOWN_POINTS = 2000 };

typedef struct Writer {
  const char *folder;
  const TrainReport *report;
  const TrainHistory *history;
  Arena *arena;
  Diag *diag;
  Report page;
} Writer;

/* --- series --------------------------------------------------------------------------------------------- */

static double *new_numbers(const Writer *writer, size_t count) { return arena_array(writer->arena, count + 1, double); }

/* At most SHOWN_POINTS of a run's steps, evenly; x counts in epochs. */
typedef struct StepSeries {
  double *x, *loss, *smoothed, *rate, *momentum;
  size_t count;
} StepSeries;

static StepSeries step_series(const Writer *writer) {
  const TrainHistory *history = writer->history;
  const int64_t every = history->step_count / SHOWN_POINTS + 1;
  const size_t room = (size_t)(history->step_count / every) + 1;
  StepSeries series = {new_numbers(writer, room), new_numbers(writer, room), new_numbers(writer, room),
                       new_numbers(writer, room), new_numbers(writer, room), 0};
  Smoother smoother = {.beta = 0.98};
  for (int64_t i = 0; i < history->step_count; i++) {
    const TrainStep *step = &history->steps[i];
    const double smoothed = smoother_add(&smoother, step->loss);
    if (i % every != 0) continue;
    series.x[series.count] = (double)(i + 1) / (double)history->batches;
    series.loss[series.count] = step->loss;
    series.smoothed[series.count] = smoothed;
    series.rate[series.count] = step->rate;
    series.momentum[series.count++] = step->momentum;
  }
  return series;
}

static PlotSeries *add_series(const Writer *writer, PlotPanel *panel, PlotSeries series) {
  PlotSeries *all = arena_array(writer->arena, panel->series_count + 1, PlotSeries);
  if (panel->series_count > 0) memcpy(all, panel->series, panel->series_count * sizeof *all);
  all[panel->series_count++] = series;
  panel->series = all;
  return all;
}

/* --- figures -------------------------------------------------------------------------------------------- */

static bool write_files(const Writer *writer, const char *name, const PlotPanel *panels, size_t count) {
  const Figure figure = {
      .panels = panels, .panel_count = count, .columns = count < PANEL_COLUMNS ? count : PANEL_COLUMNS};
  static const char *const endings[] = {"png", "svg"};
  for (size_t i = 0; i < 2; i++) {
    const char *path = arena_format(writer->arena, "%s/%s.%s", writer->folder, name, endings[i]);
    if (!figure_write(&figure, path, writer->arena, writer->diag)) return false;
  }
  return true;
}

/* A picture for each panel, so that they stand below each other on a narrow screen. */
static bool show_panels(Writer *writer, const char *heading, const PlotPanel *panels, size_t count) {
  report_heading(&writer->page, heading);
  report_grid_begin(&writer->page);
  for (size_t i = 0; i < count; i++)
    if (!report_figure(&writer->page, &(Figure){.panels = &panels[i], .panel_count = 1}, writer->diag)) return false;
  report_grid_end(&writer->page);
  return true;
}

static bool add_figure(Writer *writer, const char *name, const char *heading, const PlotPanel *panels, size_t count) {
  return write_files(writer, name, panels, count) && show_panels(writer, heading, panels, count);
}

static bool add_progress(Writer *writer, const StepSeries *steps) {
  const TrainHistory *history = writer->history;
  const size_t count = (size_t)history->epoch_count;
  const bool measured = count > 0 && history->epochs[0].pictures > 0, error_rate = writer->report->error_rate;
  double *x = new_numbers(writer, count), *valid = new_numbers(writer, count), *metric = new_numbers(writer, count);
  for (size_t i = 0; i < count; i++) {
    const TrainEpoch *epoch = &history->epochs[i];
    x[i] = (double)epoch->epoch + 1;
    valid[i] = epoch->valid_loss;
    metric[i] = 100 * (error_rate ? 1 - epoch->accuracy : epoch->accuracy);
  }
  PlotPanel panels[] = {
      {.title = "Loss", .x = {.label = "epoch"}, .y = {.label = "loss"}},
      {.title = error_rate ? "Error rate" : "Accuracy", .x = {.label = "epoch"}, .y = {.label = "%"}}};
  add_series(writer, &panels[0], (PlotSeries){"batch", PLOT_LINE, steps->x, steps->loss, steps->count});
  add_series(writer, &panels[0], (PlotSeries){"smoothed", PLOT_LINE, steps->x, steps->smoothed, steps->count});
  if (!measured) return add_figure(writer, "loss", "Progress", panels, 1);
  add_series(writer, &panels[0], (PlotSeries){"validation", PLOT_LINE_POINTS, x, valid, count});
  add_series(writer, &panels[1], (PlotSeries){NULL, PLOT_LINE_POINTS, x, metric, count});
  return write_files(writer, "loss", panels, 1) && write_files(writer, "metrics", panels + 1, 1) &&
         show_panels(writer, "Progress", panels, 2);
}

static bool add_schedule(Writer *writer, const StepSeries *steps) {
  PlotPanel panels[] = {{.title = "Learning rate", .x = {.label = "epoch"}, .y = {.label = "rate"}},
                        {.title = "Momentum", .x = {.label = "epoch"}, .y = {.label = "momentum"}}};
  add_series(writer, &panels[0], (PlotSeries){NULL, PLOT_LINE, steps->x, steps->rate, steps->count});
  add_series(writer, &panels[1], (PlotSeries){NULL, PLOT_LINE, steps->x, steps->momentum, steps->count});
  return add_figure(writer, "schedule", "Schedule", panels, 2);
}

/* --- statistics of activations -------------------------------------------------------------------------- */

static double stats_at(const TrainHistory *history, int64_t record, size_t value, size_t field) {
  const size_t row = (size_t)record * history->stats_count + value;
  return (double)history->stats[row * history->stats_width + field];
}

/* Batches from 0 to the last record's end. */
static double stats_span(const TrainHistory *history) {
  return (double)(history->stats_records * history->stats_every);
}

static bool add_activations(Writer *writer) {
  const TrainHistory *history = writer->history;
  const size_t records = (size_t)history->stats_records;
  PlotPanel panels[] = {{.title = "Mean", .x = {.label = "batch"}, .y = {.label = "mean"}},
                        {.title = "Standard deviation", .x = {.label = "batch"}, .y = {.label = "deviation"}},
                        {.title = "Near zero", .x = {.label = "batch"}, .y = {.label = "%"}}};
  double *x = new_numbers(writer, records);
  for (size_t i = 0; i < records; i++) x[i] = (double)((int64_t)i * history->stats_every + 1);
  for (size_t field = 0; field < STATS_RESULT_FIELDS; field++)
    for (size_t value = 0; value < history->stats_count; value++) {
      double *y = new_numbers(writer, records);
      for (size_t i = 0; i < records; i++)
        y[i] = stats_at(history, (int64_t)i, value, field) * (field == STATS_RESULT_NEAR_ZERO ? 100 : 1);
      add_series(writer, &panels[field], (PlotSeries){history->stats_names[value], PLOT_LINE, x, y, records});
    }
  return add_figure(writer, "activations", "Activations", panels, STATS_RESULT_FIELDS);
}

static bool add_histograms(Writer *writer) {
  const TrainHistory *history = writer->history;
  const size_t records = (size_t)history->stats_records, bins = history->stats_width - STATS_RESULT_FIELDS;
  PlotPanel *panels = arena_array(writer->arena, history->stats_count, PlotPanel);
  for (size_t value = 0; value < history->stats_count; value++) {
    double *cells = new_numbers(writer, records * bins);
    for (size_t bin = 0; bin < bins; bin++)
      for (size_t i = 0; i < records; i++)
        cells[bin * records + i] = stats_at(history, (int64_t)i, value, STATS_RESULT_FIELDS + bin);
    panels[value] = (PlotPanel){
        .kind = PANEL_MATRIX,
        .title = arena_format(writer->arena, "Values of %s", history->stats_names[value]),
        .x = {"batch", false, 0, stats_span(history)},
        .y = {"activation", false, writer->report->low, writer->report->high},
        .matrix = {cells, bins, records, true, COLORMAP_VIRIDIS, "log(1 + count)"},
    };
  }
  return add_figure(writer, "histograms", "Histograms of activations", panels, history->stats_count);
}

/* --- page ----------------------------------------------------------------------------------------------- */

static void add_facts(Writer *writer) {
  const TrainReport *report = writer->report;
  const char **cells = arena_array(writer->arena, (report->fact_count + 1) * 2, const char *);
  cells[0] = "";
  cells[1] = "this run";
  for (size_t i = 0; i < report->fact_count; i++) {
    cells[2 * i + 2] = report->facts[i].name;
    cells[2 * i + 3] = report->facts[i].value;
  }
  report_table(&writer->page, cells, report->fact_count + 1, 2, "<<");
}

static void add_epochs(Writer *writer) {
  enum { COLUMNS = 5 };
  const bool error_rate = writer->report->error_rate;
  const char *const head[COLUMNS] = {"epoch", "train loss", "valid loss", error_rate ? "error rate" : "accuracy",
                                     "time"};
  const TrainHistory *history = writer->history;
  const size_t rows = (size_t)history->epoch_count + 1;
  const char **cells = arena_array(writer->arena, rows * COLUMNS, const char *);
  memcpy(cells, head, sizeof head);
  for (size_t i = 1; i < rows; i++) {
    const TrainEpoch *epoch = &history->epochs[i - 1];
    const char **row = &cells[i * COLUMNS];
    row[0] = arena_format(writer->arena, "%lld", (long long)epoch->epoch + 1);
    row[1] = arena_format(writer->arena, "%.6f", epoch->train_loss);
    if (epoch->pictures > 0) {
      row[2] = arena_format(writer->arena, "%.6f", epoch->valid_loss);
      row[3] = arena_format(writer->arena, "%.4f", error_rate ? 1 - epoch->accuracy : epoch->accuracy);
    }
    row[4] = arena_format(writer->arena, "%.1f s", epoch->seconds);
  }
  report_heading(&writer->page, "Epochs");
  report_table(&writer->page, cells, rows, COLUMNS, ">>>>>");
}

bool train_report_write(const char *folder, const TrainReport *report, const TrainHistory *history, Arena *arena,
                        Diag *diag) {
  Writer writer = {.folder = folder, .report = report, .history = history, .arena = arena, .diag = diag};
  if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
    diag_error(diag, (Location){folder, 0, 0}, "cannot make the folder: %s", strerror(errno));
    return false;
  }
  report_begin(&writer.page, report->title, arena);
  add_facts(&writer);
  add_epochs(&writer);
  if (history->step_count > 0) {
    const StepSeries steps = step_series(&writer);
    if (!add_progress(&writer, &steps) || !add_schedule(&writer, &steps)) return false;
  }
  if (history->stats_records > 0 && history->stats_count > 0 && (!add_activations(&writer) || !add_histograms(&writer)))
    return false;
  return report_write(&writer.page, arena_format(arena, "%s/index.html", folder), diag);
}

/* --- learning-rate finder ------------------------------------------------------------------------------- */

bool finder_plot_write(const char *path, const char *title, const FinderResult *result, Arena *arena, Diag *diag) {
  const SweepSuggestion *suggestion = &result->suggestion;
  const PlotSeries series = {NULL, PLOT_LINE, result->rates, result->losses, result->count};
  PlotMark marks[2];
  size_t mark_count = 0;
  if (result->found) {
    const size_t steepest = suggestion->steepest, minimum = suggestion->minimum;
    marks[mark_count++] = (PlotMark){suggestion->steepest_rate, result->losses[steepest],
                                     arena_format(arena, "steepest %.2g", suggestion->steepest_rate)};
    marks[mark_count++] = (PlotMark){result->rates[minimum], result->losses[minimum],
                                     arena_format(arena, "lowest %.2g", result->rates[minimum])};
  }
  const PlotPanel panel = {.title = title,
                           .x = {.label = "learning rate", .logarithmic = true},
                           .y = {.label = "smoothed loss"},
                           .series = &series,
                           .series_count = 1,
                           .marks = marks,
                           .mark_count = mark_count};
  return figure_write(&(Figure){.panels = &panel, .panel_count = 1, .panel_width = 560, .panel_height = 360}, path,
                      arena, diag);
}
