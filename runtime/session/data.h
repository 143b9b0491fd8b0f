/* Labelled pictures for training: data sets on disk, and loaders that make batches of them.
 *
 * A data set is a folder of one of two kinds:
 *   - IDX files as of MNIST, gzip or not: train-images-idx3-ubyte, train-labels-idx1-ubyte, and for validation
 *     t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte;
 *   - PNG and JPEG pictures, in sub-folders of any depth.
 * Pictures are resized so that the shorter side has `resize` pixels, and height × width of them are cropped: in the
 * middle for validation, at random (with an Augment) for training.
 *
 * What a loader gives is a function of the data, its options and the position (epoch, batch) alone: not of the number
 * of workers, of timing, or of the order in which the file system lists a folder. */
#ifndef KILN_RUNTIME_SESSION_DATA_H
#define KILN_RUNTIME_SESSION_DATA_H

#include "core/pool.h"
#include "data_augment.h"

typedef enum DataSplit { DATA_TRAIN, DATA_VALID } DataSplit;

/* What a picture's class is (IDX files bring their own labels). */
typedef enum DataLabel {
  DATA_LABEL_FOLDER, /* the name of the folder that it lies in */
  DATA_LABEL_PATTERN /* group 1 of a regular expression on the file's name */
} DataLabel;

/* Per channel, of sample / 255. */
typedef enum DataNormalize {
  DATA_NORMALIZE_NONE,
  DATA_NORMALIZE_IMAGENET, /* mean 0.485 0.456 0.406, deviation 0.229 0.224 0.225; three channels */
  DATA_NORMALIZE_DATASET,  /* mean and deviation of the training pictures */
  DATA_NORMALIZE_GIVEN     /* `mean` and `deviation` */
} DataNormalize;

/* Start from data_options_default(). Everything pointed to stays the caller's and valid until the set is open. */
typedef struct DataOptions {
  const char *folder;

  /* The model's input; 1 or 3 channels. 0 means IDX files' own; pictures in files need height and width, and get 3
   * channels by default. Gray and RGB are converted into each other as picture_to_tensor does, alpha is dropped. */
  int64_t channels, height, width;
  int64_t resize; /* shorter side before the crop; 0: as small as the crop allows. IDX pictures too */

  DataLabel label;
  const char *pattern; /* POSIX extended regular expression, e.g. "^(.*)_[0-9]+\\.jpg$" */
  /* Only these classes, numbered in this order; none: all, sorted by name (IDX: by number). */
  const char *const *classes;
  size_t class_count;

  /* How many pictures are for validation, where the folder has no part of its own for them (IDX: t10k files; pictures:
   * sub-folders train and valid, val or test): a share, or a count if that is not 0. Left at the default −1 and 0,
   * a fifth. Which ones depends on `split_seed`. */
  double valid_share;
  int64_t valid_count;
  uint64_t split_seed;

  bool strict; /* refuse a set with damaged pictures, instead of leaving them out with a warning for each */
  /* Do not decode all pictures on opening (but for DATA_NORMALIZE_DATASET): none is kept, and a damaged one stops the
   * loader. */
  bool trust;
  int64_t cache_bytes; /* decoded and resized pictures kept in memory (default 1 GiB); IDX files are always */

  DataNormalize normalize;
  double mean[AUGMENT_CHANNELS], deviation[AUGMENT_CHANNELS];
  int64_t threads; /* for opening; at least 1 */
  /* Called now and then while all pictures are decoded, and at the end with done = total; by the thread that opens. */
  void (*progress)(void *context, int64_t done, int64_t total);
  void *progress_context;
} DataOptions;

DataOptions data_options_default(void);
/* Whether the folder has MNIST's training images, whose size need not be given. */
bool data_has_mnist(const char *folder, Arena *scratch);

/* Does not change once open; any number of loaders and threads may use it. Owns its memory. */
typedef struct DataSet DataSet;

