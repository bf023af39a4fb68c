/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A product of many rows: a tile of unpacked weights stays in the first-level cache while up to
 * twelve rows at a time, each with an integer and a float sum in registers, run through its units.
 */
#include "engine/cpu/int_avx512.h"
#include "engine/cpu/integer.h"

void ds_unpack_avx512(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                      uint32_t first, uint32_t n_units)
{
    unpack_kind(tile, weight, panel, first, n_units, false);
}

/* How weights of a kind are scaled: what the inner loop is specialised for. */
enum kind { KIND_MIN, KIND_MIN_HALVES, KIND_OFFSET, KIND_OFFSET_HALVES };

DS_INLINE bool has_minimum(enum kind kind)
{
    return kind == KIND_MIN || kind == KIND_MIN_HALVES;
}

#define ROWS_MAX DS_ACT_GROUP

/* Rows of one group, next to each other in every cell plane */
struct rows {
    const struct ds_gemm *gemm;
    uint32_t first; /* row of act */
    float *acc;
};

/* isum of groups first .. + n_groups of one unit for all rows; low tells whether any is wide here.
 */
DS_INLINE void unit_sums(const struct ds_gemm *gemm, unsigned n, enum kind kind, const uint8_t *q,
                         size_t cell, unsigned first, unsigned n_groups, bool low,
                         __m512i sum[ROWS_MAX])
{
    const int8_t *high_k = gemm->act->high + cell * DS_UNIT_K;
    const int8_t *low_k = gemm->act->low + cell * DS_UNIT_K;
    const size_t correction = 2 * cell + first / 4;

#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        sum[i] = has_minimum(kind) ? _mm512_setzero_si512()
                                   : _mm512_set1_epi32(gemm->offset.high[correction + 2 * i]);
#pragma GCC unroll 8
    for (unsigned g = first; g < first + n_groups; g++) {
        __m512i w = _mm512_load_si512(q + 64 * g);

#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], w, four_k(high_k + 32 * i + 4 * g));
    }
    if (!low)
        return;
#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++) {
        sum[i] = _mm512_slli_epi32(sum[i], 7);
        if (!has_minimum(kind))
            sum[i] =
                _mm512_add_epi32(sum[i], _mm512_set1_epi32(gemm->offset.low[correction + 2 * i]));
    }
#pragma GCC unroll 8
    for (unsigned g = first; g < first + n_groups; g++) {
        __m512i w = _mm512_load_si512(q + 64 * g);

#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], w, four_k(low_k + 32 * i + 4 * g));
    }
}

/* acc += one scale's worth of a unit; the same bits with or without the low terms where they are 0:
 * a sum times 128 and a scale over 128 change exponents only. */
DS_INLINE void unit_add(const struct ds_gemm *gemm, unsigned n, enum kind kind, uint32_t u,
                        size_t cell, unsigned first, unsigned n_groups, bool low,
                        __m512 acc[ROWS_MAX])
{
    const struct ds_tile *tile = gemm->tile;
    const float *scale = (low ? gemm->act->fine : gemm->act->scale) + cell;
    __m512 d = _mm512_load_ps(tile->d[u][first / 4]);
    __m512i sum[ROWS_MAX];

    unit_sums(gemm, n, kind, tile->q[u], cell, first, n_groups, low, sum);
#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++) {
        __m512 both = _mm512_mul_ps(d, _mm512_set1_ps(scale[i]));

        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i]), both, acc[i]);
    }
}

DS_INLINE void unit_all(const struct ds_gemm *gemm, unsigned n, enum kind kind, uint32_t u,
                        size_t cell, bool low, __m512 acc[ROWS_MAX])
{
    if (kind == KIND_OFFSET_HALVES || kind == KIND_MIN_HALVES) {
        unit_add(gemm, n, kind, u, cell, 0, 4, low, acc);
        unit_add(gemm, n, kind, u, cell, 4, 4, low, acc);
    } else {
        unit_add(gemm, n, kind, u, cell, 0, 8, low, acc);
    }
}

DS_INLINE void add_minima(const float *minima, const float *sums, size_t stride, unsigned n,
                          __m512 acc[ROWS_MAX])
{
    __m512 m = _mm512_load_ps(minima);

#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        acc[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(sums[stride * i]), acc[i]);
}

DS_INLINE void multiply_rows(const struct rows *rows, unsigned n, enum kind kind)
{
    const struct ds_gemm *gemm = rows->gemm;
    const struct ds_act *act = gemm->act;
    size_t cell = ds_act_cell(act, rows->first, gemm->first_unit);
    __m512 acc[ROWS_MAX];

#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        acc[i] = gemm->first_unit == 0 ? _mm512_setzero_ps()
                                       : _mm512_load_ps(rows->acc + i * DS_PANEL_ROWS);
    for (uint32_t u = 0; u < gemm->n_units; u++, cell += act->group_rows) {
        if (ds_act_any_wide(act, rows->first, gemm->first_unit + u))
            unit_all(gemm, n, kind, u, cell, true, acc);
        else
            unit_all(gemm, n, kind, u, cell, false, acc);
        if (kind == KIND_MIN)
            add_minima(gemm->tile->m[u][0], act->sum + cell, 1, n, acc);
        if (kind == KIND_MIN_HALVES) {
            add_minima(gemm->tile->m[u][0], act->half_sum + 2 * cell, 2, n, acc);
            add_minima(gemm->tile->m[u][1], act->half_sum + 2 * cell + 1, 2, n, acc);
        }
    }
#pragma GCC unroll 12
    for (unsigned i = 0; i < n; i++)
        _mm512_store_ps(rows->acc + i * DS_PANEL_ROWS, acc[i]);
}

/* n rows of one group, with what is compiled: 12, 8, 4, 2, 1 */
DS_INLINE void multiply_group(struct rows rows, unsigned n, enum kind kind)
{
    if (n == 12) {
        multiply_rows(&rows, 12, kind);
        return;
    }
#define MULTIPLY_BIT(bit)                                                                          \
    if (n & (bit)) {                                                                               \
        multiply_rows(&rows, bit, kind);                                                           \
        rows.first += (bit);                                                                       \
        rows.acc += (bit) *DS_PANEL_ROWS;                                                          \
    }
    MULTIPLY_BIT(8)
    MULTIPLY_BIT(4)
    MULTIPLY_BIT(2)
    MULTIPLY_BIT(1)
#undef MULTIPLY_BIT
}

DS_INLINE void multiply_all(const struct ds_gemm *gemm, enum kind kind)
{
    const uint32_t group = gemm->act->group_rows;

    for (uint32_t row = 0; row < gemm->n_rows; row += group) {
        uint32_t left = gemm->n_rows - row;
        struct rows rows = { gemm, gemm->first_row + row,
                             gemm->acc + (size_t) row * DS_PANEL_ROWS };

        multiply_group(rows, left < group ? left : group, kind);
    }
}

void ds_gemm_avx512(const struct ds_gemm *gemm)
{
    const enum ds_panel_scale scale = gemm->format->scale;

    if (scale == DS_SCALE_2K)
        multiply_all(gemm, KIND_MIN_HALVES);
    else if (scale == DS_SCALE_6K)
        multiply_all(gemm, KIND_OFFSET_HALVES);
    else if (ds_scale_minimum(scale))
        multiply_all(gemm, KIND_MIN);
    else
        multiply_all(gemm, KIND_OFFSET);
}
