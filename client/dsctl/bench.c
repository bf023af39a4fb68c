/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench - how fast a model reads (pp) and writes (tg) through the daemon.
 *
 * pp: prompts of N token ids drawn at random, another one every time, so that no prefix of it is
 * cached; the time is the engine's own from the first step to the first token. tg: N tokens after
 * the first one, which belongs to the prompt's step; the time is the engine's own from the first
 * token to the last. With several streams the rates are sums over the time in which they ran, by
 * our clock.
 */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"
#include "client/dsctl/statistics.h"

#include <sys/random.h>

#include "proto/base.h"

enum { KEY_STREAMS = 400 };

#define STREAMS_MAX 64
#define REPEATS_MAX 1000
#define TOKENS_MAX  1000000
#define POOL_BYTES  4096

struct bench {
    struct dsctl *dsctl;
    struct dsctl_model model;
    uint64_t n_prompt, n_generate, repeats, streams;
    uint64_t random;
    uint32_t *pool; /* ids that are valid and harmless: of ordinary text */
    size_t n_pool;
    uint32_t *prompt; /* [n_prompt] */
};

/* What one round of streams came to. */
struct round {
    uint64_t ids[STREAMS_MAX];
    uint64_t started, first, ended; /* ns: submitted, first token, last event */
    double prefill_ms, decode_ms;   /* of the last stream that ended */
    uint64_t n_tokens;              /* of all */
    unsigned n_ended;
};

static int take(void *target, int key, const char *value)
{
    struct bench *bench = target;

    switch (key) {
    case 'p':
        return dsctl_number("-p", value, 0, TOKENS_MAX, &bench->n_prompt);
    case 'n':
        return dsctl_number("-n", value, 0, TOKENS_MAX, &bench->n_generate);
    case 'r':
        return dsctl_number("-r", value, 1, REPEATS_MAX, &bench->repeats);
    default:
        return dsctl_number("--streams", value, 1, STREAMS_MAX, &bench->streams);
    }
}

/* Steele and others' splitmix64. */
static uint64_t draw(struct bench *bench)
{
    uint64_t x = bench->random += UINT64_C(0x9E3779B97F4A7C15);

    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

/* The vocabulary's size is nobody's business but the tokeniser's: it is asked for the ids of a
 * random text, from which prompts are drawn. */
static int fill_pool(struct bench *bench)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__TokenizeRequest request = DS__TOKENIZE_REQUEST__INIT;
    char text[POOL_BYTES];
    Ds__ModelRef ref;
    int code;

    for (size_t i = 0; i < sizeof text; i++)
        text[i] = draw(bench) % 5 ? (char) ('a' + draw(bench) % 26) : ' ';
    dsctl_model_ref(&bench->model, &ref);
    request.model = &ref;
    request.text = (ProtobufCBinaryData){ .data = (uint8_t *) text, .len = sizeof text };
    code = dsctl_ask(bench->dsctl, DS__REQUEST__OP_TOKENIZE, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    bench->n_pool = reply->tokenize->n_ids;
    bench->pool = malloc((bench->n_pool + 1) * sizeof *bench->pool);
    bench->prompt = malloc((bench->n_prompt + 1) * sizeof *bench->prompt);
    if (!bench->n_pool || !bench->pool || !bench->prompt)
        return dsctl_fail(bench->dsctl, DSCTL_ERROR, "no token ids to make prompts of");
    memcpy(bench->pool, reply->tokenize->ids, bench->n_pool * sizeof *bench->pool);
    return DSCTL_OK;
}

static int submit(struct bench *bench, struct round *round, uint64_t n_prompt, uint64_t n_generate)
{
    struct ds_request request = { .struct_size = sizeof request,
                                  .attachment = bench->model.attachment,
                                  .tokens = bench->prompt,
                                  .n_tokens = n_prompt,
                                  .max_tokens = (uint32_t) n_generate,
                                  .set = DS_SET_TEMPERATURE | DS_SET_SEED,
                                  .ignore_eos = 1 };
    int r;

    request.model = bench->model.name[0] ? bench->model.name : NULL;
    round->started = ds_now_nsec();
    for (uint64_t i = 0; i < bench->streams; i++) {
        for (uint64_t j = 0; j < n_prompt; j++)
            bench->prompt[j] = bench->pool[draw(bench) % bench->n_pool];
        r = ds_submit(bench->dsctl->ds, &request, &round->ids[i]);
        if (r < 0)
            return dsctl_failed(bench->dsctl, r);
    }
    return DSCTL_OK;
}

static int take_final(struct bench *bench, struct round *round, const struct ds_event *event)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;

    if (ds_message_unpack(&ds__reply__descriptor, event->message, event->message_size, &reply) <
            0 ||
        reply->result_case != DS__REPLY__RESULT_GENERATE || !reply->generate->timing)
        return dsctl_fail(bench->dsctl, DSCTL_ERROR, "dsd's answer cannot be read");
    if (event->reason != DS_REASON_LENGTH)
        return dsctl_fail(bench->dsctl, DSCTL_ERROR, "a stream ended before its time (%s)",
                          dsctl_reason_name(reply->generate->reason));
    round->prefill_ms = reply->generate->timing->prefill_ms;
    round->decode_ms = reply->generate->timing->decode_ms;
    round->n_tokens += event->completion_tokens;
    round->ended = ds_now_nsec();
    round->n_ended++;
    return DSCTL_OK;
}

