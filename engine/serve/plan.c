/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of a step, in this order:
 *   1. room for the user who has nothing running while another has several things running;
 *   2. one row for every running sequence that makes tokens, oldest first; where the cache has no
 *      block left for it, the youngest running sequence is put back;
 *   3. prompt rows and new sequences by turns of their users' counters, within what a batch holds
 *      and, where answers are being made, within the time that their next tokens may wait.
 *
 * A sequence gets the blocks of all tokens it has when it starts to run, so only growth, one block
 * every DS_KV_BLOCK tokens, can run short. It is started only if every running one could grow by a
 * block as well: else it would soon be put back again. One that begins like an older sequence of
 * its user shares its blocks as soon as they are in a batch, and waits for that.
 */
#include <assert.h>
#include <math.h>

#include "engine/serve/scheduler_state.h"

#define STEP_MARGIN 0.75 /* of the time left for prompts: a measured step is no promise */

enum {
    CHUNK_FIRST = 8,    /* prompt rows while nothing is known of their cost */
    CHUNK_MIN = 4,      /* prompt rows however short the time: prompts must come to an end */
    MEASURE_EVERY = 16, /* steps with prompts for one without */
    WAIT_BLOCKS = 2     /* so many blocks that another is about to compute are worth a wait */
};

/* What became of a try to start a sequence. */
enum admission {
    ADMITTED,
    NO_ROOM,
    BETTER_LATER, /* an older sequence is computing what this one begins with */
};

/* --- running and waiting --- */

static void run(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    uint32_t i = s->n_running++;

    ds_user_dequeue(sequence->user, sequence);
    for (; i > 0 && s->running[i - 1]->arrival > sequence->arrival; i--)
        s->running[i] = s->running[i - 1];
    s->running[i] = sequence;
    sequence->running = true;
    sequence->user->n_running++;
}

void ds_scheduler_stop(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    uint32_t i = 0;

    assert(sequence->running && sequence->user->n_running > 0);
    ds_kv_cache_release(s->cache, sequence->blocks, sequence->n_blocks);
    sequence->n_blocks = sequence->n_published = sequence->n_computed = 0;
    sequence->has_mtp_guess = false;
    ds_draft_seat_clear(&sequence->seat);
    sequence->n_planned = sequence->n_outputs = sequence->n_proposed = sequence->n_drafted = 0;
    while (s->running[i] != sequence)
        i++;
    memmove(&s->running[i], &s->running[i + 1], (--s->n_running - i) * sizeof(*s->running));
    sequence->running = false;
    sequence->user->n_running--;
}

static void put_back(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    ds_scheduler_stop(s, sequence);
    ds_user_enqueue(sequence->user, sequence);
}

/* Leading full blocks that two lists of tokens have in common. */
static uint32_t n_common_blocks(const uint32_t *a, const uint32_t *b, uint32_t n_tokens)
{
    uint32_t n = 0;

    while ((n + 1) * DS_KV_BLOCK <= n_tokens &&
           memcmp(a + (size_t) n * DS_KV_BLOCK, b + (size_t) n * DS_KV_BLOCK,
                  DS_KV_BLOCK * sizeof *a) == 0)
        n++;
    return n;
}

static bool same_owner(const struct ds_sequence *a, const struct ds_sequence *b)
{
    struct ds_kv_owner x = ds_sequence_owner(a), y = ds_sequence_owner(b);

    return memcmp(&x, &y, sizeof x) == 0;
}

/* Blocks that older running sequences of the same owner hold, or will, of the first n_sharable
 * tokens, the last of which must be left to compute. *ret_ready: of these, what is computed when
 * this step is done, from *ret_peer. Publishing goes by age: hence older ones only. */
