/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A product of many rows with the tile registers of AMX: one TDPBSSD takes a unit of sixteen weight
 * rows times a group of activation rows. What is left, converting and scaling the sums, is done
 * with AVX-512 for one unit while the next one's sums are on their way.
 *
 * A unit of a tile (panel.h) is what TDPBSSD wants as its second operand: row g are the four k of
 * group g of sixteen weight rows. Cells of activations are its first: a row's 32 k.
 *
 * Measured on Sapphire Rapids, a product of two groups and a unit takes some 53 cycles to load,
 * multiply and store, whatever its k; the rest 35. That is worth while for types with one scale and
 * no minimum; those with two scales would need twice the tiles, and with minima there is too much
 * of the rest: they are left to VPDPBUSD.
 */
#include "engine/cpu/int_avx512.h"
#include "engine/cpu/integer.h"

#define ROWS   DS_ACT_GROUP
#define GROUPS 2u /* taken at a time: their float sums fill the registers */

static bool is_centred(const struct ds_panel_format *format)
{
    return !ds_scale_halves(format->scale) && !ds_scale_minimum(format->scale);
}

void ds_unpack_amx(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                   uint32_t first, uint32_t n_units)
{
    if (is_centred(weight->format))
        unpack_kind(tile, weight, panel, first, n_units, true);
    else
        ds_unpack_avx512(tile, weight, panel, first, n_units);
}

/* --- tile registers --- */

/* What each is for: sums of the products with high, and with low, of either group; the groups'
 * activations, and weights */
#define HIGH_0 0
#define HIGH_1 1
#define LOW_0  2
#define LOW_1  3
#define ACT_0  4
#define ACT_1  5
#define WEIGHT 6

/* As LDTILECFG reads it. */
struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void configure(unsigned n_rows)
{
    _Alignas(64) struct tile_shapes shapes = { .palette = 1 };

    for (unsigned i = HIGH_0; i <= ACT_1; i++) {
        shapes.rows[i] = (uint8_t) n_rows;
        shapes.row_bytes[i] = i <= LOW_1 ? 64 : DS_UNIT_K;
    }
    shapes.rows[WEIGHT] = DS_UNIT_K / 4;
    shapes.row_bytes[WEIGHT] = 64;
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); /* gcc 12's own reads 8 bytes of it */
}

/* sum = the rows of the cells at `at` times the weights loaded */
#define PRODUCT(sum, act, at)                                                                      \
    do {                                                                                           \
        _tile_zero(sum);                                                                           \
        _tile_loadd(act, at, DS_UNIT_K);                                                           \
        _tile_dpbssd(sum, act, WEIGHT);                                                            \
    } while (0)

/* --- one unit --- */

struct sums {
    _Alignas(64) int32_t high[GROUPS][ROWS][DS_PANEL_ROWS];
    _Alignas(64) int32_t low[GROUPS][ROWS][DS_PANEL_ROWS]; /* of groups with wide rows */
};

/* Rows of one or two groups */
struct rows {
    const struct ds_gemm *gemm;
    uint32_t first;  /* row of act */
    size_t cell;     /* of the first group's first unit here */
    size_t distance; /* from there to the second group's */
    float *acc;
};

#define PREFETCH_BYTES (4u * ROWS * DS_UNIT_K)

/* Into the first-level cache: a group's cells a few units after this one. */
DS_INLINE void prefetch_cells(const int8_t *at)
{
    for (unsigned i = 0; i < ROWS * DS_UNIT_K; i += 64)
        _mm_prefetch(at + PREFETCH_BYTES + i, _MM_HINT_T0);
}

/* The order is that of what may wait: both products before either is stored. */
DS_INLINE void start_unit(const struct rows *rows, unsigned n_groups, uint32_t u, struct sums *sums)
{
    const struct ds_act *act = rows->gemm->act;
    const size_t from = (rows->cell + (size_t) u * act->group_rows) * DS_UNIT_K;
    const size_t next = from + rows->distance * DS_UNIT_K;
    const uint32_t unit = rows->gemm->first_unit + u;

    prefetch_cells(act->high + from);
    if (n_groups > 1)
        prefetch_cells(act->high + next);
    _tile_loadd(WEIGHT, rows->gemm->tile->q[u], 64);
    PRODUCT(HIGH_0, ACT_0, act->high + from);
    if (n_groups > 1)
        PRODUCT(HIGH_1, ACT_1, act->high + next);
    _tile_stored(HIGH_0, sums->high[0], 64);
    if (n_groups > 1)
        _tile_stored(HIGH_1, sums->high[1], 64);
    if (ds_act_any_wide(act, rows->first, unit)) {
        PRODUCT(LOW_0, ACT_0, act->low + from);
        _tile_stored(LOW_0, sums->low[0], 64);
    }
    if (n_groups > 1 && ds_act_any_wide(act, rows->first + ROWS, unit)) {
        PRODUCT(LOW_1, ACT_1, act->low + next);
        _tile_stored(LOW_1, sums->low[1], 64);
    }
}

