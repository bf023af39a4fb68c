/* SPDX-License-Identifier: Apache-2.0 */
/* Repacking: the file's rows of blocks into panels (panel.h). Block layouts: ggml. */
#include "engine/cpu/panel.h"
#include "engine/format/quant.h"
#include "proto/base.h"

static const struct ds_panel_format formats[] = {
    { DS_TYPE_F32, 0, 0, 64, 1, 0, DS_SCALE_NONE },
    { DS_TYPE_F16, 0, 0, 32, 1, 0, DS_SCALE_NONE },
    { DS_TYPE_BF16, 0, 0, 32, 1, 0, DS_SCALE_NONE },
    { DS_TYPE_Q4_0, 4, 8, 256, 1, 32, DS_SCALE_D },
    { DS_TYPE_Q4_1, 4, 0, 256, 1, 64, DS_SCALE_DM },
    { DS_TYPE_Q5_0, 5, 16, 320, 1, 32, DS_SCALE_D },
    { DS_TYPE_Q5_1, 5, 0, 320, 1, 64, DS_SCALE_DM },
    { DS_TYPE_Q8_0, 8, 128, 512, 1, 32, DS_SCALE_D },
    { DS_TYPE_Q4_K, 4, 0, 256, 8, 320, DS_SCALE_K },
    { DS_TYPE_Q5_K, 5, 0, 320, 8, 320, DS_SCALE_K },
    { DS_TYPE_Q6_K, 6, 32, 384, 8, 288, DS_SCALE_6K },
};

const struct ds_panel_format *ds_panel_format(uint32_t type)
{
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].type == type)
            return &formats[i];
    return NULL;
}

/* Where one row's part of a scale group goes: scales + 2 r for the first f16, and so on. */
struct target {
    uint8_t *scales; /* of the group */
    uint8_t *quants; /* of the group's first unit */
    uint16_t unit_bytes;
    unsigned row; /* 0..15 */
};

/* Stores q of element k of unit number `unit` of the group; units start as zeros. */
static void put_quant(const struct target *target, unsigned bits, unsigned unit, unsigned k,
                      unsigned q)
{
    uint8_t *at = target->quants + (size_t) unit * target->unit_bytes;
    unsigned group = k / 4, byte = 4 * target->row + k % 4;

    if (bits == 8) {
        at[64 * group + byte] = (uint8_t) q;
        return;
    }
    at[64 * (group / 2) + byte] |= (uint8_t) ((q & 15) << 4 * (group % 2));
    if (bits == 5)
        at[256 + byte] |= (uint8_t) ((q >> 4) << group);
    if (bits == 6)
        at[256 + 64 * (group / 4) + byte] |= (uint8_t) ((q >> 4) << 2 * (group % 4));
}

static void put_f16(const struct target *target, unsigned slot, const uint8_t *f16)
{
    memcpy(target->scales + 32 * slot + 2 * target->row, f16, 2);
}

static unsigned nibble(const uint8_t *bytes, unsigned k) /* of the 32-element types */
{
    return bytes[k % 16] >> 4 * (k / 16) & 15;
}

static void repack_simple(const struct target *target, uint32_t type, const uint8_t *block)
{
    bool minimum = type == DS_TYPE_Q4_1 || type == DS_TYPE_Q5_1;
    bool five = type == DS_TYPE_Q5_0 || type == DS_TYPE_Q5_1;
    const uint8_t *at = block + 2;
    uint32_t fifth = 0;

    put_f16(target, 0, block);
    if (minimum) {
        put_f16(target, 1, at);
        at += 2;
    }
    if (five) {
        memcpy(&fifth, at, 4);
        at += 4;
    }
    for (unsigned k = 0; k < 32; k++) {
        if (type == DS_TYPE_Q8_0)
            put_quant(target, 8, 0, k, at[k] ^ 0x80u);
        else if (five)
            put_quant(target, 5, 0, k, nibble(at, k) | (fifth >> k & 1) << 4);
        else
            put_quant(target, 4, 0, k, nibble(at, k));
    }
}