static uint32_t find_peer(const struct ds_scheduler *s, const struct ds_sequence *sequence,
                          uint32_t n_sharable, const struct ds_sequence **ret_peer,
                          uint32_t *ret_ready)
{
    uint32_t most = 0;

    *ret_ready = 0;
    for (uint32_t i = 0; i < s->n_running && s->running[i]->arrival < sequence->arrival; i++) {
        const struct ds_sequence *peer = s->running[i];
        uint32_t n = n_sharable - 1 < peer->n_tokens ? n_sharable - 1 : peer->n_tokens, ready;

        if (!same_owner(peer, sequence))
            continue;
        n = n_common_blocks(peer->job.tokens, sequence->job.tokens, n);
        ready = (peer->n_computed + peer->n_planned) / DS_KV_BLOCK;
        most = n > most ? n : most;
        ready = ready < n ? ready : n;
        if (ready > *ret_ready) {
            *ret_ready = ready;
            *ret_peer = peer;
        }
    }
    return most;
}

/* Starts a waiting sequence if there is a place and room for all its tokens. */
static enum admission admit(struct ds_scheduler *s, struct ds_sequence *sequence, uint64_t now)
{
    uint32_t reserve = s->n_running; /* a block more for each */
    uint32_t sharable = sequence->n_tokens, found, missing, common, ready;
    const struct ds_sequence *peer = NULL;

    if (s->n_running == s->options.sequences_max)
        return NO_ROOM;
    if (sequence->job.score) /* rows not yet counted must be computed */
        sharable = sequence->n_scored + 1;
    found = ds_kv_cache_match(s->cache, ds_sequence_owner(sequence), sequence->job.tokens, sharable,
                              sequence->blocks);
    common = find_peer(s, sequence, sharable, &peer, &ready);
    if (common >= found + WAIT_BLOCKS && common > ready) {
        ds_kv_cache_release(s->cache, sequence->blocks, found);
        return BETTER_LATER;
    }
    if (ready > found) {
        ds_kv_cache_share(s->cache, peer->blocks + found, ready - found);
        memcpy(sequence->blocks + found, peer->blocks + found,
               (ready - found) * sizeof *peer->blocks);
        found = ready;
    }
    missing = ds_blocks_of(sequence->n_tokens) - found;
    if (missing + reserve > ds_kv_cache_n_free(s->cache)) {
        ds_kv_cache_release(s->cache, sequence->blocks, found);
        assert(s->n_running > 0); /* alone it fits: its limit is within the cache */
        return NO_ROOM;
    }
    (void) ds_kv_cache_take(s->cache, missing, sequence->blocks + found);
    sequence->n_blocks = found + missing;
    sequence->n_published = found;
    sequence->n_computed = found * DS_KV_BLOCK;
    if (sequence->n_charged < sequence->n_computed)
        sequence->n_charged = sequence->n_computed;
    if (sequence->started_nsec == 0) {
        sequence->started_nsec = now;
        sequence->n_cached = sequence->n_computed < sequence->job.n_prompt ? sequence->n_computed
                                                                           : sequence->job.n_prompt;
    }
    run(s, sequence);
    return ADMITTED;
}

/* --- 1: a user with nothing running --- */

static struct ds_user *starved_user(struct ds_scheduler *s)
{
    struct ds_user *starved = NULL;

    for (uint32_t i = 0; i < s->users.n; i++) {
        struct ds_user *user = s->users.list[i];

        if (user->n_waiting > 0 && user->n_running == 0 &&
            (!starved || user->counter < starved->counter))
            starved = user;
    }
    return starved;
}

/* The youngest sequence of the user with most running, if that user has several. */
static struct ds_sequence *most_dispensable(struct ds_scheduler *s)
{
    struct ds_sequence *victim = NULL;

    for (uint32_t i = s->n_running; i-- > 0;) {
        struct ds_sequence *sequence = s->running[i];

        if (sequence->user->n_running > 1 &&
            (!victim || sequence->user->n_running > victim->user->n_running))
            victim = sequence;
    }
    return victim;
}

/* Blocks that could become free without taking anybody's last running sequence. */
static uint32_t n_dispensable_blocks(struct ds_scheduler *s)
{
    uint32_t n = ds_kv_cache_n_free(s->cache);

    for (uint32_t i = 0; i < s->n_running; i++) {
        for (uint32_t j = 0; j < i; j++) {
            if (s->running[j]->user == s->running[i]->user) {
                n += s->running[i]->n_blocks; /* not the first of its user */
                break;
            }
        }
    }
    return n;
}

