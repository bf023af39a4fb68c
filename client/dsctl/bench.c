/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench - how fast a model reads (pp) and writes (tg) through the daemon.
 *
 * pp: prompts of N token ids drawn at random, another one every time, so that no prefix of it is
 * cached; the time is the engine's own from the first step to the first token. tg: N tokens after
 * the first one, which belongs to the prompt's step; the time is the engine's own from the first
 * token to the last. With several streams the rates are sums over the time in which all of them
 * ran, by our clock.
 */
#include "client/dsctl/bench.h"
#include "client/dsctl/json.h"
#include "client/dsctl/statistics.h"

#include <sys/random.h>

#include "proto/base.h"

enum { KEY_STREAMS = 400, KEY_FULL, KEY_CSV };

#define REPEATS_MAX 1000
#define TOKENS_MAX  1000000

static const struct bench_list full_prompts = { { 1, 8, 64, 512, 2048 }, 5 };
static const struct bench_list full_depths = { { 0, 512, 4096 }, 3 };
static const struct bench_list full_streams = { { 1, 2, 4, 8, 16, 32, 64 }, 7 };

/* "1,8,64"; a lone 0 where that is allowed leaves the list empty if empties. */
static int take_list(const char *what, const char *value, uint64_t min, uint64_t max, bool empties,
                     struct bench_list *list)
{
    ds_cleanup(ds_free_p) char *copy = strdup(value);
    char *rest = copy, *item;

    list->n = 0;
    while (copy && (item = strsep(&rest, ","))) {
        uint64_t number;

        if (list->n == BENCH_LIST_MAX) {
            fprintf(stderr, "dsctl: %s takes at most %d numbers\n", what, BENCH_LIST_MAX);
            return DSCTL_USAGE;
        }
        if (dsctl_number(what, item, min, max, &number) != DSCTL_OK)
            return DSCTL_USAGE;
        list->values[list->n++] = number;
    }
    if (empties && list->n == 1 && list->values[0] == 0)
        list->n = 0;
    return copy ? DSCTL_OK : DSCTL_ERROR;
}

