/* A Llama-like model's forward pass over segments of tokens, with weights in float32, bfloat16 or
 * int8. */
#include "attention.h"
#include "sampling.h"

INLINE void norm(const struct model *m, const float *x, const float *weight, active *out) {
    floats squares = f_set1(0.0f);
    for (int64_t i = 0; i < m->hidden; i += LANES) {
        floats v = f_load(x + i);
        squares = f_fma(v, v, squares);
    }
    float mean = f_sum(squares) / (float)m->hidden;
    floats by = f_set1(1.0f / sqrtf(mean + m->epsilon));
    for (int64_t i = 0; i < m->hidden; i += LANES)
        f_store_active(out + i, f_mul(f_mul(f_load(x + i), by), f_load(weight + i)));
}

/* A row of activations to bytes around QUANT_BIAS, and what they are multiplied by. */
INLINE void quantize_row(const struct batch *b, const active *x, int64_t row, int64_t size) {
    floats greatest = f_set1(0.0f);
    for (int64_t i = 0; i < size; i += LANES) greatest = f_max(f_abs(f_load_active(x + i)), greatest);
    float top = f_greatest(greatest);
    floats by = f_set1(top > 0 ? 127.0f / top : 0.0f);
    for (int64_t i = 0; i < size; i += LANES)
        store_quants(b->quantized + row * size + i, f_mul(f_load_active(x + i), by).part);
    b->quant_scale[row] = top / 127.0f;
}

/* What a product needs of rows of its input beside themselves. */
INLINE void prepare(const struct batch *b, const struct linear *l, int64_t row, int rows) {
    if (l->scale)
        for (int i = 0; i < rows; i++) quantize_row(b, b->input + (row + i) * l->k, row + i, l->k);
    if (adapts(b, l)) shrink(b, l, b->input, row, rows);
}

/* How many rows are prepared together: adapters multiply several at once. */
INLINE int rows_together(const struct batch *b, const struct linear *l, int64_t left) {
    int most = adapts(b, l) ? TILE : 1;
    return left < most ? (int)left : most;
}

static void prepare_rows(const struct batch *b, const struct linear *l, int64_t rows) {
    if (!l->scale && !adapts(b, l)) return;
    int most = rows_together(b, l, TILE);
    FOR_EACH(some_rows, (rows + most - 1) / most) {
        int64_t row = some_rows * most;
        prepare(b, l, row, rows_together(b, l, rows - row));
    }
    meet();
}

static void norm_rows(const struct model *m, const struct batch *b, const float *weight,
                      const struct linear *next, int64_t rows, const int32_t *picked) {
    int most = rows_together(b, next, TILE);
    FOR_EACH(some_rows, (rows + most - 1) / most) {
        int64_t first = some_rows * most;
        int count = rows_together(b, next, rows - first);
        for (int64_t row = first; row < first + count; row++)
            norm(m, b->residual + (picked ? picked[row] : row) * m->hidden, weight,
                 b->input + row * m->hidden);
        prepare(b, next, first, count);
    }
    meet();
}

static void embed(const struct model *m, const struct batch *b) {
    FOR_EACH(token, b->tokens) {
        const stored *from = m->embedding + b->token_ids[token] * m->hidden;
        float *to = b->residual + token * m->hidden;
        for (int64_t i = 0; i < m->hidden; i += LANES) f_store(to + i, f_load_stored(from + i));
    }
    meet();
}

static void pick_best(const struct batch *b, int64_t panels) {
    FOR_EACH(row, b->outputs) {
        const float *value = b->best_value + row * panels;
        const int32_t *index = b->best_index + row * panels;
        int64_t best = 0;
        for (int64_t i = 0; i < panels && index[best] >= 0; i++)
            if (index[i] < 0 || value[i] > value[best]) best = i;
        b->best[row] = index[best];
    }
}

struct call {
    const struct model *model;
    const struct batch *batch;
};

/* Run by every thread of the team. */
static void forward(void *argument) {
    const struct model *m = ((struct call *)argument)->model;
    const struct batch *b = ((struct call *)argument)->batch;
    /* The norm's output is read while silu's is written, so silu has another buffer. */
    struct batch inner = *b;
    inner.input = b->queries;
    begin_products();
    embed(m, b);
    for (int64_t layer = 0; layer < m->layers; layer++) {
        const struct layer *l = m->layer + layer;
        norm_rows(m, b, l->attention_norm, &l->qkv, b->tokens, NULL);
        matmul(b, &l->qkv, b->input, b->tokens, STORE, l->qkv.n);
        FOR_EACH(token, b->tokens) place_token(m, b, layer, token);
        meet();
        attend(m, b, layer);
        prepare_rows(b, &l->out, b->tokens);
        matmul(b, &l->out, b->input, b->tokens, ADD, m->hidden);
        norm_rows(m, b, l->mlp_norm, &l->gate_up, b->tokens, NULL);
        matmul(&inner, &l->gate_up, b->input, b->tokens, SWIGLU, m->inner);
        prepare_rows(&inner, &l->down, b->tokens);
        matmul(&inner, &l->down, inner.input, b->tokens, ADD, m->hidden);
    }
    norm_rows(m, b, m->final_norm, &m->head, b->outputs, b->output_tokens);
    matmul(b, &m->head, b->input, b->outputs, SCORE, 0);
    end_products();
    pick_best(b, (m->head.n + PANEL - 1) / PANEL);
}

/* Run by every thread of the team. */
static void sample(void *argument) {
    const struct draw_batch *b = argument;
    float *scratch = b->scratch + thread_number * b->vocab;
    FOR_EACH(row, b->rows) b->tokens[row] = draw_token(b->draw + row, b->vocab, scratch);
}

#define EXPORTED __attribute__((visibility("default")))

/* How activations lie in memory. */
EXPORTED int64_t millpond_active_bytes(void) { return sizeof(active); }
EXPORTED int64_t millpond_quant_bytes(void) { return sizeof(quant); }

EXPORTED void millpond_forward(const struct model *model, const struct batch *batch) {
    struct call call = {model, batch};
    run_team(batch->threads, forward, &call);
}

EXPORTED void millpond_sample(struct draw_batch *batch) {
    run_team(batch->threads, sample, batch);
}
