/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/tiny_adapter.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "engine/format/folder.h"
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

static float *floats_of(const struct ds_tensor *tensor)
{
    uint64_t n = tensor->dims[0] * tensor->dims[1];
    float *values = malloc(n * sizeof *values);

    assert_non_null(values);
    ds_type_traits(tensor->type)->dequantise(tensor->data, values, n);
    return values;
}

/* --- as PEFT saves it --- */

struct safetensors {
    FILE *header, *data;
    size_t offset;
};

static void put_tensor(struct safetensors *out, const char *name, uint64_t rows, uint64_t columns,
                       const float *values)
{
    size_t size = rows * columns * sizeof *values;

    fprintf(out->header,
            "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%llu,%llu],\"data_offsets\":[%zu,%zu]}",
            out->offset ? "," : "", name, (unsigned long long) rows, (unsigned long long) columns,
            out->offset, out->offset + size);
    assert_int_equal(fwrite(values, 1, size, out->data), size);
    out->offset += size;
}

/* GGUF's rows of q and k back into the order they were trained in. */
static void straighten(float *b, uint64_t rank, uint64_t rows, uint32_t head_dim)
{
    float *old = malloc(rows * rank * sizeof *old);

    assert_non_null(old);
    memcpy(old, b, rows * rank * sizeof *old);
    for (uint64_t row = 0; row < rows; row++) {
        uint64_t head = row / head_dim * head_dim, i = row % head_dim / 2, odd = row % 2;

        memcpy(b + (head + odd * (head_dim / 2) + i) * rank, old + row * rank, rank * sizeof *b);
    }
    free(old);
}

/* {r, V}, a row for each token, as [r][V]. */
static float *transposed(const float *values, uint64_t rank, uint64_t n)
{
    float *out = malloc(rank * n * sizeof *out);

    assert_non_null(out);
    for (uint64_t i = 0; i < n; i++)
        for (uint64_t r = 0; r < rank; r++)
            out[r * n + i] = values[i * rank + r];
    return out;
}

static void put_pair(struct safetensors *out, const struct ds_tensor *base,
                     const struct ds_tensor *a, const struct ds_tensor *b, uint32_t head_dim)
{
    bool embedding = strcmp(base->name, "token_embd.weight") == 0;
    bool turned = head_dim && (strstr(base->name, "attn_q.w") || strstr(base->name, "attn_k.w"));
    float *va = floats_of(a), *vb = floats_of(b), *at = NULL;
    uint64_t rank = b->dims[0];
    char module[256], name[400];

    assert_non_null(ds_hf_origin(base->name, module));
    *strrchr(module, '.') = '\0';
    if (embedding)
        at = transposed(va, rank, a->dims[1]);
    if (turned)
        straighten(vb, rank, b->dims[1], head_dim);
    (void) snprintf(name, sizeof name, "base_model.model.%s.lora_%s", module,
                    embedding ? "embedding_A" : "A.weight");
    put_tensor(out, name, rank, embedding ? a->dims[1] : a->dims[0], embedding ? at : va);
    (void) snprintf(name, sizeof name, "base_model.model.%s.lora_%s", module,
                    embedding ? "embedding_B" : "B.weight");
    put_tensor(out, name, b->dims[1], rank, vb);
    free(va);
    free(vb);
    free(at);
}

/* Of a llama's heads; 0: its rows stand as they were trained. */
static uint32_t turned_head_dim(const struct ds_gguf *base)
{
    struct ds_bytes architecture = { "", 0 };
    uint64_t heads = 0, width = 0;

    assert_true(ds_gguf_string(ds_gguf_find(base, "general.architecture"), &architecture));
    if (architecture.size != 5 || memcmp(architecture.data, "llama", 5) != 0)
        return 0;
    assert_true(ds_gguf_u64(ds_gguf_find(base, "llama.attention.head_count"), 0, &heads));
    width = find(base, "blk.0.attn_q.weight")->dims[1];
    return (uint32_t) (width / heads);
}

int ds_tiny_peft_fd(int base_fd, const struct ds_tiny_adapter *options, const char *extra)
{
    int adapter_fd = ds_tiny_adapter_fd(base_fd, options), fd;
    char *header = NULL, *data = NULL, name[160];
    size_t header_size = 0, data_size = 0;
    struct ds_gguf base, adapter;
    struct safetensors out = { open_memstream(&header, &header_size),
                               open_memstream(&data, &data_size), 0 };
    uint64_t length;
    uint8_t *file;

    open_gguf(&base, base_fd);
    open_gguf(&adapter, adapter_fd);
    assert_true(out.header && out.data);
    fputs("{", out.header);
    for (uint32_t i = 0; i < base.n_tensors; i++) {
        const struct ds_tensor *tensor = &base.tensors[i].tensor, *a;

        (void) snprintf(name, sizeof name, "%s.lora_a", tensor->name);
        a = find(&adapter, name);
        name[strlen(name) - 1] = 'b';
        if (a)
            put_pair(&out, tensor, a, find(&adapter, name), turned_head_dim(&base));
    }
    if (extra)
        put_tensor(&out, extra, 1, 1, (const float[]){ 1.0f });
    fputs("}", out.header);
    (void) fclose(out.header);
    (void) fclose(out.data);
    length = header_size;
    file = malloc(sizeof length + header_size + data_size);
    assert_non_null(file);
    memcpy(file, &length, sizeof length);
    memcpy(file + sizeof length, header, header_size);
    memcpy(file + sizeof length + header_size, data, data_size);
    fd = ds_memfd_of(file, sizeof length + header_size + data_size);
    assert_true(fd >= 0);
    free(file);
    free(header);
    free(data);
    ds_gguf_deinit(&base);
    ds_gguf_deinit(&adapter);
    (void) close(adapter_fd);
    return fd;
}

/* --- merging --- */

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
