/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What attention reaches of what the machine can do, measured in the same run, all threads.
 *
 *   prefill  the last 512 rows of a prompt: 10^9 operations per second (2 per multiply-add of q k
 *            and of p v, those above the diagonal not counted) / fused multiply-adds on registers
 *   decode   one row: GB/s of keys and values as stored / GB/s of plain reads over as many bytes
 *
 * Shapes are those of one layer: query heads, KV heads, head size. Several layers take turns, so
 * that decoding reads from where a real model's cache would lie. Every figure is the best of at
 * most REPEATS, fewer where ENOUGH_SEC have passed, since a shared machine is only ever slower than
 * it can be; with one thread, processor time is what counts, so that others' work does not. usage:
 * bench_attention [ISA [THREADS]]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>
#include <immintrin.h>

#include "engine/cpu/cpu.h"
#include "tests/lib/cpu_case.h"

#define REPEATS     4u
#define ENOUGH_SEC  0.4 /* of repeating */
#define PROMPT_ROWS 512u
#define WORKING_SET ((size_t) 64 << 20)

struct shape {
    const char *name;
    uint32_t n_heads, n_kv_heads, key_dim, value_dim;
    bool shared;
};

static const struct shape shapes[] = {
    { "SmolLM2-135M 9/3x64", 9, 3, 64, 64, false },
    { "Qwen-1.5B 12/2x128", 12, 2, 128, 128, false },
    { "Llama-8B 32/8x128", 32, 8, 128, 128, false },
    { "V2-Lite MLA 16x576", 16, 1, 576, 512, true },
};

static const struct {
    const char *name;
    enum ds_kv_type type;
} types[] = { { "F32", DS_KV_F32 },
              { "F16", DS_KV_F16 },
              { "BF16", DS_KV_BF16 },
              { "Q8_0", DS_KV_Q8_0 },
              { "Q4_0", DS_KV_Q4_0 } };

static clockid_t time_source = CLOCK_MONOTONIC;

