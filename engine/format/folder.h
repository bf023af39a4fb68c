/* SPDX-License-Identifier: Apache-2.0 */
/*
 * folder.h - a model in the form of Hugging Face: a folder's config.json and safetensors, told in
 * GGUF's words. Only the
 * readers of checkpoints and adapters include it.
 *
 * config.json becomes GGUF keys, so that one reader (checkpoint_hyper.c) decides what they mean;
 * tensors get GGUF's names and dimensions, and stay where they lie in the mapped files. Errors
 * name the file of the folder and the field or tensor as it stands there.
 */
#pragma once

#include <jansson.h>

#include "engine/format/checkpoint_parts.h"
#include "engine/format/hf_vocab.h"
#include "engine/format/packed.h"
#include "engine/format/safetensors.h"

#define DS_HF_KEYS_MAX 64u

/* The files handed over, while the folder is being opened. */
struct ds_hf_files {
    const char *model; /* for labels */
    const int *fds;
    const char *const *names; /* [n] in the folder */
    unsigned n;
};

enum ds_hf_quant { DS_HF_PLAIN, DS_HF_FP8, DS_HF_GPTQ, DS_HF_AWQ };

/* What config.json says, sizes checked against the limits of checkpoint_parts.h. */
struct ds_hf_config {
    char *label;              /* "MODEL/config.json", owned */
    json_t *json;             /* owned */
    const char *architecture; /* GGUF's name: "llama" */
    bool known;               /* one of those this file translates */
    bool mla, experts;
    uint64_t layers, nextn, width, ffn, heads, kv_heads, head_dim, vocab, context;
    uint64_t q_lora, kv_lora, nope, rope_dims, value_dim; /* latent attention; q_lora 0: none */
    uint64_t n_experts, n_used, n_shared, expert_ffn;
    uint64_t index_heads, index_dim, index_top_k;
    uint64_t window, window_first_layer; /* window 0: none */
    bool tied, attention_bias, rope_neox;
    bool sigmoid; /* the router's function, where no field says it */
    /* rope_scaling */
    const json_t *rope; /* NULL: none */
    double rope_base;
    float *rope_factors; /* [rope_dims / 2] of llama3 scaling, owned; NULL: none */
    /* quantization_config */
    enum ds_hf_quant quant;
    uint64_t bits, group_size; /* group_size 0: all of a row */
    uint64_t block_rows, block_columns;
    bool zeros_less_one; /* GPTQ's first form */
    /* the keys made of it point here */
    uint64_t numbers[DS_HF_KEYS_MAX];
    struct {
        uint64_t size;
        char text[72];
    } strings[4];
    unsigned n_numbers, n_strings;
};

struct ds_hf {
    struct ds_hf_config config;
    struct ds_safetensors *shards; /* [n_shards] */
    char **labels;                 /* [n_shards] */
    unsigned n_shards;
    struct ds_safetensors **shard_of; /* [files] NULL: none of the model's */
    json_t *weight_map;               /* of the index, owned; NULL: there is none */
    struct ds_tensor *tensors;        /* [n_tensors] names owned */
    struct ds_packed *packed;         /* [n_tensors] used by those whose numbers stand in several */
    size_t n_tensors;
    struct ds_hf_vocab *vocab;
    uint64_t file_bytes;
};

/* Do the names describe a folder? */
bool ds_hf_is_folder(const char *const *names, unsigned n);

/* Index of a name among the files; -1: not there. */
int ds_hf_find_file(const struct ds_hf_files *files, const char *name);

/* --- folder_config.c --- */

/* config: zeroed by the caller, deinit it whatever came back. any: an architecture this build does
 * not know is no error (known is false then). -EBADMSG, -EINVAL, -ENOTSUP, -ENOMEM. */
int ds_hf_config_read(struct ds_hf_config *config, const struct ds_hf_files *files, bool any,
                      struct ds_error *error);
void ds_hf_config_deinit(struct ds_hf_config *config);

/* Class number i that folders may name in "architectures"; NULL past the last. *ret_architecture:
 * GGUF's name of it. */
const char *ds_hf_class(unsigned i, const char **ret_architecture);

/* --- folder_keys.c --- */

/* GGUF keys for all of it, in gguf, which has no file behind it; gguf's values point into config.
 */
int ds_hf_config_keys(struct ds_hf_config *config, struct ds_gguf *gguf, struct ds_error *error);

/* --- folder.c: shards, and who belongs to them --- */

/* Config, shards (those that the index names or, without one, that the folder holds), tensors and
 * keys. hf: zeroed by the caller, deinit it whatever came back; keys likewise (ds_gguf_deinit()).
 */
int ds_hf_open(struct ds_hf *hf, const struct ds_hf_files *files, bool any, struct ds_gguf *keys,
               struct ds_error *error);
/* Gives the data up: no tensor has any from now on. */
void ds_hf_unmap(struct ds_hf *hf);
void ds_hf_deinit(struct ds_hf *hf);

/* --- folder_tensors.c --- */

/* From shards to hf->tensors, shapes compared with config. */
int ds_hf_list_tensors(struct ds_hf *hf, struct ds_error *error);

/* GGUF's name of the matrix of a module ("model.layers.0.mlp.up_proj"): free(). NULL: no such. */
char *ds_folder_gguf_name(const char *module);

/* GGUF's name to that of the folder ("model.layers.0.mlp.up_proj.weight"); NULL: no such. */
const char *ds_hf_origin(const char *name, char buffer[256]);
