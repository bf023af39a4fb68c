/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the mixture-of-experts operations of the CPU backend compute what backend.h says, the same
 * bits on every instruction set and in every batch.
 * Method: routing against the naive backend in every setting, and on ties; the experts'
 * feed-forward against the naive one, within what rounding activations explains, for all types and
 * odd shapes; bytes compared between instruction sets, and of each row alone and among others.
 * Then: settings and experts that cannot be, rows that are not finite.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"
#include "tests/lib/naive_backend.h"

static const struct {
    const char *isa;
    unsigned n_threads;
} others[] = { { "avx2", 1 }, { "avx512", 1 }, { "amx", 1 }, { NULL, 2 }, { NULL, 3 } };
#define N_OTHERS (sizeof others / sizeof *others)

/* --- routing --- */

static const struct ds_routing settings[] = {
    { DS_GATING_SOFTMAX, NULL, 10, 3, 0, 0, false, true, 1.0f },
    { DS_GATING_SOFTMAX, NULL, 64, 6, 1, 1, false, false, 1.0f },
    { DS_GATING_SOFTMAX, NULL, 160, 6, 8, 3, false, false, 16.0f },
    { DS_GATING_SIGMOID, NULL, 256, 8, 8, 4, true, true, 2.5f },
    { DS_GATING_SIGMOID, NULL, 17, 17, 0, 0, false, true, 1.0f },
    { DS_GATING_SIGMOID, NULL, 9, 2, 9, 2, true, false, 1.0f },
    { DS_GATING_SOFTMAX_CHOSEN, NULL, 33, 4, 0, 0, false, false, 1.0f },
    { DS_GATING_SOFTMAX_CHOSEN, NULL, 32, 2, 4, 1, false, true, 0.5f },
    { DS_GATING_SIGMOID, NULL, 1, 1, 0, 0, false, true, 1.0f },
    { DS_GATING_SOFTMAX, NULL, DS_EXPERTS_MAX, DS_EXPERTS_USED_MAX, 0, 0, false, true, 1.0f },
};
#define N_SETTINGS (sizeof settings / sizeof *settings)

struct routes {
    float *chosen, *weights; /* [n][n_used] */
};

/* bias NULL: none */
static struct routes route(struct ds_backend *backend, struct ds_routing routing,
                           const float *logits, const float *bias, uint32_t n)
{
    size_t n_out = (size_t) n * routing.n_used;
    struct ds_buffer *in = ds_case_buffer(backend, logits, (size_t) n * routing.n_experts);
    struct ds_buffer *chosen = ds_case_buffer(backend, NULL, n_out);
    struct ds_buffer *weights = ds_case_buffer(backend, NULL, n_out);
    struct ds_buffer *bias_buffer = NULL;
    struct routes routes;

    if (bias)
        routing.bias = bias_buffer = ds_case_buffer(backend, bias, routing.n_experts);
    assert_int_equal(backend->route(backend, chosen, weights, in, &routing, n), 0);
    routes.chosen = ds_case_read(backend, chosen, n_out);
    routes.weights = ds_case_read(backend, weights, n_out);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, chosen);
    backend->buffer_free(backend, weights);
    backend->buffer_free(backend, bias_buffer);
    return routes;
}

static void routes_deinit(struct routes *routes)
{
    free(routes->chosen);
    free(routes->weights);
}

static void rows_go_where_the_naive_backend_sends_them(void **state)
{
    enum { N = 37 };
    struct ds_backend *naive = ds_naive_backend_new(), *cpu = ds_case_backend("portable", 2);
    struct ds_case_random random = { 1 };

    (void) state;
    for (unsigned i = 0; i < 2 * N_SETTINGS; i++) {
        const struct ds_routing *r = &settings[i / 2];
        float *logits = ds_case_rows(&random, N, r->n_experts, false);
        float *bias = i % 2 ? ds_case_rows(&random, 1, r->n_experts, false) : NULL;
        struct routes right, routes;

        for (size_t j = 0; j < (size_t) N * r->n_experts; j++)
            logits[j] *= 4.0f;
        right = route(naive, *r, logits, bias, N);
        routes = route(cpu, *r, logits, bias, N);
        assert_memory_equal(right.chosen, routes.chosen, N * r->n_used * sizeof(float));
        for (size_t j = 0; j < (size_t) N * r->n_used; j++) {
            double off = fabs((double) routes.weights[j] - (double) right.weights[j]);

            assert_true(off <= 1e-6 * fabs((double) right.weights[j]));
        }
        routes_deinit(&right);
        routes_deinit(&routes);
        free(logits);
        free(bias);
    }
    naive->close(naive);
    cpu->close(cpu);
}

