/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_runner.h - one sequence through a model, step by step, without a scheduler.
 *
 * The plain loop that everything cleverer must agree with. Failures end the test (cmocka asserts).
 */
#pragma once

#include "engine/model/model.h"

struct ds_runner {
    struct ds_backend *backend; /* borrowed */
    struct ds_checkpoint *checkpoint;
    struct ds_model *model;
    struct ds_kv *kv;
    uint32_t n_vocab;
    uint32_t context;          /* positions the cache has */
    uint32_t batch_max;        /* rows per forward() */
    uint32_t n_past;           /* positions computed */
    uint32_t *blocks;          /* [context / DS_KV_BLOCK] deliberately out of order */
    float *logits;             /* [batch_max][n_vocab] of the last forward() */
    struct ds_adapter_use use; /* what the sequence runs with; borrowed, none at first */
};

/* Opens the model behind fd (which stays the caller's), with room for context positions. */
void ds_runner_init(struct ds_runner *runner, struct ds_backend *backend, int fd, uint32_t context,
                    uint32_t batch_max);
/* naive: latent attention in its naive form. */
void ds_runner_init_form(struct ds_runner *runner, struct ds_backend *backend, int fd,
                         uint32_t context, uint32_t batch_max, bool naive);
/* Another type of KV cache than the model's own, which must allow it. Before the first feed. */
void ds_runner_use_kv_type(struct ds_runner *runner, enum ds_kv_type type);
/* The same of a checkpoint that is open already; the runner frees it. exact: keys and values are
 * kept as F32 whatever the weights are. */
void ds_runner_init_checkpoint(struct ds_runner *runner, struct ds_backend *backend,
                               struct ds_checkpoint *checkpoint, uint32_t context,
                               uint32_t batch_max, bool exact);
void ds_runner_deinit(struct ds_runner *runner);

/* Forgets the sequence. */
void ds_runner_reset(struct ds_runner *runner);

/* Feeds n <= batch_max tokens; runner->logits then has all their rows, or only the last one
 * (last_only). */
void ds_runner_feed(struct ds_runner *runner, const uint32_t *tokens, uint32_t n, bool last_only);

/* Feeds a prompt in batches of chunk rows. Returns the negative log-likelihood of tokens 1..n-1;
 * *ret_last points to the logits after the last token. */
double ds_runner_prompt(struct ds_runner *runner, const uint32_t *tokens, uint32_t n,
                        uint32_t chunk, const float **ret_last);

/* The largest logit, ties to the lowest id. */
uint32_t ds_runner_argmax(const float *logits, uint32_t n_vocab);
