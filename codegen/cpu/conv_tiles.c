/* Convolution by products of bf16 parts in tile registers (AMX), channel-blocked.
 *
 * A number's parts are its value in bf16, what that leaves, in bf16, and what that leaves: two of them, rounded, are the
 * number but for 2⁻¹⁷ of it, three are all of its 24 bits. Of the products of two numbers' parts i and j, counted from
 * 0, those with i + j below the number of parts are added up, in f32.
 *   thirds, 6 products: an output errs by at most 7 u Σ|a||b| besides what its sum is rounded, u = 2⁻²⁴, where inputs
 *     are rounded (|part i| ≤ 2⁻⁸ⁱ of the number) and filters cut off (2⁻⁷ⁱ); on average by a tenth of that. A tile
 *     instruction adds up 32 products before it rounds them into the sum, so that errors are those of direct
 *     convolution in f32, or less.
 *   halves, 3 products: an output errs by at most 2⁻¹⁵ of the sum of its products' magnitudes, and measured, as these
 *     errors are as if drawn by chance, by 480 u Σ|a||b| / √n for n products: 28 u of 288, 48 u of 64. In relative L2
 *     that is 4e-6, four times that of Winograd's F(4×4,3×3).
 * A tile instruction does 8192 multiply-adds of bf16 in 16 cycles, which makes three of them five times as fast as vector
 * instructions of f32. Splitting f32 for matrix units of lower precision: Henry, Tang, Heinecke, "Leveraging the bfloat16
 * Artificial Intelligence Datatype For Higher-Precision Computations", ARITH 2019. An input that is infinite, or rounds
 * to it in bf16, gives NaN.
 *
 * Operands: the output [N][K/16][H][W][16]; the filters [K/32][C/32][R][S] blocks of 2 KB for every part, which hold the
 * first parts of channels 0…15 and 16…31 of the panel, then the next ones, each [pair of input channels][output
 * channel][2], or whole ones [K/16][C/32][R][S] blocks of 2 KB in f32, [pair of input channels][2][output channel]; the
 * input [N][C/16][H][W][16] with the padding as halo. A pair are channels that are 16 apart, as the input has them.
 *
 * An item is a panel of 32 output channels of some rows of an image. The input of these rows is split first, into
 * scratch memory, [part][C/32][phase][row][column][32], unless the item before was of the same rows. The input of a tap
 * is every stride-th row and column of the image from the tap's on; what taps have in common is a phase: with stride 2
 * the even and odd rows and columns, with stride 1 there is one. So all outputs of a tap are neighbours, whatever the
 * stride, and a tile of 16 outputs times 16 channels takes its left operand from 16 neighbouring pixels. Outputs are
 * numbered row by row, `pitch` to a row: either as many as a phase has columns, so that a tile goes on in the next row
 * and the few outputs between rows are computed for nothing; or a multiple of 16. How the products are taken is told in
 * conv_tiles_split.c and conv_tiles_whole.c.
 *
 * Every output adds its products in the same order, so that results do not depend on how items are divided. */
#include <string.h>

#include "base/checked.h"
#include "conv_tiles.h"
#include "ride.h"

