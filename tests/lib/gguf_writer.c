/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/gguf_writer.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "engine/format/quant.h"

struct buffer {
    uint8_t *data;
    size_t size, room;
};

struct piece { /* one tensor's data: its tile again and again */
    const void *tile;
    void *own; /* the tile where the writer copied it */
    size_t tile_bytes;
    uint64_t offset, size_bytes; /* in the data section */
};

struct ds_gguf_writer {
    uint32_t version, alignment;
    uint64_t n_keys, n_tensors;
    struct buffer keys, tensors;
    struct piece *pieces; /* [n_tensors], in the order of the file */
    uint64_t data_bytes;  /* of the data section so far */
};

static void *grow(void *old, size_t size)
{
    void *grown = realloc(old, size);

    if (!grown)
        abort();
    return grown;
}

static void put(struct buffer *buffer, const void *bytes, size_t size)
{
    if (buffer->size + size > buffer->room) {
        buffer->room = 2 * (buffer->size + size);
        buffer->data = grow(buffer->data, buffer->room);
    }
    if (size)
        memcpy(buffer->data + buffer->size, bytes, size);
    buffer->size += size;
}

static void put_u32(struct buffer *buffer, uint32_t value)
{
    put(buffer, &value, sizeof value);
}

static void put_u64(struct buffer *buffer, uint64_t value)
{
    put(buffer, &value, sizeof value);
}

static void put_bytes(struct buffer *buffer, const void *data, size_t size)
{
    put_u64(buffer, size);
    put(buffer, data, size);
}

static void pad(struct buffer *buffer, size_t written, uint32_t alignment)
{
    while (written++ % alignment != 0)
        put(buffer, "", 1);
}

struct ds_gguf_writer *ds_gguf_writer_new(void)
{
    struct ds_gguf_writer *writer = grow(NULL, sizeof *writer);

    *writer = (struct ds_gguf_writer){ .version = 3, .alignment = 32 };
    return writer;
}

struct ds_gguf_writer *ds_gguf_writer_free(struct ds_gguf_writer *writer)
{
    if (!writer)
        return NULL;
    free(writer->keys.data);
    free(writer->tensors.data);
    for (uint64_t i = 0; i < writer->n_tensors; i++)
        free(writer->pieces[i].own);
    free(writer->pieces);
    free(writer);
    return NULL;
}

void ds_gguf_writer_free_p(struct ds_gguf_writer **writer)
{
    *writer = ds_gguf_writer_free(*writer);
}

void ds_gguf_writer_version(struct ds_gguf_writer *writer, uint32_t version)
{
    writer->version = version;
}

void ds_gguf_writer_alignment(struct ds_gguf_writer *writer, uint32_t alignment)
{
    writer->alignment = alignment;
    ds_gguf_writer_u32(writer, "general.alignment", alignment);
}

void ds_gguf_writer_raw(struct ds_gguf_writer *writer, const char *key, uint32_t type,
                        const void *payload, size_t size)
{
    writer->n_keys++;
    put_bytes(&writer->keys, key, strlen(key));
    put_u32(&writer->keys, type);
    put(&writer->keys, payload, size);
}

void ds_gguf_writer_u16(struct ds_gguf_writer *writer, const char *key, uint16_t value)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_U16, &value, sizeof value);
}

void ds_gguf_writer_u32(struct ds_gguf_writer *writer, const char *key, uint32_t value)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_U32, &value, sizeof value);
}

void ds_gguf_writer_i32(struct ds_gguf_writer *writer, const char *key, int32_t value)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_I32, &value, sizeof value);
}

void ds_gguf_writer_u64(struct ds_gguf_writer *writer, const char *key, uint64_t value)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_U64, &value, sizeof value);
}

void ds_gguf_writer_f32(struct ds_gguf_writer *writer, const char *key, float value)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_F32, &value, sizeof value);
}

void ds_gguf_writer_bool(struct ds_gguf_writer *writer, const char *key, int value)
{
    uint8_t byte = (uint8_t) value;

    ds_gguf_writer_raw(writer, key, DS_GGUF_BOOL, &byte, 1);
}

void ds_gguf_writer_bytes(struct ds_gguf_writer *writer, const char *key, struct ds_bytes value)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_STRING, NULL, 0);
    put_bytes(&writer->keys, value.data, value.size);
}

void ds_gguf_writer_string(struct ds_gguf_writer *writer, const char *key, const char *value)
{
    ds_gguf_writer_bytes(writer, key, (struct ds_bytes){ value, strlen(value) });
}

void ds_gguf_writer_array(struct ds_gguf_writer *writer, const char *key, enum ds_gguf_type type,
                          const void *elements, size_t bytes, uint64_t n)
{
    ds_gguf_writer_raw(writer, key, DS_GGUF_ARRAY, NULL, 0);
    put_u32(&writer->keys, type);
    put_u64(&writer->keys, n);
    put(&writer->keys, elements, bytes * n);
}

void ds_gguf_writer_strings(struct ds_gguf_writer *writer, const char *key,
                            const struct ds_bytes *strings, uint64_t n)
{
    ds_gguf_writer_array(writer, key, DS_GGUF_STRING, NULL, 0, n);
    for (uint64_t i = 0; i < n; i++)
        put_bytes(&writer->keys, strings[i].data, strings[i].size);
}

