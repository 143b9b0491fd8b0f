/* runtime/session/data_augment: what changes, where pixels go, and that nothing moves without being asked. */
#include <math.h>

#include "session/data_augment.h"
#include "support.h"

enum { SIZE = 12 };

/* Distinct pixels. */
static Picture draw(Arena *arena, int32_t width, int32_t height, int32_t channels) {
  Picture picture = {width, height, channels, arena_alloc(arena, (size_t)(width * height * channels), 1)};
  for (int32_t i = 0; i < width * height * channels; i++) picture.pixels[i] = (uint8_t)(i * 37 + i / 7);
  return picture;
}

static uint8_t pixel(const Picture *picture, int32_t x, int32_t y, int32_t channel) {
  return picture->pixels[(y * picture->width + x) * picture->channels + channel];
}

/* Samples as numbers from 0 to 255. */
static const float *resample(Arena *arena, const Picture *picture, const AugmentDraw *change, AugmentPadding padding,
                             int32_t width, int32_t height) {
  static float table[AUGMENT_CHANNELS][256];
  for (int channel = 0; channel < AUGMENT_CHANNELS; channel++)
    for (int sample = 0; sample < 256; sample++) table[channel][sample] = (float)sample;
  double matrix[9];
  float *out = arena_array(arena, (size_t)(picture->channels * width * height), float);
  augment_matrix(change, picture->width, picture->height, width, height, matrix);
  augment_apply(picture, matrix, padding, (const float(*)[256])table, picture->channels, width, height, out);
  return out;
}

static void no_change_is_the_centre_crop(void **state) {
  Fixture *fixture = *state;
  static const int32_t sizes[][4] = {{12, 12, 12, 12}, {15, 9, 7, 8}, {14, 13, 5, 6}, {9, 9, 8, 8}, {11, 12, 8, 7}};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    const Picture picture = draw(fixture->arena, sizes[i][0], sizes[i][1], 3);
    const int32_t width = sizes[i][2], height = sizes[i][3];
    const Picture crop = picture_crop_centre(&picture, width, height, fixture->arena);
    const AugmentDraw none = augment_draw_none();
    const float *out = resample(fixture->arena, &picture, &none, AUGMENT_REFLECT, width, height);
    for (int32_t channel = 0; channel < 3; channel++)
      for (int32_t y = 0; y < height; y++)
        for (int32_t x = 0; x < width; x++) assert_true(*out++ == pixel(&crop, x, y, channel));
  }
}

static void symmetries_are_exact(void **state) {
  Fixture *fixture = *state;
  const Picture picture = draw(fixture->arena, SIZE, SIZE, 1);
  for (int symmetry = 0; symmetry < 8; symmetry++) {
    AugmentDraw change = augment_draw_none();
    change.transpose = (symmetry & 4) != 0;
    change.flip_x = (symmetry & 1) != 0;
    change.flip_y = (symmetry & 2) != 0;
    const float *out = resample(fixture->arena, &picture, &change, AUGMENT_ZEROS, SIZE, SIZE);
    for (int32_t y = 0; y < SIZE; y++) {
      for (int32_t x = 0; x < SIZE; x++) {
        const int32_t u = change.flip_x ? SIZE - 1 - x : x, v = change.flip_y ? SIZE - 1 - y : y;
        assert_true(*out++ == (change.transpose ? pixel(&picture, v, u, 0) : pixel(&picture, u, v, 0)));
      }
    }
  }
}

static void check_near(double found, double expected) {
  if (!(fabs(found - expected) < 1e-4)) fail_msg("expected %g, found %g", expected, found);
}

