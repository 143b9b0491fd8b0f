/* runtime/session/data: loaders give the same batches whatever the workers, from any position. */
#include "data_files.h"

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size) { /* FNV-1a */
  for (size_t i = 0; i < size; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * UINT64_C(1099511628211);
  return hash;
}

static uint64_t hash_batch(const DataSet *set, const DataBatch *batch) {
  int64_t dims[3];
  data_set_dims(set, dims);
  const size_t count = (size_t)batch->count;
  uint64_t hash = hash_bytes(UINT64_C(14695981039346656037), batch->images,
                             count * (size_t)(dims[0] * dims[1] * dims[2]) * sizeof(float));
  hash = hash_bytes(hash, batch->targets, count * sizeof(int64_t));
  hash = hash_bytes(hash, batch->indices, count * sizeof(uint32_t));
  const int64_t position[] = {batch->epoch, batch->number, batch->count};
  return hash_bytes(hash, position, sizeof position);
}

enum { STEPS = 23 };

static void run(Fixture *fixture, const DataSet *set, const DataLoaderOptions *options, uint64_t hashes[STEPS]) {
  DataLoader *loader = data_loader_create(set, options, fixture->diag);
  assert_non_null(loader);
  for (int i = 0; i < STEPS; i++) {
    DataBatch batch;
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    hashes[i] = hash_batch(set, &batch);
  }
  data_loader_destroy(loader);
}

/* The same batches for all numbers of workers, whether pictures are kept or not. */
static void check_workers(Fixture *fixture, DataOptions options, const Augment *augment) {
  static const int64_t workers[] = {0, 1, 2, 5};
  uint64_t expected[STEPS], found[STEPS];
  for (int cached = 0; cached < 2; cached++) {
    options.cache_bytes = cached ? 1 << 20 : 0;
    DataSet *set = open_good(fixture, &options);
    for (int i = 0; i < 4; i++) {
      const DataLoaderOptions loading = {
          .batch = 6, .shuffle = true, .augment = augment, .seed = 3, .workers = workers[i], .ahead = i == 2 ? 7 : 0};
      run(fixture, set, &loading, cached || i ? found : expected);
      if (cached || i) assert_memory_equal(found, expected, sizeof found);
    }
    const DataLoaderOptions other = {.batch = 6, .shuffle = true, .augment = augment, .seed = 4};
    run(fixture, set, &other, found);
    assert_memory_not_equal(found, expected, sizeof found);
    data_set_close(set);
  }
}

static void batches_do_not_depend_on_workers(void **state) {
  Fixture *fixture = *state;
  const Augment augment = augment_default();
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  options.resize = 8;
  check_workers(fixture, options, NULL);
  check_workers(fixture, options, &augment);
  write_mnist(fixture);
  check_workers(fixture, idx_options(fixture), NULL);
  check_workers(fixture, idx_options(fixture), &augment);
}

/* Eight batches an epoch. */
static void check_seeking(Fixture *fixture, const DataSet *set, int64_t batch_size) {
  const Augment augment = augment_default();
  for (int64_t workers = 0; workers < 4; workers++) {
    const DataLoaderOptions loading = {.batch = batch_size, .shuffle = true, .augment = &augment, .workers = workers};
    uint64_t expected[STEPS];
    run(fixture, set, &loading, expected);
    DataLoader *loader = data_loader_create(set, &loading, fixture->diag);
    assert_int_equal(data_loader_batches(loader), 8);
    static const int places[] = {22, 0, 7, 8, 3, 15, 16, 2};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
      data_loader_seek(loader, places[i] / 8, places[i] % 8);
      for (int k = places[i]; k < STEPS && k < places[i] + 4; k++) {
        DataBatch batch;
        assert_true(data_loader_next(loader, &batch, fixture->diag));
        assert_true(hash_batch(set, &batch) == expected[k]);
      }
    }
    data_loader_destroy(loader);
  }
}

static void seeking_equals_running_through(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  options.valid_share = 0;
  options.cache_bytes = 0;
  options.height = options.width = 160; /* so that workers are busy when the position changes */
  DataSet *set = open_good(fixture, &options);
  check_seeking(fixture, set, 3);
  data_set_close(set);
  write_mnist(fixture);
  options = idx_options(fixture);
  set = open_good(fixture, &options);
  check_seeking(fixture, set, 7);
  data_set_close(set);
}

