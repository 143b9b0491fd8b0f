#include "report.h"

#include <string.h>

#include "base/file.h"

/* Escaped text, for content and quoted attributes. Control characters, which HTML forbids, become spaces. */
static void add_escaped(Text *html, const char *text) {
  size_t left = text ? strlen(text) : 0;
  while (left > 0) {
    const size_t good = utf8_prefix(text, left);
    for (size_t i = 0; i < good; i++) {
      const unsigned char byte = (unsigned char)text[i];
      switch (byte) {
        case '&':
          text_add(html, "&amp;");
          break;
        case '<':
          text_add(html, "&lt;");
          break;
        case '>':
          text_add(html, "&gt;");
          break;
        case '"':
          text_add(html, "&quot;");
          break;
        default:
          text_add_n(html, byte == 0x7F || (byte < 0x20 && byte != '\n') ? " " : text + i, 1);
          break;
      }
    }
    text += good;
    left -= good;
    if (left > 0) {
      text_add(html, "\xEF\xBF\xBD");
      text++;
      left--;
    }
  }
}

static void add_base64(Text *html, const char *bytes, size_t size) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < size; i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; k++) group = group << 8 | (i + k < size ? (unsigned char)bytes[i + k] : 0);
    char out[4];
    for (size_t k = 0; k < 4; k++) out[k] = i + k <= size ? digits[group >> (18 - 6 * k) & 63] : '=';
    text_add_n(html, out, sizeof out);
  }
}

static void add_element(Text *html, const char *tag, const char *text) {
  text_format(html, "<%s>", tag);
  add_escaped(html, text);
  text_format(html, "</%s>\n", tag);
}

void report_begin(Report *report, const char *title, Arena *arena) {
  Text *html = &report->html;
  text_init(html, arena);
  text_add(html,
           "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
           "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
  add_element(html, "title", title && *title ? title : "Report");
  text_add(
      html,
      "<style>\n"
      "body { font-family: \"DejaVu Sans\", Verdana, sans-serif; color: #262626; background: #fff;"
      " max-width: 75em; margin: 2em auto; padding: 0 1em; line-height: 1.45; }\n"
      "h1 { font-size: 1.6em; }\nh2 { font-size: 1.2em; margin-top: 2em; }\n"
      "table { border-collapse: collapse; font-size: 0.9em; font-variant-numeric: tabular-nums; }\n"
      "th, td { padding: 0.25em 0.9em; border-bottom: 1px solid #e4e4e4; text-align: left; }\n"
      "th { border-bottom: 2px solid #808080; }\n.right { text-align: right; }\n"
      "img { max-width: 100%; height: auto; }\n"
      ".wide { overflow-x: auto; }\n"
      ".grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22em, 100%), 1fr)); gap: 0 1em; }\n"
      ".grid p { margin: 0.3em 0; }\n.grid img { width: 100%; max-width: 40em; }\n"
      "</style>\n</head>\n<body>\n");
  add_element(html, "h1", title && *title ? title : "Report");
}

void report_heading(Report *report, const char *text) { add_element(&report->html, "h2", text); }

void report_paragraph(Report *report, const char *text) { add_element(&report->html, "p", text); }

void report_table(Report *report, const char *const *cells, size_t rows, size_t columns, const char *align) {
  Text *html = &report->html;
  if (rows == 0 || columns == 0) return;
  text_add(html, "<div class=\"wide\">\n<table>\n<thead>\n");
  for (size_t r = 0; r < rows; r++) {
    if (r == 1) text_add(html, "</thead>\n<tbody>\n");
    text_add(html, "<tr>");
    for (size_t c = 0; c < columns; c++) {
      const char *tag = r == 0 ? "th" : "td";
      const bool right = align && c < strlen(align) && align[c] == '>';
      text_format(html, "<%s%s>", tag, right ? " class=\"right\"" : "");
      add_escaped(html, cells[r * columns + c]);
      text_format(html, "</%s>", tag);
    }
    text_add(html, "</tr>\n");
  }
  text_add(html, rows > 1 ? "</tbody>\n</table>\n</div>\n" : "</thead>\n</table>\n</div>\n");
}

void report_svg(Report *report, const char *svg, size_t size, const char *text) {
  Text *html = &report->html;
  text_add(html, "<p><img alt=\"");
  add_escaped(html, text);
  text_add(html, "\" src=\"data:image/svg+xml;base64,");
  add_base64(html, svg, size);
  text_add(html, "\"></p>\n");
}

bool report_figure(Report *report, const Figure *figure, Diag *diag) {
  Text svg;
  if (!figure_svg(figure, report->html.arena, diag, &svg)) return false;
  const char *text = figure->title;
  if (!text || !*text) text = figure->panels[0].title;
  report_svg(report, svg.data, svg.size, text ? text : "plot");
  return true;
}

void report_grid_begin(Report *report) { text_add(&report->html, "<div class=\"grid\">\n"); }

void report_grid_end(Report *report) { text_add(&report->html, "</div>\n"); }

bool report_write(Report *report, const char *path, Diag *diag) {
  text_add(&report->html, "</body>\n</html>\n");
  const FilePiece piece = {report->html.data, report->html.size};
  return file_write(path, &piece, 1, diag);
}
