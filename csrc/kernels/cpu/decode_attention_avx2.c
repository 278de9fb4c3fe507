#include "x86_attention.h"

enum { WIDTH = 8, COLUMNS = 2 };
typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef uint32_t uvec __attribute__((vector_size(32)));

BT_ALWAYS_INLINE vec bt_attention_fma(vec a, vec b, vec c) {
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
BT_ALWAYS_INLINE vec bt_attention_load(const void *from, int type) {
    return (vec)bt_load8(from, type, 0);
}

#include "attention_vectors.h"

bt_status bt_decode_attention_avx2(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end) {
    return bt_attention_run(p, tile_begin, tile_end);
}
