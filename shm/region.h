/* SPDX-License-Identifier: Apache-2.0 */
/*
 * region.h - shared memory that cannot be cut short under a reader, nor written by two.
 *
 * A region is a memfd whose size is sealed before anyone else sees it, so that no access can
 * raise SIGBUS, and whose bytes are allocated when it is made, so that want of memory is an error
 * code. The region that its creator alone may write is also sealed against future write mappings:
 * permission bits do not help, because a read-only descriptor can be opened again for writing.
 * What follows is that no one can take over such a region: it dies with its writer.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* No connection needs more; and since all is allocated at once, one wrong number must not take the
 * machine's memory. */
#define DS_REGION_BYTES_MAX ((size_t) 128 << 20)

enum ds_region_writer {
    DS_REGION_CREATOR, /* sealed so that only mappings made before the sealing can write */
    DS_REGION_JOINER,  /* the other process maps it for writing */
};

/* One mapping. Zero-initialised = nothing mapped. */
struct ds_region {
    void *base;
    size_t size;  /* of the file */
    size_t twice; /* bytes at the end that are mapped a second time behind it */
};

/* Page size of this machine: offsets and sizes of what is mapped separately are multiples. */
size_t ds_region_page(void);

/* A memfd of size bytes, all allocated, not sealed yet. -EMSGSIZE: over the maximum. -ENOMEM,
 * -ENOSPC, -EMFILE ... */
int ds_region_create(const char *name, size_t size, int *ret_fd);

/* Seals size, and further sealing. After the creator has mapped what it needs. */
int ds_region_seal(int fd, enum ds_region_writer writer);

/* Is fd a region of size bytes sealed for writer? 0 or -EPROTO. */
int ds_region_check(int fd, size_t size, enum ds_region_writer writer);

/* Maps size bytes; the last twice bytes (a multiple of the page size, or 0) once more right behind
 * them, so that what wraps around there is contiguous in memory. */
int ds_region_map(struct ds_region *ret_region, int fd, size_t size, size_t twice, bool writable);
void ds_region_unmap(struct ds_region *region);
