/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a folder: which of them are shards of the model, and whether all are there. */
#include "engine/format/folder.h"
#include "engine/format/json.h"
#include "engine/format/mapping.h"

#define CONFIG_NAME "config.json"
#define INDEX_NAME  "model.safetensors.index.json"
#define SUFFIX      ".safetensors"

int ds_hf_find_file(const struct ds_hf_files *files, const char *name)
{
    for (unsigned i = 0; i < files->n; i++)
        if (strcmp(files->names[i], name) == 0)
            return (int) i;
    return -1;
}

bool ds_hf_is_folder(const char *const *names, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (!names[i])
            return false;
    return ds_hf_find_file(&(struct ds_hf_files){ .names = names, .n = n }, CONFIG_NAME) >= 0;
}

/* Names come out of the files; they must not steer a terminal. */
static const char *printable(const char *name, char buffer[256])
{
    (void) snprintf(buffer, 256, "%s", name);
    for (char *c = buffer; *c; c++)
        if (*c <= ' ' || *c > '~')
            *c = '?';
    return buffer;
}

static bool is_shard(const char *name)
{
    size_t length = strlen(name), tail = sizeof SUFFIX - 1;

    return length > tail && strcmp(name + length - tail, SUFFIX) == 0 &&
           strncmp(name, "adapter_", 8) != 0;
}

static int open_shard(struct ds_hf *hf, const struct ds_hf_files *files, int file,
                      struct ds_error *error)
{
    unsigned i = hf->n_shards;
    int r;

    if (asprintf(&hf->labels[i], "%s/%s", files->model, files->names[file]) < 0) {
        hf->labels[i] = NULL;
        return ds_error_set(error, -ENOMEM, "%s: no memory", files->model);
    }
    hf->n_shards++;
    r = ds_safetensors_init(&hf->shards[i], files->fds[file], hf->labels[i], error);
    hf->shard_of[file] = &hf->shards[i];
    hf->file_bytes += hf->shards[i].file_bytes;
    return r;
}

/* --- with an index --- */

static int read_index(struct ds_hf *hf, const struct ds_hf_files *files, int file,
                      struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *label = NULL, *bytes = NULL;
    json_t *json;
    size_t size;
    int r;

    if (asprintf(&label, "%s/%s", files->model, INDEX_NAME) < 0) {
        label = NULL;
        return ds_error_set(error, -ENOMEM, "%s: no memory", files->model);
    }
    r = ds_file_read(files->fds[file], label, &bytes, &size, error);
    json = r == 0 ? ds_json_parse(bytes, size, label, &r, error) : NULL;
    if (!json)
        return r;
    hf->weight_map = json_incref(json_object_get(json, "weight_map"));
    json_decref(json);
    if (!json_is_object(hf->weight_map) || json_object_size(hf->weight_map) == 0)
        return ds_error_set(error, -EBADMSG,
                            "%s: field 'weight_map' is missing or empty: fetch the file again",
                            label);
    return 0;
}

/* The tensors of the map, each in the shard that the map says. */
static int open_mapped(struct ds_hf *hf, const struct ds_hf_files *files, struct ds_error *error)
{
    const struct ds_safetensors *shard;
    const char *tensor, *name;
    char a[256], b[256];
    json_t *value;
    int file, r;

    json_object_foreach(hf->weight_map, tensor, value)
    {
        name = json_string_value(value);
        file = name && is_shard(name) ? ds_hf_find_file(files, name) : -1;
        if (file < 0)
            return ds_error_set(
                error, -EINVAL, "%s/%s: is missing; %s places tensor '%s' there: fetch the file",
                files->model, name ? printable(name, a) : "?", INDEX_NAME, printable(tensor, b));
        if (!hf->shard_of[file]) {
            r = open_shard(hf, files, file, error);
            if (r < 0)
                return r;
        }
        shard = hf->shard_of[file];
        if (!ds_safetensors_find(shard, tensor))
            return ds_error_set(error, -EINVAL,
                                "%s: holds no tensor '%s', which %s places there: fetch both again",
                                shard->label, printable(tensor, b), INDEX_NAME);
    }
    return 0;
}

