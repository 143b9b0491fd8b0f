/* Options of the verbs that read data sets and change pictures. */
#ifndef KILN_CLI_DATA_OPTIONS_H
#define KILN_CLI_DATA_OPTIONS_H

#include "common.h"
#include "session/data.h"

typedef struct DataCommand {
  const char *folder, *pattern, *classes, *valid, *normalize;
  int64_t resize, split_seed, cache_megabytes;
  int64_t workers; /* −1: not said */
  bool strict, trust;
} DataCommand;

/* Initial value. */
#define DATA_COMMAND_DEFAULT \
  (DataCommand) { .cache_megabytes = 1024, .workers = -1 }

/* Rows for the option tables; the list ends in a comma. */
#define DATA_OPTIONS(d)                                                                                                 \
  {"data", 0, OPTION_TEXT, &(d).folder, "DIR", "IDX files (MNIST) or pictures in folders", 0, 0},                       \
      {"classes", 0, OPTION_TEXT, &(d).classes, "A,B,C", "only these classes, numbered in this order", 0, 0},           \
      {"pattern", 0, OPTION_TEXT, &(d).pattern, "REGEX", "class: group 1 in the file's name (default: its folder)",     \
       0,         0},                                                                                                   \
      {"valid", 0, OPTION_TEXT, &(d).valid, "P", "share (0.2) or number (500) of pictures for validation", 0, 0},       \
      {"split-seed", 0, OPTION_INT, &(d).split_seed, "S", "which pictures those are (default: 0)", 0, INT64_MAX},       \
      {"resize", 0, OPTION_INT, &(d).resize, "N", "shorter side before the crop (default: the crop's size)", 1, 65535}, \
      {"normalize", 0,                                                                                                  \
       OPTION_TEXT, &(d).normalize,                                                                                     \
       "HOW",       "none, imagenet, dataset (by the training pictures) or MEANS/STDS",                                 \
       0,           0},                                                                                                 \
      {"strict", 0, OPTION_FLAG, &(d).strict, NULL, "damaged pictures are errors (default: left out)", 0, 0},           \
      {"trust", 0, OPTION_FLAG, &(d).trust, NULL, "do not decode all pictures beforehand", 0, 0},                       \
      {"cache", 0,        OPTION_INT, &(d).cache_megabytes, "MB", "decoded pictures kept in memory (default: 1024)",    \
       0,       INT32_MAX},                                                                                             \
      {"workers", 0,  OPTION_INT, &(d).workers, "N", "threads that prepare batches (default: 1 if a core is left)",     \
       0,         256},

/* Rows for the augmentation, a text for augment_read(). */
#define AUGMENT_OPTION(target) \
  {"augment", 0, OPTION_TEXT, &(target), "LIST", "none, default, or e.g. flip,rotate=10,zoom=1.1", 0, 0},

/* What `--augment` may hold, for descriptions. */
#define AUGMENT_HELP                                                                                                 \
  "--augment is none, or a list of: default (flip, crop, rotate=10, zoom=1.1, warp=0.2, light=0.2, p=0.75), flip,\n" \
  "dihedral, crop (at random), rotate=DEGREES, zoom=MAX, warp=MAX, light=MAX, p=PROBABILITY of each change,\n"       \
  "pad=reflect|border|zeros. Later words replace earlier ones: default,rotate=30."

/* Fills options for data_set_open; the model's dimensions are left for the caller. Reports usage errors. */
bool data_command_read(Tool *tool, const DataCommand *command, DataOptions *out_options);
/* How many threads are to prepare batches while `busy` others compute: as asked for, or one if a processor is left. */
int64_t data_command_workers(const DataCommand *command, int64_t busy);
/* NULL means none. */
bool augment_read(Tool *tool, const char *text, Augment *out_augment);

#endif
