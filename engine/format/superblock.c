/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/superblock.h"

#include <string.h>

#include "engine/format/iq_grids.h"

const int8_t ds_iq4_values[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113 };
const int8_t ds_mxfp4_values[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t) (p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
    return load_u16(p) | (uint32_t) load_u16(p + 2) << 16;
}

static void start(struct ds_superblock *s, uint16_t d, uint16_t dmin)
{
    s->d = d;
    s->dmin = dmin;
    memset(s->min, 0, sizeof s->min);
}

/* --- K types --- */

/* Two bits of each element, plus bias: 64 bytes, of which 32 serve 128 elements. */
static void two_bits(const uint8_t *qs, int bias, int8_t *value)
{
    for (unsigned half = 0; half < 2; half++, qs += 32)
        for (unsigned j = 0; j < 4; j++, value += 32)
            for (unsigned l = 0; l < 32; l++)
                value[l] = (int8_t) ((qs[l] >> 2 * j & 3) + bias);
}

/* Four bits of each element: 128 bytes, of which 32 serve 64 elements. */
static void four_bits(const uint8_t *qs, int8_t *value)
{
    for (unsigned pair = 0; pair < 4; pair++, qs += 32, value += 64)
        for (unsigned l = 0; l < 32; l++) {
            value[l] = qs[l] & 15;
            value[32 + l] = qs[l] >> 4;
        }
}

/* One bit of each element, times weight: 32 bytes, each bit of which serves 32 elements. */
static void add_bits(const uint8_t *qh, int weight, int8_t *value)
{
    for (unsigned unit = 0; unit < 8; unit++, value += 32)
        for (unsigned l = 0; l < 32; l++)
            value[l] = (int8_t) (value[l] + (qh[l] >> unit & 1) * weight);
}

void ds_unpack_q2_k(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b + 80), load_u16(b + 82));
    for (unsigned j = 0; j < 16; j++) {
        s->scale[j] = b[j] & 15;
        s->min[j] = b[j] >> 4;
    }
    two_bits(b + 16, 0, s->value);
}

void ds_unpack_q3_k(const uint8_t *b, struct ds_superblock *s)
{
    const uint8_t *packed = b + 96;

    start(s, load_u16(b + 108), 0);
    for (unsigned j = 0; j < 16; j++) {
        unsigned low = packed[j % 8] >> 4 * (j / 8) & 15u;
        unsigned high = packed[8 + j % 4] >> 2 * (j / 4) & 3u;

        s->scale[j] = (int8_t) ((int) (low | high << 4) - 32);
    }
    two_bits(b + 32, -4, s->value);
    add_bits(b, 4, s->value);
}

/* The eight 6-bit (scale, minimum) pairs of Q4_K and Q5_K, packed into 12 bytes. */
static void unpack_pairs(const uint8_t *p, struct ds_superblock *s)
{
    for (unsigned j = 0; j < 8; j++) {
        unsigned scale = p[j] & 63u, min = p[j + 4] & 63u;

        if (j >= 4) {
            scale = (p[j + 4] & 15u) | (unsigned) (p[j - 4] >> 6) << 4;
            min = (unsigned) (p[j + 4] >> 4) | (unsigned) (p[j] >> 6) << 4;
        }
        s->scale[2 * j] = s->scale[2 * j + 1] = (int8_t) scale;
        s->min[2 * j] = s->min[2 * j + 1] = (uint8_t) min;
    }
}

void ds_unpack_q4_k(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), load_u16(b + 2));
    unpack_pairs(b + 4, s);
    four_bits(b + 16, s->value);
}

void ds_unpack_q5_k(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), load_u16(b + 2));
    unpack_pairs(b + 4, s);
    four_bits(b + 48, s->value);
    add_bits(b + 16, 16, s->value);
}

