/* SPDX-License-Identifier: Apache-2.0 */
/* Reading config.json. Field names: Hugging Face transformers, old and new spelling. */
#include <math.h>

#include "engine/format/folder.h"
#include "engine/format/json.h"

/* One JSON object and how to complain about it. */
struct reader {
    const json_t *object;
    const char *label;  /* of the file */
    const char *inside; /* "rope_scaling." or "" */
    struct ds_error *error;
};

__attribute__((format(printf, 4, 5))) static int
field_error(const struct reader *reader, int code, const char *field, const char *format, ...)
{
    char text[260];
    va_list ap;

    va_start(ap, format);
    (void) vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    for (char *c = text; *c; c++) /* values come from the file */
        if ((unsigned char) *c < ' ' || *c == 0x7f)
            *c = '?';
    return ds_error_set(reader->error, code, "%s: field '%s%s' %s", reader->label, reader->inside,
                        field, text);
}

static const json_t *get(const struct reader *reader, const char *field)
{
    const json_t *value = json_object_get(reader->object, field);

    return json_is_null(value) ? NULL : value;
}

static int missing(const struct reader *reader, const char *field)
{
    return field_error(reader, -EINVAL, field, "is missing: fetch the file again");
}

/* A field that is not there leaves *value as it is, if it may be missing. */
static int get_size(const struct reader *reader, const char *field, bool required, uint64_t low,
                    uint64_t high, uint64_t *value)
{
    const json_t *json = get(reader, field);
    double number;

    if (!json)
        return required ? missing(reader, field) : 0;
    if (!json_is_number(json))
        return field_error(reader, -EINVAL, field, "is no number: fetch the file again");
    number = json_number_value(json);
    if (!(number >= (double) low && number <= (double) high) || number != floor(number))
        return field_error(reader, -EINVAL, field,
                           "is %g, possible are whole numbers from %llu to %llu: fetch the file "
                           "again",
                           number, (unsigned long long) low, (unsigned long long) high);
    *value = (uint64_t) number;
    return 0;
}

static int get_real(const struct reader *reader, const char *field, bool required, double *value)
{
    const json_t *json = get(reader, field);

    if (!json)
        return required ? missing(reader, field) : 0;
    if (!json_is_number(json) || !isfinite((float) json_number_value(json)))
        return field_error(reader, -EINVAL, field, "is no finite number: fetch the file again");
    *value = json_number_value(json);
    return 0;
}

static int get_flag(const struct reader *reader, const char *field, bool *value)
{
    const json_t *json = get(reader, field);

    if (!json)
        return 0;
    if (!json_is_boolean(json))
        return field_error(reader, -EINVAL, field,
                           "is neither true nor false: fetch the file again");
    *value = json_is_true(json);
    return 0;
}

static int get_text(const struct reader *reader, const char *field, const char **value)
{
    const json_t *json = get(reader, field);

    if (!json)
        return 0;
    if (!json_is_string(json))
        return field_error(reader, -EINVAL, field, "is no text: fetch the file again");
    *value = json_string_value(json);
    return 0;
}

/* --- which family --- */

static const struct {
    const char *name; /* in architectures[0] */
    const char *architecture;
    bool mla, experts, rope_neox, sigmoid;
} families[] = {
    { "LlamaForCausalLM", "llama", false, false, true, false }, /* rows are not permuted here */
    { "Qwen2ForCausalLM", "qwen2", false, false, true, false },
    { "Qwen3ForCausalLM", "qwen3", false, false, true, false },
    { "Qwen3MoeForCausalLM", "qwen3moe", false, true, true, false },
    { "DeepseekV2ForCausalLM", "deepseek2", true, true, false, false },
    { "DeepseekV3ForCausalLM", "deepseek2", true, true, false, true },
    { "DeepseekV32ForCausalLM", "deepseek32", true, true, false, true },
};

