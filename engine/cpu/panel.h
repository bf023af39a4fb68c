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
 *      unit:   planes of 64 bytes, of which byte 4 r + i belongs to row r. "Group" g = 0..7 is
 *              k = 4 g + i, i = 0..3: four k of sixteen rows are what VPDPBUSD eats.
 *        nibbles  4 planes, j = 0..3: group 2 j in the low, 2 j + 1 in the high four bits
 *        pairs    2 planes, h = 0..1: group 4 h + j in bits 2 j, 2 j + 1
 *        bits     1 plane: group g in bit g
 *        bytes    8 planes, one for each group
 *              2 bit: pairs; 3 bit: pairs, bits; 4 bit: nibbles; 5 bit: nibbles, bits; 6 bit:
 *              nibbles, pairs; 8 bit: bytes; what comes later holds the higher bits of q.
 *      Coded types have codes where others have q: q = values[code] + offset.
 *      scales, per unit (f16 unless said otherwise; d and dmin are times the weight's factor):
 *        DS_SCALE_D:   d[16]                  value = d (q - offset)
 *        DS_SCALE_DM:  d[16] m[16]            value = d q + m
 *        DS_SCALE_E8:  u8 e[16]               value = 2^(e - 128) (q - offset)
 *        DS_SCALE_K:   per 8 units: d[16] dmin[16], then per unit u8 scale[16] u8 min[16]
 *                                             value = d scale q - dmin min
 *        DS_SCALE_2K:  per 8 units: d[16] dmin[16], then per unit u8 scale and min[2][16], one for
 *                      each half of k, the scale in the low four bits; value likewise
 *        DS_SCALE_I8:  per 8 units: d[16], then per unit i8 scale[16]
 *                                             value = d scale (q - offset)
 *        DS_SCALE_6K:  per 8 units: d[16], then per unit i8 scale[2][16], one for each half of k
 *                                             value likewise
 *
 * Float types: panel = [k][16 rows], elements as in the file (F32, F16, BF16).
 *
 * F8: panel = [scales][k][16 rows], a scale [16] (f32) for each 128 k. A code stands for the f16
 * with its sign and its other bits moved to 13..7, and the scale is the file's times 256: exactly
 * the same, and what the F16 instructions turn into floats. The number of a weight is the product,
 * rounded to f32; then all is as if it were F32. The two codes that are no number become a scale
 * that is none, which says so in every product with that row.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/arena.h"
#include "engine/format/blocks.h"
#include "engine/format/checkpoint.h"

#define DS_PANEL_ROWS 16u
#define DS_UNIT_K     32u
#define DS_UNIT_BYTES (DS_PANEL_ROWS * DS_UNIT_K)

enum ds_panel_scale {
    DS_SCALE_NONE,
    DS_SCALE_D,
    DS_SCALE_DM,
    DS_SCALE_E8,
    DS_SCALE_K,
    DS_SCALE_2K,
    DS_SCALE_I8,
    DS_SCALE_6K,
};

struct ds_panel_format {
    uint32_t type;   /* enum ds_type */
    uint16_t bits;   /* stored of a quant: 2, 3, 4, 5, 6, 8; 0: a float type */
    uint16_t q_bits; /* q < 2^q_bits; bits unless coded */
    uint16_t offset; /* subtracted from every q */
    enum ds_panel_scale scale;
    const int8_t *values; /* [16] coded types: what codes stand for, plus offset is q; else NULL */
};

/* The kinds of formats there are: what kernels are specialised for. KIND(bits, coded, scale) */
#define DS_PANEL_KINDS(KIND)                                                                       \
    KIND(4, false, DS_SCALE_D)                                                                     \
    KIND(5, false, DS_SCALE_D)                                                                     \
    KIND(8, false, DS_SCALE_D)                                                                     \
    KIND(4, false, DS_SCALE_DM)                                                                    \
    KIND(5, false, DS_SCALE_DM)                                                                    \
    KIND(2, false, DS_SCALE_K)                                                                     \
    KIND(4, false, DS_SCALE_K)                                                                     \
    KIND(5, false, DS_SCALE_K)                                                                     \
    KIND(2, false, DS_SCALE_2K)                                                                    \
    KIND(2, false, DS_SCALE_I8)                                                                    \
    KIND(3, false, DS_SCALE_6K)                                                                    \
    KIND(6, false, DS_SCALE_6K)                                                                    \
    KIND(3, true, DS_SCALE_I8)                                                                     \
    KIND(3, true, DS_SCALE_6K)                                                                     \
    KIND(4, true, DS_SCALE_D)                                                                      \
    KIND(4, true, DS_SCALE_E8)                                                                     \
    KIND(4, true, DS_SCALE_I8)

/* One number for a kind, to switch by. */
#define DS_PANEL_KIND(bits, coded, scale) ((bits) | (coded) << 4 | (scale) << 5)

static inline int ds_panel_kind(const struct ds_panel_format *format)
{
    return DS_PANEL_KIND(format->bits, format->values != NULL, (int) format->scale);
}

/* Of the functions below, those that take bits or scale are for kernels to call with constants. */

/* Bytes of the quants of one unit; float types: of one k of sixteen rows. */
static inline unsigned ds_panel_unit_bytes(const struct ds_panel_format *format)
{
    if (format->bits == 0)
        return format->type == DS_TYPE_F32 ? 64 : format->type == DS_TYPE_F8 ? 16 : 32;
    return 64u * format->bits;
}

/* Has each half of a unit a scale of its own? */
static inline bool ds_scale_halves(enum ds_panel_scale scale)
{
    return scale == DS_SCALE_2K || scale == DS_SCALE_6K;
}

/* Is there a minimum (and so no offset)? */
static inline bool ds_scale_minimum(enum ds_panel_scale scale)
{
    return scale == DS_SCALE_DM || scale == DS_SCALE_K || scale == DS_SCALE_2K;
}

/* Units per group of scales, and bytes of it. */
static inline unsigned ds_scale_units(enum ds_panel_scale scale)
{
    return scale == DS_SCALE_D || scale == DS_SCALE_DM || scale == DS_SCALE_E8 ? 1 : 8;
}

static inline unsigned ds_scale_bytes(enum ds_panel_scale scale)
{
    switch (scale) {
    case DS_SCALE_D:
        return 32;
    case DS_SCALE_DM:
        return 64;
    case DS_SCALE_E8:
        return 16;
    case DS_SCALE_I8:
        return 32 + 8 * 16;
    case DS_SCALE_6K:
        return 32 + 8 * 32;
    case DS_SCALE_K:
    case DS_SCALE_2K:
        return 64 + 8 * 32;
    default:
        return 0;
    }
}

/* Where a unit's own scales are in its group. */
static inline unsigned ds_scale_own(enum ds_panel_scale scale, unsigned unit)
{
    if (scale == DS_SCALE_I8)
        return 32 + 16 * unit;
    return (scale == DS_SCALE_6K ? 32 : 64) + 32 * unit;
}

/* NULL: no kernels for this type. */
const struct ds_panel_format *ds_panel_format(uint32_t type);

struct ds_weight {
    const struct ds_panel_format *format;
    float factor; /* of d and dmin, see ds_type_traits */
    uint32_t k;   /* elements of a row */
    uint32_t n;   /* rows */
    uint32_t n_panels;
    uint32_t
        n_matrices;     /* of a stack, each with its n_panels panels after the one before; else 1 */
    size_t scale_bytes; /* of one panel, padded to 64 */
    size_t panel_bytes; /* of one panel */
    struct ds_arena *arena; /* borrowed */
    struct ds_arena_piece panels;
    bool gather;                /* rows can be fetched: */
    struct ds_arena_piece rows; /* as the file has them; else nothing */
    struct ds_tensor gathered;  /* describes rows */
};

static inline const uint8_t *ds_weight_panel(const struct ds_weight *weight, uint32_t panel)
{
    return (const uint8_t *) weight->panels.data + (size_t) panel * weight->panel_bytes;
}

/* Memory for n_matrices of one shape and type; what it holds is made by ds_weight_fill(), called
 * once for each piece below ds_weight_n_pieces(), with the same matrices, in any order, on any
 * threads. gather (one matrix only): a copy of the rows for ds_weight_row(), which becomes panels
 * only when first multiplied. -ENOMEM, -ENOTSUP (type or shape), -EINVAL (shapes differ). */
int ds_weight_alloc(struct ds_weight **ret_weight, struct ds_arena *arena,
                    const struct ds_tensor *matrices, uint32_t n_matrices, bool gather);
uint32_t ds_weight_n_pieces(const struct ds_weight *weight);
/* False: no memory. */
bool ds_weight_fill(struct ds_weight *weight, const struct ds_tensor *matrices, uint32_t piece);
/* Both at once. */
int ds_weight_new(struct ds_weight **ret_weight, struct ds_arena *arena,
                  const struct ds_tensor *matrices, uint32_t n_matrices, bool gather);
struct ds_weight *ds_weight_free(struct ds_weight *weight);
void ds_weight_free_p(struct ds_weight **weight);

/* Makes the panels if there are none yet. -ENOMEM. */
int ds_weight_prepare(struct ds_weight *weight);

/* out[k] = row as floats; gathered weights only; row < n. */
void ds_weight_row(const struct ds_weight *weight, uint32_t row, float *out);
