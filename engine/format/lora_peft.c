/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.
 *
 *      base_model.model.<module>.lora_A.weight [r, in]    .lora_B.weight [out, r]
 *      base_model.model.<module>.lora_embedding_A [r, V]  .lora_embedding_B [d, r]
 *
 * scale = alpha / r, with use_rslora alpha / sqrt(r); alpha_pattern gives modules an alpha of their
 * own. fan_in_fan_out says how the base weight is stored and changes neither A nor B. Source: peft,
 * src/peft/tuners/lora (LoraConfig, LoraLayer.update_layer), utils/other.py (get_pattern_key).
 */
#include <math.h>

#include "engine/format/folder.h"
#include "engine/format/json.h"
#include "engine/format/lora_parts.h"
#include "engine/format/mapping.h"
#include "engine/format/safetensors.h"

#define CONFIG  "adapter_config.json"
#define WEIGHTS "adapter_model.safetensors"
#define PREFIX  "base_model.model."

struct peft {
    struct ds_lora_file *file;
    json_t *config;
    char *label; /* of the safetensors file */
    struct ds_safetensors tensors;
    double alpha;
    uint64_t rank;
    bool root; /* alpha / sqrt(r) */
    struct ds_error *error;
};

static void peft_deinit(struct peft *peft)
{
    json_decref(peft->config);
    ds_safetensors_deinit(&peft->tensors);
    free(peft->label);
}

/* --- adapter_config.json --- */

static int refuse(const struct peft *peft, const char *field, const char *why)
{
    return ds_error_set(peft->error, -ENOTSUP,
                        "%s: %s: field '%s' %s, which cannot be applied while the model runs: "
                        "merge the adapter into the model (merge_and_unload)",
                        peft->file->name, CONFIG, field, why);
}

