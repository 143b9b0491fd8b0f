/* Grad-CAM from a compiled library, with nothing of Kiln and no framework: where does a ResNet-34 look?
 *
 *   kiln compile examples/resnet34_pets.json --weights w.safetensors \
 *       --hook body:activation:store --hook body:gradient:store -o libresnet34_pets.so
 *   cc gradcam.c -I. -L. -lresnet34_pets -o gradcam
 *   ./gradcam image.npy [CLASS]
 *
 * The library hands out the body's activations and the gradient of a class score, chosen here at run time. The map is
 * relu(sum over channels of activation * mean gradient of the channel) (Selvaraju et al., arXiv 1610.02391). image.npy
 * holds the normalised picture, f32 [1,3,352,352]. */
#include <stdio.h>
#include <stdlib.h>

#include "resnet34_pets.h"

enum { CHANNELS = 512, SIDE = 11, CELLS = SIDE * SIDE, CLASSES = 37 };

static float image[RESNET34_PETS_IMAGE_ELEMENTS], logits[CLASSES], body[CHANNELS * CELLS], gradient[CHANNELS * CELLS];

/* The array is the end of an .npy file. */
static int read_image(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) return 0;
  int good = fseek(file, -(long)sizeof image, SEEK_END) == 0 && fread(image, sizeof image, 1, file) == 1;
  fclose(file);
  return good;
}

int main(int argc, char **argv) {
  if (argc < 2 || !read_image(argv[1])) {
    fprintf(stderr, "Usage: gradcam IMAGE.npy [CLASS]; the image is f32 [1,3,352,352]\n");
    return 2;
  }
  kiln_weights weights;
  int status = resnet34_pets_weights_embedded(&weights);
  void *workspace = aligned_alloc(RESNET34_PETS_ALIGNMENT, RESNET34_PETS_WORKSPACE_SIZE(1, 1));
  if (workspace == NULL) return 1;
  int64_t class_number = argc > 2 ? atoi(argv[2]) : 0;
  resnet34_pets_io io = {.head = {.batch = 1},
                         .image = image,
                         .class_2 = &class_number,
                         .logits = logits,
                         .hook_body = body,
                         .hook_grad_body = gradient};
  if (status == KILN_OK) status = resnet34_pets_run(&weights, workspace, &io);
  if (status == KILN_OK && argc < 3) {
    /* the most likely class is known now: once more, for its gradient */
    for (int k = 1; k < CLASSES; k++)
      if (logits[k] > logits[class_number]) class_number = k;
    status = resnet34_pets_run(&weights, workspace, &io);
  }
  free(workspace);
  if (status != KILN_OK) {
    fprintf(stderr, "failed with code %d\n", status);
    return 1;
  }
  float map[CELLS] = {0};
  for (int c = 0; c < CHANNELS; c++) {
    double weight = 0;
    for (int i = 0; i < CELLS; i++) weight += gradient[c * CELLS + i];
    for (int i = 0; i < CELLS; i++) map[i] += (float)(weight / CELLS) * body[c * CELLS + i];
  }
  printf("class %lld\n", (long long)class_number);
  for (int i = 0; i < CELLS; i++) printf("%.6g%c", map[i] > 0 ? map[i] : 0, i % SIDE == SIDE - 1 ? '\n' : ' ');
  return 0;
}
