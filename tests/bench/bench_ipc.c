/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a channel costs over the bare mechanism beneath it, measured in the same run.
 *
 *   spinning   ping and pong over a channel, both sides looking all the time, two processors
 *              / a number passed to and fro on two shared cache lines
 *   blocked    the same where both sides sleep in between, on one processor and on two
 *              / a round trip over two bare eventfds
 *   requests, completions per second one way, whole path with checks and copies
 *              / 64-byte slots in a ring that trusts everybody
 *
 * Two processes, pinned. Exit 77 with fewer than two processors.
 */
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "proto/base.h"
#include "tests/lib/channel_pair.h"

#define SPINS   300000u
#define BLOCKS  10000u
#define STREAM  500000u /* a multiple of BATCH */
#define CHUNK   8192u
#define BATCH   16u
#define SLOTS   256u
#define WARM_UP 1000u

struct result {
    double p50_nsec, p99_nsec;
};

struct shared {
    alignas(128) _Atomic uint32_t there;
    alignas(128) _Atomic uint32_t back;
    alignas(128) uint64_t slots[SLOTS][8];
};

/* The best rate over any CHUNK in a row: what the mechanism can do while the machine lets both
 * processes run. */
struct pace {
    uint64_t start_nsec;
    unsigned start;
    double best; /* per second */
};

static void pace_mark(struct pace *pace, unsigned done)
{
    uint64_t now;
    double rate;

    if (done - pace->start < CHUNK && pace->start_nsec)
        return;
    now = ds_now_nsec();
    rate = (done - pace->start) * 1e9 / (double) (now - pace->start_nsec);
    if (pace->start_nsec && rate > pace->best)
        pace->best = rate;
    pace->start_nsec = now;
    pace->start = done;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;

    return (x > y) - (x < y);
}

static struct result judge(uint32_t *nsec, unsigned n)
{
    qsort(nsec, n, sizeof *nsec, compare);
    return (struct result){ nsec[n / 2], nsec[n / 100 * 99] };
}

static void pin(unsigned nth)
{
    cpu_set_t all, one;
    unsigned seen = 0;

    (void) sched_getaffinity(getppid(), sizeof all, &all);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && seen++ == nth)
            CPU_SET(cpu, &one);
    (void) sched_setaffinity(0, sizeof one, &one);
}

static void *map_shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

/* --- the bare mechanisms --- */

static void spin_echo(struct shared *shared, unsigned n)
{
    for (uint32_t i = 1; i <= n; i++) {
        while (atomic_load_explicit(&shared->there, memory_order_acquire) != i)
            __builtin_ia32_pause();
        atomic_store_explicit(&shared->back, i, memory_order_release);
    }
}

static void spin_ping(struct shared *shared, unsigned n, uint32_t *nsec)
{
    for (uint32_t i = 1; i <= n; i++) {
        uint64_t start = ds_now_nsec();

        atomic_store_explicit(&shared->there, i, memory_order_release);
        while (atomic_load_explicit(&shared->back, memory_order_acquire) != i)
            __builtin_ia32_pause();
        nsec[i - 1] = (uint32_t) (ds_now_nsec() - start);
    }
}

static void eventfd_echo(const int *fds, unsigned n)
{
    uint64_t value;

    for (unsigned i = 0; i < n; i++) {
        (void) !read(fds[0], &value, sizeof value);
        (void) !write(fds[1], &value, sizeof value);
    }
}

static void eventfd_ping(const int *fds, unsigned n, uint32_t *nsec)
{
    uint64_t value = 1;

    for (unsigned i = 0; i < n; i++) {
        uint64_t start = ds_now_nsec();

        (void) !write(fds[0], &value, sizeof value);
        (void) !read(fds[1], &value, sizeof value);
        nsec[i] = (uint32_t) (ds_now_nsec() - start);
    }
}

/* --- the channel --- */

/* Waits as programs with an event loop do: edge-triggered, the bell never read. */
static void await(struct ds_channel *channel, int poller)
{
    struct epoll_event event;

    while (!ds_channel_pending(channel)) {
        if (ds_channel_sleep(channel))
            (void) epoll_wait(poller, &event, 1, 1000);
        ds_channel_wake(channel);
    }
}

static int poller_new(struct ds_channel *channel)
{
    struct epoll_event event = { .events = EPOLLIN | EPOLLET };
    int poller = epoll_create1(EPOLL_CLOEXEC);

    (void) epoll_ctl(poller, EPOLL_CTL_ADD, ds_channel_bell_in(channel), &event);
    return poller;
}

