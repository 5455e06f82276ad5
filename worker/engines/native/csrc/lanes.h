/* Sixteen floats on every processor, in as many of its vectors as that takes. The same operations in
 * the same order give the same bits everywhere. */
#ifndef MILLPOND_LANES_H
#define MILLPOND_LANES_H
#include "numbers.h"
#if defined(__AVX512F__)
#include "isa/avx512.h"
#elif defined(__AVX2__)
#include "isa/avx2.h"
#elif defined(__aarch64__)
#include "isa/neon.h"
#else
#error "no kernels for this processor"
#endif

enum { LANES = 16, PARTS = LANES / VEC };

typedef struct {
    vec part[PARTS];
} floats;

#define FOR_PARTS(p) UNROLL for (int p = 0; p < PARTS; p++)
#define LIFT(name, op, arguments, ...)                       \
    INLINE floats name arguments {                           \
        floats r;                                            \
        FOR_PARTS(p) r.part[p] = op(__VA_ARGS__);            \
        return r;                                            \
    }

LIFT(f_set1, vec_set1, (float x), x)
LIFT(f_load, vec_load, (const float *x), x + VEC * p)
LIFT(f_load_bf16, vec_load_bf16, (const bf16 *x), x + VEC * p)
LIFT(f_load_some, vec_load_some, (const float *x, int64_t count, float rest), x + VEC * p,
     count - VEC * p, vec_set1(rest))
LIFT(f_add, vec_add, (floats x, floats y), x.part[p], y.part[p])
LIFT(f_sub, vec_sub, (floats x, floats y), x.part[p], y.part[p])
LIFT(f_mul, vec_mul, (floats x, floats y), x.part[p], y.part[p])
LIFT(f_div, vec_div, (floats x, floats y), x.part[p], y.part[p])
/* The second where one is NaN. */
LIFT(f_max, vec_max, (floats x, floats y), x.part[p], y.part[p])
LIFT(f_min, vec_min, (floats x, floats y), x.part[p], y.part[p])
LIFT(f_fma, vec_fma, (floats x, floats y, floats sum), x.part[p], y.part[p], sum.part[p])
LIFT(f_abs, vec_abs, (floats x), x.part[p])
LIFT(f_round, vec_round, (floats x), x.part[p])
LIFT(f_trunc, vec_trunc, (floats x), x.part[p])
/* x * 2^whole, rounded once. */
LIFT(f_scale, vec_scale, (floats x, floats whole), x.part[p], whole.part[p])

INLINE void f_store(float *to, floats x) {
    FOR_PARTS(p) vec_store(to + VEC * p, x.part[p]);
}

INLINE void f_store_some(float *to, int64_t count, floats x) {
    FOR_PARTS(p) vec_store_some(to + VEC * p, count - VEC * p, x.part[p]);
}

INLINE void f_store_bf16(bf16 *to, floats x) {
    FOR_PARTS(p) vec_store_bf16(to + VEC * p, x.part[p]);
}

/* ---- comparisons */

typedef struct {
    vec_mask part[PARTS];
} mask;

#define LIFT_MASK(name, op)                                          \
    INLINE mask name(floats x, floats y) {                           \
        mask r;                                                      \
        FOR_PARTS(p) r.part[p] = op(x.part[p], y.part[p]);           \
        return r;                                                    \
    }

LIFT_MASK(f_ge, vec_ge)
LIFT_MASK(f_gt, vec_gt)
LIFT_MASK(f_eq, vec_eq)
LIFT(f_choose, vec_choose, (mask m, floats x, floats otherwise), m.part[p], x.part[p],
     otherwise.part[p])

/* A bit for each lane. */
INLINE unsigned bits_of(mask m) {
    unsigned bits = 0;
    FOR_PARTS(p) bits |= vec_bits(m.part[p]) << VEC * p;
    return bits;
}

/* Write the chosen lanes one after another; how many there are. */
INLINE int f_store_chosen(float *to, mask m, floats x) {
    int count = 0;
    FOR_PARTS(p) count += vec_store_chosen(to + count, m.part[p], x.part[p]);
    return count;
}

/* ---- over the lanes, in one order: halves are added to each other */

#define FOLD(op, x) \
    for (int half = PARTS / 2; half; half /= 2) \
        UNROLL for (int p = 0; p < half; p++) (x).part[p] = op((x).part[p], (x).part[p + half])

INLINE float f_sum(floats x) {
    FOLD(vec_add, x);
    return vec_sum(x.part[0]);
}

INLINE float f_greatest(floats x) {
    FOLD(vec_max, x);
    return vec_greatest(x.part[0]);
}

INLINE float f_least(floats x) {
    FOLD(vec_min, x);
    return vec_least(x.part[0]);
}

INLINE totals add_masses(totals sums, floats masses) {
    FOR_PARTS(p) sums = totals_add(sums, masses.part[p]);
    return sums;
}

/* The first lane. */
INLINE float f_first(floats x) {
    float first;
    memcpy(&first, &x, sizeof first);
    return first;
}

/* ---- what is stored, and what is multiplied */

#ifdef MULTIPLIES_BF16
typedef bf16 active;
#define f_load_active f_load_bf16
#define f_store_active f_store_bf16
#else
typedef float active;
#define f_load_active f_load
#define f_store_active f_store
#endif

#ifdef FLOAT32
#define f_load_stored f_load
#define f_store_stored f_store
#else
#define f_load_stored f_load_bf16
#define f_store_stored f_store_bf16
#endif

/* 2^x to about 1e-7; NaN stays NaN. */
INLINE floats f_exp2(floats x) {
    x = f_max(f_set1(-150.0f), x);
    floats whole = f_round(x), f = f_sub(x, whole), y = f_set1(1.5403530e-4f);
    y = f_fma(y, f, f_set1(1.3333558e-3f));
    y = f_fma(y, f, f_set1(9.6181291e-3f));
    y = f_fma(y, f, f_set1(5.5504109e-2f));
    y = f_fma(y, f, f_set1(2.4022651e-1f));
    y = f_fma(y, f, f_set1(6.9314718e-1f));
    y = f_fma(y, f, f_set1(1.0f));
    return f_scale(y, whole);
}

#endif
