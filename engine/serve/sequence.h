/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequence.h - one job on its way: its tokens, what of them is computed, where its answer ends.
 *
 *      job.tokens   |  prompt              |  answer          |
 *                   0      n_computed ^    n_prompt           n_tokens          limit
 *
 * A sequence waits (no blocks, nothing computed) or runs. What it yields is a function of its
 * tokens and parameters alone; how often it was cut, batched or put back never enters it.
 */
#pragma once

#include "engine/serve/drafter.h"
#include "engine/serve/kv_cache.h"
#include "engine/serve/ngram.h"
#include "engine/serve/scheduler.h"
#include "engine/text/detokenizer.h"

struct ds_user;

enum {
    DS_DRAFT_MAX = 16,   /* guesses for a sequence in a step */
    DS_DRAFT_DEPTHS = 4, /* deeper ones are as likely as the deepest */
};

struct ds_sequence {
    struct ds_job job;
    uint64_t arrival; /* order of submission */
    struct ds_user *user;
    struct ds_sequence *older, *newer; /* waiting list of its user */

    uint32_t n_tokens;                  /* in job.tokens, which has room for limit of them */
    uint32_t limit;                     /* at so many tokens the answer ends */
    struct ds_detokenizer *detokenizer; /* NULL for a score */
    bool cancelled;
    enum ds_finish ended; /* by its own tokens; 0: goes on */
    int stop;             /* index of the stop string that ended it, -1 */

    bool running;
    uint32_t n_computed;  /* positions whose keys and values lie in its blocks */
    uint32_t n_blocks;    /* held */
    uint32_t n_published; /* of these, leading ones others may share */
    uint32_t *blocks;     /* [blocks of limit positions] */
    uint32_t n_charged;   /* prompt positions its user has paid for */

    uint32_t n_scored; /* score: rows counted in nll; survives being put back */
    double nll;

    /* the step being planned */
    uint64_t planned_in;   /* number of the last step that considered it */
    uint32_t n_planned;    /* rows */
    uint32_t n_outputs;    /* of these, trailing ones whose logits are wanted */
    uint32_t first_output; /* their first one among the batch's */

    /* guesses: tokens n_tokens.. of job.tokens */
    enum ds_draft_source draft; /* DS_DRAFT_OFF or who guesses */
    struct ds_ngram ngram;
    uint32_t mtp_guess; /* of the model's module, for token n_tokens */
    bool has_mtp_guess;
    struct ds_draft_seat seat; /* with a draft model; empty without */
    uint64_t drafted_in;       /* number of the last step in which the draft model looked at it */
    uint32_t n_guessed;        /* by the draft model in the step being planned */
    uint32_t n_wanted;         /* of it, at most */
    uint32_t n_proposed;       /* in the step being planned */
    uint32_t n_drafted;        /* of these, with rows of their own: the last ones of n_planned */
    uint32_t n_drafted_total, n_accepted_total;
    float
        accepted[DS_DRAFT_DEPTHS]; /* how often a guess is right if those before it are, by depth */

    bool reported;     /* its first output has been made */
    uint32_t n_cached; /* prompt tokens found in the prefix cache when it first ran */
    uint64_t started_nsec, first_token_nsec, last_token_nsec; /* 0: not yet */
};

/* Checks job against n_vocab and the context, takes all it owns (also when it fails: *job is empty
 * afterwards), and replays the delivered tokens. Errors as ds_scheduler_add(). */
int ds_sequence_new(struct ds_sequence **ret_sequence, struct ds_job *job,
                    const struct ds_tokenizer *tokenizer, uint32_t n_vocab, uint32_t context,
                    struct ds_error *error);
struct ds_sequence *ds_sequence_free(struct ds_sequence *sequence); /* holds no blocks any more */

/* Appends an answer token: sets ended and stop where it ends the answer. *ret_text: what it adds,
 * borrowed from the detokeniser; nothing where job.reply has it. -ENOMEM. */
int ds_sequence_append(struct ds_sequence *sequence, const struct ds_tokenizer *tokenizer,
                       uint32_t token, struct ds_bytes *ret_text);

/* Rows to compute before the next token can be made (score: before it is done). */
static inline uint32_t ds_sequence_n_missing(const struct ds_sequence *sequence)
{
    return sequence->n_tokens - sequence->n_computed;
}

/* Makes one token a step. */
static inline bool ds_sequence_decodes(const struct ds_sequence *sequence)
{
    return !sequence->job.score && ds_sequence_n_missing(sequence) == 1;
}

/* Whose blocks of the prefix cache it may use. */
static inline struct ds_kv_owner ds_sequence_owner(const struct ds_sequence *sequence)
{
    const struct ds_job *job = &sequence->job;

    return (struct ds_kv_owner){ .uid = job->uid,
                                 .adapter = job->adapter ? ds_adapter_serial(job->adapter) : 0,
                                 .scale = job->adapter ? job->adapter_scale : 0.0f };
}

static inline uint32_t ds_blocks_of(uint32_t n_positions)
{
    return (n_positions + DS_KV_BLOCK - 1) / DS_KV_BLOCK;
}
