/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: guesses make tokens come faster and never change one.
 * Method: jobs of all kinds with guesses from hostile, omniscient and mixed guessers, alone and in
 * company, in small batches and caches, cut short and replayed, each compared byte for byte with a
 * plain loop that knows no guesses. The index of n-grams against a search. What is worth a guess,
 * with a clock of the test's own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/philox.h"
#include "engine/serve/scheduler_state.h"
#include "tests/lib/gguf_writer.h"
#include "tests/lib/serving.h"
#include "tests/lib/tiny_deepseek.h"

enum { N_JOBS = 24 };

struct fixture {
    struct ds_backend *backend;
    struct ds_serving serving;
    struct ds_spec specs[N_JOBS];
    struct ds_answer expected[N_JOBS];
    struct ds_ngram ngrams[N_JOBS];
    unsigned truth; /* of ten guesses so many are right */
    uint64_t draw;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct ds_cpu_options cpu = { .n_threads = 2, .spin_usec = 50 };
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);

    assert_int_equal(ds_backend_cpu(&f->backend, &cpu), 0);
    ds_serving_init(&f->serving, f->backend, &model);
    for (unsigned i = 0; i < N_JOBS; i++) {
        f->specs[i] = ds_spec_random(1000 + i, f->serving.runner.n_vocab);
        if (i % 6 == 5) { /* one that repeats itself */
            f->specs[i].sampling.temperature = 0.0f;
            f->specs[i].sampling.repeat_penalty = 1.0f;
            f->specs[i].sampling.frequency_penalty = f->specs[i].sampling.presence_penalty = 0.0f;
            f->specs[i].max_tokens = 90;
        }
        ds_serving_alone(&f->serving, &f->specs[i], &f->expected[i]);
    }
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < N_JOBS; i++)
        ds_ngram_deinit(&f->ngrams[i]);
    ds_serving_deinit(&f->serving);
    f->backend->close(f->backend);
    free(f);
    return 0;
}

static uint32_t below(struct fixture *f, uint32_t n)
{
    return (uint32_t) (ds_philox_uniform(31, f->draw++) * n);
}

/* The truth, or anything: what the plain loop drew next, and now and then something else. */
static uint32_t guess(void *arg, uint64_t id, uint32_t *tokens, uint32_t n_tokens, uint32_t n)
{
    struct fixture *f = arg;
    const struct ds_answer *expected = &f->expected[id];
    uint32_t n_prompt = f->specs[id].n_prompt, n_guesses = below(f, n + 1);

    for (uint32_t i = 0; i < n_guesses; i++) {
        uint32_t at = n_tokens + i - n_prompt;

        tokens[n_tokens + i] = below(f, 10) < f->truth && at < expected->n_tokens
                                   ? expected->tokens[at]
                                   : below(f, f->serving.runner.n_vocab);
    }
    return n_guesses;
}

static uint32_t guess_ngram(void *arg, uint64_t id, uint32_t *tokens, uint32_t n_tokens, uint32_t n)
{
    return ds_ngram_propose(&((struct fixture *) arg)->ngrams[id], tokens, n_tokens, n);
}

static struct ds_scheduler_options with(struct fixture *f, ds_propose *propose)
{
    struct ds_scheduler_options options = ds_serving_options();

    options.propose = propose;
    options.propose_arg = f;
    return options;
}

static void forget_ngrams(struct fixture *f)
{
    for (unsigned i = 0; i < N_JOBS; i++)
        ds_ngram_deinit(&f->ngrams[i]);
}

