/* A report: one HTML file that holds everything it shows. It loads nothing and runs nothing, so it can be mailed or
 * kept beside a model and opened years later. */
#ifndef KILN_RUNTIME_SESSION_REPORT_H
#define KILN_RUNTIME_SESSION_REPORT_H

#include "plot.h"

/* The page so far. All texts are UTF-8 and are escaped; bytes that are not become U+FFFD. */
typedef struct Report {
  Text html;
} Report;

void report_begin(Report *report, const char *title, Arena *arena);
void report_heading(Report *report, const char *text);
void report_paragraph(Report *report, const char *text);
/* cells[row * columns + column]; row 0 is the head. A column aligns left or right, as `align` says with '<' or '>' per
 * column; NULL cells are empty. */
void report_table(Report *report, const char *const *cells, size_t rows, size_t columns, const char *align);
/* An SVG document as a picture with `text` for those who cannot see it. It is embedded as data, not as markup: whatever
 * stands in it cannot reach the page, and the ids of two plots cannot meet. */
void report_svg(Report *report, const char *svg, size_t size, const char *text);
/* Draws a figure and embeds it; its title is the text. */
bool report_figure(Report *report, const Figure *figure, Diag *diag);
/* Figures between these stand side by side as far as the screen is wide. */
void report_grid_begin(Report *report);
void report_grid_end(Report *report);
/* Ends the page and writes it atomically. */
bool report_write(Report *report, const char *path, Diag *diag);

#endif
