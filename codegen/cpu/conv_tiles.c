/* Convolution by products of bf16 halves in tile registers (AMX), channel-blocked.
 *
 * A number is the sum of two of bf16, its rounded value and what that leaves, but for 2⁻¹⁷ of it. Of the four products
 * of two numbers' halves the three large ones are added up, in f32: so an output errs by at most 2⁻¹⁵ of the sum of its
 * products' magnitudes, and measured, as these errors are as if drawn by chance, by 480 u Σ|a||b| / √n for n products:
 * 28 u of 288, 48 u of 64. In relative L2 that is 4e-6, four times that of Winograd's F(4×4,3×3). A tile instruction
 * does 8192 multiply-adds of bf16 in 16 cycles, which makes three of them five times as fast as vector instructions of
 * f32. Splitting f32 for matrix units of lower precision: Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial
 * Intelligence Datatype For Higher-Precision Computations", ARITH 2019. An input that is infinite, or rounds to it in
 * bf16, gives NaN.
 *
 * Operands: the output [N][K/16][H][W][16]; the filters [K/32][C/32][R][S] blocks of 4 KB, which hold the upper halves
 * of channels 0…15 and 16…31 of the panel, then the lower ones, each [pair of input channels][output channel][2]; the
 * input [N][C/16][H][W][16] with the padding as halo.
 *
 * An item is a panel of 32 output channels of some rows of an image. The input of these rows is split first, into
 * scratch memory, [half][C/32][row][column][32], unless the item before was of the same rows. A tile of 16 outputs
 * times 16 channels then takes its left operand from 16 neighbouring pixels. Outputs are numbered row by row, `pitch`
 * to a row: either as many as the padded input has columns, so that with stride 1 a tile goes on in the next row and
 * the few outputs between rows are computed for nothing; or a multiple of 16. Two tiles of outputs and both of the
 * panel's are computed together, and summed up in scratch memory over blocks of 32 input channels: so filters are used
 * from the first- or second-level cache, and what is used next is fetched meanwhile.
 *
 * Every output adds its products in the same order, so that results do not depend on how items are divided. */
#include <string.h>

#include "base/checked.h"
#include "conv.h"
#include "ride.h"

enum {
  TILE = 16,           /* rows of a tile, and numbers of a row of sums */
  CHANNELS = 2 * TILE, /* input channels of a step, output channels of a panel */
  STEP = 64 * TILE,    /* elements of f32 that the filters of a step take */
  HALF = STEP / 2,     /* … and each half of them */
  ROW_BYTES = 64,
  TILE_REGISTERS = 8,
  STEPS_AHEAD = 8 /* at least, of filters that are fetched: 32 KB */
};

typedef struct TileConv {
  Emit *emit;
  const PlanKernel *kernel;
  ConvShape shape;
  const PlanTensor *input, *filter, *output, *bias;
  int64_t rows, chunks;  /* output rows of an item; chunks of an image */
  int64_t panels, steps; /* blocks of 32 output and input channels */
  int64_t columns;       /* of the split input, in pixels */
  int64_t pitch, tiles;  /* outputs of a row, and tiles of an item */
  bool flows;            /* tiles go on in the next row */
  int64_t block, half;   /* elements of a block of 32 channels of the split input, and of all of them */
  Value halves, sums;    /* addresses */
} TileConv;

bool conv_uses_tiles(const PlanKernel *kernel) {
  return kernel->choice.algorithm == ALGORITHM_TILES || kernel->output.layout.kind == LAYOUT_FILTER_HALVES;
}

/* --- tile instructions ------------------------------------------------------------------------------- */

static Value intrinsic(Emit *emit, const char *name, Value *arguments, unsigned count) {
  unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, NULL, 0);
  return LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, NULL, 0), function, arguments, count,
                        "");
}

static Value tile_number(Emit *emit, int number) {
  return LLVMConstInt(LLVMInt8TypeInContext(emit->context), (unsigned long long)number, 0);
}

static void tile_load(Emit *emit, int number, Value address, int64_t row_bytes) {
  intrinsic(emit, "llvm.x86.tileloadd64", (Value[]){tile_number(emit, number), address, emit_int(emit, row_bytes)}, 3);
}

static void tile_zero(Emit *emit, int number) {
  intrinsic(emit, "llvm.x86.tilezero", (Value[]){tile_number(emit, number)}, 1);
}

