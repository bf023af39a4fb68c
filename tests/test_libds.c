/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a program that uses libds gets every event of every request once, in order, by whatever
 * way it waits; and what is wrong is said before it goes out.
 * Method: libds against tests/lib/fake_daemon.c; ds_fd() is watched with epoll. The library's
 * resumption has a file of its own.
 */
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <cmocka.h>

#include "proto/base.h"
#include "tests/lib/streams.h"

/* --- the plain path ----------------------------------------------------------------------------
 */

static void test_events_of_several_streams_come_whole_and_in_order(void **state)
{
    struct fixture *f = *state;
    struct stream streams[STREAMS];

    fixture_dial(f, 0);
    for (uint64_t i = 0; i < STREAMS; i++)
        stream_submit(f, &streams[i], 100 + i, 20 + (uint32_t) i);
    streams_collect(f, streams, STREAMS);
    for (uint32_t i = 0; i < STREAMS; i++) {
        stream_check(&streams[i], 20 + i);
        assert_int_equal(streams[i].end.prompt_tokens, 7);
    }
    assert_int_equal(atomic_load(&f->plan->lives), 1);
    assert_int_equal(atomic_load(&f->plan->wrong), 0);
}

static void test_more_requests_than_the_arena_holds_go_through(void **state)
{
    struct fixture *f = *state;
    ds_cleanup(ds_free_p) char *large = malloc(30001);
    struct stream streams[8];

    memset(large, 'a', 30000);
    large[30000] = '\0';
    fixture_dial(f, 0);
    atomic_store(&f->plan->frozen, 1); /* so that the arena (64 KiB) fills */
    for (uint64_t i = 0; i < 8; i++) {
        struct ds_request request = stream_request(i + 1, 5);

        memset(&streams[i], 0, sizeof streams[i]);
        request.prompt = large;
        streams[i].seed = i + 1;
        assert_int_equal(ds_submit(f->ds, &request, &streams[i].id), 0);
    }
    atomic_store(&f->plan->frozen, 0);
    fake_daemon_poke(f->fake);
    streams_collect(f, streams, 8);
    for (int i = 0; i < 8; i++)
        stream_check(&streams[i], 5);
}

static void test_logprobs_come_as_the_packed_message(void **state)
{
    struct fixture *f = *state;
    struct ds_request request = stream_request(5, 3);
    struct ds_event event;
    uint64_t id;

    fixture_dial(f, 0);
    request.logprobs = 2;
    assert_int_equal(ds_submit(f->ds, &request, &id), 0);
    for (uint32_t i = 0; i < 3; i++) {
        ds_cleanup(ds_message_free_p) Ds__TokenChunk *chunk = NULL;

        assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
        assert_int_equal(event.type, DS_EVENT_TOKENS);
        assert_int_equal(event.n_ids, 1);
        assert_int_equal(event.ids[0], fake_token(5, i));
        assert_int_equal(ds_message_unpack(&ds__token_chunk__descriptor, event.message,
                                           event.message_size, &chunk),
                         0);
        assert_int_equal(chunk->n_logprobs, 1);
    }
}

static void test_a_chat_comes_with_its_pieces_and_whole(void **state)
{
    struct fixture *f = *state;
    struct ds_chat_turn turn = { "user", "hello" };
    struct ds_request request = stream_request(5, 3);
    struct ds_event event;
    uint64_t id;

    fixture_dial(f, 0);
    request.prompt = NULL;
    request.turns = &turn;
    request.n_turns = 1;
    assert_int_equal(ds_submit(f->ds, &request, &id), 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
        assert_int_equal(event.type, DS_EVENT_TOKENS);
        assert_int_equal(event.ids[0], fake_token(5, i));
        assert_int_equal(event.n_pieces, 2);
        assert_int_equal(event.pieces[0].part, DS_PART_IS_REASONING);
        assert_int_equal(event.pieces[0].size, event.text_size - 1);
        assert_int_equal(event.pieces[1].part, DS_PART_IS_MARKUP);
    }
    assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
    assert_int_equal(event.type, DS_EVENT_FINAL);
    assert_int_equal(event.n_pieces, 0);
    assert_int_equal(event.reasoning_size, 3);
    assert_memory_equal(event.reasoning, "why", 3);
    assert_int_equal(event.content_size, 0);
    assert_non_null(event.content);
    assert_int_equal(event.n_calls, 1);
    assert_string_equal(event.calls[0].id, "call_0");
    assert_string_equal(event.calls[0].name, "f");
    assert_int_equal(event.calls[0].arguments_size, 2);
    assert_memory_equal(event.calls[0].arguments, "{}", 2);
}

