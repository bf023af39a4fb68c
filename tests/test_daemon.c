/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: dsd serves requests: answers stream in order, loads happen on demand and disturb nobody,
 * limits hold, cancels and deadlines end what they should, a stop drains.
 * Method: the real build/dsd with an engine that yields tokens by arithmetic; clients speak over
 * shm/ directly. Everything runs on io_uring and on epoll.
 */
#include "proto/base.h"
#include "tests/lib/dsd_process.h"

#include <signal.h>
#include <sys/wait.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char *const models[] = {
    "alpha", "ok", "beta", "ok", "broken", "fail", "lazy", "slow 400", "crashy", "crash", NULL,
};

struct fixture {
    struct dsd_process dsd;
    struct raw_client client;
    const char *loop;
};

static void begin(struct fixture *f, const char *loop, const char *config)
{
    f->loop = loop;
    dsd_start(&f->dsd, loop, config, models);
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
}

static void end(struct fixture *f)
{
    assert_true(dsd_alive(&f->dsd));
    raw_close(&f->client, true);
    assert_int_equal(dsd_end(&f->dsd, SIGTERM), 0);
    dsd_remove(&f->dsd);
}

static struct raw_answer *generate(struct fixture *f, const char *model, const char *prompt,
                                   uint32_t n)
{
    struct raw_answer *answer = raw_answer_new(raw_generate(&f->client, model, prompt, n, 1));

    assert_true(raw_wait(&f->client, &answer, 1, 10000));
    return answer;
}

static void expect_error(const struct raw_answer *answer, Ds__Error__Code code, const char *text)
{
    Ds__Error *error = raw_error(answer);

    if (error->code != code || !strstr(error->text, text))
        fail_msg("error %d: %s", error->code, error->text);
    ds_message_free(error);
}

static void expect_reason(const struct raw_answer *answer, Ds__Reason reason)
{
    Ds__Reply *reply = raw_reply(answer);

    assert_int_equal(reply->result_case, DS__REPLY__RESULT_GENERATE);
    assert_int_equal(reply->generate->reason, reason);
    ds_message_free(reply);
}

static Ds__Reply *ask(struct fixture *f, Ds__Request__OpCase op, void *message)
{
    Ds__Request request = DS__REQUEST__INIT;
    struct raw_answer *answer;
    Ds__Reply *reply;

    request.op_case = op;
    request.generate = message; /* members of the oneof share their place */
    answer = raw_call(&f->client, &request, 10000);
    reply = raw_reply(answer);
    (void) raw_answer_free(answer);
    return reply;
}

/* --- */

static void answers_stream_in_order_and_are_repeatable(struct fixture *f)
{
    struct raw_answer *first = generate(f, "alpha", "hello", 40);
    struct raw_answer *again = generate(f, "alpha.gguf", "hello", 40);
    struct raw_answer *other = generate(f, "alpha", "hullo", 40);

    assert_int_equal(first->n_ids, 40);
    assert_int_equal(first->accepted, 1);
    assert_false(first->wrong_seq);
    expect_reason(first, DS__REASON__REASON_LENGTH);
    assert_memory_equal(first->ids, again->ids, 40 * sizeof *first->ids);
    assert_memory_not_equal(first->ids, other->ids, 40 * sizeof *first->ids);
    assert_string_equal(first->text, again->text);
    assert_true(first->notices > 0); /* the load */
    assert_int_equal(again->notices, 0);
    (void) raw_answer_free(first);
    (void) raw_answer_free(again);
    (void) raw_answer_free(other);
}

static void a_ping_comes_back(struct fixture *f)
{
    struct raw_answer *answer = raw_answer_new(77);

    raw_entry(&f->client, DS_SQE_PING, 77);
    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    assert_int_equal(answer->pongs, 1);
    (void) raw_answer_free(answer);
}

