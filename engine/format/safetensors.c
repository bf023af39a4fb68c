/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/safetensors.h"

#include <sys/stat.h>

#include "engine/format/json.h"
#include "engine/format/mapping.h"

static const struct {
    const char *name;
    enum ds_safetensor_type type;
    unsigned bytes;
} types[] = {
    { "BOOL", DS_SAFETENSOR_BOOL, 1 },       { "U8", DS_SAFETENSOR_U8, 1 },
    { "I8", DS_SAFETENSOR_I8, 1 },           { "F8_E4M3", DS_SAFETENSOR_F8_E4M3, 1 },
    { "F8_E5M2", DS_SAFETENSOR_F8_E5M2, 1 }, { "F8_E8M0", DS_SAFETENSOR_F8_E8M0, 1 },
    { "U16", DS_SAFETENSOR_U16, 2 },         { "I16", DS_SAFETENSOR_I16, 2 },
    { "F16", DS_SAFETENSOR_F16, 2 },         { "BF16", DS_SAFETENSOR_BF16, 2 },
    { "U32", DS_SAFETENSOR_U32, 4 },         { "I32", DS_SAFETENSOR_I32, 4 },
    { "F32", DS_SAFETENSOR_F32, 4 },         { "U64", DS_SAFETENSOR_U64, 8 },
    { "I64", DS_SAFETENSOR_I64, 8 },         { "F64", DS_SAFETENSOR_F64, 8 },
};

unsigned ds_safetensor_element_bytes(enum ds_safetensor_type type)
{
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].type == type)
            return types[i].bytes;
    return 0;
}

const char *ds_safetensor_shape(const struct ds_safetensor *tensor, char buffer[192])
{
    size_t at = 0;

    for (unsigned i = 0; i < tensor->n_dims; i++)
        at += (size_t) snprintf(buffer + at, 192 - at, "%s%llu", i ? ", " : "[",
                                (unsigned long long) tensor->shape[i]);
    (void) snprintf(buffer + at, 192 - at, tensor->n_dims ? "]" : "[]");
    return buffer;
}

/* thing names the tensor where there is one. */
__attribute__((format(printf, 3, 4))) static int
damaged(const struct ds_safetensors *file, struct ds_error *error, const char *format, ...)
{
    char text[300];
    va_list ap;

    va_start(ap, format);
    (void) vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    return ds_error_set(error, -EBADMSG, "%s: damaged safetensors file: %s; fetch it again",
                        file->label, text);
}

/* --- one entry of the header --- */

static int read_type(const struct ds_safetensors *file, struct ds_safetensor *tensor,
                     const json_t *entry, struct ds_error *error)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));

    if (!name)
        return damaged(file, error, "tensor '%s' has no dtype", tensor->name);
    (void) snprintf(tensor->type_name, sizeof tensor->type_name, "%s", name);
    for (char *c = tensor->type_name; *c; c++)
        if (*c <= ' ' || *c > '~')
            *c = '?';
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].name, name) == 0)
            tensor->type = types[i].type;
    return 0;
}

static bool is_size(const json_t *json, uint64_t *ret_value)
{
    if (!json_is_integer(json) || json_integer_value(json) < 0)
        return false;
    *ret_value = (uint64_t) json_integer_value(json);
    return true;
}

static int read_shape(const struct ds_safetensors *file, struct ds_safetensor *tensor,
                      const json_t *entry, uint64_t *ret_elements, struct ds_error *error)
{
    const json_t *shape = json_object_get(entry, "shape");

    *ret_elements = 1;
    if (!json_is_array(shape) || json_array_size(shape) > DS_SAFETENSORS_DIMS_MAX)
        return damaged(file, error, "tensor '%s' has no shape of at most %u dimensions",
                       tensor->name, DS_SAFETENSORS_DIMS_MAX);
    tensor->n_dims = (uint32_t) json_array_size(shape);
    for (unsigned i = 0; i < tensor->n_dims; i++)
        if (!is_size(json_array_get(shape, i), &tensor->shape[i]) ||
            __builtin_mul_overflow(*ret_elements, tensor->shape[i], ret_elements) ||
            *ret_elements > INT64_MAX / 8)
            return damaged(file, error, "tensor '%s' has an impossible shape", tensor->name);
    return 0;
}

