/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes a GGUF file with the shapes of a real model and random weights, for benches where the real
 * file is not at hand: every reader of GGUF loads it, and it costs a reader as much time and memory
 * as the real one. What it says makes no sense.
 *
 * usage: synth_gguf [--layers N] SHAPE TYPE FILE
 *        SHAPE  smollm2-135m, r1-distill-qwen-1.5b, r1-distill-qwen-7b, r1-distill-llama-8b,
 * v2-lite TYPE   a tensor type (Q8_0, Q4_0, F16, ...) for every matrix, or Q4_K_M: the mixture of
 *               Q4_K and Q6_K that llama.cpp's quantiser makes under that name
 *
 * A matrix is one quantised tile of normal values laid again and again; the tile's length shares no
 * factor with a row's, so that rows differ. The shapes' sources: the models' config.json.
 */
#include <math.h>

#include "engine/format/quant.h"
#include "tests/lib/gguf_writer.h"

/* Blocks of 256 in a tile: a prime, so that no row length divides it. */
enum { TILE_BLOCKS = 4099, TILE = 256 * TILE_BLOCKS, TYPES_MAX = 64 };

struct shape {
    const char *name, *architecture, *pre;
    uint32_t n_layers, width, ffn_width, n_heads, n_kv_heads, head_dim, n_vocab, context;
    float rope_base, epsilon;
    bool tied, biases, rope_factors;
    /* mixture of experts with MLA; 0 experts: a dense model */
    uint32_t n_experts, n_used, n_shared, expert_width, n_dense, kv_rank, nope_dim, rope_dim;
};

static const struct shape shapes[] = {
    { "smollm2-135m", "llama", "smollm", 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5f, 1e-5f,
      .tied = true },
    { "r1-distill-qwen-1.5b", "qwen2", "deepseek-r1-qwen", 28, 1536, 8960, 12, 2, 128, 151936,
      131072, 1e4f, 1e-6f, .biases = true },
    { "r1-distill-qwen-7b", "qwen2", "deepseek-r1-qwen", 28, 3584, 18944, 28, 4, 128, 152064,
      131072, 1e4f, 1e-6f, .biases = true },
    { "r1-distill-llama-8b", "llama", "llama-bpe", 32, 4096, 14336, 32, 8, 128, 128256, 131072,
      5e5f, 1e-5f, .rope_factors = true },
    { "v2-lite",
      "deepseek2",
      "deepseek-llm",
      27,
      2048,
      10944,
      16,
      1,
      192,
      102400,
      163840,
      1e4f,
      1e-6f,
      .n_experts = 64,
      .n_used = 6,
      .n_shared = 2,
      .expert_width = 1408,
      .n_dense = 1,
      .kv_rank = 512,
      .nope_dim = 128,
      .rope_dim = 64 },
};

struct synth {
    const struct shape *shape;
    uint32_t n_layers, type; /* type of matrices without a rule of their own */
    bool mixture;            /* Q4_K_M */
    struct ds_gguf_writer *writer;
    float *normal; /* [TILE] */
    uint8_t *tiles[TYPES_MAX];
    size_t tile_bytes[TYPES_MAX];
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "synth_gguf: %s: %s\n", what, why);
    exit(1);
}

/* --- weights --- */

/* Sum of twelve uniforms: nearly normal, variance 1 (splitmix64, Steele, Lea, Flood 2014). */
static float next_normal(uint64_t *state)
{
    float sum = -6.0f;

    for (int i = 0; i < 3; i++) {
        uint64_t z = *state += 0x9e3779b97f4a7c15u;

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        for (int j = 0; j < 4; j++)
            sum += (float) (z >> 16 * j & 0xffff) / 65536.0f;
    }
    return sum;
}