static void unknown_models_and_bad_files_are_named(struct fixture *f)
{
    struct raw_answer *answer = generate(f, "nowhere", "x", 4);

    expect_error(answer, DS__ERROR__CODE__NOT_FOUND, "nowhere");
    (void) raw_answer_free(answer);
    answer = generate(f, "../../etc/passwd", "x", 4);
    expect_error(answer, DS__ERROR__CODE__NOT_FOUND, "not a name in the models directory");
    (void) raw_answer_free(answer);
    answer = generate(f, "broken", "x", 4);
    expect_error(answer, DS__ERROR__CODE__BAD_MODEL, "broken: tensor");
    (void) raw_answer_free(answer);
    answer = generate(f, "alpha", "fail", 4);
    expect_error(answer, DS__ERROR__CODE__INVALID, "not liked");
    (void) raw_answer_free(answer);
}

static void a_load_holds_up_nobody_else(struct fixture *f)
{
    struct raw_answer *slow = raw_answer_new(raw_generate(&f->client, "lazy", "x", 4, 1));
    struct raw_answer *fast = raw_answer_new(raw_generate(&f->client, "alpha", "x", 4, 1));
    struct raw_answer *both[] = { fast, slow };
    uint64_t began = ds_now_nsec();

    while (!fast->done)
        (void) raw_wait(&f->client, both, 2, 10);
    assert_false(slow->done);
    assert_true(ds_now_nsec() - began < 380000000);
    assert_true(raw_wait(&f->client, both, 2, 5000));
    assert_int_equal(slow->n_ids, 4);
    assert_string_equal(slow->stage, "loading");
    (void) raw_answer_free(slow);
    (void) raw_answer_free(fast);
}

static void large_pieces_and_logprobs_arrive_whole(struct fixture *f)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__Generate message = DS__GENERATE__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;
    Ds__Input input = DS__INPUT__INIT;
    struct raw_answer *answer;

    answer = generate(f, "alpha", "big@3 big@5", 8);
    assert_int_equal(answer->n_ids, 8);
    assert_true(answer->n_text > 40000);
    assert_false(answer->wrong_seq);
    (void) raw_answer_free(answer);
    reference.name = (char *) "alpha";
    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text.data = (uint8_t *) "big@2";
    input.text.len = 5;
    message.model = &reference;
    message.input = &input;
    message.max_tokens = 8;
    message.want_logprobs = true;
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &message;
    answer = raw_call(&f->client, &request, 5000);
    assert_int_equal(answer->n_ids, 8);
    assert_true(answer->n_text > 20000);
    (void) raw_answer_free(answer);
}

static void cancel_ends_a_request_with_what_it_has(struct fixture *f)
{
    struct raw_answer *answer =
        raw_answer_new(raw_generate(&f->client, "alpha", "slow=20", 1000, 1));

    while (answer->n_ids < 2)
        (void) raw_wait(&f->client, &answer, 1, 10);
    raw_entry(&f->client, DS_SQE_CANCEL, answer->req_id);
    assert_true(raw_wait(&f->client, &answer, 1, 2000));
    expect_reason(answer, DS__REASON__REASON_CANCELLED);
    assert_true(answer->n_ids < 100);
    (void) raw_answer_free(answer);
}

static void a_slow_reader_gets_everything(struct fixture *f)
{
    struct ds_geometry small = { .cq_entries = 128, .rsp_bytes = 65536 };
    struct raw_answer *answer, *honest;
    struct raw_client slow;

    assert_int_equal(raw_connect(&slow, f->dsd.socket, &small), 0);
    answer = raw_answer_new(raw_generate(&slow, "alpha", "slowly", 7000, 1));
    for (int i = 0; i < 500 && !dsd_log_has(&f->dsd, "rests: client"); i++)
        (void) usleep(10000);
    assert_true(dsd_log_has(&f->dsd, "rests: client")); /* the engine was told to stop */
    honest = generate(f, "alpha", "x", 5);
    assert_int_equal(honest->n_ids, 5);
    assert_true(raw_wait(&slow, &answer, 1, 20000));
    expect_reason(answer, DS__REASON__REASON_LENGTH);
    assert_int_equal(answer->n_ids, 7000);
    assert_true(answer->coalesced > 0);
    assert_false(answer->wrong_seq);
    (void) raw_answer_free(answer);
    (void) raw_answer_free(honest);
    raw_close(&slow, true);
}