bool conv_uses_tiles(const PlanKernel *kernel) {
  return kernel->choice.algorithm == ALGORITHM_TILES || layout_parts(kernel->output.layout) > 0;
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

void tile_load(Emit *emit, int number, Value address) {
  intrinsic(emit, "llvm.x86.tileloadd64", (Value[]){tile_number(emit, number), address, emit_int(emit, ROW_BYTES)}, 3);
}

void tile_zero(Emit *emit, int number) {
  intrinsic(emit, "llvm.x86.tilezero", (Value[]){tile_number(emit, number)}, 1);
}

void tile_store(Emit *emit, int number, Value address) {
  intrinsic(emit, "llvm.x86.tilestored64", (Value[]){tile_number(emit, number), address, emit_int(emit, ROW_BYTES)}, 3);
}

void tile_multiply_add(Emit *emit, int sum, int left, int right) {
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

/* --- parts ------------------------------------------------------------------------------------------- */

static Value integers(Emit *emit, uint32_t value) {
  Value lanes[TILE];
  for (int i = 0; i < TILE; i++) lanes[i] = LLVMConstInt(emit->i32, value, 0);
  return LLVMConstVector(lanes, TILE);
}

Value upper_mask(Emit *emit) { return emit_opaque(emit, integers(emit, 0xffff0000)); }

/* The upper halves of two numbers as one word. Where LLVM sees `or` and `and`, or a shift by a constant vector, it
 * takes long to look through them, and makes them a permutation, which takes the processor longer. */
static Value upper_halves(Emit *emit, Value mask, Value first, Value second) {
  enum { FIRST_OR_SECOND_AND_THIRD = 0xf8 };
  Value half = LLVMConstInt(emit->i32, 16, 0), table = LLVMConstInt(emit->i32, FIRST_OR_SECOND_AND_THIRD, 0);
  Value lower = intrinsic(emit, "llvm.x86.avx512.psrli.d.512", (Value[]){first, half}, 2);
  return intrinsic(emit, "llvm.x86.avx512.pternlog.d.512", (Value[]){lower, second, mask, table}, 4);
}

/* A number of bf16 is the upper half of one of f32. */
void split_pairs(Emit *emit, Value mask, int32_t parts, bool cut, Value first, Value second, Value *out_words) {
  const LLVMTypeRef integer = LLVMVectorType(emit->i32, TILE), number = emit_float_type(emit, TILE);
  Value numbers[2] = {first, second}, bits[2];
  for (int32_t part = 0; part < parts; part++) {
    for (int i = 0; i < 2; i++) {
      bits[i] = LLVMBuildBitCast(emit->builder, numbers[i], integer, "");
      if (!cut) bits[i] = LLVMBuildAdd(emit->builder, bits[i], integers(emit, 0x8000), "");
    }
    out_words[part] = upper_halves(emit, mask, bits[0], bits[1]);
    for (int i = 0; part + 1 < parts && i < 2; i++) {
      Value upper = LLVMBuildAnd(emit->builder, bits[i], mask, "");
      numbers[i] = emit_fsub(emit, numbers[i], LLVMBuildBitCast(emit->builder, upper, number, ""));
    }
  }
}

void store_words(Emit *emit, Value base, Value offset, Value words) {
  emit_store(emit, base, offset, LLVMBuildBitCast(emit->builder, words, emit_float_type(emit, TILE), ""));
}

/* Two channels of `count` filters, the first from `offset` on and the other 16 behind it, to `buffer`, one after the
 * other: code that puts vectors together lane by lane takes LLVM five times as long. */
static void gather_filters(Emit *emit, const PlanKernel *kernel, Value offset, int64_t count, Value buffer) {
  const int64_t *stride = kernel->inputs[0].storage.stride;
  EmitLoop filter = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, count), 1, "filter");
  Value from = emit_address(emit, emit->inputs[0], emit_add(emit, offset, emit_mul_int(emit, filter.index, stride[0])));
  for (int64_t i = 0; i < 2; i++)
    emit_store(emit, buffer, emit_add_int(emit, filter.index, i * count),
               emit_load(emit, from, emit_int(emit, i * TILE * stride[1]), 1));
  emit_loop_end(emit, &filter);
}

/* A row of two channels of 16 filters, to its place in a block's first part; of no parts: whole. */
static void store_row(Emit *emit, Value mask, int32_t parts, Value place, Value first, Value second) {
  Value words[PARTS_MAX];
  if (parts == 0) {
    emit_store(emit, emit->output, place, first);
    emit_store(emit, emit->output, emit_add_int(emit, place, TILE), second);
    return;
  }
  split_pairs(emit, mask, parts, false, first, second, words);
  for (int32_t part = 0; part < parts; part++)
    store_words(emit, emit->output, emit_add_int(emit, place, part * 2 * TILE_FLOATS), words[part]);
}

