/* runtime/session/data: data sets of both kinds, damaged and hostile ones. */
#include <math.h>
#include <sys/stat.h>

#include "base/file.h"
#include "data_files.h"

static void check_refused(Fixture *fixture, const DataOptions *options, const char *part) {
  clear_messages(fixture);
  assert_null(data_set_open(options, fixture->diag));
  assert_true(diag_error_count(fixture->diag) > 0);
  check_message_part(fixture, part);
}

/* --- IDX sets -------------------------------------------------------------------------------------- */

static void idx_sets_are_read(void **state) {
  Fixture *fixture = *state;
  write_mnist(fixture);
  DataOptions options = idx_options(fixture);
  options.threads = 3;
  DataSet *set = open_good(fixture, &options);
  check_messages(fixture, "");
  int64_t dims[3];
  data_set_dims(set, dims);
  assert_true(dims[0] == 1 && dims[1] == IDX_SIDE && dims[2] == IDX_SIDE);
  assert_int_equal(data_set_count(set, DATA_TRAIN), IDX_TRAIN);
  assert_int_equal(data_set_count(set, DATA_VALID), IDX_VALID);
  assert_int_equal(data_set_class_count(set), 3);
  assert_string_equal(data_set_class_name(set, 2), "2");
  assert_int_equal(data_set_class_pictures(set, DATA_TRAIN, 0), 17);
  assert_int_equal(data_set_class_pictures(set, DATA_VALID, 2), 6);
  assert_int_equal(data_set_target(set, DATA_TRAIN, 49), 49 % 3);
  assert_string_equal(data_set_picture_name(set, DATA_VALID, 7, fixture->arena),
                      fixture_path(fixture, "t10k-images-idx3-ubyte[7]"));
  DataLoader *loader = data_loader_create(set, &(DataLoaderOptions){.split = DATA_VALID, .batch = 8}, fixture->diag);
  DataBatch batch;
  for (int64_t number = 0; number < 3; number++) {
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    assert_true(batch.epoch == 0 && batch.number == number && batch.count == (number < 2 ? 8 : 4));
    assert_int_equal((uintptr_t)batch.images % 64, 0);
    for (int64_t i = 0; i < batch.count; i++) {
      const int64_t image = number * 8 + i;
      assert_int_equal(batch.indices[i], image);
      assert_int_equal(batch.targets[i], image % 3);
      for (int64_t k = 0; k < IDX_SIDE * IDX_SIDE; k++)
        assert_true(batch.images[i * IDX_SIDE * IDX_SIDE + k] == (float)sample(image, k) / 255.0F);
    }
  }
  assert_true(data_loader_next(loader, &batch, fixture->diag));
  assert_true(batch.epoch == 1 && batch.number == 0);
  data_loader_destroy(loader);
  data_set_close(set);
}

static void idx_sets_without_validation_are_split(void **state) {
  Fixture *fixture = *state;
  write_idx(fixture, "train-images.idx3-ubyte", 3, 30, 5);
  write_idx(fixture, "train-labels-idx1-ubyte.gz", 1, 30, 0);
  const DataOptions options = idx_options(fixture);
  DataSet *set = open_good(fixture, &options);
  assert_int_equal(data_set_count(set, DATA_TRAIN), 24);
  assert_int_equal(data_set_count(set, DATA_VALID), 6);
  data_set_close(set);
}

