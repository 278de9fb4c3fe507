/* block_unpack: rows of quantised blocks, as GGUF files hold them, to floats.
 *
 *   y[i][c] = cast( fl( fl(q(i, c) * scale(i, c / 16)) - least(i, c / 16) ) )
 *
 * A code q is an integer of at most 8 bits. Scale and least are products of a half and an integer of the block, rounded
 * to fp32. cpu/block_codes.h has the layouts. A tile is a row. */
#ifndef BT_BLOCK_UNPACK_H
#define BT_BLOCK_UNPACK_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Type, weights of a block, bytes of a block. */
#define BT_BLOCKS(X)                                                                                                   \
    X(Q8_0, 32, 34)                                                                                                    \
    X(Q4_0, 32, 18)                                                                                                    \
    X(Q4_1, 32, 20)                                                                                                    \
    X(Q5_0, 32, 22)                                                                                                    \
    X(Q5_1, 32, 24)                                                                                                    \
    X(Q2_K, 256, 84)                                                                                                   \
    X(Q3_K, 256, 110)                                                                                                  \
    X(Q4_K, 256, 144)                                                                                                  \
    X(Q5_K, 256, 176)                                                                                                  \
    X(Q6_K, 256, 210)                                                                                                  \
    X(IQ4_NL, 32, 18)                                                                                                  \
    X(IQ4_XS, 256, 136)                                                                                                \
    X(MXFP4, 32, 17)                                                                                                   \
    X(Q2_0, 64, 18)                                                                                                    \
    X(Q2_0_128, 128, 34)

#define BT_BLOCK_NUMBER(name, weights, bytes) BT_BLOCK_##name,
enum { BT_BLOCKS(BT_BLOCK_NUMBER) BT_BLOCK_COUNT };

#define BT_BLOCK_NAME(name, weights, bytes) #name,
#define BT_BLOCK_WEIGHTS(name, weights, bytes) weights,
#define BT_BLOCK_BYTES(name, weights, bytes) bytes,

static inline const char *bt_block_name(int block) {
    static const char *const names[] = {BT_BLOCKS(BT_BLOCK_NAME)};
    return names[block];
}

static inline int64_t bt_block_weights(int block) {
    static const int16_t weights[] = {BT_BLOCKS(BT_BLOCK_WEIGHTS)};
    return weights[block];
}

/* Of a row of k weights, which are whole blocks. */
static inline int64_t bt_block_row_bytes(int block, int64_t k) {
    static const int16_t bytes[] = {BT_BLOCKS(BT_BLOCK_BYTES)};
    return k / bt_block_weights(block) * bytes[block];
}

typedef struct bt_block_unpack {
    const uint8_t *w; /* n rows of blocks, ldw bytes apart */
    void *y;          /* n rows of k, ldy elements apart, of type y_type */
    int64_t n, k, ldw, ldy;
    int block, y_type; /* BT_BLOCK_*, a floating type */
    void *stream;
} bt_block_unpack;

typedef bt_status bt_block_unpack_fn(const bt_block_unpack *p, int64_t row_begin, int64_t row_end);

#define BT_BLOCK_UNPACK(X)                                                                                             \
    BT_ON_X86(X(block_unpack, BT_CPU, BT_FLOATS, avx512, BT_CPU_AVX512))                                               \
    BT_ON_X86(X(block_unpack, BT_CPU, BT_FLOATS, avx2, BT_CPU_AVX2))                                                   \
    BT_ON_ARM(X(block_unpack, BT_CPU, BT_FLOATS, neon, BT_CPU_NEON))                                                   \
    X(block_unpack, BT_CPU, BT_FLOATS, scalar, 0)

BT_BLOCK_UNPACK(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
