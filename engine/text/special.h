/* SPDX-License-Identifier: Apache-2.0 */
/*
 * special.h - finds special tokens written in a text.
 *
 * From left to right, at each place the longest (no known vocabulary has special tokens that
 * overlap otherwise). A token may ask that no word touches it, and may take white space around it
 * along (enum ds_token_flag); where it does not fit, the search goes on behind it, as in Hugging
 * Face's tokenizers. The texts are kept sorted: a match narrows the sorted list byte by byte, and
 * a table of first bytes rules out nearly every place at once. Immutable after init: any thread.
 */
#pragma once

#include <stdbool.h>

#include "engine/format/checkpoint.h"

struct ds_specials {
    const struct ds_vocab *vocab; /* borrowed */
    uint32_t *ids;                /* own; by text, then by id */
    uint32_t n;
    bool starts[256]; /* bytes that some special token starts with */
};

/* Takes the tokens that wanted[id] says. -ENOMEM. */
int ds_specials_init(struct ds_specials *specials, const struct ds_vocab *vocab,
                     const bool *wanted);
void ds_specials_deinit(struct ds_specials *specials);

/* The first special token in text[at..size): its place and end, white space that it takes along
 * included. Returns its id, DS_TOKEN_NONE where
 * there is none. */
uint32_t ds_specials_find(const struct ds_specials *specials, const char *text, size_t at,
                          size_t size, size_t *ret_start, size_t *ret_end);