/* Q4_K and Q5_K: six-bit scales and minima in twelve bytes. */
static void repack_45k(const struct target *target, uint32_t type, const uint8_t *block)
{
    const uint8_t *packed = block + 4, *fifth = block + 16;
    const uint8_t *low = type == DS_TYPE_Q4_K ? block + 16 : block + 48;

    put_f16(target, 0, block);
    put_f16(target, 1, block + 2);
    for (unsigned j = 0; j < 8; j++) {
        uint8_t *scales = target->scales + 64 + 32 * j + target->row;

        if (j < 4) {
            scales[0] = packed[j] & 63;
            scales[16] = packed[j + 4] & 63;
        } else {
            scales[0] = (uint8_t) ((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4);
            scales[16] = (uint8_t) (packed[j + 4] >> 4 | packed[j] >> 6 << 4);
        }
        for (unsigned k = 0; k < 32; k++) {
            unsigned q = low[32 * (j / 2) + k] >> 4 * (j % 2) & 15;

            if (type == DS_TYPE_Q4_K)
                put_quant(target, 4, j, k, q);
            else
                put_quant(target, 5, j, k, q | (fifth[k] >> j & 1u) << 4);
        }
    }
}

static void repack_6k(const struct target *target, const uint8_t *block)
{
    put_f16(target, 0, block + 208);
    for (unsigned j = 0; j < 8; j++) {
        const uint8_t *low = block + 64 * (j / 4) + 32 * (j % 2);
        const uint8_t *high = block + 128 + 32 * (j / 4);

        target->scales[32 + 32 * j + target->row] = block[192 + 2 * j];
        target->scales[48 + 32 * j + target->row] = block[192 + 2 * j + 1];
        for (unsigned k = 0; k < 32; k++) {
            unsigned q = low[k] >> 4 * (j % 4 / 2) & 15;

            put_quant(target, 6, j, k, q | (high[k] >> 2 * (j % 4) & 3u) << 4);
        }
    }
}

static void repack_row(struct ds_weight *weight, uint32_t row, const uint8_t *blocks)
{
    const struct ds_panel_format *format = weight->format;
    uint8_t *panel = (uint8_t *) weight->panels.data + row / DS_PANEL_ROWS * weight->panel_bytes;
    const struct ds_type_traits *traits = ds_type_traits(format->type);
    unsigned lane = row % DS_PANEL_ROWS;

    if (format->bits == 0) {
        size_t size = format->unit_bytes / DS_PANEL_ROWS;

        for (uint32_t k = 0; k < weight->k; k++)
            memcpy(panel + ((size_t) k * DS_PANEL_ROWS + lane) * size, blocks + k * size, size);
        return;
    }
    for (uint32_t group = 0; group < weight->k / traits->block_elements; group++) {
        const uint8_t *block = blocks + (size_t) group * traits->block_bytes;
        struct target target = {
            .scales = panel + (size_t) group * format->group_bytes,
            .quants = panel + weight->scale_bytes +
                      (size_t) group * format->group_units * format->unit_bytes,
            .unit_bytes = format->unit_bytes,
            .row = lane,
        };

        if (format->scale == DS_SCALE_K)
            repack_45k(&target, format->type, block);
        else if (format->scale == DS_SCALE_6K)
            repack_6k(&target, block);
        else
            repack_simple(&target, format->type, block);
    }
}

static int repack(struct ds_weight *weight, const struct ds_tensor *matrices)
{
    uint64_t row_bytes = ds_type_row_bytes(weight->format->type, weight->k);
    int r;

    r = ds_arena_take(weight->arena, weight->panel_bytes * weight->n_panels * weight->n_matrices,
                      &weight->panels);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < weight->n_matrices; i++)
        for (uint32_t row = 0; row < weight->n; row++)
            repack_row(weight, i * weight->n_panels * DS_PANEL_ROWS + row,
                       (const uint8_t *) matrices[i].data + row * row_bytes);
    return 0;
}