/* Finds, checks and decodes. NULL after reporting; the first damaged pictures (at most DIAG_LIMIT) are named. */
DataSet *data_set_open(const DataOptions *options, Diag *diag);
/* The same on a thread of its own, for example while the model is compiled: finish waits for it, reports, frees the
 * opening and gives the set or NULL. Every begin needs its finish. begin gives NULL when out of memory, and finish then
 * NULL after reporting that. `options` itself is copied, what it points to is not. */
typedef struct DataOpening DataOpening;
DataOpening *data_set_open_begin(const DataOptions *options);
/* Whether there is nothing to wait for. */
bool data_set_open_done(const DataOpening *opening);
/* Instead of finish: ends it soon, without a set or a message. */
void data_set_open_cancel(DataOpening *opening);
DataSet *data_set_open_finish(DataOpening *opening, Diag *diag);
/* All loaders of the set are destroyed before. NULL is allowed. */
void data_set_close(DataSet *set);

int64_t data_set_count(const DataSet *set, DataSplit split);
int64_t data_set_class_count(const DataSet *set);
/* IDX classes are called "0", "1", …. */
const char *data_set_class_name(const DataSet *set, int64_t number);
/* Pictures of a class in a split. */
int64_t data_set_class_pictures(const DataSet *set, DataSplit split, int64_t number);
/* Of batches: channels, height, width. */
void data_set_dims(const DataSet *set, int64_t out_dims[3]);
/* What pictures are normalised by; arrays of as many as channels. 0 and 1 when they are not. */
const double *data_set_mean(const DataSet *set);
const double *data_set_deviation(const DataSet *set);
/* The file of picture `index` of a split, or "FILE[number]" of an IDX file; in `arena`. */
const char *data_set_picture_name(const DataSet *set, DataSplit split, int64_t index, Arena *arena);
int64_t data_set_target(const DataSet *set, DataSplit split, int64_t index);

typedef struct DataLoaderOptions {
  DataSplit split;
  int64_t batch;          /* pictures, at least 1 */
  bool shuffle;           /* a new order in every epoch */
  bool drop_last;         /* leave out the last batch of an epoch when it is not full */
  const Augment *augment; /* copied; NULL: none, centre crop */
  uint64_t seed;          /* of order and augmentation */
  int64_t workers; /* threads that work ahead; 0: data_loader_next does the work. Fewer when they cannot be started */
  int64_t ahead;   /* batches kept ready; 0: 3, fewer if they are large */
} DataLoaderOptions;

/* Makes one batch after the other, without end: the last batch of an epoch is followed by the first of the next. One
 * thread uses a loader at a time. */
typedef struct DataLoader DataLoader;

/* Stands at the first batch of epoch 0. NULL after reporting. */
DataLoader *data_loader_create(const DataSet *set, const DataLoaderOptions *options, Diag *diag);
/* From now on data_loader_next fills batches with the threads of `pool`, of which this call is the one user meanwhile:
 * for a loader without workers, whose caller has such threads idle. With workers, or without a pool (NULL), nothing
 * changes. False after reporting the end of memory. */
bool data_loader_share(DataLoader *loader, Pool *pool, Diag *diag);
/* At any time; waits for the pictures being decoded. NULL is allowed. */
void data_loader_destroy(DataLoader *loader);
/* Batches of an epoch, at least 1. */
int64_t data_loader_batches(const DataLoader *loader);

/* Belongs to the loader and stays as it is until the next call for this loader. */
typedef struct DataBatch {
  int64_t epoch, number;   /* the position, from 0 */
  int64_t count;           /* pictures: as asked for, or fewer in the last batch of an epoch */
  const float *images;     /* [count, channels, height, width], aligned to 64 */
  const int64_t *targets;  /* [count] */
  const uint32_t *indices; /* [count], of the split */
} DataBatch;

/* False after reporting a picture that cannot be read (any more) or that memory has run out; the position is then
 * unchanged. */
bool data_loader_next(DataLoader *loader, DataBatch *out_batch, Diag *diag);
/* The next batch is `batch` (below data_loader_batches) of `epoch` (below 2^32). With the position after the last batch
 * used, a resumed run goes on as if it had not stopped. */
void data_loader_seek(DataLoader *loader, int64_t epoch, int64_t batch);

#endif