/* The type's tile, made when it is first asked for. */
static const uint8_t *tile_of(struct synth *synth, uint32_t type)
{
    if (type >= TYPES_MAX || !ds_type_traits(type))
        die(ds_type_name(type), "no type that this build reads: take Q8_0 or Q4_K_M");
    if (synth->tiles[type])
        return synth->tiles[type];
    synth->tile_bytes[type] = ds_type_row_bytes(type, TILE);
    synth->tiles[type] = malloc(synth->tile_bytes[type]);
    if (!synth->tiles[type])
        die(ds_type_name(type), "no memory");
    if (ds_quantise(type, synth->normal, synth->tiles[type], TILE) < 0)
        die(ds_type_name(type), "there is no quantiser for this type: take Q8_0 or Q4_K_M");
    return synth->tiles[type];
}

/* What is taken for rows that are not whole blocks of type: llama.cpp's choices. */
static uint32_t fallback(uint32_t type, uint64_t k)
{
    if (k % ds_type_traits(type)->block_elements == 0)
        return type;
    switch (type) {
    case DS_TYPE_Q4_K:
        return DS_TYPE_Q5_0;
    case DS_TYPE_Q5_K:
        return DS_TYPE_Q5_1;
    default:
        return k % 32 == 0 ? DS_TYPE_Q8_0 : DS_TYPE_F16;
    }
}

static void put(struct synth *synth, const char *name, uint32_t type, unsigned n_dims,
                const uint64_t *dims)
{
    uint64_t n = dims[0] * (n_dims > 1 ? dims[1] : 1) * (n_dims > 2 ? dims[2] : 1);
    const uint8_t *tile;

    type = fallback(type, dims[0]);
    tile = tile_of(synth, type);
    ds_gguf_writer_tiled(synth->writer, name, type, n_dims, dims, tile, synth->tile_bytes[type],
                         ds_type_row_bytes(type, n));
}

/* A matrix {k, n} or n_experts of them; more: the mixture gives it more bits. */
static void put_matrix(struct synth *synth, uint32_t layer, const char *name, uint64_t k,
                       uint64_t n, uint64_t n_experts, bool more)
{
    const uint64_t dims[] = { k, n, n_experts };
    char full[64];

    (void) snprintf(full, sizeof full, "blk.%u.%s.weight", layer, name);
    put(synth, full, synth->mixture && more ? (uint32_t) DS_TYPE_Q6_K : synth->type,
        n_experts ? 3 : 2, dims);
}

/* mean + 0.1 * normal */
static void put_vector(struct synth *synth, int layer, const char *name, uint64_t n, float mean)
{
    float *values = calloc(n, sizeof *values);
    char full[64];

    if (!values)
        die(name, "no memory");
    for (uint64_t i = 0; i < n; i++)
        values[i] = mean + 0.1f * synth->normal[(i * 7 + (uint64_t) (layer + 1) * 131) % TILE];
    if (layer < 0)
        (void) snprintf(full, sizeof full, "%s", name);
    else
        (void) snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    ds_gguf_writer_floats(synth->writer, full, DS_TYPE_F32, 1, &n, values);
    free(values);
}

