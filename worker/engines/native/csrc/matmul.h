/* Products of activations with packed weights. Each output is summed over k in one order, whatever
 * the number of rows, so a row's result never depends on its company. */
#ifndef MILLPOND_MATMUL_H
#define MILLPOND_MATMUL_H
#include "model.h"
#include "team.h"

/* acc[rows][16 * cols] += a[row][pairs] * w[pairs][16 * cols], over pairs of bf16. Rows and cols are
 * constants wherever this is called, so acc lives in registers. */
INLINE void tile_bf16(const int rows, const int cols, int64_t pairs, const uint32_t *const *a,
                      const uint32_t *w, int64_t w_stride, const uint32_t *ahead,
                      __m512 acc[TILE][4]) {
    for (int64_t k = 0; k < pairs; k++) {
        _mm_prefetch((const char *)(ahead + 16 * k), _MM_HINT_T1);
        __m512i b[4];
        UNROLL for (int j = 0; j < cols; j++) b[j] = _mm512_loadu_si512(w + k * w_stride + 16 * j);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512i x = _mm512_set1_epi32((int)a[i][k]);
            UNROLL for (int j = 0; j < cols; j++)
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)x, (__m512bh)b[j]);
        }
    }
}

/* As gcc's own vector type: with arrays of __m512i it keeps the sums in memory as well. */
typedef int32_t sums __attribute__((vector_size(64)));

INLINE void tile_int8(const int rows, const int cols, int64_t quads, const uint32_t *const *a,
                      const uint32_t *w, int64_t w_stride, const uint32_t *ahead,
                      sums acc[TILE][4]) {
    for (int64_t k = 0; k < quads; k++) {
        _mm_prefetch((const char *)(ahead + 16 * k), _MM_HINT_T1);
        __m512i b[4];
        UNROLL for (int j = 0; j < cols; j++) b[j] = _mm512_loadu_si512(w + k * w_stride + 16 * j);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512i x = _mm512_set1_epi32((int)a[i][k]);
            UNROLL for (int j = 0; j < cols; j++) acc[i][j] = (sums)_mm512_dpbusd_epi32((__m512i)acc[i][j], x, b[j]);
        }
    }
}

#define FOR_TILE_SHAPES(CASE, cols) CASE(1, cols) CASE(2, cols) CASE(3, cols) CASE(4, cols) \
    CASE(5, cols) CASE(6, cols)

/* out[rows][64] = a * w. With add, out's first 16 * cols columns are where the sum starts. */
INLINE void run_tile(const int rows, const int cols, int add, int64_t pairs,
                     const uint32_t *const *a, const uint32_t *w, int64_t w_stride,
                     const uint32_t *ahead, float *out, int64_t out_stride) {
    __m512 acc[TILE][4];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < cols; j++)
            acc[i][j] = add ? _mm512_loadu_ps(out + i * out_stride + 16 * j) : _mm512_setzero_ps();
    tile_bf16(rows, cols, pairs, a, w, w_stride, ahead, acc);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < cols; j++) _mm512_storeu_ps(out + i * out_stride + 16 * j, acc[i][j]);
}

static __attribute__((noinline)) void multiply(int rows, int cols, int add, int64_t pairs,
                     const uint32_t *const *a, const uint32_t *w, int64_t w_stride,
                     const uint32_t *ahead, float *out, int64_t out_stride) {
#define CASE(R, C) case R * 8 + C: \
    run_tile(R, C, add, pairs, a, w, w_stride, ahead, out, out_stride); break;
    switch (rows * 8 + cols) {
        FOR_TILE_SHAPES(CASE, 1) FOR_TILE_SHAPES(CASE, 2)
        FOR_TILE_SHAPES(CASE, 3) FOR_TILE_SHAPES(CASE, 4)
    }
#undef CASE
}

INLINE void run_tile_int8(const int rows, const int cols, int64_t quads, const uint32_t *const *a,
                          const float *a_scale, const uint32_t *w, const float *scale,
                          const int32_t *sum, const uint32_t *ahead, float *out) {
    sums acc[TILE][4];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < cols; j++) acc[i][j] = (sums){0};
    tile_int8(rows, cols, quads, a, w, PANEL, ahead, acc);
    UNROLL for (int j = 0; j < cols; j++) {
        /* Activations are stored plus 128: take 128 times the column's sum off again. */
        __m512i offset = _mm512_slli_epi32(_mm512_loadu_si512(sum + 16 * j), 7);
        __m512 by = _mm512_loadu_ps(scale + 16 * j);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_cvtepi32_ps(_mm512_sub_epi32((__m512i)acc[i][j], offset));
            x = _mm512_mul_ps(x, _mm512_mul_ps(by, _mm512_set1_ps(a_scale[i])));
            _mm512_storeu_ps(out + i * PANEL + 16 * j, x);
        }
    }
}

static __attribute__((noinline)) void multiply_int8(int rows, int cols, int64_t quads,
                     const uint32_t *const *a, const float *a_scale, const uint32_t *w,
                     const float *scale, const int32_t *sum, const uint32_t *ahead, float *out) {
#define CASE(R, C) case R * 8 + C: \
    run_tile_int8(R, C, quads, a, a_scale, w, scale, sum, ahead, out); break;
    switch (rows * 8 + cols) { FOR_TILE_SHAPES(CASE, 2) FOR_TILE_SHAPES(CASE, 4) }
#undef CASE
}

