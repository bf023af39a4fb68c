/* SPDX-License-Identifier: Apache-2.0 */
/*
 * merge.h - repeatedly joins the best pair of neighbours: the heart of BPE and of SPM.
 *
 * A table says what a pair of symbols becomes and how early (rank: lower first, ties: leftmost).
 * Short words are searched, long ones go through a heap: n log n, whatever the text.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define DS_MERGE_RANK_MAX (UINT32_MAX - 1)

struct ds_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank; /* <= DS_MERGE_RANK_MAX */
    uint32_t id;   /* the symbol they become */
};

/* Built by one thread, then read by any. */
struct ds_merge_table {
    struct ds_merge *slots; /* open addressing, 2^n */
    size_t mask, n_used;
};

/* -ENOMEM. deinit accepts a zeroed table. */
int ds_merge_table_init(struct ds_merge_table *table, size_t n_expected);
void ds_merge_table_deinit(struct ds_merge_table *table);

/* The first rule for a pair counts, later ones change nothing. -ENOMEM. */
int ds_merge_table_add(struct ds_merge_table *table, uint32_t left, uint32_t right, uint32_t rank,
                       uint32_t id);

/* Working memory of ds_merge_run, reused from word to word; zero-initialised. */
struct ds_merge_scratch {
    void *memory;
    size_t size;
};

void ds_merge_scratch_deinit(struct ds_merge_scratch *scratch);

/* Joins ids[0..*n) in place and shrinks *n (< 2^31). Ids that no rule knows separate their
 * neighbours. -ENOMEM. */
int ds_merge_run(const struct ds_merge_table *table, uint32_t *ids, size_t *n,
                 struct ds_merge_scratch *scratch);