static void test_a_payload_in_pieces_is_put_together(void **state)
{
    struct fixture *f = *state;
    const int pieces[] = { 4, 5, 9, 39 };

    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        struct stream streams[2];

        atomic_store(&f->plan->piece, pieces[i]);
        fixture_dial(f, 0);
        stream_submit(f, &streams[0], 7, 12);
        stream_submit(f, &streams[1], 8, 12);
        streams_collect(f, streams, 2);
        stream_check(&streams[0], 12);
        stream_check(&streams[1], 12);
        assert_int_equal(atomic_load(&f->plan->lives), (int) i + 1);
        fixture_hang_up(f);
    }
}

static void test_a_reply_larger_than_the_ring_arrives(void **state)
{
    struct fixture *f = *state;
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__DetokenizeRequest detokenize = DS__DETOKENIZE_REQUEST__INIT;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    uint32_t ids[200] = { 0 };

    fixture_dial(f, 0);
    tokens.n_ids = 200;
    tokens.ids = ids;
    detokenize.tokens = &tokens;
    reply = control_reply(f, control_send(f, DS__REQUEST__OP_DETOKENIZE, &detokenize));
    assert_int_equal(reply->detokenize->text.len, 200000);
    assert_int_equal(reply->detokenize->text.data[199999], 'x');
}

static void test_a_load_reports_progress_before_its_end(void **state)
{
    struct fixture *f = *state;
    Ds__LoadRequest load = DS__LOAD_REQUEST__INIT;
    struct ds_event event;

    fixture_dial(f, 0);
    (void) control_send(f, DS__REQUEST__OP_LOAD, &load);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
        assert_int_equal(event.type, DS_EVENT_PROGRESS);
        assert_string_equal(event.text, "loading");
        assert_true(event.fraction == i / 4.0);
    }
    assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
    assert_int_equal(event.type, DS_EVENT_FINAL);
}

static void test_a_ping_comes_back(void **state)
{
    struct fixture *f = *state;
    struct ds_event event;
    uint64_t id;

    fixture_dial(f, 0);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(ds_ping(f->ds, &id), 0);
        assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
        assert_int_equal(event.type, DS_EVENT_PONG);
        assert_int_equal(event.id, id);
    }
}

static void test_a_cancelled_request_still_ends(void **state)
{
    struct fixture *f = *state;
    struct stream stream;

    atomic_store(&f->plan->credits, 4);
    fixture_dial(f, 0);
    stream_submit(f, &stream, 9, 100);
    streams_take(f, &stream, 1, 4);
    assert_int_equal(ds_cancel(f->ds, stream.id), 0);
    assert_int_equal(ds_cancel(f->ds, stream.id), 0); /* twice is once */
    streams_collect(f, &stream, 1);
    assert_int_equal(stream.end.type, DS_EVENT_FINAL);
    assert_int_equal(stream.end.reason, DS_REASON_CANCELLED);
    assert_int_equal(stream.end.completion_tokens, 4);
    assert_int_equal(atomic_load(&f->plan->cancels), 1);
    assert_int_equal(ds_cancel(f->ds, stream.id), 0); /* unknown by now */
    assert_int_equal(ds_cancel(f->ds, 12345), 0);
}

/* --- waiting -----------------------------------------------------------------------------------
 */

