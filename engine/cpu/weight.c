/* SPDX-License-Identifier: Apache-2.0 */
/* Repacking: the file's rows of blocks into panels (panel.h). Block layouts: ggml. */
#include "engine/cpu/panel.h"

#include <math.h>

#include "engine/format/packed.h"
#include "engine/format/quant.h"
#include "proto/base.h"

enum { PIECE_BYTES = 512 << 10 }; /* of panels */

/* Of IQ1_M, of the IQ2 types, of IQ3_XXS and of IQ3_S; what is not used is 0. */
static const int8_t iq1_values[16] = { -9, -7, -1, 1, 7, 9 };
static const int8_t iq2_values[16] = { 8, 25, 43, -8, -25, -43 };
static const int8_t iq3_xxs_values[16] = { 4,  12,  20,  28,  36,  44,  52,  62,
                                           -4, -12, -20, -28, -36, -44, -52, -62 };
static const int8_t iq3_s_values[16] = { 1,  3,  5,  7,  9,  11,  13,  15,
                                         -1, -3, -5, -7, -9, -11, -13, -15 };

static const struct ds_panel_format formats[] = {
    { DS_TYPE_F32, 0, 0, 0, DS_SCALE_NONE, NULL },
    { DS_TYPE_F16, 0, 0, 0, DS_SCALE_NONE, NULL },
    { DS_TYPE_BF16, 0, 0, 0, DS_SCALE_NONE, NULL },
    { DS_TYPE_F8, 0, 0, 0, DS_SCALE_NONE, NULL },
    { DS_TYPE_Q4_0, 4, 4, 8, DS_SCALE_D, NULL },
    { DS_TYPE_Q4_1, 4, 4, 0, DS_SCALE_DM, NULL },
    { DS_TYPE_Q5_0, 5, 5, 16, DS_SCALE_D, NULL },
    { DS_TYPE_Q5_1, 5, 5, 0, DS_SCALE_DM, NULL },
    { DS_TYPE_Q8_0, 8, 8, 128, DS_SCALE_D, NULL },
    { DS_TYPE_IQ4_NL, 4, 8, 128, DS_SCALE_D, ds_iq4_values },
    { DS_TYPE_MXFP4, 4, 5, 16, DS_SCALE_E8, ds_mxfp4_values },
    { DS_TYPE_Q2_K, 2, 2, 0, DS_SCALE_2K, NULL },
    { DS_TYPE_Q3_K, 3, 3, 4, DS_SCALE_6K, NULL },
    { DS_TYPE_Q4_K, 4, 4, 0, DS_SCALE_K, NULL },
    { DS_TYPE_Q5_K, 5, 5, 0, DS_SCALE_K, NULL },
    { DS_TYPE_Q6_K, 6, 6, 32, DS_SCALE_6K, NULL },
    { DS_TYPE_IQ4_XS, 4, 8, 128, DS_SCALE_I8, ds_iq4_values },
    { DS_TYPE_IQ2_XXS, 3, 7, 64, DS_SCALE_I8, iq2_values },
    { DS_TYPE_IQ2_XS, 3, 7, 64, DS_SCALE_6K, iq2_values },
    { DS_TYPE_IQ2_S, 3, 7, 64, DS_SCALE_6K, iq2_values },
    { DS_TYPE_IQ3_XXS, 4, 7, 64, DS_SCALE_I8, iq3_xxs_values },
    { DS_TYPE_IQ3_S, 4, 5, 16, DS_SCALE_I8, iq3_s_values },
    { DS_TYPE_IQ1_S, 2, 2, 0, DS_SCALE_K, NULL },
    { DS_TYPE_IQ1_M, 3, 7, 64, DS_SCALE_6K, iq1_values },
    { DS_TYPE_TQ1_0, 2, 2, 1, DS_SCALE_I8, NULL },
    { DS_TYPE_TQ2_0, 2, 2, 1, DS_SCALE_I8, NULL },
};

const struct ds_panel_format *ds_panel_format(uint32_t type)
{
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].type == type)
            return &formats[i];
    return NULL;
}

