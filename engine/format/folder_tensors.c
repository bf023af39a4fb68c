/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a folder under GGUF's names, with GGUF's dimensions. */
#include "engine/format/folder.h"
#include "engine/format/quant.h"

/* --- sizes that config.json gives, and how it calls them --- */

enum size {
    ONE, /* of a vector: there is no second dimension */
    WIDTH,
    VOCAB,
    FFN,
    HEAD,
    QUERIES,
    KEYS,
    VALUES,
    MIX, /* what attention gives to the output projection */
    Q_LORA,
    KV_LORA,
    KV_LORA_ROPE,
    KV_UP,
    EXPERTS,
    EXPERT_FFN,
    SHARED_FFN,
    INDEX_QUERIES,
    INDEX_HEADS,
    INDEX_DIM,
    TWO_WIDTHS,
};

static uint64_t size_of(const struct ds_hf_config *c, enum size size)
{
    switch (size) {
    case ONE:
        return 1;
    case WIDTH:
        return c->width;
    case VOCAB:
        return c->vocab;
    case FFN:
        return c->ffn;
    case HEAD:
        return c->head_dim;
    case QUERIES:
        return c->heads * (c->mla ? c->nope + c->rope_dims : c->head_dim);
    case KEYS:
    case VALUES:
        return c->kv_heads * c->head_dim;
    case MIX:
        return c->heads * c->value_dim;
    case Q_LORA:
        return c->q_lora;
    case KV_LORA:
        return c->kv_lora;
    case KV_LORA_ROPE:
        return c->kv_lora + c->rope_dims;
    case KV_UP:
        return c->heads * (c->nope + c->value_dim);
    case EXPERTS:
        return c->n_experts;
    case EXPERT_FFN:
        return c->expert_ffn;
    case SHARED_FFN:
        return c->expert_ffn * c->n_shared;
    case INDEX_QUERIES:
        return c->index_heads * c->index_dim;
    case INDEX_HEADS:
        return c->index_heads;
    case INDEX_DIM:
        return c->index_dim;
    case TWO_WIDTHS:
        return 2 * c->width;
    }
    return 0;
}

static const char *name_of(const struct ds_hf_config *c, enum size size)
{
    static const char *const names[] = {
        [WIDTH] = "hidden_size",
        [VOCAB] = "vocab_size",
        [FFN] = "intermediate_size",
        [HEAD] = "head_dim",
        [QUERIES] = "num_attention_heads * head_dim",
        [KEYS] = "num_key_value_heads * head_dim",
        [VALUES] = "num_key_value_heads * head_dim",
        [MIX] = "num_attention_heads * head_dim",
        [Q_LORA] = "q_lora_rank",
        [KV_LORA] = "kv_lora_rank",
        [KV_LORA_ROPE] = "kv_lora_rank + qk_rope_head_dim",
        [KV_UP] = "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
        [EXPERTS] = "number of experts",
        [EXPERT_FFN] = "moe_intermediate_size",
        [SHARED_FFN] = "moe_intermediate_size * n_shared_experts",
        [INDEX_QUERIES] = "index_n_heads * index_head_dim",
        [INDEX_HEADS] = "index_n_heads",
        [INDEX_DIM] = "index_head_dim",
        [TWO_WIDTHS] = "2 * hidden_size",
    };

    if (c->mla && size == QUERIES)
        return "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)";
    if (c->mla && size == MIX)
        return "num_attention_heads * v_head_dim";
    return names[size];
}

/* --- names --- */

/* The part between "model.layers.N." (or "model.") and ".weight" or ".bias". rows x columns as in
 * the folder: outputs first. */
struct name {
    const char *hf, *gguf;
    enum size rows, columns;
};

static const struct name globals[] = {
    { "model.embed_tokens", "token_embd", VOCAB, WIDTH },
    { "model.norm", "output_norm", WIDTH, ONE },
    { "lm_head", "output", VOCAB, WIDTH },
};

