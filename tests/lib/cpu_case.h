/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_case.h - inputs for tests of the CPU backend: random numbers, matrices of every type,
 * batches.
 *
 * Everything fails the running test where memory is short. Random numbers depend on the seed alone.
 */
#pragma once

#include "engine/backend.h"
#include "engine/format/checkpoint.h"

struct ds_case_random {
    uint64_t state;
};

uint32_t ds_case_u32(struct ds_case_random *random);
uint32_t ds_case_below(struct ds_case_random *random, uint32_t n);
float ds_case_float(struct ds_case_random *random); /* -1..1 */

/* n floats, mostly -1..1; where outliers is set, some positions of every row of width are up to 500
 * times as large, the same in all rows but for a few. free(). */
float *ds_case_rows(struct ds_case_random *random, uint32_t n, uint32_t width, bool outliers);

/* n blocks of random bytes (random NULL: of those that are there), whose d, and dmin or m, are that
 * binary16; scales of MXFP4 are the power of two below. */
void ds_case_fill(struct ds_case_random *random, uint32_t type, uint16_t d, void *blocks, size_t n);

/* A matrix {k, n} of random numbers, or of random blocks where the type has no quantiser; floats
 * holds what its data mean. */
struct ds_case_matrix {
    struct ds_tensor tensor;
    void *data;
    float *floats; /* [n][k] */
};

/* Types of matrices, ended by UINT32_MAX. */
extern const uint32_t ds_case_types[];

uint32_t ds_case_block(uint32_t type); /* k must be a multiple of this */
struct ds_case_matrix ds_case_matrix(struct ds_case_random *random, uint32_t type, uint32_t k,
                                     uint32_t n);
void ds_case_matrix_deinit(struct ds_case_matrix *matrix);

/* NULL: this machine has not that instruction set (and says so). */
struct ds_backend *ds_case_backend(const char *isa, unsigned n_threads);

struct ds_buffer *ds_case_buffer(struct ds_backend *backend, const float *floats, size_t n);
float *ds_case_read(struct ds_backend *backend, const struct ds_buffer *buffer, size_t n);

/* A batch of n_sequences sequences; sequence i has rows for positions first[i] .. + count[i]. Block
 * tables scatter the blocks. free() of tokens frees all arrays. */
struct ds_batch ds_case_batch(uint32_t n_sequences, const uint32_t *first, const uint32_t *count,
                              uint32_t blocks_max);
