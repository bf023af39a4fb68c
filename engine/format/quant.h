/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quant.h - tensor types: their blocks, and what each block means as floats.
 *
 * The portable meaning of every type; the oracle for all fast kernels. Layouts and formulae: ggml
 * (ggml-common.h), restated in engine/format/blocks.h and checked by known answers in
 * tests/test_quant.c.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"
#include "engine/format/superblock.h"

struct ds_type_traits {
    const char *name;
    uint32_t block_elements; /* elements per block; rows are whole blocks */
    uint32_t block_bytes;
    /* out[n] = the n elements (whole blocks) at blocks; blocks need no alignment. */
    void (*dequantise)(const void *blocks, float *out, size_t n);
    /* One block as integers, and what its d and dmin count for (superblock.h); NULL for other
     * types. */
    void (*unpack)(const uint8_t *block, struct ds_superblock *ret_superblock);
    float factor;
};

/* NULL: not a supported type. All types there are: those of 0 .. DS_TYPE_END - 1 that are not NULL,
 * of which a GGUF file may hold those below DS_TYPE_GGML_END. */
const struct ds_type_traits *ds_type_traits(uint32_t type);

/* Name of any type number that ggml or ik_llama.cpp gave out, supported or not; "unknown"
 * otherwise.
 */
const char *ds_type_name(uint32_t type);

/* Why a GGUF file's tensor of a type that is not supported cannot be read, and what to do, as the
 * rest of a sentence that begins "... has type NAME (NUMBER)". */
const char *ds_type_refusal(uint32_t type);

/* Bytes of a row of n elements; 0 where n is not a multiple of the block. */
uint64_t ds_type_row_bytes(uint32_t type, uint64_t n);

float ds_f16_to_f32(uint16_t bits);
uint16_t ds_f32_to_f16(float value); /* round to nearest even */
float ds_bf16_to_f32(uint16_t bits);
uint16_t ds_f32_to_bf16(float value);  /* round to nearest even, NaN quieted */
float ds_f8_e4m3_to_f32(uint8_t bits); /* 1 sign, 4 exponent, 3 fraction bits; no infinity */
float ds_e8m0_half(uint8_t exponent);  /* half of an E8M0 scale: 2^(exponent - 128) */

/* Simple reference quantisers, for tests and for small models made by tests: whole blocks.
 * -ENOTSUP where there is none for the type. */
int ds_quantise(uint32_t type, const float *in, void *blocks, size_t n);