void ds_gguf_writer_tiled(struct ds_gguf_writer *writer, const char *name, uint32_t type,
                          unsigned n_dims, const uint64_t *dims, const void *tile,
                          size_t tile_bytes, uint64_t size_bytes)
{
    const uint64_t alignment = writer->alignment;
    struct piece *piece;

    writer->data_bytes += (alignment - writer->data_bytes % alignment) % alignment;
    writer->pieces = grow(writer->pieces, (writer->n_tensors + 1) * sizeof *writer->pieces);
    piece = &writer->pieces[writer->n_tensors++];
    *piece = (struct piece){ .tile = tile,
                             .tile_bytes = tile_bytes,
                             .offset = writer->data_bytes,
                             .size_bytes = size_bytes };
    put_bytes(&writer->tensors, name, strlen(name));
    put_u32(&writer->tensors, n_dims);
    put(&writer->tensors, dims, n_dims * sizeof *dims);
    put_u32(&writer->tensors, type);
    put_u64(&writer->tensors, piece->offset);
    writer->data_bytes += size_bytes;
}

void ds_gguf_writer_tensor(struct ds_gguf_writer *writer, const char *name, uint32_t type,
                           unsigned n_dims, const uint64_t *dims, const void *data,
                           size_t size_bytes)
{
    void *own = grow(NULL, size_bytes + 1);

    if (size_bytes)
        memcpy(own, data, size_bytes);
    ds_gguf_writer_tiled(writer, name, type, n_dims, dims, own, size_bytes, size_bytes);
    writer->pieces[writer->n_tensors - 1].own = own;
}

void ds_gguf_writer_floats(struct ds_gguf_writer *writer, const char *name, uint32_t type,
                           unsigned n_dims, const uint64_t *dims, const float *values)
{
    uint64_t n = 1, size;
    void *blocks;

    for (unsigned i = 0; i < n_dims; i++)
        n *= dims[i];
    size = ds_type_row_bytes(type, n);
    blocks = grow(NULL, size + 1);
    if (size == 0 || ds_quantise(type, values, blocks, n) < 0)
        abort();
    ds_gguf_writer_tensor(writer, name, type, n_dims, dims, blocks, size);
    free(blocks);
}

/* Everything before the data section, padding included. */
static struct buffer header(const struct ds_gguf_writer *writer)
{
    struct buffer file = { 0 };

    put(&file, "GGUF", 4);
    put_u32(&file, writer->version);
    put_u64(&file, writer->n_tensors);
    put_u64(&file, writer->n_keys);
    put(&file, writer->keys.data, writer->keys.size);
    put(&file, writer->tensors.data, writer->tensors.size);
    if (writer->n_tensors)
        pad(&file, file.size, writer->alignment);
    return file;
}

/* Hands the data section on, piece by piece; stops at the first negative return. */
static int each_run(const struct ds_gguf_writer *writer,
                    int (*take)(void *arg, const void *data, size_t size), void *arg)
{
    static const uint8_t zeros[4096];
    uint64_t at = 0;
    int r = 0;

    for (uint64_t i = 0; i < writer->n_tensors; i++) {
        const struct piece *piece = &writer->pieces[i];

        for (; at < piece->offset && r >= 0;) {
            size_t n = piece->offset - at < sizeof zeros ? piece->offset - at : sizeof zeros;

            r = take(arg, zeros, n);
            at += n;
        }
        for (uint64_t left = piece->size_bytes; left > 0 && r >= 0;) {
            size_t n = left < piece->tile_bytes ? left : piece->tile_bytes;

            r = take(arg, piece->tile, n);
            left -= n;
            at += n;
        }
    }
    return r;
}

static int take_in_memory(void *arg, const void *data, size_t size)
{
    put(arg, data, size);
    return 0;
}

uint8_t *ds_gguf_writer_finish(struct ds_gguf_writer *writer, size_t *ret_size)
{
    struct buffer file = header(writer);

    (void) each_run(writer, take_in_memory, &file);
    *ret_size = file.size;
    return file.data;
}

static int take_to_file(void *arg, const void *bytes, size_t size)
{
    const uint8_t *data = bytes;

    while (size > 0) {
        ssize_t n = write(*(int *) arg, data, size);

        if (n < 0)
            return -errno;
        data += n;
        size -= (size_t) n;
    }
    return 0;
}

int ds_memfd_of(const void *data, size_t size)
{
    int fd = memfd_create("dsd-test", MFD_CLOEXEC);

    if (fd >= 0 && take_to_file(&fd, data, size) < 0) {
        (void) close(fd);
        return -1;
    }
    return fd;
}

int ds_gguf_writer_memfd(struct ds_gguf_writer *writer)
{
    size_t size;
    ds_cleanup(ds_free_p) uint8_t *file = ds_gguf_writer_finish(writer, &size);

    return ds_memfd_of(file, size);
}

int ds_gguf_writer_file(struct ds_gguf_writer *writer, const char *path)
{
    struct buffer head = header(writer);
    ds_cleanup(ds_free_p) uint8_t *data = head.data;
    ds_cleanup(ds_close_p) int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int r;

    if (fd < 0)
        return -errno;
    r = take_to_file(&fd, data, head.size);
    return r < 0 ? r : each_run(writer, take_to_file, &fd);
}
