/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VPMADDUBSW multiplies bytes and adds pairs into 16 bits, saturating. Activations are at most 127
 * in magnitude, so sums of pairs stay exact over as many groups of four k as `exact_groups` says:
 *      2 x 127 x 15 x 8 = 30480, 2 x 127 x 31 x 4 = 31496, 2 x 127 x 63 x 2 = 32004,
 *      2 x 127 x 127 = 32258.
 * Eight-bit weights are taken as signed, their sign moved to the activation: 2 x 127 x 128 = 32512.
 */
#include <immintrin.h>

#include "engine/cpu/integer.h"

#define always_inline static inline __attribute__((always_inline))
#define ROWS_MAX      4

/* What the inner loop is specialised for. */
struct kind {
    unsigned q_bits;       /* 4 stands for fewer, too */
    unsigned exact_groups; /* no more than a scale has */
    bool minimum, halves;
};

struct rows {
    const struct ds_gemm *gemm;
    uint32_t first; /* row of act */
    float *acc;
};

always_inline __m256i four_k(const int8_t *at)
{
    int32_t word;

    memcpy(&word, at, sizeof word);
    return _mm256_set1_epi32(word);
}

/* Pairs of products of one group, 16 bits each */
always_inline __m256i pairs(const struct kind *kind, __m256i w, __m256i a)
{
    if (kind->q_bits == 8) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8(-128)); /* q - 128 */
        return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    }
    return _mm256_maddubs_epi16(w, a);
}

/* sum[i] += eight rows of weights at q times n rows of activations at a, groups first .. + n_groups
 */
always_inline void dot(const struct kind *kind, unsigned n, const uint8_t *q, const int8_t *a,
                       unsigned first, unsigned n_groups, __m256i sum[ROWS_MAX])
{
    const __m256i ones = _mm256_set1_epi16(1);

    for (unsigned start = first; start < first + n_groups; start += kind->exact_groups) {
        __m256i part[ROWS_MAX];

        for (unsigned i = 0; i < n; i++)
            part[i] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (unsigned g = start; g < start + kind->exact_groups; g++) {
            __m256i w = _mm256_load_si256((const __m256i *) (q + 64 * g));

#pragma GCC unroll 4
            for (unsigned i = 0; i < n; i++)
                part[i] = _mm256_add_epi16(part[i], pairs(kind, w, four_k(a + 32 * i + 4 * g)));
        }
        for (unsigned i = 0; i < n; i++)
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(part[i], ones));
    }
}

/* Rows lane .. + 8 of the panel, one scale's worth of unit u */
always_inline void unit_add(const struct kind *kind, const struct rows *rows, unsigned n,
                            uint32_t u, unsigned lane, unsigned first, unsigned n_groups,
                            __m256 acc[ROWS_MAX])
{
    const struct ds_gemm *gemm = rows->gemm;
    const struct ds_act *act = gemm->act;
    const size_t cell = ds_act_cell(act, rows->first, gemm->first_unit + u);
    const bool low = ds_act_any_wide(act, rows->first, gemm->first_unit + u);
    const bool offset = !kind->minimum && kind->q_bits != 8;
    const size_t correction = 2 * cell + first / 4;
    const uint8_t *q = gemm->tile->q[u] + 4 * lane;
    const float *scale = (low ? act->fine : act->scale) + cell;
    __m256 d = _mm256_load_ps(gemm->tile->d[u][first / 4] + lane);
    __m256i sum[ROWS_MAX];

    for (unsigned i = 0; i < n; i++)
        sum[i] = _mm256_set1_epi32(offset ? gemm->offset.high[correction + 2 * i] : 0);
    dot(kind, n, q, act->high + cell * DS_UNIT_K, first, n_groups, sum);
    if (low) {
        for (unsigned i = 0; i < n; i++) {
            int32_t more = offset ? gemm->offset.low[correction + 2 * i] : 0;

            sum[i] = _mm256_add_epi32(_mm256_slli_epi32(sum[i], 7), _mm256_set1_epi32(more));
        }
        dot(kind, n, q, act->low + cell * DS_UNIT_K, first, n_groups, sum);
    }
    for (unsigned i = 0; i < n; i++) {
        __m256 both = _mm256_mul_ps(d, _mm256_set1_ps(scale[i]));

        acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), both, acc[i]);
    }
}

