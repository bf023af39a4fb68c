/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: whatever a client does to its regions, its socket and its doorbells, dsd lives, other
 * clients are served, and nothing piles up.
 * Method: hostile clients against the real build/dsd; after each attack an honest client must get
 * its answer, and at the end dsd holds as many descriptors and (nearly) as much memory as before.
 */
#include "proto/base.h"
#include "shm/channel_internal.h"
#include "shm/handshake.h"
#include "tests/lib/dsd_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char *const models[] = { "alpha", "ok", NULL };
static const char config[] = "[dsd]\nhandshake_sec = 1\nstall_sec = 1\nreconnect_grace_sec = 1\n"
                             "[limits]\nclients_per_user = 12\nrequests_per_client = 8\n"
                             "region_bytes_per_user = 64M\narena_bytes_max = 8M\n";

struct fixture {
    struct dsd_process dsd;
    struct raw_client honest;
};

static int begin_with(void **state, const char *loop)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    (void) signal(SIGPIPE, SIG_IGN);
    dsd_start(&f->dsd, loop, config, models);
    assert_int_equal(raw_connect(&f->honest, f->dsd.socket, NULL), 0);
    return 0;
}

static int begin_uring(void **state)
{
    return begin_with(state, "auto");
}

static int begin_epoll(void **state)
{
    return begin_with(state, "epoll");
}

static int end(void **state)
{
    struct fixture *f = *state;

    raw_close(&f->honest, true);
    assert_int_equal(dsd_end(&f->dsd, SIGTERM), 0);
    dsd_remove(&f->dsd);
    free(f);
    return 0;
}

static void honest_is_served(struct fixture *f)
{
    struct raw_answer *answer = raw_answer_new(raw_generate(&f->honest, "alpha", "honest", 10, 1));

    assert_true(raw_wait(&f->honest, &answer, 1, 5000));
    assert_int_equal(answer->n_ids, 10);
    assert_int_equal(answer->last_type, DS_CQE_FINAL);
    (void) raw_answer_free(answer);
}

static bool hung_up(int socket, int msec)
{
    struct pollfd wait = { .fd = socket, .events = 0 };

    return poll(&wait, 1, msec) == 1 && (wait.revents & POLLHUP);
}

static int plain_connect(const struct fixture *f)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    (void) snprintf(address.sun_path, sizeof address.sun_path, "%s", f->dsd.socket);
    assert_int_equal(connect(fd, (const struct sockaddr *) &address, sizeof address), 0);
    return fd;
}

static unsigned long resident_kib(const struct fixture *f)
{
    unsigned long size, resident;
    char path[64];
    FILE *file;

    (void) snprintf(path, sizeof path, "/proc/%d/statm", f->dsd.pid);
    file = fopen(path, "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lu %lu", &size, &resident), 2);
    (void) fclose(file);
    return resident * 4;
}

/* --- attacks --- */

static void index_jumps(struct fixture *f)
{
    static const uint32_t jumps[] = { 65, 4096, 0x80000000u, UINT32_MAX };
    struct raw_client client;

    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
        atomic_fetch_add(&client.channel->s_hot->sq_tail, jumps[i]);
        ds_channel_ring_bell(client.channel);
        assert_true(hung_up(client.socket, 3000));
        raw_close(&client, false);
        assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
        atomic_store(&client.channel->s_hot->cq_head, jumps[i]); /* never given out */
        for (int k = 0; k < 600 && !hung_up(client.socket, 0); k++) {
            struct ds_sqe ping = { .op = DS_SQE_PING, .req_id = 1 };

            if (ds_channel_submit(client.channel, &ping, 0) == 0)
                ds_channel_ring_bell(client.channel);
            (void) usleep(500);
        }
        assert_true(hung_up(client.socket, 3000));
        raw_close(&client, false);
    }
}

static void scribbling(struct fixture *f)
{
    struct raw_client client;
    pid_t child;

    for (unsigned round = 0; round < 6; round++) {
        child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            unsigned seed = round * 77 + 1;

            if (raw_connect(&client, f->dsd.socket, NULL) < 0)
                _exit(1);
            for (int i = 0; i < 4000; i++) {
                struct ds_sqe *sqe = &client.channel->sqes[rand_r(&seed) % 64];
                uint8_t *bytes = (uint8_t *) sqe;

                for (unsigned k = 0; k < sizeof *sqe; k++)
                    bytes[k] = (uint8_t) rand_r(&seed);
                sqe->op = (uint16_t) (rand_r(&seed) % 6);
                sqe->flags = 0;
                sqe->zero = 0;
                sqe->prio = 0;
                sqe->payload_off = (uint64_t) rand_r(&seed) % 4096;
                sqe->payload_len = (uint32_t) rand_r(&seed) % 4096;
                for (unsigned k = 0; k < 64; k++)
                    client.channel->arena[rand_r(&seed) % 8192] = (uint8_t) rand_r(&seed);
                atomic_fetch_add(&client.channel->s_hot->sq_tail, 1);
                if (i % 64 == 0)
                    atomic_store(&client.channel->s_hot->cq_head,
                                 atomic_load(&client.channel->c_hot->cq_tail));
                ds_channel_ring_bell(client.channel);
            }
            _exit(0);
        }
        (void) usleep(20000);
        if (round % 2)
            (void) kill(child, SIGKILL);
        (void) waitpid(child, NULL, 0);
    }
}

