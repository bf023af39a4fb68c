/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the scheduler knows what a step costs, and keeps its promise to those who wait for tokens.
 * Method: samples of machines with known costs, noise and liars among them, into the model; then a
 * scheduler on a backend whose time is a function of rows and positions, with a prompt arriving
 * among running answers: the gaps between their tokens in that time.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/pace.h"
#include "engine/serve/philox.h"
#include "engine/serve/scheduler_state.h"
#include "tests/lib/serving.h"

static void nothing_is_known_at_first(void **state)
{
    struct ds_pace pace = { 0 };

    (void) state;
    assert_true(ds_pace_decode(&pace, 3) == 0.0);
    assert_int_equal(ds_pace_rows(&pace, 100.0, 5, 50), UINT32_MAX);
    assert_int_equal(ds_pace_widest(&pace), 0);
}

static void what_was_measured_is_told_and_what_was_not_lies_between(void **state)
{
    struct ds_pace pace = { 0 };

    (void) state;
    ds_pace_learn(&pace, 2, 0, 0.0, 100.0);
    assert_true(ds_pace_decode(&pace, 1) == 100.0); /* no less is known */
    assert_true(ds_pace_decode(&pace, 40) == 100.0);
    ds_pace_learn(&pace, 6, 0, 0.0, 180.0);
    assert_true(fabs(ds_pace_decode(&pace, 4) - 140.0) < 1e-9);
    ds_pace_learn(&pace, 0, 64, 2016.0, 640.0); /* ten a row */
    assert_true(fabs(ds_pace_decode(&pace, 10) - 220.0) < 20.0);
    assert_int_equal(ds_pace_widest(&pace), 6);
    for (unsigned i = 0; i < 1100; i++) /* the world changes; 6 has not been seen for long */
        ds_pace_learn(&pace, 2, 0, 0.0, 50.0);
    assert_true(fabs(ds_pace_decode(&pace, 2) - 50.0) < 1.0);
    assert_int_equal(ds_pace_widest(&pace), 2);
}

static void one_long_step_is_not_believed(void **state)
{
    struct ds_pace pace = { 0 };

    (void) state;
    for (unsigned i = 0; i < 20; i++)
        ds_pace_learn(&pace, 1, 0, 0.0, 100.0);
    ds_pace_learn(&pace, 1, 0, 0.0, 1e6);
    assert_true(ds_pace_decode(&pace, 1) < 130.0);
}

static void rows_and_positions_are_told_apart(void **state)
{
    const double row = 30.0, context = 0.02;
    struct ds_pace pace = { 0 };
    uint32_t position = 0;

    (void) state;
    ds_pace_learn(&pace, 7, 0, 0.0, 900.0);
    for (unsigned i = 0; i < 150; i++) { /* one prompt in pieces, 7 answers beside it */
        uint32_t n = 20 + i % 5;
        double positions = (double) n * position + 0.5 * n * (n - 1.0);
        double noise = 0.95 + 0.1 * ds_philox_uniform(3, i);

        ds_pace_learn(&pace, 7, n, positions, 900.0 + noise * (n * row + positions * context));
        position += n;
    }
    assert_true(fabs(pace.row_usec / row - 1.0) < 0.3);
    assert_true(fabs(pace.context_usec / context - 1.0) < 0.3);
    for (uint32_t at = 0; at <= 3000; at += 1000) {
        uint32_t n = ds_pace_rows(&pace, 900.0, at, 512);

        assert_true(n > 0 && n < 512);
        assert_true(ds_pace_prompt(&pace, n, at) <= 900.0 * 1.000001);
        assert_true(ds_pace_prompt(&pace, n + 1, at) > 900.0);
    }
    assert_int_equal(ds_pace_rows(&pace, 1e9, 0, 512), 512);
    assert_int_equal(ds_pace_rows(&pace, 0.0, 0, 512), 0);
}

/* --- a backend whose time is counted, not taken --- */

enum { STREAMS = 7, LONG_PROMPT = 2000 };

static struct machine {
    struct ds_backend *backend;
    int (*embed)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_weight *table,
                 const uint32_t *tokens, uint32_t n);
    uint64_t nsec;
    const struct ds_scheduler *scheduler;
    double base_usec, row_usec, context_usec;
    double plain_usec; /* what the last step would have taken without the prompt */
} machine;

static uint64_t machine_clock(void)
{
    return machine.nsec;
}

/* Once a forward pass. */
static int slow_embed(struct ds_backend *backend, struct ds_buffer *out,
                      const struct ds_weight *table, const uint32_t *tokens, uint32_t n)
{
    const struct ds_scheduler *s = machine.scheduler;
    double usec = machine.base_usec;

    machine.plain_usec = usec;
    for (uint32_t i = 0; s && i < n; i++) {
        double row = machine.row_usec + machine.context_usec * s->positions[i];

        usec += row;
        machine.plain_usec += s->in_batch[s->sequences[i]]->job.id < STREAMS ? row : 0.0;
    }
    machine.nsec += (uint64_t) (usec * 1e3);
    return machine.embed(backend, out, table, tokens, n);
}

struct stream_times {
    uint64_t last[STREAMS + 1];
    double worst_usec, worst; /* gap of a stream while the prompt was there; and as a ratio to what
                                 it would have been at the same place without */
    double plain_usec;        /* the longest before */
    bool prompt_there;
};

