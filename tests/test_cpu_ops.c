/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: every operation of the CPU backend computes what backend.h says, in every shape.
 * Method: each is compared with its definition in double precision, on odd shapes, with the best
 * instruction set here and with portable C. Products may deviate by what rounding activations to
 * eight bits explains (six standard deviations of it), and in units with outliers by 1/128 of it.
 * Then: bad shapes, numbers that are not finite.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"

static const char *const sets[] = { "portable", NULL };

/* --- products --- */

/* The deviation that rounding x to steps of a 127th of its unit's largest explains. */
static double rounding_noise(const float *w, const float *x, uint32_t k, double steps)
{
    double variance = 0;

    for (uint32_t unit = 0; unit < k; unit += 32) {
        double amax = 0, squares = 0;

        for (uint32_t i = unit; i < unit + 32 && i < k; i++) {
            amax = fmax(amax, fabs((double) x[i]));
            squares += (double) w[i] * w[i];
        }
        variance += amax / steps * amax / steps / 12 * squares;
    }
    return sqrt(variance);
}

struct product_case {
    uint32_t type, k, n, rows;
    bool bias, accumulate, gather, outliers;
};

static void check_product(struct ds_backend *backend, struct ds_case_random *random,
                          const struct product_case *c, double steps)
{
    struct ds_case_matrix matrix = ds_case_matrix(random, c->type, c->k, c->n);
    float *x = ds_case_rows(random, c->rows, c->k, c->outliers);
    float *bias = ds_case_rows(random, 1, c->n, false);
    float *before = ds_case_rows(random, c->rows, c->n, false), *result;
    struct ds_buffer *in = ds_case_buffer(backend, x, (size_t) c->rows * c->k);
    struct ds_buffer *out = ds_case_buffer(backend, before, (size_t) c->rows * c->n);
    struct ds_buffer *bias_buffer = ds_case_buffer(backend, bias, c->n);
    struct ds_weight *weight = NULL;
    struct ds_product product = { .out = out, .accumulate = c->accumulate };

    assert_int_equal(backend->weight_new(backend, &matrix.tensor, c->gather, &weight), 0);
    product.weight = weight;
    product.bias = c->bias ? bias_buffer : NULL;
    assert_int_equal(backend->matmul(backend, &product, 1, in, c->rows), 0);
    result = ds_case_read(backend, out, (size_t) c->rows * c->n);
    for (uint32_t row = 0; row < c->rows; row++)
        for (uint32_t j = 0; j < c->n; j++) {
            const float *w = matrix.floats + (size_t) j * c->k, *a = x + (size_t) row * c->k;
            double sum = 0, size = 0, tolerance = 0;
            size_t at = (size_t) row * c->n + j;

            for (uint32_t i = 0; i < c->k; i++) {
                sum += (double) w[i] * a[i];
                size += fabs((double) w[i] * a[i]);
            }
            sum += (c->bias ? bias[j] : 0) + (c->accumulate ? before[at] : 0);
            tolerance = 2e-6 * (size + 1);
            if (ds_panel_format(c->type)->bits)
                tolerance += 6 * rounding_noise(w, a, c->k, steps);
            if (!(fabs(result[at] - sum) <= tolerance))
                fail_msg("type %u {%u, %u} row %u of %u, %u: %g, should be %g within %g", c->type,
                         c->k, c->n, row, c->rows, j, (double) result[at], sum, tolerance);
        }
    backend->weight_free(backend, weight);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    backend->buffer_free(backend, bias_buffer);
    ds_case_matrix_deinit(&matrix);
    free(x);
    free(bias);
    free(before);
    free(result);
}

static void a_product_is_that_of_the_dequantised_weights(void **state)
{
    static const uint32_t rows[] = { 1, 2, 3, 4, 5, 11, 12, 13, 27, 70 };
    static const uint32_t ns[] = { 1, 15, 16, 17, 40, 33, 2, 7, 16, 31 };
    struct ds_case_random random = { 1 };

    (void) state;
    for (unsigned set = 0; set < 2; set++) {
        struct ds_backend *backend = ds_case_backend(sets[set], 2);

        for (const uint32_t *type = ds_case_types; *type != UINT32_MAX; type++)
            for (unsigned i = 0; i < 10; i++) {
                uint32_t blocks = 1 + ds_case_below(&random, 3);
                uint32_t k = blocks * ds_case_block(*type);

                if (k < 16)
                    k = 1 + ds_case_below(&random, 70); /* float types: any length */
                check_product(backend, &random,
                              &(struct product_case){ *type, k, ns[i], rows[i], i % 2, i % 3 == 1,
                                                      i == 4, false },
                              127);
            }
        backend->close(backend);
    }
}

