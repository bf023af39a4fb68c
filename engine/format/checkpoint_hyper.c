/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/checkpoint_parts.h"

static const struct ds_architecture_traits architectures[] = {
    [DS_ARCH_LLAMA] = { "llama", "Llama 2, 3 and 3.x; R1-Distill-Llama; SmolLM2; Mistral", false },
    [DS_ARCH_QWEN2] = { "qwen2", "Qwen 2 and 2.5; R1-Distill-Qwen", true },
    [DS_ARCH_QWEN3] = { "qwen3", "Qwen 3, dense; R1-0528-Qwen3", true },
    [DS_ARCH_QWEN3MOE] = { "qwen3moe", "Qwen 3 with experts", true },
    [DS_ARCH_DEEPSEEK2] = { "deepseek2", "DeepSeek V2, V2-Lite, V3, V3.1, R1", false },
    [DS_ARCH_DEEPSEEK32] = { "deepseek32", "DeepSeek V3.2: sparse attention by an indexer", false },
};

const struct ds_architecture_traits *ds_architecture_traits(unsigned architecture)
{
    return architecture < sizeof architectures / sizeof architectures[0]
               ? &architectures[architecture]
               : NULL;
}

/* Keys that carry the architecture's name: "llama.block_count". */
struct prefixed {
    struct ds_key_reader reader;
    const char *architecture;
    bool required; /* false for vocabulary-only files */
    char name[160];
};

static const char *key_name(struct prefixed *keys, const char *suffix)
{
    (void) snprintf(keys->name, sizeof keys->name, "%s.%s", keys->architecture, suffix);
    return keys->name;
}

static int get_u32(struct prefixed *keys, const char *suffix, bool required, uint32_t *value)
{
    return ds_key_u32(&keys->reader, key_name(keys, suffix), required && keys->required, value);
}

static int get_f32(struct prefixed *keys, const char *suffix, bool required, float *value)
{
    return ds_key_f32(&keys->reader, key_name(keys, suffix), required && keys->required, value);
}

static int get_layers(struct prefixed *keys, const char *suffix, bool required, uint32_t *value)
{
    bool uniform;
    int r;

    r = ds_key_layers(&keys->reader, key_name(keys, suffix), required && keys->required, value,
                      &uniform);
    if (r == 0 && !uniform && keys->required)
        return ds_error_set(keys->reader.error, -ENOTSUP,
                            "%s: key '%s' differs between layers, which this build cannot run: "
                            "use a model whose layers are alike",
                            keys->reader.gguf->label, keys->name);
    return r;
}

static int read_architecture(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_gguf *gguf = &checkpoint->files[0];
    struct ds_key_reader reader = { gguf, error };
    struct ds_bytes name = { "", 0 }, type = { "", 0 };
    char printable[65];
    int r;

    r = ds_key_bytes(&reader, "general.architecture", &name);
    if (r == 0)
        r = ds_key_bytes(&reader, "general.type", &type);
    if (r < 0)
        return r;
    if (name.size == 0)
        return ds_error_set(error, -EINVAL,
                            "%s: key 'general.architecture' is missing: convert the model again",
                            gguf->label);
    for (size_t i = 0; i <= name.size && i < sizeof printable; i++) {
        bool plain = i < name.size && name.data[i] > ' ' && name.data[i] <= '~';

        printable[i] = i == name.size || i == sizeof printable - 1 ? '\0' : name.data[i];
        if (printable[i] && !plain)
            printable[i] = '?';
    }
    checkpoint->architecture = strdup(printable);
    if (!checkpoint->architecture)
        return ds_error_set(error, -ENOMEM, "%s: no memory", gguf->label);
    if (checkpoint->vocab_only)
        return 0;
    if (type.size == 7 && memcmp(type.data, "adapter", 7) == 0)
        return ds_error_set(error, -ENOTSUP,
                            "%s: is an adapter, not a model: load it on the model it "
                            "was made for (dsctl lora load MODEL ADAPTER)",
                            gguf->label);
    return 0;
}

