/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rope.h - rotary position embedding: how fast each pair of dims turns.
 *
 * Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN, sections 3.2-3.4), Llama 3.1's frequency
 * factors as llama.cpp's converter stores them (tensor rope_freqs.weight).
 */
#pragma once

#include "engine/format/checkpoint.h"

/* Fills ret_frequencies[rope_dims / 2], radians per position, with the model's scaling in them.
 * factors[rope_dims / 2] divide the frequencies; NULL: none. Returns what cos and sin are
 * multiplied by. */
float ds_rope_frequencies(const struct ds_hyper *hyper, const float *factors,
                          float *ret_frequencies);
