#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common.h"

enum { BAR_WIDTH = 14, LINE_MAX_WIDTH = 240 };

void progress_begin(Progress *progress) {
  *progress = (Progress){.shown = isatty(STDERR_FILENO) != 0, .started = seconds_now()};
}

const char *duration_text(double seconds, char *buffer, int size) {
  const long long whole = llround(seconds);
  if (!(seconds >= 0) || seconds > 1e9)
    snprintf(buffer, (size_t)size, "?");
  else if (seconds < 59.95)
    snprintf(buffer, (size_t)size, "%.1f s", seconds);
  else if (whole < 3600)
    snprintf(buffer, (size_t)size, "%lld:%02lld", whole / 60, whole % 60);
  else
    snprintf(buffer, (size_t)size, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
  return buffer;
}

static int terminal_width(void) {
  struct winsize size;
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
  return size.ws_col < LINE_MAX_WIDTH ? size.ws_col : LINE_MAX_WIDTH - 1;
}

void progress_show(Progress *progress, const char *left, int64_t done, int64_t total, const char *right) {
  const double now = seconds_now();
  if (!progress->shown || (progress->drawn && now - progress->last < 0.1) || total <= 0) return;
  if (!progress->drawn && progress->last == 0) {
    progress->first = done;
    progress->started = now;
  }
  char bar[BAR_WIDTH + 1], line[LINE_MAX_WIDTH], remaining[32];
  const int filled = (int)(done * BAR_WIDTH / total);
  for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '=' : i == filled ? '>' : ' ';
  bar[BAR_WIDTH] = '\0';
  const int64_t since = done - progress->first;
  const double rest = since > 0 ? (now - progress->started) * (double)(total - done) / (double)since : NAN;
  snprintf(line, sizeof line, "%s [%s] %3d %%  %s  %s left", left, bar, (int)(done * 100 / total), right,
           duration_text(rest, remaining, sizeof remaining));
  fprintf(stderr, "\r%.*s\033[K", terminal_width() - 1, line);
  fflush(stderr);
  progress->drawn = true;
  progress->last = now;
}

void progress_clear(Progress *progress) {
  if (!progress->drawn) return;
  fputs("\r\033[K", stderr);
  fflush(stderr);
  progress->drawn = false;
}
