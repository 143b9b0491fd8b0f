/* The table of kernels, and where they lie under the roofs of the machine, for the instructions of the program's level.
 *
 * A kernel's arithmetic intensity is its operations per byte, each operand counted once. Its roof is what the machine
 * can do at that intensity: the peak of multiply-adds, or the intensity times the rate at which the level that holds
 * the kernel's operands can be read. Winograd convolutions count the operations of a direct one, so that they may be
 * above their roof: that much they save. */
#include "bench_kernels.h"

#include <math.h>
#include <string.h>

#include "session/plot.h"

typedef struct KernelRates {
  double flops, bytes; /* of a run */
  double intensity;    /* operations per byte */
  double per_second;   /* operations */
  double roof;         /* of them; 0: not known */
} KernelRates;

static double gpu_read_rate(const CudaPeaks *peaks, double bytes) {
  return peaks->l2 > 0 && bytes <= (double)peaks->l2_bytes ? peaks->l2 : peaks->memory;
}

static KernelRates rates_of(const KernelTimes *times, size_t number) {
  const kiln_step *step = &times->program->run_steps[number];
  const double seconds = times->seconds[number];
  KernelRates rates = {.flops = step->flops + (double)times->batch * step->flops_per_batch,
                       .bytes = step->bytes + (double)times->batch * step->bytes_per_batch};
  rates.intensity = rates.bytes > 0 ? rates.flops / rates.bytes : 0;
  rates.per_second = seconds > 0 ? rates.flops / seconds : 0;
  if (times->gpu == NULL)
    rates.roof = fmin(times->peaks->flops, rates.intensity * peaks_rate(times->peaks, rates.bytes));
  else if (times->modes[number] != MATH_COUNT)
    rates.roof = fmin(times->gpu->math[times->modes[number]], rates.intensity * gpu_read_rate(times->gpu, rates.bytes));
  return rates;
}

/* The run's operations by the peak of multiply-adds in f32. */
static double share_of_peak(const KernelTimes *times) {
  double flops = 0;
  for (size_t s = 0; s < times->program->run_step_count; s++) flops += rates_of(times, s).flops;
  const double peak = times->gpu != NULL ? times->gpu->fma : times->peaks->flops;
  return times->run > 0 && peak > 0 ? flops / times->run / peak : 0;
}

static double total_seconds(const KernelTimes *times) {
  double total = 0;
  for (size_t s = 0; s < times->program->run_step_count; s++) total += times->seconds[s];
  return total;
}

/* --- text -------------------------------------------------------------------------------------------- */

void csv_field(FILE *file, const char *text) {
  if (strpbrk(text, ",\"\r\n") == NULL) {
    fputs(text, file);
    return;
  }
  fputc('"', file);
  for (; *text != '\0'; text++) {
    if (*text == '"') fputc('"', file);
    fputc(*text, file);
  }
  fputc('"', file);
}

static void print_csv(const KernelTimes *times) {
  const double total = total_seconds(times);
  fputs("value,kernel,us,share,flop,bytes,flop_per_byte,gflops,gbytes_per_second,roof_gflops,of_roof\n", stdout);
  for (size_t s = 0; s < times->program->run_step_count; s++) {
    const KernelRates rates = rates_of(times, s);
    const double seconds = times->seconds[s];
    csv_field(stdout, times->program->run_steps[s].name);
    fputc(',', stdout);
    csv_field(stdout, times->program->run_steps[s].kind);
    printf(",%.3f,%.6f,%.0f,%.0f,%.6g,%.6g,%.6g", 1e6 * seconds, total > 0 ? seconds / total : 0, rates.flops,
           rates.bytes, rates.intensity, 1e-9 * rates.per_second, seconds > 0 ? 1e-9 * rates.bytes / seconds : 0);
    if (rates.roof > 0)
      printf(",%.6g,%.6g\n", 1e-9 * rates.roof, rates.per_second / rates.roof);
    else
      fputs(",,\n", stdout);
  }
}

static void print_peaks(const char *isa, const Peaks *peaks) {
  printf("peaks of %u thread%s, %s: %.1f GFLOP/s", peaks->threads, peaks->threads == 1 ? "" : "s", isa,
         1e-9 * peaks->flops);
  if (peaks->l2 > 0) printf("   L2 %.1f GB/s", 1e-9 * peaks->l2);
  if (peaks->l3 > 0) printf("   L3 %.1f GB/s", 1e-9 * peaks->l3);
  printf("   memory %.1f GB/s\n", 1e-9 * peaks->memory);
}

