/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: nothing that makes serving fast or fair shows in what a job yields.
 * Method: jobs of all kinds through the scheduler, with everything varied that must not matter
 * (company, order of arrival, cancels of others, chunk budgets, size of the cache, replays), each
 * compared byte for byte with a plain loop that runs it alone, token by token. Invariants are
 * asserted after every step. The CPU backend on a tiny quantised model; fairness, deadlines,
 * cancels, limits and bad parameters in scenes of their own.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/philox.h"
#include "engine/serve/scheduler_state.h"
#include "tests/lib/serving.h"

enum { N_JOBS = 16 };

struct fixture {
    struct ds_backend *backend;
    struct ds_serving serving;
    struct ds_spec specs[N_JOBS];
    struct ds_answer expected[N_JOBS];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct ds_cpu_options cpu = { .n_threads = 2, .spin_usec = 50 };
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);

    assert_int_equal(ds_backend_cpu(&f->backend, &cpu), 0);
    ds_serving_init(&f->serving, f->backend, &model);
    for (unsigned i = 0; i < N_JOBS; i++) {
        f->specs[i] = ds_spec_random(i + 1, f->serving.runner.n_vocab);
        ds_serving_alone(&f->serving, &f->specs[i], &f->expected[i]);
    }
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    ds_serving_deinit(&f->serving);
    f->backend->close(f->backend);
    free(f);
    return 0;
}

static struct ds_spec greedy(uint32_t n_prompt, uint32_t max_tokens, uint32_t uid)
{
    struct ds_spec spec = { .uid = uid,
                            .n_prompt = n_prompt,
                            .max_tokens = max_tokens,
                            .ignore_eos = true,
                            .sampling = {
                                .top_p = 1.0f, .typical_p = 1.0f, .repeat_penalty = 1.0f } };

    for (uint32_t i = 0; i < n_prompt; i++)
        spec.tokens[i] = (i * 29 + uid * 7 + 11) % 300;
    return spec;
}

static uint32_t below(uint64_t *draw, uint32_t n)
{
    return (uint32_t) (ds_philox_uniform(4711, (*draw)++) * n);
}

/* Sequences that ran before and wait again. */
static unsigned n_put_back(const struct ds_scheduler *s)
{
    unsigned n = 0;

    for (uint32_t i = 0; i < s->users.n; i++) {
        for (const struct ds_sequence *q = s->users.list[i]->oldest; q; q = q->newer)
            n += q->started_nsec != 0;
    }
    return n;
}

static void all_kinds_of_endings_are_among_the_jobs(void **state)
{
    struct fixture *f = *state;
    unsigned stops = 0, lengths = 0, strings = 0, scores = 0;

    for (unsigned i = 0; i < N_JOBS; i++) {
        scores += f->specs[i].score;
        strings += f->expected[i].stop[0] != '\0';
        stops += f->expected[i].finish == DS_FINISH_STOP;
        lengths += f->expected[i].finish == DS_FINISH_LENGTH;
    }
    printf("note: %u scores, %u stop strings, %u lengths, %u stops\n", scores, strings, lengths,
           stops);
    assert_true(scores > 0 && strings > 0 && lengths > 0 && stops > scores + strings);
}

static void sixteen_jobs_at_once_yield_what_each_yields_alone(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();

    ds_serving_start(&f->serving, &options, N_JOBS);
    for (unsigned i = 0; i < N_JOBS; i++)
        ds_serving_add(&f->serving, &f->specs[i], i);
    ds_serving_run(&f->serving);
    for (unsigned i = 0; i < N_JOBS; i++) {
        ds_assert_same_answer(&f->serving.answers[i], &f->expected[i]);
        assert_int_equal(f->serving.answers[i].n_prompt, f->specs[i].n_prompt);
        assert_int_equal(f->serving.answers[i].n_completion, f->expected[i].n_tokens);
    }
}

/* A cancelled job has yielded the beginning of its answer. */
static void expect_beginning(const struct ds_answer *answer, const struct ds_answer *expected)
{
    if (answer->finish != DS_FINISH_CANCELLED) {
        ds_assert_same_answer(answer, expected);
        return;
    }
    assert_true(answer->n_tokens < expected->n_tokens || answer->n_tokens == 0);
    assert_memory_equal(answer->tokens, expected->tokens,
                        answer->n_tokens * sizeof *answer->tokens);
}