static void rotation_is_counter_clockwise(void **state) {
  Fixture *fixture = *state;
  const Picture picture = draw(fixture->arena, SIZE, SIZE, 1);
  AugmentDraw change = augment_draw_none();
  change.angle = 90;
  const float *out = resample(fixture->arena, &picture, &change, AUGMENT_BORDER, SIZE, SIZE);
  /* what was on the right is at the top */
  for (int32_t y = 0; y < SIZE; y++)
    for (int32_t x = 0; x < SIZE; x++) {
      const double found = *out++;
      /* rounding of sin and cos may move a point by 1e-15 beyond a pixel's middle */
      check_near(found, pixel(&picture, SIZE - 1 - y, x, 0));
    }
}

/* Where a point of the crop comes from. */
static void source_of(const AugmentDraw *change, double x, double y, double width, double height, double out[2]) {
  double m[9];
  augment_matrix(change, (int32_t)width, (int32_t)height, (int32_t)width, (int32_t)height, m);
  const double w = m[6] * x + m[7] * y + m[8];
  out[0] = (m[0] * x + m[1] * y + m[2]) / w;
  out[1] = (m[3] * x + m[4] * y + m[5]) / w;
}

static void geometry_follows_its_definition(void **state) {
  (void)state;
  double at[2];
  AugmentDraw change = augment_draw_none();
  change.zoom = 2;
  change.zoom_x = 0.25;
  change.zoom_y = 1;
  source_of(&change, 10, 30, 40, 30, at); /* the fixed point */
  check_near(at[0], 10);
  check_near(at[1], 30);
  source_of(&change, 40, 10, 40, 30, at);
  check_near(at[0], 25);
  check_near(at[1], 20);

  /* rotation keeps distances, whatever the proportions */
  change = augment_draw_none();
  change.angle = 30;
  source_of(&change, 20 + 10, 15, 40, 30, at);
  check_near(hypot(at[0] - 20, at[1] - 15), 10);
  check_near(atan2(at[1] - 15, at[0] - 20) * 180 / acos(-1), 30);

  change = augment_draw_none();
  change.warp_x = 0.2;
  static const double corners[4][4] = {
      {40, 30, 40, 15 + 15 * 1.2}, {40, 0, 40, 15 - 15 * 1.2}, {0, 0, 0, 15 - 15 * 0.8}, {0, 30, 0, 15 + 15 * 0.8}};
  for (int i = 0; i < 4; i++) {
    source_of(&change, corners[i][0], corners[i][1], 40, 30, at);
    check_near(at[0], corners[i][2]);
    check_near(at[1], corners[i][3]);
  }
  change.warp_x = 0;
  change.warp_y = -0.1;
  source_of(&change, 40, 30, 40, 30, at);
  check_near(at[0], 20 + 20 * 0.9);
  check_near(at[1], 30);

  /* transpose, flip, warp, rotate, zoom are applied in that order: the way back is the reverse */
  change.transpose = change.flip_x = true;
  change.angle = 90;
  change.zoom = 2;
  source_of(&change, 30, 15, 40, 30, at);
  /* zoom: (5, 0) from the middle; rotation: (0, 5) before it; warp: half the height is 15 */
  const double y = 5.0 / 15, w = 1 + 0.1 * y;
  check_near(at[0], 20 + 15 * (y + 0.1) / w);
  check_near(at[1], 15);
}

