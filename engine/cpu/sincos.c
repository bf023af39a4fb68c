/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's sine may differ in its last bit between processors, and rotations must not. Plain
 * double arithmetic in one order: x = n pi/2 + r with pi/2 in three parts (the first two short
 * enough for n times them to be exact up to n = 2^26), then Taylor series on |r| <= pi/4.
 */
#include <math.h>

#include "engine/cpu/cpu.h"

static double series(double first, const double *factors, unsigned n, double square)
{
    double sum = 1;

    while (n-- > 0)
        sum = 1 - square * factors[n] * sum;
    return first * sum;
}

void ds_sincos(double x, double *ret_sin, double *ret_cos)
{
    static const double sin_factors[] = { 1.0 / 6,   1.0 / 20,  1.0 / 42,  1.0 / 72,
                                          1.0 / 110, 1.0 / 156, 1.0 / 210, 1.0 / 272 };
    static const double cos_factors[] = { 1.0 / 2,  1.0 / 12,  1.0 / 30,  1.0 / 56,
                                          1.0 / 90, 1.0 / 132, 1.0 / 182, 1.0 / 240 };
    const double magic = 0x1.8p52;
    double n, r, s, c;
    unsigned quadrant;

    *ret_sin = *ret_cos = NAN;
    if (!isfinite(x))
        return;
    if (fabs(x) > 1e8)
        x = fmod(x, 0x1.921fb54442d18p+2); /* no meaning left in such an angle, but a value */
    n = (x * 0x1.45f306dc9c883p-1 + magic) - magic;
    r = ((x - n * 0x1.921fb54p+0) - n * 0x1.10b4610p-30) - n * 0x1.a62633145c06ep-58;
    s = series(r, sin_factors, 8, r * r);
    c = series(1, cos_factors, 8, r * r);
    quadrant = (unsigned) (int64_t) n & 3;
    *ret_sin = quadrant & 1 ? c : s;
    *ret_cos = quadrant & 1 ? s : c;
    if (quadrant & 2)
        *ret_sin = -*ret_sin;
    if (quadrant == 1 || quadrant == 2)
        *ret_cos = -*ret_cos;
}
