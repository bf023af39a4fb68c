/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pretokenise.h - cuts text into the words inside which byte-level BPE may merge.
 *
 * A model's file names its way of cutting; each is an ordered list of stages. A stage stands for
 * one published regular expression, hand-written as a scanner: what it matches and what lies
 * between its matches become pieces, and the next stage works inside each piece alone. Of the
 * alternatives of an expression the first that matches counts, not the longest. The expressions
 * are quoted beside their scanners. Every scanner is linear in the text, whatever the text.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/format/checkpoint.h"

/* Tries to match at text[at..end), at < end. The end of the match, or `at` where there is none;
 * then *skip, preset to the next character, may be set further on: nothing matches before it. */
typedef size_t ds_stage_match(const char *text, size_t at, size_t end, size_t *skip);

#define DS_STAGES_MAX 6

struct ds_pretokeniser {
    const char *names; /* separated by spaces; the first is the common one */
    ds_stage_match *stages[DS_STAGES_MAX + 1];
    bool llama3; /* by default: BOS first, and a whole word that is a token stays whole */
};

/* name "" means default. NULL: unknown. */
const struct ds_pretokeniser *ds_pretokeniser_find(struct ds_bytes name);

/* The i-th way of cutting; NULL: beyond the last one. */
const struct ds_pretokeniser *ds_pretokeniser_at(unsigned i);

/* All common names, for an error text. */
void ds_pretokeniser_list(char *buffer, size_t size);

/* Takes a piece text[start..end); a negative result ends the cutting and is passed on. */
typedef int ds_piece_fn(void *context, size_t start, size_t end);

int ds_pretokenise(const struct ds_pretokeniser *pretokeniser, const char *text, size_t start,
                   size_t end, ds_piece_fn *take, void *context);
