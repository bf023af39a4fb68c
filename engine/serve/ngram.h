/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ngram.h - what came after the last tokens when they stood there before.
 *
 * An index over one sequence's own tokens, prompt and answer: where four, three or two tokens in a
 * row occurred last. Filled as tokens come, a few operations each; a table of positions that grows
 * with the sequence up to DS_NGRAM_SLOTS_MAX, beyond which the newer of two in one slot stays.
 * Positions are believed only after looking at the tokens. Source: Saxena 2023, "Prompt lookup
 * decoding".
 */
#pragma once

#include <stdint.h>

#include "proto/base.h"

enum { DS_NGRAM_SLOTS_MAX = 1u << 16 }; /* 256 KiB a sequence */

struct ds_ngram {
    uint32_t *slots; /* [n_slots] position after the n-gram; 0: empty. NULL: none yet */
    uint32_t n_slots;
    uint32_t n_indexed; /* tokens before this one have been last of an indexed n-gram */
};

void ds_ngram_deinit(struct ds_ngram *ngram);

/* Up to n tokens that may follow tokens[n_tokens], written behind them: tokens has room. Returns
 * how many; 0 also where there is no memory. tokens must begin as at the call before. */
uint32_t ds_ngram_propose(struct ds_ngram *ngram, uint32_t *tokens, uint32_t n_tokens, uint32_t n);
