/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scheduler.h - continuous batching: many requests, one batch per step.
 *
 * A scheduler serves one resident model. Each step it fills one batch: running sequences first (one
 * token each), then prompt chunks up to the token/time budget, fairly between users (virtual token
 * counter). Where there is room left, answers get rows for guessed tokens as well (speculative
 * decoding). Sequences own KV blocks through reference counts; full blocks are shared by prefix
 * within one user; when blocks run out the youngest sequence is put back and recomputed later. None
 * of this shows in the tokens.
 *
 * One thread. Nothing is logged; results go to the sink during ds_scheduler_step().
 * Sources: Kwon et al. 2023 (paged KV), Sheng et al. 2023 (VTC), vLLM's token-budget loop,
 * Leviathan et al. 2023 (speculative decoding; here a guess is accepted where it equals the token
 * drawn).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/model/model.h"
#include "engine/serve/drafter.h"
#include "engine/serve/sampler.h"
#include "engine/text/reply.h"
#include "engine/text/tokenizer.h"

struct ds_scheduler;

enum ds_finish {
    DS_FINISH_STOP = 1,
    DS_FINISH_LENGTH,
    DS_FINISH_CANCELLED,
    DS_FINISH_DEADLINE,
    DS_FINISH_ERROR
};

/* Who guesses the next tokens of an answer. A guess is computed along with what is certain, and
 * counts only where it is what would have been drawn anyhow: no answer ever depends on it. */
enum ds_draft_source {
    DS_DRAFT_DEFAULT, /* as the scheduler's options say */
    DS_DRAFT_OFF,
    DS_DRAFT_NGRAM, /* what came after the same tokens before, see ngram.h */
    DS_DRAFT_MTP,   /* the model's own module for the token after the next */
    DS_DRAFT_MODEL, /* the job's drafter; of options: as DS_DRAFT_OFF */
};

/* For tests: up to n guesses behind tokens[n_tokens], in place. Returns how many. */
typedef uint32_t ds_propose(void *arg, uint64_t id, uint32_t *tokens, uint32_t n_tokens,
                            uint32_t n);

struct ds_job {
    uint64_t id;
    uint32_t uid;
    struct ds_adapter *adapter; /* a reference, owned; NULL: the model as it is */
    float adapter_scale;        /* finite; with 0 the adapter is given back at once */
    bool score;                 /* teacher-forced: no tokens are made */
    uint32_t *tokens;           /* prompt, then delivered; malloc'ed, the scheduler frees it */
    uint32_t n_prompt;
    uint32_t n_delivered; /* resume: answer tokens the caller has already */
    uint32_t max_tokens; /* of the answer, delivered ones included; 0 = until the context is full */
    bool ignore_eos;
    bool want_logprobs;
    uint32_t n_top; /* alternatives per token; score: after the text */
    enum ds_draft_source draft;
    struct ds_drafter *drafter; /* borrowed, with DS_DRAFT_MODEL; NULL: as if draft were default */
    struct ds_sampling sampling;
    struct ds_logit_bias *bias; /* owned; sampling.bias points to it */
    struct ds_bytes *stops;     /* owned, with their bytes in the same allocation */
    uint32_t n_stops;
    struct ds_reply *reply;  /* owned; takes the answer of a chat apart; NULL: none */
    uint64_t deadline_nsec;  /* CLOCK_MONOTONIC, 0 = none */
    uint64_t submitted_nsec; /* when dsd accepted it */
};