static void arrivals_cancels_budgets_and_cache_sizes_do_not_show(void **state)
{
    struct fixture *f = *state;
    unsigned put_back = 0, cancelled = 0;
    uint64_t draw = 0;

    for (unsigned round = 0; round < 25; round++) {
        struct ds_scheduler_options options = ds_serving_options();
        unsigned added = 0;

        options.batch_tokens_max = 1 + below(&draw, 64);
        options.sequences_max = 1 + below(&draw, 16);
        options.outputs_max = below(&draw, 32);
        options.n_blocks = 8 + below(&draw, round % 2 ? 6 : 40);
        options.step_usec_max = below(&draw, 2) ? 1 + below(&draw, 2000) : DS_STEP_TWICE;
        ds_serving_start(&f->serving, &options, N_JOBS);
        do {
            if (added < N_JOBS && below(&draw, 2)) {
                ds_serving_add(&f->serving, &f->specs[added], added);
                added++;
            }
            if (below(&draw, 25) == 0) {
                ds_scheduler_cancel(f->serving.scheduler, below(&draw, N_JOBS));
                cancelled++;
            }
            put_back += n_put_back(f->serving.scheduler);
        } while (ds_serving_step(&f->serving) > 0 || added < N_JOBS);
        for (unsigned i = 0; i < N_JOBS; i++)
            expect_beginning(&f->serving.answers[i], &f->expected[i]);
        assert_int_equal(ds_kv_cache_n_free(f->serving.scheduler->cache), options.n_blocks);
    }
    printf("note: %u steps with a sequence put back, %u cancels\n", put_back, cancelled);
    assert_true(put_back > 20 && cancelled > 20); /* the scene was what it claims to be */
}

static void an_answer_goes_on_from_wherever_it_was_cut(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();

    ds_serving_start(&f->serving, &options, 64);
    for (unsigned i = 0; i < N_JOBS; i++) {
        const struct ds_answer *whole = &f->expected[i];

        if (f->specs[i].score)
            continue;
        for (uint32_t k = 1; k <= whole->n_tokens; k++) {
            struct ds_spec spec = f->specs[i];
            struct ds_answer rest, *answer = &f->serving.answers[k];

            memcpy(spec.tokens + spec.n_prompt, whole->tokens, k * sizeof *whole->tokens);
            spec.n_delivered = k;
            *answer = (struct ds_answer){ 0 };
            ds_serving_alone(&f->serving, &spec, &rest);
            ds_serving_add(&f->serving, &spec, k);
            if (k % 3 == 0) /* several of them at once */
                continue;
            ds_serving_run(&f->serving);
            ds_assert_same_answer(answer, &rest);
            /* and what the plain loop says goes together with the whole */
            assert_int_equal(answer->n_tokens, whole->n_tokens - k);
            assert_memory_equal(answer->tokens, whole->tokens + k,
                                answer->n_tokens * sizeof *answer->tokens);
            assert_int_equal(answer->finish, whole->finish);
            assert_string_equal(answer->stop, whole->stop);
            assert_true(answer->text_size <= whole->text_size);
            assert_string_equal(answer->text, whole->text + whole->text_size - answer->text_size);
            assert_int_equal(answer->n_completion, whole->n_tokens);
        }
        ds_serving_run(&f->serving);
    }
}

static void a_chat_is_taken_apart_and_goes_on_from_wherever_it_was_cut(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();

    ds_serving_start(&f->serving, &options, 64);
    for (unsigned i = 0; i < N_JOBS; i++) {
        const struct ds_answer *plain = &f->expected[i];
        struct ds_answer *whole = &f->serving.answers[0];
        struct ds_spec spec = f->specs[i];

        if (spec.score)
            continue;
        spec.chat = true;
        *whole = (struct ds_answer){ 0 };
        ds_serving_add(&f->serving, &spec, 0);
        ds_serving_run(&f->serving);
        ds_assert_same_answer(whole, plain); /* who does not ask for parts sees none */
        assert_non_null(strchr(whole->message, '|'));
        for (uint32_t k = 1; k <= whole->n_tokens; k += 3) {
            struct ds_answer *answer = &f->serving.answers[k];

            memcpy(spec.tokens + spec.n_prompt, whole->tokens, k * sizeof *whole->tokens);
            spec.n_delivered = k;
            *answer = (struct ds_answer){ 0 };
            ds_serving_add(&f->serving, &spec, k);
            ds_serving_run(&f->serving);
            assert_int_equal(answer->n_tokens, whole->n_tokens - k);
            assert_string_equal(answer->text, whole->text + whole->text_size - answer->text_size);
            assert_string_equal(answer->message, whole->message);
        }
    }
}

