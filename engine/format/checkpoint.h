/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint.h - one in-memory description of a model's files, whatever their format.
 *
 * A checkpoint maps the files it was given and describes them; it converts nothing. Strings lie in
 * its own memory and live as long as it does; tensors' data lie in the mapping (mapping.h: a file
 * that is cut short meanwhile reads as zeros, and ds_checkpoint_intact() tells). Immutable after
 * opening: any thread may read. Files are hostile: every length is checked against the file.
 * Sources: GGUF specification (ggml docs/gguf.md); shared notation: dims[0] is the
 * contiguous one, a matrix {K, N} is N rows of K elements and y = W x.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base.h"

#define DS_EXPERTS_MAX      1024u /* of one layer */
#define DS_EXPERTS_USED_MAX 64u   /* of those, for one row */
#define DS_INDEX_HEADS_MAX  1024u /* of an indexer */
#define DS_INDEX_DIM_MAX    1024u

struct ds_checkpoint; /* opaque parts in checkpoint.c; the public description: */

/* ggml's numbers; the trait table in engine/format/quant.h says which of them are supported. */
enum ds_type {
    DS_TYPE_F32 = 0,
    DS_TYPE_F16 = 1,
    DS_TYPE_Q4_0 = 2,
    DS_TYPE_Q4_1 = 3,
    DS_TYPE_Q5_0 = 6,
    DS_TYPE_Q5_1 = 7,
    DS_TYPE_Q8_0 = 8,
    DS_TYPE_Q2_K = 10,
    DS_TYPE_Q3_K = 11,
    DS_TYPE_Q4_K = 12,
    DS_TYPE_Q5_K = 13,
    DS_TYPE_Q6_K = 14,
    DS_TYPE_IQ2_XXS = 16,
    DS_TYPE_IQ2_XS = 17,
    DS_TYPE_IQ3_XXS = 18,
    DS_TYPE_IQ1_S = 19,
    DS_TYPE_IQ4_NL = 20,
    DS_TYPE_IQ3_S = 21,
    DS_TYPE_IQ2_S = 22,
    DS_TYPE_IQ4_XS = 23,
    DS_TYPE_IQ1_M = 29,
    DS_TYPE_BF16 = 30,
    DS_TYPE_TQ1_0 = 34,
    DS_TYPE_TQ2_0 = 35,
    DS_TYPE_MXFP4 = 39,
    DS_TYPE_GGML_END = 64, /* what a GGUF file may hold is below; types of our own begin here */
    DS_TYPE_F8 = 64,       /* of folders: E4M3, with a float scale for each 128 of a row */
    DS_TYPE_END = 80,      /* all are below */
};

struct ds_tensor {
    const char *name; /* NUL-terminated */
    uint32_t type;    /* enum ds_type, always a supported one */
    uint32_t n_dims;
    uint64_t dims[4]; /* unused ones are 1 */
    const void *data; /* in the mapping; aligned to the file's alignment only; NULL after unmap */
    uint64_t size_bytes;
    const struct ds_packed *packed; /* NULL: rows of blocks lie at data; else ds_tensor_rows()
                                     * (engine/format/packed.h) makes them */
};

enum ds_architecture {
    DS_ARCH_LLAMA,
    DS_ARCH_QWEN2,
    DS_ARCH_QWEN3,
    DS_ARCH_QWEN3MOE,
    DS_ARCH_DEEPSEEK2, /* V2, V3, R1 */
    DS_ARCH_DEEPSEEK32
};
/* How a mixture of experts turns its router's logits into scores. */
enum ds_gating {
    DS_GATING_SOFTMAX,        /* over all experts */
    DS_GATING_SIGMOID,        /* each by itself */
    DS_GATING_SOFTMAX_CHOSEN, /* chosen by their logits; softmax over the chosen ones */
};

struct ds_architecture_traits {
    const char *name;   /* as files say it */
    const char *models; /* for a person: what goes by it */
    bool rope_neox;
};
/* NULL: beyond the last one. */
const struct ds_architecture_traits *ds_architecture_traits(unsigned architecture);

enum ds_rope_scaling { DS_ROPE_NONE, DS_ROPE_LINEAR, DS_ROPE_YARN };

