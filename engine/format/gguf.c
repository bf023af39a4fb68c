/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "engine/format/gguf_reader.h"
#include "engine/format/mapping.h"
#include "engine/format/quant.h"

static const char *const type_names[DS_GGUF_N_TYPES] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
};
static const uint8_t type_bytes[DS_GGUF_N_TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

const char *ds_gguf_type_name(uint32_t type)
{
    return type < DS_GGUF_N_TYPES ? type_names[type] : "of an unknown type";
}

static int damaged(const struct ds_gguf *gguf, struct ds_error *error, const char *what)
{
    return ds_error_set(error, -EBADMSG, "%s: damaged GGUF file: %s; fetch it again", gguf->label,
                        what);
}

/* --- keys --- */

static int check_strings(struct ds_gguf *gguf, struct ds_gguf_reader *reader, uint64_t n,
                         struct ds_error *error)
{
    int r;

    for (uint64_t i = 0; i < n; i++) {
        struct ds_bytes string;

        r = ds_gguf_read_string(reader, &string);
        if (r < 0)
            return ds_gguf_reader_failed(reader, r, gguf->label, error);
    }
    return 0;
}

/* Steps over the value and remembers where it lies. */
static int read_value(struct ds_gguf *gguf, struct ds_gguf_reader *reader, struct ds_gguf_key *key,
                      struct ds_error *error)
{
    int r;

    key->n = 1;
    r = ds_gguf_read_u32(reader, &key->type);
    if (r == 0 && key->type == DS_GGUF_ARRAY) {
        key->is_array = true;
        r = ds_gguf_read_u32(reader, &key->type);
        if (r == 0)
            r = ds_gguf_read_u64(reader, &key->n);
    }
    if (r < 0)
        return ds_gguf_reader_failed(reader, r, gguf->label, error);
    if (key->type >= DS_GGUF_N_TYPES || key->type == DS_GGUF_ARRAY)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: key '%s' has value type %u; fetch it again",
                            gguf->label, key->name, key->type);

    key->data = ds_gguf_reader_at(reader);
    if (key->type == DS_GGUF_STRING)
        return check_strings(gguf, reader, key->n, error);
    r = ds_gguf_skip(reader, key->n, type_bytes[key->type]);
    if (r < 0)
        return ds_gguf_reader_failed(reader, r, gguf->label, error);
    for (uint64_t i = 0; key->type == DS_GGUF_BOOL && i < key->n; i++)
        if (key->data[i] > 1)
            return damaged(gguf, error, "a truth value is neither 0 nor 1");
    return 0;
}

/* A name that can stand in any message and compares as a C string. */
static int copy_name(const struct ds_gguf *gguf, struct ds_bytes name, size_t limit,
                     char **ret_name, struct ds_error *error)
{
    char *copy;

    if (name.size == 0 || name.size > limit)
        return damaged(gguf, error, "a name is empty or far too long");
    for (size_t i = 0; i < name.size; i++)
        if (name.data[i] <= ' ' || name.data[i] > '~')
            return damaged(gguf, error, "a name holds bytes that no name has");
    copy = strndup(name.data, name.size);
    if (!copy)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", gguf->label);
    *ret_name = copy;
    return 0;
}

static int read_keys(struct ds_gguf *gguf, struct ds_gguf_reader *reader, uint64_t n,
                     struct ds_error *error)
{
    int r;

