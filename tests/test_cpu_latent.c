/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the CPU backend's operations for latent and sparse attention compute what backend.h says,
 * the same bits on every instruction set and for a row in any company.
 * Method: products per head against the dequantised weights, in odd shapes, with what lies between
 * the heads watched; the choice of positions against the naive backend on numbers so small that
 * every score is exact and most are ties; sparse attention against the naive one at the real
 * widths; bytes compared between instruction sets, and of rows alone and among others.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"
#include "tests/lib/naive_backend.h"

static const char *const sets[] = { "portable", "avx2", "avx512" };
enum { N_SETS = 3, HEADS = 5, OUT = 24, GAP = 3 };

/* --- products per head --- */

struct product {
    uint32_t type, k, n;
    bool one_input; /* for all heads */
    const struct ds_case_matrix *matrix;
    const float *in; /* [n][HEADS or 1][k + GAP] */
};

/* [n][HEADS][OUT + GAP], what is between the heads as it was: 7 */
static float *multiply(struct ds_backend *backend, const struct product *p, uint32_t first,
                       uint32_t n)
{
    const size_t in_row = (size_t) (p->one_input ? 1 : HEADS) * (p->k + GAP);
    const size_t n_out = (size_t) n * HEADS * (OUT + GAP);
    struct ds_buffer *in = ds_case_buffer(backend, p->in + first * in_row, n * in_row);
    struct ds_buffer *out;
    struct ds_tensor heads[HEADS];
    struct ds_weight *stack = NULL;
    float *floats = malloc(n_out * sizeof *floats);

    assert_non_null(floats);
    for (size_t i = 0; i < n_out; i++)
        floats[i] = 7.0f;
    out = ds_case_buffer(backend, floats, n_out);
    for (unsigned h = 0; h < HEADS; h++) {
        size_t bytes = p->matrix->tensor.size_bytes / HEADS;

        heads[h] = p->matrix->tensor;
        heads[h].dims[1] = OUT;
        heads[h].data = (const char *) p->matrix->tensor.data + h * bytes;
        heads[h].size_bytes = bytes;
    }
    assert_int_equal(backend->weight_new_stack(backend, heads, HEADS, &stack), 0);

    const struct ds_slice to = { out, HEADS * (OUT + GAP), OUT + GAP, 0 };
    const struct ds_slice from = { in, (uint32_t) in_row, p->one_input ? 0 : p->k + GAP, GAP };

    assert_int_equal(backend->matmul_heads(backend, &to, stack, &from, n, HEADS), 0);
    free(floats);
    floats = ds_case_read(backend, out, n_out);
    backend->weight_free(backend, stack);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    return floats;
}

static void check_values(const struct product *p, const float *out)
{
    const size_t in_head = p->k + GAP, n_inputs = p->one_input ? 1 : HEADS;

    for (uint32_t row = 0; row < p->n; row++)
        for (uint32_t h = 0; h < HEADS; h++) {
            const float *x = p->in + (row * n_inputs + (p->one_input ? 0 : h)) * in_head + GAP;
            const float *y = out + ((size_t) row * HEADS + h) * (OUT + GAP);

            for (uint32_t j = 0; j < OUT; j++) {
                const float *w = p->matrix->floats + ((size_t) h * OUT + j) * p->k;
                double right = 0.0, size = 0.0;

                for (uint32_t i = 0; i < p->k; i++) {
                    right += (double) w[i] * (double) x[i];
                    size += fabs((double) w[i] * (double) x[i]);
                }
                if (!(fabs((double) y[j] - right) < 1e-4 * size))
                    fail_msg("type %u, row %u, head %u, %u: %g, should be %g", p->type, row, h, j,
                             (double) y[j], right);
            }
            for (uint32_t j = OUT; j < OUT + GAP; j++)
                assert_true(y[j] == 7.0f);
        }
}

static void check_product(struct ds_case_random *random, struct product *p)
{
    struct ds_case_matrix matrix = ds_case_matrix(random, p->type, p->k, HEADS * OUT);
    const size_t row = HEADS * (OUT + GAP);
    float *in = ds_case_rows(random, p->n * HEADS, p->k + GAP, false), *first = NULL;

    p->matrix = &matrix;
    p->in = in;
    for (unsigned i = 0; i < N_SETS; i++) {
        struct ds_backend *backend = ds_case_backend(sets[i], 1 + i);
        float *out, *alone;

        if (!backend)
            continue;
        out = multiply(backend, p, 0, p->n);
        if (!first) {
            check_values(p, out);
            first = out;
        }
        assert_memory_equal(first, out, p->n * row * sizeof *out);
        alone = multiply(backend, p, p->n - 1, 1);
        assert_memory_equal(out + (p->n - 1) * row, alone, row * sizeof *out);
        if (out != first)
            free(out);
        free(alone);
        backend->close(backend);
    }
    free(first);
    free(in);
    ds_case_matrix_deinit(&matrix);
}

