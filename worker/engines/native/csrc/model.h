/* What Python and the kernels share. `native/structs.py` mirrors the structs field by field. */
#ifndef MILLPOND_MODEL_H
#define MILLPOND_MODEL_H
#include "lanes.h"

enum { PAGE = 64 };  /* tokens of keys and values in a page */
enum { PANEL = 64 }; /* output columns of a packed weight that lie together */
#ifdef __AMX_TILE__
enum { TILE = 32, BLOCK = 32 };
#else
enum { TILE = 6 };         /* rows that one matrix kernel call takes */
enum { BLOCK = 4 * TILE }; /* query rows of a task */
#endif

/* A packed matrix of n outputs and k inputs: panels of 64 outputs, each [k/2][64][2] bf16, [k][64]
 * float, or [k/4][64][4] int8 with a scale and the column's sum for each output. */
struct linear {
    const void *weight;
    const float *bias;    /* [n] or NULL */
    const float *scale;   /* [n], NULL unless int8 */
    const int32_t *sum;   /* [n], NULL unless int8 */
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
    const stored *embedding; /* [vocab, hidden] */
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
    stored *pool;                                      /* [pages][layer][kv_head][K, V][64 * head_dim] */
    float *const *logits;                              /* [outputs] -> [vocab], or NULL for not wanted */
    int32_t *best;                                     /* [outputs], -1: logits not finite */
    /* Scratch, at least; what is multiplied with rows to spare up to a multiple of 16: */
    float *residual;  /* [tokens, hidden] */
    active *input;    /* [tokens, max(hidden, heads * head_dim, inner)] */
    active *queries;  /* likewise: the queries, then what the MLP's last product reads */
    float *wide;      /* [tokens, max(qkv)] */
    quant *quantized; /* like input */
    float *quant_scale; /* [tokens] */
    float *best_value;  /* [outputs, ceil(vocab / 64)] */
    int32_t *best_index;
};

#endif
