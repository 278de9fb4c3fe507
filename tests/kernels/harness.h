/* What the kernel tests share: buffers between guard pages, random numbers, comparisons and the counter.
 *
 * buffer() puts its bytes right against an inaccessible page: behind them in the passes at_end = 1, before them in the
 * others. They and the rest of their pages are filled with POISON; release() checks that the rest still is. */
#ifndef BT_TEST_HARNESS_H
#define BT_TEST_HARNESS_H

#include "../../csrc/dispatch/kernel_table.h"

enum { POISON = 0xa5 };
enum { COUNT_K = 15, COUNT_N = 6, COUNT_M = 7 };
extern const int64_t some_k[COUNT_K], some_n[COUNT_N], some_m[COUNT_M];
extern int at_end;

/* Elements and bytes of `rows` rows of `columns` elements, `ld` elements apart; the last row is not padded. */
int64_t matrix_elements(int64_t rows, int64_t columns, int64_t ld);
size_t matrix_bytes(int64_t rows, int64_t columns, int64_t ld, int type);
size_t type_size(int type);
const char *type_name(int type);

void *buffer(size_t bytes);
void release(void); /* all buffers of the case */

uint32_t random_bits(void);
int64_t random_below(int64_t limit);
float random_normal(void);

double value_at(const void *base, int type, int64_t index);
void store_value(void *base, int type, int64_t index, float value);
void fill_normal(void *base, int type, int64_t count);
/* Integers of eight bits: random ones, and those whose sums are the largest. */
enum { RANDOM, ALL_127, ALL_MINUS_128, ALTERNATING, FILLS };
int8_t byte_of(int fill, int64_t index);

/* Whether y[index] is what bt_finish() should make of a sum and the bias of a row, by the same arguments. */
int is_finished(const void *y, int y_type, int64_t index, float sum, const void *bias, int bias_type, int64_t row);

/* Equal bits, or both NaN. */
int same_values(const void *a, const void *b, int type, int64_t count);
/* Columns `columns`..ld of all rows but the last still hold the poison. */
int gaps_untouched(const void *base, int64_t rows, int64_t columns, int64_t ld, int type);

/* n rows of random legal codes, ldw bytes apart, and the same as n x k values. */
uint8_t *random_weights(int64_t n, int64_t k, int64_t ldw, int8_t *trits);

/* The row of the table after `last`, NULL for the first one, of a kernel of the op that a CPU has and that is usable
 * here, all or but for the scalar one; NULL where no more follow. */
const bt_kernel *next_usable(const bt_kernel *last, bt_op op);
const bt_kernel *next_compared(const bt_kernel *last, bt_op op);

/* What is printed when a check fails or a guard page is touched. */
void set_context(const char *format, ...) __attribute__((format(printf, 1, 2)));
void check(int condition, const char *what);
/* Values as expected, with poison between rows. */
void check_matrix(const void *y, const void *expected, int64_t rows, int64_t columns, int64_t ld, int type,
                  const char *what);
int report(void);

void test_half(void);
/* test_<op>() for each op. */
#define BT_DECLARE_TEST(op, list) void test_##op(void);
BT_OPS(BT_DECLARE_TEST)

#endif