static void one_job_alone_yields_the_same_bytes(void **state)
{
    struct fixture *f = *state;
    unsigned drafted = 0, accepted = 0;

    for (f->truth = 0; f->truth <= 10; f->truth += 5) {
        struct ds_scheduler_options options = with(f, guess);

        for (unsigned i = 0; i < N_JOBS; i++) {
            const struct ds_answer *answer;

            ds_serving_start(&f->serving, &options, N_JOBS);
            ds_serving_add(&f->serving, &f->specs[i], i);
            ds_serving_run(&f->serving);
            answer = &f->serving.answers[i];
            ds_assert_same_answer(answer, &f->expected[i]);
            assert_int_equal(answer->n_completion, f->expected[i].n_tokens);
            assert_true(answer->n_accepted <= answer->n_drafted);
            if (!f->specs[i].score) /* a guess may be the end: then nothing is drawn after it */
                assert_in_range(answer->n_outputs + answer->n_accepted, answer->n_tokens,
                                answer->n_tokens + 1);
            drafted += answer->n_drafted;
            accepted += answer->n_accepted;
        }
    }
    printf("note: %u tokens guessed, %u of them right\n", drafted, accepted);
    assert_true(accepted > 300 && drafted > accepted + 300);
}

static void company_budgets_cancels_and_cache_sizes_do_not_show(void **state)
{
    struct fixture *f = *state;
    unsigned accepted = 0, cancelled = 0;

    for (unsigned round = 0; round < 24; round++) {
        struct ds_scheduler_options options = with(f, round % 3 ? guess : guess_ngram);
        unsigned added = 0;

        forget_ngrams(f);
        f->truth = below(f, 11);
        options.batch_tokens_max = 1 + below(f, 64);
        options.sequences_max = 1 + below(f, 16);
        options.outputs_max = below(f, 32);
        options.n_blocks = 8 + below(f, round % 2 ? 6 : 40);
        ds_serving_start(&f->serving, &options, N_JOBS);
        do {
            if (added < N_JOBS && below(f, 2)) {
                ds_serving_add(&f->serving, &f->specs[added], added);
                added++;
            }
            if (below(f, 40) == 0)
                ds_scheduler_cancel(f->serving.scheduler, below(f, N_JOBS));
        } while (ds_serving_step(&f->serving) > 0 || added < N_JOBS);
        for (unsigned i = 0; i < N_JOBS; i++) {
            const struct ds_answer *answer = &f->serving.answers[i];

            accepted += answer->n_accepted;
            if (answer->finish != DS_FINISH_CANCELLED) {
                ds_assert_same_answer(answer, &f->expected[i]);
                continue;
            }
            cancelled++;
            assert_true(answer->n_tokens <= f->expected[i].n_tokens);
            assert_memory_equal(answer->tokens, f->expected[i].tokens,
                                answer->n_tokens * sizeof *answer->tokens);
        }
        assert_int_equal(ds_kv_cache_n_free(f->serving.scheduler->cache), options.n_blocks);
    }
    printf("note: %u guesses were right, %u jobs cancelled\n", accepted, cancelled);
    assert_true(accepted > 1000 && cancelled > 10);
}

static void an_answer_goes_on_from_wherever_it_was_cut(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = with(f, guess);

    f->truth = 8;
    ds_serving_start(&f->serving, &options, N_JOBS);
    for (unsigned i = 0; i < N_JOBS; i++) {
        const struct ds_answer *whole = &f->expected[i];

        if (f->specs[i].score)
            continue;
        for (uint32_t k = 1; k <= whole->n_tokens; k += 3) {
            struct ds_answer rest, *answer = &f->serving.answers[i];
            struct ds_spec spec = f->specs[i];

            memcpy(spec.tokens + spec.n_prompt, whole->tokens, k * sizeof *whole->tokens);
            spec.n_delivered = k;
            *answer = (struct ds_answer){ 0 };
            ds_serving_alone(&f->serving, &spec, &rest);
            ds_serving_add(&f->serving, &spec, i);
            ds_serving_run(&f->serving);
            ds_assert_same_answer(answer, &rest);
        }
    }
}

