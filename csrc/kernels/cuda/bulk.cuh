/* Products of many columns of activations on tensor cores: the operands of skinny.cuh in blocks of 128 rows by 48 or 32
 * columns.
 *
 * A warp has 16 rows and all of the block's part of k, so that the operands made of a word serve every tile of columns,
 * and a lane owns its outputs: scale groups are added in its registers, in rising order. All warps read the same
 * activations, which are staged some steps at a time. Tokens of several digits are cut so that a tile has whole tokens;
 * their digits meet in shared memory at the end. A block makes one tile. */
#ifndef BT_CUDA_BULK_CUH
#define BT_CUDA_BULK_CUH

#include "skinny.cuh"

/* total += the sums of scale group g times its scales; the sums begin anew. */
template <class Op, int TILES>
static __device__ __forceinline__ void bt_bulk_fold(const typename Op::Params &p, int64_t i0, int here, int64_t r0,
                                                    int64_t g, typename Op::Sum (&sum)[TILES][4],
                                                    float (&total)[TILES][4]) {
    BT_UNROLL
    for (int of = 0; of < TILES; of++)
        BT_UNROLL
    for (int at = 0; at < 4; at++) {
        /* What lies past the last token and row stands for the last one, and is not stored. */
        const int column = 8 * of + (int)threadIdx.x % 4 * 2 + at % 2;
        const int64_t i = i0 + (column < here ? column : here - 1);
        const int64_t row = r0 + (int)threadIdx.x % 32 / 4 + at / 2 * 8, r = row < p.n ? row : p.n - 1;
        total[of][at] = Op::fold(p, total[of][at], Op::result(sum[of][at]), i, r, g);
        sum[of][at] = 0;
    }
}

/* With a scale a row, WORDS is 4, and the sums of a part of k go to the workspace as those of skinny.cuh do. */
template <class Op, int WORDS, int TILES, bool GROUPS>
static __global__ void __launch_bounds__(256, 2) bt_bulk(typename Op::Params p, int parts) {
    typedef typename Op::Sum Sum;
    enum { WARPS = 8, COLUMNS = 8 * TILES, STEP_BYTES = 16 * WORDS };
    /* Room for all columns, whether there are so many or not: then the places of a lane are constants apart. */
    enum { STEP_UNITS = 4 * WORDS * Op::UNITS * COLUMNS, CHUNK = BT_SKINNY_UNITS / STEP_UNITS };
    __shared__ union {
        uint4 xs[BT_SKINNY_UNITS];
        Sum sums[GROUPS ? 1 : WARPS][COLUMNS * BT_SKINNY_PITCH];
    } memory;
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4, warp = (int)threadIdx.x / 32;
    const int digits = Op::digits(p), tokens = COLUMNS / digits; /* of a tile */
    const int steps = (int)bt_div_up(p.k, 64 * WORDS), whole = (int)(p.k / (64 * WORDS));
    const int first = (int)((int64_t)steps * blockIdx.y / parts),
              end = (int)((int64_t)steps * (blockIdx.y + 1) / parts);
    const int last = end < whole ? end : whole, group_steps = (int)(p.group / (64 * WORDS));
    const unsigned row_tiles = (unsigned)bt_div_up(p.n, BT_BULK_ROWS);
    const int64_t i0 = (int64_t)(blockIdx.x / row_tiles) * tokens;
    const int64_t n0 = (int64_t)(blockIdx.x % row_tiles) * BT_BULK_ROWS, r0 = n0 + BT_SKINNY_ROWS * warp;
    const int here = p.m - i0 < tokens ? (int)(p.m - i0) : tokens, columns = digits * here;
    auto lane = bt_skinny_place<Op, WORDS, TILES, 1>(p, COLUMNS, r0, (int64_t)first * STEP_BYTES);
    Sum sum[1][TILES][4] = {};
    float total[TILES][4] = {};
    bt_skinny_weights<WORDS, 1> next = {};
    int step = first, left = group_steps; /* steps of the group that are to come */
    int64_t group = 0;
    bt_skinny_fetch<WORDS>(lane, step < last, STEP_BYTES, next);
    for (int begin = first; begin < end; begin += CHUNK) {
        const int stop = end - begin < CHUNK ? end : begin + CHUNK, stop_whole = stop < whole ? stop : whole;
        bt_skinny_stage<Op, WORDS>(p, digits * i0, columns, COLUMNS, (int64_t)begin * 64 * WORDS, stop - begin,
                                   memory.xs);
        __syncthreads();
        const uint4 *b = memory.xs;
        for (; step < stop_whole; b += STEP_UNITS) {
            const auto now = next;
            step++;
            bt_skinny_fetch<WORDS>(lane, step < last, STEP_BYTES, next);
            bt_skinny_multiply<Op, WORDS, TILES, 1>(lane, now, b, COLUMNS, sum);
            if (GROUPS && --left == 0) {
                bt_bulk_fold<Op, TILES>(p, i0, here, r0, group++, sum[0], total);
                left = group_steps;
            }
        }
        if constexpr (!GROUPS)
            if (step < stop) {
                const int64_t at = (int64_t)step++ * STEP_BYTES;
                const auto there = bt_skinny_place<Op, WORDS, TILES, 1>(p, COLUMNS, r0, at);
                const auto now = bt_skinny_fetch_end(there, bt_div_up(p.k, 4) - at);
                bt_skinny_multiply<Op, WORDS, TILES, 1>(lane, now, b, COLUMNS, sum);
            }
        __syncthreads();
    }
    if constexpr (GROUPS) {
        BT_UNROLL
        for (int of = 0; of < TILES; of++)
            BT_UNROLL
        for (int at = 0; at < 4; at++) {
            const int64_t i = i0 + 8 * of + 2 * t + at % 2, r = r0 + g + at / 2 * 8;
            if (i < p.m && r < p.n)
                Op::finish(p, total[of][at], i, r);
        }
    } else {
        bt_skinny_put<Op, TILES>(sum[0], memory.sums[warp]);
        __syncthreads();
        const int count = BT_BULK_ROWS * (parts > 1 ? columns : here);
        for (int at = (int)threadIdx.x; at < count; at += 32 * WARPS) {
            const int of = at / BT_BULK_ROWS, row = at % BT_BULK_ROWS;
            const Sum *const from = memory.sums[row / BT_SKINNY_ROWS] + row % BT_SKINNY_ROWS;
            const int64_t r = n0 + row;
            if (r >= p.n)
                continue;
            if (parts > 1) {
                const int64_t column = blockIdx.y * digits * p.m + digits * i0 + of;
                ((Sum *)p.workspace)[column * p.n + r] = from[of * BT_SKINNY_PITCH];
                continue;
            }
            typename Op::Total out = {};
            Op::add(p, out, i0 + of, r, 0,
                    [&](int64_t column) { return from[(column - digits * i0) * BT_SKINNY_PITCH]; });
            Op::store(p, out, i0 + of, r);
        }
    }
}