/* What takes blocks into panels; coded types: codes tells of a value plus 128 what is stored. */
struct repacker {
    struct ds_weight *weight;
    const struct ds_panel_format *format;
    const struct ds_type_traits *traits;
    uint8_t codes[256];
};

/* Where one row's part of a scale group goes: scales + 2 r for the first f16, and so on. */
struct target {
    uint8_t *scales; /* of the group */
    uint8_t *quants; /* of the group's first unit */
    unsigned unit_bytes;
    unsigned row; /* 0..15 */
};

/* A word of a plane: `bits` bits, from bit `from` on, of each byte of the words of as many groups
 * as fit into a byte. */
static inline uint32_t plane_word(const uint32_t *groups, unsigned from, unsigned bits)
{
    const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    uint32_t word = 0;

    for (unsigned i = 0; i < 8 / bits; i++)
        word |= (groups[i] >> from & mask) << bits * i;
    return word;
}

static inline void put_planes(uint8_t *at, const uint32_t groups[8], unsigned from, unsigned bits)
{
    for (unsigned plane = 0; plane < bits; plane++) {
        uint32_t word = plane_word(groups + plane * (8 / bits), from, bits);

        memcpy(at + 64 * plane, &word, sizeof word);
    }
}

/* Stores the row's 32 quants of unit number `unit` of the group. */
static void put_unit(const struct target *target, unsigned bits, unsigned unit,
                     const uint8_t q[DS_UNIT_K])
{
    uint8_t *at = target->quants + (size_t) unit * target->unit_bytes + 4 * (size_t) target->row;
    uint32_t groups[8];

    memcpy(groups, q, sizeof groups);
    if (bits == 8)
        for (unsigned g = 0; g < 8; g++)
            memcpy(at + 64 * (size_t) g, &groups[g], 4);
    else if (bits < 4)
        put_planes(at, groups, 0, 2);
    else
        put_planes(at, groups, 0, 4);
    if (bits == 3)
        put_planes(at + 128, groups, 2, 1);
    if (bits == 5)
        put_planes(at + 256, groups, 4, 1);
    if (bits == 6)
        put_planes(at + 256, groups, 4, 2);
}

static void put_f16(const struct target *target, unsigned slot, uint16_t f16)
{
    memcpy(target->scales + 32 * slot + 2 * target->row, &f16, 2);
}

static void repack_simple(const struct target *target, const struct ds_panel_format *format,
                          const uint8_t *block)
{
    const unsigned scale_bytes = ds_scale_bytes(format->scale) / DS_PANEL_ROWS;
    const uint8_t *at = block + scale_bytes;
    uint8_t q[DS_UNIT_K];
    uint32_t fifth = 0;

    if (format->scale == DS_SCALE_E8)
        target->scales[target->row] = *block;
    else
        for (unsigned i = 0; i < scale_bytes; i += 2)
            memcpy(target->scales + 16 * i + 2 * target->row, block + i, 2);
    if (format->bits == 5) {
        memcpy(&fifth, at, 4);
        at += 4;
    }
    for (unsigned k = 0; k < 16; k++) {
        q[k] = (uint8_t) ((at[k] & 15) | (fifth >> k & 1) << 4);
        q[k + 16] = (uint8_t) (at[k] >> 4 | (fifth >> (k + 16) & 1) << 4);
    }
    for (unsigned k = 0; k < 32 && format->bits == 8; k++)
        q[k] = at[k] ^ 0x80u;
    put_unit(target, format->bits, 0, q);
}

static void repack_superblock(const struct repacker *repacker, const struct target *target,
                              const uint8_t *block)
{
    const enum ds_panel_scale scale = repacker->format->scale;
    const int offset = repacker->format->offset;
    struct ds_superblock s;
    uint8_t q[DS_UNIT_K];

    repacker->traits->unpack(block, &s);
    put_f16(target, 0, s.d);
    if (ds_scale_minimum(scale))
        put_f16(target, 1, s.dmin);
    for (unsigned unit = 0; unit < 8; unit++) {
        uint8_t *own = target->scales + ds_scale_own(scale, unit) + target->row;

        for (unsigned half = 0; half < 1u + ds_scale_halves(scale); half++) {
            own[16 * half] = (uint8_t) s.scale[2 * unit + half];
            if (scale == DS_SCALE_2K)
                own[16 * half] |= (uint8_t) (s.min[2 * unit + half] << 4);
        }
        if (scale == DS_SCALE_K)
            own[16] = s.min[2 * unit];
        for (unsigned k = 0; k < 32; k++)
            q[k] = repacker->format->values ? repacker->codes[s.value[32 * unit + k] + 128]
                                            : (uint8_t) (s.value[32 * unit + k] + offset);
        put_unit(target, repacker->format->bits, unit, q);
    }
}