/* An item is a tap's filters of 32 channels: of a panel in parts, or of a block of f32. */
bool cpu_convert_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  const int64_t *dims = out->shape.dims, *stride = in->storage.stride;
  const int32_t parts = layout_parts(out->layout);
  const int64_t filters = parts > 0 ? CHANNELS : TILE, steps = dims[1] / CHANNELS;
  if (in->layout.kind != LAYOUT_PLAIN || dims[0] % CHANNELS != 0 || dims[1] % CHANNELS != 0 ||
      out->layout.block != filters || (parts > 0 && !emit->target->tiles)) {
    diag_error(diag, kernel->location, "'%s': these filters cannot be brought into tiles", kernel->name);
    return false;
  }
  Value mask = parts > 0 ? upper_mask(emit) : NULL;
  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
  Value digit[4];
  emit_split(emit, item.index, 4, (int64_t[]){dims[0] / filters, steps, dims[2], dims[3]}, digit);
  Value from = emit_add_int(emit, emit_mul_int(emit, digit[0], filters * stride[0]), in->storage.origin);
  from = emit_add(emit, from, emit_mul_int(emit, digit[1], CHANNELS * stride[1]));
  from = emit_add(emit, from,
                  emit_add(emit, emit_mul_int(emit, digit[2], stride[2]), emit_mul_int(emit, digit[3], stride[3])));
  const int64_t size = (parts > 0 ? parts : 2) * (filters / TILE) * TILE_FLOATS, row_size = parts > 0 ? TILE : 2 * TILE;
  Value to = emit_add_int(emit, emit_mul_int(emit, item.index, size), out->storage.origin);
  Value buffer = emit_variable(emit, LLVMArrayType(emit->f32, (unsigned)(2 * filters)), "filters");
  EmitLoop pair = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, TILE), 1, "pair");
  gather_filters(emit, kernel, emit_add(emit, from, emit_mul_int(emit, pair.index, stride[1])), filters, buffer);
  for (int64_t block = 0; block < filters / TILE; block++) {
    Value first = emit_load(emit, buffer, emit_int(emit, block * TILE), TILE);
    Value second = emit_load(emit, buffer, emit_int(emit, filters + block * TILE), TILE);
    Value place = emit_add_int(emit, emit_add(emit, to, emit_mul_int(emit, pair.index, row_size)), block * TILE_FLOATS);
    store_row(emit, mask, parts, place, first, second);
  }
  emit_loop_end(emit, &pair);
  emit_loop_end(emit, &item);
  *out_work = (KernelWork){.items = dims[0] / filters * steps * dims[2] * dims[3]};
  return true;
}

/* --- input ------------------------------------------------------------------------------------------- */

/* Taps of a dimension have so many phases, and tap `tap` is of phase `tap` modulo that. */
static int64_t phase_count(int64_t taps, int64_t stride, int64_t dilation) {
  int64_t phases = 1;
  while (phases * dilation % stride != 0) phases++;
  return phases < taps ? phases : taps;
}

/* The last tap of a phase. */
static int64_t last_tap(int64_t taps, int64_t phases, int64_t phase) {
  return phase + (taps - 1 - phase) / phases * phases;
}

/* Part of a row of the input. Arguments: addresses of its first pixel and of its place in the split input, how many
 * pixels there are, and the elements from a pixel to the next, to the next block of channels, and from a part to the
 * next: with these as arguments, all kernels share it. */
