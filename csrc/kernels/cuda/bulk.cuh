/* Products of many columns of activations on tensor cores: blocks of 128 or 256 rows by 64 or 32 columns, which bring
 * rows and activations to shared memory some stages ahead.
 *
 * A warp has 32 rows and all columns of its block, so that the operands made of a word serve every tile of columns, and
 * a tile's activations both its tiles of 16 rows. A lane owns its outputs: scale groups are added in its registers, in
 * rising order. A stage is 128 columns of k: of each row 32 bytes, 8 words; of each column of activations 8 pieces of
 * 16, of which piece 4 i + t meets word 4 i + t of a row in lane t. In shared memory, in units of 16 bytes:
 *
 *   unit u of UNITS of piece 4 i + t of column c       ((i UNITS + u) COLUMNS + (c ^ (i & 1))) 4 + t
 *   words 4 i .. 4 i + 3 of row r, after these         2 r + (i ^ (r >> 2 & 1))
 *
 * so that a load of a warp meets every bank once, and so does a copy by neighbouring threads, which have neighbouring
 * pieces. The thread that copied a piece puts it in the order of the operands (Op::arrange) when it has come: nobody
 * else needs it before the barrier that follows. Tokens of several digits are cut so that a tile has whole tokens. A
 * block makes one tile of y. */
#ifndef BT_CUDA_BULK_CUH
#define BT_CUDA_BULK_CUH

#include "skinny.cuh"