static int set_shape(struct ds_weight *weight, const struct ds_tensor *tensor)
{
    const struct ds_panel_format *format = ds_panel_format(tensor->type);
    uint64_t row_bytes = ds_type_row_bytes(tensor->type, tensor->dims[0]);
    uint64_t n = tensor->dims[1] * tensor->dims[2] * tensor->dims[3];

    if (!format || row_bytes == 0 || n == 0 || n > UINT32_MAX / 2 || tensor->dims[0] > INT32_MAX)
        return -ENOTSUP;
    if (tensor->size_bytes / row_bytes < n)
        return -EINVAL;
    weight->format = format;
    weight->k = (uint32_t) tensor->dims[0];
    weight->n = (uint32_t) n;
    weight->n_panels = (weight->n + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS;
    weight->n_matrices = 1;
    if (format->bits) {
        uint32_t n_units = weight->k / DS_UNIT_K;

        weight->scale_bytes =
            ((size_t) n_units / format->group_units * format->group_bytes + 63) / 64 * 64;
        weight->panel_bytes = weight->scale_bytes + (size_t) n_units * format->unit_bytes;
    } else {
        weight->panel_bytes = ((size_t) weight->k * format->unit_bytes + 63) / 64 * 64;
    }
    return 0;
}

int ds_weight_new(struct ds_weight **ret_weight, struct ds_arena *arena,
                  const struct ds_tensor *tensor, bool gather)
{
    ds_cleanup(ds_weight_free_p) struct ds_weight *weight = calloc(1, sizeof *weight);
    int r;

    if (!weight)
        return -ENOMEM;
    weight->arena = arena;
    r = set_shape(weight, tensor);
    if (r < 0)
        return r;
    if (gather) {
        weight->tensor_copy = *tensor;
        weight->tensor = &weight->tensor_copy;
    } else {
        r = repack(weight, tensor);
        if (r < 0)
            return r;
    }
    *ret_weight = ds_steal(weight);
    return 0;
}

int ds_weight_new_stack(struct ds_weight **ret_weight, struct ds_arena *arena,
                        const struct ds_tensor *matrices, uint32_t n_matrices)
{
    ds_cleanup(ds_weight_free_p) struct ds_weight *weight = calloc(1, sizeof *weight);
    int r;

    if (!weight)
        return -ENOMEM;
    if (n_matrices == 0)
        return -EINVAL;
    weight->arena = arena;
    for (uint32_t i = 0; i < n_matrices; i++) {
        if (matrices[i].type != matrices->type || matrices[i].dims[0] != matrices->dims[0] ||
            matrices[i].dims[1] != matrices->dims[1])
            return -EINVAL;
        r = set_shape(weight, &matrices[i]);
        if (r < 0)
            return r;
    }
    if ((uint64_t) n_matrices * weight->n_panels * DS_PANEL_ROWS > UINT32_MAX / 2)
        return -ENOTSUP;
    weight->n_matrices = n_matrices;
    r = repack(weight, matrices);
    if (r < 0)
        return r;
    *ret_weight = ds_steal(weight);
    return 0;
}

struct ds_weight *ds_weight_free(struct ds_weight *weight)
{
    if (!weight)
        return NULL;
    ds_arena_give_back(weight->arena, &weight->panels);
    free(weight);
    return NULL;
}

void ds_weight_free_p(struct ds_weight **weight)
{
    *weight = ds_weight_free(*weight);
}

int ds_weight_prepare(struct ds_weight *weight)
{
    if (weight->panels.data)
        return 0;
    return repack(weight, weight->tensor);
}

void ds_weight_row(const struct ds_weight *weight, uint32_t row, float *out)
{
    uint64_t row_bytes = ds_type_row_bytes(weight->format->type, weight->k);
    const uint8_t *data = weight->tensor->data;

    ds_type_traits(weight->format->type)->dequantise(data + row * row_bytes, out, weight->k);
}
