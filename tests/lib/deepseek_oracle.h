/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deepseek_oracle.h - what a tiny DeepSeek model should say: its forward pass in double arithmetic.
 *
 * Written from the papers on loops alone: naive attention, every layer over all tokens at once, no
 * cache, and nothing of the engine. Failures end the program.
 */
#pragma once

#include "tests/lib/tiny_deepseek.h"

enum { DS_ORACLE_TOKENS = 75 };

struct ds_truth {
    double x[DS_ORACLE_TOKENS][DS_TINY_WIDTH];      /* residual after the last layer */
    double hidden[DS_ORACLE_TOKENS][DS_TINY_WIDTH]; /* normed */
    double logits[DS_ORACLE_TOKENS][DS_TINY_VOCAB];
    unsigned n_left_out; /* positions that rows did not attend to */
};

/* The model on DS_ORACLE_TOKENS tokens. free(). */
struct ds_truth *ds_oracle_think(const struct ds_tiny_deepseek *model, const uint32_t *tokens);

/* Its module: hidden states of positions 0.., and the tokens after them. free(). */
struct ds_truth *ds_oracle_guess(const struct ds_tiny_deepseek *model,
                                 double (*hidden)[DS_TINY_WIDTH], const uint32_t *next);
