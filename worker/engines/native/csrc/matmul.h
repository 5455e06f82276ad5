/* Products of activations with packed weights, and what becomes of them. */
#ifndef MILLPOND_MATMUL_H
#define MILLPOND_MATMUL_H
#include "lora.h"
#include "team.h"

/* What becomes of a tile [rows][64 or 32] of products. */
enum use {
    STORE,  /* to wide, f32, with bias */
    ADD,    /* onto the residual, with bias */
    SWIGLU, /* a panel is 32 gates and their 32 ups: silu(gate) * up to input, bf16 */
    SCORE,  /* logits: stored if wanted, and each panel's greatest noted */
};

INLINE floats silu(floats x) {
    floats e = f_exp2(f_mul(x, f_set1(-1.44269504f)));
    return f_div(x, f_add(e, f_set1(1.0f)));
}

INLINE void score(const struct batch *b, const struct linear *l, int64_t row, int64_t at,
                  const float *tile) {
    int64_t panels = (l->n + PANEL - 1) / PANEL, left = l->n - at;
    floats x[4], top = f_set1(-INFINITY);
    float *logits = b->logits[row];
    int finite = 1;
    UNROLL for (int j = 0; j < 4; j++) {
        int64_t valid = left - LANES * j;
        x[j] = f_load_some(tile + LANES * j, valid, 0.0f);
        finite &= bits_of(f_eq(f_sub(x[j], x[j]), f_set1(0.0f))) == 0xffff;
        x[j] = f_load_some(tile + LANES * j, valid, -INFINITY);
        top = f_max(top, x[j]);
        if (logits) f_store_some(logits + at + LANES * j, valid, x[j]);
    }
    float best = f_greatest(top);
    int32_t index = -1;
    if (finite)
        for (int j = 0; j < 4 && index < 0; j++) {
            unsigned equal = bits_of(f_eq(x[j], f_set1(best)));
            if (equal) index = (int32_t)at + LANES * j + __builtin_ctz(equal);
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
            for (int j = 0; j < 32; j += LANES)
                f_store_active(b->input + (row + i) * out_stride + at / 2 + j,
                               f_mul(silu(f_load(tile + j)), f_load(tile + 32 + j)));
        } else {
            float *out = (use == ADD ? b->residual : b->wide) + (row + i) * out_stride + at;
            int64_t columns = l->n - at < width ? l->n - at : width;
            for (int64_t j = 0; j < columns; j += LANES) {
                floats x = f_load(tile + j);
                if (l->bias) x = f_add(x, f_load_some(l->bias + at + j, columns - j, 0.0f));
                if (use == ADD) x = f_add(x, f_load_some(out + j, columns - j, 0.0f));
                f_store_some(out + j, columns - j, x);
            }
        }
    }
}

/* Called by every thread of the team: share out the product of [rows, k] activations. */
static void matmul(const struct batch *b, const struct linear *l, const active *input, int64_t rows,
                   enum use use, int64_t out_stride) {
    if (rows == 0) return;
    int int8 = l->scale != NULL;
    int64_t steps = l->k / (int8 ? 4 : TOGETHER); /* words of a weight column */
    int64_t row_bytes = l->k * (int64_t)(int8 ? sizeof(quant) : sizeof(active));
    int width = rows <= TILE && (use == STORE || use == ADD) ? 32 : PANEL;
    int64_t units = (l->n + width - 1) / width;
    /* Rows of a task: few enough for the cache, and tasks enough for an even share. */
    int64_t most = (384 * 1024) / row_bytes, chunks = (rows + most - 1) / most;
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
            float tile[TILE * PANEL] __attribute__((aligned(64)));
            if (int8) {
                multiply_int8(count, width, steps, b->quantized + row * l->k, l->k, b->quant_scale + row, w, l->scale + at,
                              l->sum + at, ahead, tile);
            } else {
                multiply(count, width, 0, steps, input + row * l->k, l->k, w, PANEL, ahead, tile, PANEL);
            }
            if (adapts(b, l)) expand(b, l, row, count, at, width, tile);
            use_tile(b, l, use, count, width, row, at, tile, out_stride);
        }
    }
    meet();
}

#endif