static void make_room_for_the_starved(struct ds_scheduler *s, uint64_t now)
{
    struct ds_user *user = starved_user(s);
    struct ds_sequence *sequence, *victim;

    if (!user)
        return;
    sequence = user->oldest;
    if (ds_blocks_of(sequence->n_tokens) + s->n_running > n_dispensable_blocks(s))
        return;
    while (admit(s, sequence, now) != ADMITTED) {
        victim = most_dispensable(s);
        if (!victim)
            return;
        put_back(s, victim);
    }
}

/* --- 2: sequences that make tokens --- */

/* What is found in the cache, or computed again after having been put back, costs its user nothing.
 */
static void charge(struct ds_sequence *sequence, uint32_t n_rows)
{
    uint32_t end = sequence->n_computed + n_rows;

    if (end > sequence->job.n_prompt)
        end = sequence->job.n_prompt;
    if (end <= sequence->n_charged)
        return;
    sequence->user->counter += (uint64_t) (end - sequence->n_charged) * DS_USER_PROMPT_WEIGHT;
    sequence->n_charged = end;
}

static void plan_rows(struct ds_scheduler *s, struct ds_sequence *sequence, uint32_t n,
                      uint32_t n_outputs)
{
    sequence->n_planned = n;
    sequence->n_outputs = n_outputs;
    s->n_outputs += n_outputs;
    charge(sequence, n);
    assert(sequence->n_computed + n <= sequence->n_blocks * DS_KV_BLOCK);
}

/* Makes sure that the next position has a block. false: the sequence itself was put back. */
static bool grow(struct ds_scheduler *s, struct ds_sequence *sequence)
{
    while (sequence->n_computed == sequence->n_blocks * DS_KV_BLOCK) {
        struct ds_sequence *youngest = s->running[s->n_running - 1];

        if (ds_kv_cache_take(s->cache, 1, &sequence->blocks[sequence->n_blocks]) ==
            DS_KV_CACHE_OK) {
            sequence->n_blocks++;
            break;
        }
        put_back(s, youngest);
        if (youngest == sequence)
            return false;
    }
    return true;
}

static void plan_decodes(struct ds_scheduler *s)
{
    /* Whoever is put back stands behind i or is i itself: nothing planned is lost. */
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct ds_sequence *sequence = s->running[i];

        if (!ds_sequence_decodes(sequence) || !grow(s, sequence))
            continue;
        sequence->planned_in = s->n_steps;
        plan_rows(s, sequence, 1, 1);
        s->n_decodes++;
    }
}

/* --- 3: prompts --- */

/* Microseconds for prompts in a step that others wait for; INFINITY: nobody does, or nobody set a
 * limit. */
static double time_budget(const struct ds_scheduler *s)
{
    double plain = ds_pace_decode(&s->pace, s->n_decodes), most = s->options.step_usec_max;

    if (s->n_decodes == 0 || s->options.step_usec_max == DS_STEP_UNLIMITED)
        return INFINITY;
    if (s->options.step_usec_max == DS_STEP_TWICE)
        most = 2.0 * plain;
    return most > plain ? STEP_MARGIN * (most - plain) : 0.0;
}

/* Prompt rows of sequence that fit the time; 0: none, and others have some. */
static uint32_t affordable(const struct ds_scheduler *s, const struct ds_sequence *sequence,
                           double usec, uint32_t most)
{
    uint32_t n, least = s->options.step_usec_max == DS_STEP_TWICE ? 1 : CHUNK_MIN;

    if (isinf(usec))
        return most;
    n = ds_pace_rows(&s->pace, usec, sequence->n_computed, most);
    if (n == UINT32_MAX)
        n = CHUNK_FIRST;
    if (n < least && s->n_prompt_rows == 0)
        n = least;
    return n < most ? n : most;
}