static void padding_is_as_chosen(void **state) {
  Fixture *fixture = *state;
  Picture picture = {4, 1, 1, (uint8_t[]){10, 20, 30, 40}};
  /* one row of the picture moved: output x comes from x + shift */
  static const struct {
    AugmentPadding padding;
    float expected[10]; /* of positions −5 … 4 + 0 */
  } cases[] = {{AUGMENT_REFLECT, {40, 40, 30, 20, 10, 10, 20, 30, 40, 40}},
               {AUGMENT_BORDER, {10, 10, 10, 10, 10, 10, 20, 30, 40, 40}},
               {AUGMENT_ZEROS, {0, 0, 0, 0, 0, 10, 20, 30, 40, 0}}};
  float table[AUGMENT_CHANNELS][256];
  for (int sample = 0; sample < 256; sample++) table[0][sample] = (float)sample;
  for (size_t i = 0; i < 3; i++) {
    float out[10];
    const double whole[9] = {1, 0, -5, 0, 1, 0, 0, 0, 1}, half[9] = {1, 0, -5.5, 0, 1, 0, 0, 0, 1};
    augment_apply(&picture, whole, cases[i].padding, (const float(*)[256])table, 1, 10, 1, out);
    assert_memory_equal(out, cases[i].expected, sizeof out);
    /* in the middle between two pixels lies their mean */
    augment_apply(&picture, half, cases[i].padding, (const float(*)[256])table, 1, 10, 1, out);
    for (int x = 1; x < 10; x++) check_near(out[x], (cases[i].expected[x - 1] + cases[i].expected[x]) / 2);
  }
  /* behind the viewer and at infinity */
  const double behind[9] = {1, 0, 0, 0, 1, 0, -1, 0, 1.5}, nowhere[9] = {NAN, 0, 0, 0, 1e300, 0, 0, 0, 1};
  float out[4];
  augment_apply(&picture, behind, AUGMENT_REFLECT, (const float(*)[256])table, 1, 4, 1, out);
  assert_true(out[1] == 0 && out[2] == 0 && out[3] == 0);
  augment_apply(&picture, nowhere, AUGMENT_REFLECT, (const float(*)[256])table, 1, 4, 1, out);
  assert_true(out[0] == 0 && out[3] == 0);
  (void)fixture;
}

static void light_changes_the_logit(void **state) {
  (void)state;
  double logits[256], values[256];
  augment_logits(logits);
  AugmentDraw change = augment_draw_none();
  change.brightness = log(3);
  augment_light(&change, logits, values);
  /* odds of 1/4 to 3/4 become even */
  check_near(values[51], 1 / (1 + 4 / 3.0)); /* 51/255 = 1/5: odds 1/4, thrice that 3/4 */
  change.brightness = 0;
  change.contrast = 2;
  augment_light(&change, logits, values);
  check_near(values[51], 1.0 / 17); /* odds 1/16 */
  check_near(values[204], 16.0 / 17);
  for (int i = 1; i < 256; i++) assert_true(values[i] > values[i - 1]);
  change.contrast = 1;
  augment_light(&change, logits, values);
  for (int i = 0; i < 256; i++) assert_true(fabs(values[i] - i / 255.0) < 0.51 / 255);
}

/* --- draws ----------------------------------------------------------------------------------------- */

static void draws_stay_in_their_ranges(void **state) {
  (void)state;
  enum { DRAWS = 4000 };
  Augment augment = augment_default();
  int flips = 0, turned = 0, lit = 0, symmetries[8] = {0};
  double angles = 0, largest = 0;
  for (int i = 0; i < DRAWS; i++) {
    const AugmentDraw change = augment_draw(&augment, 5, 1, i);
    assert_true(change.crop_x >= 0 && change.crop_x < 1 && change.crop_y >= 0 && change.crop_y < 1);
    assert_true(fabs(change.angle) <= 10 && change.zoom >= 1 && change.zoom <= 1.1);
    assert_true(fabs(change.warp_x) <= 0.2 && fabs(change.warp_y) <= 0.2);
    assert_true(fabs(change.brightness) <= log(1.2 / 0.8) && change.contrast > 0.79 && change.contrast < 1.26);
    assert_false(change.flip_y || change.transpose);
    flips += change.flip_x;
    turned += change.angle != 0;
    lit += change.contrast != 1;
    angles += change.angle;
    largest = fmax(largest, fabs(change.angle));
  }
  assert_true(abs(flips - DRAWS / 2) < 150 && abs(turned - DRAWS * 3 / 4) < 150 && abs(lit - DRAWS * 3 / 4) < 150);
  assert_true(fabs(angles / DRAWS) < 0.5 && largest > 9.9);
  augment.dihedral = true;
  for (int i = 0; i < DRAWS; i++) {
    const AugmentDraw change = augment_draw(&augment, 5, 1, i);
    symmetries[change.flip_x + 2 * change.flip_y + 4 * change.transpose]++;
  }
  for (int i = 0; i < 8; i++) assert_in_range(symmetries[i], DRAWS / 8 - 100, DRAWS / 8 + 100);
}

