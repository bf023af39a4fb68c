/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop_uring.c - the loop on io_uring.
 *
 * Doorbells in: a multishot poll on an eventfd that is never read. It reports the level when it is
 * armed and then every ring, and a thousand rings while we are busy coalesce into one completion.
 * Doorbells out: a WRITE of 8 bytes; on a saturated eventfd it pends, which harms nobody, and can
 * be cancelled. Everything else polls once and is armed again after its callback, which makes it
 * level-triggered. Closing a descriptor does not end its operations: they are cancelled by tag.
 */
#include "daemon/loop_backend.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/socket.h>

#define ENTRIES    256u
#define ROUNDS_MAX 4 /* of dispatching before the caller has its turn */

struct uring {
    struct io_uring ring;
    bool taskrun_flag; /* the kernel says in the ring's flags that completions wait for an enter */
};

static const uint64_t one = 1;

/* The line for a person: which of the three reasons. */
static void explain(struct ds_error *why, int r)
{
    ds_cleanup(ds_close_p) int fd =
        open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    char value = '0';

    if (fd >= 0 && read(fd, &value, 1) != 1)
        value = '0';
    if (value != '0')
        (void) ds_error_set(why, 0,
                            "io_uring is not used: sysctl kernel.io_uring_disabled is %c "
                            "(0 would allow it); epoll is used instead",
                            value);
    else if (r == -EPERM || r == -EACCES)
        (void) ds_error_set(why, 0,
                            "io_uring is not used: a seccomp filter or security module "
                            "forbids io_uring_setup (%s); epoll is used instead",
                            strerror(-r));
    else if (r == -ENOSYS || r == -EINVAL)
        (void) ds_error_set(why, 0,
                            "io_uring is not used: this kernel is too old or was built without "
                            "it (%s; Linux 5.15 is needed); epoll is used instead",
                            strerror(-r));
    else
        (void) ds_error_set(why, 0, "io_uring is not used: %s; epoll is used instead",
                            strerror(-r));
}

static void uring_free(struct ds_loop *loop)
{
    struct uring *uring = loop->backend;

    io_uring_queue_exit(&uring->ring);
    free(uring);
}

static struct io_uring_sqe *next_sqe(struct uring *uring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

    if (!sqe && io_uring_submit(&uring->ring) >= 0)
        sqe = io_uring_get_sqe(&uring->ring);
    return sqe;
}

