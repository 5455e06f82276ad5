/* The inner kernels: a few rows of activations times some columns of a packed matrix. Each output is
 * summed over k in one order, whatever the number of rows, so a row's result never depends on its
 * company. */
#ifndef MILLPOND_TILES_H
#define MILLPOND_TILES_H
#include "model.h"

enum { LINE = 16 }; /* words of a cache line */

/* Fetch lines of what this thread comes to next: a page as near as possible, a panel, of which one line
 * is fetched at a time, only to the second cache, since it would drive this one out of the first. */
INLINE void fetch(const uint32_t *ahead, const int lines) {
    if (lines == 1) __builtin_prefetch(ahead, 0, 2);
    else UNROLL for (int i = 0; i < lines; i++) __builtin_prefetch(ahead + LINE * i, 0, 3);
}

/* What becomes of sums of bytes. Activations may be stored plus a bias: its part of the sum is taken off
 * again. */
struct scaling {
    ints offset;
    vec by;
};

INLINE struct scaling column_scaling(const float *scale, const int32_t *sum) {
    return (struct scaling){ints_load(sum) * QUANT_BIAS, vec_load(scale)};
}

INLINE vec scale_sums(ints sums, struct scaling column, float row_scale) {
    return vec_mul(ints_to_floats(sums - column.offset), vec_mul(column.by, vec_set1(row_scale)));
}

/* Rows and columns are constants wherever a kernel is called, so the sums live in registers. */
#define FOR_ROWS(CASE, vecs) CASE(1, vecs) CASE(2, vecs) CASE(3, vecs) CASE(4, vecs) \
    CASE(5, vecs) CASE(6, vecs)

/* acc[rows][vecs] += a[row][steps] * w[steps][vecs], and fetch so many lines with each step. */
INLINE void tile(const int rows, const int vecs, const int lines, int64_t steps, const active *const *a,
                 const uint32_t *w, int64_t w_stride, const uint32_t *ahead, int64_t ahead_stride,
                 vec acc[VECTOR_ROWS][MOST_VECS]) {
    for (int64_t k = 0; k < steps; k++, w += w_stride, ahead += ahead_stride) {
        fetch(ahead, lines);
#ifdef MULTIPLIES_BF16
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < vecs; j++)
                acc[i][j] = vec_multiply(acc[i][j], a[i] + 2 * k, w + VEC * j);
#else
        UNROLL for (int half = 0; half < TOGETHER; half++) {
            vec b[MOST_VECS];
            UNROLL for (int j = 0; j < vecs; j++)
                b[j] = TOGETHER == 1 ? vec_load((const float *)w + VEC * j) : vec_half(w + VEC * j, half);
            UNROLL for (int i = 0; i < rows; i++) {
                vec x = vec_set1(a[i][TOGETHER * k + half]);
                UNROLL for (int j = 0; j < vecs; j++) acc[i][j] = vec_fma(x, b[j], acc[i][j]);
            }
        }
#endif
    }
}

/* out[rows][vecs] = a * w. With add, out is where the sum starts. */
INLINE void run_tile(const int rows, const int vecs, const int lines, int add, int64_t steps,
                     const active *first, int64_t a_stride, const uint32_t *w, int64_t w_stride, const uint32_t *ahead,
                     int64_t ahead_stride, float *out, int64_t out_stride) {
    const active *a[VECTOR_ROWS];
    UNROLL for (int i = 0; i < rows; i++) a[i] = first + i * a_stride;
    vec acc[VECTOR_ROWS][MOST_VECS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vecs; j++)
            acc[i][j] = add ? vec_load(out + i * out_stride + VEC * j) : vec_set1(0.0f);
    tile(rows, vecs, lines, steps, a, w, w_stride, ahead, ahead_stride, acc);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vecs; j++) vec_store(out + i * out_stride + VEC * j, acc[i][j]);
}

