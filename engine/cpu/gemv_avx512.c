/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A product of one to four rows: bound by the memory the weights come from, so they are unpacked in
 * registers on their way and never stored.
 */
#include "engine/cpu/int_avx512.h"
#include "engine/cpu/integer.h"

#define PREFETCH_BYTES 2048

/* Groups first .. + n_groups of q times a, onto sum; two sums side by side, since one would wait
 * for each product in turn. */
DS_INLINE __m512i dot(__m512i sum, const __m512i q[8], const int8_t *a, unsigned first,
                      unsigned n_groups)
{
    __m512i other = _mm512_setzero_si512();

#pragma GCC unroll 4
    for (unsigned g = first; g < first + n_groups; g += 2) {
        sum = _mm512_dpbusd_epi32(sum, q[g], four_k(a + 4 * g));
        other = _mm512_dpbusd_epi32(other, q[g + 1], four_k(a + 4 * g + 4));
    }
    return _mm512_add_epi32(sum, other);
}

/* isum of groups first .. + n_groups for one row */
DS_INLINE __m512i row_sum(const struct ds_gemv *gemv, size_t cell, bool offset, bool wide,
                          const __m512i q[8], unsigned first, unsigned n_groups)
{
    const struct ds_act *act = gemv->act;
    __m512i sum = _mm512_setzero_si512();

    if (offset)
        sum = _mm512_set1_epi32(gemv->offset.high[2 * cell + first / 4]);
    sum = dot(sum, q, act->high + cell * DS_UNIT_K, first, n_groups);
    if (!wide)
        return sum;
    sum = _mm512_slli_epi32(sum, 7);
    if (offset)
        sum = _mm512_add_epi32(sum, _mm512_set1_epi32(gemv->offset.low[2 * cell + first / 4]));
    return dot(sum, q, act->low + cell * DS_UNIT_K, first, n_groups);
}

DS_INLINE __m512 row_add(const struct ds_gemv *gemv, size_t cell, enum ds_panel_scale scale,
                         bool wide, const __m512i q[8], const struct unit_scales *s, __m512 acc)
{
    const struct ds_act *act = gemv->act;
    const __m512 factor = _mm512_set1_ps(wide ? act->fine[cell] : act->scale[cell]);
    const bool offset = !ds_scale_minimum(scale);
    const unsigned n_groups = ds_scale_halves(scale) ? 4 : 8;

    for (unsigned first = 0; first < 8; first += n_groups) {
        __m512i sum = row_sum(gemv, cell, offset, wide, q, first, n_groups);

        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(s->d[first / 4], factor), acc);
    }
    if (scale == DS_SCALE_2K)
        for (unsigned half = 0; half < 2; half++)
            acc = _mm512_fmadd_ps(s->m[half], _mm512_set1_ps(act->half_sum[2 * cell + half]), acc);
    else if (!offset)
        acc = _mm512_fmadd_ps(s->m[0], _mm512_set1_ps(act->sum[cell]), acc);
    return acc;
}

DS_INLINE void multiply(const struct ds_gemv *gemv, unsigned bits, bool coded,
                        enum ds_panel_scale scale, unsigned n)
{
    const struct ds_weight *weight = gemv->weight;
    const struct ds_act *act = gemv->act;
    const unsigned group_units = ds_scale_units(scale), unit_bytes = 64 * bits;
    const float factor = known_factor(bits, coded, weight);
    const __m512i table = code_table(weight->format, coded);
    const uint8_t *group = ds_weight_panel(weight, gemv->panel);
    const uint8_t *unit = group + weight->scale_bytes;
    size_t cell = ds_act_cell(act, gemv->first_row, 0);
    __m512 acc[DS_GEMV_ROWS];

    for (unsigned i = 0; i < n; i++)
        acc[i] = _mm512_setzero_ps();
    for (uint32_t unit_number = 0; unit_number < act->n_units; unit_number += group_units) {
        for (unsigned u = 0; u < group_units; u++, unit += unit_bytes, cell += act->group_rows) {
            struct unit_scales s = unit_scales(scale, factor, group, u);
            __m512i q[8];

            for (unsigned line = 0; line < unit_bytes; line += 64)
                _mm_prefetch(unit + PREFETCH_BYTES + line, _MM_HINT_T0);
            unit_quants(bits, coded, table, unit, q);
#pragma GCC unroll 4
            for (unsigned i = 0; i < n; i++) {
                if (act->wide[cell + i])
                    acc[i] = row_add(gemv, cell + i, scale, true, q, &s, acc[i]);
                else
                    acc[i] = row_add(gemv, cell + i, scale, false, q, &s, acc[i]);
            }
        }
        group += ds_scale_bytes(scale);
    }
    for (unsigned i = 0; i < n; i++)
        _mm512_store_ps(gemv->acc + i * DS_PANEL_ROWS, acc[i]);
}

DS_INLINE void multiply_any(const struct ds_gemv *gemv, unsigned bits, bool coded,
                            enum ds_panel_scale scale)
{
    switch (gemv->n_rows) {
    case 1:
        multiply(gemv, bits, coded, scale, 1);
        return;
    case 2:
        multiply(gemv, bits, coded, scale, 2);
        return;
    case 3:
        multiply(gemv, bits, coded, scale, 3);
        return;
    default:
        multiply(gemv, bits, coded, scale, 4);
    }
}

void ds_gemv_avx512(const struct ds_gemv *gemv)
{
    switch (ds_panel_kind(gemv->weight->format)) {
#define KIND(bits, coded, scale)                                                                   \
    case DS_PANEL_KIND(bits, coded, scale):                                                        \
        multiply_any(gemv, bits, coded, scale);                                                    \
        return;
        DS_PANEL_KINDS(KIND)
#undef KIND
    }
}
