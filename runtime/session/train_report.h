/* What a training run looked like: figures, and a page that shows them all. */
#ifndef KILN_RUNTIME_SESSION_TRAIN_REPORT_H
#define KILN_RUNTIME_SESSION_TRAIN_REPORT_H

#include "plot.h"
#include "train.h"

typedef struct TrainFact {
  const char *name, *value;
} TrainFact;

typedef struct TrainReport {
  const char *title;
  const TrainFact *facts; /* what was trained how: the page's first table */
  size_t fact_count;
  bool error_rate;  /* shown instead of the accuracy */
  double low, high; /* range of the statistics' bins */
} TrainReport;

/* Writes loss, metrics, schedule and, with statistics, activations and histograms as PNG and SVG into `folder`, which
 * is made when it is missing, and index.html. A run of no steps gives the table only. */
bool train_report_write(const char *folder, const TrainReport *report, const TrainHistory *history, Arena *arena,
                        Diag *diag);
/* The sweep's loss over the rate, with what it suggests: PNG or SVG, as the name's ending says. */
bool finder_plot_write(const char *path, const char *title, const FinderResult *result, Arena *arena, Diag *diag);

#endif