static void routes_are_the_same_bits_on_every_set_and_alone(void **state)
{
    enum { N = 21 };
    struct ds_backend *portable = ds_case_backend("portable", 1);
    struct ds_case_random random = { 2 };

    (void) state;
    for (unsigned o = 0; o < N_OTHERS; o++) {
        struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);

        for (unsigned i = 0; i < N_SETTINGS && backend; i++) {
            const struct ds_routing *r = &settings[i];
            float *logits = ds_case_rows(&random, N, r->n_experts, true);
            struct routes a = route(portable, *r, logits, NULL, N);
            struct routes b = route(backend, *r, logits, NULL, N);
            struct routes alone = route(backend, *r, logits + (size_t) 13 * r->n_experts, NULL, 1);
            size_t at = (size_t) 13 * r->n_used;

            assert_memory_equal(a.chosen, b.chosen, N * r->n_used * sizeof(float));
            assert_memory_equal(a.weights, b.weights, N * r->n_used * sizeof(float));
            assert_memory_equal(a.chosen + at, alone.chosen, r->n_used * sizeof(float));
            assert_memory_equal(a.weights + at, alone.weights, r->n_used * sizeof(float));
            routes_deinit(&a);
            routes_deinit(&b);
            routes_deinit(&alone);
            free(logits);
        }
        if (backend)
            backend->close(backend);
    }
    portable->close(portable);
}

static void ties_go_to_the_lowest_expert_and_the_first_group(void **state)
{
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    static const float expected[] = { 1, 2, 3, 5 };
    float logits[12] = { 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1 };
    float bias[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0 };
    struct ds_routing r = { DS_GATING_SIGMOID, NULL, 12, 4, 0, 0, true, false, 1.0f };
    struct routes routes = route(backend, r, logits, NULL, 1);

    (void) state;
    for (unsigned i = 0; i < 4; i++)
        assert_true(routes.chosen[i] == expected[i]);
    routes_deinit(&routes);
    r.n_groups = 3;
    r.n_groups_used = 1;
    routes = route(backend, r, logits, NULL, 1);
    for (unsigned i = 0; i < 4; i++)
        assert_true(routes.chosen[i] == (float) i);
    routes_deinit(&routes);
    /* The bias chooses; the weight is the score without it. */
    routes = route(backend, r, logits, bias, 1);
    for (unsigned i = 0; i < 4; i++)
        assert_true(routes.chosen[i] == (float) (8 + i));
    assert_true(routes.weights[0] == 0.5f);
    routes_deinit(&routes);
    backend->close(backend);
}

/* Group 0 has the best expert, group 1 the best two together. */
static void groups_are_judged_by_their_best_or_their_two_best(void **state)
{
    static const float logits[6] = { 3.0f, -4.0f, -4.0f, 2.0f, 2.0f, -4.0f };
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_routing r = { DS_GATING_SIGMOID, NULL, 6, 1, 2, 1, false, false, 1.0f };
    struct routes routes = route(backend, r, logits, NULL, 1);

    (void) state;
    assert_true(routes.chosen[0] == 0.0f);
    routes_deinit(&routes);
    r.group_by_two = true;
    routes = route(backend, r, logits, NULL, 1);
    assert_true(routes.chosen[0] == 3.0f);
    routes_deinit(&routes);
    backend->close(backend);
}

