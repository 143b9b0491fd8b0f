#include "schedule.h"

#include <math.h>
#include <string.h>

#include "base/text.h"

static const double pi = 3.14159265358979323846;

static const char *const names[] = {[SCHEDULE_CONSTANT] = "constant",
                                    [SCHEDULE_ONE_CYCLE] = "one-cycle",
                                    [SCHEDULE_COSINE] = "cosine",
                                    [SCHEDULE_STEP] = "step"};
enum { KIND_COUNT = sizeof names / sizeof names[0] };

Schedule schedule_default(ScheduleKind kind) {
  return (Schedule){.kind = kind,
                    .pct_start = kind == SCHEDULE_COSINE ? 0.05 : 0.25,
                    .div = 25,
                    .div_final = 1e5,
                    .momentum = 0.9,
                    .momentum_high = 0.95,
                    .momentum_low = 0.85,
                    .step_every = 1.0 / 3,
                    .step_factor = 0.1};
}

const char *schedule_name(ScheduleKind kind) { return names[kind]; }

bool schedule_parse(const char *name, ScheduleKind *out_kind) {
  for (int kind = 0; kind < KIND_COUNT; kind++)
    if (strcmp(names[kind], name) == 0) {
      *out_kind = (ScheduleKind)kind;
      return true;
    }
  return false;
}

/* The negations also refuse what is not a number. */
static bool check_range(double value, double low, double high, const char *option, const char *expected, Diag *diag) {
  if (value >= low && value <= high) return true;
  char text[DOUBLE_TEXT_SIZE];
  diag_error(diag, (Location){NULL, 0, 0}, "--%s: expected %s, found %s", option, expected, double_text(value, text));
  return false;
}

bool schedule_check(const Schedule *schedule, Diag *diag) {
  const double below_one = nextafter(1, 0);
  bool good = check_range(schedule->pct_start, 0, 1, "pct-start", "a share from 0 to 1", diag);
  good &= check_range(schedule->div, 1, 1e12, "div", "at least 1", diag);
  good &= check_range(schedule->div_final, 1, 1e12, "div-final", "at least 1", diag);
  good &= check_range(schedule->momentum, 0, below_one, "momentum", "from 0 to below 1", diag);
  good &= check_range(schedule->momentum_high, 0, below_one, "momenta", "two values from 0 to below 1", diag);
  good &= check_range(schedule->momentum_low, 0, below_one, "momenta", "two values from 0 to below 1", diag);
  good &= check_range(schedule->step_every, 1e-6, 1, "step-every", "a share of the run above 0, at most 1", diag);
  return check_range(schedule->step_factor, 0, 1, "step-factor", "from 0 to 1", diag) && good;
}

/* Half a cosine from `begin` (t = 0) to `end` (t = 1). */
static double cosine_between(double begin, double end, double t) {
  return begin + (1 - cos(pi * t)) * (end - begin) / 2;
}

static SchedulePoint one_cycle_at(const Schedule *schedule, double position) {
  const double start = schedule->pct_start, high = schedule->momentum_high, low = schedule->momentum_low;
  if (position < start) {
    const double t = position / start;
    return (SchedulePoint){cosine_between(1 / schedule->div, 1, t), cosine_between(high, low, t)};
  }
  const double t = start < 1 ? (position - start) / (1 - start) : 1;
  return (SchedulePoint){cosine_between(1, 1 / schedule->div_final, t), cosine_between(low, high, t)};
}

static double cosine_at(const Schedule *schedule, double position) {
  const double start = schedule->pct_start;
  if (position < start) return position / start;
  return cosine_between(1, 1 / schedule->div_final, start < 1 ? (position - start) / (1 - start) : 1);
}

SchedulePoint schedule_at(const Schedule *schedule, int64_t step, int64_t steps) {
  const double position = (double)step / (double)steps;
  switch (schedule->kind) {
    case SCHEDULE_ONE_CYCLE:
      return one_cycle_at(schedule, position);
    case SCHEDULE_COSINE:
      return (SchedulePoint){cosine_at(schedule, position), schedule->momentum};
    case SCHEDULE_STEP:
      /* the small addition keeps a third of a run from falling one batch late by rounding */
      return (SchedulePoint){pow(schedule->step_factor, floor(position / schedule->step_every + 1e-9)),
                             schedule->momentum};
    case SCHEDULE_CONSTANT:
      break;
  }
  return (SchedulePoint){1, schedule->momentum};
}