/* What a step yields. Pointers are borrowed for the call. */
struct ds_output {
    uint64_t id;
    uint32_t n_tokens; /* new tokens; the end token is one, without text */
    const uint32_t *tokens;
    struct ds_bytes text;  /* what they add */
    const uint32_t *parts; /* of a chat: of text, as ds_reply_take() */
    size_t n_parts;
    const float *logprobs;          /* [n_tokens] or NULL */
    const struct ds_top_token *top; /* [n_tokens][n_top] or NULL */
    uint32_t n_top;
    bool first; /* first output of the job: n_prompt, n_cached are news */
    uint32_t n_prompt, n_cached, n_completion;
    uint32_t n_drafted, n_accepted; /* guesses so far, and of these, what became tokens */
    enum ds_finish finish;          /* 0: goes on */
    struct ds_bytes tail_text;      /* with finish: text held back until now */
    const uint32_t *tail_parts;
    size_t n_tail_parts;
    const struct ds_reply_message *message; /* of a chat, with finish; NULL: none */
    struct ds_bytes stop;                   /* with DS_FINISH_STOP by a stop string: which */
    double queue_ms, prefill_ms, ttft_ms, decode_ms; /* with finish */
    /* score, with finish: */
    double nll;
    const char *error; /* with DS_FINISH_ERROR */
    int error_code;    /* negative errno */
};

#define DS_STEP_TWICE     0u         /* twice as long as without prompts */
#define DS_STEP_UNLIMITED UINT32_MAX /* prompts are cut by rows alone */

struct ds_scheduler_options {
    uint32_t n_blocks;         /* of the KV cache */
    uint32_t context;          /* positions per sequence; no more than the blocks hold */
    uint32_t batch_tokens_max; /* rows of a batch, <= the model's batch_max */
    uint32_t sequences_max;    /* running at once, <= the model's outputs_max */
    uint32_t outputs_max;      /* rows with logits per batch, <= the model's: a score needs one per
                                  token; raised to sequences_max where smaller */
    uint32_t step_usec_max; /* a step with answers in it should take no longer: prompts are cut to
                               fit. DS_STEP_TWICE, DS_STEP_UNLIMITED */
    enum ds_draft_source draft; /* of jobs that leave it open; DS_DRAFT_DEFAULT is off here */
    uint64_t prefix_salt;       /* random per engine: keys of the prefix cache */
    /* for tests: */
    uint64_t (*clock)(void); /* NULL: CLOCK_MONOTONIC, nanoseconds */
    ds_propose *propose;     /* guesses for all jobs, whatever source they name, and always used */
    void *propose_arg;
};

/* Must not call the scheduler. */
typedef void ds_output_sink(void *arg, const struct ds_output *output);

/* model and tokenizer are borrowed. Makes the KV cache. -ENOMEM. */
int ds_scheduler_new(struct ds_scheduler **ret_scheduler, struct ds_backend *backend,
                     struct ds_model *model, const struct ds_tokenizer *tokenizer,
                     const struct ds_scheduler_options *options, struct ds_error *error);
struct ds_scheduler *ds_scheduler_free(struct ds_scheduler *scheduler); /* drops jobs silently */

/* Takes all that job owns, even when it fails: *job is empty afterwards, its own memory stays the
 * caller's. -EINVAL: parameter out of range or token beyond the vocabulary; -EMSGSIZE: prompt does
 * not fit the context; -ENOTSUP: guesses by a module that the model has not; -ENOMEM; the line is
 * in error. */
int ds_scheduler_add(struct ds_scheduler *scheduler, struct ds_job *job, struct ds_error *error);
void ds_job_deinit(struct ds_job *job);

/* drafter is about to go: who drafts with it goes on without guesses. */
void ds_scheduler_forget_drafter(struct ds_scheduler *scheduler, const struct ds_drafter *drafter);

/* Cancels at the next step, which reports DS_FINISH_CANCELLED. Unknown ids are no error. */
void ds_scheduler_cancel(struct ds_scheduler *scheduler, uint64_t id);

/* One step. 1: there is more to do; 0: idle; negative: the backend failed (the engine must end). */
int ds_scheduler_step(struct ds_scheduler *scheduler, ds_output_sink *sink, void *arg);

bool ds_scheduler_idle(const struct ds_scheduler *scheduler);
uint64_t ds_scheduler_kv_bytes(const struct ds_scheduler *scheduler);

/* Asserts every invariant. For tests. */
void ds_scheduler_check(const struct ds_scheduler *scheduler);
