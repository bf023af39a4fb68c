/* SPDX-License-Identifier: Apache-2.0 */
/* Integer kernels in plain C: the meaning of the others. */
#include <math.h>

#include "engine/cpu/integer.h"
#include "engine/cpu/vec_portable.h"
#include "engine/format/quant.h"

static uint16_t get_u16(const uint8_t *p)
{
    return (uint16_t) (p[0] | p[1] << 8);
}

/* q[i] |= `bits` bits of plane byte i, from bit `from` on, moved up to bit `to` */
static void unpack_plane(uint8_t *q, const uint8_t *plane, unsigned from, unsigned bits,
                         unsigned to)
{
    for (unsigned i = 0; i < 64; i++)
        q[i] |= (uint8_t) ((plane[i] >> from & ((1u << bits) - 1)) << to);
}

static void unpack_quants(const struct ds_panel_format *format, const uint8_t *unit, uint8_t *q)
{
    const unsigned low = format->bits < 4 ? 2 : 4, more = format->bits - low;
    const uint8_t *rest = unit + 64 * low;

    if (format->bits == 8) {
        memcpy(q, unit, DS_UNIT_BYTES);
        return;
    }
    memset(q, 0, DS_UNIT_BYTES);
    for (unsigned g = 0; g < 8; g++) {
        unpack_plane(q + 64 * g, unit + 64 * (g * low / 8), g * low % 8, low, 0);
        if (more)
            unpack_plane(q + 64 * g, rest + 64 * (g * more / 8), g * more % 8, more, low);
    }
    for (unsigned i = 0; i < DS_UNIT_BYTES && format->values; i++)
        q[i] = (uint8_t) (format->values[q[i]] + format->offset);
}

static void unpack_scales(struct ds_tile *tile, unsigned to, const struct ds_weight *weight,
                          const uint8_t *panel, uint32_t unit)
{
    const enum ds_panel_scale scale = weight->format->scale;
    const unsigned group_units = ds_scale_units(scale);
    const uint8_t *group = panel + (size_t) (unit / group_units) * ds_scale_bytes(scale);
    const uint8_t *own = group + ds_scale_own(scale, unit % group_units); /* where there are any */
    float(*ds)[DS_PANEL_ROWS] = tile->d[to], (*ms)[DS_PANEL_ROWS] = tile->m[to];

    for (unsigned r = 0; r < DS_PANEL_ROWS; r++) {
        float d, m = 0;

        if (scale == DS_SCALE_E8) {
            ds[0][r] = ds_e8m0_half(group[r]);
            continue;
        }
        d = f16_to_f32(get_u16(group + 2 * r)) * weight->factor;
        if (ds_scale_minimum(scale))
            m = f16_to_f32(get_u16(group + 32 + 2 * r)) * weight->factor;
        ds[0][r] = d;
        ms[0][r] = m;
        if (scale == DS_SCALE_K) {
            ds[0][r] = d * (float) own[r];
            ms[0][r] = -(m * (float) own[16 + r]);
        }
        for (unsigned half = 0; half < 2 && scale == DS_SCALE_2K; half++) {
            ds[half][r] = d * (float) (own[16 * half + r] & 15);
            ms[half][r] = -(m * (float) (own[16 * half + r] >> 4));
        }
        if (scale == DS_SCALE_I8 || scale == DS_SCALE_6K)
            ds[0][r] = d * (float) (int8_t) own[r];
        if (scale == DS_SCALE_6K)
            ds[1][r] = d * (float) (int8_t) own[16 + r];
    }
}

void ds_unpack_portable(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                        uint32_t first, uint32_t n_units)
{
    const uint8_t *at = ds_weight_panel(weight, panel);

    for (uint32_t u = 0; u < n_units; u++) {
        unpack_quants(weight->format,
                      at + weight->scale_bytes +
                          (size_t) (first + u) * ds_panel_unit_bytes(weight->format),
                      tile->q[u]);
        unpack_scales(tile, u, weight, at, first + u);
    }
}

/* sum[r] += q[row r] a over n_groups groups of four k */
static void dot(int32_t *sum, const uint8_t *q, const int8_t *a, unsigned n_groups)
{
    for (unsigned g = 0; g < n_groups; g++)
        for (unsigned r = 0; r < DS_PANEL_ROWS; r++)
            for (unsigned i = 0; i < 4; i++)
                sum[r] += q[64 * g + 4 * r + i] * a[4 * g + i];
}

/* acc += one scale's worth of a unit: groups first_group .. + n_groups, weight scales d */
static void add_groups(float *acc, const struct ds_gemm *gemm, uint32_t u, size_t cell,
                       unsigned first_group, unsigned n_groups, const float *d)
{
    const struct ds_act *act = gemm->act;
    const uint8_t *q = gemm->tile->q[u] + 64 * first_group;
    size_t a = cell * DS_UNIT_K + 4 * first_group;
    int32_t offset = -(int32_t) gemm->format->offset;
    int32_t sum[DS_PANEL_ROWS] = { 0 }, high = 0, low = 0;
    float scale = act->wide[cell] ? act->fine[cell] : act->scale[cell];

    for (unsigned half = first_group / 4; half < (first_group + n_groups) / 4; half++) {
        high += act->half_high[2 * cell + half] * offset;
        low += act->half_low[2 * cell + half] * offset;
    }
    dot(sum, q, act->high + a, n_groups);
    for (unsigned r = 0; r < DS_PANEL_ROWS; r++)
        sum[r] += high;
    if (act->wide[cell]) {
        for (unsigned r = 0; r < DS_PANEL_ROWS; r++)
            sum[r] = sum[r] * 128 + low;
        dot(sum, q, act->low + a, n_groups);
    }
    for (unsigned r = 0; r < DS_PANEL_ROWS; r++)
        acc[r] = fmaf((float) sum[r], d[r] * scale, acc[r]);
}

static void add_minima(float *acc, const float *m, float sum)
{
    for (unsigned r = 0; r < DS_PANEL_ROWS; r++)
        acc[r] = fmaf(m[r], sum, acc[r]);
}

void ds_gemm_portable(const struct ds_gemm *gemm)
{
    const enum ds_panel_scale scale = gemm->format->scale;
    const struct ds_act *act = gemm->act;

    for (uint32_t row = 0; row < gemm->n_rows; row++) {
        float *acc = gemm->acc + (size_t) row * DS_PANEL_ROWS;

        if (gemm->first_unit == 0)
            memset(acc, 0, DS_PANEL_ROWS * sizeof *acc);
        for (uint32_t u = 0; u < gemm->n_units; u++) {
            size_t cell = ds_act_cell(act, gemm->first_row + row, gemm->first_unit + u);

            if (ds_scale_halves(scale)) {
                add_groups(acc, gemm, u, cell, 0, 4, gemm->tile->d[u][0]);
                add_groups(acc, gemm, u, cell, 4, 4, gemm->tile->d[u][1]);
            } else {
                add_groups(acc, gemm, u, cell, 0, 8, gemm->tile->d[u][0]);
            }
            if (scale == DS_SCALE_2K) {
                add_minima(acc, gemm->tile->m[u][0], act->half_sum[2 * cell]);
                add_minima(acc, gemm->tile->m[u][1], act->half_sum[2 * cell + 1]);
            } else if (ds_scale_minimum(scale)) {
                add_minima(acc, gemm->tile->m[u][0], act->sum[cell]);
            }
        }
    }
}
