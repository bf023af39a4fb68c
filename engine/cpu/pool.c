/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job lives in the pool itself; `gate` says whether it may be entered:
 *
 *      gate = generation << 32 | OPEN << 31 | helpers inside
 *
 * run() writes the job, then opens the gate (release). A helper enters by adding one to an open
 * gate (acquire) and leaves by subtracting one (release). run() takes items itself until none is
 * left, closes the gate, and waits until nobody is inside (acquire). A helper that comes too late
 * finds the gate closed and never touches the job.
 *
 * Sleep: `bell` is a futex word that run() increments after opening the gate. A helper reads the
 * bell, finds no open gate, announces itself in `n_sleepers`, and sleeps on the value read; both
 * sides order their store before their load (seq_cst), so either run() sees the sleeper or the
 * kernel sees the new bell.
 */
#include "engine/cpu/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>

#include "proto/base.h"

#define GATE_OPEN   (1ull << 31)
#define GATE_INSIDE (GATE_OPEN - 1)
#define GATE_NEXT   (1ull << 32)

struct helper {
    struct ds_pool *pool;
    pthread_t thread;
    unsigned index;
    uint64_t
        spin_nsec; /* 0 beyond the processors there are: spinning there takes one from others */
};

struct ds_pool {
    unsigned n_threads; /* with the caller */
    uint64_t spin_nsec;

    /* The job: written by run() while the gate is closed and nobody is inside. */
    ds_pool_item item;
    void *arg;
    uint32_t n_items;
    uint32_t grain;

    _Alignas(64) _Atomic uint64_t gate;
    _Alignas(64) _Atomic uint64_t next; /* first item not yet taken */
    _Alignas(64) _Atomic uint32_t bell;
    _Atomic uint32_t n_sleepers;
    _Atomic uint32_t left; /* futex: bumped by a helper that leaves a closed gate last */
    atomic_bool waiting;   /* run() sleeps on left */
    atomic_bool quit;
    unsigned n_helpers; /* started */
    struct helper helpers[];
};

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    (void) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    (void) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void work(struct ds_pool *pool, unsigned thread)
{
    for (;;) {
        uint64_t first = atomic_fetch_add_explicit(&pool->next, pool->grain, memory_order_relaxed);
        uint64_t end = first + pool->grain;

        if (first >= pool->n_items)
            return;
        if (end > pool->n_items)
            end = pool->n_items;
        for (uint64_t i = first; i < end; i++)
            pool->item(pool->arg, (uint32_t) i, thread);
    }
}

static bool enter(struct ds_pool *pool)
{
    uint64_t gate = atomic_load_explicit(&pool->gate, memory_order_relaxed);

    while (gate & GATE_OPEN)
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1,
                                                  memory_order_acquire, memory_order_relaxed))
            return true;
    return false;
}

static void leave(struct ds_pool *pool)
{
    /* Orders the decrement before the look at `waiting`; pairs with the exchange in join(). */
    uint64_t gate = atomic_fetch_sub_explicit(&pool->gate, 1, memory_order_seq_cst) - 1;

    if ((gate & GATE_INSIDE) == 0 && atomic_load(&pool->waiting)) {
        (void) atomic_fetch_add(&pool->left, 1);
        futex_wake(&pool->left, 1);
    }
}

/* The generation this helper has worked for: with no items left it must not enter again and again
 * while slower ones finish. */
static uint64_t generation(struct ds_pool *pool)
{
    return atomic_load_explicit(&pool->gate, memory_order_relaxed) / GATE_NEXT;
}

static bool wait_for_job(struct ds_pool *pool, uint64_t spin_nsec, uint64_t done)
{
    uint64_t deadline = ds_now_nsec() + spin_nsec;

    for (unsigned i = 1;; i++) {
        uint32_t bell = atomic_load(&pool->bell);

        if (atomic_load_explicit(&pool->quit, memory_order_acquire))
            return false;
        if (generation(pool) != done)
            return true;
        if (i % 16 || ds_now_nsec() < deadline) {
            cpu_pause();
            continue;
        }
        (void) atomic_fetch_add(&pool->n_sleepers, 1);
        if (generation(pool) == done && !atomic_load(&pool->quit))
            futex_wait(&pool->bell, bell);
        (void) atomic_fetch_sub(&pool->n_sleepers, 1);
    }
}

