/* Attention over pages. A page of one layer and head holds 64 keys as [head_dim/2][64][2] and their
 * values as [32][head_dim][2], the layouts that the matrix kernel reads; each row reads its own
 * pages once. Prefill and decode go the same way, so a token's result is the same in both. */
#ifndef MILLPOND_ATTENTION_H
#define MILLPOND_ATTENTION_H
#include "matmul.h"

enum { BLOCK = 4 * TILE }; /* query rows of a task */
enum { MAX_HEAD = 256 };

INLINE bf16 *page_of(const struct model *m, const struct batch *b, int32_t page, int64_t layer,
                     int64_t head) {
    int64_t each = 2 * PAGE * m->head_dim;
    return b->pool + (((int64_t)page * m->layers + layer) * m->kv_heads + head) * each;
}

INLINE void norm_head(float *x, int64_t size, const float *weight, float epsilon) {
    float squares = 0;
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    float by = 1.0f / sqrtf(squares / (float)size + epsilon);
    for (int64_t i = 0; i < size; i++) x[i] *= by * weight[i];
}

INLINE void rotate(float *x, int64_t half, const float *cosine, const float *sine) {
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

INLINE void to_bf16(bf16 *out, const float *x, int64_t size) {
    for (int64_t i = 0; i < size; i += 16) store_bf16(out + i, _mm512_loadu_ps(x + i));
}

/* Rotate a token's queries and keys, and put its keys and values into its page. */
static void place_token(const struct model *m, const struct batch *b, int64_t layer, int64_t token) {
    const struct layer *l = m->layer + layer;
    int64_t dim = m->head_dim, half = m->rotary_dim / 2, position = b->positions[token];
    const float *cosine = m->cosine + position * half, *sine = m->sine + position * half;
    float *x = b->wide + token * l->qkv.n;
    for (int64_t h = 0; h < m->heads; h++, x += dim) {
        if (l->query_norm) norm_head(x, dim, l->query_norm, m->epsilon);
        rotate(x, half, cosine, sine);
        to_bf16(b->queries + (token * m->heads + h) * dim, x, dim);
    }
    int32_t page = b->pages[b->segment_of[token]][position / PAGE];
    int64_t slot = position % PAGE;
    float *value = x + m->kv_heads * dim;
    for (int64_t h = 0; h < m->kv_heads; h++, x += dim, value += dim) {
        if (l->key_norm) norm_head(x, dim, l->key_norm, m->epsilon);
        rotate(x, half, cosine, sine);
        bf16 k[MAX_HEAD], v[MAX_HEAD];
        to_bf16(k, x, dim);
        to_bf16(v, value, dim);
        bf16 *keys = page_of(m, b, page, layer, h), *values = keys + PAGE * dim;
        for (int64_t i = 0; i < dim; i += 2) memcpy(keys + i * PAGE + slot * 2, k + i, 4);
        for (int64_t i = 0; i < dim; i++) values[slot / 2 * dim * 2 + i * 2 + slot % 2] = v[i];
    }
}

/* Turn a row's scores of one page into bf16 weights; returns what the older sums are multiplied by. */
INLINE float weigh(const float *scores, int64_t from, int64_t to, float scale, float *top,
                   float *total, bf16 *weights) {
    __m512 x[4], greatest = _mm512_set1_ps(-INFINITY);
    __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int j = 0; j < 4; j++) {
        __m512i at = _mm512_add_epi32(place, _mm512_set1_epi32(16 * j));
        __mmask16 seen = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32((int)from)) &
                         _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32((int)to));
        x[j] = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), seen, _mm512_loadu_ps(scores + 16 * j),
                                  _mm512_set1_ps(scale));
        greatest = _mm512_max_ps(greatest, x[j]);
    }
    float new_top = _mm512_reduce_max_ps(greatest), shrink = 1.0f;
    if (!(new_top > *top)) new_top = *top;
    else if (*total > 0) shrink = _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(*top - new_top)));
    *top = new_top;
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < 4; j++) {
        __mmask16 seen = _mm512_cmp_ps_mask(x[j], _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        __m512 p = _mm512_maskz_mov_ps(seen, exp2_ps(_mm512_sub_ps(x[j], _mm512_set1_ps(new_top))));
        sum = _mm512_add_ps(sum, p);
        store_bf16(weights + 16 * j, p);
    }
    *total = *total * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

/* The query rows first .. first + count - 1 of a segment and key head; row = token * group + head. */
static void attend_block(const struct model *m, const struct batch *b, int64_t layer, int64_t segment,
                         int64_t head, int64_t first, int64_t count) {
    int64_t dim = m->head_dim, group = m->heads / m->kv_heads, window = m->layer[layer].window;
    int64_t start = b->segment_start[segment];
    float out[BLOCK * MAX_HEAD] __attribute__((aligned(64)));
    float scores[BLOCK * PAGE] __attribute__((aligned(64)));
    bf16 weights[BLOCK * PAGE] __attribute__((aligned(64)));
    float top[BLOCK], total[BLOCK];
    const uint32_t *query[BLOCK], *weight[BLOCK];
    int64_t position[BLOCK];
    for (int64_t r = 0; r < count; r++) {
        int64_t token = start + (first + r) / group;
        position[r] = b->positions[token];
        query[r] = (const uint32_t *)(b->queries +
                   (token * m->heads + head * group + (first + r) % group) * dim);
        weight[r] = (const uint32_t *)(weights + r * PAGE);
        top[r] = -INFINITY;
        total[r] = 0;
    }
    memset(out, 0, sizeof(float) * (size_t)(count * dim));
    int64_t oldest = window && position[0] >= window ? position[0] - window + 1 : 0;
    for (int64_t page = oldest / PAGE; page <= position[count - 1] / PAGE; page++) {
        const bf16 *keys = page_of(m, b, b->pages[segment][page], layer, head);
        const bf16 *values = keys + PAGE * dim;
        const uint32_t *next = (const uint32_t *)values;
        if (page < position[count - 1] / PAGE)
            next = (const uint32_t *)page_of(m, b, b->pages[segment][page + 1], layer, head);
        int64_t held = position[count - 1] - page * PAGE + 1;
        if (held > PAGE) held = PAGE;
        for (int64_t r = 0; r < count; r += TILE) {
            int rows = count - r < TILE ? (int)(count - r) : TILE;
            if (position[r + rows - 1] < page * PAGE) continue;
            multiply(rows, (int)(held + 15) / 16, 0, dim / 2, query + r, (const uint32_t *)keys, PAGE,
                     (const uint32_t *)values, scores + r * PAGE, PAGE);
            for (int64_t i = r; i < r + rows; i++) {
                int64_t to = position[i] - page * PAGE + 1;
                int64_t from = window ? to - window : 0;
                float shrink = weigh(scores + i * PAGE, from, to < held ? to : held, m->scale,
                                     top + i, total + i, weights + i * PAGE);
                if (shrink != 1.0f)
                    for (int64_t d = 0; d < dim; d += 16) {
                        float *o = out + i * dim + d;
                        _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), _mm512_set1_ps(shrink)));
                    }
            }
            for (int64_t d = 0; d < dim; d += 64) {
                int cols = dim - d >= 64 ? 4 : (int)(dim - d) / 16;
                multiply(rows, cols, 1, (held + 1) / 2, weight + r, (const uint32_t *)values + d, dim,
                         next, out + r * dim + d, dim);
            }
        }
    }
    for (int64_t r = 0; r < count; r++) {
        int64_t token = start + (first + r) / group;
        bf16 *to = b->input + (token * m->heads + head * group + (first + r) % group) * dim;
        __m512 by = _mm512_set1_ps(1.0f / total[r]);
        for (int64_t d = 0; d < dim; d += 16)
            store_bf16(to + d, _mm512_mul_ps(_mm512_loadu_ps(out + r * dim + d), by));
    }
}

/* Called by every thread of the team. The tasks are segments' key heads and blocks of query rows,
 * last blocks first, since they read most. */
static void attend(const struct model *m, const struct batch *b, int64_t layer) {
    int64_t group = m->heads / m->kv_heads, segment = -1, before = 0, tasks = 0, rows = 0, blocks = 0;
    for (;;) {
        int64_t task = take_task();
        while (task >= before + tasks && ++segment < b->segments) {
            before += tasks;
            rows = (b->segment_start[segment + 1] - b->segment_start[segment]) * group;
            blocks = (rows + BLOCK - 1) / BLOCK;
            tasks = blocks * m->kv_heads;
        }
        if (segment >= b->segments) break;
        int64_t first = (blocks - 1 - (task - before) / m->kv_heads) * BLOCK;
        attend_block(m, b, layer, segment, (task - before) % m->kv_heads, first,
                     rows - first < BLOCK ? rows - first : BLOCK);
    }
    meet();
}

#endif