static double now(void)
{
    struct timespec time;

    (void) clock_gettime(time_source, &time);
    return (double) time.tv_sec + (double) time.tv_nsec * 1e-9;
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

#define FMA(set, to) "vfmadd231ps %%" #set "mm15, %%" #set "mm14, %%" #set "mm" #to "\n\t"
#define FMAS(set)                                                                                  \
    FMA(set, 0)                                                                                    \
    FMA(set, 1)                                                                                    \
    FMA(set, 2)                                                                                    \
    FMA(set, 3)                                                                                    \
    FMA(set, 4)                                                                                    \
    FMA(set, 5) FMA(set, 6) FMA(set, 7) FMA(set, 8) FMA(set, 9) FMA(set, 10) FMA(set, 11)
#define CLOBBERS                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

__attribute__((target("avx512f"))) static void multiply_wide(void *arg, uint32_t item,
                                                             unsigned thread)
{
    (void) arg;
    (void) item;
    (void) thread;
    __asm__ volatile("vzeroall" ::: CLOBBERS); /* a NaN or a denormal may take far longer */
    for (unsigned round = 0; round < 40000; round++)
        __asm__ volatile(FMAS(z)::: CLOBBERS);
}

__attribute__((target("avx2,fma"))) static void multiply_narrow(void *arg, uint32_t item,
                                                                unsigned thread)
{
    (void) arg;
    (void) item;
    (void) thread;
    __asm__ volatile("vzeroall" ::: CLOBBERS);
    for (unsigned round = 0; round < 80000; round++)
        __asm__ volatile(FMAS(y)::: CLOBBERS);
}

struct limits {
    double read; /* bytes per second */
    double fma;  /* operations per second, two each */
};

static void measure_limits(struct ds_pool *pool, struct limits *limits)
{
    struct ds_arena_piece piece;
    struct ds_arena *arena = NULL;
    struct reading reading = { .chunk = 256 << 10 };
    bool wide = __builtin_cpu_supports("avx512f");
    unsigned n = 4 * ds_pool_n_threads(pool);

    assert_int_equal(ds_arena_new(&arena), 0);
    assert_int_equal(ds_arena_take(arena, WORKING_SET + 4096, &piece), 0);
    memset(piece.data, 1, piece.size_bytes);
    reading.data = piece.data;
    for (unsigned i = 0; i < 2 * REPEATS; i++) {
        double start = now();
        double speed;

        ds_pool_run(pool, read_chunk, &reading, (uint32_t) (WORKING_SET / reading.chunk), 4);
        speed = (double) WORKING_SET / (now() - start);
        limits->read = speed > limits->read ? speed : limits->read;
        start = now();
        ds_pool_run(pool, wide ? multiply_wide : multiply_narrow, &reading, n, 1);
        speed = (double) n * 40000 * 12 * 32 / (now() - start);
        limits->fma = speed > limits->fma ? speed : limits->fma;
    }
    ds_arena_give_back(arena, &piece);
    ds_arena_free(arena);
}

/* --- attention --- */

struct subject {
    struct ds_backend *backend;
    const struct shape *shape;
    struct ds_kv *kv;
    struct ds_buffer *q, *out;
    uint32_t n_layers;
};

/* Writes all positions of all layers: random numbers, so that no softmax is trivial. */
static void fill(const struct subject *subject, uint32_t n_positions)
{
    const struct shape *shape = subject->shape;
    struct ds_backend *backend = subject->backend;
    struct ds_case_random random = { 1 };
    float *rows = ds_case_rows(&random, PROMPT_ROWS,
                               shape->n_kv_heads * (shape->key_dim + shape->value_dim), false);
    struct ds_buffer *k =
        ds_case_buffer(backend, rows, (size_t) PROMPT_ROWS * shape->n_kv_heads * shape->key_dim);
    struct ds_buffer *v =
        ds_case_buffer(backend, rows + (size_t) PROMPT_ROWS * shape->n_kv_heads * shape->key_dim,
                       (size_t) PROMPT_ROWS * shape->n_kv_heads * shape->value_dim);

    for (uint32_t first = 0; first < n_positions; first += PROMPT_ROWS) {
        uint32_t count = n_positions - first < PROMPT_ROWS ? n_positions - first : PROMPT_ROWS;
        struct ds_batch batch = ds_case_batch(1, &first, &count, n_positions / DS_KV_BLOCK + 1);

        for (uint32_t layer = 0; layer < subject->n_layers; layer++)
            assert_int_equal(backend->kv_write(backend, subject->kv, layer, k, v, &batch), 0);
        free((void *) batch.tokens);
    }
    backend->buffer_free(backend, k);
    backend->buffer_free(backend, v);
    free(rows);
}

/* Seconds of the attention of the last n_rows of n_positions, per layer, best of all */
static double best_attention(const struct subject *subject, uint32_t n_positions, uint32_t n_rows)
{
    struct ds_backend *backend = subject->backend;
    uint32_t first = n_positions - n_rows;
    struct ds_batch batch = ds_case_batch(1, &first, &n_rows, n_positions / DS_KV_BLOCK + 1);
    double best = 1e9, begin = now();

    for (unsigned i = 0; i < REPEATS && (i == 0 || now() - begin < ENOUGH_SEC); i++) {
        double start = now();
        double seconds;

        for (uint32_t layer = 0; layer < subject->n_layers; layer++)
            assert_int_equal(backend->attention(backend, subject->out, subject->q, subject->kv,
                                                layer, &batch, subject->shape->n_heads, 0.3f, 0),
                             0);
        seconds = (now() - start) / subject->n_layers;
        best = seconds < best ? seconds : best;
    }
    free((void *) batch.tokens);
    return best;
}

static struct subject subject_new(struct ds_backend *backend, const struct shape *shape,
                                  enum ds_kv_type type, uint32_t n_positions, uint32_t n_layers)
{
    struct subject subject = { .backend = backend, .shape = shape, .n_layers = n_layers };
    struct ds_case_random random = { 2 };
    uint32_t width = shape->n_heads * shape->key_dim;
    struct ds_kv_geometry geometry = { .n_layers = n_layers,
                                       .n_kv_heads = shape->n_kv_heads,
                                       .key_dim = shape->key_dim,
                                       .value_dim = shape->value_dim,
                                       .n_blocks = n_positions / DS_KV_BLOCK + 1,
                                       .type = type,
                                       .shared = shape->shared };
    float *q = ds_case_rows(&random, PROMPT_ROWS, width, false);

    assert_int_equal(backend->kv_new(backend, &geometry, &subject.kv), 0);
    subject.q = ds_case_buffer(backend, q, (size_t) PROMPT_ROWS * width);
    subject.out =
        ds_case_buffer(backend, NULL, (size_t) PROMPT_ROWS * shape->n_heads * shape->value_dim);
    free(q);
    fill(&subject, n_positions);
    return subject;
}

static void subject_deinit(struct subject *subject)
{
    subject->backend->buffer_free(subject->backend, subject->q);
    subject->backend->buffer_free(subject->backend, subject->out);
    subject->backend->kv_free(subject->backend, subject->kv);
}

static void bench_prefill(struct ds_backend *backend, const struct shape *shape,
                          enum ds_kv_type type, const struct limits *limits)
{
    static const uint32_t contexts[] = { 512, 4096 };

    printf("   prefill");
    for (unsigned i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        struct subject subject = subject_new(backend, shape, type, contexts[i], 1);
        double pairs = PROMPT_ROWS * (contexts[i] - (PROMPT_ROWS - 1) / 2.0);
        double operations = 2 * pairs * shape->n_heads * (shape->key_dim + shape->value_dim);
        double speed = operations / best_attention(&subject, contexts[i], PROMPT_ROWS);

        printf(" %5.1f = %2.0f %%", speed * 1e-9, speed / limits->fma * 100);
        subject_deinit(&subject);
    }
}

static void bench_decode(struct ds_backend *backend, const struct shape *shape,
                         enum ds_kv_type type, const struct limits *limits)
{
    struct ds_kv_geometry one = { .n_layers = 1,
                                  .n_kv_heads = shape->n_kv_heads,
                                  .key_dim = shape->key_dim,
                                  .value_dim = shape->value_dim,
                                  .n_blocks = 4096 / DS_KV_BLOCK,
                                  .type = type,
                                  .shared = shape->shared };
    size_t bytes = backend->kv_bytes(&one);
    struct subject subject =
        subject_new(backend, shape, type, 4096, (uint32_t) (WORKING_SET / bytes) + 1);
    double seconds = best_attention(&subject, 4096, 1), speed = (double) bytes / seconds;

    printf("   decode %6.1f us, %5.1f GB/s = %3.0f %%\n", seconds * 1e6, speed * 1e-9,
           speed / limits->read * 100);
    subject_deinit(&subject);
}

int main(int argc, char **argv)
{
    const char *isa = argc > 1 && *argv[1] ? argv[1] : NULL;
    struct ds_backend *backend =
        ds_case_backend(isa, argc > 2 ? (unsigned) strtoul(argv[2], NULL, 10) : 0);
    struct limits limits = { 0 };

    if (!backend)
        return 77;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        printf("no AVX2: the limits are not measured\n");
        return 77;
    }
    if (ds_pool_n_threads(ds_cpu(backend)->pool) == 1)
        time_source = CLOCK_PROCESS_CPUTIME_ID;
    measure_limits(ds_cpu(backend)->pool, &limits);
    printf("%s; reading %.1f GB/s, multiply-add %.1f Gop/s\n"
           "prefill: Gop/s at contexts 512, 4096; decode: context 4096\n",
           backend->describe(backend), limits.read * 1e-9, limits.fma * 1e-9);
    for (unsigned i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (unsigned j = 0; j < sizeof types / sizeof *types; j++) {
            printf("%-19s %-4s", shapes[i].name, types[j].name);
            bench_prefill(backend, &shapes[i], types[j].type, &limits);
            bench_decode(backend, &shapes[i], types[j].type, &limits);
        }
    backend->close(backend);
    return 0;
}