static void logits_that_are_not_finite_still_choose_experts(void **state)
{
    static const float values[] = { NAN, INFINITY, -INFINITY, 1.0f };
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_case_random random = { 3 };

    (void) state;
    for (unsigned i = 0; i < 400; i++) {
        const struct ds_routing *r = &settings[i % 8];
        float *logits = ds_case_rows(&random, 1, r->n_experts, false), last = -1.0f;
        struct routes routes;

        for (uint32_t j = 0; j < r->n_experts; j++)
            if (i % 7 == 0 || ds_case_below(&random, 3) == 0)
                logits[j] = values[ds_case_below(&random, i % 2 ? 4 : 1)];
        routes = route(backend, *r, logits, NULL, 1);
        for (uint32_t j = 0; j < r->n_used; j++) {
            assert_true(routes.chosen[j] > last && routes.chosen[j] < (float) r->n_experts);
            last = routes.chosen[j];
        }
        routes_deinit(&routes);
        free(logits);
    }
    backend->close(backend);
}

static void a_routing_that_cannot_be_is_refused(void **state)
{
    static const struct ds_routing bad[] = {
        { DS_GATING_SOFTMAX, NULL, 8, 0, 0, 0, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, 8, 9, 0, 0, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, 8, 2, 3, 1, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, 8, 2, 4, 0, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, 8, 2, 4, 5, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, 8, 3, 4, 1, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, DS_EXPERTS_MAX + 1, 3, 0, 0, false, true, 1.0f },
        { DS_GATING_SOFTMAX, NULL, 128, DS_EXPERTS_USED_MAX + 1, 0, 0, false, true, 1.0f },
    };
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_buffer *buffer = ds_case_buffer(backend, NULL, 4096);

    (void) state;
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(backend->route(backend, buffer, buffer, buffer, &bad[i], 1), -EINVAL);
    backend->buffer_free(backend, buffer);
    backend->close(backend);
}

/* --- the feed-forward --- */

struct moe_case {
    uint32_t gate, up, down; /* types */
    uint32_t width, ffn_width, n_experts, n_used, n;
};

struct moe {
    struct ds_case_matrix matrices[3]; /* gate, up, down: all experts' rows, one after the other */
    struct ds_tensor *tensors[3];      /* [n_experts] */
    float *x, *before, *chosen, *weights;
};

static void moe_init(struct moe *moe, struct ds_case_random *random, const struct moe_case *c)
{
    const uint32_t types[] = { c->gate, c->up, c->down };

    for (unsigned i = 0; i < 3; i++) {
        uint32_t k = i < 2 ? c->width : c->ffn_width, n = i < 2 ? c->ffn_width : c->width;
        struct ds_case_matrix *m = &moe->matrices[i];

        *m = ds_case_matrix(random, types[i], k, n * c->n_experts);
        moe->tensors[i] = calloc(c->n_experts, sizeof *moe->tensors[i]);
        assert_non_null(moe->tensors[i]);
        for (uint32_t e = 0; e < c->n_experts; e++) {
            size_t bytes = m->tensor.size_bytes / c->n_experts;

            moe->tensors[i][e] =
                (struct ds_tensor){ .name = "expert",
                                    .type = types[i],
                                    .n_dims = 2,
                                    .dims = { k, n, 1, 1 },
                                    .data = (const char *) m->tensor.data + e * bytes,
                                    .size_bytes = bytes };
        }
    }
    moe->x = ds_case_rows(random, c->n, c->width, false);
    moe->before = ds_case_rows(random, c->n, c->width, false);
    moe->weights = ds_case_rows(random, c->n, c->n_used, false);
    moe->chosen = malloc((size_t) c->n * c->n_used * sizeof *moe->chosen);
    assert_non_null(moe->chosen);
    for (uint32_t row = 0; row < c->n; row++) { /* any n_used of them, ascending */
        uint32_t left = c->n_used;

        for (uint32_t e = 0; e < c->n_experts && left; e++)
            if (ds_case_below(random, c->n_experts - e) < left)
                moe->chosen[(size_t) (row + 1) * c->n_used - left--] = (float) e;
    }
}

static void moe_deinit(struct moe *moe)
{
    for (unsigned i = 0; i < 3; i++) {
        ds_case_matrix_deinit(&moe->matrices[i]);
        free(moe->tensors[i]);
    }
    free(moe->x);
    free(moe->before);
    free(moe->chosen);
    free(moe->weights);
}

struct loaded {
    struct ds_weight *weights[3];
    struct ds_experts experts;
};

