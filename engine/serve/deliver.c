/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include "engine/serve/scheduler_state.h"

static double span_ms(uint64_t from_nsec, uint64_t to_nsec)
{
    return to_nsec > from_nsec ? (double) (to_nsec - from_nsec) / 1e6 : 0.0;
}

/* What every output says of its sequence. */
static struct ds_output describe(const struct ds_sequence *sequence)
{
    return (struct ds_output){ .id = sequence->job.id,
                               .first = !sequence->reported,
                               .n_prompt = sequence->job.n_prompt,
                               .n_cached = sequence->n_cached,
                               .n_completion = sequence->n_tokens - sequence->job.n_prompt,
                               .n_drafted = sequence->n_drafted_total,
                               .n_accepted = sequence->n_accepted_total };
}

static void add_timing(const struct ds_sequence *sequence, uint64_t now, struct ds_output *output)
{
    const struct ds_job *job = &sequence->job;
    uint64_t started = sequence->started_nsec ? sequence->started_nsec : now;
    uint64_t first = sequence->first_token_nsec;

    output->queue_ms = span_ms(job->submitted_nsec, started);
    output->prefill_ms = span_ms(started, first ? first : now);
    if (first == 0)
        return;
    output->ttft_ms = span_ms(job->submitted_nsec, first);
    output->decode_ms = span_ms(first, sequence->last_token_nsec);
}

/* The detokeniser's next answer will overwrite text: appends it to what is kept of the output. */
static int keep_text(struct ds_scheduler *s, size_t *size, struct ds_bytes text)
{
    if (*size + text.size > s->text_capacity) {
        size_t capacity = 2 * (*size + text.size);
        char *grown = realloc(s->text, capacity);

        if (!grown)
            return -ENOMEM;
        s->text = grown;
        s->text_capacity = capacity;
    }
    if (text.size > 0)
        memcpy(s->text + *size, text.data, text.size);
    *size += text.size;
    return 0;
}

/* The end of a chat's answer: what is held back, and the whole. */
static int end_reply(struct ds_reply *reply, struct ds_output *output,
                     struct ds_reply_message *message)
{
    int r;

    r = ds_reply_feed(reply, output->tail_text, true);
    if (r == 0)
        r = ds_reply_end(reply);
    if (r == 0)
        r = ds_reply_take(reply, &output->tail_text, &output->tail_parts, &output->n_tail_parts);
    if (r == 0)
        r = ds_reply_message(reply, message);
    if (r == 0)
        output->message = message;
    return r;
}

/* Completes output as the last one of sequence, which is gone afterwards. */
static void finish(struct ds_scheduler *s, struct ds_sequence *sequence, struct ds_output *output,
                   enum ds_finish reason, uint64_t now, ds_output_sink *sink, void *arg)
{
    int r = reason == DS_FINISH_ERROR ? -ENOMEM : 0;
    struct ds_reply_message message;

    output->finish = reason;
    add_timing(sequence, now, output);
    if (reason == DS_FINISH_STOP && sequence->stop >= 0)
        output->stop = sequence->job.stops[sequence->stop];
    else if (r == 0 && sequence->detokenizer)
        r = ds_detokenizer_finish(sequence->detokenizer, &output->tail_text);
    if (r == 0 && sequence->job.reply)
        r = end_reply(sequence->job.reply, output, &message);
    if (r < 0) {
        output->finish = DS_FINISH_ERROR;
        output->error_code = r;
        output->error = "the engine ran out of memory for the answer's text: try again later";
        output->text = output->tail_text = (struct ds_bytes){ 0 };
        output->n_parts = output->n_tail_parts = 0;
    }
    if (sequence->running)
        ds_scheduler_stop(s, sequence);
    else
        ds_user_dequeue(sequence->user, sequence);
    sink(arg, output);
    (void) ds_sequence_free(sequence);
}

