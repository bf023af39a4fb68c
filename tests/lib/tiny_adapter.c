/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/tiny_adapter.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "engine/format/quant.h"
#include "engine/serve/philox.h"

static void open_gguf(struct ds_gguf *gguf, int fd)
{
    struct ds_error error = { "" };

    if (ds_gguf_init(gguf, fd, "base", &error) != 0 || ds_gguf_map(gguf, &error) != 0)
        fail_msg("%s", error.text);
}

static const struct ds_tensor *find(const struct ds_gguf *gguf, const char *name)
{
    for (uint32_t i = 0; i < gguf->n_tensors; i++)
        if (strcmp(gguf->tensors[i].tensor.name, name) == 0)
            return &gguf->tensors[i].tensor;
    return NULL;
}

static bool wanted(const struct ds_gguf *base, const struct ds_tensor *tensor,
                   const struct ds_tiny_adapter *options)
{
    if (tensor->n_dims != 2 || (options->skip && strstr(tensor->name, options->skip)))
        return false;
    if (strncmp(tensor->name, "blk.", 4) == 0)
        return true;
    return options->embedding && find(base, "output.weight");
}

/* Uniform in -bound..bound. */
static float *random_floats(uint64_t seed, uint64_t n, double bound)
{
    float *values = malloc(n * sizeof *values);

    assert_non_null(values);
    for (uint64_t i = 0; i < n; i++)
        values[i] = (float) ((ds_philox_uniform(seed, i) * 2.0 - 1.0) * bound);
    return values;
}

static void write_half(struct ds_gguf_writer *writer, const char *base, char half, uint32_t type,
                       uint64_t ne0, uint64_t ne1, uint64_t seed, double bound)
{
    uint64_t dims[2] = { ne0, ne1 };
    float *values = random_floats(seed, ne0 * ne1, bound);
    char name[160];

    (void) snprintf(name, sizeof name, "%s.lora_%c", base, half);
    if (ds_type_row_bytes(type, ne0) == 0)
        type = DS_TYPE_F32;
    ds_gguf_writer_floats(writer, name, type, 2, dims, values);
    free(values);
}

void ds_tiny_adapter_write(struct ds_gguf_writer *writer, int base_fd,
                           const struct ds_tiny_adapter *options)
{
    struct ds_gguf base;
    struct ds_bytes architecture = { "", 0 };
    unsigned n = 0;

    open_gguf(&base, base_fd);
    assert_true(ds_gguf_string(ds_gguf_find(&base, "general.architecture"), &architecture));
    ds_gguf_writer_string(writer, "general.type", "adapter");
    if (options->architecture)
        ds_gguf_writer_string(writer, "general.architecture", options->architecture);
    else
        ds_gguf_writer_bytes(writer, "general.architecture", architecture);
    ds_gguf_writer_string(writer, "adapter.type", "lora");
    if (options->alpha != 0.0f)
        ds_gguf_writer_f32(writer, "adapter.lora.alpha", options->alpha);
    for (uint32_t i = 0; i < base.n_tensors; i++) {
        const struct ds_tensor *tensor = &base.tensors[i].tensor;
        uint64_t k = tensor->dims[0], rows = tensor->dims[1], seed = options->seed * 1000 + 2 * i;
        bool embedding = strcmp(tensor->name, "token_embd.weight") == 0;

        if (!wanted(&base, tensor, options) || n++ % (options->every ? options->every : 1) != 0)
            continue;
        if (embedding) {
            write_half(writer, tensor->name, 'a', options->type, options->rank, rows, seed, 0.5);
            write_half(writer, tensor->name, 'b', options->type, options->rank, k, seed + 1, 0.3);
            continue;
        }
        write_half(writer, tensor->name, 'a', options->type, k, options->rank, seed,
                   1.0 / sqrt((double) k));
        write_half(writer, tensor->name, 'b', options->type, options->rank, rows, seed + 1, 0.3);
    }
    ds_gguf_deinit(&base);
}

int ds_tiny_adapter_fd(int base_fd, const struct ds_tiny_adapter *options)
{
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    int fd;

    ds_tiny_adapter_write(writer, base_fd, options);
    fd = ds_gguf_writer_memfd(writer);
    assert_true(fd >= 0);
    (void) ds_gguf_writer_free(writer);
    return fd;
}

/* --- merging --- */

static float *floats_of(const struct ds_tensor *tensor)
{
    uint64_t n = tensor->dims[0] * tensor->dims[1];
    float *values = malloc(n * sizeof *values);

    assert_non_null(values);
    ds_type_traits(tensor->type)->dequantise(tensor->data, values, n);
    return values;
}

static void merge_pair(float *weight, const struct ds_tensor *base, const struct ds_tensor *a,
                       const struct ds_tensor *b, double scale)
{
    bool embedding = strcmp(base->name, "token_embd.weight") == 0;
    uint64_t k = base->dims[0], n = base->dims[1], rank = b->dims[0];
    float *va = floats_of(a), *vb = floats_of(b);

    for (uint64_t row = 0; row < n; row++) {
        for (uint64_t column = 0; column < k; column++) {
            double sum = 0.0;

            for (uint64_t r = 0; r < rank; r++)
                sum += embedding ? (double) vb[column * rank + r] * (double) va[row * rank + r]
                                 : (double) vb[row * rank + r] * (double) va[r * k + column];
            weight[row * k + column] += (float) (scale * sum);
        }
    }
    free(va);
    free(vb);
}

int ds_tiny_adapter_merge(int base_fd, int adapter_fd, float scale)
{
    struct ds_gguf base, adapter;
    uint8_t *copy;
    double alpha = 0.0;
    int fd;

    open_gguf(&base, base_fd);
    open_gguf(&adapter, adapter_fd);
    if (ds_gguf_find(&adapter, "adapter.lora.alpha"))
        assert_true(ds_gguf_f64(ds_gguf_find(&adapter, "adapter.lora.alpha"), 0, &alpha));
    copy = malloc(base.file_bytes);
    assert_non_null(copy);
    memcpy(copy, base.mapping, base.file_bytes);
    for (uint32_t i = 0; i < base.n_tensors; i++) {
        const struct ds_tensor *tensor = &base.tensors[i].tensor, *a, *b;
        char name[160];

        (void) snprintf(name, sizeof name, "%s.lora_a", tensor->name);
        a = find(&adapter, name);
        name[strlen(name) - 1] = 'b';
        b = find(&adapter, name);
        if (!a || !b)
            continue;
        assert_int_equal(tensor->type, DS_TYPE_F32);
        merge_pair((float *) (copy + ((const uint8_t *) tensor->data - (uint8_t *) base.mapping)),
                   tensor, a, b,
                   (double) scale * (alpha != 0.0 ? alpha / (double) b->dims[0] : 1.0));
    }
    fd = ds_memfd_of(copy, base.file_bytes);
    assert_true(fd >= 0);
    free(copy);
    ds_gguf_deinit(&base);
    ds_gguf_deinit(&adapter);
    return fd;
}
