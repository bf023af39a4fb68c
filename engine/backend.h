/* SPDX-License-Identifier: Apache-2.0 */
/*
 * backend.h - the table of operations a device implements; model code is written against it once.
 *
 * A backend owns the memory and layout of everything it hands out: buffers (activations), weights
 * (it may repack them at load) and KV caches. Operations run in the order they are called; a result
 * may be read by the host only through read(), which waits. One thread at a time calls operations
 * of a backend; weight_new/weight_free may be called by another thread meanwhile (loading).
 *
 * Batch invariance: what an operation yields for one row depends on that row (and, in attention, on
 * that sequence's cache) alone: not on the other rows, their number, or how a prompt was cut. The
 * CPU backend guarantees it bit for bit, on every instruction set the same.
 *
 * Shapes are [rows][width], row-major, float32 unless said otherwise. Returns: 0 or negative errno.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"
#include "proto/base.h"

struct ds_backend;
struct ds_buffer;  /* activations: device memory of floats */
struct ds_weight;  /* one matrix as the device likes it, or a stack of them */
struct ds_adapter; /* engine/model/adapter.h */
struct ds_kv;      /* keys and values of one model: n_blocks blocks of DS_KV_BLOCK positions */

/* Q8_0 and Q4_0 need dimensions that are multiples of 32. */
enum ds_kv_type { DS_KV_F32, DS_KV_F16, DS_KV_BF16, DS_KV_Q8_0, DS_KV_Q4_0 };

struct ds_kv_geometry {
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t key_dim;
    uint32_t value_dim;
    uint32_t n_blocks;
    enum ds_kv_type type;
    uint32_t index_dim; /* of one more vector a token and layer (index_write()); 0: none */
    bool shared;        /* values are the first value_dim of the keys (MLA): only keys are stored */
};

/* What a sequence runs with: the model as it is, or one LoRA adapter on it. */
struct ds_adapter_use {
    const struct ds_adapter *adapter; /* NULL: none */
    float scale;                      /* finite; 0 is none */
};

/* One ragged batch. Row r is token tokens[r] at position positions[r] of sequence sequences[r],
 * which owns the KV blocks block_tables[sequences[r] * blocks_max + position / DS_KV_BLOCK]. Rows
 * of one sequence are consecutive and in order of position; sequences ascend. A row may attend to
 * what any other row of the batch writes in the same layer: two sequences can share a block that
 * one of them only now fills. All arrays are host memory. */
struct ds_batch {
    uint32_t n_tokens;
    uint32_t n_sequences;
    uint32_t n_outputs;                    /* rows whose logits are wanted */
    uint32_t blocks_max;                   /* row length of block_tables */
    const uint32_t *tokens;                /* [n_tokens] */
    const uint32_t *positions;             /* [n_tokens] */
    const uint32_t *sequences;             /* [n_tokens] */
    const uint32_t *outputs;               /* [n_outputs] row numbers, ascending */
    const uint32_t *block_tables;          /* [n_sequences][blocks_max] */
    const struct ds_adapter_use *adapters; /* [n_sequences]; NULL: nobody has one */
    float *hidden; /* [n_tokens][width] filled with what ds_model_mtp() wants; NULL: nothing */
};

struct ds_rope {
    const float
        *frequencies; /* [n_dims / 2] radians per position, scaling applied; host, borrowed */
    uint32_t first;   /* dims of each head before the rotated ones */
    uint32_t n_dims;  /* rotated dims of each head; the rest pass */
    float magnitude;  /* cos and sin are multiplied by this */
    bool neox;        /* pairs (i, i + n/2), else (2i, 2i + 1) */
};

/* A part of every head of every row: the floats from row * row_stride + head * head_stride + first
 * on, as many as the operation says. head_stride 0: all heads share one. */
struct ds_slice {
    struct ds_buffer *buffer;
    uint32_t row_stride, head_stride, first;
};

/* One matrix product of a group that shares its input: out[row][n] (+)= W in[row] + bias. */
struct ds_product {
    struct ds_buffer *out;
    const struct ds_weight *weight;
    const struct ds_buffer *bias; /* [n] or NULL */
    bool accumulate;              /* out += instead of out = */
};

/* How a mixture of experts is routed. Ties go to the lowest index. */
struct ds_routing {
    enum ds_gating gating;
    const struct ds_buffer *bias; /* [n_experts] added for choosing only; NULL: none */
    uint32_t n_experts;           /* 1..DS_EXPERTS_MAX */
    uint32_t n_used;              /* 1..DS_EXPERTS_USED_MAX of them */
    uint32_t n_groups;            /* of consecutive experts, dividing n_experts; 0 or 1: none */
    uint32_t n_groups_used;       /* experts are chosen from the best groups only */
    bool group_by_two;            /* a group scores the sum of its two best, else its best */
    bool normalise;               /* weights are divided by their sum + 1e-20 */
    float scale;                  /* and multiplied by this */
};

