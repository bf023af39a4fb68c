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

float ds_f8_e4m3_to_f32(uint8_t bits)
{
    /* As f16, whose exponent has a bias of 15 instead of 7: right but for a factor, and for the
     * one code that is no number. */
    uint16_t half = (uint16_t) ((bits & 0x80u) << 8 | (bits & 0x7fu) << 7);

    return (bits & 0x7f) == 0x7f ? float_of(0x7fc00000u) : ds_f16_to_f32(half) * 256.0f;
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

float ds_e8m0_half(uint8_t exponent)
{
    /* 2^(e - 128): a normal number from e = 2 on */
    return float_of(exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23);
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

static void dequantise_iq4_nl(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_IQ4_NL_BYTES, out += 32) {
        float d = load_f16(b);

        for (int j = 0; j < 16; j++) {
            out[j] = d * (float) ds_iq4_values[b[2 + j] & 15];
            out[j + 16] = d * (float) ds_iq4_values[b[2 + j] >> 4];
        }
    }
}

static void dequantise_mxfp4(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += 32, b += DS_MXFP4_BYTES, out += 32) {
        float d = ds_e8m0_half(b[0]);

        for (int j = 0; j < 16; j++) {
            out[j] = d * (float) ds_mxfp4_values[b[1 + j] & 15];
            out[j + 16] = d * (float) ds_mxfp4_values[b[1 + j] >> 4];
        }
    }
}

static void dequantise_f8(const void *blocks, float *out, size_t n)
{
    const uint8_t *b = blocks;

    for (size_t i = 0; i < n; i += DS_F8_ELEMENTS, b += DS_F8_BYTES, out += DS_F8_ELEMENTS) {
        float d = float_of(load_u32(b));

        for (unsigned j = 0; j < DS_F8_ELEMENTS; j++)
            out[j] = ds_f8_e4m3_to_f32(b[4 + j]) * d;
    }
}

/* --- superblocks of 256 --- */

static void dequantise_superblocks(const struct ds_type_traits *type, const uint8_t *b, float *out,
                                   size_t n)
{
    struct ds_superblock s;

    for (size_t i = 0; i < n; i += DS_SUPERBLOCK, b += type->block_bytes, out += DS_SUPERBLOCK) {
        float d, dmin;

        type->unpack(b, &s);
        d = ds_f16_to_f32(s.d) * type->factor;
        dmin = ds_f16_to_f32(s.dmin) * type->factor;
        for (unsigned j = 0; j < 16; j++) {
            float scale = d * (float) s.scale[j], min = dmin * (float) s.min[j];

            for (unsigned k = 16 * j; k < 16 * j + 16; k++)
                out[k] = scale * (float) s.value[k] - min;
        }
    }
}

static const struct ds_type_traits traits[DS_TYPE_END];

#define SUPERBLOCK(type, name)                                                                     \
    static void dequantise_##name(const void *blocks, float *out, size_t n)                        \
    {                                                                                              \
        dequantise_superblocks(&traits[type], blocks, out, n);                                     \
    }
SUPERBLOCK(DS_TYPE_Q2_K, q2_k)
SUPERBLOCK(DS_TYPE_Q3_K, q3_k)
SUPERBLOCK(DS_TYPE_Q4_K, q4_k)
SUPERBLOCK(DS_TYPE_Q5_K, q5_k)
SUPERBLOCK(DS_TYPE_Q6_K, q6_k)
SUPERBLOCK(DS_TYPE_IQ4_XS, iq4_xs)
SUPERBLOCK(DS_TYPE_TQ1_0, tq1_0)
SUPERBLOCK(DS_TYPE_TQ2_0, tq2_0)
SUPERBLOCK(DS_TYPE_IQ2_XXS, iq2_xxs)
SUPERBLOCK(DS_TYPE_IQ2_XS, iq2_xs)
SUPERBLOCK(DS_TYPE_IQ2_S, iq2_s)
SUPERBLOCK(DS_TYPE_IQ3_XXS, iq3_xxs)
SUPERBLOCK(DS_TYPE_IQ3_S, iq3_s)
SUPERBLOCK(DS_TYPE_IQ1_S, iq1_s)
SUPERBLOCK(DS_TYPE_IQ1_M, iq1_m)
#undef SUPERBLOCK

