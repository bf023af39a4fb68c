/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Multi-token prediction: models of the DeepSeek V3 kind have a module that reads, for a position,
 * what the model made of it and the token that came after, and predicts the token after that.
 *
 * After each step it reads every row that holds: at that moment the token after each of them is
 * known, the last one's having just been drawn. Its keys and values are a layer of the same cache,
 * so they are shared and given back with the sequence's blocks. Positions that came from the cache
 * of a sequence without guesses are missing there: guesses get worse, answers do not.
 */
#include <assert.h>

#include "engine/serve/scheduler_state.h"

int ds_mtp_new(struct ds_scheduler *s)
{
    if (!ds_model_has_mtp(s->model))
        return 0;
    s->spans = calloc(s->options.sequences_max, sizeof *s->spans);
    s->hidden =
        calloc((size_t) s->options.batch_tokens_max * ds_model_width(s->model), sizeof *s->hidden);
    return s->spans && s->hidden ? 0 : -ENOMEM;
}

void ds_mtp_free(struct ds_scheduler *s)
{
    free(s->spans);
    free(s->hidden);
}

/* Is there a token after the next to guess, and room for it? */
static bool wants_guess(const struct ds_sequence *sequence)
{
    return ds_sequence_decodes(sequence) && sequence->limit > sequence->n_tokens + 1;
}

/* The rows of the step become the module's, moved together: a row is never before where it goes. */
static void build(struct ds_scheduler *s)
{
    const size_t width = ds_model_width(s->model);
    struct ds_batch *batch = &s->batch;
    uint32_t n_spans = batch->n_sequences;

    batch->n_tokens = batch->n_sequences = batch->n_outputs = 0;
    batch->hidden = NULL;
    batch->adapters = NULL;
    for (uint32_t i = 0; i < n_spans; i++) {
        const struct ds_mtp_span *span = &s->spans[i];
        struct ds_sequence *sequence = span->sequence;
        uint32_t slot = batch->n_sequences;

        if (!sequence || sequence->draft != DS_DRAFT_MTP)
            continue;
        memmove(s->hidden + batch->n_tokens * width, s->hidden + span->row * width,
                span->n_rows * width * sizeof *s->hidden);
        for (uint32_t j = 0; j < span->n_rows; j++) {
            uint32_t row = batch->n_tokens++;

            assert(span->position + j + 1 < sequence->n_tokens);
            s->tokens[row] = sequence->job.tokens[span->position + j + 1];
            s->positions[row] = span->position + j;
            s->sequences[row] = slot;
        }
        if (wants_guess(sequence)) {
            s->output_owner[batch->n_outputs] = sequence;
            s->outputs[batch->n_outputs++] = batch->n_tokens - 1;
        }
        memcpy(s->block_tables + (size_t) slot * batch->blocks_max, sequence->blocks,
               sequence->n_blocks * sizeof *sequence->blocks);
        batch->n_sequences++;
    }
}

/* The likeliest way to guess right: with the parameters and the random number of the draw to come.
 */
static void guess(void *arg, uint32_t row, unsigned thread)
{
    struct ds_scheduler *s = arg;
    struct ds_sequence *sequence = s->output_owner[row];
    uint32_t n = sequence->n_tokens;

    sequence->mtp_guess =
        ds_sampler_pick(s->samplers[thread], &sequence->job.sampling,
                        s->logits + (size_t) row * s->n_vocab, sequence->job.tokens, n, n);
    sequence->has_mtp_guess = true;
}

int ds_scheduler_run_mtp(struct ds_scheduler *s)
{
    int r;

    if (!s->batch.hidden)
        return 0;
    build(s);
    if (s->batch.n_tokens == 0)
        return 0;
    r = ds_model_mtp(s->model, s->kv, &s->batch, s->hidden, s->logits, NULL);
    if (r < 0)
        return r;
    ds_scheduler_parallel(s, guess, s->batch.n_outputs);
    return 1;
}
