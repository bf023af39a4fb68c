/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the CPU kernels reach of what the machine can do, measured in the same run, all threads.
 *
 *   gemv     one row times a matrix (decoding): GB/s of weights
 *            / GB/s of plain reads over as many bytes
 *   gemm     512 rows times a matrix (prompts): 10^12 operations per second (2 per weight and row)
 *            / VPDPBUSD on registers; where there is none, the figure stands alone
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
#include <immintrin.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"

#define WORKING_SET ((size_t) 96 << 20)
#define REPEATS     12u
#define WEIGHT_K    2048u
#define WEIGHT_N    4096u
#define PROMPT_ROWS 512u

struct limits {
    double read;     /* bytes per second */
    double vpdpbusd; /* operations per second; 0: none here */
};

static double seconds_since(uint64_t start)
{
    return (double) (ds_now_nsec() - start) * 1e-9;
}

/* --- limits --- */

struct reading {
    const char *data;
    size_t chunk;
    _Atomic uint64_t sink;
};

__attribute__((target("avx2"))) static void read_chunk(void *arg, uint32_t item, unsigned thread)
{
    struct reading *reading = arg;
    const char *at = reading->data + item * reading->chunk;
    __m256i a = _mm256_setzero_si256(), b = a;
    uint64_t sums[4];

    (void) thread;
    for (size_t i = 0; i < reading->chunk; i += 64) {
        _mm_prefetch(at + i + 2048, _MM_HINT_T0);
        a = _mm256_add_epi64(a, _mm256_load_si256((const __m256i *) (at + i)));
        b = _mm256_add_epi64(b, _mm256_load_si256((const __m256i *) (at + i + 32)));
    }
    _mm256_storeu_si256((__m256i *) sums, _mm256_add_epi64(a, b));
    reading->sink += sums[0] + sums[1] + sums[2] + sums[3];
}

#define DOT(to) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #to "\n\t"

/* Sixteen chains that depend on nothing but themselves, named here: an array of them would be kept
 * in memory between the rounds. */
__attribute__((target("avx512f,avx512vnni"))) static void
multiply_registers(void *arg, uint32_t item, unsigned thread)
{
    (void) arg;
    (void) item;
    (void) thread;
    for (unsigned round = 0; round < 20000; round++)
        __asm__ volatile(DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9)
                             DOT(10) DOT(11) DOT(12) DOT(13) DOT(14) DOT(15)::
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                                   "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
                                   "xmm15");
}

static struct limits measure_limits(struct ds_pool *pool)
{
    struct ds_arena_piece piece;
    struct ds_arena *arena = NULL;
    struct reading reading = { .chunk = 256 << 10 };
    struct limits limits = { 0 };

    assert_int_equal(ds_arena_new(&arena), 0);
    assert_int_equal(ds_arena_take(arena, WORKING_SET + 4096, &piece), 0);
    memset(piece.data, 1, piece.size_bytes);
    reading.data = piece.data;
    for (unsigned i = 0; i < REPEATS; i++) {
        uint64_t start = ds_now_nsec();
        double speed;

        ds_pool_run(pool, read_chunk, &reading, (uint32_t) (WORKING_SET / reading.chunk), 4);
        speed = (double) WORKING_SET / seconds_since(start);
        limits.read = speed > limits.read ? speed : limits.read;
        if (!__builtin_cpu_supports("avx512vnni"))
            continue;
        start = ds_now_nsec();
        ds_pool_run(pool, multiply_registers, &reading, 4 * ds_pool_n_threads(pool), 1);
        speed = 4.0 * ds_pool_n_threads(pool) * 20000 * 16 * 128 / seconds_since(start);
        limits.vpdpbusd = speed > limits.vpdpbusd ? speed : limits.vpdpbusd;
    }
    ds_arena_give_back(arena, &piece);
    ds_arena_free(arena);
    return limits;
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

static void bench_type(struct ds_backend *backend, uint32_t type, const struct limits *limits)
{
    struct ds_case_random random = { type };
    struct ds_case_matrix matrix = ds_case_matrix(&random, type, WEIGHT_K, WEIGHT_N);
    float *x = ds_case_rows(&random, PROMPT_ROWS, WEIGHT_K, false);
    struct subject subject = { .backend = backend };
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
    printf("%-5s gemv %6.1f GB/s = %3.0f %% of reading", ds_type_traits(type)->name, speed * 1e-9,
           speed / limits->read * 100);
    seconds = best_product(&subject, PROMPT_ROWS, REPEATS);
    speed = 2.0 * WEIGHT_K * WEIGHT_N * PROMPT_ROWS / seconds;
    printf("   gemm %6.3f Top/s", speed * 1e-12);
    if (limits->vpdpbusd > 0)
        printf(" = %3.0f %% of VPDPBUSD", speed / limits->vpdpbusd * 100);
    printf("\n");
    for (unsigned i = 0; i < subject.n_weights; i++)
        backend->weight_free(backend, subject.weights[i]);
    backend->buffer_free(backend, subject.in);
    backend->buffer_free(backend, subject.out);
    free(subject.weights);
    free(x);
    ds_case_matrix_deinit(&matrix);
}

int main(int argc, char **argv)
{
    const char *isa = argc > 1 && *argv[1] ? argv[1] : NULL;
    struct ds_backend *backend =
        ds_case_backend(isa, argc > 2 ? (unsigned) strtoul(argv[2], NULL, 10) : 0);
    struct limits limits;

    if (!backend)
        return 77;
    if (!__builtin_cpu_supports("avx2")) {
        printf("no AVX2: the limits are not measured\n");
        return 77;
    }
    limits = measure_limits(ds_cpu(backend)->pool);
    printf("%s; reading %.1f GB/s", backend->describe(backend), limits.read * 1e-9);
    if (limits.vpdpbusd > 0)
        printf(", VPDPBUSD %.2f Top/s", limits.vpdpbusd * 1e-12);
    printf("\n");
    for (const uint32_t *type = ds_case_types; *type != UINT32_MAX; type++)
        if (*type != DS_TYPE_F32)
            bench_type(backend, *type, &limits);
    backend->close(backend);
    return 0;
}
