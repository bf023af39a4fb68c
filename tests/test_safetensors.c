/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a safetensors file says what is in it or is refused with the reason, and matrices in FP8,
 * GPTQ and AWQ form mean the numbers that their authors meant.
 * Method: headers wrong in one point each; matrices whose numbers are chosen first, by the formula
 * W = scale * (q - zero), and then packed here bit by bit, for every form; what is read back is
 * compared with the chosen numbers, and what a backend multiplies with is held within the rounding
 * that packed.h promises.
 */
#include "engine/format/safetensors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/backend.h"
#include "engine/format/packed.h"
#include "engine/format/quant.h"
#include "tests/lib/safetensors_writer.h"

/* --- headers --- */

static int open_raw(const char *header, size_t data_bytes, struct ds_error *error)
{
    struct ds_safetensors file;
    int fd = ds_st_memfd_raw(header, data_bytes);
    int r = ds_safetensors_init(&file, fd, "x.safetensors", error);

    (void) close(fd);
    ds_safetensors_deinit(&file);
    return r;
}

#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": [" #begin    \
    ", " #end "]}"

static void wrong_headers_are_refused_with_the_reason(void **state)
{
    static const struct {
        const char *header, *reason;
        size_t data_bytes;
    } cases[] = {
        { "{" T("a", "F32", "[2]", 0, 8) ", " T("b", "F32", "[1]", 4, 8) "}", "overlap", 8 },
        { "{" T("a", "F32", "[1]", 0, 4) ", " T("b", "F32", "[1]", 8, 12) "}", "hole", 12 },
        { "{" T("a", "F32", "[1]", 0, 4) "}", "belong to no tensor", 8 },
        { "{" T("a", "F32", "[2]", 0, 8) "}", "truncated", 4 },
        { "{" T("a", "F32", "[2]", 0, 4) "}", "takes 4 bytes", 4 },
        { "{" T("a", "F32", "[1]", 4, 0) "}", "data_offsets", 4 },
        { "{" T("a", "F32", "[-1]", 0, 4) "}", "impossible shape", 4 },
        { "{" T("a", "U8", "[4294967296, 4294967296, 4294967296]", 0, 4) "}", "impossible shape",
          4 },
        { "{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", "dimensions", 4 },
        { "{" T("a", "F32", "[1]", 0, 4) ", " T("a", "F32", "[1]", 4, 8) "}", "duplicate", 8 },
        { "{" T("", "F32", "[1]", 0, 4) "}", "name", 4 },
        { "{\"a\": 3}", "not described", 0 },
        { "{\"a\": {\"shape\": [1], \"data_offsets\": [0, 4]}}", "no dtype", 4 },
        { "[1]", "no JSON object", 0 },
        { "{\"a\": ", "JSON", 0 },
    };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ds_error error = { "" };

        assert_int_equal(open_raw(cases[i].header, cases[i].data_bytes, &error), -EBADMSG);
        if (!strstr(error.text, cases[i].reason) || strncmp(error.text, "x.safetensors: ", 15) != 0)
            fail_msg("%s: %s", cases[i].header, error.text);
    }
}

static void a_header_longer_than_the_file_is_refused(void **state)
{
    static const uint64_t lengths[] = { 0, 1, 100, 1u << 30, UINT64_MAX };

    (void) state;
    for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct ds_error error = { "" };
        struct ds_safetensors file;
        int fd = ds_bytes_memfd(&lengths[i], 8);

        assert_int_equal(ds_safetensors_init(&file, fd, "x.safetensors", &error), -EBADMSG);
        assert_non_null(strstr(error.text, "x.safetensors"));
        ds_safetensors_deinit(&file);
        (void) close(fd);
    }
}

static void tensors_are_found_by_name_with_their_bytes(void **state)
{
    static const float numbers[6] = { 1, 2, 3, 4, 5, 6 };
    static const uint8_t byte = 7;
    const struct ds_st_entry entries[] = {
        { "z.weight", "F32", { 2, 3 }, 2, numbers, sizeof numbers },
        { "none", "F32", { 0, 3 }, 2, NULL, 0 },
        { "a", "F4_NEW", { 2 }, 1, &byte, 1 }, /* of a type that is younger than this build */
    };
    struct ds_error error = { "" };
    struct ds_safetensors file;
    int fd = ds_st_memfd(entries, 3);
    const struct ds_safetensor *found;
    char shape[192];

    (void) state;
    assert_int_equal(ds_safetensors_init(&file, fd, "x", &error), 0);
    (void) close(fd);
    found = ds_safetensors_find(&file, "z.weight");
    assert_non_null(found);
    assert_int_equal(found->type, DS_SAFETENSOR_F32);
    assert_string_equal(ds_safetensor_shape(found, shape), "[2, 3]");
    assert_memory_equal(found->data, numbers, sizeof numbers);
    found = ds_safetensors_find(&file, "a");
    assert_non_null(found);
    assert_int_equal(found->type, DS_SAFETENSOR_OTHER);
    assert_int_equal(found->data[0], byte);
    assert_null(ds_safetensors_find(&file, "b"));
    ds_safetensors_deinit(&file);
}

