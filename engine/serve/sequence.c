/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/sequence.h"

#include <assert.h>
#include <math.h>

void ds_job_deinit(struct ds_job *job)
{
    free(job->tokens);
    free(job->bias);
    free(job->stops);
    (void) ds_adapter_free(job->adapter);
    (void) ds_reply_free(job->reply);
    *job = (struct ds_job){ .id = job->id };
}

static int check_stops(const struct ds_job *job, struct ds_error *error)
{
    if (job->n_stops > DS_STOP_STRINGS_MAX)
        return ds_error_set(error, -EINVAL, "%u stop strings: at most %u are allowed", job->n_stops,
                            DS_STOP_STRINGS_MAX);
    for (uint32_t i = 0; i < job->n_stops; i++) {
        if (job->stops[i].size == 0 || job->stops[i].size > DS_STOP_BYTES_MAX)
            return ds_error_set(error, -EINVAL,
                                "stop string %u has %zu bytes: it must have 1 to %u", i + 1,
                                job->stops[i].size, DS_STOP_BYTES_MAX);
    }
    return 0;
}

static int check_length(const struct ds_job *job, uint32_t context, struct ds_error *error)
{
    uint32_t most = job->score ? context : context - 1; /* an answer has one token at least */

    if (job->n_prompt == 0)
        return ds_error_set(error, -EINVAL, "the prompt is empty: give at least one token");
    if (job->n_prompt > most)
        return ds_error_set(error, -EMSGSIZE,
                            "the prompt has %u tokens, the context has room for %u: shorten the "
                            "prompt or load the model with a larger context",
                            job->n_prompt, most);
    if (job->n_delivered > (job->score ? 0 : context - job->n_prompt))
        return ds_error_set(error, -EMSGSIZE,
                            "%u answer tokens were delivered before, which do not fit behind the "
                            "prompt of %u in the context of %u: send the request anew",
                            job->n_delivered, job->n_prompt, context);
    if (job->max_tokens && job->n_delivered > job->max_tokens)
        return ds_error_set(error, -EINVAL,
                            "%u answer tokens were delivered before, but max_tokens is %u: raise "
                            "it or send the request anew",
                            job->n_delivered, job->max_tokens);
    return 0;
}

static int check_job(const struct ds_job *job, uint32_t n_vocab, uint32_t context,
                     struct ds_error *error)
{
    int r;

    if (job->n_top > DS_LOGPROBS_MAX)
        return ds_error_set(error, -EINVAL, "%u alternatives per token: at most %u are allowed",
                            job->n_top, DS_LOGPROBS_MAX);
    if (job->adapter && !isfinite(job->adapter_scale))
        return ds_error_set(error, -EINVAL, "the adapter's scale is not a finite number");
    r = check_length(job, context, error);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < job->n_prompt + job->n_delivered; i++) {
        if (job->tokens[i] >= n_vocab)
            return ds_error_set(error, -EINVAL,
                                "token %u of the input is %u: the vocabulary ends at %u", i + 1,
                                job->tokens[i], n_vocab - 1);
    }
    if (job->score)
        return 0;
    r = ds_sampling_check(&job->sampling, n_vocab, error);
    return r < 0 ? r : check_stops(job, error);
}

/* Room for all tokens and blocks there can ever be, so that nothing is short later. */
static int make_room(struct ds_sequence *sequence, uint32_t context)
{
    struct ds_job *job = &sequence->job;
    uint32_t room = job->score ? 0 : context - job->n_prompt;
    uint32_t *tokens;

    if (job->max_tokens && job->max_tokens < room)
        room = job->max_tokens;
    sequence->limit = job->n_prompt + room;
    tokens = reallocarray(job->tokens, sequence->limit, sizeof *tokens);
    if (!tokens)
        return -ENOMEM;
    job->tokens = tokens;
    sequence->blocks = calloc(ds_blocks_of(sequence->limit), sizeof *sequence->blocks);
    return sequence->blocks ? 0 : -ENOMEM;
}

