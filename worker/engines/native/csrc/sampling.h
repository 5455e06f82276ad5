/* The next token of each row from its logits. The algorithm is defined in `sampling/sampling.py`,
 * which implements it in torch: both choose the same token from the same logits and seed. Masses are
 * integers, kept as floats, so that their sums do not depend on the order. */
#ifndef MILLPOND_SAMPLING_H
#define MILLPOND_SAMPLING_H
#include "model.h"
#include "team.h"

enum { MASS_BITS = 44 }; /* the likeliest token has 2^44 */
enum { SCAN = 2048 };    /* masses summed at once in the search for the token */

/* 2^f = 1 + f * (EXP2_1 + f * (EXP2_2 + ...)) for f from -0.5 to 0.5, to 2e-7. */
#define EXP2_1 0.6931470036506653f
#define EXP2_2 0.24022242426872253f
#define EXP2_3 0.05550733581185341f
#define EXP2_4 0.009671512991189957f
#define EXP2_5 0.001326472731307149f

/* One row, and how its token is chosen. */
struct draw {
    float *logits;         /* [vocab], overwritten */
    const int64_t *seen;   /* [num_seen] distinct tokens of the row */
    const int64_t *counts; /* [num_seen] how often each was generated */
    const int32_t *biased; /* [num_biased] tokens */
    const float *bias;     /* [num_biased] what is added to their logits */
    const int32_t *banned; /* [num_banned] tokens that must not be chosen */
    const uint16_t *allowed; /* a bit for each token, the lowest for the first; NULL: all */
    int64_t num_seen, num_biased, num_banned;
    int64_t top_k;   /* 0: off */
    double top_p;    /* 1: off */
    double uniform;  /* the row's random number, in [0, 1) */
    float min_p;     /* 0: off */
    float scale;     /* log2(e) / temperature; 0: take the likeliest token */
    float repetition_penalty, presence_penalty, frequency_penalty;
};

struct draw_batch {
    int64_t threads, rows, vocab;
    const struct draw *draw; /* [rows] */
    float *scratch;          /* [threads, vocab] */
    int32_t *tokens;         /* [rows], -1: logits not finite */
};

static void adjust(const struct draw *d, int64_t vocab) {
    for (int64_t i = 0; i < d->num_biased; i++)
        if (d->biased[i] < vocab) d->logits[d->biased[i]] += d->bias[i];
    for (int64_t i = 0; i < d->num_seen; i++) {
        if (d->seen[i] >= vocab) continue;
        float *x = d->logits + d->seen[i];
        double present = d->counts[i] > 0 ? d->presence_penalty : 0.0;
        float less = (float)(present + (double)d->frequency_penalty * (double)d->counts[i]);
        float scaled = *x < 0 ? *x * d->repetition_penalty : *x / d->repetition_penalty;
        *x = scaled - less;
    }
    for (int64_t i = 0; i < d->num_banned; i++)
        if (d->banned[i] < vocab) d->logits[d->banned[i]] = -INFINITY;
    if (!d->allowed) return;
    for (int64_t i = 0; i < vocab; i++)
        if (!(d->allowed[i / 16] >> i % 16 & 1)) d->logits[i] = -INFINITY;
}

/* The greatest of x, NaN if any is NaN. */
static float greatest(const float *x, int64_t size) {
    floats top = f_set1(-INFINITY);
    for (int64_t i = 0; i < size; i += LANES) {
        floats v = f_load_some(x + i, size - i, -INFINITY);
        if (bits_of(f_eq(v, v)) != 0xffff) return NAN;
        top = f_max(top, v);
    }
    return f_greatest(top);
}

static int32_t first_equal(const float *x, int64_t size, float value) {
    for (int64_t i = 0; i < size; i += LANES) {
        unsigned equal = bits_of(f_eq(f_load_some(x + i, size - i, NAN), f_set1(value)));
        if (equal) return (int32_t)i + __builtin_ctz(equal);
    }
    return -1;
}

/* Turn logits into masses, in place, and return their total. No fused multiply-add: every operation is
 * rounded, as in torch. */
static int64_t to_masses(float *x, int64_t size, float top, float scale) {
    totals sums = totals_zero();
    for (int64_t i = 0; i < size; i += LANES) {
        floats v = f_load_some(x + i, size - i, -INFINITY);
        v = f_mul(f_sub(v, f_set1(top)), f_set1(scale));
        if (!bits_of(f_ge(v, f_set1(-1.0f - MASS_BITS)))) {
            f_store_some(x + i, size - i, f_set1(0.0f)); /* all less than one unit */
            continue;
        }
        v = f_max(v, f_set1(-64.0f));
        floats whole = f_round(v), f = f_sub(v, whole), y = f_set1(EXP2_5);
        y = f_add(f_mul(y, f), f_set1(EXP2_4));
        y = f_add(f_mul(y, f), f_set1(EXP2_3));
        y = f_add(f_mul(y, f), f_set1(EXP2_2));
        y = f_add(f_mul(y, f), f_set1(EXP2_1));
        y = f_add(f_mul(y, f), f_set1(1.0f));
        y = f_trunc(f_scale(y, f_add(whole, f_set1(MASS_BITS))));
        f_store_some(x + i, size - i, y);
        sums = add_masses(sums, y);
    }
    return totals_sum(sums);
}

