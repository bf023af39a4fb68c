/* SPDX-License-Identifier: Apache-2.0 */
/* mla_parts.h - what the files of latent attention share; nobody else includes it. */
#pragma once

#include "engine/model/mla.h"

/* k_b, or in the naive form k_up, and v_b, from whichever tensors the checkpoint has:
 *
 *      attn_k_b {nope, rank, H}, attn_v_b {rank, value, H}   or the same with rows * H as one dim
 *      attn_kv_b {rank, H * (nope + value)}                  rows of head h: nope keys, then values
 *
 * Rows are cut out of attn_kv_b as they are. A matrix that has to be transposed keeps its type if
 * it is a float type, else it becomes F16: 2^-11 of a number at most, while the type it comes from
 * is off by 2^-8 of its block's largest (Q8_0) or more. */
int ds_mla_load_heads(struct ds_mla *mla, struct ds_weight_loader *loader,
                      const struct ds_hyper *hyper, int layer, bool naive);

/* The naive form's keys and values of all positions in sight. */
struct ds_mla_naive;
struct ds_mla_naive *ds_mla_naive_new(const struct ds_mla_memory *memory); /* NULL: no memory */
struct ds_mla_naive *ds_mla_naive_free(struct ds_mla_naive *naive);

/* memory->mix from memory->q and what lies in kv. */
int ds_mla_naive_attend(const struct ds_mla *mla, struct ds_mla_memory *memory,
                        const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch);
