/* SPDX-License-Identifier: Apache-2.0 */
/*
 * superblock.h - a block of 256 elements, whatever its type, taken apart into integers.
 *
 *      y[i] = d scale[i / 16] value[i] - dmin min[i / 16]
 *
 * where d and dmin are times the type's ds_type_traits.factor. Every product of two is exact in
 * float, so what is computed in this order is what ggml computes. Layouts: blocks.h.
 */
#pragma once

#include <stdint.h>

#define DS_SUPERBLOCK 256u

struct ds_superblock {
    uint16_t d, dmin; /* binary16; dmin 0 where the type has no minima */
    int8_t scale[16];
    uint8_t min[16];
    int8_t value[DS_SUPERBLOCK];
};

/* Each fills *s from the block at b, which needs no alignment. */
void ds_unpack_q2_k(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_q3_k(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_q4_k(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_q5_k(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_q6_k(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq4_xs(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_tq1_0(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_tq2_0(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq2_xxs(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq2_xs(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq2_s(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq3_xxs(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq3_s(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq1_s(const uint8_t *b, struct ds_superblock *s);
void ds_unpack_iq1_m(const uint8_t *b, struct ds_superblock *s);

/* What the four-bit codes of IQ4_NL and IQ4_XS, and of MXFP4, stand for. */
extern const int8_t ds_iq4_values[16];
extern const int8_t ds_mxfp4_values[16]; /* twice E2M1 */
