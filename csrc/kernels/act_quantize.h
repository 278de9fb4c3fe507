/* act_quantize: int8 codes, or two or three int8 digits, with one scale a token.
 *
 *   digits = 1, in fp32
 *       m = max(absmax(x_row), 1e-5)    q = clamp(rint(fl(x * fl(127 / m))), -127, 127)       scale = fl(m / 127)
 *   digits > 1, in fp64
 *       m = absmax(x_row)               q = clamp(rint(x * (qmax / m)), -qmax, qmax)          step = m / qmax
 *       q = d0 + 256 d1 (+ 65536 d2)    each digit in [-128, 127] and in a row of its own: row digits * i + d of q
 *       qmax = 127 + 256 * 127 (+ 65536 * 127); m = 0 gives q = 0
 *
 * With norm_weight, x stands for its RMS norm, made in the same pass over the row and never stored:
 *       s = sum(x^2) in fp64     r = (float)(1 / sqrt(s / k + norm_eps))     x <- fl(fl(x * r) * norm_weight)
 * A square of an fp32 number is exact in fp64; the sum is BT_NORM_LANES sums of the columns k % BT_NORM_LANES, each in
 * order, then of lane and lane + width for width = BT_NORM_LANES / 2 .. 1: one order for every device.
 *
 * x is widened first, rint rounds half to even, and the absmax is taken through the integer order of the bits of the
 * fp32 |x|, so that a NaN or Inf wins: such a row gets q = 0 and scale, or step, NaN. x_type BT_I8, with one digit,
 * means that x already holds codes: they are only put in order and summed, and scale is not written.
 *
 * Orders of q: natural, or planes. In planes every block of 256 columns holds first its k % 4 == 0, then 1, 2, 3:
 *   byte 256 b + 64 (k % 4) + (k % 256) / 4        so that one masked load of 64, 32 or 16 packed bytes meets its
 * operands and the row is padded with zeros to a multiple of 256. On CUDA alone, stride 4: of each 16 columns the bytes
 * are a transposed 4 x 4 matrix, byte 4 (k % 4) + k / 4 % 4, which is how tensor-core products take them; padded with
 * zeros to a multiple of 16. A tile is a row. */
#ifndef BT_ACT_QUANTIZE_H
#define BT_ACT_QUANTIZE_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_ORDER_NATURAL, BT_ORDER_PLANES, BT_ORDER_STRIDE4 };
enum { BT_ACT_BLOCK = 256, BT_MAX_DIGITS = 3, BT_NORM_LANES = 256 };

typedef struct bt_act_quantize {
    const void *x;           /* m rows of k, ldx elements apart, of type x_type */
    int8_t *q;               /* digits * m rows, ldq bytes apart; planes: ldq a multiple of 256, stride 4: of 16 */
    float *scale;            /* [m], with one digit; not written when x_type is BT_I8 */
    double *step;            /* [m], with more digits */
    int32_t *sum;            /* NULL, or [digits * m]: the sum of each row of q */
    const void *norm_weight; /* NULL, or [k] of type norm_type; not with x_type BT_I8 */
    double norm_eps;
    int64_t m, k, ldx, ldq;
    int x_type, norm_type, order, digits;
    void *stream;
} bt_act_quantize;

typedef bt_status bt_act_quantize_fn(const bt_act_quantize *p, int64_t row_begin, int64_t row_end);

BT_INLINE int64_t bt_plane_index(int64_t k) {
    return (k & ~(int64_t)255) + 64 * (k & 3) + (k & 255) / 4;
}

BT_INLINE int64_t bt_stride4_index(int64_t k) {
    return (k & ~(int64_t)15) + 4 * (k & 3) + (k >> 2 & 3);
}

/* Bytes of a row of q that are written. */
BT_INLINE int64_t bt_quantized_width(int64_t k, int order) {
    const int64_t step = order == BT_ORDER_PLANES ? BT_ACT_BLOCK : order == BT_ORDER_STRIDE4 ? 16 : 1;
    return (k + step - 1) & -step;
}

/* The largest code of digits > 1: every digit 127. */
BT_INLINE int32_t bt_digits_max(int digits) {
    return digits == 2 ? 127 * 256 + 127 : 127 * 65536 + 127 * 256 + 127;
}

/* What is left of a code when its lowest digit, which is its lowest byte as int8, is taken off. */
BT_INLINE int32_t bt_next_digit(int32_t code) {
    return (code + 128) >> 8;
}

#define BT_ACT_QUANTIZE(X)                                                                                             \
    BT_ON_CUDA(X(act_quantize, BT_GPU, BT_FLOATS | BT_SET(BT_I8), cuda_baseline, 0))                                   \
    BT_ON_X86(X(act_quantize, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                               \
    BT_ON_X86(X(act_quantize, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                                   \
    BT_ON_ARM(X(act_quantize, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                                   \
    X(act_quantize, BT_CPU, BT_FLOATS | BT_SET(BT_I8), scalar, 0)

BT_ACT_QUANTIZE(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