const char *ds_hf_class(unsigned i, const char **ret_architecture)
{
    if (i >= sizeof families / sizeof families[0])
        return NULL;
    *ret_architecture = families[i].architecture;
    return families[i].name;
}

static int choose_family(struct ds_hf_config *config, const struct reader *reader, bool any)
{
    const json_t *first = json_array_get(get(reader, "architectures"), 0);
    const char *name = json_string_value(first);

    if (!name)
        return field_error(reader, -EINVAL, "architectures",
                           "names no architecture: give the folder of a whole model");
    for (unsigned i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i].name, name) == 0) {
            config->architecture = families[i].architecture;
            config->mla = families[i].mla;
            config->experts = families[i].experts;
            config->rope_neox = families[i].rope_neox;
            config->sigmoid = families[i].sigmoid;
            config->known = true;
            return 0;
        }
    config->architecture = name;
    if (any)
        return 0;
    return field_error(reader, -ENOTSUP, "architectures",
                       "is '%.80s', which this build cannot run: it runs llama, qwen2, qwen3, "
                       "qwen3_moe and deepseek v2, v3 and v3.2",
                       name);
}

/* --- sizes --- */

struct size {
    const char *field;
    uint64_t *value;
    uint64_t low, high;
    bool optional;
};

static int get_sizes(const struct reader *reader, const struct size *sizes, size_t n)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < n; i++)
        r = get_size(reader, sizes[i].field, !sizes[i].optional, sizes[i].low, sizes[i].high,
                     sizes[i].value);
    return r;
}

static int read_general(struct ds_hf_config *c, const struct reader *reader)
{
    const struct size sizes[] = {
        { "num_hidden_layers", &c->layers, 1, DS_LAYERS_MAX, false },
        { "hidden_size", &c->width, 1, DS_WIDTH_MAX, false },
        { "intermediate_size", &c->ffn, 1, DS_WIDTH_MAX, false },
        { "num_attention_heads", &c->heads, 1, DS_WIDTH_MAX, false },
        { "vocab_size", &c->vocab, 1, DS_VOCABULARY_MAX, false },
        { "max_position_embeddings", &c->context, 1, DS_CONTEXT_MAX, false },
    };
    const char *act = "silu";
    bool mlp_bias = false;
    double partial = 1;
    int r;

    r = get_sizes(reader, sizes, sizeof sizes / sizeof sizes[0]);
    if (r == 0)
        r = get_flag(reader, "tie_word_embeddings", &c->tied);
    if (r == 0)
        r = get_flag(reader, "attention_bias", &c->attention_bias);
    if (r == 0)
        r = get_flag(reader, "mlp_bias", &mlp_bias);
    if (r == 0)
        r = get_text(reader, "hidden_act", &act);
    if (r == 0)
        r = get_real(reader, "partial_rotary_factor", false, &partial);
    if (r < 0)
        return r;
    if (mlp_bias)
        return field_error(reader, -ENOTSUP, "mlp_bias", "is true, which this build cannot run");
    if (strcmp(act, "silu") != 0)
        return field_error(reader, -ENOTSUP, "hidden_act",
                           "is '%.40s', which this build cannot run: it runs silu", act);
    if (partial != 1)
        return field_error(reader, -ENOTSUP, "partial_rotary_factor",
                           "is %g, this build runs only 1", partial);
    return 0;
}