static void doorbell_storms(struct fixture *f)
{
    struct raw_client client;
    uint64_t one = 1, huge = UINT64_MAX - 1;
    int bell;

    assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
    bell = ds_channel_bell_out(client.channel);
    for (int i = 0; i < 20000; i++)
        (void) !write(bell, &one, sizeof one);
    /* Our own bell: saturated, and made blocking, so that whoever writes without care sticks. */
    bell = ds_channel_bell_in(client.channel);
    (void) fcntl(bell, F_SETFL, fcntl(bell, F_GETFL) & ~O_NONBLOCK);
    (void) !write(bell, &huge, sizeof huge);
    assert_true(ds_channel_sleep(client.channel));
    assert_int_not_equal(raw_generate(&client, "alpha", "slow=1", 50, 1), 0);
    assert_true(ds_channel_sleep(client.channel) || true);
    honest_is_served(f);
    raw_close(&client, false);
}

static void descriptors_where_none_belong(struct fixture *f)
{
    struct ds_datagram ready;
    struct ds_attach attach = { .attachment = 1, .n_files = 70000 };
    struct raw_client client;
    struct ds_hello hello;
    int fds[64], fd;

    for (unsigned i = 0; i < 64; i++)
        fds[i] = 2;
    ds_hello_init(&hello, "flood");
    fd = plain_connect(f);
    assert_int_equal(ds_datagram_send(fd, &hello, sizeof hello, fds, 64), 0);
    assert_true(hung_up(fd, 3000));
    (void) close(fd);
    assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
    ds_datagram_init(&ready, DS_DATAGRAM_READY, sizeof ready);
    assert_int_equal(ds_datagram_send(client.socket, &ready, sizeof ready, fds, 8), 0);
    assert_true(hung_up(client.socket, 3000));
    raw_close(&client, false);
    assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
    ds_datagram_init(&attach.head, DS_DATAGRAM_ATTACH, sizeof attach);
    assert_int_equal(ds_datagram_send(client.socket, &attach, sizeof attach, fds, 64), 0);
    assert_true(hung_up(client.socket, 3000));
    raw_close(&client, false);
    assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
    attach.n_files = 1; /* descriptor 2 is a log, open for writing alone, or no file at all */
    assert_int_equal(
        ds_datagram_send(client.socket, &attach, sizeof attach, (const int[]){ client.socket }, 1),
        0);
    assert_true(hung_up(client.socket, 3000));
    raw_close(&client, false);
}

static void garbage_and_silence(struct fixture *f)
{
    static const uint8_t garbage[4096] = { 0x53, 0x44, 0x53, 0x44, 1, 0, 0, 16 };
    int fd = plain_connect(f), silent = plain_connect(f);

    (void) send(fd, garbage, sizeof garbage, MSG_NOSIGNAL);
    assert_true(hung_up(fd, 3000));
    (void) close(fd);
    assert_true(hung_up(silent, 3000)); /* handshake_sec */
    (void) close(silent);
}

static void malformed_requests(struct fixture *f)
{
    struct raw_client client;
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .req_id = 9 };
    struct raw_answer *answer = raw_answer_new(9);
    Ds__Error *error;
    void *payload;

    assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
    assert_int_equal(ds_channel_reserve(client.channel, 512, &payload), 0);
    memset(payload, 0xff, 512);
    assert_int_equal(ds_channel_submit(client.channel, &entry, 512), 0);
    ds_channel_ring_bell(client.channel);
    assert_true(raw_wait(&client, &answer, 1, 3000));
    error = raw_error(answer);
    assert_int_equal(error->code, DS__ERROR__CODE__INVALID);
    ds_message_free(error);
    (void) raw_answer_free(answer);
    raw_close(&client, true);
}

