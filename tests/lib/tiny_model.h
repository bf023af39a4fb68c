/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tiny_model.h - small random models as GGUF files, so that tests need no downloaded data.
 *
 * The same options give the same bytes, on every machine. Norm weights are far from 1 and biases
 * far from 0, so that forgetting one shows; logits are spread, so that greedy answers are stable.
 *
 * Vocabularies (a few hundred tokens; the rest up to n_vocab is "<unused12>"):
 *   BPE   0 <|endoftext|> (bos, unk)  1 <|im_start|>  2 <|im_end|> (eos), control tokens; then the
 *         256 byte tokens in GPT-2's alphabet, then the results of some merges ("Ġt", "he", ...)
 *   SPM   0 <unk>  1 <s>  2 </s>  3..258 <0x00>..<0xFF>  then "▁", letters and some pieces
 * Both carry a chatml chat template. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"
#include "tests/lib/gguf_writer.h"

/* How the experts' matrices stand in the file; the numbers are the same in all forms. */
enum ds_tiny_experts { DS_TINY_STACKED, DS_TINY_MERGED, DS_TINY_SEPARATE };

struct ds_tiny_options {
    enum ds_architecture architecture;
    enum ds_vocab_kind vocab;
    uint32_t type; /* of the matrices; those whose rows are no whole blocks become F32 */
    uint64_t seed;
    uint32_t n_layers;
    uint32_t width;
    uint32_t ffn_width;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim; /* keys and values */
    uint32_t n_vocab;  /* at least 320 */
    uint32_t context;
    uint32_t n_experts; /* 0: dense */
    uint32_t n_experts_used;
    uint32_t n_experts_shared;
    uint32_t expert_ffn_width;
    enum ds_tiny_experts experts;
    bool dense_first;                  /* the first layer has no experts, and no key says so */
    uint32_t window;                   /* attention.sliding_window; 0: none */
    bool tied;                         /* no output.weight */
    bool rope_factors;                 /* a rope_freqs.weight tensor, as llama3 scaling writes it */
    bool vocab_only;                   /* keys only, no tensors */
    enum ds_rope_scaling rope_scaling; /* factor 4 over a quarter of the context */
    const char *pre;                   /* pre-tokeniser; NULL: smollm (llama), qwen2 (others) */
    const char *chat_template;         /* NULL: chatml; "": none */
    const char *name;                  /* general.name; NULL: "tiny" */
};

/* 2 layers, width 64 (256 for superblock types), 4 heads, 2 KV heads, 320 tokens, context 512;
 * qwen3moe: 6 experts, 2 used. */
struct ds_tiny_options ds_tiny_options(enum ds_architecture architecture, uint32_t type);

/* A memfd holding the model, -1 = failed. */
int ds_tiny_model_fd(const struct ds_tiny_options *options);
int ds_tiny_model_file(const struct ds_tiny_options *options, const char *path);

/* The same split into n_files parts (tensors dealt out in order), as memfds. 0 or -1. */
int ds_tiny_model_split(const struct ds_tiny_options *options, unsigned n_files, int *ret_fds);

/* Into a writer of the caller's, who may add to it. */
void ds_tiny_model_write(struct ds_gguf_writer *writer, const struct ds_tiny_options *options);
