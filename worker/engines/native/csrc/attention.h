/* Attention over pages. A page of one layer and head holds 64 keys as [head_dim/T][64][T] and their
 * values as [64/T][head_dim][T], for T = TOGETHER: the layouts that the matrix kernel reads; each row reads its own
 * pages once. Prefill and decode go the same way, so a token's result is the same in both. */
#ifndef MILLPOND_ATTENTION_H
#define MILLPOND_ATTENTION_H
#include "matmul.h"

enum { MAX_HEAD = 256 };

INLINE stored *page_of(const struct model *m, const struct batch *b, int32_t page, int64_t layer,
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

/* Rotate a token's queries and keys, and put its keys and values into its page. */
static void place_token(const struct model *m, const struct batch *b, int64_t layer, int64_t token) {
    const struct layer *l = m->layer + layer;
    int64_t dim = m->head_dim, half = m->rotary_dim / 2, position = b->positions[token];
    const float *cosine = m->cosine + position * half, *sine = m->sine + position * half;
    float *x = b->wide + token * l->qkv.n;
    for (int64_t h = 0; h < m->heads; h++, x += dim) {
        if (l->query_norm) norm_head(x, dim, l->query_norm, m->epsilon);
        rotate(x, half, cosine, sine);
        active *query = b->queries + (token * m->heads + h) * dim;
        for (int64_t i = 0; i < dim; i += LANES) f_store_active(query + i, f_load(x + i));
    }
    int32_t page = b->pages[b->segment_of[token]][position / PAGE];
    int64_t slot = position % PAGE;
    float *value = x + m->kv_heads * dim;
    for (int64_t h = 0; h < m->kv_heads; h++, x += dim, value += dim) {
        if (l->key_norm) norm_head(x, dim, l->key_norm, m->epsilon);
        rotate(x, half, cosine, sine);
        stored k[MAX_HEAD], v[MAX_HEAD];
        for (int64_t i = 0; i < dim; i += LANES) {
            f_store_stored(k + i, f_load(x + i));
            f_store_stored(v + i, f_load(value + i));
        }
        stored *keys = page_of(m, b, page, layer, h), *values = keys + PAGE * dim;
        values += slot / TOGETHER * dim * TOGETHER + slot % TOGETHER;
        for (int64_t i = 0; i < dim; i += TOGETHER)
            memcpy(keys + i * PAGE + slot * TOGETHER, k + i, sizeof(stored) * TOGETHER);
        for (int64_t i = 0; i < dim; i++) values[i * TOGETHER] = v[i];
    }
}

/* Turn a row's scores of one page into weights; returns what the older sums are multiplied by. */
INLINE float weigh(const float *scores, int64_t from, int64_t to, float scale, float *top,
                   float *total, active *weights) {
    static const float place[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    floats x[4], none = f_set1(-INFINITY), greatest = none;
    for (int j = 0; j < 4; j++) {
        floats at = f_add(f_load(place), f_set1((float)(LANES * j)));
        x[j] = f_mul(f_load(scores + LANES * j), f_set1(scale));
        x[j] = f_choose(f_ge(at, f_set1((float)from)), x[j], none);
        x[j] = f_choose(f_gt(f_set1((float)to), at), x[j], none);
        greatest = f_max(greatest, x[j]);
    }
    float new_top = f_greatest(greatest), shrink = 1.0f;
    if (!(new_top > *top)) new_top = *top;
    else if (*total > 0) shrink = f_first(f_exp2(f_set1(*top - new_top)));
    *top = new_top;
    floats sum = f_set1(0.0f);
    for (int j = 0; j < 4; j++) {
        floats p = f_exp2(f_sub(x[j], f_set1(new_top)));
        p = f_choose(f_eq(x[j], none), f_set1(0.0f), p);
        sum = f_add(sum, p);
        f_store_active(weights + LANES * j, p);
    }
    *total = *total * shrink + f_sum(sum);
    return shrink;
}

/* The query rows first .. first + count - 1 of a segment and key head; row = token * group + head. */
struct block {
    int64_t segment, head, first, count;
};

/* The page that a block reads first. */
INLINE int64_t oldest_page(const struct model *m, const struct batch *b, int64_t layer,
                           struct block block) {
    int64_t group = m->heads / m->kv_heads, window = m->layer[layer].window;
    int64_t position = b->positions[b->segment_start[block.segment] + block.first / group];
    return window && position >= window ? (position - window + 1) / PAGE : 0;
}

/* Meanwhile fetch the first page of the block that follows. */
static void attend_block(const struct model *m, const struct batch *b, int64_t layer, struct block block,
                         struct block follows) {
    int64_t dim = m->head_dim, group = m->heads / m->kv_heads, window = m->layer[layer].window;
    int64_t segment = block.segment, head = block.head, first = block.first, count = block.count;
    int64_t start = b->segment_start[segment];
    float out[BLOCK * MAX_HEAD] __attribute__((aligned(64)));
    float scores[BLOCK * PAGE] __attribute__((aligned(64)));
    active weights[BLOCK * PAGE] __attribute__((aligned(64)));
    active queries[BLOCK * MAX_HEAD] __attribute__((aligned(64)));
    float top[BLOCK], total[BLOCK];
    int64_t position[BLOCK];
    for (int64_t r = 0; r < count; r++) {
        int64_t token = start + (first + r) / group;
        position[r] = b->positions[token];
        memcpy(queries + r * dim,
               b->queries + (token * m->heads + head * group + (first + r) % group) * dim,
               sizeof(active) * (size_t)dim);
        top[r] = -INFINITY;
        total[r] = 0;
    }
    memset(out, 0, sizeof(float) * (size_t)(count * dim));
    for (int64_t page = oldest_page(m, b, layer, block); page <= position[count - 1] / PAGE; page++) {
        const stored *keys = page_of(m, b, b->pages[segment][page], layer, head);
        const stored *values = keys + PAGE * dim;
        struct block owner = page < position[count - 1] / PAGE ? block : follows;
        int64_t after = page < position[count - 1] / PAGE ? page + 1 : oldest_page(m, b, layer, follows);
        const stored *next = page_of(m, b, b->pages[owner.segment][after], layer, owner.head);
        int64_t held = position[count - 1] - page * PAGE + 1;
        if (held > PAGE) held = PAGE;
        for (int64_t r = 0; r < count; r += TILE) {
            int rows = count - r < TILE ? (int)(count - r) : TILE;
            if (position[r + rows - 1] < page * PAGE) continue;
            multiply_page(rows, (int)(held + 15) / LANES * LANES, 0, dim / TOGETHER, queries + r * dim, dim,
                          (const uint32_t *)keys, PAGE, (const uint32_t *)next, scores + r * PAGE, PAGE);
            for (int64_t i = r; i < r + rows; i++) {
                int64_t to = position[i] - page * PAGE + 1;
                int64_t from = window ? to - window : 0;
                float shrink = weigh(scores + i * PAGE, from, to < held ? to : held, m->scale,
                                     top + i, total + i, weights + i * PAGE);
                if (shrink != 1.0f)
                    for (int64_t d = 0; d < dim; d += LANES) {
                        float *o = out + i * dim + d;
                        f_store(o, f_mul(f_load(o), f_set1(shrink)));
                    }
            }
            for (int64_t d = 0; d < dim; d += 64) {
                int columns = dim - d >= 64 ? 64 : (int)(dim - d);
                multiply_page(rows, columns, 1, (held + TOGETHER - 1) / TOGETHER, weights + r * PAGE, PAGE,
                              (const uint32_t *)values + d, dim,
                              (const uint32_t *)(next + PAGE * (dim + d)), out + r * dim + d, dim);
            }
        }
    }
    for (int64_t r = 0; r < count; r++) {
        int64_t token = start + (first + r) / group;
        active *to = b->input + (token * m->heads + head * group + (first + r) % group) * dim;
        floats by = f_set1(1.0f / total[r]);
        for (int64_t d = 0; d < dim; d += LANES)
            f_store_active(to + d, f_mul(f_load(out + r * dim + d), by));
    }
}

/* Blocks in one order, as a thread comes through them: the last of a segment first, since they read most. */
struct blocks {
    int64_t segment, before, here; /* the blocks of `segment`, and those before it */
};

INLINE int64_t blocks_of(const struct model *m, const struct batch *b, int64_t segment) {
    int64_t tokens = b->segment_start[segment + 1] - b->segment_start[segment];
    return (tokens * (m->heads / m->kv_heads) + BLOCK - 1) / BLOCK * m->kv_heads;
}

/* A block by its number, none lower than the one before. */
INLINE struct block find_block(const struct model *m, const struct batch *b, struct blocks *at,
                               int64_t number) {
    while (number >= at->before + at->here) {
        at->before += at->here;
        at->here = blocks_of(m, b, ++at->segment);
    }
    int64_t tokens = b->segment_start[at->segment + 1] - b->segment_start[at->segment];
    int64_t rows = tokens * (m->heads / m->kv_heads), head = (number - at->before) % m->kv_heads;
    int64_t first = (at->here - 1 - (number - at->before)) / m->kv_heads * BLOCK;
    return (struct block){at->segment, head, first, rows - first < BLOCK ? rows - first : BLOCK};
}

/* Called by every thread of the team. */
static void attend(const struct model *m, const struct batch *b, int64_t layer) {
    int64_t count = 0;
    for (int64_t segment = 0; segment < b->segments; segment++) count += blocks_of(m, b, segment);
    struct blocks at = {.segment = -1};
    FOR_EACH(number, count) {
        struct block block = find_block(m, b, &at, number);
        struct blocks ahead = at;
        attend_block(m, b, layer, block, find_block(m, b, &ahead, number + 1 < count ? number + 1 : number));
    }
    meet();
}

#endif
