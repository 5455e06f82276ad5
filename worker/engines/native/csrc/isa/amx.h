/* Products of matrices in AMX's tiles, each of 16 rows of 64 bytes. The packed layouts are what it reads:
 * a tile holds 16 words of k for 16 outputs. Rows and k are filled up to whole tiles, so each output is
 * summed in one order whatever its company. The rows that fill up are whatever lies behind the others, and
 * nobody reads what becomes of them. */
#ifndef MILLPOND_AMX_H
#define MILLPOND_AMX_H

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE_STEPS = 16 };

/* As the processor reads it: eight tiles, all of them whole. */
static const struct {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} whole_tiles = {.palette = 1,
                 .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                 .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

/* A thread has tiles from one to the other: while it has none, there is less to save when it is interrupted. */
INLINE void begin_products(void) { _tile_loadconfig(&whole_tiles); }
INLINE void end_products(void) { _tile_release(); }

/* gcc takes its intrinsics for reading no memory: see to it that what they read has been written. */
#define IN_MEMORY() __asm__ volatile("" ::: "memory")

/* The sums are in tiles 0 to 3: a row of up to four, or, if `tall`, two rows of up to two. */
INLINE void start_sums(int add, int tall, int wide, const char *out, int64_t out_bytes) {
    if (!add) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    const char *lower = tall ? out + TILE_ROWS * out_bytes : out + 2 * TILE_BYTES;
    _tile_loadd(0, out, out_bytes);
    if (wide > 1) _tile_loadd(1, out + TILE_BYTES, out_bytes);
    if (tall || wide > 2) _tile_loadd(2, lower, out_bytes);
    if (tall ? wide > 1 : wide > 3) _tile_loadd(3, lower + TILE_BYTES, out_bytes);
}

INLINE void store_sums(int tall, int wide, char *out, int64_t out_bytes) {
    char *lower = tall ? out + TILE_ROWS * out_bytes : out + 2 * TILE_BYTES;
    _tile_stored(0, out, out_bytes);
    if (wide > 1) _tile_stored(1, out + TILE_BYTES, out_bytes);
    if (tall || wide > 2) _tile_stored(2, lower, out_bytes);
    if (tall ? wide > 1 : wide > 3) _tile_stored(3, lower + TILE_BYTES, out_bytes);
}

struct operands {
    const char *a; /* rows of activations */
    int64_t a_bytes;
    const uint32_t *w; /* words of weights */
    int64_t w_stride;
};

#define ADD_PRODUCT(sums, a, w)                    \
    do {                                           \
        if (bytes) _tile_dpbusd(sums, a, w);       \
        else _tile_dpbf16ps(sums, a, w);           \
    } while (0)

INLINE void add_row(const int bytes, int wide, const struct operands *x) {
    int64_t w_bytes = 4 * x->w_stride;
    _tile_loadd(4, x->a, x->a_bytes);
    _tile_loadd(5, x->w, w_bytes);
    ADD_PRODUCT(0, 4, 5);
    if (wide > 1) {
        _tile_loadd(6, x->w + 16, w_bytes);
        ADD_PRODUCT(1, 4, 6);
    }
    if (wide > 2) {
        _tile_loadd(7, x->w + 32, w_bytes);
        ADD_PRODUCT(2, 4, 7);
    }
    if (wide > 3) {
        _tile_loadd(5, x->w + 48, w_bytes);
        ADD_PRODUCT(3, 4, 5);
    }
}

INLINE void add_square(const int bytes, int wide, const struct operands *x) {
    int64_t w_bytes = 4 * x->w_stride;
    _tile_loadd(4, x->a, x->a_bytes);
    _tile_loadd(5, x->a + TILE_ROWS * x->a_bytes, x->a_bytes);
    _tile_loadd(6, x->w, w_bytes);
    ADD_PRODUCT(0, 4, 6);
    ADD_PRODUCT(2, 5, 6);
    if (wide > 1) {
        _tile_loadd(7, x->w + 16, w_bytes);
        ADD_PRODUCT(1, 4, 7);
        ADD_PRODUCT(3, 5, 7);
    }
}

/* out[rows][columns] = a * w over so many tiles of k. With add, out is where the sum starts. */
INLINE void multiply_tiles(const int bytes, const int lines, int rows, int columns, int add,
                           int64_t depth, struct operands from, const uint32_t *ahead, void *out,
                           int64_t out_bytes) {
    int tall = rows > TILE_ROWS, most = tall ? 2 : 4;
    char *to = out;
    IN_MEMORY();
    for (int left = columns / 16; left > 0; left -= most, from.w += 16 * most, to += most * TILE_BYTES) {
        int wide = left < most ? left : most;
        struct operands at = from;
        start_sums(add, tall, wide, to, out_bytes);
        for (int64_t k = 0; k < depth; k++, at.a += TILE_BYTES, at.w += TILE_STEPS * at.w_stride) {
            for (int i = 0; i < TILE_STEPS && ahead; i++, ahead += lines * LINE) fetch(ahead, lines);
            if (tall) add_square(bytes, wide, &at);
            else add_row(bytes, wide, &at);
        }
        store_sums(tall, wide, to, out_bytes);
        ahead = NULL; /* all of it was fetched with the first columns */
    }
    IN_MEMORY();
}

INLINE void multiply_rows(const int lines, int rows, int columns, int add, int64_t steps,
                          const active *a, int64_t a_stride, const uint32_t *w, int64_t w_stride,
                          const uint32_t *ahead, float *out, int64_t out_stride) {
    struct operands from = {(const char *)a, a_stride * (int64_t)sizeof(active), w, w_stride};
    multiply_tiles(0, lines, rows, columns, add, (steps + TILE_STEPS - 1) / TILE_STEPS, from, ahead,
                   out, 4 * out_stride);
}

static __attribute__((noinline)) void multiply_int8(int rows, int columns, int64_t quads,
                     const quant *a, int64_t a_stride, const float *a_scale, const uint32_t *w,
                     const float *scale, const int32_t *sum, const uint32_t *ahead, float *out) {
    int32_t sums[TILE * PANEL] __attribute__((aligned(64)));
    int64_t depth = quads / TILE_STEPS, rest = quads % TILE_STEPS;
    struct operands from = {(const char *)a, a_stride, w, PANEL};
    multiply_tiles(1, 1, rows, columns, 0, depth, from, ahead, sums, 4 * PANEL);
    if (rest) {
        /* Behind a column's last words lies the next panel, or nothing. */
        char last_a[TILE * TILE_BYTES] __attribute__((aligned(64))) = {0};
        uint32_t last_w[TILE_STEPS * PANEL] __attribute__((aligned(64))) = {0};
        for (int i = 0; i < rows; i++)
            memcpy(last_a + i * TILE_BYTES, a + i * a_stride + depth * TILE_BYTES, 4 * (size_t)rest);
        for (int64_t k = 0; k < rest; k++)
            memcpy(last_w + k * PANEL, w + (depth * TILE_STEPS + k) * PANEL, 4 * (size_t)columns);
        struct operands last = {last_a, TILE_BYTES, last_w, PANEL};
        multiply_tiles(1, 1, rows, columns, 1, 1, last, NULL, sums, 4 * PANEL);
    }
    for (int j = 0; j < columns; j += VEC) {
        struct scaling by = column_scaling(scale + j, sum + j);
        for (int i = 0; i < rows; i++)
            vec_store(out + i * PANEL + j, scale_sums(ints_load(sums + i * PANEL + j), by, a_scale[i]));
    }
}

#endif
