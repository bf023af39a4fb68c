/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/loop.h"

#include "daemon/loop_backend.h"

#include <assert.h>

#define SLOTS_MAX (1u << 24)

/* --- slots --- */

static int slots_grow(struct ds_loop *loop)
{
    uint32_t n = loop->n_slots ? loop->n_slots * 2 : 64;
    struct ds_watch **slots;
    uint32_t *stack, *generations;

    if (n > SLOTS_MAX)
        return -ENFILE;
    slots = realloc(loop->slots, n * sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    loop->slots = slots;
    stack = realloc(loop->free_slots, n * sizeof(*stack));
    if (!stack)
        return -ENOMEM;
    loop->free_slots = stack;
    generations = realloc(loop->generations, n * sizeof(*generations));
    if (!generations)
        return -ENOMEM;
    loop->generations = generations;
    for (uint32_t i = n; i-- > loop->n_slots;) {
        slots[i] = NULL;
        generations[i] = 1;
        stack[loop->n_free++] = i;
    }
    loop->n_slots = n;
    return 0;
}

static void slot_release(struct ds_watch *watch)
{
    struct ds_loop *loop = watch->loop;

    loop->slots[watch->slot] = NULL;
    loop->generations[watch->slot]++;
    loop->free_slots[loop->n_free++] = watch->slot;
    free(watch);
}

struct ds_watch *ds_loop_tagged(struct ds_loop *loop, uint64_t tag)
{
    uint32_t slot = (uint32_t) (tag >> 8) & (SLOTS_MAX - 1);
    struct ds_watch *watch = slot < loop->n_slots ? loop->slots[slot] : NULL;

    return watch && watch->generation == (uint32_t) (tag >> 32) ? watch : NULL;
}

static int watch_new(struct ds_loop *loop, int fd, struct ds_watch **ret_watch)
{
    struct ds_watch *watch;
    int r;

    if (loop->n_free == 0) {
        r = slots_grow(loop);
        if (r < 0)
            return r;
    }
    watch = calloc(1, sizeof(*watch));
    if (!watch)
        return -ENOMEM;
    watch->loop = loop;
    watch->fd = fd;
    watch->slot = loop->free_slots[--loop->n_free];
    watch->generation = loop->generations[watch->slot];
    loop->slots[watch->slot] = watch;
    *ret_watch = watch;
    return 0;
}

/* --- watches --- */

static int arm(struct ds_watch *watch)
{
    int r = watch->loop->calls->arm(watch->loop, watch);

    if (r == -EAGAIN) {
        watch->loop->retry = true;
        return 0;
    }
    if (r == 0)
        watch->armed = true;
    return r;
}

int ds_loop_watch(struct ds_loop *loop, enum ds_watch_kind kind, int fd, ds_watch_fn *fn,
                  void *owner, struct ds_watch **ret_watch)
{
    struct ds_watch *watch;
    int r;

    r = watch_new(loop, fd, &watch);
    if (r < 0)
        return r;
    watch->kind = kind;
    watch->fn = fn;
    watch->owner = owner;
    r = arm(watch);
    if (r < 0) {
        slot_release(watch);
        return r;
    }
    *ret_watch = watch;
    return 0;
}

int ds_loop_bell(struct ds_loop *loop, int fd, struct ds_watch **ret_bell)
{
    int r = watch_new(loop, fd, ret_bell);

    if (r == 0)
        (*ret_bell)->bell_out = true;
    return r;
}

void ds_watch_resume(struct ds_watch *watch)
{
    watch->resting = false;
    if (!watch->armed)
        (void) arm(watch);
}

struct ds_watch *ds_watch_remove(struct ds_watch *watch)
{
    if (!watch)
        return NULL;
    assert(!watch->removed);
    watch->removed = true;
    watch->ring_more = false;
    watch->loop->calls->disarm(watch->loop, watch);
    if (watch->in_flight == 0)
        slot_release(watch);
    return NULL;
}

void ds_bell_ring(struct ds_watch *bell)
{
    if (bell->in_flight > 0)
        bell->ring_more = true; /* the write out there may have landed before what is new now */
    else if (bell->loop->calls->ring(bell->loop, bell) == -EAGAIN)
        bell->ring_more = bell->loop->retry = true;
}

int ds_watch_complete(struct ds_watch *watch, int result, bool final)
{
    if (final) {
        assert(watch->in_flight > 0);
        watch->in_flight--;
        watch->armed = false;
    }
    if (watch->removed) {
        if (watch->in_flight == 0)
            slot_release(watch);
        return 0;
    }
    if (watch->bell_out) {
        if (watch->ring_more) {
            watch->ring_more = false;
            ds_bell_ring(watch);
        }
        return 0;
    }
    if (watch->kind == DS_WATCH_ACCEPT && result < 0)
        watch->resting = true;
    watch->in_flight++; /* the callback may remove the watch: hold its memory until we are back */
    watch->fn(watch->owner, result);
    watch->in_flight--;
    if (watch->removed) {
        if (watch->in_flight == 0)
            slot_release(watch);
    } else if (!watch->armed && !watch->resting) {
        (void) arm(watch);
    }
    return 1;
}

static void retry_all(struct ds_loop *loop)
{
    loop->retry = false;
    for (uint32_t i = 0; i < loop->n_slots; i++) {
        struct ds_watch *watch = loop->slots[i];

        if (!watch || watch->removed)
            continue;
        if (watch->bell_out && watch->ring_more && watch->in_flight == 0) {
            watch->ring_more = false;
            ds_bell_ring(watch);
        } else if (!watch->bell_out && !watch->armed && !watch->resting) {
            (void) arm(watch);
        }
    }
}

/* --- timers: a binary heap, earliest first --- */

static void heap_put(struct ds_loop *loop, uint32_t at, struct ds_timer *timer)
{
    loop->heap[at] = timer;
    timer->slot = at + 1;
}

static void heap_up(struct ds_loop *loop, uint32_t at)
{
    struct ds_timer *timer = loop->heap[at];

    for (; at > 0 && loop->heap[(at - 1) / 2]->at_nsec > timer->at_nsec; at = (at - 1) / 2)
        heap_put(loop, at, loop->heap[(at - 1) / 2]);
    heap_put(loop, at, timer);
}

static void heap_down(struct ds_loop *loop, uint32_t at)
{
    struct ds_timer *timer = loop->heap[at];

    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child + 1 < loop->n_timers &&
            loop->heap[child + 1]->at_nsec < loop->heap[child]->at_nsec)
            child++;
        if (child >= loop->n_timers || loop->heap[child]->at_nsec >= timer->at_nsec)
            break;
        heap_put(loop, at, loop->heap[child]);
        at = child;
    }
    heap_put(loop, at, timer);
}