template <class Op> static bt_status bt_bulk_launch(const typename Op::Params &p) {
    if (p.m == 0 || p.n == 0)
        return BT_OK;
    if (bt_tensor_lacks(p.m, Op::digits(p), p.k, p.ldw, p.w, p.group) & BT_GPU_BULK)
        return BT_ERR_PROBLEM;
    const int64_t columns = Op::digits(p) * p.m;
    const int parts = p.group < p.k ? 1 : bt_bulk_parts(columns, p.n, p.k);
    /* 48 columns a tile, or 32 where that leaves fewer of them empty; sums of groups leave room for 32. */
    const bool narrow = p.group < p.k || bt_div_up(columns, 32) * 32 <= bt_div_up(columns, 48) * 48;
    const int width = narrow ? 32 : 48;
    const int64_t tiles = bt_div_up(p.n, BT_BULK_ROWS) * bt_div_up(p.m, width / Op::digits(p)); /* of a block each */
    if (tiles > 0x7fffffff)
        return BT_ERR_PROBLEM;
    const dim3 grid((unsigned)tiles, (unsigned)parts), block(256);
    if (p.group < p.k && p.group % 256 == 0)
        return BT_LAUNCH((bt_bulk<Op, 4, 4, true>), grid, block, p.stream, p, 1);
    if (p.group < p.k && p.group % 128 == 0)
        return BT_LAUNCH((bt_bulk<Op, 2, 4, true>), grid, block, p.stream, p, 1);
    if (p.group < p.k)
        return BT_LAUNCH((bt_bulk<Op, 1, 4, true>), grid, block, p.stream, p, 1);
    if (parts > 1 && p.workspace_bytes < 4 * (int64_t)parts * columns * p.n)
        return BT_ERR_WORKSPACE;
    const bt_status status = narrow ? BT_LAUNCH((bt_bulk<Op, 4, 4, false>), grid, block, p.stream, p, parts)
                                    : BT_LAUNCH((bt_bulk<Op, 4, 6, false>), grid, block, p.stream, p, parts);
    if (status != BT_OK || parts == 1)
        return status;
    const dim3 all(bt_blocks(bt_div_up(p.m * p.n, 256)));
    return BT_LAUNCH((bt_skinny_finish_parts<Op>), all, block, p.stream, p, parts);
}

#endif