static void tile_store(Emit *emit, int number, Value address) {
  intrinsic(emit, "llvm.x86.tilestored64", (Value[]){tile_number(emit, number), address, emit_int(emit, ROW_BYTES)}, 3);
}

static void tile_multiply_add(Emit *emit, int sum, int left, int right) {
  intrinsic(emit, "llvm.x86.tdpbf16ps",
            (Value[]){tile_number(emit, sum), tile_number(emit, left), tile_number(emit, right)}, 3);
}

/* All tiles of 16 rows of 64 bytes: palette 1, bytes of a row from byte 16 on, rows from byte 48 on. */
static void configure_tiles(Emit *emit) {
  enum { CONFIGURATION = 64, FIRST_WIDTH = 16, FIRST_HEIGHT = 48 };
  LLVMTypeRef byte = LLVMInt8TypeInContext(emit->context);
  Value bytes[CONFIGURATION];
  for (int i = 0; i < CONFIGURATION; i++) {
    int value = i == 0;
    if (i >= FIRST_WIDTH && i < FIRST_WIDTH + 2 * TILE_REGISTERS && i % 2 == 0) value = ROW_BYTES;
    if (i >= FIRST_HEIGHT && i < FIRST_HEIGHT + TILE_REGISTERS) value = TILE;
    bytes[i] = LLVMConstInt(byte, (unsigned long long)value, 0);
  }
  Value configuration = LLVMAddGlobal(emit->module, LLVMArrayType2(byte, CONFIGURATION), "tile_configuration");
  LLVMSetInitializer(configuration, LLVMConstArray2(byte, bytes, CONFIGURATION));
  LLVMSetLinkage(configuration, LLVMPrivateLinkage);
  LLVMSetGlobalConstant(configuration, 1);
  LLVMSetAlignment(configuration, CONFIGURATION);
  intrinsic(emit, "llvm.x86.ldtilecfg", &configuration, 1);
}

/* --- halves ------------------------------------------------------------------------------------------ */

static LLVMTypeRef words_type(Emit *emit, unsigned count) {
  return LLVMVectorType(LLVMInt16TypeInContext(emit->context), count);
}

