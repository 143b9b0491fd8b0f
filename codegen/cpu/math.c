/* Elementary functions in f32 as branch-free vector code: range reduction and a polynomial, no calls.
 *
 * Largest errors measured against double precision over every 1021st float on all x86-64 levels (tests/test_math.c), in
 * units of the last place of the exact result:
 *
 *   exp      1.0   Cephes expf; also where the result is denormal
 *   log      0.8   Cephes logf; denormal arguments too; log(0) = -inf, NaN below 0
 *   tanh     1.3   Cephes tanhf
 *   erf      1.1   N. Juffa's erff: a polynomial near 0, 1 - exp(polynomial) beyond 0.93
 *   sigmoid  2.1   1 / (1 + exp(-x)); 0 or a denormal where the exact result is below the smallest normal number
 *   sqrt     0.5   the instruction
 *
 * NaN in gives NaN out. Cephes: S. L. Moshier, Methods and Programs for Mathematical Functions, 1989. */
#include <math.h>

#include "emit.h"

/* --- vectors of i32 ---------------------------------------------------------------------------------- */

static LLVMTypeRef int_type(Emit *emit, int32_t lanes) {
  return lanes == 1 ? emit->i32 : LLVMVectorType(emit->i32, (unsigned)lanes);
}

static Value int_constant(Emit *emit, int32_t lanes, int32_t value) {
  enum { MAX_LANES = 64 };
  Value one = LLVMConstInt(emit->i32, (uint32_t)value, 0);
  if (lanes == 1) return one;
  Value values[MAX_LANES];
  for (int32_t lane = 0; lane < lanes; lane++) values[lane] = one;
  return LLVMConstVector(values, (unsigned)lanes);
}

static Value to_bits(Emit *emit, Value a, int32_t lanes) {
  return LLVMBuildBitCast(emit->builder, a, int_type(emit, lanes), "");
}

static Value from_bits(Emit *emit, Value bits, int32_t lanes) {
  return LLVMBuildBitCast(emit->builder, bits, emit_float_type(emit, lanes), "");
}

/* --- building blocks --------------------------------------------------------------------------------- */

enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127 };

/* Horner's rule; the coefficient of the highest power first. */
static Value polynomial(Emit *emit, Value x, const double *coefficients, int count, int32_t lanes) {
  Value sum = emit_float(emit, lanes, coefficients[0]);
  for (int i = 1; i < count; i++) sum = emit_fma(emit, sum, x, emit_float(emit, lanes, coefficients[i]));
  return sum;
}

#define POLYNOMIAL(emit, x, coefficients, lanes) \
  polynomial(emit, x, coefficients, (int)(sizeof(coefficients) / sizeof(coefficients)[0]), lanes)

static Value intrinsic(Emit *emit, const char *name, size_t length, Value a) {
  LLVMTypeRef type = LLVMTypeOf(a);
  unsigned id = LLVMLookupIntrinsicID(name, length);
  Value function = LLVMGetIntrinsicDeclaration(emit->module, id, &type, 1);
  return LLVMBuildCall2(emit->builder, LLVMIntrinsicGetType(emit->context, id, &type, 1), function, &a, 1, "");
}

static Value absolute(Emit *emit, Value a) { return intrinsic(emit, "llvm.fabs", sizeof "llvm.fabs" - 1, a); }

/* The sign bit of `magnitude` is clear. */
static Value with_sign_of(Emit *emit, Value magnitude, Value sign, int32_t lanes) {
  Value mask = int_constant(emit, lanes, INT32_MIN);
  Value bit = LLVMBuildAnd(emit->builder, to_bits(emit, sign, lanes), mask, "");
  return from_bits(emit, LLVMBuildOr(emit->builder, to_bits(emit, magnitude, lanes), bit, ""), lanes);
}

/* 2^n for an integer n that a normal number can have as its exponent. */
static Value power_of_two(Emit *emit, Value n, int32_t lanes) {
  Value biased = LLVMBuildAdd(emit->builder, n, int_constant(emit, lanes, EXPONENT_BIAS), "");
  return from_bits(emit, LLVMBuildShl(emit->builder, biased, int_constant(emit, lanes, MANTISSA_BITS), ""), lanes);
}

