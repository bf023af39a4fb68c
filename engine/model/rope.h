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

/* What query times key is multiplied by: key_dim^-1/2, and in DeepSeek's form of YaRN the square of
 * 1 + rope_log_multiplier ln(rope_factor). */
float ds_rope_score_scale(const struct ds_hyper *hyper);