static void bad_idx_sets_are_refused(void **state) {
  Fixture *fixture = *state;
  write_mnist(fixture);
  DataOptions options = idx_options(fixture);
  options.valid_share = 0.1;
  check_refused(fixture, &options, "has a part of its own for validation");
  options = idx_options(fixture);
  write_idx(fixture, "t10k-labels.idx1-ubyte.gz", 1, IDX_VALID - 1, 0);
  check_refused(fixture, &options, "t10k-labels.idx1-ubyte.gz: error: expected 20 labels, as many as images in ");
  check_message_part(fixture, "t10k-images-idx3-ubyte, found 19\n");
  unlink(fixture_path(fixture, "t10k-labels.idx1-ubyte.gz"));
  check_refused(fixture, &options, "has t10k-images-idx3-ubyte but no t10k-labels-idx1-ubyte\n");
  write_idx(fixture, "t10k-labels-idx1-ubyte", 3, IDX_VALID, 1);
  check_refused(fixture, &options, "IDX: expected labels of one dimension, found 3\n");
  write_idx(fixture, "t10k-labels-idx1-ubyte", 1, IDX_VALID, 0);
  write_idx(fixture, "t10k-images-idx3-ubyte", 3, IDX_VALID, IDX_SIDE + 1);
  check_refused(fixture, &options, "expected images of 6 by 6 pixels, as for training, found 7 by 7\n");
  write_idx(fixture, "t10k-images-idx3-ubyte", 1, IDX_VALID, 0);
  check_refused(fixture, &options, "IDX: expected images of three dimensions, found 1\n");
  write_bytes(fixture, "t10k-images-idx3-ubyte", "", 0);
  write_bytes(fixture, "train-images-idx3-ubyte", "\0\0\x08", 3);
  check_refused(fixture, &options, "train-images-idx3-ubyte: error: IDX: the file ends inside the header\n");
  assert_int_equal(diag_error_count(fixture->diag), 2); /* both at once */
  unlink(fixture_path(fixture, "train-images-idx3-ubyte"));
  unlink(fixture_path(fixture, "t10k-images-idx3-ubyte"));
  unlink(fixture_path(fixture, "t10k-labels-idx1-ubyte"));
  assert_int_equal(truncate(fixture_path(fixture, "train-images-idx3-ubyte.gz"), 100), 0);
  check_refused(fixture, &options, "train-images-idx3-ubyte.gz: error: gzip: the file ends too early\n");
  write_idx(fixture, "train-images-idx3-ubyte", 3, 0, 28);
  write_idx(fixture, "train-labels-idx1-ubyte", 1, 0, 0);
  check_refused(fixture, &options, "train-images-idx3-ubyte: error: expected from 1 to 2147483647 images, found 0\n");
  write_idx(fixture, "train-images-idx3-ubyte", 3, 1, 0);
  check_refused(fixture, &options, "a picture of 0 by 0 pixels");
  /* a class that is never trained */
  write_idx(fixture, "train-images-idx3-ubyte", 3, 2, 4);
  write_idx(fixture, "train-labels-idx1-ubyte", 1, 2, 0);
  write_idx(fixture, "t10k-images-idx3-ubyte", 3, 3, 4);
  write_idx(fixture, "t10k-labels-idx1-ubyte", 1, 3, 0);
  check_refused(fixture, &options, "t10k-images-idx3-ubyte: error: its class '2' is in the validation part only\n");
}

/* The real one, as Debian's package dataset-fashion-mnist installs it. */
static void fashion_mnist_is_read(void **state) {
  Fixture *fixture = *state;
  DataOptions options = data_options_default();
  options.folder = "/usr/share/datasets/fashion-mnist";
  options.normalize = DATA_NORMALIZE_DATASET;
  if (!data_has_mnist(options.folder, fixture->arena)) skip();
  DataSet *set = open_good(fixture, &options);
  assert_int_equal(data_set_count(set, DATA_TRAIN), 60000);
  assert_int_equal(data_set_count(set, DATA_VALID), 10000);
  assert_int_equal(data_set_class_count(set), 10);
  for (int64_t i = 0; i < 10; i++) {
    assert_int_equal(data_set_class_pictures(set, DATA_TRAIN, i), 6000);
    assert_int_equal(data_set_class_pictures(set, DATA_VALID, i), 1000);
  }
  /* the figures that are used for it everywhere: 0.2860, 0.3530 */
  assert_true(fabs(data_set_mean(set)[0] - 0.2860) < 5e-5 && fabs(data_set_deviation(set)[0] - 0.3530) < 5e-5);
  data_set_close(set);
}

