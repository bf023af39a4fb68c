/* SPDX-License-Identifier: Apache-2.0 */
/* act.h - a batch of activations, quantised for the integer kernels (kernels.h says how). */
#pragma once

#include "engine/cpu/kernels.h"
#include "engine/cpu/pool.h"
#include "engine/cpu/scratch.h"

#define DS_ACT_OFFSETS 8u /* offsets the panel formats use, apart from 0 */

struct ds_act_memory {
    struct ds_act act; /* planes lie in memory, valid until the next quantise */
    struct ds_scratch memory;
    struct {
        int32_t *high, *low;
    } offsets[DS_ACT_OFFSETS]; /* NULL unless wanted */
};

/*
 * A batch may consist of parts, whose rows are grouped each part by itself, so that a kernel can
 * take a part as if it were a batch: an expert's rows.
 */
struct ds_act_part {
    uint32_t first_row;   /* rows before this part, those counted that fill up others' groups */
    uint32_t first_group; /* groups before it */
    uint32_t n;
};

/* Quantises x[n][k] for products with the formats given; k a multiple of 32. -ENOMEM. */
int ds_act_quantise(struct ds_act_memory *memory, const struct ds_kernels *kernels,
                    struct ds_pool *pool, const float *x, uint32_t n, uint32_t k,
                    const struct ds_panel_format *const *formats, unsigned n_formats);

/* Makes room for parts that take n_rows (as ds_act_part.first_row counts) and n_groups in all,
 * for products with the formats given. -ENOMEM. */
int ds_act_prepare(struct ds_act_memory *memory, uint32_t n_rows, uint32_t n_groups, uint32_t k,
                   const struct ds_panel_format *const *formats, unsigned n_formats);

/* The part that comes after this one and has n rows. */
struct ds_act_part ds_act_part_next(const struct ds_act_part *part, uint32_t n);
uint32_t ds_act_part_groups(const struct ds_act_part *part);

/* The part as a batch of its own; what it points to stays the memory's. */
struct ds_act_memory ds_act_view(const struct ds_act_memory *memory,
                                 const struct ds_act_part *part);

/* To be called once all rows of a group of a view are quantised. */
void ds_act_finish_group(struct ds_act_memory *view, uint32_t group);

struct ds_act_offset ds_act_offset(const struct ds_act_memory *memory,
                                   const struct ds_panel_format *format);

void ds_act_deinit(struct ds_act_memory *memory);
