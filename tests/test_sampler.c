/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a draw follows its distribution, obeys every parameter, and is a pure function.
 * Method: known answers for the random numbers; hand-made logits whose right answer can be worked
 * out (what may be drawn, how often); a slow sampler written from the definition, compared on
 * random logits and parameters; hostile logits.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/philox.h"
#include "engine/serve/sampler.h"

enum { VOCAB = 200, DRAWS = 40000 };

static struct ds_sampling plain(float temperature)
{
    return (struct ds_sampling){ .temperature = temperature,
                                 .top_p = 1.0f,
                                 .typical_p = 1.0f,
                                 .repeat_penalty = 1.0f,
                                 .repeat_last_n = 64,
                                 .seed = 42 };
}

static struct ds_sampler *new_sampler(uint32_t n_vocab)
{
    struct ds_sampler *sampler = NULL;

    assert_int_equal(ds_sampler_new(&sampler, n_vocab), 0);
    return sampler;
}

static uint32_t pick(struct ds_sampler *sampler, const struct ds_sampling *sampling,
                     const float *logits, uint64_t position)
{
    return ds_sampler_pick(sampler, sampling, logits, NULL, 0, position);
}

static uint32_t random_next(uint64_t *state)
{
    return (uint32_t) (ds_philox_uniform(7, (*state)++) * 4294967296.0);
}

static float random_logit(uint64_t *state)
{
    return (float) random_next(state) * 0x1p-32f * 12.0f - 6.0f;
}

static void philox_gives_the_published_answers(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u },
          { ~0u, ~0u },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
          { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    uint32_t out[4];

    (void) state;
    for (unsigned i = 0; i < 3; i++) {
        ds_philox(vectors[i].key, vectors[i].counter, out);
        assert_memory_equal(out, vectors[i].expected, sizeof out);
    }
}

static void uniform_numbers_fill_the_unit_interval_evenly(void **state)
{
    unsigned bins[64] = { 0 };
    double chi = 0.0, expected = DRAWS / 64.0;

    (void) state;
    for (unsigned i = 0; i < DRAWS; i++) {
        double u = ds_philox_uniform(99, i);

        assert_true(u >= 0.0 && u < 1.0);
        bins[(unsigned) (u * 64.0)]++;
    }
    for (unsigned i = 0; i < 64; i++)
        chi += (bins[i] - expected) * (bins[i] - expected) / expected;
    assert_true(chi < 103.4); /* 63 degrees of freedom, p = 0.001 */
}

static void temperature_zero_takes_the_largest_and_the_lowest_id_of_equals(void **state)
{
    float logits[VOCAB] = { 0 };
    struct ds_sampling sampling = plain(0.0f);
    struct ds_sampler *sampler = new_sampler(VOCAB);

    (void) state;
    assert_int_equal(pick(sampler, &sampling, logits, 0), 0);
    logits[150] = logits[33] = 2.0f;
    assert_int_equal(pick(sampler, &sampling, logits, 0), 33);
    logits[10] = NAN;
    logits[11] = -INFINITY;
    assert_int_equal(pick(sampler, &sampling, logits, 0), 33);
    (void) ds_sampler_free(sampler);
}

static void draws_follow_the_softmax_at_the_temperature(void **state)
{
    static const float temperatures[] = { 0.5f, 1.0f, 2.0f };
    float logits[8] = { 0.0f, 1.0f, 2.0f, -1.0f, 0.5f, 1.5f, -3.0f, 0.25f };
    struct ds_sampler *sampler = new_sampler(8);

    (void) state;
    for (unsigned t = 0; t < 3; t++) {
        struct ds_sampling sampling = plain(temperatures[t]);
        double weights[8], total = 0.0, chi = 0.0;
        unsigned counts[8] = { 0 };

        for (unsigned i = 0; i < 8; i++)
            total += weights[i] = exp((double) logits[i] / (double) temperatures[t]);
        for (unsigned i = 0; i < DRAWS; i++)
            counts[pick(sampler, &sampling, logits, i)]++;
        for (unsigned i = 0; i < 8; i++) {
            double expected = weights[i] / total * DRAWS;

            chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        }
        assert_true(chi < 24.3); /* 7 degrees of freedom, p = 0.001 */
    }
    (void) ds_sampler_free(sampler);
}

