/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the CPU backend's results depend on nothing but their inputs: not on the instruction set,
 * the number of threads, the other rows of a batch, or how a prompt was cut. Method: the same
 * inputs (with outliers, of every type, in odd shapes) in all these ways, compared bit for bit with
 * portable C on one thread, all rows at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/lib/cpu_case.h"

static const struct {
    const char *isa;
    unsigned n_threads;
} others[] = { { "avx2", 1 },     { "avx2", 3 }, { "avx512", 1 }, { "avx512", 2 }, { "avx512", 7 },
               { "portable", 2 }, { "amx", 1 },  { "amx", 3 },    { NULL, 0 } };

enum { N_OTHERS = sizeof others / sizeof *others };

static struct ds_backend *reference(void)
{
    return ds_case_backend("portable", 1);
}

/* The rows of x first .. + n, multiplied on their own; n * matrix rows floats: free(). */
static float *multiply(struct ds_backend *backend, const struct ds_case_matrix *matrix,
                       const float *x, uint32_t first, uint32_t n)
{
    uint32_t k = (uint32_t) matrix->tensor.dims[0];
    size_t n_out = n * matrix->tensor.dims[1];
    struct ds_buffer *in = ds_case_buffer(backend, x + (size_t) first * k, (size_t) n * k);
    struct ds_buffer *out = ds_case_buffer(backend, NULL, n_out);
    struct ds_weight *weight = NULL;
    struct ds_product product = { .out = out };
    float *result;

    assert_int_equal(backend->weight_new(backend, &matrix->tensor, false, &weight), 0);
    product.weight = weight;
    assert_int_equal(backend->matmul(backend, &product, 1, in, n), 0);
    result = ds_case_read(backend, out, n_out);
    backend->weight_free(backend, weight);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    return result;
}

static void products_are_the_same_bits_on_every_set_and_any_number_of_threads(void **state)
{
    static const uint32_t rows[] = { 1, 2, 3, 4, 5, 8, 12, 13, 101, 145 };
    static const uint32_t ns[] = { 16, 1, 40, 17, 33, 64, 15, 32, 48, 5 };
    struct ds_case_random random = { 21 };
    struct ds_backend *portable = reference();

    (void) state;
    for (unsigned o = 0; o < N_OTHERS; o++) {
        struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);

        for (const uint32_t *type = ds_case_types; *type != UINT32_MAX && backend; type++)
            for (unsigned i = 0; i < 10; i++) {
                uint32_t k = ds_case_block(*type) * (1 + ds_case_below(&random, 5));
                struct ds_case_matrix matrix;
                float *x, *a, *b;

                k = k < 16 ? 1 + ds_case_below(&random, 90) : k;
                matrix = ds_case_matrix(&random, *type, k, ns[i]);
                x = ds_case_rows(&random, rows[i], k, i % 3 != 0);
                a = multiply(portable, &matrix, x, 0, rows[i]);
                b = multiply(backend, &matrix, x, 0, rows[i]);
                assert_memory_equal(a, b, (size_t) rows[i] * ns[i] * sizeof *a);
                free(a);
                free(b);
                free(x);
                ds_case_matrix_deinit(&matrix);
            }
        if (backend)
            backend->close(backend);
    }
    portable->close(portable);
}

static void long_rows_are_the_same_bits_on_every_set(void **state)
{
    struct ds_case_random random = { 22 };
    struct ds_backend *portable = reference();

    (void) state;
    for (const uint32_t *type = ds_case_types + 3; *type != UINT32_MAX; type++) {
        struct ds_case_matrix matrix = ds_case_matrix(&random, *type, 4608, 18);
        float *x = ds_case_rows(&random, 14, 4608, true);
        float *a = multiply(portable, &matrix, x, 0, 14);

        for (unsigned o = 0; o < N_OTHERS; o++) {
            struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);
            float *b;

            if (!backend)
                continue;
            b = multiply(backend, &matrix, x, 0, 14);
            assert_memory_equal(a, b, sizeof *a * 14 * 18);
            free(b);
            b = multiply(backend, &matrix, x, 3, 1);
            assert_memory_equal(a + 3 * 18, b, sizeof *a * 18);
            free(b);
            backend->close(backend);
        }
        free(a);
        free(x);
        ds_case_matrix_deinit(&matrix);
    }
    portable->close(portable);
}

