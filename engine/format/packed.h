/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packed.h - matrices whose numbers stand in several tensors: FP8 with block scales, GPTQ, AWQ.
 *
 * Such a ds_tensor has packed set, its type is the block type it converts to, and its data is not
 * made of those blocks. K = dims[0] inputs, N = dims[1] outputs; little-endian words.
 * Sources: DeepSeek-V3 README_WEIGHTS.md; AutoGPTQ; AutoAWQ (gemm).
 *
 *      FP8    weights u8 [N][K] E4M3, scales [ceil(N / block_rows)][ceil(K / 128)]
 *             W[n][k] = e4m3 * scale of its block
 *      GPTQ   weights u32 [K * bits / 32][N], the first input lowest; zeros u32 [G][N * bits / 32];
 *             scales [G][N]; groups i32 [K] (NULL: k / group_size)
 *             W[n][k] = scale * (q - zero), zero = stored (+ 1 where zeros_less_one)
 *      AWQ    weights u32 [K][N / 8], zeros u32 [G][N / 8], scales [G][N]; nibble i of a word is
 *             output order[i] of its eight, order = 0 2 4 6 1 3 5 7
 */
#pragma once

#include "engine/format/checkpoint.h"

enum ds_packed_form { DS_PACKED_FP8, DS_PACKED_GPTQ, DS_PACKED_AWQ };

struct ds_packed {
    enum ds_packed_form form;
    uint32_t bits;       /* of GPTQ: 4 or 8 */
    uint32_t scale_type; /* DS_TYPE_F32, F16 or BF16 */
    bool zeros_less_one;
    uint64_t group_size; /* inputs of one scale */
    uint64_t n_groups;
    uint64_t block_rows;                              /* FP8 */
    const uint8_t *weights, *scales, *zeros, *groups; /* in the mapping, unaligned */
};

/* The forms as people know them, in the order of enum ds_packed_form; NULL past the last. */
struct ds_packed_traits {
    const char *name, *reads; /* what is read of it */
    struct {
        const char *when;
        uint32_t type; /* in memory; ds_packed_choose() decides so */
        const char *rounding;
    } becomes[6]; /* when NULL: no more */
};
const struct ds_packed_traits *ds_packed_traits(unsigned form);

/* The block type that holds a matrix {k, n} best, all of it looked at:
 *      Q4_0 (4 bits, 32 inputs share a group, every zero is 8): exact for f16 scales
 *      Q4_1 (the same with other zeros): only -scale * zero is rounded, to f16
 *      Q8_0 (8 bits, zeros 128): exact for f16 scales; (4 bits in mixed order, "act-order"): to
 *           within 1/254 of the largest of 32
 *      F8 (FP8 whose rows are multiples of 128): exact
 *      BF16 (other FP8, as DeepSeek's own converter has it: to within 2^-9)
 *      F16 (the other 8 bit ones), F32 (odd widths)
 *
 * -EBADMSG: a group's number is beyond n_groups (*ret_bad says which input). */
int ds_packed_choose(const struct ds_packed *packed, uint64_t k, uint64_t n, uint32_t *ret_type,
                     uint64_t *ret_bad);

/* Rows row .. + n_rows of any tensor as whole blocks of tensor->type: a pointer to where they lie,
 * or buffer (n_rows * ds_type_row_bytes(type, dims[0]) bytes), which is filled first. Reading
 * DS_PACKED_ROWS rows from a multiple of it on costs little more than reading one. */
#define DS_PACKED_ROWS 16u
const void *ds_tensor_rows(const struct ds_tensor *tensor, uint64_t row, uint64_t n_rows,
                           void *buffer);

/* Any row as floats; what a block type would round is not rounded here. */
void ds_tensor_row_floats(const struct ds_tensor *tensor, uint64_t row, float *out);
