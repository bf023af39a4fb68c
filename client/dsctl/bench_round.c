/* SPDX-License-Identifier: Apache-2.0 */
/* One round of the verb bench: streams that start together, and their rate. */
#include "client/dsctl/bench.h"
#include "client/dsctl/json.h"

#include "proto/base.h"

#define POOL_BYTES 4096

/* What one round of streams came to. */
struct round {
    uint64_t n_streams;
    uint64_t ids[BENCH_STREAMS_MAX];
    bool begun[BENCH_STREAMS_MAX];
    unsigned n_begun, n_ended;
    uint64_t started, all_begun, ended; /* ns: submitted, last first token, last event */
    double prefill_ms, decode_ms;       /* of the last stream that ended */
    uint64_t n_tokens;                  /* that came after all had begun */
};

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
int bench_pool(struct bench *bench, uint64_t n_prompt)
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
    bench->prompt = malloc((n_prompt + 1) * sizeof *bench->prompt);
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
    for (uint64_t i = 0; i < round->n_streams; i++) {
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
    round->ended = ds_now_nsec();
    round->n_ended++;
    return DSCTL_OK;
}

/* A stream has begun with its first tokens, which the step of its prompt yields. */
static void take_tokens(struct round *round, const struct ds_event *event)
{
    if (round->n_begun == round->n_streams) {
        round->n_tokens += event->n_ids;
        return;
    }
    for (uint64_t i = 0; i < round->n_streams; i++) {
        if (round->ids[i] == event->id && !round->begun[i]) {
            round->begun[i] = true;
            round->n_begun++;
        }
    }
    if (round->n_begun == round->n_streams)
        round->all_begun = ds_now_nsec();
}

static int play(struct bench *bench, struct round *round, uint64_t n_prompt, uint64_t n_generate)
{
    struct ds_event event;
    int code;

    code = submit(bench, round, n_prompt, n_generate);
    while (code == DSCTL_OK && round->n_ended < round->n_streams) {
        int r = dsctl_next(bench->dsctl, &event);

        if (r == DSCTL_SIGNAL)
            return DSCTL_INTERRUPTED;
        if (r < 0)
            return dsctl_failed(bench->dsctl, r);
        if (event.type == DS_EVENT_TOKENS)
            take_tokens(round, &event);
        if (event.type == DS_EVENT_PROGRESS)
            dsctl_progress(bench->dsctl, event.text, event.fraction);
        if (event.type == DS_EVENT_ERROR)
            return dsctl_event_failed(bench->dsctl, &event);
        if (event.type == DS_EVENT_FINAL)
            code = take_final(bench, round, &event);
    }
    return code;
}

int bench_round(struct bench *bench, const struct bench_row *row, double *ret_rate,
                double *ret_wait_ms)
{
    struct round round = { .n_streams = row->streams };
    uint64_t n_prompt = row->reading ? row->n : row->depth + 1;
    bool alone = row->streams == 1; /* the engine's own times count */
    uint64_t random = bench->random;
    uint64_t first;
    double seconds;
    int code;

    if (!row->reading) /* the same prompts again, which the prefix cache may have */
        bench->random = bench->seed;
    code = play(bench, &round, n_prompt, row->reading ? 1 : row->n + 1);
    if (!row->reading)
        bench->random = random;
    if (code != DSCTL_OK)
        return code;
    if (row->reading) {
        seconds = alone ? round.prefill_ms / 1e3 : (double) (round.ended - round.started) / 1e9;
        *ret_rate = (double) (n_prompt * row->streams) / seconds;
    } else {
        seconds = alone ? round.decode_ms / 1e3 : (double) (round.ended - round.all_begun) / 1e9;
        *ret_rate = (double) (alone ? row->n : round.n_tokens) / seconds;
    }
    first = round.n_begun == round.n_streams ? round.all_begun : round.ended;
    *ret_wait_ms = (double) (first - round.started) / 1e6 - round.prefill_ms;
    return DSCTL_OK;
}
