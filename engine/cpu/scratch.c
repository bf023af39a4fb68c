/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/scratch.h"

#include "proto/base.h"

void *ds_scratch_get(struct ds_scratch *scratch, size_t size_bytes)
{
    void *data;

    if (size_bytes <= scratch->size_bytes)
        return scratch->data;
    if (size_bytes > SIZE_MAX / 2)
        return NULL;
    size_bytes = (size_bytes + size_bytes / 4 + 4095) / 4096 * 4096;
    data = aligned_alloc(64, size_bytes);
    if (!data)
        return NULL;
    free(scratch->data);
    scratch->data = data;
    scratch->size_bytes = size_bytes;
    return data;
}

void ds_scratch_deinit(struct ds_scratch *scratch)
{
    free(scratch->data);
    memset(scratch, 0, sizeof *scratch);
}