static void what_guesses_computed_can_be_shared_as_a_prefix(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = with(f, guess);
    unsigned n_cached = 0;

    f->truth = 7;
    ds_serving_start(&f->serving, &options, N_JOBS);
    for (unsigned i = 5; i < N_JOBS; i += 6) {
        struct ds_spec spec = f->specs[i];
        struct ds_answer expected;
        uint32_t n = f->expected[i].n_tokens;

        ds_serving_add(&f->serving, &spec, i);
        ds_serving_run(&f->serving);
        memcpy(spec.tokens + spec.n_prompt, f->expected[i].tokens, n * sizeof *spec.tokens);
        spec.n_prompt += n;
        spec.max_tokens = 5;
        ds_serving_alone(&f->serving, &spec, &expected);
        f->serving.answers[i] = (struct ds_answer){ 0 };
        ds_serving_add(&f->serving, &spec, i); /* guesses now past the end: junk all of them */
        ds_serving_run(&f->serving);
        ds_assert_same_answer(&f->serving.answers[i], &expected);
        n_cached += f->serving.answers[i].n_cached;
    }
    assert_true(n_cached > 100);
}

/* --- n-grams --- */

/* The same by looking through all tokens. */
static uint32_t search(const uint32_t *tokens, uint32_t n_tokens)
{
    for (uint32_t length = 4; length >= 2; length--) {
        for (uint32_t at = n_tokens - 1; at >= length && length < n_tokens; at--) {
            if (memcmp(tokens + at - length, tokens + n_tokens - length, length * sizeof *tokens) ==
                0)
                return at;
        }
    }
    return 0;
}

static void the_index_finds_the_last_occurrence_of_the_longest(void **state)
{
    uint32_t tokens[400 + 8], n_found = 0, n_there = 0;
    struct ds_ngram ngram = { 0 };

    (void) state;
    for (uint32_t i = 0; i < 400; i++)
        tokens[i] = (uint32_t) (ds_philox_uniform(8, i) * 12);
    for (uint32_t n = 1; n <= 400; n += n % 7 ? 1 : 5) { /* tokens come singly and in heaps */
        uint32_t kept[8], at = n > 2 ? search(tokens, n) : 0, got;

        memcpy(kept, tokens + n, sizeof kept);
        got = ds_ngram_propose(&ngram, tokens, n, 8);
        n_there += at > 0;
        if (at > 0 && got > 0) { /* a slot may be lost to another, seldom */
            n_found++;
            for (uint32_t i = 0; i < 8; i++)
                assert_int_equal(tokens[n + i],
                                 at + i < n ? tokens[at + i] : tokens[n + at + i - n]);
        }
        assert_true(at > 0 || got == 0);
        memcpy(tokens + n, kept, sizeof kept);
    }
    printf("note: %u of %u found\n", n_found, n_there);
    assert_true(n_there > 80 && n_found >= n_there - n_there / 5);
    ds_ngram_deinit(&ngram);
}

static void the_index_stays_small(void **state)
{
    enum { N = 300000 };
    uint32_t *tokens = malloc((N + 4) * sizeof *tokens);
    struct ds_ngram ngram = { 0 };

    (void) state;
    assert_non_null(tokens);
    for (uint32_t i = 0; i < N; i++)
        tokens[i] = i;
    assert_int_equal(ds_ngram_propose(&ngram, tokens, N, 4), 0);
    assert_int_equal(ngram.n_slots, DS_NGRAM_SLOTS_MAX);
    ds_ngram_deinit(&ngram);
    free(tokens);
}

/* --- what is worth it: a clock that each look moves on --- */

static uint64_t fake_nsec;
static double row_cost_nsec;
static const struct ds_scheduler *watched;

static uint64_t fake_clock(void)
{
    /* Looked at before and after a batch; n_decodes is then what was planned. */
    static bool after;

    if (after && watched)
        fake_nsec += (uint64_t) (1e5 + row_cost_nsec * watched->n_decodes);
    after = !after;
    return fake_nsec;
}

