/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx512.h - vec_portable.h's functions with AVX-512 (F, BW, VL, DQ). */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m512 v16;
typedef __m512i v16i;

static inline v16 v16_set1(float a)
{
    return _mm512_set1_ps(a);
}

static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline v16 v16_load_n(const float *p, unsigned n)
{
    return _mm512_maskz_loadu_ps((__mmask16) ((1u << n) - 1), p);
}

static inline void v16_store(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}

static inline void v16_store_n(float *p, v16 a, unsigned n)
{
    _mm512_mask_storeu_ps(p, (__mmask16) ((1u << n) - 1), a);
}

static inline v16 v16_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}

static inline v16 v16_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));

    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline v16 v16_load_f8(const uint8_t *p)
{
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *) p));

    /* The sign is in the upper half of the 16 bits eight times over: all but one go. */
    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(~0x4000)));
}

static inline v16 v16_from_i8(__m128i a)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a));
}

static inline v16 v16_load_i8(const int8_t *p)
{
    return v16_from_i8(_mm_loadu_si128((const __m128i *) p));
}

static inline v16 v16_load_u4(const uint8_t *p, v16 *ret_high)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *) p), low = _mm_set1_epi8(15);
    __m128i eight = _mm_set1_epi8(8), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);

    *ret_high = v16_from_i8(_mm_sub_epi8(high, eight));
    return v16_from_i8(_mm_sub_epi8(_mm_and_si128(bytes, low), eight));
}

static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

static inline v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

static inline v16 v16_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}

static inline v16 v16_first(unsigned n, v16 a, v16 b)
{
    __mmask16 mask = n >= 16 ? (__mmask16) 0xffff : (__mmask16) ((1u << n) - 1);

    return _mm512_mask_blend_ps(mask, b, a);
}

static inline __m256 v16_low(v16 a)
{
    return _mm512_castps512_ps256(a);
}

static inline __m256 v16_high(v16 a)
{
    return _mm512_extractf32x8_ps(a, 1);
}

static inline float v16_sum(v16 a)
{
    __m256 b = _mm256_add_ps(v16_low(a), v16_high(a));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    c = _mm_add_ss(c, _mm_movehdup_ps(c));
    return _mm_cvtss_f32(c);
}

static inline float v16_hmax(v16 a)
{
    __m256 b = _mm256_max_ps(v16_low(a), v16_high(a));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    c = _mm_max_ss(c, _mm_movehdup_ps(c));
    return _mm_cvtss_f32(c);
}

static inline v16 v16_scale_magic(v16 a, v16 t)
{
    __m512i power = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t), 23),
                                     _mm512_set1_epi32(0x3f800000));

    return _mm512_mul_ps(a, _mm512_castsi512_ps(power));
}

static inline v16i v16i_set1(int32_t a)
{
    return _mm512_set1_epi32(a);
}

static inline v16i v16i_magnitude(v16 a)
{
    return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
}

static inline v16i v16i_max(v16i a, v16i b)
{
    return _mm512_max_epi32(a, b);
}

static inline int32_t v16i_hmax(v16i a)
{
    return _mm512_reduce_max_epi32(a);
}

static inline v16i v16i_round(v16 a)
{
    return _mm512_cvtps_epi32(a);
}

static inline v16i v16i_add(v16i a, v16i b)
{
    return _mm512_add_epi32(a, b);
}

static inline v16i v16i_sub(v16i a, v16i b)
{
    return _mm512_sub_epi32(a, b);
}

static inline v16i v16i_shift_right_7(v16i a)
{
    return _mm512_srai_epi32(a, 7);
}

static inline v16i v16i_shift_left_7(v16i a)
{
    return _mm512_slli_epi32(a, 7);
}

static inline int32_t v16i_sum(v16i a)
{
    return _mm512_reduce_add_epi32(a);
}

static inline void v16i_store_i8(int8_t *p, v16i a)
{
    _mm_storeu_si128((__m128i *) p, _mm512_cvtepi32_epi8(a));
}