/* --- pictures -------------------------------------------------------------------------------------- */

static void folders_give_the_classes(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  write_bytes(fixture, "cat/notes.txt", "x", 1);
  write_bytes(fixture, "cat/.hidden.png", "x", 1);
  DataOptions options = picture_options(fixture);
  options.folder = arena_format(fixture->arena, "%s//", fixture->folder);
  DataSet *set = open_good(fixture, &options);
  check_messages(fixture, "");
  assert_int_equal(data_set_class_count(set), 3);
  assert_string_equal(data_set_class_name(set, 0), "ant");
  assert_string_equal(data_set_class_name(set, 1), "bee");
  assert_string_equal(data_set_class_name(set, 2), "cat");
  assert_int_equal(data_set_count(set, DATA_TRAIN), 20);
  assert_int_equal(data_set_count(set, DATA_VALID), 4);
  const char *last = "";
  for (int64_t i = 0; i < 20; i++) {
    const char *name = data_set_picture_name(set, DATA_TRAIN, i, fixture->arena);
    assert_true(strcmp(last, name) < 0);
    assert_non_null(strstr(name, data_set_class_name(set, data_set_target(set, DATA_TRAIN, i))));
    last = name;
  }
  data_set_close(set);
}

static void patterns_give_the_classes(void **state) {
  Fixture *fixture = *state;
  for (int i = 0; i < 10; i++) write_picture(fixture, name_of(fixture, "", i), 8, 8, i);
  DataOptions options = picture_options(fixture);
  check_refused(fixture, &options, "expected pictures in sub-folders that are named after classes");
  assert_int_equal(diag_error_count(fixture->diag), 10);
  clear_messages(fixture);
  options.label = DATA_LABEL_PATTERN;
  options.pattern = "^(.*)_[0-9]+\\.PNG$";
  DataSet *set = open_good(fixture, &options);
  assert_int_equal(data_set_class_count(set), 2);
  assert_string_equal(data_set_class_name(set, 0), "even");
  data_set_close(set);
  options.pattern = "^(.*)_0[0-6]";
  check_refused(fixture, &options, "odd_07.PNG: error: the file's name does not match the pattern '^(.*)_0[0-6]'\n");
  assert_int_equal(diag_error_count(fixture->diag), 3);
  options.pattern = "^(x)?";
  check_refused(fixture, &options, "does not match the pattern");
  options.pattern = "^(x?)";
  check_refused(fixture, &options, "the name of its class '' is empty\n");
  options.pattern = "^.*_";
  check_refused(fixture, &options, "the pattern '^.*_' has no group in parentheses for the class\n");
  options.pattern = "^(";
  check_refused(fixture, &options, "the pattern '^(' is not a POSIX extended regular expression: ");
  options.pattern = NULL;
  check_refused(fixture, &options, "expected a pattern of 1 to 1000 characters for the classes, found 0\n");
}

static void train_and_valid_folders_are_the_split(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "train");
  make_folder(fixture, "val");
  make_folder(fixture, "val/bee");
  write_picture(fixture, "val/bee/a.png", 8, 8, 1);
  write_picture(fixture, "val/bee/b.png", 8, 8, 2);
  make_folder(fixture, "test");
  write_bytes(fixture, "test/c.png", "not looked at", 13);
  DataOptions options = picture_options(fixture);
  DataSet *set = open_good(fixture, &options);
  check_messages(fixture, "");
  assert_int_equal(data_set_count(set, DATA_TRAIN), 24);
  assert_int_equal(data_set_count(set, DATA_VALID), 2);
  assert_int_equal(data_set_target(set, DATA_VALID, 0), 1);
  data_set_close(set);
  options.valid_count = 3;
  check_refused(fixture, &options, "has a part of its own for validation");
  options.valid_count = 0;
  make_folder(fixture, "val/dog");
  write_picture(fixture, "val/dog/a.png", 8, 8, 1);
  check_refused(fixture, &options, "val/dog/a.png: error: its class 'dog' is in the validation part only\n");
  assert_int_equal(unlink(fixture_path(fixture, "val/dog/a.png")), 0);
  write_picture(fixture, "val/a.png", 8, 8, 1);
  check_refused(fixture, &options, "val/a.png: error: expected pictures in sub-folders");
}

