/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_cache.h - who owns which block of the paged KV cache, and which blocks can be shared.
 *
 * Bookkeeping only: the memory is the backend's (struct ds_kv). A block holds the keys and values
 * of DS_KV_BLOCK consecutive positions. A sequence refers to its blocks; a block that nobody refers
 * to is free. A full block may be published: it is then found again by the tokens it stands for,
 * all tokens before them, and the user, also after it has become free, until its memory is needed
 * (least recently used first; of one sequence, its tail first).
 *
 *      taken (refs > 0) --release--> free, unpublished  -> taken first
 *            ^                       free, published    -> taken last, oldest first
 *            '--match-- published, free or taken
 *
 * Sharing stays within one owner. That is one user: who else sent a prefix must not show in the
 * time one's own takes; and one adapter at one scale: with another, the same tokens have other keys
 * and values. The key of a block is a hash under a secret of (key of the block before, owner,
 * tokens), and owner and tokens are compared as well. One thread. Source: Kwon et al. 2023
 * (PagedAttention).
 */
#pragma once

#include <stdint.h>

#include "proto/base.h"

#define DS_KV_NO_BLOCK UINT32_MAX

enum {
    DS_KV_CACHE_OK,
    DS_KV_CACHE_FULL, /* not that many blocks are free */
};

struct ds_kv_cache;

struct ds_kv_owner {
    uint32_t uid;
    uint32_t adapter; /* ds_adapter_serial(), 0: none */
    float scale;      /* of the adapter, 0 where there is none; compared bit by bit */
};

/* -ENOMEM. */
int ds_kv_cache_new(struct ds_kv_cache **ret_cache, uint32_t n_blocks, uint64_t salt);
struct ds_kv_cache *ds_kv_cache_free(struct ds_kv_cache *cache);

/* Published blocks that hold the first tokens of tokens[n]; at most n - 1 of them, so that one is
 * left to compute. Refers to each. Returns how many, in ret_blocks[(n - 1) / DS_KV_BLOCK]. */
uint32_t ds_kv_cache_match(struct ds_kv_cache *cache, struct ds_kv_owner owner,
                           const uint32_t *tokens, size_t n, uint32_t *ret_blocks);

/* Refers once more to each of blocks, which somebody of the same user refers to already. */
void ds_kv_cache_share(struct ds_kv_cache *cache, const uint32_t *blocks, uint32_t n);

/* Takes n free blocks, or none: DS_KV_CACHE_OK, DS_KV_CACHE_FULL. */
int ds_kv_cache_take(struct ds_kv_cache *cache, uint32_t n, uint32_t *ret_blocks);

/* Keys and values of block, which the caller refers to, are complete: others may share them.
 * parent: the block before it in its sequence, published before (DS_KV_NO_BLOCK: it is the first).
 * Once per block and owner. */
void ds_kv_cache_publish(struct ds_kv_cache *cache, struct ds_kv_owner owner, uint32_t parent,
                         uint32_t block, const uint32_t tokens[DS_KV_BLOCK]);

/* Gives up one reference of each of a sequence's blocks, given in order of position. */
void ds_kv_cache_release(struct ds_kv_cache *cache, const uint32_t *blocks, uint32_t n);

uint32_t ds_kv_cache_n_blocks(const struct ds_kv_cache *cache);
uint32_t ds_kv_cache_n_free(const struct ds_kv_cache *cache); /* published ones included */
uint32_t ds_kv_cache_n_refs(const struct ds_kv_cache *cache, uint32_t block);

/* Asserts every invariant, in time proportional to the number of blocks. For tests. */
void ds_kv_cache_check(const struct ds_kv_cache *cache);