static int take(void *target, int key, const char *value)
{
    struct bench *bench = target;

    switch (key) {
    case 'p':
        return take_list("-p", value, 0, TOKENS_MAX, true, &bench->prompts);
    case 'n':
        return dsctl_number("-n", value, 0, TOKENS_MAX, &bench->n_generate);
    case 'd':
        return take_list("-d", value, 0, TOKENS_MAX, false, &bench->depths);
    case 'r':
        return dsctl_number("-r", value, 1, REPEATS_MAX, &bench->repeats);
    case KEY_CSV:
        bench->csv = true;
        return DSCTL_OK;
    case KEY_FULL:
        bench->prompts = full_prompts;
        bench->depths = full_depths;
        bench->streams = full_streams;
        return DSCTL_OK;
    default:
        return take_list("--streams", value, 1, BENCH_STREAMS_MAX, false, &bench->streams);
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

static int measure(struct bench *bench, bool reading, uint64_t n, uint64_t depth, uint64_t streams)
{
    ds_cleanup(ds_free_p) double *rates = calloc(bench->repeats, sizeof *rates);
    ds_cleanup(ds_free_p) double *waits = calloc(bench->repeats, sizeof *waits);
    struct bench_row row = { .reading = reading, .n = n, .depth = depth, .streams = streams };
    struct bench_row warm = row;
    char test[32];
    int code;

    if (!rates || !waits)
        return dsctl_fail(bench->dsctl, DSCTL_ERROR, "out of memory");
    (void) snprintf(test, sizeof test, "%s%llu", reading ? "pp" : "tg", (unsigned long long) n);
    if (!reading)
        warm.n = 1;
    code = bench_round(bench, &warm, rates, waits); /* what is lazy */
    for (uint64_t i = 0; i < bench->repeats && code == DSCTL_OK; i++) {
        dsctl_progress(bench->dsctl, test, (double) i / (double) bench->repeats);
        code = bench_round(bench, &row, &rates[i], &waits[i]);
    }
    if (code != DSCTL_OK)
        return code;
    row.mean = dsctl_mean(rates, bench->repeats);
    row.deviation = dsctl_deviation(rates, bench->repeats);
    qsort(waits, bench->repeats, sizeof *waits, by_size);
    row.wait_ms = waits[bench->repeats / 2];
    bench_print(bench, &row);
    return DSCTL_OK;
}

/* Every prompt length and depth with the first number of streams, then the other numbers of
 * streams at the first depth. */
static int measure_all(struct bench *bench)
{
    int code = DSCTL_OK;

    for (unsigned i = 0; i < bench->prompts.n && code == DSCTL_OK; i++)
        code = measure(bench, true, bench->prompts.values[i], 0, bench->streams.values[0]);
    if (bench->n_generate == 0)
        return code;
    for (unsigned i = 0; i < bench->depths.n && code == DSCTL_OK; i++)
        code = measure(bench, false, bench->n_generate, bench->depths.values[i],
                       bench->streams.values[0]);
    for (unsigned i = 1; i < bench->streams.n && code == DSCTL_OK; i++)
        code = measure(bench, false, bench->n_generate, bench->depths.values[0],
                       bench->streams.values[i]);
    return code;
}

/* Leaves out, aloud, what the model's context cannot hold. */
static void fit(const struct bench *bench, const char *what, uint64_t extra,
                struct bench_list *list)
{
    unsigned n = 0;

    for (unsigned i = 0; i < list->n; i++) {
        if (list->values[i] + extra <= bench->context)
            list->values[n++] = list->values[i];
        else
            fprintf(stderr, "dsctl: %s %llu is left out: the model's context is %llu\n", what,
                    (unsigned long long) list->values[i], (unsigned long long) bench->context);
    }
    list->n = n;
}

/* Makes the model resident and asks what it allows. */
static int load(struct bench *bench)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__LoadRequest request = DS__LOAD_REQUEST__INIT;
    Ds__ModelRef ref;
    int code;

    dsctl_model_ref(&bench->model, &ref);
    request.model = &ref;
    code = dsctl_ask(bench->dsctl, DS__REQUEST__OP_LOAD, &request, &reply);
    if (code == DSCTL_OK)
        bench->context = reply->load->model ? reply->load->model->context : TOKENS_MAX;
    return code;
}

static uint64_t largest(const struct bench_list *list)
{
    uint64_t most = 0;

    for (unsigned i = 0; i < list->n; i++)
        most = list->values[i] > most ? list->values[i] : most;
    return most;
}

static void bench_deinit(struct bench *bench)
{
    free(bench->pool);
    free(bench->prompt);
    ds_message_free(bench->limits);
}

static int bench(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(bench_deinit) struct bench bench = { .dsctl = dsctl,
                                                    .prompts = { { 512 }, 1 },
                                                    .depths = { { 0 }, 1 },
                                                    .streams = { { 1 }, 1 },
                                                    .n_generate = 128,
                                                    .repeats = 5 };
    uint64_t longest;
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, &bench, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    if (getrandom(&bench.random, sizeof bench.random, 0) != (ssize_t) sizeof bench.random)
        bench.random = ds_now_nsec();
    bench.seed = ~bench.random;
    longest = largest(&bench.prompts);
    longest = largest(&bench.depths) + 1 > longest ? largest(&bench.depths) + 1 : longest;
    code = dsctl_connect(dsctl, largest(&bench.streams) * (longest * 5 + 1024));
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, argv[first], &bench.model);
    if (code == DSCTL_OK)
        code = load(&bench);
    if (code == DSCTL_OK)
        code = bench_limits(&bench);
    if (code == DSCTL_OK)
        code = bench_pool(&bench, longest);
    if (code != DSCTL_OK)
        return code;
    fit(&bench, "-p", 1, &bench.prompts);
    fit(&bench, "-d", bench.n_generate + 2, &bench.depths);
    return measure_all(&bench);
}

static const struct dsctl_option options[] = {
    { "prompt", "N[,N...]", "tokens to read, 0: leave out (default 512)", 'p' },
    { "generate", "N", "tokens to write, 0: leave out (default 128)", 'n' },
    { "depth", "N[,N...]", "positions before those that are written (default 0)", 'd' },
    { "repeats", "N", "times each (default 5)", 'r' },
    { "streams", "N[,N...]", "at once (default 1)", KEY_STREAMS },
    { "full", NULL, "-p 1,8,64,512,2048 -d 0,512,4096 --streams 1,2,4,8,16,32,64", KEY_FULL },
    { "csv", NULL, "comma-separated values", KEY_CSV },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_bench = {
    .name = "bench",
    .operands = "MODEL",
    .summary = "tokens per second, reading (pp) and writing (tg)",
    .options = options,
    .min_operands = 1,
    .max_operands = 1,
    .run = bench,
};
