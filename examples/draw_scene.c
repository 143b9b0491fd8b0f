/* Draws the sample picture of demo and tests: a house under a striped sun, 640 x 480, so that the project needs no
 * picture of anybody else's. Usage: draw_scene OUT.png [WIDTH HEIGHT] */
#include <math.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Color {
  double red, green, blue;
} Color;

static Color mix(Color a, Color b, double t) {
  return (Color){a.red + (b.red - a.red) * t, a.green + (b.green - a.green) * t, a.blue + (b.blue - a.blue) * t};
}

/* Deterministic texture: an integer hash of the position as a number in [0, 1). */
static double grain(int x, int y) {
  unsigned h = (unsigned)x * 374761393u + (unsigned)y * 668265263u;
  h = (h ^ (h >> 13)) * 1274126177u;
  return (double)((h ^ (h >> 16)) & 0xffff) / 65536.0;
}

/* Colour at (u, v) in units of the picture's height, from the top left. */
static Color scene(double u, double v, int x, int y) {
  Color sky = mix((Color){0.25, 0.45, 0.85}, (Color){0.95, 0.80, 0.65}, v / 0.7);
  Color color = sky;
  double sun = hypot(u - 1.02, v - 0.22);
  if (sun < 0.13) color = fmod(v * 40, 2) < 1.3 ? (Color){1.0, 0.85, 0.3} : sky;
  double hill = 0.66 + 0.06 * sin(u * 4.0) + 0.02 * sin(u * 13.0);
  if (v > hill) {
    double shade = 0.85 + 0.3 * (grain(x, y) - 0.5);
    color = mix((Color){0.20 * shade, 0.50 * shade, 0.22 * shade}, (Color){0.10, 0.28, 0.12}, fmin(1, (v - hill) * 2));
  }
  if (u > 0.30 && u < 0.75 && v > 0.45 && v < 0.82) { /* wall of bricks */
    double row = floor(v * 32), offset = fmod(row, 2) * 0.5;
    int joint = fmod(v * 32, 1) < 0.12 || fmod(u * 16 + offset, 1) < 0.06;
    color =
        joint ? (Color){0.75, 0.72, 0.68} : (Color){0.62 + 0.1 * grain((int)(u * 16 + offset), (int)row), 0.28, 0.20};
  }
  if (v > 0.28 && v < 0.45 && fabs(u - 0.525) < (v - 0.28) * 1.5) color = (Color){0.30, 0.20, 0.25}; /* roof */
  if (fabs(u - 0.42) < 0.05 && fabs(v - 0.58) < 0.05)                                                /* window */
    color = fabs(u - 0.42) < 0.006 || fabs(v - 0.58) < 0.006 ? (Color){0.95, 0.95, 0.95} : (Color){0.55, 0.75, 0.95};
  if (u > 0.58 && u < 0.67 && v > 0.60 && v < 0.82) color = (Color){0.25, 0.35, 0.55}; /* door */
  if (hypot(u - 0.655, v - 0.72) < 0.008) color = (Color){0.95, 0.85, 0.3};
  if (fabs(u - 1.08) < 0.018 && v > 0.5 && v < 0.85) color = (Color){0.35, 0.22, 0.12}; /* tree */
  double crown = hypot(u - 1.08, v - 0.46);
  if (crown < 0.12 + 0.02 * sin(atan2(v - 0.46, u - 1.08) * 9))
    color = mix((Color){0.12, 0.40, 0.15}, (Color){0.30, 0.62, 0.22}, grain(x / 4, y / 4));
  return color;
}

static png_byte sample(double value) { return (png_byte)(255 * fmin(1, fmax(0, value)) + 0.5); }

int main(int argc, char **argv) {
  int width = argc > 3 ? atoi(argv[2]) : 640, height = argc > 3 ? atoi(argv[3]) : 480;
  if (argc < 2 || width < 1 || height < 1 || width > 8192 || height > 8192) {
    fprintf(stderr, "Usage: draw_scene OUT.png [WIDTH HEIGHT]\n");
    return 2;
  }
  png_bytep pixels = malloc((size_t)width * (size_t)height * 3);
  if (pixels == NULL) return 1;
  for (int y = 0; y < height; y++)
    for (int x = 0; x < width; x++) {
      Color color = scene((x + 0.5) / height, (y + 0.5) / height, x, y);
      png_bytep pixel = pixels + ((size_t)y * (size_t)width + (size_t)x) * 3;
      pixel[0] = sample(color.red);
      pixel[1] = sample(color.green);
      pixel[2] = sample(color.blue);
    }
  png_image image;
  memset(&image, 0, sizeof image);
  image.version = PNG_IMAGE_VERSION;
  image.width = (png_uint_32)width;
  image.height = (png_uint_32)height;
  image.format = PNG_FORMAT_RGB;
  int written = png_image_write_to_file(&image, argv[1], 0, pixels, 0, NULL);
  if (!written) fprintf(stderr, "draw_scene: %s: %s\n", argv[1], image.message);
  free(pixels);
  return written ? 0 : 1;
}