/* The experts of a layer: stacks of equally many matrices. */
struct ds_experts {
    const struct ds_weight *gate, *up; /* {width, ffn_width} each */
    const struct ds_weight *down;      /* {ffn_width, width} */
};

/* What a device can do at best, per second; 0: not known. */
struct ds_limits {
    double read_bytes;            /* plain reading of memory */
    double int8_ops;              /* the kernels' integer instruction, 2 per product */
    double f32_ops;               /* likewise float */
    const char *int8_instruction; /* its name, "" where there is none; static */
    const char *f32_instruction;
};

struct ds_backend {
    const char *name;   /* "cpu", "cuda": as printed by dsctl status */
    unsigned n_threads; /* that parallel() may use at once, the caller's included; 0 counts as 1 */

    /* Called by a forward pass once a layer: the sign of life of a step that takes long. Set by who
     * owns the backend; NULL: nobody wants to know. */
    void (*pulse)(void *arg);
    void *pulse_arg;
    /* Other models run while weights are filled: the threads that fill stand back behind them. Set
     * by the thread that loads. */
    bool stand_back;

    /* Host work between operations, such as sampling: calls item(arg, 0..n-1, thread), each once,
     * on the threads that compute else, and returns when all are done. thread < n_threads: an index
     * for scratch memory. Who runs which item is chance. NULL: there are no threads but the
     * caller's. */
    void (*parallel)(struct ds_backend *backend,
                     void (*item)(void *arg, uint32_t i, unsigned thread), void *arg, uint32_t n);

    /* --- memory --- */
    struct ds_buffer *(*buffer_new)(struct ds_backend *backend,
                                    size_t n_floats);                          /* NULL: no memory */
    void (*buffer_free)(struct ds_backend *backend, struct ds_buffer *buffer); /* NULL is a no-op */
    int (*write)(struct ds_backend *backend, struct ds_buffer *to, const float *from,
                 size_t n_floats);
    int (*read)(struct ds_backend *backend, float *to, const struct ds_buffer *from, size_t offset,
                size_t n_floats);

    /* A matrix {K, N} of tensor. gather: rows will be fetched by embed() (the token embedding). The
     * tensor's data are copied. -ENOMEM, -ENOTSUP. */
    int (*weight_new)(struct ds_backend *backend, const struct ds_tensor *tensor, bool gather,
                      struct ds_weight **ret_weight);
    /* A stack of n matrices of one shape and type, each described by a tensor {K, N} of its own
     * (one of many, or a piece of a larger one). Errors likewise. */
    int (*weight_new_stack)(struct ds_backend *backend, const struct ds_tensor *matrices,
                            uint32_t n, struct ds_weight **ret_weight);
    /* Either of them in two steps, the second for many threads at once: weight_fill() is called
     * once for each piece below weight_n_pieces(), with the same matrices; then the weight is
     * ready. A piece is about a millisecond's work. false: no memory. n > 1 only without gather.
     * NULL: this backend has but the one step. */
    int (*weight_alloc)(struct ds_backend *backend, const struct ds_tensor *matrices, uint32_t n,
                        bool gather, struct ds_weight **ret_weight);
    uint32_t (*weight_n_pieces)(const struct ds_weight *weight);
    bool (*weight_fill)(struct ds_weight *weight, const struct ds_tensor *matrices, uint32_t piece);
    void (*weight_free)(struct ds_backend *backend, struct ds_weight *weight);
    size_t (*weight_bytes)(const struct ds_weight *weight); /* resident memory of its own */

    /* -ENOMEM, -EINVAL (a type that cannot hold these dimensions; kv_bytes() is 0 then). */
    int (*kv_new)(struct ds_backend *backend, const struct ds_kv_geometry *geometry,
                  struct ds_kv **ret_kv);
    void (*kv_free)(struct ds_backend *backend, struct ds_kv *kv);
    size_t (*kv_bytes)(const struct ds_kv_geometry *geometry);