static void splits_follow_their_seed(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  const char *lists[3] = {"", "", ""};
  for (int i = 0; i < 3; i++) {
    options.split_seed = i == 2;
    options.valid_count = i == 1 ? 6 : 0;
    options.valid_share = i == 1 ? -1 : 0.25;
    DataSet *set = open_good(fixture, &options);
    assert_int_equal(data_set_count(set, DATA_VALID), 6);
    assert_int_equal(data_set_count(set, DATA_TRAIN), 18);
    for (int64_t k = 0; k < 6; k++)
      lists[i] =
          arena_format(fixture->arena, "%s %s", lists[i], data_set_picture_name(set, DATA_VALID, k, fixture->arena));
    data_set_close(set);
  }
  assert_string_equal(lists[0], lists[1]);
  assert_string_not_equal(lists[0], lists[2]);
  options.valid_count = 24;
  check_refused(fixture, &options, "24 pictures for validation leave none of 24 for training\n");
  options.valid_count = 0;
  options.valid_share = 0;
  DataSet *set = open_good(fixture, &options);
  assert_int_equal(data_set_count(set, DATA_VALID), 0);
  clear_messages(fixture);
  assert_null(data_loader_create(set, &(DataLoaderOptions){.split = DATA_VALID, .batch = 4}, fixture->diag));
  check_message_part(fixture, "0 pictures for validation make no batch of 4\n");
  data_set_close(set);
}

static void classes_can_be_chosen(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  options.classes = (const char *[]){"cat", "ant"};
  options.class_count = 2;
  DataSet *set = open_good(fixture, &options);
  assert_int_equal(data_set_class_count(set), 2);
  assert_string_equal(data_set_class_name(set, 0), "cat");
  assert_int_equal(data_set_count(set, DATA_TRAIN) + data_set_count(set, DATA_VALID), 16);
  for (int64_t i = 0; i < data_set_count(set, DATA_TRAIN); i++)
    assert_int_equal(data_set_target(set, DATA_TRAIN, i),
                     strstr(data_set_picture_name(set, DATA_TRAIN, i, fixture->arena), "/cat/") ? 0 : 1);
  data_set_close(set);
  options.classes = (const char *[]){"cat", "bea", "cat"};
  options.class_count = 3;
  check_refused(fixture, &options, "has no class 'bea'; did you mean 'bee'?\n");
  check_message_part(fixture, "class 'cat' is listed twice\n");
}

enum { DAMAGED = 7 };

/* What cannot be used: an empty file, no picture, cut off, too large by its header, a link to nothing, a pipe, and 2 GB
 * of nothing. */
static void write_damaged(Fixture *fixture) {
  write_bytes(fixture, "cat/0.png", "", 0);
  write_bytes(fixture, "cat/1.jpg", "no picture", 10);
  write_picture(fixture, "cat/2.png", 40, 40, 3);
  assert_int_equal(truncate(fixture_path(fixture, "cat/2.png"), 60), 0);
  void *data;
  size_t size;
  assert_true(file_read(fixture_path(fixture, "cat/2.png"), 1000, fixture->arena, fixture->diag, &data, &size));
  memset((uint8_t *)data + 17, 0xFF, 3);
  write_bytes(fixture, "cat/3.png", data, size);
  assert_int_equal(symlink("nothing", fixture_path(fixture, "cat/4.png")), 0);
  assert_int_equal(mkfifo(fixture_path(fixture, "cat/5.jpeg"), 0666), 0);
  write_bytes(fixture, "cat/6.png", "", 0);
  assert_int_equal(truncate(fixture_path(fixture, "cat/6.png"), INT64_C(2) << 30), 0);
}

