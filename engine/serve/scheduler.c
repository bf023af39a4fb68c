/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/scheduler.h"

#include <assert.h>

#include "engine/serve/scheduler_state.h"

uint64_t ds_scheduler_now(const struct ds_scheduler *s)
{
    return s->options.clock ? s->options.clock() : ds_now_nsec();
}

/* --- life --- */

static int make_cache(struct ds_scheduler *s, struct ds_error *error)
{
    struct ds_kv_geometry geometry;
    int r;

    ds_model_kv_geometry(s->model, &geometry);
    geometry.n_blocks = s->options.n_blocks;
    s->kv_bytes = s->backend->kv_bytes(&geometry);
    r = s->backend->kv_new(s->backend, &geometry, &s->kv);
    if (r == 0)
        r = ds_kv_cache_new(&s->cache, s->options.n_blocks, s->options.prefix_salt);
    if (r < 0)
        return ds_error_set(error, r,
                            "no memory for a KV cache of %u blocks (%llu MiB): ask for less or "
                            "unload another model",
                            s->options.n_blocks, (unsigned long long) (s->kv_bytes >> 20));
    return 0;
}

/* What depends on the rows with logits, and on the threads that look at them. */
static int make_outputs(struct ds_scheduler *s)
{
    uint32_t n = s->options.outputs_max;

    s->n_samplers = s->backend->parallel && s->backend->n_threads ? s->backend->n_threads : 1;
    s->samplers = calloc(s->n_samplers, sizeof(struct ds_sampler *));
    s->logits = malloc((size_t) n * s->n_vocab * sizeof *s->logits);
    s->output_owner = calloc(n, sizeof(struct ds_sequence *));
    s->picked = calloc(n, sizeof *s->picked);
    s->logprobs = calloc(n, sizeof *s->logprobs);
    s->top = calloc((size_t) n * DS_LOGPROBS_MAX, sizeof *s->top);
    if (!s->samplers || !s->logits || !s->output_owner || !s->picked || !s->logprobs || !s->top)
        return -ENOMEM;
    for (unsigned i = 0; i < s->n_samplers; i++) {
        int r = ds_sampler_new(&s->samplers[i], s->n_vocab);

        if (r < 0)
            return r;
    }
    return 0;
}

static int make_batch(struct ds_scheduler *s, struct ds_error *error)
{
    const struct ds_scheduler_options *o = &s->options;
    uint32_t blocks_max = ds_blocks_of(o->context);

    s->running = calloc(o->sequences_max, sizeof(struct ds_sequence *));
    s->in_batch = calloc(o->sequences_max, sizeof(struct ds_sequence *));
    s->tokens = calloc(o->batch_tokens_max, sizeof *s->tokens);
    s->positions = calloc(o->batch_tokens_max, sizeof *s->positions);
    s->sequences = calloc(o->batch_tokens_max, sizeof *s->sequences);
    s->outputs = calloc(o->outputs_max, sizeof *s->outputs);
    s->block_tables = calloc((size_t) o->sequences_max * blocks_max, sizeof *s->block_tables);
    s->adapters = calloc(o->sequences_max, sizeof *s->adapters);
    if (!s->running || !s->in_batch || !s->tokens || !s->positions || !s->sequences ||
        !s->outputs || !s->block_tables || !s->adapters || make_outputs(s) < 0 || ds_mtp_new(s) < 0)
        return ds_error_set(error, -ENOMEM,
                            "no memory for batches of %u rows: unload another model",
                            o->batch_tokens_max);
    s->batch = (struct ds_batch){ .blocks_max = blocks_max,
                                  .tokens = s->tokens,
                                  .positions = s->positions,
                                  .sequences = s->sequences,
                                  .outputs = s->outputs,
                                  .block_tables = s->block_tables };
    return 0;
}