static void a_draw_depends_on_seed_and_position_alone(void **state)
{
    float logits[VOCAB], copy[VOCAB];
    struct ds_sampling sampling = plain(1.0f);
    struct ds_sampler *one = new_sampler(VOCAB), *other = new_sampler(VOCAB);
    uint64_t random = 0;
    uint32_t drawn[50];
    unsigned differs = 0;

    (void) state;
    for (unsigned i = 0; i < VOCAB; i++)
        logits[i] = random_logit(&random);
    memcpy(copy, logits, sizeof copy);
    sampling.top_p = 0.9f;
    for (unsigned i = 0; i < 50; i++)
        drawn[i] = pick(one, &sampling, logits, i);
    for (unsigned i = 50; i-- > 0;) { /* another sampler, backwards */
        assert_int_equal(pick(other, &sampling, logits, i), drawn[i]);
        sampling.seed++;
        differs += pick(other, &sampling, logits, i) != drawn[i];
        sampling.seed--;
    }
    assert_true(differs > 25);
    assert_memory_equal(copy, logits, sizeof copy);
    (void) ds_sampler_free(one);
    (void) ds_sampler_free(other);
}

/* Which ids come out in many draws. */
static void support(const struct ds_sampling *sampling, const float *logits, uint32_t n, bool *seen)
{
    struct ds_sampler *sampler = new_sampler(n);

    memset(seen, 0, n);
    for (unsigned i = 0; i < 5000; i++)
        seen[pick(sampler, sampling, logits, i)] = true;
    (void) ds_sampler_free(sampler);
}

static void each_filter_keeps_what_its_definition_says(void **state)
{
    /* probabilities 0.4, 0.3, 0.15, 0.1, 0.05 on ids 3, 1, 4, 0, 2 */
    float logits[5] = { logf(0.10f), logf(0.30f), logf(0.05f), logf(0.40f), logf(0.15f) };
    struct ds_sampling sampling;
    bool seen[5];

    (void) state;
    sampling = plain(1.0f);
    sampling.top_k = 3;
    support(&sampling, logits, 5, seen);
    assert_true(seen[3] && seen[1] && seen[4] && !seen[0] && !seen[2]);

    sampling = plain(1.0f);
    sampling.top_p = 0.69f; /* 0.4 + 0.3 reaches it */
    support(&sampling, logits, 5, seen);
    assert_true(seen[3] && seen[1] && !seen[4] && !seen[0] && !seen[2]);
    sampling.top_p = 0.0f; /* at least one stays */
    support(&sampling, logits, 5, seen);
    assert_true(seen[3] && !seen[1] && !seen[4] && !seen[0] && !seen[2]);

    sampling = plain(1.0f);
    sampling.min_p = 0.3f; /* of 0.4: 0.12 */
    support(&sampling, logits, 5, seen);
    assert_true(seen[3] && seen[1] && seen[4] && !seen[0] && !seen[2]);

    /* Entropy 1.39; -ln p is that far from it: 0.3 -> 0.19, 0.4 -> 0.48, 0.15 -> 0.50, 0.1 -> 0.91,
     * 0.05 -> 1.60. */
    sampling = plain(1.0f);
    sampling.typical_p = 0.29f;
    support(&sampling, logits, 5, seen);
    assert_true(!seen[3] && seen[1] && !seen[4] && !seen[0] && !seen[2]);
    sampling.typical_p = 0.69f;
    support(&sampling, logits, 5, seen);
    assert_true(seen[3] && seen[1] && !seen[4] && !seen[0] && !seen[2]);
}

