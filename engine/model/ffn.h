/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ffn.h - the feed-forward half of a layer, dense or a mixture of experts, for every family.
 *
 *      dense     x += Wdown (silu(Wgate h) * Wup h)
 *      mixture   x += the same of the shared experts, which stand in the file as one
 *                x += sum over the chosen experts e: w_e Wdown_e (silu(Wgate_e h) * Wup_e h)
 *
 * Which of the two a layer is, its tensors say: a router (ffn_gate_inp) makes it a mixture. Experts
 * come as ffn_{gate,up,down}_exps {K, N, E}, with gate and up as one in ffn_gate_up_exps {K, 2 N,
 * E} (gate's rows first), or each by itself as ffn_{gate,up,down}.E.
 *
 * Sources: Shazeer 2020 (GLU variants), DeepSeekMoE (Dai et al. 2024), DeepSeek-V2 and -V3 reports,
 * Qwen3 report; tensor names: GGUF.
 */
#pragma once

#include "engine/model/weights.h"

struct ds_ffn {
    struct ds_weight *gate, *up; /* {width, dense width}; dense, or the shared experts; or NULL */
    struct ds_weight *down;      /* {dense width, width} */
    uint32_t dense_width;

    struct ds_weight *router; /* {width, n_experts}; NULL: this layer has no experts */
    struct ds_buffer *bias;   /* [n_experts] for choosing; NULL: none */
    struct ds_weight *expert_gate, *expert_up, *expert_down; /* stacks */
};

/* Activations that the layers of a model share, and how its experts are chosen. */
struct ds_ffn_memory {
    struct ds_backend *backend;   /* borrowed */
    struct ds_adapters *adapters; /* borrowed */
    struct ds_routing routing;
    struct ds_buffer *g, *u;            /* [rows][the widest dense width] */
    struct ds_buffer *logits;           /* [rows][n_experts] */
    struct ds_buffer *chosen, *weights; /* [rows][n_experts_used] */
};

/* 0 or a negative errno with the line in the loader's error; *ret_ffn may then hold something, and
 * is to be freed all the same. */
int ds_ffn_load(struct ds_ffn *ret_ffn, struct ds_weight_loader *loader, const struct ds_hyper *h,
                int layer);
void ds_ffn_deinit(struct ds_ffn *ffn, struct ds_backend *backend);

/* Room for rows rows. -ENOMEM with the line in the loader's error; deinit all the same. */
int ds_ffn_memory_init(struct ds_ffn_memory *memory, struct ds_weight_loader *loader,
                       const struct ds_hyper *h, uint32_t rows);
void ds_ffn_memory_deinit(struct ds_ffn_memory *memory);

/* x[n][width] += the feed-forward of h[n][width], which is normed already. */
int ds_ffn_forward(const struct ds_ffn *ffn, const struct ds_ffn_memory *memory,
                   struct ds_buffer *x, const struct ds_buffer *h, uint32_t n);