/* --- without one --- */

/* NAME-00002-of-00005.safetensors: all five must be there. */
static int check_numbers(const struct ds_hf_files *files, const char *name, struct ds_error *error)
{
    static const char form[] = "-00001-of-00002" SUFFIX;
    size_t length = strlen(name), tail = sizeof form - 1;
    char other[DS_FILE_NAME_MAX + 32];
    unsigned number, count;
    int end = 0;

    if (length <= tail || length > DS_FILE_NAME_MAX ||
        sscanf(name + length - tail, "-%5u-of-%5u" SUFFIX "%n", &number, &count, &end) != 2 ||
        (size_t) end != tail)
        return 0;
    for (unsigned i = 1; i <= count; i++) {
        (void) snprintf(other, sizeof other, "%.*s-%05u-of-%05u" SUFFIX, (int) (length - tail),
                        name, i, count);
        if (ds_hf_find_file(files, other) < 0)
            return ds_error_set(error, -EINVAL, "%s/%s: is missing, %s is there: fetch the file",
                                files->model, other, name);
    }
    return 0;
}

static int open_numbered(struct ds_hf *hf, const struct ds_hf_files *files, struct ds_error *error)
{
    int single = ds_hf_find_file(files, "model" SUFFIX), r;

    if (single >= 0)
        return open_shard(hf, files, single, error);
    for (unsigned i = 0; i < files->n; i++) {
        if (!is_shard(files->names[i]))
            continue;
        r = check_numbers(files, files->names[i], error);
        if (r == 0)
            r = open_shard(hf, files, (int) i, error);
        if (r < 0)
            return r;
    }
    if (hf->n_shards == 0)
        return ds_error_set(error, -EINVAL,
                            "%s: the folder holds no *.safetensors file: fetch them, or convert "
                            "the model",
                            files->model);
    return 0;
}

static int open_shards(struct ds_hf *hf, const struct ds_hf_files *files, struct ds_error *error)
{
    int index = ds_hf_find_file(files, INDEX_NAME), r;

    hf->shards = calloc(files->n, sizeof *hf->shards);
    hf->labels = calloc(files->n, sizeof *hf->labels);
    hf->shard_of = calloc(files->n, sizeof(*hf->shard_of));
    if (!hf->shards || !hf->labels || !hf->shard_of)
        return ds_error_set(error, -ENOMEM, "%s: no memory", files->model);
    if (index < 0)
        return open_numbered(hf, files, error);
    r = read_index(hf, files, index, error);
    return r < 0 ? r : open_mapped(hf, files, error);
}

/* --- all of it --- */

static bool has(const struct ds_hf *hf, const char *name)
{
    for (size_t i = 0; i < hf->n_tensors; i++)
        if (strcmp(hf->tensors[i].name, name) == 0)
            return true;
    return false;
}

/* What config.json says of tensors without giving a size. */
static int check_presence(struct ds_hf *hf, struct ds_error *error)
{
    struct ds_hf_config *c = &hf->config;
    char name[64];

    (void) snprintf(name, sizeof name, "blk.%llu.nextn.eh_proj.weight",
                    (unsigned long long) c->layers);
    if (c->nextn && !has(hf, name))
        c->nextn = 0; /* many who convert leave the prediction layer out */
    if (!c->tied && !has(hf, "output.weight"))
        return ds_error_set(error, -EINVAL,
                            "%s: field 'tie_word_embeddings' is not true, but there is no tensor "
                            "'lm_head.weight': fetch the files again",
                            c->label);
    if (c->attention_bias && !c->mla && !has(hf, "blk.0.attn_q.bias"))
        return ds_error_set(error, -EINVAL,
                            "%s: field 'attention_bias' is true, but there is no tensor "
                            "'model.layers.0.self_attn.q_proj.bias': fetch the files again",
                            c->label);
    return 0;
}

