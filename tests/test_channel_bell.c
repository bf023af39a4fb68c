/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: no wake-up is lost, no bell is rung for one who is awake, and the fence in
 * ds_channel_sleep() and ds_channel_bell_due() is what makes the first true.
 * Method: the rules one by one in a single thread; then two threads with real eventfds that would
 * hang for good over one lost wake-up (a time limit turns that into a failure); then the moment
 * that matters alone: one thread publishes and looks at the flag while the other one sets the flag
 * and looks at the index, over and over. Both looking in vain is a lost wake-up, and must never
 * happen; doorbell.c compiled once more without its fence shows that the arrangement can see it.
 * Both sides use one mapping, so that the thread sanitizer sees what they share.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include "proto/base.h"
#include "shm/channel_internal.h"
#include "tests/lib/channel_pair.h"

/* The mutant: the same source with other names and no fence. */
#define ds_channel_sleep      mutant_sleep
#define ds_channel_wake       mutant_wake
#define ds_channel_wake_after mutant_wake_after
#define ds_channel_pending    mutant_pending
#define ds_channel_bell_due   mutant_bell_due
#define ds_channel_bell_in    mutant_bell_in
#define ds_channel_bell_out   mutant_bell_out
#define ds_channel_ring_bell  mutant_ring_bell
#define DS_BELL_FENCE()       ((void) 0)
bool mutant_sleep(struct ds_channel *channel);
void mutant_wake(struct ds_channel *channel);
void mutant_wake_after(struct ds_channel *channel, uint32_t n_completions);
bool mutant_pending(const struct ds_channel *channel);
bool mutant_bell_due(struct ds_channel *channel);
int mutant_bell_in(const struct ds_channel *channel);
int mutant_bell_out(const struct ds_channel *channel);
void mutant_ring_bell(struct ds_channel *channel);
#include "shm/doorbell.c"
#undef ds_channel_sleep
#undef ds_channel_wake
#undef ds_channel_wake_after
#undef ds_channel_pending
#undef ds_channel_bell_due
#undef ds_channel_bell_in
#undef ds_channel_bell_out
#undef ds_channel_ring_bell

static const struct ds_geometry small = {
    .sq_entries = 4, .cq_entries = 8, .arena_bytes = 4096, .rsp_bytes = 4096, .max_inflight = 3
};

#define PAIR()                                                                                     \
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =                                 \
        ds_channel_pair_new(&small, DS_CHANNEL_SERVER)

static int ping(struct ds_channel *submitter)
{
    return ds_channel_submit(submitter, &(struct ds_sqe){ .op = DS_SQE_PING }, 0);
}

static int pong(struct ds_channel *server)
{
    int r = ds_channel_post(server, &(struct ds_cqe){ .type = DS_CQE_PONG }, NULL, 0, false);

    ds_channel_publish(server);
    return r;
}

static void take_all(struct ds_channel *submitter)
{
    const void *payload;
    struct ds_cqe entry;

    while (ds_channel_next(submitter, &entry, &payload) == DS_CHANNEL_OK)
        ds_channel_done(submitter);
}

static unsigned receive_all(struct ds_channel *server)
{
    const void *payload;
    struct ds_sqe entry;
    unsigned n = 0;

    while (ds_channel_receive(server, &entry, &payload) == DS_CHANNEL_OK)
        n++;
    ds_channel_release(server);
    return n;
}

/* --- the rules --- */

static void nobody_rings_for_one_who_is_awake(void **state)
{
    PAIR();

    (void) state;
    assert_int_equal(ping(pair.submitter), 0);
    assert_false(ds_channel_bell_due(pair.submitter));
    assert_int_equal(pong(pair.server), 0);
    assert_false(ds_channel_bell_due(pair.server));
}

static void a_sleeper_is_rung_for_and_one_who_has_work_does_not_sleep(void **state)
{
    PAIR();

    (void) state;
    assert_true(ds_channel_sleep(pair.server));
    assert_false(ds_channel_bell_due(pair.submitter)); /* nothing was done */
    assert_int_equal(ping(pair.submitter), 0);
    assert_true(ds_channel_bell_due(pair.submitter));
    assert_false(ds_channel_bell_due(pair.submitter));
    ds_channel_wake(pair.server);
    assert_false(ds_channel_sleep(pair.server));
    assert_int_equal(receive_all(pair.server), 1);
    assert_true(ds_channel_sleep(pair.server));

    assert_true(ds_channel_sleep(pair.submitter));
    assert_int_equal(pong(pair.server), 0);
    assert_true(ds_channel_bell_due(pair.server));
    ds_channel_wake(pair.submitter);
    assert_false(ds_channel_sleep(pair.submitter));
    take_all(pair.submitter);
    assert_true(ds_channel_sleep(pair.submitter));
}

