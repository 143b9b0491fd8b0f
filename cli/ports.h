/* Inputs from files and outputs to files, by the names of a program's ports. */
#ifndef KILN_CLI_PORTS_H
#define KILN_CLI_PORTS_H

#include "common.h"
#include "session/picture.h"

/* What a program's metadata says: see kiln_program.metadata. */
typedef struct Metadata {
  const Preprocess *preprocess; /* per input */
  const char **labels;
  size_t label_count;
  int64_t class_number; /* for an integer input "class" that no file gives; −1: none chosen */
} Metadata;

bool metadata_read(Tool *tool, const kiln_program *program, Metadata *out_metadata);
/* One class name per line. */
bool labels_read(Tool *tool, const char *path, Metadata *metadata);

/* Tensors for all inputs, in table order and of the type and shape that the ports ask for. `files` are safetensors
 * whose tensors match by name; `single` are NAME=FILE with PNG, JPEG, .npy or safetensors files. Pictures are resized
 * and cropped to the port's height and width and normalised as the description says; several pictures for one input
 * (NAME=A NAME=B) make a batch, of an IDX file (…-ubyte, .idx, each also with .gz) the first that the program takes at
 * once do. Sets the batch (1 when no input is batched). */
bool inputs_read(Tool *tool, const kiln_program *program, const Metadata *metadata, const TensorList *files,
                 const OptionList *single, Tensor **out_inputs, int64_t *out_batch);
/* The part of a picture that the input sees: resized and cropped, not normalised. */
bool picture_view(Tool *tool, const kiln_port *port, const Preprocess *preprocess, const char *file,
                  const Picture *picture, Picture *out_view);
/* Whether output_write knows the file's ending. */
bool output_check(Tool *tool, const char *path);
/* Writes one output: .npy, .safetensors or .png by the name's ending. */
bool output_write(Tool *tool, const Tensor *output, const char *path, const double *range);

/* Uniform values in [−1, 1), or small class numbers for integer inputs, by a seed: for checking and timing. */
bool inputs_random(Tool *tool, const kiln_port *ports, size_t count, int64_t batch, uint64_t seed,
                   TensorList *out_list);

#endif
