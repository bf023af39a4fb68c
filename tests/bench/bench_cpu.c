/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the CPU kernels reach of what the machine can do, measured in the same run, all threads.
 *
 *   gemv     one row times a matrix (decoding): GB/s of weights
 *            / GB/s of plain reads over as many bytes
 *   gemm     512 rows times a matrix (prompts): 10^12 operations per second (2 per weight and row)
 *            / the kernels' instruction on registers; where there is none, the figure stands alone
 *   experts  a layer's experts in the shape of DeepSeek-V2-Lite (6 of 64 for each row, chosen at
 *            random, Q4_K and Q5_0) for 1, 8 and 128 rows: both figures, of the experts chosen
 *
 * Several matrices take turns, WORKING_SET bytes together, so that decoding reads from where the
 * weights of a real model would lie. Inputs have the outliers of a real residual stream. Every
 * figure is the best of REPEATS, since a shared machine is only ever slower than it can be. usage:
 * bench_cpu [ISA [THREADS]]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"

#define WORKING_SET ((size_t) 96 << 20)
#define REPEATS     12u
#define WEIGHT_K    2048u
#define WEIGHT_N    4096u
#define PROMPT_ROWS 512u

static double seconds_since(uint64_t start)
{
    return (double) (ds_now_nsec() - start) * 1e-9;
}

/* --- kernels --- */

struct subject {
    struct ds_backend *backend;
    struct ds_weight **weights;
    unsigned n_weights;
    struct ds_buffer *in, *out;
};

