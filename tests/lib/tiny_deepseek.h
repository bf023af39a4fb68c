/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tiny_deepseek.h - small random DeepSeek models, as GGUF files and as floats.
 *
 * Two layers of the model and one that predicts a further token, all with dense feed-forward. The
 * floats are the model; what the file holds is made from them: kv_b as one matrix, cut and turned
 * into k_b and v_b, or both. Failures end the program.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"

enum ds_tiny_kv {
    DS_TINY_KV_ONE,   /* attn_kv_b, and the keys of files from before the split */
    DS_TINY_KV_SPLIT, /* attn_k_b, attn_v_b with heads as a third dimension, and today's keys */
    DS_TINY_KV_ALL,   /* attn_kv_b, and k_b and v_b with heads among the rows */
};

struct ds_tiny_deepseek_options {
    bool sparse;     /* deepseek32: with an indexer */
    bool compressed; /* queries have a low rank */
    bool mtp;        /* the third layer is there */
    enum ds_tiny_kv kv;
    uint32_t type; /* of the matrices; Q8_0 where rows are whole blocks */
    uint32_t top_k;
    uint64_t seed;
};

struct ds_tiny_tensor {
    char name[64];
    uint64_t dims[2]; /* dims[1] 0: a vector */
    float *values;
};

enum {
    DS_TINY_LAYERS = 2,
    DS_TINY_WIDTH = 64,
    DS_TINY_HEADS = 5,
    DS_TINY_NOPE = 32,
    DS_TINY_ROPE = 16,
    DS_TINY_VALUE = 40, /* no multiple of 16 */
    DS_TINY_RANK = 64,
    DS_TINY_Q_RANK = 96,
    DS_TINY_FFN = 96,
    DS_TINY_INDEX_HEADS = 3,
    DS_TINY_INDEX_DIM = 24,
    DS_TINY_VOCAB = 320,
};

struct ds_tiny_deepseek {
    struct ds_tiny_deepseek_options options;
    struct ds_tiny_tensor tensors[64];
    unsigned n_tensors;
};

struct ds_tiny_deepseek *ds_tiny_deepseek_new(const struct ds_tiny_deepseek_options *options);
struct ds_tiny_deepseek *ds_tiny_deepseek_free(struct ds_tiny_deepseek *model);

/* blk.LAYER.NAME (layer -1: NAME): its floats. */
const float *ds_tiny_deepseek_get(const struct ds_tiny_deepseek *model, int layer,
                                  const char *name);

/* Fresh memory: the file. free(). The tensor called `without` is left out (NULL: none is). */
uint8_t *ds_tiny_deepseek_file(const struct ds_tiny_deepseek *model, const char *without,
                               size_t *ret_size);