    if (n > DS_GGUF_KEYS_MAX || n > reader->limit / 13)
        return damaged(gguf, error, "it claims more keys than it can hold");
    gguf->keys = calloc(n ? n : 1, sizeof *gguf->keys);
    if (!gguf->keys)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", gguf->label);
    for (uint64_t i = 0; i < n; i++) {
        struct ds_gguf_key *key = &gguf->keys[i];
        struct ds_bytes name;

        r = ds_gguf_read_string(reader, &name);
        if (r < 0)
            return ds_gguf_reader_failed(reader, r, gguf->label, error);
        r = copy_name(gguf, name, DS_GGUF_KEY_MAX, &key->name, error);
        if (r < 0)
            return r;
        gguf->n_keys++;
        r = read_value(gguf, reader, key, error);
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- tensor list --- */

static int read_dims(struct ds_gguf *gguf, struct ds_gguf_reader *reader, struct ds_tensor *tensor,
                     struct ds_error *error)
{
    uint64_t elements = 1;
    int r;

    r = ds_gguf_read_u32(reader, &tensor->n_dims);
    if (r < 0)
        return ds_gguf_reader_failed(reader, r, gguf->label, error);
    if (tensor->n_dims == 0 || tensor->n_dims > DS_GGUF_DIMS_MAX)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: tensor '%s' has %u dimensions; fetch it again",
                            gguf->label, tensor->name, tensor->n_dims);
    for (unsigned i = 0; i < DS_GGUF_DIMS_MAX; i++) {
        tensor->dims[i] = 1;
        r = i < tensor->n_dims ? ds_gguf_read_u64(reader, &tensor->dims[i]) : 0;
        if (r < 0)
            return ds_gguf_reader_failed(reader, r, gguf->label, error);
        if (tensor->dims[i] == 0 || __builtin_mul_overflow(elements, tensor->dims[i], &elements) ||
            elements > INT64_MAX / 8)
            return ds_error_set(error, -EBADMSG,
                                "%s: damaged GGUF file: tensor '%s' has an impossible size; "
                                "fetch it again",
                                gguf->label, tensor->name);
    }
    return 0;
}

static int read_tensors(struct ds_gguf *gguf, struct ds_gguf_reader *reader, uint64_t n,
                        struct ds_error *error)
{
    int r;

    if (n > DS_GGUF_TENSORS_MAX || n > reader->limit / 33)
        return damaged(gguf, error, "it claims more tensors than it can hold");
    gguf->tensors = calloc(n ? n : 1, sizeof *gguf->tensors);
    if (!gguf->tensors)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", gguf->label);
    for (uint64_t i = 0; i < n; i++) {
        struct ds_gguf_tensor *entry = &gguf->tensors[i];
        struct ds_bytes name;
        char *copy = NULL;

        r = ds_gguf_read_string(reader, &name);
        if (r < 0)
            return ds_gguf_reader_failed(reader, r, gguf->label, error);
        r = copy_name(gguf, name, DS_GGUF_NAME_MAX, &copy, error);
        if (r < 0)
            return r;
        entry->tensor.name = copy;
        gguf->n_tensors++;
        r = read_dims(gguf, reader, &entry->tensor, error);
        if (r < 0)
            return r;
        r = ds_gguf_read_u32(reader, &entry->tensor.type);
        if (r == 0)
            r = ds_gguf_read_u64(reader, &entry->offset);
        if (r < 0)
            return ds_gguf_reader_failed(reader, r, gguf->label, error);
    }
    return 0;
}

/* --- duplicates --- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* The first name that stands twice among the n, else NULL; sorts names. */
static const char *twice(const char **names, size_t n)
{
    qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return names[i];
    return NULL;
}

static int refuse_duplicates(const struct ds_gguf *gguf, struct ds_error *error)
{
    uint32_t most = gguf->n_keys > gguf->n_tensors ? gguf->n_keys : gguf->n_tensors;
    ds_cleanup(ds_free_p) const char **names = calloc(most + 1, sizeof *names);
    const char *name;

    if (!names)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", gguf->label);
    for (uint32_t i = 0; i < gguf->n_keys; i++)
        names[i] = gguf->keys[i].name;
    name = twice(names, gguf->n_keys);
    if (name)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: key '%s' stands twice; fetch it again",
                            gguf->label, name);
    for (uint32_t i = 0; i < gguf->n_tensors; i++)
        names[i] = gguf->tensors[i].tensor.name;
    name = twice(names, gguf->n_tensors);
    if (name)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: tensor '%s' stands twice; fetch it again",
                            gguf->label, name);
    return 0;
}

