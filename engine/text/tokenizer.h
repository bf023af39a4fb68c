/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.h - text to token ids and back, as the model's file describes it.
 *
 * Immutable after ds_tokenizer_new(): encode and piece may run on any number of threads at once.
 * Byte-level BPE (GPT-2; merges by rank) with the pre-tokenisers of pretokenise.c; SPM
 * (merges by score, byte fallback). Text is bytes: invalid UTF-8 is tokenised too, never refused.
 * Only special tokens that stand in the text become special tokens: merging never makes one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"

struct ds_tokenizer;

/* vocab is borrowed and must outlive it. -ENOTSUP: pre-tokeniser unknown (named in error, with the
 * list of known ones); -EBADMSG: tokens or merges make no sense; -ENOMEM. */
int ds_tokenizer_new(struct ds_tokenizer **ret_tokenizer, const struct ds_vocab *vocab,
                     struct ds_error *error);
struct ds_tokenizer *ds_tokenizer_free(struct ds_tokenizer *tokenizer);
void ds_tokenizer_free_p(struct ds_tokenizer **tokenizer);

enum {
    DS_ENCODE_SPECIAL = 1u << 0, /* recognise control tokens written in the text */
    DS_ENCODE_BOS = 1u << 1,     /* put BOS first (nothing happens where the model has none) */
};

/* *ret_ids (n_ids of them) is fresh memory: free(). -ENOMEM, also for more than 1 GiB of text.
 * Takes n log n time, and up to 28 bytes of memory for each byte of text. */
int ds_tokenizer_encode(const struct ds_tokenizer *tokenizer, const char *text, size_t size,
                        unsigned flags, uint32_t **ret_ids, size_t *ret_n_ids);

/* The bytes of one token as they appear in text: byte-level and byte-fallback tokens give their raw
 * bytes, control tokens their name. Borrowed. id beyond the vocabulary: empty. */
struct ds_bytes ds_tokenizer_piece(const struct ds_tokenizer *tokenizer, uint32_t id);

uint32_t ds_tokenizer_n_tokens(const struct ds_tokenizer *tokenizer);
uint32_t ds_tokenizer_bos(const struct ds_tokenizer *tokenizer); /* DS_TOKEN_NONE: none */
uint32_t ds_tokenizer_eos(const struct ds_tokenizer *tokenizer);
bool ds_tokenizer_adds_bos(const struct ds_tokenizer *tokenizer); /* raw text starts with BOS */
bool ds_tokenizer_is_end(const struct ds_tokenizer *tokenizer, uint32_t id); /* ends an answer */
bool ds_tokenizer_is_control(const struct ds_tokenizer *tokenizer, uint32_t id); /* not shown */

/* Detokenises ids. skip_control: control tokens vanish, else they appear by name. strip_space:
 * SPM's artificial first space goes (whole texts; false for a continuation). The bytes are the
 * tokens' own, not always UTF-8. Fresh memory, NUL added. -ENOMEM. */
int ds_tokenizer_decode(const struct ds_tokenizer *tokenizer, const uint32_t *ids, size_t n_ids,
                        bool skip_control, bool strip_space, char **ret_text, size_t *ret_size);
