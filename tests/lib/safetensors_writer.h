/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_writer.h - safetensors files for tests, right ones and wrong ones. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct ds_st_entry {
    const char *name, *dtype;
    uint64_t shape[3];
    unsigned n_dims;
    const void *data; /* NULL: zeros */
    size_t size_bytes;
};

/* A memfd with these tensors one after the other. Failures end the test. */
int ds_st_memfd(const struct ds_st_entry *entries, unsigned n);

/* A memfd with this header, whatever it says, and data_bytes zeros behind it. */
int ds_st_memfd_raw(const char *header, size_t data_bytes);

/* A memfd with these bytes. */
int ds_bytes_memfd(const void *bytes, size_t size);
