/* SPDX-License-Identifier: Apache-2.0 */
/* int_avx512.h - a unit of a panel (panel.h) in AVX-512 registers: sixteen rows to a register. */
#pragma once

#include <immintrin.h>

#include "engine/cpu/kernels.h"

#define DS_INLINE static inline __attribute__((always_inline))

/* Weights of one unit: byte 4 r + i of q[g] is k = 4 g + i of row r. */
DS_INLINE void unit_quants(unsigned bits, const uint8_t *unit, __m512i q[8])
{
    const __m512i nibble = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    const __m512i top = _mm512_set1_epi8(48);

    if (bits == 8) {
        for (unsigned g = 0; g < 8; g++)
            q[g] = _mm512_load_si512(unit + 64 * g);
        return;
    }
    for (unsigned j = 0; j < 4; j++) {
        __m512i both = _mm512_load_si512(unit + 64 * j);

        q[2 * j] = _mm512_and_si512(both, nibble);
        q[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
    if (bits == 5) {
        __m512i more = _mm512_load_si512(unit + 256);

        for (unsigned g = 0; g < 8; g++) {
            __m512i bit = g < 4 ? _mm512_slli_epi16(more, 4 - g) : _mm512_srli_epi16(more, g - 4);

            q[g] = _mm512_ternarylogic_epi32(q[g], bit, fifth, 0xf8); /* q | (bit & fifth) */
        }
    }
    if (bits == 6)
        for (unsigned g = 0; g < 8; g++) {
            __m512i two = _mm512_load_si512(unit + 256 + 64 * (g / 4));

            if (g % 4 < 2)
                two = _mm512_slli_epi16(two, 4 - 2 * (g % 4));
            else
                two = _mm512_srli_epi16(two, 2 * (g % 4) - 4);
            q[g] = _mm512_ternarylogic_epi32(q[g], two, top, 0xf8);
        }
}

DS_INLINE __m512 f16_lanes(const uint8_t *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) at));
}

DS_INLINE __m512 u8_lanes(const uint8_t *at)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) at)));
}

DS_INLINE __m512 i8_lanes(const uint8_t *at)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) at)));
}

/* Scales of one unit: d[1] for DS_SCALE_6K only, m for DS_SCALE_DM and DS_SCALE_K only. */
struct unit_scales {
    __m512 d[2], m;
};

DS_INLINE struct unit_scales unit_scales(enum ds_panel_scale scale, const uint8_t *group,
                                         unsigned unit)
{
    struct unit_scales s = { { f16_lanes(group), _mm512_setzero_ps() }, _mm512_setzero_ps() };
    __m512 d = s.d[0];

    if (scale == DS_SCALE_DM) {
        s.m = f16_lanes(group + 32);
    } else if (scale == DS_SCALE_K) {
        const uint8_t *own = group + 64 + 32 * (size_t) unit;

        s.d[0] = _mm512_mul_ps(d, u8_lanes(own));
        s.m = _mm512_mul_ps(f16_lanes(group + 32), u8_lanes(own + 16));
        s.m = _mm512_sub_ps(_mm512_set1_ps(-0.0f), s.m);
    } else if (scale == DS_SCALE_6K) {
        const uint8_t *own = group + 32 + 32 * (size_t) unit;

        s.d[0] = _mm512_mul_ps(d, i8_lanes(own));
        s.d[1] = _mm512_mul_ps(d, i8_lanes(own + 16));
    }
    return s;
}

/* Four k of one row of activations, for every lane. */
DS_INLINE __m512i four_k(const int8_t *at)
{
    int32_t word;

    __builtin_memcpy(&word, at, sizeof word);
    return _mm512_set1_epi32(word);
}