/* The rounded values of two vectors as 32 words: those of `first`, then those of `second`. */
static Value rounded(Emit *emit, Value first, Value second) {
  Value both = intrinsic(emit, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", (Value[]){second, first}, 2);
  return LLVMBuildBitCast(emit->builder, both, words_type(emit, 2 * TILE), "");
}

/* 16 of 32 words, from number `from` on, as f32. */
static Value widened(Emit *emit, Value words, int from) {
  Value mask[TILE], shifts[TILE];
  for (int i = 0; i < TILE; i++) {
    mask[i] = LLVMConstInt(emit->i32, (unsigned long long)(from + i), 0);
    shifts[i] = LLVMConstInt(emit->i32, 16, 0);
  }
  Value part = LLVMBuildShuffleVector(emit->builder, words, LLVMGetPoison(words_type(emit, 2 * TILE)),
                                      LLVMConstVector(mask, TILE), "");
  part = LLVMBuildZExt(emit->builder, part, LLVMVectorType(emit->i32, TILE), "");
  part = LLVMBuildShl(emit->builder, part, LLVMConstVector(shifts, TILE), "");
  return LLVMBuildBitCast(emit->builder, part, emit_float_type(emit, TILE), "");
}

/* Two vectors of f32 to 32 words of their upper and 32 of their lower halves. */
static void split(Emit *emit, Value first, Value second, Value *out_upper, Value *out_lower) {
  *out_upper = rounded(emit, first, second);
  *out_lower = rounded(emit, emit_fsub(emit, first, widened(emit, *out_upper, 0)),
                       emit_fsub(emit, second, widened(emit, *out_upper, TILE)));
}

static void store_words(Emit *emit, Value base, Value offset, Value words) {
  emit_store(emit, base, offset, LLVMBuildBitCast(emit->builder, words, emit_float_type(emit, TILE), ""));
}

/* The words of two vectors in turns: what a tile's row of pairs is. */
static Value in_turns(Emit *emit, Value words) {
  Value mask[2 * TILE];
  for (int i = 0; i < 2 * TILE; i++) mask[i] = LLVMConstInt(emit->i32, (unsigned long long)(i / 2 + i % 2 * TILE), 0);
  return LLVMBuildShuffleVector(emit->builder, words, LLVMGetPoison(words_type(emit, 2 * TILE)),
                                LLVMConstVector(mask, 2 * TILE), "");
}

/* One channel of 16 filters from `offset` on. */
static Value load_filters(Emit *emit, const PlanKernel *kernel, Value offset) {
  return emit_load_strided(emit, emit->inputs[0], offset, kernel->inputs[0].storage.stride[0], TILE);
}

/* An item is a step's filters: a panel, 32 channels, a tap. */
bool cpu_convert_halves(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims, *stride = in->storage.stride;
  int64_t panels = dims[0] / CHANNELS, steps = dims[1] / CHANNELS;
  if (in->layout.kind != LAYOUT_PLAIN || dims[0] % CHANNELS != 0 || dims[1] % CHANNELS != 0 || !emit->target->tiles) {
    diag_error(diag, kernel->location, "'%s': these filters cannot be split into tiles", kernel->name);
    return false;
  }
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[4];
  emit_split(emit, item.index, 4, (int64_t[]){panels, steps, dims[2], dims[3]}, digit);
  Value from = emit_add_int(emit, emit_mul_int(emit, digit[0], CHANNELS * stride[0]), in->storage.origin);
  from = emit_add(emit, from, emit_mul_int(emit, digit[1], CHANNELS * stride[1]));
  from = emit_add(emit, from,
                  emit_add(emit, emit_mul_int(emit, digit[2], stride[2]), emit_mul_int(emit, digit[3], stride[3])));
  Value to = emit_add_int(emit, emit_mul_int(emit, item.index, STEP), out->storage.origin);
  EmitLoop pair = emit_loop_count(emit, TILE, 1, "pair");
  for (int part = 0; part < 2; part++) {
    Value first = emit_add_int(emit, emit_add(emit, from, emit_mul_int(emit, pair.index, 2 * stride[1])),
                               part * TILE * stride[0]);
    Value upper, lower,
        place = emit_add_int(emit, emit_add(emit, to, emit_mul_int(emit, pair.index, TILE)), part * TILE * TILE);
    split(emit, load_filters(emit, kernel, first), load_filters(emit, kernel, emit_add_int(emit, first, stride[1])),
          &upper, &lower);
    store_words(emit, emit->output, place, in_turns(emit, upper));
    store_words(emit, emit->output, emit_add_int(emit, place, HALF), in_turns(emit, lower));
  }
  emit_loop_end(emit, &pair);
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = panels * steps * dims[2] * dims[3]};
  return true;
}

/* --- input ------------------------------------------------------------------------------------------- */

/* The input of `count` output rows from `first` on. */
static void split_input(const TileConv *conv, Value image, Value first, Value count) {
  Emit *emit = conv->emit;
  const ConvShape *shape = &conv->shape;
  const Storage *in = &conv->input->storage;
  int64_t below = (shape->kernel_height - 1) * shape->dilation_height + 1 - shape->stride_height;
  Value rows = emit_add_int(emit, emit_mul_int(emit, count, shape->stride_height), below);
  Value corner = emit_add_int(emit, emit_mul_int(emit, image, in->stride[0]),
                              in->origin - shape->pad_top * in->stride[2] - shape->pad_left * in->stride[3]);
  corner = emit_add(emit, corner, emit_mul_int(emit, first, shape->stride_height * in->stride[2]));
  EmitLoop step = emit_loop_count(emit, conv->steps, 1, "input_step");
  EmitLoop row = emit_loop_begin(emit, emit_int(emit, 0), rows, 1, "input_row");
  Value from = emit_add(emit, emit_add(emit, corner, emit_mul_int(emit, step.index, 2 * in->stride[1])),
                        emit_mul_int(emit, row.index, in->stride[2]));
  Value to =
      emit_add(emit, emit_mul_int(emit, step.index, conv->block), emit_mul_int(emit, row.index, conv->columns * TILE));
  EmitLoop column = emit_loop_count(emit, conv->columns, 1, "input_column");
  Value pixel = emit_add(emit, from, emit_mul_int(emit, column.index, in->stride[3]));
  Value place = emit_add(emit, to, emit_mul_int(emit, column.index, TILE)), upper, lower;
  split(emit, emit_load(emit, emit->inputs[0], pixel, TILE),
        emit_load(emit, emit->inputs[0], emit_add_int(emit, pixel, in->stride[1]), TILE), &upper, &lower);
  store_words(emit, conv->halves, place, upper);
  store_words(emit, conv->halves, emit_add_int(emit, place, conv->half), lower);
  emit_loop_end(emit, &column);
  emit_loop_end(emit, &row);
  emit_loop_end(emit, &step);
}

