/* SPDX-License-Identifier: Apache-2.0 */
/*
 * indexer.h - which positions a token attends to: the lightning indexer of DeepSeek-V3.2.
 *
 *      q = W_q c_q  per head     k = layer_norm(W_k x)  one for all heads     w = W_w x  per head
 *      rotate the first rope_dims of q and k (pairs (i, i + n/2), unlike latent attention)
 *      score(t, s) = sum over heads of w_h max(0, q_h . k_s)      kept: the top_k largest
 *
 * The published form also multiplies scores by constants above 0 and turns q and k by an orthogonal
 * matrix; neither changes an order, so both are left out.
 *
 * Source: DeepSeek-V3.2-Exp (2025), section 2.1; tensor names: GGUF.
 */
#pragma once

#include "engine/model/weights.h"

struct ds_indexer {
    struct ds_weight *wq;     /* {q_lora_rank, index_heads * index_dim} */
    struct ds_weight *wk;     /* {width, index_dim} */
    struct ds_buffer *k_norm; /* [index_dim] */
    struct ds_buffer *k_bias; /* [index_dim] */
    struct ds_weight *ww;     /* {width, index_heads} */
};

/* What all layers share. */
struct ds_indexer_memory {
    struct ds_backend *backend;
    struct ds_adapters *adapters; /* borrowed */
    struct ds_hyper hyper;
    struct ds_rope rope;
    struct ds_buffer *q;      /* [rows][index_heads][index_dim] */
    struct ds_buffer *k;      /* [rows][index_dim] */
    struct ds_buffer *w;      /* [rows][index_heads] */
    struct ds_buffer *chosen; /* [rows][index_top_k] */
};

/* Errors as ds_load_matrix(). Whatever came back, free it. */
int ds_indexer_load(struct ds_indexer *indexer, struct ds_weight_loader *loader,
                    const struct ds_hyper *hyper, int layer);
void ds_indexer_free(struct ds_indexer *indexer, struct ds_backend *backend);

/* rope: that of the keys of attention; its frequencies must outlive the memory. */
int ds_indexer_memory_init(struct ds_indexer_memory *memory, struct ds_weight_loader *loader,
                           const struct ds_hyper *hyper, uint32_t rows, const struct ds_rope *rope);
void ds_indexer_memory_deinit(struct ds_indexer_memory *memory);

/* memory->chosen for the batch's rows: h[n][width] normed input, c_q[n][q_lora_rank]. Writes the
 * rows' index keys into layer `layer` of kv first. */
int ds_indexer_choose(const struct ds_indexer *indexer, struct ds_indexer_memory *memory,
                      struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                      const struct ds_buffer *h, const struct ds_buffer *c_q);
