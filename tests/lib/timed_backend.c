/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/timed_backend.h"

static struct ds_backend saved;
static uint64_t spent_nsec;

/* An operation of the table that times the saved one. */
#define TIMED(name, parameters, arguments)                                                         \
    static int timed_##name parameters                                                             \
    {                                                                                              \
        uint64_t before = ds_now_nsec();                                                           \
        int r = saved.name arguments;                                                              \
                                                                                                   \
        spent_nsec += ds_now_nsec() - before;                                                      \
        return r;                                                                                  \
    }

#define B     struct ds_backend *b
#define OUT   struct ds_buffer *out
#define IN    const struct ds_buffer *in
#define KV    struct ds_kv *kv
#define CKV   const struct ds_kv *kv
#define LAYER uint32_t layer
#define BATCH const struct ds_batch *batch
#define N     uint32_t n

TIMED(read, (B, float *to, const struct ds_buffer *from, size_t offset, size_t n_floats),
      (b, to, from, offset, n_floats))
TIMED(write, (B, struct ds_buffer *to, const float *from, size_t n_floats), (b, to, from, n_floats))
TIMED(embed, (B, OUT, const struct ds_weight *table, const uint32_t *tokens, N),
      (b, out, table, tokens, n))
TIMED(rms_norm, (B, OUT, IN, const struct ds_buffer *gamma, N, uint32_t width, float epsilon),
      (b, out, in, gamma, n, width, epsilon))
TIMED(layer_norm,
      (B, OUT, IN, const struct ds_buffer *gamma, const struct ds_buffer *beta, N, uint32_t width,
       float epsilon),
      (b, out, in, gamma, beta, n, width, epsilon))
TIMED(matmul, (B, const struct ds_product *products, unsigned n_products, IN, N),
      (b, products, n_products, in, n))
TIMED(matmul_heads,
      (B, const struct ds_slice *out, const struct ds_weight *stack, const struct ds_slice *in, N,
       uint32_t n_heads),
      (b, out, stack, in, n, n_heads))
TIMED(rope,
      (B, struct ds_buffer *x, const struct ds_rope *rope, const uint32_t *positions, N,
       uint32_t n_heads, uint32_t head_dim),
      (b, x, rope, positions, n, n_heads, head_dim))
TIMED(kv_write, (B, KV, LAYER, const struct ds_buffer *k, const struct ds_buffer *v, BATCH),
      (b, kv, layer, k, v, batch))
TIMED(kv_read, (B, OUT, CKV, LAYER, BATCH), (b, out, kv, layer, batch))
TIMED(attention,
      (B, OUT, const struct ds_buffer *q, CKV, LAYER, BATCH, uint32_t n_heads, float scale,
       uint32_t window),
      (b, out, q, kv, layer, batch, n_heads, scale, window))
TIMED(attention_chosen,
      (B, OUT, const struct ds_buffer *q, CKV, LAYER, BATCH, uint32_t n_heads, float scale,
       const struct ds_buffer *chosen, uint32_t top_k),
      (b, out, q, kv, layer, batch, n_heads, scale, chosen, top_k))
TIMED(index_write, (B, KV, LAYER, const struct ds_buffer *k, BATCH), (b, kv, layer, k, batch))
TIMED(index_choose,
      (B, struct ds_buffer *chosen, const struct ds_buffer *q, const struct ds_buffer *weights, CKV,
       LAYER, BATCH, uint32_t n_heads, uint32_t top_k),
      (b, chosen, q, weights, kv, layer, batch, n_heads, top_k))
TIMED(silu_mul,
      (B, OUT, const struct ds_buffer *gate, const struct ds_buffer *up, N, uint32_t width),
      (b, out, gate, up, n, width))
TIMED(route,
      (B, struct ds_buffer *chosen, struct ds_buffer *weights, const struct ds_buffer *logits,
       const struct ds_routing *routing, N),
      (b, chosen, weights, logits, routing, n))
TIMED(expert_ffn,
      (B, OUT, IN, const struct ds_experts *experts, const struct ds_buffer *chosen,
       const struct ds_buffer *weights, uint32_t n_used, N),
      (b, out, in, experts, chosen, weights, n_used, n))
TIMED(gather, (B, OUT, IN, const uint32_t *rows, N, uint32_t width), (b, out, in, rows, n, width))
TIMED(add_rows, (B, OUT, IN, const uint32_t *rows, const float *scales, N, uint32_t width),
      (b, out, in, rows, scales, n, width))
TIMED(copy,
      (B, const struct ds_slice *out, const struct ds_slice *in, N, uint32_t n_heads,
       uint32_t width),
      (b, out, in, n, n_heads, width))

void ds_timed_backend_start(struct ds_backend *backend)
{
    saved = *backend;
    spent_nsec = 0;
    backend->read = timed_read;
    backend->write = timed_write;
    backend->embed = timed_embed;
    backend->rms_norm = timed_rms_norm;
    backend->layer_norm = timed_layer_norm;
    backend->matmul = timed_matmul;
    backend->matmul_heads = timed_matmul_heads;
    backend->rope = timed_rope;
    backend->kv_write = timed_kv_write;
    backend->kv_read = timed_kv_read;
    backend->attention = timed_attention;
    backend->attention_chosen = timed_attention_chosen;
    backend->index_write = timed_index_write;
    backend->index_choose = timed_index_choose;
    backend->silu_mul = timed_silu_mul;
    backend->route = timed_route;
    backend->expert_ffn = timed_expert_ffn;
    backend->gather = timed_gather;
    backend->add_rows = timed_add_rows;
    backend->copy = timed_copy;
}

void ds_timed_backend_stop(struct ds_backend *backend)
{
    *backend = saved;
}

uint64_t ds_timed_backend_take(void)
{
    uint64_t nsec = spent_nsec;

    spent_nsec = 0;
    return nsec;
}
