/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blocks.h - how the quantised blocks lie in memory; shared by reader and writer of blocks.
 *
 * All scalars little-endian, d, m and dmin binary16. Blocks of 32 elements:
 *
 *      Q4_0   d@0  qs[16]@2                      d * (n - 8)
 *      Q4_1   d@0  m@2   qs[16]@4                d * n + m
 *      Q5_0   d@0  qh@2  qs[16]@6                d * (n - 16), bit i of the 32-bit qh on top
 *      Q5_1   d@0  m@2   qh@4  qs[16]@8          d * n + m
 *      Q8_0   d@0  i8 qs[32]@2                   d * q
 *
 * Superblocks of 256 elements, made of sub-blocks with integer scales of their own:
 *
 *      Q4_K   d@0  dmin@2  scales[12]@4  qs[128]@16             d * sc * n - dmin * m
 *      Q5_K   d@0  dmin@2  scales[12]@4  qh[32]@16  qs[128]@48  likewise
 *      Q6_K   ql[128]@0  qh[64]@128  i8 scales[16]@192  d@208   d * sc * (n - 32)
 */
#pragma once

enum {
    DS_Q4_0_BYTES = 18,
    DS_Q4_1_BYTES = 20,
    DS_Q5_0_BYTES = 22,
    DS_Q5_1_BYTES = 24,
    DS_Q8_0_BYTES = 34,
    DS_Q4_K_BYTES = 144,
    DS_Q5_K_BYTES = 176,
    DS_Q6_K_BYTES = 210,
};
