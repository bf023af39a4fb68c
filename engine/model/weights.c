/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/weights.h"

#include <math.h>

#include "engine/format/quant.h"

enum { NAME_BYTES = 96 };

bool ds_has_tensor(const struct ds_weight_loader *loader, int layer, const char *name)
{
    char full[NAME_BYTES];

    (void) (layer < 0 ? snprintf(full, sizeof full, "%s", name)
                      : snprintf(full, sizeof full, "blk.%d.%s", layer, name));
    return ds_checkpoint_tensor(loader->checkpoint, full) != NULL;
}

static int no_memory(const struct ds_weight_loader *loader, const struct ds_tensor *tensor)
{
    return ds_error_set(loader->error, -ENOMEM,
                        "%s: no memory for tensor '%s' (%llu bytes): unload another model or take "
                        "a smaller type",
                        ds_checkpoint_name(loader->checkpoint), tensor->name,
                        (unsigned long long) tensor->size_bytes);
}

static int add_site(const struct ds_weight_loader *loader, const struct ds_tensor *tensor,
                    bool gather, const struct ds_weight *weight)
{
    bool tied = !gather && strcmp(tensor->name, "token_embd.weight") == 0;

    if (!loader->adapters)
        return 0;
    return ds_adapters_add_site(loader->adapters, tied ? "output.weight" : tensor->name, weight,
                                tensor->dims[0], tensor->dims[1], gather) < 0
               ? no_memory(loader, tensor)
               : 0;
}

void ds_loader_count(struct ds_weight_loader *loader, const struct ds_weight *weight, uint32_t type,
                     bool head, uint64_t ops, double share)
{
    size_t bytes = loader->backend->weight_bytes(weight);

    loader->size_bytes += bytes;
    loader->rounded = loader->rounded || type != DS_TYPE_F32;
    loader->cost.token_bytes += (uint64_t) (share * (double) bytes);
    *(head ? &loader->cost.head_ops : &loader->cost.layer_ops) += ops;
    if (type == DS_TYPE_F32 || type == DS_TYPE_F16 || type == DS_TYPE_BF16 || type == DS_TYPE_F8)
        loader->cost.float_ops += ops;
}

/* matrices' data lie in the checkpoint. */
static int make(struct ds_weight_loader *loader, const struct ds_tensor *matrices, uint32_t n,
                bool gather, struct ds_weight **ret_weight)
{
    struct ds_backend *backend = loader->backend;
    struct ds_weight *weight;
    int r;

    if (!loader->filling)
        return gather ? backend->weight_new(backend, matrices, true, ret_weight)
                      : backend->weight_new_stack(backend, matrices, n, ret_weight);
    r = backend->weight_alloc(backend, matrices, n, gather, &weight);
    if (r < 0)
        return r;
    r = ds_filling_add(loader->filling, weight, matrices, n);
    if (r < 0) {
        backend->weight_free(backend, weight);
        return r;
    }
    *ret_weight = weight;
    return 0;
}

int ds_load_matrix(struct ds_weight_loader *loader, int layer, const char *name, uint64_t k,
                   uint64_t n, bool gather, struct ds_weight **ret_weight)
{
    const struct ds_tensor *tensor;
    int r;

    tensor = ds_checkpoint_require(loader->checkpoint, layer, name, k, n, loader->error);
    if (!tensor)
        return -EINVAL;
    r = make(loader, tensor, 1, gather, ret_weight);
    if (r == -ENOMEM)
        return no_memory(loader, tensor);
    if (r < 0)
        return ds_error_set(loader->error, r,
                            "%s: tensor '%s' of type %s (%llu x %llu) is refused "
                            "by the %s backend: take the model in another type",
                            ds_checkpoint_name(loader->checkpoint), tensor->name,
                            ds_type_name(tensor->type), (unsigned long long) k,
                            (unsigned long long) n, loader->backend->name);
    ds_loader_count(loader, *ret_weight, tensor->type, layer < 0, gather ? 0 : 2 * k * n,
                    gather ? 0.0 : 1.0);
    return add_site(loader, tensor, gather, *ret_weight);
}

