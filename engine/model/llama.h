/* SPDX-License-Identifier: Apache-2.0 */
/*
 * llama.h - the decoder family of llama, qwen2, qwen3 and qwen3moe.
 *
 *      x = embedding[token]
 *      each layer:  h = norm(x)    q, k, v = W h (+ bias: qwen2)    per-head norm of q, k (qwen3)
 *                   rotate q, k    x += Wo attention(q, K, V)
 *                   h = norm(x)    x += feed-forward of h, dense or experts (ffn.h)
 *      logits = Wout norm(x)       Wout = embedding where the file has no output matrix (tied)
 *
 * Sources: Touvron et al. 2023 (Llama), Qwen2 and Qwen3 technical reports; tensor names: GGUF.
 */
#pragma once

#include "engine/model/weights.h"

struct ds_llama;

/* progress as in ds_model_load(). batch_max rows, outputs_max of them with logits. Borrows the
 * loader's backend and adapters. */
int ds_llama_load(struct ds_llama **ret_llama, struct ds_weight_loader *loader, uint32_t batch_max,
                  uint32_t outputs_max, int (*progress)(void *arg, double fraction), void *arg);
struct ds_llama *ds_llama_free(struct ds_llama *llama);

/* As ds_model_forward(). */
int ds_llama_forward(struct ds_llama *llama, struct ds_kv *kv, const struct ds_batch *batch,
                     float *logits);
