/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/mman.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"

static uint32_t stride(uint32_t dim)
{
    return (dim + 15) / 16 * 16;
}

static size_t head_elements(const struct ds_kv_geometry *geometry)
{
    if (geometry->shared)
        return (size_t) DS_KV_BLOCK * stride(geometry->key_dim);
    return (size_t) DS_KV_BLOCK * (geometry->key_dim + stride(geometry->value_dim));
}

static size_t element_bytes(const struct ds_kv_geometry *geometry)
{
    return geometry->type == DS_KV_F32 ? 4 : 2;
}

static size_t main_bytes(const struct ds_kv_geometry *geometry)
{
    return head_elements(geometry) * element_bytes(geometry) * geometry->n_layers *
           geometry->n_kv_heads * geometry->n_blocks;
}

static size_t index_bytes(const struct ds_kv_geometry *geometry)
{
    return (size_t) DS_KV_BLOCK * geometry->index_dim * element_bytes(geometry) *
           geometry->n_layers * geometry->n_blocks;
}

size_t ds_cpu_kv_bytes(const struct ds_kv_geometry *geometry)
{
    return main_bytes(geometry) + index_bytes(geometry);
}

/* Lazily backed; NULL: no memory. */
static void *map(size_t bytes)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (data == MAP_FAILED)
        return NULL;
    (void) madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

int ds_cpu_kv_new(struct ds_backend *backend, const struct ds_kv_geometry *geometry,
                  struct ds_kv **ret_kv)
{
    size_t bytes = main_bytes(geometry);
    struct ds_kv *kv = calloc(1, sizeof *kv);

    if (!kv)
        return -ENOMEM;
    kv->geometry = *geometry;
    kv->key_stride = stride(geometry->key_dim);
    kv->value_stride = stride(geometry->value_dim);
    kv->head_elements = head_elements(geometry);
    kv->mapping_bytes = bytes ? bytes : 1;
    kv->index_bytes = index_bytes(geometry);
    kv->data = map(kv->mapping_bytes);
    if (kv->index_bytes)
        kv->index = map(kv->index_bytes);
    if (!kv->data || (kv->index_bytes && !kv->index)) {
        ds_cpu_kv_free(backend, kv);
        return -ENOMEM;
    }
    *ret_kv = kv;
    return 0;
}

void ds_cpu_kv_free(struct ds_backend *backend, struct ds_kv *kv)
{
    (void) backend;
    if (!kv)
        return;
    if (kv->data)
        (void) munmap(kv->data, kv->mapping_bytes);
    if (kv->index)
        (void) munmap(kv->index, kv->index_bytes);
    free(kv);
}

void *ds_kv_index(const struct ds_kv *kv, uint32_t layer, uint32_t block)
{
    const struct ds_kv_geometry *geometry = &kv->geometry;
    size_t index = (size_t) layer * geometry->n_blocks + block;

    return (char *) kv->index + index * DS_KV_BLOCK * geometry->index_dim * element_bytes(geometry);
}

void ds_kv_copy_slot(const struct ds_kv *to, uint32_t to_block, uint32_t to_slot,
                     const struct ds_kv *from, uint32_t layer, uint32_t from_block,
                     uint32_t from_slot)
{
    const struct ds_kv_geometry *g = &from->geometry;
    const size_t row = (size_t) from->key_stride * element_bytes(g);

    for (uint32_t head = 0; head < g->n_kv_heads; head++)
        memcpy((char *) ds_kv_head(to, 0, to_block, head) + to_slot * row,
               (const char *) ds_kv_head(from, layer, from_block, head) + from_slot * row, row);
}

void *ds_kv_head(const struct ds_kv *kv, uint32_t layer, uint32_t block, uint32_t head)
{
    const struct ds_kv_geometry *geometry = &kv->geometry;
    size_t index = ((size_t) layer * geometry->n_blocks + block) * geometry->n_kv_heads + head;

    return (char *) kv->data + index * kv->head_elements * element_bytes(geometry);
}

struct kv_write {
    const struct ds_kv *kv;
    uint32_t layer;
    const float *k, *v;
    const struct ds_batch *batch;
};