static EmitRoutine row_routine(const TileConv *conv) {
  enum { FROM, TO, COUNT, STEP, BLOCK, PART };
  Emit *emit = conv->emit;
  Value arguments[6], words[PARTS_MAX];
  EmitRoutine routine = emit_routine_begin(emit, "split_row", 2, 4, arguments);
  Value mask = upper_mask(emit);
  EmitLoop column = emit_loop_begin(emit, emit_int(emit, 0), arguments[COUNT], 1, "input_column");
  Value from = emit_address(emit, arguments[FROM], LLVMBuildNSWMul(emit->builder, column.index, arguments[STEP], ""));
  Value to = emit_address(emit, arguments[TO], emit_mul_int(emit, column.index, TILE));
  split_pairs(emit, mask, conv->parts, false, emit_load(emit, from, emit_int(emit, 0), TILE),
              emit_load(emit, from, arguments[BLOCK], TILE), words);
  for (int32_t part = 0; part < conv->parts; part++)
    store_words(emit, to, emit_mul_int(emit, arguments[PART], part), words[part]);
  emit_loop_end(emit, &column);
  emit_routine_end(emit, &routine);
  return routine;
}

/* A phase of the input of `count` output rows, whose first pixel is at `corner`, for `step` of the input channels. */
static void split_phase(const TileConv *conv, const int64_t phase[2], Value corner, Value count, Value step) {
  Emit *emit = conv->emit;
  const ConvShape *shape = &conv->shape;
  const Storage *in = &conv->input->storage;
  const int64_t below = last_tap(shape->kernel_height, conv->phases[0], phase[0]) * shape->dilation_height,
                right = last_tap(shape->kernel_width, conv->phases[1], phase[1]) * shape->dilation_width;
  const int64_t from_row = phase[0] * shape->dilation_height % shape->stride_height,
                from_column = phase[1] * shape->dilation_width % shape->stride_width;
  const int64_t plane = (phase[0] * conv->phases[1] + phase[1]) * conv->plane;
  EmitLoop row =
      emit_loop_outer(emit, emit_int(emit, 0), emit_add_int(emit, count, below / shape->stride_height), 1, "input_row");
  Value from = emit_add_int(emit, emit_add(emit, corner, emit_mul_int(emit, step, 2 * in->stride[1])),
                            from_row * in->stride[2] + from_column * in->stride[3]);
  from = emit_add(emit, from, emit_mul_int(emit, row.index, shape->stride_height * in->stride[2]));
  Value to = emit_add(emit, emit_mul_int(emit, step, conv->block), emit_mul_int(emit, row.index, conv->columns * TILE));
  const Value pixels[] = {emit_address(emit, emit->inputs[0], from),
                          emit_address(emit, conv->split, emit_add_int(emit, to, plane * TILE)),
                          emit_int(emit, shape->out_width + right / shape->stride_width),
                          emit_int(emit, shape->stride_width * in->stride[3]),
                          emit_int(emit, in->stride[1]),
                          emit_int(emit, conv->part)};
  emit_routine_call(emit, &conv->split_row, pixels);
  emit_loop_end(emit, &row);
}

/* The input of `count` output rows from `first` on. */
static void split_input(const TileConv *conv, Value image, Value first, Value count) {
  Emit *emit = conv->emit;
  const ConvShape *shape = &conv->shape;
  const Storage *in = &conv->input->storage;
  Value corner = emit_add_int(emit, emit_mul_int(emit, image, in->stride[0]),
                              in->origin - shape->pad_top * in->stride[2] - shape->pad_left * in->stride[3]);
  corner = emit_add(emit, corner, emit_mul_int(emit, first, shape->stride_height * in->stride[2]));
  EmitLoop step = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, conv->steps), 1, "input_step");
  for (int64_t i = 0; i < conv->phases[0]; i++)
    for (int64_t j = 0; j < conv->phases[1]; j++)
      split_phase(conv, (const int64_t[2]){i, j}, corner, count, step.index);
  emit_loop_end(emit, &step);
}

/* --- places ------------------------------------------------------------------------------------------ */

