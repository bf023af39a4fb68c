/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deepseek.h - the DeepSeek family: deepseek2 (V2, V2-Lite, V3, R1) and deepseek32 (V3.2).
 *
 *      x = embedding[token]
 *      each layer:  x += Wo attention(norm(x))    latent (mla.h); in V3.2 sparse (indexer.h)
 *                   x += FFN(norm(x))             dense in the first layers, then experts (ffn.h)
 *      logits = Wout norm(x)
 *
 *      MTP module:  x = W_eh [norm_e(embedding[next token]) | norm_h(hidden)]
 *                   one more layer of the same kind, with a KV layer of its own
 *                   logits = Whead norm_s(x)                predict the token after the next
 *
 * hidden is norm(x) of the model, or for further drafts the module's own x.
 *
 * Sources: DeepSeek-V2 (2024), DeepSeek-V3 (2024, section 2.2 for MTP), DeepSeek-V3.2-Exp (2025);
 * tensor names: GGUF.
 */
#pragma once

#include "engine/model/weights.h"

struct ds_deepseek;

/* progress as in ds_model_load(). batch_max rows, outputs_max of them with logits. naive: the form
 * of attention (mla.h); -ENOTSUP for models with an indexer. */
int ds_deepseek_load(struct ds_deepseek **ret_deepseek, struct ds_weight_loader *loader,
                     uint32_t batch_max, uint32_t outputs_max, bool naive,
                     int (*progress)(void *arg, double fraction), void *arg);
struct ds_deepseek *ds_deepseek_free(struct ds_deepseek *deepseek);

/* Fills in what the family decides: heads, widths, layers. */
void ds_deepseek_kv_geometry(const struct ds_deepseek *deepseek,
                             struct ds_kv_geometry *ret_geometry);

/* As ds_model_forward(). */
int ds_deepseek_forward(struct ds_deepseek *deepseek, struct ds_kv *kv,
                        const struct ds_batch *batch, float *logits);

bool ds_deepseek_has_mtp(const struct ds_deepseek *deepseek);
/* As ds_model_mtp(). */
int ds_deepseek_mtp(struct ds_deepseek *deepseek, struct ds_kv *kv, const struct ds_batch *batch,
                    const float *hidden, float *logits, float *hidden_out);
