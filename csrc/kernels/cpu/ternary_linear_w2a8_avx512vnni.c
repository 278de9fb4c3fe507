/* ternary_linear_w2a8, 4 rows x 1..4 tokens, vpdpbusd on codes plus two.
 *
 *   sum (code + 2) q - 2 sum q = sum code q        code + 2: low bit lo | hi, high bit not hi
 *
 * 64 packed bytes meet the four 64-byte planes of a block: plane p holds the activations of bits 2p+1..2p of every
 * byte. Several tokens shift the codes down to bits 1..0; one token leaves them in place and sums each plane, times
 * 4^p, apart. A lane of one plane is at most k / 64 * 192 * 128, inside int32 for k <= BT_W2A8_MAX_K. */
#include "x86_avx512.h"

#define COLUMN_COST {.lanes = LANES, .unit = BT_BLOCK, .reduction = 160, .part = 600, .twentieths = 20, .gather = 2}
#include "x86_vnni.h"
#include "x86_w2a8_columns.h"

typedef struct tile_t {
    __m512i acc[BT_ROWS][BT_TOKENS]; /* one token: [row][plane] */
} tile_t;

#if defined(BT_SIMDE)
BT_ALWAYS_INLINE __m512i quarter_of(__m512i v) {
    return bt_join(_mm256_srai_epi32(bt_low(v), 2), _mm256_srai_epi32(bt_high(v), 2));
}
#else
BT_ALWAYS_INLINE __m512i quarter_of(__m512i v) {
    return _mm512_srai_epi32(v, 2);
}
#endif

BT_ALWAYS_INLINE __m512i load_codes_plus_two(const uint8_t *w) {
    const __m512i codes = _mm512_loadu_si512(w);
    return _mm512_ternarylogic_epi32(codes, _mm512_srli_epi16(codes, 1), _mm512_set1_epi8(0x55), 0xad);
}

BT_ALWAYS_INLINE void prefetch(const uint8_t *const w[BT_ROWS], int64_t block, int row) {
    bt_prefetch(w, (BT_ROWS * block + row) * BT_BLOCK_BYTES);
}

BT_ALWAYS_INLINE void clear(tile_t *tile, const int columns) {
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        BT_UNROLL
        for (int c = 0; c < columns; c++)
            tile->acc[r][c] = _mm512_setzero_si512();
    }
}

BT_ALWAYS_INLINE void add_one_token(tile_t *tile, const uint8_t *const w[BT_ROWS], const int8_t *q, int64_t blocks) {
    const __m512i mask[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                             _mm512_set1_epi8((char)0xc0)};
    for (int64_t b = 0; b < blocks; b++) {
        __m512i x[4];
        BT_UNROLL
        for (int p = 0; p < 4; p++)
            x[p] = _mm512_loadu_si512(q + BT_BLOCK * b + 64 * p);
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            prefetch(w, b, r);
            const __m512i u = load_codes_plus_two(w[r] + BT_BLOCK_BYTES * b);
            BT_UNROLL
            for (int p = 0; p < 4; p++)
                tile->acc[r][p] = dot_u8_i8(tile->acc[r][p], _mm512_and_si512(u, mask[p]), x[p]);
        }
    }
}

BT_ALWAYS_INLINE void add_tokens(tile_t *tile, const uint8_t *const w[BT_ROWS], const int8_t *q, int64_t ldq,
                                 int64_t blocks, const int tokens) {
    const __m512i mask = _mm512_set1_epi8(3);
    for (int64_t b = 0; b < blocks; b++) {
        __m512i u[BT_ROWS];
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            prefetch(w, b, r);
            u[r] = load_codes_plus_two(w[r] + BT_BLOCK_BYTES * b);
        }
        BT_UNROLL
        for (int p = 0; p < 4; p++) {
            __m512i low[BT_ROWS];
            BT_UNROLL
            for (int r = 0; r < BT_ROWS; r++) {
                low[r] = _mm512_and_si512(u[r], mask);
                u[r] = _mm512_srli_epi16(u[r], 2);
            }
            BT_UNROLL
            for (int c = 0; c < tokens; c++) {
                const __m512i x = _mm512_loadu_si512(q + c * ldq + BT_BLOCK * b + 64 * p);
                BT_UNROLL
                for (int r = 0; r < BT_ROWS; r++)
                    tile->acc[r][c] = dot_u8_i8(tile->acc[r][c], low[r], x);
            }
        }
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            BT_UNROLL
            for (int c = 0; c < tokens; c++)
                tile->acc[r][c] = in_register(tile->acc[r][c]);
        }
    }
}

BT_ALWAYS_INLINE void add_blocks(tile_t *tile, const uint8_t *const w[BT_ROWS], const int8_t *q, int64_t ldq,
                                 int64_t blocks, const int tokens) {
    if (tokens == 1)
        add_one_token(tile, w, q, blocks);
    else
        add_tokens(tile, w, q, ldq, blocks, tokens);
}

/* The block after `blocks` whole ones, of which each row has `rest` bytes. Not inlined: beside another loop of this
 * size gcc 12 copies accumulators. */
#define DEFINE_ADD_TAIL(tokens)                                                                                        \
    static __attribute__((noinline)) void add_tail_##tokens(                                                           \
        tile_t *tile, const uint8_t *const w[BT_ROWS], int64_t blocks, int64_t rest, const int8_t *q, int64_t ldq) {   \
        uint8_t copy[BT_ROWS][BT_BLOCK_BYTES];                                                                         \
        const uint8_t *const tail[BT_ROWS] = {copy[0], copy[1], copy[2], copy[3]};                                     \
        bt_copy_tail(copy[0], BT_BLOCK_BYTES, w, blocks * BT_BLOCK_BYTES, rest);                                       \
        add_blocks(tile, tail, q + blocks * BT_BLOCK, ldq, 1, tokens);                                                 \
    }
