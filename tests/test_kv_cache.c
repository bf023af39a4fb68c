/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: blocks are never lost, never given out twice, and shared exactly where user, tokens and all
 * tokens before are the same.
 * Method: known answers of the hash; small scenes; random operations checked against a model that
 * remembers in plain arrays what each block holds, with every invariant asserted after every step.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/kv_cache.h"
#include "engine/serve/philox.h"
#include "engine/serve/siphash.h"

enum { B = DS_KV_BLOCK };

static struct ds_kv_cache *new_cache(uint32_t n_blocks)
{
    struct ds_kv_cache *cache = NULL;

    assert_int_equal(ds_kv_cache_new(&cache, n_blocks, 0x1234), 0);
    ds_kv_cache_check(cache);
    return cache;
}

static void fill(uint32_t *tokens, size_t n, uint32_t start)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = start + (uint32_t) i;
}

static struct ds_kv_owner user(uint32_t uid)
{
    return (struct ds_kv_owner){ .uid = uid };
}

/* Publishes n_blocks full blocks of tokens. */
static void publish_all(struct ds_kv_cache *cache, uint32_t uid, const uint32_t *blocks,
                        uint32_t n_blocks, const uint32_t *tokens)
{
    for (uint32_t i = 0; i < n_blocks; i++)
        ds_kv_cache_publish(cache, user(uid), i ? blocks[i - 1] : DS_KV_NO_BLOCK, blocks[i],
                            tokens + (size_t) i * B);
}

static void siphash_gives_the_published_answers(void **state)
{
    static const uint8_t expected[2][16] = {
        { 0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02,
          0x93 },
        { 0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc,
          0x45 },
    };
    const uint64_t key[2] = { 0x0706050403020100u, 0x0f0e0d0c0b0a0908u };
    const uint8_t input[1] = { 0 };

    (void) state;
    for (unsigned n = 0; n < 2; n++) {
        uint64_t out[2];

        ds_siphash128(key, input, n, out);
        assert_memory_equal(out, expected[n], 16);
    }
}

static void a_prefix_is_found_in_full_blocks_and_never_whole(void **state)
{
    struct ds_kv_cache *cache = new_cache(8);
    uint32_t tokens[4 * B], blocks[4], found[4];

    (void) state;
    fill(tokens, 4 * B, 100);
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 4 * B, found), 0);
    assert_int_equal(ds_kv_cache_take(cache, 3, blocks), DS_KV_CACHE_OK);
    publish_all(cache, 1, blocks, 3, tokens);
    assert_int_equal(ds_kv_cache_n_free(cache), 5);

    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 4 * B, found), 3);
    assert_memory_equal(found, blocks, 3 * sizeof *found);
    assert_int_equal(ds_kv_cache_n_refs(cache, blocks[2]), 2);
    ds_kv_cache_release(cache, found, 3);
    /* all of it is known, but one token must be computed */
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 3 * B, found), 2);
    ds_kv_cache_release(cache, found, 2);
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 3 * B + 1, found), 3);
    ds_kv_cache_release(cache, found, 3);
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, B, found), 0);
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 0, found), 0);

    ds_kv_cache_release(cache, blocks, 3);
    assert_int_equal(ds_kv_cache_n_free(cache), 8);
    ds_kv_cache_check(cache);
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 4 * B, found),
                     3); /* outlives its owner */
    assert_int_equal(ds_kv_cache_n_free(cache), 5);
    (void) ds_kv_cache_free(cache);
}

