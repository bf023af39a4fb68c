/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop_epoll.c - the loop where io_uring is forbidden.
 *
 * An armed watch counts as one operation in flight, so that slots live exactly as on io_uring.
 * Doorbells in are edge-triggered and never read. Doorbells out: an eventfd's O_NONBLOCK belongs to
 * the peer too, so a look whether it can be written comes first; a saturated bell needs no ring.
 */
#include "daemon/loop_backend.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#define EVENTS 64

struct epoll {
    int fd;
};

static void epoll_backend_free(struct ds_loop *loop)
{
    struct epoll *epoll = loop->backend;

    (void) close(epoll->fd);
    free(epoll);
}

static int epoll_arm(struct ds_loop *loop, struct ds_watch *watch)
{
    struct epoll *epoll = loop->backend;
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = ds_watch_tag(watch, DS_OP_POLL) };

    if (watch->kind == DS_WATCH_BELL)
        event.events |= EPOLLET;
    if (epoll_ctl(epoll->fd, EPOLL_CTL_ADD, watch->fd, &event) < 0)
        return -errno;
    return 0;
}

/* The peer holds the descriptor's file as well, so closing ours would not take it out. */
static void epoll_disarm(struct ds_loop *loop, struct ds_watch *watch)
{
    struct epoll *epoll = loop->backend;

    if (watch->armed)
        (void) epoll_ctl(epoll->fd, EPOLL_CTL_DEL, watch->fd, NULL);
    watch->armed = false;
}

static int epoll_ring(struct ds_loop *loop, struct ds_watch *bell)
{
    struct pollfd out = { .fd = bell->fd, .events = POLLOUT };
    uint64_t one = 1;

    (void) loop;
    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT))
        (void) !write(bell->fd, &one, sizeof one);
    return 0;
}

static void epoll_flush(struct ds_loop *loop)
{
    (void) loop;
}

static bool epoll_pending(const struct ds_loop *loop)
{
    (void) loop;
    return false;
}

static int dispatch(struct ds_loop *loop, const struct epoll_event *event)
{
    struct epoll *epoll = loop->backend;
    struct ds_watch *watch = ds_loop_tagged(loop, event->data.u64);
    int ran, fd;

    if (!watch || watch->removed)
        return 0;
    if (watch->kind != DS_WATCH_ACCEPT)
        return ds_watch_complete(watch, (int) event->events, false);
    fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
        return 0;
    fd = fd < 0 ? -errno : fd;
    if (fd < 0) { /* level-triggered: it would report the same again at once */
        (void) epoll_ctl(epoll->fd, EPOLL_CTL_DEL, watch->fd, NULL);
        watch->armed = false;
    }
    ran = ds_watch_complete(watch, fd, false);
    return ran;
}

static int epoll_turn(struct ds_loop *loop, uint64_t timeout_nsec)
{
    struct epoll *epoll = loop->backend;
    struct epoll_event events[EVENTS];
    struct timespec limit = { .tv_sec = (time_t) (timeout_nsec / 1000000000u),
                              .tv_nsec = (long) (timeout_nsec % 1000000000u) };
    int n, ran = 0;

    n = epoll_pwait2(epoll->fd, events, EVENTS, timeout_nsec == UINT64_MAX ? NULL : &limit, NULL);
    if (n < 0 && errno != EINTR)
        return -errno;
    for (int i = 0; i < n; i++)
        ran += dispatch(loop, &events[i]);
    return ran;
}

static const struct ds_loop_calls calls = {
    .name = "epoll",
    .free = epoll_backend_free,
    .arm = epoll_arm,
    .disarm = epoll_disarm,
    .ring = epoll_ring,
    .flush = epoll_flush,
    .pending = epoll_pending,
    .turn = epoll_turn,
};

int ds_loop_epoll_new(struct ds_loop *loop)
{
    struct epoll *epoll = calloc(1, sizeof(*epoll));

    if (!epoll)
        return -ENOMEM;
    epoll->fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll->fd < 0) {
        free(epoll);
        return -errno;
    }
    loop->calls = &calls;
    loop->backend = epoll;
    return 0;
}
