/* LoRA adapters: each token's own adapter adds B (scale * A x) to a product. First A x is computed, for
 * the rows that have an adapter; then the product's own sums go on over it, tile by tile. Rows of one
 * adapter that lie together are multiplied together, and each row's sums have one order whatever the
 * company. Rows without an adapter take no part. These products are small, and in vectors on every
 * processor. */
#ifndef MILLPOND_LORA_H
#define MILLPOND_LORA_H
#include "tiles.h"

enum { HALF = PANEL / 2 };

INLINE int adapts(const struct batch *b, const struct linear *l) { return b->adapter_of && l->lora; }

/* How many of these rows, up to as many as go together, have the adapter of the first. */
INLINE int rows_alike(const int32_t *adapter_of, int rows) {
    int alike = 1;
    while (alike < rows && alike < VECTOR_ROWS && adapter_of[alike] == adapter_of[0]) alike++;
    return alike;
}

/* low = scale * A x for one adapter's rows, of which there are at most VECTOR_ROWS. */
static void shrink_rows(const struct batch *b, const struct lora *lora, int64_t k,
                        const active *input, int64_t row, int rows) {
    for (int64_t at = 0; at < lora->columns; at += PANEL) {
        int width = lora->columns - at < PANEL ? (int)(lora->columns - at) : PANEL;
        const uint32_t *w = (const uint32_t *)lora->a + at;
        float tile[VECTOR_ROWS * PANEL] __attribute__((aligned(64)));
        multiply_few(rows, width, 0, k / TOGETHER, input + row * k, k, w, lora->columns, w, tile,
                         PANEL);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < width; j += LANES)
                f_store_active(b->low + (row + i) * b->low_stride + at + j,
                               f_mul(f_load(tile + i * PANEL + j), f_load(lora->scale + at + j)));
    }
}

/* The same for any rows. */
static void shrink(const struct batch *b, const struct linear *l, const active *input, int64_t row,
                   int rows) {
    for (int i = 0, alike; i < rows; i += alike) {
        const int32_t *adapter = b->adapter_of + row + i;
        alike = rows_alike(adapter, rows - i);
        if (*adapter >= 0) shrink_rows(b, l->lora + *adapter, l->k, input, row + i, alike);
    }
}

/* tile[rows][width] += B low for one adapter's rows; the outputs are `at` and those after it. */
static void expand_rows(const struct batch *b, const struct lora *lora, int64_t row, int rows,
                        int64_t at, int width, float *tile) {
    for (int done = 0, columns; done < width; done += columns) {
        const int32_t *first = lora->first + (at + done) / HALF;
        const int32_t *steps = lora->steps + (at + done) / HALF;
        int whole = width - done == PANEL && first[0] == first[1] && steps[0] == steps[1];
        columns = whole ? PANEL : HALF;
        if (!*steps) continue;
        const active *low = b->low + row * b->low_stride + *first;
        int64_t place = at + done;
        const uint32_t *w = (const uint32_t *)lora->b + place % PANEL;
        w += place / PANEL * PANEL * lora->most_steps;
        multiply_few(rows, columns, 1, *steps, low, b->low_stride, w, PANEL, w, tile + done, PANEL);
    }
}

/* The same for any rows. */
static void expand(const struct batch *b, const struct linear *l, int64_t row, int rows, int64_t at,
                   int width, float *tile) {
    for (int i = 0, alike; i < rows; i += alike) {
        const int32_t *adapter = b->adapter_of + row + i;
        alike = rows_alike(adapter, rows - i);
        if (*adapter >= 0 && l->lora[*adapter].columns)
            expand_rows(b, l->lora + *adapter, row + i, alike, at, width, tile + i * PANEL);
    }
}

#endif
