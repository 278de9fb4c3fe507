#include "x86_attention.h"

enum { WIDTH = 16, COLUMNS = 4 };
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));

BT_ALWAYS_INLINE vec bt_attention_fma(vec a, vec b, vec c) {
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m256i eight_halves(__m128i half, int type) {
    return type == BT_F16 ? _mm256_castps_si256(_mm256_cvtph_ps(half))
                          : _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
}
BT_ALWAYS_INLINE vec sixteen_halves(const __m128i *from, int type) {
    return (vec)bt_join(eight_halves(_mm_loadu_si128(from), type), eight_halves(_mm_loadu_si128(from + 1), type));
}
#else
BT_ALWAYS_INLINE vec sixteen_halves(const __m128i *from, int type) {
    const __m256i half = _mm256_loadu_si256((const __m256i *)from);
    return type == BT_F16 ? (vec)_mm512_cvtph_ps(half) : (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
#endif
BT_ALWAYS_INLINE vec bt_attention_load(const void *from, int type) {
    return type == BT_F32 ? (vec)_mm512_loadu_ps(from) : sixteen_halves((const __m128i *)from, type);
}

#include "attention_vectors.h"

bt_status bt_decode_attention_avx512(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end) {
    return bt_attention_run(p, tile_begin, tile_end);
}
