/* bitplane_pack: rows of codes to planes of magnitudes and signs, the layout of bitplane_matmul.
 *
 * A block of 512 trits, 128 bytes c of a row, becomes 64 bytes of magnitudes, then 64 of signs:
 *
 *   magnitude[j] = nonzero(c[j]) | nonzero(c[64 + j]) << 1      nonzero(v) = (v | v >> 1) & 0x55
 *   sign[j] = (c[j] >> 1 & 0x55) | (c[64 + j] & 0xaa)           a bit where the trit is -1
 *
 * A row is padded with zero trits to whole blocks. A tile is a row. */
#ifndef BT_BITPLANE_PACK_H
#define BT_BITPLANE_PACK_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { BT_PLANE_TRITS = 512, BT_PLANE_BYTES = 64, BT_PLANE_BLOCK_BYTES = 128 };

typedef struct bt_bitplane_pack {
    const uint8_t *w; /* n rows of ceil(k/4), ldw bytes apart */
    uint8_t *planes;  /* n rows of 128 ceil(k/512), ldp bytes apart */
    int64_t n, k, ldw, ldp;
    void *stream;
} bt_bitplane_pack;

typedef bt_status bt_bitplane_pack_fn(const bt_bitplane_pack *p, int64_t row_begin, int64_t row_end);

#define BT_BITPLANE_PACK(X)                                                                                            \
    BT_ON_CUDA(X(bitplane_pack, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                              \
    BT_ON_X86(X(bitplane_pack, BT_CPU, BT_SET(BT_I8), avx512, BT_CPU_AVX512))                                          \
    BT_ON_X86(X(bitplane_pack, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                              \
    BT_ON_ARM(X(bitplane_pack, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                              \
    X(bitplane_pack, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_BITPLANE_PACK(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