static int read_place(const struct ds_safetensors *file, struct ds_safetensor *tensor,
                      const json_t *entry, uint64_t elements, struct ds_error *error)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    unsigned bytes = ds_safetensor_element_bytes(tensor->type);
    uint64_t end;

    if (json_array_size(offsets) != 2 || !is_size(json_array_get(offsets, 0), &tensor->begin) ||
        !is_size(json_array_get(offsets, 1), &end) || end < tensor->begin)
        return damaged(file, error, "tensor '%s' has no data_offsets", tensor->name);
    tensor->size_bytes = end - tensor->begin;
    if (bytes && tensor->size_bytes != elements * bytes)
        return damaged(file, error, "tensor '%s' of %llu %s takes %llu bytes", tensor->name,
                       (unsigned long long) elements, tensor->type_name,
                       (unsigned long long) tensor->size_bytes);
    return 0;
}

static int read_entry(struct ds_safetensors *file, const char *name, const json_t *entry,
                      struct ds_error *error)
{
    struct ds_safetensor *tensor = &file->tensors[file->n_tensors];
    uint64_t elements;
    int r;

    if (!name[0] || strlen(name) > DS_SAFETENSORS_NAME_MAX)
        return damaged(file, error, "a tensor's name is empty or far too long");
    for (const char *c = name; *c; c++)
        if (*c <= ' ' || *c > '~')
            return damaged(file, error, "a tensor's name holds bytes that no name has");
    tensor->name = strdup(name);
    if (!tensor->name)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", file->label);
    file->n_tensors++;
    if (!json_is_object(entry))
        return damaged(file, error, "tensor '%s' is not described", name);
    r = read_type(file, tensor, entry, error);
    if (r == 0)
        r = read_shape(file, tensor, entry, &elements, error);
    return r == 0 ? read_place(file, tensor, entry, elements, error) : r;
}

/* --- all of them --- */

static int compare_places(const void *a, const void *b)
{
    const struct ds_safetensor *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->size_bytes != y->size_bytes) /* empty ones first: they overlap nothing */
        return x->size_bytes < y->size_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const struct ds_safetensor *const *) a)->name,
                  (*(const struct ds_safetensor *const *) b)->name);
}

/* In order of place, one must begin where the last one ended, and the last one end with the file.
 */
static int check_places(struct ds_safetensors *file, uint64_t data_bytes, struct ds_error *error)
{
    uint64_t at = 0;

    qsort(file->tensors, file->n_tensors, sizeof *file->tensors, compare_places);
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        const struct ds_safetensor *tensor = &file->tensors[i];

        if (tensor->begin < at)
            return damaged(file, error, "tensors '%s' and '%s' overlap", file->tensors[i - 1].name,
                           tensor->name);
        if (tensor->begin > at)
            return damaged(file, error, "there is a hole before tensor '%s'", tensor->name);
        if (tensor->size_bytes > data_bytes - at)
            return ds_error_set(error, -EBADMSG,
                                "%s: truncated: the file has %llu bytes, but tensor '%s' lies "
                                "beyond its end; fetch it again",
                                file->label, (unsigned long long) file->file_bytes, tensor->name);
        at += tensor->size_bytes;
    }
    if (at != data_bytes)
        return damaged(file, error, "%llu bytes at its end belong to no tensor",
                       (unsigned long long) (data_bytes - at));
    return 0;
}

