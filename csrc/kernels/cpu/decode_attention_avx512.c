#include "x86_attention.h"

enum { WIDTH = 16, COLUMNS = 4 };
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));

BT_ALWAYS_INLINE vec bt_attention_fma(vec a, vec b, vec c) {
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
BT_ALWAYS_INLINE vec bt_attention_load(const void *from, int type) {
    return (vec)bt_load16(from, type, 0);
}

#include "attention_vectors.h"

bt_status bt_decode_attention_avx512(const bt_decode_attention *p, int64_t tile_begin, int64_t tile_end) {
    return bt_attention_run(p, tile_begin, tile_end);
}
