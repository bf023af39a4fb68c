/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: what goes in at one side comes out at the other, once, in order, whole; full and empty are
 * told apart; nothing is written over before it was given back - also where indices, arena and
 * response ring wrap around.
 * Method: both sides in one process, for either creator; indices started just below 2^32; every
 * payload is a function of its number, so that any mix-up shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

#include "proto/base.h"
#include "shm/channel_internal.h"
#include "tests/lib/channel_pair.h"

#define NEAR_WRAP 0xfffffff0u

static const struct ds_geometry small = {
    .sq_entries = 4, .cq_entries = 8, .arena_bytes = 4096, .rsp_bytes = 4096, .max_inflight = 3
};
static const enum ds_channel_side creators[] = { DS_CHANNEL_SERVER, DS_CHANNEL_SUBMITTER };

static void start_near_wrap(struct ds_channel_pair *pair)
{
    ds_channel_start_at(pair->submitter, NEAR_WRAP, NEAR_WRAP, 4096 * 3 + 64);
    ds_channel_start_at(pair->server, NEAR_WRAP, NEAR_WRAP, 4096 * 3 + 64);
}

static void fill(uint8_t *bytes, size_t size, uint64_t number)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t) (number * 131 + i * 7 + i / 251);
}

static void assert_filled(const uint8_t *bytes, size_t size, uint64_t number)
{
    for (size_t i = 0; i < size; i++)
        assert_int_equal(bytes[i], (uint8_t) (number * 131 + i * 7 + i / 251));
}

static int put(struct ds_channel *submitter, uint64_t number, size_t size)
{
    uint8_t bytes[4096];

    fill(bytes, size, number);
    return ds_channel_put(submitter, number, bytes, size);
}

static int post(struct ds_channel *server, uint64_t number, size_t size, bool last)
{
    struct ds_cqe entry = { .req_id = number, .seq = 9, .type = DS_CQE_FINAL };
    uint8_t bytes[4096];

    fill(bytes, size, number);
    return ds_channel_post(server, &entry, bytes, size, last);
}

static void assert_received(struct ds_channel *server, uint64_t number, size_t size)
{
    struct ds_sqe entry;
    const void *payload;

    assert_int_equal(ds_channel_receive(server, &entry, &payload), DS_CHANNEL_OK);
    assert_int_equal(entry.req_id, number);
    assert_int_equal(entry.payload_len, size);
    assert_filled(payload, size, number);
}

static void assert_next(struct ds_channel *submitter, uint64_t number, size_t size)
{
    struct ds_cqe entry;
    const void *payload;

    assert_int_equal(ds_channel_next(submitter, &entry, &payload), DS_CHANNEL_OK);
    assert_int_equal(entry.req_id, number);
    assert_int_equal(entry.len, size);
    assert_int_equal((uintptr_t) payload % 8, 0);
    assert_filled(payload, size, number);
}

static void requests_arrive_whole_and_in_order_across_the_wrap(void **state)
{
    (void) state;
    for (size_t c = 0; c < 2; c++) {
        ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
            ds_channel_pair_new(&small, creators[c]);
        uint64_t sent = 0, received = 0;
        struct ds_sqe entry;
        const void *payload;

        start_near_wrap(&pair);
        for (unsigned round = 0; round < 2000; round++) {
            while (put(pair.submitter, sent, (sent * 577) % 1500) == DS_CHANNEL_OK)
                sent++;
            assert_true(sent > received);
            for (unsigned i = 0; i < 1 + round % 3 && received < sent; i++, received++)
                assert_received(pair.server, received, (received * 577) % 1500);
            ds_channel_release(pair.server);
        }
        while (received < sent) {
            assert_received(pair.server, received, (received * 577) % 1500);
            received++;
        }
        assert_int_equal(ds_channel_receive(pair.server, &entry, &payload), DS_CHANNEL_EMPTY);
        assert_true(sent > 2000); /* the index went through zero */
    }
}

static void completions_arrive_whole_and_in_order_across_the_wrap(void **state)
{
    (void) state;
    for (size_t c = 0; c < 2; c++) {
        ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
            ds_channel_pair_new(&small, creators[c]);
        uint64_t sent = 0, received = 0;
        struct ds_cqe entry;
        const void *payload;

        start_near_wrap(&pair);
        for (unsigned round = 0; round < 2000; round++) {
            while (post(pair.server, sent, (sent * 311) % 1025, false) == DS_CHANNEL_OK)
                sent++;
            ds_channel_publish(pair.server);
            assert_true(sent > received);
            for (unsigned i = 0; i < 1 + round % 4 && received < sent; i++, received++) {
                assert_next(pair.submitter, received, (received * 311) % 1025);
                if (round % 2)
                    ds_channel_done(pair.submitter);
            }
            ds_channel_done(pair.submitter);
        }
        while (received < sent) {
            assert_next(pair.submitter, received, (received * 311) % 1025);
            received++;
        }
        assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), DS_CHANNEL_EMPTY);
        assert_true(sent > 2000);
    }
}

