/* SPDX-License-Identifier: Apache-2.0 */
/*
 * adapter.h - LoRA adapters resident on one model, and matrix products that take them along.
 *
 * A model's matrices are sites, known by their names and by their weights; an adapter has a pair
 * A {K, r}, B {r, N} for some of them. Each row of a batch may have an adapter of its own:
 *
 *      out[row] (+)= W x        as without        backend->matmul
 *      u = A x                  shrink            rows that share an adapter are taken together
 *      out[row] += s B u        expand            s = the request's scale times the adapter's
 *
 * What a row yields hangs on that row and its adapter alone, bit for bit: the base product is the
 * one it would have without adapters, and A, B are multiplied like any other matrix. Rows without
 * an adapter, or with a scale of 0, are not touched; a batch without adapters pays one comparison
 * per product.
 *
 * Sites are collected while the model loads (ds_load_matrix()). Adapters are made on a loader
 * thread while the model runs; admitting, running, references: the model's own thread.
 * Sources: Hu et al. 2021 (LoRA); Chen et al. 2023 (Punica), Sheng et al. 2023 (S-LoRA): batches of
 * many adapters.
 */
#pragma once

#include "engine/backend.h"
#include "engine/format/lora_file.h"

struct ds_adapters; /* of one model */
struct ds_adapter;  /* one of them; counted references */

/* --- with the model --- */

/* batch_max, outputs_max as in ds_model_load(). -ENOMEM. */
int ds_adapters_new(struct ds_adapters **ret_adapters, struct ds_backend *backend,
                    uint32_t batch_max, uint32_t outputs_max);
/* Every adapter must be gone. Accepts NULL. */
struct ds_adapters *ds_adapters_free(struct ds_adapters *adapters);

/* The matrix {k, n} of that name (copied) is weight (borrowed). embedding: its rows are fetched by
 * token. -ENOMEM. */
int ds_adapters_add_site(struct ds_adapters *adapters, const char *name,
                         const struct ds_weight *weight, uint64_t k, uint64_t n, bool embedding);

/* --- one adapter --- */

/* Makes file's weights for the model of these adapters, whose checkpoint gives names to errors.
 * Nothing of file is needed afterwards. One reference is the caller's. -EINVAL: made for another
 * model; -ENOTSUP: changes a matrix that cannot be adapted; -EBADMSG: a number is not finite;
 * -ENOMEM. */
int ds_adapter_new(struct ds_adapter **ret_adapter, struct ds_adapters *adapters,
                   const struct ds_checkpoint *checkpoint, const struct ds_lora_file *file,
                   struct ds_error *error);

/* Makes room to run it; before any batch names it. -ENOMEM. */
int ds_adapter_admit(struct ds_adapter *adapter, struct ds_error *error);

struct ds_adapter *ds_adapter_ref(struct ds_adapter *adapter);  /* NULL is passed through */
struct ds_adapter *ds_adapter_free(struct ds_adapter *adapter); /* gives one reference back */
void ds_adapter_free_p(struct ds_adapter **adapter);

uint64_t ds_adapter_bytes(const struct ds_adapter *adapter); /* resident */
uint32_t ds_adapter_rank(const struct ds_adapter *adapter);  /* the largest */
uint32_t ds_adapter_n_pairs(const struct ds_adapter *adapter);
/* Never 0, never given to another adapter of these. */
uint32_t ds_adapter_serial(const struct ds_adapter *adapter);

/* --- in a forward pass --- */

/* The rows of the pass are those of batch. */
void ds_adapters_begin(struct ds_adapters *adapters, const struct ds_batch *batch);

/* From now on row i is what row rows[i] has been; rows ascend. */
void ds_adapters_gather(struct ds_adapters *adapters, const uint32_t *rows, uint32_t n);

/* As backend->embed() and backend->matmul(), with what the rows' adapters add. */
int ds_adapted_embed(struct ds_adapters *adapters, struct ds_buffer *out,
                     const struct ds_weight *table, const uint32_t *tokens, uint32_t n);
int ds_adapted_matmul(struct ds_adapters *adapters, const struct ds_product *products,
                      unsigned n_products, const struct ds_buffer *in, uint32_t n);