/* --- rates of groups ------------------------------------------------------------------------------------ */

/* "slice(…)" to what stands between the brackets, cut at the comma. The buffer holds any text that is a rate. */
static bool slice_split(const char *text, char *buffer, size_t size, const char **out_low, const char **out_high) {
  static const char head[] = "slice(";
  const size_t length = strlen(text), skip = sizeof head - 1;
  if (strncmp(text, head, skip) != 0 || length < skip + 2 || text[length - 1] != ')' || length - skip > size)
    return false;
  memcpy(buffer, text + skip, length - skip - 1);
  buffer[length - skip - 1] = '\0';
  char *comma = strchr(buffer, ',');
  *out_low = comma != NULL ? buffer : NULL;
  *out_high = buffer;
  if (comma == NULL) return true;
  *comma++ = '\0';
  while (*comma == ' ') comma++;
  *out_high = comma;
  return true;
}

static bool rate_parse(const char *text, double *out_rate) {
  return parse_double(text, out_rate) && *out_rate > 0 && isfinite(*out_rate);
}

bool rates_parse(const char *text, size_t count, Diag *diag, double *out_rates) {
  char buffer[96];
  const char *low_text = NULL, *high_text = text;
  const bool slice = slice_split(text, buffer, sizeof buffer, &low_text, &high_text);
  double low = 0, high;
  if (!rate_parse(high_text, &high) || (low_text != NULL && !rate_parse(low_text, &low))) {
    diag_error(diag, (Location){NULL, 0, 0},
               "--lr: expected a positive rate, slice(LOW,HIGH) or slice(HIGH), found '%s'", text);
    return false;
  }
  for (size_t i = 0; i < count; i++) {
    const double t = count > 1 ? (double)i / (double)(count - 1) : 1;
    if (i + 1 == count || !slice)
      out_rates[i] = high;
    else
      out_rates[i] = low_text != NULL ? low * pow(high / low, t) : high / 10;
  }
  return true;
}

/* --- learning-rate finder ------------------------------------------------------------------------------- */

double sweep_rate(double low, double high, int64_t step, int64_t steps) {
  return low * pow(high / low, (double)step / (double)(steps - 1));
}

double smoother_add(Smoother *smoother, double value) {
  smoother->average = smoother->beta * smoother->average + (1 - smoother->beta) * value;
  smoother->count++;
  return smoother_value(smoother);
}

double smoother_value(const Smoother *smoother) {
  if (smoother->count == 0) return NAN;
  return smoother->average / (1 - pow(smoother->beta, (double)smoother->count));
}

/* Slope of the least-squares line through `count` points. */
static double line_slope(const double *x, const double *y, size_t count) {
  double sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0;
  for (size_t i = 0; i < count; i++) {
    sum_x += x[i];
    sum_y += y[i];
  }
  for (size_t i = 0; i < count; i++) {
    const double dx = x[i] - sum_x / (double)count;
    sum_xx += dx * dx;
    sum_xy += dx * (y[i] - sum_y / (double)count);
  }
  return sum_xx > 0 ? sum_xy / sum_xx : 0;
}

bool sweep_suggest(const double *rates, const double *losses, size_t count, SweepSuggestion *out_suggestion) {
  enum { WINDOW = 7 };
  size_t minimum = 0, steepest = 0;
  for (size_t i = 1; i < count; i++)
    if (losses[i] < losses[minimum]) minimum = i;
  double best = 0;
  for (size_t i = 0; i + WINDOW <= minimum + 1; i++) {
    double x[WINDOW];
    for (size_t k = 0; k < WINDOW; k++) x[k] = log10(rates[i + k]);
    const double slope = line_slope(x, losses + i, WINDOW);
    if (slope < best) {
      best = slope;
      steepest = i + WINDOW / 2;
    }
  }
  if (best >= 0) return false;
  *out_suggestion = (SweepSuggestion){steepest, minimum, rates[steepest], rates[minimum] / 10};
  return true;
}
