/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A product of many rows: a tile of unpacked weights stays in the first-level cache while up to
 * twelve rows at a time, each with an integer and a float sum in registers, run through its units.
 */
#include "engine/cpu/int_avx512.h"
#include "engine/cpu/integer.h"

DS_INLINE void unpack_units(unsigned bits, enum ds_panel_scale scale, struct ds_tile *tile,
                            const struct ds_weight *weight, uint32_t panel, uint32_t first,
                            uint32_t n_units)
{
    const unsigned group_units = scale == DS_SCALE_K || scale == DS_SCALE_6K ? 8 : 1;
    const uint8_t *at = ds_weight_panel(weight, panel);
    const uint8_t *unit = at + weight->scale_bytes + (size_t) first * weight->format->unit_bytes;
    __m512i q[8];

    for (uint32_t u = 0; u < n_units; u++, unit += weight->format->unit_bytes) {
        const uint8_t *group =
            at + (size_t) ((first + u) / group_units) * weight->format->group_bytes;
        struct unit_scales s = unit_scales(scale, group, (first + u) % group_units);

        unit_quants(bits, unit, q);
        for (unsigned g = 0; g < 8; g++)
            _mm512_store_si512(tile->q[u] + 64 * g, q[g]);
        _mm512_store_ps(tile->d[u][0], s.d[0]);
        if (scale == DS_SCALE_6K)
            _mm512_store_ps(tile->d[u][1], s.d[1]);
        if (scale == DS_SCALE_DM || scale == DS_SCALE_K)
            _mm512_store_ps(tile->m[u], s.m);
    }
}

void ds_unpack_avx512(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                      uint32_t first, uint32_t n_units)
{
    switch (weight->format->type) {
    case DS_TYPE_Q4_0:
        unpack_units(4, DS_SCALE_D, tile, weight, panel, first, n_units);
        return;
    case DS_TYPE_Q4_1:
        unpack_units(4, DS_SCALE_DM, tile, weight, panel, first, n_units);
        return;
    case DS_TYPE_Q5_0:
        unpack_units(5, DS_SCALE_D, tile, weight, panel, first, n_units);
        return;
    case DS_TYPE_Q5_1:
        unpack_units(5, DS_SCALE_DM, tile, weight, panel, first, n_units);
        return;
    case DS_TYPE_Q8_0:
        unpack_units(8, DS_SCALE_D, tile, weight, panel, first, n_units);
        return;
    case DS_TYPE_Q4_K:
        unpack_units(4, DS_SCALE_K, tile, weight, panel, first, n_units);
        return;
    case DS_TYPE_Q5_K:
        unpack_units(5, DS_SCALE_K, tile, weight, panel, first, n_units);
        return;
    default:
        unpack_units(6, DS_SCALE_6K, tile, weight, panel, first, n_units);
    }
}

/* How weights of a kind are scaled: what the inner loop is specialised for. */
enum kind { KIND_MIN, KIND_OFFSET, KIND_HALVES };

#define ROWS_MAX 12

struct rows {
    const struct ds_gemm *gemm;
    uint32_t first; /* row of act */
    float *acc;
};

/* isum of groups first .. + n of one unit for all rows; low tells whether any row is wide here. */
DS_INLINE void unit_sums(const struct rows *rows, unsigned n, enum kind kind, const uint8_t *q,
                         uint32_t unit, unsigned first, unsigned n_groups, bool low,
                         __m512i sum[ROWS_MAX])
{
    const struct ds_act *act = rows->gemm->act;
    const size_t at = (size_t) rows->first * act->k + (size_t) unit * DS_UNIT_K;
    const int8_t *high_k = act->high + at, *low_k = act->low + at;
    const size_t correction = 2 * ((size_t) rows->first * act->n_units + unit) + first / 4;

#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        sum[i] = kind == KIND_MIN
                     ? _mm512_setzero_si512()
                     : _mm512_set1_epi32(
                           rows->gemm->offset.high[correction + 2 * (size_t) i * act->n_units]);
#pragma GCC unroll 8
    for (unsigned g = first; g < first + n_groups; g++) {
        __m512i w = _mm512_load_si512(q + 64 * g);

#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], w, four_k(high_k + (size_t) i * act->k + 4 * g));
    }
    if (!low)
        return;
#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++) {
        sum[i] = _mm512_slli_epi32(sum[i], 7);
        if (kind != KIND_MIN)
            sum[i] = _mm512_add_epi32(
                sum[i], _mm512_set1_epi32(
                            rows->gemm->offset.low[correction + 2 * (size_t) i * act->n_units]));
    }
