/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/checkpoint.h"

#include <sys/mman.h>

#include "engine/format/checkpoint_parts.h"
#include "engine/format/folder.h"
#include "engine/format/mapping.h"
#include "engine/format/quant.h"

/* The disk may start on this much while the vocabulary is read; from there on the loader's own
 * order of reading drives the kernel's read-ahead. */
#define READ_AHEAD_BYTES (256u << 20)

/* --- files and splits --- */

struct split {
    uint32_t no, count, tensors; /* tensors 0: not said */
};

static int read_split(const struct ds_gguf *gguf, struct split *ret_split, struct ds_error *error)
{
    struct ds_key_reader reader = { gguf, error };
    struct split split = { 0, 1, 0 };
    int r;

    r = ds_key_u32(&reader, "split.no", false, &split.no);
    if (r == 0)
        r = ds_key_u32(&reader, "split.count", false, &split.count);
    if (r == 0)
        r = ds_key_u32(&reader, "split.tensors.count", false, &split.tensors);
    if (split.count == 0) /* some tools write 0 for "not split" */
        split.count = 1;
    if (r == 0)
        *ret_split = split;
    return r;
}

/* Puts file i where its split.no says. */
static int sort_splits(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    ds_cleanup(ds_free_p) struct ds_gguf *sorted = calloc(checkpoint->n_files, sizeof *sorted);
    unsigned n = checkpoint->n_files;
    struct split split;
    int r;

    if (!sorted)
        return ds_error_set(error, -ENOMEM, "%s: no memory", checkpoint->name);
    for (unsigned i = 0; i < n; i++) {
        const struct ds_gguf *file = &checkpoint->files[i];

        r = read_split(file, &split, error);
        if (r < 0)
            return r;
        if (split.count != n)
            return ds_error_set(error, -EINVAL,
                                "%s: the model is split into %u files, %u given: "
                                "put all of them beside each other",
                                file->label, split.count, n);
        if (split.no >= n || sorted[split.no].label)
            return ds_error_set(error, -EINVAL,
                                "%s: its part number %u is impossible or given twice: "
                                "fetch the files again",
                                file->label, split.no + 1);
        sorted[split.no] = *file;
    }
    memcpy(checkpoint->files, sorted, n * sizeof *sorted);
    return 0;
}

static int check_split_total(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    struct split split;
    uint64_t total = 0;
    int r;

    for (unsigned i = 0; i < checkpoint->n_files; i++)
        total += checkpoint->files[i].n_tensors;
    for (unsigned i = 0; i < checkpoint->n_files; i++) {
        r = read_split(&checkpoint->files[i], &split, error);
        if (r < 0)
            return r;
        if (split.tensors != 0 && split.tensors != total)
            return ds_error_set(error, -EINVAL,
                                "%s: the parts should hold %u tensors, they hold %llu: "
                                "fetch the files again",
                                checkpoint->files[i].label, split.tensors,
                                (unsigned long long) total);
    }
    return 0;
}

static int open_files(struct ds_checkpoint *checkpoint, const int *fds, unsigned n_fds,
                      struct ds_error *error)
{
    int r;

    if (n_fds == 0 || n_fds > DS_MODEL_FILES_MAX)
        return ds_error_set(error, -EINVAL, "%s: %u files given, possible are 1 to %u",
                            checkpoint->name, n_fds, DS_MODEL_FILES_MAX);
    checkpoint->files = calloc(n_fds, sizeof *checkpoint->files);
    checkpoint->labels = calloc(n_fds, sizeof *checkpoint->labels);
    if (!checkpoint->files || !checkpoint->labels)
        return ds_error_set(error, -ENOMEM, "%s: no memory", checkpoint->name);
    for (unsigned i = 0; i < n_fds; i++) {
        r = n_fds == 1 ? asprintf(&checkpoint->labels[i], "%s", checkpoint->name)
                       : asprintf(&checkpoint->labels[i], "%s (file %u of %u)", checkpoint->name,
                                  i + 1, n_fds);
        if (r < 0) {
            checkpoint->labels[i] = NULL;
            return ds_error_set(error, -ENOMEM, "%s: no memory", checkpoint->name);
        }
        checkpoint->n_files++;
        r = ds_gguf_init(&checkpoint->files[i], fds[i], checkpoint->labels[i], error);
        if (r < 0)
            return r;
    }
    r = sort_splits(checkpoint, error);
    return r < 0 ? r : check_split_total(checkpoint, error);
}

