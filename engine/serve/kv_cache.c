/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/kv_cache.h"

#include <assert.h>
#include <stdbool.h>

#include "engine/serve/siphash.h"

#define NONE DS_KV_NO_BLOCK

struct block {
    uint64_t key[2]; /* of this block's tokens and all before; set by publish */
    struct ds_kv_owner owner;
    uint32_t refs;
    uint32_t prev, next; /* in the free list while refs == 0 */
    uint32_t chain;      /* next block in the same bucket while indexed */
    bool indexed;        /* can be found */
    bool published; /* key is set; not indexed where another block with the same key was first */
};

struct ds_kv_cache {
    uint64_t secret[2];
    uint32_t n_blocks;
    uint32_t n_free;
    uint32_t first, last; /* of the free list: taken from first */
    uint32_t bucket_mask;
    uint32_t *buckets;               /* [bucket_mask + 1] first block or NONE */
    struct block *blocks;            /* [n_blocks] */
    uint32_t (*tokens)[DS_KV_BLOCK]; /* [n_blocks] of published blocks */
};

int ds_kv_cache_new(struct ds_kv_cache **ret_cache, uint32_t n_blocks, uint64_t salt)
{
    struct ds_kv_cache *cache;
    uint32_t n_buckets = 1;

    assert(n_blocks > 0 && n_blocks < NONE / 2);
    cache = calloc(1, sizeof *cache);
    if (!cache)
        return -ENOMEM;
    while (n_buckets < n_blocks)
        n_buckets *= 2;
    cache->secret[0] = salt;
    cache->secret[1] = salt ^ 0x9e3779b97f4a7c15u;
    cache->n_blocks = cache->n_free = n_blocks;
    cache->bucket_mask = n_buckets - 1;
    cache->buckets = malloc(n_buckets * sizeof *cache->buckets);
    cache->blocks = calloc(n_blocks, sizeof *cache->blocks);
    cache->tokens = calloc(n_blocks, sizeof *cache->tokens);
    if (!cache->buckets || !cache->blocks || !cache->tokens) {
        (void) ds_kv_cache_free(cache);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_buckets; i++)
        cache->buckets[i] = NONE;
    for (uint32_t i = 0; i < n_blocks; i++) {
        cache->blocks[i].prev = i ? i - 1 : NONE;
        cache->blocks[i].next = i + 1 < n_blocks ? i + 1 : NONE;
    }
    cache->last = n_blocks - 1;
    *ret_cache = cache;
    return 0;
}

struct ds_kv_cache *ds_kv_cache_free(struct ds_kv_cache *cache)
{
    if (!cache)
        return NULL;
    free(cache->buckets);
    free(cache->blocks);
    free(cache->tokens);
    free(cache);
    return NULL;
}

/* --- the free list --- */

static void unlink_free(struct ds_kv_cache *cache, uint32_t id)
{
    struct block *block = &cache->blocks[id];

    *(block->prev == NONE ? &cache->first : &cache->blocks[block->prev].next) = block->next;
    *(block->next == NONE ? &cache->last : &cache->blocks[block->next].prev) = block->prev;
    cache->n_free--;
}

static void link_free(struct ds_kv_cache *cache, uint32_t id, bool keep_long)
{
    struct block *block = &cache->blocks[id];

    block->prev = keep_long ? cache->last : NONE;
    block->next = keep_long ? NONE : cache->first;
    *(block->prev == NONE ? &cache->first : &cache->blocks[block->prev].next) = id;
    *(block->next == NONE ? &cache->last : &cache->blocks[block->next].prev) = id;
    cache->n_free++;
}

/* --- the index --- */

static uint32_t *bucket_of(const struct ds_kv_cache *cache, const uint64_t key[2])
{
    return &cache->buckets[key[0] & cache->bucket_mask];
}

static bool same_owner(struct ds_kv_owner a, struct ds_kv_owner b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static void make_key(const struct ds_kv_cache *cache, const uint64_t parent[2],
                     struct ds_kv_owner owner, const uint32_t *tokens, uint64_t ret_key[2])
{
    struct {
        uint64_t parent[2];
        struct ds_kv_owner owner;
        uint32_t tokens[DS_KV_BLOCK + 1]; /* one more: no padding, which would be hashed */
    } input = { .parent = { parent[0], parent[1] }, .owner = owner };

    memcpy(input.tokens, tokens, DS_KV_BLOCK * sizeof *tokens);
    ds_siphash128(cache->secret, &input, sizeof input, ret_key);
}

static uint32_t find(const struct ds_kv_cache *cache, const uint64_t key[2],
                     struct ds_kv_owner owner, const uint32_t *tokens)
{
    uint32_t id;

    for (id = *bucket_of(cache, key); id != NONE; id = cache->blocks[id].chain) {
        const struct block *block = &cache->blocks[id];

        if (block->key[0] == key[0] && block->key[1] == key[1] && same_owner(block->owner, owner) &&
            memcmp(cache->tokens[id], tokens, sizeof cache->tokens[id]) == 0)
            break;
    }
    return id;
}

static void unindex(struct ds_kv_cache *cache, uint32_t id)
{
    uint32_t *link = bucket_of(cache, cache->blocks[id].key);

    while (*link != id)
        link = &cache->blocks[*link].chain;
    *link = cache->blocks[id].chain;
    cache->blocks[id].indexed = false;
}

/* --- the interface --- */

uint32_t ds_kv_cache_match(struct ds_kv_cache *cache, struct ds_kv_owner owner,
                           const uint32_t *tokens, size_t n, uint32_t *ret_blocks)
{
    size_t n_full = n > 0 ? (n - 1) / DS_KV_BLOCK : 0;
    uint64_t parent[2] = { 0, 0 };
    uint32_t found = 0;

    for (; found < n_full; found++, tokens += DS_KV_BLOCK) {
        uint64_t key[2];
        uint32_t id;

        make_key(cache, parent, owner, tokens, key);
        id = find(cache, key, owner, tokens);
        if (id == NONE)
            break;
        if (cache->blocks[id].refs++ == 0)
            unlink_free(cache, id);
        ret_blocks[found] = id;
        memcpy(parent, key, sizeof parent);
    }
    return found;
}

void ds_kv_cache_share(struct ds_kv_cache *cache, const uint32_t *blocks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert(blocks[i] < cache->n_blocks && cache->blocks[blocks[i]].refs > 0);
        cache->blocks[blocks[i]].refs++;
    }
}

