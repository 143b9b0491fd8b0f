#include "plot_draw.h"

#include <string.h>

void canvas_color(Canvas *canvas, uint32_t rgb, double alpha) {
  cairo_set_source_rgba(canvas->cairo, (rgb >> 16 & 255) / 255.0, (rgb >> 8 & 255) / 255.0, (rgb & 255) / 255.0, alpha);
}

/* --- text ------------------------------------------------------------------------------------------ */

/* An invalid sequence would put the whole context into an error state. */
static const char *text_clean(const char *text, Arena *arena) {
  Text clean;
  text_init(&clean, arena);
  size_t left = strlen(text);
  while (left > 0) {
    const size_t good = utf8_prefix(text, left);
    for (size_t i = 0; i < good; i++) {
      const unsigned char byte = (unsigned char)text[i];
      text_add_n(&clean, byte < 0x20 || byte == 0x7F ? " " : text + i, 1);
    }
    text += good;
    left -= good;
    if (left > 0) {
      text_add(&clean, "\xEF\xBF\xBD");
      text++;
      left--;
    }
  }
  return clean.data;
}

double text_width(Canvas *canvas, const char *text, double size) {
  cairo_text_extents_t extents = {0};
  cairo_set_font_size(canvas->cairo, size);
  cairo_text_extents(canvas->cairo, text, &extents);
  return extents.x_advance;
}

/* Bytes of the longest beginning of at most `limit` bytes that ends between characters. */
static size_t whole_characters(const char *text, size_t limit) {
  while (limit > 0 && ((unsigned char)text[limit] & 0xC0) == 0x80) limit--;
  return limit;
}

const char *text_fit(Canvas *canvas, const char *text, double size, double width) {
  /* Longer text is never shown in full, and cairo cannot place text of any length. */
  enum { LONGEST = 1000 };
  if (!text) return "";
  const char *whole = text_clean(text, canvas->arena);
  size_t fits = 0, rejected = strlen(whole) + 1;
  if (rejected > LONGEST) {
    rejected = LONGEST;
  } else if (text_width(canvas, whole, size) <= width) {
    return whole;
  }
  const char *best = "";
  while (rejected - fits > 1) {
    const size_t middle = fits + (rejected - fits) / 2;
    const char *cut = arena_string_n(canvas->arena, whole, whole_characters(whole, middle));
    const char *attempt = arena_format(canvas->arena, "%s…", cut);
    if (text_width(canvas, attempt, size) <= width) {
      best = attempt;
      fits = middle;
    } else {
      rejected = middle;
    }
  }
  return best;
}

void text_draw(Canvas *canvas, const char *text, double size, double x, double y, double align) {
  if (*text == '\0') return;
  cairo_move_to(canvas->cairo, x - text_width(canvas, text, size) * align, y);
  cairo_show_text(canvas->cairo, text);
  cairo_new_path(canvas->cairo);
}

void text_draw_up(Canvas *canvas, const char *text, double size, double x, double y) {
  cairo_save(canvas->cairo);
  cairo_translate(canvas->cairo, x, y);
  cairo_rotate(canvas->cairo, -1.5707963267948966);
  text_draw(canvas, text, size, 0, 0, 0.5);
  cairo_restore(canvas->cairo);
}

/* --- pixels ---------------------------------------------------------------------------------------- */

void canvas_pixels(Canvas *canvas, const Box *box, uint32_t *pixels, int32_t width, int32_t height) {
  cairo_t *cairo = canvas->cairo;
  cairo_save(cairo);
  cairo_rectangle(cairo, box->x, box->y, box->width, box->height);
  cairo_clip(cairo);
  cairo_translate(cairo, box->x, box->y);
  cairo_scale(cairo, box->width / width, box->height / height);
  cairo_surface_t *image =
      cairo_image_surface_create_for_data((unsigned char *)pixels, CAIRO_FORMAT_RGB24, width, height, width * 4);
  cairo_set_source_surface(cairo, image, 0, 0);
  cairo_surface_destroy(image);
  cairo_pattern_set_filter(cairo_get_source(cairo), CAIRO_FILTER_NEAREST);
  cairo_paint(cairo);
  cairo_restore(cairo);
}
