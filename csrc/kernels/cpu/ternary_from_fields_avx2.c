/* ternary_from_fields, 32 bytes at a time: the words of the scalar kernel in lanes, then their bytes part by part. */
#include "fields_run.h"
#include "x86.h"

enum { STEP = 32 };

BT_ALWAYS_INLINE __m256i codes_of(__m256i fields) {
    const __m256i odd = _mm256_set1_epi8((char)0xaa);
    const __m256i plus = _mm256_andnot_si256(odd, _mm256_srli_epi32(fields, 1));
    const __m256i other = _mm256_xor_si256(fields, _mm256_add_epi8(fields, fields));
    return _mm256_or_si256(plus, _mm256_andnot_si256(other, odd));
}

BT_ALWAYS_INLINE __m256i exchanged(__m256i codes, int distance, int mask) {
    const __m256i apart = _mm256_xor_si256(codes, _mm256_srli_epi32(codes, distance));
    const __m256i changed = _mm256_and_si256(apart, _mm256_set1_epi32(mask));
    return _mm256_xor_si256(codes, _mm256_xor_si256(changed, _mm256_slli_epi32(changed, distance)));
}

/* Of each half four bytes of part 0, of part 1, of part 2, of part 3. */
BT_ALWAYS_INLINE __m256i parts_of(__m256i fields, int high_first) {
    const __m256i transposed = exchanged(exchanged(codes_of(fields), 6, 0x00cc00cc), 12, 0x0000f0f0);
    const __m256i low =
        _mm256_set_epi64x(0x0f0b07030e0a0602, 0x0d0905010c080400, 0x0f0b07030e0a0602, 0x0d0905010c080400);
    const __m256i high =
        _mm256_set_epi64x(0x0c0804000d090501, 0x0e0a06020f0b0703, 0x0c0804000d090501, 0x0e0a06020f0b0703);
    return _mm256_shuffle_epi8(transposed, high_first ? high : low);
}

/* Eight bytes of part 0, of part 1 and so on. */
BT_ALWAYS_INLINE __m256i joined(__m256i parts) {
    return _mm256_permutevar8x32_epi32(parts, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Returns the fields that have both bits set, in the lower of these. `run` is 16, 32, or 0 for longer ones. */
BT_ALWAYS_INLINE __m256i step(const uint8_t *data, uint8_t *w, int64_t ldpart, int run, int high_first) {
    const __m256i fields = _mm256_loadu_si256((const __m256i *)data), parts = parts_of(fields, high_first);
    if (run == 16) {
        _mm256_storeu_si256((__m256i *)w, parts);
    } else if (run == 32) {
        _mm256_storeu_si256((__m256i *)w, joined(parts));
    } else {
        const __m256i all = joined(parts);
        const __m128i first = _mm256_castsi256_si128(all), second = _mm256_extracti128_si256(all, 1);
        _mm_storel_epi64((__m128i *)w, first);
        _mm_storel_epi64((__m128i *)(w + ldpart), _mm_unpackhi_epi64(first, first));
        _mm_storel_epi64((__m128i *)(w + 2 * ldpart), second);
        _mm_storel_epi64((__m128i *)(w + 3 * ldpart), _mm_unpackhi_epi64(second, second));
    }
    return _mm256_and_si256(fields, _mm256_srli_epi32(fields, 1));
}

/* `span` bytes of whole runs, or of one long run. Returns whether a field is 3. */
BT_ALWAYS_INLINE int span_of(const bt_ternary_from_fields *p, const uint8_t *data, uint8_t *w, int run,
                             int high_first) {
    const int64_t span = p->runs * p->run;
    __m256i reserved = _mm256_setzero_si256();
    int64_t m = 0;
    for (; m + STEP <= span; m += STEP)
        reserved = _mm256_or_si256(reserved, step(data + m, w + (run ? m : m / 4), p->ldpart, run, high_first));
    int found = !_mm256_testz_si256(reserved, _mm256_set1_epi8(0x55));
    if (m < span)
        found |= run ? bt_fields_run(p, data + m, w + m, 0) : bt_fields_run(p, data, w, m);
    return found;
}

BT_ALWAYS_INLINE void rows_of(const bt_ternary_from_fields *p, int64_t row_begin, int64_t row_end, int run,
                              int high_first) {
    for (int64_t r = row_begin; r < row_end; r++) {
        int reserved = 0;
        for (int64_t block = 0; block < p->blocks; block++)
            reserved |= span_of(p, p->data + r * p->ldd + block * p->ldblock,
                                p->w + r * p->ldw + block * p->runs * p->run, run, high_first);
        p->reserved[r] = (uint8_t)reserved;
    }
}

BT_ALWAYS_INLINE void rows_by_order(const bt_ternary_from_fields *p, int64_t row_begin, int64_t row_end, int run) {
    if (p->high_first)
        rows_of(p, row_begin, row_end, run, 1);
    else
        rows_of(p, row_begin, row_end, run, 0);
}

bt_status bt_ternary_from_fields_avx2(const bt_ternary_from_fields *p, int64_t row_begin, int64_t row_end) {
    if (p->run == 16 && p->ldpart == 4)
        rows_by_order(p, row_begin, row_end, 16);
    else if (p->run == 32 && p->ldpart == 8)
        rows_by_order(p, row_begin, row_end, 32);
    else if (p->runs == 1)
        rows_by_order(p, row_begin, row_end, 0);
    else
        return bt_ternary_from_fields_scalar(p, row_begin, row_end);
    return BT_OK;
}
