/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/ffn.h"

/* --- loading --- */

static int load_dense(struct ds_ffn *ffn, struct ds_weight_loader *loader, const struct ds_hyper *h,
                      int layer)
{
    const uint64_t width = h->width, n = h->ffn_width;
    int r;

    ffn->dense_width = h->ffn_width;
    if ((r = ds_load_matrix(loader, layer, "ffn_gate.weight", width, n, false, &ffn->gate)) < 0 ||
        (r = ds_load_matrix(loader, layer, "ffn_up.weight", width, n, false, &ffn->up)) < 0)
        return r;
    return ds_load_matrix(loader, layer, "ffn_down.weight", n, width, false, &ffn->down);
}

static int load_shared(struct ds_ffn *ffn, struct ds_weight_loader *loader,
                       const struct ds_hyper *h, int layer)
{
    const uint64_t width = h->width, n = h->shared_ffn_width;
    int r;

    if (n == 0 && ds_has_tensor(loader, layer, "ffn_gate_shexp.weight"))
        return ds_error_set(loader->error, -EINVAL,
                            "%s: layer %d has shared experts (tensor 'ffn_gate_shexp.weight'), but "
                            "no key says how many (expert_shared_count): convert the model again",
                            ds_checkpoint_name(loader->checkpoint), layer);
    if (n == 0)
        return 0;
    ffn->dense_width = h->shared_ffn_width;
    if ((r = ds_load_matrix(loader, layer, "ffn_gate_shexp.weight", width, n, false, &ffn->gate)) <
            0 ||
        (r = ds_load_matrix(loader, layer, "ffn_up_shexp.weight", width, n, false, &ffn->up)) < 0)
        return r;
    return ds_load_matrix(loader, layer, "ffn_down_shexp.weight", n, width, false, &ffn->down);
}

static int load_experts(struct ds_ffn *ffn, struct ds_weight_loader *loader,
                        const struct ds_hyper *h, int layer)
{
    const uint32_t n = h->expert_ffn_width, n_experts = h->n_experts;
    int r;

    if ((r = ds_load_matrix(loader, layer, "ffn_gate_inp.weight", h->width, n_experts, false,
                            &ffn->router)) < 0 ||
        (r = ds_load_optional_vector(loader, layer, "exp_probs_b.bias", n_experts, &ffn->bias)) <
            0 ||
        (r = ds_load_experts(loader, layer, "ffn_gate", h->width, n, n_experts,
                             &ffn->expert_gate)) < 0 ||
        (r = ds_load_experts(loader, layer, "ffn_up", h->width, n, n_experts, &ffn->expert_up)) < 0)
        return r;
    return ds_load_experts(loader, layer, "ffn_down", n, h->width, n_experts, &ffn->expert_down);
}

int ds_ffn_load(struct ds_ffn *ret_ffn, struct ds_weight_loader *loader, const struct ds_hyper *h,
                int layer)
{
    bool router = ds_has_tensor(loader, layer, "ffn_gate_inp.weight");
    int r;

    memset(ret_ffn, 0, sizeof *ret_ffn);
    if (h->n_experts == 0 && router)
        return ds_error_set(loader->error, -EINVAL,
                            "%s: layer %d has experts (tensor 'ffn_gate_inp.weight'), but no key "
                            "says how many (expert_count): convert the model again",
                            ds_checkpoint_name(loader->checkpoint), layer);
    if (router && (uint32_t) layer < h->n_leading_dense)
        return ds_error_set(loader->error, -EINVAL,
                            "%s: layer %d has experts, but key leading_dense_block_count says that "
                            "the first %u have none: convert the model again",
                            ds_checkpoint_name(loader->checkpoint), layer, h->n_leading_dense);
    /* A layer without experts may stand anywhere among those that have some. */
    if (!router && (h->n_experts == 0 || (uint32_t) layer < h->n_leading_dense ||
                    ds_has_tensor(loader, layer, "ffn_gate.weight")))
        return load_dense(ret_ffn, loader, h, layer);
    r = load_experts(ret_ffn, loader, h, layer);
    return r < 0 ? r : load_shared(ret_ffn, loader, h, layer);
}

