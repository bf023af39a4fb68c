/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.h - the one place where dsd waits: watches on descriptors, doorbells out, timers.
 *
 * Two backends with the same behaviour, chosen at run time: io_uring (features of Linux 5.15 as
 * the base, DEFER_TASKRUN where there), and epoll where io_uring is forbidden or missing.
 *
 * Life of a watch: ds_watch_remove() ends it; its callback is never called afterwards, and the
 * memory that the kernel may still look at stays until the last completion has come, however long
 * that takes. So owners can be freed, and descriptors closed, at once after the remove.
 *
 * One thread. Callbacks may add and remove any watch and timer, their own included.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct ds_error;
struct ds_loop;
struct ds_watch;

enum ds_loop_backend { DS_LOOP_AUTO, DS_LOOP_URING, DS_LOOP_EPOLL };

/* AUTO falls back from io_uring to epoll; *why then says in a line why (else its text is ""). With
 * URING or EPOLL there is no fallback. Negative errno. */
int ds_loop_new(struct ds_loop **ret_loop, enum ds_loop_backend backend, struct ds_error *why);
struct ds_loop *ds_loop_free(struct ds_loop *loop); /* accepts NULL; watches must be removed */
void ds_loop_free_p(struct ds_loop **loop);
const char *ds_loop_name(const struct ds_loop *loop); /* "io_uring" or "epoll" */

enum ds_watch_kind {
    DS_WATCH_READ,   /* called while fd is readable or hung up; result: poll events */
    DS_WATCH_BELL,   /* an eventfd nobody ever reads: called at least once after each ring, and
                        once soon after the watch was made; result: poll events */
    DS_WATCH_ACCEPT, /* result: a new connection (close-on-exec, non-blocking), or negative errno,
                        after which it rests until ds_watch_resume() */
};

typedef void ds_watch_fn(void *owner, int result);

/* fd stays the caller's. -ENOMEM and the like. */
int ds_loop_watch(struct ds_loop *loop, enum ds_watch_kind kind, int fd, ds_watch_fn *fn,
                  void *owner, struct ds_watch **ret_watch);
void ds_watch_resume(struct ds_watch *watch);
struct ds_watch *ds_watch_remove(struct ds_watch *watch); /* accepts NULL, returns NULL */

/* A doorbell to ring: an eventfd that a peer holds too. */
int ds_loop_bell(struct ds_loop *loop, int fd, struct ds_watch **ret_bell);

/* Adds 1 to the eventfd without ever blocking. At most one write is outstanding: ringing in the
 * meantime rings once more after it. Goes out at the next ds_loop_flush() or turn. */
void ds_bell_ring(struct ds_watch *bell);

struct ds_timer;
typedef void ds_timer_fn(void *owner);

struct ds_timer {     /* embedded in its owner; zero = not set */
    uint64_t at_nsec; /* CLOCK_MONOTONIC */
    ds_timer_fn *fn;
    void *owner;
    uint32_t slot; /* 1 + place in the loop's heap; 0: not set */
};

/* Sets or moves the timer; it fires once. -ENOMEM. */
int ds_timer_set(struct ds_loop *loop, struct ds_timer *timer, uint64_t at_nsec, ds_timer_fn *fn,
                 void *owner);
void ds_timer_clear(struct ds_loop *loop, struct ds_timer *timer);

/* Hands outgoing work to the kernel without looking for incoming. */
void ds_loop_flush(struct ds_loop *loop);

/* Is there something to dispatch, as far as can be told without a system call? For spinning; false
 * proves nothing (on epoll it is always false): a turn now and then is still needed. */
bool ds_loop_pending(const struct ds_loop *loop);

/* Runs due timers and dispatches what is there; with block, first waits for it or for the next
 * timer. Returns how many callbacks ran, or negative errno (the loop is unusable). */
int ds_loop_turn(struct ds_loop *loop, bool block);

/* How often the loop has blocked and come back: for tests and `status`. */
uint64_t ds_loop_wakeups(const struct ds_loop *loop);
