/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a dead, hung or lying engine costs a pause, never a token; a request or model that kills
 * engines is convicted without taking others along; a lost connection or a killed dsd goes on
 * where it was.
 * Method: the fake engine's tokens are a function of (prompt, seed, position), and it refuses to
 * resume with wrong ones; so each disturbed stream is compared with the undisturbed one.
 */
#include "proto/base.h"
#include "tests/lib/dsd_process.h"

#include <poll.h>
#include <signal.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define STREAMS 8
#define TOKENS  60

static const char *const models[] = { "alpha", "ok", "crashy", "crash", NULL };

struct fixture {
    struct dsd_process dsd;
    struct raw_client client;
};

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    dsd_start(&f->dsd, "auto", "[engine]\nhang_sec = 1\nload_sec = 1\n", models);
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;

    raw_close(&f->client, true);
    assert_int_equal(dsd_end(&f->dsd, SIGTERM), 0);
    dsd_remove(&f->dsd);
    free(f);
    return 0;
}

static void start_streams(struct fixture *f, struct raw_answer **answers, const char *prompt)
{
    for (unsigned i = 0; i < STREAMS; i++)
        answers[i] = raw_answer_new(raw_generate(&f->client, "alpha", prompt, TOKENS, i));
}

static void free_streams(struct raw_answer **answers, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        answers[i] = raw_answer_free(answers[i]);
}

static void expect_same(const struct raw_answer *got, const struct raw_answer *wanted)
{
    Ds__Reply *reply = raw_reply(got);

    assert_int_equal(reply->generate->reason, DS__REASON__REASON_LENGTH);
    assert_int_equal(reply->generate->usage->completion_tokens, wanted->n_ids);
    ds_message_free(reply);
    assert_int_equal(got->n_ids, wanted->n_ids);
    assert_memory_equal(got->ids, wanted->ids, wanted->n_ids * sizeof *wanted->ids);
    assert_string_equal(got->text, wanted->text);
    assert_false(got->wrong_seq);
}

static void kill_engine(struct fixture *f)
{
    pid_t pid = dsd_engine_pid(&f->dsd);

    if (pid > 0)
        (void) kill(pid, SIGKILL);
}

static void killed_engines_cost_no_token(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *calm[STREAMS], *shaken[STREAMS];
    bool done = false;
    unsigned kills = 0;

    srand(7);
    start_streams(f, calm, "slow=2");
    assert_true(raw_wait(&f->client, calm, STREAMS, 20000));
    for (int round = 0; round < 3; round++) {
        start_streams(f, shaken, "slow=2");
        done = false;
        for (int i = 0; i < 400 && !done; i++) {
            done = raw_wait(&f->client, shaken, STREAMS, 10 + rand() % 60);
            if (!done && i < 6) {
                kill_engine(f);
                kills++;
            }
        }
        assert_true(done);
        for (unsigned i = 0; i < STREAMS; i++)
            expect_same(shaken[i], calm[i]);
        free_streams(shaken, STREAMS);
    }
    assert_true(kills >= 10);
    free_streams(calm, STREAMS);
}

/* One request kills the engine wherever it runs; seven others run beside it. */
static void convict(struct fixture *f, const char *crime, Ds__Error__Code code)
{
    struct raw_answer *calm[STREAMS], *shaken[STREAMS + 1];
    Ds__Error *error;

    start_streams(f, calm, "slow=1");
    assert_true(raw_wait(&f->client, calm, STREAMS, 20000));
    start_streams(f, shaken, "slow=1");
    shaken[STREAMS] = raw_answer_new(raw_generate(&f->client, "alpha", crime, TOKENS, 1));
    assert_true(raw_wait(&f->client, shaken, STREAMS + 1, 30000));
    error = raw_error(shaken[STREAMS]);
    assert_int_equal(error->code, code);
    ds_message_free(error);
    for (unsigned i = 0; i < STREAMS; i++)
        expect_same(shaken[i], calm[i]);
    free_streams(calm, STREAMS);
    free_streams(shaken, STREAMS + 1);
}

static void a_request_that_crashes_engines_is_given_up_alone(void **state)
{
    convict(*state, "slow=1 crash@0", DS__ERROR__CODE__INTERNAL);
    convict(*state, "slow=1 crash@9", DS__ERROR__CODE__INTERNAL);
}

