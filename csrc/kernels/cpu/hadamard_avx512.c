/* hadamard: 16 values are one vector. A step inside it adds the vector with its halves exchanged to itself with the
 * signs of the second half turned: b + a and a + (-b), which are a + b and a - b. */
#include "hadamard_block.h"
#include "x86.h"

/* Lane l is lane l ^ width of v. SIMDe lacks the shuffles. */
#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512 exchanged(__m512 v, const int width) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(width)), v);
}
#else
BT_ALWAYS_INLINE __m512 exchanged(__m512 v, const int width) {
    return width == 8   ? _mm512_shuffle_f32x4(v, v, 0x4e)
           : width == 4 ? _mm512_shuffle_f32x4(v, v, 0xb1)
           : width == 2 ? _mm512_permute_ps(v, 0x4e)
                        : _mm512_permute_ps(v, 0xb1);
}
#endif

/* Bit l of `second` says that lane l is in the second half of its run. */
BT_ALWAYS_INLINE __m512 step(__m512 v, const int width, __mmask16 second) {
    return _mm512_add_ps(exchanged(v, width), _mm512_mask_xor_ps(v, second, v, _mm512_set1_ps(-0.0f)));
}

static void narrow(float *v, int64_t n) {
    for (int64_t c = 0; c < n; c += 16) {
        __m512 a = _mm512_load_ps(v + c);
        a = step(a, 8, 0xff00);
        a = step(a, 4, 0xf0f0);
        a = step(a, 2, 0xcccc);
        _mm512_store_ps(v + c, step(a, 1, 0xaaaa));
    }
}

bt_status bt_hadamard_avx512(const bt_hadamard *p, int64_t tile_begin, int64_t tile_end) {
    return bt_hadamard_blocks(p, tile_begin, tile_end, narrow);
}
