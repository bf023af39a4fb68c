/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/tiny_model.h"

#include <math.h>

#include "engine/format/quant.h"
#include "tests/lib/tiny_vocab.h"

static const char *const names[] = { "llama", "qwen2", "qwen3", "qwen3moe" };

struct ds_tiny_options ds_tiny_options(enum ds_architecture architecture, uint32_t type)
{
    const struct ds_type_traits *traits = ds_type_traits(type);
    bool wide = traits && traits->block_elements > 64;

    return (struct ds_tiny_options){
        .architecture = architecture,
        .vocab = DS_VOCAB_BPE,
        .type = type,
        .seed = 1,
        .n_layers = 2,
        .width = wide ? 256 : 64,
        .ffn_width = wide ? 256 : 96,
        .n_heads = 4,
        .n_kv_heads = 2,
        .head_dim = wide ? 64 : 16,
        .n_vocab = 320,
        .context = 512,
        .tied = architecture == DS_ARCH_QWEN2,
        .n_experts = architecture == DS_ARCH_QWEN3MOE ? 6 : 0,
        .n_experts_used = 2,
        .expert_ffn_width = wide ? 256 : 32,
    };
}

/* --- weights --- */

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Nearly normal with variance 1: sums of uniforms round alike on every machine, logarithms not. */
static float next_normal(uint64_t *state)
{
    int64_t sum = 0;

    for (int i = 0; i < 3; i++) {
        uint64_t r = next_random(state);

        for (int j = 0; j < 4; j++)
            sum += (int64_t) (r >> 16 * j & 0xffff);
    }
    return (float) (sum - 6 * 0xffff) / 65536.0f;
}

/* Where tensors go: one writer, or the next of several once it is full. */
struct sink {
    struct ds_gguf_writer **writers;
    unsigned n_writers, per_writer, written;
    const struct ds_tiny_options *options;
    uint64_t state;
};

/* {columns, rows} or, with planes, {columns, rows, planes} */
static void put_values(struct sink *sink, const char *name, uint64_t columns, uint64_t rows,
                       uint64_t planes, const float *values)
{
    const struct ds_type_traits *traits = ds_type_traits(sink->options->type);
    uint64_t dims[3] = { columns, rows, planes };
    bool plain = rows == 0 || !traits || columns % traits->block_elements != 0;
    unsigned at = sink->written++ / sink->per_writer;

    ds_gguf_writer_floats(sink->writers[at < sink->n_writers ? at : sink->n_writers - 1], name,
                          plain ? DS_TYPE_F32 : sink->options->type,
                          planes ? 3
                          : rows ? 2
                                 : 1,
                          dims, values);
}

static float *random_values(struct sink *sink, uint64_t n, float mean, float deviation)
{
    float *values = calloc(n, sizeof *values);

    if (!values)
        abort();
    for (uint64_t i = 0; i < n; i++)
        values[i] = mean + deviation * next_normal(&sink->state);
    return values;
}

static void put_tensor(struct sink *sink, const char *name, uint64_t columns, uint64_t rows,
                       float mean, float deviation)
{
    float *values = random_values(sink, columns * (rows ? rows : 1), mean, deviation);

    put_values(sink, name, columns, rows, 0, values);
    free(values);
}

static void put_matrix(struct sink *sink, int layer, const char *name, uint64_t columns,
                       uint64_t rows, float gain)
{
    char full[64];

    (void) snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    put_tensor(sink, full, columns, rows, 0.0f, gain / sqrtf((float) columns));
}

static void put_vector(struct sink *sink, int layer, const char *name, uint64_t size, float mean,
                       float deviation)
{
    char full[64];

    (void) snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    put_tensor(sink, full, size, 0, mean, deviation);
}

