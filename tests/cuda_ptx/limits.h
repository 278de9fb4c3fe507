/* Read before every source: the limits of the launchers are variables here, so that one compilation has small grids,
 * whose loops are taken, and those of the product. */
#if defined(__cplusplus)
extern "C" {
#endif
extern long bt_max_blocks, bt_quantize_keys, bt_bulk_tall;
#if defined(__cplusplus)
}
#endif
#define BT_CUDA_MAX_BLOCKS bt_max_blocks
#define BT_QUANTIZE_KEYS bt_quantize_keys
#define BT_BULK_TALL bt_bulk_tall
