/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors.h - one safetensors file: its list of tensors and its data.
 * Source: huggingface/safetensors README.
 *
 *      u64 n   n bytes of JSON, starting with '{'   data
 *      name -> { dtype, shape, data_offsets [begin, end) in the data }; "__metadata__" -> strings
 *
 * Row-major, little-endian, no alignment. The file is hostile: the header is read once into private
 * memory and checked whole (sizes, bounds, no overlap, no hole, no name twice) before anything is
 * used; the data is mapped read-only (mapping.h).
 */
#pragma once

#include "engine/format/checkpoint.h"

#define DS_SAFETENSORS_HEADER_MAX  (100u << 20)
#define DS_SAFETENSORS_TENSORS_MAX 262144u
#define DS_SAFETENSORS_NAME_MAX    255u
#define DS_SAFETENSORS_DIMS_MAX    8u

enum ds_safetensor_type {
    DS_SAFETENSOR_OTHER, /* a type this build does not know; its name is in type_name */
    DS_SAFETENSOR_BOOL,
    DS_SAFETENSOR_U8,
    DS_SAFETENSOR_I8,
    DS_SAFETENSOR_F8_E4M3,
    DS_SAFETENSOR_F8_E5M2,
    DS_SAFETENSOR_F8_E8M0,
    DS_SAFETENSOR_U16,
    DS_SAFETENSOR_I16,
    DS_SAFETENSOR_F16,
    DS_SAFETENSOR_BF16,
    DS_SAFETENSOR_U32,
    DS_SAFETENSOR_I32,
    DS_SAFETENSOR_F32,
    DS_SAFETENSOR_U64,
    DS_SAFETENSOR_I64,
    DS_SAFETENSOR_F64,
};

struct ds_safetensor {
    char *name; /* printable ASCII */
    enum ds_safetensor_type type;
    char type_name[12];                      /* as in the file, printable */
    uint32_t n_dims;                         /* 0: a single number */
    uint64_t shape[DS_SAFETENSORS_DIMS_MAX]; /* the file's order: the last one is contiguous */
    uint64_t begin;                          /* in the data */
    uint64_t size_bytes;
    const uint8_t *data; /* in the mapping, aligned to nothing */
};

struct ds_safetensors {
    const char *label; /* for error texts; borrowed */
    uint64_t file_bytes;
    struct ds_safetensor *tensors; /* [n_tensors] in the order of their data */
    struct ds_safetensor **by_name;
    uint32_t n_tensors;
    const void *mapping; /* the whole file (mapping.h) */
};

/* Reads, checks and maps. file is embedded: deinit it whatever came back. fd stays the caller's and
 * is not needed afterwards. label must outlive file. -EBADMSG, -ENOMEM, negative errno of reading.
 */
int ds_safetensors_init(struct ds_safetensors *file, int fd, const char *label,
                        struct ds_error *error);
void ds_safetensors_deinit(struct ds_safetensors *file);

/* NULL where there is none. */
const struct ds_safetensor *ds_safetensors_find(const struct ds_safetensors *file,
                                                const char *name);

/* Bytes of one element; 0 for DS_SAFETENSOR_OTHER. */
unsigned ds_safetensor_element_bytes(enum ds_safetensor_type type);

/* "[512, 96]" for errors. */
const char *ds_safetensor_shape(const struct ds_safetensor *tensor, char buffer[192]);
