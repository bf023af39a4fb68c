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
    for (uint32_t type = 0; type < DS_TYPE_GGML_END; type++) {
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

/* --- attention --- */

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

/* What the cache makes of one position's key or value. */
static void store(enum ds_kv_type type, float *x, uint32_t dim)
{
    uint32_t turn = dim & -dim; /* the largest power of two in it */

    if (type == DS_KV_Q4_0)
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
    if (type == DS_KV_Q4_0)
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
        store(c->type, keys + i * c->key_dim, c->key_dim);
        if (!c->shared)
            store(c->type, values + i * c->value_dim, c->value_dim);
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
        { 1, 1, 80, 64, 4, DS_KV_Q4_0, 0, false },     { 1, 1, 96, 80, 4, DS_KV_Q4_0, 0, true },
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