static void a_full_submission_ring_refuses_until_entries_are_released(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    struct ds_sqe ping = { .op = DS_SQE_PING, .req_id = 77 };

    (void) state;
    start_near_wrap(&pair);
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(put(pair.submitter, i, 10), DS_CHANNEL_OK);
    assert_int_equal(put(pair.submitter, 4, 10), DS_CHANNEL_FULL);
    assert_int_equal(ds_channel_submit(pair.submitter, &ping, 0), DS_CHANNEL_FULL);
    assert_received(pair.server, 0, 10);
    assert_int_equal(put(pair.submitter, 4, 10), DS_CHANNEL_FULL); /* received, not released */
    ds_channel_release(pair.server);
    assert_int_equal(ds_channel_submit(pair.submitter, &ping, 0), DS_CHANNEL_OK);
    assert_int_equal(put(pair.submitter, 4, 10), DS_CHANNEL_FULL);
}

static void the_arena_takes_one_payload_of_its_whole_size_and_no_larger(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    void *room;

    (void) state;
    assert_int_equal(ds_channel_layout(pair.submitter)->max_payload, 4096);
    assert_int_equal(ds_channel_reserve(pair.submitter, 4097, &room), -EMSGSIZE);
    for (uint64_t i = 0; i < 10; i += 2) {
        assert_int_equal(put(pair.submitter, i, 100), DS_CHANNEL_OK);
        assert_int_equal(put(pair.submitter, i, 4096), DS_CHANNEL_FULL);
        assert_received(pair.server, i, 100);
        ds_channel_release(pair.server);
        assert_int_equal(put(pair.submitter, i + 1, 4096), DS_CHANNEL_OK);
        assert_int_equal(put(pair.submitter, i + 1, 1), DS_CHANNEL_FULL);
        assert_received(pair.server, i + 1, 4096);
        ds_channel_release(pair.server);
    }
}

static void a_reservation_not_submitted_is_given_back(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT };
    void *room;

    (void) state;
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(ds_channel_reserve(pair.submitter, 3000, &room), DS_CHANNEL_OK);
    assert_int_equal(ds_channel_submit(pair.submitter, &entry, 3001), -EINVAL);
    fill(room, 3000, 5);
    entry.req_id = 5;
    assert_int_equal(ds_channel_submit(pair.submitter, &entry, 1000), DS_CHANNEL_OK);
    assert_int_equal(put(pair.submitter, 6, 3000), DS_CHANNEL_OK); /* the other 2000 are free */
    assert_int_equal(ds_channel_submit(pair.submitter, &entry, 1), -EINVAL);
    assert_received(pair.server, 5, 1000);
    assert_received(pair.server, 6, 3000);
}

static void nothing_is_seen_before_it_is_published(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    struct ds_cqe entry;
    const void *payload;

    (void) state;
    assert_int_equal(post(pair.server, 1, 20, false), DS_CHANNEL_OK);
    assert_false(ds_channel_pending(pair.submitter));
    assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), DS_CHANNEL_EMPTY);
    ds_channel_publish(pair.server);
    assert_true(ds_channel_pending(pair.submitter));
    assert_next(pair.submitter, 1, 20);
    assert_false(ds_channel_pending(pair.submitter));
}

static void entries_are_kept_back_for_the_last_message_of_every_request(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);

    (void) state;
    start_near_wrap(&pair);
    for (uint64_t i = 0; i < 5; i++)
        assert_int_equal(post(pair.server, i, 40, false), DS_CHANNEL_OK);
    assert_int_equal(post(pair.server, 5, 0, false), DS_CHANNEL_FULL);
    assert_int_equal(post(pair.server, 5, 41, false), DS_CHANNEL_FULL);
    for (uint64_t i = 5; i < 8; i++) /* max_inflight of them */
        assert_int_equal(post(pair.server, i, 40, true), DS_CHANNEL_OK);
    assert_int_equal(post(pair.server, 8, 0, true), DS_CHANNEL_FULL);
    assert_int_equal(ds_load(&pair.submitter->c_hot->cq_stalls), 3);
    ds_channel_publish(pair.server);
    for (uint64_t i = 0; i < 8; i++)
        assert_next(pair.submitter, i, 40);
    assert_int_equal(post(pair.server, 8, 0, true), DS_CHANNEL_FULL); /* read, not done */
    ds_channel_done(pair.submitter);
    assert_int_equal(post(pair.server, 8, 0, false), DS_CHANNEL_OK);
}