/* --- products ---------------------------------------------------------------------------------------- */

/* Offset in a block of the split input of a tile's first pixel, for the first tap. */
static Value tile_place(const TileConv *conv, Value tile) {
  Emit *emit = conv->emit;
  if (conv->flows) return emit_mul_int(emit, tile, TILE * TILE);
  int64_t of_row = conv->pitch / TILE;
  Value row = emit_mul_int(emit, emit_div_int(emit, tile, of_row), conv->shape.stride_height * conv->columns * TILE);
  return emit_add(emit, row,
                  emit_mul_int(emit, emit_mod_int(emit, tile, of_row), conv->shape.stride_width * TILE * TILE));
}

/* Lines to fetch in a step, some after every product: asked for at once, they would keep the loads waiting. */
typedef struct Fetch {
  Value base, offset;
  int64_t lines, done, products;
} Fetch;

/* Product number `product` of a step. */
static void multiply(const TileConv *conv, Fetch *fetch, int sum, int left, int right) {
  enum { PRODUCTS = 12 };
  Emit *emit = conv->emit;
  tile_multiply_add(emit, sum, left, right);
  fetch->products++;
  for (int64_t end = fetch->lines * fetch->products / PRODUCTS; fetch->done < end; fetch->done++)
    emit_prefetch_line(emit, fetch->base, emit_add_int(emit, fetch->offset, fetch->done * TILE), false);
}

/* One tap of 32 channels for two tiles of pixels. Registers: 0 to 3 the sums, [tile][part], 4 and 5 the pixels, 6 and 7
 * the filters. */
static void multiply_step(const TileConv *conv, const Value pixels[2], Value filters, Fetch *fetch) {
  Emit *emit = conv->emit;
  int64_t stride = conv->shape.stride_width * ROW_BYTES;
  for (int i = 0; i < 2; i++) tile_load(emit, 4 + i, pixels[i], stride);
  for (int part = 0; part < 2; part++) {
    tile_load(emit, 6 + part, emit_address(emit, filters, emit_int(emit, part * TILE * TILE)), ROW_BYTES);
    for (int i = 0; i < 2; i++) multiply(conv, fetch, 2 * i + part, 4 + i, 6 + part);
  }
  for (int i = 0; i < 2; i++) tile_load(emit, 4 + i, emit_address(emit, pixels[i], emit_int(emit, conv->half)), stride);
  for (int i = 0; i < 4; i++) multiply(conv, fetch, i, 4 + i / 2, 6 + i % 2);
  for (int i = 0; i < 2; i++) tile_load(emit, 4 + i, pixels[i], stride);
  for (int part = 0; part < 2; part++)
    tile_load(emit, 6 + part, emit_address(emit, filters, emit_int(emit, HALF + part * TILE * TILE)), ROW_BYTES);
  for (int i = 0; i < 4; i++) multiply(conv, fetch, i, 4 + i / 2, 6 + i % 2);
}

/* Adds the products of 32 channels, whose filters are at `filters`, to the sums of all tiles. The last of an odd number
 * of tiles is computed twice, with the same result. */