static void a_known_prefix_is_not_computed_again_but_only_for_its_user(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = greedy(100, 20, 1), other = spec;
    struct ds_answer expected;

    other.uid = 2;
    ds_serving_alone(&f->serving, &spec, &expected);
    ds_serving_start(&f->serving, &options, 4);
    ds_serving_add(&f->serving, &spec, 0);
    ds_serving_run(&f->serving);
    assert_int_equal(f->serving.answers[0].n_cached, 0);
    ds_serving_add(&f->serving, &spec, 1);
    ds_serving_add(&f->serving, &other, 2);
    ds_serving_run(&f->serving);
    assert_int_equal(f->serving.answers[1].n_cached, 96);
    assert_int_equal(f->serving.answers[2].n_cached, 0);
    for (unsigned i = 0; i < 3; i++)
        ds_assert_same_answer(&f->serving.answers[i], &expected);

    /* A conversation: the answer is part of the next prompt. */
    memcpy(spec.tokens + 100, expected.tokens, 20 * sizeof *spec.tokens);
    for (unsigned i = 120; i < 140; i++)
        spec.tokens[i] = i;
    spec.n_prompt = 140;
    ds_serving_add(&f->serving, &spec, 3);
    ds_serving_run(&f->serving);
    assert_int_equal(f->serving.answers[3].n_cached, 96); /* 119 positions were computed */
    ds_serving_alone(&f->serving, &spec, &expected);
    ds_assert_same_answer(&f->serving.answers[3], &expected);
}

static void what_equal_prompts_begin_with_is_computed_once(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec specs[6];
    struct ds_answer expected[6];

    for (unsigned i = 0; i < 6; i++) {
        specs[i] = greedy(200, 20, i == 5 ? 2 : 1); /* the last is another user's */
        memcpy(specs[i].tokens, specs[0].tokens, sizeof specs[i].tokens);
        specs[i].tokens[180 + i % 5] = 7; /* after 160 tokens, five blocks, they differ */
        specs[i].sampling.temperature = 1.0f;
        specs[i].sampling.seed = i;
        ds_serving_alone(&f->serving, &specs[i], &expected[i]);
    }
    for (unsigned batch = 512; batch > 8; batch /= 3) { /* in one batch and in many */
        options.batch_tokens_max = batch < 64 ? batch : 64;
        ds_serving_start(&f->serving, &options, 6);
        for (unsigned i = 0; i < 6; i++)
            ds_serving_add(&f->serving, &specs[i], i);
        for (unsigned i = 0; i < 4; i++)
            (void) ds_serving_step(&f->serving);
        if (batch == 56) /* put back and cancelled ones must not take shared blocks along */
            ds_scheduler_cancel(f->serving.scheduler, 0);
        ds_serving_run(&f->serving);
        for (unsigned i = 0; i < 6; i++) {
            if (f->serving.answers[i].finish != DS_FINISH_CANCELLED)
                ds_assert_same_answer(&f->serving.answers[i], &expected[i]);
            if (batch != 56) /* the oldest computes, the four others of its user share */
                assert_int_equal(f->serving.answers[i].n_cached, i == 0 || i == 5 ? 0 : 160);
        }
        assert_int_equal(ds_kv_cache_n_free(f->serving.scheduler->cache), options.n_blocks);
    }
}

static void a_score_is_the_sum_of_the_steps_however_it_is_cut(void **state)
{
    struct fixture *f = *state;
    struct ds_spec spec = greedy(150, 0, 1), one = greedy(1, 0, 1), company = greedy(90, 60, 1);
    struct ds_answer expected, expected_one;

    spec.score = one.score = true;
    spec.n_top = 4;
    ds_serving_alone(&f->serving, &spec, &expected);
    ds_serving_alone(&f->serving, &one, &expected_one);
    assert_true(isfinite(expected.nll) && expected.nll > 100.0);
    assert_true(expected_one.nll == 0.0);
    for (unsigned outputs = 1; outputs <= 64; outputs *= 4) {
        struct ds_scheduler_options options = ds_serving_options();

        options.outputs_max = outputs;
        options.sequences_max = outputs < 4 ? 1 : 4;
        options.n_blocks = 8; /* 5 for the score, 3 growing to 5 for each of the others */
        ds_serving_start(&f->serving, &options, 5);
        for (unsigned i = 0; i < 5; i++)
            ds_serving_add(&f->serving, i == 2 ? &spec : i == 3 ? &one : &company, i);
        ds_serving_run(&f->serving);
        ds_assert_same_answer(&f->serving.answers[2], &expected);
        ds_assert_same_answer(&f->serving.answers[3], &expected_one);
    }
}

