/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spm.h - SentencePiece's BPE: text without special tokens to ids.
 *
 * A space is written U+2581; characters are symbols; the pair of neighbours whose joint text is the
 * token of the highest score is joined first; a character that ends up outside the vocabulary is
 * spelt in byte tokens. A GGUF file and tokenizer.model have no merge rules: they are derived from
 * the tokens, each token from every pair of texts it can be joined from; tokenizer.json has them
 * written down. Immutable after init: any thread.
 * Source: SentencePiece (Kudo and Richardson 2018), bpe_model.
 */
#pragma once

#include <stdbool.h>

#include "engine/text/encoding.h"
#include "engine/text/text_index.h"

#define DS_SPM_SPACE      "\xE2\x96\x81" /* U+2581 */
#define DS_SPM_SPACE_SIZE 3u
#define DS_SPM_TOKEN_MAX  512u /* bytes; deriving the rules is quadratic in it */

struct ds_spm {
    struct ds_text_index index;
    struct ds_merge_table merges;
    uint32_t ascii_ids[128]; /* token or symbol of one character; ' ' stands for U+2581 */
    uint32_t byte_ids[256];  /* token of a byte, else the unknown token, else DS_TOKEN_NONE */
    bool words;              /* no token has U+2581 after something else: words can be cut apart */
};

/* -EBADMSG: a token that is too long; -ENOMEM. What a failed init leaves, deinit takes. */
int ds_spm_init(struct ds_spm *spm, const struct ds_vocab *vocab, struct ds_error *error);
void ds_spm_deinit(struct ds_spm *spm);

/* The byte that a byte token's text ("<0x0A>") names, -1 where it names none. */
int ds_spm_byte(struct ds_bytes text);

/* Appends the ids of the encoding's text[start..end), with a space put before it. -ENOMEM. */
int ds_spm_encode(const struct ds_spm *spm, struct ds_encoding *encoding, size_t start, size_t end,
                  bool space_first);
