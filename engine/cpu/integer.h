/* SPDX-License-Identifier: Apache-2.0 */
/* integer.h - the integer kernels of each instruction set; see kernels.h for what they compute. */
#pragma once

#include "engine/cpu/kernels.h"

void ds_unpack_portable(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                        uint32_t first, uint32_t n_units);
void ds_gemm_portable(const struct ds_gemm *gemm);

void ds_unpack_avx2(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                    uint32_t first, uint32_t n_units);
void ds_gemm_avx2(const struct ds_gemm *gemm);

void ds_unpack_avx512(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                      uint32_t first, uint32_t n_units);
void ds_gemm_avx512(const struct ds_gemm *gemm);
void ds_gemv_avx512(const struct ds_gemv *gemv);

/* Tiles of types with one scale per unit and no minimum hold q - offset, signed. */
void ds_unpack_amx(struct ds_tile *tile, const struct ds_weight *weight, uint32_t panel,
                   uint32_t first, uint32_t n_units);
void ds_gemm_amx(const struct ds_gemm *gemm);
