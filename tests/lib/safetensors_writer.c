/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/safetensors_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void put(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;

    while (size > 0) {
        ssize_t n = write(fd, at, size);

        if (n <= 0)
            abort();
        at += n;
        size -= (size_t) n;
    }
}

int ds_bytes_memfd(const void *bytes, size_t size)
{
    int fd = memfd_create("file", MFD_CLOEXEC);

    if (fd < 0)
        abort();
    put(fd, bytes, size);
    return fd;
}

int ds_st_memfd_raw(const char *header, size_t data_bytes)
{
    uint64_t n = strlen(header);
    int fd = ds_bytes_memfd(&n, sizeof n); /* the machine is little-endian, as the format is */

    put(fd, header, n);
    if (ftruncate(fd, (off_t) (8 + n + data_bytes)) < 0)
        abort();
    return fd;
}

int ds_st_memfd(const struct ds_st_entry *entries, unsigned n)
{
    char *header = NULL;
    size_t size = 0, at = 0;
    FILE *out = open_memstream(&header, &size);
    int fd;

    if (!out)
        abort();
    (void) fputs("{\"__metadata__\": {\"format\": \"pt\"}", out);
    for (unsigned i = 0; i < n; i++) {
        (void) fprintf(out, ", \"%s\": {\"dtype\": \"%s\", \"shape\": [", entries[i].name,
                       entries[i].dtype);
        for (unsigned d = 0; d < entries[i].n_dims; d++)
            (void) fprintf(out, "%s%llu", d ? ", " : "", (unsigned long long) entries[i].shape[d]);
        (void) fprintf(out, "], \"data_offsets\": [%zu, %zu]}", at, at + entries[i].size_bytes);
        at += entries[i].size_bytes;
    }
    (void) fputs("}", out);
    if (fclose(out) != 0)
        abort();
    fd = ds_st_memfd_raw(header, at);
    if (lseek(fd, (off_t) (8 + strlen(header)), SEEK_SET) < 0)
        abort();
    for (unsigned i = 0; i < n; i++) {
        if (entries[i].data)
            put(fd, entries[i].data, entries[i].size_bytes);
        else if (lseek(fd, (off_t) entries[i].size_bytes, SEEK_CUR) < 0)
            abort();
    }
    free(header);
    return fd;
}