struct ds_hyper {
    enum ds_architecture architecture;
    uint32_t n_layers;
    uint32_t width; /* d, residual stream */
    uint32_t ffn_width;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t key_dim; /* per head */
    uint32_t value_dim;
    uint32_t n_vocab;
    uint32_t context; /* trained positions */
    float rms_epsilon;
    uint32_t window;             /* positions a token attends to, its own counted; 0: all */
    uint32_t window_first_layer; /* layers from here on have the window, those before see all */
    /* RoPE */
    uint32_t rope_dims;
    float rope_base;
    bool rope_neox; /* pairs (i, i + n/2); else (2i, 2i + 1) */
    enum ds_rope_scaling rope_scaling;
    float rope_factor; /* 1 where there is none */
    uint32_t rope_original_context;
    float rope_beta_fast, rope_beta_slow; /* YaRN */
    float rope_attn_factor;
    float rope_log_multiplier; /* DeepSeek's YaRN: scores times (1 + this ln factor)^2 */
    /* mixture of experts; n_experts 0: there is none, and none of the following */
    uint32_t n_experts;
    uint32_t n_experts_used;       /* for one row */
    uint32_t n_experts_shared;     /* beside those, for every row; stored as one */
    uint32_t expert_ffn_width;     /* of one expert */
    uint32_t shared_ffn_width;     /* of all shared experts together */
    uint32_t n_leading_dense;      /* layers before the first one that has experts */
    uint32_t n_expert_groups;      /* 0 or 1: no groups */
    uint32_t n_expert_groups_used; /* experts are chosen from these alone */
    bool expert_groups_by_two;     /* a group is worth its two best experts, else its best */
    bool expert_weights_norm;      /* the weights of the chosen are divided by their sum */
    float expert_weights_scale;    /* and multiplied by this */
    enum ds_gating gating;

    uint32_t n_nextn; /* layers at the end, counted in n_layers, that predict further tokens */
    /* latent attention; key_dim and value_dim are then those of a head before compression */
    uint32_t kv_lora_rank; /* 0: there is none, and none of the following */
    uint32_t q_lora_rank;  /* 0: queries are not compressed */
    uint32_t index_heads;  /* of the indexer that chooses positions; 0: all are attended to */
    uint32_t index_dim;
    uint32_t index_top_k;
};

struct ds_bytes {
    const char *data; /* not NUL-terminated */
    size_t size;
};

enum ds_vocab_kind { DS_VOCAB_BPE, DS_VOCAB_SPM };
enum ds_token_type {
    DS_TOKEN_NORMAL = 1,
    DS_TOKEN_UNKNOWN,
    DS_TOKEN_CONTROL,
    DS_TOKEN_USER,
    DS_TOKEN_UNUSED,
    DS_TOKEN_BYTE
};

#define DS_TOKEN_NONE UINT32_MAX

/* How a special token is found in a text, beyond its own bytes. Only tokenizer.json says so. */
enum ds_token_flag {
    DS_TOKEN_LSTRIP = 1u << 0,      /* takes the white space before it along */
    DS_TOKEN_RSTRIP = 1u << 1,      /* and the white space after it */
    DS_TOKEN_SINGLE_WORD = 1u << 2, /* found only where no letter, mark, number or _ touches it */
};

struct ds_merge_rule { /* token ids */
    uint32_t left, right, id;
};

/* What the file says of its tokeniser. Arrays have n_tokens entries. */
struct ds_vocab {
    enum ds_vocab_kind kind;
    struct ds_bytes pre; /* pre-tokeniser, "" where the file says none */
    uint32_t n_tokens;
    const struct ds_bytes *tokens;
    const int32_t *types; /* enum ds_token_type; NULL: all normal */
    const float *scores;  /* SPM; NULL otherwise */
    uint32_t n_merges;
    const struct ds_bytes *merges;     /* BPE: "left right"; NULL where rules are there */
    const struct ds_merge_rule *rules; /* the same as ids, by rank; SPM too, which without them
                                          derives its rules from the scores */
    const uint8_t *flags;              /* enum ds_token_flag; NULL: none */
    const uint32_t *ends;              /* tokens that end an answer besides those named below */
    uint32_t n_ends;
    uint32_t bos, eos, eot, eom, unknown, padding; /* DS_TOKEN_NONE where not said */
    uint32_t fim_pad, fim_rep, fim_sep;
    int8_t add_bos, add_eos, add_space_prefix, ignore_merges; /* -1 where not said */
    struct ds_bytes chat_template;                            /* "" where the file has none */
};