static void run_with_row_cost(struct fixture *f, double cost, struct ds_answer *ret_answer)
{
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = f->specs[5];

    spec.max_tokens = 100;
    spec.ignore_eos = true;
    spec.n_stops = 0;
    options.clock = fake_clock;
    options.draft = DS_DRAFT_NGRAM;
    row_cost_nsec = cost;
    ds_serving_start(&f->serving, &options, 1);
    watched = f->serving.scheduler;
    ds_serving_add(&f->serving, &spec, 0);
    ds_serving_run(&f->serving);
    watched = NULL;
    *ret_answer = f->serving.answers[0];
}

static void guesses_are_made_while_rows_cost_little(void **state)
{
    struct fixture *f = *state;
    struct ds_answer cheap, dear;

    run_with_row_cost(f, 1e3, &cheap);
    run_with_row_cost(f, 20e6, &dear);
    assert_int_equal(cheap.n_tokens, dear.n_tokens);
    assert_memory_equal(cheap.tokens, dear.tokens, cheap.n_tokens * sizeof *cheap.tokens);
    assert_string_equal(cheap.text, dear.text);
    printf("note: cheap rows: %u of %u guesses right; dear ones: %u of %u\n", cheap.n_accepted,
           cheap.n_drafted, dear.n_accepted, dear.n_drafted);
    assert_true(cheap.n_accepted > 20 && cheap.n_outputs < cheap.n_tokens - 20);
    assert_true(dear.n_drafted <= 6); /* a look at what two, three, four rows cost, and no more */
}

/* --- the model's own module --- */

static void open_deepseek(struct fixture *f, struct ds_serving *serving, bool mtp)
{
    struct ds_tiny_deepseek_options options = { .mtp = mtp, .compressed = true, .seed = 5 };
    struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(&options);
    size_t size = 0;
    ds_cleanup(ds_free_p) uint8_t *bytes = ds_tiny_deepseek_file(model, NULL, &size);

    ds_serving_init_fd(serving, f->backend, ds_memfd_of(bytes, size));
    (void) ds_tiny_deepseek_free(model);
}