/* --- packed matrices --- */

enum { K = 128, N = 48, GROUP = 32, N_GROUPS = K / GROUP };

struct matrix {
    unsigned bits;
    unsigned q[N][K], zero[N_GROUPS][N], group[K];
    uint16_t scale[N_GROUPS][N]; /* f16 */
    float w[N][K];               /* what it means */
    uint32_t words[K * N], zero_words[N_GROUPS * N], groups[K];
};

static uint32_t draw(uint32_t *seed)
{
    return *seed = *seed * 1664525u + 1013904223u, *seed >> 8;
}

/* zero < 0: drawn. mixed: neighbours belong to different groups. */
static void choose(struct matrix *m, unsigned bits, int zero, bool mixed)
{
    uint32_t seed = 5;

    memset(m, 0, sizeof *m);
    m->bits = bits;
    for (unsigned g = 0; g < N_GROUPS; g++)
        for (unsigned n = 0; n < N; n++) {
            m->scale[g][n] = ds_f32_to_f16(0.01f + (float) (draw(&seed) % 1000) * 1e-5f);
            m->zero[g][n] = zero < 0 ? 1 + draw(&seed) % 15 : (unsigned) zero;
        }
    for (unsigned k = 0; k < K; k++)
        m->groups[k] = m->group[k] = mixed ? k % N_GROUPS : k / GROUP;
    for (unsigned n = 0; n < N; n++)
        for (unsigned k = 0; k < K; k++) {
            unsigned g = m->group[k];

            m->q[n][k] = draw(&seed) % (1u << bits);
            m->w[n][k] =
                ds_f16_to_f32(m->scale[g][n]) * (float) ((int) m->q[n][k] - (int) m->zero[g][n]);
        }
}

/* Bits of value v from bit position `bit` on of a stream of words. */
static void put_bits(uint32_t *words, size_t word, unsigned bit, unsigned v)
{
    words[word] |= v << bit;
}

static struct ds_packed pack_gptq(struct matrix *m, bool less_one, bool with_groups)
{
    unsigned each = 32 / m->bits;

    for (unsigned n = 0; n < N; n++)
        for (unsigned k = 0; k < K; k++)
            put_bits(m->words, (size_t) (k / each) * N + n, m->bits * (k % each), m->q[n][k]);
    for (unsigned g = 0; g < N_GROUPS; g++)
        for (unsigned n = 0; n < N; n++)
            put_bits(m->zero_words, (size_t) g * (N / each) + n / each, m->bits * (n % each),
                     m->zero[g][n] - less_one);
    return (struct ds_packed){ .form = DS_PACKED_GPTQ,
                               .bits = m->bits,
                               .scale_type = DS_TYPE_F16,
                               .zeros_less_one = less_one,
                               .group_size = GROUP,
                               .n_groups = N_GROUPS,
                               .weights = (const uint8_t *) m->words,
                               .zeros = (const uint8_t *) m->zero_words,
                               .scales = (const uint8_t *) m->scale,
                               .groups = with_groups ? (const uint8_t *) m->groups : NULL };
}

static struct ds_packed pack_awq(struct matrix *m)
{
    static const unsigned order[8] = { 0, 2, 4, 6, 1, 3, 5, 7 };

    for (unsigned c = 0; c < N / 8; c++)
        for (unsigned i = 0; i < 8; i++) {
            unsigned n = 8 * c + order[i];

            for (unsigned k = 0; k < K; k++)
                put_bits(m->words, (size_t) k * (N / 8) + c, 4 * i, m->q[n][k]);
            for (unsigned g = 0; g < N_GROUPS; g++)
                put_bits(m->zero_words, (size_t) g * (N / 8) + c, 4 * i, m->zero[g][n]);
        }
    return (struct ds_packed){ .form = DS_PACKED_AWQ,
                               .bits = 4,
                               .scale_type = DS_TYPE_F16,
                               .group_size = GROUP,
                               .n_groups = N_GROUPS,
                               .weights = (const uint8_t *) m->words,
                               .zeros = (const uint8_t *) m->zero_words,
                               .scales = (const uint8_t *) m->scale };
}