/* Brings the detokeniser to where it was after the delivered tokens. */
static int replay(struct ds_sequence *sequence, const struct ds_tokenizer *tokenizer)
{
    const struct ds_job *job = &sequence->job;
    const uint32_t *parts;
    struct ds_bytes text;
    size_t n_parts;
    int r;

    sequence->n_tokens = job->n_prompt;
    if (job->score)
        return 0;
    r = ds_detokenizer_new(&sequence->detokenizer, tokenizer, job->stops, job->n_stops, true);
    for (uint32_t i = 0; r == 0 && i < job->n_delivered && !sequence->ended; i++)
        r = ds_sequence_append(sequence, tokenizer, job->tokens[job->n_prompt + i], &text);
    if (r == 0 && job->reply) /* delivered with them */
        r = ds_reply_take(job->reply, &text, &parts, &n_parts);
    return r;
}

int ds_sequence_new(struct ds_sequence **ret_sequence, struct ds_job *job,
                    const struct ds_tokenizer *tokenizer, uint32_t n_vocab, uint32_t context,
                    struct ds_error *error)
{
    struct ds_sequence *sequence = NULL;
    int r;

    r = check_job(job, n_vocab, context, error);
    if (r == 0)
        sequence = calloc(1, sizeof *sequence);
    if (!sequence) {
        ds_job_deinit(job);
        return r < 0 ? r : ds_error_set(error, -ENOMEM, "no memory for another request");
    }
    sequence->job = *job;
    *job = (struct ds_job){ .id = job->id };
    sequence->job.sampling.bias = sequence->job.bias;
    if (sequence->job.n_top > n_vocab)
        sequence->job.n_top = n_vocab;
    if (sequence->job.adapter_scale == 0.0f) /* the model as it is, prefix cache included */
        sequence->job.adapter = ds_adapter_free(sequence->job.adapter);
    sequence->stop = -1;
    r = make_room(sequence, context);
    if (r == 0)
        r = replay(sequence, tokenizer);
    if (r < 0) {
        (void) ds_sequence_free(sequence);
        return ds_error_set(error, r, "no memory for another request");
    }
    *ret_sequence = sequence;
    return 0;
}

struct ds_sequence *ds_sequence_free(struct ds_sequence *sequence)
{
    if (!sequence)
        return NULL;
    assert(sequence->n_blocks == 0);
    (void) ds_detokenizer_free(sequence->detokenizer);
    ds_ngram_deinit(&sequence->ngram);
    ds_draft_seat_deinit(&sequence->seat);
    free(sequence->blocks);
    ds_job_deinit(&sequence->job);
    free(sequence);
    return NULL;
}

/* The text goes to the reply, and after it the token's name where it is one that is not shown. */
static int feed_reply(struct ds_sequence *sequence, const struct ds_tokenizer *tokenizer,
                      uint32_t token, struct ds_bytes *text)
{
    struct ds_reply *reply = sequence->job.reply;
    int r;

    if (!reply)
        return 0;
    r = ds_reply_feed(reply, *text, true);
    if (r == 0 && ds_tokenizer_is_control(tokenizer, token))
        r = ds_reply_feed(reply, ds_tokenizer_piece(tokenizer, token), false);
    *text = (struct ds_bytes){ 0 };
    return r;
}

int ds_sequence_append(struct ds_sequence *sequence, const struct ds_tokenizer *tokenizer,
                       uint32_t token, struct ds_bytes *ret_text)
{
    int r;

    assert(!sequence->ended && sequence->n_tokens < sequence->limit);
    sequence->job.tokens[sequence->n_tokens++] = token;
    *ret_text = (struct ds_bytes){ 0 };
    if (!sequence->job.ignore_eos && ds_tokenizer_is_end(tokenizer, token)) {
        sequence->ended = DS_FINISH_STOP; /* an end token has no text */
        return 0;
    }
    r = ds_detokenizer_push(sequence->detokenizer, token, ret_text);
    if (r < 0)
        return r;
    if (r == DS_DETOKENIZER_STOPPED) {
        sequence->ended = DS_FINISH_STOP;
        sequence->stop = ds_detokenizer_stop(sequence->detokenizer);
    } else if (sequence->n_tokens == sequence->limit) {
        sequence->ended = DS_FINISH_LENGTH;
    }
    return feed_reply(sequence, tokenizer, token, ret_text);
}