int ds_kv_cache_take(struct ds_kv_cache *cache, uint32_t n, uint32_t *ret_blocks)
{
    if (n > cache->n_free)
        return DS_KV_CACHE_FULL;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = cache->first;
        struct block *block = &cache->blocks[id];

        unlink_free(cache, id);
        if (block->indexed)
            unindex(cache, id);
        block->published = false;
        block->refs = 1;
        ret_blocks[i] = id;
    }
    return DS_KV_CACHE_OK;
}

void ds_kv_cache_publish(struct ds_kv_cache *cache, struct ds_kv_owner owner, uint32_t parent,
                         uint32_t id, const uint32_t tokens[DS_KV_BLOCK])
{
    static const uint64_t root[2] = { 0, 0 };
    struct block *block = &cache->blocks[id];

    assert(id < cache->n_blocks && block->refs > 0 && !block->published);
    assert(parent == NONE || (cache->blocks[parent].published && cache->blocks[parent].refs > 0));
    make_key(cache, parent == NONE ? root : cache->blocks[parent].key, owner, tokens, block->key);
    block->owner = owner;
    block->published = true;
    memcpy(cache->tokens[id], tokens, sizeof cache->tokens[id]);
    if (find(cache, block->key, owner, tokens) == NONE) {
        uint32_t *bucket = bucket_of(cache, block->key);

        block->chain = *bucket;
        *bucket = id;
        block->indexed = true;
    }
}

void ds_kv_cache_release(struct ds_kv_cache *cache, const uint32_t *blocks, uint32_t n)
{
    while (n-- > 0) { /* the tail first: it is the first to be forgotten */
        struct block *block = &cache->blocks[blocks[n]];

        assert(blocks[n] < cache->n_blocks && block->refs > 0);
        if (--block->refs == 0)
            link_free(cache, blocks[n], block->indexed);
    }
}

uint32_t ds_kv_cache_n_blocks(const struct ds_kv_cache *cache)
{
    return cache->n_blocks;
}

uint32_t ds_kv_cache_n_free(const struct ds_kv_cache *cache)
{
    return cache->n_free;
}

uint32_t ds_kv_cache_n_refs(const struct ds_kv_cache *cache, uint32_t block)
{
    assert(block < cache->n_blocks);
    return cache->blocks[block].refs;
}

void ds_kv_cache_check(const struct ds_kv_cache *cache)
{
    uint32_t n_free = 0, n_unreferenced = 0, n_indexed = 0, n_found = 0, previous = NONE;
    bool published = false;

    for (uint32_t id = cache->first; id != NONE; previous = id, id = cache->blocks[id].next) {
        assert(cache->blocks[id].refs == 0 && cache->blocks[id].prev == previous);
        assert(cache->blocks[id].indexed || !published); /* unpublished ones come first */
        published = cache->blocks[id].indexed;
        n_free++;
        assert(n_free <= cache->n_blocks);
    }
    assert(cache->last == previous && n_free == cache->n_free);
    for (uint32_t id = 0; id < cache->n_blocks; id++) {
        n_unreferenced += cache->blocks[id].refs == 0;
        n_indexed += cache->blocks[id].indexed;
        assert(cache->blocks[id].published || !cache->blocks[id].indexed);
    }
    assert(n_unreferenced == n_free);
    for (uint32_t i = 0; i <= cache->bucket_mask; i++) {
        for (uint32_t id = cache->buckets[i]; id != NONE; id = cache->blocks[id].chain) {
            assert(cache->blocks[id].indexed);
            assert(bucket_of(cache, cache->blocks[id].key) == &cache->buckets[i]);
            n_found++;
            assert(n_found <= n_indexed);
        }
    }
    assert(n_found == n_indexed);
    (void) n_unreferenced; /* where NDEBUG takes the assertions away */
    (void) n_found;
    (void) published;
}