/* --- experts --- */

static void full_name(char *full, int layer, const char *name, const char *suffix)
{
    (void) snprintf(full, NAME_BYTES, "blk.%d.%s%s.weight", layer, name, suffix);
}

/* Matrices {k, n} first_row .. + n of each slice of tensor, which is {k, rows, n_experts}. */
static int slice(const struct ds_weight_loader *loader, const struct ds_tensor *tensor, uint64_t k,
                 uint64_t n, uint64_t rows, uint64_t first_row, uint32_t n_experts,
                 struct ds_tensor *matrices)
{
    uint64_t row_bytes = ds_type_row_bytes(tensor->type, k);

    if (tensor->dims[0] != k || tensor->dims[1] != rows || tensor->dims[2] != n_experts ||
        tensor->dims[3] != 1 || tensor->size_bytes / n_experts / rows < row_bytes)
        return ds_error_set(loader->error, -EINVAL,
                            "%s: tensor '%s' is %llu x %llu x %llu, its keys want %llu x %llu x "
                            "%u; convert the model again",
                            ds_checkpoint_name(loader->checkpoint), tensor->name,
                            (unsigned long long) tensor->dims[0],
                            (unsigned long long) tensor->dims[1],
                            (unsigned long long) tensor->dims[2], (unsigned long long) k,
                            (unsigned long long) rows, n_experts);
    for (uint32_t i = 0; i < n_experts; i++) {
        matrices[i] = *tensor;
        matrices[i].n_dims = 2;
        matrices[i].dims[1] = n;
        matrices[i].dims[2] = 1;
        matrices[i].data = (const char *) tensor->data + (i * rows + first_row) * row_bytes;
        matrices[i].size_bytes = n * row_bytes;
    }
    return 0;
}

/* Each expert's matrix is a tensor of its own. */
static int collect(const struct ds_weight_loader *loader, int layer, const char *name, uint64_t k,
                   uint64_t n, uint32_t n_experts, struct ds_tensor *matrices)
{
    char own[NAME_BYTES];

    for (uint32_t i = 0; i < n_experts; i++) {
        const struct ds_tensor *tensor;

        (void) snprintf(own, sizeof own, "%s.%u.weight", name, i);
        tensor = ds_checkpoint_require(loader->checkpoint, layer, own, k, n, loader->error);
        if (!tensor)
            return -EINVAL;
        matrices[i] = *tensor;
        if (tensor->type != matrices[0].type)
            return ds_error_set(loader->error, -ENOTSUP,
                                "%s: tensor '%s' is of another type than '%s', which this build "
                                "cannot run: take the model with all experts in one type",
                                ds_checkpoint_name(loader->checkpoint), tensor->name,
                                matrices[0].name);
    }
    return 0;
}

/* What the experts' matrices are, wherever they stand. */
static int find_experts(const struct ds_weight_loader *loader, int layer, const char *name,
                        uint64_t k, uint64_t n, uint32_t n_experts, struct ds_tensor *matrices)
{
    bool up = strcmp(name, "ffn_up") == 0, half = up || strcmp(name, "ffn_gate") == 0;
    const struct ds_tensor *tensor;
    char full[NAME_BYTES], first[NAME_BYTES];

    full_name(full, layer, name, "_exps");
    tensor = ds_checkpoint_tensor(loader->checkpoint, full);
    if (tensor)
        return slice(loader, tensor, k, n, n, 0, n_experts, matrices);
    full_name(first, layer, "ffn_gate_up", "_exps");
    tensor = half ? ds_checkpoint_tensor(loader->checkpoint, first) : NULL;
    if (tensor)
        return slice(loader, tensor, k, n, 2 * n, up ? n : 0, n_experts, matrices);
    full_name(first, layer, name, ".0");
    if (ds_checkpoint_tensor(loader->checkpoint, first))
        return collect(loader, layer, name, k, n, n_experts, matrices);
    return ds_error_set(loader->error, -EINVAL,
                        "%s: tensor '%s' is missing: convert or fetch the model again",
                        ds_checkpoint_name(loader->checkpoint), full);
}