/* The layers whose value and down matrices Q4_K_M holds in Q6_K: both ends and every third. */
static bool more_bits(uint32_t i, uint32_t n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static void put_attention(struct synth *synth, uint32_t i, bool more)
{
    const struct shape *s = synth->shape;
    const uint64_t d = s->width, q = (uint64_t) s->n_heads * s->head_dim;
    const uint64_t kv = (uint64_t) s->n_kv_heads * s->head_dim;
    const int layer = (int) i;

    put_vector(synth, layer, "attn_norm.weight", d, 1.0f);
    put_matrix(synth, i, "attn_q", d, q, 0, false);
    if (s->kv_rank) {
        put_matrix(synth, i, "attn_kv_a_mqa", d, s->kv_rank + s->rope_dim, 0, false);
        put_vector(synth, layer, "attn_kv_a_norm.weight", s->kv_rank, 1.0f);
        put_matrix(synth, i, "attn_k_b", s->nope_dim, s->kv_rank, s->n_heads, false);
        put_matrix(synth, i, "attn_v_b", s->kv_rank, s->nope_dim, s->n_heads, false);
        put_matrix(synth, i, "attn_output", (uint64_t) s->n_heads * s->nope_dim, d, 0, false);
        return;
    }
    put_matrix(synth, i, "attn_k", d, kv, 0, false);
    put_matrix(synth, i, "attn_v", d, kv, 0, more);
    put_matrix(synth, i, "attn_output", q, d, 0, false);
    if (!s->biases)
        return;
    put_vector(synth, layer, "attn_q.bias", q, 0.0f);
    put_vector(synth, layer, "attn_k.bias", kv, 0.0f);
    put_vector(synth, layer, "attn_v.bias", kv, 0.0f);
}

static void put_ffn(struct synth *synth, uint32_t i, bool more)
{
    const struct shape *s = synth->shape;
    const uint64_t d = s->width, f = s->ffn_width, fe = s->expert_width;
    const uint64_t shared = fe * s->n_shared, router[] = { d, s->n_experts };
    char name[64];

    put_vector(synth, (int) i, "ffn_norm.weight", d, 1.0f);
    if (i < s->n_dense || !s->n_experts) {
        put_matrix(synth, i, "ffn_gate", d, f, 0, false);
        put_matrix(synth, i, "ffn_up", d, f, 0, false);
        put_matrix(synth, i, "ffn_down", f, d, 0, more);
        return;
    }
    (void) snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.weight", i);
    put(synth, name, DS_TYPE_F32, 2, router);
    put_matrix(synth, i, "ffn_gate_exps", d, fe, s->n_experts, false);
    put_matrix(synth, i, "ffn_up_exps", d, fe, s->n_experts, false);
    put_matrix(synth, i, "ffn_down_exps", fe, d, s->n_experts, more);
    put_matrix(synth, i, "ffn_gate_shexp", d, shared, 0, false);
    put_matrix(synth, i, "ffn_up_shexp", d, shared, 0, false);
    put_matrix(synth, i, "ffn_down_shexp", shared, d, 0, more);
}

static void put_weights(struct synth *synth)
{
    const struct shape *s = synth->shape;
    const uint64_t table[] = { s->width, s->n_vocab };

    put(synth, "token_embd.weight",
        synth->mixture && s->tied ? (uint32_t) DS_TYPE_Q6_K : synth->type, 2, table);
    for (uint32_t i = 0; i < synth->n_layers; i++) {
        put_attention(synth, i, more_bits(i, synth->n_layers));
        put_ffn(synth, i, more_bits(i, synth->n_layers));
    }
    put_vector(synth, -1, "output_norm.weight", s->width, 1.0f);
    if (!s->tied)
        put(synth, "output.weight", synth->mixture ? (uint32_t) DS_TYPE_Q6_K : synth->type, 2,
            table);
    if (s->rope_factors) {
        uint64_t n = s->head_dim / 2;
        float *factors = calloc(n, sizeof *factors);

        if (!factors)
            die("rope_freqs.weight", "no memory");
        for (uint64_t i = 0; i < n; i++)
            factors[i] = i < n / 2 ? 1.0f : 8.0f;
        ds_gguf_writer_floats(synth->writer, "rope_freqs.weight", DS_TYPE_F32, 1, &n, factors);
        free(factors);
    }
}

/* --- keys --- */

static void put_key(struct synth *synth, const char *key, uint32_t value)
{
    char full[96];

    (void) snprintf(full, sizeof full, "%s.%s", synth->shape->architecture, key);
    ds_gguf_writer_u32(synth->writer, full, value);
}

static void put_float_key(struct synth *synth, const char *key, float value)
{
    char full[96];

    (void) snprintf(full, sizeof full, "%s.%s", synth->shape->architecture, key);
    ds_gguf_writer_f32(synth->writer, full, value);
}

static void put_expert_keys(struct synth *synth)
{
    const struct shape *s = synth->shape;

    put_key(synth, "expert_count", s->n_experts);
    put_key(synth, "expert_used_count", s->n_used);
    put_key(synth, "expert_shared_count", s->n_shared);
    put_key(synth, "expert_feed_forward_length", s->expert_width);
    put_key(synth, "expert_gating_func", 1); /* softmax */
    put_key(synth, "leading_dense_block_count", s->n_dense);
    put_float_key(synth, "expert_weights_scale", 1.0f);
    ds_gguf_writer_bool(synth->writer, "deepseek2.expert_weights_norm", 0);
    put_key(synth, "attention.kv_lora_rank", s->kv_rank);
    put_key(synth, "attention.key_length", s->kv_rank + s->rope_dim);
    put_key(synth, "attention.value_length", s->kv_rank);
    put_key(synth, "attention.key_length_mla", s->nope_dim + s->rope_dim);
    put_key(synth, "attention.value_length_mla", s->nope_dim);
    put_key(synth, "rope.dimension_count", s->rope_dim);
    ds_gguf_writer_string(synth->writer, "deepseek2.rope.scaling.type", "yarn");
    put_float_key(synth, "rope.scaling.factor", 40.0f);
    put_key(synth, "rope.scaling.original_context_length", 4096);
    put_float_key(synth, "rope.scaling.yarn_log_multiplier", 0.0707f);
}

static void put_keys(struct synth *synth)
{
    const struct shape *s = synth->shape;

    ds_gguf_writer_string(synth->writer, "general.architecture", s->architecture);
    ds_gguf_writer_string(synth->writer, "general.name", s->name);
    ds_gguf_writer_u32(synth->writer, "general.quantization_version", 2);
    put_key(synth, "context_length", s->context);
    put_key(synth, "embedding_length", s->width);
    put_key(synth, "block_count", synth->n_layers);
    put_key(synth, "feed_forward_length", s->ffn_width);
    put_key(synth, "vocab_size", s->n_vocab);
    put_key(synth, "attention.head_count", s->n_heads);
    put_key(synth, "attention.head_count_kv", s->n_kv_heads);
    put_float_key(synth, "attention.layer_norm_rms_epsilon", s->epsilon);
    put_float_key(synth, "rope.freq_base", s->rope_base);
    if (s->n_experts)
        put_expert_keys(synth);
    else
        put_key(synth, "rope.dimension_count", s->head_dim);
}

/* Byte b as the character that byte-level BPE writes for it. */
static unsigned byte_character(unsigned b, char *to)
{
    static const unsigned char printable[][2] = { { 0x21, 0x7e }, { 0xa1, 0xac }, { 0xae, 0xff } };
    unsigned point = 0x100;

    for (unsigned c = 0; c <= b; c++) {
        bool plain = false;

        for (unsigned i = 0; i < 3; i++)
            plain |= c >= printable[i][0] && c <= printable[i][1];
        if (c == b && plain)
            point = b;
        else if (c < b && !plain)
            point++;
    }
    if (point < 0x80) {
        to[0] = (char) point;
        return 1;
    }
    to[0] = (char) (0xc0 | point >> 6);
    to[1] = (char) (0x80 | (point & 0x3f));
    return 2;
}

/* Tokens: the 256 bytes, all pairs of bytes, then triples, and two control tokens at the end. The
 * token numbered 256 + i is pair i; every one has the merge that makes it. */
static void put_vocab(struct synth *synth)
{
    const uint32_t n = synth->shape->n_vocab, n_plain = n - 2;
    struct ds_bytes *tokens = calloc(n, sizeof *tokens), *merges = calloc(n, sizeof *merges);
    int32_t *types = calloc(n, sizeof *types);
    char *text = malloc((size_t) n * 16), *at = text;
    char bytes[256][2];
    unsigned sizes[256];

    if (!tokens || !merges || !types || !text)
        die("tokenizer.ggml.tokens", "no memory");
    for (unsigned b = 0; b < 256; b++)
        sizes[b] = byte_character(b, bytes[b]);
    for (uint32_t i = 0; i < n_plain; i++) {
        uint32_t left = i < 256 ? 0 : i < 256 + 65536 ? (i - 256) / 256 : 256 + (i - 65792) / 256;
        unsigned last = i < 256 ? i : (i - 256) % 256;

        types[i] = DS_TOKEN_NORMAL;
        tokens[i].data = at;
        if (i >= 256)
            at = mempcpy(at, tokens[left].data, tokens[left].size);
        at = mempcpy(at, bytes[last], sizes[last]);
        tokens[i].size = (size_t) (at - tokens[i].data);
        if (i < 256)
            continue;
        merges[i - 256].data = at;
        at = mempcpy(at, tokens[left].data, tokens[left].size);
        *at++ = ' ';
        at = mempcpy(at, bytes[last], sizes[last]);
        merges[i - 256].size = (size_t) (at - merges[i - 256].data);
    }
    tokens[n - 2] = (struct ds_bytes){ "<|begin|>", 9 };
    tokens[n - 1] = (struct ds_bytes){ "<|end|>", 7 };
    types[n - 2] = types[n - 1] = DS_TOKEN_CONTROL;
    ds_gguf_writer_string(synth->writer, "tokenizer.ggml.model", "gpt2");
    ds_gguf_writer_string(synth->writer, "tokenizer.ggml.pre", synth->shape->pre);
    ds_gguf_writer_strings(synth->writer, "tokenizer.ggml.tokens", tokens, n);
    ds_gguf_writer_array(synth->writer, "tokenizer.ggml.token_type", DS_GGUF_I32, types,
                         sizeof *types, n);
    ds_gguf_writer_strings(synth->writer, "tokenizer.ggml.merges", merges, n_plain - 256);
    ds_gguf_writer_u32(synth->writer, "tokenizer.ggml.bos_token_id", n - 2);
    ds_gguf_writer_u32(synth->writer, "tokenizer.ggml.eos_token_id", n - 1);
    free(tokens);
    free(merges);
    free(types);
    free(text);
}

/* --- command line --- */

static uint32_t type_by_name(const char *name)
{
    for (uint32_t type = 0; type < TYPES_MAX; type++) {
        if (ds_type_traits(type) && strcmp(ds_type_traits(type)->name, name) == 0)
            return type;
    }
    die(name, "no type that this build reads: take Q4_K_M, Q8_0, F16, ...");
    return 0;
}

static const struct shape *shape_by_name(const char *name)
{
    for (unsigned i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    }
    die(name, "no such shape: see the list at the top of tests/bench/synth_gguf.c");
    return NULL;
}

int main(int argc, char **argv)
{
    struct synth synth = { .writer = ds_gguf_writer_new() };
    uint64_t state = 1;
    int at = 1, r;

    if (argc > 2 && strcmp(argv[1], "--layers") == 0) {
        synth.n_layers = (uint32_t) strtoul(argv[2], NULL, 10);
        at = 3;
        if (synth.n_layers == 0)
            die("--layers", "wants a number above 0");
    }
    if (argc - at != 3) {
        fprintf(stderr, "usage: synth_gguf [--layers N] SHAPE TYPE FILE\n");
        return 2;
    }
    synth.shape = shape_by_name(argv[at]);
    synth.mixture = strcmp(argv[at + 1], "Q4_K_M") == 0;
    synth.type = synth.mixture ? (uint32_t) DS_TYPE_Q4_K : type_by_name(argv[at + 1]);
    if (synth.n_layers == 0)
        synth.n_layers = synth.shape->n_layers;
    synth.normal = malloc(TILE * sizeof *synth.normal);
    if (!synth.normal)
        die("weights", "no memory");
    for (uint32_t i = 0; i < TILE; i++)
        synth.normal[i] = 0.02f * next_normal(&state);
    put_keys(&synth);
    put_vocab(&synth);
    put_weights(&synth);
    r = ds_gguf_writer_file(synth.writer, argv[at + 2]);
    if (r < 0)
        die(argv[at + 2], strerror(-r));
    ds_gguf_writer_free(synth.writer);
    for (unsigned i = 0; i < TYPES_MAX; i++)
        free(synth.tiles[i]);
    free(synth.normal);
    return 0;
}
