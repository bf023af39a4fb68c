/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gguf_reader.h - a cursor over the front of a file, which is read once into private memory.
 *
 * Address space for the whole front is reserved, and bytes are read into it as the cursor needs
 * them, so pointers into it stay good. Every read is checked against the end first.
 * Returns: 0, -EBADMSG = beyond the end of the file, -EFBIG = beyond DS_GGUF_HEADER_BYTES_MAX,
 * other negative errno = reading failed.
 */
#pragma once

#include "engine/format/gguf.h"

struct ds_gguf_reader {
    int fd;              /* borrowed */
    uint8_t *data;       /* limit bytes of address space, munmap() is the caller's */
    uint64_t limit;      /* bytes of file that may be read */
    uint64_t filled;     /* bytes read so far */
    uint64_t at;         /* cursor, <= filled */
    uint64_t file_bytes; /* for error texts */
};

int ds_gguf_reader_init(struct ds_gguf_reader *reader, int fd, uint64_t file_bytes);
int ds_gguf_read_u32(struct ds_gguf_reader *reader, uint32_t *ret_value);
int ds_gguf_read_u64(struct ds_gguf_reader *reader, uint64_t *ret_value);
int ds_gguf_read_string(struct ds_gguf_reader *reader, struct ds_bytes *ret_string);
int ds_gguf_skip(struct ds_gguf_reader *reader, uint64_t n, uint64_t size);
const uint8_t *ds_gguf_reader_at(const struct ds_gguf_reader *reader);

/* Says in error what code means here; returns the code to pass up. */
int ds_gguf_reader_failed(const struct ds_gguf_reader *reader, int code, const char *label,
                          struct ds_error *error);