static int open_folder(struct ds_checkpoint *checkpoint, const struct ds_hf_files *files,
                       struct ds_error *error)
{
    checkpoint->hf = calloc(1, sizeof *checkpoint->hf);
    checkpoint->files = calloc(1, sizeof *checkpoint->files);
    checkpoint->labels = calloc(1, sizeof *checkpoint->labels);
    if (!checkpoint->hf || !checkpoint->files || !checkpoint->labels)
        return ds_error_set(error, -ENOMEM, "%s: no memory", checkpoint->name);
    checkpoint->n_files = 1;
    return ds_hf_open(checkpoint->hf, files, checkpoint->vocab_only, checkpoint->files, error);
}

/* What no GGUF key says. */
static void finish_folder(struct ds_checkpoint *checkpoint)
{
    const struct ds_hf *hf = checkpoint->hf;

    checkpoint->hyper.rope_neox = hf->config.rope_neox;
    checkpoint->hyper.window_first_layer = (uint32_t) hf->config.window_first_layer;
    checkpoint->vocab = *ds_hf_vocab_get(hf->vocab); /* arrays stay the folder's */
    checkpoint->advice = *ds_hf_vocab_advice(hf->vocab);
}

/* --- tensors --- */

static int compare_tensors(const void *a, const void *b)
{
    return strcmp((*(const struct ds_tensor *const *) a)->name,
                  (*(const struct ds_tensor *const *) b)->name);
}

static int list_tensors(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    size_t total = checkpoint->hf ? checkpoint->hf->n_tensors : 0;

    for (unsigned i = 0; i < checkpoint->n_files; i++)
        total += checkpoint->files[i].n_tensors;
    checkpoint->tensors = calloc(total + 1, sizeof(*checkpoint->tensors));
    checkpoint->by_name = calloc(total + 1, sizeof(*checkpoint->by_name));
    if (!checkpoint->tensors || !checkpoint->by_name)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", checkpoint->name);
    for (unsigned i = 0; i < checkpoint->n_files; i++)
        for (uint32_t j = 0; j < checkpoint->files[i].n_tensors; j++)
            checkpoint->tensors[checkpoint->n_tensors++] = &checkpoint->files[i].tensors[j].tensor;
    for (size_t i = 0; checkpoint->hf && i < checkpoint->hf->n_tensors; i++)
        checkpoint->tensors[checkpoint->n_tensors++] = &checkpoint->hf->tensors[i];
    memcpy(checkpoint->by_name, checkpoint->tensors, total * sizeof(*checkpoint->by_name));
    qsort(checkpoint->by_name, total, sizeof(*checkpoint->by_name), compare_tensors);
    for (size_t i = 1; i < total; i++)
        if (strcmp(checkpoint->by_name[i - 1]->name, checkpoint->by_name[i]->name) == 0)
            return ds_error_set(error, -EINVAL,
                                "%s: tensor '%s' stands in two of its files: fetch them again",
                                checkpoint->name, checkpoint->by_name[i]->name);
    return 0;
}

static void sum_up(struct ds_checkpoint *checkpoint)
{
    uint64_t bytes[DS_TYPE_END] = { 0 };
    uint32_t most = DS_TYPE_F32;

    for (unsigned i = 0; i < checkpoint->n_tensors; i++) {
        const struct ds_tensor *tensor = checkpoint->tensors[i];

        checkpoint->n_parameters +=
            tensor->dims[0] * tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
        bytes[tensor->type] += tensor->size_bytes;
    }
    for (uint32_t type = 0; type < DS_TYPE_END; type++)
        if (bytes[type] > bytes[most])
            most = type;
    checkpoint->main_type = checkpoint->n_tensors ? ds_type_traits(most)->name : "";
}

static int read_tensors(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_tensor *embedding;
    int r;

    for (unsigned i = 0; i < checkpoint->n_files; i++) {
        r = ds_gguf_map(&checkpoint->files[i], error);
        if (r < 0)
            return r;
    }
    r = list_tensors(checkpoint, error);
    if (r < 0)
        return r;
    sum_up(checkpoint);
    if (checkpoint->vocab_only) {
        checkpoint->hyper.n_vocab = checkpoint->vocab.n_tokens;
        return 0;
    }
    embedding = ds_checkpoint_tensor(checkpoint, "token_embd.weight");
    if (!embedding)
        return ds_error_set(error, -EINVAL,
                            "%s: holds no weights (tensor 'token_embd.weight' is missing): "
                            "give the whole model",
                            checkpoint->name);
    checkpoint->hyper.n_vocab =
        embedding->dims[1] <= DS_VOCABULARY_MAX ? (uint32_t) embedding->dims[1] : UINT32_MAX;
    r = ds_checkpoint_check_hyper(checkpoint, error);
    if (r < 0)
        return r;
    embedding = ds_checkpoint_require(checkpoint, -1, "token_embd.weight", checkpoint->hyper.width,
                                      checkpoint->hyper.n_vocab, error);
    return embedding ? 0 : -EINVAL;
}