static int play(struct bench *bench, struct round *round, uint64_t n_prompt, uint64_t n_generate)
{
    struct ds_event event;
    int code;

    *round = (struct round){ .n_ended = 0 };
    code = submit(bench, round, n_prompt, n_generate);
    while (code == DSCTL_OK && round->n_ended < bench->streams) {
        int r = dsctl_next(bench->dsctl, &event);

        if (r == DSCTL_SIGNAL)
            return DSCTL_INTERRUPTED;
        if (r < 0)
            return dsctl_failed(bench->dsctl, r);
        if (event.type == DS_EVENT_TOKENS && !round->first)
            round->first = ds_now_nsec();
        if (event.type == DS_EVENT_PROGRESS)
            dsctl_progress(bench->dsctl, event.text, event.fraction);
        if (event.type == DS_EVENT_ERROR)
            return dsctl_event_failed(bench->dsctl, &event);
        if (event.type == DS_EVENT_FINAL)
            code = take_final(bench, round, &event);
    }
    return code;
}

/* Tokens per second of a round. */
static double rate_pp(const struct bench *bench, const struct round *round)
{
    double seconds = bench->streams == 1 ? round->prefill_ms / 1e3
                                         : (double) (round->ended - round->started) / 1e9;

    return (double) (bench->n_prompt * bench->streams) / seconds;
}

static double rate_tg(const struct bench *bench, const struct round *round)
{
    double seconds =
        bench->streams == 1 ? round->decode_ms / 1e3 : (double) (round->ended - round->first) / 1e9;

    return (double) (round->n_tokens - bench->streams) / seconds;
}

static void print_row(const struct bench *bench, const char *test, const double *rates)
{
    double mean = dsctl_mean(rates, bench->repeats);
    double deviation = dsctl_deviation(rates, bench->repeats);
    cJSON *object;

    dsctl_progress_wipe(bench->dsctl);
    if (!bench->dsctl->json) {
        printf("%-8s %7llu streams %12.2f ± %.2f tok/s\n", test,
               (unsigned long long) bench->streams, mean, deviation);
        (void) fflush(stdout);
        return;
    }
    object = cJSON_CreateObject();
    (void) cJSON_AddStringToObject(object, "test", test);
    dsctl_json_u64(object, "streams", bench->streams);
    (void) cJSON_AddNumberToObject(object, "tokens_per_second", mean);
    (void) cJSON_AddNumberToObject(object, "stddev", deviation);
    dsctl_json_u64(object, "repeats", bench->repeats);
    dsctl_json_print(object);
}

static int measure(struct bench *bench, bool reading)
{
    ds_cleanup(ds_free_p) double *rates = calloc(bench->repeats, sizeof *rates);
    uint64_t n_prompt = reading ? bench->n_prompt : 1;
    uint64_t n_generate = reading ? 1 : bench->n_generate + 1;
    struct round round;
    char test[32];
    int code;

    if (!rates)
        return dsctl_fail(bench->dsctl, DSCTL_ERROR, "out of memory");
    (void) snprintf(test, sizeof test, "%s%llu", reading ? "pp" : "tg",
                    (unsigned long long) (reading ? n_prompt : bench->n_generate));
    code = play(bench, &round, n_prompt, reading ? 1 : 2); /* warms up what is lazy */
    for (uint64_t i = 0; i < bench->repeats && code == DSCTL_OK; i++) {
        dsctl_progress(bench->dsctl, test, (double) i / (double) bench->repeats);
        code = play(bench, &round, n_prompt, n_generate);
        if (code == DSCTL_OK)
            rates[i] = reading ? rate_pp(bench, &round) : rate_tg(bench, &round);
    }
    if (code == DSCTL_OK)
        print_row(bench, test, rates);
    return code;
}

static void bench_deinit(struct bench *bench)
{
    free(bench->pool);
    free(bench->prompt);
}

static int bench(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(bench_deinit) struct bench bench = {
        .dsctl = dsctl, .n_prompt = 512, .n_generate = 128, .repeats = 5, .streams = 1
    };
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, &bench, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    if (getrandom(&bench.random, sizeof bench.random, 0) != (ssize_t) sizeof bench.random)
        bench.random = ds_now_nsec();
    code = dsctl_connect(dsctl, bench.streams * (bench.n_prompt * 5 + 1024));
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, argv[first], &bench.model);
    if (code == DSCTL_OK)
        code = fill_pool(&bench);
    if (code == DSCTL_OK && bench.n_prompt)
        code = measure(&bench, true);
    if (code == DSCTL_OK && bench.n_generate)
        code = measure(&bench, false);
    return code;
}

static const struct dsctl_option options[] = {
    { "prompt", "N", "tokens to read, 0: leave out (default 512)", 'p' },
    { "generate", "N", "tokens to write, 0: leave out (default 128)", 'n' },
    { "repeats", "N", "times each (default 5)", 'r' },
    { "streams", "N", "at once (default 1)", KEY_STREAMS },
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