static int read_attention(struct ds_hf_config *c, const struct reader *reader)
{
    const uint64_t most = DS_WIDTH_MAX / c->heads;
    const struct size plain[] = {
        { "num_key_value_heads", &c->kv_heads, 1, c->heads, true },
        { "head_dim", &c->head_dim, 2, most, true },
    };
    const struct size latent[] = {
        { "q_lora_rank", &c->q_lora, 1, DS_WIDTH_MAX, true },
        { "kv_lora_rank", &c->kv_lora, 1, most, false },
        { "qk_nope_head_dim", &c->nope, 1, most / 2, false },
        { "qk_rope_head_dim", &c->rope_dims, 2, most / 2, false },
        { "v_head_dim", &c->value_dim, 1, most, false },
    };
    const struct size indexer[] = {
        { "index_n_heads", &c->index_heads, 1, DS_WIDTH_MAX, false },
        { "index_head_dim", &c->index_dim, 2, DS_WIDTH_MAX, false },
        { "index_topk", &c->index_top_k, 1, DS_CONTEXT_MAX, false },
    };
    bool interleaved = true;
    int r;

    c->kv_heads = c->heads;
    if (c->mla) {
        r = get_sizes(reader, latent, sizeof latent / sizeof latent[0]);
        if (r == 0 && strcmp(c->architecture, "deepseek32") == 0)
            r = get_sizes(reader, indexer, sizeof indexer / sizeof indexer[0]);
        if (r == 0)
            r = get_flag(reader, "rope_interleave", &interleaved);
        c->rope_neox = !interleaved;
        return r;
    }
    c->head_dim = c->width / c->heads;
    r = get_sizes(reader, plain, sizeof plain / sizeof plain[0]);
    if (r < 0)
        return r;
    if (c->heads % c->kv_heads != 0)
        return field_error(reader, -EINVAL, "num_key_value_heads",
                           "is %llu, which does not divide num_attention_heads %llu: fetch the "
                           "file again",
                           (unsigned long long) c->kv_heads, (unsigned long long) c->heads);
    if (c->head_dim % 2 != 0)
        return field_error(reader, -EINVAL, "head_dim",
                           "is %llu, which is odd: fetch the file again",
                           (unsigned long long) c->head_dim);
    c->value_dim = c->rope_dims = c->head_dim;
    return 0;
}

static int read_experts(struct ds_hf_config *c, const struct reader *reader)
{
    const struct size qwen[] = {
        { "num_experts", &c->n_experts, 1, DS_WIDTH_MAX, false },
        { "num_experts_per_tok", &c->n_used, 1, DS_WIDTH_MAX, false },
        { "moe_intermediate_size", &c->expert_ffn, 1, DS_WIDTH_MAX, false },
    };
    const struct size deepseek[] = {
        { "n_routed_experts", &c->n_experts, 1, DS_WIDTH_MAX, true },
        { "num_experts_per_tok", &c->n_used, 1, DS_WIDTH_MAX, true },
        { "moe_intermediate_size", &c->expert_ffn, 1, DS_WIDTH_MAX / 64, true },
        { "n_shared_experts", &c->n_shared, 0, 64, true },
        { "num_nextn_predict_layers", &c->nextn, 0, 16, true },
    };
    uint64_t frequency = 1;
    int r;

    if (!c->experts)
        return 0;
    if (!c->mla)
        return get_sizes(reader, qwen, sizeof qwen / sizeof qwen[0]);
    r = get_sizes(reader, deepseek, sizeof deepseek / sizeof deepseek[0]);
    if (r == 0)
        r = get_size(reader, "moe_layer_freq", false, 1, DS_LAYERS_MAX, &frequency);
    if (r == 0 && frequency != 1)
        return field_error(reader, -ENOTSUP, "moe_layer_freq", "is %llu, this build runs only 1",
                           (unsigned long long) frequency);
    if (r == 0 && c->n_experts > 0 && (c->n_used == 0 || c->expert_ffn == 0))
        return missing(reader, c->n_used == 0 ? "num_experts_per_tok" : "moe_intermediate_size");
    return r;
}

