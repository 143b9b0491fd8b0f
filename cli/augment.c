/* kiln augment: what augmented training pictures look like. */
#include <math.h>
#include <string.h>

#include "data_options.h"
#include "session/plot.h"

typedef struct AugmentRequest {
  DataCommand data;
  const char *path, *augment, *size, *output;
  int64_t batch, seed, channels;
} AugmentRequest;

enum { GRID_PICTURES = 9, DEFAULT_SIZE = 224 };

/* "224" or "192x256": height and width. */
static bool read_size(Tool *tool, const char *text, int64_t *out_height, int64_t *out_width) {
  const size_t length = strcspn(text, "x");
  const char *width = text[length] == 'x' ? text + length + 1 : text;
  if (parse_int(arena_string_n(tool->arena, text, length), out_height) && parse_int(width, out_width) &&
      *out_height >= 1 && *out_height <= PICTURE_MAX_SIDE && *out_width >= 1 && *out_width <= PICTURE_MAX_SIDE &&
      *out_height * *out_width <= PICTURE_MAX_PIXELS)
    return true;
  tool_usage_error(tool, "--size: expected N or HEIGHTxWIDTH in pixels, such as 224, found '%s'", text);
  return false;
}

/* --- one picture ----------------------------------------------------------------------------------- */

static bool grid_of_picture(Tool *tool, const AugmentRequest *request, const Augment *augment, PlotPanel *panels) {
  Picture picture, fitted;
  int64_t height = DEFAULT_SIZE, width = DEFAULT_SIZE;
  if (request->size && !read_size(tool, request->size, &height, &width)) return false;
  if (!picture_read(request->path, tool->arena, tool->diag, &picture) ||
      !picture_fit(&picture, request->path, request->data.resize, (int32_t)width, (int32_t)height, tool->arena,
                   tool->diag, &fitted))
    return false;
  if (fitted.channels == 4) fitted = picture_convert(&fitted, 3, tool->arena);
  for (int64_t i = 0; i < GRID_PICTURES; i++) {
    panels[i].picture =
        augment_picture(&fitted, augment, (uint64_t)request->seed, 0, i, (int32_t)width, (int32_t)height, tool->arena);
  }
  return true;
}

/* --- a batch --------------------------------------------------------------------------------------- */

static bool show_batch(Tool *tool, const AugmentRequest *request, const DataSet *set, const DataBatch *batch,
                       PlotPanel *panels) {
  int64_t dims[3];
  data_set_dims(set, dims);
  const double range[2] = {0, 1};
  for (int64_t i = 0; i < batch->count && i < request->batch; i++) {
    Tensor image = tensor_create(tool->arena, "image", DTYPE_F32, shape_of(3, dims));
    memcpy(image.data, batch->images + i * tensor_elements(&image), (size_t)tensor_bytes(&image));
    panels[i].title = arena_string(tool->arena, data_set_class_name(set, batch->targets[i]));
    if (!picture_from_tensor(&image, range, tool->arena, tool->diag, &panels[i].picture)) return false;
  }
  return true;
}

static bool grid_of_loader(Tool *tool, const AugmentRequest *request, const DataSet *set, const Augment *augment,
                           PlotPanel *panels, size_t *out_count) {
  const DataLoaderOptions options = {.split = DATA_TRAIN,
                                     .batch = request->batch,
                                     .shuffle = true,
                                     .augment = augment,
                                     .seed = (uint64_t)request->seed,
                                     .workers = data_command_workers(&request->data, 0)};
  DataLoader *loader = data_loader_create(set, &options, tool->diag);
  DataBatch batch;
  if (!loader) return false;
  const bool good = data_loader_next(loader, &batch, tool->diag) && show_batch(tool, request, set, &batch, panels);
  *out_count = good ? (size_t)batch.count : 0;
  data_loader_destroy(loader);
  return good;
}

static bool grid_of_data(Tool *tool, const AugmentRequest *request, const Augment *augment, PlotPanel *panels,
                         size_t *out_count) {
  DataOptions options;
  if (!data_command_read(tool, &request->data, &options)) return false;
  if (request->size && !read_size(tool, request->size, &options.height, &options.width)) return false;
  options.channels = request->channels;
  options.normalize = DATA_NORMALIZE_NONE;
  if (!request->size && !data_has_mnist(options.folder, tool->arena)) options.height = options.width = DEFAULT_SIZE;
  DataSet *set = data_set_open(&options, tool->diag);
  if (!set) return false;
  const bool good = grid_of_loader(tool, request, set, augment, panels, out_count);
  data_set_close(set);
  return good;
}