/* What the module says of the tokens of sequence, computed in one go. */
static uint32_t guess_of(struct ds_serving *serving, const struct ds_sequence *sequence)
{
    enum { MOST = 64 };
    struct ds_runner *runner = &serving->runner;
    uint32_t n = sequence->n_tokens - 1, positions[MOST], sequences[MOST] = { 0 }, last = n - 1;
    size_t width = ds_model_width(runner->model);
    ds_cleanup(ds_free_p) float *hidden = calloc(MOST * width, sizeof *hidden);
    ds_cleanup(ds_free_p) float *logits = calloc(runner->n_vocab, sizeof *logits);
    uint32_t best = 0;

    assert_true(n <= MOST && hidden && logits);
    for (uint32_t i = 0; i < n; i++)
        positions[i] = i;
    struct ds_batch batch = { .n_tokens = n,
                              .n_sequences = 1,
                              .n_outputs = 1,
                              .blocks_max = runner->context / DS_KV_BLOCK,
                              .tokens = sequence->job.tokens,
                              .positions = positions,
                              .sequences = sequences,
                              .outputs = &last,
                              .block_tables = runner->blocks,
                              .hidden = hidden };

    assert_int_equal(ds_model_forward(runner->model, runner->kv, &batch, logits), 0);
    batch.tokens = sequence->job.tokens + 1;
    batch.hidden = NULL;
    assert_int_equal(ds_model_mtp(runner->model, runner->kv, &batch, hidden, logits, NULL), 0);
    for (uint32_t i = 1; i < runner->n_vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static void the_module_has_read_all_there_is_before_it_guesses(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_serving serving;
    struct ds_spec spec = { .n_prompt = 37,
                            .max_tokens = 20,
                            .ignore_eos = true,
                            .sampling = {
                                .top_p = 1.0f, .typical_p = 1.0f, .repeat_penalty = 1.0f } };
    unsigned n_guesses = 0;

    open_deepseek(f, &serving, true);
    for (uint32_t i = 0; i < spec.n_prompt; i++)
        spec.tokens[i] = (i * 31 + 7) % 320;
    options.draft = DS_DRAFT_MTP;
    options.batch_tokens_max = 16; /* the prompt in pieces */
    ds_serving_start(&serving, &options, 1);
    ds_serving_add(&serving, &spec, 0);
    while (ds_serving_step(&serving) > 0) {
        const struct ds_sequence *sequence = serving.scheduler->running[0];

        if (!sequence->has_mtp_guess)
            continue;
        assert_int_equal(sequence->mtp_guess, guess_of(&serving, sequence));
        n_guesses++;
    }
    assert_true(n_guesses >= 10);
    ds_serving_deinit(&serving);
}

static void guesses_of_the_module_change_no_byte(void **state)
{
    struct fixture *f = *state;
    struct ds_serving serving;
    unsigned drafted = 0, accepted = 0;

    open_deepseek(f, &serving, true);
    row_cost_nsec = 0.0;
    for (unsigned round = 0; round < 4; round++) {
        struct ds_scheduler_options options = ds_serving_options();
        struct ds_answer expected[8];

        options.draft = DS_DRAFT_MTP;
        options.clock = fake_clock;
        options.batch_tokens_max = round % 2 ? 64 : 24;
        options.n_blocks = round < 2 ? 12 : 60;
        ds_serving_start(&serving, &options, 8);
        watched = serving.scheduler;
        for (unsigned i = 0; i < 8; i++) {
            struct ds_spec spec = ds_spec_random(300 + 8 * round + i, serving.runner.n_vocab);

            ds_serving_alone(&serving, &spec, &expected[i]);
            ds_serving_add(&serving, &spec, i);
        }
        ds_serving_run(&serving);
        watched = NULL;
        for (unsigned i = 0; i < 8; i++) {
            ds_assert_same_answer(&serving.answers[i], &expected[i]);
            drafted += serving.answers[i].n_drafted;
            accepted += serving.answers[i].n_accepted;
        }
    }
    printf("note: the module's guesses: %u, right %u\n", drafted, accepted);
    assert_true(drafted > 20);
    ds_serving_deinit(&serving);
}

static void a_model_without_the_module_says_so(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_job job = ds_spec_job(&f->specs[5], 0);
    struct ds_error error = { "" };

    ds_serving_start(&f->serving, &options, 1);
    job.draft = DS_DRAFT_MTP;
    assert_int_equal(ds_scheduler_add(f->serving.scheduler, &job, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "no module"));
    assert_null(job.tokens);
    assert_true(ds_scheduler_idle(f->serving.scheduler));
}

/* --- a draft model --- */

static const struct ds_drafter *drafting;
static double step_cost_nsec, pass_cost_nsec;

/* A step takes so long, and each pass of the draft model that it waited for. */
static uint64_t draft_clock(void)
{
    return (uint64_t) (1e6 + step_cost_nsec * (double) watched->n_steps +
                       pass_cost_nsec * (double) drafting->n_passes);
}

static struct ds_drafter *new_drafter(const struct ds_serving *serving, uint32_t n_blocks)
{
    const struct ds_drafter_options options = {
        .n_blocks = n_blocks, .context = 256, .batch_tokens_max = 64, .sequences_max = 16
    };
    struct ds_drafter *drafter = NULL;

    assert_int_equal(
        ds_drafter_new(&drafter, serving->runner.backend, serving->runner.model, &options), 0);
    return drafter;
}

/* A scheduler whose jobs draft with drafter, by draft_clock. */
static void start_drafting(struct fixture *f, struct ds_drafter *drafter,
                           struct ds_scheduler_options *options, double step, double pass)
{
    options->clock = NULL;
    ds_serving_start(&f->serving, options, N_JOBS);
    watched = f->serving.scheduler;
    drafting = drafter;
    step_cost_nsec = step;
    pass_cost_nsec = pass;
    f->serving.scheduler->options.clock = draft_clock;
}

static void add_drafting(struct fixture *f, struct ds_drafter *drafter, const struct ds_spec *spec,
                         uint64_t id)
{
    struct ds_job job = ds_spec_job(spec, id);
    struct ds_error error = { "" };

    job.draft = DS_DRAFT_MODEL;
    job.drafter = drafter;
    if (ds_scheduler_add(f->serving.scheduler, &job, &error) != 0)
        fail_msg("%s", error.text);
}

/* Ends what is under way; every block of the drafter is free then. */
static void end_drafting(struct fixture *f, struct ds_drafter *drafter)
{
    f->serving.scheduler = ds_scheduler_free(f->serving.scheduler);
    ds_kv_cache_check(drafter->cache);
    assert_int_equal(ds_kv_cache_n_free(drafter->cache), drafter->options.n_blocks);
    (void) ds_drafter_free(drafter);
}

/* Models with the vocabulary of the fixture's: itself, itself in other precision, another one. */
static void open_draft_model(struct fixture *f, unsigned kind, struct ds_serving *ret_serving)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);

    if (kind == 1)
        options.type = DS_TYPE_F32;
    if (kind == 2) {
        options = ds_tiny_options(DS_ARCH_QWEN3, DS_TYPE_F32);
        options.vocab = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32).vocab;
        options.seed += 17;
        options.n_layers = 1;
    }
    ds_serving_init(ret_serving, f->backend, &options);
}

