/* SPDX-License-Identifier: Apache-2.0 */
/* The operations that take rows one by one. */
#include <math.h>

#include "engine/cpu/cpu.h"

/* Rows a thread takes at a time, so that it has about this many floats to work on. */
#define GRAIN_FLOATS 16384u

struct rows {
    struct ds_cpu *cpu;
    float *out;
    const float *in, *other;
    const struct ds_weight *table;
    const uint32_t *numbers;
    uint32_t n, width;
    float epsilon;
};

static void run_rows(struct rows *rows, ds_pool_item item)
{
    uint32_t grain = rows->width ? GRAIN_FLOATS / rows->width : 0;

    ds_pool_run(rows->cpu->pool, item, rows, rows->n, grain);
}

static void embed_row(void *arg, uint32_t row, unsigned thread)
{
    const struct rows *rows = arg;

    (void) thread;
    ds_weight_row(rows->table, rows->numbers[row], rows->out + (size_t) row * rows->width);
}

int ds_cpu_embed(struct ds_backend *backend, struct ds_buffer *out, const struct ds_weight *table,
                 const uint32_t *tokens, uint32_t n)
{
    struct rows rows = { .cpu = ds_cpu(backend),
                         .out = out->data,
                         .table = table,
                         .numbers = tokens,
                         .n = n,
                         .width = table->k };

    if (!table->gather)
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= table->n)
            return -EINVAL;
    run_rows(&rows, embed_row);
    return 0;
}

static void rms_norm_row(void *arg, uint32_t row, unsigned thread)
{
    const struct rows *rows = arg;
    size_t at = (size_t) row * rows->width;

    (void) thread;
    rows->cpu->kernels->rms_norm(rows->out + at, rows->in + at, rows->other, rows->width,
                                 rows->epsilon);
}

int ds_cpu_rms_norm(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const struct ds_buffer *gamma, uint32_t n, uint32_t width, float epsilon)
{
    struct rows rows = { .cpu = ds_cpu(backend),
                         .out = out->data,
                         .in = in->data,
                         .other = gamma->data,
                         .n = n,
                         .width = width,
                         .epsilon = epsilon };

    run_rows(&rows, rms_norm_row);
    return 0;
}

struct layer_norm {
    float *out;
    const float *in, *gamma, *beta;
    uint32_t width;
    float epsilon;
};

static void layer_norm_row(void *arg, uint32_t row, unsigned thread)
{
    const struct layer_norm *norm = arg;
    const float *in = norm->in + (size_t) row * norm->width;
    float *out = norm->out + (size_t) row * norm->width;
    double mean = 0, squares = 0, scale;

    (void) thread;
    for (uint32_t i = 0; i < norm->width; i++)
        mean += (double) in[i];
    mean /= norm->width;
    for (uint32_t i = 0; i < norm->width; i++)
        squares += ((double) in[i] - mean) * ((double) in[i] - mean);
    scale = 1.0 / sqrt(squares / norm->width + (double) norm->epsilon);
    for (uint32_t i = 0; i < norm->width; i++)
        out[i] = (float) (((double) in[i] - mean) * scale) * norm->gamma[i] + norm->beta[i];
}

int ds_cpu_layer_norm(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_buffer *gamma, const struct ds_buffer *beta, uint32_t n,
                      uint32_t width, float epsilon)
{
    struct layer_norm norm = { out->data, in->data, gamma->data, beta->data, width, epsilon };

    ds_pool_run(ds_cpu(backend)->pool, layer_norm_row, &norm, n, width ? GRAIN_FLOATS / width : 0);
    return 0;
}

static void silu_mul_row(void *arg, uint32_t row, unsigned thread)
{
    const struct rows *rows = arg;
    size_t at = (size_t) row * rows->width;

    (void) thread;
    rows->cpu->kernels->silu_mul(rows->out + at, rows->in + at, rows->other + at, rows->width);
}

int ds_cpu_silu_mul(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *gate,
                    const struct ds_buffer *up, uint32_t n, uint32_t width)
{
    struct rows rows = { .cpu = ds_cpu(backend),
                         .out = out->data,
                         .in = gate->data,
                         .other = up->data,
                         .n = n,
                         .width = width };

    run_rows(&rows, silu_mul_row);
    return 0;
}

int ds_cpu_gather(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                  const uint32_t *rows, uint32_t n, uint32_t width)
{
    (void) backend;
    for (uint32_t i = 0; i < n; i++)
        memmove(out->data + (size_t) i * width, in->data + (size_t) rows[i] * width,
                width * sizeof *in->data);
    return 0;
}

static void add_row(void *arg, uint32_t row, unsigned thread)
{
    const struct rows *rows = arg;
    const float *in = rows->in + (size_t) row * rows->width;
    float *out = rows->out + (size_t) rows->numbers[row] * rows->width;
    float scale = rows->other[row];

    (void) thread;
    for (uint32_t i = 0; i < rows->width; i++)
        out[i] += scale * in[i];
}

int ds_cpu_add_rows(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const uint32_t *rows, const float *scales, uint32_t n, uint32_t width)
{
    struct rows work = { .cpu = ds_cpu(backend),
                         .out = out->data,
                         .in = in->data,
                         .other = scales,
                         .numbers = rows,
                         .n = n,
                         .width = width };

    run_rows(&work, add_row);
    return 0;
}

struct copy {
    struct ds_slice out, in;
    uint32_t n_heads, width;
};

static void copy_row(void *arg, uint32_t row, unsigned thread)
{
    const struct copy *copy = arg;

    (void) thread;
    for (uint32_t head = 0; head < copy->n_heads; head++)
        memcpy(ds_slice_at(&copy->out, row, head), ds_slice_at(&copy->in, row, head),
               copy->width * sizeof(float));
}

int ds_cpu_copy(struct ds_backend *backend, const struct ds_slice *out, const struct ds_slice *in,
                uint32_t n, uint32_t n_heads, uint32_t width)
{
    struct copy copy = { *out, *in, n_heads, width };
    uint32_t floats = n_heads * width;

    ds_pool_run(ds_cpu(backend)->pool, copy_row, &copy, n, floats ? GRAIN_FLOATS / floats : 0);
    return 0;
}
