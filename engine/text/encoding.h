/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encoding.h - the working state of one ds_tokenizer_encode(): the ids so far, and words seen.
 *
 * Texts repeat their words, so a word's ids are copied from where the word last stood. The memory
 * of words is a direct-mapped table of fixed size for one call: nothing is shared between threads,
 * and hostile text only empties it.
 */
#pragma once

#include <stdbool.h>

#include "engine/text/merge.h"
#include "proto/base.h"

struct ds_seen_word {
    uint32_t start, size; /* in the text; size 0: empty */
    uint32_t first, n;    /* in ids */
};

struct ds_encoding {
    const char *text; /* borrowed */
    size_t size;
    uint32_t *ids; /* own */
    size_t n, capacity;
    struct ds_seen_word *seen; /* own; NULL for short texts */
    size_t seen_mask;
    struct ds_merge_scratch scratch;
};

/* Texts are addressed with 32 bits, and merging needs 24 bytes of memory for each of a long word.
 */
#define DS_ENCODE_BYTES_MAX (1u << 30)

/* -ENOMEM. deinit frees what is still owned. */
int ds_encoding_init(struct ds_encoding *encoding, const char *text, size_t size);
void ds_encoding_deinit(struct ds_encoding *encoding);

/* Room for n more ids: where they go. NULL: no memory. */
uint32_t *ds_encoding_room(struct ds_encoding *encoding, size_t n);

static inline int ds_encoding_push(struct ds_encoding *encoding, uint32_t id)
{
    uint32_t *room = ds_encoding_room(encoding, 1);

    if (!room)
        return -ENOMEM;
    *room = id;
    encoding->n++;
    return 0;
}

enum { DS_WORD_COPIED, DS_WORD_NEW };

/* Appends the ids of text[start..end) if that word was seen; DS_WORD_COPIED, DS_WORD_NEW (then
 * *ret_slot, perhaps NULL, is for ds_encoding_remember()), -ENOMEM. */
int ds_encoding_recall(struct ds_encoding *encoding, size_t start, size_t end,
                       struct ds_seen_word **ret_slot);

/* The word text[start..end) became ids[first..n). */
void ds_encoding_remember(struct ds_encoding *encoding, struct ds_seen_word *slot, size_t start,
                          size_t end, size_t first);
