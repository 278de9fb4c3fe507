/* ternary_pack: trits to 2-bit rows.
 *
 *   codes[r][c] in {-1, 0, +1}, int8      ->      packed[r][c/4], four weights a byte, least significant bits first
 *
 *   bit     7 6   5 4   3 2   1 0
 *   weight  4j+3  4j+2  4j+1  4j        00 = 0, 01 = +1, 10 = -1, 11 reserved
 *
 * Any other value becomes 11, so that ternary_check finds it. A row is padded with 00 to a whole byte. A tile is a row.
 */
#ifndef BT_TERNARY_PACK_H
#define BT_TERNARY_PACK_H
#include "bt_common.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct bt_ternary_pack {
    const int8_t *codes; /* n rows of k, ldc elements apart */
    uint8_t *packed;     /* n rows of ceil(k/4), ldw bytes apart */
    int64_t n, k, ldc, ldw;
    void *stream;
} bt_ternary_pack;

typedef bt_status bt_ternary_pack_fn(const bt_ternary_pack *p, int64_t row_begin, int64_t row_end);

#define BT_TERNARY_PACK(X)                                                                                             \
    BT_ON_CUDA(X(ternary_pack, BT_GPU, BT_SET(BT_I8), cuda_baseline, 0))                                               \
    BT_ON_X86(X(ternary_pack, BT_CPU, BT_SET(BT_I8), avx512, BT_CPU_AVX512))                                           \
    BT_ON_X86(X(ternary_pack, BT_CPU, BT_SET(BT_I8), avx2, BT_CPU_AVX2))                                               \
    BT_ON_ARM(X(ternary_pack, BT_CPU, BT_SET(BT_I8), neon, BT_CPU_NEON))                                               \
    X(ternary_pack, BT_CPU, BT_SET(BT_I8), scalar, 0)

BT_TERNARY_PACK(BT_DECLARE_KERNEL)

#ifdef __cplusplus
}
#endif
#endif