/* All experts' matrices of one kind, in a tensor or one by one. */
static void put_experts(struct sink *sink, int layer, const char *name, uint64_t columns,
                        uint64_t rows, const float *values)
{
    uint64_t n = sink->options->n_experts;
    char full[64];

    if (sink->options->experts != DS_TINY_SEPARATE) {
        (void) snprintf(full, sizeof full, "blk.%d.%s_exps.weight", layer, name);
        put_values(sink, full, columns, rows, n, values);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        (void) snprintf(full, sizeof full, "blk.%d.%s.%u.weight", layer, name, (unsigned) i);
        put_values(sink, full, columns, rows, 0, values + i * columns * rows);
    }
}

/* Each expert's gate, then its up. */
static void put_merged(struct sink *sink, int layer, const float *gate, const float *up)
{
    const struct ds_tiny_options *o = sink->options;
    size_t n = (size_t) o->width * o->expert_ffn_width;
    float *both = calloc(2 * n * o->n_experts, sizeof *both);

    if (!both)
        abort();
    for (size_t i = 0; i < o->n_experts; i++) {
        memcpy(both + 2 * i * n, gate + i * n, n * sizeof *both);
        memcpy(both + (2 * i + 1) * n, up + i * n, n * sizeof *both);
    }
    put_experts(sink, layer, "ffn_gate_up", o->width, 2 * (uint64_t) o->expert_ffn_width, both);
    free(both);
}

static void put_mixture(struct sink *sink, int layer)
{
    const struct ds_tiny_options *o = sink->options;
    uint64_t d = o->width, f = o->expert_ffn_width, n = d * f * o->n_experts;
    float *router = random_values(sink, d * o->n_experts, 0.0f, 3.0f / sqrtf((float) d));
    float *gate = random_values(sink, n, 0.0f, 1.0f / sqrtf((float) d));
    float *up = random_values(sink, n, 0.0f, 1.0f / sqrtf((float) d));
    float *down = random_values(sink, n, 0.0f, 1.0f / sqrtf((float) f));
    unsigned at = sink->written++ / sink->per_writer;
    uint64_t dims[2] = { d, o->n_experts };
    char full[64];

    (void) snprintf(full, sizeof full, "blk.%d.ffn_gate_inp.weight", layer);
    ds_gguf_writer_floats(sink->writers[at < sink->n_writers ? at : sink->n_writers - 1], full,
                          DS_TYPE_F32, 2, dims, router);
    if (o->experts == DS_TINY_MERGED) {
        put_merged(sink, layer, gate, up);
    } else {
        put_experts(sink, layer, "ffn_gate", d, f, gate);
        put_experts(sink, layer, "ffn_up", d, f, up);
    }
    put_experts(sink, layer, "ffn_down", f, d, down);
    if (o->n_experts_shared) {
        put_matrix(sink, layer, "ffn_gate_shexp", d, f * o->n_experts_shared, 1.0f);
        put_matrix(sink, layer, "ffn_up_shexp", d, f * o->n_experts_shared, 1.0f);
        put_matrix(sink, layer, "ffn_down_shexp", f * o->n_experts_shared, d, 1.0f);
    }
    free(router);
    free(gate);
    free(up);
    free(down);
}

static bool has_experts(const struct ds_tiny_options *o, uint32_t layer)
{
    return o->n_experts > 0 && !(o->dense_first && layer == 0);
}

static bool has_head_norms(const struct ds_tiny_options *o)
{
    return o->architecture == DS_ARCH_QWEN3 || o->architecture == DS_ARCH_QWEN3MOE;
}

