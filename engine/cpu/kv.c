/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The KV cache: one head of one block is a section of keys and one of values (cpu.h).
 *
 * Q8_0 and Q4_0 keep one scale (f16) for 32 elements of a row of one position. They turn keys and
 * values by a Hadamard matrix first, so that an outlier is spread over its neighbours; attention()
 * turns queries likewise, which leaves q k as it was, and turns its result back.
 */
#include <math.h>
#include <sys/mman.h>

#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"

static const struct {
    uint32_t bits;
    bool scaled;
} traits[] = {
    [DS_KV_F32] = { 32, false }, [DS_KV_F16] = { 16, false }, [DS_KV_BF16] = { 16, false },
    [DS_KV_Q8_0] = { 8, true },  [DS_KV_Q4_0] = { 4, true },
};

static struct ds_kv_section section(enum ds_kv_type type, uint32_t n_rows, uint32_t width,
                                    bool columns)
{
    size_t n = (size_t) n_rows * width;

    return (struct ds_kv_section){ .type = type,
                                   .n_rows = n_rows,
                                   .width = width,
                                   .columns = columns,
                                   .scales_at = n * traits[type].bits / 8,
                                   .size_bytes = n * traits[type].bits / 8 +
                                                 (traits[type].scaled ? n / 32 * 2 : 0) };
}

static uint32_t stride(uint32_t dim)
{
    return (dim + 15) / 16 * 16;
}

/* The largest power of two that divides dim; of a | b: that divides both */
static uint32_t rotation(uint32_t dim)
{
    return dim & -dim;
}

/* All but the memory; -EINVAL where the type does not fit the dimensions. */
static int lay_out(struct ds_kv *kv, const struct ds_kv_geometry *geometry)
{
    bool scaled =
        (unsigned) geometry->type < sizeof traits / sizeof *traits && traits[geometry->type].scaled;

    if ((unsigned) geometry->type >= sizeof traits / sizeof *traits || geometry->key_dim == 0 ||
        (geometry->shared && geometry->value_dim > geometry->key_dim))
        return -EINVAL;
    if (scaled && (geometry->key_dim % 32 || (!geometry->shared && geometry->value_dim % 32)))
        return -EINVAL;
    *kv = (struct ds_kv){ .geometry = *geometry,
                          .key_stride = stride(geometry->key_dim),
                          .value_stride = stride(geometry->value_dim) };
    kv->keys = geometry->shared ? section(geometry->type, DS_KV_BLOCK, kv->key_stride, false)
                                : section(geometry->type, geometry->key_dim, DS_KV_BLOCK, true);
    if (!geometry->shared)
        kv->values = section(geometry->type, DS_KV_BLOCK, kv->value_stride, false);
    if (scaled) {
        kv->key_rotation =
            rotation(geometry->key_dim | (geometry->shared ? geometry->value_dim : 0));
        kv->value_rotation = geometry->shared ? kv->key_rotation : rotation(geometry->value_dim);
    }
    kv->head_bytes = (kv->keys.size_bytes + kv->values.size_bytes + 63) / 64 * 64;
    return 0;
}

static size_t main_bytes(const struct ds_kv *kv)
{
    const struct ds_kv_geometry *geometry = &kv->geometry;

    return kv->head_bytes * geometry->n_layers * geometry->n_kv_heads * geometry->n_blocks;
}

/* Of the index keys of one block: float where all is, else f16 */
static size_t index_block_bytes(const struct ds_kv_geometry *geometry)
{
    return (size_t) DS_KV_BLOCK * geometry->index_dim * (geometry->type == DS_KV_F32 ? 4 : 2);
}