static void channel_echo(struct ds_channel *server, unsigned n, bool spin)
{
    int poller = poller_new(server);

    for (unsigned i = 0; i < n;) {
        struct ds_cqe out = { .type = DS_CQE_PONG };
        struct ds_sqe in;
        const void *payload;

        if (ds_channel_receive(server, &in, &payload) != DS_CHANNEL_OK) {
            if (!spin)
                await(server, poller);
            continue;
        }
        out.req_id = in.req_id;
        ds_channel_release(server);
        (void) ds_channel_post(server, &out, NULL, 0, false);
        ds_channel_publish(server);
        if (ds_channel_bell_due(server))
            ds_channel_ring_bell(server);
        i++;
    }
    (void) close(poller);
}

static void channel_ping(struct ds_channel *submitter, unsigned n, bool spin, uint32_t *nsec)
{
    int poller = poller_new(submitter);

    for (unsigned i = 0; i < n; i++) {
        struct ds_sqe out = { .op = DS_SQE_PING, .req_id = i };
        struct ds_cqe in;
        const void *payload;
        uint64_t start = ds_now_nsec();

        (void) ds_channel_submit(submitter, &out, 0);
        if (ds_channel_bell_due(submitter))
            ds_channel_ring_bell(submitter);
        while (ds_channel_next(submitter, &in, &payload) != DS_CHANNEL_OK)
            if (!spin)
                await(submitter, poller);
        ds_channel_done(submitter);
        nsec[i] = (uint32_t) (ds_now_nsec() - start);
    }
    (void) close(poller);
}

/* --- one way, as fast as it goes --- */

static void ring_fill(struct shared *shared, unsigned n)
{
    uint32_t head = 0;

    for (uint32_t tail = 0; tail < n;) {
        while (tail - head > SLOTS - BATCH)
            head = atomic_load_explicit(&shared->back, memory_order_acquire);
        for (unsigned k = 0; k < BATCH; k++, tail++)
            for (unsigned w = 0; w < 8; w++)
                shared->slots[tail % SLOTS][w] = tail + w;
        atomic_store_explicit(&shared->there, tail, memory_order_release);
    }
}

static uint64_t ring_drain(struct shared *shared, unsigned n, struct pace *pace)
{
    uint64_t sum = 0;

    for (uint32_t head = 0, tail; head < n;) {
        tail = atomic_load_explicit(&shared->there, memory_order_acquire);
        for (; head != tail; head++)
            for (unsigned w = 0; w < 8; w++)
                sum += shared->slots[head % SLOTS][w];
        atomic_store_explicit(&shared->back, head, memory_order_release);
        pace_mark(pace, head);
    }
    return sum;
}

static void completions_fill(struct ds_channel *server, unsigned n)
{
    static const char token[12] = "1234 token";
    struct ds_cqe out = { .type = DS_CQE_TOKENS, .n_tokens = 1 };

    for (unsigned i = 0; i < n;) {
        for (unsigned k = 0; k < BATCH && i < n; k++)
            i += ds_channel_post(server, &out, token, sizeof token, false) == DS_CHANNEL_OK;
        ds_channel_publish(server);
        (void) ds_channel_bell_due(server); /* never due here, but its fence is part of the price */
    }
}

static void completions_drain(struct ds_channel *submitter, unsigned n, struct pace *pace)
{
    for (unsigned i = 0; i < n;) {
        struct ds_cqe in;
        const void *payload;
        unsigned k = 0;

        while (k < BATCH && ds_channel_next(submitter, &in, &payload) == DS_CHANNEL_OK)
            k++;
        ds_channel_done(submitter);
        i += k;
        pace_mark(pace, i);
    }
}

static void requests_fill(struct ds_channel *submitter, unsigned n, struct pace *pace)
{
    char payload[256] = { 0 };

    for (unsigned i = 0; i < n;) {
        i += ds_channel_put(submitter, i, payload, sizeof payload) == DS_CHANNEL_OK;
        pace_mark(pace, i);
    }
}

static void requests_drain(struct ds_channel *server, unsigned n)
{
    for (unsigned i = 0; i < n;) {
        struct ds_sqe in;
        const void *payload;
        unsigned k = 0;

        while (k < BATCH && ds_channel_receive(server, &in, &payload) == DS_CHANNEL_OK)
            k++;
        ds_channel_release(server);
        i += k;
    }
}

/* --- running --- */

enum job { SPIN, EVENTFD, CHANNEL_SPIN, CHANNEL_BLOCK, RING, COMPLETIONS, REQUESTS };

struct bench {
    struct shared *shared;
    int fds[2];
    struct ds_channel_pair pair;
    uint32_t *nsec;
    struct pace *pace;
};