static void every_epoch_has_an_order_of_its_own(void **state) {
  Fixture *fixture = *state;
  write_mnist(fixture);
  const DataOptions options = idx_options(fixture);
  DataSet *set = open_good(fixture, &options);
  for (int drop = 0; drop < 2; drop++) {
    const DataLoaderOptions loading = {.batch = 8, .shuffle = true, .drop_last = drop, .workers = 1};
    DataLoader *loader = data_loader_create(set, &loading, fixture->diag);
    assert_int_equal(data_loader_batches(loader), drop ? 6 : 7);
    uint32_t first[IDX_TRAIN];
    for (int epoch = 0; epoch < 3; epoch++) {
      int seen[IDX_TRAIN] = {0}, same = 0, total = 0;
      for (int64_t i = 0; i < data_loader_batches(loader); i++) {
        DataBatch batch;
        assert_true(data_loader_next(loader, &batch, fixture->diag));
        assert_true(batch.epoch == epoch && batch.number == i);
        for (int64_t k = 0; k < batch.count; k++, total++) {
          seen[batch.indices[k]]++;
          if (epoch == 0) first[total] = batch.indices[k];
          same += first[total] == batch.indices[k];
        }
      }
      for (int i = 0; i < IDX_TRAIN && !drop; i++) assert_int_equal(seen[i], 1);
      assert_int_equal(total, drop ? 48 : 50);
      assert_true(epoch == 0 || same < 10);
    }
    data_loader_destroy(loader);
  }
  clear_messages(fixture);
  assert_null(data_loader_create(set, &(DataLoaderOptions){.batch = 51, .drop_last = true}, fixture->diag));
  check_message_part(fixture, "50 pictures for training make no batch of 51\n");
  assert_null(data_loader_create(set, &(DataLoaderOptions){.batch = 0}, fixture->diag));
  assert_null(data_loader_create(set, &(DataLoaderOptions){.batch = 1, .workers = -1}, fixture->diag));
  check_message_part(fixture, "expected from 0 to 256 workers");
  data_set_close(set);
}

/* Each of the 24 orders of four pictures comes about as often. */
static void shuffles_are_uniform(void **state) {
  Fixture *fixture = *state;
  write_idx(fixture, "train-images-idx3-ubyte", 3, 4, 1);
  write_idx(fixture, "train-labels-idx1-ubyte", 1, 4, 0);
  DataOptions options = idx_options(fixture);
  options.valid_share = 0;
  DataSet *set = open_good(fixture, &options);
  DataLoader *loader = data_loader_create(set, &(DataLoaderOptions){.batch = 4, .shuffle = true}, fixture->diag);
  int counts[256] = {0}, orders = 0;
  for (int i = 0; i < 2400; i++) {
    DataBatch batch;
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    counts[batch.indices[0] << 6 | batch.indices[1] << 4 | batch.indices[2] << 2 | batch.indices[3]]++;
  }
  for (int i = 0; i < 256; i++) {
    if (counts[i] == 0) continue;
    orders++;
    assert_in_range(counts[i], 60, 140); /* 100 expected, standard deviation 10 */
  }
  assert_int_equal(orders, 24);
  data_loader_destroy(loader);
  data_set_close(set);
}

static void pictures_that_vanish_stop_the_loader(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  options.cache_bytes = 0;
  options.valid_share = 0;
  options.height = options.width = 160; /* so large that every picture is handed out by itself */
  DataSet *set = open_good(fixture, &options);
  for (int64_t workers = 0; workers < 3; workers++) {
    DataLoader *loader = data_loader_create(set, &(DataLoaderOptions){.batch = 8, .workers = workers}, fixture->diag);
    DataBatch batch;
    /* bee/ are pictures 8 to 15: the second batch */
    write_bytes(fixture, "bee/odd_05.PNG", "gone", 4);
    write_bytes(fixture, "bee/odd_11.PNG", "gone", 4);
    data_loader_seek(loader, 0, 0);
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    for (int twice = 0; twice < 2; twice++) {
      clear_messages(fixture);
      assert_false(data_loader_next(loader, &batch, fixture->diag));
      check_message_part(fixture, "bee/odd_05.PNG: error: not a PNG or JPEG picture: it starts with 67 6f 6e 65\n");
      assert_int_equal(diag_error_count(fixture->diag), 1);
    }
    write_picture(fixture, "bee/odd_05.PNG", 9, 9, 5);
    write_picture(fixture, "bee/odd_11.PNG", 9, 9, 11);
    data_loader_seek(loader, 0, 1);
    assert_true(data_loader_next(loader, &batch, fixture->diag));
    assert_true(batch.number == 1 && batch.indices[0] == 8);
    data_loader_destroy(loader);
  }
  data_set_close(set);
}

static void loaders_end_at_any_time(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  options.cache_bytes = 0;
  DataSet *set = open_good(fixture, &options);
  for (int steps = 0; steps < 8; steps++) {
    DataLoader *one = data_loader_create(set, &(DataLoaderOptions){.batch = 3, .workers = 3}, fixture->diag);
    DataLoader *two = data_loader_create(set, &(DataLoaderOptions){.batch = 100, .workers = 1}, fixture->diag);
    for (int i = 0; i < steps; i++) {
      DataBatch batch;
      assert_true(data_loader_next(one, &batch, fixture->diag));
      assert_true(data_loader_next(two, &batch, fixture->diag));
      assert_int_equal(batch.count, 20);
    }
    if (steps % 2) data_loader_seek(one, 5, 1);
    data_loader_destroy(two);
    data_loader_destroy(one);
  }
  data_loader_destroy(NULL);
  data_set_close(set);
  data_set_close(NULL);
}

