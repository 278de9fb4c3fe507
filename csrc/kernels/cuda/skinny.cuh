/* Products of up to 16 columns of activations on tensor cores, straight from packed rows. A column is a token, or one
 * digit of a token. The frame of the kernels cuda_skinny; what depends on the element type is an Op, see below.
 *
 * The weights are the 16-row operand a of mma.sync, the activations its 8-column operand b. Lane 4 g + t of a warp
 * holds WORDS words, 16 weights each, of rows g and g + 8: one load a row. The order of k inside an instruction is free
 * as long as both operands have the same, so word i of the lane, which is k = 64 WORDS step + 16 (WORDS t + i) + 0 ..
 * 15 becomes operands by shifts and masks alone, and the activations are put in that order while they are brought to
 * shared memory: 16 bytes a lane, in the order of the lanes, so that a load of a warp meets every bank once.
 *
 *   xs[((step WORDS + i) UNITS + u) pitch + column][t]           UNITS units of 16 bytes hold 16 activations
 *
 * Columns past the last and rows past n repeat the last one; what they give is not stored. Activations past k are
 * zeros; weights there may be anything, because nothing of two bits is Inf or NaN.
 *
 * A step is all that is summed by one warp in one go, 64 WORDS columns of k. WORDS is 4, and 2 or 1 where scale groups
 * are no multiples of 256 or 128. */
#ifndef BT_CUDA_SKINNY_CUH
#define BT_CUDA_SKINNY_CUH

#include "../cuda_tensor.h"
#include "ptx.cuh"

/* An Op:
 *   Params, Sum                  the params struct of the op; int or float
 *   UNITS                        16-byte units of 16 activations: 1 of int8, 2 of halves
 *   digits(p)                    columns a token
 *   x(p, column)                 where a column begins
 *   columns(p), arranged(p)      columns of a row of x, and whether they lie as arrange() puts them
 *   arrange(in, out)             16 activations as they lie in memory to UNITS units of xs
 *   multiply(sum, low, high, b)  sum += words `low` of row g and `high` of row g + 8 times UNITS units of a column
 *   result(sum)                  the product that a sum stands for
 *   Total, add, store            sums over scale groups, and what is made of them
 *   fold, finish                 the same for one digit, without a struct */

template <class Op> static __host__ __device__ int bt_skinny_columns(const typename Op::Params &p) {
    return (int)(Op::digits(p) * p.m);
}

/* 32 KiB of activations: three blocks on devices with 100 KiB, and beside other sums within the 48 KiB that are static.
 */
enum { BT_SKINNY_UNITS = 2048 };

/* The sums of 16 rows and 8 TILES columns, a column beside the other. 20 words a column put what the lanes of a warp
 * write, rows g of columns 2 t, into 32 banks. */
enum { BT_SKINNY_ROWS = 16, BT_SKINNY_PITCH = 20 };

template <int WORDS> struct alignas(4 * WORDS) bt_skinny_words {
    uint32_t word[WORDS];
};

/* Four words a lane are whole sectors of memory; of a sector that several loads share, L1 keeps the rest. */
template <int WORDS> static __device__ __forceinline__ bt_skinny_words<WORDS> bt_skinny_load(const uint8_t *from) {
    return *(const bt_skinny_words<WORDS> *)from;
}

template <> __device__ __forceinline__ bt_skinny_words<4> bt_skinny_load<4>(const uint8_t *from) {
    const uint4 v = bt_load_once(from);
    return {{v.x, v.y, v.z, v.w}};
}

/* The same where only `bytes` are left of the row, and perhaps of the memory; zeros past them. */
static __device__ bt_skinny_words<4> bt_skinny_load_end(const uint8_t *from, int64_t bytes) {
    bt_skinny_words<4> w;
    for (int i = 0; i < 4; i++) {
        w.word[i] = 0;
        for (int b = 0; b < 4; b++)
            if (4 * i + b < bytes)
                w.word[i] |= (uint32_t)from[4 * i + b] << (8 * b);
    }
    return w;
}

/* 16 activations from column k0 on, as they lie in memory; zeros from k on. */
template <class Op>
static __device__ __forceinline__ void bt_skinny_read(const void *x, int64_t k0, int64_t k, bool aligned,
                                                      uint4 (&in)[Op::UNITS]) {
    const uint8_t *const from = (const uint8_t *)x + k0 * Op::UNITS;
    const int64_t bytes = (k - k0) * Op::UNITS;
    if (aligned && bytes >= 16 * Op::UNITS) {
        for (int u = 0; u < Op::UNITS; u++)
            in[u] = ((const uint4 *)from)[u];
        return;
    }
    for (int u = 0; u < Op::UNITS; u++) {
        uint32_t word[4] = {0};
        for (int b = 0; b < 16; b++)
            if (16 * u + b < bytes)
                word[b / 4] |= (uint32_t)from[16 * u + b] << (8 * (b % 4));
        in[u] = {word[0], word[1], word[2], word[3]};
    }
}

