/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guesses by a draft model. Before the rows of a step are final, the drafter reads what the
 * sequences have got since it last looked, and then guesses token after token, one row a sequence
 * and pass. Passes take time, so their number is settled first: the depth at which the step, passes
 * included, should make most tokens a microsecond; none where none is worth it, but a look now and
 * then. Guesses are drawn with the parameters and the random number of the draw to come: what two
 * models agree on is then drawn alike by both.
 */
#include <assert.h>
#include <math.h>

#include "engine/serve/scheduler_state.h"

enum {
    LOOK_EVERY = 32, /* steps; whether guesses have become worth it */
    READ_ROWS = 64,  /* rows of a pass while others wait for their tokens */
};

struct group { /* sequences of this step with one drafter */
    struct ds_drafter *drafter;
    uint32_t n;
    struct ds_sequence *members[DS_PACE_ROWS];
};

/* --- who, and how far --- */

static bool may_draft(const struct ds_sequence *sequence)
{
    const struct ds_draft_seat *seat = &sequence->seat;

    return sequence->draft == DS_DRAFT_MODEL && sequence->n_planned == 1 &&
           ds_sequence_decodes(sequence) && sequence->limit > sequence->n_tokens + 1 &&
           sequence->n_tokens < seat->drafter->options.context;
}

static void gather(const struct ds_scheduler *s, struct ds_drafter *drafter, struct group *group)
{
    group->drafter = drafter;
    group->n = 0;
    for (uint32_t i = 0; i < s->n_running && group->n < drafter->options.sequences_max; i++) {
        struct ds_sequence *sequence = s->running[i];

        if (sequence->seat.drafter == drafter && sequence->drafted_in != s->n_steps &&
            may_draft(sequence)) {
            sequence->drafted_in = s->n_steps;
            group->members[group->n++] = sequence;
        }
    }
}

/* Guesses for each of the group. */
static uint32_t choose_depth(const struct ds_scheduler *s, const struct group *group, uint32_t room)
{
    const double plain = ds_pace_decode(&s->pace, s->n_decodes);
    const double pass = ds_pace_decode(&group->drafter->pace, group->n);
    double tokens = s->n_decodes, best = DS_DRAFT_WORTH * tokens / plain;
    uint32_t widest = ds_pace_widest(&s->pace), depth = 0;
    float alive[DS_PACE_ROWS];

    if (pass <= 0.0)
        return 2; /* the first pass reads more than one token: the second shows what one takes */
    for (uint32_t i = 0; i < group->n; i++)
        alive[i] = 1.0f;
    for (uint32_t n = 1; n <= DS_DRAFT_MAX && n * group->n <= room; n++) {
        uint32_t rows = s->n_decodes + n * group->n;
        double usec = ds_pace_decode(&s->pace, rows) + n * pass;

        if (rows > 2 * widest && n > 1)
            break;
        if (group->n < s->n_decodes && usec > DS_DRAFT_SLOWDOWN_MAX * plain)
            break;
        for (uint32_t i = 0; i < group->n; i++) {
            alive[i] *= ds_draft_chance(group->members[i], n - 1);
            tokens += (double) alive[i];
        }
        if (tokens / usec > best) {
            best = tokens / usec;
            depth = n;
        }
    }
    return depth > 0 || s->n_steps % LOOK_EVERY ? depth : 1;
}

/* --- reading --- */

/* Tokens of a sequence that the drafter does not know end its guesses for good. */
static bool readable(const struct ds_sequence *sequence)
{
    for (uint32_t i = sequence->seat.n_read; i < sequence->n_tokens; i++) {
        if (sequence->job.tokens[i] >= sequence->seat.drafter->n_vocab)
            return false;
    }
    return true;
}

/* Keeps the members that have room for depth guesses. */
static void take_seats(struct group *group, uint32_t depth)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < group->n; i++) {
        struct ds_sequence *sequence = group->members[i];
        uint32_t room = sequence->limit - sequence->n_tokens - 1;
        uint32_t most = group->drafter->options.context - sequence->n_tokens;

        room = room < depth ? room : depth;
        sequence->n_wanted = room < most ? room : most;
        if (!readable(sequence)) {
            ds_draft_seat_clear(&sequence->seat);
            sequence->draft = DS_DRAFT_OFF;
        } else if (ds_draft_seat_hold(&sequence->seat, sequence->n_tokens + sequence->n_wanted)) {
            group->members[n++] = sequence;
        } else {
            ds_draft_seat_clear(&sequence->seat); /* others may have use for it */
        }
    }
    group->n = n;
}

static void add_row(struct ds_drafter *drafter, const struct ds_sequence *sequence,
                    uint32_t position, uint32_t row, uint32_t slot)
{
    drafter->tokens[row] = sequence->job.tokens[position];
    drafter->positions[row] = position;
    drafter->sequences[row] = slot;
}

static void add_table(struct ds_drafter *drafter, const struct ds_sequence *sequence, uint32_t slot)
{
    memcpy(drafter->block_tables + (size_t) slot * ds_blocks_of(drafter->options.context),
           sequence->seat.blocks, sequence->seat.n_blocks * sizeof *sequence->seat.blocks);
}