/* Quants of every value, scales of every size, signs and zeros: what no quantiser makes. */
static void arbitrary_blocks_are_the_same_bits_on_every_set(void **state)
{
    struct ds_case_random random = { 23 };
    struct ds_backend *portable = reference();

    (void) state;
    for (const uint32_t *type = ds_case_types + 3; *type != UINT32_MAX; type++) {
        struct ds_case_matrix matrix = ds_case_matrix(&random, *type, 512, 32);
        float *x = ds_case_rows(&random, 5, 512, true), *a;
        uint8_t *bytes = (uint8_t *) matrix.tensor.data;

        /* Any byte but those that could be a scale's top byte make infinities. */
        for (size_t i = 0; i < matrix.tensor.size_bytes; i++)
            bytes[i] = (uint8_t) (ds_case_u32(&random) & (i % 2 ? 0xbb : 0xff));
        if (*type == DS_TYPE_F8) /* has codes that are no number */
            ds_case_fill(NULL, *type, 0x3c00, bytes, (size_t) 512 * 32 / ds_case_block(*type));
        a = multiply(portable, &matrix, x, 0, 5);
        for (unsigned o = 0; o < N_OTHERS; o++) {
            struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);
            float *b;

            if (!backend)
                continue;
            b = multiply(backend, &matrix, x, 0, 5);
            assert_memory_equal(a, b, sizeof *a * 5 * 32);
            free(b);
            backend->close(backend);
        }
        free(a);
        free(x);
        ds_case_matrix_deinit(&matrix);
    }
    portable->close(portable);
}

/* Where sixteen bits would overflow: the largest quants of either sign against the largest
 * activations. */
static void the_largest_sums_are_the_same_bits_on_every_set(void **state)
{
    static const uint8_t fills[] = { 0xff, 0x80, 0x7f };
    struct ds_case_random random = { 27 };
    struct ds_backend *portable = reference();

    (void) state;
    for (const uint32_t *type = ds_case_types + 3; *type != UINT32_MAX; type++)
        for (unsigned i = 0; i < 6; i++) {
            struct ds_case_matrix matrix = ds_case_matrix(&random, *type, 256, 16);
            uint8_t *bytes = (uint8_t *) matrix.tensor.data;
            float x[256], *a;

            memset(bytes, fills[i / 2], matrix.tensor.size_bytes);
            ds_case_fill(NULL, *type, 0x2c00, bytes, 16 * 256 / ds_case_block(*type)); /* 1/16 */
            for (unsigned j = 0; j < 256; j++) /* one unit is wide */
                x[j] = (i % 2 ? -1.0f : 1.0f) * (j / 32 == 3 ? 64 : 1);
            a = multiply(portable, &matrix, x, 0, 1);
            for (unsigned o = 0; o < N_OTHERS; o++) {
                struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);
                float *b;

                if (!backend)
                    continue;
                b = multiply(backend, &matrix, x, 0, 1);
                assert_memory_equal(a, b, sizeof *a * 16);
                free(b);
                backend->close(backend);
            }
            free(a);
            ds_case_matrix_deinit(&matrix);
        }
    portable->close(portable);
}

static void a_row_is_the_same_alone_and_among_others(void **state)
{
    enum { ROWS = 300, N = 20 };
    struct ds_case_random random = { 24 };
    struct ds_backend *backend = ds_case_backend(NULL, 2);

    (void) state;
    for (const uint32_t *type = ds_case_types; *type != UINT32_MAX; type++) {
        struct ds_case_matrix matrix = ds_case_matrix(&random, *type, 512, N);
        float *x = ds_case_rows(&random, ROWS, 512, true), *all, *some;

        for (unsigned i = 0; i < 512; i++) /* one row quite unlike the others */
            x[7 * 512 + i] *= (float) (i % 5) * 1e-3f;
        all = multiply(backend, &matrix, x, 0, ROWS);
        for (uint32_t first = 0, n; first < ROWS; first += n) {
            n = 1 + ds_case_below(&random, first % 3 ? 4 : 30);
            n = n < ROWS - first ? n : ROWS - first;
            some = multiply(backend, &matrix, x, first, n);
            assert_memory_equal(all + first * N, some, (size_t) n * N * sizeof *all);
            free(some);
        }
        free(all);
        free(x);
        ds_case_matrix_deinit(&matrix);
    }
    backend->close(backend);
}

/* --- operations on rows --- */

enum { WIDTH = 203, N_ROWS = 9 };