/* --- functions --------------------------------------------------------------------------------------- */

/* exp(x) = 2^n exp(r) with |r| ≤ ln(2)/2. Limits are the first operands of max and min, so that NaN passes. */
static Value math_exp(Emit *emit, Value x, int32_t lanes) {
  static const double coefficients[] = {1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                                        4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1};
  x = emit_fmax(emit, emit_float(emit, lanes, -104.0), x);
  x = emit_fmin(emit, emit_float(emit, lanes, 89.0), x);
  /* adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits */
  Value shift = emit_float(emit, lanes, 12582912.0);
  Value shifted = emit_fadd(emit, emit_fmul(emit, x, emit_float(emit, lanes, 1.44269504088896341)), shift);
  Value whole = emit_fsub(emit, shifted, shift);
  Value n = LLVMBuildSub(emit->builder, to_bits(emit, shifted, lanes), to_bits(emit, shift, lanes), "");
  /* ln(2) in two parts; the first has few bits, so that its product with n is exact */
  Value r = emit_fma(emit, whole, emit_float(emit, lanes, -0.693359375), x);
  r = emit_fma(emit, whole, emit_float(emit, lanes, 2.12194440e-4), r);
  Value tail = emit_fma(emit, POLYNOMIAL(emit, r, coefficients, lanes), emit_fmul(emit, r, r), r);
  Value fraction = emit_fadd(emit, tail, emit_float(emit, lanes, 1.0));
  /* in two steps: 2^n itself may be no normal number; only the second can round */
  Value half = LLVMBuildAShr(emit->builder, n, int_constant(emit, lanes, 1), "");
  Value rest = LLVMBuildSub(emit->builder, n, half, "");
  return emit_fmul(emit, emit_fmul(emit, fraction, power_of_two(emit, half, lanes)), power_of_two(emit, rest, lanes));
}

/* log(x) = e ln(2) + log(m) with m in [sqrt(1/2), sqrt(2)). */
static Value math_log(Emit *emit, Value x, int32_t lanes) {
  static const double coefficients[] = {7.0376836292e-2,  -1.1514610310e-1, 1.1676998740e-1,
                                        -1.2420140846e-1, 1.4249322787e-1,  -1.6668057665e-1,
                                        2.0000714765e-1,  -2.4999993993e-1, 3.3333331174e-1};
  const int32_t root_half_bits = 0x3f3504f3, mantissa_mask = 0x007fffff;
  Value zero = emit_float(emit, lanes, 0), one = emit_float(emit, lanes, 1);
  Value smallest = emit_float(emit, lanes, 0x1p-126);
  Value normal = emit_fselect_less(emit, x, smallest, emit_fmul(emit, x, emit_float(emit, lanes, 0x1p23)), x);
  Value exponent_shift = emit_fselect_less(emit, x, smallest, emit_float(emit, lanes, -MANTISSA_BITS), zero);
  Value base = int_constant(emit, lanes, root_half_bits);
  Value bits = LLVMBuildSub(emit->builder, to_bits(emit, normal, lanes), base, "");
  Value exponent = LLVMBuildAShr(emit->builder, bits, int_constant(emit, lanes, MANTISSA_BITS), "");
  Value mantissa = LLVMBuildAnd(emit->builder, bits, int_constant(emit, lanes, mantissa_mask), "");
  Value m = from_bits(emit, LLVMBuildAdd(emit->builder, mantissa, base, ""), lanes);
  Value e = LLVMBuildSIToFP(emit->builder, exponent, emit_float_type(emit, lanes), "");
  e = emit_fadd(emit, e, exponent_shift);
  Value r = emit_fsub(emit, m, one), square = emit_fmul(emit, r, r);
  Value tail = emit_fmul(emit, emit_fmul(emit, r, square), POLYNOMIAL(emit, r, coefficients, lanes));
  tail = emit_fma(emit, e, emit_float(emit, lanes, -2.12194440e-4), tail);
  tail = emit_fma(emit, square, emit_float(emit, lanes, -0.5), tail);
  Value result = emit_fma(emit, e, emit_float(emit, lanes, 0.693359375), emit_fadd(emit, r, tail));
  /* x ≥ inf or NaN: x + x keeps both; 0: -inf; below: NaN */
  Value finite = emit_fselect_less(emit, x, emit_float(emit, lanes, INFINITY), result, emit_fadd(emit, x, x));
  Value positive = emit_fselect_less(emit, x, zero, emit_float(emit, lanes, NAN), finite);
  Value is_zero = LLVMBuildFCmp(emit->builder, LLVMRealOEQ, x, zero, "");
  return LLVMBuildSelect(emit->builder, is_zero, emit_float(emit, lanes, -INFINITY), positive, "");
}

