/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vec_portable.h - sixteen floats as one value, in plain C: the meaning of vec_avx2.h and
 * vec_avx512.h, which offer the same functions with the same results, bit for bit.
 *
 * Every function is one IEEE operation per lane (so nothing can differ), or a sum over lanes in
 * one order: halves are added, 16 to 8 to 4 to 2 to 1. v16_max(a, b) is a > b ? a : b.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Inlined everywhere, the checks of the sanitizers would take minutes to compile. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define V16_INLINE static __attribute__((noinline, unused))
#else
#define V16_INLINE static inline
#endif

typedef struct {
    float x[16];
} v16;

typedef struct {
    int32_t x[16];
} v16i;

#define V16_LANES for (int i_ = 0; i_ < 16; i_++)

V16_INLINE v16 v16_set1(float a)
{
    v16 r;

    V16_LANES r.x[i_] = a;
    return r;
}

V16_INLINE v16 v16_load(const float *p)
{
    v16 r;

    memcpy(&r, p, sizeof r);
    return r;
}

/* The first n lanes from p, the others 0; nothing past p[n - 1] is read. n <= 16 */
V16_INLINE v16 v16_load_n(const float *p, unsigned n)
{
    v16 r = v16_set1(0);

    memcpy(&r, p, n * sizeof *p);
    return r;
}

V16_INLINE void v16_store(float *p, v16 a)
{
    memcpy(p, &a, sizeof a);
}

V16_INLINE void v16_store_n(float *p, v16 a, unsigned n)
{
    memcpy(p, &a, n * sizeof *p);
}

V16_INLINE float f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t) (bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t word = (rest << 13) + (112u << 23);
    float value;

    if (rest >= 0x7c00) /* infinities; a NaN becomes quiet, as the hardware has it */
        word = 0x7f800000 | (rest << 13) | (rest > 0x7c00 ? 0x400000u : 0);
    if (rest < 0x400) { /* subnormals: count in steps of 2^-24 */
        value = (float) rest * 0x1p-24f;
        memcpy(&word, &value, sizeof word);
    }
    word |= sign;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* p need not be aligned. */
V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    v16 r;

    V16_LANES r.x[i_] = f16_to_f32(p[i_]);
    return r;
}

V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    v16 r;

    V16_LANES
    {
        uint32_t word = (uint32_t) p[i_] << 16;

        memcpy(&r.x[i_], &word, sizeof word);
    }
    return r;
}

/* Sixteen bytes of E4M3, none of them a NaN, as 2^-8 of their numbers. */
V16_INLINE v16 v16_load_f8(const uint8_t *p)
{
    v16 r;

    V16_LANES r.x[i_] = f16_to_f32((uint16_t) ((p[i_] & 0x80u) << 8 | (p[i_] & 0x7fu) << 7));
    return r;
}

V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    v16 r;

    V16_LANES r.x[i_] = p[i_];
    return r;
}

/* The low halves of sixteen bytes, less 8, and in *ret_high the high ones likewise. */
V16_INLINE v16 v16_load_u4(const uint8_t *p, v16 *ret_high)
{
    v16 low;

    V16_LANES low.x[i_] = (float) ((p[i_] & 15) - 8);
    V16_LANES ret_high->x[i_] = (float) ((p[i_] >> 4) - 8);
    return low;
}

V16_INLINE v16 v16_add(v16 a, v16 b)
{
    V16_LANES a.x[i_] += b.x[i_];
    return a;
}

V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    V16_LANES a.x[i_] -= b.x[i_];
    return a;
}

V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    V16_LANES a.x[i_] *= b.x[i_];
    return a;
}

V16_INLINE v16 v16_div(v16 a, v16 b)
{
    V16_LANES a.x[i_] /= b.x[i_];
    return a;
}

V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c) /* a * b + c, rounded once */
{
    V16_LANES c.x[i_] = fmaf(a.x[i_], b.x[i_], c.x[i_]);
    return c;
}

V16_INLINE v16 v16_max(v16 a, v16 b)
{
    V16_LANES a.x[i_] = a.x[i_] > b.x[i_] ? a.x[i_] : b.x[i_];
    return a;
}

V16_INLINE v16 v16_min(v16 a, v16 b)
{
    V16_LANES a.x[i_] = a.x[i_] < b.x[i_] ? a.x[i_] : b.x[i_];
    return a;
}

/* a in the first n lanes, b in the others; n may exceed 16. */
V16_INLINE v16 v16_first(unsigned n, v16 a, v16 b)
{
    V16_LANES a.x[i_] = (unsigned) i_ < n ? a.x[i_] : b.x[i_];
    return a;
}

V16_INLINE float v16_sum(v16 a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.x[i] += a.x[i + half];
    return a.x[0];
}

V16_INLINE float v16_hmax(v16 a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.x[i] = a.x[i] > a.x[i + half] ? a.x[i] : a.x[i + half];
    return a.x[0];
}

/* a * 2^n, where t = n + 1.5 * 2^23 and -126 <= n <= 127 */
V16_INLINE v16 v16_scale_magic(v16 a, v16 t)
{
    V16_LANES
    {
        uint32_t word;
        float power;

        memcpy(&word, &t.x[i_], sizeof word);
        word = (word << 23) + 0x3f800000;
        memcpy(&power, &word, sizeof power);
        a.x[i_] *= power;
    }
    return a;
}

V16_INLINE v16i v16i_set1(int32_t a)
{
    v16i r;

    V16_LANES r.x[i_] = a;
    return r;
}

/* The bits of |a|: ordered like the magnitudes, NaN above infinity. */
V16_INLINE v16i v16i_magnitude(v16 a)
{
    v16i r;

    memcpy(&r, &a, sizeof r);
    V16_LANES r.x[i_] &= 0x7fffffff;
    return r;
}

V16_INLINE v16i v16i_max(v16i a, v16i b)
{
    V16_LANES a.x[i_] = a.x[i_] > b.x[i_] ? a.x[i_] : b.x[i_];
    return a;
}

V16_INLINE int32_t v16i_hmax(v16i a)
{
    int32_t r = a.x[0];

    V16_LANES r = a.x[i_] > r ? a.x[i_] : r;
    return r;
}

/* To the nearest integer, ties to even; |a| < 2^22. */
V16_INLINE v16i v16i_round(v16 a)
{
    v16i r;

    V16_LANES r.x[i_] = (int32_t) ((a.x[i_] + 0x1.8p23f) - 0x1.8p23f);
    return r;
}

V16_INLINE v16i v16i_add(v16i a, v16i b)
{
    V16_LANES a.x[i_] += b.x[i_];
    return a;
}

V16_INLINE v16i v16i_sub(v16i a, v16i b)
{
    V16_LANES a.x[i_] -= b.x[i_];
    return a;
}

V16_INLINE v16i v16i_shift_right_7(v16i a) /* rounds down */
{
    V16_LANES a.x[i_] >>= 7;
    return a;
}

V16_INLINE v16i v16i_shift_left_7(v16i a)
{
    V16_LANES a.x[i_] *= 128;
    return a;
}

V16_INLINE int32_t v16i_sum(v16i a)
{
    int32_t r = 0;

    V16_LANES r += a.x[i_];
    return r;
}

V16_INLINE void v16i_store_i8(int8_t *p, v16i a) /* lanes within -128..127 */
{
    V16_LANES p[i_] = (int8_t) a.x[i_];
}
