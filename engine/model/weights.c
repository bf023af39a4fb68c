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

int ds_load_matrix(struct ds_weight_loader *loader, int layer, const char *name, uint64_t k,
                   uint64_t n, bool gather, struct ds_weight **ret_weight)
{
    const struct ds_tensor *tensor;
    int r;

    tensor = ds_checkpoint_require(loader->checkpoint, layer, name, k, n, loader->error);
    if (!tensor)
        return -EINVAL;
    r = loader->backend->weight_new(loader->backend, tensor, gather, ret_weight);
    if (r == -ENOMEM)
        return no_memory(loader, tensor);
    if (r < 0)
        return ds_error_set(loader->error, r,
                            "%s: tensor '%s' of type %s (%llu x %llu) is refused "
                            "by the %s backend: take the model in another type",
                            ds_checkpoint_name(loader->checkpoint), tensor->name,
                            ds_type_name(tensor->type), (unsigned long long) k,
                            (unsigned long long) n, loader->backend->name);
    loader->size_bytes += loader->backend->weight_bytes(*ret_weight);
    loader->rounded = loader->rounded || tensor->type != DS_TYPE_F32;
    return add_site(loader, tensor, gather, *ret_weight);
}

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