static void run_all_drafting(struct fixture *f, struct ds_drafter *drafter, unsigned round,
                             unsigned *drafted, unsigned *accepted)
{
    struct ds_scheduler_options options = ds_serving_options();
    unsigned added = 0;

    if (round % 2) { /* small batches, sequences put back */
        options.batch_tokens_max = 6 + below(f, 40);
        options.sequences_max = 1 + below(f, 8);
        options.n_blocks = 9 + below(f, 12);
    }
    start_drafting(f, drafter, &options, 1e6, 1e3);
    do {
        while (added < N_JOBS && below(f, 3)) {
            if (added % 4 == 3) /* among others without */
                ds_serving_add(&f->serving, &f->specs[added], added);
            else
                add_drafting(f, drafter, &f->specs[added], added);
            added++;
        }
        ds_kv_cache_check(drafter->cache);
    } while (ds_serving_step(&f->serving) > 0 || added < N_JOBS);
    assert_int_equal(ds_kv_cache_n_free(drafter->cache), drafter->options.n_blocks);
    for (unsigned i = 0; i < N_JOBS; i++) {
        ds_assert_same_answer(&f->serving.answers[i], &f->expected[i]);
        *drafted += f->serving.answers[i].n_drafted;
        *accepted += f->serving.answers[i].n_accepted;
    }
}

static void guesses_of_a_draft_model_change_no_byte(void **state)
{
    struct fixture *f = *state;

    for (unsigned kind = 0; kind < 3; kind++) {
        unsigned drafted = 0, accepted = 0;
        struct ds_serving draft;

        open_draft_model(f, kind, &draft);
        for (unsigned round = 0; round < 6; round++) {
            struct ds_drafter *drafter = new_drafter(&draft, round < 4 ? 200 : 7 + round);

            run_all_drafting(f, drafter, round, &drafted, &accepted);
            end_drafting(f, drafter);
        }
        ds_serving_deinit(&draft);
        printf("note: draft model %u: %u of %u guesses right\n", kind, accepted, drafted);
        assert_true(drafted > 100);
        assert_true(kind > 0 || accepted * 20 > drafted * 19); /* its own */
    }
}