/* Newer files list each layer's kind; older ones say from which layer on there is a window. */
static int read_layer_types(struct ds_hf_config *c, const struct reader *reader, bool *ret_window)
{
    const json_t *kinds = get(reader, "layer_types");
    size_t n = json_array_size(kinds), first = n;

    if (!kinds)
        return 0;
    *ret_window = false;
    for (size_t i = 0; i < n; i++) {
        const char *kind = json_string_value(json_array_get(kinds, i));
        bool sliding = kind && strcmp(kind, "sliding_attention") == 0;

        if (!kind || (!sliding && (strcmp(kind, "full_attention") != 0 || first < i)))
            return field_error(reader, -ENOTSUP, "layer_types",
                               "has '%.40s' for layer %zu: this build runs full attention, and "
                               "sliding attention from one layer on",
                               kind ? kind : "", i);
        if (sliding && first == n)
            first = i;
    }
    *ret_window = first < n;
    c->window_first_layer = first;
    return 0;
}

static int read_window(struct ds_hf_config *c, const struct reader *reader)
{
    bool window = false;
    int r;

    r = get_flag(reader, "use_sliding_window", &window);
    if (r == 0 && window)
        r = get_size(reader, "max_window_layers", false, 0, DS_LAYERS_MAX, &c->window_first_layer);
    if (r == 0 && window)
        r = read_layer_types(c, reader, &window);
    return r == 0 && window
               ? get_size(reader, "sliding_window", false, 1, DS_CONTEXT_MAX, &c->window)
               : r;
}

/* --- RoPE --- */

/* llama3 scaling: fast pairs stay, slow ones are stretched by factor, those between in part. */
static int read_llama3(struct ds_hf_config *c, const struct reader *reader)
{
    double factor = 0, low = 0, high = 0;
    uint64_t original = c->context;
    int r;

    r = get_real(reader, "factor", true, &factor);
    if (r == 0)
        r = get_real(reader, "low_freq_factor", true, &low);
    if (r == 0)
        r = get_real(reader, "high_freq_factor", true, &high);
    if (r == 0)
        r = get_size(reader, "original_max_position_embeddings", false, 1, DS_CONTEXT_MAX,
                     &original);
    if (r < 0)
        return r;
    if (!(factor >= 1) || !(low > 0) || !(high > low))
        return field_error(reader, -EINVAL, "factor",
                           "is %g with low_freq_factor %g and high_freq_factor %g: the factor must "
                           "be at least 1, and 0 < low < high; fetch the file again",
                           factor, low, high);
    c->rope_factors = calloc(c->rope_dims / 2, sizeof *c->rope_factors);
    if (!c->rope_factors)
        return ds_error_set(reader->error, -ENOMEM, "%s: no memory", reader->label);
    for (uint64_t i = 0; i < c->rope_dims / 2; i++) {
        double wavelength = 2 * M_PI * pow(c->rope_base, 2.0 * (double) i / (double) c->rope_dims);
        double share = ((double) original / wavelength - low) / (high - low);

        if (wavelength < (double) original / high)
            c->rope_factors[i] = 1;
        else if (wavelength > (double) original / low)
            c->rope_factors[i] = (float) factor;
        else
            c->rope_factors[i] = (float) (1 / ((1 - share) / factor + share));
    }
    return 0;
}

static int read_rope(struct ds_hf_config *c, const struct reader *reader)
{
    struct reader rope = *reader;
    const char *type = "default";
    int r;

    rope.inside = "rope_parameters.";
    rope.object = get(reader, "rope_parameters");
    if (!rope.object) {
        rope.inside = "rope_scaling.";
        rope.object = get(reader, "rope_scaling");
    }
    c->rope_base = 10000;
    r = get_real(reader, "rope_theta", false, &c->rope_base);
    if (r < 0)
        return r;
    if (rope.object && !json_is_object(rope.object))
        return field_error(reader, -EINVAL, rope.inside, "is no object: fetch the file again");
    if (rope.object) {
        r = get_real(&rope, "rope_theta", false, &c->rope_base);
        if (r == 0)
            r = get_text(&rope, "type", &type);
        if (r == 0)
            r = get_text(&rope, "rope_type", &type);
        if (r < 0)
            return r;
    }
    if (!(c->rope_base > 1))
        return field_error(reader, -EINVAL, "rope_theta",
                           "is %g, it must be above 1: fetch the "
                           "file again",
                           c->rope_base);
    /* dynamic stretches beyond the trained context only, where requests never get */
    if (strcmp(type, "default") == 0 || strcmp(type, "dynamic") == 0)
        return 0;
    if (strcmp(type, "llama3") == 0)
        return read_llama3(c, &rope);
    if (strcmp(type, "linear") != 0 && strcmp(type, "yarn") != 0)
        return field_error(&rope, -ENOTSUP, "rope_type",
                           "is '%.40s', which this build cannot run: it runs default, dynamic, "
                           "linear, llama3 and yarn",
                           type);
    c->rope = rope.object;
    return 0;
}