/* A pool's threads fill the same batches, and of several damaged pictures the first is named. */
static void a_pool_fills_the_same_batches(void **state) {
  Fixture *fixture = *state;
  const Augment augment = augment_default();
  write_mnist(fixture);
  DataOptions options = idx_options(fixture);
  DataSet *set = open_good(fixture, &options);
  for (int augmented = 0; augmented < 2; augmented++) {
    DataLoaderOptions loading = {.batch = 7, .shuffle = true, .augment = augmented ? &augment : NULL, .seed = 5};
    uint64_t expected[STEPS];
    run(fixture, set, &loading, expected);
    for (int64_t workers = 0; workers < 2; workers++) {
      Pool *pool = pool_create(3, NULL);
      loading.workers = workers;
      DataLoader *loader = data_loader_create(set, &loading, fixture->diag);
      assert_true(data_loader_share(loader, NULL, fixture->diag));
      assert_true(data_loader_share(loader, pool, fixture->diag));
      static const int begins[] = {0, 11, 3};
      for (size_t i = 0; i < sizeof begins / sizeof begins[0]; i++) {
        data_loader_seek(loader, begins[i] / 8, begins[i] % 8);
        for (int k = begins[i]; k < STEPS; k++) {
          DataBatch batch;
          assert_true(data_loader_next(loader, &batch, fixture->diag));
          assert_true(hash_batch(set, &batch) == expected[k]);
        }
      }
      data_loader_destroy(loader);
      pool_destroy(pool);
    }
  }
  data_set_close(set);
}

static void a_pool_reports_the_first_picture_that_fails(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  DataOptions options = picture_options(fixture);
  options.cache_bytes = 0;
  options.valid_share = 0;
  DataSet *set = open_good(fixture, &options);
  for (int64_t i = 23; i >= 4; i--)
    assert_int_equal(unlink(data_set_picture_name(set, DATA_TRAIN, i, fixture->arena)), 0);
  Pool *pool = pool_create(4, NULL);
  DataLoader *loader = data_loader_create(set, &(DataLoaderOptions){.batch = 24}, fixture->diag);
  assert_true(data_loader_share(loader, pool, fixture->diag));
  for (int again = 0; again < 2; again++) {
    DataBatch batch;
    clear_messages(fixture);
    assert_false(data_loader_next(loader, &batch, fixture->diag));
    check_message_part(fixture, data_set_picture_name(set, DATA_TRAIN, 4, fixture->arena));
  }
  data_loader_destroy(loader);
  pool_destroy(pool);
  data_set_close(set);
}

static void an_opening_may_be_cancelled(void **state) {
  Fixture *fixture = *state;
  write_pictures(fixture, "");
  const DataOptions options = picture_options(fixture);
  for (int late = 0; late < 2; late++) {
    DataOpening *opening = data_set_open_begin(&options);
    while (late && !data_set_open_done(opening)) usleep(1000);
    data_set_open_cancel(opening);
  }
  data_set_open_cancel(NULL);
  assert_true(data_set_open_done(NULL));
  check_messages(fixture, "");
}

static void sets_open_on_a_thread_of_their_own(void **state) {
  Fixture *fixture = *state;
  write_mnist(fixture);
  DataOptions options = idx_options(fixture);
  options.threads = 2;
  DataOpening *opening = data_set_open_begin(&options);
  DataSet *set = data_set_open_finish(opening, fixture->diag);
  assert_non_null(set);
  assert_int_equal(data_set_count(set, DATA_TRAIN), IDX_TRAIN);
  data_set_close(set);
  check_messages(fixture, "");
  options.folder = "missing";
  opening = data_set_open_begin(&options);
  assert_null(data_set_open_finish(opening, fixture->diag));
  check_messages(fixture, "missing: error: cannot open the folder: No such file or directory\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(batches_do_not_depend_on_workers),     fixture_test(seeking_equals_running_through),
      fixture_test(every_epoch_has_an_order_of_its_own),  fixture_test(shuffles_are_uniform),
      fixture_test(pictures_that_vanish_stop_the_loader), fixture_test(loaders_end_at_any_time),
      fixture_test(sets_open_on_a_thread_of_their_own),   fixture_test(a_pool_fills_the_same_batches),
      fixture_test(an_opening_may_be_cancelled),          fixture_test(a_pool_reports_the_first_picture_that_fails),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