static void response_bytes_are_kept_back_too(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);

    (void) state;
    for (uint64_t i = 0; i < 3; i++)
        assert_int_equal(post(pair.server, i, 1024, false), DS_CHANNEL_OK);
    assert_int_equal(post(pair.server, 3, 1024, false), DS_CHANNEL_FULL);
    assert_int_equal(post(pair.server, 3, 600, false), DS_CHANNEL_FULL);
    assert_int_equal(post(pair.server, 3, 40, false), DS_CHANNEL_OK); /* inline costs no bytes */
    assert_int_equal(post(pair.server, 4, 256, true), DS_CHANNEL_OK);
    assert_int_equal(post(pair.server, 5, 256, true), DS_CHANNEL_OK);
    assert_int_equal(post(pair.server, 6, 1025, true), -EMSGSIZE);
}

/* What does not fit one entry goes in pieces, and arrives as the same bytes. */
static void a_large_answer_goes_in_pieces(void **state)
{
    enum { SIZE = 100000 };
    static uint8_t whole[SIZE], back[SIZE];
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    size_t piece = ds_channel_post_max(pair.server), sent = 0, got = 0;
    struct ds_cqe entry = { .req_id = 3, .type = DS_CQE_TOKENS };
    const void *payload;

    (void) state;
    fill(whole, SIZE, 3);
    for (bool more = true; more;) {
        while (sent < SIZE) {
            size_t len = SIZE - sent < piece ? SIZE - sent : piece;
            int r;

            entry.flags = sent + len < SIZE ? DS_CQE_MORE : 0;
            entry.n_tokens = 20000; /* of the whole, more than the last piece has bytes for */
            r = ds_channel_post(pair.server, &entry, whole + sent, len, entry.flags == 0);
            if (r == DS_CHANNEL_FULL)
                break;
            assert_int_equal(r, DS_CHANNEL_OK);
            sent += len;
            entry.seq++;
        }
        ds_channel_publish(pair.server);
        while (more) {
            struct ds_cqe in;

            if (ds_channel_next(pair.submitter, &in, &payload) == DS_CHANNEL_EMPTY)
                break;
            assert_int_equal(in.n_tokens, 20000);
            memcpy(back + got, payload, in.len);
            got += in.len;
            more = in.flags & DS_CQE_MORE;
            ds_channel_done(pair.submitter);
        }
    }
    assert_int_equal(got, SIZE);
    assert_memory_equal(whole, back, SIZE);
}

static void an_entry_arrives_with_all_its_fields(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(NULL, DS_CHANNEL_SERVER);
    struct ds_sqe out = { .op = DS_SQE_SUBMIT,
                          .req_id = 0x123456789abcdefu,
                          .deadline_ns = 42,
                          .resume_from = 17,
                          .idem_key = { 1, 2, 3, [15] = 16 } };
    struct ds_cqe answer = { .req_id = 8,
                             .seq = 3,
                             .type = DS_CQE_TOKENS,
                             .n_tokens = 2,
                             .flags = DS_CQE_COALESCED | DS_CQE_OOL };
    struct {
        uint32_t ids[2];
        char text[3];
    } tokens = { { 5, 6 }, "ab" };
    struct ds_sqe in;
    struct ds_cqe back;
    const void *payload;
    void *room;

    (void) state;
    assert_int_equal(ds_channel_reserve(pair.submitter, 1, &room), DS_CHANNEL_OK);
    assert_int_equal(ds_channel_submit(pair.submitter, &out, 1), DS_CHANNEL_OK);
    assert_int_equal(ds_channel_receive(pair.server, &in, &payload), DS_CHANNEL_OK);
    out.payload_len = 1;
    assert_memory_equal(&in, &out, sizeof in);

    assert_int_equal(ds_channel_post(pair.server, &answer, &tokens, 10, false), DS_CHANNEL_OK);
    ds_channel_publish(pair.server);
    assert_int_equal(ds_channel_next(pair.submitter, &back, &payload), DS_CHANNEL_OK);
    assert_int_equal(back.seq, 3);
    assert_int_equal(back.type, DS_CQE_TOKENS);
    assert_int_equal(back.n_tokens, 2);
    assert_int_equal(back.flags, DS_CQE_COALESCED); /* where the payload lies is not the caller's */
    assert_memory_equal(payload, &tokens, 10);
    assert_int_equal(ds_load(&pair.submitter->c_hot->coalesced), 1);
}

