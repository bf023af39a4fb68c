/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop_backend.h - what loop.c and the two backends share; nobody else includes it.
 *
 * Watches live in a table of slots. What the kernel is given is a tag {generation, slot, op}: a
 * completion that comes late finds another generation and is dropped.
 */
#pragma once

#include "daemon/loop.h"
#include "proto/base.h"

#include <poll.h>

enum ds_op { DS_OP_NONE, DS_OP_POLL, DS_OP_ACCEPT, DS_OP_WRITE };

struct ds_watch {
    struct ds_loop *loop;
    ds_watch_fn *fn; /* NULL for bells to ring */
    void *owner;
    int fd;
    enum ds_watch_kind kind;
    uint32_t slot, generation;
    uint32_t in_flight; /* operations the kernel has not answered finally */
    bool bell_out;
    bool armed;     /* the kernel watches */
    bool resting;   /* not to be armed before ds_watch_resume() */
    bool removed;   /* the slot is free once in_flight is 0 */
    bool ring_more; /* rung while a write was outstanding */
};

struct ds_loop_calls {
    const char *name;
    void (*free)(struct ds_loop *loop);
    int (*arm)(struct ds_loop *loop, struct ds_watch *watch); /* -EAGAIN: later */
    void (*disarm)(struct ds_loop *loop, struct ds_watch *watch);
    int (*ring)(struct ds_loop *loop, struct ds_watch *bell);
    void (*flush)(struct ds_loop *loop);
    bool (*pending)(const struct ds_loop *loop);
    /* timeout_nsec 0: do not wait; UINT64_MAX: no limit. Calls ds_watch_complete(). */
    int (*turn)(struct ds_loop *loop, uint64_t timeout_nsec);
};

struct ds_loop {
    const struct ds_loop_calls *calls;
    void *backend; /* owned by calls */
    struct ds_watch **slots;
    uint32_t n_slots, n_free;
    uint32_t *free_slots;  /* stack of n_free */
    uint32_t *generations; /* of each slot */
    struct ds_timer **heap;
    uint32_t n_timers, timers_size;
    uint64_t wakeups;
    bool retry; /* an arm found no room: try again next turn */
};

int ds_loop_uring_new(struct ds_loop *loop, struct ds_error *why);
int ds_loop_epoll_new(struct ds_loop *loop);

static inline uint64_t ds_watch_tag(const struct ds_watch *watch, enum ds_op op)
{
    return (uint64_t) watch->generation << 32 | (uint64_t) watch->slot << 8 | op;
}

/* The watch a tag belongs to, or NULL where it is gone. */
struct ds_watch *ds_loop_tagged(struct ds_loop *loop, uint64_t tag);

/* An operation of watch ended (final) or reported: calls back, re-arms, frees. Returns callbacks
 * run. */
int ds_watch_complete(struct ds_watch *watch, int result, bool final);
