/* What the files of the data side share: a data set from the inside. */
#ifndef KILN_RUNTIME_SESSION_DATA_INTERNAL_H
#define KILN_RUNTIME_SESSION_DATA_INTERNAL_H

#include <stdatomic.h>

#include "data.h"
#include "data_random.h"

enum { DATA_SPLITS = 2 };

/* Items are counted in 32 bits. */
#define DATA_MAX_ITEMS UINT32_C(0x7fffffff)

/* The part of the folder that a picture was found in. */
typedef enum DataPart { PART_TRAIN, PART_VALID, PART_ANY } DataPart;

/* A labelled picture. */
typedef struct DataItem {
  const char *path;      /* file; for IDX files the images' */
  int64_t number;        /* in an IDX file; −1: a picture file */
  const char *label;     /* name of the class */
  uint32_t class_number; /* of `label` */
  DataPart part;
  Picture source;     /* of an IDX file */
  Picture ready;      /* resized and converted, if it is kept: pixels NULL otherwise */
  const char *damage; /* why it cannot be used, or NULL */
} DataItem;

struct DataSet {
  Arena *arena; /* everything, and the arenas of the threads that opened it */
  DataOptions options;
  int32_t channels, height, width;
  const char **class_names;
  size_t class_count;
  DataItem *items; /* sorted by path; IDX: training images, then the others */
  size_t item_count;
  uint32_t *split[DATA_SPLITS]; /* indices into items, ascending */
  uint32_t *split_targets[DATA_SPLITS];
  size_t split_count[DATA_SPLITS];
  int64_t *class_pictures[DATA_SPLITS];
  double mean[AUGMENT_CHANNELS], deviation[AUGMENT_CHANNELS];
  float table[AUGMENT_CHANNELS][256]; /* a sample, normalised */
  const atomic_bool *cancelled;       /* while it is opened: the result is not wanted any more */
};

/* --- data_folder.c, data_mnist.c: items and classes; false after reporting ------------- */

/* Picture files in folders, sorted by path. */
bool data_find_pictures(DataSet *set, Diag *diag);
/* What data_has_mnist() has found. Training images come first. */
bool data_find_mnist(DataSet *set, Diag *diag);
/* Adds all messages of one collector to another. */
void data_copy_messages(const Diag *from, Diag *to);

/* --- data_prepare.c ---------------------------------------------------------------------------------- */

/* Decodes (or takes the IDX image), resizes so that the crop fits, and converts the channels: RGB to gray if the set
 * is gray; gray stays gray. The result lives in `scratch`, or is the item's own. False after reporting. */
bool data_prepare(const DataSet *set, const DataItem *item, Arena *scratch, Diag *diag, Picture *out_picture);
/* The same for all items, by options.threads threads: sets `damage`, and keeps pictures while cache_bytes last. Into
 * out_sums, when it is not NULL, go for every item and channel its sums of samples and squares and (last) pixels. */
typedef struct DataSums {
  uint64_t sum[AUGMENT_CHANNELS], squares[AUGMENT_CHANNELS], pixels;
} DataSums;
void data_prepare_all(DataSet *set, DataSums *out_sums);

/* Calls work(context, index, thread) for all indices below `count`, on at most `threads` threads (the caller's
 * included, which is number 0), in any order. Signals are for the caller's thread. */
void data_parallel(int64_t threads, size_t count, void (*work)(void *context, size_t index, size_t thread),
                   void *context);

#endif