static void start_reading(const struct ds_checkpoint *checkpoint)
{
    for (unsigned i = 0; i < checkpoint->n_files; i++) {
        const struct ds_gguf *file = &checkpoint->files[i];
        size_t size = file->file_bytes < READ_AHEAD_BYTES ? file->file_bytes : READ_AHEAD_BYTES;

        if (file->mapping && i == 0)
            (void) madvise((void *) file->mapping, size, MADV_WILLNEED);
    }
}

int ds_checkpoint_intact(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_hf *hf = checkpoint->hf;
    int r = 0;

    for (unsigned i = 0; i < checkpoint->n_files && r == 0; i++)
        r = ds_file_intact(checkpoint->files[i].mapping, checkpoint->files[i].label, error);
    for (unsigned i = 0; hf && i < hf->n_shards && r == 0; i++)
        r = ds_file_intact(hf->shards[i].mapping, hf->shards[i].label, error);
    return r;
}

void ds_checkpoint_unmap(struct ds_checkpoint *checkpoint)
{
    struct ds_hf *hf = checkpoint->hf;

    for (unsigned i = 0; i < checkpoint->n_files; i++)
        ds_gguf_unmap(&checkpoint->files[i]);
    if (hf)
        ds_hf_unmap(hf);
}

/* --- life --- */

int ds_checkpoint_open(struct ds_checkpoint **ret_checkpoint, const int *fds, unsigned n_fds,
                       const char *name, bool vocab_only, struct ds_error *error)
{
    return ds_checkpoint_open_named(ret_checkpoint, fds, NULL, n_fds, name, vocab_only, error);
}

static bool is_adapter(const char *const *names, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (names[i] && strcmp(names[i], "adapter_config.json") == 0)
            return true;
    return false;
}

int ds_checkpoint_open_named(struct ds_checkpoint **ret_checkpoint, const int *fds,
                             const char *const *names, unsigned n_fds, const char *name,
                             bool vocab_only, struct ds_error *error)
{
    const struct ds_hf_files files = { name, fds, names, n_fds };
    bool folder = names && ds_hf_is_folder(names, n_fds);
    ds_cleanup(ds_checkpoint_free_p) struct ds_checkpoint *checkpoint = NULL;
    int r;

    checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        return ds_error_set(error, -ENOMEM, "%s: no memory", name);
    checkpoint->vocab_only = vocab_only;
    checkpoint->name = strdup(name);
    if (!checkpoint->name)
        return ds_error_set(error, -ENOMEM, "%s: no memory", name);

    if (names && !folder && is_adapter(names, n_fds))
        return ds_error_set(error, -ENOTSUP,
                            "%s: is an adapter, not a model: load it on the model it was made for "
                            "(dsctl lora load MODEL ADAPTER)",
                            name);
    r = folder ? open_folder(checkpoint, &files, error) : open_files(checkpoint, fds, n_fds, error);
    if (r == 0)
        r = ds_checkpoint_read_hyper(checkpoint, error);
    if (r == 0 && folder)
        finish_folder(checkpoint);
    if (r == 0 && !folder)
        r = ds_checkpoint_read_vocab(checkpoint, error);
    if (r == 0)
        r = read_tensors(checkpoint, error);
    if (r == 0)
        r = ds_checkpoint_read_metadata(checkpoint, error);
    if (r < 0)
        return r;
    if (!vocab_only)
        start_reading(checkpoint);
    *ret_checkpoint = ds_steal(checkpoint);
    return 0;
}