static void print_gpu_peaks(const CudaPeaks *peaks) {
  printf("peaks of %s: f32 %.1f GFLOP/s", peaks->name, 1e-9 * peaks->fma);
  for (int mode = MATH_FP32 + 1; mode < MATH_COUNT; mode++)
    if (peaks->math[mode] > 0) printf("   %s %.1f", math_mode_name((MathMode)mode), 1e-9 * peaks->math[mode]);
  if (peaks->l2 > 0) printf("   L2 %.1f GB/s", 1e-9 * peaks->l2);
  printf("   memory %.1f GB/s\n", 1e-9 * peaks->memory);
}

void kernel_times_print(Tool *tool, const KernelTimes *times, bool csv) {
  enum { COLUMNS = 8 };
  if (csv) {
    print_csv(times);
    return;
  }
  const size_t steps = times->program->run_step_count;
  const double total = total_seconds(times);
  const char **cells = arena_array(tool->arena, (steps + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value", "kernel", "us", "share", "GFLOP/s", "GB/s", "FLOP/B", "of roof"};
  memcpy(cells, head, sizeof head);
  for (size_t s = 0; s < steps; s++) {
    const KernelRates rates = rates_of(times, s);
    const double seconds = times->seconds[s];
    const char **row = &cells[(s + 1) * COLUMNS];
    row[0] = times->program->run_steps[s].name;
    row[1] = times->program->run_steps[s].kind;
    row[2] = arena_format(tool->arena, "%.1f", 1e6 * seconds);
    row[3] = arena_format(tool->arena, "%.1f %%", total > 0 ? 100 * seconds / total : 0);
    row[4] = arena_format(tool->arena, "%.1f", 1e-9 * rates.per_second);
    row[5] = arena_format(tool->arena, "%.1f", seconds > 0 ? 1e-9 * rates.bytes / seconds : 0);
    row[6] = arena_format(tool->arena, "%.2f", rates.intensity);
    row[7] = rates.roof > 0 ? arena_format(tool->arena, "%.0f %%", 100 * rates.per_second / rates.roof) : "-";
  }
  if (times->gpu != NULL)
    print_gpu_peaks(times->gpu);
  else
    print_peaks(times->program->isa, times->peaks);
  printf("the whole run: %.0f %% of the peak, its operations counted as those of direct convolutions\n",
         100 * share_of_peak(times));
  table_print(stdout, tool->arena, cells, steps + 1, COLUMNS, "<<>>>>>>");
}

void kernel_times_json(Text *text, const KernelTimes *times) {
  text_format(text, "\"of_peak\":%.4f,\"peaks\":{", share_of_peak(times));
  if (times->gpu != NULL)
    text_format(text, "\"gflops\":%.3f,\"l2_gbytes_per_second\":%.3f,\"memory_gbytes_per_second\":%.3f}",
                1e-9 * times->gpu->fma, 1e-9 * times->gpu->l2, 1e-9 * times->gpu->memory);
  else
    text_format(text,
                "\"gflops\":%.3f,\"l2_gbytes_per_second\":%.3f,\"l3_gbytes_per_second\":%.3f,"
                "\"memory_gbytes_per_second\":%.3f}",
                1e-9 * times->peaks->flops, 1e-9 * times->peaks->l2, 1e-9 * times->peaks->l3,
                1e-9 * times->peaks->memory);
  text_add(text, ",\"kernels\":[");
  for (size_t s = 0; s < times->program->run_step_count; s++) {
    const KernelRates rates = rates_of(times, s);
    text_add(text, s > 0 ? ",{\"value\":" : "{\"value\":");
    text_add_json(text, times->program->run_steps[s].name);
    text_add(text, ",\"kernel\":");
    text_add_json(text, times->program->run_steps[s].kind);
    text_format(text, ",\"us\":%.3f,\"flop\":%.0f,\"bytes\":%.0f,\"gflops\":%.3f", 1e6 * times->seconds[s],
                rates.flops, rates.bytes, 1e-9 * rates.per_second);
    if (rates.roof > 0) text_format(text, ",\"of_roof\":%.4f", rates.per_second / rates.roof);
    text_add(text, "}");
  }
  text_add(text, "]");
}

/* --- plot -------------------------------------------------------------------------------------------- */

/* From the smallest intensity shown to the largest, by way of the ridge. */
static PlotSeries roof_series(Tool *tool, const char *level, double rate, double peak, double low, double high) {
  enum { POINTS = 3 };
  double *x = arena_array(tool->arena, POINTS, double), *y = arena_array(tool->arena, POINTS, double);
  x[0] = low, x[1] = peak / rate, x[2] = fmax(high, x[1]);
  for (int i = 0; i < POINTS; i++) y[i] = 1e-9 * fmin(peak, rate * x[i]);
  const char *label = arena_format(tool->arena, "%s %.0f GB/s", level, 1e-9 * rate);
  return (PlotSeries){label, PLOT_LINE, x, y, POINTS};
}

/* Of the fastest mode that a kernel computes in. */
static double gpu_peak(const KernelTimes *times) {
  double peak = times->gpu->fma;
  for (size_t s = 0; s < times->program->run_step_count; s++)
    if (times->modes[s] != MATH_COUNT) peak = fmax(peak, times->gpu->math[times->modes[s]]);
  return peak;
}

static PlotSeries kernel_series(Tool *tool, const KernelTimes *times, const char *label, bool winograd) {
  static const char prefix[] = "conv2d/winograd";
  const size_t steps = times->program->run_step_count;
  double *x = arena_array(tool->arena, steps + 1, double), *y = arena_array(tool->arena, steps + 1, double);
  size_t count = 0;
  for (size_t s = 0; s < steps; s++) {
    const KernelRates rates = rates_of(times, s);
    const bool is_winograd = strncmp(times->program->run_steps[s].kind, prefix, sizeof prefix - 1) == 0;
    if (is_winograd != winograd || !(rates.intensity > 0 && rates.per_second > 0)) continue;
    x[count] = rates.intensity, y[count++] = 1e-9 * rates.per_second;
  }
  return (PlotSeries){label, PLOT_POINTS, x, y, count};
}

/* Each level of memory under the highest peak that counts. */
static size_t roofs(Tool *tool, const KernelTimes *times, double low, double high, PlotSeries *series) {
  size_t lines = 0;
  if (times->gpu != NULL) {
    const double peak = gpu_peak(times);
    if (times->gpu->l2 > 0) series[lines++] = roof_series(tool, "L2", times->gpu->l2, peak, low, high);
    series[lines++] = roof_series(tool, "memory", times->gpu->memory, peak, low, high);
    return lines;
  }
  const Peaks *peaks = times->peaks;
  const struct {
    const char *name;
    double rate;
  } levels[] = {{"L2", peaks->l2}, {"L3", peaks->l3}, {"memory", peaks->memory}};
  for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
    if (levels[i].rate > 0)
      series[lines++] = roof_series(tool, levels[i].name, levels[i].rate, peaks->flops, low, high);
  return lines;
}

static const char *plot_title(Tool *tool, const KernelTimes *times) {
  const char *name = times->program->name;
  const long long batch = (long long)times->batch;
  if (times->gpu != NULL)
    return arena_format(tool->arena, "%s, batch %lld, %s, peak %.0f GFLOP/s", name, batch, times->gpu->name,
                        1e-9 * gpu_peak(times));
  const Peaks *peaks = times->peaks;
  return arena_format(tool->arena, "%s, batch %lld, %u thread%s, %s, peak %.0f GFLOP/s", name, batch, peaks->threads,
                      peaks->threads == 1 ? "" : "s", times->program->isa, 1e-9 * peaks->flops);
}

bool kernel_times_plot(Tool *tool, const KernelTimes *times, const char *path) {
  enum { SERIES_MAX = 5 };
  double low = 0.1, high = 100;
  for (size_t s = 0; s < times->program->run_step_count; s++) {
    const KernelRates rates = rates_of(times, s);
    if (rates.intensity > 0) low = fmin(low, rates.intensity), high = fmax(high, rates.intensity);
  }
  PlotSeries series[SERIES_MAX];
  size_t lines = roofs(tool, times, low, high, series);
  series[lines++] = kernel_series(tool, times, "kernels", false);
  series[lines] = kernel_series(tool, times, "Winograd, counted as direct", true);
  if (series[lines].count > 0) lines++;
  PlotPanel panel = {.kind = PANEL_CHART,
                     .title = plot_title(tool, times),
                     .x = {.label = "FLOP per byte", .logarithmic = true},
                     .y = {.label = "GFLOP/s", .logarithmic = true},
                     .series = series,
                     .series_count = lines};
  Figure figure = {.panels = &panel, .panel_count = 1, .columns = 1, .panel_width = 640, .panel_height = 420};
  return figure_write(&figure, path, tool->arena, tool->diag);
}
