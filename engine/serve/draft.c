/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speculative decoding. A decoding sequence has one row in a step: its last token. With guesses for
 * the tokens after it, it gets a row for each of them too, and the draw of row k knows whether
 * guess k is what a plain step would have drawn: same logits (a row does not depend on its
 * company), same history, same random number. Guesses up to the first wrong one count, and the
 * token drawn at that one. The rest is as if it had never been: its keys and values lie behind the
 * sequence's end, where the next step writes.
 *
 * How many guesses get rows is a question of time alone: as many as make the most tokens a
 * microsecond, by what steps of so many rows took and how often guesses came true. Where prompts
 * wait there is no room for guesses.
 */
#include <assert.h>

#include "engine/serve/scheduler_state.h"

#define LEARN_SHARE 0.12f /* weight of the newest guess */
#define HOPE        0.6f  /* of a guess before anything was learned */

/* --- guessing --- */

static uint32_t propose(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    const struct ds_scheduler_options *o = &s->options;
    uint32_t room = sequence->limit - sequence->n_tokens - 1; /* the drawn token comes too */
    uint32_t n = room < DS_DRAFT_MAX ? room : DS_DRAFT_MAX;

    if (n == 0)
        return 0;
    if (o->propose)
        return o->propose(o->propose_arg, sequence->job.id, sequence->job.tokens,
                          sequence->n_tokens, n);
    if (sequence->draft == DS_DRAFT_MTP) {
        sequence->job.tokens[sequence->n_tokens] = sequence->mtp_guess;
        return sequence->has_mtp_guess;
    }
    if (sequence->draft == DS_DRAFT_MODEL)
        return sequence->n_guessed;
    return ds_ngram_propose(&sequence->ngram, sequence->job.tokens, sequence->n_tokens, n);
}

static bool guesses(const struct ds_scheduler *s, const struct ds_sequence *sequence)
{
    return sequence->n_planned == 1 && ds_sequence_decodes(sequence) &&
           (s->options.propose || sequence->draft != DS_DRAFT_OFF);
}

/* --- choosing --- */

/* The sequence whose next guess is the likeliest, by chances[place in running]. */
static uint32_t likeliest(const struct ds_scheduler *s, const float *chances,
                          const uint32_t *n_chosen)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < s->n_running; i++) {
        if (n_chosen[i] < s->running[i]->n_proposed &&
            (best == UINT32_MAX || chances[i] > chances[best]))
            best = i;
    }
    return best;
}

/* Rows there could be for guesses. */
static uint32_t room_for_drafts(const struct ds_scheduler *s)
{
    uint32_t rows = s->options.batch_tokens_max - s->n_decodes - s->n_prompt_rows;
    uint32_t outputs = s->options.outputs_max - s->n_outputs;

    rows = rows < outputs ? rows : outputs;
    if (s->options.propose)
        return rows;
    outputs = s->n_decodes < DS_PACE_ROWS ? DS_PACE_ROWS - s->n_decodes : 0;
    return rows < outputs ? rows : outputs;
}

/* Sets n_drafted of all that guess: the number of guesses, likeliest first, that makes most tokens
 * for the time. */
static void choose(struct ds_scheduler *s, uint32_t room)
{
    const double plain_usec = ds_pace_decode(&s->pace, s->n_decodes);
    double tokens = s->n_decodes, best = DS_DRAFT_WORTH * tokens / plain_usec;
    uint32_t widest = ds_pace_widest(&s->pace); /* no leaps into what was never measured */
    float chances[DS_PACE_ROWS];
    uint32_t n_chosen[DS_PACE_ROWS] = { 0 };

    for (uint32_t i = 0; i < s->n_running; i++)
        chances[i] = ds_draft_chance(s->running[i], 0);
    for (uint32_t n = 1; n <= room; n++) {
        double usec = ds_pace_decode(&s->pace, s->n_decodes + n);
        uint32_t i = likeliest(s, chances, n_chosen);

        if (i == UINT32_MAX || usec > DS_DRAFT_SLOWDOWN_MAX * plain_usec ||
            s->n_decodes + n > 2 * widest)
            break;
        tokens += (double) chances[i];
        n_chosen[i]++;
        chances[i] *= ds_draft_chance(s->running[i], n_chosen[i]);
        if (tokens / usec > best) {
            best = tokens / usec;
            for (uint32_t j = 0; j < s->n_running; j++)
                s->running[j]->n_drafted = n_chosen[j];
        }
    }
}