static struct loaded load(struct ds_backend *backend, const struct moe *moe, uint32_t n_experts)
{
    struct loaded loaded;

    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(
            backend->weight_new_stack(backend, moe->tensors[i], n_experts, &loaded.weights[i]), 0);
    loaded.experts = (struct ds_experts){ loaded.weights[0], loaded.weights[1], loaded.weights[2] };
    return loaded;
}

static void unload(struct ds_backend *backend, struct loaded *loaded)
{
    for (unsigned i = 0; i < 3; i++)
        backend->weight_free(backend, loaded->weights[i]);
}

/* Rows first .. + n as one batch: fresh memory. */
static float *run(struct ds_backend *backend, const struct loaded *loaded, const struct moe *moe,
                  const struct moe_case *c, uint32_t first, uint32_t n)
{
    size_t at = (size_t) first * c->width, used = (size_t) first * c->n_used;
    struct ds_buffer *in = ds_case_buffer(backend, moe->x + at, (size_t) n * c->width);
    struct ds_buffer *out = ds_case_buffer(backend, moe->before + at, (size_t) n * c->width);
    struct ds_buffer *chosen = ds_case_buffer(backend, moe->chosen + used, (size_t) n * c->n_used);
    struct ds_buffer *weights =
        ds_case_buffer(backend, moe->weights + used, (size_t) n * c->n_used);
    float *result;

    assert_int_equal(
        backend->expert_ffn(backend, out, in, &loaded->experts, chosen, weights, c->n_used, n), 0);
    result = ds_case_read(backend, out, (size_t) n * c->width);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    backend->buffer_free(backend, chosen);
    backend->buffer_free(backend, weights);
    return result;
}

static bool is_float(uint32_t type)
{
    return type == DS_TYPE_F32 || type == DS_TYPE_F16 || type == DS_TYPE_BF16 || type == DS_TYPE_F8;
}

/* Deviation over all rows relative to what the experts add, root mean square. */
static double deviation(const struct moe *moe, const struct moe_case *c, const float *result,
                        const float *right)
{
    double off = 0.0, size = 0.0;

    for (size_t i = 0; i < (size_t) c->n * c->width; i++) {
        double d = (double) result[i] - (double) right[i];
        double s = (double) right[i] - (double) moe->before[i];

        assert_true(isfinite(result[i]));
        off += d * d;
        size += s * s;
    }
    return sqrt(off / size);
}

static void check_case(struct ds_backend *backend, struct ds_case_random *random,
                       const struct moe_case *c)
{
    bool exact = is_float(c->gate) && is_float(c->up) && is_float(c->down);
    struct ds_backend *naive = ds_naive_backend_new();
    struct loaded loaded, naively;
    float *result, *right;
    struct moe moe;
    double off;

    moe_init(&moe, random, c);
    loaded = load(backend, &moe, c->n_experts);
    naively = load(naive, &moe, c->n_experts);
    result = run(backend, &loaded, &moe, c, 0, c->n);
    right = run(naive, &naively, &moe, c, 0, c->n);
    off = deviation(&moe, c, result, right);
    if (!(off <= (exact ? 2e-6 : 0.02)))
        fail_msg("types %u %u %u, {%u, %u} x %u, %u rows: off by %g", c->gate, c->up, c->down,
                 c->width, c->ffn_width, c->n_experts, c->n, off);
    /* A row alone, two of them, and the rest: the same bytes. */
    for (uint32_t first = 0, n = 1; first < c->n; first += n, n = n < 2 ? 2 : c->n - first) {
        float *some = run(backend, &loaded, &moe, c, first, n < c->n - first ? n : c->n - first);

        n = n < c->n - first ? n : c->n - first;
        assert_memory_equal(result + (size_t) first * c->width, some,
                            (size_t) n * c->width * sizeof *some);
        free(some);
    }
    unload(backend, &loaded);
    unload(naive, &naively);
    free(result);
    free(right);
    moe_deinit(&moe);
    naive->close(naive);
}

