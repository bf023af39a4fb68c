/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/quant.h"

#include "engine/format/blocks.h"

static uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t) p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}

static float load_f16(const uint8_t *p)
{
    return ds_f16_to_f32((uint16_t) (p[0] | p[1] << 8));
}

/* --- conversions --- */

static float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float ds_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t) (half & 0x8000u) << 16;
    uint32_t rest = half & 0x7fffu;

    if (rest >= 0x7c00u) /* infinity, or a NaN with its payload */
        return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u)
        return float_of(sign | ((rest << 13) + (112u << 23)));
    /* Subnormal: rest * 2^-24, which binary32 holds exactly. */
    return float_of(sign | bits_of((float) rest * 0x1p-24f));
}

uint16_t ds_f32_to_f16(float value)
{
    uint32_t bits = bits_of(value);
    uint16_t sign = (uint16_t) (bits >> 16 & 0x8000u);
    uint32_t rest = bits & 0x7fffffffu;

    if (rest > 0x7f800000u) /* NaN: kept quiet, with the top of its payload */
        return (uint16_t) (sign | 0x7e00u | (rest >> 13 & 0x3ffu));
    if (rest >= 0x477ff000u) /* 65520 and beyond round to infinity */
        return sign | 0x7c00u;
    if (rest < 0x38800000u) /* below 2^-14: adding 0.5 leaves the multiple of 2^-24, rounded */
        return (uint16_t) (sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000u));
    return (uint16_t) (sign | (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13);
}

float ds_bf16_to_f32(uint16_t half)
{
    return float_of((uint32_t) half << 16);
}

uint16_t ds_f32_to_bf16(float value)
{
    uint32_t bits = bits_of(value);

    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t) (bits >> 16 | 0x40u);
    return (uint16_t) ((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* --- plain types --- */

static void dequantise_f32(const void *blocks, float *out, size_t n)
{
    memcpy(out, blocks, n * sizeof *out);
}

static void dequantise_f16(const void *blocks, float *out, size_t n)
{
    const uint8_t *p = blocks;

    for (size_t i = 0; i < n; i++)
        out[i] = load_f16(p + 2 * i);
}

static void dequantise_bf16(const void *blocks, float *out, size_t n)
{
    const uint8_t *p = blocks;

    for (size_t i = 0; i < n; i++)
        out[i] = ds_bf16_to_f32((uint16_t) (p[2 * i] | p[2 * i + 1] << 8));
}

/* --- blocks of 32: byte j holds element j in its low and element j + 16 in its high nibble --- */

static void dequantise_q4_0(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_Q4_0_BYTES, out += 32) {
        float d = load_f16(b);

        for (int j = 0; j < 16; j++) {
            out[j] = d * (float) ((b[2 + j] & 15) - 8);
            out[j + 16] = d * (float) ((b[2 + j] >> 4) - 8);
        }
    }
}

static void dequantise_q4_1(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_Q4_1_BYTES, out += 32) {
        float d = load_f16(b), m = load_f16(b + 2);

        for (int j = 0; j < 16; j++) {
            out[j] = d * (float) (b[4 + j] & 15) + m;
            out[j + 16] = d * (float) (b[4 + j] >> 4) + m;
        }
    }
}

static void dequantise_q5_0(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_Q5_0_BYTES, out += 32) {
        float d = load_f16(b);
        uint32_t high = load_u32(b + 2);

        for (int j = 0; j < 16; j++) {
            out[j] = d * (float) ((int) ((b[6 + j] & 15u) | (high >> j & 1u) << 4) - 16);
            out[j + 16] = d * (float) ((int) (b[6 + j] >> 4 | (high >> (j + 16) & 1u) << 4) - 16);
        }
    }
}

static void dequantise_q5_1(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_Q5_1_BYTES, out += 32) {
        float d = load_f16(b), m = load_f16(b + 2);
        uint32_t high = load_u32(b + 4);

        for (int j = 0; j < 16; j++) {
            out[j] = d * (float) ((b[8 + j] & 15u) | (high >> j & 1u) << 4) + m;
            out[j + 16] = d * (float) (b[8 + j] >> 4 | (high >> (j + 16) & 1u) << 4) + m;
        }
    }
}

static void dequantise_q8_0(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_Q8_0_BYTES, out += 32) {
        float d = load_f16(b);

        for (int j = 0; j < 32; j++)
            out[j] = d * (float) (int8_t) b[2 + j];
    }
}

/* --- superblocks of 256 --- */

/* The eight 6-bit (scale, minimum) pairs of Q4_K and Q5_K, packed into 12 bytes. */
static void unpack_scales(const uint8_t *s, unsigned j, unsigned *ret_scale, unsigned *ret_minimum)
{
    if (j < 4) {
        *ret_scale = s[j] & 63u;
        *ret_minimum = s[j + 4] & 63u;
    } else {
        *ret_scale = (s[j + 4] & 15u) | (unsigned) (s[j - 4] >> 6) << 4;
        *ret_minimum = (unsigned) (s[j + 4] >> 4) | (unsigned) (s[j] >> 6) << 4;
    }
}