static void a_lie_costs_the_engine_its_life(void **state)
{
    convict(*state, "slow=1 lie@4", DS__ERROR__CODE__INTERNAL);
}

static void a_hung_engine_is_replaced(void **state)
{
    convict(*state, "slow=1 hang@6", DS__ERROR__CODE__INTERNAL);
}

static void ids_nobody_asked_for_are_ignored(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answer =
        raw_answer_new(raw_generate(&f->client, "alpha", "wild@1 wild@5", 10, 1));

    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    assert_int_equal(answer->n_ids, 10);
    (void) raw_answer_free(answer);
}

static void a_model_that_crashes_engines_is_given_up(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *bad = raw_answer_new(raw_generate(&f->client, "crashy", "x", 4, 1));
    struct raw_answer *good = raw_answer_new(raw_generate(&f->client, "alpha", "slow=2", 200, 1));
    struct raw_answer *both[] = { bad, good };
    Ds__Error *error;

    assert_true(raw_wait(&f->client, both, 2, 20000));
    error = raw_error(bad);
    assert_int_equal(error->code, DS__ERROR__CODE__BAD_MODEL);
    ds_message_free(error);
    assert_int_equal(good->n_ids, 200);
    (void) raw_answer_free(bad);
    (void) raw_answer_free(good);
}

static struct raw_answer *show(struct fixture *f, const char *model)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__ShowRequest message = DS__SHOW_REQUEST__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;

    reference.name = (char *) model;
    message.model = &reference;
    request.op_case = DS__REQUEST__OP_SHOW;
    request.show = &message;
    return raw_call(&f->client, &request, 10000);
}

static void a_look_at_a_model_waits_for_the_next_engine(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answer;
    Ds__Error *error;

    for (int i = 0; i < 5; i++) {
        kill_engine(f);
        answer = show(f, "alpha");
        ds_message_free(raw_reply(answer));
        (void) raw_answer_free(answer);
    }
    answer = show(f, "crashy");
    error = raw_error(answer);
    assert_int_equal(error->code, DS__ERROR__CODE__INTERNAL);
    ds_message_free(error);
    (void) raw_answer_free(answer);
}

/* --- the client's side of a resumption --- */

static uint64_t submit_resumed(struct raw_client *client, const uint8_t key[16],
                               const struct raw_answer *had, uint32_t max_tokens,
                               const char *prompt)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;
    Ds__TokenIds delivered = DS__TOKEN_IDS__INIT;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    Ds__Input input = DS__INPUT__INIT;

    reference.name = (char *) "alpha";
    sampling.seed = 5;
    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text.data = (uint8_t *) prompt;
    input.text.len = strlen(prompt);
    generate.model = &reference;
    generate.input = &input;
    generate.sampling = &sampling;
    generate.max_tokens = max_tokens;
    if (had && had->n_ids) {
        delivered.ids = (uint32_t *) had->ids;
        delivered.n_ids = had->n_ids;
        generate.delivered = &delivered;
    }
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &generate;
    return raw_submit(client, &request, key, had ? had->n_ids : 0);
}

static void goes_on(struct raw_answer *answer, uint64_t req_id)
{
    answer->req_id = req_id;
    answer->next_seq = 0;
}

static struct raw_answer *undisturbed(struct fixture *f, uint32_t n, const char *prompt)
{
    struct raw_answer *answer = raw_answer_new(submit_resumed(&f->client, NULL, NULL, n, prompt));

    assert_true(raw_wait(&f->client, &answer, 1, 20000));
    return answer;
}

static void a_lost_connection_is_taken_up_again(void **state)
{
    static const uint8_t key[16] = { 1, 2, 3 };
    struct fixture *f = *state;
    struct raw_answer *calm = undisturbed(f, 40, "slow=5");
    struct raw_answer *answer = raw_answer_new(submit_resumed(&f->client, key, NULL, 40, "slow=5"));

    for (int life = 0; life < 4; life++) {
        uint32_t wanted = answer->n_ids + 5;

        while (answer->n_ids < wanted && !answer->done)
            (void) raw_wait(&f->client, &answer, 1, 5);
        raw_close(&f->client, false);
        assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
        goes_on(answer, submit_resumed(&f->client, key, answer, 40, "slow=5"));
    }
    raw_close(&f->client, false);
    (void) usleep(300000); /* it ends while nobody listens */
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    goes_on(answer, submit_resumed(&f->client, key, answer, 40, "slow=5"));
    assert_true(raw_wait(&f->client, &answer, 1, 200)); /* from the log: no engine was needed */
    expect_same(answer, calm);
    (void) raw_answer_free(answer);
    (void) raw_answer_free(calm);
}

