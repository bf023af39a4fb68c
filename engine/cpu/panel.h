/* SPDX-License-Identifier: Apache-2.0 */
/*
 * panel.h - how the CPU backend stores a weight matrix: panels of sixteen interleaved rows.
 *
 * A lane is a row. Whatever the instruction set, lane r of panel p computes row 16 p + r, alone and
 * in order of k; that is why results depend neither on the set nor on the number of tokens. Missing
 * rows of the last panel are zeros.
 *
 * Integer types (a unit is 16 rows x 32 k; unsigned values q, of which `offset` is subtracted):
 *
 *      panel:  [scales of all units][pad to 64][unit 0][unit 1]...
 *      unit:   byte 64 j + 4 r + i, j = 0..3 (low nibble: k = 8 j + i, high nibble: 8 j + 4 + i),
 * of row r; i = 0..3; so a nibble plane of 64 bytes is four k of sixteen rows, what VPDPBUSD eats:
 * "group" g = 0..7 holds k = 4 g .. 4 g + 3 5 bit: + 64 bytes, bit g of byte 4 r + i = bit 4 of
 * group g 6 bit: + 128 bytes, bits 2 j, 2 j + 1 of byte 64 h + 4 r + i = bits 4, 5 of group 4 h + j
 *        8 bit: 512 bytes, byte 64 g + 4 r + i of group g
 *      scales, per unit (f16 unless said otherwise):
 *        DS_SCALE_D:   d[16]                  value = d (q - offset)
 *        DS_SCALE_DM:  d[16] m[16]            value = d q + m
 *        DS_SCALE_K:   per 8 units: d[16] dmin[16], then per unit u8 scale[16] u8 min[16]
 *                                             value = d scale q - dmin min
 *        DS_SCALE_6K:  per 8 units: d[16], then per unit i8 scale[2][16], one for each half of k
 *                                             value = d scale (q - offset)
 *
 * Float types: panel = [k][16 rows], elements as in the file (F32, F16, BF16).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/arena.h"
#include "engine/format/checkpoint.h"

#define DS_PANEL_ROWS 16u
#define DS_UNIT_K     32u
#define DS_UNIT_BYTES (DS_PANEL_ROWS * DS_UNIT_K)

enum ds_panel_scale { DS_SCALE_NONE, DS_SCALE_D, DS_SCALE_DM, DS_SCALE_K, DS_SCALE_6K };

struct ds_panel_format {
    uint32_t type;        /* enum ds_type */
    uint16_t bits;        /* of a quant: 4, 5, 6, 8; 0: a float type */
    uint16_t offset;      /* subtracted from every q */
    uint16_t unit_bytes;  /* of the quants of one unit; float types: of one k of sixteen rows */
    uint16_t group_units; /* units per scale group */
    uint16_t group_bytes; /* bytes of a scale group */
    enum ds_panel_scale scale;
};

/* NULL: no kernels for this type. */
const struct ds_panel_format *ds_panel_format(uint32_t type);

struct ds_weight {
    const struct ds_panel_format *format;
    uint32_t k; /* elements of a row */
    uint32_t n; /* rows */
    uint32_t n_panels;
    uint32_t
        n_matrices;     /* of a stack, each with its n_panels panels after the one before; else 1 */
    size_t scale_bytes; /* of one panel, padded to 64 */
    size_t panel_bytes; /* of one panel */
    struct ds_arena *arena; /* borrowed */
    struct ds_arena_piece panels;
    const struct ds_tensor *tensor; /* original; NULL unless rows are gathered */
    struct ds_tensor tensor_copy;   /* what tensor points to */
};

static inline const uint8_t *ds_weight_panel(const struct ds_weight *weight, uint32_t panel)
{
    return (const uint8_t *) weight->panels.data + (size_t) panel * weight->panel_bytes;
}

/* gather: keeps the tensor's data for ds_weight_row() and repacks only when first multiplied.
 * -ENOMEM, -ENOTSUP (type or shape). */
int ds_weight_new(struct ds_weight **ret_weight, struct ds_arena *arena,
                  const struct ds_tensor *tensor, bool gather);
/* A stack of n_matrices of one shape and type, none gathered. Errors likewise. */
int ds_weight_new_stack(struct ds_weight **ret_weight, struct ds_arena *arena,
                        const struct ds_tensor *matrices, uint32_t n_matrices);
struct ds_weight *ds_weight_free(struct ds_weight *weight);
void ds_weight_free_p(struct ds_weight **weight);

/* Makes the panels if there are none yet. -ENOMEM. */
int ds_weight_prepare(struct ds_weight *weight);

/* out[k] = row as floats; gathered weights only; row < n. */
void ds_weight_row(const struct ds_weight *weight, uint32_t row, float *out);
