/* How kernels divide the work on an image into items, as far as anything depends on it outside the code generators: a
 * reduction that is computed by the kernel of its input leaves one row of partial results per item. */
#ifndef KILN_IR_WORK_H
#define KILN_IR_WORK_H

#include "graph.h"

/* Items of an image's work, or sets of them; 0: reductions of the node's value need a kernel of their own. Requires
 * layouts and choices. */
int64_t work_parts(const Node *node);

/* Whether the weights of a batch-blocked product fill so much of the second-level cache that its kernel uses each part
 * for all images before the next one: its items then do not follow each other image by image. */
bool work_weights_first(const Shape *weights, int64_t l2_bytes);
/* Whether the items of a batch-blocked kernel are those of the first images, then those of the next ones. Requires
 * layouts. */
bool work_by_image(const Node *node, int64_t l2_bytes);

/* Parts of the plane_moments that the kernel of `node` can leave besides; 0: it cannot. Requires layouts. */
int64_t work_moment_parts(const Node *node);
/* Rows of each part of a plane but the last one, which may have fewer. */
int64_t moment_rows(int64_t height, int64_t parts);
/* Whether no part is empty. */
bool moment_parts_fit(int64_t height, int64_t parts);

/* Output channels in a vector of a convolution whose filters are blocked; they need not fill the target's vector. */
int32_t work_lanes(Layout output, int32_t filter_block, const KernelChoice *choice);

/* Whether a convolution of plain images can run along rows, from an input whose halo holds the padding. */
bool work_along_rows(const Attrs *attrs, const Shape *filter, const Shape *output);

/* The parts of a convolution's division that its kernel needs as well. */
typedef struct DirectWork {
  int64_t units;       /* groups of blocks of output channels */
  int64_t unit_blocks; /* blocks of a unit */
  int64_t tile_rows;   /* rows of a register tile */
  int64_t row_chunk;   /* rows of an item, a multiple of tile_rows */
  int64_t row_chunks;
} DirectWork;

/* `lanes`: channels in a vector. */
DirectWork work_direct(const Shape *output, int32_t lanes, int32_t filter_block, int64_t groups,
                       const KernelChoice *choice);

/* Element-wise ops with reductions: `rows` rows of an image of blocked or plain channels, or of its last dimension. */
typedef struct RowWork {
  int64_t planes; /* of an image: blocks of channels, or the dimensions before the last two */
  int64_t height; /* rows of a plane */
  int64_t rows;   /* of an item; the last one of a plane may have fewer */
  int64_t chunks; /* items of a plane */
} RowWork;

RowWork work_rows(const Shape *shape, Layout layout);

/* A Winograd convolution with the max pool that reads it, in strips: each makes some rows of the convolution, keeps the
 * last ones of the strip before, and pools them. Windows of a strip end with its rows. */
typedef struct StripWork {
  int64_t rows;   /* of the convolution, of a strip; of the last one as many as there are */
  int64_t kept;   /* of the strip before */
  int64_t pooled; /* rows of the pool's output, likewise */
  int64_t count;  /* strips of an image */
} StripWork;

/* `made`: the convolution's value; `pooled`, `pool`: shape and attributes of the pool. False: it cannot be done so. */
bool work_strips(const Shape *made, const KernelChoice *choice, const Shape *pooled, const Attrs *pool,
                 StripWork *out_work);
/* The same for a max pool of the graph, whatever else reads the convolution. Requires layouts and choices. */
bool work_pools(const Node *pool, StripWork *out_work);

#endif