/* What becomes of a tile [rows][64 or 32] of products. */
enum use {
    STORE,  /* to wide, f32, with bias */
    ADD,    /* onto the residual, with bias */
    SWIGLU, /* a panel is 32 gates and their 32 ups: silu(gate) * up to input, bf16 */
    SCORE,  /* logits: stored if wanted, and each panel's greatest noted */
};

INLINE __m512 silu(__m512 x) {
    __m512 e = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

INLINE void score(const struct batch *b, const struct linear *l, int64_t row, int64_t at,
                  const float *tile) {
    int64_t panels = (l->n + PANEL - 1) / PANEL, left = l->n - at;
    __m512 x[4], top = _mm512_set1_ps(-INFINITY);
    float *logits = b->logits[row];
    int finite = 1;
    UNROLL for (int j = 0; j < 4; j++) {
        int64_t valid = left - 16 * j;
        __mmask16 mask = valid >= 16 ? 0xffff : valid > 0 ? (__mmask16)((1u << valid) - 1) : 0;
        x[j] = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), mask, tile + 16 * j);
        finite &= !_mm512_mask_cmp_ps_mask(mask, _mm512_sub_ps(x[j], x[j]), _mm512_setzero_ps(),
                                           _CMP_NEQ_UQ);
        top = _mm512_max_ps(top, x[j]);
        if (logits) _mm512_mask_storeu_ps(logits + at + 16 * j, mask, x[j]);
    }
    float best = _mm512_reduce_max_ps(top);
    int32_t index = -1;
    if (finite)
        for (int j = 0; j < 4 && index < 0; j++) {
            unsigned equal = _mm512_cmp_ps_mask(x[j], _mm512_set1_ps(best), _CMP_EQ_OQ);
            if (equal) index = (int32_t)at + 16 * j + __builtin_ctz(equal);
        }
    b->best_value[row * panels + at / PANEL] = best;
    b->best_index[row * panels + at / PANEL] = index;
}

INLINE void use_tile(const struct batch *b, const struct linear *l, enum use use, int rows, int width,
                     int64_t row, int64_t at, const float *tile, int64_t out_stride) {
    for (int i = 0; i < rows; i++, tile += PANEL) {
        if (use == SCORE) {
            score(b, l, row + i, at, tile);
        } else if (use == SWIGLU) {
            for (int j = 0; j < 32; j += 16) {
                __m512 y = silu(_mm512_loadu_ps(tile + j));
                store_bf16(b->input + (row + i) * out_stride + at / 2 + j,
                           _mm512_mul_ps(y, _mm512_loadu_ps(tile + 32 + j)));
            }
        } else {
            float *out = (use == ADD ? b->residual : b->wide) + (row + i) * out_stride + at;
            int64_t columns = l->n - at < width ? l->n - at : width;
            for (int64_t j = 0; j < columns; j += 16) {
                __mmask16 mask = columns - j >= 16 ? 0xffff : (__mmask16)((1u << (columns - j)) - 1);
                __m512 x = _mm512_loadu_ps(tile + j);
                if (l->bias) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, l->bias + at + j));
                if (use == ADD) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, out + j));
                _mm512_mask_storeu_ps(out + j, mask, x);
            }
        }
    }
}

/* Called by every thread of the team: share out the product of [rows, k] activations. */
static void matmul(const struct batch *b, const struct linear *l, const bf16 *input, int64_t rows,
                   enum use use, int64_t out_stride) {
    if (rows == 0) return;
    int int8 = l->scale != NULL;
    int64_t steps = int8 ? l->k / 4 : l->k / 2; /* words of a row, and of a weight column */
    int width = rows <= TILE && (use == STORE || use == ADD) ? 32 : PANEL;
    int64_t units = (l->n + width - 1) / width;
    /* Rows of a task: few enough for the cache, and tasks enough for an even share. */
    int64_t most = (384 * 1024) / (steps * 4), chunks = (rows + most - 1) / most;
    int64_t wanted = (8 * b->threads + units - 1) / units, tiles = (rows + TILE - 1) / TILE;
    if (chunks < wanted) chunks = wanted;
    if (chunks > tiles) chunks = tiles;
    int64_t chunk = (tiles + chunks - 1) / chunks * TILE;
    chunks = (rows + chunk - 1) / chunk;
    for (int64_t task; (task = take_task()) < chunks * units;) {
        int64_t first = task / units * chunk, at = task % units * width;
        int64_t end = first + chunk < rows ? first + chunk : rows;
        const uint32_t *w = (const uint32_t *)l->weight + at / PANEL * PANEL * steps + at % PANEL;
        /* While these rows are multiplied, fetch the panel that this thread comes to next, a quarter
         * with each tile. Fetching too far does no harm. */
        const uint32_t *ahead = w + b->threads * width / PANEL * PANEL * steps;
        for (int64_t row = first; row < end; row += TILE, ahead += 16 * steps) {
            int count = end - row < TILE ? (int)(end - row) : TILE;
            const uint32_t *a[TILE];
            float tile[TILE * PANEL] __attribute__((aligned(64)));
            for (int i = 0; i < TILE; i++) {
                int64_t from = (row + (i < count ? i : 0)) * steps;
                a[i] = (int8 ? (const uint32_t *)b->quantized : (const uint32_t *)input) + from;
            }
            if (int8)
                multiply_int8(count, width / 16, steps, a, b->quant_scale + row, w, l->scale + at,
                              l->sum + at, ahead, tile);
            else
                multiply(count, width / 16, 0, steps, a, w, PANEL, ahead, tile, PANEL);
            use_tile(b, l, use, count, width, row, at, tile, out_stride);
        }
    }
    meet();
}

#endif
