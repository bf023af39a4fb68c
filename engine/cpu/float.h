/* SPDX-License-Identifier: Apache-2.0 */
/* float.h - the float kernels of each instruction set (float_body.h), and what they share. */
#pragma once

#include "engine/cpu/kernels.h"

/* Bits of the magnitudes between which a unit of activations is quantised: below 2^-60 it counts as
 * zero, above 2^100 as NaN, so that no product of scales can become subnormal or infinite. */
#define DS_ACT_MAGNITUDE_MIN ((127 - 60) << 23)
#define DS_ACT_MAGNITUDE_MAX ((127 + 100) << 23)

/* Units whose magnitude bits exceed this are wide. magnitudes[i * stride], i < n_units, are the
 * units' amax as bits, which for floats is near enough to a logarithm: an outlier does not move
 * their mean far. */
int32_t ds_act_wide_limit(const int32_t *magnitudes, size_t stride, uint32_t n_units);

#define DS_FLOAT_KERNELS(set)                                                                      \
    void ds_quantise_##set(struct ds_act *act, uint32_t row, const float *x);                      \
    void ds_gemm_float_##set(const struct ds_gemm_float *gemm);                                    \
    void ds_index_scores_##set(float *out, const float *keys, uint32_t dim, const float *q,        \
                               const float *weights, uint32_t n_heads);                            \
    void ds_rms_norm_##set(float *out, const float *in, const float *gamma, uint32_t width,        \
                           float epsilon);                                                         \
    void ds_silu_mul_##set(float *out, const float *gate, const float *up, uint32_t width);        \
    void ds_softmax_##set(float *x, uint32_t n);                                                   \
    void ds_sigmoid_##set(float *x, uint32_t n);

DS_FLOAT_KERNELS(portable)
DS_FLOAT_KERNELS(avx2)
DS_FLOAT_KERNELS(avx512)
