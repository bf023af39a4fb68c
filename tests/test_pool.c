/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a pool runs every item once and hands results over, at any number of threads and any moment
 * of their sleep; idle, it does nothing at all. Method: plain counters without atomics (the thread
 * sanitizer sees any gap), very many short jobs, spinning and sleeping helpers; the kernel's count
 * of context switches.
 */
#include <dirent.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/cpu/pool.h"
#include "proto/base.h"

struct job {
    uint32_t offset;
    uint32_t *counts;
    unsigned *threads;
};

static void count(void *arg, uint32_t item, unsigned thread)
{
    struct job *job = arg;

    job->counts[item] += 1 + job->offset;
    if (job->threads)
        job->threads[item] = thread;
}

static struct ds_pool *new_pool(unsigned n_threads, unsigned spin_usec)
{
    struct ds_pool *pool = NULL;

    assert_int_equal(ds_pool_new(&pool, n_threads, spin_usec), 0);
    return pool;
}

static void every_item_runs_once(void **state)
{
    static const uint32_t sizes[] = { 0, 1, 2, 3, 100, 1000, 65537 };

    (void) state;
    for (unsigned n_threads = 1; n_threads <= 9; n_threads += 2) {
        struct ds_pool *pool = new_pool(n_threads, 50);

        for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (uint32_t grain = 0; grain < 40; grain += 13) {
                uint32_t n = sizes[i];
                uint32_t *counts = calloc(n + 1, sizeof *counts);
                unsigned *threads = calloc(n + 1, sizeof *threads);
                struct job job = { 0, counts, threads };

                assert_non_null(counts);
                assert_non_null(threads);
                ds_pool_run(pool, count, &job, n, grain);
                for (uint32_t j = 0; j < n; j++) {
                    assert_int_equal(counts[j], 1);
                    assert_true(threads[j] < n_threads);
                }
                assert_int_equal(counts[n], 0);
                free(counts);
                free(threads);
            }
        ds_pool_free(pool);
    }
}

/* Writes of the caller before a job and of the items in it reach the other side each time. */
static void many_short_jobs(struct ds_pool *pool, unsigned n_jobs, unsigned pause_every)
{
    uint32_t counts[24] = { 0 }, total = 0;
    struct job job = { 0, counts, NULL };

    for (uint32_t i = 0; i < n_jobs; i++) {
        uint32_t n = 2 + i % 23;

        job.offset = i;
        ds_pool_run(pool, count, &job, n, 1);
        total += (1 + i) * n;
        for (uint32_t j = 0; j < 24; j++)
            total -= counts[j];
        assert_int_equal(total, 0);
        memset(counts, 0, sizeof counts);
        if (pause_every && i % pause_every == 0) {
            uint64_t end = ds_now_nsec() + 3000 * (i / pause_every % 40); /* 0 .. 120 us */

            while (ds_now_nsec() < end)
                ;
        }
    }
}

static void very_many_short_jobs_lose_nothing(void **state)
{
    (void) state;
    for (unsigned n_threads = 2; n_threads <= 8; n_threads *= 2) {
        struct ds_pool *pool = new_pool(n_threads, 50);

        many_short_jobs(pool, 20000, 0);
        ds_pool_free(pool);
    }
}

static void helpers_caught_between_spinning_and_sleeping_wake_up(void **state)
{
    static const unsigned spins[] = { 0, 1, 30, 60 };

    (void) state;
    for (unsigned i = 0; i < 4; i++) {
        struct ds_pool *pool = new_pool(3, spins[i]);

        many_short_jobs(pool, 3000, 2);
        ds_pool_free(pool);
    }
}

static void a_pool_can_end_at_once(void **state)
{
    (void) state;
    for (unsigned i = 0; i < 50; i++)
        ds_pool_free(new_pool(1 + i % 6, i % 3 * 40));
    assert_null(ds_pool_free(NULL));
}

/* Voluntary and other context switches of all threads but this one, as the kernel counts them; sets
 * *ret_running where one of them does not sleep. */
