/* SPDX-License-Identifier: Apache-2.0 */
/* attend.h - the attention kernels of each instruction set (attend_body.h). */
#pragma once

#include "engine/cpu/kernels.h"

#define DS_ATTEND_KERNELS(set)                                                                     \
    void ds_attend_##set(const struct ds_attend *attend);                                          \
    void ds_merge_##set(float *max, float *state, float part_max, const float *part,               \
                        uint32_t value_stride);                                                    \
    void ds_conclude_##set(float *out, const float *state, uint32_t value_dim);                    \
    void ds_widen_##set(float *out, const struct ds_kv_section *section, const void *at,           \
                        const void *next);                                                         \
    void ds_widen_f16_##set(float *out, const uint16_t *in, size_t n);

DS_ATTEND_KERNELS(portable)
DS_ATTEND_KERNELS(avx2)
DS_ATTEND_KERNELS(avx512)