/* --- the file --- */

static int read_start(struct ds_gguf *gguf, struct ds_gguf_reader *reader, uint64_t *ret_n_tensors,
                      uint64_t *ret_n_keys, struct ds_error *error)
{
    uint32_t magic;
    int r;

    r = ds_gguf_read_u32(reader, &magic);
    if (r == -EBADMSG || (r == 0 && magic != 0x46554747u))
        return ds_error_set(error, -EBADMSG,
                            "%s: not a GGUF file: give a model in GGUF form (NAME.gguf)",
                            gguf->label);
    if (r == 0)
        r = ds_gguf_read_u32(reader, &gguf->version);
    if (r < 0)
        return ds_gguf_reader_failed(reader, r, gguf->label, error);
    if ((gguf->version & 0xffffu) == 0)
        return ds_error_set(error, -ENOTSUP,
                            "%s: big-endian GGUF file: convert the model again for little-endian",
                            gguf->label);
    if (gguf->version < 2 || gguf->version > 3)
        return ds_error_set(error, -ENOTSUP,
                            "%s: GGUF version %u, this build reads versions 2 and 3: "
                            "convert the model again",
                            gguf->label, gguf->version);
    r = ds_gguf_read_u64(reader, ret_n_tensors);
    if (r == 0)
        r = ds_gguf_read_u64(reader, ret_n_keys);
    return r < 0 ? ds_gguf_reader_failed(reader, r, gguf->label, error) : 0;
}

static int find_alignment(struct ds_gguf *gguf, uint64_t header_end, struct ds_error *error)
{
    const struct ds_gguf_key *key = ds_gguf_find(gguf, "general.alignment");
    uint64_t alignment = 32;

    if (key && (key->is_array || !ds_gguf_u64(key, 0, &alignment)))
        return damaged(gguf, error, "general.alignment is no number");
    if (alignment == 0 || alignment > 1u << 20 || (alignment & (alignment - 1)) != 0)
        return damaged(gguf, error, "general.alignment is no power of two up to 1 MiB");
    gguf->alignment = (uint32_t) alignment;
    gguf->data_offset = (header_end + alignment - 1) & ~(alignment - 1);
    return 0;
}

int ds_gguf_init(struct ds_gguf *gguf, int fd, const char *label, struct ds_error *error)
{
    struct ds_gguf_reader reader;
    uint64_t n_tensors, n_keys;
    struct stat st;
    int r;

    *gguf = (struct ds_gguf){ .label = label, .fd = -1 };
    gguf->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (gguf->fd < 0 || fstat(gguf->fd, &st) < 0) {
        r = -errno;
        return ds_error_set(error, r, "%s: cannot use its descriptor: %s", label, strerror(-r));
    }
    if (!S_ISREG(st.st_mode))
        return ds_error_set(error, -EBADMSG, "%s: not a regular file: give a model in GGUF form",
                            label);
    gguf->file_bytes = (uint64_t) st.st_size;

    r = ds_gguf_reader_init(&reader, gguf->fd, gguf->file_bytes);
    gguf->header = reader.data;
    gguf->header_bytes = reader.limit;
    if (r < 0)
        return ds_gguf_reader_failed(&reader, r, label, error);
    r = read_start(gguf, &reader, &n_tensors, &n_keys, error);
    if (r == 0)
        r = read_keys(gguf, &reader, n_keys, error);
    if (r == 0)
        r = read_tensors(gguf, &reader, n_tensors, error);
    if (r == 0)
        r = refuse_duplicates(gguf, error);
    if (r == 0)
        r = find_alignment(gguf, reader.at, error);
    return r;
}