/* Blocks of F8 into row `lane` of a panel. */
static void repack_f8(const struct ds_weight *weight, uint8_t *panel, unsigned lane,
                      const uint8_t *block)
{
    uint8_t *at = panel + weight->scale_bytes + lane;

    for (uint32_t i = 0; i < weight->k / DS_F8_ELEMENTS; i++, block += DS_F8_BYTES) {
        bool sound = true;
        float scale;

        memcpy(&scale, block, sizeof scale);
        scale *= 256.0f;
        for (unsigned j = 0; j < DS_F8_ELEMENTS; j++, at += DS_PANEL_ROWS) {
            *at = block[4 + j];
            sound = sound && (*at & 0x7f) != 0x7f;
        }
        if (!sound)
            scale = NAN;
        memcpy(panel + sizeof scale * (DS_PANEL_ROWS * i + lane), &scale, sizeof scale);
    }
}

static void repack_row(const struct repacker *repacker, uint32_t row, const uint8_t *blocks)
{
    struct ds_weight *weight = repacker->weight;
    const struct ds_panel_format *format = repacker->format;
    uint8_t *panel = (uint8_t *) weight->panels.data + row / DS_PANEL_ROWS * weight->panel_bytes;
    const struct ds_type_traits *traits = repacker->traits;
    unsigned lane = row % DS_PANEL_ROWS, unit_bytes = ds_panel_unit_bytes(format);

    if (format->type == DS_TYPE_F8) {
        repack_f8(weight, panel, lane, blocks);
        return;
    }
    if (format->bits == 0) {
        size_t size = unit_bytes / DS_PANEL_ROWS;

        for (uint32_t k = 0; k < weight->k; k++)
            memcpy(panel + ((size_t) k * DS_PANEL_ROWS + lane) * size, blocks + k * size, size);
        return;
    }
    for (uint32_t group = 0; group < weight->k / traits->block_elements; group++) {
        const uint8_t *block = blocks + (size_t) group * traits->block_bytes;
        struct target target = {
            .scales = panel + (size_t) group * ds_scale_bytes(format->scale),
            .quants = panel + weight->scale_bytes +
                      (size_t) group * ds_scale_units(format->scale) * unit_bytes,
            .unit_bytes = unit_bytes,
            .row = lane,
        };

        if (traits->unpack)
            repack_superblock(repacker, &target, block);
        else
            repack_simple(&target, format, block);
    }
}

static void set_codes(struct repacker *repacker)
{
    const int8_t *values = repacker->format->values;

    memset(repacker->codes, 0, sizeof repacker->codes);
    for (unsigned code = 0; code < 16 && values; code++)
        if (values[code] != 0) /* what fills up a table */
            repacker->codes[values[code] + 128] = (uint8_t) code;
}

/* Rows from .. to - 1 (from a multiple of DS_PACKED_ROWS) of matrix number `matrix` of the weight.
 * scratch: DS_PACKED_ROWS rows of blocks, for those that no file holds as blocks. */
static void repack_rows(const struct repacker *repacker, uint32_t matrix,
                        const struct ds_tensor *tensor, uint32_t from, uint32_t to,
                        uint8_t *scratch)
{
    const struct ds_weight *weight = repacker->weight;
    uint64_t row_bytes = ds_type_row_bytes(weight->format->type, weight->k);
    uint32_t first = matrix * weight->n_panels * DS_PANEL_ROWS;

    for (uint32_t row = from; row < to; row += DS_PACKED_ROWS) {
        uint32_t n = to - row < DS_PACKED_ROWS ? to - row : DS_PACKED_ROWS;
        const uint8_t *blocks = ds_tensor_rows(tensor, row, n, scratch);

        for (uint32_t i = 0; i < n; i++)
            repack_row(repacker, first + row + i, blocks + i * row_bytes);
    }
}

