/* SPDX-License-Identifier: Apache-2.0 */
/*
 * float_body.h - the kernels in float arithmetic, written once over v16 and compiled once per
 * instruction set: float_portable.c, float_avx2.c and float_avx512.c include a vec_*.h, define
 * FLOAT_NAME(x) (the names below for this set) and FLOAT_ROWS (rows of activations held in
 * registers), and then include this.
 */
#include <math.h>

#include "engine/cpu/float.h"
#include "proto/base.h"

#define always_inline static inline __attribute__((always_inline))

/* --- exp --- */

/* e^x to about one unit in the last place; x is taken as -87 below and 88 above that, NaN as 88.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor series to r^7 / 7! (remainder below 6e-9);
 * ln 2 in two parts, the first of few bits so that n times it is exact. */
always_inline v16 v16_exp(v16 x)
{
    const v16 magic = v16_set1(0x1.8p23f);
    v16 t, n, r, p;

    x = v16_max(v16_min(x, v16_set1(88.0f)), v16_set1(-87.0f));
    t = v16_fma(x, v16_set1(0x1.715476p+0f), magic); /* low bits: x / ln 2, rounded */
    n = v16_sub(t, magic);
    r = v16_fma(n, v16_set1(-0x1.62e4p-1f), x);
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
    p = v16_fma(v16_set1(1.0f / 5040), r, v16_set1(1.0f / 720));
    p = v16_fma(p, r, v16_set1(1.0f / 120));
    p = v16_fma(p, r, v16_set1(1.0f / 24));
    p = v16_fma(p, r, v16_set1(1.0f / 6));
    p = v16_fma(p, r, v16_set1(0.5f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    return v16_scale_magic(p, t);
}

/* --- quantising activations --- */

static int32_t unit_magnitude(const float *x)
{
    return v16i_hmax(v16i_max(v16i_magnitude(v16_load(x)), v16i_magnitude(v16_load(x + 16))));
}

/* Half a unit: writes high (and low) and returns their sums. */
always_inline void quantise_half(int8_t *high, int8_t *low, const float *x, float inverse,
                                 bool wide, int32_t *ret_high, int32_t *ret_low)
{
    v16i v = v16i_round(v16_mul(v16_load(x), v16_set1(inverse))), h, l;

    if (!wide) {
        v16i_store_i8(high, v);
        v16i_store_i8(low, v16i_set1(0));
        *ret_high = v16i_sum(v);
        *ret_low = 0;
        return;
    }
    h = v16i_shift_right_7(v16i_add(v, v16i_set1(64)));
    l = v16i_sub(v, v16i_shift_left_7(h));
    v16i_store_i8(high, h);
    v16i_store_i8(low, l);
    *ret_high = v16i_sum(h);
    *ret_low = v16i_sum(l);
}

static void quantise_unit(struct ds_act *act, size_t cell, const float *x, int32_t magnitude,
                          bool wide)
{
    size_t at = cell * DS_UNIT_K;
    int32_t *high = act->half_high + 2 * cell, *low = act->half_low + 2 * cell;
    float amax, inverse;

    memcpy(&amax, &magnitude, sizeof amax);
    act->scale[cell] = amax / 127.0f;
    inverse = (wide ? 16256.0f : 127.0f) / amax;
    if (magnitude < DS_ACT_MAGNITUDE_MIN || magnitude > DS_ACT_MAGNITUDE_MAX) {
        /* Nothing to speak of, or beyond all sense: then the scale carries a NaN onward. */
        act->scale[cell] = magnitude < DS_ACT_MAGNITUDE_MIN ? 0.0f : NAN;
        memset(act->high + at, 0, DS_UNIT_K);
        memset(act->low + at, 0, DS_UNIT_K);
        high[0] = high[1] = low[0] = low[1] = 0;
        wide = false;
    } else {
        for (unsigned half = 0; half < 2; half++)
            quantise_half(act->high + at + 16 * half, act->low + at + 16 * half, x + 16 * half,
                          inverse, wide, &high[half], &low[half]);
    }
    act->wide[cell] = wide;
    act->fine[cell] = act->scale[cell] * (1.0f / 128);
    act->sum[cell] = act->fine[cell] * (float) ((high[0] + high[1]) * 128 + (low[0] + low[1]));
}

void FLOAT_NAME(quantise)(struct ds_act *act, uint32_t row, const float *x)
{
    size_t cell = ds_act_cell(act, row, 0), step = act->group_rows;
    int32_t *magnitudes = act->half_high + 2 * cell; /* overwritten unit by unit below */
    int32_t limit;

    for (uint32_t u = 0; u < act->n_units; u++)
        magnitudes[2 * step * u] = unit_magnitude(x + (size_t) u * DS_UNIT_K);
    limit = ds_act_wide_limit(magnitudes, 2 * step, act->n_units);
    for (uint32_t u = 0; u < act->n_units; u++) {
        int32_t magnitude = magnitudes[2 * step * u];

        quantise_unit(act, cell + step * u, x + (size_t) u * DS_UNIT_K, magnitude,
                      magnitude > limit);
    }
}

/* --- products with float weights --- */

/* scale: of F8 */
always_inline v16 load_weights(uint32_t type, const uint8_t *at, v16 scale)
{
    if (type == DS_TYPE_F32)
        return v16_load((const float *) at);
    if (type == DS_TYPE_F8)
        return v16_mul(v16_load_f8(at), scale);
    return type == DS_TYPE_F16 ? v16_load_f16((const uint16_t *) at)
                               : v16_load_bf16((const uint16_t *) at);
}

always_inline void gemm_float_rows(uint32_t type, const struct ds_weight *weight,
                                   const uint8_t *panel, const float *x, float *acc,
                                   unsigned n_rows)
{
    const size_t step = type == DS_TYPE_F32 ? 64 : type == DS_TYPE_F8 ? 16 : 32;
    const uint8_t *at = panel + (type == DS_TYPE_F8 ? weight->scale_bytes : 0);
    const uint32_t k = weight->k, part = type == DS_TYPE_F8 ? DS_F8_ELEMENTS : k;
    v16 s[FLOAT_ROWS][4], scale = v16_set1(0);
    uint32_t i = 0;

    for (unsigned r = 0; r < n_rows; r++)
        for (unsigned j = 0; j < 4; j++)
            s[r][j] = v16_set1(0);
    for (uint32_t end = part; end <= k; end += part) {
        if (type == DS_TYPE_F8)
            scale = v16_load((const float *) panel + i / DS_F8_ELEMENTS * DS_PANEL_ROWS);
        for (; i + 4 <= end; i += 4)
            for (unsigned j = 0; j < 4; j++) {
                v16 w = load_weights(type, at + (i + j) * step, scale);

                for (unsigned r = 0; r < n_rows; r++)
                    s[r][j] = v16_fma(w, v16_set1(x[(size_t) r * k + i + j]), s[r][j]);
            }
    }
    for (unsigned j = 0; j < 3; j++)
        if (i + j < k) {
            v16 w = load_weights(type, at + (i + j) * step, scale);

            for (unsigned r = 0; r < n_rows; r++)
                s[r][j] = v16_fma(w, v16_set1(x[(size_t) r * k + i + j]), s[r][j]);
        }
    for (unsigned r = 0; r < n_rows; r++)
        v16_store(acc + (size_t) r * DS_PANEL_ROWS,
                  v16_add(v16_add(s[r][0], s[r][1]), v16_add(s[r][2], s[r][3])));
}

always_inline void gemm_float_type(uint32_t type, const struct ds_gemm_float *gemm)
{
    const uint8_t *panel = ds_weight_panel(gemm->weight, gemm->panel);
    uint32_t k = gemm->weight->k, row = 0;

    for (; row + FLOAT_ROWS <= gemm->n_rows; row += FLOAT_ROWS)
        gemm_float_rows(type, gemm->weight, panel, gemm->x + (size_t) row * k,
                        gemm->acc + (size_t) row * DS_PANEL_ROWS, FLOAT_ROWS);
    for (; row < gemm->n_rows; row++)
        gemm_float_rows(type, gemm->weight, panel, gemm->x + (size_t) row * k,
                        gemm->acc + (size_t) row * DS_PANEL_ROWS, 1);
}

void FLOAT_NAME(gemm_float)(const struct ds_gemm_float *gemm)
{
    switch (gemm->weight->format->type) {
    case DS_TYPE_F32:
        gemm_float_type(DS_TYPE_F32, gemm);
        return;
    case DS_TYPE_F16:
        gemm_float_type(DS_TYPE_F16, gemm);
        return;
    case DS_TYPE_F8:
        gemm_float_type(DS_TYPE_F8, gemm);
        return;
    default:
        gemm_float_type(DS_TYPE_BF16, gemm);
    }
}

/* --- which positions --- */

/* sum[2] += weights[i] max(0, q_i . key) of n heads, q at q + i * dim */
always_inline void index_heads(v16 sum[2], const float *keys, uint32_t dim, const float *q,
                               const float *weights, unsigned n)
{
    v16 s[FLOAT_ROWS][2], zero = v16_set1(0);

    for (unsigned i = 0; i < n; i++)
        s[i][0] = s[i][1] = zero;
    for (uint32_t d = 0; d < dim; d++) {
        v16 a = v16_load(keys + (size_t) d * DS_KV_BLOCK);
        v16 b = v16_load(keys + (size_t) d * DS_KV_BLOCK + 16);

        for (unsigned i = 0; i < n; i++) {
            v16 x = v16_set1(q[(size_t) i * dim + d]);

            s[i][0] = v16_fma(a, x, s[i][0]);
            s[i][1] = v16_fma(b, x, s[i][1]);
        }
    }
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < 2; j++)
            sum[j] = v16_fma(v16_max(s[i][j], zero), v16_set1(weights[i]), sum[j]);
}

void FLOAT_NAME(index_scores)(float *out, const float *keys, uint32_t dim, const float *q,
                              const float *weights, uint32_t n_heads)
{
    v16 sum[2] = { v16_set1(0), v16_set1(0) };
    uint32_t i = 0;

    for (; i + FLOAT_ROWS <= n_heads; i += FLOAT_ROWS)
        index_heads(sum, keys, dim, q + (size_t) i * dim, weights + i, FLOAT_ROWS);
    for (; i < n_heads; i++)
        index_heads(sum, keys, dim, q + (size_t) i * dim, weights + i, 1);
    v16_store(out, sum[0]);
    v16_store(out + 16, sum[1]);
}

/* --- one row --- */

void FLOAT_NAME(rms_norm)(float *out, const float *in, const float *gamma, uint32_t width,
                          float epsilon)
{
    uint32_t whole = width / 16 * 16;
    v16 squares = v16_set1(0), scale;

    for (uint32_t i = 0; i < whole; i += 16) {
        v16 x = v16_load(in + i);

        squares = v16_fma(x, x, squares);
    }
    if (whole < width) {
        v16 x = v16_load_n(in + whole, width - whole);

        squares = v16_fma(x, x, squares);
    }
    scale = v16_set1(1.0f / sqrtf(v16_sum(squares) / (float) width + epsilon));
    for (uint32_t i = 0; i < whole; i += 16)
        v16_store(out + i, v16_mul(v16_mul(v16_load(in + i), scale), v16_load(gamma + i)));
    if (whole < width) {
        v16 x = v16_mul(v16_load_n(in + whole, width - whole), scale);

        x = v16_mul(x, v16_load_n(gamma + whole, width - whole));
        v16_store_n(out + whole, x, width - whole);
    }
}

always_inline v16 silu(v16 x)
{
    v16 one = v16_set1(1.0f);

    return v16_div(x, v16_add(one, v16_exp(v16_sub(v16_set1(0), x))));
}

void FLOAT_NAME(silu_mul)(float *out, const float *gate, const float *up, uint32_t width)
{
    uint32_t i = 0;

    for (; i + 16 <= width; i += 16)
        v16_store(out + i, v16_mul(silu(v16_load(gate + i)), v16_load(up + i)));
    if (i < width) {
        v16 x = v16_mul(silu(v16_load_n(gate + i, width - i)), v16_load_n(up + i, width - i));

        v16_store_n(out + i, x, width - i);
    }
}

/* Lanes of x[n] from i on; those past its end are rest. */
always_inline v16 load_or(const float *x, uint32_t i, uint32_t n, v16 rest)
{
    return n - i >= 16 ? v16_load(x + i) : v16_first(n - i, v16_load_n(x + i, n - i), rest);
}

always_inline void store_some(float *x, uint32_t i, uint32_t n, v16 value)
{
    if (n - i >= 16)
        v16_store(x + i, value);
    else
        v16_store_n(x + i, value, n - i);
}

void FLOAT_NAME(softmax)(float *x, uint32_t n)
{
    const v16 lowest = v16_set1(-INFINITY), zero = v16_set1(0);
    v16 max = lowest, sum = zero, scale;

    for (uint32_t i = 0; i < n; i += 16)
        max = v16_max(max, load_or(x, i, n, lowest));
    max = v16_set1(v16_hmax(max));
    for (uint32_t i = 0; i < n; i += 16) {
        v16 e = v16_exp(v16_sub(load_or(x, i, n, zero), max));

        store_some(x, i, n, e);
        sum = v16_add(sum, n - i >= 16 ? e : v16_first(n - i, e, zero));
    }
    scale = v16_set1(v16_sum(sum));
    for (uint32_t i = 0; i < n; i += 16)
        store_some(x, i, n, v16_div(load_or(x, i, n, zero), scale));
}

void FLOAT_NAME(sigmoid)(float *x, uint32_t n)
{
    const v16 one = v16_set1(1.0f), zero = v16_set1(0);

    for (uint32_t i = 0; i < n; i += 16) {
        v16 e = v16_exp(v16_sub(zero, load_or(x, i, n, zero)));

        store_some(x, i, n, v16_div(one, v16_add(one, e)));
    }
}