/* out = W in on the CPU, against double arithmetic: within 2 % of the lengths' product, which is
 * what rounded activations cost at most; a wrong layout is off by its size. */
static void check_product(const struct ds_tensor *tensor, const float *w, uint32_t k, uint32_t n)
{
    struct ds_cpu_options options = { .n_threads = 1 };
    struct ds_backend *backend = NULL;
    struct ds_buffer *in, *out;
    struct ds_weight *weight = NULL;
    float *x = calloc(k, sizeof *x), *y = calloc(n, sizeof *y);
    double length = 0;
    uint32_t seed = 9;

    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    in = backend->buffer_new(backend, k);
    out = backend->buffer_new(backend, n);
    assert_true(in && out && x && y);
    for (uint32_t i = 0; i < k; i++) {
        x[i] = (float) (draw(&seed) % 2001) / 1000.0f - 1.0f;
        length += (double) x[i] * (double) x[i];
    }
    assert_int_equal(backend->write(backend, in, x, k), 0);
    assert_int_equal(backend->weight_new(backend, tensor, false, &weight), 0);
    assert_int_equal(
        backend->matmul(backend, &(struct ds_product){ .out = out, .weight = weight }, 1, in, 1),
        0);
    assert_int_equal(backend->read(backend, y, out, 0, n), 0);
    for (uint32_t r = 0; r < n; r++) {
        double sum = 0, row = 0;

        for (uint32_t i = 0; i < k; i++) {
            sum += (double) w[(size_t) r * k + i] * (double) x[i];
            row += (double) w[(size_t) r * k + i] * (double) w[(size_t) r * k + i];
        }
        assert_true(fabs((double) y[r] - sum) <= 0.02 * sqrt(row * length) / sqrt(k) * 4);
    }
    backend->weight_free(backend, weight);
    backend->buffer_free(backend, in);
    backend->buffer_free(backend, out);
    backend->close(backend);
    free(x);
    free(y);
}

/* As floats exactly; as blocks of the type within `share` of scale * 16. */
static void check_matrix(struct matrix *m, const struct ds_packed *packed, uint32_t type,
                         float share)
{
    struct ds_tensor tensor = {
        .name = "m", .n_dims = 2, .dims = { K, N, 1, 1 }, .packed = packed
    };
    float row[K], blocks_row[K];
    uint8_t blocks[DS_PACKED_ROWS * K * sizeof(float)];
    const uint8_t *got;
    uint64_t bad = 0, row_bytes;

    assert_int_equal(ds_packed_choose(packed, K, N, &tensor.type, &bad), 0);
    assert_int_equal(tensor.type, type);
    row_bytes = ds_type_row_bytes(type, K);
    for (unsigned n = 0; n < N; n++) {
        ds_tensor_row_floats(&tensor, n, row);
        got = ds_tensor_rows(&tensor, n / DS_PACKED_ROWS * DS_PACKED_ROWS, DS_PACKED_ROWS, blocks);
        ds_type_traits(type)->dequantise(got + n % DS_PACKED_ROWS * row_bytes, blocks_row, K);
        for (unsigned k = 0; k < K; k++) {
            float limit = share * 16 * ds_f16_to_f32(m->scale[m->group[k]][n]);

            assert_true(row[k] == m->w[n][k]);
            assert_true(fabsf(blocks_row[k] - m->w[n][k]) <= limit);
        }
    }
    check_product(&tensor, &m->w[0][0], K, N);
}