/* Rises, and ends at the total. */
static void follow(void *context, int64_t done, int64_t total) {
  int64_t *last = context;
  assert_true(done >= *last && done <= total && total == 24 + DAMAGED);
  *last = done;
}

static void damaged_pictures_are_left_out_or_refused(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  write_damaged(fixture);
  DataOptions options = picture_options(fixture);
  for (options.threads = 1; options.threads < 4; options.threads++) {
    clear_messages(fixture);
    int64_t last = 0;
    options.progress = follow;
    options.progress_context = &last;
    DataSet *set = open_good(fixture, &options);
    assert_int_equal(last, 24 + DAMAGED);
    assert_int_equal(data_set_count(set, DATA_TRAIN) + data_set_count(set, DATA_VALID), 24);
    assert_int_equal(diag_message_count(fixture->diag), DAMAGED);
    check_message_part(fixture, "cat/0.png: warning: left out: not a PNG or JPEG picture: it is empty\n");
    check_message_part(fixture, "cat/1.jpg: warning: left out: not a PNG or JPEG picture: it starts with 6e 6f");
    check_message_part(fixture, "cat/2.png: warning: left out: PNG: the file ends too early\n");
    check_message_part(fixture, "cat/3.png: warning: left out: a picture of 16777");
    check_message_part(fixture, "cat/4.png: warning: left out: a link that leads nowhere\n");
    check_message_part(fixture, "cat/5.jpeg: warning: left out: is not a regular file\n");
    check_message_part(fixture, "cat/6.png: warning: left out: the file has 2147483648 bytes, more than the limit of ");
    data_set_close(set);
  }
  options.progress = NULL;
  options.threads = 2;
  options.strict = true;
  check_refused(fixture, &options, "cat/2.png: error: PNG: the file ends too early\n");
  assert_int_equal(diag_error_count(fixture->diag), DAMAGED);
  for (int i = 10; i < 40; i++) write_bytes(fixture, name_of(fixture, "bee/x", i), "x", 1);
  check_refused(fixture, &options, "17 more errors not shown\n");
  options.strict = false;
  clear_messages(fixture);
  data_set_close(open_good(fixture, &options));
  check_message_part(fixture, ": warning: 37 damaged pictures are left out in all\n");
  assert_int_equal(diag_message_count(fixture->diag), DIAG_LIMIT + 1);
}

static void hostile_folders_are_refused(void **state) {
  Fixture *fixture = *state;
  DataOptions options = picture_options(fixture);
  check_refused(fixture, &options, "holds neither PNG or JPEG pictures nor IDX files");
  options.folder = fixture_path(fixture, "missing");
  check_refused(fixture, &options, "missing: error: cannot open the folder: No such file or directory\n");
  write_bytes(fixture, "file", "x", 1);
  options.folder = fixture_path(fixture, "file");
  check_refused(fixture, &options, "is a file, expected a folder of pictures or of IDX files\n");
  options.folder = "";
  check_refused(fixture, &options, "expected the name of a folder\n");
  options.folder = fixture->folder;
  make_folder(fixture, "a");
  write_bytes(fixture, "a/0.png", "", 0);
  check_refused(fixture, &options, "no picture is left: all 1 are damaged\n");
  options.height = 0;
  check_refused(fixture, &options, "picture files need a height and a width");
  options.height = 70000;
  options.channels = 2;
  check_refused(fixture, &options, "data: expected height from 0 to 65535, found 70000\n");
  check_message_part(fixture, "data: expected 1 or 3 channels, found 2\n");
  options = picture_options(fixture);
  options.valid_share = NAN;
  check_refused(fixture, &options, "data: expected a share for validation from 0 to below 1, found nan\n");
  options = picture_options(fixture);
  make_folder(fixture, "\xff");
  write_picture(fixture, "\xff/0.png", 8, 8, 0);
  check_refused(fixture, &options, "the name of its class '\\xff' is not UTF-8\n");
}