static void multiply_block(const TileConv *conv, Value step, Value channels, Value filters) {
  Emit *emit = conv->emit;
  const ConvShape *shape = &conv->shape;
  int64_t taps = shape->kernel_height * shape->kernel_width, pairs = ceil_div(conv->tiles, 2);
  int64_t fetched = ceil_div(STEP / TILE, pairs); /* cache lines of filters in a step */
  int64_t ahead = round_up(taps > STEPS_AHEAD ? taps : STEPS_AHEAD, taps);
  EmitLoop pair = emit_loop_count(emit, pairs, 1, "pair");
  Value number[2], place[2], sums[4];
  number[0] = emit_mul_int(emit, pair.index, 2);
  number[1] = emit_min(emit, emit_add_int(emit, number[0], 1), emit_int(emit, conv->tiles - 1));
  for (int i = 0; i < 2; i++) place[i] = emit_address(emit, channels, tile_place(conv, number[i]));
  for (int i = 0; i < 4; i++) {
    Value offset =
        emit_add_int(emit, emit_mul_int(emit, number[i / 2], TILE * TILE), i % 2 * conv->tiles * TILE * TILE);
    sums[i] = emit_address(emit, conv->sums, offset);
  }
  EmitIf first = emit_if(emit, emit_equal(emit, step, emit_int(emit, 0)), "first_step");
  for (int i = 0; i < 4; i++) tile_zero(emit, i);
  emit_else(emit, &first);
  for (int i = 0; i < 4; i++) tile_load(emit, i, sums[i], ROW_BYTES);
  emit_end_if(emit, &first);
  EmitLoop r = emit_loop_count(emit, shape->kernel_height, 1, "tap_row");
  EmitLoop s = emit_loop_count(emit, shape->kernel_width, 1, "tap_column");
  Value tap = emit_add(emit, emit_mul_int(emit, r.index, shape->kernel_width), s.index);
  Value distance = emit_add(emit, emit_mul_int(emit, r.index, shape->dilation_height * conv->columns * TILE),
                            emit_mul_int(emit, s.index, shape->dilation_width * TILE));
  Value pixels[2];
  for (int i = 0; i < 2; i++) pixels[i] = emit_address(emit, place[i], distance);
  Value next = emit_add(emit, emit_mul_int(emit, pair.index, taps), tap);
  Fetch fetch = {.base = filters, .lines = fetched};
  fetch.offset = emit_add_int(emit, emit_mul_int(emit, next, fetched * TILE), ahead * STEP);
  multiply_step(conv, pixels, emit_address(emit, filters, emit_mul_int(emit, tap, STEP)), &fetch);
  emit_loop_end(emit, &s);
  emit_loop_end(emit, &r);
  for (int i = 0; i < 4; i++) tile_store(emit, i, sums[i]);
  emit_loop_end(emit, &pair);
}

/* --- output ------------------------------------------------------------------------------------------ */

/* Of one of the panel's blocks of output channels; NULL: none. */
static Value load_bias(const TileConv *conv, Value panel, int part) {
  Emit *emit = conv->emit;
  if (conv->bias == NULL) return NULL;
  Value channel = emit_add_int(emit, emit_mul_int(emit, panel, CHANNELS), part * TILE);
  return emit_load(emit, emit->inputs[2], emit_add_int(emit, channel, conv->bias->storage.origin), TILE);
}

static void finish(const TileConv *conv, Value image, Value panel, Value first, Value count) {
  Emit *emit = conv->emit;
  const Storage *out = &conv->output->storage;
  for (int part = 0; part < 2; part++) {
    Value block = emit_add_int(emit, emit_mul_int(emit, panel, 2), part);
    EmitLoop row = emit_loop_begin(emit, emit_int(emit, 0), count, 1, "output_row");
    Value y = emit_add(emit, first, row.index);
    const Value start[4] = {image, block, y, NULL};
    Value base = emit_address(emit, emit->output, emit_offset(emit, conv->output, start));
    Value sums =
        emit_add_int(emit, emit_mul_int(emit, row.index, conv->pitch * TILE), part * conv->tiles * TILE * TILE);
    Value bias = load_bias(conv, panel, part);
    EmitLoop x = emit_loop_count(emit, conv->shape.out_width, 1, "output_column");
    const Value index[4] = {image, block, y, x.index};
    Value sum = emit_load(emit, conv->sums, emit_add(emit, sums, emit_mul_int(emit, x.index, TILE)), TILE);
    if (bias != NULL) sum = emit_fadd(emit, sum, bias);
    emit_store(emit, base, emit_mul_int(emit, x.index, out->stride[3]), emit_epilogue(emit, sum, index, TILE));
    ride_take(emit, block);
    emit_loop_end(emit, &x);
    ride_row(emit);
    if (out->halo[0] != 0 || out->halo[1] != 0 || out->halo[2] != 0 || out->halo[3] != 0)
      emit_halo(emit, image, block, y);
    emit_loop_end(emit, &row);
  }
}

/* --- items ------------------------------------------------------------------------------------------- */