static int set_shape(struct ds_weight *weight, const struct ds_tensor *tensor)
{
    const struct ds_panel_format *format = ds_panel_format(tensor->type);
    uint64_t row_bytes = ds_type_row_bytes(tensor->type, tensor->dims[0]);
    uint64_t n = tensor->dims[1] * tensor->dims[2] * tensor->dims[3];

    if (!format || row_bytes == 0 || n == 0 || n > UINT32_MAX / 2 || tensor->dims[0] > INT32_MAX)
        return -ENOTSUP;
    if (!tensor->packed && tensor->size_bytes / row_bytes < n)
        return -EINVAL;
    weight->format = format;
    weight->factor = ds_type_traits(tensor->type)->factor;
    weight->k = (uint32_t) tensor->dims[0];
    weight->n = (uint32_t) n;
    weight->n_panels = (weight->n + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS;
    weight->n_matrices = 1;
    if (format->bits) {
        uint32_t n_units = weight->k / DS_UNIT_K;

        weight->scale_bytes =
            ((size_t) n_units / ds_scale_units(format->scale) * ds_scale_bytes(format->scale) +
             63) /
            64 * 64;
        weight->panel_bytes = weight->scale_bytes + (size_t) n_units * ds_panel_unit_bytes(format);
    } else {
        if (format->type == DS_TYPE_F8)
            weight->scale_bytes =
                (size_t) weight->k / DS_F8_ELEMENTS * DS_PANEL_ROWS * sizeof(float);
        weight->panel_bytes =
            weight->scale_bytes + ((size_t) weight->k * ds_panel_unit_bytes(format) + 63) / 64 * 64;
    }
    return 0;
}

/* Matrices of one shape and type. */
static int set_matrices(struct ds_weight *weight, const struct ds_tensor *matrices,
                        uint32_t n_matrices)
{
    int r;

    if (n_matrices == 0)
        return -EINVAL;
    for (uint32_t i = 0; i < n_matrices; i++) {
        if (matrices[i].type != matrices->type || !matrices[i].packed != !matrices->packed ||
            matrices[i].dims[0] != matrices->dims[0] || matrices[i].dims[1] != matrices->dims[1])
            return -EINVAL;
        r = set_shape(weight, &matrices[i]);
        if (r < 0)
            return r;
    }
    if ((uint64_t) n_matrices * weight->n_panels * DS_PANEL_ROWS > UINT32_MAX / 2)
        return -ENOTSUP;
    weight->n_matrices = n_matrices;
    return 0;
}

static int take_panels(struct ds_weight *weight)
{
    return ds_arena_take(weight->arena, weight->panel_bytes * weight->n_panels * weight->n_matrices,
                         &weight->panels);
}

/* Gathered rows stay as the file has them. */
static int take_rows(struct ds_weight *weight, const struct ds_tensor *tensor)
{
    uint64_t row_bytes = ds_type_row_bytes(weight->format->type, weight->k);
    int r = ds_arena_take(weight->arena, row_bytes * weight->n, &weight->rows);

    if (r < 0)
        return r;
    weight->gathered = *tensor;
    weight->gathered.name = "gathered"; /* the weight outlives the file */
    weight->gathered.packed = NULL;
    weight->gathered.data = weight->rows.data;
    weight->gathered.size_bytes = row_bytes * weight->n;
    return 0;
}

int ds_weight_alloc(struct ds_weight **ret_weight, struct ds_arena *arena,
                    const struct ds_tensor *matrices, uint32_t n_matrices, bool gather)
{
    ds_cleanup(ds_weight_free_p) struct ds_weight *weight = calloc(1, sizeof *weight);
    int r;

    if (!weight)
        return -ENOMEM;
    weight->arena = arena;
    r = set_matrices(weight, matrices, n_matrices);
    if (r < 0)
        return r;
    if (gather && n_matrices != 1)
        return -EINVAL;
    weight->gather = gather;
    r = gather ? take_rows(weight, matrices) : take_panels(weight);
    if (r < 0)
        return r;
    *ret_weight = ds_steal(weight);
    return 0;
}

/* Whole panels that make a piece: some hundred kilobytes, so that taking one costs nothing beside
 * filling it, and threads end together. */
static uint32_t piece_panels(const struct ds_weight *weight)
{
    size_t n = PIECE_BYTES / weight->panel_bytes;

    return n == 0 ? 1 : n < weight->n_panels ? (uint32_t) n : weight->n_panels;
}

static uint32_t pieces_of_matrix(const struct ds_weight *weight)
{
    return (weight->n_panels + piece_panels(weight) - 1) / piece_panels(weight);
}

uint32_t ds_weight_n_pieces(const struct ds_weight *weight)
{
    return pieces_of_matrix(weight) * weight->n_matrices;
}

/* False: no memory. */
static bool fill(struct ds_weight *weight, const struct ds_tensor *matrices, uint32_t piece,
                 bool gather)
{
    const uint32_t matrix = piece / pieces_of_matrix(weight);
    const uint32_t n_rows = piece_panels(weight) * DS_PANEL_ROWS;
    const uint32_t from = piece % pieces_of_matrix(weight) * n_rows;
    const uint32_t to = weight->n - from < n_rows ? weight->n : from + n_rows;
    const uint64_t row_bytes = ds_type_row_bytes(weight->format->type, weight->k);
    const struct ds_tensor *tensor = &matrices[matrix];
    struct repacker repacker = { .weight = weight,
                                 .format = weight->format,
                                 .traits = ds_type_traits(weight->format->type) };
    ds_cleanup(ds_free_p) uint8_t *scratch = NULL;

    if (gather) {
        uint8_t *to_rows = (uint8_t *) weight->rows.data + from * row_bytes;
        const void *rows = ds_tensor_rows(tensor, from, to - from, to_rows);

        if (rows != to_rows)
            memcpy(to_rows, rows, (to - from) * row_bytes);
        return true;
    }
    scratch = tensor->packed ? malloc(DS_PACKED_ROWS * row_bytes) : NULL;
    if (tensor->packed && !scratch)
        return false;
    set_codes(&repacker);
    repack_rows(&repacker, matrix, tensor, from, to, scratch);
    return true;
}

bool ds_weight_fill(struct ds_weight *weight, const struct ds_tensor *matrices, uint32_t piece)
{
    return fill(weight, matrices, piece, weight->gather);
}

int ds_weight_new(struct ds_weight **ret_weight, struct ds_arena *arena,
                  const struct ds_tensor *matrices, uint32_t n_matrices, bool gather)
{
    ds_cleanup(ds_weight_free_p) struct ds_weight *weight = NULL;
    int r = ds_weight_alloc(&weight, arena, matrices, n_matrices, gather);

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < ds_weight_n_pieces(weight); i++)
        if (!ds_weight_fill(weight, matrices, i))
            return -ENOMEM;
    *ret_weight = ds_steal(weight);
    return 0;
}

struct ds_weight *ds_weight_free(struct ds_weight *weight)
{
    if (!weight)
        return NULL;
    ds_arena_give_back(weight->arena, &weight->panels);
    ds_arena_give_back(weight->arena, &weight->rows);
    free(weight);
    return NULL;
}

void ds_weight_free_p(struct ds_weight **weight)
{
    *weight = ds_weight_free(*weight);
}

int ds_weight_prepare(struct ds_weight *weight)
{
    int r;

    if (weight->panels.data)
        return 0;
    r = take_panels(weight);
    for (uint32_t i = 0; i < ds_weight_n_pieces(weight) && r == 0; i++)
        (void) fill(weight, &weight->gathered, i, false); /* needs no memory: it is not packed */
    return r;
}

void ds_weight_row(const struct ds_weight *weight, uint32_t row, float *out)
{
    uint64_t row_bytes = ds_type_row_bytes(weight->format->type, weight->k);
    const uint8_t *data = weight->gathered.data;

    ds_type_traits(weight->format->type)->dequantise(data + row * row_bytes, out, weight->k);
}