/* --- the verb -------------------------------------------------------------------------------------- */

static int augment_body(Tool *tool, void *context) {
  const AugmentRequest *request = context;
  Augment augment;
  size_t count = GRID_PICTURES;
  if (!augment_read(tool, request->augment ? request->augment : "default", &augment)) return EXIT_FAILED;
  PlotPanel *panels = arena_array(tool->arena, (size_t)request->batch + GRID_PICTURES, PlotPanel);
  for (int64_t i = 0; i < request->batch + GRID_PICTURES; i++) panels[i].kind = PANEL_PICTURE;
  if (!(request->path ? grid_of_picture(tool, request, &augment, panels)
                      : grid_of_data(tool, request, &augment, panels, &count)))
    return EXIT_FAILED;
  enum { LONGER_SIDE = 200, GAP = 8, CAPTION = 28 };
  const Picture *first = &panels[0].picture;
  const double longer = fmax(first->width, first->height);
  const Figure figure = {
      .panels = panels,
      .panel_count = count,
      .columns = (size_t)ceil(sqrt((double)count)),
      .panel_width = fmax(ceil(first->width / longer * LONGER_SIDE) + GAP, 96),
      .panel_height = ceil(first->height / longer * LONGER_SIDE) + (panels[0].title ? CAPTION : GAP)};
  if (!figure_write(&figure, request->output, tool->arena, tool->diag)) return EXIT_FAILED;
  printf("%s: %zu pictures of %dx%d\n", request->output, count, first->width, first->height);
  return EXIT_OK;
}

static int augment_run(int argc, char **argv) {
  AugmentRequest request = {.data = DATA_COMMAND_DEFAULT, .batch = GRID_PICTURES};
  const Option options[] = {
      {"output", 'o', OPTION_TEXT, &request.output, "FILE", "PNG or SVG to write", 0, 0},
      AUGMENT_OPTION(request.augment){"size", 0, OPTION_TEXT, &request.size, "N",
                                      "size of the crop, N or HEIGHTxWIDTH (default: 224; IDX: their own)", 0, 0},
      {"seed", 0, OPTION_INT, &request.seed, "S", "of the random numbers (default: 0)", 0, INT64_MAX},
      {"batch", 'b', OPTION_INT, &request.batch, "N", "with --data: pictures of the batch (default: 9)", 1, 400},
      {"channels", 0, OPTION_INT, &request.channels, "C", "with --data: 1 or 3 (default: the data's)", 1, 3},
      DATA_OPTIONS(request.data){.name = NULL}};
  int code = options_parse(&verb_augment, options, argc, argv, 0, 1, &request.path);
  if (code >= 0) return code;
  const char *wrong = NULL;
  if (!request.path == !request.data.folder)
    wrong = "give a picture or --data DIR";
  else if (request.output == NULL)
    wrong = "-o FILE is missing";
  else if (!ends_with(request.output, ".png") && !ends_with(request.output, ".svg"))
    wrong = "-o: expected a name ending in .png or .svg";
  if (wrong != NULL) {
    fprintf(stderr, "kiln augment: %s\n", wrong);
    return EXIT_USAGE;
  }
  return tool_run(augment_body, &request);
}

const Verb verb_augment = {
    "augment",
    "draw augmented pictures, or a training batch",
    "PICTURE|--data DIR [--augment LIST] -o FILE [options]",
    "Draws one picture under nine random changes, or the first batch of a data set as training sees it (without\n"
    "normalisation). Every picture is resampled once.\n\n" AUGMENT_HELP,
    "  kiln augment cat.jpg -o grid.png\n"
    "  kiln augment cat.jpg --augment dihedral,rotate=45,pad=zeros --size 192x256 --seed 3 -o grid.png\n"
    "  kiln augment --data /usr/share/datasets/fashion-mnist --augment default --batch 16 -o batch.png\n"
    "  kiln augment --data pets --pattern '^(.*)_[0-9]+\\.jpg$' --size 224 --resize 256 -o batch.png",
    augment_run};