void ds_unpack_q6_k(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b + 208), 0);
    memcpy(s->scale, b + 192, sizeof s->scale);
    for (unsigned i = 0; i < 8; i++) {
        unsigned half = i / 4, group = i % 4;
        const uint8_t *low = b + 64 * half + 32 * (group & 1), *high = b + 128 + 32 * half;
        int8_t *value = s->value + 32 * i;

        for (unsigned l = 0; l < 32; l++)
            value[l] =
                (int8_t) (((low[l] >> (group < 2 ? 0 : 4) & 15) | (high[l] >> 2 * group & 3) << 4) -
                          32);
    }
}

/* --- tables of values and ternary digits --- */

void ds_unpack_iq4_xs(const uint8_t *b, struct ds_superblock *s)
{
    unsigned high = load_u16(b + 2);

    start(s, load_u16(b), 0);
    for (unsigned j = 0; j < 16; j++) {
        unsigned unit = j / 2, low = b[4 + unit / 2] >> 4 * (unit % 2) & 15u;

        s->scale[j] = (int8_t) ((int) (low | (high >> 2 * unit & 3) << 4) - 32);
    }
    for (unsigned unit = 0; unit < 8; unit++)
        for (unsigned k = 0; k < 16; k++) {
            s->value[32 * unit + k] = ds_iq4_values[b[8 + 16 * unit + k] & 15];
            s->value[32 * unit + 16 + k] = ds_iq4_values[b[8 + 16 * unit + k] >> 4];
        }
}

void ds_unpack_tq1_0(const uint8_t *b, struct ds_superblock *s)
{
    static const uint8_t powers[5] = { 1, 3, 9, 27, 81 };
    int8_t *value = s->value;

    start(s, load_u16(b + 52), 0);
    memset(s->scale, 1, sizeof s->scale);
    /* A byte is five digits (the last four bytes: four) as a fraction of 256: times three, the
     * leading digit is what goes beyond. Runs of 32, 16 and 4 bytes give the digits in turn. */
    for (unsigned run = 32, at = 0; at < 52; at += run, run = at < 48 ? 16 : 4)
        for (unsigned digit = 0; digit < (run == 4 ? 4 : 5); digit++)
            for (unsigned i = 0; i < run; i++)
                *value++ = (int8_t) (((uint8_t) (b[at + i] * powers[digit]) * 3 >> 8) - 1);
}

void ds_unpack_tq2_0(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b + 64), 0);
    memset(s->scale, 1, sizeof s->scale);
    two_bits(b, -1, s->value);
}

/* --- grids; a bit that is set in signs makes an element negative --- */

static const int8_t iq2_worth[3] = { 8, 25, 43 };
static const int8_t iq3_xxs_worth[8] = { 4, 12, 20, 28, 36, 44, 52, 62 };
static const int8_t iq3_s_worth[8] = { 1, 3, 5, 7, 9, 11, 13, 15 };

static inline void put(int8_t *value, const uint8_t *levels, unsigned n, const int8_t *worth,
                       unsigned signs)
{
    for (unsigned i = 0; i < n; i++) {
        int negative = -(int) (signs >> i & 1);

        value[i] = (int8_t) ((worth[levels[i]] ^ negative) - negative);
    }
}

/* Seven signs are stored; the eighth makes their number even. */
static unsigned eight_signs(unsigned seven)
{
    seven &= 127;
    return seven | (unsigned) __builtin_parity(seven) << 7;
}

static int8_t odd(unsigned nibble)
{
    return (int8_t) (2 * (nibble & 15) + 1);
}

void ds_unpack_iq2_xxs(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), 0);
    for (unsigned unit = 0; unit < 8; unit++) {
        const uint8_t *at = b + 2 + 8 * unit;
        uint32_t word = load_u32(at + 4);

        s->scale[2 * unit] = s->scale[2 * unit + 1] = odd(word >> 28);
        for (unsigned i = 0; i < 4; i++)
            put(s->value + 32 * unit + 8 * i, ds_iq2_xxs_grid[at[i]], 8, iq2_worth,
                eight_signs(word >> 7 * i));
    }
}