/* --- quantization_config --- */

static int read_blocks(struct ds_hf_config *c, const struct reader *reader)
{
    const json_t *blocks = get(reader, "weight_block_size");
    const char *format = "e4m3";
    int r;

    r = get_text(reader, "fmt", &format);
    if (r < 0)
        return r;
    if (strcmp(format, "e4m3") != 0)
        return field_error(reader, -ENOTSUP, "fmt",
                           "is '%.40s', which this build cannot read: it reads e4m3", format);
    if (json_array_size(blocks) != 2 || json_integer_value(json_array_get(blocks, 0)) < 1 ||
        json_integer_value(json_array_get(blocks, 0)) > 65536 ||
        json_integer_value(json_array_get(blocks, 1)) != 128)
        return field_error(reader, -ENOTSUP, "weight_block_size",
                           "is not [rows, 128]: this build reads FP8 weights with a scale for each "
                           "such block");
    c->quant = DS_HF_FP8;
    c->block_rows = (uint64_t) json_integer_value(json_array_get(blocks, 0));
    c->block_columns = 128;
    return 0;
}

/* "group_size" is -1 where a whole row is one group. */
static int read_groups(struct ds_hf_config *c, const struct reader *reader, const char *bits,
                       const char *group)
{
    const json_t *size = get(reader, group);
    int r;

    r = get_size(reader, bits, true, 1, 32, &c->bits);
    if (r < 0)
        return r;
    if (!size)
        return missing(reader, group);
    if (json_is_integer(size) && json_integer_value(size) == -1)
        return 0;
    return get_size(reader, group, true, 1, DS_WIDTH_MAX, &c->group_size);
}

static int read_gptq(struct ds_hf_config *c, const struct reader *reader)
{
    const char *format = "gptq";
    int r;

    r = read_groups(c, reader, "bits", "group_size");
    if (r == 0)
        r = get_text(reader, "checkpoint_format", &format);
    if (r < 0)
        return r;
    if (c->bits != 4 && c->bits != 8)
        return field_error(reader, -ENOTSUP, "bits", "is %llu, this build reads GPTQ with 4 or 8",
                           (unsigned long long) c->bits);
    if (strcmp(format, "gptq") != 0 && strcmp(format, "gptq_v2") != 0)
        return field_error(reader, -ENOTSUP, "checkpoint_format",
                           "is '%.40s', this build reads gptq and gptq_v2", format);
    c->quant = DS_HF_GPTQ;
    c->zeros_less_one = strcmp(format, "gptq") == 0;
    return 0;
}

static int read_awq(struct ds_hf_config *c, const struct reader *reader)
{
    bool old = !get(reader, "bits");
    const char *version = "gemm";
    int r;

    r = read_groups(c, reader, old ? "w_bit" : "bits", old ? "q_group_size" : "group_size");
    if (r == 0)
        r = get_text(reader, "version", &version);
    if (r < 0)
        return r;
    if (c->bits != 4)
        return field_error(reader, -ENOTSUP, old ? "w_bit" : "bits",
                           "is %llu, this build reads AWQ with 4", (unsigned long long) c->bits);
    if (strcasecmp(version, "gemm") != 0)
        return field_error(reader, -ENOTSUP, "version",
                           "is '%.40s', this build reads AWQ in the form gemm", version);
    c->quant = DS_HF_AWQ;
    return 0;
}