static const struct name layer_names[] = {
    { "input_layernorm", "attn_norm", WIDTH, ONE },
    { "self_attn.q_proj", "attn_q", QUERIES, WIDTH },
    { "self_attn.k_proj", "attn_k", KEYS, WIDTH },
    { "self_attn.v_proj", "attn_v", VALUES, WIDTH },
    { "self_attn.o_proj", "attn_output", WIDTH, MIX },
    { "self_attn.q_norm", "attn_q_norm", HEAD, ONE },
    { "self_attn.k_norm", "attn_k_norm", HEAD, ONE },
    { "self_attn.q_a_proj", "attn_q_a", Q_LORA, WIDTH },
    { "self_attn.q_a_layernorm", "attn_q_a_norm", Q_LORA, ONE },
    { "self_attn.q_b_proj", "attn_q_b", QUERIES, Q_LORA },
    { "self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", KV_LORA_ROPE, WIDTH },
    { "self_attn.kv_a_layernorm", "attn_kv_a_norm", KV_LORA, ONE },
    { "self_attn.kv_b_proj", "attn_kv_b", KV_UP, KV_LORA },
    { "self_attn.indexer.wq_b", "indexer.attn_q_b", INDEX_QUERIES, Q_LORA },
    { "self_attn.indexer.wk", "indexer.attn_k", INDEX_DIM, WIDTH },
    { "self_attn.indexer.k_norm", "indexer.k_norm", INDEX_DIM, ONE },
    { "self_attn.indexer.weights_proj", "indexer.proj", INDEX_HEADS, WIDTH },
    { "post_attention_layernorm", "ffn_norm", WIDTH, ONE },
    { "mlp.gate_proj", "ffn_gate", FFN, WIDTH },
    { "mlp.up_proj", "ffn_up", FFN, WIDTH },
    { "mlp.down_proj", "ffn_down", WIDTH, FFN },
    { "mlp.gate", "ffn_gate_inp", EXPERTS, WIDTH },
    { "mlp.shared_experts.gate_proj", "ffn_gate_shexp", SHARED_FFN, WIDTH },
    { "mlp.shared_experts.up_proj", "ffn_up_shexp", SHARED_FFN, WIDTH },
    { "mlp.shared_experts.down_proj", "ffn_down_shexp", WIDTH, SHARED_FFN },
    { "eh_proj", "nextn.eh_proj", WIDTH, TWO_WIDTHS },
    { "enorm", "nextn.enorm", WIDTH, ONE },
    { "hnorm", "nextn.hnorm", WIDTH, ONE },
    { "embed_tokens", "nextn.embed_tokens", VOCAB, WIDTH },
    { "shared_head.norm", "nextn.shared_head_norm", WIDTH, ONE },
    { "shared_head.head", "nextn.shared_head_head", VOCAB, WIDTH },
};

static const struct name expert_names[] = {
    { "gate_proj", "ffn_gate", EXPERT_FFN, WIDTH },
    { "up_proj", "ffn_up", EXPERT_FFN, WIDTH },
    { "down_proj", "ffn_down", WIDTH, EXPERT_FFN },
};

/* The one name that ends in neither .weight nor .bias. */
#define ROUTER_BIAS_HF   "mlp.gate.e_score_correction_bias"
#define ROUTER_BIAS_GGUF "exp_probs_b"

/* A tensor's name taken apart. */
struct parsed {
    const struct name *name; /* NULL: not one of ours, or the router's bias */
    bool router_bias;
    long layer;         /* -1: global */
    long expert;        /* -1: none */
    const char *suffix; /* ".weight", ".qweight", ...: within the name that was parsed */
};

static const struct name *find_name(const struct name *names, size_t n, const char *stem,
                                    size_t length)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(names[i].hf) == length && memcmp(names[i].hf, stem, length) == 0)
            return &names[i];
    return NULL;
}

/* A decimal number and the dot behind it. */
static const char *skip_number(const char *at, long *ret_number)
{
    char *end;

    if (*at < '0' || *at > '9')
        return NULL;
    *ret_number = strtol(at, &end, 10);
    return *end == '.' && end - at < 8 ? end + 1 : NULL;
}