static unsigned long switches_of_helpers(unsigned *ret_running)
{
    DIR *tasks = opendir("/proc/self/task");
    unsigned long total = 0;
    struct dirent *entry;

    *ret_running = 0;
    assert_non_null(tasks);
    while ((entry = readdir(tasks))) {
        char path[300], line[200];
        unsigned long n;
        FILE *file;

        if (entry->d_name[0] == '.' || atoi(entry->d_name) == getpid())
            continue;
        (void) snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        file = fopen(path, "r");
        assert_non_null(file);
        while (fgets(line, sizeof line, file)) {
            if (sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1 ||
                sscanf(line, "nonvoluntary_ctxt_switches: %lu", &n) == 1)
                total += n;
            if (strncmp(line, "State:\t", 7) == 0 && line[7] != 'S')
                (*ret_running)++;
        }
        (void) fclose(file);
    }
    (void) closedir(tasks);
    return total;
}

static void an_idle_pool_makes_no_wake_ups(void **state)
{
#ifdef __SANITIZE_THREAD__
    (void) state;
    printf("skip: the thread sanitizer has a thread of its own: wake-ups are not counted\n");
#else
    struct ds_pool *pool = new_pool(4, 50);
    uint64_t deadline = ds_now_nsec() + 5000000000u;
    unsigned running;
    unsigned long before;

    (void) state;
    many_short_jobs(pool, 100, 0);
    do {
        before = switches_of_helpers(&running);
        assert_true(ds_now_nsec() < deadline); /* they must fall asleep */
    } while (running);
    /* The period watched, not a wait for anything. */
    (void) nanosleep(&(struct timespec){ 0, 500000000 }, NULL);
    assert_int_equal(switches_of_helpers(&running), before);
    assert_int_equal(running, 0);
    many_short_jobs(pool, 100, 0);
    ds_pool_free(pool);
#endif
}

static void a_cpu_quota_is_rounded_up(void **state)
{
    (void) state;
    assert_int_equal(ds_pool_parse_cpu_max("max 100000\n"), 0);
    assert_int_equal(ds_pool_parse_cpu_max("100000 100000\n"), 1);
    assert_int_equal(ds_pool_parse_cpu_max("150000 100000\n"), 2);
    assert_int_equal(ds_pool_parse_cpu_max("1000 100000"), 1);
    assert_int_equal(ds_pool_parse_cpu_max("400000 100000"), 4);
    assert_int_equal(ds_pool_parse_cpu_max(""), 0);
    assert_int_equal(ds_pool_parse_cpu_max("100000"), 0);
    assert_int_equal(ds_pool_parse_cpu_max("100000 0"), 0);
    assert_int_equal(ds_pool_parse_cpu_max("18446744073709551615 1"), 0);
    assert_in_range(ds_pool_n_allowed(), 1, DS_POOL_THREADS_MAX);
}

static void no_more_threads_than_the_affinity_mask_allows(void **state)
{
    cpu_set_t before, one;
    struct ds_pool *pool;

    (void) state;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &before)) {
            CPU_SET(i, &one);
            break;
        }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    pool = new_pool(0, 50);
    assert_int_equal(ds_pool_n_threads(pool), 1);
    ds_pool_free(pool);
    /* More than that on request: helpers that get no processor hold nobody up for long. */
    pool = new_pool(4, 50);
    many_short_jobs(pool, 300, 0);
    ds_pool_free(pool);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_once),
        cmocka_unit_test(very_many_short_jobs_lose_nothing),
        cmocka_unit_test(helpers_caught_between_spinning_and_sleeping_wake_up),
        cmocka_unit_test(a_pool_can_end_at_once),
        cmocka_unit_test(an_idle_pool_makes_no_wake_ups),
        cmocka_unit_test(a_cpu_quota_is_rounded_up),
        cmocka_unit_test(no_more_threads_than_the_affinity_mask_allows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
