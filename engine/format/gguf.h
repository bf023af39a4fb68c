/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gguf.h - one GGUF file: its keys, its tensor list, its data. Source: ggml docs/gguf.md.
 *
 *      "GGUF" u32 version  u64 n_tensors  u64 n_keys
 *      n_keys    x  { string key, u32 type, value }                  string = u64 length, bytes
 *      n_tensors x  { string name, u32 n_dims, u64 dims[], u32 type, u64 offset }
 *      padding to the alignment, then the data section; offsets count from its start
 *
 * The file is hostile. What stands before the data section is read once into private memory, so
 * that nobody can change it between check and use; the data section is mapped read-only (whoever
 * can truncate the file can end the process that uses it: that process must be expendable).
 * Versions 2 and 3, little-endian. Error texts name the file and what is wrong with it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"

#define DS_GGUF_HEADER_BYTES_MAX (256u << 20) /* all before the data section */
#define DS_GGUF_KEYS_MAX         65536u
#define DS_GGUF_TENSORS_MAX      131072u
#define DS_GGUF_NAME_MAX         127u  /* bytes of a tensor's name */
#define DS_GGUF_KEY_MAX          1023u /* bytes of a key */
#define DS_GGUF_DIMS_MAX         4u

enum ds_gguf_type { /* of values */
                    DS_GGUF_U8,
                    DS_GGUF_I8,
                    DS_GGUF_U16,
                    DS_GGUF_I16,
                    DS_GGUF_U32,
                    DS_GGUF_I32,
                    DS_GGUF_F32,
                    DS_GGUF_BOOL,
                    DS_GGUF_STRING,
                    DS_GGUF_ARRAY,
                    DS_GGUF_U64,
                    DS_GGUF_I64,
                    DS_GGUF_F64,
                    DS_GGUF_N_TYPES
};

struct ds_gguf_key {
    char *name;          /* NUL-terminated, printable ASCII; owned */
    uint32_t type;       /* enum ds_gguf_type; of the elements where is_array */
    bool is_array;       /* no nested arrays */
    uint64_t n;          /* elements; 1 where it is no array */
    const uint8_t *data; /* first element as it lies in the file: packed, unaligned */
};

struct ds_gguf_tensor {
    struct ds_tensor tensor; /* data and size_bytes are set by ds_gguf_map() */
    uint64_t offset;         /* in the data section */
};

struct ds_gguf {
    const char *label; /* for error texts; borrowed */
    uint32_t version;
    uint32_t alignment;
    uint64_t file_bytes;
    uint64_t data_offset; /* of the data section in the file */
    struct ds_gguf_key *keys;
    uint32_t n_keys;
    struct ds_gguf_tensor *tensors; /* in the file's order */
    uint32_t n_tensors;
    int fd;
    uint8_t *header; /* private copy of the bytes before the data section */
    size_t header_bytes;
    const void *mapping; /* the whole file (mapping.h); NULL before ds_gguf_map() */
};

/* Reads and checks keys and tensor list; types and places of tensors are not judged yet. gguf is
 * embedded: deinit it whatever came back. fd is dup'ed. label must outlive gguf. -EBADMSG,
 * -ENOTSUP, -ENOMEM, negative errno of reading. */
int ds_gguf_init(struct ds_gguf *gguf, int fd, const char *label, struct ds_error *error);

/* Maps the data and gives every tensor its place: each type known to this build, whole blocks,
 * inside the file, none overlapping another. -ENOTSUP, -EBADMSG, -ENOMEM. */
int ds_gguf_map(struct ds_gguf *gguf, struct ds_error *error);

/* Gives the data up: no tensor has any from now on. */
void ds_gguf_unmap(struct ds_gguf *gguf);

void ds_gguf_deinit(struct ds_gguf *gguf);

/* NULL where there is none. */
const struct ds_gguf_key *ds_gguf_find(const struct ds_gguf *gguf, const char *name);

/* Element i (below n) of a key. Numbers convert between widths; false where the value is of another
 * kind or does not fit. */
bool ds_gguf_u64(const struct ds_gguf_key *key, uint64_t i, uint64_t *ret_value);
bool ds_gguf_i64(const struct ds_gguf_key *key, uint64_t i, int64_t *ret_value);
bool ds_gguf_f64(const struct ds_gguf_key *key, uint64_t i, double *ret_value);
bool ds_gguf_bool(const struct ds_gguf_key *key, uint64_t i, bool *ret_value);
bool ds_gguf_string(const struct ds_gguf_key *key, struct ds_bytes *ret_value); /* not of arrays */

/* Fresh array of all n strings of an array key (borrowed contents): free(). NULL: no memory. */
struct ds_bytes *ds_gguf_strings(const struct ds_gguf_key *key);

const char *ds_gguf_type_name(uint32_t type);