static void experts_compute_what_the_naive_backend_computes(void **state)
{
    static const uint32_t rows[] = { 1, 2, 5, 13, 40, 3 };
    static const char *const sets[] = { "portable", NULL };
    struct ds_case_random random = { 4 };

    (void) state;
    for (unsigned set = 0; set < 2; set++) {
        struct ds_backend *backend = ds_case_backend(sets[set], 2);

        for (const uint32_t *type = ds_case_types; *type != UINT32_MAX; type++)
            for (unsigned i = 0; i < 6; i++) {
                uint32_t block = ds_case_block(*type);
                struct moe_case c = { *type, *type, *type, block, block, 5, 2, rows[i] };

                if (block < 32) { /* float types: any length */
                    c.width = 1 + ds_case_below(&random, 70);
                    c.ffn_width = 1 + ds_case_below(&random, 50);
                }
                if (block == 32) {
                    c.width = 96;
                    c.ffn_width = 64;
                }
                if (i % 2)
                    c.n_experts = c.n_used = 3;
                check_case(backend, &random, &c);
            }
        backend->close(backend);
    }
}

static void types_may_be_mixed_and_experts_many_or_with_many_rows(void **state)
{
    static const struct moe_case cases[] = {
        { DS_TYPE_Q4_K, DS_TYPE_Q4_K, DS_TYPE_Q6_K, 256, 512, 8, 3, 20 },
        { DS_TYPE_Q4_0, DS_TYPE_F16, DS_TYPE_Q8_0, 64, 96, 4, 2, 9 },
        { DS_TYPE_F32, DS_TYPE_Q5_1, DS_TYPE_BF16, 32, 47, 4, 2, 17 },
        { DS_TYPE_Q8_0, DS_TYPE_Q4_1, DS_TYPE_F32, 96, 33, 6, 1, 11 },
        { DS_TYPE_Q4_0, DS_TYPE_Q4_0, DS_TYPE_Q4_0, 64, 32, 300, 8, 30 },
        { DS_TYPE_Q8_0, DS_TYPE_Q8_0, DS_TYPE_Q8_0, 32, 64, 2, 1, 600 }, /* more than a tile */
        { DS_TYPE_F32, DS_TYPE_F32, DS_TYPE_F32, 20, 24, 3, 2, 420 },
    };
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 5 };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(backend, &random, &cases[i]);
    backend->close(backend);
}

static void experts_are_the_same_bits_on_every_set_and_any_number_of_threads(void **state)
{
    static const struct moe_case cases[] = {
        { DS_TYPE_Q4_K, DS_TYPE_Q5_K, DS_TYPE_Q6_K, 256, 768, 6, 2, 19 },
        { DS_TYPE_Q4_0, DS_TYPE_Q4_1, DS_TYPE_Q8_0, 800, 224, 7, 3, 14 },
        { DS_TYPE_Q5_0, DS_TYPE_Q5_1, DS_TYPE_F16, 64, 50, 5, 5, 8 },
        { DS_TYPE_BF16, DS_TYPE_F32, DS_TYPE_Q4_0, 61, 32, 5, 2, 13 },
    };
    struct ds_backend *portable = ds_case_backend("portable", 1);
    struct ds_case_random random = { 6 };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct moe_case *c = &cases[i];
        struct loaded right;
        struct moe moe;
        float *a;

        moe_init(&moe, &random, c);
        right = load(portable, &moe, c->n_experts);
        a = run(portable, &right, &moe, c, 0, c->n);
        for (unsigned o = 0; o < N_OTHERS; o++) {
            struct ds_backend *backend = ds_case_backend(others[o].isa, others[o].n_threads);
            struct loaded loaded;

            if (!backend)
                continue;
            loaded = load(backend, &moe, c->n_experts);
            for (uint32_t n = c->n; n; n = n > 1 ? 1 : 0) {
                float *b = run(backend, &loaded, &moe, c, c->n - n, n);

                assert_memory_equal(a + (size_t) (c->n - n) * c->width, b,
                                    (size_t) n * c->width * sizeof *b);
                free(b);
            }
            unload(backend, &loaded);
            backend->close(backend);
        }
        unload(portable, &right);
        free(a);
        moe_deinit(&moe);
    }
    portable->close(portable);
}