static void a_head_is_multiplied_by_its_own_matrix(void **state)
{
    static const uint32_t rows[] = { 1, 3, 13, 260 };
    struct ds_case_random random = { 31 };

    (void) state;
    for (unsigned t = 0; ds_case_types[t] != UINT32_MAX; t++)
        for (unsigned i = 0; i < 8; i++) {
            uint32_t block = ds_case_block(ds_case_types[t]);
            struct product product = { .type = ds_case_types[t],
                                       .k = block < 64 ? 64 : block,
                                       .n = rows[i / 2],
                                       .one_input = i % 2 };

            check_product(&random, &product);
        }
}

static void a_stack_of_another_size_is_refused(void **state)
{
    struct ds_case_random random = { 32 };
    struct ds_case_matrix matrix = ds_case_matrix(&random, DS_TYPE_F32, 8, 4);
    struct ds_backend *backend = ds_case_backend("portable", 1);
    struct ds_buffer *buffer = ds_case_buffer(backend, NULL, 64);
    const struct ds_slice slice = { buffer, 32, 16, 0 };
    struct ds_weight *stack = NULL;

    (void) state;
    assert_int_equal(backend->weight_new_stack(backend, &matrix.tensor, 1, &stack), 0);
    assert_int_equal(backend->matmul_heads(backend, &slice, stack, &slice, 1, 2), -EINVAL);
    backend->weight_free(backend, stack);
    backend->buffer_free(backend, buffer);
    backend->close(backend);
    ds_case_matrix_deinit(&matrix);
}

/* --- sparse attention --- */

struct sparse {
    enum ds_kv_type type;
    uint32_t index_heads, index_dim, n_heads, key_dim, value_dim, top_k;
    uint32_t n_sequences, first[3], count[3];
};

struct sparse_result {
    struct ds_batch batch;
    float *chosen, *out;
};

static struct ds_buffer *filled(struct ds_backend *backend, struct ds_case_random *random, size_t n,
                                bool small_integers)
{
    float *floats = ds_case_rows(random, 1, (uint32_t) n, false);
    struct ds_buffer *buffer;

    for (size_t i = 0; i < n && small_integers; i++)
        floats[i] = (float) (int) (floats[i] * 2.5f);
    buffer = ds_case_buffer(backend, floats, n);
    free(floats);
    return buffer;
}

static struct sparse_result run_sparse(struct ds_backend *backend, const struct sparse *s)
{
    struct ds_kv_geometry geometry = { .n_layers = 2,
                                       .n_kv_heads = 1,
                                       .key_dim = s->key_dim,
                                       .value_dim = s->value_dim,
                                       .n_blocks = 64 * s->n_sequences,
                                       .type = s->type,
                                       .index_dim = s->index_dim,
                                       .shared = true };
    struct ds_case_random random = { 33 };
    uint32_t zeros[3] = { 0 }, all[3] = { 0 };
    struct sparse_result result;
    struct ds_batch fill;
    struct ds_kv *kv = NULL;

    for (unsigned i = 0; i < s->n_sequences; i++)
        all[i] = s->first[i] + s->count[i];
    fill = ds_case_batch(s->n_sequences, zeros, all, 64);
    result.batch = ds_case_batch(s->n_sequences, s->first, s->count, 64);

    const size_t n = result.batch.n_tokens;
    struct ds_buffer *buffers[] = {
        filled(backend, &random, (size_t) fill.n_tokens * s->index_dim, true),
        filled(backend, &random, (size_t) fill.n_tokens * s->key_dim, false),
        filled(backend, &random, n * s->index_heads * s->index_dim, true),
        filled(backend, &random, n * s->index_heads, true),
        filled(backend, &random, n * s->n_heads * s->key_dim, false),
        ds_case_buffer(backend, NULL, n * s->top_k),
        ds_case_buffer(backend, NULL, n * s->n_heads * s->value_dim),
    };

