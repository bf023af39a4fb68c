/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hf_vocab.h - the tokeniser files of a Hugging Face folder as the struct ds_vocab of a GGUF file.
 *
 * tokenizer.json (byte-level BPE, and BPE with byte fallback, which is SPM) or, where there is
 * none, tokenizer.model (SentencePiece BPE); then what lies beside it: tokenizer_config.json,
 * special_tokens_map.json, added_tokens.json, chat_template.jinja, generation_config.json.
 *
 * One model gives the same ids from its folder as from its GGUF file. Hence tokens are typed as
 * llama.cpp's converter types them, and NFC, which Qwen's files ask for and GGUF files cannot say,
 * is not applied: texts that are not composed already give other ids than transformers gives.
 * Whatever else a file asks for and this build has not is refused by name, never left out.
 *
 * Files are hostile: values are counted before they are parsed, every id and length is checked.
 * Sources: Hugging Face tokenizers (tokenizer.json), transformers (the other files), SentencePiece
 * (sentencepiece_model.proto).
 */
#pragma once

#include "engine/format/checkpoint.h"

enum ds_hf_file {
    DS_HF_TOKENIZER_JSON,
    DS_HF_TOKENIZER_MODEL,
    DS_HF_TOKENIZER_CONFIG,
    DS_HF_SPECIAL_TOKENS,
    DS_HF_ADDED_TOKENS,
    DS_HF_CHAT_TEMPLATE,
    DS_HF_GENERATION_CONFIG,
    DS_HF_N_FILES
};

/* "tokenizer.json" ... */
const char *ds_hf_file_name(enum ds_hf_file file);

/* What config.json says. */
struct ds_hf_model {
    const char *label;    /* of the folder, for errors */
    uint32_t n_vocab;     /* vocab_size: missing tokens up to it are unused ones; 0: not said */
    const uint32_t *ends; /* eos_token_id, one or several */
    size_t n_ends;
    uint32_t bos; /* bos_token_id, DS_TOKEN_NONE: not said */
};

struct ds_hf_vocab;

/* files[i].size 0: the folder has no such file. The result keeps nothing of files and model.
 * Errors name folder, file and field: -EBADMSG damaged or contradicting itself; -ENOTSUP asks for
 * something that this build has not; -ENOENT neither tokenizer.json nor tokenizer.model; -ENOMEM.
 */
int ds_hf_vocab_read(struct ds_hf_vocab **ret_vocab, const struct ds_bytes files[DS_HF_N_FILES],
                     const struct ds_hf_model *model, struct ds_error *error);
struct ds_hf_vocab *ds_hf_vocab_free(struct ds_hf_vocab *vocab);
void ds_hf_vocab_free_p(struct ds_hf_vocab **vocab);

/* Owned by the vocab, arrays included. */
const struct ds_vocab *ds_hf_vocab_get(const struct ds_hf_vocab *vocab);
const struct ds_sampling_advice *ds_hf_vocab_advice(const struct ds_hf_vocab *vocab);
