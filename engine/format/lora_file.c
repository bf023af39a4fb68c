/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/lora_file.h"

#include "engine/format/checkpoint_parts.h"
#include "engine/format/lora_parts.h"
#include "engine/format/mapping.h"

#define SUFFIX_BYTES 7u /* ".lora_a" */

/* --- what the adapter says of itself --- */

static bool says(struct ds_bytes value, const char *text)
{
    return value.size == strlen(text) && memcmp(value.data, text, value.size) == 0;
}

static int check_kind(const struct ds_lora_file *file, const struct ds_key_reader *reader)
{
    struct ds_bytes type = { "", 0 }, kind = { "", 0 };
    int r;

    r = ds_key_bytes(reader, "general.type", &type);
    if (r == 0)
        r = ds_key_bytes(reader, "adapter.type", &kind);
    if (r < 0)
        return r;
    if (!says(type, "adapter"))
        return ds_error_set(reader->error, -EINVAL,
                            "%s: is no adapter (key 'general.type' is not \"adapter\"): a model is "
                            "loaded with dsctl load",
                            file->name);
    if (!says(kind, "lora"))
        return ds_error_set(reader->error, -ENOTSUP,
                            "%s: is an adapter of kind '%.*s' (key 'adapter.type'), this build has "
                            "lora only: convert a LoRA adapter",
                            file->name, (int) (kind.size < 32 ? kind.size : 32), kind.data);
    if (ds_gguf_find(reader->gguf, "adapter.alora.invocation_tokens"))
        return ds_error_set(reader->error, -ENOTSUP,
                            "%s: is an activated LoRA (key 'adapter.alora.invocation_tokens'), "
                            "which this build cannot run: take an ordinary LoRA adapter",
                            file->name);
    return 0;
}

static int read_keys(struct ds_lora_file *file, struct ds_error *error)
{
    struct ds_key_reader reader = { &file->gguf, error };
    struct ds_bytes architecture = { "", 0 };
    int r;

    r = check_kind(file, &reader);
    if (r == 0)
        r = ds_key_bytes(&reader, "general.architecture", &architecture);
    if (r == 0)
        r = ds_key_f32(&reader, "adapter.lora.alpha", false, &file->alpha);
    if (r < 0)
        return r;
    for (size_t i = 0; i < architecture.size && i + 1 < sizeof file->architecture; i++) {
        char c = architecture.data[i];

        file->architecture[i] = (char) (c > ' ' && c <= '~' ? c : '?');
    }
    return 0;
}

/* --- pairs --- */

/* 'a' or 'b' for NAME.lora_a and NAME.lora_b, else 0. */
static char half_of(const char *name)
{
    size_t length = strlen(name);

    if (length <= SUFFIX_BYTES || strncmp(name + length - SUFFIX_BYTES, ".lora_", 6) != 0)
        return 0;
    return name[length - 1] == 'a' || name[length - 1] == 'b' ? name[length - 1] : 0;
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp((*(const struct ds_tensor *const *) a)->name,
                  (*(const struct ds_tensor *const *) b)->name);
}

int ds_lora_check_pair(const struct ds_lora_file *file, const struct ds_lora_pair *pair,
                       struct ds_error *error)
{
    bool embedding = strcmp(pair->name, "token_embd.weight") == 0;
    uint64_t rank = pair->b.dims[0], other = embedding ? pair->a.dims[0] : pair->a.dims[1];

    if (pair->a.n_dims > 2 || pair->b.n_dims > 2)
        return ds_error_set(error, -ENOTSUP,
                            "%s: tensor '%s' has %u dimensions: adapters of experts cannot be "
                            "applied here; merge it into the model",
                            file->name, pair->a.name,
                            pair->a.n_dims > 2 ? pair->a.n_dims : pair->b.n_dims);
    if (rank != other)
        return ds_error_set(error, -EINVAL,
                            "%s: tensor '%s' is %llu x %llu and '%s' is %llu x %llu: they have no "
                            "rank in common; convert the adapter again",
                            file->name, pair->a.name, (unsigned long long) pair->a.dims[0],
                            (unsigned long long) pair->a.dims[1], pair->b.name,
                            (unsigned long long) pair->b.dims[0],
                            (unsigned long long) pair->b.dims[1]);
    if (rank == 0 || rank > DS_LORA_RANK_MAX)
        return ds_error_set(error, -ENOTSUP,
                            "%s: tensor '%s' has rank %llu, possible are 1 to %u: take a smaller "
                            "adapter",
                            file->name, pair->b.name, (unsigned long long) rank, DS_LORA_RANK_MAX);
    return 0;
}

/* tensors[0] is NAME.lora_a, tensors[1] should be NAME.lora_b. */
static int add_pair(struct ds_lora_file *file, const struct ds_tensor *const tensors[2], size_t n,
                    struct ds_error *error)
{
    const struct ds_tensor *a = tensors[0], *b = n > 1 ? tensors[1] : NULL;
    size_t stem = strlen(a->name) - SUFFIX_BYTES;
    struct ds_lora_pair *pair = &file->pairs[file->n_pairs];
    char *name;