/* Whose turn it is: the user with the lowest counter, of its sequences the oldest. */
static struct ds_sequence *next_in_turn(struct ds_scheduler *s, bool admitting)
{
    struct ds_sequence *best = NULL;

    for (uint32_t i = 0; i < s->n_running + (admitting ? s->users.n : 0); i++) {
        struct ds_sequence *candidate =
            i < s->n_running ? s->running[i] : s->users.list[i - s->n_running]->oldest;

        if (!candidate || candidate->planned_in == s->n_steps)
            continue;
        if (!best || candidate->user->counter < best->user->counter ||
            (candidate->user->counter == best->user->counter && candidate->arrival < best->arrival))
            best = candidate;
    }
    return best;
}

/* The next rows of a prompt or score, within the budgets of rows and of rows with logits. */
static uint32_t plan_chunk(struct ds_scheduler *s, struct ds_sequence *sequence, uint32_t budget)
{
    uint32_t missing = ds_sequence_n_missing(sequence);
    uint32_t outputs_left = s->options.outputs_max - s->n_outputs;
    uint32_t n = missing < budget ? missing : budget, n_outputs;

    if (sequence->job.score) {
        uint32_t known = sequence->n_scored - sequence->n_computed; /* rows counted before */

        assert(sequence->n_scored >= sequence->n_computed);
        if (n > known + outputs_left)
            n = known + outputs_left;
        n_outputs = n > known ? n - known : 0;
    } else {
        if (n == missing && outputs_left == 0)
            n--;
        n_outputs = n == missing;
    }
    plan_rows(s, sequence, n, n_outputs);
    s->n_prompt_rows += n;
    return n;
}

static void plan_prompts(struct ds_scheduler *s, uint64_t now)
{
    uint32_t budget = s->options.batch_tokens_max - s->n_decodes;
    double usec = time_budget(s);
    bool admitting = true;

    while (budget > 0) {
        struct ds_sequence *sequence = next_in_turn(s, admitting);
        uint32_t position, n;

        if (!sequence)
            break;
        if (!sequence->running) {
            enum admission admission = admit(s, sequence, now);

            if (admission == NO_ROOM) {
                admitting = false; /* nor may anybody overtake it */
                continue;
            }
            if (admission == BETTER_LATER) {
                sequence->planned_in = s->n_steps;
                continue;
            }
        }
        n = affordable(s, sequence, usec, budget);
        if (n == 0)
            break;
        sequence->planned_in = s->n_steps;
        position = sequence->n_computed;
        n = plan_chunk(s, sequence, n);
        budget -= n;
        usec -= ds_pace_prompt(&s->pace, n, position);
        s->prompt_context += (double) n * position + 0.5 * n * (n - 1.0);
    }
}

/* What a step without prompts takes is the measure of all others, and it grows with the answers: it
 * is taken now and then while prompts wait. */
static bool must_measure(const struct ds_scheduler *s)
{
    return s->n_decodes > 0 && s->options.step_usec_max != DS_STEP_UNLIMITED &&
           (s->n_mixed >= MEASURE_EVERY || ds_pace_decode(&s->pace, s->n_decodes) <= 0.0);
}

void ds_scheduler_plan(struct ds_scheduler *s, uint64_t now)
{
    s->n_steps++;
    s->n_prompt_rows = s->n_decodes = s->n_outputs = 0;
    s->prompt_context = 0.0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        s->running[i]->n_planned = s->running[i]->n_outputs = 0;
        s->running[i]->n_proposed = s->running[i]->n_drafted = s->running[i]->n_guessed = 0;
    }
    make_room_for_the_starved(s, now);
    plan_decodes(s);
    if (!must_measure(s))
        plan_prompts(s, now);
    s->n_mixed = s->n_prompt_rows > 0 ? s->n_mixed + 1 : 0;
    assert(s->n_decodes + s->n_prompt_rows <= s->options.batch_tokens_max);
    assert(s->n_outputs <= s->options.outputs_max);
}
