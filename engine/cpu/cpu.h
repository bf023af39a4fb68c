/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.h - what the files of the CPU backend share: its state and its operations (backend.h). */
#pragma once

#include "engine/backend.h"
#include "engine/cpu/act.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/pool.h"
#include "engine/cpu/scratch.h"

/* Rows whose quantised form and sums stay in the second-level cache: whole groups. */
#define DS_TILE_ROWS (22 * DS_ACT_GROUP)

struct ds_buffer {
    size_t n_floats;
    float *data; /* page aligned */
    size_t mapping_bytes;
};

/* One head of one block lies as two sections (kernels.h): keys [key_dim][32 positions], values
 * [32][value_stride]; where values are shared, as one: keys [32][key_stride]. */
struct ds_kv {
    struct ds_kv_geometry geometry;
    uint32_t key_stride, value_stride;     /* key_dim, value_dim padded to 16 */
    uint32_t key_rotation, value_rotation; /* ds_kv_rotate()'s n; 0: as they are */
    struct ds_kv_section keys, values;     /* values.size_bytes 0: shared */
    size_t head_bytes;
    size_t mapping_bytes;
    void *data; /* [layer][block][kv head][head_bytes]; lazily backed */
    size_t index_bytes;
    void
        *index; /* [layer][block][index_dim][32] of float (F32) or f16; lazily backed; NULL: none */
};

/* cos and sin of the last positions asked for: every layer asks for the same. */
struct ds_rope_table {
    uint32_t n, n_pairs;
    float magnitude;
    struct ds_scratch positions;   /* uint32_t [n] */
    struct ds_scratch frequencies; /* [n_pairs] */
    struct ds_scratch cos_sin;     /* [n][2][n_pairs] */
};

/* What expert_ffn() keeps: rows sorted by expert ("slots": one for each row and chosen expert). */
struct ds_mixture {
    struct ds_scratch plan;          /* segments, tiles, slots */
    struct ds_scratch rows;          /* input rows for float weights [slot][width] */
    struct ds_scratch hidden;        /* [slot][ffn_width] */
    struct ds_act_memory act_in;     /* quantised input */
    struct ds_act_memory act_hidden; /* quantised hidden */
};

struct ds_cpu {
    struct ds_backend backend; /* first: the table we hand out */
    const struct ds_kernels *kernels;
    struct ds_pool *pool;
    struct ds_arena *arena;
    char description[64];

    struct ds_act_memory act;       /* quantised input of the current product */
    struct ds_scratch *threads;     /* [n_threads]: one each, for items */
    struct ds_scratch tiles, parts; /* attention */
    struct ds_scratch heads;        /* matmul_heads: float inputs */
    struct ds_scratch scores;       /* index_choose */
    struct ds_scratch picked;       /* attention_chosen: arrays of a batch */
    struct ds_kv *picked_kv;        /* and its cache; NULL: none yet */
    struct ds_rope_table rope;
    struct ds_mixture mixture;
};

static inline struct ds_cpu *ds_cpu(struct ds_backend *backend)
{
    return (struct ds_cpu *) backend;
}

static inline float *ds_slice_at(const struct ds_slice *slice, uint32_t row, uint32_t head)
{
    return slice->buffer->data + (size_t) row * slice->row_stride +
           (size_t) head * slice->head_stride + slice->first;
}

/* Head `head` of physical block `block`. */
void *ds_kv_head(const struct ds_kv *kv, uint32_t layer, uint32_t block, uint32_t head);

/* The index keys [index_dim][32] of physical block `block`. */
void *ds_kv_index(const struct ds_kv *kv, uint32_t layer, uint32_t block);

/* One position's keys as they are stored: from slot from_slot of a block of from to slot to_slot of
 * a block of layer 0 of to. Both are shared, and alike but for their size. */
void ds_kv_copy_slot(const struct ds_kv *to, uint32_t to_block, uint32_t to_slot,
                     const struct ds_kv *from, uint32_t layer, uint32_t from_block,
                     uint32_t from_slot);

/* Multiplies each n (a power of two that divides dim) of x[dim] by the orthonormal Hadamard matrix
 * of that size; twice is not at all. */
void ds_kv_rotate(float *x, uint32_t dim, uint32_t n);