int ds_scheduler_new(struct ds_scheduler **ret_scheduler, struct ds_backend *backend,
                     struct ds_model *model, const struct ds_tokenizer *tokenizer,
                     const struct ds_scheduler_options *options, struct ds_error *error)
{
    struct ds_scheduler *s;
    uint64_t positions = (uint64_t) options->n_blocks * DS_KV_BLOCK;
    int r;

    assert(options->n_blocks > 0 && options->context > 1 && options->batch_tokens_max > 0 &&
           options->sequences_max > 0);
    s = calloc(1, sizeof *s);
    if (!s)
        return ds_error_set(error, -ENOMEM, "no memory for a scheduler");
    s->backend = backend;
    s->model = model;
    s->tokenizer = tokenizer;
    s->n_vocab = ds_model_n_vocab(model);
    s->options = *options;
    if (s->options.context > positions) /* a sequence that runs alone must fit */
        s->options.context = (uint32_t) positions;
    if (s->options.sequences_max > s->options.batch_tokens_max)
        s->options.sequences_max = s->options.batch_tokens_max;
    if (s->options.outputs_max < s->options.sequences_max)
        s->options.outputs_max = s->options.sequences_max;
    ds_drafts_init(s);
    r = make_cache(s, error);
    if (r == 0)
        r = make_batch(s, error);
    if (r < 0) {
        (void) ds_scheduler_free(s);
        return r;
    }
    *ret_scheduler = s;
    return 0;
}

struct ds_scheduler *ds_scheduler_free(struct ds_scheduler *s)
{
    if (!s)
        return NULL;
    while (s->n_running > 0) {
        struct ds_sequence *sequence = s->running[s->n_running - 1];

        ds_scheduler_stop(s, sequence);
        (void) ds_sequence_free(sequence);
    }
    for (uint32_t i = 0; i < s->users.n; i++) {
        struct ds_user *user = s->users.list[i];

        while (user->oldest) {
            struct ds_sequence *sequence = user->oldest;

            ds_user_dequeue(user, sequence);
            (void) ds_sequence_free(sequence);
        }
    }
    ds_users_deinit(&s->users);
    if (s->kv)
        s->backend->kv_free(s->backend, s->kv);
    (void) ds_kv_cache_free(s->cache);
    for (unsigned i = 0; s->samplers && i < s->n_samplers; i++)
        (void) ds_sampler_free(s->samplers[i]);
    free(s->samplers);
    ds_mtp_free(s);
    free(s->output_owner);
    free(s->picked);
    free(s->logprobs);
    free(s->top);
    free(s->running);
    free(s->in_batch);
    free(s->tokens);
    free(s->positions);
    free(s->sequences);
    free(s->outputs);
    free(s->block_tables);
    free(s->adapters);
    free(s->logits);
    free(s->text);
    free(s);
    return NULL;
}

/* --- jobs --- */

static int choose_drafts(const struct ds_scheduler *s, struct ds_sequence *sequence,
                         struct ds_error *error)
{
    sequence->draft = sequence->job.draft ? sequence->job.draft : s->options.draft;
    if (sequence->draft == DS_DRAFT_MODEL && !sequence->job.drafter)
        sequence->draft = s->options.draft;
    if (sequence->draft == DS_DRAFT_MTP && !s->spans)
        return ds_error_set(error, -ENOTSUP,
                            "the model has no module that predicts further tokens: leave "
                            "speculation open or ask for n-grams");
    if (sequence->draft == DS_DRAFT_DEFAULT || sequence->job.score)
        sequence->draft = DS_DRAFT_OFF;
    if (sequence->draft == DS_DRAFT_MODEL)
        sequence->seat.drafter = sequence->job.drafter;
    memcpy(sequence->accepted, s->accepted, sizeof s->accepted);
    return 0;
}

int ds_scheduler_add(struct ds_scheduler *s, struct ds_job *job, struct ds_error *error)
{
    struct ds_sequence *sequence;
    uint32_t uid = job->uid;
    int r;

    r = ds_sequence_new(&sequence, job, s->tokenizer, s->n_vocab, s->options.context, error);
    if (r < 0)
        return r;
    r = choose_drafts(s, sequence, error);
    if (r < 0) {
        (void) ds_sequence_free(sequence);
        return r;
    }
    r = ds_users_get(&s->users, uid, &sequence->user);
    if (r < 0) {
        (void) ds_sequence_free(sequence);
        return ds_error_set(error, r, "no memory for another request");
    }
    if (sequence->job.submitted_nsec == 0)
        sequence->job.submitted_nsec = ds_scheduler_now(s);
    sequence->arrival = s->next_arrival++;
    ds_user_enqueue(sequence->user, sequence);
    return 0;
}

