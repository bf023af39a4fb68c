/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/packed.h"

#include "engine/format/blocks.h"
#include "engine/format/quant.h"

#define FP8_COLUMNS DS_F8_ELEMENTS /* of a block that shares a scale */

/* Output o of a word's eight stands in nibble nibble_of[o]. */
static const uint8_t nibble_of[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };

static const struct ds_packed_traits forms[] = {
    [DS_PACKED_FP8] = { "FP8",
                        "E4M3, a scale for each 128 columns of some rows (128)",
                        { { "rows of a multiple of 128", DS_TYPE_F8, "none" },
                          { "other rows", DS_TYPE_BF16, "2^-9" } } },
    [DS_PACKED_GPTQ] = { "GPTQ",
                         "gptq and gptq_v2, 4 and 8 bits, in order or act-order",
                         { { "4 bits, every zero 8", DS_TYPE_Q4_0, "none" },
                           { "4 bits, other zeros", DS_TYPE_Q4_1, "of the minimum, 2^-11" },
                           { "4 bits, 32 neighbours in several groups", DS_TYPE_Q8_0,
                             "1/254 of the largest of 32" },
                           { "8 bits, every zero 128, in order", DS_TYPE_Q8_0, "none" },
                           { "other 8 bits", DS_TYPE_F16, "2^-11" },
                           { "rows of no multiple of 32", DS_TYPE_F32, "none" } } },
    [DS_PACKED_AWQ] = { "AWQ",
                        "gemm, 4 bits",
                        { { "every zero 8", DS_TYPE_Q4_0, "none" },
                          { "other zeros", DS_TYPE_Q4_1, "of the minimum, 2^-11" },
                          { "32 neighbours in several groups", DS_TYPE_Q8_0,
                            "1/254 of the largest of 32" },
                          { "rows of no multiple of 32", DS_TYPE_F32, "none" } } },
};

const struct ds_packed_traits *ds_packed_traits(unsigned form)
{
    return form < sizeof forms / sizeof forms[0] ? &forms[form] : NULL;
}

static uint32_t word_at(const uint8_t *words, uint64_t i)
{
    uint32_t word;

    memcpy(&word, words + 4 * i, sizeof word);
    return word;
}

static float scale_at(const struct ds_packed *packed, uint64_t i)
{
    uint16_t half;
    float value;

    if (packed->scale_type == DS_TYPE_F32) {
        memcpy(&value, packed->scales + 4 * i, sizeof value);
        return value;
    }
    memcpy(&half, packed->scales + 2 * i, sizeof half);
    return packed->scale_type == DS_TYPE_F16 ? ds_f16_to_f32(half) : ds_bf16_to_f32(half);
}

static uint64_t group_said(const struct ds_packed *packed, uint64_t k)
{
    return packed->groups ? word_at(packed->groups, k) : k / packed->group_size;
}

/* The groups were looked at when the file was opened, but whoever has it may write to it since. */
static uint64_t group_of(const struct ds_packed *packed, uint64_t k)
{
    uint64_t group = group_said(packed, k);

    return group < packed->n_groups ? group : packed->n_groups - 1;
}

static unsigned quant_at(const struct ds_packed *packed, uint64_t n_outputs, uint64_t row,
                         uint64_t k)
{
    unsigned each = 32 / packed->bits, mask = (1u << packed->bits) - 1;

    if (packed->form == DS_PACKED_AWQ)
        return word_at(packed->weights, k * (n_outputs / 8) + row / 8) >> 4 * nibble_of[row % 8] &
               15;
    return word_at(packed->weights, k / each * n_outputs + row) >> packed->bits * (k % each) & mask;
}

static unsigned zero_at(const struct ds_packed *packed, uint64_t n_outputs, uint64_t row,
                        uint64_t group)
{
    unsigned each = 32 / packed->bits, mask = (1u << packed->bits) - 1;
    uint32_t word = word_at(packed->zeros, group * (n_outputs / each) + row / each);

    if (packed->form == DS_PACKED_AWQ)
        return word >> 4 * nibble_of[row % 8] & 15;
    return (word >> packed->bits * (row % each) & mask) + packed->zeros_less_one;
}

/* --- which block type --- */

/* Do 32 neighbours always share a scale? -EBADMSG where a group does not exist. */
static int look_at_groups(const struct ds_packed *packed, uint64_t k, bool *ret_shared,
                          uint64_t *ret_bad)
{
    *ret_shared = packed->groups ? true : packed->group_size % 32 == 0;
    for (uint64_t i = 0; packed->groups && i < k; i++) {
        if (group_said(packed, i) >= packed->n_groups) {
            *ret_bad = i;
            return -EBADMSG;
        }
        if (group_of(packed, i) != group_of(packed, i / 32 * 32))
            *ret_shared = false;
    }
    return 0;
}

static bool zeros_are(const struct ds_packed *packed, uint64_t n, unsigned zero)
{
    for (uint64_t group = 0; group < packed->n_groups; group++)
        for (uint64_t row = 0; row < n; row++)
            if (zero_at(packed, n, row, group) != zero)
                return false;
    return true;
}

int ds_packed_choose(const struct ds_packed *packed, uint64_t k, uint64_t n, uint32_t *ret_type,
                     uint64_t *ret_bad)
{
    bool shared;
    int r;

    if (packed->form == DS_PACKED_FP8) {
        *ret_type = k % FP8_COLUMNS == 0 ? DS_TYPE_F8 : DS_TYPE_BF16;
        return 0;
    }
    r = look_at_groups(packed, k, &shared, ret_bad);
    if (r < 0)
        return r;
    if (k % 32 != 0)
        *ret_type = DS_TYPE_F32;
    else if (packed->bits == 8)
        *ret_type = shared && zeros_are(packed, n, 128) ? DS_TYPE_Q8_0 : DS_TYPE_F16;
    else if (!shared)
        *ret_type = DS_TYPE_Q8_0;
    else
        *ret_type = zeros_are(packed, n, 8) ? DS_TYPE_Q4_0 : DS_TYPE_Q4_1;
    return 0;
}