/* `steps` steps of `columns` columns of activations, LEAST or more, the first from column k0 of k on and each `apart`
 * after the one before, to xs. THREADS threads do it, of which this is `thread`: four have the places t, and their
 * neighbours the next columns, so that what a warp writes meets every bank once. */
template <class Op, int WORDS, int THREADS, int LEAST>
static __device__ __forceinline__ void bt_skinny_stage(const typename Op::Params &p, int columns, int64_t k0,
                                                       int64_t apart, int steps, int thread, uint4 *xs) {
    enum { LINES = THREADS / (4 * WORDS) }; /* columns of a step at a time, or of several steps */
    const int t = thread % 4, i = thread / 4 / LINES, line = thread / 4 % LINES;
    const int jump = LINES <= LEAST ? 0 : LINES / columns, begin = LINES <= LEAST ? 0 : line / columns;
    for (int step = begin, column = line - begin * columns; step < steps;) {
        const void *const x = Op::x(p, column);
        uint4 in[Op::UNITS], out[Op::UNITS];
        bt_skinny_read<Op>(x, k0 + step * apart + 16 * (t * WORDS + i), Op::columns(p), (uintptr_t)x % 16 == 0, in);
        Op::arrange(in, out);
        for (int u = 0; u < Op::UNITS; u++)
            xs[(((step * WORDS + i) * Op::UNITS + u) * columns + column) * 4 + t] = Op::arranged(p) ? in[u] : out[u];
        step += jump, column += LINES - jump * columns;
        if (column >= columns)
            step++, column -= columns;
    }
}

/* A lane's place in a tile. Pointers that move from step to step are kept, not computed anew from the tile. */
template <int TILES, int ROW_TILES> struct bt_skinny_lane {
    const uint8_t *row[ROW_TILES][2]; /* its words of the next step to be fetched */
    int unit[TILES];                  /* its place in a row of units of xs */
};

/* `at` is the byte of a row where the warp begins. */
template <class Op, int WORDS, int TILES, int ROW_TILES>
static __device__ __forceinline__ bt_skinny_lane<TILES, ROW_TILES>
bt_skinny_place(const typename Op::Params &p, int columns, int64_t r0, int64_t at) {
    bt_skinny_lane<TILES, ROW_TILES> lane;
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4, last = columns - 1;
    for (int tile = 0; tile < ROW_TILES; tile++)
        for (int high = 0; high < 2; high++) {
            const int64_t r = r0 + BT_SKINNY_ROWS * tile + g + 8 * high;
            lane.row[tile][high] = p.w + (r < p.n ? r : p.n - 1) * p.ldw + at + 4 * WORDS * t;
        }
    BT_UNROLL
    for (int tile = 0; tile < TILES; tile++)
        lane.unit[tile] = 4 * (8 * tile + g < last ? 8 * tile + g : last) + t;
    return lane;
}

/* What a lane needs of the weights in a step. */
template <int WORDS, int ROW_TILES> struct bt_skinny_weights {
    bt_skinny_words<WORDS> row[ROW_TILES][2];
};

/* The weights of a step, if it is `there`. The lane's place is then that of the step after it, `further` bytes on. */
template <int WORDS, int TILES, int ROW_TILES>
static __device__ __forceinline__ void bt_skinny_fetch(bt_skinny_lane<TILES, ROW_TILES> &lane, bool there,
                                                       int64_t further, bt_skinny_weights<WORDS, ROW_TILES> &w) {
    for (int tile = 0; tile < ROW_TILES; tile++)
        for (int high = 0; high < 2; high++) {
            if (there)
                w.row[tile][high] = bt_skinny_load<WORDS>(lane.row[tile][high]);
            lane.row[tile][high] += further;
        }
}

/* The last step of rows that do not fill it, of which `bytes` are left. */
template <int TILES, int ROW_TILES>
static __device__ bt_skinny_weights<4, ROW_TILES> bt_skinny_fetch_end(const bt_skinny_lane<TILES, ROW_TILES> &lane,
                                                                      int64_t bytes) {
    bt_skinny_weights<4, ROW_TILES> w;
    for (int tile = 0; tile < ROW_TILES; tile++)
        for (int high = 0; high < 2; high++)
            w.row[tile][high] = bt_skinny_load_end(lane.row[tile][high], bytes - 16 * (threadIdx.x % 4));
    return w;
}