void ds_scheduler_cancel(struct ds_scheduler *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        s->running[i]->cancelled = s->running[i]->cancelled || s->running[i]->job.id == id;
    for (uint32_t i = 0; i < s->users.n; i++) {
        for (struct ds_sequence *q = s->users.list[i]->oldest; q; q = q->newer)
            q->cancelled = q->cancelled || q->job.id == id;
    }
}

bool ds_scheduler_idle(const struct ds_scheduler *s)
{
    if (s->n_running > 0)
        return false;
    for (uint32_t i = 0; i < s->users.n; i++) {
        if (s->users.list[i]->n_waiting > 0)
            return false;
    }
    return true;
}

uint64_t ds_scheduler_kv_bytes(const struct ds_scheduler *s)
{
    return s->kv_bytes;
}

/* --- a step --- */

/* Why a sequence must end before it computes anything more; 0: it need not. */
static enum ds_finish due(const struct ds_sequence *sequence, uint64_t now)
{
    if (sequence->ended) /* its delivered tokens were the whole answer */
        return sequence->ended;
    if (sequence->cancelled)
        return DS_FINISH_CANCELLED;
    if (sequence->job.deadline_nsec && now >= sequence->job.deadline_nsec)
        return DS_FINISH_DEADLINE;
    return 0;
}

static void end_what_is_due(struct ds_scheduler *s, uint64_t now, ds_output_sink *sink, void *arg)
{
    for (uint32_t i = s->n_running; i-- > 0;) {
        enum ds_finish reason = due(s->running[i], now);

        if (reason)
            ds_scheduler_end(s, s->running[i], reason, now, sink, arg);
    }
    for (uint32_t i = 0; i < s->users.n; i++) {
        struct ds_sequence *next;

        for (struct ds_sequence *q = s->users.list[i]->oldest; q; q = next) {
            enum ds_finish reason = due(q, now);

            next = q->newer;
            if (reason)
                ds_scheduler_end(s, q, reason, now, sink, arg);
        }
    }
}

/* Writes the planned rows into the batch. */
static void build_batch(struct ds_scheduler *s)
{
    struct ds_batch *batch = &s->batch;

    batch->n_tokens = batch->n_sequences = batch->n_outputs = 0;
    batch->adapters = NULL;
    batch->hidden = NULL;
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct ds_sequence *sequence = s->running[i];
        uint32_t slot = batch->n_sequences;

        if (sequence->n_planned == 0)
            continue;
        sequence->first_output = batch->n_outputs;
        for (uint32_t j = 0; j < sequence->n_planned; j++) {
            uint32_t row = batch->n_tokens++, position = sequence->n_computed + j;

            s->tokens[row] = sequence->job.tokens[position];
            s->positions[row] = position;
            s->sequences[row] = slot;
            if (j >= sequence->n_planned - sequence->n_outputs) {
                s->output_owner[batch->n_outputs] = sequence;
                s->outputs[batch->n_outputs++] = row;
            }
        }
        memcpy(s->block_tables + (size_t) slot * batch->blocks_max, sequence->blocks,
               sequence->n_blocks * sizeof *sequence->blocks);
        s->adapters[slot] =
            (struct ds_adapter_use){ sequence->job.adapter, sequence->job.adapter_scale };
        if (sequence->job.adapter)
            batch->adapters = s->adapters;
        if (s->spans)
            s->spans[slot] = (struct ds_mtp_span){ .row = batch->n_tokens - sequence->n_planned,
                                                   .position = sequence->n_computed };
        if (sequence->draft == DS_DRAFT_MTP)
            batch->hidden = s->hidden;
        s->in_batch[slot] = sequence;
        batch->n_sequences++;
    }
    assert(batch->n_tokens == s->n_decodes + s->n_prompt_rows);
    assert(batch->n_outputs == s->n_outputs);
}

/* The batch has been computed: its full blocks may be shared. n_right guesses have become tokens,
 * or will when they are delivered. */
