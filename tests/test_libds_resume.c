/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: whatever becomes of the daemon, every request yields its whole answer once, or one error
 * that says why not.
 * Method: libds against tests/lib/fake_daemon.c, whose tokens are a function of (seed, position)
 * and which checks the ids, the count and the key of every resumption. It is cut after every
 * completion of a conversation, taken away for a while, made to drain, to freeze and to lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/base.h"
#include "tests/lib/streams.h"

/* Runs three streams with one cut after `cut` completions. */
static void run_with_cut(struct fixture *f, int cut, int piece, uint32_t n_tokens)
{
    struct stream streams[STREAMS];

    atomic_store(&f->plan->drop_after, cut);
    atomic_store(&f->plan->piece, piece);
    fixture_dial(f, 0);
    for (uint64_t i = 0; i < STREAMS; i++)
        stream_submit(f, &streams[i], 1000 * (uint64_t) cut + i, n_tokens + (uint32_t) i);
    streams_collect(f, streams, STREAMS);
    for (uint32_t i = 0; i < STREAMS; i++)
        stream_check(&streams[i], n_tokens + i);
    assert_int_equal(atomic_load(&f->plan->wrong), 0);
    fixture_hang_up(f);
}

static void test_a_cut_after_any_completion_leaves_no_trace(void **state)
{
    struct fixture *f = *state;
    /* three ACCEPTED, 8 + 9 + 10 tokens, three FINAL */
    const int completions = 3 + 8 + 9 + 10 + 3;

    for (int cut = 0; cut < completions; cut++)
        run_with_cut(f, cut, 0, 8);
    assert_int_equal(atomic_load(&f->plan->lives), 2 * completions);
    assert_true(atomic_load(&f->plan->resumed) > completions);
}

static void test_a_cut_between_pieces_leaves_no_trace(void **state)
{
    struct fixture *f = *state;

    for (int cut = 0; cut < 40; cut++)
        run_with_cut(f, cut, 5, 4);
    assert_true(atomic_load(&f->plan->resumed) > 40);
}

static void test_a_daemon_that_comes_back_later_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct stream stream;

    atomic_store(&f->plan->drop_after, 6);
    atomic_store(&f->plan->down_msec, 300);
    fixture_dial(f, 0);
    stream_submit(f, &stream, 3, 20);
    streams_collect(f, &stream, 1);
    stream_check(&stream, 20);
    assert_int_equal(atomic_load(&f->plan->resumed), 1);
    assert_int_equal(atomic_load(&f->plan->wrong), 0);
}

static void test_control_requests_survive_a_cut(void **state)
{
    struct fixture *f = *state;
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__TokenizeRequest tokenize = DS__TOKENIZE_REQUEST__INIT;

    atomic_store(&f->plan->drop_after, 0);
    fixture_dial(f, 0);
    tokenize.text = (ProtobufCBinaryData){ .data = (uint8_t *) "AB", .len = 2 };
    reply = control_reply(f, control_send(f, DS__REQUEST__OP_TOKENIZE, &tokenize));
    assert_int_equal(reply->tokenize->n_ids, 2);
    assert_int_equal(reply->tokenize->ids[1], 'B');
    assert_int_equal(atomic_load(&f->plan->lives), 2);
}

static void test_a_cancel_request_is_not_sent_to_another_daemon(void **state)
{
    struct fixture *f = *state;
    Ds__CancelRequest cancel = DS__CANCEL_REQUEST__INIT;
    struct ds_event event;
    uint64_t id;

    atomic_store(&f->plan->drop_after, 0);
    fixture_dial(f, 0);
    id = control_send(f, DS__REQUEST__OP_CANCEL, &cancel);
    assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
    assert_int_equal(event.type, DS_EVENT_ERROR);
    assert_int_equal(event.id, id);
}

