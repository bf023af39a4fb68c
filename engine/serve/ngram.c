/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/ngram.h"

enum { SHORTEST = 2, LONGEST = 4, SLOTS_MIN = 256 };

static uint32_t slot_of(const struct ds_ngram *ngram, const uint32_t *gram, uint32_t length)
{
    uint64_t hash = length;

    for (uint32_t i = 0; i < length; i++)
        hash = (hash ^ gram[i]) * 0x9e3779b97f4a7c15u;
    return (uint32_t) (hash >> 32) & (ngram->n_slots - 1);
}

/* All n-grams that end before `end` and are not in the table yet. */
static void index_tokens(struct ds_ngram *ngram, const uint32_t *tokens, uint32_t end)
{
    for (; ngram->n_indexed < end; ngram->n_indexed++) {
        uint32_t after = ngram->n_indexed + 1;

        for (uint32_t length = SHORTEST; length <= LONGEST && length <= after; length++)
            ngram->slots[slot_of(ngram, tokens + after - length, length)] = after;
    }
}

/* More than twice as many slots as n-grams, so that few lose theirs. */
static int make_room(struct ds_ngram *ngram, uint32_t n_tokens)
{
    uint32_t n_slots = ngram->n_slots ? ngram->n_slots : SLOTS_MIN, *slots;

    while (n_slots < DS_NGRAM_SLOTS_MAX && n_slots < 8 * (uint64_t) n_tokens)
        n_slots *= 2;
    if (n_slots == ngram->n_slots)
        return 0;
    slots = calloc(n_slots, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    free(ngram->slots);
    *ngram = (struct ds_ngram){ .slots = slots, .n_slots = n_slots };
    return 0;
}

void ds_ngram_deinit(struct ds_ngram *ngram)
{
    free(ngram->slots);
    *ngram = (struct ds_ngram){ 0 };
}

uint32_t ds_ngram_propose(struct ds_ngram *ngram, uint32_t *tokens, uint32_t n_tokens, uint32_t n)
{
    uint32_t found = 0;

    if (n_tokens < SHORTEST + 1 || make_room(ngram, n_tokens) < 0)
        return 0;
    index_tokens(ngram, tokens, n_tokens - 1); /* the last token is followed by nothing yet */
    for (uint32_t length = LONGEST; length >= SHORTEST && found == 0; length--) {
        uint32_t at;

        if (length >= n_tokens)
            continue;
        at = ngram->slots[slot_of(ngram, tokens + n_tokens - length, length)];
        if (at >= length &&
            memcmp(tokens + at - length, tokens + n_tokens - length, length * sizeof *tokens) == 0)
            found = at;
    }
    if (found == 0)
        return 0;
    for (uint32_t i = 0; i < n; i++) /* runs on into what is being written: a loop goes round */
        tokens[n_tokens + i] = tokens[found + i];
    return n;
}