static int uring_arm(struct ds_loop *loop, struct ds_watch *watch)
{
    struct io_uring_sqe *sqe = next_sqe(loop->backend);

    if (!sqe)
        return -EAGAIN;
    if (watch->kind == DS_WATCH_ACCEPT)
        io_uring_prep_accept(sqe, watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    else if (watch->kind == DS_WATCH_BELL)
        io_uring_prep_poll_multishot(sqe, watch->fd, POLLIN);
    else
        io_uring_prep_poll_add(sqe, watch->fd, POLLIN);
    sqe->user_data =
        ds_watch_tag(watch, watch->kind == DS_WATCH_ACCEPT ? DS_OP_ACCEPT : DS_OP_POLL);
    watch->in_flight++;
    return 0;
}

static void uring_disarm(struct ds_loop *loop, struct ds_watch *watch)
{
    enum ds_op op = watch->bell_out                  ? DS_OP_WRITE
                    : watch->kind == DS_WATCH_ACCEPT ? DS_OP_ACCEPT
                                                     : DS_OP_POLL;
    struct io_uring_sqe *sqe;

    if (watch->in_flight == 0)
        return;
    sqe = next_sqe(loop->backend);
    if (!sqe)
        return; /* the slot stays taken until the descriptor's own end completes it */
    io_uring_prep_cancel64(sqe, ds_watch_tag(watch, op), 0);
    sqe->user_data = 0;
    /* The caller may close the descriptor next: what it names must be known to the kernel. */
    (void) io_uring_submit(&((struct uring *) loop->backend)->ring);
}

static int uring_ring(struct ds_loop *loop, struct ds_watch *bell)
{
    struct io_uring_sqe *sqe = next_sqe(loop->backend);

    if (!sqe)
        return -EAGAIN;
    io_uring_prep_write(sqe, bell->fd, &one, sizeof one, (uint64_t) -1);
    sqe->user_data = ds_watch_tag(bell, DS_OP_WRITE);
    bell->in_flight++;
    return 0;
}

static void uring_flush(struct ds_loop *loop)
{
    struct uring *uring = loop->backend;

    if (io_uring_sq_ready(&uring->ring) > 0)
        (void) io_uring_submit(&uring->ring);
}

static bool uring_pending(const struct ds_loop *loop)
{
    const struct uring *uring = loop->backend;

    if (io_uring_cq_ready(&uring->ring) > 0 || io_uring_sq_ready(&uring->ring) > 0)
        return true;
    if (!uring->taskrun_flag)
        return false; /* completions appear by themselves, on the next system call at the latest */
    return (IO_URING_READ_ONCE(*uring->ring.sq.kflags) &
            (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

static int reap(struct ds_loop *loop, struct uring *uring)
{
    struct io_uring_cqe *cqe;
    int ran = 0;

    while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        uint64_t tag = cqe->user_data;
        int result = cqe->res;
        bool final = !(cqe->flags & IORING_CQE_F_MORE);
        struct ds_watch *watch;

        io_uring_cqe_seen(&uring->ring, cqe);
        watch = tag ? ds_loop_tagged(loop, tag) : NULL;
        if (!watch)
            continue;
        if ((tag & 0xff) == DS_OP_ACCEPT && watch->removed && result >= 0)
            (void) close(result);
        ran += ds_watch_complete(watch, result, final);
    }
    return ran;
}

static int uring_turn(struct ds_loop *loop, uint64_t timeout_nsec)
{
    struct uring *uring = loop->backend;
    int ran = 0, rounds = 0, r;

    if (timeout_nsec > 0) {
        struct __kernel_timespec limit = { .tv_sec = (long long) (timeout_nsec / 1000000000u),
                                           .tv_nsec = (long long) (timeout_nsec % 1000000000u) };
        struct io_uring_cqe *cqe;

        r = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1,
                                             timeout_nsec == UINT64_MAX ? NULL : &limit, NULL);
        if (r < 0 && r != -ETIME && r != -EINTR && r != -EBUSY && r != -EAGAIN)
            return r;
    }
    do { /* with DEFER_TASKRUN one enter runs only so much: what is left comes soon */
        if (uring_pending(loop) || !uring->taskrun_flag) {
            r = io_uring_submit_and_get_events(&uring->ring);
            if (r < 0 && r != -EINTR && r != -EBUSY && r != -EAGAIN)
                return r;
        }
        r = reap(loop, uring);
        ran += r;
    } while (r > 0 && ++rounds < ROUNDS_MAX);
    return ran;
}

static const struct ds_loop_calls calls = {
    .name = "io_uring",
    .free = uring_free,
    .arm = uring_arm,
    .disarm = uring_disarm,
    .ring = uring_ring,
    .flush = uring_flush,
    .pending = uring_pending,
    .turn = uring_turn,
};

int ds_loop_uring_new(struct ds_loop *loop, struct ds_error *why)
{
    static const unsigned ladder[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SUBMIT_ALL,                                                     /* 6.1 */
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL, /* 5.19 */
        0,                                                                               /* 5.15 */
    };
    struct uring *uring = calloc(1, sizeof(*uring));
    int r = -EINVAL;

    if (!uring)
        return -ENOMEM;
    for (size_t i = 0; i < sizeof ladder / sizeof *ladder && r == -EINVAL; i++) {
        struct io_uring_params params = { .flags =
                                              ladder[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                          .cq_entries = 8 * ENTRIES };

        r = io_uring_queue_init_params(ENTRIES, &uring->ring, &params);
        uring->taskrun_flag = (ladder[i] & IORING_SETUP_TASKRUN_FLAG) != 0;
        if (r == 0 && !(params.features & IORING_FEAT_EXT_ARG)) {
            io_uring_queue_exit(&uring->ring);
            r = -ENOSYS;
        }
    }
    if (r < 0) {
        explain(why, r);
        free(uring);
        return r;
    }
    (void) io_uring_register_ring_fd(&uring->ring); /* spares a lookup; absent before 5.18 */
    loop->calls = &calls;
    loop->backend = uring;
    return 0;
}
