/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/gguf_reader.h"

#include <sys/mman.h>

#define CHUNK_BYTES (1u << 20)

int ds_gguf_reader_init(struct ds_gguf_reader *reader, int fd, uint64_t file_bytes)
{
    uint64_t limit = file_bytes < DS_GGUF_HEADER_BYTES_MAX ? file_bytes : DS_GGUF_HEADER_BYTES_MAX;
    void *data;

    *reader = (struct ds_gguf_reader){ .fd = fd, .file_bytes = file_bytes };
    if (limit == 0)
        return 0;
    data = mmap(NULL, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    if (data == MAP_FAILED)
        return -errno;
    reader->data = data;
    reader->limit = limit;
    return 0;
}

/* Makes n bytes from the cursor on available. */
static int fill(struct ds_gguf_reader *reader, uint64_t n)
{
    uint64_t want;

    if (n > reader->limit - reader->at)
        return reader->limit < reader->file_bytes ? -EFBIG : -EBADMSG;
    want = reader->at + n;
    if (want <= reader->filled)
        return 0;
    if (want - reader->filled < CHUNK_BYTES)
        want = reader->limit - reader->filled < CHUNK_BYTES ? reader->limit
                                                            : reader->filled + CHUNK_BYTES;
    while (reader->filled < want) {
        ssize_t got = pread(reader->fd, reader->data + reader->filled, want - reader->filled,
                            (off_t) reader->filled);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0) /* it became shorter since we asked for its size */
            return -EBADMSG;
        reader->filled += (uint64_t) got;
    }
    return 0;
}

int ds_gguf_skip(struct ds_gguf_reader *reader, uint64_t n, uint64_t size)
{
    uint64_t bytes;
    int r;

    if (__builtin_mul_overflow(n, size, &bytes))
        return -EBADMSG;
    r = fill(reader, bytes);
    if (r < 0)
        return r;
    reader->at += bytes;
    return 0;
}

int ds_gguf_read_u32(struct ds_gguf_reader *reader, uint32_t *ret_value)
{
    int r = ds_gguf_skip(reader, 1, sizeof *ret_value);

    if (r == 0)
        memcpy(ret_value, reader->data + reader->at - sizeof *ret_value, sizeof *ret_value);
    return r;
}

int ds_gguf_read_u64(struct ds_gguf_reader *reader, uint64_t *ret_value)
{
    int r = ds_gguf_skip(reader, 1, sizeof *ret_value);

    if (r == 0)
        memcpy(ret_value, reader->data + reader->at - sizeof *ret_value, sizeof *ret_value);
    return r;
}

int ds_gguf_read_string(struct ds_gguf_reader *reader, struct ds_bytes *ret_string)
{
    uint64_t size;
    int r;

    r = ds_gguf_read_u64(reader, &size);
    if (r == 0)
        r = ds_gguf_skip(reader, size, 1);
    if (r == 0)
        *ret_string = (struct ds_bytes){ (const char *) reader->data + reader->at - size, size };
    return r;
}

const uint8_t *ds_gguf_reader_at(const struct ds_gguf_reader *reader)
{
    return reader->data + reader->at;
}

int ds_gguf_reader_failed(const struct ds_gguf_reader *reader, int code, const char *label,
                          struct ds_error *error)
{
    if (code == -EBADMSG)
        return ds_error_set(
            error, code,
            "%s: truncated or damaged GGUF file: it ends (at %llu bytes) within its "
            "list of keys and tensors; fetch it again",
            label, (unsigned long long) reader->file_bytes);
    if (code == -EFBIG)
        return ds_error_set(error, -EBADMSG,
                            "%s: damaged GGUF file: more than %u MiB of keys; fetch it again",
                            label, DS_GGUF_HEADER_BYTES_MAX >> 20);
    return ds_error_set(error, code, "%s: cannot read: %s", label, strerror(-code));
}
