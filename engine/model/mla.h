/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mla.h - multi-head latent attention: one layer's weights and its forward pass.
 *
 *      c_q = norm(W_qa x)         q = W_qb c_q          or q = W_q x      per head: nope | rope
 *      c | k_R = W_kva x          c = norm(c)           one vector for all heads: rank | rope
 *      rotate the rope parts; c | k_R is what the cache keeps: kv_lora_rank + rope_dims numbers
 *
 *      naive:     [k_C, v] of a head = W_kvb c          score = q_C k_C + q_R k_R     out = sum p v
 *      absorbed:  q' of a head = K_b^T q_C              score = q' c + q_R k_R        o' = sum p c
 *                 out = V_b o'
 *
 * Both are the same in exact arithmetic. The absorbed form is attention of many heads to one key
 * whose first part is the value too, and needs no memory but the cache; the naive one costs fewer
 * operations where many rows share the expanded keys, but expands them for every batch.
 *
 * A model runs in one form only, whatever the batch: the two round differently, and a row's result
 * may depend neither on how its prompt was cut, nor on whether the token was read or generated (a
 * replay reads what was generated before), nor on what the prefix cache held. That form is the
 * absorbed one unless ds_mla_load() is told otherwise.
 *
 * Source: DeepSeek-V2 (2024), sections 2.1 and C; tensor names: GGUF.
 */
#pragma once

#include "engine/model/indexer.h"
#include "engine/model/weights.h"

struct ds_mla {
    struct ds_weight *wq;      /* {width, n_heads * key_dim}, or NULL and the next three */
    struct ds_weight *wq_a;    /* {width, q_lora_rank} */
    struct ds_buffer *q_norm;  /* [q_lora_rank] */
    struct ds_weight *wq_b;    /* {q_lora_rank, n_heads * key_dim} */
    struct ds_weight *wkv_a;   /* {width, kv_lora_rank + rope_dims} */
    struct ds_buffer *kv_norm; /* [kv_lora_rank] */
    struct ds_weight *k_b;     /* stack of n_heads {nope, kv_lora_rank}; NULL in the naive form */
    struct ds_weight *k_up;    /* stack of n_heads {kv_lora_rank, nope}; NULL in the absorbed one */
    struct ds_weight *v_b;     /* stack of n_heads {kv_lora_rank, value_dim} */
    struct ds_indexer indexer; /* where hyper.index_heads > 0 */
};

/* What all layers share. */
struct ds_mla_memory {
    struct ds_backend *backend;
    struct ds_adapters *adapters; /* borrowed */
    struct ds_hyper hyper;
    uint32_t rows;
    uint32_t nope;      /* dims of a head's key that are not rotated */
    float scale;        /* of the scores */
    float *frequencies; /* [rope_dims / 2] */
    struct ds_rope q_rope, kv_rope;

    /* activations, device; B = rows */
    struct ds_buffer *c_q;    /* [B][q_lora_rank], NULL where queries are not compressed */
    struct ds_buffer *q;      /* [B][n_heads][key_dim] */
    struct ds_buffer *kv;     /* [B][kv_lora_rank + rope_dims] */
    struct ds_buffer *c;      /* [B][kv_lora_rank] */
    struct ds_buffer *q_wide; /* [B][n_heads][kv_lora_rank + rope_dims] */
    struct ds_buffer *o_wide; /* [B][n_heads][kv_lora_rank] */
    struct ds_buffer *mix;    /* [B][n_heads][value_dim] what attention gives */
    struct ds_indexer_memory indexer;
    struct ds_mla_naive *naive; /* NULL in the absorbed form */
};

/* Errors as ds_load_matrix(). Whatever came back, free it. */
int ds_mla_load(struct ds_mla *mla, struct ds_weight_loader *loader, const struct ds_hyper *hyper,
                int layer, bool naive);
void ds_mla_free(struct ds_mla *mla, struct ds_backend *backend);

int ds_mla_memory_init(struct ds_mla_memory *memory, struct ds_weight_loader *loader,
                       const struct ds_hyper *hyper, uint32_t rows, bool naive);
void ds_mla_memory_deinit(struct ds_mla_memory *memory);

/* memory->mix = attention of the batch's rows h[n][width] (normed), whose keys it writes into layer
 * `layer` of kv first. W_o is the caller's. */
int ds_mla_forward(const struct ds_mla *mla, struct ds_mla_memory *memory, struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch, const struct ds_buffer *h);

/* What the cache keeps of a token: one head, values shared with its keys. */
void ds_mla_kv_geometry(const struct ds_hyper *hyper, struct ds_kv_geometry *ret_geometry);
