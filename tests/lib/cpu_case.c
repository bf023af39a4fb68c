/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/cpu_case.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "engine/format/quant.h"

const uint32_t ds_case_types[] = { DS_TYPE_F32,     DS_TYPE_F16,    DS_TYPE_BF16,  DS_TYPE_Q8_0,
                                   DS_TYPE_Q4_0,    DS_TYPE_Q4_1,   DS_TYPE_Q5_0,  DS_TYPE_Q5_1,
                                   DS_TYPE_IQ4_NL,  DS_TYPE_MXFP4,  DS_TYPE_Q2_K,  DS_TYPE_Q3_K,
                                   DS_TYPE_Q4_K,    DS_TYPE_Q5_K,   DS_TYPE_Q6_K,  DS_TYPE_IQ4_XS,
                                   DS_TYPE_TQ1_0,   DS_TYPE_TQ2_0,  DS_TYPE_IQ1_S, DS_TYPE_IQ1_M,
                                   DS_TYPE_IQ2_XXS, DS_TYPE_IQ2_XS, DS_TYPE_IQ2_S, DS_TYPE_IQ3_XXS,
                                   DS_TYPE_IQ3_S,   DS_TYPE_F8,     UINT32_MAX };

uint32_t ds_case_u32(struct ds_case_random *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15u; /* splitmix64 */

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t) ((z ^ z >> 31) >> 32);
}

uint32_t ds_case_below(struct ds_case_random *random, uint32_t n)
{
    return ds_case_u32(random) % n;
}

float ds_case_float(struct ds_case_random *random)
{
    return (float) (int32_t) ds_case_u32(random) * 0x1p-31f;
}

float *ds_case_rows(struct ds_case_random *random, uint32_t n, uint32_t width, bool outliers)
{
    float *rows = malloc(((size_t) n * width + 1) * sizeof *rows);

    assert_non_null(rows);
    for (size_t i = 0; i < (size_t) n * width; i++) {
        rows[i] = ds_case_float(random);
        if (outliers && (i % width % 97 == 5 || ds_case_below(random, 300) == 0))
            rows[i] *= 500;
    }
    return rows;
}

uint32_t ds_case_block(uint32_t type)
{
    return ds_type_traits(type)->block_elements;
}

void ds_case_fill(struct ds_case_random *random, uint32_t type, uint16_t d, void *blocks, size_t n)
{
    const size_t size = ds_type_traits(type)->block_bytes;
    const unsigned at = type == DS_TYPE_Q2_K    ? 80
                        : type == DS_TYPE_Q3_K  ? 108
                        : type == DS_TYPE_Q6_K  ? 208
                        : type == DS_TYPE_TQ1_0 ? 52
                        : type == DS_TYPE_TQ2_0 ? 64
                                                : 0;
    const bool two = type == DS_TYPE_Q4_1 || type == DS_TYPE_Q5_1 || type == DS_TYPE_Q2_K ||
                     type == DS_TYPE_Q4_K || type == DS_TYPE_Q5_K;
    uint8_t *block = blocks;

    for (size_t i = 0; i < n; i++, block += size) {
        for (size_t k = 0; k < size && random; k++)
            block[k] = (uint8_t) ds_case_u32(random);
        if (type == DS_TYPE_MXFP4) {
            block[0] = (uint8_t) (128 + (d >> 10) - 15);
            continue;
        }
        if (type == DS_TYPE_F8) {
            float scale = ds_f16_to_f32(d);

            memcpy(block, &scale, sizeof scale);
            for (size_t k = sizeof scale; k < size; k++)
                block[k] ^= (block[k] & 127) == 127; /* no NaN */
            continue;
        }
        if (type == DS_TYPE_IQ1_M) { /* in parts, four bits each */
            for (unsigned part = 0; part < 4; part++)
                block[49 + 2 * part] =
                    (uint8_t) ((block[49 + 2 * part] & 15) | (d >> 4 * part & 15) << 4);
            continue;
        }
        memcpy(block + at, &d, 2);
        if (two)
            memcpy(block + at + 2, &d, 2);
    }
}