static bool is_empty(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

/* What changes the arithmetic beyond A and B. */
static int check_features(const struct peft *peft)
{
    static const struct {
        const char *field, *why;
    } features[] = {
        { "use_dora", "asks for DoRA" },
        { "modules_to_save", "replaces whole modules" },
        { "lora_bias", "adds biases" },
        { "layer_replication", "repeats layers" },
        { "target_parameters", "changes parameters that are no matrices of their own" },
        { "alora_invocation_tokens", "asks for an activated LoRA" },
        { "trainable_token_indices", "replaces embeddings" },
        { "arrow_config", "asks for a router of adapters" },
        { "use_qalora", "asks for QALoRA" },
    };
    const json_t *type = json_object_get(peft->config, "peft_type");
    const json_t *bias = json_object_get(peft->config, "bias");

    if (!json_is_string(type) || strcmp(json_string_value(type), "LORA") != 0)
        return ds_error_set(peft->error, -ENOTSUP,
                            "%s: %s: field 'peft_type' is not \"LORA\": this build has LoRA "
                            "adapters only",
                            peft->file->name, CONFIG);
    for (unsigned i = 0; i < sizeof features / sizeof *features; i++)
        if (!is_empty(json_object_get(peft->config, features[i].field)))
            return refuse(peft, features[i].field, features[i].why);
    if (bias && !json_is_null(bias) &&
        (!json_is_string(bias) || strcmp(json_string_value(bias), "none") != 0))
        return refuse(peft, "bias", "is not \"none\"");
    return 0;
}

static int wrong_field(const struct peft *peft, const char *field, const char *expected)
{
    return ds_error_set(peft->error, -EINVAL,
                        "%s: %s: field '%s' should be %s: save the adapter "
                        "again",
                        peft->file->name, CONFIG, field, expected);
}

/* A pattern is a regular expression that matches a module's whole name or its end after a dot.
 * Here: letters, digits, '_', '-', and dots (escaped or not); others are refused. */
static bool is_plain(const char *pattern)
{
    for (; *pattern; pattern++)
        if (!strchr("._-\\", *pattern) && !(*pattern >= '0' && *pattern <= '9') &&
            !(*pattern >= 'a' && *pattern <= 'z') && !(*pattern >= 'A' && *pattern <= 'Z'))
            return false;
        else if (*pattern == '\\' && pattern[1] != '.')
            return false;
    return true;
}

static bool matches_at(const char *pattern, const char *module)
{
    for (; *pattern; pattern++, module++) {
        bool escaped = *pattern == '\\';

        pattern += escaped;
        if (!*module || (*module != *pattern && (escaped || *pattern != '.')))
            return false;
    }
    return *module == '\0';
}

static bool matches(const char *pattern, const char *module)
{
    while (module) {
        if (matches_at(pattern, module))
            return true;
        module = strchr(module, '.');
        module = module ? module + 1 : NULL;
    }
    return false;
}

static int check_pattern(const struct peft *peft, const char *field)
{
    json_t *patterns = json_object_get(peft->config, field), *value;
    const char *key;

    if (patterns && !json_is_null(patterns) && !json_is_object(patterns))
        return wrong_field(peft, field, "an object");
    json_object_foreach(patterns, key, value)
    {
        if (!json_is_number(value) || !(json_number_value(value) > 0))
            return wrong_field(peft, field, "an object of numbers above 0");
        if (!is_plain(key))
            return ds_error_set(peft->error, -ENOTSUP,
                                "%s: %s: field '%s' has the regular expression '%.80s', this build "
                                "reads names of modules only: write the modules out",
                                peft->file->name, CONFIG, field, key);
    }
    return 0;
}

/* The number that field has for module, else fallback. */
static double patterned(const struct peft *peft, const char *field, const char *module,
                        double fallback)
{
    json_t *value;
    const char *key;

    json_object_foreach(json_object_get(peft->config, field), key, value)
    {
        if (matches(key, module))
            return json_number_value(value);
    }
    return fallback;
}

static int read_config(struct peft *peft, int fd)
{
    ds_cleanup(ds_free_p) char *bytes = NULL;
    ds_cleanup(ds_free_p) char *label = NULL;
    const json_t *rank, *alpha;
    size_t size = 0;
    int r;

    if (asprintf(&label, "%s: %s", peft->file->name, CONFIG) < 0) {
        label = NULL;
        return ds_error_set(peft->error, -ENOMEM, "%s: no memory", peft->file->name);
    }
    r = ds_file_read(fd, label, &bytes, &size, peft->error);
    if (r < 0)
        return r;
    peft->config = ds_json_parse(bytes, size, label, &r, peft->error);
    if (!peft->config)
        return r;
    r = check_features(peft);
    if (r < 0)
        return r;
    rank = json_object_get(peft->config, "r");
    alpha = json_object_get(peft->config, "lora_alpha");
    if (!json_is_integer(rank) || json_integer_value(rank) <= 0)
        return wrong_field(peft, "r", "a whole number above 0");
    if (!json_is_number(alpha) || !isfinite(json_number_value(alpha)))
        return wrong_field(peft, "lora_alpha", "a number");
    peft->rank = (uint64_t) json_integer_value(rank);
    peft->alpha = json_number_value(alpha);
    peft->root = json_is_true(json_object_get(peft->config, "use_rslora"));
    r = check_pattern(peft, "rank_pattern");
    return r < 0 ? r : check_pattern(peft, "alpha_pattern");
}

/* --- adapter_model.safetensors --- */

struct half {
    char which; /* 'A', 'B' */
    bool embedding;
    size_t stem; /* bytes of the module, after the prefix */
};

/* Is name PREFIX module .lora_A.weight and so on? */
static bool parse_half(const char *name, struct half *ret_half)
{
    static const struct {
        const char *suffix;
        char which;
        bool embedding;
    } suffixes[] = {
        { ".lora_A.weight", 'A', false },         { ".lora_B.weight", 'B', false },
        { ".lora_A.default.weight", 'A', false }, { ".lora_B.default.weight", 'B', false },
        { ".lora_embedding_A", 'A', true },       { ".lora_embedding_B", 'B', true },
    };
    size_t length = strlen(name), prefix = strlen(PREFIX);

    if (strncmp(name, PREFIX, prefix) != 0)
        return false;
    for (unsigned i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t tail = strlen(suffixes[i].suffix);

        if (length > prefix + tail && strcmp(name + length - tail, suffixes[i].suffix) == 0) {
            *ret_half =
                (struct half){ suffixes[i].which, suffixes[i].embedding, length - prefix - tail };
            return true;
        }
    }
    return false;
}

/* A copy of tensor [rows][columns] in the file's order as {columns, rows}; transposed: as {rows,
 * columns}. copies[0] and [2] own its numbers and its name. */
static int copy_half(const struct peft *peft, const struct ds_safetensor *from, bool transposed,
                     struct ds_tensor *to, void **copies)
{
    uint64_t rows = from->shape[0], columns = from->shape[1];
    unsigned bytes = ds_safetensor_element_bytes(from->type);
    uint8_t *copy;

    if (from->n_dims != 2 || rows == 0 || columns == 0)
        return ds_error_set(peft->error, -EINVAL,
                            "%s: tensor '%s' is no matrix: save the adapter "
                            "again",
                            peft->label, from->name);
    if (from->type != DS_SAFETENSOR_F32 && from->type != DS_SAFETENSOR_F16 &&
        from->type != DS_SAFETENSOR_BF16)
        return ds_error_set(peft->error, -ENOTSUP,
                            "%s: tensor '%s' is of type %s, this build reads F32, F16 and BF16: "
                            "convert the adapter",
                            peft->label, from->name, from->type_name);
    copies[0] = copy = malloc(from->size_bytes);
    copies[2] = strdup(from->name);
    if (!copy || !copies[2])
        return ds_error_set(peft->error, -ENOMEM, "%s: no memory for tensor '%s'", peft->label,
                            from->name);
    if (!transposed)
        memcpy(copy, from->data, from->size_bytes);
    for (uint64_t i = 0; transposed && i < rows * columns; i++)
        memcpy(copy + (i % columns * rows + i / columns) * bytes, from->data + i * bytes, bytes);
    *to = (struct ds_tensor){ .name = copies[2],
                              .type = from->type == DS_SAFETENSOR_F32   ? DS_TYPE_F32
                                      : from->type == DS_SAFETENSOR_F16 ? DS_TYPE_F16
                                                                        : DS_TYPE_BF16,
                              .n_dims = 2,
                              .dims = { transposed ? rows : columns, transposed ? columns : rows, 1,
                                        1 },
                              .data = copy,
                              .size_bytes = from->size_bytes };
    return 0;
}

/* Takes the pair whose A is a. */
static int add_pair(struct peft *peft, const struct ds_safetensor *a, const struct half *half)
{
    struct ds_lora_file *file = peft->file;
    struct ds_lora_pair *pair = &file->pairs[file->n_pairs];
    void **copies = &file->copies[4 * file->n_pairs];
    ds_cleanup(ds_free_p) char *module = strndup(a->name + strlen(PREFIX), half->stem);
    ds_cleanup(ds_free_p) char *other = strdup(a->name);
    const struct ds_safetensor *b;
    double rank, alpha;
    int r;

    if (!module || !other)
        return ds_error_set(peft->error, -ENOMEM, "%s: no memory", peft->label);
    other[strlen(PREFIX) + half->stem +
          (half->embedding ? strlen(".lora_embedding_") : strlen(".lora_"))] = 'B';
    b = ds_safetensors_find(&peft->tensors, other);
    if (!b)
        return ds_error_set(peft->error, -EINVAL,
                            "%s: tensor '%s' stands without its other half: save the adapter again",
                            peft->label, a->name);
    pair->name = file->names[file->n_pairs++] = ds_folder_gguf_name(module);
    if (!pair->name)
        return ds_error_set(peft->error, -EINVAL,
                            "%s: tensor '%s' changes a module that no model of this build has: the "
                            "adapter belongs to another kind of model",
                            peft->label, a->name);
    r = copy_half(peft, a, half->embedding, &pair->a, &copies[0]);
    if (r == 0)
        r = copy_half(peft, b, false, &pair->b, &copies[1]);
    if (r < 0)
        return r;
    rank = patterned(peft, "rank_pattern", module, (double) peft->rank);
    if ((double) pair->b.dims[0] != rank)
        return ds_error_set(peft->error, -EINVAL,
                            "%s: tensor '%s' has rank %llu, %s says %.0f (fields 'r', "
                            "'rank_pattern'): the files do not belong together",
                            peft->label, b->name, (unsigned long long) pair->b.dims[0], CONFIG,
                            rank);
    alpha = patterned(peft, "alpha_pattern", module, peft->alpha);
    pair->scale = (float) (alpha / (peft->root ? sqrt(rank) : rank));
    return ds_lora_check_pair(file, pair, peft->error);
}

static int read_tensors(struct peft *peft)
{
    const struct ds_safetensors *tensors = &peft->tensors;
    struct ds_lora_file *file = peft->file;
    unsigned n_b = 0;
    int r = 0;

    file->pairs = calloc(tensors->n_tensors + 1, sizeof *file->pairs);
    file->names = calloc(tensors->n_tensors + 1, sizeof *file->names);
    file->copies = calloc(4 * (size_t) tensors->n_tensors + 4, sizeof *file->copies);
    if (!file->pairs || !file->names || !file->copies)
        return ds_error_set(peft->error, -ENOMEM, "%s: no memory", peft->label);
    for (uint32_t i = 0; i < tensors->n_tensors && r == 0; i++) {
        const struct ds_safetensor *tensor = tensors->by_name[i];
        struct half half;

        if (!parse_half(tensor->name, &half))
            return ds_error_set(peft->error, -ENOTSUP,
                                "%s: tensor '%s' is no part of a LoRA pair, and this build "
                                "replaces no weights: merge the adapter into the model "
                                "(merge_and_unload)",
                                peft->label, tensor->name);
        n_b += half.which == 'B';
        if (half.which == 'A')
            r = add_pair(peft, tensor, &half);
    }
    if (r == 0 && (file->n_pairs == 0 || n_b != file->n_pairs))
        return ds_error_set(peft->error, -EINVAL,
                            "%s: holds %u matrices A and %u matrices B: save the adapter again",
                            peft->label, file->n_pairs, n_b);
    return r;
}

/* --- */

static int find_file(const struct peft *peft, const char *const *file_names, unsigned n_fds,
                     const char *wanted)
{
    for (unsigned i = 0; i < n_fds; i++)
        if (file_names[i] && strcmp(file_names[i], wanted) == 0)
            return (int) i;
    return ds_error_set(peft->error, -EINVAL, "%s: holds no %s: fetch all files of the adapter",
                        peft->file->name, wanted);
}

int ds_lora_read_peft(struct ds_lora_file *file, const int *fds, const char *const *file_names,
                      unsigned n_fds, struct ds_error *error)
{
    ds_cleanup(peft_deinit) struct peft peft = { .file = file, .error = error };
    int config = find_file(&peft, file_names, n_fds, CONFIG), weights, r;

    if (config < 0)
        return config;
    weights = find_file(&peft, file_names, n_fds, WEIGHTS);
    if (weights < 0)
        return weights;
    file->hf_rows = true;
    r = read_config(&peft, fds[config]);
    if (r < 0)
        return r;
    if (asprintf(&peft.label, "%s: %s", file->name, WEIGHTS) < 0) {
        peft.label = NULL;
        return ds_error_set(error, -ENOMEM, "%s: no memory", file->name);
    }
    r = ds_safetensors_init(&peft.tensors, fds[weights], peft.label, error);
    if (r == 0)
        r = read_tensors(&peft);
    if (r == 0 || r == -EBADMSG) { /* a file that was changed meanwhile is not a damaged one */
        int changed = ds_file_intact(peft.tensors.mapping, peft.label, error);

        r = changed < 0 ? changed : r;
    }
    return r;
}