void ds_scheduler_end(struct ds_scheduler *s, struct ds_sequence *sequence, enum ds_finish reason,
                      uint64_t now, ds_output_sink *sink, void *arg)
{
    struct ds_output output = describe(sequence);

    finish(s, sequence, &output, reason, now, sink, arg);
}

/* --- scores --- */

static bool deliver_score(struct ds_scheduler *s, struct ds_sequence *sequence, uint64_t now,
                          ds_output_sink *sink, void *arg)
{
    struct ds_output output = describe(sequence);

    for (uint32_t i = 0; i < sequence->n_outputs; i++, sequence->n_scored++) {
        assert(sequence->n_computed - sequence->n_outputs + i == sequence->n_scored);
        if (sequence->n_scored + 1 < sequence->job.n_prompt)
            sequence->nll -= s->logprobs[sequence->first_output + i];
    }
    if (sequence->n_scored < sequence->job.n_prompt)
        return true;
    output.nll = sequence->nll;
    output.top =
        s->top + (size_t) (sequence->first_output + sequence->n_outputs - 1) * DS_LOGPROBS_MAX;
    output.n_top = sequence->job.n_top;
    finish(s, sequence, &output, DS_FINISH_STOP, now, sink, arg);
    return false;
}

/* --- answers --- */

/* Appends what was drawn in rows first_output.. until one ends the answer, at most n. Returns how
 * many; *ret_text: what they add, in the scheduler's scratch memory. */
static uint32_t append(struct ds_scheduler *s, struct ds_sequence *sequence, uint32_t n,
                       struct ds_bytes *ret_text)
{
    const uint32_t *tokens = s->picked + sequence->first_output;
    uint32_t done = 0;
    size_t size = 0;

    while (done < n && !sequence->ended) {
        struct ds_bytes text;

        if (ds_sequence_append(sequence, s->tokenizer, tokens[done++], &text) < 0 ||
            keep_text(s, &size, text) < 0) {
            sequence->ended = DS_FINISH_ERROR;
            size = 0;
        }
    }
    *ret_text = (struct ds_bytes){ .data = s->text, .size = size };
    return done;
}

bool ds_scheduler_deliver(struct ds_scheduler *s, struct ds_sequence *sequence, uint32_t n_right,
                          uint64_t now, ds_output_sink *sink, void *arg)
{
    const struct ds_job *job = &sequence->job;
    uint32_t first = sequence->first_output, n;
    float logprobs[DS_DRAFT_MAX + 1];
    struct ds_output output;
    struct ds_bytes text;

    if (job->score)
        return deliver_score(s, sequence, now, sink, arg);
    assert(sequence->n_outputs == 1 + sequence->n_drafted && n_right <= DS_DRAFT_MAX);
    n = append(s, sequence, n_right + 1, &text);
    assert(sequence->ended || ds_sequence_n_missing(sequence) == 1);
    sequence->n_accepted_total += n < n_right ? n : n_right;
    sequence->user->counter += (uint64_t) n * DS_USER_ANSWER_WEIGHT;
    sequence->last_token_nsec = now;
    if (sequence->first_token_nsec == 0)
        sequence->first_token_nsec = now;

    output = describe(sequence);
    output.n_tokens = n;
    output.tokens = s->picked + first;
    output.text = text;
    if (job->reply && ds_reply_take(job->reply, &output.text, &output.parts, &output.n_parts) < 0)
        sequence->ended = DS_FINISH_ERROR;
    if (job->want_logprobs || job->n_top > 0) {
        for (uint32_t i = 0; i < n; i++)
            logprobs[i] = (float) s->logprobs[first + i];
        output.logprobs = logprobs;
    }
    if (job->n_top > 0) {
        output.top = s->top + (size_t) first * DS_LOGPROBS_MAX;
        output.n_top = job->n_top;
    }
    if (sequence->ended) {
        finish(s, sequence, &output, sequence->ended, now, sink, arg);
        return false;
    }
    sequence->reported = true;
    sink(arg, &output);
    return true;
}
