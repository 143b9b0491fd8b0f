/* Classifies the test pictures of Fashion-MNIST with a compiled library; needs zlib, and nothing of Kiln.
 *
 *   kiln train examples/fashion.json --data /usr/share/datasets/fashion-mnist --epochs 5 --batch 512 --lr 0.1 \
 *     --one-cycle --save w.safetensors
 *   kiln compile examples/fashion.json --weights w.safetensors -o libfashion.so
 *   cc classify.c -I. -L. -lfashion -lz -o classify
 *   ./classify /usr/share/datasets/fashion-mnist
 *
 * Prints the same accuracy as kiln train did. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <zlib.h>

#include "fashion.h"

enum { BATCH = 64, SIDE = 28, PIXELS = SIDE * SIDE, CLASSES = 10, PICTURES = 10000 };

/* The content of an IDX file after its header: magic number and dimensions, four bytes each. */
static unsigned char *read_idx(const char *folder, const char *name, uint32_t magic, int dimensions, size_t size) {
  char path[1024];
  unsigned char head[16];
  snprintf(path, sizeof path, "%s/%s.gz", folder, name);
  gzFile file = gzopen(path, "rb");
  unsigned char *data = malloc(size);
  const int head_size = 4 + 4 * dimensions;
  const int good = file != NULL && data != NULL && gzread(file, head, (unsigned)head_size) == head_size &&
                   (uint32_t)head[2] << 8 == (magic & 0xFF00) && head[3] == (magic & 0xFF) &&
                   gzread(file, data, (unsigned)size) == (int)size;
  if (file != NULL) gzclose(file);
  if (good) return data;
  fprintf(stderr, "%s: cannot be read as %zu bytes of IDX\n", path, size);
  exit(1);
}

static int best_class(const float *scores) {
  int best = 0;
  for (int k = 1; k < CLASSES; k++)
    if (scores[k] > scores[best]) best = k;
  return best;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: classify FOLDER\n");
    return 2;
  }
  unsigned char *pictures = read_idx(argv[1], "t10k-images-idx3-ubyte", 0x803, 3, (size_t)PICTURES * PIXELS);
  unsigned char *labels = read_idx(argv[1], "t10k-labels-idx1-ubyte", 0x801, 1, PICTURES);
  const double mean = 0.286, deviation = 0.353; /* as fashion.json says */
  float table[256];
  for (int v = 0; v < 256; v++) table[v] = (float)((v / 255.0 - mean) / deviation);

  kiln_weights weights;
  int status = fashion_weights_embedded(&weights);
  void *workspace = aligned_alloc(FASHION_ALIGNMENT, FASHION_WORKSPACE_SIZE(BATCH, 1));
  static float image[BATCH * PIXELS], logits[BATCH * CLASSES];
  int right = 0;
  for (int first = 0; first < PICTURES && status == KILN_OK && workspace != NULL; first += BATCH) {
    const int count = PICTURES - first < BATCH ? PICTURES - first : BATCH;
    for (int i = 0; i < count * PIXELS; i++) image[i] = table[pictures[(size_t)first * PIXELS + (size_t)i]];
    fashion_io io = {.head = {.batch = count}, .image = image, .logits = logits};
    status = fashion_run(&weights, workspace, &io);
    for (int i = 0; i < count; i++) right += best_class(logits + i * CLASSES) == labels[first + i];
  }
  if (status != KILN_OK || workspace == NULL) {
    fprintf(stderr, "classify: code %d\n", status);
    return 1;
  }
  printf("accuracy %.4f (%d of %d)\n", (double)right / PICTURES, right, PICTURES);
  free(workspace);
  free(pictures);
  free(labels);
  return 0;
}