/* --- guessing --- */

/* Not every drafter's row of logits is as wide as the sampler's: then the likeliest it is. */
static uint32_t likeliest(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static void guess(void *arg, uint32_t row, unsigned thread)
{
    struct ds_scheduler *s = arg;
    struct ds_sequence *sequence = s->output_owner[row];
    const struct ds_drafter *drafter = sequence->seat.drafter;
    const float *logits = drafter->logits + (size_t) row * drafter->n_vocab;
    uint32_t n = sequence->n_tokens + sequence->n_guessed, token;

    token = drafter->n_vocab == s->n_vocab
                ? ds_sampler_pick(s->samplers[thread], &sequence->job.sampling, logits,
                                  sequence->job.tokens, n, n)
                : likeliest(logits, drafter->n_vocab);
    if (token >= s->n_vocab) {
        sequence->n_wanted = sequence->n_guessed;
        return;
    }
    sequence->job.tokens[n] = token;
    sequence->n_guessed++;
}

/* One pass: the unread tokens of each member that wants a guess more, guesses included. Returns
 * how many got one; negative: the backend failed. */
static int pass(struct ds_scheduler *s, struct group *group, uint32_t rows_max)
{
    struct ds_drafter *drafter = group->drafter;
    uint32_t n_rows = 0, n_sequences = 0, n_outputs = 0;
    double context = 0.0;
    uint64_t before;
    int r;

    for (uint32_t i = 0; i < group->n && n_rows < rows_max; i++) {
        struct ds_sequence *sequence = group->members[i];
        uint32_t end = sequence->n_tokens + sequence->n_guessed, n = end - sequence->seat.n_read;

        if (sequence->n_guessed == sequence->n_wanted)
            continue;
        n = n < rows_max - n_rows ? n : rows_max - n_rows;
        for (uint32_t j = 0; j < n; j++)
            add_row(drafter, sequence, sequence->seat.n_read++, n_rows++, n_sequences);
        context += (double) (n - 1) * (sequence->seat.n_read - 0.5 * n);
        if (sequence->seat.n_read == end) {
            s->output_owner[n_outputs] = sequence;
            drafter->outputs[n_outputs++] = n_rows - 1;
        }
        add_table(drafter, sequence, n_sequences++);
    }
    if (n_rows == 0)
        return 0;
    before = ds_scheduler_now(s);
    r = ds_drafter_pass(drafter, n_rows, n_sequences, n_outputs);
    if (r < 0)
        return r;
    ds_scheduler_parallel(s, guess, n_outputs);
    before = ds_scheduler_now(s) - before;
    s->drafting_nsec += before;
    ds_pace_learn(&drafter->pace, n_outputs, n_rows - n_outputs, context, (double) before / 1e3);
    return (int) n_outputs;
}

static int draft(struct ds_scheduler *s, struct group *group, uint32_t room)
{
    uint32_t depth = choose_depth(s, group, room), rows = group->drafter->options.batch_tokens_max;
    int n;

    if (depth == 0)
        return 0;
    take_seats(group, depth);
    if (s->n_decodes > 1 && rows > READ_ROWS)
        rows = READ_ROWS;
    n = pass(s, group, rows);
    while (n > 0 && --depth > 0) {
        uint32_t left = 0;

        /* whoever has not read everything yet goes on in the next step */
        for (uint32_t i = 0; i < group->n; i++) {
            if (group->members[i]->n_guessed > 0)
                group->members[left++] = group->members[i];
        }
        group->n = left;
        n = pass(s, group, rows);
    }
    return n < 0 ? n : 0;
}

int ds_scheduler_run_drafters(struct ds_scheduler *s, uint32_t room)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct ds_sequence *sequence = s->running[i];
        struct group group;
        int r;

        if (sequence->draft == DS_DRAFT_MODEL &&
            sequence->n_tokens >= sequence->seat.drafter->options.context) { /* outgrown for good */
            ds_draft_seat_clear(&sequence->seat);
            sequence->draft = DS_DRAFT_OFF;
        }
        if (sequence->drafted_in == s->n_steps || !may_draft(sequence))
            continue;
        gather(s, sequence->seat.drafter, &group);
        r = draft(s, &group, room);
        if (r < 0)
            return r;
    }
    return 0;
}

void ds_draft_settle(struct ds_sequence *sequence, uint32_t n_tokens)
{
    if (sequence->seat.n_read > n_tokens)
        sequence->seat.n_read = n_tokens;
}

static void forget(struct ds_sequence *sequence, const struct ds_drafter *drafter)
{
    if (sequence->seat.drafter != drafter)
        return;
    ds_draft_seat_deinit(&sequence->seat);
    sequence->draft = DS_DRAFT_OFF;
}

void ds_scheduler_forget_drafter(struct ds_scheduler *s, const struct ds_drafter *drafter)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        forget(s->running[i], drafter);
    for (uint32_t i = 0; i < s->users.n; i++) {
        for (struct ds_sequence *q = s->users.list[i]->oldest; q; q = q->newer)
            forget(q, drafter);
    }
}