static void parse(const char *full, struct parsed *ret_parsed)
{
    static const char layers[] = "model.layers.", experts[] = "mlp.experts.";
    const char *stem = full, *suffix = strrchr(full, '.');

    *ret_parsed = (struct parsed){ .layer = -1, .expert = -1, .suffix = suffix };
    if (!suffix)
        return;
    if (strncmp(full, layers, sizeof layers - 1) != 0) {
        ret_parsed->name =
            find_name(globals, sizeof globals / sizeof globals[0], stem, (size_t) (suffix - stem));
        return;
    }
    stem = skip_number(full + sizeof layers - 1, &ret_parsed->layer);
    if (!stem || suffix < stem)
        return;
    if (strcmp(stem, ROUTER_BIAS_HF) == 0) {
        ret_parsed->router_bias = true;
    } else if (strncmp(stem, experts, sizeof experts - 1) == 0) {
        stem = skip_number(stem + sizeof experts - 1, &ret_parsed->expert);
        if (stem && suffix > stem)
            ret_parsed->name = find_name(expert_names, 3, stem, (size_t) (suffix - stem));
    } else {
        ret_parsed->name = find_name(layer_names, sizeof layer_names / sizeof layer_names[0], stem,
                                     (size_t) (suffix - stem));
    }
}

/* GGUF's name; suffix replaces that of the folder. NULL: no memory. */
static char *gguf_name(const struct parsed *parsed, const char *suffix)
{
    char *name = NULL;
    int r;

    if (parsed->router_bias)
        r = asprintf(&name, "blk.%ld." ROUTER_BIAS_GGUF ".bias", parsed->layer);
    else if (parsed->layer < 0)
        r = asprintf(&name, "%s%s", parsed->name->gguf, suffix);
    else if (parsed->expert < 0)
        r = asprintf(&name, "blk.%ld.%s%s", parsed->layer, parsed->name->gguf, suffix);
    else
        r = asprintf(&name, "blk.%ld.%s.%ld%s", parsed->layer, parsed->name->gguf, parsed->expert,
                     suffix);
    return r < 0 ? NULL : name;
}

char *ds_folder_gguf_name(const char *module)
{
    ds_cleanup(ds_free_p) char *full = NULL;
    struct parsed parsed;

    if (asprintf(&full, "%s.weight", module) < 0) {
        full = NULL;
        return NULL;
    }
    parse(full, &parsed);
    return parsed.name ? gguf_name(&parsed, ".weight") : NULL;
}

const char *ds_hf_origin(const char *name, char buffer[256])
{
    const char *suffix = strrchr(name, '.'), *stem = name;
    const struct name *names = globals;
    size_t n = sizeof globals / sizeof globals[0];
    long layer = -1;

    if (strncmp(name, "blk.", 4) == 0) {
        stem = skip_number(name + 4, &layer);
        names = layer_names;
        n = sizeof layer_names / sizeof layer_names[0];
    }
    if (!stem || !suffix || suffix < stem)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(names[i].gguf);

        if (length != (size_t) (suffix - stem) || memcmp(names[i].gguf, stem, length) != 0)
            continue;
        if (layer < 0)
            (void) snprintf(buffer, 256, "%s%s", names[i].hf, suffix);
        else
            (void) snprintf(buffer, 256, "model.layers.%ld.%s%s", layer, names[i].hf, suffix);
        return buffer;
    }
    return NULL;
}

/* --- one tensor --- */

struct lister {
    struct ds_hf *hf;
    const struct ds_safetensors *shard;
    struct ds_error *error;
};

