/* SPDX-License-Identifier: Apache-2.0 */
/*
 * random_vocab.h - small vocabularies and texts made from a seed, for tests of engine/text.
 *
 * The vocabularies favour few letters, so that short random texts meet many merges. Running out of
 * memory ends the test program.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"

struct ds_dice { /* SplitMix64 */
    uint64_t state;
};

uint64_t ds_dice_next(struct ds_dice *random);
uint32_t ds_dice_below(struct ds_dice *random, uint32_t n); /* n > 0 */

/* A vocabulary under construction; vocab points into it. */
struct ds_random_vocab {
    struct ds_vocab vocab;
    struct ds_bytes *tokens;
    int32_t *types;
    float *scores;
    struct ds_bytes *merges;
    uint32_t tokens_max, merges_max;
};

/* Nothing but a kind; every "not said" value set. */
struct ds_random_vocab *ds_random_vocab_new(enum ds_vocab_kind kind, const char *pre);
struct ds_random_vocab *ds_random_vocab_free(struct ds_random_vocab *random_vocab);

/* Texts are copied. Returns the token's id. */
uint32_t ds_random_vocab_token(struct ds_random_vocab *random_vocab, struct ds_bytes text,
                               enum ds_token_type type, float score);
uint32_t ds_random_vocab_string(struct ds_random_vocab *random_vocab, const char *text,
                                enum ds_token_type type, float score);
void ds_random_vocab_merge(struct ds_random_vocab *random_vocab, struct ds_bytes left,
                           struct ds_bytes right);

/* The 256 tokens of single bytes, in the printable alphabet (BPE), or as <0x00>.. (SPM). */
void ds_random_vocab_bytes(struct ds_random_vocab *random_vocab);

/* Complete ones. BPE: bytes, merges of tokens that exist (their results sometimes no tokens),
 * <|a|>, <|ab|> (control) and [u] (user-defined). SPM: <unk>, <s>, </s>, bytes, some characters,
 * random pieces with random scores, some alike; spaces: pieces may hold U+2581 inside. */
struct ds_random_vocab *ds_random_vocab_bpe(struct ds_dice *random, const char *pre);
struct ds_random_vocab *ds_random_vocab_spm(struct ds_dice *random, bool spaces);

/* Up to size bytes: letters that the vocabularies favour, blanks, digits, newlines, other scripts,
 * special tokens, bytes that are no UTF-8. Fresh memory: free(). */
char *ds_random_text(struct ds_dice *random, size_t size, size_t *ret_size);