static int choose_architecture(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    for (unsigned i = 0; i < sizeof architectures / sizeof architectures[0]; i++)
        if (strcmp(checkpoint->architecture, architectures[i].name) == 0) {
            checkpoint->hyper.architecture = (enum ds_architecture) i;
            checkpoint->hyper.rope_neox = architectures[i].rope_neox;
            return 0;
        }
    if (checkpoint->vocab_only)
        return 0;
    return ds_error_set(error, -ENOTSUP,
                        "%s: architecture '%s' is not supported: this build runs llama, qwen2, "
                        "qwen3, qwen3moe, deepseek2 and deepseek32 models",
                        checkpoint->files[0].label, checkpoint->architecture);
}

static int read_sizes(struct prefixed *keys, struct ds_hyper *hyper)
{
    int r;

    r = get_u32(keys, "block_count", true, &hyper->n_layers);
    if (r == 0)
        r = get_u32(keys, "context_length", true, &hyper->context);
    if (r == 0)
        r = get_u32(keys, "embedding_length", true, &hyper->width);
    if (r == 0)
        r = get_layers(keys, "feed_forward_length", true, &hyper->ffn_width);
    if (r == 0)
        r = get_layers(keys, "attention.head_count", true, &hyper->n_heads);
    hyper->n_kv_heads = hyper->n_heads;
    if (r == 0)
        r = get_layers(keys, "attention.head_count_kv", false, &hyper->n_kv_heads);
    hyper->key_dim = hyper->n_heads ? hyper->width / hyper->n_heads : 0;
    hyper->value_dim = hyper->key_dim;
    if (r == 0)
        r = get_u32(keys, "attention.key_length", false, &hyper->key_dim);
    if (r == 0)
        r = get_u32(keys, "attention.value_length", false, &hyper->value_dim);
    if (r == 0)
        r = get_f32(keys, "attention.layer_norm_rms_epsilon", true, &hyper->rms_epsilon);
    if (r == 0)
        r = get_u32(keys, "attention.sliding_window", false, &hyper->window);
    if (r == 0) /* our own key, for what Hugging Face calls max_window_layers */
        r = get_u32(keys, "attention.sliding_window_first_layer", false,
                    &hyper->window_first_layer);
    if (r == 0)
        r = get_u32(keys, "vocab_size", false, &hyper->n_vocab);
    return r;
}

static int read_scaling_type(struct prefixed *keys, struct ds_hyper *hyper)
{
    struct ds_bytes type = { "", 0 };
    int r;

    r = ds_key_bytes(&keys->reader, key_name(keys, "rope.scaling.type"), &type);
    if (r < 0)
        return r;
    if (type.size == 0) /* files without the key mean linear where they give a factor */
        hyper->rope_scaling = hyper->rope_factor != 1.0f ? DS_ROPE_LINEAR : DS_ROPE_NONE;
    else if (type.size == 4 && memcmp(type.data, "none", 4) == 0)
        hyper->rope_scaling = DS_ROPE_NONE;
    else if (type.size == 6 && memcmp(type.data, "linear", 6) == 0)
        hyper->rope_scaling = DS_ROPE_LINEAR;
    else if (type.size == 4 && memcmp(type.data, "yarn", 4) == 0)
        hyper->rope_scaling = DS_ROPE_YARN;
    else if (keys->required)
        return ds_error_set(keys->reader.error, -ENOTSUP,
                            "%s: key '%s' names a scaling this build has not: "
                            "it knows none, linear and yarn",
                            keys->reader.gguf->label, keys->name);
    if (hyper->rope_scaling == DS_ROPE_NONE)
        hyper->rope_factor = 1.0f;
    return 0;
}

static int read_rope(struct prefixed *keys, struct ds_hyper *hyper)
{
    float extrapolation = 1.0f;
    int r;

    hyper->rope_dims = hyper->key_dim;
    hyper->rope_base = 10000.0f;
    hyper->rope_factor = 1.0f;
    hyper->rope_original_context = hyper->context;
    hyper->rope_beta_fast = 32.0f;
    hyper->rope_beta_slow = 1.0f;
    hyper->rope_attn_factor = 1.0f;
    r = get_u32(keys, "rope.dimension_count", false, &hyper->rope_dims);
    if (r == 0)
        r = get_f32(keys, "rope.freq_base", false, &hyper->rope_base);
    if (r == 0)
        r = get_f32(keys, "rope.scale_linear", false, &hyper->rope_factor);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.factor", false, &hyper->rope_factor);
    if (hyper->rope_factor == 0.0f) /* some converters write 0 for "no scaling" */
        hyper->rope_factor = 1.0f;
    if (r == 0)
        r = read_scaling_type(keys, hyper);
    if (r == 0)
        r = get_u32(keys, "rope.scaling.original_context_length", false,
                    &hyper->rope_original_context);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.attn_factor", false, &hyper->rope_attn_factor);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.yarn_attn_factor", false, &hyper->rope_attn_factor);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.yarn_beta_fast", false, &hyper->rope_beta_fast);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.yarn_beta_slow", false, &hyper->rope_beta_slow);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.yarn_ext_factor", false, &extrapolation);
    if (r == 0 && keys->required && extrapolation >= 0.0f && extrapolation != 1.0f)
        return ds_error_set(keys->reader.error, -ENOTSUP,
                            "%s: key '%s' is %g, this build knows only 1: convert the model again",
                            keys->reader.gguf->label, keys->name, (double) extrapolation);
    return r;
}

