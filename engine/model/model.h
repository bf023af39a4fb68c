/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.h - a checkpoint's weights on a backend, and its forward pass.
 *
 * One flat forward() per family (llama.c: llama, qwen2, qwen3, qwen3moe; deepseek.c: deepseek2,
 * deepseek32). Not thread-safe: the engine's step loop owns it, except ds_model_load(), which may
 * run on a loader thread before anyone else sees the model.
 */
#pragma once

#include <stdint.h>

#include "engine/model/adapter.h"

struct ds_model;

/* What computing one token by itself takes: the arithmetic of its products and the weights read for
 * them (of a mixture of experts, those of the chosen ones). Attention is not in it. */
struct ds_model_cost {
    uint64_t token_bytes;    /* weights read */
    uint64_t layer_ops;      /* 2 per product, in the layers */
    uint64_t head_ops;       /* likewise, for the logits */
    uint64_t float_ops;      /* of both, those on float matrices */
    uint64_t position_bytes; /* keys and values of one position */
};

/* Loads all weights. The checkpoint must outlive the model; backend likewise. progress(arg,
 * fraction) is called now and then (NULL allowed) and may return nonzero to give up (-ECANCELED).
 * batch_max: rows of the largest batch forward() will see; outputs_max: likewise for its
 * outputs (more than batch_max of them there cannot be).
 * Errors as ds_checkpoint_open() plus -ENOMEM; everything taken is given back. */
int ds_model_load(struct ds_model **ret_model, struct ds_backend *backend,
                  const struct ds_checkpoint *checkpoint, uint32_t batch_max, uint32_t outputs_max,
                  int (*progress)(void *arg, double fraction), void *arg, struct ds_error *error);
struct ds_model *ds_model_free(struct ds_model *model);

/* As ds_model_load(), with latent attention in its naive form (mla.h): what the other form, and
 * whatever is built on it, is checked against. -ENOTSUP: sparse attention. */
int ds_model_load_naive(struct ds_model **ret_model, struct ds_backend *backend,
                        const struct ds_checkpoint *checkpoint, uint32_t batch_max,
                        uint32_t outputs_max, struct ds_error *error);

/* What the model's KV cache looks like (n_blocks 0, to be chosen). F32 where its matrices are F32,
 * else F16. */
void ds_model_kv_geometry(const struct ds_model *model, struct ds_kv_geometry *ret_geometry);

/* Another type than that, before its first KV cache. -EINVAL with a text: the model's heads do not
 * allow it; nothing has changed. */
int ds_model_use_kv_type(struct ds_model *model, enum ds_kv_type type, struct ds_error *error);
const char *ds_kv_type_name(enum ds_kv_type type); /* "Q8_0" */

uint64_t ds_model_weight_bytes(const struct ds_model *model);
void ds_model_cost(const struct ds_model *model, struct ds_model_cost *ret_cost);
uint32_t ds_model_n_vocab(const struct ds_model *model); /* width of a row of logits */

/* Those that can be used on the model; owned by it. They must be gone before it is freed. */
struct ds_adapters *ds_model_adapters(struct ds_model *model);

/* Runs batch (n_tokens <= batch_max, every token < n_vocab), writes its keys and values into kv and
 * logits[n_outputs][n_vocab] (host memory). */
int ds_model_forward(struct ds_model *model, struct ds_kv *kv, const struct ds_batch *batch,
                     float *logits);

uint32_t ds_model_width(const struct ds_model *model); /* of the residual stream */

/* Has the model a module that predicts the token after the next (multi-token prediction)? Only then
 * batch->hidden is filled, and ds_model_mtp() may be called. */
bool ds_model_has_mtp(const struct ds_model *model);

/* Row r is position p = positions[r]: hidden[n_tokens][width] as ds_model_forward() left it for
 * that position, tokens[r] the token at p + 1; logits[n_outputs][n_vocab] are for the token at
 * p + 2. hidden_out (NULL: not wanted) [n_tokens][width] is what to give as hidden, with the next
 * token and p + 1, to guess one further. Its keys and values are a layer of their own in kv:
 * positions that were never fed to it are read as whatever lies there, and spoil a guess, no more.
 */
int ds_model_mtp(struct ds_model *model, struct ds_kv *kv, const struct ds_batch *batch,
                 const float *hidden, float *logits, float *hidden_out);
