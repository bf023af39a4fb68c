/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.h - a few persistent threads that help their caller through one loop at a time.
 *
 * run() cuts a loop into items; the caller and whoever of the helpers is awake take items until
 * none is left. Who runs which item is chance, so an item's result must not depend on it. The
 * caller waits only for helpers that have joined: one that sleeps or has been descheduled before
 * joining holds nobody up.
 *
 * Between jobs a helper spins for spin_usec, then sleeps in a futex until the next job: an idle
 * pool makes no wake-ups. Helpers beyond ds_pool_n_allowed() never spin. One thread at a time may
 * call run(); it must not be called from an item.
 */
#pragma once

#include <stdint.h>

#define DS_POOL_THREADS_MAX  256u
#define DS_POOL_SPIN_DEFAULT 50u /* microseconds */

struct ds_pool;

/* thread is 0 for the caller, below ds_pool_n_threads(): an index for scratch memory. */
typedef void (*ds_pool_item)(void *arg, uint32_t item, unsigned thread);

/* n_threads counts the caller; 0 = ds_pool_n_allowed(). Signals are blocked in the helpers.
 * -ENOMEM, -EAGAIN. */
int ds_pool_new(struct ds_pool **ret_pool, unsigned n_threads, unsigned spin_usec);
struct ds_pool *ds_pool_free(struct ds_pool *pool); /* joins the threads; NULL is a no-op */

unsigned ds_pool_n_threads(const struct ds_pool *pool);

/* Calls item(arg, 0..n_items-1, thread), each once; returns when all are done. Items are taken
 * grain at a time (0 is taken as 1). Everything written before the call is seen by the items,
 * everything they write is seen after it. */
void ds_pool_run(struct ds_pool *pool, ds_pool_item item, void *arg, uint32_t n_items,
                 uint32_t grain);

/* Threads this process may keep busy: its affinity mask, and no more than the cpu quota of its
 * cgroup and of all those above it, rounded up. At least 1. */
unsigned ds_pool_n_allowed(void);

/* cpu.max text ("150000 100000", "max 100000") as whole cpus, rounded up; 0 = no limit or not
 * understood. */
unsigned ds_pool_parse_cpu_max(const char *text);
