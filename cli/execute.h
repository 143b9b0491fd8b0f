/* Opening what run and bench execute: a description compiled in memory, or a compiled library. */
#ifndef KILN_CLI_EXECUTE_H
#define KILN_CLI_EXECUTE_H

#include "common.h"

/* `inputs` (may be NULL) may supply parameters too. With a description also sets *out_graph and *out_plan (NULL for a
 * library). The executable is destroyed with the tool's arena. */
bool executable_open(Tool *tool, const char *path, const ModelOptions *options, const TensorList *inputs, int64_t batch,
                     kiln_executable **out_executable, Graph **out_graph, Plan **out_plan);

/* The same for a description that has been read; `files` may supply parameters. */
bool executable_from_graph(Tool *tool, Graph *graph, const ModelOptions *options, const TensorList *files,
                           int64_t batch, kiln_executable **out_executable, Plan **out_plan);

/* Calls kiln_run over all images of `inputs`, at most the program's maximum at a time. Outputs are new tensors. */
bool run_batches(Tool *tool, const kiln_executable *executable, const kiln_context_options *options,
                 const Tensor *inputs, int64_t batch, Tensor **out_outputs);

#endif