void ds_gguf_deinit(struct ds_gguf *gguf)
{
    for (uint32_t i = 0; i < gguf->n_keys; i++)
        free(gguf->keys[i].name);
    for (uint32_t i = 0; i < gguf->n_tensors; i++)
        free((char *) gguf->tensors[i].tensor.name);
    free(gguf->keys);
    free(gguf->tensors);
    if (gguf->header)
        (void) munmap(gguf->header, gguf->header_bytes);
    ds_file_unmap(gguf->mapping, gguf->file_bytes);
    ds_close_p(&gguf->fd);
    *gguf = (struct ds_gguf){ .fd = -1 };
}

/* --- data --- */

static int place_tensor(struct ds_gguf *gguf, struct ds_gguf_tensor *entry, struct ds_error *error)
{
    struct ds_tensor *tensor = &entry->tensor;
    const struct ds_type_traits *traits = ds_type_traits(tensor->type);
    uint64_t room = gguf->file_bytes - gguf->data_offset, size;
    const char *name = ds_type_name(tensor->type);

    if (traits && tensor->type >= DS_TYPE_GGML_END)
        name = "unknown"; /* one of ours, which no file's number stands for */
    if (!traits || tensor->type >= DS_TYPE_GGML_END)
        return ds_error_set(error, -ENOTSUP, "%s: tensor '%s' has type %s (%u)%s", gguf->label,
                            tensor->name, name, tensor->type, ds_type_refusal(tensor->type));
    if (tensor->dims[0] % traits->block_elements != 0)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: rows of tensor '%s' are not whole blocks of "
                            "%s; fetch it again",
                            gguf->label, tensor->name, traits->name);
    size = ds_type_row_bytes(tensor->type, tensor->dims[0]) * tensor->dims[1] * tensor->dims[2] *
           tensor->dims[3]; /* no overflow: at most 8 bytes an element, see read_dims() */
    if (gguf->data_offset > gguf->file_bytes || entry->offset > room || size > room - entry->offset)
        return ds_error_set(error, -EBADMSG,
                            "%s: truncated: the file has %llu bytes, but tensor '%s' lies beyond "
                            "its end; fetch it again",
                            gguf->label, (unsigned long long) gguf->file_bytes, tensor->name);
    if (entry->offset % gguf->alignment != 0)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: tensor '%s' is not aligned; fetch it again",
                            gguf->label, tensor->name);
    tensor->size_bytes = size;
    tensor->data = (const uint8_t *) gguf->mapping + gguf->data_offset + entry->offset;
    return 0;
}

static int compare_places(const void *a, const void *b)
{
    uint64_t x = (*(const struct ds_gguf_tensor *const *) a)->offset;
    uint64_t y = (*(const struct ds_gguf_tensor *const *) b)->offset;

    return x < y ? -1 : x > y;
}

static int refuse_overlap(const struct ds_gguf *gguf, struct ds_error *error)
{
    ds_cleanup(ds_free_p) const struct ds_gguf_tensor **order =
        calloc(gguf->n_tensors + 1, sizeof(*order));

    if (!order)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", gguf->label);
    for (uint32_t i = 0; i < gguf->n_tensors; i++)
        order[i] = &gguf->tensors[i];
    qsort(order, gguf->n_tensors, sizeof(*order), compare_places);
    for (uint32_t i = 1; i < gguf->n_tensors; i++)
        if (order[i]->offset < order[i - 1]->offset + order[i - 1]->tensor.size_bytes)
            return ds_error_set(error, -EBADMSG,
                                "%s: damaged GGUF file: tensors '%s' and '%s' overlap; "
                                "fetch it again",
                                gguf->label, order[i - 1]->tensor.name, order[i]->tensor.name);
    return 0;
}

int ds_gguf_map(struct ds_gguf *gguf, struct ds_error *error)
{
    int r;

    if (gguf->n_tensors == 0)
        return 0;
    gguf->mapping = ds_file_map(gguf->fd, gguf->file_bytes);
    if (!gguf->mapping) {
        r = -errno;
        return ds_error_set(error, r, "%s: cannot map its %llu bytes: %s", gguf->label,
                            (unsigned long long) gguf->file_bytes, strerror(-r));
    }
    for (uint32_t i = 0; i < gguf->n_tensors; i++) {
        r = place_tensor(gguf, &gguf->tensors[i], error);
        if (r < 0)
            return r;
    }
    return refuse_overlap(gguf, error);
}

