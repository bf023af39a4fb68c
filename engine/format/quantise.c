/* SPDX-License-Identifier: Apache-2.0 */
/* Plain quantisers: the scale comes from the extremes of the block, nothing is searched. Blocks are
 * laid out as blocks.h draws them. */
#include <math.h>

#include "engine/format/blocks.h"
#include "engine/format/quant.h"

static void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t) v;
    p[1] = (uint8_t) (v >> 8);
}

/* Stores d and returns what a reader will see, so that rounding uses the stored scale. */
static float store_f16(uint8_t *p, float d)
{
    uint16_t half = ds_f32_to_f16(d);

    store_u16(p, half);
    return ds_f16_to_f32(half);
}

/* x / d to the nearest integer in low..high; 0 (or the nearest bound) where d is 0. */
static int nearest(float x, float d, int low, int high)
{
    float q = d != 0.0f ? roundf(x / d) : 0.0f;

    if (!(q >= (float) low))
        return low;
    return q > (float) high ? high : (int) q;
}

static float largest_signed(const float *x, unsigned n)
{
    float best = 0.0f;

    for (unsigned i = 0; i < n; i++)
        best = fabsf(x[i]) > fabsf(best) ? x[i] : best;
    return best;
}

static void extremes(const float *x, unsigned n, float *ret_low, float *ret_high)
{
    float low = x[0], high = x[0];

    for (unsigned i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    *ret_low = low;
    *ret_high = high;
}

/* Nibbles of one 32-element block, and its fifth bits in *high. */
static void pack_32(const uint8_t n[32], uint8_t *qs, uint8_t *qh)
{
    uint32_t high = 0;

    for (unsigned j = 0; j < 16; j++)
        qs[j] = (uint8_t) ((n[j] & 15) | (n[j + 16] & 15) << 4);
    for (unsigned j = 0; j < 32; j++)
        high |= (uint32_t) (n[j] >> 4) << j;
    for (unsigned j = 0; qh && j < 4; j++)
        qh[j] = (uint8_t) (high >> 8 * j);
}

static void quantise_q4_0(const float *x, uint8_t *b)
{
    float d = store_f16(b, largest_signed(x, 32) / -8.0f);
    uint8_t n[32];

    for (unsigned j = 0; j < 32; j++)
        n[j] = (uint8_t) (nearest(x[j], d, -8, 7) + 8);
    pack_32(n, b + 2, NULL);
}

static void quantise_q5_0(const float *x, uint8_t *b)
{
    float d = store_f16(b, largest_signed(x, 32) / -16.0f);
    uint8_t n[32];

    for (unsigned j = 0; j < 32; j++)
        n[j] = (uint8_t) (nearest(x[j], d, -16, 15) + 16);
    pack_32(n, b + 6, b + 2);
}

static void quantise_q4_1(const float *x, uint8_t *b)
{
    float low, high, d, m;
    uint8_t n[32];

    extremes(x, 32, &low, &high);
    d = store_f16(b, (high - low) / 15.0f);
    m = store_f16(b + 2, low);
    for (unsigned j = 0; j < 32; j++)
        n[j] = (uint8_t) nearest(x[j] - m, d, 0, 15);
    pack_32(n, b + 4, NULL);
}

static void quantise_q5_1(const float *x, uint8_t *b)
{
    float low, high, d, m;
    uint8_t n[32];

    extremes(x, 32, &low, &high);
    d = store_f16(b, (high - low) / 31.0f);
    m = store_f16(b + 2, low);
    for (unsigned j = 0; j < 32; j++)
        n[j] = (uint8_t) nearest(x[j] - m, d, 0, 31);
    pack_32(n, b + 8, b + 4);
}

static void quantise_q8_0(const float *x, uint8_t *b)
{
    float d = store_f16(b, fabsf(largest_signed(x, 32)) / 127.0f);

    for (unsigned j = 0; j < 32; j++)
        b[2 + j] = (uint8_t) (int8_t) nearest(x[j], d, -127, 127);
}

/* Scales and minima of Q4_K and Q5_K: each sub-block of 32 is n * scale - minimum with both >= 0;
 * d and dmin turn them into 6-bit integers. levels = largest n. Leaves n per element. */
static void quantise_scaled(const float *x, uint8_t *b, int levels, uint8_t n[256])
{
    float scale[8], minimum[8], scale_max = 0, minimum_max = 0, d, dmin;
    unsigned sc[8], mn[8];

    for (unsigned j = 0; j < 8; j++) {
        float low, high;

        extremes(x + 32 * j, 32, &low, &high);
        low = low > 0.0f ? 0.0f : low;
        scale[j] = high > low ? (high - low) / (float) levels : 0.0f;
        minimum[j] = -low;
        scale_max = fmaxf(scale_max, scale[j]);
        minimum_max = fmaxf(minimum_max, minimum[j]);
    }
    d = store_f16(b, scale_max / 63.0f);
    dmin = store_f16(b + 2, minimum_max / 63.0f);
    for (unsigned j = 0; j < 8; j++) {
        sc[j] = (unsigned) nearest(scale[j], d, 0, 63);
        mn[j] = (unsigned) nearest(minimum[j], dmin, 0, 63);
        for (unsigned l = 32 * j; l < 32 * j + 32; l++)
            n[l] = (uint8_t) nearest(x[l] + dmin * (float) mn[j], d * (float) sc[j], 0, levels);
    }
    for (unsigned j = 0; j < 4; j++) {
        b[4 + j] = (uint8_t) (sc[j] | (sc[j + 4] >> 4) << 6);
        b[8 + j] = (uint8_t) (mn[j] | (mn[j + 4] >> 4) << 6);
        b[12 + j] = (uint8_t) ((sc[j + 4] & 15) | (mn[j + 4] & 15) << 4);
    }
}

static void pack_k_nibbles(const uint8_t n[256], uint8_t *qs)
{
    for (unsigned i = 0; i < 128; i++)
        qs[i] = (uint8_t) ((n[64 * (i / 32) + i % 32] & 15) | (n[64 * (i / 32) + 32 + i % 32] & 15)
                                                                  << 4);
}

static void quantise_q4_k(const float *x, uint8_t *b)
{
    uint8_t n[256];

    quantise_scaled(x, b, 15, n);
    pack_k_nibbles(n, b + 16);
}

static void quantise_q5_k(const float *x, uint8_t *b)
{
    uint8_t n[256];

    quantise_scaled(x, b, 31, n);
    memset(b + 16, 0, 32);
    for (unsigned i = 0; i < 256; i++)
        b[16 + i % 32] |= (uint8_t) ((n[i] >> 4) << i / 32);
    pack_k_nibbles(n, b + 48);
}

static void quantise_q6_k(const float *x, uint8_t *b)
{
    float scale[16], largest = 0.0f, d;

    memset(b, 0, DS_Q6_K_BYTES);
    for (unsigned j = 0; j < 16; j++) {
        scale[j] = largest_signed(x + 16 * j, 16) / -32.0f;
        largest = fmaxf(largest, fabsf(scale[j]));
    }
    d = store_f16(b + 208, largest / 127.0f);
    for (unsigned i = 0; i < 256; i++) {
        int sc = nearest(scale[i / 16], d, -127, 127);
        unsigned n = (unsigned) (nearest(x[i], d * (float) sc, -32, 31) + 32);
        unsigned half = i / 128, group = i % 128 / 32, l = i % 32;

        b[192 + i / 16] = (uint8_t) (int8_t) sc;
        b[64 * half + 32 * (group & 1) + l] |= (uint8_t) ((n & 15) << (group < 2 ? 0 : 4));
        b[128 + 32 * half + l] |= (uint8_t) ((n >> 4) << 2 * group);
    }
}

/* The code of the table's entry nearest to x. */
static unsigned nearest_entry(const int8_t values[16], float x)
{
    unsigned best = 0;

    for (unsigned i = 1; i < 16; i++)
        if (fabsf(x - (float) values[i]) < fabsf(x - (float) values[best]))
            best = i;
    return best;
}

static void quantise_iq4_nl(const float *x, uint8_t *b)
{
    float d = store_f16(b, largest_signed(x, 32) / -127.0f);
    uint8_t n[32];

    for (unsigned j = 0; j < 32; j++)
        n[j] = (uint8_t) nearest_entry(ds_iq4_values, d != 0.0f ? x[j] / d : 0.0f);
    pack_32(n, b + 2, NULL);
}

static void quantise_mxfp4(const float *x, uint8_t *b)
{
    float largest = fabsf(largest_signed(x, 32));
    int e = largest > 0.0f ? ilogbf(largest) - 2 + 127 : 0;
    uint8_t n[32];
    float d;

    b[0] = (uint8_t) (e < 0 ? 0 : e);
    d = ds_e8m0_half(b[0]);
    for (unsigned j = 0; j < 32; j++)
        n[j] = (uint8_t) nearest_entry(ds_mxfp4_values, x[j] / d);
    pack_32(n, b + 1, NULL);
}

static void put_two_bits(uint8_t *qs, unsigned i, unsigned q)
{
    qs[32 * (i / 128) + i % 32] |= (uint8_t) (q << 2 * (i % 128 / 32));
}

static void quantise_q2_k(const float *x, uint8_t *b)
{
    float scale[16], minimum[16], scale_max = 0, minimum_max = 0, d, dmin;

    memset(b, 0, DS_Q2_K_BYTES);
    for (unsigned j = 0; j < 16; j++) {
        float low, high;

        extremes(x + 16 * j, 16, &low, &high);
        low = low > 0.0f ? 0.0f : low;
        scale[j] = high > low ? (high - low) / 3.0f : 0.0f;
        minimum[j] = -low;
        scale_max = fmaxf(scale_max, scale[j]);
        minimum_max = fmaxf(minimum_max, minimum[j]);
    }
    d = store_f16(b + 80, scale_max / 15.0f);
    dmin = store_f16(b + 82, minimum_max / 15.0f);
    for (unsigned j = 0; j < 16; j++) {
        int sc = nearest(scale[j], d, 0, 15), mn = nearest(minimum[j], dmin, 0, 15);

        b[j] = (uint8_t) (sc | mn << 4);
        for (unsigned i = 16 * j; i < 16 * j + 16; i++)
            put_two_bits(b + 16, i,
                         (unsigned) nearest(x[i] + dmin * (float) mn, d * (float) sc, 0, 3));
    }
}

/* Scales of sub-blocks whose quants reach from -deepest, as multiples of *ret_d in -32..31. */
static void signed_scales(const float *x, unsigned n, float deepest, uint8_t *d_at, float *ret_d,
                          int scale[16])
{
    float largest = 0.0f;

    for (unsigned j = 0; j < 256 / n; j++)
        largest = fmaxf(largest, fabsf(largest_signed(x + n * j, n)));
    *ret_d = store_f16(d_at, largest / deepest / 31.0f);
    for (unsigned j = 0; j < 256 / n; j++)
        scale[j] = nearest(largest_signed(x + n * j, n) / -deepest, *ret_d, -31, 31);
}

static void quantise_q3_k(const float *x, uint8_t *b)
{
    int scale[16];
    float d;

    memset(b, 0, DS_Q3_K_BYTES);
    signed_scales(x, 16, 4.0f, b + 108, &d, scale);
    for (unsigned j = 0; j < 16; j++) {
        unsigned sc = (unsigned) (scale[j] + 32);

        b[96 + j % 8] |= (uint8_t) ((sc & 15) << 4 * (j / 8));
        b[104 + j % 4] |= (uint8_t) (sc >> 4 << 2 * (j / 4));
    }
    for (unsigned i = 0; i < 256; i++) {
        unsigned n = (unsigned) (nearest(x[i], d * (float) scale[i / 16], -4, 3) + 4);

        b[i % 32] |= (uint8_t) (n >> 2 << i / 32);
        put_two_bits(b + 32, i, n & 3);
    }
}

static void quantise_iq4_xs(const float *x, uint8_t *b)
{
    unsigned high = 0;
    int scale[16];
    float d;

    memset(b, 0, DS_IQ4_XS_BYTES);
    signed_scales(x, 32, 127.0f, b, &d, scale);
    for (unsigned j = 0; j < 8; j++) {
        unsigned sc = (unsigned) (scale[j] + 32);
        float step = d * (float) scale[j];
        uint8_t n[32];

        b[4 + j / 2] |= (uint8_t) ((sc & 15) << 4 * (j % 2));
        high |= sc >> 4 << 2 * j;
        for (unsigned k = 0; k < 32; k++)
            n[k] = (uint8_t) nearest_entry(ds_iq4_values, step != 0.0f ? x[32 * j + k] / step : 0);
        pack_32(n, b + 8 + 16 * j, NULL);
    }
    store_u16(b + 2, (uint16_t) high);
}

static void quantise_tq1_0(const float *x, uint8_t *b)
{
    float d = store_f16(b + 52, fabsf(largest_signed(x, 256)));

    for (unsigned run = 32, at = 0; at < 52; at += run, run = at < 48 ? 16 : 4) {
        const unsigned n_digits = run == 4 ? 4 : 5;

        for (unsigned i = 0; i < run; i++) {
            unsigned q = 0;

            for (unsigned digit = 0; digit < 5; digit++)
                q = 3 * q +
                    (digit < n_digits ? (unsigned) (nearest(x[run * digit + i], d, -1, 1) + 1) : 0);
            b[at + i] = (uint8_t) ((q * 256 + 242) / 243);
        }
        x += n_digits * run;
    }
}

static void quantise_tq2_0(const float *x, uint8_t *b)
{
    float d;

    memset(b, 0, DS_TQ2_0_BYTES);
    d = store_f16(b + 64, fabsf(largest_signed(x, 256)));
    for (unsigned i = 0; i < 256; i++)
        put_two_bits(b, i, (unsigned) (nearest(x[i], d, -1, 1) + 1));
}

/* The code whose number is nearest to |x| <= 448, and x's sign. */
static uint8_t nearest_f8(float x)
{
    unsigned code = 0;

    for (unsigned step = 64; step > 0; step /= 2) {
        unsigned next = code + step;

        if (next < 0x7f &&
            fabsf(x) >
                (ds_f8_e4m3_to_f32((uint8_t) (next - 1)) + ds_f8_e4m3_to_f32((uint8_t) next)) / 2)
            code = next;
    }
    return (uint8_t) (code | (x < 0 ? 0x80u : 0u));
}

static void quantise_f8(const float *x, uint8_t *b)
{
    float d = fabsf(largest_signed(x, DS_F8_ELEMENTS)) / 448.0f;

    memcpy(b, &d, sizeof d);
    for (unsigned i = 0; i < DS_F8_ELEMENTS; i++)
        b[4 + i] = nearest_f8(d != 0.0f ? x[i] / d : 0.0f);
}

static void (*quantiser(uint32_t type))(const float *x, uint8_t *block)
{
    switch (type) {
    case DS_TYPE_Q4_0:
        return quantise_q4_0;
    case DS_TYPE_Q4_1:
        return quantise_q4_1;
    case DS_TYPE_Q5_0:
        return quantise_q5_0;
    case DS_TYPE_Q5_1:
        return quantise_q5_1;
    case DS_TYPE_Q8_0:
        return quantise_q8_0;
    case DS_TYPE_IQ4_NL:
        return quantise_iq4_nl;
    case DS_TYPE_MXFP4:
        return quantise_mxfp4;
    case DS_TYPE_Q2_K:
        return quantise_q2_k;
    case DS_TYPE_Q3_K:
        return quantise_q3_k;
    case DS_TYPE_Q4_K:
        return quantise_q4_k;
    case DS_TYPE_Q5_K:
        return quantise_q5_k;
    case DS_TYPE_Q6_K:
        return quantise_q6_k;
    case DS_TYPE_IQ4_XS:
        return quantise_iq4_xs;
    case DS_TYPE_TQ1_0:
        return quantise_tq1_0;
    case DS_TYPE_TQ2_0:
        return quantise_tq2_0;
    case DS_TYPE_F8:
        return quantise_f8;
    default:
        return NULL;
    }
}

int ds_quantise(uint32_t type, const float *in, void *blocks, size_t n)
{
    const struct ds_type_traits *traits = ds_type_traits(type);
    void (*quantise)(const float *x, uint8_t *block) = quantiser(type);
    uint8_t *b = blocks;

    if (!traits || n % traits->block_elements != 0 || (!quantise && traits->block_elements > 1))
        return -ENOTSUP;
    if (type == DS_TYPE_F32)
        memcpy(blocks, in, n * sizeof *in);
    for (size_t i = 0; i < n && type == DS_TYPE_F16; i++)
        store_u16(b + 2 * i, ds_f32_to_f16(in[i]));
    for (size_t i = 0; i < n && type == DS_TYPE_BF16; i++)
        store_u16(b + 2 * i, ds_f32_to_bf16(in[i]));
    for (size_t i = 0; quantise && i < n; i += traits->block_elements, b += traits->block_bytes)
        quantise(in + i, b);
    return 0;
}
