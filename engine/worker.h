/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.h - helper threads of the step loop: tasks go out, finished tasks come back.
 *
 *   loop thread:    ds_worker_post() -> ... poll(ds_results_fd()) -> ds_results_take()
 *   worker thread:            task->run(task)  -> results
 *
 * A worker runs its tasks one at a time in the order they were posted; between tasks it sleeps. A
 * task belongs to the worker from post until take gives it back. All calls are the loop thread's,
 * except ds_results_poke(), which any thread may use.
 */
#pragma once

#include <stdbool.h>

struct ds_task {
    struct ds_task *next;
    void (*run)(struct ds_task *task);             /* on the worker's thread */
    void (*done)(struct ds_task *task, void *arg); /* on the loop's thread; owns task */
};

/* Finished tasks of any number of workers, with an eventfd that is readable while there are some or
 * somebody poked. */
struct ds_results;
int ds_results_new(struct ds_results **ret_results);
struct ds_results *ds_results_free(struct ds_results *results); /* must be empty */
int ds_results_fd(const struct ds_results *results);

/* All finished tasks, oldest first, linked by next; NULL: none. Resets the eventfd. */
struct ds_task *ds_results_take(struct ds_results *results);

/* Wakes the loop although no task is finished. */
void ds_results_poke(struct ds_results *results);

/* results is borrowed and must outlive the worker. name: at most 15 bytes, for ps and gdb. */
struct ds_worker;
int ds_worker_new(struct ds_worker **ret_worker, struct ds_results *results, const char *name);
void ds_worker_post(struct ds_worker *worker, struct ds_task *task);

/* Waits for the task that runs; those not begun go to the results unrun. Accepts NULL. */
struct ds_worker *ds_worker_free(struct ds_worker *worker);