static void test_requests_submitted_while_dsd_is_away_go_out_later(void **state)
{
    struct fixture *f = *state;
    struct stream streams[2];
    struct ds_event event;

    atomic_store(&f->plan->drop_after, 1);
    atomic_store(&f->plan->down_msec, 200);
    fixture_dial(f, 0);
    stream_submit(f, &streams[0], 1, 10);
    while (atomic_load(&f->plan->drop_after) != -1)
        assert_int_equal(ds_next(f->ds, &event, 1), DS_NONE);
    assert_int_equal(ds_next(f->ds, &event, 20), DS_NONE);
    stream_submit(f, &streams[1], 2, 10);
    streams_collect(f, streams, 2);
    stream_check(&streams[0], 10);
    stream_check(&streams[1], 10);
}

static void test_what_a_draining_daemon_refuses_is_resumed_at_the_next(void **state)
{
    struct fixture *f = *state;
    struct stream streams[2];
    struct ds_event event;

    atomic_store(&f->plan->credits, 5);
    fixture_dial(f, 0);
    stream_submit(f, &streams[0], 11, 10);
    streams_take(f, streams, 1, 5);
    atomic_store(&f->plan->draining, 1);
    stream_submit(f, &streams[1], 12, 10);
    assert_int_equal(ds_next(f->ds, &event, 50), DS_NONE); /* refused, and not told */
    atomic_store(&f->plan->down_msec, 50);
    atomic_store(&f->plan->drop_after, 7); /* accepted, five tokens, refused: now */
    atomic_store(&f->plan->credits, -1);
    fake_daemon_poke(f->fake);
    streams_collect(f, streams, 2);
    stream_check(&streams[0], 10);
    stream_check(&streams[1], 10);
    assert_int_equal(atomic_load(&f->plan->wrong), 0);
}

static void test_a_daemon_that_stays_away_ends_every_request_with_an_error(void **state)
{
    struct fixture *f = *state;
    struct stream streams[2];
    struct ds_event event;

    atomic_store(&f->plan->drop_after, 4);
    atomic_store(&f->plan->down_msec, 60000);
    fixture_dial(f, 300);
    stream_submit(f, &streams[0], 1, 10);
    stream_submit(f, &streams[1], 2, 10);
    streams_collect(f, streams, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(streams[i].end.type, DS_EVENT_ERROR);
        assert_non_null(strstr(streams[i].end_text, f->path));
        assert_non_null(strstr(streams[i].end_text, "has not come back"));
    }
    assert_int_equal(ds_next(f->ds, &event, PATIENT), -ENOTCONN);
    assert_int_equal(ds_next(f->ds, &event, 0), -ENOTCONN);

    stream_submit(f, &streams[0], 3, 4); /* new work: it is looked for again, and still away */
    streams_collect(f, streams, 1);
    assert_int_equal(streams[0].end.type, DS_EVENT_ERROR);
    assert_int_equal(ds_next(f->ds, &event, 0), -ENOTCONN);
}

static void test_who_wants_no_reconnection_hears_of_the_loss_at_once(void **state)
{
    struct fixture *f = *state;
    struct stream stream;
    struct ds_event event;

    atomic_store(&f->plan->drop_after, 3);
    fixture_dial(f, UINT32_MAX);
    stream_submit(f, &stream, 1, 10);
    streams_collect(f, &stream, 1);
    assert_int_equal(stream.n_ids, 2); /* what had come is delivered all the same */
    assert_int_equal(stream.end.type, DS_EVENT_ERROR);
    assert_int_equal(ds_next(f->ds, &event, PATIENT), -ENOTCONN);
}

static void test_a_lie_costs_the_connection_and_nothing_else(void **state)
{
    struct fixture *f = *state;
    const int lies[] = { FAKE_LIE_SEQ, FAKE_LIE_TOKENS, FAKE_LIE_CRITICAL, FAKE_LIE_GARBAGE };

    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct stream stream;
        int lives = atomic_load(&f->plan->lives);

        atomic_store(&f->plan->lie, lies[i]);
        fixture_dial(f, 0);
        stream_submit(f, &stream, 50 + i, 10);
        streams_collect(f, &stream, 1);
        stream_check(&stream, 10);
        assert_int_equal(atomic_load(&f->plan->lie), FAKE_HONEST); /* it was told */
        assert_int_equal(atomic_load(&f->plan->lives), lives + 2);
        assert_int_equal(atomic_load(&f->plan->wrong), 0);
        fixture_hang_up(f);
    }
}

