/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.h - what the parts of the verb bench share: one round of streams, and a row of the result.
 */
#pragma once

#include "client/dsctl/dsctl.h"

enum { BENCH_STREAMS_MAX = 64, BENCH_LIST_MAX = 16 };

struct bench_list {
    uint64_t values[BENCH_LIST_MAX];
    unsigned n;
};

struct bench {
    struct dsctl *dsctl;
    struct dsctl_model model;
    struct bench_list prompts, depths, streams;
    uint64_t n_generate, repeats;
    bool csv;
    uint64_t context;      /* positions that the model allows */
    uint64_t random, seed; /* state of the next number; where prompts of tg begin */
    uint32_t *pool;        /* ids that are valid and harmless: of ordinary text */
    size_t n_pool;
    uint32_t *prompt;  /* as long as the longest */
    Ds__Reply *limits; /* owned; NULL: dsd did not say */
    bool titled;       /* the head of the table is printed */
};

/* One test, and what it came to. */
struct bench_row {
    bool reading;      /* pp, else tg */
    uint64_t n, depth; /* tokens read or written; positions before those that are written */
    uint64_t streams;
    double mean, deviation; /* tokens per second, of all streams together */
    double wait_ms;         /* pp, one stream: submit to first token beyond the prompt's own time;
                               the median */
};

/* --- bench_round.c --- */

/* Asks for ids to draw prompts from; n_prompt: the longest. An exit code. */
int bench_pool(struct bench *bench, uint64_t n_prompt);

/* One round of row's kind: *ret_rate in tokens per second; *ret_wait_ms as in a row. An exit code.
 */
int bench_round(struct bench *bench, const struct bench_row *row, double *ret_rate,
                double *ret_wait_ms);

/* --- bench_report.c --- */

/* Asks what the device can do; a daemon that does not answer costs the last columns. An exit code.
 */
int bench_limits(struct bench *bench);
void bench_print(struct bench *bench, const struct bench_row *row);