int ds_load_experts(struct ds_weight_loader *loader, int layer, const char *name, uint64_t k,
                    uint64_t n, uint32_t n_experts, struct ds_weight **ret_weight)
{
    ds_cleanup(ds_free_p) struct ds_tensor *matrices = calloc(n_experts, sizeof *matrices);
    struct ds_backend *backend = loader->backend;
    uint32_t n_used;
    int r;

    if (!matrices)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                            ds_checkpoint_name(loader->checkpoint));
    r = find_experts(loader, layer, name, k, n, n_experts, matrices);
    if (r < 0)
        return r;
    r = make(loader, matrices, n_experts, false, ret_weight);
    if (r == -ENOMEM) {
        matrices->size_bytes *= n_experts; /* what was asked for */
        return no_memory(loader, matrices);
    }
    if (r < 0)
        return ds_error_set(loader->error, r,
                            "%s: tensor '%s' of type %s (%llu x %llu, %u experts) is refused by "
                            "the %s backend: take the model in another type",
                            ds_checkpoint_name(loader->checkpoint), matrices->name,
                            ds_type_name(matrices->type), (unsigned long long) k,
                            (unsigned long long) n, n_experts, backend->name);
    n_used = ds_checkpoint_hyper(loader->checkpoint)->n_experts_used;
    ds_loader_count(loader, *ret_weight, matrices->type, false, 2 * k * n * n_used,
                    (double) n_used / n_experts);
    return 0;
}

/* --- vectors --- */

int ds_load_host_vector(struct ds_weight_loader *loader, int layer, const char *name, uint64_t n,
                        float **ret_values)
{
    ds_cleanup(ds_free_p) float *values = NULL;
    const struct ds_tensor *tensor;

    tensor = ds_checkpoint_require(loader->checkpoint, layer, name, n, 0, loader->error);
    if (!tensor)
        return -EINVAL;
    values = malloc(n * sizeof *values);
    if (!values)
        return no_memory(loader, tensor);
    ds_type_traits(tensor->type)->dequantise(tensor->data, values, n);
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(values[i]))
            return ds_error_set(loader->error, -EBADMSG,
                                "%s: tensor '%s' holds a number that is not finite: the file is "
                                "damaged, fetch it again",
                                ds_checkpoint_name(loader->checkpoint), tensor->name);
    }
    *ret_values = ds_steal(values);
    return 0;
}

int ds_load_vector(struct ds_weight_loader *loader, int layer, const char *name, uint64_t n,
                   struct ds_buffer **ret_buffer)
{
    struct ds_backend *backend = loader->backend;
    ds_cleanup(ds_free_p) float *values = NULL;
    struct ds_buffer *buffer;
    int r;

    r = ds_load_host_vector(loader, layer, name, n, &values);
    if (r < 0)
        return r;
    buffer = backend->buffer_new(backend, n);
    if (!buffer)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory for tensor '%s'",
                            ds_checkpoint_name(loader->checkpoint), name);
    r = backend->write(backend, buffer, values, n);
    if (r < 0) {
        backend->buffer_free(backend, buffer);
        return ds_error_set(loader->error, r, "%s: the %s backend failed to store tensor '%s'",
                            ds_checkpoint_name(loader->checkpoint), backend->name, name);
    }
    loader->size_bytes += n * sizeof *values;
    *ret_buffer = buffer;
    return 0;
}

int ds_load_optional_vector(struct ds_weight_loader *loader, int layer, const char *name,
                            uint64_t n, struct ds_buffer **ret_buffer)
{
    *ret_buffer = NULL;
    return ds_has_tensor(loader, layer, name) ? ds_load_vector(loader, layer, name, n, ret_buffer)
                                              : 0;
}
