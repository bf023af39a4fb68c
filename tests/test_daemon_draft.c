/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a draft model is loaded where a request names it, stays while it is used, comes back with
 * the model after a crash, and never shows in an answer; one that does not fit or does not load
 * costs its own requests and nothing else.
 * Method: the real build/dsd; with the real engine, and with the fake one for loads that fail.
 */
#include "proto/base.h"
#include "tests/lib/dsd_process.h"
#include "tests/lib/tiny_model.h"

#include <signal.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { STREAMS = 6, LONG = 300 };

struct fixture {
    struct dsd_process dsd;
    struct raw_client client, other;
};

static void connect_both(struct fixture *f)
{
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    assert_int_equal(raw_connect(&f->other, f->dsd.socket, NULL), 0);
}

static void write_model(const struct fixture *f, const char *name, uint32_t type, uint32_t n_layers,
                        bool other_words)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, type);
    char path[160];

    options.n_layers = n_layers;
    if (other_words)
        options.vocab = options.vocab == DS_VOCAB_SPM ? DS_VOCAB_BPE : DS_VOCAB_SPM;
    (void) snprintf(path, sizeof path, "%s/models/%s.gguf", f->dsd.directory, name);
    assert_int_equal(ds_tiny_model_file(&options, path), 0);
}

static int begin(void **state)
{
    static const char *const nothing[] = { NULL };
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    f->dsd.real_engine = true;
    dsd_start(&f->dsd, "auto", "", nothing);
    write_model(f, "large", DS_TYPE_F32, 12, false);
    write_model(f, "small", DS_TYPE_Q4_0, 1, false);
    write_model(f, "stranger", DS_TYPE_F32, 1, true);
    connect_both(f);
    return 0;
}

static int begin_fake(void **state)
{
    static const char *const models[] = { "alpha", "ok",     "beta",  "slow 300", "bad",
                                          "fail",  "crashy", "crash", NULL };
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    dsd_start(&f->dsd, "auto", "", models);
    connect_both(f);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;

    raw_close(&f->client, true);
    raw_close(&f->other, true);
    assert_int_equal(dsd_end(&f->dsd, SIGTERM), 0);
    dsd_remove(&f->dsd);
    free(f);
    return 0;
}

/* --- requests --- */

struct wish {
    const char *model, *draft;
    uint32_t max_tokens;
    uint64_t seed;
    Ds__Speculation speculation;
};

static struct raw_answer *submit(struct raw_client *client, const struct wish *wish)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT, draft = DS__MODEL_REF__INIT;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    Ds__Input input = DS__INPUT__INIT;

    model.name = (char *) wish->model;
    draft.name = (char *) wish->draft;
    sampling.seed = wish->seed;
    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text.data = (uint8_t *) "the quick brown fox";
    input.text.len = strlen("the quick brown fox");
    generate.model = &model;
    if (wish->draft)
        generate.draft_model = &draft;
    generate.speculation = wish->speculation;
    generate.input = &input;
    generate.sampling = &sampling;
    generate.max_tokens = wish->max_tokens;
    generate.ignore_eos = true;
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &generate;
    return raw_answer_new(raw_submit(client, &request, NULL, 0));
}

static struct raw_answer *generate(struct raw_client *client, const struct wish *wish,
                                   uint32_t *ret_drafted)
{
    struct raw_answer *answer = submit(client, wish);
    Ds__Reply *reply;

    assert_true(raw_wait(client, &answer, 1, 30000));
    reply = raw_reply(answer);
    if (ret_drafted)
        *ret_drafted = reply->generate->usage->drafted_tokens;
    ds_message_free(reply);
    return answer;
}

static void expect_error(struct raw_client *client, struct raw_answer *answer, Ds__Error__Code code,
                         const char *says)
{
    Ds__Error *error;

    assert_true(raw_wait(client, &answer, 1, 20000));
    error = raw_error(answer);
    if (error->code != code || !strstr(error->text, says))
        fail_msg("error %d: '%s', expected %d: '%s'", error->code, error->text, code, says);
    ds_message_free(error);
    (void) raw_answer_free(answer);
}

static void expect_same(const struct raw_answer *a, const struct raw_answer *b)
{
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, a->n_ids * sizeof *a->ids);
}

static struct raw_answer *unload(struct raw_client *client, const char *name, bool force)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__UnloadRequest message = DS__UNLOAD_REQUEST__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT;

    model.name = (char *) name;
    message.model = &model;
    message.force = force;
    request.op_case = DS__REQUEST__OP_UNLOAD;
    request.unload = &message;
    return raw_answer_new(raw_submit(client, &request, NULL, 0));
}

static void expect_done(struct raw_client *client, struct raw_answer *answer)
{
    assert_true(raw_wait(client, &answer, 1, 5000));
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
}

/* "large:resident:0,...": name, state, requests. */
static void expect_ps(struct raw_client *client, const char *expected)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__PsRequest ps = DS__PS_REQUEST__INIT;
    struct raw_answer *answer;
    Ds__Reply *reply;
    char text[256] = "";

    request.op_case = DS__REQUEST__OP_PS;
    request.ps = &ps;
    answer = raw_call(client, &request, 5000);
    reply = raw_reply(answer);
    for (size_t i = 0; i < reply->ps->n_models; i++)
        (void) snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s:%s:%u", i ? "," : "",
                        reply->ps->models[i]->name, reply->ps->models[i]->state,
                        reply->ps->models[i]->requests);
    assert_string_equal(text, expected);
    ds_message_free(reply);
    (void) raw_answer_free(answer);
}