int ds_timer_set(struct ds_loop *loop, struct ds_timer *timer, uint64_t at_nsec, ds_timer_fn *fn,
                 void *owner)
{
    ds_timer_clear(loop, timer);
    if (loop->n_timers == loop->timers_size) {
        uint32_t size = loop->timers_size ? loop->timers_size * 2 : 64;
        struct ds_timer **heap = realloc(loop->heap, size * sizeof(*heap));

        if (!heap)
            return -ENOMEM;
        loop->heap = heap;
        loop->timers_size = size;
    }
    timer->at_nsec = at_nsec;
    timer->fn = fn;
    timer->owner = owner;
    heap_put(loop, loop->n_timers++, timer);
    heap_up(loop, timer->slot - 1);
    return 0;
}

void ds_timer_clear(struct ds_loop *loop, struct ds_timer *timer)
{
    uint32_t at;
    struct ds_timer *last;

    if (timer->slot == 0)
        return;
    at = timer->slot - 1;
    timer->slot = 0;
    last = loop->heap[--loop->n_timers];
    if (last == timer)
        return;
    heap_put(loop, at, last);
    heap_up(loop, at);
    heap_down(loop, last->slot - 1);
}

static int timers_run(struct ds_loop *loop)
{
    int ran = 0;

    if (loop->n_timers > 0) {
        uint64_t now = ds_now_nsec();

        while (loop->n_timers > 0 && loop->heap[0]->at_nsec <= now) {
            struct ds_timer *timer = loop->heap[0];

            ds_timer_clear(loop, timer);
            timer->fn(timer->owner);
            ran++;
        }
    }
    return ran;
}

/* --- loop --- */

void ds_loop_flush(struct ds_loop *loop)
{
    loop->calls->flush(loop);
}

bool ds_loop_pending(const struct ds_loop *loop)
{
    return loop->calls->pending(loop);
}

int ds_loop_turn(struct ds_loop *loop, bool block)
{
    uint64_t timeout = 0;
    int ran = timers_run(loop), r;

    if (loop->retry)
        retry_all(loop);
    if (block && ran == 0 && !loop->retry) {
        timeout = UINT64_MAX;
        if (loop->n_timers > 0) {
            uint64_t now = ds_now_nsec(), at = loop->heap[0]->at_nsec;

            timeout = at > now ? at - now : 0;
        }
        loop->wakeups++;
    }
    r = loop->calls->turn(loop, timeout);
    if (r < 0)
        return r;
    return ran + r + timers_run(loop);
}

uint64_t ds_loop_wakeups(const struct ds_loop *loop)
{
    return loop->wakeups;
}

const char *ds_loop_name(const struct ds_loop *loop)
{
    return loop->calls->name;
}

int ds_loop_new(struct ds_loop **ret_loop, enum ds_loop_backend backend, struct ds_error *why)
{
    struct ds_loop *loop = calloc(1, sizeof(*loop));
    int r = -ENOMEM;

    if (why)
        why->text[0] = 0;
    if (!loop)
        return -ENOMEM;
    r = backend == DS_LOOP_EPOLL ? ds_loop_epoll_new(loop) : ds_loop_uring_new(loop, why);
    if (r < 0 && backend == DS_LOOP_AUTO)
        r = ds_loop_epoll_new(loop);
    if (r < 0) {
        free(loop);
        return r;
    }
    *ret_loop = loop;
    return 0;
}

struct ds_loop *ds_loop_free(struct ds_loop *loop)
{
    if (!loop)
        return NULL;
    loop->calls->free(loop); /* ends every operation: nothing points into the slots any more */
    for (uint32_t i = 0; i < loop->n_slots; i++)
        free(loop->slots[i]);
    free(loop->slots);
    free(loop->free_slots);
    free(loop->generations);
    free(loop->heap);
    free(loop);
    return NULL;
}

void ds_loop_free_p(struct ds_loop **loop)
{
    *loop = ds_loop_free(*loop);
}