static void an_answer_with_a_draft_model_goes_on_where_it_was_cut(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_drafter *drafter;
    struct ds_serving draft;
    unsigned accepted = 0;

    open_draft_model(f, 1, &draft);
    drafter = new_drafter(&draft, 200);
    start_drafting(f, drafter, &options, 1e6, 1e3);
    for (unsigned i = 0; i < N_JOBS; i++) {
        const struct ds_answer *whole = &f->expected[i];

        for (uint32_t k = 1; k <= whole->n_tokens && !f->specs[i].score; k += 5) {
            struct ds_answer rest, *answer = &f->serving.answers[i];
            struct ds_spec spec = f->specs[i];

            memcpy(spec.tokens + spec.n_prompt, whole->tokens, k * sizeof *whole->tokens);
            spec.n_delivered = k;
            *answer = (struct ds_answer){ 0 };
            ds_serving_alone(&f->serving, &spec, &rest);
            add_drafting(f, drafter, &spec, i);
            ds_serving_run(&f->serving);
            ds_assert_same_answer(answer, &rest);
            accepted += answer->n_accepted;
        }
    }
    assert_true(accepted > 100);
    end_drafting(f, drafter);
    ds_serving_deinit(&draft);
}

/* One greedy answer of 100 tokens. */
static const struct ds_answer *draft_one(struct fixture *f, struct ds_drafter *drafter, double pass)
{
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = f->specs[5];
    struct ds_answer expected;

    spec.max_tokens = 100;
    spec.ignore_eos = true;
    spec.n_stops = 0;
    ds_serving_alone(&f->serving, &spec, &expected);
    start_drafting(f, drafter, &options, 1e6, pass);
    add_drafting(f, drafter, &spec, 0);
    ds_serving_run(&f->serving);
    ds_assert_same_answer(&f->serving.answers[0], &expected);
    return &f->serving.answers[0];
}

static void passes_are_made_while_they_are_worth_it(void **state)
{
    struct fixture *f = *state;
    const struct ds_answer *answer;
    struct ds_drafter *drafter;
    struct ds_serving other;

    drafter = new_drafter(&f->serving, 200); /* drafts for itself */
    answer = draft_one(f, drafter, 1e4);
    printf("note: for itself: %u of %u guesses right, %u outputs\n", answer->n_accepted,
           answer->n_drafted, answer->n_outputs);
    assert_true(answer->n_accepted > 70 && answer->n_drafted <= answer->n_accepted + 2);
    assert_true(answer->n_outputs < 30);
    end_drafting(f, drafter);

    drafter = new_drafter(&f->serving, 200); /* a pass as long as two steps */
    answer = draft_one(f, drafter, 2e6);
    assert_true(answer->n_drafted <= 12 && drafter->n_passes <= 12);
    end_drafting(f, drafter);

    open_draft_model(f, 2, &other); /* never right */
    drafter = new_drafter(&other, 200);
    answer = draft_one(f, drafter, 2e5);
    printf("note: by a stranger: %u of %u guesses right, %llu passes\n", answer->n_accepted,
           answer->n_drafted, (unsigned long long) drafter->n_passes);
    assert_true(answer->n_drafted < 30 && drafter->n_passes < 60);
    end_drafting(f, drafter);

    drafter = new_drafter(&other, 1); /* no room: no guesses, and the same answer */
    answer = draft_one(f, drafter, 1e3);
    assert_int_equal(answer->n_drafted, 0);
    assert_int_equal(drafter->n_passes, 0);
    end_drafting(f, drafter);
    ds_serving_deinit(&other);
}