void ds_ffn_deinit(struct ds_ffn *ffn, struct ds_backend *backend)
{
    struct ds_weight *weights[] = { ffn->gate,        ffn->up,        ffn->down,       ffn->router,
                                    ffn->expert_gate, ffn->expert_up, ffn->expert_down };

    for (unsigned i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (weights[i])
            backend->weight_free(backend, weights[i]);
    backend->buffer_free(backend, ffn->bias);
    memset(ffn, 0, sizeof *ffn);
}

int ds_ffn_memory_init(struct ds_ffn_memory *memory, struct ds_weight_loader *loader,
                       const struct ds_hyper *h, uint32_t rows)
{
    const size_t n = rows;
    const uint32_t widest = h->shared_ffn_width > h->ffn_width ? h->shared_ffn_width : h->ffn_width;
    const struct {
        struct ds_buffer **buffer;
        size_t n;
    } buffers[] = {
        { &memory->g, n * widest },
        { &memory->u, n * widest },
        { &memory->logits, n * h->n_experts },
        { &memory->chosen, n * h->n_experts_used },
        { &memory->weights, n * h->n_experts_used },
    };

    *memory = (struct ds_ffn_memory){ .backend = loader->backend,
                                      .adapters = loader->adapters,
                                      .routing = { .gating = h->gating,
                                                   .n_experts = h->n_experts,
                                                   .n_used = h->n_experts_used,
                                                   .n_groups = h->n_expert_groups,
                                                   .n_groups_used = h->n_expert_groups_used,
                                                   .group_by_two = h->expert_groups_by_two,
                                                   .normalise = h->expert_weights_norm,
                                                   .scale = h->expert_weights_scale } };
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        if (buffers[i].n == 0) /* no experts */
            continue;
        *buffers[i].buffer = loader->backend->buffer_new(loader->backend, buffers[i].n);
        if (!*buffers[i].buffer)
            return ds_error_set(loader->error, -ENOMEM,
                                "%s: no memory for the activations of %u rows: unload another "
                                "model",
                                ds_checkpoint_name(loader->checkpoint), rows);
    }
    return 0;
}

void ds_ffn_memory_deinit(struct ds_ffn_memory *memory)
{
    struct ds_buffer *buffers[] = { memory->g, memory->u, memory->logits, memory->chosen,
                                    memory->weights };

    if (!memory->backend) /* never begun */
        return;
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        memory->backend->buffer_free(memory->backend, buffers[i]);
    memset(memory, 0, sizeof *memory);
}

/* --- running --- */

static int dense(const struct ds_ffn *ffn, const struct ds_ffn_memory *memory, struct ds_buffer *x,
                 const struct ds_buffer *h, uint32_t n)
{
    struct ds_backend *b = memory->backend;
    struct ds_adapters *a = memory->adapters;
    const struct ds_product gate_up[] = { { .out = memory->g, .weight = ffn->gate },
                                          { .out = memory->u, .weight = ffn->up } };
    const struct ds_product down = { .out = x, .weight = ffn->down, .accumulate = true };
    int r;

    if ((r = ds_adapted_matmul(a, gate_up, 2, h, n)) < 0 ||
        (r = b->silu_mul(b, memory->g, memory->g, memory->u, n, ffn->dense_width)) < 0)
        return r;
    return ds_adapted_matmul(a, &down, 1, memory->g, n);
}

static int mixture(const struct ds_ffn *ffn, const struct ds_ffn_memory *memory,
                   struct ds_buffer *x, const struct ds_buffer *h, uint32_t n)
{
    struct ds_backend *b = memory->backend;
    const struct ds_product route = { .out = memory->logits, .weight = ffn->router };
    const struct ds_experts experts = { ffn->expert_gate, ffn->expert_up, ffn->expert_down };
    struct ds_routing routing = memory->routing;
    int r;

    routing.bias = ffn->bias;
    if ((r = ds_adapted_matmul(memory->adapters, &route, 1, h, n)) < 0 ||
        (r = b->route(b, memory->chosen, memory->weights, memory->logits, &routing, n)) < 0)
        return r;
    return b->expert_ffn(b, x, h, &experts, memory->chosen, memory->weights, routing.n_used, n);
}

int ds_ffn_forward(const struct ds_ffn *ffn, const struct ds_ffn_memory *memory,
                   struct ds_buffer *x, const struct ds_buffer *h, uint32_t n)
{
    int r = ffn->gate ? dense(ffn, memory, x, h, n) : 0;

    return r < 0 || !ffn->router ? r : mixture(ffn, memory, x, h, n);
}