static void rows_longer_than_a_tile_and_more_of_them_than_one(void **state)
{
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 2 };

    (void) state;
    check_product(backend, &random,
                  &(struct product_case){ DS_TYPE_Q4_0, 4608, 20, 6, true, true, false, false },
                  127);
    check_product(backend, &random,
                  &(struct product_case){ DS_TYPE_Q6_K, 2304, 5, 5, false, true, false, false },
                  127);
    check_product(backend, &random,
                  &(struct product_case){ DS_TYPE_Q8_0, 64, 17, 600, true, true, false, false },
                  127);
    check_product(backend, &random,
                  &(struct product_case){ DS_TYPE_F32, 61, 17, 300, true, true, false, false },
                  127);
    backend->close(backend);
}

/* Units with an outlier keep 15 bits, so what is left is the rounding of the others: steps of a
 * 127th of at most twice the ordinary. */
static void outliers_do_not_drown_the_rest(void **state)
{
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 3 };

    (void) state;
    for (const uint32_t *type = ds_case_types + 3; *type != UINT32_MAX; type++)
        check_product(backend, &random,
                      &(struct product_case){ *type, 1024, 24, 9, false, false, false, true },
                      127 * 40);
    backend->close(backend);
}

static void every_type_that_files_hold_is_among_the_cases(void **state)
{
    (void) state;
    for (uint32_t type = 0; type < DS_TYPE_END; type++) {
        const uint32_t *at = ds_case_types;

        if (!ds_type_traits(type))
            continue;
        while (*at != UINT32_MAX && *at != type)
            at++;
        if (*at != type || !ds_panel_format(type))
            fail_msg("%s is not multiplied, or not tested", ds_type_name(type));
    }
}

static void products_of_one_group_are_those_of_each_alone(void **state)
{
    static const uint32_t types[] = { DS_TYPE_Q4_K,    DS_TYPE_Q6_K,  DS_TYPE_F32,    DS_TYPE_Q8_0,
                                      DS_TYPE_Q4_0,    DS_TYPE_F16,   DS_TYPE_Q5_0,   DS_TYPE_Q5_1,
                                      DS_TYPE_Q4_1,    DS_TYPE_BF16,  DS_TYPE_Q2_K,   DS_TYPE_Q3_K,
                                      DS_TYPE_IQ2_XXS, DS_TYPE_IQ2_S, DS_TYPE_IQ4_XS, DS_TYPE_TQ1_0,
                                      DS_TYPE_MXFP4,   DS_TYPE_IQ3_S };
    enum { N = sizeof types / sizeof *types, K = 512, ROWS = 7 };
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 4 };
    float *x = ds_case_rows(&random, ROWS, K, true);
    struct ds_buffer *in = ds_case_buffer(backend, x, ROWS * K);
    struct ds_case_matrix matrices[N];
    struct ds_product together[N] = { 0 };
    struct ds_weight *weights[N];

    (void) state;
    for (unsigned i = 0; i < N; i++) {
        matrices[i] = ds_case_matrix(&random, types[i], K, 13 + 5 * i);
        assert_int_equal(backend->weight_new(backend, &matrices[i].tensor, false, &weights[i]), 0);
        together[i].weight = weights[i];
        together[i].out = ds_case_buffer(backend, NULL, ROWS * (13 + 5 * (size_t) i));
    }
    assert_int_equal(backend->matmul(backend, together, N, in, ROWS), 0);
    for (unsigned i = 0; i < N; i++) {
        size_t n = ROWS * (13 + 5 * (size_t) i);
        struct ds_product alone = { .out = ds_case_buffer(backend, NULL, n), .weight = weights[i] };
        float *a, *b;

        assert_int_equal(backend->matmul(backend, &alone, 1, in, ROWS), 0);
        a = ds_case_read(backend, alone.out, n);
        b = ds_case_read(backend, together[i].out, n);
        assert_memory_equal(a, b, n * sizeof *a);
        free(a);
        free(b);
        backend->buffer_free(backend, alone.out);
        backend->buffer_free(backend, together[i].out);
        backend->weight_free(backend, weights[i]);
        ds_case_matrix_deinit(&matrices[i]);
    }
    backend->buffer_free(backend, in);
    free(x);
    backend->close(backend);
}

