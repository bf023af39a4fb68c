/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this machine can do at best, measured with all threads of the pool: plain reading, and the
 * instruction that the kernels in use spend their time with.
 *
 * Every figure is the best of a few rounds, since a shared machine is only ever slower than it can
 * be.
 */
#include <immintrin.h>

#include "engine/cpu/arena.h"
#include "engine/cpu/cpu.h"

/* Far beyond any second-level cache, and what a server's third level seldom gives one guest. */
#define READ_BYTES ((size_t) 128 << 20)
#define READ_CHUNK ((size_t) 256 << 10)
#define ROUNDS     6u
#define SPINS      20000u /* of one item of a peak loop: about a millisecond */

struct reading {
    const char *data;
    _Atomic uint64_t sink;
};

__attribute__((target("avx2"))) static uint64_t read_avx2(const char *at)
{
    __m256i a = _mm256_setzero_si256(), b = a;
    uint64_t sums[4];

    for (size_t i = 0; i < READ_CHUNK; i += 64) {
        _mm_prefetch(at + i + 2048, _MM_HINT_T0);
        a = _mm256_add_epi64(a, _mm256_load_si256((const __m256i *) (at + i)));
        b = _mm256_add_epi64(b, _mm256_load_si256((const __m256i *) (at + i + 32)));
    }
    _mm256_storeu_si256((__m256i *) sums, _mm256_add_epi64(a, b));
    return sums[0] + sums[1] + sums[2] + sums[3];
}

static uint64_t read_portable(const char *at)
{
    const uint64_t *words = (const uint64_t *) at;
    uint64_t sum = 0;

    for (size_t i = 0; i < READ_CHUNK / sizeof *words; i++)
        sum += words[i];
    return sum;
}

static void read_item(void *arg, uint32_t item, unsigned thread)
{
    struct reading *reading = arg;
    const char *at = reading->data + item * READ_CHUNK;

    (void) thread;
    reading->sink += __builtin_cpu_supports("avx2") ? read_avx2(at) : read_portable(at);
}

/* Chains that depend on nothing but themselves, in registers named here: an array of them would be
 * kept in memory between the rounds. */
#define SIXTEEN(of)                                                                                \
    of(0) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10) of(11) of(12) of(13) of(14) \
        of(15)
#define TWELVE(of) of(0) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10) of(11)
#define CLOBBERED                                                                                  \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

#define VPDPBUSD(to)   "vpdpbusd %%zmm30, %%zmm31, %%zmm" #to "\n\t"
#define VFMADD_512(to) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #to "\n\t"
#define VFMADD_256(to) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #to "\n\t"
#define VPMADDUBSW(to)                                                                             \
    "vpmaddubsw %%ymm14, %%ymm15, %%ymm12\n\t"                                                     \
    "vpmaddwd %%ymm12, %%ymm14, %%ymm13\n\t"                                                       \
    "vpaddd %%ymm13, %%ymm" #to ", %%ymm" #to "\n\t"

/* From zeros: what was left in the registers may be denormal floats, which some processors multiply
 * a hundred times slower. */
#define CLEAR_256 __asm__ volatile("vzeroall" ::: CLOBBERED)
#define CLEAR_512                                                                                  \
    CLEAR_256;                                                                                     \
    __asm__ volatile("vpxord %%zmm30, %%zmm30, %%zmm30\n\t"                                        \
                     "vpxord %%zmm31, %%zmm31, %%zmm31" ::                                         \
                         : "xmm30", "xmm31")

#define PEAK(name, isa, clear, loop)                                                               \
    __attribute__((target(isa))) static void name(void *arg, uint32_t item, unsigned thread)       \
    {                                                                                              \
        (void) arg;                                                                                \
        (void) item;                                                                               \
        (void) thread;                                                                             \
        clear;                                                                                     \
        for (unsigned i = 0; i < SPINS; i++)                                                       \
            __asm__ volatile(loop ::: CLOBBERED);                                                  \
    }