static void verbs_answer(struct fixture *f)
{
    Ds__ListRequest list = DS__LIST_REQUEST__INIT;
    Ds__StatusRequest status = DS__STATUS_REQUEST__INIT;
    Ds__PsRequest ps = DS__PS_REQUEST__INIT;
    Ds__LoadRequest load = DS__LOAD_REQUEST__INIT;
    Ds__UnloadRequest unload = DS__UNLOAD_REQUEST__INIT;
    Ds__ShowRequest show = DS__SHOW_REQUEST__INIT;
    Ds__RequestsRequest requests = DS__REQUESTS_REQUEST__INIT;
    Ds__ModelRef beta = DS__MODEL_REF__INIT;
    struct raw_answer *running;
    Ds__Reply *reply;

    beta.name = (char *) "beta";
    reply = ask(f, DS__REQUEST__OP_LIST, &list);
    assert_int_equal(reply->list->n_models, 5);
    assert_string_equal(reply->list->models[0]->name, "alpha");
    ds_message_free(reply);
    reply = ask(f, DS__REQUEST__OP_STATUS, &status);
    assert_string_equal(reply->status->loop, strcmp(f->loop, "epoll") ? "io_uring" : "epoll");
    assert_string_equal(reply->status->engines[0]->description, "a fake");
    ds_message_free(reply);
    load.model = &beta;
    load.pin = true;
    reply = ask(f, DS__REQUEST__OP_LOAD, &load);
    assert_string_equal(reply->load->model->state, "resident");
    assert_true(reply->load->model->pinned);
    ds_message_free(reply);
    show.model = &beta;
    reply = ask(f, DS__REQUEST__OP_SHOW, &show);
    assert_string_equal(reply->show->model->architecture, "fake");
    ds_message_free(reply);
    running = raw_answer_new(raw_generate(&f->client, "beta", "slow=20", 500, 1));
    while (running->n_ids < 1)
        (void) raw_wait(&f->client, &running, 1, 10);
    reply = ask(f, DS__REQUEST__OP_REQUESTS, &requests);
    assert_int_equal(reply->requests->n_requests, 1);
    assert_string_equal(reply->requests->requests[0]->model, "beta");
    assert_string_equal(reply->requests->requests[0]->state, "running");
    ds_message_free(reply);
    unload.model = &beta;
    unload.force = true;
    reply = ask(f, DS__REQUEST__OP_UNLOAD, &unload);
    ds_message_free(reply);
    /* the end of the cancelled one may have come while we waited for the unload */
    reply = ask(f, DS__REQUEST__OP_PS, &ps);
    for (size_t i = 0; i < reply->ps->n_models; i++)
        assert_string_not_equal(reply->ps->models[i]->name, "beta");
    ds_message_free(reply);
    (void) raw_answer_free(running);
}

static void deadlines_end_what_waits_for_a_load(struct fixture *f)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__Generate message = DS__GENERATE__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;
    struct raw_answer *answer;

    dsd_add_model(&f->dsd, "slower", "slow 3000");
    reference.name = (char *) "slower";
    message.model = &reference;
    message.deadline_nsec = ds_now_nsec() + 100000000;
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &message;
    answer = raw_call(&f->client, &request, 2000);
    expect_reason(answer, DS__REASON__REASON_DEADLINE);
    (void) raw_answer_free(answer);
}

static void serves(const char *loop)
{
    struct fixture f = { 0 };

    begin(&f, loop, "");
    answers_stream_in_order_and_are_repeatable(&f);
    a_ping_comes_back(&f);
    unknown_models_and_bad_files_are_named(&f);
    a_load_holds_up_nobody_else(&f);
    large_pieces_and_logprobs_arrive_whole(&f);
    cancel_ends_a_request_with_what_it_has(&f);
    a_slow_reader_gets_everything(&f);
    verbs_answer(&f);
    deadlines_end_what_waits_for_a_load(&f);
    end(&f);
}

static void it_serves_on_io_uring(void **state)
{
    (void) state;
    serves("auto");
}

static void it_serves_on_epoll(void **state)
{
    (void) state;
    serves("epoll");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_serves_on_io_uring),
        cmocka_unit_test(it_serves_on_epoll),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