static void a_sleeping_submitter_is_rung_once_for_many_completions(void **state)
{
    unsigned rings = 0;

    PAIR();
    (void) state;
    assert_true(ds_channel_sleep(pair.submitter));
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(pong(pair.server), 0);
        rings += ds_channel_bell_due(pair.server);
    }
    assert_int_equal(rings, 1);
    ds_channel_wake(pair.submitter);
    take_all(pair.submitter);
    assert_true(ds_channel_sleep(pair.submitter));
    assert_int_equal(pong(pair.server), 0);
    assert_true(ds_channel_bell_due(pair.server)); /* another sleep, another ring */
}

static void a_submitter_can_sleep_until_several_are_there(void **state)
{
    PAIR();

    (void) state;
    ds_channel_wake_after(pair.submitter, 3);
    assert_true(ds_channel_sleep(pair.submitter));
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(pong(pair.server), 0);
        assert_int_equal(ds_channel_bell_due(pair.server), i == 2);
    }
    ds_channel_wake(pair.submitter);
    assert_false(ds_channel_sleep(pair.submitter));
}

static void a_submitter_that_waits_for_more_than_fits_is_woken_when_it_is_full(void **state)
{
    PAIR();

    (void) state;
    ds_channel_wake_after(pair.submitter, 1000); /* 5 can be there: 8 less the 3 kept back */
    assert_true(ds_channel_sleep(pair.submitter));
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(pong(pair.server), 0);
        assert_int_equal(ds_channel_bell_due(pair.server), i == 4);
    }

    ds_channel_wake(pair.submitter); /* likewise where bytes, not entries, run out */
    take_all(pair.submitter);
    assert_true(ds_channel_sleep(pair.submitter));
    for (unsigned i = 0; i < 4; i++) {
        struct ds_cqe entry = { .type = DS_CQE_FINAL };
        uint8_t bytes[1024] = { 0 };
        int r = ds_channel_post(pair.server, &entry, bytes, sizeof bytes, false);

        ds_channel_publish(pair.server);
        assert_int_equal(r, i == 3 ? DS_CHANNEL_FULL : DS_CHANNEL_OK);
        assert_int_equal(ds_channel_bell_due(pair.server), i == 3);
    }
}

static void a_server_refused_room_is_woken_when_there_is_room(void **state)
{
    PAIR();

    (void) state;
    while (pong(pair.server) == DS_CHANNEL_OK)
        ;
    assert_true(ds_channel_sleep(pair.server));
    assert_false(ds_channel_bell_due(pair.submitter));
    take_all(pair.submitter);
    assert_true(ds_channel_bell_due(pair.submitter));
    assert_false(ds_channel_sleep(pair.server)); /* there is room now: try again */
    assert_int_equal(pong(pair.server), DS_CHANNEL_OK);
    assert_true(ds_channel_sleep(pair.server));
    take_all(pair.submitter);
    assert_false(ds_channel_bell_due(pair.submitter)); /* nobody waits for room now */
}

static void a_submitter_refused_room_is_woken_when_there_is_room(void **state)
{
    PAIR();

    (void) state;
    while (ping(pair.submitter) == DS_CHANNEL_OK)
        ;
    assert_true(ds_channel_sleep(pair.submitter));
    assert_false(ds_channel_bell_due(pair.server));
    assert_int_equal(receive_all(pair.server), 4);
    assert_true(ds_channel_bell_due(pair.server));
    assert_false(ds_channel_sleep(pair.submitter));
    assert_int_equal(ping(pair.submitter), DS_CHANNEL_OK);
}

static void draining_does_not_wake_a_sleeping_server_for_good(void **state)
{
    PAIR();

    (void) state;
    assert_true(ds_channel_sleep(pair.server));
    ds_channel_set_state(pair.server, DS_SERVER_DRAINING);
    assert_int_equal(ping(pair.submitter), 0);
    assert_true(ds_channel_bell_due(pair.submitter));
    ds_channel_wake(pair.server);
    assert_int_equal(ds_load(&pair.server->c_hot->sq_flags), DS_SQ_DRAINING);
}

/* --- two threads that would hang --- */

#define ROUNDS   3000u
#define LIMIT_MS 20000

static bool wait_for_bell(struct ds_channel *channel)
{
    struct pollfd bell = { .fd = ds_channel_bell_in(channel), .events = POLLIN };
    uint64_t count;
    bool rung = true;

    if (ds_channel_sleep(channel)) {
        rung = poll(&bell, 1, LIMIT_MS) == 1;
        (void) !read(bell.fd, &count, sizeof count);
    }
    ds_channel_wake(channel);
    return rung;
}

static void ring_if_due(struct ds_channel *channel)
{
    if (ds_channel_bell_due(channel))
        ds_channel_ring_bell(channel);
}

/* Answers every ping with a pong; returns NULL, or the reason why not. */
static void *serve(void *data)
{
    struct ds_channel *server = data;
    unsigned owed = 0;

    for (unsigned served = 0; served < ROUNDS;) {
        if (!ds_channel_pending(server) && !owed && !wait_for_bell(server))
            return "the server was not woken for a request";
        owed += receive_all(server);
        while (owed && pong(server) == DS_CHANNEL_OK) {
            owed--;
            served++;
        }
        ring_if_due(server);
        if (owed && !ds_channel_pending(server) && !wait_for_bell(server))
            return "the server was not woken for room";
    }
    return NULL;
}

