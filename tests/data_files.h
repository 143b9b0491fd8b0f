/* Data sets for tests, made in the fixture's folder. */
#ifndef KILN_TESTS_DATA_FILES_H
#define KILN_TESTS_DATA_FILES_H

#include "session/data.h"
#include "support.h"

/* Without fsync, which would be most of the time that the tests take. */
void write_bytes(Fixture *fixture, const char *name, const void *data, size_t size);
void make_folder(Fixture *fixture, const char *name);

/* An IDX file of `count` labels i mod 3 (rank 1) or of images (rank 3) whose values are sample(image, place);
 * compressed if the name ends in .gz. */
void write_idx(Fixture *fixture, const char *name, int rank, int64_t count, int64_t side);
uint8_t sample(int64_t image, int64_t at);
/* The four files of MNIST. */
enum { IDX_TRAIN = 50, IDX_VALID = 20, IDX_SIDE = 6 };
void write_mnist(Fixture *fixture);

/* A PNG file; gray, RGB or RGBA by its number. */
void write_picture(Fixture *fixture, const char *name, int32_t width, int32_t height, int32_t number);
/* PREFIXeven_04.PNG */
const char *name_of(Fixture *fixture, const char *prefix, int number);
/* 24 pictures of several sizes in folders ant, bee and cat (number mod 3 is 1, 2, 0) of `root`, "" for the fixture's.
 */
void write_pictures(Fixture *fixture, const char *root);

/* Crops of 7 by 6 pixels. */
DataOptions picture_options(Fixture *fixture);
DataOptions idx_options(Fixture *fixture);
/* Fails the test where the set is refused. */
DataSet *open_good(Fixture *fixture, const DataOptions *options);

#endif
