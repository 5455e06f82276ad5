/* AMX's tile instructions in C, as Intel's manual describes them, for processors without them. Included
 * before the kernels' own sources (`-include`), it takes the place of the compiler's intrinsics. What the
 * processor would not do ends the process. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static _Thread_local struct tile_shapes shapes; /* palette 0: there are no tiles */
static _Thread_local uint8_t tiles[8][16][64];

static inline void need(int it) {
    if (!it) abort();
}

static inline void configure(const void *from) {
    memcpy(&shapes, from, sizeof shapes);
    need(shapes.palette == 1 && shapes.start_row == 0);
    for (int t = 0; t < 8; t++) need(shapes.row_bytes[t] <= 64 && shapes.rows[t] <= 16);
    memset(tiles, 0, sizeof tiles);
}

static inline void release(void) {
    memset(&shapes, 0, sizeof shapes);
    memset(tiles, 0, sizeof tiles);
}

static inline void load(int tile, const void *from, int64_t stride) {
    need(shapes.palette == 1 && shapes.rows[tile] > 0);
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int r = 0; r < shapes.rows[tile]; r++)
        memcpy(tiles[tile][r], (const char *)from + r * stride, shapes.row_bytes[tile]);
}

static inline void store(int tile, void *to, int64_t stride) {
    need(shapes.palette == 1 && shapes.rows[tile] > 0);
    for (int r = 0; r < shapes.rows[tile]; r++)
        memcpy((char *)to + r * stride, tiles[tile][r], shapes.row_bytes[tile]);
}

static inline void zero(int tile) {
    need(shapes.palette == 1);
    memset(tiles[tile], 0, sizeof tiles[tile]);
}

/* Rows of the sums, their columns, and words of k. */
static inline void check_product(int sums, int a, int b) {
    need(shapes.palette == 1 && sums != a && sums != b && a != b);
    need(shapes.rows[sums] == shapes.rows[a] && shapes.row_bytes[sums] == shapes.row_bytes[b]);
    need(shapes.row_bytes[a] == 4 * shapes.rows[b]);
}

static inline float flushed(float x) {
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x;
}

static inline float widened(const uint8_t *from) {
    uint32_t bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 24;
    float x;
    memcpy(&x, &bits, 4);
    return flushed(x);
}

/* The first of each pair are summed apart from the second. */
static inline void multiply_bf16(int sums, int a, int b) {
    check_product(sums, a, b);
    for (int r = 0; r < shapes.rows[sums]; r++)
        for (int n = 0; n < shapes.row_bytes[sums]; n += 4) {
            float part[2] = {0, 0}, sum;
            for (int k = 0; k < shapes.rows[b]; k++)
                for (int i = 0; i < 2; i++)
                    part[i] = flushed(fmaf(widened(tiles[a][r] + 4 * k + 2 * i),
                                           widened(tiles[b][k] + n + 2 * i), part[i]));
            memcpy(&sum, tiles[sums][r] + n, 4);
            sum = flushed(flushed(sum) + flushed(part[0] + part[1]));
            memcpy(tiles[sums][r] + n, &sum, 4);
        }
}

/* Unsigned bytes by signed ones. */
static inline void multiply_bytes(int sums, int a, int b) {
    check_product(sums, a, b);
    for (int r = 0; r < shapes.rows[sums]; r++)
        for (int n = 0; n < shapes.row_bytes[sums]; n += 4) {
            uint32_t sum;
            memcpy(&sum, tiles[sums][r] + n, 4);
            for (int k = 0; k < shapes.rows[b]; k++)
                for (int i = 0; i < 4; i++)
                    sum += (uint32_t)(tiles[a][r][4 * k + i] * (int8_t)tiles[b][k][n + i]);
            memcpy(tiles[sums][r] + n, &sum, 4);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig configure
#define _tile_release release
#define _tile_loadd load
#define _tile_stored store
#define _tile_zero zero
#define _tile_dpbf16ps multiply_bf16
#define _tile_dpbusd multiply_bytes