/* The file's own sampling advice; NAN / 0-with-flag-false where not said. */
struct ds_sampling_advice {
    float temperature, top_p, min_p, repeat_penalty; /* NAN: not said */
    int32_t top_k;                                   /* -1: not said */
};

struct ds_metadata { /* one key for a person */
    const char *key;
    const char *value; /* arrays shortened: "[49152 strings]" */
};

/* Opens a model from n_fds descriptors (one GGUF, or all splits of one in any order); they are
 * dup'ed or mapped, the caller keeps its own. name is for error texts. vocab_only: accept a file
 * without tensors and of any architecture (ds_checkpoint_hyper() is then zero where not said).
 * Errors (text in error): -EBADMSG damaged or not GGUF; -ENOTSUP version, type, architecture or
 * tokeniser this build has not; -EINVAL keys or shapes that contradict each other; -ENOMEM, -EIO.
 */
int ds_checkpoint_open(struct ds_checkpoint **ret_checkpoint, const int *fds, unsigned n_fds,
                       const char *name, bool vocab_only, struct ds_error *error);

/* The same with the files' names. Where one is "config.json", they are the folder of a model in
 * Hugging Face's form: its safetensors (those that its index names), its tokeniser. names NULL, or
 * without names: ds_checkpoint_open(). */
int ds_checkpoint_open_named(struct ds_checkpoint **ret_checkpoint, const int *fds,
                             const char *const *names, unsigned n_fds, const char *name,
                             bool vocab_only, struct ds_error *error);

/* Makes a context of so many positions possible where the model's own is shorter and its file names
 * a scaling of positions (linear, YaRN): hyper's context and rope_factor grow. Before the model is
 * loaded. -EINVAL: the file names none, or it would be stretched beyond measure. */
int ds_checkpoint_stretch(struct ds_checkpoint *checkpoint, uint32_t context,
                          struct ds_error *error);

/* Whether the tensors' data, as far as they were read, are what the files held when they were
 * opened: whoever has read some asks before it is put to use. -EIO + what became of which file. */
int ds_checkpoint_intact(const struct ds_checkpoint *checkpoint, struct ds_error *error);
/* Gives the files' pages and address space back: data of all tensors is NULL from now on. */
void ds_checkpoint_unmap(struct ds_checkpoint *checkpoint);
struct ds_checkpoint *ds_checkpoint_free(struct ds_checkpoint *checkpoint);
void ds_checkpoint_free_p(struct ds_checkpoint **checkpoint);

const char *ds_checkpoint_name(const struct ds_checkpoint *checkpoint);
const char *ds_checkpoint_architecture(const struct ds_checkpoint *checkpoint); /* as in the file */
const struct ds_hyper *ds_checkpoint_hyper(const struct ds_checkpoint *checkpoint);
const struct ds_vocab *ds_checkpoint_vocab(const struct ds_checkpoint *checkpoint);
const struct ds_sampling_advice *ds_checkpoint_advice(const struct ds_checkpoint *checkpoint);

/* By full name ("blk.3.attn_q.weight"): NULL where there is none. */
const struct ds_tensor *ds_checkpoint_tensor(const struct ds_checkpoint *checkpoint,
                                             const char *name);

/* blk.LAYER.NAME with its shape demanded ({ne0, ne1}, ne1 0 = vector). NULL + error text (names
 * tensor, has, wants) where it is missing or shaped otherwise. layer -1: a global tensor. */
const struct ds_tensor *ds_checkpoint_require(const struct ds_checkpoint *checkpoint, int layer,
                                              const char *name, uint64_t ne0, uint64_t ne1,
                                              struct ds_error *error);

unsigned ds_checkpoint_n_tensors(const struct ds_checkpoint *checkpoint);
const struct ds_tensor *ds_checkpoint_tensor_at(const struct ds_checkpoint *checkpoint, unsigned i);
unsigned ds_checkpoint_n_metadata(const struct ds_checkpoint *checkpoint);
const struct ds_metadata *ds_checkpoint_metadata(const struct ds_checkpoint *checkpoint);
uint64_t ds_checkpoint_file_bytes(const struct ds_checkpoint *checkpoint);
uint64_t ds_checkpoint_n_parameters(const struct ds_checkpoint *checkpoint);
const char *
ds_checkpoint_main_type(const struct ds_checkpoint *checkpoint); /* most bytes: "Q4_1" */
