/* Vectors of AVX2 with fused multiply-add: with products of bytes where the compiler may use them. */
#ifndef MILLPOND_AVX2_H
#define MILLPOND_AVX2_H
#include <immintrin.h>

enum { VEC = 8 };
typedef __m256 vec;
typedef __m256 vec_mask;
/* As gcc's own vector type: in arrays of __m256i it keeps the sums in memory as well. */
typedef int32_t ints __attribute__((vector_size(32)));
typedef __m256i totals;

#define vec_set1 _mm256_set1_ps
#define vec_load _mm256_loadu_ps
#define vec_store _mm256_storeu_ps
#define vec_add _mm256_add_ps
#define vec_sub _mm256_sub_ps
#define vec_mul _mm256_mul_ps
#define vec_div _mm256_div_ps
#define vec_fma _mm256_fmadd_ps
#define vec_max _mm256_max_ps
#define vec_min _mm256_min_ps
#define vec_abs(x) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)
#define vec_choose(mask, x, otherwise) _mm256_blendv_ps(otherwise, x, mask)
#define vec_ge(x, y) _mm256_cmp_ps(x, y, _CMP_GE_OQ)
#define vec_gt(x, y) _mm256_cmp_ps(x, y, _CMP_GT_OQ)
#define vec_eq(x, y) _mm256_cmp_ps(x, y, _CMP_EQ_OQ)
#define vec_bits(mask) ((unsigned)_mm256_movemask_ps(mask))
#define vec_round(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vec_trunc(x) _mm256_round_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)

INLINE vec power_of_two(__m256i exponent) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
}

/* x * 2^whole in two steps, of which only the second rounds: each power of two is a normal number. */
INLINE vec vec_scale(vec x, vec whole) {
    whole = _mm256_max_ps(_mm256_min_ps(whole, _mm256_set1_ps(254)), _mm256_set1_ps(-252));
    __m256i all = _mm256_cvtps_epi32(whole), some = _mm256_srai_epi32(all, 1);
    x = _mm256_mul_ps(x, power_of_two(some));
    return _mm256_mul_ps(x, power_of_two(_mm256_sub_epi32(all, some)));
}

INLINE __m256i first_lanes(int64_t count) {
    int number = count >= 8 ? 8 : count > 0 ? (int)count : 0;
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(number), lane);
}

INLINE vec vec_load_some(const float *p, int64_t count, vec rest) {
    __m256i mask = first_lanes(count);
    return _mm256_blendv_ps(rest, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}

INLINE void vec_store_some(float *p, int64_t count, vec x) {
    _mm256_maskstore_ps(p, first_lanes(count), x);
}

INLINE int vec_store_chosen(float *p, vec_mask mask, vec x) {
    float all[8];
    int count = 0;
    _mm256_storeu_ps(all, x);
    for (unsigned bits = vec_bits(mask); bits; bits &= bits - 1) p[count++] = all[__builtin_ctz(bits)];
    return count;
}

INLINE float vec_sum(vec x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float vec_greatest(vec x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE float vec_least(vec x) {
    return -vec_greatest(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)));
}

INLINE vec vec_load_bf16(const bf16 *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

INLINE void vec_store_bf16(bf16 *p, vec x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    up = _mm256_or_si256(up, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    up = _mm256_srli_epi32(up, 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(up, up), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}

/* ---- sums of masses */

#define totals_zero _mm256_setzero_si256

/* Whole numbers below 2^52, as doubles that have them in their lowest bits. */
INLINE totals four_wholes(__m128 masses) {
    const __m256d shift = _mm256_set1_pd(0x1.0p52);
    __m256d raised = _mm256_add_pd(_mm256_cvtps_pd(masses), shift);
    return _mm256_xor_si256(_mm256_castpd_si256(raised), _mm256_castpd_si256(shift));
}

INLINE totals totals_add(totals sums, vec masses) {
    sums = _mm256_add_epi64(sums, four_wholes(_mm256_castps256_ps128(masses)));
    return _mm256_add_epi64(sums, four_wholes(_mm256_extractf128_ps(masses, 1)));
}

INLINE int64_t totals_sum(totals sums) {
    int64_t each[4];
    _mm256_storeu_si256((__m256i *)each, sums);
    return each[0] + each[1] + each[2] + each[3];
}

/* ---- products of matrices: each takes some of k for VEC outputs */

/* How many vectors of columns go together, so that the sums and what they take fit the registers. */
enum { MOST_VECS = 4 };
#define most_vecs(rows) ((rows) <= 2 ? 4 : 2)
#define FOR_SHAPES(CASE) FOR_ROWS(CASE, 2) CASE(1, 4) CASE(2, 4)

/* One of the two bfloat16 in each word. */
INLINE vec vec_half(const uint32_t *words, int half) {
    __m256i w = _mm256_loadu_si256((const __m256i *)words);
    if (half) return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}

#define ints_zero() ((ints){0})
#define ints_to_floats(x) _mm256_cvtepi32_ps((__m256i)(x))
#define ints_load(p) ((ints)_mm256_loadu_si256((const __m256i *)(p)))

#ifdef __AVXVNNI__
enum { QUANT_BIAS = 128 };
#define most_vecs_int8 most_vecs
#define FOR_SHAPES_INT8 FOR_SHAPES
typedef uint8_t quant;
typedef __m256i bytes;
#define bytes_load(p) _mm256_loadu_si256((const __m256i *)(p))

INLINE ints ints_multiply(ints sums, const quant *a, bytes w) {
    int32_t quad;
    memcpy(&quad, a, 4);
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sums, _mm256_set1_epi32(quad), w);
}
#else
/* Bytes as pairs of words: the first and third of four, and the second and fourth. */
enum { QUANT_BIAS = 0 };
#define most_vecs_int8(rows) ((rows) <= 4 ? 2 : 1)
#define FOR_SHAPES_INT8(CASE) CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 1) CASE(6, 1)
typedef int16_t quant;
typedef struct {
    __m256i even, odd;
} bytes;

INLINE bytes bytes_load(const uint32_t *p) {
    __m256i w = _mm256_loadu_si256((const __m256i *)p);
    return (bytes){_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
}

INLINE ints ints_multiply(ints sums, const quant *a, bytes w) {
    int32_t first, second;
    memcpy(&first, a, 4);
    memcpy(&second, a + 2, 4);
    sums += (ints)_mm256_madd_epi16(_mm256_set1_epi32(first), w.even);
    return sums + (ints)_mm256_madd_epi16(_mm256_set1_epi32(second), w.odd);
}
#endif

INLINE void store_quants(quant *p, const vec x[2]) {
    __m256i bias = _mm256_set1_epi32(QUANT_BIAS);
    __m256i first = _mm256_add_epi32(_mm256_cvtps_epi32(x[0]), bias);
    __m256i second = _mm256_add_epi32(_mm256_cvtps_epi32(x[1]), bias);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
#ifdef __AVXVNNI__
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
#else
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    words = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(order));
    _mm256_storeu_si256((__m256i *)p, words);
#endif
}

#endif