static void far_side(struct bench *bench, enum job job, unsigned n)
{
    switch (job) {
    case SPIN:
        spin_echo(bench->shared, n);
        break;
    case EVENTFD:
        eventfd_echo(bench->fds, n);
        break;
    case CHANNEL_SPIN:
    case CHANNEL_BLOCK:
        channel_echo(bench->pair.server, n, job == CHANNEL_SPIN);
        break;
    case RING:
        ring_fill(bench->shared, n);
        break;
    case COMPLETIONS:
        completions_fill(bench->pair.server, n);
        break;
    case REQUESTS:
        requests_drain(bench->pair.server, n);
        break;
    }
}

static void near_side(struct bench *bench, enum job job, unsigned n)
{
    switch (job) {
    case SPIN:
        spin_ping(bench->shared, n, bench->nsec);
        break;
    case EVENTFD:
        eventfd_ping(bench->fds, n, bench->nsec);
        break;
    case CHANNEL_SPIN:
    case CHANNEL_BLOCK:
        channel_ping(bench->pair.submitter, n, job == CHANNEL_SPIN, bench->nsec);
        break;
    case RING:
        (void) ring_drain(bench->shared, n, bench->pace);
        break;
    case COMPLETIONS:
        completions_drain(bench->pair.submitter, n, bench->pace);
        break;
    case REQUESTS:
        requests_fill(bench->pair.submitter, n, bench->pace);
        break;
    }
}

/* Runs job between two fresh processes on processors 0 and far; returns the best rate of one-way
 * jobs, and leaves the times of round trips in nsec. */
static double run(enum job job, unsigned n, unsigned far, uint32_t *nsec)
{
    static const struct ds_geometry geometry = { .sq_entries = 256,
                                                 .cq_entries = 512,
                                                 .max_inflight = 64 };
    struct bench bench = { .shared = map_shared(sizeof(struct shared)), .nsec = nsec };
    pid_t near_pid, far_pid;
    double best;

    bench.pace = map_shared(sizeof *bench.pace);
    bench.fds[0] = eventfd(0, EFD_CLOEXEC);
    bench.fds[1] = eventfd(0, EFD_CLOEXEC);
    bench.pair = ds_channel_pair_new(&geometry, DS_CHANNEL_SERVER);
    far_pid = fork();
    if (far_pid == 0) {
        pin(far);
        far_side(&bench, job, n);
        _exit(0);
    }
    near_pid = fork();
    if (near_pid == 0) {
        pin(0);
        near_side(&bench, job, n);
        _exit(0);
    }
    (void) waitpid(near_pid, NULL, 0);
    (void) waitpid(far_pid, NULL, 0);
    best = bench.pace->best;
    ds_channel_pair_free(&bench.pair);
    (void) close(bench.fds[0]);
    (void) close(bench.fds[1]);
    (void) munmap(bench.shared, sizeof *bench.shared);
    (void) munmap(bench.pace, sizeof *bench.pace);
    return best;
}

static struct result round_trip(enum job job, unsigned n, unsigned far)
{
    uint32_t *nsec = map_shared(SPINS * sizeof *nsec);
    struct result result;

    (void) run(job, n, far, nsec);
    result = judge(nsec + WARM_UP, n - WARM_UP);
    (void) munmap(nsec, SPINS * sizeof *nsec);
    return result;
}

static void compare_round_trips(const char *name, enum job channel, enum job bare, unsigned n,
                                unsigned far)
{
    struct result base = round_trip(bare, n, far), ours = round_trip(channel, n, far);

    printf("%-34s p50 %8.0f ns  p99 %8.0f ns   bare p50 %8.0f ns  p99 %8.0f ns   ratio %.2f\n",
           name, ours.p50_nsec, ours.p99_nsec, base.p50_nsec, base.p99_nsec,
           ours.p50_nsec / base.p50_nsec);
}

int main(void)
{
    double ring;

    if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
        printf("skip: two processors are needed\n");
        return 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    compare_round_trips("round trip, spinning", CHANNEL_SPIN, SPIN, SPINS, 1);
    compare_round_trips("round trip, blocked, one processor", CHANNEL_BLOCK, EVENTFD, BLOCKS, 0);
    compare_round_trips("round trip, blocked, two", CHANNEL_BLOCK, EVENTFD, BLOCKS, 1);
    ring = run(RING, STREAM, 1, NULL);
    for (unsigned i = 0; i < 2; i++) {
        double rate = run(i ? REQUESTS : COMPLETIONS, STREAM, 1, NULL);

        printf("%-34s %8.1f M/s   bare ring of 64 B slots %8.1f M/s   ratio %.2f\n",
               i ? "requests of 256 B" : "completions of one token", rate * 1e-6, ring * 1e-6,
               rate / ring);
    }
    return 0;
}