static void a_row_that_is_not_finite_spoils_itself_only(void **state)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY, 3e38f };
    struct ds_case_random random = { 5 };

    (void) state;
    for (unsigned set = 0; set < 2; set++) {
        struct ds_backend *backend = ds_case_backend(sets[set], 2);
        struct ds_case_matrix matrix = ds_case_matrix(&random, DS_TYPE_Q4_0, 96, 20);
        struct ds_weight *weight = NULL;

        assert_int_equal(backend->weight_new(backend, &matrix.tensor, false, &weight), 0);
        for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
            float *x = ds_case_rows(&random, 6, 96, false), *result;
            struct ds_buffer *in, *out = ds_case_buffer(backend, NULL, 120);
            struct ds_product product = { .out = out, .weight = weight };

            x[2 * 96 + 40] = bad[i];
            in = ds_case_buffer(backend, x, 6 * 96);
            assert_int_equal(backend->matmul(backend, &product, 1, in, 6), 0);
            result = ds_case_read(backend, out, 120);
            for (unsigned j = 0; j < 120; j++)
                assert_int_equal(isfinite(result[j]) != 0, j / 20 != 2);
            free(result);
            free(x);
            backend->buffer_free(backend, in);
            backend->buffer_free(backend, out);
        }
        backend->weight_free(backend, weight);
        ds_case_matrix_deinit(&matrix);
        backend->close(backend);
    }
}

static void rows_of_zeros_and_of_tiny_numbers_give_zeros(void **state)
{
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_case_random random = { 6 };
    struct ds_case_matrix matrix = ds_case_matrix(&random, DS_TYPE_Q4_1, 64, 16);
    float x[128] = { 0 }, *result;
    struct ds_buffer *in, *out = ds_case_buffer(backend, NULL, 32);
    struct ds_weight *weight = NULL;
    struct ds_product product = { .out = out };

    (void) state;
    for (unsigned i = 64; i < 128; i++)
        x[i] = FLT_MIN / 4;
    in = ds_case_buffer(backend, x, 128);
    assert_int_equal(backend->weight_new(backend, &matrix.tensor, false, &weight), 0);
    product.weight = weight;
    assert_int_equal(backend->matmul(backend, &product, 1, in, 2), 0);
    result = ds_case_read(backend, out, 32);
    for (unsigned i = 0; i < 32; i++)
        assert_true(result[i] == 0.0f);
    free(result);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    backend->weight_free(backend, weight);
    ds_case_matrix_deinit(&matrix);
    backend->close(backend);
}

static void a_weight_that_cannot_be_is_refused(void **state)
{
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_case_random random = { 7 };
    struct ds_case_matrix matrix = ds_case_matrix(&random, DS_TYPE_Q4_0, 64, 16);
    struct ds_tensor tensor = matrix.tensor;
    struct ds_weight *weight = NULL;

    (void) state;
    tensor.type = 97;
    assert_int_equal(backend->weight_new(backend, &tensor, false, &weight), -ENOTSUP);
    tensor = matrix.tensor;
    tensor.dims[0] = 63; /* not whole blocks */
    assert_int_equal(backend->weight_new(backend, &tensor, false, &weight), -ENOTSUP);
    tensor = matrix.tensor;
    tensor.dims[1] = 17; /* more rows than bytes */
    assert_int_equal(backend->weight_new(backend, &tensor, false, &weight), -EINVAL);
    tensor.dims[1] = 0;
    assert_int_equal(backend->weight_new(backend, &tensor, false, &weight), -ENOTSUP);
    assert_null(weight);
    ds_case_matrix_deinit(&matrix);
    backend->close(backend);
}

/* --- rows --- */