/* Some of a row's masses in any order, with their least and greatest. */
struct candidates {
    float *mass;
    int64_t size;
    float least, most;
};

/* Copy the masses from ``low`` to ``high`` to c->mass, which may be where they are. */
static void keep_between(struct candidates *c, const float *masses, int64_t size, float low,
                         float high) {
    floats least = f_set1(INFINITY), most = f_set1(0.0f);
    int64_t kept = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        floats v = f_load_some(masses + i, size - i, 0.0f);
        mask from = f_ge(v, f_set1(low)), within = f_ge(f_set1(high), f_choose(from, v, f_set1(NAN)));
        if (!bits_of(within)) continue;
        kept += f_store_chosen(c->mass + kept, within, v);
        least = f_min(least, f_choose(within, v, f_set1(INFINITY)));
        most = f_max(most, f_choose(within, v, f_set1(0.0f)));
    }
    c->size = kept;
    c->least = f_least(least);
    c->most = f_greatest(most);
}

/* The number of masses above ``pivot``, or their total. */
static int64_t above(const float *masses, int64_t size, float pivot, int counting) {
    totals sums = totals_zero();
    int64_t count = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        floats v = f_load_some(masses + i, size - i, 0.0f);
        mask more = f_gt(v, f_set1(pivot));
        unsigned bits = bits_of(more);
        if (!bits) continue;
        if (counting) count += __builtin_popcount(bits);
        else sums = add_masses(sums, f_choose(more, v, f_set1(0.0f)));
    }
    return counting ? count : totals_sum(sums);
}

/* The least of the candidates above which there are fewer than ``bound``, or less than it in total.
 * Quickselect: halve the range of the floats' bits until all the remaining candidates are equal. */
static float least_within(struct candidates *c, int64_t bound, int counting) {
    int64_t before = 0; /* number or total of what is above all that remain */
    while (c->least < c->most) {
        int32_t low, high;
        memcpy(&low, &c->least, 4);
        memcpy(&high, &c->most, 4);
        int32_t middle = low + (high - low) / 2;
        float pivot;
        memcpy(&pivot, &middle, 4);
        int64_t more = before + above(c->mass, c->size, pivot, counting);
        if (more < bound) {
            before = more;
            keep_between(c, c->mass, c->size, c->least, pivot);
        } else {
            keep_between(c, c->mass, c->size, nextafterf(pivot, INFINITY), c->most);
        }
    }
    return c->most;
}

/* The least mass that the row's filters keep. ``scratch`` holds [vocab] floats. */
static float cut_of(const struct draw *d, const float *masses, int64_t vocab, int64_t total,
                    float *scratch) {
    float cut = ldexpf(d->min_p, MASS_BITS);
    struct candidates c = {.mass = scratch};
    if (d->top_k) {
        /* Counting is cheap: come down from the top until there are enough to choose among. */
        float low = ldexpf(1.0f, MASS_BITS);
        do low /= 256.0f; while (low > 1.0f && above(masses, vocab, low, 1) < d->top_k);
        keep_between(&c, masses, vocab, low > 1.0f ? low : 1.0f, INFINITY);
        if (c.size >= d->top_k) {
            float kth = least_within(&c, d->top_k, 1);
            total = above(masses, vocab, nextafterf(kth, 0.0f), 0);
            if (kth > cut) cut = kth;
        }
    }
    if (d->top_p < 1.0) {
        int64_t bound = (int64_t)ceil(d->top_p * (double)total);
        /* All tokens below this have less in total than top_p drops, so none of them is kept. */
        float low = 0.999f * (float)((total - bound) / vocab);
        keep_between(&c, masses, vocab, low > cut ? low : cut > 1.0f ? cut : 1.0f, INFINITY);
        float least = least_within(&c, bound, 0);
        if (least > cut) cut = least;
    }
    return cut;
}

/* Of the tokens with at least ``cut``, in vocabulary order, the first at which the running total
 * exceeds the row's target. */
static int32_t pick(const float *masses, int64_t vocab, float cut, double uniform) {
    float least = nextafterf(cut, 0.0f);
    int64_t kept = above(masses, vocab, least, 0);
    int64_t target = (int64_t)(uniform * (double)kept);
    if (target > kept - 1) target = kept - 1;
    for (int64_t i = 0; i < vocab; i += SCAN) {
        int64_t size = vocab - i < SCAN ? vocab - i : SCAN;
        int64_t sum = above(masses + i, size, least, 0);
        if (sum <= target) {
            target -= sum;
            continue;
        }
        for (int64_t j = i;; j++) {
            if (masses[j] >= cut) target -= (int64_t)masses[j];
            if (target < 0) return (int32_t)j;
        }
    }
    return -1;
}

static int32_t draw_token(const struct draw *d, int64_t vocab, float *scratch) {
    adjust(d, vocab);
    float top = greatest(d->logits, vocab);
    if (!isfinite(top)) return -1;
    if (d->scale == 0.0f) return first_equal(d->logits, vocab, top);
    int64_t total = to_masses(d->logits, vocab, top, d->scale);
    return pick(d->logits, vocab, cut_of(d, d->logits, vocab, total, scratch), d->uniform);
}

#endif