static void a_second_user_does_not_wait_for_all_of_the_first(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec many = greedy(60, 40, 1), few = greedy(60, 40, 2);
    unsigned served = 0;

    options.sequences_max = 4;
    options.batch_tokens_max = 16;
    ds_serving_start(&f->serving, &options, 22);
    for (unsigned i = 0; i < 20; i++) {
        many.tokens[0] = i;
        ds_serving_add(&f->serving, &many, i);
    }
    for (unsigned i = 0; i < 30; i++)
        (void) ds_serving_step(&f->serving);
    ds_serving_add(&f->serving, &few, 20);
    few.tokens[0] = 3;
    ds_serving_add(&f->serving, &few, 21);
    while (f->serving.answers[21].finish == 0)
        assert_int_equal(ds_serving_step(&f->serving), 1);
    for (unsigned i = 0; i < 20; i++)
        served += f->serving.answers[i].finish != 0;
    assert_true(served <= 8); /* the second user got half of the machine at least */
    ds_serving_run(&f->serving);
    assert_int_equal(f->serving.answers[19].finish, DS_FINISH_LENGTH);
}

static void a_user_with_nothing_running_gets_a_place_of_who_has_several(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec greedy_one = greedy(40, 150, 1), other = greedy(30, 5, 2);
    struct ds_answer expected[4];

    options.sequences_max = 3;
    ds_serving_start(&f->serving, &options, 4);
    for (unsigned i = 0; i < 3; i++) {
        greedy_one.tokens[0] = i;
        ds_serving_alone(&f->serving, &greedy_one, &expected[i]);
        ds_serving_add(&f->serving, &greedy_one, i);
    }
    for (unsigned i = 0; i < 20; i++)
        (void) ds_serving_step(&f->serving);
    ds_serving_alone(&f->serving, &other, &expected[3]);
    ds_serving_add(&f->serving, &other, 3);
    for (unsigned i = 0; i < 5; i++) /* all five tokens at once, though every place was taken */
        (void) ds_serving_step(&f->serving);
    assert_int_equal(f->serving.answers[3].finish, DS_FINISH_LENGTH);
    assert_int_equal(n_put_back(f->serving.scheduler), 1);
    ds_serving_run(&f->serving);
    for (unsigned i = 0; i < 4; i++)
        ds_assert_same_answer(&f->serving.answers[i], &expected[i]);
}

static void the_youngest_makes_room_when_the_cache_is_full_and_loses_nothing(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = greedy(40, 150, 1);
    struct ds_answer expected[3];
    unsigned put_back = 0;

    options.n_blocks = 9; /* each starts with 2 and grows to 6 */
    ds_serving_start(&f->serving, &options, 3);
    for (unsigned i = 0; i < 3; i++) {
        spec.tokens[0] = i;
        ds_serving_alone(&f->serving, &spec, &expected[i]);
        ds_serving_add(&f->serving, &spec, i);
    }
    while (ds_serving_step(&f->serving) > 0)
        put_back += n_put_back(f->serving.scheduler);
    assert_true(put_back > 0);
    for (unsigned i = 0; i < 3; i++)
        ds_assert_same_answer(&f->serving.answers[i], &expected[i]);
}

static void users_with_equal_demands_get_equal_service(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    uint64_t a, b;

    options.sequences_max = 4;
    options.batch_tokens_max = 24;
    ds_serving_start(&f->serving, &options, 40);
    for (unsigned i = 0; i < 40; i++) { /* one user's jobs are all there first */
        struct ds_spec spec = greedy(i < 20 ? 80 : 20, i < 20 ? 8 : 38, i < 20 ? 1 : 2);

        spec.tokens[0] = i;
        ds_serving_add(&f->serving, &spec, i);
    }
    for (unsigned i = 0; i < 150; i++) {
        assert_int_equal(ds_serving_step(&f->serving), 1);
        a = f->serving.scheduler->users.list[0]->counter;
        b = f->serving.scheduler->users.list[1]->counter;
        /* Bounded by what one admission or one batch can add (VTC, theorem 4.3, with slack for
         * sequences already running). */
        assert_true((a > b ? a - b : b - a) <= 4 * (80 + 2 * 40));
    }
    ds_serving_run(&f->serving);
}

