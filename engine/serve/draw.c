/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows are independent: each is drawn by whichever thread is free, with the scratch memory of that
 * thread. What a row yields depends on its logits, its sequence's tokens and parameters alone.
 */
#include "engine/serve/scheduler_state.h"

/* Position whose logits the k-th output row of sequence has. */
static uint32_t position_of(const struct ds_sequence *sequence, uint32_t k)
{
    return sequence->n_computed + sequence->n_planned - sequence->n_outputs + k;
}

static void draw_score(struct ds_scheduler *s, const struct ds_sequence *sequence, uint32_t row,
                       const float *logits)
{
    const struct ds_job *job = &sequence->job;
    uint32_t next = position_of(sequence, row - sequence->first_output) + 1;

    if (next < job->n_prompt)
        s->logprobs[row] = ds_logprob(logits, s->n_vocab, job->tokens[next]);
    else
        ds_top_logprobs(logits, s->n_vocab, s->top + (size_t) row * DS_LOGPROBS_MAX, job->n_top);
}

static void draw_row(void *arg, uint32_t row, unsigned thread)
{
    struct ds_scheduler *s = arg;
    const struct ds_sequence *sequence = s->output_owner[row];
    const struct ds_job *job = &sequence->job;
    const float *logits = s->logits + (size_t) row * s->n_vocab;
    uint32_t k = row - sequence->first_output, n;

    if (job->score) {
        draw_score(s, sequence, row, logits);
        return;
    }
    n = position_of(sequence, k) + 1; /* tokens the row knows */
    s->picked[row] =
        ds_sampler_pick(s->samplers[thread], &job->sampling, logits, job->tokens, n, n);
    if (job->want_logprobs || job->n_top > 0)
        s->logprobs[row] = ds_logprob(logits, s->n_vocab, s->picked[row]);
    if (job->n_top > 0)
        ds_top_logprobs(logits, s->n_vocab,
                        s->top + (size_t) sequence->first_output * DS_LOGPROBS_MAX +
                            (size_t) k * job->n_top,
                        job->n_top);
}

void ds_scheduler_parallel(struct ds_scheduler *s,
                           void (*item)(void *arg, uint32_t i, unsigned thread), uint32_t n)
{
    if (s->backend->parallel) {
        s->backend->parallel(s->backend, item, s, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        item(s, i, 0);
}

void ds_scheduler_draw(struct ds_scheduler *s)
{
    ds_scheduler_parallel(s, draw_row, s->batch.n_outputs);
}
