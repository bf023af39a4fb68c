/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpe.h - byte-level byte-pair encoding: text without special tokens to ids.
 *
 * Every byte of a word becomes the token that stands for it, then neighbours are merged by the rank
 * of their pair. Immutable after init: any thread. Source: GPT-2's encoder, ranks as in the file.
 */
#pragma once

#include <stdbool.h>

#include "engine/text/encoding.h"
#include "engine/text/pretokenise.h"
#include "engine/text/text_index.h"

struct ds_bpe {
    const struct ds_pretokeniser *pretokeniser;
    struct ds_text_index index;
    struct ds_merge_table merges;
    uint32_t byte_ids[256]; /* DS_TOKEN_NONE: the vocabulary has no token for the byte */
    bool whole_words;       /* a word that is a token is not merged ("ignore_merges") */
};

/* -ENOTSUP: unknown pre-tokeniser; -EBADMSG: a merge that is none; -ENOMEM. What a failed init
 * leaves, deinit takes. */
int ds_bpe_init(struct ds_bpe *bpe, const struct ds_vocab *vocab, struct ds_error *error);
void ds_bpe_deinit(struct ds_bpe *bpe);

/* Adds vocab->rules (n_merges of them) to merges. -EBADMSG: an id beyond the vocabulary; -ENOMEM.
 */
int ds_bpe_add_rules(struct ds_text_index *index, struct ds_merge_table *merges,
                     struct ds_error *error);

/* Appends the ids of the encoding's text[start..end). Bytes that the vocabulary cannot express are
 * left out. -ENOMEM. */
int ds_bpe_encode(const struct ds_bpe *bpe, struct ds_encoding *encoding, size_t start, size_t end);
