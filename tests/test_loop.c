/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: both backends of the loop behave alike: doorbells that nobody reads, bells that never
 * block, watches that end at once though the kernel still holds them, timers in order.
 * Method: every test runs on io_uring and on epoll; the io_uring half says so and is left out where
 * this machine forbids it.
 */
#include "daemon/loop.h"
#include "proto/base.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct seen {
    struct ds_loop *loop;
    struct ds_watch *watch;
    unsigned calls;
    int last;
    bool remove_self;
};

static void note(void *owner, int result)
{
    struct seen *seen = owner;

    seen->calls++;
    seen->last = result;
    if (seen->remove_self)
        seen->watch = ds_watch_remove(seen->watch);
}

static struct ds_loop *open_loop(void **state)
{
    const enum ds_loop_backend *backend = *state;
    struct ds_loop *loop = NULL;
    struct ds_error why;

    if (ds_loop_new(&loop, *backend, &why) < 0) {
        print_message("skip: %s: this backend is not tested here\n", why.text);
        skip();
    }
    return loop;
}

static void turn(struct ds_loop *loop)
{
    assert_true(ds_loop_turn(loop, false) >= 0);
}

static void poke(int fd, uint64_t n)
{
    assert_int_equal(write(fd, &n, sizeof n), sizeof n);
}

static void every_ring_is_heard_though_nobody_reads(void **state)
{
    struct ds_loop *loop = open_loop(state);
    int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct seen seen = { 0 };
    unsigned before;

    assert_int_equal(ds_loop_watch(loop, DS_WATCH_BELL, bell, note, &seen, &seen.watch), 0);
    turn(loop);
    for (int i = 0; i < 100; i++) {
        before = seen.calls;
        poke(bell, 1);
        assert_true(ds_loop_turn(loop, true) > 0);
        assert_true(seen.calls > before);
    }
    before = seen.calls;
    for (int i = 0; i < 1000; i++) /* a storm is one event, or few */
        poke(bell, 1);
    for (int i = 0; i < 10; i++)
        turn(loop);
    assert_in_range(seen.calls, before + 1, before + 10);
    before = seen.calls;
    for (int i = 0; i < 10; i++) /* and then silence, full as it is */
        turn(loop);
    assert_int_equal(seen.calls, before);
    (void) ds_watch_remove(seen.watch);
    (void) ds_loop_free(loop);
    (void) close(bell);
}

static void a_readable_descriptor_is_reported_until_it_is_read(void **state)
{
    struct ds_loop *loop = open_loop(state);
    struct seen seen = { 0 };
    int pair[2];
    char byte;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(ds_loop_watch(loop, DS_WATCH_READ, pair[0], note, &seen, &seen.watch), 0);
    turn(loop);
    assert_int_equal(seen.calls, 0);
    assert_int_equal(write(pair[1], "x", 1), 1);
    for (int i = 0; i < 3; i++)
        assert_true(ds_loop_turn(loop, true) > 0);
    assert_true(seen.calls >= 3);
    assert_true(seen.last & POLLIN);
    assert_int_equal(read(pair[0], &byte, 1), 1);
    turn(loop); /* may report once more what was there when it was armed */
    seen.calls = 0;
    turn(loop);
    assert_int_equal(seen.calls, 0);
    (void) close(pair[1]);
    assert_true(ds_loop_turn(loop, true) > 0);
    assert_true(seen.last & (POLLIN | POLLHUP));
    (void) ds_watch_remove(seen.watch);
    (void) ds_loop_free(loop);
    (void) close(pair[0]);
}

static void a_removed_watch_is_never_called(void **state)
{
    struct ds_loop *loop = open_loop(state);
    struct seen seen[64];
    int bells[64];

    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 64; i++) {
            seen[i] = (struct seen){ .remove_self = i % 3 == 0 };
            bells[i] = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
            assert_int_equal(ds_loop_watch(loop, i % 2 ? DS_WATCH_BELL : DS_WATCH_READ, bells[i],
                                           note, &seen[i], &seen[i].watch),
                             0);
        }
        turn(loop);
        for (int i = 0; i < 64; i++) { /* remove, close and forget at once */
            seen[i].watch = ds_watch_remove(seen[i].watch);
            (void) close(bells[i]);
            memset(&seen[i], 0xee, sizeof seen[i]);
        }
        turn(loop);
        for (int i = 0; i < 64; i++)
            assert_int_equal(seen[i].calls, 0xeeeeeeee);
    }
    (void) ds_loop_free(loop);
}

static void a_saturated_bell_blocks_nobody(void **state)
{
    struct ds_loop *loop = open_loop(state);
    int full = eventfd(0, EFD_CLOEXEC), other = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct ds_watch *full_bell, *other_bell;
    uint64_t began = ds_now_nsec(), count;

    poke(full, UINT64_MAX - 1); /* and blocking: a write by write(2) would never return */
    assert_int_equal(ds_loop_bell(loop, full, &full_bell), 0);
    assert_int_equal(ds_loop_bell(loop, other, &other_bell), 0);
    for (int i = 0; i < 100; i++) {
        ds_bell_ring(full_bell);
        ds_bell_ring(other_bell);
        turn(loop);
        assert_int_equal(read(other, &count, sizeof count), sizeof count);
    }
    full_bell = ds_watch_remove(full_bell);
    other_bell = ds_watch_remove(other_bell);
    turn(loop);
    assert_true(ds_now_nsec() - began < 5000000000u);
    (void) ds_loop_free(loop);
    (void) close(full);
    (void) close(other);
}