    /* --- operations on n rows --- */
    int (*embed)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_weight *table,
                 const uint32_t *tokens, uint32_t n);
    /* out[n][width] = in / sqrt(mean(in^2) + epsilon) * gamma[width]; out may be in. Also per head:
     * n = rows * heads, width = head size. */
    int (*rms_norm)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const struct ds_buffer *gamma, uint32_t n, uint32_t width, float epsilon);
    /* n_products products of the same in[n][K]. */
    int (*matmul)(struct ds_backend *backend, const struct ds_product *products,
                  unsigned n_products, const struct ds_buffer *in, uint32_t n);
    /* Rotates x[n][n_heads][head_dim] in place. */
    int (*rope)(struct ds_backend *backend, struct ds_buffer *x, const struct ds_rope *rope,
                const uint32_t *positions, uint32_t n, uint32_t n_heads, uint32_t head_dim);
    /* Stores k[n][n_kv_heads][key_dim], v[n][n_kv_heads][value_dim] at the batch's places. v is not
     * looked at where the geometry is shared. */
    int (*kv_write)(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                    const struct ds_buffer *k, const struct ds_buffer *v,
                    const struct ds_batch *batch);
    /* out[n][n_heads][value_dim] = softmax(q k * scale) v, causal: positions 0..own, or with a
     * window (0: none) the last `window` of those, the own one counted. Head h reads KV head
     * h / (n_heads / n_kv_heads). */
    int (*attention)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *q,
                     const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                     uint32_t n_heads, float scale, uint32_t window);
    /* out = gate / (1 + exp(-gate)) * up; out may be gate. */
    int (*silu_mul)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *gate,
                    const struct ds_buffer *up, uint32_t n, uint32_t width);
    /* Chooses experts: chosen[n][n_used], their numbers in ascending order (whole floats), and
     * weights[n][n_used], from logits[n][n_experts]. -EINVAL: a routing that cannot be. */
    int (*route)(struct ds_backend *backend, struct ds_buffer *chosen, struct ds_buffer *weights,
                 const struct ds_buffer *logits, const struct ds_routing *routing, uint32_t n);
    /* out[n][width] += w_e down_e (silu(gate_e x) * up_e x), x = in[n][width], for each chosen e of
     * the row in order; chosen[n][n_used] and weights as route() gives them. out may not be in.
     * -EINVAL: stacks that do not fit, experts there are not or out of order. */
    int (*expert_ffn)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_experts *experts, const struct ds_buffer *chosen,
                      const struct ds_buffer *weights, uint32_t n_used, uint32_t n);
    /* out[i] = in[rows[i]], i < n. */
    int (*gather)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                  const uint32_t *rows, uint32_t n, uint32_t width);
    /* out[rows[i]] += scales[i] * in[i], i < n; product and sum each rounded; rows ascend. */
    int (*add_rows)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const uint32_t *rows, const float *scales, uint32_t n, uint32_t width);
    /* out = in, width floats of every head of n rows; the two do not overlap. */
    int (*copy)(struct ds_backend *backend, const struct ds_slice *out, const struct ds_slice *in,
                uint32_t n, uint32_t n_heads, uint32_t width);

    /* --- latent attention --- */
    /* Head h of every row: out = W_h in; W_h {K, N} is matrix h of a stack of n_heads. */
    int (*matmul_heads)(struct ds_backend *backend, const struct ds_slice *out,
                        const struct ds_weight *stack, const struct ds_slice *in, uint32_t n,
                        uint32_t n_heads);
    /* out[n][n_kv_heads][key_dim] = the keys at the batch's places. */
    int (*kv_read)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch);

    /* --- sparse attention --- */
    /* out[n][width] = (in - mean) / sqrt(variance + epsilon) * gamma + beta; out may be in. */
    int (*layer_norm)(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_buffer *gamma, const struct ds_buffer *beta, uint32_t n,
                      uint32_t width, float epsilon);
    /* Stores k[n][index_dim] at the batch's places. */
    int (*index_write)(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                       const struct ds_buffer *k, const struct ds_batch *batch);
    /* Which positions a row attends to: the top_k of 0..own with the largest
     *      sum over heads of weights[n][n_heads] * max(0, q[n][n_heads][index_dim] . k)
     * ties to the lower position. chosen[n][top_k] are bit patterns of uint32_t, ascending; a row
     * that sees no more than top_k positions attends to all, and nothing is written for it. */
    int (*index_choose)(struct ds_backend *backend, struct ds_buffer *chosen,
                        const struct ds_buffer *q, const struct ds_buffer *weights,
                        const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                        uint32_t n_heads, uint32_t top_k);
    /* attention() without a window, over the positions index_choose() left; shared keys only. */
    int (*attention_chosen)(struct ds_backend *backend, struct ds_buffer *out,
                            const struct ds_buffer *q, const struct ds_kv *kv, uint32_t layer,
                            const struct ds_batch *batch, uint32_t n_heads, float scale,
                            const struct ds_buffer *chosen, uint32_t top_k);

    /* Measures the device for some tenths of a second, with 128 MiB of its memory. -ENOMEM. */
    int (*limits)(struct ds_backend *backend, struct ds_limits *ret_limits);

    /* "AVX-512 VNNI, 2 threads": for dsctl status. */
    const char *(*describe)(const struct ds_backend *backend);
    void (*close)(struct ds_backend *backend);
};

struct ds_cpu_options {
    unsigned
        n_threads; /* compute threads incl. the caller; 0 = what affinity and cgroup quota allow */
    const char *isa;    /* NULL = best; "portable", "avx2", "avx512", "amx": no better */
    unsigned spin_usec; /* threads spin this long before sleeping; default 50 (see cpu/pool.h) */
};

/* Threads sleep while nothing runs. -ENOMEM, -EAGAIN, -ENOTSUP (isa not on this machine). */
int ds_backend_cpu(struct ds_backend **ret_backend, const struct ds_cpu_options *options);
