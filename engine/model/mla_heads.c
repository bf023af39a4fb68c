/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/format/packed.h"
#include "engine/format/quant.h"
#include "engine/model/mla_parts.h"

/* One matrix per head: rows first + h * step .. + n of a tensor, k elements each. */
struct pieces {
    const struct ds_tensor *tensor;
    uint64_t first, step;
    uint32_t n, k;
};

/* Tensor blk.LAYER.NAME with rows of k elements, n for each head, in whatever dims the rows are
 * counted. NULL + error text. */
static const struct ds_tensor *require_rows(struct ds_weight_loader *loader, int layer,
                                            const char *name, uint32_t k, uint32_t n,
                                            uint32_t n_heads)
{
    const struct ds_tensor *tensor;
    char full[96];

    (void) snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    tensor = ds_checkpoint_tensor(loader->checkpoint, full);
    if (!tensor) {
        (void) ds_error_set(loader->error, -EINVAL,
                            "%s: tensor '%s' is missing: convert or fetch the model again",
                            ds_checkpoint_name(loader->checkpoint), full);
        return NULL;
    }
    if (tensor->dims[0] == k &&
        tensor->dims[1] * tensor->dims[2] * tensor->dims[3] == (uint64_t) n * n_heads)
        return tensor;
    (void) ds_error_set(loader->error, -EINVAL,
                        "%s: tensor '%s' is %llu x %llu x %llu, its keys want %u x %u for each of "
                        "%u heads: convert the model again",
                        ds_checkpoint_name(loader->checkpoint), full,
                        (unsigned long long) tensor->dims[0], (unsigned long long) tensor->dims[1],
                        (unsigned long long) tensor->dims[2], k, n, n_heads);
    return NULL;
}

static int make_stack(struct ds_weight_loader *loader, const struct ds_tensor *matrices,
                      uint32_t n_heads, const struct ds_tensor *from, struct ds_weight **ret_stack)
{
    int r;

    r = loader->backend->weight_new_stack(loader->backend, matrices, n_heads, ret_stack);
    if (r == -ENOMEM)
        return ds_error_set(loader->error, r,
                            "%s: no memory for tensor '%s': unload another model or take a smaller "
                            "type",
                            ds_checkpoint_name(loader->checkpoint), from->name);
    if (r < 0)
        return ds_error_set(loader->error, r,
                            "%s: tensor '%s' of type %s is refused by the %s backend: take the "
                            "model in another type",
                            ds_checkpoint_name(loader->checkpoint), from->name,
                            ds_type_name(from->type), loader->backend->name);
    ds_loader_count(loader, *ret_stack, matrices->type, false,
                    2 * matrices->dims[0] * matrices->dims[1] * n_heads, 1.0);
    return 0;
}

static int no_memory(const struct ds_weight_loader *loader)
{
    return ds_error_set(loader->error, -ENOMEM, "%s: no memory: unload another model",
                        ds_checkpoint_name(loader->checkpoint));
}

/* The pieces as they are. */
static int load_pieces(struct ds_weight_loader *loader, const struct pieces *pieces,
                       uint32_t n_heads, struct ds_weight **ret_stack)
{
    ds_cleanup(ds_free_p) struct ds_tensor *matrices = calloc(n_heads, sizeof *matrices);
    uint64_t row_bytes = ds_type_row_bytes(pieces->tensor->type, pieces->k);

    if (!matrices)
        return no_memory(loader);
    for (uint32_t h = 0; h < n_heads; h++) {
        uint64_t row = pieces->first + h * pieces->step;

        matrices[h] = *pieces->tensor;
        matrices[h].n_dims = 2;
        matrices[h].dims[1] = pieces->n;
        matrices[h].dims[2] = 1;
        matrices[h].dims[3] = 1;
        matrices[h].data = (const uint8_t *) pieces->tensor->data + row * row_bytes;
        matrices[h].size_bytes = pieces->n * row_bytes;
    }
    return make_stack(loader, matrices, n_heads, pieces->tensor, ret_stack);
}

static void store(uint32_t type, void *to, size_t i, float value)
{
    if (type == DS_TYPE_F32)
        ((float *) to)[i] = value;
    else
        ((uint16_t *) to)[i] = type == DS_TYPE_BF16 ? ds_f32_to_bf16(value) : ds_f32_to_f16(value);
}

/* to[k][n] = the transpose of one piece as type. rows[n][k] is scratch. */
static int transpose(struct ds_weight_loader *loader, const struct pieces *pieces, uint32_t head,
                     uint32_t type, float *rows, void *to)
{
    const struct ds_tensor *tensor = pieces->tensor;
    uint64_t row = pieces->first + head * pieces->step;
    const uint8_t *data =
        (const uint8_t *) tensor->data + row * ds_type_row_bytes(tensor->type, pieces->k);

    ds_type_traits(tensor->type)->dequantise(data, rows, (size_t) pieces->n * pieces->k);
    for (uint32_t i = 0; i < pieces->n; i++)
        for (uint32_t j = 0; j < pieces->k; j++) {
            float value = rows[(size_t) i * pieces->k + j];

            if (type == DS_TYPE_F16 && tensor->type != DS_TYPE_F16 && !(fabsf(value) < 65504.0f))
                return ds_error_set(loader->error, -EBADMSG,
                                    "%s: tensor '%s' holds %g, which no weight of a model is: the "
                                    "file is damaged, fetch it again",
                                    ds_checkpoint_name(loader->checkpoint), tensor->name,
                                    (double) value);
            store(type, to, (size_t) j * pieces->n + i, value);
        }
    return 0;
}

