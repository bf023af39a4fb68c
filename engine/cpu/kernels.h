/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels.h - the inner loops, one table per instruction set; portable C defines what they compute.
 *
 * All tables yield the same bits. What makes that possible, and must stay true in every one of
 * them:
 *   - one output element is computed by one lane, in one order of k, with the operations below;
 *   - integer sums are exact, so their order is free;
 *   - multiply-add is fused where and only where the formula says fma.
 *
 * Activations are quantised per row and per 32 consecutive k (a "unit") to
 *      x ~ scale (high + low / 128),   scale = amax / 127
 * high rounds x / scale to nearest even. low is 0 except in units that the row marks as wide: there
 * high and low come from rounding 128 x / scale, 15 bits in all. A unit is wide if its amax exceeds
 * the row's ordinary unit (ds_quantise_act.h), that is where few large values would drown the
 * others.
 *
 * The product of one weight row and one activation row, acc starting at 0, units in order of k:
 *      isum = sum over the unit of (q - offset) (high, or 128 high + low where wide)
 *      acc  = fma((float) isum, w.d * (a.scale, or a.scale / 128 where wide), acc)
 *      acc  = fma(w.m, a.sum, acc)            types with a minimum (sum = the unit's sum of x)
 * Types with two scales per unit do the first two lines once for each half of the unit, then the
 * last, if they have minima, once for each half.
 *
 * Float weights: four partial sums, k % 4 selects, each acc = fma(w, x, acc) in order of k; the
 * result is (s0 + s1) + (s2 + s3).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/cpu/panel.h"

/*
 * A batch of rows, quantised. Rows lie in groups of group_rows, and in a group all rows' first unit
 * comes first, then all rows' second: a kernel that takes a group through its units reads straight
 * on.
 *
 *      cell:   (row / group_rows * n_units + unit) * group_rows + row % group_rows
 */
#define DS_ACT_GROUP 12u
struct ds_act {
    uint32_t n;          /* rows */
    uint32_t k;          /* elements of a row, a multiple of 32 */
    uint32_t n_units;    /* k / 32 */
    uint32_t group_rows; /* n, or DS_ACT_GROUP where that is less; the last group may have fewer */
    int8_t *high;        /* [cell][32] */
    int8_t *low;         /* [cell][32] 0 unless wide */
    uint8_t *wide;       /* [cell] 0 or 1 */
    uint8_t *any_wide;   /* [group][n_units] is the unit wide in any row? */
    float *scale;        /* [cell] */
    float *fine;         /* [cell] scale / 128 */
    float *sum;          /* [cell] of the quantised x */
    int32_t *half_high;  /* [cell][2] sums of the halves' high */
    int32_t *half_low;   /* [cell][2] of their low */
    float *half_sum;     /* [cell][2] of the halves' quantised x; NULL unless DS_SCALE_2K is used */
};

/* What turns a sum over q into one over q - offset: half_high and half_low times -offset. Formats
 * with one scale per unit have it for the whole unit in the first of the two. */
struct ds_act_offset {
    const int32_t *high; /* [cell][2] */
    const int32_t *low;
};

static inline size_t ds_act_cell(const struct ds_act *act, uint32_t row, uint32_t unit)
{
    return ((size_t) (row / act->group_rows) * act->n_units + unit) * act->group_rows +
           row % act->group_rows;
}

static inline bool ds_act_any_wide(const struct ds_act *act, uint32_t row, uint32_t unit)
{
    return act->any_wide[(size_t) (row / act->group_rows) * act->n_units + unit];
}

/* Units of one panel, unpacked for ds_kernels.gemm: q, or q - offset where that wants it so. */
#define DS_TILE_UNITS 32u
struct ds_tile {
    _Alignas(64) uint8_t q[DS_TILE_UNITS][DS_UNIT_BYTES]; /* byte 64 g + 4 r + i */
    _Alignas(
        64) float d[DS_TILE_UNITS][2][DS_PANEL_ROWS]; /* [1]: second half, where it has its own */
    _Alignas(64) float m[DS_TILE_UNITS][2][DS_PANEL_ROWS]; /* likewise; types with a minimum */
};

/* acc[n_rows][16] for rows first_row.. of act against one panel; all of k. */
struct ds_gemv {
    const struct ds_weight *weight;
    uint32_t panel;
    const struct ds_act *act;
    struct ds_act_offset offset;
    uint32_t first_row;
    uint32_t n_rows; /* <= DS_GEMV_ROWS */
    float *acc;
};
#define DS_GEMV_ROWS 4u

/* The same for any number of rows and units first_unit .. + n_units of k, whose weights are in
 * tile; acc is read first unless first_unit is 0. */
struct ds_gemm {
    const struct ds_panel_format *format;
    const struct ds_tile *tile;
    const struct ds_act *act;
    struct ds_act_offset offset;
    uint32_t first_unit, n_units;
    uint32_t first_row, n_rows; /* first_row begins a group */
    float *acc;
};

/* acc[n_rows][16] = the panel of a float weight times x rows (stride k). */
struct ds_gemm_float {
    const struct ds_weight *weight;
    uint32_t panel;
    const float *x; /* [n_rows][k] */
    uint32_t n_rows;
    float *acc;
};

/*
 * Part of the KV cache: n_rows rows of width elements of a type, width a multiple of 16 (32 with
 * scales), and behind them the scales (f16) where the type has any, one for 32 elements of one
 * position:
 *
 *      columns  rows are dimensions, elements positions (width 32):  scale [row / 32][element]
 *      else     rows are positions, elements dimensions:             scale [row][element / 32]
 *
 * Q4_0 has elements i and i + 16 of such 32 in one byte, low and high, biased by 8.
 */
struct ds_kv_section {
    enum ds_kv_type type;
    uint32_t n_rows, width;
    bool columns;
    size_t scales_at; /* bytes before the scales */
    size_t size_bytes;
};

/*
 * Attention of some queries to one tile: DS_ATTEND_POSITIONS positions of one KV head, as floats.
 * Queries come in groups, q[group][key_dim][queries of a group], times the scale and log2 e.
 *
 *      plain    keys [key_dim][32 positions], values [32][value_stride], groups of
 * DS_ATTEND_QUERIES shared   keys [32][key_stride], whose first value_stride are the values (MLA:
 * many queries, few keys), groups of DS_ATTEND_LANES
 *
 * A query's state is what it has seen so far: out, not yet divided by the sum of its addends.
 */
#define DS_ATTEND_BLOCKS    2u
#define DS_ATTEND_POSITIONS (DS_ATTEND_BLOCKS * DS_KV_BLOCK)
#define DS_ATTEND_QUERIES   12u
#define DS_ATTEND_LANES     32u
#define DS_ATTEND_SUMS      16u

/* Positions first .. end - 1 of a tile; first = end = 0: none. */
struct ds_visible {
    uint8_t first, end;
};

struct ds_attend {
    const float *keys[DS_ATTEND_BLOCKS];
    const float *values[DS_ATTEND_BLOCKS]; /* as keys, where shared */
    unsigned n_blocks;                     /* the tile's first blocks: nobody sees the others */
    bool shared;
    uint32_t key_dim, key_stride; /* key_stride: shared only */
    uint32_t value_stride;        /* a multiple of 16 */
    uint32_t n_queries;
    const float *q;
    const struct ds_visible *visible; /* [n_queries] */
    float *max;                       /* [n_queries]; -INFINITY: nothing seen, state is 0 */
    float *state;                     /* [n_queries][DS_ATTEND_SUMS + value_stride]: sums, out */
};

struct ds_kernels {
    const char *name;    /* as ds_cpu_options.isa */
    const char *display; /* "AVX-512 VNNI" */

    /* Quantises row `row` of act from x[k]. */
    void (*quantise)(struct ds_act *act, uint32_t row, const float *x);

    /* Units first .. + n_units (<= DS_TILE_UNITS) of a panel, as the same table's gemm wants them.
     */
    void (*unpack)(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                   uint32_t first, uint32_t n_units);
    void (*gemm)(const struct ds_gemm *gemm);
    uint32_t gemm_rows; /* with fewer rows, another table's unpack and gemm are better: */
    const struct ds_kernels *fewer;           /* this one's; gemm_rows 0: NULL */
    void (*gemv)(const struct ds_gemv *gemv); /* NULL: use unpack and gemm */
    void (*gemm_float)(const struct ds_gemm_float *gemm);

    /* For each query and position it sees: s = fma chain over key_dim. Then max' = max(max, s...),
     * state times 2^(max - max') where that is less than 1, and for each position in order, w =
     * 2^(s - max'): out = fma(w, v, out), and w is added to a sum: to number position % 16, where
     * shared to the first. */
    void (*attend)(const struct ds_attend *attend);
    /* Adds what was seen of later positions: max and state = themselves merged with part. */
    void (*merge)(float *max, float *state, float part_max, const float *part,
                  uint32_t value_stride);
    void (*conclude)(float *out, const float *state, uint32_t value_dim); /* divides */
    /* out[n_rows][width] = the section at at, which is not F32. next: what will be wanted soon, the
     * same size. */
    void (*widen)(float *out, const struct ds_kv_section *section, const void *at,
                  const void *next);
    void (*widen_f16)(float *out, const uint16_t *in, size_t n); /* n a multiple of 16 */
    /* out[32] = sum over heads of weights[h] max(0, q[h] . key), for each of the 32 keys
     * [dim][32]; q [n_heads][dim]. fma chains over dim, then over heads. */
    void (*index_scores)(float *out, const float *keys, uint32_t dim, const float *q,
                         const float *weights, uint32_t n_heads);

    /* One row each; see backend.h. */
    void (*rms_norm)(float *out, const float *in, const float *gamma, uint32_t width,
                     float epsilon);
    void (*silu_mul)(float *out, const float *gate, const float *up, uint32_t width);
    /* In place, n >= 1: exp(x - max) / sum, and 1 / (1 + exp(-x)). */
    void (*softmax)(float *x, uint32_t n);
    void (*sigmoid)(float *x, uint32_t n);
};

extern const struct ds_kernels ds_kernels_portable;
extern const struct ds_kernels ds_kernels_avx2;   /* AVX2, FMA, F16C */
extern const struct ds_kernels ds_kernels_avx512; /* F, BW, VL, DQ, VNNI */
extern const struct ds_kernels ds_kernels_amx;    /* all these, and AMX's TILE and INT8 */

/* The best set this machine has, no better than isa (NULL: any). NULL: no such set, or not here. */
const struct ds_kernels *ds_kernels_choose(const char *isa);