/* sum += a step, whose activations begin at xs. */
template <class Op, int WORDS, int TILES, int ROW_TILES>
static __device__ __forceinline__ void bt_skinny_multiply(const bt_skinny_lane<TILES, ROW_TILES> &lane,
                                                          const bt_skinny_weights<WORDS, ROW_TILES> &w, const uint4 *xs,
                                                          int pitch, typename Op::Sum (&sum)[ROW_TILES][TILES][4]) {
    BT_UNROLL
    for (int i = 0; i < WORDS; i++)
        BT_UNROLL
    for (int tile = 0; tile < TILES; tile++) {
        uint4 b[Op::UNITS];
        for (int u = 0; u < Op::UNITS; u++)
            b[u] = xs[(i * Op::UNITS + u) * 4 * pitch + lane.unit[tile]];
        for (int rows = 0; rows < ROW_TILES; rows++)
            Op::multiply(sum[rows][tile], w.row[rows][0].word[i], w.row[rows][1].word[i], b);
    }
}

/* The sums of a warp for 16 rows, to a place of 8 TILES columns. */
template <class Op, int TILES>
static __device__ __forceinline__ void bt_skinny_put(const typename Op::Sum (&sum)[TILES][4], typename Op::Sum *place) {
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    BT_UNROLL
    for (int tile = 0; tile < TILES; tile++)
        BT_UNROLL
    for (int i = 0; i < 4; i++)
        place[(8 * tile + 2 * t + i % 2) * BT_SKINNY_PITCH + g + i / 2 * 8] = Op::result(sum[tile][i]);
}

/* One scale a row or one for all. The warps of a block take the steps of its part of k in turn and add their sums in
 * the order of the warps. A warp stages the activations of its own steps in its own share of xs, and leaves its sums
 * there, so that warps wait for one another at the end of a tile alone. With several parts the sums go to the
 * workspace, [part][column][n], where finish_parts adds them in the order of the parts. That order depends on n, k and
 * whether there are more than 8 columns. */