static int read_entries(struct ds_safetensors *file, json_t *header, struct ds_error *error)
{
    size_t n = json_object_size(header);
    const char *name;
    json_t *entry;
    int r;

    if (n > DS_SAFETENSORS_TENSORS_MAX)
        return damaged(file, error, "it lists more than %u tensors", DS_SAFETENSORS_TENSORS_MAX);
    file->tensors = calloc(n + 1, sizeof *file->tensors);
    file->by_name = calloc(n + 1, sizeof(*file->by_name));
    if (!file->tensors || !file->by_name)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its tensor list", file->label);
    json_object_foreach(header, name, entry)
    {
        r = strcmp(name, "__metadata__") == 0 ? 0 : read_entry(file, name, entry, error);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_all(int fd, uint8_t *to, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pread(fd, to, size, (off_t) offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EBADMSG;
        to += n;
        size -= (size_t) n;
        offset += (uint64_t) n;
    }
    return 0;
}

static int read_header(struct ds_safetensors *file, int fd, uint64_t *ret_data_offset,
                       struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *text = NULL;
    uint8_t length[8];
    uint64_t n = 0;
    json_t *header;
    int r;

    if (file->file_bytes < 8)
        return damaged(file, error, "it has only %llu bytes",
                       (unsigned long long) file->file_bytes);
    r = read_all(fd, length, sizeof length, 0);
    if (r < 0)
        return ds_error_set(error, r, "%s: cannot be read: %s", file->label, strerror(-r));
    for (unsigned i = 0; i < 8; i++)
        n |= (uint64_t) length[i] << 8 * i;
    if (n < 2 || n > DS_SAFETENSORS_HEADER_MAX || n > file->file_bytes - 8)
        return damaged(file, error, "its header claims %llu bytes of the file's %llu",
                       (unsigned long long) n, (unsigned long long) file->file_bytes);
    text = malloc(n);
    if (!text)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its header", file->label);
    r = read_all(fd, (uint8_t *) text, n, 8);
    if (r < 0)
        return ds_error_set(error, r, "%s: cannot be read: %s", file->label, strerror(-r));
    if (text[0] != '{')
        return damaged(file, error, "its header is no JSON object");
    header = ds_json_parse(text, n, file->label, &r, error);
    if (!header)
        return r;
    r = read_entries(file, header, error);
    json_decref(header);
    *ret_data_offset = 8 + n;
    return r;
}

int ds_safetensors_init(struct ds_safetensors *file, int fd, const char *label,
                        struct ds_error *error)
{
    uint64_t data_offset = 0;
    struct stat status;
    int r;

    *file = (struct ds_safetensors){ .label = label };
    if (fstat(fd, &status) < 0)
        return ds_error_set(error, -errno, "%s: cannot be read: %s", label, strerror(errno));
    if (!S_ISREG(status.st_mode))
        return ds_error_set(error, -EBADMSG, "%s: not a regular file", label);
    file->file_bytes = (uint64_t) status.st_size;
    r = read_header(file, fd, &data_offset, error);
    if (r == 0)
        r = check_places(file, file->file_bytes - data_offset, error);
    if (r < 0)
        return r;
    file->mapping = ds_file_map(fd, file->file_bytes);
    if (!file->mapping)
        return ds_error_set(error, -errno, "%s: cannot map its %llu bytes: %s", label,
                            (unsigned long long) file->file_bytes, strerror(errno));
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        file->tensors[i].data =
            (const uint8_t *) file->mapping + data_offset + file->tensors[i].begin;
        file->by_name[i] = &file->tensors[i];
    }
    qsort(file->by_name, file->n_tensors, sizeof(*file->by_name), compare_names);
    return 0;
}

void ds_safetensors_deinit(struct ds_safetensors *file)
{
    for (uint32_t i = 0; i < file->n_tensors; i++)
        free(file->tensors[i].name);
    free(file->tensors);
    free(file->by_name);
    ds_file_unmap(file->mapping, file->file_bytes);
    *file = (struct ds_safetensors){ 0 };
}

const struct ds_safetensor *ds_safetensors_find(const struct ds_safetensors *file, const char *name)
{
    const struct ds_safetensor key = { .name = (char *) name }, *wanted = &key;
    struct ds_safetensor *const *found =
        bsearch(&wanted, file->by_name, file->n_tensors, sizeof(*file->by_name), compare_names);

    return found ? *found : NULL;
}
