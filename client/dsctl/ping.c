/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ping - the bare round trip through the rings: no model, no engine. Spinning, neither side makes a
 * system call; blocked, each ping costs two wake-ups, as a token to a sleeping client costs one.
 */
#include <sched.h>

#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"
#include "client/dsctl/statistics.h"

#include "proto/base.h"

enum { KEY_SPIN = 400, KEY_BLOCK };

#define WARM_UP   200
#define N_DEFAULT 10000
#define N_MAX     10000000
#define BAR_WIDTH 40

#define LOOKS_PER_YIELD 512

struct options {
    bool block;
    uint64_t n;
};

static int take(void *target, int key, const char *value)
{
    struct options *options = target;

    switch (key) {
    case 'n':
        return dsctl_number("-n", value, 1, N_MAX, &options->n);
    case KEY_BLOCK:
        options->block = true;
        return DSCTL_OK;
    default:
        options->block = false;
        return DSCTL_OK;
    }
}

/* One round trip, in nanoseconds. */
static int once(struct dsctl *dsctl, bool block, uint64_t *ret_nsec)
{
    const uint64_t start = ds_now_nsec();
    struct ds_event event;
    unsigned looks = 0;
    uint64_t id;
    int r;

    r = ds_ping(dsctl->ds, &id);
    if (r < 0)
        return r;
    do {
        if (++looks % LOOKS_PER_YIELD == 0)
            (void) sched_yield(); /* dsd may be waiting for this very processor */
        r = ds_next(dsctl->ds, &event, block ? -1 : 0);
    } while (r == DS_NONE || r == -EINTR || (r == 0 && event.type != DS_EVENT_PONG));
    *ret_nsec = ds_now_nsec() - start;
    return r;
}

/* Powers of two of nanoseconds, as bars. */
static void print_histogram(const uint64_t *sorted, size_t n)
{
    char bar[BAR_WIDTH + 1];
    size_t most = 1, i = 0;

    for (int round = 0; round < 2; round++) {
        for (i = 0; i < n;) {
            unsigned bits = 63 - (unsigned) __builtin_clzll(sorted[i] | 1);
            size_t first = i, width;

            while (i < n && 63 - (unsigned) __builtin_clzll(sorted[i] | 1) == bits)
                i++;
            if (round == 0) {
                most = i - first > most ? i - first : most;
                continue;
            }
            width = ((i - first) * BAR_WIDTH + most - 1) / most;
            memset(bar, '#', width);
            bar[width] = '\0';
            printf("%10llu ns.. %9zu  %s\n", 1ull << bits, i - first, bar);
        }
    }
}

static void print(struct dsctl *dsctl, bool block, uint64_t *times, size_t n)
{
    const char *mode = block ? "block" : "spin";

    dsctl_sort(times, n);
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddStringToObject(object, "mode", mode);
        dsctl_json_u64(object, "n", n);
        dsctl_json_u64(object, "p50_ns", dsctl_quantile(times, n, 0.5));
        dsctl_json_u64(object, "p90_ns", dsctl_quantile(times, n, 0.9));
        dsctl_json_u64(object, "p99_ns", dsctl_quantile(times, n, 0.99));
        dsctl_json_u64(object, "p999_ns", dsctl_quantile(times, n, 0.999));
        dsctl_json_print(object);
        return;
    }
    print_histogram(times, n);
    printf("%s, %zu round trips: p50 %llu ns, p90 %llu ns, p99 %llu ns, p99.9 %llu ns\n", mode, n,
           (unsigned long long) dsctl_quantile(times, n, 0.5),
           (unsigned long long) dsctl_quantile(times, n, 0.9),
           (unsigned long long) dsctl_quantile(times, n, 0.99),
           (unsigned long long) dsctl_quantile(times, n, 0.999));
}

static int ping(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_free_p) uint64_t *times = NULL;
    struct options options = { .n = N_DEFAULT };
    uint64_t ignored;
    int code, first, r = 0;

    code = dsctl_options(dsctl, argc, argv, take, &options, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    times = calloc(options.n, sizeof *times);
    if (!times)
        return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
    dsctl->never_spin = options.block;
    code = dsctl_connect(dsctl, 0);
    if (code != DSCTL_OK)
        return code;
    for (int i = 0; i < WARM_UP && r == 0; i++)
        r = once(dsctl, options.block, &ignored);
    for (uint64_t i = 0; i < options.n && r == 0; i++)
        r = once(dsctl, options.block, &times[i]);
    if (r < 0)
        return dsctl_failed(dsctl, r);
    print(dsctl, options.block, times, options.n);
    return DSCTL_OK;
}

static const struct dsctl_option options_table[] = {
    { "count", "N", "round trips (default 10000)", 'n' },
    { "spin", NULL, "look for the answer without pause (default)", KEY_SPIN },
    { "block", NULL, "sleep until the answer comes", KEY_BLOCK },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_ping = { .name = "ping",
                                       .operands = "",
                                       .summary = "round trips to the daemon, as a histogram",
                                       .options = options_table,
                                       .run = ping };