static int wrong_shape(const struct lister *lister, const struct ds_safetensor *source,
                       const struct parsed *parsed, uint64_t rows, uint64_t columns)
{
    const struct ds_hf_config *c = &lister->hf->config;
    enum size a = parsed->router_bias ? EXPERTS : parsed->name->rows;
    enum size b = parsed->router_bias ? ONE : parsed->name->columns;
    char shape[192];

    if (b == ONE || strcmp(parsed->suffix, ".bias") == 0)
        return ds_error_set(lister->error, -EINVAL,
                            "%s: tensor '%s' has shape %s; %s wants [%llu] (%s): they belong to "
                            "different models, fetch both again",
                            lister->shard->label, source->name, ds_safetensor_shape(source, shape),
                            c->label, (unsigned long long) rows, name_of(c, a));
    return ds_error_set(lister->error, -EINVAL,
                        "%s: tensor '%s' has shape %s; %s wants [%llu, %llu] (%s, %s): they belong "
                        "to different models, fetch both again",
                        lister->shard->label, source->name, ds_safetensor_shape(source, shape),
                        c->label, (unsigned long long) rows, (unsigned long long) columns,
                        name_of(c, a), name_of(c, b));
}

/* What config.json wants of it. */
static void wanted(const struct lister *lister, const struct parsed *parsed, uint64_t *ret_rows,
                   uint64_t *ret_columns)
{
    const struct ds_hf_config *c = &lister->hf->config;
    bool bias = parsed->router_bias || strcmp(parsed->suffix, ".bias") == 0;

    *ret_rows = size_of(c, parsed->router_bias ? EXPERTS : parsed->name->rows);
    *ret_columns = bias ? 1 : size_of(c, parsed->name->columns);
}

static int add(struct lister *lister, const struct parsed *parsed, const char *suffix,
               const struct ds_tensor *tensor)
{
    struct ds_hf *hf = lister->hf;
    struct ds_tensor *to = &hf->tensors[hf->n_tensors];

    *to = *tensor;
    to->name = gguf_name(parsed, suffix);
    if (!to->name)
        return ds_error_set(lister->error, -ENOMEM, "%s: no memory for its tensor list",
                            lister->shard->label);
    hf->n_tensors++;
    return 0;
}

static bool plain_type(enum ds_safetensor_type type, uint32_t *ret_type)
{
    switch (type) {
    case DS_SAFETENSOR_F32:
        *ret_type = DS_TYPE_F32;
        return true;
    case DS_SAFETENSOR_F16:
        *ret_type = DS_TYPE_F16;
        return true;
    case DS_SAFETENSOR_BF16:
        *ret_type = DS_TYPE_BF16;
        return true;
    default:
        return false;
    }
}

/* F32, F16, BF16: as it lies there. */
static int add_plain(struct lister *lister, const struct ds_safetensor *source,
                     const struct parsed *parsed)
{
    struct ds_tensor tensor = { .dims = { 1, 1, 1, 1 }, .data = source->data };
    uint64_t rows, columns;
    bool fits;

    wanted(lister, parsed, &rows, &columns);
    if (!plain_type(source->type, &tensor.type))
        return ds_error_set(lister->error, -ENOTSUP,
                            "%s: tensor '%s' is stored as %s, which this build cannot read there: "
                            "it reads F32, F16 and BF16, and FP8, GPTQ and AWQ where config.json "
                            "has a quantization_config for them",
                            lister->shard->label, source->name, source->type_name);
    fits = columns == 1 && source->n_dims == 1
               ? source->shape[0] == rows
               : source->n_dims == 2 && source->shape[0] == rows && source->shape[1] == columns;
    if (!fits || rows == 0)
        return wrong_shape(lister, source, parsed, rows, columns);
    tensor.n_dims = source->n_dims;
    tensor.dims[0] = source->n_dims == 1 ? rows : columns;
    tensor.dims[1] = source->n_dims == 1 ? 1 : rows;
    tensor.size_bytes = source->size_bytes;
    return add(lister, parsed, parsed->router_bias ? ".bias" : parsed->suffix, &tensor);
}

/* --- those in several parts --- */

/* The part of the same matrix with another suffix, of one of these types and this shape; rows or
 * columns 0: any number. NULL and *r set where it is missing or otherwise. */