static bool tiles_init(TileConv *conv, Emit *emit, const PlanKernel *kernel, Diag *diag) {
  const ConvShape shape = conv_shape(kernel);
  const PlanTensor *input = &kernel->inputs[0], *filter = &kernel->inputs[1];
  if (!emit->target->tiles || shape.groups != 1 || shape.channels % CHANNELS != 0 || shape.filters % CHANNELS != 0 ||
      filter->layout.kind != LAYOUT_FILTER_HALVES || filter->layout.block != CHANNELS ||
      input->layout.kind != LAYOUT_CHANNEL_BLOCK || input->layout.block != TILE ||
      kernel->output.layout.kind != LAYOUT_CHANNEL_BLOCK || kernel->output.layout.block != TILE ||
      kernel->choice.row_chunk < 1) {
    diag_error(diag, kernel->location, "'%s': convolution in tile registers does not take these operands",
               kernel->name);
    return false;
  }
  if (!conv_check_halo(kernel, &shape, diag)) return false;
  *conv = (TileConv){.emit = emit, .kernel = kernel, .shape = shape, .input = input, .filter = filter};
  conv->output = &kernel->output;
  conv->bias = kernel->op_input_count > 2 ? &kernel->inputs[2] : NULL;
  conv->rows = kernel->choice.row_chunk < shape.out_height ? kernel->choice.row_chunk : shape.out_height;
  conv->chunks = ceil_div(shape.out_height, conv->rows);
  conv->panels = shape.filters / CHANNELS;
  conv->steps = shape.channels / CHANNELS;
  int64_t right = (shape.kernel_width - 1) * shape.dilation_width,
          below = (shape.kernel_height - 1) * shape.dilation_height;
  conv->columns = (shape.out_width - 1) * shape.stride_width + right + 1;
  int64_t whole_rows = conv->rows * ceil_div(shape.out_width, TILE),
          flowing = ceil_div(conv->rows * conv->columns, TILE);
  conv->flows = shape.stride_width == 1 && shape.stride_height == 1 && flowing < whole_rows;
  conv->pitch = conv->flows ? conv->columns : round_up(shape.out_width, TILE);
  conv->tiles = conv->flows ? flowing : whole_rows;
  /* to the last pixel that a tile reads */
  int64_t last = conv->flows
                     ? conv->tiles * TILE - 1
                     : (conv->rows - 1) * shape.stride_height * conv->columns + (conv->pitch - 1) * shape.stride_width;
  conv->block = (last + below * conv->columns + right + 1) * TILE;
  conv->half = conv->steps * conv->block;
  return true;
}

bool cpu_conv_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  TileConv state, *conv = &state;
  if (!tiles_init(conv, emit, kernel, diag)) return false;
  const ConvShape *shape = &conv->shape;
  const Storage *filter = &conv->filter->storage;
  int64_t taps = shape->kernel_height * shape->kernel_width, sums = 2 * conv->tiles * TILE * TILE;
  *out_work = work_per_image(shape->images, conv->chunks * conv->panels);
  out_work->scratch_bytes = (2 * conv->half + sums) * (int64_t)sizeof(float);
  out_work->scratch_bytes = ride_begin(emit, out_work->scratch_bytes, shape->out_width);
  conv->sums = emit->scratch;
  conv->halves = emit_address(emit, emit->scratch, emit_int(emit, sums));
  configure_tiles(emit);
  Value known = emit_variable(emit, emit->i64, "known_rows");
  emit_set(emit, known, emit_int(emit, -1));

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "item");
  Value digit[3];
  emit_split(emit, item.index, 3, (int64_t[]){1, conv->chunks, conv->panels}, digit);
  Value image = digit[0], panel = digit[2], first = emit_mul_int(emit, digit[1], conv->rows);
  Value count = emit_min(emit, emit_int(emit, conv->rows), emit_sub(emit, emit_int(emit, shape->out_height), first));
  Value place = emit_div_int(emit, item.index, conv->panels);
  EmitIf same = emit_if(emit, emit_equal(emit, place, emit_get(emit, emit->i64, known)), "same_rows");
  emit_else(emit, &same);
  split_input(conv, image, first, count);
  emit_set(emit, known, place);
  emit_end_if(emit, &same);

  ride_item(emit);
  EmitLoop step = emit_loop_count(emit, conv->steps, 1, "step");
  Value filters = emit_mul_int(emit, emit_add(emit, emit_mul_int(emit, panel, conv->steps), step.index), taps * STEP);
  multiply_block(conv, step.index, emit_address(emit, conv->halves, emit_mul_int(emit, step.index, conv->block)),
                 emit_address(emit, emit->inputs[1], emit_add_int(emit, filters, filter->origin)));
  emit_loop_end(emit, &step);
  finish(conv, image, panel, first, count);
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
  intrinsic(emit, "llvm.x86.tilerelease", NULL, 0);
  return true;
}