static int read_quant(struct ds_hf_config *c, const struct reader *reader)
{
    struct reader quant = *reader;
    const char *method = "";
    int r;

    quant.inside = "quantization_config.";
    quant.object = get(reader, "quantization_config");
    if (!quant.object)
        return 0;
    r = get_text(&quant, "quant_method", &method);
    if (r < 0)
        return r;
    if (strcmp(method, "fp8") == 0)
        return read_blocks(c, &quant);
    if (strcmp(method, "gptq") == 0)
        return read_gptq(c, &quant);
    if (strcmp(method, "awq") == 0)
        return read_awq(c, &quant);
    return field_error(&quant, -ENOTSUP, "quant_method",
                       "is '%.40s', which this build cannot read: it reads fp8, gptq and awq",
                       method);
}

/* --- older folders: quantisation in a file of its own --- */

static int load_json(const struct ds_hf_files *files, int file, const char *label,
                     json_t **ret_json, struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *bytes = NULL;
    size_t size;
    int r;

    r = ds_file_read(files->fds[file], label, &bytes, &size, error);
    if (r < 0)
        return r;
    *ret_json = ds_json_parse(bytes, size, label, &r, error);
    return r;
}

static int read_quant_file(struct ds_hf_config *c, const struct ds_hf_files *files,
                           const char *name, struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *label = NULL;
    struct reader reader = { .inside = "", .error = error };
    int file = ds_hf_find_file(files, name), r;
    json_t *json = NULL;

    if (file < 0 || c->quant != DS_HF_PLAIN)
        return 0;
    if (asprintf(&label, "%s/%s", files->model, name) < 0) {
        label = NULL;
        return ds_error_set(error, -ENOMEM, "%s: no memory", files->model);
    }
    r = load_json(files, file, label, &json, error);
    if (r < 0)
        return r;
    reader.label = label;
    reader.object = json;
    r = (strcmp(name, "quant_config.json") == 0 ? read_awq : read_gptq)(c, &reader);
    json_decref(json);
    return r;
}

/* --- all of it --- */

int ds_hf_config_read(struct ds_hf_config *config, const struct ds_hf_files *files, bool any,
                      struct ds_error *error)
{
    struct reader reader = { .inside = "", .error = error };
    int r;

    if (asprintf(&config->label, "%s/config.json", files->model) < 0) {
        config->label = NULL;
        return ds_error_set(error, -ENOMEM, "%s: no memory", files->model);
    }
    r = load_json(files, ds_hf_find_file(files, "config.json"), config->label, &config->json,
                  error);
    if (r < 0)
        return r;
    reader.label = config->label;
    reader.object = config->json;
    if (!json_is_object(config->json))
        return ds_error_set(error, -EBADMSG, "%s: is no JSON object: fetch it again",
                            config->label);
    r = choose_family(config, &reader, any);
    if (r < 0 || !config->known)
        return r;
    r = read_general(config, &reader);
    if (r == 0)
        r = read_attention(config, &reader);
    if (r == 0)
        r = read_experts(config, &reader);
    if (r == 0)
        r = read_window(config, &reader);
    if (r == 0)
        r = read_rope(config, &reader);
    if (r == 0)
        r = read_quant(config, &reader);
    if (r == 0)
        r = read_quant_file(config, files, "quantize_config.json", error);
    if (r == 0)
        r = read_quant_file(config, files, "quant_config.json", error);
    return r;
}

void ds_hf_config_deinit(struct ds_hf_config *config)
{
    json_decref(config->json);
    free(config->rope_factors);
    free(config->label);
}