/* rms_norm, silu_mul and rope of the same rows, one after the other: free(). */
static float *row_operations(struct ds_backend *backend, const float *x, const float *y)
{
    static const float frequencies[3] = { 1, 0.1f, 0.0123f };
    static const uint32_t positions[N_ROWS] = { 0, 1, 77, 4095, 4096, 5, 6, 1000000, 3 };
    struct ds_rope rope = {
        .frequencies = frequencies, .n_dims = 6, .magnitude = 1.1f, .neox = true
    };
    struct ds_buffer *a = ds_case_buffer(backend, x, N_ROWS * WIDTH);
    struct ds_buffer *b = ds_case_buffer(backend, y, N_ROWS * WIDTH);
    float *result;

    assert_int_equal(backend->rms_norm(backend, a, a, b, N_ROWS, WIDTH, 1e-6f), 0);
    assert_int_equal(backend->silu_mul(backend, a, a, b, N_ROWS, WIDTH), 0);
    assert_int_equal(backend->rope(backend, a, &rope, positions, N_ROWS, 29, 7), 0);
    result = ds_case_read(backend, a, N_ROWS * WIDTH);
    backend->buffer_free(backend, a);
    backend->buffer_free(backend, b);
    return result;
}

static void operations_on_rows_are_the_same_bits_on_every_set(void **state)
{
    struct ds_case_random random = { 25 };
    struct ds_backend *portable = reference();
    float *x = ds_case_rows(&random, N_ROWS, WIDTH, true);
    float *y = ds_case_rows(&random, N_ROWS, WIDTH, true);
    float *right = row_operations(portable, x, y);

    (void) state;
    for (unsigned o = 0; o < N_OTHERS; o++) {
        struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);
        float *result;

        if (!backend)
            continue;
        result = row_operations(backend, x, y);
        assert_memory_equal(result, right, sizeof *right * N_ROWS * WIDTH);
        free(result);
        backend->close(backend);
    }
    free(x);
    free(y);
    free(right);
    portable->close(portable);
}

/* --- attention --- */

enum { SEQUENCES = 3, HEADS = 6, BLOCKS = 40 };

struct cut {
    enum ds_kv_type type;
    uint32_t n_kv_heads, key_dim, value_dim, window;
    bool shared;
};

static const uint32_t lengths[SEQUENCES] = { 1100, 37, 530 };

struct cache {
    struct ds_backend *backend;
    struct ds_kv *kv;
    const float *k, *v, *q; /* all sequences' rows, one after the other */
    float *out;
    const struct cut *cut;
};

/* Runs rows first .. + count of each sequence as one batch and puts the results into out. */
static void run_batch(const struct cache *cache, const uint32_t *first, const uint32_t *count)
{
    const struct cut *cut = cache->cut;
    const size_t q_width = HEADS * cut->key_dim, k_width = cut->n_kv_heads * cut->key_dim;
    const size_t v_width = cut->n_kv_heads * cut->value_dim, out_width = HEADS * cut->value_dim;
    struct ds_backend *backend = cache->backend;
    struct ds_batch batch = ds_case_batch(SEQUENCES, first, count, BLOCKS);
    struct ds_buffer *q = ds_case_buffer(backend, NULL, batch.n_tokens * q_width);
    struct ds_buffer *k = ds_case_buffer(backend, NULL, batch.n_tokens * k_width);
    struct ds_buffer *v = ds_case_buffer(backend, NULL, batch.n_tokens * v_width);
    struct ds_buffer *out = ds_case_buffer(backend, NULL, batch.n_tokens * out_width);
    float *rows = malloc(batch.n_tokens * q_width * sizeof *rows), *result;
    uint32_t base[SEQUENCES] = { 0, lengths[0], lengths[0] + lengths[1] };

    assert_non_null(rows);
#define FILL(buffer, from, width)                                                                  \
    for (uint32_t i = 0; i < batch.n_tokens; i++)                                                  \
        memcpy(rows + i * (width),                                                                 \
               (from) + (base[batch.sequences[i]] + batch.positions[i]) * (width),                 \
               (width) * sizeof *rows);                                                            \
    assert_int_equal(backend->write(backend, buffer, rows, batch.n_tokens *(width)), 0)
    FILL(q, cache->q, q_width);
    FILL(k, cache->k, k_width);
    FILL(v, cache->v, v_width);
#undef FILL
    assert_int_equal(backend->kv_write(backend, cache->kv, 0, k, v, &batch), 0);
    assert_int_equal(
        backend->attention(backend, out, q, cache->kv, 0, &batch, HEADS, 0.9f, cut->window), 0);
    result = ds_case_read(backend, out, batch.n_tokens * out_width);
    for (uint32_t i = 0; i < batch.n_tokens; i++)
        memcpy(cache->out + (base[batch.sequences[i]] + batch.positions[i]) * out_width,
               result + i * out_width, out_width * sizeof *result);
    free(result);
    free(rows);
    free((void *) batch.tokens);
    backend->buffer_free(backend, q);
    backend->buffer_free(backend, k);
    backend->buffer_free(backend, v);
    backend->buffer_free(backend, out);
}