static void links_are_followed_once(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  assert_int_equal(symlink("../ant/even_04.PNG", fixture_path(fixture, "bee/linked.png")), 0);
  assert_int_equal(symlink("..", fixture_path(fixture, "bee/up")), 0);
  assert_int_equal(symlink("ant", fixture_path(fixture, "wasp")), 0);
  assert_int_equal(symlink("loop", fixture_path(fixture, "loop")), 0);
  const DataOptions options = picture_options(fixture);
  DataSet *set = open_good(fixture, &options);
  check_messages(fixture,
                 arena_format(fixture->arena, "%s/bee/up: warning: a link to a folder that it lies in: not followed\n",
                              fixture->folder));
  assert_int_equal(data_set_class_count(set), 4);
  assert_int_equal(data_set_count(set, DATA_TRAIN) + data_set_count(set, DATA_VALID), 24 + 1 + 8);
  data_set_close(set);
  char path[400] = "";
  for (int depth = 0; depth < 40; depth++) {
    strcat(path, depth ? "/d" : "d");
    make_folder(fixture, path);
  }
  check_refused(fixture, &options, "lies more than 32 folders deep\n");
}

/* --- what pictures become -------------------------------------------------------------------------- */

static void pictures_become_what_run_makes_of_them(void **state) {
  Fixture *fixture = *state;
  make_folder(fixture, "a");
  static const int32_t sizes[][2] = {{9, 8}, {30, 11}, {7, 21}, {3, 4}, {7, 6}, {64, 64}};
  for (int i = 0; i < 6; i++)
    write_picture(fixture, arena_format(fixture->arena, "a/%d.png", i), sizes[i][0], sizes[i][1], i);
  DataOptions options = picture_options(fixture);
  options.valid_share = 0;
  for (int variant = 0; variant < 24; variant++) {
    options.channels = variant < 12 ? 3 : 1;
    options.normalize = variant < 12 ? DATA_NORMALIZE_IMAGENET : DATA_NORMALIZE_GIVEN;
    options.mean[0] = 0.485;
    options.deviation[0] = 0.229;
    options.resize = (const int64_t[]){0, 3, 10}[variant % 3];
    options.cache_bytes = variant / 3 % 2 ? 1000 : 0;
    options.trust = variant / 6 % 2;
    DataSet *set = open_good(fixture, &options);
    DataLoader *loader = data_loader_create(set, &(DataLoaderOptions){.batch = 6}, fixture->diag);
    DataBatch batch;
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    const float *at = batch.images;
    for (int i = 0; i < 6; i++) {
      Picture picture;
      Tensor tensor;
      const char *path = data_set_picture_name(set, DATA_TRAIN, i, fixture->arena);
      assert_true(picture_read(path, fixture->arena, fixture->diag, &picture));
      const double fit = fmax(7.0 / picture.width, 6.0 / picture.height);
      const double scale = fmax(fit, (double)options.resize / fmin(picture.width, picture.height));
      picture = picture_resize(&picture, (int32_t)fmax(7, round(picture.width * scale)),
                               (int32_t)fmax(6, round(picture.height * scale)), fixture->arena);
      picture = picture_crop_centre(&picture, 7, 6, fixture->arena);
      assert_true(picture_to_tensor(&picture, "t", options.channels, fixture->arena, fixture->diag, &tensor));
      static const float mean[] = {0.485F, 0.456F, 0.406F}, deviation[] = {0.229F, 0.224F, 0.225F};
      for (int64_t k = 0; k < options.channels * 42; k++)
        assert_true(*at++ == (((const float *)tensor.data)[k] - mean[k / 42]) / deviation[k / 42]);
    }
    data_loader_destroy(loader);
    data_set_close(set);
  }
}