static bool readable(int fd, int timeout_ms)
{
    struct epoll_event event = { .events = EPOLLIN };
    int epoll = epoll_create1(EPOLL_CLOEXEC), n;

    assert_int_equal(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    n = epoll_wait(epoll, &event, 1, timeout_ms);
    (void) close(epoll);
    return n == 1;
}

static void drain_to_none(struct fixture *f, struct stream *streams, size_t n)
{
    struct ds_event event;
    int r;

    while ((r = ds_next(f->ds, &event, 0)) == 0)
        streams_feed(streams, n, &event);
    assert_int_equal(r, DS_NONE);
}

static void test_the_descriptor_is_readable_exactly_while_there_is_work(void **state)
{
    struct fixture *f = *state;
    struct stream stream;
    struct ds_event event;
    int fd;

    atomic_store(&f->plan->credits, 0);
    fixture_dial(f, 0);
    fd = ds_fd(f->ds);
    drain_to_none(f, NULL, 0);
    assert_false(readable(fd, 0));

    stream_submit(f, &stream, 4, 6);
    for (int i = 0; i < 3; i++) { /* ACCEPTED, which is no event, may wake */
        (void) readable(fd, 50);
        drain_to_none(f, &stream, 1);
    }
    assert_false(readable(fd, 50));

    atomic_store(&f->plan->credits, 3);
    fake_daemon_poke(f->fake);
    for (int i = 0; i < 3; i++) { /* level-triggered: one event at a time loses nothing */
        assert_true(readable(fd, PATIENT));
        assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
        streams_feed(&stream, 1, &event);
    }
    drain_to_none(f, &stream, 1);
    assert_false(readable(fd, 50));

    atomic_store(&f->plan->credits, -1);
    fake_daemon_poke(f->fake);
    while (!stream.n_ends) {
        assert_true(readable(fd, PATIENT));
        if (ds_next(f->ds, &event, 0) == 0)
            streams_feed(&stream, 1, &event);
    }
    stream_check(&stream, 6);
    drain_to_none(f, NULL, 0);
    assert_false(readable(fd, 50));
    assert_int_equal(ds_fd(f->ds), fd);
}

static void test_whoever_turns_to_the_descriptor_late_misses_nothing(void **state)
{
    struct fixture *f = *state;
    struct stream stream;

    fixture_dial(f, 0);
    stream_submit(f, &stream, 4, 3);
    streams_take(f, &stream, 1, 1);
    (void) poll(NULL, 0, 50); /* the rest lies in the ring, and nobody will ring for it again */
    assert_true(readable(ds_fd(f->ds), PATIENT));
    drain_to_none(f, &stream, 1);
    stream_check(&stream, 3);
}

static void test_an_event_loop_lives_through_a_restart(void **state)
{
    struct fixture *f = *state;
    struct stream streams[STREAMS];
    size_t ended = 0;
    int fd;

    atomic_store(&f->plan->drop_after, 15);
    atomic_store(&f->plan->down_msec, 150);
    fixture_dial(f, 0);
    fd = ds_fd(f->ds);
    for (uint64_t i = 0; i < STREAMS; i++)
        stream_submit(f, &streams[i], 70 + i, 15);
    while (ended < STREAMS) {
        assert_true(readable(fd, PATIENT));
        drain_to_none(f, streams, STREAMS);
        ended = 0;
        for (int i = 0; i < STREAMS; i++)
            ended += (size_t) streams[i].n_ends;
    }
    for (int i = 0; i < STREAMS; i++)
        stream_check(&streams[i], 15);
    assert_int_equal(ds_fd(f->ds), fd);
    assert_int_equal(atomic_load(&f->plan->wrong), 0);
    assert_int_equal(atomic_load(&f->plan->lives), 2);
}

static void test_a_wait_ends_with_its_time(void **state)
{
    struct fixture *f = *state;
    struct ds_event event;
    uint64_t start;

    fixture_dial(f, 0);
    start = ds_now_nsec();
    assert_int_equal(ds_next(f->ds, &event, 60), DS_NONE);
    assert_true(ds_now_nsec() - start >= 60 * 1000000u);
    start = ds_now_nsec();
    assert_int_equal(ds_next(f->ds, &event, 0), DS_NONE);
    assert_true(ds_now_nsec() - start < 1000 * 1000000u);
}

static void nothing(int number)
{
    (void) number;
}

static void test_a_signal_handler_ends_a_wait(void **state)
{
    struct fixture *f = *state;
    struct sigaction action = { .sa_handler = nothing };
    struct itimerval soon = { .it_value.tv_usec = 50000 };
    struct ds_event event;

    fixture_dial(f, 0);
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    assert_int_equal(ds_next(f->ds, &event, PATIENT), -EINTR);
}

/* --- refusals ----------------------------------------------------------------------------------
 */

static void test_connecting_to_nothing_names_the_socket(void **state)
{
    struct fixture *f = *state;
    struct ds_connect_options options = { .struct_size = sizeof options, .socket = "/nowhere/s" };
    char longest[200];

    assert_int_equal(ds_connect(&f->ds, &options), -ENOENT);
    assert_null(f->ds);
    assert_non_null(strstr(ds_error_text(NULL), "/nowhere/s"));
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    options.socket = longest;
    assert_int_equal(ds_connect(&f->ds, &options), -ENAMETOOLONG);
    f->fake = fake_daemon_stop(f->fake);
    options.socket = f->path;
    assert_int_equal(ds_connect(&f->ds, &options), -ENOENT);
}

static void test_a_rejection_becomes_its_errno_with_its_words(void **state)
{
    struct fixture *f = *state;
    const struct ds_connect_options options = { .struct_size = sizeof options, .socket = f->path };
    const int codes[][2] = { { DS__ERROR__CODE__BUSY, -EBUSY },
                             { DS__ERROR__CODE__PERMISSION, -EACCES },
                             { DS__ERROR__CODE__UNSUPPORTED, -EPROTONOSUPPORT },
                             { DS__ERROR__CODE__DRAINING, -ECONNREFUSED } };

    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        atomic_store(&f->plan->reject, codes[i][0]);
        assert_int_equal(ds_connect(&f->ds, &options), codes[i][1]);
        assert_non_null(strstr(ds_error_text(NULL), "refused by the test"));
    }
}

