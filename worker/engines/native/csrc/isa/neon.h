/* Vectors of 64-bit ARM: with its products of bfloat16 and of bytes where the compiler may use them. */
#ifndef MILLPOND_NEON_H
#define MILLPOND_NEON_H
#include <arm_neon.h>

enum { VEC = 4 };
typedef float32x4_t vec;
typedef uint32x4_t vec_mask;
typedef int32x4_t ints;
typedef int64x2_t totals;

#define vec_set1 vdupq_n_f32
#define vec_load vld1q_f32
#define vec_store vst1q_f32
#define vec_add vaddq_f32
#define vec_sub vsubq_f32
#define vec_mul vmulq_f32
#define vec_div vdivq_f32
#define vec_fma(x, y, sum) vfmaq_f32(sum, x, y)
/* The second where one is NaN, as on x86. */
#define vec_max(x, y) vbslq_f32(vcgtq_f32(x, y), x, y)
#define vec_min(x, y) vbslq_f32(vcltq_f32(x, y), x, y)
#define vec_abs vabsq_f32
#define vec_choose(mask, x, otherwise) vbslq_f32(mask, x, otherwise)
#define vec_ge vcgeq_f32
#define vec_gt vcgtq_f32
#define vec_eq vceqq_f32
#define vec_round vrndnq_f32
#define vec_trunc vrndq_f32
#define vec_sum(x) \
    (vgetq_lane_f32(x, 0) + vgetq_lane_f32(x, 2) + (vgetq_lane_f32(x, 1) + vgetq_lane_f32(x, 3)))
#define vec_greatest vmaxvq_f32
#define vec_least vminvq_f32

INLINE unsigned vec_bits(vec_mask mask) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, bit));
}

INLINE vec power_of_two(int32x4_t exponent) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23));
}

/* x * 2^whole in two steps, of which only the second rounds: each power of two is a normal number. */
INLINE vec vec_scale(vec x, vec whole) {
    int32x4_t all = vcvtnq_s32_f32(vec_max(vec_min(whole, vdupq_n_f32(254)), vdupq_n_f32(-252)));
    int32x4_t some = vshrq_n_s32(all, 1);
    return vmulq_f32(vmulq_f32(x, power_of_two(some)), power_of_two(vsubq_s32(all, some)));
}

INLINE vec vec_load_some(const float *p, int64_t count, vec rest) {
    float all[4];
    if (count >= 4) return vld1q_f32(p);
    vst1q_f32(all, rest);
    for (int64_t i = 0; i < count; i++) all[i] = p[i];
    return vld1q_f32(all);
}

INLINE void vec_store_some(float *p, int64_t count, vec x) {
    float all[4];
    vst1q_f32(all, x);
    for (int64_t i = 0; i < count && i < 4; i++) p[i] = all[i];
}

INLINE int vec_store_chosen(float *p, vec_mask mask, vec x) {
    float all[4];
    int count = 0;
    vst1q_f32(all, x);
    for (unsigned bits = vec_bits(mask); bits; bits &= bits - 1) p[count++] = all[__builtin_ctz(bits)];
    return count;
}

INLINE vec vec_load_bf16(const bf16 *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

INLINE void vec_store_bf16(bf16 *p, vec x) {
    uint32x4_t bits = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    up = vornq_u32(up, vceqq_f32(x, x)); /* NaN */
    vst1_u16(p, vshrn_n_u32(up, 16));
}

/* ---- sums of masses */

#define totals_zero() vdupq_n_s64(0)

INLINE totals totals_add(totals sums, vec masses) {
    sums = vaddq_s64(sums, vcvtq_s64_f64(vcvt_f64_f32(vget_low_f32(masses))));
    return vaddq_s64(sums, vcvtq_s64_f64(vcvt_high_f64_f32(masses)));
}

#define totals_sum vaddvq_s64

/* ---- products of matrices: each takes some of k for VEC outputs */

/* How many vectors of columns go together, so that the sums and what they take fit the registers. */
enum { MOST_VECS = 8 };
#define most_vecs(rows) ((rows) <= 2 ? 8 : 4)
#define FOR_SHAPES(CASE) FOR_ROWS(CASE, 4) CASE(1, 8) CASE(2, 8)
#define most_vecs_int8 most_vecs
#define FOR_SHAPES_INT8 FOR_SHAPES

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && !defined(FLOAT32)
#define MULTIPLIES_BF16 1
INLINE vec vec_multiply(vec sums, const bf16 *a, const uint32_t *w) {
    uint32_t pair;
    memcpy(&pair, a, 4);
    return vbfdotq_f32(sums, vreinterpretq_bf16_u32(vdupq_n_u32(pair)),
                       vreinterpretq_bf16_u32(vld1q_u32(w)));
}
#endif

/* One of the two bfloat16 in each word. */
INLINE vec vec_half(const uint32_t *words, int half) {
    uint32x4_t w = vld1q_u32(words);
    if (half) return vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff0000u)));
    return vreinterpretq_f32_u32(vshlq_n_u32(w, 16));
}

enum { QUANT_BIAS = 0 };
typedef int8_t quant;
typedef int8x16_t bytes;
#define ints_zero() vdupq_n_s32(0)
#define ints_to_floats vcvtq_f32_s32
#define ints_load vld1q_s32
#define bytes_load(p) vreinterpretq_s8_u32(vld1q_u32(p))

INLINE ints ints_multiply(ints sums, const quant *a, bytes w) {
    uint32_t quad;
    memcpy(&quad, a, 4);
    int8x16_t x = vreinterpretq_s8_u32(vdupq_n_u32(quad));
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sums, x, w);
#else
    int32x4_t first = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
    int32x4_t second = vpaddlq_s16(vmull_high_s8(x, w));
    return vaddq_s32(sums, vpaddq_s32(first, second));
#endif
}

INLINE void store_quants(quant *p, const vec x[4]) {
    int16x8_t first = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x[0])), vqmovn_s32(vcvtnq_s32_f32(x[1])));
    int16x8_t second = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x[2])), vqmovn_s32(vcvtnq_s32_f32(x[3])));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(first), vqmovn_s16(second)));
}

#endif
