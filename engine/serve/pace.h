/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pace.h - how long a step takes, learned from the steps before.
 *
 * A step has rows that make tokens (decoding sequences and their drafts) and rows of prompts:
 *
 *      usec = decode[rows] + prompt rows * row + (sum of the prompt rows' positions) * context
 *
 * decode[] is a table, because kernels make steps of it: it is not a line. A moving average each,
 * forgotten when old; what has not been measured lies on the line between those that have. row and
 * context come from least squares with exponential forgetting: attention makes a row the dearer the
 * more positions it looks back at. One sample more than twice as long as expected counts as twice:
 * somebody else had the processor.
 *
 * Only ever decides how work is cut into steps; never what comes out. A plain value, one thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { DS_PACE_ROWS = 64 }; /* decoding rows told apart; more count as these */

struct ds_pace_rows {
    double usec;      /* 0: not measured */
    uint64_t learned; /* number of the sample */
};

struct ds_pace {
    struct ds_pace_rows decode[DS_PACE_ROWS + 1]; /* [rows]; [0] unused */
    uint64_t n_samples;
    double row_usec, context_usec; /* 0: not known */
    /* sums of the prompt rows' samples: n = rows, c = positions, t = time */
    double nn, nc, cc, nt, ct;
};

/* A step took usec. n_decodes rows made tokens; n_prompt rows of prompts had positions that add up
 * to n_context. */
void ds_pace_learn(struct ds_pace *pace, uint32_t n_decodes, uint32_t n_prompt, double n_context,
                   double usec);

/* Expected microseconds of a step with n rows that make tokens; 0: nothing is known yet. */
double ds_pace_decode(const struct ds_pace *pace, uint32_t n);

/* The most rows that a measured step without prompts had; 0: none. */
uint32_t ds_pace_widest(const struct ds_pace *pace);

/* Expected cost of n prompt rows from position on; 0: nothing is known yet. */
double ds_pace_prompt(const struct ds_pace *pace, uint32_t n, uint32_t position);

/* The most prompt rows from position on that cost no more than usec, at most n. UINT32_MAX: nothing
 * is known yet. */
uint32_t ds_pace_rows(const struct ds_pace *pace, double usec, uint32_t position, uint32_t n);