static void deadlines_and_cancels_end_a_job_at_the_next_step(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec late = greedy(40, 100, 1), plain = greedy(50, 100, 1);
    struct ds_answer expected;

    ds_serving_alone(&f->serving, &plain, &expected);
    options.sequences_max = 2;
    ds_serving_start(&f->serving, &options, 5);
    late.deadline_nsec = 1; /* long ago: never starts */
    ds_serving_add(&f->serving, &late, 0);
    late.deadline_nsec = ds_now_nsec() + 3600ull * 1000000000ull;
    ds_serving_add(&f->serving, &late, 1);
    ds_serving_add(&f->serving, &plain, 2);
    ds_serving_add(&f->serving, &plain, 3); /* waits for a place */
    ds_serving_add(&f->serving, &plain, 4); /* too */
    for (unsigned i = 0; i < 5; i++)
        (void) ds_serving_step(&f->serving);
    assert_int_equal(f->serving.answers[0].finish, DS_FINISH_DEADLINE);
    assert_int_equal(f->serving.answers[0].n_tokens, 0);
    assert_true(f->serving.answers[1].n_tokens > 0 && f->serving.answers[1].finish == 0);

    ds_scheduler_cancel(f->serving.scheduler, 2);
    ds_scheduler_cancel(f->serving.scheduler, 3);
    ds_scheduler_cancel(f->serving.scheduler, 77); /* nobody: no error */
    assert_int_equal(f->serving.answers[2].finish, 0);
    f->serving.scheduler->running[0]->job.deadline_nsec = ds_now_nsec(); /* it has come */
    (void) ds_serving_step(&f->serving);
    assert_int_equal(f->serving.answers[1].finish, DS_FINISH_DEADLINE);
    assert_int_equal(f->serving.answers[2].finish, DS_FINISH_CANCELLED);
    assert_true(f->serving.answers[2].n_tokens > 0);
    assert_int_equal(f->serving.answers[3].finish, DS_FINISH_CANCELLED);
    ds_serving_run(&f->serving);
    ds_assert_same_answer(&f->serving.answers[4], &expected);
    assert_true(f->serving.answers[4].queue_ms > 0.0);
    assert_true(f->serving.answers[4].ttft_ms >= f->serving.answers[4].prefill_ms);
    assert_true(f->serving.answers[4].decode_ms > 0.0);
}

static void a_stop_string_ends_the_text_before_it(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = greedy(30, 60, 1);
    struct ds_answer whole;
    unsigned n_checked = 0;

    ds_serving_alone(&f->serving, &spec, &whole);
    ds_serving_start(&f->serving, &options, 1);
    for (size_t at = 0; at + 3 < whole.text_size; at++) {
        struct ds_answer *answer = &f->serving.answers[0];
        size_t first;

        if ((whole.text[at] | whole.text[at + 1] | whole.text[at + 2]) & 0x80)
            continue; /* may be a U+FFFD, which stands for other bytes */
        spec.n_stops = 1;
        memcpy(spec.stops[0], whole.text + at, 3);
        spec.stops[0][3] = '\0';
        first = (size_t) (strstr(whole.text, spec.stops[0]) - whole.text);
        *answer = (struct ds_answer){ 0 };
        ds_serving_add(&f->serving, &spec, 0);
        ds_serving_run(&f->serving);
        assert_int_equal(answer->finish, DS_FINISH_STOP);
        assert_string_equal(answer->stop, spec.stops[0]);
        assert_int_equal(answer->text_size, first);
        assert_memory_equal(answer->text, whole.text, first);
        n_checked++;
    }
    assert_true(n_checked > 5);
}

static void an_answer_ends_where_the_context_or_the_cache_does(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = greedy(200, 0, 1);
    struct ds_answer expected;

    ds_serving_alone(&f->serving, &spec, &expected);
    assert_int_equal(expected.n_tokens, 56);
    ds_serving_start(&f->serving, &options, 2);
    ds_serving_add(&f->serving, &spec, 0);
    ds_serving_run(&f->serving);
    ds_assert_same_answer(&f->serving.answers[0], &expected);

    options.n_blocks = 7; /* less than the context: 224 positions */
    ds_serving_start(&f->serving, &options, 2);
    ds_serving_add(&f->serving, &spec, 0);
    ds_serving_add(&f->serving, &spec, 1);
    ds_serving_run(&f->serving);
    assert_int_equal(f->serving.answers[0].finish, DS_FINISH_LENGTH);
    assert_int_equal(f->serving.answers[0].n_tokens, 24);
    assert_memory_equal(f->serving.answers[0].tokens, expected.tokens, 24 * sizeof(uint32_t));
    assert_memory_equal(f->serving.answers[1].tokens, expected.tokens, 24 * sizeof(uint32_t));
}

