/* Vectors of AVX-512: with its products of bfloat16 and of bytes where the compiler may use them. */
#ifndef MILLPOND_AVX512_H
#define MILLPOND_AVX512_H
#include <immintrin.h>

enum { VEC = 16 };
typedef __m512 vec;
typedef __mmask16 vec_mask;
/* As gcc's own vector type: in arrays of __m512i it keeps the sums in memory as well. */
typedef int32_t ints __attribute__((vector_size(64)));
typedef __m512i totals;

#define vec_set1 _mm512_set1_ps
#define vec_load _mm512_loadu_ps
#define vec_store _mm512_storeu_ps
#define vec_add _mm512_add_ps
#define vec_sub _mm512_sub_ps
#define vec_mul _mm512_mul_ps
#define vec_div _mm512_div_ps
#define vec_fma _mm512_fmadd_ps
#define vec_max _mm512_max_ps
#define vec_min _mm512_min_ps
#define vec_abs _mm512_abs_ps
#define vec_scale _mm512_scalef_ps
#define vec_choose(mask, x, otherwise) _mm512_mask_mov_ps(otherwise, mask, x)
#define vec_ge(x, y) _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ)
#define vec_gt(x, y) _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ)
#define vec_eq(x, y) _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ)
#define vec_bits(mask) ((unsigned)(mask))
#define vec_round(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vec_trunc(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)

INLINE __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

INLINE vec vec_load_some(const float *p, int64_t count, vec rest) {
    return _mm512_mask_loadu_ps(rest, first_lanes(count), p);
}

INLINE void vec_store_some(float *p, int64_t count, vec x) {
    _mm512_mask_storeu_ps(p, first_lanes(count), x);
}

INLINE int vec_store_chosen(float *p, vec_mask mask, vec x) {
    int count = __builtin_popcount(mask);
    _mm512_mask_storeu_ps(p, first_lanes(count), _mm512_maskz_compress_ps(mask, x));
    return count;
}

INLINE float vec_sum(vec x) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#define vec_greatest _mm512_reduce_max_ps
#define vec_least _mm512_reduce_min_ps

INLINE vec vec_load_bf16(const bf16 *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void vec_store_bf16(bf16 *p, vec x) {
#ifdef __AVX512BF16__
    __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(-1));
    __m256i rounded = _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
    _mm256_storeu_si256((__m256i *)p, rounded);
}

/* ---- sums of masses */

#define totals_zero _mm512_setzero_si512

INLINE totals totals_add(totals sums, vec masses) {
    sums = _mm512_add_epi64(sums, _mm512_cvttps_epi64(_mm512_castps512_ps256(masses)));
    return _mm512_add_epi64(sums, _mm512_cvttps_epi64(_mm512_extractf32x8_ps(masses, 1)));
}

#define totals_sum _mm512_reduce_add_epi64

/* ---- products of matrices: each takes some of k for VEC outputs */

/* How many vectors of columns go together, so that the sums and what they take fit the registers. */
enum { MOST_VECS = 4 };
#define most_vecs(rows) 4
#define FOR_SHAPES(CASE) FOR_ROWS(CASE, 1) FOR_ROWS(CASE, 2) FOR_ROWS(CASE, 3) FOR_ROWS(CASE, 4)

#if defined(__AVX512BF16__) && !defined(FLOAT32)
#define MULTIPLIES_BF16 1
INLINE vec vec_multiply(vec sums, const bf16 *a, const uint32_t *w) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_set1_epi32(pair),
                            (__m512bh)_mm512_loadu_si512(w));
}
#endif

/* One of the two bfloat16 in each word. */
INLINE vec vec_half(const uint32_t *words, int half) {
    __m512i w = _mm512_loadu_si512(words);
    if (half) return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}

#define ints_zero() ((ints){0})
#define ints_to_floats(x) _mm512_cvtepi32_ps((__m512i)(x))
#define ints_load(p) ((ints)_mm512_loadu_si512(p))

#ifdef __AVX512VNNI__
enum { QUANT_BIAS = 128 };
#define most_vecs_int8(rows) 4
#define FOR_SHAPES_INT8(CASE) FOR_ROWS(CASE, 2) FOR_ROWS(CASE, 4)
typedef uint8_t quant;
typedef __m512i bytes;
#define bytes_load(p) _mm512_loadu_si512(p)

INLINE ints ints_multiply(ints sums, const quant *a, bytes w) {
    int32_t quad;
    memcpy(&quad, a, 4);
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(quad), w);
}

INLINE void store_quants(quant *p, const vec *x) {
    __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(*x), _mm512_set1_epi32(QUANT_BIAS));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtusepi32_epi8(q));
}
#else
/* Bytes as pairs of words: the first and third of four, and the second and fourth. */
enum { QUANT_BIAS = 0 };
#define most_vecs_int8(rows) 2
#define FOR_SHAPES_INT8(CASE) FOR_ROWS(CASE, 2)
typedef int16_t quant;
typedef struct {
    __m512i even, odd;
} bytes;

INLINE bytes bytes_load(const uint32_t *p) {
    __m512i w = _mm512_loadu_si512(p);
    return (bytes){_mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), _mm512_srai_epi16(w, 8)};
}

INLINE ints ints_multiply(ints sums, const quant *a, bytes w) {
    int32_t first, second;
    memcpy(&first, a, 4);
    memcpy(&second, a + 2, 4);
    sums += (ints)_mm512_madd_epi16(_mm512_set1_epi32(first), w.even);
    return sums + (ints)_mm512_madd_epi16(_mm512_set1_epi32(second), w.odd);
}

INLINE void store_quants(quant *p, const vec *x) {
    __m256i q = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(*x));
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    q = _mm256_shuffle_epi8(q, _mm256_broadcastsi128_si256(order));
    _mm256_storeu_si256((__m256i *)p, q);
}
#endif

#endif