#pragma GCC unroll 8
    for (unsigned g = first; g < first + n_groups; g++) {
        __m512i w = _mm512_load_si512(q + 64 * g);

#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], w, four_k(low_k + (size_t) i * act->k + 4 * g));
    }
}

/* acc += one scale's worth of a unit; the same bits with or without the low terms where they are 0:
 * a sum times 128 and a scale over 128 change exponents only. */
DS_INLINE void unit_add(const struct rows *rows, unsigned n, enum kind kind, uint32_t u,
                        unsigned first, unsigned n_groups, bool low, __m512 acc[ROWS_MAX])
{
    const struct ds_act *act = rows->gemm->act;
    const struct ds_tile *tile = rows->gemm->tile;
    const uint32_t unit = rows->gemm->first_unit + u;
    const float *scale =
        (low ? act->fine : act->scale) + (size_t) rows->first * act->n_units + unit;
    __m512 d = _mm512_load_ps(tile->d[u][first / 4]);
    __m512i sum[ROWS_MAX];

    unit_sums(rows, n, kind, tile->q[u], unit, first, n_groups, low, sum);
#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++) {
        __m512 both = _mm512_mul_ps(d, _mm512_set1_ps(scale[(size_t) i * act->n_units]));

        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i]), both, acc[i]);
    }
}

DS_INLINE void unit_all(const struct rows *rows, unsigned n, enum kind kind, uint32_t u, bool low,
                        __m512 acc[ROWS_MAX])
{
    if (kind == KIND_HALVES) {
        unit_add(rows, n, kind, u, 0, 4, low, acc);
        unit_add(rows, n, kind, u, 4, 4, low, acc);
    } else {
        unit_add(rows, n, kind, u, 0, 8, low, acc);
    }
}

DS_INLINE void multiply_rows(const struct rows *rows, unsigned n, enum kind kind)
{
    const struct ds_gemm *gemm = rows->gemm;
    const struct ds_act *act = gemm->act;
    __m512 acc[ROWS_MAX];

#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        acc[i] = gemm->first_unit == 0 ? _mm512_setzero_ps()
                                       : _mm512_load_ps(rows->acc + i * DS_PANEL_ROWS);
    for (uint32_t u = 0; u < gemm->n_units; u++) {
        const uint32_t unit = gemm->first_unit + u;

        if (ds_act_any_wide(act, unit, rows->first, n))
            unit_all(rows, n, kind, u, true, acc);
        else
            unit_all(rows, n, kind, u, false, acc);
        if (kind == KIND_MIN) {
            const float *sums = act->sum + (size_t) rows->first * act->n_units + unit;
            __m512 m = _mm512_load_ps(gemm->tile->m[u]);

#pragma GCC unroll 12
            for (unsigned i = 0; i < n; i++)
                acc[i] =
                    _mm512_fmadd_ps(m, _mm512_set1_ps(sums[(size_t) i * act->n_units]), acc[i]);
        }
    }
#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        _mm512_store_ps(rows->acc + i * DS_PANEL_ROWS, acc[i]);
}

DS_INLINE void multiply_all(const struct ds_gemm *gemm, enum kind kind)
{
    struct rows rows = { gemm, gemm->first_row, gemm->acc };
    uint32_t left = gemm->n_rows;

#define MULTIPLY_WHILE(n)                                                                          \
    for (; left >= (n); left -= (n), rows.first += (n), rows.acc += (n) *DS_PANEL_ROWS)            \
    multiply_rows(&rows, n, kind)

    MULTIPLY_WHILE(12);
    MULTIPLY_WHILE(8);
    MULTIPLY_WHILE(4);
    MULTIPLY_WHILE(2);
    MULTIPLY_WHILE(1);
#undef MULTIPLY_WHILE
}

void ds_gemm_avx512(const struct ds_gemm *gemm)
{
    switch (gemm->format->scale) {
    case DS_SCALE_D:
        multiply_all(gemm, KIND_OFFSET);
        return;
    case DS_SCALE_6K:
        multiply_all(gemm, KIND_HALVES);
        return;
    default:
        multiply_all(gemm, KIND_MIN);
    }
}