void ds_gguf_unmap(struct ds_gguf *gguf)
{
    ds_file_unmap(gguf->mapping, gguf->file_bytes);
    gguf->mapping = NULL;
    for (uint32_t i = 0; i < gguf->n_tensors; i++)
        gguf->tensors[i].tensor.data = NULL;
}

/* --- values --- */

const struct ds_gguf_key *ds_gguf_find(const struct ds_gguf *gguf, const char *name)
{
    for (uint32_t i = 0; i < gguf->n_keys; i++)
        if (strcmp(gguf->keys[i].name, name) == 0)
            return &gguf->keys[i];
    return NULL;
}

bool ds_gguf_i64(const struct ds_gguf_key *key, uint64_t i, int64_t *ret_value)
{
    static const bool is_signed[DS_GGUF_N_TYPES] = {
        [DS_GGUF_I8] = true, [DS_GGUF_I16] = true, [DS_GGUF_I32] = true, [DS_GGUF_I64] = true
    };
    unsigned bytes = type_bytes[key->type];
    uint64_t value = 0;

    if (bytes == 0 || key->type == DS_GGUF_F32 || key->type == DS_GGUF_F64 ||
        key->type == DS_GGUF_BOOL)
        return false;
    for (unsigned b = 0; b < bytes; b++)
        value |= (uint64_t) key->data[i * bytes + b] << 8 * b;
    if (is_signed[key->type] && bytes < 8 && value >> (8 * bytes - 1))
        value |= UINT64_MAX << 8 * bytes;
    if (key->type == DS_GGUF_U64 && value > INT64_MAX)
        return false;
    *ret_value = (int64_t) value;
    return true;
}

bool ds_gguf_u64(const struct ds_gguf_key *key, uint64_t i, uint64_t *ret_value)
{
    int64_t value;

    if (!ds_gguf_i64(key, i, &value) || value < 0)
        return false;
    *ret_value = (uint64_t) value;
    return true;
}

bool ds_gguf_f64(const struct ds_gguf_key *key, uint64_t i, double *ret_value)
{
    int64_t integer;
    float single;

    if (key->type == DS_GGUF_F32) {
        memcpy(&single, key->data + 4 * i, sizeof single);
        *ret_value = (double) single;
        return true;
    }
    if (key->type == DS_GGUF_F64) {
        memcpy(ret_value, key->data + 8 * i, sizeof *ret_value);
        return true;
    }
    if (!ds_gguf_i64(key, i, &integer))
        return false;
    *ret_value = (double) integer;
    return true;
}

bool ds_gguf_bool(const struct ds_gguf_key *key, uint64_t i, bool *ret_value)
{
    if (key->type != DS_GGUF_BOOL)
        return false;
    *ret_value = key->data[i] != 0;
    return true;
}

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t value;

    memcpy(&value, p, sizeof value);
    return value;
}

bool ds_gguf_string(const struct ds_gguf_key *key, struct ds_bytes *ret_value)
{
    if (key->type != DS_GGUF_STRING || key->is_array)
        return false;
    *ret_value = (struct ds_bytes){ (const char *) key->data + 8, load_u64(key->data) };
    return true;
}

struct ds_bytes *ds_gguf_strings(const struct ds_gguf_key *key)
{
    struct ds_bytes *strings = calloc(key->n + 1, sizeof *strings);
    const uint8_t *at = key->data;

    for (uint64_t i = 0; strings && i < key->n; i++) {
        strings[i] = (struct ds_bytes){ (const char *) at + 8, load_u64(at) };
        at += 8 + strings[i].size;
    }
    return strings;
}