static void test_attachments_are_handed_over_again(void **state)
{
    struct fixture *f = *state;
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__TokenizeRequest tokenize = DS__TOKENIZE_REQUEST__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT;
    FILE *file = tmpfile();

    assert_int_equal(fwrite("GGUF", 1, 4, file), 4);
    assert_int_equal(fflush(file), 0);
    atomic_store(&f->plan->drop_after, 0);
    fixture_dial(f, 0);
    assert_int_equal(
        ds_attach(f->ds, "mine", (int[]){ fileno(file), fileno(file) }, 2, &model.attachment), 0);
    assert_int_equal(fclose(file), 0); /* the duplicates are libds's own */
    tokenize.model = &model;
    reply = control_reply(f, control_send(f, DS__REQUEST__OP_TOKENIZE, &tokenize));
    assert_int_equal(reply->tokenize->n_ids, 2);
    assert_int_equal(reply->tokenize->ids[0], 2);
    assert_int_equal(reply->tokenize->ids[1], 4);
    assert_int_equal(atomic_load(&f->plan->lives), 2);
}

static void test_a_request_cancelled_while_dsd_is_away_ends_here(void **state)
{
    struct fixture *f = *state;
    struct stream stream;
    struct ds_event event;

    atomic_store(&f->plan->drop_after, 3);
    atomic_store(&f->plan->down_msec, 60000);
    fixture_dial(f, 0);
    stream_submit(f, &stream, 9, 100);
    streams_take(f, &stream, 1, 2);
    assert_int_equal(ds_next(f->ds, &event, 50), DS_NONE);
    assert_int_equal(ds_cancel(f->ds, stream.id), 0);
    streams_collect(f, &stream, 1);
    assert_int_equal(stream.end.reason, DS_REASON_CANCELLED);
    assert_int_equal(stream.end.completion_tokens, 2);
}

static void test_a_frozen_daemon_is_asked_and_then_left(void **state)
{
    struct fixture *f = *state;
    struct stream stream;
    struct ds_event event;

    atomic_store(&f->plan->credits, 2);
    fixture_dial(f, 0);
    stream_submit(f, &stream, 6, 10);
    streams_take(f, &stream, 1, 2);
    atomic_store(&f->plan->frozen, 1);
    assert_int_equal(ds_next(f->ds, &event, 10500), DS_NONE); /* silence, question, silence */
    atomic_store(&f->plan->credits, -1);
    atomic_store(&f->plan->frozen, 0); /* it wakes up: the old connection is gone by then */
    streams_collect(f, &stream, 1);
    stream_check(&stream, 10);
    assert_int_equal(atomic_load(&f->plan->lives), 2);
    assert_int_equal(atomic_load(&f->plan->wrong), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(test_##name, fixture_set_up, fixture_tear_down)
    const struct CMUnitTest tests[] = {
        T(a_cut_after_any_completion_leaves_no_trace),
        T(a_cut_between_pieces_leaves_no_trace),
        T(a_daemon_that_comes_back_later_is_waited_for),
        T(control_requests_survive_a_cut),
        T(a_cancel_request_is_not_sent_to_another_daemon),
        T(requests_submitted_while_dsd_is_away_go_out_later),
        T(what_a_draining_daemon_refuses_is_resumed_at_the_next),
        T(a_daemon_that_stays_away_ends_every_request_with_an_error),
        T(who_wants_no_reconnection_hears_of_the_loss_at_once),
        T(a_lie_costs_the_connection_and_nothing_else),
        T(attachments_are_handed_over_again),
        T(a_request_cancelled_while_dsd_is_away_ends_here),
        T(a_frozen_daemon_is_asked_and_then_left),
    };

    return cmocka_run_group_tests_name("libds_resume", tests, NULL, NULL);
}