/* In vectors, at most VECTOR_ROWS rows. */
INLINE void multiply_in_vectors(const int lines, int rows, int columns, int add, int64_t steps,
                                const active *a, int64_t a_stride, const uint32_t *w,
                                int64_t w_stride, const uint32_t *ahead, float *out,
                                int64_t out_stride) {
    int64_t ahead_stride = lines * LINE; /* all of it is fetched with the first columns */
    int left = columns / VEC, most = most_vecs(rows);
    for (; left > 0; left -= most, w += most * VEC, out += most * VEC, ahead_stride = 0) {
#define CASE(R, V) case R * 8 + V - 1: \
    run_tile(R, V, lines, add, steps, a, a_stride, w, w_stride, ahead, ahead_stride, out, out_stride); break;
        switch (rows * 8 + (left < most ? left : most) - 1) { FOR_SHAPES(CASE) }
#undef CASE
    }
}

#ifdef __AMX_TILE__
#include "isa/amx.h"
#else
/* The processor multiplies without being made ready. */
INLINE void begin_products(void) {}
INLINE void end_products(void) {}
#define multiply_rows multiply_in_vectors

INLINE void run_tile_int8(const int rows, const int vecs, int64_t quads, const quant *first,
                          int64_t a_stride, const float *a_scale, const uint32_t *w,
                          const float *scale, const int32_t *sum, const uint32_t *ahead,
                          int64_t ahead_stride, float *out) {
    const quant *a[VECTOR_ROWS];
    UNROLL for (int i = 0; i < rows; i++) a[i] = first + i * a_stride;
    ints acc[VECTOR_ROWS][MOST_VECS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vecs; j++) acc[i][j] = ints_zero();
    for (int64_t k = 0; k < quads; k++, w += PANEL, ahead += ahead_stride) {
        fetch(ahead, 1);
        bytes b[MOST_VECS];
        UNROLL for (int j = 0; j < vecs; j++) b[j] = bytes_load(w + VEC * j);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < vecs; j++)
                acc[i][j] = ints_multiply(acc[i][j], a[i] + 4 * k, b[j]);
    }
    UNROLL for (int j = 0; j < vecs; j++) {
        struct scaling by = column_scaling(scale + VEC * j, sum + VEC * j);
        UNROLL for (int i = 0; i < rows; i++)
            vec_store(out + i * PANEL + VEC * j, scale_sums(acc[i][j], by, a_scale[i]));
    }
}

static __attribute__((noinline)) void multiply_int8(int rows, int columns, int64_t quads,
                     const quant *a, int64_t a_stride, const float *a_scale, const uint32_t *w,
                     const float *scale, const int32_t *sum, const uint32_t *ahead, float *out) {
    int64_t ahead_stride = LINE;
    int left = columns / VEC, most = most_vecs_int8(rows);
    for (; left > 0; left -= most, w += most * VEC, scale += most * VEC, sum += most * VEC,
                     out += most * VEC, ahead_stride = 0) {
#define CASE(R, V) case R * 8 + V - 1: \
    run_tile_int8(R, V, quads, a, a_stride, a_scale, w, scale, sum, ahead, ahead_stride, out); break;
        switch (rows * 8 + (left < most ? left : most) - 1) { FOR_SHAPES_INT8(CASE) }
#undef CASE
    }
}
#endif

/* With the weights of one panel, a line of the next with each step: several calls fetch all of it. */
static __attribute__((noinline)) void multiply(int rows, int columns, int add, int64_t steps,
                     const active *a, int64_t a_stride, const uint32_t *w, int64_t w_stride,
                     const uint32_t *ahead, float *out, int64_t out_stride) {
    multiply_rows(1, rows, columns, add, steps, a, a_stride, w, w_stride, ahead, out, out_stride);
}

/* With the keys or values of one page, all of another's. */
static __attribute__((noinline)) void multiply_page(int rows, int columns, int add, int64_t steps,
                     const active *a, int64_t a_stride, const uint32_t *w, int64_t w_stride,
                     const uint32_t *ahead, float *out, int64_t out_stride) {
    multiply_rows(PAGE / LINE, rows, columns, add, steps, a, a_stride, w, w_stride, ahead, out,
                  out_stride);
}

/* A product in vectors on every processor. */
#ifdef __AMX_TILE__
static __attribute__((noinline)) void multiply_few(int rows, int columns, int add, int64_t steps,
                     const active *a, int64_t a_stride, const uint32_t *w, int64_t w_stride,
                     const uint32_t *ahead, float *out, int64_t out_stride) {
    multiply_in_vectors(1, rows, columns, add, steps, a, a_stride, w, w_stride, ahead, out, out_stride);
}
#else
#define multiply_few multiply
#endif

#endif
