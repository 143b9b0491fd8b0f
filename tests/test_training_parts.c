/* The arithmetic around a training step: metrics, targets, initial weights, the log. */
#include <math.h>

#include "description.h"
#include "session/train_log.h"
#include "session/trainer.h"
#include "support.h"

static void check_near(double found, double expected) {
  if (!(fabs(found - expected) <= 1e-12 * (1 + fabs(expected))))
    fail_msg("found %.17g, expected %.17g", found, expected);
}

static void test_cross_entropy(void **state) {
  (void)state;
  const float scores[] = {1,    2, 0.5f, /* right, class 1 */ 0, 0, 0, /* the first of equal ones counts */ -1000,
                          1000, 0};
  const int64_t targets[] = {1, 1, 0};
  Metrics metrics = {0, 0, 0};
  metrics_add(&metrics, OP_CROSS_ENTROPY, scores, targets, 3, 3);
  assert_int_equal(metrics.count, 3);
  assert_int_equal(metrics.correct, 1);
  check_near(metrics.loss, log(exp(1) + exp(2) + exp(0.5)) - 2 + log(3) + 2000);
  /* in two parts the same sums come out */
  Metrics parts = {0, 0, 0};
  metrics_add(&parts, OP_CROSS_ENTROPY, scores, targets, 1, 3);
  metrics_add(&parts, OP_CROSS_ENTROPY, scores + 3, targets + 1, 2, 3);
  assert_true(parts.loss == metrics.loss && parts.correct == metrics.correct);
}

static void test_other_losses(void **state) {
  (void)state;
  const float scores[] = {0.9f, 0.2f, -1, 3};
  const int64_t targets[] = {0, 1};
  Metrics metrics = {0, 0, 0};
  metrics_add(&metrics, OP_MSE, scores, targets, 2, 2);
  const double first = ((double)0.9f - 1) * ((double)0.9f - 1) + (double)0.2f * (double)0.2f;
  check_near(metrics.loss, first / 2 + (1 + 4) / 2.0);
  assert_int_equal(metrics.correct, 2);
  metrics = (Metrics){0, 0, 0};
  metrics_add(&metrics, OP_BCE_WITH_LOGITS, scores, targets, 2, 2);
  const double s = (double)0.9f, t = (double)0.2f;
  check_near(metrics.loss, (log1p(exp(-s)) + log1p(exp(t))) / 2 + (log1p(exp(-1)) + log1p(exp(-3))) / 2);
  /* one score for two classes */
  const float single[] = {0.4f, 0.6f, -0.1f, 0.1f};
  const int64_t classes[] = {0, 1, 0, 0};
  metrics = (Metrics){0, 0, 0};
  metrics_add(&metrics, OP_MSE, single, classes, 4, 1);
  assert_int_equal(metrics.correct, 4);
  metrics = (Metrics){0, 0, 0};
  metrics_add(&metrics, OP_BCE_WITH_LOGITS, single, classes, 4, 1);
  assert_int_equal(metrics.correct, 2);
}

static void test_targets(void **state) {
  (void)state;
  const int64_t targets[] = {2, 0};
  float values[6];
  targets_expand(targets, 2, 3, values);
  assert_memory_equal(values, ((const float[]){0, 0, 1, 1, 0, 0}), sizeof values);
  targets_expand((const int64_t[]){1, 0}, 2, 1, values);
  assert_memory_equal(values, ((const float[]){1, 0}), 2 * sizeof *values);
}

/* Uniform over ±1/sqrt(fan_in), of weights and biases, and the same values for the same seed. */
static void test_pytorch_weights(void **state) {
  Fixture *fixture = *state;
  static const char text[] =
      "{\"kiln\":1,\"name\":\"m\",\"inputs\":{\"x\":{\"shape\":[\"N\",16,8,8]}},\"layers\":["
      "{\"op\":\"conv2d\",\"name\":\"c\",\"out_channels\":64,\"kernel\":3},{\"op\":\"batch_norm\",\"name\":\"b\"}]}";
  Graph *graph;
  assert_true(description_parse("m.json", text, sizeof text - 1, NULL, fixture->arena, fixture->diag, &graph));
  TensorList first, second;
  weights_initialise_as(graph, 5, INIT_MODE_PYTORCH, fixture->arena, &first);
  weights_initialise_as(graph, 5, INIT_MODE_PYTORCH, fixture->arena, &second);
  const double bound = 1 / sqrt(16 * 9);
  for (size_t i = 0; i < first.count; i++) {
    const Tensor *tensor = &first.items[i];
    const bool conv = tensor->name[0] == 'c';
    double sum = 0, squares = 0, largest = 0;
    const int64_t count = tensor_elements(tensor);
    for (int64_t k = 0; k < count; k++) {
      const double value = tensor_get(tensor, k);
      sum += value;
      squares += value * value;
      largest = fmax(largest, fabs(value));
    }
    assert_memory_equal(tensor->data, second.items[i].data, (size_t)tensor_bytes(tensor));
    if (conv) assert_true(largest <= bound && largest > 0.9 * bound);
    if (count > 1000) {
      assert_true(fabs(sum / (double)count) < 0.05 * bound);
      assert_true(fabs(squares / (double)count / (bound * bound) - 1.0 / 3) < 0.02);
    }
    if (strcmp(tensor->name, "b.weight") == 0) check_near(sum, 64);
    if (strcmp(tensor->name, "b.bias") == 0) check_near(largest, 0);
  }
}

static void read_text(const char *path, char *buffer, size_t size) {
  FILE *stream = fopen(path, "rb");
  assert_non_null(stream);
  buffer[fread(buffer, 1, size - 1, stream)] = '\0';
  fclose(stream);
}

/* A resumed run's log goes on behind the bytes that its checkpoint knows of. */
static void test_log(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "log.jsonl");
  char content[64];
  TrainLog *log;
  assert_true(train_log_open(path, 0, fixture->arena, fixture->diag, &log));
  assert_true(train_log_add(log, "one\n", 4, fixture->diag) && train_log_add(log, "two\n", 4, fixture->diag));
  assert_true(train_log_flush(log, fixture->diag));
  assert_int_equal(log->size, 8);
  assert_true(train_log_open(path, 4, fixture->arena, fixture->diag, &log));
  assert_true(train_log_add(log, "2\n", 2, fixture->diag));
  read_text(path, content, sizeof content);
  assert_string_equal(content, "one\n2\n");
  assert_int_equal(log->size, 6);
  check_messages(fixture, "");
  assert_true(train_log_open(path, 100, fixture->arena, fixture->diag, &log));
  check_message_part(fixture, "holds 6 bytes of the 100 before the checkpoint");
  clear_messages(fixture);
  assert_true(train_log_open(NULL, 0, fixture->arena, fixture->diag, &log));
  assert_true(train_log_add(log, "x", 1, fixture->diag) && train_log_flush(log, fixture->diag));
  assert_false(train_log_open(fixture_path(fixture, "a/b"), 0, fixture->arena, fixture->diag, &log));
  check_message_part(fixture, "cannot open the file: No such file or directory");
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_cross_entropy), fixture_test(test_other_losses),
                                     fixture_test(test_targets), fixture_test(test_pytorch_weights),
                                     fixture_test(test_log)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