size_t ds_cpu_kv_bytes(const struct ds_kv_geometry *geometry)
{
    struct ds_kv kv;

    if (lay_out(&kv, geometry) < 0)
        return 0;
    return main_bytes(&kv) + index_block_bytes(geometry) * geometry->n_layers * geometry->n_blocks;
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
    struct ds_kv *kv = calloc(1, sizeof *kv);

    if (!kv)
        return -ENOMEM;
    if (lay_out(kv, geometry) < 0) {
        free(kv);
        return -EINVAL;
    }
    kv->mapping_bytes = main_bytes(kv) ? main_bytes(kv) : 1;
    kv->index_bytes = index_block_bytes(geometry) * geometry->n_layers * geometry->n_blocks;
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
    size_t index = (size_t) layer * kv->geometry.n_blocks + block;

    return (char *) kv->index + index * index_block_bytes(&kv->geometry);
}

void ds_kv_copy_slot(const struct ds_kv *to, uint32_t to_block, uint32_t to_slot,
                     const struct ds_kv *from, uint32_t layer, uint32_t from_block,
                     uint32_t from_slot)
{
    const struct ds_kv_section *section = &from->keys;
    const size_t row = section->scales_at / section->n_rows;
    const size_t scales = (section->size_bytes - section->scales_at) / section->n_rows;

    for (uint32_t head = 0; head < from->geometry.n_kv_heads; head++) {
        char *into = ds_kv_head(to, 0, to_block, head);
        const char *at = ds_kv_head(from, layer, from_block, head);

        memcpy(into + to_slot * row, at + from_slot * row, row);
        memcpy(into + section->scales_at + to_slot * scales,
               at + section->scales_at + from_slot * scales, scales);
    }
}

void *ds_kv_head(const struct ds_kv *kv, uint32_t layer, uint32_t block, uint32_t head)
{
    const struct ds_kv_geometry *geometry = &kv->geometry;
    size_t index = ((size_t) layer * geometry->n_blocks + block) * geometry->n_kv_heads + head;

    return (char *) kv->data + index * kv->head_bytes;
}

/* Sums and differences of pairs 1, 2, 4 ... apart, in place, over each n of the dim elements. */
void ds_kv_rotate(float *x, uint32_t dim, uint32_t n)
{
    float scale = 1.0f / sqrtf((float) n);

    for (uint32_t half = 1; half < n; half *= 2)
        for (uint32_t first = 0; first < dim; first += 2 * half)
            for (uint32_t i = first; i < first + half; i++) {
                float a = x[i], b = x[i + half];

                x[i] = a + b;
                x[i + half] = a - b;
            }
    for (uint32_t i = 0; i < dim; i++)
        x[i] *= scale;
}

/* --- writing --- */

/* Where the elements of one position lie: element i at first + i * step, and so in each of the
 * formats; the scale of elements 32 g .. at scales[first_scale + g * scale_step]. */
struct place {
    void *data;
    uint16_t *scales;
    size_t first, step, first_scale, scale_step;
};

static struct place place(const struct ds_kv_section *section, void *at, uint32_t slot)
{
    struct place place = { .data = at, .scales = (uint16_t *) ((char *) at + section->scales_at) };

    if (section->columns) {
        place.first = place.first_scale = slot;
        place.step = place.scale_step = section->width;
    } else {
        place.first = (size_t) slot * section->width;
        place.step = 1;
        place.first_scale = (size_t) slot * (section->width / 32);
        place.scale_step = 1;
    }
    return place;
}

static int round_nearest(float x) /* |x| < 2^22 */
{
    return (int) ((x + 0x1.8p23f) - 0x1.8p23f);
}

static int clamp(int x, int low, int high)
{
    return x < low ? low : x > high ? high : x;
}

/* The scale that is stored for 32 elements whose largest is divisor steps away from 0, and in
 * *ret_inverse what turns elements into steps. Where it is too large for the format, or not a
 * number, a NaN is stored: whoever reads the position must notice. */