static void filters_come_before_the_temperature(void **state)
{
    float logits[3] = { logf(0.90f), logf(0.08f), logf(0.02f) };
    struct ds_sampling sampling = plain(10.0f);
    bool seen[3];

    (void) state;
    sampling.top_p = 0.89f; /* at temperature 10 the first alone would not reach it */
    support(&sampling, logits, 3, seen);
    assert_true(seen[0] && !seen[1] && !seen[2]);
}

static void a_bias_moves_a_token_and_minus_infinity_bans_it(void **state)
{
    float logits[4] = { 1.0f, 2.0f, 3.0f, 2.5f };
    struct ds_logit_bias bias[] = { { 2, -INFINITY }, { 0, 0.5f }, { 0, 1.25f } };
    struct ds_sampling sampling = plain(0.0f);
    struct ds_sampler *sampler = new_sampler(4);
    bool seen[4];

    (void) state;
    sampling.bias = bias;
    sampling.n_bias = 1;
    assert_int_equal(pick(sampler, &sampling, logits, 0), 3);
    sampling.n_bias = 3; /* two entries of one token add up: 2.75 */
    assert_int_equal(pick(sampler, &sampling, logits, 0), 0);
    sampling.temperature = 1.0f;
    support(&sampling, logits, 4, seen);
    assert_true(seen[0] && seen[1] && !seen[2] && seen[3]);
    (void) ds_sampler_free(sampler);
}

static void penalties_look_back_as_far_as_told(void **state)
{
    float logits[4] = { 3.0f, 2.0f, -1.0f, -1.5f };
    uint32_t history[] = { 0, 1, 1, 1, 3 };
    struct ds_sampling sampling = plain(0.0f);
    struct ds_sampler *sampler = new_sampler(4);

    (void) state;
    sampling.repeat_penalty = 2.0f; /* 1.5, 1, -1, -3 */
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 0);
    sampling.repeat_last_n = 4; /* token 0 is out of sight: 3, 1, -1, -3 */
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 0);
    logits[0] = 1.6f;
    sampling.repeat_last_n = 5; /* 0.8, 1 */
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 1);
    sampling.repeat_last_n = 0; /* none at all */
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 1);

    sampling = plain(0.0f);
    sampling.frequency_penalty = 0.5f; /* 1.6 - 0.5, 2 - 1.5 */
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 0);
    sampling.frequency_penalty = 0.0f;
    sampling.presence_penalty = 0.5f; /* 1.1, 1.5: once however often */
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 1);
    /* and nothing is left behind for the next call */
    sampling = plain(0.0f);
    assert_int_equal(ds_sampler_pick(sampler, &sampling, logits, history, 5, 5), 1);
    (void) ds_sampler_free(sampler);
}

/* --- a sampler from the definition: full sorts, libm --- */

struct slow {
    double logit, weight, key;
    uint32_t id;
};