/* eos_token_id, which may be one or several. */
static unsigned read_ends(const json_t *config, uint32_t ends[16])
{
    const json_t *json = json_object_get(config, "eos_token_id"), *one;
    unsigned n = 0;
    size_t i;

    if (json_is_integer(json) && json_integer_value(json) >= 0 &&
        json_integer_value(json) < DS_TOKEN_NONE)
        ends[n++] = (uint32_t) json_integer_value(json);
    json_array_foreach(json, i, one)
    {
        if (n < 16 && json_is_integer(one) && json_integer_value(one) >= 0 &&
            json_integer_value(one) < DS_TOKEN_NONE)
            ends[n++] = (uint32_t) json_integer_value(one);
    }
    return n;
}

static int read_vocab(struct ds_hf *hf, const struct ds_hf_files *files, struct ds_error *error)
{
    const json_t *bos = json_object_get(hf->config.json, "bos_token_id");
    struct ds_bytes bytes[DS_HF_N_FILES] = { { NULL, 0 } };
    uint32_t ends[16];
    const struct ds_hf_model model = {
        .label = files->model,
        .n_vocab = (uint32_t) hf->config.vocab,
        .ends = ends,
        .n_ends = read_ends(hf->config.json, ends),
        .bos = json_is_integer(bos) && json_integer_value(bos) >= 0 &&
                       json_integer_value(bos) < DS_TOKEN_NONE
                   ? (uint32_t) json_integer_value(bos)
                   : DS_TOKEN_NONE,
    };
    int r = 0;

    for (int i = 0; r == 0 && i < DS_HF_N_FILES; i++) {
        const char *name = ds_hf_file_name((enum ds_hf_file) i);
        ds_cleanup(ds_free_p) char *label = NULL;
        int file = ds_hf_find_file(files, name);

        if (file < 0)
            continue;
        if (asprintf(&label, "%s/%s", files->model, name) < 0) {
            label = NULL;
            r = ds_error_set(error, -ENOMEM, "%s: no memory", files->model);
        } else {
            r = ds_file_read(files->fds[file], label, (char **) &bytes[i].data, &bytes[i].size,
                             error);
        }
    }
    if (r == 0)
        r = ds_hf_vocab_read(&hf->vocab, bytes, &model, error);
    for (int i = 0; i < DS_HF_N_FILES; i++)
        free((char *) bytes[i].data);
    return r;
}

int ds_hf_open(struct ds_hf *hf, const struct ds_hf_files *files, bool any, struct ds_gguf *keys,
               struct ds_error *error)
{
    int r;

    *keys = (struct ds_gguf){ .fd = -1 };
    r = ds_hf_config_read(&hf->config, files, any, error);
    if (r == 0)
        r = open_shards(hf, files, error);
    if (r == 0 && hf->config.known)
        r = ds_hf_list_tensors(hf, error);
    if (r == 0 && hf->config.known)
        r = check_presence(hf, error);
    if (r == 0)
        r = ds_hf_config_keys(&hf->config, keys, error);
    if (r == 0)
        r = read_vocab(hf, files, error);
    keys->file_bytes = hf->file_bytes;
    return r;
}

void ds_hf_unmap(struct ds_hf *hf)
{
    for (size_t i = 0; i < hf->n_tensors; i++) {
        hf->tensors[i].data = NULL;
        hf->tensors[i].packed = NULL;
    }
    for (unsigned i = 0; i < hf->n_shards; i++) {
        ds_file_unmap(hf->shards[i].mapping, hf->shards[i].file_bytes);
        hf->shards[i].mapping = NULL;
    }
}

void ds_hf_deinit(struct ds_hf *hf)
{
    for (unsigned i = 0; i < hf->n_shards; i++) {
        ds_safetensors_deinit(&hf->shards[i]);
        free(hf->labels[i]);
    }
    for (size_t i = 0; i < hf->n_tensors; i++)
        free((char *) hf->tensors[i].name);
    free(hf->tensors);
    free(hf->packed);
    free(hf->shards);
    free(hf->labels);
    free(hf->shard_of);
    json_decref(hf->weight_map);
    (void) ds_hf_vocab_free(hf->vocab);
    ds_hf_config_deinit(&hf->config);
}