static void embed_fetches_rows_and_refuses_tokens_there_are_not(void **state)
{
    static const uint32_t tokens[] = { 3, 0, 36, 3 }, beyond[] = { 1, 37 };
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 8 };

    (void) state;
    for (const uint32_t *type = ds_case_types; *type != UINT32_MAX; type++) {
        struct ds_case_matrix matrix = ds_case_matrix(&random, *type, 256, 37);
        struct ds_buffer *out = ds_case_buffer(backend, NULL, 4 * 256);
        struct ds_weight *weight = NULL;
        float *result;

        assert_int_equal(backend->weight_new(backend, &matrix.tensor, true, &weight), 0);
        assert_int_equal(backend->embed(backend, out, weight, tokens, 4), 0);
        result = ds_case_read(backend, out, 4 * 256);
        for (unsigned i = 0; i < 4; i++)
            assert_memory_equal(result + (size_t) i * 256, matrix.floats + (size_t) tokens[i] * 256,
                                256 * sizeof(float));
        assert_int_equal(backend->embed(backend, out, weight, beyond, 2), -EINVAL);
        free(result);
        backend->buffer_free(backend, out);
        backend->weight_free(backend, weight);
        ds_case_matrix_deinit(&matrix);
    }
    backend->close(backend);
}

static void rms_norm_divides_by_the_root_of_the_mean_square(void **state)
{
    static const uint32_t widths[] = { 1, 15, 16, 17, 64, 100, 576 };
    struct ds_case_random random = { 9 };

    (void) state;
    for (unsigned set = 0; set < 2; set++) {
        struct ds_backend *backend = ds_case_backend(sets[set], 2);

        for (unsigned i = 0; i < 7; i++) {
            uint32_t width = widths[i], n = 5;
            float *x = ds_case_rows(&random, n, width, true);
            float *gamma = ds_case_rows(&random, 1, width, false), *result;
            struct ds_buffer *in = ds_case_buffer(backend, x, (size_t) n * width);
            struct ds_buffer *gamma_buffer = ds_case_buffer(backend, gamma, width);

            assert_int_equal(backend->rms_norm(backend, in, in, gamma_buffer, n, width, 1e-5f), 0);
            result = ds_case_read(backend, in, (size_t) n * width);
            for (uint32_t row = 0; row < n; row++) {
                const float *a = x + (size_t) row * width;
                double squares = 0, right;

                for (uint32_t j = 0; j < width; j++)
                    squares += (double) a[j] * a[j];
                for (uint32_t j = 0; j < width; j++) {
                    right = a[j] / sqrt(squares / width + 1e-5f) * gamma[j];
                    assert_true(fabs(result[(size_t) row * width + j] - right) <=
                                1e-6 * (fabs(right) + 1e-6));
                }
            }
            free(x);
            free(gamma);
            free(result);
            backend->buffer_free(backend, in);
            backend->buffer_free(backend, gamma_buffer);
        }
        backend->close(backend);
    }
}

static void silu_mul_is_exact_from_end_to_end(void **state)
{
    enum { N = 3, WIDTH = 1003 };
    static float gate[N * WIDTH], up[N * WIDTH];

    (void) state;
    for (unsigned i = 0; i < N * WIDTH; i++) {
        gate[i] = ((float) i - N * WIDTH / 2) * 0.09f; /* -135 .. 135 */
        up[i] = 1.0f + (float) (i % 7);
    }
    gate[0] = -3e38f;
    gate[1] = 3e38f;
    for (unsigned set = 0; set < 2; set++) {
        struct ds_backend *backend = ds_case_backend(sets[set], 2);
        struct ds_buffer *a = ds_case_buffer(backend, gate, N * WIDTH);
        struct ds_buffer *b = ds_case_buffer(backend, up, N * WIDTH);
        float *result;

        up[1] = 1;
        assert_int_equal(backend->silu_mul(backend, a, a, b, N, WIDTH), 0);
        result = ds_case_read(backend, a, N * WIDTH);
        assert_true(fabsf(result[0]) < 4); /* e^88 stands for all larger ones */
        for (unsigned i = 2; i < N * WIDTH; i++) {
            double right = gate[i] / (1 + exp(-(double) gate[i])) * up[i];

            assert_true(fabs(result[i] - right) <= 4e-7 * fabs(right) + 1e-35);
        }
        free(result);
        backend->buffer_free(backend, a);
        backend->buffer_free(backend, b);
        backend->close(backend);
    }
}

