/* hadamard: 16 values are one vector. A step inside it adds the vector with its halves exchanged to itself with the
 * signs of the second half turned: b + a and a + (-b), which are a + b and a - b. */
#include "hadamard_block.h"
#include "x86.h"

/* Bit l of `second` says that lane l is in the second half of its run. */
BT_ALWAYS_INLINE __m512 step(__m512 v, __m512 exchanged, __mmask16 second) {
    return _mm512_add_ps(exchanged, _mm512_mask_xor_ps(v, second, v, _mm512_set1_ps(-0.0f)));
}

static void narrow(float *v, int64_t n) {
    for (int64_t c = 0; c < n; c += 16) {
        __m512 a = _mm512_load_ps(v + c);
        a = step(a, _mm512_shuffle_f32x4(a, a, 0x4e), 0xff00);
        a = step(a, _mm512_shuffle_f32x4(a, a, 0xb1), 0xf0f0);
        a = step(a, _mm512_permute_ps(a, 0x4e), 0xcccc);
        _mm512_store_ps(v + c, step(a, _mm512_permute_ps(a, 0xb1), 0xaaaa));
    }
}

bt_status bt_hadamard_avx512(const bt_hadamard *p, int64_t tile_begin, int64_t tile_end) {
    return bt_hadamard_blocks(p, tile_begin, tile_end, narrow);
}