static uint16_t choose_scale(float largest, float divisor, float *ret_inverse)
{
    uint16_t bits = ds_f32_to_f16(largest / divisor);
    float scale = ds_f16_to_f32(bits);

    *ret_inverse = 0;
    if (!(fabsf(scale) <= 65504.0f))
        return 0x7e00;
    if (scale != 0)
        *ret_inverse = 1.0f / scale;
    return bits;
}

/* Of 32 elements the one that is largest without its sign; NaN if there is one */
static float largest_of(const float *x)
{
    float largest = 0;

    for (unsigned i = 0; i < 32; i++)
        if (!(fabsf(x[i]) <= fabsf(largest)) && largest == largest)
            largest = x[i];
    return largest;
}

static void put_q8_0(const struct place *place, const float *x, uint32_t dim)
{
    int8_t *out = (int8_t *) place->data + place->first;

    for (uint32_t g = 0; g < dim / 32; g++, x += 32) {
        float inverse;

        place->scales[place->first_scale + g * place->scale_step] =
            choose_scale(fabsf(largest_of(x)), 127, &inverse);
        for (unsigned i = 0; i < 32; i++)
            out[(g * 32 + i) * place->step] =
                inverse != 0 ? (int8_t) clamp(round_nearest(x[i] * inverse), -127, 127) : 0;
    }
}

/* Elements i and i + 16 of a group share a byte: at i / 2 of the format's rows, be they rows of one
 * position or of one dimension. So a byte belongs to one position. */
static void put_q4_0(const struct place *place, const float *x, uint32_t dim)
{
    uint8_t *out = (uint8_t *) place->data + (place->step == 1 ? place->first / 2 : place->first);

    for (uint32_t g = 0; g < dim / 32; g++, x += 32) {
        float inverse;

        place->scales[place->first_scale + g * place->scale_step] =
            choose_scale(largest_of(x), -8, &inverse);
        for (unsigned i = 0; i < 16; i++) {
            int low = 8, high = 8;

            if (inverse != 0) {
                low = clamp(round_nearest(x[i] * inverse) + 8, 0, 15);
                high = clamp(round_nearest(x[i + 16] * inverse) + 8, 0, 15);
            }
            out[(g * 16 + i) * place->step] = (uint8_t) (low | high << 4);
        }
    }
}

static void put(const struct ds_kv_section *section, void *at, uint32_t slot, const float *x,
                uint32_t dim)
{
    struct place to = place(section, at, slot);
    uint16_t *halves = (uint16_t *) at + to.first;
    float *floats = (float *) at + to.first;

    switch (section->type) {
    case DS_KV_F32:
        for (uint32_t i = 0; i < dim; i++)
            floats[i * to.step] = x[i];
        return;
    case DS_KV_F16:
        for (uint32_t i = 0; i < dim; i++)
            halves[i * to.step] = ds_f32_to_f16(x[i]);
        return;
    case DS_KV_BF16:
        for (uint32_t i = 0; i < dim; i++)
            halves[i * to.step] = ds_f32_to_bf16(x[i]);
        return;
    case DS_KV_Q8_0:
        put_q8_0(&to, x, dim);
        return;
    case DS_KV_Q4_0:
        put_q4_0(&to, x, dim);
    }
}

struct kv_write {
    struct ds_cpu *cpu;
    const struct ds_kv *kv;
    uint32_t layer;
    const float *k, *v; /* v: NULL where shared */
    const struct ds_batch *batch;
};

/* x, turned where the type wants it; the copy lies in the thread's scratch. */
static const float *turned(const struct kv_write *write, unsigned thread, const float *x,
                           uint32_t dim, uint32_t n)
{
    float *copy = write->cpu->threads[thread].data;

    if (n == 0)
        return x;
    memcpy(copy, x, dim * sizeof *x);
    ds_kv_rotate(copy, dim, n);
    return copy;
}