static int load_transposed(struct ds_weight_loader *loader, const struct pieces *pieces,
                           uint32_t n_heads, struct ds_weight **ret_stack)
{
    const uint32_t from = pieces->tensor->type;
    const uint32_t type = from == DS_TYPE_F32 || from == DS_TYPE_BF16 ? from : DS_TYPE_F16;
    const size_t elements = (size_t) pieces->n * pieces->k;
    const size_t bytes = elements * (type == DS_TYPE_F32 ? 4 : 2);
    ds_cleanup(ds_free_p) struct ds_tensor *matrices = calloc(n_heads, sizeof *matrices);
    ds_cleanup(ds_free_p) float *rows = malloc(elements * sizeof *rows);
    ds_cleanup(ds_free_p) uint8_t *data = malloc(bytes * n_heads);
    int r = 0;

    if (!matrices || !rows || !data)
        return no_memory(loader);
    for (uint32_t h = 0; h < n_heads && r == 0; h++) {
        matrices[h] = (struct ds_tensor){ .name = pieces->tensor->name,
                                          .type = type,
                                          .n_dims = 2,
                                          .dims = { pieces->n, pieces->k, 1, 1 },
                                          .data = data + h * bytes,
                                          .size_bytes = bytes };
        r = transpose(loader, pieces, h, type, rows, data + h * bytes);
    }
    return r < 0 ? r : make_stack(loader, matrices, n_heads, pieces->tensor, ret_stack);
}

/* kv_b whose numbers stand in several tensors (FP8, GPTQ, AWQ), as F16: heads are cut out of it. */
static int unpack(struct ds_weight_loader *loader, const struct ds_tensor *packed,
                  struct ds_tensor *ret_tensor, uint16_t **ret_data)
{
    const uint64_t k = packed->dims[0], n = packed->dims[1];
    ds_cleanup(ds_free_p) float *row = malloc(k * sizeof *row);
    uint16_t *data = calloc(k * n, sizeof *data);

    *ret_data = data;
    if (!row || !data)
        return no_memory(loader);
    for (uint64_t i = 0; i < n; i++) {
        ds_tensor_row_floats(packed, i, row);
        for (uint64_t j = 0; j < k; j++) {
            if (!(fabsf(row[j]) < 65504.0f))
                return ds_error_set(loader->error, -EBADMSG,
                                    "%s: tensor '%s' holds %g, which no weight of a model is: the "
                                    "file is damaged, fetch it again",
                                    ds_checkpoint_name(loader->checkpoint), packed->name,
                                    (double) row[j]);
            data[i * k + j] = ds_f32_to_f16(row[j]);
        }
    }
    *ret_tensor = *packed;
    ret_tensor->type = DS_TYPE_F16;
    ret_tensor->packed = NULL;
    ret_tensor->data = data;
    ret_tensor->size_bytes = k * n * sizeof *data;
    return 0;
}

int ds_mla_load_heads(struct ds_mla *mla, struct ds_weight_loader *loader, const struct ds_hyper *h,
                      int layer, bool naive)
{
    const uint32_t nope = h->key_dim - h->rope_dims, rank = h->kv_lora_rank, value = h->value_dim;
    const bool has_kv = ds_has_tensor(loader, layer, "attn_kv_b.weight");
    const bool has_k = ds_has_tensor(loader, layer, "attn_k_b.weight");
    const bool has_v = ds_has_tensor(loader, layer, "attn_v_b.weight");
    ds_cleanup(ds_free_p) uint16_t *unpacked_data = NULL;
    const struct ds_tensor *tensor = NULL;
    struct ds_tensor unpacked;
    struct pieces keys, values;
    int r = 0;

    if (has_kv || (!has_k && !has_v)) {
        tensor = require_rows(loader, layer, "attn_kv_b.weight", rank, nope + value, h->n_heads);
        if (!tensor)
            return -EINVAL;
        if (tensor->packed) {
            r = unpack(loader, tensor, &unpacked, &unpacked_data);
            tensor = &unpacked;
        }
        if (r < 0)
            return r;
    }
    /* Rows of keys for each latent dim where there are any, and where they serve: the naive form
     * takes a dim of the key for a row, and then kv_b's rows come first. */
    keys = (struct pieces){ tensor, 0, nope + value, nope, rank };
    values = (struct pieces){ tensor, nope, nope + value, value, rank };
    if (has_k && !(naive && has_kv)) {
        keys =
            (struct pieces){ require_rows(loader, layer, "attn_k_b.weight", nope, rank, h->n_heads),
                             0, rank, rank, nope };
        if (!keys.tensor)
            return -EINVAL;
        r = naive ? load_transposed(loader, &keys, h->n_heads, &mla->k_up)
                  : load_pieces(loader, &keys, h->n_heads, &mla->k_b);
    } else if (tensor) {
        r = naive ? load_pieces(loader, &keys, h->n_heads, &mla->k_up)
                  : load_transposed(loader, &keys, h->n_heads, &mla->k_b);
    } else { /* attn_v_b alone: name the other */
        r = require_rows(loader, layer, "attn_k_b.weight", nope, rank, h->n_heads) ? 0 : -EINVAL;
    }
    if (r < 0)
        return r;
    if (has_v || !tensor) {
        values = (struct pieces){ require_rows(loader, layer, "attn_v_b.weight", rank, value,
                                               h->n_heads),
                                  0, value, value, rank };
        if (!values.tensor)
            return -EINVAL;
    }
    return load_pieces(loader, &values, h->n_heads, &mla->v_b);
}
