/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/backend.h"

#include <sys/mman.h>

#include "engine/cpu/cpu.h"

/* Fresh pages: zeroed, not there until touched, and huge where the system likes: rows of a product
 * are stored far apart, each in a page of its own. */
static struct ds_buffer *buffer_new(struct ds_backend *backend, size_t n_floats)
{
    struct ds_buffer *buffer = calloc(1, sizeof *buffer);

    (void) backend;
    if (!buffer || n_floats > SIZE_MAX / 8)
        goto fail;
    buffer->n_floats = n_floats;
    buffer->mapping_bytes = n_floats * sizeof(float) + 1;
    buffer->data = mmap(NULL, buffer->mapping_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer->data == MAP_FAILED)
        goto fail;
    (void) madvise(buffer->data, buffer->mapping_bytes, MADV_HUGEPAGE);
    return buffer;
fail:
    free(buffer);
    return NULL;
}

static void buffer_free(struct ds_backend *backend, struct ds_buffer *buffer)
{
    (void) backend;
    if (!buffer)
        return;
    (void) munmap(buffer->data, buffer->mapping_bytes);
    free(buffer);
}

static int write_buffer(struct ds_backend *backend, struct ds_buffer *to, const float *from,
                        size_t n_floats)
{
    (void) backend;
    if (n_floats > to->n_floats)
        return -EINVAL;
    memcpy(to->data, from, n_floats * sizeof *from);
    return 0;
}

static int read_buffer(struct ds_backend *backend, float *to, const struct ds_buffer *from,
                       size_t offset, size_t n_floats)
{
    (void) backend;
    if (offset > from->n_floats || n_floats > from->n_floats - offset)
        return -EINVAL;
    memcpy(to, from->data + offset, n_floats * sizeof *to);
    return 0;
}

static int weight_new(struct ds_backend *backend, const struct ds_tensor *tensor, bool gather,
                      struct ds_weight **ret_weight)
{
    return ds_weight_new(ret_weight, ds_cpu(backend)->arena, tensor, 1, gather);
}

static int weight_new_stack(struct ds_backend *backend, const struct ds_tensor *matrices,
                            uint32_t n, struct ds_weight **ret_weight)
{
    return ds_weight_new(ret_weight, ds_cpu(backend)->arena, matrices, n, false);
}

static int weight_alloc(struct ds_backend *backend, const struct ds_tensor *matrices, uint32_t n,
                        bool gather, struct ds_weight **ret_weight)
{
    return ds_weight_alloc(ret_weight, ds_cpu(backend)->arena, matrices, n, gather);
}

static void weight_free(struct ds_backend *backend, struct ds_weight *weight)
{
    (void) backend;
    ds_weight_free(weight);
}

static size_t weight_bytes(const struct ds_weight *weight)
{
    return weight->panels.size_bytes + weight->rows.size_bytes;
}

static void parallel(struct ds_backend *backend, ds_pool_item item, void *arg, uint32_t n)
{
    ds_pool_run(ds_cpu(backend)->pool, item, arg, n, 1);
}

static const char *describe(const struct ds_backend *backend)
{
    return ((const struct ds_cpu *) backend)->description;
}

static void close_backend(struct ds_backend *backend)
{
    struct ds_cpu *cpu = ds_cpu(backend);

    if (!cpu)
        return;
    for (unsigned i = 0; cpu->threads && i < ds_pool_n_threads(cpu->pool); i++)
        ds_scratch_deinit(&cpu->threads[i]);
    free(cpu->threads);
    ds_scratch_deinit(&cpu->parts);
    ds_scratch_deinit(&cpu->tiles);
    ds_scratch_deinit(&cpu->heads);
    ds_scratch_deinit(&cpu->scores);
    ds_scratch_deinit(&cpu->picked);
    ds_cpu_kv_free(backend, cpu->picked_kv);
    ds_act_deinit(&cpu->act);
    ds_mixture_deinit(&cpu->mixture);
    ds_rope_table_deinit(&cpu->rope);
    ds_arena_free(cpu->arena);
    ds_pool_free(cpu->pool);
    free(cpu);
}

static void close_p(struct ds_cpu **cpu)
{
    if (*cpu)
        close_backend(&(*cpu)->backend);
}

static const struct ds_backend table = {
    .name = "cpu",
    .parallel = parallel,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .write = write_buffer,
    .read = read_buffer,
    .weight_new = weight_new,
    .weight_new_stack = weight_new_stack,
    .weight_alloc = weight_alloc,
    .weight_n_pieces = ds_weight_n_pieces,
    .weight_fill = ds_weight_fill,
    .weight_free = weight_free,
    .weight_bytes = weight_bytes,
    .kv_new = ds_cpu_kv_new,
    .kv_free = ds_cpu_kv_free,
    .kv_bytes = ds_cpu_kv_bytes,
    .embed = ds_cpu_embed,
    .rms_norm = ds_cpu_rms_norm,
    .matmul = ds_cpu_matmul,
    .rope = ds_cpu_rope,
    .kv_write = ds_cpu_kv_write,
    .attention = ds_cpu_attention,
    .silu_mul = ds_cpu_silu_mul,
    .route = ds_cpu_route,
    .expert_ffn = ds_cpu_expert_ffn,
    .gather = ds_cpu_gather,
    .add_rows = ds_cpu_add_rows,
    .limits = ds_cpu_limits,
    .copy = ds_cpu_copy,
    .matmul_heads = ds_cpu_matmul_heads,
    .kv_read = ds_cpu_kv_read,
    .layer_norm = ds_cpu_layer_norm,
    .index_write = ds_cpu_index_write,
    .index_choose = ds_cpu_index_choose,
    .attention_chosen = ds_cpu_attention_chosen,
    .describe = describe,
    .close = close_backend,
};

int ds_backend_cpu(struct ds_backend **ret_backend, const struct ds_cpu_options *options)
{
    ds_cleanup(close_p) struct ds_cpu *cpu = calloc(1, sizeof *cpu);
    unsigned n_threads;
    int r;

    if (!cpu)
        return -ENOMEM;
    cpu->backend = table;
    cpu->kernels = ds_kernels_choose(options->isa);
    if (!cpu->kernels)
        return -ENOTSUP;
    r = ds_arena_new(&cpu->arena);
    if (r < 0)
        return r;
    r = ds_pool_new(&cpu->pool, options->n_threads,
                    options->spin_usec ? options->spin_usec : DS_POOL_SPIN_DEFAULT);
    if (r < 0)
        return r;
    cpu->backend.n_threads = n_threads = ds_pool_n_threads(cpu->pool);
    cpu->threads = calloc(n_threads, sizeof *cpu->threads);
    if (!cpu->threads)
        return -ENOMEM;
    (void) snprintf(cpu->description, sizeof cpu->description, "%s, %u thread%s",
                    cpu->kernels->display, n_threads, n_threads == 1 ? "" : "s");
    *ret_backend = &ds_steal(cpu)->backend;
    return 0;
}