static bool same(const AugmentDraw *a, const AugmentDraw *b) {
  return a->angle == b->angle && a->zoom == b->zoom && a->warp_x == b->warp_x && a->crop_x == b->crop_x &&
         a->brightness == b->brightness && a->contrast == b->contrast && a->flip_x == b->flip_x;
}

static void draws_depend_on_seed_epoch_and_index(void **state) {
  (void)state;
  const Augment augment = augment_default();
  const AugmentDraw first = augment_draw(&augment, 1, 2, 3);
  const AugmentDraw again = augment_draw(&augment, 1, 2, 3);
  const AugmentDraw others[] = {augment_draw(&augment, 2, 2, 3), augment_draw(&augment, 1, 3, 3),
                                augment_draw(&augment, 1, 2, 4), augment_draw(&augment, 1 + (UINT64_C(1) << 32), 2, 3)};
  assert_true(same(&first, &again));
  for (int i = 0; i < 4; i++) assert_false(same(&first, &others[i]));
  /* one option does not change what the others draw */
  Augment fewer = augment;
  fewer.max_warp = 0;
  fewer.flip = false;
  const AugmentDraw partly = augment_draw(&fewer, 1, 2, 3);
  assert_true(partly.angle == first.angle && partly.zoom == first.zoom && partly.brightness == first.brightness);
}

static void options_are_checked(void **state) {
  Fixture *fixture = *state;
  const Augment none = {0}, all = augment_default();
  assert_true(augment_is_none(&none) && !augment_is_none(&all));
  assert_true(augment_check(&none, fixture->diag) && augment_check(&all, fixture->diag));
  check_messages(fixture, "");
  Augment bad = {.max_warp = 0.5, .max_lighting = 1, .max_rotate = NAN, .max_zoom = -1};
  assert_false(augment_check(&bad, fixture->diag));
  assert_int_equal(diag_error_count(fixture->diag), 4);
  check_message_part(fixture, "error: augmentation: expected a warp from 0 to below 0.5, found 0.5\n");
  const Augment never = {.max_rotate = 10, .max_lighting = 0.2};
  assert_true(augment_is_none(&never));
  const Augment crop = {.random_crop = true}, zoom = {.max_zoom = 1.1, .affine_probability = 0.1};
  assert_false(augment_is_none(&crop) || augment_is_none(&zoom));
}

static void random_crops_reach_every_place(void **state) {
  Fixture *fixture = *state;
  const Picture picture = draw(fixture->arena, 6, 5, 1);
  const Augment augment = {.random_crop = true};
  int seen[12] = {0};
  for (int64_t i = 0; i < 400; i++) {
    const Picture crop = augment_picture(&picture, &augment, 9, 0, i, 3, 3, fixture->arena);
    int found = -1;
    for (int place = 0; place < 12 && found < 0; place++) {
      bool equal = true;
      for (int32_t k = 0; k < 9 && equal; k++)
        equal = crop.pixels[k] == pixel(&picture, place % 4 + k % 3, place / 4 + k / 3, 0);
      if (equal) found = place;
    }
    assert_true(found >= 0);
    seen[found]++;
  }
  for (int place = 0; place < 12; place++) assert_in_range(seen[place], 10, 70);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(no_change_is_the_centre_crop),  fixture_test(symmetries_are_exact),
      fixture_test(rotation_is_counter_clockwise), fixture_test(geometry_follows_its_definition),
      fixture_test(padding_is_as_chosen),          fixture_test(light_changes_the_logit),
      fixture_test(draws_stay_in_their_ranges),    fixture_test(draws_depend_on_seed_epoch_and_index),
      fixture_test(options_are_checked),           fixture_test(random_crops_reach_every_place),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