static void dequantise_q4_k(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 256, b += DS_Q4_K_BYTES, out += 256) {
        float d = load_f16(b), dmin = load_f16(b + 2);

        for (unsigned j = 0; j < 8; j++) {
            const uint8_t *q = b + 16 + 32 * (j / 2); /* sub-blocks 2k, 2k + 1 share 32 bytes */
            unsigned scale, minimum;

            unpack_scales(b + 4, j, &scale, &minimum);
            for (unsigned l = 0; l < 32; l++)
                out[32 * j + l] =
                    d * (float) scale * (float) (q[l] >> 4 * (j & 1) & 15) - dmin * (float) minimum;
        }
    }
}

static void dequantise_q5_k(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 256, b += DS_Q5_K_BYTES, out += 256) {
        float d = load_f16(b), dmin = load_f16(b + 2);

        for (unsigned j = 0; j < 8; j++) {
            const uint8_t *q = b + 48 + 32 * (j / 2);
            unsigned scale, minimum;

            unpack_scales(b + 4, j, &scale, &minimum);
            for (unsigned l = 0; l < 32; l++) {
                unsigned v = (q[l] >> 4 * (j & 1) & 15u) | (b[16 + l] >> j & 1u) << 4;

                out[32 * j + l] = d * (float) scale * (float) v - dmin * (float) minimum;
            }
        }
    }
}

static void dequantise_q6_k(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 256, b += DS_Q6_K_BYTES, out += 256) {
        float d = load_f16(b + 208);

        for (unsigned e = 0; e < 256; e++) {
            unsigned half = e / 128, group = e % 128 / 32, l = e % 32;
            unsigned low = b[64 * half + 32 * (group & 1) + l] >> (group < 2 ? 0 : 4) & 15u;
            unsigned high = b[128 + 32 * half + l] >> 2 * group & 3u;

            out[e] = d * (float) (int8_t) b[192 + e / 16] * (float) ((int) (low | high << 4) - 32);
        }
    }
}

/* --- the table --- */

static const struct ds_type_traits traits[] = {
    [DS_TYPE_F32] = { "F32", 1, 4, dequantise_f32 },
    [DS_TYPE_F16] = { "F16", 1, 2, dequantise_f16 },
    [DS_TYPE_BF16] = { "BF16", 1, 2, dequantise_bf16 },
    [DS_TYPE_Q4_0] = { "Q4_0", 32, DS_Q4_0_BYTES, dequantise_q4_0 },
    [DS_TYPE_Q4_1] = { "Q4_1", 32, DS_Q4_1_BYTES, dequantise_q4_1 },
    [DS_TYPE_Q5_0] = { "Q5_0", 32, DS_Q5_0_BYTES, dequantise_q5_0 },
    [DS_TYPE_Q5_1] = { "Q5_1", 32, DS_Q5_1_BYTES, dequantise_q5_1 },
    [DS_TYPE_Q8_0] = { "Q8_0", 32, DS_Q8_0_BYTES, dequantise_q8_0 },
    [DS_TYPE_Q4_K] = { "Q4_K", 256, DS_Q4_K_BYTES, dequantise_q4_k },
    [DS_TYPE_Q5_K] = { "Q5_K", 256, DS_Q5_K_BYTES, dequantise_q5_k },
    [DS_TYPE_Q6_K] = { "Q6_K", 256, DS_Q6_K_BYTES, dequantise_q6_k },
};

/* Every number ggml has given out, so that an error can call a type by its name. */
static const char *const names[] = {
    [0] = "F32",
    [1] = "F16",
    [2] = "Q4_0",
    [3] = "Q4_1",
    [6] = "Q5_0",
    [7] = "Q5_1",
    [8] = "Q8_0",
    [9] = "Q8_1",
    [10] = "Q2_K",
    [11] = "Q3_K",
    [12] = "Q4_K",
    [13] = "Q5_K",
    [14] = "Q6_K",
    [15] = "Q8_K",
    [16] = "IQ2_XXS",
    [17] = "IQ2_XS",
    [18] = "IQ3_XXS",
    [19] = "IQ1_S",
    [20] = "IQ4_NL",
    [21] = "IQ3_S",
    [22] = "IQ2_S",
    [23] = "IQ4_XS",
    [24] = "I8",
    [25] = "I16",
    [26] = "I32",
    [27] = "I64",
    [28] = "F64",
    [29] = "IQ1_M",
    [30] = "BF16",
    [34] = "TQ1_0",
    [35] = "TQ2_0",
    [39] = "MXFP4",
    [40] = "NVFP4",
    [41] = "Q1_0",
    [42] = "Q2_0",
    [4] = "Q4_2 (retired)",
    [5] = "Q4_3 (retired)",
    [31] = "Q4_0_4_4 (retired)",
    [32] = "Q4_0_4_8 (retired)",
    [33] = "Q4_0_8_8 (retired)",
    [36] = "IQ4_NL_4_4 (retired)",
    [37] = "IQ4_NL_4_8 (retired)",
    [38] = "IQ4_NL_8_8 (retired)",
};

const struct ds_type_traits *ds_type_traits(uint32_t type)
{
    if (type >= sizeof traits / sizeof traits[0] || !traits[type].name)
        return NULL;
    return &traits[type];
}

const char *ds_type_name(uint32_t type, char buffer[24])
{
    if (type < sizeof names / sizeof names[0] && names[type])
        return names[type];
    (void) snprintf(buffer, 24, "type %u", type);
    return buffer;
}

uint64_t ds_type_row_bytes(uint32_t type, uint64_t n)
{
    const struct ds_type_traits *t = ds_type_traits(type);

    if (!t || n % t->block_elements != 0)
        return 0;
    return n / t->block_elements * t->block_bytes;
}
