/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sampler.h - from logits to the next token, as a pure function.
 *
 * No state: the random number of a draw is philox(seed, position), penalties look at the history
 * given. The same logits, history, parameters and position give the same token, whoever asks and
 * whenever. Order: bias, penalties, top-k, typical, top-p, min-p, temperature, draw. Temperature 0
 * = argmax after bias and penalties, ties to the lowest id. Sources: man/dsctl.1; Salmon et al.
 * 2011 (Philox4x32-10).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base.h"

struct ds_logit_bias {
    uint32_t token;
    float bias;
};

struct ds_sampling {
    float temperature;    /* 0 = greedy */
    uint32_t top_k;       /* 0 = off */
    float top_p;          /* 1 = off */
    float min_p;          /* 0 = off */
    float typical_p;      /* 1 = off */
    float repeat_penalty; /* 1 = off */
    uint32_t repeat_last_n;
    float frequency_penalty;
    float presence_penalty;
    const struct ds_logit_bias *bias; /* borrowed */
    uint32_t n_bias;
    uint64_t seed;
};

struct ds_top_token {
    uint32_t id;
    float logprob; /* of the raw logits' softmax, natural log */
};

/* Ranges: temperature 0..100, top_p 0..1, ... every value finite. -EINVAL: error names the
 * parameter, its value and the range. */
int ds_sampling_check(const struct ds_sampling *sampling, uint32_t n_vocab, struct ds_error *error);

struct ds_sampler; /* scratch memory for one vocabulary, reused from call to call; one thread */
int ds_sampler_new(struct ds_sampler **ret_sampler, uint32_t n_vocab);
struct ds_sampler *ds_sampler_free(struct ds_sampler *sampler);

/* Picks the token for position (of the token to be made). history: all tokens so far, prompt
 * included. logits are left as they were. NaN logits count as -inf. */
uint32_t ds_sampler_pick(struct ds_sampler *sampler, const struct ds_sampling *sampling,
                         const float *logits, const uint32_t *history, size_t n_history,
                         uint64_t position);

/* log softmax of raw logits at id (double accumulation), and the n <= n_vocab largest (ties: lowest
 * id first). Not a number counts as -inf, as in a draw.
 */
double ds_logprob(const float *logits, uint32_t n_vocab, uint32_t id);
void ds_top_logprobs(const float *logits, uint32_t n_vocab, struct ds_top_token *ret_top,
                     unsigned n);