static void watch(void *arg, const struct ds_output *output)
{
    struct stream_times *times = arg;
    uint64_t *last = &times->last[output->id];
    double gap = (double) (machine.nsec - *last) / 1e3;

    if (output->id == STREAMS) {
        times->prompt_there = false;
    } else if (*last) {
        double *longest = times->prompt_there ? &times->worst_usec : &times->plain_usec;

        *longest = fmax(*longest, gap);
        if (times->prompt_there)
            times->worst = fmax(times->worst, gap / machine.plain_usec);
    }
    *last = machine.nsec;
}

static struct ds_job job_of(uint64_t id, uint32_t n_prompt, uint32_t max_tokens)
{
    struct ds_job job = { .id = id,
                          .n_prompt = n_prompt,
                          .max_tokens = max_tokens,
                          .ignore_eos = true,
                          .submitted_nsec = 1,
                          .sampling = {
                              .top_p = 1.0f, .typical_p = 1.0f, .repeat_penalty = 1.0f } };

    job.tokens = calloc(n_prompt, sizeof *job.tokens);
    assert_non_null(job.tokens);
    for (uint32_t i = 0; i < n_prompt; i++)
        job.tokens[i] = (uint32_t) (ds_philox_uniform(id, i) * 300);
    return job;
}

/* Seven answers run; a long prompt arrives. Returns how many steps it took. */
static unsigned run_scene(struct ds_serving *serving, uint32_t step_usec_max,
                          struct stream_times *times)
{
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_error error = { "" };
    struct ds_job job;
    unsigned n_steps = 0;

    options.context = LONG_PROMPT + 10;
    options.n_blocks = 200;
    options.step_usec_max = step_usec_max;
    options.clock = machine_clock;
    ds_serving_start(serving, &options, 1);
    machine.scheduler = serving->scheduler;
    *times = (struct stream_times){ 0 };
    for (unsigned i = 0; i < STREAMS; i++) {
        job = job_of(i, 8 + 3 * i, 1900);
        assert_int_equal(ds_scheduler_add(serving->scheduler, &job, &error), 0);
    }
    for (unsigned i = 0; i < 40; i++) {
        if (i == 20)
            times->plain_usec = 0.0; /* all of them are decoding */
        assert_int_equal(ds_scheduler_step(serving->scheduler, watch, times), 1);
    }
    job = job_of(STREAMS, LONG_PROMPT, 1);
    assert_int_equal(ds_scheduler_add(serving->scheduler, &job, &error), 0);
    for (times->prompt_there = true; times->prompt_there; n_steps++)
        assert_int_equal(ds_scheduler_step(serving->scheduler, watch, times), 1);
    machine.scheduler = NULL;
    return n_steps;
}

static void running_answers_wait_no_longer_than_promised(void **state)
{
    static const struct {
        double base, row, context;
    } machines[] = {
        { 1000.0, 20.0, 0.0 },  /* reads its weights, then rows are cheap */
        { 0.0, 500.0, 0.05 },   /* computes */
        { 300.0, 30.0, 0.06 },  /* a row at 2000 costs five times one at 0 */
        { 40000.0, 900.0, 1.0 } /* large and slow */
    };
    struct ds_cpu_options cpu = { .n_threads = 2, .spin_usec = 50 };
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);
    struct ds_serving serving;

    (void) state;
    model.context = LONG_PROMPT + 64;
    assert_int_equal(ds_backend_cpu(&machine.backend, &cpu), 0);
    machine.embed = machine.backend->embed;
    machine.backend->embed = slow_embed;
    ds_serving_init(&serving, machine.backend, &model);
    for (unsigned i = 0; i < sizeof machines / sizeof machines[0]; i++) {
        struct stream_times times;
        unsigned n_steps;
        double explicit, full; /* full: a batch of 64 rows */

        machine.base_usec = machines[i].base;
        machine.row_usec = machines[i].row;
        machine.context_usec = machines[i].context;
        n_steps = run_scene(&serving, DS_STEP_TWICE, &times);
        printf("note: machine %u: worst gap %.2f of a plain step, %u steps\n", i, times.worst,
               n_steps);
        assert_true(times.worst <= 2.0 && times.worst > 1.3); /* and the time is used */

        explicit = 4.0 * times.plain_usec;
        (void) run_scene(&serving, (uint32_t) explicit, &times);
        full = machines[i].base + 64 * machines[i].row;
        assert_true(times.worst_usec <= explicit);
        assert_true(times.worst_usec > fmin(0.6 * explicit, 0.95 * full));
        assert_true(run_scene(&serving, DS_STEP_UNLIMITED, &times) <= 40); /* 57 rows a step */
        assert_true(run_scene(&serving, 1, &times) <=
                    LONG_PROMPT / 4 * 17 / 16 + 2); /* ends at last */
    }
    ds_serving_deinit(&serving);
    machine.backend->close(machine.backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_known_at_first),
        cmocka_unit_test(what_was_measured_is_told_and_what_was_not_lies_between),
        cmocka_unit_test(one_long_step_is_not_believed),
        cmocka_unit_test(rows_and_positions_are_told_apart),
        cmocka_unit_test(running_answers_wait_no_longer_than_promised),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
