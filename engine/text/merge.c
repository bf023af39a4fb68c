/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/merge.h"

#include "proto/base.h"

#define EMPTY     UINT64_MAX
#define NONE      UINT32_MAX
#define SHORT_MAX 40u /* symbols: up to here searching beats a heap */

static size_t hash_pair(uint64_t pair)
{
    pair = (pair ^ pair >> 32) * 0x9E3779B97F4A7C15u;
    return (size_t) (pair ^ pair >> 29);
}

int ds_merge_table_init(struct ds_merge_table *table, size_t n_expected)
{
    size_t n = 64;

    while (2 * n < 3 * n_expected)
        n *= 2;
    *table = (struct ds_merge_table){ .mask = n - 1 };
    table->slots = malloc(n * sizeof *table->slots);
    if (!table->slots)
        return -ENOMEM;
    memset(table->slots, 0xFF, n * sizeof *table->slots);
    return 0;
}

void ds_merge_table_deinit(struct ds_merge_table *table)
{
    free(table->slots);
    *table = (struct ds_merge_table){ 0 };
}

static struct ds_merge *find_slot(const struct ds_merge_table *table, uint64_t pair)
{
    size_t at = hash_pair(pair) & table->mask;

    while (table->slots[at].pair != EMPTY && table->slots[at].pair != pair)
        at = (at + 1) & table->mask;
    return &table->slots[at];
}

static int grow(struct ds_merge_table *table)
{
    struct ds_merge_table bigger;
    int r;

    r = ds_merge_table_init(&bigger, table->mask + 1);
    if (r < 0)
        return r;
    for (size_t i = 0; i <= table->mask; i++)
        if (table->slots[i].pair != EMPTY)
            *find_slot(&bigger, table->slots[i].pair) = table->slots[i];
    bigger.n_used = table->n_used;
    free(table->slots);
    *table = bigger;
    return 0;
}

int ds_merge_table_add(struct ds_merge_table *table, uint32_t left, uint32_t right, uint32_t rank,
                       uint32_t id)
{
    uint64_t pair = (uint64_t) left << 32 | right;
    struct ds_merge *slot;
    int r;

    if (4 * (table->n_used + 1) > 3 * (table->mask + 1)) {
        r = grow(table);
        if (r < 0)
            return r;
    }
    slot = find_slot(table, pair);
    if (slot->pair == EMPTY) {
        *slot = (struct ds_merge){ pair, rank, id };
        table->n_used++;
    }
    return 0;
}

/* Rank of a pair, NONE where it cannot be joined. An empty slot reads as rank NONE. */
static inline uint32_t look_up(const struct ds_merge_table *table, uint32_t left, uint32_t right,
                               uint32_t *ret_id)
{
    const struct ds_merge *merge = find_slot(table, (uint64_t) left << 32 | right);

    *ret_id = merge->id;
    return merge->rank;
}

static size_t run_short(const struct ds_merge_table *table, uint32_t *ids, size_t n)
{
    uint32_t ranks[SHORT_MAX], joined[SHORT_MAX]; /* of the pair (i, i + 1) */

    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = look_up(table, ids[i], ids[i + 1], &joined[i]);
    while (n > 1) {
        size_t best = 0;

        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == NONE)
            break;
        ids[best] = joined[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i - 1] = ranks[i];
            joined[i - 1] = joined[i];
        }
        if (best > 0)
            ranks[best - 1] = look_up(table, ids[best - 1], ids[best], &joined[best - 1]);
        if (best + 1 < n)
            ranks[best] = look_up(table, ids[best], ids[best + 1], &joined[best]);
    }
    return n;
}

/* A word as a doubly linked list over its ids, and a min-heap of rank << 32 | position. An entry
 * is stale unless the pair that starts at its position still has its rank. */
struct long_word {
    const struct ds_merge_table *table;
    uint32_t *ids; /* NONE: joined to its left neighbour */
    uint32_t *next, *previous;
    uint64_t *heap;
    size_t n_heap;
};

static void sift_down(uint64_t *heap, size_t n, size_t at)
{
    uint64_t entry = heap[at];

    for (size_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= entry)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
}

static void heap_push(struct long_word *word, uint64_t entry)
{
    size_t at = word->n_heap++;

    while (at > 0 && word->heap[(at - 1) / 2] > entry) {
        word->heap[at] = word->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    word->heap[at] = entry;
}

static uint64_t heap_pop(struct long_word *word)
{
    uint64_t entry = word->heap[0];

    word->heap[0] = word->heap[--word->n_heap];
    if (word->n_heap > 1)
        sift_down(word->heap, word->n_heap, 0);
    return entry;
}

static uint32_t pair_rank(const struct long_word *word, uint32_t at, uint32_t *ret_id)
{
    if (word->ids[at] == NONE || word->next[at] == NONE)
        return NONE;
    return look_up(word->table, word->ids[at], word->ids[word->next[at]], ret_id);
}

static void push_pair(struct long_word *word, uint32_t at)
{
    uint32_t id, rank = at == NONE ? NONE : pair_rank(word, at, &id);

    if (rank != NONE)
        heap_push(word, (uint64_t) rank << 32 | at);
}

static void join(struct long_word *word, uint32_t at, uint32_t id)
{
    uint32_t gone = word->next[at], after = word->next[gone];

    word->ids[at] = id;
    word->ids[gone] = NONE;
    word->next[at] = after;
    if (after != NONE)
        word->previous[after] = at;
    push_pair(word, word->previous[at]);
    push_pair(word, at);
}

static size_t run_long(struct long_word *word, size_t n)
{
    size_t n_left = 0;

    for (size_t i = 0; i < n; i++) {
        word->next[i] = i + 1 < n ? (uint32_t) i + 1 : NONE;
        word->previous[i] = i > 0 ? (uint32_t) i - 1 : NONE;
    }
    for (uint32_t i = 0; i + 1 < n; i++) {
        uint32_t id, rank = pair_rank(word, i, &id);

        if (rank != NONE)
            word->heap[word->n_heap++] = (uint64_t) rank << 32 | i;
    }
    for (size_t i = word->n_heap / 2; i-- > 0;)
        sift_down(word->heap, word->n_heap, i);
    while (word->n_heap > 0) {
        uint64_t entry = heap_pop(word);
        uint32_t id, at = (uint32_t) entry;

        if (pair_rank(word, at, &id) == entry >> 32)
            join(word, at, id);
    }
    for (uint32_t at = 0; at != NONE; at = word->next[at])
        word->ids[n_left++] = word->ids[at];
    return n_left;
}

void ds_merge_scratch_deinit(struct ds_merge_scratch *scratch)
{
    free(scratch->memory);
    *scratch = (struct ds_merge_scratch){ 0 };
}

int ds_merge_run(const struct ds_merge_table *table, uint32_t *ids, size_t *n,
                 struct ds_merge_scratch *scratch)
{
    /* A join takes one entry off the heap and adds two at most, and there are n - 1 joins. */
    size_t need = *n * (2 * sizeof(uint64_t) + 2 * sizeof(uint32_t));
    struct long_word word = { .table = table, .ids = ids };

    if (*n <= SHORT_MAX) {
        *n = run_short(table, ids, *n);
        return 0;
    }
    if (need > scratch->size) {
        ds_merge_scratch_deinit(scratch);
        scratch->memory = malloc(need);
        if (!scratch->memory)
            return -ENOMEM;
        scratch->size = need;
    }
    word.heap = scratch->memory;
    word.next = (uint32_t *) (word.heap + 2 * *n);
    word.previous = word.next + *n;
    *n = run_long(&word, *n);
    return 0;
}
