/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.h - memory that grows and is kept, so that a steady state allocates nothing. */
#pragma once

#include <stddef.h>

struct ds_scratch {
    void *data; /* 64-byte aligned */
    size_t size_bytes;
};

/* At least size_bytes; what was there is lost if it grows. NULL: no memory (the old stays). */
void *ds_scratch_get(struct ds_scratch *scratch, size_t size_bytes);
void ds_scratch_deinit(struct ds_scratch *scratch);