/* The physical block that holds the row's sequence's logical block. */
static inline uint32_t ds_kv_block(const struct ds_batch *batch, uint32_t row, uint32_t logical)
{
    return batch->block_tables[(size_t) batch->sequences[row] * batch->blocks_max + logical];
}

int ds_cpu_matmul(struct ds_backend *backend, const struct ds_product *products,
                  unsigned n_products, const struct ds_buffer *in, uint32_t n);

/* acc[n_rows][16] = panel `panel` of an integer weight times rows first_row .. of act, which begins
 * a group there. */
void ds_cpu_multiply_panel(const struct ds_kernels *kernels, const struct ds_weight *weight,
                           uint32_t panel, const struct ds_act_memory *act, uint32_t first_row,
                           uint32_t n_rows, struct ds_tile *tile, float *acc);

int ds_cpu_route(struct ds_backend *backend, struct ds_buffer *chosen, struct ds_buffer *weights,
                 const struct ds_buffer *logits, const struct ds_routing *routing, uint32_t n);
int ds_cpu_expert_ffn(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_experts *experts, const struct ds_buffer *chosen,
                      const struct ds_buffer *weights, uint32_t n_used, uint32_t n);
void ds_mixture_deinit(struct ds_mixture *mixture);

int ds_cpu_kv_new(struct ds_backend *backend, const struct ds_kv_geometry *geometry,
                  struct ds_kv **ret_kv);
void ds_cpu_kv_free(struct ds_backend *backend, struct ds_kv *kv);
size_t ds_cpu_kv_bytes(const struct ds_kv_geometry *geometry);
int ds_cpu_kv_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                    const struct ds_buffer *k, const struct ds_buffer *v,
                    const struct ds_batch *batch);
int ds_cpu_attention(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *q,
                     const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                     uint32_t n_heads, float scale, uint32_t window);

int ds_cpu_embed(struct ds_backend *backend, struct ds_buffer *out, const struct ds_weight *table,
                 const uint32_t *tokens, uint32_t n);
int ds_cpu_rms_norm(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const struct ds_buffer *gamma, uint32_t n, uint32_t width, float epsilon);
int ds_cpu_rope(struct ds_backend *backend, struct ds_buffer *x, const struct ds_rope *rope,
                const uint32_t *positions, uint32_t n, uint32_t n_heads, uint32_t head_dim);
void ds_rope_table_deinit(struct ds_rope_table *table);
int ds_cpu_silu_mul(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *gate,
                    const struct ds_buffer *up, uint32_t n, uint32_t width);
int ds_cpu_gather(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                  const uint32_t *rows, uint32_t n, uint32_t width);
int ds_cpu_add_rows(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const uint32_t *rows, const float *scales, uint32_t n, uint32_t width);
int ds_cpu_copy(struct ds_backend *backend, const struct ds_slice *out, const struct ds_slice *in,
                uint32_t n, uint32_t n_heads, uint32_t width);
int ds_cpu_matmul_heads(struct ds_backend *backend, const struct ds_slice *out,
                        const struct ds_weight *stack, const struct ds_slice *in, uint32_t n,
                        uint32_t n_heads);
int ds_cpu_kv_read(struct ds_backend *backend, struct ds_buffer *out, const struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch);

int ds_cpu_layer_norm(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_buffer *gamma, const struct ds_buffer *beta, uint32_t n,
                      uint32_t width, float epsilon);
int ds_cpu_index_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                       const struct ds_buffer *k, const struct ds_batch *batch);
int ds_cpu_index_choose(struct ds_backend *backend, struct ds_buffer *chosen,
                        const struct ds_buffer *q, const struct ds_buffer *weights,
                        const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                        uint32_t n_heads, uint32_t top_k);
int ds_cpu_attention_chosen(struct ds_backend *backend, struct ds_buffer *out,
                            const struct ds_buffer *q, const struct ds_kv *kv, uint32_t layer,
                            const struct ds_batch *batch, uint32_t n_heads, float scale,
                            const struct ds_buffer *chosen, uint32_t top_k);

int ds_cpu_limits(struct ds_backend *backend, struct ds_limits *ret_limits);

/* cos and sin of x to within 2^-50 while |x| < 1e8; the same on every machine. */
void ds_sincos(double x, double *ret_sin, double *ret_cos);