static void another_user_or_another_past_shares_nothing(void **state)
{
    struct ds_kv_cache *cache = new_cache(8);
    uint32_t tokens[3 * B], blocks[2], found[2];

    (void) state;
    fill(tokens, 3 * B, 0);
    assert_int_equal(ds_kv_cache_take(cache, 2, blocks), DS_KV_CACHE_OK);
    publish_all(cache, 1, blocks, 2, tokens);
    assert_int_equal(ds_kv_cache_match(cache, user(2), tokens, 3 * B, found), 0);
    /* the same user with an adapter */
    struct ds_kv_owner adapted = { .uid = 1, .adapter = 1, .scale = 1.0f };
    uint32_t others[2];

    assert_int_equal(ds_kv_cache_match(cache, adapted, tokens, 3 * B, found), 0);
    assert_int_equal(ds_kv_cache_take(cache, 2, others), DS_KV_CACHE_OK);
    for (uint32_t i = 0; i < 2; i++)
        ds_kv_cache_publish(cache, adapted, i ? others[0] : DS_KV_NO_BLOCK, others[i],
                            tokens + i * B);
    assert_int_equal(ds_kv_cache_match(cache, adapted, tokens, 3 * B, found), 2);
    assert_memory_equal(found, others, sizeof others);
    ds_kv_cache_release(cache, found, 2);
    adapted.scale = 0.5f; /* and at another scale */
    assert_int_equal(ds_kv_cache_match(cache, adapted, tokens, 3 * B, found), 0);
    adapted.scale = 1.0f;
    adapted.adapter = 2;
    assert_int_equal(ds_kv_cache_match(cache, adapted, tokens, 3 * B, found), 0);
    ds_kv_cache_release(cache, others, 2);
    /* the second block's tokens at the start of another sequence */
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens + B, 2 * B, found), 0);
    /* a first block that differs in one token hides the equal second one */
    tokens[3]++;
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 3 * B, found), 0);
    tokens[3]--;
    tokens[B + 3]++;
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 3 * B, found), 1);
    (void) ds_kv_cache_free(cache);
}

static void free_blocks_are_taken_unpublished_first_then_oldest_tail_first(void **state)
{
    struct ds_kv_cache *cache = new_cache(6);
    uint32_t old[3 * B], recent[3 * B], a[2], b[2], rest[6], found[2];

    (void) state;
    fill(old, 3 * B, 0);
    fill(recent, 3 * B, 1000);
    assert_int_equal(ds_kv_cache_take(cache, 2, a), DS_KV_CACHE_OK);
    publish_all(cache, 1, a, 2, old);
    assert_int_equal(ds_kv_cache_take(cache, 2, b), DS_KV_CACHE_OK);
    publish_all(cache, 1, b, 2, recent);
    ds_kv_cache_release(cache, a, 2);
    ds_kv_cache_release(cache, b, 2);
    assert_int_equal(ds_kv_cache_take(cache, 7, rest), DS_KV_CACHE_FULL);
    assert_int_equal(ds_kv_cache_take(cache, 3, rest), DS_KV_CACHE_OK);
    assert_int_equal(rest[2], a[1]); /* two blocks never used, then the tail of the older one */
    ds_kv_cache_check(cache);
    assert_int_equal(ds_kv_cache_match(cache, user(1), old, 3 * B, found), 1);
    ds_kv_cache_release(cache, found, 1); /* used just now: recent's tail is next */
    assert_int_equal(ds_kv_cache_take(cache, 1, rest + 3), DS_KV_CACHE_OK);
    assert_int_equal(rest[3], b[1]);
    assert_int_equal(ds_kv_cache_n_free(cache), 2);
    (void) ds_kv_cache_free(cache);
}

static void two_owners_of_equal_content_keep_their_own_blocks(void **state)
{
    struct ds_kv_cache *cache = new_cache(4);
    uint32_t tokens[3 * B], a[2], b[2], found[2];

    (void) state;
    fill(tokens, 3 * B, 7);
    assert_int_equal(ds_kv_cache_take(cache, 2, a), DS_KV_CACHE_OK);
    assert_int_equal(ds_kv_cache_take(cache, 2, b), DS_KV_CACHE_OK);
    publish_all(cache, 1, a, 2, tokens); /* both computed at the same time */
    publish_all(cache, 1, b, 2, tokens);
    ds_kv_cache_check(cache);
    ds_kv_cache_release(cache, b, 2);
    ds_kv_cache_check(cache);
    assert_int_equal(ds_kv_cache_match(cache, user(1), tokens, 3 * B, found), 2);
    assert_memory_equal(found, a, sizeof found);
    (void) ds_kv_cache_free(cache);
}

/* --- random operations --- */

enum { N_BLOCKS = 24, N_SEQUENCES = 6, LENGTH = 7 * B, ROUNDS = 20000 };

struct model_sequence {
    uint32_t uid, n_blocks, n_tokens, n_published;
    uint32_t tokens[LENGTH];
    uint32_t blocks[LENGTH / B];
};

struct content { /* what a block holds, as the model knows it */
    bool valid;
    uint32_t uid, n_tokens;
    uint32_t tokens[LENGTH];
};

static uint32_t rnd(uint64_t *state, uint32_t n)
{
    return (uint32_t) (ds_philox_uniform(11, (*state)++) * n);
}

