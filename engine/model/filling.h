/* SPDX-License-Identifier: Apache-2.0 */
/*
 * filling.h - a model's weights, filled from its files by all processors at once.
 *
 * Loading walks the model first and only notes what is to be filled; ds_filling_run() does it. Its
 * threads are its own and end with it: the backend's go on with the steps of other models, and
 * must not wait. Where there are such models (ds_backend::stand_back) the threads are SCHED_IDLE,
 * which yields to every step at once, but for one that is only nice: where others take all
 * processors for good, a load still gets done.
 *
 * Reading: pages the page cache has are used where they lie; the others are asked for (WILLNEED)
 * in the order in which they will be needed, READ_AHEAD bytes ahead of the filling, so that the
 * disk reads while the processors repack. tests/bench/bench_load.c holds it against O_DIRECT.
 */
#pragma once

#include "engine/backend.h"

struct ds_filling;

/* -ENOMEM. The backend has weight_alloc. */
int ds_filling_new(struct ds_filling **ret_filling, struct ds_backend *backend);
struct ds_filling *ds_filling_free(struct ds_filling *filling); /* accepts NULL */
void ds_filling_free_p(struct ds_filling **filling);

/* weight was made from matrices[n] by weight_alloc(): the descriptions are copied, their data and
 * the weight must stay until run() has returned. -ENOMEM. */
int ds_filling_add(struct ds_filling *filling, struct ds_weight *weight,
                   const struct ds_tensor *matrices, uint32_t n);

/* Fills all that was added, once. progress (may be NULL) is called by the calling thread some
 * times a second; not 0 = give up. -ECANCELED, -ENOMEM. */
int ds_filling_run(struct ds_filling *filling, int (*progress)(void *arg, double fraction),
                   void *arg);
