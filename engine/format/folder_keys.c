/* SPDX-License-Identifier: Apache-2.0 */
/* config.json in GGUF's words: the keys that a converter would have written. */
#include <math.h>

#include "engine/format/folder.h"

struct writer {
    struct ds_hf_config *config;
    struct ds_gguf *gguf;
    bool failed;              /* no memory */
    const char *bad, *wanted; /* the first field of another kind than it must be; NULL: none */
};

enum kind { SIZE, REAL, FLAG, TEXT };

/* A field of a JSON object; NULL where it is not there or null, or of another kind, which is noted:
 * what is taken for absent must not be something that was said. */
static const json_t *field_of(struct writer *writer, const json_t *object, const char *field,
                              enum kind kind)
{
    static const char *const wanted[] = { "a whole number from 0 on", "a number", "true or false",
                                          "a text" };
    const json_t *json = json_object_get(object, field);
    bool fits[] = { json_is_integer(json) && json_integer_value(json) >= 0, json_is_number(json),
                    json_is_boolean(json), json_is_string(json) };

    if (!json || json_is_null(json) || fits[kind])
        return json_is_null(json) ? NULL : json;
    if (!writer->bad) {
        writer->bad = field;
        writer->wanted = wanted[kind];
    }
    return NULL;
}

/* A fresh key without a value. */
static struct ds_gguf_key *put(struct writer *writer, const char *suffix, uint32_t type)
{
    struct ds_gguf *gguf = writer->gguf;
    struct ds_gguf_key *key = &gguf->keys[gguf->n_keys];
    bool general = strchr(suffix, '.') && strncmp(suffix, "general.", 8) == 0;

    if (writer->failed || gguf->n_keys == DS_HF_KEYS_MAX ||
        asprintf(&key->name, "%s%s%s", general ? "" : writer->config->architecture,
                 general ? "" : ".", suffix) < 0) {
        key->name = NULL;
        writer->failed = true;
        return NULL;
    }
    key->type = type;
    key->n = 1;
    gguf->n_keys++;
    return key;
}

static void put_bits(struct writer *writer, const char *suffix, uint32_t type, uint64_t bits)
{
    struct ds_gguf_key *key = put(writer, suffix, type);
    uint64_t *slot;

    if (!key)
        return;
    slot = &writer->config->numbers[writer->config->n_numbers++]; /* as many as keys, at most */
    *slot = bits;
    key->data = (const uint8_t *) slot;
}

static void put_size(struct writer *writer, const char *suffix, uint64_t value)
{
    put_bits(writer, suffix, DS_GGUF_U64, value);
}

static void put_real(struct writer *writer, const char *suffix, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    put_bits(writer, suffix, DS_GGUF_F64, bits);
}

static void put_text(struct writer *writer, const char *suffix, const char *text)
{
    struct ds_gguf_key *key = put(writer, suffix, DS_GGUF_STRING);
    struct ds_hf_config *config = writer->config;

    if (!key)
        return;
    (void) snprintf(config->strings[config->n_strings].text,
                    sizeof config->strings[config->n_strings].text, "%s", text);
    config->strings[config->n_strings].size = strlen(config->strings[config->n_strings].text);
    key->data = (const uint8_t *) &config->strings[config->n_strings++];
}

/* A field as it stands in a JSON object, where it is of that kind. */
static void copy_size(struct writer *writer, const json_t *object, const char *field,
                      const char *suffix)
{
    const json_t *json = field_of(writer, object, field, SIZE);

    if (json)
        put_size(writer, suffix, (uint64_t) json_integer_value(json));
}

static void copy_real(struct writer *writer, const json_t *object, const char *field,
                      const char *suffix)
{
    const json_t *json = field_of(writer, object, field, REAL);

    if (json)
        put_real(writer, suffix, json_number_value(json));
}

static void copy_flag(struct writer *writer, const json_t *object, const char *field,
                      const char *suffix)
{
    const json_t *json = field_of(writer, object, field, FLAG);

    if (json)
        put_bits(writer, suffix, DS_GGUF_BOOL, json_is_true(json));
}

/* --- the parts --- */

static void put_sizes(struct writer *writer)
{
    const struct ds_hf_config *c = writer->config;

    put_size(writer, "block_count", c->layers + c->nextn);
    put_size(writer, "context_length", c->context);
    put_size(writer, "embedding_length", c->width);
    put_size(writer, "feed_forward_length", c->ffn);
    put_size(writer, "vocab_size", c->vocab);
    put_size(writer, "attention.head_count", c->heads);
    put_size(writer, "attention.head_count_kv", c->kv_heads);
    put_size(writer, "attention.key_length", c->mla ? c->nope + c->rope_dims : c->head_dim);
    put_size(writer, "attention.value_length", c->value_dim);
    put_size(writer, "rope.dimension_count", c->rope_dims);
    put_real(writer, "rope.freq_base", c->rope_base);
    if (field_of(writer, c->json, "rms_norm_eps", REAL))
        copy_real(writer, c->json, "rms_norm_eps", "attention.layer_norm_rms_epsilon");
    else
        put_real(writer, "attention.layer_norm_rms_epsilon", 1e-6); /* transformers' default */
    if (c->window)
        put_size(writer, "attention.sliding_window", c->window);
    if (c->nextn)
        put_size(writer, "nextn_predict_layers", c->nextn);
    if (c->mla) {
        put_size(writer, "attention.kv_lora_rank", c->kv_lora);
        if (c->q_lora)
            put_size(writer, "attention.q_lora_rank", c->q_lora);
    }
    if (c->index_heads) {
        put_size(writer, "attention.indexer.head_count", c->index_heads);
        put_size(writer, "attention.indexer.key_length", c->index_dim);
        put_size(writer, "attention.indexer.top_k", c->index_top_k);
    }
}