/* --- floats --- */

/* Inputs first .. + n of a row. */
static void packed_floats(const struct ds_tensor *tensor, uint64_t row, uint64_t first, uint64_t n,
                          float *out)
{
    const struct ds_packed *packed = tensor->packed;
    uint64_t k = tensor->dims[0], n_outputs = tensor->dims[1];
    uint64_t n_blocks = (k + FP8_COLUMNS - 1) / FP8_COLUMNS;

    for (uint64_t i = first; i < first + n; i++) {
        if (packed->form == DS_PACKED_FP8) {
            uint64_t block = row / packed->block_rows * n_blocks + i / FP8_COLUMNS;

            *out++ = ds_f8_e4m3_to_f32(packed->weights[row * k + i]) * scale_at(packed, block);
        } else {
            uint64_t group = group_of(packed, i);
            int q = (int) quant_at(packed, n_outputs, row, i) -
                    (int) zero_at(packed, n_outputs, row, group);

            *out++ = scale_at(packed, group * n_outputs + row) * (float) q;
        }
    }
}

/* --- blocks --- */

static void put_f16(uint8_t *at, float value)
{
    uint16_t half = ds_f32_to_f16(value);

    memcpy(at, &half, sizeof half);
}

/* Block `block` of 32 inputs of a row, as Q4_0, Q4_1 or Q8_0 with the same q. */
static void small_block(const struct ds_tensor *tensor, uint64_t row, uint64_t block, uint8_t *out)
{
    const struct ds_packed *packed = tensor->packed;
    uint64_t n = tensor->dims[1], group = group_of(packed, 32 * block);
    float scale = scale_at(packed, group * n + row);
    unsigned zero = zero_at(packed, n, row, group);
    uint8_t *q = out + 2;

    put_f16(out, scale);
    if (tensor->type == DS_TYPE_Q8_0) {
        for (unsigned j = 0; j < 32; j++)
            q[j] = (uint8_t) (quant_at(packed, n, row, 32 * block + j) - zero);
        return;
    }
    if (tensor->type == DS_TYPE_Q4_1) {
        put_f16(q, -scale * (float) zero);
        q += 2;
    }
    for (unsigned j = 0; j < 16; j++)
        q[j] = (uint8_t) (quant_at(packed, n, row, 32 * block + j) |
                          quant_at(packed, n, row, 32 * block + j + 16) << 4);
}

/* Does the block type keep q as it is? */
static bool keeps_quants(const struct ds_tensor *tensor)
{
    return tensor->type == DS_TYPE_Q4_0 || tensor->type == DS_TYPE_Q4_1 ||
           (tensor->type == DS_TYPE_Q8_0 && tensor->packed->bits == 8);
}

/* The part of a row that is one block of its type, or (F16, F32) up to 32 elements. */
static void packed_block(const struct ds_tensor *tensor, uint64_t row, uint64_t block,
                         uint8_t *blocks)
{
    const struct ds_type_traits *traits = ds_type_traits(tensor->type);
    uint64_t first = 32 * block, n = tensor->dims[0] - first;
    float values[32];

    if (keeps_quants(tensor)) {
        small_block(tensor, row, block, blocks + block * traits->block_bytes);
    } else {
        n = n < 32 ? n : 32;
        packed_floats(tensor, row, first, n, values);
        (void) ds_quantise(tensor->type, values, blocks + ds_type_row_bytes(tensor->type, first),
                           n);
    }
}

/* A row of FP8 with its scales put before each 128. */
static void f8_row(const struct ds_tensor *tensor, uint64_t row, uint8_t *out)
{
    const struct ds_packed *packed = tensor->packed;
    const uint64_t n_blocks = tensor->dims[0] / DS_F8_ELEMENTS;

    for (uint64_t block = 0; block < n_blocks; block++, out += DS_F8_BYTES) {
        float scale = scale_at(packed, row / packed->block_rows * n_blocks + block);

        memcpy(out, &scale, sizeof scale);
        memcpy(out + 4, packed->weights + row * tensor->dims[0] + block * DS_F8_ELEMENTS,
               DS_F8_ELEMENTS);
    }
}

const void *ds_tensor_rows(const struct ds_tensor *tensor, uint64_t row, uint64_t n_rows,
                           void *buffer)
{
    uint64_t row_bytes = ds_type_row_bytes(tensor->type, tensor->dims[0]);
    uint64_t n_blocks = (tensor->dims[0] + 31) / 32;
    uint8_t *out = buffer;

    if (!tensor->packed)
        return (const uint8_t *) tensor->data + row * row_bytes;
    for (uint64_t i = 0; i < n_rows && tensor->type == DS_TYPE_F8; i++)
        f8_row(tensor, row + i, out + i * row_bytes);
    if (tensor->type == DS_TYPE_F8)
        return buffer;
    /* Neighbouring outputs lie in one cache line in all forms but FP8: blocks outside, rows inside.
     */
    for (uint64_t block = 0; block < n_blocks; block++)
        for (uint64_t i = 0; i < n_rows; i++)
            packed_block(tensor, row + i, block, out + i * row_bytes);
    return buffer;
}

void ds_tensor_row_floats(const struct ds_tensor *tensor, uint64_t row, float *out)
{
    if (tensor->packed)
        packed_floats(tensor, row, 0, tensor->dims[0], out);
    else
        ds_type_traits(tensor->type)
            ->dequantise(ds_tensor_rows(tensor, row, 1, NULL), out, tensor->dims[0]);
}
