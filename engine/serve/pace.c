/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/pace.h"

#include <math.h>

enum {
    FORGET_AFTER = 1024, /* samples without one of its own: an entry is measured anew */
    SURE_ROWS = 32       /* prompt rows that say something though no decode was measured */
};

#define DECODE_SHARE 0.25 /* weight of the newest sample */
#define PROMPT_DECAY 0.9  /* weight of the samples before the newest */

static uint32_t clamp(uint32_t n)
{
    return n < DS_PACE_ROWS ? n : DS_PACE_ROWS;
}

static bool known(const struct ds_pace *pace, uint32_t n)
{
    return pace->decode[n].usec > 0.0 && pace->n_samples - pace->decode[n].learned <= FORGET_AFTER;
}

double ds_pace_decode(const struct ds_pace *pace, uint32_t n)
{
    uint32_t at = clamp(n), below = at, above = at;
    double base;

    while (below > 0 && !known(pace, below))
        below--;
    while (above <= DS_PACE_ROWS && !known(pace, above))
        above++;
    if (below == 0)
        return above <= DS_PACE_ROWS ? pace->decode[above].usec : 0.0;
    base = pace->decode[below].usec;
    if (above > DS_PACE_ROWS) /* hopeful: trying shows what it is */
        return base + (at - below) * (pace->row_usec > 0.0 ? pace->row_usec : 0.0);
    if (above == below || pace->decode[above].usec <= base)
        return base;
    return base + (pace->decode[above].usec - base) * (at - below) / (above - below);
}

uint32_t ds_pace_widest(const struct ds_pace *pace)
{
    uint32_t n = DS_PACE_ROWS;

    while (n > 0 && !known(pace, n))
        n--;
    return n;
}

double ds_pace_prompt(const struct ds_pace *pace, uint32_t n, uint32_t position)
{
    double positions = (double) n * position + 0.5 * n * ((double) n - 1.0);

    return pace->row_usec * n + pace->context_usec * positions;
}

uint32_t ds_pace_rows(const struct ds_pace *pace, double usec, uint32_t position, uint32_t n)
{
    double linear, square, rows;

    if (pace->row_usec <= 0.0 && pace->context_usec <= 0.0)
        return UINT32_MAX;
    if (usec <= 0.0)
        return 0;
    square = 0.5 * pace->context_usec;
    linear = pace->row_usec + pace->context_usec * position - square;
    if (linear < 0.0)
        linear = 0.0;
    /* square * rows^2 + linear * rows = usec, in the form that does not cancel */
    rows = 2.0 * usec / (linear + sqrt(linear * linear + 4.0 * square * usec));
    return rows < n ? (uint32_t) rows : n;
}

static void learn_decode(struct ds_pace *pace, uint32_t n, double usec)
{
    struct ds_pace_rows *entry = &pace->decode[clamp(n)];

    if (known(pace, clamp(n))) {
        if (usec > 2.0 * entry->usec)
            usec = 2.0 * entry->usec;
        usec = entry->usec + DECODE_SHARE * (usec - entry->usec);
    }
    entry->usec = usec;
    entry->learned = pace->n_samples;
}

/* Two unknowns where the samples tell them apart, else one. */
static void solve(struct ds_pace *pace)
{
    double determinant = pace->nn * pace->cc - pace->nc * pace->nc;
    double row = pace->nn > 0.0 ? pace->nt / pace->nn : 0.0, context = 0.0;

    if (determinant > 1e-4 * pace->nn * pace->cc) {
        row = (pace->nt * pace->cc - pace->ct * pace->nc) / determinant;
        context = (pace->ct * pace->nn - pace->nt * pace->nc) / determinant;
        if (context < 0.0) {
            row = pace->nt / pace->nn;
            context = 0.0;
        } else if (row < 0.0) {
            row = 0.0;
            context = pace->ct / pace->cc;
        }
    } else if (pace->context_usec > 0.0) { /* what was learned before still holds */
        context = pace->context_usec;
        row = (pace->nt - context * pace->nc) / pace->nn;
        if (row < 0.0) {
            row = 0.0;
            context = pace->nt / pace->nc;
        }
    }
    pace->row_usec = row;
    pace->context_usec = context;
}

static void learn_prompt(struct ds_pace *pace, uint32_t n, double n_context, double usec)
{
    double expected = pace->row_usec * n + pace->context_usec * n_context;

    if (usec <= 0.0)
        return;
    if (expected > 0.0 && usec > 2.0 * expected)
        usec = 2.0 * expected;
    pace->nn = PROMPT_DECAY * pace->nn + (double) n * n;
    pace->nc = PROMPT_DECAY * pace->nc + n * n_context;
    pace->cc = PROMPT_DECAY * pace->cc + n_context * n_context;
    pace->nt = PROMPT_DECAY * pace->nt + n * usec;
    pace->ct = PROMPT_DECAY * pace->ct + n_context * usec;
    solve(pace);
}

void ds_pace_learn(struct ds_pace *pace, uint32_t n_decodes, uint32_t n_prompt, double n_context,
                   double usec)
{
    double decode = n_decodes ? ds_pace_decode(pace, n_decodes) : 0.0;

    pace->n_samples++;
    if (n_prompt == 0)
        learn_decode(pace, n_decodes, usec);
    else if (decode > 0.0 || (n_decodes == 0 && n_prompt >= SURE_ROWS))
        learn_prompt(pace, n_prompt, n_context, usec - decode);
}