static void choose_all(struct ds_scheduler *s, uint32_t room)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct ds_sequence *sequence = s->running[i];

        sequence->n_drafted = sequence->n_proposed < room ? sequence->n_proposed : room;
        room -= sequence->n_drafted;
    }
}

/* Blocks for guesses are taken only where they are free. */
static void find_blocks(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    uint32_t positions = sequence->n_computed + 1 + sequence->n_drafted;

    while (positions > sequence->n_blocks * DS_KV_BLOCK &&
           ds_kv_cache_take(s->cache, 1, &sequence->blocks[sequence->n_blocks]) == DS_KV_CACHE_OK)
        sequence->n_blocks++;
    if (positions > sequence->n_blocks * DS_KV_BLOCK)
        sequence->n_drafted = sequence->n_blocks * DS_KV_BLOCK - sequence->n_computed - 1;
}

int ds_scheduler_plan_drafts(struct ds_scheduler *s)
{
    uint32_t room = room_for_drafts(s);
    bool any = false;
    int r;

    if (room == 0 || (!s->options.propose && (s->n_prompt_rows > 0 || s->n_running > DS_PACE_ROWS ||
                                              ds_pace_decode(&s->pace, s->n_decodes) <= 0.0)))
        return 0;
    r = s->options.propose ? 0 : ds_scheduler_run_drafters(s, room);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (guesses(s, s->running[i]))
            s->running[i]->n_proposed = propose(s, s->running[i]);
        any = any || s->running[i]->n_proposed > 0;
    }
    if (!any)
        return 0;
    if (s->options.propose)
        choose_all(s, room);
    else
        choose(s, room);
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct ds_sequence *sequence = s->running[i];

        if (sequence->n_drafted == 0)
            continue;
        find_blocks(s, sequence);
        sequence->n_planned += sequence->n_drafted;
        sequence->n_outputs += sequence->n_drafted;
        s->n_outputs += sequence->n_drafted;
        s->n_decodes += sequence->n_drafted;
    }
    return 0;
}

/* --- afterwards --- */

static void learn(struct ds_scheduler *s, struct ds_sequence *sequence, uint32_t depth, bool right)
{
    uint32_t at = depth < DS_DRAFT_DEPTHS ? depth : DS_DRAFT_DEPTHS - 1;
    float *all = &s->accepted[at], *own = &sequence->accepted[at];

    *own += LEARN_SHARE * ((right ? 1.0f : 0.0f) - *own);
    *all += LEARN_SHARE / 4 * ((right ? 1.0f : 0.0f) - *all);
}

uint32_t ds_scheduler_judge_drafts(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    const uint32_t *guess = sequence->job.tokens + sequence->n_tokens;
    const uint32_t *drawn = s->picked + sequence->first_output;
    uint32_t n_right = 0, n_blocks;

    /* A guess without a row can be judged as well where all before it were right. */
    for (uint32_t i = 0; i < sequence->n_proposed && i <= sequence->n_drafted; i++) {
        bool right = guess[i] == drawn[i];

        learn(s, sequence, i, right);
        if (!right)
            break;
        n_right += i < sequence->n_drafted;
    }
    ds_draft_settle(sequence, sequence->n_tokens + n_right);
    if (sequence->n_drafted == 0)
        return 0;
    n_blocks = ds_blocks_of(sequence->n_computed + 1 + n_right);
    ds_kv_cache_release(s->cache, sequence->blocks + n_blocks, sequence->n_blocks - n_blocks);
    sequence->n_blocks = n_blocks;
    sequence->n_drafted_total += sequence->n_drafted;
    return n_right;
}

void ds_drafts_init(struct ds_scheduler *s)
{
    for (unsigned i = 0; i < DS_DRAFT_DEPTHS; i++)
        s->accepted[i] = HOPE;
}