/* KiB of shared memory of a multiprocessor, of which a block takes one more than it asks for. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
enum { BT_SHARED_KIB = 100 };
#elif __CUDA_ARCH__ >= 900
enum { BT_SHARED_KIB = 228 };
#else
enum { BT_SHARED_KIB = 164 };
#endif

template <class Op, int TILES, int WARPS> struct bt_bulk_block {
    typedef typename Op::Params Params;
    typedef typename Op::Sum Sum;
    enum { COLUMNS = 8 * TILES, ROWS = 32 * WARPS, THREADS = 32 * WARPS };
    enum { WORDS = 2, STAGE_K = 64 * WORDS, STAGE_BYTES = 16 * WORDS, PIECES = 4 * WORDS }; /* of a row or column */
    enum { X_UNITS = PIECES * Op::UNITS * COLUMNS, STAGE_UNITS = X_UNITS + WORDS * ROWS };
    /* Two of 20 KB where three would leave one block to devices with 100 KB. */
    enum { STAGES = STAGE_UNITS <= 768 ? 4 : WARPS == 4 ? 2 : 3, BYTES = 16 * STAGES * STAGE_UNITS };
    /* Blocks of a multiprocessor: as many as its shared memory holds and, at most, as its registers suffice for. */
    enum { FIT = BT_SHARED_KIB * 1024 / (BYTES + 1024), MOST = WARPS == 4 ? 3 : 1, BLOCKS = FIT < MOST ? FIT : MOST };
    enum { X_COPIES = PIECES * COLUMNS / THREADS, W_COPIES = WORDS * ROWS / THREADS }; /* of a thread */
    enum { X_APART = THREADS / PIECES * 4, W_APART = THREADS };                        /* units from one to the next */
    enum { PLACE = COLUMNS * BT_SKINNY_PITCH }; /* the sums of 16 rows: those of all warps reuse the stages */
    static_assert(BYTES <= 99 * 1024 && 4 * WARPS * PLACE <= BYTES, "shared memory of a block");

    /* What a thread brings of each stage, its pieces of k = 0 and on. */
    struct Copies {
        const uint8_t *x[X_COPIES], *w[W_COPIES];
    };

    static __device__ __forceinline__ int piece() {
        return (int)threadIdx.x % PIECES;
    }

    /* Columns past the last and rows past n repeat the last one; what they give is not stored. */
    static __device__ __forceinline__ Copies copies(const Params &p, int64_t column0, int columns, int64_t n0) {
        Copies own;
        BT_UNROLL
        for (int of = 0; of < X_COPIES; of++) {
            const int column = (int)threadIdx.x / PIECES + of * (THREADS / PIECES);
            own.x[of] = (const uint8_t *)Op::x(p, column0 + (column < columns ? column : columns - 1)) +
                        16 * Op::UNITS * piece();
        }
        BT_UNROLL
        for (int of = 0; of < W_COPIES; of++) {
            const int64_t r = n0 + (int)threadIdx.x / WORDS + of * (THREADS / WORDS);
            own.w[of] = p.w + (r < p.n ? r : p.n - 1) * p.ldw + threadIdx.x % WORDS * 16;
        }
        return own;
    }

    /* Its first places in a stage. */
    static __device__ __forceinline__ uint4 *place_of_x(uint4 *stage) {
        const int i = piece() / 4, column = (int)threadIdx.x / PIECES;
        return stage + (i * Op::UNITS * COLUMNS + (column ^ (i & 1))) * 4 + piece() % 4;
    }
    static __device__ __forceinline__ uint4 *place_of_w(uint4 *stage) {
        const int row = (int)threadIdx.x / WORDS;
        return stage + X_UNITS + WORDS * row + ((int)threadIdx.x % WORDS ^ (row >> 2 & 1));
    }

    /* 16 bytes, of which `left` are there; zeros past them. */
    static __device__ __forceinline__ void read(uint4 *to, const uint8_t *from, int64_t left) {
        BT_UNROLL_NOT
        for (int b = 0; b < 16; b++)
            ((uint8_t *)to)[b] = b < left ? from[b] : (uint8_t)0;
    }

    /* Begins to bring the stage of that number. Where k ends inside it, or where rows of x begin anywhere, it is read
     * at once instead. */
    static __device__ __forceinline__ void fetch(const Params &p, const Copies &own, int number, bool aligned,
                                                 uint4 *stage) {
        const int64_t x_byte = (int64_t)number * (STAGE_K * Op::UNITS), w_byte = (int64_t)number * STAGE_BYTES;
        const bool whole = (int64_t)(number + 1) * STAGE_K <= p.k, copy_x = whole && aligned;
        uint4 *const to_x = place_of_x(stage), *const to_w = place_of_w(stage);
        BT_UNROLL
        for (int at = 0; at < X_COPIES * Op::UNITS; at++) {
            const int of = at / Op::UNITS, u = at % Op::UNITS;
            uint4 *const to = to_x + of * X_APART + u * 4 * COLUMNS;
            const uint8_t *const from = own.x[of] + x_byte + 16 * u;
            if (copy_x)
                bt_copy_async(to, from);
            else
                read(to, from, (Op::columns(p) - 16 * piece()) * Op::UNITS - x_byte - 16 * u);
        }
        BT_UNROLL
        for (int of = 0; of < W_COPIES; of++) {
            if (whole)
                bt_copy_async(to_w + of * W_APART, own.w[of] + w_byte);
            else
                read(to_w + of * W_APART, own.w[of] + w_byte, bt_div_up(p.k, 4) - w_byte - threadIdx.x % WORDS * 16);
        }
    }

    static __device__ __forceinline__ void arrange(const Params &p, uint4 *stage) {
        if (Op::arranged(p))
            return;
        uint4 *const to = place_of_x(stage);
        BT_UNROLL_BY(2) /* four at once would spill */
        for (int of = 0; of < X_COPIES; of++) {
            uint4 in[Op::UNITS], out[Op::UNITS];
            for (int u = 0; u < Op::UNITS; u++)
                in[u] = to[of * X_APART + u * 4 * COLUMNS];
            Op::arrange(in, out);
            for (int u = 0; u < Op::UNITS; u++)
                to[of * X_APART + u * 4 * COLUMNS] = out[u];
        }
    }

    /* sum += columns 64 i .. 64 i + 63 of a stage. */
    static __device__ __forceinline__ void multiply(const uint4 *stage, int i, Sum (&sum)[2][TILES][4]) {
        const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4, warp = (int)threadIdx.x / 32;
        const uint32_t *const w =
            (const uint32_t *)(stage + X_UNITS + WORDS * (32 * warp + g) + (i ^ (g >> 2 & 1))) + t;
        const uint4 *const x = stage + i * Op::UNITS * COLUMNS * 4 + 4 * (g ^ (i & 1)) + t;
        BT_UNROLL
        for (int tile = 0; tile < TILES; tile++) {
            uint4 b[Op::UNITS];
            for (int u = 0; u < Op::UNITS; u++)
                b[u] = x[(u * COLUMNS + 8 * tile) * 4];
            BT_UNROLL
            for (int rows = 0; rows < 2; rows++)
                Op::multiply(sum[rows][tile], w[rows * 16 * 4 * WORDS], w[(rows * 16 + 8) * 4 * WORDS], b);
        }
    }

    /* total += the sums of scale group `group` times its scales; the sums begin anew. */
    static __device__ __forceinline__ void fold(const Params &p, int64_t i0, int here, int64_t r0, int64_t group,
                                                Sum (&sum)[2][TILES][4], float (&total)[2][TILES][4]) {
        BT_UNROLL
        for (int at = 0; at < 8 * TILES; at++) {
            const int rows = at / (4 * TILES), tile = at / 4 % TILES, of = at % 4;
            /* What lies past the last token and row stands for the last one, and is not stored. */
            const int column = 8 * tile + (int)threadIdx.x % 4 * 2 + of % 2;
            const int64_t i = i0 + (column < here ? column : here - 1);
            const int64_t row = r0 + 16 * rows + (int)threadIdx.x % 32 / 4 + of / 2 * 8, r = row < p.n ? row : p.n - 1;
            float &sums = total[rows][tile][of];
            sums = Op::fold(p, sums, Op::result(sum[rows][tile][of]), i, r, group);
            sum[rows][tile][of] = 0;
        }
    }

    /* The outputs of a lane, with scale groups. */
    static __device__ __forceinline__ void finish(const Params &p, int64_t i0, int64_t r0,
                                                  const float (&total)[2][TILES][4]) {
        BT_UNROLL
        for (int at = 0; at < 8 * TILES; at++) {
            const int rows = at / (4 * TILES), tile = at / 4 % TILES, of = at % 4;
            const int64_t i = i0 + 8 * tile + (int)threadIdx.x % 4 * 2 + of % 2;
            const int64_t r = r0 + 16 * rows + (int)threadIdx.x % 32 / 4 + of / 2 * 8;
            if (i < p.m && r < p.n)
                Op::finish(p, total[rows][tile][of], i, r);
        }
    }

    /* The outputs of a block, or what its part of k adds to them, through shared memory: 16 rows of each warp. */
    static __device__ void store(const Params &p, int parts, int64_t i0, int here, int64_t n0, const Sum *sums) {
        const int digits = Op::digits(p), count = 16 * WARPS * (parts > 1 ? digits * here : here);
        for (int at = (int)threadIdx.x; at < count; at += THREADS) {
            const int of = at / (16 * WARPS), row = at % (16 * WARPS);
            const Sum *const from = sums + row / 16 * PLACE + row % 16;
            const int64_t r = n0 + row / 16 * 32 + row % 16;
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
};

/* The sums of a part of k go to the workspace as those of skinny.cuh do. */
template <class Op, int TILES, int WARPS, bool GROUPS>
static __global__ void __launch_bounds__(32 * WARPS, bt_bulk_block<Op, TILES, WARPS>::BLOCKS)
    bt_bulk(typename Op::Params p, int parts, bool aligned) {
    typedef bt_bulk_block<Op, TILES, WARPS> Block;
    typedef typename Op::Sum Sum;
    enum { AHEAD = Block::STAGES - 1, GROUP_TILES = GROUPS ? TILES : 1 };
    BT_DYNAMIC_SHARED(memory);
    const int warp = (int)threadIdx.x / 32, digits = Op::digits(p), tokens = Block::COLUMNS / digits;
    const int stages = (int)bt_div_up(p.k, Block::STAGE_K);
    const int first = (int)((int64_t)stages * blockIdx.y / parts),
              end = (int)((int64_t)stages * (blockIdx.y + 1) / parts);
    const unsigned row_tiles = (unsigned)bt_div_up(p.n, Block::ROWS);
    const int64_t i0 = (int64_t)(blockIdx.x / row_tiles) * tokens;
    const int64_t n0 = (int64_t)(blockIdx.x % row_tiles) * Block::ROWS, r0 = n0 + 32 * warp;
    const int here = p.m - i0 < tokens ? (int)(p.m - i0) : tokens;
    const auto copies = Block::copies(p, digits * i0, digits * here, n0);
    Sum sum[2][TILES][4] = {};
    float total[2][GROUP_TILES][4] = {};
    const int group_words = (int)(p.group / 64), groups = (int)(p.k / p.group);
    int left = group_words, group = 0; /* 64 columns of the group that are to come */
    for (int s = 0; s < AHEAD; s++) {
        if (first + s < end)
            Block::fetch(p, copies, first + s, aligned, memory + s * Block::STAGE_UNITS);
        bt_copy_commit();
    }
    bt_copy_wait<AHEAD - 1>();
    Block::arrange(p, memory);
    int slot = 0, next = 1, free = AHEAD;
    for (int s = first; s < end; s++) {
        const uint4 *const stage = memory + slot * Block::STAGE_UNITS;
        __syncthreads(); /* the stage is whole and arranged, and nobody reads the one before any more */
        if (s + AHEAD < end)
            Block::fetch(p, copies, s + AHEAD, aligned, memory + free * Block::STAGE_UNITS);
        bt_copy_commit();
        BT_UNROLL
        for (int i = 0; i < Block::WORDS; i++) {
            Block::multiply(stage, i, sum);
            if (i == 0) { /* between products, which leave time for it; past the last stage it is of no use */
                bt_copy_wait<AHEAD - 1>();
                Block::arrange(p, memory + next * Block::STAGE_UNITS);
            }
            if constexpr (GROUPS)
                if (--left == 0 && group < groups) {
                    Block::fold(p, i0, here, r0, group++, sum, total);
                    left = group_words;
                }
        }
        slot = next;
        next = next + 1 < Block::STAGES ? next + 1 : 0;
        free = free + 1 < Block::STAGES ? free + 1 : 0;
    }
    if constexpr (GROUPS)
        return Block::finish(p, i0, r0, total);
    Sum *const sums = (Sum *)memory;
    BT_UNROLL
    for (int rows = 0; rows < 2; rows++) {
        __syncthreads(); /* nobody reads what lay there */
        bt_skinny_put<Op, TILES>(sum[rows], sums + warp * Block::PLACE);
        __syncthreads();
        Block::store(p, parts, i0, here, n0 + 16 * rows, sums);
    }
}

template <class Op, int TILES, int WARPS, bool GROUPS>
static bt_status bt_bulk_launch_blocks(const typename Op::Params &p, int parts) {
    typedef bt_bulk_block<Op, TILES, WARPS> Block;
    const int64_t tiles = bt_div_up(p.n, Block::ROWS) * bt_div_up(p.m, Block::COLUMNS / Op::digits(p));
    if (tiles > 0x7fffffff)
        return BT_ERR_PROBLEM;
    const void *const x = Op::x(p, 0), *const next = Op::x(p, 1);
    const bool aligned = ((uintptr_t)x | (uintptr_t)next) % 16 == 0;
    return BT_LAUNCH_SHARED((bt_bulk<Op, TILES, WARPS, GROUPS>), Block::BYTES, dim3((unsigned)tiles, (unsigned)parts),
                            dim3(Block::THREADS), p.stream, p, parts, aligned);
}

template <class Op> static bt_status bt_bulk_launch(const typename Op::Params &p) {
    if (p.m == 0 || p.n == 0)
        return BT_OK;
    if (bt_tensor_lacks(p.m, Op::digits(p), p.k, p.ldw, p.w, p.group) & BT_GPU_BULK)
        return BT_ERR_PROBLEM;
    if (p.group < p.k)
        return bt_bulk_launch_blocks<Op, 4, 4, true>(p, 1);
    const int64_t columns = Op::digits(p) * p.m;
    const int parts = bt_bulk_parts(columns, p.n, p.k);
    if (parts > 1 && p.workspace_bytes < 4 * (int64_t)parts * columns * p.n)
        return BT_ERR_WORKSPACE;
    const int width = bt_bulk_width(columns);
    const bt_status status = width == 32                         ? bt_bulk_launch_blocks<Op, 4, 4, false>(p, parts)
                             : bt_bulk_rows(columns, p.n) == 128 ? bt_bulk_launch_blocks<Op, 8, 4, false>(p, parts)
                                                                 : bt_bulk_launch_blocks<Op, 8, 8, false>(p, parts);
    if (status != BT_OK || parts == 1)
        return status;
    const dim3 all(bt_blocks(bt_div_up(p.m * p.n, 256)));
    return BT_LAUNCH((bt_skinny_finish_parts<Op>), all, dim3(256), p.stream, p, parts);
}

#endif