/* --- the table --- */

/* The one description of every type that can be read. */
static const struct ds_type_traits traits[DS_TYPE_END] = {
    [DS_TYPE_F32] = { "F32", 1, 4, dequantise_f32, NULL, 1 },
    [DS_TYPE_F16] = { "F16", 1, 2, dequantise_f16, NULL, 1 },
    [DS_TYPE_BF16] = { "BF16", 1, 2, dequantise_bf16, NULL, 1 },
    [DS_TYPE_Q4_0] = { "Q4_0", 32, DS_Q4_0_BYTES, dequantise_q4_0, NULL, 1 },
    [DS_TYPE_Q4_1] = { "Q4_1", 32, DS_Q4_1_BYTES, dequantise_q4_1, NULL, 1 },
    [DS_TYPE_Q5_0] = { "Q5_0", 32, DS_Q5_0_BYTES, dequantise_q5_0, NULL, 1 },
    [DS_TYPE_Q5_1] = { "Q5_1", 32, DS_Q5_1_BYTES, dequantise_q5_1, NULL, 1 },
    [DS_TYPE_Q8_0] = { "Q8_0", 32, DS_Q8_0_BYTES, dequantise_q8_0, NULL, 1 },
    [DS_TYPE_IQ4_NL] = { "IQ4_NL", 32, DS_IQ4_NL_BYTES, dequantise_iq4_nl, NULL, 1 },
    [DS_TYPE_MXFP4] = { "MXFP4", 32, DS_MXFP4_BYTES, dequantise_mxfp4, NULL, 1 },
    [DS_TYPE_F8] = { "F8_E4M3", DS_F8_ELEMENTS, DS_F8_BYTES, dequantise_f8, NULL, 1 },

#define SUPERBLOCK(TYPE, name, factor)                                                             \
    [DS_TYPE_##                                                                                    \
        TYPE] = { #TYPE, DS_SUPERBLOCK, DS_##TYPE##_BYTES, dequantise_##name, ds_unpack_##name,    \
                  factor }
    SUPERBLOCK(Q2_K, q2_k, 1),
    SUPERBLOCK(Q3_K, q3_k, 1),
    SUPERBLOCK(Q4_K, q4_k, 1),
    SUPERBLOCK(Q5_K, q5_k, 1),
    SUPERBLOCK(Q6_K, q6_k, 1),
    SUPERBLOCK(IQ4_XS, iq4_xs, 1),
    SUPERBLOCK(TQ1_0, tq1_0, 1),
    SUPERBLOCK(TQ2_0, tq2_0, 1),
    SUPERBLOCK(IQ2_XXS, iq2_xxs, 0.125f),
    SUPERBLOCK(IQ2_XS, iq2_xs, 0.125f),
    SUPERBLOCK(IQ2_S, iq2_s, 0.125f),
    SUPERBLOCK(IQ3_XXS, iq3_xxs, 0.25f),
    SUPERBLOCK(IQ3_S, iq3_s, 1),
    SUPERBLOCK(IQ1_S, iq1_s, 0.125f),
    SUPERBLOCK(IQ1_M, iq1_m, 0.125f),
#undef SUPERBLOCK
};

const struct ds_type_traits *ds_type_traits(uint32_t type)
{
    if (type >= DS_TYPE_END || !traits[type].name)
        return NULL;
    return &traits[type];
}

uint64_t ds_type_row_bytes(uint32_t type, uint64_t n)
{
    const struct ds_type_traits *t = ds_type_traits(type);

    if (!t || n % t->block_elements != 0)
        return 0;
    return n / t->block_elements * t->block_bytes;
}