static void put_layer(struct sink *sink, int layer)
{
    const struct ds_tiny_options *o = sink->options;
    uint64_t d = o->width, q = (uint64_t) o->n_heads * o->head_dim;
    uint64_t kv = (uint64_t) o->n_kv_heads * o->head_dim;

    put_vector(sink, layer, "attn_norm.weight", d, 1.0f, 0.3f);
    put_matrix(sink, layer, "attn_q", d, q, 1.5f);
    put_matrix(sink, layer, "attn_k", d, kv, 1.5f);
    put_matrix(sink, layer, "attn_v", d, kv, 1.0f);
    put_matrix(sink, layer, "attn_output", q, d, 1.0f);
    if (o->architecture == DS_ARCH_QWEN2) {
        put_vector(sink, layer, "attn_q.bias", q, 0.0f, 0.5f);
        put_vector(sink, layer, "attn_k.bias", kv, 0.0f, 0.5f);
        put_vector(sink, layer, "attn_v.bias", kv, 0.0f, 0.5f);
    }
    if (has_head_norms(o)) {
        put_vector(sink, layer, "attn_q_norm.weight", o->head_dim, 1.0f, 0.3f);
        put_vector(sink, layer, "attn_k_norm.weight", o->head_dim, 1.0f, 0.3f);
    }
    put_vector(sink, layer, "ffn_norm.weight", d, 1.0f, 0.3f);
    if (has_experts(o, (uint32_t) layer)) {
        put_mixture(sink, layer);
        return;
    }
    put_matrix(sink, layer, "ffn_gate", d, o->ffn_width, 1.0f);
    put_matrix(sink, layer, "ffn_up", d, o->ffn_width, 1.0f);
    put_matrix(sink, layer, "ffn_down", o->ffn_width, d, 1.0f);
}

static void put_rope_factors(struct sink *sink)
{
    uint64_t n = sink->options->head_dim / 2;
    float factors[512];

    for (uint64_t i = 0; i < n && i < 512; i++)
        factors[i] = i < n / 2 ? 1.0f : 8.0f;
    ds_gguf_writer_floats(sink->writers[0], "rope_freqs.weight", DS_TYPE_F32, 1, &n, factors);
}

static void put_weights(struct sink *sink)
{
    const struct ds_tiny_options *o = sink->options;

    if (o->vocab_only)
        return;
    put_tensor(sink, "token_embd.weight", o->width, o->n_vocab, 0.0f, 1.0f);
    if (o->rope_factors)
        put_rope_factors(sink);
    for (uint32_t i = 0; i < o->n_layers; i++)
        put_layer(sink, (int) i);
    put_tensor(sink, "output_norm.weight", o->width, 0, 1.0f, 0.3f);
    if (!o->tied)
        put_tensor(sink, "output.weight", o->width, o->n_vocab, 0.0f,
                   3.0f / sqrtf((float) o->width));
}

/* --- keys --- */

static void put_u32(struct ds_gguf_writer *writer, const struct ds_tiny_options *o,
                    const char *suffix, uint32_t value)
{
    char key[96];

    (void) snprintf(key, sizeof key, "%s.%s", names[o->architecture], suffix);
    ds_gguf_writer_u32(writer, key, value);
}

static void put_f32(struct ds_gguf_writer *writer, const struct ds_tiny_options *o,
                    const char *suffix, float value)
{
    char key[96];

    (void) snprintf(key, sizeof key, "%s.%s", names[o->architecture], suffix);
    ds_gguf_writer_f32(writer, key, value);
}

static void put_rope_keys(struct ds_gguf_writer *writer, const struct ds_tiny_options *o)
{
    char key[96];

    put_u32(writer, o, "rope.dimension_count", o->head_dim);
    put_f32(writer, o, "rope.freq_base", 10000.0f);
    if (o->rope_scaling == DS_ROPE_NONE)
        return;
    (void) snprintf(key, sizeof key, "%s.rope.scaling.type", names[o->architecture]);
    ds_gguf_writer_string(writer, key, o->rope_scaling == DS_ROPE_YARN ? "yarn" : "linear");
    put_f32(writer, o, "rope.scaling.factor", 4.0f);
    put_u32(writer, o, "rope.scaling.original_context_length", o->context / 4);
}

static void put_expert_keys(struct ds_gguf_writer *writer, const struct ds_tiny_options *o)
{
    put_u32(writer, o, "expert_count", o->n_experts);
    put_u32(writer, o, "expert_used_count", o->n_experts_used);
    put_u32(writer, o, "expert_feed_forward_length", o->expert_ffn_width);
    if (o->n_experts_shared)
        put_u32(writer, o, "expert_shared_count", o->n_experts_shared);
}