Value tile_place(const TileConv *conv, Value tile) {
  Emit *emit = conv->emit;
  if (conv->flows) return emit_mul_int(emit, tile, TILE * TILE);
  int64_t of_row = conv->pitch / TILE;
  Value row = emit_mul_int(emit, emit_div_int(emit, tile, of_row), conv->columns * TILE);
  return emit_add(emit, row, emit_mul_int(emit, emit_mod_int(emit, tile, of_row), TILE * TILE));
}

/* Pixels from a phase's first one to a tap's. */
static Value tap_pixels(Emit *emit, Value tap, int64_t dilation, int64_t stride) {
  return emit_div_int(emit, emit_mul_int(emit, tap, dilation), stride);
}

Value tap_distance(const TileConv *conv, Value tap_row, Value tap_column) {
  Emit *emit = conv->emit;
  const ConvShape *shape = &conv->shape;
  Value phase = emit_add(emit, emit_mul_int(emit, emit_mod_int(emit, tap_row, conv->phases[0]), conv->phases[1]),
                         emit_mod_int(emit, tap_column, conv->phases[1]));
  Value row = tap_pixels(emit, tap_row, shape->dilation_height, shape->stride_height);
  Value pixel = emit_add(emit, emit_mul_int(emit, phase, conv->plane), emit_mul_int(emit, row, conv->columns));
  pixel = emit_add(emit, pixel, tap_pixels(emit, tap_column, shape->dilation_width, shape->stride_width));
  return emit_mul_int(emit, pixel, TILE);
}

Value tile_sums(const TileConv *conv, Value block, Value tile) {
  Emit *emit = conv->emit;
  Value number = emit_add(emit, emit_mul_int(emit, block, conv->tiles), tile);
  return emit_address(emit, conv->sums, emit_mul_int(emit, number, TILE_FLOATS));
}

/* --- products ---------------------------------------------------------------------------------------- */

TilePasses tile_passes(const TileConv *conv) {
  TilePasses passes = {.count = ceil_div(conv->tiles, WIDTH)};
  passes.width = ceil_div(conv->tiles, passes.count);
  passes.rest = conv->tiles - (passes.count - 1) * passes.width;
  passes.alike = passes.rest == passes.width ? passes.count : passes.count - 1;
  return passes;
}

void tile_pass_places(const TileConv *conv, Value channels, Value block, Value pass, int width, Value *out_pixels,
                      Value *out_sums) {
  Emit *emit = conv->emit;
  for (int i = 0; i < width; i++) {
    Value tile = emit_add_int(emit, emit_mul_int(emit, pass, tile_passes(conv).width), i);
    out_pixels[i] = emit_address(emit, channels, tile_place(conv, tile));
    out_sums[i] = tile_sums(conv, block, tile);
  }
}

TapLoop tap_loop_begin(const TileConv *conv, int64_t steps, const Value *places, int width) {
  Emit *emit = conv->emit;
  const ConvShape *shape = &conv->shape;
  TapLoop loop;
  loop.step = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, steps), 1, "step");
  loop.row = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, shape->kernel_height), 1, "tap_row");
  loop.column = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, shape->kernel_width), 1, "tap_column");
  Value tap = emit_add(emit, emit_mul_int(emit, loop.row.index, shape->kernel_width), loop.column.index);
  loop.tap = emit_add(emit, emit_mul_int(emit, loop.step.index, conv->taps), tap);
  Value distance = emit_add(emit, tap_distance(conv, loop.row.index, loop.column.index),
                            emit_mul_int(emit, loop.step.index, conv->block));
  for (int i = 0; i < width; i++) loop.pixels[i] = emit_opaque(emit, emit_address(emit, places[i], distance));
  return loop;
}

void tap_loop_end(const TileConv *conv, TapLoop *loop) {
  emit_loop_end(conv->emit, &loop->column);
  emit_loop_end(conv->emit, &loop->row);
  emit_loop_end(conv->emit, &loop->step);
}

/* The products of a sum follow each other, so that a part of the pixels is loaded once, and a part of the filters once for
 * all: loads take the time that products leave, and energy. */