/* Where rows are wide: high = 128 high + low; and everyone's scale. */
DS_INLINE void widen(const struct ds_act *act, size_t cell, unsigned n, struct sums *sums,
                     unsigned group, float scale[16])
{
    const __mmask16 all = (__mmask16) ((1u << n) - 1);
    const __m128i flags = _mm_maskz_loadu_epi8(all, act->wide + cell);
    const __mmask16 wide = _mm_test_epi8_mask(flags, flags);
    const __m512 ordinary = _mm512_maskz_loadu_ps(all, act->scale + cell);

    _mm512_storeu_ps(scale, _mm512_mask_loadu_ps(ordinary, wide, act->fine + cell));
    for (unsigned left = wide; left; left &= left - 1) {
        unsigned i = (unsigned) __builtin_ctz(left);
        __m512i high = _mm512_slli_epi32(_mm512_load_si512(sums->high[group][i]), 7);

        high = _mm512_add_epi32(high, _mm512_load_si512(sums->low[group][i]));
        _mm512_store_si512(sums->high[group][i], high);
    }
}

DS_INLINE void finish_unit(const struct rows *rows, unsigned n_groups, unsigned n, uint32_t u,
                           struct sums *sums, __m512 acc[GROUPS][ROWS])
{
    const struct ds_tile *tile = rows->gemm->tile;
    const struct ds_act *act = rows->gemm->act;
    const __m512 d = _mm512_load_ps(tile->d[u][0]);
    size_t cell = rows->cell + (size_t) u * act->group_rows;

#pragma GCC unroll 2
    for (unsigned g = 0; g < n_groups; g++, cell += rows->distance) {
        const float *scale = act->scale + cell;
        float own[16];

        if (ds_act_any_wide(act, rows->first + g * ROWS, rows->gemm->first_unit + u)) {
            widen(act, cell, n, sums, g, own);
            scale = own;
        }
#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums->high[g][i]));
            __m512 both = _mm512_mul_ps(d, _mm512_set1_ps(scale[i]));

            acc[g][i] = _mm512_fmadd_ps(sum, both, acc[g][i]);
        }
    }
}

/* --- all units --- */

/* n rows in each of the groups */
DS_INLINE void multiply_rows(const struct rows *rows, unsigned n_groups, unsigned n)
{
    const struct ds_gemm *gemm = rows->gemm;
    __m512 acc[GROUPS][ROWS] = { 0 };
    struct sums sums[2];

#pragma GCC unroll 2
    for (unsigned g = 0; g < n_groups; g++)
#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++)
            acc[g][i] = gemm->first_unit == 0
                            ? _mm512_setzero_ps()
                            : _mm512_load_ps(rows->acc + (g * ROWS + i) * DS_PANEL_ROWS);
    start_unit(rows, n_groups, 0, &sums[0]);
    for (uint32_t u = 0; u < gemm->n_units; u++) {
        if (u + 1 < gemm->n_units)
            start_unit(rows, n_groups, u + 1, &sums[(u + 1) & 1]);
        finish_unit(rows, n_groups, n, u, &sums[u & 1], acc);
    }
#pragma GCC unroll 2
    for (unsigned g = 0; g < n_groups; g++)
#pragma GCC unroll 12
        for (unsigned i = 0; i < n; i++)
            _mm512_store_ps(rows->acc + (g * ROWS + i) * DS_PANEL_ROWS, acc[g][i]);
}

static void multiply_all(const struct ds_gemm *gemm)
{
    const struct ds_act *act = gemm->act;
    uint32_t n;

    configure(act->group_rows);
    for (uint32_t row = 0; row < gemm->n_rows; row += n) {
        const uint32_t left = gemm->n_rows - row, first = gemm->first_row + row;
        const struct rows rows = { gemm, first, ds_act_cell(act, first, gemm->first_unit),
                                   (size_t) act->n_units * act->group_rows,
                                   gemm->acc + (size_t) row * DS_PANEL_ROWS };

        n = left >= 2 * ROWS ? 2 * ROWS : left >= ROWS ? ROWS : left;
        if (n == 2 * ROWS)
            multiply_rows(&rows, 2, ROWS);
        else if (n == ROWS)
            multiply_rows(&rows, 1, ROWS);
        else
            multiply_rows(&rows, 1, n);
    }
    _tile_release(); /* or every switch of threads would save 8 KiB */
}

void ds_gemm_amx(const struct ds_gemm *gemm)
{
    if (is_centred(gemm->format))
        multiply_all(gemm);
    else
        ds_gemm_avx512(gemm);
}
