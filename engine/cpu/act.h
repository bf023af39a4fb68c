/* SPDX-License-Identifier: Apache-2.0 */
/* act.h - a batch of activations, quantised for the integer kernels (kernels.h says how). */
#pragma once

#include "engine/cpu/kernels.h"
#include "engine/cpu/pool.h"
#include "engine/cpu/scratch.h"

#define DS_ACT_OFFSETS 4u /* offsets the panel formats use, apart from 0 */

struct ds_act_memory {
    struct ds_act act; /* planes lie in memory, valid until the next quantise */
    struct ds_scratch memory;
    struct {
        int32_t *high, *low;
    } offsets[DS_ACT_OFFSETS]; /* filled for the formats that were asked for */
};

/* Quantises x[n][k] for products with the formats given; k a multiple of 32. -ENOMEM. */
int ds_act_quantise(struct ds_act_memory *memory, const struct ds_kernels *kernels,
                    struct ds_pool *pool, const float *x, uint32_t n, uint32_t k,
                    const struct ds_panel_format *const *formats, unsigned n_formats);

struct ds_act_offset ds_act_offset(const struct ds_act_memory *memory,
                                   const struct ds_panel_format *format);

void ds_act_deinit(struct ds_act_memory *memory);
