/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: attention computes what backend.h says, over caches of every type and geometry.
 * Method: it is compared with its definition in double precision, over keys and values as the type
 * keeps them, on odd shapes, with the best instruction set here and with portable C. Then: caches
 * that cannot be, numbers that are not finite.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"

static const char *const sets[] = { "portable", NULL };

struct attention_case {
    enum ds_kv_type type;
    uint32_t n_heads, n_kv_heads, key_dim, value_dim;
    uint32_t n_sequences, first[3], count[3];
    uint32_t window;
    bool shared; /* values are the first of the keys */
};

/* 32 elements in so many steps to either side of 0, the scale an f16 */
static void round_group(float *x, float divisor, int low, int high)
{
    float largest = 0, scale;

    for (unsigned i = 0; i < 32; i++)
        largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
    if (divisor > 0)
        largest = fabsf(largest);
    scale = ds_f16_to_f32(ds_f32_to_f16(largest / divisor));
    for (unsigned i = 0; i < 32 && scale != 0; i++) {
        int q = (int) nearbyintf(x[i] * (1.0f / scale));

        x[i] = (float) (q < low ? low : q > high ? high : q) * scale;
    }
}

/* What the cache makes of one position's key or value, turned by the largest power of two in turn.
 */
static void store(enum ds_kv_type type, float *x, uint32_t dim, uint32_t turn)
{
    bool turns = type == DS_KV_Q8_0 || type == DS_KV_Q4_0;

    turn &= -turn;
    if (turns)
        ds_kv_rotate(x, dim, turn);
    for (uint32_t d = 0; d < dim; d++) {
        if (type == DS_KV_F16)
            x[d] = ds_f16_to_f32(ds_f32_to_f16(x[d]));
        if (type == DS_KV_BF16)
            x[d] = ds_bf16_to_f32(ds_f32_to_bf16(x[d]));
        if (type == DS_KV_Q8_0 && d % 32 == 0)
            round_group(x + d, 127, -127, 127);
        if (type == DS_KV_Q4_0 && d % 32 == 0)
            round_group(x + d, -8, -8, 7);
    }
    if (turns)
        ds_kv_rotate(x, dim, turn);
}

/* One query against the keys and values of its sequence, from position 0 (or where the window
 * begins) to its own. */
static void check_query(const struct attention_case *c, const float *q, const float *keys,
                        const float *values, uint32_t n, const float *out)
{
    double *weights = malloc(n * sizeof *weights), sum = 0, max = -1e300;
    uint32_t start = c->window && n > c->window ? n - c->window : 0;
    uint32_t key_width = c->n_kv_heads * c->key_dim;
    uint32_t value_width = c->shared ? key_width : c->n_kv_heads * c->value_dim;

    assert_non_null(weights);
    for (uint32_t p = start; p < n; p++) {
        weights[p] = 0;
        for (uint32_t d = 0; d < c->key_dim; d++)
            weights[p] += (double) q[d] * keys[(size_t) p * key_width + d];
        weights[p] *= 0.7f;
        max = fmax(max, weights[p]);
    }
    for (uint32_t p = start; p < n; p++)
        sum += weights[p] = exp(weights[p] - max);
    for (uint32_t d = 0; d < c->value_dim; d++) {
        double right = 0;

        for (uint32_t p = start; p < n; p++)
            right += weights[p] / sum * values[(size_t) p * value_width + d];
        if (!(fabs(out[d] - right) < 3e-6 * fmax(1.0, c->key_dim / 128.0)))
            fail_msg("%u positions, dim %u: %g, should be %g", n, d, (double) out[d], right);
    }
    free(weights);
}