struct ds_checkpoint *ds_checkpoint_free(struct ds_checkpoint *checkpoint)
{
    if (!checkpoint)
        return NULL;
    for (uint32_t i = 0; checkpoint->metadata && i < checkpoint->files[0].n_keys; i++)
        free((char *) checkpoint->metadata[i].value);
    free(checkpoint->metadata);
    for (unsigned i = 0; i < checkpoint->n_files; i++) {
        ds_gguf_deinit(&checkpoint->files[i]);
        free(checkpoint->labels[i]);
    }
    free(checkpoint->files);
    free(checkpoint->labels);
    if (checkpoint->hf)
        checkpoint->vocab = (struct ds_vocab){ .n_tokens = 0 };
    free((void *) checkpoint->vocab.tokens);
    free((void *) checkpoint->vocab.types);
    free((void *) checkpoint->vocab.scores);
    free((void *) checkpoint->vocab.merges);
    if (checkpoint->hf)
        ds_hf_deinit(checkpoint->hf);
    free(checkpoint->hf);
    free(checkpoint->tensors);
    free(checkpoint->by_name);
    free(checkpoint->architecture);
    free(checkpoint->name);
    free(checkpoint);
    return NULL;
}

void ds_checkpoint_free_p(struct ds_checkpoint **checkpoint)
{
    *checkpoint = ds_checkpoint_free(*checkpoint);
}

/* --- looking --- */

const char *ds_checkpoint_name(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->name;
}

const char *ds_checkpoint_architecture(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->architecture;
}

const struct ds_hyper *ds_checkpoint_hyper(const struct ds_checkpoint *checkpoint)
{
    return &checkpoint->hyper;
}

const struct ds_vocab *ds_checkpoint_vocab(const struct ds_checkpoint *checkpoint)
{
    return &checkpoint->vocab;
}

const struct ds_sampling_advice *ds_checkpoint_advice(const struct ds_checkpoint *checkpoint)
{
    return &checkpoint->advice;
}

static int compare_with_name(const void *name, const void *tensor)
{
    return strcmp(name, (*(const struct ds_tensor *const *) tensor)->name);
}

const struct ds_tensor *ds_checkpoint_tensor(const struct ds_checkpoint *checkpoint,
                                             const char *name)
{
    const struct ds_tensor *const *found = bsearch(name, checkpoint->by_name, checkpoint->n_tensors,
                                                   sizeof(*checkpoint->by_name), compare_with_name);

    return found ? *found : NULL;
}

const struct ds_tensor *ds_checkpoint_require(const struct ds_checkpoint *checkpoint, int layer,
                                              const char *name, uint64_t ne0, uint64_t ne1,
                                              struct ds_error *error)
{
    const struct ds_tensor *tensor;
    char full[DS_GGUF_NAME_MAX + 1], origin[256];
    uint32_t n_dims = ne1 ? 2 : 1;
    uint64_t rows = ne1 ? ne1 : 1;

    (void) (layer < 0 ? snprintf(full, sizeof full, "%s", name)
                      : snprintf(full, sizeof full, "blk.%d.%s", layer, name));
    tensor = ds_checkpoint_tensor(checkpoint, full);
    if (!tensor) {
        (void) ds_error_set(
            error, -EINVAL, "%s: tensor '%s' is missing: convert or fetch the model again",
            checkpoint->name, checkpoint->hf && ds_hf_origin(full, origin) ? origin : full);
        return NULL;
    }
    /* A matrix of one row may be stored as a vector and the other way round. */
    if (tensor->dims[0] != ne0 || tensor->dims[1] != rows || tensor->dims[2] != 1 ||
        tensor->dims[3] != 1) {
        (void) ds_error_set(error, -EINVAL,
                            "%s: tensor '%s' has %u dimensions %llu x %llu, its keys want %u: "
                            "%llu x %llu; convert the model again",
                            checkpoint->name, full, tensor->n_dims,
                            (unsigned long long) tensor->dims[0],
                            (unsigned long long) tensor->dims[1], n_dims, (unsigned long long) ne0,
                            (unsigned long long) rows);
        return NULL;
    }
    return tensor;
}

unsigned ds_checkpoint_n_tensors(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->n_tensors;
}

const struct ds_tensor *ds_checkpoint_tensor_at(const struct ds_checkpoint *checkpoint, unsigned i)
{
    return i < checkpoint->n_tensors ? checkpoint->tensors[i] : NULL;
}

unsigned ds_checkpoint_n_metadata(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->files[0].n_keys;
}

const struct ds_metadata *ds_checkpoint_metadata(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->metadata;
}

uint64_t ds_checkpoint_file_bytes(const struct ds_checkpoint *checkpoint)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < checkpoint->n_files; i++)
        total += checkpoint->files[i].file_bytes;
    return total;
}

uint64_t ds_checkpoint_n_parameters(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->n_parameters;
}

const char *ds_checkpoint_main_type(const struct ds_checkpoint *checkpoint)
{
    return checkpoint->main_type;
}