/* NOLINTBEGIN: assembly */
PEAK(spin_vpdpbusd, "avx512f,avx512vnni", CLEAR_512, SIXTEEN(VPDPBUSD))
PEAK(spin_fma_512, "avx512f", CLEAR_512, SIXTEEN(VFMADD_512))
PEAK(spin_vpmaddubsw, "avx2", CLEAR_256, TWELVE(VPMADDUBSW))
PEAK(spin_fma_256, "avx2,fma", CLEAR_256, TWELVE(VFMADD_256))
/* NOLINTEND */

struct peak {
    void (*spin)(void *arg, uint32_t item, unsigned thread);
    unsigned ops; /* per spin */
    const char *instruction;
};

static double seconds_since(uint64_t start)
{
    return (double) (ds_now_nsec() - start) * 1e-9;
}

static double measure_peak(struct ds_pool *pool, const struct peak *peak)
{
    unsigned n_items = 2 * ds_pool_n_threads(pool);
    double best = 0.0;

    for (unsigned i = 0; i < ROUNDS && peak->spin; i++) {
        uint64_t start = ds_now_nsec();
        double speed;

        ds_pool_run(pool, peak->spin, NULL, n_items, 1);
        speed = (double) n_items * SPINS * peak->ops / seconds_since(start);
        best = speed > best ? speed : best;
    }
    return best;
}

static int measure_reading(struct ds_cpu *cpu, double *ret_speed)
{
    struct ds_arena_piece piece;
    struct reading reading = { 0 };
    double best = 0.0;
    int r;

    r = ds_arena_take(cpu->arena, READ_BYTES + 4096, &piece); /* room for the prefetch */
    if (r < 0)
        return r;
    memset(piece.data, 1, piece.size_bytes);
    reading.data = piece.data;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t start = ds_now_nsec();
        double speed;

        ds_pool_run(cpu->pool, read_item, &reading, (uint32_t) (READ_BYTES / READ_CHUNK), 4);
        speed = (double) READ_BYTES / seconds_since(start);
        best = speed > best ? speed : best;
    }
    ds_arena_give_back(cpu->arena, &piece);
    *ret_speed = best;
    return 0;
}

int ds_cpu_limits(struct ds_backend *backend, struct ds_limits *ret_limits)
{
    /* 16 chains of 16 lanes of 4 products; 12 of 8 lanes of 4; FMA: 16 or 8 lanes; 2 ops each */
    static const struct peak int8_512 = { spin_vpdpbusd, 16 * 16 * 4 * 2, "VPDPBUSD" };
    static const struct peak f32_512 = { spin_fma_512, 16 * 16 * 2, "VFMADD231PS (512)" };
    static const struct peak int8_256 = { spin_vpmaddubsw, 12 * 8 * 4 * 2, "VPMADDUBSW" };
    static const struct peak f32_256 = { spin_fma_256, 12 * 8 * 2, "VFMADD231PS (256)" };
    static const struct peak none = { .instruction = "" };
    struct ds_cpu *cpu = ds_cpu(backend);
    /* with AMX too, most types' kernels use VPDPBUSD: shares stay comparable */
    bool wide = cpu->kernels == &ds_kernels_avx512 || cpu->kernels == &ds_kernels_amx;
    bool any = wide || cpu->kernels == &ds_kernels_avx2;
    const struct peak *int8 = wide ? &int8_512 : any ? &int8_256 : &none;
    const struct peak *f32 = wide ? &f32_512 : any ? &f32_256 : &none;

    *ret_limits = (struct ds_limits){
        .int8_ops = measure_peak(cpu->pool, int8),
        .f32_ops = measure_peak(cpu->pool, f32),
        .int8_instruction = int8->instruction,
        .f32_instruction = f32->instruction,
    };
    return measure_reading(cpu, &ret_limits->read_bytes);
}
