/* What Python and the kernels share. `native/structs.py` mirrors the structs field by field. */
#ifndef MILLPOND_MODEL_H
#define MILLPOND_MODEL_H
#include "lanes.h"

enum { PAGE = 64 };  /* tokens of keys and values in a page */
enum { PANEL = 64 }; /* output columns of a packed weight that lie together */
enum { VECTOR_ROWS = 6 }; /* rows whose sums fit the vector registers */
#ifdef __AMX_TILE__
enum { TILE = 32, BLOCK = 32 };
#else
enum { TILE = VECTOR_ROWS }; /* rows that one matrix kernel call takes */
enum { BLOCK = 4 * TILE }; /* query rows of a task */
#endif

/* A LoRA adapter beside a packed matrix: a token of the adapter gets B (scale * A x) more. The outputs may
 * come from several layers, each with matrices of its own: the A of all of them lie side by side. */
struct lora {
    const stored *a;     /* [k/T][columns][T], for T = TOGETHER */
    const stored *b;     /* packed, n outputs and most_steps * T inputs */
    const float *scale;  /* [columns] */
    const int32_t *first, *steps; /* of each 32 outputs: which columns of A x they are summed over,
                                   * from `first` on, T at a step */
    int64_t columns, most_steps; /* columns: a multiple of 16; 0 where the adapter adds nothing */
};

/* A packed matrix of n outputs and k inputs: panels of 64 outputs, each [k/2][64][2] bf16, [k][64]
 * float, or [k/4][64][4] int8 with a scale and the column's sum for each output. */
struct linear {
    const void *weight;
    const float *bias;    /* [n] or NULL */
    const float *scale;   /* [n], NULL unless int8 */
    const int32_t *sum;   /* [n], NULL unless int8 */
    const struct lora *lora; /* [adapters], or NULL where none adds anything */
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
    const int32_t *adapter_of;                         /* [tokens], -1: none; NULL: no token has one */
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
    active *low;        /* [tokens, low_stride]: scale * A x of each token's own adapter */
    int64_t low_stride;
    float *best_value;  /* [outputs, ceil(vocab / 64)] */
    int32_t *best_index;
};

#endif