/* --- scenes --- */

static void a_request_brings_its_draft_model_along(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "large", .max_tokens = LONG, .seed = 3 };
    struct raw_answer *plain, *drafted;
    uint32_t n_drafted = 0;

    plain = generate(&f->client, &wish, NULL);
    wish.draft = "small";
    drafted = generate(&f->client, &wish, &n_drafted);
    expect_same(plain, drafted);
    assert_true(n_drafted > 0);
    expect_ps(&f->client, "large:resident:0,small:resident:0");
    (void) raw_answer_free(drafted);
    wish.draft = "large"; /* for itself */
    drafted = generate(&f->client, &wish, NULL);
    expect_same(plain, drafted);
    (void) raw_answer_free(drafted);
    (void) raw_answer_free(plain);

    wish.draft = "stranger";
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__INVALID,
                 "draft model stranger has another vocabulary than model large");
    wish.draft = "nowhere";
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__NOT_FOUND, "nowhere");
    wish.draft = "small";
    wish.speculation = DS__SPECULATION__SPECULATION_OFF;
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__INVALID, "not both");
    expect_ps(&f->client, "large:resident:0,small:resident:0,stranger:resident:0");
}

static void it_stays_while_it_is_used(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "large", .max_tokens = LONG, .seed = 4 };
    struct raw_answer *plain = generate(&f->client, &wish, NULL), *busy;

    wish.draft = "small";
    (void) raw_answer_free(generate(&f->client, &wish, NULL));
    busy = submit(&f->client, &wish);
    while (busy->n_ids < 3)
        (void) raw_wait(&f->client, &busy, 1, 1);
    expect_error(&f->other, unload(&f->other, "small", false), DS__ERROR__CODE__BUSY,
                 "model small: in use by 1 requests");
    expect_done(&f->other, unload(&f->other, "small", true));
    assert_false(busy->done);
    assert_true(raw_wait(&f->client, &busy, 1, 30000)); /* goes on without */
    ds_message_free(raw_reply(busy));
    expect_same(plain, busy);
    expect_ps(&f->client, "large:resident:0");
    (void) raw_answer_free(busy);
    (void) raw_answer_free(plain);
}

static void answers_survive_the_engine(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *wanted[STREAMS], *got[STREAMS];
    struct wish wish = { .model = "large", .max_tokens = LONG };
    unsigned n_early = 0;
    pid_t pid;

    for (unsigned i = 0; i < STREAMS; i++) {
        wish.seed = i;
        wanted[i] = generate(&f->client, &wish, NULL);
    }
    for (unsigned i = 0; i < STREAMS; i++) {
        wish.seed = i;
        wish.draft = i % 3 == 0 ? NULL : i % 3 == 1 ? "small" : "large";
        got[i] = submit(&f->client, &wish);
    }
    while (got[STREAMS - 1]->n_ids < 3)
        (void) raw_wait(&f->client, got, STREAMS, 1);
    for (unsigned i = 0; i < STREAMS; i++)
        n_early += got[i]->done;
    pid = dsd_engine_pid(&f->dsd);
    (void) kill(pid, SIGKILL);
    assert_true(raw_wait(&f->client, got, STREAMS, 60000));
    assert_int_equal(n_early, 0);
    assert_int_not_equal(dsd_engine_pid(&f->dsd), pid);
    for (unsigned i = 0; i < STREAMS; i++) {
        ds_message_free(raw_reply(got[i]));
        expect_same(got[i], wanted[i]);
        (void) raw_answer_free(got[i]);
        (void) raw_answer_free(wanted[i]);
    }
    expect_ps(&f->client, "large:resident:0,small:resident:0");
}

static void one_that_does_not_load_costs_its_own_requests(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "alpha", .max_tokens = 5, .draft = "bad" };
    struct raw_answer *answer;

    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__BAD_MODEL, "model bad");
    wish.draft = "crashy";
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__BAD_MODEL,
                 "model crashy: the engine crashed again and again");
    wish.model = "bad"; /* both are on the way, and the model itself fails */
    wish.draft = "beta";
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__BAD_MODEL, "model bad");
    wish.model = "alpha";
    answer = submit(&f->client, &wish);
    assert_false(raw_wait(&f->client, &answer, 1, 50)); /* beta takes 300 ms */
    raw_entry(&f->client, DS_SQE_CANCEL, answer->req_id);
    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
    (void) raw_answer_free(generate(&f->client, &wish, NULL));
    expect_ps(&f->client, "alpha:resident:0,beta:resident:0");
}

#define TEST(name)      cmocka_unit_test_setup_teardown(name, begin, end)
#define FAKE_TEST(name) cmocka_unit_test_setup_teardown(name, begin_fake, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_request_brings_its_draft_model_along),
        TEST(it_stays_while_it_is_used),
        TEST(answers_survive_the_engine),
        FAKE_TEST(one_that_does_not_load_costs_its_own_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