static void put_keys(struct ds_gguf_writer *writer, const struct ds_tiny_options *o)
{
    ds_gguf_writer_string(writer, "general.architecture", names[o->architecture]);
    ds_gguf_writer_string(writer, "general.name", o->name ? o->name : "tiny");
    ds_gguf_writer_string(writer, "general.type", "model");
    put_u32(writer, o, "vocab_size", o->n_vocab);
    put_u32(writer, o, "context_length", o->context);
    put_u32(writer, o, "embedding_length", o->width);
    put_u32(writer, o, "block_count", o->n_layers);
    put_u32(writer, o, "feed_forward_length", o->ffn_width);
    put_u32(writer, o, "attention.head_count", o->n_heads);
    put_u32(writer, o, "attention.head_count_kv", o->n_kv_heads);
    put_u32(writer, o, "attention.key_length", o->head_dim);
    put_u32(writer, o, "attention.value_length", o->head_dim);
    put_f32(writer, o, "attention.layer_norm_rms_epsilon", 1e-5f);
    if (o->n_experts)
        put_expert_keys(writer, o);
    if (o->window)
        put_u32(writer, o, "attention.sliding_window", o->window);
    put_rope_keys(writer, o);
    ds_tiny_vocab_write(writer, o);
}

void ds_tiny_model_write(struct ds_gguf_writer *writer, const struct ds_tiny_options *options)
{
    struct sink sink = { &writer, 1, UINT32_MAX, 0, options, options->seed };

    put_keys(writer, options);
    put_weights(&sink);
}

int ds_tiny_model_fd(const struct ds_tiny_options *options)
{
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = ds_gguf_writer_new();

    ds_tiny_model_write(writer, options);
    return ds_gguf_writer_memfd(writer);
}

int ds_tiny_model_file(const struct ds_tiny_options *options, const char *path)
{
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = ds_gguf_writer_new();

    ds_tiny_model_write(writer, options);
    return ds_gguf_writer_file(writer, path);
}

static unsigned count_tensors(const struct ds_tiny_options *o)
{
    static const unsigned kinds[] = { 3, 2, 3 };
    unsigned experts = kinds[o->experts] * (o->experts == DS_TINY_SEPARATE ? o->n_experts : 1);
    unsigned n = 2 + !o->tied + o->rope_factors;

    for (uint32_t i = 0; i < o->n_layers; i++) {
        n += 6 + (o->architecture == DS_ARCH_QWEN2 ? 3 : 0) + (has_head_norms(o) ? 2 : 0);
        n += has_experts(o, i) ? 1 + experts + (o->n_experts_shared ? 3 : 0) : 3;
    }
    return o->vocab_only ? 0 : n;
}

int ds_tiny_model_split(const struct ds_tiny_options *options, unsigned n_files, int *ret_fds)
{
    struct ds_gguf_writer **writers = calloc(n_files, sizeof *writers);
    unsigned n_tensors = count_tensors(options);
    struct sink sink = { writers, n_files, (n_tensors + n_files - 1) / n_files,
                         0,       options, options->seed };
    int r = 0;

    if (!writers)
        return -1;
    for (unsigned i = 0; i < n_files; i++) {
        writers[i] = ds_gguf_writer_new();
        if (i == 0)
            put_keys(writers[0], options);
        ds_gguf_writer_u16(writers[i], "split.no", (uint16_t) i);
        ds_gguf_writer_u16(writers[i], "split.count", (uint16_t) n_files);
        ds_gguf_writer_i32(writers[i], "split.tensors.count", (int32_t) n_tensors);
    }
    put_weights(&sink);
    for (unsigned i = 0; i < n_files; i++) {
        ret_fds[i] = ds_gguf_writer_memfd(writers[i]);
        r = ret_fds[i] < 0 ? -1 : r;
        writers[i] = ds_gguf_writer_free(writers[i]);
    }
    free(writers);
    return r;
}
