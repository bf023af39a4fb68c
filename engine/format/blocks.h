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
 *      IQ4_NL d@0  qs[16]@2                      d * values[n]
 *      MXFP4  e@0  qs[16]@1                      2^(e - 128) * values[n], e of 8 bits
 *
 * A block of 128 elements that is ours alone, as FP8 folders have their numbers:
 *
 *      F8     f32 d@0  E4M3 qs[128]@4            d * q
 *
 * Superblocks of 256 elements, made of sub-blocks with integer scales of their own:
 *
 *      Q4_K   d@0  dmin@2  scales[12]@4  qs[128]@16             d * sc * n - dmin * m
 *      Q5_K   d@0  dmin@2  scales[12]@4  qh[32]@16  qs[128]@48  likewise
 *      Q6_K   ql[128]@0  qh[64]@128  i8 scales[16]@192  d@208   d * sc * (n - 32)
 *      Q2_K   scales[16]@0  qs[64]@16  d@80  dmin@82            d * sc * n - dmin * m
 *      Q3_K   qh[32]@0  qs[64]@32  scales[12]@96  d@108         d * (sc - 32) * (n - 4)
 *      IQ4_XS d@0  scales_h@2  scales_l[4]@4  qs[128]@8         d * (sc - 32) * values[n]
 *      TQ1_0  qs[48]@0  qh[4]@48  d@52                          d * (digit - 1)
 *      TQ2_0  qs[64]@0  d@64                                    d * (n - 1)
 *
 * Superblocks of indices into grids of points of eight (IQ3: four) elements, with signs
 * (iq_grids.h, superblock.c), s a scale of three or four bits:
 *
 *      IQ2_XXS  d@0  8 of { u8 index[4], u32 signs and s }@2      d / 8 * (2 s + 1) * +-point
 *      IQ2_XS   d@0  u16 index and signs[32]@2  s[8]@66           likewise
 *      IQ2_S    d@0  index[32]@2  signs[32]@34  qh[8]@66  s[8]@74 likewise
 *      IQ3_XXS  d@0  index[64]@2  8 u32 signs and s@66            d / 4 * (2 s + 1) * +-point
 *      IQ3_S    d@0  index[64]@2  qh[8]@66  signs[32]@74  s[4]@106  d * (2 s + 1) * +-point
 *      IQ1_S    d@0  index[32]@2  8 u16 qh, s, sign@34            d * (2 s + 1) * (point +- 1/8)
 *      IQ1_M    index[32]@0  qh[16]@32  4 u16 s and parts of d@48 likewise
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
    DS_IQ4_NL_BYTES = 18,
    DS_MXFP4_BYTES = 17,
    DS_Q2_K_BYTES = 84,
    DS_Q3_K_BYTES = 110,
    DS_IQ4_XS_BYTES = 136,
    DS_TQ1_0_BYTES = 54,
    DS_TQ2_0_BYTES = 66,
    DS_IQ2_XXS_BYTES = 66,
    DS_IQ2_XS_BYTES = 74,
    DS_IQ2_S_BYTES = 82,
    DS_IQ3_XXS_BYTES = 98,
    DS_IQ3_S_BYTES = 110,
    DS_IQ1_S_BYTES = 50,
    DS_IQ1_M_BYTES = 56,
    DS_F8_ELEMENTS = 128,
    DS_F8_BYTES = 4 + DS_F8_ELEMENTS,
};