struct ds_case_matrix ds_case_matrix(struct ds_case_random *random, uint32_t type, uint32_t k,
                                     uint32_t n)
{
    size_t n_elements = (size_t) k * n;
    struct ds_case_matrix matrix = {
        .tensor = { .name = "case", .type = type, .n_dims = 2, .dims = { k, n, 1, 1 } }
    };

    matrix.tensor.size_bytes = ds_type_row_bytes(type, k) * n;
    matrix.data = malloc(matrix.tensor.size_bytes + 2);
    matrix.tensor.data = (char *) matrix.data + 2; /* files align no better, tests no more */
    matrix.floats = ds_case_rows(random, n, k, false);
    assert_non_null(matrix.data);
    for (size_t i = 0; i < n_elements; i++)
        matrix.floats[i] += 0.2f; /* so that offsets and minima matter */
    if (type == DS_TYPE_F32)
        matrix.tensor.data = matrix.data;
    if (ds_quantise(type, matrix.floats, (void *) matrix.tensor.data, n_elements) < 0)
        ds_case_fill(random, type, 0x2400, (void *) matrix.tensor.data,
                     n_elements / ds_case_block(type)); /* 1/64 */
    ds_type_traits(type)->dequantise(matrix.tensor.data, matrix.floats, n_elements);
    return matrix;
}

void ds_case_matrix_deinit(struct ds_case_matrix *matrix)
{
    free(matrix->data);
    free(matrix->floats);
}

struct ds_backend *ds_case_backend(const char *isa, unsigned n_threads)
{
    struct ds_cpu_options options = { .isa = isa, .n_threads = n_threads };
    struct ds_backend *backend = NULL;
    int r = ds_backend_cpu(&backend, &options);

    if (r == -ENOTSUP)
        printf("skip: no %s on this machine: its kernels are not checked\n", isa);
    else
        assert_int_equal(r, 0);
    return backend;
}

struct ds_buffer *ds_case_buffer(struct ds_backend *backend, const float *floats, size_t n)
{
    struct ds_buffer *buffer = backend->buffer_new(backend, n);

    assert_non_null(buffer);
    if (floats)
        assert_int_equal(backend->write(backend, buffer, floats, n), 0);
    return buffer;
}

float *ds_case_read(struct ds_backend *backend, const struct ds_buffer *buffer, size_t n)
{
    float *floats = malloc((n + 1) * sizeof *floats);

    assert_non_null(floats);
    assert_int_equal(backend->read(backend, floats, buffer, 0, n), 0);
    return floats;
}

struct ds_batch ds_case_batch(uint32_t n_sequences, const uint32_t *first, const uint32_t *count,
                              uint32_t blocks_max)
{
    uint32_t n = 0, *memory, *positions, *sequences, *tables;

    for (uint32_t i = 0; i < n_sequences; i++)
        n += count[i];
    memory = calloc(3 * (size_t) n + (size_t) n_sequences * blocks_max + 1, sizeof *memory);
    assert_non_null(memory);
    positions = memory + n;
    sequences = positions + n;
    tables = sequences + n;
    n = 0;
    for (uint32_t i = 0; i < n_sequences; i++)
        for (uint32_t j = 0; j < count[i]; j++, n++) {
            positions[n] = first[i] + j;
            sequences[n] = i;
        }
    /* Backwards, and the sequences' blocks in between each other's. */
    for (uint32_t i = 0; i < n_sequences; i++)
        for (uint32_t j = 0; j < blocks_max; j++)
            tables[i * blocks_max + j] = (blocks_max - 1 - j) * n_sequences + i;
    return (struct ds_batch){ .n_tokens = n,
                              .n_sequences = n_sequences,
                              .blocks_max = blocks_max,
                              .tokens = memory,
                              .positions = positions,
                              .sequences = sequences,
                              .block_tables = tables };
}