static void gather_takes_rows(void **state)
{
    static const uint32_t rows[] = { 4, 1, 1 };
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_case_random random = { 10 };
    float *x = ds_case_rows(&random, 5, 33, false), *result;
    struct ds_buffer *in = ds_case_buffer(backend, x, 5 * 33);
    struct ds_buffer *out = ds_case_buffer(backend, NULL, 3 * 33);

    (void) state;
    assert_int_equal(backend->gather(backend, out, in, rows, 3, 33), 0);
    result = ds_case_read(backend, out, 3 * 33);
    for (unsigned i = 0; i < 3; i++)
        assert_memory_equal(result + (size_t) i * 33, x + (size_t) rows[i] * 33,
                            33 * sizeof(float));
    free(x);
    free(result);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    backend->close(backend);
}

/* --- rope --- */

static void sines_and_cosines_are_right_to_the_last_bits(void **state)
{
    struct ds_case_random random = { 11 };

    (void) state;
    for (unsigned i = 0; i < 200000; i++) {
        double x = ds_case_u32(&random) * pow(2, (double) ds_case_below(&random, 40) - 45);
        double s, c;

        if (i % 2)
            x = -x;
        ds_sincos(x, &s, &c);
        assert_true(fabs(s - sin(x)) < 1e-15 && fabs(c - cos(x)) < 1e-15);
    }
}

static void check_rope(struct ds_backend *backend, struct ds_case_random *random, bool neox,
                       uint32_t n_dims, uint32_t head_dim)
{
    static const uint32_t positions[] = { 0, 1, 700, 131071, 5 };
    enum { N = 5, HEADS = 3 };
    float frequencies[64], *x = ds_case_rows(random, N * HEADS, head_dim, false), *result;
    struct ds_rope rope = {
        .frequencies = frequencies, .n_dims = n_dims, .magnitude = 1.25f, .neox = neox
    };
    struct ds_buffer *buffer = ds_case_buffer(backend, x, (size_t) N * HEADS * head_dim);

    for (uint32_t i = 0; i < n_dims / 2; i++)
        frequencies[i] = powf(10000, -2.0f * (float) i / (float) n_dims);
    assert_int_equal(backend->rope(backend, buffer, &rope, positions, N, HEADS, head_dim), 0);
    result = ds_case_read(backend, buffer, (size_t) N * HEADS * head_dim);
    for (uint32_t h = 0; h < N * HEADS; h++) {
        const float *a = x + (size_t) h * head_dim, *b = result + (size_t) h * head_dim;

        for (uint32_t i = 0; i < n_dims / 2; i++) {
            uint32_t p = neox ? i : 2 * i, q = neox ? i + n_dims / 2 : 2 * i + 1;
            double angle = (double) positions[h / HEADS] * frequencies[i];

            assert_true(fabs(b[p] - 1.25 * (a[p] * cos(angle) - a[q] * sin(angle))) < 1e-6);
            assert_true(fabs(b[q] - 1.25 * (a[p] * sin(angle) + a[q] * cos(angle))) < 1e-6);
        }
        assert_memory_equal(a + n_dims, b + n_dims, (head_dim - n_dims) * sizeof *a);
    }
    free(x);
    free(result);
    backend->buffer_free(backend, buffer);
}

static void rope_turns_pairs_and_leaves_the_rest(void **state)
{
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 12 };

    (void) state;
    for (unsigned neox = 0; neox < 2; neox++) {
        check_rope(backend, &random, neox, 64, 64);
        check_rope(backend, &random, neox, 16,
                   48); /* the table of the call before must not serve */
        check_rope(backend, &random, neox, 128, 128);
    }
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_product_is_that_of_the_dequantised_weights),
        cmocka_unit_test(rows_longer_than_a_tile_and_more_of_them_than_one),
        cmocka_unit_test(outliers_do_not_drown_the_rest),
        cmocka_unit_test(every_type_that_files_hold_is_among_the_cases),
        cmocka_unit_test(products_of_one_group_are_those_of_each_alone),
        cmocka_unit_test(a_row_that_is_not_finite_spoils_itself_only),
        cmocka_unit_test(rows_of_zeros_and_of_tiny_numbers_give_zeros),
        cmocka_unit_test(a_weight_that_cannot_be_is_refused),
        cmocka_unit_test(embed_fetches_rows_and_refuses_tokens_there_are_not),
        cmocka_unit_test(rms_norm_divides_by_the_root_of_the_mean_square),
        cmocka_unit_test(silu_mul_is_exact_from_end_to_end),
        cmocka_unit_test(gather_takes_rows),
        cmocka_unit_test(sines_and_cosines_are_right_to_the_last_bits),
        cmocka_unit_test(rope_turns_pairs_and_leaves_the_rest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
