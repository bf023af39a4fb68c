/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scheduler_state.h - what the scheduler's own files share; nobody else includes it.
 *
 *      scheduler.c   life, jobs in, one step: end what must end, plan, compute, deliver
 *      plan.c        which rows the next batch has: growth, admission, prompt chunks
 *      draft.c       which guesses get rows in it, and what became of them
 *      mtp.c         guesses by the model's own module
 *      draft_model.c guesses by another model
 *      draw.c        from logits to tokens, on all threads
 *      deliver.c     from tokens to text and outputs
 *
 * Running sequences are kept in order of arrival: the last one is the youngest, the first to be put
 * back when blocks run out. The oldest is never put back for another, so something always ends.
 */
#pragma once

#include "engine/serve/kv_cache.h"
#include "engine/serve/pace.h"
#include "engine/serve/sequence.h"
#include "engine/serve/users.h"

struct ds_scheduler {
    struct ds_backend *backend;           /* borrowed */
    struct ds_model *model;               /* borrowed */
    const struct ds_tokenizer *tokenizer; /* borrowed */
    struct ds_scheduler_options options;  /* context cut to what the blocks hold */
    uint32_t n_vocab;
    uint64_t kv_bytes;

    struct ds_kv *kv;
    struct ds_kv_cache *cache;
    struct ds_sampler **samplers; /* [n_samplers] one for each thread of the backend */
    unsigned n_samplers;
    struct ds_users users;
    struct ds_sequence **running; /* [sequences_max], n_running of them, by arrival */
    uint32_t n_running;
    uint64_t next_arrival;
    uint64_t n_steps;

    struct ds_pace pace;             /* what a step costs, a draft model's passes aside */
    uint64_t drafting_nsec;          /* what those of this step took */
    uint32_t n_mixed;                /* steps since the last with answers and without prompts */
    float accepted[DS_DRAFT_DEPTHS]; /* of all sequences: what a new one starts with */

    /* the step's batch, host memory */
    uint32_t n_prompt_rows;        /* planned rows of sequences that do not decode */
    uint32_t n_decodes;            /* planned rows of those that do, guesses included */
    double prompt_context;         /* sum of the positions of the prompt rows */
    uint32_t n_outputs;            /* planned rows with logits */
    struct ds_sequence **in_batch; /* [sequences_max] */
    struct ds_batch batch;
    struct ds_mtp_span *spans;       /* [sequences_max] mtp.c; NULL: the model has no such module */
    float *hidden;                   /* [batch_tokens_max][width]; likewise */
    uint32_t *tokens;                /* [batch_tokens_max] */
    uint32_t *positions;             /* [batch_tokens_max] */
    uint32_t *sequences;             /* [batch_tokens_max] */
    uint32_t *outputs;               /* [outputs_max] */
    uint32_t *block_tables;          /* [sequences_max][blocks of the context] */
    struct ds_adapter_use *adapters; /* [sequences_max] */
    float *logits;                   /* [outputs_max][n_vocab] */

    /* draw.c: what the rows with logits say */
    struct ds_sequence **output_owner; /* [outputs_max] */
    uint32_t *picked;                  /* [outputs_max] the token drawn; not for scores */
    double *logprobs;                  /* [outputs_max] of picked or of the text's next token */
    struct ds_top_token *top; /* [outputs_max * DS_LOGPROBS_MAX]; the k-th row of a sequence
                                 at first_output * DS_LOGPROBS_MAX + k * n_top */

    char *text; /* scratch: an output's text while the detokeniser is asked for the rest */
    size_t text_capacity;
};

/* plan.c: decides what runs in this step; sets n_planned and n_outputs of every running sequence
 * and the n_... of the step. now: CLOCK_MONOTONIC. */
void ds_scheduler_plan(struct ds_scheduler *scheduler, uint64_t now);

#define DS_DRAFT_WORTH        1.02 /* tokens a microsecond, against a step without guesses */
#define DS_DRAFT_SLOWDOWN_MAX 2.0  /* of a step, for those in it who guess nothing */

/* That a guess is right if those before it are. */
static inline float ds_draft_chance(const struct ds_sequence *sequence, uint32_t depth)
{
    return sequence->accepted[depth < DS_DRAFT_DEPTHS ? depth : DS_DRAFT_DEPTHS - 1];
}

/* scheduler.c: the time, in nanoseconds. */
uint64_t ds_scheduler_now(const struct ds_scheduler *scheduler);

/* draft.c: nothing learned yet. */
void ds_drafts_init(struct ds_scheduler *scheduler);

/* draft.c: adds rows with guesses to what is planned, where that makes tokens come faster.
 * Negative: the backend failed. */
int ds_scheduler_plan_drafts(struct ds_scheduler *scheduler);

/* draft.c: after the draw: learns from the guesses of sequence, gives back the blocks that only
 * wrong ones need. Returns how many of its guesses came true: so many more rows hold. */
uint32_t ds_scheduler_judge_drafts(struct ds_scheduler *scheduler, struct ds_sequence *sequence);

/* draft_model.c: has draft models guess for those who want it, where there is room for so many
 * rows: sets n_guessed. Negative: the backend failed. */
int ds_scheduler_run_drafters(struct ds_scheduler *scheduler, uint32_t room);

/* draft_model.c: of what sequence's draft model has read, n_tokens hold. */
void ds_draft_settle(struct ds_sequence *sequence, uint32_t n_tokens);

/* mtp.c: what a step left for the model's module of one sequence of the batch. */
struct ds_mtp_span {
    struct ds_sequence *sequence; /* NULL: it has ended */
    uint32_t row;                 /* of the batch, its first */
    uint32_t position;            /* of that row */
    uint32_t n_rows;              /* those that hold */
};

/* mtp.c: memory for it; nothing where the model has no such module. -ENOMEM. */
int ds_mtp_new(struct ds_scheduler *scheduler);
void ds_mtp_free(struct ds_scheduler *scheduler);

/* mtp.c: has the module read what the step computed, and guess the next token of each answer. 1: it
 * has done something; 0: nobody wants it; negative: the backend failed. */
int ds_scheduler_run_mtp(struct ds_scheduler *scheduler);

/* Gives back a running sequence's blocks and its place. */
void ds_scheduler_stop(struct ds_scheduler *scheduler, struct ds_sequence *sequence);

/* draw.c: item(scheduler, 0..n-1, thread) on the backend's threads, thread < n_samplers. */
void ds_scheduler_parallel(struct ds_scheduler *scheduler,
                           void (*item)(void *arg, uint32_t i, unsigned thread), uint32_t n);

/* draw.c: fills picked, logprobs and top from the batch's logits. Sequences are as they were when
 * the batch was planned. */
void ds_scheduler_draw(struct ds_scheduler *scheduler);

/* deliver.c: turns what was drawn for sequence into an output: a token, or with n_right true
 * guesses before it so many more. Frees the sequence where that was its last. now: when the batch
 * was done. false: it has ended and is gone. */
bool ds_scheduler_deliver(struct ds_scheduler *scheduler, struct ds_sequence *sequence,
                          uint32_t n_right, uint64_t now, ds_output_sink *sink, void *arg);

/* Reports reason and frees the sequence, running or waiting. */
void ds_scheduler_end(struct ds_scheduler *scheduler, struct ds_sequence *sequence,
                      enum ds_finish reason, uint64_t now, ds_output_sink *sink, void *arg);
