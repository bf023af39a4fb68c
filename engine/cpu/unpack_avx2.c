/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "engine/cpu/integer.h"

#define always_inline static inline __attribute__((always_inline))

/* What codes stand for, for both lanes of VPSHUFB; anything where there are no codes. */
always_inline __m256i code_table(const struct ds_panel_format *format, bool coded)
{
    __m128i values;

    if (!coded)
        return _mm256_setzero_si256();
    values = _mm_loadu_si128((const __m128i *) format->values);
    values = _mm_add_epi8(values, _mm_set1_epi8((char) format->offset));
    return _mm256_broadcastsi128_si256(values);
}

/* Every byte moved by from - to bits down (or up); neighbours' bits come along. */
always_inline __m256i move_bits(__m256i v, unsigned from, unsigned to)
{
    return from < to ? _mm256_slli_epi16(v, (int) (to - from))
                     : _mm256_srli_epi16(v, (int) (from - to));
}

/* 32 bytes (eight rows) of each group of a unit: at is the unit, or its second half 32 bytes on. */
always_inline void unpack_half(unsigned bits, bool coded, __m256i table, const uint8_t *at,
                               uint8_t *q)
{
    const unsigned low = bits < 4 ? 2 : 4, more = bits - low;
    const __m256i low_mask = _mm256_set1_epi8(low == 2 ? 3 : 15);
    const __m256i more_mask = _mm256_set1_epi8((char) (((1 << more) - 1) << low));

    for (unsigned g = 0; g < 8; g++) {
        __m256i plane = _mm256_load_si256((const __m256i *) (at + 64 * (g * low / 8)));
        __m256i group = _mm256_and_si256(move_bits(plane, g * low % 8, 0), low_mask);

        if (more) {
            plane = _mm256_load_si256((const __m256i *) (at + 64 * low + 64 * (g * more / 8)));
            plane = _mm256_and_si256(move_bits(plane, g * more % 8, low), more_mask);
            group = _mm256_or_si256(group, plane);
        }
        if (coded)
            group = _mm256_shuffle_epi8(table, group);
        _mm256_store_si256((__m256i *) (q + 64 * g), group);
    }
}

always_inline void unpack_quants(unsigned bits, bool coded, __m256i table, const uint8_t *unit,
                                 uint8_t *q)
{
    if (bits == 8) {
        memcpy(q, unit, DS_UNIT_BYTES);
        return;
    }
    unpack_half(bits, coded, table, unit, q);
    unpack_half(bits, coded, table, unit + 32, q + 32);
}

always_inline __m256 f16_lanes(const uint8_t *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) at));
}

always_inline __m256 u8_lanes(const uint8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) at)));
}

always_inline __m256 i8_lanes(const uint8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) at)));
}

/* 2^(e - 128): a normal number from e = 2 on */
always_inline __m256 e8_lanes(const uint8_t *at)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) at));
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);

    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, tiny));
}

always_inline __m256 negative(__m256 v)
{
    return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}

/* Eight rows from r on of one unit's scales, d and m being the tile's */
always_inline void unpack_scales(enum ds_panel_scale scale, float factor, const uint8_t *group,
                                 unsigned unit, unsigned r, float (*d)[DS_PANEL_ROWS],
                                 float (*m)[DS_PANEL_ROWS])
{
    const uint8_t *own = group + ds_scale_own(scale, unit) + r;
    __m256 lanes, minimum;

    if (scale == DS_SCALE_E8) {
        _mm256_store_ps(d[0] + r, e8_lanes(group + r));
        return;
    }
    lanes = _mm256_mul_ps(f16_lanes(group + 2 * r), _mm256_set1_ps(factor));
    if (!ds_scale_minimum(scale)) {
        if (scale == DS_SCALE_6K)
            _mm256_store_ps(d[1] + r, _mm256_mul_ps(lanes, i8_lanes(own + 16)));
        if (scale != DS_SCALE_D)
            lanes = _mm256_mul_ps(lanes, i8_lanes(own));
        _mm256_store_ps(d[0] + r, lanes);
        return;
    }
    minimum = _mm256_mul_ps(f16_lanes(group + 32 + 2 * r), _mm256_set1_ps(factor));
    if (scale == DS_SCALE_DM) {
        _mm256_store_ps(d[0] + r, lanes);
        _mm256_store_ps(m[0] + r, minimum);
    } else if (scale == DS_SCALE_K) {
        _mm256_store_ps(d[0] + r, _mm256_mul_ps(lanes, u8_lanes(own)));
        _mm256_store_ps(m[0] + r, negative(_mm256_mul_ps(minimum, u8_lanes(own + 16))));
    }
    for (unsigned half = 0; half < 2 && scale == DS_SCALE_2K; half++) {
        __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) (own + 16 * half)));
        __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(15)));
        __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(both, 4));

        _mm256_store_ps(d[half] + r, _mm256_mul_ps(lanes, low));
        _mm256_store_ps(m[half] + r, negative(_mm256_mul_ps(minimum, high)));
    }
}

always_inline void unpack_units(unsigned bits, bool coded, enum ds_panel_scale scale,
                                struct ds_tile *tile, const struct ds_weight *weight,
                                const uint8_t *panel, uint32_t first, uint32_t n_units)
{
    const unsigned group_units = ds_scale_units(scale);
    const uint8_t *unit = panel + weight->scale_bytes + (size_t) first * 64 * bits;
    const __m256i table = code_table(weight->format, coded);

    for (uint32_t u = 0; u < n_units; u++, unit += (size_t) 64 * bits) {
        uint32_t number = first + u;
        const uint8_t *group = panel + (size_t) (number / group_units) * ds_scale_bytes(scale);

        unpack_quants(bits, coded, table, unit, tile->q[u]);
        for (unsigned r = 0; r < DS_PANEL_ROWS; r += 8)
            unpack_scales(scale, weight->factor, group, number % group_units, r, tile->d[u],
                          tile->m[u]);
    }
}

void ds_unpack_avx2(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                    uint32_t first, uint32_t n_units)
{
    const uint8_t *at = ds_weight_panel(weight, panel);

    switch (ds_panel_kind(weight->format)) {
#define KIND(bits, coded, scale)                                                                   \
    case DS_PANEL_KIND(bits, coded, scale):                                                        \
        unpack_units(bits, coded, scale, tile, weight, at, first, n_units);                        \
        return;
        DS_PANEL_KINDS(KIND)
#undef KIND
    }
}
