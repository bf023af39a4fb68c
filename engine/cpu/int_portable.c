/* SPDX-License-Identifier: Apache-2.0 */
/* Integer kernels in plain C: the meaning of the others. */
#include <math.h>

#include "engine/cpu/integer.h"
#include "engine/cpu/vec_portable.h"

static uint16_t get_u16(const uint8_t *p)
{
    return (uint16_t) (p[0] | p[1] << 8);
}

static void unpack_quants(const struct ds_panel_format *format, const uint8_t *unit, uint8_t *q)
{
    const uint8_t *more = unit + DS_UNIT_BYTES / 2;

    if (format->bits == 8) {
        memcpy(q, unit, DS_UNIT_BYTES);
        return;
    }
    for (unsigned j = 0; j < 4; j++)
        for (unsigned i = 0; i < 64; i++) {
            q[128 * j + i] = unit[64 * j + i] & 15;
            q[128 * j + 64 + i] = unit[64 * j + i] >> 4;
        }
    for (unsigned g = 0; g < 8 && format->bits == 5; g++)
        for (unsigned i = 0; i < 64; i++)
            q[64 * g + i] |= (uint8_t) ((more[i] >> g & 1) << 4);
    for (unsigned g = 0; g < 8 && format->bits == 6; g++)
        for (unsigned i = 0; i < 64; i++)
            q[64 * g + i] |= (uint8_t) ((more[64 * (g / 4) + i] >> 2 * (g % 4) & 3) << 4);
}

static void unpack_scales(struct ds_tile *tile, unsigned to, const struct ds_weight *weight,
                          const uint8_t *panel, uint32_t unit)
{
    const struct ds_panel_format *format = weight->format;
    const uint8_t *group = panel + (size_t) (unit / format->group_units) * format->group_bytes;
    const uint8_t *own = group + (format->scale == DS_SCALE_6K ? 32 : 64) +
                         32 * (unit % format->group_units); /* of DS_SCALE_K and _6K */

    for (unsigned r = 0; r < DS_PANEL_ROWS; r++) {
        float d = f16_to_f32(get_u16(group + 2 * r));
        float m = f16_to_f32(get_u16(group + 32 + 2 * r)); /* meaningless where there is none */

        tile->d[to][0][r] = d;
        if (format->scale == DS_SCALE_DM) {
            tile->m[to][r] = m;
        } else if (format->scale == DS_SCALE_K) {
            tile->d[to][0][r] = d * (float) own[r];
            tile->m[to][r] = -(m * (float) own[16 + r]);
        } else if (format->scale == DS_SCALE_6K) {
            tile->d[to][0][r] = d * (float) (int8_t) own[r];
            tile->d[to][1][r] = d * (float) (int8_t) own[16 + r];
        }
    }
}

void ds_unpack_portable(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                        uint32_t first, uint32_t n_units)
{
    const uint8_t *at = ds_weight_panel(weight, panel);

    for (uint32_t u = 0; u < n_units; u++) {
        unpack_quants(weight->format,
                      at + weight->scale_bytes + (size_t) (first + u) * weight->format->unit_bytes,
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

void ds_gemm_portable(const struct ds_gemm *gemm)
{
    const struct ds_act *act = gemm->act;

    for (uint32_t row = 0; row < gemm->n_rows; row++) {
        float *acc = gemm->acc + (size_t) row * DS_PANEL_ROWS;

        if (gemm->first_unit == 0)
            memset(acc, 0, DS_PANEL_ROWS * sizeof *acc);
        for (uint32_t u = 0; u < gemm->n_units; u++) {
            size_t cell = ds_act_cell(act, gemm->first_row + row, gemm->first_unit + u);

            if (gemm->format->scale == DS_SCALE_6K) {
                add_groups(acc, gemm, u, cell, 0, 4, gemm->tile->d[u][0]);
                add_groups(acc, gemm, u, cell, 4, 4, gemm->tile->d[u][1]);
            } else {
                add_groups(acc, gemm, u, cell, 0, 8, gemm->tile->d[u][0]);
            }
            if (gemm->format->scale == DS_SCALE_DM || gemm->format->scale == DS_SCALE_K)
                for (unsigned r = 0; r < DS_PANEL_ROWS; r++)
                    acc[r] = fmaf(gemm->tile->m[u][r], act->sum[cell], acc[r]);
        }
    }
}
