/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.h - how much memory there is, and how much of it a KV cache gets.
 *
 * The sandbox takes the file system away, so the files that tell (/proc/meminfo and the memory
 * controller of our cgroup and its parents) are opened once and read again through their
 * descriptors. Source: proc(5); Linux Documentation/admin-guide/cgroup-v2.rst and
 * cgroup-v1/memory.rst.
 */
#pragma once

#include <stdint.h>

#include "proto/base.h"

struct ds_memory;

/* root: "" for this machine; tests give a directory that holds proc/ and sys/. Files that are not
 * there are no error: what they would say does not limit. -ENOMEM. */
int ds_memory_new(struct ds_memory **ret_memory, const char *root);
struct ds_memory *ds_memory_free(struct ds_memory *memory);

/* Bytes that could be taken now without pushing anyone out: the least of what the machine and each
 * cgroup have left, page cache counted as free. UINT64_MAX where nothing says. */
uint64_t ds_memory_available(const struct ds_memory *memory);

struct ds_kv_demand {
    uint64_t block_bytes;     /* of one block of DS_KV_BLOCK positions, all layers */
    uint32_t context;         /* positions one request may use */
    uint64_t kv_bytes;        /* what the configuration says; 0 = choose */
    uint64_t available_bytes; /* as ds_memory_available() */
};

struct ds_kv_plan {
    uint32_t n_blocks;
    uint32_t context; /* less than demanded where memory does not hold one such sequence */
};

/* Chosen: room for DS_KV_SEQUENCES full contexts, but at most DS_KV_BYTES_TYPICAL unless one
 * context needs more, and a quarter of what is available (three quarters for the first context).
 * -ENOMEM: the demanded size, or DS_KV_CONTEXT_MIN positions, do not fit. */
#define DS_KV_SEQUENCES     4u
#define DS_KV_BYTES_TYPICAL (UINT64_C(512) << 20)
#define DS_KV_CONTEXT_MIN   128u
int ds_kv_plan(const struct ds_kv_demand *demand, struct ds_kv_plan *ret_plan,
               struct ds_error *error);
