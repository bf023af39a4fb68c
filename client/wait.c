/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

/*
 * Two ways to wait. ds_next() with a time spins for what comes at once (pongs, control replies),
 * then says that it sleeps, looks once more, and polls bell and socket. A program with a loop of
 * its own watches ds_fd(): an epoll set of the bell, the socket, a timer (attempts, silence) and
 * kick_fd. Between an event and DS_NONE nobody would ring for us, because we are not asleep, so
 * kick_fd keeps the set readable; DS_NONE takes the kick back, empties the bell and sets
 * NEED_WAKEUP. None of this costs anything while nobody has asked for ds_fd().
 */

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void) 0)
#endif

#define USEC UINT64_C(1000)
#define MSEC UINT64_C(1000000)

enum {
    SPIN_LOOKS = 32,   /* looks between two readings of the clock */
    SPIN_PENALTY = 16, /* waits that sleep at once after one that spun in vain */
};

/* --- readiness ---------------------------------------------------------------------------------
 */

static int watch(struct ds *ds, int fd)
{
    struct epoll_event event = { .events = EPOLLIN };

    return epoll_ctl(ds->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int ds_client_ready_init(struct ds *ds)
{
    int r = 0;

    ds->timer_nsec = UINT64_MAX;
    ds->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    ds->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ds->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (ds->epoll_fd < 0 || ds->kick_fd < 0 || ds->timer_fd < 0)
        r = -errno;
    if (r == 0)
        r = watch(ds, ds->kick_fd);
    if (r == 0)
        r = watch(ds, ds->timer_fd);
    if (r < 0)
        return ds_error_set(&ds->error, r, "no descriptors for a connection: %s", strerror(-r));
    return 0;
}

void ds_client_ready_deinit(struct ds *ds)
{
    ds_close_p(&ds->epoll_fd);
    ds_close_p(&ds->kick_fd);
    ds_close_p(&ds->timer_fd);
}

void ds_client_watch_add(struct ds *ds)
{
    (void) watch(ds, ds->socket);
    if (ds->channel)
        (void) watch(ds, ds_channel_bell_in(ds->channel));
}

void ds_client_watch_remove(struct ds *ds)
{
    /* Closing alone would not do: dsd holds the other descriptors of the same bell. */
    if (ds->socket >= 0)
        (void) epoll_ctl(ds->epoll_fd, EPOLL_CTL_DEL, ds->socket, NULL);
    if (ds->channel)
        (void) epoll_ctl(ds->epoll_fd, EPOLL_CTL_DEL, ds_channel_bell_in(ds->channel), NULL);
}

void ds_client_kick(struct ds *ds)
{
    const uint64_t one = 1;

    if (!ds->watched || ds->kicked)
        return;
    ds->kicked = write(ds->kick_fd, &one, sizeof one) == (ssize_t) sizeof one;
}

int ds_fd(const struct ds *ds)
{
    struct ds *own = (struct ds *) ds;

    if (!own->watched) {
        own->watched = true;
        ds_client_kick(own); /* whatever came before anybody looked */
    }
    return own->epoll_fd;
}

/* Sets the timer where it would come too late; one that comes too early only makes us look. */
static void set_timer(struct ds *ds, uint64_t now)
{
    uint64_t due = ds_client_due(ds, now);
    struct itimerspec when = { 0 };

    if (ds->timer_nsec > now && ds->timer_nsec <= due)
        return;
    if (due == UINT64_MAX && ds->timer_nsec == UINT64_MAX)
        return;
    ds->timer_nsec = due;
    if (due != UINT64_MAX) {
        when.it_value.tv_sec = (time_t) (due / (1000 * MSEC));
        when.it_value.tv_nsec = (long) (due % (1000 * MSEC)) + (due == 0);
    }
    (void) timerfd_settime(ds->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void drain(int fd)
{
    uint64_t count;

    (void) !read(fd, &count, sizeof count);
}

/* Only we read the bell, so that a readable one does not block. Level-triggered pollers hence see
 * it until here. */
static void answer_polls(struct ds *ds, const struct pollfd *socket, const struct pollfd *bell)
{
    if (bell->revents & POLLIN)
        drain(bell->fd);
    if (socket->revents && ds->state == DS_CLIENT_UP)
        ds_client_hear(ds);
}

static void pollfds(const struct ds *ds, struct pollfd polled[2])
{
    polled[0] = (struct pollfd){ .fd = ds->socket, .events = POLLIN };
    polled[1] = (struct pollfd){ .fd = ds->channel ? ds_channel_bell_in(ds->channel) : -1,
                                 .events = POLLIN };
}

/* Puts ds_fd() to rest, unless there is something to do. */
static int rest(struct ds *ds, uint64_t now)
{
    if (ds->kicked)
        drain(ds->kick_fd);
    ds->kicked = false;
    if (ds->timer_nsec <= now)
        drain(ds->timer_fd);
    set_timer(ds, now);
    if (ds->state != DS_CLIENT_UP)
        return DS_NONE;
    if (!ds_channel_sleep(ds->channel)) {
        ds->armed = false;
        return 0;
    }
    ds->armed = true;
    return DS_NONE;
}

/* A look without waiting. Where nobody watches ds_fd() the socket needs one now and then only. */
static int glance(struct ds *ds, uint64_t now)
{
    struct pollfd polled[2];

    if (!ds->watched && now - ds->looked_nsec < DS_CLIENT_LOOK_MSEC * MSEC)
        return DS_NONE;
    ds->looked_nsec = now;
    pollfds(ds, polled);
    if (poll(polled, 2, 0) > 0)
        answer_polls(ds, &polled[0], &polled[1]);
    if (ds->hangup || (ds->state == DS_CLIENT_SHAKING && polled[0].revents))
        return 0;
    return ds->watched ? rest(ds, now) : DS_NONE;
}

/* --- waiting -----------------------------------------------------------------------------------
 */

uint32_t ds_client_spin_hint(uint32_t suggested_usec)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) < 0 || CPU_COUNT(&set) < 2)
        return 0;
    return suggested_usec < DS_CLIENT_SPIN_USEC_MAX ? suggested_usec : DS_CLIENT_SPIN_USEC_MAX;
}

/* Tokens are milliseconds apart and their computation wants the processors: for them nobody spins
 * unless told to. */
static uint32_t spin_budget(struct ds *ds)
{
    if (ds->spin_usec == UINT32_MAX)
        return 0;
    if (ds->spin_usec)
        return ds->spin_usec;
    if (ds->hint_usec == 0)
        return 0;
    for (const struct ds_client_request *request = ds->first; request; request = request->next)
        if (request->kind != DS_CLIENT_GENERATE) {
            if (ds->sleeps_left == 0)
                return ds->hint_usec;
            ds->sleeps_left--;
            return 0;
        }
    return 0;
}

static bool spin(struct ds *ds, uint64_t now, uint64_t deadline)
{
    uint64_t until = now + spin_budget(ds) * USEC;

    if (until == now)
        return false;
    if (until > deadline)
        until = deadline;
    do {
        for (unsigned i = 0; i < SPIN_LOOKS; i++) {
            if (ds_channel_pending(ds->channel)) {
                ds->sleeps_left = 0;
                return true;
            }
            relax();
        }
        (void) sched_yield(); /* dsd may be waiting for this very processor */
    } while (ds_now_nsec() < until);
    ds->sleeps_left = SPIN_PENALTY;
    return false;
}

void ds_client_wake(struct ds *ds)
{
    if (ds->channel)
        ds_channel_wake(ds->channel);
    ds->armed = false;
}

static int sleep_until(struct ds *ds, uint64_t now, uint64_t deadline)
{
    uint64_t due = ds_client_due(ds, now), until = due < deadline ? due : deadline;
    uint64_t left = until > now ? until - now : 0;
    struct timespec timeout = { .tv_sec = (time_t) (left / (1000 * MSEC)),
                                .tv_nsec = (long) (left % (1000 * MSEC)) };
    struct pollfd polled[2];
    int r, code;

    if (ds->state == DS_CLIENT_UP && !ds_channel_sleep(ds->channel)) {
        ds->armed = false;
        return 0;
    }
    pollfds(ds, polled);
    r = ppoll(polled, 2, until == UINT64_MAX ? NULL : &timeout, NULL);
    code = errno;
    if (ds->state == DS_CLIENT_UP)
        ds_client_wake(ds);
    if (r < 0)
        return code == EINTR ? -EINTR : ds_error_set(&ds->error, -code, "poll: %s", strerror(code));
    answer_polls(ds, &polled[0], &polled[1]);
    return 0;
}

int ds_client_wait(struct ds *ds, uint64_t deadline)
{
    uint64_t now;

    /* A program that only ever polls is answered at the price of a load. */
    if (deadline == 0 && !ds->watched && ds->state == DS_CLIENT_UP && !ds->flush_due &&
        !ds->n_ended && !ds->hangup && ++ds->glances % DS_CLIENT_GLANCES)
        return DS_NONE;
    now = ds_now_nsec();
    if (ds_client_tend(ds, now) == 0)
        return 0;
    if (deadline <= now)
        return glance(ds, now);
    if (ds->state == DS_CLIENT_UP && spin(ds, now, deadline))
        return 0;
    return sleep_until(ds, now, deadline);
}
