/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weights.h - from a checkpoint's tensors to a backend's weights, each with its shape demanded.
 *
 * A loader is a plain value with nothing to free; what it makes belongs to the caller. All calls
 * return 0 or a negative errno with the line in error.
 */
#pragma once

#include "engine/model/adapter.h"
#include "engine/model/filling.h"
#include "engine/model/model.h"

struct ds_weight_loader {
    struct ds_backend *backend;
    const struct ds_checkpoint *checkpoint;
    struct ds_error *error;
    uint64_t size_bytes;          /* resident memory of all made so far */
    bool rounded;                 /* one matrix at least is not F32 */
    struct ds_adapters *adapters; /* hears of every matrix made; NULL: nobody does */
    struct ds_model_cost cost;    /* of all made so far */
    struct ds_filling *filling;   /* what has yet to be filled (filling.h); NULL: all is at once */
};

/* Adds a weight just made to the loader's sums: ops of arithmetic for one token, in the layers or
 * (head) for the logits; share: the part of the weight that one token reads. */
void ds_loader_count(struct ds_weight_loader *loader, const struct ds_weight *weight, uint32_t type,
                     bool head, uint64_t ops, double share);

/* The matrix {k, n} blk.LAYER.NAME (layer -1: NAME). gather: for embed(). Becomes a site of the
 * loader's adapters; a token embedding used as output matrix is "output.weight" to them. */
int ds_load_matrix(struct ds_weight_loader *loader, int layer, const char *name, uint64_t k,
                   uint64_t n, bool gather, struct ds_weight **ret_weight);

/* The stack of n_experts matrices {k, n} of NAME ("ffn_gate"): blk.LAYER.NAME_exps.weight, or where
 * there is none and NAME is ffn_gate or ffn_up, that half of blk.LAYER.ffn_gate_up_exps.weight, or
 * blk.LAYER.NAME.0.weight and so on. Sites of adapters they do not become. */
int ds_load_experts(struct ds_weight_loader *loader, int layer, const char *name, uint64_t k,
                    uint64_t n, uint32_t n_experts, struct ds_weight **ret_weight);

/* The vector of n elements as floats on the device. */
int ds_load_vector(struct ds_weight_loader *loader, int layer, const char *name, uint64_t n,
                   struct ds_buffer **ret_buffer);

/* Likewise, but *ret_buffer is NULL where the checkpoint has no such tensor. */
int ds_load_optional_vector(struct ds_weight_loader *loader, int layer, const char *name,
                            uint64_t n, struct ds_buffer **ret_buffer);

/* The vector of n elements as floats on the host, every one finite: free(). */
int ds_load_host_vector(struct ds_weight_loader *loader, int layer, const char *name, uint64_t n,
                        float **ret_values);

bool ds_has_tensor(const struct ds_weight_loader *loader, int layer, const char *name);