void ds_unpack_iq2_xs(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), 0);
    for (unsigned j = 0; j < 16; j++)
        s->scale[j] = odd(b[66 + j / 2] >> 4 * (j % 2));
    for (unsigned i = 0; i < 32; i++) {
        unsigned word = load_u16(b + 2 + 2 * i);

        put(s->value + 8 * i, ds_iq2_xs_grid[word & 511], 8, iq2_worth, eight_signs(word >> 9));
    }
}

void ds_unpack_iq2_s(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), 0);
    for (unsigned j = 0; j < 16; j++)
        s->scale[j] = odd(b[74 + j / 2] >> 4 * (j % 2));
    for (unsigned i = 0; i < 32; i++) {
        unsigned high = b[66 + i / 4] >> 2 * (i % 4) & 3u;

        put(s->value + 8 * i, ds_iq2_s_grid[b[2 + i] | high << 8], 8, iq2_worth, b[34 + i]);
    }
}

void ds_unpack_iq3_xxs(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), 0);
    for (unsigned unit = 0; unit < 8; unit++) {
        uint32_t word = load_u32(b + 66 + 4 * unit);

        s->scale[2 * unit] = s->scale[2 * unit + 1] = odd(word >> 28);
        for (unsigned i = 0; i < 8; i++)
            put(s->value + 32 * unit + 4 * i, ds_iq3_xxs_grid[b[2 + 8 * unit + i]], 4,
                iq3_xxs_worth, eight_signs(word >> 7 * (i / 2)) >> 4 * (i % 2));
    }
}

void ds_unpack_iq3_s(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), 0);
    for (unsigned j = 0; j < 16; j++)
        s->scale[j] = odd(b[106 + j / 4] >> 4 * (j / 2 % 2));
    for (unsigned i = 0; i < 64; i++) {
        unsigned high = b[66 + i / 8] >> i % 8 & 1u;

        put(s->value + 4 * i, ds_iq3_s_grid[b[2 + i] | high << 8], 4, iq3_s_worth,
            b[74 + i / 2] >> 4 * (i % 2));
    }
}

/* Elements are d (2 s + 1) (level - 1 +- 1/8), one sign for 32 of them: the eighths make the
 * minimum. */
void ds_unpack_iq1_s(const uint8_t *b, struct ds_superblock *s)
{
    start(s, load_u16(b), load_u16(b));
    for (unsigned unit = 0; unit < 8; unit++) {
        unsigned word = load_u16(b + 34 + 2 * unit), scale = 2 * (word >> 12 & 7) + 1;

        s->scale[2 * unit] = s->scale[2 * unit + 1] = (int8_t) (8 * scale);
        s->min[2 * unit] = s->min[2 * unit + 1] = (uint8_t) (scale * (word & 0x8000 ? 9 : 7));
        for (unsigned i = 0; i < 4; i++)
            memcpy(s->value + 32 * unit + 8 * i,
                   ds_iq1_grid[b[2 + 4 * unit + i] | (word >> 3 * i & 7) << 8], 8);
    }
}

/* As IQ1_S with a sign for every eight: they make values 8 (level - 1) +- 1. */
void ds_unpack_iq1_m(const uint8_t *b, struct ds_superblock *s)
{
    const uint8_t *scales = b + 48;
    unsigned d = 0;

    for (unsigned i = 0; i < 4; i++)
        d |= (unsigned) (scales[2 * i + 1] >> 4) << 4 * i;
    start(s, (uint16_t) d, 0);
    for (unsigned j = 0; j < 16; j++)
        s->scale[j] = odd(load_u16(scales + 2 * (j / 4)) >> 3 * (j % 4) & 7);
    for (unsigned i = 0; i < 32; i++) {
        unsigned high = b[32 + i / 2] >> 4 * (i % 2);
        const uint8_t *levels = ds_iq1_grid[b[i] | (high & 7) << 8];

        for (unsigned k = 0; k < 8; k++)
            s->value[8 * i + k] = (int8_t) (8 * (levels[k] - 1) + (high & 8 ? -1 : 1));
    }
}
