/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "engine/cpu/integer.h"

#define always_inline static inline __attribute__((always_inline))

/* 32 bytes (eight rows) of each group of a unit: at is the unit, or its second half 32 bytes on. */
always_inline void unpack_half(unsigned bits, const uint8_t *at, uint8_t *q)
{
    const __m256i nibble = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
    const __m256i top = _mm256_set1_epi8(48);
    __m256i groups[8];

    for (unsigned j = 0; j < 4; j++) {
        __m256i both = _mm256_load_si256((const __m256i *) (at + 64 * j));

        groups[2 * j] = _mm256_and_si256(both, nibble);
        groups[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    }
    for (unsigned g = 0; g < 8 && bits == 5; g++) {
        __m256i bit = _mm256_load_si256((const __m256i *) (at + 256));

        bit = g < 4 ? _mm256_slli_epi16(bit, (int) (4 - g)) : _mm256_srli_epi16(bit, (int) (g - 4));
        groups[g] = _mm256_or_si256(groups[g], _mm256_and_si256(bit, fifth));
    }
    for (unsigned g = 0; g < 8 && bits == 6; g++) {
        __m256i two = _mm256_load_si256((const __m256i *) (at + 256 + 64 * (g / 4)));

        two = g % 4 < 2 ? _mm256_slli_epi16(two, (int) (4 - 2 * (g % 4)))
                        : _mm256_srli_epi16(two, (int) (2 * (g % 4) - 4));
        groups[g] = _mm256_or_si256(groups[g], _mm256_and_si256(two, top));
    }
    for (unsigned g = 0; g < 8; g++)
        _mm256_store_si256((__m256i *) (q + 64 * g), groups[g]);
}

always_inline void unpack_quants(unsigned bits, const uint8_t *unit, uint8_t *q)
{
    if (bits == 8) {
        memcpy(q, unit, DS_UNIT_BYTES);
        return;
    }
    unpack_half(bits, unit, q);
    unpack_half(bits, unit + 32, q + 32);
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

always_inline void unpack_scales(enum ds_panel_scale scale, const uint8_t *group, unsigned unit,
                                 float (*d)[DS_PANEL_ROWS], float *m)
{
    for (unsigned r = 0; r < DS_PANEL_ROWS; r += 8) {
        __m256 lanes = f16_lanes(group + 2 * r), minimum;

        if (scale == DS_SCALE_K) {
            const uint8_t *own = group + 64 + 32 * (size_t) unit + r;

            minimum = _mm256_mul_ps(f16_lanes(group + 32 + 2 * r), u8_lanes(own + 16));
            _mm256_store_ps(m + r, _mm256_sub_ps(_mm256_set1_ps(-0.0f), minimum));
            lanes = _mm256_mul_ps(lanes, u8_lanes(own));
        } else if (scale == DS_SCALE_DM) {
            _mm256_store_ps(m + r, f16_lanes(group + 32 + 2 * r));
        } else if (scale == DS_SCALE_6K) {
            const uint8_t *own = group + 32 + 32 * (size_t) unit + r;

            _mm256_store_ps(d[1] + r, _mm256_mul_ps(lanes, i8_lanes(own + 16)));
            lanes = _mm256_mul_ps(lanes, i8_lanes(own));
        }
        _mm256_store_ps(d[0] + r, lanes);
    }
}

always_inline void unpack_units(unsigned bits, enum ds_panel_scale scale, struct ds_tile *tile,
                                const struct ds_weight *weight, const uint8_t *panel,
                                uint32_t first, uint32_t n_units)
{
    const struct ds_panel_format *format = weight->format;
    const unsigned group_units = scale == DS_SCALE_K || scale == DS_SCALE_6K ? 8 : 1;
    const uint8_t *unit = panel + weight->scale_bytes + (size_t) first * format->unit_bytes;

    for (uint32_t u = 0; u < n_units; u++, unit += format->unit_bytes) {
        uint32_t number = first + u;

        unpack_quants(bits, unit, tile->q[u]);
        unpack_scales(scale, panel + (size_t) (number / group_units) * format->group_bytes,
                      number % group_units, tile->d[u], tile->m[u]);
    }
}

void ds_unpack_avx2(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                    uint32_t first, uint32_t n_units)
{
    const uint8_t *at = ds_weight_panel(weight, panel);

    switch (weight->format->type) {
    case DS_TYPE_Q4_0:
        unpack_units(4, DS_SCALE_D, tile, weight, at, first, n_units);
        return;
    case DS_TYPE_Q4_1:
        unpack_units(4, DS_SCALE_DM, tile, weight, at, first, n_units);
        return;
    case DS_TYPE_Q5_0:
        unpack_units(5, DS_SCALE_D, tile, weight, at, first, n_units);
        return;
    case DS_TYPE_Q5_1:
        unpack_units(5, DS_SCALE_DM, tile, weight, at, first, n_units);
        return;
    case DS_TYPE_Q8_0:
        unpack_units(8, DS_SCALE_D, tile, weight, at, first, n_units);
        return;
    case DS_TYPE_Q4_K:
        unpack_units(4, DS_SCALE_K, tile, weight, at, first, n_units);
        return;
    case DS_TYPE_Q5_K:
        unpack_units(5, DS_SCALE_K, tile, weight, at, first, n_units);
        return;
    default:
        unpack_units(6, DS_SCALE_6K, tile, weight, at, first, n_units);
    }
}