static void check_attention(struct ds_backend *backend, struct ds_case_random *random,
                            const struct attention_case *c)
{
    struct ds_kv_geometry geometry = { .n_layers = 2,
                                       .n_kv_heads = c->n_kv_heads,
                                       .key_dim = c->key_dim,
                                       .value_dim = c->value_dim,
                                       .type = c->type,
                                       .shared = c->shared };
    uint32_t key_width = c->n_kv_heads * c->key_dim;
    uint32_t value_width = c->shared ? key_width : c->n_kv_heads * c->value_dim;
    uint32_t zeros[3] = { 0 }, all[3], offset = 0, row = 0;
    struct ds_batch fill, batch;
    struct ds_kv *kv = NULL;
    struct ds_buffer *k, *v, *q, *out;
    float *keys, *values, *queries, *result;

    for (unsigned i = 0; i < c->n_sequences; i++)
        all[i] = c->first[i] + c->count[i];
    fill = ds_case_batch(c->n_sequences, zeros, all, 64);
    batch = ds_case_batch(c->n_sequences, c->first, c->count, 64);
    geometry.n_blocks = 64 * c->n_sequences;
    assert_int_equal(backend->kv_new(backend, &geometry, &kv), 0);
    keys = ds_case_rows(random, fill.n_tokens, key_width, false);
    values = c->shared ? keys : ds_case_rows(random, fill.n_tokens, value_width, false);
    queries = ds_case_rows(random, batch.n_tokens, c->n_heads * c->key_dim, false);
    k = ds_case_buffer(backend, keys, (size_t) fill.n_tokens * key_width);
    v = ds_case_buffer(backend, values, (size_t) fill.n_tokens * value_width);
    q = ds_case_buffer(backend, queries, (size_t) batch.n_tokens * c->n_heads * c->key_dim);
    out = ds_case_buffer(backend, NULL, (size_t) batch.n_tokens * c->n_heads * c->value_dim);
    assert_int_equal(backend->kv_write(backend, kv, 1, k, c->shared ? NULL : v, &fill), 0);
    assert_int_equal(
        backend->attention(backend, out, q, kv, 1, &batch, c->n_heads, 0.7f, c->window), 0);
    result = ds_case_read(backend, out, (size_t) batch.n_tokens * c->n_heads * c->value_dim);
    for (size_t i = 0; i < (size_t) fill.n_tokens * c->n_kv_heads; i++) {
        store(c->type, keys + i * c->key_dim, c->key_dim,
              c->key_dim | (c->shared ? c->value_dim : 0));
        if (!c->shared)
            store(c->type, values + i * c->value_dim, c->value_dim, c->value_dim);
    }
    for (unsigned i = 0; i < c->n_sequences; offset += all[i], i++)
        for (uint32_t j = 0; j < c->count[i]; j++, row++)
            for (uint32_t h = 0; h < c->n_heads; h++) {
                uint32_t kv_head = h / (c->n_heads / c->n_kv_heads);
                size_t at = (size_t) row * c->n_heads + h;

                check_query(c, queries + at * c->key_dim,
                            keys + (size_t) offset * key_width + (size_t) kv_head * c->key_dim,
                            values + (size_t) offset * value_width +
                                (size_t) kv_head * (c->shared ? c->key_dim : c->value_dim),
                            c->first[i] + j + 1, result + at * c->value_dim);
            }
    backend->buffer_free(backend, k);
    backend->buffer_free(backend, v);
    backend->buffer_free(backend, q);
    backend->buffer_free(backend, out);
    backend->kv_free(backend, kv);
    free(keys);
    if (!c->shared)
        free(values);
    free(queries);
    free(result);
    free((void *) fill.tokens);
    free((void *) batch.tokens);
}

static void check_cases(const struct attention_case *cases, size_t n, uint64_t seed)
{
    struct ds_case_random random = { seed };

    for (unsigned set = 0; set < 2; set++) {
        struct ds_backend *backend = ds_case_backend(sets[set], 2);

        for (size_t i = 0; i < n; i++)
            check_attention(backend, &random, &cases[i]);
        backend->close(backend);
    }
}