static const struct ds_safetensor *part(const struct lister *lister,
                                        const struct ds_safetensor *source, const char *suffix,
                                        uint64_t rows, uint64_t columns, int *r)
{
    const struct ds_safetensor *found = NULL;
    char name[DS_SAFETENSORS_NAME_MAX + 32], shape[192];
    size_t stem = (size_t) (strrchr(source->name, '.') - source->name);

    (void) snprintf(name, sizeof name, "%.*s%s", (int) stem, source->name, suffix);
    for (unsigned i = 0; i < lister->hf->n_shards && !found; i++)
        found = ds_safetensors_find(&lister->hf->shards[i], name);
    *r = 0;
    if (!found) {
        *r = ds_error_set(lister->error, -EINVAL,
                          "%s: tensor '%s' is missing, which '%s' needs: fetch the file again",
                          lister->shard->label, name, source->name);
        return NULL;
    }
    if ((columns ? found->n_dims == 2 && found->shape[0] == rows && found->shape[1] == columns
                 : found->n_dims == 1 && found->shape[0] == rows))
        return found;
    *r = ds_error_set(
        lister->error, -EINVAL,
        "%s: tensor '%s' has shape %s, '%s' wants [%llu%s%.0llu]: fetch the file again",
        lister->shard->label, name, ds_safetensor_shape(found, shape), source->name,
        (unsigned long long) rows, columns ? ", " : "", (unsigned long long) columns);
    return NULL;
}

static int scales_type(const struct lister *lister, const struct ds_safetensor *scales,
                       uint32_t *ret_type)
{
    return plain_type(scales->type, ret_type)
               ? 0
               : ds_error_set(lister->error, -ENOTSUP,
                              "%s: tensor '%s' is stored as %s, scales can be F32, F16 and BF16",
                              lister->shard->label, scales->name, scales->type_name);
}

/* The matrix as a whole: chooses what it becomes, and enters it. */
static int add_packed(struct lister *lister, const struct ds_safetensor *source,
                      const struct parsed *parsed, const struct ds_packed *packed, uint64_t rows,
                      uint64_t columns)
{
    struct ds_packed *to = &lister->hf->packed[lister->hf->n_tensors];
    struct ds_tensor tensor = { .n_dims = 2,
                                .dims = { columns, rows, 1, 1 },
                                .data = source->data,
                                .size_bytes = source->size_bytes,
                                .packed = to };
    uint64_t bad;
    int r;

    *to = *packed;
    r = ds_packed_choose(to, columns, rows, &tensor.type, &bad);
    if (r < 0)
        return ds_error_set(lister->error, r,
                            "%s: the g_idx of '%s' gives input %llu to a group that does not "
                            "exist: fetch the file again",
                            lister->shard->label, source->name, (unsigned long long) bad);
    return add(lister, parsed, ".weight", &tensor);
}

static int add_fp8(struct lister *lister, const struct ds_safetensor *source,
                   const struct parsed *parsed)
{
    const struct ds_hf_config *c = &lister->hf->config;
    struct ds_packed packed = { .form = DS_PACKED_FP8,
                                .block_rows = c->block_rows,
                                .weights = source->data };
    const struct ds_safetensor *scales;
    uint64_t rows, columns;
    int r;

    wanted(lister, parsed, &rows, &columns);
    if (source->n_dims != 2 || source->shape[0] != rows || source->shape[1] != columns || rows == 0)
        return wrong_shape(lister, source, parsed, rows, columns);
    scales = part(lister, source, ".weight_scale_inv", (rows + c->block_rows - 1) / c->block_rows,
                  (columns + c->block_columns - 1) / c->block_columns, &r);
    if (!scales)
        return r;
    packed.scales = scales->data;
    r = scales_type(lister, scales, &packed.scale_type);
    return r == 0 ? add_packed(lister, source, parsed, &packed, rows, columns) : r;
}