static void never_reading(struct fixture *f)
{
    struct ds_geometry small = { .cq_entries = 16, .rsp_bytes = 4096 };
    struct raw_client client;

    assert_int_equal(raw_connect(&client, f->dsd.socket, &small), 0);
    for (unsigned i = 0; i < 6; i++)
        (void) raw_generate(&client, "alpha", "slow=1", 4000, i);
    honest_is_served(f);
    (void) usleep(1600000); /* stall_sec */
    honest_is_served(f);
    raw_close(&client, false);
}

static void pings_without_reading(struct fixture *f)
{
    struct ds_sqe ping = { .op = DS_SQE_PING, .req_id = 1 };
    struct raw_client client;

    assert_int_equal(raw_connect(&client, f->dsd.socket, NULL), 0);
    for (int i = 0; i < 2000; i++) {
        if (ds_channel_submit(client.channel, &ping, 0) == 0 && i % 8 == 0)
            ds_channel_ring_bell(client.channel);
        if (i % 100 == 0)
            (void) usleep(1000);
    }
    honest_is_served(f);
    assert_true(hung_up(client.socket, 4000)); /* after stall_sec */
    raw_close(&client, false);
}

static void too_many(struct fixture *f)
{
    struct ds_geometry large = { .arena_bytes = 64u << 20, .rsp_bytes = 64u << 20 };
    struct raw_client clients[16];
    struct raw_answer *answers[12];
    unsigned connected = 0, refused = 0, busy = 0;

    for (unsigned i = 0; i < 16; i++)
        if (raw_connect(&clients[connected], f->dsd.socket, NULL) == 0)
            connected++;
        else
            refused++;
    assert_int_equal(connected, 11); /* clients_per_user, and the honest one */
    assert_int_equal(refused, 5);
    for (unsigned i = 0; i < 12; i++)
        answers[i] = raw_answer_new(raw_generate(&clients[0], "alpha", "slow=30", 10, i));
    assert_true(raw_wait(&clients[0], answers, 12, 5000));
    for (unsigned i = 0; i < 12; i++) {
        busy += answers[i]->last_type == DS_CQE_ERROR;
        (void) raw_answer_free(answers[i]);
    }
    assert_int_equal(busy, 4); /* requests_per_client */
    while (connected > 0)
        raw_close(&clients[--connected], true);
    for (unsigned i = 0; i < 6; i++)
        if (raw_connect(&clients[connected], f->dsd.socket, &large) == 0)
            connected++;
    assert_in_range(connected, 1, 4); /* region_bytes_per_user */
    while (connected > 0)
        raw_close(&clients[--connected], true);
}

static void a_hostile_client_harms_only_itself(void **state)
{
    struct fixture *f = *state;
    unsigned fds;
    unsigned long kib;

    honest_is_served(f);
    fds = dsd_count_fds(&f->dsd);
    kib = resident_kib(f);
    for (int round = 0; round < 2; round++) {
        index_jumps(f);
        honest_is_served(f);
        scribbling(f);
        honest_is_served(f);
        doorbell_storms(f);
        honest_is_served(f);
        descriptors_where_none_belong(f);
        garbage_and_silence(f);
        malformed_requests(f);
        honest_is_served(f);
        never_reading(f);
        pings_without_reading(f);
        too_many(f);
        honest_is_served(f);
    }
    (void) usleep(1300000); /* reconnect_grace_sec */
    honest_is_served(f);
    if (getenv("DSD_TEST_LOG")) {
        char command[64];

        (void) snprintf(command, sizeof command, "ls -l /proc/%d/fd", f->dsd.pid);
        (void) !system(command);
    }
    assert_in_range(dsd_count_fds(&f->dsd), fds - 1, fds + 1);
    if (!getenv("ASAN_OPTIONS") && resident_kib(f) > kib + 8192)
        fail_msg("memory grew from %lu to %lu KiB", kib, resident_kib(f));
    assert_true(dsd_alive(&f->dsd));
}

static void an_idle_daemon_does_not_wake_up(void **state)
{
    struct fixture *f = *state;
    uint64_t before, after;

    honest_is_served(f);
    (void) usleep(300000); /* the last bounded spin and deadline are over */
    before = dsd_switches(f->dsd.pid);
    (void) usleep(1500000); /* the measured interval */
    after = dsd_switches(f->dsd.pid);
    assert_int_equal(after - before, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_hostile_client_harms_only_itself, begin_uring, end),
        cmocka_unit_test_setup_teardown(a_hostile_client_harms_only_itself, begin_epoll, end),
        cmocka_unit_test_setup_teardown(an_idle_daemon_does_not_wake_up, begin_uring, end),
        cmocka_unit_test_setup_teardown(an_idle_daemon_does_not_wake_up, begin_epoll, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