/* All rows, in pieces of up to longest rows (0: all at once), of all sequences or of one at a time.
 */
static void run_in_pieces(struct cache *cache, struct ds_case_random *random, uint32_t longest)
{
    uint32_t first[SEQUENCES] = { 0 }, count[SEQUENCES], left = 1;
    struct ds_kv_geometry geometry = { .n_layers = 1,
                                       .n_kv_heads = cache->cut->n_kv_heads,
                                       .key_dim = cache->cut->key_dim,
                                       .value_dim = cache->cut->value_dim,
                                       .n_blocks = SEQUENCES * BLOCKS,
                                       .type = cache->cut->type,
                                       .shared = cache->cut->shared };

    assert_int_equal(cache->backend->kv_new(cache->backend, &geometry, &cache->kv), 0);
    while (left) {
        unsigned only = ds_case_below(random, SEQUENCES + 1);

        for (unsigned i = 0; i < SEQUENCES; i++) {
            uint32_t rest = lengths[i] - first[i];
            uint32_t n = longest ? 1 + ds_case_below(random, longest) : rest;

            count[i] = n < rest ? n : rest;
            if (longest && only < SEQUENCES && only != i)
                count[i] = 0;
        }
        if (count[0] + count[1] + count[2])
            run_batch(cache, first, count);
        left = 0;
        for (unsigned i = 0; i < SEQUENCES; i++) {
            first[i] += count[i];
            left += lengths[i] - first[i];
        }
    }
    cache->backend->kv_free(cache->backend, cache->kv);
}

static void cut_prompts(const struct cut *cut)
{
    const size_t n = lengths[0] + lengths[1] + lengths[2], n_out = n * HEADS * cut->value_dim;
    struct ds_case_random random = { 26 };
    float *q = ds_case_rows(&random, (uint32_t) n, HEADS * cut->key_dim, false);
    float *k = ds_case_rows(&random, (uint32_t) n, cut->n_kv_heads * cut->key_dim, false);
    float *v = ds_case_rows(&random, (uint32_t) n, cut->n_kv_heads * cut->value_dim, false);
    float *right = calloc(n_out, sizeof *right), *out = calloc(n_out, sizeof *out);
    struct cache cache = { reference(), NULL, k, v, q, right, cut };

    assert_non_null(right);
    assert_non_null(out);
    run_in_pieces(&cache, &random, 0);
    cache.backend->close(cache.backend);
    cache.out = out;
    for (unsigned o = 0; o < N_OTHERS; o++) {
        static const uint32_t pieces[] = { 0, 40, 300, 3 };

        cache.backend = ds_case_backend(others[o].isa, others[o].n_threads);
        if (!cache.backend)
            continue;
        for (unsigned i = 0; i < (others[o].isa ? 2 : 4); i++) {
            memset(out, 0, n_out * sizeof *out);
            run_in_pieces(&cache, &random, pieces[i]);
            assert_memory_equal(right, out, n_out * sizeof *out);
        }
        cache.backend->close(cache.backend);
    }
    free(q);
    free(k);
    free(v);
    free(right);
    free(out);
}

static void attention_is_the_same_bits_however_the_prompt_is_cut(void **state)
{
    (void) state;
    cut_prompts(&(struct cut){ DS_KV_F16, 2, 40, 72, 0, false });
}

static void and_so_it_is_with_a_window(void **state)
{
    (void) state;
    cut_prompts(&(struct cut){ DS_KV_Q8_0, 2, 64, 96, 70, false });
    cut_prompts(&(struct cut){ DS_KV_Q4_0, 2, 32, 64, 600, false });
}

static void and_where_values_are_keys(void **state)
{
    (void) state;
    cut_prompts(&(struct cut){ DS_KV_BF16, 1, 40, 24, 0, true });
    cut_prompts(&(struct cut){ DS_KV_Q4_0, 1, 96, 64, 0, true });
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_same_bits_on_every_set_and_any_number_of_threads),
        cmocka_unit_test(long_rows_are_the_same_bits_on_every_set),
        cmocka_unit_test(arbitrary_blocks_are_the_same_bits_on_every_set),
        cmocka_unit_test(the_largest_sums_are_the_same_bits_on_every_set),
        cmocka_unit_test(a_row_is_the_same_alone_and_among_others),
        cmocka_unit_test(operations_on_rows_are_the_same_bits_on_every_set),
        cmocka_unit_test(attention_is_the_same_bits_however_the_prompt_is_cut),
        cmocka_unit_test(and_so_it_is_with_a_window),
        cmocka_unit_test(and_where_values_are_keys),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