static void attention_is_the_softmax_of_all_positions_up_to_ones_own(void **state)
{
    static const struct attention_case cases[] = {
        { DS_KV_F32, 4, 2, 16, 16, 1, { 0 }, { 1 }, 0, false },
        { DS_KV_F32, 6, 2, 16, 16, 3, { 0, 31, 64 }, { 33, 2, 40 }, 0, false },
        { DS_KV_F16, 9, 3, 64, 64, 2, { 0, 500 }, { 70, 30 }, 0, false },
        { DS_KV_F32, 3, 1, 20, 24, 2, { 1200, 3 }, { 1, 1 }, 0, false }, /* segments as items */
        { DS_KV_F16, 2, 2, 128, 80, 3, { 700, 0, 511 }, { 40, 17, 2 }, 0, false },
        { DS_KV_F32, 80, 1, 8, 16, 1, { 1020 }, { 9 }, 0, false }, /* more queries than a pass */
    };

    (void) state;
    check_cases(cases, sizeof cases / sizeof *cases, 13);
}

static void attention_with_a_window_sees_the_last_positions_only(void **state)
{
    static const struct attention_case cases[] = {
        { DS_KV_F32, 4, 2, 16, 16, 1, { 0 }, { 1 }, 1, false },
        { DS_KV_F32, 4, 2, 16, 16, 2, { 0, 90 }, { 80, 3 }, 1, false },
        { DS_KV_F32, 6, 2, 16, 16, 3, { 0, 31, 64 }, { 33, 2, 40 }, 32, false },
        { DS_KV_F16, 9, 3, 64, 64, 2, { 0, 500 }, { 70, 30 }, 33, false },
        { DS_KV_F32, 3, 1, 20, 24, 2, { 1200, 3 }, { 1, 1 }, 100, false }, /* segments as items */
        { DS_KV_F32, 3, 1, 20, 24, 2, { 1200, 1030 }, { 60, 30 }, 515, false },
        { DS_KV_F16, 2, 2, 128, 80, 3, { 700, 0, 511 }, { 40, 17, 2 }, 5, false },
        { DS_KV_F32, 80, 1, 8, 16, 1, { 1020 }, { 9 }, 512, false },
        { DS_KV_F32, 4, 2, 16, 16, 1, { 0 }, { 200 }, 4000, false },
    };

    (void) state;
    check_cases(cases, sizeof cases / sizeof *cases, 14);
}

static void values_may_be_the_first_of_the_keys(void **state)
{
    static const struct attention_case cases[] = {
        { DS_KV_F32, 16, 1, 80, 64, 2, { 0, 530 }, { 37, 5 }, 0, true },
        { DS_KV_F16, 128, 1, 576, 512, 2, { 0, 40 }, { 20, 1 }, 0, true },
        { DS_KV_F16, 3, 1, 52, 36, 1, { 1100 }, { 1 }, 0, true },
    };

    (void) state;
    check_cases(cases, sizeof cases / sizeof *cases, 15);
}

static void the_cache_holds_what_its_type_can(void **state)
{
    static const struct attention_case cases[] = {
        { DS_KV_BF16, 4, 2, 48, 20, 2, { 0, 70 }, { 40, 1 }, 0, false },
        { DS_KV_BF16, 20, 1, 40, 24, 1, { 600 }, { 3 }, 0, true },
        { DS_KV_Q8_0, 6, 2, 32, 32, 3, { 0, 31, 64 }, { 33, 2, 40 }, 0, false },
        { DS_KV_Q8_0, 9, 3, 64, 96, 2, { 0, 500 }, { 70, 30 }, 33, false },
        { DS_KV_Q8_0, 16, 1, 576, 512, 1, { 40 }, { 3 }, 0, true },
        { DS_KV_Q4_0, 6, 2, 32, 32, 3, { 0, 31, 64 }, { 33, 2, 40 }, 0, false },
        { DS_KV_Q4_0, 4, 2, 96, 128, 2, { 0, 1200 }, { 70, 1 }, 0, false },
        { DS_KV_Q4_0, 16, 1, 576, 512, 1, { 40 }, { 3 }, 0, true },
        { DS_KV_Q8_0, 4, 1, 96, 80, 1, { 33 }, { 3 }, 0, true },
        { DS_KV_Q4_0, 4, 1, 96, 80, 1, { 33 }, { 3 }, 0, true },
    };

    (void) state;
    check_cases(cases, sizeof cases / sizeof *cases, 16);
}