static void defaults_and_limits_shape_the_layout(void **state)
{
    static const struct ds_geometry huge = { UINT32_MAX, UINT32_MAX, 4096, 4096, UINT32_MAX };
    static const struct ds_geometry odd = { 3, 100, 5000, 1, 7 };
    struct ds_channel *channel;

    (void) state;
    assert_int_equal(ds_channel_create(&channel, DS_CHANNEL_SERVER, NULL, 5), 0);
    assert_int_equal(ds_channel_layout(channel)->sq_entries, 64);
    assert_int_equal(ds_channel_layout(channel)->cq_entries, 256);
    assert_int_equal(ds_channel_layout(channel)->arena_size, 1u << 20);
    assert_int_equal(ds_channel_layout(channel)->rsp_size, 256u << 10);
    assert_int_equal(ds_channel_layout(channel)->epoch, 5);
    channel = ds_channel_free(channel);
    assert_int_equal(ds_channel_create(&channel, DS_CHANNEL_SERVER, &huge, 5), 0);
    assert_int_equal(ds_channel_layout(channel)->sq_entries, DS_SQ_ENTRIES_MAX);
    assert_int_equal(ds_channel_layout(channel)->cq_entries, DS_CQ_ENTRIES_MAX);
    assert_int_equal(ds_channel_layout(channel)->max_inflight, DS_CQ_ENTRIES_MAX / 2);
    channel = ds_channel_free(channel);
    assert_int_equal(ds_channel_create(&channel, DS_CHANNEL_SERVER, &odd, 5), 0);
    assert_int_equal(ds_channel_layout(channel)->sq_entries, 4);
    assert_int_equal(ds_channel_layout(channel)->cq_entries, 128);
    assert_int_equal(ds_channel_layout(channel)->arena_size, 8192);
    assert_int_equal(ds_channel_layout(channel)->max_inflight, 7);
    channel = ds_channel_free(channel);
}

static void heartbeat_and_state_reach_the_submitter(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(NULL, DS_CHANNEL_SERVER);

    (void) state;
    assert_int_equal(ds_channel_state(pair.submitter), DS_SERVER_RUNNING);
    ds_channel_beat(pair.server, 123456789012345u);
    ds_channel_set_state(pair.server, DS_SERVER_DRAINING);
    assert_int_equal(ds_channel_heartbeat(pair.submitter), 123456789012345u);
    assert_int_equal(ds_channel_state(pair.submitter), DS_SERVER_DRAINING);
}

/* A second process that answers every request with its payload, until CLOSE. */
static int echo(struct ds_channel *server)
{
    for (;;) {
        struct ds_cqe out = { .type = DS_CQE_FINAL };
        struct ds_sqe in;
        const void *payload;
        int r = ds_channel_receive(server, &in, &payload);

        if (r == DS_CHANNEL_EMPTY) {
            struct pollfd bell = { .fd = ds_channel_bell_in(server), .events = POLLIN };
            uint64_t count;

            if (ds_channel_sleep(server) && poll(&bell, 1, 10000) == 1)
                (void) !read(bell.fd, &count, sizeof count);
            ds_channel_wake(server);
            continue;
        }
        if (r != DS_CHANNEL_OK)
            return 1;
        if (in.op == DS_SQE_CLOSE)
            return 0;
        out.req_id = in.req_id;
        if (ds_channel_post(server, &out, payload, in.payload_len, true))
            return 2;
        ds_channel_release(server);
        ds_channel_publish(server);
        if (ds_channel_bell_due(server))
            ds_channel_ring_bell(server);
    }
}

/* The other end of echo(): n requests, as many at a time as fit, each answer checked. */
static void converse(struct ds_channel *submitter, uint64_t n)
{
    struct ds_sqe bye = { .op = DS_SQE_CLOSE };
    uint64_t sent = 0, answered = 0;

    while (answered < n) {
        while (sent < n && sent - answered < 3 && put(submitter, sent, (sent * 37) % 1000) == 0)
            sent++;
        if (ds_channel_bell_due(submitter))
            ds_channel_ring_bell(submitter);
        while (!ds_channel_pending(submitter)) {
            struct pollfd bell = { .fd = ds_channel_bell_in(submitter), .events = POLLIN };
            uint64_t count;

            if (ds_channel_sleep(submitter)) {
                assert_int_equal(poll(&bell, 1, 20000), 1);
                (void) !read(bell.fd, &count, sizeof count);
            }
            ds_channel_wake(submitter);
        }
        assert_next(submitter, answered, (answered * 37) % 1000);
        ds_channel_done(submitter);
        answered++;
    }
    assert_int_equal(ds_channel_submit(submitter, &bye, 0), DS_CHANNEL_OK);
    if (ds_channel_bell_due(submitter))
        ds_channel_ring_bell(submitter);
}