static void *helper_main(void *arg)
{
    struct helper *helper = arg;
    struct ds_pool *pool = helper->pool;
    uint64_t done = 0;

    while (wait_for_job(pool, helper->spin_nsec, done)) {
        done = generation(pool);
        if (enter(pool)) {
            work(pool, helper->index);
            leave(pool);
        }
    }
    return NULL;
}

static int start_helpers(struct ds_pool *pool)
{
    const unsigned n_allowed = ds_pool_n_allowed();
    sigset_t all, before;
    int r = 0;

    (void) sigfillset(&all);
    (void) pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned i = 1; i < pool->n_threads && r == 0; i++) {
        struct helper *helper = &pool->helpers[i - 1];

        helper->pool = pool;
        helper->index = i;
        helper->spin_nsec = i < n_allowed ? pool->spin_nsec : 0;
        r = -pthread_create(&helper->thread, NULL, helper_main, helper);
        if (r == 0) {
            char name[24]; /* more than 15 characters are refused, which would not matter */

            (void) snprintf(name, sizeof name, "ds-cpu-%u", i);
            (void) pthread_setname_np(helper->thread, name);
            pool->n_helpers = i;
        }
    }
    (void) pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

int ds_pool_new(struct ds_pool **ret_pool, unsigned n_threads, unsigned spin_usec)
{
    struct ds_pool *pool;
    size_t bytes;
    int r;

    if (n_threads == 0)
        n_threads = ds_pool_n_allowed();
    if (n_threads > DS_POOL_THREADS_MAX)
        n_threads = DS_POOL_THREADS_MAX;
    bytes = (sizeof *pool + n_threads * sizeof(struct helper) + 63) / 64 * 64;
    pool = aligned_alloc(64, bytes);
    if (!pool)
        return -ENOMEM;
    memset(pool, 0, bytes);
    pool->n_threads = n_threads;
    pool->spin_nsec = spin_usec * 1000ull;
    r = start_helpers(pool);
    if (r < 0) {
        ds_pool_free(pool);
        return r;
    }
    *ret_pool = pool;
    return 0;
}

struct ds_pool *ds_pool_free(struct ds_pool *pool)
{
    if (!pool)
        return NULL;
    atomic_store(&pool->quit, true);
    (void) atomic_fetch_add(&pool->bell, 1);
    futex_wake(&pool->bell, INT32_MAX);
    for (unsigned i = 0; i < pool->n_helpers; i++)
        (void) pthread_join(pool->helpers[i].thread, NULL);
    free(pool);
    return NULL;
}

unsigned ds_pool_n_threads(const struct ds_pool *pool)
{
    return pool->n_threads;
}

/* Closes the gate and waits until the last helper inside has left. */
static void join(struct ds_pool *pool)
{
    uint64_t gate = atomic_fetch_and_explicit(&pool->gate, ~GATE_OPEN, memory_order_acq_rel);
    uint64_t deadline;

    if ((gate & GATE_INSIDE) == 0)
        return;
    deadline = ds_now_nsec() + pool->spin_nsec;
    for (unsigned i = 1;; i++) {
        uint32_t left;

        if ((atomic_load_explicit(&pool->gate, memory_order_acquire) & GATE_INSIDE) == 0)
            return;
        if (i % 16 || ds_now_nsec() < deadline) {
            cpu_pause();
            continue;
        }
        left = atomic_load(&pool->left);
        (void) atomic_exchange(&pool->waiting, true); /* pairs with the seq_cst in leave() */
        if ((atomic_load(&pool->gate) & GATE_INSIDE) != 0)
            futex_wait(&pool->left, left);
        atomic_store(&pool->waiting, false);
    }
}

void ds_pool_run(struct ds_pool *pool, ds_pool_item item, void *arg, uint32_t n_items,
                 uint32_t grain)
{
    if (grain == 0)
        grain = 1;
    if (pool->n_helpers == 0 || n_items <= grain) {
        for (uint32_t i = 0; i < n_items; i++)
            item(arg, i, 0);
        return;
    }
    pool->item = item;
    pool->arg = arg;
    pool->n_items = n_items;
    pool->grain = grain;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    /* Nobody is inside and the gate is closed: a plain step to the next generation opens it. */
    (void) atomic_fetch_add(&pool->gate, GATE_NEXT | GATE_OPEN);
    (void) atomic_fetch_add(&pool->bell, 1);
    if (atomic_load(&pool->n_sleepers) > 0)
        futex_wake(&pool->bell, INT32_MAX);
    work(pool, 0);
    join(pool);
}
