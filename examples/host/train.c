/* A host program that trains: needs libsimple_cnn10_bn_train.so and simple_cnn10_bn_train.h, and nothing of Kiln.
 *
 *   kiln compile examples/simple_cnn10_bn.json --train --optimizer adam --batch 32 -o libsimple_cnn10_bn_train.so
 *   cc train.c -I. -L. -lsimple_cnn10_bn_train -lm -o train
 *
 * The library holds the whole step: forward pass, loss, backward pass and update. The host owns the state, which it fills
 * with initial values by name, and the learning rate, which it may change from step to step. The pictures are drawn: a
 * bright square on noise, whose place is the class. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simple_cnn10_bn_train.h"

enum { BATCH = 32, STEPS = 80, SIDE = 28, PIXELS = SIDE * SIDE };

static float uniform(void) {
  static unsigned long long state = 1; /* Knuth's MMIX generator */
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return (float)(state >> 40) / (float)(1 << 24);
}

static void draw(float *image, int64_t label) {
  for (int i = 0; i < PIXELS; i++) image[i] = uniform() - 0.5f;
  int top = 2 + (int)(label / 5) * 13, left = (int)(label % 5) * 5;
  for (int y = top; y < top + 8; y++)
    for (int x = left; x < left + 6; x++) image[y * SIDE + x] += 1;
}

/* PyTorch's defaults: filters and biases uniform over ±1/√fan_in, batch norms 1 and 0. */
static void initialise(float *values) {
  const kiln_program *program = simple_cnn10_bn_train_describe();
  float bound = 1;
  for (uint32_t s = 0; s < program->slot_count; s++) {
    const kiln_slot *slot = &program->slots[s];
    const char *last = strrchr(slot->name, '.');
    int64_t count = 1;
    for (uint32_t d = 0; d < slot->rank; d++) count *= slot->dims[d];
    if (slot->rank > 1) bound = 1 / sqrtf((float)(count / slot->dims[0]));
    int norm = slot->rank == 1 && strstr(slot->name, ".1.") != NULL;
    for (int64_t i = 0; i < count; i++)
      values[slot->offset + i] = norm ? (strcmp(last, ".weight") == 0 ? 1.0f : 0.0f) : bound * (2 * uniform() - 1);
  }
}

/* Running means begin as 0, running variances as 1. They follow `state` in the struct as in the program's table. */
static int allocate_statistics(float **pointers) {
  const kiln_program *program = simple_cnn10_bn_train_describe();
  for (uint32_t p = 1; p < program->parameter_count && program->parameters[p].role == KILN_ROLE_STATE; p++) {
    const kiln_port *port = &program->parameters[p];
    pointers[p] = malloc((size_t)port->bytes);
    if (pointers[p] == NULL) return 1;
    for (int64_t i = 0; i < port->bytes / 4; i++) pointers[p][i] = strstr(port->name, "_var") != NULL ? 1 : 0;
  }
  return 0;
}

int main(void) {
  static float image[BATCH * PIXELS], hyper[KILN_HYPER_COUNT];
  static int64_t target[BATCH];
  float loss = 0;
  simple_cnn10_bn_train_state state = {.state = calloc(SIMPLE_CNN10_BN_TRAIN_STATE_ELEMENTS, sizeof(float))};
  void *workspace = aligned_alloc(SIMPLE_CNN10_BN_TRAIN_ALIGNMENT, SIMPLE_CNN10_BN_TRAIN_WORKSPACE_SIZE(BATCH, 1));
  if (state.state == NULL || workspace == NULL || allocate_statistics((float **)&state) != 0) return 1;
  initialise(state.state);

  kiln_weights weights;
  int status = simple_cnn10_bn_train_weights_embedded(&weights);
  simple_cnn10_bn_train_io io = {
      .head = {.batch = BATCH}, .image = image, .target = target, .hyper = hyper, .loss = &loss};
  hyper[KILN_HYPER_MOMENTUM] = 0.9f, hyper[KILN_HYPER_BETA2] = 0.99f, hyper[KILN_HYPER_EPS] = 1e-5f;
  hyper[KILN_HYPER_WEIGHT_DECAY] = 0.01f, hyper[KILN_HYPER_GRADIENT_SCALE] = 1;
  for (int step = 1; step <= STEPS && status == KILN_OK; step++) {
    for (int i = 0; i < BATCH; i++) {
      target[i] = (int64_t)(uniform() * 10);
      draw(image + i * PIXELS, target[i]);
    }
    hyper[KILN_HYPER_LEARNING_RATE] = 0.01f * (1 - (float)step / (STEPS + 1));
    hyper[KILN_HYPER_CORRECTION1] = 1 - powf(hyper[KILN_HYPER_MOMENTUM], (float)step);
    hyper[KILN_HYPER_CORRECTION2] = 1 - powf(hyper[KILN_HYPER_BETA2], (float)step);
    status = simple_cnn10_bn_train_step(&weights, &state, workspace, &io);
    if (step == 1 || step % 10 == 0) printf("step %3d  loss %.4f\n", step, (double)loss);
  }
  if (status != KILN_OK) fprintf(stderr, "step: code %d\n", status);
  const kiln_program *program = simple_cnn10_bn_train_describe();
  for (uint32_t p = 0; p < program->parameter_count && program->parameters[p].role == KILN_ROLE_STATE; p++)
    free(((float **)&state)[p]);
  free(workspace);
  return status == KILN_OK ? 0 : 1;
}