static void write_row(void *arg, uint32_t row, unsigned thread)
{
    const struct kv_write *write = arg;
    const struct ds_kv *kv = write->kv;
    const struct ds_kv_geometry *geometry = &kv->geometry;
    uint32_t block = ds_kv_block(write->batch, row, write->batch->positions[row] / DS_KV_BLOCK);
    uint32_t slot = write->batch->positions[row] % DS_KV_BLOCK;

    for (uint32_t head = 0; head < geometry->n_kv_heads; head++) {
        size_t index = (size_t) row * geometry->n_kv_heads + head;
        char *at = ds_kv_head(kv, write->layer, block, head);

        put(&kv->keys, at, slot,
            turned(write, thread, write->k + index * geometry->key_dim, geometry->key_dim,
                   kv->key_rotation),
            geometry->key_dim);
        if (write->v)
            put(&kv->values, at + kv->keys.size_bytes, slot,
                turned(write, thread, write->v + index * geometry->value_dim, geometry->value_dim,
                       kv->value_rotation),
                geometry->value_dim);
    }
}

int ds_cpu_kv_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                    const struct ds_buffer *k, const struct ds_buffer *v,
                    const struct ds_batch *batch)
{
    struct ds_cpu *cpu = ds_cpu(backend);
    struct kv_write write = {
        cpu, kv, layer, k->data, kv->geometry.shared ? NULL : v->data, batch
    };

    if (kv->key_rotation)
        for (unsigned i = 0; i < ds_pool_n_threads(cpu->pool); i++)
            if (!ds_scratch_get(&cpu->threads[i],
                                (kv->key_stride + kv->value_stride) * sizeof(float)))
                return -ENOMEM;
    ds_pool_run(cpu->pool, write_row, &write, batch->n_tokens, 16);
    return 0;
}

/* --- reading --- */

static void get_scaled(const struct ds_kv_section *section, const struct place *from, float *out,
                       uint32_t dim)
{
    const uint8_t *bytes = (const uint8_t *) from->data + from->first;

    if (section->type == DS_KV_Q4_0 && from->step == 1)
        bytes -= from->first / 2;
    for (uint32_t i = 0; i < dim; i++) {
        uint32_t g = i / 32, half = i % 32 / 16;
        float scale = ds_f16_to_f32(from->scales[from->first_scale + g * from->scale_step]);

        if (section->type == DS_KV_Q8_0)
            out[i] = (float) (int8_t) bytes[i * from->step] * scale;
        else
            out[i] = (float) ((bytes[(g * 16 + i % 16) * from->step] >> 4 * half & 15) - 8) * scale;
    }
}

/* One position's elements, as they were before they were turned. */
static void get(const struct ds_kv_section *section, void *at, uint32_t slot, float *out,
                uint32_t dim, uint32_t turn)
{
    struct place from = place(section, at, slot);
    const uint16_t *halves = (const uint16_t *) at + from.first;
    const float *floats = (const float *) at + from.first;

    for (uint32_t i = 0; section->scales_at == section->size_bytes && i < dim; i++)
        out[i] = section->type == DS_KV_F32   ? floats[i * from.step]
                 : section->type == DS_KV_F16 ? ds_f16_to_f32(halves[i * from.step])
                                              : ds_bf16_to_f32(halves[i * from.step]);
    if (section->scales_at != section->size_bytes)
        get_scaled(section, &from, out, dim);
    if (turn)
        ds_kv_rotate(out, dim, turn);
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
    for (uint32_t head = 0; head < geometry->n_kv_heads; head++, out += geometry->key_dim)
        get(&read->kv->keys, ds_kv_head(read->kv, read->layer, block, head), slot, out,
            geometry->key_dim, read->kv->key_rotation);
}

int ds_cpu_kv_read(struct ds_backend *backend, struct ds_buffer *out, const struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch)
{
    struct kv_read read = { kv, layer, out->data, batch };

    ds_pool_run(ds_cpu(backend)->pool, read_row, &read, batch->n_tokens, 16);
    return 0;
}