    assert_int_equal(backend->kv_new(backend, &geometry, &kv), 0);
    assert_int_equal(backend->index_write(backend, kv, 1, buffers[0], &fill), 0);
    assert_int_equal(backend->kv_write(backend, kv, 1, buffers[1], NULL, &fill), 0);
    assert_int_equal(backend->index_choose(backend, buffers[5], buffers[2], buffers[3], kv, 1,
                                           &result.batch, s->index_heads, s->top_k),
                     0);
    assert_int_equal(backend->attention_chosen(backend, buffers[6], buffers[4], kv, 1,
                                               &result.batch, s->n_heads, 0.1f, buffers[5],
                                               s->top_k),
                     0);
    result.chosen = ds_case_read(backend, buffers[5], n * s->top_k);
    result.out = ds_case_read(backend, buffers[6], n * s->n_heads * s->value_dim);
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        backend->buffer_free(backend, buffers[i]);
    backend->kv_free(backend, kv);
    free((void *) fill.tokens);
    return result;
}

static void sparse_result_deinit(struct sparse_result *result)
{
    free((void *) result->batch.tokens);
    free(result->chosen);
    free(result->out);
}

static void check_sparse(const struct sparse *s)
{
    struct ds_backend *naive = ds_naive_backend_new();
    struct sparse_result right = run_sparse(naive, s), first = { .out = NULL };
    const size_t n_out = (size_t) right.batch.n_tokens * s->n_heads * s->value_dim;

    for (unsigned i = 0; i < N_SETS; i++) {
        struct ds_backend *backend = ds_case_backend(sets[i], 1 + i);
        struct sparse_result result;

        if (!backend)
            continue;
        result = run_sparse(backend, s);
        for (uint32_t row = 0; row < right.batch.n_tokens; row++)
            if (right.batch.positions[row] >= s->top_k)
                assert_memory_equal(right.chosen + (size_t) row * s->top_k,
                                    result.chosen + (size_t) row * s->top_k,
                                    s->top_k * sizeof(uint32_t));
        for (size_t j = 0; j < n_out; j++)
            assert_true(fabs((double) result.out[j] - (double) right.out[j]) <
                        (s->type == DS_KV_F32 ? 1e-5 : 5e-3));
        if (!first.out)
            first = result;
        else
            assert_memory_equal(first.out, result.out, n_out * sizeof(float));
        if (result.out != first.out)
            sparse_result_deinit(&result);
        backend->close(backend);
    }
    sparse_result_deinit(&first);
    sparse_result_deinit(&right);
    naive->close(naive);
}

static void the_best_positions_are_attended_to_and_no_others(void **state)
{
    static const struct sparse cases[] = {
        { DS_KV_F32, 3, 24, 4, 80, 64, 20, 2, { 0, 90 }, { 75, 4 } },
        { DS_KV_F32, 1, 8, 2, 20, 16, 1, 1, { 0 }, { 40 } },
        { DS_KV_F16, 7, 32, 5, 48, 32, 33, 3, { 0, 31, 1150 }, { 34, 9, 3 } },
        { DS_KV_F32, 64, 128, 16, 576, 512, 64, 2, { 63, 600 }, { 3, 2 } },
        { DS_KV_F16, 2, 16, 3, 52, 36, 100, 1, { 0 }, { 100 } }, /* nobody has a choice */
    };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_sparse(&cases[i]);
}

static void without_index_keys_there_is_no_choice(void **state)
{
    struct ds_kv_geometry geometry = { .n_layers = 1,
                                       .n_kv_heads = 1,
                                       .key_dim = 16,
                                       .value_dim = 16,
                                       .n_blocks = 64,
                                       .type = DS_KV_F32 };
    struct ds_backend *backend = ds_case_backend("portable", 1);
    struct ds_buffer *buffer = ds_case_buffer(backend, NULL, 64);
    const uint32_t zero = 0, one = 1;
    struct ds_batch batch = ds_case_batch(1, &zero, &one, 64);
    struct ds_kv *kv = NULL;

    (void) state;
    assert_int_equal(backend->kv_new(backend, &geometry, &kv), 0);
    assert_int_equal(backend->index_write(backend, kv, 0, buffer, &batch), -EINVAL);
    assert_int_equal(backend->index_choose(backend, buffer, buffer, buffer, kv, 0, &batch, 1, 4),
                     -EINVAL);
    assert_int_equal(
        backend->attention_chosen(backend, buffer, buffer, kv, 0, &batch, 1, 1.0f, buffer, 4),
        -EINVAL); /* nor of keys that are not shared */
    backend->kv_free(backend, kv);
    backend->buffer_free(backend, buffer);
    backend->close(backend);
    free((void *) batch.tokens);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_head_is_multiplied_by_its_own_matrix),
        cmocka_unit_test(a_stack_of_another_size_is_refused),
        cmocka_unit_test(the_best_positions_are_attended_to_and_no_others),
        cmocka_unit_test(without_index_keys_there_is_no_choice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