always_inline void add_minima(const float *minima, const float *sums, size_t stride, unsigned n,
                              __m256 acc[ROWS_MAX])
{
    for (unsigned i = 0; i < n; i++)
        acc[i] = _mm256_fmadd_ps(_mm256_load_ps(minima), _mm256_set1_ps(sums[stride * i]), acc[i]);
}

always_inline void multiply_rows(const struct kind *kind, const struct rows *rows, unsigned n,
                                 unsigned lane)
{
    const struct ds_gemm *gemm = rows->gemm;
    const struct ds_act *act = gemm->act;
    __m256 acc[ROWS_MAX];

    for (unsigned i = 0; i < n; i++)
        acc[i] = gemm->first_unit == 0 ? _mm256_setzero_ps()
                                       : _mm256_load_ps(rows->acc + i * DS_PANEL_ROWS + lane);
    for (uint32_t u = 0; u < gemm->n_units; u++) {
        size_t cell = ds_act_cell(act, rows->first, gemm->first_unit + u);

        if (kind->halves) {
            unit_add(kind, rows, n, u, lane, 0, 4, acc);
            unit_add(kind, rows, n, u, lane, 4, 4, acc);
        } else {
            unit_add(kind, rows, n, u, lane, 0, 8, acc);
        }
        if (kind->minimum && kind->halves) {
            add_minima(gemm->tile->m[u][0] + lane, act->half_sum + 2 * cell, 2, n, acc);
            add_minima(gemm->tile->m[u][1] + lane, act->half_sum + 2 * cell + 1, 2, n, acc);
        } else if (kind->minimum) {
            add_minima(gemm->tile->m[u][0] + lane, act->sum + cell, 1, n, acc);
        }
    }
    for (unsigned i = 0; i < n; i++)
        _mm256_store_ps(rows->acc + i * DS_PANEL_ROWS + lane, acc[i]);
}

always_inline void multiply_all(const struct ds_gemm *gemm, const struct kind kind)
{
    const uint32_t group = gemm->act->group_rows;
    uint32_t row = 0;

    while (row < gemm->n_rows) {
        uint32_t left = group - row % group; /* rows taken together lie in one group */
        unsigned n = left >= 4 && gemm->n_rows - row >= 4 ? 4 : 1;
        struct rows rows = { gemm, gemm->first_row + row,
                             gemm->acc + (size_t) row * DS_PANEL_ROWS };

        for (unsigned lane = 0; lane < DS_PANEL_ROWS; lane += 8) {
            if (n == 4)
                multiply_rows(&kind, &rows, 4, lane);
            else
                multiply_rows(&kind, &rows, 1, lane);
        }
        row += n;
    }
}

void ds_gemm_avx2(const struct ds_gemm *gemm)
{
    const enum ds_panel_scale scale = gemm->format->scale;
    const bool minimum = ds_scale_minimum(scale), halves = ds_scale_halves(scale);
    const unsigned q_bits = gemm->format->q_bits;

    if (minimum && halves)
        multiply_all(gemm, (struct kind){ 4, 4, true, true });
    else if (minimum && q_bits <= 4)
        multiply_all(gemm, (struct kind){ 4, 8, true, false });
    else if (minimum)
        multiply_all(gemm, (struct kind){ 5, 4, true, false });
    else if (halves && q_bits <= 4)
        multiply_all(gemm, (struct kind){ 4, 4, false, true });
    else if (halves && q_bits <= 6)
        multiply_all(gemm, (struct kind){ 6, 2, false, true });
    else if (halves)
        multiply_all(gemm, (struct kind){ 7, 1, false, true });
    else if (q_bits <= 4)
        multiply_all(gemm, (struct kind){ 4, 8, false, false });
    else if (q_bits == 5)
        multiply_all(gemm, (struct kind){ 5, 4, false, false });
    else if (q_bits == 7)
        multiply_all(gemm, (struct kind){ 7, 1, false, false });
    else
        multiply_all(gemm, (struct kind){ 8, 1, false, false });
}
