/* Writes a small data set as IDX files: make_idx FOLDER TRAIN VALID. Pictures of 8 by 8 in three classes, which are
 * stripes across, down and along the diagonal, with noise; a network of a few hundred parameters learns them. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { SIDE = 8, CLASSES = 3, PERIOD = 4 };

static uint32_t random_state = 12345;

static uint32_t random_below(uint32_t limit) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % limit;
}

static void put_number(FILE *stream, uint32_t number) {
  for (int shift = 24; shift >= 0; shift -= 8) putc((int)(number >> shift & 255), stream);
}

static void put_picture(FILE *stream, uint32_t label) {
  const uint32_t phase = random_below(PERIOD);
  for (uint32_t y = 0; y < SIDE; y++)
    for (uint32_t x = 0; x < SIDE; x++) {
      const uint32_t place = label == 0 ? y : label == 1 ? x : x + y;
      putc((int)((place + phase) % PERIOD < PERIOD / 2 ? 40 + random_below(120) : 100 + random_below(120)), stream);
    }
}

static bool write_part(const char *folder, const char *part, uint32_t count) {
  char path[2][1024];
  snprintf(path[0], sizeof path[0], "%s/%s-images-idx3-ubyte", folder, part);
  snprintf(path[1], sizeof path[1], "%s/%s-labels-idx1-ubyte", folder, part);
  FILE *images = fopen(path[0], "wb"), *labels = fopen(path[1], "wb");
  if (images == NULL || labels == NULL) return false;
  put_number(images, 0x803);
  put_number(images, count);
  put_number(images, SIDE);
  put_number(images, SIDE);
  put_number(labels, 0x801);
  put_number(labels, count);
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t label = random_below(CLASSES);
    putc((int)label, labels);
    put_picture(images, label);
  }
  const bool closed = fclose(images) == 0;
  return fclose(labels) == 0 && closed;
}

int main(int argc, char **argv) {
  if (argc == 4 && write_part(argv[1], "train", (uint32_t)atoi(argv[2])) &&
      write_part(argv[1], "t10k", (uint32_t)atoi(argv[3])))
    return 0;
  fprintf(stderr, "usage: make_idx FOLDER TRAIN VALID; the folder exists\n");
  return 1;
}