static int words_only(const struct lister *lister, const struct ds_safetensor *tensor)
{
    return tensor->type == DS_SAFETENSOR_I32 || tensor->type == DS_SAFETENSOR_U32
               ? 0
               : ds_error_set(lister->error, -EINVAL,
                              "%s: tensor '%s' is stored as %s, it should be I32: fetch the file "
                              "again",
                              lister->shard->label, tensor->name, tensor->type_name);
}

/* GPTQ and AWQ, source being the qweight. */
static int add_int4(struct lister *lister, const struct ds_safetensor *source,
                    const struct parsed *parsed)
{
    const struct ds_hf_config *c = &lister->hf->config;
    bool gptq = c->quant == DS_HF_GPTQ;
    struct ds_packed packed = { .form = gptq ? DS_PACKED_GPTQ : DS_PACKED_AWQ,
                                .bits = (uint32_t) c->bits,
                                .zeros_less_one = c->zeros_less_one,
                                .weights = source->data };
    uint64_t rows, columns, each = 32 / c->bits;
    const struct ds_safetensor *scales, *zeros, *groups = NULL;
    int r;

    wanted(lister, parsed, &rows, &columns);
    if (rows % each != 0 || columns % each != 0 || rows == 0 || source->n_dims != 2 ||
        source->shape[0] != (gptq ? columns / each : columns) ||
        source->shape[1] != (gptq ? rows : rows / each))
        return wrong_shape(lister, source, parsed, rows, columns);
    packed.group_size = c->group_size && c->group_size < columns ? c->group_size : columns;
    packed.n_groups = (columns + packed.group_size - 1) / packed.group_size;
    r = words_only(lister, source);
    scales = r == 0 ? part(lister, source, ".scales", packed.n_groups, rows, &r) : NULL;
    zeros = scales ? part(lister, source, ".qzeros", packed.n_groups, rows / each, &r) : NULL;
    if (!zeros)
        return r;
    r = words_only(lister, zeros);
    if (r == 0)
        r = scales_type(lister, scales, &packed.scale_type);
    if (r == 0 && gptq) { /* files without act-order may leave it out */
        struct ds_error ignored;
        struct lister quiet = { lister->hf, lister->shard, &ignored };

        groups = part(&quiet, source, ".g_idx", columns, 0, &r);
        r = groups ? words_only(lister, groups) : 0;
    }
    if (r < 0)
        return r;
    packed.scales = scales->data;
    packed.zeros = zeros->data;
    packed.groups = groups ? groups->data : NULL;
    return add_packed(lister, source, parsed, &packed, rows, columns);
}

/* --- all --- */

static int check_layer(const struct lister *lister, const struct ds_safetensor *source,
                       const struct parsed *parsed)
{
    const struct ds_hf_config *c = &lister->hf->config;

    if (parsed->layer >= 0 && (uint64_t) parsed->layer >= c->layers + c->nextn)
        return ds_error_set(lister->error, -EINVAL,
                            "%s: tensor '%s' belongs to layer %ld, but %s says num_hidden_layers "
                            "%llu: they belong to different models, fetch both again",
                            lister->shard->label, source->name, parsed->layer, c->label,
                            (unsigned long long) c->layers);
    if (parsed->expert >= 0 && (uint64_t) parsed->expert >= c->n_experts)
        return ds_error_set(lister->error, -EINVAL,
                            "%s: tensor '%s' belongs to expert %ld, but %s has %llu experts: they "
                            "belong to different models, fetch both again",
                            lister->shard->label, source->name, parsed->expert, c->label,
                            (unsigned long long) c->n_experts);
    return 0;
}