static void a_rotation_is_an_orthonormal_hadamard_matrix(void **state)
{
    struct ds_case_random random = { 17 };
    float *x = ds_case_rows(&random, 1, 192, false), *y = ds_case_rows(&random, 1, 192, false);

    (void) state;
    memcpy(y, x, 192 * sizeof *x);
    ds_kv_rotate(y, 192, 64);
    for (unsigned i = 0; i < 192; i++) {
        double sum = 0;

        for (unsigned j = 0; j < 64; j++)
            sum += x[i / 64 * 64 + j] * (__builtin_parity(i % 64 & j) ? -1.0 : 1.0);
        assert_true(fabs(y[i] - sum / 8) < 1e-6);
    }
    ds_kv_rotate(y, 192, 64);
    for (unsigned i = 0; i < 192; i++)
        assert_true(fabsf(y[i] - x[i]) < 1e-6f);
    free(x);
    free(y);
}

static void a_cache_that_cannot_be_is_refused(void **state)
{
    static const struct ds_kv_geometry cases[] = {
        { 1, 1, 40, 64, 4, DS_KV_Q8_0, 0, false },     { 1, 1, 64, 40, 4, DS_KV_Q8_0, 0, false },
        { 1, 1, 80, 64, 4, DS_KV_Q4_0, 0, false },     { 1, 1, 80, 64, 4, DS_KV_Q4_0, 0, true },
        { 1, 1, 64, 64, 4, DS_KV_Q4_0 + 1, 0, false }, { 1, 1, 64, 80, 4, DS_KV_F16, 0, true },
    };
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_kv *kv = NULL;

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(backend->kv_new(backend, &cases[i], &kv), -EINVAL);
        assert_int_equal(backend->kv_bytes(&cases[i]), 0);
    }
    assert_null(kv);
    backend->close(backend);
}

static void a_key_that_is_not_finite_spoils_who_sees_it_only(void **state)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY, 1e37f };
    struct ds_case_random random = { 18 };
    struct ds_backend *backend = ds_case_backend(NULL, 2);

    (void) state;
    for (enum ds_kv_type type = DS_KV_F32; type <= DS_KV_Q4_0; type++)
        for (unsigned i = 0; i < (type == DS_KV_F32 || type == DS_KV_BF16 ? 1 : 4); i++) {
            struct ds_kv_geometry geometry = { 1, 1, 64, 64, 4, type, 0, false };
            struct ds_batch batch = ds_case_batch(1, (uint32_t[]){ 0 }, (uint32_t[]){ 100 }, 4);
            float *rows = ds_case_rows(&random, 100, 64, false), *result;
            struct ds_buffer *q = ds_case_buffer(backend, rows, 6400);
            struct ds_buffer *out = ds_case_buffer(backend, NULL, 6400), *k;
            struct ds_kv *kv = NULL;

            rows[70 * 64 + 3] = bad[i];
            k = ds_case_buffer(backend, rows, 6400);
            assert_int_equal(backend->kv_new(backend, &geometry, &kv), 0);
            assert_int_equal(backend->kv_write(backend, kv, 0, k, k, &batch), 0);
            assert_int_equal(backend->attention(backend, out, q, kv, 0, &batch, 1, 0.1f, 0), 0);
            result = ds_case_read(backend, out, 6400);
            for (unsigned j = 0; j < 6400; j++)
                if (j < 70 * 64)
                    assert_true(isfinite(result[j]));
            assert_false(isfinite(result[70 * 64 + 3]));
            free(result);
            free(rows);
            free((void *) batch.tokens);
            backend->buffer_free(backend, q);
            backend->buffer_free(backend, k);
            backend->buffer_free(backend, out);
            backend->kv_free(backend, kv);
        }
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_the_softmax_of_all_positions_up_to_ones_own),
        cmocka_unit_test(attention_with_a_window_sees_the_last_positions_only),
        cmocka_unit_test(values_may_be_the_first_of_the_keys),
        cmocka_unit_test(the_cache_holds_what_its_type_can),
        cmocka_unit_test(a_rotation_is_an_orthonormal_hadamard_matrix),
        cmocka_unit_test(a_cache_that_cannot_be_is_refused),
        cmocka_unit_test(a_key_that_is_not_finite_spoils_who_sees_it_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