void multiply_tap(const TileConv *conv, const Value *pixels, int width, Value filters, int64_t part, TileBeside beside,
                  const void *context) {
  enum { FILTERS = WIDTH, PIXELS = FILTERS + PARTS_MAX }; /* registers */
  Emit *emit = conv->emit;
  const int64_t products = conv->parts * (conv->parts + 1) / 2 * width;
  int64_t done = 0;
  for (int right = 0; right < conv->parts; right++)
    tile_load(emit, FILTERS + right, emit_address(emit, filters, emit_int(emit, right * part)));
  for (int i = 0; i < width; i++)
    for (int left = 0; left < conv->parts; left++) {
      tile_load(emit, PIXELS, emit_address(emit, pixels[i], emit_int(emit, left * conv->part)));
      for (int right = 0; left + right < conv->parts; right++) {
        tile_multiply_add(emit, i, PIXELS, FILTERS + right);
        beside(conv, context, ++done, products);
      }
    }
}

/* --- output ------------------------------------------------------------------------------------------ */

/* Of a block of output channels; NULL: none. */
static Value bias_address(const TileConv *conv, Value block) {
  Emit *emit = conv->emit;
  if (conv->bias == NULL) return NULL;
  Value channel = emit_mul_int(emit, block, TILE);
  return emit_address(emit, emit->inputs[2], emit_add_int(emit, channel, conv->bias->storage.origin));
}

static void finish(const TileConv *conv, Value image, Value panel, Value first, Value count) {
  Emit *emit = conv->emit;
  EmitLoop part = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, 2), 1, "output_block");
  Value block = emit_add(emit, emit_mul_int(emit, panel, 2), part.index);
  Value place = emit_mul_int(emit, part.index, conv->tiles * TILE_FLOATS);
  const ConvSums sums = {.start = {image, block, first, NULL},
                         .rows = count,
                         .address = emit_address(emit, conv->sums, place),
                         .pitch = conv->pitch * TILE,
                         .bias = bias_address(conv, block)};
  conv_finish_rows(emit, &conv->finish, &sums);
  emit_loop_end(emit, &part);
}

static void clear_halo(const TileConv *conv, Value image, Value panel, Value first, Value count) {
  Emit *emit = conv->emit;
  EmitLoop part = emit_loop_outer(emit, emit_int(emit, 0), emit_int(emit, 2), 1, "halo_block");
  Value block = emit_add(emit, emit_mul_int(emit, panel, 2), part.index);
  emit_halo_rows(emit, image, block, first, emit_add(emit, first, count));
  emit_loop_end(emit, &part);
}

/* --- parts of the kernel ----------------------------------------------------------------------------- */

static void place_memory(TileConv *conv) {
  Emit *emit = conv->emit;
  conv->sums = emit->scratch;
  conv->split = emit_address(emit, conv->sums, emit_int(emit, 2 * conv->tiles * TILE_FLOATS));
  conv->filters = emit_address(emit, conv->split, emit_int(emit, conv->parts * conv->part));
}

/* Arguments: the panel, and turns since the kernel's begin. */
static EmitRoutine multiply_part(TileConv *conv) {
  Emit *emit = conv->emit;
  Value arguments[2];
  EmitRoutine routine = emit_part_begin(emit, "multiply", 2, arguments);
  place_memory(conv);
  conv->turns_done = emit_variable(emit, emit->i64, "turns_done");
  emit_set(emit, conv->turns_done, arguments[1]);
  if (conv->whole)
    multiply_whole(conv, arguments[0]);
  else
    multiply_split(conv, arguments[0]);
  emit_routine_end(emit, &routine);
  return routine;
}

/* --- items ------------------------------------------------------------------------------------------- */