static void an_answer_that_was_lost_in_the_ring_is_replayed(void **state)
{
    static const uint8_t key[16] = { 9, 9 };
    struct fixture *f = *state;
    struct raw_answer *calm = undisturbed(f, 20, "quick");
    struct raw_answer *answer = raw_answer_new(submit_resumed(&f->client, key, NULL, 20, "quick"));

    (void) usleep(200000); /* all of it is in the ring, unread */
    raw_close(&f->client, false);
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    goes_on(answer, submit_resumed(&f->client, key, answer, 20, "quick"));
    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    expect_same(answer, calm);
    (void) raw_answer_free(answer);
    (void) raw_answer_free(calm);
}

static void a_killed_dsd_goes_on_after_its_restart(void **state)
{
    static const uint8_t key[16] = { 4, 5, 6 };
    struct fixture *f = *state;
    struct raw_answer *calm = undisturbed(f, TOKENS, "slow=5");
    struct raw_answer *answer =
        raw_answer_new(submit_resumed(&f->client, key, NULL, TOKENS, "slow=5"));

    for (int life = 0; life < 3; life++) {
        uint32_t wanted = answer->n_ids + 7;

        while (answer->n_ids < wanted)
            (void) raw_wait(&f->client, &answer, 1, 5);
        (void) dsd_end(&f->dsd, SIGKILL);
        (void) raw_wait(&f->client, &answer, 1, 1); /* what is in the ring is still good */
        raw_close(&f->client, false);
        dsd_again(&f->dsd, "auto");
        assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
        goes_on(answer, submit_resumed(&f->client, key, answer, TOKENS, "slow=5"));
    }
    assert_true(raw_wait(&f->client, &answer, 1, 10000));
    expect_same(answer, calm);
    (void) raw_answer_free(answer);
    (void) raw_answer_free(calm);
}

static void a_stop_lets_running_requests_end(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answer = raw_answer_new(raw_generate(&f->client, "alpha", "slow=10", 50, 1)),
                      *late;
    Ds__Error *error;

    while (answer->n_ids < 3)
        (void) raw_wait(&f->client, &answer, 1, 10);
    assert_int_equal(kill(f->dsd.pid, SIGTERM), 0);
    while (ds_channel_state(f->client.channel) != DS_SERVER_DRAINING)
        (void) raw_wait(&f->client, &answer, 1, 5);
    late = raw_answer_new(raw_generate(&f->client, "alpha", "x", 5, 1));
    struct raw_answer *both[] = { answer, late };
    assert_true(raw_wait(&f->client, both, 2, 5000));
    assert_int_equal(answer->n_ids, 50);
    error = raw_error(late);
    assert_int_equal(error->code, DS__ERROR__CODE__DRAINING);
    ds_message_free(error);
    assert_int_equal(dsd_end(&f->dsd, 0), 0);
    assert_int_equal(ds_channel_state(f->client.channel), DS_SERVER_DEAD);
    raw_close(&f->client, false);
    dsd_again(&f->dsd, "auto");
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    (void) raw_answer_free(answer);
    (void) raw_answer_free(late);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(killed_engines_cost_no_token),
        TEST(a_request_that_crashes_engines_is_given_up_alone),
        TEST(a_lie_costs_the_engine_its_life),
        TEST(a_hung_engine_is_replaced),
        TEST(ids_nobody_asked_for_are_ignored),
        TEST(a_model_that_crashes_engines_is_given_up),
        TEST(a_look_at_a_model_waits_for_the_next_engine),
        TEST(a_lost_connection_is_taken_up_again),
        TEST(an_answer_that_was_lost_in_the_ring_is_replayed),
        TEST(a_killed_dsd_goes_on_after_its_restart),
        TEST(a_stop_lets_running_requests_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