static void four_and_eight_bits_mean_what_their_authors_meant(void **state)
{
    struct matrix *m = malloc(sizeof *m);
    struct ds_packed packed;

    (void) state;
    assert_non_null(m);
    choose(m, 4, 8, false);
    packed = pack_gptq(m, true, true);
    check_matrix(m, &packed, DS_TYPE_Q4_0, 0);
    choose(m, 4, -1, false);
    packed = pack_gptq(m, true, false);
    check_matrix(m, &packed, DS_TYPE_Q4_1, 0x1p-11f);
    choose(m, 4, -1, false);
    packed = pack_gptq(m, false, true); /* gptq_v2 */
    check_matrix(m, &packed, DS_TYPE_Q4_1, 0x1p-11f);
    choose(m, 4, -1, true);
    packed = pack_gptq(m, true, true); /* act-order */
    check_matrix(m, &packed, DS_TYPE_Q8_0, 2.0f / 250);
    choose(m, 8, 128, false);
    packed = pack_gptq(m, true, true);
    check_matrix(m, &packed, DS_TYPE_Q8_0, 0);
    choose(m, 8, 120, true);
    packed = pack_gptq(m, false, true);
    check_matrix(m, &packed, DS_TYPE_F16, 16 * 0x1p-11f);
    choose(m, 4, -1, false);
    packed = pack_awq(m);
    check_matrix(m, &packed, DS_TYPE_Q4_1, 0x1p-11f);
    choose(m, 4, 8, false);
    packed = pack_awq(m);
    check_matrix(m, &packed, DS_TYPE_Q4_0, 0);
    free(m);
}

static void a_group_that_does_not_exist_is_refused(void **state)
{
    struct matrix *m = malloc(sizeof *m);
    struct ds_packed packed;
    uint64_t bad = 0;
    uint32_t type;

    (void) state;
    assert_non_null(m);
    choose(m, 4, 8, false);
    packed = pack_gptq(m, true, true);
    m->groups[77] = N_GROUPS;
    assert_int_equal(ds_packed_choose(&packed, K, N, &type, &bad), -EBADMSG);
    assert_int_equal(bad, 77);
    m->groups[77] = UINT32_MAX;
    assert_int_equal(ds_packed_choose(&packed, K, N, &type, &bad), -EBADMSG);
    free(m);
}

/* --- FP8 --- */

/* By the definition: 1 sign, 4 exponent (bias 7), 3 fraction bits; no infinity. */
static double e4m3(unsigned bits)
{
    double sign = bits & 128 ? -1 : 1;
    unsigned exponent = bits >> 3 & 15, fraction = bits & 7;

    if (exponent == 0)
        return sign * ldexp(fraction / 8.0, -6);
    return sign * ldexp(1 + fraction / 8.0, (int) exponent - 7);
}

static void every_code_of_fp8_is_its_number(void **state)
{
    (void) state;
    for (unsigned bits = 0; bits < 256; bits++) {
        float value = ds_f8_e4m3_to_f32((uint8_t) bits);

        if ((bits & 127) == 127)
            assert_true(isnan(value));
        else
            assert_true((double) value == e4m3(bits));
    }
    assert_true(ds_f8_e4m3_to_f32(0x7e) == 448.0f);
}

static void fp8_has_a_scale_for_each_block(void **state)
{
    enum { WIDE = 256, TALL = 160, ROWS = 128 };
    static uint8_t codes[TALL][WIDE];
    static float scales[2][2] = { { 0.5f, 0.001f }, { 3.0f, 0.02f } }, w[TALL][WIDE], row[WIDE];
    struct ds_packed packed = { .form = DS_PACKED_FP8,
                                .scale_type = DS_TYPE_F32,
                                .block_rows = ROWS,
                                .weights = &codes[0][0],
                                .scales = (const uint8_t *) scales };
    struct ds_tensor tensor = {
        .name = "m", .n_dims = 2, .dims = { WIDE, TALL, 1, 1 }, .packed = &packed
    };
    uint64_t bad = 0;
    uint32_t seed = 3;

    (void) state;
    for (unsigned n = 0; n < TALL; n++)
        for (unsigned k = 0; k < WIDE; k++) {
            codes[n][k] = (uint8_t) draw(&seed);
            if ((codes[n][k] & 127) == 127)
                codes[n][k] = 0;
            w[n][k] = (float) e4m3(codes[n][k]) * scales[n / ROWS][k / 128];
        }
    assert_int_equal(ds_packed_choose(&packed, WIDE, TALL, &tensor.type, &bad), 0);
    for (unsigned n = 0; n < TALL; n++) {
        ds_tensor_row_floats(&tensor, n, row);
        assert_memory_equal(row, w[n], sizeof row);
    }
    check_product(&tensor, &w[0][0], WIDE, TALL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_headers_are_refused_with_the_reason),
        cmocka_unit_test(a_header_longer_than_the_file_is_refused),
        cmocka_unit_test(tensors_are_found_by_name_with_their_bytes),
        cmocka_unit_test(four_and_eight_bits_mean_what_their_authors_meant),
        cmocka_unit_test(a_group_that_does_not_exist_is_refused),
        cmocka_unit_test(every_code_of_fp8_is_its_number),
        cmocka_unit_test(fp8_has_a_scale_for_each_block),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