static void rings_between_two_turns_reach_a_reader(void **state)
{
    struct ds_loop *loop = open_loop(state);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct ds_watch *bell;
    uint64_t count;

    assert_int_equal(ds_loop_bell(loop, fd, &bell), 0);
    for (int i = 0; i < 50; i++) {
        ds_bell_ring(bell);
        ds_bell_ring(bell); /* while the first is out: rung once more after it */
        ds_loop_flush(loop);
        turn(loop);
        turn(loop);
        assert_int_equal(read(fd, &count, sizeof count), sizeof count);
        assert_in_range(count, 1, 2);
    }
    (void) ds_watch_remove(bell);
    (void) ds_loop_free(loop);
    (void) close(fd);
}

static void connections_are_accepted_one_by_one(void **state)
{
    struct ds_loop *loop = open_loop(state);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct seen seen = { 0 };

    (void) snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "ds-loop-%d-%s", getpid(),
                    ds_loop_name(loop));
    assert_int_equal(bind(listener, (struct sockaddr *) &address, sizeof address), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(ds_loop_watch(loop, DS_WATCH_ACCEPT, listener, note, &seen, &seen.watch), 0);
    for (int i = 0; i < 10; i++) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

        assert_int_equal(connect(fd, (struct sockaddr *) &address, sizeof address), 0);
        seen.last = -1;
        assert_true(ds_loop_turn(loop, true) > 0);
        assert_true(seen.last >= 0);
        assert_true(fcntl(seen.last, F_GETFL) & O_NONBLOCK);
        assert_true(fcntl(seen.last, F_GETFD) & FD_CLOEXEC);
        (void) close(seen.last);
        (void) close(fd);
    }
    (void) ds_watch_remove(seen.watch);
    (void) ds_loop_free(loop);
    (void) close(listener);
}

struct ticks {
    struct ds_loop *loop;
    struct ds_timer timers[200];
    uint64_t last;
    unsigned fired;
    bool disorder;
};

static void tick(void *owner)
{
    struct ticks *ticks = owner;
    uint64_t now = ds_now_nsec();

    ticks->fired++;
    ticks->disorder |= now < ticks->last;
    ticks->last = now;
}

static void timers_fire_in_order_and_not_after_clear(void **state)
{
    struct ticks ticks = { .loop = open_loop(state) };
    uint64_t now = ds_now_nsec();
    unsigned seed = 3;

    for (unsigned i = 0; i < 200; i++)
        assert_int_equal(ds_timer_set(ticks.loop, &ticks.timers[i],
                                      now + (unsigned) rand_r(&seed) % 20000000u, tick, &ticks),
                         0);
    for (unsigned i = 0; i < 200; i += 2)
        ds_timer_clear(ticks.loop, &ticks.timers[i]);
    for (unsigned i = 1; i < 200; i += 4) /* moved, not doubled */
        assert_int_equal(ds_timer_set(ticks.loop, &ticks.timers[i], now + 25000000u, tick, &ticks),
                         0);
    while (ticks.fired < 100)
        assert_true(ds_loop_turn(ticks.loop, true) >= 0);
    assert_true(ds_now_nsec() >= now + 25000000u);
    assert_false(ticks.disorder);
    turn(ticks.loop);
    assert_int_equal(ticks.fired, 100);
    (void) ds_loop_free(ticks.loop);
}

static void epoll_is_taken_where_it_is_asked_for(void **state)
{
    struct ds_loop *loop;
    struct ds_error why;

    (void) state;
    assert_int_equal(ds_loop_new(&loop, DS_LOOP_EPOLL, &why), 0);
    assert_string_equal(ds_loop_name(loop), "epoll");
    (void) ds_loop_free(loop);
    assert_int_equal(ds_loop_new(&loop, DS_LOOP_AUTO, &why), 0);
    assert_true(strcmp(ds_loop_name(loop), "io_uring") == 0 || why.text[0]); /* says why not */
    (void) ds_loop_free(loop);
}

static enum ds_loop_backend uring = DS_LOOP_URING, epoll = DS_LOOP_EPOLL;

#define BOTH(name) cmocka_unit_test_prestate(name, &uring), cmocka_unit_test_prestate(name, &epoll)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(every_ring_is_heard_though_nobody_reads),
        BOTH(a_readable_descriptor_is_reported_until_it_is_read),
        BOTH(a_removed_watch_is_never_called),
        BOTH(a_saturated_bell_blocks_nobody),
        BOTH(rings_between_two_turns_reach_a_reader),
        BOTH(connections_are_accepted_one_by_one),
        BOTH(timers_fire_in_order_and_not_after_clear),
        cmocka_unit_test(epoll_is_taken_where_it_is_asked_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