/* topk_method decides whether groups count: "greedy" has n_group too, and does not look at it. */
static int put_experts(struct writer *writer, struct ds_error *error)
{
    const struct ds_hf_config *c = writer->config;
    const char *method = json_string_value(field_of(writer, c->json, "topk_method", TEXT));
    const char *scoring = json_string_value(field_of(writer, c->json, "scoring_func", TEXT));

    if (c->n_experts == 0)
        return 0;
    put_size(writer, "expert_count", c->n_experts);
    put_size(writer, "expert_used_count", c->n_used);
    put_size(writer, "expert_feed_forward_length", c->expert_ffn);
    if (!c->mla) {
        bool normalised = json_is_true(field_of(writer, c->json, "norm_topk_prob", FLAG));

        put_bits(writer, "expert_weights_norm", DS_GGUF_BOOL, normalised);
        return 0;
    }
    if (c->n_shared)
        put_size(writer, "expert_shared_count", c->n_shared);
    copy_size(writer, c->json, "first_k_dense_replace", "leading_dense_block_count");
    copy_real(writer, c->json, "routed_scaling_factor", "expert_weights_scale");
    copy_flag(writer, c->json, "norm_topk_prob", "expert_weights_norm");
    if (method && strcmp(method, "greedy") != 0 && strcmp(method, "group_limited_greedy") != 0 &&
        strcmp(method, "noaux_tc") != 0)
        return ds_error_set(error, -ENOTSUP,
                            "%s: field 'topk_method' is none of greedy, group_limited_greedy and "
                            "noaux_tc, which this build runs",
                            c->label);
    if (!method || strcmp(method, "greedy") != 0) {
        copy_size(writer, c->json, "n_group", "expert_group_count");
        copy_size(writer, c->json, "topk_group", "expert_group_used_count");
    }
    if (scoring && strcmp(scoring, "softmax") != 0 && strcmp(scoring, "sigmoid") != 0)
        return ds_error_set(error, -ENOTSUP,
                            "%s: field 'scoring_func' is neither softmax nor sigmoid, which this "
                            "build runs",
                            c->label);
    put_size(writer, "expert_gating_func",
             (scoring ? strcmp(scoring, "sigmoid") == 0 : c->sigmoid) ? 2 : 1);
    return 0;
}

/* What YaRN multiplies cos and sin by, k being one of config's mscale fields. */
static double yarn_magnitude(double factor, double k)
{
    return factor > 1 ? 0.1 * k * log(factor) + 1 : 1;
}

static int put_scaling(struct writer *writer, struct ds_error *error)
{
    const struct ds_hf_config *c = writer->config;
    const char *type = json_string_value(json_object_get(c->rope, "rope_type"));
    double factor = json_number_value(json_object_get(c->rope, "factor"));
    const json_t *all = field_of(writer, c->rope, "mscale_all_dim", REAL);
    const json_t *some = field_of(writer, c->rope, "mscale", REAL);
    const json_t *attention = field_of(writer, c->rope, "attention_factor", REAL);

    if (!c->rope)
        return 0;
    if (!type)
        type = json_string_value(json_object_get(c->rope, "type"));
    if (!(factor >= 1 && factor < 1e6))
        return ds_error_set(error, -EINVAL,
                            "%s: field 'factor' of the RoPE scaling is no number from 1 on: fetch "
                            "the file again",
                            c->label);
    put_text(writer, "rope.scaling.type", type);
    put_real(writer, "rope.scaling.factor", factor);
    if (strcmp(type, "yarn") != 0)
        return 0;
    copy_size(writer, c->rope, "original_max_position_embeddings",
              "rope.scaling.original_context_length");
    copy_real(writer, c->rope, "beta_fast", "rope.scaling.yarn_beta_fast");
    copy_real(writer, c->rope, "beta_slow", "rope.scaling.yarn_beta_slow");
    if (c->mla) {
        double k = json_number_value(some), k_all = json_number_value(all);

        put_real(writer, "rope.scaling.yarn_log_multiplier", 0.1 * k_all);
        put_real(writer, "rope.scaling.attn_factor",
                 yarn_magnitude(factor, some ? k : 1) / yarn_magnitude(factor, k_all));
    } else if (json_is_number(attention)) {
        put_real(writer, "rope.scaling.attn_factor",
                 json_number_value(attention) / yarn_magnitude(factor, 1));
    } else {
        copy_real(writer, c->rope, "attn_factor", "rope.scaling.attn_factor");
    }
    return 0;
}

int ds_hf_config_keys(struct ds_hf_config *config, struct ds_gguf *gguf, struct ds_error *error)
{
    struct writer writer = { .config = config, .gguf = gguf };
    int r = 0;

    *gguf = (struct ds_gguf){ .label = config->label, .version = 3, .alignment = 1, .fd = -1 };
    gguf->keys = calloc(DS_HF_KEYS_MAX, sizeof *gguf->keys);
    if (!gguf->keys)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", config->label);
    put_text(&writer, "general.architecture", config->architecture);
    if (config->known) {
        put_sizes(&writer);
        r = put_experts(&writer, error);
        if (r == 0)
            r = put_scaling(&writer, error);
    }
    if (r == 0 && writer.bad)
        r = ds_error_set(error, -EBADMSG, "%s: field '%s' is not %s: fetch the file again",
                         config->label, writer.bad, writer.wanted);
    if (r == 0 && writer.failed)
        r = ds_error_set(error, -ENOMEM, "%s: no memory for its keys", config->label);
    return r;
}
