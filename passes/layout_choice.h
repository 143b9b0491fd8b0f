/* The choice of image layouts over a whole graph; see layout_choice.c. */
#ifndef KILN_PASSES_LAYOUT_CHOICE_H
#define KILN_PASSES_LAYOUT_CHOICE_H

#include "layout_cost.h"

typedef struct LayoutChoice {
  CostModel model;
  const uint8_t *forms; /* by id: the form that each value is to be made in */
} LayoutChoice;

/* `prepared` as from mark_prepare_phase. Decisions are noted in the nodes. */
LayoutChoice layout_choose(Graph *graph, const PassOptions *options, int32_t lanes, const bool *prepared);

#endif