/* Keys and values that share a low rank. Files made before the split of kv_b give a head's sizes as
 * key_length and value_length; later ones give those of the cached vector there. */
static int read_latent(struct prefixed *keys, struct ds_hyper *hyper)
{
    bool indexed = hyper->architecture == DS_ARCH_DEEPSEEK32;
    int r;

    if (hyper->architecture != DS_ARCH_DEEPSEEK2 && !indexed)
        return 0;
    hyper->n_kv_heads = 1;
    r = get_u32(keys, "attention.kv_lora_rank", true, &hyper->kv_lora_rank);
    if (r == 0)
        r = get_u32(keys, "attention.q_lora_rank", indexed, &hyper->q_lora_rank);
    if (r == 0)
        r = get_u32(keys, "attention.key_length_mla", false, &hyper->key_dim);
    if (r == 0)
        r = get_u32(keys, "attention.value_length_mla", false, &hyper->value_dim);
    if (r == 0)
        r = get_f32(keys, "rope.scaling.yarn_log_multiplier", false, &hyper->rope_log_multiplier);
    if (r < 0 || !indexed)
        return r;
    r = get_u32(keys, "attention.indexer.head_count", true, &hyper->index_heads);
    if (r == 0)
        r = get_u32(keys, "attention.indexer.key_length", true, &hyper->index_dim);
    if (r == 0)
        r = get_u32(keys, "attention.indexer.top_k", true, &hyper->index_top_k);
    return r;
}

int ds_checkpoint_read_hyper(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    struct prefixed keys = { .reader = { &checkpoint->files[0], error },
                             .required = !checkpoint->vocab_only };
    int r;

    r = read_architecture(checkpoint, error);
    if (r == 0)
        r = choose_architecture(checkpoint, error);
    if (r < 0)
        return r;
    keys.architecture = checkpoint->architecture;
    r = read_sizes(&keys, &checkpoint->hyper);
    if (r == 0)
        r = read_latent(&keys, &checkpoint->hyper);
    if (r == 0)
        r = read_rope(&keys, &checkpoint->hyper);
    if (r == 0)
        r = ds_checkpoint_read_experts(checkpoint, error);
    return r;
}

/* --- do they make sense together? --- */

struct range {
    const char *what;
    uint32_t value, low, high;
};

static int check_range(const struct ds_checkpoint *checkpoint, const struct range *ranges,
                       unsigned n_ranges, struct ds_error *error)
{
    for (unsigned i = 0; i < n_ranges; i++)
        if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
            return ds_error_set(error, -EINVAL,
                                "%s: key '%s.%s' is %u, possible is %u to %u: "
                                "convert the model again",
                                checkpoint->files[0].label, checkpoint->architecture,
                                ranges[i].what, ranges[i].value, ranges[i].low, ranges[i].high);
    return 0;
}