static void a_row_that_is_not_finite_spoils_itself_only(void **state)
{
    static const struct moe_case c = {
        DS_TYPE_Q8_0, DS_TYPE_Q4_K, DS_TYPE_Q6_K, 256, 256, 3, 2, 9
    };
    struct ds_backend *backend = ds_case_backend(NULL, 2);
    struct ds_case_random random = { 7 };
    struct loaded loaded;
    struct moe moe;
    float *before, *after;

    (void) state;
    moe_init(&moe, &random, &c);
    loaded = load(backend, &moe, c.n_experts);
    before = run(backend, &loaded, &moe, &c, 0, c.n);
    moe.x[4 * 256 + 17] = NAN;
    after = run(backend, &loaded, &moe, &c, 0, c.n);
    assert_memory_equal(before, after, 4 * 256 * sizeof *after);
    assert_memory_equal(before + 5 * 256, after + 5 * 256, 4 * 256 * sizeof *after);
    for (unsigned i = 0; i < 256; i++)
        assert_true(isnan(after[4 * 256 + i]));
    free(before);
    free(after);
    unload(backend, &loaded);
    moe_deinit(&moe);
    backend->close(backend);
}

static void experts_that_cannot_be_are_refused(void **state)
{
    static const struct moe_case c = { DS_TYPE_F32, DS_TYPE_F32, DS_TYPE_F32, 8, 6, 3, 2, 4 };
    static const float bad[][2] = { { 0, 3 }, { -1, 2 }, { NAN, 1 },
                                    { 1, 1 }, { 2, 1 },  { 0, INFINITY } };
    struct ds_backend *backend = ds_case_backend(NULL, 1);
    struct ds_case_random random = { 8 };
    struct ds_weight *weight = NULL;
    struct ds_buffer *buffer = ds_case_buffer(backend, NULL, 64);
    struct loaded loaded;
    struct moe moe;

    (void) state;
    moe_init(&moe, &random, &c);
    loaded = load(backend, &moe, c.n_experts);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ds_buffer *chosen = ds_case_buffer(backend, bad[i], 2);

        assert_int_equal(
            backend->expert_ffn(backend, buffer, buffer, &loaded.experts, chosen, buffer, 2, 1),
            -EINVAL);
        backend->buffer_free(backend, chosen);
    }
    loaded.experts.down = loaded.weights[0];
    assert_int_equal(
        backend->expert_ffn(backend, buffer, buffer, &loaded.experts, buffer, buffer, 1, 1),
        -EINVAL);
    assert_int_equal(backend->weight_new_stack(backend, moe.tensors[0], 0, &weight), -EINVAL);
    moe.tensors[0][2].type = DS_TYPE_F16;
    assert_int_equal(backend->weight_new_stack(backend, moe.tensors[0], 3, &weight), -EINVAL);
    moe.tensors[0][2].type = DS_TYPE_F32;
    moe.tensors[0][1].dims[1] = 5;
    assert_int_equal(backend->weight_new_stack(backend, moe.tensors[0], 3, &weight), -EINVAL);
    moe.tensors[0][1].dims[1] = 6;
    moe.tensors[0][1].size_bytes -= 1;
    assert_int_equal(backend->weight_new_stack(backend, moe.tensors[0], 3, &weight), -EINVAL);
    assert_null(weight);
    unload(backend, &loaded);
    moe_deinit(&moe);
    backend->buffer_free(backend, buffer);
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_go_where_the_naive_backend_sends_them),
        cmocka_unit_test(routes_are_the_same_bits_on_every_set_and_alone),
        cmocka_unit_test(ties_go_to_the_lowest_expert_and_the_first_group),
        cmocka_unit_test(groups_are_judged_by_their_best_or_their_two_best),
        cmocka_unit_test(logits_that_are_not_finite_still_choose_experts),
        cmocka_unit_test(a_routing_that_cannot_be_is_refused),
        cmocka_unit_test(experts_compute_what_the_naive_backend_computes),
        cmocka_unit_test(types_may_be_mixed_and_experts_many_or_with_many_rows),
        cmocka_unit_test(experts_are_the_same_bits_on_every_set_and_any_number_of_threads),
        cmocka_unit_test(a_row_that_is_not_finite_spoils_itself_only),
        cmocka_unit_test(experts_that_cannot_be_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
