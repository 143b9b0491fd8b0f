/* A host program around a compiled library: needs libsimple_cnn10_bn.so and simple_cnn10_bn.h, and nothing of Kiln.
 *
 *   kiln compile examples/simple_cnn10_bn.json --weights w.safetensors --batch 2 -o libsimple_cnn10_bn.so
 *   cc compiled.c -I. -L. -lsimple_cnn10_bn -pthread -o compiled
 *
 * It brings its own parallel loop: two threads that are started for every kernel. Slow, but it shows that a compiled
 * program starts no threads of its own and that the results do not depend on who runs the work. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "simple_cnn10_bn.h"

typedef struct Half {
  kiln_task task;
  void *context;
  int64_t begin, end;
} Half;

static void *second_half(void *argument) {
  const Half *half = argument;
  half->task(half->context, 1, half->begin, half->end);
  return NULL;
}

static int two_threads(void *pool, kiln_task task, void *context, int64_t count) {
  (void)pool;
  Half half = {task, context, count / 2, count};
  pthread_t thread;
  if (pthread_create(&thread, NULL, second_half, &half) != 0) return 1;
  if (count / 2 > 0) task(context, 0, 0, count / 2);
  return pthread_join(thread, NULL);
}

int main(void) {
  enum { BATCH = 2, THREADS = 2, PIXELS = 28 * 28, CLASSES = 10 };
  static float image[BATCH * PIXELS], logits[BATCH * CLASSES];
  for (int i = 0; i < BATCH * PIXELS; i++) image[i] = (float)(i * 37 % 101) / 100.0f;

  kiln_weights weights;
  int status = simple_cnn10_bn_weights_embedded(&weights);
  if (status != KILN_OK) {
    fprintf(stderr, "weights: code %d%s\n", status,
            status == KILN_ERROR_CPU ? " (this processor is too old for the library)" : "");
    return 1;
  }
  void *workspace = aligned_alloc(SIMPLE_CNN10_BN_ALIGNMENT, SIMPLE_CNN10_BN_WORKSPACE_SIZE(BATCH, THREADS));
  if (workspace == NULL) return 1;
  simple_cnn10_bn_io io = {
      .head = {.batch = BATCH, .parallel_for = two_threads, .threads = THREADS}, .image = image, .logits = logits};
  status = simple_cnn10_bn_run(&weights, workspace, &io);
  free(workspace);
  if (status != KILN_OK) {
    fprintf(stderr, "run: code %d\n", status);
    return 1;
  }
  for (int i = 0; i < BATCH * CLASSES; i++) printf("%.9g\n", logits[i]);
  return 0;
}