/* Of latent attention; the general ranges hold already. */
static int check_latent(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_hyper *h = &checkpoint->hyper;
    const uint32_t widest = DS_WIDTH_MAX / h->n_heads;
    const struct range ranges[] = {
        { "rope.dimension_count", h->rope_dims, 2, h->key_dim - 1 },
        { "attention.kv_lora_rank", h->kv_lora_rank, 1, widest },
        { "attention.q_lora_rank", h->q_lora_rank, 0, DS_WIDTH_MAX },
    };
    const struct range indexer[] = {
        { "attention.q_lora_rank", h->q_lora_rank, 1, DS_WIDTH_MAX },
        { "attention.indexer.head_count", h->index_heads, 1, DS_INDEX_HEADS_MAX },
        { "attention.indexer.key_length", h->index_dim, h->rope_dims, DS_INDEX_DIM_MAX },
        { "attention.indexer.top_k", h->index_top_k, 1, DS_CONTEXT_MAX },
    };
    int r;

    if (h->kv_lora_rank == 0 && h->architecture != DS_ARCH_DEEPSEEK2 &&
        h->architecture != DS_ARCH_DEEPSEEK32)
        return 0;
    r = check_range(checkpoint, ranges, sizeof ranges / sizeof ranges[0], error);
    if (r == 0 && h->architecture == DS_ARCH_DEEPSEEK32)
        r = check_range(checkpoint, indexer, sizeof indexer / sizeof indexer[0], error);
    if (r == 0 && !(h->rope_log_multiplier >= 0.0f && h->rope_log_multiplier <= 1.0f))
        r = ds_error_set(error, -EINVAL,
                         "%s: key '%s.rope.scaling.yarn_log_multiplier' is %g, possible is 0 to 1: "
                         "convert the model again",
                         checkpoint->files[0].label, checkpoint->architecture,
                         (double) h->rope_log_multiplier);
    return r;
}

static int check_ranges(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_hyper *h = &checkpoint->hyper;
    const struct range ranges[] = {
        { "block_count", h->n_layers, 1, DS_LAYERS_MAX },
        { "context_length", h->context, 1, DS_CONTEXT_MAX },
        { "embedding_length", h->width, 1, DS_WIDTH_MAX },
        { "feed_forward_length", h->ffn_width, 1, DS_WIDTH_MAX },
        { "attention.head_count", h->n_heads, 1, DS_WIDTH_MAX },
        { "attention.head_count_kv", h->n_kv_heads, 1, h->n_heads },
        { "attention.key_length", h->key_dim, 1, DS_WIDTH_MAX / h->n_heads },
        { "attention.value_length", h->value_dim, 1, DS_WIDTH_MAX / h->n_heads },
        { "rope.dimension_count", h->rope_dims, 2, h->key_dim },
        { "rope.scaling.original_context_length", h->rope_original_context, 1, DS_CONTEXT_MAX },
    };

    return check_range(checkpoint, ranges, sizeof ranges / sizeof ranges[0], error);
}

static int contradiction(const struct ds_checkpoint *checkpoint, struct ds_error *error,
                         const char *what)
{
    return ds_error_set(error, -EINVAL, "%s: %s: convert the model again",
                        checkpoint->files[0].label, what);
}

int ds_checkpoint_check_hyper(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_hyper *h = &checkpoint->hyper;
    int r;

    if (h->n_heads == 0)
        return contradiction(checkpoint, error, "its keys give the attention no heads");
    r = check_ranges(checkpoint, error);
    if (r == 0)
        r = check_latent(checkpoint, error);
    if (r < 0)
        return r;
    if (h->n_heads % h->n_kv_heads != 0)
        return contradiction(checkpoint, error, "its KV heads do not divide its heads");
    if (h->rope_dims % 2 != 0)
        return contradiction(checkpoint, error, "rope.dimension_count is odd");
    if (!(h->rms_epsilon >= 0.0f && h->rms_epsilon < 1.0f))
        return contradiction(checkpoint, error,
                             "attention.layer_norm_rms_epsilon is not between 0 and 1");
    if (!(h->rope_base > 1.0f) || !(h->rope_factor > 0.0f) || !(h->rope_attn_factor > 0.0f))
        return contradiction(checkpoint, error, "its RoPE base or scaling is not positive");
    if (!(h->rope_beta_fast > 0.0f) || !(h->rope_beta_slow > 0.0f))
        return contradiction(checkpoint, error, "its YaRN bounds are not positive");
    r = ds_checkpoint_check_experts(checkpoint, error);
    if (r < 0)
        return r;
    if (h->n_vocab != checkpoint->vocab.n_tokens)
        return ds_error_set(error, -EINVAL,
                            "%s: %u tokens in its vocabulary, but %u rows of token_embd.weight: "
                            "convert the model again",
                            checkpoint->files[0].label, checkpoint->vocab.n_tokens, h->n_vocab);
    return 0;
}
