#include "data_options.h"

#include <string.h>

#include "core/processors.h"
#include "progress.h"

/* --- data sets ------------------------------------------------------------------------------------- */

/* Splits at commas. */
static const char *const *split_list(Tool *tool, const char *text, size_t *out_count) {
  size_t count = 1;
  for (const char *at = text; *at; at++) count += *at == ',';
  const char **items = arena_array(tool->arena, count, const char *);
  for (size_t i = 0; i < count; i++) {
    const size_t length = strcspn(text, ",");
    items[i] = arena_string_n(tool->arena, text, length);
    text += length + (text[length] == ',');
  }
  *out_count = count;
  return items;
}

/* "0.2" is a share, "500" a number of pictures. */
static bool read_valid(Tool *tool, const char *text, DataOptions *options) {
  double share;
  int64_t count;
  if (parse_int(text, &count) && count > 0) {
    options->valid_count = count;
    return true;
  }
  if (parse_double(text, &share) && share >= 0 && share < 1) {
    options->valid_share = share;
    return true;
  }
  tool_usage_error(tool, "--valid: expected a share from 0 to below 1 or a number of pictures, found '%s'", text);
  return false;
}

/* "a,b,c": as many numbers as channels, or one for all of them. */
static bool read_numbers(Tool *tool, const char *text, double out_numbers[AUGMENT_CHANNELS]) {
  size_t count;
  const char *const *items = split_list(tool, text, &count);
  if (count > AUGMENT_CHANNELS) return false;
  for (size_t i = 0; i < AUGMENT_CHANNELS; i++)
    if (!parse_double(items[i < count ? i : 0], &out_numbers[i])) return false;
  return true;
}

static bool read_normalize(Tool *tool, const char *text, DataOptions *options) {
  static const struct {
    const char *name;
    DataNormalize value;
  } known[] = {
      {"none", DATA_NORMALIZE_NONE}, {"imagenet", DATA_NORMALIZE_IMAGENET}, {"dataset", DATA_NORMALIZE_DATASET}};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    if (strcmp(text, known[i].name) != 0) continue;
    options->normalize = known[i].value;
    return true;
  }
  const char *slash = strchr(text, '/');
  options->normalize = DATA_NORMALIZE_GIVEN;
  if (slash && read_numbers(tool, arena_string_n(tool->arena, text, (size_t)(slash - text)), options->mean) &&
      read_numbers(tool, slash + 1, options->deviation))
    return true;
  tool_usage_error(
      tool, "--normalize: expected none, imagenet, dataset or MEANS/DEVIATIONS such as 0.286/0.353, found '%s'", text);
  return false;
}

/* Not for sets that are ready at once. */
typedef struct OpeningBar {
  Progress progress;
  double first; /* time of the first call; 0: none yet */
} OpeningBar;

static void show_opening(void *context, int64_t done, int64_t total) {
  static const double patience = 0.5;
  OpeningBar *bar = context;
  const double now = seconds_now();
  if (bar->first == 0) bar->first = now;
  if (done < total && now - bar->first > patience) progress_show(&bar->progress, "pictures", done, total, "");
  if (done == total) progress_clear(&bar->progress);
}

/* Little else runs while a set is opened, so it may have all processors. */
static int64_t opening_threads(int64_t workers) {
  enum { LIMIT = 32 };
  const int64_t count = processors_usable();
  return count < workers ? workers : count < LIMIT ? count : LIMIT;
}

int64_t data_command_workers(const DataCommand *command, int64_t busy) {
  return command->workers >= 0 ? command->workers : (int64_t)processors_usable() > busy;
}

bool data_command_read(Tool *tool, const DataCommand *command, DataOptions *out_options) {
  DataOptions options = data_options_default();
  options.folder = command->folder;
  options.resize = command->resize;
  options.split_seed = (uint64_t)command->split_seed;
  options.strict = command->strict;
  options.trust = command->trust;
  options.cache_bytes = command->cache_megabytes << 20;
  options.threads = opening_threads(command->workers);
  OpeningBar *bar = arena_new(tool->arena, OpeningBar);
  progress_begin(&bar->progress);
  options.progress = show_opening;
  options.progress_context = bar;
  if (command->pattern) {
    options.label = DATA_LABEL_PATTERN;
    options.pattern = command->pattern;
  }
  if (command->classes) options.classes = split_list(tool, command->classes, &options.class_count);
  if (command->valid && !read_valid(tool, command->valid, &options)) return false;
  if (command->normalize && !read_normalize(tool, command->normalize, &options)) return false;
  *out_options = options;
  return true;
}

/* --- augmentation ---------------------------------------------------------------------------------- */

/* "reflect" and so on. */
static bool read_padding(const char *text, AugmentPadding *out_padding) {
  static const char *const names[] = {
      [AUGMENT_REFLECT] = "reflect", [AUGMENT_BORDER] = "border", [AUGMENT_ZEROS] = "zeros"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    if (strcmp(text, names[i]) != 0) continue;
    *out_padding = (AugmentPadding)i;
    return true;
  }
  return false;
}

/* One word of the list, with what follows its '=' or NULL. */
static bool read_change(const char *name, const char *value, Augment *augment) {
  struct {
    const char *name;
    double *target;
  } numbers[] = {{"rotate", &augment->max_rotate},
                 {"zoom", &augment->max_zoom},
                 {"warp", &augment->max_warp},
                 {"light", &augment->max_lighting},
                 {"p", &augment->affine_probability}};
  struct {
    const char *name;
    bool *target;
  } flags[] = {{"flip", &augment->flip}, {"dihedral", &augment->dihedral}, {"crop", &augment->random_crop}};
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    if (value && strcmp(name, numbers[i].name) == 0) return parse_double(value, numbers[i].target);
  for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
    if (!value && strcmp(name, flags[i].name) == 0) return *flags[i].target = true;
  if (!value && strcmp(name, "default") == 0) {
    *augment = augment_default();
    return true;
  }
  return value && strcmp(name, "pad") == 0 && read_padding(value, &augment->padding);
}

bool augment_read(Tool *tool, const char *text, Augment *out_augment) {
  *out_augment = (Augment){0};
  if (!text || strcmp(text, "none") == 0) return true;
  Augment augment = {.affine_probability = 0.75};
  size_t count;
  const char *const *words = split_list(tool, text, &count);
  for (size_t i = 0; i < count; i++) {
    const char *equals = strchr(words[i], '=');
    const char *name = equals ? arena_string_n(tool->arena, words[i], (size_t)(equals - words[i])) : words[i];
    const bool good = read_change(name, equals ? equals + 1 : NULL, &augment);
    augment.lighting_probability = augment.affine_probability;
    if (good) continue;
    tool_usage_error(tool,
                     "--augment: expected none, default, flip, dihedral, crop, rotate=, zoom=, warp=, light=, p= or "
                     "pad=reflect|border|zeros, found '%s'",
                     words[i]);
    return false;
  }
  if (!augment_check(&augment, tool->diag)) {
    tool->wrong_usage = true;
    return false;
  }
  *out_augment = augment;
  return true;
}