static void put_f32(float *at, uint32_t slot, const struct ds_kv *kv, const float *k,
                    const float *v)
{
    float *values = at + (size_t) DS_KV_BLOCK * kv->geometry.key_dim;

    if (kv->geometry.shared) {
        memcpy(at + (size_t) slot * kv->key_stride, k, kv->geometry.key_dim * sizeof *k);
        return;
    }
    for (uint32_t d = 0; d < kv->geometry.key_dim; d++)
        at[(size_t) d * DS_KV_BLOCK + slot] = k[d];
    memcpy(values + (size_t) slot * kv->value_stride, v, kv->geometry.value_dim * sizeof *v);
}

static void put_f16(uint16_t *at, uint32_t slot, const struct ds_kv *kv, const float *k,
                    const float *v)
{
    uint16_t *values = at + (size_t) DS_KV_BLOCK * kv->geometry.key_dim;

    if (kv->geometry.shared) {
        for (uint32_t d = 0; d < kv->geometry.key_dim; d++)
            at[(size_t) slot * kv->key_stride + d] = ds_f32_to_f16(k[d]);
        return;
    }
    for (uint32_t d = 0; d < kv->geometry.key_dim; d++)
        at[(size_t) d * DS_KV_BLOCK + slot] = ds_f32_to_f16(k[d]);
    for (uint32_t d = 0; d < kv->geometry.value_dim; d++)
        values[(size_t) slot * kv->value_stride + d] = ds_f32_to_f16(v[d]);
}

static void write_row(void *arg, uint32_t row, unsigned thread)
{
    const struct kv_write *write = arg;
    const struct ds_kv *kv = write->kv;
    const struct ds_kv_geometry *geometry = &kv->geometry;
    uint32_t block = ds_kv_block(write->batch, row, write->batch->positions[row] / DS_KV_BLOCK);
    uint32_t slot = write->batch->positions[row] % DS_KV_BLOCK;

    (void) thread;
    for (uint32_t head = 0; head < geometry->n_kv_heads; head++) {
        const float *k =
            write->k + ((size_t) row * geometry->n_kv_heads + head) * geometry->key_dim;
        const float *v =
            geometry->shared
                ? NULL
                : write->v + ((size_t) row * geometry->n_kv_heads + head) * geometry->value_dim;
        void *at = ds_kv_head(kv, write->layer, block, head);

        if (geometry->type == DS_KV_F16)
            put_f16(at, slot, kv, k, v);
        else
            put_f32(at, slot, kv, k, v);
    }
}

int ds_cpu_kv_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                    const struct ds_buffer *k, const struct ds_buffer *v,
                    const struct ds_batch *batch)
{
    struct kv_write write = { kv, layer, k->data, v ? v->data : NULL, batch };

    ds_pool_run(ds_cpu(backend)->pool, write_row, &write, batch->n_tokens, 16);
    return 0;
}

struct kv_read {
    const struct ds_kv *kv;
    uint32_t layer;
    float *out;
    const struct ds_batch *batch;
};

static void read_row(void *arg, uint32_t row, unsigned thread)
{
    const struct kv_read *read = arg;
    const struct ds_kv_geometry *geometry = &read->kv->geometry;
    uint32_t block = ds_kv_block(read->batch, row, read->batch->positions[row] / DS_KV_BLOCK);
    uint32_t slot = read->batch->positions[row] % DS_KV_BLOCK;
    float *out = read->out + (size_t) row * geometry->n_kv_heads * geometry->key_dim;

    (void) thread;
    for (uint32_t head = 0; head < geometry->n_kv_heads; head++, out += geometry->key_dim) {
        const void *at = ds_kv_head(read->kv, read->layer, block, head);

        for (uint32_t d = 0; d < geometry->key_dim; d++) {
            size_t i = geometry->shared ? (size_t) slot * read->kv->key_stride + d
                                        : (size_t) d * DS_KV_BLOCK + slot;

            out[d] = geometry->type == DS_KV_F16 ? ds_f16_to_f32(((const uint16_t *) at)[i])
                                                 : ((const float *) at)[i];
        }
    }
}

int ds_cpu_kv_read(struct ds_backend *backend, struct ds_buffer *out, const struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch)
{
    struct kv_read read = { kv, layer, out->data, batch };

    ds_pool_run(ds_cpu(backend)->pool, read_row, &read, batch->n_tokens, 16);
    return 0;
}