static void expect_counts(const struct ds_kv_cache *cache, const struct model_sequence *sequences)
{
    uint32_t refs[N_BLOCKS] = { 0 }, n_free = 0;

    for (unsigned s = 0; s < N_SEQUENCES; s++) {
        for (uint32_t i = 0; i < sequences[s].n_blocks; i++)
            refs[sequences[s].blocks[i]]++;
    }
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        assert_int_equal(ds_kv_cache_n_refs(cache, i), refs[i]);
        n_free += refs[i] == 0;
    }
    assert_int_equal(ds_kv_cache_n_free(cache), n_free);
    ds_kv_cache_check(cache);
}

static void start(struct ds_kv_cache *cache, struct model_sequence *s, struct content *contents,
                  uint64_t *random)
{
    uint32_t need, found;

    s->uid = rnd(random, 2);
    s->n_tokens = 1 + rnd(random, LENGTH);
    for (uint32_t i = 0; i < s->n_tokens; i++) /* few choices, made per block: prefixes coincide */
        s->tokens[i] = i % B ? s->tokens[i - 1] : rnd(random, 2);
    found = ds_kv_cache_match(cache, user(s->uid), s->tokens, s->n_tokens, s->blocks);
    assert_true(found * B < s->n_tokens);
    for (uint32_t i = 0; i < found; i++) { /* what was found is what was asked for */
        const struct content *c = &contents[s->blocks[i]];

        assert_true(c->valid && c->uid == s->uid && c->n_tokens == (i + 1) * B);
        assert_memory_equal(c->tokens, s->tokens, c->n_tokens * sizeof *c->tokens);
    }
    need = (s->n_tokens + B - 1) / B - found;
    if (ds_kv_cache_take(cache, need, s->blocks + found) != DS_KV_CACHE_OK) {
        assert_true(need > ds_kv_cache_n_free(cache));
        ds_kv_cache_release(cache, s->blocks, found);
        s->n_blocks = 0;
        return;
    }
    s->n_blocks = found + need;
    s->n_published = found;
    for (uint32_t i = found; i < s->n_blocks; i++)
        contents[s->blocks[i]].valid = false;
}

static void publish_next(struct ds_kv_cache *cache, struct model_sequence *s,
                         struct content *contents)
{
    uint32_t i = s->n_published;
    struct content *c = &contents[s->blocks[i]];

    ds_kv_cache_publish(cache, user(s->uid), i ? s->blocks[i - 1] : DS_KV_NO_BLOCK, s->blocks[i],
                        s->tokens + (size_t) i * B);
    c->valid = true;
    c->uid = s->uid;
    c->n_tokens = (i + 1) * B;
    memcpy(c->tokens, s->tokens, c->n_tokens * sizeof *c->tokens);
    s->n_published++;
}

static void random_operations_agree_with_a_model(void **state)
{
    struct ds_kv_cache *cache = new_cache(N_BLOCKS);
    struct model_sequence *sequences = calloc(N_SEQUENCES, sizeof *sequences);
    struct content *contents = calloc(N_BLOCKS, sizeof *contents);
    uint64_t random = 0;

    (void) state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct model_sequence *s = &sequences[rnd(&random, N_SEQUENCES)];

        if (s->n_blocks == 0) {
            start(cache, s, contents, &random);
        } else if (s->n_published < s->n_tokens / B && rnd(&random, 4)) {
            publish_next(cache, s, contents);
        } else {
            ds_kv_cache_release(cache, s->blocks, s->n_blocks);
            s->n_blocks = 0;
        }
        expect_counts(cache, sequences);
    }
    for (unsigned i = 0; i < N_SEQUENCES; i++)
        ds_kv_cache_release(cache, sequences[i].blocks, sequences[i].n_blocks);
    assert_int_equal(ds_kv_cache_n_free(cache), N_BLOCKS); /* nothing leaked */
    ds_kv_cache_check(cache);
    free(sequences);
    free(contents);
    (void) ds_kv_cache_free(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(siphash_gives_the_published_answers),
        cmocka_unit_test(a_prefix_is_found_in_full_blocks_and_never_whole),
        cmocka_unit_test(another_user_or_another_past_shares_nothing),
        cmocka_unit_test(free_blocks_are_taken_unpublished_first_then_oldest_tail_first),
        cmocka_unit_test(two_owners_of_equal_content_keep_their_own_blocks),
        cmocka_unit_test(random_operations_agree_with_a_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