static void publish(struct ds_scheduler *s, struct ds_sequence *sequence, uint32_t n_right)
{
    sequence->n_computed += sequence->n_planned - sequence->n_drafted + n_right;
    assert(sequence->n_computed <= sequence->n_tokens + n_right);
    for (; (sequence->n_published + 1) * DS_KV_BLOCK <= sequence->n_computed;
         sequence->n_published++) {
        uint32_t i = sequence->n_published;

        ds_kv_cache_publish(s->cache, ds_sequence_owner(sequence),
                            i ? sequence->blocks[i - 1] : DS_KV_NO_BLOCK, sequence->blocks[i],
                            sequence->job.tokens + (size_t) i * DS_KV_BLOCK);
    }
}

static void deliver_all(struct ds_scheduler *s, uint64_t now, ds_output_sink *sink, void *arg)
{
    for (uint32_t i = 0; i < s->batch.n_sequences; i++) {
        struct ds_sequence *sequence = s->in_batch[i];
        uint32_t n_right = ds_scheduler_judge_drafts(s, sequence);
        uint32_t n_rows = sequence->n_planned - sequence->n_drafted + n_right;
        bool goes_on = true;

        sequence->has_mtp_guess = false;
        publish(s, sequence, n_right);
        if (sequence->n_outputs > 0)
            goes_on = ds_scheduler_deliver(s, sequence, n_right, now, sink, arg);
        if (s->spans) {
            s->spans[i].sequence = goes_on ? sequence : NULL;
            s->spans[i].n_rows = n_rows;
        }
    }
}

int ds_scheduler_step(struct ds_scheduler *s, ds_output_sink *sink, void *arg)
{
    uint64_t before = ds_scheduler_now(s), after;
    int r;

    end_what_is_due(s, before, sink, arg);
    ds_scheduler_plan(s, before);
    s->drafting_nsec = 0;
    r = ds_scheduler_plan_drafts(s);
    if (r < 0)
        return r;
    build_batch(s);
    if (s->batch.n_tokens == 0) {
        assert(ds_scheduler_idle(s)); /* whoever has work can always do some of it */
        return 0;
    }
    r = ds_model_forward(s->model, s->kv, &s->batch, s->logits);
    if (r < 0)
        return r;
    ds_scheduler_draw(s);
    after = ds_scheduler_now(s);
    deliver_all(s, after, sink, arg);
    r = ds_scheduler_run_mtp(s);
    if (r < 0)
        return r;
    if (r > 0)
        after = ds_scheduler_now(s);
    ds_pace_learn(&s->pace, s->n_decodes, s->n_prompt_rows, s->prompt_context,
                  (double) (after - before - s->drafting_nsec) / 1e3);
    return ds_scheduler_idle(s) ? 0 : 1;
}

void ds_scheduler_check(const struct ds_scheduler *s)
{
    uint32_t n_held = 0, n_refs = 0;

    ds_kv_cache_check(s->cache);
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct ds_sequence *sequence = s->running[i];

        assert(i == 0 || s->running[i - 1]->arrival < sequence->arrival);
        assert(sequence->running && sequence->n_computed <= sequence->n_blocks * DS_KV_BLOCK);
        assert(sequence->n_published == sequence->n_computed / DS_KV_BLOCK);
        n_held += sequence->n_blocks;
    }
    for (uint32_t i = 0; i < s->options.n_blocks; i++)
        n_refs += ds_kv_cache_n_refs(s->cache, i);
    assert(n_held == n_refs);
    for (uint32_t i = 0; i < s->users.n; i++) {
        const struct ds_user *user = s->users.list[i];
        uint32_t n_waiting = 0, n_running = 0;

        for (const struct ds_sequence *q = user->oldest; q; q = q->newer, n_waiting++)
            assert(!q->running && q->n_blocks == 0 && q->user == user &&
                   (!q->newer || q->newer->arrival > q->arrival));
        for (uint32_t j = 0; j < s->n_running; j++)
            n_running += s->running[j]->user == user;
        assert(n_waiting == user->n_waiting && n_running == user->n_running);
        (void) n_waiting, (void) n_running;
    }
    (void) n_held, (void) n_refs;
}