    if (half_of(a->name) != 'a' || !b || half_of(b->name) != 'b' ||
        strlen(b->name) != stem + SUFFIX_BYTES || memcmp(a->name, b->name, stem) != 0)
        return ds_error_set(error, -EINVAL,
                            "%s: tensor '%s' stands without its other half: convert the adapter "
                            "again",
                            file->name, a->name);
    name = strndup(a->name, stem);
    if (!name)
        return ds_error_set(error, -ENOMEM, "%s: no memory", file->name);
    file->names[file->n_pairs++] = name;
    *pair = (struct ds_lora_pair){ .name = name, .a = *a, .b = *b, .scale = 1.0f };
    if (file->alpha != 0.0f && b->dims[0] > 0)
        pair->scale = file->alpha / (float) b->dims[0];
    return ds_lora_check_pair(file, pair, error);
}

static int read_pairs(struct ds_lora_file *file, struct ds_error *error)
{
    uint32_t n = file->gguf.n_tensors;
    ds_cleanup(ds_free_p) const struct ds_tensor **sorted = calloc(n + 1, sizeof *sorted);
    int r = 0;

    file->pairs = calloc(n / 2 + 1, sizeof *file->pairs);
    file->names = calloc(n / 2 + 1, sizeof *file->names);
    if (!sorted || !file->pairs || !file->names)
        return ds_error_set(error, -ENOMEM, "%s: no memory", file->name);
    if (n == 0)
        return ds_error_set(error, -EINVAL, "%s: holds no tensors: convert the adapter again",
                            file->name);
    for (uint32_t i = 0; i < n; i++) {
        sorted[i] = &file->gguf.tensors[i].tensor;
        if (!half_of(sorted[i]->name))
            return ds_error_set(error, -ENOTSUP,
                                "%s: tensor '%s' is no part of a LoRA pair (.lora_a, .lora_b), and "
                                "this build replaces no weights: merge the adapter into the model",
                                file->name, sorted[i]->name);
    }
    qsort(sorted, n, sizeof *sorted, compare_tensors);
    for (uint32_t i = 0; i < n && r == 0; i += 2)
        r = add_pair(file, sorted + i, n - i, error);
    return r;
}

/* --- life --- */

static int read_gguf(struct ds_lora_file *file, const int *fds, unsigned n_fds,
                     struct ds_error *error)
{
    int r;

    if (n_fds != 1)
        return ds_error_set(error, -EINVAL,
                            "%s: a GGUF adapter is one file, %u were given; a folder has an "
                            "adapter_config.json",
                            file->name, n_fds);
    r = ds_gguf_init(&file->gguf, fds[0], file->name, error);
    if (r == 0)
        r = read_keys(file, error);
    if (r == 0)
        r = ds_gguf_map(&file->gguf, error);
    return r < 0 ? r : read_pairs(file, error);
}

static bool is_folder(const char *const *file_names, unsigned n_fds)
{
    for (unsigned i = 0; file_names && i < n_fds; i++)
        if (file_names[i] && strcmp(file_names[i], "adapter_config.json") == 0)
            return true;
    return false;
}

int ds_lora_file_open(struct ds_lora_file **ret_file, const int *fds, const char *const *file_names,
                      unsigned n_fds, const char *name, struct ds_error *error)
{
    ds_cleanup(ds_lora_file_free_p) struct ds_lora_file *file = calloc(1, sizeof *file);
    int r;

    if (!file)
        return ds_error_set(error, -ENOMEM, "%s: no memory", name);
    file->gguf.fd = -1;
    file->name = strdup(name);
    if (!file->name)
        return ds_error_set(error, -ENOMEM, "%s: no memory", name);
    r = is_folder(file_names, n_fds) ? ds_lora_read_peft(file, fds, file_names, n_fds, error)
                                     : read_gguf(file, fds, n_fds, error);
    if (r < 0)
        return r;
    *ret_file = ds_steal(file);
    return 0;
}

int ds_lora_file_intact(const struct ds_lora_file *file, struct ds_error *error)
{
    return ds_file_intact(file->gguf.mapping, file->name, error);
}

struct ds_lora_file *ds_lora_file_free(struct ds_lora_file *file)
{
    if (!file)
        return NULL;
    for (unsigned i = 0; i < file->n_pairs; i++)
        free(file->names[i]);
    for (unsigned i = 0; file->copies && i < 4 * file->n_pairs; i++)
        free(file->copies[i]);
    free(file->copies);
    free(file->names);
    free(file->pairs);
    if (file->gguf.label)
        ds_gguf_deinit(&file->gguf);
    free(file->name);
    free(file);
    return NULL;
}

void ds_lora_file_free_p(struct ds_lora_file **file)
{
    *file = ds_lora_file_free(*file);
}

const char *ds_lora_file_name(const struct ds_lora_file *file)
{
    return file->name;
}

const char *ds_lora_file_architecture(const struct ds_lora_file *file)
{
    return file->architecture;
}

const struct ds_lora_pair *ds_lora_file_pairs(const struct ds_lora_file *file, unsigned *ret_n)
{
    *ret_n = file->n_pairs;
    return file->pairs;
}

bool ds_lora_file_hf_rows(const struct ds_lora_file *file)
{
    return file->hf_rows;
}