static bool tiles_init(TileConv *conv, Emit *emit, const PlanKernel *kernel, Diag *diag) {
  const ConvShape shape = conv_shape(kernel);
  const PlanTensor *input = &kernel->inputs[0], *filter = &kernel->inputs[1];
  const int32_t parts = layout_parts(filter->layout);
  const bool whole = filter->layout.kind == LAYOUT_FILTER_TILES;
  if (!emit->target->tiles || shape.groups != 1 || shape.channels % CHANNELS != 0 || shape.filters % CHANNELS != 0 ||
      !(parts > 0 || whole) || filter->layout.block != (whole ? TILE : CHANNELS) ||
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
  conv->taps = shape.kernel_height * shape.kernel_width;
  conv->phases[0] = phase_count(shape.kernel_height, shape.stride_height, shape.dilation_height);
  conv->phases[1] = phase_count(shape.kernel_width, shape.stride_width, shape.dilation_width);
  const int64_t right = (shape.kernel_width - 1) * shape.dilation_width / shape.stride_width,
                below = (shape.kernel_height - 1) * shape.dilation_height / shape.stride_height;
  conv->columns = shape.out_width + right;
  conv->plane = (conv->rows + below) * conv->columns;
  int64_t whole_rows = conv->rows * ceil_div(shape.out_width, TILE),
          flowing = ceil_div(conv->rows * conv->columns, TILE);
  conv->flows = flowing < whole_rows;
  conv->pitch = conv->flows ? conv->columns : round_up(shape.out_width, TILE);
  conv->tiles = conv->flows ? flowing : whole_rows;
  /* to the last pixel that a tile reads */
  int64_t last = conv->flows ? conv->tiles * TILE - 1 : (conv->rows - 1) * conv->columns + conv->pitch - 1;
  last += (conv->phases[0] * conv->phases[1] - 1) * conv->plane + below * conv->columns + right;
  conv->block = (last + 1) * TILE;
  conv->part = conv->steps * conv->block;
  conv->whole = whole;
  conv->parts = whole ? PARTS_MAX : parts;
  if (whole && conv->tiles > WHOLE_TILES) {
    diag_error(diag, kernel->location, "'%s': whole filters are for at most %d tiles of outputs, found %lld",
               kernel->name, WHOLE_TILES, (long long)conv->tiles);
    return false;
  }
  return true;
}

bool cpu_conv_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  TileConv state, *conv = &state;
  if (!tiles_init(conv, emit, kernel, diag)) return false;
  const ConvShape *shape = &conv->shape;
  const int64_t sums = 2 * conv->tiles * TILE_FLOATS, split = conv->parts * conv->part;
  *out_work = work_per_image(shape->images, conv->chunks * conv->panels);
  out_work->scratch_bytes = (sums + split + (conv->whole ? whole_scratch() : 0)) * (int64_t)sizeof(float);
  out_work->scratch_bytes = ride_begin(emit, out_work->scratch_bytes, shape->out_width);
  conv->split_row = row_routine(conv);
  conv->finish = conv_finish_begin(emit, conv->bias != NULL, TILE);
  const EmitRoutine multiplies = multiply_part(conv);
  emit->quick = conv->finish.apart;
  place_memory(conv);
  configure_tiles(emit);
  Value known = emit_variable(emit, emit->i64, "known_rows");
  emit_set(emit, known, emit_int(emit, -1));
  Value turns_done = emit_variable(emit, emit->i64, "turns_done");
  emit_set(emit, turns_done, emit_int(emit, 0));
  if (conv->whole) begin_whole(conv);

  EmitLoop item = emit_loop_outer(emit, emit->begin, emit->end, 1, "item");
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
  Value turns = emit_get(emit, emit->i64, turns_done);
  emit_routine_call(emit, &multiplies, (Value[]){panel, turns});
  if (conv->whole) emit_set(emit, turns_done, emit_add_int(emit, turns, whole_turns(conv)));
  finish(conv, image, panel, first, count);
  clear_halo(conv, image, panel, first, count);
  ride_item_end(emit, item.index);
  emit_loop_end(emit, &item);
  intrinsic(emit, "llvm.x86.tilerelease", NULL, 0);
  return true;
}