static void normalisation_measures_the_training_pictures(void **state) {
  Fixture *fixture = *state;
  write_mnist(fixture);
  DataOptions options = idx_options(fixture);
  options.normalize = DATA_NORMALIZE_DATASET;
  options.channels = 3;
  for (int pass = 0; pass < 2; pass++) {
    options.resize = pass ? 9 : 0;
    DataSet *set = open_good(fixture, &options);
    const DataLoaderOptions all = {.batch = IDX_TRAIN};
    DataLoader *loader = data_loader_create(set, &all, fixture->diag);
    DataBatch batch;
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    enum { PLANE = IDX_SIDE * IDX_SIDE };
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < IDX_TRAIN; i++) {
      for (int64_t k = 0; k < PLANE; k++) {
        const float value = batch.images[i * 3 * PLANE + k];
        sum += value;
        squares += (double)value * value;
        assert_true(batch.images[(i * 3 + 1) * PLANE + k] == value && batch.images[(i * 3 + 2) * PLANE + k] == value);
      }
    }
    const double count = IDX_TRAIN * PLANE;
    /* exact for the whole picture, about right for the middle of a larger one */
    const double tolerance = pass ? 0.3 : 1e-5;
    assert_true(fabs(sum / count) < tolerance && fabs(squares / count - 1) < tolerance);
    data_loader_destroy(loader);
    data_set_close(set);
  }
  options.channels = 1;
  options.resize = 0;
  options.normalize = DATA_NORMALIZE_IMAGENET;
  check_refused(fixture, &options, "ImageNet's mean and deviation are for 3 channels, but the model has 1\n");
  options.normalize = DATA_NORMALIZE_GIVEN;
  options.mean[0] = 0.5;
  check_refused(fixture, &options, "expected a finite mean and a positive deviation for channel 0, found 0.5 and 0\n");
  options.deviation[0] = 0.25;
  DataSet *set = open_good(fixture, &options);
  assert_true(data_set_mean(set)[0] == 0.5 && data_set_deviation(set)[0] == 0.25);
  data_set_close(set);
}

static void damaged_pictures_are_not_measured(void **state) {
  Fixture *fixture = *state;
  DataOptions options = picture_options(fixture);
  options.normalize = DATA_NORMALIZE_DATASET;
  options.valid_share = 0;
  write_pictures(fixture, "");
  DataSet *sets[2] = {open_good(fixture, &options), NULL};
  write_damaged(fixture);
  options.trust = true; /* which measuring overrides */
  sets[1] = open_good(fixture, &options);
  assert_int_equal(diag_message_count(fixture->diag), DAMAGED);
  for (int channel = 0; channel < 3; channel++) {
    assert_true(data_set_mean(sets[0])[channel] == data_set_mean(sets[1])[channel]);
    assert_true(data_set_deviation(sets[0])[channel] == data_set_deviation(sets[1])[channel]);
  }
  data_set_close(sets[0]);
  data_set_close(sets[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(idx_sets_are_read),
      fixture_test(idx_sets_without_validation_are_split),
      fixture_test(fashion_mnist_is_read),
      fixture_test(bad_idx_sets_are_refused),
      fixture_test(folders_give_the_classes),
      fixture_test(patterns_give_the_classes),
      fixture_test(train_and_valid_folders_are_the_split),
      fixture_test(splits_follow_their_seed),
      fixture_test(classes_can_be_chosen),
      fixture_test(damaged_pictures_are_left_out_or_refused),
      fixture_test(hostile_folders_are_refused),
      fixture_test(links_are_followed_once),
      fixture_test(pictures_become_what_run_makes_of_them),
      fixture_test(normalisation_measures_the_training_pictures),
      fixture_test(damaged_pictures_are_not_measured),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