static Value math_sigmoid(Emit *emit, Value x, int32_t lanes) {
  Value one = emit_float(emit, lanes, 1);
  Value power = math_exp(emit, LLVMBuildFNeg(emit->builder, x, ""), lanes);
  return emit_fdiv(emit, one, emit_fadd(emit, one, power));
}

/* A polynomial near 0, else 1 - 2 / (exp(2|x|) + 1). */
static Value math_tanh(Emit *emit, Value x, int32_t lanes) {
  static const double coefficients[] = {-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
                                        -3.33332819422e-1};
  Value one = emit_float(emit, lanes, 1), magnitude = absolute(emit, x), square = emit_fmul(emit, x, x);
  Value near = emit_fmul(emit, POLYNOMIAL(emit, square, coefficients, lanes), square);
  near = emit_fma(emit, near, magnitude, magnitude);
  Value power = math_exp(emit, emit_fadd(emit, magnitude, magnitude), lanes);
  Value quotient = emit_fdiv(emit, emit_float(emit, lanes, 2), emit_fadd(emit, power, one));
  Value far = emit_fsub(emit, one, quotient);
  return with_sign_of(emit, emit_fselect_less(emit, magnitude, emit_float(emit, lanes, 0.625), near, far), x, lanes);
}

static Value math_erf(Emit *emit, Value x, int32_t lanes) {
  static const double near_coefficients[] = {-5.96761703e-4, 4.99119423e-3,  -2.67681349e-2,
                                             1.12819925e-1,  -3.76125336e-1, 1.28379166e-1};
  static const double far_coefficients[] = {-1.72853470e-5, 3.83197126e-4,  -3.88396438e-3, 2.42546219e-2,
                                            -1.06777877e-1, -6.34846687e-1, -1.28717512e-1};
  Value magnitude = absolute(emit, x);
  Value near = emit_fma(emit, POLYNOMIAL(emit, emit_fmul(emit, x, x), near_coefficients, lanes), magnitude, magnitude);
  /* beyond 4 the result is 1 in f32, and the limit keeps the polynomial in its range */
  Value limited = emit_fmin(emit, emit_float(emit, lanes, 4), magnitude);
  Value power = POLYNOMIAL(emit, limited, far_coefficients, lanes);
  power = math_exp(emit, emit_fsub(emit, emit_fmul(emit, power, limited), limited), lanes);
  Value far = emit_fsub(emit, emit_float(emit, lanes, 1), power);
  Value result = emit_fselect_less(emit, magnitude, emit_float(emit, lanes, 0.927734375), near, far);
  return with_sign_of(emit, result, x, lanes);
}

Value emit_math(Emit *emit, ExprUnary operation, Value a, int32_t lanes) {
  switch (operation) {
    case EXPR_NEG:
      return LLVMBuildFNeg(emit->builder, a, "");
    case EXPR_ABS:
      return absolute(emit, a);
    case EXPR_SQRT:
      return intrinsic(emit, "llvm.sqrt", sizeof "llvm.sqrt" - 1, a);
    case EXPR_EXP:
      return math_exp(emit, a, lanes);
    case EXPR_LOG:
      return math_log(emit, a, lanes);
    case EXPR_TANH:
      return math_tanh(emit, a, lanes);
    case EXPR_ERF:
      return math_erf(emit, a, lanes);
    case EXPR_SIGMOID:
      return math_sigmoid(emit, a, lanes);
  }
  return a;
}
