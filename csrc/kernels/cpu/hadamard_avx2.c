/* hadamard: 16 values are two vectors. A step inside a vector adds the vector with its halves exchanged to itself with
 * the signs of the second half turned: b + a and a + (-b), which are a + b and a - b. */
#include "hadamard_block.h"
#include "x86.h"

/* Bit l of `second` says that lane l is in the second half of its run. */
#define EXCHANGED(v, exchanged, second) _mm256_add_ps(exchanged, _mm256_blend_ps(v, _mm256_xor_ps(v, minus), second))

BT_ALWAYS_INLINE __m256 steps_inside(__m256 v) {
    const __m256 minus = _mm256_set1_ps(-0.0f);
    v = EXCHANGED(v, _mm256_permute2f128_ps(v, v, 1), 0xf0);
    v = EXCHANGED(v, _mm256_permute_ps(v, 0x4e), 0xcc);
    return EXCHANGED(v, _mm256_permute_ps(v, 0xb1), 0xaa);
}

static void narrow(float *v, int64_t n) {
    for (int64_t c = 0; c < n; c += 16) {
        const __m256 a = _mm256_load_ps(v + c), b = _mm256_load_ps(v + c + 8);
        _mm256_store_ps(v + c, steps_inside(_mm256_add_ps(a, b)));
        _mm256_store_ps(v + c + 8, steps_inside(_mm256_sub_ps(a, b)));
    }
}

bt_status bt_hadamard_avx2(const bt_hadamard *p, int64_t tile_begin, int64_t tile_end) {
    return bt_hadamard_blocks(p, tile_begin, tile_end, narrow);
}