static int by_key(const void *a, const void *b)
{
    const struct slow *x = a, *y = b;

    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static unsigned slow_mass(struct slow *list, unsigned n, double mass)
{
    double total = 0.0, sum = 0.0;
    unsigned kept = 0;

    for (unsigned i = 0; i < n; i++)
        total += list[i].weight;
    qsort(list, n, sizeof *list, by_key);
    while (kept < n && (kept == 0 || sum < mass * total))
        sum += list[kept++].weight;
    return kept;
}

/* The set that may be drawn, as a mask. */
static void slow_support(const struct ds_sampling *s, const float *logits, bool *allowed)
{
    struct slow list[VOCAB];
    unsigned n = VOCAB, kept = 0;
    double total = 0.0, mean = 0.0, largest;

    for (unsigned i = 0; i < n; i++) {
        double l = (double) logits[i];
        list[i] = (struct slow){ .logit = l, .weight = exp(l), .key = l, .id = i };
    }
    qsort(list, n, sizeof *list, by_key);
    n = s->top_k && s->top_k < n ? s->top_k : n;
    for (unsigned i = 0; i < n; i++)
        total += list[i].weight;
    for (unsigned i = 0; i < n; i++)
        mean += list[i].weight / total * -log(list[i].weight / total);
    if (s->typical_p < 1.0f) {
        for (unsigned i = 0; i < n; i++)
            list[i].key = -fabs(-log(list[i].weight / total) - mean);
        n = slow_mass(list, n, (double) s->typical_p);
    }
    for (unsigned i = 0; i < n; i++)
        list[i].key = list[i].logit;
    if (s->top_p < 1.0f)
        n = slow_mass(list, n, (double) s->top_p);
    qsort(list, n, sizeof *list, by_key);
    largest = list[0].weight;
    memset(allowed, 0, VOCAB);
    for (unsigned i = 0; i < n; i++) {
        if (list[i].weight >= (double) s->min_p * largest)
            allowed[list[i].id] = ++kept;
    }
}

static void the_fast_steps_agree_with_slow_ones_on_random_input(void **state)
{
    struct ds_sampler *sampler = new_sampler(VOCAB);
    uint64_t random = 1000;

    (void) state;
    for (unsigned round = 0; round < 200; round++) {
        struct ds_sampling sampling = plain(3.0f);
        bool allowed[VOCAB], seen[VOCAB] = { 0 };
        float logits[VOCAB];

        for (unsigned i = 0; i < VOCAB; i++)
            logits[i] = random_logit(&random);
        sampling.seed = round;
        sampling.top_k = random_next(&random) % 4 ? random_next(&random) % VOCAB : 0;
        if (random_next(&random) % 2)
            sampling.top_p = (float) (random_next(&random) % 100) / 100.0f;
        if (random_next(&random) % 2)
            sampling.typical_p = (float) (1 + random_next(&random) % 99) / 100.0f;
        if (random_next(&random) % 2)
            sampling.min_p = (float) (random_next(&random) % 50) / 100.0f;
        slow_support(&sampling, logits, allowed);
        for (unsigned i = 0; i < 2000; i++)
            seen[pick(sampler, &sampling, logits, i)] = true;
        for (unsigned i = 0; i < VOCAB; i++)
            assert_true(allowed[i] || !seen[i]);
        if (sampling.min_p > 0.02f) { /* nothing left is rare: all of it must have come */
            for (unsigned i = 0; i < VOCAB; i++)
                assert_true(seen[i] || !allowed[i]);
        }
    }
    (void) ds_sampler_free(sampler);
}

static void hostile_logits_give_a_token_of_the_vocabulary(void **state)
{
    static const float bad[] = { NAN, -INFINITY, INFINITY, FLT_MAX, -FLT_MAX, 0.0f, 1e30f };
    struct ds_sampler *sampler = new_sampler(16);
    uint64_t random = 5000;
    float logits[16];

    (void) state;
    for (unsigned round = 0; round < 3000; round++) {
        struct ds_sampling sampling = plain(round % 3 ? 0.7f : 0.0f);
        bool possible = false;
        uint32_t id;

        for (unsigned i = 0; i < 16; i++)
            logits[i] = bad[random_next(&random) % (round % 7 + 1)];
        sampling.top_k = round % 5;
        sampling.top_p = round % 4 ? 0.9f : 1.0f;
        sampling.typical_p = round % 6 ? 1.0f : 0.5f;
        sampling.min_p = round % 8 ? 0.0f : 0.1f;
        id = pick(sampler, &sampling, logits, round);
        assert_in_range(id, 0, 15);
        for (unsigned i = 0; i < 16; i++)
            possible = possible || logits[i] >= -FLT_MAX;
        assert_true(!possible || logits[id] >= -FLT_MAX); /* never NaN, never banned */
    }
    (void) ds_sampler_free(sampler);
}

static void logprobs_are_the_log_softmax_of_the_raw_logits(void **state)
{
    float logits[VOCAB];
    struct ds_top_token top[8];
    double total = 0.0;
    uint64_t random = 300;

    (void) state;
    for (unsigned i = 0; i < VOCAB; i++)
        logits[i] = random_logit(&random);
    logits[17] = logits[140] = 7.0f;
    for (unsigned i = 0; i < VOCAB; i++)
        total += exp((double) logits[i]);
    for (unsigned i = 0; i < VOCAB; i++)
        assert_true(fabs(ds_logprob(logits, VOCAB, i) - ((double) logits[i] - log(total))) < 1e-12);
    ds_top_logprobs(logits, VOCAB, top, 8);
    assert_int_equal(top[0].id, 17);
    assert_int_equal(top[1].id, 140);
    for (unsigned i = 0; i < 8; i++) {
        unsigned larger = 0;

        assert_true(fabs((double) top[i].logprob - ds_logprob(logits, VOCAB, top[i].id)) < 1e-6);
        for (unsigned j = 0; j < VOCAB; j++)
            larger += logits[j] > logits[top[i].id];
        assert_true(larger <= i);
    }
    logits[3] = NAN;
    assert_true(ds_logprob(logits, VOCAB, 3) < -1e300);
    assert_true(isfinite(ds_logprob(logits, VOCAB, 4)));
    ds_top_logprobs(logits, VOCAB, top, 0);
}

static void parameters_out_of_range_are_named_with_their_value(void **state)
{
    struct ds_logit_bias bias[] = { { 5, 1.0f }, { 99, -INFINITY } };
    struct ds_error error = { "" };
    struct ds_sampling sampling = plain(0.8f);

    (void) state;
    sampling.bias = bias;
    sampling.n_bias = 2;
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), 0);
    assert_int_equal(ds_sampling_check(&sampling, 99, &error), -EINVAL);
    assert_non_null(strstr(error.text, "99"));
    bias[1].bias = NAN;
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), -EINVAL);
    sampling.n_bias = 1025;
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), -EINVAL);
    sampling = plain(NAN);
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), -EINVAL);
    assert_non_null(strstr(error.text, "temperature"));
    sampling = plain(-0.1f);
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), -EINVAL);
    assert_string_equal(error.text, "temperature is -0.1: it must be between 0 and 100");
    sampling = plain(1.0f);
    sampling.top_p = 1.01f;
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), -EINVAL);
    assert_non_null(strstr(error.text, "top_p"));
    sampling = plain(1.0f);
    sampling.repeat_penalty = 0.0f;
    assert_int_equal(ds_sampling_check(&sampling, 100, &error), -EINVAL);
    sampling = plain(1.0f);
    sampling.frequency_penalty = INFINITY;
    assert_int_equal(ds_sampling_check(&sampling, 100, NULL), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(uniform_numbers_fill_the_unit_interval_evenly),
        cmocka_unit_test(temperature_zero_takes_the_largest_and_the_lowest_id_of_equals),
        cmocka_unit_test(draws_follow_the_softmax_at_the_temperature),
        cmocka_unit_test(a_draw_depends_on_seed_and_position_alone),
        cmocka_unit_test(each_filter_keeps_what_its_definition_says),
        cmocka_unit_test(filters_come_before_the_temperature),
        cmocka_unit_test(a_bias_moves_a_token_and_minus_infinity_bans_it),
        cmocka_unit_test(penalties_look_back_as_far_as_told),
        cmocka_unit_test(the_fast_steps_agree_with_slow_ones_on_random_input),
        cmocka_unit_test(hostile_logits_give_a_token_of_the_vocabulary),
        cmocka_unit_test(logprobs_are_the_log_softmax_of_the_raw_logits),
        cmocka_unit_test(parameters_out_of_range_are_named_with_their_value),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