/* Seconds of one product with rows rows, best of all */
static double best_product(const struct subject *subject, uint32_t rows, unsigned n_products)
{
    double best = 1e9;

    for (unsigned i = 0; i < n_products; i++) {
        struct ds_product product = { .out = subject->out,
                                      .weight = subject->weights[i % subject->n_weights] };
        uint64_t start = ds_now_nsec();
        double seconds;

        assert_int_equal(subject->backend->matmul(subject->backend, &product, 1, subject->in, rows),
                         0);
        seconds = seconds_since(start);
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* Seconds for a pass over all weights, divided by their number: best of REPEATS passes */
static double best_pass(const struct subject *subject)
{
    double best = 1e9;

    for (unsigned i = 0; i < REPEATS; i++) {
        uint64_t start = ds_now_nsec();
        double seconds;

        (void) best_product(subject, 1, subject->n_weights);
        seconds = seconds_since(start) / subject->n_weights;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static void bench_type(struct ds_backend *backend, uint32_t type, const struct ds_limits *limits)
{
    struct ds_case_random random = { type };
    struct ds_case_matrix matrix = ds_case_matrix(&random, type, WEIGHT_K, WEIGHT_N);
    float *x = ds_case_rows(&random, PROMPT_ROWS, WEIGHT_K, false);
    struct subject subject = { .backend = backend };
    const bool is_float = type == DS_TYPE_F16 || type == DS_TYPE_BF16;
    size_t bytes;
    double seconds, speed;

    for (size_t i = 0; i < (size_t) PROMPT_ROWS * WEIGHT_K; i++) /* the same columns in all rows */
        x[i] *= i % WEIGHT_K % 512 == 77 ? 300 : 1;
    subject.n_weights = (unsigned) (WORKING_SET / matrix.tensor.size_bytes) + 1;
    subject.weights = calloc(subject.n_weights, sizeof *subject.weights);
    assert_non_null(subject.weights);
    for (unsigned i = 0; i < subject.n_weights; i++)
        assert_int_equal(backend->weight_new(backend, &matrix.tensor, false, &subject.weights[i]),
                         0);
    bytes = backend->weight_bytes(subject.weights[0]);
    subject.in = ds_case_buffer(backend, x, (size_t) PROMPT_ROWS * WEIGHT_K);
    subject.out = ds_case_buffer(backend, NULL, (size_t) PROMPT_ROWS * WEIGHT_N);
    seconds = best_pass(&subject);
    speed = (double) bytes / seconds;
    printf("%-7s gemv %6.1f GB/s = %3.0f %% of reading", ds_type_traits(type)->name, speed * 1e-9,
           speed / limits->read_bytes * 100);
    seconds = best_product(&subject, PROMPT_ROWS, REPEATS);
    speed = 2.0 * WEIGHT_K * WEIGHT_N * PROMPT_ROWS / seconds;
    printf("   gemm %6.3f Top/s", speed * 1e-12);
    if (limits->int8_ops > 0 && is_float)
        printf(" = %3.0f %% of %s", speed / limits->f32_ops * 100, limits->f32_instruction);
    else if (limits->int8_ops > 0)
        printf(" = %3.0f %% of %s", speed / limits->int8_ops * 100, limits->int8_instruction);
    printf("\n");
    for (unsigned i = 0; i < subject.n_weights; i++)
        backend->weight_free(backend, subject.weights[i]);
    backend->buffer_free(backend, subject.in);
    backend->buffer_free(backend, subject.out);
    free(subject.weights);
    free(x);
    ds_case_matrix_deinit(&matrix);
}

/* --- experts --- */

enum { EXPERTS = 64, EXPERTS_USED = 6, EXPERT_K = 2048, EXPERT_N = 1408, EXPERT_ROWS = 128 };

struct layer {
    struct ds_weight *weights[3];
    struct ds_experts experts;
    size_t expert_bytes; /* of one expert */
};

static struct layer make_layer(struct ds_backend *backend)
{
    static const uint32_t types[] = { DS_TYPE_Q4_K, DS_TYPE_Q4_K, DS_TYPE_Q5_0 };
    struct ds_case_random random = { 64 };
    struct layer layer = { .expert_bytes = 0 };

    for (unsigned i = 0; i < 3; i++) {
        struct ds_case_matrix matrix = ds_case_matrix(
            &random, types[i], i < 2 ? EXPERT_K : EXPERT_N, i < 2 ? EXPERT_N : EXPERT_K);
        struct ds_tensor same[EXPERTS]; /* in the file; each has panels of its own */

        for (unsigned e = 0; e < EXPERTS; e++)
            same[e] = matrix.tensor;
        assert_int_equal(backend->weight_new_stack(backend, same, EXPERTS, &layer.weights[i]), 0);
        layer.expert_bytes += backend->weight_bytes(layer.weights[i]) / EXPERTS;
        ds_case_matrix_deinit(&matrix);
    }
    layer.experts = (struct ds_experts){ layer.weights[0], layer.weights[1], layer.weights[2] };
    return layer;
}

/* Other experts for each row; returns how many different ones there are. */
static unsigned choose(struct ds_case_random *random, float *chosen, uint32_t n)
{
    bool seen[EXPERTS] = { false };
    unsigned n_seen = 0;

    for (uint32_t row = 0; row < n; row++) {
        uint32_t left = EXPERTS_USED;

        for (uint32_t e = 0; e < EXPERTS && left; e++)
            if (ds_case_below(random, EXPERTS - e) < left) {
                *chosen++ = (float) e;
                left--;
                n_seen += !seen[e];
                seen[e] = true;
            }
    }
    return n_seen;
}

static void bench_experts(struct ds_backend *backend, const struct ds_limits *limits)
{
    static const uint32_t rows[] = { 1, 8, EXPERT_ROWS };
    struct ds_case_random random = { 65 };
    struct layer layer = make_layer(backend);
    float *x = ds_case_rows(&random, EXPERT_ROWS, EXPERT_K, false);
    float chosen[EXPERT_ROWS * EXPERTS_USED], shares[EXPERT_ROWS * EXPERTS_USED];
    struct ds_buffer *in = ds_case_buffer(backend, x, (size_t) EXPERT_ROWS * EXPERT_K);
    struct ds_buffer *out = ds_case_buffer(backend, NULL, (size_t) EXPERT_ROWS * EXPERT_K);
    struct ds_buffer *who = ds_case_buffer(backend, NULL, EXPERT_ROWS * EXPERTS_USED);
    struct ds_buffer *share;

    for (unsigned i = 0; i < EXPERT_ROWS * EXPERTS_USED; i++)
        shares[i] = 1.0f / EXPERTS_USED;
    share = ds_case_buffer(backend, shares, EXPERT_ROWS * EXPERTS_USED);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        double read = 0, speed = 0, ops = 6.0 * EXPERT_K * EXPERT_N * EXPERTS_USED * rows[i];

        for (unsigned j = 0; j < 4 * REPEATS; j++) {
            double bytes = (double) layer.expert_bytes * choose(&random, chosen, rows[i]), seconds;
            uint64_t start;

            assert_int_equal(backend->write(backend, who, chosen, (size_t) rows[i] * EXPERTS_USED),
                             0);
            start = ds_now_nsec();
            assert_int_equal(backend->expert_ffn(backend, out, in, &layer.experts, who, share,
                                                 EXPERTS_USED, rows[i]),
                             0);
            seconds = seconds_since(start);
            read = bytes / seconds > read ? bytes / seconds : read;
            speed = ops / seconds > speed ? ops / seconds : speed;
        }
        printf("experts, %3u row%s %6.1f GB/s = %3.0f %% of reading   %6.3f Top/s", rows[i],
               rows[i] == 1 ? " " : "s", read * 1e-9, read / limits->read_bytes * 100,
               speed * 1e-12);
        if (limits->int8_ops > 0)
            printf(" = %3.0f %% of %s", speed / limits->int8_ops * 100, limits->int8_instruction);
        printf("\n");
    }
    for (unsigned i = 0; i < 3; i++)
        backend->weight_free(backend, layer.weights[i]);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    backend->buffer_free(backend, who);
    backend->buffer_free(backend, share);
    free(x);
}

int main(int argc, char **argv)
{
    const char *isa = argc > 1 && *argv[1] ? argv[1] : NULL;
    struct ds_backend *backend =
        ds_case_backend(isa, argc > 2 ? (unsigned) strtoul(argv[2], NULL, 10) : 0);
    struct ds_limits limits;

    if (!backend)
        return 77;
    assert_int_equal(backend->limits(backend, &limits), 0);
    printf("%s; reading %.1f GB/s", backend->describe(backend), limits.read_bytes * 1e-9);
    if (limits.int8_ops > 0)
        printf(", %s %.2f Top/s, %s %.2f Tflop/s", limits.int8_instruction, limits.int8_ops * 1e-12,
               limits.f32_instruction, limits.f32_ops * 1e-12);
    printf("\n");
    for (const uint32_t *type = ds_case_types; *type != UINT32_MAX; type++)
        if (*type != DS_TYPE_F32)
            bench_type(backend, *type, &limits);
    bench_experts(backend, &limits);
    backend->close(backend);
    return 0;
}
