/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: tasks come back finished, in order, exactly once, and nobody runs while there is none.
 * Method: real threads; tasks that count, and one that waits until the test lets it go on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>

#include "engine/worker.h"
#include "proto/base.h"

#define N_TASKS 1000

struct counted {
    struct ds_task task;
    int number;
    int runs;
    pthread_mutex_t *gate; /* held by the test while the task has to wait; may be NULL */
};

static void count(struct ds_task *task)
{
    struct counted *counted = (struct counted *) task;

    if (counted->gate) {
        pthread_mutex_lock(counted->gate);
        pthread_mutex_unlock(counted->gate);
    }
    counted->runs++;
}

static void wait_readable(struct ds_results *results)
{
    struct pollfd fd = { .fd = ds_results_fd(results), .events = POLLIN };

    assert_int_equal(poll(&fd, 1, 10000), 1);
}

static bool is_readable(struct ds_results *results)
{
    struct pollfd fd = { .fd = ds_results_fd(results), .events = POLLIN };

    return poll(&fd, 1, 0) == 1;
}

static void test_every_task_comes_back_once_and_in_order(void **state)
{
    struct counted *tasks = calloc(N_TASKS, sizeof *tasks);
    struct ds_results *results;
    struct ds_worker *worker;
    int n_back = 0;

    (void) state;
    assert_int_equal(ds_results_new(&results), 0);
    assert_int_equal(ds_worker_new(&worker, results, "test"), 0);
    for (int i = 0; i < N_TASKS; i++) {
        tasks[i] = (struct counted){ .task = { .run = count }, .number = i };
        ds_worker_post(worker, &tasks[i].task);
    }
    while (n_back < N_TASKS) {
        wait_readable(results);
        for (struct ds_task *task = ds_results_take(results); task; task = task->next) {
            assert_int_equal(((struct counted *) task)->number, n_back);
            assert_int_equal(((struct counted *) task)->runs, 1);
            n_back++;
        }
    }
    assert_null(ds_results_take(results));
    assert_false(is_readable(results));
    worker = ds_worker_free(worker);
    results = ds_results_free(results);
    free(tasks);
}

static void test_tasks_not_begun_come_back_unrun_when_the_worker_ends(void **state)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    struct counted tasks[3] = { 0 };
    struct ds_results *results;
    struct ds_worker *worker;
    int n_back = 0, n_runs = 0;

    (void) state;
    assert_int_equal(ds_results_new(&results), 0);
    assert_int_equal(ds_worker_new(&worker, results, "test"), 0);
    pthread_mutex_lock(&gate);
    for (int i = 0; i < 3; i++) {
        tasks[i] = (struct counted){ .task = { .run = count }, .number = i };
        tasks[i].gate = &gate;
        ds_worker_post(worker, &tasks[i].task);
    }
    pthread_mutex_unlock(&gate);
    worker = ds_worker_free(worker);
    assert_null(worker);
    for (struct ds_task *task = ds_results_take(results); task; task = task->next) {
        assert_int_equal(((struct counted *) task)->number, n_back);
        n_runs += ((struct counted *) task)->runs;
        n_back++;
    }
    assert_int_equal(n_back, 3);
    assert_true(n_runs <= 3);
    results = ds_results_free(results);
    pthread_mutex_destroy(&gate);
}

static void test_a_poke_wakes_without_a_task(void **state)
{
    struct ds_results *results;

    (void) state;
    assert_int_equal(ds_results_new(&results), 0);
    assert_false(is_readable(results));
    ds_results_poke(results);
    ds_results_poke(results);
    assert_true(is_readable(results));
    assert_null(ds_results_take(results));
    assert_false(is_readable(results));
    results = ds_results_free(results);
    assert_null(ds_results_free(NULL));
    assert_null(ds_worker_free(NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_comes_back_once_and_in_order),
        cmocka_unit_test(test_tasks_not_begun_come_back_unrun_when_the_worker_ends),
        cmocka_unit_test(test_a_poke_wakes_without_a_task),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
