/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx2.h - vec_portable.h's functions with AVX2, FMA and F16C: two registers of eight. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    __m256 a, b; /* lanes 0..7, 8..15 */
} v16;

typedef struct {
    __m256i a, b;
} v16i;

#define V16_BOTH(op, x, y)                                                                         \
    (v16)                                                                                          \
    {                                                                                              \
        op((x).a, (y).a), op((x).b, (y).b)                                                         \
    }
#define V16I_BOTH(op, x, y)                                                                        \
    (v16i)                                                                                         \
    {                                                                                              \
        op((x).a, (y).a), op((x).b, (y).b)                                                         \
    }

static inline v16 v16_set1(float a)
{
    return (v16){ _mm256_set1_ps(a), _mm256_set1_ps(a) };
}

static inline v16 v16_load(const float *p)
{
    return (v16){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}

static inline v16 v16_load_n(const float *p, unsigned n)
{
    float lanes[16] = { 0 };

    memcpy(lanes, p, n * sizeof *p);
    return v16_load(lanes);
}

static inline void v16_store(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.a);
    _mm256_storeu_ps(p + 8, a.b);
}

static inline void v16_store_n(float *p, v16 a, unsigned n)
{
    float lanes[16];

    v16_store(lanes, a);
    memcpy(p, lanes, n * sizeof *p);
}

static inline v16 v16_load_f16(const uint16_t *p)
{
    return (v16){ _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)),
                  _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (p + 8))) };
}

static inline __m256 v16_half_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));

    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline v16 v16_load_bf16(const uint16_t *p)
{
    return (v16){ v16_half_bf16(p), v16_half_bf16(p + 8) };
}

static inline v16 v16_load_f8(const uint8_t *p)
{
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *) p));

    /* The sign is in the upper half of the 16 bits eight times over: all but one go. */
    wide = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(~0x4000));
    return (v16){ _mm256_cvtph_ps(_mm256_castsi256_si128(wide)),
                  _mm256_cvtph_ps(_mm256_extracti128_si256(wide, 1)) };
}

static inline v16 v16_from_i8(__m128i a)
{
    return (v16){ _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)),
                  _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(a, 8))) };
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
    return V16_BOTH(_mm256_add_ps, a, b);
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return V16_BOTH(_mm256_sub_ps, a, b);
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return V16_BOTH(_mm256_mul_ps, a, b);
}

static inline v16 v16_div(v16 a, v16 b)
{
    return V16_BOTH(_mm256_div_ps, a, b);
}

static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return (v16){ _mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b) };
}

static inline v16 v16_max(v16 a, v16 b)
{
    return V16_BOTH(_mm256_max_ps, a, b);
}

static inline v16 v16_min(v16 a, v16 b)
{
    return V16_BOTH(_mm256_min_ps, a, b);
}

static inline __m256 v16_half_first(unsigned n, __m256 a, __m256 b, int first)
{
    __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int) n), lane);

    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask));
}

static inline v16 v16_first(unsigned n, v16 a, v16 b)
{
    return (v16){ v16_half_first(n, a.a, b.a, 0), v16_half_first(n, a.b, b.b, 8) };
}

static inline float v16_sum(v16 a)
{
    __m256 b = _mm256_add_ps(a.a, a.b);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    c = _mm_add_ss(c, _mm_movehdup_ps(c));
    return _mm_cvtss_f32(c);
}

static inline float v16_hmax(v16 a)
{
    __m256 b = _mm256_max_ps(a.a, a.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    c = _mm_max_ss(c, _mm_movehdup_ps(c));
    return _mm_cvtss_f32(c);
}

static inline __m256 v16_half_power(__m256 t)
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23),
                                                _mm256_set1_epi32(0x3f800000)));
}

static inline v16 v16_scale_magic(v16 a, v16 t)
{
    return (v16){ _mm256_mul_ps(a.a, v16_half_power(t.a)),
                  _mm256_mul_ps(a.b, v16_half_power(t.b)) };
}

static inline v16i v16i_set1(int32_t a)
{
    return (v16i){ _mm256_set1_epi32(a), _mm256_set1_epi32(a) };
}

static inline v16i v16i_magnitude(v16 a)
{
    v16i r = { _mm256_castps_si256(a.a), _mm256_castps_si256(a.b) };

    return V16I_BOTH(_mm256_and_si256, r, v16i_set1(0x7fffffff));
}

static inline v16i v16i_max(v16i a, v16i b)
{
    return V16I_BOTH(_mm256_max_epi32, a, b);
}

static inline int32_t v16i_hmax(v16i a)
{
    __m256i b = _mm256_max_epi32(a.a, a.b);
    __m128i c = _mm_max_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));

    c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0x4e));
    c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1));
    return _mm_cvtsi128_si32(c);
}

static inline v16i v16i_round(v16 a)
{
    return (v16i){ _mm256_cvtps_epi32(a.a), _mm256_cvtps_epi32(a.b) };
}

static inline v16i v16i_add(v16i a, v16i b)
{
    return V16I_BOTH(_mm256_add_epi32, a, b);
}

static inline v16i v16i_sub(v16i a, v16i b)
{
    return V16I_BOTH(_mm256_sub_epi32, a, b);
}

static inline v16i v16i_shift_right_7(v16i a)
{
    return (v16i){ _mm256_srai_epi32(a.a, 7), _mm256_srai_epi32(a.b, 7) };
}

static inline v16i v16i_shift_left_7(v16i a)
{
    return (v16i){ _mm256_slli_epi32(a.a, 7), _mm256_slli_epi32(a.b, 7) };
}

static inline int32_t v16i_sum(v16i a)
{
    __m256i b = _mm256_add_epi32(a.a, a.b);
    __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));

    c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4e));
    c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0xb1));
    return _mm_cvtsi128_si32(c);
}

static inline void v16i_store_i8(int8_t *p, v16i a)
{
    __m256i words = _mm256_packs_epi32(a.a, a.b); /* 0-3 8-11 4-7 12-15 */
    __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    __m128i bytes = _mm_packs_epi16(low, high);

    _mm_storeu_si128((__m128i *) p, _mm_shuffle_epi32(bytes, 0xd8));
}