static void test_a_daemon_that_does_not_answer_is_given_up(void **state)
{
    struct fixture *f = *state;
    const struct ds_connect_options options = { .struct_size = sizeof options, .socket = f->path };

    atomic_store(&f->plan->mute, 1);
    assert_int_equal(ds_connect(&f->ds, &options), -ETIMEDOUT);
    assert_non_null(strstr(ds_error_text(NULL), "does not answer"));
}

static void test_the_socket_comes_from_the_environment(void **state)
{
    struct fixture *f = *state;
    char directory[160], path[200];

    assert_int_equal(setenv("DSD_SOCKET", f->path, 1), 0);
    assert_int_equal(ds_connect(&f->ds, NULL), 0);
    fixture_hang_up(f);
    assert_int_equal(unsetenv("DSD_SOCKET"), 0);

    (void) snprintf(directory, sizeof directory, "%s/dsd", f->directory);
    (void) snprintf(path, sizeof path, "%s/dsd.sock", directory);
    assert_int_equal(mkdir(directory, 0700), 0);
    assert_int_equal(symlink(f->path, path), 0);
    assert_int_equal(setenv("XDG_RUNTIME_DIR", f->directory, 1), 0);
    assert_int_equal(ds_connect(&f->ds, NULL), 0);
    assert_int_equal(unsetenv("XDG_RUNTIME_DIR"), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

static void test_bad_requests_are_refused_before_they_go_out(void **state)
{
    struct fixture *f = *state;
    struct ds_request request = stream_request(1, 1);
    const char *stops[17];
    uint64_t id;

    fixture_dial(f, 0);
    request.n_tokens = 1;
    request.tokens = &(uint32_t){ 1 };
    assert_int_equal(ds_submit(f->ds, &request, &id), -EINVAL);
    assert_non_null(strstr(ds_error_text(f->ds), "exactly one"));
    request = stream_request(1, 1);
    request.attachment = 3;
    assert_int_equal(ds_submit(f->ds, &request, &id), -EINVAL);
    request = stream_request(1, 1);
    for (int i = 0; i < 17; i++)
        stops[i] = "x";
    request.stop = stops;
    request.n_stop = 17;
    assert_int_equal(ds_submit(f->ds, &request, &id), -EINVAL);
    request = stream_request(1, 1);
    request.struct_size = 3;
    assert_int_equal(ds_submit(f->ds, &request, &id), -EINVAL);
    assert_int_equal(ds_send(f->ds, "\xff\xff\xff", 3, &id), -EINVAL);
    assert_int_equal(ds_attach(f->ds, "none", NULL, 0, &id), -EINVAL);
}

static void test_a_request_larger_than_the_arena_says_so(void **state)
{
    struct fixture *f = *state;
    ds_cleanup(ds_free_p) char *large = malloc(70001);
    struct ds_request request = stream_request(1, 1);
    uint64_t id;

    memset(large, 'a', 70000);
    large[70000] = '\0';
    request.prompt = large;
    fixture_dial(f, 0);
    assert_int_equal(ds_submit(f->ds, &request, &id), -EMSGSIZE);
    assert_non_null(strstr(ds_error_text(f->ds), "arena_bytes"));
}

static void test_as_many_requests_as_granted_and_no_more(void **state)
{
    struct fixture *f = *state;
    struct ds_request request = stream_request(1, 10);
    struct ds_event event;
    int r, n = 0;
    uint64_t id;

    atomic_store(&f->plan->credits, 0);
    fixture_dial(f, 0);
    while ((r = ds_submit(f->ds, &request, &id)) == 0) {
        n++;
        assert_true(n < 10000);
        (void) ds_next(f->ds, &event, 0);
    }
    assert_int_equal(r, -EAGAIN);
    assert_int_equal(n, 64);
}

static void test_an_error_names_its_code_and_line(void **state)
{
    struct fixture *f = *state;
    struct ds_request request = stream_request(1, 1);
    struct stream stream = { 0 };

    fixture_dial(f, 0);
    request.model = "missing";
    assert_int_equal(ds_submit(f->ds, &request, &stream.id), 0);
    streams_collect(f, &stream, 1);
    assert_int_equal(stream.end.type, DS_EVENT_ERROR);
    assert_int_equal(stream.end.error_code, DS__ERROR__CODE__NOT_FOUND);
    assert_non_null(strstr(stream.end_text, "no such model"));
}

static void test_closing_says_goodbye(void **state)
{
    struct fixture *f = *state;
    struct stream stream;

    atomic_store(&f->plan->credits, 0);
    fixture_dial(f, 0);
    stream_submit(f, &stream, 1, 10);
    (void) poll(NULL, 0, 20);
    fixture_hang_up(f);
    ds_close(NULL);
}

/* The promise of at most fifteen calls, kept by the linker's map and by ds.h. */
static void test_the_library_exports_its_calls_and_nothing_else(void **state)
{
    char *const calls[] = { "ds_attach",  "ds_attach_named", "ds_cancel", "ds_close",
                            "ds_connect", "ds_error_text",   "ds_fd",     "ds_next",
                            "ds_ping",    "ds_send",         "ds_submit" };
    char program[512], path[600], command[700], line[256];
    ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
    FILE *nm;
    size_t n = 0;

    (void) state;
    assert_true(size > 0);
    program[size] = '\0';
    *strrchr(program, '/') = '\0';
    (void) snprintf(path, sizeof path, "%s/../libds.so.0", program);
    if (access(path, R_OK) < 0) {
        printf("skip: %s is not built: exported symbols are not checked\n", path);
        return;
    }
    (void) snprintf(command, sizeof command, "nm -D --defined-only '%s' | grep ' [TDBRW] '", path);
    nm = popen(command, "r");
    assert_non_null(nm);
    while (fgets(line, sizeof line, nm)) {
        char *name = strrchr(line, ' ') + 1;
        char *version = strstr(name, "@@LIBDS_0.1");

        assert_non_null(version);
        *version = '\0';
        assert_true(n < sizeof calls / sizeof *calls);
        assert_string_equal(name, calls[n]);
        n++;
    }
    assert_int_equal(pclose(nm), 0);
    assert_int_equal(n, sizeof calls / sizeof *calls);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(test_##name, fixture_set_up, fixture_tear_down)
    const struct CMUnitTest tests[] = {
        T(events_of_several_streams_come_whole_and_in_order),
        T(more_requests_than_the_arena_holds_go_through),
        T(logprobs_come_as_the_packed_message),
        T(a_chat_comes_with_its_pieces_and_whole),
        T(a_payload_in_pieces_is_put_together),
        T(a_reply_larger_than_the_ring_arrives),
        T(a_load_reports_progress_before_its_end),
        T(a_ping_comes_back),
        T(a_cancelled_request_still_ends),
        T(the_descriptor_is_readable_exactly_while_there_is_work),
        T(whoever_turns_to_the_descriptor_late_misses_nothing),
        T(an_event_loop_lives_through_a_restart),
        T(a_wait_ends_with_its_time),
        T(a_signal_handler_ends_a_wait),
        T(connecting_to_nothing_names_the_socket),
        T(a_rejection_becomes_its_errno_with_its_words),
        T(a_daemon_that_does_not_answer_is_given_up),
        T(the_socket_comes_from_the_environment),
        T(bad_requests_are_refused_before_they_go_out),
        T(a_request_larger_than_the_arena_says_so),
        T(as_many_requests_as_granted_and_no_more),
        T(an_error_names_its_code_and_line),
        T(closing_says_goodbye),
        cmocka_unit_test(test_the_library_exports_its_calls_and_nothing_else),
    };

    return cmocka_run_group_tests_name("libds", tests, NULL, NULL);
}
