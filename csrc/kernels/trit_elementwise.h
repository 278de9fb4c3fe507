/* trit_elementwise: a function of one trit or of two, on packed codes.
 *
 *   y[r][c] = function(a[r][c], b[r][c])      comparisons give 1 where they hold, else 0; padding of y is 00
 *
 * A row begins at a byte, at any address. `lda = 0` or `ldb = 0` takes one row for all. y may be a or b where it has
 * their rows and strides. Codes are 00, 01 and 10; of 11 each function makes some code. A tile is BT_TRIT_CHUNK bytes
 * of a row, or what is left of it: tile = row * chunks of a row + chunk. */
#ifndef BT_TRIT_ELEMENTWISE_H
#define BT_TRIT_ELEMENTWISE_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

/* X(name, operands, codes of y). a and b are words of codes, LOW has the low bit of each code set; the low bits of a
 * word are where it is +1, the high ones where it is -1. */
#define BT_TRIT_LOW(v) ((v) & LOW)
#define BT_TRIT_HIGH(v) ((v) & ~LOW)
#define BT_TRIT_SWAP(v) (BT_TRIT_LOW((v) >> 1) | BT_TRIT_HIGH((v) << 1))
#define BT_TRIT_EITHER(v) BT_TRIT_LOW((v) | (v) >> 1)
#define BT_TRIT_LESS(a, b) BT_TRIT_LOW((b & ~a) | (a & ~b) >> 1)
#define BT_TRIT_PRODUCT(same, opposite) (BT_TRIT_LOW((same) | (same) >> 1) | BT_TRIT_HIGH((opposite) | (opposite) << 1))
#define BT_TRIT_FUNCTIONS(X)                                                                                           \
    X(neg, 1, BT_TRIT_SWAP(a))                                                                                         \
    X(abs, 1, BT_TRIT_EITHER(a))                                                                                       \
    X(add, 2, (a & ~BT_TRIT_SWAP(b)) | (b & ~BT_TRIT_SWAP(a)))                                                         \
    X(sub, 2, (a & ~b) | (BT_TRIT_SWAP(b) & ~BT_TRIT_SWAP(a)))                                                         \
    X(mul, 2, BT_TRIT_PRODUCT((a & b), (a & BT_TRIT_SWAP(b))))                                                         \
    X(min, 2, BT_TRIT_LOW((a & b)) | BT_TRIT_HIGH((a | b)))                                                            \
    X(max, 2, BT_TRIT_LOW((a | b)) | BT_TRIT_HIGH((a & b)))                                                            \
    X(consensus, 2, (a & b))                                                                                           \
    X(eq, 2, LOW & ~BT_TRIT_EITHER(a ^ b))                                                                             \
    X(ne, 2, BT_TRIT_EITHER(a ^ b))                                                                                    \
    X(lt, 2, BT_TRIT_LESS(a, b))                                                                                       \
    X(le, 2, LOW & ~BT_TRIT_LESS(b, a))                                                                                \
    X(gt, 2, BT_TRIT_LESS(b, a))                                                                                       \
    X(ge, 2, LOW & ~BT_TRIT_LESS(a, b))

#define BT_TRIT_NUMBER(name, operands, codes) BT_TRIT_##name,
enum { BT_TRIT_FUNCTIONS(BT_TRIT_NUMBER) BT_TRIT_COUNT };

enum { BT_TRIT_CHUNK = 1 << 15 };

typedef struct bt_trit_elementwise {
    const uint8_t *a, *b; /* n rows of ceil(k/4), lda and ldb bytes apart; b is NULL for a function of one trit */
    uint8_t *y;           /* n rows of ceil(k/4), ldy bytes apart */
    int64_t n, k, lda, ldb, ldy;
    int function;
    void *stream;
} bt_trit_elementwise;

typedef bt_status bt_trit_elementwise_fn(const bt_trit_elementwise *p, int64_t tile_begin, int64_t tile_end);

BT_INLINE int64_t bt_trit_chunks(int64_t k) {
    return bt_div_up(bt_div_up(k, 4), BT_TRIT_CHUNK);
}

/* The bits of a row's last byte that are no padding, k > 0. */
BT_INLINE uint8_t bt_trit_last_mask(int64_t k) {
    return (uint8_t)(0xffu >> (2 * (-k & 3)));
}

#define BT_TRIT_ELEMENTWISE(X)                                                                                         \
    BT_ON_CUDA(X(trit_elementwise, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                           \
    BT_ON_X86(X(trit_elementwise, BT_CPU, BT_SET(BT_I8), avx512, BT_CPU_AVX512))                                       \
    BT_ON_X86(X(trit_elementwise, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                           \
    BT_ON_ARM(X(trit_elementwise, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                           \
    X(trit_elementwise, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TRIT_ELEMENTWISE(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