/* One entry of a shard: most become a tensor, parts of others and what no model needs do not. */
static int list_entry(struct lister *lister, const struct ds_safetensor *source)
{
    const struct ds_hf_config *c = &lister->hf->config;
    struct parsed parsed;
    bool weight, quants;
    int r;

    parse(source->name, &parsed);
    if (!parsed.name && !parsed.router_bias)
        return 0;
    r = check_layer(lister, source, &parsed);
    if (r < 0)
        return r;
    if (c->tied && parsed.name && strcmp(parsed.name->hf, "lm_head") == 0)
        return 0; /* the embedding is the head, whatever this says */
    weight = strcmp(parsed.suffix, ".weight") == 0;
    quants = strcmp(parsed.suffix, ".qweight") == 0;
    if (quants && (c->quant == DS_HF_GPTQ || c->quant == DS_HF_AWQ))
        return add_int4(lister, source, &parsed);
    if (weight && c->quant == DS_HF_FP8 && source->type == DS_SAFETENSOR_F8_E4M3)
        return add_fp8(lister, source, &parsed);
    if (quants)
        return ds_error_set(lister->error, -EINVAL,
                            "%s: tensor '%s' is quantised, but %s has no quantization_config for "
                            "GPTQ or AWQ: fetch it again",
                            lister->shard->label, source->name, c->label);
    if (weight || parsed.router_bias || strcmp(parsed.suffix, ".bias") == 0)
        return add_plain(lister, source, &parsed);
    return 0;
}

/* llama3's scaling is a tensor in GGUF. */
static int add_rope_factors(struct ds_hf *hf, struct ds_error *error)
{
    const struct ds_hf_config *c = &hf->config;
    struct ds_tensor *tensor = &hf->tensors[hf->n_tensors];

    if (!c->rope_factors)
        return 0;
    *tensor = (struct ds_tensor){ .name = strdup("rope_freqs.weight"),
                                  .type = DS_TYPE_F32,
                                  .n_dims = 1,
                                  .dims = { c->rope_dims / 2, 1, 1, 1 },
                                  .data = c->rope_factors,
                                  .size_bytes = c->rope_dims / 2 * sizeof *c->rope_factors };
    if (!tensor->name)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", c->label);
    hf->n_tensors++;
    return 0;
}

/* Is it GPTQ's or AWQ's matrix of one expert ("blk.3.ffn_up.17.weight")? */
static bool is_packed_expert(const struct ds_tensor *tensor)
{
    const char *at = strstr(tensor->name, ".ffn_");

    at = at ? strchr(at + 1, '.') : NULL;
    return at && at[1] >= '0' && at[1] <= '9' && tensor->packed &&
           tensor->packed->form != DS_PACKED_FP8;
}

/* Experts are stacked, so all become of one type: the first of these that holds every one. */
static void level_experts(struct ds_hf *hf)
{
    static const uint32_t wider[] = { DS_TYPE_Q4_0, DS_TYPE_Q4_1, DS_TYPE_Q8_0, DS_TYPE_F16,
                                      DS_TYPE_F32 };
    unsigned widest = 0;

    for (size_t i = 0; i < hf->n_tensors; i++)
        for (unsigned w = widest; w < 5 && is_packed_expert(&hf->tensors[i]); w++)
            if (hf->tensors[i].type == wider[w])
                widest = w;
    for (size_t i = 0; i < hf->n_tensors; i++)
        if (is_packed_expert(&hf->tensors[i]))
            hf->tensors[i].type = wider[widest];
}

int ds_hf_list_tensors(struct ds_hf *hf, struct ds_error *error)
{
    struct lister lister = { .hf = hf, .error = error };
    size_t total = 1;
    int r;

    for (unsigned i = 0; i < hf->n_shards; i++)
        total += hf->shards[i].n_tensors;
    hf->tensors = calloc(total, sizeof *hf->tensors);
    hf->packed = calloc(total, sizeof *hf->packed);
    if (!hf->tensors || !hf->packed)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", hf->config.label);
    for (unsigned i = 0; i < hf->n_shards; i++) {
        lister.shard = &hf->shards[i];
        for (uint32_t j = 0; j < lister.shard->n_tensors; j++) {
            const struct ds_safetensor *source = &lister.shard->tensors[j];

            /* A tensor the index does not know is none of the model's. */
            if (hf->weight_map && !json_object_get(hf->weight_map, source->name))
                continue;
            r = list_entry(&lister, source);
            if (r < 0)
                return r;
        }
    }
    level_experts(hf);
    return add_rope_factors(hf, error);
}