static void expect_refusal(struct ds_serving *serving, const struct ds_spec *spec, int code,
                           const char *part)
{
    struct ds_job job = ds_spec_job(spec, 0);
    struct ds_error error = { "" };

    assert_int_equal(ds_scheduler_add(serving->scheduler, &job, &error), code);
    assert_non_null(strstr(error.text, part));
    assert_null(job.tokens);
    assert_true(ds_scheduler_idle(serving->scheduler));
}

static void bad_jobs_are_refused_with_a_line_and_disturb_nothing(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec;

    ds_serving_start(&f->serving, &options, 1);
    spec = greedy(0, 10, 1);
    expect_refusal(&f->serving, &spec, -EINVAL, "empty");
    spec = greedy(256, 10, 1);
    expect_refusal(&f->serving, &spec, -EMSGSIZE, "256 tokens");
    spec = greedy(10, 10, 1);
    spec.tokens[4] = 320;
    expect_refusal(&f->serving, &spec, -EINVAL, "320");
    spec = greedy(10, 10, 1);
    spec.sampling.top_p = 2.0f;
    expect_refusal(&f->serving, &spec, -EINVAL, "top_p");
    spec = greedy(10, 10, 1);
    spec.n_top = 21;
    expect_refusal(&f->serving, &spec, -EINVAL, "21");
    spec = greedy(10, 10, 1);
    spec.n_stops = 1; /* an empty one */
    expect_refusal(&f->serving, &spec, -EINVAL, "stop string");
    spec = greedy(10, 10, 1);
    spec.n_delivered = 11;
    expect_refusal(&f->serving, &spec, -EINVAL, "max_tokens");
    spec = greedy(250, 0, 1);
    spec.n_delivered = 6; /* exactly full: ends at once */
    ds_serving_add(&f->serving, &spec, 0);
    ds_serving_run(&f->serving);
    assert_int_equal(f->serving.answers[0].finish, DS_FINISH_LENGTH);
    assert_int_equal(f->serving.answers[0].n_tokens, 0);
    spec = greedy(251, 0, 1);
    spec.tokens[0] = 1;
    spec.n_delivered = 5;
    spec.score = true;
    expect_refusal(&f->serving, &spec, -EMSGSIZE, "delivered");
}

static void jobs_left_behind_are_freed_with_the_scheduler(void **state)
{
    struct fixture *f = *state;
    struct ds_scheduler_options options = ds_serving_options();

    options.sequences_max = 4;
    ds_serving_start(&f->serving, &options, N_JOBS);
    for (unsigned i = 0; i < N_JOBS; i++)
        ds_serving_add(&f->serving, &f->specs[i], i);
    (void) ds_serving_step(&f->serving);
    f->serving.scheduler = ds_scheduler_free(f->serving.scheduler); /* ASan sees what is left */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_kinds_of_endings_are_among_the_jobs),
        cmocka_unit_test(sixteen_jobs_at_once_yield_what_each_yields_alone),
        cmocka_unit_test(arrivals_cancels_budgets_and_cache_sizes_do_not_show),
        cmocka_unit_test(an_answer_goes_on_from_wherever_it_was_cut),
        cmocka_unit_test(a_chat_is_taken_apart_and_goes_on_from_wherever_it_was_cut),
        cmocka_unit_test(a_known_prefix_is_not_computed_again_but_only_for_its_user),
        cmocka_unit_test(what_equal_prompts_begin_with_is_computed_once),
        cmocka_unit_test(a_score_is_the_sum_of_the_steps_however_it_is_cut),
        cmocka_unit_test(a_second_user_does_not_wait_for_all_of_the_first),
        cmocka_unit_test(a_user_with_nothing_running_gets_a_place_of_who_has_several),
        cmocka_unit_test(the_youngest_makes_room_when_the_cache_is_full_and_loses_nothing),
        cmocka_unit_test(users_with_equal_demands_get_equal_service),
        cmocka_unit_test(deadlines_and_cancels_end_a_job_at_the_next_step),
        cmocka_unit_test(a_stop_string_ends_the_text_before_it),
        cmocka_unit_test(an_answer_ends_where_the_context_or_the_cache_does),
        cmocka_unit_test(bad_jobs_are_refused_with_a_line_and_disturb_nothing),
        cmocka_unit_test(jobs_left_behind_are_freed_with_the_scheduler),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