static void no_wake_up_is_lost_between_two_threads(void **state)
{
    unsigned sent = 0, answered = 0;
    const void *payload, *wrong;
    struct ds_cqe entry;
    pthread_t thread;
    void *said;

    PAIR();
    (void) state;
    ds_channel_pair_alias(&pair);
    assert_int_equal(pthread_create(&thread, NULL, serve, pair.server), 0);
    while (answered < ROUNDS) {
        unsigned burst = 1 + sent % 6; /* from one at a time to more than fits */

        while (sent < ROUNDS && burst-- && ping(pair.submitter) == DS_CHANNEL_OK)
            sent++;
        ring_if_due(pair.submitter);
        if (!ds_channel_pending(pair.submitter))
            assert_true(wait_for_bell(pair.submitter));
        while (ds_channel_next(pair.submitter, &entry, &payload) == DS_CHANNEL_OK) {
            ds_channel_done(pair.submitter);
            answered++;
        }
        ring_if_due(pair.submitter);
    }
    assert_int_equal(pthread_join(thread, &said), 0);
    wrong = said;
    assert_string_equal(wrong ? wrong : "", "");
}

/* --- the moment that matters, alone --- */

struct race {
    struct ds_channel_pair *pair;
    bool (*sleep)(struct ds_channel *);
    bool (*bell_due)(struct ds_channel *);
    unsigned rounds;
    alignas(128) _Atomic unsigned at_submitter, at_server; /* rounds begun */
    alignas(128) _Atomic unsigned past_submitter, past_server;
    bool rings;  /* what the submitter saw this round */
    bool sleeps; /* what the server saw */
};

/* Both arrive before either goes on; yields where the other one does not run. */
static void meet(_Atomic unsigned *mine, const _Atomic unsigned *others, unsigned round)
{
    atomic_store_explicit(mine, round, memory_order_release);
    for (unsigned spins = 0; atomic_load_explicit(others, memory_order_acquire) < round; spins++)
        if (spins > 2000)
            (void) sched_yield();
}

static void *race_server(void *data)
{
    struct race *race = data;

    for (unsigned round = 1; round <= race->rounds; round++) {
        ds_channel_wake(race->pair->server);
        meet(&race->at_server, &race->at_submitter, round);
        race->sleeps = race->sleep(race->pair->server);
        meet(&race->past_server, &race->past_submitter, round);
        (void) receive_all(race->pair->server);
    }
    return NULL;
}

static unsigned race_run(struct race *race)
{
    unsigned lost = 0;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, race_server, race), 0);
    for (unsigned round = 1; round <= race->rounds; round++) {
        meet(&race->at_submitter, &race->at_server, round);
        while (ping(race->pair->submitter) != DS_CHANNEL_OK)
            ;
        race->rings = race->bell_due(race->pair->submitter);
        meet(&race->past_submitter, &race->past_server, round);
        lost += race->sleeps && !race->rings;
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    return lost;
}

static unsigned race_many(bool (*sleep_fn)(struct ds_channel *),
                          bool (*bell_due)(struct ds_channel *), uint64_t limit_nsec,
                          bool until_lost)
{
    uint64_t end = ds_now_nsec() + limit_nsec;
    unsigned lost = 0;

    do {
        PAIR();
        struct race race = {
            .pair = &pair, .sleep = sleep_fn, .bell_due = bell_due, .rounds = 5000
        };

        ds_channel_pair_alias(&pair);
        lost += race_run(&race);
    } while (ds_now_nsec() < end && !(until_lost && lost));
    return lost;
}

static void sleeping_and_publishing_at_once_never_miss_each_other(void **state)
{
    (void) state;
    assert_int_equal(race_many(ds_channel_sleep, ds_channel_bell_due, 1000000000u, false), 0);
}

static void without_the_fence_they_do(void **state)
{
    (void) state;
    /* A matter of two processors' store buffers: on one processor, or on a busy machine, it may
     * not happen in the time, which says nothing against the fence. */
    if (race_many(mutant_sleep, mutant_bell_due, 4000000000u, true) == 0)
        print_message("note: no wake-up was lost without the fence either: not shown this time\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_rings_for_one_who_is_awake),
        cmocka_unit_test(a_sleeper_is_rung_for_and_one_who_has_work_does_not_sleep),
        cmocka_unit_test(a_sleeping_submitter_is_rung_once_for_many_completions),
        cmocka_unit_test(a_submitter_can_sleep_until_several_are_there),
        cmocka_unit_test(a_submitter_that_waits_for_more_than_fits_is_woken_when_it_is_full),
        cmocka_unit_test(a_server_refused_room_is_woken_when_there_is_room),
        cmocka_unit_test(a_submitter_refused_room_is_woken_when_there_is_room),
        cmocka_unit_test(draining_does_not_wake_a_sleeping_server_for_good),
        cmocka_unit_test(no_wake_up_is_lost_between_two_threads),
        cmocka_unit_test(sleeping_and_publishing_at_once_never_miss_each_other),
        cmocka_unit_test(without_the_fence_they_do),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