static void two_processes_talk(void **state)
{
    (void) state;
    for (size_t c = 0; c < 2; c++) {
        ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
            ds_channel_pair_new(&small, creators[c]);
        pid_t child = fork();
        int status;

        assert_true(child >= 0);
        if (child == 0)
            _exit(echo(pair.server));
        converse(pair.submitter, 1000);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
}

static void *echo_thread(void *server)
{
    return echo(server) == 0 ? NULL : "failed";
}

/* The same with one mapping for both, where the thread sanitizer can watch. */
static void two_threads_talk(void **state)
{
    (void) state;
    for (size_t c = 0; c < 2; c++) {
        ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
            ds_channel_pair_new(&small, creators[c]);
        pthread_t thread;
        void *said;

        ds_channel_pair_alias(&pair);
        start_near_wrap(&pair);
        assert_int_equal(pthread_create(&thread, NULL, echo_thread, pair.server), 0);
        converse(pair.submitter, 1000);
        assert_int_equal(pthread_join(thread, &said), 0);
        assert_null(said);
    }
}

/* One way only, so that nothing but the index that gives room back orders reading before reuse. */

#define STREAM 3000u

static void *post_stream(void *server)
{
    for (uint64_t i = 0; i < STREAM;) {
        if (post(server, i, (i * 53) % 1025, false) == DS_CHANNEL_OK)
            i++;
        else
            (void) sched_yield();
        ds_channel_publish(server);
    }
    return NULL;
}

static void *put_stream(void *submitter)
{
    for (uint64_t i = 0; i < STREAM;) {
        if (put(submitter, i, (i * 53) % 1500) == DS_CHANNEL_OK)
            i++;
        else
            (void) sched_yield();
    }
    return NULL;
}

static void completions_streamed_one_way_are_not_written_over(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    pthread_t thread;

    (void) state;
    ds_channel_pair_alias(&pair);
    start_near_wrap(&pair);
    assert_int_equal(pthread_create(&thread, NULL, post_stream, pair.server), 0);
    for (uint64_t i = 0; i < STREAM; i++) {
        while (!ds_channel_pending(pair.submitter))
            (void) sched_yield();
        assert_next(pair.submitter, i, (i * 53) % 1025);
        ds_channel_done(pair.submitter);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void requests_streamed_one_way_are_not_written_over(void **state)
{
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER);
    pthread_t thread;

    (void) state;
    ds_channel_pair_alias(&pair);
    start_near_wrap(&pair);
    assert_int_equal(pthread_create(&thread, NULL, put_stream, pair.submitter), 0);
    for (uint64_t i = 0; i < STREAM; i++) {
        while (!ds_channel_pending(pair.server))
            (void) sched_yield();
        assert_received(pair.server, i, (i * 53) % 1500);
        ds_channel_release(pair.server);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_arrive_whole_and_in_order_across_the_wrap),
        cmocka_unit_test(completions_arrive_whole_and_in_order_across_the_wrap),
        cmocka_unit_test(a_full_submission_ring_refuses_until_entries_are_released),
        cmocka_unit_test(the_arena_takes_one_payload_of_its_whole_size_and_no_larger),
        cmocka_unit_test(a_reservation_not_submitted_is_given_back),
        cmocka_unit_test(nothing_is_seen_before_it_is_published),
        cmocka_unit_test(entries_are_kept_back_for_the_last_message_of_every_request),
        cmocka_unit_test(response_bytes_are_kept_back_too),
        cmocka_unit_test(a_large_answer_goes_in_pieces),
        cmocka_unit_test(an_entry_arrives_with_all_its_fields),
        cmocka_unit_test(defaults_and_limits_shape_the_layout),
        cmocka_unit_test(heartbeat_and_state_reach_the_submitter),
        cmocka_unit_test(two_processes_talk),
        cmocka_unit_test(two_threads_talk),
        cmocka_unit_test(completions_streamed_one_way_are_not_written_over),
        cmocka_unit_test(requests_streamed_one_way_are_not_written_over),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
