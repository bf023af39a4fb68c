/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serving.h - jobs through a scheduler, and the same jobs through a plain loop.
 *
 * The plain loop (ds_serving_alone) feeds one token after the other to a model that nobody shares,
 * samples, and asks the detokeniser. Whatever a scheduler does to be fast, the answers must be
 * equal. Failures end the test (cmocka asserts).
 */
#pragma once

#include "engine/serve/scheduler.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/tiny_model.h"

enum { DS_SPEC_TOKENS = 256, DS_ANSWER_TEXT = 8192 };

/* A job as a plain value. */
struct ds_spec {
    uint32_t uid;
    bool score;
    bool chat;                       /* a reply that takes the answer apart, its reasoning open */
    uint32_t tokens[DS_SPEC_TOKENS]; /* prompt, then delivered */
    uint32_t n_prompt, n_delivered, max_tokens;
    bool ignore_eos, want_logprobs;
    uint32_t n_top;
    struct ds_sampling sampling; /* bias and n_bias unused */
    struct ds_logit_bias bias[2];
    uint32_t n_bias;
    char stops[2][32];
    uint32_t n_stops;
    uint64_t deadline_nsec;
    struct ds_adapter *adapter; /* borrowed; NULL: none */
    float adapter_scale;
};

struct ds_answer {
    uint32_t tokens[DS_SPEC_TOKENS];
    float logprobs[DS_SPEC_TOKENS];
    struct ds_top_token top[DS_SPEC_TOKENS][4]; /* score: [0] */
    uint32_t n_tokens, n_outputs;
    char text[DS_ANSWER_TEXT]; /* NUL-terminated */
    size_t text_size;
    char message[DS_ANSWER_TEXT]; /* of a chat: reasoning, '|', content; NUL-terminated */
    char stop[33];
    enum ds_finish finish; /* 0: has not ended */
    double nll;
    uint32_t n_prompt, n_cached, n_completion, n_drafted, n_accepted;
    double queue_ms, prefill_ms, ttft_ms, decode_ms;
};

struct ds_serving {
    struct ds_runner runner; /* the model; its own cache serves the plain loop */
    struct ds_tokenizer *tokenizer;
    struct ds_scheduler *scheduler;
    struct ds_answer *answers; /* [n_answers] by job id */
    uint32_t n_answers;
};

/* Opens the model (backend is borrowed) for batches of 64 rows; no scheduler yet. */
void ds_serving_init(struct ds_serving *serving, struct ds_backend *backend,
                     const struct ds_tiny_options *model);
void ds_serving_init_fd(struct ds_serving *serving, struct ds_backend *backend,
                        int fd); /* takes fd */
void ds_serving_deinit(struct ds_serving *serving);

/* A new scheduler in place of the last one; answers for job ids below n_answers. */
void ds_serving_start(struct ds_serving *serving, const struct ds_scheduler_options *options,
                      uint32_t n_answers);
struct ds_scheduler_options ds_serving_options(void); /* roomy */

/* A job with all its memory, for ds_scheduler_add(). */
struct ds_job ds_spec_job(const struct ds_spec *spec, uint64_t id);

void ds_serving_add(struct ds_serving *serving, const struct ds_spec *spec, uint64_t id);
int ds_serving_step(struct ds_serving *serving); /* checks all invariants; as the scheduler's */
void ds_serving_run(struct ds_serving *serving); /* steps until idle */

/* The plain loop. */
void ds_serving_alone(struct ds_serving *serving, const struct ds_spec *spec,
                      struct ds_answer *ret_answer);

/* Tokens, text, log-probabilities, reason, stop string, score: all equal. */
void ds_assert_same_answer(const struct ds_answer *answer, const struct ds_answer *expected);

/* A varied job from a seed: prompt up to 120 tokens (often sharing a prefix with others), up to 40
 * answer tokens, all kinds of sampling. */
struct ds_spec ds_spec_random(uint64_t seed, uint32_t n_vocab);
