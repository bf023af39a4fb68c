/* SPDX-License-Identifier: Apache-2.0 */
/* int_avx512.h - a unit of a panel (panel.h) in AVX-512 registers: sixteen rows to a register. */
#pragma once

#include <immintrin.h>

#include "engine/cpu/kernels.h"

#define DS_INLINE static inline __attribute__((always_inline))

/* What codes stand for, for every lane of VPSHUFB; anything where there are no codes. */
DS_INLINE __m512i code_table(const struct ds_panel_format *format, bool coded)
{
    __m128i values;

    if (!coded)
        return _mm512_setzero_si512();
    values = _mm_loadu_si128((const __m128i *) format->values);
    values = _mm_add_epi8(values, _mm_set1_epi8((char) format->offset));
    return _mm512_broadcast_i32x4(values);
}

/* Bits 0 .. of every byte: v moved by from - to bits down (or up); neighbours' bits come along. */
DS_INLINE __m512i move_bits(__m512i v, unsigned from, unsigned to)
{
    return from < to ? _mm512_slli_epi16(v, to - from) : _mm512_srli_epi16(v, from - to);
}

/* Weights of one unit: byte 4 r + i of q[g] is k = 4 g + i of row r. */
DS_INLINE void unit_quants(unsigned bits, bool coded, __m512i table, const uint8_t *unit,
                           __m512i q[8])
{
    const unsigned low = bits < 4 ? 2 : 4, more = bits - low;
    const __m512i low_mask = _mm512_set1_epi8(low == 2 ? 3 : 15);
    const __m512i more_mask = _mm512_set1_epi8((char) (((1 << more) - 1) << low));

    for (unsigned g = 0; g < 8; g++) {
        __m512i plane;

        if (bits == 8) {
            q[g] = _mm512_load_si512(unit + 64 * g);
            continue;
        }
        plane = _mm512_load_si512(unit + 64 * (g * low / 8));
        q[g] = _mm512_and_si512(move_bits(plane, g * low % 8, 0), low_mask);
        if (more) {
            plane = _mm512_load_si512(unit + 64 * low + 64 * (g * more / 8));
            plane = move_bits(plane, g * more % 8, low);
            q[g] = _mm512_ternarylogic_epi32(q[g], plane, more_mask, 0xf8); /* q | plane & mask */
        }
        if (coded)
            q[g] = _mm512_shuffle_epi8(table, q[g]);
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

/* 2^(e - 128): a normal number from e = 2 on */
DS_INLINE __m512 e8_lanes(const uint8_t *at)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) at));
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    __mmask16 tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));

    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, tiny, small));
}

DS_INLINE __m512 negative(__m512 v)
{
    return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f));
}

/* Scales of one unit: the second of each for types with scales for halves, m for types with minima.
 */
struct unit_scales {
    __m512 d[2], m[2];
};

DS_INLINE struct unit_scales unit_scales(enum ds_panel_scale scale, float factor,
                                         const uint8_t *group, unsigned unit)
{
    const uint8_t *own = group + ds_scale_own(scale, unit);
    struct unit_scales s = { 0 };
    __m512 d, dmin;

    if (scale == DS_SCALE_E8) {
        s.d[0] = e8_lanes(group);
        return s;
    }
    s.d[0] = d = _mm512_mul_ps(f16_lanes(group), _mm512_set1_ps(factor));
    if (scale == DS_SCALE_I8 || scale == DS_SCALE_6K)
        s.d[0] = _mm512_mul_ps(d, i8_lanes(own));
    if (scale == DS_SCALE_6K)
        s.d[1] = _mm512_mul_ps(d, i8_lanes(own + 16));
    if (!ds_scale_minimum(scale))
        return s;
    s.m[0] = dmin = _mm512_mul_ps(f16_lanes(group + 32), _mm512_set1_ps(factor));
    if (scale == DS_SCALE_K) {
        s.d[0] = _mm512_mul_ps(d, u8_lanes(own));
        s.m[0] = negative(_mm512_mul_ps(dmin, u8_lanes(own + 16)));
    }
    for (unsigned half = 0; half < 2 && scale == DS_SCALE_2K; half++) {
        __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) (own + 16 * half)));
        __m512i low = _mm512_and_si512(both, _mm512_set1_epi32(15));

        s.d[half] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(low));
        s.m[half] = negative(_mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4))));
    }
    return s;
}

/* Only the types of superblocks with few bits have a factor. */
DS_INLINE float known_factor(unsigned bits, bool coded, const struct ds_weight *weight)
{
    return bits < 4 || coded ? weight->factor : 1.0f;
}

/* Four k of one row of activations, for every lane. */
DS_INLINE __m512i four_k(const int8_t *at)
{
    int32_t word;

    __builtin_memcpy(&word, at, sizeof word);
    return _mm512_set1_epi32(word);
}

/* Fills a tile. centred: its bytes are q - offset, signed. */
DS_INLINE void unpack_units(unsigned bits, bool coded, enum ds_panel_scale scale, bool centred,
                            struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                            uint32_t first, uint32_t n_units)
{
    const unsigned group_units = ds_scale_units(scale);
    const uint8_t *at = ds_weight_panel(weight, panel);
    const uint8_t *unit = at + weight->scale_bytes + (size_t) first * 64 * bits;
    const float factor = known_factor(bits, coded, weight);
    const __m512i table = code_table(weight->format, coded);
    const __m512i offset = _mm512_set1_epi8((char) weight->format->offset);
    __m512i q[8];

    for (uint32_t u = 0; u < n_units; u++, unit += (size_t) 64 * bits) {
        const uint8_t *group = at + (size_t) ((first + u) / group_units) * ds_scale_bytes(scale);
        struct unit_scales s = unit_scales(scale, factor, group, (first + u) % group_units);

        unit_quants(bits, coded, table, unit, q);
        for (unsigned g = 0; g < 8; g++) {
            if (centred)
                q[g] = _mm512_sub_epi8(q[g], offset);
            _mm512_store_si512(tile->q[u] + 64 * g, q[g]);
        }
        for (unsigned half = 0; half < 1u + ds_scale_halves(scale); half++) {
            _mm512_store_ps(tile->d[u][half], s.d[half]);
            if (half == 0 ? ds_scale_minimum(scale) : scale == DS_SCALE_2K)
                _mm512_store_ps(tile->m[u][half], s.m[half]);
        }
    }
}

DS_INLINE void unpack_kind(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                           uint32_t first, uint32_t n_units, bool centred)
{
    switch (ds_panel_kind(weight->format)) {
#define KIND(bits, coded, scale)                                                                   \
    case DS_PANEL_KIND(bits, coded, scale):                                                        \
        unpack_units(bits, coded, scale, centred, tile, weight, panel, first, n_units);            \
        return;
        DS_PANEL_KINDS(KIND)
#undef KIND
    }
}