DEFINE_ADD_TAIL(1)
DEFINE_ADD_TAIL(2)
DEFINE_ADD_TAIL(3)
DEFINE_ADD_TAIL(4)

BT_ALWAYS_INLINE void add_tail(tile_t *tile, const uint8_t *const w[BT_ROWS], int64_t blocks, int64_t rest,
                               const int8_t *q, int64_t ldq, const int tokens) {
    if (tokens == 1)
        add_tail_1(tile, w, blocks, rest, q, ldq);
    else if (tokens == 2)
        add_tail_2(tile, w, blocks, rest, q, ldq);
    else if (tokens == 3)
        add_tail_3(tile, w, blocks, rest, q, ldq);
    else
        add_tail_4(tile, w, blocks, rest, q, ldq);
}

/* Sums of planes times 1, 4, 16, 64 into one: the divisions are exact. */
BT_ALWAYS_INLINE void fold_planes(tile_t *tile) {
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        BT_UNROLL
        for (int p = 3; p > 0; p--)
            tile->acc[r][p - 1] = _mm512_add_epi32(tile->acc[r][p - 1], quarter_of(tile->acc[r][p]));
    }
}

/* Adds the products of columns [begin, end), where begin is a multiple of 256. */
BT_ALWAYS_INLINE void add_span(tile_t *tile, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, const int tokens) {
    const int64_t blocks = (end - begin) / BT_BLOCK, rest = bt_div_up((end - begin) % BT_BLOCK, 4);
    const uint8_t *w[BT_ROWS];
    for (int r = 0; r < BT_ROWS; r++)
        w[r] = rows->w[r] + begin / 4;
    add_blocks(tile, w, q + begin, ldq, blocks, tokens);
    if (rest) {
        tile_t copy = *tile; /* in memory, while that of the loop stays in registers */
        add_tail(&copy, w, blocks, rest, q + begin, ldq, tokens);
        *tile = copy;
    }
    if (tokens == 1)
        fold_planes(tile);
}

/* What code + 2 adds to the lanes of a row: 2 sum q. */
BT_ALWAYS_INLINE __m512i offset_lanes(const int8_t *q, int64_t begin, int64_t end) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = begin; k < end; k += BT_BLOCK) {
        BT_UNROLL
        for (int p = 0; p < 4; p++)
            sum = dot_u8_i8(sum, _mm512_set1_epi8(2), _mm512_loadu_si512(q + k + 64 * p));
    }
    return sum;
}

BT_ALWAYS_INLINE void dot_span(bt_span_dots *dots, const bt_rows *rows, const int8_t *q, int64_t ldq, int64_t begin,
                               int64_t end, int remove_offset, int in_parts, const int q_rows) {
    tile_t tile;
    (void)in_parts; /* small groups go another way */
    clear(&tile, q_rows == 1 ? 4 : q_rows);
    if (remove_offset) {
        BT_UNROLL
        for (int c = 0; c < q_rows; c++) {
            const __m512i offset = offset_lanes(q + c * ldq, begin, end);
            BT_UNROLL
            for (int r = 0; r < BT_ROWS; r++)
                tile.acc[r][c] = _mm512_sub_epi32(tile.acc[r][c], offset);
        }
    }
    add_span(&tile, rows, q, ldq, begin, end, q_rows);
    BT_UNROLL
    for (int c = 0; c < q_rows; c++) {
        const __m512i parts = bt_sum_wide_parts(tile.acc[0][c], tile.acc[1][c], tile.acc[2][c], tile.acc[3][c]);
        dots->part[c][0] = bt_add_halves(_mm256_add_epi32(bt_low(parts), bt_high(parts)));
    }
}

BT_ALWAYS_INLINE words unit_offset(const int8_t *q) {
    return _mm512_sub_epi32(_mm512_setzero_si512(), offset_lanes(q, 0, BT_BLOCK));
}

BT_ALWAYS_INLINE void unit_parts(words parts[FEW], const uint8_t *const w[BT_ROWS], int64_t at, const int8_t *q,
                                 int64_t ldq, const words offset[FEW], const int q_rows) {
    const __m512i mask = _mm512_set1_epi8(3);
    __m512i u[BT_ROWS], sum[BT_ROWS][FEW];
    BT_UNROLL
    for (int r = 0; r < BT_ROWS; r++) {
        u[r] = load_codes_plus_two(w[r] + at);
        BT_UNROLL
        for (int c = 0; c < q_rows; c++)
            sum[r][c] = offset[c];
    }
    BT_UNROLL
    for (int p = 0; p < PLANES; p++) {
        BT_UNROLL
        for (int r = 0; r < BT_ROWS; r++) {
            const __m512i low = _mm512_and_si512(u[r], mask);
            u[r] = _mm512_srli_epi16(u[r], 2);
            BT_UNROLL
            for (int c = 0; c < q_rows; c++)
                sum[r][c] = dot_u8_i8(sum[r][c], low, _mm512_loadu_si512(q + c * ldq + BT_BLOCK / PLANES * p));
        }
    }
    BT_UNROLL
    for (int c = 0; c < q_rows; c++)
        parts[c] = bt_sum_wide_parts(sum[0][c], sum[1][c], sum[2][c], sum[3][c]);
}

static const bt_w2a8_variant variant = {.unit = BT_BLOCK, .offset = 2, .dot_span = dot_span};

BT_DEFINE_W2A8(avx512vnni, variant)
