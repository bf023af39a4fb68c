/* SPDX-License-Identifier: Apache-2.0 */
/* The operations that take rows one by one. */
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

    if (!table->tensor)
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