template <class Op, int TILES, int ROW_TILES, int WARPS>
static __global__ void __launch_bounds__(32 * WARPS, WARPS == 8 ? 3 : 4)
    bt_skinny_rows(typename Op::Params p, int parts) {
    typedef typename Op::Sum Sum;
    enum { WORDS = 4, STEP_BYTES = 16 * WORDS, ROWS = BT_SKINNY_ROWS * ROW_TILES, PLACE = 8 * TILES * BT_SKINNY_PITCH };
    enum { TURN = WARPS * STEP_BYTES }; /* from a warp's step to its next */
    enum { SHARE = BT_SKINNY_UNITS / WARPS, SHARE_SUMS = SHARE * sizeof(uint4) / sizeof(Sum) };
    static_assert(ROW_TILES * PLACE <= SHARE_SUMS, "the sums of a warp");
    /* Steps that the loop has side by side: with 9 columns of halves or more one step fills a warp's share. */
    enum { LEAST = 8 * (TILES - 1) + 1, AT_ONCE = 2 * 4 * WORDS * Op::UNITS * LEAST <= SHARE ? 2 : 1 };
    __shared__ uint4 xs[WARPS][SHARE];
    const int columns = bt_skinny_columns<Op>(p), warp = (int)threadIdx.x / 32;
    const int units = 4 * WORDS * Op::UNITS * columns,
              turns = SHARE / units; /* of a step; steps that are staged at once */
    /* Of rows that do not fill the last step all but that one are whole. */
    const int steps = (int)bt_div_up(p.k, 64 * WORDS), whole = (int)(p.k / (64 * WORDS));
    const int first = (int)((int64_t)steps * blockIdx.y / parts),
              end = (int)((int64_t)steps * (blockIdx.y + 1) / parts), last = end < whole ? end : whole;
    for (int64_t r0 = (int64_t)blockIdx.x * ROWS; r0 < p.n; r0 += (int64_t)gridDim.x * ROWS) {
        auto lane = bt_skinny_place<Op, WORDS, TILES, ROW_TILES>(p, columns, r0, (int64_t)(first + warp) * STEP_BYTES);
        Sum sum[ROW_TILES][TILES][4] = {};
        bt_skinny_weights<WORDS, ROW_TILES> next = {};
        int step = first + warp; /* which `next` holds, if there is such a step and it is whole */
        bt_skinny_fetch<WORDS>(lane, step < last, TURN, next);
        while (step < end) {
            const int left = (end - step + WARPS - 1) / WARPS, count = left < turns ? left : turns;
            const int stop = step + count * WARPS, stop_whole = stop < last ? stop : last;
            bt_skinny_stage<Op, WORDS, 32, LEAST>(p, columns, (int64_t)step * 64 * WORDS, (int64_t)TURN * 4, count,
                                                  (int)threadIdx.x % 32, xs[warp]);
            __syncwarp();
            const uint4 *b = xs[warp];
            BT_UNROLL_BY(AT_ONCE)
            for (; step < stop_whole; b += units) {
                const auto now = next;
                step += WARPS;
                bt_skinny_fetch<WORDS>(lane, step < last, TURN, next);
                bt_skinny_multiply<Op, WORDS, TILES, ROW_TILES>(lane, now, b, columns, sum);
            }
            if (step < stop) {
                const int64_t at = (int64_t)step * STEP_BYTES;
                const auto there = bt_skinny_place<Op, WORDS, TILES, ROW_TILES>(p, columns, r0, at);
                const auto now = bt_skinny_fetch_end(there, bt_div_up(p.k, 4) - at);
                bt_skinny_multiply<Op, WORDS, TILES, ROW_TILES>(lane, now, b, columns, sum);
                step += WARPS;
            }
            __syncwarp();
        }
        Sum *const sums = (Sum *)xs[warp];
        for (int rows = 0; rows < ROW_TILES; rows++)
            bt_skinny_put<Op, TILES>(sum[rows], sums + rows * PLACE);
        __syncthreads();
        for (int at = (int)threadIdx.x; at < ROWS * (parts > 1 ? columns : (int)p.m); at += 32 * WARPS) {
            const int64_t r = r0 + at % ROWS;
            const Sum *const from = (Sum *)xs[0] + at / BT_SKINNY_ROWS % ROW_TILES * PLACE + at % BT_SKINNY_ROWS;
            const auto total_of = [&](int64_t column) {
                Sum total = 0;
                for (int of = 0; of < WARPS; of++)
                    total += from[of * SHARE_SUMS + column * BT_SKINNY_PITCH];
                return total;
            };
            if (r >= p.n)
                continue;
            if (parts > 1) {
                const int64_t column = (int64_t)blockIdx.y * columns + at / ROWS;
                ((Sum *)p.workspace)[column * p.n + r] = total_of(at / ROWS);
                continue;
            }
            typename Op::Total total = {};
            Op::add(p, total, at / ROWS, r, 0, total_of);
            Op::store(p, total, at / ROWS, r);
        }
        __syncthreads();
    }
}

template <class Op> static __global__ void bt_skinny_finish_parts(typename Op::Params p, int parts) {
    typedef typename Op::Sum Sum;
    const int64_t part = bt_skinny_columns<Op>(p) * p.n;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < p.m * p.n;
         at += (int64_t)gridDim.x * blockDim.x) {
        const int64_t i = at / p.n, r = at % p.n;
        typename Op::Total total = {};
        Op::add(p, total, i, r, 0, [&](int64_t column) {
            Sum sum = 0;
            for (int from = 0; from < parts; from++)
                sum += ((const Sum *)p.workspace)[from * part + column * p.n + r];
            return sum;
        });
        Op::store(p, total, i, r);
    }
}

/* A scale a group. Group g is summed by warp g % WARPS; the groups of a round lie side by side in shared memory, and
 * the thread that owns an output adds them in their order. */
