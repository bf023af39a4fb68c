/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of the verb bench, as a table, JSON or CSV, each held against what the device could do.
 *
 * The limit of reading a prompt: its arithmetic at the rate of the kernels' instruction. The limit
 * of writing: all weights and the sequences' keys and values read once a step at the rate of plain
 * reading, or the arithmetic where that takes longer. What attention computes is left out, as is
 * that a batch meets more experts than one token: both make a limit look a little too high.
 */
#include "client/dsctl/bench.h"
#include "client/dsctl/json.h"

#include "proto/base.h"

int bench_limits(struct bench *bench)
{
    Ds__LimitsRequest request = DS__LIMITS_REQUEST__INIT;
    Ds__ModelRef ref;

    dsctl_model_ref(&bench->model, &ref);
    request.model = &ref;
    return dsctl_ask(bench->dsctl, DS__REQUEST__OP_LIMITS, &request, &bench->limits);
}

struct limit {
    double rate;    /* tokens per second; 0: not known */
    const char *of; /* what sets it */
};

static struct limit limit_of(const struct bench *bench, const struct bench_row *row)
{
    const Ds__LimitsResult *limits = bench->limits->limits;
    double head = (double) limits->head_ops, layers = (double) limits->layer_ops;
    bool is_float = (double) limits->float_ops > (head + layers) / 2;
    double speed = is_float ? limits->f32_ops : limits->int8_ops;
    double positions = (double) row->depth + (double) row->n / 2, streams = (double) row->streams;
    double tokens = streams * (row->reading ? (double) row->n : 1.0);
    double bytes = (double) limits->token_bytes, ops = tokens * layers + streams * head;
    double reading, computing;

    if (!row->reading)
        bytes += streams * positions * (double) limits->position_bytes;
    reading = limits->read_bytes > 0 ? bytes / limits->read_bytes : 0;
    computing = speed > 0 ? ops / speed : 0;
    if (reading <= 0 || (row->reading && computing <= 0))
        return (struct limit){ 0 };
    if (computing > reading)
        return (struct limit){ tokens / computing,
                               is_float ? limits->f32_instruction : limits->int8_instruction };
    return (struct limit){ tokens / reading, "reading" };
}

static void print_head(const struct bench *bench)
{
    const Ds__LimitsResult *limits = bench->limits->limits;

    if (bench->csv) {
        printf("test,depth,streams,tokens_per_second,stddev,wait_ms,limit,limited_by\n");
        return;
    }
    printf("reading %.1f GB/s", limits->read_bytes / 1e9);
    if (limits->int8_ops > 0)
        printf(", %s %.2f Top/s, %s %.2f Tflop/s", limits->int8_instruction,
               limits->int8_ops / 1e12, limits->f32_instruction, limits->f32_ops / 1e12);
    printf("; a token reads %.1f MB and takes %.2f Gop\n", (double) limits->token_bytes / 1e6,
           (double) (limits->layer_ops + limits->head_ops) / 1e9);
    printf("%-8s %7s %8s %20s %10s %s\n", "test", "depth", "streams", "tokens/s", "wait, ms",
           "of the limit");
}

static void print_json(const struct bench *bench, const struct bench_row *row, const char *test,
                       const struct limit *limit)
{
    cJSON *object = cJSON_CreateObject();

    (void) cJSON_AddStringToObject(object, "test", test);
    dsctl_json_u64(object, "depth", row->depth);
    dsctl_json_u64(object, "streams", row->streams);
    (void) cJSON_AddNumberToObject(object, "tokens_per_second", row->mean);
    (void) cJSON_AddNumberToObject(object, "stddev", row->deviation);
    dsctl_json_u64(object, "repeats", bench->repeats);
    if (row->reading && row->streams == 1)
        (void) cJSON_AddNumberToObject(object, "wait_ms", row->wait_ms);
    if (limit->rate > 0) {
        (void) cJSON_AddNumberToObject(object, "limit", limit->rate);
        (void) cJSON_AddStringToObject(object, "limited_by", limit->of);
    }
    dsctl_json_print(object);
}

void bench_print(struct bench *bench, const struct bench_row *row)
{
    struct limit limit = limit_of(bench, row);
    bool waits = row->reading && row->streams == 1;
    char test[32], wait[32] = "";

    dsctl_progress_wipe(bench->dsctl);
    (void) snprintf(test, sizeof test, "%s%llu", row->reading ? "pp" : "tg",
                    (unsigned long long) row->n);
    if (bench->dsctl->json) {
        print_json(bench, row, test, &limit);
        return;
    }
    if (!bench->titled)
        print_head(bench);
    bench->titled = true;
    if (waits)
        (void) snprintf(wait, sizeof wait, "%.3f", row->wait_ms);
    if (bench->csv) {
        printf("%s,%llu,%llu,%.3f,%.3f,%s,%.3f,%s\n", test, (unsigned long long) row->depth,
               (unsigned long long) row->streams, row->mean, row->deviation, wait, limit.rate,
               limit.rate > 0 ? limit.of : "");
    } else {
        printf("%-8s %7llu %8llu %11.2f ± %6.2f %10s", test, (unsigned long long) row->depth,
               (unsigned long long) row->streams, row->mean, row->deviation, wait);
        if (limit.rate > 0)
            printf(" %3.0f %% of %.0f (%s)", row->mean / limit.rate * 100, limit.rate, limit.of);
        printf("\n");
    }
    (void) fflush(stdout);
}