static void who_loses_the_draft_model_goes_on_without(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_drafter *drafter = new_drafter(&f->serving, 200);
    unsigned drafted = 0;

    options.sequences_max = 8; /* some run, some wait */
    start_drafting(f, drafter, &options, 1e6, 1e3);
    for (unsigned i = 0; i < N_JOBS; i++)
        add_drafting(f, drafter, &f->specs[i], i);
    for (unsigned i = 0; i < 200 && drafter->n_passes < 6; i++)
        (void) ds_serving_step(&f->serving);
    assert_true(ds_kv_cache_n_free(drafter->cache) < drafter->options.n_blocks);
    ds_scheduler_forget_drafter(f->serving.scheduler, drafter);
    f->serving.scheduler->options.clock = NULL;
    assert_int_equal(ds_kv_cache_n_free(drafter->cache), drafter->options.n_blocks);
    (void) ds_drafter_free(drafter);
    ds_serving_run(&f->serving);
    for (unsigned i = 0; i < N_JOBS; i++) {
        ds_assert_same_answer(&f->serving.answers[i], &f->expected[i]);
        drafted += f->serving.answers[i].n_drafted;
    }
    assert_true(drafted > 0);
}

static void who_says_no_gets_none(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_job job = ds_spec_job(&f->specs[5], 0);
    struct ds_error error;

    options.clock = fake_clock;
    options.draft = DS_DRAFT_NGRAM;
    row_cost_nsec = 0.0;
    ds_serving_start(&f->serving, &options, 1);
    watched = f->serving.scheduler;
    job.draft = DS_DRAFT_OFF;
    assert_int_equal(ds_scheduler_add(f->serving.scheduler, &job, &error), 0);
    ds_serving_run(&f->serving);
    watched = NULL;
    ds_assert_same_answer(&f->serving.answers[0], &f->expected[5]);
    assert_int_equal(f->serving.answers[0].n_drafted, 0);
}

static void a_user_pays_for_tokens_not_for_guesses(void **state)
{
    struct fixture *f = *state;
    uint64_t paid[2];

    for (unsigned i = 0; i < 2; i++) {
        struct ds_scheduler_options options = with(f, i ? guess : NULL);
        const struct ds_users *users;
        uint64_t counter = 0;

        f->truth = 5;
        ds_serving_start(&f->serving, &options, N_JOBS);
        ds_serving_add(&f->serving, &f->specs[5], 5);
        users = &f->serving.scheduler->users;
        while (f->serving.answers[5].finish == 0) {
            (void) ds_serving_step(&f->serving);
            counter = users->n > 0 ? users->list[0]->counter : counter;
        }
        paid[i] = counter;
    }
    assert_int_equal(paid[0], paid[1]);
    assert_int_equal(paid[0], f->specs[5].n_prompt * DS_USER_PROMPT_WEIGHT +
                                  f->expected[5].n_tokens * DS_USER_ANSWER_WEIGHT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_job_alone_yields_the_same_bytes),
        cmocka_unit_test(company_budgets_cancels_and_cache_sizes_do_not_show),
        cmocka_unit_test(an_answer_goes_on_from_wherever_it_was_cut),
        cmocka_unit_test(what_guesses_computed_can_be_shared_as_a_prefix),
        cmocka_unit_test(the_index_finds_the_last_occurrence_of_the_longest),
        cmocka_unit_test(the_index_stays_small),
        cmocka_unit_test(guesses_are_made_while_rows_cost_little),
        cmocka_unit_test(the_module_has_read_all_there_is_before_it_guesses),
        cmocka_unit_test(guesses_of_the_module_change_no_byte),
        cmocka_unit_test(a_model_without_the_module_says_so),
        cmocka_unit_test(guesses_of_a_draft_model_change_no_byte),
        cmocka_unit_test(an_answer_with_a_draft_model_goes_on_where_it_was_cut),
        cmocka_unit_test(passes_are_made_while_they_are_worth_it),
        cmocka_unit_test(who_loses_the_draft_model_goes_on_without),
        cmocka_unit_test(who_says_no_gets_none),
        cmocka_unit_test(a_user_pays_for_tokens_not_for_guesses),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