template <class Op, int WORDS, int TILES>
static __global__ void __launch_bounds__(256, 2) bt_skinny_groups(typename Op::Params p) {
    typedef typename Op::Sum Sum;
    enum { WARPS = 8, STEP_BYTES = 16 * WORDS, PLACE = 8 * TILES * BT_SKINNY_PITCH, PLACES = 16 / TILES };
    __shared__ uint4 xs[BT_SKINNY_UNITS];
    __shared__ Sum sums[PLACES][PLACE];
    const int columns = bt_skinny_columns<Op>(p), warp = (int)threadIdx.x / 32;
    const int steps = (int)p.group / (64 * WORDS); /* of a group */
    const int64_t groups = p.k / p.group;
    const int units = 4 * WORDS * Op::UNITS * columns, fit = BT_SKINNY_UNITS / (units * steps);
    const int round = fit < PLACES ? fit : PLACES;
    const int jump = ((WARPS - 1) * steps + 1) * STEP_BYTES; /* from the last step of a group to the warp's next */
    for (int64_t tile = blockIdx.x; tile < bt_div_up(p.n, BT_SKINNY_ROWS); tile += gridDim.x) {
        auto lane = bt_skinny_place<Op, WORDS, TILES, 1>(p, columns, tile * BT_SKINNY_ROWS, warp * steps * STEP_BYTES);
        const int64_t i = threadIdx.x / BT_SKINNY_ROWS, r = tile * BT_SKINNY_ROWS + threadIdx.x % BT_SKINNY_ROWS;
        const bool owner = i < p.m && r < p.n;
        typename Op::Total total = {};
        bt_skinny_weights<WORDS, 1> next = {};
        int64_t group = warp;
        bt_skinny_fetch<WORDS>(lane, group < groups, steps > 1 ? STEP_BYTES : jump, next);
        for (int64_t begin = 0; begin < groups; begin += round) {
            const int count = groups - begin < round ? (int)(groups - begin) : round;
            bt_skinny_stage<Op, WORDS, 256, 8 * (TILES - 1) + 1>(p, columns, begin * p.group, 64 * WORDS, count * steps,
                                                                 (int)threadIdx.x, xs);
            __syncthreads();
            for (; group < begin + count; group += WARPS) {
                Sum sum[1][TILES][4] = {};
                const uint4 *b = xs + (int)(group - begin) * steps * units;
                for (int step = 1; step <= steps; step++, b += units) {
                    const auto now = next;
                    const bool same = step < steps; /* else the first step of the warp's next group comes */
                    const bool ends = same ? step + 1 == steps : steps == 1;
                    bt_skinny_fetch<WORDS>(lane, same || group + WARPS < groups, ends ? jump : STEP_BYTES, next);
                    bt_skinny_multiply<Op, WORDS, TILES, 1>(lane, now, b, columns, sum);
                }
                bt_skinny_put<Op, TILES>(sum[0], sums[group - begin]);
            }
            __syncthreads();
            for (int from = 0; owner && from < count; from++) {
                const Sum *const place = sums[from] + threadIdx.x % BT_SKINNY_ROWS;
                Op::add(p, total, i, r, begin + from, [&](int64_t column) { return place[column * BT_SKINNY_PITCH]; });
            }
        }
        if (owner)
            Op::store(p, total, i, r);
    }
}

template <class Op, int TILES> static bt_status bt_skinny_launch_groups(const typename Op::Params &p) {
    const dim3 grid(bt_blocks(bt_div_up(p.n, BT_SKINNY_ROWS))), block(256);
    if (p.group % 256 == 0)
        return BT_LAUNCH((bt_skinny_groups<Op, 4, TILES>), grid, block, p.stream, p);
    if (p.group % 128 == 0)
        return BT_LAUNCH((bt_skinny_groups<Op, 2, TILES>), grid, block, p.stream, p);
    return BT_LAUNCH((bt_skinny_groups<Op, 1, TILES>), grid, block, p.stream, p);
}

/* More columns take fewer warps of more rows each: the activations that a row of blocks reads from L2 stay below twice
 * the bytes of the weights. */
template <class Op> static bt_status bt_skinny_launch_rows(const typename Op::Params &p, int columns, int parts) {
    const int rows = bt_skinny_block_rows(columns);
    const dim3 grid(bt_blocks(bt_div_up(p.n, rows)), (unsigned)parts);
    if (columns <= 8)
        return BT_LAUNCH((bt_skinny_rows<Op, 1, 1, 8>), grid, dim3(256), p.stream, p, parts);
    return BT_LAUNCH((bt_skinny_rows<Op, 2, 2, 4>), grid, dim3(128), p.stream, p, parts);
}

template <class Op> static bt_status bt_skinny_launch(const typename Op::Params &p) {
    const int columns = bt_skinny_columns<Op>(p);
    if (p.m == 0 || p.n == 0)
        return BT_OK;
    if (bt_tensor_lacks(p.m, Op::digits(p), p.k, p.ldw, p.w, p.group) & BT_GPU_SKINNY)
        return BT_ERR_PROBLEM;
    if (p.group < p.k)
        return columns <= 8 ? bt_skinny_launch_groups<Op, 1>(p) : bt_skinny_launch_groups<Op, 2>(p);
    const int parts = bt_skinny_parts(columns, p.n, p.k);
    if (parts > 1 && p.workspace_bytes < 4 * (int64_t)parts * columns * p.n)
        return BT_ERR_WORKSPACE;
    const bt_status status = bt_skinny_launch_rows<Op>(p, columns, parts);
    if (status != BT_OK || parts == 1)
        return status;
    const dim3 grid(bt_blocks(bt_div_up(p.m * p.n, 256)));
    return BT_LAUNCH((bt_skinny_finish_parts<Op>), grid, dim3(256), p.stream, p, parts);
}

#endif
