/* What Python and the kernels share. `native/structs.py` mirrors the structs field by field. */
#ifndef MILLPOND_MODEL_H
#define MILLPOND_MODEL_H
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef uint16_t bf16;

enum { PAGE = 64 };  /* tokens of keys and values in a page */
enum { PANEL = 64 }; /* output columns of a packed weight that lie together */
enum { TILE = 6 };   /* rows that one matrix kernel call takes */

/* A packed matrix of n outputs and k inputs: panels of 64 outputs, each [k/2][64][2] bf16, or
 * [k/4][64][4] int8 with a scale and the column's sum for each output. */
struct linear {
    const void *weight;
    const float *bias;    /* [n] or NULL */
    const float *scale;   /* [n], NULL for bf16 */
    const int32_t *sum;   /* [n], NULL for bf16 */
    int64_t n, k;
};

struct layer {
    struct linear qkv, out, gate_up, down;
    const float *attention_norm, *mlp_norm;
    const float *query_norm, *key_norm; /* [head_dim] or NULL */
    int64_t window;                     /* 0: none */
};

struct model {
    int64_t layers, hidden, heads, kv_heads, head_dim, inner, vocab, rotary_dim;
    float epsilon, scale;
    const bf16 *embedding;   /* [vocab, hidden] */
    const float *final_norm;
    const float *cosine, *sine; /* [positions, rotary_dim / 2] */
    const struct layer *layer;
    struct linear head;
};

/* One forward pass over segments: runs of tokens, each of one row. */
struct batch {
    int64_t threads, tokens, segments, outputs;
    const int32_t *token_ids, *positions, *segment_of; /* [tokens] */
    const int32_t *segment_start;                      /* [segments + 1] */
    const int32_t *const *pages;                       /* [segments] -> page numbers of the row */
    const int32_t *output_tokens;                      /* [outputs]: logits after these */
    bf16 *pool;                                        /* [pages][layer][kv_head][K, V][64 * head_dim] */
    float *const *logits;                              /* [outputs] -> [vocab], or NULL for not wanted */
    int32_t *best;                                     /* [outputs], -1: logits not finite */
    /* Scratch, at least: */
    float *residual;  /* [tokens, hidden] */
    bf16 *input;      /* [tokens, max(hidden, heads * head_dim, inner)] */
    bf16 *queries;    /* [tokens, heads * head_dim] */
    float *wide;      /* [tokens, max(qkv)] */
    uint8_t *quantized; /* like input */
    float *quant_scale; /* [tokens] */
    float *best_value;  /* [outputs, ceil(vocab / 64)] */
    int32_t *best_index;
};

/* ---- small vector functions */

INLINE __m512 load_bf16(const bf16 *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void store_bf16(bf16 *p, __m512 x) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 2^x to about 1e-7; NaN stays NaN. */
INLINE __m512 exp2_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.5403530e-4f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.3333558e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

#endif
