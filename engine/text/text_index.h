/* SPDX-License-Identifier: Apache-2.0 */
/*
 * text_index.h - finds a token by its text.
 *
 * Holds the tokens that plain text can become: control, unknown and byte tokens are left out, so
 * no text can be mistaken for them. Where two tokens have one text the later one counts. Texts
 * that merging passes through without being tokens get symbols: numbers from n_tokens upwards.
 * Built by one thread, then read by any.
 */
#pragma once

#include "engine/format/checkpoint.h"

struct ds_text_slot {
    uint32_t hash;
    uint32_t id; /* DS_TOKEN_NONE: empty */
};

struct ds_text_index {
    const struct ds_vocab *vocab;    /* borrowed */
    struct ds_bytes *symbols;        /* own; text of id n_tokens + i */
    uint32_t n_symbols, symbols_max; /* in use, room for */
    struct ds_text_slot *slots;      /* open addressing, 2^n */
    size_t mask, n_used;
};

/* deinit accepts what a failed init left, and zeroes. -ENOMEM. */
int ds_text_index_init(struct ds_text_index *index, const struct ds_vocab *vocab);
void ds_text_index_deinit(struct ds_text_index *index);

/* A text in two parts, as merging needs it (second may be empty). DS_TOKEN_NONE: not there. */
uint32_t ds_text_index_find(const struct ds_text_index *index, struct ds_bytes first,
                            struct ds_bytes second);

/* The same, and where it is not there it becomes a symbol (copied). -ENOMEM. */
int ds_text_index_intern(struct ds_text_index *index, struct ds_bytes first, struct ds_bytes second,
                         uint32_t *ret_id);

/* Text of a token or symbol. */
static inline struct ds_bytes ds_text_index_text(const struct ds_text_index *index, uint32_t id)
{
    uint32_t n_tokens = index->vocab->n_tokens;

    return id < n_tokens ? index->vocab->tokens[id] : index->symbols[id - n_tokens];
}

/* What stands for a token when plain text is merged: itself, or a symbol of its text where it is
 * one of those that are left out. -ENOMEM. */
int ds_text_index_plain(struct ds_text_index *index, uint32_t id, uint32_t *ret_id);
