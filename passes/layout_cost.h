/* What layouts of images cost on a processor, in cycles an image: kernels, and conversions between layouts. */
#ifndef KILN_PASSES_LAYOUT_COST_H
#define KILN_PASSES_LAYOUT_COST_H

#include "passes.h"

/* The layouts between which there is a choice: plain, blocks of a vector's channels, of half and a quarter of them (at
 * least 4), and channels last. */
typedef enum ImageForm { FORM_PLAIN, FORM_BLOCK, FORM_HALF, FORM_QUARTER, FORM_LAST, FORM_COUNT } ImageForm;

/* ImageForm number f as a bit of a set. */
#define FORM_BIT(form) (1u << (form))

typedef struct CostModel {
  int32_t lanes; /* of a vector */
  double cache;  /* second level, bytes */
  double batch;  /* the largest */
  bool winograd; /* whether the precision allows it */
} CostModel;

CostModel cost_model(const Graph *graph, const PassOptions *options, int32_t lanes);

/* The form's layout, and the form of a layout; FORM_COUNT: it is none. */
Layout form_layout(ImageForm form, int32_t lanes);
ImageForm form_of(Layout layout, int32_t lanes);
const char *form_name(ImageForm form, int32_t lanes);

/* Whether the value is one whose layout matters: f32 of rank 4. */
bool is_image_value(const Node *node);
/* The layouts in which the node's kernels can make its value; inputs are converted as they need. */
unsigned node_forms(const Node *node, int32_t lanes);
/* Lanes of the vectors in which a convolution with `groups` takes so many output channels when these are last; 0: none
 * fits. */
int32_t last_lanes(int64_t channels, int64_t groups, int32_t lanes);
/* In which form a node that makes form `made` reads operand `i`, which lies in form `form`; another than `form` is
 * converted to first. */
ImageForm operand_form(const CostModel *model, const Node *node, int32_t i, ImageForm form, ImageForm made);

/* The node's kernel, whatever its operands lie in. */
double cost_of_node(const CostModel *model, const Node *node, ImageForm made);
/* What operand `i` in form `form` adds to it, with the conversion when it has to be converted. */
double cost_of_operand(const CostModel *model, const Node *node, int32_t i, ImageForm form, ImageForm made);
/* A conversion in memory. */
double cost_of_conversion(const CostModel *model, const Shape *shape, ImageForm from, ImageForm to);

#endif
